"""A training that signals stop, or that is killed, at any step: it goes on, and ends with the bytes of an unbroken one.

The trainings are processes of their own, forked, so that the signals are real.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from safetensors.torch import save_file
from torch import nn

from lightning_modules import history, processes, settings, training
from lightning_modules.base import PaperModule
from lightning_modules.checkpoints import ResumeCheckpoint
from lightning_modules.datamodules import streamed
from lightning_modules.datasets import digits
from lightning_modules.processes import GO_ON_LATER, STOPPING, Stopped, signals_noted, stop_on_signals
from stages.composing import compose
from tests.datamodules import test_streamed
from tests.test_training import SMALL, outputs

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",  # Lightning's own use of torch
    "ignore:.*many workers",
    "ignore:The number of training batches",
    "ignore:.*your dataloader is not resumable",
)
pictures = test_streamed.folder
FORK = multiprocessing.get_context("fork")
TRAIN = "data.splits.train.rows"
HELD = 5  # the step at which seeds wait
SYSTEMS = {  # of four steps an epoch: data set, settings, and the system whose weights it starts from
    "committees": ("digits", SMALL | {TRAIN: 120, "pretrain.epochs": 2}, None),
    "image_side": ("world_plain", {TRAIN: 64, "pretrain.epochs": 3, "model.reading_epochs": 1}, None),
    "unified_t2i_i2t": (
        "world_plain",
        {TRAIN: 128, "data.splits.test.rows": 16, "pretrain.epochs": 2, "pretrain.lr": 1e-3},
        "image_side",
    ),
    "clip_vip": ("world_video_text", {TRAIN: 192, "pretrain.epochs": 2}, None),
    "maskalign": (
        "world_graded",
        {
            f"downstream.{protocol}.{name}": value
            for protocol, rows in (("finetune", 256), ("probe", 512))
            for name, value in ((TRAIN, rows), ("data.splits.test.rows", 32), ("epochs", 2))
        },
        "maskalign",
    ),
}


class Training:
    """A system's training in a folder of its own; `interrupt` runs it in a process that gets a signal at a step."""

    def __init__(self, root: Path, dataset: Path, system: str, **machine):
        self.root, self.dataset, self.system, self.machine = root, dataset, system, machine
        _, self.overrides, start = SYSTEMS[system]
        (root / "sources.json").write_text("{}")
        self.start = None
        if start is not None:
            self.start = root / "start"
            (self.start / "seed-0").mkdir(parents=True)
            model = compose("tiny", system=start)["system"]["model"]
            torch.manual_seed(0)
            save_file(settings.bind(model, "model")().export(), self.start / "seed-0/weights.safetensors")
            (self.start / "seed-0/facts.json").write_text("{}")

    def train(self, out: str, seeds=(0,)) -> None:
        """Train all stages of the system into a folder."""
        tuned = self.system == "maskalign"
        options = {"stage": "finetune"} if tuned else {}
        config = compose("tiny", system=self.system, trainer="cpu", overrides=self.overrides, **options)
        trainer = config["trainer"] | {"workers": 1, "log_every_n_steps": 1, "checkpoint_seconds": 0.0} | self.machine
        configs = {"pretrain": {"system": config["system"], "trainer": trainer}}
        if tuned:
            configs = {}
            for protocol, recipe in config["system"]["downstream"].items():
                system = {"model": recipe.pop("model"), "data": recipe.pop("data"), protocol: recipe}
                configs[protocol] = {"system": system, "trainer": trainer}
        out = self.root / out
        training.train_stages(
            configs,
            seeds=list(seeds),
            out=out,
            folders={stage: out / stage for stage in configs},
            arm="arm",
            paper="paper",
            system=self.system,
            preset="tiny",
            dataset=self.dataset,
            sources=self.root / "sources.json",
            start=self.start,
        )

    def interrupt(self, out: str, at: tuple[int, int, int] | None, **options) -> int:
        """The exit code of a training that gets a signal at a batch of a step; at None it ends by itself."""
        process = FORK.Process(target=self._run, args=(out, at), kwargs=options)
        process.start()
        process.join(300)
        return process.exitcode

    def _run(
        self,
        out: str,
        at: tuple[int, int, int] | None,
        signalled_seed: int | None = None,
        held: Collection[int] = (),
        **options,
    ) -> None:
        """What `interrupt` runs. The seeds `held` wait at a step until they are asked to stop, on any machine."""
        os.environ["DVC_ROOT"] = str(self.root / Path(out).parts[0])
        training.ROOT = self.dataset.parent
        begin = history.History.on_train_batch_start
        waiting = tuple(f"seed {seed} " for seed in held)

        def signalled(history, trainer, module, batch, index):
            mine = signalled_seed is None or history.what.startswith(f"seed {signalled_seed} ")
            if at and mine and (trainer.global_step, index % trainer.accumulate_grad_batches) == at[:2]:
                os.kill(os.getpid(), at[2])
            deadline = time.monotonic() + 60
            while trainer.global_step == HELD and history.what.startswith(waiting) and not processes.asked:
                assert time.monotonic() < deadline, f"{history.what} was not asked to stop"
                time.sleep(0.01)
            return begin(history, trainer, module, batch, index)

        history.History.on_train_batch_start = signalled
        stop_on_signals()
        self.train(out, **options)

    def files(self, out: str) -> dict:
        """Every file of each seed of each stage."""
        return {stage.name: outputs(stage) for stage in (self.root / out).iterdir()}


@pytest.fixture
def make(tmp_path, prepared, monkeypatch):
    for name in ("REPRISE_FORCE", "REPRISE_STORE_GB", "REPRISE_PROGRESS"):
        monkeypatch.delenv(name, raising=False)

    def make(system: str, **machine) -> Training:
        if (dataset := SYSTEMS[system][0]) != "digits":
            return Training(tmp_path, prepared(dataset), system, **machine)
        digits.prepare(tmp_path / "digits")
        return Training(tmp_path, tmp_path / "digits", system, **machine)

    return make


@pytest.mark.slow
def test_a_signal_stops_at_the_next_step_and_never_between_accumulated_batches(make, capfd):
    arm = make("committees", accumulate=2, checkpoint_seconds=1000.0)
    assert arm.interrupt("unbroken/out", None) == 0
    for at, step in (((2, 1, signal.SIGUSR1), 3), ((5, 0, signal.SIGINT), 5), ((6, 1, signal.SIGTERM), 7)):
        assert arm.interrupt("stopped/out", at) == GO_ON_LATER == 75
        assert f"{at[2].name}: stopping at step {step}" in capfd.readouterr().err
        assert not (arm.root / "stopped/out").exists()
        (checkpoint,) = (arm.root / "stopped/.scratch/training").glob("*/*")
        assert torch.load(checkpoint, weights_only=True)["global_step"] == step
    assert arm.interrupt("stopped/out", None) == 0
    assert "resuming at step 7" in capfd.readouterr().err
    assert arm.files("stopped/out") == arm.files("unbroken/out")
    assert not list((arm.root / "stopped/.scratch/training").glob("*"))


def test_a_signal_during_the_last_step_stops_the_process_too(make):
    arm = make("committees", accumulate=2)
    assert arm.interrupt("x/out", (7, 1, signal.SIGTERM)) == GO_ON_LATER
    assert arm.interrupt("x/out", None) == 0


def test_signals_are_noted_for_a_while_and_a_second_ctrl_c_stops_at_once(monkeypatch):
    monkeypatch.setattr(processes, "asked", [])
    before = {number: signal.getsignal(number) for number in STOPPING}
    with signals_noted():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
    assert stopped.value.code == GO_ON_LATER
    assert processes.asked == [signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT]
    assert {number: signal.getsignal(number) for number in STOPPING} == before


def test_within_an_epoch_no_more_is_lost_than_checkpoint_seconds_and_a_step(monkeypatch, tmp_path):
    """Steps of 4 seconds, one of 25: a checkpoint before the first batch of a step that begins 10 seconds or later."""
    clock, written = [0.0], []
    monkeypatch.setattr("lightning_modules.checkpoints.time.monotonic", lambda: clock[0])
    callback = ResumeCheckpoint(tmp_path, seconds=10.0)
    trainer = Mock(spec=Trainer, global_step=0, accumulate_grad_batches=2, world_size=1, is_global_zero=True)

    def save(path):
        path.write_text(str(clock[0]))
        written.append((trainer.global_step, clock[0]))

    trainer.save_checkpoint = save
    for batch in range(24):
        callback.on_train_batch_start(trainer, Mock(spec=PaperModule), None, batch)
        clock[0] += 25.0 if batch == 12 else 2.0
        trainer.global_step += batch % 2
    assert written == [(3, 12.0), (6, 24.0), (7, 51.0), (10, 63.0)]
    assert len(list(tmp_path.glob("last-*.ckpt"))) == 1


def test_what_loads_data_is_ended_by_its_parent_alone():
    def load(ready):
        processes.outlive_signals()
        ready.set()
        signal.pause()

    ready = FORK.Event()
    worker = FORK.Process(target=load, args=(ready,))
    worker.start()
    ready.wait(30)
    stranger = FORK.Process(target=signal_all, args=(worker.pid,))
    stranger.start()
    stranger.join()
    worker.join(1)
    assert worker.exitcode is None
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


def signal_all(pid: int) -> None:
    for number in STOPPING:
        os.kill(pid, number)


@pytest.mark.slow
def test_seeds_side_by_side_stop_together_and_go_on(make):
    arm = make("committees", workers=2)
    assert arm.interrupt("unbroken/out", None, seeds=(0, 1, 2)) == 0
    assert arm.interrupt("stopped/out", (3, 0, signal.SIGTERM), seeds=(0, 1, 2)) == GO_ON_LATER
    assert not (arm.root / "stopped/out").exists()
    assert 0 < len(list((arm.root / "stopped/.scratch/training").glob("*/last-*.ckpt"))) < 3, "the third has not begun"
    assert arm.interrupt("stopped/out", None, seeds=(0, 1, 2)) == 0
    assert arm.files("stopped/out") == arm.files("unbroken/out")


@pytest.mark.slow
def test_one_stopped_seed_stops_those_beside_it(make):
    """The worker of the stopped seed has no job when the others are told to stop; it must not break their pool."""
    arm = make("committees", workers=2)
    for _ in range(3):
        stopped = arm.interrupt("x/out", (3, 0, signal.SIGTERM), signalled_seed=0, held=(1,), seeds=(0, 1))
        assert stopped == GO_ON_LATER
        shutil.rmtree(arm.root / "x")


@pytest.mark.slow
def test_a_signal_to_the_first_process_alone_stops_those_that_it_has_started(make, capfd):
    arm = make("committees", workers=2)
    assert arm.interrupt("unbroken/out", None, seeds=(0, 1)) == 0
    process = FORK.Process(target=arm._run, args=("stopped/out", None), kwargs={"seeds": (0, 1), "held": (0, 1)})
    process.start()
    deadline = time.monotonic() + 200
    while len(set(path.parent for path in arm.root.glob("stopped/.scratch/training/*/last-*.ckpt"))) < 2:
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGUSR1)
    process.join(60)
    assert process.exitcode == GO_ON_LATER
    said = capfd.readouterr().err
    steps = [int(step) for step in re.findall(r"SIGTERM: stopping at step (\d+)", said)]
    assert len(steps) == 2 and all(0 < step <= HELD for step in steps)
    assert arm.interrupt("stopped/out", None, seeds=(0, 1)) == 0
    assert sorted(steps) == sorted(int(step) for step in re.findall(r"resuming at step (\d+)", capfd.readouterr().err))
    assert arm.files("stopped/out") == arm.files("unbroken/out")


class Sums(PaperModule):
    """Notes what each batch holds, and where it was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.recipe = dict(optimizer="sgd", lr=0.1, weight_decay=0.0, warmup=0.0, epochs=2, schedule="cosine")
        self.seen: list[tuple] = []
        self.end_at = -1

    def training_step(self, batch, index):
        if len(self.seen) == self.end_at:
            raise RuntimeError("ended")
        drawn = torch.rand(()).item()
        self.seen.append((self.current_epoch, index, self.global_step, batch["images"].sum().item(), drawn))
        return (self.weight * batch["images"].float().mean()).sum()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_batches_from_worker_processes_go_on_where_the_checkpoint_was_written(pictures, tmp_path, monkeypatch, workers):
    """Two epochs of six steps of two batches."""
    monkeypatch.setattr(streamed, "loader_workers", lambda *arguments: workers)

    def fit(end_at=-1):
        seed_everything(3, verbose=False)
        module, data = Sums(), test_streamed.data(pictures, batch_size=8)
        module.end_at = end_at
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            accumulate_grad_batches=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[ResumeCheckpoint(tmp_path, 0.0)],
        )
        (checkpoint,) = [*tmp_path.glob("last-*")] or [None]
        with pytest.raises(RuntimeError) if end_at >= 0 else nullcontext():
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return module.seen

    whole = fit()
    (checkpoint,) = tmp_path.glob("last-*")
    checkpoint.unlink()
    assert len(whole) == 24
    for begun, batches in ((0, 7), (6, 3), (8, 8), (16, 2)):  # it ends amid accumulated batches, or between two steps
        assert fit(end_at=batches) == whole[begun : begun + batches]
    assert fit() == whole[18:]


@pytest.mark.slow
def test_another_number_of_accumulated_batches_goes_on_with_the_same_rows_and_says_so(make, capfd):
    arm = make("committees", accumulate=2)
    assert arm.interrupt("x/out", (5, 0, signal.SIGTERM)) == GO_ON_LATER
    arm.machine = {"accumulate": 3}
    assert arm.interrupt("x/out", None) == 0
    said = capfd.readouterr().err
    assert "resuming at step 5" in said
    assert (
        "the checkpoint is of 1 processes with 2 accumulated batches each, this training has 1 processes with 3 "
        in said
    )
    rows = arm.files("x/out")["pretrain"][0]["history.csv"].decode().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(8))
    records = [json.loads(path.read_text()) for path in (arm.root / "x/.scratch/runs/paper").glob("*/machine.json")]
    said = [found["resumed_inexactly_from"] for found in records if "resumed_inexactly_from" in found]
    assert said == ["1 processes with 2 accumulated batches each"]


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_training_killed_and_stopped_at_random_steps_ends_with_the_bytes_of_an_unbroken_one(system, make):
    arm = make(system)
    assert arm.interrupt("unbroken/out", None) == 0
    steps = sorted((1 + torch.randperm(6)[:3]).tolist())
    for step, number in zip(steps, (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1), strict=True):
        code = arm.interrupt("stopped/out", (step, 0, number))
        assert code == (-number if number == signal.SIGKILL else GO_ON_LATER), (steps, number)
        assert not (arm.root / "stopped/out").exists()
    assert arm.interrupt("stopped/out", None) == 0
    assert arm.files("stopped/out") == arm.files("unbroken/out"), steps
