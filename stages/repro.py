"""Bring the pipeline up to date, stages side by side, and print the claims: what `make repro` runs.

DVC owns the graph, the hashes and the cache: every stage is one `dvc --wait-for-lock repro -s STAGE`, started when
what it needs is done (`dvc repro` itself runs one stage at a time). Where a data set is not to be had on this machine,
the stages that need it are left out and the report says so.
"""

import argparse
import os
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import networkx
from tqdm import tqdm

from lightning_modules.files import ROOT, replace_file, scratch
from stages.command import run_stage
from stages.composing import check, trainer_name
from stages.plan import Plan, load_plan

ORDER = (
    "sources",
    "prepare",
    "evaluate",
    "finetune",
    "pretrain_from",
    "pretrain",
    "sweep",
    "report",
)  # first claims soon
BUSY = "is busy, it is being blocked"  # DVC's own word for a clash on shared outputs: an instant error, so we try again
TRIES = 8


def stage_graph(plan: Plan) -> tuple[networkx.DiGraph, set[str]]:
    """DVC's stages of this plan (edges point to what a stage needs), and those that are not up to date."""
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        graph = networkx.relabel_nodes(repo.index.graph, {stage: stage.addressing for stage in repo.index.graph})
        mine = {name for name in graph if name.rpartition(":")[0] == dvc_file(plan)}
        stale = {name for name, changes in repo.status(targets=sorted(mine)).items() if changes}
    graph = networkx.DiGraph(graph.subgraph(mine))
    return graph, stale | set().union(*(networkx.ancestors(graph, name) for name in stale))


def dvc_file(plan: Plan) -> str:
    """The dvc.yaml beside the plan as DVC addresses it: empty for the one at the root."""
    folder = (ROOT / plan.path).resolve().parent.relative_to(ROOT)
    return "" if folder == Path() else str(folder / "dvc.yaml")


def unavailable(plan: Plan, stage: str) -> str | None:
    """Why the data set of a failed `prepare` stage is not to be had here, if that is why it failed."""
    name, _, dataset = parts(stage)
    file = scratch() / "unavailable" / f"{dataset}-{plan.preset}.txt"
    return file.read_text().strip() if name == "prepare" and file.is_file() else None


def show_claims(plan: Plan, stage: str, stale: set[str]) -> None:
    """Print what an evaluation that has just ended says about its arm; the others may take an hour more.

    Results of `stale` stages are of another state of the project: nothing is compared with them.
    """
    name, _, arm = parts(stage)
    if name == "evaluate":
        from stages import page, report

        pending = {arm for name, _, arm in map(parts, stale) if name == "evaluate"}
        page.show(report.read_papers(plan, ROOT, {}, pending), report.page_of(plan), arm)


def parts(stage: str) -> tuple[str, str, str]:
    """The stage and the arm of a name such as `presets/paper/dvc.yaml:evaluate@clip_vip`, with what is between them."""
    return stage.rpartition(":")[2].partition("@")


class Runner:
    """Runs stages in slots; a slot is a core's share, a GPU, or a job of a cluster."""

    def __init__(
        self,
        graph: networkx.DiGraph,
        todo: set[str],
        *,
        slots: list[str],
        launch: list[str],
        after: Callable[[str, set[str]], None] = lambda name, stale: None,
        order: Callable[[str], object] = str,
    ):
        self.order = order
        self.graph, self.launch, self.alone, self.after = graph, launch, len(slots) == 1, after
        self.waiting, self.running = set(todo), set()
        self.done: set[str] = set()
        self.failed: dict[str, int] = {}
        self.slots: queue.SimpleQueue[str] = queue.SimpleQueue()
        for slot in slots:
            self.slots.put(slot)
        self.workers = max(1, len(os.sched_getaffinity(0)) // len(slots))
        self.changed = threading.Condition()
        bars = not self.alone and sys.stderr.isatty() and not os.environ.get("CI")  # alone, a stage shows its own
        self.bar = tqdm(total=len(todo), unit="stage", disable=not bars)
        self.started = time.monotonic()

    def run(self) -> None:
        """Run until nothing is left that can run."""
        with self.changed:
            while True:
                for name in self.ready():
                    if self.slots.empty():
                        break
                    self.waiting.discard(name)
                    self.running.add(name)
                    self.bar.set_postfix_str(", ".join(sorted(self.running)))
                    threading.Thread(target=self.run_one, args=(name, self.slots.get()), daemon=True).start()
                if not self.running:
                    self.bar.close()
                    return
                self.changed.wait()

    def ready(self) -> list[str]:
        """Waiting stages of which everything that they need is up to date, in order."""
        blocked = set().union(*(networkx.ancestors(self.graph, name) for name in self.failed))
        pending = self.waiting | self.running
        free = (name for name in self.waiting - blocked if not pending & set(self.graph.successors(name)))
        return sorted(free, key=self.order)

    def run_one(self, name: str, slot: str) -> None:
        """Run one stage in a slot, and wake the loop."""
        started = time.monotonic()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the `python` of the stages' commands
        environment = {"REPRISE_WORKERS": str(self.workers), **os.environ, "PATH": path}
        if slot:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        command = [*self.launch, sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-q", "-s", name]
        log = scratch() / "logs" / f"{name.replace('/', '_').replace(':', '_')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(TRIES):
            with log.open("w") as file:
                output = None if self.alone else file
                code = subprocess.run(
                    command, env=environment, cwd=ROOT, stdout=output, stderr=output and subprocess.STDOUT
                )
            if code.returncode == 0 or BUSY not in log.read_text():
                break
            time.sleep(1)
        with self.changed:
            self.running.discard(name)
            self.slots.put(slot)
            if code.returncode:
                self.failed[name] = code.returncode
            else:
                self.done.add(name)
            self.say(name, "failed" if code.returncode else "done", time.monotonic() - started)
            if code.returncode == 0:
                self.after(name, self.waiting | self.running | set(self.failed))
            elif not self.alone:
                print("".join(log.read_text().splitlines(keepends=True)[-15:]), file=sys.stderr)
            self.changed.notify_all()

    def say(self, name: str, what: str, seconds: float) -> None:
        """One line for each stage that ends."""
        elapsed = time.monotonic() - self.started
        self.bar.update()
        self.bar.write(f"[{elapsed:6.1f} s] {what:6} {name} ({seconds:.1f} s)")
        sys.stdout.flush()


def place(plan: Plan, name: str) -> tuple[int, int]:
    """Where a stage stands in the order: what leads to a claim soonest comes first, then the order of the plan."""
    stage, _, arm = parts(name)
    arms = list(getattr(plan, {"prepare": "datasets", "pretrain_from": "pretrain"}.get(stage, stage), []))
    return ORDER.index(stage), arms.index(arm) if arm else 0


def usual_jobs() -> int:
    """Two stages side by side on a machine without accelerator: one imports while the other one trains."""
    return min(2, len(os.sched_getaffinity(0))) if trainer_name() == "cpu" else 1


def sort_lock(plan: Plan) -> None:
    """Order the stages of dvc.lock by name: DVC adds them as they end, which side by side is by chance."""
    from dvc.utils.serialize import dump_yaml, load_yaml

    path = (ROOT / plan.path).with_name("dvc.lock")
    if not path.is_file():
        return
    lock = load_yaml(path)
    stages = dict(sorted(lock["stages"].items()))
    if list(stages) != list(lock["stages"]):
        with replace_file(path) as temporary:
            dump_yaml(temporary, {**lock, "stages": stages})


def main() -> None:
    """Check the plan, run what is not up to date, and print the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="stages or groups, e.g. evaluate or evaluate@committees-mnist")
    parser.add_argument("--plan", default="params.yaml")
    parser.add_argument("--jobs", type=int, help="stages side by side; two of them on a CPU, one on a GPU")
    parser.add_argument("--gpus", default="", help="device of each slot, e.g. 0,1; sets --jobs")
    parser.add_argument("--launch", default="", help="put before each stage's command, e.g. 'srun -N1 -n1'")
    arguments = parser.parse_args()
    jobs = usual_jobs() if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1; got {jobs}")
    plan = load_plan(arguments.plan)
    check(plan)
    graph, todo = stage_graph(plan)
    todo &= wanted(graph, arguments.targets)
    slots = arguments.gpus.split(",") if arguments.gpus else [""] * jobs
    print(f"{len(todo)} of {len(graph)} stages to bring up to date", flush=True)
    shown, order = partial(show_claims, plan), partial(place, plan)
    runner = Runner(graph, todo, slots=slots, launch=shlex.split(arguments.launch), after=shown, order=order)
    runner.run()
    sort_lock(plan)
    missing = {name: reason for name in runner.failed if (reason := unavailable(plan, name))}
    for reason in missing.values():
        print(f"left out: {reason}", file=sys.stderr)
    if failed := sorted(set(runner.failed) - set(missing)):
        raise SystemExit(f"error: {', '.join(failed)} failed; logs are in {scratch() / 'logs'}")
    report = [sys.executable, "-m", "stages.report", "--plan", str(plan.path)]
    if missing:  # DVC will not run a report that lacks an input; it is made all the same, and stays out of date for DVC
        subprocess.run(report, cwd=ROOT, check=True)
    subprocess.run([*report, "--show"], cwd=ROOT, check=True)


def wanted(graph: networkx.DiGraph, targets: Iterable[str]) -> set[str]:
    """The stages that the targets name, and all that these need; every stage when there is no target."""
    found: set[str] = set()
    for target in targets:
        named = {
            name for name in graph if name == target or name.startswith(f"{target}@") or name.endswith(f":{target}")
        }
        if not named:
            raise ValueError(f"no stage {target!r}; `dvc stage list --names-only` lists them")
        found |= named.union(*(networkx.descendants(graph, name) for name in named))
    return found if targets else set(graph)


if __name__ == "__main__":
    run_stage(main)
