"""What a user, a disk or an attacker may do wrong, and the one line that answers it. Where each item is tested:

unknown key, misspelt arm, unknown preset, seed listed twice    stages/test_plan.py; values and form of `conf/` here
a claim that names a missing arm                                metrics/test_claims.py; that `make check` says it: here
members with other classes or samples, NaN, empty validation    ensembling/test_pools.py; rows and classes of data: here
damaged Parquet shard, cached logits                            datasets/test_storage.py, ensembling/test_pools.py
damaged weights and checkpoint, a checkpoint with code in it    here
disk full while writing                                         here; of a run record: tracking/test_tracking.py
port of the UI taken                                            here
anything at all in `plans/` and `conf/`                          the fuzz test here
"""

import copy
import hashlib
import io
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from functools import partial

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_modules import checkpoints, files, training
from lightning_modules.datasets import digits
from lightning_modules.files import ROOT
from lightning_modules.tracking import records
from stages import arms, composing, evaluate, plan, prepare, pretrain, sources
from stages import training as training_stages
from tests.reference.pools import write_run
from tests.test_stopping import Training

SYSTEM = "conf/system/committees/tiny.yaml"
PLAN = "plans/tiny/committees/params.yaml"
FILES = ("params.yaml", PLAN, SYSTEM, "conf/dataset/digits/tiny.yaml", "conf/trainer/cpu.yaml")
DROPPED = object()
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",  # Lightning's own use of torch
    "ignore:.*many workers",
    "ignore:The number of training batches",  # the small system has two
)


def small_plan() -> dict:
    """One paper with one arm and one seed."""
    given = yaml.safe_load((ROOT / PLAN).read_text())
    given |= {"max_seeds": 1, "datasets": ["digits"]}
    for stage in ("pretrain", "evaluate", "sweep"):
        given[stage] = {"committees-digits": given[stage]["committees-digits"]}
    given["pretrain"]["committees-digits"]["overrides"] = {"data": {"batch_size": 30}}
    return given


def small_system() -> dict:
    """The tiny preset at a size that trains within a second."""
    system = yaml.safe_load((ROOT / SYSTEM).read_text())
    system["model"] |= {"widths": [4, 6, 8], "copies": 2}
    for part in system["data"]["splits"].values():
        part["rows"] = 60
    system["pretrain"] |= {"epochs": 1}
    system["evaluate"] |= {"pair": ["mlp-h4", "mlp-h8"], "export": "mlp-h6", "edges": {"3": 4}}
    return system


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A root with `conf/`, the digits and nothing else, in which the stages run within this process."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "conf", root / "conf")
    digits.prepare(root / "data/datasets/digits/tiny")
    (root / "data/sources/tiny").mkdir(parents=True)
    (root / PLAN).parent.mkdir(parents=True)
    (root / "data/sources/tiny/pretrain.committees.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        for module in (plan, composing, prepare, pretrain, evaluate, arms, sources, training, training_stages):
            patch.setattr(module, "ROOT", root)
        patch.setenv("DVC_ROOT", str(root))
        patch.setenv("REPRISE_WORKERS", "1")
        patch.chdir(root)
        write(root, {})
        yield root


def write(root, changed: dict) -> None:
    """Put the sound files in place, but for those given as trees or as text."""
    sound = {name: yaml.safe_load((ROOT / name).read_text()) for name in FILES}
    for name, tree in (sound | {PLAN: small_plan(), SYSTEM: small_system()} | changed).items():
        (root / name).write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))


def run_all() -> None:
    """What `make repro` does with an arm, without processes."""
    composing.check(plan.load_plan())
    for stage, *arguments in ((prepare, "digits"), (pretrain, "committees-digits"), (evaluate, "committees-digits")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["stage", *arguments])
            stage.main()


def test_the_sound_files_run(project):
    """Without this, every file below could be refused for one and the same reason."""
    write(project, {})
    run_all()
    assert (project / "data/results/tiny/committees/committees-digits/metrics.json").is_file()


def mistake(project, name: str, way: str, value: object) -> str:
    """The line that answers one value of one file, or that its key is `DROPPED`."""
    tree = {PLAN: small_plan(), SYSTEM: small_system()}.get(name) or yaml.safe_load((ROOT / name).read_text())
    *parents, last = way.split("/")
    parent = tree
    for key in parents:
        parent = parent[key]
    if value is DROPPED:
        del parent[last]
    else:
        parent[last] = value
    write(project, {name: tree})
    with pytest.raises(ValueError) as raised:
        run_all()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("way", "value", "message"),
    [
        ("modle", {}, "tiny.yaml: unknown key 'modle'; did you mean 'model'?"),
        ("evaluate", DROPPED, "the key 'evaluate' is missing"),
        ("model/_target_", DROPPED, "model has no `_target_`"),
        ("model/_target_", "os.system", "'os.system', expected a class or function of lightning_modules or ideas"),
        ("model/_target_", "lightning_modules.ensembling.members.Member5", "there is no such class or function"),
        ("model/width", [8], "model: unknown key 'width'; did you mean 'widths'?"),
        ("model/copies", DROPPED, "Interpolation key"),
        ("model/depth", "2", "model.depth is '2', expected a valid integer"),
        ("model/widths", [8, None], "model.widths.1 is None, expected a valid integer"),
        ("model/copies", 10**12, "model.copies is 1000000000000, expected less than or equal to 1000"),
        ("model/num_classes", 5, "model.num_classes is 5, but the data has 10 classes"),
        ("model/image_shape", [1, 9, 9], "the native resolution (8) must be the height of the images [1, 9, 9]"),
        ("data/copies", 3, "model.copies is 2, but data.copies is 3"),
        ("data/splits/val/rows", 0, "data.splits.val.rows is 0, expected greater than or equal to 1"),
        ("data/splits/val", DROPPED, "expected val, test"),
        ("data/splits/test/source", "tset", "split source 'tset' is not stored"),
        ("data/centre_crop", [8, 0.5], "the images are stored as raw"),
        ("pretrain/lr", float("nan"), "pretrain.lr is nan, expected a finite number"),
        ("pretrain/epochs", -1, "pretrain.epochs is -1, expected greater than or equal to 0"),
        ("pretrain/schedule", "cosin", "pretrain.schedule is 'cosin', expected 'cosine', 'one_cycle' or 'steps'"),
        ("evaluate/pair", ["mlp-h4"], "evaluate.pair is ['mlp-h4'], Value should have at least 2 items"),
        ("evaluate/export", "mlp-h5", "architecture 'mlp-h5' is not in the pool"),
    ],
)
def test_a_value_of_a_system_is_named_with_what_was_expected(project, way, value, message):
    assert message in mistake(project, SYSTEM, way, value)


@pytest.mark.parametrize(
    ("name", "way", "value", "message"),
    [
        (PLAN, "pretrain/..", {}, "params.yaml: pretrain... is no possible key, expected a name of letters"),
        (PLAN, "pretrain/committees-digits/system", "", "system is '', expected a name of letters, digits"),
        ("conf/trainer/cpu.yaml", "workers", "many", "conf/trainer.workers is 'many', expected a valid integer"),
        ("conf/trainer/cpu.yaml", "devices", "", "conf/trainer does not suit this machine"),
        ("conf/trainer/cpu.yaml", "thread", 1, "conf/trainer: unknown key 'thread'; did you mean 'threads'?"),
        ("conf/dataset/digits/tiny.yaml", "mirror", "x", "conf/dataset/digits/tiny.yaml: unknown key 'mirror'"),
    ],
)
def test_a_value_of_another_file_is_named_with_what_was_expected(project, name, way, value, message):
    assert message in mistake(project, name, way, value)


def test_make_check_names_a_claim_whose_arm_is_missing(project, monkeypatch):
    write(project, {})
    small = plan.load_plan()
    monkeypatch.setattr(composing, "ROOT", ROOT)  # the facts lie there
    with pytest.raises(ValueError, match=r"committees.*: claim .*: arm is 'committees-mnist', expected an arm"):
        composing.check_claims(small)


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


def checkpoint(folder, content: bytes, digest: str = ""):
    digest = digest or hashlib.sha256(content).hexdigest()[: checkpoints.DIGEST]
    path = folder / f"last-{digest}.ckpt"
    path.write_bytes(content)
    return path


def saved(**content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture
def record(tmp_path_factory, monkeypatch):
    """The record of the run that a checkpoint belongs to."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path_factory.mktemp("root")))
    with records.open_record(experiment="a", arm="b", stage="pretrain", seed=0, preset="tiny") as opened:
        yield opened


def test_a_damaged_checkpoint_is_set_aside_before_it_is_opened_and_an_earlier_one_used(tmp_path, record, capsys):
    earlier = checkpoint(tmp_path, saved(global_step=20))
    os.utime(earlier, (1, 1))
    damaged = checkpoint(tmp_path, saved(global_step=40)[:-9], "0123456789abcdef")
    assert checkpoints.usable(tmp_path, record) == earlier
    assert record.meta["tags"]["resumed_at_step"] == "20"
    line, _ = capsys.readouterr().err.splitlines()
    assert f"{damaged} has sha256" in line and "set aside as last-0123456789abcdef.refused" in line
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".ckpt", ".refused"]


@pytest.mark.parametrize("pack", [partial(pickle.dumps, protocol=2), lambda payload: saved(global_step=payload)])
def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_never_runs(tmp_path, record, capsys, pack):
    trace = tmp_path / "ran"
    checkpoint(tmp_path, pack(Payload(trace)))
    assert checkpoints.usable(tmp_path, record) is None
    assert "with code in it, which is never run: set aside" in capsys.readouterr().err
    assert not trace.exists()


@pytest.mark.slow
def test_training_starts_anew_after_a_damaged_checkpoint_and_ends_with_the_same_numbers(project, monkeypatch, capsys):
    write(project, {})
    monkeypatch.setattr(sys, "argv", ["stage", "committees-digits"])
    fit, results = training.fit, project / "data/runs/tiny/committees-digits/pretrain/seed-0"

    def fit_after_damage(module, data, job, *others):
        job.folder.mkdir(parents=True, exist_ok=True)
        checkpoint(job.folder, b"cut", "0123456789abcdef")
        return fit(module, data, job, *others)

    numbers = []
    monkeypatch.setenv("REPRISE_FORCE", "1")
    for way in (fit, fit_after_damage):
        monkeypatch.setattr(training, "fit", way)
        pretrain.main()
        numbers.append({path.name: path.read_bytes() for path in results.iterdir()})
    assert numbers[0] == numbers[1]
    assert capsys.readouterr().err.count("set aside") == 1


@pytest.mark.parametrize(
    ("epochs", "told"), [(60, r"\w+ is (nan|inf) at step \d+"), (1, "has values that are not finite")]
)
def test_a_training_that_diverges_names_arm_and_seed_and_stores_nothing(project, monkeypatch, epochs, told):
    """A short one logs nothing: only its weights and predictions tell."""
    system = small_system()
    system["pretrain"] |= {"lr": 1e6, "weight_decay": 1e6 if epochs == 1 else 1.0, "warmup": 0.0, "epochs": epochs}
    write(project, {SYSTEM: system})
    with pytest.raises(ValueError, match=rf"seed 0 of committees-digits \(pretrain\): .*{told}.*The training diverged"):
        run_all()
    write(project, {})


def test_a_fine_tuning_that_diverges_names_arm_seed_and_stage_too(tmp_path, prepared, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(training, "ROOT", prepared("world_graded").parent)
    arm = Training(tmp_path, prepared("world_graded"), "maskalign")
    wild = {"lr": 1e6, "weight_decay": 1e6, "epochs": 1}
    arm.overrides = arm.overrides | {f"downstream.finetune.{name}": value for name, value in wild.items()}
    with pytest.raises(ValueError, match=r"^seed 3 of arm \(finetune\): \S+ is (nan|inf) at step \d.*diverged"):
        arm.train("out", seeds=[3])
    assert not (tmp_path / "out/finetune").exists()


def test_damaged_weights_are_refused_by_digest(tmp_path):
    run = write_run(tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"weights\.safetensors has sha256 .* altered or cut.*dvc checkout"):
        run.weights()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mount.returncode:
        pytest.skip("this machine allows no tmpfs to be mounted")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(small_disk):
    old = small_disk / "old.bin"
    old.write_bytes(b"old")
    told = r"no space to write .*{}; nothing of it was left: free some space"
    with pytest.raises(OSError, match=told.format(r"old\.bin")), files.replace_file(old) as temporary:
        temporary.write_bytes(bytes(100_000))
    with pytest.raises(OSError, match=told.format("digits")):
        digits.prepare(small_disk / "digits")
    assert [(path.name, path.read_bytes()) for path in small_disk.iterdir()] == [("old.bin", b"old")]


def test_a_full_disk_while_a_checkpoint_is_written_keeps_the_earlier_one(small_disk, monkeypatch):
    earlier = checkpoint(small_disk, saved(global_step=20))
    trainer = training.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(trainer, "save_checkpoint", lambda path: path.write_bytes(bytes(100_000)))
    with pytest.raises(OSError, match="no space to write"):
        checkpoints.ResumeCheckpoint(small_disk, seconds=0.0)._write(trainer)
    assert list(small_disk.iterdir()) == [earlier]


@pytest.mark.parametrize("problem", ["is in use", "cannot be used"])
@pytest.mark.slow
def test_a_port_that_cannot_be_used_is_one_line(problem):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1] if problem == "is in use" else 80_000
        command = [sys.executable, "-m", "stages.ui", "--port", str(port)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert re.fullmatch(rf"error: port {port} {problem}[^\n]* choose [^\n]*\n", run.stderr)


NUMBERS = [True, -1, 0, 1, 10**12, 0.5, -0.5, 1e30, float("nan"), float("inf")]
WORDS = ["", "x", "../x", "${x}", "${oc.env:X}", "none"]
VALUES = st.sampled_from([None, *NUMBERS, *WORDS, [], [1], ["x", "x"], [[]], {}, {"x": 1}, {"_target_": "os.system"}])


def places(tree, at=()):
    """The way to every value of a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*at, key)
        yield from places(value, (*at, key))


@st.composite
def mutations(draw) -> dict:
    """One file with one mistake: a value, a key, a letter or the end of the text."""
    name = draw(st.sampled_from([*FILES, SYSTEM, SYSTEM]))
    sound = {PLAN: small_plan(), SYSTEM: small_system()}
    tree = copy.deepcopy(sound.get(name) or yaml.safe_load((ROOT / name).read_text()))
    *way, last = draw(st.sampled_from(list(places(tree))))
    parent = tree
    for key in way:
        parent = parent[key]
    kind = draw(st.sampled_from(["value", "value", "value", "drop", "add", "misspell", "letter", "cut"]))
    if kind == "value":
        parent[last] = draw(VALUES)
    elif kind == "drop":
        del parent[last]
    elif kind in ("add", "misspell") and isinstance(parent, dict):
        parent[f"{last}x"] = parent.pop(last) if kind == "misspell" else draw(VALUES)
    text = yaml.safe_dump(tree)
    at = draw(st.integers(0, len(text) - 1))
    if kind == "letter":
        text = text[:at] + draw(st.sampled_from("x0-:{[&*!%\t\n\0é'")) + text[at + 1 :]
    return {name: text[:at] if kind == "cut" else text}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(changed=mutations())
def test_whatever_is_written_into_the_files_ends_well_or_in_one_line(project, changed):
    write(project, changed)
    try:
        run_all()
    except (ValueError, OSError) as error:  # what `run_stage` ends in one line
        assert str(error) and "\n" not in str(error), str(error)
