"""Answers of trained MoViNets about videos: after each frame if they are causal, also of a video that is running."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8

from lightning_modules.datasets.storage import card
from lightning_modules.datasets.video.files import evenly, read_frames, resized
from lightning_modules.datasets.video.sequences import central_square, in_the_middle
from lightning_modules.files import ROOT
from lightning_modules.movinet.decoding import Show, read_clip
from lightning_modules.movinet.evaluation import NAMES
from lightning_modules.movinet.live import running_frames
from lightning_modules.movinet.module import MoViNets
from lightning_modules.predictors import Predictor


class Watcher(Predictor):
    """Classifies videos, and names the class where names are known.

    Args:
        module: the trained networks.
        record: `dataset` and `data` of what it was trained on, see `predictors.load`.
    """

    def __init__(self, module: MoViNets, record: dict | None = None):
        self.module, record = module.eval(), record or {}
        self.names = _names(record["dataset"]) if "dataset" in record else {}
        data = record.get("data", {})
        self.files = data if "rate" in data else None  # settings of `ClipFiles`

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """The most probable class of a file, of which the networks see what they were judged on.

        If they learnt from files, that is the clip in the middle of it, with their rate and the central square of each
        frame; otherwise as many frames, spread evenly, each squeezed into a square. Causal networks answer after each
        of them (see `watch`), others once.

        Yields:
            `class`, `name` if it is known, and `probability`. Where clips have any number of classes, this is that of
            the class being there, whatever else is. Where they have a verb and a noun, `verb`, `verb_name`,
            `verb_probability`, and the same of the noun.

        Raises:
            BrokenVideo: the file is not there or cannot be decoded.
        """
        video = self._clip(Path(path))
        if self._causal:
            yield from self._after_each(video)
            return
        with torch.inference_mode():
            logits = self.module(rearrange(torch.from_numpy(video), "t h w c -> 1 c t h w").to(self.module.device))
        yield self._best(logits[0])

    def watch(self, source: str, fps: int | float | None = None) -> Iterator[dict[str, Any]]:
        """The most probable class after each frame of a running video, from its beginning, until it ends.

        Nothing is kept but the state of the networks and their last logits, so a video may be of any length. Several
        members, each of which reads its own frames, answer with the mean of their last logits. After the last frame
        this is the answer about all frames as one clip.

        Args:
            source: `-` for standard input, or `webcam:0`, see `live.running_frames`.
            fps: frames a second that are shown to the networks; by default as many as they learnt from, or all where
                they have no rate.

        Yields:
            `frame`, its number among those that are shown; what `answer` says of a class; and `milliseconds` that the
            networks took.

        Raises:
            ValueError: the networks are not causal, or the source cannot be read.
        """
        if not self._causal:
            raise ValueError(
                f"this network sees later frames, so it cannot answer about {source} before its end; expected a causal "
                "one (model.causal: true), or a file"
            )
        if fps is None and self.files:
            fps = self.files["rate"] / self.files["temporal_stride"]
        yield from self._after_each(running_frames(source, self._show, fps))

    def _clip(self, path: Path) -> UInt8[np.ndarray, "frames size size 3"]:
        if not self.files:
            return read_frames(path, partial(evenly, shown=self.module.frames), self.module.size, antialias=True)
        choose = partial(in_the_middle, shown=self.module.frames, stride=self.files["temporal_stride"])
        return read_clip(path, choose, self._show, rate=float(self.files["rate"]))

    @property
    def _show(self) -> Show:
        """What becomes of a frame."""
        if not self.files:
            return partial(resized, size=self.module.size, antialias=True)
        return partial(central_square, short_side=self.files["short_side"], size=self.module.size)

    @property
    def _causal(self) -> bool:
        return self.module.networks[0].causal

    def _after_each(self, frames: Iterable[UInt8[np.ndarray, "size size 3"]]) -> Iterator[dict[str, Any]]:
        networks, stride = self.module.networks, self.module.stride
        states, logits = [None] * len(networks), {}
        for number, frame in enumerate(frames):
            reading = [m for m in range(len(networks)) if m % stride == number % stride]
            if not reading:
                continue
            start = time.perf_counter()
            with torch.inference_mode():
                pixels = self.module.read(rearrange(torch.tensor(frame), "h w c -> 1 c 1 h w").to(self.module.device))
                for m in reading:
                    answer, states[m] = networks[m].stream(pixels, states[m])
                    logits[m] = answer[0, 0]
                found = self._best(torch.stack([*logits.values()]).mean(0))
            yield {"frame": number + 1, **found, "milliseconds": round(1000 * (time.perf_counter() - start), 1)}

    def _best(self, logits: Float[torch.Tensor, " classes"]) -> dict[str, Any]:
        """The most probable class; of clips with one class of each kind, such as verb and noun, that of each kind."""
        targets = self.module.targets
        if not isinstance(targets, list):
            shares = logits.sigmoid() if targets == "many" else logits.softmax(0)
            return self._told(shares, "action")
        parts = logits.split([count for _, count in targets])
        each = {kind: self._told(part.softmax(0), kind) for (kind, _), part in zip(targets, parts, strict=True)}
        return {
            kind if key == "class" else f"{kind}_{key}": value
            for kind, found in each.items()
            for key, value in found.items()
        }

    def _told(self, shares: Float[torch.Tensor, " classes"], kind: str) -> dict[str, Any]:
        share, best = shares.max(0)
        names = self.names.get(kind, [])
        name = {"name": names[best]} if best < len(names) else {}
        return {"class": int(best), **name, "probability": round(float(share), 6)}


def _names(dataset: str) -> Mapping[str, Sequence[str]]:
    """Names of the classes of each kind, where a data set has them: its card says them, if it is prepared here.

    Args:
        dataset: its folder, from the project's.
    """
    if (name := Path(dataset).parent.name) in NAMES:
        return {"action": NAMES[name]}
    folder = ROOT / dataset
    return card(folder).get("classes", {}) if (folder / "card.json").is_file() else {}
