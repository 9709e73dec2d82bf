"""The one place that touches the Trainer, the logger, checkpoints, seeds and resuming.

A run that is killed and started again continues from its last checkpoint and ends with the numbers of a run that was
never interrupted, digit for digit: data order depends on (seed, epoch), and the checkpoint holds the random states.
Checkpoints live in `.scratch/training/<arm>-<stage>-seed<seed>-<fingerprint>/`, outside the outputs (DVC empties those
before a stage runs), keyed by everything that can change the result: other inputs find another folder.
"""

import csv
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import torch
from pydantic import Field
from pytorch_lightning import Callback, LightningDataModule, Trainer, seed_everything
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file, save

from lightning_modules import settings
from lightning_modules.base import PaperModule
from lightning_modules.datasets import storage
from lightning_modules.files import ROOT, digest, replace_file, replace_folder, scratch, sha256, write_json
from lightning_modules.processes import die_with_parent
from lightning_modules.settings import Count, NonNegative
from lightning_modules.tracking import records
from lightning_modules.tracking.logger import RunLogger

DIGEST = 16  # hex digits in the name of a checkpoint


class TrainerSettings(TypedDict):
    """A file of `conf/trainer/`: what suits this machine and changes no number."""

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
    system: str
    preset: str
    seed: int
    dataset: Path
    sources: Path
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

    @property
    def fingerprint(self) -> str:
        """Digest of all that can change the result: configuration, seed, data, code and the weights at the start."""
        inputs = [storage.card(self.dataset), json.loads(self.sources.read_text())]
        if self.upstream is not None:
            inputs.append(sha256(self.upstream / "weights.safetensors"))
        return digest(self.stage, self.seed, self.config["system"], *inputs)

    @property
    def conf(self) -> str:
        """Where its settings were written, for messages."""
        return f"conf/system/{self.system}/{self.preset}.yaml (or the arm's overrides)"

    @property
    def folder(self) -> Path:
        """Where this job keeps its checkpoint, and its outputs until all seeds are done."""
        return scratch() / "training" / f"{self.arm}-{self.stage}-seed{self.seed}-{self.fingerprint}"


def train_arm(config: dict, *, seeds: list[int], out: Path, **job: object) -> None:
    """Train each seed of an arm and put their outputs into `out/seed-<seed>/`.

    Args:
        config: resolved `system` (blocks model, data, and the recipe named as the stage) and `trainer`.
        seeds: what `Job.seed` runs over.
        out: the stage's output folder; it appears whole, when the last seed is done.
        job: the other fields of `Job`.
    """
    config = {**config, "trainer": settings.check(config["trainer"], TrainerSettings, "conf/trainer")}
    jobs = [Job(config=config, seed=seed, **job) for seed in seeds]
    each_job(train_seed, jobs, config["trainer"])
    if rank_zero_only.rank:  # of several processes the first one writes
        return
    with replace_folder(out) as folder:
        for each in jobs:
            shutil.copytree(each.folder / "outputs", folder / f"seed-{each.seed}")
    for each in jobs:  # a forced rerun really trains
        shutil.rmtree(each.folder)


def each_job(work: Callable[[Job, int], None], jobs: list[Job], trainer: dict) -> None:
    """Call `work(job, position)` for each job, in `workers` processes side by side (see conf/trainer/cpu.yaml)."""
    torch.set_num_threads(trainer["threads"])
    workers = min(trainer["workers"] or len(os.sched_getaffinity(0)), len(jobs))
    if workers == 1:
        for job in jobs:
            work(job, 0)
        return
    # Forked, not spawned: importing torch and Lightning costs each new interpreter some five seconds.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=die_with_parent) as pool:
        futures = [pool.submit(work, job, index % workers) for index, job in enumerate(jobs)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train_seed(job: Job, position: int) -> None:
    """Train one seed, or continue it, and leave its outputs in `job.folder/outputs`."""
    if (job.folder / "outputs").is_dir():  # finished before another seed was interrupted
        return
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
        experiment=job.system,
        arm=job.arm,
        stage=job.stage,
        seed=job.seed,
        preset=job.preset,
        key_suffix=job.fingerprint,
        params=job.config,
        tags=records.provenance([str(job.dataset.relative_to(ROOT))]),
    ) as record:
        record.artifact("sources.json", job.sources.read_bytes())
        trainer = fit(module, data, job, record, position)
        if not trainer.is_global_zero:
            return
        predictions = module.predictions(data, trainer.strategy.root_device)
        metrics = {name: round(float(value), 6) for name, value in sorted(trainer.callback_metrics.items())}
        _write_outputs(job, module, predictions, metrics, record)
        record.summary(metrics)  # after the history was written: a summary is no step
        record.machine(module.machine_facts(data))


def fit(
    module: PaperModule, data: LightningDataModule, job: Job, record: "records.RunRecord", position: int = 0
) -> Trainer:
    """Run the Trainer over `recipe["epochs"]`, from the job's checkpoint where there is one."""
    machine = job.config["trainer"]
    callbacks: list[Callback] = [ResumeCheckpoint(job.folder, machine["checkpoint_seconds"])]
    visible = sys.stderr.isatty() and not os.environ.get("CI")
    if visible:
        callbacks.append(TQDMProgressBar(process_position=position))
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    try:
        trainer = Trainer(
            max_epochs=module.recipe["epochs"],
            accelerator=machine["accelerator"],
            devices=machine["devices"],
            strategy=machine["strategy"],
            precision=machine["precision"],
            accumulate_grad_batches=machine["accumulate"],
            deterministic=machine["deterministic"],
            log_every_n_steps=machine["log_every_n_steps"],
            logger=RunLogger(record),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=visible,
            use_distributed_sampler=False,
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


def _write_outputs(
    job: Job,
    module: PaperModule,
    predictions: dict[str, torch.Tensor],
    metrics: dict[str, float],
    record: "records.RunRecord",
) -> None:
    with replace_folder(job.folder / "outputs") as out:
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
        rows = _history(record)
        columns = sorted({name for row in rows for name in row} - {"step"})
        with (out / "history.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *columns], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _history(record: "records.RunRecord") -> list[dict[str, int | float]]:
    """What was logged at each step, without times."""
    rows: dict[int, dict[str, int | float]] = {}
    for _, line in records.metric_lines(record.folder / "metrics.jsonl"):
        rows.setdefault(line["step"], {"step": line["step"]}).update(line["m"])
    return [rows[step] for step in sorted(rows)]
