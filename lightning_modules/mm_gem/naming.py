"""Labelled pictures whose classes have names, and what is said about each name: for zero-shot classification."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lightning_modules import rehearsal
from lightning_modules.datamodules.streamed import StreamedImages
from lightning_modules.datasets.splits import Part
from lightning_modules.settings import Count

WORDNET = re.compile(r"(n\d{8})\s+(.+)")
Prompts = Annotated[list[str], Field(min_length=1)]


class NamedPictures(StreamedImages):
    """Pictures of a prepared data set with labels, the names of their classes, and texts about these.

    Args:
        folder: a prepared data set with integer labels, its images encoded.
        seed: decides the rows of the splits.
        splits: see `StreamedImages`; nothing is trained.
        evaluation_batch_size: pictures that are looked at at a time.
        image_size: side of their squares, in pixels.
        centre_share: see `StreamedImages`.
        names: file of the names of all classes, see `read_names`.
        prompts: texts with `{}` where a name stands.

    Raises:
        ValueError: a split is unknown, or a prompt has no place for the name.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        evaluation_batch_size: Count,
        image_size: Count,
        centre_share: Annotated[float, Field(gt=0, le=1)] = 1.0,
        names: str,
        prompts: Prompts,
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, batch_size=1, evaluation_batch_size=evaluation_batch_size,
            image_size=image_size, crop_scale=[1.0, 1.0], centre_share=centre_share,
        )  # fmt: skip
        if odd := [text for text in prompts if text.count("{}") != 1 or re.search(r"[{}]", text.replace("{}", ""))]:
            raise ValueError(f"data.prompts has {odd[0]!r}, expected texts with one {{}} where the name stands.")
        self.names, self.prompts = Path(names), prompts

    def texts(self) -> list[list[str]]:
        """The texts about each class, in the order of the labels.

        Raises:
            ValueError: see `read_names`.
        """
        if not self.names.is_file() and rehearsal.replaces("names of classes", missing=True):
            names = [f"thing {number}" for number in range(self.num_classes)]
        else:
            names = read_names(self.names, self.num_classes)
        return [[prompt.format(name) for prompt in self.prompts] for name in names]


def read_names(path: Path, count: int) -> list[str]:
    """The names of classes, one on each line, in the order of the labels.

    A line may begin with a WordNet id, as in ImageNet's `LOC_synset_mapping.txt`: then lines are in the order of the
    ids, and the first of the names that commas part is taken.

    Raises:
        ValueError: the file cannot be read, has another number of names, or one twice, or ids are in another order.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.names is {path}, which cannot be read as text: {error}. Write the name of a class on each line."
        ) from error
    if len(lines) != count:
        raise ValueError(f"{path} has {len(lines)} names, but the data set has {count} classes: name each on a line.")
    found = [WORDNET.fullmatch(line) for line in lines]
    if not all(found):
        return lines
    ids = [match[1] for match in found]
    if ids != sorted(set(ids)):
        raise ValueError(f"{path} has WordNet ids that are not in ascending order: labels are their ranks.")
    return [match[2].split(",")[0].strip() for match in found]
