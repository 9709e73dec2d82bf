"""What a job is, that its seeds are trained once, and that a forced or resumed training ends with the same bytes."""

import csv
import errno
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_modules import history, portable, processes, settings, training
from lightning_modules.base import PaperModule
from lightning_modules.datasets import digits
from lightning_modules.tracking import model, records
from lightning_modules.training import Job
from stages.composing import compose
from tests.pipeline import ROOT, Copy

SMALL = {
    "model.widths": [4, 6],
    "model.copies": 2,
    "data.batch_size": 30,
    **{f"data.splits.{split}.rows": 60 for split in ("train", "val", "test")},
    "pretrain.epochs": 4,
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",  # Lightning's own use of torch
    "ignore:.*many workers",
    "ignore:The number of training batches",  # two of them
)


def machine(**changes):
    return {**compose("tiny", trainer="cpu")["trainer"], "workers": 1, **changes}


def job(tmp_path, seed=1, start=None, trainer=None):
    dataset, sources = tmp_path / "data", tmp_path / "sources.json"
    dataset.mkdir(exist_ok=True)
    (dataset / "card.json").write_text("{}")
    sources.write_text("{}")
    config = {"system": {"model": {}, "data": {}, "pretrain": {}}, "trainer": trainer or machine()}
    return Job(
        config, "pretrain", "student", "paper", "system", "tiny", seed, dataset, sources, tmp_path / "out", start
    )


def upstream(tmp_path, *seeds):
    folder = tmp_path / "teacher" / "pretrain"
    for seed in seeds:
        run = folder / f"seed-{seed}"
        run.mkdir(parents=True)
        save_file({"weight": torch.full((1,), float(seed))}, run / "weights.safetensors")
        (run / "facts.json").write_text(json.dumps({"seed": seed}))
    return folder


def test_a_job_begins_with_the_run_of_its_seed_or_with_the_only_one(tmp_path):
    assert job(tmp_path).upstream is None
    assert job(tmp_path, seed=1, start=upstream(tmp_path / "three", 0, 1, 2)).upstream.name == "seed-1"
    assert job(tmp_path, seed=1, start=upstream(tmp_path / "one", 0)).upstream.name == "seed-0"
    with pytest.raises(ValueError, match="expected seed-1 or a single one"):
        assert job(tmp_path, seed=1, start=upstream(tmp_path / "two", 0, 2)).upstream


def test_other_weights_at_the_start_are_another_job(tmp_path):
    starts = None, upstream(tmp_path / "a", 0), upstream(tmp_path / "b", 5)
    assert len({job(tmp_path, start=start).fingerprint for start in starts}) == 3


def test_official_weights_are_told_apart_by_their_content(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "ROOT", tmp_path)
    found = []
    for content in (None, b"first", b"second", b"second"):
        if content is not None:
            (tmp_path / "weights.pth").write_bytes(content)
        each = job(tmp_path)
        each.config["system"]["model"] = {"parts": [{"official_weights": "weights.pth"}]}
        found.append(each.fingerprint)
    assert len(set(found)) == 3 and found[2] == found[3]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"precision": "bf16-mixed"}, False),
        ({"accumulate": 2}, False),
        ({"compile": True}, False),
        ({"devices": 2, "strategy": "ddp"}, False),
        ({"threads": 2}, False),
        ({"log_every_n_steps": 1}, False),  # rows of history.csv
        ({"workers": 7, "checkpoint_seconds": 0.0}, True),
    ],
)
def test_settings_that_can_change_a_number_make_another_job_and_others_do_not(tmp_path, changes, same):
    plain, other = job(tmp_path), job(tmp_path, trainer=machine(**changes))
    assert (plain.fingerprint == other.fingerprint) == same


@pytest.mark.parametrize("what", ["processor", "caps", "torch", "numpy", "mkl"])
def test_another_processor_or_library_makes_another_job(tmp_path, monkeypatch, what):
    before, made_by = job(tmp_path).fingerprint, portable.made_by()
    assert made_by[what]
    monkeypatch.setattr(portable, "made_by", lambda: made_by | {what: "another"})
    assert job(tmp_path).fingerprint != before


def test_an_evaluation_is_no_part_of_what_a_training_is(tmp_path):
    plain, other = job(tmp_path), job(tmp_path)
    other.config["system"]["evaluate"] = {"pair": []}
    assert plain.fingerprint == other.fingerprint


# --- an arm, trained within this process ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    digits.prepare(root / "digits")
    (root / "sources.json").write_text("{}")
    return root


class Arm:
    """A small arm in a repository of its own."""

    def __init__(self, root: Path, inputs: Path) -> None:
        self.root, self.inputs, self.trained = root, inputs, []

    def train(self, *seeds, only=None, overrides=None, out="out", **changes) -> dict[int, dict[str, bytes]]:
        """Train, note in `trained` which seeds really were, and give the files of each seed."""
        config = compose("tiny", system="committees", trainer="cpu", overrides=SMALL | (overrides or {}))
        config["trainer"] |= {"workers": 1, "log_every_n_steps": 1, "checkpoint_seconds": 0.0, **changes}
        self.trained.clear()
        training.train_stages(
            {"pretrain": config},
            seeds=list(seeds),
            out=self.root / out,
            folders={"pretrain": self.root / out},
            only=only,
            arm="arm",
            paper="paper",
            system="committees",
            preset="tiny",
            dataset=self.inputs / "digits",
            sources=self.inputs / "sources.json",
        )
        return outputs(self.root / out)

    @property
    def store(self) -> Path:
        return self.root / ".scratch/seeds"

    @property
    def entries(self) -> list[Path]:
        return sorted(path for path in self.store.iterdir() if not path.name.startswith("."))


def outputs(folder: Path) -> dict[int, dict[str, bytes]]:
    return {int(path.name.removeprefix("seed-")): files(path) for path in folder.glob("seed-*")}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def arm(tmp_path, inputs, monkeypatch):
    for name in ("REPRISE_FORCE", "REPRISE_STORE_GB", "REPRISE_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(training, "ROOT", inputs)
    arm, fit = Arm(tmp_path, inputs), training.fit

    def counted(module, data, job, *others):
        arm.trained.append(job.seed)
        return fit(module, data, job, *others)

    monkeypatch.setattr(training, "fit", counted)
    return arm


def recorded(arm: Arm) -> list[dict]:
    folders = (arm.root / ".scratch/runs/paper").iterdir()
    return [records.read_json(folder / "meta.json") | records.state(folder) for folder in sorted(folders)]


def curves_of(folder: Path) -> dict[int, dict[str, float]]:
    """What a run's record has of each step, in the order of the first line about it."""
    curves = {}
    for _, line in records.metric_lines(folder / "metrics.jsonl"):
        curves.setdefault(line["step"], {}).update(line["m"])
    return curves


@pytest.mark.slow
def test_more_seeds_train_only_those_that_are_missing(arm):
    three = arm.train(0, 1, 2)
    assert arm.trained == [0, 1, 2] and sorted(three) == [0, 1, 2]
    assert set(three[0]) == {
        "weights.safetensors",
        "predictions.safetensors",
        "facts.json",
        "metrics.json",
        "history.csv",
    }
    five = arm.train(0, 1, 2, 3, 4)
    assert arm.trained == [3, 4] and sorted(five) == [0, 1, 2, 3, 4]
    assert {seed: five[seed] for seed in three} == three
    assert not list((arm.root / ".scratch/training").glob("*"))
    arm.train(0, overrides={"pretrain.epochs": 5})
    assert arm.trained == [0], "other settings are another seed"


@pytest.mark.slow
def test_seeds_trained_one_by_one_are_assembled_to_the_same_bytes(arm, capsys):
    at_once = arm.train(0, 1, out="at-once")
    arm.store.rename(arm.root / "cleared")
    assert arm.train(0, 1, only="1") == {} and arm.trained == [1], "no output of the stage"
    assert arm.train(0, 1, only="1") == {} and arm.trained == [], "it is there"
    assert arm.train(0, 1) == at_once and arm.trained == [0]
    with pytest.raises(ValueError, match=r"--seed is '7', expected one that the plan gives this arm: 0, 1"):
        arm.train(0, 1, only="7")


@pytest.mark.slow
def test_an_interrupted_arm_takes_up_the_seeds_that_had_finished(arm, monkeypatch):
    unbroken = arm.train(0, 1, 2, out="unbroken")
    arm.store.rename(arm.root / "cleared")
    fit = training.fit

    def killed(module, data, job, *others):
        if job.seed == 1:
            raise RuntimeError("killed")
        return fit(module, data, job, *others)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(training, "fit", killed)
        arm.train(0, 1, 2)
    assert not (arm.root / "out").exists()
    assert arm.train(0, 1, 2) == unbroken and arm.trained == [1, 2]


def test_an_output_of_several_stages_appears_whole_or_not_at_all(arm, monkeypatch):
    """As fine-tuning and a probe of the same encoder, which are one output of DVC."""
    config = compose("tiny", system="committees", trainer="cpu", overrides=SMALL)
    config["system"] |= {"again": config["system"]["pretrain"]}
    out, fit = arm.root / "out", training.fit
    trained = dict(seeds=[0], arm="arm", paper="paper", system="committees", preset="tiny",
                   dataset=arm.inputs / "digits", sources=arm.inputs / "sources.json")  # fmt: skip

    def train():
        stages = {stage: config for stage in ("pretrain", "again")}
        training.train_stages(stages, out=out, folders={stage: out / stage for stage in stages}, **trained)

    def killed(module, data, job, *others):
        if job.stage == "again":
            raise RuntimeError("killed")
        return fit(module, data, job, *others)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(training, "fit", killed)
        train()
    assert arm.trained == [0] and not out.exists()
    train()
    assert arm.trained == [0, 0] and sorted(path.relative_to(out).as_posix() for path in out.glob("*/*")) == [
        "again/seed-0",
        "pretrain/seed-0",
    ]


def test_a_resumed_training_ends_with_the_bytes_of_an_unbroken_one_history_included(arm, monkeypatch, capsys):
    unbroken = arm.train(0, out="unbroken")
    arm.store.rename(arm.root / "cleared")
    start = history.History.on_train_batch_start

    def killed(self, trainer, module, batch, index):
        if trainer.global_step == 5:  # one step after the second checkpoint, and logged
            raise RuntimeError("killed")
        return start(self, trainer, module, batch, index)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(history.History, "on_train_batch_start", killed)
        arm.train(0)
    assert arm.train(0) == unbroken
    assert "resuming at step 4" in capsys.readouterr().err
    rows = list(csv.DictReader(unbroken[0]["history.csv"].decode().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(8))


def test_a_training_may_end_within_an_epoch(arm, monkeypatch):
    """Four epochs of two steps, but three steps in all."""
    monkeypatch.setattr(PaperModule, "max_steps", lambda self, data: 3)
    rows = [line.split(",") for line in arm.train(0)[0]["history.csv"].decode().splitlines()]
    steps = {int(row[0]) for row in rows[1:]}
    assert {0, 1, 2} <= steps <= {0, 1, 2, 3}  # 3: what is known when the third is done


def test_a_forced_training_trains_gives_the_same_bytes_and_has_a_record_of_its_own(arm, monkeypatch):
    first = arm.train(0)
    (entry,) = arm.entries
    before = entry.stat().st_ino
    monkeypatch.setenv("REPRISE_FORCE", "1")
    assert arm.train(0) == first and arm.trained == [0]
    assert [path.stat().st_ino for path in arm.entries] != [before], "the entry was replaced"
    monkeypatch.setenv("REPRISE_FORCE", "0")
    assert arm.train(0) == first and arm.trained == []
    keys = [record["key"] for record in recorded(arm)]
    assert [key.rpartition("-")[2] for key in keys] == ["0", "1"] and len({key.rpartition("-")[0] for key in keys}) == 1
    assert {record["status"] for record in recorded(arm)} == {"FINISHED"}
    curves = [curves_of(path.parent) for path in arm.root.glob(".scratch/runs/paper/*/metrics.jsonl")]
    assert [list(each) for each in curves] == [list(range(9))] * 2, "eight steps and the end, in each"


def test_the_record_of_a_run_ends_its_curves_with_the_final_values_and_says_what_made_them(arm):
    trained = arm.train(0)
    (folder,) = (arm.root / ".scratch/runs/paper").iterdir()
    curves = curves_of(folder)
    assert list(curves) == list(range(9))
    assert {name: round(value, 6) for name, value in curves[8].items()} == json.loads(trained[0]["metrics.json"])
    watched = {"lr", "grad_norm", "machine/samples_per_second", "machine/data_share", "machine/peak_memory_mib"}
    assert curves[0].keys() - curves[8].keys() == {"epoch", *watched} and curves[8].keys() <= curves[0].keys()
    assert records.read_json(folder / "meta.json")["tags"]["system"] == "committees"
    (about,) = records.read_json(folder / "inputs.json").values()
    assert (about["name"], about["context"], about["profile"]) == ("digits", "training", {"rows.all": 1797})
    made = records.read_json(folder / "machine.json")
    assert made["made_by.precision"] == '"32-true"' and made["made_by.torch"] == torch.__version__


def test_what_a_seed_trained_predicts_and_is_stored_once(arm):
    """The record's model points to the output, and to the seed store once the output is another training's."""
    arm.train(0)
    (folder,) = (arm.root / ".scratch/runs/paper").iterdir()
    reference = records.read_json(folder / "model.json")
    (entry,) = arm.entries
    assert model.found(reference).samefile(arm.root / "out/seed-0")
    stored = load_file(entry / "predictions.safetensors")
    members = [stored[name].softmax(-1) for name in sorted(stored) if re.fullmatch(r"logits/.*#\d/test", name)]
    config = compose("tiny", system="committees", overrides=SMALL)["system"]
    data = settings.bind(config["data"], "data", folder=arm.inputs / "digits", seed=0)()
    images = torch.cat([batch["images"] for batch in data.evaluation_batches("test")])
    said = model.Trained(model.found(reference), **reference["given"]).predict(images.permute(0, 2, 3, 1).numpy())
    torch.testing.assert_close(torch.from_numpy(said), torch.stack(members).mean(0))

    (arm.root / "out/seed-0/weights.safetensors").write_bytes(b"another training's")
    assert model.found(reference).samefile(entry)
    (entry / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights.safetensors of this model are no longer in .* `dvc checkout`"):
        model.found(reference)


@pytest.mark.parametrize("trouble", ["no room", "no locks", "another recorder"])
@pytest.mark.slow
def test_what_a_seed_gives_does_not_depend_on_its_record(arm, monkeypatch, trouble):
    """Neither the curve nor a digest: what becomes an output comes from the training alone."""
    expected = arm.train(0, out="expected")
    for place in ("seeds", "runs"):
        shutil.rmtree(arm.root / ".scratch" / place)
    if trouble == "no room":
        monkeypatch.setattr(records.RunRecord, "_append", raising(OSError(errno.ENOSPC, "No space left on device")))
    elif trouble == "no locks":
        monkeypatch.setattr(records, "_claim", raising(OSError(errno.ENOLCK, "No locks available")))
    else:
        monkeypatch.setattr(records, "_claim", raising(OSError("another living process records this very run")))
    assert arm.train(0) == expected and arm.trained == [0]
    assert len(list(csv.DictReader(expected[0]["history.csv"].decode().splitlines()))) == 8


def raising(error):
    def fail(*arguments):
        raise error

    return fail


def test_a_damaged_entry_is_set_aside_with_one_line_and_trained_anew(arm, capsys):
    first = arm.train(0, 1)
    entry = arm.entries[0]
    weights = entry / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert arm.train(0, 1) == first and len(arm.trained) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{entry}: weights.safetensors altered or missing: set aside as {entry.name}.damaged" in line
    assert arm.train(0, 1) == first and arm.trained == []


@pytest.mark.slow
def test_the_store_keeps_to_its_limit_and_what_was_used_last_stays(arm, monkeypatch):
    arm.train(0, 1)
    size = sum(file.stat().st_size for file in arm.store.rglob("*"))
    arm.train(0)  # seed 1 was not used for longer
    monkeypatch.setenv("REPRISE_STORE_GB", str(1.2 * size / 1e9))
    arm.train(2)
    arm.train(0)
    assert arm.trained == []
    arm.train(1)
    assert arm.trained == [1]
    monkeypatch.setenv("REPRISE_STORE_GB", "much")
    with pytest.raises(ValueError, match="REPRISE_STORE_GB is 'much', expected a number of GB from 0 on"):
        arm.train(0)


def train_in_a_process(arm: Arm, out: str, barrier) -> None:
    barrier.wait()
    arm.train(0, out=out)
    (arm.root / f"{out}.trained").write_text(str(len(arm.trained)))


def test_two_processes_that_want_the_same_seed_get_the_same_bytes_from_one_training(arm):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    both = [context.Process(target=train_in_a_process, args=(arm, out, barrier)) for out in ("a", "b")]
    for process in both:
        process.start()
    for process in both:
        process.join(100)
    assert [process.exitcode for process in both] == [0, 0]
    assert outputs(arm.root / "a") == outputs(arm.root / "b") != {}
    assert sorted((arm.root / f"{out}.trained").read_text() for out in "ab") == ["0", "1"]
    assert len(recorded(arm)) == 1


def test_a_seed_of_several_processes_is_not_waited_for(arm):
    """The processes of one training decide alike only while nobody else trains the seed."""
    config = {"system": {"model": {}, "data": {}, "pretrain": {}}, "trainer": machine(devices=2)}
    files = {"dataset": arm.inputs / "digits", "sources": arm.inputs / "sources.json", "out": arm.root / "out"}
    job, store = Job(config, "pretrain", "arm", "paper", "committees", "tiny", 0, **files), training.SeedStore()
    with store.writing(job.fingerprint, wait=None), pytest.raises(ValueError, match="trained by another command"):
        training.obtain_seed(job, 0, store=store, force=False)


def test_progress_is_written_for_the_runner(arm, monkeypatch, tmp_path):
    file, seen = tmp_path / "progress/arm.json", []
    replace = history.replace_file

    def noted(path):
        seen.append(path)
        return replace(path)

    monkeypatch.setattr(history, "replace_file", noted)
    monkeypatch.setenv("REPRISE_PROGRESS", str(file))
    arm.train(0, overrides={"pretrain.epochs": 2}, checkpoint_seconds=1000.0)
    state = json.loads(file.read_text())
    assert state.keys() == {"step", "steps", "loss"}
    assert state["step"] == 1 and state["steps"] == 4 and 0 < state["loss"] < 100
    assert seen == [file], "at most twice a second"

    monkeypatch.setenv("REPRISE_PROGRESS", "/dev/null/not/a/folder")
    arm.train(1)
    assert arm.trained == [1]


def test_what_a_resumed_run_could_not_have_is_refused(arm, monkeypatch):
    from lightning_modules.ensembling.members import Members

    step = Members.training_step

    def logs_an_epoch(self, batch, index=0):
        loss = step(self, batch, index)
        self.log("mean", loss.detach(), on_step=False, on_epoch=True)
        return loss

    monkeypatch.setattr(Members, "training_step", logs_an_epoch)
    with pytest.raises(ValueError, match="Members logs with on_epoch=True"):
        arm.train(0)


@pytest.mark.slow
def test_what_a_server_preloads_is_all_that_a_training_imports_and_starts_no_thread():
    code = f"""
import importlib, os, stages, sys
for name in {processes.PRELOAD!r}:
    importlib.import_module(name)
import torch
from lightning_modules.ensembling import members
from stages.composing import compose
before = set(sys.modules)
compose("tiny", system="committees", trainer="cpu")
print(os.listdir("/proc/self/task") == [str(os.getpid())], torch.cuda.is_initialized(), len(set(sys.modules) - before))
"""
    environment = {**os.environ, **processes.PRELOAD_ENVIRONMENT, "OMP_NUM_THREADS": "4"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    started_none, cuda, late = done.stdout.split()
    assert (started_none, cuda) == ("True", "False"), done.stderr
    assert int(late) < 20


# --- force ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "forced"),
    [
        ("dvc repro -f", True),
        ("/a/.venv/bin/dvc repro --force", True),
        ("/a/.venv/bin/python /a/.venv/bin/dvc repro pretrain@x -fs", True),
        ("python -m dvc --wait-for-lock repro -qfs pretrain@x", True),
        ("python -m dvc exp run -f", True),
        ("dvc experiments run --temp -fn name", True),
        ("dvc repro", False),
        ("dvc repro -s pretrain@f", False),
        ("dvc repro --force-downstream", False),
        ("dvc exp run -n -f", False),  # no sound command line
        ("dvc exp run -S f=1", False),
        ("dvc exp run --name=-f -S -f=1", False),
        ("dvc add -f x", False),
        ("dvc checkout -f", False),
        ("dvc pull --force", False),
        ("git checkout -f", False),
        ("python train.py dvc repro -f", False),
        ("vim -f dvc", False),
        ("dvc", False),
        ("", False),
    ],
)
def test_a_forced_dvc_is_known_by_its_command_line(line, forced, capsys):
    assert processes.forces_dvc(line.split()) == forced
    assert capsys.readouterr() == ("", "")


def test_force_is_seen_through_parents(tmp_path):
    """A stage's parents are a shell and DVC."""
    script = "import os, sys; sys.exit(os.system(f'{sys.executable} -c \"$CHECK\"') >> 8)"
    (tmp_path / "dvc").write_text(script)
    check = "import sys; from lightning_modules.processes import is_forced; sys.exit(3 + is_forced())"
    environment = {**os.environ, "CHECK": check, "REPRISE_FORCE": ""}
    for arguments, code in ((["repro", "-f"], 4), (["repro"], 3)):
        command = [sys.executable, str(tmp_path / "dvc"), *arguments]
        assert subprocess.run(command, cwd=ROOT, env=environment).returncode == code


@pytest.mark.slow
def test_a_forced_repro_trains_again_and_changes_no_byte_of_the_lock(tmp_path):
    copy, arm = Copy(tmp_path / "project", seeds=[0, 1]), "plans/tiny/committees/dvc.yaml:pretrain@committees-digits"

    def runs() -> int:
        return len(list(copy.folder.glob(".scratch/runs/committees/*committees-digits--pretrain*")))

    copy.dvc("repro", arm)
    locks, data = copy.locks(), copy.folder / "data/runs/tiny/committees-digits/pretrain"
    trained = outputs(data)
    assert runs() == 2 and sorted(trained) == [0, 1]
    copy.dvc("repro", "-fs", arm)
    assert runs() == 4 and copy.locks() == locks and outputs(data) == trained

    copy.run("rm", "-r", str(data), str(copy.folder / ".dvc/cache"))  # evicted
    copy.dvc("repro", "-s", arm)
    assert runs() == 4 and copy.locks() == locks and outputs(data) == trained

    copy.run("rm", "-r", str(copy.folder / ".scratch/seeds"))
    for seed in "10":
        copy.python("-m", "stages.pretrain", "committees-digits", "--seed", seed)
    assert runs() == 6
    copy.run("rm", "-r", str(data))
    copy.python("-m", "stages.pretrain", "committees-digits")
    assert runs() == 6 and outputs(data) == trained
