"""What holds for every test: one thread, and run records that stay on this disk."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: more threads only wait for each other here
os.environ.setdefault("REPRISE_TRACKING", "local")  # no test starts a mirror unless it means to
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small project whose pipeline has run, and whose runs are in its own `mlflow.db`. Read, never changed."""
    from tests.pipeline import Copy

    copy = Copy(tmp_path_factory.mktemp("finished"))
    copy.environment["REPRISE_TRACKING"] = "local"  # sent below, at once
    copy.dvc("repro")
    copy.python("-m", "lightning_modules.mirror", "--flush")
    copy.dvc("repro", "--force", "--single-item", "report")  # now with links to the runs
    return copy
