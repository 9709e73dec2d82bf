"""What HD-VILA models are worth: retrieval, looks against motion, words that only the video tells. No torch."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.metrics.answers import accuracy, accuracy_of_choice, similarity_to_options
from lightning_modules.metrics.flow_report import flow_figures, flow_metrics
from lightning_modules.metrics.retrieval import retrieval
from lightning_modules.runs import Evaluation, Exhibit, Gallery, Picture, Run
from lightning_modules.settings import Count
from lightning_modules.video_tokens.playing import playing

NOT_MASKED = -1
LARGER = 3  # times that frames are larger on the page


def evaluate(runs: Sequence[Run], dataset: str, *, motions: Count | None = None, split: str = "test") -> Evaluation:
    """Judge the seeds of one arm, or of all arms of a comparison, whose metrics end in `@<arm>`.

    Metrics of features: those of `metrics.retrieval` in both directions, `macs_per_video` and `parameters`; where
    `motions` is given also `look/top1_percent` and `motion/top1_percent`, whether what moves and how it moves is right
    in the text that comes first. Of the hybrid `cnn_macs` and `cnn_macs_all_high`. Of masked words
    `words/top1_percent`, and `words_apart/top1_percent` with another video; of words that the texts do not share
    `telling/top1_percent` and `telling_apart/top1_percent`. Of answers, and of choice by a network for it or by the
    similarity of features, `accuracy_percent`. Where texts are read together with clips also `flow/...`, see
    `metrics.flow_report`.

    Args:
        runs: finished runs, one for each seed and arm.
        dataset: first part of every metric's name.
        motions: labels are look x `motions` + motion; null where they say no such thing.
        split: rows that are judged.
    """
    metrics: dict[int, dict[str, float]] = {}
    figures, galleries = [], []
    drawn = min(runs, key=lambda run: (run.name.split("/"), run.seed), default=None)  # of the paper's own arm
    for run in runs:
        stored = run.predictions()
        arrays = {name.removesuffix(f"/{split}"): x for name, x in stored.items() if name.endswith(f"/{split}")}
        found = measured(arrays, motions) | flow_metrics(arrays)
        for name in ("parameters", "macs_per_video", "cnn_macs", "cnn_macs_all_high"):
            if name in run.facts:
                found[name] = float(run.facts[name])
        arm, _, protocol = run.name.partition("/")
        first, last = (f"{dataset}/{protocol}", f"@{arm}") if protocol else (dataset, "")
        metrics.setdefault(run.seed, {}).update({f"{first}/{name}{last}": value for name, value in found.items()})
        figures += flow_figures(arrays) if run is drawn else []
        if run is drawn and "shown" in arrays and not protocol:
            galleries.append(examples(arrays))
    return Evaluation(metrics=metrics, figures=figures, galleries=galleries)


def measured(arrays: Mapping[str, np.ndarray], motions: int | None) -> dict[str, float]:
    """All that is said of one run, by what it predicted."""
    if "answers" in arrays:
        return accuracy(arrays["answers"], arrays["labels"])
    if "scores" in arrays:
        return accuracy_of_choice(arrays["scores"], arrays["labels"])
    if "options" in arrays:
        return accuracy_of_choice(similarity_to_options(arrays["videos"], arrays["options"]), arrays["labels"])
    if "words" in arrays:
        return _words(arrays["words"], arrays["found"], "") | _words(arrays["words"], arrays["found_apart"], "_apart")
    similarity, belongs = arrays["texts"] @ arrays["videos"].T, arrays["belongs"]
    found = retrieval(similarity, np.arange(len(similarity)), belongs)
    if motions is not None:
        found |= _halves(similarity, belongs, arrays["labels"], motions)
    return found


def _halves(
    similarity: Float[np.ndarray, "texts videos"],
    belongs: Int[np.ndarray, " videos"],
    labels: Int[np.ndarray, " videos"],
    motions: int,
) -> dict[str, float]:
    """Whether look and motion are right in the text that comes first; a tie is lost."""
    label_of = np.empty(len(similarity), np.int64)  # every text has a video
    label_of[belongs] = labels
    found = {}
    for name, part in (("look", label_of // motions), ("motion", label_of % motions)):
        own = part[:, None] == part[belongs]
        best = np.where(own, similarity, -np.inf).max(0) > np.where(own, -np.inf, similarity).max(0)
        found[f"{name}/top1_percent"] = 100 * float(best.mean())
    return found


def _words(words: Int[np.ndarray, "rows length"], found: Int[np.ndarray, "rows length"], how: str) -> dict[str, float]:
    masked = words != NOT_MASKED
    telling = masked & (words != words[0]).any(0)  # places at which two texts differ
    right = words == found
    return {
        f"words{how}/top1_percent": 100 * float(right[masked].mean()),
        f"telling{how}/top1_percent": 100 * float(right[telling].mean()),
    }


def examples(arrays: Mapping[str, np.ndarray]) -> Gallery:
    """The first drawn videos as they were read, with the sentences or words that were found for them."""
    tokenizer, rows = tokenizer_called("world"), []
    for place, frames in enumerate(arrays["shown"]):
        row = [playing("read", frames)]
        if len(frames) > 1:
            sharp = frames[len(frames) // 2].repeat(LARGER, 0).repeat(LARGER, 1)
            row.append(
                Exhibit("its middle", Picture.of(sharp, "the middle frame of the clip, as the network reads it"))
            )
        if "words" in arrays:
            named = {"words": "found", "words, with another clip": "found_apart"}
            own = arrays["words"][place]
            row += [Exhibit(name, text=_told(tokenizer, own, arrays[key][place])) for name, key in named.items()]
        else:
            best = int((arrays["texts"] @ arrays["videos"][place]).argmax())
            (sentence,) = tokenizer.decode(arrays["sentences"][[best]])
            row.append(Exhibit("sentence", text=[(sentence, bool(best == arrays["belongs"][place]))]))
        rows.append(row)
    caption = "Clips as they are read, in a loop, and their middle frames. "
    if "words" in arrays:
        return Gallery("words", "Masked words", caption + "Each word was found with itself masked. Test rows.", rows)
    return Gallery("sentences", "Sentences of clips", caption + "The sentence that comes first. Test rows.", rows)


def _told(
    tokenizer: TextTokenizer, words: Int[np.ndarray, " length"], found: Int[np.ndarray, " length"]
) -> list[tuple[str, bool | None]]:
    """Words that were found, each right or wrong, with spaces between."""
    masked = np.flatnonzero(words != NOT_MASKED)
    said = tokenizer.decode(found[masked][:, None])
    return [(f"{word} ", bool(words[place] == found[place])) for word, place in zip(said, masked, strict=True)]
