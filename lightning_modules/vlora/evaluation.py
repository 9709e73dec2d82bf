"""What a language model says about pictures, and what it costs, from stored predictions. Imports no torch."""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_modules.datasets.world.quadrants import WORDS, kind_asked
from lightning_modules.runs import Evaluation, Exhibit, Gallery, Picture, Run
from lightning_modules.settings import Count
from lightning_modules.vision_language.told import PERCENT, enlarged, marked, texts_of, things, told_rightly
from lightning_modules.vlora.costs import Sizes, language_macs

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
    truths = [truth_of(arrays, row) for row in range(len(arrays["label/cell"]))]
    own, shuffled = (told_rightly(texts_of(arrays[f"caption/{name}"]), truths) for name in ("written", "shuffled"))
    found = {f"{name}_percent": value for name, value in own.items()}
    found["shuffled_percent"] = shuffled["attributes"]
    return found | {"picture_percent": own["attributes"] - shuffled["attributes"]}


def truth_of(arrays: Arrays, row: int) -> dict[int, dict[str, int]]:
    """Attributes of what is in each cell of a picture."""
    return things({name: arrays[f"label/{name}"] for name in (*WORDS, "cell")}, row)


def answers(arrays: Arrays, *, kinds: bool) -> dict[str, float]:
    """Answers that are the right one, letter by letter; of each kind of question too if the world asked them."""
    pairs = zip(texts_of(arrays["answer/written"]), texts_of(arrays["answer/true"]), strict=True)
    right = np.array([written == true for written, true in pairs])
    if not len(right):
        return {}
    found = {"answers_percent": PERCENT * float(right.mean())}
    if kinds:
        asked = np.array([kind_asked(question) for question in texts_of(arrays["answer/question"])])
        found |= {f"answers/{kind}_percent": PERCENT * float(right[asked == kind].mean()) for kind in np.unique(asked)}
    return found


def costs(arrays: Arrays, facts: Mapping[str, int]) -> dict[str, float]:
    """What the language model reads and computes for a picture and its caption."""
    tokens = facts["visual_tokens"] + round(float(arrays["caption/tokens"].mean()))
    sizes = Sizes(**{name: facts[name] for name in ("hidden_size", "mlp_dim", "layers", "kv_dim")})
    found = {name: float(facts[name]) for name in ("visual_tokens", "bridge_parameters", "parameters")}
    macs = language_macs(tokens, sizes) + tokens * facts["addition_macs"]
    return found | {"input_tokens": float(tokens), "language_mmacs": macs / 1e6}


def _shown(arrays: Arrays, row: int, known: bool) -> list[Exhibit]:
    true, written = (texts_of(arrays[f"caption/{name}"][row : row + 1])[0] for name in ("true", "written"))
    pixels = enlarged(arrays["shown/images"][row])
    told = marked(written, truth_of(arrays, row)) if known else [(written, None)]
    found = [
        Exhibit("picture", picture=Picture.of(pixels, f"picture: {true}")),
        Exhibit("caption", text=told if written else [("(nothing)", None)]),
    ]
    for number in np.flatnonzero(arrays["answer/row"] == row)[:1]:
        question, right, answer = (
            texts_of(arrays[f"answer/{name}"][number : number + 1])[0] for name in ("question", "true", "written")
        )
        found.append(Exhibit("answer", text=[(f"{question} ", None), (answer or "(nothing)", answer == right)]))
    return found
