"""The plan of a preset: `plans/<preset>/<paper>/params.yaml` of each paper, and the seeds in the root's `params.yaml`.

Everything is checked before an output is touched: pydantic checks the form, `load_plan` checks references.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lightning_modules.files import ROOT
from lightning_modules.settings import NAME, Count, complaint, meant

Preset = Literal["tiny", "paper"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
SERVES_ALL = 1  # `max_seeds` of an arm whose single seed serves all seeds of the arms that start from it


def _named(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("expected a name of letters, digits, `_`, `.` and `-`")
    return value


Name = Annotated[str, AfterValidator(_named)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]

Form = TypeVar("Form", bound=BaseModel)


class PlanError(ValueError):
    """An error in `plans/` or `conf/`; the message names the value and says how to fix it."""


class _Form(BaseModel):
    """A part of a plan: no unknown keys, no conversion of values, no change afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Trained(_Form):
    """A row of a stage that trains."""

    system: Name
    dataset: Name
    overrides: dict[str, Any] = {}
    max_seeds: Count | None = None


class _Started(_Trained):
    """A row that begins with the weights of another arm."""

    start: Name = Field(alias="from")


class _Evaluated(_Form):
    """A row of `evaluate`: the seeds of one arm (`pretrain`), or all arms of one comparison (`finetune`)."""

    system: Name
    stage: Literal["pretrain", "finetune"]
    runs: Name
    overrides: dict[str, Any] = {}


class _Searched(_Form):
    """A row of `sweep`: a search over the trained seeds of an arm."""

    system: Name
    runs: Name
    overrides: dict[str, Any] = {}


ROWS: dict[str, type[_Form]] = {
    "pretrain": _Trained,
    "pretrain_from": _Started,
    "finetune": _Started,
    "evaluate": _Evaluated,
    "sweep": _Searched,
}


class Paper(_Form):
    """One `plans/<preset>/<paper>/params.yaml`. `max_seeds` is the default of its rows, null for every seed."""

    preset: Preset
    paper: Name
    max_seeds: Count | None
    datasets: list[Name]
    pretrain: dict[Name, dict]
    pretrain_from: dict[Name, dict]
    finetune: dict[Name, dict]
    evaluate: dict[Name, dict]
    sweep: dict[Name, dict]


class Shared(_Form):
    """The root's `params.yaml`: what all papers share."""

    seeds: list[Seed] = Field(min_length=1)
    at_least: Count | None


@dataclass(frozen=True)
class Row:
    """One arm in one stage of one paper. `start` is the pre-trained arm whose weights it begins with, or empty."""

    arm: str
    paper: str
    system: str
    overrides: dict
    dataset: str = ""
    start: str = ""
    stage: str = "pretrain"
    runs: str = ""
    max_seeds: int | None = None

    @property
    def comparison(self) -> str:
        """The comparison that a fine-tuned arm belongs to: all arms of one system on one data set."""
        return f"{self.system}-{self.dataset}"


@dataclass(frozen=True)
class Plan:
    """All papers of a preset, checked. `pretrain` holds the rows of `pretrain_from`; `datasets` name their paper."""

    preset: Preset
    seeds: list[int]
    at_least: int | None
    papers: list[str]
    datasets: dict[str, str]
    pretrain: dict[str, Row]
    finetune: dict[str, Row]
    evaluate: dict[str, Row]
    sweep: dict[str, Row]

    def row(self, stage: str, arm: str) -> Row:
        """The row of an arm.

        Raises:
            PlanError: no paper of the preset has such an arm in this stage.
        """
        rows = getattr(self, stage)
        if arm not in rows:
            raise PlanError(f"plans/{self.preset}: no arm {arm!r} in `{stage}`{meant(arm, rows)}")
        return rows[arm]

    def seeds_of(self, row: Row) -> list[int]:
        """The seeds that this arm trains: the first `max_seeds` of the plan, or `at_least` if that is more."""
        most = row.max_seeds
        if most is not None and most != SERVES_ALL:
            most = max(most, self.at_least or 0)
        return self.seeds[:most]

    def trained(self, row: Row, protocols: Iterable[str]) -> list[tuple[str, str]]:
        """(stage, arm) of every training that a row of `evaluate` reads, with the trainings that these start from.

        Args:
            row: a row of `evaluate` or `sweep`.
            protocols: those that the arms of a comparison are trained with, see `composing.downstream`.
        """
        if row.stage == "pretrain":
            return self._with_upstream(row.runs)
        compared = [each for each in self.finetune.values() if each.comparison == row.runs]
        upstream = [pair for each in compared for pair in self._with_upstream(each.start)]
        return list(dict.fromkeys(upstream)) + [(stage, each.arm) for each in compared for stage in protocols]

    def _with_upstream(self, arm: str) -> list[tuple[str, str]]:
        start = self.pretrain[arm].start
        return [*(self._with_upstream(start) if start else ()), ("pretrain", arm)]


def load_plan(preset: str = "tiny", root: Path | None = None, *, shared: Mapping[str, Any] | None = None) -> Plan:
    """Read and check the plans of a preset; `shared` holds values in place of those in `params.yaml`.

    Raises:
        PlanError: an unknown or missing key, a value of the wrong kind, a seed listed twice, an arm or a data set that
            two papers have, an arm whose data or runs are not in the plan.
    """
    root = root or ROOT
    if preset not in PRESETS:
        raise PlanError(f"unknown preset {preset!r}{meant(preset, PRESETS)}")
    given = _read(root / "params.yaml", "params.yaml")
    shared = _formed(Shared, {**given, **(shared or {})} if isinstance(given, dict) else given, "params.yaml")
    _check_seeds(shared)
    folder = root / "plans" / preset
    papers = [_paper(path, preset) for path in sorted(folder.glob("*/params.yaml"))]
    if not papers:
        raise PlanError(f"plans/{preset} has no paper, expected plans/{preset}/<paper>/params.yaml")
    rows = {stage: _rows(papers, stage) for stage in ROWS}
    first, later = rows["pretrain"], rows["pretrain_from"]
    if twice := sorted(first.keys() & later.keys()):
        raise PlanError(f"{', '.join(twice)} is in `pretrain` and in `pretrain_from`; an arm is in one of them")
    plan = Plan(
        preset=preset,
        seeds=shared.seeds,
        at_least=shared.at_least,
        papers=[paper.paper for paper in papers],
        datasets=_datasets(papers),
        pretrain=first | later,
        **{stage: rows[stage] for stage in ("finetune", "evaluate", "sweep")},
    )
    for stage in ("pretrain", "pretrain_from", "finetune"):
        for row in rows[stage].values():
            _check_training(plan, stage, row)
    _check_chains(plan)
    _check_comparisons(plan)
    found = {
        stage: {arm: _with_dataset(plan, stage, row) for arm, row in rows[stage].items()}
        for stage in ("evaluate", "sweep")
    }
    return replace(plan, **found)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML as Hydra and DVC read it: `1e-4` is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _read(path: Path, where: str) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise PlanError(f"{where}: no such file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PlanError(f"{where} cannot be read as YAML: {' '.join(str(error).split())}") from None


def _formed(form: type[Form], given: Any, where: str) -> Form:
    """Convert what was read into its form.

    Raises:
        PlanError: the first problem found.
    """
    try:
        return form.model_validate(given)
    except ValidationError as error:
        known = [field.alias or name for name, field in form.model_fields.items()]
        first = min(
            error.errors(), key=lambda problem: problem["type"] != "extra_forbidden"
        )  # a misspelt key misses, too
        raise PlanError(complaint(where, given, first, known)) from None


def _paper(path: Path, preset: str) -> Paper:
    """One paper's plan. It repeats the names of its folders, because DVC builds paths from them."""
    stem = path.parent.name
    where = f"plans/{preset}/{stem}/params.yaml"
    paper = _formed(Paper, _read(path, where), where)
    for key, expected in (("preset", preset), ("paper", stem)):
        if (given := getattr(paper, key)) != expected:
            raise PlanError(f"{where}: {key} is {given!r}, expected {expected!r}, the name of its folder")
    return paper


def _check_seeds(shared: Shared) -> None:
    for seed in shared.seeds:
        if shared.seeds.count(seed) > 1:
            raise PlanError(
                f"params.yaml: seed {seed} is listed twice; a seed counts once in an interval, so list each once"
            )
    if (shared.at_least or 0) > len(shared.seeds):
        raise PlanError(
            f"params.yaml: at_least is {shared.at_least}, but `seeds` lists {len(shared.seeds)}: list more of them"
        )


def _rows(papers: Iterable[Paper], stage: str) -> dict[str, Row]:
    """The rows of all papers in one stage, by arm."""
    rows: dict[str, Row] = {}
    for paper in papers:
        for arm, given in getattr(paper, stage).items():
            where = f"plans/{paper.preset}/{paper.paper}/params.yaml: {stage}.{arm}"
            if arm in rows:
                raise PlanError(
                    f"{where} is an arm of plans/{paper.preset}/{rows[arm].paper}, too; choose another name"
                )
            row = Row(arm=arm, paper=paper.paper, **_formed(ROWS[stage], given, where).model_dump())
            rows[arm] = replace(row, max_seeds=row.max_seeds or paper.max_seeds)
    return rows


def _datasets(papers: Iterable[Paper]) -> dict[str, str]:
    """The data sets, each with the paper that prepares it."""
    found: dict[str, str] = {}
    for paper in papers:
        for name in paper.datasets:
            if name in found:
                raise PlanError(
                    f"plans/{paper.preset}/{paper.paper}/params.yaml: data set {name} is prepared by {found[name]}, "
                    "too; list it in one of them: every paper may use it"
                )
            found[name] = paper.paper
    return found


def _where(plan: Plan, stage: str, row: Row) -> str:
    return f"plans/{plan.preset}/{row.paper}/params.yaml: {stage}.{row.arm}"


def _check_training(plan: Plan, stage: str, row: Row) -> None:
    where = _where(plan, stage, row)
    if row.dataset not in plan.datasets:
        raise PlanError(f"{where}.dataset is {row.dataset!r}{meant(row.dataset, plan.datasets)}")
    if not row.start:
        return
    if row.start not in plan.pretrain:
        raise PlanError(f"{where}.from is {row.start!r}{meant(row.start, plan.pretrain)}")
    seeds, available = plan.seeds_of(row), plan.seeds_of(plan.pretrain[row.start])
    if len(available) > 1 and not set(seeds) <= set(available):
        raise PlanError(
            f"{where} trains the seeds {seeds}, but {row.start} has {available}: give both the same max_seeds, or "
            f"{row.start} a single seed that serves all"
        )


def _check_chains(plan: Plan) -> None:
    for arm, row in plan.pretrain.items():
        chain = [arm]
        while row.start:
            if row.start in chain:
                where = _where(plan, "pretrain_from", plan.pretrain[arm])
                raise PlanError(f"{where}: {' from '.join([*chain, row.start])} is a circle")
            chain.append(row.start)
            row = plan.pretrain[row.start]


def _check_comparisons(plan: Plan) -> None:
    seen: dict[tuple[str, str], str] = {}
    first: dict[str, Row] = {}
    for row in plan.finetune.values():
        home = first.setdefault(row.comparison, row)
        if home.paper != row.paper:
            raise PlanError(
                f"{_where(plan, 'finetune', row)} and {_where(plan, 'finetune', home)} are both in the comparison "
                f"{row.comparison}, so each would change the results of the other; use another system in one of them, "
                f"such as a copy of conf/system/{row.system}"
            )
        other = seen.setdefault((row.comparison, row.start), row.arm)
        if other != row.arm:
            raise PlanError(
                f"{_where(plan, 'finetune', row)} and finetune.{other} have the same system, dataset and `from`; "
                "a comparison has an arm once"
            )


def _with_dataset(plan: Plan, stage: str, row: Row) -> Row:
    """A row that evaluates trained runs, with their data set filled in."""
    known = {"pretrain": plan.pretrain, "finetune": {each.comparison: each for each in plan.finetune.values()}}
    if row.runs not in known[row.stage]:
        where = _where(plan, stage, row)
        raise PlanError(f"{where}.runs is {row.runs!r}{meant(row.runs, known[row.stage])}")
    return replace(row, dataset=known[row.stage][row.runs].dataset)


def parts(name: str) -> tuple[str, str, str]:
    """Paper, stage and arm of a name such as `plans/tiny/clip_vip/dvc.yaml:evaluate@clip_vip-world_video_text`."""
    file, _, stage = name.rpartition(":")
    folders = file.split("/")
    stage, _, arm = stage.partition("@")
    return folders[2] if len(folders) == 4 else "", stage, arm
