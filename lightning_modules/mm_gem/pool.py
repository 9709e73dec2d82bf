"""PoolAggregator: the features of a picture's patches, or of a region's, pooled to a few visual tokens.

What happens inside is not known beyond pooling. Ours averages bilinear samples of the feature map on a grid, as
RoIAlign does (He et al., 1703.06870), and the whole picture is the region 0 0 1 1. Bilinear samples are separable, so
that they are two products with small matrices, which give the same numbers on every processor.
"""

from math import isqrt
from typing import Literal, NotRequired

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.settings import STRICT, Count

Refine = Literal["none", "attention"]


class PoolSettings(TypedDict):
    """Arguments of `PoolAggregator` but for `dim`."""

    __pydantic_config__ = STRICT
    grid: Count
    refine: NotRequired[Refine]
    heads: NotRequired[Count]


class PoolAggregator(nn.Module):
    """Pools a square feature map, or a box of it, to `grid` x `grid` tokens.

    Args:
        dim: of the features.
        grid: tokens along a side.
        refine: `attention` adds a layer of self-attention over the tokens; `none` leaves them as they are.
        heads: of that attention.

    Raises:
        ValueError: the features cannot be divided among the heads.
    """

    def __init__(self, dim: Count, *, grid: Count, refine: Refine = "none", heads: Count = 1):
        super().__init__()
        if refine == "attention" and dim % heads:
            raise ValueError(f"pool.heads ({heads}) must divide the {dim} features of the vision tower.")
        self.grid = grid
        self.norm = nn.LayerNorm(dim) if refine == "attention" else None
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True) if refine == "attention" else None

    @property
    def tokens(self) -> int:
        """Visual tokens of a picture or of a region."""
        return self.grid**2

    def forward(
        self, features: Float[Tensor, "batch patches dim"], boxes: Float[Tensor, "batch 4"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Visual tokens, in reading order.

        Args:
            features: of the patches of square pictures, in reading order.
            boxes: left, top, right, bottom as shares of the picture; None for the whole of each.

        Raises:
            ValueError: the patches make no square, or a box is empty or not within its picture.
        """
        side = isqrt(features.shape[1])
        if side**2 != features.shape[1]:
            raise ValueError(f"{features.shape[1]} patches make no square: PoolAggregator needs one, without CLS.")
        if boxes is None:
            boxes = features.new_tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(features), 4)
        check_boxes(boxes)
        left, top, right, bottom = boxes.to(features.dtype).unbind(1)
        rows, columns = (bin_weights(*ends, bins=self.grid, cells=side) for ends in ((top, bottom), (left, right)))
        squares = features.unflatten(1, (side, side))
        pooled = torch.einsum("bph,bhwd->bpwd", rows, squares)
        tokens = torch.einsum("bqw,bpwd->bpqd", columns, pooled).flatten(1, 2)
        if self.attention is None:
            return tokens
        normed = self.norm(tokens)
        return tokens + self.attention(normed, normed, normed, need_weights=False)[0]


def check_boxes(boxes: Float[Tensor, "batch 4"]) -> None:
    """Refuse boxes that are empty or leave their picture.

    Raises:
        ValueError: see above; names the first.
    """
    if boxes.device.type == "meta":
        return
    wrong = (boxes < 0).any(1) | (boxes > 1).any(1) | ~(boxes[:, :2] < boxes[:, 2:]).all(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"box {row} is {boxes[row].tolist()}, expected left < right and top < bottom, shares of the picture."
        )


def bin_weights(
    low: Float[Tensor, " batch"], high: Float[Tensor, " batch"], *, bins: int, cells: int
) -> Float[Tensor, "batch bins cells"]:
    """What each cell of a row of features contributes to each bin of the stretch from `low` to `high`.

    A bin is the mean of so many linear samples that those of the whole row are no further apart than cells are. Where
    `bins` divides `cells`, a bin of the whole row is therefore the mean of its cells. Cells are read at their middles,
    and beyond the outer ones as these.
    """
    samples = -(-cells // bins)
    steps = (torch.arange(bins * samples, device=low.device, dtype=low.dtype) + 0.5) / (bins * samples)
    places = (low[:, None] + (high - low)[:, None] * steps) * cells - 0.5
    distances = places.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=low.device, dtype=low.dtype)
    return (1 - distances.abs()).clamp_min(0).unflatten(1, (bins, samples)).mean(2)
