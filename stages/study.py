"""Run a study until it has its trials, with workers on one machine or on many: `make sweep`.

If it is started again, it continues. If a worker is killed, another one repeats its trial (`sweeps/studies.py`). The
results go to `.scratch/sweeps/<study>/`. `stages/sweep.py` runs the same search with a fixed seed, as a stage of the
pipeline.
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules.files import ROOT, replace_folder, scratch
from lightning_modules.runs import find_runs
from lightning_modules.settings import bind
from stages.command import add_preset, run_stage
from stages.composing import compose
from stages.evaluate import write_evaluation
from stages.plan import Plan, Row, load_plan
from stages.sweep import cached_search, track

if TYPE_CHECKING:
    from lightning_modules.sweeps.search import Finished


def parse() -> argparse.Namespace:
    """The command line; values that are not given come from conf/sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "arm", help="a row of `sweep` in plans/<preset>/<paper>/params.yaml; if trials train, one of `pretrain`, too"
    )
    add_preset(parser)
    parser.add_argument(
        "--setting", default="cached", help="conf/sweep/<setting>.yaml: cached (default), training, ..."
    )
    parser.add_argument("--machines", default="local", help="conf/sweep/machines/<name>.yaml: local, database or slurm")
    parser.add_argument("--study", help="name of the study (default: <arm>-<setting>)")
    parser.add_argument("--trials", type=int, help="trials that the study needs in all")
    parser.add_argument("--workers", type=int, help="number of processes on each machine")
    parser.add_argument("--storage", help="URL of a database (default: a journal file in .scratch/sweeps)")
    parser.add_argument("--dry-run", action="store_true", help="print the command of each machine and stop")
    return parser.parse_args()


def search_of(plan: Plan, row: Row, setting: str, settings: dict) -> Any:
    """The search that a setting describes."""
    if setting == "cached":
        return cached_search(plan, row, find_runs(ROOT / "data/runs" / plan.preset / row.runs / "pretrain"), settings)
    trained = plan.row("pretrain", row.runs)
    system = compose(plan.preset, system=trained.system, overrides=trained.overrides)["system"]
    dataset = ROOT / "data/datasets" / row.dataset / plan.preset
    return bind(settings["search"], f"conf/sweep/{setting}.yaml: search")(system, dataset)


def row_of(plan: Plan, arm: str, setting: str) -> Row:
    """The row of `sweep`; where the trials train, an arm that has none there serves itself.

    Raises:
        PlanError: no paper of the preset has such an arm.
    """
    if setting == "cached" or arm in plan.sweep:
        return plan.row("sweep", arm)
    return replace(plan.row("pretrain", arm), runs=arm)


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
    row = row_of(plan, arguments.arm, arguments.setting)
    overrides = row.overrides if arguments.setting == "cached" else None
    settings = compose(plan.preset, sweep=arguments.setting, machines=arguments.machines, overrides=overrides)["sweep"]
    machines = settings.pop("machines")
    machines |= {name: value for name in ("workers", "storage") if (value := getattr(arguments, name)) is not None}
    arguments.study = arguments.study or f"{row.arm}-{arguments.setting}"
    settings["trials"] = settings["trials"] if arguments.trials is None else arguments.trials
    folder = scratch() / "sweeps"
    if machines["slurm"]:
        return submit(command(arguments, machines), machines["slurm"], folder / "slurm", arguments.dry_run)
    if arguments.dry_run:
        return print(f"on each machine, in {ROOT}: {shlex.join(command(arguments, machines))}")
    search = search_of(plan, row, arguments.setting, settings)

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
