"""Search single models, ensembles and cascades of trained classifiers: pools, or the arms of a comparison.

data/runs/<preset>/<runs>/<stage> -> data/results/<preset>/<paper>/sweep-<arm>/. Trials are the same with any number
of workers (REPRISE_WORKERS), and after a run that was killed and restarted (`sweeps/batches.py`). For a study that many
machines share, and that is not an output of the pipeline, see `stages/study.py`.
"""

import json
import os
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_modules.files import ROOT, digest, replace_folder, scratch
from lightning_modules.runs import Evaluation, Run
from lightning_modules.settings import bind
from lightning_modules.tracking import records
from stages.arms import record_evaluation
from stages.command import run_stage, stage_arguments
from stages.composing import compose
from stages.evaluate import runs_of, write_evaluation
from stages.plan import Plan, Row, load_plan

if TYPE_CHECKING:
    from lightning_modules.sweeps.search import Finished

BEST = 5  # trials of each front that are tracked, the most accurate ones


def cached_search(plan: Plan, row: Row, runs: Sequence[Run], settings: dict, **given: Any) -> Any:
    """The search over the predictions of trained seeds.

    Args:
        plan: of the preset.
        row: that is searched; of several arms, the first.
        runs: of all arms.
        settings: conf/sweep/cached.yaml.
        given: further settings of the members.
    """
    from lightning_modules.ensembling import stored
    from lightning_modules.sweeps import search

    told: dict[str, Any] = {}
    members = stored.of_protocol(runs, settings["members"]["protocol"])
    if any(stored.is_halved(run, settings["members"]["task"]) for run in members):
        told["rows"] = stored.HALVES
    if all("members" in run.facts and run.folder.parents[1].name == row.runs for run in runs):  # one arm of pools
        trained = plan.row("pretrain", row.runs)
        system = compose(plan.preset, system=trained.system, overrides=trained.overrides)["system"]
        told["training_images"] = search.training_images(system)
        told["latency"] = latencies(trained.paper, f"{plan.preset}--{row.runs}--pretrain")
    pools = bind(settings["members"] | given, "conf/sweep/cached.yaml: members")(runs)
    return bind(settings["search"], "conf/sweep/cached.yaml: search", **told)(pools)


def latencies(paper: str, key: str) -> dict[str, float]:
    """Milliseconds per image of each single architecture, as measured by the latest training on this machine."""
    what, found = "/milliseconds_per_image@batch_1", {}
    for path in sorted((scratch() / "runs" / paper).glob(f"{key}--*/machine.json"), key=lambda p: p.stat().st_mtime):
        facts = json.loads(path.read_text())
        found |= {name.removesuffix(what): value for name, value in facts.items() if name.endswith(what)}
    return found


def track(
    name: str, row: Row, preset: str, settings: dict, evaluation: Evaluation, trials: Sequence["Finished"]
) -> None:
    """Record the study with its figures, and the best trials of each front, under one parent run."""
    from stages.page import figures

    study, fronts = (json.loads(evaluation.files[file]) for file in ("study.json", "pareto.json"))
    common = {"experiment": row.paper, "arm": name, "preset": preset, "seed": None}
    common["key_suffix"] = digest(settings, study["space"])
    what = "worst_case_milliseconds_per_image"
    latency = {t.number: {what: t.outcome.facts[what]} for t in trials if what in t.outcome.facts}
    tags = records.provenance([f"data/runs/{preset}/{row.runs}/{row.stage}"]) | {"statement": study["statement"]}
    data = ROOT / "data/datasets" / row.dataset / preset
    with records.open_record(**common, stage="sweep", params=settings, tags=tags) as record:
        record.data(data, "evaluation")
        for file, content in evaluation.files.items():
            record.artifact(file, content)
        for figure in evaluation.figures:
            record.artifact(f"{figure.id}.png", figures.png(figure))
    for point in (point for front in fronts.values() for point in front[-BEST:]):
        with records.open_record(**common, stage=f"trial-{point['trial']}", params=point["configuration"]) as record:
            record.data(data, "evaluation")
            record.summary({key: value for key, value in point.items() if isinstance(value, int | float)})
            record.machine(latency.get(point["trial"], {}))


def main() -> None:
    """Run the study in batches and write the results."""
    arguments = stage_arguments("arm")
    plan = load_plan(arguments.preset)
    row = plan.row("sweep", arguments.arm)
    name = f"sweep-{row.arm}"
    settings = compose(plan.preset, sweep="cached", overrides=row.overrides)["sweep"]
    runs = runs_of(plan, row, ROOT / "data/runs" / plan.preset / row.runs / row.stage)

    from lightning_modules.sweeps import batches

    sources = (ROOT / "data/sources" / plan.preset / "sweep.json").read_text()
    held = [run.facts["predictions_sha256"] for run in runs]
    fingerprint = digest(settings["search"], settings["members"], held, sources)
    search = cached_search(plan, row, runs, settings)
    memory = scratch() / "sweeps" / f"{row.arm}-{fingerprint}"
    study, trials = batches.run(
        search,
        **{name: settings[name] for name in ("trials", "batch", "seed")},
        workers=int(os.environ.get("REPRISE_WORKERS", "1")),
        memory=memory,
    )
    evaluation = search.report(trials, row.dataset, settings)
    with replace_folder(ROOT / "data/results" / plan.preset / row.paper / name) as out:
        rounded = write_evaluation(out, evaluation)
    shutil.rmtree(memory)  # a forced rerun evaluates again
    batches.publish(study, scratch() / "sweeps", name)
    track(name, row, plan.preset, settings, evaluation, trials)
    record_evaluation(plan, row, name, rounded, evaluation)


if __name__ == "__main__":
    run_stage(main)
