"""The report: an overview and a page for each paper, in HTML without external resources, from the results alone."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from pydantic import TypeAdapter
from scipy import stats

from lightning_modules.metrics.claims import ALPHA, CONFIDENCE, VERDICTS, Chance, Facts, Idea, chance
from lightning_modules.runs import Figure, Gallery
from stages.page import comparing, curves, figures
from stages.page.moving import silent, sound, still
from stages.page.packing import packed

if TYPE_CHECKING:
    from rich.table import Table

HERE = Path(__file__).parent
MOST_SEEDS = 100  # an estimate beyond is not worth telling
ICONS = {"shown": "✓", "refuted": "✗", "undecided": "≈", "not testable": "–"}


@dataclass
class Arm:
    """One row of a paper's comparison, or a sweep with its statement; `missing` says why it has no results.

    `trained` names the stage and arm of every training that it reads; `not_computed`, why a metric is not among them.
    """

    name: str
    trained: list[tuple[str, str]]
    seeds: list[int] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    not_computed: dict[str, str] = field(default_factory=dict)
    missing: str | None = None
    statement: str | None = None


@dataclass
class Paper:
    """What the page shows of one paper; `cost` is what `stages.costs` counted, if it did."""

    facts: Facts | Idea
    rows: list[dict[str, Any]]
    arms: list[Arm]
    sweeps: list[Arm] = field(default_factory=list)
    trainings: list[curves.Trainings] = field(default_factory=list)
    cost: dict[str, Any] | None = None

    @property
    def own(self) -> bool:
        """Whether this is an idea of the user's, and no paper."""
        return isinstance(self.facts, Idea)

    @property
    def counts(self) -> dict[str, int]:
        """How many claims have each verdict, all four in a fixed order."""
        return count(self.rows)

    @property
    def chance(self) -> Chance:
        """How many of its claims are judged, and how many of these may be false by chance."""
        return chance(self.rows)

    @property
    def runs(self) -> list[tuple[str, str]]:
        """(stage, arm) of everything that was computed for this paper, each once."""
        measured = [("evaluate", arm.name) for arm in self.arms] + [("sweep", arm.name) for arm in self.sweeps]
        return self.trained + measured

    @property
    def trained(self) -> list[tuple[str, str]]:
        """(stage, arm) of every training that was read, each once."""
        return list(dict.fromkeys(pair for arm in self.arms for pair in arm.trained))

    def note(self, row: Mapping[str, Any]) -> str | None:
        """What the facts file adds to a claim."""
        return next((claim.note for claim in self.facts.claims if claim.id == row["id"]), None)


def load_galleries(path: Path) -> list[Gallery]:
    """The galleries of an arm, from the `galleries.json` that the evaluate stage wrote; most arms have none."""
    return TypeAdapter(list[Gallery]).validate_json(path.read_bytes()) if path.exists() else []


def load_not_computed(path: Path) -> dict[str, str]:
    """Metrics that an arm does not have, and why, from the evaluate stage's `not_computed.json`, if there is one."""
    return TypeAdapter(dict[str, str]).validate_json(path.read_bytes()) if path.exists() else {}


def count(rows: Sequence[Mapping[str, Any]], verdict: str = "verdict") -> dict[str, int]:
    """How many claims have each verdict (or `verdict_holm`), all four in a fixed order."""
    found = Counter(row[verdict] for row in rows)
    return {verdict: found[verdict] for verdict in VERDICTS}


def render(
    papers: Sequence[Paper],
    preset: str,
    unavailable: Mapping[str, str],
    comparisons: Iterable[comparing.Comparison] = (),
) -> dict[str, str]:
    """The text of each page, the same for the same results: `index.html` and `papers/<stem>.html`.

    Args:
        papers: what to show, in this order; own ideas come last, and count in no number over all papers.
        preset: the preset of the results.
        unavailable: data set -> why it was not available.
        comparisons: across papers.
    """
    figures.tidy()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": number,
        "decimals": decimals,
        "change": change,
        "interval": interval,
        "margin": margin,
        "needed": needed,
        "breakable": breakable,
        "probability": probability,
        "packed": packed,
        "silent": silent,
        "sound": sound,
        "still": still,
    }
    common = {
        "papers": [paper for paper in papers if not paper.own],
        "ideas": [paper for paper in papers if paper.own],
        "preset": preset,
        "unavailable": unavailable,
        "rows": [row for paper in papers if not paper.own for row in paper.rows],
        "compared": comparing.compare(comparisons, papers),
        "traded": comparing.traded([paper for paper in papers if not paper.own]),
        "costs": comparing.costs([paper for paper in papers if not paper.own]),
        "count": count,
        "chance": chance,
        "alpha": f"{ALPHA:.0%}".replace("%", " %"),
        "icons": ICONS,
        "confidence": f"{CONFIDENCE:.0%}".replace("%", " %"),
        "scale": interval_scale,
        "points": figures.points,
        "drawing": drawing,
        "curves": lambda panel, names: Markup(curves.svg(panel, names)),
        "css": Markup((HERE / "page.css").read_text(encoding="utf-8")),
        "script": Markup((HERE / "page.js").read_text(encoding="utf-8")),
    }
    pages = {"index.html": ("index.html.j2", {"home": "index.html", "place": partial(place, "papers/")})}
    for paper in papers:
        own = {"home": "../index.html", "place": partial(place, ""), "paper": paper}
        pages[f"papers/{paper.facts.stem}.html"] = ("paper.html.j2", own)
    return {name: environment.get_template(source).render(common | own) for name, (source, own) in pages.items()}


def drawing(figure: Figure, prefix: str, large: bool) -> Markup:
    """A figure as SVG; a large one twice, because a phone shows the small one, in which words can be read."""
    small = figures.svg(figure, f"{prefix}-small" if large else prefix)
    if not large:
        return Markup(small)
    wide = figures.svg(figure, prefix, figures.LARGE)
    return Markup(wide.replace("<svg ", '<svg class="wide" ', 1) + small.replace("<svg ", '<svg class="narrow" ', 1))


def place(folder: str, stem: str, claim: str | None = None) -> str:
    """Where a paper, or one of its claims, is shown, as a link from a page beside `folder`."""
    return f"{folder}{stem}.html" + (f"#{stem}-{claim}" if claim else "")


def needed(row: Mapping[str, Any]) -> str:
    """What it would take to decide a claim: nothing, more seeds, or what stands in the way of judging it."""
    if row["verdict"] == "not testable":
        return row["reason"][0].upper() + row["reason"][1:]
    if row["verdict"] != "undecided":
        return "decided"
    seeds = seeds_needed(row)
    return f"about {seeds} seeds" if seeds else f"more than {MOST_SEEDS} seeds: the mean is close to the margin"


def seeds_needed(row: Mapping[str, Any]) -> int | None:
    """How many seeds would decide a claim if mean and spread stay as they are; None if more than `MOST_SEEDS`."""
    to_axis = math.log if row["compare"] == "ratio" else float
    low, high, mean, margin = (to_axis(value) for value in (*row["interval"], row["difference"], row["margin"]))
    distance = {"higher": abs(mean - margin), "lower": abs(mean + margin), "equal": abs(abs(mean) - margin)}
    quantile = partial(stats.t.ppf, (1 + CONFIDENCE) / 2)
    deviation = (high - low) / 2 / quantile(row["n"] - 1) * math.sqrt(row["n"])
    enough = (n for n in range(row["n"] + 1, MOST_SEEDS + 1)
              if quantile(n - 1) * deviation / math.sqrt(n) < distance[row["direction"]])  # fmt: skip
    return next(enough, None)


def number(value: float | None, decimals: int | None = None) -> str:
    """A number for reading: 25,856 or 96.42 or 0.0734, or with the decimals asked for; a dash for None."""
    if value is None:
        return "–"
    size = abs(value)
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
    elif size >= 1000 or value == int(value):
        text = f"{value:,.0f}"
    elif size >= 1:
        text = f"{value:.2f}"
    else:
        text = f"{value:.3g}" if size >= 1e-4 else f"{value:.1e}"
    return text.replace("-", "−") if text.strip("-0.,") else text.removeprefix("-")


def probability(p: float) -> str:
    """A p-value as in `claims.json`: 0.0312, or < 0.0001."""
    return f"{p:g}" if p >= 1e-4 else "< 0.0001"


def decimals(ends: Sequence[float] | None) -> int | None:
    """How many decimals to show for an interval and its mean: two significant digits of its half width."""
    half = (ends[1] - ends[0]) / 2 if ends else 0.0
    return min(max(1 - math.floor(math.log10(half)), 0), 6) if half > 0 else None


def breakable(name: str) -> Markup:
    """A metric's name that may wrap after a slash or before an at sign, and not within a word."""
    return Markup(escape(name).replace("/", Markup("/<wbr>")).replace("@", Markup("<wbr>@")))


def change(value: float | None, compare: str, decimals: int | None = None) -> str:
    """A difference with its sign, or a ratio as a factor: +0.89 or ×1.83."""
    text = number(value, decimals)
    if value is None:
        return text
    if compare == "ratio":
        return f"×{text}"
    return f"+{text}" if value > 0 else text


def interval(ends: Sequence[float], compare: str | None = None) -> str:
    """An interval in words: `0.42 to 1.36`, with signs or as factors if it is one of a comparison."""
    places = decimals(ends)
    return " to ".join(number(end, places) if compare is None else change(end, compare, places) for end in ends)


def margin(row: Mapping[str, Any]) -> str:
    """The margin of a claim: 0, −0.5, ±0.3 or ×1.1."""
    size = f"{row['margin']:.4g}"
    if row["direction"] == "equal":
        return f"×{1 / row['margin']:.4g} to ×{size}" if row["compare"] == "ratio" else f"±{size}"
    if row["compare"] == "ratio":
        return f"×{size}" if row["direction"] == "higher" else f"×{1 / row['margin']:.4g}"
    return size if row["direction"] == "higher" or not row["margin"] else f"−{size}"


def interval_scale(row: Mapping[str, Any], width: float = 240.0, pad: float = 12.0) -> dict[str, Any]:
    """Places along the x axis of a claim's interval plot, in units of the drawing; ratios on a log axis.

    Returns:
        mean, low, high, neutral (no difference), margins (the one or two lines to be passed), target (from, to): where
        the whole interval must lie for the claim to be shown.
    """
    ratio = row["compare"] == "ratio"
    to_axis = math.log if ratio else float
    low, high, mean = (to_axis(value) for value in (*row["interval"], row["difference"]))
    margin = to_axis(row["margin"])
    margins = {"higher": [margin], "lower": [-margin], "equal": [-margin, margin]}[row["direction"]]
    shown = [0.0, low, high, *margins]
    span = (max(shown) - min(shown)) or 1.0
    start, unit = min(shown) - 0.08 * span, (width - 2 * pad) / (1.16 * span)

    def place(value: float) -> float:
        return round(pad + (value - start) * unit, 2)

    edges = [place(value) for value in margins]
    target = {"higher": (edges[0], width), "lower": (0.0, edges[0]), "equal": (edges[0], edges[-1])}[row["direction"]]
    return {
        "mean": place(mean),
        "low": place(low),
        "high": place(high),
        "neutral": place(0.0),
        "neutral_label": "×1" if ratio else "0",
        "margins": edges if margin else [],
        "target": target,
        "width": width,
    }


def show(papers: Sequence[Paper], path: Path, arm: str | None = None) -> None:
    """Print the claims that can be judged (of one arm alone, if asked), what could not run, and where the page is."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for paper in papers:
        rows = [row for row in paper.rows if row["verdict"] != "not testable" and arm in (None, *row["arms"])]
        if rows:
            against = f" (own idea, held against {paper.facts.against})" if paper.own else ""
            console.print(f"[bold]{paper.facts.stem}[/bold]  {paper.facts.title}{against}")
            console.print(_claims_table(rows))
    if arm is None:
        every = [row for paper in papers if not paper.own for row in paper.rows]
        console.print(", ".join(f"{n} {verdict}" for verdict, n in count(every).items()))
        survive = {verdict: n for verdict, n in count(every, "verdict_holm").items() if verdict != "not testable"}
        told = ", ".join(f"{n} {verdict}" for verdict, n in survive.items())
        console.print(f"with Holm's correction: {told}")
        console.print(f"false verdicts to expect by chance: at most {chance(every).expected:g}")
        for missing in (each for paper in papers for each in paper.arms if each.missing):
            console.print(f"could not run: {missing.name}: {missing.missing}", markup=False)
        console.print(f"page: {path}", markup=False, soft_wrap=True)


def _claims_table(rows: Sequence[dict]) -> "Table":
    """One line for each claim, cut to the width of the terminal."""
    from rich.table import Table
    from rich.text import Text

    colours = {"shown": "green", "refuted": "red", "undecided": "yellow"}
    table = Table.grid(padding=(0, 2), expand=True)
    for ratio in (None, None, None, 1):
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=ratio)
    for row in rows:
        difference = change(row["difference"], row["compare"], decimals(row["interval"]))
        unit = row["unit"] if row["compare"] == "difference" else ""
        table.add_row(
            Text(f"  {ICONS[row['verdict']]} {row['verdict']}", style=colours[row["verdict"]]),
            Text(row["id"] + " (post hoc)" * row["post_hoc"]),
            Text(f"{difference} {unit}".strip() + f" ({interval(row['interval'], row['compare'])}), n {row['n']}"),
            Text(row["statement"], style="dim"),
        )
    return table
