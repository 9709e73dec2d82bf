"""CIDEr-D as a reward: captions a second against a loop that counts all sentences anew in each call, as text.

The loop does what self-critical training with coco-caption's scorer does: ids become strings, references included, and
document frequencies come from the minibatch. Its rewards and ours must be equal.
"""

import math
import time
from collections import Counter, defaultdict
from statistics import median

import numpy as np

from lightning_modules.metrics.cider import CaptionReward

PAPERS = ("unified_t2i_i2t",)

IMAGES, REFERENCES, WORDS, LONGEST, END = 2000, 5, 2000, 16, 9999
BATCH, REPEATS = 80, 3  # images of a minibatch, each with a sampled and a greedy caption
TARGET = 2000  # captions a second: what sampling them on one GPU would not wait for


def main() -> list[dict]:
    """One row for each way to compute the reward of the same captions."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, WORDS + 1)
    lengths = rng.integers(8, 14, (IMAGES, REFERENCES))
    references = {
        image: [[*rng.choice(WORDS, length, p=frequency / frequency.sum()).tolist(), END] for length in lengths[image]]
        for image in range(IMAGES)
    }
    batches = [_batch(rng, references, start) for start in range(0, IMAGES, BATCH)]
    official = {"batch_frequencies": True, "markers_inside": True}
    corpus, anew = (CaptionReward(references, end=END, markers=[0], **way) for way in ({}, official))
    loop_seconds, looped = _timed(lambda images, captions: _loop(images, captions, references), batches)
    rows = [{"reward": "loop over text, frequencies of the minibatch", "captions_per_second": loop_seconds}]
    for name, reward in (
        ("ours, frequencies of the minibatch", anew),
        ("ours, frequencies of the corpus, images seen for the first time", corpus),
        ("ours, frequencies of the corpus, images seen before", corpus),
    ):
        repeats = 1 if name.endswith("first time") else REPEATS
        speed, found = _timed(reward, batches, repeats)
        if reward is anew:
            np.testing.assert_allclose(found, looped, atol=1e-9)
        rows.append(
            {"reward": name, "captions_per_second": speed, "times_faster": speed / loop_seconds, "target": TARGET}
        )
    return rows


def _batch(rng: np.random.Generator, references: dict, start: int) -> tuple[list[int], np.ndarray]:
    """Two captions of each image: one of its references, and one of its references with three other words."""
    images = list(range(start, start + BATCH)) * 2
    captions = np.zeros((len(images), LONGEST), np.int64)
    for row, image in enumerate(images):
        words = references[image][row % REFERENCES]
        captions[row, : len(words)] = words
        if row >= BATCH:
            captions[row, rng.integers(0, len(words) - 1, 3)] = rng.integers(0, WORDS, 3)
    return images, captions


def _timed(reward, batches: list, repeats: int = REPEATS) -> tuple[float, np.ndarray]:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        found = [reward(*batch) for batch in batches]
        seconds.append(time.process_time() - start)
    return sum(len(images) for images, _ in batches) / median(seconds), np.concatenate(found)


def _loop(images: list[int], captions: np.ndarray, references: dict) -> np.ndarray:
    said = [_counts(_text(row)) for row in captions.tolist()]
    known = [[_counts(_text(ids)) for ids in references[image]] for image in images]
    having = defaultdict(float)
    for sentences in known:
        for gram in {gram for counts in sentences for gram in counts}:
            having[gram] += 1
    total = math.log(len(images))
    return np.array([_score(one, others, having, total) for one, others in zip(said, known, strict=True)])


def _text(ids: list[int]) -> str:
    return " ".join(str(token) for token in ids[: ids.index(END) + 1])


def _counts(sentence: str) -> Counter:
    words = sentence.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def _vectors(counts: Counter, having: dict, total: float) -> tuple[list[dict], list[float], int]:
    vectors, norms, length = [{} for _ in range(4)], [0.0] * 4, 0
    for gram, times in counts.items():
        order = len(gram) - 1
        weight = times * (total - math.log(max(1.0, having[gram])))
        vectors[order][gram] = weight
        norms[order] += weight**2
        length += times if order == 1 else 0
    return vectors, [math.sqrt(norm) for norm in norms], length


def _score(caption: Counter, references: list[Counter], having: dict, total: float) -> float:
    vectors, norms, length = _vectors(caption, having, total)
    score = 0.0
    for counts in references:
        others, other_norms, other_length = _vectors(counts, having, total)
        for order in range(4):
            shared = sum(
                min(w, others[order].get(g, 0.0)) * others[order].get(g, 0.0) for g, w in vectors[order].items()
            )
            if norms[order] and other_norms[order]:
                apart = math.exp(-((length - other_length) ** 2) / 72)
                score += shared / norms[order] / other_norms[order] * apart
    return 10 * score / 4 / len(references)
