"""RAFT (Teed and Deng, 2003.12039), large and small, with the names of torchvision's: its state dicts load as they are.

Optical flow between two pictures: features of both at an eighth of their size, the products of all pairs of them,
pooled four times over, and a recurrent network that looks up the products around where each place points to now and
corrects it. `FlowTeacher` gives real clips the flows that a motion generator learns from, and is never trained.

Read `Raft.forward` first. Products are looked up by gathering integers and weighting four of them, where torchvision
calls `grid_sample`, whose bytes differ between processors; only the last flow is brought to full size.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import TypedDict

from lightning_modules import rehearsal
from lightning_modules.layers.published import load_strictly, read_checkpoint
from lightning_modules.layers.teacher import Frozen
from lightning_modules.settings import STRICT, Count

ADDRESS = "https://download.pytorch.org/models"
DIGEST = re.compile(r"-([0-9a-f]{8,})\.pth$")  # torchvision names a file after the first digits of its SHA-256
STRIDE, SMALLEST = 8, 128  # of features; pixels a side that torchvision asks for
LEVELS = 4  # of products
MASK_SHARE = 0.25  # of the gradient of the weights of upsampling, as in the official code
PAIRS = 64  # of frames at a time, in `FlowTeacher`
NARROWEST = 4  # channels, in a rehearsal


class Sizes(NamedTuple):
    """Of a network: channels of the stages of both encoders, of the parts of the update, and the reach of lookups."""

    bottleneck: bool
    features: tuple[int, ...]
    context: tuple[int, ...]
    context_norm: type[nn.Module] | None
    radius: int
    products: tuple[int, ...]
    flow: tuple[int, int]
    motion: int
    hidden: int
    kernels: tuple[tuple[int, int], ...]
    head: int
    mask: int | None


SIZES = {
    "large": Sizes(
        bottleneck=False, features=(64, 64, 96, 128, 256), context=(64, 64, 96, 128, 256),
        context_norm=nn.BatchNorm2d, radius=4, products=(256, 192), flow=(128, 64), motion=128, hidden=128,
        kernels=((1, 5), (5, 1)), head=256, mask=256,
    ),
    "small": Sizes(
        bottleneck=True, features=(32, 32, 64, 96, 128), context=(32, 32, 64, 96, 160), context_norm=None, radius=3,
        products=(96,), flow=(64, 32), motion=82, hidden=96, kernels=((3, 3),), head=128, mask=None,
    ),
}  # fmt: skip


class FlowSettings(TypedDict):
    """Which network, the file of its weights as torchvision publishes them, and how often a flow is corrected."""

    __pydantic_config__ = STRICT
    network: Literal["large", "small"]
    weights: str
    updates: Count


class FlowTeacher(Frozen):
    """The flows of clips, by a RAFT with published weights.

    Args:
        network: `large` or `small`.
        weights: file of torchvision's state dict, such as `raft_large_C_T_V2-1bb1363a.pth`. In a rehearsal without it,
            a network with drawn weights takes its place.
        updates: how often each flow is corrected; torchvision's default is 12.

    Raises:
        ValueError: the file is not there, is damaged, or is of another network.
    """

    def __init__(self, *, network: Literal["large", "small"], weights: str, updates: Count = 12):
        super().__init__(published(network, weights))
        self.updates = updates

    @torch.no_grad()
    def forward(self, video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch later 2 h w"]:
        """Backward flows in pixels, x first: frame t + 1 at a place p is frame t at p plus flow t at p.

        Frames whose sides are no multiples of 8, or under 128 pixels, are enlarged before (bilinear).

        Args:
            video: pixels from 0 to 1.
        """
        earlier, later = (rearrange(x, "b c t h w -> (b t) c h w") for x in (video[:, :, :-1], video[:, :, 1:]))
        parts = [self._between(*each) for each in zip(later.split(PAIRS), earlier.split(PAIRS), strict=True)]
        return rearrange(torch.cat(parts), "(b t) c h w -> b t c h w", b=len(video))

    def _between(self, first: Tensor, second: Tensor) -> Tensor:
        """In single precision: half of it would round where a place points to."""
        height, width = first.shape[-2:]
        sides = [max(STRIDE * -(-side // STRIDE), SMALLEST) for side in (height, width)]
        with torch.autocast(first.device.type, enabled=False):
            shown = [2 * _resized(x.float(), *sides) - 1 for x in (first, second)]
            flow = _resized(self.network(*shown, updates=self.updates), height, width)
        return flow * flow.new_tensor([width / sides[1], height / sides[0]])[:, None, None]


def published(network: Literal["large", "small"], weights: str) -> "Raft":
    """A network with the weights of a file of torchvision; on the meta device without.

    Raises:
        ValueError: the file is not there, is damaged, or is of another network.
    """
    path = Path(weights)
    if torch.get_default_device().type == "meta" or rehearsal.replaces(weights, missing=not path.is_file()):
        return Raft(network)
    if not path.is_file():
        raise ValueError(
            f"{weights}, the weights of RAFT, does not exist: download {ADDRESS}/{path.name} to there, or correct "
            "model.flow_teacher.weights."
        )
    state = read_checkpoint(path)
    digits = DIGEST.search(path.name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if digits else ""
    if digits and not digest.startswith(digits[1]):
        raise ValueError(f"{path} has the SHA-256 {digest[:16]}..., not that of its name: fetch it again.")
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected the state dict of torchvision's RAFT.")
    found = Raft(network)
    load_strictly(found, state, f"the state dict of RAFT ({network}) in {path}")
    return found


def _resized(x: Float[Tensor, "n c h w"], height: int, width: int) -> Float[Tensor, "n c height width"]:
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


class Raft(nn.Module):
    """The network, with the modules and names of `torchvision.models.optical_flow.RAFT`.

    Args:
        size: `large` (5,257,536 parameters) or `small` (990,162).
    """

    def __init__(self, size: Literal["large", "small"]):
        super().__init__()
        sizes = SIZES[size]
        block = Bottleneck if sizes.bottleneck else Residual
        self.hidden, self.radius = _width(sizes.hidden), sizes.radius
        self.feature_encoder = Encoder(block, sizes.features, nn.InstanceNorm2d)
        self.context_encoder = Encoder(block, sizes.context, sizes.context_norm)
        self.update_block = Update(sizes)
        self.mask_predictor = None if sizes.mask is None else MaskPredictor(self.hidden, _width(sizes.mask))

    def forward(
        self, first: Float[Tensor, "batch 3 h w"], second: Float[Tensor, "batch 3 h w"], *, updates: int = 12
    ) -> Float[Tensor, "batch 2 h w"]:
        """Where each place of the first picture lies in the second, as a difference in pixels, x first.

        Args:
            first: pixels from -1 to 1.
            second: likewise.
            updates: how often the flow, at first 0, is corrected.

        Raises:
            ValueError: shapes differ, or sides are no multiples of 8 or under 64 pixels.
        """
        if first.shape != second.shape or any(side % STRIDE or side < STRIDE**2 for side in first.shape[-2:]):
            raise ValueError(
                f"pictures have shapes {tuple(first.shape)} and {tuple(second.shape)}: expected equal ones, with sides "
                f"that are multiples of {STRIDE} and at least {STRIDE**2}."
            )
        products = pyramid(*self.feature_encoder(torch.cat([first, second])).chunk(2))
        hidden, context = self.context_encoder(first).tensor_split([self.hidden], 1)
        hidden, context = hidden.tanh(), context.relu()
        start = grid(products[0])
        places = start
        for _ in range(updates):
            places = places.detach()
            found = lookup(products, places, self.radius)
            hidden, step = self.update_block(hidden, context, found, places - start)
            places = places + step
        return self._enlarged(places - start, hidden)

    def _enlarged(self, flow: Float[Tensor, "b 2 h w"], hidden: Float[Tensor, "b c h w"]) -> Tensor:
        """Eight times as large: by convex combinations of nine neighbours, or bilinear in the small network."""
        if self.mask_predictor is None:
            return STRIDE * F.interpolate(flow, scale_factor=STRIDE, mode="bilinear", align_corners=True)
        weights = self.mask_predictor(hidden)
        weights = rearrange(weights, "b (n u v) h w -> b n u v h w", u=STRIDE, v=STRIDE).softmax(1)
        height = flow.shape[2]
        near = F.unfold(STRIDE * flow, 3, padding=1)
        near = rearrange(near, "b (c n) (h w) -> b c n h w", c=2, h=height)
        return torch.einsum("bnuvhw,bcnhw->bchuwv", weights, near).flatten(4).flatten(2, 3)


def grid(products: Float[Tensor, "batch h w h2 w2"]) -> Float[Tensor, "batch 2 h w"]:
    """The places of a map of features, x first."""
    batch, height, width = products.shape[:3]
    y, x = (torch.arange(n, dtype=products.dtype, device=products.device) for n in (height, width))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).expand(batch, 2, height, width)


def pyramid(first: Float[Tensor, "batch c h w"], second: Float[Tensor, "batch c h w"]) -> list[Tensor]:
    """Products of all places of one map with all of another (batch h w h2 w2), and means of 2 x 2 of the latter."""
    volume = torch.einsum("bchw,bcuv->bhwuv", first, second) / first.shape[1] ** 0.5
    levels = [volume]
    for _ in range(LEVELS - 1):
        pooled = F.avg_pool2d(levels[-1].flatten(0, 1), 2)
        levels.append(pooled.unflatten(0, volume.shape[:2]))
    return levels


def lookup(
    products: Sequence[Float[Tensor, "batch h w _ _"]], places: Float[Tensor, "batch 2 h w"], radius: int
) -> Float[Tensor, "batch window h w"]:
    """The products around where each place points to, at each level, bilinear; 0 beyond the borders.

    A window's numbers have x as the slower index, as in the official code.
    """
    found = [_window(volume, places / 2**level, radius) for level, volume in enumerate(products)]
    return rearrange(torch.cat(found, -1), "b h w n -> b n h w").contiguous()


def _window(
    volume: Float[Tensor, "batch h w tall wide"], places: Float[Tensor, "batch 2 h w"], radius: int
) -> Float[Tensor, "batch h w window"]:
    """All of a window lie at the same share between integers, so each integer is read once, not four times."""
    tall, wide = volume.shape[-2:]
    reach = torch.arange(-radius, radius + 2, device=places.device)
    index, share, inside = [], [], []
    for at, size in zip(places.unbind(1), (wide, tall), strict=True):
        at = at.clamp(-radius - 2, size + radius + 1)  # all of the window lies outside at either end
        low = at.floor()
        numbers = low.long()[..., None] + reach
        share.append((at - low)[..., None, None])
        inside.append((numbers >= 0) & (numbers < size))
        index.append(numbers.clamp(0, size - 1))
    flat = index[1][..., None, :] * wide + index[0][..., :, None]  # x is the slower one
    found = volume.flatten(3).gather(3, flat.flatten(3)).unflatten(3, flat.shape[3:])
    found = found * (inside[0][..., :, None] & inside[1][..., None, :])
    found = found[..., :-1, :] + share[0] * (found[..., 1:, :] - found[..., :-1, :])
    found = found[..., :-1] + share[1] * (found[..., 1:] - found[..., :-1])
    return found.flatten(3)


def _width(size: int) -> int:
    return max(NARROWEST, rehearsal.width(size))


def _convolution(
    channels: int,
    out: int,
    kernel: int | tuple[int, int],
    *,
    norm: type[nn.Module] | None = None,
    stride: int = 1,
    active: bool = True,
) -> nn.Sequential:
    """A convolution that keeps the size, a norm, and a ReLU; parts are numbered as in torchvision."""
    padding = kernel // 2 if isinstance(kernel, int) else tuple(side // 2 for side in kernel)
    parts: list[nn.Module] = [nn.Conv2d(channels, out, kernel, stride, padding)]
    parts += [] if norm is None else [norm(out)]
    return nn.Sequential(*parts, *([nn.ReLU()] if active else []))


class Residual(nn.Module):
    """Two convolutions, and their sum with the input."""

    def __init__(self, channels: int, out: int, norm: type[nn.Module] | None, stride: int):
        super().__init__()
        convolution = partial(_convolution, norm=norm)
        self.convnormrelu1 = convolution(channels, out, 3, stride=stride)
        self.convnormrelu2 = convolution(out, out, 3)
        self.downsample = nn.Identity() if stride == 1 else convolution(channels, out, 1, stride=stride, active=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        """A map of the size that the stride leaves."""
        return F.relu(self.downsample(x) + self.convnormrelu2(self.convnormrelu1(x)))


class Bottleneck(nn.Module):
    """Three convolutions, the middle one of a quarter of the channels, and their sum with the input."""

    def __init__(self, channels: int, out: int, norm: type[nn.Module] | None, stride: int):
        super().__init__()
        convolution = partial(_convolution, norm=norm)
        self.convnormrelu1 = convolution(channels, out // 4, 1)
        self.convnormrelu2 = convolution(out // 4, out // 4, 3, stride=stride)
        self.convnormrelu3 = convolution(out // 4, out, 1)
        self.downsample = nn.Identity() if stride == 1 else convolution(channels, out, 1, stride=stride, active=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        """A map of the size that the stride leaves."""
        return F.relu(self.downsample(x) + self.convnormrelu3(self.convnormrelu2(self.convnormrelu1(x))))


class Encoder(nn.Module):
    """Features of pictures at an eighth of their size."""

    def __init__(self, block: type[nn.Module], widths: Sequence[int], norm: type[nn.Module] | None):
        super().__init__()
        first, *stages, last = map(_width, widths)
        self.convnormrelu = _convolution(3, first, 7, norm=norm, stride=2)
        for number, (channels, out) in enumerate(pairwise([first, *stages]), start=1):
            blocks = block(channels, out, norm, 1 if number == 1 else 2), block(out, out, norm, 1)
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.conv = nn.Conv2d(stages[-1], last, 1)

    def forward(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The features of pixels from -1 to 1."""
        for layer in self.children():
            pictures = layer(pictures)
        return pictures


class MotionEncoder(nn.Module):
    """What is known of the motion at each place: products that were looked up, and the flow so far."""

    def __init__(self, window: int, products: Sequence[int], flow: Sequence[int], out: int):
        super().__init__()
        self.convcorr1 = _convolution(window, products[0], 1)
        self.convcorr2 = _convolution(*products, 3) if len(products) > 1 else nn.Identity()
        self.convflow1 = _convolution(2, flow[0], 7)
        self.convflow2 = _convolution(*flow, 3)
        self.conv = _convolution(products[-1] + flow[-1], out - 2, 3)

    def forward(self, products: Float[Tensor, "b n h w"], flow: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b c h w"]:
        """Features, the last two of which are the flow itself."""
        seen = [self.convcorr2(self.convcorr1(products)), self.convflow2(self.convflow1(flow))]
        return torch.cat([self.conv(torch.cat(seen, 1)), flow], 1)


class ConvGRU(nn.Module):
    """A gated recurrent unit of convolutions."""

    def __init__(self, channels: int, hidden: int, kernel: tuple[int, int]):
        super().__init__()
        padding = tuple(side // 2 for side in kernel)
        self.convz, self.convr, self.convq = (
            nn.Conv2d(hidden + channels, hidden, kernel, padding=padding) for _ in range(3)
        )

    def forward(self, hidden: Float[Tensor, "b d h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """The next state."""
        both = torch.cat([hidden, x], 1)
        kept, shown = self.convz(both).sigmoid(), self.convr(both).sigmoid()
        new = self.convq(torch.cat([shown * hidden, x], 1)).tanh()
        return (1 - kept) * hidden + kept * new


class RecurrentBlock(nn.Module):
    """One unit, or one along rows and one along columns."""

    def __init__(self, channels: int, hidden: int, kernels: Sequence[tuple[int, int]]):
        super().__init__()
        for number, kernel in enumerate(kernels, start=1):
            self.add_module(f"convgru{number}", ConvGRU(channels, hidden, kernel))

    def forward(self, hidden: Float[Tensor, "b d h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """The next state."""
        for unit in self.children():
            hidden = unit(hidden, x)
        return hidden


class FlowHead(nn.Module):
    """From the state to the correction."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(hidden, width, 3, padding=1), nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, hidden: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 2 h w"]:
        """In eighths of the picture's pixels."""
        return self.conv2(F.relu(self.conv1(hidden)))


class Update(nn.Module):
    """One correction of the flow."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        window, hidden, motion = LEVELS * (2 * sizes.radius + 1) ** 2, _width(sizes.hidden), _width(sizes.motion)
        channels = motion + _width(sizes.context[-1]) - hidden
        self.motion_encoder = MotionEncoder(
            window, [_width(n) for n in sizes.products], [_width(n) for n in sizes.flow], motion
        )
        self.recurrent_block = RecurrentBlock(channels, hidden, sizes.kernels)
        self.flow_head = FlowHead(hidden, _width(sizes.head))

    def forward(
        self,
        hidden: Float[Tensor, "b d h w"],
        context: Float[Tensor, "b c h w"],
        products: Float[Tensor, "b n h w"],
        flow: Float[Tensor, "b 2 h w"],
    ) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b 2 h w"]]:
        """The next state, and the correction."""
        hidden = self.recurrent_block(hidden, torch.cat([context, self.motion_encoder(products, flow)], 1))
        return hidden, self.flow_head(hidden)


class MaskPredictor(nn.Module):
    """From the state to the weights of nine neighbours for each of 8 x 8 pixels."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.convrelu, self.conv = _convolution(hidden, width, 3), nn.Conv2d(width, 9 * STRIDE**2, 1)

    def forward(self, hidden: Float[Tensor, "b d h w"]) -> Float[Tensor, "b _ h w"]:
        """Logits."""
        return MASK_SHARE * self.conv(self.convrelu(hidden))
