"""What the overview compares across papers."""

import pytest
import yaml

from lightning_modules.files import ROOT
from lightning_modules.runs import Figure, Series
from stages import page
from stages.page import comparing
from stages.plan import PRESETS, load_plan

ENTRY = {
    "id": "both",
    "title": "Both",
    "text": "Two papers.",
    "metrics": {"accuracy_percent": "accuracy (%)", "cost": "cost", "extra": "extra"},
    "arms": ["alpha", "alpha-large", "beta", "elsewhere"],
}


def paper(stem, **arms):
    facts = type("Facts", (), {"stem": stem})()
    shown = [
        page.Arm(
            name, [], metrics={f"digits/{k}": {"mean": v, "low": v - 1, "high": v + 1} for k, v in metrics.items()}
        )
        for name, metrics in arms.items()
    ]
    return page.Paper(facts, [], shown)


def write(folder, *entries):
    path = folder / "comparisons.yaml"
    path.write_text(yaml.safe_dump(list(entries)))
    return path


def test_arms_of_two_papers_stand_side_by_side(tmp_path):
    alpha = paper("alpha", **{"alpha": {"accuracy_percent": 90.0, "cost": 3.0}, "alpha-large": {"cost": 9.0}})
    beta = paper("beta", beta={"accuracy_percent": 80.0, "cost": 1.0, "extra": 5.0})
    (found,) = comparing.compare(comparing.load(write(tmp_path, ENTRY)), [alpha, beta])
    assert [(row.paper, row.arm, row.dataset) for row in found.rows] == [
        ("alpha", "alpha", "digits"),
        ("beta", "beta", "digits"),
    ]
    assert [value and value["mean"] for row in found.rows for value in row.values] == [90.0, 3.0, None, 80.0, 1.0, 5.0]
    (figure,) = found.figures
    assert [(s.name, s.x, s.y, s.low, s.high, s.labels) for s in figure.series] == [
        ("alpha", [90.0], [3.0], [2.0], [4.0], ["alpha"]), ("beta", [80.0], [1.0], [0.0], [2.0], ["beta"]),
    ]  # fmt: skip
    beta.arms[0].metrics["digits/cost"] |= {"low": None, "high": None}
    (found,) = comparing.compare(comparing.load(write(tmp_path, ENTRY)), [alpha, beta])
    assert found.figures[0].series[1].low == [1.0], "one seed has no interval"
    assert not comparing.compare(comparing.load(write(tmp_path, ENTRY)), [alpha]), "one paper is no comparison"


def test_fronts_of_every_search_and_the_cost_of_each_papers_main_arm_are_found():
    front, other = (
        Figure(name, "t", "c", "x", "y", [Series("s", "line", [1.0], [2.0])]) for name in ("d-sweep-fronts", "x")
    )
    metrics = {
        "pretrain/macs_per_clip@beta": 8e6,
        "finetune/macs_per_clip@else": 9e6,
        "finetune/macs_per_clip@beta": 5e6,
    }
    alpha, beta = paper("alpha", first={}), paper("beta", side={"parameters": 1.0}, beta=metrics)
    alpha.arms[0].figures = [other, front]
    beta.sweeps = [page.Arm("sweep-beta", [], figures=[front], statement="So it is.")]
    beta.arms[1].trained = [("pretrain", "beta"), ("finetune", "beta-small")]
    found = comparing.traded([alpha, beta])
    assert [(each.paper, each.arm, each.statement) for each in found] == [
        ("alpha", "first", None),
        ("beta", "sweep-beta", "So it is."),
    ]
    beta.cost = {"arm": "beta-small", "parameters": 7, "macs_per_step": 1_500_000, "steps": 30}
    first, second = comparing.costs([alpha, beta])
    assert (first.arm, first.network, first.parameters, first.step, first.answer) == ("first", "", None, None, None)
    assert (second.arm, second.network, second.parameters, second.step, second.steps) == (
        "beta", "beta-small", 7, 1.5, 30
    )  # fmt: skip
    assert (second.answer, second.per, second.of) == (5.0, "clip", "finetune")
    assert second.trainings == beta.arms[1].trained


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": ["alpha"]}, r"arms is \['alpha'\]"),
        ({"metrics": {"cost": "cost"}}, "metrics is {'cost': 'cost'}"),
        ({"titel": "x"}, "titel: unknown key"),
        ({"id": "Two words"}, "id is 'Two words'"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        comparing.load(write(tmp_path, ENTRY | changes))


def test_an_id_twice_and_an_unknown_arm_are_refused(tmp_path):
    with pytest.raises(ValueError, match="id 'both' is there twice"):
        comparing.load(write(tmp_path, ENTRY, ENTRY))
    with pytest.raises(ValueError, match="both: no plan evaluates 'elsewhere'"):
        comparing.check(write(tmp_path, ENTRY), ["alpha", "alpha-large", "beta"])


def test_the_projects_own_comparisons_name_arms_of_its_plans():
    assert comparing.load(ROOT / comparing.FILE)
    comparing.check(ROOT / comparing.FILE, [arm for preset in PRESETS for arm in load_plan(preset).evaluate])
