"""Positions of patches: fixed sines and cosines, and learned ones resized to another grid."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def sincos_2d(dim: int, grid: int) -> Float[Tensor, "1 tokens dim"]:
    """Fixed 2-D positions of a CLS token (zeros) and `grid` x `grid` patches, as MAE's (He et al., 2111.06377).

    The first half of the channels encodes the column, the second the row; in each, sines precede cosines.

    Raises:
        ValueError: `dim` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim ({dim}) must be a multiple of 4 for sin-cos positions in two directions.")
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.outer(torch.arange(grid, dtype=torch.float64), frequencies)
    one_way = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = one_way[None, :].expand(grid, -1, -1)
    rows = one_way[:, None].expand(-1, grid, -1)
    patches = torch.cat([columns, rows], dim=2).flatten(0, 1)
    return torch.cat([patches.new_zeros(1, dim), patches]).float().unsqueeze(0)


def resize_positions(positions: Float[Tensor, "1 tokens dim"], grid: int) -> Float[Tensor, "1 resized dim"]:
    """Positions of CLS and a square of patches on another `grid` (bicubic); CLS keeps its own."""
    old = round((positions.shape[1] - 1) ** 0.5)
    if old == grid:
        return positions
    square = rearrange(positions[:, 1:], "1 (h w) d -> 1 d h w", h=old)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], rearrange(square, "1 d h w -> 1 (h w) d")], dim=1)
