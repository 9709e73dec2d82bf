"""The one place that touches the Trainer, the logger, checkpoints, seeds and resuming.

A run that is killed and started again continues from its last checkpoint and ends with the numbers of a run that was
never interrupted, digit for digit: data order depends on (seed, epoch), and the checkpoint holds the random states.
Checkpoints live in `.scratch/training/<arm>-<stage>-seed<seed>-<fingerprint>/`, outside the outputs (DVC empties those
before a stage runs), keyed by everything that can change the result: other inputs find another folder.
"""

import csv
import ctypes
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from pytorch_lightning import Callback, LightningDataModule, Trainer, seed_everything
from pytorch_lightning.callbacks import TQDMProgressBar
from safetensors.torch import load_file, save_file

from lightning_modules import tracking
from lightning_modules.base import PaperModule
from lightning_modules.files import ROOT, digest, replace_file, replace_folder, scratch, sha256, write_json
from lightning_modules.run_logger import RunLogger


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
        inputs = [json.loads(file.read_text()) for file in (self.dataset / "card.json", self.sources)]
        if self.upstream is not None:
            inputs.append(sha256(self.upstream / "weights.safetensors"))
        return digest(self.stage, self.seed, self.config["system"], *inputs)

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
    jobs = [Job(config=config, seed=seed, **job) for seed in seeds]
    each_job(train_seed, jobs, config["trainer"])
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
    with ProcessPoolExecutor(workers, context, initializer=_die_with_parent) as pool:
        futures = [pool.submit(work, job, index % workers) for index, job in enumerate(jobs)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)


def train_seed(job: Job, position: int) -> None:
    """Train one seed, or continue it, and leave its outputs in `job.folder/outputs`."""
    if (job.folder / "outputs").is_dir():  # finished before another seed was interrupted
        return
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # resident tensors: a worker would only copy
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning 2.6 calls what torch 2.13 deprecates
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # epochs of few labels; steps count on
    seed_everything(job.seed, verbose=False)
    system = job.config["system"]
    module: PaperModule = instantiate(system["model"], _convert_="all")
    module.recipe = system[job.stage]
    if job.upstream is not None:
        module.start_from(load_file(job.upstream / "weights.safetensors"))
    data: LightningDataModule = instantiate(system["data"], folder=job.dataset, seed=job.seed, _convert_="all")
    with tracking.open_record(
        experiment=job.system,
        arm=job.arm,
        stage=job.stage,
        seed=job.seed,
        preset=job.preset,
        key_suffix=job.fingerprint,
        params=job.config,
        tags=tracking.provenance([str(job.dataset.relative_to(ROOT))]),
    ) as record:
        record.artifact("sources.json", job.sources.read_bytes())
        trainer = fit(module, data, job, record, position)
        answers = module.answers(data, trainer.strategy.root_device)
        metrics = {name: round(float(value), 6) for name, value in sorted(trainer.callback_metrics.items())}
        record.summary(metrics)
        _write_outputs(job, module, answers, metrics, record)
        record.machine(module.machine_facts(data))


def fit(
    module: PaperModule, data: LightningDataModule, job: Job, record: "tracking.RunRecord", position: int = 0
) -> Trainer:
    """Run the Trainer over `recipe["epochs"]`, from the job's checkpoint where there is one."""
    settings = job.config["trainer"]
    checkpoint = job.folder / "last.ckpt"
    callbacks: list[Callback] = [ResumeCheckpoint(checkpoint, settings["checkpoint_seconds"])]
    visible = sys.stderr.isatty() and not os.environ.get("CI")
    if visible:
        callbacks.append(TQDMProgressBar(process_position=position))
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    trainer = Trainer(
        max_epochs=module.recipe["epochs"],
        accelerator=settings["accelerator"],
        devices=settings["devices"],
        strategy=settings["strategy"],
        precision=settings["precision"],
        deterministic=settings["deterministic"],
        log_every_n_steps=settings["log_every_n_steps"],
        logger=RunLogger(record),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=visible,
        use_distributed_sampler=False,
    )
    if module.recipe["epochs"] == 0:
        return trainer
    trainer.fit(module, data, ckpt_path=_usable(checkpoint, record))
    if trainer.interrupted:
        raise KeyboardInterrupt
    return trainer


def _usable(checkpoint: Path, record: "tracking.RunRecord") -> Path | None:
    """The checkpoint, if it can be read; the record goes back to its step."""
    if not checkpoint.is_file():
        return None
    try:
        step = torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"]
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        print(
            f"{checkpoint} cannot be read ({str(error).splitlines()[0]}): starting from the beginning", file=sys.stderr
        )
        checkpoint.unlink()
        return None
    print(f"{checkpoint.parent.name}: resuming at step {step}", file=sys.stderr, flush=True)
    record.resume(at_step=step)
    return checkpoint


class ResumeCheckpoint(Callback):
    """At the end of an epoch, at most every `seconds`: all that is needed to go on exactly, random states included."""

    def __init__(self, path: Path, seconds: float):
        self.path, self.seconds, self.written = path, seconds, time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PaperModule) -> None:
        """Write the checkpoint whole or not at all."""
        due = trainer.strategy.broadcast(time.monotonic() - self.written >= self.seconds)
        if due and trainer.current_epoch + 1 < trainer.max_epochs:
            with replace_file(self.path) as temporary:
                trainer.save_checkpoint(temporary)
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
    answers: dict[str, torch.Tensor],
    metrics: dict[str, float],
    record: "tracking.RunRecord",
) -> None:
    with replace_folder(job.folder / "outputs") as out:
        for name, tensors in (("weights", module.export()), ("answers", answers)):
            save_file(tensors, out / f"{name}.safetensors")
            (out / f"{name}.safetensors").chmod(0o644)  # the library makes it private
        facts = {**module.facts(), "seed": job.seed, "answers_sha256": sha256(out / "answers.safetensors")}
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


def _history(record: "tracking.RunRecord") -> list[dict[str, float]]:
    """What was logged at each step, without times."""
    rows: dict[int, dict[str, float]] = {}
    for _, line in tracking.metric_lines(record.folder / "metrics.jsonl"):
        rows.setdefault(line["step"], {"step": line["step"]}).update(line["m"])
    return [rows[step] for step in sorted(rows)]
