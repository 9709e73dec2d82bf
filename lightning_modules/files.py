"""Files that are written completely or not at all, and the folder for what is kept between stages. Imports no torch."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, largest file


def scratch() -> Path:
    """Folder for what is kept when a stage ends: checkpoints to resume from, run records, logs.

    A queued DVC experiment runs in a temporary copy that is removed; `DVC_ROOT` then names the repository it came from.
    """
    return Path(os.environ.get("DVC_ROOT") or ROOT) / ".scratch"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_array(path: Path) -> "np.ndarray":
    """The array of a `.npy` file, without running code that may be hidden in it.

    Raises:
        ValueError: the file is not there, or it is no such file, or cut off.
    """
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an array: {error}") from error


def digest(*content: object) -> str:
    """Digest of JSON content, 16 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, renamed to it when the block ends well, and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _full_disk_named(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends well, or is removed.

    An earlier `path` stays whole until then. A killed process leaves a hidden sibling at most, which the next call
    removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(leftover)
    with _full_disk_named(path), TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    """If the disk is full, name the file that could not be written, and say that no part of it was left behind."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        reason = f"no space to write {path}; nothing of it was left: free some space and run again"
        raise OSError(error.errno, reason) from error


def write_json(path: Path, content: object) -> None:
    """Write readable JSON with sorted keys, whole or not at all."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
