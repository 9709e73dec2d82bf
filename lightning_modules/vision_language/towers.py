"""CLIP's vision tower as the frozen eye of a language model: the features of its patches, without the CLS token.

Read `VisionTower.features` first. It takes stored pictures of any size: they are cut or padded to a square, scaled and
normalised here.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NotRequired

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datasets.squares import Fit
from lightning_modules.layers.published import CLIP_STATISTICS, from_pretrained
from lightning_modules.rehearsal import width
from lightning_modules.settings import STRICT, Count, Positive

if TYPE_CHECKING:  # takes seconds, and who calls has it
    from transformers import CLIPVisionModel

# What sets published towers apart from CLIPVisionConfig's defaults, which are ViT-B/32's.
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
         "patch_size": 14}  # fmt: skip
PUBLISHED = {
    "openai/clip-vit-base-patch32": {"patch_size": 32},
    "openai/clip-vit-base-patch16": {"patch_size": 16},
    "openai/clip-vit-large-patch14": LARGE,
    "openai/clip-vit-large-patch14-336": {**LARGE, "image_size": 336},
}


class VisionSizes(TypedDict):
    """Settings of `CLIPVisionConfig` that a fresh tower is given."""

    __pydantic_config__ = STRICT
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    image_size: Count
    patch_size: Count


class TowerSettings(TypedDict):
    """Arguments of `make_tower`, which says what they are."""

    __pydantic_config__ = STRICT
    hub: NotRequired[str | None]
    sizes: NotRequired[VisionSizes | None]
    layer: NotRequired[int]
    fit: NotRequired[Fit]
    pixel_scale: NotRequired[Positive]


class VisionTower(nn.Module):
    """A vision tower of `transformers` that gives the features of patches.

    Args:
        model: the tower.
        layer: whose output is read: 0 for the embeddings, -1 for the last block.
        fit: how a picture becomes a square: `crop` cuts its middle out, `pad` adds bars of the mean colour, `squash`
            changes its aspect ratio.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, model: "CLIPVisionModel", *, layer: int = -2, fit: Fit = "squash", pixel_scale: float = 255.0):
        super().__init__()
        self.model, self.layer, self.fit, self.pixel_scale = model, layer, fit, pixel_scale
        blocks = model.config.num_hidden_layers
        if not -blocks - 1 <= layer <= blocks:
            raise ValueError(f"tower.layer is {layer}, but a tower of {blocks} blocks has {-blocks - 1} to {blocks}.")
        for name, values in zip(("mean", "std"), CLIP_STATISTICS, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @property
    def side(self) -> int:
        """Of the square that it reads, in pixels."""
        return self.model.config.image_size

    @property
    def grid(self) -> int:
        """Patches along a side; features are in reading order."""
        return self.side // self.model.config.patch_size

    @property
    def dim(self) -> int:
        """Of the features of a patch."""
        return self.model.config.hidden_size

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of its pictures, per channel, in units of white."""
        return self.mean.flatten().tolist(), self.std.flatten().tolist()

    def features(self, images: Shaped[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch patches dim"]:
        """Features of all patches of stored pictures, in reading order."""
        return self.read(self.pixels(images))

    def forward(self, images: Shaped[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch patches dim"]:
        """The same."""
        return self.features(images)

    def pixels(self, images: Shaped[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 side side"]:
        """Stored pictures as square, normalised ones of the size that the tower reads."""
        images = images.to(self.mean.dtype) / self.pixel_scale
        images = (self.squared(images) - self.mean) / self.std
        if tuple(images.shape[-2:]) == (self.side, self.side):
            return images
        return F.interpolate(images, size=(self.side,) * 2, mode="bicubic", align_corners=False, antialias=True)

    def squared(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Pictures as squares, see `fit`; those that are square stay as they are."""
        height, width_ = images.shape[-2:]
        if height == width_ or self.fit == "squash":
            return images
        short, long = sorted((height, width_))
        if self.fit == "crop":
            top, left = (height - short) // 2, (width_ - short) // 2
            return images[..., top : top + short, left : left + short]
        square = self.mean.expand(len(images), 3, long, long).clone()
        top, left = (long - height) // 2, (long - width_) // 2
        square[..., top : top + height, left : left + width_] = images
        return square

    def read(self, pixels: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch patches dim"]:
        """Features of all patches of normalised pictures; blocks behind the layer that is read are not computed."""
        states = self._tower.pre_layrnorm(self._tower.embeddings(pixels))
        for block in self._read_blocks:
            states = block(states, attention_mask=None)
            states = states[0] if isinstance(states, tuple) else states
        return states[:, 1:]

    def unfreeze(self) -> None:
        """Let learn what is read: not the blocks behind the layer, nor the norm after the last one."""
        for part in (self._tower.embeddings, self._tower.pre_layrnorm, *self._read_blocks):
            part.requires_grad_(True)

    @property
    def _tower(self) -> nn.Module:
        return getattr(self.model, "vision_model", self.model)  # `transformers` 5 has no name in between

    @property
    def _read_blocks(self) -> nn.ModuleList:
        blocks = self._tower.encoder.layers
        return blocks[: self.layer if self.layer >= 0 else len(blocks) + 1 + self.layer]


def make_tower(
    *,
    hub: str | None = None,
    sizes: Mapping[str, object] | None = None,
    layer: int = -2,
    fit: Fit = "squash",
    pixel_scale: float = 255.0,
) -> VisionTower:
    """A vision tower of CLIP: published, saved, or of given sizes with fresh weights.

    Under `torch.device("meta")` a published one is its architecture only, without network.

    Args:
        hub: a name of the Hugging Face hub or a folder in its format; null for fresh weights.
        sizes: settings of `CLIPVisionConfig`, for fresh weights only.
        layer: see `VisionTower`, as those that follow.
        fit: see there.
        pixel_scale: see there.

    Raises:
        ValueError: sizes are given for a published one, which has its own, or are missing for a fresh one, or do not
            fit each other.
        ConnectionError: the hub cannot be reached and the weights are not in its cache.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if (sizes is None) == (hub is None):
        raise ValueError(
            f"tower.hub is {hub!r} and tower.sizes are {'not ' if sizes is None else ''}given: name a published tower, "
            "which has its own sizes, or give those of a fresh one."
        )
    if hub is None:
        check_sizes(sizes)
        model = CLIPVisionModel(CLIPVisionConfig(**sizes))
    else:
        unused = ("text_model.*", "text_projection.*", "visual_projection.*", "logit_scale", "*.position_ids")
        model = from_pretrained(CLIPVisionModel, hub, partial(_published_architecture, hub), unused=unused).float()
    return VisionTower(model, layer=layer, fit=fit, pixel_scale=pixel_scale)


def check_sizes(sizes: VisionSizes, where: str = "tower.sizes") -> None:
    """Refuse sizes that no tower can be built of.

    Args:
        sizes: of a fresh tower.
        where: the name of these settings.

    Raises:
        ValueError: a size is no multiple of one that divides it.
    """
    for whole, part in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
        if sizes[whole] % sizes[part]:
            raise ValueError(f"{where}.{whole} ({sizes[whole]}) must be a multiple of {where}.{part} ({sizes[part]}).")


def _published_architecture(hub: str) -> "CLIPVisionModel":
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if hub not in PUBLISHED:
        raise ValueError(f"the sizes of {hub!r} are not written out; known without its files: {[*PUBLISHED]}.")
    config = CLIPVisionConfig(**PUBLISHED[hub])
    config.hidden_size, config.intermediate_size = width(config.hidden_size), width(config.intermediate_size)
    return CLIPVisionModel(config)
