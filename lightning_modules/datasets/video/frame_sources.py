"""Frames of prepared videos, whatever they are stored as: video files, pictures, or records; see `open_source`."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from lightning_modules.datasets.download import find
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.video import bair
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.showing import read_shown

Choose = Callable[[int], Int[np.ndarray, " shown"]]
Show = Callable[[UInt8[np.ndarray, "height width 3"]], UInt8[np.ndarray, "tall wide 3"]]


class FrameSource(Protocol):
    """Videos by their numbers."""

    def read(self, row: int, choose: Choose, show: Show) -> UInt8[np.ndarray, "shown tall wide 3"]:
        """The frames of a video that are chosen from their number, each as `show` makes it.

        Raises:
            BrokenVideo: it cannot be decoded.
        """
        ...


class VideoFiles(NamedTuple):
    """Whole video files, brought to `rate` frames a second if it is given."""

    folder: Path
    files: np.ndarray
    rate: float | None

    def read(self, row: int, choose: Choose, show: Show) -> UInt8[np.ndarray, "shown tall wide 3"]:
        """See `FrameSource`."""
        return read_shown(self.folder / self.files[row], choose, show, rate=self.rate).frames


class Pictures(NamedTuple):
    """Videos whose frames are picture files, listed in their order."""

    folder: Path
    files: np.ndarray

    def read(self, row: int, choose: Choose, show: Show) -> UInt8[np.ndarray, "shown tall wide 3"]:
        """See `FrameSource`."""
        files = self.files[row]
        return np.stack([show(self._picture(self.folder / files[number])) for number in choose(len(files))])

    def _picture(self, path: Path) -> UInt8[np.ndarray, "height width 3"]:
        from PIL import Image

        try:
            with Image.open(path) as picture:
                return np.array(picture.convert("RGB"))
        except OSError as error:
            raise BrokenVideo(f"{path} cannot be decoded: {error}") from error


class Records(NamedTuple):
    """Trajectories of BAIR's robot in TFRecords."""

    folder: Path
    files: np.ndarray
    at: np.ndarray
    length: np.ndarray
    camera: str

    def read(self, row: int, choose: Choose, show: Show) -> UInt8[np.ndarray, "shown tall wide 3"]:
        """See `FrameSource`."""
        path = self.folder / self.files[row]
        frames = bair.read_frames(path, int(self.at[row]), int(self.length[row]), self.camera)
        return np.stack([show(bair.pixels(frames[number])) for number in choose(len(frames))])


class Opened(NamedTuple):
    """The videos of some rows of a prepared split, and the number of each one's class; 0 where there are none."""

    source: FrameSource
    labels: Int[np.ndarray, " rows"]


def open_source(
    prepared: Path, split: str, rows: Int[np.ndarray, " rows"], *, mirror: str | None, rate: float | None = None
) -> Opened:
    """The videos of an index that `actions`, `bair` or `nuscenes` has written.

    Args:
        prepared: folder of the data set.
        split: as it was prepared.
        rows: of it.
        mirror: local folder with the copy.
        rate: frames a second that video files are brought to; null for their own.

    Raises:
        DataUnavailable: the copy is not there.
        ValueError: a row has several labels or is part of a file, or a rate is given for what has none.
    """
    facts, index = card(prepared), read_index(prepared, split)
    index = {name: column[rows] for name, column in index.items()}
    videos = facts["splits"][split]["videos"]
    folder = find(facts["name"], videos, mirror=mirror, cache=Path(facts["cache"]))
    if "start" not in index and rate is not None:
        raise ValueError(f"rate is {rate}, but {facts['name']} is stored as single frames: set it to null.")
    none = np.zeros(len(rows), np.int64)
    if "at" in index:
        return Opened(Records(folder, index["file"], index["at"], index["length"], facts["camera"]), none)
    if "files" in index:
        return Opened(Pictures(folder.parent, index["files"]), none)
    if facts["many"] or len(facts["classes"]) != 1 or not np.isnan(index["start"]).all():
        raise ValueError(
            f"{facts['name']} has rows with several labels or parts of videos; whole videos of one class each are "
            "needed, such as UCF-101, Kinetics, Something-Something or Objectron."
        )
    labels = np.array([int(labels[0]) for labels in index["labels"]], np.int64)
    return Opened(VideoFiles(folder, index["file"], rate), labels)
