"""Pixels agree with the records: boxes are tight, textures belong to their objects, edges are soft."""

from dataclasses import replace

import numpy as np
import pytest

from lightning_modules.datasets.world.drawing import (
    BATCH,
    OPAQUE,
    RGB,
    SHADE,
    Objects,
    add_noise,
    landscapes,
    paint,
    render,
)
from lightning_modules.datasets.world.scenes import (
    CHUNK,
    FRAME,
    PLACES,
    SHAPES,
    TEXTURES,
    Stream,
    at_rest,
    boxes,
    sample_scenes,
    trajectories,
)

SIZE = 64
PIXEL = FRAME // SIZE


def draw(objects=(1, 1), chunk=0):
    stream = Stream(2, "images/train", chunk)
    return sample_scenes(stream, objects), stream.bytes("grain", CHUNK * SIZE * SIZE).reshape(CHUNK, SIZE, SIZE)


def every_look(x: int, y: int) -> Objects:
    shape, texture = np.divmod(np.arange(len(SHAPES) * len(TEXTURES)), len(TEXTURES))
    return Objects(*np.broadcast_arrays(x, y, 12 * PIXEL, shape, shape, texture))


def test_boxes_enclose_every_changed_pixel_and_are_tight():
    scenes, grain = draw()
    picture = render(scenes, at_rest(scenes), grain=grain, size=SIZE)[:, 0]
    changed = (picture != landscapes(scenes, grain, SIZE)).any(-1)
    for mask, box in zip(changed, boxes(scenes, at_rest(scenes))[:, 0, 0] * SIZE, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert (np.abs(found - box) < 2.5).all()
        assert (found[:2] > box[:2] - 1.25).all() and (found[2:] < box[2:] + 1.25).all()  # soft edges reach outside


def test_each_box_has_the_colour_of_its_object():
    scenes, grain = draw((3, 3))
    picture = render(scenes, at_rest(scenes), grain=grain, size=SIZE)[:, 0]
    found = (boxes(scenes, at_rest(scenes))[:, 0] * SIZE).round().astype(int)
    for number in range(CHUNK):
        for slot, (left, top, right, bottom) in enumerate(found[number, :3]):
            color = RGB[scenes.color[number, slot]], SHADE[scenes.color[number, slot]]
            inside = picture[number, top:bottom, left:right].reshape(-1, 3)
            assert sum((inside == each).all(1).mean() for each in color) > 0.05


def test_a_texture_moves_with_its_object():
    """Moved by whole pixels, an object is the same pixels elsewhere."""
    one, other = np.full((2, 32, SIZE, SIZE, 3), 128, np.uint8)
    paint(one, np.arange(32), every_look(20 * PIXEL + 300, 30 * PIXEL))
    paint(other, np.arange(32), every_look(27 * PIXEL + 300, 35 * PIXEL))
    np.testing.assert_array_equal(one[:, 10:50, 5:40], other[:, 15:55, 12:47])
    assert (one != 128).any((1, 2, 3)).all()


def test_a_texture_scales_with_its_object():
    """An object of twice the radius, seen at half the resolution, has its stripes at the same places."""
    small, large = np.zeros((32, SIZE, SIZE, 3), np.uint8), np.zeros((32, 2 * SIZE, 2 * SIZE, 3), np.uint8)
    paint(small, np.arange(32), every_look(FRAME // 2, FRAME // 2))
    paint(large, np.arange(32), every_look(FRAME // 2, FRAME // 2))
    reduced = large.reshape(32, SIZE, 2, SIZE, 2, 3).mean((2, 4))
    assert np.abs(reduced - small).mean() < 4


def test_every_shape_and_texture_looks_different():
    pictures = np.zeros((32, SIZE, SIZE, 3), np.uint8)
    paint(pictures, np.arange(32), replace(every_look(FRAME // 2, FRAME // 2), color=np.zeros(32, int)))
    for number, picture in enumerate(pictures):
        others = np.delete(pictures, number, axis=0)
        assert ((others != picture).any(-1).sum((1, 2)) > 40).all()


def test_batches_and_windows_change_nothing():
    scenes, grain = draw((2, 2))
    tracks = trajectories(scenes, 5)
    assert CHUNK * 5 > 2 * BATCH
    together = render(scenes, tracks, grain=grain, size=SIZE)
    rows = slice(40, 44)
    few = replace(scenes, **{name: values[rows] for name, values in vars(scenes).items()})
    alone = render(few, type(tracks)(*(values[rows] for values in tracks)), grain=grain[rows], size=SIZE)
    np.testing.assert_array_equal(alone, together[rows])


def test_opacity_mixes_object_and_picture():
    pictures = np.full((3, SIZE, SIZE, 3), 10, np.uint8)
    square = Objects(*(np.full(3, value) for value in (FRAME // 2, FRAME // 2, 12 * PIXEL, 1, 3, 0)))
    paint(pictures, np.arange(3), square, np.array([0, OPAQUE // 2, OPAQUE]))
    np.testing.assert_allclose(pictures[:, SIZE // 2, SIZE // 2], [[10] * 3, (RGB[3] + 10) / 2, RGB[3]], atol=1)


def test_landscapes_differ_by_place_and_stay_between_black_and_white():
    scenes, grain = draw()
    pictures = landscapes(scenes, grain, SIZE)
    corners = [
        np.concatenate([pictures[scenes.place == place][:, row, 0].mean(0) for row in (0, -1)])
        for place in range(len(PLACES))
    ]
    apart = [np.abs(a - b).sum() for number, a in enumerate(corners) for b in corners[:number]]
    assert min(apart) > 40


@pytest.mark.parametrize("level", [0, 255])
def test_noise_does_not_wrap_around(level):
    pictures = np.full((2, 8, 8, 3), level, np.uint8)
    random = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    add_noise(pictures, random, np.array([0, 100]))
    assert (pictures[0] == level).all()
    assert np.abs(pictures[1].astype(int) - level).max() <= 100
    assert np.ptp(pictures[1]) > 50
