"""The committed tiny results beside an independent training of the same networks."""

import json

import pytest

from lightning_modules.files import ROOT

RESULTS = ROOT / "results/tiny"
# Mean test accuracy in percent of single members, measured apart from this code on other splits and seeds. The cheapest
# width of each ladder is left out: whether so small a network learns at all hangs on details of the recipe. Digits: a
# plain loop of torch with the recipe's numbers, 45 epochs, 12 splits and seeds; the mean at width 8 is known to 0.8.
ELSEWHERE = {
    "committees-digits": (
        "digits",
        "mlp-h",
        {8: 90.83, 11: 94.5, 16: 95.65, 23: 96.52, 32: 96.87, 45: 97.02, 64: 96.98},
    ),
    "committees-mnist": ("mnist", "convnet-w", {8: 95.45, 11: 96.24, 16: 96.70, 23: 97.05}),
}
POINTS = 1.0  # one split of 450 test images alone has a standard error of 0.8 points at 97 %


@pytest.mark.parametrize("arm", ELSEWHERE)
def test_members_are_as_accurate_as_elsewhere(arm):
    metrics = json.loads((RESULTS / "committees/metrics.json").read_text())
    dataset, name, expected = ELSEWHERE[arm]
    found = {width: metrics[arm][f"{dataset}/single/top1_percent@{name}{width}"]["mean"] for width in expected}
    assert found == pytest.approx(expected, abs=POINTS)
