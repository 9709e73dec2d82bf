"""Curves of trainings on the page: from the histories alone, arms comparable, and small."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from stages.page import curves

PLAN = SimpleNamespace(
    pretrain={arm: SimpleNamespace(system="net", dataset="digits") for arm in ("a", "b", "none")}
    | {"pool": SimpleNamespace(system="pool", dataset="digits")},
    finetune={"tuned": SimpleNamespace(system="net", dataset="mnist")},
)


def write(folder, **columns):
    """A history: name -> {step: value}; blanks where nothing was logged."""
    names = [name.replace("__", "/").replace("_n_", "#") for name in columns]
    steps = sorted({step for values in columns.values() for step in values})
    rows = [[step, *(values.get(step, "") for values in columns.values())] for step in steps]
    folder.mkdir(parents=True)
    text = "\n".join(",".join(map(str, row)) for row in [["step", *names], *rows])
    (folder / "history.csv").write_text(f"{text}\n")


@pytest.fixture
def folder(tmp_path):
    for arm, shift in (("a", 0.0), ("b", 1.0)):
        for seed in (0, 1):
            losses = {step: 4.0 - step / 100 + seed + shift for step in (0, 100, 200)}
            watched = {100: 5.0 + shift, 200: 3.5 + seed + shift}
            write(
                tmp_path / f"pretrain/{arm}/seed-{seed}",
                lr={0: 0.1}, pretrain__loss=losses, pretrain__term=losses, validation__loss=watched,
                validation__accuracy={200: 0.5},
            )  # fmt: skip
    write(tmp_path / "pretrain/none/seed-0")  # an arm of no epochs
    write(tmp_path / "finetune/tuned/probe/seed-0", probe__loss={0: 1.0, 9: 0.5})
    members = {f"validation__m{size}_n_{k}__accuracy": {9: size / 100 + k} for size in (16, 4) for k in (0, 1)}
    losses = {f"pretrain__m{size}__loss": {0: 2.0, 9: 1.0} for size in (16, 4)}
    write(tmp_path / "pretrain/pool/seed-0", **losses, **members)
    return tmp_path


def read(folder, *trained):
    return curves.read(folder, PLAN, trained)


def test_arms_of_one_system_and_data_set_are_compared(folder):
    found = read(folder, ("pretrain", "a"), ("pretrain", "none"), ("pretrain", "b"), ("probe", "tuned"))
    assert [(each.stage, each.system, each.dataset, each.names, each.seeds) for each in found] == [
        ("pretrain", "net", "digits", ["a", "b"], 2),
        ("probe", "net", "mnist", ["tuned"], 1),
    ]
    both = found[0]
    assert [panel.title for panel in both.panels] == ["loss", "accuracy"], "the loss first, then what is watched"
    assert [panel.title for panel in both.further] == ["term"] and not both.further[0].watched
    loss = both.panels[0]
    assert loss.trained["a"].steps.tolist() == [0, 100, 200] and loss.trained["a"].mean.tolist() == [4.5, 3.5, 2.5]
    assert loss.watched["b"].low.tolist() == [6.0, 4.5] and loss.watched["b"].high.tolist() == [6.0, 5.5]
    assert loss.watched["b"].last == 5.0
    assert not both.panels[1].trained and both.panels[1].watched["a"].steps.tolist() == [200]
    assert found[1].panels[0].trained["tuned"].mean.tolist() == [1.0, 0.5]


def test_one_arm_of_several_networks_is_shown_by_network(folder):
    (pool,) = read(folder, ("pretrain", "pool"))
    assert (pool.arms, pool.names) == (["pool"], ["m4", "m16"]), "the sizes in order"
    loss, accuracy = pool.panels
    assert loss.trained["m4"].mean.tolist() == [2.0, 1.0]
    assert accuracy.watched["m16"].mean == pytest.approx([0.66]), "the mean of its copies"


def test_several_arms_of_networks_have_the_mean_over_these(folder, monkeypatch):
    monkeypatch.setitem(PLAN.pretrain, "twin", PLAN.pretrain["pool"])
    (folder / "pretrain/pool").rename(folder / "pretrain/twin")
    (folder / "pretrain/pool").symlink_to(folder / "pretrain/twin")
    (pools,) = read(folder, ("pretrain", "pool"), ("pretrain", "twin"))
    assert pools.names == ["pool", "twin"] and pools.panels[1].watched["twin"].mean == pytest.approx([0.6])


def test_what_was_not_trained_here_is_left_out(folder, tmp_path):
    assert read(folder, ("pretrain", "none"), ("finetune", "tuned")) == []
    assert read(tmp_path / "nothing", ("pretrain", "a")) == []


def test_a_panel_has_a_line_a_band_and_dots_of_what_is_watched(folder):
    (both,) = read(folder, ("pretrain", "a"), ("pretrain", "b"))
    drawn = curves.svg(both.panels[0], both.names)
    assert drawn == curves.svg(both.panels[0], both.names)
    groups = re.findall(r'<g data-curve="(\d)" style="color:var\(--series-(\d)\)">(.*?)</g>', drawn)
    assert [(number, colour) for number, colour, _ in groups] == [("0", "1"), ("1", "2")]
    for _, _, paths in groups:
        kinds = re.findall(r'<path class="(\w+)"', paths)
        assert kinds == ["band", "trained", "band", "watched", "dots"]
    assert "<script" not in curves.svg(curves.Panel("<script>", both.panels[0].trained), both.names)


def test_places_of_a_curve_lie_in_the_panel_and_are_where_the_ticks_say():
    steps = np.array([0.0, 50.0, 100.0])
    values = np.array([0.001, 0.1, 10.0])
    curve = curves.Curve(steps, values, values, values)
    drawn = curves.svg(curves.Panel("loss", {"a": curve}), ["a"])
    x, y, rest = re.search(r'class="trained" d="M(\d+) (\d+)l([^"]*)"', drawn).groups()
    moves = [int(number) for number in re.findall(r"-?\d+", rest)]
    assert int(x) == curves.LEFT and int(x) + moves[0] + moves[2] == curves.WIDTH - curves.RIGHT
    assert moves[0] == moves[2] and moves[1] == pytest.approx(moves[3], abs=1), "an axis of decades"
    ticks = dict(re.findall(r'y="(\d+)" text-anchor="end">([^<]+)<', drawn))
    assert {"0.001", "0.1", "10"} <= {*ticks.values()}
    place = {text: int(height) - 8 for height, text in ticks.items()}
    assert abs(place["0.001"] - int(y)) <= 1


def test_a_long_curve_has_few_points_and_a_constant_one_is_drawn():
    steps = np.arange(100_000.0)
    curve = curves.Curve(steps, *(np.full(len(steps), value) for value in (2.0, 2.0, 2.0)))
    assert len(curve.thinned().steps) == curves.POINTS and curve.thinned().mean.tolist() == [2.0] * curves.POINTS
    drawn = curves.svg(curves.Panel("loss", {"a": curve}), ["a"])
    assert len(drawn) < 3000 and ">50k<" in drawn


@pytest.mark.parametrize(("number", "text"), [(0.0001, "0.0001"), (-0.5, "−0.5"), (12_000.0, "12k"), (2000.0, "2000")])
def test_numbers_of_an_axis(number, text):
    assert curves.short(number) == text
