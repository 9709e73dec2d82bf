"""The captioned world: pictures, clips and sentences drawn from scenes whose every detail is known.

Read `prepare` first, then a view: `Images`, `GradedImages`, `Clips`, `ActionClips`; others have a file of their own.
A view turns a chunk of scenes (`world.scenes`) into columns, with the help of `world.drawing` and `world.text`. Row r
of a split is sample r % 256 of its chunk r // 256: a larger split begins with the rows of a smaller one, and the scenes
do not depend on the size of the pictures.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from itertools import starmap
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np

from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.contact_sheet import write_contact_sheet
from lightning_modules.datasets.world import text
from lightning_modules.datasets.world.camera import CameraClips
from lightning_modules.datasets.world.drawing import OPAQUE, Objects, add_noise, landscapes, paint, render
from lightning_modules.datasets.world.drifting import DriftingClips
from lightning_modules.datasets.world.hd_clips import HdClips
from lightning_modules.datasets.world.long_clips import LongClips
from lightning_modules.datasets.world.plain import PlainImages
from lightning_modules.datasets.world.quadrants import Quadrants
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
    RIGHT,
    SHAPES,
    SHRINKING,
    STILL,
    TEXTURES,
    UNIT,
    UP,
    Scenes,
    Stream,
    at_rest,
    boxes,
    sample_scenes,
    trajectories,
)
from lightning_modules.datasets.world.sounding import SoundingClips
from lightning_modules.datasets.world.video_text import VideoText
from lightning_modules.files import replace_folder

Columns = dict[str, np.ndarray]

ACTIONS = ("left", "right", "up", "down", "clockwise", "counterclockwise", "growing", "shrinking", "red then blue",
           "blue then red")  # fmt: skip
ACTION_MOTIONS = np.array([LEFT, RIGHT, UP, DOWN, CLOCKWISE, COUNTERCLOCKWISE, GROWING, SHRINKING, STILL, STILL])
RED_THEN_BLUE, BLUE_THEN_RED = 8, 9
RED, BLUE = COLORS.index("red"), COLORS.index("blue")


@dataclass(frozen=True, kw_only=True)
class Images:
    """Still pictures with captions in two languages, boxes, region phrases and all attributes.

    Columns: `image`; `caption` (dense), `partial_caption`, `auxiliary_caption`; `regions`, a phrase for each object;
    `boxes`, float32 (4 objects, 4), left top right bottom in fractions of the frame; `place`; `color`, `shape`,
    `texture`, `size` and `cell`, (4 objects,), -1 where there is no object.

    Args:
        image_size: side of the pictures in pixels.
        objects: fewest and most objects, within 1 to 4.
        shared_words: share of the content words that the auxiliary language has in common with the captions.
    """

    name: ClassVar[str] = "images"
    num_classes: ClassVar[int | None] = None
    row_group: ClassVar[int] = 256

    image_size: int
    objects: Sequence[int]
    shared_words: float

    def columns(self, stream: Stream) -> Columns:
        """The columns of a chunk, without `id`."""
        scenes = sample_scenes(stream, self.objects)
        tracks = at_rest(scenes)
        grain = _random_pictures(stream, "grain", self.image_size)
        return {
            "image": render(scenes, tracks, grain=grain, size=self.image_size)[:, 0],
            "caption": _text(text.dense_captions(scenes, stream)),
            "partial_caption": _text(text.partial_captions(scenes, stream)),
            "auxiliary_caption": _text(text.auxiliary_captions(scenes, stream, self.shared_words)),
            "regions": _text(text.region_phrases(scenes)),
            "boxes": boxes(scenes, tracks)[:, 0],
            "place": scenes.place,
            **_attributes(scenes, "color", "shape", "texture", "size", "cell"),
        }


@dataclass(frozen=True, kw_only=True)
class GradedImages:
    """Pictures of one large object whose shape and texture are the class (32), from easy to hard.

    Columns: `image`, `label` (4 x shape + texture), `difficulty` (0 to 1, uniform and independent of the class). With
    the difficulty the noise grows, the object fades into the landscape, and up to three small objects cover it.

    Args:
        image_size: side of the pictures in pixels.
        noise: strength of the noise at difficulty 1, in grey levels (the noise is uniform within +-`noise`).
        fading: share of the object's opacity that is lost at difficulty 1.
    """

    name: ClassVar[str] = "graded"
    num_classes: ClassVar[int | None] = len(SHAPES) * len(TEXTURES)
    row_group: ClassVar[int] = 256

    image_size: int
    noise: int
    fading: float

    def __post_init__(self):
        if not 0 <= self.noise <= 255:
            raise ValueError(f"noise ({self.noise}) must be between 0 and 255 grey levels.")
        if not 0 <= self.fading <= 1:
            raise ValueError(f"fading ({self.fading}) must be between 0 (none) and 1 (invisible when hardest).")

    def columns(self, stream: Stream) -> Columns:
        """The columns of a chunk, without `id`."""
        label, difficulty = stream.balanced("label", self.num_classes), self._difficulty(stream)
        scenes = sample_scenes(stream, (1, 1))
        pictures = landscapes(scenes, _random_pictures(stream, "grain", self.image_size), self.image_size)
        self._paint_target(pictures, stream, scenes.color[:, 0], label, difficulty)
        self._paint_clutter(pictures, stream, difficulty)
        noise = _random_pictures(stream, "noise", self.image_size)
        add_noise(pictures, noise, self.noise * difficulty // FRAME)
        return {"image": pictures, "label": label, "difficulty": (difficulty / FRAME).astype(np.float32)}

    @staticmethod
    def _difficulty(stream: Stream) -> np.ndarray:
        """One in each of CHUNK equal steps from 0 to `FRAME`, so that even few samples cover the whole range."""
        step = FRAME // CHUNK
        return step * stream.balanced("difficulty/step", CHUNK) + stream.integers("difficulty", step)

    def _paint_target(
        self, pictures: np.ndarray, stream: Stream, color: np.ndarray, label: np.ndarray, difficulty: np.ndarray
    ) -> None:
        shape, texture = np.divmod(label, len(TEXTURES))
        radius = stream.between("target/radius", 32 * FRAME // 100, 36 * FRAME // 100)  # 10 pixels of 32 at least
        x, y = (_anywhere(stream, f"target/{axis}", radius) for axis in "xy")
        opacity = OPAQUE - round(self.fading * OPAQUE) * difficulty // FRAME
        paint(pictures, np.arange(CHUNK), Objects(x, y, radius, shape, color, texture), opacity)

    def _paint_clutter(self, pictures: np.ndarray, stream: Stream, difficulty: np.ndarray) -> None:
        """One small object more at each quarter of the difficulty."""
        radius = stream.between("clutter/radius", 9 * FRAME // 100, 13 * FRAME // 100, 3)
        x, y = (_anywhere(stream, f"clutter/{axis}", radius) for axis in "xy")
        looks = {"shape": SHAPES, "color": COLORS, "texture": TEXTURES}
        clutter = Objects(
            x, y, radius, *(stream.integers(f"clutter/{look}", len(values), 3) for look, values in looks.items())
        )
        for number in range(3):
            rows = np.flatnonzero(difficulty >= (number + 1) * FRAME // 4)
            paint(pictures, rows, clutter[rows, number])


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Moving pictures with captions in two languages, subtitles, and the exact box of each object in each frame.

    Columns: `video`; `caption` (dense, with motions), `auxiliary_caption` (of the middle frame), `subtitle`; `boxes`,
    float32 (frames, 4 objects, 4); `place`; `color`, `shape`, `texture`, `size` and `motion`, as in `Images`.

    Args:
        image_size: side of the frames in pixels.
        frames: number of frames.
        objects: fewest and most objects, within 1 to 4; moving objects may pass before one another.
        shared_words: share of the content words that the auxiliary language has in common with the captions.
    """

    name: ClassVar[str] = "clips"
    num_classes: ClassVar[int | None] = None
    row_group: ClassVar[int] = 64

    image_size: int
    frames: int
    objects: Sequence[int]
    shared_words: float

    def __post_init__(self):
        if self.frames < 1:
            raise ValueError(f"frames ({self.frames}) must be at least 1.")

    def columns(self, stream: Stream) -> Columns:
        """The columns of a chunk, without `id`."""
        scenes = sample_scenes(stream, self.objects)
        tracks = trajectories(scenes, self.frames)
        grain = _random_pictures(stream, "grain", self.image_size)
        return {
            "video": render(scenes, tracks, grain=grain, size=self.image_size),
            "caption": _text(text.motion_captions(scenes, stream)),
            "auxiliary_caption": _text(text.auxiliary_captions(scenes, stream, self.shared_words)),
            "subtitle": _text(text.subtitles(scenes, stream)),
            "boxes": boxes(scenes, tracks),
            "place": scenes.place,
            **_attributes(scenes, "color", "shape", "texture", "size", "motion"),
        }


@dataclass(frozen=True, kw_only=True)
class ActionClips:
    """Clips of one object in ten actions (`ACTIONS`), which are five pairs: each the other one in reverse.

    Columns: `video`, `label`. Looks, place, start and speed are independent of the action, so that the frames of a clip
    tell the pair of its action, and only their order tells which of the two it is.

    Args:
        image_size: side of the frames in pixels.
        frames: number of frames, at least 4.
        zoom: how many times larger and faster than in other views, 1 to 2; the object may then leave the frame in part.
    """

    name: ClassVar[str] = "actions"
    num_classes: ClassVar[int | None] = len(ACTIONS)
    row_group: ClassVar[int] = 64

    image_size: int
    frames: int
    zoom: float

    def __post_init__(self):
        if self.frames < 4:
            raise ValueError(f"frames ({self.frames}) must be at least 4, for the order of two colours to be seen.")
        if not 1 <= self.zoom <= 2:
            raise ValueError(f"zoom ({self.zoom}) must be between 1 and 2: beyond, a shrinking object vanishes.")

    def columns(self, stream: Stream) -> Columns:
        """The columns of a chunk, without `id`."""
        label = stream.balanced("label", self.num_classes)
        return {"video": self.draw(stream, label), "label": label}

    def draw(self, stream: Stream, label: np.ndarray) -> np.ndarray:
        """The clips of a chunk, each with the action asked for; uint8 (CHUNK, frames, image_size, image_size, 3)."""
        scenes = sample_scenes(stream, (1, 1))
        scenes = replace(
            scenes,
            motion=np.broadcast_to(ACTION_MOTIONS[label, None], scenes.motion.shape),
            radius=scenes.radius * round(UNIT * self.zoom) // UNIT,
            speed=scenes.speed * round(UNIT * self.zoom) // UNIT,
        )
        grain = _random_pictures(stream, "grain", self.image_size)
        color = self._colors(stream, scenes.color, label)
        return render(scenes, trajectories(scenes, self.frames), grain=grain, size=self.image_size, color=color)

    def _colors(self, stream: Stream, color: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Colour of each object in each frame: in the last two actions it turns red or blue, and later the other."""
        others = np.array([color for color in range(len(COLORS)) if color not in (RED, BLUE)])
        turns = (label == RED_THEN_BLUE) | (label == BLUE_THEN_RED)
        color = np.where(turns[:, None], others[color % len(others)], color)[..., None]

        length = max(3 * self.frames // 16, 1)
        start = stream.between("turn", 1, self.frames // 2 - length)[:, None]
        since_start = np.arange(self.frames) - start
        early = (since_start >= 0) & (since_start < length) & turns[:, None]
        late = early[:, ::-1]
        first, second = np.where(label == RED_THEN_BLUE, [[RED], [BLUE]], [[BLUE], [RED]])
        turned = np.where(early, first[:, None], second[:, None])
        return np.where((early | late)[:, None, :], turned[:, None, :], color)


View = (
    Images
    | GradedImages
    | PlainImages
    | Clips
    | ActionClips
    | VideoText
    | HdClips
    | LongClips
    | DriftingClips
    | SoundingClips
    | CameraClips
    | Quadrants
)
VIEWS = {view.name: view for view in get_args(View)}


def prepare(
    folder: Path,
    *,
    view: str,
    seed: int,
    sizes: Mapping[str, int],
    image_size: int,
    options: Mapping[str, object],
    workers: int,
) -> None:
    """Draws a data set of one view, with a contact sheet (`sheet.png`) of its first samples to look at.

    Args:
        folder: where shards, card and sheet go.
        view: a key of `VIEWS`, such as `images`.
        seed: of the whole world; the splits have scenes of their own by their names.
        sizes: number of samples of each split.
        image_size: side of the pictures in pixels.
        options: the other arguments of the view.
        workers: processes that draw; they change no byte.

    Raises:
        ValueError: an argument is out of its range, or an option is missing or unknown.
    """
    if not sizes:
        raise ValueError("sizes must name a split and its number of samples, for example {train: 4096}.")
    _at_least(1, workers=workers, **{f"sizes.{split}": size for split, size in sizes.items()})
    _at_least(0, seed=seed)
    drawn = _view(view, image_size, options)
    sample = chunk_columns(drawn, seed, next(iter(sizes)), 0, CHUNK)
    schema, shape = infer_schema(sample), sample["video" if "video" in sample else "image"].shape[1:]
    spawn = get_context("spawn")
    with (
        replace_folder(folder) as new,
        ProcessPoolExecutor(workers, mp_context=spawn) if workers > 1 else nullcontext() as pool,
    ):
        written = {
            split: storage.write_blocks(
                new, split, _blocks(drawn, seed, split, size, pool, workers), "raw", shape,
                schema=schema, row_group=drawn.row_group,
            )
            for split, size in sizes.items()
        }  # fmt: skip
        storage.write_card(
            new, name=f"world_{view}", splits=written, codec="raw", shape=shape, num_classes=drawn.num_classes,
            source=f"drawn: the captioned world, seed {seed}", schema=schema,
        )  # fmt: skip
        write_contact_sheet(new / "sheet.png", sample)


def _view(name: str, image_size: int, options: Mapping[str, object]) -> View:
    if name not in VIEWS:
        raise ValueError(f"view ({name!r}) must be one of {', '.join(VIEWS)}.")
    known = [field.name for field in fields(VIEWS[name]) if field.name != "image_size"]
    if set(options) != set(known):
        raise ValueError(f"options ({', '.join(options)}) of the view {name!r} must be {', '.join(known)}.")
    _at_least(16, image_size=image_size)
    return VIEWS[name](image_size=image_size, **options)


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} ({value}) must be at least {least}.")


def chunk_columns(view: View, seed: int, split: str, chunk: int, rows: int) -> Columns:
    """The first rows of a chunk of a split, with their numbers in `id`."""
    columns = {"id": chunk * CHUNK + np.arange(CHUNK)} | view.columns(Stream(seed, f"{view.name}/{split}", chunk))
    return {name: values[:rows] for name, values in columns.items()}


def _blocks(view: View, seed: int, split: str, size: int, pool: Executor | None, workers: int) -> Iterator[Columns]:
    """The chunks of a split in order, drawn here or in the pool; not many more than there are workers are held."""
    jobs = ((view, seed, split, start // CHUNK, min(CHUNK, size - start)) for start in range(0, size, CHUNK))
    if pool is None:
        yield from starmap(chunk_columns, jobs)
        return
    pending = deque()
    for job in jobs:
        pending.append(pool.submit(chunk_columns, *job))
        if len(pending) > 2 * workers:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _random_pictures(stream: Stream, purpose: str, size: int) -> np.ndarray:
    return stream.bytes(purpose, CHUNK * size * size).reshape(CHUNK, size, size)


def _anywhere(stream: Stream, purpose: str, radius: np.ndarray) -> np.ndarray:
    """Centres of objects that lie inside the frame."""
    reach = radius + MARGIN
    return reach + stream.integers(purpose, FRAME + 1 - 2 * reach, *radius.shape[1:])


def _attributes(scenes: Scenes, *names: str) -> Columns:
    return {name: np.where(scenes.exists, getattr(scenes, name), -1) for name in names}


def _text(values: list) -> np.ndarray:
    return np.fromiter(values, dtype=object, count=len(values))
