"""Published image encoders of the Hugging Face hub as our `VisionTransformer`, and the key maps between the two."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.layers.position import resize_positions
from lightning_modules.layers.published import CLIP_STATISTICS, from_pretrained, load_strictly
from lightning_modules.layers.teacher import Teacher
from lightning_modules.layers.vision import VisionTransformer
from lightning_modules.rehearsal import width


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


@dataclass(frozen=True)
class Encoder:
    """A published image encoder of the hub: family, sizes, and the normalisation of its images."""

    family: str
    dim: int
    depth: int
    num_heads: int
    patch_size: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")  # what our ViT has no place for
ENCODERS = {
    "openai/clip-vit-base-patch16": Encoder("clip", 768, 12, 12, 16, 224, *CLIP_STATISTICS),
    "openai/clip-vit-large-patch14": Encoder("clip", 1024, 24, 16, 14, 224, *CLIP_STATISTICS),
    "facebook/dino-vitb16": Encoder("vit", 768, 12, 12, 16, 224, *IMAGENET_STATISTICS),
}


def published_encoder(name: str, image_size: int) -> VisionTransformer:
    """A published encoder as our ViT, for images of `image_size`: its positions are resized if that is not its own.

    Under `torch.device("meta")` it is the architecture only, without network.

    Raises:
        ValueError: the encoder is not in `ENCODERS`.
        ConnectionError: the hub cannot be reached and the weights are not in its cache.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder {name!r} is unknown; expected one of {', '.join(ENCODERS)}.")
    encoder = ENCODERS[name]
    vit = VisionTransformer(
        image_size=image_size,
        patch_size=encoder.patch_size,
        dim=width(encoder.dim),
        depth=encoder.depth,
        num_heads=encoder.num_heads,
        **FAMILIES[encoder.family].architecture,
    )
    if torch.get_default_device().type != "meta":
        state = from_hub(_hub_encoder(name).state_dict(), encoder.family)
        state["pos_embed"] = resize_positions(state["pos_embed"], vit.grid)
        load_strictly(vit, state, name, unused=UNUSED)
    return vit


def make_teacher(
    *,
    hub: str | None = None,
    image_size: int,
    normalised: tuple[Sequence[float], Sequence[float]],
    **architecture: object,
) -> Teacher:
    """A published encoder, or a ViT of our own that expects images as the student does and has no last norm.

    Raises:
        ValueError: an architecture is given for a published encoder, which has one.
    """
    if hub is None:
        vit = VisionTransformer(**{"image_size": image_size, "affine_norm": False, **architecture})
        return Teacher(vit, normalised, normalised)
    given = {key: value for key, value in architecture.items() if value is not None}
    if given:
        raise ValueError(f"teacher {hub!r} has its own architecture; leave out {', '.join(given)}.")
    vit = published_encoder(hub, image_size)
    return Teacher(vit, normalised, (ENCODERS[hub].mean, ENCODERS[hub].std))


def _hub_encoder(name: str) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel  # takes seconds

    encoder = ENCODERS[name]
    sizes = {
        "hidden_size": width(encoder.dim),
        "intermediate_size": 4 * width(encoder.dim),
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "patch_size": encoder.patch_size,
        "image_size": encoder.image_size,
    }
    if encoder.family == "vit":
        return from_pretrained(ViTModel, name, lambda: ViTModel(ViTConfig(**sizes)), new=("pooler.*",))
    text = ("text_model.*", "*_projection.weight", "logit_scale", "*.position_ids")  # in the file of a whole CLIP
    return from_pretrained(CLIPVisionModel, name, lambda: CLIPVisionModel(CLIPVisionConfig(**sizes)), unused=text)


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
