"""Labelled sounds, from the files in which they are published, as an index: `prepare`. Sounds are decoded when needed.

| form | annotations | files | a split is |
|---|---|---|---|
| `fsdd` | in the names, `<digit>_<speaker>_<take>.wav` | `recordings/` | `takes`, first and last |
| `esc50` | `meta/esc50.csv` | `audio/` | `folds` |
| `audioset` | `<split>_segments.csv`, `class_labels_indices.csv` | a sound of each segment, cut out | `annotations` |

AudioSet is published without sounds. Copies name them in several ways, of which these are found: the video's id, the id
behind a `Y`, and the id with the millisecond at which the segment begins, such as `--PJHxphWEs_30000.flac`.
"""

import csv
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, NotRequired

import numpy as np
import pyarrow as pa
from jaxtyping import Int16
from pydantic import Field
from typing_extensions import TypedDict

from lightning_modules.datasets import tables
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.video.files import BrokenVideo
from lightning_modules.files import replace_folder
from lightning_modules.settings import STRICT, Count, Natural, Share

INTEGERS = pa.list_(pa.field("element", pa.int64()))  # as Parquet names what is in a list
SCHEMA = pa.schema([("id", pa.int64()), ("file", pa.string()), ("labels", INTEGERS)])
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".m4a")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ESC50 = "meta/esc50.csv"
CLASSES = "class_labels_indices.csv"
Form = Literal["fsdd", "esc50", "audioset"]


class Chosen(TypedDict):
    """Which sounds a split has, by the form: `takes`, first and last; `folds`; or the file of `annotations`."""

    __pydantic_config__ = STRICT
    takes: NotRequired[Annotated[list[Natural], Field(min_length=2, max_length=2)]]
    folds: NotRequired[Annotated[list[Count], Field(min_length=1)]]
    annotations: NotRequired[str]


CHOSEN_BY = {"fsdd": "takes", "esc50": "folds", "audioset": "annotations"}


class Sound(NamedTuple):
    """A file, and the numbers of its classes."""

    file: str
    labels: tuple[int, ...]


class Place(NamedTuple):
    """Where a copy lies: name of the data set, folder of the sounds in it, mirror and cache."""

    name: str
    sounds: str
    mirror: str | None
    cache: Path

    def find(self, entry: str) -> Path:
        """A file or folder of the copy."""
        return find(self.name, entry, mirror=self.mirror, cache=self.cache)


def prepare(
    folder: Path,
    *,
    name: str,
    form: Form,
    splits: dict[str, Chosen],
    sounds: str,
    num_classes: Count,
    mirror: str | None = None,
    cache: str,
    max_missing: Share = 0.0,
) -> None:
    """Writes the index of a copy.

    Args:
        folder: where index and card go.
        name: of the data set, a folder name in the mirror.
        form: of annotations and files, see the head of this module.
        splits: what each has.
        sounds: folder of the files in the copy.
        num_classes: that there must be.
        mirror: local folder that holds the copy, as it is or below `name`.
        cache: another place where the copy may lie.
        max_missing: largest share of the annotated sounds of a split that may be missing.

    Raises:
        DataUnavailable: the copy is not there.
        ValueError: a file does not have its form, or too many sounds are missing.
    """
    key = CHOSEN_BY[form]
    if wrong := [split for split, chosen in splits.items() if set(chosen) != {key}]:
        raise ValueError(f"splits.{wrong[0]} has {list(splits[wrong[0]])}, expected {key}: the form is {form!r}.")
    place = Place(name, sounds, mirror, Path(cache))
    classes = CLASS_NAMES[form](place)
    if len(classes) != num_classes:
        raise ValueError(f"{name} has {len(classes)} classes, expected num_classes ({num_classes}).")
    with replace_folder(folder) as new:
        written = {}
        for split, chosen in splits.items():
            rows = _there(READERS[form](place, chosen, classes), place, f"split {split!r}", max_missing)
            numbered = ({"id": number, **row._asdict()} for number, row in enumerate(rows))
            written[split] = tables.write_blocks(new, split, tables.blocks_of(numbered), SCHEMA)
        tables.write_card(
            new, name=name, splits=written, schema=SCHEMA, source=f"{name}, files of the form {form}",
            num_classes=num_classes, classes=list(classes.values()), sounds=sounds, cache=cache,
            several_labels=form == "audioset",
        )  # fmt: skip


def _there(rows: Sequence[Sound], place: Place, what: str, max_missing: float) -> list[Sound]:
    """The sounds whose files are there, each with the name that its file has."""
    home, total = place.find(place.sounds), len(rows)
    names = {path.name for path in home.iterdir()}
    found = [Sound(name, row.labels) for row in rows if (name := _named(row.file, names)) is not None]
    if total - len(found) > max_missing * total:
        missing = next(row.file for row in rows if _named(row.file, names) is None)
        raise ValueError(
            f"{total - len(found)} of {total} sounds of {what} are missing in {home}, {missing} first, more than "
            f"max_missing ({max_missing}) allows: complete the copy, or raise the share."
        )
    return found


def _named(file: str, names: set[str]) -> str | None:
    """The name that a file has in a copy; one without suffix may have any, and ids may be written in several ways."""
    if Path(file).suffix in SUFFIXES:
        return file if file in names else None
    video = file.rpartition("_")[0]
    stems = (file, video, f"Y{video}")
    return next((stem + suffix for stem in stems for suffix in SUFFIXES if stem + suffix in names), None)


def read_fsdd(place: Place, chosen: Chosen, classes: Mapping[str, str]) -> list[Sound]:
    """Spoken digits of some takes of every speaker.

    Raises:
        ValueError: a name has another form.
    """
    first, last = chosen["takes"]
    found = []
    for path in sorted(place.find(place.sounds).glob("*.wav")):
        digit, _, rest = path.stem.partition("_")
        speaker, _, take = rest.rpartition("_")
        if not (digit in "0123456789" and len(digit) == 1 and speaker and take.isdecimal()):
            raise ValueError(f"{path} has another name than expected: <digit>_<speaker>_<take>.wav.")
        if first <= int(take) <= last:
            found.append(Sound(path.name, (int(digit),)))
    return found


def read_esc50(place: Place, chosen: Chosen, classes: Mapping[str, str]) -> list[Sound]:
    """Environmental sounds of some folds.

    Raises:
        ValueError: the table has other columns.
    """
    rows = _table(place.find(ESC50), ("filename", "fold", "target", "category"))
    return [Sound(row["filename"], (int(row["target"]),)) for row in rows if int(row["fold"]) in chosen["folds"]]


def read_audioset(place: Place, chosen: Chosen, classes: Mapping[str, str]) -> list[Sound]:
    """Segments of a file, each with all of its classes.

    Raises:
        ValueError: a line has another form, or a class that there is not.
    """
    path, found = place.find(chosen["annotations"]), []
    numbers = {mid: number for number, mid in enumerate(classes)}
    with path.open(newline="", encoding="utf-8") as file:
        lines = (line for line in file if not line.startswith("#"))
        for row in csv.reader(lines, skipinitialspace=True):
            if len(row) != 4:
                raise ValueError(f"{path} has the line {','.join(row)!r}, expected YTID, start, end and labels.")
            video, start, _, mids = row
            if unknown := [mid for mid in mids.split(",") if mid not in classes]:
                raise ValueError(f"{path} has the class {unknown[0]!r} of {video}, which {CLASSES} has not.")
            found.append(Sound(f"{video}_{round(float(start) * 1000)}", tuple(numbers[mid] for mid in mids.split(","))))
    return found


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path} has the columns {reader.fieldnames}, expected {missing[0]!r} among them.")
        return list(reader)


def _esc50_classes(place: Place) -> dict[str, str]:
    rows = _table(place.find(ESC50), ("target", "category"))
    named = {int(row["target"]): row["category"] for row in rows}
    return {str(number): named[number].replace("_", " ") for number in sorted(named)}


def _audioset_classes(place: Place) -> dict[str, str]:
    rows = _table(place.find(CLASSES), ("index", "mid", "display_name"))
    return {row["mid"]: row["display_name"] for row in sorted(rows, key=lambda row: int(row["index"]))}


CLASS_NAMES: dict[str, Callable[[Place], dict[str, str]]] = {  # id of a class -> its name, in the order of numbers
    "fsdd": lambda _: {str(number): word for number, word in enumerate(DIGITS)},
    "esc50": _esc50_classes,
    "audioset": _audioset_classes,
}
READERS: dict[str, Callable[[Place, Chosen, Mapping[str, str]], list[Sound]]] = {
    "fsdd": read_fsdd,
    "esc50": read_esc50,
    "audioset": read_audioset,
}


def read_whole(path: Path, rate: int) -> Int16[np.ndarray, " samples"]:
    """A sound file as one channel (PyAV).

    Args:
        path: of the file.
        rate: samples a second to which it is brought.

    Raises:
        BrokenVideo: it is not there, or cannot be decoded, or holds nothing.
    """
    import av

    try:
        with av.open(f"file:{path}") as container:
            stream = container.streams.best("audio")
            if stream is None:
                raise BrokenVideo(f"{path} has no sound")
            stream.codec_context.thread_count = 1
            resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
            parts = [part.to_ndarray()[0] for frame in container.decode(stream) for part in resampler.resample(frame)]
            parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
    except (av.FFmpegError, OSError) as error:
        raise BrokenVideo(f"{path} cannot be decoded: {error}") from error
    if not sum(map(len, parts)):
        raise BrokenVideo(f"{path} holds no sound")
    return np.concatenate(parts)


def write_wave(path: Path, samples: Int16[np.ndarray, " samples"], rate: int) -> Path:
    """Writes one channel of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def stand_in(
    folder: Path, *, rows: int, form: Form, splits: Mapping[str, Chosen], sounds: str, num_classes: int, **_: object
) -> StandIn:
    """See `download.StandIn`: short tones in the official form."""
    WRITERS[form](folder, rows, splits, sounds, num_classes)
    return StandIn({"cache": str(folder)}, dict.fromkeys(splits))


def _tone(path: Path, number: int, rate: int = 8000) -> None:
    time = np.arange(rate // 2) / rate
    write_wave(path, np.rint(8000 * np.sin(2 * np.pi * (200 + 40 * number % 1000) * time)).astype(np.int16), rate)


def _write_fsdd(folder: Path, rows: int, splits: Mapping[str, Chosen], sounds: str, num_classes: int) -> None:
    for chosen in splits.values():
        for number in range(rows):
            _tone(folder / sounds / f"{number % 10}_drawn{number // 10}_{chosen['takes'][0]}.wav", number % 10)


def _write_esc50(folder: Path, rows: int, splits: Mapping[str, Chosen], sounds: str, num_classes: int) -> None:
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for place, chosen in enumerate(splits.values()):
        fold = chosen["folds"][0]
        for number in range(rows):
            name = f"{fold}-{place}-A-{number}.wav"
            lines.append(f"{name},{fold},{number % num_classes},class_{number % num_classes},False,{number},A")
            _tone(folder / sounds / name, number)
    lines += [f"unheard-{target}.wav,99,{target},class_{target},False,0,A" for target in range(num_classes)]
    (folder / ESC50).parent.mkdir(parents=True)
    (folder / ESC50).write_text("\n".join(lines) + "\n")


def _write_audioset(folder: Path, rows: int, splits: Mapping[str, Chosen], sounds: str, num_classes: int) -> None:
    header = ["index,mid,display_name", *(f'{n},/m/{n:05d},"Class, {n}"' for n in range(num_classes))]
    (folder / CLASSES).write_text("\n".join(header) + "\n")
    for split, chosen in splits.items():
        lines = ["# Segments csv", f"# num_ytids={rows}", "# YTID, start_seconds, end_seconds, positive_labels"]
        for number in range(rows):
            video = f"{split[:4]:-<7}{number:04d}"
            mids = f"/m/{number % num_classes:05d},/m/{(number + 1) % num_classes:05d}"
            lines.append(f'{video}, 30.000, 40.000, "{mids}"')
            _tone(folder / sounds / f"{video}.wav", number)
        path = folder / chosen["annotations"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


WRITERS: dict[str, Callable[[Path, int, Mapping[str, Chosen], str, int], None]] = {  # of stand-ins
    "fsdd": _write_fsdd,
    "esc50": _write_esc50,
    "audioset": _write_audioset,
}
