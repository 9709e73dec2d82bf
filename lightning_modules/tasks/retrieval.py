"""Compares text-video models: for every arm, retrieval of videos by text and of texts by video.

Reads stored features only (`videos`, `texts` and `belongs` of each run), without torch. Read `measured` first.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from lightning_modules.ensembling.pools import seed_series
from lightning_modules.metrics.retrieval import blind_ceiling, dual_softmax, ranks, retrieval
from lightning_modules.runs import Evaluation, Figure, Run, Series
from lightning_modules.settings import Count
from lightning_modules.tasks.comparison import Metrics, arms_of, check_rows, over_arms

FIRST = "text_to_video/recall_at_1_percent"
BACK = "video_to_text/recall_at_1_percent"


def evaluate(
    runs: Sequence[Run],
    dataset: str,
    *,
    alike: Count | None = None,
    reversed_pairs: bool = False,
    split: str = "test",
    export: str | None = None,
    tokenizer: str | None = None,
) -> Evaluation:
    """Retrieval in both directions of every arm and protocol, with and without dual softmax, per seed.

    Args:
        runs: named `<arm>/<protocol>`, the same seeds of each.
        dataset: first part of every metric's name; the last is the arm.
        alike: captions whose labels agree when divided by this differ in motion only; null where labels say no such
            thing.
        reversed_pairs: whether the clips of labels 2 i and 2 i + 1 are each other in reverse, so that what a model can
            reach that is blind to order is known.
        split: rows that are judged.
        export: the arm whose fine-tuned model of the first seed is written for `clip_vip.retriever`; null for none.
        tokenizer: that of its texts, see `published_tokenizer`; null for the captioned world's words.

    Raises:
        ValueError: there is no run, none of the arm to be exported, or two runs of one seed were judged on other rows.
    """
    if not runs:
        raise ValueError("there is no trained model to compare: `make repro` trains it.")
    metrics: dict[int, Metrics] = defaultdict(dict)
    stored = [
        {name.removesuffix(f"/{split}"): x for name, x in run.predictions().items() if name.endswith(f"/{split}")}
        for run in runs
    ]
    check_rows(runs, [predictions["belongs"] for predictions in stored])
    for run, predictions in zip(runs, stored, strict=True):
        arm, _, protocol = run.name.partition("/")
        found = measured(predictions, alike) | {"macs_per_video": float(run.facts["macs_per_video"])}
        if reversed_pairs:
            found |= ceiling(predictions["labels"])
        metrics[run.seed] |= {f"{dataset}/{protocol}/{name}@{arm}": value for name, value in found.items()}
    arms = arms_of(runs)
    protocols = sorted({run.name.partition("/")[2] for run in runs}, reverse=True)  # zero_shot before finetune
    return Evaluation(
        metrics=dict(metrics),
        figures=[
            _recalls(metrics, dataset, arms, protocols),
            _dual_softmax(metrics, dataset, arms),
            _costs(metrics, dataset, arms),
        ],
        files={} if export is None else exported(runs, export, tokenizer),
        predictor="" if export is None else "lightning_modules.clip_vip.retriever.Retriever.load",
    )


def exported(runs: Sequence[Run], arm: str, tokenizer: str | None) -> dict[str, bytes]:
    """The files that `clip_vip.retriever.Retriever.load` reads."""
    from safetensors.numpy import save

    trained = [run for run in runs if run.name == f"{arm}/finetune"]
    if not trained:
        raise ValueError(f"evaluate.export is {arm!r}, expected one of {', '.join(sorted(arms_of(runs)))}.")
    run = min(trained, key=lambda run: run.seed)
    record = {"arm": arm, "seed": run.seed, "tokenizer": tokenizer, "model": run.facts["model"]}
    return {
        "retriever.json": (json.dumps(record, indent=1, sort_keys=True) + "\n").encode(),
        "retriever.safetensors": save(run.weights()),
    }


def measured(predictions: Mapping[str, np.ndarray], alike: int | None) -> Metrics:
    """All that is said of one run: features of `videos` and `texts`, and the text that each video `belongs` to.

    `videos@<n>` are features of the same videos seen at n frames. `one_to_one` is the mean over disjoint parts of the
    rows in which each text has one video: what dual softmax is made for.
    """
    texts, belongs = predictions["texts"], predictions["belongs"]
    numbers = np.arange(len(texts))
    found = {}
    for name, videos in predictions.items():
        if name.startswith("videos"):
            shown = name.removeprefix("videos").replace("@", "at_")
            both = retrieval(texts @ videos.T, numbers, belongs)
            found |= {f"{shown}/{metric}".removeprefix("/"): value for metric, value in both.items()}
    similarity = texts @ predictions["videos"].T
    found |= {f"dual_softmax/{name}": value for name, value in with_dual_softmax(similarity, belongs).items()}
    plain, dual = (np.array(values) for values in zip(*one_to_one(similarity, belongs), strict=True))
    found |= {f"one_to_one/{FIRST}": plain.mean(), f"one_to_one/dual_softmax/{FIRST}": dual.mean()}
    found["one_to_one/dual_softmax_gain_points"] = (dual - plain).mean()
    found["dual_softmax_gain_points"] = found[f"dual_softmax/{FIRST}"] - found[FIRST]
    if alike is not None:
        found["motion_percent"] = 100 * motion_accuracy(similarity, predictions["labels"], belongs, alike)
    return found


def with_dual_softmax(similarity: Float[np.ndarray, "texts videos"], belongs: Int[np.ndarray, " videos"]) -> Metrics:
    """Both directions from one matrix, softmaxed over texts, as the official code of CLIP-ViP reports them."""
    return retrieval(dual_softmax(similarity), np.arange(len(similarity)), belongs)


def one_to_one(
    similarity: Float[np.ndarray, "texts videos"], belongs: Int[np.ndarray, " videos"]
) -> Iterator[tuple[float, float]]:
    """Text-to-video R@1 in percent, plain and with dual softmax, of parts of the rows with one video of each text."""
    videos_of = [np.flatnonzero(belongs == text) for text in range(len(similarity))]
    numbers = np.arange(len(similarity))
    for part in range(min(map(len, videos_of))):
        square = similarity[:, [videos[part] for videos in videos_of]]
        yield tuple(100 * float((ranks(x, numbers, numbers) <= 1).mean()) for x in (square, dual_softmax(square)))


def motion_accuracy(
    similarity: Float[np.ndarray, "texts videos"],
    labels: Int[np.ndarray, " videos"],
    belongs: Int[np.ndarray, " videos"],
    alike: int,
) -> float:
    """Share of the videos whose own caption is ahead of those that differ from it in motion only."""
    label_of = np.empty(len(similarity), np.int64)  # every text has a video
    label_of[belongs] = labels
    candidates = label_of[:, None] // alike == labels // alike
    return float((np.where(candidates, similarity, -np.inf).argmax(axis=0) == belongs).mean())


def ceiling(labels: Int[np.ndarray, " videos"]) -> Metrics:
    """What a model can reach that is blind to the order of frames: it tells the pairs of labels apart, and no more."""
    return {f"order_blind_ceiling/{BACK}": 100 * blind_ceiling(labels // 2, labels)}


def _recalls(metrics: Mapping[int, Metrics], dataset: str, arms: Sequence[str], protocols: Sequence[str]) -> Figure:
    series = [
        seed_series(
            protocol.replace("_", " "),
            "bars",
            range(len(arms)),
            over_arms(metrics, f"{dataset}/{protocol}/{BACK}", arms),
            arms,
        )
        for protocol in protocols
    ]
    blind = f"{dataset}/{protocols[0]}/order_blind_ceiling/{BACK}@{arms[0]}"
    first = metrics[min(metrics)]
    if blind in first:
        series.append(Series("blind to the order of frames", "dashed", [0.0, len(arms) - 1.0], [first[blind]] * 2))
    return Figure(
        id="recall",
        title=f"Which text belongs to a video ({dataset})",
        caption="Share of the test videos whose own caption comes first, before and after fine-tuning on captions.",
        x_label="arm",
        y_label="video-to-text R@1, %",
        series=series,
    )


def _dual_softmax(metrics: Mapping[int, Metrics], dataset: str, arms: Sequence[str]) -> Figure:
    names = {
        "one video for each text": f"one_to_one/{FIRST}",
        "one video for each text, dual softmax": f"one_to_one/dual_softmax/{FIRST}",
        "many videos for each text": FIRST,
        "many videos for each text, dual softmax": f"dual_softmax/{FIRST}",
    }
    return Figure(
        id="dual_softmax",
        title=f"What dual softmax adds ({dataset})",
        caption="Text-to-video recall after fine-tuning. Dual softmax lets texts compete for each video: it looks at "
        "all queries together to answer one.",
        x_label="arm",
        y_label="text-to-video R@1, %",
        series=[
            seed_series(name, "bars", range(len(arms)), over_arms(metrics, f"{dataset}/finetune/{metric}", arms), arms)
            for name, metric in names.items()
        ],
    )


def _costs(metrics: Mapping[int, Metrics], dataset: str, arms: Sequence[str]) -> Figure:
    series = []
    for arm in arms:
        macs = metrics[min(metrics)][f"{dataset}/finetune/macs_per_video@{arm}"]
        series.append(seed_series(arm, "points", [macs / 1e6], over_arms(metrics, f"{dataset}/finetune/{BACK}", [arm])))
    return Figure(
        id="cost",
        title=f"Recall against the cost of reading a video ({dataset})",
        caption="Multiply-adds of the video tower for one video, after fine-tuning.",
        x_label="MMACs per video",
        y_label="video-to-text R@1, %",
        series=series,
    )
