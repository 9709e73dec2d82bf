"""Run a study until it has its trials, with workers on one machine or on many: `make sweep`.

Its members are the trained seeds of any arms that classify, by the names of their rows of `sweep` or `evaluate`:
`make sweep ARM='movinet-half movinet-causal'`. Several arms must have answered the same rows.

If it is started again, it continues. If a worker is killed, another one repeats its trial (`sweeps/studies.py`). The
results go to `.scratch/sweeps/<study>/`. `stages/sweep.py` runs the same search with a fixed seed, as a stage of the
pipeline.
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules.files import ROOT, replace_folder, scratch
from lightning_modules.runs import Run
from lightning_modules.settings import bind, meant
from stages.command import add_preset, run_stage
from stages.composing import compose
from stages.evaluate import runs_of, write_evaluation
from stages.plan import Plan, PlanError, Row, load_plan
from stages.sweep import cached_search, track

if TYPE_CHECKING:
    from lightning_modules.sweeps.search import Finished


def parse() -> argparse.Namespace:
    """The command line; values that are not given come from conf/sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "arm",
        help="rows of `sweep` or `evaluate` in plans/<preset>/<paper>/params.yaml, several with spaces between them; "
        "if trials train, one row of `sweep` or `pretrain`",
    )
    add_preset(parser)
    parser.add_argument(
        "--setting", default="cached", help="conf/sweep/<setting>.yaml: cached (default), training, ..."
    )
    parser.add_argument("--machines", default="local", help="conf/sweep/machines/<name>.yaml: local, database or slurm")
    parser.add_argument("--study", help="name of the study (default: <arm>-<setting>)")
    parser.add_argument("--task", help="of networks that answer several tasks, the one that counts")
    parser.add_argument("--trials", type=int, help="trials that the study needs in all")
    parser.add_argument("--workers", type=int, help="number of processes on each machine")
    parser.add_argument("--storage", help="URL of a database (default: a journal file in .scratch/sweeps)")
    parser.add_argument("--dry-run", action="store_true", help="print the command of each machine and stop")
    return parser.parse_args()


def search_of(plan: Plan, rows: Sequence[Row], setting: str, settings: dict) -> Any:
    """The search that a setting describes."""
    row = rows[0]
    if setting == "cached":
        found = [(each, run) for each in rows for run in runs_of(plan, each, folder_of(plan, each))]
        return cached_search(plan, row, [run for _, run in found], settings, **costs(plan, found, settings["members"]))
    trained = plan.row("pretrain", row.runs)
    system = compose(plan.preset, system=trained.system, overrides=trained.overrides)["system"]
    dataset = ROOT / "data/datasets" / row.dataset / plan.preset
    return bind(settings["search"], f"conf/sweep/{setting}.yaml: search")(system, dataset)


def costs(plan: Plan, found: Sequence[tuple[Row, Run]], members: Mapping[str, Any]) -> dict[str, Any]:
    """Multiply-adds of the networks that do not say them and that no setting names, counted on one row of their data.

    Returns:
        `macs` for `stored.read_pools`, or nothing if nothing is to be counted.
    """
    from lightning_modules.ensembling import stored

    rows = {run: row for row, run in found}
    chosen = stored.of_protocol(list(rows), members["protocol"])
    silent = {
        stored.name_of(run, chosen): run for run in chosen if "members" not in run.facts and stored.cost_of(run) is None
    }
    if members["macs"] is not None or not silent:
        return {}
    return {"macs": {name: counted(plan, rows[run], run) for name, run in silent.items()}}


def counted(plan: Plan, row: Row, run: Run) -> int:
    """Multiply-adds of one picture of a trained network, on its own data.

    Raises:
        ValueError: it does not answer about pictures alone.
    """
    from lightning_modules.metrics.compute import count_macs

    arm, _, protocol = run.name.partition("/")
    tuned = [each for each in plan.finetune.values() if (each.comparison, each.start) == (row.runs, arm)]
    trained = tuned[0] if run.name else plan.row("pretrain", row.runs)
    system = compose(plan.preset, system=trained.system, overrides=trained.overrides)["system"]
    blocks = system["downstream"][protocol] if run.name else system
    where = f"conf/system/{trained.system}/{plan.preset}.yaml"
    module = bind(blocks["model"], f"{where}: model")()
    folder = ROOT / "data/datasets" / trained.dataset / plan.preset
    data = bind(blocks["data"], f"{where}: data", folder=folder, seed=run.seed)()
    try:
        return count_macs(module, next(iter(data.evaluation_batches("test")))["images"].shape[1:])
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{run.folder} does not say what a sample costs, and it cannot be counted on a picture "
            f"({type(error).__name__}: {error}); expected `members.macs` in the overrides of a row of `sweep`"
        ) from None


def folder_of(plan: Plan, row: Row) -> Path:
    """Where the runs of a row lie."""
    return ROOT / "data/runs" / plan.preset / row.runs / row.stage


def rows_of(plan: Plan, names: str, setting: str) -> list[Row]:
    """The rows of `sweep` or of `evaluate` that are searched together; if the trials train, one of `pretrain`, too.

    Raises:
        PlanError: no paper of the preset has such an arm.
        ValueError: several arms where only one can be, or arms on several data sets.
    """
    arms = names.split()
    if not arms or (len(arms) > 1 and setting != "cached"):
        expected = "one or more" if setting == "cached" else "one, which the trials train"
        raise ValueError(f"arms are {names!r}, expected {expected}")
    rows = [plan.sweep[arm] if arm in plan.sweep else _unlisted(plan, arm, setting) for arm in arms]
    if len(data := sorted({row.dataset for row in rows})) > 1:
        raise ValueError(f"the arms {', '.join(arms)} answer about {' and '.join(data)}; a committee has one data set")
    return rows


def _unlisted(plan: Plan, arm: str, setting: str) -> Row:
    """The row of an arm that has none in `sweep`."""
    if setting != "cached":
        return replace(plan.row("pretrain", arm), runs=arm)
    if arm not in plan.evaluate:
        known = plan.sweep | plan.evaluate
        raise PlanError(f"plans/{plan.preset}: no arm {arm!r} in `sweep` or `evaluate`{meant(arm, known)}")
    return replace(plan.evaluate[arm], overrides={})  # those of `sweep` are of other settings


def devices(given: str | None, setting: str) -> list[str]:
    """The GPUs that workers take in turn; none if trials train nothing."""
    visible = given or os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible or setting == "cached":
        return visible.split(",") if visible else []
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def command(arguments: argparse.Namespace, machines: dict) -> list[str]:
    """What one machine runs to take part in the study."""
    line = [sys.executable, "-m", "stages.study", arguments.arm, "--preset", arguments.preset]
    given = {"setting": arguments.setting, "study": arguments.study, "trials": arguments.trials}
    given["task"] = arguments.task
    given |= {"workers": machines["workers"], "storage": arguments.storage}  # REPRISE_STORAGE is inherited instead
    return line + [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]


def submit(line: list[str], slurm: dict, folder: Path, dry_run: bool) -> None:
    """Send one job for each machine to SLURM, through submitit.

    Raises:
        ValueError: this machine cannot submit.
    """
    resources = {name: value for name, value in slurm.items() if name != "jobs"}
    if dry_run:
        print(f"{slurm['jobs']} jobs of {resources}, each: {shlex.join(line)}")
        return
    if shutil.which("sbatch") is None:
        raise ValueError(
            "sbatch (SLURM) was not found on this machine; run this on a login node, or use MACHINES=database"
        )
    import submitit

    executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
    executor.update_parameters(**resources)
    for _ in range(slurm["jobs"]):
        print(executor.submit(submitit.helpers.CommandFunction(line, cwd=ROOT)).job_id)


def main() -> None:
    """Run this machine's workers or submit jobs, then print the result."""
    arguments = parse()
    plan = load_plan(arguments.preset)
    rows = rows_of(plan, arguments.arm, arguments.setting)
    row = replace(rows[0], arm="-and-".join(each.arm for each in rows))
    overrides = row.overrides if arguments.setting == "cached" and len(rows) == 1 else None
    settings = compose(plan.preset, sweep=arguments.setting, machines=arguments.machines, overrides=overrides)["sweep"]
    machines = settings.pop("machines")
    machines |= {name: value for name in ("workers", "storage") if (value := getattr(arguments, name)) is not None}
    arguments.study = arguments.study or f"{row.arm}-{arguments.setting}"
    settings["trials"] = settings["trials"] if arguments.trials is None else arguments.trials
    if arguments.task is not None and "members" not in settings:
        raise ValueError(f"--task is {arguments.task!r}, but the trials of {arguments.setting} train: leave it out")
    if arguments.task is not None:
        settings["members"]["task"] = arguments.task
    folder = scratch() / "sweeps"
    if machines["slurm"]:
        return submit(command(arguments, machines), machines["slurm"], folder / "slurm", arguments.dry_run)
    if arguments.dry_run:
        return print(f"on each machine, in {ROOT}: {shlex.join(command(arguments, machines))}")
    search = search_of(plan, rows, arguments.setting, settings)

    from lightning_modules.sweeps.studies import Search, SharedStudy, WorkersEnded, run_workers

    studies: list[Callable[[], SharedStudy]] = []  # how each is opened
    summaries: list[str] = []

    def finish(name: str, search: Search, trials: int) -> list["Finished"]:
        """Run a study to its end, and give its complete trials."""

        def joined() -> SharedStudy:
            study = SharedStudy(name, search, trials=trials, storage=machines["storage"], folder=folder)
            if hasattr(search, "tune"):  # a sampler and a pruner of its own
                search.tune(study.study)
            return study

        joined().close()  # if the study cannot be used, fail once, before workers start
        try:
            run_workers(lambda: joined().work(), machines["workers"], devices(machines["devices"], arguments.setting))
        except WorkersEnded as error:
            raise SystemExit(f"error: {error}") from None
        study = joined()
        found = study.finished()
        studies.append(joined)
        summaries.append(study.summary())
        study.close()
        return found

    if hasattr(search, "conduct"):  # several studies, the later ones of what the earlier ones found
        trials = search.conduct(finish, arguments.study, settings["trials"])
    else:
        trials = finish(arguments.study, search, settings["trials"])
    evaluation = search.report(trials, row.dataset, settings)
    with replace_folder(folder / arguments.study) as out:
        write_evaluation(out, evaluation)
    if studies[0]().first("reported"):
        track(arguments.study, row, plan.preset, settings, evaluation, trials)
    print(f"{'; '.join(summaries)}; results are in {folder / arguments.study}")


if __name__ == "__main__":
    run_stage(main)
