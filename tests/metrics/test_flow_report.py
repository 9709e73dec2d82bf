"""What is reported of stored inter-modality flow."""

import numpy as np
import pytest

from lightning_modules.metrics.flow_report import flow_figures, flow_metrics

STORED = {
    **{f"flow/{name}/relative": np.array([[0.5, 1.0], [0.7, 1.0]]) for name in ("own", "other", "content")},
    "flow/own/rolled_out": np.array([0.4, 0.6]),
    "flow/own/to_language": np.array([[0.2, 0.4]]),
    "flow/own/to_vision": np.array([[0.1, 0.1]]),
}


def test_flow_is_a_mean_over_pairs_and_layers():
    found = flow_metrics(STORED)
    assert found["flow/own_points"] == pytest.approx(80)
    assert found["flow/rolled_out_points"] == pytest.approx(50)
    assert found["flow/to_language_percent"] == pytest.approx(30)


def test_each_layer_is_a_point_of_the_figure():
    (figure,) = flow_figures(STORED)
    assert [series.name for series in figure.series] == [
        "pairs that belong together",
        "pairs that do not",
        "without special tokens",
    ]
    assert figure.series[0].x == [1, 2] and figure.series[0].y == pytest.approx([0.6, 1.0])
    assert "not of this paper" in figure.caption


def test_arms_without_a_flow_report_none():
    assert flow_metrics({}) == {} and flow_figures({}) == []
