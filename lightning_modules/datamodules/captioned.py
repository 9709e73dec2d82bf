"""Images, or their grid features, with several captions each; a batch depends on its place in the epochs alone."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
import torch
from jaxtyping import Int, UInt8
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datasets import storage
from lightning_modules.datasets.pictures import decode
from lightning_modules.datasets.splits import ORDER, WHOLE, Part, Portion, draw_splits, permutation
from lightning_modules.datasets.streaming import RowGroups
from lightning_modules.datasets.tokenizers import TextTokenizer, published_tokenizer, tokenizer_called
from lightning_modules.settings import STRICT, Count

HARD = ("verb", "color", "noun", "number")  # what differs in false captions: the official files of unified-t2i-i2t
PROMPT, CLIP_LENGTH = "A photo depicts ", 77  # of the official code, and of CLIP
Columns = dict[str, Tensor | np.ndarray]


class Scenes(TypedDict):
    """Which columns label a scene, and which cells of it may hold something."""

    __pydantic_config__ = STRICT
    cells: list[int]
    attributes: dict[str, Count]  # column -> number of values


class Drawing(TypedDict):
    """Whose first captions pictures are drawn for: so many images, of these sources in this order.

    `hard` is the folder of the official files of false captions, `verb.pkl` and so on; null for none.
    """

    __pydantic_config__ = STRICT
    sources: Annotated[list[str], Field(min_length=1)]
    images: Count
    hard: NotRequired[str | None]


class PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers and texts, and nothing that runs code."""

    def find_class(self, module: str, name: str) -> type:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"the file holds an object of {module}.{name}, expected dictionaries, lists and texts only.")


class CaptionedImages(LightningDataModule):
    """Resident images with captions as ids.

    Batches have `ids`, `images` (uint8) or `features`, `references` (batch captions length) and `num_references`; of
    labelled scenes also `scene` (batch cells attributes), in which the number of values says that nothing is there, and
    its columns (`scene/<name>`).

    Args:
        folder: a prepared data set with the columns `image` or `features`, and `captions`.
        seed: decides rows and orders.
        splits: for each split its source and number of rows, see `datasets.splits.draw_splits`.
        tokenizer: `world`, or the name of a published one.
        text_length: places of a caption, start and end included; longer ones are cut. What is learnt from ends in
            padding, as in the official code, so that a caption which was cut has no end; what is drawn keeps its end.
        full_stop: end every caption with one, as the official code does.
        reference_length: tokens of the captions that a reward compares with, see `references`; null for all of them.
        image_size: side that encoded images are scaled to, when their batch is made; null for raw images, or to leave
            images out where there are features.
        scorer_tokenizer: of a text-image scorer with words of its own: batches then have `scorer_ids`, of the captions
            with CLIP's prompt.
        scenes: labels to read, or null.
        drawing: of the published evaluation of drawn pictures, see `drawing_batches`; null for none.

    Raises:
        ValueError: a split is unknown, or captions are missing.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        tokenizer: str,
        text_length: Count,
        batch_size: Count,
        evaluation_batch_size: Count,
        full_stop: bool = False,
        reference_length: Count | None = None,
        image_size: Count | None = None,
        scorer_tokenizer: str | None = None,
        scenes: Scenes | None = None,
        drawing: Drawing | None = None,
    ):
        super().__init__()
        if "train" not in splits or not set(splits) <= {"train", "val", "test"}:
            raise ValueError(f"splits has {list(splits)}, expected train and possibly val and test.")
        self.folder, self.seed, self.splits, self.scenes = folder, seed, splits, scenes
        self.tokenizer_name, self.text_length, self.full_stop = tokenizer, text_length, full_stop
        self.reference_length = reference_length
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.image_size, self.scorer_tokenizer, self.drawing = image_size, scorer_tokenizer, drawing

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What makes ids of words."""
        return tokenizer_called(self.tokenizer_name)

    @cached_property
    def columns(self) -> dict[str, Columns]:
        """The rows of each split as tensors; encoded images as bytes."""
        rows = draw_splits(storage.card(self.folder)["splits"], self.splits, self.seed)
        stored = {source: storage.read(self.folder, source) for source in {source for source, _ in rows.values()}}
        return {
            split: self._tensors({name: values[index] for name, values in stored[source].items()})
            for split, (source, index) in rows.items()
        }

    def _tensors(self, columns: Mapping[str, np.ndarray]) -> Columns:
        found: Columns = {"ids": torch.from_numpy(columns["id"]), **self._captions(columns)}
        found["captions"] = columns["captions"]
        found["references"][..., -1] = self.tokenizer.pad_id
        if "features" in columns:
            found["features"] = torch.from_numpy(columns["features"])
        raw = columns["image"].dtype == np.uint8
        wanted = self.image_size is not None
        if (raw and wanted) or not (raw or wanted or "features" in columns):
            raise ValueError(
                f"image_size is {self.image_size}, but the images of {self.folder} are {'raw' if raw else 'encoded'}: "
                "raw ones take null, encoded ones without features a size."
            )
        if raw:
            found["images"] = torch.from_numpy(np.ascontiguousarray(columns["image"].transpose(0, 3, 1, 2)))
        elif wanted:
            found["images"] = columns["image"]
        if self.scenes is not None:
            found["scene"] = torch.from_numpy(label_scenes(columns, self.scenes))
            for name in sorted({"place", "cell", *self.scenes["attributes"]}):
                found[f"scene/{name}"] = torch.from_numpy(columns[name])
        return found

    def _captions(self, columns: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        if "captions" not in columns:
            raise ValueError(f"{self.folder} has the columns {', '.join(columns)}, expected `captions` among them.")
        counts = np.array([len(captions) for captions in columns["captions"]])
        if empty := columns["id"][counts == 0].tolist():
            raise ValueError(
                f"{self.folder}: {len(empty)} images have no caption (ids {empty[:5]}): leave them out of the data set."
            )
        flat = self._said([text for captions in columns["captions"] for text in captions])
        token_ids, _ = self.tokenizer(flat, self.text_length)
        there = np.arange(counts.max()) < counts[:, None]

        def by_image(ids: np.ndarray, padding: int) -> Tensor:
            rows = np.full((*there.shape, ids.shape[1]), padding)
            rows[there] = ids
            return torch.from_numpy(rows)

        found = {"references": by_image(token_ids, self.tokenizer.pad_id), "num_references": torch.from_numpy(counts)}
        if self.scorer_tokenizer is not None:
            tokenizer = published_tokenizer(self.scorer_tokenizer)
            prompted, _ = tokenizer([PROMPT + text for text in flat], CLIP_LENGTH)
            found["scorer_ids"] = by_image(prompted, tokenizer.pad_id)
        return found

    def _said(self, captions: Sequence[str]) -> list[str]:
        return [f"{text}." if self.full_stop else text for text in captions]

    def references(self, split: str) -> dict[int, list[list[int]]]:
        """Ids of all captions of each image of a split, by the image's id: what a reward compares with.

        Only the first `reference_length` tokens of a caption are kept; one that is longer has no end.
        """
        rows, length = self.columns[split], self.reference_length
        encode = self.tokenizer.backend.encode
        return {
            image: [encode(text).ids[:length] for text in self._said(captions)]
            for image, captions in zip(rows["ids"].tolist(), rows["captions"], strict=True)
        }

    def texts(self, split: str) -> UInt8[Tensor, "rows captions bytes"]:
        """All captions of each image of a split, whole, for scores: UTF-8 with zeros behind."""
        rows = [[text.encode() for text in captions] for captions in self.columns[split]["captions"]]
        found = np.zeros((len(rows), max(map(len, rows))), f"S{max(len(text) for row in rows for text in row)}")
        for row, captions in zip(found, rows, strict=True):
            row[: len(captions)] = captions
        return torch.from_numpy(found.view(np.uint8).reshape(*found.shape, -1))

    def train_dataloader(self) -> DataLoader:
        """The training batches, the epoch set by Lightning."""
        batches = OrderedBatches(self.columns["train"], self.batch_size, self.seed, self.image_size, portion(self))
        return DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows."""
        rows = self.columns[split]
        for start in range(0, len(rows["ids"]), self.evaluation_batch_size):
            yield take(
                rows, np.arange(start, min(start + self.evaluation_batch_size, len(rows["ids"]))), self.image_size
            )

    def drawing_batches(self) -> Iterator[dict[str, Any]]:
        """First captions that pictures are drawn for, read as they are needed; none without `drawing`.

        Batches have `ids`, `references` and possibly `scorer_ids` as ever, one caption each, and `stored`: the images
        in their own sizes, a list of uint8 (height, width, 3).

        Raises:
            ValueError: a source is not stored, or there are fewer images than are to be drawn.
        """
        if self.drawing is None:
            return
        sources, left = self.drawing["sources"], self.drawing["images"]
        groups = [RowGroups(self.folder, source, ["id", "image", "captions"]) for source in sources]
        if (there := sum(map(len, groups))) < left:
            raise ValueError(f"drawing asks for {left} images, but {', '.join(sources)} of {self.folder} have {there}.")
        for group in groups:
            count = min(len(group), left)
            left -= count
            for start in range(0, count, self.evaluation_batch_size):
                rows = group[np.arange(start, min(start + self.evaluation_batch_size, count))]
                first = np.fromiter((said[:1] for said in rows["captions"]), dtype=object, count=len(rows["id"]))
                captions = self._captions({"id": rows["id"], "captions": first})
                raw = rows["image"].dtype == np.uint8
                stored = list(rows["image"]) if raw else [decode(image) for image in rows["image"]]
                yield {"ids": torch.from_numpy(rows["id"]), "stored": stored, **captions}

    def hard_captions(self) -> dict[str, list[tuple[int, Int[Tensor, "captions length"]]]]:
        """Pictures with false captions that differ from the right one in one word, for each kind of word.

        Each is the place of the picture in `drawing_batches`, and ids for the text-image scorer, the right caption
        first. Without `drawing.hard` there are none.

        Raises:
            ValueError: a file has another form, or a picture that is not drawn.
        """
        if self.drawing is None or self.drawing.get("hard") is None:
            return {}
        tokenizer, found = published_tokenizer(self.scorer_tokenizer), {}
        for kind in HARD:
            path = Path(self.drawing["hard"], f"{kind}.pkl")
            with path.open("rb") as file:
                rows = PlainUnpickler(file).load()
            found[kind] = []
            for name, captions in rows.items():
                number = int(name.removeprefix("img")) - 1
                if not 0 <= number < self.drawing["images"]:
                    raise ValueError(f"{path} has {name!r}, but {self.drawing['images']} pictures are drawn.")
                ids, _ = tokenizer([PROMPT + caption["caption"] for caption in captions], CLIP_LENGTH)
                found[kind].append((number, torch.from_numpy(ids)))
        return found


def label_scenes(columns: Mapping[str, np.ndarray], scenes: Scenes) -> np.ndarray:
    """The value of each attribute at each cell, int64 (rows, cells, attributes); the number of values for nothing."""
    nothing = np.array(list(scenes["attributes"].values()))
    labels = np.tile(nothing, (len(columns["cell"]), len(scenes["cells"]), 1))
    for place, cell in enumerate(scenes["cells"]):
        rows, slots = np.nonzero(columns["cell"] == cell)
        for number, name in enumerate(scenes["attributes"]):
            if columns[name].ndim == 1:  # of the whole scene
                labels[:, place, number] = columns[name]
            else:
                labels[rows, place, number] = columns[name][rows, slots]
    return labels


class OrderedBatches(Dataset):
    """Batches of rows; item `(epoch, place)` depends on the seed and that pair only. The rest of an epoch is left out.

    Raises:
        ValueError: the batch is larger than the data, or cannot be cut into equal parts.
    """

    def __init__(
        self,
        columns: Columns,
        batch_size: int,
        seed: int,
        image_size: int | None = None,
        portion: Portion = WHOLE,
    ):
        self.columns, self.batch_size, self.seed, self.image_size = columns, batch_size, seed, image_size
        self.portion, self.places = portion, portion.places(len(columns["ids"]), batch_size)

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        epoch, place = at
        order = permutation(len(self.columns["ids"]), self.seed, ORDER, 0, epoch)
        return take(self.columns, order[self.portion.window(place, self.batch_size)], self.image_size)


def take(columns: Columns, rows: np.ndarray, image_size: int | None) -> dict[str, Tensor]:
    """A batch of rows; encoded images are decoded, and made square."""
    batch = {name: x[torch.from_numpy(rows)] for name, x in columns.items() if isinstance(x, Tensor)}
    if isinstance(encoded := columns.get("images"), np.ndarray):
        images = [squashed(decode(image), image_size) for image in encoded[rows]]
        batch["images"] = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())
    return batch


def squashed(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """The whole image as a square, nothing cut off: grid features describe all of it (X-LXMERT's code, Lanczos)."""
    from PIL import Image

    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))
