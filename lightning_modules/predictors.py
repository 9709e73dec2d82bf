"""What answers about a user's files with a trained model: read `Predictor`. Imports no torch.

    from lightning_modules.predictors import load

    predictor = load("data/results/tiny/committees/committees-digits")
    for line in predictor.answer("my-digit.png"):
        print(line)

The results of an arm have a file `predictor.json`, which the evaluate stage writes. It names what loads the model (the
evaluation's `predictor`), or says where the trained weights lie and how the model is built; then the model's class
names what answers with it (`PaperModule.predictor`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_modules.files import ROOT
from lightning_modules.runs import find_runs
from lightning_modules.tracking.model import Trained, located

NAME = "predictor.json"
STREAMED_SHARE = 0.875  # the default of `datamodules.streamed`


class Predictor:
    """The base of what answers; see `load` for what a paper's own class is called with.

    An answer is a dictionary of numbers and texts; it may also hold arrays, pictures as `PIL.Image`, and films and
    sounds of `datasets.video.films`. `refused` says of each file that answers cannot be chosen from why that is so.
    """

    refused: Sequence[str] = ()

    def begin(self, inputs: Sequence[Path], among: Path | None = None) -> list[Path]:
        """Look at all inputs before the first answer.

        Args:
            inputs: files and folders.
            among: what answers are chosen from, if the user said so.

        Returns:
            The inputs that are to be answered.

        Raises:
            ValueError: the inputs cannot be answered together.
        """
        if among is not None:
            raise ValueError(f"--among is {among}, but {type(self).__name__} chooses from nothing: leave it out")
        return list(inputs)

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The answers about one file.

        Args:
            path: the file.
            top: how many are wanted, where answers are a ranking.

        Raises:
            ValueError: the file cannot be read, or is not what the model takes.
        """
        raise NotImplementedError


def centre_share(data: Mapping[str, Any]) -> float | None:
    """The share of a picture's shorter edge that evaluation keeps, by the block `data` of `conf/`; null for all."""
    if data.get("centre_crop"):
        return float(data["centre_crop"][1])
    return float(data.get("centre_share", STREAMED_SHARE)) if "crop_scale" in data else None


def load(folder: str | Path) -> Predictor:
    """What answers with the model in the results of an arm, `data/results/<preset>/<paper>/<arm>`.

    The class that the evaluation names is called with the folder of the results; the one that the model's class names,
    with the trained module and the content of `predictor.json`.

    Raises:
        ValueError: the folder is no such folder, its model is not there, or nothing is written to answer with it.
    """
    folder = Path(folder)
    if not (folder / NAME).is_file():
        raise ValueError(
            f"{folder} holds no {NAME}; expected the results of an arm, such as "
            "data/results/tiny/committees/committees-digits, which `make repro` writes"
        )
    record = json.loads((folder / NAME).read_text())
    if "loader" in record:
        return located(record["loader"])(folder)
    runs = find_runs(ROOT / record["runs"])
    if not runs:
        raise ValueError(f"{record['runs']} has no trained weights, of which {folder / NAME} speaks; run `make repro`")
    module = Trained(runs[0].folder, record["model"]).module
    if not module.predictor:
        raise ValueError(
            f"{folder} has a {type(module).__name__}, and nothing is written that answers with it: give the class an "
            "attribute `predictor`, see lightning_modules/predictors.py"
        )
    return located(module.predictor)(module, record)


def is_text(path: Path) -> bool:
    """Whether a file is a text file by its name, in small letters or capitals."""
    return path.suffix.lower() == ".txt"


def lines_among(
    inputs: Sequence[Path], among: Path | None, what: str, beside: str = "videos"
) -> tuple[list[Path], list[str]]:
    """The inputs that are no text file, and the lines of the one text file among them, or of `among`.

    Args:
        inputs: files and folders.
        among: the text file, if the user named it apart.
        what: a line is, in the plural.
        beside: what the other files are, in the plural.

    Raises:
        ValueError: there is not exactly one text file, or it has no lines or is no text, or nothing else is there.
    """
    given = [*inputs, *([] if among is None else [among])]
    lists, others = [path for path in given if is_text(path)], [path for path in given if not is_text(path)]
    found = []
    for path in lists:
        try:
            found += [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as text: {error}. Save it as UTF-8.") from error
    if len(lists) != 1 or not found or not others:
        raise ValueError(
            f"got {len(others)} {beside} or folders, {len(lists)} text files and {len(found)} {what}; expected "
            f"{beside} or a folder of them, and one .txt file with {what}, one on each line"
        )
    return others, found
