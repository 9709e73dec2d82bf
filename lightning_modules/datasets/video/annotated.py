"""Videos with sentences, questions or classes, from the files in which they are published, as one index: `prepare`.

| corpus | annotations | a row is |
|---|---|---|
| `long_videos` | jsonl or LMDB of runs of clips | a run of clips, a transcript of each |
| `clips` | jsonl of `clip_id`, texts there or in LMDB | a clip, its transcript |
| `paragraphs` | jsonl of `clip_id`, `text` | a video, its sentences |
| `activitynet` | `train.json`, `val_1.json` | a video, its sentences with their times |
| `didemo` | `train_data.json` | a video, its descriptions |
| `condensed_movies` | csv of `videoid`, `caption`, `split` | a video, its description |
| `tgif_action`, `tgif_transition` | jsonl, or the original table | a GIF, a question, five options |
| `tgif_frame`, `tgif_count` | the same | a GIF, a question, an answer or a count |
| `msrvtt_qa` | jsonl, or the original json | a video, a question, an answer |
| `msrvtt_mc` | jsonl of `clip_name`, `options`, `answer` | a video, five captions of which one is its own |
| `activitynet_qa` | `train_q.json`, with `train_a.json` as `answers` | a video, a question, an answer |
| `how2qa` | jsonl of `text_q`, `text_a`, `text_s`, `span` | a video, a question, four options, subtitles, a span |
| `violin` | jsonl of `text_q`, `text_s`, `answer` | a video, a statement, subtitles, true or not |
| `coin` | `COIN.json` | a video, its task |
| `classes` | jsonl of `video_id`, `recipe_type` | a video, its class (LVU, COIN) |

Checked against what is published: the files of ActivityNet-QA, whole (its 1,654 answers are those that come at least
twice in training); README.md of tgif-qa, of COIN and of HD-VILA-100M; CondensedMovies_dataset.py of the challenge;
the dataset classes of `LF-VILA/` and `hd-vila/` in microsoft/XPretrain, for the jsonl files that are released with
them. Recalled, not re-read: the headers of TGIF-QA's original tables, and the subsets of COIN (training, testing).

Videos are decoded when they are trained on (`video.showing`), so what is prepared here is small. The index has the
columns of `Row`. Its readers hold it in memory: of LF-VILA-8M's eight million runs take some hundred thousand (`most`).
"""

import ast
import csv
import json
import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from itertools import islice, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, NotRequired, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict

from lightning_modules import rehearsal
from lightning_modules.datasets.download import StandIn, fetch, find
from lightning_modules.datasets.video.corpora import Checksum, _digest, didemo_name, file_name, read_list
from lightning_modules.datasets.video.drawn import encode
from lightning_modules.files import replace_folder, sha256
from lightning_modules.settings import STRICT, Count, Share

log = logging.getLogger(__name__)

Corpus = Literal[
    "long_videos", "clips", "paragraphs", "activitynet", "didemo", "condensed_movies",
    "tgif_action", "tgif_transition", "tgif_frame", "tgif_count", "msrvtt_qa", "msrvtt_mc", "activitynet_qa",
    "how2qa", "violin", "coin", "classes",
]  # fmt: skip
Task = Literal["sentences", "options", "answers", "count", "classes"]
TASKS: dict[Corpus, Task] = {
    **dict.fromkeys(get_args(Corpus), "sentences"),
    **dict.fromkeys(("tgif_action", "tgif_transition", "msrvtt_mc", "how2qa"), "options"),
    **dict.fromkeys(("tgif_frame", "msrvtt_qa", "activitynet_qa"), "answers"),
    **dict.fromkeys(("violin", "coin", "classes"), "classes"),
    "tgif_count": "count",
}
OUTSIDE = -1  # label of an answer that is not among those that can be given


class Row(NamedTuple):
    """What is said of one video, or asked about it.

    Args:
        files: names of the video, or of the clips of a run in their order.
        texts: sentences, in the order of time: of a paragraph, or subtitles.
        starts: second at which each of them begins; empty if that is not known.
        ends: second at which it ends.
        question: or statement; blank if nothing is asked.
        options: answers to choose from.
        label: the number of the right option, of the class, or of what is counted.
        answer: in words, where there are no options; `prepare` makes its number the label.
        kind: of the question, such as `what`.
        span: seconds of the video that tell the answer.
    """

    files: tuple[str, ...]
    texts: tuple[str, ...] = ()
    starts: tuple[float, ...] = ()
    ends: tuple[float, ...] = ()
    question: str = ""
    options: tuple[str, ...] = ()
    label: int = OUTSIDE
    answer: str = ""
    kind: str = ""
    span: tuple[float, float] = (math.nan, math.nan)


TEXTS, SECONDS = pa.list_(pa.string()), pa.list_(pa.float64())
SCHEMA = pa.schema([
    ("files", TEXTS), ("texts", TEXTS), ("starts", SECONDS), ("ends", SECONDS), ("question", pa.string()),
    ("options", TEXTS), ("label", pa.int64()), ("answer", pa.string()), ("kind", pa.string()), ("span", SECONDS),
])  # fmt: skip


class Annotated(TypedDict):
    """Files of a split, and how many rows there must be in it, where that is known.

    `answers` holds those of ActivityNet-QA, `texts` those of clips that are listed without them: a jsonl of `clip_id`
    and `text`, or a folder of LMDB. `videos` is the list of the split's videos in their order, one of `lists`. `subset`
    is the split's name in a file of several splits. `most` takes only the first rows.
    """

    __pydantic_config__ = STRICT
    annotations: str
    answers: NotRequired[str | None]
    texts: NotRequired[str | None]
    videos: NotRequired[str | None]
    subset: NotRequired[str | None]
    rows: NotRequired[Count | None]
    most: NotRequired[Count | None]


class Vocabulary(TypedDict):
    """Which answers can be given: those of some splits, the most frequent ones or those that come often enough."""

    __pydantic_config__ = STRICT
    splits: list[str]
    most: NotRequired[Count | None]
    least: NotRequired[Count]
    expected: NotRequired[Count | None]


def prepare(
    folder: Path,
    *,
    name: str,
    corpus: Corpus,
    splits: dict[str, Annotated],
    labels: Count | None = None,
    vocabulary: Vocabulary | None = None,
    consecutive: Count = 1,
    prefix: str = "",
    suffix: str | None = None,
    videos: str = "videos",
    lists: Mapping[str, Checksum] = MappingProxyType({}),
    list_mirrors: Sequence[str] = (),
    list_cache: str = "data/downloads/retrieval-splits",
    mirror: str | None = None,
    cache: str,
    max_left_out: Share = 0.0,
) -> None:
    """Writes the index of a copy of a corpus, and a card with its task, its answers and the kinds of its questions.

    Args:
        folder: where index and card go.
        name: of the data set, a folder name in the mirror.
        corpus: whose format the annotations have.
        splits: files of each.
        labels: how many options each question has, or how many classes there are; null for other tasks.
        vocabulary: of open-ended questions; null for other tasks. Other answers have the label `OUTSIDE`.
        consecutive: clips that a run of `long_videos` has at least. Where its annotations list single clips, runs are
            made of them: clips of one video whose numbers follow each other.
        prefix: what comes before a video's name in the name of its file.
        suffix: of the video files, such as `.mp4`; null where the names have theirs.
        videos: folder of the video files in the copy.
        lists: published lists of videos, with their checksums; see `download.fetch`. Their folder in a mirror is
            `retrieval-splits`.
        list_mirrors: web addresses of folders with them.
        list_cache: where downloaded lists are kept.
        mirror: local folder that holds the copy, as it is or below `name`.
        cache: another place where the copy may lie.
        max_left_out: largest share of a split that may be left out because a text is missing or blank.

    Raises:
        DataUnavailable: the copy is not there.
        ModuleNotFoundError: a file is LMDB, and lmdb is not installed.
        ValueError: a file does not have its form, a split not its rows, or a setting does not fit the corpus.
    """
