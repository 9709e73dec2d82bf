"""Tasks in turn: which task a step learns, what it is shown, and that a broken training goes on as if it had not been.

That processes cut the same batches and that an epoch is resumed is tested with all data modules (`test_portions`).
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import seed_everything
from torch import nn

from lightning_modules import settings, training
from lightning_modules.base import PaperModule
from lightning_modules.datamodules.alternating import Alternating, Schedule, show, shrink
from lightning_modules.history import History
from tests.datamodules.test_portions import alternating
from tests.test_training import machine
from tests.test_watched import Here, Noted

OFFICIAL = {"image text": 1, "image": 1, "video text": 12, "video": 5, "video audio text": 12, "audio": 8}


def schedule(kind, weights=(1.0, 3.0), intervals=(1, 1), steps=50, seed=0):
    return Schedule(kind, ["a", "b", "c", "d", "e", "f"][: len(weights)], weights, intervals, steps, seed)


def taken(each, epochs=1):
    """The task of each step, one after another."""
    return [name for epoch in range(epochs) for step in range(each.steps) for name in each.at(epoch, step)]


def test_rounds_leave_out_tasks_as_the_official_loop_does():
    """Shares of steps of the released configuration: of 299 steps in 120 rounds."""
    each = Schedule("interval", list(OFFICIAL), [1.0] * 6, list(OFFICIAL.values()), 299, 0)
    assert len(each.period) == 299
    assert np.bincount(each.period).tolist() == [120, 120, 10, 24, 10, 15]
    assert taken(each)[:8] == ["image text", "image"] * 4
    assert taken(each)[8:11] == ["image text", "image", "video"], "the fifth round"
    assert each.share("audio") == 15 / 299


def test_rounds_go_on_from_one_epoch_to_the_next():
    one = schedule("interval", weights=(1.0, 1.0, 1.0), intervals=(1, 2, 3), steps=100)
    cut = schedule("interval", weights=(1.0, 1.0, 1.0), intervals=(1, 2, 3), steps=7)
    assert taken(cut, epochs=14) == taken(one)[:98]
    assert taken(schedule("alternate", intervals=(3, 5), steps=5)) == ["a", "b", "a", "b", "a"]


def test_drawn_tasks_have_their_weights_and_are_the_same_for_every_process():
    each = schedule("weighted", weights=(1.0, 3.0, 0.0), intervals=(1, 1, 1), steps=4000)
    names = taken(each)
    assert names.count("a") / 4000 == pytest.approx(0.25, abs=0.02) and names.count("c") == 0
    assert names == taken(schedule("weighted", weights=(1.0, 3.0, 0.0), intervals=(1, 1, 1), steps=4000))
    assert names != taken(schedule("weighted", weights=(1.0, 3.0, 0.0), intervals=(1, 1, 1), steps=4000, seed=1))
    assert taken(each) != [name for step in range(4000) for name in each.at(1, step)]


@pytest.mark.parametrize("kind", ["joint", "alternate", "interval", "weighted"])
def test_what_was_learnt_before_a_step_is_counted(kind):
    each = schedule(kind, weights=(1.0, 2.0, 1.0), intervals=(1, 2, 3), steps=11)
    seen = dict.fromkeys("abc", 0)
    for epoch in range(3):
        for step in range(11):
            assert each.before(epoch, step) == seen
            for name in each.at(epoch, step):
                seen[name] += 1


def test_a_schedule_that_cannot_be_is_one_line():
    with pytest.raises(ValueError, match=r"weights \(0.0, 0.0\) must have one above 0"):
        schedule("weighted", weights=(0.0, 0.0))
    with pytest.raises(
        ValueError, match=r"intervals \(7919, 7907\) repeat after 62615533 rounds only, .* 1000000: take"
    ):
        schedule("interval", intervals=(7919, 7907))


def test_a_task_shows_all_its_rows_before_it_shows_one_again(prepared):
    """Of 24 texts in batches of 8, three steps that learn texts see each of them once, whatever is between them."""
    data = alternating(prepared("world_many"), "interval")
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, accumulate_grad_batches=1, current_epoch=0)
    loader, seen = data.train_dataloader(), []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        seen += [batch["texts"]["attention_mask"] for batch in loader if "texts" in batch]
    masks = [mask.sum(1).sort().values for mask in (torch.cat(seen[:3]), torch.cat(seen[3:6]))]
    assert len(seen) >= 6 and torch.equal(*masks)


def test_evaluation_takes_turns_over_all_rows_and_tells_the_task(prepared):
    data = alternating(prepared("world_many"), "alternate")
    batches = list(data.evaluation_batches("train"))
    assert [batch["task"] for batch in batches[:4]] == ["images", "texts", "clips", "images"]
    rows = {name: sum(len(b["labels"]) for b in batches if b["task"] == name) for name in data.tasks}
    assert rows == {"images": 40, "texts": 24, "clips": 40}
    assert {batch["task"] for batch in data.evaluation_batches("train", "clips")} == {"clips"}
    assert data.batch_size == 8 and alternating(prepared("world_many"), "joint").batch_size == 24


def test_a_resolution_is_means_over_areas_and_frames_evenly_spread():
    video = torch.arange(8, dtype=torch.uint8)[None, None, :, None, None].repeat(2, 3, 1, 4, 4)
    shown = show({"video": video, "labels": torch.zeros(2)}, {"frames": 3, "height": 2, "width": 4, "drop": 0.5})
    assert shown["video"].shape == (2, 3, 3, 2, 4) and shown["video"][0, 0, :, 0, 0].tolist() == [0, 3, 7]
    image = torch.tensor([[0, 2, 10, 20], [4, 6, 30, 40]], dtype=torch.uint8)[None, None]
    assert shrink(image, (1, 2)).flatten().tolist() == [3, 25]
    assert torch.equal(shrink(image, (2, 4)), image)


@pytest.mark.parametrize(
    ("resolution", "message"),
    [
        ({"frames": 9, "height": 4, "width": 4}, r"a resolution has 9 frames, but the clips have 8: take at most"),
        ({"frames": 8, "height": 5, "width": 4}, r"a resolution has 5 x 4 pixels, but the pictures 4 x 4"),
    ],
)
def test_a_resolution_finer_than_what_is_stored_is_one_line(resolution, message):
    with pytest.raises(ValueError, match=message):
        show({"video": torch.zeros(1, 3, 8, 4, 4, dtype=torch.uint8)}, resolution)


WRONG = {
    "tasks.images.part": ("pictures", r"data.tasks.images.part is 'pictures', which is no part of the data set"),
    "tasks.images.data": ({}, r"data.tasks.images.data has no `_target_`, expected the name of a data module"),
    "tasks.images.interval": (0, r"data.tasks: images.interval is 0, expected greater than or equal to 1"),
    "tasks.images.data.colour": (1, r"data.tasks.images.data: unknown key 'colour'"),
    "trained": (["image"], r"data.trained names 'image'; did you mean 'images'"),
    "schedule": ("random", r"data.schedule is 'random', expected 'joint', 'alternate', 'interval' or 'weighted'"),
    "splits.judge": ({"source": "val", "rows": 3}, r"splits has \['train', 'judge'\], expected some of train"),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_setting_is_one_line(prepared, key):
    home = "lightning_modules.datamodules"
    task = {"part": "images", "weight": 1.0, "interval": 1, "resolutions": None,
            "data": {"_target_": f"{home}.labelled.LabelledImages"}}  # fmt: skip
    block = {"_target_": f"{home}.alternating.Alternating", "splits": {"train": {"source": "val", "rows": 40}},
             "batch_size": 8, "evaluation_batch_size": 8, "schedule": "joint", "steps": 7,
             "tasks": {"images": task}}  # fmt: skip
    value, message = WRONG[key]
    *path, last = key.split(".")
    place = block
    for name in path:
        place = place[name]
    place[last] = value
    with pytest.raises(ValueError, match=message) as caught:
        settings.bind(block, "data", folder=prepared("world_many"), seed=1)()
    assert "\n" not in str(caught.value)


class Readers(PaperModule):
    """A linear reader for each task, whose losses depend on everything that a batch shows, and on dropout."""

    def __init__(self, stop_at=None):
        super().__init__()
        seed_everything(0, verbose=False)
        self.pictures, self.clips, self.words = nn.Linear(3, 32), nn.Linear(3, 4), nn.Embedding(200, 32)
        self.stop_at = stop_at
        self.recipe = {"epochs": 3, "optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.0, "warmup": 0.0,
                       "schedule": "cosine"}  # fmt: skip

    def training_step(self, batch, batch_idx=0):
        if self.stop_at == self.global_step:
            raise KeyboardInterrupt
        losses = {name: getattr(self, f"of_{name}")(columns) for name, columns in batch.items()}
        self.log_terms({f"pretrain/{name}": loss for name, loss in losses.items()})
        rest = sum(0 * parameter.sum() for parameter in self.parameters())
        return sum(losses.values()) + rest

    def of_images(self, columns):
        means = nn.functional.dropout(columns["images"].float().mean((2, 3)) / 255, 0.2)
        return nn.functional.cross_entropy(self.pictures(means), columns["labels"])

    def of_clips(self, columns):
        means = columns["video"].float().mean((2, 3, 4)) / 255 * (1 - columns["drop_rate"])
        return nn.functional.cross_entropy(self.clips(means), columns["labels"])

    def of_texts(self, columns):
        return self.words(columns["token_ids"]).mean().square() + (columns["targets"] >= 0).float().mean()


def trained(data, folder, stop_at=None, **changes):
    """The module after training, or after it was stopped, and the rows of its history."""
    module = Readers(stop_at)
    module.max_steps = lambda data: -1
    trainer = machine(log_every_n_steps=1, checkpoint_seconds=0.0, **changes)
    kept = History()
    job = Here({"trainer": trainer}, "pretrain", "arm", "paper", "system", "tiny", 0, folder, folder, folder)
    try:
        training.fit(module, data, job, Noted(), kept)
    except (KeyboardInterrupt, SystemExit):
        assert stop_at is not None
    return module.state_dict(), kept.rows


class Resumed(Noted):
    def resume(self, at_step):
        self.at_step = at_step


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*many workers", "ignore:The number of training",
                            "ignore:.*`max_epochs`", "ignore:.*resumable")  # fmt: skip
@pytest.mark.parametrize("kind", ["joint", "interval", "weighted"])
def test_a_training_that_was_stopped_within_an_epoch_ends_as_one_that_was_not(prepared, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("tests.datamodules.test_alternating.Noted", Resumed)
    folder = prepared("world_many")
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    weights, rows = trained(alternating(folder, kind), tmp_path / "whole")
    trained(alternating(folder, kind), tmp_path / "stopped", stop_at=10)
    assert list((tmp_path / "stopped").glob("last-*.ckpt"))
    resumed, others = trained(alternating(folder, kind), tmp_path / "stopped")
    assert weights.keys() == resumed.keys() and all(torch.equal(weights[name], x) for name, x in resumed.items())
    assert rows == others and len(rows) == 3 * 7
    assert isinstance(alternating(folder, kind), Alternating)
