import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.layers.convolution import SmallConvNet, WideResNet
from lightning_modules.layers.mlp import MLP
from lightning_modules.layers.stack import Stack

STEPS, BATCH, SIZE = 60, 6, 3

# In float64 the order of a sum is worth 1e-16, so that after many steps only a wrong gradient is above this.
TOLERANCE = {"rtol": 0, "atol": 1e-9}


def members(name, count=SIZE):
    torch.manual_seed(0)
    build = {
        "mlp": lambda: MLP(64, width=5, depth=2, num_classes=4),
        "convnet": lambda: SmallConvNet(1, width=3, num_classes=4),
        "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5)),
    }[name]
    return [build().double() for _ in range(count)]


def batches():
    torch.manual_seed(1)
    images = torch.randn(STEPS, SIZE, BATCH, 1, 8, 8, dtype=torch.float64)
    return zip(images, torch.randint(0, 4, (STEPS, SIZE, BATCH)), strict=True)


def train(forward, parameters):
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, fused=True)
    for images, labels in batches():
        optimizer.zero_grad()
        logits = forward(images)
        sum(F.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True)).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "how"),
    [("mlp", "batched"), ("mlp", "vmap"), ("mlp", "loop"), ("convnet", "vmap"), ("convnet", "loop")],
)
def test_training_together_is_training_alone(name, how):
    alone = members(name)
    stack = Stack(copy.deepcopy(alone), how)
    train(stack, stack.parameters())
    parameters = [p for member in alone for p in member.parameters()]
    train(lambda images: [member(x) for member, x in zip(alone, images, strict=True)], parameters)

    for expected, found in zip(alone, stack.unstack(), strict=True):
        assert expected.state_dict().keys() == found.state_dict().keys()  # batch norm's running statistics among them
        for key, value in expected.state_dict().items():
            torch.testing.assert_close(found.state_dict()[key], value, **TOLERANCE, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_evaluation_uses_each_members_running_statistics(how):
    alone = members("convnet")
    for k, member in enumerate(alone):
        member.eval().features[0][1].running_mean.fill_(k)
    images = torch.randn(SIZE, BATCH, 1, 8, 8, dtype=torch.float64)
    expected = torch.stack([member(x) for member, x in zip(alone, images, strict=True)])
    found = Stack(copy.deepcopy(alone), how).eval()(images)
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_members_are_independent():
    stack = Stack(members("mlp"))
    images = torch.randn(SIZE, BATCH, 1, 8, 8, dtype=torch.float64)
    stack(images)[1].sum().backward()
    gradient = stack.stacked.layers[0].weight.grad
    assert gradient[1].any()
    assert not gradient[[0, 2]].any()


def test_dropout_differs_between_members():
    first, second, _ = Stack(members("dropout"), "vmap")(torch.ones(SIZE, 2, 1, 8, 8))
    assert not first.equal(second)


def test_auto_chooses_by_what_was_measured():
    assert Stack(members("mlp")).how == "batched"
    assert Stack(members("convnet")).how == "loop"


def test_unequal_members_are_refused():
    pair = [MLP(64, width, 2, 10) for width in (4, 5)]
    with pytest.raises(ValueError, match=r"0 and 1 differ in layers.0.bias: \(4,\) and \(5,\)"):
        Stack(pair)
    with pytest.raises(ValueError, match="differ in"):
        Stack([SmallConvNet(3, 4, 10), WideResNet(10, 1, 10)])


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Stack([])
    with pytest.raises(ValueError, match="must be one of auto"):
        Stack(members("mlp"), "grouped")
    with pytest.raises(ValueError, match="class MLP; got SmallConvNet"):
        Stack(members("convnet"), "batched")
    with pytest.raises(ValueError, match=r"images \(2\) .* member \(3\)"):
        Stack(members("mlp"))(torch.zeros(2, 1, 1, 8, 8, dtype=torch.float64))
