"""Bring the pipeline up to date, stages side by side, and print the claims: what `make repro` runs.

DVC owns the graph, the hashes and the cache; `stages.runner` keeps its books and runs the commands (`dvc repro` itself
runs one stage at a time). Where a data set is not to be had on this machine, the stages that need it are left out and
the report says so.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_modules.files import ROOT, scratch
from stages.plan import Plan, check, load_plan, run_stage, trainer_name

if TYPE_CHECKING:
    import networkx

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


def place(plan: Plan, name: str) -> tuple[int, int]:
    """Where a stage stands in the order: what leads to a claim soonest comes first, then the order of the plan."""
    stage, _, arm = parts(name)
    arms = list(getattr(plan, {"prepare": "datasets", "pretrain_from": "pretrain"}.get(stage, stage), []))
    return ORDER.index(stage), arms.index(arm) if arm else 0


def usual_jobs() -> int:
    """A slot for each core on a machine without accelerator, else one."""
    return len(os.sched_getaffinity(0)) if trainer_name() == "cpu" else 1


def main() -> None:
    """Check the plan, run what is not up to date, and print the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="stages or groups, e.g. evaluate or evaluate@committees-mnist")
    parser.add_argument("--plan", default="params.yaml")
    parser.add_argument("--jobs", type=int, help="commands side by side; as many as cores on a CPU, one on a GPU")
    parser.add_argument("--gpus", default="", help="device of each slot, e.g. 0,1; sets --jobs")
    parser.add_argument("--launch", default="", help="put before each stage's command, e.g. 'srun -N1 -n1'")
    parser.add_argument("--force", action="store_true", help="run stages that are up to date, too, and really train")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="start no further stage after so long")
    arguments = parser.parse_args()
    jobs = usual_jobs() if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1; got {jobs}")
    print("reading the plan", flush=True)
    plan = load_plan(arguments.plan)
    check(plan)
    from stages.runner.bookkeeping import Bookkeeper  # imports DVC, which takes a moment: something is on screen by now
    from stages.runner.display import display
    from stages.runner.schedule import Runner, alone

    with alone():
        print("building the graph", flush=True)
        books = Bookkeeper(ROOT)
        mine = {name for name in books.graph if name.rpartition(":")[0] == dvc_file(plan)}
        names = wanted(books.graph.subgraph(mine), arguments.targets)
        print("asking which stages are up to date", flush=True)
        runner = Runner(
            books,
            names,
            order=partial(place, plan),
            after=partial(show_claims, plan),
            slots=arguments.gpus.split(",") if arguments.gpus else [""] * jobs,
            launch=shlex.split(arguments.launch),
            force=arguments.force,
            deadline=arguments.deadline,
            display=display(),
        )
        print(f"{runner.total} of {len(names)} stages to bring up to date", flush=True)
        try:
            runner.run()
        finally:
            books.close()
    missing = {name: reason for name in runner.failed if (reason := unavailable(plan, name))}
    for reason in missing.values():
        print(f"left out: {reason}", file=sys.stderr)
    if runner.interrupted:
        done = f"{len(runner.done)} of {runner.total} stages are done"
        print(f"{runner.interrupted.name}: {done}; the same command goes on from here", file=sys.stderr)
        raise SystemExit(128 + runner.interrupted)
    if failed := sorted(set(runner.failed) - set(missing)):
        raise SystemExit(f"error: {', '.join(failed)} failed; logs are in {scratch() / 'logs'}")
    if runner.errors:
        raise SystemExit("error: " + "; ".join(runner.errors))
    report = [sys.executable, "-m", "stages.report", "--plan", str(plan.path)]
    if missing:  # DVC will not run a report that lacks an input; it is made all the same, and stays out of date for DVC
        subprocess.run(report, cwd=ROOT, check=True)
    subprocess.run([*report, "--show"], cwd=ROOT, check=True)


def wanted(graph: "networkx.DiGraph", targets: Iterable[str]) -> set[str]:
    """The stages that the targets name, and all that these need; every stage when there is no target."""
    import networkx

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
