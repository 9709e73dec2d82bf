"""What stylisation is given of a clip: how things move in it and how near they are, as pixels (section 3.1).

Optical flow (two channels) and depth (one) make three channels, so that the tokenizer of clips reads them as it reads a
clip. The paper takes RAFT and MiDaS. Here `flow` names the class of a flow network in conf/, and `depth` a DPT that was
trained as MiDaS was, of transformers. How both are brought to pixels is not published and our choice.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules import rehearsal
from lightning_modules.layers.published import from_pretrained
from lightning_modules.layers.teacher import Frozen
from lightning_modules.settings import STRICT, Positive, bind

FRAMES = 64  # that the depth network reads at a time
UNREAD = "neck.fusion_stage.layers.0.residual_layer1.*"  # the first of these layers has nothing to add; files lack it


class GuideSettings(TypedDict):
    """The flow network, with its `_target_`; the name of a DPT of the hub, or a folder; and the reach of flows.

    Flows as long as `reach`, a share of the frame's side, and longer ones are the ends of the range of a pixel.
    """

    __pydantic_config__ = STRICT
    flow: dict[str, Any]
    depth: str
    reach: Positive


class Depth(Frozen):
    """How near each pixel is, by a DPT with published weights, never trained; they are in no checkpoint and no export.

    Args:
        name: of the hub, such as `Intel/dpt-large`, or a folder in its format.

    Raises:
        ConnectionError: the weights cannot be had.
    """

    def __init__(self, name: str):
        from transformers import DPTConfig, DPTForDepthEstimation

        def drawn() -> DPTForDepthEstimation:
            wide, inner, *neck = (rehearsal.width(size) for size in (1024, 4096, 256, 512, 1024, 1024))
            return DPTForDepthEstimation(
                DPTConfig(
                    hidden_size=wide, intermediate_size=inner, num_hidden_layers=24, num_attention_heads=16,
                    backbone_out_indices=[5, 11, 17, 23], neck_hidden_sizes=neck, fusion_hidden_size=neck[0],
                )
            )  # fmt: skip  # `Intel/dpt-large`

        super().__init__(from_pretrained(DPTForDepthEstimation, name, drawn, new=(UNREAD,)))

    @torch.no_grad()
    def forward(self, video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch frames h w"]:
        """From 0, farthest, to 1, nearest in the clip: the network knows no unit. All 0 where all is equally far.

        Frames are squeezed into the square that the network was trained on, as its image processor does.

        Args:
            video: pixels from 0 to 1.
        """
        sides = [self.network.config.image_size] * 2
        frames = _resized(2 * video.transpose(1, 2).flatten(0, 1) - 1, sides)
        near = torch.cat([self.network(pixel_values=part).predicted_depth for part in frames.split(FRAMES)])
        near = _resized(near[:, None], video.shape[-2:])[:, 0].unflatten(0, (len(video), -1))
        low, high = (edge(near.flatten(1), 1)[:, None, None, None] for edge in (torch.amin, torch.amax))
        return (near - low) / (high - low).where(high > low, 1)


class Guides(nn.Module):
    """Clips to their flow and depth, which look like clips.

    Args:
        flow: a block of conf/: `_target_` and arguments of a network that gives (batch frames-1 2 h w) flows in pixels,
            x first, from each frame to the next or back.
        depth: see `Depth`.
        reach: see `GuideSettings`.

    Raises:
        ValueError: there is no such class, or an argument is none of its own.
        ConnectionError: the weights of the depth network cannot be had.
    """

    def __init__(self, *, flow: dict[str, Any], depth: str, reach: Positive):
        super().__init__()
        if "_target_" not in flow:
            raise ValueError(
                "model.guides.flow has no `_target_`: name a flow network, such as "
                "lightning_modules.fgla.raft.FlowTeacher, and give its arguments beside it."
            )
        self.flow = bind(flow, "model.guides.flow")().requires_grad_(False)
        self.depth, self.reach = Depth(depth), reach

    @torch.no_grad()
    def forward(self, video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames h w"]:
        """Flow to the right, flow downwards, and depth, from 0 to 1; a flow of 0 is 0.5.

        The last frame has the flow of the one before, since none follows it.

        Args:
            video: pixels from 0 to 1, at least two frames.
        """
        flows = self.flow(video)
        flows = torch.cat([flows, flows[:, -1:]], 1)
        sides = flows.new_tensor([video.shape[4], video.shape[3]])[:, None, None]
        flows = (0.5 + flows / sides / (2 * self.reach)).clamp(0, 1)
        return torch.cat([flows, self.depth(video)[:, :, None]], 2).transpose(1, 2)


def _resized(x: Float[Tensor, "n c h w"], sides: tuple[int, int] | list[int]) -> Float[Tensor, "n c height width"]:
    if list(x.shape[-2:]) == list(sides):
        return x
    return nn.functional.interpolate(x, size=tuple(sides), mode="bicubic", align_corners=False)
