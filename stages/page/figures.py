"""Draws every figure of every paper in one style: inline SVG in the page's colours, or PNG for the tracker.

The drawing uses placeholder colours. In the SVG they become `currentColor` and CSS variables, so that one drawing
serves light, dark and print; in the PNG they become the palette below.

Nine tenths of a report's time are drawing, so drawings are kept in `.scratch/figures/`, by a digest of all that makes
them: the figure, this file, and the versions of matplotlib and numpy.
"""

import html
import io
import json
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    FormatStrFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from matplotlib.transforms import Affine2D, Bbox

from lightning_modules.files import digest, replace_file, scratch, sha256
from lightning_modules.runs import Figure, Series

INK = "#010203"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(1, 9))
PALETTE = ("#1d5fbf", "#c2410c", "#0f766e", "#9333a8", "#8a6100", "#be123c", "#4d7c0f", "#475569")
MARKERS = "osD^vPX*"
SMALL, LARGE = (5.2, 3.6), (9.6, 5.0)  # inches
PERCENT_TICKS = (0, 50, 70, 80, 85, 90, 92, 94, 95, 96, 97, 97.5, 98, 98.5, 99, 99.5, 99.8, 100)
FEW = 3  # ticks with numbers, below which others are chosen
TEXT_WIDTH, TEXT_HEIGHT = 5.2, 10.5  # points that a letter of a name beside a point takes
KEPT_DAYS = 30  # since a drawing was last used
COLUMNS = ("arm", "figure", "series", "x", "y", "low", "high")
STYLE = {
    "font.family": "sans-serif",
    "font.size": 11,
    "text.parse_math": False,  # names of metrics may hold a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.16,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "none",  # text stays text: searchable, and in the fonts of the page
}


def load(path: Path) -> list[Figure]:
    """The figures of an arm, from the `figures.json` that the evaluate stage wrote."""
    return [
        _barred(Figure(**{**figure, "series": [_named(Series(**series)) for series in figure["series"]]}))
        for figure in json.loads(path.read_text(encoding="utf-8"))
    ]


def _named(series: Series) -> Series:
    """A series that is called like a metric, such as `images/top1_percent`, with a name for reading: images, top1."""
    if "_percent" not in series.name:
        return series
    return replace(series, name=series.name.replace("_percent", "").replace("/", ", ").replace("_", " "))


def _barred(figure: Figure) -> Figure:
    """A figure of lines that have one point each, all at the same x, as bars: these start at 0, and can be compared."""
    places = {x for series in figure.series for x in series.x}
    lines = all(series.kind in ("line", "dashed") for series in figure.series)
    if len(places) != 1 or not lines or figure.y_scale != "linear":
        return figure
    x = places.pop()
    name = [f"{x:,.0f}" if x == int(x) else f"{x:g}"]
    return replace(
        figure, x_scale="linear", series=[replace(series, kind="bars", labels=name) for series in figure.series]
    )


def svg(figure: Figure, prefix: str, size: tuple[float, float] = SMALL) -> str:
    """One `<svg>` element to be inlined in a page; equal bytes for equal data.

    Args:
        figure: what to draw.
        prefix: unique in the page, put in front of the ids of the drawing.
        size: width and height in inches.
    """
    return _kept("svg", figure, [prefix, *size], lambda: _svg(figure, prefix, size).encode()).decode()


def _svg(figure: Figure, prefix: str, size: tuple[float, float]) -> str:
    with mpl.rc_context(STYLE | {"svg.hashsalt": prefix}):
        file = io.StringIO()
        canvas = _draw(figure, INK, SERIES, size)
        canvas.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    box = re.search(r'viewBox="[^"]+"', drawing).group()
    label = html.escape(f"{figure.title}. {figure.caption}")
    drawing = re.sub(r"<svg[^>]*>", f'<svg role="img" aria-label="{label}" {box}>', drawing, count=1)
    drawing = re.sub(r"<style.*?</style>", "", drawing, count=1)  # inlined, it would hold for the whole page
    drawing = re.sub(r'\bid="', f'id="{prefix}-', drawing)
    drawing = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", drawing)
    for number, colour in enumerate(SERIES, start=1):
        drawing = drawing.replace(colour, f"var(--series-{number})")
    return drawing.replace(INK, "currentColor")


def png(figure: Figure, dots_per_inch: int = 144) -> bytes:
    """The same drawing with a legend on white, as an artifact of a run."""
    return _kept("png", figure, [dots_per_inch], lambda: _png(figure, dots_per_inch))


def _png(figure: Figure, dots_per_inch: int) -> bytes:
    with mpl.rc_context(STYLE):
        canvas = _draw(figure, "#1b1f24", PALETTE, LARGE)
        canvas.suptitle(figure.title)
        canvas.legend(loc="outside lower center", ncols=2, frameon=False)
        file = io.BytesIO()
        canvas.savefig(file, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return file.getvalue()


def _kept(kind: str, figure: Figure, how: list, draw: Callable[[], bytes]) -> bytes:
    """A drawing that was made before, or a new one, which is kept."""
    made_by = [sha256(Path(__file__)), mpl.__version__, np.__version__]
    path = scratch() / "figures" / f"{digest(asdict(figure), how, made_by)}.{kind}"
    if path.is_file():
        os.utime(path)
        return path.read_bytes()
    drawing = draw()
    with replace_file(path) as temporary:
        temporary.write_bytes(drawing)
    return drawing


def tidy() -> None:
    """Remove drawings that were not used for a month."""
    for path in (scratch() / "figures").glob("*.*"):
        if time.time() - path.stat().st_mtime > KEPT_DAYS * 86_400:
            path.unlink(missing_ok=True)


def table(figures: dict[str, list[Figure]]) -> list[dict[str, Any]]:
    """The points of figures as rows with the keys `COLUMNS`, for `dvc plots`."""
    return [
        dict(zip(COLUMNS, (arm, figure.id, series.name, *point), strict=True))
        for arm, drawn in figures.items()
        for figure in drawn
        for series in figure.series
        for point in points(series)
    ]


def points(series: Series) -> list[tuple[float, float, float | None, float | None]]:
    """The points of a series as (x, y, low, high); without an interval the ends are None."""
    nothing = [None] * len(series.x)
    return list(zip(series.x, series.y, series.low or nothing, series.high or nothing, strict=True))


def _draw(figure: Figure, ink: str, colours: tuple[str, ...], size: tuple[float, float]) -> Canvas:
    canvas = Canvas(figsize=size, layout="constrained")
    axes = canvas.add_subplot()
    bars = [series for series in figure.series if series.kind == "bars"]
    for number, series in enumerate(figure.series):
        colour = colours[number % len(colours)]
        if series.kind == "bars":
            _bars(axes, series, colour, ink, place=bars.index(series), of=len(bars))
        else:
            _curve(axes, series, colour, MARKERS[number % len(MARKERS)])
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    axes.margins(x=0.06, y=0.1)
    if figure.x_scale == "log":
        _log_axis(axes, figure)
    if figure.y_scale == "log_error":
        _log_error_axis(axes, figure)
    elif "%" in figure.y_label:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2.0), min(high, 102.0))  # a share has ends; its interval knows none
    if bars:
        _category_axis(axes, bars)
    elif figure.x_scale == "linear" and all(x == int(x) for series in figure.series for x in series.x):
        axes.xaxis.get_major_locator().set_params(integer=True)  # there is no half layer or frame
    _label(axes, figure, ink)
    _ink(axes, ink)
    return canvas


def _curve(axes: Axes, series: Series, colour: str, marker: str) -> None:
    """A line with its band, a dashed line, or points with error bars."""
    if series.kind == "points":
        axes.errorbar(series.x, series.y, _errors(series), fmt=marker, color=colour, elinewidth=1.6, label=series.name)
        return
    style = {"linestyle": "--"} if series.kind == "dashed" else {"marker": marker}
    if len(series.x) == 1:  # a point, which may lie on a line
        style = {"marker": marker, "markersize": 8, "zorder": 3}
    axes.plot(series.x, series.y, color=colour, label=series.name, **style)
    if series.low and series.high:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.16, linewidth=0)


def _bars(axes: Axes, series: Series, colour: str, ink: str, place: int, of: int) -> None:
    """Bars side by side with those of the other series at the same x."""
    step = float(np.diff(sorted(set(series.x))).min()) if len(set(series.x)) > 1 else 1.0
    width = 0.8 * step / of
    x = np.asarray(series.x, dtype=float) + (place - (of - 1) / 2) * width
    error = {"ecolor": ink, "elinewidth": 1.6}
    axes.bar(x, series.y, 0.92 * width, yerr=_errors(series), color=colour, error_kw=error, label=series.name)


def _category_axis(axes: Axes, bars: list[Series]) -> None:
    """The labels of the bars as ticks, slanted where they would run into each other."""
    axes.grid(visible=False, axis="x")
    names = {x: label for series in bars for x, label in zip(series.x, series.labels or (), strict=False)}
    if names:
        crowded = max(map(len, names.values())) * len(names) > 48
        axes.set_xticks(list(names), list(names.values()), **({"rotation": 30, "ha": "right"} if crowded else {}))


def _label(axes: Axes, figure: Figure, ink: str) -> None:
    """Names beside the points of the first series that has names, or of all clouds where a figure has nothing else.

    The others' are in the table of numbers. A name is below its point to the right, or at another corner where it would
    run into a name that was written before, or into a point; if there is no such corner, it is left out.
    """
    named = [series for series in figure.series if series.labels and series.kind != "bars"]
    if any(series.kind != "points" for series in figure.series):
        named = named[:1]
    if not named:
        return
    axes.figure.draw_without_rendering()  # so that the layout is known
    to_points = axes.transData + axes.figure.dpi_scale_trans.inverted() + Affine2D().scale(72)
    points = [
        (label, place, to_points.transform(place))
        for series in named
        for label, *place in zip(series.labels, series.x, series.y, strict=True)
    ]
    taken = [Bbox.from_bounds(x - 2, y - 2, 4, 4) for _, _, (x, y) in points]
    right = axes.bbox.x1 / axes.figure.dpi * 72
    for label, place, (x, y) in points:
        width = TEXT_WIDTH * len(label)
        for across, up in ((4, -4), (4, 4), (-4, -4), (-4, 4)):
            left, bottom = x + across - width * (across < 0), y + up - TEXT_HEIGHT * (up < 0)
            box = Bbox.from_bounds(left, bottom, width, TEXT_HEIGHT)
            if left < 0 or box.x1 > right + width / 2 or box.count_overlaps(taken):
                continue
            taken.append(box)
            axes.annotate(
                label, place, (across, up), textcoords="offset points", ha="left" if across > 0 else "right",
                va="bottom" if up > 0 else "top", color=ink, fontsize=9, alpha=0.8,
            )  # fmt: skip
            break


def _errors(series: Series) -> list[list[float]] | None:
    """Distances from the mean down and up to the ends of the interval."""
    if not (series.low and series.high):
        return None
    ends = zip(series.y, series.low, series.high, strict=True)
    return [list(side) for side in zip(*((max(y - low, 0), max(high - y, 0)) for y, low, high in ends), strict=True)]


def _log_axis(axes: Axes, figure: Figure) -> None:
    """Ticks such as 500, 1k, 2k, 1M: as many as there is room for."""
    every = [x for series in figure.series for x in series.x]
    decades = math.log10(max(every) / min(every))
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    round_numbers = [digit * 10.0**power for power in range(-12, 16) for digit in (1, 2, 5)]
    if sum(low <= number <= high for number in round_numbers) < FEW:
        axes.xaxis.set_major_locator(FixedLocator(MaxNLocator(5).tick_values(low, high)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _log_error_axis(axes: Axes, figure: Figure) -> None:
    """Percentages spaced by the logarithm of what is missing to 100 and a tenth of a point, so that 100 has a place."""
    there, back = lambda y: -np.log(np.maximum(100.1 - y, 1e-9)), lambda place: 100.1 - np.exp(-place)
    axes.set_yscale("function", functions=(there, back))
    every = [y for series in figure.series for y in (*series.y, *(series.low or ()), *(series.high or ()))]
    low, high = max(0.0, min(every)), min(100.0, max(every))
    ends = there(np.array([low, high]))
    room = 0.08 * (ends[1] - ends[0]) + 1e-3
    axes.set_ylim(back(ends[0] - room), min(100.0, back(ends[1] + room)))
    ticks = [t for t in PERCENT_TICKS if low <= t <= high]
    if len(ticks) < FEW:
        ticks = [t for t in MaxNLocator(5).tick_values(low, high) if 0 <= t <= 100]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def _ink(axes: Axes, ink: str) -> None:
    """Text, ticks and grid in one colour."""
    for spine in axes.spines.values():
        spine.set_color(ink)
    axes.tick_params(which="both", color=ink, labelcolor=ink, length=3, grid_color=ink)
    axes.xaxis.label.set_color(ink)
    axes.yaxis.label.set_color(ink)
