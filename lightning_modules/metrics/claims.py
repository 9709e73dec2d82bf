"""Judges the claims of a paper by what was measured here: facts files, intervals over seeds, verdicts, the ledger.

A claim compares two metrics, seed by seed. The differences (or log-ratios) of the seeds give a mean and its 95 %
Student t interval, and only that interval against the claim's margin decides the verdict. A claim whose statement,
arms or margin was not fixed before the first result says so (`post_hoc`). The same interval gives a p-value, and
Holm's correction over all claims of a paper tells which verdicts survive (`ledger`). Beside the difference stand the
intervals of its two sides; those of shares stay within 0 and 100 % (`classification.seed_interval`). Read `judge`
first, then `decide`.
Imports no torch.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from lightning_modules.metrics.classification import bounds_of, seed_interval
from lightning_modules.settings import complaint

CONFIDENCE = 0.95
ALPHA = round(1 - CONFIDENCE, 6)
P_DIGITS = 3  # significant digits of a p-value in the ledger
DECIMALS = 6  # of every number in the ledger; the verdict is taken on rounded numbers, so the page never contradicts it

Direction = Literal["higher", "lower", "equal"]
Preset = Literal["tiny", "paper"]
Verdict = Literal["shown", "refuted", "undecided", "not testable"]
VERDICTS: tuple[Verdict, ...] = ("shown", "refuted", "undecided", "not testable")

Results = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Arm -> seed -> metric -> value, as the evaluate stage wrote it."""


class Interval(NamedTuple):
    """Mean of `n` values and the two ends of its 95 % interval; one value alone has no interval (None)."""

    mean: float
    low: float | None
    high: float | None
    n: int


def confidence_interval(values: Sequence[float] | np.ndarray, bounds: tuple[float, float] | None = None) -> Interval:
    """Mean with the 95 % interval over seeds (see `seed_interval`), in the unit of the values, rounded to `DECIMALS`.

    Raises:
        ValueError: there is no value, or one is not finite or outside the bounds.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"an interval needs at least one value and only finite ones, got {sample.tolist()}")
    mean, n = float(sample.mean()), sample.size
    if n == 1:
        return Interval(_rounded(mean), None, None, n)
    low, high = seed_interval(sample, CONFIDENCE, bounds)
    return Interval(_rounded(mean), _rounded(low), _rounded(high), n)


def decide(direction: Direction, low: float, high: float, margin: float) -> tuple[Verdict, str]:
    """Verdict and its reason for the interval [low, high] of `value - reference` (or of the log of their ratio).

    `higher` asks for more than `+margin`, `lower` for less than `-margin`, `equal` for the band between the two.
    An interval that touches the margin decides nothing.
    """
    if direction == "equal":
        if -margin < low and high < margin:
            return "shown", "the whole interval lies inside the band of equivalence"
        if low > margin or high < -margin:
            return "refuted", "the whole interval lies outside the band of equivalence"
        return "undecided", "the interval reaches across an edge of the band of equivalence"
    ahead, behind = ("above", "below") if direction == "higher" else ("below", "above")
    worst, best = (low, high) if direction == "higher" else (-high, -low)
    if worst > margin:
        return "shown", f"the whole interval lies {ahead} the margin"
    if best < margin:
        return "refuted", f"the whole interval lies {behind} the margin"
    return "undecided", "the interval contains the margin"


class _Strict(BaseModel):
    """A part of a facts file: nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, str_min_length=1)


class Operand(_Strict):
    """One side of a comparison: a metric of an arm."""

    arm: str
    metric: str


class Claim(_Strict):
    """One sentence of a paper as data; `margin` is a difference, or a log-ratio if `compare` is `ratio`.

    `post_hoc` marks a claim whose statement, arms (their settings included) or margin was made or changed after a test
    number of these arms had been seen; `note` then says what had been seen and what was decided.

    `too_noisy` leaves a claim unjudged at a preset where the noise, measured with other seeds and other splits, cannot
    be brought below the effect to expect: preset -> both figures. Decide it before a test number of the setting is
    seen, and never by a verdict. The arms of such a claim need not be in the plan.
    """

    id: str
    statement: str
    place: str
    paper_value: str | None
    paper_value_source: str | None
    direction: Direction
    value: Operand
    reference: Annotated[
        Annotated[Operand, Tag("metric of an arm")] | Annotated[float, Tag("number")],
        Discriminator(lambda given: "metric of an arm" if isinstance(given, dict | Operand) else "number"),
    ]
    compare: Literal["difference", "ratio"]
    margin: float = Field(ge=0)
    unit: str
    presets: list[Preset] = Field(min_length=1)
    min_seeds: int = Field(ge=2)
    too_noisy: dict[Preset, str] = {}
    post_hoc: bool = False
    note: str | None = None

    @property
    def operands(self) -> list[Operand]:
        """The metrics that this claim reads: one, or two if the reference is measured too."""
        return [self.value, self.reference] if isinstance(self.reference, Operand) else [self.value]

    @property
    def arms(self) -> list[str]:
        """The arms compared, each once, the value's first."""
        return list(dict.fromkeys(operand.arm for operand in self.operands))

    @model_validator(mode="after")
    def _agrees(self) -> "Claim":
        if self.paper_value is not None and self.paper_value_source is None:
            raise ValueError(f"paper_value is {self.paper_value!r}, so paper_value_source must say where it is from")
        if self.direction == "equal" and self.margin == 0:
            raise ValueError("direction is 'equal', so margin must be positive: it is half the band of equivalence")
        if self.post_hoc and self.note is None:
            raise ValueError("post_hoc is true, so note must say what had been seen before and what was decided then")
        if surplus := sorted(self.too_noisy.keys() - set(self.presets)):
            raise ValueError(f"too_noisy names preset {_listed(surplus)}, expected one of presets: {self.presets}")
        if self.compare == "ratio" and isinstance(self.reference, float) and self.reference <= 0:
            raise ValueError(f"reference is {self.reference}, but a ratio needs a positive one")
        return self


class Oracle(_Strict):
    """A published size that the tests compare a built network with (parameters, MACs, tokens)."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int | float | str | None]
    name: str
    source: str


class OwnClaim(Claim):
    """A claim of the user's own: nothing was published, unless the user says so."""

    place: str = "own idea"
    paper_value: str | None = None
    paper_value_source: str | None = None


class _Stated(_Strict):
    """What a paper and an own idea have in common."""

    stem: str
    title: str
    idea: str
    claims: Sequence[Claim]

    @model_validator(mode="after")
    def _ids_differ(self) -> "_Stated":
        ids = [claim.id for claim in self.claims]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"claim ids must be unique, but {', '.join(twice)} is given more than once")
        return self


class Facts(_Stated):
    """What a paper says: one `lightning_modules/<stem>/facts.yaml`."""

    authors: list[str] = Field(min_length=1)
    year: int
    venue: str
    arxiv: str | None = Field(pattern=r"^\d{4}\.\d{4,5}$")
    official_code: str | None = Field(pattern=r"^https://")
    differences: list[str]
    claims: list[Claim] = Field(min_length=1)
    oracles: list[Oracle] = []


class Idea(_Stated):
    """What a user holds against a paper: one `ideas/<stem>/idea.yaml`. `against` is the stem of the paper."""

    against: str
    claims: list[OwnClaim] = Field(min_length=1)


def facts_file(root: Path, stem: str) -> Path:
    """Where the claims of a plan are written: the facts of a paper, or an own idea.

    Raises:
        ValueError: neither file exists, or both do.
    """
    files = [f"lightning_modules/{stem}/facts.yaml", f"ideas/{stem}/idea.yaml"]
    found = [file for file in files if (root / file).is_file()]
    if len(found) != 1:
        raise ValueError(
            f"{stem} has {' and '.join(found) or 'a plan, but no claims'}; expected one of {files[0]} (a paper) and "
            f"{files[1]} (an own idea): {'choose another name for the idea' if found else 'write it'}"
        )
    return root / found[0]


def load_facts(path: Path) -> Facts | Idea:
    """Reads and checks one facts file, or one `idea.yaml`.

    Raises:
        ValueError: the file is no valid YAML, has an unknown or missing key or an impossible value; names file, claim,
            value and what was expected.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    try:
        facts = _form(path).model_validate(document)
    except ValidationError as error:
        raise ValueError("\n".join(_complaint(path, document, problem) for problem in error.errors())) from error
    if facts.stem != path.parent.name:
        raise ValueError(f"{path}: stem is {facts.stem!r}, expected {path.parent.name!r}, the name of the folder")
    return facts


def _form(path: Path) -> type[Facts] | type[Idea]:
    return Idea if path.name == "idea.yaml" else Facts


def _complaint(path: Path, document: Any, problem: Mapping[str, Any]) -> str:
    """One problem that pydantic found, with the claim that it lies in."""
    where, given, place, form = str(path), document, problem["loc"], _form(path)
    if place[:1] == ("claims",) and len(place) > 1:
        given, place, form = document["claims"][place[1]], place[2:], Claim
        name = given.get("id") if isinstance(given, dict) else None
        where = f"{path}: claim {name or problem['loc'][1] + 1}"
    hint = " (put it in quotes)" if problem["type"] == "string_type" else ""
    return complaint(where, given, {**problem, "loc": place}, form.model_fields) + hint


def check_plan(facts: Facts | Idea, arms: Collection[str], preset: str) -> None:
    """Checks that each claim to be judged at this preset names arms of the experiment plan.

    Raises:
        ValueError: a claim names an arm that the plan does not have.
    """
    for claim in facts.claims:
        for arm in claim.arms if preset in claim.presets and preset not in claim.too_noisy else ():
            if arm not in arms:
                file = "idea.yaml" if isinstance(facts, Idea) else "facts.yaml"
                raise ValueError(
                    f"{facts.stem}/{file}: claim {claim.id}: arm is {arm!r}, expected an arm of the plan's "
                    f"evaluate section: {', '.join(sorted(arms)) or 'it has none'}"
                )


class _NotTestableError(Exception):
    """The claim cannot be judged; the message is the reason that the ledger gives."""


def _values(operand: Operand, results: Results, seeds: Sequence[int]) -> np.ndarray:
    """The metric of an arm for each seed; a seed without a finite value is never dropped in silence."""
    by_seed = results[operand.arm]
    if absent := [seed for seed in seeds if operand.metric not in by_seed[seed]]:
        raise _NotTestableError(f"arm {operand.arm} has no metric {operand.metric} for seeds {_listed(absent)}")
    values = np.array([by_seed[seed][operand.metric] for seed in seeds], dtype=np.float64)
    if odd := [seed for seed, value in zip(seeds, values, strict=True) if not math.isfinite(value)]:
        raise _NotTestableError(f"{operand.metric} of arm {operand.arm} is not finite for seeds {_listed(odd)}")
    return values


def _pairs(claim: Claim, results: Results, missing: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Value and reference of the seeds that all arms of the claim share, in order of the seeds."""
    for arm in claim.arms:
        if arm not in results:
            raise _NotTestableError(f"arm {arm}: {missing.get(arm, 'not in the plan')}")
    seeds = sorted(set.intersection(*(set(results[arm]) for arm in claim.arms)))
    if not seeds:
        raise _NotTestableError(f"arms {' and '.join(claim.arms)} share no seed")
    value = _values(claim.value, results, seeds)
    if isinstance(claim.reference, Operand):
        return value, _values(claim.reference, results, seeds)
    return value, np.full_like(value, claim.reference)


def _compared(claim: Claim, value: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The paired differences, or the logs of the paired ratios."""
    if claim.compare == "difference":
        return value - reference
    if min(value.min(), reference.min()) <= 0:
        raise _NotTestableError("a ratio needs positive values on both sides")
    return np.log(value / reference)


def p_value(values: Sequence[float] | np.ndarray, direction: Direction, margin: float) -> float:
    """Two-sided p-value of Student's t test that the mean of `values` lies on an edge of the margin.

    The edge is `+margin` for `higher` and `-margin` for `lower`. For `equal` it is the nearer of the two, which gives
    the larger p-value: inside the band this is twice the larger p-value of two one-sided tests, as a 95 % interval
    inside the band asks for 2.5 % on either side. So p < 0.05 if and only if the 95 % interval holds no edge, which is
    when `decide` comes to a verdict. Values without spread (to `DECIMALS`) give 0, or 1 if they lie on an edge.

    Raises:
        ValueError: fewer than two values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2:
        raise ValueError(f"a p-value needs at least two values, got {sample.tolist()}")
    from scipy.special import stdtr  # scipy.stats has the same distribution at many times the import time

    edges = {"higher": (margin,), "lower": (-margin,), "equal": (-margin, margin)}[direction]
    distance = min(abs(float(sample.mean()) - edge) for edge in edges)
    error = float(sample.std(ddof=1)) / math.sqrt(sample.size)
    if _rounded(error) == 0:
        return 0.0 if _rounded(distance) else 1.0
    return float(2 * stdtr(sample.size - 1, -distance / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Scandinavian Journal of Statistics 6, 1979).

    Of m p-values the smallest is multiplied by m, the next by m - 1 and so on; none is less than the one before it, and
    none is above 1. If all those below 0.05 are taken as decided, the probability that one or more of these decisions
    is false is at most 5 %, however the tests depend on each other.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _told_p(p: float, decided: bool) -> float:
    """A p-value with `P_DIGITS` digits, on the side of 0.05 where the verdict is that it belongs to."""
    told = float(f"{p:.{P_DIGITS}g}")
    return min(told, round(ALPHA - 10.0 ** -(P_DIGITS + 1), DECIMALS)) if decided else max(told, ALPHA)


def judge(claim: Claim, results: Results, preset: str, missing: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What was measured for a claim, and the verdict with its reason.

    For a ratio, `difference`, `interval` and `margin` are factors (1 = no difference), although judged on the log.
    `p_value` is below 0.05 if and only if the verdict is shown or refuted; None if the claim is not testable. `exact`
    says that neither side varies over the seeds, as counts of multiply-adds do not: no chance is in such a verdict.

    Args:
        claim: what the paper says.
        results: metrics of every seed of every arm that ran.
        preset: the preset of these results.
        missing: why an arm of the plan has no results.
    """
    factor = math.exp if claim.compare == "ratio" else float
    row = dict.fromkeys(("value", "value_interval", "reference", "reference_interval", "difference", "interval"))
    row |= {"margin": _rounded(factor(claim.margin)), "n": 0, "p_value": None, "exact": False}
    row["verdict"] = "not testable"
    try:
        if preset not in claim.presets:
            raise _NotTestableError(f"can be judged at preset {_listed(claim.presets)} only")
        if preset in claim.too_noisy:
            raise _NotTestableError(f"too noisy at this size: {claim.too_noisy[preset]}")
        value, reference = _pairs(claim, results, missing or {})
        for name, values, operand in (("value", value, claim.value), ("reference", reference, claim.reference)):
            side = confidence_interval(values, bounds_of(operand.metric) if isinstance(operand, Operand) else None)
            row |= {name: side.mean, f"{name}_interval": _ends(side, float)}
        row["n"] = value.size
        differences = _compared(claim, value, reference)
        compared = confidence_interval(differences)
        row |= {"difference": _rounded(factor(compared.mean)), "interval": _ends(compared, factor)}
        if compared.n < claim.min_seeds:
            raise _NotTestableError(f"{compared.n} of the {claim.min_seeds} seeds that the claim asks for")
    except _NotTestableError as reason:
        return row | {"reason": str(reason)}
    verdict, because = decide(claim.direction, compared.low, compared.high, claim.margin)
    p = _told_p(p_value(differences, claim.direction, claim.margin), verdict != "undecided")
    exact = all(len(set(row[f"{side}_interval"])) == 1 for side in ("value", "reference"))
    return row | {"p_value": p, "exact": exact, "verdict": verdict, "reason": because}


def ledger(
    papers: Sequence[Facts | Idea], results: Results, preset: str, missing: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """One row per claim of every paper, in the order of the facts files: `results/<preset>/<stem>/claims.json`.

    Holm's correction is over the judged claims of one paper that are not exact: `p_holm`, and in `verdict_holm` the
    verdict if `p_holm` is below 0.05, else `undecided`. Exact verdicts stay.
    """
    return [row for facts in papers for row in _corrected(_rows(facts, results, preset, missing or {}))]


def _rows(facts: Facts | Idea, results: Results, preset: str, missing: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "paper": facts.stem,
            **claim.model_dump(include={"id", "statement", "place"}),
            "arms": claim.arms,
            "metric": claim.value.metric,
            "reference_metric": claim.operands[1].metric if len(claim.operands) == 2 else None,
            **claim.model_dump(
                include={"direction", "compare", "paper_value", "paper_value_source", "unit", "post_hoc"}
            ),
            **judge(claim, results, preset, missing),
            "preset": preset,
        }
        for claim in facts.claims
    ]


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one paper with `p_holm` and `verdict_holm`."""
    of_chance = [row for row in rows if row["p_value"] is not None and not row["exact"]]
    adjusted = iter(holm([row["p_value"] for row in of_chance]))
    corrected = []
    for row in rows:
        p, verdict = row["p_value"], row["verdict"]
        if any(row is each for each in of_chance):
            p = next(adjusted)
            verdict = verdict if p < ALPHA else "undecided"
            p = _told_p(p, verdict != "undecided")
        corrected.append(row | {"p_holm": p, "verdict_holm": verdict})
    return corrected


class Chance(NamedTuple):
    """What chance alone may have done to the verdicts of some rows of the ledger.

    `judged` claims vary over seeds, `exact` ones do not. If the true mean of every one of the former lay on the margin,
    5 % of them would be shown or refuted all the same: `expected` is that number. It is less if they lie elsewhere.
    """

    judged: int
    exact: int
    expected: float


def chance(rows: Sequence[Mapping[str, Any]]) -> Chance:
    """How many judged claims vary over seeds, how many do not, and the false verdicts to expect at most."""
    exact = sum(row["exact"] for row in rows)
    judged = sum(row["verdict"] != "not testable" for row in rows) - exact
    return Chance(judged, exact, round(ALPHA * judged, 2))


def summary(results: Results) -> dict[str, dict[str, dict[str, Any]]]:
    """Arm -> metric -> {mean, low, high, n} over seeds, as `dvc metrics show` reads it.

    A metric that is not finite for some seed has no mean (None): a diverged seed is not averaged away.
    """
    return {
        arm: {
            metric: _summarised([run[metric] for run in by_seed.values() if metric in run], bounds_of(metric))
            for metric in sorted(set().union(*by_seed.values()))
        }
        for arm, by_seed in results.items()
    }


def _summarised(values: Sequence[float], bounds: tuple[float, float] | None) -> dict[str, float | int | None]:
    if np.isfinite(values).all():
        return confidence_interval(values, bounds)._asdict()
    return {"mean": None, "low": None, "high": None, "n": len(values)}


def _ends(interval: Interval, factor: Callable[[float], float]) -> list[float] | None:
    return None if interval.low is None else [_rounded(factor(interval.low)), _rounded(factor(interval.high))]


def _rounded(number: float) -> float:
    return round(number, DECIMALS) + 0.0  # + 0.0 turns -0.0 into 0.0


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(str(item) for item in items)
