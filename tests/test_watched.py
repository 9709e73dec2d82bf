"""A training that is watched is the training that it would have been: validation, averages, milestones, logging."""

import csv
import functools
import itertools
import math
import multiprocessing
import os
import random
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from pytorch_lightning import Trainer, seed_everything

from lightning_modules import history, settings, training, watching
from lightning_modules.base import AnyRecipe, PaperModule
from lightning_modules.datasets import glue
from lightning_modules.files import ROOT, sha256
from lightning_modules.history import History
from lightning_modules.runs import find_runs
from lightning_modules.tracking import records
from lightning_modules.validation import check_watched, judged, untouched, validated
from lightning_modules.watching import FETCH, STEP, Stopwatch, Watch
from stages.composing import compose
from stages.plan import PRESETS, load_plan
from tests.conftest import free_port
from tests.test_contract import CHOSEN, PLAN, composed, instantiate_seeded, lightened
from tests.test_training import SMALL, arm, files, inputs, machine  # noqa: F401  (fixtures)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",  # Lightning's own use of torch
    "ignore:.*many workers",
    "ignore:The number of training batches",
    "ignore:.*`max_epochs`",
)
STEPS, ROWS = 5, 20


class Noted(records.RunRecord):
    """A run's record that keeps what is logged, and writes no file."""

    def __init__(self):
        self.folder, self.meta, self.points = Path(), {"experiment": "paper", "key": "key"}, {}

    def log(self, metrics, step):
        self.points.setdefault(step, {}).update(metrics)


class Here(training.Job):
    """A job whose checkpoints and milestones lie in its output folder."""

    folder = property(lambda self: self.out)


def fit(module, data, folder, recipe, **changes):
    """Train a few steps; the history's rows, and the record."""
    seed_everything(0, verbose=False)
    module.recipe = {**module.recipe, **recipe}
    module.max_steps = lambda data: STEPS
    trainer = machine(log_every_n_steps=1, checkpoint_seconds=1e6, **changes)
    kept, record = History(), Noted()
    job = Here({"trainer": trainer}, "pretrain", "arm", "paper", "system", "tiny", 0, folder, folder, folder)
    training.fit(module, data, job, record, kept)
    return kept.rows, record


PARTS = ["maskalign/finetune", "maskalign/probe", "clip_vip/finetune", "image_side/drawing", "unified_t2i_i2t/second"]
CASES = [*CHOSEN, *PARTS]
QUICK = ("clip_vip", "committees", "imp_texts", "masked_autoencoder")  # trained twice without the mark slow
TRAINED = [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


def drop(block):
    """Let whatever may be dropped in training be dropped, with a chance of a tenth."""
    for key, value in block.items():
        if isinstance(value, dict):
            drop(value)
        elif key.endswith(("dropout", "dropout_prob", "drop_path")):
            block[key] = 0.1


@pytest.fixture
def build(request, prepared):
    """Makes network and data of a case: a system, one of its protocols, or another stage of it."""
    case = request.node.callspec.params["case"]
    system, _, part = case.partition("/")
    row = PLAN.pretrain["unified-sequence" if part == "second" else CHOSEN[system]]
    config = composed(row)
    if part in ("finetune", "probe"):
        block = dict(config["downstream"][part])
        config = {"model": block.pop("model"), "data": block.pop("data"), "pretrain": block}
    config = lightened(config)

    def build():
        drop(config["model"])
        module = instantiate_seeded(config)
        if row.start and not part:
            module.start_from(instantiate_seeded(composed(PLAN.pretrain[row.start])).export())
        if part == "drawing":
            module.reading_epochs, module.given_centroids = 0, True
        data = instantiate(config["data"], folder=prepared(row.dataset), seed=0, _convert_="all", _recursive_=False)
        if not part:
            module.check_data(data)  # as before each training
        return module, data

    return build


@pytest.mark.parametrize("case", TRAINED)
def test_validation_changes_nothing_of_a_training(case, build, tmp_path):
    """Weights, predictions and all other columns are the same; the curves have points where they are due."""
    found = []
    for every in (None, {"steps": 2}):
        module, data = build()
        rows, _ = fit(module, data, tmp_path, {"validate_every": every, "validate_rows": ROWS})
        predictions = module.predictions(data, torch.device("cpu")) if "unified" not in case else {}
        found.append((module.state_dict(), predictions, rows))
    (weights, predictions, rows), (watched_weights, watched_predictions, watched_rows) = found
    assert weights.keys() == watched_weights.keys() and predictions.keys() == watched_predictions.keys()
    assert all(torch.equal(weights[name], watched_weights[name]) for name in weights)
    assert all(torch.equal(predictions[name], watched_predictions[name]) for name in predictions)
    curves = {
        step: {name for name in row if name.startswith("validation/")}
        for step, row in watched_rows.items()
        if any(name.startswith("validation/") for name in row)
    }
    assert list(curves) == [2, 4] and curves[2] == curves[4]
    others = {step: {k: v for k, v in row.items() if k not in curves[2]} for step, row in watched_rows.items()}
    assert others == rows
    assert all(row.keys() >= {"lr", "grad_norm"} for step, row in rows.items() if step < STEPS)


def draw():
    """A number of each generator of the process."""
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


@pytest.mark.parametrize("case", CASES)
def test_what_is_validated_is_the_same_each_time_and_leaves_no_trace(case, build):
    module, data = build()
    next(module.children()).eval()  # as a training may have it
    modes = [part.training for part in module.modules()]
    before = {name: x.clone() for name, x in module.state_dict().items()}
    seed_everything(3, verbose=False)
    drawn = draw()
    seed_everything(3, verbose=False)
    twice = []
    for _ in range(2):
        with untouched(module):
            twice.append(validated(module, data, ROWS))
            draw()  # as an augmentation would
    assert draw() == drawn
    assert twice[0] == twice[1] and twice[0]
    assert all(x.ndim == 0 and torch.isfinite(x) for x in twice[0].values())
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(before[name], x) for name, x in module.state_dict().items())


@pytest.mark.parametrize("case", ["classifier"])
def test_the_curves_of_a_classifier_are_its_loss_and_accuracy_on_the_split_val(case, build):
    module, data = build()
    with untouched(module):
        found, first = validated(module, data), validated(module, data, 10)
        batches = list(data.evaluation_batches("val"))
        images, labels = (torch.cat([batch[name] for batch in batches]) for name in ("images", "labels"))
        logits = module(images)
    assert found["loss"].item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found["accuracy"].item() == pytest.approx((logits.argmax(-1) == labels).double().mean().item(), rel=1e-6)
    few = torch.nn.functional.cross_entropy(logits[:10], labels[:10])
    assert first["loss"].item() == pytest.approx(few.item(), rel=1e-5)


@pytest.mark.parametrize("case", ["clip_vip/finetune"])
def test_reciprocal_ranks_of_features_that_agree_are_one(case, build, monkeypatch):
    module, data = build()
    classes = int(data._columns("val")["labels"].max()) + 1
    codes = torch.nn.functional.one_hot(torch.arange(classes)).float()

    def features(batch):
        return {"V": codes[batch["labels"]], "C": codes[batch["labels"]]}

    monkeypatch.setattr(module, "features", features)
    with untouched(module):
        assert validated(module, data)["reciprocal_rank C"] == 1
    monkeypatch.setattr(module, "features", lambda batch: {"V": codes[batch["labels"]], "C": -codes[batch["labels"]]})
    with untouched(module):
        rank = validated(module, data)["reciprocal_rank C"].item()
    assert rank == pytest.approx(1 / len(data.rows["val"][1])), "each own video is the last one"


def test_accumulated_batches_are_one_step(prepared, tmp_path):
    config = composed(PLAN.pretrain["maskalign-teacher"])
    module = instantiate_seeded(config)
    data = instantiate(config["data"], folder=prepared("world_graded"), seed=0, _convert_="all", _recursive_=False)
    recipe = {"validate_every": {"steps": 2}, "validate_rows": ROWS}
    rows, record = fit(module, data, tmp_path, recipe, accumulate=2)
    assert [step for step, row in rows.items() if "validation/loss" in row] == [2, 4]
    assert sorted(step for step, row in rows.items() if "lr" in row) == list(range(STEPS))
    assert [step for step, point in record.points.items() if "machine/data_share" in point] == list(range(STEPS))


@pytest.mark.parametrize("system", ["unified_t2i_i2t", "clip_vip"])
def test_the_norm_of_a_gradient_is_that_before_it_is_clipped(system, prepared, tmp_path):
    config = composed(row := PLAN.pretrain[CHOSEN[system]])
    data = instantiate(config["data"], folder=prepared(row.dataset), seed=0, _convert_="all", _recursive_=False)
    rows, _ = fit(instantiate_seeded(config), data, tmp_path, {"clip": 1e-3})
    assert all(rows[step]["grad_norm"] > 1e-2 for step in range(STEPS))


def test_what_is_logged_of_a_step_is_its_rate_and_the_norm_of_its_gradient(prepared, tmp_path):
    config = composed(PLAN.pretrain["committees-digits"])
    data = instantiate(config["data"], folder=prepared("digits"), seed=0, _convert_="all", _recursive_=False)
    rows, record = fit(instantiate_seeded(config), data, tmp_path, {"warmup": 0.4})
    rates = [config["pretrain"]["lr"] * share for share in (0.5, 1, 1, 0.75, 0.25)]
    assert [rows[step]["lr"] for step in range(STEPS)] == pytest.approx(rates)

    module, data.trainer = instantiate_seeded(config), None
    module.training_step(next(iter(data.train_dataloader()))).backward()
    norm = math.sqrt(sum(x.grad.double().square().sum().item() for x in module.parameters()))
    assert rows[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    for step in range(STEPS):
        measured = record.points[step]
        assert 0 < measured["machine/samples_per_second"] < 1e6
        assert 0 < measured["machine/data_share"] < 1
        assert 100 < measured["machine/peak_memory_mib"] < 1e5
    assert not [name for row in rows.values() for name in row if name.startswith("machine/")]


def test_the_stopwatch_counts_waiting_and_steps_and_nothing_else(monkeypatch):
    clock = SimpleNamespace(now=7.0)
    monkeypatch.setattr(watching, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    stopwatch = Stopwatch()
    for name, seconds in ((FETCH, 2.0), (STEP, 3.0), ("validation", 50.0), (FETCH, 0.5), (STEP, 0.25)):
        with stopwatch.profile(name):
            clock.now += seconds
    assert stopwatch.seconds == {FETCH: 2.5, STEP: 3.25}


def test_each_point_measures_the_steps_since_the_last_one(monkeypatch):
    """Every fifth step, of a training that goes on from its third. A step is two batches of 8 rows, that is 16 rows."""
    monkeypatch.setattr(watching, "peak_memory", lambda: 300 * 2**20)
    record, stopwatch, module = Noted(), Stopwatch(), Mock(spec=PaperModule, device=torch.device("cpu"))
    stopwatch.seconds = {FETCH: 1000.0, STEP: 1000.0}  # before the training
    trainer = Mock(spec=Trainer, global_step=3, log_every_n_steps=5, datamodule=SimpleNamespace(batch_size=16))
    watch = Watch(record, stopwatch)
    watch.on_train_start(trainer, module)
    for step in range(4, 17):
        for done in (step - 1, step):  # the first of two accumulated batches takes no step
            stopwatch.seconds[FETCH] += 0.5
            stopwatch.seconds[STEP] += step
            trainer.global_step = done
            watch.on_train_batch_end(trainer, module, None, None, 0)
    waited, worked = {4: 2, 9: 5, 14: 5}, {4: 18, 9: 80, 14: 130}  # twice 4 and 5; twice 6 to 10; twice 11 to 15
    assert record.points == {
        step: {
            "machine/samples_per_second": pytest.approx(16 * count / (waited[step] + worked[step])),
            "machine/data_share": pytest.approx(waited[step] / (waited[step] + worked[step])),
            "machine/peak_memory_mib": 300,
        }
        for step, count in ((4, 2), (9, 5), (14, 5))
    }


# --- averages and milestones ------------------------------------------------------------------------------------------


WATCHED = {"pretrain.validate_every": {"steps": 2}}


@pytest.fixture
def keys(monkeypatch):
    """Lets an arm set keys that the system's file leaves out, as a user who writes them there."""
    from tests import test_training

    def composed(preset, **choices):
        overrides = choices.pop("overrides", None) or {}
        further = {key.removeprefix("pretrain."): overrides.pop(key) for key in list(overrides) if key in FURTHER}
        config = compose(preset, overrides=overrides, **choices)
        config.get("system", {}).get("pretrain", {}).update(further)
        return config

    monkeypatch.setattr(test_training, "compose", composed)


FURTHER = ("pretrain.ema", "pretrain.keep_every", "pretrain.validate_every")


@pytest.mark.slow
def test_milestones_are_the_weights_after_those_steps(arm, keys):  # noqa: F811
    arm.train(0, overrides={"pretrain.keep_every": {"epochs": 2}}, out="kept")
    (run,) = find_runs(arm.root / "kept")
    kept = dict(run.milestones())
    assert list(kept) == [4, 8]
    assert kept[8].keys() == run.weights().keys()
    assert all(np.array_equal(kept[8][name], x) for name, x in run.weights().items())
    assert any(not np.array_equal(kept[4][name], x) for name, x in run.weights().items())
    assert set(run.facts["milestones"]) == {"4", "8"}
    path = run.folder / "milestones/step-4/weights.safetensors"
    assert run.facts["milestones"]["4"] == sha256(path)
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"step-4/weights.safetensors has sha256 .* was altered or cut"):
        dict(run.milestones())
    arm.train(0, out="plain")
    plain, watched = files(arm.root / "plain/seed-0"), files(run.folder)
    for name in ("weights.safetensors", "predictions.safetensors", "history.csv", "metrics.json"):
        assert plain[name] == watched[name]


@pytest.mark.slow
def test_an_average_is_that_of_the_weights_of_all_steps(arm, keys):  # noqa: F811
    """Its closed form; what is predicted, kept and validated is what the averages say."""
    decay = 0.7
    arm.train(0, overrides={"pretrain.epochs": 0}, out="start")
    arm.train(0, overrides={"pretrain.keep_every": {"steps": 1}, **WATCHED}, out="plain")
    both = {"pretrain.ema": decay, "pretrain.keep_every": {"steps": 4}, **WATCHED}
    arm.train(0, overrides=both, out="averaged")
    start, plain, averaged = (find_runs(arm.root / name)[0] for name in ("start", "plain", "averaged"))
    expected, kept = start.weights(), {}
    for step, weights in plain.milestones():
        expected = {name: decay * x + (1 - decay) * weights[name] for name, x in expected.items()}
        kept[step] = expected
    for step, weights in [*averaged.milestones(), (8, averaged.weights())]:
        for name, x in weights.items():
            np.testing.assert_allclose(x, kept[step][name], rtol=1e-5, atol=1e-6)
    steps, losses = averaged.history("pretrain/mlp-h4/loss")
    assert np.array_equal(losses, plain.history("pretrain/mlp-h4/loss")[1]), "the training itself is the same"

    config = compose("tiny", system="committees", overrides=SMALL)["system"]
    module = settings.bind(config["model"], "model")()
    data = settings.bind(config["data"], "data", folder=arm.inputs / "digits", seed=0)()
    module.load_export({name: torch.from_numpy(x) for name, x in averaged.weights().items()})
    predicted = module.predictions(data, torch.device("cpu"))
    stored = averaged.predictions()
    for name, x in predicted.items():
        np.testing.assert_allclose(x.numpy(), stored[name], rtol=1e-5, atol=1e-5)
    with untouched(module):
        said = validated(module, data)
    steps, accuracies = averaged.history("validation/mlp-h4#0/accuracy")
    assert steps.tolist() == [2, 4, 6, 8] and accuracies[-1] == pytest.approx(said["mlp-h4#0/accuracy"].item())
    assert averaged.history("validation/mlp-h4/loss")[1][-1] == pytest.approx(said["mlp-h4/loss"].item(), rel=1e-5)


@pytest.mark.slow
def test_a_resumed_training_has_the_same_averages_milestones_and_curves(arm, keys, monkeypatch, capsys):  # noqa: F811
    watched = {"pretrain.ema": 0.9, "pretrain.keep_every": {"steps": 3}, **WATCHED}
    arm.train(0, overrides=watched, out="unbroken")
    arm.store.rename(arm.root / "cleared")
    start = history.History.on_train_batch_start

    def killed(self, trainer, module, batch, index):
        if trainer.global_step == 7:  # after the third checkpoint, a milestone and a validation
            raise RuntimeError("killed")
        return start(self, trainer, module, batch, index)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(history.History, "on_train_batch_start", killed)
        arm.train(0, overrides=watched)
    arm.train(0, overrides=watched)
    assert "resuming at step 6" in capsys.readouterr().err
    resumed, unbroken = files(arm.root / "out/seed-0"), files(arm.root / "unbroken/seed-0")
    assert resumed == unbroken
    assert {name for name in resumed if "milestones" in name} == {
        f"milestones/step-{step}/weights.safetensors" for step in (3, 6)
    }
    rows = list(csv.DictReader(resumed["history.csv"].decode().splitlines()))
    assert [int(row["step"]) for row in rows if row["validation/mlp-h4/loss"]] == [2, 4, 6, 8]


# --- two processes ----------------------------------------------------------------------------------------------------


def train_as_rank(rank, port, folder, dataset, every):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    os.environ.update(address, WORLD_SIZE="2")
    torch.set_num_threads(1)
    config = composed(PLAN.pretrain["maskalign-teacher"])
    config["model"]["encoder"]["drop_path"] = 0.1
    module = instantiate_seeded(config)
    data = instantiate(config["data"], folder=dataset, seed=0, _convert_="all", _recursive_=False)
    recipe = {"validate_every": every, "validate_rows": ROWS}
    rows, _ = fit(module, data, folder, recipe, devices=2, strategy="ddp")
    torch.save({"rows": rows, "weights": module.state_dict()}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_with_two_processes_validation_changes_nothing_and_the_first_one_logs_it(prepared, tmp_path):
    found = {}
    for name, every in (("plain", None), ("watched", {"steps": 2})):
        folder, port = tmp_path / name, free_port()
        folder.mkdir()
        context = multiprocessing.get_context("fork")
        ranks = [
            context.Process(target=train_as_rank, args=(rank, port, folder, prepared("world_graded"), every))
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(200)
        assert [process.exitcode for process in ranks] == [0, 0]
        found[name] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for one, other in itertools.combinations([rank["weights"] for ranks in found.values() for rank in ranks], 2):
        assert all(torch.equal(one[name], other[name]) for name in one)
    rows = found["watched"][0]["rows"]
    assert [step for step, row in rows.items() if "validation/accuracy" in row] == [2, 4]
    plain = {
        step: {name: x for name, x in row.items() if not name.startswith("validation/")} for step, row in rows.items()
    }
    assert plain == found["plain"][0]["rows"] and found["watched"][1]["rows"] == {}


# --- what a user may write --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("validate_every", {"epochs": 0}, "x.yaml: pretrain.validate_every.epochs is 0, expected greater than"),
        ("validate_every", {"hours": 1}, "validate_every.hours is no possible key, expected 'epochs' or 'steps'"),
        ("validate_every", {"epochs": 1, "steps": 1}, "at most 1 item"),
        ("validate_every", {}, "at least 1 item"),
        ("validate_every", 3, "pretrain.validate_every is 3, expected a valid dictionary"),
        ("keep_every", {"steps": 2.5}, "pretrain.keep_every.steps is 2.5, expected a valid integer"),
        ("validate_rows", 0, "pretrain.validate_rows is 0, expected greater than or equal to 1"),
        ("ema", 1.0, "pretrain.ema is 1.0, expected less than 1"),
        ("ema", 0, "pretrain.ema is 0, expected greater than 0"),
    ],
)  # fmt: skip
def test_a_wrong_value_ends_in_one_line(key, value, message):
    with pytest.raises(ValueError, match="pretrain") as caught:
        settings.check({"epochs": 3, key: value}, AnyRecipe, "x.yaml: pretrain", required=())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_validation_needs_rows(arm):  # noqa: F811
    with pytest.raises(ValueError, match=r"pretrain.validate_every is {'epochs': 1}, but data.splits has train, test"):
        check_watched({"validate_every": {"epochs": 1}}, {"train": {}, "test": {}}, "pretrain")
    check_watched({"validate_every": None}, ["train"], "pretrain")
    assert judged(["train", "val", "test"]) == ["test"] and judged(["train", "val"]) == ["val"]
    assert judged(["train"]) == []


@functools.cache
def trainings():
    """Arm, data set, recipe and data of every training of both presets."""
    found = []
    for preset in PRESETS:
        plan = load_plan(preset)
        for row in (*plan.pretrain.values(), *plan.finetune.values()):
            blocks = compose(preset, system=row.system, overrides=row.overrides)["system"]
            tuned = row.arm in plan.finetune
            for name, block in (blocks["downstream"] if tuned else {"pretrain": blocks}).items():
                recipe = block if tuned else block["pretrain"]
                if recipe["epochs"]:
                    found.append((plan, row, name, recipe, block["data"]["splits"]))
    return found


def test_every_training_is_watched_on_rows_that_are_neither_trained_on_nor_judged():
    """No two splits share a row (`draw_splits`), so it suffices that there are three of them."""
    for plan, row, name, recipe, splits in trainings():
        where = f"{row.system}/{plan.preset}.yaml: {name} of {row.arm}"
        check_watched(recipe, splits, where)
        assert bool(recipe["validate_every"]) == (row.dataset not in UNWATCHED), where
        judged_itself = name != "pretrain" or row.arm in {each.runs for each in plan.evaluate.values()}
        judged_itself &= row.system not in JUDGED_ELSEWHERE
        assert "test" in splits or not judged_itself, f"{where}: what is watched would be judged"


def test_few_rows_of_a_papers_training_set_are_held_out():
    """At most two percent; of CIFAR-10 a tenth, which ensembles are selected on, too."""
    held = {}
    for plan, row, _, _, splits in trainings():
        if plan.preset == "paper" and splits["val"]["source"] == splits["train"]["source"]:
            held.setdefault(row.dataset, []).append(splits["val"]["rows"])
    assert {"imagenet", "msr_vtt", "kinetics600", "hd_vila_100m", "bair"} <= held.keys()
    for dataset, counts in held.items():
        if not (rows := ROWS_OF.get(dataset)):
            train = compose("paper", dataset=dataset)["dataset"]["splits"]["train"]
            rows = train if isinstance(train, int) else train.get("rows") or train["most"]
        assert max(counts) <= (0.1 if dataset == "cifar10" else 0.02) * rows, (dataset, counts, rows)


def test_the_readme_names_the_data_sets_that_are_not_watched():
    readme = " ".join((ROOT / "README.md").read_text().split())
    (told,) = re.findall(r"`validate_every` is `null` for (.*?):", readme)
    assert set(re.findall(r"`(\w+)`", told)) == UNWATCHED


# Systems that are judged on what is drawn for it: texts whose labels are in no text that is learnt from.
JUDGED_ELSEWHERE = {"spae_language"}

# Few videos (how many is not known here), and no val of their own among the files that are read.
UNWATCHED = {"queryd", "lvu_relationship", "lvu_way_speaking", "lvu_scene"}

# Rows to train on of data sets whose configuration does not say how many; recalled, not re-read.
ROWS_OF = {
    "hd_vila": 100_000_000, "kinetics400": 215_000, "kinetics600": 366_016, "kinetics700": 522_883, "nuscenes": 4590,
    "epic_kitchens_100": 67_000, "coin": 9000, "violin": 76_000, "how2qa": 34_000, "condensed_movies": 23_000,
    "lvu_relationship": 100, "lvu_way_speaking": 100, "lvu_scene": 100, "queryd": 100, "cifar10": 50_000,
    "realestate10k": 67_000, "capsfusion": 30_720_000, "llava_mix": 665_298, "blip_558k": 558_128,
    "sharegpt4v": 102_025,
    "imagenet_and_books": 1_281_167, "pictures_videos_sounds": 9000, "snli_ve_and_nlvr2": 86_373,
    "esc50": 1600, "audioset": 2_041_789,
    **{f"glue_{task}": rows for task, rows in glue.ROWS.items()},
}  # fmt: skip
