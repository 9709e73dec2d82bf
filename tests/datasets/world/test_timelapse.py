"""Landscapes that move: the flow that is told is what the pixels show."""

import hashlib

import numpy as np
import pytest
import torch

from lightning_modules.datasets import storage
from lightning_modules.datasets.world import timelapse
from lightning_modules.datasets.world.scenes import CHUNK, Stream
from lightning_modules.datasets.world.timelapse import (
    HILL,
    LEFT_SKY,
    MOVING,
    PARTS,
    RIGHT_SKY,
    SLOWEST,
    UNIT,
    WATER,
    Timelapse,
    flows,
    lit,
    visible,
)
from lightning_modules.fgla.warping import warp

SIZE, FRAMES = 32, 9
DIGEST = "8d1a3dd285b1d6ca5583b49934f940fd97602faca6c7548abc86a0e4979a94cd"


@pytest.fixture(scope="module")
def clips():
    return Timelapse(image_size=SIZE, frames=FRAMES).columns(Stream(7, "timelapse/train", 0))


def test_the_bytes_are_the_same_everywhere(clips):
    digest = hashlib.sha256()
    for name, values in clips.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).astype("<i8").tobytes())
    assert digest.hexdigest() == DIGEST


def test_each_frame_follows_from_the_last_by_the_flow_where_nothing_new_comes_in(clips):
    flow = flows(clips["parts"], clips["velocity"])
    seen = visible(clips["parts"], flow)
    video = torch.from_numpy(clips["video"][:64].astype(np.float32) / 255).permute(0, 1, 4, 2, 3)
    for step in range(FRAMES - 1):
        moved = warp(video[:, step], torch.from_numpy(flow[:64, step]))
        apart = (moved - video[:, step + 1]).abs().mean(1).numpy()
        still = (video[:, step] - video[:, step + 1]).abs().mean(1).numpy()
        where = seen[:64, step]
        assert apart[where].mean() < 0.006 < 0.02 < still[where].mean()
        assert np.quantile(apart[where], 0.99) < 0.05
        wrong = warp(video[:, step], torch.from_numpy(-flow[:64, step]))
        assert (wrong - video[:, step + 1]).abs().mean(1).numpy()[where].mean() > 0.02


def test_a_shift_of_whole_pixels_moves_the_texture_exactly():
    view = Timelapse(image_size=SIZE, frames=4)
    stream = Stream(3, "timelapse/val", 0)
    velocity = np.zeros((CHUNK, 3, MOVING, 2), np.int64)
    velocity[:, :, LEFT_SKY] = (16, -32)  # a pixel to the right and two up, each frame
    parts = view.parts(stream)
    video = view.draw(stream, parts, velocity)
    seen = visible(parts, flows(parts, velocity))[:, 0] & (parts == LEFT_SKY)
    rows, y, x = np.nonzero(seen)
    assert len(rows) > 1000
    assert (video[rows, 1, y, x] == video[rows, 0, y + 2, x - 1]).all()
    assert (video[:, 1:][np.repeat((parts == HILL)[:, None], 3, 1)].reshape(-1, 3)
            == video[:, :3][np.repeat((parts == HILL)[:, None], 3, 1)].reshape(-1, 3)).all()  # fmt: skip


def test_the_hill_rests_and_everything_else_moves_and_turns(clips):
    assert (flows(clips["parts"], clips["velocity"]).transpose(0, 1, 3, 4, 2)[
        np.repeat((clips["parts"] == HILL)[:, None], FRAMES - 1, 1)] == 0).all()  # fmt: skip
    assert (np.abs(clips["velocity"]).max(-1) >= SLOWEST).all()
    for velocity, turn in zip(clips["velocity"], clips["turn"], strict=True):
        assert 3 <= turn <= 6
        assert (velocity[: turn - 1] == velocity[0]).all() and (velocity[turn - 1 :] == velocity[-1]).all()
    assert (clips["velocity"][:, 0] != clips["velocity"][:, -1]).any((1, 2)).mean() > 0.99


def test_two_clips_have_one_layout_and_winds_of_their_own(clips):
    assert (clips["parts"][::2] == clips["parts"][1::2]).all()
    assert (clips["layout"][::2] == clips["layout"][1::2]).all()
    assert (clips["velocity"][::2] != clips["velocity"][1::2]).any((1, 2, 3)).all()
    shares = [(clips["parts"] == part).mean((1, 2)) for part in range(len(PARTS))]
    assert min(share.min() for share in shares) > 0.02


def test_control_no_frame_tells_the_wind(clips):
    """Winds of one zone have nothing to do with its colours, with the other zone's winds, or with its partner's."""
    wind = clips["velocity"][:, 0].astype(float)
    colour = clips["video"][:, 0].mean((1, 2))
    for part in (LEFT_SKY, RIGHT_SKY, WATER):
        for axis in (0, 1):
            for other in (*colour.T, wind[:, (part + 1) % MOVING, axis], wind[:, part, 1 - axis]):
                assert abs(np.corrcoef(wind[:, part, axis], other)[0, 1]) < 0.25  # 4 standard errors
        assert abs(np.corrcoef(wind[::2, part, 0], wind[1::2, part, 0])[0, 1]) < 0.35


def test_light_goes_one_way_and_darkens_what_is_seen(clips):
    light, shown = clips["light"], lit(clips["video"], clips["light"])
    assert light.max() == UNIT and light.min() > UNIT // 4
    assert ((np.diff(light, axis=1) <= 0).all((1, 2)) | (np.diff(light, axis=1) >= 0).all((1, 2))).all()
    assert (shown <= clips["video"]).all()
    dark = light[:, -1] < light[:, 0]
    assert 0.3 < dark[:, 0].mean() < 0.7
    brightest = np.where(dark[:, :1], 0, FRAMES - 1)[:, 0]
    assert (shown[np.arange(CHUNK), brightest] == clips["video"][np.arange(CHUNK), brightest]).all()


def test_a_prepared_data_set_reads_back(tmp_path):
    timelapse.prepare(tmp_path / "new", seed=7, sizes={"train": 300, "val": 2}, image_size=16, frames=4)
    assert storage.card(tmp_path / "new")["splits"] == {"train": 300, "val": 2}
    found = storage.read(tmp_path / "new", "train")
    assert found["video"].shape == (300, 4, 16, 16, 3) and found["id"].tolist() == list(range(300))
    whole = Timelapse(image_size=16, frames=4).columns(Stream(7, "timelapse/train", 1))
    assert (found["video"][256:] == whole["video"][:44]).all() and (found["layout"][256:] == whole["layout"][:44]).all()
    assert (tmp_path / "new/sheet.png").is_file()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sizes": {}}, r"sizes \(\{\}\) must give each split an even number"),
        ({"sizes": {"train": 5}}, r"sizes \(\{'train': 5\}\) must give each split an even number"),
        ({"image_size": 8}, r"image_size \(8\) must be at least 16"),
        ({"frames": 3}, r"frames \(3\) must be at least 4"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        timelapse.prepare(tmp_path / "x", **{"seed": 0, "sizes": {"train": 2}, "image_size": 16, "frames": 4} | changed)
