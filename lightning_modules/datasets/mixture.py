"""A data set that has others as its parts, each in a folder of its own: what one network learns several tasks from.

The fingerprint of a training covers the card, and the card covers those of the parts.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_modules import settings
from lightning_modules.datasets import storage
from lightning_modules.datasets.download import StandIn
from lightning_modules.files import replace_folder


def prepare(folder: Path, *, parts: dict[str, dict[str, Any]]) -> None:
    """Prepares every part into `folder/<name>`.

    Args:
        folder: of the whole.
        parts: for each name what `conf/dataset` says of such a data set: `_target_`, its `prepare`, and its settings.

    Raises:
        DataUnavailable: the files of a part are not there.
        ValueError: there is no part, or its name or settings do not hold.
    """
    check_parts(parts)
    prepares = {name: settings.bind(block, f"parts.{name}") for name, block in parts.items()}
    with replace_folder(folder) as new:
        for name, each in prepares.items():
            each(new / name)
        cards = {name: storage.card(new / name) for name in parts}
        facts = {"name": "_".join(parts), "splits": smallest(cards), "content_sha256": contents(cards), "parts": cards}
        (new / "card.json").write_text(json.dumps(facts, indent=2) + "\n")


def smallest(cards: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Of each split the rows of the smallest part that has it."""
    splits: dict[str, int] = {}
    for card in cards.values():
        for split, told in card["splits"].items():
            rows = told["rows"] if isinstance(told, Mapping) else told
            splits[split] = min(rows, splits.get(split, rows))
    return splits


def contents(cards: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The digests of all splits of all parts, by `<part>/<split>`."""
    return {
        f"{name}/{split}": told["sha256"] if isinstance(told, Mapping) else card["content_sha256"][split]
        for name, card in cards.items()
        for split, told in card["splits"].items()
    }


def stand_in(folder: Path, *, rows: int, parts: Mapping[str, Mapping[str, Any]], **_: object) -> StandIn:
    """See `download.StandIn`: the stand-in of each part that has one; what is drawn here stays as it is."""
    found: dict[str, dict[str, Any]] = {}
    whole: dict[str, int | None] = {}
    for name, block in parts.items():
        module = import_module(block["_target_"].rpartition(".")[0])
        found[name] = dict(block)
        if hasattr(module, "stand_in"):
            (folder / name).mkdir()
            made = module.stand_in(folder / name, rows=rows, **{k: v for k, v in block.items() if k != "_target_"})
            found[name] |= made.config
            for split, count in made.whole.items():
                known = [each for each in (count, whole.get(split)) if each is not None]
                whole[split] = min(known, default=None)
    return StandIn({"parts": found}, whole)


def check_parts(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what cannot be a part.

    Raises:
        ValueError: there is none, its name cannot be that of a folder, or nothing prepares it.
    """
    if not parts:
        raise ValueError("parts is empty, expected at least one data set: parts.<name> with its `_target_`.")
    for name, block in parts.items():
        if not settings.NAME.fullmatch(name):
            raise ValueError(f"parts has the name {name!r}, expected letters, digits, `_`, `.` and `-` only.")
        if not isinstance(block, Mapping) or not isinstance(block.get("_target_"), str):
            raise ValueError(f"parts.{name} has no `_target_`, expected the `prepare` of a data set.")
