"""The one place that touches the Trainer, the logger, checkpoints, seeds and resuming.

A run that is killed and started again continues from its last checkpoint and ends with the numbers of a run that was
never interrupted, digit for digit: data order depends on (seed, epoch), and the checkpoint holds the random states and
the history. Checkpoints live in `.scratch/training/<arm>-<stage>-seed<seed>-<fingerprint>/`, outside the outputs (DVC
empties those before a stage runs). The fingerprint covers everything that can change the result, so other inputs get
another folder.
The outputs of a finished seed go to the seed store under the same key (`seed_store.py`), and from there into the output
folder of the stage. Tracking only records: outputs never depend on a run's record.
"""

import csv
import json
import logging
import math
import multiprocessing
import os
import pickle
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import torch
from pydantic import Field
from pytorch_lightning import Callback, LightningDataModule, Trainer, seed_everything
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file, save

from lightning_modules import portable, settings
from lightning_modules.base import PaperModule
from lightning_modules.datasets import storage
from lightning_modules.files import ROOT, digest, replace_file, replace_folder, scratch, sha256, write_json
from lightning_modules.processes import cores, die_with_parent, is_forced
from lightning_modules.seed_store import SeedStore
from lightning_modules.settings import Count, NonNegative
from lightning_modules.tracking import records
from lightning_modules.tracking.logger import RunLogger

DIVERGED = "The training diverged, and nothing of this seed was stored: lower its lr, or train with another precision."
DIGEST = 16  # hex digits in the name of a checkpoint
NO_NUMBERS = (
    "workers",
    "checkpoint_seconds",
)  # of TrainerSettings: they change how long a training takes, and nothing else
PROGRESS_SECONDS = 0.5
MODULES = "lightning_modules/"  # `stages/` finds, reads and passes on what a fingerprint holds anyway


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
        system = {name: self.config["system"][name] for name in ("model", "data", self.stage)}
        code = {name: value for name, value in json.loads(self.sources.read_text()).items() if name.startswith(MODULES)}
        inputs = [storage.card(self.dataset), code]
        if self.upstream is not None:
            inputs.append(sha256(self.upstream / "weights.safetensors"))
            inputs.append(json.loads((self.upstream / "facts.json").read_text()))
        return digest(self.stage, self.seed, system, self.made_by, *inputs)

    @property
    def conf(self) -> str:
        """Where its settings were written, for messages."""
        return f"conf/system/{self.system}/{self.preset}.yaml (or the arm's overrides)"

    @property
    def folder(self) -> Path:
        """Where this job keeps its checkpoint."""
        return scratch() / "training" / f"{self.arm}-{self.stage}-seed{self.seed}-{self.fingerprint}"


def train_arm(config: dict, *, seeds: list[int], out: Path, only: str | None = None, **job: object) -> None:
    """Train each seed of an arm that the seed store has not, and put their outputs into `out/seed-<seed>/`.

    Where the work is forced (`processes.is_forced`), what the store has is trained again and replaced. A checkpoint
    that an interrupted training has left is taken up in any case.

    Args:
        config: resolved `system` (blocks model, data, and the recipe named as the stage) and `trainer`.
        seeds: what `Job.seed` runs over.
        out: the stage's output folder; it appears whole, when the last seed is done.
        only: train this seed alone, as given on the command line, and leave its outputs in the store.
        job: the other fields of `Job`.

    Raises:
        ValueError: `only` is none of `seeds`, or a setting does not hold.
    """
    if only is not None and only not in map(str, seeds):
        raise ValueError(f"--seed is {only!r}, expected one that the plan gives this arm: {', '.join(map(str, seeds))}")
    config = {**config, "trainer": settings.check(config["trainer"], TrainerSettings, "conf/trainer")}
    chosen = seeds if only is None else [int(only)]
    jobs = [Job(config=config, seed=seed, out=out, **job) for seed in chosen]
    store, first = SeedStore(), not rank_zero_only.rank  # of several processes the first one writes
    with store.using(each.fingerprint for each in jobs) if first else nullcontext():
        each_job(partial(obtain_seed, store=store, force=is_forced()), jobs, config["trainer"])
        if only is not None or not first:
            return
        with replace_folder(out) as folder:
            for each in jobs:
                store.copy(each.fingerprint, folder / f"seed-{each.seed}")
    store.trim()  # not before a stage has its outputs: seeds that are trained side by side wait there for the last one


def each_job(work: Callable[[Job, int], None], jobs: list[Job], trainer: dict) -> None:
    """Call `work(job, position)` for each job, in `workers` processes side by side (see conf/trainer/cpu.yaml)."""
    torch.set_num_threads(trainer["threads"])
    workers = min(trainer["workers"] or cores(), len(jobs))
    if workers == 1:
        for job in jobs:
            work(job, 0)
        return
    # Forked where that can be: importing torch and Lightning costs a new interpreter nine seconds. CUDA allows no fork.
    context = multiprocessing.get_context("fork" if trainer["accelerator"] == "cpu" else "spawn")
    with ProcessPoolExecutor(workers, context, initializer=die_with_parent) as pool:
        futures = [pool.submit(work, job, index % workers) for index, job in enumerate(jobs)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # epochs of few labels; steps count on
    seed_everything(job.seed, verbose=False)
    system = job.config["system"]
    module: PaperModule = settings.bind(system["model"], f"{job.conf}: model")()
    module.recipe = module.check_recipe(system[job.stage], f"{job.conf}: {job.stage}")
    if job.upstream is not None:
        module.start_from(load_file(job.upstream / "weights.safetensors"))
    data: LightningDataModule = settings.bind(system["data"], f"{job.conf}: data", folder=job.dataset, seed=job.seed)()
    module.check_data(data)
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
    machine = job.config["trainer"]
    callbacks: list[Callback] = [history, ResumeCheckpoint(job.folder, machine["checkpoint_seconds"])]
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
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=visible,
            use_distributed_sampler=False,
            plugins=_environment(machine["devices"]),
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ValueError(f"conf/trainer does not suit this machine: {' '.join(str(error).split())}") from error
    if module.recipe["epochs"] == 0:
        return trainer
    if machine["compile"]:
        for part in module.compiled_parts():
            part.compile()
    trainer.fit(module, data, ckpt_path=_usable(job.folder, record), weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    return trainer


def _environment(devices: int | str) -> LightningEnvironment | None:
    """Processes of Lightning's own, even where variables of SLURM are set: only `devices: auto` leaves them to SLURM.

    Login nodes and batch scripts without `srun` have such variables too, with which Lightning waits or fails.
    """
    return LightningEnvironment() if "SLURM_NTASKS" in os.environ and devices != "auto" else None


def _usable(folder: Path, record: "records.RunRecord") -> Path | None:
    """The newest checkpoint that is whole and holds nothing but data; the record goes back to its step.

    Others are set aside, each with one line.
    """
    for checkpoint in sorted(folder.glob("last-*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            step = _step(checkpoint)
        except ValueError as error:
            aside = checkpoint.rename(checkpoint.with_suffix(".refused"))
            print(f"{checkpoint} {error}: set aside as {aside.name}, not used", file=sys.stderr, flush=True)
            continue
        print(f"{folder.name}: resuming at step {step}", file=sys.stderr, flush=True)
        record.resume(at_step=step)
        return checkpoint
    return None


def _step(checkpoint: Path) -> int:
    """The step of a checkpoint, read without running anything that may be hidden in it.

    Raises:
        ValueError: it is damaged, or a pickle of more than tensors and plain values.
    """
    found, expected = sha256(checkpoint)[:DIGEST], checkpoint.stem.removeprefix("last-")
    if found != expected:
        raise ValueError(f"has sha256 {found}..., but was written with {expected}...")
    try:
        return torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"]
    except pickle.UnpicklingError:
        raise ValueError("is a pickle with code in it, which is never run") from None


class ResumeCheckpoint(Callback):
    """At the end of an epoch, at most every `seconds`: all that is needed to go on exactly, random states included.

    The file is `last-<digest of its content>.ckpt`, so that file and digest appear together, and a damaged one is
    known before it is opened.
    """

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.seconds, self.written = folder, seconds, time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Let every further process draw masks and augmentations of its own."""
        if trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + 1_000_003 * trainer.global_rank + trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Write the checkpoint whole or not at all, then drop earlier ones."""
        due = trainer.strategy.broadcast(time.monotonic() - self.written >= self.seconds)
        if due and trainer.current_epoch + 1 < trainer.max_epochs:
            whole = self.folder / "checkpoint"
            with replace_file(whole) if trainer.is_global_zero else nullcontext(whole) as path:
                trainer.save_checkpoint(path)  # every rank takes part, the first one writes
            if trainer.is_global_zero:
                earlier = list(self.folder.glob("last-*.ckpt"))
                whole.rename(self.folder / f"last-{sha256(whole)[:DIGEST]}.ckpt")
                for checkpoint in earlier:
                    checkpoint.unlink()
            self.written = time.monotonic()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: PaperModule, checkpoint: dict) -> None:
        """Add the random states."""
        checkpoint["random_states"] = {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: PaperModule, checkpoint: dict) -> None:
        """Put the random states back."""
        torch.set_rng_state(checkpoint["random_states"]["torch"])
        torch.cuda.set_rng_state_all(checkpoint["random_states"]["cuda"])


class History(Callback, Logger):
    """What was logged at each step, without times: the content of `history.csv`.

    A logger, as only loggers are given what Lightning logs; a callback, as only callbacks have state in the checkpoint.
    """

    name = "history"
    version = ""

    def __init__(self, what: str = "a training") -> None:
        super().__init__()
        self.what = what  # is trained, for messages
        self.rows: dict[int, dict[str, float]] = {}
        self._at_epoch_end = 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Keep the metrics of one step.

        Raises:
            ValueError: one is no finite number.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"{self.what}: {name} is {float(value)} at step {step}. {DIVERGED}")
        self.rows.setdefault(step or 0, {}).update({name: float(value) for name, value in metrics.items()})

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Do nothing: they are no part of a history."""

    def state_dict(self) -> dict[str, list]:
        """The rows as lists, which a checkpoint holds without code."""
        return {"rows": [[step, row] for step, row in self.rows.items()]}

    def load_state_dict(self, state_dict: dict[str, list]) -> None:
        """Go on with the rows of a checkpoint."""
        self.rows = {step: dict(row) for step, row in state_dict["rows"]}
        self._at_epoch_end = self._count()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Note how much there is when the checkpoint is written."""
        self._at_epoch_end = self._count()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Refuse what Lightning has logged since the checkpoint was written: a resumed run would not have it.

        Raises:
            ValueError: a module logs with `on_epoch=True`.
        """
        if trainer.current_epoch and self._count() > self._at_epoch_end:
            raise ValueError(
                f"{type(pl_module).__name__} logs with on_epoch=True, which is logged after the checkpoint of the "
                "epoch and is lost when a run is resumed; log the mean as a step of its own"
            )

    def _count(self) -> int:
        return sum(map(len, self.rows.values()))

    def write(self, path: Path) -> None:
        """Write the rows as CSV: the step, then all names in order."""
        columns = sorted({name for row in self.rows.values() for name in row})
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *columns], lineterminator="\n")
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self.rows.items()))


class Progress(Callback):
    """Tells the runner how far a training is, in the file that REPRISE_PROGRESS names.

    The content is `{"step": steps done, "steps": steps in all, "loss": of the last batch}`, at most twice a second.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.written = path, -PROGRESS_SECONDS

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: PaperModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Write the file whole; a disk that is full stops no training."""
        now = time.monotonic()
        if now - self.written < PROGRESS_SECONDS or not trainer.is_global_zero:
            return
        self.written = now
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        state = {
            "step": trainer.global_step,
            "steps": trainer.estimated_stepping_batches,
            "loss": float(loss) if isinstance(loss, torch.Tensor) and loss.numel() == 1 else None,
        }
        with suppress(OSError), replace_file(self.path) as temporary:
            temporary.write_text(json.dumps(state))


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
    if job.upstream is not None:
        facts["from"] = json.loads((job.upstream / "facts.json").read_text())
    write_json(out / "facts.json", facts)
    write_json(out / "metrics.json", metrics)
    history.write(out / "history.csv")
