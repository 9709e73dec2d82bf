"""Processes: how they are stopped, their user, the cores they may use, and whether a parent forces a rerun."""

import contextlib
import ctypes
import getpass
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path, PurePath

import psutil

# What trainings import, for a server that they are forked from: nine CPU seconds. Most of them are Lightning's, which
# imports torch._dynamo and torchmetrics, and with it transformers, scipy.signal and matplotlib, used or not. Imported
# under PRELOAD_ENVIRONMENT they start no thread and touch no CUDA, so that the server can be forked.
PRELOAD = (
    "lightning_modules.training",
    "hydra",
    "jaxtyping",
    "omegaconf",
    "pyarrow.dataset",
    "torch.profiler",
    "transformers.models.clip.modeling_clip",
)
PRELOAD_ENVIRONMENT = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"}
FORCE = re.compile(r"--f[a-z-]*|-[A-Za-z]*f.*")  # what can be the option, so that DVC's parser is seldom needed

GO_ON_LATER = os.EX_TEMPFAIL  # 75, the exit code that says: nothing failed, run the same command again to go on
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # SLURM warns of the end of its time with any of them
asked: list[signal.Signals] = []  # which of them this process has got

log = logging.getLogger(__name__)
_LIBC = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None  # loaded here: nothing is loaded after a fork


def die_with_parent() -> None:
    """Make the kernel end this process when its parent ends, for any reason. Otherwise it would go on as an orphan."""
    if _LIBC:
        _LIBC.prctl(1, signal.SIGTERM)


class Stopped(SystemExit):
    """A signal has asked this process to stop; it ends with `GO_ON_LATER`."""

    def __init__(self, code: int = GO_ON_LATER) -> None:
        super().__init__(code)


def stop_on_signals() -> None:
    """Let each of the signals `STOPPING` raise `Stopped` where this process is."""
    for number in STOPPING:
        signal.signal(number, _stop)


def side_by_side(
    calls: Sequence[Callable[[int], object]], workers: int, context: multiprocessing.context.BaseContext
) -> None:
    """Call each in a process of its own, at most `workers` at a time, with the number of its place among these.

    After one that fails no other is begun, and those that run are waited for. When this process is asked to stop, or
    one of the others ends by itself with `GO_ON_LATER`, all are asked to stop, and waited for. There is no pool: its
    processes share locks and pipes, and one that ends at the wrong moment leaves the others waiting for ever.

    Raises:
        Exception: what the first failing call raised, with its traceback as a note.
        RuntimeError: a process was killed.
        Stopped: this process or one of them was asked to stop.
    """
    waiting, places = list(reversed(calls)), list(reversed(range(workers)))
    running: dict[Connection, tuple[multiprocessing.process.BaseProcess, int]] = {}
    failure: Exception | Stopped | None = None
    try:
        while running or (waiting and failure is None):
            while waiting and places and failure is None:
                if asked:
                    raise Stopped
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_beside, args=(waiting.pop(), place := places.pop(), sender))
                with signals_noted():  # raised in a process that is just forked, it would end there what runs here
                    process.start()
                    running[receiver] = process, place
                sender.close()
            for receiver in wait(running):
                fault = _fault(receiver, running[receiver][0])
                places.append(running.pop(receiver)[1])
                if isinstance(fault, Stopped):
                    raise fault
                failure = failure or fault
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        for process in multiprocessing.active_children():
            process.join()
        raise
    if failure is not None:
        raise failure


def _beside(call: Callable[[int], object], place: int, sender: Connection) -> None:
    """One call, in the process that is its own."""
    die_with_parent()
    stop_on_signals()
    if asked:
        raise Stopped
    try:
        call(place)
    except Exception as error:
        told = traceback.format_exc()
        try:
            error.add_note(told)
            sender.send(error)
        except Exception:  # some hold what cannot be sent
            sender.send(RuntimeError(told))
        sys.exit(1)


def _fault(receiver: Connection, process: multiprocessing.process.BaseProcess) -> Exception | Stopped | None:
    """Why a call has failed, when its process has said so or has ended."""
    try:
        fault = receiver.recv()
    except EOFError:
        fault = None
    except Exception as error:  # what was raised there cannot be made again here
        fault = RuntimeError(f"a process failed, and its error cannot be read: {error!r}")
    receiver.close()
    process.join()
    if fault is not None or process.exitcode == 0:
        return fault
    if process.exitcode == GO_ON_LATER:
        return Stopped()
    if process.exitcode < 0:
        name = signal.Signals(-process.exitcode).name
        hint = "; the system does that when memory runs out" if name == "SIGKILL" else ""
        return RuntimeError(f"a process was ended by {name}{hint}")
    return RuntimeError(f"a process ended with exit code {process.exitcode}")


@contextlib.contextmanager
def signals_noted() -> Iterator[None]:
    """Meanwhile the signals `STOPPING` are only noted in `asked`; a second Ctrl-C stops at once.

    Elsewhere than in the main thread, which alone gets signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _note) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: object) -> None:
    asked.append(signal.Signals(number))
    raise Stopped


def _note(number: int, frame: object) -> None:
    if number == signal.SIGINT and signal.SIGINT in asked:
        raise Stopped
    asked.append(signal.Signals(number))


def outlive_signals(worker: int = 0) -> None:
    """In a process that loads data: leave it to its parent to end it, as the last batches are still needed.

    SLURM and terminals send their signals to every process. SIGTERM is obeyed if it comes from the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_await_parent, args=(os.getppid(),), daemon=True).start()


def _await_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def name_user() -> None:
    """Give a user without an entry in passwd, as in containers, a name and a home: DVC and MLflow ask for both."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = tempfile.gettempdir()


def peak_memory() -> int:
    """The most memory that this process has held, in bytes. Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def cores() -> int:
    """CPU cores that this process may use; where the system does not say (macOS), those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_workers(processes: int, batch_bytes: int) -> int:
    """Worker processes for the data of one of `processes` trainings on this machine; none where they would hang.

    Workers pass batches through /dev/shm, each up to two ahead. Containers often have little of it (Docker: 64 MB).
    """
    workers, shared = cores() // processes, Path("/dev/shm")
    needed = processes * (2 * workers + 1) * batch_bytes
    if workers and shared.is_dir() and (free := shutil.disk_usage(shared).free) < needed:
        log.warning(
            "/dev/shm has %d MB free, but %d workers need %d MB: data is loaded without workers, more slowly. Give the "
            "container more (docker run --shm-size=...).",
            free // 10**6, workers, -(-needed // 10**6),
        )  # fmt: skip
        return 0
    return workers


def is_forced() -> bool:
    """Whether the work must be done again even if its result is stored.

    Either REPRISE_FORCE is set (to anything but nothing and 0), or a parent is `dvc repro --force` or `dvc exp run
    --force`, which tell the commands that they run nothing about it.
    """
    if os.environ.get("REPRISE_FORCE", "0") not in ("", "0"):
        return True
    lines = []
    for parent in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):  # it has ended, or belongs to another user
            lines.append(parent.cmdline())
    return any(map(forces_dvc, lines))


def forces_dvc(line: Sequence[str]) -> bool:
    """Whether a command line is one of DVC that reproduces stages by force.

    Args:
        line: program and arguments, such as `["python", "-m", "dvc", "repro", "-fs", "report"]`.
    """
    arguments = _arguments_of_dvc(line)
    if not any(map(FORCE.fullmatch, arguments)):
        return False
    from dvc.cli.parser import get_main_parser

    try:
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            given = get_main_parser().parse_args(arguments)
    except (Exception, SystemExit):  # no command of DVC after all
        return False
    return given.cmd in ("repro", "run") and bool(getattr(given, "force", False))


def _arguments_of_dvc(line: Sequence[str]) -> list[str]:
    """What follows `dvc`, as a program, a script or a module of Python; empty for other commands."""
    for position, part in enumerate(line[:-1]):
        if part == "-m" and line[position + 1] == "dvc":
            return list(line[position + 2 :])
        if PurePath(part).name in ("dvc", "dvc.exe") and position <= 1:  # started by itself, or by its interpreter
            return list(line[position + 1 :])
    return []
