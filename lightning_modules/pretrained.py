"""Official image classifiers of the Hugging Face hub as plain modules; weights come as safetensors, never pickled."""

# transformers is imported where it is used: only hub members need it, and it takes seconds.
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_modules.layers.published import from_pretrained
from lightning_modules.rehearsal import width

if TYPE_CHECKING:
    from transformers import EfficientNetConfig, PreTrainedConfig, PreTrainedModel, ViTConfig

IMAGENET_CLASSES = 1000

# width and depth factors, resolution, channels of the last layer (Tan and Le, 1905.11946), and the blocks that
# transformers pads for an odd size at that resolution (the published checkpoints' configurations)
EFFICIENTNETS = {
    "google/efficientnet-b0": (1.0, 1.0, 224, 1280, []),
    "google/efficientnet-b1": (1.0, 1.1, 240, 1280, [16]),
    "google/efficientnet-b2": (1.1, 1.2, 260, 1408, [5, 8, 16]),
    "google/efficientnet-b3": (1.2, 1.4, 300, 1536, [5, 18]),
    "google/efficientnet-b4": (1.4, 1.8, 380, 1792, [6]),
    "google/efficientnet-b5": (1.6, 2.2, 456, 2048, [13, 27]),
    "google/efficientnet-b6": (1.8, 2.6, 528, 2304, [31]),
    "google/efficientnet-b7": (2.0, 3.1, 600, 2560, [18]),
}
RESNET_DEPTHS = {
    "microsoft/resnet-50": [3, 4, 6, 3],
    "microsoft/resnet-101": [3, 4, 23, 3],
    "microsoft/resnet-152": [3, 8, 36, 3],
}
MOBILENETS = {"google/mobilenet_v2_1.0_224": (1.0, 224), "google/mobilenet_v2_1.4_224": (1.4, 224)}
VITS = {
    "google/vit-base-patch16-224": (768, 12, 224),
    "google/vit-base-patch16-384": (768, 12, 384),
    "google/vit-large-patch16-224": (1024, 24, 224),
    "google/vit-large-patch16-384": (1024, 24, 384),
}


class HubClassifier(nn.Module):
    """A classifier of the hub behind the one signature of all members."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        if model.config.model_type == "efficientnet":
            _pad_for_any_resolution(model)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits for normalised images."""
        return self.model(pixel_values=images).logits


class SamePad(nn.Module):
    """Zeros around a map so that a convolution of stride 2 gives half its size, rounded up, as TensorFlow's `SAME`."""

    def __init__(self, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, features: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c h w"]:
        """An odd number of zeros has the larger part below and on the right."""
        height, width = (self.kernel_size - 2 + size % 2 for size in features.shape[-2:])
        return F.pad(features, (width // 2, width - width // 2, height // 2, height - height // 2))


def _pad_for_any_resolution(model: nn.Module) -> None:
    """Pad EfficientNets by the size at hand: transformers fixes the padding for one resolution.

    At the second resolution of a self-cascade its fixed padding loses a row and a column of odd maps (B1 at 300 pixels:
    0.962 instead of 1.083 GMACs). At the native resolution nothing changes.
    """
    for module in model.modules():
        for padding, convolution in (("padding", "convolution"), ("depthwise_conv_pad", "depthwise_conv")):
            if isinstance(getattr(module, padding, None), nn.ZeroPad2d):
                setattr(module, padding, SamePad(getattr(module, convolution).kernel_size[0]))


def short_name(name: str) -> str:
    """The part of a hub name after the owner, without dots, which separate keys of a state dict."""
    return name.rpartition("/")[2].replace(".", "_")


def load(name: str) -> HubClassifier:
    """The classifier with its published weights; under `torch.device("meta")` its architecture only.

    Raises:
        ConnectionError: the hub cannot be reached and the weights are not in its cache.
    """
    from transformers import AutoModelForImageClassification

    return HubClassifier(from_pretrained(AutoModelForImageClassification, name, partial(_drawn, name)))


def build(name: str) -> HubClassifier:
    """The architecture with random weights, without network."""
    return HubClassifier(_drawn(name))


def _drawn(name: str) -> "PreTrainedModel":
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification.from_config(configuration(name))


def configuration(name: str) -> "PreTrainedConfig":
    """The published configuration of an architecture, written out so that it can be built without network.

    Args:
        name: hub name or short name.

    Raises:
        ValueError: the architecture is not written out here.
    """
    from transformers import MobileNetV2Config, ResNetConfig

    known = [*EFFICIENTNETS, *RESNET_DEPTHS, *MOBILENETS, *VITS]
    name = {short_name(full): full for full in known}.get(name, name)
    if name in EFFICIENTNETS:
        return _efficientnet(*EFFICIENTNETS[name])
    if name in RESNET_DEPTHS:
        sizes = {"embedding_size": width(64), "hidden_sizes": [width(size) for size in (256, 512, 1024, 2048)]}
        return ResNetConfig(depths=RESNET_DEPTHS[name], layer_type="bottleneck", num_labels=IMAGENET_CLASSES, **sizes)
    if name in MOBILENETS:
        multiplier, size = MOBILENETS[name]
        # 1001: the published heads have a background class
        return MobileNetV2Config(depth_multiplier=width(multiplier), image_size=size, num_labels=IMAGENET_CLASSES + 1)
    if name in VITS:
        return _vit(*VITS[name])
    raise ValueError(f"no configuration is written out for {name!r}; known without network: {', '.join(known)}.")


def _efficientnet(factor: float, depth: float, size: int, last: int, padding: list[int]) -> "EfficientNetConfig":
    from transformers import EfficientNetConfig

    return EfficientNetConfig(
        width_coefficient=width(factor),
        depth_coefficient=depth,
        image_size=size,
        hidden_dim=width(last),
        depthwise_padding=padding,
        num_labels=IMAGENET_CLASSES,
    )


def _vit(dim: int, layers: int, size: int) -> "ViTConfig":
    from transformers import ViTConfig

    return ViTConfig(
        hidden_size=width(dim),
        intermediate_size=4 * width(dim),
        num_hidden_layers=layers,
        num_attention_heads=dim // 64,
        image_size=size,
        num_labels=IMAGENET_CLASSES,
    )
