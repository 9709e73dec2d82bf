"""Tables of questions about pictures, as benchmarks of models that see are published for VLMEvalKit.

Read `prepare` first. A table is separated by tabs and has `index`, `question`, `answer` and `image`, in base64, where
there are options `A`, `B` and so on, and possibly `category`, `hint` and others. As in open-compass/VLMEvalKit at
e8e78f0, a short `image` is the index of the row that has the picture, and one in brackets is a list of pictures; of
these the first is taken here, all of them there. Questions are asked as its `vlmeval/vlm/llava/llava.py` asks them.
"""

import ast
import base64
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np

from lightning_modules.datasets import pictures, storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.lists import objects
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.files import replace_folder
from lightning_modules.settings import Count, Share

LETTERS = "ABCDEFGHI"
NEEDED = ("index", "question", "answer")
EXCEL = (".xlsx", ".xls")
REFERENCE = 64  # letters of the index of another row at most
Benchmark = Literal["mmbench", "ccbench", "mme", "scienceqa", "hallusionbench", "mmmu"]
TOLD = ("mme", "hallusionbench")  # whose questions are answered by yes or no
CHINESE = re.compile("[\u4e00-\u9fff]")
HOW = {  # to answer: an open question, and one with options
    "en": ("Answer the question directly.", "Answer with the option's letter from the given choices directly."),
    "zh": ("请直接回答问题。", "请直接回答选项字母。"),
}


@dataclass(frozen=True)
class Question:
    """A row of a table: options by their letters, none where yes or no is asked; `more` has the further columns."""

    index: str
    question: str
    answer: str
    options: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)


def prepare(
    folder: Path,
    *,
    benchmark: Benchmark,
    file: str,
    limit: Count | None = None,
    mirror: str | None = None,
    cache: str,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards from a copy of your own; all rows are the split `test`.

    Columns: `image`, as it is; `questions` and `answers`, lists of one text: what is asked (`asked`) and the right
    answer; `table`, the row as JSON with the name of the benchmark, which `row_of` reads.

    Args:
        folder: the prepared data set.
        benchmark: decides how answers are scored.
        file: the table.
        limit: keep only the first so many questions; null keeps all.
        mirror: local folder that holds the table, as it is or below `benchmarks/`.
        cache: another place where it may lie.
        max_broken: largest share of questions without a picture that can be decoded, which are left out.

    Raises:
        DataUnavailable: the table is not there.
        ValueError: it does not have the form, or too many pictures are broken.
    """
    path = find("benchmarks", file, mirror=mirror, cache=Path(cache))
    rows = islice(_pictured(path, max_broken), limit)
    with replace_folder(folder) as new:
        blocks = _blocks(pictures.sound(rows, max_broken), benchmark)
        if (first := next(blocks, None)) is None:
            raise ValueError(f"no picture in {path} can be read: fetch the table again.")
        schema = infer_schema(first)
        written = {"test": storage.write_blocks(new, "test", chain([first], blocks), "jpeg", schema=schema)}
        storage.write_card(
            new, name=benchmark, splits=written, codec="jpeg", shape=None, num_classes=None,
            source=f"questions of {benchmark}, form of VLMEvalKit", schema=schema,
        )  # fmt: skip


def stand_in(folder: Path, *, rows: int, benchmark: Benchmark, file: str, **_: object) -> StandIn:
    """See `download.StandIn`: two questions about each drawn picture, in the form that the benchmark's scores need."""
    rows += rows % 2
    with (folder / file).open("w", newline="", encoding="utf-8") as opened:
        names = [*NEEDED, "image", "A", "B", "category", "l2-category"]
        table = csv.DictWriter(opened, names, delimiter="\t")
        table.writeheader()
        for number in range(rows):
            pair, place = divmod(number, 2)
            told = benchmark in TOLD
            table.writerow({
                "index": f"drawn_{pair}_0_{place}" if benchmark == "hallusionbench" else number,
                "question": "Is it red?",
                "answer": "Yes" if told else "A",
                "image": base64.b64encode(pictures.drawn_jpeg(pair)).decode(),
                "A": "" if told else "yes",
                "B": "" if told else "no",
                "category": "existence",
                "l2-category": "drawn",
            })  # fmt: skip
    return StandIn({"cache": str(folder), "limit": None}, {"test": None})


def read_questions(path: Path) -> list[Question]:
    """The questions of a table, in its order, without their pictures.

    Raises:
        ValueError: it cannot be read, a column or an index is missing or there twice, or it has no rows.
    """
    return [_question(row) for row in read_rows(path)]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, in its order.

    Raises:
        ValueError: see `read_questions`.
    """
    return read_table(path, NEEDED)


def read_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table that is separated by tabs, whatever the length of a cell; of questions, or of answers.

    Args:
        path: the table.
        needed: columns that it must have; `index` is one, and each row has its own.

    Raises:
        ValueError: it cannot be read, a column or an index is missing or there twice, or it has no rows.
    """
    if path.suffix.lower() in EXCEL:
        raise ValueError(
            f"{path} is a table of Excel, expected text with tabs: save it as .tsv, or set PRED_FORMAT=tsv where "
            "VLMEvalKit writes it."
        )
    limit = csv.field_size_limit(sys.maxsize)  # pictures, long answers; other tables of this process keep theirs
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}. Expected UTF-8 with tabs.") from error
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise ValueError(f"{path} has no rows, expected a line of names and a line for each question.")
    if missing := [name for name in needed if name not in rows[0]]:
        names = [str(name) for name in rows[0]]
        if len(names) == 1 and set(needed) <= set(names[0].replace('"', "").split(",")):
            raise ValueError(f"{path} has commas between its columns, expected tabs: save it with tabs, as .tsv.")
        raise ValueError(f"{path} has no column {', '.join(missing)}; there are {', '.join(names)}.")
    for row, times in Counter(row["index"] for row in rows).items():
        if times > 1:
            raise ValueError(f"{path} has the index {row} {times} times: each question has one row of its own.")
    return rows


def _question(row: Mapping[str, str]) -> Question:
    options = {letter: text for letter in LETTERS if (text := (row.get(letter) or "").strip())}
    rest = {name: text or "" for name, text in row.items() if name not in (*NEEDED, "image", *LETTERS) and name}
    return Question(row["index"], row["question"] or "", (row["answer"] or "").strip(), options, rest)


def asked(question: Question, benchmark: Benchmark) -> str:
    """What a model is asked: hint, question, options, and how to answer, as VLMEvalKit asks LLaVA-1.5.

    The last line is Chinese where the rest has a Chinese sign. Yes and no are asked by the question alone, which says
    what to answer.
    """
    if benchmark in TOLD:
        return question.question
    hint = question.more.get("hint", "").strip()
    lines = [hint] * bool(hint and hint != "nan") + [question.question]
    lines += [f"{letter}. {text}" for letter, text in question.options.items()]
    how = HOW["zh" if CHINESE.search("\n".join(lines)) else "en"][bool(question.options)]
    return "\n".join([*lines, how])


def row_of(table: str) -> tuple[str, Question]:
    """The name of the benchmark and the question that a row of the column `table` is of."""
    stored = json.loads(table)
    return stored.pop("benchmark"), Question(**stored)


def _pictured(path: Path, max_broken: float) -> Iterator[tuple[str, bytes, Question]]:
    """Name, picture and question of each row."""
    rows = read_rows(path)
    if "image" not in rows[0]:
        raise ValueError(f"{path} has no column image; there are {', '.join(rows[0])}.")
    cells = {row["index"]: row["image"] or "" for row in rows}
    skipped = Skipped("questions", max_broken)
    for row in rows:
        cell = cells[row["index"]]
        cell = cells.get(cell, cell) if len(cell) <= REFERENCE else cell
        try:
            content = base64.b64decode(_first(cell), validate=True)
        except ValueError as error:
            skipped.skip(ValueError(f"the picture of question {row['index']} in {path} is not base64: {error}"))
            continue
        skipped.read()
        yield f"the picture of question {row['index']} in {path}", content, _question(row)


def _first(cell: str) -> str:
    """The picture of a cell, or the first of its list."""
    if not cell.startswith("["):
        return cell
    try:
        found = ast.literal_eval(cell)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"it begins as a list and is none ({type(error).__name__})") from error
    if not found or not isinstance(found[0], str):
        raise ValueError("it is a list without a picture")
    return found[0]


def _blocks(rows: Iterator[tuple[str, bytes, Question]], benchmark: Benchmark) -> Iterator[dict[str, np.ndarray]]:
    while block := list(islice(rows, storage.ROW_GROUP)):
        yield {
            "image": objects(content for _, content, _ in block),
            "questions": objects([asked(question, benchmark)] for *_, question in block),
            "answers": objects([question.answer] for *_, question in block),
            "table": objects(json.dumps({"benchmark": benchmark} | asdict(question)) for *_, question in block),
        }
