"""The module: what is seen of a clip, what is frozen and masked, which data it refuses."""

from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules import settings
from lightning_modules.datamodules.video_texts import VideoTexts
from lightning_modules.datasets.world import views
from lightning_modules.hd_vila.evaluation import LARGER, examples, measured
from lightning_modules.hd_vila.module import HdVila
from tests.hd_vila.reference import SIZES

OPTIONS = {
    "bert": {"sizes": {**SIZES, "vocab_size": 133}},
    "resnet": {
        "hub": None,
        "width": 8,
        "layers": [1, 1, 1, 1],
        "strides": [2, 1, 1, 2],
        "stem_kernel": 3,
        "stem_pool": False,
        "norm": "group",
    },
    "timesformer": {"depth": 1, "heads": 4, "grid": [2, 2], "frames": 3, "time_std": 1.0},
    "preprocess": {"pixel_scale": 255.0, "mean": [0.4] * 3, "std": [0.3] * 3},
    "size": [32, 32],
    "frames": 3,
}


def module(**options) -> HdVila:
    torch.manual_seed(0)
    made = HdVila(**OPTIONS | options)
    if hasattr(made.network, "timesformer"):
        torch.nn.init.normal_(made.network.timesformer.blocks[0].temporal_fc.weight)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / "hd_clips"
    options = {"frames": 3, "colors": 1, "places": ["night"]}
    sizes = {"train": 48, "test": 24}
    views.prepare(path, view="hd_clips", seed=0, sizes=sizes, image_size=32, options=options, workers=1)
    return path


def data(folder, **options) -> VideoTexts:
    splits = {name: {"source": name, "rows": None} for name in ("train", "test")}
    settings = {"splits": splits, "sources": ["caption"], "text_length": 8, "frames": 3, "batch_size": 12}
    return VideoTexts(folder=folder, seed=0, evaluation_batch_size=12, **settings | options)


def batch(folder):
    return next(iter(data(folder).train_dataloader()))


def test_the_middle_frame_is_seen_sharp_and_neighbours_as_means_of_16_pixels():
    clip = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    coarse = clip.float().unflatten(3, (8, 4)).unflatten(5, (8, 4))
    shuffled = coarse[..., [3, 0, 2, 1], :, :][..., [1, 3, 0, 2]].flatten(5, 6).flatten(3, 4)  # within 4 x 4
    hybrid, neighbours, middle = module().eval(), clip.clone().float(), clip.clone().float()
    neighbours[:, :, [0, 2]] = shuffled[:, :, [0, 2]]
    middle[:, :, 1] = shuffled[:, :, 1]
    with torch.no_grad():
        found = hybrid(clip)
        torch.testing.assert_close(hybrid(neighbours), found)
        assert not torch.allclose(hybrid(middle), found, atol=1e-3)
        low = module(streams="low").eval()
        torch.testing.assert_close(low(shuffled), low(clip))
        high = module(streams="high").eval()
        neighbours[:, :, [0, 2]] = 0
        assert torch.equal(high(neighbours), high(clip)) and not torch.allclose(hybrid(neighbours), found, atol=1e-3)


def test_the_clips_of_a_video_are_read_one_by_one_and_their_mean_counts():
    whole, single = module(clips=2).eval(), module().eval()
    whole.load_export(single.export())
    video = torch.randint(0, 256, (1, 3, 6, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        maps = whole.maps(*whole.cut(video))
        torch.testing.assert_close(maps[:, 0], single.maps(*single.cut(video[:, :, :3]))[:, 0])
        torch.testing.assert_close(maps[:, 1], single.maps(*single.cut(video[:, :, 3:]))[:, 0])


def test_stage_two_trains_what_it_adds_and_reads_the_clip(folder):
    first, second = module(), module(task="words", mask_share=0.5, tokenizer="world")
    second.start_from(first.export())
    second.train()
    given = batch(folder)
    second.training_step(given).backward()
    network = second.network
    trained = {name for name, x in network.named_parameters() if x.grad is not None}
    assert trained == {name for name, x in network.named_parameters() if x.requires_grad}
    assert all(name.startswith(("transformer.bert.encoder.layer.2", "transformer.bert.encoder.layer.3",
                                "transformer.bert.visual", "transformer.cls")) for name in trained)  # fmt: skip
    assert not network.transformer.bert.encoder.layer[0].training and network.transformer.bert.encoder.layer[3].training
    with torch.no_grad():
        torch.testing.assert_close(second.eval()(given["video"]), first.eval()(given["video"]))
        text = given["caption_token_ids"], given["caption_attention_mask"]
        videos = given["video"], given["video"].flip(0)
        own, other = (second.read_together(second.cut(video), *text) for video in videos)
    assert not torch.allclose(own, other, atol=1e-3)


def test_candidates_are_judged_each_by_itself_and_questions_have_answers(folder):
    given = batch(folder)
    ids, mask = (given[f"caption_{name}"] for name in ("token_ids", "attention_mask"))
    candidates = torch.stack([ids, ids.roll(1, 0), ids.roll(2, 0)], 1)
    choice = module(task="choice").eval()
    with torch.no_grad():
        clips = choice.clips_of(given)
        logits = choice.answer_logits(clips, candidates, mask[:, None].expand(-1, 3, -1))
        alone = choice.answer_logits(clips, candidates[:, 1:2], mask[:, None])
    assert logits.shape == (12, 3)
    torch.testing.assert_close(logits[:, 1:2], alone)
    answers = module(task="answers", num_answers=12)
    loss = answers.training_step(given)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(12), rel=0.2)
    assert not [name for name, x in answers.named_parameters() if x.grad is None]


def test_what_is_predicted_says_what_belongs_together(folder):
    found = module().predictions(data(folder), torch.device("cpu"))
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "videos/test": (24, 32),
        "labels/test": (24,),
        "belongs/test": (24,),
        "texts/test": (12, 32),
        "sentences/test": (12, 8),
        "shown/test": (6, 3, 32, 32, 3),
    }
    pairs = torch.stack([found["belongs/test"], found["labels/test"]], 1).unique(dim=0)
    assert len(pairs) == 12  # one text for each label
    words = module(task="words", tokenizer="world").predictions(data(folder), torch.device("cpu"))
    assert (words["words/test"] == -1).sum(1).tolist() == [2] * 24  # start and end
    assert ((words["found/test"] == -1) == (words["words/test"] == -1)).all()


@pytest.mark.parametrize(("streams", "frames", "sharp"), [("hybrid", 3, [1]), ("high", 1, [0]), ("low", 3, [])])
def test_clips_are_shown_as_they_are_read(streams, frames, sharp):
    clips = torch.randint(0, 256, (2, 3, frames, 32, 32), dtype=torch.uint8)
    seen = module(streams=streams, frames=frames).shown(clips)
    assert seen.shape == (2, frames, 32, 32, 3)
    for place, frame in enumerate(seen.permute(1, 0, 4, 2, 3)):
        if place in sharp:
            assert torch.equal(frame, clips[:, :, place])
            continue
        means = clips[:, :, place].float().unflatten(2, (8, 4)).unflatten(4, (8, 4)).mean((3, 5)).round()
        assert torch.equal(frame[..., ::4, ::4].float(), means)
        assert torch.equal(frame, frame[..., ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_examples_mark_what_is_right(folder):
    def stored(**options):
        found = module(**options).predictions(data(folder), torch.device("cpu"))
        return {name.removesuffix("/test"): x.numpy() for name, x in found.items()}

    features = stored()
    own = features["texts"][features["belongs"]]
    gallery = examples({**features, "videos": own})
    assert [len(row) for row in gallery.rows] == [3] * 6
    assert all(row[-1].text[0][1] for row in gallery.rows)
    assert not any(row[-1].text[0][1] for row in examples({**features, "videos": -own}).rows)
    clip, middle = (Image.open(BytesIO(b64decode(shown.picture.png))) for shown in gallery.rows[0][:2])
    assert clip.n_frames == 3, "it plays"
    clip.seek(1)
    np.testing.assert_array_equal(np.asarray(clip.convert("RGB")), features["shown"][0][1])
    np.testing.assert_array_equal(np.asarray(middle)[::LARGER, ::LARGER], features["shown"][0][1])
    still = stored(streams="high")
    assert [len(row) for row in examples({**still, "shown": still["shown"][:, :1]}).rows] == [2] * 6
    words = stored(task="words", tokenizer="world")
    *_, right, apart = examples({**words, "found": words["words"]}).rows[0]
    assert [piece for piece, _ in right.text][:2] == ["a ", "red "] and all(fits for _, fits in right.text)
    assert len(apart.text) == len(right.text) == 6


def test_metrics_tell_looks_from_motion():
    texts = np.eye(8, dtype=np.float32)  # labels 0 to 7: look 0 or 1, motion 0 to 3
    numbers = np.arange(8)
    videos = texts.copy()
    videos[0], videos[1] = texts[3], texts[5]  # the motion is wrong; the look is wrong
    arrays = {"texts": texts, "videos": videos, "belongs": numbers, "labels": numbers}
    found = measured(arrays, motions=4)
    assert found["video_to_text/recall_at_1_percent"] == 75
    assert (found["look/top1_percent"], found["motion/top1_percent"]) == (87.5, 87.5)


def test_metrics_tell_telling_words_from_those_that_all_texts_share():
    words = np.array([[-1, 5, 7, -1], [-1, 5, 8, -1]])
    arrays = {"words": words, "found": words, "found_apart": np.array([[-1, 5, 8, -1], [-1, 5, 7, -1]])}
    assert measured(arrays, motions=None) == {
        "words/top1_percent": 100,
        "telling/top1_percent": 100,
        "words_apart/top1_percent": 50,
        "telling_apart/top1_percent": 0,
    }


@pytest.mark.parametrize(
    ("model", "given", "told"),
    [
        ({"size": [48, 48]}, {}, r"frames of \(32, 32\) .* model.size says \(48, 48\): give both one"),
        ({"clips": 2}, {}, r"shows 3 frames of a video, expected 6: model.clips \(2\) times model.frames \(3\)"),
        ({"bert": {"sizes": SIZES}}, {}, r"the tokenizer has 133 ids, but BERT knows 60"),
        ({}, {"text_length": 21}, r"data.text_length \(21\) is more than the 20 positions"),
        ({"source": "subtitle"}, {}, r"data.sources \(caption\) lacks model.source \('subtitle'\)"),
    ],
)
def test_data_that_does_not_fit_is_refused(folder, model, given, told):
    with pytest.raises(ValueError, match=told):
        module(**model).check_data(data(folder, **given))


@pytest.mark.parametrize(
    ("part", "wrong", "told"),
    [
        ("resnet", {"layers": [1, 1, 1]}, r"model.resnet: layers is \[1, 1, 1\], "),
        ("resnet", {"norm": "batch"}, r"model.resnet: norm is 'batch', expected 'frozen' or 'group'"),
        ("resnet", {"depth": 50}, r"model.resnet: depth: unknown key"),
        ("timesformer", {"grid": [2]}, r"model.timesformer: grid is \[2\], "),
        ("timesformer", {"drop_path": 2.0}, r"model.timesformer: drop_path is 2.0, expected less than or equal to 1"),
    ],
)
def test_parts_with_wrong_settings_are_refused(part, wrong, told):
    block = {"_target_": "lightning_modules.hd_vila.module.HdVila", **OPTIONS, part: {**OPTIONS[part], **wrong}}
    with pytest.raises(ValueError, match=told):
        settings.bind(block, "model")


BERT = {"sizes": {**SIZES, "vocab_size": 133}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bert": {**BERT, "size": 1}}, r"model.bert: size: unknown key"),
        ({"bert": {"sizes": {**BERT["sizes"], "hidden_sizes": 48}}}, r"model.bert: sizes.hidden_sizes: unknown key"),
        (
            {"bert": {"sizes": {**BERT["sizes"], "vocab_size": 0}}},
            r"sizes.vocab_size is 0, expected greater than or eq",
        ),
        ({"bert": {"sizes": {"vocab_size": 133}}}, r"model.bert: sizes.hidden_size: missing, expected a value"),
        ({"bert": {}}, r"bert: hub \(None\) or sizes \(None\) must be given"),
        (
            {"preprocess": {**OPTIONS["preprocess"], "men": 1}},
            r"model.preprocess: men: unknown key",
        ),
        ({"preprocess": {**OPTIONS["preprocess"], "std": [0, 0, 0]}}, r"std.0 is 0, expected greater than 0"),
        ({"preprocess": {**OPTIONS["preprocess"], "mean": [0.4]}}, r"model.preprocess: mean is \[0.4\], .* at least 3"),
        ({"resnet": {**OPTIONS["resnet"], "layer": [1]}}, r"model.resnet: layer: unknown key"),
        ({"resnet": {**OPTIONS["resnet"], "stem_kernel": 4}}, r"resnet.stem_kernel \(4\) must be odd"),
        (
            {"resnet": {**OPTIONS["resnet"], "strides": [2, 1, 1, 1]}},
            r"1/8 and 1/16 of the sharp .*: let the last be 2",
        ),
        ({"timesformer": {"head": 2}}, r"model.timesformer: head: unknown key"),
    ],
)
def test_settings_that_are_misspelt_or_do_not_fit_are_refused(changes, told):
    with torch.device("meta"), pytest.raises(ValueError, match=told):
        settings.bind({"_target_": "lightning_modules.hd_vila.module.HdVila"} | OPTIONS | changes, "model")()
