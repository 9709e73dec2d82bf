"""Clips of videos, from video files, pictures and records: which frames and crops a batch has, and broken videos."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules import settings
from lightning_modules.datamodules.video_clips import VideoClips
from lightning_modules.datasets import tfrecords
from lightning_modules.datasets.download import MIRROR_VARIABLE
from lightning_modules.datasets.video import actions, bair, nuscenes
from lightning_modules.datasets.video.drawn import encode, numbers
from lightning_modules.datasets.video.sequences import central_square, random_square, spread
from lightning_modules.video_tokens.clips import ClipData
from tests.batches import loaded
from tests.magvit.test_module import module

VIDEOS = 13
FORMS = ["files", "pictures", "records"]
SIZES = {"files": 32, "pictures": 90, "records": 64}  # of the shorter side


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Thirteen videos of 20 frames in the form of UCF-101, scenes of nuScenes, and trajectories of BAIR."""
    path = tmp_path_factory.mktemp("corpus")
    place = {"mirror": str(path / "mirror"), "cache": str(path / "cache")}
    names = [f"{'AB'[number % 2]}/v_{number:02d}.avi" for number in range(VIDEOS)]
    for name in names:
        encode(path / f"mirror/ucf101/videos/{name}", 20)
    (path / "mirror/ucf101/list.txt").write_text("".join(f"{name} 1\n" for name in names))
    (path / "mirror/ucf101/classes.txt").write_text("1 A\n2 B\n")
    nuscenes.stand_in(path / "mirror/nuscenes", rows=VIDEOS, tables="tables")
    draw = np.random.default_rng(0)
    grainy = [np.clip(draw.integers(-15, 16, (20, 64, 64, 1)) + (20 + 5 * np.arange(20))[:, None, None, None], 0, 255)
              for _ in range(VIDEOS)]  # fmt: skip
    trajectories = [bair.trajectory(np.repeat(frames, 3, 3).astype(np.uint8), "image_aux1") for frames in grainy]
    tfrecords.write(path / "mirror/bair/records/all.tfrecords", trajectories)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(MIRROR_VARIABLE, raising=False)
        splits = {"train": {"annotations": "list.txt", "videos": "videos", "rows": VIDEOS}}
        actions.prepare(path / "files", name="ucf101", corpus="ucf101", splits=splits,
                        classes={"action": {"file": "classes.txt", "number": 2}}, **place)  # fmt: skip
        nuscenes.prepare(path / "pictures", name="nuscenes", tables="tables", judged_every=2, **place)
        bair.prepare(path / "records", name="bair", splits={"train": {"records": "records"}}, **place)
    return path


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: [])  # no workers


def data(home, form="files", seed=3, **changes):
    values = {"splits": {"train": {"source": "train", "rows": None}}, "frames": 4, "stride": 2, "size": 16,
              "short_side": 24, "flip": True, "batch_size": 4, "evaluation_batch_size": 5,
              "mirror": str(home / "mirror"), "max_broken": 0.02} | changes  # fmt: skip
    block = {"_target_": f"{VideoClips.__module__}.VideoClips", **values}
    return settings.bind(block, "conf/system/toy.yaml: data", folder=home / form, seed=seed)()


def judged(module):
    return list(module.evaluation_batches("train"))


def shown(batches):
    return [numbers(clip.permute(1, 2, 3, 0).numpy()) for batch in batches for clip in batch["video"]]


@pytest.mark.parametrize("form", FORMS)
def test_batches_have_the_shape_that_they_announce(home, form):
    module = data(home, form)
    for batches, sizes in ((loaded(module), [4] * 3), (judged(module), [5, 5, 3])):
        assert [tuple(batch["video"].shape) for batch in batches] == [(n, *module.video_shape) for n in sizes]
        assert all(batch["video"].dtype == torch.uint8 and batch["labels"].dtype == torch.int64 for batch in batches)
        assert all(batch.keys() == {"video", "labels", "broken"} and batch["broken"] == 0 for batch in batches)
    assert module.num_classes == (2 if form == "files" else 0)
    labels = torch.cat([batch["labels"] for batch in judged(module)]).tolist()
    assert labels == [number % 2 if form == "files" else 0 for number in range(VIDEOS)]


@pytest.mark.parametrize("form", ["files", "records"])
def test_the_middle_is_judged_or_the_start_or_clips_all_over(home, form):
    assert shown(judged(data(home, form))) == [[6, 8, 10, 12]] * VIDEOS
    assert shown(judged(data(home, form, begin="start"))) == [[0, 2, 4, 6]] * VIDEOS
    several = judged(data(home, form, clips=3))
    assert shown(several) == [[0, 2, 4, 6], [6, 8, 10, 12], [12, 14, 16, 18]] * VIDEOS
    whole = judged(data(home, form, short_side=16))
    assert torch.equal(torch.cat([batch["labels"] for batch in several])[::3],
                       torch.cat([batch["labels"] for batch in whole]))  # fmt: skip


def test_several_clips_are_where_dmvr_has_them():
    """By hand, after `sample_linspace_sequence`: beginnings from 0 to the last that fits, cut off to integers."""
    assert [int(spread(30, 16, 1, number, 15)[0]) for number in range(15)] == [*range(15)]
    assert [spread(10, 3, 2, number, 3).tolist() for number in range(3)] == [[0, 2, 4], [2, 4, 6], [4, 6, 8]]
    assert spread(5, 4, 2, 1, 2).tolist() == [0, 2, 4, 1]


@pytest.mark.parametrize("form", ["files", "records"])
def test_training_begins_anywhere_and_differs_from_epoch_to_epoch(home, form):
    module = data(home, form, batch_size=13)
    firsts = []
    for epoch in range(6):
        [batch] = loaded(module, epoch)
        clips = shown([batch])
        assert all(np.diff(clip).tolist() == [2, 2, 2] for clip in clips)
        firsts += [clip[0] for clip in clips]
    assert set(firsts) == set(range(14))  # the last frame that is shown is the twentieth
    assert all(
        torch.equal(a["video"], b["video"])
        for a, b in zip(loaded(module, 1), loaded(data(home, form, batch_size=13), 1), strict=True)
    )


def test_squares_lie_anywhere_and_are_mirrored_half_of_the_time():
    picture = np.stack(np.meshgrid(np.arange(40), np.arange(32), indexing="xy"), -1).astype(np.uint8)
    picture = np.concatenate([picture, picture[..., :1]], -1)  # across, down
    squares = [random_square(picture, 32, 30, (word, 7 * word), mirrored=False) for word in range(200)]
    assert {square.shape for square in squares} == {(30, 30, 3)}
    found = {(int(square[0, 0, 1]), int(square[0, 0, 0])) for square in squares}
    assert found == {(down, across) for down in range(3) for across in range(11)}
    plain, mirrored = (random_square(picture, 32, 30, (1, 1), mirrored=each) for each in (False, True))
    assert np.array_equal(plain[:, ::-1], mirrored)
    assert np.array_equal(central_square(picture, 32, 32), picture[:, 4:36])


def test_clips_that_do_not_vary_say_their_rows_and_are_those_that_are_judged(home):
    module = data(home, vary=False, flip=False)
    truth = torch.cat([batch["video"] for batch in judged(module)])
    seen = set()
    for epoch in range(4):
        for batch in loaded(module, epoch):
            assert torch.equal(batch["video"], truth[batch["rows"]])
            seen |= set(batch["rows"].tolist())
    assert seen == set(range(VIDEOS))
    assert all("rows" not in batch for batch in judged(module))


def test_a_rate_takes_fewer_frames_of_a_file(home):
    [first, *_] = shown(judged(data(home, rate=5.0, stride=1, frames=10)))
    assert np.diff(first).tolist() == [2] * 9


@pytest.mark.parametrize("form", FORMS)
def test_broken_videos_are_left_out_counted_and_bounded(home, form, tmp_path):
    copy = tmp_path / "mirror"
    shutil.copytree(home / "mirror", copy)
    spoil(copy, form)
    found = judged(data(home, form, mirror=str(copy)))
    assert sum(int(batch["broken"]) for batch in found) == 1
    assert sum(len(batch["video"]) for batch in found) == VIDEOS - 1
    trained = loaded(data(home, form, mirror=str(copy), batch_size=12))
    assert [len(batch["video"]) for batch in trained] == [12] and int(trained[0]["broken"]) in (0, 1)
    with pytest.raises(ValueError, match=r"1 of \d+ clips are broken, more than max_broken \(0.0\) allows"):
        judged(data(home, form, mirror=str(copy), max_broken=0.0))


def spoil(copy: Path, form: str) -> None:
    if form == "files":
        (copy / "ucf101/videos/B/v_03.avi").write_bytes(b"no video")
    elif form == "pictures":
        path = copy / "nuscenes/samples/CAM_FRONT/n6__CAM_FRONT__0018.jpg"
        path.unlink()
        path.write_bytes(b"no picture")
    else:
        path = copy / "bair/records/all.tfrecords"
        content = bytearray(path.read_bytes())
        content[list(tfrecords.places(path))[3][0] + 1000] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(("form", "changes", "message"), [
    ("files", {"size": 32}, r"short_side \(24\) must be at least size \(32\)"),
    ("files", {"begin": "start", "clips": 2}, "begin is 'start', but 2 clips of each video are judged"),
    ("files", {"vary": False}, "flip is true, but vary is false"),
    ("files", {"begin": "end"}, "begin is 'end'"),
    ("records", {"rate": 5.0}, "rate is 5.0, but bair is stored as single frames: set it to null"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(home, form, changes, message):
    with pytest.raises(ValueError, match=message):
        judged(data(home, form, **changes))


def test_parts_of_videos_are_refused(home, tmp_path):
    table = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
    folder = tmp_path / "mirror/epic"
    encode(folder / "videos/P01/videos/v.MP4", 20)
    (folder / "said.csv").write_text(f"{table}n0,P01,v,00:00:00.5,00:00:01.5,0,0\n")
    for name in ("verbs", "nouns"):
        (folder / f"{name}.csv").write_text("id,key\n0,a\n")
    classes = {kind: {"file": f"{kind}s.csv", "number": 1} for kind in ("verb", "noun")}
    splits = {"train": {"annotations": "said.csv", "videos": "videos"}}
    actions.prepare(tmp_path / "parts", name="epic", corpus="epic_kitchens", splits=splits, classes=classes,
                    mirror=str(tmp_path / "mirror"), cache=str(tmp_path))  # fmt: skip
    with pytest.raises(ValueError, match="epic has rows with several labels or parts of videos; whole videos of one"):
        judged(data(tmp_path, "parts"))


@pytest.mark.parametrize("form", FORMS)
def test_generators_take_them(home, form):
    clips, built = data(home, form, flip=False, vary=False), module(num_classes=2, keep_tokens=True).train()
    assert isinstance(clips, ClipData)
    built.check_data(clips)
    built.training_step(loaded(clips)[0]).backward()
    assert built.network.words.weight.grad.abs().sum() > 0 and built.kept is not None
    with pytest.raises(ValueError, match=r"the data has clips of shape \(3, 8, 16, 16\)"):
        built.check_data(data(home, form, frames=8))
