"""What the overview compares across papers: arms that report the same metrics, side by side. Nothing is judged here."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lightning_modules.runs import Figure, Series
from lightning_modules.settings import complaint, meant

if TYPE_CHECKING:
    from stages.page import Arm, Paper

FILE = Path("conf/comparisons.yaml")  # in the project's folder


class Comparison(BaseModel):
    """One entry of the file.

    Attributes:
        id: the place on the page.
        metrics: names without the data set, and what they are called. The first is the x axis, the second the y axis.
        arms: of several papers, and of any preset: those without results are left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[a-z_]+$")]
    title: str
    text: str
    metrics: Annotated[dict[str, str], Field(min_length=2)]
    arms: Annotated[list[str], Field(min_length=2)]


@dataclass
class Row:
    """What one arm contributes: the mean and interval of each metric, None where it has none."""

    paper: str
    arm: str
    dataset: str
    values: list[dict[str, Any] | None]


@dataclass
class Compared:
    """A comparison with its numbers. `name` and `figures` are what a figure of an arm has, too."""

    name: str
    comparison: Comparison
    rows: list[Row]
    figures: list[Figure]


FRONTS = "sweep-fronts"  # the end of the id of a figure that `sweeps.search` draws
MACS = re.compile(r"(?<!^pretrain/)\bmacs_per_(\w+)$")  # of an answer; MaskAlign counts pre-training in such a metric
COUNTED = "costs.json"  # in results/<preset>/<paper>/, see `stages.costs`
MILLION = 1e6


@dataclass
class Traded:
    """A trade-off of accuracy against multiply-adds. `name` and `figures` are what a figure of an arm has, too."""

    name: str
    paper: str
    arm: str
    statement: str | None
    figures: list[Figure]


@dataclass
class Cost:
    """What the main arm of a paper costs. Multiply-adds are in millions.

    Attributes:
        network: the training that `stages.costs` counted; empty if it was not counted.
        parameters: that this training changes.
        step: multiply-adds of one of its `steps`, forward and backward.
        answer: multiply-adds of an answer, if the evaluation counts them, `per` what, `of` which part of the arm.
        trainings: (stage, arm) of all that the arm reads.
    """

    paper: str
    arm: str
    network: str
    parameters: int | None
    step: float | None
    steps: int | None
    answer: float | None
    per: str
    of: str
    trainings: list[tuple[str, str]]


def traded(papers: Sequence["Paper"]) -> list[Traded]:
    """The fronts of singles, ensembles and cascades of every search, whatever its members are."""
    return [
        Traded(f"across-{arm.name}", paper.facts.stem, arm.name, arm.statement, [figure])
        for paper in papers
        for arm in paper.arms + paper.sweeps
        for figure in arm.figures
        if figure.id.endswith(FRONTS)
    ]


def costs(papers: Sequence["Paper"]) -> list[Cost]:
    """One row for each paper: the arm that bears its name, or else the first one with results."""
    found = []
    for paper in papers:
        stem = paper.facts.stem
        shown = sorted((arm for arm in paper.arms if not arm.missing), key=lambda arm: arm.name != stem)
        if shown:
            named = {key.partition("/")[2]: value["mean"] for key, value in shown[0].metrics.items()}
            own = {key.removesuffix(f"@{stem}"): value for key, value in named.items()}
            metric = next((key for key in own if MACS.search(key)), "")
            counted = paper.cost or {}
            found.append(
                Cost(
                    stem,
                    shown[0].name,
                    counted.get("arm", ""),
                    counted.get("parameters"),
                    counted["macs_per_step"] / MILLION if counted else None,
                    counted.get("steps"),
                    own[metric] / MILLION if metric else None,
                    metric.rpartition("macs_per_")[2],
                    metric.rpartition("/")[0],
                    shown[0].trained,
                )
            )
    return found


def load(path: Path) -> list[Comparison]:
    """The comparisons of a project; none if it has no such file.

    Raises:
        ValueError: the file has an unknown or missing key or an impossible value, or an id twice.
    """
    if not path.is_file():
        return []
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        found = TypeAdapter(list[Comparison]).validate_python(given)
    except ValidationError as error:
        raise ValueError(complaint(str(FILE), given, error.errors()[0], Comparison.model_fields)) from None
    ids = [each.id for each in found]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise ValueError(f"{FILE}: id {twice!r} is there twice, expected each once")
    return found


def check(path: Path, arms: Iterable[str]) -> None:
    """Refuse arms that no plan has.

    Raises:
        ValueError: the file is wrong, or names an arm that is none of `arms`.
    """
    known = set(arms)
    for each in load(path):
        if unknown := [arm for arm in each.arms if arm not in known]:
            raise ValueError(f"{FILE}: {each.id}: no plan evaluates {unknown[0]!r}{meant(unknown[0], known)}")


def compare(comparisons: Iterable[Comparison], papers: Sequence["Paper"]) -> list[Compared]:
    """The comparisons for which at least two papers have results, with their numbers."""
    arms = {arm.name: (paper.facts.stem, arm) for paper in papers for arm in paper.arms if not arm.missing}
    found = []
    for each in comparisons:
        rows = [_row(*arms[name], list(each.metrics)) for name in each.arms if name in arms]
        rows = [row for row in rows if None not in row.values[:2]]
        if len({row.paper for row in rows}) > 1:
            found.append(Compared(f"across-{each.id}", each, rows, [_figure(each, rows)]))
    return found


def _row(paper: str, arm: "Arm", metrics: Sequence[str]) -> Row:
    named = {key.partition("/")[2]: (key.partition("/")[0], value) for key, value in arm.metrics.items()}
    found = [named.get(metric) for metric in metrics]
    dataset = next((each[0] for each in found if each), "")
    return Row(paper, arm.name, dataset, [each and each[1] for each in found])


def _end(value: Mapping[str, Any], end: str) -> float:
    """An end of an interval; of one seed, which has none, the value itself."""
    return value["mean"] if value[end] is None else value[end]


def _figure(comparison: Comparison, rows: Sequence[Row]) -> Figure:
    """A cloud of points for each paper, with intervals along y."""
    x_label, y_label = list(comparison.metrics.values())[:2]
    series = []
    for paper in dict.fromkeys(row.paper for row in rows):
        mine = [row for row in rows if row.paper == paper]
        x, y = ([row.values[number] for row in mine] for number in (0, 1))
        series.append(
            Series(
                paper,
                "points",
                [value["mean"] for value in x],
                [value["mean"] for value in y],
                [_end(value, "low") for value in y],
                [_end(value, "high") for value in y],
                [row.arm for row in mine],
            )
        )
    caption = "Means over seeds; bars are 95 % intervals along the y axis."
    return Figure("points", comparison.title, caption, x_label, y_label, series)
