"""Video files with sentences, questions or classes, decoded when they are trained on: long videos, clip after clip.

`LongVideos` shows them as LF-VILA does (NeurIPS 2022, `LF-VILA/src/datasets/`); `hd_vila.hybrid_clips` has HD-VILA's
way, with the same texts and labels. Broken videos and orders are handled as in `video_file_texts`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
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
from lightning_modules.datasets.splits import WHOLE, Part, Portion, check_splits, draw_splits
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.tokenizers import TextTokenizer, published_tokenizer
from lightning_modules.datasets.video.annotated import merged
from lightning_modules.datasets.video.annotation_files import OUTSIDE
from lightning_modules.datasets.video.corpora import read_index
from lightning_modules.datasets.video.files import BrokenVideo, evenly, jittered
from lightning_modules.datasets.video.showing import Show, Shown, read_shown, scaled
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
    - `sentence_times`, float32 (batch sentences 2): seconds at which sentences begin and end, NaN for missing ones;
      only of paragraphs whose times are known.
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
            trained. Videos that do not fill a step are left out of that epoch.
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
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.mirror, self.max_broken = mirror, max_broken

    @cached_property
    def tokenizer(self) -> TextTokenizer | None:
        """What cuts the sentences; null where there are none."""
        return None if self.tokenizer_name is None else published_tokenizer(self.tokenizer_name)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The card of the prepared data."""
        return card(self.folder)

    @property
    def task(self) -> str:
        """What is asked: `captions` (of an index of `video.corpora`), or one of `annotation_files.Task`."""
        return self.facts.get("task", "captions")

    @property
    def num_classes(self) -> int | None:
        """Answers, options or classes; null where nothing is chosen."""
        return self.facts.get("labels") or len(self.facts.get("answers", ())) or None

    @property
    def kinds(self) -> list[str]:
        """Names of the kinds of questions, in the order of their numbers."""
        return self.facts.get("kinds", [])

    @cached_property
    def rows(self) -> dict[str, tuple[str, np.ndarray]]:
        """Prepared split and row numbers of each split; training leaves out questions that cannot be answered."""
        written = self.facts["splits"]
        drawn = draw_splits({split: facts["rows"] for split, facts in written.items()}, self.splits, self.seed)
        if "train" in drawn and self.task == "answers":
            source, rows = drawn["train"]
            labels = read_index(self.folder, source)["label"]
            drawn["train"] = source, rows[labels[rows] != OUTSIDE]
        return drawn

    def annotations(self, split: str) -> "Annotations":
        """What is said of the videos of a split, or asked about them.

        Raises:
            ValueError: the settings of texts do not fit the prepared data, or a video has no sentence.
        """
        prepared, rows = self.rows[split]
        columns = {name: values[rows] for name, values in read_index(self.folder, prepared).items()}
        if self.task == "captions":
            if self.source is None:
                raise ValueError(
                    f"source is null, but {self.folder} has several columns of sentences: name one of them."
                )
            columns = _of_captions(columns, self.source, prepared)
        elif self.source is not None:
            raise ValueError(
                f"source is {self.source!r}, but {self.folder} has one column of sentences: set it to null."
            )
        has_texts = any(map(len, columns["texts"])) or any(columns["question"]) or any(map(len, columns["options"]))
        if has_texts and self.tokenizer is None:
            raise ValueError(f"tokenizer is null, but {self.folder} has texts: name one, and text_length.")
        first = bool(columns["question"][0]) + bool(len(columns["options"][0]))
        if self.sentences is not None and self.sentences < first:
            raise ValueError(f"sentences is {self.sentences}, but a question and an option are {first}: raise it.")
        timed = self.task == "sentences" and self.sentences is not None and any(map(len, columns["starts"]))
        tokenizer = self.tokenizer if has_texts else None
        return Annotations(columns, self.task, self.kinds, tokenizer, self.text_length, self.sentences, timed)

    def home(self) -> Path:
        """The folder of the videos.

        Raises:
            DataUnavailable: it is not there.
        """
        facts = self.facts
        return find(facts["name"], facts["videos"], mirror=self.mirror, cache=Path(facts["cache"]))

    def _loader(self, videos: "Videos", video_bytes: int, finish: Callable[[Batch], Batch]) -> DataLoader:
        """The training batches of this process, the epoch set by Lightning; they are decoded by processes of its own.

        Args:
            videos: of the split.
            video_bytes: of one of them as it is shown.
            finish: what becomes of a batch.
        """
        mine = portion(self)
        batches = AnnotatedBatches(
            videos, finish, seed=self.seed, batch_size=self.batch_size, max_broken=self.max_broken, portion=mine
        )
        return DataLoader(
            batches,
            sampler=EpochSteps(len(batches)),
            batch_size=None,
            num_workers=loader_workers(mine.processes, mine.rows(self.batch_size) * video_bytes),
            worker_init_fn=outlive_signals,
            pin_memory=torch.cuda.is_available(),
        )

    def _evaluation(self, videos: "Videos", finish: Callable[[Batch], Batch], video_bytes: int) -> Iterator[Batch]:
        """One pass over the videos in their order, broken ones left out."""
        parts, skipped = Judged(videos, self.evaluation_batch_size, finish), Skipped("videos", self.max_broken)
        workers = loader_workers(1, self.evaluation_batch_size * video_bytes) if len(parts) > 1 else 0
        loader = DataLoader(
            parts, batch_size=None, num_workers=workers, worker_init_fn=outlive_signals, collate_fn=_as_it_is
        )
        for found, read, errors in loader:
            for _ in range(read):
                skipped.read()
            for error in errors:
                skipped.skip(BrokenVideo(error))
            if found is not None:
                yield found

    def _check_training(self) -> None:
        if "train" not in self.rows:
            raise ValueError(f"there is no split 'train' in data.splits ({list(self.rows)}), so epochs must be 0.")


def _of_captions(columns: Mapping[str, np.ndarray], source: str, split: str) -> dict[str, np.ndarray]:
    """The columns of an index of `video.corpora` as those of `video.annotated`."""
    said, files = columns[source], columns["file"]
    if silent := [row for row, sentences in enumerate(said) if not len(sentences)]:
        raise ValueError(
            f"{len(silent)} of {len(said)} videos of split {split!r} have no {source}, the first is "
            f"{files[silent[0]]}: name another source, or prepare the sentences."
        )

    def all_rows(value: object) -> np.ndarray:
        return np.fromiter((value for _ in said), object, len(said))

    lists = {"files": np.fromiter(([file] for file in files), object, len(files)), "texts": said}
    return lists | {"question": all_rows(""), "options": all_rows([]), "starts": all_rows([]), "ends": all_rows([])}


class Annotations(NamedTuple):
    """What is said of videos, or asked about them, as a network reads it; see `AnnotatedVideos`.

    Args:
        columns: of an index, see `annotation_files.Row`.
        task: what is asked.
        kinds: names of the kinds of questions.
        tokenizer: null where there are no texts.
        text_length: tokens of a sentence.
        sentences: of a row; null to join them.
        timed: whether the times of sentences are told.
    """

    columns: Mapping[str, np.ndarray]
    task: str
    kinds: Sequence[str]
    tokenizer: TextTokenizer | None
    text_length: int | None
    sentences: int | None
    timed: bool

    def read(self, row: int, *, word: int | None = None, part: slice = slice(None)) -> Batch:
        """Texts and labels of a row.

        Args:
            row: its number.
            word: a large random integer that draws one of several captions; null takes the first.
            part: of the texts, for a part of a run of clips.
        """
        said = {name: values[row] for name, values in self.columns.items()}
        found = self._texts(said, word or 0, part) if self.tokenizer is not None else {}
        if self.task in ("options", "answers", "count", "classes"):
            found["labels"] = torch.tensor(said["label"])
        if self.kinds:
            found["kinds"] = torch.tensor(self.kinds.index(said["kind"]) if said["kind"] else -1)
        return found

    def _texts(self, said: Mapping[str, Any], word: int, part: slice) -> Batch:
        texts, starts, ends = list(said["texts"]), said["starts"], said["ends"]
        if self.task == "captions":
            texts = [texts[word % len(texts)]]
        asked = [[*filter(None, (said["question"], option))] for option in (said["options"] or [""])]
        if self.sentences is None:
            joined = [" ".join([*before, *texts[part]]) for before in asked]
            token_ids, attention_mask = self.tokenizer(joined, self.text_length)
        else:
            room = self.sentences - len(asked[0])
            texts, starts, ends = merged(texts[part], room, starts, ends) if room else ([], [], [])
            cut = [self._padded([*before, *texts]) for before in asked]
            token_ids, attention_mask = (np.stack(x) for x in zip(*cut, strict=True))
        if self.task != "options":
            token_ids, attention_mask = token_ids[0], attention_mask[0]
        found = {"token_ids": torch.from_numpy(token_ids), "attention_mask": torch.from_numpy(attention_mask)}
        if self.timed:
            times = np.full((self.sentences, 2), np.nan, np.float32)
            times[: len(starts)] = np.reshape([*zip(starts, ends, strict=True)], (-1, 2))
            found["sentence_times"] = torch.from_numpy(times)
        return found

    def _padded(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "m length"], Bool[np.ndarray, "m length"]]:
        """Ids and masks of sentences, and of missing ones: all padding, masked."""
        token_ids = np.full((self.sentences, self.text_length), self.tokenizer.pad_id, np.int64)
        attention_mask = np.zeros((self.sentences, self.text_length), bool)
        token_ids[: len(texts)], attention_mask[: len(texts)] = self.tokenizer(texts, self.text_length)
        return token_ids, attention_mask


@runtime_checkable
class Videos(Protocol):
    """Videos that are read one by one."""

    files: np.ndarray  # as many as there are videos

    def read(self, row: int, words: Words | None) -> Batch:
        """One video with its texts and labels, as the integers decide; as evaluation shows it without them.

        Raises:
            BrokenVideo: it cannot be decoded.
        """
        ...


class AnnotatedBatches(VideoFileBatches):
    """Training batches, in the order of `VideoFileBatches`; what is shown of a video is up to `read` of the videos.

    Raises:
        ValueError: there are too few videos for a step.
    """

    def __init__(
        self,
        videos: Videos,
        finish: Callable[[Batch], Batch],
        *,
        seed: int,
        batch_size: int,
        max_broken: float,
        portion: Portion = WHOLE,
    ):
        self.clips, self.finish, self.seed, self.batch_size, self.keep_last = videos, finish, seed, batch_size, False
        self.portion, self.part = portion, portion.rows(batch_size)
        self.places = portion.places(len(videos.files), batch_size)
        self.skipped, self.epoch = Skipped("videos", max_broken), -1

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        return self.finish(super().__getitem__(at))

    def _read(self, row: int) -> Batch:
        return self.clips.read(row, tuple(int(word) for word in self.words[:, row]))


class Judged(Dataset):
    """Evaluation batches by their numbers: what could be read (null if nothing), how many, and why the others not."""

    def __init__(self, videos: Videos, batch_size: int, finish: Callable[[Batch], Batch]):
        self.videos, self.batch_size, self.finish = videos, batch_size, finish

    def __len__(self) -> int:
        return math.ceil(len(self.videos.files) / self.batch_size)

    def __getitem__(self, number: int) -> tuple[Batch | None, int, list[str]]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        found, errors, start = [], [], number * self.batch_size
        for row in range(start, min(start + self.batch_size, len(self.videos.files))):
            try:
                found.append(self.videos.read(row, None))
            except BrokenVideo as error:
                errors.append(str(error))
        batch = self.finish(video_file_texts._batch(found, len(errors))) if found else None
        return batch, len(found), errors


def _as_it_is(item: object) -> object:
    return item


class LongVideos(AnnotatedVideos):
    """Batches of `video`, uint8 (batch channels clips*frames height width), the frames of the first clip first.

    And `clip_times`, float32 (batch clips), the second in the middle of each clip; where spans of answers are known,
    `frame_labels`, int64 (batch clips*frames), 1 for frames within the span, and `frame_weights`, float32, of equal
    sums for both classes (`span_labels`). Texts and labels: see `AnnotatedVideos`.

    A single file is cut into as many equal clips, its frames chosen by `video.files.jittered` for training and by
    `evenly` for evaluation. Of a run of clips, training takes some in a row that begin anywhere (the official code
    never takes the last ones), evaluation the first, and of each clip the frames of `beginnings`. Training cuts the
    same random part out of all frames (`random_box`) and mirrors half of the videos; evaluation brings frames to
    `whole`, cuts the central share `central` of both sides and scales it to `size`.

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
        evaluation_batch_size: Count,
        mirror: str | None = None,
        max_broken: Share,
    ):
        super().__init__(
            folder=folder, seed=seed, splits=splits, tokenizer=tokenizer, text_length=text_length, sentences=sentences,
            source=source, batch_size=batch_size, evaluation_batch_size=evaluation_batch_size, mirror=mirror,
            max_broken=max_broken,
        )  # fmt: skip
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(
                f"area ({list(area)}) must be two shares of a frame, above 0, at most 1, the smaller first."
            )
        if not central:
            raise ValueError(f"central ({central}) must be a share of both sides of a frame, above 0.")
        self.clips, self.frames, self.size, self.whole = clips, frames, tuple(size), tuple(whole)
        self.central, self.area, self.flip = central, tuple(area), flip

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames of all clips, height and width of the videos that a network gets."""
        return 3, self.clips * self.frames, *self.size

    def videos(self, split: str) -> "ClipsInARow":
        """The videos of a split with their texts.

        Raises:
            ValueError: a run has too few clips, or see `annotations`.
            DataUnavailable: there is no folder of videos.
        """
        said = self.annotations(split)
        counts = np.array(list(map(len, said.columns["files"])))
        if len(short := np.flatnonzero((counts > 1) & (counts < self.clips))):
            files = said.columns["files"][short[0]]
            raise ValueError(
                f"{len(short)} runs of split {split!r} have fewer than clips ({self.clips}), the first {len(files)}, "
                f"from {files[0]} on: lower clips, or prepare longer runs (consecutive)."
            )
        return ClipsInARow(self.home(), said, self)

    def train_dataloader(self) -> DataLoader:
        """The training batches of this process, the epoch set by Lightning.

        Raises:
            ValueError: there is no split to train on.
        """
        self._check_training()
        return self._loader(self.videos("train"), math.prod(self.video_shape), _as_it_is)

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        """One pass over a split in the order of its rows, broken videos left out.

        In the split val, a video has the first of its captions.

        Raises:
            ValueError: a video of another split has several captions, or too many are broken.
        """
        videos = self.videos(split)
        if split != "val":
            check_one_caption(videos.said, split)
        return self._evaluation(videos, _as_it_is, math.prod(self.video_shape))


def check_one_caption(said: Annotations, split: str) -> None:
    """Refuse to judge a video by one of several captions.

    Raises:
        ValueError: a video has several.
    """
    if said.task == "captions" and any(len(sentences) > 1 for sentences in said.columns["texts"]):
        raise ValueError(f"videos of split {split!r} have several sentences: list one for each to be judged on.")


class ClipsInARow:
    """Long videos, decoded one by one; see `LongVideos`.

    Args:
        folder: of the files.
        said: texts and labels.
        shown: the settings.
    """

    def __init__(self, folder: Path, said: Annotations, shown: LongVideos):
        self.folder, self.said, self.files = folder, said, said.columns["files"]
        self.clips, self.frames, self.size, self.whole = shown.clips, shown.frames, shown.size, shown.whole
        self.central, self.area, self.flip = shown.central, shown.area, shown.flip

    def read(self, row: int, words: Words | None) -> Batch:
        """`video` (clips*frames height width 3), `clip_times`, and what is said; see `Videos`."""
        show, begin, text = self._centre, 0, None
        files = self.files[row]
        if words is not None:
            drawn = np.random.Philox(key=words[2]).random_raw(4 * TRIES + 3)
            uniforms = (drawn[: 4 * TRIES] >> np.uint64(11)).reshape(TRIES, 4) / 2.0**53
            flip, begin, text = (int(word) for word in drawn[4 * TRIES :])
            show = partial(self._cut, uniforms=uniforms, mirrored=self.flip and flip % 2 == 1)
        if len(files) > 1:
            begin %= len(files) - self.clips + 1
            shown = self._run(files[begin : begin + self.clips], show)
            part = slice(begin, begin + self.clips)
        else:
            shown, part = self._whole(files[0], show, words), slice(None)
        found = {"video": torch.from_numpy(shown.frames)} | self.said.read(row, word=text, part=part)
        found["clip_times"] = torch.from_numpy(shown.times.reshape(self.clips, -1).mean(1).astype(np.float32))
        if "span" in self.said.columns and self.said.task == "options" and self._has_spans:
            labels, weights = span_labels(self.said.columns["span"][row], shown.seconds, self.clips * self.frames)
            found |= {"frame_labels": torch.from_numpy(labels), "frame_weights": torch.from_numpy(weights)}
        return found

    @cached_property
    def _has_spans(self) -> bool:
        return not all(math.isnan(start) for start, _ in self.said.columns["span"])

    def _whole(self, file: str, show: Show, words: Words | None) -> Shown:
        """Frames of a single file, over all of it."""
        shown = self.clips * self.frames
        choose = partial(evenly, shown=shown)
        if words is not None:
            choose = partial(jittered, shown=shown, words=words[:2])
        return read_shown(self.folder / file, choose, show)

    def _run(self, files: Sequence[str], show: Show) -> Shown:
        """Frames of clips in a row, their times those of one video."""
        clips = [read_shown(self.folder / file, partial(beginnings, shown=self.frames), show) for file in files]
        begins = np.cumsum([0.0, *(clip.seconds for clip in clips)])
        times = [clip.times + begin for clip, begin in zip(clips, begins[:-1], strict=True)]
        return Shown(np.concatenate([clip.frames for clip in clips]), np.concatenate(times), float(begins[-1]))

    def _cut(
        self, picture: UInt8[np.ndarray, "h w 3"], uniforms: Float[np.ndarray, "tries 4"], *, mirrored: bool
    ) -> UInt8[np.ndarray, "height width 3"]:
        left, top, right, bottom = random_box(picture.shape[1], picture.shape[0], self.area, uniforms)
        shown = scaled(picture[top:bottom, left:right], *self.size)
        return np.ascontiguousarray(shown[:, ::-1]) if mirrored else shown

    def _centre(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
        sides = tuple(int(self.central * side) for side in self.whole)
        top, left = (round((side - cut) / 2) for side, cut in zip(self.whole, sides, strict=True))
        return scaled(scaled(picture, *self.whole)[top : top + sides[0], left : left + sides[1]], *self.size)


def beginnings(total: int, shown: int) -> Int[np.ndarray, " shown"]:
    """The first frame of each of so many equal parts, rounded down: LF-VILA's frames of a clip in pre-training."""
    return np.linspace(0, total, shown + 1)[:shown].astype(np.int64)


def span_labels(
    span: Sequence[float], seconds: float, frames: int
) -> tuple[Int[np.ndarray, " frames"], Float[np.ndarray, " frames"]]:
    """Which of a video's frames lie in a span (1, at least one of them), and weights that make both kinds count alike.

    A span that is not known is the whole video. LF-VILA's rule (`how2qa_dataset.py`), which takes the frames as evenly
    spread, although training moves the first and the last one.

    Args:
        span: second at which it begins, and ends.
        seconds: that the video lasts.
        frames: that are shown of it.
    """
    start, end = (0.0, 1.0) if np.isnan(span).any() else np.clip(np.array(span) / seconds, 0, 1)
    first = min(round(float(start) * frames), frames - 1)
    last = min(max(round(float(end) * frames), first + 1), frames)
    labels = np.zeros(frames, np.int64)
    labels[first:last] = 1
    inside = last - first
    weights = np.where(labels, frames * 0.5 / inside, frames * 0.5 / max(1, frames - inside))
    return labels, weights.astype(np.float32)
