"""CLIP as `transformers` has it: published, saved, or of given sizes with fresh weights."""

from collections.abc import Mapping
from functools import partial

from transformers import CLIPConfig, CLIPModel

from lightning_modules.layers.published import from_pretrained
from lightning_modules.rehearsal import width
from lightning_modules.settings import Count

# What sets the vision tower, the text tower and the features apart from CLIPConfig's defaults, which are ViT-B/32's.
LARGE_VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
LARGE_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
PUBLISHED: dict[str, tuple[dict, dict, int]] = {
    "openai/clip-vit-base-patch32": ({"patch_size": 32}, {}, 512),
    "openai/clip-vit-base-patch16": ({"patch_size": 16}, {}, 512),
    "openai/clip-vit-large-patch14": ({"patch_size": 14, **LARGE_VISION}, LARGE_TEXT, 768),
}


def make_clip(
    *,
    hub: str | None = None,
    vision: Mapping[str, object] | None = None,
    text: Mapping[str, object] | None = None,
    projection_dim: Count | None = None,
) -> CLIPModel:
    """A CLIP of `transformers`: a published or saved one, or one of given sizes with fresh weights.

    Under `torch.device("meta")` a published one is its architecture only, without network.

    Args:
        hub: a name of the Hugging Face hub or a folder in its format; null for fresh weights.
        vision: settings of `CLIPVisionConfig`, for fresh weights only.
        text: settings of `CLIPTextConfig`, likewise.
        projection_dim: size of the features, likewise.

    Raises:
        ValueError: sizes are given for a published one, which has its own, or missing for a fresh one.
        ConnectionError: the hub cannot be reached and the weights are not in its cache.
    """
    given = {"vision": vision, "text": text, "projection_dim": projection_dim}
    odd = [name for name, value in given.items() if (value is None) == (hub is None)]
    if odd and hub is None:
        raise ValueError(f"clip.hub is null, so clip.{odd[0]} must say how large the fresh CLIP is.")
    if odd:
        raise ValueError(f"clip.hub is {hub!r}, which has its own sizes; leave out {', '.join(odd)}.")
    if hub is None:
        no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # for generating, which CLIP does not
        sizes = {"text_config": {**no_ids, **text}, "vision_config": dict(vision), "projection_dim": projection_dim}
        return CLIPModel(CLIPConfig(**sizes))
    drawn = partial(_published_architecture, hub)
    return from_pretrained(CLIPModel, hub, drawn, unused=("*.position_ids",)).train()  # it comes in evaluation mode


def _published_architecture(hub: str) -> CLIPModel:
    if hub not in PUBLISHED:
        raise ValueError(f"the sizes of {hub!r} are not written out; known without its files: {[*PUBLISHED]}.")
    vision, text, features = PUBLISHED[hub]
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=features)
    for part in (config.vision_config, config.text_config):
        part.hidden_size, part.intermediate_size = width(part.hidden_size), width(part.intermediate_size)
    config.projection_dim = width(config.projection_dim)
    return CLIPModel(config)


def sizes_of(clip: CLIPModel) -> dict:
    """Arguments of `make_clip` that build an architecture without its weights."""
    both = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "layer_norm_eps",
    )
    vision, text = clip.config.vision_config, clip.config.text_config
    return {
        "hub": None,
        "vision": {name: getattr(vision, name) for name in (*both, "image_size", "patch_size", "num_channels")},
        "text": {name: getattr(text, name) for name in (*both, "vocab_size", "max_position_embeddings")},
        "projection_dim": clip.config.projection_dim,
    }
