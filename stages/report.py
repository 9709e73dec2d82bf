"""Write the page: data/{results,curves}/<preset>/ -> data/report/<preset>/.

Writes index.html, papers/<stem>.html and plots/figures.csv, and beside them machine.js, which DVC does not track. A
paper without results here is shown with the committed verdicts in results/<preset>/<paper>/claims.json.
"""

import argparse
import csv
import json
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from lightning_modules.files import ROOT, replace_folder, scratch
from lightning_modules.metrics import claims
from lightning_modules.tracking import records
from stages import page
from stages.command import add_preset, run_stage
from stages.composing import downstream
from stages.page import comparing, curves, figures, machine
from stages.plan import Plan, Row, load_plan


def read_arm(
    plan: Plan, row: Row, folder: Path, unavailable: dict[str, str], pending: Collection[str] = ()
) -> tuple[page.Arm, dict[int, dict[str, float]]]:
    """An arm as the page shows it and its metrics by seed; an arm without results says why."""
    if row.arm in pending:
        return page.Arm(row.arm, trained(plan, row), missing="results are not up to date"), {}
    if not (folder / "metrics.json").exists():
        why = f", because data set {row.dataset} was not available" if row.dataset in unavailable else ""
        return page.Arm(row.arm, trained(plan, row), missing=f"no results{why}"), {}
    by_seed = {int(seed): metrics for seed, metrics in json.loads((folder / "metrics.json").read_text()).items()}
    shown = page.Arm(
        row.arm,
        trained(plan, row),
        sorted(by_seed),
        claims.summary({row.arm: by_seed})[row.arm],
        figures.load(folder / "figures.json"),
        page.load_galleries(folder / "galleries.json"),
        page.load_not_computed(folder / "not_computed.json"),
    )
    return shown, by_seed


def trained(plan: Plan, row: Row) -> list[tuple[str, str]]:
    """(stage, arm) of every training that a row reads."""
    return plan.trained(row, downstream(row.system, plan.preset) if row.stage == "finetune" else ())


def read_sweep(plan: Plan, row: Row, results: Path, unavailable: dict[str, str]) -> page.Arm:
    """A sweep as the page shows it, with its statement."""
    name = f"sweep-{row.arm}"
    shown, _ = read_arm(plan, replace(row, arm=name), results / name, unavailable)
    if not shown.missing:
        shown.statement = json.loads((results / name / "study.json").read_text())["statement"]
    return shown


def read_paper(
    plan: Plan, stem: str, root: Path, unavailable: dict[str, str], pending: Collection[str] = ()
) -> page.Paper:
    """Facts, verdicts and arms of one paper; results of `pending` arms are left out.

    A paper that has no results here keeps the verdicts that are committed.
    """
    facts = claims.load_facts(claims.facts_file(root, stem))
    folder = root / "data/results" / plan.preset / stem
    rows = [row for row in plan.evaluate.values() if row.paper == stem]
    read = {row.arm: read_arm(plan, row, folder / row.arm, unavailable, pending) for row in rows}
    results = {arm: by_seed for arm, (_, by_seed) in read.items() if by_seed}
    missing = {arm: shown.missing for arm, (shown, _) in read.items() if shown.missing}
    committed = root / "results" / plan.preset / stem / "claims.json"
    if results or not committed.is_file():
        ledger = [
            row | {"shared": shared(plan, row["arms"]) if row["n"] > 1 else []}
            for row in claims.ledger([facts], results, plan.preset, missing)
        ]
    else:
        ledger = json.loads(committed.read_text())
        for shown, _ in read.values():
            shown.missing = "it was not run on this machine; its verdicts are the committed ones"
    sweeps = [read_sweep(plan, row, folder, unavailable) for row in plan.sweep.values() if row.paper == stem]
    counted = committed.with_name(comparing.COUNTED)
    cost = json.loads(counted.read_text()) if counted.is_file() else None
    return page.Paper(facts, ledger, [shown for shown, _ in read.values()], sweeps, cost=cost)


def shared(plan: Plan, arms: Iterable[str]) -> list[str]:
    """The arms with one seed that all seeds of arms that are compared start from: another one is in no interval."""
    rows = [plan.row("evaluate", arm) for arm in arms]
    upstream = dict.fromkeys(
        arm for row in rows for stage, arm in plan.trained(row, ()) if stage == "pretrain" and arm != row.runs
    )
    return [arm for arm in upstream if len(plan.seeds_of(plan.pretrain[arm])) == 1]


def read_papers(
    plan: Plan, root: Path, unavailable: dict[str, str], stems: Iterable[str] = (), pending: Collection[str] = ()
) -> list[page.Paper]:
    """The result of `read_paper` for each paper that has rows to evaluate, or for the named ones."""
    evaluated = {row.paper for row in plan.evaluate.values()}
    chosen = set(stems) or evaluated
    return [read_paper(plan, stem, root, unavailable, pending) for stem in plan.papers if stem in chosen & evaluated]


def unavailable_data(plan: Plan) -> dict[str, str]:
    """Why data sets of the plan are not available on this machine, as recorded by their `prepare` stages."""
    notes = {name: scratch() / "unavailable" / f"{name}-{plan.preset}.txt" for name in plan.datasets}
    return {name: note.read_text(encoding="utf-8").strip() for name, note in notes.items() if note.exists()}


def page_of(plan: Plan) -> Path:
    """Path of the page, relative to the repository's root."""
    return Path("data/report", plan.preset, "index.html")


def write(
    folder: Path,
    papers: list[page.Paper],
    preset: str,
    unavailable: dict[str, str],
    comparisons: Iterable[comparing.Comparison] = (),
) -> None:
    """Write the report, whole or not at all."""
    arms = [arm for paper in papers for arm in paper.arms + paper.sweeps if not arm.missing]
    with replace_folder(folder) as out:
        (out / "plots").mkdir()
        with (out / "plots/figures.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, figures.COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(figures.table({arm.name: arm.figures[:1] for arm in arms}))
        (out / "papers").mkdir()
        for name, text in page.render(papers, preset, unavailable, comparisons).items():
            (out / name).write_text(text, encoding="utf-8")
        (out / "machine.js").write_text(machine.script(scratch() / "runs", preset), encoding="utf-8")


def record_figures(stem: str, arm: page.Arm, preset: str) -> None:
    """Record the figures of an arm in MLflow."""
    if arm.missing:
        return
    with records.open_record(experiment=stem, arm=arm.name, preset=preset) as record:
        for figure in arm.figures:
            record.artifact(f"figures/{figure.id}.png", figures.png(figure))


def main(arguments: list[str] | None = None, root: Path = ROOT) -> None:
    """Read the plan, the facts and the results, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_preset(parser)
    parser.add_argument("--show", action="store_true", help="print the claims in the terminal, and write no page")
    parser.add_argument("--paper", nargs="*", default=[], help="papers to print with --show (default: all)")
    options = parser.parse_args(arguments)
    plan = load_plan(options.preset, root)
    unavailable = unavailable_data(plan)
    if options.show:
        page.show(read_papers(plan, root, unavailable, options.paper), page_of(plan))
        return
    papers = read_papers(plan, root, unavailable)
    for paper in papers:
        paper.trainings = curves.read(root / "data/curves" / plan.preset, plan, paper.trained)
    comparisons = comparing.load(root / comparing.FILE)
    write(root / page_of(plan).parent, papers, plan.preset, unavailable, comparisons)
    for paper in papers:
        for arm in paper.arms:
            record_figures(paper.facts.stem, arm, plan.preset)


if __name__ == "__main__":
    run_stage(main)
