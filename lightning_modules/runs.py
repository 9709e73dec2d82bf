"""The files of a finished run, and the result of an evaluation of such runs. Imports no torch."""

import csv
import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np

from lightning_modules.files import sha256

LARGEST_PICTURE = 512  # pixels a side: pictures are written into the page
WAY_OUT = "Run `dvc checkout` to restore it, or `dvc repro` to make it again."


@dataclass(frozen=True)
class Run:
    """One seed of one trained arm: `data/runs/<preset>/<runs>/<stage>/[<name>/]seed-<seed>/`.

    `name` tells the trainings of one comparison apart, such as `maskalign-mae/probe`; empty where there is only one.
    """

    folder: Path
    seed: int
    name: str = ""

    @cached_property
    def facts(self) -> dict:
        """What the training stage states about its result (`facts.json`).

        Raises:
            ValueError: the file was altered or cut.
        """
        path = self.folder / "facts.json"
        try:
            return json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}): it was altered or cut. {WAY_OUT}") from error

    def predictions(self) -> dict[str, np.ndarray]:
        """Arrays that the trained network gave on the evaluation splits, computed once."""
        return self._arrays("predictions")

    def weights(self) -> dict[str, np.ndarray]:
        """The state dict of the trained module, as arrays."""
        return self._arrays("weights")

    def milestones(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The steps at which weights were kept (`keep_every` of the recipe), each with what `weights` gives."""
        for step, expected in sorted((int(step), digest) for step, digest in self.facts.get("milestones", {}).items()):
            yield step, self._read(self.folder / f"milestones/step-{step}/weights.safetensors", expected)

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        return self._read(self.folder / f"{name}.safetensors", self.facts[f"{name}_sha256"])

    def _read(self, path: Path, expected: str) -> dict[str, np.ndarray]:
        """The content of a file, checked before it is opened.

        Raises:
            ValueError: the file is not the one that the training stage wrote.
        """
        from safetensors.numpy import load_file

        found = sha256(path)
        if found != expected:
            raise ValueError(
                f"{path} has sha256 {found}, but facts.json beside it expects {expected}: the file was altered or cut. "
                f"{WAY_OUT}"
            )
        return load_file(path)

    def logged(self) -> set[str]:
        """The names of all metrics in `history.csv`."""
        with (self.folder / "history.csv").open(newline="") as file:
            return {*next(csv.reader(file))} - {"step"}

    def history(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps at which a metric was logged, and its values (`history.csv`); none if a training was too short."""
        with (self.folder / "history.csv").open(newline="") as file:
            logged = [(float(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]
        steps, values = np.array(logged).reshape(-1, 2).T
        return steps, values


def find_runs(folder: Path) -> list[Run]:
    """The finished runs in the folder of a stage, by name and then by seed."""
    runs = (
        Run(path, int(path.name.removeprefix("seed-")), path.parent.relative_to(folder).as_posix().removeprefix("."))
        for path in folder.rglob("seed-*")
    )
    return sorted(runs, key=lambda run: (run.name, run.seed))


@dataclass
class Series:
    """One line, cloud of points or row of bars of a figure; `low` and `high` are the 95 % interval over seeds."""

    name: str
    kind: Literal["line", "dashed", "points", "bars"]
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    labels: list[str] | None = None


@dataclass
class Figure:
    """A figure as data: the report draws it, so that all papers look alike and a new style reruns no evaluation.

    `y_scale` `log_error` is for percentages near 100: spaced by the logarithm of what is missing. The first figure of
    an arm is drawn large.
    """

    id: str
    title: str
    caption: str
    x_label: str
    y_label: str
    series: list[Series]
    x_scale: Literal["linear", "log"] = "linear"
    y_scale: Literal["linear", "log_error"] = "linear"


@dataclass
class Picture:
    """A small picture: a PNG file in base64, and what it shows, for those who cannot see it."""

    png: str
    alt: str

    @classmethod
    def of(cls, pixels: np.ndarray, alt: str) -> "Picture":
        """A picture of pixels, uint8 (height, width, 3).

        Raises:
            ValueError: there is no text for `alt`, or these are no pixels of a small picture.
        """
        from PIL import Image

        if not alt.strip():
            raise ValueError("a picture needs a text for those who cannot see it: alt is empty.")
        fits = pixels.ndim == 3 and pixels.shape[2] == 3 and 1 <= min(pixels.shape[:2])
        if pixels.dtype != np.uint8 or not fits or max(pixels.shape[:2]) > LARGEST_PICTURE:
            raise ValueError(
                f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 (height, width, 3), each side at most "
                f"{LARGEST_PICTURE}."
            )
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=0)  # the bytes depend on no version of zlib
        return cls(b64encode(file.getvalue()).decode(), alt)


@dataclass
class Exhibit:
    """A picture or a text of a gallery, with what it is; the pieces of a text are right, wrong, or not judged."""

    label: str
    picture: Picture | None = None
    text: list[tuple[str, bool | None]] = field(default_factory=list)


@dataclass
class Gallery:
    """Examples to look at: each row has exhibits that are shown side by side, such as a caption and two pictures."""

    id: str
    title: str
    caption: str
    rows: list[list[Exhibit]]


@dataclass
class Evaluation:
    """The result of an evaluation: numbers per seed, figures as data, further files by name, and examples.

    `not_computed`: names of numbers that a reader will look for, and why they are not among `metrics`.
    `predictor`: dotted name of what loads a model from the folder with `files`, if they are one; see `predictors`.
    """

    metrics: dict[int, dict[str, float]]
    figures: list[Figure] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    galleries: list[Gallery] = field(default_factory=list)
    not_computed: dict[str, str] = field(default_factory=dict)
    predictor: str = ""
