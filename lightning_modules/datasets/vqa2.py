"""VQA 2.0 (Goyal et al. 2017, https://visualqa.org): questions about COCO's pictures, each answered by ten people.

Read `prepare` first. Files are the official ones: `v2_OpenEnded_mscoco_<split>_questions.json`,
`v2_mscoco_<split>_annotations.json`, and the folders of pictures. `results` are what the server reads.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datasets import asked_pictures, pictures
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.files import replace_folder
from lightning_modules.metrics.picture_questions import ANNOTATORS, label
from lightning_modules.settings import STRICT, Count, Share

FILE = "answers.json"  # beside the shards: the answers that can be given
KINDS = ("yes/no", "number", "other")  # of answers
DRAWN_ANSWERS = 5  # kinds of answers of a stand-in that are given by people beside those of the vocabulary


class Files(TypedDict):
    """Of one split: its two files (no annotations of a test set), its folder of pictures, and how many questions."""

    __pydantic_config__ = STRICT
    questions: str
    annotations: str | None
    images: str
    rows: Count | None


class Vocabulary(TypedDict):
    """Answers that are an annotation's most frequent one at least so often, in these splits; `count` of them."""

    __pydantic_config__ = STRICT
    splits: list[str]
    occurrences: Count
    count: Count | None


@dataclass(frozen=True)
class Question:
    """A question, its picture, and, where people answered: how many gave each answer, and what kind of answer it is."""

    id: int
    image: int
    text: str
    given: Mapping[str, int]
    most: str
    kind: str


def prepare(
    folder: Path,
    *,
    splits: dict[str, Files],
    vocabulary: Vocabulary,
    limit: Count | None,
    mirror: str | None = None,
    cache: str,
    max_broken: Share = 0.0,
) -> None:
    """Writes our shards from a copy of your own: a row is a picture with its questions.

    Columns: `id` of the picture; `image`; and lists with a text for each question: `questions`, `question_ids`,
    `kinds` (yes/no, number, other; empty of a test set) and `answers`, how many people gave each, as JSON. The file
    `answers.json` has the answers that can be given.

    Args:
        folder: the prepared data set.
        splits: files of each split, and how many questions it must have.
        vocabulary: which answers can be given.
        limit: keep only the first so many pictures of each split; null keeps all.
        mirror: local folder that holds all this, as it is or below `vqa2/`.
        cache: another place where it may lie.
        max_broken: largest share of a split's pictures that are missing or cannot be decoded, and are left out.

    Raises:
        DataUnavailable: a file or folder is not there.
        ValueError: a file does not have the official form, questions and annotations do not belong together, or there
            is another number of questions or answers.
    """

    def copy(entry: str) -> Path:
        return find("vqa2", entry, mirror=mirror, cache=Path(cache))

    found = {}
    for split, files in splits.items():
        questions = copy(files["questions"])
        annotations = None if files["annotations"] is None else copy(files["annotations"])
        found[split] = read_questions(questions, annotations)
        asked_pictures.expect(questions, len(found[split]), files["rows"], "questions")
    answers = choose_answers(found, vocabulary)
    places = {split: copy(files["images"]) for split, files in splits.items()}
    with replace_folder(folder) as new:
        rows = {split: _rows(questions, places[split], limit) for split, questions in found.items()}
        asked_pictures.write(new, rows, max_broken, name="vqa2", source="VQA 2.0 on COCO 2014")
        (new / FILE).write_text(json.dumps(answers, indent=0) + "\n")


def stand_in(folder: Path, *, rows: int, splits: Mapping[str, Files], vocabulary: Vocabulary, **_: object) -> StandIn:
    """See `download.StandIn`: drawn pictures with questions that have as many answers as the vocabulary is to have."""
    config: dict[str, Files] = {}
    count = vocabulary["count"] or DRAWN_ANSWERS
    for split, files in splits.items():
        place = folder / files["images"]
        place.mkdir(parents=True, exist_ok=True)
        asked = range(max(rows, count) if split == vocabulary["splits"][0] else rows)
        for number in range(rows):
            (place / f"{_stem(files['images'])}_{number:012d}.jpg").write_bytes(pictures.drawn_jpeg(number))
        questions = [
            {"image_id": number % rows, "question": "Which number is it?", "question_id": number} for number in asked
        ]
        annotations = [
            {"question_id": number, "image_id": number % rows, "question_type": "which", "answer_type": "other",
             "multiple_choice_answer": f"sort {number % count}",
             "answers": [{"answer": f"sort {number % count}", "answer_confidence": "yes", "answer_id": person + 1}
                         for person in range(ANNOTATORS)]}
            for number in asked
        ]  # fmt: skip
        (folder / files["questions"]).write_text(json.dumps({"questions": questions}))
        if files["annotations"] is not None:
            (folder / files["annotations"]).write_text(json.dumps({"annotations": annotations}))
        config[split] = {**files, "rows": len(asked)}
    drawn = {**vocabulary, "splits": vocabulary["splits"][:1], "occurrences": 1, "count": count}
    return StandIn({"splits": config, "vocabulary": drawn, "limit": None, "cache": str(folder)}, dict.fromkeys(splits))


def read_questions(questions: Path, annotations: Path | None) -> list[Question]:
    """The questions of a split in the order of their file.

    Raises:
        ValueError: a file does not have the official form, an id is no number, a question is there twice, or one has no
            annotation.
    """
    entries = asked_pictures.read_json(questions, "questions")
    given = {} if annotations is None else _annotations(annotations)
    try:
        if annotations is not None and (open_ := [e["question_id"] for e in entries if e["question_id"] not in given]):
            raise ValueError(
                f"{annotations} has no answers to {len(open_)} questions of {questions}, {open_[0]} first."
            )
        for number, image in ((entry["question_id"], entry["image_id"]) for entry in entries):
            if not isinstance(number, int) or not isinstance(image, int):
                raise ValueError(
                    f"{questions} has the question_id {number!r} with the image_id {image!r}, not two numbers."
                )
        found = [
            Question(
                entry["question_id"], entry["image_id"], entry["question"].strip(),
                *given.get(entry["question_id"], ({}, "", "")),
            )
            for entry in entries
        ]  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{questions} does not have the official form ({type(error).__name__}: {error}).") from error
    if len({question.id for question in found}) < len(found):
        raise ValueError(f"{questions} has a question twice: each needs an id of its own.")
    return found


def _annotations(path: Path) -> dict[int, tuple[dict[str, int], str, str]]:
    """Of each question how many people gave each answer, the most frequent one, and its kind."""
    try:
        return {
            entry["question_id"]: (
                dict(Counter(each["answer"] for each in entry["answers"])),
                entry["multiple_choice_answer"],
                KINDS[KINDS.index(entry["answer_type"])],
            )
            for entry in asked_pictures.read_json(path, "annotations")
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not have the official form ({type(error).__name__}: {error}).") from error


def choose_answers(questions: Mapping[str, Sequence[Question]], vocabulary: Vocabulary) -> list[str]:
    """The answers that can be given, the most frequent first, and in alphabetical order among equal ones.

    The rule is that of `tools/compute_softscore.py` of hengyuan-hu/bottom-up-attention-vqa (commit 3925206): the
    answer that most people gave is normalised, and kept if it is that of enough questions.

    Raises:
        ValueError: a split is unknown, or there are not as many answers as are expected.
    """
    if unknown := sorted(set(vocabulary["splits"]) - set(questions)):
        raise ValueError(f"vocabulary.splits has {', '.join(unknown)}, expected some of {', '.join(questions)}.")
    times = Counter(label(each.most) for split in vocabulary["splits"] for each in questions[split] if each.given)
    kept = sorted(
        (answer for answer, n in times.items() if n >= vocabulary["occurrences"]), key=lambda a: (-times[a], a)
    )
    if not kept or vocabulary["count"] not in (None, len(kept)):
        raise ValueError(
            f"{len(kept)} answers are given {vocabulary['occurrences']} times or more in "
            f"{', '.join(vocabulary['splits'])}, expected {vocabulary['count']} (vocabulary.count)."
        )
    return kept


def read_answers(folder: Path) -> list[str]:
    """The answers that can be given of a prepared data set.

    Raises:
        ValueError: it has none.
    """
    if not (folder / FILE).is_file():
        raise ValueError(f"{folder} has no {FILE}: it is no data set of questions that `vqa2.prepare` wrote.")
    return asked_pictures.read_json(folder / FILE)


def results(answers: Iterable[tuple[int, str]]) -> str:
    """Answers, each with the id of its question, as the server of VQA and its evaluation code read them: JSON."""
    return json.dumps([{"question_id": question, "answer": answer} for question, answer in answers])


def _rows(questions: Sequence[Question], place: Path, limit: int | None) -> Iterator[asked_pictures.Row]:
    """Pictures in the order in which they are first asked about."""
    by_picture: dict[int, list[Question]] = {}
    for question in questions:
        by_picture.setdefault(question.image, []).append(question)
    for image, asked in list(by_picture.items())[:limit]:
        yield (
            place / f"{_stem(place.name)}_{image:012d}.jpg",
            {
                "id": image,
                "questions": [each.text for each in asked],
                "question_ids": [str(each.id) for each in asked],
                "kinds": [each.kind for each in asked],
                "answers": [json.dumps(dict(each.given), sort_keys=True) for each in asked],
            },
        )


def _stem(images: str) -> str:
    """How the names of COCO's files begin in a folder."""
    return f"COCO_{Path(images).name}"
