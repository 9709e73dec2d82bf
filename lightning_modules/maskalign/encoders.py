"""Published image encoders of the Hugging Face hub as our `VisionTransformer`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lightning_modules.layers.hub_vit import FAMILIES, from_hub
from lightning_modules.layers.position import resize_positions
from lightning_modules.layers.published import CLIP_STATISTICS, from_pretrained, load_strictly
from lightning_modules.layers.teacher import Teacher
from lightning_modules.layers.vision import VisionTransformer
from lightning_modules.rehearsal import width


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
        state = from_hub(_hub_encoder(name, encoder).state_dict(), encoder.family)
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


def _hub_encoder(name: str, encoder: Encoder) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel  # takes seconds

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
