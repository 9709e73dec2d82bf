"""Pictures with what is asked and said about them: files of LLaVA (Liu et al. 2023) and CapsFusion (Yu et al. 2023).

| form | files |
|---|---|
| `llava` | a JSON list of `image` and `conversations`, as `llava_v1_5_mix665k.json`, `blip_laion_cc_sbu_558k.json` |
| `img2dataset` | folders with `<key>.jpg` and its caption `<key>.txt`, as `img2dataset --output_format files` makes |

Read `prepare` first. CapsFusion is published as addresses with captions, which img2dataset fetches; `--caption_col
capsfusion` names the captions of the paper. Its folders are read one after another, and no more than a block of rows is
in memory.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from lightning_modules.datasets import pictures, storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.lists import objects
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count, Share

Rows = Annotated[int, Field(ge=1)]  # CapsFusion has more than `settings.Count` allows
Form = Literal["llava", "img2dataset"]
PLACEHOLDER = "<image>"  # where the picture stands in a question
ASKED, SAID = "human", "gpt"
SHOWN = 60  # letters of a value in a message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversation:
    """A picture file below the folder of pictures, if any, and its turns: a question and an answer each."""

    file: str | None
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

    Columns: `image`, as it is, and empty where there is none; `questions` and `answers`, lists of as many texts;
    `captions`, a list of one text: the caption, or the first answer of a conversation. Conversations without a picture
    stand behind the others.

    Args:
        folder: the prepared data set.
        form: of the official files, see above.
        file: the JSON file of the form `llava`; null for the other.
        images: folder of the pictures; `image` in the JSON file is relative to it.
        count: conversations or pictures that must be there; null for any number.
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
    if count is not None:
        there = len(found) if form == "llava" else sum(1 for _ in captioned_files(place))
        if there != count:
            raise ValueError(f"there are {there} conversations or pictures, expected {count}: is the copy complete?")
    with replace_folder(folder) as new:
        blocks = _blocks(islice(found, limit), place, max_broken)
        first = next(blocks, None)
        if first is None or not any(first["image"]):
            raise ValueError(f"no picture in {place} can be read: complete the copy.")
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
    """The conversations in the order of the file; those without a picture are counted.

    Raises:
        ValueError: the file cannot be read or is no JSON list, turns are not questions and answers in turn, a picture
            is no name of a file, or all lack one.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was altered or cut.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Give the JSON file of conversations.") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} is no list, expected LLaVA's form: objects with image and conversations.")
    found = [Conversation(_image(path, *each), _turns(path, *each)) for each in enumerate(entries)]
    without = sum(conversation.file is None for conversation in found)
    if without == len(found):
        raise ValueError(f"{path}: none of {len(entries)} entries has an image, expected objects with one.")
    if without:
        log.warning("%s: %d of %d conversations have no picture", path, without, len(entries))
    return found


def _image(path: Path, number: int, entry: Any) -> str | None:
    image = entry.get("image") if isinstance(entry, dict) else None
    if image is not None and not isinstance(image, str):
        raise ValueError(
            f"{path}: entry {number} has the image {shorten(repr(image), SHOWN)}, expected the name of one file, or no "
            "image."
        )
    return image


def _turns(path: Path, number: int, entry: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Questions and answers; as LLaVA does, an answer before the first question is left out, and the last question."""
    try:
        said = [(turn["from"], turn["value"]) for turn in entry["conversations"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: entry {number} has no turns with from and value ({error!r}).") from error
    if odd := [text for _, text in said if not isinstance(text, str)]:
        raise ValueError(
            f"{path}: entry {number} has a turn with the value {shorten(repr(odd[0]), SHOWN)}, expected a text."
        )
    speakers = [who for who, _ in said]
    said = said[1:] if speakers[:1] == [SAID] else said
    said = said[:-1] if speakers[-1:] == [ASKED] else said
    if not said or [who for who, _ in said] != [ASKED, SAID] * (len(said) // 2):
        raise ValueError(f"{path}: entry {number} is said by {speakers}, expected {ASKED} and {SAID} in turn.")
    texts = [text.replace(PLACEHOLDER, "").strip() if who == ASKED else text.strip() for who, text in said]
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def read_img2dataset(folder: Path) -> Iterator[Conversation]:
    """The pictures below a folder that have a caption beside them, one folder after another in the order of names.

    Raises:
        ValueError: there is none, or a caption is no text.
    """
    path = None
    for path in captioned_files(folder):
        yield Conversation(str(path.relative_to(folder)), (("", _caption(path.with_suffix(".txt"))),))
    if path is None:
        raise ValueError(f"{folder} has no .jpg with a .txt beside it: run img2dataset with --output_format files.")


def captioned_files(folder: Path) -> Iterator[Path]:
    """Files of pictures below a folder that have a caption beside them."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        names = set(files)
        for name in sorted(names):
            if name.endswith(".jpg") and f"{name.removesuffix('.jpg')}.txt" in names:
                yield Path(place) / name


def _caption(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as text: {error}. Save it as UTF-8.") from error


def _blocks(found: Iterable[Conversation], place: Path, max_broken: float) -> Iterator[dict[str, np.ndarray]]:
    alone: list[Conversation] = []  # without a picture
    rows = pictures.sound(_contents(found, place, max_broken, alone), max_broken)
    rows = chain(rows, (("", b"", conversation) for conversation in alone))  # all are known when the others are read
    while block := list(islice(rows, storage.ROW_GROUP)):
        turns = [conversation.turns for _, _, conversation in block]
        yield {
            "image": objects(content for _, content, _ in block),
            "captions": objects([own[0][1]] for own in turns),
            "questions": objects([asked for asked, _ in own] for own in turns),
            "answers": objects([said for _, said in own] for own in turns),
        }


def _contents(
    found: Iterable[Conversation], place: Path, max_broken: float, alone: list[Conversation]
) -> Iterator[tuple[Path, bytes, Conversation]]:
    skipped = Skipped("picture files", max_broken)
    for conversation in found:
        if conversation.file is None:
            alone.append(conversation)
            continue
        path = place / conversation.file
        try:
            content = path.read_bytes()
        except OSError as error:
            skipped.skip(ValueError(f"{path} cannot be read: {error.strerror}"))
            continue
        skipped.read()
        yield path, content, conversation
