"""Whole videos as few bits: what MAGVIT-v2's compression study judges (MCL-JCV, 30 videos of 640 x 360 pixels).

Read `WholeVideos.predictions` first. A causal tokenizer that was trained on squares of 128 pixels reads frames of any
size, as it is all convolutions, and videos of any length in parts. Frames that cannot be divided into tokens are
continued beyond their lower and right borders, videos that are too short for a token beyond their end; what is added
costs bits, and is neither judged nor counted as pixels.

- `SequenceCompression`: each token takes log2 K bits. 18 bits for 4 x 8 x 8 pixels are 0.0703 for each, and a little
  more, as the first frame has tokens of its own.
- `CodedSequences`: a generator's probabilities write the tokens, those of 17 frames of 128 x 128 pixels at a time, as
  it was trained on such clips.

How the paper shrinks the videos, cuts them into clips, and reaches 0.0384 bits per pixel is not known.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import log2
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from pytorch_lightning import LightningDataModule
from torch import Tensor

from lightning_modules.base import PaperModule
from lightning_modules.datasets.download import find
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.datasets.splits import Part, check_splits, draw_splits
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.datasets.video.raw_sequences import read_sequence, shrunk
from lightning_modules.layers.published import load_strictly
from lightning_modules.magvit2.codecs import CODECS, through
from lightning_modules.magvit2.compression import code_length
from lightning_modules.magvit2.module import Magvit2
from lightning_modules.metrics.frames import frame_scores
from lightning_modules.metrics.video_networks import PublishedNetworks
from lightning_modules.settings import Count, Natural, Positive, Share
from lightning_modules.validation import judged
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.causal_training import CausalTraining
from lightning_modules.video_tokens.training import stored

Video = Float[Tensor, "1 3 frames h w"]
NO_DISCRIMINATOR = {"width": 1, "multipliers": [1], "blur": True}  # nothing is trained


@runtime_checkable
class VideoData(Protocol):
    """Videos that are judged: `Sequences`, or clips of any kind."""

    rows: Mapping[str, object]

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows."""
        ...


class Sequences(LightningDataModule):
    """Test sequences, one to a batch: `video`, uint8 (1 3 frames height width).

    Args:
        folder: an index that `prepare` of `datasets.video.raw_sequences` has written.
        seed: decides which rows are judged, where these are not all.
        splits: its source and number of rows, see `datasets.splits.draw_splits`.
        shrink: pixels of a file, each way, whose mean is one here.
        frames: of a video that are judged, the first ones; null for all.
        batch_size: null, as nothing is trained.
        mirror: local folder with the copy of the videos; the environment variable REPRISE_MIRROR wins over it.
        max_broken: largest share of broken videos, see `skipped.Skipped`.

    Raises:
        ValueError: a split is unknown, or is to be trained on.
    """

    num_classes = 0

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        shrink: Count = 1,
        frames: Count | None = None,
        batch_size: None = None,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        self.folder, self.seed, self.splits, self.shrink, self.frames = folder, seed, splits, shrink, frames
        self.mirror, self.max_broken = mirror, max_broken

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Prepared split and row numbers of each split."""
        written = card(self.folder)["splits"]
        return draw_splits({split: facts["rows"] for split, facts in written.items()}, self.splits, self.seed)

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over the videos of a split in the order of its rows, broken ones left out.

        Raises:
            DataUnavailable: the videos are not there.
            ValueError: too many are broken, or cannot be shrunk.
        """
        (prepared, rows), facts = self.rows[split], card(self.folder)
        index = read_index(self.folder, prepared)
        place = facts["splits"][prepared]["videos"]
        where = find(facts["name"], place, mirror=self.mirror, cache=Path(facts["cache"]))
        skipped = Skipped("videos", self.max_broken)
        for row in rows:
            try:
                video = self._read(where / index["file"][row], int(index["height"][row]), int(index["width"][row]))
            except BrokenVideo as error:
                skipped.skip(error)
                continue
            skipped.read()
            yield {"video": torch.from_numpy(video).permute(3, 0, 1, 2)[None]}

    def _read(self, path: Path, height: int, width: int) -> UInt8[np.ndarray, "frames tall wide 3"]:
        found = []
        for frame in read_sequence(path, height, width):
            found.append(shrunk(frame, self.shrink))
            if len(found) == self.frames:
                break
        if not found:
            raise BrokenVideo(f"{path} holds no frame")
        return np.stack(found)


class WholeVideos(PaperModule):
    """What both have in common: videos of any size are compressed and compared; `epochs` is 0.

    Attributes:
        tokenizer: of clips.
        codecs: that the same videos go through, names of `codecs.CODECS`.
        published: files of the networks of published measures, see `metrics.video_networks.PublishedNetworks`.
    """

    tokenizer: CausalTokenizer
    codecs: list[str]
    published: dict

    def compressed(self, video: Video) -> tuple[Video, float]:
        """A video as it comes back, within 0 and 1, and the bits that it took."""
        raise NotImplementedError

    @classmethod
    def check_recipe(cls, recipe: Mapping[str, object], where: str) -> dict:
        """Refuse to train.

        Raises:
            ValueError: `epochs` is not 0.
        """
        if recipe.get("epochs") != 0:
            raise ValueError(
                f"{where}.epochs is {recipe.get('epochs')!r}, expected 0: the network is that of another arm."
            )
        return super().check_recipe(recipe, where)

    def check_data(self, data: VideoData) -> None:
        """Videos of any size will do."""

    @torch.no_grad()
    def predictions(self, data: VideoData, device: torch.device) -> dict[str, Tensor]:
        """Of each video of the split that is judged its `pixels`, the `bits` that it took, and how it comes back.

        That is `psnr`, and as far as they can be computed `ms_ssim` and `lpips`, see `metrics.frames`. Of each codec
        `codecs/<codec>/...` likewise, with a value for each of its qualities. Of the first video `shown/...`.
        """
        self.to(device).eval()
        networks = PublishedNetworks(**self.published, device=device)
        parts = defaultdict(list)
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                for row in batch["video"]:
                    truth = self.read(row[None].to(device))
                    again, bits = self.compressed(truth)
                    found = {"pixels": truth[0, 0].numel(), "bits": bits, **scores(again, truth, networks)}
                    for codec in self.codecs:
                        found |= {f"codecs/{codec}/{k}": x for k, x in self.coded(codec, truth, networks).items()}
                    for name, value in found.items():
                        parts[name].append(torch.tensor([value]))
                    if "shown/real" not in parts:
                        parts["shown/real"], parts["shown/drawn"] = [stored(truth)], [stored(again)]
        return {name: torch.cat(part).cpu() for name, part in parts.items()}

    def coded(self, codec: str, truth: Video, networks: PublishedNetworks) -> dict[str, list[float]]:
        """What a codec makes of a video at each of its qualities."""
        found = defaultdict(list)
        clip = stored(truth)[0].cpu().numpy()
        for quality in CODECS[codec].qualities:
            bits, again = through(clip, CODECS[codec], quality)
            found["bits"].append(float(bits))
            again = torch.from_numpy(again).permute(3, 0, 1, 2)[None].to(truth) / 255
            for name, value in scores(again, truth, networks).items():
                found[name].append(value)
        return found

    def facts(self) -> dict:
        """The vocabulary, and the names of the codecs."""
        return {"vocabulary": self.tokenizer.vocabulary, "codecs": self.codecs}


class SequenceCompression(WholeVideos, CausalTraining):
    """The tokenizer of the arm named by `from`, whose tokens take equally many bits each.

    Args:
        tokenizer: arguments of `CausalTokenizer`, those of the arm.
        part: frames that are read and drawn at a time, beside the first; a multiple of the frames of a token.
        alone: whether each part, with a first frame of its own, is a clip by itself, as in training. A tokenizer whose
            norms pool over frames reads no others. If not, parts go on from those before.
        codecs: see `WholeVideos`; null for none.
        published: likewise.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: an argument of the tokenizer, or a codec, is unknown; parts are no multiple of a token's frames, or
            must be alone.
    """

    def __init__(
        self,
        *,
        tokenizer: dict,
        part: Count = 16,
        alone: bool = False,
        codecs: list[str] | None = None,
        published: dict | None = None,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__(
            tokenizer=tokenizer, discriminator=NO_DISCRIMINATOR, published=published, pixel_scale=pixel_scale
        )
        del self.discriminator
        self.part, self.alone, self.codecs = part, alone, checked(codecs)
        if part % self.tokenizer.time:
            raise ValueError(
                f"model.part is {part}, expected a multiple of {self.tokenizer.time}, the frames of a token."
            )
        if self.tokenizer.pooled and not alone:
            raise ValueError(
                "model.tokenizer.pooled_norm is true, so that frames depend on all frames of a clip: set model.alone "
                "to true."
            )

    def compressed(self, video: Video) -> tuple[Video, float]:
        """See `WholeVideos`."""
        drawn, count = [], 0
        for clip in self.clips(video):
            tokens = list(map(self.tokenizer.encode, clip) if self.alone else self.tokenizer.encode_parts(clip))
            drawn += map(self.tokenizer.decode, tokens) if self.alone else self.tokenizer.decode_parts(tokens)
            count += sum(part.numel() for part in tokens)
        return cut(torch.cat(drawn, 2), video), count * log2(self.tokenizer.vocabulary)

    def clips(self, video: Video) -> Iterator[list[Video]]:
        """What is tokenised on its own, each in parts; see `padded`."""
        if self.alone:
            for clip in video.split(1 + self.part, 2):
                yield [padded(clip, self.tokenizer.time, self.tokenizer.space)]
        else:
            video = padded(video, self.tokenizer.time, self.tokenizer.space)
            later = video[:, :, 1 + self.part :]
            yield [video[:, :, : 1 + self.part], *(later.split(self.part, 2) if later.shape[2] else ())]


class CodedSequences(WholeVideos, Magvit2):
    """The generator of the arm named by `from`, whose probabilities write the tokens.

    Videos become clips of as many frames as it was trained on, and the tokens of such a clip squares of as many. The
    number of bits is that of an ideal coder, see `compression.code_length`.

    Args:
        tokenizer: arguments of `CausalTokenizer`, those of the arm.
        network: arguments of the transformer, likewise.
        num_classes: of the arm; no class is told.
        multi_task: whether the arm has task tokens.
        decoding: its `steps` and `schedule` say how many tokens are written at a time.
        codecs: see `WholeVideos`; null for none.
        published: likewise.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: an argument of the tokenizer, or a codec, is unknown.
    """

    def __init__(
        self,
        *,
        tokenizer: dict,
        network: dict,
        num_classes: Natural,
        multi_task: bool = False,
        decoding: dict | None = None,
        codecs: list[str] | None = None,
        published: dict | None = None,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__(
            tokenizer=tokenizer, network=network, num_classes=num_classes, tasks=["unc"], judged_tasks=["unc"],
            multi_task=multi_task, decoding=decoding, published=published, pixel_scale=pixel_scale,
        )  # fmt: skip
        self.codecs = checked(codecs)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the generator of a trained arm, with its tokenizer.

        Raises:
            ValueError: it is of another architecture.
        """
        own = {name: x for name, x in weights.items() if not name.startswith("judge.")}
        load_strictly(self, own, "the generator of the arm in `from`")

    def compressed(self, video: Video) -> tuple[Video, float]:
        """See `WholeVideos`."""
        drawn, bits = [], 0.0
        _, height, width = self.tokenizer.grid
        for clip in video.split(self.tokenizer.frames, 2):
            clip = padded(clip, self.tokenizer.time, self.tokenizer.size, self.tokenizer.frames)
            tokens = self.tokenizer.encode(clip)
            drawn.append(self.tokenizer.decode(tokens))
            squares = rearrange(tokens, "1 t (r h) (c w) -> (r c) (t h w)", h=height, w=width)
            bits += code_length(self.coding(len(squares)), self.subtokens(squares)).sum().item()
        return cut(torch.cat(drawn, 2), video), bits


def checked(codecs: list[str] | None) -> list[str]:
    """The codecs, none where there are none.

    Raises:
        ValueError: one is unknown.
    """
    if unknown := [codec for codec in codecs or [] if codec not in CODECS]:
        raise ValueError(f"model.codecs names {unknown[0]!r}, expected some of {', '.join(CODECS)}.")
    return list(codecs or [])


def scores(again: Video, truth: Video, networks: PublishedNetworks) -> dict[str, float]:
    """See `metrics.frames.frame_scores`."""
    return frame_scores(*(video[0].transpose(0, 1) for video in (again, truth)), networks)


def padded(video: Video, time: int, space: int, shortest: int = 1) -> Float[Tensor, "1 3 _ tall wide"]:
    """The last frame, row and column again, up to 1 + a multiple of `time` frames and to multiples of `space`.

    Args:
        video: of any size.
        time: frames of a token.
        space: pixels of a token, each way.
        shortest: frames that there are at least afterwards; 1 + a multiple of `time`.
    """
    frames, height, width = video.shape[2:]
    more = (0, -width % space, 0, -height % space, 0, max((1 - frames) % time, shortest - frames))
    return F.pad(video, more, mode="replicate") if any(more) else video


def cut(drawn: Float[Tensor, "1 3 _ tall wide"], video: Video) -> Video:
    """What was drawn, as large as the video and within 0 and 1."""
    frames, height, width = video.shape[2:]
    return drawn[:, :, :frames, :height, :width].clamp(0, 1)
