"""Gets the files of a data set: from the cache, a local mirror, or the first web address that gives the right bytes.

A file is accepted only if its checksum is right, wherever it came from.
"""

import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MIRROR_VARIABLE = "REPRISE_MIRROR"
# Seconds to connect and between bytes. The first counts anew for each of the many machines behind a cloud address, and
# behind a firewall that drops packets all of them must have failed within a minute or so.
TIMEOUT = (2, 10)


class DataUnavailable(RuntimeError):
    """The files of a data set are nowhere to be had; the message says what was tried and what to set."""


class StandIn(NamedTuple):
    """Small files in the official form that take the place of a data set in a rehearsal: what `stand_in` gives.

    A function `stand_in(folder, *, rows, **config)` beside `prepare` writes them into an empty folder, with so many
    rows of each split. `config` is what `prepare` is configured with.

    Args:
        config: settings that `prepare` needs to read these files: where they are, their checksums and counts.
        whole: rows that the real data set has of each split; None where that is not known.
    """

    config: dict[str, Any]
    whole: dict[str, int | None]


class _Refused(Exception):
    """A file that is absent, unreachable or not the one expected; the message is the short reason."""


def fetch(
    name: str,
    files: Mapping[str, Mapping[str, str]],
    *,
    mirrors: Sequence[str],
    mirror: str | Path | None,
    cache: Path,
) -> dict[str, Path]:
    """Finds or downloads every file of a data set and verifies it.

    Args:
        name: name of the data set, a folder name in the mirror.
        files: file name -> {algorithm: hex digest}; `content_<algorithm>` means the digest of the uncompressed content,
            for gzip files whose headers differ from mirror to mirror.
        mirrors: web addresses of folders that hold the files, tried in this order.
        mirror: a local folder tried before the web; the environment variable REPRISE_MIRROR wins over it.
        cache: where downloads are kept, so that a second call downloads nothing.

    Returns:
        File name -> path: in the cache or in the local mirror, which is read in place.

    Raises:
        DataUnavailable: at the first file that no place gives with the right checksum.
    """
    return {file: _fetch_file(name, file, checksum, mirrors, mirror, cache) for file, checksum in files.items()}


def find(name: str, entry: str, *, mirror: str | Path | None, cache: Path) -> Path:
    """Finds a file or folder that is never downloaded, because its licence asks for a registration.

    Raises:
        DataUnavailable: neither the cache nor the mirror holds it.
    """
    places = list(_local_places(name, entry, mirror, cache))
    for place in places:
        if place.exists():
            return place
    raise _unavailable(name, entry, "a copy of your own (no public download)", {str(p): "not there" for p in places})


def _fetch_file(
    name: str, file: str, checksum: Mapping[str, str], mirrors: Sequence[str], mirror: str | Path | None, cache: Path
) -> Path:
    tried = {}
    for place in _local_places(name, file, mirror, cache):
        try:
            _verify(place, checksum)
            return place
        except _Refused as refusal:
            tried[str(place)] = str(refusal)
    for base in mirrors:
        address = f"{base.rstrip('/')}/{file}"
        try:
            _download(address, cache / file, checksum)
            return cache / file
        except _Refused as refusal:
            tried[address] = str(refusal)
    raise _unavailable(name, file, " ".join(*checksum.items()), tried)


def _local_places(name: str, entry: str, mirror: str | Path | None, cache: Path) -> Iterator[Path]:
    yield cache / entry
    root = os.environ.get(MIRROR_VARIABLE) or mirror
    if root:
        yield Path(root, name, entry).expanduser()
        yield Path(root, entry).expanduser()


def _verify(path: Path, checksum: Mapping[str, str]) -> None:
    if not path.is_file():
        raise _Refused("not there")
    [(kind, expected)] = checksum.items()
    algorithm = kind.removeprefix("content_")
    opener = gzip.open if kind != algorithm else open
    try:
        with opener(path, "rb") as content:
            found = hashlib.file_digest(content, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _Refused(f"cut off or not gzip ({error})") from error
    if found != expected:
        raise _Refused(f"altered or cut off: {kind} is {found}")


def _download(address: str, target: Path, checksum: Mapping[str, str]) -> None:
    """Downloads beside the target and renames once the checksum fits."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        _get(address, partial)
        _verify(partial, checksum)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _get(address: str, path: Path) -> None:
    """One more try when an answer fails or breaks off; a host that cannot be reached is not asked again."""
    import pooch
    import requests

    download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=2**16, timeout=TIMEOUT)
    for last_try in (False, True):
        try:
            return download(address, path, None)
        except requests.RequestException as error:
            if last_try or isinstance(error, requests.ConnectionError):
                status = f"HTTP {error.response.status_code}" if error.response is not None else type(error).__name__
                raise _Refused(f"download failed ({status})") from error


def _unavailable(name: str, entry: str, expected: str, tried: Mapping[str, str]) -> DataUnavailable:
    attempts = "".join(f"\n  {place}: {reason}" for place, reason in tried.items())
    return DataUnavailable(
        f"{name}: {entry} could not be had, expected {expected}. Tried:{attempts}\n"
        f"Way out: put it in a folder <mirror> as {name}/{entry} or {entry}, and set {MIRROR_VARIABLE}=<mirror> "
        f"(or the key `mirror` in conf/dataset/{name}/)."
    )
