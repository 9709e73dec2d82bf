"""Our `VisionTransformer` beside those of `transformers`: the names of parameters, and export to its classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.layers.exported import Exported
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.vision import VisionTransformer


@dataclass(frozen=True)
class Family:
    """A family of published ViTs: what sets it apart, and what `transformers` calls our parameters.

    `names` and `block_names` map our parameters, or the modules that hold them, to theirs; our fused `attn.qkv` is here
    split into `attn.q`, `attn.k` and `attn.v`. `former` are parts of names that transformers 4 had, with what became of
    them: checkpoints of official codes hold these.
    """

    architecture: dict
    names: dict[str, str]
    block: str
    block_names: dict[str, str]
    former: tuple[tuple[str, str], ...] = ()


FAMILIES = {
    "clip": Family(
        {"position": "learned", "norm_eps": 1e-5, "activation": "quick_gelu", "embedding_norm": True},
        {
            "cls_token": "embeddings.class_embedding",
            "pos_embed": "embeddings.position_embedding.weight",
            "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
            "embedding_norm": "pre_layrnorm",
            "norm": "post_layernorm",
        },
        "encoder.layers",
        {
            "norm1": "layer_norm1",
            "norm2": "layer_norm2",
            "attn.q": "self_attn.q_proj",
            "attn.k": "self_attn.k_proj",
            "attn.v": "self_attn.v_proj",
            "attn.proj": "self_attn.out_proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        },
    ),
    "vit": Family(
        {"position": "learned", "norm_eps": 1e-12},
        {
            "cls_token": "embeddings.cls_token",
            "pos_embed": "embeddings.position_embeddings",
            "patch_embed.proj": "embeddings.patch_embeddings.projection",
            "norm": "layernorm",
        },
        "layers",
        {
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "attn.q": "attention.q_proj",
            "attn.k": "attention.k_proj",
            "attn.v": "attention.v_proj",
            "attn.proj": "attention.o_proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        },
        (
            ("encoder.layer.", "layers."),
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ),
    ),
}


def from_hub(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Our names and shapes for a state dict of `transformers` 4 or 5; unknown keys, such as those in `UNUSED`, stay."""
    theirs = {theirs: ours for ours, theirs in _names(FAMILIES[family], _count_blocks(state))}
    ours = {}
    for key, x in state.items():
        for former, now in FAMILIES[family].former:
            key = key.replace(former, now)
        ours[_renamed(key, theirs)] = x
    for key in [key for key in ours if ".attn.q." in key]:
        parts = [key.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in ours for part in parts):
            ours[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([ours.pop(part) for part in parts])
    if "cls_token" in ours and "pos_embed" in ours:
        ours["cls_token"] = ours["cls_token"].reshape(1, 1, -1)
        ours["pos_embed"] = ours["pos_embed"].reshape(1, -1, ours["cls_token"].shape[-1])
    return ours


def to_hub(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The reverse of `from_hub`."""
    ours = dict(state)
    for key in [key for key in ours if ".attn.qkv." in key]:
        for part, x in zip("qkv", ours.pop(key).chunk(3), strict=True):
            ours[key.replace(".attn.qkv.", f".attn.{part}.")] = x.clone()
    if family == "clip":  # keeps both without a batch axis
        ours["cls_token"], ours["pos_embed"] = ours["cls_token"].flatten(), ours["pos_embed"].squeeze(0)
    names = dict(_names(FAMILIES[family], _count_blocks(state)))
    return {_renamed(key, names): x for key, x in ours.items()}


def former_name(key: str, family: str) -> str:
    """What transformers 4 called a parameter of `to_hub`, so what an official checkpoint calls it."""
    for former, now in FAMILIES[family].former:
        key = key.replace(now, former)
    return key


def family_of(vit: VisionTransformer) -> str:
    """The family whose architecture a ViT has: only CLIP's normalises its embedding."""
    return "clip" if isinstance(vit.embedding_norm, nn.LayerNorm) else "vit"


def _names(family: Family, depth: int) -> Iterator[tuple[str, str]]:
    """Our and their name of each parameter or of the module that holds it."""
    yield from family.names.items()
    for i in range(depth):
        for ours, theirs in family.block_names.items():
            yield f"blocks.{i}.{ours}", f"{family.block}.{i}.{theirs}"


def _renamed(key: str, names: Mapping[str, str]) -> str:
    module, _, leaf = key.rpartition(".")
    return names.get(key) or (f"{names[module]}.{leaf}" if module in names else key)


def _count_blocks(state: Mapping[str, Tensor]) -> int:
    """One more than the largest number in a key."""
    return 1 + max((int(part) for key in state for part in key.split(".") if part.isdigit()), default=-1)


def exported_features(vit: VisionTransformer, statistics: tuple[Sequence[float], Sequence[float]]) -> Exported:
    """A ViT as `ViTModel`; its features are the mean of the normalised patch tokens.

    Raises:
        ValueError: the ViT has a norm after its embedding, which `ViTModel` has not.
    """
    from transformers import ViTConfig, ViTModel

    model = ViTModel(ViTConfig(**_sizes(vit)), add_pooling_layer=False)
    load_strictly(model, _named(vit, vit.norm), "the exported ViT")
    usage = "features = model(pixels).last_hidden_state[:, 1:].mean(1)"
    return Exported(model.eval(), statistics, usage, {"add_pooling_layer": False})


def exported_classifier(
    vit: VisionTransformer,
    norm: nn.LayerNorm,
    head: nn.Linear,
    pool: str,
    statistics: tuple[Sequence[float], Sequence[float]],
) -> Exported:
    """A ViT with norm and head behind its last block, as a classifier of `transformers`.

    With the CLS token it is a `ViTForImageClassification`. With the mean of the patches, normalised after it was taken,
    it is a `BeitForImageClassification` with absolute positions and without layer scale: BEiT has no bias of the keys,
    which adds the same to all scores of a query, so that softmax takes it out again.

    Raises:
        ValueError: the ViT has a norm after its embedding, which these classes have not.
    """
    from transformers import BeitConfig, BeitForImageClassification, ViTConfig, ViTForImageClassification

    sizes = _sizes(vit) | {"num_labels": head.out_features}
    top = {f"classifier.{name}": x for name, x in head.state_dict().items()}
    if pool == "cls":
        model = ViTForImageClassification(ViTConfig(**sizes))
        state = {f"vit.{name}": x for name, x in _named(vit, norm).items()}
    else:
        absolute = {"use_absolute_position_embeddings": True, "use_mean_pooling": True, "layer_scale_init_value": 0.0}
        model = BeitForImageClassification(BeitConfig(**sizes, **absolute, use_mask_token=False))
        state = {f"beit.{name}": x for name, x in _named(vit, None).items() if not name.endswith("k_proj.bias")}
        top |= {f"beit.pooler.layernorm.{name}": x for name, x in norm.state_dict().items()}
    load_strictly(model, state | top, "the exported classifier")
    return Exported(model.eval(), statistics, "logits = model(pixels).logits")


def _sizes(vit: VisionTransformer) -> dict:
    if family_of(vit) != "vit":
        raise ValueError("a ViT with a norm after its embedding is CLIP's, and no class of transformers has it alone")
    block = vit.blocks[0]
    return {
        "hidden_size": vit.dim,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu" if isinstance(block.mlp.act, nn.GELU) else "quick_gelu",
        "layer_norm_eps": block.norm1.eps,
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "num_channels": vit.channels,
    }


def _named(vit: VisionTransformer, norm: nn.LayerNorm | None) -> dict[str, Tensor]:
    """The state dict under the names of `ViTModel`, with `norm` as its last one; one without parameters gets them."""
    state = {name: x for name, x in vit.state_dict().items() if not name.startswith("norm.")}
    if norm is not None:
        state["norm.weight"] = torch.ones(vit.dim) if norm.weight is None else norm.weight
        state["norm.bias"] = torch.zeros(vit.dim) if norm.bias is None else norm.bias
    return to_hub(state, "vit")
