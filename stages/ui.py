"""Serve MLflow with all runs (`make ui`), or optuna-dashboard for one study (`make dashboard`)."""

import argparse
import os
import signal
import socket
import sys

from lightning_modules.files import ROOT, scratch
from lightning_modules.processes import STOPPING
from lightning_modules.tracking import refusals
from lightning_modules.tracking.mirror import Mirror
from stages.command import run_stage
from stages.page.machine import TRAINING


def free_port(port: int, command: str) -> int:
    """The port, if it is free.

    Raises:
        ValueError: the number is not allowed, or the port is in use; the message says how to choose another.
    """
    if not 1024 <= port <= 65535:
        raise ValueError(f"port {port} cannot be used; choose one from 1024 to 65535, e.g. 5001")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ValueError(
                f"port {port} is in use: choose a free one, e.g. `make {command} PORT={port + 1}`"
            ) from None
    return port


def mlflow(port: int) -> None:
    """Replace this process by MLflow's server.

    Raises:
        ValueError: the store cannot be opened; the message says why, and what to do.
    """
    store = refusals.store(ROOT)
    if store.startswith("http"):
        raise SystemExit(f"MLFLOW_TRACKING_URI names a server, so there is none to start: open {store}")
    if reason := Mirror(ROOT).refusal():
        raise ValueError(f"{refusals.masked(store)}: {reason}")
    print(f"http://127.0.0.1:{port}/#/experiments{TRAINING}", flush=True)
    command = ["mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", *command, "--workers", "1"])


def dashboard(port: int, study: str, storage: str | None) -> None:
    """Serve optuna-dashboard on a study's storage until interrupted.

    Raises:
        ValueError: there is no such study on this machine.
    """
    folder = scratch() / "sweeps"
    known = sorted(path.stem for path in folder.glob("*.journal"))
    if storage is None and study not in known:
        raise ValueError(
            f"no study {study!r} in {folder}; expected one of: {', '.join(known) or 'none yet'}. `make sweep` and "
            "`make repro` make them; STUDY=... chooses one."
        )
    import optuna_dashboard

    from lightning_modules.sweeps.studies import open_storage

    for number in STOPPING:  # a server answers each error that is raised amid an answer, also that of a signal
        signal.signal(number, signal.SIG_DFL)
    print(f"http://127.0.0.1:{port}", flush=True)
    optuna_dashboard.run_server(open_storage(storage, study, folder)[0], host="127.0.0.1", port=port)


def main() -> None:
    """Check the port, then serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=5000, help="port of the server (default: 5000)")
    parser.add_argument("--study", help="open this study in optuna-dashboard instead of MLflow")
    parser.add_argument(
        "--storage",
        default=os.environ.get("REPRISE_STORAGE"),
        help="URL of the study's database (default: a journal file in .scratch/sweeps)",
    )
    arguments = parser.parse_args()
    port = free_port(arguments.port, "dashboard" if arguments.study else "ui")
    if arguments.study:
        dashboard(port, arguments.study, arguments.storage or None)
    else:
        mlflow(port)


if __name__ == "__main__":
    run_stage(main)
