"""How well one model embeds and describes pictures and regions, from stored predictions. Imports no torch.

All captions of a picture are queries, and a picture has found its text where any of its captions comes first. Captions
of the drawn world are read back into the attributes of the things that they name.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from lightning_modules.datasets.world.quadrants import CELLS, THING, WORDS
from lightning_modules.metrics.captioning import score_captions
from lightning_modules.metrics.retrieval import retrieval
from lightning_modules.runs import Evaluation, Exhibit, Gallery, Picture, Run
from lightning_modules.settings import Count
from lightning_modules.vision_language.told import PERCENT, enlarged, marked, texts_of, things, told_rightly

DIRECTIONS = {"text_to_video": "text_to_picture", "video_to_text": "picture_to_text"}  # of `retrieval`, and here
SCORES = ("cider_d", "bleu_4", "rouge_l", "meteor", "spice")
NO_OBJECTIVE = "this arm was not trained to {}"
NO_CAPTIONS = "the data set describes regions, and no whole picture"
NO_WORLD = "nothing is known of the things in these pictures"
FRAME = 2  # pixels of the edge of a box that is shown
Arrays = Mapping[str, np.ndarray]
Metrics = dict[str, float]


def evaluate(runs: Sequence[Run], dataset: str, *, examples: Count = 8, java: bool = False) -> Evaluation:
    """Retrieval, captions, and the same of regions, as far as the arm was trained for it.

    Metrics: `text_to_picture/...` and `picture_to_text/...`, see `metrics.retrieval`, and `recall_at_1_percent`, the
    mean of both directions; `caption_attributes_percent`, said rightly of all attributes of all things, and of each
    (`caption_color_percent`, ...); `caption_exact_percent`, captions with nothing missing and nothing wrong; scores of
    captions (`cider_d`, ...). Of regions `region_cider_d` and so on, `region_color_percent` and so on, of the first
    thing that is named,
    and `region_class_color_percent` and so on, of the class whose texts are most similar (`classes`).
    `parameters`, `parameters_of_two_models` and `visual_tokens`.

    Args:
        runs: finished runs of `MmGem`, one for each seed.
        dataset: first part of every metric's name.
        examples: rows of the gallery.
        java: whether METEOR and SPICE are wanted, where they can be had.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no run to evaluate: train the arm first.")
    metrics, missing = {}, {}
    for run in runs:
        arrays = run.predictions()
        found = {name: float(run.facts[name]) for name in ("parameters", "parameters_of_two_models", "visual_tokens")}
        if "picture_features" in arrays:
            found |= retrieved(arrays)
        elif "captions" in arrays:
            missing["recall_at_1_percent"] = NO_OBJECTIVE.format("embed")
        else:
            missing["recall_at_1_percent"] = NO_CAPTIONS
        if {"written", "region_written"} & arrays.keys():
            scores = captioned(arrays, java)
            found |= scores[0]
            missing |= scores[1]
        else:
            missing["caption_attributes_percent"] = NO_OBJECTIVE.format("write")
        metrics[run.seed] = {f"{dataset}/{name}": value for name, value in found.items()}
    first = runs[0].predictions()
    return Evaluation(metrics=metrics, galleries=_galleries(first, examples), not_computed=missing)


def retrieved(arrays: Arrays) -> Metrics:
    """Retrieval of pictures by each caption, and of captions by pictures."""
    pictures, texts = arrays["picture_features"], arrays["text_features"]
    found = retrieval(texts @ pictures.T, arrays["text_rows"], np.arange(len(pictures)))
    named = {f"{DIRECTIONS[name.split('/')[0]]}/{name.split('/')[1]}": value for name, value in found.items()}
    named["recall_at_1_percent"] = float(np.mean([named[f"{way}/recall_at_1_percent"] for way in DIRECTIONS.values()]))
    return named | classified(arrays)


def classified(arrays: Arrays) -> Metrics:
    """How often the class that is most similar to a region is its own, for each attribute with vectors of classes."""
    found = {}
    for name in (name for name in WORDS if f"class_features/{name}" in arrays):
        chosen = (arrays["region_features"] @ arrays[f"class_features/{name}"].T).argmax(1)
        places = zip(arrays["region_rows"].tolist(), arrays["region_cells"].tolist(), strict=True)
        truth = np.array([things(arrays, row)[cell][name] for row, cell in places])
        found[f"region_class_{name}_percent"] = PERCENT * float((chosen == truth).mean())
    return found


def captioned(arrays: Arrays, java: bool) -> tuple[Metrics, dict[str, str]]:
    """Scores of captions against all references, and what they say of the world; and what is missing, with reasons."""
    found, missing = {}, {}
    if "written" in arrays:
        written = texts_of(arrays["written"])
        references = [[text for text in texts_of(each) if text] for each in arrays["captions"]]
        found, missing = scored(written, references, java)
        if "cell" in arrays:
            found |= attributes(written, arrays)
        else:
            missing["caption_attributes_percent"] = NO_WORLD
    if "region_written" in arrays:
        references = [[text] for text in texts_of(arrays["region_captions"])]
        of_regions = scored(texts_of(arrays["region_written"]), references, java)
        for all_, own in zip((found, missing), of_regions, strict=True):
            all_ |= {f"region_{name}": value for name, value in own.items()}
        found |= regions(arrays) if "cell" in arrays else {}
    return found, missing


def scored(written: Sequence[str], references: Sequence[Sequence[str]], java: bool) -> tuple[Metrics, dict[str, str]]:
    """Scores of texts, and which there are not, with reasons."""
    scores = score_captions(dict(enumerate(written)), dict(enumerate(references)), java=java)
    return {name: scores.scores[name] for name in SCORES if name in scores.scores}, dict(scores.not_computed)


def attributes(written: Sequence[str], arrays: Arrays) -> Metrics:
    """How much of what captions could say is right, see `told_rightly`."""
    found = told_rightly(written, [things(arrays, row) for row in range(len(written))])
    return {f"caption_{name}_percent": value for name, value in found.items()}


def regions(arrays: Arrays) -> Metrics:
    """How often the first thing that is named of a region is the one that is there, attribute by attribute."""
    right = {name: [] for name in WORDS}
    for text, row, cell in zip(
        texts_of(arrays["region_written"]), arrays["region_rows"], arrays["region_cells"], strict=True
    ):
        said, truth = first_thing(text), things(arrays, int(row))[int(cell)]
        for name in WORDS:
            right[name].append(said.get(name) == truth[name])
    found = {f"region_{name}_percent": PERCENT * float(np.mean(values)) for name, values in right.items()}
    return found | {"region_attributes_percent": float(np.mean(list(found.values())))}


def first_thing(text: str) -> dict[str, int]:
    """Indices of the attributes that a text says of the first thing that it names; nothing if it names none."""
    match = THING.search(text)
    if match is None:
        return {}
    return {name: WORDS[name].index(word) for name, word in zip(WORDS, match.groups(), strict=False) if word}


def _galleries(arrays: Arrays, examples: int) -> list[Gallery]:
    found, told = [], "Test pictures of one seed."
    if "written" in arrays:
        rows = [_written(arrays, row) for row in range(min(examples, len(arrays["written"])))]
        found.append(Gallery("captions", "Captions behind visual tokens", told, rows))
    if "picture_features" in arrays:
        similarity = arrays["picture_features"][:examples] @ arrays["text_features"].T
        rows = [_found(arrays, row, int(nearest)) for row, nearest in enumerate(similarity.argmax(1))]
        found.append(Gallery("retrieved", "The most similar caption of all", told, rows))
    if {"region_written", "region_boxes", "shown/images"} <= arrays.keys():
        shown = np.flatnonzero(arrays["region_rows"] < len(arrays["shown/images"]))
        rows = [_described(arrays, int(number)) for number in shown[:: max(1, len(shown) // examples)][:examples]]
        found.append(Gallery("regions", "What is written about regions", told, rows))
    return found


def _written(arrays: Arrays, row: int) -> list[Exhibit]:
    (text,) = texts_of(arrays["written"][row : row + 1])
    pieces = marked(text, things(arrays, row)) if "cell" in arrays else [(text, None)]
    return [*_shown(arrays, row), Exhibit("written", text=pieces or [("(nothing)", None)])]


def _described(arrays: Arrays, number: int) -> list[Exhibit]:
    """A picture with the box of a region around it, its own phrase, and what is written about it."""
    own, written = (texts_of(arrays[f"region_{name}"][number : number + 1])[0] for name in ("captions", "written"))
    row = int(arrays["region_rows"][number])
    pixels = framed(enlarged(arrays["shown/images"][row]), arrays["region_boxes"][number])
    judged = [(written, None)]
    if "region_cells" in arrays:
        cell = int(arrays["region_cells"][number])
        thing = things(arrays, row)[cell]
        judged = marked(written, dict.fromkeys(CELLS, thing))  # a phrase names no place
    return [
        Exhibit("region", picture=Picture.of(pixels, f"a box around the region: {own}")),
        Exhibit("its phrase", text=[(own, None)]),
        Exhibit("written", text=judged or [("(nothing)", None)]),
    ]


def framed(
    pixels: UInt8[np.ndarray, "h w 3"], box: Float32[np.ndarray, "4"], colour: Sequence[int] = (255, 0, 0)
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture with a frame along the inner edge of a box, which is given in shares of it."""
    height, width = pixels.shape[:2]
    left, right = (round(float(x) * (width - 1)) for x in box[[0, 2]])
    top, bottom = (round(float(y) * (height - 1)) for y in box[[1, 3]])
    found = pixels.copy()
    for rows, columns in ((slice(top, top + FRAME), slice(left, right + 1)),
                          (slice(max(top, bottom + 1 - FRAME), bottom + 1), slice(left, right + 1)),
                          (slice(top, bottom + 1), slice(left, left + FRAME)),
                          (slice(top, bottom + 1), slice(max(left, right + 1 - FRAME), right + 1))):  # fmt: skip
        found[rows, columns] = colour
    return found


def _found(arrays: Arrays, row: int, nearest: int) -> list[Exhibit]:
    """A picture and its caption beside the nearest of all captions, of which those of a row are in order."""
    other = int(arrays["text_rows"][nearest])
    number = nearest - int(np.flatnonzero(arrays["text_rows"] == other)[0])
    text = texts_of(arrays["captions"][other])[number]
    return [*_shown(arrays, row), Exhibit("most similar caption", text=[(text, other == row)])]


def _shown(arrays: Arrays, row: int) -> list[Exhibit]:
    """The picture, where it was kept (`shown/images`, of the first rows), and its own caption."""
    own = texts_of(arrays["captions"][row])[0]
    found = [Exhibit("its caption", text=[(own, None)])]
    if row < len(arrays.get("shown/images", ())):
        pixels = enlarged(arrays["shown/images"][row])
        found.insert(0, Exhibit("picture", picture=Picture.of(pixels, f"picture: {own}")))
    return found
