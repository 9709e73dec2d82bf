"""RAFT: torchvision's names, counts and numbers, computed by its code (0.29.1) on weights of a formula."""

import hashlib

import pytest
import torch

from lightning_modules import rehearsal
from lightning_modules.fgla.raft import FlowTeacher, Raft, lookup, published, pyramid
from lightning_modules.metrics.compute import count_macs, count_parameters
from tests.metrics.filled import clip, filled

COUNTS = {"large": 5_257_536, "small": 990_162}  # torchvision's `num_params`
GIGA_MACS = {"large": "211.0", "small": "47.7"}  # torchvision's `_ops`, of two pictures of 512 pixels
# pictures of 128 x 136, the second rolled by 3 down and 5 to the left: number of corrections -> the flow right at
# (17, 33) and down at (40, 50), the mean of its size, its standard deviation
FLOWS = {
    ("large", 1): (-0.6964136958122253, 1.4275343418121338, 0.5944011807441711, 0.7365479469299316),
    ("large", 3): (-2.000560760498047, 4.275975227355957, 1.7836138010025024, 2.2085752487182617),
    ("large", 12): (-7.8619585037231445, 17.066673278808594, 7.136267185211182, 8.833317756652832),
    ("small", 1): (2.6440391540527344, 1.1853679418563843, 1.2753992080688477, 1.5995455980300903),
    ("small", 3): (10.062076568603516, 5.201119899749756, 3.7872579097747803, 4.757083892822266),
    ("small", 12): (35.49365234375, 19.312877655029297, 15.168801307678223, 19.027341842651367),
}
# the norms of gradients of the flow's mean square after two corrections
GRADIENTS = {
    "large": {
        "feature_encoder.conv.weight": 0.04057605564594269,
        "context_encoder.layer2.0.convnormrelu1.0.weight": 623.23193359375,
        "update_block.flow_head.conv2.weight": 180.27227783203125,
        "mask_predictor.conv.weight": 0.15207065641880035,
    },
    "small": {
        "feature_encoder.conv.weight": 1.4458744525909424,
        "context_encoder.layer2.0.convnormrelu1.0.weight": 17.442161560058594,
        "update_block.flow_head.conv2.weight": 245.60797119140625,
    },
}


def network(size):
    """With small corrections, so that places stay within the picture."""
    found = filled(Raft(size).eval())
    with torch.no_grad():
        found.update_block.flow_head.conv2.bias.zero_()
        found.update_block.flow_head.conv2.weight.mul_(0.3)
    return found


@pytest.fixture(scope="module")
def pictures():
    first = 2 * clip((1, 3, 128, 136)) - 1
    return first, first.roll((3, -5), (2, 3))


@pytest.mark.parametrize("size", COUNTS)
def test_parameters_and_names_are_torchvisions(size):
    with torch.device("meta"):
        found = Raft(size)
    assert count_parameters(found) == COUNTS[size]
    names = {name.split(".")[0] for name in found.state_dict()}
    parts = {"feature_encoder", "context_encoder", "update_block", "mask_predictor"}
    assert names == (parts if size == "large" else parts - {"mask_predictor"})
    listed = "\n".join(sorted(f"{name} {tuple(x.shape)}" for name, x in found.state_dict().items()))
    digests = {"large": "23b50731fc53e26a", "small": "b52844207e5a43c4"}
    assert hashlib.sha256(listed.encode()).hexdigest().startswith(digests[size])


class Enlarging(torch.nn.Module):
    """A network that makes the weights of upsampling after each of its 12 corrections, as torchvision does."""

    def __init__(self, size):
        super().__init__()
        self.network = Raft(size)

    def forward(self, picture):
        self.network(picture, picture)
        for _ in range(11 if self.network.mask_predictor else 0):
            self.network.mask_predictor(picture.new_empty(1, self.network.hidden, 64, 64))


@pytest.mark.parametrize("size", COUNTS)
def test_multiply_accumulates_are_torchvisions(size):
    assert f"{count_macs(Enlarging(size), (3, 512, 512)) / 1e9:.1f}" == GIGA_MACS[size]


@pytest.mark.parametrize(("size", "updates"), FLOWS)
def test_flows_are_those_of_torchvision(size, updates, pictures):
    with torch.no_grad():
        flow = network(size)(*pictures, updates=updates)
    found = (flow[0, 0, 17, 33], flow[0, 1, 40, 50], flow.abs().mean(), flow.std())
    assert [x.item() for x in found] == pytest.approx(FLOWS[size, updates], rel=1e-5)


@pytest.mark.parametrize("size", GRADIENTS)
def test_gradients_are_those_of_torchvision(size, pictures):
    made = network(size)
    made(*pictures, updates=2).square().mean().backward()
    found = {name: p.grad.norm().item() for name, p in made.named_parameters() if name in GRADIENTS[size]}
    assert found == pytest.approx(GRADIENTS[size], rel=2e-5)


def test_products_are_looked_up_where_places_point_to_and_are_nothing_beyond():
    products = pyramid(torch.eye(64).view(1, 64, 8, 8) * 8, torch.eye(64).view(1, 64, 8, 8))
    assert [tuple(level.shape) for level in products] == [(1, 8, 8, side, side) for side in (8, 4, 2, 1)]
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    found = lookup(products[:1], torch.stack([x + 1, y])[None], 1)[0].view(3, 3, 8, 8)  # x is the slower one
    assert torch.equal(found[0, 1], torch.ones(8, 8)) and found.sum() == 64
    between = lookup(products[:1], torch.stack([x + 0.25, y - 0.5])[None], 1)[0].view(3, 3, 8, 8)
    assert between[1, 1].eq(0.375).all() and between[1, 2].eq(0.375).all() and between[0, 1].eq(0.125).all()
    far = lookup(products, torch.stack([x + 1e6, y - 1e6])[None], 4)
    assert not far.any()


def test_a_teacher_gives_the_flow_from_each_frame_back_to_the_one_before(pictures):
    teacher = FlowTeacher.__new__(FlowTeacher)
    super(FlowTeacher, teacher).__init__(network("small"))
    teacher.updates = 2
    video = torch.stack([x[0] / 2 + 0.5 for x in (*pictures, pictures[0])], 1)[None]
    flow = teacher(video)
    assert flow.shape == (1, 2, 2, 128, 136) and not list(teacher.parameters()) and not flow.requires_grad
    expected = teacher.network(pictures[1], pictures[0], updates=2)
    torch.testing.assert_close(flow[:, 0], expected, rtol=1e-4, atol=1e-4)
    small = teacher(video[..., :32, :40])
    assert small.shape == (1, 2, 2, 32, 40)


def test_pictures_of_other_sizes_are_refused():
    made = Raft("small").eval()
    for shape in ((1, 3, 68, 64), (1, 3, 56, 64)):
        with pytest.raises(
            ValueError, match=r"expected equal ones, with sides that are multiples of 8 and at least 64"
        ):
            made(torch.zeros(shape), torch.zeros(shape))


def test_weights_are_loaded_strictly_and_only_if_the_file_is_whole(tmp_path):
    state = network("small").state_dict()
    path = tmp_path / "raft_small.pth"
    torch.save(state, path)
    loaded = published("small", str(path))
    assert all(torch.equal(x, state[name]) for name, x in loaded.state_dict().items())
    with pytest.raises(ValueError, match=r"state dict of RAFT \(large\) in .* is of another architecture"):
        published("large", str(path))
    named = tmp_path / "raft_small_C_T_V2-01064c6d.pth"
    named.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"01064c6d.pth has the SHA-256 .*, not that of its name: fetch it again"):
        published("small", str(named))
    with pytest.raises(ValueError, match=r"does not exist: download https://download.pytorch.org/models/none.pth"):
        published("small", str(tmp_path / "none.pth"))
    torch.save([1], path)
    with pytest.raises(ValueError, match="holds a list, expected the state dict of torchvision's RAFT"):
        published("small", str(path))


def test_a_rehearsal_draws_a_narrow_network(monkeypatch):
    here = rehearsal.Rehearsal(rows=1, narrow=16)
    monkeypatch.setattr(rehearsal, "current", here)
    for size in COUNTS:
        made = FlowTeacher(network=size, weights=f"{size}.pth", updates=2)
        assert made(torch.rand(2, 3, 3, 32, 32)).shape == (2, 2, 2, 32, 32)
    assert here.replaced == {"large.pth", "small.pth"}
