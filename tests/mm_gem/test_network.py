"""One language model that embeds and writes: what may see what."""

import math

import pytest
import torch

from lightning_modules.datamodules.illustrated import IGNORED
from lightning_modules.mm_gem.network import Generative
from lightning_modules.vision_language.causal import make_causal
from lightning_modules.vision_language.towers import make_tower

LANGUAGE = {"hidden_size": 16, "layers": 2, "heads": 2, "kv_heads": 1, "mlp_dim": 32, "positions": 64}
TOWER = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
         "patch_size": 4}  # fmt: skip
TEXTS = ["large red circle , small blue star", "small green square", "large blue star"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Generative(
        make_causal(**LANGUAGE), make_tower(sizes=TOWER), pool={"grid": 2}, embedding_dim=8, projection="mlp"
    ).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def ids(network, texts=TEXTS, side="right", end=True, width=16):
    language, rows = network.language, []
    for text in texts:
        rows.append([*language.start, *language.encode(text), *([language.tokenizer.eos_token_id] if end else [])])
    pad = language.tokenizer.pad_token_id
    token_ids = torch.full((len(texts), width), pad)
    mask = torch.zeros(len(texts), width, dtype=torch.bool)
    for row, each in enumerate(rows):
        where = slice(0, len(each)) if side == "right" else slice(width - len(each), width)
        token_ids[row, where], mask[row, where] = torch.tensor(each), True
    return token_ids, mask


def test_a_vector_depends_neither_on_the_side_of_padding_nor_on_the_end_token_nor_on_other_texts(network):
    expected = network.text_vectors(*ids(network))
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(network.text_vectors(*ids(network, side="left")), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.text_vectors(*ids(network, end=False)), expected, rtol=1e-4, atol=1e-5)
    alone = network.text_vectors(*ids(network, TEXTS[1:2], width=6))
    torch.testing.assert_close(alone, expected[1:2], rtol=1e-4, atol=1e-5)


def test_the_embedding_token_is_the_last_one_and_sees_the_whole_text(network):
    token_ids, mask, places = network.ended(*ids(network))
    assert token_ids[torch.arange(3), places].tolist() == [network.embed_id] * 3
    assert [int(row.nonzero().max()) for row in mask] == places.tolist()
    first, second = network.text_vectors(*ids(network, ["large red circle , small blue star"] * 2))
    torch.testing.assert_close(first, second)
    for changed in ("small red circle , small blue star", "large red circle , small blue square"):
        assert not torch.allclose(network.text_vectors(*ids(network, [changed]))[0], first, atol=1e-4)


def test_a_cut_text_is_that_of_its_first_tokens(network):
    whole = network.text_vectors(*ids(network, ["large red circle"]))
    network.text_limit = 3
    try:
        for side in ("right", "left"):
            torch.testing.assert_close(
                network.text_vectors(*ids(network, TEXTS[:1], side)), whole, rtol=1e-4, atol=1e-5
            )
    finally:
        network.text_limit = None


def test_another_picture_changes_the_caption_loss_and_no_text_vector(network, images):
    token_ids, mask = ids(network)
    labels = token_ids.masked_fill(~mask, IGNORED)
    labels[:, 0] = IGNORED
    losses = [network.caption_loss(network.tokens(x), token_ids, mask, labels) for x in (images, 255 - images)]
    assert not torch.allclose(*losses, rtol=1e-4)
    texts = network.text_vectors(token_ids, mask)
    vectors = network.picture_vectors(network.tokens(images))
    (texts.sum() + 0 * vectors.sum()).backward()
    assert network.to_language[0].weight.grad is None and network.text_to_vector.weight.grad is not None
    network.zero_grad()


def test_losses_of_fresh_weights_are_those_of_guessing(network, images):
    token_ids, mask = ids(network)
    labels = token_ids.masked_fill(~mask, IGNORED)
    found = network.caption_loss(network.tokens(images), token_ids, mask, labels).sum() / (labels != IGNORED).sum()
    assert abs(found.item() - math.log(len(network.language.embeddings))) < 0.2


def test_the_published_language_model_gets_two_rows_more():
    with torch.device("meta"):
        language = make_causal(hub="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T")
        tower = make_tower(hub="openai/clip-vit-large-patch14")
        network = Generative(language, tower, pool={"grid": 4}, embedding_dim=1024)
    assert sum(x.numel() for x in network.language.whole.parameters()) == 1_100_052_480
    assert sum(x.numel() for x in network.tower.parameters()) == 303_179_776
    assert network.embed_id == 32_000
