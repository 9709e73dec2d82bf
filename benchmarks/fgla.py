"""FGLA: how frames follow a flow, and how RAFT looks up products, each against the way that others take.

- A film of 16 frames that turns about its centre, whose every frame is known: warped once for each frame by the flows
  added up, and frame by frame. Time, memory, the error of the last frame, and how sharp it still is.
- One bilinear warp by gathering pixels, as here, against `grid_sample`: and a training step through each.
- RAFT's lookup of products around each place: each integer read once and the last flow alone enlarged, against
  `grid_sample` of each product and all twelve flows enlarged, as torchvision does it.

CPU time of one thread.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._measuring import measured, ratios
from lightning_modules.fgla import raft
from lightning_modules.fgla.raft import Raft, lookup, pyramid
from lightning_modules.fgla.warping import animated, warp
from lightning_modules.metrics.motion import sharpness

SIDE, STEPS, TURN = 256, 16, 0.02  # pixels, frames after the first, radians a step
ROWS = 4  # pictures of a warp
WAVES = 60  # of the picture that turns
REPEATS = 3


def main() -> list[dict]:
    """Rows of each comparison."""
    torch.set_num_threads(1)
    return [*animating(), *warping(), *looking_up()]


def animating() -> list[dict]:
    """The first row is ours."""
    first, last, flow = turning(0), turning(STEPS), turn()
    flows = flow[:, None].expand(-1, STEPS, -1, -1, -1).contiguous()
    inner = disc()
    rows = []
    for name, by_frame in (("flows added up, warped once", False), ("warped frame by frame", True)):
        way = partial(animated, first, flows, by_frame=by_frame)
        made = way()[:, :, -1]
        error = ((made - last).abs().mean(1) * inner).sum() / inner.sum()
        sharp = sharpness((made * inner)[:, :, None]) / sharpness((last * inner)[:, :, None])
        row = measured(f"{STEPS} frames of {SIDE} pixels: {name}", way, REPEATS)
        rows.append(row | {"error of the last": float(error), "sharpness, %": 100 * float(sharp.mean())})
    return ratios(rows)


def places() -> Tensor:
    """Pixels from the centre, right and down, (2 h w)."""
    at = torch.arange(SIDE) - (SIDE - 1) / 2
    return torch.stack([at.expand(SIDE, SIDE), at[:, None].expand(SIDE, SIDE)])


def turned(angle: float) -> Tensor:
    """Where each pixel was before a turn."""
    x, y = places()
    cosine, sine = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    return torch.stack([cosine * x + sine * y, cosine * y - sine * x])


def turning(step: int) -> Tensor:
    """The picture after so many steps, (1 3 h w): waves of all directions and lengths, none drawn on a grid."""
    draw = torch.Generator().manual_seed(0)
    angle, length, phase = (torch.rand(WAVES, generator=draw) for _ in range(3))
    length = 4 + 60 * length**2
    direction = torch.stack([torch.cos(7 * angle), torch.sin(7 * angle)], 1) * (6.2832 / length)[:, None]
    at = turned(step * TURN)
    waves = torch.sin(torch.einsum("nc,chw->nhw", direction, at) + 7 * phase[:, None, None])
    return (0.5 + waves.unflatten(0, (3, -1)).mean(1) * 2).clamp(0, 1)[None]


def turn() -> Tensor:
    """The backward flow of one step, (1 2 h w)."""
    return (turned(TURN) - places())[None]


def disc() -> Tensor:
    """Pixels whose past lies in the picture."""
    return (places().square().sum(0).sqrt() < SIDE / 2 - 2).float()


def warping() -> list[dict]:
    """The first row is ours."""
    draw = torch.Generator().manual_seed(0)
    pictures = torch.rand(ROWS, 3, SIDE, SIDE, generator=draw)
    flow = 4 * torch.randn(ROWS, 2, SIDE, SIDE, generator=draw)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"gathered": warp, "grid_sample": sampled}
    apart = [float((way(pictures, flow) - warp(pictures, flow)).abs().max()) for way in ways.values()]
    rows = []
    for what, run in (("warp", lambda way: way(pictures, flow)), ("warp and its gradients", _through(pictures, flow))):
        found = [
            measured(f"{what} of {ROWS} pictures: {name}", partial(run, way), REPEATS) for name, way in ways.items()
        ]
        rows += [row | {"apart": own} for row, own in zip(ratios(found), apart, strict=True)]
    return rows


def sampled(pictures: Tensor, flow: Tensor) -> Tensor:
    """The same warp by torch's own function."""
    at = places() + (SIDE - 1) / 2 + flow
    return F.grid_sample(
        pictures, (2 * at / (SIDE - 1) - 1).permute(0, 2, 3, 1), padding_mode="reflection", align_corners=True
    )


def _through(pictures: Tensor, flow: Tensor) -> Callable[[Callable[[Tensor, Tensor], Tensor]], None]:
    def step(way: Callable[[Tensor, Tensor], Tensor]) -> None:
        with torch.enable_grad():
            way(pictures.clone().requires_grad_(), flow.clone().requires_grad_()).square().mean().backward()

    return step


def looking_up() -> list[dict]:
    """The first row of each pair is ours."""
    draw = torch.Generator().manual_seed(0)
    side = SIDE // raft.STRIDE
    maps = torch.randn(2, 1, 256, side, side, generator=draw)
    products = pyramid(*maps)
    at = raft.grid(products[0]) + 3 * torch.randn(1, 2, side, side, generator=draw)
    rows = []
    for name, way in (("each integer once", lookup), ("grid_sample", looked_up)):
        row = measured(f"lookup of products, {SIDE} pixels: {name}", partial(way, products, at, 4), REPEATS)
        rows.append(row | {"apart": float((way(products, at, 4) - lookup(products, at, 4)).abs().max())})
    network = Raft("large").eval()
    pictures = 2 * torch.rand(2, 1, 3, SIDE, SIDE, generator=draw) - 1
    with torch.no_grad():
        what, ways = f"RAFT, large, {SIDE} pixels", (("ours", _flow), ("grid_sample, all enlarged", _as_torchvision))
        flows = [measured(f"{what}: {name}", partial(way, network, *pictures), REPEATS) for name, way in ways]
    return [*ratios(rows), *ratios(flows)]


def looked_up(products: list[Tensor], at: Tensor, radius: int) -> Tensor:
    """The same by sampling a window of each place's own map of products."""
    reach = torch.arange(-radius, radius + 1.0)
    window = torch.stack(torch.meshgrid(reach, reach, indexing="ij"), -1)
    batch, _, height, width = at.shape
    found = []
    for level, volume in enumerate(products):
        tall, wide = volume.shape[-2:]
        centres = (at / 2**level).permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
        where = 2 * (centres + window) / torch.tensor([wide - 1.0, tall - 1.0]) - 1
        sampled_ = F.grid_sample(volume.reshape(-1, 1, tall, wide), where, align_corners=True)
        found.append(sampled_.view(batch, height, width, -1))
    return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()


def _flow(network: Raft, first: Tensor, second: Tensor) -> Tensor:
    return network(first, second)


def _as_torchvision(network: Raft, first: Tensor, second: Tensor) -> Tensor:
    """The network with the other lookup, which enlarges each flow."""
    products = pyramid(*network.feature_encoder(torch.cat([first, second])).chunk(2))
    hidden, context = network.context_encoder(first).tensor_split([network.hidden], 1)
    hidden, context, start = hidden.tanh(), context.relu(), raft.grid(products[0])
    at, flows = start, []
    for _ in range(12):
        hidden, step = network.update_block(hidden, context, looked_up(products, at, network.radius), at - start)
        at = at + step
        flows.append(network._enlarged(at - start, hidden))
    return flows[-1]
