"""The one place that touches the Trainer, the logger, checkpoints, seeds and resuming.

A run that is killed and started again continues from its last checkpoint and ends with the numbers of a run that was
never interrupted, digit for digit: data order depends on (seed, epoch), and the checkpoint holds the random states and
the history. Checkpoints live in `.scratch/training/<arm>-<stage>-seed<seed>-<fingerprint>/`, outside the outputs (DVC
empties those before a stage runs). The fingerprint covers everything that can change the result, so other inputs get
another folder.
The outputs of a finished seed go to the seed store under the same key (`seed_store.py`), and from there into the output
folder of the stage. Tracking only records: outputs never depend on a run's record.
"""

import json
import logging
import multiprocessing
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import torch
from pydantic import Field
from pytorch_lightning import Callback, LightningDataModule, Trainer, seed_everything
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file, save

from lightning_modules import portable, rehearsal, settings
from lightning_modules.averaging import Average
from lightning_modules.base import PaperModule
from lightning_modules.checkpoints import ResumeCheckpoint, usable
from lightning_modules.datasets import storage
from lightning_modules.files import ROOT, digest, replace_folder, scratch, sha256, write_json
from lightning_modules.history import DIVERGED, History, Progress
from lightning_modules.milestones import Milestones, copy_milestones
from lightning_modules.processes import Stopped, asked, cores, is_forced, side_by_side
from lightning_modules.seed_store import SeedStore
from lightning_modules.settings import Count, NonNegative
from lightning_modules.tracking import records
from lightning_modules.tracking.logger import RunLogger
from lightning_modules.validation import Validation, check_watched
from lightning_modules.watching import Stopwatch, Watch

NO_NUMBERS = (
    "workers",
    "checkpoint_seconds",
)  # of TrainerSettings: they change how long a training takes, and nothing else
PLACES = ("devices", "strategy", "accumulate", "gpus")  # a training may go on with others, though not digit for digit
MODULES = ("lightning_modules/", "ideas/")  # `stages/` finds, reads and passes on what a fingerprint holds anyway


class TrainerSettings(TypedDict):
    """A file of `conf/trainer/`: what suits this machine."""

    accelerator: str
    devices: Annotated[int, Field(ge=-1, le=1024)] | list[int] | str
    strategy: str
    precision: str
    accumulate: Count
    compile: bool
    deterministic: bool | Literal["warn"]
    threads: Count
    workers: Count | None
    checkpoint_seconds: NonNegative
    log_every_n_steps: Count


@dataclass(frozen=True)
class Job:
    """One seed of one arm in one stage."""

    config: dict
    stage: str
    arm: str
    paper: str
    system: str
    preset: str
    seed: int
    dataset: Path
    sources: Path
    out: Path
    start: Path | None = None

    @property
    def upstream(self) -> Path | None:
        """The run whose weights this job begins with: that of its own seed, or the only one where one serves all.

        Raises:
            ValueError: there are several runs, and none is of this seed.
        """
        if self.start is None:
            return None
        runs = sorted(self.start.glob("seed-*"))
        own = self.start / f"seed-{self.seed}"
        if own not in runs and len(runs) != 1:
            raise ValueError(
                f"{self.start} has {[run.name for run in runs]}, expected seed-{self.seed} or a single one"
            )
        return own if own in runs else runs[0]

    @cached_property
    def made_by(self) -> dict[str, str | dict[str, str]]:
        """What computes the numbers: processor, libraries, and the settings of the trainer that can change them."""
        machine = self.config["trainer"]
        given = {name: json.dumps(value) for name, value in machine.items() if name not in NO_NUMBERS}
        if machine["accelerator"] != "cpu" and torch.cuda.is_available():
            given |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
            given["gpus"] = str(torch.cuda.device_count())  # `devices` may say: all of them
        return portable.made_by() | given

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all that can change the result: configuration, seed, data, code, machine, weights at the start."""
        return self._digest(self.made_by)

    def _digest(self, made_by: dict) -> str:
        system = {name: self.config["system"][name] for name in ("model", "data", self.stage)}
        code = {name: value for name, value in json.loads(self.sources.read_text()).items() if name.startswith(MODULES)}
        weights = [text for text in _texts(system) if os.path.isfile(ROOT / text)]  # official ones, by their path
        files = {text: sha256(ROOT / text) for text in weights}
        inputs = [storage.card(self.dataset), code, files]
        if self.upstream is not None:
            inputs.append(sha256(self.upstream / "weights.safetensors"))
            inputs.append(json.loads((self.upstream / "facts.json").read_text()))
        return digest(self.stage, self.seed, system, made_by, *inputs)

    @property
    def conf(self) -> str:
        """Where its settings were written, for messages."""
        return f"conf/system/{self.system}/{self.preset}.yaml (or the arm's overrides)"

    @property
    def folder(self) -> Path:
        """Where this job keeps its checkpoint, the same for any number of processes."""
        made_by = {name: value for name, value in self.made_by.items() if name not in PLACES}
        return scratch() / "training" / f"{self.arm}-{self.stage}-seed{self.seed}-{self._digest(made_by)}"


def _texts(tree: object) -> Iterator[str]:
    """All texts among the values of nested mappings and lists."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping | list):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _texts(value)


def train_stages(
    configs: Mapping[str, dict],
    *,
    seeds: list[int],
    out: Path,
    folders: Mapping[str, Path],
    only: str | None = None,
    **job: object,
) -> bool:
    """Train each seed of an arm that the seed store has not, in each stage, and put their outputs into `out`.

    Where the work is forced (`processes.is_forced`), what the store has is trained again and replaced. A checkpoint
    that an interrupted training has left is taken up in any case.

    Args:
        configs: for each stage its resolved `system` (blocks model, data, recipe named as the stage) and `trainer`.
        seeds: what `Job.seed` runs over.
        out: the output folder; it appears whole, when the last seed of the last stage is done.
        folders: `out`, or folders in it: those of each stage, for its `seed-<seed>/`.
        only: train this seed alone, as given on the command line, and leave its outputs in the store.
        job: the other fields of `Job`.

    Returns:
        Whether this process has written `out`: one that trains a single seed, or is not the first one, has not.

    Raises:
        ValueError: `only` is none of `seeds`, or a setting does not hold.
    """
    if only is not None and only not in map(str, seeds):
        raise ValueError(f"--seed is {only!r}, expected one that the plan gives this arm: {', '.join(map(str, seeds))}")
    jobs = []
    for stage, config in configs.items():
        machine = settings.check(config["trainer"], TrainerSettings, "conf/trainer")
        common = {"config": {**config, "trainer": machine}, "stage": stage, "out": folders[stage], **job}
        jobs.append([Job(seed=seed, **common) for seed in (seeds if only is None else [int(only)])])
    store, first = SeedStore(), not rank_zero_only.rank  # of several processes the first one writes
    with store.using(each.fingerprint for stage in jobs for each in stage) if first else nullcontext():
        for stage in jobs:
            each_job(partial(obtain_seed, store=store, force=is_forced()), stage, stage[0].config["trainer"])
        if only is not None or not first:
            return False
        with replace_folder(out) as folder:
            for each in (each for stage in jobs for each in stage):
                store.copy(each.fingerprint, folder / each.out.relative_to(out) / f"seed-{each.seed}")
    store.trim()  # not before a stage has its outputs: seeds that are trained side by side wait there for the last one
    return True


def each_job(work: Callable[[Job, int], None], jobs: list[Job], trainer: dict) -> None:
    """Call `work(job, position)` for each job, in `workers` processes side by side (see conf/trainer/cpu.yaml)."""
    torch.set_num_threads(trainer["threads"])
    workers = min(trainer["workers"] or cores(), len(jobs))
    if workers == 1:
        for job in jobs:
            if asked:
                raise Stopped
            work(job, 0)
        return
    # Forked where that can be: importing torch and Lightning costs a new interpreter nine seconds. CUDA allows no fork.
    context = multiprocessing.get_context("fork" if trainer["accelerator"] == "cpu" else "spawn")
    side_by_side([partial(work, job) for job in jobs], workers, context)


def obtain_seed(job: Job, position: int, *, store: SeedStore, force: bool) -> None:
    """Make sure that the store has the outputs of one seed.

    Raises:
        ValueError: the seed is trained by several processes, and others train it at the same time.
    """
    if rank_zero_only.rank:  # the first process decides, checks and writes
        if force or not store.sound(job.fingerprint):
            train_seed(job, position, store)
        return
    name = f"seed {job.seed} of {job.arm} ({job.stage})"
    wait = None if job.config["trainer"]["devices"] != 1 else f"another process trains {name}: waiting for it"
    try:
        with store.writing(job.fingerprint, wait=wait):
            if force or not store.take(job.fingerprint):
                train_seed(job, position, store)
            shutil.rmtree(job.folder, ignore_errors=True)
    except BlockingIOError:
        raise ValueError(
            f"{name} is being trained by another command: run this one again when that has ended"
        ) from None


def train_seed(job: Job, position: int, store: SeedStore) -> None:
    """Train one seed, or continue it, and put its outputs into the store.

    Raises:
        ValueError: a logged value, a weight or a prediction is no finite number.
    """
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # resident tensors: a worker would only copy
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning 2.6 calls what torch 2.13 deprecates
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # its sampler is
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # epochs of few labels; steps count on
    seed_everything(job.seed, verbose=False)
    system = job.config["system"]
    module: PaperModule = settings.bind(system["model"], f"{job.conf}: model")()
    module.recipe = module.check_recipe(system[job.stage], f"{job.conf}: {job.stage}")
    if job.upstream is not None:
        module.start_from(load_file(job.upstream / "weights.safetensors"))
    data: LightningDataModule = settings.bind(system["data"], f"{job.conf}: data", folder=job.dataset, seed=job.seed)()
    module.check_data(data)
    check_watched(module.recipe, system["data"]["splits"], f"{job.conf}: {job.stage}")
    with records.open_record(
        experiment=job.paper,
        arm=job.arm,
        stage=job.stage,
        seed=job.seed,
        preset=job.preset,
        key_suffix=job.fingerprint,
        params=job.config,
        tags=records.provenance([str(job.dataset.relative_to(ROOT))]) | {"system": job.system},
        repeat=True,
    ) as record:
        record.data(job.dataset, "training")
        record.artifact("sources.json", job.sources.read_bytes())
        record.machine(records.flatten({"made_by": job.made_by}))
        history = History(f"seed {job.seed} of {job.arm} ({job.stage})")
        trainer = fit(module, data, job, record, history, position)
        if not trainer.is_global_zero:
            return
        predictions = module.predictions(data, trainer.strategy.root_device)
        for name, values in (module.export() | predictions).items():
            if not torch.isfinite(values).all():
                raise ValueError(f"{history.what}: {name} has values that are not finite at the end. {DIVERGED}")
        metrics = {name: round(float(value), 6) for name, value in sorted(trainer.callback_metrics.items())}
        with store.put(job.fingerprint) as folder:
            _write_outputs(folder, job, module, predictions, metrics, history)
        record.summary(metrics, step=trainer.global_step)
        if rehearsal.measures():
            record.machine(module.machine_facts(data))
        weights = {"weights.safetensors": sha256(store.entry(job.fingerprint) / "weights.safetensors")}
        folders = (job.out / f"seed-{job.seed}", store.entry(job.fingerprint))
        record.model("lightning_modules.tracking.model.Trained", folders, weights, model=system["model"])


def fit(
    module: PaperModule,
    data: LightningDataModule,
    job: Job,
    record: "records.RunRecord",
    history: "History",
    position: int = 0,
) -> Trainer:
    """Run the Trainer over `recipe["epochs"]`, from the job's checkpoint where there is one."""
    machine, recipe = job.config["trainer"], module.recipe
    average, stopwatch = Average(recipe.get("ema")), Stopwatch()
    callbacks: list[Callback] = [
        history,
        average,
        Validation(recipe.get("validate_every"), recipe.get("validate_rows"), average.applied),
        Milestones(recipe.get("keep_every"), job.folder / "milestones", average.applied),
        Watch(record, stopwatch),
        ResumeCheckpoint(job.folder, machine["checkpoint_seconds"]),
        *rehearsal.callbacks(),
    ]
    if file := os.environ.get("REPRISE_PROGRESS"):
        callbacks.append(Progress(Path(file)))
    visible = sys.stderr.isatty() and not os.environ.get("CI")
    if visible:
        callbacks.append(TQDMProgressBar(process_position=position))
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    try:
        trainer = Trainer(
            max_epochs=module.recipe["epochs"],
            max_steps=module.max_steps(data),
            accelerator=machine["accelerator"],
            devices=machine["devices"],
            strategy=machine["strategy"],
            precision=machine["precision"],
            accumulate_grad_batches=machine["accumulate"],
            deterministic=machine["deterministic"],
            log_every_n_steps=machine["log_every_n_steps"],
            logger=[RunLogger(record), history],
            callbacks=callbacks,
            profiler=stopwatch,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=visible,
            use_distributed_sampler=False,
            plugins=_environment(machine["devices"]),
        )
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"conf/trainer does not suit this machine: {' '.join(str(error).split())}") from error
    if module.recipe["epochs"] == 0:
        return trainer
    if machine["compile"]:
        for part in module.compiled_parts():
            part.compile()
    trainer.fit(module, data, ckpt_path=usable(job.folder, record), weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    average.swap(module)
    return trainer


def _environment(devices: int | str) -> ClusterEnvironment | None:
    """Processes of Lightning's own, even where variables of SLURM are set: only `devices: auto` leaves them to SLURM.

    Login nodes and batch scripts without `srun` have such variables too, with which Lightning waits or fails. Lightning
    does not requeue jobs: it would write a checkpoint of its own amid a step.
    """
    if devices == "auto":
        return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None
    return LightningEnvironment() if "SLURM_NTASKS" in os.environ else None


def _write_outputs(
    out: Path,
    job: Job,
    module: PaperModule,
    predictions: dict[str, torch.Tensor],
    metrics: dict[str, float],
    history: History,
) -> None:
    digests = {}
    for name, tensors in (("weights", module.export()), ("predictions", predictions)):
        path = out / f"{name}.safetensors"
        path.write_bytes(save(tensors))
        digests[f"{name}_sha256"] = sha256(path)
    facts = {**module.facts(), "seed": job.seed, **digests}
    if milestones := copy_milestones(job.folder / "milestones", out):
        facts["milestones"] = milestones
    if job.upstream is not None:
        facts["from"] = json.loads((job.upstream / "facts.json").read_text())
    write_json(out / "facts.json", facts)
    write_json(out / "metrics.json", metrics)
    history.write(out / "history.csv")
