"""Numbers reported for generated pictures and for what is said of them (numpy in, Python floats out).

`fd_world` is a Fréchet distance between features of a small classifier trained on the captioned world. It is no FID,
which is the same distance between features of one certain Inception network and needs its weights (`make_fid`): values
of different networks cannot be compared, and no other number may bear that name.
"""

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

INCEPTION = 2048  # features of its last pooling
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
