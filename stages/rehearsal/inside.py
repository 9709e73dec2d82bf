"""Runs the stages of a plan in the throw-away copy of the project, each in a process of its own.

`python -m stages.rehearsal.inside request.json` is started in the copy by `stages/rehearse.py`. What was found goes
into `found.json`: `entries`, one for each training and each further stage, and the CPU seconds of all.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.files import ROOT, replace_file, write_json
from lightning_modules.processes import cores, die_with_parent
from stages.composing import compose, trainer_name
from stages.plan import Plan, Row, load_plan
from stages.rehearsal import scaling
from stages.rehearsal.call import call

ROWS = 24  # of each split on a CPU: enough for a codebook made narrow
LISTS = "data/downloads/retrieval-splits"  # where `video.corpora` keeps them
WRONG = "altered or cut off"  # of a file that is there with other bytes, see `datasets.download`
HOUR = 3600.0


@dataclass
class Entry:
    """What was found about one training or one further stage. Sizes in bytes; None where nothing can be said."""

    paper: str
    stage: str
    arm: str
    training: str = ""
    state: str = "ran"  # ran | built | failed
    data: str = ""
    epochs: int = 0
    batch: int | None = None
    parameters: int | None = None
    steps_per_second: float | None = None
    steps: int | None = None  # of the whole run, of one seed
    seeds: int = 1
    hours: float | None = None
    gpu_hours: float | None = None
    seconds: float | None = None
    memory: int | None = None
    disk: int | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """What `stages/rehearse.py` asks for. `memory`: gigabytes of the device of the run, where they are given."""

    preset: str
    papers: list[str]
    root: str
    whole: bool
    memory: float | None
    gpus: int


class Rehearsing:
    """One rehearsal of some papers."""

    def __init__(self, request: Request):
        self.request, self.entries = request, []
        self.plan: Plan = load_plan(request.preset)
        self.rows = scaling.chosen(self.plan, request.papers, request.whole)
        self.pool = ThreadPoolExecutor(1 if request.gpus else cores())
        self.devices = self.one_device()
        self.lock, self.once, self.numbers = threading.RLock(), {}, iter(range(1_000_000))
        self.cpu_seconds = 0.0
        self.cards: dict[str, dict[str, int]] = {}  # rows that were prepared of each split
        self.whole: dict[str, dict[str, int | None]] = {}  # rows of the real data set
        self.overrides: dict[tuple[str, str], dict] = {}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["stages.runner.preload", "stages.rehearsal.work"])

    def one_device(self) -> int:
        """Let the trainer of the copy use one device; gives how many the real one divides a step among."""
        trainer = compose(self.plan.preset, trainer=trainer_name())["trainer"]
        devices = trainer["devices"]
        if devices == 1:
            return 1
        one = yaml.safe_dump(trainer | {"devices": 1, "strategy": "auto"})
        (ROOT / f"conf/trainer/{trainer_name()}.yaml").write_text(one)
        count = len(devices) if isinstance(devices, list) else devices
        return count if isinstance(count, int) and count > 0 else max(1, self.request.gpus)

    # Processes

    def process(self, name: str, *arguments: Any) -> dict:
        """What a function of `work` gives in a process of its own: `found`, or `error` and perhaps `out_of_memory`."""
        with self.lock:
            number = next(self.numbers)
        result, log = ROOT / f".rehearsal/{number}.json", ROOT / f".rehearsal/{number}.log"
        result.parent.mkdir(exist_ok=True)
        child = self.context.Process(target=call, args=(name, arguments, str(result), str(log), dict(os.environ)))
        child.start()
        child.join()
        if result.is_file():
            found = json.loads(result.read_text())
            self.cpu_seconds += found["cpu_seconds"]
            return found
        killed = child.exitcode == -signal.SIGKILL
        return {"error": f"its process ended with {child.exitcode}", "out_of_memory": killed}

    def stage(self, name: str, *arguments: str, rows: int = ROWS) -> dict:
        """Run a stage of the copy."""
        narrow = 1 if self.request.whole else scaling.NARROW
        print(f"{name} {' '.join(arguments)}", file=sys.stderr, flush=True)
        given = [*arguments, "--preset", self.request.preset]
        return self.process("stage", name, given, rows, narrow)

    def note(self, entry: Entry, found: dict) -> Entry:
        """Keep an entry, with what its process says of it."""
        if "error" in found:
            entry.state = "failed"
            entry.notes.append(" ".join(found["error"].split()))
        else:
            entry.seconds, entry.memory = (found["found"].get(key) for key in ("seconds", "memory"))
            entry.notes += found["found"].get("replaced", ())
        with self.lock:
            self.entries.append(entry)
        return entry

    def first(self, key: tuple[str, str], work: Callable[[], None]) -> None:
        """Do something once; who comes later waits for it."""
        with self.lock:
            mine = key not in self.once
            future = self.once.setdefault(key, Future())
        if mine:
            try:
                work()
            finally:
                future.set_result(None)
        future.result()

    def composed(self, **choices: Any) -> dict:
        """A configuration as `compose` gives it; Hydra does one at a time."""
        with self.lock:
            return compose(self.plan.preset, **choices)

    # Stages

    def run(self) -> list[Entry]:
        """Run everything."""
        papers = self.request.papers
        self.note(Entry("", "sources", ""), self.stage("sources"))
        used = {row.dataset for stage in ("pretrain", "finetune") for row in self.rows[stage]}
        used |= {row.dataset for row in self._all(("pretrain", "finetune"))} if self.request.whole else set()
        listed = [name for name, paper in self.plan.datasets.items() if paper in papers or name in used]
        list(self.pool.map(self.prepare, listed))
        self.write_plans()
        list(self.pool.map(self.paper, papers))
        if any(self.rows.values()):
            self.note(Entry("", "report", ""), self.stage("report"))
        return self.entries

    def _all(self, stages: tuple[str, ...]) -> list[Row]:
        return [row for name in stages for row in getattr(self.plan, name).values() if row.paper in self.request.papers]

    def needed_rows(self, dataset: str) -> int:
        """Rows of each split of a data set that every training on it needs."""
        rows = [row for stage in ("pretrain", "finetune") for row in self.rows[stage] if row.dataset == dataset]
        systems = [self.composed(system=row.system, overrides=row.overrides)["system"] for row in rows]
        return max([ROWS, *(scaling.needed_rows(system, whole=self.request.whole) for system in systems)])

    def prepare(self, name: str) -> None:
        """Prepare a data set: what is there of the user's, or else a stand-in."""
        preset, paper, rows = self.request.preset, self.plan.datasets[name], self.needed_rows(name)
        entry = Entry(paper, "prepare", name)
        out, theirs = (Path(root, "data/datasets", name, preset) for root in (ROOT, self.request.root))
        file = ROOT / f"conf/dataset/{name}/{preset}.yaml"
        config = self.composed(dataset=name)["dataset"]
        told = [line.removeprefix("# ") for line in file.read_text().splitlines() if line.startswith("#")]
        if (theirs / "card.json").is_file():
            entry.data = "yours, prepared"
            counts = json.loads((theirs / "card.json").read_text())["splits"]
            self.whole[name] = {split: _rows(count) for split, count in counts.items()}
            found = self.process("shorten", theirs, out, rows)
        else:
            file.write_text(yaml.safe_dump(_without_downloads(config)))
            found = self.stage("prepare", name, rows=rows)
            stood_in = self.process("make_stand_in", config, ROOT / "stand-ins" / name, rows)
            self.whole[name] = stood_in["found"]["whole"] if "found" in stood_in else {}
            entry.data = "yours, official files" if "mirror" in _parameters(config) else "drawn here"
            notice = ROOT / f".scratch/unavailable/{name}-{preset}.txt"
            if "error" in found and notice.is_file() and WRONG not in found["error"]:
                entry.data = "stand-in"
                reason, *_, way_out = found["error"].splitlines()
                entry.notes += [f"not here: {reason.removesuffix(' Tried:')}", *told[:1], way_out]
                found = stood_in
                if "found" in stood_in:
                    file.write_text(yaml.safe_dump(config | stood_in["found"]["config"]))
                    found = self.stage("prepare", name, rows=rows)
        self.note(entry, found)
        with suppress(FileNotFoundError):
            counts = json.loads((out / "card.json").read_text())["splits"]
            self.cards[name] = {split: _rows(count) for split, count in counts.items()}

    def write_plans(self) -> None:
        """Write the plans of the copy: one seed, and the changed settings of every row that is run."""
        (ROOT / "params.yaml").write_text(yaml.safe_dump({"seeds": self.plan.seeds[:1], "at_least": None}))
        for stage in ("pretrain", "finetune"):
            for row in self.rows[stage]:
                self.change(stage, row)
        for row in self.rows["sweep"]:
            settings = self.composed(sweep="cached", overrides=row.overrides)["sweep"]
            changed = {name: min(value, settings[name]) for name, value in scaling.TRIALS.items()}
            self.overrides["sweep", row.arm] = dict(scaling.leaves(row.overrides)) | changed
        self.write()

    def change(self, stage: str, row: Row, batch: int | None = None) -> None:
        """Note the overrides of a training, with at most `batch` rows in a step."""
        system = self.composed(system=row.system, overrides=row.overrides)["system"]
        how = {"whole": self.request.whole, "batch": batch, "devices": self.devices}
        changed = scaling.changes(system, self.cards.get(row.dataset, {}), **how)
        written = self.composed(system=row.system, overrides=row.overrides, resolve=False)["system"]
        self.overrides[stage, row.arm] = dict(scaling.leaves(row.overrides)) | scaling.own(changed, written)

    def write(self) -> None:
        """Write the rows of all papers, atomically: stages read them meanwhile."""
        for paper in self.plan.papers:
            text: dict[str, Any] = {
                "preset": self.plan.preset,
                "paper": paper,
                "max_seeds": 1,
                "datasets": [name for name, owner in self.plan.datasets.items() if owner == paper],
            }
            for stage in ("pretrain", "pretrain_from", "finetune", "evaluate", "sweep"):
                text[stage] = {}
            for stage in ("pretrain", "finetune", "evaluate", "sweep"):
                for row in getattr(self.plan, stage).values():
                    if row.paper == paper:
                        where = "pretrain_from" if stage == "pretrain" and row.start else stage
                        text[where][row.arm] = self._row(stage, row)
            with replace_file(ROOT / f"plans/{self.plan.preset}/{paper}/params.yaml") as new:
                new.write_text(yaml.safe_dump(text, sort_keys=False))  # an evaluation loads the first of the arms

    def _row(self, stage: str, row: Row) -> dict[str, Any]:
        found = {"system": row.system, "overrides": self.overrides.get((stage, row.arm), row.overrides)}
        if stage in ("pretrain", "finetune"):
            return found | {"dataset": row.dataset} | ({"from": row.start} if row.start else {})
        return found | {"runs": row.runs} | ({"stage": row.stage} if stage == "evaluate" else {})

    def paper(self, paper: str) -> None:
        """Build all arms of a paper, run the chosen ones, and judge."""
        for stage in ("pretrain", "finetune"):
            for row in getattr(self.plan, stage).values():
                if row.paper == paper and row not in self.rows[stage]:
                    self.build(stage, row)
        for row in self.rows["pretrain"]:
            if row.paper == paper or row.arm in self.upstream(paper):
                self.first(("pretrain", row.arm), partial(self.train, "pretrain", row))
        for row in self.rows["finetune"]:
            if row.paper == paper:
                self.train("finetune", row)
        for stage in ("evaluate", "sweep"):
            for row in getattr(self.plan, stage).values():
                if row.paper == paper:
                    self.evaluate(stage, row)
        self.note(Entry(paper, "claims", ""), self.stage("claims", paper))

    def upstream(self, paper: str) -> list[str]:
        """Arms that a paper's rows start from or evaluate."""
        rows = [row for stage in ("finetune", "evaluate", "sweep") for row in self.rows[stage] if row.paper == paper]
        return [row.start or row.runs for row in rows]

    def built(self, stage: str, row: Row) -> list[Entry]:
        """Entries of an arm's trainings, from building them without memory; one that failed if that is not possible."""
        found = self.process("build", stage, row, self.request.preset)
        if "error" in found:
            return [Entry(row.paper, stage, row.arm, state="failed", notes=[found["error"]])]
        seeds, entries = len(self.plan.seeds_of(row)), []
        for each in found["found"]:
            entry = Entry(row.paper, stage, row.arm, each["training"], "built", seeds=seeds)
            entry.parameters, entry.memory = each["parameters"], each["memory"]
            # of each seed in the seed store, in data/runs and in DVC's cache, and one checkpoint at a time
            entry.disk = 3 * seeds * each["outputs"] + each["checkpoint"]
            entry.epochs, entry.batch = each["epochs"], each["batch"]
            rows = each["rows"] or self.whole.get(row.dataset, {}).get(each["source"])
            if each["epochs"] and rows and each["batch"]:
                entry.steps = each["epochs"] * max(1, rows // each["batch"])
            elif each["epochs"]:
                entry.notes.append(
                    f"how many steps is not known: conf/dataset does not say how many rows {row.dataset} has"
                )
            limit = self.request.memory
            if limit is not None and each["memory"] > limit * 1e9:
                entry.state = "failed"
                entry.notes.append(
                    f"weights, gradients and optimiser alone take {each['memory'] / 1e9:.2f} GB, but the device has "
                    f"{limit:g} GB (--memory): take a larger one, or make the network smaller"
                )
            entries.append(entry)
        return entries

    def build(self, stage: str, row: Row) -> None:
        """Note an arm that is built and not run."""
        entries = self.built(stage, row)
        with self.lock:
            self.entries += entries

    def train(self, stage: str, row: Row) -> None:
        """Train an arm for a few steps, with a smaller batch if the memory does not suffice."""
        entries = self.built(stage, row)
        if lacking := self.lacking(row):
            for entry in entries:
                entry.state = "failed"
                entry.notes.append(lacking)
        failed = [entry for entry in entries if entry.state == "failed"]
        batch = None
        while not failed:
            found = self.stage(stage, row.arm)
            tried = batch or max(self.part(entry) for entry in entries)
            if not found.get("out_of_memory") or tried == 1 or not self.request.whole:
                break
            batch = tried // 2
            with self.lock:
                self.change(stage, row, batch)
                self.write()
        if failed:
            with self.lock:
                self.entries += entries
            return
        for entry in entries:
            self.measured(entry, found, batch)
        if "found" in found:
            trained = [entry for entry in entries if entry.epochs]
            for entry, each in zip(trained, found["found"]["trainings"], strict=True):
                self.times(entry, each["seconds_per_step"], -(-self.part(entry) // (batch or self.part(entry))))

    def lacking(self, row: Row) -> str:
        """Why a row cannot be run, if something that it needs could not."""
        if row.dataset not in self.cards:
            return f"not run: {row.dataset} could not be prepared"
        needed = f"{row.start}/pretrain" if row.start else f"{row.runs}/{row.stage}" if row.runs else ""
        there = (ROOT / "data/runs" / self.plan.preset / needed).is_dir() if needed else True
        return "" if there else f"not run: the trainings of {row.start or row.runs} failed"

    def part(self, entry: Entry) -> int:
        """Rows of a step on one device."""
        return -(-(entry.batch or 1) // self.devices)

    def measured(self, entry: Entry, found: dict, batch: int | None) -> None:
        """Note a training that ran."""
        entry.state = "ran"
        estimated, trainer = entry.memory, trainer_name()
        self.note(entry, found)
        if not self.request.whole:
            entry.memory = estimated
        if found.get("out_of_memory"):
            entry.notes.append(
                f"it does not fit, not even a row at a time: lower the precision in conf/trainer/{trainer}.yaml, "
                "evaluation_batch_size, or the size of pictures or network, or take a device with more memory"
            )
        elif batch and batch < self.part(entry):
            parts = -(-self.part(entry) // batch)
            entry.notes.append(
                f"memory suffices for {batch} of {self.part(entry)} rows at a time: set accumulate to {parts} in "
                f"conf/trainer/{trainer}.yaml, or lower the precision there"
            )

    def times(self, entry: Entry, seconds: float, parts: int) -> None:
        """What a step that was measured, one of `parts`, says of the run; that of a narrow network says nothing."""
        entry.steps_per_second = 1 / (seconds * parts)
        if not self.request.whole:
            return
        hours = seconds * parts * entry.seeds / HOUR
        if entry.steps:
            entry.hours = entry.steps * hours
            entry.gpu_hours = entry.hours * self.devices if self.request.gpus else None
        elif entry.batch:
            million = entry.epochs * 1e6 / entry.batch * hours
            entry.notes.append(f"each million training rows takes {million:.3g} hours")

    def evaluate(self, stage: str, row: Row) -> None:
        """Evaluate or search what was trained; compose what was not."""
        if row in self.rows[stage] and (lacking := self.lacking(row)):
            self.note(Entry(row.paper, stage, row.arm), {"error": lacking})
        elif row in self.rows[stage]:
            self.note(Entry(row.paper, stage, row.arm), self.stage(stage, row.arm))
        else:
            found = self.process("compose_evaluation", stage, row, self.request.preset)
            self.note(Entry(row.paper, stage, row.arm, state="built"), found)


def _rows(count: int | dict) -> int:
    return count if isinstance(count, int) else count["rows"]


def _parameters(config: dict) -> set[str]:
    import inspect

    from hydra.utils import get_method

    return set(inspect.signature(get_method(config["_target_"])).parameters)


def _without_downloads(config: dict) -> dict:
    """A rehearsal downloads no data, only lists of names, which are small."""
    kept = {"mirrors": []} if "mirrors" in config else {}
    if config.get("list_mirrors") and not Path(config.get("list_cache", LISTS)).is_dir():
        kept["list_cache"] = str(ROOT / "lists")
    return config | kept


def main() -> None:
    """Do what the request says."""
    die_with_parent()
    request = Request(**json.loads(Path(sys.argv[1]).read_text()))
    rehearsing = Rehearsing(request)
    entries = [asdict(entry) for entry in rehearsing.run()]
    write_json(ROOT / "found.json", {"entries": entries, "cpu_seconds": rehearsing.cpu_seconds})


if __name__ == "__main__":
    main()
