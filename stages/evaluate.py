"""Evaluate trained seeds: data/runs/<preset>/<runs>/<stage> -> data/results/<preset>/<arm>/."""

from dataclasses import asdict

from lightning_modules import tracking
from lightning_modules.files import digest, replace_folder, write_json
from lightning_modules.runs import find_runs
from stages.plan import ROOT, compose, load_plan, run_stage, stage_arguments


def main() -> None:
    """Call the paper's evaluation with all seeds, and write its numbers, figures and files."""
    from hydra.utils import instantiate

    arguments = stage_arguments("arm")
    plan = load_plan(arguments.plan)
    row = plan.row("evaluate", arguments.arm)
    config = compose(plan.preset, system=row.system, overrides=row.overrides)["system"]["evaluate"]
    folder = ROOT / "data/runs" / plan.preset / row.runs / row.stage
    evaluation = instantiate(config, _partial_=True, _convert_="all")(find_runs(folder), row.dataset)

    rounded = {
        seed: {name: round(float(value), 6) for name, value in sorted(metrics.items())}
        for seed, metrics in evaluation.metrics.items()
    }
    with replace_folder(ROOT / "data/results" / plan.preset / row.arm) as out:
        write_json(out / "metrics.json", rounded)
        write_json(out / "figures.json", [asdict(figure) for figure in evaluation.figures])
        for name, content in evaluation.files.items():
            (out / name).write_bytes(content)
    for seed, metrics in rounded.items():
        with tracking.open_record(
            experiment=row.system,
            arm=row.arm,
            stage="evaluate",
            seed=seed,
            preset=plan.preset,
            key_suffix=digest(config, metrics),
            params=config,
            tags=tracking.provenance([str(folder.relative_to(ROOT))]),
        ) as record:
            record.summary({f"evaluate/{name}": value for name, value in metrics.items()})


if __name__ == "__main__":
    run_stage(main)
