"""A rehearsal runs every stage in a copy of the project; what cannot run is named in one line."""

import gzip
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import psutil
import pytest
import yaml

from lightning_modules import rehearsal
from lightning_modules.datasets import mixture, storage
from lightning_modules.datasets.splits import draw_splits
from lightning_modules.datasets.video import corpora
from lightning_modules.files import ROOT
from stages import rehearse
from stages.command import run_stage
from stages.composing import compose
from stages.plan import PRESETS, Row, load_plan
from stages.rehearsal import call, inside, scaling, table, work

PLANS = {preset: load_plan(preset) for preset in PRESETS}
PLAN = PLANS["paper"]
STAGES = ("pretrain", "finetune", "evaluate", "sweep")


def files(stem: str) -> set[str]:
    """What a run of a paper reads and writes in the user's folder, with times."""
    folders = [ROOT / name for name in ("conf", "data", "plans", "results", f".scratch/runs/{stem}")]
    return {f"{path} {path.stat().st_mtime_ns}" for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_deep_networks_have_few_blocks_on_a_cpu():
    system = {"model": {"network": {"layers": 32, "hidden_size": 4096}, "reader": {"layers": 12}}, "data": {}}
    found = {"model.network.layers": scaling.LAYERS, "model.network.hidden_size": 4096 // scaling.NARROW}
    assert scaling.changes(system, {}, whole=False) == found
    assert scaling.changes(system, {}, whole=True) == {}


def test_what_a_rehearsal_changes_is_written_in_the_file_of_the_system_itself():
    changed = {"model.encoder.dim": 48, "downstream.images.model.encoder.dim": 48}
    encoder = {"model": {"encoder": "${system.model.encoder}"}}
    written = {"model": {"encoder": {"dim": 768}}, "downstream": {"images": encoder}}
    assert scaling.own(changed, written) == {"model.encoder.dim": 48}


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_rehearsal_changes_can_be_changed(preset):
    rows = [row for stage in ("pretrain", "finetune") for row in getattr(PLANS[preset], stage).values()]
    for system in {row.system for row in rows}:
        resolved, written = (compose(preset, system=system, resolve=resolve)["system"] for resolve in (True, False))
        changed = scaling.own(scaling.changes(resolved, {}, whole=False), written)
        compose(preset, system=system, overrides=changed, resolve=False)


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.timeout(1800)  # a paper has up to thirty stages here
@pytest.mark.parametrize("stem", PLAN.papers)
def test_every_paper_can_be_rehearsed_without_data_gpu_and_network(stem):
    before = files(stem)
    environment = {name: value for name, value in os.environ.items() if name != "REPRISE_MIRROR"}
    done = subprocess.run(
        [sys.executable, "-m", "stages.rehearse", "--paper", stem, "--json"],
        cwd=ROOT, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-4000:]
    found = json.loads(done.stdout)
    assert found["failed"] == 0
    mine = [entry for entry in found["entries"] if entry["paper"] == stem]
    for stage in STAGES:
        rows = {arm for arm, row in getattr(PLAN, stage).items() if row.paper == stem}
        assert {entry["arm"] for entry in mine if entry["stage"] == stage} >= rows
        assert not rows or "ran" in {entry["state"] for entry in mine if entry["stage"] == stage}
    assert {entry["stage"] for entry in found["entries"]} >= {"sources", "prepare", "claims", "report"}
    assert files(stem) == before
    copies = (ROOT / ".scratch/rehearse").iterdir()
    assert not [copy for copy in copies if not psutil.pid_exists(int(copy.name.partition("-")[0]))], "it is removed"


@pytest.mark.slow
def test_at_its_own_size_every_training_says_how_long_the_whole_run_takes():
    done = subprocess.run(
        [sys.executable, "-m", "stages.rehearse", "--preset", "tiny", "--paper", "small_ensembles", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-4000:]
    trained = [entry for entry in json.loads(done.stdout)["entries"] if entry["stage"] == "pretrain"]
    assert trained and all(entry["state"] == "ran" for entry in trained)
    for entry in trained:
        expected = entry["steps"] * entry["seeds"] / entry["steps_per_second"] / 3600
        assert entry["hours"] == pytest.approx(expected) and entry["gpu_hours"] is None


@pytest.mark.slow
def test_files_that_are_there_and_wrong_are_named_and_what_needs_them_is_not_run(tmp_path):
    (tmp_path / "mnist").mkdir()
    for name in compose("tiny", dataset="mnist")["dataset"]["files"]:
        (tmp_path / "mnist" / name).write_bytes(gzip.compress(b"something else"))
    done = subprocess.run(
        [sys.executable, "-m", "stages.rehearse", "--preset", "tiny", "--paper", "small_ensembles", "--json"],
        cwd=ROOT, env=os.environ | {"REPRISE_MIRROR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:] + done.stdout[-4000:]
    failed = [entry for entry in json.loads(done.stdout)["entries"] if entry["state"] == "failed"]
    assert [entry["stage"] for entry in failed] == ["prepare", "pretrain", "evaluate"]
    assert "altered or cut off" in failed[0]["notes"][0]
    assert failed[1]["notes"][-1] == "not run: mnist could not be prepared"
    assert failed[2]["notes"] == ["not run: mnist could not be prepared"]


@pytest.fixture
def rehearsing(monkeypatch):
    """A rehearsal whose work is done in this process."""
    monkeypatch.setattr(inside.Rehearsing, "process", lambda self, name, *given: call.found_by(name, given))

    def make(memory=None):
        made = inside.Rehearsing(inside.Request("paper", ["maskalign"], str(ROOT), False, memory, 0))
        made.whole["imagenet"] = {"train": 1_281_167, "val": 50_000}
        return made

    return make


def test_the_plans_of_the_copy_list_their_arms_in_the_same_order(rehearsing, monkeypatch, tmp_path):
    made = rehearsing()
    monkeypatch.setattr(inside, "ROOT", tmp_path)
    for stem in PLAN.papers:
        (tmp_path / f"plans/paper/{stem}").mkdir(parents=True)
    made.write()
    for stem in PLAN.papers:  # an evaluation of fine-tuned arms loads the first one
        written, given = (
            yaml.safe_load((at / f"plans/paper/{stem}/params.yaml").read_text()) for at in (tmp_path, ROOT)
        )
        for stage in ("pretrain", "pretrain_from", "finetune", "evaluate", "sweep"):
            assert list(written[stage]) == list(given[stage])


def arm(**overrides) -> Row:
    return Row(arm="mine", paper="maskalign", system="maskalign", dataset="imagenet", overrides=overrides)


@pytest.mark.parametrize(("memory", "row", "told"), [
    (None, arm(**{"model.mask_ratio": "half"}), r"maskalign/paper.yaml .*model.mask_ratio is 'half', expected"),
    (None, arm(**{"model.maskratio": 0.5}), r"'model.maskratio' is no setting of .*did you mean 'model.mask_ratio'"),
    (None, arm(**{"pretrain.warmup": 2.0}), r"warmup is 2.0, expected"),
    (None, arm(**{"data.batch_size": 0}), r"data.batch_size is 0, expected"),
    (1.0, arm(), r"weights, gradients and optimiser alone take 1.76 GB, but the device has 1 GB \(--memory\): take"),
])  # fmt: skip
def test_what_cannot_be_built_is_one_line_with_the_value_what_was_expected_and_a_way_out(rehearsing, memory, row, told):
    [entry] = rehearsing(memory).built("pretrain", row)
    assert entry.state == "failed" and len(entry.notes) == 1 and "\n" not in entry.notes[0]
    assert re.search(told, entry.notes[0])


def test_an_arm_that_is_only_built_says_how_many_steps_it_takes_and_what_it_holds(rehearsing):
    [entry] = rehearsing().built("pretrain", arm())
    assert (entry.state, entry.notes, entry.steps) == ("built", [], 200 * 1251)  # the official README: 1,251 of 1,024
    weights = 4 * entry.parameters
    assert weights < entry.memory < 4 * weights  # gradients and two moments of the student, and the frozen teacher
    tuned, probe = rehearsing().built("finetune", replace(arm(), start="maskalign"))
    assert (tuned.training, probe.training) == ("finetune", "probe")
    assert probe.memory < 4 * 4 * probe.parameters / 3  # a probe trains a head only


@pytest.mark.parametrize("key", ["decoder_weights", "centroids"])
def test_a_file_that_a_setting_names_and_that_is_not_there_is_named(rehearsing, key):
    row = Row("mine", "unified_t2i_i2t", "image_side", {f"model.{key}": "nowhere.file"}, "coco_captions")
    [entry] = rehearsing().built("pretrain", row)
    assert entry.state == "failed" and len(entry.notes) == 1
    assert re.search(r"nowhere.file (does not exist|cannot be read)", entry.notes[0])


def test_a_module_that_does_not_say_which_setting_named_a_missing_file_is_helped(rehearsing, monkeypatch):
    def bind(*_, **__):
        return lambda: open("nowhere.file")

    monkeypatch.setattr(work.settings, "bind", bind)
    [entry] = rehearsing().built("pretrain", arm())
    assert entry.notes == [
        "conf/system/maskalign/paper.yaml (or the arm's overrides): pretrain: nowhere.file does not exist, expected "
        "the file that the setting names: put it there, or correct the path"
    ]


@pytest.mark.parametrize(("options", "told"), [
    (["--paper", "maskaling"], "error: --paper is 'maskaling'; did you mean 'maskalign'?"),
    (["--memory", "0"], "error: --memory is 0, expected gigabytes, more than 0"),
])  # fmt: skip
def test_a_wrong_option_is_one_line(monkeypatch, options, told):
    monkeypatch.setattr(sys, "argv", ["rehearse", *options])
    with pytest.raises(SystemExit, match="error") as ended:
        run_stage(rehearse.main)
    assert ended.value.code == told


class Tried(inside.Rehearsing):
    """A rehearsal at full size, whose trainings are not run: a step takes half a second, if its rows fit."""

    def __init__(self, folder, gpus, fit):
        super().__init__(inside.Request("paper", ["maskalign"], str(folder), True, None, gpus))
        self.folder, self.fit, self.tried = folder, fit, []
        self.whole["imagenet"] = self.cards["imagenet"] = {"train": 1_281_167, "val": 50_000}
        self.rows = {stage: [] for stage in STAGES} | {"pretrain": [self.plan.pretrain["maskalign"]]}
        self.write_plans()

    def process(self, name, *arguments):
        return call.found_by(name, arguments)

    def stage(self, name, arm, rows=0):
        """What a training of the copy finds with the batch that its plan says."""
        plan = yaml.safe_load((self.folder / "plans/paper/maskalign/params.yaml").read_text())
        self.tried.append(plan[name][arm]["overrides"].get("data.batch_size", 1024))
        if self.tried[-1] > self.fit:
            return {"error": "no memory left: CUDA out of memory", "out_of_memory": True}
        return {"found": {"seconds": 9.0, "memory": 7 * 10**10, "trainings": [{"seconds_per_step": 0.5}]}}


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """`tried(trainer, gpus, fit)` rehearses MaskAlign where so many rows fit; gives the rehearsal and its entry."""
    monkeypatch.setattr(inside, "ROOT", tmp_path)  # the copy of the project
    for name in ("conf/trainer", "data/runs/paper", *(f"plans/paper/{stem}" for stem in PLAN.papers)):
        (tmp_path / name).mkdir(parents=True)

    def tried(trainer, gpus, fit):
        monkeypatch.setenv("REPRISE_TRAINER", trainer)
        made = Tried(tmp_path, gpus, fit)
        made.train("pretrain", made.rows["pretrain"][0])
        [entry] = made.entries
        return made, entry

    return tried


def test_the_largest_cut_of_a_batch_that_fits_is_found_and_named(tried):
    made, entry = tried("gpu", 1, fit=256)
    assert made.tried == [1024, 512, 256] and entry.state == "ran"
    assert entry.notes == [
        "memory suffices for 256 of 1024 rows at a time: set accumulate to 4 in conf/trainer/gpu.yaml, or lower the "
        "precision there"
    ]
    assert entry.steps_per_second == 1 / (4 * 0.5), "four parts are a step"
    assert entry.hours == entry.gpu_hours == pytest.approx(200 * 1251 * 4 * 0.5 * entry.seeds / 3600)


def test_what_does_not_even_fit_by_the_row_fails_with_the_way_out(tried):
    made, entry = tried("gpu", 1, fit=0)
    assert made.tried == [2**power for power in range(10, -1, -1)]
    assert (entry.state, entry.hours, entry.gpu_hours) == ("failed", None, None)
    assert entry.notes[0] == "no memory left: CUDA out of memory"
    assert entry.notes[1].startswith("it does not fit, not even a row at a time: lower the precision in conf/trainer/")


@pytest.mark.parametrize(("fit", "rows", "parts"), [(512, [512], 1), (300, [512, 256], 2)])
def test_of_two_devices_each_has_half_of_the_rows_and_both_are_paid_for(tried, tmp_path, fit, rows, parts):
    made, entry = tried("ddp", 2, fit=fit)
    assert made.tried == rows
    assert bool(entry.notes) == (parts > 1) and all("256 of 512 rows at a time" in note for note in entry.notes)
    assert entry.hours == pytest.approx(200 * 1251 * parts * 0.5 * entry.seeds / 3600)
    assert entry.gpu_hours == 2 * entry.hours
    trainer = yaml.safe_load((tmp_path / "conf/trainer/ddp.yaml").read_text())
    assert (trainer["devices"], trainer["strategy"]) == (1, "auto"), "it runs on one of them"


def test_data_that_the_user_has_prepared_is_taken_and_cut(tmp_path, monkeypatch, prepared):
    monkeypatch.setattr(rehearsal, "current", None)
    monkeypatch.setattr(inside.Rehearsing, "process", lambda self, name, *given: call.found_by(name, given))
    theirs, ours = tmp_path / "theirs", tmp_path / "copy"
    for folder in (theirs / "data/datasets/digits", ours):
        folder.mkdir(parents=True)
    (theirs / "data/datasets/digits/tiny").symlink_to(prepared("digits"))
    (ours / "conf").symlink_to(ROOT / "conf")
    monkeypatch.setattr(inside, "ROOT", ours)
    made = inside.Rehearsing(inside.Request("tiny", ["committees"], str(theirs), False, None, 0))
    made.prepare("digits")
    [entry] = made.entries
    assert (entry.data, entry.state, entry.notes) == ("yours, prepared", "ran", [])
    whole, few = made.whole["digits"], made.cards["digits"]
    assert whole == storage.card(prepared("digits"))["splits"] and whole.keys() == few.keys()
    for split, rows in few.items():
        labels = storage.read(ours / "data/datasets/digits/tiny", split)["label"]
        assert 0 < rows < whole[split]
        assert labels.tolist() == storage.read(prepared("digits"), split)["label"][:rows].tolist()


@pytest.mark.parametrize("stem", PLAN.papers)
def test_on_a_cpu_the_longest_chain_of_a_paper_runs_and_each_of_its_stages_with_what_they_start_from(stem):
    rows = scaling.chosen(PLAN, [stem], whole=False)
    for stage in STAGES:
        assert rows[stage] or not any(row.paper == stem for row in getattr(PLAN, stage).values()), stage
    arms = [row.arm for row in rows["pretrain"]]
    for row in rows["pretrain"]:
        assert not row.start or arms.index(row.start) < arms.index(row.arm)
    assert {row.start for row in rows["finetune"]} <= set(arms)
    compared = [row.comparison for row in rows["finetune"]]
    assert all(row.runs in (compared if row.stage == "finetune" else arms) for row in rows["evaluate"])
    everything = scaling.chosen(PLAN, [stem], whole=True)
    for stage in STAGES:
        mine = {row.arm for row in getattr(PLAN, stage).values() if row.paper == stem}
        assert {row.arm for row in everything[stage]} >= mine


def test_networks_and_batches_become_small_and_counts_of_rows_are_those_there_are():
    system = compose("paper", system="maskalign")["system"]
    changed = scaling.changes(system, {"train": 24, "val": 24}, whole=False)
    assert changed["model.student.dim"] == 48 and "model.student.depth" not in changed
    assert changed["data.batch_size"] == changed["downstream.probe.data.batch_size"] == scaling.BATCH
    held = {f"downstream.{name}.data.splits.val.rows": 12 for name in ("finetune", "probe")}  # as many are left
    assert scaling.changes(system, {"train": 24, "val": 24}, whole=True) == held
    assert scaling.changes(system, {}, whole=True, batch=512)["downstream.probe.data.batch_size"] == 512
    committees = compose("paper", system="committees")["system"]
    changed = scaling.changes(committees, {"val": 24}, whole=True)
    assert changed == {"data.splits.val.rows": 12, "data.splits.test.rows": 12}
    generator = compose("paper", system="unified_t2i_i2t")["system"]
    changed = scaling.changes(generator, {"test": 24, "val": 24, "restval": 24}, whole=False)
    assert changed["data.drawing.images"] == 72
    assert "model.network.feature_dim" not in changed
    assert changed["model.network.codebook_size"] == changed["model.images.codebook_size"] == 625

    bits = compose("paper", system="magvit2")["system"]
    changed = scaling.changes(bits, {}, whole=False)
    assert changed["model.network.hidden_size"] == 64
    assert changed["model.tokenizer.codebook_size"] == 2**6 and changed["model.network.bits"] == [3, 3]
    assert changed["model.network.attention_dropout"] == 0.0
    assert "model.network.attention_dropout" not in scaling.changes(bits, {}, whole=True)
    splits = {name: {"source": name, "rows": None} for name in ("train", "val", "test")}
    written = {"model": {"writing": {"pictures": 256}, "judged_rows": 512}, "data": {"splits": splits}}
    few = {"model.writing.pictures": 2, "model.judged_rows": 2, "data.splits.val.rows": 2, "data.splits.test.rows": 2}
    assert scaling.changes(written, {}, whole=False) == few
    assert scaling.changes(written, {}, whole=True) == {}
    codes = compose("paper", system="magvit")["system"]
    assert scaling.changes(codes, {}, whole=False)["model.tokenizer.codebook_size"] == 64


def test_data_modules_of_tasks_become_small_as_those_of_systems():
    own = {"batch_size": 256, "splits": {"train": {"source": "t", "rows": None}, "val": {"source": "t", "rows": 4096}}}
    tasks = {"one": {"part": "one", "data": own}, "other": {"part": "other", "data": {}}}
    splits = {"train": {"source": "t", "rows": None}, "val": {"source": "t", "rows": 9}}
    system = {"data": {"batch_size": 1024, "evaluation_batch_size": 64, "splits": splits, "tasks": tasks}}
    assert scaling.changes(system, {"t": 24}, whole=False) == {
        "data.batch_size": 4, "data.evaluation_batch_size": 8, "data.tasks.one.data.batch_size": 4,
        "data.tasks.one.data.splits.val.rows": 12,
    }  # fmt: skip
    assert scaling.needed_rows(system, whole=False) == 16 and scaling.needed_rows(system, whole=True) == 4096


@pytest.mark.parametrize(("preset", "arm"), [(preset, arm) for preset, plan in PLANS.items() for arm in plan.pretrain])
def test_the_rows_that_are_prepared_suffice_for_two_steps_of_a_training(preset, arm):
    row = PLANS[preset].pretrain[arm]
    system = compose(preset, system=row.system, overrides=row.overrides)["system"]
    if "train" not in system["data"]["splits"]:
        return
    for whole in (True, False):
        rows = scaling.needed_rows(system, whole=whole)
        there = dict.fromkeys((part["source"] for part in system["data"]["splits"].values()), rows)
        changed = scaling.changes(system, there, whole=whole)
        parts = {
            name: part | {"rows": changed.get(f"data.splits.{name}.rows", part["rows"])}
            for name, part in system["data"]["splits"].items()
        }
        count = len(draw_splits(there, parts, 0)["train"][1])
        assert count >= 2 * min(system["data"]["batch_size"], 10**9 if whole else scaling.BATCH)


def test_the_first_rows_of_prepared_data_are_a_data_set_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "current", None)
    columns = {"id": np.arange(600), "image": np.zeros((600, 2, 2, 1), np.uint8), "label": np.arange(600) % 3}
    whole = tmp_path / "whole"
    whole.mkdir()
    splits = {"train": storage.write(whole, "train", columns, "raw", (2, 2, 1))}
    storage.write_card(whole, name="x", splits=splits, codec="raw", shape=(2, 2, 1), num_classes=3, source="here")
    work.shorten(whole, tmp_path / "short", 300)
    assert storage.read(tmp_path / "short", "train")["label"].tolist() == (np.arange(300) % 3).tolist()
    mixture.prepare(tmp_path / "mixture", parts={"a": {"_target_": "lightning_modules.datasets.digits.prepare"}})
    work.shorten(tmp_path / "mixture", tmp_path / "taken", 300)
    assert storage.card(tmp_path / "taken") == storage.card(tmp_path / "mixture"), "as it is: there is no form to cut"

    index = tmp_path / "data/datasets/clips/paper"
    index.mkdir(parents=True)
    monkeypatch.setattr(rehearsal, "current", None)
    written = corpora.write_index(index / "train.parquet", {f"{n}.mp4": corpora.Texts(("a",)) for n in range(9)})
    facts = {"name": "clips", "videos": "videos", "cache": "data/downloads/clips", "splits": {"train": written}}
    (index / "card.json").write_text(json.dumps(facts))
    work.shorten(index, tmp_path / "index", 4)
    assert corpora.read_index(tmp_path / "index", "train")["file"].tolist() == [f"{n}.mp4" for n in range(4)]
    assert storage.card(tmp_path / "index")["cache"] == str(tmp_path / "data/downloads/clips")


def test_published_weights_that_are_not_here_are_named_with_the_command_that_fetches_them(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = "openai/clip-vit-base-patch16"
    assert work.told_of(f"tokenizer {name}") == (
        f"not here: tokenizer {name}, so a drawn one took its place; `hf download {name}` fetches it"
    )
    (tmp_path / "config.json").write_text("{}")
    assert work.told_of(str(tmp_path)) == f"{tmp_path} is here, but a narrow one took its place"


def test_the_table_names_each_stage_and_says_a_sentence_once():
    entries = [
        vars(inside.Entry("p", "prepare", "imagenet", data="stand-in", notes=["get it there"])),
        vars(inside.Entry("p", "pretrain", "mine", parameters=86_000_000, steps=1000, memory=2 * 10**9, disk=10**9)),
        vars(inside.Entry("p", "evaluate", "mine", state="failed", notes=["get it there", "no such key"])),
    ]
    text = "\n".join(table.lines(entries, ["p"]))
    assert text.count("get it there") == 1 and "FAILED" in text and "no such key" in text
    assert "86.0 M" in text and "1,000" in text and "2 GB" in text and "stand-in" in text
