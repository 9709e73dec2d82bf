"""Numbers reported for classifiers, from stored predictions (numpy in, Python floats out; no torch).

Everything is computed in float64: float32 softmax saturates at 1.0 and hides small differences that matter for
calibration, risk-coverage and cascades.
"""

import numpy as np
from jaxtyping import Bool, Float, Int


def log_softmax(logits: Float[np.ndarray, "*batch classes"]) -> Float[np.ndarray, "*batch classes"]:
    """Log probabilities in float64 (log-sum-exp with the maximum taken out), range (-inf, 0]."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def accuracy(scores: Float[np.ndarray, "samples classes"], labels: Int[np.ndarray, " samples"]) -> float:
    """Top-1 accuracy, a share in [0, 1]; among equal scores the lowest class index counts, as in `argmax`."""
    check_scores(scores, labels)
    return float((scores.argmax(axis=-1) == labels).mean())


def negative_log_likelihood(logits: Float[np.ndarray, "samples classes"], labels: Int[np.ndarray, " samples"]) -> float:
    """Mean of -log p(label), in nats, range [0, inf)."""
    check_scores(logits, labels)
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def brier_score(logits: Float[np.ndarray, "samples classes"], labels: Int[np.ndarray, " samples"]) -> float:
    """Squared distance of probabilities and one-hot label, summed over classes, in [0, 2] (Brier 1950)."""
    check_scores(logits, labels)
    error = np.exp(log_softmax(logits))
    error[np.arange(len(labels)), labels] -= 1.0
    return float((error**2).sum(axis=-1).mean())


def expected_calibration_error(
    logits: Float[np.ndarray, "samples classes"], labels: Int[np.ndarray, " samples"], bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equal-width confidence bins (Guo et al. 2017, Eq. 3), in [0, 1].

    A bin holds its lower edge and not its upper one, the last bin holds both.

    Raises:
        ValueError: fewer than one bin, or labels and logits that do not fit together.
    """
    check_scores(logits, labels)
    if bins < 1:
        raise ValueError(f"bins ({bins}) must be at least 1; 15 is the usual choice.")
    confidence = np.exp(log_softmax(logits).max(axis=-1))
    correct = logits.argmax(axis=-1) == labels
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, weights=correct, minlength=bins) - np.bincount(index, weights=confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def disagreement(predictions: Int[np.ndarray, "members samples"]) -> float:
    """Share of samples on which two members predict different classes, averaged over all pairs, in [0, 1].

    Counted per sample and class instead of per pair: with v votes for a class, v (v - 1) / 2 pairs agree on it.

    Raises:
        ValueError: fewer than two members.
    """
    members, samples = predictions.shape
    if members < 2:
        raise ValueError(f"disagreement needs at least 2 members, got {members}.")
    classes = int(predictions.max()) + 1
    votes = np.bincount(
        (predictions + classes * np.arange(samples)).ravel(), minlength=samples * classes
    )  # one row of `classes` counters per sample
    agreeing = (votes * (votes - 1)).sum() / (members * (members - 1) * samples)
    return float(1.0 - agreeing)


def risk_coverage(
    confidence: Float[np.ndarray, " samples"], correct: Bool[np.ndarray, " samples"]
) -> tuple[Float[np.ndarray, " samples"], Float[np.ndarray, " samples"]]:
    """Error among the most confident samples, for every coverage 1/N ... 1 (El-Yaniv and Wiener 2010).

    Samples of equal confidence have no order: each of them counts with the mean error of its group, which is the
    expectation over random orders, so the curve does not depend on how the samples are sorted.

    Returns:
        Coverage and risk, both in [0, 1].

    Raises:
        ValueError: no samples, or a confidence that is NaN.
    """
    if len(confidence) == 0:
        raise ValueError("risk_coverage got no samples.")
    if np.isnan(confidence).any():
        raise ValueError(f"{int(np.isnan(confidence).sum())} confidences are NaN; risk_coverage needs numbers.")
    _, group = np.unique(-confidence, return_inverse=True)
    sizes = np.bincount(group)
    errors = np.bincount(group, weights=~correct) / sizes
    rank = np.arange(1, len(confidence) + 1)
    return rank / len(confidence), np.cumsum(np.repeat(errors, sizes)) / rank


def area_under_risk_coverage(confidence: Float[np.ndarray, " samples"], correct: Bool[np.ndarray, " samples"]) -> float:
    """AURC (Geifman and El-Yaniv 2017): mean of the risk over all coverages, in [0, 1]; smaller is better."""
    return float(risk_coverage(confidence, correct)[1].mean())


def deferral_curve(
    confident: Float[np.ndarray, " samples"],
    correct: Bool[np.ndarray, "2 samples"],
    shares: Float[np.ndarray, " shares"],
) -> Float[np.ndarray, " shares"]:
    """Accuracy when the least confident share of the samples goes to the second model (ties in order of the rows)."""
    gain = correct[1].astype(np.int64) - correct[0]
    gained = np.concatenate([[0], np.cumsum(gain[np.argsort(confident, kind="stable")])])
    return (correct[0].sum() + gained[_counts(shares, len(gain))]) / len(gain)


def random_deferral(
    correct: Bool[np.ndarray, "2 samples"], shares: Float[np.ndarray, " shares"]
) -> Float[np.ndarray, " shares"]:
    """Expected accuracy when a random share of the samples goes to the second model: a straight line."""
    first, second = correct.mean(axis=1)
    return first + _counts(shares, correct.shape[1]) / correct.shape[1] * (second - first)


def oracle_deferral(
    correct: Bool[np.ndarray, "2 samples"], shares: Float[np.ndarray, " shares"]
) -> Float[np.ndarray, " shares"]:
    """Best accuracy that any deferral could reach: samples that only the second model gets right go first."""
    gain = correct[1].astype(np.float64) - correct[0]
    return deferral_curve(-gain, correct, shares)


def _counts(shares: np.ndarray, samples: int) -> np.ndarray:
    return np.rint(shares * samples).astype(np.int64)


def exits_per_class(
    exit_stage: Int[np.ndarray, " samples"], labels: Int[np.ndarray, " samples"], stages: int, classes: int
) -> Float[np.ndarray, "classes stages"]:
    """Share of each class's samples that leave at each stage; rows sum to 1, a class without samples is all 0."""
    counts = np.bincount(labels * stages + exit_stage, minlength=classes * stages).reshape(classes, stages)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def bootstrap_interval(
    values: Float[np.ndarray, " samples"], resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean of per-sample values, in the values' unit.

    Raises:
        ValueError: no samples, or a level outside (0, 1).
    """
    if len(values) == 0:
        raise ValueError("bootstrap_interval got no samples.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level ({level}) must lie strictly between 0 and 1, for example 0.95.")
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(values, return_counts=True)
    # Correctness and costs take a handful of values: drawing how often each occurs replaces drawing N indices.
    draws = rng.multinomial(len(values), counts / counts.sum(), size=resamples)
    means = np.sort(draws @ distinct / len(values))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bounds_of(metric: str) -> tuple[float, float] | None:
    """The least and the largest value that a metric can have: a share in percent has them, `.../top1_percent@arm`."""
    return (0.0, 100.0) if metric.partition("@")[0].endswith("_percent") else None


def seed_interval(
    values: Float[np.ndarray, " seeds"], level: float = 0.95, bounds: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Student t interval of the mean over seeds; (-inf, inf) for a single seed, which says nothing of the spread.

    Between bounds it is the logit interval that survey statistics use for shares (Korn and Graubard, Analysis of
    Health Surveys, 1999): the mean is moved to logits, where its standard error is error / (share (1 - share)), and the
    ends of the t interval there are moved back. It never leaves the bounds. For five values of a share of 0.97 (beta,
    standard deviation 0.037) it holds the true mean in 92 % of cases, the plain interval cut at the bounds in 85 %.

    Raises:
        ValueError: a value lies outside the bounds.
    """
    if bounds is not None and len(values) and not bounds[0] <= values.min() <= values.max() <= bounds[1]:
        raise ValueError(
            f"values from {values.min()} to {values.max()} of a metric within {bounds[0]} and {bounds[1]}."
        )
    if len(values) < 2:
        return -np.inf, np.inf
    from scipy.special import expit, logit, stdtrit  # scipy.stats has the same quantile at many times the import time

    mean = float(values.mean())
    half = float(stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(len(values)))
    if bounds is None or half == 0:
        return mean - half, mean + half
    low, width = bounds[0], bounds[1] - bounds[0]
    share = (mean - low) / width
    half = half / width / (share * (1 - share))
    return tuple(low + width * float(expit(logit(share) + side)) for side in (-half, half))


def check_scores(scores: np.ndarray, labels: np.ndarray) -> None:
    """Refuse inputs whose result would be a number without meaning."""
    if len(labels) == 0:
        raise ValueError("there are no samples: the metric of an empty split is undefined.")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).any(axis=-1).sum())} of {len(scores)} rows hold NaN.")
    if labels.min() < 0 or labels.max() >= scores.shape[-1]:
        raise ValueError(
            f"labels span {labels.min()} to {labels.max()}, but there are {scores.shape[-1]} classes (0 to "
            f"{scores.shape[-1] - 1})."
        )
