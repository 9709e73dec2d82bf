"""Numbers of generated videos that bear published names: FVD, the Inception Score, LPIPS.

Each belongs to one certain network with its published weights, which are the user's to give
(`video_networks.PublishedNetworks`). Numbers of other networks have other names (`fvd_world`). Imports no torch.
"""

import numpy as np
from jaxtyping import Float

from lightning_modules.metrics.generation import frechet_distance, is_world

NOT_COMPUTED = {
    "fvd": "it needs the weights of I3D (Kinetics-400), which are the user's to give (model.published.i3d), and more "
    "than 400 clips of at least 9 frames; fvd_world is no FVD",
    "inception_score": "it needs the weights and the mean of C3D (UCF-101), which are the user's to give "
    "(model.published.c3d and c3d_mean), and clips of 16 frames",
    "lpips": "it needs the package lpips, which brings torchvision (see CONTRIBUTING.md, Dependencies), and "
    "model.published.lpips",
}


def fvd(
    generated: Float[np.ndarray, "generated features"], real: Float[np.ndarray, "real features"], seed: int = 0
) -> dict[str, float]:
    """Fréchet Video Distance, beside that of one half of the real clips from the other; nothing of too few clips.

    The distance grows as clips get fewer, so `fvd_real`, of half as many, is more than the floor of `fvd`.

    Args:
        generated: features that I3D gives of generated clips.
        real: of real ones.
        seed: of the halves.
    """
    width, found = real.shape[1], {}
    if min(len(generated), len(real)) > width:
        found["fvd"] = frechet_distance(generated, real)
    if len(real) // 2 > width:
        order = np.random.default_rng(seed).permutation(len(real))
        found["fvd_real"] = frechet_distance(*np.array_split(real[order], 2))
    return found


def inception_score(logits: Float[np.ndarray, "samples classes"], parts: int = 1) -> float:
    """Inception Score of clips from the logits of C3D, the mean over equal parts, from 1 to the number of classes.

    Raises:
        ValueError: there are fewer clips than parts.
    """
    if len(logits) < parts:
        raise ValueError(f"{len(logits)} clips cannot be cut into {parts} parts.")
    logits = logits.astype(np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    return float(np.mean([is_world([part]) for part in np.array_split(odds, parts)]))
