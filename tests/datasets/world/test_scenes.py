"""The records: where objects are, how they move, and that streams by name never disturb one another."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from lightning_modules.datasets.world.scenes import (
    CHUNK,
    CLOCKWISE,
    COLORS,
    COUNTERCLOCKWISE,
    DOWN,
    FRAME,
    GROWING,
    LEFT,
    MARGIN,
    MAX_OBJECTS,
    MOTIONS,
    PLACES,
    REVERSED,
    SHAPES,
    SIZES,
    STILL,
    TEXTURES,
    Stream,
    at_rest,
    boxes,
    sample_scenes,
    trajectories,
)


def scenes(objects=(1, 3), chunk=0, seed=5):
    return sample_scenes(Stream(seed, "images/train", chunk), objects)


def with_motion(given, motion):
    return replace(given, motion=np.full_like(given.motion, motion))


def test_random_words_are_those_of_numpys_philox_for_good():
    stream = Stream(0, "images/train", 0)
    assert stream.words("place", 3).tolist() == [5757059680768860961, 5403781144498576491, 6172473520829850968]
    assert stream.integers("place", 6)[:8].tolist() == [1, 1, 2, 1, 5, 4, 1, 3]
    assert stream.bytes("grain", 5).tolist() == [104, 165, 110, 201, 195]


def test_streams_differ_by_seed_name_purpose_and_chunk_and_remember_nothing():
    streams = [Stream(0, "a/train", 0), Stream(1, "a/train", 0), Stream(0, "a/test", 0), Stream(0, "a/train", 1)]
    words = [tuple(stream.words("place", 4)) for stream in streams] + [tuple(streams[0].words("light", 4))]
    assert len(set(words)) == 5
    assert tuple(streams[0].words("place", 4)) == words[0]
    assert tuple(streams[0].words("place", 9)[:4]) == words[0]


def test_integers_keep_to_their_bounds_and_to_those_of_each_row():
    stream = Stream(0, "a/train", 0)
    assert set(stream.integers("one", 5, 40).ravel()) == set(range(5))
    assert set(stream.between("two", -1, 1, 9).ravel()) == {-1, 0, 1}
    bounds = 1 + np.arange(CHUNK)
    assert (stream.integers("three", bounds) < bounds).all()
    assert stream.bytes("four", 999).shape == (999,)


def test_every_value_of_every_attribute_is_about_as_frequent():
    chunks = [scenes(chunk=chunk) for chunk in range(8)]
    for name, values in (("color", COLORS), ("shape", SHAPES), ("texture", TEXTURES), ("size", SIZES),
                         ("motion", MOTIONS)):  # fmt: skip
        counts = np.bincount(np.concatenate([getattr(s, name)[s.exists] for s in chunks]), minlength=len(values))
        assert counts.min() > 0.8 * counts.mean() and counts.max() < 1.2 * counts.mean(), name
    places = np.bincount(np.concatenate([s.place for s in chunks]), minlength=len(PLACES))
    assert places.min() > 0.8 * places.mean()
    assert set(np.concatenate([s.cell[:, 0] for s in chunks])) == set(range(9))


@pytest.mark.parametrize("objects", [(1, 1), (2, 3), (4, 4)])
def test_the_number_of_objects_is_within_the_range(objects):
    count = scenes(objects).count
    assert (count.min(), count.max()) == objects
    assert scenes(objects).exists.sum() == count.sum()


@pytest.mark.parametrize("objects", [(0, 1), (2, 1), (1, MAX_OBJECTS + 1)])
def test_other_ranges_are_refused(objects):
    with pytest.raises(ValueError, match=rf"objects \({objects[0]} to {objects[1]}\) must be a range within 1 to 4"):
        scenes(objects)


def test_objects_are_inside_the_frame_and_apart_from_one_another():
    given = scenes((4, 4))
    reach = given.radius + MARGIN
    for centre in (given.x, given.y):
        assert (centre >= reach).all() and (centre <= FRAME - reach).all()
    for a, b in combinations(range(MAX_OBJECTS), 2):
        gap = np.maximum(abs(given.x[:, a] - given.x[:, b]), abs(given.y[:, a] - given.y[:, b]))
        assert (gap - given.radius[:, a] - given.radius[:, b] > MARGIN).all()


def test_shapes_have_ten_pixels_of_64_and_large_ones_a_fifth_more():
    given = scenes()
    assert given.radius.min() * 64 / FRAME > 10
    assert given.radius[given.size == 1].min() > 1.2 * given.radius[given.size == 0].max()


def test_cells_say_where_objects_are():
    given = scenes((3, 3))
    for coordinate, cell in ((given.x, given.cell % 3), (given.y, given.cell // 3)):
        thirds = [coordinate[(cell == third) & given.exists] / FRAME for third in range(3)]
        assert thirds[0].max() < 0.3 and 0.4 < thirds[1].min() and thirds[1].max() < 0.6 and thirds[2].min() > 0.7


def test_no_two_objects_of_a_scene_have_colour_and_shape_in_common():
    for chunk in range(8):
        given = scenes((4, 4), chunk)
        looks = np.sort(given.color * len(SHAPES) + given.shape, axis=1)
        assert (np.diff(looks, axis=1) > 0).all()


@pytest.mark.parametrize("frames", [1, 2, 8, 15])
def test_tracks_stay_inside_the_frame(frames):
    given = scenes((4, 4))
    x, y, radius = trajectories(given, frames)
    for centre in (x, y):
        assert (centre - radius >= MARGIN).all() and (centre + radius <= FRAME - MARGIN).all()


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
@pytest.mark.parametrize("frames", [1, 6, 9])
def test_the_reversed_motion_is_the_track_backwards(motion, frames):
    forwards, backwards = (
        trajectories(with_motion(scenes(), each), frames) for each in (motion, int(REVERSED[motion]))
    )
    for values, reversed_values in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(values, reversed_values[..., ::-1])


def test_motions_do_what_they_are_called():
    def steps(motion):
        return [np.diff(values, axis=-1) for values in trajectories(with_motion(scenes(), motion), 5)]

    dx, dy, growth = steps(LEFT)
    assert (dx < 0).all() and not dy.any() and not growth.any()
    dx, dy, _ = steps(DOWN)
    assert (dy > 0).all() and not dx.any()
    assert (steps(GROWING)[2] > 0).all()
    assert not np.any(steps(STILL))
    for motion, turn in ((CLOCKWISE, 1), (COUNTERCLOCKWISE, -1)):
        dx, dy, _ = steps(motion)
        cross = dx[..., :-1] * dy[..., 1:] - dy[..., :-1] * dx[..., 1:]
        assert (np.sign(cross) == turn).all()  # y goes down, so that a positive cross product is clockwise


def test_boxes_are_zero_where_no_object_is():
    given = scenes((1, 3))
    found = boxes(given, at_rest(given))
    assert found.shape == (CHUNK, 1, MAX_OBJECTS, 4)
    assert found.dtype == np.float32
    assert (found.any(-1)[:, 0] == given.exists).all()
