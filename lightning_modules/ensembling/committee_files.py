"""The files of a chosen cascade: a record that says everything needed to rebuild it, and its members' weights.

`committees.network.Committee.load` reads both. Written without torch, so that an evaluation never loads it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_modules.ensembling.cascades import Cascade, StageTable, Trace, View, run_cascade
from lightning_modules.ensembling.pools import Pool
from lightning_modules.metrics import classification
from lightning_modules.runs import Run


def export(
    cascade: Cascade,
    pool: Pool,
    runs: Sequence[Run],
    *,
    val: StageTable,
    test: StageTable,
    macs: Mapping[View, int],
    temperatures: Mapping[View, float],
    single: View,
    dataset: str,
    constraint: str,
) -> tuple[dict, bytes]:
    """`committee.json` as a dictionary and `committee.safetensors` as bytes.

    Args:
        cascade: the committee, members of `pool`.
        pool: where the members come from.
        runs: the runs that hold the members' weights.
        val: the stages on validation data; confidence, average and output are its own.
        test: the stages on test data.
        macs: cost of each member.
        temperatures: divisor of each member's logits.
        single: the single model that gains are counted against.
        dataset: name of the data.
        constraint: what the committee was chosen for, in words.

    Raises:
        ValueError: the runs have no weights of a member.
    """
    from safetensors.numpy import save

    weights = save(_member_weights(cascade, runs))
    facts = ("name", "architecture", "family", "width", "depth", "copy", "params")
    record = {
        "dataset": dataset,
        "seed": pool.seed,
        "constraint": constraint,
        "num_classes": pool.num_classes,
        "members": [
            {**{fact: getattr(pool.member(name), fact) for fact in facts}, "resolution": resolution}
            for name, resolution in cascade.views
        ],
        "images": runs[0].facts["images"],
        "member_macs": [macs[view] for view in cascade.views],
        "thresholds": [t if math.isfinite(t) else str(t) for t in cascade.thresholds],  # JSON has no infinity
        "confidence": val.confidence_kind,
        "average": val.average,
        "output": val.mode,
        "temperatures": [temperatures[view] for view in cascade.views],
        "weights": None if val.weights is None else [val.weights[view] for view in cascade.views],
        "val": _summary(run_cascade(val, cascade, macs), val, single),
        "test": _summary(run_cascade(test, cascade, macs), test, single),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    return record, weights


def _summary(trace: Trace, table: StageTable, single: View) -> dict:
    """Accuracy, cost and the gain over the single model, each with its bootstrap interval over samples."""
    correct = trace.correct.astype(np.float64)
    gain = correct - table.stage((single,))[1]
    spent = trace.macs.astype(np.float64)
    return {
        "top1_percent": 100 * float(correct.mean()),
        "top1_percent_interval": [100 * bound for bound in classification.bootstrap_interval(correct)],
        "gain_points": 100 * float(gain.mean()),
        "gain_points_interval": [100 * bound for bound in classification.bootstrap_interval(gain)],
        "macs_per_sample": float(spent.mean()),
        "macs_per_sample_interval": list(classification.bootstrap_interval(spent)),
        "exit_shares": (np.bincount(trace.exit_stage) / len(spent)).tolist(),
    }


def _member_weights(cascade: Cascade, runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Weights of a cascade's members, `members.<name>.<key>` in the run, `members.<stage>.<key>` in the committee."""
    stored = {key: array for run in runs for key, array in run.weights().items()}
    found = {}
    for stage, (name, _) in enumerate(cascade.views):
        prefix = f"members.{name}."
        own = {key.removeprefix(prefix): array for key, array in stored.items() if key.startswith(prefix)}
        if not own:
            raise ValueError(f"no weights of {name!r}: the run's weights.safetensors has no key beginning {prefix!r}.")
        found |= {f"members.{stage}.{key}": np.ascontiguousarray(array) for key, array in own.items()}
    return found
