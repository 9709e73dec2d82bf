"""What `dvc repro -s STAGE` does before and after a stage's command, in one process that keeps the repository open.

DVC's objects belong to one thread: use a `Bookkeeper` only from the thread that made it. While a stage runs, its files
are entered in DVC's rwlock, so that a `dvc` command in another terminal does not touch them and says which process uses
them. The lock of the whole repository is held only during the bookkeeping.
"""

import copy
import functools
import logging
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import networkx

from lightning_modules.files import FULL, replace_file

if TYPE_CHECKING:
    from dvc.stage import PipelineStage

ENTRY = re.compile(r"^  ([^\s#].*):\n", re.MULTILINE)  # the first line of a stage in dvc.lock, as DVC writes it
REFERENCE = re.compile(r"(?<=[ ][&*])id\d{3,}(?=\s)")  # a name that DVC's writer gives to a value that occurs twice
HEAD = "schema: '2.0'\nstages:\n"


class Busy(ValueError):
    """Another `dvc` command uses the same files; try again later."""


class Bookkeeper:
    """DVC's repository, kept open. The name of a stage is its address relative to the root.

    Attributes:
        root: the repository's root.
        graph: the stages; an edge points to what a stage needs.
    """

    def __init__(self, root: Path, files: Iterable[Path] = ()):
        """Open the repository, and read the stages of these `dvc.yaml`, or of all that it has."""
        from dvc.lock import make_lock
        from dvc.repo import Repo
        from dvc.repo.index import Index

        _parse_once()
        for package in (
            "dvc",
            "dvc_data",
            "dvc_objects",
        ):  # errors are raised; their progress bars go by the level, too
            logging.getLogger(package).setLevel(logging.CRITICAL)
        self.root = root.resolve()
        self.repo = Repo(str(self.root))
        tmp = self.repo.tmp_dir  # the same lock file as DVC's own, without a progress bar of its own
        self.repo.lock = make_lock(os.path.join(tmp, "lock"), tmp_dir=tmp, hardlink_lock=self._hardlink)
        read = [Index.from_file(self.repo, str(file)) for file in files]  # half the time, if it is one preset of two
        graph = (Index.from_indexes(self.repo, read) if read else self.repo.index).graph
        self._stages: dict[str, PipelineStage] = {name_of(stage): stage for stage in graph if stage.cmd}
        names = {stage: name for name, stage in self._stages.items()}
        self.graph = networkx.relabel_nodes(graph.subgraph(names), names)
        self._held: dict[str, ExitStack] = {}
        self._written = {lock: _signature(lock) for lock in map(_lock_file, self._stages.values())}

    @property
    def _hardlink(self) -> bool:
        return self.repo.config["core"].get("hardlink_lock", False)

    def close(self) -> None:
        """Release all locks, and close the repository."""
        for name in list(self._held):
            self.abandon(name)
        self.repo.close()

    def stale(self, names: Iterable[str]) -> set[str]:
        """The stages that are not up to date, with all stages that need them.

        Raises:
            Busy: another `dvc` command is at work.
        """
        names = set(names)
        stale: set[str] = set()
        with self._acting("checking what is up to date"):
            for name in networkx.topological_sort(self.graph.reverse(copy=False)):
                if name not in names:
                    continue
                if not stale.isdisjoint(self.graph.successors(name)) or _differs(self._fresh(name)):
                    stale.add(name)
        return stale

    def tidy(self, names: Iterable[str]) -> list[Path]:
        """Remove what no stage makes from folders that the stages read, and give its paths.

        Arms that a plan has no more leave such files, and so do killed runs. They would change the hash of the folder,
        and no other clone could have the same. What git tracks and what another `dvc` command uses is left alone.

        Raises:
            Busy: another `dvc` command is at work.
        """
        from dvc.lock import LockError
        from dvc.rwlock import rwlock

        outs = [out for stage in self._stages.values() for out in stage.outs]
        made = {Path(out.fs_path) for out in outs}
        above = {folder for path in made for folder in path.parents}
        tracked = {folder for out in outs if not out.use_cache for folder in Path(out.fs_path).parents}
        read = {Path(dep.fs_path) for name in names for dep in self._stages[name].deps}
        strays = {folder: sorted(_strays(folder, made, above)) for folder in sorted(read & above - tracked)}
        removed: list[Path] = []
        for folder in filter(strays.get, strays):
            with self._acting("removing what no stage makes"), suppress(LockError):
                command = " ".join(sys.argv)
                with rwlock(self.repo.tmp_dir, self.repo.fs, command, [], [str(folder)], self._hardlink):
                    for path in filter(os.path.lexists, strays[folder]):
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                        removed.append(path)
        return removed

    def begin(self, name: str, *, force: bool = False) -> Literal["unchanged", "cached", "run"]:
        """Make a stage ready to run, unless it is up to date or DVC's run cache has its outputs.

        After `run`, the caller runs the command and then calls `end` or `abandon`.

        Raises:
            Busy: another `dvc` command is at work; nothing was done.
        """
        from dvc.lock import LockError
        from dvc.rwlock import rwlock
        from dvc.stage.cache import RunCacheNotFoundError

        with self._acting(name), ExitStack() as held:
            stage = self._fresh(name)
            if not force and not stage.changed():
                return "unchanged"
            reads, writes = ([item.fs_path for item in items] for items in (stage.deps, stage.outs))
            try:
                held.enter_context(
                    rwlock(self.repo.tmp_dir, self.repo.fs, " ".join(sys.argv), reads, writes, self._hardlink)
                )
            except LockError as error:
                raise _busy(error) from None
            stage.remove_outs(ignore_remove=False, force=False)
            if not force:
                try:
                    self.repo.stage_cache.restore(stage)
                except RunCacheNotFoundError:
                    stage.save_deps()
                else:
                    self._save(stage)
                    return "cached"
            self._held[name] = held.pop_all()
        return "run"

    def end(self, name: str) -> None:
        """Record the outputs of a command that has succeeded.

        Raises:
            Busy: another `dvc` command holds the repository's lock; nothing was done.
        """
        with self._acting(name):
            try:
                self._save(self._fresh(name))
            finally:
                self.abandon(name)

    def abandon(self, name: str) -> None:
        """Release a stage whose command failed. DVC's lock file keeps its last good state."""
        if held := self._held.pop(name, None):
            held.close()

    def command(self, name: str) -> str | list[str]:
        """The command of a stage in dvc.yaml."""
        return self._stages[name].cmd

    def folder(self, name: str) -> Path:
        """The working directory of the command."""
        return Path(self._stages[name].wdir)

    def environment(self, name: str) -> dict[str, str]:
        """The variables that DVC adds to the environment of a command."""
        return {"DVC_ROOT": os.environ.get("DVC_ROOT", str(self.root)), "DVC_STAGE": name}

    @contextmanager
    def _acting(self, what: str) -> Iterator[None]:
        """Hold the lock of the repository, with a name by which DVC tells other commands who has it."""
        from dvc.lock import LockError

        before, sys.argv = sys.argv, ["make", "repro:", what]
        try:
            with (
                chdir(self.root),
                self.repo.lock,
                self.repo.scm_context(quiet=True),
            ):  # DVC resolves names by the folder
                yield
        except LockError as error:
            raise _busy(error) from None
        except Exception as error:
            if reason := explained(error, self.repo.cache.local_cache_dir):
                raise ValueError(reason) from error
            raise
        finally:
            sys.argv = before

    def _fresh(self, name: str) -> "PipelineStage":
        """The stage, read again if another process has changed its lock file."""
        lock = _lock_file(self._stages[name])
        if self._written[lock] != _signature(lock):
            self._written[lock] = _signature(lock)
            dvcfile = self._stages[name].dvcfile
            dvcfile._reset()
            self._stages |= {name_of(stage): stage for stage in dvcfile.stages.values()}
        return self._stages[name]

    def _save(self, stage: "PipelineStage") -> None:
        tracked = all(out.use_cache for out in stage.outs if not (out.is_metric or out.is_plot))
        stage.save(run_cache=tracked)  # the same condition as in DVC's Stage.run
        stage.commit()
        self._write_lock(stage)

    def _write_lock(self, stage: "PipelineStage") -> None:
        """Write a stage's entry into its dvc.lock, as `stage.dump(update_pipeline=False)` does.

        DVC reads and writes the whole file for each stage. This replaces the entry's lines only, which gives the same
        bytes, keeps the entries sorted by name (stages that run side by side end in no fixed order), and replaces the
        file in one step.
        """
        from dvc.stage.serialize import to_lockfile
        from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

        path = _lock_file(stage)
        text = path.read_text(encoding="utf-8") if path.is_file() else HEAD
        entry = dumps_yaml({"stages": to_lockfile(stage)}).removeprefix("stages:\n")
        if text.startswith(HEAD):
            text = HEAD + _joined(_entries(text.removeprefix(HEAD)) | _entries(entry))
        else:  # not in the form that DVC writes
            data = parse_yaml_for_update(text, str(path))
            stages = {**(data.get("stages") or {}), **to_lockfile(stage)}
            text = dumps_yaml({**data, "stages": dict(sorted(stages.items()))})
        with replace_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self._written[path] = _signature(path)


def _strays(folder: Path, made: Collection[Path], above: Collection[Path]) -> Iterator[Path]:
    """Paths in a folder that are neither outputs of stages nor folders that hold some."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path in above:
            yield from _strays(path, made, above)
        elif path not in made:
            yield path


def _entries(text: str) -> dict[str, str]:
    """The lines below each stage's name."""
    _, *pieces = ENTRY.split(text)
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def _joined(entries: dict[str, str]) -> str:
    """The entries sorted by name, with references numbered through the file, as DVC's writer does it."""
    text, count = "", 0
    for name, lines in sorted(entries.items()):
        names = {old: f"id{count + number:03}" for number, old in enumerate(sorted(set(REFERENCE.findall(lines))), 1)}
        text += f"  {name}:\n" + REFERENCE.sub(lambda match, names=names: names[match[0]], lines)
        count += len(names)
    return text


def _differs(stage: "PipelineStage") -> bool:
    """Like `stage.changed()`, but without an entry in DVC's rwlock; `begin` checks again with one."""
    if stage.changed_stage() or stage.is_callback or stage.always_changed:
        return True
    return any(dep.status() for dep in stage.deps) or any(out.status() for out in stage.outs)


def explained(error: Exception, cache: str) -> str | None:
    """What went wrong outside of DVC, and what to do about it; None if DVC's own text has to do.

    Args:
        error: what DVC raised.
        cache: folder of its cache.
    """
    if found := re.search(r"'(.+)' is outside of git repository", str(error)):
        return (
            f"{found[1]} lies elsewhere by a link, and DVC tracks nothing behind a link: put the whole project on that "
            "disk, or only DVC's cache, with `.venv/bin/dvc cache dir --local <folder>`"
        )
    if not isinstance(error, OSError) or isinstance(error, ValueError):
        return None
    if error.errno in FULL:
        return (
            f"no space left, in DVC's cache {cache} or in the project: free some, for example with `.venv/bin/dvc gc "
            "--workspace`, or move the cache with `.venv/bin/dvc cache dir --local <folder>`"
        )
    if str(error.filename or "").startswith(cache):
        return (
            f"DVC's cache {cache} cannot be written ({error.strerror}): make it writable, or name another folder with "
            "`.venv/bin/dvc cache dir --local <folder>`"
        )
    return None


def _busy(error: Exception) -> Busy:
    """DVC's error in one line, without its advice to delete lock files by hand."""
    return Busy(" ".join(str(error).partition("\n\n")[0].split()))


def name_of(stage: "PipelineStage") -> str:
    """A stage's address from the root, whatever the current folder is."""
    name = getattr(stage, "name", None)
    if name is None:
        return stage.path_in_repo
    return name if stage.path_in_repo == "dvc.yaml" else f"{stage.path_in_repo}:{name}"


def _lock_file(stage: "PipelineStage") -> Path:
    return Path(stage.path).with_suffix(".lock")


@functools.cache
def _parse_once() -> None:
    """Let DVC parse a file of parameters once, while it stays the same, and an expression such as `${key}` once.

    DVC does both several times for each stage, and this took most of the time of its bookkeeping.
    """
    from dvc.dependency import param
    from dvc.parsing import interpolate

    load, parsed = param.load_path, {}

    def load_path(path: str, *args, **kwargs) -> dict:
        signature = _signature(Path(path))
        if path not in parsed or parsed[path][0] != signature:
            parsed[path] = signature, load(path, *args, **kwargs)
        return copy.deepcopy(parsed[path][1])

    param.load_path = load_path
    interpolate.parse_expr = functools.cache(interpolate.parse_expr)


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
