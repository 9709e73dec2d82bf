"""Corpora of texts, from the files in which they are published, as passages: `prepare`.

| form | files | a document is |
|---|---|---|
| `lines` | text with a sentence in each line | what lies between two empty lines (BERT's own input) |
| `parquet` | a table with a column `text`, as on the hub | a row; its lines are its sentences |
| `sentences` | the same, without documents (BookCorpus on the hub) | 500 rows, each a sentence |

A row of what is prepared is a passage of about so many words, of whole sentences. With pairs it has a second one, which
follows it in its document in half of the rows and is of another document in the others (BERT, 1810.04805, section 3.1).
A corpus is read once, from its beginning to its end, and never held in memory.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datasets import tables
from lightning_modules.datasets.download import StandIn, find
from lightning_modules.datasets.splits import random_words
from lightning_modules.files import replace_folder
from lightning_modules.settings import STRICT, Count, Natural

PAIRS = 150  # purpose of random words, which `datasets.splits` has not
REMEMBERED = 1000  # passages of other documents that a second one is drawn from
ROW_GROUP = 1024
TOGETHER = 500  # sentences that count as a document where nothing says where one ends
BLOCK = 4096  # random words that are drawn together
Form = Literal["lines", "parquet", "sentences"]
SINGLE = pa.schema([("id", pa.int64()), ("text", pa.string())])
PAIRED = pa.schema([*SINGLE, ("second", pa.string()), ("label", pa.int64())])


class Passage(NamedTuple):
    """So many words of a document, and the number of that."""

    document: int
    text: str


class Corpus(TypedDict):
    """A copy of a corpus: the form of its files, and the file or folder where they lie in the copy."""

    __pydantic_config__ = STRICT
    form: Form
    files: str


def prepare(
    folder: Path,
    *,
    corpora: dict[str, Corpus],
    words: Count,
    pairs: bool,
    seed: Natural,
    mirror: str | None = None,
    cache: str,
) -> None:
    """Writes the passages of some corpora, one corpus after the other, as one split `train`.

    Args:
        folder: where shards and card go.
        corpora: for each name, which is that of a folder in the mirror, what it has. Files are read in the order of
            their names.
        words: of a passage, after which it ends with its sentence; a document's last words are a shorter one.
        pairs: write two passages a row.
        seed: decides which second passages follow, and which others there are.
        mirror: local folder that holds the copies, each as it is or below its name.
        cache: another place where they may lie.

    Raises:
        DataUnavailable: a copy is not there.
        ValueError: a file does not have its form, or there is no text.
    """
    found = {}
    for name, corpus in corpora.items():
        place = find(name, corpus["files"], mirror=mirror, cache=Path(cache))
        found[name] = _files(place, corpus["form"]), corpus["form"]
    told = passages(chain.from_iterable(documents(*each) for each in found.values()), words)
    rows = paired(told, seed) if pairs else ({"text": passage.text} for passage in told)
    blocks = tables.blocks_of(({"id": number, **row} for number, row in enumerate(rows)), ROW_GROUP)
    schema = PAIRED if pairs else SINGLE
    with replace_folder(folder) as new:
        written = {"train": tables.write_blocks(new, "train", blocks, schema, row_group=ROW_GROUP)}
        source, classes = f"passages of {', '.join(corpora)}", 2 if pairs else None
        tables.write_card(
            new, name="_".join(corpora), splits=written, schema=schema, source=source, num_classes=classes
        )


def _files(place: Path, form: Form) -> list[Path]:
    suffix = ".txt" if form == "lines" else ".parquet"
    files = [place] if place.is_file() else sorted(place.rglob(f"*{suffix}"))
    if not files:
        raise ValueError(f"{place} has no file *{suffix}, expected those of the form {form!r}.")
    return files


def documents(files: Iterable[Path], form: Form) -> Iterator[Iterable[str]]:
    """The sentences of each document of some files.

    Raises:
        ValueError: a file is damaged, or no table with a column `text`.
    """
    for path in files:
        if form == "lines":
            yield from _documents_of_lines(path)
        elif form == "sentences":
            yield from _cut(_texts(path))
        else:
            yield from (text.splitlines() for text in _texts(path))


def _documents_of_lines(path: Path) -> Iterator[list[str]]:
    sentences: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    sentences.append(line)
                elif sentences:
                    yield sentences
                    sentences = []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): get the file again.") from error
    if sentences:
        yield sentences


def _cut(sentences: Iterator[str]) -> Iterator[list[str]]:
    while together := list(islice(sentences, TOGETHER)):
        yield together


def _texts(path: Path) -> Iterator[str]:
    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise ValueError(f"{path} has the columns {file.schema_arrow.names}, expected `text` among them.")
            for batch in file.iter_batches(columns=["text"]):
                yield from batch["text"].to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({error}): get the file again.") from error


def passages(told: Iterable[Iterable[str]], words: int) -> Iterator[Passage]:
    """Sentences of each document, put together until there are so many words; blank ones are left out."""
    for number, sentences in enumerate(told):
        kept: list[str] = []
        for sentence in sentences:
            kept += sentence.split()
            if len(kept) >= words:
                yield Passage(number, " ".join(kept))
                kept = []
        if kept:
            yield Passage(number, " ".join(kept))


def paired(told: Iterable[Passage], seed: int) -> Iterator[dict[str, str | int]]:
    """Rows of two passages; one that nothing follows in its document, with no document before it, is left out.

    What does not follow comes from the last `REMEMBERED` passages of earlier documents.
    """
    earlier: deque[Passage] = deque(maxlen=REMEMBERED)
    waiting: Passage | None = None
    drawn = _words(seed)
    for passage in told:
        if waiting is None:
            waiting = passage
            continue
        follows, choice = next(drawn)
        if waiting.document == passage.document and follows:
            yield {"text": waiting.text, "second": passage.text, "label": 1}
            remembered, waiting = (waiting, passage), None
        else:
            others = [each for each in earlier if each.document != waiting.document]
            if others:
                yield {"text": waiting.text, "second": others[choice % len(others)].text, "label": 0}
            remembered, waiting = (waiting,), passage
        earlier.extend(remembered)


def _words(seed: int) -> Iterator[tuple[bool, int]]:
    """Whether a second passage follows, and a number that picks another one."""
    block = 0
    while True:
        for word in random_words(BLOCK, seed, PAIRS, 0, block).tolist():
            yield bool(word & 1), word >> 33
        block += 1


def stand_in(
    folder: Path, *, rows: int, corpora: Mapping[str, Corpus], words: int, pairs: bool, **_: object
) -> StandIn:
    """See `download.StandIn`: documents of two passages, or of one without pairs; the rows are shared out."""
    mine = -(-rows // len(corpora))
    for name, corpus in corpora.items():
        form = corpus["form"]
        count = 2 * mine if pairs and form == "sentences" else mine + pairs
        told = [_sentences(name, number, 1 + pairs, words) for number in range(count)]
        suffix = ".txt" if form == "lines" else ".parquet"
        path = folder / corpus["files"]
        path = path if path.suffix == suffix else path / f"part-0{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "lines":
            path.write_text("\n\n".join("\n".join(sentences) for sentences in told) + "\n")
        else:
            texts = ["\n".join(each) for each in told] if form == "parquet" else list(chain(*told))
            pq.write_table(pa.table({"text": texts}), path)
    return StandIn({"cache": str(folder)}, {"train": None})


def _sentences(name: str, number: int, passages: int, words: int) -> list[str]:
    filler = " ".join(["word"] * words)
    return [f"Sentence {place} of text {number} of {name}: {filler}." for place in range(passages)]
