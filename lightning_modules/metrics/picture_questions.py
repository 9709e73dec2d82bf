"""Accuracy of VQA 2.0 (Goyal et al. 2017) and consistency of NLVR2 (Suhr et al. 2019); no torch.

Ten people answer each question of VQA. An answer counts as much as three of nine people who say it, at most 1, averaged
over which one of the ten is left out. Where they do not all agree, answers are normalised before they are compared
(`vqaEvaluation/vqaEval.py` of GT-Vision-Lab/VQA, commit a013f00; its outputs are facts of the tests here).
"""

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int

ANNOTATORS, ENOUGH = 10, 3  # people who answer, and how many others make an answer right
ARTICLES = {"a", "an", "the"}
NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(),
                   "0 0 1 2 3 4 5 6 7 8 9 10".split(), strict=True))  # fmt: skip
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIODS = 32  # full stops that are taken out at most: the official call passes `re.UNICODE`, 32, as a count
# What is written for these words without their apostrophes, or with one of two.
CONTRACTED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm I've
isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
TWICE = """
couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've someone'd've something'd've there'd've
they'd've we'd've who'd've wouldn't've you'd've
""".split()
# Where the official table does not follow that rule.
ODD = {
    "let's": "let's", "she's": "she's", "somebody'd": "somebodyd", "somebodyd've": "somebody'd've",
    "somebody'dve": "somebody'd've", "somebodys": "somebody's", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at", "yall'll": "y'all'll", "y'allll": "y'all'll", "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've",
}  # fmt: skip


def _contractions() -> dict[str, str]:
    found = {whole.replace("'", ""): whole for whole in CONTRACTED}
    for whole in TWICE:
        start, middle, end = whole.split("'")
        found |= {f"{start}{middle}'{end}": whole, f"{start}'{middle}{end}": whole}
    return found | ODD


CONTRACTIONS = _contractions()


def normalised(answer: str) -> str:
    """An answer as the official code compares it: lower case, no articles, digits, no punctuation.

    A sign of punctuation is taken out where one is beside a space, or where digits have a comma between them, and
    becomes a space elsewhere.
    """
    found, digits = answer, re.search(r"\d,\d", answer) is not None
    for sign in PUNCTUATION:
        alone = f"{sign} " in answer or f" {sign}" in answer
        found = found.replace(sign, "" if alone or digits else " ")
    found = re.sub(r"\.(?!\d)", "", found, count=PERIODS)
    words = (NUMBERS.get(word, word) for word in found.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def written(answer: str) -> str:
    """An answer in one line, as both sides are read."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def label(answer: str) -> str:
    """An answer as an entry of the usual vocabulary: normalised, without commas."""
    return normalised(answer).replace(",", "")


def credits_of(given: Mapping[str, int]) -> dict[str, float]:
    """What each answer that was given counts, by its form in a comparison; others count nothing.

    Args:
        given: how many of the people gave each answer.

    Raises:
        ValueError: nobody answered.
    """
    counts = Counter()
    for answer, times in given.items():
        counts[written(answer)] += times
    if not (people := sum(counts.values())):
        raise ValueError("a question has no answers, expected those of ten people: it is one of a test set.")
    if len(counts) > 1:
        compared = Counter()
        for answer, times in counts.items():
            compared[normalised(answer)] += times
        counts = compared
    return {answer: _averaged(times, people) for answer, times in counts.items()}


def _averaged(times: int, people: int) -> float:
    """The mean over who is left out: one who says it, or one who does not."""
    said, unsaid = min(1.0, (times - 1) / ENOUGH), min(1.0, times / ENOUGH)
    return (times * said + (people - times) * unsaid) / people


def consistency(right: Bool[np.ndarray, " _"], groups: Int[np.ndarray, " _"]) -> float:
    """Share of the sentences that are judged rightly of every pair of pictures, in percent (NLVR2, `eval/metrics.py`).

    Args:
        right: whether each judgement is.
        groups: which sentence it is about.

    Raises:
        ValueError: there are none, or not as many groups.
    """
    if not len(right) or len(right) != len(groups):
        raise ValueError(f"there are {len(right)} judgements of {len(groups)} sentences, expected one of each.")
    wrong = np.unique(groups[~right])
    return 100 * (1 - len(wrong) / len(np.unique(groups)))
