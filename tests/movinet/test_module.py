"""How MoViNets are trained and judged: the official optimiser and schedule, members, offsets, metrics."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.movinet.architecture import Architecture, cost
from lightning_modules.movinet.clips import LabelledClips
from lightning_modules.movinet.module import KerasRMSprop, MoViNets, cosine_from_start
from stages.composing import compose
from stages.plan import load_plan

ARCHITECTURE = dict(
    stem=8, project=8, dense=8, blocks=[dict(width=8, stride=2, layers=["8@3x3x3"])],
)  # fmt: skip
STREAM = dict(form="2plus1d", causal=True, squeeze="2plus3d")


def module(**options) -> MoViNets:
    torch.manual_seed(0)
    options = {"frames": 6, "size": 16, "dropout": 0.0, "drop_path": 0.0, **options}
    made = MoViNets(architecture=ARCHITECTURE, num_classes=4, **options)
    for name, parameter in made.named_parameters():
        if name.endswith("scale"):
            parameter.data.fill_(0.5)
    return made


def clips(*lead: int) -> torch.Tensor:
    return torch.randint(0, 256, (*lead, 3, 6, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_rmsprop_is_that_of_keras():
    """Two steps by hand: L2 term, clipping, epsilon within the root, momentum on the scaled gradient."""
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    lr, rho, momentum, eps, decay = 0.5, 0.9, 0.8, 1.0, 0.1
    optimizer = KerasRMSprop([weight], lr=lr, rho=rho, momentum=momentum, eps=eps, weight_decay=decay, clip=1.0)
    expected, square, move = np.array([3.0, 4.0]), np.zeros(2), np.zeros(2)
    for gradient in ([0.1, -0.2], [5.0, 1.0]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        g = np.array(gradient) + decay * expected
        g = g * min(1.0, 1.0 / np.linalg.norm(g))
        square = rho * square + (1 - rho) * g**2
        move = momentum * move + lr * g / np.sqrt(square + eps)
        expected = expected - move
        assert weight.detach().numpy() == pytest.approx(expected, rel=1e-6)


def test_the_schedule_is_that_of_tensorflow_models():
    """LinearWarmup ends at the value that the cosine has there: 2,145 of 85,785 steps."""
    factor = cosine_from_start(2145, 85785)
    top = 0.5 * (1 + np.cos(np.pi * 2145 / 85785))
    assert factor(0) == 0
    assert factor(1000) == pytest.approx(top * 1000 / 2145)
    assert factor(2145) == pytest.approx(top)
    assert factor(42892) == pytest.approx(0.5, abs=1e-4)
    assert factor(85785) == pytest.approx(0, abs=1e-12)
    recipe = compose("paper", system="movinet")["system"]["pretrain"]
    assert round(recipe["warmup"] * 85785) == 2145


def test_kernels_are_decayed_but_that_of_the_classifier():
    made = module(**STREAM, frames=4)
    made.recipe = {"lr": 1.0}
    decayed, others = made.parameter_groups()
    names = {id(p): name for name, p in made.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in (decayed, others))
    assert {name for name in decayed if "conv" not in name and "squeeze" not in name} == {"networks.0.dense.weight"}
    assert "networks.0.classifier.weight" in others
    assert all(name.endswith(("bias", "scale", "weight")) for name in others)


def test_two_members_read_frames_one_apart_and_their_logits_are_averaged():
    made, video = module(**STREAM, members=2, stride=2).eval(), clips(3)
    pixels = video / 255
    with torch.inference_mode():
        first, second = made.networks[0](pixels[:, :, 0::2]), made.networks[1](pixels[:, :, 1::2])
        assert torch.equal(made.member_logits(video), torch.stack([first, second]))
        assert torch.equal(made(video), torch.stack([first, second]).mean(0))


def test_each_member_learns_from_its_own_clips_alone():
    made, video, labels = module(**STREAM, members=2), clips(2, 3), torch.tensor([[0, 1, 2], [3, 0, 1]])
    made.training_step({"video": video, "labels": labels}).backward()
    own = [p.grad.clone() for p in made.networks[0].parameters()]
    made.zero_grad()
    made.training_step({"video": torch.stack([video[0], video[0]]), "labels": labels}).backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(own, made.networks[0].parameters(), strict=True))


def test_training_begins_at_any_of_the_first_frames():
    made = module(**STREAM, stride=2)
    seen = []
    made.networks[0].forward = lambda x: seen.append(x) or torch.zeros(len(x), 4, requires_grad=True)
    video = clips(2)
    for _ in range(20):
        made.training_step({"video": video, "labels": torch.tensor([0, 1])})
    starts = {tuple(x[0, 0, 0, 0, :3].tolist()) for x in seen}
    assert starts == {tuple((video[0, 0, t, 0, :3] / 255).tolist()) for t in (0, 1)}


def test_facts_say_what_members_cost_together():
    one, two = module(**STREAM, stride=2).facts(), module(**STREAM, stride=2, members=2).facts()
    assert two["macs_per_clip"] == 2 * one["macs_per_clip"] and two["parameters"] == 2 * one["parameters"]
    assert one["peak_bytes"]["8"] == one["peak_bytes"]["64"]
    base = module(form="2plus1d").facts()
    assert base["peak_bytes"]["64"] > 7 * base["peak_bytes"]["8"]


def test_arms_of_equal_cost_cost_the_same_within_a_hundredth():
    """Counted by the closed form: what the claims of the tiny plan compare."""

    def macs(arm):
        row = load_plan("tiny").pretrain[arm]
        model = compose("tiny", system="movinet", overrides=row.overrides)["system"]["model"]
        one = cost(
            Architecture.parse(model["architecture"]), frames=model["frames"] // model["stride"], size=model["size"],
            num_classes=model["num_classes"], form=model["form"], causal=model["causal"], squeeze=model["squeeze"],
        )  # fmt: skip
        return model["members"] * one.macs

    for first, second in [
        ("movinet-half", "movinet-causal"),
        ("movinet-half", "movinet-half_wide"),
        ("movinet-k13", "movinet"),
        ("movinet-k33", "movinet"),
    ]:
        assert macs(first) == pytest.approx(macs(second), rel=0.01)


class Shape(LabelledClips):
    num_classes = 4
    video_shape = (3, 6, 16, 16)
    train_frames = 4  # as `ClipFiles` has it

    def __init__(self):
        self.copies = None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(frames=8), r"clips of shape \(3, 6, 16, 16\) .* are for \(3, 8, 16, 16\)"),
        (dict(members=2), "model.members is 2, but data.copies is None: set both alike"),
        (dict(stride=5), r"data.train_frames is 4, expected at least model.stride \(5\)"),
    ],
)
def test_data_that_does_not_fit_is_refused(options, message):
    module().check_data(Shape())
    with pytest.raises(ValueError, match=message):
        module(**options).check_data(Shape())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(stride=7), r"stride is 7, expected at most frames \(6\)"),
        (dict(targets=[[3, "verb"], ["noun", 1]]), "expected names and numbers, as in"),
        (dict(targets=[["verb", "noun"]]), "expected names and numbers, as in"),
        (dict(targets=[["verb"]]), r"targets is \[\['verb'\]\], expected names and numbers, as in"),
        (dict(targets=[["verb", 4], ["noun", 0]]), "expected names and numbers, as in"),
        (dict(targets=[["verb", 3], ["noun", 2]]), r"num_classes is 4, expected the sum of those in targets"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_a_recipe_has_the_keys_of_its_optimiser_and_no_other(preset):
    recipe = compose(preset, system="movinet")["system"]["pretrain"]
    assert MoViNets.check_recipe(recipe, "pretrain") == recipe
    if preset == "paper":
        for key in ("rho", "momentum", "eps", "clip_each"):
            lacking = {name: value for name, value in recipe.items() if name != key}
            with pytest.raises(ValueError, match=f"pretrain: the key '{key}' is missing; rho, momentum"):
                MoViNets.check_recipe(lacking, "pretrain")
    else:
        with pytest.raises(ValueError, match=r"pretrain: the key 'eps' has no effect; .* belong to optimizer rmsprop"):
            MoViNets.check_recipe({**recipe, "eps": 1.0}, "pretrain")
    assert MoViNets.check_recipe({"epochs": 0}, "pretrain") == {"epochs": 0}


def test_norms_keep_running_means_as_the_recipe_says():
    found = {name for name, m in module(norm_momentum=0.1).named_modules() if getattr(m, "momentum", None) == 0.1}
    official = {name for name, m in module().named_modules() if getattr(m, "momentum", None) == 0.01}
    assert found == official and found


def test_more_classes_than_logits_are_refused(monkeypatch):
    monkeypatch.setattr(Shape, "num_classes", 5)
    with pytest.raises(ValueError, match=r"model.num_classes is 4, but the data has 5 classes"):
        module().check_data(Shape())
