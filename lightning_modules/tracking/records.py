"""Run records: tracking that cannot stop or delay a run. Imports neither torch nor mlflow.

Every fact of a run is first a local file under `<root>/.scratch/runs/<experiment>/<run id>/`:

    meta.json       identity of the run: key, parent, tags, start                        (rewritten when it is resumed)
    params.json     its resolved parameters, flattened
    metrics.jsonl   one line per call of `log`: {"t": ms, "step": n, "m": {name: value}} (append-only)
    machine.json    what depends on the machine: latencies, throughput
    inputs.json     the data sets that it read, with the digests of their contents
    model.json      where its trained weights lie and what loads them; the weights themselves are not copied
    artifacts/      files
    status.json     how it ended; missing while it runs, or if its process was killed

An arm as a whole has a record, too: what is recorded there belongs to its parent run in MLflow. Beside the runs of an
experiment, `<preset>.md` describes the experiment.

MLflow is a mirror of these files, sent by one background process per repository (`tracking/mirror.py`), which the first
open record starts, unless REPRISE_TRACKING=local (records only: tests). A training never waits for MLflow, and an error
of MLflow never reaches it.

Three rules make a resumed or repeated run exact:

- Recorded values are never changed. A resumed run repeats the steps after its checkpoint; a (metric, step) that was
  already logged is skipped. So the file stays append-only, and the mirror never sends a point twice.
- A training that is repeated after its end gets a record of its own, under the next number (`repeat`).
- The process that records holds a lock on `metrics.jsonl`. The kernel releases it when the process ends, for any
  reason. So the lock tells whether the run is still going on; process ids can be reused, and heartbeats can be late.
  (The file system must support `flock`: local ones, NFS 4, Lustre mounted with it. Otherwise the run is not recorded,
  with a warning.)
"""

import atexit
import contextlib
import fcntl
import functools
import getpass
import hashlib
import itertools
import json
import logging
import os
import platform
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lightning_modules.files import ROOT, replace_file, scratch
from lightning_modules.processes import cores, peak_memory

_CLAIM_ATTEMPTS = 10  # the mirror tests a lock by taking it for microseconds: a claim may meet it by chance
_READ_ATTEMPTS = 10
_WRITTEN = ("dvc.lock", "plans/*/*/dvc.lock", "results", "data")
_encode = json.JSONEncoder(separators=(",", ":")).encode
_log = logging.getLogger(__name__)


def root() -> Path:
    """Where `.scratch` lies: `$DVC_ROOT`, which outlives the temporary copies of `dvc exp`, or the repository."""
    return scratch().parent.resolve()


def open_record(
    *,
    experiment: str,
    arm: str,
    stage: str = "",
    seed: int | None = None,
    preset: str,
    key_suffix: str = "",
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    repeat: bool = False,
) -> "RunRecord":
    """Create the record of one (arm, seed, stage), or re-open it if a run with the same key was interrupted.

    Args:
        experiment: stem of the paper; the MLflow experiment.
        arm: row of the paper's comparison; its runs share a parent run in MLflow.
        stage: pipeline stage, such as `pretrain`; without, the record is that of the arm as a whole.
        seed: seed of the run; None where it is about all seeds of the arm.
        preset: `tiny` or `paper`.
        key_suffix: what else tells this run from others, usually a digest of its inputs.
        params: resolved configuration, nested or flat. Names recorded by an earlier, interrupted run keep their value.
        tags: further facts, such as `provenance()`.
        repeat: a run after one that has finished is another attempt, with a record of its own; the number of the
            attempt ends the key. Without, it belongs to the same record, which keeps what it has.

    Returns:
        The record. On all ranks but zero it takes every call and writes nothing.
    """
    own = "" if seed is None else f"seed-{seed}"
    base = root()
    runs = base / ".scratch" / "runs" / experiment
    key = "/".join(filter(None, (preset, arm, stage, own, key_suffix)))
    if repeat:
        key = next(each for each in (f"{key}-{n}" for n in itertools.count()) if not _is_finished(runs / _name(each)))
    identity = {"preset": preset, "arm": arm, "stage": stage or "arm", "seed": "all" if seed is None else seed}
    meta = {
        "key": key,
        "experiment": experiment,
        "name": " ".join(filter(None, (arm, stage, own))),
        "parent": {"key": f"{preset}/{arm}", "name": f"{arm} ({preset})"},
        "tags": {name: str(value) for name, value in {**identity, **_source(), **(tags or {})}.items()},
    }
    if not stage:
        meta["tags"]["mlflow.source.name"] = f"make repro PRESET={preset} PAPER={experiment}"
    record = RunRecord(runs / _name(key), meta, flatten(params or {}))
    if record.writes and os.environ.get("REPRISE_TRACKING") != "local":
        start_mirror(base)
        _announce_at_exit(base)
    return record


def _name(key: str) -> str:
    """The folder of a record."""
    return key.replace("/", "--")


def _is_finished(folder: Path) -> bool:
    return read_json(folder / "status.json").get("status") == "FINISHED"


def _best_effort(method: Callable[..., None]) -> Callable[..., None]:
    """Let a writing method do nothing on ranks other than zero, and turn a full or lost disk into one warning."""

    @functools.wraps(method)
    def guarded(self: "RunRecord", *args: Any, **kwargs: Any) -> None:
        if not self.writes:
            return
        try:
            method(self, *args, **kwargs)
        except OSError as error:
            if not self._warned:
                _log.warning("%s: %s. The run goes on; what cannot be written is missing there.", self.folder, error)
            self._warned = True

    return guarded


class RunRecord:
    """The local record of one run, and the only thing that a training process writes for tracking.

    As a context manager it ends as FINISHED, as KILLED on `KeyboardInterrupt` or `SystemExit` (Lightning turns SIGTERM
    into one) and as FAILED on any other exception. A process that dies without a word leaves no status and counts as
    KILLED from then on (`state`).
    """

    def __init__(self, folder: Path, meta: dict[str, Any], params: Mapping[str, Any]) -> None:
        self.folder = folder
        self.meta = meta
        self.writes = _rank() == 0
        self._warned = False
        self._file: BinaryIO | None = None
        self._size = 0
        self._recorded: dict[int, set[str]] = {}
        self._present: dict[str, float] = {}
        self._last_recorded_step = -1
        self._open(params)
        self.writes = "opened" in self.meta

    @_best_effort
    def _open(self, params: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        spent = _seconds_spent(self.folder)
        self._file = _claim(self.folder / "metrics.jsonl")
        self._load_points()
        self._write_meta(spent)
        self._write_json("params.json", {**params, **read_json(self.folder / "params.json")})
        (self.folder / "status.json").unlink(missing_ok=True)

    def _load_points(self) -> None:
        """Learn what an interrupted run recorded, and cut the half line that a kill may have left."""
        for end, line in metric_lines(self.folder / "metrics.jsonl"):
            self._recorded.setdefault(line["step"], set()).update(line["m"])
            self._present |= line["m"]
            self._size = end
        self._last_recorded_step = max(self._recorded, default=-1)
        self._file.truncate(self._size)

    def _write_meta(self, spent: float) -> None:
        now = _milliseconds()
        fresh = {"id": secrets.token_hex(8), "start": now}
        earlier = read_json(self.folder / "meta.json")
        kept = {name: earlier.get(name, value) for name, value in fresh.items()}
        session = {"opened": now, "spent_seconds": spent, "host": socket.gethostname(), "pid": os.getpid()}
        self.meta |= kept | session | {"tags": {**earlier.get("tags", {}), **self.meta["tags"]}}
        self._write_json("meta.json", self.meta)

    @_best_effort
    def log(self, metrics: Mapping[str, float | int], step: int) -> None:
        """Append one line of metrics; a (name, step) that an interrupted run recorded already is left out.

        Args:
            metrics: name to value; NaN and infinities are kept.
            step: optimizer steps done, as Lightning counts them.
        """
        if step <= self._last_recorded_step:
            known = self._recorded.get(step, ())
            metrics = {name: value for name, value in metrics.items() if name not in known}
        if metrics:
            values = {name: float(value) for name, value in metrics.items()}
            self._append(_encode({"t": _milliseconds(), "step": step, "m": values}).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        written = self._file.write(line)
        if written != len(line):  # the disk is full: what follows must not be glued to half a line
            self._file.truncate(self._size)
            raise OSError(f"only {written} of {len(line)} bytes could be written to metrics.jsonl")
        self._size += written

    def summary(self, metrics: Mapping[str, float | int], step: int = 0) -> None:
        """Record final numbers.

        Args:
            metrics: name to value.
            step: where the curves of the run end, so that these are their last points; 0 for a run without curves.
        """
        self.log(metrics, step)

    @_best_effort
    def update(self, metrics: Mapping[str, float | int]) -> None:
        """Record numbers that may change, such as a mean over seeds: the point written last is the present value.

        Args:
            metrics: name to value; a value that is the present one already is left out.
        """
        values = {name: float(value) for name, value in metrics.items() if self._present.get(name) != float(value)}
        if values:
            self._present |= values
            self._append(_encode({"t": _milliseconds(), "step": 0, "m": values}).encode() + b"\n")

    @_best_effort
    def describe(self, text: str) -> None:
        """Describe the run in Markdown, in place of an earlier description."""
        self.meta["tags"]["mlflow.note.content"] = text
        self._write_json("meta.json", self.meta)

    @_best_effort
    def data(self, folder: Path, context: str) -> None:
        """Record a data set that the run reads.

        Args:
            folder: a prepared data set, with its `card.json`.
            context: what it is read for, such as `training` or `evaluation`.
        """
        card = (folder / "card.json").read_bytes()
        facts = json.loads(card)
        about = {
            "name": facts.get("name", folder.name),
            "digest": hashlib.sha256(card).hexdigest()[:16],
            "source": os.path.relpath(folder, ROOT),
            "schema": facts.get("columns", {}),
            "profile": {f"rows.{split}": rows for split, rows in facts.get("splits", {}).items()},
            "context": context,
        }
        inputs = read_json(self.folder / "inputs.json")
        if inputs.get(f"{about['name']} for {context}") != about:
            self._write_json("inputs.json", {**inputs, f"{about['name']} for {context}": about})

    @_best_effort
    def model(self, loader: str, folders: Iterable[Path], sha256: Mapping[str, str], **given: Any) -> None:
        """Record what predicts: MLflow gets a model that points to these files (`tracking/model.py`).

        Args:
            loader: dotted name of what is called with the folder, and gives an object with a method `predict`.
            folders: where the files lie or may lie later, the first one first.
            sha256: name and digest of each file.
            given: further arguments of the loader.
        """
        places = [_place(folder) for folder in folders]
        about = {"loader": loader, "folders": places, "sha256": dict(sha256), "given": given}
        if read_json(self.folder / "model.json") != json.loads(json.dumps(about)):
            self._write_json("model.json", about)

    @_best_effort
    def artifact(self, name: str, content: bytes) -> None:
        """Keep a file with the run.

        Args:
            name: relative path, such as `figures/accuracy.png`.
            content: what the file holds.

        Raises:
            ValueError: the path leads out of the record.
        """
        base = (self.folder / "artifacts").resolve()
        path = (base / name).resolve()
        if base not in path.parents:
            raise ValueError(f"artifact name ({name}) must be a relative path without `..`, such as figures/x.png")
        if path.is_file() and path.read_bytes() == content:
            return  # written again, it would be sent again
        with replace_file(path) as temporary:
            temporary.write_bytes(content)

    @_best_effort
    def machine(self, facts: Mapping[str, float | int | str]) -> None:
        """Record what depends on the machine and therefore belongs in no stage output: latency, throughput."""
        self._write_json("machine.json", {**read_json(self.folder / "machine.json"), **facts})

    @_best_effort
    def resume(self, at_step: int) -> None:
        """State that the run goes on from a checkpoint; the points that it passes again are left out by `log`.

        Args:
            at_step: optimizer steps that the checkpoint holds.
        """
        self.meta["tags"]["resumed_at_step"] = str(at_step)
        self._write_json("meta.json", self.meta)

    @_best_effort
    def finish(self, status: str = "FINISHED") -> None:
        """Close the record; a second call changes nothing.

        Args:
            status: FINISHED, FAILED or KILLED.

        Raises:
            ValueError: for any other status.
        """
        if status not in ("FINISHED", "FAILED", "KILLED"):
            raise ValueError(f"status ({status}) must be FINISHED, FAILED or KILLED")
        if self._file.closed:
            return
        now = _milliseconds()
        seconds = self.meta["spent_seconds"] + (now - self.meta["opened"]) / 1000
        ended = {"status": status, "end": now, "wall_seconds": round(seconds, 3), **_peak_memory()}
        try:
            self._write_json("status.json", ended)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # closing is not enough: forked data workers hold the file open too
            self._file.close()

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("KILLED" if issubclass(kind, KeyboardInterrupt | SystemExit) else "FAILED")

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        with replace_file(self.folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1, default=str))


def _place(folder: Path) -> str:
    """A folder as seen from the project. In the temporary copies of `dvc exp`, the seeds are in the repository."""
    base = next((base for base in (ROOT, root()) if folder.is_relative_to(base)), ROOT)
    return os.path.relpath(folder, base)


def describe_experiment(experiment: str, preset: str, text: str) -> None:
    """Describe an experiment in Markdown; MLflow shows the descriptions of all presets, one after the other."""
    path = root() / ".scratch" / "runs" / experiment / f"{preset}.md"
    if _rank() == 0 and not (path.is_file() and path.read_text(encoding="utf-8") == text):
        try:
            with replace_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            _log.warning("%s: %s. The run goes on; MLflow will not show this description.", path, error)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join the keys of nested mappings by dots; lists stay values."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def metric_lines(path: Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (byte offset after the line, line) of a metrics.jsonl, leaving out what a crash cut or garbled."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for raw in file:
            offset += len(raw)
            if raw.endswith(b"\n"):
                with contextlib.suppress(json.JSONDecodeError):
                    yield offset, json.loads(raw)


def state(folder: Path) -> dict[str, Any]:
    """How a run stands: `status.json`, or {"status": "RUNNING"}, or KILLED if its process is gone without a word."""
    running = is_claimed(folder / "metrics.jsonl")  # asked first: a process that ends in between has left its status
    ended = read_json(folder / "status.json")
    if ended or running:
        return ended or {"status": "RUNNING"}
    return {"status": "KILLED", "end": _last_sign_of_life(folder)}


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file of a record, {} if there is none or a power cut left it empty."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def is_claimed(path: Path) -> bool:
    """Whether a living process holds the lock on a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def start_mirror(base: Path) -> None:
    """Start the process that sends records to MLflow, unless it runs.

    It must go on when this process ends or gets a Ctrl-C, and must not keep this process's output open. So it gets its
    own session and output, and is started through a shell, so that it is not a child of this process.
    """
    folder = base / ".scratch"
    command = [
        "sh",
        "-c",
        '"$0" "$@" &',
        sys.executable,
        "-m",
        "lightning_modules.tracking.mirror",
        "--root",
        str(base),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        if is_claimed(folder / "mirror.lock"):
            return
        with (folder / "mirror.log").open("ab") as log:
            subprocess.run(
                command,
                cwd=base,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,
            )
    except OSError as error:
        _log.warning("the MLflow mirror could not be started: %s. Records are kept; `make sync` sends them.", error)


@functools.cache
def _announce_at_exit(base: Path) -> None:
    atexit.register(_announce, base)


def _announce(base: Path) -> None:
    with contextlib.suppress(OSError):
        if notice := read_json(base / ".scratch" / "mirror.json").get("notice"):
            print(notice, file=sys.stderr)


def provenance(inputs: Iterable[str] = ()) -> dict[str, str]:
    """Where a run comes from, as flat tags: commit, machine, versions, DVC stage, digests of its inputs.

    Args:
        inputs: DVC outputs that the stage reads, such as `data/datasets/digits/tiny`; the plans' locks have their md5.

    Returns:
        Only what is known: a version is stated if the package is loaded, a GPU if torch is loaded and sees one.
    """
    facts = {
        "git.commit": _commit(),
        # What a run itself writes does not count.
        "git.dirty": str(bool(_git("status", "--porcelain", "--", ".", *(f":!{path}" for path in _WRITTEN)))).lower(),
        "host": socket.gethostname(),
        "cpu": _cpu_model(),
        "cores": str(cores()),
        "python": platform.python_version(),
        "dvc.stage": os.environ.get("DVC_STAGE", ""),
        "dvc.exp": os.environ.get("DVC_EXP_NAME", ""),
    }
    for package in ("torch", "pytorch_lightning", "transformers"):
        if package in sys.modules:
            facts[package] = sys.modules[package].__version__
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        facts["gpu"] = sys.modules["torch"].cuda.get_device_name()
    facts |= {f"dvc.dep.{path}": md5 for path, md5 in _locked_digests(set(inputs)).items()}
    return {name: value for name, value in facts.items() if value}


def _locked_digests(paths: set[str]) -> dict[str, str]:
    """Digests in the locks of the plans. DVC writes a lock in place: a part of one is read again, or left out."""
    locks = ROOT.glob("plans/*/*/dvc.lock") if paths else ()
    return {path: md5 for lock in locks for path, md5 in _digests_of(lock, paths).items()}


def _digests_of(lock: Path, paths: set[str]) -> dict[str, str]:
    import yaml

    for _ in range(_READ_ATTEMPTS):
        text = lock.read_text()
        try:
            stages = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
            outputs = [output for stage in stages.values() for output in stage.get("outs", ())]
            found = {output["path"]: output["md5"] for output in outputs if output["path"] in paths and "md5" in output}
        except (yaml.YAMLError, AttributeError, KeyError, TypeError):
            text = None
        if text == lock.read_text():
            return found
        time.sleep(0.02)
    return {}


def _source() -> dict[str, str]:
    """The tags that MLflow shows in its columns Source, Version and User."""
    program = os.path.relpath(sys.argv[0], ROOT) if os.path.isabs(sys.argv[0]) else sys.argv[0]
    facts = {"mlflow.source.name": program, "mlflow.source.type": "LOCAL", "mlflow.source.git.commit": _commit()}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        facts["mlflow.user"] = getpass.getuser()
    return {name: value for name, value in facts.items() if value}


@functools.cache
def _commit() -> str:
    """The commit of the code that this process runs."""
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str:
    try:
        finished = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _peak_memory() -> dict[str, float]:
    peak = {"peak_memory_mib": round(peak_memory() / 2**20, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak


def _seconds_spent(folder: Path) -> float:
    """Wall time of the earlier, interrupted runs of a record."""
    meta, ended = read_json(folder / "meta.json"), read_json(folder / "status.json")
    if not meta or ended:
        return ended.get("wall_seconds", 0.0)
    return meta["spent_seconds"] + max(_last_sign_of_life(folder) - meta["opened"], 0) / 1000


def _last_sign_of_life(folder: Path) -> int:
    return max((path.stat().st_mtime_ns for path in folder.glob("me*.json*")), default=0) // 1_000_000


def _rank() -> int:
    # The order is Lightning's: SLURM_PROCID is also set where SLURM starts a single process.
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((rank for rank in ranks if rank), 0))


def _claim(path: Path) -> BinaryIO:
    """Open a file for appending, unbuffered (each line is one write), under a lock that dies with the process."""
    file = path.open("ab", buffering=0)
    for _ in range(_CLAIM_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return file
    file.close()
    raise OSError("another living process records this very run; this one records nothing")


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
