"""Reports inter-modality flow from what `modality_flow.FlowMeter.columns` stored of each pair (numpy in, no torch)."""

from collections.abc import Mapping

import numpy as np

from lightning_modules.runs import Figure, Series

PERCENT = 100
PAIRS = {"own": "pairs that belong together", "other": "pairs that do not", "content": "without special tokens"}
FORMULA = "The formula is our reconstruction."
BORROWED = f"A metric of visual parsing (2106.13488), not of this paper. {FORMULA}"

Arrays = Mapping[str, np.ndarray]


def flow_metrics(arrays: Arrays) -> dict[str, float]:
    """Means over pairs and layers, in percent; nothing where no flow was measured.

    Over that of equal attention: `flow/<own, other>_points` of vision with its own text, and with that of another row;
    `flow/content_points` without special tokens; `flow/rolled_out_points` over all layers. `flow/to_language_percent`
    and `flow/to_vision_percent` are shares that are read from the other side.

    Args:
        arrays: `flow/<own, other, content>/<name>`, see `modality_flow.FlowMeter.columns`.
    """
    if not measured_flow(arrays):
        return {}
    found = {f"flow/{name}_points": PERCENT * _mean(arrays[f"flow/{name}/relative"]) for name in PAIRS}
    found["flow/rolled_out_points"] = PERCENT * _mean(arrays["flow/own/rolled_out"])
    for name in ("to_language", "to_vision"):
        found[f"flow/{name}_percent"] = PERCENT * _mean(arrays[f"flow/own/{name}"])
    return found


def flow_figures(arrays: Arrays, told: str = BORROWED, pairs: Mapping[str, str] = PAIRS) -> list[Figure]:
    """Flow by layer, of one seed; none where no flow was measured.

    Args:
        arrays: see `flow_metrics`.
        told: last sentences of the caption.
        pairs: what the lines are called.
    """
    if not measured_flow(arrays):
        return []
    series = []
    for name in PAIRS:
        by_layer = arrays[f"flow/{name}/relative"].astype(np.float64).mean(0)
        layers = [float(number) for number in range(1, 1 + len(by_layer))]
        series.append(Series(pairs[name], "line", layers, by_layer.tolist()))
    caption = (
        "Attention between words and visual tokens, over that of equal attention (1). Test rows, mean over heads; "
        f"first seed. {told}"
    )
    return [Figure("flow", "Inter-modality flow by layer", caption, "layer", "times equal attention", series)]


def measured_flow(arrays: Arrays) -> bool:
    """Whether a flow was measured."""
    return "flow/own/relative" in arrays


def _mean(values: np.ndarray) -> float:
    return float(values.astype(np.float64).mean())
