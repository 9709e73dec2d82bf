"""Open MLflow's pages over all runs: `make ui`."""

import argparse
import os
import socket
import sys

from lightning_modules.files import ROOT
from stages.page.machine import TRAINING
from stages.plan import run_stage


def free_port(port: int) -> int:
    """The port, if nobody listens on it.

    Raises:
        ValueError: it is none, or taken; the message says how to choose another.
    """
    if not 1024 <= port <= 65535:
        raise ValueError(f"port {port} is none that a user can open; choose one from 1024 to 65535, e.g. 5001")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ValueError(f"port {port} is taken; choose another, e.g. `make ui PORT={port + 1}`") from None
    return port


def main() -> None:
    """Replace this process by MLflow's server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=5000)
    port = free_port(parser.parse_args().port)
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"
    if store.startswith("http"):
        raise SystemExit(f"MLFLOW_TRACKING_URI names a server that is already up: open {store}")
    print(f"http://127.0.0.1:{port}/#/experiments{TRAINING}", flush=True)
    command = ["mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", *command, "--workers", "1"])


if __name__ == "__main__":
    run_stage(main)
