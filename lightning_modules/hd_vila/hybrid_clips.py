"""Video files as clips of high and low resolution, as HD-VILA shows them; texts and labels of `annotated_videos`."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch.utils.data import DataLoader

from lightning_modules.datamodules.annotated_videos import (
    AnnotatedVideos,
    Annotations,
    Batch,
    Size,
    Source,
    Words,
    check_one_caption,
)
from lightning_modules.datasets.splits import Part
from lightning_modules.hd_vila.hybrid import SMALLER, Hybrid
from lightning_modules.settings import Count, Positive, Share


class HybridClips(AnnotatedVideos):
    """Batches of `middle`, uint8 (batch clips 3 height width), and `neighbours`, (batch clips frames-1 3 low_h low_w).

    Neighbours have a quarter of the height and the width, and are in the order of time: those before the middle, then
    those behind it. Texts and labels: see `AnnotatedVideos`. How clips are taken and cut: see `hybrid.Hybrid`.
    Training draws the middles, one part of the frame for all of a video's frames, and whether it is mirrored;
    evaluation spreads the middles evenly and shows the centre. (The official code keeps a smaller last batch.)

    Args:
        clips: that training shows of a video.
        evaluation_clips: that are judged.
        frames: of a clip, the middle one included: an odd number.
        stride: frames from one to the next, at `rate`.
        rate: frames a second that a video is brought to first; null for its own.
        source_size: height and width to which a frame is brought.
        size: height and width that are cut from it, multiples of four.
        middles: `original`: cut from the frame; `upsampled`: scaled up from a quarter of it, as the official code
            fine-tunes on MSR-VTT and TGIF.
        padded: whether frames keep their aspect, in a grey square; `source_size` is then that square, and `size` too.
        flip: share of the videos that are mirrored in training.

    Other args: see `AnnotatedVideos`.

    Raises:
        ValueError: a split is unknown, or a value does not fit the others.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        clips: Count,
        evaluation_clips: Count,
        frames: Count,
        stride: Count,
        rate: Positive | None = None,
        source_size: Size,
        size: Size,
        middles: Literal["original", "upsampled"],
        padded: bool = False,
        flip: Share = 0.0,
        tokenizer: str | None = None,
        text_length: Annotated[Count, Field(ge=3)] | None = None,
        sentences: Count | None = None,
        source: Source | None = None,
        batch_size: Count | None = None,
        evaluation_batch_size: Count,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, tokenizer=tokenizer, text_length=text_length, sentences=sentences,
            source=source, batch_size=batch_size, evaluation_batch_size=evaluation_batch_size, mirror=mirror,
            max_broken=max_broken,
        )  # fmt: skip
        self.clips, self.evaluation_clips, self.rate, self.flip = clips, evaluation_clips, rate, flip
        self.hybrid = Hybrid(frames, stride, tuple(source_size), tuple(size), middles, padded)
        self.frames = frames

    @property
    def middle_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a middle frame."""
        return 3, *self.hybrid.size

    def videos(self, split: str) -> "ClipsOfVideos":
        """The videos of a split with their texts.

        Raises:
            ValueError: see `annotations`.
            DataUnavailable: there is no folder of videos.
        """
        return ClipsOfVideos(self.home(), self.annotations(split), self)

    def train_dataloader(self) -> DataLoader:
        """The training batches of this process, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on.
        """
        self._check_training()
        return self._loader(self.videos("train"), self._video_bytes(self.clips), named)

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split in the order of its rows, broken videos left out; see `LongVideos`.

        Raises:
            ValueError: a video of another split has several captions, or too many are broken.
        """
        videos = self.videos(split)
        if split != "val":
            check_one_caption(videos.said, split)
        return self._evaluation(videos, named, self._video_bytes(self.evaluation_clips))

    def _video_bytes(self, clips: int) -> int:
        pixels = math.prod(self.middle_shape)
        return clips * (pixels + (self.hybrid.frames - 1) * pixels // SMALLER**2)


class ClipsOfVideos:
    """Videos as clips of two resolutions, decoded one by one; see `HybridClips`.

    Args:
        folder: of the files.
        said: texts and labels.
        shown: the settings.
    """

    def __init__(self, folder: Path, said: Annotations, shown: HybridClips):
        self.folder, self.said, self.files = folder, said, said.columns["files"]
        self.hybrid, self.rate, self.flip = shown.hybrid, shown.rate, shown.flip
        self.clips, self.evaluation_clips = shown.clips, shown.evaluation_clips
        if several := [files for files in self.files if len(files) > 1]:
            raise ValueError(
                f"{len(several)} rows are runs of clips, the first of {len(several[0])}, from {several[0][0]} on: "
                "prepare single videos, or show runs with LongVideos."
            )

    def read(self, row: int, words: Words | None) -> Batch:
        """`video`, the middles (clips height width 3), `neighbours`, and what is said; see `Videos`."""
        clips, drawn, text = self.evaluation_clips, {}, None
        if words is not None:
            middles, crop, further = words
            clips, text, mirrored = self.clips, further >> 32, (further & 0xFFFFFFFF) / 2.0**32 < self.flip
            drawn = {"middles": middles, "crop": crop, "mirrored": mirrored}
        high, low = self.hybrid.read(self.folder / self.files[row][0], clips, rate=self.rate, **drawn)
        neighbours = torch.from_numpy(low).permute(0, 1, 4, 2, 3).contiguous()
        return {"video": torch.from_numpy(high), "neighbours": neighbours} | self.said.read(row, word=text)


def named(batch: Batch) -> Batch:
    """A batch with `video` (batch 3 clips height width) as `middle` (batch clips 3 height width)."""
    rest = {name: x for name, x in batch.items() if name != "video"}
    return {"middle": batch["video"].transpose(1, 2).contiguous()} | rest
