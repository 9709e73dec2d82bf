"""Numbers reported for generated pictures and for what is said of them (numpy in, Python floats out).

`fd_world` is a Fréchet distance between features of a small classifier trained on the captioned world. It is no FID,
which is the same distance between features of one certain Inception network and needs its weights (`make_fid`): values
of different networks cannot be compared, and no other number may bear that name. The same holds for `is_world` and the
Inception Score (`make_inception_score`).
"""

import importlib.util
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore

INCEPTION = 2048  # features of its last pooling
OTHER_CAPTIONS = 99  # that a picture's own is found among: R-precision in the official code of unified-t2i-i2t
Attributes = Mapping[str, Int[np.ndarray, "samples _"]]  # attribute -> (samples, objects)


def frechet_distance(one: Float[np.ndarray, "many features"], other: Float[np.ndarray, "others _"]) -> float:
    """Fréchet distance of two sets of features taken as Gaussians (Heusel et al. 2017, Eq. 6), in [0, inf).

    |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), the last trace as the sum of the singular values of
    C_1^(1/2) C_2^(1/2): no square root of a matrix that rounding made indefinite, and nothing complex.

    Raises:
        ValueError: the sets differ in their features, are too small for them or hold NaN, or neither varies.
    """
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"features of one network are compared, but there are {one.shape[1]} and {other.shape[1]}.")
    if all((np.ptp(features, axis=0) == 0).all() for features in (one, other)):
        raise ValueError("all features are constant: the network tells no sample from another, nor would a distance.")
    means, roots = zip(*map(_gaussian, (one, other)), strict=True)
    overlap = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    spread = sum((root**2).sum() for root in roots)
    return float(max(((means[0] - means[1]) ** 2).sum() + spread - 2 * overlap, 0.0))


def _gaussian(features: Float[np.ndarray, "samples features"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and a root R of the covariance: R R^T."""
    samples, width = features.shape
    if samples <= width:
        raise ValueError(
            f"{samples} samples are too few for the covariance of {width} features, which would be singular and the "
            f"distance far too large: give at least {width + 1}, or features of fewer dimensions."
        )
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise ValueError("the features hold NaN or infinite values.")
    values, vectors = np.linalg.eigh(np.cov(features, rowvar=False).reshape(width, width))
    return features.mean(axis=0), vectors * np.sqrt(np.maximum(values, 0))


def fd_world(
    generated: Float[np.ndarray, "generated features"], real: Float[np.ndarray, "real features"], seed: int = 0
) -> dict[str, float]:
    """Distance of generated pictures from real ones beside that of other real ones, at the same number of samples.

    The distance grows as samples get fewer, so a value without its floor says nothing. Real pictures are split in half
    at random: one half is what both others, the generated pictures and the second half, are compared with.

    Args:
        generated: features of generated pictures in random order; those beyond half the number of real ones are unused.
        real: features that the same network gives of real pictures.
        seed: of the split.

    Returns:
        `fd_world`; `fd_world_real`, the floor; `fd_world_samples`, the number of samples on each side.

    Raises:
        ValueError: see `frechet_distance`.
    """
    samples = min(len(generated), len(real) // 2)
    order = np.random.default_rng(seed).permutation(len(real))
    ours, theirs = real[order[:samples]], real[order[samples : 2 * samples]]
    return {
        "fd_world": frechet_distance(generated[:samples], ours),
        "fd_world_real": frechet_distance(theirs, ours),
        "fd_world_samples": float(samples),
    }


def has_fid() -> bool:
    """Whether the package is here that FID needs."""
    return importlib.util.find_spec("torch_fidelity") is not None


def make_fid() -> "FrechetInceptionDistance":
    """FID by torchmetrics with torch-fidelity's Inception: `update(pictures, real=...)`, then `compute()`.

    Pictures are uint8 (batch 3 height width) of any size; those of one batch are of one size.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
    """
    if not has_fid():
        raise ModuleNotFoundError(
            "FID needs torch-fidelity and the Inception weights that it downloads; it is not installed, as it brings "
            "torchvision (see CONTRIBUTING.md, Dependencies). fd_world is computed without it, and is not FID."
        )
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(INCEPTION)


def make_inception_score() -> "InceptionScore":
    """Inception Score by torchmetrics with torch-fidelity's Inception, in ten parts: `update(pictures)`, `compute()`.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
    """
    if not has_fid():
        raise ModuleNotFoundError(
            "the Inception Score needs torch-fidelity, as FID does (see `make_fid`). is_world is computed without it, "
            "and is another number."
        )
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():  # that it keeps all features
        warnings.simplefilter("ignore", UserWarning)
        return InceptionScore("logits_unbiased", splits=10)


def is_world(heads: Sequence[Float[np.ndarray, "samples _"]]) -> float:
    """How many clearly different pictures there are, to a classifier: from 1 to the number of classes.

    The formula is that of the Inception Score (Salimans et al. 2016): e to the mean Kullback-Leibler divergence of what
    is seen in a picture from what is seen in all. It is 1 where all pictures are alike, or none is clear. The classes
    are all combinations of what the heads of a classifier of the captioned world name; the heads are independent for a
    given picture.

    Args:
        heads: probabilities of each head.

    Raises:
        ValueError: there are no samples, or a head's probabilities are not at least 0 with the sum 1.
    """
    joint = np.ones((len(heads[0]), 1))
    own = np.zeros(len(joint))
    for odds in heads:
        if not len(odds) or not np.allclose(odds.sum(1), 1, atol=1e-3) or (odds < 0).any():
            raise ValueError(f"{len(odds)} rows of probabilities, expected some, each at least 0 and with the sum 1.")
        odds = odds.astype(np.float64)
        own += _entropy(odds)
        joint = (joint[:, :, None] * odds[:, None]).reshape(len(joint), -1)
    return float(np.exp(_entropy(joint.mean(0, keepdims=True))[0] - own.mean()))


def _entropy(odds: Float[np.ndarray, "rows classes"]) -> Float[np.ndarray, " rows"]:
    return -(odds * np.log(odds, out=np.zeros_like(odds), where=odds > 0)).sum(1)


def other_captions(pictures: int, seed: int = 42) -> Int[np.ndarray, "pictures 99"]:
    """For each of so many pictures the numbers of 99 other ones, whose captions its own is found among.

    The same seed gives the numbers that the official code of unified-t2i-i2t draws.

    Raises:
        ValueError: there are not so many others.
    """
    if pictures <= OTHER_CAPTIONS:
        raise ValueError(f"R-precision needs at least {OTHER_CAPTIONS + 1} pictures, but there are {pictures}.")
    draw = random.Random(seed)
    found = np.array([draw.sample(range(pictures - 1), OTHER_CAPTIONS) for _ in range(pictures)])
    return found + (found >= np.arange(pictures)[:, None])


def r_precision(similarities: Float[np.ndarray, "pictures captions"]) -> float:
    """Share of the pictures that are more similar to their own caption than to any other of their row, in [0, 1].

    Args:
        similarities: of each picture with its own caption, in the first column, and with others; -inf where a row has
            fewer captions. An equal one does not beat the own one.

    Raises:
        ValueError: there are none, or one of an own caption is not finite.
    """
    if not similarities.size or not np.isfinite(similarities[:, 0]).all():
        raise ValueError(f"similarities of shape {similarities.shape}, expected some, those of own captions finite.")
    return float((similarities.argmax(1) == 0).mean())


def clip_score(similarities: Float[np.ndarray, " pairs"]) -> float:
    """Mean of 2.5 max(0, cos) over pairs of an image and its text, as one CLIP sees them (Hessel et al. 2021, Eq. 1).

    Args:
        similarities: cosines; in the official code of unified-t2i-i2t CLIP's logits, which are 100 times them.

    Raises:
        ValueError: there are none, or one is not finite.
    """
    if not len(similarities) or not np.isfinite(similarities).all():
        raise ValueError(f"{len(similarities)} similarities, expected at least one and all of them finite.")
    return float((2.5 * np.maximum(similarities.astype(np.float64), 0)).mean())


def match_objects(said: Attributes, real: Attributes) -> Int[np.ndarray, "samples _"]:
    """For each object that is spoken of the real object that it is taken for, or -1.

    Of all ways to pair objects one to one, one with the most attributes right, rather in the order of the objects: the
    speaker gets the benefit of the doubt. An object that nothing real is left for, or that has nothing right, is -1.

    Args:
        said: attribute -> (samples, said); -1 where nothing is said.
        real: the same attributes -> (samples, objects); -1 where there is no object.
    """
    from scipy.optimize import linear_sum_assignment

    agree = sum((said[name][:, :, None] == real[name][:, None]) & (said[name][:, :, None] >= 0) for name in said)
    in_order = np.eye(*agree.shape[1:]) / (1 + agree.shape[2])  # less than one attribute, all together
    partner = np.full(agree.shape[:2], -1)
    for row, right in enumerate(agree):
        spoken, meant = linear_sum_assignment(right + in_order, maximize=True)
        partner[row, spoken] = meant
    matched = np.take_along_axis(agree, np.maximum(partner, 0)[..., None], axis=2)[..., 0]
    return np.where(matched > 0, partner, -1)


def scene_agreement(
    said: Mapping[str, Int[np.ndarray, "samples ..."]], real: Mapping[str, Int[np.ndarray, "samples ..."]]
) -> dict[str, float]:
    """How far captions agree with scenes, statement by statement; no learned metric comes in between.

    A statement is one attribute of one object, or the place of a scene. What is said of an object that cannot be
    matched is wrong, and so is a word that describes no object (`loose`). Chance is not 0: dense captions of other
    scenes, of 1 to 3 objects, have precision and recall of 0.25.

    Args:
        said: columns as `world.parsing.parse` gives them.
        real: columns of the scenes: `place` (samples,), and attributes (samples, objects), -1 where there is no object.
            Attributes that are not among them are not judged.

    Returns:
        `precision`: share of the statements that are right; `recall`: share of the facts of the scenes that are said;
        `exact`: share of the captions that say all and nothing wrong; `recall_<attribute>` for each. All in [0, 1];
        precision is 0 where nothing is said at all.
    """
    names = [name for name in real if name != "place"]
    partner = match_objects({name: said[name] for name in names}, {name: real[name] for name in names})
    right = {}
    for name in names:
        theirs = np.take_along_axis(real[name], np.maximum(partner, 0), axis=1)
        right[name] = ((partner >= 0) & (said[name] >= 0) & (said[name] == theirs)).sum(axis=1)
    right["place"] = (said["place"] == real["place"]).astype(np.int64)
    stated = sum((said[name] >= 0).sum(axis=1) for name in names) + (said["place"] >= 0) + said["loose"]
    facts = {name: (real[name] >= 0).sum(axis=1) for name in names} | {"place": np.ones_like(real["place"])}
    every, known = sum(right.values()), sum(facts.values())
    return {
        "precision": float(every.sum() / max(stated.sum(), 1)),
        "recall": float(every.sum() / known.sum()),
        "exact": float(((every == known) & (stated == known)).mean()),
        **{f"recall_{name}": float(values.sum() / facts[name].sum()) for name, values in right.items()},
    }
