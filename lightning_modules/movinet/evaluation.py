"""What trained MoViNets are worth: accuracy, temporal ensembles, streams against whole clips, memory. No torch."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lightning_modules.datasets.world.views import ACTIONS
from lightning_modules.ensembling.pools import RULES, combine, over_seeds, seed_series
from lightning_modules.metrics.actions import joint_accuracy, mean_average_precision, top_accuracy
from lightning_modules.metrics.classification import accuracy, negative_log_likelihood
from lightning_modules.runs import Evaluation, Exhibit, Figure, Gallery, Run, Series
from lightning_modules.video_tokens.playing import playing

NAMES = {"world_actions": ACTIONS}  # of the classes of a data set
TOLD = 4  # answers about a clip of the page while it runs


def evaluate(runs: Sequence[Run], dataset: str, *, pairs: bool = True) -> Evaluation:
    """Judge the seeds of one arm on the test rows.

    Metrics, all beginning with the name of the data set: `top1_percent` and `nll` of the averaged logits; of several
    members also `member/top1_percent`, their mean, and `probabilities/top1_percent` and `vote/top1_percent`, other ways
    to combine them (see `pools.combine`); `pair/top1_percent`, whether the pair of actions that are each other
    in reverse is right, and `order/top1_percent`, which of the two it is where the pair is right; `macs_per_clip`,
    `parameters`, `members`, and `peak_bytes@<frames>`. Of a causal network `stream/largest_difference`, the largest
    difference of a logit between frame by frame and the whole clip, in units of the largest logit.

    Where classes are no pairs, `top5_percent` takes the place of both metrics of pairs. Of clips with any number of
    labels there is `map_percent` instead of all of these, of clips with a verb and a noun `verb/top1_percent`,
    `noun/top1_percent`, and `action/top1_percent`, where both must be right.

    Args:
        runs: finished runs, one for each seed.
        dataset: first part of every metric's name.
        pairs: whether classes 2 n and 2 n + 1 are each other in reverse.
    """
    metrics, curves = {}, []
    for run in runs:
        found, arrays = {}, run.predictions()
        logits, labels = arrays["logits/test"], arrays["labels/test"]
        together, targets = logits.mean(1), run.facts.get("targets")
        found |= _scores(together, labels, targets)
        first = next(iter(found))
        if logits.shape[1] > 1:
            singles = [_scores(logits[:, m], labels, targets)[first] for m in range(logits.shape[1])]
            found[f"member/{first}"] = float(np.mean(singles))
            if labels.ndim == 1:
                for rule in RULES[1:]:
                    found[f"{rule}/{first}"] = _scores(combine(logits.swapaxes(0, 1), rule), labels, targets)[first]
        if labels.ndim == 1 and pairs:
            right_pair = together.argmax(1) // 2 == labels // 2
            found["pair/top1_percent"] = 100 * float(right_pair.mean())
            if right_pair.any():
                found["order/top1_percent"] = 100 * float((together.argmax(1) == labels)[right_pair].mean())
        elif labels.ndim == 1:
            found["top5_percent"] = 100 * top_accuracy(together, labels, 5)
        if "each_frame/test" in arrays:
            frames = arrays["each_frame/test"]
            curves.append([_scores(frames[:, t], labels, targets)[first] for t in range(frames.shape[1])])
            streamed = arrays["streamed/test"]
            difference = np.abs(streamed - frames[: len(streamed)]).max() / np.abs(frames).max()
            found["stream/largest_difference"] = float(difference)
        found |= {name: run.facts[name] for name in ("macs_per_clip", "parameters")} | {"members": logits.shape[1]}
        found |= {f"peak_bytes@{frames}": size for frames, size in run.facts["peak_bytes"].items()}
        metrics[run.seed] = {f"{dataset}/{name}": float(value) for name, value in found.items()}
    figures = [_memory(runs[0]), *_over_time(curves), *_ensemble(metrics, dataset)]
    return Evaluation(metrics=metrics, figures=figures, galleries=_clips(runs[0], NAMES.get(dataset)))


def _scores(
    logits: Float[np.ndarray, "rows classes"], labels: np.ndarray, targets: Sequence[Sequence] | None
) -> dict[str, float]:
    """What clips are judged by, first of all: those with one class, with many, and with one of each of the targets."""
    if labels.ndim == 1:
        return {"top1_percent": 100 * accuracy(logits, labels), "nll": negative_log_likelihood(logits, labels)}
    if targets is None:
        return {"map_percent": 100 * mean_average_precision(logits, labels)}
    ends = np.cumsum([count for _, count in targets])[:-1]
    both, each = joint_accuracy(np.split(logits, ends, axis=1), labels)
    return {"action/top1_percent": 100 * both} | {
        f"{name}/top1_percent": 100 * share for (name, _), share in zip(targets, each, strict=True)
    }


def _clips(run: Run, names: Sequence[str] | None) -> list[Gallery]:
    """The first test clips and the answers about them; of a stream also those that it gave meanwhile."""
    arrays = run.predictions()
    labels = arrays["labels/test"]
    if "shown/test" not in arrays or labels.ndim > 1:
        return []

    def told(row: int, answer: int) -> tuple[str, bool]:
        return names[answer] if names else f"class {answer}", bool(answer == labels[row])

    rows = []
    for row, clip in enumerate(arrays["shown/test"]):
        exhibits = [playing(told(row, int(labels[row]))[0], clip)]
        if "each_frame/test" in arrays:
            answers, meanwhile = arrays["each_frame/test"][row].argmax(1), []
            for read in sorted({len(answers) * part // TOLD for part in range(1, TOLD + 1)} - {0}):
                frame = 1 + (read - 1) * run.facts["stride"]
                meanwhile += [(f" frame {frame}: ", None), told(row, int(answers[read - 1]))]
            exhibits.append(Exhibit("while it runs", text=meanwhile))
        answer = int(arrays["logits/test"][row].mean(0).argmax())
        rows.append([*exhibits, Exhibit("at its end", text=[told(row, answer)])])
    caption = "Test clips of one seed. Answers of a stream while a clip runs are those of its first member."
    return [Gallery("clips", "Clips, and what is said of them", caption, rows)]


def _memory(run: Run) -> Figure:
    sizes = {int(frames): size / 1e6 for frames, size in run.facts["peak_bytes"].items()}
    how = "frame by frame" if run.facts["causal"] else "the whole clip at once"
    return Figure(
        id="memory",
        title="Memory against the length of the clip",
        caption=f"Most bytes that all tensors take at one time, weights left out, counted while reading {how}.",
        x_label="frames",
        y_label="megabytes",
        series=[Series(how, "line", [float(n) for n in sizes], list(sizes.values()))],
        x_scale="log",
    )


def _over_time(curves: Sequence[Sequence[float]]) -> list[Figure]:
    """Accuracy after each frame: a causal network has an answer all the time."""
    if not curves:
        return []
    mean = np.mean(curves, axis=0).tolist()
    return [
        Figure(
            id="accuracy_over_time",
            title="Accuracy after each frame",
            caption="Of the first member, from the frames so far; mean over seeds.",
            x_label="frames read",
            y_label="accuracy in percent",
            series=[Series("stream", "line", [float(t) for t in range(1, len(mean) + 1)], mean)],
        )
    ]


def _ensemble(metrics: Mapping[int, Mapping[str, float]], dataset: str) -> list[Figure]:
    """What combining several networks adds to one of them, against the cost of a clip."""
    names = {"one of them": "member/top1_percent", "mean of the logits": "top1_percent"}
    names |= {"mean of the probabilities": "probabilities/top1_percent", "majority": "vote/top1_percent"}
    first = metrics[min(metrics)]
    if not all(f"{dataset}/{name}" in first for name in names.values()):
        return []
    macs, members = first[f"{dataset}/macs_per_clip"], first[f"{dataset}/members"]
    return [
        Figure(
            id="ensemble",
            title="The ensemble against one of its members",
            caption="Accuracy and cost of a clip; mean over seeds.",
            x_label="MMACs per clip",
            y_label="accuracy in percent",
            series=[
                seed_series(
                    title,
                    "points",
                    [macs / 1e6 / (members if name.startswith("member/") else 1)],
                    over_seeds(metrics, f"{dataset}/{name}")[:, None],
                )
                for title, name in names.items()
            ],
        )
    ]
