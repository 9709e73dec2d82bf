"""Few-shot tasks on pictures: from scenes of the captioned world, from digits, or the questions about mini-ImageNet.

All data modules give `episodes(ways, shots)`, `pictures(count)` and `named(count)`. Nothing is trained on them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from pytorch_lightning import LightningDataModule
from torch import Tensor

from lightning_modules.datasets import mini_imagenet, storage
from lightning_modules.datasets.pictures import decode
from lightning_modules.datasets.splits import Part, draw_splits
from lightning_modules.datasets.streaming import RowGroups
from lightning_modules.datasets.world import scenes
from lightning_modules.settings import Count
from lightning_modules.spae import lexicon
from lightning_modules.spae.documents import Draws

EPISODES = 103  # purpose of random words, beside those of `documents`
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = {"color": scenes.COLORS, "shape": scenes.SHAPES, "size": scenes.SIZES, "place": scenes.PLACES}


class PictureEpisode(NamedTuple):
    """A task: pictures of the context and the query, which is last; the context's names; the query's name.

    `keys` tell pictures apart that come again in other tasks; None where none do.
    """

    pictures: UInt8[Tensor, "pictures 3 size size"]
    names: list[str]
    answer: str
    keys: list[int] | None = None

    @property
    def labels(self) -> list[str]:
        """The names of all classes, in the order in which they come."""
        return list(dict.fromkeys(self.names))


class DrawnEpisodes(LightningDataModule):
    """Tasks drawn from the labelled pictures of a split.

    Args:
        folder: a prepared data set.
        seed: decides rows and tasks.
        splits: `test`, its source and number of rows, see `datasets.splits.draw_splits`.
        count: tasks of each number of ways and shots.

    Raises:
        ValueError: the splits are others.
    """

    def __init__(self, *, folder: Path, seed: int, splits: dict[str, Part], count: Count):
        super().__init__()
        check_test_alone(splits)
        self.folder, self.seed, self.splits, self.count = folder, seed, splits, count

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """The pictures of the split (`image`, rows h w channels, uint8), and the numbers of their classes (`class`)."""
        raise NotImplementedError

    def called(self, number: int) -> str:
        """The name of a class."""
        raise NotImplementedError

    def shaped(self, images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n size size 3"]:
        """Pictures as the tokenizer reads them."""
        return images

    def taken(self, rows: Sequence[int] | slice) -> UInt8[Tensor, "pictures 3 size size"]:
        """Some pictures of the split."""
        images = self.shaped(self.columns["image"][rows])
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def episodes(self, ways: int, shots: int) -> Iterator[PictureEpisode]:
        """The tasks of a number of ways and shots, the same each time.

        Raises:
            ValueError: there are fewer classes, or fewer pictures of them.
        """
        there, counts = np.unique(self.columns["class"], return_counts=True)
        there = there[counts > shots]
        if len(there) < ways:
            raise ValueError(
                f"{len(there)} classes have more than {shots} pictures each, expected {ways} at least: ask for fewer "
                "ways or shots, or for more rows."
            )
        draws = Draws((self.seed, EPISODES), (ways, shots))
        for _ in range(self.count):
            yield self._episode(draws, draws.distinct(there, ways), shots)

    def _episode(self, draws: Draws, classes: np.ndarray, shots: int) -> PictureEpisode:
        asked = draws.between(0, len(classes) - 1)
        drawn = [draws.distinct(np.flatnonzero(self.columns["class"] == each), shots + 1) for each in classes]
        order = np.repeat(np.arange(len(classes)), shots)[draws.order(len(classes) * shots)]
        taken = [0] * len(classes)
        rows = []
        for number in order:
            rows.append(int(drawn[number][taken[number]]))
            taken[number] += 1
        rows.append(int(drawn[asked][shots]))
        names = self.names_of(draws, classes)
        return PictureEpisode(self.taken(rows), [names[number] for number in order], names[asked], rows)

    def names_of(self, draws: Draws, classes: np.ndarray) -> list[str]:
        """What the classes of a task are called in it."""
        return [self.called(int(number)) for number in classes]

    def pictures(self, count: int) -> UInt8[Tensor, "pictures 3 size size"]:
        """The first pictures of the split."""
        return self.taken(slice(count))

    def named(self, count: int) -> list[str]:
        """The names of the classes of each of them."""
        return [self.called(int(number)) for number in self.columns["class"][:count]]


class SceneEpisodes(DrawnEpisodes):
    """Tasks drawn from scenes of the captioned world: the class of a picture is an attribute of its first object.

    Args:
        folder: a prepared data set with raw pictures and the column `attribute`.
        seed: decides rows and tasks.
        splits: `test`, its source and number of rows, see `datasets.splits.draw_splits`.
        attribute: what the classes differ in: color, shape, size or place.
        labels: `names` calls a class what the captions call it; `held_out` by a word that was no label in any text
            which the language model learnt from, drawn anew for each task.
        count: tasks of each number of ways and shots.

    Raises:
        ValueError: the splits are others, or the attribute has no names.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        attribute: Literal["color", "shape", "size", "place"],
        labels: Literal["names", "held_out"],
        count: Count,
    ):
        super().__init__(folder=folder, seed=seed, splits=splits, count=count)
        self.attribute, self.labels = attribute, labels

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """The pictures of the split, and their classes.

        Raises:
            ValueError: the data set has no raw pictures, or no such attribute.
        """
        source, rows = draw_splits(storage.card(self.folder)["splits"], self.splits, self.seed)["test"]
        stored = storage.read(self.folder, source)
        if self.attribute not in stored or stored["image"].dtype != np.uint8:
            raise ValueError(
                f"{self.folder} has the columns {', '.join(stored)}, expected raw pictures and {self.attribute!r}: "
                "name a "
                "data set of scenes."
            )
        classes = stored[self.attribute][rows]
        return {"image": stored["image"][rows], "class": classes if classes.ndim == 1 else classes[:, 0]}

    def called(self, number: int) -> str:
        """What the captions call a class."""
        return NAMES[self.attribute][number]

    def names_of(self, draws: Draws, classes: np.ndarray) -> list[str]:
        """The captions' names, or words that were kept out of training."""
        if self.labels == "names":
            return super().names_of(draws, classes)
        return [str(word) for word in draws.distinct(np.array(lexicon.HELD_OUT), len(classes))]


class DigitEpisodes(DrawnEpisodes):
    """Tasks drawn from digits, whose names are those of the numbers: MNIST for a language model.

    Args:
        folder: a prepared data set with raw grey pictures and `label`, such as `datasets.mnist`.
        seed: decides rows and tasks.
        splits: `test`, its source and number of rows, see `datasets.splits.draw_splits`.
        image_size: side that pictures are scaled to.
        count: tasks of each number of ways and shots.

    Raises:
        ValueError: the splits are others, or the data set has no raw pictures with labels from 0 to 9.
    """

    def __init__(self, *, folder: Path, seed: int, splits: dict[str, Part], image_size: Count, count: Count):
        super().__init__(folder=folder, seed=seed, splits=splits, count=count)
        self.image_size = image_size

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """The pictures of the split, and their digits.

        Raises:
            ValueError: see above.
        """
        source, rows = draw_splits(storage.card(self.folder)["splits"], self.splits, self.seed)["test"]
        stored = storage.read(self.folder, source)
        raw = "image" in stored and stored["image"].dtype == np.uint8
        if not raw or "label" not in stored or int(stored["label"].max()) >= len(DIGITS):
            raise ValueError(
                f"{self.folder} has the columns {', '.join(stored)}, expected raw pictures and labels from 0 to 9: "
                "name a data set of digits."
            )
        return {"image": stored["image"][rows], "class": stored["label"][rows]}

    def called(self, number: int) -> str:
        """The word for a digit."""
        return DIGITS[number]

    def shaped(self, images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n size size 3"]:
        """Pictures of the tokenizer's size; grey is red, green and blue alike."""
        return np.stack([centred(np.broadcast_to(x, (*x.shape[:2], 3)), self.image_size) for x in images])


class MiniImageNetEpisodes(LightningDataModule):
    """The questions about mini-ImageNet, their pictures cut to squares of one size.

    Args:
        folder: a data set that `datasets.mini_imagenet` prepared.
        seed: part of the interface; the questions are the published ones.
        splits: `test`, whose source has the pictures that others are written after.
        image_size: side of the pictures.
        count: first questions of each setting; null for all.

    Raises:
        ValueError: the splits are others.
    """

    def __init__(self, *, folder: Path, seed: int, splits: dict[str, Part], image_size: Count, count: Count | None):
        super().__init__()
        check_test_alone(splits)
        self.folder, self.seed, self.splits = folder, seed, splits
        self.image_size, self.count = image_size, count

    def episodes(self, ways: int, shots: int) -> Iterator[PictureEpisode]:
        """The questions of a number of ways and shots."""
        for asked in mini_imagenet.episodes(self.folder, f"{ways}_way_{shots}_shot", self.count):
            shown = [*asked.pictures, asked.query]
            yield PictureEpisode(self._squares(shown), list(asked.names), asked.answer)

    def pictures(self, count: int) -> UInt8[Tensor, "pictures 3 size size"]:
        """The first pictures of the split."""
        rows = RowGroups(self.folder, self.splits["test"]["source"], ["image"])
        stored = rows[np.arange(min(count, len(rows)))]["image"]
        return self._squares([decode(image) for image in stored])

    def named(self, count: int) -> list[str]:
        """The names of the first pictures are not stored by themselves: none."""
        return []

    def _squares(self, shown: Sequence[UInt8[np.ndarray, "h w 3"]]) -> UInt8[Tensor, "pictures 3 size size"]:
        return torch.from_numpy(np.stack([centred(image, self.image_size) for image in shown]).transpose(0, 3, 1, 2))


def check_test_alone(splits: Mapping[str, Part]) -> None:
    """Refuse splits to train on.

    Raises:
        ValueError: there is another split than `test`, or none.
    """
    if set(splits) != {"test"}:
        raise ValueError(f"splits has {list(splits)}, expected test alone: nothing is trained on the tasks.")


def centred(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The middle square of a picture, scaled to a size."""
    from PIL import Image

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = Image.fromarray(image[top : top + side, left : left + side])
    return np.array(middle.resize((size, size), Image.Resampling.BICUBIC))
