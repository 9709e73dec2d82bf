"""A blinded study: people see two clips side by side, and say which one looks more real. Imports no torch.

    python -m lightning_modules.fgla.study films/fgla films/fgla-global --out study

takes films of the same names from two folders and writes `study.html`, one file for the people, and `key.json`, which
says what was left and right and stays with you. The page needs no server and sends nothing; at the end it offers a file
of votes to be saved. Put all of these beside the key, and name the folder in `evaluate.study`: see `judged`. Folders of
films bear the names of arms, for votes are numbers of the arm whose films were the first.

The paper asked 700 people; how, could not be read. That one of two must be chosen, and the rest, is our choice.
"""

import argparse
import hashlib
import json
import sys
from base64 import b64encode
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datasets.splits import ORDER, permutation
from lightning_modules.files import replace_file
from lightning_modules.settings import STRICT, Natural, check

PAGE, KEY, VOTES = "study.html", "key.json", "votes-*.json"
TEMPLATE = Path(__file__).with_name("study_page.html")
PLACE = "{{study}}"  # in the template
SURE = 1.959964  # standard deviations of a 95 % interval
PERCENT = 100
Side = Literal["left", "right"]


class Pair(TypedDict):
    """Two films of one name, and where that of the first folder is shown."""

    __pydantic_config__ = STRICT
    name: str
    first: Side


class Key(TypedDict):
    """What the people do not see."""

    __pydantic_config__ = STRICT
    study: str
    first: str
    second: str
    pairs: Annotated[list[Pair], Field(min_length=1)]


class Vote(TypedDict):
    """Which of a pair was chosen."""

    __pydantic_config__ = STRICT
    pair: Natural
    chosen: Side


class Ballot(TypedDict):
    """All that one person said."""

    __pydantic_config__ = STRICT
    study: str
    subject: Annotated[str, Field(min_length=1)]
    votes: list[Vote]


def judged(folder: str, arm: str) -> dict[str, float]:
    """The votes of a study: how often films of the first folder were chosen, and by how many people mostly.

    Nothing where that folder does not bear the arm's name, see `not_of`.

    `votes/percent` with the ends of its 95 % interval (Wilson), `votes/low_percent` and `votes/high_percent`, which
    takes votes for independent; `votes/subjects`, and `votes/subjects_percent` of these who chose the first more often
    than the second, with its own interval, in which each person counts once. Who chose both equally often is half of
    one.

    Args:
        folder: with the key and the files of votes.
        arm: that is evaluated.

    Raises:
        ValueError: the key or a file of votes is not there, does not have its form, is of another study, is of one
            person for the second time, or has not one vote for each pair.
    """
    where = Path(folder)
    key: Key = _read(where / KEY, Key)
    files = sorted(where.glob(VOTES))
    if not files:
        raise ValueError(f"{where} holds no {VOTES}: put the files that the page of the study saved beside {KEY}.")
    shares: dict[str, float] = {}
    for file in files:
        ballot: Ballot = _read(file, Ballot)
        _check(file, ballot, key, shares)
        chosen = [vote["chosen"] == key["pairs"][vote["pair"]]["first"] for vote in ballot["votes"]]
        shares[ballot["subject"]] = sum(chosen) / len(chosen)
    if Path(key["first"]).name != arm:
        return {}
    votes = len(shares) * len(key["pairs"])
    liked = float(round(sum(shares.values()) * len(key["pairs"])))
    mostly = sum(1.0 if share > 0.5 else 0.5 if share == 0.5 else 0.0 for share in shares.values())
    return {**_share("votes", liked, votes), "votes/subjects": float(len(shares)),
            **_share("votes/subjects", mostly, len(shares))}  # fmt: skip


def not_of(folder: str, arm: str) -> str:
    """Why an arm has no votes of a study."""
    key: Key = _read(Path(folder) / KEY, Key)
    first, second = (Path(key[side]).name for side in ("first", "second"))
    return f"the study is of {first!r} and {second!r}, not of {arm!r}: votes are numbers of the first"


def _share(name: str, liked: float, of: int) -> dict[str, float]:
    prefix = "votes/" if name == "votes" else f"{name}_"
    low, high = wilson(liked, of)
    values = {"percent": liked / of, "low_percent": low, "high_percent": high}
    return {f"{prefix}{each}": PERCENT * value for each, value in values.items()}


def wilson(liked: float, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval)."""
    share, spread = liked / of, SURE**2 / of
    middle = (share + spread / 2) / (1 + spread)
    reach = SURE * sqrt(share * (1 - share) / of + spread / (4 * of)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _check(file: Path, ballot: Ballot, key: Key, before: Mapping[str, float]) -> None:
    if ballot["study"] != key["study"]:
        raise ValueError(f"{file} is of the study {ballot['study']!r}, but {KEY} beside it is of {key['study']!r}.")
    if ballot["subject"] in before:
        raise ValueError(f"{file} has the votes of {ballot['subject']!r} for the second time: keep one file of each.")
    pairs = sorted(vote["pair"] for vote in ballot["votes"])
    if pairs != list(range(len(key["pairs"]))):
        raise ValueError(
            f"{file} has votes for the pairs {pairs[:5]}... ({len(pairs)}), expected one for each of the "
            f"{len(key['pairs'])} pairs: leave out a file that was not finished."
        )


def _read(path: Path, form: type) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Take the file as the study wrote it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected what the study wrote.")
    return check(content, form, f"{path}: {form.__name__.lower()}")


def pairs_of(first: Path, second: Path, seed: int) -> tuple[Key, list[dict[Side, bytes]]]:
    """The key of a study, and what is shown left and right.

    The first folder's film is left in half of the pairs; of an odd number, the side of the last one is drawn, too.

    Args:
        first: folder with films (.mp4).
        second: folder with as many of the same names.
        seed: decides which films are left.

    Raises:
        ValueError: a folder has no films, or one has a film that the other has not.
    """
    films = [{path.name: path for path in sorted(folder.glob("*.mp4"))} for folder in (first, second)]
    if not films[0] or films[0].keys() != films[1].keys():
        lone = sorted(films[0].keys() ^ films[1].keys())
        raise ValueError(
            f"{first} has {len(films[0])} films (.mp4) and {second} has {len(films[1])}"
            f"{f', such as {lone[0]} in one alone' if lone else ''}: expected films of the same names in both."
        )
    names = list(films[0])
    half = -(-len(names) // 2)
    swapped = {int(n) for n in permutation(2 * half, seed, ORDER)[:half]}  # may hold one pair more than there is
    shown: list[dict[Side, bytes]] = []
    digest = hashlib.sha256()
    for number, name in enumerate(names):
        sides = films[::-1] if number in swapped else films
        shown.append({side: folder[name].read_bytes() for side, folder in zip(("left", "right"), sides, strict=True)})
        for content in shown[-1].values():
            digest.update(hashlib.sha256(content).digest())
    pairs: list[Pair] = [
        {"name": name, "first": "right" if number in swapped else "left"} for number, name in enumerate(names)
    ]
    return {"study": digest.hexdigest()[:16], "first": str(first), "second": str(second), "pairs": pairs}, shown


def page(study: str, shown: Sequence[Mapping[Side, bytes]], question: str) -> str:
    """The page: it knows the films, and not where they come from.

    Args:
        study: its name, which the files of votes repeat.
        shown: films of each pair.
        question: that is asked of each pair.
    """
    films = [{side: b64encode(content).decode() for side, content in pair.items()} for pair in shown]
    told = json.dumps({"study": study, "question": question, "pairs": films}, ensure_ascii=True)
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACE, told.replace("<", "\\u003c"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a study; see above."""
    parser = argparse.ArgumentParser(prog="python -m lightning_modules.fgla.study", description=__doc__.split("\n")[0])
    parser.add_argument("first", type=Path, help="folder with films (.mp4) of one way")
    parser.add_argument("second", type=Path, help="folder with films of the same names, of the other way")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {PAGE} and {KEY}")
    parser.add_argument("--question", default="Which clip looks more real?", help="asked of each pair")
    parser.add_argument("--seed", type=int, default=0, help="decides which film is left")
    given = parser.parse_args(arguments)
    try:
        key, shown = pairs_of(given.first, given.second, given.seed)
        given.out.mkdir(parents=True, exist_ok=True)
        if (given.out / KEY).exists() and _read(given.out / KEY, Key)["study"] != key["study"]:
            raise ValueError(f"{given.out / KEY} is of another study: give a folder of its own with --out.")
        with replace_file(given.out / PAGE) as path:
            path.write_text(page(key["study"], shown, given.question), encoding="utf-8")
        with replace_file(given.out / KEY) as path:
            path.write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(
        f"{given.out / PAGE} has {len(shown)} pairs: give it to people, and keep {KEY} and their votes in {given.out}"
    )


if __name__ == "__main__":
    main()
