"""Processes: their end, their user, the cores they may use, and whether a parent was asked to force a rerun."""

import contextlib
import ctypes
import getpass
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
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

log = logging.getLogger(__name__)
_LIBC = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None  # loaded here: nothing is loaded after a fork


def die_with_parent() -> None:
    """Make the kernel end this process when its parent ends, for any reason. Otherwise it would go on as an orphan."""
    if _LIBC:
        _LIBC.prctl(1, signal.SIGTERM)


def name_user() -> None:
    """Give a user without an entry in passwd, as in containers, a name and a home: DVC and MLflow ask for both."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}"
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = tempfile.gettempdir()


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
