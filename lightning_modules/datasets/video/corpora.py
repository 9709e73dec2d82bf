"""Videos with sentences, from the files in which they are published, as one index: `prepare`.

| corpus | annotations | rows |
|---|---|---|
| `msr_vtt` | `MSRVTT_data.json`, or a table with columns `video_id`, `sentence` | a video, its captions |
| `didemo` | `{train,val,test}_data.json` | a video, its descriptions as one paragraph |
| `activitynet` | `{train,val_1,val_2}.json` | a video, its sentences as one paragraph |
| `lsmdc` | `LSMDC16_annos_*.csv` | a clip, its sentence |
| `clips` | jsonl of `clip_id` and `text`, with captions `image_id`, `caption` | a clip, subtitle, auxiliary caption |

The last is the form of CLIP-ViP's own files for HD-VILA (its released databases are not read here). The index has a
column `file`, relative to the folder of the videos, and a list of sentences for each of `SOURCES`. Videos are decoded
when they are trained on (`video.files`), so what is prepared here is small. It is held in memory by its readers: tens
of millions of clips are too many for that.
"""

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict

from lightning_modules import rehearsal
from lightning_modules.datasets.columns import ContentDigest, to_numpy
from lightning_modules.datasets.download import StandIn, fetch, find
from lightning_modules.datasets.storage import WAY_OUT, card
from lightning_modules.datasets.video.drawn import encode
from lightning_modules.files import replace_folder, sha256
from lightning_modules.settings import STRICT, Count, Share

SOURCES = ("caption", "auxiliary_caption", "subtitle")
SCHEMA = pa.schema([("file", pa.string()), *((name, pa.list_(pa.string())) for name in SOURCES)])
LSMDC_TIMES = re.compile(r"_\d\d\.\d\d\.\d\d\.\d+-\d\d\.\d\d\.\d\d\.\d+$")  # of a clip, after its movie's name


class Texts(NamedTuple):
    """What is said of a video; an empty tuple where a source has nothing."""

    caption: tuple[str, ...] = ()
    auxiliary_caption: tuple[str, ...] = ()
    subtitle: tuple[str, ...] = ()


class Annotated(TypedDict):
    """Files of a split, and how many videos there must be in it, where that is known.

    `auxiliary` holds captions of middle frames, for `clips`; clips without one are left out. `videos` is the list of
    the split's videos in their order, one of `lists`; without it the split has all that are annotated.
    """

    __pydantic_config__ = STRICT
    annotations: str
    auxiliary: NotRequired[str | None]
    videos: NotRequired[str | None]
    rows: NotRequired[Count | None]


class Checksum(TypedDict):
    """Of a list of videos."""

    __pydantic_config__ = STRICT
    sha256: str


def prepare(
    folder: Path,
    *,
    name: str,
    corpus: Literal["msr_vtt", "didemo", "activitynet", "lsmdc", "clips"],
    splits: dict[str, Annotated],
    suffix: str | None = None,
    videos: str = "videos",
    lists: Mapping[str, Checksum] = MappingProxyType({}),
    list_mirrors: Sequence[str] = (),
    list_cache: str = "data/downloads/retrieval-splits",
    mirror: str | None = None,
    cache: str,
    max_left_out: Share = 0.0,
) -> None:
    """Writes the index of a copy of a corpus.

    Args:
        folder: where index and card go.
        name: of the data set, a folder name in the mirror.
        corpus: whose format the annotations have.
        splits: files of each.
        suffix: of the video files, such as `.mp4`; null where the names have theirs.
        videos: folder of the video files in the copy.
        lists: published lists of videos, with their checksums; see `download.fetch`. Their folder in a mirror is
            `retrieval-splits`.
        list_mirrors: web addresses of folders with them.
        list_cache: where downloaded lists are kept.
        mirror: local folder that holds the copy, as it is or below `name`.
        cache: another place where the copy may lie.
        max_left_out: largest share of a split that may be left out because a sentence is missing or blank.

    Raises:
        DataUnavailable: the copy is not there.
        ValueError: a file does not have its form, or a split not its rows.
    """
    splits = {split: {"videos": None, "auxiliary": None, "rows": None, **files} for split, files in splits.items()}
    for split, files in splits.items():
        if files["videos"] not in (None, *lists):
            raise ValueError(f"splits.{split}.videos ({files['videos']!r}) must be one of lists ({', '.join(lists)}).")
    place = {"mirror": mirror, "cache": Path(cache)}
    listed = fetch("retrieval-splits", lists, mirrors=list_mirrors, mirror=mirror, cache=Path(list_cache))
    find(name, videos, **place)
    written = {}
    with replace_folder(folder) as new:
        for split, files in splits.items():
            rows = _annotated(corpus, find(name, files["annotations"], **place))
            if files["videos"] is not None:
                rows = _listed(rows, read_list(listed[files["videos"]]), NAMES.get(corpus, str), files["annotations"])
            total = len(rows)
            if files["rows"] not in (None, total):
                raise ValueError(f"split {split!r} has {total} videos, expected {files['rows']}: complete the copy.")
            rows, asked = {video: texts for video, texts in rows.items() if any(texts)}, files["annotations"]
            if files["auxiliary"] is not None:
                asked += f" or {files['auxiliary']}"
                rows = _with_auxiliary(rows, read_frame_captions(find(name, files["auxiliary"], **place)))
            if total - len(rows) > max_left_out * total:
                raise ValueError(
                    f"{total - len(rows)} of {total} videos of split {split!r} have no sentence in {asked}, more than "
                    f"max_left_out ({max_left_out}) allows: complete it, or raise the share."
                )
            index = {file_name(video, suffix): texts for video, texts in rows.items()}
            written[split] = {"left_out": total - len(rows), **write_index(new / f"{split}.parquet", index)}
        facts = {"name": name, "videos": videos, "cache": cache, "splits": written}
        (new / "card.json").write_text(json.dumps(facts, indent=2) + "\n")


def stand_in(
    folder: Path,
    *,
    rows: int,
    corpus: str,
    splits: Mapping[str, Mapping[str, Any]],
    suffix: str | None = None,
    videos: str = "videos",
    **_: object,
) -> StandIn:
    """See `download.StandIn`: one drawn clip of ten seconds under many names, with a sentence for each."""
    clip = encode(folder / f"clip{suffix or '.mp4'}", 100, size=(320, 240), key_every=12)
    changed, lists = {}, {}
    for split, files in splits.items():
        names = [
            DRAWN_NAMES.get(corpus, "{split}{number}").format(split=split, number=number) for number in range(rows)
        ]
        said = {name: f"somebody does something in video {number}" for number, name in enumerate(names)}
        annotations = folder / files["annotations"]
        annotations.parent.mkdir(parents=True, exist_ok=True)
        annotations.write_text(WRITERS[corpus](said, annotations.suffix))
        if files.get("auxiliary"):
            frames = [{"image_id": name, "caption": f"a frame: {text}"} for name, text in said.items()]
            (folder / files["auxiliary"]).write_text(json.dumps(frames))
        if listed := files.get("videos"):
            (folder / listed).parent.mkdir(parents=True, exist_ok=True)
            (folder / listed).write_text("\n".join(names))
            lists[listed] = {"sha256": sha256(folder / listed)}
        for video in READERS[corpus](annotations):
            path = folder / videos / file_name(video, suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(clip, path)
        changed[split] = {**files, "rows": rows}
    place = {"cache": str(folder), "list_cache": str(folder), "list_mirrors": []}
    config = {"splits": changed, "lists": lists, **place}
    return StandIn(config, {split: files.get("rows") for split, files in splits.items()})


def _annotated(corpus: str, path: Path) -> dict[str, Texts]:
    try:
        return READERS[corpus](path)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} does not have the form of {corpus} annotations ({error!r}).") from error


def _listed(
    rows: Mapping[str, Texts], videos: Iterable[str], normal: Callable[[str], str], annotations: str
) -> dict[str, Texts]:
    names = [normal(video) for video in videos]
    if missing := [video for video in names if video not in rows]:
        raise ValueError(
            f"{len(missing)} of {len(names)} listed videos are not annotated in {annotations}, the first is "
            f"{missing[0]}."
        )
    return {video: rows[video] for video in names}


def _with_auxiliary(rows: Mapping[str, Texts], captions: Mapping[str, str]) -> dict[str, Texts]:
    """The clips that have a caption of their middle frame, with it."""
    found = {video: captions.get(PurePosixPath(video).name) for video in rows}
    return {video: texts._replace(auxiliary_caption=(found[video],)) for video, texts in rows.items() if found[video]}


def write_index(path: Path, rows: Mapping[str, Texts]) -> dict[str, int | str]:
    """Writes file names and texts; returns the number of rows and the digest of the content.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(f"{path.name} would have no rows: check its annotations.")
    columns = {"file": list(rows)} | {source: [getattr(texts, source) for texts in rows.values()] for source in SOURCES}
    table = pa.table(columns, SCHEMA).slice(0, rehearsal.left(0))
    pq.write_table(table, path, compression="zstd")
    return {"rows": len(table), "sha256": table_digest(table)}


def read_index(folder: Path, split: str) -> dict[str, np.ndarray]:
    """The columns of a split of a prepared corpus: `file`, and lists of sentences.

    Raises:
        ValueError: the split is not there, or its content is not that on the card.
    """
    splits = card(folder)["splits"]
    if split not in splits:
        raise ValueError(f"split {split!r} is not in {folder / 'card.json'}, expected one of {', '.join(splits)}.")
    table = pq.read_table(folder / f"{split}.parquet", partitioning=None)
    if table_digest(table) != splits[split]["sha256"]:
        raise ValueError(f"{folder / split}.parquet is not what was prepared. {WAY_OUT}")
    return {name: to_numpy(table[name], None) for name in table.column_names}


def table_digest(table: pa.Table) -> str:
    """That of the decoded columns, as it stands in the card."""
    digest = ContentDigest()
    for batch in table.to_batches():
        digest.update(batch)
    return digest.hexdigest()


def file_name(video: str, suffix: str | None) -> str:
    """The file of a video, relative to the folder of all.

    Raises:
        ValueError: it would lie outside that folder.
    """
    path = PurePosixPath(f"{video}{suffix or ''}")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the video {video!r} would lie outside the folder of the videos.")
    return str(path)


def _text(path: Path) -> str:
    """Content of a text file in UTF-8, with or without a byte order mark."""
    return path.read_text(encoding="utf-8-sig")


def read_list(path: Path) -> list[str]:
    """Reads one name per line.

    Raises:
        ValueError: a name comes twice.
    """
    names = _text(path).split()
    if len(set(names)) < len(names):
        raise ValueError(f"{path} names {len(names) - len(set(names))} videos twice.")
    return names


def read_msr_vtt(path: Path) -> dict[str, Texts]:
    """Captions of each video in the order of the file; the table is that of 1k-A, with one caption of each."""
    if path.suffix == ".csv":
        pairs = [(row["video_id"], row["sentence"]) for row in csv.DictReader(_text(path).splitlines())]
    else:
        pairs = [(sentence["video_id"], sentence["caption"]) for sentence in json.loads(_text(path))["sentences"]]
    return {video: Texts(tuple(captions)) for video, captions in _grouped(pairs).items()}


def read_didemo(path: Path) -> dict[str, Texts]:
    """All descriptions of a video, one after another as CLIP-ViP does; names without their suffixes."""
    pairs = [(didemo_name(moment["video"]), moment["description"]) for moment in json.loads(_text(path))]
    return {video: Texts(_said(" ".join(said))) for video, said in _grouped(pairs).items()}


def didemo_name(video: str) -> str:
    """A name without what follows its last dot: lists and copies differ in the suffix, and some have a bare dot."""
    return video.rpartition(".")[0] or video


def read_activitynet(path: Path) -> dict[str, Texts]:
    """All sentences of a video, one after another."""
    annotated = json.loads(_text(path), object_pairs_hook=lambda pairs: named_once(path, pairs))
    return {video: Texts(_said(" ".join(map(str.strip, said["sentences"])))) for video, said in annotated.items()}


def read_lsmdc(path: Path) -> dict[str, Texts]:
    """Lines of clip, four times and sentence between tabs; clips lie in folders named after their movies."""
    found = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) != 6 or not LSMDC_TIMES.search(fields[0]):
            raise ValueError(f"{path}, line {number}: expected a clip, four times and a sentence between tabs.")
        found.append((f"{LSMDC_TIMES.sub('', fields[0])}/{fields[0]}", Texts(_said(fields[-1]))))
    return named_once(path, found)


def read_clips(path: Path) -> dict[str, Texts]:
    """One clip per line, its text as subtitle; a clip lies in a folder named after its video."""
    found = []
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            clip = json.loads(line)
            found.append((f"{clip['clip_id'].split('.')[0]}/{clip['clip_id']}", Texts(subtitle=_said(clip["text"]))))
    return named_once(path, found)


def read_frame_captions(path: Path) -> dict[str, str]:
    """Captions of the middle frames of clips, by their ids."""
    return named_once(path, [(image["image_id"], image["caption"].strip()) for image in json.loads(_text(path))])


def named_once(path: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """What a file says by name.

    Raises:
        ValueError: a name comes twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        raise ValueError(f"{path} has {len(twice)} names more than once, {twice[0]!r} first: keep one of each.")
    return found


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The sentences of each video, in the order in which they come; blank ones are none."""
    found: dict[str, list[str]] = {}
    for video, sentence in pairs:
        found.setdefault(video, []).extend(_said(sentence))
    return found


def _said(sentence: str) -> tuple[str, ...]:
    """A sentence without blanks around it; a blank one is none."""
    return (sentence.strip(),) if sentence.strip() else ()


READERS: dict[str, Callable[[Path], dict[str, Texts]]] = {
    "msr_vtt": read_msr_vtt,
    "didemo": read_didemo,
    "activitynet": read_activitynet,
    "lsmdc": read_lsmdc,
    "clips": read_clips,
}
NAMES: dict[str, Callable[[str], str]] = {"didemo": didemo_name}  # in lists, where they differ from the readers'


def _lines(said: Mapping[str, str], line: Callable[[str, str], str]) -> str:
    return "".join(f"{line(video, text)}\n" for video, text in said.items())


def _msr_vtt(said: Mapping[str, str], suffix: str) -> str:
    if suffix == ".csv":
        return "key,vid_key,video_id,sentence\n" + _lines(said, "ret,msr,{},{}".format)
    sentences = [{"video_id": video, "caption": f"{text}, {again}"} for video, text in said.items() for again in (1, 2)]
    return json.dumps({"sentences": sentences})


DRAWN_NAMES = {  # of the videos of stand-ins
    "lsmdc": "{split}_film{number}_00.00.01.000-00.00.05.000",
    "clips": "{split}.{number}.mp4",
}
WRITERS: dict[str, Callable[[Mapping[str, str], str], str]] = {  # the reverse of `READERS`, for stand-ins
    "msr_vtt": _msr_vtt,
    "didemo": lambda said, _: json.dumps(
        [{"video": f"{name}.mov", "description": text} for name, text in said.items()]
    ),
    "activitynet": lambda said, _: json.dumps({name: {"sentences": [text, text]} for name, text in said.items()}),
    "lsmdc": lambda said, _: _lines(said, "{0}\t00.00.01.000\t00.00.05.000\t0\t0\t{1}".format),
    "clips": lambda said, _: _lines(said, lambda name, text: json.dumps({"clip_id": name, "text": text})),
}
