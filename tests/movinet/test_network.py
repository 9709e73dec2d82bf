"""What the paper says of its networks: streams answer as the whole clip does, in memory that does not grow with it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.metrics.memory import peak_bytes
from lightning_modules.movinet.architecture import Architecture, Block, Layer, cost
from lightning_modules.movinet.network import MoViNet, Norm, pad_as_tensorflow, sinusoids
from tests.movinet.reference import STREAM, video

SMALL = Architecture.parse(
    dict(
        stem=8, project=16, dense=16,
        blocks=[
            dict(width=8, stride=2, layers=["16@1x5x5", "24@3x3x3"]),
            dict(width=16, stride=2, layers=["24@5x3x3", "24@3x3x3-"]),
            dict(width=24, stride=1, layers=["32@7x1x1"]),
        ],
    )
)  # fmt: skip
CAUSAL = {
    "3d": dict(form="3d", causal=True),
    "2plus1d": STREAM,
    "3d_2plus1d": {**STREAM, "form": "3d_2plus1d"},
    "2d": dict(form="2plus1d", causal=True, squeeze="2d"),
    "positions": {**STREAM, "positions": True},
    "none": dict(form="2plus1d", causal=True, squeeze="none"),
}


def awake(network: MoViNet) -> MoViNet:
    """Every layer does something, as after training: ReZero starts with layers that do nothing."""
    for name, parameter in network.named_parameters():
        if name.endswith("scale"):
            parameter.data.fill_(0.5)
    for module in network.modules():
        if isinstance(module, Norm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def small(architecture=SMALL, **options) -> MoViNet:
    torch.manual_seed(0)
    return awake(MoViNet(architecture, 5, dropout=0.0, drop_path=0.0, **options))


@pytest.mark.parametrize("lengths", [[1] * 8, [3, 5], [4, 4], [1, 2, 5]], ids=str)
@pytest.mark.parametrize("kind", CAUSAL)
@torch.inference_mode()
def test_a_stream_answers_as_the_whole_clip_does(kind, lengths):
    network, clip = small(**CAUSAL[kind]), video(frames=8, height=36, width=28)
    whole, state, parts = network.each_frame(clip), None, []
    for piece in clip.split(lengths, dim=2):
        answer, state = network.stream(piece, state)
        parts.append(answer)
    assert whole.std() > 1e-3
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 5e-6 * whole.abs().max()
    torch.testing.assert_close(network(clip), whole[:, -1], rtol=1e-5, atol=1e-6)
    assert {name: tuple(x.shape) for name, x in state.items()} == network.state_shapes(2, 36, 28)


@torch.inference_mode()
def test_a_state_can_be_saved_and_two_streams_do_not_mix(tmp_path):
    network, first, second = small(**STREAM), video(frames=4), video(frames=4, seed=8)
    _, state = network.stream(first)
    torch.save(state, tmp_path / "state.pt")
    expected = network.stream(second, state)[0]
    network.stream(video(seed=9))
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(network.stream(second, loaded)[0], expected)
    assert not torch.equal(network.stream(second)[0], expected)


@pytest.mark.parametrize("kind", CAUSAL)
@torch.inference_mode()
def test_a_causal_network_never_sees_a_later_frame_and_a_base_network_does(kind):
    network, clip = small(**CAUSAL[kind]), video(frames=6)
    other = clip.clone()
    other[:, :, -1] = 0
    before, after = network.each_frame(clip), network.each_frame(other)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])
    base, found = small(form="2plus1d"), []
    base.head.register_forward_hook(lambda _, __, output: found.append(output[0]))
    base(clip), base(other)
    assert not torch.equal(found[0][:, :, 0], found[1][:, :, 0])


@pytest.mark.parametrize("causal", [False, True])
@torch.inference_mode()
def test_both_ways_of_splitting_space_and_time_are_one_function_of_the_same_weights(causal):
    squeeze = "2plus3d" if causal else "3d"
    flat = small(form="2plus1d", causal=causal, squeeze=squeeze)
    volumes = small(form="3d_2plus1d", causal=causal, squeeze=squeeze)
    volumes.load_state_dict(flat.state_dict())
    clip = video(height=33, width=30)
    torch.testing.assert_close(flat(clip), volumes(clip), rtol=1e-5, atol=1e-6)


def test_the_split_form_has_a_norm_more_for_each_convolution_over_time():
    whole, split = small(), small(form="2plus1d")
    extra = [name for name in split.state_dict() if name not in whole.state_dict()]
    temporal = [name for name, layer in whole.layers.items() if layer.layer.kernel[0] > 1]
    assert {name.split(".")[1] for name in extra} == set(temporal)
    assert all("_temporal." in name for name in extra)


@torch.inference_mode()
def test_the_order_of_frames_is_lost_on_a_base_network_without_kernels_over_time():
    """The control of the tiny data, whose actions come in pairs that are each other in reverse."""
    layers = ["16@1x3x3", "16@1x5x5"]
    flat = Architecture.parse(dict(stem=8, project=16, dense=16, blocks=[dict(width=8, stride=2, layers=layers)]))
    clip = video() * torch.linspace(0, 1, 6)[:, None, None]
    for squeeze in ("3d", "2d", "2plus3d"):
        network = small(flat, form="2plus1d", squeeze=squeeze)
        assert (network(clip) - network(clip.flip(2))).abs().max() < 1e-6
    network = small(form="2plus1d")
    assert (network(clip) - network(clip.flip(2))).abs().max() > 1e-4


def test_memory_grows_with_the_clip_in_a_base_network_and_not_in_a_stream():
    """Counted as bytes of living tensors on the meta device."""
    with torch.device("meta"):
        base, stream = MoViNet(SMALL, 5).eval(), MoViNet(SMALL, 5, **STREAM).eval()

        def frame_by_frame(frames):
            state = None
            for _ in range(frames):
                _, state = stream.stream(torch.empty(1, 3, 1, 64, 64), state)

        whole = {n: peak_bytes(lambda n=n: base(torch.empty(1, 3, n, 64, 64))) for n in (4, 8, 16)}
        streamed = {n: peak_bytes(lambda n=n: frame_by_frame(n)) for n in (4, 8)}
    assert streamed[4] == streamed[8] < whole[4]
    per_frame = (whole[16] - whole[8]) / 8
    assert (whole[8] - whole[4]) / 4 == pytest.approx(per_frame, rel=0.01)
    assert per_frame > 4 * cost(SMALL, frames=1, size=64).peak
    buffers = cost(SMALL, frames=1, size=64, form="2plus1d", causal=True).buffers
    assert streamed[8] > 4 * buffers


def test_no_gradient_flows_into_the_state_of_a_stream():
    network = small(**STREAM).train()
    clip = video(frames=4)
    answer, state = network.stream(clip[:, :, :2])
    assert answer.requires_grad and not any(x.requires_grad for x in state.values())
    network.stream(clip[:, :, 2:], state)[0].sum().backward()
    assert network.stem.conv.weight.grad.abs().sum() > 0


def test_every_layer_starts_as_its_shortcut():
    torch.manual_seed(0)
    network = MoViNet(SMALL, 5, dropout=0.0, drop_path=0.0)
    F.cross_entropy(network(video()), torch.tensor([0, 1])).backward()
    silent = {name for name, p in network.named_parameters() if not p.grad.any()}
    assert {name for name, _ in network.named_parameters() if ".feature." in name or ".squeeze." in name} <= silent
    assert not {name for name in silent if name.endswith(".scale") or "skip" in name or "stem" in name}


def test_layers_are_skipped_more_often_towards_the_end_and_never_when_judging():
    network = MoViNet(SMALL, 5, drop_path=0.5)
    assert [layer.drop_path for layer in network.layers.values()] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    layer = network.layers["block2_layer0"]
    torch.manual_seed(0)
    kept = layer._drop(torch.ones(4000, 1, 1, 1, 1)).flatten()
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert kept.mean() == pytest.approx(1, abs=0.06)
    assert torch.equal(layer.eval()._drop(torch.ones(4, 1, 1, 1, 1)), torch.ones(4, 1, 1, 1, 1))


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(s, k, t) for s in range(3, 9) for k in (1, 3, 5) for t in (1, 2)]
)
def test_padding_is_that_of_tensorflow(size, kernel, stride):
    """Its rule: as many outputs as size / stride, rounded up, and the odd pixel of padding behind."""
    x = torch.arange(1.0, size + 1).expand(1, 1, 1, size, size)
    padded, left = pad_as_tensorflow(x, (1, kernel, kernel), stride)
    padded = F.pad(padded, (left[1], left[1], left[0], left[0]))
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    row = [0.0] * (total // 2) + list(range(1, size + 1)) + [0.0] * (total - total // 2)
    middle = padded[0, 0, 0, padded.shape[3] // 2].tolist()
    assert middle[: len(row)] == row and (padded.shape[4] - kernel) // stride + 1 == outputs


@pytest.mark.parametrize("size", [4, 5, 7, 8])
def test_the_mean_of_a_shortcut_leaves_padding_out(size):
    network = small(form="2plus1d")
    skip = network.layers["block0_layer0"].skip
    skip.conv, skip.norm = nn.Identity(), nn.Identity()
    x = torch.rand(1, 8, 1, size, size)
    before = 1 if size % 2 else 0
    for i, top in enumerate(range(-before, size - before, 2)):
        window = x[0, :, 0, max(top, 0) : top + 3, max(-before, 0) : 3 - before]
        torch.testing.assert_close(skip(x)[0, :, 0, i, 0], window.mean((1, 2)))


class OnGpu(torch.Tensor):
    is_cuda = True


def test_norms_are_those_of_all_gpus_and_of_one_process_on_a_cpu(monkeypatch):
    norm, plain, x = Norm(4), nn.BatchNorm3d(4, eps=1e-3, momentum=0.01), torch.randn(2, 4, 3, 5, 5)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert torch.equal(norm(x), plain(x)) and torch.equal(norm.running_var, plain.running_var)
    with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on GPU"):
        norm(x.as_subclass(OnGpu))  # which this one only says that it is


def test_positions_are_sines_then_cosines():
    found = sinusoids(torch.tensor([0, 3]), 4)
    expected = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.14112, 0.029996, -0.989992, 0.99955]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(form="4d"), "form ('4d') must be one of 3d, 2plus1d, 3d_2plus1d."),
        (dict(squeeze="all"), "squeeze ('all') must be one of 3d, 2d, 2plus3d, none."),
        (dict(activation="relu"), "activation ('relu') must be one of swish, hard_swish."),
        (dict(gate="relu"), "gate ('relu') must be one of sigmoid, hard_sigmoid, hard_sigmoid_sixth."),
        (dict(positions=True), "positions need a causal network: set causal to true, or positions to false."),
        (
            dict(positions=True, causal=True, squeeze="none"),
            "positions are read by squeeze-and-excitation: set squeeze, or positions to false.",
        ),
        (dict(drop_path=1.0), "drop_path (1.0) must be from 0 to below 1: at 1, no clip has the last layer."),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        MoViNet(SMALL, 5, **options)
    assert str(error.value) == message


def test_positions_need_as_many_sines_as_cosines():
    odd = Architecture(8, (Block(8, 2, (Layer(9, (3, 3, 3)),)),), 8, 8)
    with pytest.raises(ValueError, match=r"a layer \(9@3x3x3\) needs an even number of channels for positions"):
        MoViNet(odd, 5, causal=True, positions=True)
    MoViNet(odd, 5, causal=True, positions=True, squeeze="2plus3d").each_frame(video())  # reads twice as many


def test_videos_and_states_that_do_not_fit_are_refused():
    network = small(**STREAM)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 0, 40, 40\); expected \(batch, 3, frames, height, width\)"):
        network(video(frames=0))
    with pytest.raises(ValueError, match=r"pixels of torch.uint8, expected numbers from 0 to 1: divide by 255"):
        network._run((255 * video()).to(torch.uint8), {})  # outside of tests, no annotation stops it
    _, state = network.stream(video())
    with pytest.raises(ValueError, match="the state lies on meta and the video on cpu: bring it there"):
        network.stream(video(), {name: value.to("meta") for name, value in state.items()})
    with pytest.raises(ValueError, match=r"the state does not fit these frames: .* Start a new video with state None"):
        network.stream(video(height=48), state)
    with pytest.raises(ValueError, match="sees later frames"):
        small().stream(video())
