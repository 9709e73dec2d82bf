"""Where MLflow's store is, and why it took nothing: in the words of a user, with the way out. Imports no mlflow."""

import os
import re
from pathlib import Path

KNOWN = "http://, https://, sqlite:///, postgresql+psycopg:// or mysql+pymysql://"
# What MLflow, its client or its database say, and what it means: `{0}` is what the group found, `{uri}` the store.
REASONS = {
    r"schema \(found version (\w+)": (
        "its tables are of another version of MLflow ({0}): make a copy of the database, then run "
        "`.venv/bin/mlflow db upgrade '{uri}'`; if they are newer than this MLflow, install the version that made them"
    ),
    r"error code (401|403)\b|password authentication failed|Access denied": (
        "it refuses your name or password ({0}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
        "MLFLOW_TRACKING_TOKEN; for a database, correct them in MLFLOW_TRACKING_URI"
    ),
    r"No module named '?([\w.]+)": (
        "the driver of its database, {0}, is not installed: install it with `.venv/bin/pip install`, or name another "
        "one, such as postgresql+psycopg:// or mysql+pymysql://"
    ),
    r"unsupported URI|filesystem tracking backend|parse .*URL|Can't load plugin: sqlalchemy": (
        f"MLFLOW_TRACKING_URI is no address of a store that this MLflow knows: expected {KNOWN} and what follows"
    ),
    r"database is locked": "another process has the database locked: wait until it ends, or stop it",
    r"experiment (\d+) must be in the 'active' state": (
        "experiment {0} was deleted there: restore it with `MLFLOW_TRACKING_URI='{uri}' .venv/bin/mlflow experiments "
        "restore --experiment-id {0}`, or delete the runs of that paper in .scratch/runs"
    ),
    r"unable to open database file": (
        "the database cannot be opened: check that its folder exists and is yours, and write `%` as `%25` and `?` as "
        "`%3F` in MLFLOW_TRACKING_URI"
    ),
    r"readonly database": "the database cannot be written: give yourself the right to, or name another one",
    r"file is not a database|disk image is malformed": (
        "the file is no database: move it away, and it is made anew from .scratch/runs"
    ),
    r"disk is full|No space left": "the disk is full: free some space",
    r"logged-models.*error code 404": "the server is older than MLflow 3, so it cannot take models: update it",
    r"Failed to resolve|could not translate host|Name or service not known": (
        "there is no such host: correct MLFLOW_TRACKING_URI, or connect to the network"
    ),
    r"Max retries|Connection|[Tt]imed out|Timeout|Broken pipe": (
        "it does not answer: start the server, or correct MLFLOW_TRACKING_URI"
    ),
}


def store(root: Path) -> str:
    """The address of MLflow's store: `$MLFLOW_TRACKING_URI`, or the file `mlflow.db` of the project."""
    file = str(root / "mlflow.db").replace("%", "%25").replace("?", "%3F")  # SQLAlchemy decodes them
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{file}"


def masked(text: str) -> str:
    """A text without the passwords of the addresses in it."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def explained(error: BaseException, uri: str) -> str:
    """One line: why the store took nothing, and what to do about it.

    Args:
        error: what was raised.
        uri: of the store.
    """
    text = " ".join(str(error).split())
    for pattern, reason in REASONS.items():
        if match := re.search(pattern, text):
            told = match[1] if match.re.groups and match[1] else match[0]
            return reason.format(told, uri=masked(uri))
    return masked(f"{type(error).__name__}: {text[:200].rstrip('.')}")
