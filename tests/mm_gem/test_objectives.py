import math

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.losses.contrastive import info_nce
from lightning_modules.mm_gem.objectives import others_alike, paired_nce, text_keys


def vectors(rows: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(F.normalize(torch.randn(2, rows, 5, generator=torch.Generator().manual_seed(0)), dim=2))


def test_it_is_half_of_info_nce_where_all_texts_differ():
    pictures, texts = vectors()
    scale = torch.tensor(9.0)
    expected = info_nce(pictures, texts, scale) / 2
    torch.testing.assert_close(paired_nce(pictures, texts, scale), expected)
    torch.testing.assert_close(paired_nce(pictures, texts, scale, torch.arange(7)), expected)


def test_it_is_log_n_where_all_are_equally_similar():
    same = torch.ones(64, 4) / 2
    assert paired_nce(same, same, torch.tensor(1 / 0.07)).item() == pytest.approx(math.log(64), rel=1e-5)


def test_equal_pairs_and_no_temperature_leave_no_loss_and_order_does_not_count():
    pictures, texts = vectors()
    assert paired_nce(pictures, pictures, torch.tensor(1e4)).item() == pytest.approx(0, abs=1e-6)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    scale = torch.tensor(9.0)
    torch.testing.assert_close(paired_nce(pictures[order], texts[order], scale), paired_nce(pictures, texts, scale))


def test_equal_texts_of_other_rows_are_no_negatives():
    pictures, texts = vectors(4)
    texts[3] = texts[1]
    keys = torch.tensor([0, 1, 2, 1])
    found = paired_nce(pictures, texts, torch.tensor(9.0), keys)
    logits = 9 * pictures @ texts.T
    terms = []
    for x in (logits, logits.T):
        for row in range(4):
            seen = [column for column in range(4) if column == row or keys[column] != keys[row]]
            terms.append(x[row, seen].logsumexp(0) - x[row, row])
    torch.testing.assert_close(found, torch.stack(terms).mean())
    assert found < paired_nce(pictures, texts, torch.tensor(9.0))


def test_keys_are_those_of_the_ids_whatever_the_padding():
    ids = torch.tensor([[4, 9, 0, 0], [4, 9, 7, 7], [9, 4, 0, 0], [4, 9, 0, 0], [0, 4, 9, 0]])
    there = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]).bool()
    keys = text_keys(ids, there)
    assert keys[0] == keys[1]
    assert len(set(keys[1:].tolist())) == 4
    assert others_alike(keys).sum() == 2
