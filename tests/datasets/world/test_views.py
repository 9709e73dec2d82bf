"""The views as stored: the same bytes whoever draws them, and labels that say what is there."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_modules import portable
from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import ContentDigest, infer_schema, record_batch
from lightning_modules.datasets.world import text, views
from lightning_modules.datasets.world.scenes import CHUNK, SHAPES, TEXTURES, Stream

ROOT = Path(__file__).parents[3]
OPTIONS = {
    "images": {"image_size": 32, "objects": (1, 3), "shared_words": 0.5},
    "graded": {"image_size": 32, "noise": 180, "fading": 0.8},
    "plain": {"image_size": 32, "objects": (1, 2), "colors": 6, "shapes": 4, "places": 2, "captions": 5},
    "clips": {"image_size": 32, "frames": 4, "objects": (1, 2), "shared_words": 0.5},
    "actions": {"image_size": 32, "frames": 8, "zoom": 1.0},
    "video_text": {"image_size": 24, "frames": 6, "colors": 4, "shapes": 3, "places": ("night",), "shared_words": 0.0},
    "hd_clips": {"image_size": 32, "frames": 5, "colors": 2, "places": ("night", "sea")},
    "drifting": {"image_size": 16, "frames": 4, "shapes": 2},
    "sounding": {"image_size": 16, "frames": 4, "colors": 4, "shapes": 3},
    "camera": {"image_size": 16, "frames": 5, "moving": 4},
    "quadrants": {"image_size": 16, "objects": (1, 4), "colors": 8, "shapes": 8, "sizes": 2, "captions": 3,
                  "questions": 4},
}  # fmt: skip
# Digests of two whole chunks and part of a third, of seed 7. A change changes every data set: say so in CHANGES.md.
GOLDEN = {
    "images": "62cf6c49af222c2b0eebbae36e1207abd3f682593b3ca5fae35300c6578b33b2",
    "graded": "dd24d2d4f869b508ab1fa82f4bbe9473cf74b68721ca9b47ba84a6f5040d81d9",
    "plain": "6456b5dd6f01bf97323f81f4658f80015027d776d2b6e90cb418b20964a2a122",
    "clips": "d21fb0901fa1d3f3ec5d44da6d17118ff6bf5cc4e23a4b6d6ae3aef669293b97",
    "actions": "cefd35e3ead12424606378449c505d09daf3ec9efec2e8491d920ab898f9cb5a",
    "hd_clips": "3947f1b14e88335736e045a4ba9f650a4bb0b52389cfc63068db390397c1d838",
    "video_text": "a37a63ca7f53821b84bb7f18d337774830e30b894d28de34792187454b6f9747",
    "drifting": "bdfa2459fc95bad94adfa9a3fdccd7d822929767fb9996ca3aa37587cb1e0138",
    "sounding": "6cda65cfa2afff27523692c1c97051960f55d6fc2964d57fcbc84275bba16906",
    "camera": "663e7158501919a5c125214b8e8181aff4f2001a1e5d189a6d77571f358ee7d1",
    "quadrants": "c038fb5a2f6b50900798b4cae43081264e73bfb22117286fe3a15fa82efec29f",
}
ROWS = 2 * CHUNK + 40


def draw(view: str, chunk: int = 0, split: str = "train", **options) -> dict[str, np.ndarray]:
    drawn = views.VIEWS[view](**OPTIONS[view] | options)
    return views.chunk_columns(drawn, 7, split, chunk, CHUNK)


def prepare(folder, view: str, workers: int = 1, sizes=None, seed: int = 7, **changes):
    options = OPTIONS.get(view, {"image_size": 32}) | changes
    size = options.pop("image_size")
    sizes = {"train": ROWS} if sizes is None else sizes
    views.prepare(folder, view=view, seed=seed, sizes=sizes, image_size=size, options=options, workers=workers)
    return storage.card(folder)


def digest(view: str) -> str:
    found = ContentDigest()
    for chunk, rows in ((0, CHUNK), (1, CHUNK), (2, 40)):
        columns = views.chunk_columns(views.VIEWS[view](**OPTIONS[view]), 7, "train", chunk, rows)
        shape = columns["video" if "video" in columns else "image"].shape[1:]
        found.update(record_batch(columns, infer_schema(columns), "raw", shape))
    return found.hexdigest()


@pytest.mark.parametrize(("view", "workers"), [*((view, 1) for view in GOLDEN), ("images", 2), ("images", 3)])
def test_any_number_of_workers_writes_the_golden_bytes(tmp_path, view, workers):
    card = prepare(tmp_path / view, view, workers)
    assert card["content_sha256"]["train"] == GOLDEN[view]


def test_processor_features_change_no_byte():
    from numpy._core import _multiarray_umath as umath

    features = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__[name]]
    code = "from tests.datasets.world.test_views import GOLDEN, digest; print(*map(digest, GOLDEN), sep='\\n')"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={name: value for name, value in os.environ.items() if name not in portable.CAPS}
        | {"REPRISE_NATIVE": "1", "NPY_DISABLE_CPU_FEATURES": " ".join(features)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == list(GOLDEN.values())


def test_what_is_written_is_what_was_drawn_with_a_card_and_a_sheet(tmp_path):
    card = prepare(tmp_path / "set", "images", sizes={"train": 30, "test": 5})
    assert card["splits"] == {"train": 30, "test": 5}
    assert card["image_shape"] == [32, 32, 3]
    assert card["num_classes"] is None
    assert (tmp_path / "set" / "sheet.png").read_bytes().startswith(b"\x89PNG")
    drawn = draw("images")
    for name, values in storage.read(tmp_path / "set", "train").items():
        np.testing.assert_array_equal(values, drawn[name][:30])
        assert values.dtype == drawn[name].dtype


@pytest.mark.parametrize(
    "file",
    [  # the others have a `prepare`, and tests, of their own
        file
        for file in sorted((ROOT / "conf/dataset").glob("world_*/*.yaml"))
        if yaml.safe_load(file.read_text())["_target_"].endswith("world.views.prepare")
    ],
    ids=lambda f: f"{f.parent.name}-{f.stem}",
)
@pytest.mark.slow
def test_configurations_are_taken(tmp_path, file):
    config = yaml.safe_load(file.read_text())
    del config["_target_"]
    views.prepare(tmp_path / "set", **config | {"sizes": dict.fromkeys(config["sizes"], 1), "workers": 1})
    assert list(storage.card(tmp_path / "set")["splits"])[:3] == ["train", "val", "test"]


def test_clips_have_their_shape_on_the_card(tmp_path):
    card = prepare(tmp_path / "set", "actions", sizes={"train": 3})
    assert card["image_shape"] == [8, 32, 32, 3]
    assert card["num_classes"] == 10
    assert storage.read(tmp_path / "set", "train")["video"].shape == (3, 8, 32, 32, 3)


def test_a_larger_split_begins_with_the_rows_of_a_smaller_one(tmp_path):
    few, many = (prepare(tmp_path / str(size), "graded", sizes={"train": size}) for size in (50, 300))
    assert few["content_sha256"] != many["content_sha256"]
    images = [storage.read(tmp_path / str(size), "train")["image"][:50] for size in (50, 300)]
    np.testing.assert_array_equal(*images)


def test_sentences_do_not_depend_on_the_size_of_the_pictures():
    small, large = draw("images"), draw("images", image_size=48)
    for name in set(small) - {"image"}:
        np.testing.assert_array_equal(small[name], large[name])


@pytest.mark.parametrize("view", OPTIONS)
def test_seeds_splits_and_chunks_differ(view):
    drawn = views.VIEWS[view](**OPTIONS[view])
    name = "image" if view in ("images", "graded", "plain", "quadrants") else "video"
    places = [(7, "train", 0), (8, "train", 0), (7, "test", 0), (7, "train", 1)]
    pictures = [views.chunk_columns(drawn, seed, split, chunk, 8)[name] for seed, split, chunk in places]
    assert len({picture.tobytes() for picture in pictures}) == len(places)


@pytest.mark.parametrize("view", ["graded", "actions", "video_text", "hd_clips"])
def test_classes_are_balanced(view):
    labels = np.concatenate([draw(view, chunk)["label"] for chunk in range(5)])
    counts = np.bincount(labels, minlength=views.VIEWS[view](**OPTIONS[view]).num_classes)
    assert counts.max() - counts.min() <= 1
    assert (np.diff(labels) != 1).mean() > 0.8  # in random order


@pytest.mark.parametrize(("frames", "zoom"), [(4, 1.0), (7, 1.0), (16, 1.0), (12, 1.75), (7, 2.0)])
def test_an_action_in_reverse_is_the_other_action_of_its_pair(frames, zoom):
    """So no statistic of a clip's frames that ignores their order tells the two apart."""
    view, stream = views.ActionClips(image_size=32, frames=frames, zoom=zoom), Stream(3, "actions/train", 0)
    label = np.arange(CHUNK) % len(views.ACTIONS)
    clips, partners = view.draw(stream, label), view.draw(stream, label ^ 1)
    np.testing.assert_array_equal(clips, partners[:, ::-1])
    assert (clips != partners).any(axis=(1, 2, 3, 4)).all()  # and their order does


def test_a_nearer_action_moves_more_of_the_picture():
    def moved(zoom):
        clips = views.ActionClips(image_size=32, frames=8, zoom=zoom).columns(Stream(0, "actions/train", 0))["video"]
        return (np.diff(clips.astype(int), axis=1) != 0).mean()

    assert moved(1.75) > 1.5 * moved(1.0)
    for zoom in (0.9, 2.1):
        with pytest.raises(ValueError, match=rf"zoom \({zoom}\) must be between 1 and 2"):
            views.ActionClips(image_size=32, frames=8, zoom=zoom)


def test_graded_pictures_get_noisier_and_fainter_with_the_difficulty():
    drawn = draw("graded")
    quarter = (drawn["difficulty"] * 4).astype(int)
    grey = drawn["image"].astype(int).sum(-1)
    roughness = np.abs(np.diff(grey, axis=2)).mean((1, 2))
    of_quarter = [roughness[quarter == number].mean() for number in range(4)]
    assert (np.diff(of_quarter) > 5).all()

    faded, opaque = (draw("graded", noise=0, fading=fading)["image"].astype(int) for fading in (0.7, 0.0))
    lost = np.abs(faded - opaque).mean((1, 2, 3))
    assert (np.diff([lost[quarter == number].mean() for number in range(4)]) > 1).all()


def test_graded_difficulty_is_uniform_and_independent_of_the_class():
    drawn = [draw("graded", chunk) for chunk in range(4)]
    difficulty, label = (np.concatenate([columns[name] for columns in drawn]) for name in ("difficulty", "label"))
    assert np.abs(np.sort(difficulty) - np.linspace(0, 1, len(difficulty))).max() < 0.01
    means = [difficulty[label == number].mean() for number in range(len(SHAPES) * len(TEXTURES))]
    assert 0.3 < min(means) and max(means) < 0.7


def test_a_linear_classifier_fails_on_graded_pictures():
    """Colour, place and position are no clue to the class: it takes shape and texture, wherever they are."""
    train, test = ([draw("graded", chunk, split) for chunk in range(6)] for split in ("train", "test"))

    def features(drawn):
        pixels = np.concatenate([columns["image"] for columns in drawn]).astype(float).mean(-1)
        pixels = pixels.reshape(-1, 16, 2, 16, 2).mean((2, 4)).reshape(len(pixels), -1)
        return pixels - pixels.mean(1, keepdims=True)

    x, y = features(train), np.eye(32)[np.concatenate([columns["label"] for columns in train])]
    weights = np.linalg.solve(x.T @ x + 1e5 * np.eye(x.shape[1]), x.T @ y)
    truth = np.concatenate([columns["label"] for columns in test])
    assert ((features(test) @ weights).argmax(1) == truth).mean() < 0.2


def test_one_frame_does_not_tell_the_motion():
    """Of moving objects the middle frame has each at the middle of its track, whichever way it goes."""
    drawn = draw("clips", frames=5, objects=(1, 1))
    x = drawn["boxes"][:, :, 0, 0] + drawn["boxes"][:, :, 0, 2]
    left, right = (drawn["motion"][:, 0] == motion for motion in (1, 2))
    assert np.abs(x[left, 2].mean() - x[right, 2].mean()) < 0.2
    assert (np.diff(x[left]) < 0).all() and (np.diff(x[right]) > 0).all()


@pytest.mark.parametrize("view", OPTIONS)
def test_smallest_and_odd_sizes_are_drawn(view):
    for size in (16, 23):
        assert draw(view, image_size=size)["id"].tolist() == list(range(CHUNK))


@pytest.mark.parametrize(
    ("view", "options", "message"),
    [
        ("pictures", {}, r"view \('pictures'\) must be one of images, graded, plain, clips, actions"),
        ("images", {"image_size": 8}, r"image_size \(8\) must be at least 16"),
        ("images", {"workers": 0}, r"workers \(0\) must be at least 1"),
        ("images", {"seed": -1}, r"seed \(-1\) must be at least 0"),
        ("images", {"sizes": {"train": 9, "val": 0}}, r"sizes.val \(0\) must be at least 1"),
        ("images", {"sizes": {}}, r"sizes must name a split"),
        ("images", {"objects": (0, 2)}, r"objects \(0 to 2\)"),
        ("images", {"objects": (3, 2)}, r"objects \(3 to 2\)"),
        ("clips", {"objects": (1, 5)}, r"objects \(1 to 5\)"),
        ("clips", {"frames": 0}, r"frames \(0\) must be at least 1"),
        ("images", {"shared_words": 1.5}, r"shared_words \(1.5\) must be between"),
        ("graded", {"noise": 300}, r"noise \(300\) must be between"),
        ("graded", {"fading": -0.1}, r"fading \(-0.1\) must be between"),
        (
            "images",
            {"fading": 0.5},
            r"options \(objects, shared_words, fading\) .*'images' must be objects, shared_words",
        ),
        ("video_text", {"frames": 1}, r"frames \(1\) must be at least 2"),
        ("video_text", {"colors": 9}, r"colors \(9\) must be between 1 and 8"),
        ("video_text", {"shapes": 0}, r"shapes \(0\) must be between 1 and 8"),
        ("video_text", {"places": ("night", "moon")}, r"places \(night, moon\) must be some of meadow, .*city"),
        ("video_text", {"places": ()}, r"places \(\) must be some of meadow"),
        ("video_text", {"shared_words": 2.0}, r"shared_words \(2.0\) must be between"),
        ("actions", {"frames": 3, "zoom": 1.0}, r"frames \(3\) must be at least 4"),
        ("drifting", {"frames": 1}, r"frames \(1\) must be at least 2"),
        ("drifting", {"shapes": 9}, r"shapes \(9\) must be between 1 and 8"),
        ("camera", {"frames": 1}, r"frames \(1\) must be at least 2"),
        ("camera", {"moving": 9}, r"moving \(9\) must be between 0 and 8"),
        ("sounding", {"frames": 1}, r"frames \(1\) must be at least 2"),
        ("sounding", {"colors": 0}, r"colors \(0\) must be between 1 and 8"),
        ("sounding", {"shapes": 9}, r"shapes \(9\) must be between 1 and 8"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, view, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "set", view, **{"sizes": {"train": 9}} | options)
    assert not (tmp_path / "set").exists()


def test_the_frame_is_not_left_by_any_object():
    drawn = draw("clips", frames=9, objects=(4, 4))
    assert drawn["boxes"].min() > 0 and drawn["boxes"].max() < 1


class Partner(Stream):
    """A stream whose labels are those of the other direction, and nothing else is different."""

    def balanced(self, purpose: str, classes: int) -> np.ndarray:
        return super().balanced(purpose, classes) ^ 1


@pytest.mark.parametrize("frames", [2, 5, 6])
def test_a_clip_in_reverse_is_one_of_the_caption_of_the_other_direction(frames):
    view = views.VideoText(**OPTIONS["video_text"] | {"frames": frames})
    ours, partner = (view.columns(kind(3, "video_text/train", 0)) for kind in (Stream, Partner))
    np.testing.assert_array_equal(ours["video"], partner["video"][:, ::-1])
    assert (ours["video"] != partner["video"]).any(axis=(1, 2, 3, 4)).all()
    np.testing.assert_array_equal(ours["label"] // 2, partner["label"] // 2)
    for one, other in zip(ours["caption"], partner["caption"], strict=True):
        assert one.split()[:-1] == other.split()[:-1]
        assert {one.split()[-1], other.split()[-1]} in ({"left", "right"}, {"up", "down"})


def test_a_caption_is_a_class_and_the_middle_frame_does_not_tell_the_direction():
    drawn = [draw("video_text", chunk) for chunk in range(2)]
    caption, auxiliary, label = (np.concatenate([d[name] for d in drawn]) for name in
                                 ("caption", "auxiliary_caption", "label"))  # fmt: skip
    assert len(set(zip(caption, label, strict=True))) == len(set(caption)) == 48
    for said, seen in zip(caption, auxiliary, strict=True):
        _, color, shape, _, direction = said.split()
        assert {color, shape} <= set(seen.split())
        assert direction not in seen.split()


def test_subtitles_have_words_of_their_own_and_small_talk():
    drawn = draw("video_text")
    content = {word for caption in drawn["caption"] for word in caption.split()} - {"a", "moving", "left", "right"}
    words = [word for subtitle in drawn["subtitle"] for word in subtitle.split()]
    assert not content - {"up", "down"} & set(words)
    spoken = {"the", "thing", *text.lexicon(0.0).values(), *" ".join(text.SPOKEN).split()}
    assert 0.3 < np.mean([word not in spoken for word in words]) < 0.5
    shared = draw("video_text", shared_words=1.0)["subtitle"]
    assert content <= {word for subtitle in shared for word in subtitle.split()}


def test_the_colour_of_a_drifting_thing_decides_what_follows_from_its_first_frame():
    """Equal first frames go on alike; with another colour the same thing goes elsewhere."""
    clips, labels = (draw("drifting")[name] for name in ("video", "label"))
    seen = {}
    for clip in clips:
        assert np.array_equal(seen.setdefault(clip[0].tobytes(), clip), clip)
    assert len(seen) < len(clips)  # some were drawn twice
    view, stream = views.VIEWS["drifting"](**OPTIONS["drifting"]), Stream(7, "drifting/train", 0)
    shapes = np.zeros(CHUNK, np.int64)
    one, other = (view.draw(stream, np.full(CHUNK, label), shapes) for label in (0, 1))
    moved = [(clip.astype(int) - clip[:, :1]).any(-1).any((1, 2, 3)) for clip in (one, other)]
    assert all(x.all() for x in moved) and set(labels) == {0, 1, 2, 3}
    grey = one.sum(-1).reshape(CHUNK, -1), other.sum(-1).reshape(CHUNK, -1)
    assert (grey[0] != grey[1]).any(1).all()


def test_control_without_its_colour_a_drifting_thing_may_go_two_ways():
    """Who sees the colour of a first frame knows what follows; who sees the silhouette alone is wrong in three of 11.

    A thing begins within 3 of 16 steps from the side that it leaves, and at any of 11 steps along it: at 6 of these it
    is near to a second side, which a thing of another colour would leave.
    """
    known = {name: np.concatenate([draw("drifting", chunk)[name] for chunk in range(4)]) for name in ("video", "label")}
    asked = draw("drifting", split="val")
    landscape = np.median(known["video"][:, 0], 0)

    def right(look) -> tuple[float, float]:
        """Share of the directions that the likest known first frame tells, and error of how its clip goes on."""
        ours, theirs = (
            look(each["video"][:, 0].astype(float)).reshape(len(each["label"]), -1) for each in (known, asked)
        )
        likest = np.array([np.square(ours - one).sum(1).argmin() for one in theirs])
        error = np.square(known["video"][likest, 1:].astype(float) - asked["video"][:, 1:]).mean()
        return (known["label"][likest] == asked["label"]).mean(), error

    seen, error = right(lambda first: first)
    blind, blind_error = right(lambda first: (np.abs(first - landscape).sum(-1) > 0).astype(float))
    still = np.square(asked["video"][:, :1].astype(float) - asked["video"][:, 1:]).mean()
    assert seen == 1.0 and abs(blind - 8 / 11) < 0.1  # 3.6 standard errors
    assert 100 * error < blind_error < still  # a thing that rests is worse than a guess
    clips = {clip.tobytes() for clip in np.concatenate([known["video"], asked["video"]])}
    assert len(clips) <= 264  # 4 colours x 2 shapes x 33 beginnings: clips of all splits are among these
