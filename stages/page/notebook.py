"""What notebooks show of finished results: pictures, clips and sounds inline, figures, verdicts and numbers.

    from stages.page import notebook

    notebook.needed("spae/spae")
    notebook.gallery("spae/spae", "pyramid")
    notebook.verdicts("spae", "C1-top")

An arm is named as its folder in `data/results/<preset>/`. What is returned shows itself in a notebook.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_modules.datasets.video.films import Film, Sound
from lightning_modules.files import ROOT, replace_file, scratch
from lightning_modules.runs import Exhibit
from stages import page
from stages.page import figures
from stages.page.moving import silent, sound

PRESET = "tiny"
TALL, WIDE = 96, 640  # pixels up to which small pictures are enlarged, and that none exceeds
RATE = 8.0  # frames a second of a clip that is written to a file
CELL = "style='text-align:left;vertical-align:top;padding:4px 10px'"
MARKS = {True: "color:#15803d", False: "color:#b91c1c;text-decoration:line-through", None: ""}


class Missing(Exception):
    """Results that are not on this machine; in a notebook, one line says so."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Shown:
    """HTML that a notebook shows; `text` says the same in plain words."""

    def __init__(self, html: str, text: str):
        self.html, self.text = html, text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def needed(*arms: str) -> None:
    """Check that the results of arms are here.

    Raises:
        Missing: some are not; it says what makes them.
    """
    missing = [arm for arm in arms if not (_results(arm) / "predictor.json").is_file()]
    if missing:
        papers = " ".join(dict.fromkeys(arm.partition("/")[0] for arm in missing))
        raise Missing(f"There are no results of {', '.join(missing)} here. They take: make repro PAPER={papers!r}")


def gallery(arm: str, name: str, rows: int = 3) -> Shown:
    """The first rows of a gallery; its clips move, and what has a sound can be heard.

    Raises:
        ValueError: the arm has no such gallery.
    """
    found = _named(page.load_galleries(_results(arm) / "galleries.json"), name, f"galleries of {arm}")
    shown = [[f"<small>{escape(each.label)}</small><br>{_exhibit(each)}" for each in row] for row in found.rows[:rows]]
    return Shown(f"<b>{escape(found.title)}</b> {escape(found.caption)}{_table(shown)}", found.title)


def figure(arm: str, name: str) -> Shown:
    """A figure of an arm.

    Raises:
        ValueError: the arm has no such figure.
    """
    found = _named(figures.load(_results(arm) / "figures.json"), name, f"figures of {arm}")
    png = b64encode(figures.png(found, dots_per_inch=72)).decode()
    drawn = f"<img alt='{escape(found.title, True)}' src='data:image/png;base64,{png}'>"
    return Shown(f"{drawn}<br>{escape(found.caption)}", found.title)


def verdicts(paper: str, *claims: str) -> Shown:
    """Claims of a paper with what was measured, from the committed verdicts; without names, all that were judged.

    Raises:
        ValueError: the paper has no such claim.
    """
    rows = json.loads((ROOT / "results" / PRESET / paper / "claims.json").read_text())
    if unknown := {*claims} - {row["id"] for row in rows}:
        raise ValueError(f"{paper} has no claim {', '.join(sorted(unknown))}: see lightning_modules/{paper}/facts.yaml")
    rows = [row for row in rows if (row["id"] in claims if claims else row["verdict"] != "not testable")]
    told = [
        [f"<b>{page.ICONS[row['verdict']]}&nbsp;{row['verdict']}</b>", escape(row["statement"]), _measured(row)]
        for row in rows
    ]
    words = "\n".join(f"{row['verdict']}: {row['statement']}" for row in rows)
    return Shown(_table(told, ("verdict", "claim", "measured, with 95 % interval")), words)


def numbers(arms: Mapping[str, str], metrics: Mapping[str, str]) -> Shown:
    """Metrics of arms, each the mean over seeds with its 95 % interval.

    Args:
        arms: what a row is called -> arm.
        metrics: what a column is called -> metric.
    """
    rows = []
    for name, arm in arms.items():
        paper, _, own = arm.partition("/")
        read = json.loads((ROOT / "results" / PRESET / paper / "metrics.json").read_text())[own]
        rows.append([escape(name), *(_interval(read.get(metric)) for metric in metrics.values())])
    return Shown(_table(rows, ("", *metrics)), "\n".join("  ".join(row) for row in rows))


def answers(found: Iterable[Mapping[str, Any]], *keys: str) -> Shown:
    """What a predictor has answered, an answer a row: pictures, films and sounds themselves, arrays by their size.

    Args:
        found: the answers.
        keys: what to show of them, in this order; all if none is named.
    """
    found = list(found)
    keys = keys or tuple(dict.fromkeys(key for each in found for key in each))
    rows = [[_value(each.get(key, "")) for key in keys] for each in found]
    return Shown(_table(rows, keys), f"{len(found)} answers with {', '.join(keys)}")


def saved(content: np.ndarray | Sequence[str], name: str) -> Path:
    """A file as a user might give one: a PNG of pixels, an MP4 of a clip, or a text file.

    Args:
        content: uint8, (height width) or (height width 3), of a clip (frames height width 3); or the lines of a text.
        name: of the file, without its ending.
    """
    pixels = content if isinstance(content, np.ndarray) else None
    suffix = ".txt" if pixels is None else ".mp4" if pixels.ndim == 4 else ".png"
    path = scratch() / "notebooks" / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        if pixels is None:
            file.write("".join(f"{line}\n" for line in content).encode())
        elif pixels.ndim == 4:
            Film(pixels, RATE).save(file)
        else:
            Image.fromarray(pixels).save(file, "PNG")
    return path


def _results(arm: str) -> Path:
    return ROOT / "data/results" / PRESET / arm


def _named(found: Sequence[Any], name: str, what: str) -> Any:
    for each in found:
        if each.id == name:
            return each
    raise ValueError(f"{name!r} is none of the {what}: {', '.join(each.id for each in found) or 'there are none'}")


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    heads = f"<tr>{''.join(f'<th {CELL}>{escape(name)}</th>' for name in head)}</tr>" if head else ""
    cells = ("".join(f"<td {CELL}>{cell}</td>" for cell in row) for row in rows)
    return f"<table>{heads}{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _exhibit(exhibit: Exhibit) -> str:
    if exhibit.picture is None:
        return "".join(f"<span style='{MARKS[right]}'>{escape(piece)}</span>" for piece, right in exhibit.text)
    heard = sound(exhibit.picture.png)
    player = f"<br><audio controls src='data:audio/wav;base64,{heard}'></audio>" if heard else ""
    return _image(silent(exhibit.picture.png), exhibit.picture.alt) + player


def _image(png: str, alt: str) -> str:
    """A picture in base64; small ones are enlarged by a whole number."""
    with Image.open(BytesIO(b64decode(png))) as picture:
        width, height = picture.size
    factor = max(1, min(TALL // height, WIDE // width))
    style = f"width:{factor * width}px;max-width:none;image-rendering:pixelated"
    return f"<img alt='{escape(alt, True)}' style='{style}' src='data:image/png;base64,{png}'>"


def _value(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"array {' x '.join(map(str, value.shape))}"
    if not isinstance(value, Image.Image | Film | Sound):
        return escape(f"{value:.3g}" if isinstance(value, float) else str(value))
    file = BytesIO()
    value.save(file, *(["PNG"] if isinstance(value, Image.Image) else []))
    code = b64encode(file.getvalue()).decode()
    if isinstance(value, Film):
        return f"<video controls loop muted autoplay height={TALL} src='data:video/mp4;base64,{code}'></video>"
    if isinstance(value, Sound):
        return f"<audio controls src='data:audio/wav;base64,{code}'></audio>"
    return _image(code, "drawn by the model")


def _measured(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return escape(row["reason"])
    low, high = row["interval"]
    return escape(
        f"{row['difference']:.3g} [{low:.3g}, {high:.3g}] {row['unit']}, margin {row['margin']:g}, n = {row['n']}"
    )


def _interval(metric: Mapping[str, float] | None) -> str:
    if metric is None:
        return "–"
    if metric["low"] is None:
        return f"{metric['mean']:.3g}"
    return f"{metric['mean']:.3g} [{metric['low']:.3g}, {metric['high']:.3g}]"
