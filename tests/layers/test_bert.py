"""BERT in parts computes what BERT of transformers computes; the masking follows the paper's shares."""

import pytest
import torch
from transformers import BertConfig, BertModel

from lightning_modules.layers.bert import (
    NO_LABEL,
    make_bert,
    mask_words,
    masked_mean,
    masked_word_loss,
    run_layers,
    sizes_of,
)

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return make_bert(sizes=SIZES).eval()


def test_halves_make_the_whole_and_pads_are_not_seen(model):
    token_ids = torch.tensor([[1, 5, 7, 9, 2, 0, 0], [1, 3, 4, 8, 6, 11, 2]])
    mask = token_ids != 0
    whole = BertModel(BertConfig(**SIZES)).eval()
    whole.load_state_dict(model.bert.state_dict())
    layers = model.bert.encoder.layer
    lower = run_layers(layers[:2], model.bert.embeddings(token_ids), mask)
    upper = run_layers(layers[2:], lower, mask)
    torch.testing.assert_close(upper, whole(token_ids, attention_mask=mask.long()).last_hidden_state)
    other = run_layers(layers, model.bert.embeddings(token_ids.masked_fill(~mask, 30)), mask)
    torch.testing.assert_close(other[mask], upper[mask])
    assert not torch.allclose(run_layers(layers, model.bert.embeddings(token_ids))[0], upper[0], atol=1e-3)
    torch.testing.assert_close(masked_mean(upper, mask)[0], upper[0, :5].mean(0))


def test_the_head_of_masked_words_begins_with_the_word_embeddings_and_leaves_them(model):
    words, head = model.bert.embeddings.word_embeddings.weight, model.cls.predictions.decoder
    assert torch.equal(words, head.weight) and words.data_ptr() != head.weight.data_ptr()
    assert head.bias is model.cls.predictions.bias


def test_a_tied_head_of_masked_words_is_the_word_embeddings():
    model = make_bert(sizes=SIZES, tied=True)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_sizes_build_the_same_architecture(model):
    other = make_bert(sizes=sizes_of(model))
    assert {name: x.shape for name, x in other.state_dict().items()} == {
        name: x.shape for name, x in model.state_dict().items()
    }


def test_published_sizes_without_weights():
    with torch.device("meta"):
        large = make_bert(hub="google-bert/bert-large-uncased")
    embeddings, layers = large.bert.embeddings, large.bert.encoder.layer
    assert sum(x.numel() for x in embeddings.parameters()) == 31_782_912
    assert sum(x.numel() for x in layers.parameters()) == 2 * 151_154_688
    with torch.device("meta"), pytest.raises(ValueError, match="'bert-huge' are not written out; known"):
        make_bert(hub="bert-huge")


@pytest.mark.parametrize("given", [{}, {"hub": "google-bert/bert-base-uncased", "sizes": SIZES}])
def test_one_of_name_and_sizes_is_needed(given):
    with pytest.raises(ValueError, match="the other one must be null"):
        make_bert(**given)


def test_shares_of_masked_words():
    torch.manual_seed(0)
    token_ids = torch.randint(10, 1000, (400, 50))
    token_ids[:, 0], token_ids[:, 40:] = 1, 0
    read, labels = mask_words(token_ids, special=(0, 1, 2), mask_id=3, vocabulary=1000)
    drawn = labels != NO_LABEL
    assert not drawn[:, 0].any() and not drawn[:, 40:].any()
    assert torch.equal(labels[drawn], token_ids[drawn]) and torch.equal(read[~drawn], token_ids[~drawn])
    count = drawn.sum()
    assert abs(count / (400 * 39) - 0.15) < 0.01
    assert abs((read[drawn] == 3).sum() / count - 0.8) < 0.03
    assert abs((read[drawn] == token_ids[drawn]).sum() / count - 0.1) < 0.03


def test_loss_of_masked_words_counts_labelled_words_alone():
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[NO_LABEL, 4, NO_LABEL], [NO_LABEL, NO_LABEL, 2]])
    expected = torch.nn.functional.cross_entropy(torch.stack([logits[0, 1], logits[1, 2]]), torch.tensor([4, 2]))
    torch.testing.assert_close(masked_word_loss(logits, labels), expected)
    assert masked_word_loss(logits, torch.full_like(labels, NO_LABEL)) == 0
