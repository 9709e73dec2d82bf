"""Visual tokens and weights: windows are put back to where they were, and the encoders are those of transformers."""

import pytest
import torch
from transformers import SwinConfig, SwinModel

from lightning_modules.settings import check
from lightning_modules.visual_parsing.parsing import VisualSettings, make_parser, seen, whole_map, window_places
from tests.visual_parsing import small


def parser(kind="swin", *, windows="one", pool=False, **sizes):
    torch.manual_seed(0)
    visual = {**small.VISUAL, "kind": kind, "windows": windows, "pool": pool}
    if sizes:
        visual["swin"] = {"hub": None, "sizes": small.SWIN | sizes}
    return make_parser(visual).eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (36, 60)])
def test_tokens_and_attention_are_those_of_the_model_of_transformers(size):
    """The attention of the last block, from its own outputs; 36 x 60 has padding in every stage."""
    ours, images = parser(windows="several", window_size=2), torch.randn(2, 3, *size)
    torch.manual_seed(0)
    config = SwinConfig(**small.SWIN | {"window_size": 2})
    theirs = SwinModel(config, add_pooling_layer=False).eval()
    theirs.load_state_dict(ours.model.state_dict())
    theirs.set_attn_implementation("eager")
    out = theirs(images, output_attentions=True)
    parsed = ours(images)
    torch.testing.assert_close(parsed.features, out.last_hidden_state)
    places = window_places(parsed.grid, 2, 1)
    attention = out.attentions[-1].mean(1).view(2, len(places), 4, 4)
    for window, place in enumerate(places.tolist()):
        inside = [number for number, token in enumerate(place) if token >= 0]
        for query in inside:
            for key in inside:
                total = attention[:, window, query, inside].sum(-1)
                expected = attention[:, window, query, key] / total
                torch.testing.assert_close(parsed.weights[:, place[query], place[key]], expected)
    torch.testing.assert_close(parsed.weights.sum(-1), torch.ones(2, parsed.weights.shape[1]))


def test_a_shifted_window_holds_the_tokens_that_the_shift_brings_together():
    """A map of 4 x 4 tokens in windows of 2, rolled by 1: the first window holds the middle of the map."""
    places = window_places((4, 4), 2, 1)
    assert places.tolist() == [[5, 6, 9, 10], [7, 4, 11, 8], [13, 14, 1, 2], [15, 12, 3, 0]]
    assert window_places((4, 4), 2, 0).tolist()[1] == [2, 3, 6, 7]
    assert window_places((3, 3), 2, 0).tolist() == [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]


def test_weights_between_windows_are_zero_and_padding_is_left_out():
    attention = torch.rand(2 * 4, 3, 4, 4).softmax(-1)
    found = whole_map(attention, (3, 3), 2, 0)
    assert found.shape == (2, 9, 9)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 9))
    assert (found[:, 0, [2, 5, 6, 7, 8]] == 0).all(), "tokens of other windows"
    torch.testing.assert_close(found[:, 8], torch.eye(9)[8].expand(2, -1)), "alone in its window, beside padding"


def test_one_window_is_the_map_itself():
    attention = torch.rand(5, 2, 16, 16).softmax(-1)
    torch.testing.assert_close(whole_map(attention, (4, 4), 4, 0), attention.mean(1))


def test_a_last_stage_of_several_windows_is_refused_where_one_was_asked_for():
    with pytest.raises(ValueError, match="several"):
        parser(window_size=2)(torch.randn(1, 3, 32, 32))


def test_fused_attention_gives_no_weights():
    swin = parser()
    swin.model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="eager"):
        swin(torch.randn(1, 3, 32, 32))


@torch.no_grad()
def test_a_cnn_has_as_many_tokens_and_no_weights():
    images = torch.randn(2, 3, 32, 32)
    swin, cnn = parser()(images), parser("cnn")(images)
    assert swin.grid == cnn.grid == (4, 4)
    assert cnn.weights is None and swin.weights is not None


@torch.no_grad()
def test_pooling_takes_the_largest_of_four_tokens_and_adds_up_what_is_attended_to():
    images = torch.randn(2, 3, 32, 32)
    whole, pooled = parser()(images), parser(pool=True)(images)
    assert pooled.grid == (2, 2)
    first = [0, 1, 4, 5]
    torch.testing.assert_close(pooled.features[:, 0], whole.features[:, first].amax(1))
    torch.testing.assert_close(pooled.weights[:, 0, 0], whole.weights[:, first][:, :, first].sum(2).mean(1))
    torch.testing.assert_close(pooled.weights.sum(-1), torch.ones(2, 4))


def test_tokens_beyond_a_picture_are_not_seen():
    images = torch.zeros(2, 3, 32, 48)
    there = seen(torch.tensor([[32, 48], [9, 24]]), images, (4, 6), 8)
    assert there[0].all()
    assert there[1].view(4, 6).tolist() == [[True] * 3 + [False] * 3] * 2 + [[False] * 6] * 2
    assert seen(None, images, (4, 6), 8).all()


@torch.no_grad()
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("kind", ["swin", "cnn"])
def test_where_tokens_begin_is_known_for_sides_that_are_no_multiple(kind, pool):
    """40 px are 5 tokens or, of two by two, 3: the last one begins at 32 px, and not at 2/3 of 40."""
    parsed = parser(kind, windows="several", pool=pool)(torch.randn(1, 3, 40, 40))
    side = 3 if pool else 5
    assert parsed.grid == (side, side) and parsed.stride == (16 if pool else 8)
    for height, rows in ((32, side - 1), (33, side)):
        there = seen(torch.tensor([[height, 40]]), torch.zeros(1, 3, 40, 40), parsed.grid, parsed.stride)
        assert there.sum() == rows * side


def test_a_part_needs_a_name_or_sizes():
    with pytest.raises(ValueError, match=r"model\.visual\.swin"):
        make_parser({**small.VISUAL, "swin": {"hub": None, "sizes": None}})


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("swin", {"num_heads": [2]}, r"swin\.sizes: depths \[1, 2\] and num_heads \[2\]"),
        ("swin", {"num_heads": [3, 2]}, r"num_heads has 3 for stage 1 of 8 channels"),
        ("cnn", {"widths": [8]}, r"cnn\.sizes: depths \[1, 1\] and widths \[8\]"),
    ],
)
def test_sizes_that_do_not_fit_one_another_are_refused(kind, changes, told):
    sizes = {"swin": small.SWIN, "cnn": small.CNN}[kind] | changes
    with pytest.raises(ValueError, match=told):
        make_parser({**small.VISUAL, "kind": kind, kind: {"hub": None, "sizes": sizes}})


@pytest.mark.parametrize(("kind", "changes"), [("swin", {"depths": [], "num_heads": []}), ("cnn", {"widths": []})])
def test_a_network_without_stages_is_refused(kind, changes):
    sizes = {"swin": small.SWIN, "cnn": small.CNN}[kind] | changes
    with pytest.raises(ValueError, match=r"depths|widths"):
        check({**small.VISUAL, kind: {"hub": None, "sizes": sizes}}, VisualSettings, "model.visual")


@pytest.mark.parametrize("kind", ["swin", "cnn"])
def test_a_name_whose_sizes_are_not_written_out_is_refused_without_its_files(kind):
    visual = {**small.VISUAL, "kind": kind, kind: {"hub": "microsoft/another", "sizes": None}}
    with torch.device("meta"), pytest.raises(ValueError, match="sizes of 'microsoft/another' are not written out"):
        make_parser(visual)
