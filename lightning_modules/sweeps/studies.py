"""A study that many workers share, on one machine or many. Workers may be started, killed and restarted at any time.

Optuna keeps the trials, in a journal file or in a database. It does not reliably detect that a worker has died: its
heartbeats work with relational databases and `optimize` only, and need a time limit that fits the slowest network. Here
a worker holds a lock for the trial that it runs. When the worker ends, for any reason, the kernel (files) or the
database server releases the lock. So a running trial whose lock is free belongs to a dead worker, and no time limit is
needed.

A study has one slot for each requested trial. A slot is done when a trial in it is finished. The trial of a dead worker
fails, and its slot gets another trial with the same parameters. So in the end, every slot has one finished trial.
A trial that a user enqueues (`study.enqueue_trial`) is run besides those; it has a slot below zero.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from lightning_modules.processes import die_with_parent
from lightning_modules.runs import Evaluation
from lightning_modules.settings import NAME
from lightning_modules.sweeps import batches
from lightning_modules.sweeps.search import Configuration, Finished, Outcome
from lightning_modules.tracking.mirror import masked

if TYPE_CHECKING:
    from sqlalchemy import URL

TRIES = 5  # how often a trial may die with its worker before it is taken for the reason
STARTUP = 24  # random trials before the sampler learns from them
POLL_SECONDS = 0.5
BLOCK = 4096  # bytes
PATIENCE = 60  # seconds that a writer waits for another one, in SQLite
YEAR = 365 * 24 * 3600
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@runtime_checkable
class Search(Protocol):
    """What a study searches: see `search.CachedSearch` and `splitting.TrainingSearch`."""

    directions: tuple[str, ...]
    metric_names: tuple[str, ...]

    @property
    def space(self) -> dict:
        """What makes two studies the same search; plain JSON."""

    def start(self, slot: int) -> dict[str, Any]:
        """Parameters that the trial of a slot has from the beginning."""

    def suggest(self, trial: optuna.Trial) -> Configuration:
        """Ask for a configuration."""

    def evaluate(self, config: Configuration, report: Callable[[float, int], None] | None) -> Outcome:
        """Evaluate it; `report` takes intermediate values and ends a trial that is not worth going on with."""

    def report(self, trials: Sequence[Finished], dataset: str, settings: Mapping[str, Any]) -> Evaluation:
        """What finished trials say."""


@runtime_checkable
class Locks(Protocol):
    """Named locks that end with the process that holds them."""

    def acquire(self, name: str, wait: bool = False) -> bool:
        """Take a lock if it is free, or wait for it."""

    def release(self, name: str) -> None:
        """Give it back."""

    def close(self) -> None:
        """Give back all, and the connection."""


@contextmanager
def held(locks: Locks, name: str) -> Iterator[None]:
    """Hold a lock, once it is free."""
    locks.acquire(name, wait=True)
    try:
        yield
    finally:
        locks.release(name)


class FileLocks:
    """Locks on files of one folder. Machines that share the folder share the locks (NFS from version 4 on)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._files = folder, {}
        folder.mkdir(parents=True, exist_ok=True)

    def acquire(self, name: str, wait: bool = False) -> bool:
        """Take a lock if it is free, or wait for it.

        Raises:
            OSError: the folder's file system has no locks.
        """
        file = (self.folder / name).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return False
        except OSError as error:
            file.close()
            told = f"{self.folder} cannot be locked ({error.strerror}): mount it with flock, or use STORAGE=<database>"
            raise OSError(error.errno, told) from error
        self._files[name] = file
        return True

    def release(self, name: str) -> None:
        """Give it back."""
        self._files.pop(name).close()

    def close(self) -> None:
        """Give back all."""
        for name in list(self._files):
            self.release(name)


class Dialect(NamedTuple):
    """How a database server waits for a lock, takes it if it is free, and gives it back; and how a session lives on."""

    wait: str
    take: str
    release: str
    connect: dict[str, str]


SERVERS = {
    "postgresql": Dialect(
        "SELECT pg_advisory_lock(:key)",
        "SELECT pg_try_advisory_lock(:key)",
        "SELECT pg_advisory_unlock(:key)",
        # a machine that is lost is noticed within 90 seconds
        {"options": "-c tcp_keepalives_idle=60 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"},
    ),
    "mysql": Dialect(
        f"SELECT GET_LOCK(CONCAT('reprise', :key), {YEAR})",
        "SELECT GET_LOCK(CONCAT('reprise', :key), 0)",
        "SELECT RELEASE_LOCK(CONCAT('reprise', :key))",
        {"init_command": f"SET wait_timeout = {YEAR}"},  # else a session ends, locks and all, after 8 idle hours
    ),
}
SERVERS["mariadb"] = SERVERS["mysql"]


class ServerLocks:
    """Locks of a database server, held by the session of this process."""

    def __init__(self, url: "URL", study: str) -> None:
        self._url, self._study, self._dialect = url, study, SERVERS[url.get_backend_name()]

    @cached_property
    def _session(self) -> Any:
        from sqlalchemy import create_engine

        engine = create_engine(self._url, isolation_level="AUTOCOMMIT", connect_args=self._dialect.connect)
        return engine.connect()

    def acquire(self, name: str, wait: bool = False) -> bool:
        """Take a lock if it is free, or wait for it."""
        if wait:
            self._ask(self._dialect.wait, name)
            return True
        return bool(self._ask(self._dialect.take, name))

    def release(self, name: str) -> None:
        """Give it back."""
        self._ask(self._dialect.release, name)

    def close(self) -> None:
        """Give back all, and the connection."""
        self._session.close()
        self._session.engine.dispose()

    def _ask(self, question: str, name: str) -> Any:
        from sqlalchemy import text

        digest = hashlib.sha256(f"{self._url.database}/{self._study}/{name}".encode()).digest()
        return self._session.execute(text(question), {"key": int.from_bytes(digest[:8], signed=True)}).scalar()


class JournalLock:
    """Optuna's lock around each line of a journal, as a file lock: a killed writer leaves nothing to wait for.

    A writer that was killed, or whose disk was full, may leave part of a line. Whoever holds the lock cuts it off.
    """

    def __init__(self, journal: Path, locks: FileLocks) -> None:
        self._journal, self._locks = journal, locks

    def acquire(self) -> bool:
        """Wait for the lock, and end the journal after its last whole line."""
        self._locks.acquire("journal", wait=True)
        if self._journal.exists():
            with self._journal.open("rb+") as file:
                size = end = file.seek(0, os.SEEK_END)
                tail = b""
                while end and b"\n" not in tail:
                    start = max(0, end - BLOCK)
                    file.seek(start)
                    tail, end = file.read(end - start), start
                if (whole := end + tail.rfind(b"\n") + 1) < size:
                    file.truncate(whole)
        return True

    def release(self) -> None:
        """Give it back."""
        self._locks.release("journal")


def open_storage(storage: str | None, study: str, folder: Path) -> tuple[BaseStorage, Locks]:
    """The storage of a study and the locks that go with it.

    Args:
        storage: null for the journal file `<folder>/<study>.journal`, or the URL of a database, as Optuna takes it.
        study: its name.
        folder: where journal files and their locks lie.

    Raises:
        ValueError: a name that cannot be that of a file, a kind of storage without locks that end with a killed worker,
            or a database that does not answer.
    """
    if not NAME.fullmatch(study):
        raise ValueError(f"study is {study!r}, expected a name of letters, digits, `_`, `.` and `-` (STUDY=...).")
    if storage is None:
        locks, journal = FileLocks(folder / f"{study}.locks"), folder / f"{study}.journal"
        lock = JournalLock(journal, locks)
        lock.acquire()  # part of a line would stop the first reader
        lock.release()
        return JournalStorage(JournalFileBackend(str(journal), lock)), locks
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, OperationalError

    try:
        url = make_url(storage)
        if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
            files = Path(f"{url.database}.locks")
            schema, locks = FileLocks(files), FileLocks(files / study)
            options = {"connect_args": {"timeout": PATIENCE}}
        else:
            schema, locks, options = ServerLocks(url, "schema"), ServerLocks(url, study), {}
        with held(schema, "tables"):  # which the first worker makes
            opened = RDBStorage(storage, engine_kwargs=options)
        schema.close()
    except (ArgumentError, KeyError):
        raise ValueError(
            f"storage ({masked(storage)}) must be null, for a journal file, or the URL of a database in PostgreSQL, "
            "MySQL, MariaDB or a file of SQLite, such as postgresql://user@host/database."
        ) from None
    except (OperationalError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"storage ({masked(storage)}) cannot be used: {reason}. Is the server up, the driver that the URL names "
            "installed, and the URL right?"
        ) from None
    return opened, locks


class WorkersEnded(RuntimeError):
    """The workers ended before the study was done."""


class SharedStudy:
    """A study as one worker sees it."""

    def __init__(self, name: str, search: Search, *, trials: int, storage: str | None, folder: Path) -> None:
        """Open the study, or make it.

        Raises:
            ValueError: fewer than one trial, a study of another search, or a storage that cannot be used.
        """
        if trials < 1:
            raise ValueError(f"trials ({trials}) must be at least 1.")
        self.search, self.trials = search, trials
        self._storage, self._locks = open_storage(storage, name, folder)
        with held(self._locks, "study"):
            self.study = optuna.create_study(
                study_name=name,
                storage=self._storage,
                directions=search.directions,
                sampler=batches.sampler(None, STARTUP),
                load_if_exists=True,
            )
            self._check_space(masked(storage) if storage else str(folder / f"{name}.journal"))

    def _check_space(self, where: str) -> None:
        space = json.dumps(self.search.space, sort_keys=True)
        known = self.study.user_attrs.get("space", "{}")
        if known == "{}" and not self._listed(*TrialState):
            batches.name_metrics(self.study, self.search.metric_names)
            self.study.set_user_attr("space", space)
        elif known != space:
            raise ValueError(
                f"study {self.study.study_name!r} in {where} searches another space ({_difference(known, space)}); "
                "expected the same one. Choose another name (STUDY=...) or the settings that it was made with."
            )

    def restore(self) -> None:
        """Let every slot have a trial that is finished, is run by a living worker, or waits for one.

        Raises:
            RuntimeError: a trial died with its worker too often.
        """
        with held(self._locks, "study"):
            unheld = [trial for trial in self._listed(TrialState.RUNNING) if self._locks.acquire(_lock(trial))]
            running = {trial.number for trial in self._listed(TrialState.RUNNING)}  # one may have ended in between
            for trial in unheld:
                if trial.number in running:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                self._locks.release(_lock(trial))
            failed: dict[int, list[FrozenTrial]] = {}
            for trial in self._listed(TrialState.FAIL):
                failed.setdefault(_slot(trial), []).append(trial)
            alive = self._listed(*FINISHED, TrialState.RUNNING, TrialState.WAITING)
            served = {_slot(trial) for trial in alive}
            asked = set(range(self.trials)) | {slot for slot in failed if slot < 0}
            for slot in sorted(asked - served):
                dead = failed.get(slot, [])
                if len(dead) >= TRIES:
                    raise RuntimeError(
                        f"trial {dead[-1].number} died with its worker for the {TRIES}th time; it was "
                        f"{dead[-1].params}. Find out why (memory?) and start another study."
                    )
                params = dead[-1].params if dead else {}
                start = self.search.start(slot) if slot >= 0 else {}
                self.study.enqueue_trial({**start, **params}, user_attrs={"slot": slot})

    def claim(self) -> optuna.Trial | None:
        """A waiting trial, which is this worker's until it is told or the worker dies; None when none waits."""
        with held(self._locks, "study"):
            if not self._listed(TrialState.WAITING):
                return None
            trial = self.study.ask()
            self._locks.acquire(_lock(trial), wait=True)
            return trial

    def run(self, trial: optuna.Trial) -> None:
        """Evaluate a claimed trial and tell the study."""

        def report(value: float, step: int) -> None:
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            outcome = self.search.evaluate(self.search.suggest(trial), report)
            batches.record(trial, outcome)
            self.study.tell(trial, outcome.values)
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        finally:
            self._locks.release(_lock(trial))

    def work(self) -> None:
        """Run trials until every slot is done, also those that other workers leave behind."""
        self.restore()
        while (trial := self.claim()) or not self.done:
            if trial:
                self.run(trial)
            else:
                time.sleep(POLL_SECONDS)
                self.restore()

    @property
    def done(self) -> bool:
        """Whether every slot has its finished trial."""
        return self._finished().keys() >= set(range(self.trials))

    def finished(self) -> list[Finished]:
        """The complete trials, in order of their slots."""
        return [
            Finished(
                trial.number,
                trial.user_attrs["config"],
                Outcome(tuple(trial.values), dict(trial.constraints), dict(trial.user_attrs)),
            )
            for _, trial in sorted(self._finished().items())
            if trial.state == TrialState.COMPLETE
        ]

    def _finished(self) -> dict[int, FrozenTrial]:
        slots = {_slot(trial): trial for trial in self._listed(*FINISHED)}
        return {slot: trial for slot, trial in slots.items() if slot < self.trials}

    def _listed(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def first(self, what: str) -> bool:
        """Whether this is the first time that anyone asks so, for this number of trials."""
        with held(self._locks, "study"):
            told = f"{what} {self.trials}"
            if told in self.study.user_attrs:
                return False
            self.study.set_user_attr(told, True)
            return True

    def summary(self) -> str:
        """How many trials were asked for, complete, pruned, and lost with their worker."""
        finished = self._finished()
        states = [trial.state for trial in finished.values()]
        complete, pruned = (states.count(state) for state in FINISHED)
        lost = len(self._listed(TrialState.FAIL))
        told = f"{self.trials} trials asked, {complete} complete, {pruned} pruned, {lost} lost and made up for"
        enqueued = sum(slot < 0 for slot in finished)
        return f"{told}, {enqueued} of them enqueued by you" if enqueued else told

    def close(self) -> None:
        """Give connections back, so that forked workers do not inherit them."""
        if isinstance(self._storage, RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()
        self._locks.close()


def run_workers(work: Callable[[], None], count: int, devices: list[str]) -> None:
    """Run `work` in `count` forked processes, each with its own device where there are any.

    Raises:
        ValueError: fewer than one worker.
        WorkersEnded: a worker failed, or all were killed.
    """
    if count < 1:
        raise ValueError(f"workers ({count}) must be at least 1.")
    context = multiprocessing.get_context("fork")  # the search with its cached predictions is read once
    processes = [
        context.Process(target=_worker, args=(work, devices[k % len(devices)] if devices else None))
        for k in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode > 0 for process in processes):
        raise WorkersEnded("a worker failed; its error is above. The same command continues the study.")
    if all(process.exitcode < 0 for process in processes):
        raise WorkersEnded("every worker was killed. The same command continues the study.")


def _worker(work: Callable[[], None], device: str | None) -> None:
    die_with_parent()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    work()


def _slot(trial: FrozenTrial) -> int:
    """The slot of a trial; of one that a user enqueued, a number below zero."""
    return trial.user_attrs.get("slot", -1 - trial.number)


def _lock(trial: optuna.Trial | FrozenTrial) -> str:
    return f"trial-{trial.number}"


def _difference(known: str, new: str) -> str:
    before, after = json.loads(known), json.loads(new)
    keys = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    return "; ".join(f"{key}: {before.get(key)} there, {after.get(key)} here" for key in keys)
