"""Answers of a trained MoViNet about video files: after each frame if the network is causal."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange

from lightning_modules.datasets.video.files import evenly, read_frames
from lightning_modules.movinet.module import MoViNets
from lightning_modules.predictors import Predictor


class Watcher(Predictor):
    """Reads videos as the network was trained to: as many frames, spread evenly, brought to its size.

    Args:
        module: the trained networks.
        record: what `predictors.load` passes on; not needed.
    """

    def __init__(self, module: MoViNets, record: dict | None = None):
        self.module = module.eval()

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The most probable class: after each frame, with the milliseconds that it took, or once for a whole video.

        A causal network keeps nothing but its state from one frame to the next. Several members, which read every
        second frame in turn, answer once.

        Raises:
            BrokenVideo: the file is not there or cannot be decoded.
        """
        choose = partial(evenly, shown=self.module.frames)
        video = torch.from_numpy(read_frames(Path(path), choose, self.module.size, antialias=True))
        video = rearrange(video, "t h w c -> 1 c t h w").to(self.module.device)
        if len(self.module.networks) > 1 or not self.module.networks[0].causal:
            with torch.inference_mode():
                logits = self.module(video)
            yield _best(logits[0])
            return
        state = None
        for number, frame in enumerate(self.module.read(video).split(1, dim=2), start=1):
            start = time.perf_counter()
            with torch.inference_mode():
                logits, state = self.module.networks[0].stream(frame, state)
            found = _best(logits[0, 0])
            yield {"frame": number, **found, "milliseconds": round(1000 * (time.perf_counter() - start), 1)}


def _best(logits: torch.Tensor) -> dict[str, Any]:
    share, best = logits.softmax(0).max(0)
    return {"class": int(best), "probability": round(float(share), 6)}
