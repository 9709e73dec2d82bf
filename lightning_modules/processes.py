"""Ends child processes when their parent ends, and finds out whether a parent was asked to force a rerun."""

import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import PurePath

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

_LIBC = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None  # loaded here: nothing is loaded after a fork


def die_with_parent() -> None:
    """Make the kernel end this process when its parent ends, for any reason. Otherwise it would go on as an orphan."""
    if _LIBC:
        _LIBC.prctl(1, signal.SIGTERM)


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
