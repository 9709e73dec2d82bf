"""Evaluate trained seeds: data/runs/<preset>/<runs>/<stage> -> data/results/<preset>/<paper>/<arm>/."""

import json
from dataclasses import asdict
from pathlib import Path

from lightning_modules import settings
from lightning_modules.files import ROOT, digest, replace_folder, write_json
from lightning_modules.runs import Evaluation, Run, find_runs
from lightning_modules.tracking import records
from stages.arms import prefixed, record_evaluation
from stages.command import run_stage, stage_arguments
from stages.composing import BUILT, compose
from stages.plan import Plan, Row, load_plan


def evaluated(plan: Plan, row: Row) -> Row:
    """The pre-trained arm that a row is about: of a comparison the first one, before it was fine-tuned."""
    compared = [each.start for each in plan.finetune.values() if each.comparison == row.runs]
    return plan.pretrain[row.runs if row.stage == "pretrain" else compared[0]]


def predictor_of(plan: Plan, row: Row, evaluation: Evaluation, folder: Path) -> dict:
    """What `predictors.load` needs to answer with the results of a row: `predictor.json`.

    The evaluation names what loads its files, or else the model itself says what answers with it.

    Args:
        plan: of the preset.
        row: of `evaluate`.
        evaluation: of this row.
        folder: with the trainings that were evaluated.
    """
    if evaluation.predictor:
        return {"loader": evaluation.predictor}
    inner = "" if row.stage == "pretrain" else evaluated(plan, row).arm
    return json.loads((folder / inner / BUILT).read_text())


def write_evaluation(out: Path, evaluation: Evaluation) -> dict[int, dict[str, float]]:
    """Write the files of an evaluation into `out`, and return its metrics as written, rounded."""
    rounded = {
        seed: {name: round(float(value), 6) for name, value in sorted(metrics.items())}
        for seed, metrics in evaluation.metrics.items()
    }
    write_json(out / "metrics.json", rounded)
    write_json(out / "figures.json", [asdict(figure) for figure in evaluation.figures])
    if evaluation.galleries:
        write_json(out / "galleries.json", [asdict(gallery) for gallery in evaluation.galleries])
    if evaluation.not_computed:
        write_json(out / "not_computed.json", evaluation.not_computed)
    for name, content in evaluation.files.items():
        (out / name).write_bytes(content)
    return rounded


def runs_of(plan: Plan, row: Row, folder: Path) -> list[Run]:
    """The runs that a row evaluates, without those of arms that are no longer in the plan."""
    runs = find_runs(folder)
    if row.stage == "pretrain":
        return runs
    compared = {each.start for each in plan.finetune.values() if each.comparison == row.runs}
    return [run for run in runs if run.name.partition("/")[0] in compared]


def main() -> None:
    """Call the paper's evaluation with all seeds, and write its numbers, figures and files."""
    arguments = stage_arguments("arm")
    plan = load_plan(arguments.preset)
    row = plan.row("evaluate", arguments.arm)
    config = compose(plan.preset, system=row.system, overrides=row.overrides, stage="evaluate")["system"]["evaluate"]
    folder = ROOT / "data/runs" / plan.preset / row.runs / row.stage
    where = f"conf/system/{row.system}/{plan.preset}.yaml (or the arm's overrides): evaluate"
    runs = runs_of(plan, row, folder)
    evaluation = settings.bind(config, where)(runs, row.dataset)
    with replace_folder(ROOT / "data/results" / plan.preset / row.paper / row.arm) as out:
        rounded = write_evaluation(out, evaluation)
        write_json(out / "predictor.json", predictor_of(plan, row, evaluation, folder))
    for seed, metrics in rounded.items():
        with records.open_record(
            experiment=row.paper,
            arm=row.arm,
            stage="evaluate",
            seed=seed,
            preset=plan.preset,
            key_suffix=digest(config, metrics),
            params=config,
            tags=records.provenance([str(folder.relative_to(ROOT))]) | {"system": row.system},
        ) as record:
            record.data(ROOT / "data/datasets" / row.dataset / plan.preset, "evaluation")
            record.summary(prefixed(metrics))
    record_evaluation(plan, row, row.arm, rounded, evaluation)


if __name__ == "__main__":
    run_stage(main)
