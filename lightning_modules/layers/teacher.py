"""A frozen ViT whose features of the whole image are what a student learns from."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_modules.layers.vision import VisionTransformer


class Frozen(nn.Module):
    """Holds a network that is never trained.

    It is no registered submodule, so neither an optimiser, a checkpoint, DDP nor `train()` reaches it; moves to another
    device or dtype do.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        object.__setattr__(self, "network", network.requires_grad_(False).eval())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Frozen":
        self.network._apply(fn)
        return super()._apply(fn, recurse)


class Lesson(NamedTuple):
    """What a teacher says about a batch."""

    layers: Float[Tensor, "targets batch tokens dim"]
    importance: Float[Tensor, "batch patches"] | None


class Teacher(Frozen):
    """A frozen ViT that is given the student's images: it undoes their normalisation and size before it looks.

    Args:
        vit: the network.
        normalised: mean and standard deviation per channel with which the student's images were normalised.
        expects: those with which the teacher was trained.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        normalised: tuple[Sequence[float], Sequence[float]],
        expects: tuple[Sequence[float], Sequence[float]],
    ):
        super().__init__(vit)
        (mean, std), (own_mean, own_std) = (torch.tensor(pair)[:, :, None, None] for pair in (normalised, expects))
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch channels height width"], layers: Sequence[int], attention: bool
    ) -> Lesson:
        """The tokens after the blocks numbered `layers` (from 0), and how the last block's CLS attends to each patch.

        Only that one row of that one block's attention is computed; all blocks keep their fused kernel.
        """
        vit: VisionTransformer = self.network
        images = images * self.scale + self.shift
        if images.shape[-1] != vit.image_size:
            images = F.interpolate(images, size=(vit.image_size,) * 2, mode="bicubic", align_corners=False)
        x = vit.embed(images)
        wanted, importance = {}, None
        for index, block in enumerate(vit.blocks):
            if attention and index == len(vit.blocks) - 1:
                importance = block.cls_attention(x).mean(1)[:, 1:]
            x = block(x)
            if index in layers:
                wanted[index] = x
        return Lesson(torch.stack([wanted[index] for index in layers]), importance)
