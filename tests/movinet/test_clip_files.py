"""Clips from video files: which frames and crops a batch has, labels of three kinds, broken files, members."""

import json
import logging
import os
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_modules import settings
from lightning_modules.datasets.download import MIRROR_VARIABLE
from lightning_modules.datasets.splits import Portion
from lightning_modules.datasets.video import actions, files
from lightning_modules.datasets.video.drawn import encode, numbers
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.sequences import at_random, central_square, in_the_middle, resized
from lightning_modules.metrics.actions import joint_accuracy, mean_average_precision, top_accuracy
from lightning_modules.movinet import clip_files
from lightning_modules.movinet import module as module_file
from lightning_modules.movinet.clip_files import random_box
from lightning_modules.movinet.decoding import read_clip
from lightning_modules.movinet.evaluation import evaluate
from stages.composing import compose
from stages.plan import load_plan
from tests.batches import loaded, same
from tests.datasets.video.test_files import TURNS, bright_corners, turned
from tests.movinet.test_evaluation import Stored
from tests.movinet.test_module import STREAM, module

VIDEOS = 13


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A copy of a corpus of clips of 20 frames, 10 a second, each with a verb and a noun: parts of long videos."""
    path = tmp_path_factory.mktemp("corpus")
    for number in range(VIDEOS):
        encode(path / f"mirror/toy/videos/v{number}.mp4", 20, size=(48 - 16 * (number % 2), 32))
    moments = "".join(f"c/v{number}.mp4,{'ab'[number % 2]},3,0\n" for number in range(VIDEOS))
    charades = "".join(f"v{number},{['', 'c000 0 1', 'c000 0 1;c001 1 2'][number % 3]}\n" for number in range(VIDEOS))
    epic = "".join(f"n{n},P01,v{n},00:00:00.5,00:00:01.5,{n % 3},{n % 2}\n" for n in range(VIDEOS))
    times = "start_timestamp,stop_timestamp"
    files = {
        "moments.csv": moments, "moments.txt": "a,0\nb,1\n", "charades.csv": f"id,actions\n{charades}",
        "charades.txt": "c000 Doing this\nc001 Doing that\n",
        "verbs.csv": "id,key\n0,a\n1,b\n2,c\n", "nouns.csv": "id,key\n0,a\n1,b\n",
        "epic_kitchens.csv": f"narration_id,participant_id,video_id,{times},verb_class,noun_class\n{epic}",
    }  # fmt: skip
    for name, text in files.items():
        (path / "mirror/toy" / name).write_text(text)
    two = {"action": {"file": "moments.txt", "number": 2}}
    classes = {
        "moments": two,
        "charades": {"action": {"file": "charades.txt", "number": 2}},
        "epic_kitchens": {"verb": {"file": "verbs.csv", "number": 3}, "noun": {"file": "nouns.csv", "number": 2}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(MIRROR_VARIABLE, raising=False)
        for corpus, each in classes.items():
            splits = {"all": {"annotations": f"{corpus}.csv", "videos": "videos", "rows": VIDEOS}}
            actions.prepare(path / corpus, name="toy", corpus=corpus, splits=splits, classes=each,
                            mirror=str(path / "mirror"), cache=str(path / "cache"))  # fmt: skip
    return path


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: [])  # no workers, unless a test wants them


def block_of(home, **changes):
    return {
        "_target_": "lightning_modules.movinet.clip_files.ClipFiles",
        "splits": {"train": {"source": "all", "rows": None}},
        "frames": 4,
        "temporal_stride": 2,
        "rate": 10.0,
        "size": 16,
        "short_side": 20,
        "area": [0.08, 1.0],
        "aspect": [0.5, 2.0],
        "batch_size": 4,
        "evaluation_batch_size": 5,
        "mirror": str(home / "mirror"),
        "max_broken": 0.02,
    } | changes


def data(home, corpus="moments", seed=3, **changes):
    block = block_of(home, **changes)
    return settings.bind(block, "conf/system/toy.yaml: data", folder=home / corpus, seed=seed)()


def judged(home, corpus="moments", **changes):
    found = data(home, corpus, splits={"test": {"source": "all", "rows": None}}, **changes)
    return list(found.evaluation_batches("test"))


def shown(batches):
    """Which frames each clip of the batches has."""
    return [numbers(clip.permute(1, 2, 3, 0).numpy()) for batch in batches for clip in batch["video"]]


# Which frames


def test_frames_are_those_of_sample_sequence():
    """By hand, after `sample_sequence` of tensorflow/models: middle, random beginnings, repetition from the start."""
    assert in_the_middle(20, 4, 2).tolist() == [6, 8, 10, 12]
    assert in_the_middle(5, 4, 2).tolist() == [0, 2, 4, 1]
    firsts = {word: at_random(20, 4, 2, word)[0] for word in range(100)}
    assert set(firsts.values()) == set(range(14)), "the last frame may lie one behind the last step, at 13 + 6"
    assert at_random(20, 4, 2, 13).tolist() == [13, 15, 17, 19]
    assert {at_random(6, 4, 2, word)[0] for word in range(50)} == set(range(6)), "too short: it begins anywhere"
    assert at_random(6, 4, 2, 5).tolist() == [5, 1, 3, 5]


def test_a_file_is_read_at_the_rate_that_is_asked_for(home):
    path = home / "mirror/toy/videos/v0.mp4"
    seen = []

    def all_of(total):
        seen.append(total)
        return np.arange(total)

    for rate, expected in ((10.0, list(range(20))), (5.0, list(range(0, 20, 2))), (20.0, [n // 2 for n in range(40)])):
        clip = read_clip(path, all_of, lambda frame: frame, rate=rate)
        assert clip.shape[1:] == (32, 48, 3)
        found = numbers(clip)
        assert len(found) == seen[-1] == len(expected)
        assert all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True)), rate
    assert numbers(read_clip(path, lambda total: np.array([9, 2, 9]), lambda x: x, rate=10.0)) == [9, 2, 9]


@pytest.mark.parametrize(("start", "end", "expected"), [
    (0.5, 1.5, range(5, 15)), (0.0, 0.3, range(3)), (1.0, 2.0, range(10, 20)), (1.02, 1.22, range(10, 12)),
])  # fmt: skip
def test_a_part_of_a_file_has_the_frames_of_its_seconds(home, start, end, expected):
    clip = read_clip(home / "mirror/toy/videos/v0.mp4", np.arange, lambda x: x, rate=10.0, start=start, end=end)
    assert numbers(clip) == list(expected)


def test_a_part_that_is_not_in_the_file_is_broken(home):
    path = home / "mirror/toy/videos/v0.mp4"
    assert len(read_clip(path, np.arange, lambda x: x, rate=10.0, start=1.0, end=2.08)) == 11  # times are not exact
    with pytest.raises(BrokenVideo, match=r"ends before its part from 1.00 to 4.00 s does"):
        read_clip(path, np.arange, lambda x: x, rate=10.0, start=1.0, end=4.0)
    with pytest.raises(BrokenVideo, match=r"v99\.mp4 cannot be decoded"):
        read_clip(home / "v99.mp4", np.arange, lambda x: x, rate=10.0)


@pytest.mark.parametrize(("turn", "corner"), TURNS)
@pytest.mark.parametrize("part", [{}, {"start": 0.0, "end": 0.1}], ids=["whole", "part"])
def test_a_rotated_video_is_turned_upright(tmp_path, turn, corner, part):
    [frame] = read_clip(turned(tmp_path / "clip.mp4", turn), np.arange, lambda x: x, rate=10.0, **part)
    assert bright_corners(frame) == [corner]
    assert frame.shape == ((48, 32, 3) if turn[0] == 0 else (32, 48, 3))


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("clip.mp4", lambda whole: whole[: len(whole) // 2], "cannot be decoded|cut off"),
    ("clip.webm", lambda whole: whole[: len(whole) // 2], "was cut off: it holds"),
    ("clip.avi", lambda whole: whole[: len(whole) // 2], "was cut off: it holds"),
    ("clip.mp4", lambda whole: whole[:3000] + bytes(6000) + whole[9000:], "damaged|cannot be decoded"),
    ("clip.mp4", lambda whole: b"", "cannot be decoded"),
    ("page.mp4", lambda whole: b"<html>not found</html>", "cannot be decoded|holds no video"),
])  # fmt: skip
def test_damaged_files_are_broken(tmp_path, name, content, reason):
    path = encode(tmp_path / name, 60, codec="libvpx" if name.endswith("webm") else "mpeg4", size=(64, 64))
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(BrokenVideo, match=reason):
        read_clip(path, np.arange, lambda x: x, rate=10.0)


@pytest.mark.parametrize("timetable", [([], [], 12), (list(range(0, 24_000, 2_000)), [0], 12)])
def test_without_times_or_with_wrong_ones_frames_are_counted(tmp_path, monkeypatch, timetable):
    path = encode(tmp_path / "clip.mp4", 12)
    monkeypatch.setattr(files, "timetable", lambda container: timetable)
    assert numbers(read_clip(path, np.arange, lambda x: x, rate=10.0)) == list(range(12))
    assert numbers(read_clip(path, lambda total: np.array([total - 1, 0]), lambda x: x, rate=5.0)) == [10, 0]
    monkeypatch.setattr(files, "timetable", lambda container: ([], [], 20))
    with pytest.raises(BrokenVideo, match="12 of 20 frames can be decoded"):
        read_clip(path, np.arange, lambda x: x, rate=10.0)


# Which pixels


def test_crops_have_the_areas_and_aspects_of_sample_distorted_bounding_box():
    words = np.random.default_rng(0)
    boxes = [random_box(80, 60, (0.08, 1.0), (0.5, 2.0), words.random(400)) for _ in range(500)]
    for left, top, wide, high in boxes:
        assert 0 <= left <= 80 - wide and 0 <= top <= 60 - high
        assert 0.1 * 4800 <= wide * high <= 4800 and 0.45 < wide / high < 2.1
    areas = np.array([wide * high / 4800 for _, _, wide, high in boxes])
    aspects = np.array([wide / high for _, _, wide, high in boxes])
    assert areas.min() < 0.13 and areas.max() > 0.9
    assert abs(np.median(aspects) - 1.25) < 0.12, "uniform, not log-uniform"
    assert random_box(80, 60, (1.0, 1.0), (1.0, 1.0), words.random(400)) == (0, 0, 80, 60), "nothing fits: all of it"
    # one try by hand: aspect 0.5 + 0.5 x 1.5 = 1.25; heights from round(sqrt(384 / 1.25)) = 18 to 60, of which 18 + 21
    found = random_box(80, 60, (0.08, 1.0), (0.5, 2.0), np.array([0.5, 0.5, 0.25, 0.75]))
    assert found == (int(0.25 * 31), int(0.75 * 21), 49, 39)


def test_frames_are_resized_as_tensorflow_resizes_them():
    """Bilinear between the nearest pixels even where the picture shrinks, and cut off to integers."""
    picture = np.zeros((1, 4, 3), np.uint8)
    picture[0, :, 0] = [10, 21, 100, 201]
    assert resized(picture, 1, 2)[0, :, 0].tolist() == [15, 150]  # means of the two at 0.5 and 2.5: 15.5, 150.5
    assert resized(picture, 1, 8)[0, :3, 0].tolist() == [10, 12, 18]  # 10, 12.75, 18.25
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (20, 40, 3))
    assert central_square(ramp, 20, 16)[0, :, 0].tolist() == list(range(12, 28))
    assert central_square(np.ascontiguousarray(ramp.transpose(1, 0, 2)), 20, 16).shape == (16, 16, 3)


def test_a_clip_is_cut_and_mirrored_as_a_whole():
    crops = clip_files.Crops(8, (0.2, 0.5), (0.5, 2.0), True, False)
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    plain, mirrored = (clip_files.Augmented(crops, 7, mirrored=flag) for flag in (False, True))
    assert np.array_equal(plain(picture), plain(picture)) and plain(picture).shape == (8, 8, 3)
    assert np.array_equal(plain(picture)[:, ::-1], mirrored(picture))
    assert not np.array_equal(plain(picture), clip_files.Augmented(crops, 8, mirrored=False)(picture))


def test_auto_augment_does_the_same_to_all_frames_and_leaves_random_numbers_alone():
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 12, 12, 3)).astype(np.uint8))
    clip, before = picture.expand(3, -1, -1, -1), torch.random.get_rng_state()
    changed = 0
    for seed in range(8):
        found = clip_files.auto_augmented(clip, seed)
        assert found.shape == clip.shape and found.dtype == torch.uint8
        assert (found == found[:1]).all()
        assert torch.equal(found, clip_files.auto_augmented(clip, seed))
        changed += not torch.equal(found, clip)
    assert changed >= 4
    assert torch.equal(torch.random.get_rng_state(), before)


# Batches


def test_evaluation_has_the_middle_clip_of_each_video_in_order(home):
    batches = judged(home)
    assert [tuple(batch["video"].shape) for batch in batches] == [(n, 3, 4, 16, 16) for n in (5, 5, 3)]
    assert batches[0]["video"].dtype == torch.uint8
    assert all(abs(a - b) <= 1 for clip in shown(batches) for a, b in zip(clip, [6, 8, 10, 12], strict=True))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [n % 2 for n in range(VIDEOS)]
    assert all(batch["broken"] == 0 for batch in batches)


def test_labels_of_three_kinds(home):
    many, kinds = judged(home, "charades"), judged(home, "epic_kitchens", frames=3)
    labels = torch.cat([batch["labels"] for batch in many])
    assert labels.dtype == torch.float32 and labels[:3].tolist() == [[0, 0], [1, 0], [1, 1]]
    assert torch.cat([batch["labels"] for batch in kinds])[:4].tolist() == [[0, 0], [1, 1], [2, 0], [0, 1]]
    assert all(5 <= frame <= 14 for clip in shown(kinds) for frame in clip), "of its part alone"
    assert [data(home, corpus).targets for corpus in ("moments", "charades", "epic_kitchens")] == [
        "one", "many", [["verb", 3], ["noun", 2]],
    ]  # fmt: skip
    assert [data(home, corpus).num_classes for corpus in ("moments", "charades", "epic_kitchens")] == [2, 2, 5]


def test_training_batches_depend_on_seed_epoch_and_place_alone(home):
    options = {"random_stride": 1}
    first, again, later = loaded(data(home, **options)), loaded(data(home, **options)), loaded(data(home, **options), 1)
    assert len(first) == VIDEOS // 4 and first[0]["video"].shape == (4, 3, 4, 16, 16)
    assert same(first, again) and not same(first, later) and not same(first, loaded(data(home, seed=4, **options)))
    assert data(home, **options).train_dataloader().dataset[1, 2]["video"].equal(later[2]["video"])


def test_workers_change_nothing(home, monkeypatch):
    alone, test = loaded(data(home)), judged(home)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: [0, 1])
    assert data(home).train_dataloader().num_workers == 2
    assert same(alone, loaded(data(home))) and same(test, judged(home))


def test_beginnings_and_strides_are_drawn(home):
    found = data(home, batch_size=13, random_stride=1, area=[1.0, 1.0], aspect=[1.5, 1.5], train_frames=3)
    clips = [clip for epoch in range(8) for clip in shown(loaded(found, epoch))]
    assert all(len(clip) == 3 for clip in clips)
    steps = [b - a for clip in clips for a, b in pairwise(clip)]
    assert np.mean([step <= 1 for step in steps]) > 0.3 and np.mean([step >= 2 for step in steps]) > 0.3
    assert max(steps) <= 3, "strides of 1 and 2 alone (and a brightness that is off by one)"
    assert {clip[0] for clip in clips} >= set(range(2, 14))


def test_processes_and_accumulated_batches_share_a_step(home):
    options = {"seed": 3, "frames": 2, "strides": (1, 2), "batch_size": 6, "max_broken": 0.0}
    crops = clip_files.Crops(8, (0.2, 0.5), (0.5, 2.0), True, False)
    whole, *parts = (clip_files.TrainingClips(data(home).clips("train"), crops, portion=Portion(*of), **options)
                     for of in ((0, 1, 1), (0, 2, 1), (1, 2, 1), (0, 1, 3)))  # fmt: skip
    halves, thirds = [parts[rank][0, 1] for rank in range(2)], [parts[2][0, 3 + place] for place in range(3)]
    for batches in (halves, thirds):
        for name in ("video", "labels"):
            assert torch.cat([batch[name] for batch in batches]).equal(whole[0, 1][name])


@pytest.mark.parametrize("copies", [None, 2])
def test_a_resumed_epoch_has_the_batches_that_were_left_of_it(home, copies):
    def epoch(rank, done=0):
        made = data(home, copies=copies)
        made.trainer = SimpleNamespace(global_rank=rank, world_size=2, accumulate_grad_batches=2)
        loader = made.train_dataloader()
        loader.sampler.resume(1, done)
        return list(loader)

    for rank in range(2):
        whole = epoch(rank)
        assert len(whole) == 2 * (VIDEOS // 4) and whole[0]["labels"].shape[-1] == 1
        assert same(epoch(rank, done=4), whole[4:])


def test_members_have_orders_of_their_own(home):
    batch = loaded(data(home, copies=2))[0]
    assert batch["video"].shape == (2, 4, 3, 4, 16, 16) and batch["labels"].shape == (2, 4)
    assert batch["broken"].ndim == 0
    assert not batch["video"][0].equal(batch["video"][1])
    assert batch["video"][0].equal(loaded(data(home))[0]["video"]), "the first sees what one network sees"


@pytest.fixture
def broken(home):
    """One video is cut off while the test runs."""
    path = home / "mirror/toy/videos/v5.mp4"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    yield path
    path.write_bytes(whole)


def test_a_broken_video_is_replaced_while_training_counted_and_logged(home, broken, caplog):
    with caplog.at_level(logging.WARNING):
        epochs = [loaded(data(home), epoch) for epoch in range(3)]
    assert all(len(batch["labels"]) == 4 for batches in epochs for batch in batches)
    assert sum(batch["broken"].item() for batches in epochs for batch in batches) >= 2
    assert "v5.mp4 cannot be decoded" in caplog.text
    assert same(epochs[1], loaded(data(home), 1))


def test_a_broken_video_is_left_out_of_evaluation_and_bounded(home, broken):
    batches = judged(home)
    assert [len(batch["labels"]) for batch in batches] == [5, 4, 3]
    assert [batch["broken"].item() for batch in batches] == [0, 1, 0]
    with pytest.raises(ValueError, match=r"1 of 10 videos are broken, more than max_broken \(0.0\) allows"):
        judged(home, max_broken=0.0)
    with pytest.raises(ValueError, match=r"videos are broken, more than max_broken \(0.0\) allows"):
        [batch for epoch in range(3) for batch in loaded(data(home, max_broken=0.0), epoch)]


@pytest.mark.parametrize(("changes", "message"), [
    ({"area": [0.5, 0.2]}, r"area \(\[0.5, 0.2\]\) must be two shares, above 0"),
    ({"area": [0.05, 0.08]}, r"area \(\[0.05, 0.08\]\) must be .* the second at least 0.1"),
    ({"aspect": [2.0, 0.5]}, r"aspect \(\[2.0, 0.5\]\) must be two ratios above 0, the smaller one first"),
    ({"short_side": 12}, r"short_side \(12\) must be at least size \(16\)"),
    ({"rate": 0.0}, "rate is 0.0"),
    ({"temporal_stride": 0}, "temporal_stride is 0"),
    ({"splits": {"training": {"source": "all", "rows": None}}}, r"splits has \['training'\], expected some of"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(home, changes, message):
    with pytest.raises(ValueError, match=message):
        data(home, **changes)


def test_there_must_be_a_split_to_train_on(home):
    with pytest.raises(ValueError, match="there is no split 'train'"):
        data(home, splits={"test": {"source": "all", "rows": None}}).train_dataloader()


# The network


def test_many_labels_are_learnt_with_binary_cross_entropy(home):
    made, batch = module(**STREAM, frames=4, targets="many", label_smoothing=0.1), judged(home, "charades")[0]
    labels = torch.cat([batch["labels"], 1 - batch["labels"]], dim=1)  # as many as the network has classes
    logits = made(batch["video"])
    by_hand = -(labels * logits.sigmoid().log() + (1 - labels) * (1 - logits.sigmoid()).log()).mean()
    assert made.loss(logits, labels, made.label_smoothing).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert made.validate(data(home, "charades"), [batch | {"labels": labels}]).keys() == {"loss"}


def test_verbs_and_nouns_have_classes_of_their_own(home, monkeypatch):
    made = module(**STREAM, frames=4, targets=[["verb", 3], ["noun", 1]])
    logits, labels = (
        torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[0, 0], [2, 0]] * 2 + [[1, 0]]),
    )
    expected = torch.nn.functional.cross_entropy(logits[:, :3], labels[:, 0])  # one noun costs nothing
    assert made.loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    made.forward = lambda video: logits
    right = (logits[:, :3].argmax(1) == labels[:, 0]).double().mean()
    assert made.validate(data(home), [{"video": torch.zeros(5, 1), "labels": labels}])["accuracy"] == right
    monkeypatch.setattr(module_file, "MEMORY_AT", ())  # counting takes long
    assert made.facts()["targets"] == [["verb", 3], ["noun", 1]] and "targets" not in module(**STREAM).facts()
    with pytest.raises(ValueError, match=r"num_classes is 4, expected the sum of those in targets"):
        module(targets=[["verb", 3], ["noun", 2]])


@pytest.mark.parametrize(("corpus", "options", "message"), [
    ("charades", {}, "model.targets is one, but the rows of the data have many: set it to that"),
    ("moments", {"targets": "many"}, "model.targets is many, but the rows of the data have one"),
    ("charades", {"targets": "many"}, "model.num_classes is 4, but the data has 2 classes"),
    ("epic_kitchens", {"targets": [["verb", 2], ["noun", 2]]}, r"the data have \[\['verb', 3\], \['noun', 2\]\]"),
    ("epic_kitchens", {"targets": [["noun", 2], ["verb", 2]]}, "set it to that"),
])  # fmt: skip
def test_data_with_other_labels_are_refused(home, corpus, options, message):
    with pytest.raises(ValueError, match=message):
        module(frames=4, **options).check_data(data(home, corpus))


def test_a_network_trains_and_predicts_from_files(home):
    made, found = module(**STREAM, frames=4, members=2), data(home, copies=2, splits={
        "train": {"source": "all", "rows": 8}, "test": {"source": "all", "rows": 5}})  # fmt: skip
    made.check_data(found)
    made.log_terms = lambda terms: None
    made.training_step(loaded(found)[0]).backward()
    arrays = made.predictions(found, torch.device("cpu"))
    assert arrays["logits/test"].shape == (5, 2, 4) and arrays["labels/test"].shape == (5,)
    assert arrays["each_frame/test"].shape == (5, 4, 4)


def test_networks_are_searched_for_on_files_too(home):
    system = compose("tiny", system="movinet")["system"]
    system["model"] |= {"frames": 4, "num_classes": 5, "targets": [["verb", 3], ["noun", 2]]}
    splits = {"train": {"source": "all", "rows": 8}, "val": {"source": "all", "rows": 5}}
    system["data"] = block_of(home, splits=splits)
    block = compose("tiny", sweep="architecture")["sweep"]["search"]
    search = settings.bind({**block, "epochs": 1}, "search")(system, home / "epic_kitchens")
    config = {"kind": "random", "architecture": search.own.written_out()}
    assert search.evaluate(config).facts["validation_top1_percent"] in (0, 20, 40, 60, 80, 100)


@pytest.mark.parametrize("arm", ["movinet-a0-charades", "movinet-a0-epic", "movinet-a0-ensemble", "movinet-a3-stream"])
def test_arms_of_the_plan_can_be_built_and_fit_their_data(tmp_path, arm):
    plan = load_plan("paper")
    row = plan.pretrain[arm]
    block = compose("paper", system="movinet", overrides=row.overrides)["system"]
    with torch.device("meta"):
        made = settings.bind(block["model"], "model")()
    made.check_recipe(block["pretrain"], "pretrain")
    config = compose("paper", dataset=row.dataset)["dataset"]
    (tmp_path / "files").mkdir()
    config |= actions.stand_in(tmp_path / "files", rows=3, **config).config
    settings.bind(config, "dataset")(tmp_path / "index")
    block["data"]["splits"]["val"]["rows"] = 1
    found = settings.bind(block["data"], "data", folder=tmp_path / "index", seed=0)()
    made.check_data(found)
    assert found.rows.keys() == {"train", "val", "test"}


# The numbers


def test_mean_average_precision_is_that_of_the_official_script():
    """Charades_v1_classify.m by hand: precision at each positive, in the order of the scores."""
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(40, 6)), (generator.random((40, 6)) < 0.3).astype(np.int64)
    labels[3] = 0
    ranked, kept = scores.copy(), labels.any(1)
    ranked[~kept] = -np.inf
    expected = []
    for each in range(6):
        order = np.argsort(-ranked[:, each], kind="stable")
        hits = labels[order, each]
        expected.append((np.cumsum(hits) / np.arange(1, 41))[hits == 1].mean())
    assert mean_average_precision(scores, labels) == pytest.approx(np.mean(expected), rel=1e-12)
    assert mean_average_precision(np.array([[3.0, 0], [2, 1], [1, 2]]), np.array([[1, 0], [0, 0], [1, 0]])) == 1.0
    with pytest.raises(ValueError, match="none of 40 samples has a label"):
        mean_average_precision(scores, 0 * labels)
    with pytest.raises(ValueError, match="1 of 40 rows hold NaN"):
        mean_average_precision(np.where(np.arange(40)[:, None] == 7, np.nan, scores), labels)


def test_top_and_joint_accuracy():
    scores, labels = np.eye(4) + 0.1 * np.arange(4), np.array([0, 2, 3, 3])
    assert top_accuracy(scores, labels, 1) == 0.5 and top_accuracy(scores, labels, 4) == 1.0
    assert top_accuracy(scores, labels, 2) == 0.75  # the third frame's second class is 3
    both, each = joint_accuracy([np.eye(3), np.eye(3)[:, :2]], np.array([[0, 0], [1, 0], [2, 0]]))
    assert both == pytest.approx(2 / 3) and each == pytest.approx([1.0, 2 / 3])
    with pytest.raises(ValueError, match="labels span 0 to 3, but there are 3 classes"):
        joint_accuracy([np.eye(3)], np.array([[0], [1], [3]]))


FACTS = {"macs_per_clip": 10, "parameters": 3, "causal": True, "stride": 1, "peak_bytes": {"8": 100}}


def test_metrics_of_each_kind_of_labels():
    logits = np.array([[[4.0, 0, 0, 1]], [[0, 4, 1, 0]], [[0, 0, 4, 1]], [[0, 1, 4, 0]]], np.float32)
    arrays = {"logits/test": logits, "each_frame/test": logits, "streamed/test": logits}
    one = evaluate([Stored(arrays | {"labels/test": np.array([0, 1, 2, 3])}, FACTS)], "k", pairs=False).metrics[5]
    assert one["k/top1_percent"] == 75 and one["k/top5_percent"] == 100 and "k/pair/top1_percent" not in one
    many = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]])
    found = evaluate([Stored(arrays | {"labels/test": many}, FACTS)], "k", pairs=False)
    assert found.metrics[5]["k/map_percent"] == pytest.approx(100 * mean_average_precision(logits[:, 0], many))
    assert (
        found.figures[1].series[0].y == [found.metrics[5]["k/map_percent"]] and "k/top1_percent" not in found.metrics[5]
    )
    kinds = Stored(
        arrays | {"labels/test": np.array([[0, 1], [1, 0], [0, 1], [0, 1]])},
        FACTS | {"targets": [["verb", 2], ["noun", 2]]},
    )
    both = evaluate([kinds], "k", pairs=False).metrics[5]
    assert (both["k/action/top1_percent"], both["k/verb/top1_percent"], both["k/noun/top1_percent"]) == (50, 75, 50)
    assert json.dumps(both)
