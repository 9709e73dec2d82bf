"""Pictures of a user with one text file among them."""

from collections.abc import Sequence
from pathlib import Path

from lightning_modules.predictors import lines_among


def lines_among_pictures(inputs: Sequence[Path], among: Path | None, what: str) -> tuple[list[Path], list[str]]:
    """The pictures and folders among the inputs, and the lines of the text file: see `predictors.lines_among`.

    Raises:
        ValueError: see there; what is missing is said of pictures.
    """
    try:
        return lines_among(inputs, among, what)
    except ValueError as error:
        raise ValueError(str(error).replace("videos or", "pictures or")) from error
