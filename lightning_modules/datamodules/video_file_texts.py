"""Video files with sentences, decoded when they are trained on; the same batches as `datamodules.video_texts`.

A video that cannot be read is left out, counted in the batch (`broken`) and logged; too many of them raise an error. In
training, a video of a later step takes its place, so that all ranks keep batches of one size.
"""

import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.datamodules.labelled import EpochSteps, portion
from lightning_modules.datamodules.video_texts import BETWEEN, COLUMNS, Batch, Source, check_sources
from lightning_modules.datasets.download import find
from lightning_modules.datasets.skipped import Skipped
from lightning_modules.datasets.splits import (
    AUGMENTATION,
    ORDER,
    WHOLE,
    Part,
    Portion,
    check_splits,
    draw_splits,
    permutation,
    random_words,
)
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.tokenizers import TextTokenizer, published_tokenizer
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.files import BrokenVideo, evenly, jittered, read_frames, strided
from lightning_modules.processes import loader_workers, outlive_signals
from lightning_modules.settings import Count, Natural, Share

FIRST_FRAME, LAST_FRAME, SENTENCE = range(3)  # what the copies of `random_words` decide


class VideoFileTexts(LightningDataModule):
    """Batches as those of `VideoTexts`, without labels, with `broken`, the number of videos left out for each batch.

    Frames are chosen by `video.files.jittered` for training and by `evenly` for evaluation, or by `strided`. Of
    several sentences of a source, training takes one that is drawn anew in each epoch, and evaluation refuses them.

    Args:
        folder: an index that `video.corpora.prepare` has written.
        seed: decides the rows of the splits and, with the epoch, order, frames and sentences.
        splits: for each split (train, val, test) its source and number of rows, see `datasets.splits.draw_splits`.
        sources: see `VideoTexts`.
        tokenizer: see `published_tokenizer`.
        text_length: tokens of a sentence, start and end included; longer ones are cut.
        frames: that are shown of a video.
        sentences: that training takes of each source at once, for `mil_nce`; the ids of a batch then have an axis more,
            (batch sentences length).
        sample_rate: frames between two that are shown, see `video.files.strided`; 0 to spread them over the video.
        image_size: side to which they are brought, see `video.files.read_frames`.
        antialias: whether the filter widens as they shrink, see `video.files.resized`.
        batch_size: videos of one optimiser step, over all processes and accumulated batches, see `labelled.portion`;
            null where nothing is trained.
        keep_last: whether what remains of an epoch's videos is a smaller last batch, as in CLIP-ViP's official code, or
            is left out. See `max_steps`.
        mirror: local folder with the copy of the videos; the environment variable REPRISE_MIRROR wins over it.
        max_broken: largest share of broken videos, see `skipped.Skipped`.

    Raises:
        ValueError: a split or source is unknown or named twice.
    """

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        splits: dict[str, Part],
        sources: Annotated[list[Source], Field(min_length=1)],
        tokenizer: str,
        text_length: Annotated[Count, Field(ge=3)],
        frames: Count,
        sentences: Count = 1,
        sample_rate: Natural = 0,
        image_size: Count,
        antialias: bool = False,
        batch_size: Count | None = None,
        keep_last: bool = False,
        evaluation_batch_size: Count,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__()
        check_splits(splits, batch_size)
        check_sources(sources)
        self.folder, self.seed, self.splits, self.sources = folder, seed, splits, sources
        self.tokenizer_name, self.text_length = tokenizer, text_length
        self.frames, self.image_size, self.antialias = frames, image_size, antialias
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.sentences, self.sample_rate, self.keep_last = sentences, sample_rate, keep_last
        self.mirror, self.max_broken = mirror, max_broken

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What cuts the sentences; `len` of it is the number of ids that a text tower has to know."""
        return published_tokenizer(self.tokenizer_name)

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Prepared split and row numbers of each split."""
        written = card(self.folder)["splits"]
        return draw_splits({split: facts["rows"] for split, facts in written.items()}, self.splits, self.seed)

    @property
    def num_classes(self) -> None:
        """Sentences are no classes here."""
        return None

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of the clips that a network gets."""
        return 3, self.frames, self.image_size, self.image_size

    def max_steps(self, epochs: int) -> int:
        """Steps after which a training ends, within an epoch if need be; -1 where whole epochs decide.

        Where last batches are kept, CLIP-ViP's official code trains for as many steps as the videos of all epochs would
        fill, and a smaller batch counts as one: 7,032 of 128 for 100 epochs of MSR-VTT's 9,000, so not quite 100.
        """
        return math.ceil(epochs * len(self.rows["train"][1]) / self.batch_size) if self.keep_last and epochs else -1

    def clips(self, split: str) -> "Clips":
        """The videos and sentences of a split.

        Raises:
            ValueError: a video has no sentence of a source.
            DataUnavailable: there is no folder of videos.
        """
        facts = card(self.folder)
        videos = find(facts["name"], facts["videos"], mirror=self.mirror, cache=Path(facts["cache"]))
        prepared, rows = self.rows[split]
        index = read_index(self.folder, prepared)
        texts = {}
        for source in self.sources:
            columns = zip(*(index[name][rows] for name in COLUMNS[source]), strict=True)
            texts[source] = said = [[BETWEEN.join(parts) for parts in product(*lists)] for lists in columns]
            if silent := [row for row, sentences in enumerate(said) if not sentences]:
                missing = " or no ".join(COLUMNS[source])
                raise ValueError(
                    f"{len(silent)} of {len(rows)} videos of split {prepared!r} have no {missing}, the first "
                    f"is {index['file'][rows[silent[0]]]}: take {source!r} out of sources, or prepare the captions."
                )
        files = index["file"][rows]
        return Clips(videos, files, texts, self.tokenizer, self.text_length, self.image_size, self.antialias)

    def train_dataloader(self) -> DataLoader:
        """The training batches of this process, the epoch set by Lightning; they are decoded by processes of its own.

        Raises:
            ValueError: there is no split to train on.
        """
        if "train" not in self.rows:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.rows)}), so epochs must be 0.")
        mine, clip_bytes = portion(self), 3 * (self.frames + 1) * self.image_size**2
        batches = VideoFileBatches(
            self.clips("train"),
            seed=self.seed,
            frames=self.frames,
            sentences=self.sentences,
            sample_rate=self.sample_rate,
            batch_size=self.batch_size,
            keep_last=self.keep_last,
            max_broken=self.max_broken,
            portion=mine,
        )
        return DataLoader(
            batches,
            sampler=EpochSteps(len(batches)),
            batch_size=None,
            num_workers=loader_workers(mine.processes, mine.rows(self.batch_size) * clip_bytes),
            worker_init_fn=outlive_signals,
            pin_memory=torch.cuda.is_available(),
        )

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split in the order of its rows, broken videos left out.

        In the split val, a video has the first of its sentences.

        Raises:
            ValueError: a video of another split has several sentences of a source, or too many are broken.
        """
        clips, skipped = self.clips(split), Skipped("videos", self.max_broken)
        several = any(len(sentences) > 1 for said in clips.texts.values() for sentences in said)
        if several and split != "val":
            raise ValueError(f"videos of split {split!r} have several sentences: list one for each to be judged on.")
        choose = partial(evenly, shown=self.frames)
        if self.sample_rate:
            choose = partial(strided, shown=self.frames, rate=self.sample_rate)
        for start in range(0, len(clips.files), self.evaluation_batch_size):
            found, broken = [], skipped.broken
            for row in range(start, min(start + self.evaluation_batch_size, len(clips.files))):
                try:
                    found.append(clips.read(row, choose))
                    skipped.read()
                except BrokenVideo as error:
                    skipped.skip(error)
            if found:
                yield _batch(found, skipped.broken - broken)


class Clips(NamedTuple):
    """Videos with their sentences."""

    folder: Path
    files: np.ndarray
    texts: dict[str, list[list[str]]]
    tokenizer: TextTokenizer
    text_length: int
    image_size: int
    antialias: bool

    def read(self, row: int, choose: Callable[[int], np.ndarray], sentence: int = 0, sentences: int = 1) -> Batch:
        """Decode a video, and cut one of its sentences of each source; with auxiliary captions, its middle frame too.

        Args:
            row: of the video.
            choose: see `video.files.read_frames`.
            sentence: a number that decides which of them; larger ones begin anew.
            sentences: how many are taken; more than one are different ones.

        Raises:
            BrokenVideo: it cannot be decoded.
            ValueError: there are not as many sentences.
        """

        def with_middle(total: int) -> Int[np.ndarray, " shown_and_middle"]:
            return np.append(choose(total), total // 2)

        middle = "auxiliary" in self.texts
        frames = read_frames(
            self.folder / self.files[row],
            with_middle if middle else choose,
            self.image_size,
            antialias=self.antialias,
        )
        frames = torch.from_numpy(frames)
        found = {"video": frames[:-1], "images": frames[-1]} if middle else {"video": frames}
        for source, said in self.texts.items():
            if sentences > len(said[row]):
                raise ValueError(
                    f"{self.files[row]} has {len(said[row])} sentences of {source!r}, but data.sentences is "
                    f"{sentences}: lower it, or leave out such videos."
                )
            drawn = [sentence % len(said[row])]
            if sentences > 1:
                drawn = np.random.Philox(key=sentence).random_raw(len(said[row])).argsort(kind="stable")[:sentences]
            token_ids, attention_mask = self.tokenizer([said[row][number] for number in drawn], self.text_length)
            for name, x in (("token_ids", token_ids), ("attention_mask", attention_mask)):
                found[f"{source}_{name}"] = torch.from_numpy(x if sentences > 1 else x[0])
        return found


class VideoFileBatches(Dataset):
    """Training batches; item `(epoch, place)` depends on the seed, on that pair, and on which files are broken.

    A step has one place for each accumulated batch. A smaller last batch is cut into equal parts too; the first videos
    of the epoch fill up what is missing, as torch's DistributedSampler does. Each process that decodes counts on its
    own how many videos it found broken.

    Raises:
        ValueError: there are too few videos for a step, or a smaller last batch would be cut for accumulation.
    """

    def __init__(
        self,
        clips: Clips,
        *,
        seed: int,
        frames: int,
        sentences: int = 1,
        sample_rate: int = 0,
        batch_size: int,
        keep_last: bool = False,
        max_broken: float,
        portion: Portion = WHOLE,
    ):
        if keep_last and portion.accumulated > 1:
            raise ValueError(
                f"data.keep_last is true, but a smaller batch is not cut into {portion.accumulated} accumulated ones: "
                "set accumulate of conf/trainer to 1, or keep_last to false."
            )
        self.clips, self.seed, self.frames, self.batch_size = clips, seed, frames, batch_size
        self.sentences, self.sample_rate, self.keep_last = sentences, sample_rate, keep_last
        self.portion, self.part = portion, portion.rows(batch_size)
        self.places = portion.places(len(clips.files), batch_size)
        self.skipped, self.epoch = Skipped("videos", max_broken), -1

    def __len__(self) -> int:
        return self.places + (self.keep_last and len(self.clips.files) % self.batch_size > 0)

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        epoch, place = at
        if epoch != self.epoch:
            rows = len(self.clips.files)
            self.order = permutation(rows, self.seed, ORDER, epoch=epoch)
            self.words = np.stack([random_words(rows, self.seed, AUGMENTATION, copy, epoch) for copy in range(3)])
            self.epoch = epoch
        start = place * self.part * self.portion.processes
        part = min(self.part, math.ceil((len(self.order) - start) / self.portion.processes))
        found, broken = [], self.skipped.broken
        for row in self._candidates(start, part):
            try:
                found.append(self._read(row))
                self.skipped.read()
            except BrokenVideo as error:
                self.skipped.skip(error)
            if len(found) == part:
                return _batch(found, self.skipped.broken - broken)
        raise ValueError(f"only {len(found)} videos can be read, too few for a batch of {part}.")

    def _candidates(self, start: int, part: int) -> Iterator[int]:
        """The rows of a batch; then, for the broken among them, those of later places that no other process takes."""
        order, (rank, processes, _) = np.roll(self.order, -start), self.portion
        yield from order[rank * part : (rank + 1) * part].tolist()
        yield from order[processes * part :][rank::processes].tolist()

    def _read(self, row: int) -> Batch:
        first, last, sentence = (int(word) for word in self.words[:, row])
        choose = partial(jittered, shown=self.frames, words=(first, last))
        if self.sample_rate:
            choose = partial(strided, shown=self.frames, rate=self.sample_rate, words=(first, last))
        return self.clips.read(row, choose, sentence, self.sentences)


def _batch(clips: list[Batch], broken: int) -> dict[str, Tensor]:
    batch = {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}
    batch["video"] = rearrange(batch["video"], "b t h w c -> b c t h w").contiguous()
    if "images" in batch:
        batch["images"] = rearrange(batch["images"], "b h w c -> b c h w").contiguous()
    return batch | {"broken": torch.tensor(broken)}
