"""Checkpoints in the layout of the official code, and what that code computes with them.

The figures are those of flax modules typed after the official ones, with the routers of flaxformer, of which the
official routers are copies, run on the same numbers with jax 0.10.2 and flax 0.12.8: losses, and sums of absolute
gradients.
"""

import numpy as np
import pytest
import torch

from lightning_modules.imp.network import Network, masked_mean
from lightning_modules.imp.objectives import classification, cross_modal_nce, masked_words
from lightning_modules.imp.tokens import Tokens, grid
from lightning_modules.imp.weights import from_heads, load_official, official_names, read_arrays, to_stream, turned

ROWS, HEADS = 8, 4
ROUTING = {"dense": None, "experts": "expert_choice", "tokens": "token_choice", "soft": "soft"}
EXTRAS = {  # what the official network has and ours does not build
    "vision_token_raw_label_classifier/classifier_other/kernel": (16, 3),
    "vision_token_raw_label_classifier/classifier_other/bias": (3,),
    **{f"temperature/temperature_{name}_{name}": () for name in ("spectrogram", "text", "vision")},
}
LOSSES = ("vision_text", "vision_spectrogram", "spectrogram_text", "clips", "words", "experts")
COMPUTED = {
    "dense": (2.0793609619140625, 2.079637050628662, 2.0811052322387695, 1.6260640621185303, 3.104433536529541, 0.0),
    "experts": (2.0805583000183105, 2.0795059204101562, 2.0856716632843018, 1.6265978813171387, 3.0373282432556152,
                55.929969787597656),
    "tokens": (2.080559730529785, 2.079514980316162, 2.085667133331299, 1.6267069578170776, 3.0379557609558105,
               63.0683479309082),
    "soft": (2.0830202102661133, 2.080042839050293, 2.087681293487549, 1.6211718320846558, 3.034184217453003, 0.0),
}  # fmt: skip
GRADIENTS = {
    "encoder.layers.1.self_attention.q.weight": {
        "dense": 2.7437136463122442, "experts": 781.2751338630915, "tokens": 791.6054754704237,
        "soft": 1.5961144474204048,
    },
    "embed.vision.to_embedding.weight": {
        "experts": 528.246535326587, "tokens": 526.2900876874919, "soft": 0.9753283223890321,
    },
    "embed.text.pos_encoding.tables.0.weight": {
        "dense": 1.3526186657254584, "experts": 293.6006915718317, "tokens": 314.28203761577606,
        "soft": 4.823886211030185,
    },
    "encoder.layers.1.feed_forward.router": {"experts": 318.9580634236336, "tokens": 319.74525083601475},
    "encoder.layers.1.feed_forward.wi": {"experts": 8.425837570151998, "tokens": 7.997803872420491},
}  # fmt: skip


def task(objective, modalities, classes=None):
    return {"objective": objective, "modalities": modalities, "classes": classes, "drop": 0.0, "weight": 1.0}


def built(name="dense", **changes):
    mixture = {
        "experts": 4, "layers": 1, "place": "last", "routing": ROUTING[name], "largest_group": 64, "capacity": 1.0,
        "least_capacity": 0, "selected": 2, "prioritised": True, "slots": 2, "evaluation_groups": "batch",
        "z_loss": 1.0, "balance": 1.0,
    }  # fmt: skip
    options = {
        "sizes": {"dim": 16, "hidden": 32, "layers": 2, "heads": HEADS, "norm_qk": name != "dense"},
        "mixture": None if name == "dense" else mixture,
        "modalities": {
            "vision": {"patch": [2, 2, 2], "buckets": [2, 4, 4]},
            "spectrogram": {"patch": [4, 4], "buckets": [4, 4]},
            "text": {"words": 20, "buckets": 8},
        },
        "tasks": {
            "clips": task("classification", ["vision"], 5),
            "sounding": task("contrast", ["vision", "spectrogram", "text"]),
            "texts": task("masked_words", ["text"]),
        },
        "common_dim": 12, "temperature": 0.2,
    }  # fmt: skip
    return Network(**options | changes)


def official_shape(parameter, turn):
    shape = tuple(parameter.shape)
    if turn is from_heads:
        return shape[1], HEADS, shape[0] // HEADS
    if turn is to_stream:
        return HEADS, shape[1] // HEADS, shape[0]
    return shape[::-1] if turn is turned else shape


def drawn(name, shape, place):
    """The same numbers on both sides, from the place of the name among all."""
    count = int(np.prod(shape))
    spread = 0.6 / np.sqrt(max(1, shape[0] if len(shape) > 1 else 1))
    x = (np.sin(np.arange(count) * 1.3 + place * 0.71) * spread).reshape(shape).astype(np.float32)
    if name.endswith("scale"):
        x = 1 + x * 0.3
    elif name.endswith("bias"):
        x = x * 0.2
    elif name.endswith("kernel") and "router" not in name:
        x = x * 2.5
    if name.startswith("temperature"):
        x = np.float32(0.2 + 0.05 * place % 1 * 0.1) * np.ones((), np.float32)
    return np.asarray(x * 5 if "router" in name and not name.endswith("scale") else x, np.float32)


def arrays_of(network, extras=EXTRAS):
    parameters = dict(network.named_parameters())
    shapes = {
        theirs: official_shape(parameters[ours], turn) for ours, (theirs, turn) in official_names(network).items()
    }
    shapes |= extras
    return {name: drawn(name, shapes[name], place) for place, name in enumerate(sorted(shapes))}


def wave(shape, speed):
    return torch.from_numpy(np.sin(np.arange(int(np.prod(shape))) * speed + 0.5).reshape(shape).astype(np.float32))


def terms(network):
    there = torch.arange(4) < (1 + torch.arange(ROWS) % 4)[:, None]
    tokens = {
        "spectrogram": Tokens(wave((ROWS, 8, 16), 0.73), grid(4, 2).expand(ROWS, -1, -1), None),
        "text": Tokens((torch.arange(ROWS * 4) * 7 % 20).reshape(ROWS, 4), None, there),
        "vision": Tokens(wave((ROWS, 8, 24), 0.37), grid(2, 2, 2).expand(ROWS, -1, -1), None),
    }
    features, experts = {}, torch.zeros(())
    for name, each in tokens.items():
        features[name] = network.features(name, each)
        experts = experts + sum(layer.loss for layer in network.encoder.experts())
    pooled = {name: masked_mean(x, tokens[name].there) for name, x in features.items()}

    def contrast(a, b):
        first, second = (network.common_vectors(x, y, pooled[x])[:, None] for x, y in ((a, b), (b, a)))
        return cross_modal_nce(first, second, network.temperature(a, b))

    words = (torch.arange(ROWS * 4) * 3 % 20).reshape(ROWS, 4)
    return {
        "vision_text": contrast("vision", "text"),
        "vision_spectrogram": contrast("vision", "spectrogram"),
        "spectrogram_text": contrast("spectrogram", "text"),
        "clips": classification(network.classifiers["clips"](pooled["vision"]), torch.arange(ROWS) % 5),
        "words": masked_words(network.word_classifier(features["text"]), torch.where(there, words, -100)),
        "experts": experts,
    }


@pytest.mark.parametrize("name", list(ROUTING))
def test_losses_and_gradients_are_those_of_the_official_modules(name):
    network = built(name)
    load_official(network, arrays_of(network), "the checkpoint")
    found = terms(network)
    for term, expected in zip(LOSSES, COMPUTED[name], strict=True):
        assert found[term].item() == pytest.approx(expected, rel=1e-5), term
    sum(found.values()).backward()
    parameters = dict(network.named_parameters())
    for parameter, expected in GRADIENTS.items():
        if name in expected:
            total = parameters[parameter].grad.double().abs().sum().item()
            assert total == pytest.approx(expected[name], rel=1e-5), parameter


def scanned(arrays, groups):
    found = dict(arrays)
    for scan, layers in groups.items():
        start = f"transformer_encoder/layer_{layers[0]}/"
        for name in (name for name in arrays if name.startswith(start)):
            rest = name.removeprefix(start)
            found[f"transformer_encoder/{scan}/{rest}"] = np.stack(
                [arrays[f"transformer_encoder/layer_{layer}/{rest}"] for layer in layers]
            )
            for layer in layers:
                found.pop(f"transformer_encoder/layer_{layer}/{rest}", None)
    return found


@pytest.mark.parametrize(
    ("name", "groups"),
    [("dense", {"layer_scan": [0, 1]}), ("experts", {"layer_scan_dense": [0], "layer_scan_moe": [1]})],
)
def test_layers_may_be_scanned(name, groups):
    plain, other = built(name), built(name)
    arrays = arrays_of(plain)
    load_official(plain, arrays, "the checkpoint")
    load_official(other, {f"params/{key}": x for key, x in scanned(arrays, groups).items()}, "the checkpoint")
    assert all(torch.equal(x, other.state_dict()[key]) for key, x in plain.state_dict().items())


def test_other_features_of_modalities_are_not_used():
    network = built()
    arrays = arrays_of(network) | {"vision_token_embed_to_embed/rgb_to_embedding/kernel": np.zeros((2, 2), np.float32)}
    load_official(network, arrays, "the checkpoint")


def test_an_array_without_a_place_is_refused():
    network = built()
    arrays = arrays_of(network) | {"transformer_encoder/layer_7/layer_norm_sa/scale": np.ones(16, np.float32)}
    with pytest.raises(
        ValueError, match=r"0 arrays are missing and 1 have no place. First: transformer_encoder/layer_7"
    ):
        load_official(network, arrays, "mine.npz")


def test_a_missing_array_is_refused():
    network = built()
    arrays = arrays_of(network)
    del arrays["transformer_encoder/final_layer_norm/bias"]
    with pytest.raises(ValueError, match=r"1 arrays are missing .*final_layer_norm/bias: absent"):
        load_official(network, arrays, "mine.npz")


def test_arrays_of_another_size_are_refused():
    network = built()
    with pytest.raises(ValueError, match="of another architecture"):
        load_official(network, arrays_of(built(common_dim=6)), "mine.npz")


@pytest.mark.parametrize("part", ["q", "o"])
def test_projections_of_other_heads_are_refused_although_their_matrices_are_of_the_same_size(part):
    network, other = built("dense"), built("dense")
    name = f"transformer_encoder/layer_1/self_attention/{part}/kernel"
    arrays, axis = arrays_of(network), 0 if part == "o" else 1
    shape = list(arrays[name].shape)
    shape[axis], shape[axis + 1] = shape[axis] // 2, shape[axis + 1] * 2
    arrays[name] = arrays[name].reshape(shape)
    assert shape[axis] != HEADS
    with pytest.raises(ValueError, match=rf"layer_1/self_attention/{part}/kernel of shape .* {HEADS} heads as number"):
        load_official(network, arrays, "mine.npz")
    arrays[name] = arrays[name].reshape(-1, 16) if part == "o" else arrays[name].reshape(16, -1)
    with pytest.raises(ValueError, match="expected three axes"):
        load_official(other, arrays, "mine.npz")


def test_a_scan_without_layers_is_refused():
    network = built()
    with pytest.raises(ValueError, match="layer_scan/layer_norm_sa/scale is a single number"):
        arrays = arrays_of(network) | {"transformer_encoder/layer_scan/layer_norm_sa/scale": np.ones((), np.float32)}
        load_official(network, arrays, "mine.npz")


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_lower_precision_is_read(tmp_path, precision):
    from safetensors.torch import save_file

    save_file({"a": torch.tensor([1.5, -2.0]).to(precision), "b": torch.tensor([3])}, tmp_path / "x.safetensors")
    found = read_arrays(tmp_path / "x.safetensors")
    assert found["a"].tolist() == [1.5, -2.0] and found["a"].dtype == np.float32
    assert found["b"].dtype == np.int64  # and is refused when it is taken over


def test_whole_numbers_are_refused():
    network = built()
    arrays = arrays_of(network) | {"transformer_encoder/final_layer_norm/bias": np.zeros(16, np.int64)}
    with pytest.raises(ValueError, match="as int64, expected floating-point numbers"):
        load_official(network, arrays, "mine.npz")


def test_files_are_read_and_damaged_ones_refused(tmp_path):
    from safetensors.numpy import save_file

    arrays = {"a/b": np.arange(3, dtype=np.float32)}
    np.savez(tmp_path / "x.npz", **arrays)
    save_file(arrays, tmp_path / "x.safetensors")
    for name in ("x.npz", "x.safetensors"):
        assert read_arrays(tmp_path / name)["a/b"].tolist() == [0, 1, 2]
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
        with pytest.raises(ValueError, match="is damaged"):
            read_arrays(tmp_path / name)
    with pytest.raises(ValueError, match="is not there"):
        read_arrays(tmp_path / "y.npz")
    (tmp_path / "y.txt").touch()
    with pytest.raises(ValueError, match=r"no \.npz or \.safetensors file"):
        read_arrays(tmp_path / "y.txt")
