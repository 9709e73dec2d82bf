"""Scores of answers to the questions of MMBench, CCBench, MME, ScienceQA, HallusionBench and MMMU. Imports no torch.

Read `evaluate` first; `score` scores a file of answers. Files are the tables of VLMEvalKit
(`datasets.question_tables`). Answers are read by the rules of
open-compass/VLMEvalKit at e8e78f0 under its policy `exact_matching`: `chosen` by `vlmeval/utils/matching_util.py`,
`yes_or_no` and the scores of MME and HallusionBench by `vlmeval/dataset/utils/yorn.py`, the others by
`vlmeval/dataset/utils/multiple_choice.py`. Given a judge, VLMEvalKit asks a language model where these rules read
nothing; here such an answer is wrong, and counted. Its list of refusals by models behind an API is left out.

MME adds, for each of its 14 parts, the percentage of right answers and that of pictures of which both are right.
HallusionBench has means over answers (aAcc), figures (fAcc) and questions (qAcc). MMBench and CCBench count a question
as right if it is so in each order of its options (`circular`). Where a table has several splits, as MMMU's has, each
has its own scores.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lightning_modules.datasets.question_tables import Question, read_questions, read_table, row_of
from lightning_modules.runs import Evaluation, Run
from lightning_modules.vision_language.told import texts_of

CIRCLE = 1_000_000  # the order of MMBench's options is the index divided by this; the question is the rest
PERCENT = 100.0
PERCEPTION = ("OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene")
COGNITION = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")
SIGNS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))  # what may stand around a letter
LAST = 4  # words at the end of an answer, in which its letter stands first
NONE = "Z"  # says that no option fits
ANNOUNCED = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)  # of longer answers, whatever follows
LENGTH = 2  # an answer longer than so many times all options says none of them
OTHER = "Other Answers"  # the second option of an open question
WORDS = re.compile(r"[^\w/.-]+")  # what a metric's name has none of
JOINTS = ';/[]"{}()=+\\_-><@`,?!'  # taken out of an answer with yes or no


def read_answers(path: Path, questions: Sequence[Question]) -> list[str]:
    """The column `prediction` of a table of answers, in the order of the questions.

    Raises:
        ValueError: it cannot be read, lacks a column or the answer to a question, or has two answers to one.
    """
    said = {row["index"]: row["prediction"] or "" for row in read_table(path, ("index", "prediction"))}
    if missing := [question.index for question in questions if question.index not in said]:
        raise ValueError(f"{path} has no answer to {len(missing)} questions, {missing[0]} first: ask all of them.")
    return [said[question.index] for question in questions]


def chosen(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer names, or None.

    That is the only letter among its words, if it first stands in the last four; or the one behind "answer is"; or that
    of the only option whose text is in it, in capitals or not, be it part of a word, if the answer is not much longer
    than the options. A word Z and no letter says that none fits.
    """
    words = answer.translate(SIGNS).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - LAST:
        return letters[0]
    if not letters and NONE in words:
        return None
    if (found := ANNOUNCED.search(answer)) and (letter := found[1].upper()) in options:
        return letter
    text = answer.lower()
    if len(text) > LENGTH * sum(map(len, options.values())):
        return None
    named = [letter for letter, option in options.items() if option.lower() in text]
    return named[0] if len(named) == 1 else None


def yes_or_no(answer: str) -> str | None:
    """What an answer says as a word of its own, or None if it says neither or both.

    A sign that stands beside a space anywhere is taken out, another one parts words; each is taken out if there is a
    number with a comma. So is a full stop that is in no number; other signs belong to words.
    """
    text = lower = answer.lower()
    for sign in JOINTS:
        inside = f"{sign} " not in lower and f" {sign}" not in lower and not re.search(r"\d,\d", lower)
        text = text.replace(sign, " " if inside else "")
    said = {"yes", "no"} & set(re.sub(r"(?<!\d)\.(?!\d)", "", text).split())
    return said.pop() if len(said) == 1 else None


def right(questions: Sequence[Question], answers: Sequence[str]) -> tuple[np.ndarray, int]:
    """Which answers are right, and how many name nothing that was asked for.

    Raises:
        ValueError: there are no questions, or not as many answers.
    """
    if not questions or len(questions) != len(answers):
        raise ValueError(f"there are {len(questions)} questions and {len(answers)} answers, expected one for each.")
    said = [chosen(answer, question.options) if question.options else yes_or_no(answer)
            for question, answer in zip(questions, answers, strict=True)]  # fmt: skip
    true = [question.answer if question.options else truth(question.answer) for question in questions]
    return np.array([one is not None and one == other for one, other in zip(said, true, strict=True)]), said.count(None)


def truth(answer: str) -> str:
    """Yes or no; HallusionBench's table may write 1 and 0."""
    return {"1": "yes", "0": "no"}.get(answer, answer.lower())


def accuracy(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """ScienceQA: `accuracy_percent`, that of each `category`, and `unread_percent`, answers that name nothing.

    Where the questions are of several splits, `<split>/accuracy_percent` and so on are those of each.

    Raises:
        ValueError: see `right`.
    """
    found, unread = right(questions, answers)
    return _by_category(questions, found) | {"unread_percent": PERCENT * unread / len(questions)}


def mmmu(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """MMMU, see `accuracy`. An open question becomes one with two options, its answer and any other.

    As in VLMEvalKit, a right answer that is a capital letter is that of an option, in open questions too.

    Raises:
        ValueError: see `right`.
    """
    return accuracy([_closed(question) for question in questions], answers)


def _closed(question: Question) -> Question:
    right_one = question.answer if re.fullmatch("[A-Z]", question.answer) else "A"
    given = {} if "A" in question.options else {"A": question.answer, "B": OTHER}
    return replace(question, answer=right_one, options={**question.options, **given})


def circular(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """MMBench and CCBench: a question is right if it is so in each order of its options, see `CIRCLE`.

    Raises:
        ValueError: see `right`; or an index is no number.
    """
    found, unread = right(questions, answers)
    if odd := [question.index for question in questions if not question.index.isdecimal()]:
        raise ValueError(f"the index {odd[0]!r} is no number, from which the order of the options could be read.")
    groups: dict[int, list[int]] = {}
    for row, question in enumerate(questions):
        groups.setdefault(int(question.index) % CIRCLE, []).append(row)
    firsts = [questions[rows[0]] for rows in groups.values()]
    all_right = np.array([found[rows].all() for rows in groups.values()])
    plain = np.array([found[rows[0]] for rows in groups.values()])
    return _by_category(firsts, all_right) | {
        "plain_percent": PERCENT * float(plain.mean()),
        "unread_percent": PERCENT * unread / len(questions),
    }


def _by_category(questions: Sequence[Question], found: np.ndarray) -> dict[str, float]:
    """Of all questions, and of each split if there are several."""
    of, split = (np.array([question.more.get(name, "") for question in questions]) for name in ("category", "split"))
    scores = _shares(of, found)
    for name in np.unique(split) if len(np.unique(split)) > 1 else ():
        own = _shares(of[split == name], found[split == name])
        scores |= {f"{name or 'none'}/{part}": value for part, value in own.items()}
    return scores


def _shares(of: np.ndarray, found: np.ndarray) -> dict[str, float]:
    parts = {f"accuracy_percent/{name}": PERCENT * float(found[of == name].mean()) for name in np.unique(of) if name}
    return {"accuracy_percent": PERCENT * float(found.mean())} | parts


def mme(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """`perception`, `cognition` and the score of each part, of 200 each. The paper's figure is that of perception.

    Two questions of one part belong to a picture, named in the column `image_path`, or follow each other.

    Raises:
        ValueError: see `right`; or a part is unknown, or a picture has not two questions.
    """
    found, unread = right(questions, answers)
    pairs: dict[tuple[str, str], list[bool]] = {}
    for row, question in enumerate(questions):
        part = question.more.get("category", "")
        if part not in (*PERCEPTION, *COGNITION):
            raise ValueError(f"question {question.index} has the category {part!r}, expected a part of MME.")
        pairs.setdefault((part, question.more.get("image_path") or str(row // 2)), []).append(bool(found[row]))
    if odd := [picture for (_, picture), own in pairs.items() if len(own) != 2]:
        raise ValueError(f"{len(odd)} pictures have not two questions, {odd[0]!r} first: is the table complete?")
    scores = {}
    for part in dict.fromkeys(part for part, _ in pairs):
        own = np.array([each for (of, _), each in pairs.items() if of == part])
        scores[part] = PERCENT * float(own.mean() + own.all(1).mean())
    sums = {"perception": PERCEPTION, "cognition": COGNITION}
    totals = {name: float(sum(scores.get(part, 0.0) for part in parts)) for name, parts in sums.items()}
    return totals | scores | {"unread_percent": PERCENT * unread / len(questions)}


def hallusion(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """`aAcc`, `fAcc`, `qAcc` in percent, and their mean `overall`, which VLMEvalKit reports.

    As in VLMEvalKit's table, an index ends in `_<set>_<figure>_<question>`; `l2-category` says what a set is of.

    Raises:
        ValueError: see `right`; or an index has another form, or the column is missing.
    """
    found, unread = right(questions, answers)
    figures: dict[tuple[str, ...], list[bool]] = {}
    kinds: dict[tuple[str, ...], list[bool]] = {}
    for question, own in zip(questions, found.tolist(), strict=True):
        parts, of = question.index.rsplit("_", 3)[1:], question.more.get("l2-category")
        if len(parts) != 3 or not of:
            raise ValueError(
                f"the index is {question.index!r} and l2-category {of!r}, expected an index that ends in "
                "_<set>_<figure>_<question>, and a category."
            )
        figures.setdefault((of, *parts[:2]), []).append(own)
        kinds.setdefault((of, parts[0], parts[2]), []).append(own)
    scores = {"aAcc": PERCENT * float(found.mean())}
    scores |= {name: PERCENT * float(np.mean([all(own) for own in groups.values()]))
               for name, groups in (("fAcc", figures), ("qAcc", kinds))}  # fmt: skip
    return scores | {"overall": float(np.mean([*scores.values()])), "unread_percent": PERCENT * unread / len(questions)}


SCORES: dict[str, Callable[[Sequence[Question], Sequence[str]], dict[str, float]]] = {
    "mmbench": circular, "ccbench": circular, "mme": mme, "scienceqa": accuracy, "hallusionbench": hallusion,
    "mmmu": mmmu,
}  # fmt: skip


def score(answers: str | Path, table: str | Path, benchmark: str) -> dict[str, float]:
    """The scores of a file of answers, of whatever model, to the questions of a benchmark's table.

    Args:
        answers: a table with the columns `index` and `prediction`, see `read_answers`.
        table: that of the questions, see `datasets.question_tables`.
        benchmark: decides how answers are scored.

    Raises:
        ValueError: the benchmark is unknown, a file cannot be read, or they do not belong together.
    """
    if benchmark not in SCORES:
        raise ValueError(f"benchmark is {benchmark!r}, expected one of {', '.join(SCORES)}.")
    questions = read_questions(Path(table))
    return SCORES[benchmark](questions, read_answers(Path(answers), questions))


def evaluate(runs: Sequence[Run], dataset: str) -> Evaluation:
    """The scores of a benchmark, and the first seed's answers as a table that `read_answers` reads (`answers.tsv`).

    Args:
        runs: finished runs of `Answering`, one for each seed.
        dataset: first part of every metric's name.

    Raises:
        ValueError: there is no run, or see the scores of the benchmark.
    """
    if not runs:
        raise ValueError("there is no run to evaluate: train the arm first.")
    metrics, tables = {}, []
    for run in runs:
        arrays = run.predictions()
        rows, said = [row_of(text) for text in texts_of(arrays["answer/table"])], texts_of(arrays["answer/written"])
        questions = [question for _, question in rows]
        found = SCORES[rows[0][0]](questions, said)
        metrics[run.seed] = {f"{dataset}/{WORDS.sub('_', name)}": value for name, value in found.items()}
        tables.append(_table(questions, said))
    return Evaluation(metrics=metrics, files={"answers.tsv": tables[0]})


def _table(questions: Sequence[Question], said: Sequence[str]) -> bytes:
    file = io.StringIO()
    table = csv.writer(file, delimiter="\t", lineterminator="\n")
    table.writerows([("index", "prediction"), *((one.index, text) for one, text in zip(questions, said, strict=True))])
    return file.getvalue().encode()
