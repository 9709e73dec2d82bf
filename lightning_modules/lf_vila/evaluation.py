"""Judges LF-VILA: retrieval, alignment of clips and sentences in time, order of sentences, matches, answers.

Reads stored predictions only, without torch. Read `evaluate` first, then `aligned`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from lightning_modules.datasets.tokenizers import tokenizer_called
from lightning_modules.metrics.answers import accuracy
from lightning_modules.metrics.flow_report import flow_figures, flow_metrics
from lightning_modules.metrics.retrieval import blind_ceiling, ranks, retrieval
from lightning_modules.runs import Evaluation, Exhibit, Figure, Gallery, Picture, Run, Series

Metrics = dict[str, float]
BAR, LARGER = 24, 2  # pixels of the highest bar under a clip; times that its frames are larger on the page
BEST, OTHER = (34, 119, 187), (190, 205, 215)


def evaluate(runs: Sequence[Run], dataset: str, *, split: str = "test") -> Evaluation:
    """All numbers of one arm or of a comparison, per seed.

    Where paragraphs and videos are read together also `flow/...`, see `metrics.flow_report`.

    Args:
        runs: of one arm, one for each seed; or of a comparison, whose metrics end in `@<arm>`.
        dataset: first part of every metric's name.
        split: rows that are judged.

    Raises:
        ValueError: there is no run, or a run has no predictions of that split.
    """
    if not runs:
        raise ValueError("there is no trained model to evaluate: `make repro` trains it.")
    metrics: dict[int, Metrics] = {}
    drawn = min(runs, key=lambda run: (run.name.split("/"), run.seed))  # of a comparison, the paper's own arm
    figures, galleries = [_memory(drawn)], []
    for run in runs:
        stored = run.predictions()
        found = {name.removesuffix(f"/{split}"): x for name, x in stored.items() if name.endswith(f"/{split}")}
        if not found:
            raise ValueError(f"{run.folder} has no predictions of split {split!r}: add it to data.splits.")
        flow = flow_metrics(found)
        judged = {"align": aligned, "fuse": matched}.get(run.facts["task"], answered)(found)
        arm, _, protocol = run.name.partition("/")
        first, last = (f"{dataset}/{protocol}", f"@{arm}") if protocol else (dataset, "")
        named = {f"{first}/{name}{last}": value for name, value in {**judged, **flow, **costs(run)}.items()}
        metrics.setdefault(run.seed, {}).update(named)
        if run is drawn:
            figures = [*flow_figures(found), *figures]
        if run is drawn and "clips" in found and found["clips"].shape == found["sentences"].shape:
            figures.insert(0, _over_time(found))
            galleries += [moments(found)] if "shown" in found else []
    return Evaluation(metrics=metrics, figures=figures, galleries=galleries)


def costs(run: Run) -> Metrics:
    """What is counted, and the same for all seeds."""
    found = {f"attention_elements@{frames}": float(n) for frames, n in run.facts["attention_elements"].items()}
    found |= {name: float(run.facts[name]) for name in ("macs_per_video", "parameters")}
    for name in ("perfect_loss", "released_perfect_loss"):  # the second with the released 'others'
        if name in run.facts:
            found[name.replace("perfect_loss", "time_loss_of_perfect_features")] = run.facts[name]
    return found


def aligned(predictions: Mapping[str, np.ndarray]) -> Metrics:
    """Stage one and retrieval, from unit features.

    `alignment_percent`: of each clip, whether its own sentence is the most similar of its paragraph, and of each
    sentence its own clip; the mean of both. `right_events_percent`: whether the first paragraph that a video finds has
    its events, in whatever order. `right_order_percent`: of the paragraphs with its events, whether its own comes
    first; `blind_order_percent` is what a model can reach that is blind to order. `in_order_percent`: whether a video
    is nearer to its paragraph than to the same sentences in another order. Recall is given at 50, too, as the paper
    does for ActivityNet.
    """
    video, text = predictions["video"], predictions["text"]
    similarity, own = text @ video.T, np.arange(len(text))
    found = retrieval(similarity)
    for direction, scores in (("text_to_video", similarity), ("video_to_text", similarity.T)):
        found[f"{direction}/recall_at_50_percent"] = 100 * float((ranks(scores, own, own) <= 50).mean())
    if predictions["clips"].shape[1] == predictions["sentences"].shape[1]:
        found["alignment_percent"] = 100 * alignment(local_similarity(predictions))
    if "group" in predictions:
        group, rows = predictions["group"], np.arange(len(video))
        alike = group[:, None] == group
        found["right_events_percent"] = 100 * float((group[similarity.argmax(0)] == group).mean())
        found["right_order_percent"] = 100 * float((np.where(alike, similarity, -np.inf).argmax(0) == rows).mean())
        found["blind_order_percent"] = 100 * blind_ceiling(group, rows)
    if "permuted" in predictions:
        own, other = ((video * x).sum(1) for x in (text, predictions["permuted"]))
        found["in_order_percent"] = 100 * float((own > other).mean())
    return found


def local_similarity(predictions: Mapping[str, np.ndarray]) -> Float[np.ndarray, "rows clips sentences"]:
    """Cosine of each clip with each sentence of the same row."""
    return predictions["clips"] @ predictions["sentences"].swapaxes(1, 2)


def alignment(similarity: Float[np.ndarray, "rows times times"]) -> float:
    """Share of clips that are most similar to their own sentence, and of sentences to their own clip: the mean."""
    own = np.arange(similarity.shape[1])
    return float(((similarity.argmax(2) == own).mean() + (similarity.argmax(1) == own).mean()) / 2)


def matched(predictions: Mapping[str, np.ndarray]) -> Metrics:
    """Stage two: whether own videos are told from others by the sign, and from permuted paragraphs by comparison."""
    own, other = predictions["own"], predictions["other"]
    found = {"match_percent": 50 * float((own > 0).mean() + (other < 0).mean())}
    if "permuted" in predictions:
        found["in_order_percent"] = 100 * float((own > predictions["permuted"]).mean())
    return found


def answered(predictions: Mapping[str, np.ndarray]) -> Metrics:
    """Answers, choices and classes; of choices whose spans are known also the frames that matter."""
    found = accuracy(predictions["logits"].argmax(1), predictions["labels"])
    if "frame_labels" in predictions:
        right = (predictions["frames"] > 0) == predictions["frame_labels"]
        found["frames_percent"] = 100 * float(right.mean())
    return found


def _over_time(predictions: Mapping[str, np.ndarray]) -> Figure:
    """How similar clips are to sentences of the same video, by the time between them."""
    similarity = local_similarity(predictions).mean(0)
    later = np.arange(1 - len(similarity), len(similarity))
    return Figure(
        id="similarity_over_time",
        title="Similarity of clips and sentences of one video",
        caption="Mean cosine by how many sentences later than the clip a sentence is (0: its own), of one seed.",
        x_label="sentences later",
        y_label="cosine",
        series=[
            Series(
                "clips",
                "line",
                later.astype(float).tolist(),
                [float(np.diagonal(similarity, by).mean()) for by in later],
            )
        ],
    )


def moments(predictions: Mapping[str, np.ndarray]) -> Gallery:
    """Where the sentences of the first videos are found in them."""
    tokenizer, rows = tokenizer_called("world"), []
    similarities = local_similarity(
        {name: predictions[name][: len(predictions["shown"])] for name in ("clips", "sentences")}
    )
    for frames, said, similarity in zip(predictions["shown"], predictions["said"], similarities, strict=True):
        clips = np.split(frames, similarity.shape[0])
        for time, (sentence, values) in enumerate(zip(tokenizer.decode(said), similarity.T, strict=True)):
            row = [Exhibit("sentence", text=[(sentence, bool(values.argmax() == time))])]
            shares = (values - values.min()) / max(float(np.ptp(values)), 1e-9)
            for clip, value, share in zip(clips, values, shares.tolist(), strict=True):
                alt = f"frames of a clip, {'the nearest' if share == 1 else 'not the nearest'} to the sentence"
                row.append(Exhibit(f"cosine {value:.2f}", Picture.of(over_a_bar(clip, share), alt)))
            rows.append(row)
    caption = (
        "A sentence and the clips of the video that it was said of. Bars go from the lowest cosine to the highest, in "
        "blue. Green: that is where it was said. Test rows of one seed, in order."
    )
    return Gallery("moments", "The moment of a sentence", caption, rows)


def over_a_bar(frames: UInt8[np.ndarray, "frames height width 3"], share: float) -> UInt8[np.ndarray, "tall wide 3"]:
    """Frames in a row, larger, and under them a bar as high as a share from 0 to 1; that of 1 is blue."""
    strip = np.concatenate(list(frames.repeat(LARGER, 1).repeat(LARGER, 2)), 1)
    below = np.full((BAR + 2, strip.shape[1], 3), 255, np.uint8)
    below[len(below) - max(1, round(BAR * share)) :, 1:-1] = BEST if share == 1 else OTHER
    return np.concatenate([strip, below])


def _memory(run: Run) -> Figure:
    elements = sorted((int(frames), counted) for frames, counted in run.facts["attention_elements"].items())
    return Figure(
        id="attention",
        title="Attention against the length of the video",
        caption="Scores of all heads in one block of the level with most of them, for one video; counted.",
        x_label="frames",
        y_label="thousands of scores",
        series=[Series("windows", "line", [float(n) for n, _ in elements], [n / 1e3 for _, n in elements])],
        x_scale="log",
    )
