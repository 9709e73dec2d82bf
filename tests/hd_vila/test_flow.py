"""Inter-modality flow of stage two: which positions are words, places of the map and padding."""

import numpy as np
import pytest
import torch

from lightning_modules.datasets.tokenizers import world_tokenizer
from lightning_modules.hd_vila.evaluation import evaluate
from tests.hd_vila.test_module import module
from tests.memory_runs import run_of

PLACES = 4  # of a map of 2 x 2
TEXTS = ["a red circle", "a small red circle left"]


def batch(texts=TEXTS) -> dict[str, torch.Tensor]:
    ids, mask = world_tokenizer()(texts, 9)
    video = torch.randint(0, 256, (len(texts), 3, 6, 32, 32), dtype=torch.uint8)
    return {
        "video": video,
        "caption_token_ids": torch.from_numpy(ids),
        "caption_attention_mask": torch.from_numpy(mask),
        "labels": torch.zeros(len(texts), dtype=torch.long),
    }


def flows(made, given) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return made.eval().flows(given, world_tokenizer())


def upper(made):
    return [layer.attention.self for layer in made.network.transformer.bert.encoder.layer[made.network.half :]]


@pytest.mark.parametrize("options", [{"task": "words", "tokenizer": "world"}, {"task": "answers", "num_answers": 3}])
def test_equal_attention_has_a_flow_of_one(options):
    made, given = module(clips=2, **options), batch()
    for attention in upper(made):
        for part in (attention.query, attention.key):
            torch.nn.init.zeros_(part.weight)
    found = flows(made, given)
    assert all((x - 1).abs().max() < 1e-5 for name, x in found.items() if name.endswith(("relative", "rolled_out")))
    length = given["caption_attention_mask"].sum(1)[:, None]
    assert length.flatten().tolist() == [5, 7], "words with start and end"
    for name, words in (("own", length), ("other", length), ("content", length - 2)):
        torch.testing.assert_close(found[f"flow/{name}/to_language"], (PLACES / (PLACES + length)).expand(-1, 2))
        torch.testing.assert_close(found[f"flow/{name}/to_vision"], (words / (PLACES + length)).expand(-1, 2))


def test_attention_to_places_alone_is_read_by_words_alone():
    """The places of the map are marked, so that it shows where they begin."""
    made = module(task="words", tokenizer="world", clips=2)
    marked, attention = made.network.transformer.bert.visual_embeddings.LayerNorm, upper(made)[0]
    for part in (marked.weight, attention.query.weight, attention.key.weight):
        torch.nn.init.zeros_(part)
    with torch.no_grad():
        marked.bias[0] = 100.0
        attention.query.bias.fill_(1.0)
        attention.key.weight[:, 0] = 1.0
    found = flows(made, batch())
    assert found["flow/own/to_language"][:, 0].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert found["flow/own/to_vision"][:, 0].tolist() == pytest.approx([0, 0], abs=1e-5)


def test_of_candidates_the_right_one_is_read():
    given, made = batch(), module(task="choice", clips=2)
    ids, mask = given.pop("caption_token_ids"), given.pop("caption_attention_mask")
    given |= {"token_ids": torch.stack([ids, ids.flip(0)], 1), "attention_mask": torch.stack([mask, mask.flip(0)], 1)}
    own = flows(made, given)
    given["token_ids"][:, 1], given["attention_mask"][:, 1] = given["token_ids"][:, 0], given["attention_mask"][:, 0]
    torch.testing.assert_close(flows(made, given), own)


def test_texts_without_words_are_left_out():
    made = module(task="words", tokenizer="world", clips=2)
    assert len(flows(made, batch([*TEXTS, ""]))["flow/content/relative"]) == 2
    assert flows(made, batch([""])) == {}


def test_flow_is_reported():
    made, given = module(task="words", tokenizer="world", clips=2), batch()
    arrays = {f"{name}/test": x.numpy() for name, x in flows(made, given).items()}
    words = given["caption_token_ids"].numpy()
    arrays |= {"words/test": words, "found/test": words, "found_apart/test": words}
    found = evaluate([run_of(arrays, made.facts())], "world")
    own = arrays["flow/own/relative/test"].astype(np.float64).mean()
    assert found.metrics[0]["world/flow/own_points"] == pytest.approx(100 * own)
    assert [len(series.y) for series in found.figures[0].series] == [2, 2, 2], "layers"


def test_of_a_comparison_the_flow_of_the_papers_own_arm_is_drawn():
    made = module(task="words", tokenizer="world", clips=2)
    arrays = {f"{name}/test": x.numpy() for name, x in flows(made, batch()).items()}
    arrays |= {"answers/test": np.zeros(2, np.int64), "labels/test": np.zeros(2, np.int64)}
    other = {name: 2 * x if name.startswith("flow/") else x for name, x in arrays.items()}
    names = {"hd_vila-words-max/answer": other, "hd_vila-words/answer": arrays}  # in the order of `find_runs`
    found = evaluate([run_of(each, {}, name=name) for name, each in names.items()], "world").figures
    alone = evaluate([run_of(arrays, {}, name="hd_vila-words/answer")], "world").figures
    assert len(found) == 1 and found == alone
