"""Every loader of weights, official ones and our own: nothing is left out or left unset unless the loader names it."""

import ast
import hashlib
import json
from fnmatch import fnmatchcase

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn
from transformers import AutoModelForImageClassification, CLIPModel, ResNetConfig, ViTConfig, ViTModel

from lightning_modules import pretrained
from lightning_modules.committees.network import Committee
from lightning_modules.layers.clip import make_clip
from lightning_modules.layers.vision import VisionTransformer
from lightning_modules.maskalign import encoders
from lightning_modules.maskalign.masked_autoencoder import MaskedAutoencoder
from lightning_modules.tasks.classification import FineTune, LinearProbe
from tests.clip_vip import test_module as clip_vip
from tests.maskalign import test_module as maskalign
from tests.pipeline import ROOT
from tests.unified_t2i_i2t import test_module as unified

VIT, PIXELS = maskalign.VIT, maskalign.PIXELS
CLIP, DINO = (encoders.ENCODERS[name] for name in ("openai/clip-vit-base-patch16", "facebook/dino-vitb16"))
POSITIONS = ("*.position_ids",)


def saved(folder, model):
    """The state dict of a model of `transformers` in a folder, and a function that replaces it there."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    return load_file(file), lambda state: save_file(state, file, metadata={"format": "pt"})


def small_clip() -> CLIPModel:
    return clip_vip.build(**clip_vip.PLAIN).network.clip


def resnet(folder):
    sizes = dict(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=5)
    state, write = saved(folder, AutoModelForImageClassification.from_config(ResNetConfig(**sizes)))
    return state, lambda changed: (write(changed), pretrained.load(str(folder))), ("resnet.",), ()


def clip(folder):
    state, write = saved(folder, small_clip())
    return state, lambda changed: (write(changed), make_clip(hub=str(folder))), ("", "vision_model."), ()


def clip_teacher(folder):
    state, write = saved(folder, small_clip())
    text = ("text_model.*", "*_projection.weight", "logit_scale")

    def load(changed):
        write(changed)
        return None, encoders._hub_encoder(str(folder), CLIP)

    return state, load, ("", "vision_model.encoder."), text


def dino_teacher(folder):
    sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8)
    state, write = saved(folder, ViTModel(ViTConfig(**sizes, patch_size=4)))

    def load(changed):
        write(changed)
        return None, encoders._hub_encoder(str(folder), DINO)

    return state, load, ("", "embeddings."), ("pooler.*",)


def committee(folder):
    record = dict(member_macs=[1], thresholds=[], confidence="max_probability", average="logits", output="running")
    record |= dict(temperatures=[1.0], weights=None)

    def load(state):
        weights = save(state)
        (folder / "committee.safetensors").write_bytes(weights)
        told = record | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
        (folder / "committee.json").write_text(json.dumps(told))
        return Committee.load(folder, [nn.Linear(3, 2)])

    return {"members.0.weight": torch.randn(2, 3), "members.0.bias": torch.randn(2)}, load, ("", "members.0."), ()


def clip_vip_official(_):
    return clip_vip.official_state(), clip_vip.build().load_official, ("clipmodel.", "other."), POSITIONS


def clip_vip_start(_):
    state = clip_vip.build(seed=1).export()
    return state, clip_vip.build().start_from, ("", "vision_model."), ("*.added_cls", "*.temporal_embedding")


def maskalign_official(_):
    state, heads = maskalign.official_checkpoint(), tuple(f"distill_heads.{i}.*" for i in (0, 1))
    places = ("", "blocks.0.", "norm.", "distill_heads.0.", "clip_model.", "clip_model.vision_model.pooler.dense.")
    return state, maskalign.clip_student().load_official, places, (*heads, "norm.*", *POSITIONS)


def maskalign_start(_):
    return classifier_state(), maskalign.build(teacher=dict(affine_norm=False)).start_from, *CLASSIFIER


def autoencoder_start(_):
    teacher = {"hub": None, **VIT, "affine_norm": False}
    sizes = dict(decoder_dim=8, decoder_depth=1, decoder_heads=2)
    module = MaskedAutoencoder(encoder=VIT, preprocess=PIXELS, target="features", teacher=teacher, **sizes)
    return classifier_state(), module.start_from, *CLASSIFIER


def classifier_state():
    return FineTune(encoder=VIT, num_classes=10, preprocess=PIXELS).export()


CLASSIFIER = (("", "encoder.", "encoder.blocks.0.", "head."), ("head.*", "norm.*"))


def finetune_start(_):
    module = FineTune(encoder=VIT, num_classes=10, preprocess=PIXELS)
    return VisionTransformer(**VIT).state_dict(), module.start_from, ("", "blocks.0.", "norm."), ("norm.*",)


def probe_start(_):
    module = LinearProbe(encoder=VIT, num_classes=10, preprocess=PIXELS, affine_norm=True)
    return VisionTransformer(**VIT).state_dict(), module.start_from, ("", "blocks.0.", "norm."), ()


def unified_official(_):
    state = unified.official_state(unified.build(seed=1))
    optional = ("pooler.*", "classifier.seq_relationship.*", "classifier.predictions.decoder.weight")
    optional += ("cluster_codebook.weight",)  # X-LXMERT's files have it as the matrix of the head
    return state, unified.build().load_official, ("", "module.encoder.", "pooler."), optional


def unified_xlxmert(_):
    state = unified.xlxmert_state(unified.build(seed=1))
    optional = ("module.bert.pooler.*", "module.cls.seq_relationship.*", "module.cls.predictions.decoder.weight")
    optional += ("module.answer_head.*", "module.vis_emb.weight")  # the head has the clusters too
    return state, unified.build().load_official, ("", "module.bert.encoder.", "module.bert.pooler."), optional


def unified_decoder(_):
    source, module = unified.build(seed=1).images, unified.build().images
    state = {f"module.{key}": x for key, x in source.decoder.state_dict().items()}
    return state, module.load_official_decoder, ("", "module.resblocks.0."), ()


def unified_start(_):
    return unified.build(seed=1).state_dict(), unified.build().start_from, ("", "network.", "images."), ()


LOADERS = [
    resnet, clip, clip_teacher, dino_teacher, committee, clip_vip_official, clip_vip_start, maskalign_official,
    maskalign_start, autoencoder_start, finetune_start, probe_start, unified_official, unified_xlxmert, unified_decoder,
    unified_start,
]  # fmt: skip


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)
def test_a_parameter_too_many_or_too_few_is_an_error_that_names_it(loader, tmp_path):
    state, load, places, optional = loader(tmp_path)
    load(state)
    for place in places:
        with pytest.raises(ValueError, match=r"stray_parameter: .*, expected absent"):
            load({**state, f"{place}stray_parameter": torch.zeros(1)})
    needed = [key for key in state if not any(fnmatchcase(key, pattern) for pattern in optional)]
    with pytest.raises(ValueError, match=r"another architecture: .*\(.*\), expected"):
        load({**state, needed[0]: torch.zeros(3, *state[needed[0]].shape)})
    messages = set()
    for key in needed[:: max(1, len(needed) // 25)]:
        with pytest.raises(ValueError, match=r"another architecture: .*: absent, expected") as error:
            load({other: x for other, x in state.items() if other != key})
        messages.add(str(error.value))
    assert len(messages) == len(needed[:: max(1, len(needed) // 25)])
    for key in state.keys() - {*needed}:
        load({other: x for other, x in state.items() if other != key})


def test_no_other_code_loads_weights_into_modules():
    """`load_state_dict` is called in the one function, and where training resumes what it has saved itself."""
    known = {"layers/published.py", "layers/stack.py", "training.py"}
    found = set()
    for path in (ROOT / "lightning_modules").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                own = node.func.attr == "load_state_dict" or ast.unparse(node.func).endswith("Model.from_pretrained")
                found |= {path.relative_to(ROOT / "lightning_modules").as_posix()} if own else set()
    assert found <= known
