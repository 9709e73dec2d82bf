"""Pictures with what is asked and said about them: files of LLaVA (Liu et al. 2023) and CapsFusion (Yu et al. 2023).

| form | files |
|---|---|
| `llava` | a JSON list of `image` and `conversations`, as `llava_v1_5_mix665k.json`, `blip_laion_cc_sbu_558k.json` |
| `img2dataset` | folders with `<key>.jpg` and its caption `<key>.txt`, as `img2dataset --output_format files` makes |

Read `prepare` first. CapsFusion is published as addresses with captions, which img2dataset fetches; `--caption_col
capsfusion` names the captions of the paper.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from lightning_modules.datasets import pictures, storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count, Share

Rows = Annotated[int, Field(ge=1)]  # CapsFusion has more than `settings.Count` allows
Form = Literal["llava", "img2dataset"]
PLACEHOLDER = "<image>"  # where the picture stands in a question
ASKED, SAID = "human", "gpt"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversation:
    """A picture file below the folder of pictures, and its turns: a question and an answer each."""

    file: str
    turns: tuple[tuple[str, str], ...]


def prepare(
    folder: Path,
    *,
    form: Form,
    file: str | None,
    images: str,
    count: Count | None,
    limit: Rows | None,
    mirror: str | None = None,
    cache: str,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards from a copy of your own; all rows are the split `train`.

    Columns: `image`, as it is; `questions` and `answers`, lists of as many texts; `captions`, a list of one text: the
    caption, or the first answer of a conversation.

    Args:
        folder: the prepared data set.
        form: of the official files, see above.
        file: the JSON file of the form `llava`; null for the other.
        images: folder of the pictures; `image` in the JSON file is relative to it.
        count: conversations with a picture that must be there; null for any number.
        limit: keep only the first so many; null keeps all.
        mirror: local folder that holds all this, as it is or below `conversations/`.
        cache: another place where it may lie.
        max_broken: largest share of pictures that cannot be decoded or are missing, and are left out.

    Raises:
        DataUnavailable: a file or folder is not there.
        ValueError: a file does not have the official form, there is another number of conversations, or too many
            pictures are broken.
    """

    def copy(entry: str) -> Path:
        return find("conversations", entry, mirror=mirror, cache=Path(cache))

    if (form == "llava") != (file is not None):
        raise ValueError(f"file is {file!r} with form {form!r}: llava needs a JSON file, img2dataset has null.")
    place = copy(images)
    found = read_llava(copy(file)) if form == "llava" else read_img2dataset(place)
    if count is not None and len(found) != count:
        raise ValueError(f"there are {len(found)} pictures with texts, expected {count}: is the copy complete?")
    with replace_folder(folder) as new:
        blocks = _blocks(found[:limit], place, max_broken)
        if (first := next(blocks, None)) is None:
            raise ValueError(f"none of {len(found)} pictures in {place} can be read: complete the copy.")
        schema = infer_schema(first)
        written = {"train": storage.write_blocks(new, "train", chain([first], blocks), "jpeg", schema=schema)}
        storage.write_card(
            new, name=folder.name, splits=written, codec="jpeg", shape=None, num_classes=None,
            source=f"conversations about pictures, form {form}", schema=schema,
        )  # fmt: skip


def stand_in(folder: Path, *, rows: int, form: Form, file: str | None, **_: object) -> StandIn:
    """See `download.StandIn`: drawn pictures with two turns each."""
    place = folder / "pictures"
    place.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(rows):
        (place / f"{number:09d}.jpg").write_bytes(pictures.drawn_jpeg(number))
        if form == "img2dataset":
            (place / f"{number:09d}.txt").write_text(f"a drawn picture of sort {number}")
            continue
        turns = [(f"{PLACEHOLDER}\nWhat is it?", f"A drawing of sort {number}."), ("Of what number?", f"{number}")]
        said = [{"from": who, "value": text} for turn in turns for who, text in zip((ASKED, SAID), turn, strict=True)]
        entries.append({"id": f"{number}", "image": f"{number:09d}.jpg", "conversations": said})
    if file is not None:
        (folder / file).write_text(json.dumps(entries))
    return StandIn({"images": "pictures", "count": rows, "limit": None, "cache": str(folder)}, {"train": None})


def read_llava(path: Path) -> list[Conversation]:
    """The conversations with a picture, in the order of the file; those without one are left out and counted.

    Raises:
        ValueError: the file is no JSON list, or turns are not questions and answers in turn, or all lack a picture.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was altered or cut.") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} is no list, expected LLaVA's form: objects with image and conversations.")
    found = [
        Conversation(entry["image"], _turns(path, number, entry))
        for number, entry in enumerate(entries)
        if isinstance(entry, dict) and "image" in entry
    ]
    if not found:
        raise ValueError(f"{path}: none of {len(entries)} entries has an image, expected objects with one.")
    if without := len(entries) - len(found):
        log.warning("%s: %d of %d conversations have no picture and are left out", path, without, len(entries))
    return found


def _turns(path: Path, number: int, entry: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    try:
        said = [(turn["from"], turn["value"]) for turn in entry["conversations"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: entry {number} has no turns with from and value ({error!r}).") from error
    speakers = [who for who, _ in said]
    if not said or speakers != [ASKED, SAID] * (len(said) // 2):
        raise ValueError(f"{path}: entry {number} is said by {speakers}, expected {ASKED} and {SAID} in turn.")
    texts = [text.replace(PLACEHOLDER, "").strip() if who == ASKED else text.strip() for who, text in said]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def read_img2dataset(folder: Path) -> list[Conversation]:
    """The pictures below a folder that have a caption beside them, in the order of their names.

    Raises:
        ValueError: there is none, or a caption is no text.
    """
    files = sorted(path for path in folder.rglob("*.jpg") if path.with_suffix(".txt").is_file())
    if not files:
        raise ValueError(f"{folder} has no .jpg with a .txt beside it: run img2dataset with --output_format files.")
    captions = (_caption(path.with_suffix(".txt")) for path in files)
    return [
        Conversation(str(path.relative_to(folder)), (("", caption),))
        for path, caption in zip(files, captions, strict=True)
    ]


def _caption(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text: {error}. Save it as UTF-8.") from error


def _blocks(found: Sequence[Conversation], place: Path, max_broken: float) -> Iterator[dict[str, np.ndarray]]:
    rows = pictures.sound(_contents(found, place, max_broken), max_broken)
    while block := list(islice(rows, storage.ROW_GROUP)):
        turns = [conversation.turns for _, _, conversation in block]
        yield {
            "image": _objects(content for _, content, _ in block),
            "captions": _objects([own[0][1]] for own in turns),
            "questions": _objects([asked for asked, _ in own] for own in turns),
            "answers": _objects([said for _, said in own] for own in turns),
        }


def _contents(
    found: Iterable[Conversation], place: Path, max_broken: float
) -> Iterator[tuple[Path, bytes, Conversation]]:
    skipped = Skipped("picture files", max_broken)
    for conversation in found:
        path = place / conversation.file
        try:
            content = path.read_bytes()
        except OSError as error:
            skipped.skip(ValueError(f"{path} cannot be read: {error.strerror}"))
            continue
        skipped.read()
        yield path, content, conversation


def _objects(values: Iterable[Any]) -> np.ndarray:
    values = list(values)
    return np.fromiter(values, dtype=object, count=len(values))
