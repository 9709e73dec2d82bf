"""What holds for every test: one thread, and run records that stay on this disk."""

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: more threads only wait for each other here
os.environ.setdefault("REPRISE_TRACKING", "local")  # no test starts a mirror unless it means to
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small project whose pipeline has run, and whose runs are in its own `mlflow.db`. Read, never changed."""
    from tests.pipeline import Copy

    copy = Copy(tmp_path_factory.mktemp("finished"), seeds=range(5))  # as many as the claims ask for
    copy.environment["REPRISE_TRACKING"] = "local"  # sent below, at once
    copy.dvc("repro")
    copy.python("-m", "lightning_modules.mirror", "--flush")
    copy.dvc("repro", "--force", "--single-item", "report")  # now with links to the runs
    return copy


@pytest.fixture
def postgresql(postgresql_server):
    """The URL of an empty PostgreSQL database on loopback: Optuna and MLflow cannot share one (`alembic_version`)."""
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(f"{postgresql_server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgresql_server}/{name}"


@pytest.fixture(scope="session")
def postgresql_server():
    """The URL of a PostgreSQL server of the tests' own, on loopback."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [None]
    for missing, why in (
        (programs[-1] is None, "PostgreSQL is not installed: apt-get install postgresql"),
        (importlib.util.find_spec("psycopg") is None, "psycopg is not installed: make setup"),
    ):
        if missing:
            assert "CI" not in os.environ, why
            pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="reprise-postgresql-"))  # the path of a socket has room for 107 bytes
    user = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres")
        user = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    initdb, pg_ctl = (str(programs[-1] / name) for name in ("initdb", "pg_ctl"))
    options = f"-p {port} -h 127.0.0.1 -k {folder} -F"

    def run(*command):
        environment = {"PATH": os.environ["PATH"]}  # a test that looks for processes of its own must not find this one
        subprocess.run([*user, *command], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)

    run(initdb, "-D", f"{folder}/data", *"-A trust -U reprise --no-sync --encoding UTF8 --locale C".split())
    run(pg_ctl, "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start")
    yield f"postgresql://reprise@127.0.0.1:{port}"
    run(pg_ctl, "-D", str(folder / "data"), "-m", "immediate", "stop")
    shutil.rmtree(folder)
