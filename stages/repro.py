"""Run every stage that is not up to date, several at a time, and print the claims: `make repro`.

DVC provides the graph, the hashes and the cache. `stages.runner` does DVC's bookkeeping and runs the commands, because
`dvc repro` runs only one stage at a time. If a data set is not available on this machine, the stages that need it are
left out, and the page says so.
"""

import argparse
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_modules.files import ROOT, replace_file, scratch
from lightning_modules.processes import GO_ON_LATER, cores
from lightning_modules.settings import meant
from stages.command import add_preset, run_stage
from stages.composing import check, trainer_name
from stages.doctor import need_repository
from stages.plan import Plan, PlanError, load_plan, parts

if TYPE_CHECKING:
    import networkx

    from stages.runner.schedule import Runner

ORDER = (  # of two stages that could start, the one listed first: so the first claims appear early
    "sources",
    "prepare",
    "claims",
    "evaluate",
    "finetune",
    "pretrain_from",
    "pretrain",
    "sweep",
    "report",
)
SHORT = ("sources", "claims", "evaluate")  # seconds each, and what they give is waited for
UNKNOWN = 60.0  # seconds that a stage which never ran is taken for
TRAINING = {"pretrain": "pretrain", "pretrain_from": "pretrain", "finetune": "finetune"}  # stage -> field of the plan
AT_LEAST = re.compile(r"^at_least:[^#\n]*?(?=[ ]*(#|$))", re.MULTILINE)


def wanted(
    graph: "networkx.DiGraph", preset: str, papers: Collection[str] = (), targets: Iterable[str] = ()
) -> set[str]:
    """The stages of the preset, or those of some papers or targets with all stages that they need.

    Raises:
        ValueError: a target names no stage.
    """
    import networkx

    home = "" if preset == "tiny" else f"plans/{preset}/dvc.yaml"  # file of the stages that all papers share
    mine = {name for name in graph if name.startswith(f"plans/{preset}/") or name.rpartition(":")[0] == home}
    found = {name for name in mine if parts(name)[0] in papers} if papers else set()
    for target in targets:
        named = {
            name for name in mine if name == target or target in (stage_of(name), stage_of(name).partition("@")[0])
        }
        if not named:
            raise ValueError(f"no stage {target!r}; `dvc stage list --all --names-only` lists them")
        found |= named
    if not papers and not targets:
        return mine
    return found.union(*(networkx.descendants(graph, name) for name in found))


def pipelines(preset: str) -> list[Path]:
    """The files with the stages of a preset: that of all papers, and one for each paper."""
    shared = ROOT / ("dvc.yaml" if preset == "tiny" else f"plans/{preset}/dvc.yaml")
    return [shared, *sorted((ROOT / "plans" / preset).glob("*/dvc.yaml"))]


def stage_of(name: str) -> str:
    """Stage and arm of a name, without the file."""
    return name.rpartition(":")[2]


def unavailable(plan: Plan, name: str) -> str | None:
    """Why the data set of a failed `prepare` stage is not available here; None if it failed for another reason."""
    _, stage, dataset = parts(name)
    file = scratch() / "unavailable" / f"{dataset}-{plan.preset}.txt"
    return file.read_text().strip() if stage == "prepare" and file.is_file() else None


def show_claims(plan: Plan, name: str, stale: set[str]) -> None:
    """Print the claims about an arm as soon as its evaluation has ended; the other arms may take an hour more.

    Results of `stale` stages belong to another state of the project, so nothing is compared with them.
    """
    paper, stage, arm = parts(name)
    if stage == "evaluate":
        from stages import page, report

        pending = {arm for _, stage, arm in map(parts, stale) if stage == "evaluate"}
        page.show(report.read_papers(plan, ROOT, {}, [paper], pending), report.page_of(plan), arm)


def compared(plan: Plan) -> list[list[str]]:
    """The arms that each claim compares, where it is judged at the plan's preset."""
    from lightning_modules.metrics import claims

    found: list[list[str]] = []
    for stem in plan.papers:
        with suppress(ValueError):  # the stage `claims` says what is wrong with a facts file
            stated = claims.load_facts(claims.facts_file(ROOT, stem)).claims
            found += [claim.arms for claim in stated if plan.preset in set(claim.presets) - claim.too_noisy.keys()]
    return found


def seconds_to_claims(
    graph: "networkx.DiGraph", durations: Mapping[str, float], claims: Iterable[Collection[str]]
) -> dict[str, float]:
    """The work in all until the first claim that a stage leads to; stages that lead to none are left out.

    Args:
        graph: from each stage to those that it needs.
        durations: seconds of stages, where they are known.
        claims: the arms that each claim compares.
    """
    import networkx

    evaluated = {arm: name for name in graph for _, stage, arm in [parts(name)] if stage == "evaluate"}
    needs = {arm: networkx.descendants(graph, name) | {name} for arm, name in evaluated.items()}
    found: dict[str, float] = {}
    for arms in claims:
        if needs.keys() >= set(arms):
            needed = set().union(*(needs[arm] for arm in arms))
            seconds = sum(durations.get(need, UNKNOWN) for need in needed)
            found |= {need: min(seconds, found.get(need, seconds)) for need in needed}
    return found


def place(plan: Plan, seconds: Mapping[str, float], name: str) -> tuple:
    """Sort key of a stage: the stages that lead to a claim soonest come first.

    What needs one short step only comes before all else. Of stages that lead to the same claim, the last ones come
    first, in the order of the plan.
    """
    paper, stage, arm = parts(name)
    rows = list(getattr(plan, {"prepare": "datasets", **TRAINING}.get(stage, stage), ()))
    left = 0.0 if stage in SHORT else seconds.get(name, math.inf)
    return left, ORDER.index(stage), paper, rows.index(arm) if arm in rows else 0


def seeds_apart(plan: Plan, command: Callable[[str], str], name: str) -> list[str]:
    """Commands that train one seed each; they may run side by side, before the stage's own command."""
    _, stage, arm = parts(name)
    if stage not in TRAINING:
        return []
    return [f"{command(name)} --seed {seed}" for seed in plan.seeds_of(plan.row(TRAINING[stage], arm))]


def ask_for_seeds(count: int) -> None:
    """Write into `params.yaml` how many seeds arms must train at least, so that DVC sees the change.

    Raises:
        PlanError: the file has no line `at_least`, or the plan does not allow so many.
    """
    path = ROOT / "params.yaml"
    before = path.read_text(encoding="utf-8")
    text, found = AT_LEAST.subn(f"at_least: {count}", before)
    if found != 1:
        raise PlanError("params.yaml: at_least: missing, expected a line `at_least: null` for SEEDS to fill in")
    if text != before:
        load_plan("tiny", shared={"at_least": count})
        with replace_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"params.yaml: at_least is now {count}", flush=True)


def usual_jobs() -> int:
    """One slot for each core if the trainer is `cpu`, otherwise one slot."""
    return cores() if trainer_name() == "cpu" else 1


def parse() -> argparse.Namespace:
    """The command line.

    Raises:
        ValueError: fewer than one job or seed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "targets", nargs="*", help="only these stages and what they need, e.g. evaluate or evaluate@committees-mnist"
    )
    add_preset(parser)
    parser.add_argument("--paper", nargs="+", default=[], help="only these papers and what they need")
    parser.add_argument("--seeds", type=int, help="train at least this many seeds of each arm")
    parser.add_argument(
        "--jobs", type=int, help="how many commands run at a time (default: one for each CPU core; one on a GPU)"
    )
    parser.add_argument(
        "--gpus", default="", help="GPUs to use, e.g. 0,1; one command at a time on each (replaces --jobs)"
    )
    parser.add_argument("--launch", default="", help="prefix of each command, e.g. 'srun -N1 -n1'")
    parser.add_argument("--force", action="store_true", help="also run stages that are up to date, and train again")
    arguments = parser.parse_args()
    for name in ("jobs", "seeds"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}, expected at least 1")
    if os.environ.pop("REPRISE_FORCE", "0") not in ("", "0"):  # the runner sets it again for the commands that train
        arguments.force = True
    return arguments


def main() -> None:
    """Read the plan, run what is not up to date, and print the claims."""
    arguments = parse()
    print("reading the plan", flush=True)
    from stages.runner import durations
    from stages.runner.bookkeeping import Bookkeeper
    from stages.runner.display import display
    from stages.runner.schedule import Runner, alone

    with alone():  # a run that is refused has changed nothing
        plan = load_plan(arguments.preset)
        for paper in arguments.paper:
            if paper not in plan.papers:
                raise PlanError(f"--paper is {paper!r}{meant(paper, plan.papers)}")
        need_repository()
        if arguments.seeds:
            ask_for_seeds(arguments.seeds)
            plan = load_plan(arguments.preset)
        print("building the graph", flush=True)
        books = Bookkeeper(
            ROOT, pipelines(plan.preset)
        )  # imports DVC, which takes a moment: something is on screen by now
        try:
            names = wanted(books.graph, plan.preset, arguments.paper, arguments.targets)
            for path in books.tidy(names):
                print(f"removed {path.relative_to(ROOT)}: no arm of the plan makes it", flush=True)
            print("checking which stages are up to date", flush=True)
            took = durations.load(ROOT, scratch())
            seconds = cache(lambda: seconds_to_claims(books.graph.subgraph(names), took, compared(plan)))  # if any
            runner = Runner(
                books,
                names,
                order=lambda name: place(plan, seconds(), name),
                after=partial(show_claims, plan),
                parts=partial(seeds_apart, plan, books.command),
                slots=arguments.gpus.split(",") if arguments.gpus else [""] * (arguments.jobs or usual_jobs()),
                launch=shlex.split(arguments.launch),
                force=arguments.force,
                display=display(),
            )
            print(f"{runner.total} of {len(names)} stages to bring up to date", flush=True)
            if papers := {parts(name)[0] for name in runner.waiting} - {""}:
                check(plan, papers)
            runner.run()
        finally:
            books.close()
    tell(plan, runner, arguments.paper)


def tell(plan: Plan, runner: "Runner", papers: list[str]) -> None:
    """Say how the run ended, write the page if DVC could not, and print the claims."""
    missing = {name: reason for name in runner.failed if (reason := unavailable(plan, name))}
    for reason in missing.values():
        print(f"left out: {reason}", file=sys.stderr)
    if runner.interrupted:
        done = f"{len(runner.done)} of {runner.total} stages are done"
        print(f"{runner.interrupted.name}: {done}; run the same command again to continue", file=sys.stderr)
        raise SystemExit(GO_ON_LATER)
    if failed := sorted(set(runner.failed) - set(missing)):
        raise SystemExit(f"error: {', '.join(failed)} failed; logs are in {scratch() / 'logs'}")
    if runner.errors:
        raise SystemExit("error: " + "; ".join(runner.errors))
    if runner.stopped:
        names = ", ".join(sorted(runner.stopped))
        print(f"{names} stopped; run the same command again to continue", file=sys.stderr)
        raise SystemExit(GO_ON_LATER)
    report = [sys.executable, "-m", "stages.report", "--preset", plan.preset]
    write = [report] if missing or (papers and runner.done) else []  # what is there; for DVC it stays out of date
    for command in [*write, [*report, "--show", *(["--paper", *papers] if papers else [])]]:
        if code := subprocess.run(command, cwd=ROOT).returncode:  # it has said why
            raise SystemExit(code)


if __name__ == "__main__":
    run_stage(main)
