"""Videos with sentences, questions or classes as one index: `prepare`; `annotation_files` has the forms that it reads.

Videos are decoded when they are trained on (`video.showing`), so what is prepared here is small. The index has the
columns of `Row`. Its readers hold it in memory: of LF-VILA-8M's eight million runs take some hundred thousand (`most`).
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NotRequired

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict

from lightning_modules import rehearsal
from lightning_modules.datasets.download import StandIn, fetch, find
from lightning_modules.datasets.video.annotation_files import NAMES, OUTSIDE, READERS, TASKS, Asked, Corpus, Row, Task
from lightning_modules.datasets.video.corpora import Checksum, file_name, read_list, table_digest
from lightning_modules.datasets.video.drawn import encode
from lightning_modules.datasets.video.drawn_annotations import WRITERS, Drawn, joined
from lightning_modules.files import replace_folder, sha256
from lightning_modules.settings import STRICT, Count, Share

log = logging.getLogger(__name__)

TEXTS, SECONDS = pa.list_(pa.string()), pa.list_(pa.float64())
SCHEMA = pa.schema([
    ("files", TEXTS), ("texts", TEXTS), ("starts", SECONDS), ("ends", SECONDS), ("question", pa.string()),
    ("options", TEXTS), ("label", pa.int64()), ("answer", pa.string()), ("kind", pa.string()), ("span", SECONDS),
])  # fmt: skip


class Annotated(TypedDict):
    """Files of a split, and how many rows there must be in it, where that is known.

    `answers` holds those of ActivityNet-QA, `texts` those of clips that are listed without them: a jsonl of `clip_id`
    and `text`, or a folder of LMDB. `videos` is the list of the split's videos in their order, one of `lists`. `subset`
    is the split's name in a file of several splits. `most` takes only the first rows.
    """

    __pydantic_config__ = STRICT
    annotations: str
    answers: NotRequired[str | None]
    texts: NotRequired[str | None]
    videos: NotRequired[str | None]
    subset: NotRequired[str | None]
    rows: NotRequired[Count | None]
    most: NotRequired[Count | None]


class Vocabulary(TypedDict):
    """Which answers can be given: those of some splits, the most frequent ones or those that come often enough."""

    __pydantic_config__ = STRICT
    splits: list[str]
    most: NotRequired[Count | None]
    least: NotRequired[Count]
    expected: NotRequired[Count | None]


def prepare(
    folder: Path,
    *,
    name: str,
    corpus: Corpus,
    splits: dict[str, Annotated],
    labels: Count | None = None,
    vocabulary: Vocabulary | None = None,
    consecutive: Count = 1,
    prefix: str = "",
    suffix: str | None = None,
    videos: str = "videos",
    lists: Mapping[str, Checksum] = MappingProxyType({}),
    list_mirrors: Sequence[str] = (),
    list_cache: str = "data/downloads/retrieval-splits",
    mirror: str | None = None,
    cache: str,
    max_left_out: Share = 0.0,
) -> None:
    """Writes the index of a copy of a corpus, and a card with its task, its answers and the kinds of its questions.

    Args:
        folder: where index and card go.
        name: of the data set, a folder name in the mirror.
        corpus: whose format the annotations have.
        splits: files of each.
        labels: how many options each question has, or how many classes there are; null for other tasks.
        vocabulary: of open-ended questions; null for other tasks. Other answers have the label `OUTSIDE`.
        consecutive: clips that a run of `long_videos` has at least. Where its annotations list single clips, runs are
            made of them: clips of one video whose numbers follow each other.
        prefix: what comes before a video's name in the name of its file.
        suffix: of the video files, such as `.mp4`; null where the names have theirs.
        videos: folder of the video files in the copy.
        lists: published lists of videos, with their checksums; see `download.fetch`. Their folder in a mirror is
            `retrieval-splits`.
        list_mirrors: web addresses of folders with them.
        list_cache: where downloaded lists are kept.
        mirror: local folder that holds the copy, as it is or below `name`.
        cache: another place where the copy may lie.
        max_left_out: largest share of a split that may be left out because a text is missing or blank.

    Raises:
        DataUnavailable: the copy is not there.
        ModuleNotFoundError: a file is LMDB, and lmdb is not installed.
        ValueError: a file does not have its form, a split not its rows, or a setting does not fit the corpus.
    """
    task = TASKS[corpus]
    _check(corpus, task, splits, labels, vocabulary, list(lists))
    place = {"mirror": mirror, "cache": Path(cache)}
    listed = fetch("retrieval-splits", lists, mirrors=list_mirrors, mirror=mirror, cache=Path(list_cache))
    find(name, videos, **place)
    read, left_out = {}, {}
    for split, files in splits.items():
        others = {other: find(name, files[other], **place) for other in ("answers", "texts") if files.get(other)}
        asked = Asked(
            find(name, files["annotations"], **place), **others, subset=files.get("subset"), most=files.get("most"),
            consecutive=consecutive,
        )  # fmt: skip
        rows = READERS[corpus](asked)
        if files.get("videos") is not None:
            rows = _listed(rows, read_list(listed[files["videos"]]), corpus, files["annotations"])
        rows = rows[: files.get("most")]
        if files.get("rows") not in (None, len(rows)):
            raise ValueError(
                f"split {split!r} has {len(rows)} rows, expected {files['rows']}: complete the copy, or take the "
                "official file."
            )
        read[split] = [row for row in rows if _complete(row, task)]
        left_out[split] = len(rows) - len(read[split])
        if left_out[split] > max_left_out * len(rows):
            raise ValueError(
                f"{left_out[split]} of {len(rows)} rows of split {split!r} have a blank or missing text in "
                f"{files['annotations']}, more than max_left_out ({max_left_out}) allows: complete it, or raise the "
                "share."
            )
        _check_rows(read[split], task, labels, files["annotations"])
    answers = [] if vocabulary is None else _answers(read, vocabulary)
    numbers = {answer: number for number, answer in enumerate(answers)}
    kinds = sorted({row.kind for rows in read.values() for row in rows} - {""})
    written = {}
    with replace_folder(folder) as new:
        for split, rows in read.items():
            facts = {"left_out": left_out[split], "repeated": _repeated(rows, split)}
            if task == "answers":
                rows = [row._replace(label=numbers.get(row.answer, OUTSIDE)) for row in rows]
                facts["outside"] = sum(row.label == OUTSIDE for row in rows)
            rows = [row._replace(files=tuple(file_name(f"{prefix}{f}", suffix) for f in row.files)) for row in rows]
            written[split] = facts | write_rows(new / f"{split}.parquet", rows)
        facts = {"name": name, "corpus": corpus, "task": task, "videos": videos, "cache": cache}
        facts |= {"labels": labels, "answers": answers, "kinds": kinds, "splits": written}
        (new / "card.json").write_text(json.dumps(facts, indent=2) + "\n")


def _check(
    corpus: Corpus,
    task: Task,
    splits: Mapping[str, Annotated],
    labels: int | None,
    vocabulary: Vocabulary | None,
    lists: Sequence[str],
) -> None:
    if (labels is None) != (task not in ("options", "classes")):
        expected = (
            "how many options or classes there are" if labels is None else "null: it has neither options nor classes"
        )
        raise ValueError(f"labels is {labels}, but for {corpus} it must say {expected}.")
    if (vocabulary is None) != (task != "answers"):
        expected = "which answers can be given" if vocabulary is None else "null: its answers are no words"
        raise ValueError(f"vocabulary is {vocabulary}, but for {corpus} it must say {expected}.")
    if vocabulary is not None and (unknown := [split for split in vocabulary["splits"] if split not in splits]):
        raise ValueError(f"vocabulary.splits has {unknown[0]!r}, expected some of {', '.join(splits)}.")
    for split, files in splits.items():
        videos = files.get("videos")
        if videos is not None and (videos not in lists or task != "sentences"):
            raise ValueError(
                f"splits.{split}.videos ({videos!r}) must be one of lists ({', '.join(lists) or 'none'}), and "
                "null for questions and classes."
            )
        if (files.get("answers") is None) != (corpus != "activitynet_qa"):
            raise ValueError(
                f"splits.{split}.answers is {files.get('answers')!r}, but for {corpus} it must be "
                f"{'the file of answers, such as train_a.json' if corpus == 'activitynet_qa' else 'null'}."
            )
        if files.get("texts") is not None and corpus not in ("long_videos", "clips"):
            raise ValueError(f"splits.{split}.texts is {files['texts']!r}, but for {corpus} it must be null.")
        if (files.get("subset") is None) != (corpus not in ("coin", "condensed_movies")):
            expected = "the name of the split there" if files.get("subset") is None else "null: the file has one split"
            raise ValueError(
                f"splits.{split}.subset is {files.get('subset')!r}, but for {corpus} it must be {expected}."
            )


def _listed(rows: Sequence[Row], videos: Sequence[str], corpus: Corpus, annotations: str) -> list[Row]:
    """The rows of the listed videos, in the order of the list."""
    by_name, names = {row.files[0]: row for row in rows}, [NAMES.get(corpus, str)(video) for video in videos]
    if missing := [name for name in names if name not in by_name]:
        raise ValueError(
            f"{len(missing)} of {len(names)} listed videos are not annotated in {annotations}, the first is "
            f"{missing[0]}: take annotations and list of one version."
        )
    return [by_name[name] for name in names]


def _complete(row: Row, task: Task) -> bool:
    """Whether all its texts say something; a question of multiple choice may be blank, its options may not."""
    if task == "sentences":
        return bool(row.texts) and all(row.texts) and len(row.files) in (1, len(row.texts))
    if task == "classes":
        return True
    return all(row.options) if task == "options" else bool(row.question and (row.answer or task == "count"))


def _check_rows(rows: Iterable[Row], task: Task, labels: int | None, where: str) -> None:
    for row in rows:
        if task == "options" and len(row.options) != labels:
            raise ValueError(
                f"{row.files[0]} in {where} has {len(row.options)} options, expected labels ({labels}): correct the "
                "number, or take the official file."
            )
        if labels is not None and not 0 <= row.label < labels:
            raise ValueError(
                f"{row.files[0]} in {where} has the label {row.label}, expected 0 to {labels - 1} of labels "
                f"({labels}): correct the number, or take the official file."
            )


def _answers(read: Mapping[str, Sequence[Row]], vocabulary: Vocabulary) -> list[str]:
    """The answers that can be given, the most frequent ones first; of equally frequent ones in alphabetical order."""
    times = Counter(row.answer for split in vocabulary["splits"] for row in read[split])
    ordered = sorted(times, key=lambda answer: (-times[answer], answer))
    found = [answer for answer in ordered if times[answer] >= vocabulary.get("least", 1)][: vocabulary.get("most")]
    if vocabulary.get("expected") not in (None, len(found)):
        raise ValueError(
            f"there are {len(found)} answers in {', '.join(vocabulary['splits'])}, expected vocabulary.expected "
            f"({vocabulary['expected']}): take the official files, or correct the number."
        )
    return found


def _repeated(rows: Sequence[Row], split: str) -> int:
    """Rows that say the same as an earlier one; they stay, as published results count them."""
    repeated = len(rows) - len({(row.files, row.texts, row.question, row.options, row.answer) for row in rows})
    if repeated:
        log.warning("split %r has %d of %d rows more than once; they stay, as in the official file", split, repeated,
                    len(rows))  # fmt: skip
    return repeated


def write_rows(path: Path, rows: Sequence[Row]) -> dict[str, int | str]:
    """Writes the rows; returns their number and the digest of the content.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(f"{path.name} would have no rows: check its annotations.")
    rows = rows[: rehearsal.left(0)]
    table = pa.table(dict(zip(Row._fields, map(list, zip(*rows, strict=True)), strict=True)), SCHEMA)
    pq.write_table(table, path, compression="zstd")
    return {"rows": len(rows), "sha256": table_digest(table)}


def merged(
    texts: Sequence[str], most: int, starts: Sequence[float] = (), ends: Sequence[float] = ()
) -> tuple[list[str], list[float], list[float]]:
    """At most so many sentences: again and again, the two neighbours that are shortest together become one.

    Lengths are counted in characters, of equally short pairs the first is taken, and a blank joins them: LF-VILA's rule
    for paragraphs and subtitles (`retrieval_dataset.py`). The times of a merged sentence are the first start and the
    last end.

    Raises:
        ValueError: there is to be no sentence.
    """
    if most < 1:
        raise ValueError(f"most ({most}) must be at least 1: sentences cannot be merged to none.")
    texts, starts, ends = list(texts), list(starts), list(ends)
    while len(texts) > most:
        lengths = [len(one) + len(other) for one, other in pairwise(texts)]
        place = lengths.index(min(lengths))
        texts[place : place + 2] = [" ".join(texts[place : place + 2])]
        if starts:
            del starts[place + 1], ends[place]
    return texts, starts, ends


def stand_in(
    folder: Path,
    *,
    rows: int,
    corpus: Corpus,
    splits: Mapping[str, Mapping[str, Any]],
    labels: int | None = None,
    vocabulary: Mapping[str, Any] | None = None,
    consecutive: int = 1,
    prefix: str = "",
    suffix: str | None = None,
    videos: str = "videos",
    **_: object,
) -> StandIn:
    """See `download.StandIn`: one drawn clip of ten seconds under many names, with texts and labels for each."""
    clip = encode(folder / f"clip{suffix or '.mp4'}", 100, size=(320, 240), key_every=12)
    texts: dict[str, list[str]] = {}  # files of annotations, and of answers or transcripts, with their pieces
    changed, lists, written = {}, {}, set()
    for split, files in splits.items():
        part = files["annotations"], files.get("subset")
        for number in range(0 if part in written else rows):  # two splits may have the same rows
            drawn = Drawn(f"{split}{number}", number, max(consecutive, 4), labels or 1, files.get("subset") or "")
            entry, other = WRITERS[corpus](drawn, Path(files["annotations"]).suffix)
            texts.setdefault(files["annotations"], []).append(entry)
            if beside := files.get("answers") or files.get("texts"):
                texts.setdefault(beside, []).append(other)
        if listed := files.get("videos"):
            (folder / listed).parent.mkdir(parents=True, exist_ok=True)
            (folder / listed).write_text("\n".join(f"{split}{number}" for number in range(rows)))
            lists[listed] = {"sha256": sha256(folder / listed)}
        written.add(part)
        changed[split] = {**files, "rows": rows}
    for file, pieces in texts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(joined(corpus, Path(file).suffix, pieces))
    for files in changed.values():
        others = {other: folder / files[other] for other in ("answers", "texts") if files.get(other)}
        asked = Asked(folder / files["annotations"], **others, subset=files.get("subset"), consecutive=consecutive)
        for name in {name for row in READERS[corpus](asked) for name in row.files}:
            path = folder / videos / file_name(f"{prefix}{name}", suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(clip, path)
    config = {"splits": changed, "lists": lists, "cache": str(folder), "list_cache": str(folder), "list_mirrors": []}
    if vocabulary is not None:
        config["vocabulary"] = {**vocabulary, "expected": None, "least": 1}
    return StandIn(config, {split: files.get("rows") for split, files in splits.items()})
