"""Scores of captions as the COCO caption evaluation defines them: BLEU-1 to 4, ROUGE-L, CIDEr-D, METEOR and SPICE.

The first six are computed here, in Python, from the words of `ptb_tokenizer`. METEOR and SPICE exist as Java programs
in the package pycocoevalcap (101 MB) only, and SPICE fetches models at its first use: they are computed if these are
installed and the configuration asks for them. Otherwise they are reported as not computed, with the reason, never as 0.
"""

import importlib.util
import math
import re
import shutil
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lightning_modules.metrics.cider import CiderD, check_images, check_references, ngrams
from lightning_modules.metrics.ptb_tokenizer import tokenize

BETA = 1.2  # of ROUGE-L: how much more recall counts than precision
TINY, SMALL = 1e-15, 1e-9  # keep BLEU of nothing in common above 0, as in the official code

Words = Sequence[str]
Captions = Mapping[Hashable, Words]
References = Mapping[Hashable, Sequence[Words]]


@dataclass(frozen=True)
class CaptionScores:
    """Scores of one set of captions, and why the others are missing.

    `scores`: `bleu_1` to `bleu_4`, `rouge_l`, `meteor`, `spice` from 0 to 1, `cider_d` from 0 to 10; papers print all
    times 100. `not_computed`: name -> reason.
    """

    scores: dict[str, float]
    not_computed: dict[str, str] = field(default_factory=dict)


def score_captions(
    captions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], *, java: bool = False
) -> CaptionScores:
    """All scores of one caption for each image.

    Args:
        captions: image id -> sentence.
        references: image id -> sentences of people, of exactly the captioned images: scores of a part of a test set
            are not those of the set, and CIDEr-D counts documents in what is given here.
        java: also compute METEOR, and SPICE where its models have been fetched, with pycocoevalcap.

    Raises:
        ValueError: captions and references are not of the same images, or an image has no references.
    """
    said = {image: tokenize(sentence) for image, sentence in captions.items()}
    known = {image: [tokenize(sentence) for sentence in sentences] for image, sentences in references.items()}
    _check(said, known)
    scores = {f"bleu_{order}": value for order, value in enumerate(bleu(said, known), start=1)}
    scores["rouge_l"] = float(rouge_l(said, known).mean())
    scores["cider_d"] = float(CiderD(known)(list(said), list(said.values())).mean())
    missing = {}
    for name, score in {"meteor": _meteor, "spice": _spice}.items():
        if reason := _why_not(name) if java else "not asked for: it needs Java":
            missing[name] = reason
        else:
            scores[name] = score(said, known)
    return CaptionScores(scores, missing)


def without_repeated_words(sentence: str) -> str:
    """The sentence with one of each run of the same word: "a a red red ring" -> "a red ring"; case counts."""
    return re.sub(r"\b(\w+)(?: \1)+\b", r"\1", sentence)


def bleu(captions: Captions, references: References, orders: int = 4) -> list[float]:
    """BLEU-1 to BLEU-`orders` of the whole corpus (Papineni et al. 2002), each in [0, 1].

    Counts are clipped at the most that one reference has; the length held against is the closest one, the shorter of
    two that are equally close.

    Raises:
        ValueError: captions and references are not of the same images.
    """
    _check(captions, references)
    matched, tried = np.zeros(orders), np.zeros(orders)
    length = closest = 0
    for image, words in captions.items():
        length += len(words)
        closest += min((abs(len(other) - len(words)), len(other)) for other in references[image])[1]
        for order in range(1, orders + 1):
            found = Counter(ngrams(words, order))
            allowed = Counter()
            for other in references[image]:
                allowed |= Counter(ngrams(other, order))
            matched[order - 1] += (found & allowed).total()
            tried[order - 1] += found.total()
    precision = (matched + TINY) / (tried + SMALL)
    ratio = (length + TINY) / (closest + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [float(brevity * precision[:order].prod() ** (1 / order)) for order in range(1, orders + 1)]


def rouge_l(captions: Captions, references: References) -> Float[np.ndarray, " images"]:
    """ROUGE-L of each caption (Lin 2004), in [0, 1]: F-measure of the longest common subsequence.

    Best precision and best recall may come from two references, as in the official code.

    Raises:
        ValueError: captions and references are not of the same images.
    """
    _check(captions, references)
    scores = np.zeros(len(captions))
    for row, (image, words) in enumerate(captions.items()):
        common = [(_common(words, other), len(other)) for other in references[image]]
        precision = max(shared for shared, _ in common) / max(len(words), 1)
        recall = max(shared / max(size, 1) for shared, size in common)
        if precision and recall:
            scores[row] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


def _common(one: Words, other: Words) -> int:
    """Length of the longest common subsequence."""
    before = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for place, candidate in enumerate(other):
            row.append(before[place] + 1 if word == candidate else max(before[place + 1], row[place]))
        before = row
    return before[-1]


def _check(captions: Captions, references: References) -> None:
    check_references(references)
    check_images(captions, references)
    if left := [image for image in references if image not in captions]:
        raise ValueError(
            f"{len(left)} of {len(references)} images have no caption, {left[0]!r} first: give the references of the "
            "captioned images alone, and say of which part of the set the scores are."
        )


def _why_not(name: str) -> str | None:
    """What keeps METEOR or SPICE from being computed on this machine."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None:
        return "pycocoevalcap is not installed: pip install --no-deps pycocoevalcap"
    if shutil.which("java") is None:
        return "there is no java on the path"
    models = Path(package.submodule_search_locations[0], "spice", "lib", "stanford-corenlp-3.6.0-models.jar")
    if name == "spice" and not models.exists():
        return "the models of SPICE are not there: python -m pycocoevalcap.spice.get_stanford_models"
    return None


def _meteor(captions: Captions, references: References) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    program = Meteor()
    score = program.compute_score(*_sentences(captions, references))[0]
    for pipe in (program.meteor_p.stdout, program.meteor_p.stderr):
        pipe.close()
    return float(score)


def _spice(captions: Captions, references: References) -> float:
    from pycocoevalcap.spice.spice import Spice

    return float(Spice().compute_score(*_sentences(captions, references))[0])


def _sentences(captions: Captions, references: References) -> tuple[dict, dict]:
    """References and captions in the form that pycocoevalcap takes."""
    said = {image: [" ".join(words)] for image, words in captions.items()}
    return {image: [" ".join(words) for words in references[image]] for image in captions}, said
