"""Commands of stages as child processes: forked from a server that has imported torch, or plain.

Every child leads its own process group, so that Ctrl-C in the terminal reaches only the runner. If the runner ends, for
any reason, its children get SIGTERM.
"""

import atexit
import multiprocessing
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from multiprocessing import connection, forkserver
from pathlib import Path

from lightning_modules.processes import die_with_parent

FORKED = frozenset(f"stages.{name}" for name in ("pretrain", "finetune", "evaluate", "sweep"))  # those that need torch
PRELOAD = "stages.runner.preload"


class Server:
    """The process that trainings are forked from: the standard library's `forkserver`, with torch in it.

    It is started at once and imports in the background: `ready` says whether a child can be forked without waiting.
    Start it from the main thread: it ends with the thread that started it.
    """

    def __init__(self):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([PRELOAD])
        forkserver.ensure_running()
        self._first = threading.Thread(target=self._wait, daemon=True)
        self._first.start()

    def _wait(self) -> None:
        try:
            first = self.context.Process(target=_nothing)
            first.start()
            first.join()
        except (OSError, EOFError):
            pass  # the server has ended: the first stage that needs it reports this

    def ready(self) -> bool:
        """Whether the imports are done."""
        return not self._first.is_alive()


def _nothing() -> None:
    pass


class Child:
    """A running command; its output goes to `log`.

    Raises:
        OSError: it could not be started.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        folder: Path,
        environment: dict[str, str],
        log: Path,
        launch: Sequence[str] = (),
        server: Server | None = None,
    ):
        self.log, self.launched = log, bool(launch)
        self.started = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        if server and (module := forked_module(command, launch)):
            self._process = server.context.Process(
                target=_run_module, args=(*module, str(folder), environment, str(log))
            )
            try:
                self._process.start()
            except (EOFError, ConnectionError) as error:
                raise OSError(f"the server that forks trainings has ended ({type(error).__name__})") from None
            self.sentinel: int | None = self._process.sentinel
        else:
            with log.open("wb") as file:
                self._process = subprocess.Popen(
                    [*launch, *arguments(command)],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            self.sentinel = os.pidfd_open(self._process.pid) if hasattr(os, "pidfd_open") else None

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        return self._process.exitcode

    def signal(self, number: int) -> None:
        """Send a signal to the child and to all processes that it has started."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:  # it leads no group yet, or has ended
            if self.poll() is None:
                os.kill(self._process.pid, number)

    def close(self) -> None:
        """Free the resources of a child that has ended; if it failed, kill the processes that it left behind."""
        if self.poll():
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        if isinstance(self._process, subprocess.Popen):
            if self.sentinel is not None:
                os.close(self.sentinel)
        else:
            self._process.close()


def wait(children: Iterable[Child], seconds: float) -> None:
    """Sleep until one of the children ends, but at most this many seconds."""
    sentinels = [child.sentinel for child in children if child.sentinel is not None]
    if sentinels:
        connection.wait(sentinels, seconds)
    else:
        time.sleep(seconds)


def arguments(command: str | Sequence[str]) -> list[str]:
    """A stage's command for exec: `python -m ...` with this interpreter, anything else with the shell."""
    lines = command.splitlines() if isinstance(command, str) else list(command)
    if module := _module(lines):
        return [sys.executable, "-m", *module]
    script = lines[0] if len(lines) == 1 else " && ".join(f"( {line} )" for line in lines)
    return ["/bin/sh", "-c", script]


def forked_module(command: str | Sequence[str], launch: Sequence[str] = ()) -> tuple[str, list[str]] | None:
    """The module and its arguments, if the command is to be forked from the server."""
    if launch:
        return None
    module = _module(command.splitlines() if isinstance(command, str) else list(command))
    return (module[0], module[1:]) if module and module[0] in FORKED else None


def _module(lines: list[str]) -> list[str] | None:
    """What follows `python -m`, where a command is that and nothing more."""
    if len(lines) != 1 or any(sign in lines[0] for sign in "$`|&;<>()*?\\"):
        return None
    words = shlex.split(lines[0])
    return words[2:] if words[:2] == ["python", "-m"] and len(words) > 2 else None


def _run_module(module: str, arguments: list[str], folder: str, environment: dict[str, str], log: str) -> None:
    """Act as `python -m module arguments`, in a process forked from the server."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # loaders fork; else each starts a server that imports torch
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    if folder not in sys.path:
        sys.path.insert(0, folder)  # `python -m` puts the current folder there
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing does not call them in its children
