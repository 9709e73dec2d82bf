"""Text files that ask for clips: a caption in each line, and in between what is to be avoided and how the text guides.

    not: a green square
    guidance: 2
    a red circle moving left

A line that begins with `not:` is the negative prompt of all captions after it: logits are moved away from those of this
text, where they are otherwise moved away from those without any. `also:` is what all captions after it end with, and
`guidance:` how far logits are moved. `like:` names a video, beside the text file, whose motion and depth all captions
after it take over (stylisation). With nothing behind the colon, a line takes back what was said before. The paper
writes with one fixed negative prompt and one fixed ending (section 3.5).
"""

from math import isfinite
from pathlib import Path
from typing import NamedTuple

AVOIDED, ENDING, GUIDANCE, LIKE = "not", "also", "guidance", "like"
WORDS = (AVOIDED, ENDING, GUIDANCE, LIKE)


class Asked(NamedTuple):
    """A clip that is asked for.

    Attributes:
        caption: with its ending.
        avoided: the negative prompt; empty for none.
        guidance: None for the model's own.
        like: the video whose motion it has; None for none.
    """

    caption: str
    avoided: str = ""
    guidance: float | None = None
    like: Path | None = None


def read_asked(path: Path) -> list[Asked]:
    """The clips that a text file asks for.

    Raises:
        ValueError: it is no text, has no caption, or a guidance that is no number from 0 on.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}. Save it as UTF-8.") from error
    found, said = [], dict.fromkeys(WORDS, "")
    for line in lines:
        word, colon, rest = line.partition(":")
        if colon and word.lower() in WORDS:
            said[word.lower()] = rest.strip()
        else:
            caption = f"{line} {said[ENDING]}".strip()
            like = path.parent / said[LIKE] if said[LIKE] else None
            found.append(Asked(caption, said[AVOIDED], _number(path, said[GUIDANCE]), like))
    if not found:
        raise ValueError(f"{path} has {len(lines)} lines and no caption: write one on each line.")
    return found


def _number(path: Path, text: str) -> float | None:
    """The guidance that a line says, None for none."""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number) or number < 0:
        raise ValueError(f"{path} has the line 'guidance: {text}', expected a number from 0 on, such as 'guidance: 2'.")
    return number
