"""Decides which stage runs when, and runs it: the main loop of `make repro`."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from shutil import which

import networkx

from lightning_modules.files import scratch
from lightning_modules.processes import GO_ON_LATER, cores
from stages.plan import parts
from stages.runner import durations
from stages.runner.bookkeeping import Bookkeeper, Busy
from stages.runner.children import Child, Server, forked_module, wait
from stages.runner.display import Lines, Running, span

TICK = 0.2  # seconds between two checks of what cannot wake the loop
PATIENCE = 1.0  # seconds until a stage whose files are busy is tried again
GRACE = 60.0  # seconds that a child has to end by itself: for a step of a training and its checkpoint
TRAININGS = ("pretrain", "pretrain_from", "finetune")  # stages that write their progress
LAST_LINES = 15  # how many lines of the log of a failed stage are shown


@dataclass
class Work:
    """A stage that has begun: first `parts`, which may run side by side, then its own command.

    Attributes:
        own: whether its own command is still to be started.
        running: how many of its commands run now.
        seconds: time spent, summed over slots.
        failed: why it failed; empty if it did not.
        stopped: whether one of its commands has ended with `GO_ON_LATER`.
        short: whether a command that trains had nothing to train, because the seed store had its outputs.
    """

    name: str
    parts: list[str]
    own: bool = True
    running: int = 0
    seconds: float = 0.0
    failed: str = ""
    stopped: bool = False
    short: bool = False
    started: int = 0
    of: int = field(init=False)

    def __post_init__(self):
        self.of = len(self.parts)


class Runner:
    """Runs stages in slots, as soon as what they need is done.

    Args:
        books: DVC's repository, kept open.
        names: the stages to consider; those that are up to date are left alone.
        order: a key; of the stages that can start, the one with the smallest key starts first.
        after: called with each stage that has succeeded and the set of stages that are not up to date.
        parts: commands of a stage that may run side by side before its own command, such as one for each seed.
        slots: one entry for each command that may run at a time: its CUDA_VISIBLE_DEVICES, or empty.
        launch: prefix of each command, such as `srun -N1 -n1`.
        force: also run stages that are up to date, and take nothing from a cache.
        display: what the user sees.

    Raises:
        ValueError: there is no slot, or the program in `launch` does not exist.

    Attributes:
        done: stages that ran, that were taken from DVC's run cache, or that turned out to be up to date.
        failed: the reason of each stage that failed.
        stopped: stages of which a command was stopped by a signal, and will go on when it is run again.
        left: stages that were not begun.
        errors: one line for each error outside of stages.
        interrupted: the signal that ended the run early, or None.
    """

    def __init__(
        self,
        books: Bookkeeper,
        names: Iterable[str],
        *,
        order: Callable[[str], object] = str,
        after: Callable[[str, set[str]], None] = lambda name, stale: None,
        parts: Callable[[str], list[str]] = lambda name: [],
        slots: Sequence[str] = ("",),
        launch: Sequence[str] = (),
        force: bool = False,
        display: Lines | None = None,
    ):
        if not slots:
            raise ValueError("a run needs at least one slot")
        if launch and not which(launch[0]):
            raise ValueError(
                f"--launch: there is no program {launch[0]!r} on this machine; expected one such as `srun`"
            )
        self.books, self.order, self.after, self.parts = books, order, after, parts
        self.free, self.slots, self.launch, self.force = list(slots), len(slots), list(launch), force
        self.display = Lines() if display is None else display
        self.started = time.monotonic()
        self.waiting = set(names) if force else books.stale(names)
        self.total = len(self.waiting)
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}
        self.stopped: set[str] = set()
        self.errors: list[str] = []
        self.interrupted: signal.Signals | None = None
        self._works: dict[str, Work] = {}
        self._running: dict[Child, tuple[Work, Running, str]] = {}
        self._ended: list[Work] = []  # all commands have ended; DVC's bookkeeping is still to be done
        self._put_off: dict[str, float] = {}
        self._signals = 0
        self._stopped_at = 0.0
        self._server: Server | None = None
        self._durations = durations.load(books.root, scratch())
        self._took: dict[str, float] = {}

    @property
    def left(self) -> set[str]:
        """Stages that were not begun."""
        return set(self.waiting)

    def finished(self) -> int:
        """How many stages need no more work."""
        return len(self.done) + len(self.failed)

    def working(self) -> list[Running]:
        """What runs now, the oldest first."""
        return sorted((running for _, running, _ in list(self._running.values())), key=lambda each: each.started)

    def seconds_left(self) -> float | None:
        """An estimate of the time until everything is done; None where nothing is known."""
        spent: dict[str, float] = {}
        for work, running, _ in list(self._running.values()):
            spent[work.name] = spent.get(work.name, work.seconds) + time.monotonic() - running.started
        left = self.waiting | set(self._works)
        return durations.seconds_left(self.books.graph, left, spent, self._durations, self.slots)

    def run(self) -> None:
        """Run until no stage is left that can run, or until a signal stops it."""
        if not self.launch and any(forked_module(self.books.command(name)) for name in self.waiting):
            self._server = Server()
        self.display.start(self)
        try:
            with self._signals_noted():
                while self._step():
                    pass
        finally:
            for child in self._running:  # only after an error in this class
                child.signal(signal.SIGKILL)
            self.display.stop()
            durations.remember(scratch(), self._took)

    def _step(self) -> bool:
        """Start commands, wait, and handle those that have ended. False if there is nothing more to do."""
        self._close_books()
        if self.interrupted:
            self._stop()
        else:
            while self.free and self._start_next():
                pass
        if not (self._running or self._ended or (self._soon() and not self.interrupted)):
            return False
        wait(list(self._running), TICK)
        for child in [child for child in self._running if child.poll() is not None]:
            self._take_up(child)
        return True

    def _soon(self) -> bool:
        """Whether a stage can start later if nothing runs now: its files are in use, or torch is not imported yet."""
        return bool(self._works) or bool(self._ready())

    # Starting

    def _ready(self) -> list[str]:
        """Waiting stages whose inputs are all up to date, in order."""
        graph = self.books.graph
        blocked = self.stopped.union(*(networkx.ancestors(graph, name) for name in (*self.failed, *self.stopped)))
        pending = self.waiting | set(self._works)
        free = (name for name in self.waiting - blocked if not pending.intersection(graph.successors(name)))
        return sorted(free, key=self.order)

    def _start_next(self) -> bool:
        """Start one command, or find that a stage needs none. False if nothing can start now."""
        now = time.monotonic()
        open_works = [name for name, work in self._works.items() if self._command(work)]
        for name in sorted([*open_works, *self._ready()], key=self.order):
            command = self.books.command(name)
            torchless = self._server and forked_module(command) and not self._server.ready()
            if torchless or self._put_off.get(name, 0.0) > now:
                continue
            if name in self._works or self._begin(name):
                self._start(self._works[name])
            return True
        return False

    def _begin(self, name: str) -> bool:
        """Do DVC's bookkeeping before a command. False if the stage needs no command, or cannot start now."""
        try:
            what = self.books.begin(name, force=self.force)
        except Busy as busy:
            self._put_aside(name, busy)
            return False
        except Exception as error:
            self.waiting.discard(name)
            self._fail(name, self._noted(name, error))
            return False
        self.waiting.discard(name)
        if what == "run":
            parts = self.parts(name) if self.slots > 1 else []
            self._works[name] = Work(name, parts if len(parts) > 1 else [])
            return True
        self._finish(name, what, 0.0)
        return False

    def _command(self, work: Work) -> str:
        """Which command of a stage can start now: `part`, `own`, or empty for none."""
        if work.failed or work.stopped:
            return ""
        return "part" if work.parts else "own" if work.own and not work.running else ""

    def _start(self, work: Work) -> None:
        """Start the next command of a stage in a free slot."""
        part = self._command(work) == "part"
        command = work.parts.pop(0) if part else self.books.command(work.name)
        work.own, work.started = part, work.started + 1
        title = f"{work.name} ({work.started} of {work.of})" if part else work.name
        label = _file_name(f"{work.name}.{work.started}" if part else work.name)
        slot = self.free.pop(0)
        environment = self.books.environment(work.name) | {"REPRISE_PROGRESS": str(scratch() / "progress" / label)}
        if slot:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        if self.force and (part or not work.of):  # after parts, its own command only collects what they have trained
            environment["REPRISE_FORCE"] = "1"
        progress = Path(environment["REPRISE_PROGRESS"])
        progress.parent.mkdir(parents=True, exist_ok=True)
        progress.unlink(missing_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        workers = str(max(1, cores() // self.slots))
        try:
            child = Child(
                command,
                folder=self.books.folder(work.name),
                environment={"REPRISE_WORKERS": workers, **os.environ, "PATH": path, **environment},
                log=scratch() / "logs" / f"{label}.log",
                launch=self.launch,
                server=self._server,
            )
        except OSError as error:
            self.free.append(slot)
            work.failed = self._noted(work.name, error)
            self._settle(work)
            return
        work.running += 1
        self._running[child] = work, Running(title, child.started, progress), slot

    # Ending

    def _take_up(self, child: Child) -> None:
        """Record how a child has ended, and settle its stage if that was its last command."""
        work, running, slot = self._running.pop(child)
        code = child.poll()
        child.close()
        trains = parts(work.name)[1] in TRAININGS and (work.own or not work.of)  # not what collects trained seeds
        work.short |= trains and not running.progress.exists()
        running.progress.unlink(missing_ok=True)
        self.free.append(slot)
        work.running -= 1
        work.seconds += time.monotonic() - running.started
        if code == GO_ON_LATER:
            work.parts.clear()
            work.stopped = True
        elif code:
            work.parts.clear()
            work.failed = work.failed or _reason(code, child.log)
            if not self.interrupted:
                self._show_log(child.log)
        self._settle(work)

    def _settle(self, work: Work) -> None:
        """Finish a stage if none of its commands runs or is still to be started."""
        if work.running:
            return
        if work.failed or work.stopped:
            self.books.abandon(work.name)
            del self._works[work.name]
            if work.failed and not self.interrupted:
                self._fail(work.name, work.failed, work.seconds)
                return
            self.waiting.add(work.name)
            if not self.interrupted:
                self.stopped.add(work.name)
                self._say("stopped", work.name, work.seconds, ": run the same command again to go on")
        elif not work.own and not work.parts:
            self._ended.append(work)

    def _close_books(self) -> None:
        """Do DVC's bookkeeping after the commands that have succeeded."""
        for work in list(self._ended):
            if self._put_off.get(work.name, 0.0) > time.monotonic():
                continue
            try:
                self.books.end(work.name)
            except Busy as busy:
                self._put_aside(work.name, busy)
                if self._signals < 2:
                    continue
                self._fail(work.name, "stopped while another dvc command held the lock of the repository", work.seconds)
            except Exception as error:
                self._fail(work.name, self._noted(work.name, error), work.seconds)
            else:
                if not work.short or work.name not in self._durations:  # the time of a whole training is worth more
                    self._took[work.name] = work.seconds
                self._finish(work.name, "done", work.seconds)
            self._ended.remove(work)
            self._works.pop(work.name, None)

    def _finish(self, name: str, what: str, seconds: float) -> None:
        """Report that a stage is up to date, and call `after`."""
        self.done.add(name)
        self._works.pop(name, None)
        self._say(what, name, seconds)
        try:
            self.after(name, self.waiting | set(self._works) | set(self.failed))
        except Exception as error:
            self.errors.append(f"printing the claims after {name} failed: {self._noted('runner', error)}")
            self.display.say(f"error: {self.errors[-1]}")

    def _fail(self, name: str, reason: str, seconds: float = 0.0) -> None:
        self.failed[name] = reason
        self._say("failed", name, seconds, f": {reason}")

    def _say(self, what: str, name: str, seconds: float, more: str = "") -> None:
        elapsed = time.monotonic() - self.started
        took = f" ({span(seconds)})" if seconds else ""
        self.display.say(f"[{elapsed:6.1f} s] {what:9} {name}{took}{more}")

    def _show_log(self, log: Path) -> None:
        text = log.read_text(errors="replace") if log.is_file() else ""
        for line in text.replace("\r", "\n").splitlines()[-LAST_LINES:]:
            self.display.say(f"    {line}")

    def _noted(self, name: str, error: Exception) -> str:
        """An error in one line; the traceback goes to a log."""
        log = scratch() / "logs" / f"{_file_name(name)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            traceback.print_exception(error, file=file)
        text = " ".join(str(error).split())
        if isinstance(error, ValueError) and text:
            return text  # written for the user
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    def _put_aside(self, name: str, busy: Busy) -> None:
        if name not in self._put_off:
            self.display.say(f"{name} waits: {busy}")
        self._put_off[name] = time.monotonic() + PATIENCE

    # Signals

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """Record signals instead of raising an exception, so that bookkeeping is never interrupted halfway."""

        def note(number: int, frame: object) -> None:
            self._signals += 1
            self.interrupted = self.interrupted or signal.Signals(number)

        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup make repro` goes on
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        """After a signal: ask the children to end; kill them after `GRACE` seconds or at a second signal."""
        now = time.monotonic()
        if not self._stopped_at:
            self._stopped_at = now
            if self._running:
                again = "; Ctrl-C again kills them" if self.interrupted is signal.SIGINT else ""
                self.display.say(f"{self.interrupted.name}: stopping {len(self._running)} commands{again}")
            for child in self._running:
                child.signal(signal.SIGUSR1 if child.launched else signal.SIGTERM)  # at SIGTERM `srun` kills, at once
        if self._signals > 1 or now > self._stopped_at + GRACE:
            for child in self._running:
                child.signal(signal.SIGKILL)
        for name in [name for name, work in self._works.items() if not work.running and work not in self._ended]:
            self.books.abandon(name)
            self.waiting.add(name)
            del self._works[name]


def _file_name(name: str) -> str:
    return name.replace("/", "_").replace(":", "_")


def _reason(code: int, log: Path) -> str:
    """Why a command failed, in one line."""
    if code > 0:
        return f"exit code {code}, log in {log}"
    name = signal.Signals(-code).name
    hint = ", perhaps because memory ran out" if -code == signal.SIGKILL else ""
    return f"killed by {name}{hint}, log in {log}"


@contextmanager
def alone() -> Iterator[None]:
    """Make sure that only this process runs stages in this folder.

    Raises:
        ValueError: another process already does, or the file system has no locks.
    """
    path = scratch() / "repro.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"another `make repro` is running in this folder (process {file.read().strip() or 'unknown'}): "
                "wait until it ends, or stop it"
            ) from None
        except OSError as error:
            raise ValueError(
                f"the file system of {path.parent} has no flock ({error.strerror}): mount it with flock, or make "
                ".scratch a link to a folder that has it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
