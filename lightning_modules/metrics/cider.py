"""CIDEr-D: how much a caption has in common with what several people wrote of the same image (Vedantam et al. 2015).

`CiderD` is the reported number (of words) and `CaptionReward` the reward inside training (of token ids). Coco-caption
and the papers that use it say "CIDEr" and mean this variant. With c a caption, r a reference, s either, g an n-gram,
and documents = the reference sets of the N images that are scored together, unless a table is given:

    w_s(g) = count_s(g) (ln N - ln max(1, number of documents with g))
    sim_n(c, r) = sum_g min(w_c(g), w_r(g)) w_r(g) / (|w_c| |w_r|) exp(-(l_c - l_r)^2 / 72),  l = number of bigrams
    score of an image = 10 mean over n = 1..4 and its references of sim_n;  0 to 10. Papers print it times 100.
"""

import math
import warnings
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

ORDERS = 4
VARIANCE = 36  # of the Gaussian over differences of length, sigma 6
CACHED_IMAGES = 4096  # whose reference vectors are kept: 110 MB at five references of eleven words
ONE_IMAGE = (
    "CIDEr-D of a single image is 0 whatever its captions: a word tells nothing if all documents (one) have it. Score "
    "captions of several images together, or give document frequencies of a larger set."
)

Token = Hashable
NGram = tuple[Token, ...]
Tokens = Sequence[Token]


def ngrams(tokens: Tokens, order: int) -> Iterator[NGram]:
    """All runs of `order` tokens."""
    return zip(*(tokens[start:] for start in range(order)), strict=False)


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many documents (reference sets of an image) an n-gram is, and how many documents there are."""

    counts: Mapping[NGram, int]
    documents: int

    @classmethod
    def of(cls, documents: Iterable[Sequence[Tokens]]) -> "DocumentFrequencies":
        """Count them in the references of each image, which may come image by image."""
        counts, total, orders = Counter(), 0, range(1, ORDERS + 1)
        for references in documents:
            counts.update({gram for tokens in references for order in orders for gram in ngrams(tokens, order)})
            total += 1
        return cls(counts, total)


class _Vectors(NamedTuple):
    """A sentence as tf-idf vectors, one for each order, their norms, and its length in bigrams."""

    weights: list[dict[NGram, float]]
    norms: list[float]
    length: int


class CiderD:
    """Scores captions against the references of their images.

    Args:
        references: the token lists of each image.
        frequencies: a table counted elsewhere, such as on the training set for a reward; None: on `references`.

    Raises:
        ValueError: there are no references, or none of an image.
    """

    def __init__(self, references: Mapping[Hashable, Sequence[Tokens]], frequencies: DocumentFrequencies | None = None):
        check_references(references)
        self.references = references
        self.frequencies = frequencies or DocumentFrequencies.of(references.values())
        if frequencies is None and len(references) == 1:
            warnings.warn(ONE_IMAGE, stacklevel=2)
        self._log_documents = math.log(self.frequencies.documents)
        self._image = lru_cache(CACHED_IMAGES)(self._vectors_of_image)

    def __call__(self, images: Sequence[Hashable], captions: Sequence[Tokens]) -> Float[np.ndarray, " captions"]:
        """The score of each caption, 0 to 10; `images` says of which image each is.

        Raises:
            ValueError: an image has no references, or the numbers of images and captions differ.
        """
        check_images(images, self.references)
        if len(images) != len(captions):
            raise ValueError(f"{len(captions)} captions of {len(images)} images: each caption needs the id of its own.")
        return np.array(
            [
                self._score(self._vectors(tokens), self._image(image))
                for image, tokens in zip(images, captions, strict=True)
            ]
        )

    def _score(self, caption: _Vectors, references: list[_Vectors]) -> float:
        total = 0.0
        for reference in references:
            closeness = math.exp(-((caption.length - reference.length) ** 2) / (2 * VARIANCE))
            for order in range(ORDERS):
                norm = caption.norms[order] * reference.norms[order]
                if norm:
                    total += _overlap(caption.weights[order], reference.weights[order]) / norm * closeness
        return 10 * total / (ORDERS * len(references))

    def _vectors_of_image(self, image: Hashable) -> list[_Vectors]:
        return [self._vectors(tokens) for tokens in self.references[image]]

    def _vectors(self, tokens: Tokens) -> _Vectors:
        weights, log, known = [], math.log, self.frequencies.counts.get
        for order in range(1, ORDERS + 1):
            counts = Counter(ngrams(tokens, order))
            weights.append({g: count * (self._log_documents - log(known(g, 1))) for g, count in counts.items()})
        norms = [math.sqrt(sum(weight * weight for weight in vector.values())) for vector in weights]
        return _Vectors(weights, norms, max(len(tokens) - 1, 0))


def _overlap(caption: dict[NGram, float], reference: dict[NGram, float]) -> float:
    """In the order of the caption: the order of a set of words differs from process to process, and so would sums."""
    total = 0.0
    for gram, weight in caption.items():
        if gram in reference:
            other = reference[gram]
            total += min(weight, other) * other
    return total


def check_references(references: Mapping[Hashable, Sequence[Tokens]]) -> None:
    """Refuse what no caption can be scored against.

    Raises:
        ValueError: there are no images, or one has no references.
    """
    if not references:
        raise ValueError("there are no references: captions are scored against at least one for each image.")
    if empty := [image for image, known in references.items() if not len(known)]:
        raise ValueError(f"{_some(empty)} of {len(references)} images have no references: leave them out, or add some.")


def check_images(images: Iterable[Hashable], references: Collection[Hashable]) -> None:
    """Refuse captions of images that nobody has described.

    Raises:
        ValueError: an image is not in `references`.
    """
    if unknown := [image for image in dict.fromkeys(images) if image not in references]:
        raise ValueError(
            f"there are no references for {_some(unknown)} of the captioned images; references are of "
            f"{_some(list(references))}: are the ids of one kind (numbers, not text), and is it the same split?"
        )


def _some(ids: Sequence[Hashable]) -> str:
    """How many ids there are and the first of them: `3 (17, 18, 21)`."""
    return f"{len(ids)} ({', '.join(map(repr, ids[:5]))}{', ...' if len(ids) > 5 else ''})"


class CaptionReward:
    """CIDEr-D of sampled captions, as token ids, for self-critical training.

    A caption ends with the first `end`; what follows, padding and markers are no words of it.

    Args:
        references: token ids of the reference captions of each training image.
        end: id of the token that ends a caption.
        markers: ids that are no words: padding, start, mask.
        batch_frequencies: count documents in each call, each row of it being one, instead of once in all references.
            So does the official code of unified-t2i-i2t, where a call holds the sampled captions and the greedy ones.
        markers_inside: count `end` and `markers` as words, as that code does. Padding after the end is none there, too.
            A scored caption that was cut is given its end; a reference that was cut is not.

    Raises:
        ValueError: there are no references, or none of an image.
    """

    def __init__(
        self,
        references: Mapping[Hashable, Sequence[Sequence[int]]],
        *,
        end: int,
        markers: Collection[int],
        batch_frequencies: bool = False,
        markers_inside: bool = False,
    ):
        self.end, self.markers, self.markers_inside = end, frozenset(markers), markers_inside
        check_references(references)
        self.references = {image: [self.words(ids) for ids in known] for image, known in references.items()}
        self.scorer = None if batch_frequencies else CiderD(self.references)

    def __call__(
        self, images: Sequence[Hashable], captions: Int[np.ndarray, "captions tokens"]
    ) -> Float[np.ndarray, " captions"]:
        """The score of each caption, 0 to 10; `images` says of which image each is.

        Raises:
            ValueError: an image has no references, or the numbers of images and captions differ.
        """
        said = [self.words([*ids, self.end]) for ids in captions.tolist()]
        return (self.scorer or self._of_batch(images))(images, said)

    def words(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens that count of one caption."""
        ids = tuple(ids)
        inside = ids[: ids.index(self.end) + self.markers_inside] if self.end in ids else ids
        return inside if self.markers_inside else tuple(token for token in inside if token not in self.markers)

    def _of_batch(self, images: Sequence[Hashable]) -> CiderD:
        check_images(images, self.references)
        if len(set(images)) == 1:
            warnings.warn(ONE_IMAGE, stacklevel=3)
        frequencies = DocumentFrequencies.of(self.references[image] for image in images)
        return CiderD({image: self.references[image] for image in images}, frequencies)
