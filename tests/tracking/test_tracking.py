import contextlib
import errno
import http.server
import json
import logging
import math
import os
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from pathlib import Path

import pytest

from lightning_modules.tracking import mirror, records
from tests.conftest import free_port

LOCK = "plans/tiny/a/dvc.lock"

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [
    # MLflow 3.17 on SQLAlchemy 2.1: theirs to mend.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),  # of a class of MLflow's own
]
RUN = {"experiment": "committees", "arm": "committees-digits", "stage": "pretrain", "seed": 0, "preset": "tiny"}
KEY = "tiny/committees-digits/pretrain/seed-0"


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    """An empty repository root; no mirror starts by itself, and no process outlives a test."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("REPRISE_TRACKING", "local")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    until(lambda: processes_of(tmp_path) == [], seconds=10)


def processes_of(root: Path) -> list[int]:
    """Processes that know a folder by their command line or their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(root).encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def python(code: str, *, wait: bool = True, **environment: str) -> subprocess.Popen:
    """Run a script that has `records` and `RUN` at hand."""
    head = f"import os, signal, time\nfrom lightning_modules.tracking import records\nRUN = {RUN!r}\n"
    child = subprocess.Popen(
        [sys.executable, "-c", head + code],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        child.output, child.errors = child.communicate(timeout=60)
    return child


def points(record: records.RunRecord) -> list[tuple[int, str, float]]:
    lines = records.metric_lines(record.folder / "metrics.jsonl")
    return [(line["step"], name, value) for _, line in lines for name, value in line["m"].items()]


def until(condition, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


# --- the record -----------------------------------------------------------------------------------------------------


def test_a_run_is_a_folder_of_plain_files(base):
    with records.open_record(**RUN, key_suffix="ab12-0", params={"a": {"b": 1}, "c": [1]}, tags={"x": 2}) as record:
        record.log({"pretrain/loss": 0.5}, step=10)
        record.summary({"evaluate/digits/top1_percent": 97.0})
        record.artifact("figures/x.png", b"png")
        record.machine({"latency_ms_batch1": 1.5})
        assert records.state(record.folder) == {"status": "RUNNING"}
    folder = base / ".scratch/runs/committees/tiny--committees-digits--pretrain--seed-0--ab12-0"
    meta, status = records.read_json(folder / "meta.json"), records.read_json(folder / "status.json")
    assert record.folder == folder
    assert meta["key"] == f"{KEY}/ab12-0"
    assert meta["parent"]["key"] == "tiny/committees-digits"
    own = {name: value for name, value in meta["tags"].items() if not name.startswith("mlflow.")}
    assert own == {"preset": "tiny", "arm": "committees-digits", "stage": "pretrain", "seed": "0", "x": "2"}
    assert len(meta["tags"]["mlflow.source.git.commit"]) == 40 and meta["tags"]["mlflow.source.type"] == "LOCAL"
    assert records.read_json(folder / "params.json") == {"a.b": 1, "c": [1]}
    assert points(record) == [(10, "pretrain/loss", 0.5), (0, "evaluate/digits/top1_percent", 97.0)]
    assert (folder / "artifacts/figures/x.png").read_bytes() == b"png"
    assert records.read_json(folder / "machine.json") == {"latency_ms_batch1": 1.5}
    assert status["status"] == "FINISHED" and status["end"] >= meta["start"]
    assert status["wall_seconds"] >= 0 and status["peak_memory_mib"] > 1


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_an_exception_passes_through_and_is_recorded(error, status):
    with pytest.raises(error), records.open_record(**RUN) as record:
        raise error
    assert records.state(record.folder)["status"] == status


def test_a_resumed_run_records_each_point_once():
    python("""
record = records.open_record(**RUN, params={"lr": 0.1})
for step in range(10):
    record.log({"loss": step}, step)
os.kill(os.getpid(), signal.SIGKILL)
""")
    folder = next((records.root() / ".scratch/runs").glob("*/*"))
    before = (folder / "metrics.jsonl").read_bytes()
    assert records.state(folder)["status"] == "KILLED"
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"t":1,"st')  # what a kill inside a write leaves

    with records.open_record(**RUN, params={"lr": 0.1, "new": 1}) as record:
        assert record.folder == folder and records.state(folder) == {"status": "RUNNING"}
        record.resume(at_step=6)
        for step in range(6, 14):
            record.log({"loss": step, "other": step} if step == 9 else {"loss": step}, step)
    assert (folder / "metrics.jsonl").read_bytes().startswith(before)
    assert sorted(points(record)) == sorted([(step, "loss", step) for step in range(14)] + [(9, "other", 9)])
    assert records.read_json(folder / "params.json") == {"lr": 0.1, "new": 1}
    assert records.read_json(folder / "meta.json")["tags"]["resumed_at_step"] == "6"


def test_the_wall_time_of_a_resumed_run_counts_all_its_parts(monkeypatch):
    clock = iter(range(1_000_000, 2_000_000, 1000))
    monkeypatch.setattr(records, "_milliseconds", lambda: next(clock))
    for seconds in (1.0, 2.0):
        with records.open_record(**RUN) as record:
            pass
        assert records.state(record.folder)["wall_seconds"] == seconds


def test_a_repeated_run_has_a_record_of_its_own_and_an_interrupted_one_goes_on():
    keys = []
    for status in ("KILLED", "FINISHED", "FAILED", "FINISHED"):
        record = records.open_record(**RUN, key_suffix="ab12", repeat=True)
        record.log({"loss": 1.0}, step=0)
        record.finish(status)
        keys.append(record.meta["key"])
    assert keys == [f"{KEY}/ab12-{attempt}" for attempt in (0, 0, 1, 1)]
    folders = sorted((records.root() / ".scratch/runs").glob("*/*"))
    assert [path.name.rpartition("-")[2] for path in folders] == ["0", "1"]
    assert all((path / "metrics.jsonl").read_text().count("loss") == 1 for path in folders)


def test_final_values_end_the_curves_of_a_run():
    with records.open_record(**RUN) as record:
        record.log({"loss": 1.0}, step=0)
        record.log({"loss": 0.5}, step=20)
        record.summary({"loss": 0.25}, step=30)
    assert points(record) == [(0, "loss", 1.0), (20, "loss", 0.5), (30, "loss", 0.25)]


def test_only_rank_zero_writes(base, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with records.open_record(**RUN) as record:
        record.log({"loss": 1.0}, step=0)
        record.artifact("x", b"")
        record.resume(3)
    assert list(base.iterdir()) == []


def test_a_full_disk_costs_one_warning_and_no_half_lines():
    child = python("""
import resource
record = records.open_record(**RUN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for step in range(100):
    record.log({"loss": 0.5}, step)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
record.log({"loss": 0.25}, 100)
record.finish()
""")
    folder = next((records.root() / ".scratch/runs").glob("*/*"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert child.returncode == 0, child.errors
    assert child.errors.count("\n") == 1 and "metrics.jsonl" in child.errors
    assert [line["step"] for line in lines] == [*range(len(lines) - 1), 100]
    assert 10 < len(lines) < 100


def test_an_unwritable_root_stops_nothing(base, monkeypatch, caplog):
    (base / ".scratch").write_text("not a folder")
    with caplog.at_level(logging.WARNING), records.open_record(**RUN) as record:
        record.log({"loss": 1.0}, step=0)
    assert len(caplog.records) == 1


def test_a_run_has_one_recorder(caplog):
    with records.open_record(**RUN) as record:
        record.log({"loss": 1.0}, step=0)
        second = records.open_record(**RUN)
        second.log({"loss": 2.0}, step=1)
        second.finish("FAILED")
    assert "another living process" in caplog.text
    assert points(record) == [(0, "loss", 1.0)]
    assert records.state(record.folder)["status"] == "FINISHED"


def test_nan_and_infinities_survive():
    with records.open_record(**RUN) as record:
        record.log({"a": math.nan, "b": math.inf, "c": -math.inf}, step=0)
    assert [repr(value) for _, _, value in points(record)] == ["nan", "inf", "-inf"]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "."])
def test_an_artifact_stays_inside_its_record(name):
    with records.open_record(**RUN) as record, pytest.raises(ValueError, match="relative path"):
        record.artifact(name, b"")


def test_the_first_end_counts():
    with records.open_record(**RUN) as record:
        record.finish("FAILED")
    assert records.state(record.folder)["status"] == "FAILED"


def test_an_unknown_status_is_refused():
    with records.open_record(**RUN) as record, pytest.raises(ValueError, match="FINISHED, FAILED or KILLED"):
        record.finish("DONE")


def test_tracking_costs_no_heavy_import():
    child = python("""
import sys
import lightning_modules.tracking.mirror
print(sorted({"torch", "mlflow", "pytorch_lightning", "numpy"} & set(sys.modules)))
""")
    assert child.output == "[]\n"


def test_provenance_states_the_commit_and_the_digests_of_the_inputs(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "pretrain@committees-digits")
    facts = records.provenance()
    assert len(facts["git.commit"]) == 40 and facts["git.dirty"] in ("true", "false")
    assert facts["dvc.stage"] == "pretrain@committees-digits" and "dvc.exp" not in facts

    (tmp_path / LOCK).parent.mkdir(parents=True)
    lock = {"stages": {"prepare": {"outs": [{"path": "data/a", "md5": "12.dir"}, {"path": "data/b", "md5": "34"}]}}}
    (tmp_path / LOCK).write_text(json.dumps(lock))
    monkeypatch.setattr(records, "ROOT", tmp_path)
    found = records.provenance(inputs=["data/a"])
    assert {name: value for name, value in found.items() if name.startswith("dvc.dep")} == {"dvc.dep.data/a": "12.dir"}
    for part in (
        "",
        "stages:",
        "stages:\n  prepare:\n    outs:\n    - path: data/a\n      md5",
        "stages:\n  a:\n    outs:\n    -",
    ):
        (tmp_path / LOCK).write_text(part)  # DVC is writing it
        assert not [name for name in records.provenance(inputs=["data/a"]) if name.startswith("dvc.dep")]


@pytest.mark.slow
def test_lightning_logs_into_the_record_and_leaves_its_end_to_the_caller():
    import pytorch_lightning as pl
    import torch

    from lightning_modules.tracking.logger import RunLogger

    class Line(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Linear(1, 1)

        def training_step(self, batch):
            loss = self.slope(batch).square().mean()
            self.log("pretrain/loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with records.open_record(**RUN) as record:
        logger = RunLogger(record)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=4,
            log_every_n_steps=1,
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice on workers
            trainer.fit(Line(), torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=2))
        assert (logger.name, logger.version, logger.experiment) == ("committees", KEY, record)
        assert records.state(record.folder) == {"status": "RUNNING"}
    assert [step for step, name, _ in points(record) if name == "pretrain/loss"] == [0, 1, 2, 3]


# --- what MLflow takes ----------------------------------------------------------------------------------------------


def test_batches_hold_at_most_900_points_and_promise_only_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    wide = {"t": 1, "step": 0, "m": {f"m{i}": i for i in range(2000)}}
    path.write_text("".join(json.dumps(line) + "\n" for line in ({"t": 1, "step": 0, "m": {"a": 1.0}}, wide)))
    first_line = len(path.read_text().splitlines()[0]) + 1
    found = list(mirror.batches(path, 0))
    assert [(offset, len(points)) for offset, points in found] == [
        (first_line, 900),
        (first_line, 900),
        (path.stat().st_size, 201),
    ]
    assert len({name for _, points in found for name, *_ in points}) == 2001


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("digits/cascade/top1_percent@macs_1440", "digits/cascade/top1_percent:macs_1440"),
        ("a//b", "a/b"),
        ("/a", "a"),
        ("x" * 250, "x" * 250),
    ],
)
def test_names_become_what_mlflow_accepts(name, accepted):
    assert mirror.mlflow_name(name) == accepted


def test_long_names_stay_apart():
    names = {mirror.mlflow_name("x" * 300 + end) for end in "ab"}
    assert len(names) == 2 and all(len(name) == 250 for name in names)


def test_a_password_is_not_shown():
    assert mirror.masked("postgresql://me:secret@host/db") == "postgresql://***@host/db"


def test_an_error_that_is_not_known_is_told_as_the_beginning_of_a_sentence():
    error = RuntimeError("Could not read\n  sqlite://me:secret@x.")
    assert mirror.refusals.explained(error, "sqlite:///x") == "RuntimeError: Could not read sqlite://***@x"


# --- the mirror into a file -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """MLflow takes seconds to set up a database: once is enough."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_client(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def database(base, empty_database):
    (base / "mlflow.db").write_bytes(empty_database)
    return f"sqlite:///{base}/mlflow.db"


def mlflow_client(uri: str):
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    from mlflow import MlflowClient

    return MlflowClient(uri)


def on_server(uri: str, experiment: str = "committees") -> dict[str, dict]:
    """Every fact of every run of a server, by key; fails if a key is there twice."""
    client = mlflow_client(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], max_results=1000) if found else []
    keys = {run.info.run_id: run.data.tags["reprise.key"] for run in runs}
    assert len(set(keys.values())) == len(keys)
    facts = {keys[run.info.run_id]: _facts(client, run, keys) for run in runs}
    for key in {own["parent"] for own in facts.values()} - {None}:
        # the first child that the mirror has seen, and of several the earliest
        starts = [own["start"] for own in facts.values() if own["parent"] == key]
        assert facts[key].pop("start") in starts
    return facts


def _facts(client, run, keys) -> dict:
    history = [point for name in run.data.metrics for point in client.get_metric_history(run.info.run_id, name)]
    tags = dict(run.data.tags)
    return {
        "status": run.info.status,
        "start": run.info.start_time,
        "parent": keys.get(tags.get("mlflow.parentRunId")),
        "params": run.data.params,
        "tags": {name: value for name, value in tags.items() if not name.startswith(("mlflow.", "reprise."))},
        "points": sorted((point.key, point.step, repr(float(point.value)), point.timestamp) for point in history),
        "artifacts": sorted(artifact_paths(client, run.info.run_id)),
    }


def artifact_paths(client, run_id: str, path: str | None = None):
    for item in client.list_artifacts(run_id, path):
        if item.is_dir:
            yield from artifact_paths(client, run_id, item.path)
        else:
            yield item.path


def on_disk(root: Path) -> dict[str, dict]:
    """What `on_server` must give: the records, and a parent for each arm."""
    expected: dict[str, dict] = {}
    for record in mirror.scan(root):
        lines = [line for _, line in records.metric_lines(record.folder / "metrics.jsonl")]
        folder = record.folder / "artifacts"
        expected[record.meta["key"]] = {
            "status": record.state["status"],
            "start": record.meta["start"],
            "parent": record.meta["parent"]["key"],
            "params": record.params,
            "tags": {name: x for name, x in record.tags.items() if not name.startswith(("reprise.", "mlflow."))},
            "points": sorted(
                (mirror.mlflow_name(name), line["step"], repr(float(value)), line["t"])
                for line in lines
                for name, value in line["m"].items()
            ),
            "artifacts": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()),
        }
        parent = {"status": "FINISHED", "parent": None, "params": {}, "tags": {}, "points": [], "artifacts": []}
        expected.setdefault(record.meta["parent"]["key"], parent)
    return expected


def push(root: Path) -> None:
    waiting, reason = mirror.Mirror(root).push(mirror.scan(root))
    assert (reason, waiting) == (None, [])


def write_runs(seeds=range(2), steps: int = 50) -> None:
    for seed in seeds:
        with records.open_record(**RUN | {"seed": seed}, params={"lr": 0.1, "long": "x" * 9000}) as record:
            for step in range(steps):
                record.log({"loss": step / 3, "accuracy@1": float(seed)}, step)
            record.log({"nan": math.nan}, steps)
            record.artifact("figures/x.png", b"png")
            record.artifact("top.txt", b"text")
            record.machine({"latency_ms": 0.5})


def test_everything_arrives_and_a_second_mirror_sends_nothing(base, database, monkeypatch):
    write_runs()
    push(base)
    assert on_server(database) == on_disk(base)
    assert on_server(database)[KEY]["params"]["long"].endswith("[cut: 9000 characters, whole in .scratch/runs]")
    monkeypatch.setattr(mirror.Mirror, "_client", None)
    push(base)


def flush(root: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "lightning_modules.tracking.mirror", "--root", str(root), "--flush"],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_deleted_database_is_rebuilt(base, database, empty_database):
    write_runs()
    push(base)
    assert len(list(base.glob(".scratch/runs/*/*/sent.json"))) == 2
    (base / "mlflow.db").write_bytes(empty_database)
    done = flush(base)
    assert (done.returncode, done.stdout) == (0, "")
    copy = (base / "mlflow.db").rename(base / "rebuilt.db")  # MLflow keeps connections to the old one in this process
    assert on_server(f"sqlite:///{copy}") == on_disk(base)


def test_points_whose_receipt_was_lost_do_not_arrive_twice(base, database, monkeypatch):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def crash(*arguments):
        raise ConnectionError("killed between the points and the tag")

    write_runs(seeds=[0], steps=1000)
    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "_set_tags", crash)
        waiting, reason = mirror.Mirror(base).push(mirror.scan(base))
        assert len(waiting) == 1 and "killed between" in reason
    assert on_server(database)[KEY]["status"] == "RUNNING"
    push(base)
    assert on_server(database) == on_disk(base)


def test_one_bad_record_holds_up_no_other(base, database):
    write_runs()
    bad = next((base / ".scratch/runs").glob("*/*seed-0"))
    (bad / "params.json").write_text("[1]")
    waiting, reason = mirror.Mirror(base).push(mirror.scan(base))
    assert [record.folder for record in waiting] == [bad] and "list" in reason
    assert on_server(database)[KEY.replace("seed-0", "seed-1")]["status"] == "FINISHED"


def test_a_dead_run_is_closed_and_a_resumed_one_opened_again(base, database):
    follower = mirror.Mirror(base)
    statuses = []

    def look():
        assert follower.push(mirror.scan(base)) == ([], None)
        runs = on_server(database)
        statuses.append((runs[KEY]["status"], runs["tiny/committees-digits"]["status"]))

    script = """
record = records.open_record(**RUN)
for step in range(20):
    record.log({"loss": step / 7}, step)
print("ready", flush=True)
time.sleep(60)
"""
    child = python(script, wait=False)
    child.stdout.readline()
    look()
    child.kill()
    child.communicate()
    look()
    with records.open_record(**RUN) as record:
        record.resume(at_step=10)
        look()
        for step in range(10, 30):
            record.log({"loss": step / 7}, step)
    look()
    assert statuses == [("RUNNING",) * 2, ("KILLED", "FINISHED"), ("RUNNING",) * 2, ("FINISHED",) * 2]
    assert on_server(database) == on_disk(base)
    assert len(on_server(database)[KEY]["points"]) == 30


def test_a_record_made_anew_under_an_old_key_is_another_run(base, database):
    write_runs(seeds=[0])
    push(base)
    (base / ".scratch").rename(base / "cleared")
    write_runs(seeds=[0])
    push(base)
    client = mlflow_client(database)
    found = client.search_runs([client.get_experiment_by_name("committees").experiment_id])
    assert sorted(run.data.tags["reprise.key"] for run in found) == ["tiny/committees-digits", KEY, KEY]


@pytest.mark.slow
def test_flush_says_in_one_line_what_is_missing_where_and_why(base):
    write_runs(steps=9)
    done = flush(base, MLFLOW_TRACKING_URI="http://me:secret@127.0.0.1:9")
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1 and "secret" not in done.stdout
    assert done.stdout.startswith(
        "2 runs (20 metric lines) kept in .scratch/runs and not yet on http://***@127.0.0.1:9"
    )
    assert done.stdout.endswith(
        "it does not answer: start the server, or correct MLFLOW_TRACKING_URI. After that, `make sync` sends them.\n"
    )
    with mirror.claim(base):  # so that no other is started
        child = python("for seed in range(5, 7): records.open_record(**RUN | {'seed': seed})", REPRISE_TRACKING="")
    assert (child.output, child.errors) == ("", done.stdout)  # a later stage repeats it, once, at its end


def test_flush_says_in_one_line_that_a_file_system_has_no_locks(base, monkeypatch, capsys):
    def without(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(mirror.fcntl, "flock", without)
    assert mirror.main(["--root", str(base), "--flush"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("error: ") and f"the file system of {base}/.scratch has no flock: mount it with" in line


@pytest.mark.slow
def test_two_runs_opened_at_once_share_one_mirror(base, database):
    script = """
with records.open_record(**RUN | {"seed": int(os.environ["SEED"])}) as record:
    record.log({"loss": 1.0}, 0)
"""
    children = [python(script, wait=False, SEED=str(seed), REPRISE_TRACKING="") for seed in range(2)]
    for child in children:
        assert child.communicate(timeout=30) == ("", "")  # and nobody holds their pipes
        assert child.returncode == 0
    until(lambda: len(list(base.glob(".scratch/runs/*/*/sent.json"))) == 2)
    (only,) = processes_of(base)
    assert os.getsid(only) != os.getsid(0)
    assert flush(base).returncode == 0  # takes over at once: does not wait until the mirror has idled away
    until(lambda: processes_of(base) == [])  # it ends, too
    assert on_server(database) == on_disk(base)


def test_a_mirror_leaves_when_all_is_sent(base, database):
    write_runs(seeds=[0], steps=3)
    mirror.follow(base, period=0.05, linger=0.2, patience=60.0)
    assert on_server(database) == on_disk(base)


def test_a_mirror_gives_up_on_a_silent_server_and_says_so(base, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    write_runs(seeds=[0], steps=3)
    mirror.follow(base, period=0.05, linger=60.0, patience=0.2)
    assert "1 run (4 metric lines)" in records.read_json(base / ".scratch/mirror.json")["notice"]


def test_a_mirror_whose_lock_was_deleted_leaves_the_field(base, monkeypatch):
    write_runs(seeds=[0], steps=3)

    def clear(self, records):
        (base / ".scratch/mirror.lock").unlink()
        return [], None

    monkeypatch.setattr(mirror.Mirror, "push", clear)
    mirror.follow(base, period=0.01, linger=60.0, patience=60.0)


# --- what users of MLflow look for ----------------------------------------------------------------------------------


@pytest.fixture
def dataset(base):
    folder = base / "data/digits/tiny"
    folder.mkdir(parents=True)
    card = {"name": "digits", "columns": {"id": "int64", "label": "int64"}, "splits": {"train": 40, "test": 9}}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def arm_record() -> records.RunRecord:
    return records.open_record(experiment="committees", arm="committees-digits", preset="tiny")


def found_runs(uri: str, kind: str, experiment: str = "committees"):
    """Runs of an experiment as MLflow's client gives them, the arm's parents or the runs of its stages."""
    client = mlflow_client(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [run for run in runs if (run.data.tags.get("reprise.kind") == "arm") == (kind == "arm")]


def test_an_arm_as_a_whole_is_the_parent_run_and_shows_its_present_values(base, database):
    write_runs(steps=3)
    for mean in (1.0, 2.0, 2.0, 0.5):
        with arm_record() as record:
            record.update({"loss": mean, "loss.low": 0.25})
            record.describe(f"mean {mean}")
        push(base)
    (arm,) = found_runs(database, "arm")
    assert arm.data.metrics == {"loss": 0.5, "loss.low": 0.25}
    assert arm.data.tags["mlflow.note.content"] == "mean 0.5" and arm.info.run_name == "committees-digits (tiny)"
    assert arm.data.tags["mlflow.source.name"] == "make repro PRESET=tiny PAPER=committees"
    assert {run.data.tags["mlflow.parentRunId"] for run in found_runs(database, "runs")} == {arm.info.run_id}
    assert [value for _, name, value in points(record) if name == "loss"] == [1.0, 2.0, 0.5]
    (base / ".scratch").rename(base / "cleared")  # a record made anew knows nothing of the parent's points
    with arm_record() as record:
        record.update({"loss": 7.0})
    push(base)
    (arm,) = found_runs(database, "arm")
    assert arm.data.metrics == {"loss": 7.0, "loss.low": 0.25}


def test_runs_show_the_data_set_the_source_and_the_commit(base, database, dataset):
    import mlflow

    with records.open_record(**RUN) as record:
        record.data(dataset, "training")
    push(base)
    assert flush(base).returncode == 0
    (run,) = found_runs(database, "runs")
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, json.loads(given.dataset.profile)) == ("digits", {"rows.train": 40, "rows.test": 9})
    assert json.loads(given.dataset.schema)["mlflow_colspec"][0] == {"name": "id", "type": "int64"}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    assert (records.ROOT / mlflow.data.get_source(given).uri).samefile(dataset)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    assert run.data.tags["mlflow.source.git.commit"] == commit and run.data.tags["mlflow.source.name"]
    first = given.dataset.digest
    card = json.loads((dataset / "card.json").read_text())
    (dataset / "card.json").write_text(json.dumps(card | {"splits": {"train": 41}}))
    with records.open_record(**RUN | {"seed": 5}) as record:
        record.data(dataset, "training")
    push(base)
    digests = {run.inputs.dataset_inputs[0].dataset.digest for run in found_runs(database, "runs")}
    assert len(digests) == 2 and first in digests


class Doubling:
    """A model of the tests: its file holds a number to multiply by."""

    def __init__(self, folder: Path, *, plus: int) -> None:
        self.factor, self.plus = int((folder / "weights").read_text()), plus

    def predict(self, model_input, params=None):
        return model_input * self.factor + self.plus


def test_the_weights_are_a_model_that_mlflow_loads_and_that_is_stored_once(base, database, monkeypatch):
    import mlflow
    import numpy as np
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    weights = base / "data/runs/seed-0/weights"
    weights.parent.mkdir(parents=True)
    weights.write_text("2")
    digest = {"weights": "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35"}
    with records.open_record(**RUN) as record:
        record.model(f"{__name__}.Doubling", [weights.parent], digest, plus=1)
    with monkeypatch.context() as patch:  # killed after the model was made, before that was noted
        patch.setattr(TrackingServiceClient, "log_outputs", lambda *arguments: 1 / 0)
        assert mirror.Mirror(base).push(mirror.scan(base))[0]
    push(base)
    assert flush(base).returncode == 0
    (run,) = found_runs(database, "runs")
    (made,) = run.outputs.model_outputs
    client = mlflow_client(database)
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert (model.model_id, model.status.value, model.source_run_id) == (made.model_id, "READY", run.info.run_id)
    kept = sorted(path.name for path in (base / "mlruns").rglob("*") if path.is_file())
    assert kept == ["MLmodel", "reference.json"]
    mlflow.set_tracking_uri(database)
    loaded = mlflow.pyfunc.load_model(f"models:/{made.model_id}")
    assert loaded.predict(np.array([1, 5])).tolist() == [3, 11]
    weights.write_text("3")
    with pytest.raises(ValueError, match=r"weights of this model are no longer in .*, or were replaced"):
        mlflow.pyfunc.load_model(f"models:/{made.model_id}")


def test_an_experiment_has_the_descriptions_of_both_presets_and_default_goes(base, database):
    client = mlflow_client(database)
    records.describe_experiment("committees", "tiny", "small")
    records.describe_experiment("committees", "paper", "large")
    write_runs(seeds=[0], steps=2)
    push(base)
    (experiment,) = client.search_experiments()
    assert (experiment.name, experiment.tags["mlflow.note.content"]) == ("committees", "large\n\nsmall")
    records.describe_experiment("committees", "tiny", "smaller")
    write_runs(seeds=[1], steps=2)
    push(base)
    assert client.get_experiment_by_name("committees").tags["mlflow.note.content"] == "large\n\nsmaller"


def test_a_default_experiment_that_somebody_uses_stays(base, database):
    client = mlflow_client(database)
    client.create_run("0")
    write_runs(seeds=[0], steps=2)
    push(base)
    assert {experiment.name for experiment in client.search_experiments()} == {"Default", "committees"}


def test_a_claim_is_rebuilt_from_what_mlflow_finds(base, database):
    """The cell of `notebooks/01_results.ipynb`, on numbers of the test."""
    import mlflow
    import yaml

    from lightning_modules.metrics import claims
    from stages.arms import prefixed, summarised
    from stages.plan import load_plan

    text = (REPOSITORY / "lightning_modules/maskalign/facts.yaml").read_text()
    claim = claims.Claim.model_validate(next(c for c in yaml.safe_load(text)["claims"] if c["id"] == "M2-against_mae"))
    arm, names = claim.value.arm, (claim.value.metric, claim.reference.metric)
    by_seed = {
        seed: dict(zip(names, values, strict=True))
        for seed, values in enumerate([(30.0, 9.0), (28.0, 8.5), (33.0, 9.0)])
    }
    for seed, metrics in by_seed.items():
        run = {"experiment": "maskalign", "arm": arm, "preset": "tiny", "stage": "evaluate", "seed": seed}
        for attempt in ({name: 0.0 for name in names}, metrics):  # an earlier evaluation, and the present one
            with records.open_record(**run, key_suffix=str(attempt[names[0]])) as record:
                record.summary(prefixed(attempt))
                time.sleep(0.002)
    with records.open_record(experiment="maskalign", arm=arm, preset="tiny") as record:
        record.update(summarised({seed: prefixed(metrics) for seed, metrics in by_seed.items()}))
    push(base)
    expected = claims.judge(claim, {arm: by_seed}, "tiny")

    mlflow.set_tracking_uri(database)
    where = f"tags.arm = '{arm}' and tags.stage = 'evaluate' and tags.preset = 'tiny'"
    runs = mlflow.search_runs(experiment_names=["maskalign"], filter_string=where)
    latest = runs.sort_values("start_time").drop_duplicates("tags.seed", keep="last")
    value, reference = (latest[f"metrics.evaluate/{mirror.mlflow_name(name)}"] for name in names)
    found = claims.confidence_interval((value - reference).to_numpy())
    assert (found.mean, [found.low, found.high]) == (expected["difference"], expected["interval"])

    (whole,) = mlflow.search_runs(experiment_names=["maskalign"], filter_string="tags.stage = 'arm'").to_dict("records")
    column = f"metrics.evaluate/{mirror.mlflow_name(names[0])}"
    assert whole[column] == expected["value"] and whole["metrics.seeds"] == 3
    assert [whole[f"{column}.low"], whole[f"{column}.high"]] == expected["value_interval"]
    assert load_plan("tiny").evaluate[arm].paper == "maskalign"


# --- why the store takes nothing -------------------------------------------------------------------------------------


@pytest.fixture
def refusing(request):
    """An HTTP server on loopback that gives one status to everything."""
    status = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def refused(base: Path, monkeypatch, uri: str) -> str:
    """What is said of a run that could not be sent."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    write_runs(seeds=[0], steps=2)
    sender = mirror.Mirror(base)
    waiting, reason = sender.push(mirror.scan(base))
    assert len(waiting) == 1
    notice = mirror.write_notice(sender, waiting, reason)
    assert notice.count("\n") == 0 and notice.endswith("After that, `make sync` sends them.")
    return notice


@pytest.mark.parametrize(("refusing", "status"), [(401, "401"), (403, "403")], indirect=["refusing"])
def test_a_server_that_refuses_who_asks(base, monkeypatch, refusing, status):
    said = refused(base, monkeypatch, refusing)
    assert f"it refuses your name or password ({status}): set MLFLOW_TRACKING_USERNAME" in said


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://127.0.0.1:9", "it does not answer: start the server, or correct MLFLOW_TRACKING_URI"),
        ("postgresql+psycopg://me:secret@127.0.0.1:9/x", "it does not answer: start the server"),
        ("http://nowhere.invalid", "there is no such host: correct MLFLOW_TRACKING_URI"),
        ("htp://127.0.0.1", "MLFLOW_TRACKING_URI is no address of a store that this MLflow knows: expected http://"),
        ("mlruns", "MLFLOW_TRACKING_URI is no address of a store that this MLflow knows"),
        ("mysql://me:secret@127.0.0.1/x", "the driver of its database, MySQLdb, is not installed: install it"),
        ("sqlite:///{base}/100%20/x.db", "the database cannot be opened: check that its folder exists and is yours"),
        ("sqlite:///{base}/text", "the file is no database: move it away"),
    ],
)
def test_an_address_that_leads_nowhere(base, monkeypatch, uri, said):
    (base / "100%20").mkdir()
    (base / "text").write_text("no database" * 100)
    notice = refused(base, monkeypatch, uri.format(base=base))
    assert said in notice and "secret" not in notice


def test_a_locked_database(base, database, monkeypatch):
    with sqlite3.connect(base / "mlflow.db", isolation_level=None) as other:
        other.execute("begin exclusive")
        said = refused(base, monkeypatch, f"{database}?timeout=0.1")
        other.execute("rollback")
    assert "another process has the database locked: wait until it ends, or stop it" in said


def test_a_deleted_experiment_is_to_be_restored(base, database, monkeypatch):
    client = mlflow_client(database)
    number = client.create_experiment("committees")
    client.delete_experiment(number)
    said = refused(base, monkeypatch, database)
    assert f"experiment {number} was deleted there: restore it with" in said
    client.restore_experiment(number)
    push(base)


def outdate(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("update alembic_version set version_num = 'cf29fb7d3f7a'")


def test_tables_of_another_version(base, database, monkeypatch):
    outdate(base / "mlflow.db")
    said = refused(base, monkeypatch, f"sqlite:///{base}/mlflow.db?timeout=5")
    assert "its tables are of another version of MLflow (cf29fb7d3f7a): make a copy of the database, then run " in said
    assert f"`.venv/bin/mlflow db upgrade 'sqlite:///{base}/mlflow.db?timeout=5'`" in said


@pytest.mark.slow
def test_the_ui_says_what_is_wrong_with_the_tables(base, database, monkeypatch):
    outdate(base / "mlflow.db")
    done = subprocess.run(
        [sys.executable, "-m", "stages.ui", "--port", str(free_port())],
        cwd=REPOSITORY,
        env={**os.environ, "MLFLOW_TRACKING_URI": database},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"error: {database}: its tables are of another version of MLflow" in done.stderr


@pytest.mark.parametrize("name", ["100%", "100%20", "what?", "ü #1"])
def test_a_folder_of_any_name_holds_its_database(base, empty_database, name, monkeypatch):
    root = base / name
    root.mkdir()
    (root / "mlflow.db").write_bytes(empty_database)
    monkeypatch.setenv("DVC_ROOT", str(root))
    write_runs(seeds=[0], steps=2)
    push(root)
    with sqlite3.connect(root / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (2,)
    assert len(list((root / "mlruns").rglob("top.txt"))) == 1


# --- a real server that is late, slow and killed --------------------------------------------------------------------


class Server:
    """An MLflow server on a database and a loopback port; `kill` is kill -9 for all its processes."""

    def __init__(self, folder: Path, store: str) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder, self._store, self._log = folder, store, folder / "server.log"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        arguments = ["--backend-store-uri", self._store]
        arguments += ["--artifacts-destination", str(self._folder / "artifacts"), "--workers", "1"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments, "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=self._folder,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        until(self._answers, 300)  # the first start makes the tables

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200
        return False

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class SlowProxy(socketserver.ThreadingTCPServer):
    """Passes bytes on to a port after a delay."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, delay: float) -> None:
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with socket.create_connection(("127.0.0.1", port)) as upstream:
                    back = threading.Thread(target=outer.pump, args=(upstream, self.request), daemon=True)
                    back.start()
                    outer.pump(self.request, upstream)
                    back.join()

        super().__init__(("127.0.0.1", 0), Handler)
        self.delay = delay
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                time.sleep(self.delay)
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def server(request, base, empty_database):
    """On a SQLite file, or on PostgreSQL where the test asks for it."""
    store = f"sqlite:///{base}/server.db"
    (base / "server.db").write_bytes(empty_database)
    if getattr(request, "param", "sqlite") == "postgresql":
        store = request.getfixturevalue("postgresql")
    server = Server(base, store)
    yield server
    server.kill()


@pytest.fixture
def start_follower(base):
    """Starts mirrors that would outlast any outage of the test."""
    started = []

    def start(uri: str, linger: float = 1.0) -> subprocess.Popen:
        options = ["--root", str(base), "--period", "0.2", "--linger", str(linger), "--patience", "600"]
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "lightning_modules.tracking.mirror", *options],
                cwd=REPOSITORY,
                env={**os.environ, "MLFLOW_TRACKING_URI": uri},
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def slow_training(seed: int, steps: int = 300) -> subprocess.Popen:
    """A run of some seconds that also resumes a killed one."""
    return python(
        f"""
with records.open_record(**RUN | {{"seed": {seed}}}, params={{"lr": 0.1}}) as record:
    for step in range({steps}):
        record.log({{"loss": step / 7, "accuracy@1": step / {steps}}}, step)
        time.sleep(0.02)
    record.artifact("figures/x.png", b"png")
""",
        wait=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("server", ["sqlite", "postgresql"], indirect=True)
def test_a_server_that_comes_late_and_is_killed_twice_gets_everything_once(base, server, start_follower):
    trainings = [slow_training(seed, steps=1000) for seed in range(2)]
    start_follower(server.uri, linger=600.0)
    until(lambda: "2 runs" in (records.read_json(base / ".scratch/mirror.json").get("notice") or ""))
    for _ in range(2):
        server.start()
        until(lambda: list(base.glob(".scratch/runs/*/*/sent.json")))
        time.sleep(0.5)
        server.kill()
    third = slow_training(2, steps=50)
    server.start()
    for training in [*trainings, third]:
        assert training.communicate(timeout=120) == ("", "")
        assert training.returncode == 0
    until(lambda: len(mirror.scan(base)) == len(on_server(server.uri)) - 1, 120)
    assert flush(base, MLFLOW_TRACKING_URI=server.uri).returncode == 0
    assert on_server(server.uri) == on_disk(base)


@pytest.mark.slow
def test_a_mirror_killed_in_the_middle_of_sending_leaves_no_trace(base, server, start_follower):
    server.start()
    with SlowProxy(server.port, delay=0.1) as proxy:
        training = slow_training(0)
        for lifetime in (4.0, 4.3, 4.6, 4.9):  # some seconds of these go into imports
            follower = start_follower(proxy.uri)
            time.sleep(lifetime)
            follower.kill()
            follower.wait()
        training.kill()
        training.communicate()
        resumed = slow_training(0)
        assert resumed.communicate(timeout=120) == ("", "")
        assert flush(base, MLFLOW_TRACKING_URI=proxy.uri).returncode == 0
        proxy.shutdown()
    assert on_server(server.uri) == on_disk(base)
    assert len(on_server(server.uri)[KEY]["points"]) == 600


@pytest.mark.slow
def test_a_slow_server_slows_no_training(base, server, start_follower):
    server.start()
    with SlowProxy(server.port, delay=0.5) as proxy:
        follower = start_follower(proxy.uri)
        cost = 0.0
        with records.open_record(**RUN) as record:
            for step in range(1000):
                begin = time.perf_counter()
                record.log({f"m{i}": i / 7 for i in range(8)}, step)
                cost += time.perf_counter() - begin
                time.sleep(0.002)
        assert cost < 0.5  # less than a single one of the server's answers takes
        assert follower.wait(timeout=200) == 0
        proxy.shutdown()
    assert on_server(server.uri) == on_disk(base)
