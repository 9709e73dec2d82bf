"""What trainings have logged, as small curves: one panel for each loss or metric, with all arms that can be compared.

Drawn without matplotlib: a page has hundreds of panels, and has to stay small.
"""

import csv
import html
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stages.plan import Plan

POINTS = 60  # that a curve is drawn with
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 96, 14, 14, 44  # of a panel, and of its margins
SPREAD = 20  # largest value to smallest one, from which on the axis is logarithmic
COLOURS = 8
Logged = dict[str, dict[float, float]]  # column -> step -> value


@dataclass
class Curve:
    """The mean over seeds at each step, and the lowest and highest seed."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def last(self) -> float:
        """The mean at the last step."""
        return float(self.mean[-1])

    def thinned(self) -> "Curve":
        """At most `POINTS` points, each the mean of a stretch of the curve."""
        if len(self.steps) <= POINTS:
            return self
        parts = (np.array_split(x, POINTS) for x in (self.steps, self.mean, self.low, self.high))
        return Curve(*(np.array([stretch.mean() for stretch in part]) for part in parts))


@dataclass
class Panel:
    """The curves of one loss or metric, by arm or network: on training batches, and on the split val."""

    title: str
    trained: dict[str, Curve] = field(default_factory=dict)
    watched: dict[str, Curve] = field(default_factory=dict)


@dataclass
class Trainings:
    """Trainings of one kind: of one system on one data set, pre-trained or with one protocol.

    `names` are the arms; those of the networks where one arm trains several. `further` are panels of losses that were
    logged on training batches alone, beside others.
    """

    stage: str
    system: str
    dataset: str
    arms: list[str]
    names: list[str]
    seeds: int
    panels: list[Panel]
    further: list[Panel]


def read(folder: Path, plan: Plan, trained: Iterable[tuple[str, str]]) -> list[Trainings]:
    """The trainings of some arms, as far as they are there.

    Args:
        folder: with the histories, `data/curves/<preset>`.
        plan: of the preset.
        trained: stage (or protocol) and arm of each training.
    """
    groups: dict[tuple[str, str, str], dict[str, list[Logged]]] = defaultdict(dict)
    for stage, arm in dict.fromkeys(trained):
        row = plan.pretrain[arm] if stage == "pretrain" else plan.finetune[arm]
        place = folder / "pretrain" / arm if stage == "pretrain" else folder / "finetune" / arm / stage
        if seeds := [logged for path in sorted(place.glob("seed-*/history.csv")) if (logged := _read(path))]:
            groups[stage, row.system, row.dataset][arm] = seeds
    return [_trainings(*kind, arms) for kind, arms in groups.items()]


def _read(path: Path) -> Logged:
    """The columns of a history that are losses or metrics: those have a prefix."""
    found: Logged = defaultdict(dict)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for column, value in row.items():
                if value and "/" in column:
                    found[column][float(row["step"])] = float(value)
    return found


def _trainings(stage: str, system: str, dataset: str, arms: Mapping[str, Sequence[Logged]]) -> Trainings:
    seeds: dict[tuple[str, bool], dict[str, list[dict[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for arm, runs in arms.items():
        for run in runs:
            alike = defaultdict(list)
            for column, values in run.items():
                prefix, _, rest = column.partition("/")
                network, _, metric = rest.rpartition("/")
                name = network.partition("#")[0] if network and len(arms) == 1 else arm
                alike[metric, prefix == "validation", name].append(values)
            for (metric, watched, name), several in alike.items():
                seeds[metric, watched][name].append(_mean(several))
    panels: dict[str, Panel] = {}
    for (metric, watched), curves in seeds.items():
        panel = panels.setdefault(metric, Panel(metric))
        (panel.watched if watched else panel.trained).update({name: _curve(of) for name, of in curves.items()})
    ordered = sorted(panels.values(), key=lambda panel: (panel.title != "loss", not panel.watched))
    first = [panel for panel in ordered if panel.watched or panel.title == "loss"] or ordered
    names = list(dict.fromkeys(name for curves in seeds.values() for name in curves))
    if len(arms) == 1:
        names.sort(key=_natural)  # the columns of a history are in the order of the alphabet
    further = [panel for panel in ordered if panel not in first]
    return Trainings(stage, system, dataset, [*arms], names, max(map(len, arms.values())), first, further)


def _natural(name: str) -> list[tuple[str, int]]:
    """Orders w4 before w16."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _mean(several: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """Of networks or copies of one run, at each step."""
    found = defaultdict(list)
    for values in several:
        for step, value in values.items():
            found[step].append(value)
    return {step: float(np.mean(values)) for step, values in found.items()}


def _curve(seeds: Sequence[Mapping[float, float]]) -> Curve:
    steps = sorted({step for values in seeds for step in values})
    at = [[values[step] for values in seeds if step in values] for step in steps]
    return Curve(np.array(steps), *(np.array([reduced(each) for each in at]) for reduced in (np.mean, min, max)))


def svg(panel: Panel, names: Sequence[str]) -> str:
    """One `<svg>` element to be inlined in a page; equal bytes for equal data.

    Args:
        panel: what to draw.
        names: of the arms or networks, in the order of their colours.
    """
    drawn = [
        (kind, name, curve.thinned()) for kind in ("trained", "watched") for name, curve in getattr(panel, kind).items()
    ]
    axes = _Axes([curve for _, _, curve in drawn])
    parts = [axes.svg()]
    for number, name in enumerate(names):
        mine = [(kind, curve) for kind, each, curve in drawn if each == name]
        if mine:
            colour = f'style="color:var(--series-{number % COLOURS + 1})"'
            again = ' class="again"' if number >= COLOURS else ""
            paths = "".join(_paths(kind, curve, axes) for kind, curve in mine)
            parts.append(f'<g data-curve="{number}" {colour}{again}>{paths}</g>')
    label = html.escape(f"{panel.title} while training, over steps; the last values are in the table below")
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'


def _paths(kind: str, curve: Curve, axes: "_Axes") -> str:
    """Band, line and, for what is watched only now and then, dots."""
    mean = axes.places(curve.steps, curve.mean)
    found = ""
    if (curve.high > curve.low).any():
        there, back = axes.places(curve.steps, curve.high), axes.places(curve.steps, curve.low)[::-1]
        found += f'<path class="band" d="{_path(there + back)}z"/>'
    found += f'<path class="{kind}" d="{_path(mean)}"/>'
    if kind == "watched" or len(mean) == 1:
        found += f'<path class="dots" d="{"".join(f"M{x} {y}h0" for x, y in mean)}"/>'
    return found


def _path(places: Sequence[tuple[int, int]]) -> str:
    """The `d` of a line through places, in steps from one to the next: these are short."""
    (x, y), *others = places
    text = f"M{x} {y}l" if others else f"M{x} {y}"
    for next_x, next_y in others:
        text += f"{next_x - x} {next_y - y} "
        x, y = next_x, next_y
    return text.rstrip().replace(" -", "-")


class _Axes:
    """Where steps and values lie in a panel, and the ticks."""

    def __init__(self, curves: Sequence[Curve]) -> None:
        low = min(float(curve.low.min()) for curve in curves)
        high = max(float(curve.high.max()) for curve in curves)
        self.last = max(float(curve.steps.max()) for curve in curves) or 1.0
        self.log = low > 0 and high / low > SPREAD
        if self.log:
            low, high = math.log10(low), math.log10(high)
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        self.low, self.high = low - pad, high + pad

    def places(self, steps: np.ndarray, values: np.ndarray) -> list[tuple[int, int]]:
        """Places of points."""
        return [(self._x(step), self._y(value)) for step, value in zip(steps.tolist(), values.tolist(), strict=True)]

    def _x(self, step: float) -> int:
        return round(LEFT + step / self.last * (WIDTH - LEFT - RIGHT))

    def _y(self, value: float) -> int:
        value = math.log10(value) if self.log else value
        return round(TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM))

    def svg(self) -> str:
        """Grid and labels."""
        heights = {tick: self._y(tick) for tick in self._ticks()}
        grid = "".join(f"M{LEFT} {y}h{WIDTH - LEFT - RIGHT}" for y in heights.values())
        found = f'<path class="grid" d="{grid}"/>'
        for tick, y in heights.items():
            found += f'<text x="{LEFT - 8}" y="{y + 8}" text-anchor="end">{short(tick)}</text>'
        for tick in [0.0, *_round_numbers(0.0, self.last, 4)]:
            if tick != 0 or self.last:
                anchor = "start" if tick == 0 else "end" if self._x(tick) > WIDTH - 60 else "middle"
                found += f'<text x="{self._x(tick)}" y="{HEIGHT - 12}" text-anchor="{anchor}">{short(tick)}</text>'
        return found

    def _ticks(self) -> list[float]:
        if not self.log:
            return _round_numbers(self.low, self.high, 4)
        low, high = 10**self.low, 10**self.high
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for parts in ((1,), (1, 3), (1, 2, 5)):
            ticks = [part * 10.0**decade for decade in decades for part in parts]
            if len(found := [tick for tick in ticks if low <= tick <= high]) > 2:
                break
        return found[:: math.ceil(len(found) / 5)]


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    """At most so many multiples of 1, 2 or 5 times a power of ten, without zero at the lower end."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(part * power for part in (1, 2, 5, 10) if part * power >= rough * 0.999)
    numbers = (round(count * step, 12) for count in range(math.ceil(low / step), math.floor(high / step) + 1))
    return [number for number in numbers if number != low]


def short(number: float) -> str:
    """A number of an axis: 12k, 0.05, with a minus as wide as the digits."""
    return (f"{number / 1000:g}k" if abs(number) >= 10_000 else f"{number:g}").replace("-", "−")
