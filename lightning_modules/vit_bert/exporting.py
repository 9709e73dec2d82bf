"""A trained encoder for `transformers`: the side of pictures as a ViT."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import ViTConfig, ViTModel

from lightning_modules.layers.exported import Exported
from lightning_modules.layers.hub_vit import to_hub
from lightning_modules.layers.published import load_strictly
from lightning_modules.vit_bert.network import Network

USAGE = "features = model(pixels).pooler_output"


def exported(network: Network, statistics: tuple[Sequence[float], Sequence[float]]) -> Exported:
    """The side of pictures as `ViTModel`, whose pooler is the first half of the head.

    Raises:
        ValueError: the norms follow the branches, as in no ViT of `transformers`.
    """
    encoder = network.encoder("image")
    if not hasattr(encoder.norm, "weight"):
        raise ValueError(
            "its norms follow the branches (encoder.norm: post), and a ViT of transformers has them before"
        )
    model = ViTModel(ViTConfig(**_sizes(network)))
    state = to_hub(_image_side(network), "vit")
    state |= {f"pooler.dense.{name}": x for name, x in network.heads["images"].pooler.state_dict().items()}
    load_strictly(model, state, "the exported ViT")
    return Exported(model.eval(), statistics, USAGE)


def _sizes(network: Network) -> dict:
    encoder, tokens = network.encoder("image"), network.tokens["image"]
    block = encoder.blocks[0]
    return {
        "hidden_size": encoder.norm.normalized_shape[0],
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attn.heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "layer_norm_eps": block.norm1.eps,
        "image_size": tokens.image_size,
        "patch_size": tokens.patches.proj.kernel_size[0],
        "pooler_output_size": encoder.norm.normalized_shape[0],
    }


def _image_side(network: Network) -> Mapping[str, Tensor]:
    """Under the names of our other ViTs; the vector of the modality is added to the positions."""
    tokens = network.tokens["image"]
    found = dict(network.encoder("image").state_dict())
    found |= {f"patch_embed.{name}": x for name, x in tokens.patches.state_dict().items()}
    found["cls_token"] = tokens.cls.detach()
    found["pos_embed"] = tokens.positions.detach() + (0 if tokens.modality is None else tokens.modality.detach())
    return found
