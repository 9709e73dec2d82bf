"""A trained model on video files and paragraphs, and the weights that others have trained."""

from argparse import Namespace
from unittest import mock

import numpy as np
import pytest
import torch
from einops import rearrange
from transformers import SwinConfig, SwinModel

from lightning_modules import settings
from lightning_modules.datasets.video.drawn import encode
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.lf_vila.finder import STRIP, Finder, split_sentences, time_line
from lightning_modules.lf_vila.network import VideoSwin
from lightning_modules.lf_vila.weights import from_hub, inflated, make_video_swin, read_official, with_windows
from stages import predict
from stages.composing import compose

PARAGRAPHS = ["the red circle. the blue circle.", "the cyan circle", "the red circle. the red circle! a. b. c. d."]


@pytest.fixture(scope="module")
def finder() -> Finder:
    torch.manual_seed(0)
    system = compose("tiny", system="lf_vila")["system"]
    return Finder(settings.bind(system["model"], "model")(), {"data": system["data"]})


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    encode(folder / "one.mp4", 20)
    (folder / "paragraphs.txt").write_text("\n\n".join(PARAGRAPHS))
    return folder


def test_paragraphs_are_ranked_and_a_sentence_is_found(finder, videos):
    assert finder.begin([videos / "one.mp4", videos / "paragraphs.txt"]) == [videos / "one.mp4"]
    answers = list(finder.answer(videos / "one.mp4"))
    assert [answer["rank"] for answer in answers] == [1, 2, 3]
    ranked = finder.rank(videos / "one.mp4", PARAGRAPHS)
    assert [answer["paragraph"] for answer in answers] == [paragraph for paragraph, _ in ranked]
    assert [x for _, x in ranked] == sorted((x for _, x in ranked), reverse=True)
    (one,) = (answer for answer in answers if answer["paragraph"] == "the cyan circle")
    moment = finder.moment(videos / "one.mp4", "the cyan circle")
    assert (one["begins"], one["ends"]) == (round(moment.begins, 2), round(moment.ends, 2))
    best = int(np.argmax(moment.similarities))
    length = moment.ends - moment.begins
    assert moment.begins == pytest.approx(best * length) and len(moment.similarities) == 4
    assert moment.picture.width >= STRIP and moment.picture.height > STRIP
    assert sum("moment" in answer for answer in answers) == 1
    assert [PARAGRAPHS[answer["row"]] for answer in answers] == [answer["paragraph"] for answer in answers]


def test_each_moment_has_a_file_of_its_own(finder, videos, tmp_path):
    """The command writes the pictures of a video one beside the other."""
    finder.lines = ["the cyan circle", "the blue circle", "the red circle. the blue circle."]
    arguments = Namespace(inputs=[], among=None, top=3, out=tmp_path, json=False)
    with mock.patch.object(finder, "begin", return_value=[videos / "one.mp4"]):
        predict.answer(finder, arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-one-0-moment.png", "0-one-1-moment.png"]


def test_a_model_without_contrast_over_time_tells_no_moments(videos):
    """Its projections of clips and sentences are as they were drawn."""
    system = compose("tiny", system="lf_vila")["system"]
    other = Finder(settings.bind({**system["model"], "time_weight": 0.0}, "model")(), {"data": system["data"]})
    other.lines = ["the cyan circle"]
    (found,) = other.answer(videos / "one.mp4")
    assert found["paragraph"] == "the cyan circle" and "moment" not in found
    with pytest.raises(ValueError, match=r"model\.time_weight 0, .* expected one with the contrast over time"):
        other.moment(videos / "one.mp4", "the cyan circle")


def test_sentences_of_a_paragraph():
    assert split_sentences("One. Two! Is 3.5 three?") == ["One", "Two", "Is 3.5 three"]
    assert split_sentences("...") == ["..."]


@pytest.mark.parametrize("cosines", [[0.0, 0.9], [0.05, 0.06], [-0.9, -0.2]])
def test_the_best_clip_is_blue_in_the_time_line(cosines):
    """However near the cosines are to each other: its bar is the highest by far."""
    frames = np.zeros((4, 10, 10, 3), np.uint8)
    sheet = np.asarray(time_line(frames, cosines, "here", 8.0)).astype(int)
    blue = ((sheet - np.array([34, 119, 187])) == 0).all(2)
    assert blue[:, sheet.shape[1] // 2 :].any() and not blue[:, : sheet.shape[1] // 2].any()
    grey = ((sheet - np.array([190, 205, 215])) == 0).all(2)
    assert blue.any(1).sum() > 2 * grey.any(1).sum() > 0


@pytest.mark.parametrize(
    ("names", "found"),
    [(["one.mp4"], "1 videos or folders, 0 text files and 0 paragraphs"), (["paragraphs.txt"], "got 0 videos")],
)
def test_inputs_that_cannot_be_compared_are_refused(finder, videos, names, found):
    with pytest.raises(ValueError, match=found):
        finder.begin([videos / name for name in names])


@pytest.mark.parametrize("given", ["the red circle", []])
def test_what_is_no_list_of_paragraphs_is_refused(finder, videos, given):
    with pytest.raises(ValueError, match=r"paragraphs is .*, expected a list such as \['The red circle"):
        finder.rank(videos / "one.mp4", given)


@pytest.mark.parametrize("given", ["", " "])
def test_what_is_no_sentence_is_refused(finder, videos, given):
    with pytest.raises(ValueError, match=r"sentence is .*, expected a text such as 'the blue circle'"):
        finder.moment(videos / "one.mp4", given)


def test_several_sentences_have_no_moment(finder, videos):
    with pytest.raises(ValueError, match=r"sentence is 'the red .*', which are 2: ask for each by itself, or `rank`"):
        finder.moment(videos / "one.mp4", "the red circle. the blue circle.")


@pytest.mark.parametrize("silent", ["zebra quantum", "...", " "])
def test_a_text_without_a_known_word_is_refused(finder, videos, tmp_path, silent):
    """Such a text has a feature, too, and may come first."""
    told = r"has .*, of which the model knows no word; expected a text such as"
    with pytest.raises(ValueError, match=f"paragraphs {told} 'The red circle. The blue one.'"):
        finder.rank(videos / "one.mp4", ["the red circle", silent])
    (tmp_path / "lines.txt").write_text("the red circle\n...\n")
    with pytest.raises(ValueError, match=f"paragraphs {told}"):
        finder.begin([videos / "one.mp4", tmp_path / "lines.txt"])
    if silent.strip():
        with pytest.raises(ValueError, match=f"sentence {told} 'the blue circle'"):
            finder.moment(videos / "one.mp4", silent)


def test_a_file_that_is_no_video_is_refused(finder, videos):
    with pytest.raises(BrokenVideo):
        finder.rank(videos / "paragraphs.txt", PARAGRAPHS)


def test_a_model_of_another_task_is_refused(finder):
    finder.module.task = "fuse"
    with pytest.raises(ValueError, match="trained for the task 'fuse'; expected one of the task 'align'"):
        Finder(finder.module)
    finder.module.task = "align"


# weights

LEVELS = [
    {"depth": 2, "heads": 2, "window": [2, 2, 3], "merge": True},
    {"depth": 1, "heads": 4, "window": [4, 2, 3], "merge": False},
    {"depth": 1, "heads": 4, "window": [8, 2, 3], "merge": True},
    {"depth": 2, "heads": 8, "window": [8, 2, 3], "merge": False},
]
SIZES = {"patch": [1, 8, 8], "levels": LEVELS, "local_window": 4, "drop_path": 0.0}


def swin() -> SwinModel:
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 2, 2],
        num_heads=[2, 4, 8],
        window_size=2,
        drop_path_rate=0.0,
    )
    model = SwinModel(config, add_pooling_layer=False).eval()
    for name, x in model.named_parameters():
        torch.nn.init.normal_(x, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    return model


def test_inflated_swin_reads_frames_as_swin_reads_pictures(tmp_path):
    """Windows of single frames and of Swin's size, and pictures in which each patch stands four times."""
    picture, levels = (
        torch.randn(1, 3, 32, 32),
        [{"depth": 2, "heads": heads, "window": [1, 2, 2], "merge": heads < 8} for heads in (2, 4, 8)],
    )
    model = swin()
    model.save_pretrained(tmp_path)
    encoder = make_video_swin(hub=str(tmp_path), width=None, **{**SIZES, "levels": levels}).eval()
    patches = rearrange(picture, "b c (h p) (w q) -> b c h p w q", p=4, q=4).repeat(1, 1, 1, 2, 1, 2)
    large = rearrange(patches, "b c h p w q -> b c (h p) (w q)")
    with torch.no_grad():
        expected = model(picture).last_hidden_state
        found = encoder(torch.stack([large, large], 2))[0]
    for frame in range(2):
        torch.testing.assert_close(found[:, frame].flatten(1, 2), expected, rtol=1e-4, atol=1e-4)


def test_inflation_by_the_names_of_the_authors_of_swin():
    state, encoder = from_hub(swin().state_dict()), VideoSwin(width=8, **SIZES)
    assert state["layers.0.blocks.0.attn.qkv.weight"].shape == (24, 8)
    found = inflated(state | {"layers.0.blocks.1.attn_mask": torch.zeros(1)}, encoder)
    assert found.keys() == encoder.state_dict().keys()
    torch.testing.assert_close(
        found["patch_embed.proj.weight"].sum((2, 3, 4)), state["patch_embed.proj.weight"].sum((2, 3))
    )
    torch.testing.assert_close(found["layers.2.blocks.0.norm1.weight"], state["layers.1.blocks.1.norm1.weight"])
    torch.testing.assert_close(found["layers.2.downsample.norm.bias"], state["layers.1.downsample.norm.bias"])
    torch.testing.assert_close(found["local_feat_proj.norm.bias"], state["layers.1.downsample.norm.bias"])
    table = found["layers.1.blocks.0.attn.relative_position_bias_table"].view(7, 3, 5, 4)
    assert (table == table[:1]).all()
    square = state["layers.1.blocks.0.attn.relative_position_bias_table"].view(3, 3, 4)
    expected = torch.nn.functional.interpolate(square.permute(2, 0, 1)[None], size=(3, 5), mode="bicubic")[0]
    torch.testing.assert_close(table[0], expected.permute(1, 2, 0))


def test_tables_follow_other_windows():
    long = VideoSwin(
        width=8, **{**SIZES, "levels": [{**level, "window": [16, 2, 3]} for level in LEVELS], "local_window": 16}
    )
    short = VideoSwin(width=8, **SIZES)
    found = with_windows(short.state_dict(), long)
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in long.state_dict().items()}


def test_sizes_and_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"hub \(None\) or width \(None\) must be given"):
        make_video_swin(hub=None, width=None, **SIZES)
    fewer = VideoSwin(width=8, **{**SIZES, "levels": [{**level, "depth": 1} for level in LEVELS]})
    with pytest.raises(ValueError, match=r"the Swin has 6 of .* but the video encoder 4"):
        inflated(from_hub(swin().state_dict()), fewer)
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match="no checkpoint of LF-VILA"):
        read_official(tmp_path / "other.bin")
