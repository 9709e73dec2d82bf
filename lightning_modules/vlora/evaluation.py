"""What a language model says about pictures, and what it costs, from stored predictions. Imports no torch.

A caption is read back into the attributes of the things that it names (`world.quadrants.described`), so that another
order or wording costs nothing, and a word that is missing counts as a wrong one.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from lightning_modules.datasets.world.quadrants import CELLS, THING, WORDS, described, kind_asked
from lightning_modules.runs import Evaluation, Exhibit, Gallery, Picture, Run
from lightning_modules.settings import Count
from lightning_modules.vlora.costs import Sizes, language_macs

PERCENT = 100
ENLARGED = 4  # times, so that small pictures can be looked at
NO_WORLD = "nothing is known of the things in these pictures"
Arrays = Mapping[str, np.ndarray]


def evaluate(runs: Sequence[Run], dataset: str, *, examples: Count = 8) -> Evaluation:
    """How much of what is in pictures is said, and what the language model's input costs.

    Metrics: `attributes_percent`, said rightly of all attributes of all things, and of each (`color_percent`, ...);
    `shuffled_percent`, the same where each caption was written for another picture, and `picture_percent`, how much
    more is right with the own one; `exact_percent`, captions with nothing missing and nothing wrong; `answers_percent`
    and, of each kind of question, `answers/<kind>_percent`; `visual_tokens`; `input_tokens`, of a picture and its
    caption; `language_mmacs`, of the language model for these, additions included; `bridge_parameters`; `parameters`.

    Args:
        runs: finished runs of `VLoRA`, one for each seed.
        dataset: first part of every metric's name.
        examples: pictures of the gallery.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no run to evaluate: train the arm first.")
    metrics, known = {}, True
    for run in runs:
        arrays = run.predictions()
        known = "label/cell" in arrays
        found = (attributes(arrays) if known else {}) | answers(arrays, kinds=known) | costs(arrays, run.facts)
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    first = runs[0].predictions()
    rows = [_shown(first, row, known) for row in range(min(examples, len(first["shown/images"])))]
    told = "Test pictures of one seed: what is written about them, and a question with its answer."
    return Evaluation(
        metrics=metrics,
        galleries=[Gallery("said", "What is said about pictures", told, rows)],
        not_computed={} if known else {"attributes_percent": NO_WORLD},
    )


def attributes(arrays: Arrays) -> dict[str, float]:
    """How much of what captions could say is right, see `evaluate`."""
    truth = {name: arrays[f"label/{name}"] for name in (*WORDS, "cell")}
    there = truth["cell"] >= 0
    written = texts(arrays["caption/written"])
    right = said_rightly(written, truth)
    shuffled = said_rightly(texts(arrays["caption/shuffled"]), truth)
    counts = np.array([len(described(text)) for text in written])
    exact = (np.stack([*right.values()]) | ~there).all((0, 2)) & (counts == there.sum(1))
    found = {f"{name}_percent": PERCENT * float(own[there].mean()) for name, own in right.items()}
    found["attributes_percent"] = float(np.mean([found[f"{name}_percent"] for name in right]))
    found["shuffled_percent"] = PERCENT * float(np.mean([own[there].mean() for own in shuffled.values()]))
    found["picture_percent"] = found["attributes_percent"] - found["shuffled_percent"]
    found["exact_percent"] = PERCENT * float(exact.mean())
    return found


def said_rightly(
    captions: Sequence[str], truth: Mapping[str, Int[np.ndarray, "rows things"]]
) -> dict[str, Bool[np.ndarray, "rows things"]]:
    """For each attribute whether it is said of each thing in its cell; false where there is no thing.

    Args:
        captions: of each row.
        truth: `cell` and the attributes of each thing, -1 where there is none.
    """
    read = [described(caption) for caption in captions]
    return {
        name: np.array([
            [cell >= 0 and own.get(cell, {}).get(name) == value for cell, value in zip(*each, strict=True)]
            for own, each in zip(read, zip(truth["cell"].tolist(), truth[name].tolist(), strict=True), strict=True)
        ])
        for name in WORDS
    }  # fmt: skip


def answers(arrays: Arrays, *, kinds: bool) -> dict[str, float]:
    """Answers that are the right one, letter by letter; of each kind of question too if the world asked them."""
    pairs = zip(texts(arrays["answer/written"]), texts(arrays["answer/true"]), strict=True)
    right = np.array([written == true for written, true in pairs])
    if not len(right):
        return {}
    found = {"answers_percent": PERCENT * float(right.mean())}
    if kinds:
        asked = np.array([kind_asked(question) for question in texts(arrays["answer/question"])])
        found |= {f"answers/{kind}_percent": PERCENT * float(right[asked == kind].mean()) for kind in np.unique(asked)}
    return found


def costs(arrays: Arrays, facts: Mapping[str, int]) -> dict[str, float]:
    """What the language model reads and computes for a picture and its caption."""
    tokens = facts["visual_tokens"] + round(float(arrays["caption/tokens"].mean()))
    sizes = Sizes(**{name: facts[name] for name in ("hidden_size", "mlp_dim", "layers", "kv_dim")})
    found = {name: float(facts[name]) for name in ("visual_tokens", "bridge_parameters", "parameters")}
    macs = language_macs(tokens, sizes) + tokens * facts["addition_macs"]
    return found | {"input_tokens": float(tokens), "language_mmacs": macs / 1e6}


def texts(encoded: UInt8[np.ndarray, "texts bytes"]) -> list[str]:
    """Texts of UTF-8 with zeros behind."""
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in encoded]


def judged_words(caption: str, truth: Mapping[int, Mapping[str, int]]) -> list[tuple[str, bool | None]]:
    """A caption in pieces: words that say an attribute are right or wrong, all others are not judged.

    Args:
        caption: what was written.
        truth: attributes of the thing in each cell.
    """
    pieces, end, cells = [], 0, {name: cell for cell, name in CELLS.items()}
    for number, match in enumerate(THING.finditer(caption)):
        cell = cells[match[4]] if match[4] else [*CELLS][number] if number < len(CELLS) else -1
        for group, name in enumerate(WORDS, 1):
            if match[group]:
                pieces.append((caption[end : match.start(group)], None))
                pieces.append((match[group], truth.get(cell, {}).get(name) == WORDS[name].index(match[group])))
                end = match.end(group)
    pieces.append((caption[end:], None))
    return [piece for piece in pieces if piece[0]]


def _shown(arrays: Arrays, row: int, known: bool) -> list[Exhibit]:
    true, written = (texts(arrays[f"caption/{name}"][row : row + 1])[0] for name in ("true", "written"))
    pixels = arrays["shown/images"][row]
    if max(pixels.shape) * ENLARGED <= 256:
        pixels = pixels.repeat(ENLARGED, 0).repeat(ENLARGED, 1)
    told = [(written or "(nothing)", None)]
    if known:
        names = list(WORDS)
        things = zip(*(arrays[f"label/{name}"][row].tolist() for name in ("cell", *names)), strict=True)
        truth = {cell: dict(zip(names, values, strict=True)) for cell, *values in things if cell >= 0}
        told = judged_words(written, truth) or told
    found = [Exhibit("picture", picture=Picture.of(pixels, f"picture: {true}")), Exhibit("caption", text=told)]
    for number in np.flatnonzero(arrays["answer/row"] == row)[:1]:
        question, right, answer = (
            texts(arrays[f"answer/{name}"][number : number + 1])[0] for name in ("question", "true", "written")
        )
        found.append(Exhibit("answer", text=[(f"{question} ", None), (answer or "(nothing)", answer == right)]))
    return found
