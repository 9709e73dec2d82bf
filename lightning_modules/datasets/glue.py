"""GLUE (1804.07461): nine tasks on sentences and pairs of them, from the official TSV files.

A task's folder has `train.tsv` and `dev.tsv` (MNLI: `dev_matched.tsv` and `dev_mismatched.tsv`); the labels of the test
files are not public. Some lines of the official files have too few fields; how many may be left out is a setting.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa

from lightning_modules.datasets import tables
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.files import replace_folder
from lightning_modules.settings import Share


class Form(NamedTuple):
    """How the files of a task are read.

    Args:
        folder: of the official archive.
        text: column of the sentence, or the first one; its number where there is no header.
        second: column of the other one; null for tasks on one.
        label: column of the label.
        labels: in the order of their numbers; null for scores.
        dev: files to be judged on.
    """

    folder: str
    text: str | int
    second: str | None
    label: str | int
    labels: tuple[str, ...] | None
    dev: tuple[str, ...] = ("dev",)


Task = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
BINARY = ("0", "1")
ENTAILED = ("entailment", "not_entailment")
FORMS: dict[str, Form] = {
    "cola": Form("CoLA", 3, None, 1, BINARY),
    "sst2": Form("SST-2", "sentence", None, "label", BINARY),
    "mrpc": Form("MRPC", "#1 String", "#2 String", "Quality", BINARY),
    "stsb": Form("STS-B", "sentence1", "sentence2", "score", None),
    "qqp": Form("QQP", "question1", "question2", "is_duplicate", BINARY),
    "mnli": Form(
        "MNLI", "sentence1", "sentence2", "gold_label", ("entailment", "neutral", "contradiction"),
        ("dev_matched", "dev_mismatched"),
    ),
    "qnli": Form("QNLI", "question", "sentence", "label", ENTAILED),
    "rte": Form("RTE", "sentence1", "sentence2", "label", ENTAILED),
    "wnli": Form("WNLI", "sentence1", "sentence2", "label", BINARY),
}  # fmt: skip


def prepare(folder: Path, *, task: Task, mirror: str | None = None, cache: str, max_broken: Share = 0.0) -> None:
    """Writes a task: `id`, `text`, for pairs `second`, and `label` (int64), or `score` (float) of STS-B, 0 to 5.

    Args:
        folder: where shards and card go.
        task: a key of `FORMS`.
        mirror: local folder that holds the task's folder, as it is or below `glue`.
        cache: another place where it may lie.
        max_broken: largest share of a file's lines that have too few fields and are left out.

    Raises:
        DataUnavailable: the files are not there.
        ValueError: a file does not have the official form, or too many lines are broken.
    """
    form, schema = FORMS[task], schema_of(task)
    with replace_folder(folder) as new:
        written = {}
        for split in ("train", *form.dev):
            path = find("glue", f"{form.folder}/{split}.tsv", mirror=mirror, cache=Path(cache))
            rows = read(path, form, max_broken)
            written[split] = tables.write_blocks(new, split, tables.blocks_of(rows), schema)
        classes = None if form.labels is None else len(form.labels)
        tables.write_card(
            new, name=f"glue_{task}", splits=written, schema=schema, source="GLUE, official TSV files",
            num_classes=classes, classes=list(form.labels or ()), task=task,
        )  # fmt: skip


def schema_of(task: str) -> pa.Schema:
    """The columns of a task."""
    form = FORMS[task]
    second = [("second", pa.string())] if form.second else []
    said = ("score", pa.float32()) if form.labels is None else ("label", pa.int64())
    return pa.schema([("id", pa.int64()), ("text", pa.string()), *second, said])


def read(path: Path, form: Form, max_broken: float) -> Iterator[dict[str, object]]:
    """The rows of a file; quotes are letters there.

    Raises:
        ValueError: there is no such column or label, or too many lines are broken.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # sentences have other separators, too
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): get the file again.") from error
    header = None if isinstance(form.text, int) else lines.pop(0).lstrip("\ufeff").split("\t")
    places = {name: _place(path, column, header) for name, column in _columns(form).items()}
    number = broken = 0
    for line in lines:
        fields = line.split("\t")
        if len(fields) <= max(places.values()) or (header is not None and len(fields) < len(header)):
            broken += 1
            if broken > max_broken * len(lines):
                raise ValueError(
                    f"{path}: {broken} of {len(lines)} lines have too few fields, more than max_broken ({max_broken}) "
                    f"allows; the last: {line[:60]!r}. Get the file again, or raise the share."
                )
            continue
        row = {name: fields[place] for name, place in places.items()}
        yield {"id": number, **row, **_said(path, form, row.pop("said"))}
        number += 1


def _columns(form: Form) -> dict[str, str | int]:
    return {"text": form.text, **({"second": form.second} if form.second else {}), "said": form.label}


def _place(path: Path, column: str | int, header: list[str] | None) -> int:
    if header is None:
        return int(column)
    if column not in header:
        raise ValueError(f"{path} has the columns {', '.join(header)}, expected {column!r} among them.")
    return header.index(column)


def _said(path: Path, form: Form, value: str) -> dict[str, int | float]:
    if form.labels is None:
        try:
            return {"score": float(value)}
        except ValueError:
            raise ValueError(f"{path} has the score {value!r}, expected a number from 0 to 5.") from None
    if value not in form.labels:
        raise ValueError(f"{path} has the label {value!r}, expected one of {', '.join(form.labels)}.")
    return {"label": form.labels.index(value)}


HEADERS: dict[str, tuple[str, ...]] = {  # of the official files, for stand-ins; CoLA has none
    "sst2": ("sentence", "label"),
    "mrpc": ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
    "stsb": ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2",
             "score"),
    "qqp": ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
    "mnli": ("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse",
             "sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label"),
    "qnli": ("index", "question", "sentence", "label"),
    "rte": ("index", "sentence1", "sentence2", "label"),
    "wnli": ("index", "sentence1", "sentence2", "label"),
}  # fmt: skip
ROWS: Mapping[str, int] = {  # to train on; recalled, not re-read
    "cola": 8551, "sst2": 67_349, "mrpc": 3668, "stsb": 5749, "qqp": 363_846, "mnli": 392_702, "qnli": 104_743,
    "rte": 2490, "wnli": 635,
}  # fmt: skip


def stand_in(folder: Path, *, rows: int, task: Task, **_: object) -> StandIn:
    """See `download.StandIn`: short sentences in the official form."""
    form = FORMS[task]
    (folder / form.folder).mkdir()
    for split in ("train", *form.dev):
        lines = [] if task == "cola" else ["\t".join(HEADERS[task])]
        for number in range(rows):
            label = f"{number % 6}.000" if form.labels is None else form.labels[number % len(form.labels)]
            drawn = {
                form.text: f'He said "{number}" twice.',
                form.second: f"It was said {number} times.",
                form.label: label,
            }
            columns = range(4) if task == "cola" else HEADERS[task]
            lines.append("\t".join(str(drawn.get(column, number)) for column in columns))
        (folder / form.folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return StandIn({"cache": str(folder)}, {"train": ROWS[task]} | dict.fromkeys(form.dev))
