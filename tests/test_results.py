"""The committed tiny results beside an independent training of the same networks."""

import json

import pytest

from lightning_modules.files import ROOT

RESULTS = ROOT / "results/tiny"
# Mean test accuracy in percent of single members, measured apart from this code on other splits and seeds. The cheapest
# widths of each ladder are left out: how far such small networks learn depends on the steps that they get.
ELSEWHERE = {
    "committees-digits": ("digits", "mlp-h", {11: 94.3, 16: 95.4, 23: 96.05, 32: 96.3, 45: 96.7, 64: 96.9}),
    "committees-mnist": ("mnist", "convnet-w", {8: 95.45, 11: 96.24, 16: 96.70, 23: 97.05}),
}
POINTS = 1.0  # one split of 450 test images alone has a standard error of 0.8 points at 97 %


@pytest.mark.parametrize("arm", ELSEWHERE)
def test_members_are_as_accurate_as_elsewhere(arm):
    metrics = json.loads((RESULTS / "committees/metrics.json").read_text())
    dataset, name, expected = ELSEWHERE[arm]
    found = {width: metrics[arm][f"{dataset}/single/top1_percent@{name}{width}"]["mean"] for width in expected}
    assert found == pytest.approx(expected, abs=POINTS)
