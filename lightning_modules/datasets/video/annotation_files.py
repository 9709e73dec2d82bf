"""Annotations of videos in the forms in which they are published, read as rows: `READERS`.

| corpus | annotations | a row is |
|---|---|---|
| `long_videos` | jsonl or LMDB of runs of clips | a run of clips, a transcript of each |
| `clips` | jsonl of `clip_id`, texts there or in LMDB | a clip, its transcript |
| `paragraphs` | jsonl of `clip_id`, `text` | a video, its sentences |
| `activitynet` | `train.json`, `val_1.json` | a video, its sentences with their times |
| `didemo` | `train_data.json` | a video, its descriptions |
| `condensed_movies` | csv of `videoid`, `caption`, `split` | a video, its description |
| `tgif_action`, `tgif_transition` | jsonl, or the original table | a GIF, a question, five options |
| `tgif_frame`, `tgif_count` | the same | a GIF, a question, an answer or a count |
| `msrvtt_qa` | jsonl, or the original json | a video, a question, an answer |
| `msrvtt_mc` | jsonl of `clip_name`, `options`, `answer` | a video, five captions of which one is its own |
| `activitynet_qa` | `train_q.json`, with `train_a.json` as `answers` | a video, a question, an answer |
| `how2qa` | jsonl of `text_q`, `text_a`, `text_s`, `span` | a video, a question, four options, subtitles, a span |
| `violin` | jsonl of `text_q`, `text_s`, `answer` | a video, a statement, subtitles, true or not |
| `coin` | `COIN.json` | a video, its task |
| `classes` | jsonl of `video_id`, `recipe_type` | a video, its class (LVU, COIN) |

Checked against what is published: the files of ActivityNet-QA, whole (its 1,654 answers are those that come at least
twice in training); README.md of tgif-qa, of COIN and of HD-VILA-100M; CondensedMovies_dataset.py of the challenge;
the dataset classes of `LF-VILA/` and `hd-vila/` in microsoft/XPretrain, for the jsonl files that are released with
them. Recalled, not re-read: the headers of TGIF-QA's original tables, the keys of MSRVTT-QA's original json, and the
subsets of COIN (training, testing). Not seen: LF-VILA-8M's lists of clip ids (lfvila8m_clipid.jsonl); that a line is a
list of them is our reading of the repository's issues.
"""

import ast
import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO, get_args

from lightning_modules.datasets.video.corpora import didemo_name, named_once

Corpus = Literal[
    "long_videos", "clips", "paragraphs", "activitynet", "didemo", "condensed_movies",
    "tgif_action", "tgif_transition", "tgif_frame", "tgif_count", "msrvtt_qa", "msrvtt_mc", "activitynet_qa",
    "how2qa", "violin", "coin", "classes",
]  # fmt: skip
Task = Literal["sentences", "options", "answers", "count", "classes"]
TASKS: dict[Corpus, Task] = {
    **dict.fromkeys(get_args(Corpus), "sentences"),
    **dict.fromkeys(("tgif_action", "tgif_transition", "msrvtt_mc", "how2qa"), "options"),
    **dict.fromkeys(("tgif_frame", "msrvtt_qa", "activitynet_qa"), "answers"),
    **dict.fromkeys(("violin", "coin", "classes"), "classes"),
    "tgif_count": "count",
}
OUTSIDE = -1  # label of an answer that is not among those that can be given, and of what has no label


class Row(NamedTuple):
    """What is said of one video, or asked about it.

    Args:
        files: names of the video, or of the clips of a run in their order.
        texts: sentences, in the order of time: of a paragraph, or subtitles.
        starts: second at which each of them begins; empty if that is not known.
        ends: second at which it ends.
        question: or statement; blank if nothing is asked.
        options: answers to choose from.
        label: the number of the right option, of the class, or of what is counted.
        answer: in words, where there are no options; `prepare` makes its number the label.
        kind: of the question, such as `what`.
        span: seconds of the video that tell the answer.
    """

    files: tuple[str, ...]
    texts: tuple[str, ...] = ()
    starts: tuple[float, ...] = ()
    ends: tuple[float, ...] = ()
    question: str = ""
    options: tuple[str, ...] = ()
    label: int = OUTSIDE
    answer: str = ""
    kind: str = ""
    span: tuple[float, float] = (math.nan, math.nan)


class Asked(NamedTuple):
    """What a reader reads: the files of a split, and what of them; see `Annotated`."""

    annotations: Path
    answers: Path | None = None
    texts: Path | None = None
    subset: str | None = None
    most: int | None = None
    consecutive: int = 1


class Entry(NamedTuple):
    """One entry of a file of annotations, and where it stands; what it lacks is named."""

    where: str
    values: Any

    def _value(self, key: str) -> Any:
        if not isinstance(self.values, dict):
            raise ValueError(
                f"{self.where} is {_short(self.values)}, expected an object with {key!r}: take the official file."
            )
        if key not in self.values:
            raise ValueError(
                f"{self.where} has no {key!r}, only {', '.join(map(str, self.values)) or 'nothing'}: take the official "
                "file."
            )
        return self.values[key]

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return isinstance(self.values, dict) and key in self.values

    def text(self, key: str) -> str:
        """A text without blanks around it."""
        value = self._value(key)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: {key} is {_short(value)}, expected a text.")
        return value.strip()

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts without blanks around them; one text is a list of one."""
        value = self._value(key)
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{self.where}: {key} is {_short(value)}, expected a list of texts.")
        return tuple(text.strip() for text in value)

    def number(self, key: str) -> int:
        """A whole number, or its digits."""
        value = self._value(key)
        digits = value.strip() if isinstance(value, str) else value
        if isinstance(digits, bool) or not re.fullmatch(r"-?\d+", str(digits)):
            raise ValueError(f"{self.where}: {key} is {_short(value)}, expected a whole number.")
        return int(digits)

    def seconds(self, key: str) -> float:
        """A time, not a number where it is null."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"{self.where}: {key} is {_short(value)}, expected a time in seconds.")
        return math.nan if value is None else float(value)

    def name(self, key: str) -> str:
        """A number or a text that names something."""
        return self.text(key) if isinstance(self._value(key), str) else str(self.number(key))

    def span(self, key: str) -> tuple[float, float]:
        """Two times, put in order: in official files some are the wrong way round (recalled, not re-read)."""
        value = self._value(key)
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"{self.where}: {key} is {_short(value)}, expected two times in seconds.")
        start, end = (Entry(self.where, {key: time}).seconds(key) for time in value)
        return (end, start) if end < start else (start, end)

    def entries(self, key: str) -> list["Entry"]:
        """A list of objects."""
        value = self._value(key)
        if not isinstance(value, list):
            raise ValueError(f"{self.where}: {key} is {_short(value)}, expected a list.")
        return [Entry(f"{self.where}: {key}", each) for each in value]


def _short(value: object) -> str:
    told = repr(value)
    return told if len(told) <= 60 else f"{told[:57]}..."


@contextmanager
def _text_of(path: Path) -> Iterator[TextIO]:
    """A text file, with or without a byte order mark."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file: name the official file in it.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): take the official file.") from error


def _parsed(where: str, text: str, **options: Any) -> Any:
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON ({error}): take the official file, or complete it.") from error


def _lines(path: Path) -> Iterator[Entry]:
    """The entries of a jsonl file; blank lines are none. Transcripts may hold control characters (HD-VILA's code)."""
    with _text_of(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield Entry(where, _parsed(where, line, strict=False))


def _document(path: Path, **options: Any) -> Any:
    with _text_of(path) as text:
        return _parsed(str(path), text.read(), **options)


def _list(path: Path) -> list[Entry]:
    """The entries of a json file with one list."""
    found = _document(path)
    if not isinstance(found, list):
        raise ValueError(f"{path} holds {_short(found)}, expected a list: take the official file.")
    return [Entry(f"{path}, entry {number}", each) for number, each in enumerate(found, start=1)]


def _object(path: Path) -> dict[str, Entry]:
    """The entries of a json file with one object, by their names."""
    found = _document(path, object_pairs_hook=lambda pairs: named_once(path, pairs))
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {_short(found)}, expected an object: take the official file.")
    return {name: Entry(f"{path}: {name}", each) for name, each in found.items()}


def _table(path: Path, delimiter: str = ",") -> list[Entry]:
    """The rows of a table, by the names in its first line."""
    with _text_of(path) as text:
        try:
            rows = list(csv.DictReader(text, delimiter=delimiter))
        except csv.Error as error:
            raise ValueError(f"{path} is no table ({error}): take the official file.") from error
    return [Entry(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def read_long_videos(asked: Asked) -> list[Row]:
    """Runs of clips, one for each line or key: lists of clip ids, or of objects with their texts.

    A file of single clips with texts, such as HD-VILA-100M's own, is made into runs (`runs_of`).

    Raises:
        ValueError: a run is too short, or comes twice.
    """
    entries = _database(asked.annotations) if asked.annotations.is_dir() else _lines(asked.annotations)
    first = next(entries, None)
    if first is None:
        raise ValueError(f"{asked.annotations} is empty: take the official file.")
    entries = chain([first], entries)
    if isinstance(first.values, dict):
        said = {entry.text("clip_id"): entry.text("text") for entry in entries}
        runs = [[(clip, said[clip]) for clip in run] for run in islice(runs_of(said, asked.consecutive), asked.most)]
    else:
        runs = [_run(entry, asked.consecutive) for entry in islice(entries, asked.most)]
        if asked.texts is not None:
            said = _transcripts(asked.texts, {clip for run in runs for clip, _ in run})
            runs = [[(clip, said.get(clip, "")) for clip, _ in run] for run in runs]
        elif not any(text for run in runs for _, text in run):
            raise ValueError(f"{first.where} has clips without texts: name the file of them (splits.<split>.texts).")
    rows = [Row(tuple(_in_its_folder(clip) for clip, _ in run), tuple(text for _, text in run)) for run in runs]
    return list(named_once(asked.annotations, [(f"{row.files[0]} to {row.files[-1]}", row) for row in rows]).values())


def _run(entry: Entry, consecutive: int) -> list[tuple[str, str]]:
    """The clips of a run with their texts, blank where there are none."""
    if not isinstance(entry.values, list):
        raise ValueError(f"{entry.where} is {_short(entry.values)}, expected a list of clips: take the official file.")
    if len(entry.values) < consecutive:
        raise ValueError(
            f"{entry.where} has a run of {len(entry.values)} clips, expected at least consecutive ({consecutive}): "
            "leave it out, or lower the number."
        )
    clips = [
        Entry(entry.where, {"clip_id": clip, "text": ""} if isinstance(clip, str) else clip) for clip in entry.values
    ]
    return [(clip.text("clip_id"), clip.text("text")) for clip in clips]


def runs_of(said: Mapping[str, str], consecutive: int) -> Iterator[list[str]]:
    """Clips of one video whose numbers follow each other and which all say something, in runs as long as they are.

    LF-VILA-8M consists of such runs of at least four clips of HD-VILA-100M (README.md of `LF-VILA/`).

    Args:
        said: texts by clip ids, `<video>.<number>.mp4`.
        consecutive: clips that a run has at least.

    Raises:
        ValueError: an id has no number.
    """
    numbers: dict[str, dict[int, str]] = {}
    for clip, text in said.items():
        video, _, rest = clip.partition(".")
        number = rest.partition(".")[0]
        if not number.isdigit():
            raise ValueError(f"the clip {clip!r} has no number, expected an id such as 'QMi8x8o55Ns.16.mp4'.")
        if text:
            numbers.setdefault(video, {})[int(number)] = clip
    for clips in numbers.values():
        run: list[str] = []
        for number in sorted(clips):
            if run and number - 1 not in clips:
                if len(run) >= consecutive:
                    yield run
                run = []
            run.append(clips[number])
        if len(run) >= consecutive:
            yield run


def _in_its_folder(clip: str) -> str:
    return f"{clip.partition('.')[0]}/{clip}"


def _transcripts(path: Path, clips: set[str]) -> dict[str, str]:
    """Texts of some clips by their ids, from a jsonl file or an LMDB folder."""
    if path.is_dir():
        with _opened(path) as database:
            found = {clip: database.get(clip.encode()) for clip in clips}
        return {clip: text.decode().strip() for clip, text in found.items() if text is not None}
    found = ((entry.text("clip_id"), entry) for entry in _lines(path))
    return {clip: entry.text("text") for clip, entry in found if clip in clips}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A transaction that reads an LMDB folder."""
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} is an LMDB folder, read with lmdb: pip install lmdb") from error
    try:
        with lmdb.open(str(path), readonly=True, create=False, lock=False) as environment, environment.begin() as found:
            yield found
    except lmdb.Error as error:
        raise ValueError(f"{path} is no LMDB folder ({error}): it must hold data.mdb.") from error


def _database(path: Path) -> Iterator[Entry]:
    """The entries 0, 1, 2, ... of an LMDB folder, Python literals as the official code writes them."""
    with _opened(path) as database:
        for number in range(database.stat()["entries"]):
            where, value = f"{path}, key {number}", database.get(str(number).encode())
            if value is None:
                raise ValueError(f"{where} is not there, expected keys from 0 on: take the official database.")
            try:
                yield Entry(where, ast.literal_eval(value.decode()))
            except (ValueError, SyntaxError, UnicodeDecodeError) as error:
                raise ValueError(f"{where} is {_short(value)}, expected a list of clips ({error}).") from error


def read_clips(asked: Asked) -> list[Row]:
    """One clip per line, with its text or without; a clip lies in a folder named after its video."""
    entries = list(islice(_lines(asked.annotations), asked.most))
    names = [entry.text("clip_id") for entry in entries]
    if asked.texts is not None:
        said = _transcripts(asked.texts, set(names))
        found = [(name, said.get(name, "")) for name in names]
    else:
        found = [(name, entry.text("text")) for name, entry in zip(names, entries, strict=True)]
    said = named_once(asked.annotations, found)
    return [Row((_in_its_folder(name),), (text,)) for name, text in said.items()]


def _of_videos(path: Path, rows: Iterable[Row]) -> list[Row]:
    """The rows, if no video comes twice."""
    return list(named_once(path, [(row.files[0], row) for row in rows]).values())


def _sentences(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if text)


def read_paragraphs(asked: Asked) -> list[Row]:
    """One video per line, `text` a sentence or a list of them."""
    entries = _lines(asked.annotations)
    rows = [Row((entry.text("clip_id"),), _sentences(entry.texts("text"))) for entry in entries]
    return _of_videos(asked.annotations, rows)


def read_activitynet(asked: Asked) -> list[Row]:
    """All sentences of a video, with their times where these are given."""
    rows = []
    for name, entry in _object(asked.annotations).items():
        texts, times = entry.texts("sentences"), []
        if entry.has("timestamps"):
            spans = entry.entries("timestamps")
            times = [Entry(entry.where, {"a timestamp": each.values}).span("a timestamp") for each in spans]
        if times and len(times) != len(texts):
            raise ValueError(
                f"{entry.where} has {len(texts)} sentences and {len(times)} timestamps, expected one of each."
            )
        timed = [(text, *time) for text, time in zip(texts, times, strict=True) if text] if times else []
        _, starts, ends = zip(*timed, strict=True) if timed else ((), (), ())
        rows.append(Row((name,), _sentences(texts), starts, ends))
    return rows


def read_didemo(asked: Asked) -> list[Row]:
    """All descriptions of a video in the order of the file; names without their suffixes."""
    said: dict[str, list[str]] = {}
    for entry in _list(asked.annotations):
        said.setdefault(didemo_name(entry.text("video")), []).append(entry.text("description"))
    return [Row((video,), _sentences(texts)) for video, texts in said.items()]


def _of_subset(asked: Asked, entries: Sequence[Entry], key: str) -> list[Entry]:
    found = [entry for entry in entries if entry.text(key) == asked.subset]
    if not found:
        known = ", ".join(sorted({entry.text(key) for entry in entries})) or "none"
        raise ValueError(
            f"{asked.annotations} has no {key} {asked.subset!r}, but {known}: correct splits.<split>.subset."
        )
    return found


def read_condensed_movies(asked: Asked) -> list[Row]:
    """The description of each clip of a film, the splits in one table."""
    entries = _of_subset(asked, _table(asked.annotations), "split")
    rows = [Row((entry.text("videoid"),), _sentences([entry.text("caption")])) for entry in entries]
    return _of_videos(asked.annotations, rows)


TGIF_KINDS = ("object", "number", "color", "location")  # `type` 0 to 3 of the original tables


def _tgif(asked: Asked) -> list[Entry]:
    if asked.annotations.suffix in (".csv", ".tsv"):
        return _table(asked.annotations, "\t")
    return list(_lines(asked.annotations))


def read_tgif_choice(asked: Asked) -> list[Row]:
    """A GIF, a question, five options in a list or in the columns a1 to a5, and the number of the right one."""
    rows = []
    for entry in _tgif(asked):
        listed = entry.texts("options") if entry.has("options") else [entry.text(f"a{n}") for n in range(1, 6)]
        name, question = entry.text("gif_name"), entry.text("question")
        rows.append(Row((name,), question=question, options=tuple(listed), label=entry.number("answer")))
    return rows


def read_tgif_frame(asked: Asked) -> list[Row]:
    """A GIF, a question, the answer, and its kind as a word or as a number in the column `type`."""
    rows = []
    for entry in _tgif(asked):
        kind = entry.text("answer_type") if entry.has("answer_type") else _named(entry, "type", TGIF_KINDS)
        name, question = entry.text("gif_name"), entry.text("question")
        rows.append(Row((name,), question=question, answer=entry.text("answer"), kind=kind))
    return rows


def _named(entry: Entry, key: str, names: Sequence[str]) -> str:
    number = entry.number(key)
    if not 0 <= number < len(names):
        raise ValueError(f"{entry.where}: {key} is {number}, expected 0 to {len(names) - 1}.")
    return names[number]


def read_tgif_count(asked: Asked) -> list[Row]:
    """A GIF, a question, and how often something happens."""
    rows = []
    for entry in _tgif(asked):
        label = entry.number("answer")
        if label < 0:
            raise ValueError(f"{entry.where}: answer is {label}, expected how often something happens.")
        rows.append(Row((entry.text("gif_name"),), question=entry.text("question"), label=label))
    return rows


def read_msrvtt_qa(asked: Asked) -> list[Row]:
    """A video, by its name or its number, a question, the answer; the kind is the first word of the question."""
    lines = asked.annotations.suffix == ".jsonl"
    rows = []
    for entry in _lines(asked.annotations) if lines else _list(asked.annotations):
        named = isinstance(entry.values, dict) and isinstance(entry.values.get("video_id"), str)
        video = entry.text("video_id") if named else f"video{entry.number('video_id')}"
        question = entry.text("question")
        kind = entry.text("answer_type") if entry.has("answer_type") else question.partition(" ")[0].lower()
        rows.append(Row((video,), question=question, answer=entry.text("answer"), kind=kind))
    return rows


def read_msrvtt_mc(asked: Asked) -> list[Row]:
    """A video, captions to choose from, and the number of its own."""
    rows = [
        (
            entry.name("qid"),
            Row((entry.text("clip_name"),), options=entry.texts("options"), label=entry.number("answer")),
        )
        for entry in _lines(asked.annotations)
    ]
    return list(named_once(asked.annotations, rows).values())


ACTIVITYNET_KINDS = ("motion", "spatial", "temporal", "yes_no", "color", "object", "location", "number", "other")


def read_activitynet_qa(asked: Asked) -> list[Row]:
    """Questions in one file, answers and kinds in another, joined by `question_id`."""
    answers = named_once(asked.answers, [(entry.text("question_id"), entry) for entry in _list(asked.answers)])
    rows = []
    for entry in _list(asked.annotations):
        name = entry.text("question_id")
        if name not in answers:
            raise ValueError(
                f"{entry.where}: {asked.answers} has no answer to question {name!r}: take files of one split."
            )
        answer, kind = answers[name].text("answer"), _named(answers[name], "type", ACTIVITYNET_KINDS)
        question = entry.text("question")
        rows.append((name, Row((entry.text("video_name"),), question=question, answer=answer, kind=kind)))
    return list(named_once(asked.annotations, rows).values())


def _subtitles(entry: Entry) -> dict[str, tuple]:
    """Subtitles that say something, with their times."""
    said = [each for each in entry.entries("text_s") if each.text("text")]
    return {
        "texts": tuple(each.text("text") for each in said),
        "starts": tuple(each.seconds("start") for each in said),
        "ends": tuple(each.seconds("end") for each in said),
    }


def read_how2qa(asked: Asked) -> list[Row]:
    """A video, a question, four options, subtitles, and the seconds that tell the answer (not a number: not known)."""
    rows = []
    for entry in _lines(asked.annotations):
        asks = {"question": entry.text("text_q"), "options": entry.texts("text_a"), "label": entry.number("answer_idx")}
        rows.append(Row((entry.text("clip_id"),), **asks, **_subtitles(entry), span=entry.span("span")))
    return rows


def read_violin(asked: Asked) -> list[Row]:
    """A video, a statement, subtitles, and whether the statement is true."""
    return [
        Row((entry.text("clip_id"),), question=entry.text("text_q"), label=entry.number("answer"), **_subtitles(entry))
        for entry in _lines(asked.annotations)
    ]


def read_coin(asked: Asked) -> list[Row]:
    """Videos and their tasks, the splits in one file."""
    database = _object(asked.annotations).get("database", Entry(str(asked.annotations), None))
    if not isinstance(database.values, dict):
        raise ValueError(f"{asked.annotations} has no object 'database': take the official file.")
    videos = [Entry(f"{database.where}: {name}", {"name": name, **each} if isinstance(each, dict) else each)
              for name, each in database.values.items()]  # fmt: skip
    found = _of_subset(asked, videos, "subset")
    return [Row((entry.text("name"),), label=entry.number("recipe_type")) for entry in found]


def read_classes(asked: Asked) -> list[Row]:
    """One video per line, with the number of its class."""
    entries = _lines(asked.annotations)
    return _of_videos(asked.annotations, [Row((e.text("video_id"),), label=e.number("recipe_type")) for e in entries])


READERS: dict[Corpus, Callable[[Asked], list[Row]]] = {
    "long_videos": read_long_videos,
    "clips": read_clips,
    "paragraphs": read_paragraphs,
    "activitynet": read_activitynet,
    "didemo": read_didemo,
    "condensed_movies": read_condensed_movies,
    "tgif_action": read_tgif_choice,
    "tgif_transition": read_tgif_choice,
    "tgif_frame": read_tgif_frame,
    "tgif_count": read_tgif_count,
    "msrvtt_qa": read_msrvtt_qa,
    "msrvtt_mc": read_msrvtt_mc,
    "activitynet_qa": read_activitynet_qa,
    "how2qa": read_how2qa,
    "violin": read_violin,
    "coin": read_coin,
    "classes": read_classes,
}
NAMES: dict[Corpus, Callable[[str], str]] = {"didemo": didemo_name}  # in lists, where they differ from the readers'
