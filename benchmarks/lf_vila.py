"""LF-VILA: windows that grow with depth against windows over all frames, and training steps against the official form.

The windows have the levels of the paper with one block each, at an eighth of its widths and a quarter of its height and
width. The official form is what the official code computes, written out: attention that holds all its scores, and in
stage two logits of words at all 393 places, where ours has them at the masked ones.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_modules.layers.bert import make_bert, run_layers
from lightning_modules.lf_vila.network import VideoSwin, attention_elements
from lightning_modules.metrics.memory import peak_bytes

LENGTHS = (32, 64, 128, 256)
SIZE = (48, 80)
LEVELS = ((1, 2, True), (1, 4, True), (2, 8, False), (2, 16, False), (2, 16, True), (4, 32, False))
REPEATS = 3
PAPER = ((1, 4, True, 2), (1, 8, True, 4), (1, 16, False, 8), (1, 16, False, 16), (1, 16, True, 16), (1, 32, False, 32))
TRAINED = (96, 160)  # half of the paper's sides
PLACES, MASKED = (2, 393), 30  # two paragraphs with their videos, 200 words of which 15 % are masked
OFFICIAL = partial(sdpa_kernel, SDPBackend.MATH)
PART = 12  # of the layers and of the vocabulary of BERT-large's upper half


def main() -> list[dict]:
    """A row for each length; CPU time of one thread, and the most bytes of all tensors while the scores are held."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    growing = _encoder()
    return [*(_row(growing, _encoder(frames), frames) for frames in LENGTHS), _stage_one(), _stage_two()]


def _encoder(frames: int | None = None) -> VideoSwin:
    levels = [
        {"depth": 1, "heads": heads, "window": [frames or window, 3, 5], "merge": merge}
        for heads, window, merge in LEVELS
    ]
    return VideoSwin(patch=[1, 8, 8], width=16, levels=levels, local_window=frames or 8, drop_path=0.0).eval()


@torch.inference_mode()
def _row(growing: VideoSwin, full: VideoSwin, frames: int) -> dict:
    video = torch.rand(1, 3, frames, *SIZE)
    seconds = {encoder: [] for encoder in (growing, full)}
    for _ in range(REPEATS):
        for encoder, times in seconds.items():
            start = time.process_time()
            encoder(video)
            times.append(time.process_time() - start)
    ours, theirs = (median(times) for times in seconds.values())
    with sdpa_kernel(SDPBackend.MATH):
        small, large = (peak_bytes(partial(encoder, video)) for encoder in (growing, full))
    few, many = (max(attention_elements(encoder, frames, *SIZE)) for encoder in (growing, full))
    return {
        "what": f"{frames} frames of {SIZE[0]} x {SIZE[1]}",
        "growing windows, ms of CPU": 1000 * ours,
        "all frames, times the time": theirs / ours,
        "growing windows, MB": small / 1e6,
        "all frames, times the memory": large / small,
        "all frames, times the scores": many / few,
    }


def _stage_one() -> dict:
    """Forward and backward of the video encoder at the paper's widths, one block a level, 32 smaller frames."""
    levels = [
        {"depth": depth, "heads": heads, "window": [window, 3, 5], "merge": merge}
        for depth, heads, merge, window in PAPER
    ]
    encoder = VideoSwin(patch=[1, 8, 8], width=128, levels=levels, local_window=8, drop_path=0.0)
    video = torch.rand(1, 3, 32, *TRAINED)

    def step() -> None:
        sum(x.mean() for x in encoder(video)).backward()

    what = f"training step, video encoder with one block a level, 32 frames of {TRAINED[0]} x {TRAINED[1]}"
    return _compared(what, step, step)


def _stage_two() -> dict:
    """Forward and backward of what stage two trains: of its layers and of the vocabulary a twelfth each."""
    sizes = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=12 // PART)
    bert = make_bert(sizes={**sizes, "vocab_size": 30522 // PART, "max_position_embeddings": 512})
    rows, places = PLACES
    states, mask = torch.randn(rows, places, 1024), torch.ones(rows, places, dtype=torch.bool)
    labels = torch.randint(0, 30522 // PART, (MASKED,))

    def step(everywhere: bool) -> None:
        read = run_layers(bert.bert.encoder.layer, states, mask)
        logits = bert.cls.predictions(read.flatten(0, 1) if everywhere else read[0, :MASKED])
        F.cross_entropy(logits[:MASKED], labels).backward()

    what = f"training step, stage two: 1/{PART} of layers and vocabulary, {rows} x {places} tokens"
    return _compared(what, partial(step, False), partial(step, True))


def _compared(what: str, ours: Callable[[], None], official: Callable[[], None]) -> dict:
    """Median of CPU seconds, in turns after a first run of each; attention of the official form holds its scores."""
    seconds = ([], [])
    for number in range(REPEATS):
        for found, step, form in zip(seconds, (ours, official), (nullcontext, OFFICIAL), strict=True):
            with form():
                start = time.process_time()
                step()
                if number:
                    found.append(time.process_time() - start)
    ours, official = map(median, seconds)
    return {"what": what, "ours, s": ours, "official form, s": official, "times faster": official / ours}
