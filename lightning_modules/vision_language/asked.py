"""Pictures, or other files, of a user with one text file among them."""

from collections.abc import Sequence
from pathlib import Path


def is_text(path: Path) -> bool:
    """Whether a file is a text file by its name, in small letters or capitals."""
    return path.suffix.lower() == ".txt"


def lines_among_pictures(
    inputs: Sequence[Path], among: Path | None, what: str, beside: str = "pictures"
) -> tuple[list[Path], list[str]]:
    """The pictures and folders among the inputs, and the lines of the one text file among them, or of `among`.

    Args:
        inputs: files and folders.
        among: the text file, if the user named it apart.
        what: a line is, in the plural.
        beside: what the other files are, in the plural.

    Raises:
        ValueError: there is not exactly one text file, or it has no lines or is no text, or there is no picture.
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
