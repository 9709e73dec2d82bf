import csv
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_modules import pretrained
from lightning_modules.datamodules.labelled import EpochSteps, LabelledImages, MemberBatches
from lightning_modules.ensembling.members import Members, Normalise, build_network, resize
from lightning_modules.layers.published import load_strictly

COPIES = 2
SHARED = {"copies": COPIES, "names": [], "num_classes": 4, "how": "auto"}
PIXELS = {"pixel_scale": 255, "pixel_mean": [0.5], "pixel_std": [0.25]}
POOLS = {
    "mlp": {"family": "mlp", "widths": [5, 7], "depth": 2, "image_shape": [1, 8, 8], "resolutions": [8], **PIXELS},
    "convnet": {
        "family": "convnet",
        "widths": [3, 4],
        "depth": None,
        "image_shape": [1, 12, 12],
        "resolutions": [12, 8],
        **PIXELS,
    },
    "wide_resnet": {
        "family": "wide_resnet",
        "widths": [1],
        "depth": 10,
        "image_shape": [3, 16, 16],
        "resolutions": [16],
        "pixel_scale": 255,
        "pixel_mean": [0.5] * 3,
        "pixel_std": [0.25] * 3,
    },
}
RECIPE = {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 0.01, "schedule": "cosine", "warmup": 0.0}


def pool(name, **changes):
    torch.manual_seed(0)
    module = Members(**{**SHARED, **POOLS[name], **changes})
    module.recipe = RECIPE
    return module


def dataset(name, rows=16):
    torch.manual_seed(1)
    images = torch.randint(0, 256, (rows, *POOLS[name]["image_shape"]), dtype=torch.uint8)
    return images, torch.randint(0, 4, (rows,))


def training_batch(name):
    return MemberBatches(*dataset(name), seed=0, copies=COPIES, batch_size=8)[0, 0]


class Data(LabelledImages):
    """The same images as every split, in batches of one size."""

    def __init__(self, name, batch_size):
        self.images, self.labels = dataset(name)
        self.batch_size = batch_size

    def evaluation_batches(self, split):
        for images, labels in zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True):
            yield {"images": images, "labels": labels}


def predictions(module, name, batch_size=16):
    return module.predictions(Data(name, batch_size), torch.device("cpu"))


def train(module, name, steps):
    optimizer = module._optimizer()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module.training_step(training_batch(name))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", POOLS)
def test_each_parameter_gets_a_gradient(name):
    module = pool(name)
    module.training_step(training_batch(name)).backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("name", POOLS)
def test_thirty_steps_on_one_batch_lower_the_loss_and_the_seed_fixes_it(name):
    losses = train(pool(name), name, 30)
    assert losses[-1] < 0.5 * losses[0]
    assert train(pool(name), name, 30) == losses


def test_the_gradient_of_a_member_is_that_of_its_own_mean_loss():
    module, batch = pool("convnet"), training_batch("convnet")
    alone = module.member_modules()["convnet-w4#1"]
    F.cross_entropy(alone(batch["images"][1]), batch["labels"][1]).backward()
    module.training_step(batch).backward()
    together = module.stacks["convnet-w4"].members[1]
    for (name, expected), found in zip(alone.network.named_parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_copies_start_from_different_weights():
    first, second = (m.network.layers[0].weight for m in list(pool("mlp").member_modules().values())[:2])
    assert not first.equal(second)


@pytest.mark.parametrize("name", POOLS)
def test_predictions_do_not_depend_on_the_batch(name):
    module = pool(name)
    train(module, name, 2)
    together = predictions(module, name)
    alone = predictions(module, name, batch_size=1)
    assert together.keys() == alone.keys()
    for key, value in together.items():
        torch.testing.assert_close(alone[key], value, rtol=1e-5, atol=1e-5)


def test_predictions_are_those_of_the_members_alone():
    module = pool("convnet")
    found = predictions(module, "convnet")
    images, labels = dataset("convnet")
    assert found["labels/test"].equal(labels)
    for name, member in module.member_modules().items():
        expected = member.eval()(images)
        torch.testing.assert_close(found[f"logits/{name}/test"], expected)
        smaller = member.network(resize(member.normalise(images), 8))
        torch.testing.assert_close(found[f"logits/{name}/val@8"], smaller)


@pytest.mark.parametrize("name", POOLS)
def test_exported_weights_make_members_that_give_the_same_logits(name):
    module = pool(name)
    train(module, name, 2)
    expected, weights, images = predictions(module, name), module.export(), dataset(name)[0]
    torch.manual_seed(5)
    for label, member in Members(**{**SHARED, **POOLS[name]}).member_modules().items():
        own = f"members.{label}."
        load_strictly(member, {k.removeprefix(own): x for k, x in weights.items() if k.startswith(own)}, label)
        torch.testing.assert_close(member.eval()(images), expected[f"logits/{label}/test"])


def test_hub_members_answer_at_their_own_resolutions(monkeypatch):
    monkeypatch.setattr(pretrained, "load", lambda name: build_network("convnet", 3, None, (3, 16, 16), 4))
    hub = {"family": "hub", "widths": [], "depth": None, "copies": 1, "names": ["owner/a-1.0", "owner/b"]}
    pixels = {"pixel_scale": 255, "pixel_mean": [0.5] * 3, "pixel_std": [0.25] * 3}
    module = Members(**hub, image_shape=[3, 16, 16], num_classes=4, resolutions=[[8], [12, 16]], **pixels)
    found = module.predictions(Data("wide_resnet", 16), torch.device("cpu"))
    assert {key for key in found if key.endswith("test") or "test@" in key} == {
        "labels/test",
        "logits/a-1_0#0/test",
        "logits/b#0/test",
        "logits/b#0/test@16",
    }
    assert [(m["native"], list(m["macs"])) for m in module.facts()["members"]] == [("8", ["8"]), ("12", ["12", "16"])]


def test_an_exported_member_is_an_ordinary_state_dict():
    module = pool("convnet")
    prefix = "members.convnet-w3#1.network."
    weights = {key.removeprefix(prefix): x for key, x in module.export().items() if key.startswith(prefix)}
    network = build_network("convnet", 3, None, (1, 12, 12), 4)
    network.load_state_dict(weights)
    assert all(x.is_contiguous() for x in weights.values())


@pytest.mark.parametrize("how", ["batched", "vmap", "loop"])
def test_export_does_not_depend_on_how_members_are_computed(how):
    module, expected = pool("mlp", how=how), pool("mlp").export()
    assert module.export().keys() == expected.keys()
    assert all(x.equal(expected[key]) for key, x in module.export().items())


def test_facts_name_size_and_cost():
    facts = pool("convnet").facts()
    assert facts["num_classes"] == 4
    assert [member["name"] for member in facts["members"]] == [
        "convnet-w3#0",
        "convnet-w3#1",
        "convnet-w4#0",
        "convnet-w4#1",
    ]
    # 12 pixels shrink to 6, 3 and 3; 1 > 4 > 8 > 8 channels; four classes
    cost = 9 * (6 * 6 * 1 * 4 + 3 * 3 * 4 * 8 + 3 * 3 * 8 * 8) + 8 * 4
    member = facts["members"][3]
    assert member["macs"]["12"] == cost
    assert member["macs"]["8"] < cost
    assert member["native"] == "12"
    assert {key: member[key] for key in ("family", "width", "depth", "copy")} == {
        "family": "convnet",
        "width": 4,
        "depth": None,
        "copy": 1,
    }


def test_machine_facts_are_times():
    times = pool("mlp").machine_facts(Data("mlp", 1))
    assert len(times) == 4
    assert all(value > 0 for value in times.values())


# Lightning's own use of torch's tree specifications
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*many workers")
def test_trained_by_lightning_with_the_loss_of_each_width_logged(tmp_path):
    module = pool("mlp")
    batches = MemberBatches(*dataset("mlp"), seed=0, copies=COPIES, batch_size=4)
    loader = DataLoader(batches, sampler=EpochSteps(len(batches)), batch_size=None)
    logger = CSVLogger(tmp_path)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=2, log_every_n_steps=3, accelerator="cpu", logger=logger, **quiet)
    trainer.fit(module, loader)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["step"] for row in found] == ["2", "5"]  # two epochs of four steps, every third is logged
    assert all(float(row[f"pretrain/mlp-h{width}/loss"]) > 0 for row in found for width in (5, 7))


def test_normalisation():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    found = Normalise(255, [0.5], [0.25])(images)
    assert found.flatten().tolist() == [-2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "vit"}, "family \\('vit'\\)"),
        ({"names": ["google/efficientnet-b0"]}, "for family 'hub' only"),
        ({"depth": None}, "depth \\(None\\)"),
        ({"resolutions": [8, 6]}, "one resolution only"),
        ({"resolutions": [6]}, "native resolution \\(6\\) must be the height"),
        ({"family": "hub"}, "hub members have no widths"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        pool("mlp", **changes)
