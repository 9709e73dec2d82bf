"""Pools of any trained classifiers, from the logits that their runs hold."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lightning_modules.ensembling import stored
from lightning_modules.files import sha256
from lightning_modules.metrics.compute import count_macs
from lightning_modules.runs import Run
from lightning_modules.settings import bind
from stages.composing import compose
from stages.plan import load_plan

ROWS, CLASSES = 13, 3


def make_run(folder, arm, seed=0, name="", arrays=None, **facts):
    """A run whose networks answered the same rows as those of every other arm with this seed."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, ROWS)
    logits = rng.normal(size=(ROWS, CLASSES)).astype(np.float32) + len(arm)
    arrays = {"labels/test": labels, "logits/test": logits} if arrays is None else arrays
    place = folder / "comparison/finetune" / name if name else folder / arm / "pretrain"
    place = place / f"seed-{seed}"
    place.mkdir(parents=True)
    save_file(arrays, place / "predictions.safetensors")
    facts |= {"predictions_sha256": sha256(place / "predictions.safetensors")}
    (place / "facts.json").write_text(json.dumps(facts))
    return Run(place, seed, name)


def test_arms_of_a_seed_are_members_of_its_pool_and_halves_of_the_rows_are_disjoint(tmp_path):
    runs = [make_run(tmp_path, arm, seed, macs_per_clip=cost) for arm, cost in (("dear", 90), ("cheap", 30))
            for seed in (0, 1)]  # fmt: skip
    runs.append(make_run(tmp_path, "dear", 2, macs_per_clip=90))
    pools = stored.read_pools(runs)
    assert [pool.seed for pool in pools] == [0, 1], "a seed that one arm does not have cannot be compared"
    assert [pool.macs for pool in pools] == [{"cheap": 30, "dear": 90}] * 2
    whole = runs[0].predictions()
    parts = [pools[0].scores("dear#0", split) for split in ("val", "test")]
    assert sorted(map(len, parts)) == [ROWS // 2, ROWS - ROWS // 2]
    together = np.concatenate(parts)
    assert sorted(map(tuple, together)) == sorted(map(tuple, whole["logits/test"]))
    for label in range(CLASSES):
        counts = [int((pools[0].labels[split] == label).sum()) for split in ("val", "test")]
        assert abs(counts[0] - counts[1]) <= 1


def test_several_networks_of_a_run_are_copies_and_share_its_cost(tmp_path):
    arrays = {
        "labels/test": np.arange(ROWS) % CLASSES,
        "logits/test": np.arange(ROWS * 2 * CLASSES, dtype=np.float32).reshape(ROWS, 2, CLASSES),
    }
    (pool,) = stored.read_pools([make_run(tmp_path, "streams", arrays=arrays, macs_per_clip=100, parameters=8)])
    assert pool.macs == {"streams": 50} and [m.name for m in pool.members] == ["streams#0", "streams#1"]
    assert not np.array_equal(pool.scores("streams#0", "test"), pool.scores("streams#1", "test"))


def test_rows_of_val_and_test_are_taken_as_they_are(tmp_path):
    rng, arrays = np.random.default_rng(0), {}
    for split, rows in (("val", 4), ("test", 7)):
        arrays |= {f"labels/{split}": np.arange(rows) % CLASSES}
        arrays |= {f"logits/{split}": rng.normal(size=(rows, CLASSES)).astype(np.float32)}
    run = make_run(tmp_path, "both", arrays=arrays, macs_per_image=5)
    (pool,) = stored.read_pools([run])
    assert {split: len(labels) for split, labels in pool.labels.items()} == {"val": 4, "test": 7}
    assert not stored.is_halved(run)


def test_protocols_and_tasks_are_chosen(tmp_path):
    runs = [make_run(tmp_path, "", name=f"{arm}/{protocol}") for arm in "ab" for protocol in ("finetune", "probe")]
    (pool,) = stored.read_pools(runs, protocol="finetune", macs=7)
    assert pool.macs == {"a": 7, "b": 7}
    (pool,) = stored.read_pools(runs, macs={"a/finetune": 1, "a/probe": 2, "b/finetune": 3, "b/probe": 4})
    assert list(pool.macs) == ["a/finetune", "a/probe", "b/finetune", "b/probe"]
    labels = np.arange(6) % 2
    both = {f"{task}/labels": labels for task in ("clips", "sounds")}
    both |= {f"{task}/logits": np.eye(2, dtype=np.float32)[labels] for task in ("clips", "sounds")}
    run = make_run(tmp_path, "imp", arrays=both)
    assert stored.read_pools([run], task="sounds", macs=1)[0].num_classes == 2
    with pytest.raises(ValueError, match=r"tasks \['clips', 'sounds'\]; task is None, choose one"):
        stored.read_pools([run], macs=1)


@pytest.mark.parametrize(
    ("arrays", "settings", "told"),
    [
        ({}, {"macs": 1}, "no predictions at all.*Take an arm that classifies"),
        ({"logits": np.zeros((4, 2), np.float32)}, {"macs": 1}, r"no logits with one label a row.*\(it has logits\)"),
        (None, {}, "does not say what a sample costs.*macs is null; expected multiply-adds"),
        (None, {"macs": 1, "protocol": "probe"}, "no runs of protocol 'probe'; expected one of null"),
    ],
)
def test_an_arm_that_cannot_be_a_member_says_why_in_one_line(tmp_path, arrays, settings, told):
    with pytest.raises(ValueError, match=told) as error:
        stored.read_pools([make_run(tmp_path, "arm", arrays=arrays)], **settings)
    assert "\n" not in str(error.value)


def test_arms_without_a_seed_in_common_and_rows_that_differ_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the arms a, b have no seed in common"):
        stored.read_pools([make_run(tmp_path, "a", 0), make_run(tmp_path, "b", 1)], macs=1)
    arrays = {"labels/test": np.zeros(ROWS, int), "logits/test": np.ones((ROWS, CLASSES), np.float32)}
    other = make_run(tmp_path, "c", 0, arrays=arrays)
    with pytest.raises(ValueError, match="labels of two runs differ"):
        stored.read_pools([make_run(tmp_path, "d", 0), other], macs=1)


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_costs_that_a_row_of_the_plan_gives_are_those_of_its_networks(preset):
    plan = load_plan(preset)
    for row in plan.evaluate.values():
        settings = compose(preset, system=row.system, overrides=row.overrides)["system"]["evaluate"]
        if row.stage != "finetune" or not settings["_target_"].endswith("committees.evaluate"):
            continue
        for tuned in (each for each in plan.finetune.values() if each.comparison == row.runs):
            system = compose(preset, system=tuned.system, overrides=tuned.overrides)["system"]
            block = system["downstream"][settings["protocol"]]
            assert count_macs(bind(block["model"], "model")(), block["data"]["fit_to"]) == settings["macs"], tuned.arm
