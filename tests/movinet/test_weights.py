"""Ours against MoViNet-pytorch and tensorflow/models: the same weights, the same videos, the same answers.

The figures were made by running those repositories on weights that follow from their names (`reference.filled`).
"""

import hashlib
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_modules.datasets.video.drawn import encode
from lightning_modules.files import ROOT
from lightning_modules.movinet.network import MoViNet
from lightning_modules.movinet.weights import load_port, load_tensorflow, read_port, read_tensorflow
from tests.movinet.reference import STREAM, port_state, tensorflow_variables, video

CLASSES = 20
LABELS = torch.tensor([3, 11])
KINDS = {"base": {}, "stream": STREAM}
TENSORFLOW = {"base": {}, "stream": {**STREAM, "gate": "hard_sigmoid_sixth", "positions": True}}
# MoViNet-pytorch 0.2.2 (A0, tf_like): entries of a state dict, digest of its names and shapes, the first logits of two
# clips, those after 1, 4 and 6 frames, the loss in training mode without dropout, and norms of its gradients.
PORT = {
    "base": dict(
        entries=385,
        layout="a00e453e31062fd95fe6517eb31e7fd031a0e053ed81ae3156c2faec161cfa38",
        logits=[
            [1.7343432903289795, 2.2931060791015625, -0.27377355098724365, -0.9322787523269653, -0.09399941563606262],
            [1.798593282699585, 2.381747245788574, -0.3127140998840332, -0.7947059273719788, -0.13543260097503662],
        ],
        loss=3.1998722553253174,
        gradients={
            "stem.conv.weight": 0.7302594097039613,
            "layers.block1_layer0.feature.conv.weight": 0.35825888411808365,
            "layers.block2_layer1.scale": 0.08446487039327621,
            "layers.block3_layer2.squeeze.reduce.weight": 0.06789500739612367,
            "layers.block4_layer0.skip.conv.weight": 0.6282131587045297,
            "dense.weight": 2.928920830579378,
        },
    ),
    "stream": dict(
        entries=451,
        layout="c3370443caaa864017c563da33dc74a6e44cc4aa293bacd846e6f174f07e41ae",
        logits=[
            [2.118356943130493, -1.6972770690917969, 0.4262651801109314, -1.1567792892456055, 0.7238763570785522],
            [2.1315016746520996, -1.7307144403457642, 0.48230433464050293, -1.186997652053833, 0.6331363916397095],
        ],
        pieces=[
            [
                [1.5989793539047241, -1.2914941310882568, 0.5386375784873962],
                [1.5992393493652344, -1.1982135772705078, 0.6385560631752014],
            ],
            [
                [1.9908063411712646, -1.56734037399292, 0.42957648634910583],
                [1.99845552444458, -1.5479087829589844, 0.49379491806030273],
            ],
            [
                [2.118356704711914, -1.6972769498825073, 0.4262657165527344],
                [2.1315019130706787, -1.7307143211364746, 0.48230451345443726],
            ],
        ],
        loss=3.2187700271606445,
        gradients={
            "stem.conv.weight": 0.6658656709703797,
            "layers.block1_layer0.feature.conv.weight": 0.21952593779844448,
            "layers.block2_layer1.scale": 0.06752040237188339,
            "layers.block3_layer2.squeeze.reduce.weight": 0.06501455968004537,
            "layers.block4_layer0.skip.conv.weight": 0.4067126933379171,
            "dense.weight": 2.2550455737513815,
            "layers.block2_layer0.feature.conv_temporal.weight": 0.09467334268503066,
        },
    ),
}

# tensorflow/models (package tf-models-official 2.15.0, TensorFlow 2.15.1; A0, all in inference mode).
TF_FACTS = {
    "base": dict(
        entries=334,
        layout="2af8f1ab2e9510012a302afee55472decb2aa9892d17fb202dc8f083789f0d49",
        logits=[
            [2.8465640544891357, 3.007833480834961, -2.0459911823272705, 5.476260662078857, 5.3287835121154785],
            [2.9934096336364746, 3.053633451461792, -1.6784999370574951, 5.727377414703369, 5.4557390213012695],
        ],
        loss=10.287308692932129,
        gradients={
            "stem.conv.weight": 23.742755432297482,
            "layers.block1_layer0.feature.conv.weight": 1.6991364575921537,
            "layers.block2_layer1.scale": 10.507223129272461,
            "layers.block4_layer0.skip.conv.weight": 27.006726255288083,
        },
    ),
    "stream": dict(
        entries=404,
        layout="e239d4e927687f865e89348e10955c9efcf13e135f4b551cdefd6d5ad0787661",
        logits=[
            [-1.0770000219345093, -2.549816846847534, 1.337812900543213, -2.7943625450134277, 3.358776092529297],
            [-1.129607081413269, -2.4689693450927734, 1.325779676437378, -2.814591884613037, 3.352106809616089],
        ],
        loss=8.476153373718262,
        gradients={
            "stem.conv.weight": 21.11020484621585,
            "layers.block1_layer0.feature.norm_temporal.weight": 0.2693791920951871,
            "layers.block1_layer0.feature.conv.weight": 0.5844770055549393,
            "layers.block1_layer0.feature.conv_temporal.weight": 0.31298348324970676,
            "layers.block2_layer1.scale": 1.2050164937973022,
            "layers.block4_layer0.skip.conv.weight": 14.089145324488493,
        },
        state={
            "block2_layer0.stream_buffer": 38.796137163321696,
            "block3_layer1.pool_buffer": 45.29296701879598,
            "head.pool_buffer": 344.1315013341709,
        },
    ),
}


def network(options, classes=CLASSES) -> MoViNet:
    return MoViNet("a0", classes, **options, dropout=0.0, drop_path=0.0)


def close(found, expected, rel=1e-5):
    """Relative to the largest."""
    expected = torch.as_tensor(expected)
    assert (found - expected).abs().max() <= rel * expected.abs().max()


def digest(arrays) -> str:
    lines = sorted(f"{name} {tuple(x.shape)}" for name, x in arrays.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_of_the_port_is_taken_completely_and_gives_its_answers(kind):
    facts, ours = PORT[kind], network(KINDS[kind])
    state = port_state(ours)
    assert (len(state), digest(state)) == (facts["entries"], facts["layout"])
    load_port(ours, state)
    with torch.inference_mode():
        close(ours.eval()(video())[:, :5], facts["logits"])
        state = None
        for piece, expected in zip(video().split([1, 3, 2], dim=2), facts.get("pieces", ()), strict=False):
            if kind == "stream":
                answer, state = ours.stream(piece, state)
                close(answer[:, -1, :3], expected)
    loss = F.cross_entropy(ours.train()(video()), LABELS)
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-5)
    gradients = {name: p.grad.double().norm().item() for name, p in ours.named_parameters()}
    assert {name: gradients[name] for name in facts["gradients"]} == pytest.approx(facts["gradients"], rel=1e-5)


@pytest.mark.parametrize("kind", TENSORFLOW)
def test_a_checkpoint_of_tensorflow_is_taken_completely_and_gives_its_answers(kind):
    facts, ours = TF_FACTS[kind], network(TENSORFLOW[kind])
    arrays = tensorflow_variables(ours)
    assert (len(arrays), digest(arrays)) == (facts["entries"], facts["layout"])
    load_tensorflow(ours, arrays)
    logits = ours.eval()(video())
    close(logits[:, :5].detach(), facts["logits"])
    loss = F.cross_entropy(logits, LABELS)
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-5)
    gradients = {name: p.grad.double().norm().item() for name, p in ours.named_parameters()}
    assert {name: gradients[name] for name in facts["gradients"]} == pytest.approx(facts["gradients"], rel=1e-5)
    if kind == "stream":
        with torch.inference_mode():
            _, state = ours.stream(video())
        norms = {name: state[name].double().norm().item() for name in facts["state"]}
        assert norms == pytest.approx(facts["state"], rel=1e-5)


def test_names_of_variables_are_understood_as_well_as_paths_of_a_checkpoint(tmp_path):
    """Those of the released SavedModels (b0/l0) and of the present code (block0_layer0); heads are numbered."""
    ours, other = network(STREAM), network(STREAM)
    paths = tensorflow_variables(ours)
    named = {}
    layers = list(ours.layers)
    for path, array in paths.items():
        name = path.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
        name = re.sub(r"backbone/layer_with_weights-0/_stem/", "stem/stem/", name)
        name = re.sub(r"backbone/layer_with_weights-\d+/_project/", "head/project/", name)
        name = re.sub(r"model/layer_with_weights-1/_(\w+)/", r"classifier_head_1/\1/", name)
        if match := re.match(r"backbone/layer_with_weights-(\d+)/", name):
            layer = layers[int(match[1]) - 1]
            name = name.replace(match[0], re.sub(r"block(\d)_layer(\d+)", r"b\1/l\2/", layer))
        for ours_part, theirs in (
            ("_attention/_se_reduce", "bneck/se/se_reduce"), ("_attention/_se_expand", "bneck/se/se_expand"),
            ("_mobile_bottleneck/_rezero/", ""), ("_skip/_projection", "bneck/skip/skip_project"),
            ("_expansion", "bneck/expansion"), ("_projection", "bneck/projection"), ("_feature", "bneck/feature"),
            ("_conv_temporal/_conv", "conv2d_temporal/depthwise_conv2d_1"), ("_conv/_conv", "conv2d/conv2d_3"),
            ("_batch_norm_temporal", "conv2d_temporal/bn_temporal"), ("_batch_norm", "conv2d/bn"),
        ):  # fmt: skip
            name = name.replace(ours_part, theirs)
        named[f"{name}:0"] = array
    assert "b0/l0/bneck/expansion/conv2d/conv2d_3/kernel:0" in named and "b0/l0/scale:0" in named
    load_tensorflow(ours, paths)
    np.savez(tmp_path / "weights.npz", **named)
    load_tensorflow(other, read_tensorflow(tmp_path / "weights.npz"))
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in ours.state_dict().items())


def test_the_guide_says_how_released_weights_answer_about_a_file(tmp_path, monkeypatch, capsys):
    guide = (ROOT / "docs/papers/movinet.md").read_text()
    (code,) = [block for block in guide.split("```")[1::2] if "load_tensorflow(network" in block]
    released = {**STREAM, "gate": "hard_sigmoid"}
    np.savez(tmp_path / "movinet_a0_stream.npz", **tensorflow_variables(network(released, 600)))
    (tmp_path / "my-videos").mkdir()
    encode(tmp_path / "my-videos/first.mp4", 12)
    monkeypatch.chdir(tmp_path)
    told = {}
    exec(code, told)
    found, whole = told["network"], told["video"]
    assert whole.shape[:2] == (1, 3) and whole.shape[3:] == (172, 172) and 0 <= whole.min() < whole.max() <= 1
    with torch.inference_mode():
        expected = found.each_frame(whole)[0]
    close(told["logits"][0, 0], expected[-1])
    assert [int(line) for line in capsys.readouterr().out.split()] == expected.argmax(1).tolist()


def test_weights_of_one_split_form_serve_the_other():
    flat, volumes = network(STREAM), network({**STREAM, "form": "3d_2plus1d"})
    variables = tensorflow_variables(flat)
    load_tensorflow(flat, variables)
    load_tensorflow(volumes, variables)
    assert all(torch.equal(x, volumes.state_dict()[name]) for name, x in flat.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "more", "shape", "form"])
def test_weights_that_do_not_fit_are_refused_and_change_nothing(change):
    ours = network(STREAM)
    state = port_state(ours if change != "form" else network({}))
    before = {name: x.clone() for name, x in ours.state_dict().items()}
    if change == "missing":
        del state["blocks.b2_l1.alpha"]
    elif change == "more":
        state["blocks.b9_l9.alpha"] = torch.zeros(())
    elif change == "shape":
        state["conv1.conv_1.conv2d.weight"] = torch.zeros(8, 3, 5, 5)
    with pytest.raises(ValueError, match="the state dict of MoViNet-pytorch is of another architecture"):
        load_port(ours, state)
    assert all(torch.equal(x, before[name]) for name, x in ours.state_dict().items())


def test_variables_that_are_unknown_are_refused():
    ours = network({})
    arrays = tensorflow_variables(ours)
    load_tensorflow(ours, {**arrays, "save_counter/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(())})
    with pytest.raises(ValueError, match="backbone/layer_with_weights-30/_expansion/_conv/kernel"):
        load_tensorflow(ours, {**arrays, "backbone/layer_with_weights-30/_expansion/_conv/kernel": np.zeros((1,) * 5)})


def test_a_file_of_arrays_that_is_cut_off_or_not_there_is_named(tmp_path):
    np.savez(tmp_path / "sound.npz", kernel=np.zeros(1000))
    assert read_tensorflow(tmp_path / "sound.npz")["kernel"].shape == (1000,)
    content = (tmp_path / "sound.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.npz cannot be read as arrays"):
        read_tensorflow(tmp_path / "cut.npz")
    with pytest.raises(ValueError, match=r"absent\.npz cannot be read as arrays"):
        read_tensorflow(tmp_path / "absent.npz")


def test_a_checkpoint_without_tensorflow_says_how_to_make_a_file_of_arrays(tmp_path):
    with pytest.raises(ValueError, match=r"not installed here. Where it is, run .*numpy.savez"):
        read_tensorflow(tmp_path / "ckpt-1")


def test_what_is_no_state_dict_or_holds_no_numbers_is_named(tmp_path):
    path = tmp_path / "port.pth"
    torch.save({"epoch": 3, "state_dict": port_state(network({}))}, path)
    with pytest.raises(ValueError, match=r"port.pth holds 2 entries that are no tensors, such as 'epoch'; expected a"):
        read_port(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match=r"port.pth holds a list, expected a state dict: names with tensors"):
        read_port(path)
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"one.npz cannot be read as arrays: it is one array \(.npy\), expected one"):
        read_tensorflow(tmp_path / "one.npz")
    with pytest.raises(ValueError, match="the variable stem/stem/conv3d/kernel is of <U1, expected numbers"):
        load_tensorflow(network({}), {"stem/stem/conv3d/kernel": np.array(["x"])})
