"""What pictures changed by texts are worth: the pattern that was asked for, and what else has changed. No torch.

The pattern is read off the pixels by a rule that no network has learned (`patterns`), so that a picture that merely
pleases HD-VILA is found out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from lightning_modules.datasets.tokenizers import tokenizer_called
from lightning_modules.runs import Evaluation, Exhibit, Gallery, Picture, Run
from lightning_modules.settings import Count

STRIPE = 2  # pixels, of `datasets.world.hd_clips`
STRIPED, CHECKERED, BANDED, NONE = 0, 1, 2, 3  # in the order of that view's labels
LEAST = 5.5  # grey levels between pixels two apart, mean over the picture: with a pattern 8 to 11, without 2 to 3
COARSE = 4  # pixels a side, whose mean no pattern changes
LARGER = 4  # times, for the page


def evaluate(
    runs: Sequence[Run], dataset: str, *, motions: Count, examples: Count = 6, split: str = "test"
) -> Evaluation:
    """Judge the seeds of one arm.

    Metrics, over rows whose text asks for another pattern than the picture has (all rows where it asks for its own):
    `pattern_percent`, whether the changed picture has the pattern that the text names, and `pattern_before_percent`,
    the same of the picture as it was. `nearer_percent`: whether HD-VILA finds it nearer to the text than before.
    `kept_error`: mean difference to the picture as it was in grey levels, of means over 4 x 4 pixels.

    Over all rows: `follows_percent`, whether the changed picture has the pattern that its text names, and
    `follows_by_chance_percent`, the same if the texts were dealt out anew. Pictures that have one pattern, or none, or
    are as they were, do no better than that. `other_error`: as `kept_error`, between pictures of different clips.
    `psnr` in dB, at most 100, against the picture as it was. Also `parameters`, and `judge_percent`: how often the rule
    is right on real frames.

    Args:
        runs: finished runs, one for each seed.
        dataset: first part of every metric's name.
        motions: labels are look x `motions` + motion.
        examples: rows of the gallery.
        split: rows that are judged.
    """
    metrics, galleries = {}, []
    for run in runs:
        stored = run.predictions()
        arrays = {name.removesuffix(f"/{split}"): x for name, x in stored.items() if name.endswith(f"/{split}")}
        found = measured(arrays, motions) | {"parameters": float(run.facts["parameters"])}
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
        if run is runs[0]:
            galleries.append(_gallery(arrays, motions, examples))
    return Evaluation(metrics=metrics, galleries=galleries)


def measured(arrays: Mapping[str, np.ndarray], motions: int) -> dict[str, float]:
    """All that is said of one run, by what it predicted."""
    frames, changed = arrays["frames"], arrays["changed"]
    look = arrays["labels"] // motions
    wanted, rows, drawn = look[arrays["row"]] % 3, _asked(arrays, motions), patterns(changed)
    by_chance = sum((drawn == pattern).mean() * (wanted == pattern).mean() for pattern in range(3))
    found = {
        "pattern_percent": drawn[rows] == wanted[rows],
        "pattern_before_percent": patterns(frames)[rows] == wanted[rows],
        "nearer_percent": (arrays["after"] > arrays["before"])[rows],
        "judge_percent": patterns(frames) == look % 3,
        "follows_percent": drawn == wanted,
    }
    coarse, after = _coarse(frames), _coarse(changed)
    error = max(1e-10, (((changed.astype(np.float64) - frames) / 255) ** 2).mean())
    return {name: 100 * float(right.mean()) for name, right in found.items()} | {
        "follows_by_chance_percent": 100 * float(by_chance),
        "kept_error": float(np.abs(after - coarse)[rows].mean()),
        "other_error": float(np.abs(np.roll(coarse, 1, 0) - coarse).mean()),
        "psnr": float(-10 * np.log10(error)),
    }


def patterns(frames: UInt8[np.ndarray, "rows height width 3"]) -> Int[np.ndarray, " rows"]:
    """Which pattern a picture has: along which axes it differs from itself a stripe further; `NONE`: hardly at all."""
    grey = frames.mean(3)
    across = np.abs(grey[:, :, STRIPE:] - grey[:, :, :-STRIPE]).mean((1, 2))
    down = np.abs(grey[:, STRIPE:] - grey[:, :-STRIPE]).mean((1, 2))
    share = across / (across + down + 1e-9)
    found = np.where(share > 0.6, STRIPED, np.where(share < 0.4, BANDED, CHECKERED))
    return np.where(np.maximum(across, down) < LEAST, NONE, found)


def _asked(arrays: Mapping[str, np.ndarray], motions: int) -> np.ndarray:
    """Rows whose text asks for another pattern, or all rows where each was asked for its own."""
    look, row = arrays["labels"] // motions, arrays["row"]
    return np.flatnonzero((look[row] % 3 != look % 3) | (row == np.arange(len(row))).all())


def _coarse(frames: UInt8[np.ndarray, "rows height width 3"]) -> Float[np.ndarray, "rows h w 3"]:
    rows, height, width, _ = frames.shape
    return frames.reshape(rows, height // COARSE, COARSE, width // COARSE, COARSE, 3).mean((2, 4))


def _gallery(arrays: Mapping[str, np.ndarray], motions: int, examples: int) -> Gallery:
    tokenizer, found = tokenizer_called("world"), patterns(arrays["changed"])
    wanted, rows = arrays["labels"][arrays["row"]] // motions % 3, []
    for place in _asked(arrays, motions)[:examples]:
        (text,) = tokenizer.decode(arrays["token_ids"][arrays["row"][[place]]])
        rows.append(
            [
                Exhibit("frame", _picture(arrays["frames"][place], "a frame of a clip")),
                Exhibit("text", text=[(text, bool(found[place] == wanted[place]))]),
                Exhibit("changed", _picture(arrays["changed"][place], f"the frame, changed to: {text}")),
            ]
        )
    caption = "A frame, the text, and what the generator made of both; green if the pattern is the text's. Test rows."
    return Gallery("changed", "Pictures changed by texts", caption, rows)


def _picture(frame: UInt8[np.ndarray, "height width 3"], alt: str) -> Picture:
    return Picture.of(frame.repeat(LARGER, 0).repeat(LARGER, 1), alt)
