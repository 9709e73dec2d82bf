"""Outputs of trained seeds, kept by fingerprint, so that a seed that is trained is never trained again.

    .scratch/seeds/<fingerprint>/            the outputs of one seed, and `digests.json` over them
    .scratch/seeds/<fingerprint>.damaged/    an entry whose files are not those that were written
    .scratch/seeds/.locks/<fingerprint>.*    locks of those that write it (`write`) or use it (`use`)

A finished entry is renamed into place, so it is always complete. All locks are `flock`: the kernel releases them when a
process ends, for any reason. Processes on several machines share them if the file system supports `flock` (local ones,
NFS 4, Lustre mounted with it). The store is not an output of DVC, which empties outputs before a stage runs. Imports no
torch.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from lightning_modules.files import replace_folder, scratch, sha256, write_json

DEFAULT_GB = 20.0
_DIGESTS = "digests.json"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class SeedStore:
    """The store of a repository, with its limit from the environment (`REPRISE_STORE_GB`)."""

    def __init__(self) -> None:
        self.folder = scratch() / "seeds"
        self.limit = limit_gb() * 1e9  # bytes

    def entry(self, fingerprint: str) -> Path:
        """Where an entry lies, if there is one."""
        return self.folder / fingerprint

    @contextlib.contextmanager
    def using(self, fingerprints: Iterable[str]) -> Iterator[None]:
        """Keep entries from being removed by `trim`, also those that are still to be written."""
        with contextlib.ExitStack() as stack:
            for fingerprint in sorted(set(fingerprints)):
                stack.enter_context(self._locked(fingerprint, "use", fcntl.LOCK_SH))
            yield

    @contextlib.contextmanager
    def writing(self, fingerprint: str, *, wait: str | None) -> Iterator[None]:
        """Be the only process that checks, trains or replaces an entry.

        Args:
            fingerprint: of the entry.
            wait: what to print before waiting for another process. None: do not wait.

        Raises:
            BlockingIOError: another process has it, and `wait` is None.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked(fingerprint, "write", fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                if wait is None:
                    raise
                print(wait, file=sys.stderr, flush=True)
                stack.enter_context(self._locked(fingerprint, "write", fcntl.LOCK_EX))
            yield

    def sound(self, fingerprint: str) -> bool:
        """Whether there is an entry, and every file in it is the one that was written."""
        return self.entry(fingerprint).is_dir() and _damage(self.entry(fingerprint)) is None

    def take(self, fingerprint: str) -> bool:
        """Whether there is a sound entry, which counts as used now. A damaged one is set aside, with one line.

        The caller holds `writing`.
        """
        entry = self.entry(fingerprint)
        if not entry.is_dir():
            return False
        damage = _damage(entry)
        if damage is None:
            os.utime(entry)
            return True
        aside = entry.with_name(f"{fingerprint}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        entry.rename(aside)
        print(f"{entry}: {damage}: set aside as {aside.name}, the seed is trained anew", file=sys.stderr, flush=True)
        return False

    @contextlib.contextmanager
    def put(self, fingerprint: str) -> Iterator[Path]:
        """Yield an empty folder that becomes the entry, in place of an earlier one, when the block ends well.

        The caller holds `writing`.
        """
        with replace_folder(self.entry(fingerprint)) as folder:
            yield folder
            write_json(folder / _DIGESTS, _digests(folder))

    def copy(self, fingerprint: str, target: Path) -> None:
        """Copy the outputs of an entry into a new folder.

        Raises:
            FileNotFoundError: there is no such entry.
        """
        with self._locked(fingerprint, "write", fcntl.LOCK_SH):
            shutil.copytree(self.entry(fingerprint), target, ignore=shutil.ignore_patterns(_DIGESTS))

    def trim(self) -> None:
        """Remove what was not used for the longest time, until the store is within its limit.

        What a running process uses or writes stays, even where that is more than the limit.
        """
        if not self.folder.is_dir():
            return
        found = []
        for path in self.folder.iterdir():
            if path.name != ".locks":
                with contextlib.suppress(FileNotFoundError):  # another process removes it
                    found.append((not path.name.startswith("."), path.stat().st_mtime_ns, path, _size(path)))
        total = sum(size for *_, size in found)
        for kept, _, path, size in sorted(found):  # what a killed process left of a write goes in any case
            if (total > self.limit or not kept) and self._remove(path):
                total -= size

    def _remove(self, path: Path) -> bool:
        """Remove an entry or what is left of one, unless a process uses or writes it."""
        fingerprint = path.name.strip(".").partition(".")[0]
        try:
            with (
                self._locked(fingerprint, "use", fcntl.LOCK_EX | fcntl.LOCK_NB) as use,
                self._locked(fingerprint, "write", fcntl.LOCK_EX | fcntl.LOCK_NB) as write,
            ):
                doomed = path.with_name(f".{fingerprint}.removed")
                if path != doomed:
                    shutil.rmtree(doomed, ignore_errors=True)
                    path.rename(doomed)  # a kill from here on leaves no half entry
                shutil.rmtree(doomed)
                for lock in (use, write):
                    Path(lock.name).unlink()
        except (BlockingIOError, FileNotFoundError):
            return False
        return True

    @contextlib.contextmanager
    def _locked(self, fingerprint: str, purpose: str, how: int) -> Iterator[BinaryIO]:
        path = self.folder / ".locks" / f"{fingerprint}.{purpose}"
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with path.open("a+b") as file:
                try:
                    fcntl.flock(file, how)
                except OSError as error:
                    if error.errno in _NO_LOCKS:
                        raise OSError(
                            error.errno,
                            f"the file system of {self.folder} has no flock: mount it with flock, or make .scratch a "
                            "link to a folder that has it",
                        ) from error
                    raise
                if not _is_at(file, path):
                    continue  # `trim` removed it in between
                try:
                    yield file
                finally:
                    fcntl.flock(file, fcntl.LOCK_UN)  # forked workers hold the file open too
                return


def limit_gb() -> float:
    """The limit of the store in GB, from REPRISE_STORE_GB.

    Raises:
        ValueError: it is no number from 0 on.
    """
    given = os.environ.get("REPRISE_STORE_GB") or str(DEFAULT_GB)
    try:
        limit = float(given)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise ValueError(f"REPRISE_STORE_GB is {given!r}, expected a number of GB from 0 on, such as {DEFAULT_GB:g}")
    return limit


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _DIGESTS)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _damage(entry: Path) -> str | None:
    """What is wrong with the files of an entry, if anything is."""
    try:
        expected = dict(json.loads((entry / _DIGESTS).read_text()))
    except (FileNotFoundError, TypeError, ValueError):
        return f"{_DIGESTS} is missing or cannot be read"
    found = _digests(entry)
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return f"{', '.join(different)} altered or missing" if different else None
