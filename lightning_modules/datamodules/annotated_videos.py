"""Video files with sentences, questions or classes, decoded when they are trained on: long videos, clip after clip.

`LongVideos` shows them as LF-VILA does (NeurIPS 2022, `LF-VILA/src/datasets/`); `hybrid_clips` has HD-VILA's way, with
the same texts and labels. Broken videos and orders are handled as in `video_file_texts`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules import video_file_texts
from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datamodules.streamed import TRIES, random_box
from lightning_modules.datamodules.video_file_texts import VideoFileBatches
from lightning_modules.datasets.download import find
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.datasets.splits import Part, check_splits, draw_splits
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.tokenizers import TextTokenizer, published_tokenizer
from lightning_modules.datasets.video.annotated import OUTSIDE, merged
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.files import BrokenVideo, evenly, jittered
from lightning_modules.datasets.video.showing import read_shown, scaled
from lightning_modules.processes import loader_workers, outlive_signals
from lightning_modules.settings import Count, Share

Batch = dict[str, Tensor]
Words = tuple[int, int, int]  # large random integers that decide what training shows of a row
Size = Annotated[list[Count], Field(min_length=2, max_length=2)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]
Source = Literal["caption", "auxiliary_caption", "subtitle"]


class AnnotatedVideos(LightningDataModule):
    """Rows, texts and labels of prepared videos; what is shown of them is up to `LongVideos` or `HybridClips`.

    A batch has, as the task of the prepared data set asks for:
    - `token_ids` and `attention_mask` (True = keep), int64 and bool: (batch sentences length) of a paragraph or a
      question; with options to choose from (batch options sentences length). Without `sentences` that axis is missing.
      A missing sentence is all padding, and masked. Classes without a question have no texts.
    - `labels`, int64 (batch,): number of the answer, the option, the class, or what is counted. Questions whose answer
      is not in the vocabulary are left out of training; elsewhere their label is -1: whatever is answered is wrong.
    - `kinds`, int64 (batch,): of the question, an index into the property `kinds`; only where there are kinds.
    - `sentence_times`, float32 (batch sentences 2): seconds at which sentences begin and end, NaN for missing ones; only
      of paragraphs whose times are known.
    - `broken`: the videos that were left out for this batch.

    A paragraph of more sentences is shortened by `merged`. What is asked comes in this order: question, option,
    subtitles, which fill up what is left of `sentences`. Without `sentences` everything is one text, joined by blanks.

    Args:
        folder: an index that `video.annotated.prepare` has written, or one of `video.corpora.prepare`.
        seed: decides the rows of the splits and, with the epoch, order, frames, crops and sentences.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        tokenizer: see `published_tokenizer`; null for classes without a question.
        text_length: tokens of a sentence, start and end included; longer ones are cut. Null without tokenizer.
        sentences: that a row has; null to join them.
        source: column with the sentences in an index of `video.corpora`: of several, training draws one anew in each
            epoch, and evaluation refuses them. Null for an index of `video.annotated`.
        batch_size: videos of one optimiser step, over all processes and accumulated batches; null where nothing is
            trained.
        keep_last: whether what remains of an epoch's videos is a smaller last batch, see `VideoFileTexts`.
        evaluation_batch_size: videos that are judged at a time.
        mirror: local folder with the copy of the videos; the environment variable REPRISE_MIRROR wins over it.
        max_broken: largest share of broken videos, see `skipped.Skipped`.

    Raises:
        ValueError: a split is unknown, or the settings of texts do not fit each other or the prepared data.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        tokenizer: str | None,
        text_length: int | None,
        sentences: int | None,
        source: Source | None,
        batch_size: int | None,
        keep_last: bool,
        evaluation_batch_size: int,
        mirror: str | None,
        max_broken: float,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        if (tokenizer is None) != (text_length is None):
            raise ValueError(
                f"tokenizer is {tokenizer!r} and text_length is {text_length}: give both, or null for both where there "
                "are no texts."
            )
        self.folder, self.seed, self.splits = folder, seed, splits
        self.tokenizer_name, self.text_length, self.sentences, self.source = tokenizer, text_length, sentences, source
        self.batch_size, self.keep_last = batch_size, keep_last
        self.evaluation_batch_size, self.mirror, self.max_broken = evaluation_batch_size, mirror, max_broken


class LongVideos(AnnotatedVideos):
    """Batches of `video`, uint8 (batch channels clips*frames height width), the frames of the first clip first.

    And `clip_times`, float32 (batch clips), the second in the middle of each clip; where spans of answers are known,
    `frame_labels`, int64 (batch clips*frames), 1 for frames within the span, and `frame_weights`, float32, of equal sums
    for both classes (`span_labels`). Texts and labels: see `AnnotatedVideos`.

    A single file is cut into as many equal clips, its frames chosen by `video.files.jittered` for training and by
    `evenly` for evaluation. Of a run of clips, training takes some in a row that begin anywhere (the official code never
    takes the last ones), evaluation the first, and of each clip its first frame and others evenly, the last one never
    (`beginnings`). Training cuts the same random part out of all frames (`random_box`) and mirrors half of the videos;
    evaluation brings frames to `whole`, cuts the central share `central` of both sides and scales it to `size`.

    Args:
        clips: that a video is shown as, M.
        frames: of each clip.
        size: height and width of a frame.
        whole: height and width to which a frame is brought before its centre is cut for evaluation.
        central: share of both sides that is cut then.
        area: least and greatest share of a frame that a training crop has.
        flip: whether half of the videos are mirrored in training.

    Other args: see `AnnotatedVideos`.

    Raises:
        ValueError: a split is unknown, or a value does not fit the others or the prepared data.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        clips: Count,
        frames: Count,
        size: Size,
        whole: Size,
        central: Share,
        area: Range,
        flip: bool = True,
        tokenizer: str | None = None,
        text_length: Annotated[Count, Field(ge=3)] | None = None,
        sentences: Count | None = None,
        source: Source | None = None,
        batch_size: Count | None = None,
        keep_last: bool = False,
        evaluation_batch_size: Count,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, tokenizer=tokenizer, text_length=text_length, sentences=sentences,
            source=source, batch_size=batch_size, keep_last=keep_last, evaluation_batch_size=evaluation_batch_size,
            mirror=mirror, max_broken=max_broken,
        )  # fmt: skip
