"""Writes what came of every claim: `data/report/<preset>/{index.html,claims.json,metrics.json,plots/figures.csv}`."""

import argparse
import csv
import json
from pathlib import Path

import yaml

from lightning_modules.metrics import claims
from stages import page
from stages.page import figures, machine


def read_arm(arm: str, row: dict, folder: Path, unavailable: dict[str, str]) -> tuple[page.Arm, dict]:
    """An arm as the page shows it, with its metrics by seed; one without results carries the reason."""
    shown = page.Arm(name=arm, runs=row["runs"])
    if not (folder / "metrics.json").exists():
        lacking = [name for name in unavailable if name in arm]
        shown.missing = f"no results, data set {' and '.join(lacking)} was not to be had" if lacking else "no results"
        return shown, {}
    by_seed = {int(seed): metrics for seed, metrics in json.loads((folder / "metrics.json").read_text()).items()}
    shown.seeds = sorted(by_seed)
    shown.metrics = claims.summary({arm: by_seed})[arm]
    if (folder / "figures.json").exists():
        shown.figures = figures.load(folder / "figures.json")
    return shown, by_seed


def write(folder: Path, papers: list[page.Paper], preset: str, unavailable: dict[str, str]) -> None:
    """Writes the tracked files and, beside them, the untracked facts of this machine."""
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    arms = [arm for paper in papers for arm in paper.arms if not arm.missing]
    rows = [row for paper in papers for row in paper.rows]
    for name, content in (("claims", rows), ("metrics", {arm.name: arm.metrics for arm in arms})):
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "plots" / "figures.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["arm", "figure", "series", "x", "y", "low", "high"], lineterminator="\n")
        table.writeheader()
        table.writerows(figures.table({arm.name: arm.figures for arm in arms}))
    (folder / "index.html").write_text(page.render(papers, preset, unavailable), encoding="utf-8")
    (folder / "machine.js").write_text(machine.script(Path(".scratch/runs")), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Reads the plan, the facts and the results of its arms, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", required=True, choices=["tiny", "paper"])
    parser.add_argument("--plan", type=Path, default=Path("params.yaml"), help="the file with the evaluate section")
    parser.add_argument("--show", action="store_true", help="print the claims to the terminal too")
    options = parser.parse_args(arguments)
    preset = options.preset
    plan = yaml.safe_load(options.plan.read_text(encoding="utf-8"))["evaluate"]
    notes = sorted(Path(".scratch/unavailable").glob(f"*-{preset}.txt"))
    unavailable = {note.stem.removesuffix(f"-{preset}"): note.read_text(encoding="utf-8").strip() for note in notes}
    read = {arm: read_arm(arm, row, Path("data/results", preset, arm), unavailable) for arm, row in plan.items()}
    results = {arm: by_seed for arm, (_, by_seed) in read.items() if by_seed}
    missing = {arm: shown.missing for arm, (shown, _) in read.items() if shown.missing}
    papers = []
    for stem in dict.fromkeys(row["system"] for row in plan.values()):
        facts = claims.load_facts(Path("lightning_modules", f"{stem}.yaml"))
        claims.check_plan(facts, plan, preset)
        arms = [shown for arm, (shown, _) in read.items() if plan[arm]["system"] == stem]
        papers.append(page.Paper(facts, claims.ledger([facts], results, preset, missing), arms))
    folder = Path("data/report", preset)
    write(folder, papers, preset, unavailable)
    if options.show:
        page.show(papers, folder / "index.html")


if __name__ == "__main__":
    main()
