"""I3D and C3D: their published names and numbers, computed by the code of their authors on weights of a formula."""

import hashlib
import zipfile

import numpy as np
import pytest
import torch

from lightning_modules.metrics import i3d as i3d_file
from lightning_modules.metrics.c3d import C3D, c3d
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.i3d import I3D, i3d
from tests.metrics.filled import clip, filled, wave

# pytorch-i3d at its last commit, torch 2.13.0: number of frames -> first logits, their sum of sizes, and weighted
I3D_LOGITS = {
    9: ([3.858224868774414, -0.3259842097759247, 0.08393925428390503], 351.9169006347656, -2645.263671875),
    16: ([3.9284634590148926, -0.006854251027107239, -0.1064777672290802], 349.6053466796875, -3275.8759765625),
}


@pytest.fixture(scope="module")
def network():
    return filled(I3D().eval())


def test_i3d_has_the_names_and_shapes_of_pytorch_i3d(network):
    state = network.state_dict()
    names = "\n".join(sorted(f"{name} {tuple(x.shape)}" for name, x in state.items()))
    assert (len(state), count_parameters(network)) == (344, 12_697_264)
    assert hashlib.sha256(names.encode()).hexdigest().startswith("97cd133f75d479bd")


@pytest.mark.parametrize("frames", I3D_LOGITS)
def test_i3d_computes_what_pytorch_i3d_does(network, frames):
    first, size, weighted = I3D_LOGITS[frames]
    with torch.no_grad():
        found = network(2 * clip((1, 3, frames, 224, 224)) - 1)
    assert found[0, :3].tolist() == pytest.approx(first, rel=1e-5, abs=1e-5 * size / 400)
    assert found.abs().sum().item() == pytest.approx(size, rel=1e-5)
    assert (found * torch.arange(400)).sum().item() == pytest.approx(weighted, abs=1e-5 * 400 * size)


def test_weights_of_i3d_are_loaded_strictly(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "i3d.pt")
    loaded = i3d(tmp_path / "i3d.pt")
    assert all(torch.equal(x, network.state_dict()[name]) for name, x in loaded.state_dict().items())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    state = network.state_dict()
    state["Mixed_3b.b4.conv3d.weight"] = state.pop("Mixed_3b.b0.conv3d.weight")
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"the weights of I3D in .*other.pt.*Mixed_3b"):
        i3d(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not exist"):
        i3d(tmp_path / "none.pt")


class Script(torch.nn.Module):
    """What StyleGAN-V's script can be asked for."""

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False):
        if rescale or resize or not return_features:
            return x.new_zeros(len(x), 400)
        return x.mean(dim=[2, 3, 4]).repeat(1, 2)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_script_is_run_as_it_is(tmp_path):
    torch.jit.script(Script()).save(tmp_path / "i3d_torchscript.pt")
    assert zipfile.is_zipfile(tmp_path / "i3d_torchscript.pt")
    found = i3d_file.features(i3d(tmp_path / "i3d_torchscript.pt"), torch.full((2, 3, 9, 8, 8), 0.75))
    assert torch.allclose(found, torch.full((2, 6), 0.5))


def test_clips_that_are_too_short_are_refused(network):
    with pytest.raises(ValueError, match="clips have 8 frames, but I3D needs at least 9"):
        i3d_file.features(network, torch.zeros(1, 3, 8, 16, 16))
    with pytest.raises(ValueError, match="clips have 8 frames, but C3D needs 16"):
        C3D(width=32)(torch.zeros(1, 3, 8, 16, 16))


def test_frames_are_resized_as_tensorflow_1_did_it():
    """By hand: of two pixels, new pixel n of four lies at n / 2, and beyond the last nothing is made up."""
    row = torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2).expand(1, 1, 1, 2, 2)
    assert i3d_file.resized(row, 4)[0, 0, 0, 0].tolist() == [0.0, 0.5, 1.0, 1.0]
    assert i3d_file.resized(torch.arange(4.0).view(1, 1, 1, 1, 4), 2)[..., 0, :].flatten().tolist() == [0.0, 2.0]
    column = i3d_file.resized(row.transpose(3, 4), 4)[0, 0, 0, :, 0]
    assert column.tolist() == [0.0, 0.5, 1.0, 1.0]


def weights(folder, width=32):
    """Files in TGAN2's form, with the weights of the formula."""
    state, files = C3D(width=width).state_dict(), {}
    state.pop("mean")
    for number, name in enumerate(sorted(state)):
        shape = state[name].shape
        size = 0.2 if name.endswith("bias") else (6 / shape[1:].numel()) ** 0.5
        chainer = name.replace(".weight", "/W").replace(".bias", "/b")
        files[chainer] = wave(shape, size, number).numpy()
    np.savez(folder / "c3d.npz", **files)
    np.savez(folder / "mean2.npz", mean=wave((1, 3, 16, 128, 171), 40, 0.1).numpy() + 100)
    return folder / "c3d.npz", folder / "mean2.npz"


def test_c3d_computes_what_the_official_jax_code_does(tmp_path):
    """inception_score.py of google-research/magvit, with a thirty-second of its widths, jax 0.10.2 on a CPU."""
    network = c3d(*weights(tmp_path), width=32)
    logits = network(clip((2, 3, 16, 20, 24))).double()
    size = 68421.61162948608
    assert logits[0, :3].tolist() == pytest.approx(
        [-343.1235046386719, -118.6099624633789, 106.18125915527344], rel=1e-4
    )
    assert logits.abs().sum().item() == pytest.approx(size, rel=1e-5)
    assert (logits * torch.arange(101)).sum().item() == pytest.approx(90163.2417011261, abs=1e-5 * 101 * size)


def test_c3d_has_the_size_that_is_published():
    """27,655,936 in convolutions, and 8192 x 4096, 4096 x 4096 and 4096 x 101 with their biases."""
    with torch.device("meta"):
        parameters = count_parameters(C3D())
    assert parameters == 27_655_936 + 8193 * 4096 + 4097 * 4096 + 4097 * 101


def test_weights_of_c3d_are_loaded_strictly(tmp_path):
    path, mean = weights(tmp_path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(tmp_path / "less.npz", **{name: x for name, x in arrays.items() if name != "conv3b/b"})
    with pytest.raises(ValueError, match=r"the weights of C3D in .*less.npz.*conv3b.bias"):
        c3d(tmp_path / "less.npz", mean, width=32)
    with pytest.raises(ValueError, match=r"has conv1a/.*, expected an array `mean`"):
        c3d(path, path, width=32)
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match=r"text.npz is no npz file of arrays, or is damaged"):
        c3d(tmp_path / "text.npz", mean, width=32)
    with pytest.raises(ValueError, match=r"none.npz does not exist"):
        c3d(tmp_path / "none.npz", mean, width=32)
