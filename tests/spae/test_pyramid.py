"""Sub-grids, token counts, streaming averages and prefixes: the exact values of the paper's section 3."""

import pytest
import torch
from einops import rearrange

from lightning_modules.metrics.tokens import bits_per_pixel
from lightning_modules.spae.pyramid import Pyramid, layer_places, layer_size, middle, sub_grid
from lightning_modules.spae.words import WordTable

DIM = 5


def table(words=40, source="random"):
    torch.manual_seed(0)
    names = [str(number) for number in range(words)]
    return WordTable(words=names, ids=range(words), dim=DIM, source=source, scaling="none")


def pyramid(layers=(1, 2, 4, 4), grid=(1, 4, 4), source="random", **options):
    return Pyramid(table(source=source), grid, layers, **options)


def latents(grid=(1, 4, 4), batch=3):
    torch.manual_seed(1)
    return torch.randn(batch, DIM, *grid)


def test_six_layers_have_the_papers_numbers_of_tokens():
    built = pyramid((1, 2, 4, 8, 16, 16), (1, 16, 16))
    assert built.tokens == [1, 4, 16, 64, 256, 256]
    assert built.cumulative() == [1, 5, 21, 85, 341, 597]


@pytest.mark.parametrize(
    ("count", "rows"),
    [(1, [9]), (2, [5, 13]), (4, [3, 7, 11, 15]), (8, [2, 4, 6, 8, 10, 12, 14, 16]), (16, list(range(1, 17)))],
)
def test_the_rows_of_a_layer_in_a_grid_of_sixteen(count, rows):
    assert [row + 1 for row in sub_grid(16, count)] == rows


def test_597_words_of_32_thousand_cost_8955_bits():
    assert 597 * 15 == 8955
    assert bits_per_pixel(597, 2**15, 128 * 128) == pytest.approx(0.547, abs=5e-4)
    assert bits_per_pixel(597, 2**15, 128 * 128) * 128 * 128 == 8955


def test_streaming_averages_ask_for_so_many_latents_less_the_words_so_far():
    """z_{L+1} = (L + 1) z - sum e, also as z plus the sum of what each layer missed; drawn is the mean of the words."""
    built, z = pyramid((4, 4, 4)), latents()
    found = built.quantise(z)
    flat = rearrange(z, "b d t h w -> b (t h w) d")
    words = [built.table.embed(layer) for layer in found.words]
    for layer in range(3):
        expected = (layer + 1) * flat - sum(words[:layer], torch.zeros_like(flat))
        missed = flat + sum((flat - word for word in words[:layer]), torch.zeros_like(flat))
        assert torch.allclose(found.asked[layer], expected, atol=1e-5)
        assert torch.allclose(found.asked[layer], missed, atol=1e-5)
        mean = torch.stack(words[: layer + 1]).mean(0)
        assert torch.allclose(rearrange(found.prefixes[layer], "b d t h w -> b (t h w) d"), mean, atol=1e-5)


def test_residuals_ask_for_what_is_left_and_are_drawn_as_sums():
    built, z = pyramid((4, 4), quantisation="rq"), latents()
    found = built.quantise(z)
    flat = rearrange(z, "b d t h w -> b (t h w) d")
    first, second = (built.table.embed(layer) for layer in found.words)
    assert torch.allclose(found.asked[1], flat - first, atol=1e-6)
    assert torch.allclose(rearrange(found.prefixes[1], "b d t h w -> b (t h w) d"), first + second, atol=1e-6)


@pytest.mark.parametrize("quantisation", ["saq", "rq", "flat"])
def test_one_layer_on_all_places_is_plain_vector_quantisation(quantisation):
    built, z = pyramid((4,), quantisation=quantisation), latents()
    found = built.quantise(z)
    flat = rearrange(z, "b d t h w -> b (t h w) d")
    nearest = torch.cdist(flat, built.table.embeddings).argmin(-1)
    assert torch.equal(found.words[0], nearest)
    drawn = rearrange(built.table.embeddings[nearest], "b (h w) d -> b d 1 h w", h=4)
    assert torch.allclose(found.latents, drawn, atol=1e-6)


@pytest.mark.parametrize("empty", ["nearest", "zeros"])
@pytest.mark.parametrize("positions", ["dilated", "block"])
@pytest.mark.parametrize("quantisation", ["saq", "rq", "flat"])
def test_words_alone_give_the_latents_of_every_prefix(quantisation, positions, empty):
    built, z = pyramid(quantisation=quantisation, positions=positions, empty=empty), latents()
    found = built.quantise(z)
    for upto in range(1, 5):
        assert torch.allclose(built.latents(found.words, upto), found.prefixes[upto - 1], atol=1e-6)
        assert torch.allclose(built.quantise(z, upto).latents, found.prefixes[upto - 1], atol=1e-5)
        assert torch.allclose(built.latents(found.words[:upto]), found.prefixes[upto - 1], atol=1e-6)


def test_each_row_may_have_a_prefix_of_its_own():
    built, z = pyramid(), latents().requires_grad_()
    found = built.quantise(z, torch.tensor([4, 1, 2]))
    for row, upto in enumerate((4, 1, 2)):
        assert torch.allclose(found.latents[row], found.prefixes[upto - 1][row], atol=1e-5)
    found.latents[1].sum().backward()
    assert (z.grad != 0).any(1)[:, 0].nonzero().tolist() == [[1, 2, 2]]


def test_flat_has_as_many_words_in_each_layer_and_visits_places_row_by_row():
    flat, tall = pyramid(quantisation="flat"), pyramid()
    assert flat.tokens == tall.tokens
    assert flat.places[:3] == [[0], [1, 2, 3, 4], [*range(5, 16), *range(5)]]
    assert int(flat.visits[-1].sum()) == sum(flat.tokens)
    assert int(flat.visits[-1].max() - flat.visits[-1].min()) <= 1


def test_a_layer_lies_over_the_whole_grid_or_in_its_middle():
    assert layer_places((1, 4, 4), [(1, 2, 2)], "dilated") == [[5, 7, 13, 15]]
    assert layer_places((1, 4, 4), [(1, 2, 2)], "block") == [[5, 6, 9, 10]]
    assert middle(5, 2) == [1, 2]


def test_places_without_a_word_are_those_of_their_nearest_neighbour_or_zeros():
    z = latents()
    near, zero = (pyramid((2,), empty=empty).quantise(z).latents for empty in ("nearest", "zeros"))
    places = [[1, 1], [1, 3], [3, 1], [3, 3]]
    assert torch.equal(near[:, :, 0, 0, 0], near[:, :, 0, 1, 1]) and torch.equal(
        near[:, :, 0, 2, 3], near[:, :, 0, 1, 3]
    )
    for row in range(4):
        for column in range(4):
            there = [row, column] in places
            assert bool(zero[:, :, 0, row, column].any()) == there


def test_the_gradient_passes_straight_through_to_the_places_that_have_words():
    z = latents().requires_grad_()
    pyramid((2,)).quantise(z).latents.sum().backward()
    reached = z.grad[0, 0, 0] != 0
    assert reached.nonzero().tolist() == [[1, 1], [1, 3], [3, 1], [3, 3]]
    assert z.grad.sum().item() == pytest.approx(z.numel())  # each decoded place counts once, at its source


def test_the_commitment_draws_latents_to_words_and_the_codebook_loss_words_to_latents():
    z = latents().requires_grad_()
    built = pyramid(source="learned")
    built.commitment(built.quantise(z)).backward()
    assert z.grad.any() and built.table.embeddings.grad is None
    z.grad = None
    built.codebook_loss(built.quantise(z)).backward()
    assert z.grad is None and built.table.embeddings.grad.any()


def test_a_frozen_table_gets_no_gradient():
    z = latents().requires_grad_()
    built = pyramid()
    found = built.quantise(z)
    (found.latents.square().sum() + built.commitment(found)).backward()
    assert built.table.embeddings.grad is None and not built.table.embeddings.requires_grad and z.grad.any()


def test_the_commitment_of_a_prefix_counts_the_places_that_it_has_reached():
    built, z = pyramid((2, 4)), latents()
    found = built.quantise(z)
    squares = [(z - prefix).square().mean(1) for prefix in found.prefixes]
    there = [squares[0][:, 0, 1::2, 1::2].mean(), squares[1].mean()]
    assert built.commitment(found).item() == pytest.approx(float(sum(there)), rel=1e-5)


def test_clips_have_layers_over_time_too():
    built = pyramid(((1, 1, 1), (1, 2, 2), (2, 4, 4)), (2, 4, 4))
    assert built.tokens == [1, 4, 32]
    assert built.places[0] == [16 + 2 * 4 + 2]
    assert built.quantise(latents((2, 4, 4))).latents.shape == (3, DIM, 2, 4, 4)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "layers is empty"),
        ([1, 5], "a layer of 5 rows does not fit a grid of 4"),
        ([3], "a layer of 3 rows does not fit a grid of 4"),
        ([(2, 4, 4)], "a layer of 2 rows does not fit a grid of 1"),
        ([(4, 4)], r"the layer \[4, 4\] must be one number, or three"),
    ],
)
def test_layers_that_do_not_fit_the_grid_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        pyramid(layers)


def test_a_block_larger_than_the_grid_is_refused():
    with pytest.raises(ValueError, match="a layer of 5 rows does not fit a grid of 4"):
        pyramid([5], positions="block")


def test_latents_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"the grid \(1, 5, 4\), expected 5 and \(1, 4, 4\)"):
        pyramid().quantise(latents((1, 5, 4)))


@pytest.mark.parametrize("upto", [0, 5])
def test_a_prefix_that_is_none_is_refused(upto):
    with pytest.raises(ValueError, match=f"upto is {upto}, expected 1 to 4"):
        pyramid().quantise(latents(), upto)


def test_words_of_other_layers_are_refused():
    built = pyramid()
    words = built.quantise(latents()).words
    with pytest.raises(ValueError, match=r"layers of \[1, 16\] words for a prefix of 2, expected \[1, 4\]"):
        built.latents([words[0], words[2]])
    with pytest.raises(ValueError, match="for a prefix of 3"):
        built.latents(words[:2], 3)
    with pytest.raises(ValueError, match="numbered from 40 to 40, expected 0 to 39"):
        built.latents([torch.full((3, 1), 40)])


def test_one_number_is_a_square_of_one_picture():
    assert layer_size(4) == (1, 4, 4) and layer_size([2, 3, 4]) == (2, 3, 4)
