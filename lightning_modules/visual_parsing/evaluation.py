"""What is learnt from pictures with captions, how much attention flows between both, and what it is worth after it.

Reads stored predictions, without torch. Read `measured` first for a pre-trained arm, `evaluate_answers` for tasks.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_modules.datasets import vqa2
from lightning_modules.datasets.tokenizers import TextTokenizer
from lightning_modules.ensembling.pools import seed_series
from lightning_modules.files import ROOT
from lightning_modules.metrics.flow_report import FORMULA, flow_figures, flow_metrics
from lightning_modules.metrics.picture_questions import consistency
from lightning_modules.metrics.retrieval import retrieval
from lightning_modules.runs import LARGEST_PICTURE, Evaluation, Exhibit, Figure, Gallery, Picture, Run, Series
from lightning_modules.settings import Count
from lightning_modules.tasks.comparison import arms_of, check_rows, over_arms

ANSWERING = "answering.json"  # where the networks lie that answer
PERCENT = 100
ENLARGED = 6  # times, so that small pictures can be looked at
DIMMED = 0.2  # how bright a picture stays where nothing is attended to
FLOWS = {"own": "pictures with their own captions", "other": "pictures with captions of other pictures",
         "content": "pictures without [CLS] and [SEP]"}  # fmt: skip
DIRECTIONS = {"text_to_video": "text_to_picture", "video_to_text": "picture_to_text"}
NOT_LEARNT = "this arm has not learnt it: the weight of its loss is 0"
NO_ANSWERS = "the answers of people are not public: send the file of answers to the server of VQA"
NO_WEIGHTS = "a CNN has no attention that could guide masking"
TASKS = {"question": "questions", "entailment": "statements about a picture", "pair": "statements about two pictures"}
LABELS = {"entailment": ("contradiction", "neutral", "entailment"), "pair": ("false", "true")}
Arrays = Mapping[str, np.ndarray]
Metrics = dict[str, float]


def evaluate(runs: Sequence[Run], dataset: str, *, examples: Count = 6, tokenizer: str | None = "asked") -> Evaluation:
    """What each seed of a pre-trained arm has learnt; tasks after it are compared instead, see `evaluate_answers`.

    Metrics: `word_accuracy_percent` of masked words; `matching_accuracy_percent` of whether a text belongs to a
    picture, half of which do; `search/<direction>/...` by matching scores, see `metrics.retrieval`, mean over parts of
    the pictures, and `search_together/...` among all of them, where that was asked for. Of masked features
    R^2 in percent, with `guided` and with `random` masks, for the picture's `own` caption, that of an `other` picture,
    and one whose words are all `hidden`: `<mask>_features/<text>_r2_points`; `<mask>_features/text_gain_points`, that
    of the own caption less that of another. Without the first part, those of the masks that the arm was trained with.
    Inter-modality flow is `flow/...`, see `metrics.flow_report`.

    Args:
        runs: finished runs, one for each seed, or of tasks.
        dataset: first part of every metric's name.
        examples: rows of the galleries.
        tokenizer: of the texts, for the galleries: `asked` or see `tokenizer_called`.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no run to evaluate: train the arm first.")
    words = _tokenizer(tokenizer)
    if runs[0].name:
        return evaluate_answers(runs, dataset, examples=examples, words=words)
    metrics = {
        run.seed: {f"{dataset}/{name}": x for name, x in measured(run.predictions(), run.facts).items()} for run in runs
    }
    first = runs[0].predictions()
    return Evaluation(
        metrics=metrics,
        figures=[*flow_figures(first, FORMULA, FLOWS), *_through_training(runs[0]), *_regressions(metrics, dataset)],
        galleries=_galleries(first, examples, words),
        not_computed=_missing(first),
    )


def measured(arrays: Arrays, facts: Mapping[str, object]) -> Metrics:
    """The numbers of one seed, see `evaluate`."""
    found = {
        f"{name.partition('/')[2]}_accuracy_percent": PERCENT * float(right.mean())
        for name, right in arrays.items()
        if name.startswith("right/")
    }
    found |= regressions(arrays, str(facts["masking"])) | flow_metrics(arrays)
    found |= searches(arrays)
    return found | {name: float(facts[name]) for name in ("parameters", "visual_parameters")}


def searches(arrays: Arrays) -> Metrics:
    """How well pictures and captions find one another: mean over parts, and all parts together; see `evaluate`."""
    names = [name.split("/")[1] for name in arrays if name.startswith("retrieval/") and name.endswith("/scores")]
    parts = [(arrays[f"retrieval/{name}/scores"], arrays[f"retrieval/{name}/picture_of"]) for name in names]
    if names != ["all"]:
        return _searched("search", parts)
    ((scores, picture_of),), size = parts, int(arrays["retrieval/ranked"])
    within = []
    for first in range(0, scores.shape[1], size):
        own = (picture_of >= first) & (picture_of < first + size)
        within.append((scores[own, first : first + size], picture_of[own] - first))
    return _searched("search", within) | _searched("search_together", parts)


def _searched(search: str, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Metrics:
    found: dict[str, list[float]] = defaultdict(list)
    for scores, picture_of in parts:
        for key, value in retrieval(scores, picture_of, np.arange(scores.shape[1])).items():
            way, _, name = key.partition("/")
            found[f"{search}/{DIRECTIONS[way]}/{name}"].append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def explained(errors: np.ndarray) -> float:
    """R^2: one less the squared error over the squared distance from the mean; both are the columns."""
    error, spread = errors.astype(np.float64).sum(0)
    return 1 - float(error / max(spread, np.finfo(np.float64).tiny))


def regressions(arrays: Arrays, masking: str) -> Metrics:
    """How well masked features are predicted, see `evaluate`."""
    found: Metrics = {}
    for name, errors in arrays.items():
        if name.startswith("regression/"):
            _, how, text = name.split("/")
            found[f"{how}_features/{text}_r2_points"] = PERCENT * explained(errors)
    for how in sorted({name.partition("_features/")[0] for name in found}):
        own, other = (found[f"{how}_features/{text}_r2_points"] for text in ("own", "other"))
        found[f"{how}_features/text_gain_points"] = own - other
    start = f"{masking}_features/"
    return found | {f"features/{name.removeprefix(start)}": x for name, x in found.items() if name.startswith(start)}


def _mean(values: np.ndarray) -> float:
    return float(values.astype(np.float64).mean())


def _missing(arrays: Arrays) -> dict[str, str]:
    found = {} if "right/word" in arrays else {"word_accuracy_percent": NOT_LEARNT}
    if "right/matching" not in arrays:
        found |= dict.fromkeys(("matching_accuracy_percent", "search/text_to_picture/recall_at_1_percent"), NOT_LEARNT)
    if "regression/random/own" not in arrays:
        return found | {"features/own_r2_points": NOT_LEARNT}
    return found if "regression/guided/own" in arrays else found | {"guided_features/own_r2_points": NO_WEIGHTS}


def _through_training(run: Run) -> list[Figure]:
    """Flow while it is learnt; nothing where none was logged."""
    if "validation/flow" not in run.logged():
        return []
    steps, values = run.history("validation/flow")
    line = Series("mean over layers", "line", steps.tolist(), values.tolist())
    told = "Of matched pairs of the split val, over that of equal attention. First seed."
    return [Figure("flow-steps", "Inter-modality flow through training", told, "step", "times equal attention", [line])]


def _regressions(metrics: Mapping[int, Metrics], dataset: str) -> list[Figure]:
    """R^2 of masked features for each mask and text; nothing where no features are regressed."""
    first = next(iter(metrics.values()))
    texts = ("own", "other", "hidden")
    masks = [how for how in ("guided", "random") if f"{dataset}/{how}_features/own_r2_points" in first]
    names = {"own": "own caption", "other": "another caption", "hidden": "all words masked"}
    series = []
    for how in masks:
        values = np.array([[found[f"{dataset}/{how}_features/{text}_r2_points"] for text in texts]
                           for found in metrics.values()])  # fmt: skip
        series.append(seed_series(f"{how} masks", "bars", range(len(texts)), values, [names[text] for text in texts]))
    told = "Test rows. What the own caption adds to another one is what words tell of the picture."
    return [Figure("features", "Masked features predicted from", told, "text", "R^2, %", series)] if series else []


def evaluate_answers(runs: Sequence[Run], dataset: str, *, examples: int, words: TextTokenizer) -> Evaluation:
    """What each pre-training is worth in tasks: `<dataset>/<protocol>/<metric>@<arm>`.

    Metrics: `accuracy_percent`, of questions the accuracy of VQA, in which an answer counts as much as its soft label;
    of each kind of question `accuracy_percent/<kind>`; of statements that are asked of several pairs of pictures
    `consistency_percent`, those that are right of all. What is judged besides the test rows has its source in front,
    such as `dev_accuracy_percent`. Where nobody's answers to questions are known, there are none:
    `vqa-<arm>-<protocol>-<seed>.json` has what the server of VQA reads.

    Args:
        runs: named `<arm>/<protocol>`, the same seeds of each.
        dataset: first part of every metric's name.
        examples: rows of the galleries.
        words: the tokenizer of the texts.

    Raises:
        ValueError: two runs of one seed were judged on different rows.
    """
    metrics: dict[int, Metrics] = defaultdict(dict)
    predictions = [run.predictions() for run in runs]
    protocols = list(dict.fromkeys(run.name.partition("/")[2] for run in runs))
    for protocol in protocols:
        chosen = [(run, each) for run, each in zip(runs, predictions, strict=True) if run.name.endswith(f"/{protocol}")]
        check_rows([run for run, _ in chosen], [each["labels"] for _, each in chosen])
    for run, each in zip(runs, predictions, strict=True):
        arm, _, protocol = run.name.partition("/")
        found = scored(each, run.facts.get("kinds", ()))
        for source, part in _besides(each).items():
            found |= {f"{source}_{name}": x for name, x in scored(part, run.facts.get("kinds", ())).items()}
        metrics[run.seed] |= {f"{dataset}/{protocol}/{name}@{arm}": value for name, value in found.items()}
    arms, series = arms_of(runs), []
    for name in sorted({key.partition("@")[0] for found in metrics.values() for key in found}):
        complete = {seed: found for seed, found in metrics.items() if all(f"{name}@{arm}" in found for arm in arms)}
        if complete:  # arms may have different numbers of seeds
            values = over_arms(complete, name, arms)
            series.append(seed_series(name.removeprefix(f"{dataset}/"), "bars", range(len(arms)), values, arms))
    told = "Test rows after all weights were fine-tuned on few pictures, with a new head."
    figure = Figure("tasks", f"What each pre-training is worth ({dataset})", told, "arm", "percent", series)
    unknown = [(run, each) for run, each in zip(runs, predictions, strict=True) if _unanswered(each)]
    galleries = [_answered(run, each, examples, words) for run, each in zip(runs, predictions, strict=True)
                 if run.seed == runs[0].seed and run.name.partition("/")[0] == min(arms)]  # fmt: skip
    return Evaluation(
        metrics=dict(metrics),
        figures=[figure] if series else [],
        galleries=galleries,
        not_computed={f"{run.name.partition('/')[2]}/accuracy_percent": NO_ANSWERS for run, _ in unknown},
        files={
            ANSWERING: json.dumps(_places(runs), indent=1).encode(),
            **{
                f"vqa-{run.name.replace('/', '-')}-{run.seed}.json": _for_the_server(run, each) for run, each in unknown
            },
        },
        predictor="lightning_modules.visual_parsing.predictor.load_answers",
    )


def _places(runs: Sequence[Run]) -> dict[str, str]:
    """Where the network of each protocol lies: those of the first arm, by its name, and the first seed."""
    first = min(arms_of(runs))  # runs are in the order of arm and protocol, where `a-b/...` is before `a/...`
    found = {}
    for run in runs:
        arm, _, protocol = run.name.partition("/")
        if arm == first:
            place = run.folder.relative_to(ROOT) if run.folder.is_relative_to(ROOT) else run.folder
            found.setdefault(protocol, place.as_posix())
    return found


def _besides(arrays: Arrays) -> dict[str, Arrays]:
    """What was judged besides the split test, by its source."""
    found: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for name, values in arrays.items():
        if name.startswith("also/"):
            _, source, column = name.split("/")
            found[source][column] = values
    return found


def _unanswered(arrays: Arrays) -> bool:
    return "kinds" in arrays and bool((arrays["kinds"] < 0).all())


def _for_the_server(run: Run, arrays: Arrays) -> bytes:
    """What is answered to each question of VQA, whose rows are their ids."""
    said = (run.facts["answers"][answer] for answer in arrays["answers"].tolist())
    return vqa2.results(zip(arrays["rows"].tolist(), said, strict=True)).encode()


def scored(arrays: Arrays, kinds: Sequence[str]) -> Metrics:
    """The numbers of one run, see `evaluate_answers`; none where nobody's answers are known, which have kind -1."""
    if _unanswered(arrays):
        return {}
    found = {"accuracy_percent": PERCENT * _mean(arrays["credit"])}
    if "kinds" in arrays:
        for kind in np.unique(arrays["kinds"]).tolist():
            found[f"accuracy_percent/{kinds[kind]}"] = PERCENT * _mean(arrays["credit"][arrays["kinds"] == kind])
    if "groups" in arrays:
        found["consistency_percent"] = consistency(arrays["credit"] > 0, arrays["groups"])
    return found


def _tokenizer(name: str | None) -> TextTokenizer:
    from lightning_modules.datasets.tokenizers import tokenizer_called
    from lightning_modules.datasets.world.asked import asked_tokenizer

    return asked_tokenizer() if name == "asked" else tokenizer_called(name)


def _galleries(arrays: Arrays, examples: int, words: TextTokenizer) -> list[Gallery]:
    """Attention of visual tokens and of words over pictures."""
    grid = tuple(arrays["shown/grid"].tolist())
    count, found = min(examples, len(arrays["shown/images"])), []
    if "shown/weights" in arrays:
        rows = [_parsed(arrays, row, grid) for row in range(count)]
        told = (
            "Attention of one token of the last block of the visual encoder (its pivot, outlined), and what guided "
            "masking hides with it. First seed."
        )
        found.append(Gallery("parsing", "Visual parsing: what belongs together", told, rows))
    rows = [_read(arrays, row, grid, words) for row in range(count)]
    told = (
        "What words attend to in the picture, in the last layer of the multimodal Transformer, mean over heads; each "
        "map is scaled to its largest value. First seed."
    )
    return [*found, Gallery("reading", "Which visual tokens words attend to", told, rows)]


def _parsed(arrays: Arrays, row: int, grid: tuple[int, int]) -> list[Exhibit]:
    pixels, pivot = _pixels(arrays, row), int(arrays["shown/pivot"][row])
    heat = arrays["shown/weights"][row].reshape(grid)
    hidden = arrays["shown/hidden"][row].reshape(grid)
    place = f"row {pivot // grid[1] + 1}, column {pivot % grid[1] + 1}"
    masked = np.where(hidden | (np.arange(hidden.size).reshape(grid) == pivot), 0.0, 1.0)
    return [
        Exhibit("picture", picture=Picture.of(_outlined(pixels, pivot, grid), f"picture, pivot in {place}")),
        Exhibit("attention of the pivot", picture=Picture.of(_lit(pixels, heat), f"attention of the token in {place}")),
        Exhibit("what is masked", picture=Picture.of(_lit(pixels, masked), f"the token in {place} and those masked")),
    ]


def _read(arrays: Arrays, row: int, grid: tuple[int, int], words: TextTokenizer) -> list[Exhibit]:
    pixels, token_ids = _pixels(arrays, row), arrays["shown/token_ids"][row].tolist()
    special = (words.pad_id, words.start_id, words.end_id)
    places = [place for place, token in enumerate(token_ids) if token not in special][:6]
    found = [Exhibit(" ".join(words.decode(np.array([token_ids]))), picture=Picture.of(pixels, "picture"))]
    for place in places:
        word = words.backend.id_to_token(token_ids[place])
        heat = arrays["shown/attention"][row][place].reshape(grid)
        found.append(Exhibit(word, picture=Picture.of(_lit(pixels, heat), f"what the word {word} attends to")))
    return found


def _answered(run: Run, arrays: Arrays, examples: int, words: TextTokenizer) -> Gallery:
    """Texts of a task with what is said of them."""
    arm, _, protocol = run.name.partition("/")
    task, names = run.facts["task"], run.facts.get("answers")
    names = names or LABELS[task]
    rows = []
    for row in range(min(examples, len(arrays["shown/token_ids"]))):
        (text,) = words.decode(arrays["shown/token_ids"][row : row + 1])
        said, label = names[int(arrays["answers"][row])], int(arrays["labels"][row])
        right = names[label] if label >= 0 else "none of the answers"
        true = None if "kinds" in arrays and arrays["kinds"][row] < 0 else bool(arrays["credit"][row] > 0)
        pictures = arrays["shown/images"][row]
        rows.append([
            *(Exhibit("picture", picture=Picture.of(_enlarged(each), f"picture of: {text}"))
              for each in (pictures if pictures.ndim == 4 else pictures[None])),
            Exhibit("text", text=[(text, None)]),
            Exhibit("answer", text=[(f"{said} ({right})" if true is False else said, true)]),
        ])  # fmt: skip
    told = f"Test rows of the arm {arm}; wrong answers with the right one. First seed."
    return Gallery(f"answers-{protocol}", f"Answers: {TASKS[task]}", told, rows)


def _pixels(arrays: Arrays, row: int) -> np.ndarray:
    return _enlarged(arrays["shown/images"][row])


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Stored pixels (3 height width) as a picture for the page."""
    pixels = image.transpose(1, 2, 0)
    step = -(-max(pixels.shape[:2]) // LARGEST_PICTURE)
    pixels = pixels[::step, ::step]
    times = max(1, min(ENLARGED, LARGEST_PICTURE // max(pixels.shape[:2])))
    return np.ascontiguousarray(pixels.repeat(times, 0).repeat(times, 1))


def _lit(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture that is bright where the heat is."""
    rows, columns = (
        np.arange(side) * tokens // side for side, tokens in zip(pixels.shape[:2], heat.shape, strict=True)
    )
    scaled = heat / max(float(heat.max()), 1e-12)
    light = DIMMED + (1 - DIMMED) * scaled[rows[:, None], columns]
    return (pixels * light[:, :, None]).astype(np.uint8)


def _outlined(pixels: np.ndarray, token: int, grid: tuple[int, int]) -> np.ndarray:
    """A picture with a white frame around one token."""
    found = pixels.copy()
    (top, bottom), (left, right) = (
        (place * side // tokens, (place + 1) * side // tokens)
        for place, side, tokens in zip(divmod(token, grid[1]), pixels.shape[:2], grid, strict=True)
    )
    found[top:bottom, [left, right - 1]] = 255
    found[[top, bottom - 1], left:right] = 255
    return found
