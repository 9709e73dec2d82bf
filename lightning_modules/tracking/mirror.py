"""The mirror: one background process per repository that sends run records to MLflow.

    python -m lightning_modules.tracking.mirror            send records until all are sent and no run is active
    python -m lightning_modules.tracking.mirror --flush    send everything now, in the foreground (`make sync`)

Every point arrives exactly once, whichever process is killed, at any time:

- A record is found again by its tags `reprise.key` and `reprise.record` (its id, as two people may run one key).
- How far `metrics.jsonl` was sent is a tag of the MLflow run, `reprise.sent`, written by the very call that sends the
  points. The server writes the points before the tag, so the tag never claims too much. If it claims too little, the
  same lines are sent again, and MLflow ignores them: (run, name, time, step, value) is the primary key of its points.
- `reprise.complete` is the digest of a record that was sent whole. A server that lost it gets everything again.
- The record of an arm as a whole is sent to the parent run of the arm. Its points may be sent twice for that reason.
- `reprise.model` is the digest of the reference that the run's logged model holds (`tracking/model.py`).

`sent.json` beside a record avoids requests to the server about old records; `--flush` does not rely on it.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import posixpath
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from lightning_modules.files import digest, write_json
from lightning_modules.processes import name_user
from lightning_modules.tracking import model, refusals
from lightning_modules.tracking import records as run_records
from lightning_modules.tracking.refusals import masked

DESCRIPTION = "mlflow.note.content"
MAX_METRICS = 900  # per call; MLflow takes 1,000 metrics, parameters and tags together
MAX_PARAM, MAX_TAG, MAX_NAME, MAX_DESCRIPTION = 6000, 8000, 250, 20_000  # characters that MLflow stores


@dataclass(frozen=True)
class Record:
    """A run record as found on disk at one moment."""

    folder: Path
    meta: dict[str, Any]
    state: dict[str, Any]
    digest: str
    changed: int

    @property
    def arm(self) -> tuple[str, str]:
        """What it shares with the other seeds and stages of its arm: experiment and key of the parent run."""
        return self.meta["experiment"], self.meta["parent"]["key"]

    @property
    def whole_arm(self) -> bool:
        """Whether it is about the arm as a whole: then its MLflow run is the arm's parent run."""
        return self.meta["key"] == self.meta["parent"]["key"]

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.state["status"] == "RUNNING"

    @property
    def settled(self) -> bool:
        """Whether it was closed by its own process: then only a re-opening changes it, which changes its folder."""
        return "wall_seconds" in self.state

    @property
    def sent(self) -> dict[str, Any]:
        """What the last mirror noted about it: `uri`, `digest`, `offset`, `experiment_id`, `run_id`."""
        return run_records.read_json(self.folder / "sent.json")

    @property
    def tags(self) -> dict[str, str]:
        """Its tags in MLflow: those given by the run, what depends on the machine, and how it ended."""
        if self.whole_arm:
            return _texts(self.meta["tags"], MAX_TAG) | {"reprise.key": self.meta["key"], "reprise.kind": "arm"}
        machine = run_records.read_json(self.folder / "machine.json")
        ended = {name: value for name, value in self.state.items() if name not in ("status", "end")}
        measured = {f"machine.{name}": value for name, value in (machine | ended).items()}
        identity = {"reprise.key": self.meta["key"], "reprise.record": self.meta["id"]}
        return _texts(self.meta["tags"] | measured, MAX_TAG) | identity

    @property
    def params(self) -> dict[str, str]:
        """Its parameters in MLflow."""
        return _texts(run_records.read_json(self.folder / "params.json"), MAX_PARAM)

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """The data sets that it reads."""
        return run_records.read_json(self.folder / "inputs.json")

    @property
    def model(self) -> dict[str, Any]:
        """What predicts, as `tracking.model` reads it; empty if nothing does."""
        return run_records.read_json(self.folder / "model.json")


@dataclass
class ServerRun:
    """What the server holds of a run, as far as it was told or asked."""

    run_id: str
    status: str
    end: int | None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)

    @property
    def offset(self) -> int:
        """Bytes of metrics.jsonl that the server has for certain."""
        return int(self.tags.get("reprise.sent", 0))


class Mirror:
    """Sends records to one MLflow server. Not thread-safe; one per repository (`claim`)."""

    def __init__(self, root: Path, *, trust_notes: bool = True) -> None:
        self.root = root
        self.uri = refusals.store(root)
        self._trust_notes = trust_notes
        self._done: dict[Path, str] = {}
        self._artifacts: dict[Path, tuple[int, int]] = {}
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, dict[str, ServerRun]] = {}
        self._described: dict[str, str] = {}

    def push(self, records: list[Record]) -> tuple[list[Record], str | None]:
        """Send what the server has not yet.

        Args:
            records: all records of the repository.

        Returns:
            The records that could not be sent whole, and the reason for the last of them.
        """
        arms: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            arms.setdefault(record.arm, []).append(record)
        fresh = [record for record in records if not self._is_sent(record)]
        waiting, reason = [], None
        for position, record in enumerate(fresh):
            try:
                self._send(record, arms[record.arm])
            except Exception as error:  # whatever a server or a file system throws, the other records go on
                reason = refusals.explained(error, self.uri)
                waiting.append(record)
                self._runs.pop(record.meta["experiment"], None)  # what is known of the server may be wrong: ask again
                if refusal := self.refusal():
                    return waiting + fresh[position + 1 :], refusal
        return waiting, reason or self._describe({record.meta["experiment"] for record in records} if fresh else set())

    def _describe(self, experiments: Iterable[str]) -> str | None:
        """Send the descriptions of experiments that have changed; gives the reason if one cannot be sent."""
        for name in experiments:
            files = sorted((self.root / ".scratch" / "runs" / name).glob("*.md"))
            text = "\n\n".join(path.read_text(encoding="utf-8") for path in files)[:MAX_DESCRIPTION]
            if text and self._described.get(name) != text:
                try:
                    known = self._client.get_experiment_by_name(name)
                    if known.tags.get(DESCRIPTION) != text:
                        self._client.set_experiment_tag(known.experiment_id, DESCRIPTION, text)
                except Exception as error:
                    return refusals.explained(error, self.uri)
                self._described[name] = text
        return None

    def _is_sent(self, record: Record) -> bool:
        if record.folder not in self._done and self._trust_notes:
            sent = record.sent
            if sent.get("uri") == masked(self.uri):
                self._done[record.folder] = sent["digest"]
        return self._done.get(record.folder) == record.digest

    def _send(self, record: Record, arm: list[Record]) -> None:
        run = self._run(record, arm)
        if run.tags.get("reprise.complete") != record.digest:
            self._send_facts(run, record)
            self._send_metrics(run, record)
            self._send_inputs(run, record)
            self._send_artifacts(run, record)
            self._send_model(run, record)
            if not record.whole_arm:
                self._send_status(run, record.state["status"], record.state.get("end"))
            if not record.running:
                self._log(run, tags={"reprise.complete": record.digest})
        self._send_parent_status(self._parent(record, arm), arm)
        self._done[record.folder] = record.digest
        place = {"experiment_id": self._experiment(record.meta["experiment"]), "run_id": run.run_id}
        note = {"uri": masked(self.uri), "digest": record.digest, "offset": run.offset, **place}
        write_json(record.folder / "sent.json", note)

    def _send_facts(self, run: ServerRun, record: Record) -> None:
        tags = {name: value for name, value in record.tags.items() if run.tags.get(name) != value}
        params = {name: value for name, value in record.params.items() if name not in run.params}
        if tags or params:
            self._log(run, tags=tags, params=params)

    def _send_metrics(self, run: ServerRun, record: Record) -> None:
        from mlflow.entities import Metric

        start = 0 if record.whole_arm else run.offset  # the parent may hold the points of an earlier record
        for offset, points in batches(record.folder / "metrics.jsonl", start):
            self._log(run, [Metric(*point) for point in points], tags={"reprise.sent": str(offset)})

    def _send_inputs(self, run: ServerRun, record: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        for name, about in record.inputs.items():
            if run.tags.get(tag := mlflow_name(f"reprise.input.{name}")) == about["digest"]:
                continue
            columns = [{"name": column, "type": kind} for column, kind in about["schema"].items()]
            dataset = Dataset(
                name=about["name"],
                digest=about["digest"],
                source_type="local",
                source=json.dumps({"uri": about["source"]}),
                schema=json.dumps({"mlflow_colspec": columns}),
                profile=json.dumps(about["profile"]),
            )
            given = DatasetInput(dataset, [InputTag("mlflow.data.context", about["context"])])
            self._client.log_inputs(run.run_id, [given])
            self._log(run, tags={tag: about["digest"]})

    def _send_model(self, run: ServerRun, record: Record) -> None:
        """Make the run's logged model, unless it has one with this very reference."""
        from mlflow.entities import LoggedModelOutput

        reference = record.model
        if not reference or run.tags.get("reprise.model") == (version := digest(reference)):
            return
        experiment = self._experiment(record.meta["experiment"])
        tags = {"reprise.model": version, "preset": record.meta["tags"]["preset"], "arm": record.meta["tags"]["arm"]}
        made = [
            each.model_id
            for each in self._client.search_logged_models([experiment], f"source_run_id = '{run.run_id}'")
            if each.tags.get("reprise.model") == version  # by a mirror that was killed before it could set the tag
        ]
        if not made:
            name = re.sub(r"[^\w-]", "-", record.meta["name"])
            made = [self._client.create_logged_model(experiment, name, run.run_id, tags, model_type="pyfunc").model_id]
        with tempfile.TemporaryDirectory() as folder:
            model.write(Path(folder), reference, self.root, made[0], run.run_id)
            self._client.log_model_artifacts(made[0], folder)
        self._client.finalize_logged_model(made[0], "READY")
        outputs = self._client.get_run(run.run_id).outputs
        if made[0] not in {each.model_id for each in (outputs.model_outputs if outputs else ())}:
            self._client.log_outputs(run.run_id, [LoggedModelOutput(made[0], step=0)])
        self._log(run, tags={"reprise.model": version})

    def _send_artifacts(self, run: ServerRun, record: Record) -> None:
        for path, version in _artifacts(record.folder).items():
            if self._artifacts.get(path) != version:
                folder = path.parent.relative_to(record.folder / "artifacts").as_posix()
                self._client.log_artifact(run.run_id, str(path), None if folder == "." else folder)
                self._artifacts[path] = version

    def _send_status(self, run: ServerRun, status: str, end: int | None) -> None:
        if run.status == status and (status == "RUNNING" or run.end == end):
            return
        if status == "RUNNING":
            self._client.update_run(run.run_id, status)
        else:
            self._client.set_terminated(run.run_id, status, end)
        run.status, run.end = status, end

    def _log(
        self,
        run: ServerRun,
        metrics: Sequence[Any] = (),
        *,
        params: dict[str, str] | None = None,
        tags: dict[str, str],
    ) -> None:
        """One call of `log_batch` (the client cuts parameters and tags into the hundreds that the server takes)."""
        from mlflow.entities import Param, RunTag

        params = params or {}
        self._client.log_batch(
            run.run_id,
            metrics=metrics,
            params=[Param(name, value) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        run.params |= params
        run.tags |= tags

    def _run(self, record: Record, arm: list[Record]) -> ServerRun:
        """The MLflow run of a record, made if there is none, under the parent run of its arm."""
        if record.whole_arm:
            return self._parent(record, arm)
        experiment, meta = record.meta["experiment"], record.meta
        known = self._known_runs(experiment)
        if meta["id"] not in known:
            parent = self._parent(record, arm)
            tags = record.tags | {"mlflow.parentRunId": parent.run_id}
            known[meta["id"]] = self._create(experiment, meta["name"], meta["start"], tags)
        return known[meta["id"]]

    def _parent(self, record: Record, arm: list[Record]) -> ServerRun:
        """The parent run of an arm, made if there is none; it starts with the first of the arm's runs."""
        experiment, parent = record.meta["experiment"], record.meta["parent"]
        known = self._known_runs(experiment)
        if parent["key"] not in known:
            tags = {"reprise.key": parent["key"], "reprise.kind": "arm"}
            known[parent["key"]] = self._create(
                experiment, parent["name"], min(each.meta["start"] for each in arm), tags
            )
        return known[parent["key"]]

    def _create(self, experiment: str, name: str, start: int, tags: dict[str, str]) -> ServerRun:
        run = self._client.create_run(self._experiments[experiment], start_time=start, run_name=name, tags=tags)
        return ServerRun(run.info.run_id, run.info.status, None, dict(tags))

    def _send_parent_status(self, parent: ServerRun, arm: list[Record]) -> None:
        """An arm runs while one of its runs does, and ends with the last of them."""
        status = "RUNNING" if any(record.running for record in arm) else "FINISHED"
        self._send_status(parent, status, max(record.state.get("end", 0) for record in arm))

    def _known_runs(self, experiment: str) -> dict[str, ServerRun]:
        """The server's runs of an experiment: by record id, parents by key. Asked once, then kept up to date."""
        if experiment not in self._runs:
            self._experiments[experiment] = self._experiment(experiment)
            known: dict[str, ServerRun] = {}
            for run in self._listing(self._experiments[experiment]):
                tags = run.data.tags
                if name := tags.get("reprise.record") or tags.get("reprise.key"):
                    server_run = ServerRun(run.info.run_id, run.info.status, run.info.end_time, tags, run.data.params)
                    self._keep_one(known, name, server_run)
            self._runs[experiment] = known
        return self._runs[experiment]

    def _keep_one(self, known: dict[str, ServerRun], name: str, run: ServerRun) -> None:
        """Of two runs of one record, which a reply that came after the time-out can leave, keep the fuller one."""
        other = known.setdefault(name, run)
        if other is not run and "reprise.record" in run.tags:
            known[name], less = (other, run) if other.offset >= run.offset else (run, other)
            self._client.delete_run(less.run_id)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        local = self.uri.startswith("sqlite:")
        made = self._client.create_experiment(name, (self.root / "mlruns" / name).as_uri() if local else None)
        if local:
            self._remove_default()
        return made

    def _remove_default(self) -> None:
        """Delete the experiment that MLflow makes in each new database, if nobody has used it."""
        from mlflow.entities import ViewType

        default = self._client.get_experiment_by_name("Default")
        if default is None or default.lifecycle_stage != "active":
            return
        if not self._client.search_runs([default.experiment_id], run_view_type=ViewType.ALL, max_results=1):
            self._client.delete_experiment(default.experiment_id)

    def _listing(self, experiment_id: str) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs([experiment_id], order_by=["attributes.start_time"], page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    @cached_property
    def _client(self) -> Any:
        # No retries inside the client: a request that timed out may have been served, and `create_run` sent twice makes
        # two runs. Our own loop is the retry, and it looks first.
        os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # what it would log is raised as well
        from mlflow import MlflowClient
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 2  # of ten, which take two minutes
        return MlflowClient(self.uri)

    def refusal(self) -> str | None:
        """Why the server takes nothing at all; None if it answers."""
        try:
            self._client.search_experiments(max_results=1)
        except Exception as error:
            return refusals.explained(error, self.uri)
        return None


def batches(path: Path, offset: int) -> Iterator[tuple[int, list[tuple[str, float, int, int]]]]:
    """Cut the lines after a byte offset into calls of at most `MAX_METRICS` points.

    Yields:
        The offset that is true once the points have arrived, and points (name, value, time in ms, step).
    """
    points: list[tuple[str, float, int, int]] = []
    for end, line in run_records.metric_lines(path, offset):
        for name, value in line["m"].items():
            if len(points) == MAX_METRICS:
                yield offset, points
                points = []
            points.append((mlflow_name(name), value, line["t"], line["step"]))
        offset = end
    if points:
        yield offset, points


def mlflow_name(name: str) -> str:
    """The name under which MLflow takes a metric, parameter or tag: others than word characters, `-. :/` become `:`."""
    accepted = posixpath.normpath(re.sub(r"[^\w\-. :/]", ":", name)).lstrip("/") or "unnamed"
    if len(accepted) <= MAX_NAME:
        return accepted
    return f"{accepted[: MAX_NAME - 9]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _texts(values: dict[str, Any], limit: int) -> dict[str, str]:
    return {mlflow_name(name): _shortened(str(value), limit) for name, value in values.items()}


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    note = f" [cut: {len(text)} characters, whole in .scratch/runs]"
    return text[: limit - len(note)] + note


def scan(root: Path, earlier: Iterable[Record] = ()) -> list[Record]:
    """All records of a repository, the oldest first.

    Args:
        root: repository root.
        earlier: result of the last scan; settled records that did not change are taken from it.
    """
    known = {(record.folder, record.changed): record for record in earlier if record.settled}
    records = []
    for path in (root / ".scratch" / "runs").glob("*/*/meta.json"):
        with contextlib.suppress(FileNotFoundError):  # someone is clearing the folder
            changed = path.parent.stat().st_mtime_ns
            records.append(known.get((path.parent, changed)) or _read(path.parent, changed))
    return sorted(
        (record for record in records if record.meta), key=lambda record: (record.meta["start"], record.folder)
    )


def _read(folder: Path, changed: int) -> Record:
    # The digest comes first: what changes between it and the state is then seen as a change by the next scan.
    names = ("meta.json", "params.json", "metrics.jsonl", "machine.json", "inputs.json", "model.json", "status.json")
    parts = [folder / name for name in names]
    versions = {str(path): _version(path) for path in parts if path.exists()}
    versions |= {str(path): version for path, version in _artifacts(folder).items()}
    state = run_records.state(folder)
    digest = hashlib.sha256(json.dumps([state["status"], versions], sort_keys=True).encode()).hexdigest()[:16]
    return Record(folder, run_records.read_json(folder / "meta.json"), state, digest, changed)


def _artifacts(folder: Path) -> dict[Path, tuple[int, int]]:
    files = (path for path in (folder / "artifacts").rglob("*") if path.is_file() and not path.name.endswith(".tmp"))
    return {path: _version(path) for path in sorted(files)}


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def claim(root: Path) -> BinaryIO | None:
    """The lock of the one mirror of a repository, None if another process has it.

    Raises:
        OSError: the file system has no locks.
    """
    path = root / ".scratch" / "mirror.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        way_out = "has no flock: mount it with flock, or make .scratch a link to a folder that has it"
        raise OSError(error.errno, f"the file system of {path.parent} {way_out}") from error
    return file


def _is_current(lock: BinaryIO, root: Path) -> bool:
    """False once someone deleted `.scratch`: then the next record starts a mirror with a lock of its own."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), (root / ".scratch" / "mirror.lock").stat())
    except FileNotFoundError:
        return False


def follow(root: Path, *, period: float, linger: float, patience: float) -> None:
    """Send records as they grow, until nothing is left to do.

    Args:
        root: repository root.
        period: seconds between two looks.
        linger: seconds to stay after the last run ended and all was sent: the next stage of a pipeline starts soon.
        patience: seconds to go on after the last run ended while the server does not answer.
    """
    mirror, records = Mirror(root), []
    while lock := claim(root):
        with lock:
            records = _serve(mirror, lock, records, period=period, linger=linger, patience=patience)
        # A run that was opened while the lock was still ours started no mirror of its own: look once more.
        if _asked_to_stop(root) or _digests(scan(root, records)) == _digests(records):
            return


def _serve(
    mirror: Mirror, lock: BinaryIO, records: list[Record], *, period: float, linger: float, patience: float
) -> list[Record]:
    """Push until nothing is left to do or the lock is wanted or lost; gives the records as last seen."""
    last_busy, last_seen = time.monotonic(), None
    while _is_current(lock, mirror.root) and not _asked_to_stop(mirror.root):
        records = scan(mirror.root, records)
        waiting, reason = mirror.push(records)
        notice = write_notice(mirror, waiting, reason)
        if last_seen != (last_seen := (len(waiting), reason)):
            print(time.strftime("%Y-%m-%d %H:%M:%S"), notice or "all is sent", flush=True)  # into mirror.log
        if any(record.running for record in records):
            last_busy = time.monotonic()
        if time.monotonic() - last_busy > (patience if waiting else linger):
            break
        _wait(mirror.root, period)
    return records


def _digests(records: list[Record]) -> dict[Path, str]:
    return {record.folder: record.digest for record in records}


def _wait(root: Path, period: float) -> None:
    deadline = time.monotonic() + period
    while time.monotonic() < deadline and not _asked_to_stop(root):
        time.sleep(0.1)


def _stop_file(root: Path) -> Path:
    return root / ".scratch" / "mirror.stop"


def _asked_to_stop(root: Path) -> bool:
    """Whether a `--flush` waits for the lock: it touches this file all the time, an old one was left by a dead one."""
    try:
        return time.time() - _stop_file(root).stat().st_mtime < 5
    except FileNotFoundError:
        return False


def flush(root: Path) -> str | None:
    """Take over from a running mirror, compare every record with the server and send what it lacks.

    Returns:
        None if all is on the server, otherwise one line that says what is not and why.
    """
    with _taken_over(root):
        mirror = Mirror(root, trust_notes=False)
        records = scan(root)
        waiting, reason = mirror.push(records)
        notice = write_notice(mirror, waiting, reason)
    if any(record.running for record in records):
        run_records.start_mirror(root)  # runs that are going on need one again
    return notice


@contextlib.contextmanager
def _taken_over(root: Path) -> Iterator[None]:
    stop = _stop_file(root)
    try:
        while (lock := claim(root)) is None:
            stop.touch()
            time.sleep(0.1)
    finally:
        stop.unlink(missing_ok=True)
    with lock:
        yield


def write_notice(mirror: Mirror, waiting: list[Record], reason: str | None) -> str | None:
    """Leave for the training stages (`records`) one line about what is not on the server, and return it."""
    notice = None
    if waiting:
        uri = masked(mirror.uri)
        lines = sum(_unsent_lines(record, uri) for record in waiting)
        runs = "1 run" if len(waiting) == 1 else f"{len(waiting)} runs"
        notice = f"{runs} ({lines} metric lines) kept in .scratch/runs and not yet on {uri}: {reason}. "
        notice += "After that, `make sync` sends them."
    path = mirror.root / ".scratch" / "mirror.json"
    if notice != run_records.read_json(path).get("notice"):
        with contextlib.suppress(OSError):  # a full disk is no reason to stop sending
            write_json(path, {"notice": notice})
    return notice


def _unsent_lines(record: Record, uri: str) -> int:
    sent = record.sent
    offset = sent["offset"] if sent.get("uri") == uri else 0
    return sum(1 for _ in run_records.metric_lines(record.folder / "metrics.jsonl", offset))


def main(arguments: list[str] | None = None) -> int:
    """Command line. Returns the exit status: 1 if `--flush` could not send everything."""
    parser = argparse.ArgumentParser(description="Send the run records of this repository to MLflow.")
    parser.add_argument("--root", type=Path, default=run_records.root())
    parser.add_argument("--flush", action="store_true", help="send everything now, in the foreground")
    parser.add_argument("--period", type=float, default=2.0, help="seconds between two looks")
    parser.add_argument("--linger", type=float, default=10.0, help="seconds to stay after all is sent")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to go on without a server")
    options = parser.parse_args(arguments)
    name_user()  # before MLflow asks for it
    if not options.flush:
        os.nice(10)  # a training process on a full machine comes first
        follow(options.root, period=options.period, linger=options.linger, patience=options.patience)
        return 0
    try:
        notice = flush(options.root)
    except OSError as error:
        notice = f"error: {error}"
    if notice:
        print(notice)
    return int(notice is not None)


if __name__ == "__main__":
    sys.exit(main())
