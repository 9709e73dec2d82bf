"""The table of words: the nearest by chunks, what a language model fills, and what is refused."""

import pytest
import torch

from lightning_modules.spae.words import WordTable, chosen_words, scaled


def table(words=7, dim=3, source="random", **options):
    names = [f"word{number}" for number in range(words)]
    return WordTable(words=names, ids=range(10, 10 + words), dim=dim, source=source, **options)


@pytest.mark.parametrize("scaling", ["none", "standard", "unit"])
@pytest.mark.parametrize("chunk", [1, 3, 50, 97, 4096])
def test_the_nearest_words_by_chunks_are_those_of_the_whole_matrix_of_distances(chunk, scaling):
    torch.manual_seed(0)
    words, latents = table(97, 16, scaling=scaling), torch.randn(4, 5, 16)
    distances = torch.cdist(latents.double().flatten(0, 1), words.embeddings.double())
    assert torch.equal(words.nearest(latents, chunk).flatten(), distances.argmin(1))


def test_of_words_at_the_same_distance_the_first_is_taken_also_over_chunks():
    words = table(4, 2)
    words.embeddings.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    found = words.nearest(torch.tensor([[0.9, 0.0], [0.0, 2.0], [1.0, 1.0]]), chunk=2)
    assert found.tolist() == [0, 1, 0]


def test_a_table_takes_the_embeddings_of_its_words_and_has_no_gradient():
    words = table(source="language", scaling="none")
    embeddings = torch.randn(20, 3, requires_grad=True)
    words.fill(embeddings)
    assert torch.equal(words.embeddings, embeddings.detach()[10:17])
    assert not list(words.parameters()) and not words.embed(torch.tensor([1])).requires_grad


def test_controls_keep_their_own_vectors_and_only_the_learned_ones_are_trained():
    for source, trained in (("random", 0), ("learned", 1)):
        words = table(source=source)
        before = words.embeddings.detach().clone()
        words.fill(torch.ones(20, 3))
        assert torch.equal(words.embeddings, before) and len(list(words.parameters())) == trained


def test_scaling_makes_lengths_one_or_mean_and_variance_standard():
    drawn = 3 + 5 * torch.randn(50, 4)
    assert torch.allclose(scaled(drawn, "unit").norm(dim=1), torch.ones(50))
    standard = scaled(drawn, "standard")
    assert torch.allclose(standard.mean(0), torch.zeros(4), atol=1e-5)
    assert standard.square().mean().item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(scaled(drawn, "none"), drawn)


def test_words_are_spelled_by_their_indices():
    assert table().spelled(torch.tensor([[6, 0]])) == ["word6", "word0"]


def test_a_language_model_of_another_width_or_vocabulary_is_refused():
    words = table(source="language")
    for shape in ((20, 4), (16, 3)):
        with pytest.raises(
            ValueError, match=rf"{shape[0]} embeddings of length {shape[1]}, but the table is for length 3"
        ):
            words.fill(torch.ones(shape))


@pytest.mark.parametrize("index", [-1, 7])
def test_an_index_beyond_the_table_is_refused(index):
    with pytest.raises(ValueError, match=f"numbered from {index} to {index}, expected 0 to 6"):
        table().embed(torch.tensor([index]))


@pytest.mark.parametrize(
    ("words", "ids"), [([], []), (["a", "a"], [1, 2]), (["a", "b"], [1])], ids=["none", "twice", "without id"]
)
def test_a_table_needs_words_each_once_with_its_id(words, ids):
    with pytest.raises(ValueError, match=f"a table of {len(words)} words"):
        WordTable(words=words, ids=ids, dim=2)


def chosen(**options):
    return chosen_words([4, 5, 6, 9], ["red", "blue", "red", "sea"], **{"count": None, "leave_out": [], **options})


def test_words_are_those_of_the_vocabulary_each_once_but_for_what_is_left_out():
    assert chosen() == ([4, 5, 9], ["red", "blue", "sea"])
    assert chosen(leave_out=["blue"], count=1) == ([4], ["red"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 4}, "table.words is 4, but the language model has 3 whole words"),
        ({"count": 3, "leave_out": ["sea"]}, "table.words is 3, but the language model has 2"),
        ({"leave_out": ["green"]}, "leave_out has 'green', which is no whole word"),
    ],
)
def test_a_table_larger_than_the_vocabulary_or_an_unknown_word_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        chosen(**options)


def test_a_language_model_without_whole_words_is_refused():
    with pytest.raises(ValueError, match="has no whole words"):
        chosen_words([], [], count=None, leave_out=[])
