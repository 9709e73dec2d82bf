"""Evaluate trained seeds: data/runs/<preset>/<runs>/<stage> -> data/results/<preset>/<paper>/<arm>/."""

from dataclasses import asdict
from pathlib import Path

from lightning_modules import settings
from lightning_modules.files import ROOT, digest, replace_folder, write_json
from lightning_modules.runs import Evaluation, Run, find_runs
from lightning_modules.tracking import records
from stages.arms import prefixed, record_evaluation
from stages.command import run_stage, stage_arguments
from stages.composing import compose
from stages.plan import Plan, Row, load_plan


def predictor_of(plan: Plan, row: Row, evaluation: Evaluation) -> dict:
    """What `predictors.load` needs to answer with the results of a row: `predictor.json`.

    The evaluation names what loads its files, or else the model itself says what answers with it: the model of the arm
    that was evaluated, or of the first arm of a comparison before it was fine-tuned.
    """
    if evaluation.predictor:
        return {"loader": evaluation.predictor}
    compared = [each.start for each in plan.finetune.values() if each.comparison == row.runs]
    arm = plan.pretrain[row.runs if row.stage == "pretrain" else compared[0]]
    system = compose(plan.preset, system=arm.system, overrides=arm.overrides)["system"]
    return {
        "runs": f"data/runs/{plan.preset}/{arm.arm}/pretrain",
        "model": system["model"],
        "data": system["data"],
        "dataset": f"data/datasets/{arm.dataset}/{plan.preset}",
    }


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
        write_json(out / "predictor.json", predictor_of(plan, row, evaluation))
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
