"""What parses a picture: a Swin Transformer, whose attention says which tokens belong together, or a CNN without any.

Read `Swin.forward` first. The networks are those of `transformers`, so that published weights keep their names.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel, SwinConfig, SwinModel
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.layers.published import from_pretrained
from lightning_modules.rehearsal import width
from lightning_modules.settings import STRICT, Count, Positive, Share

Grid = tuple[int, int]  # rows and columns of tokens
Stages = Annotated[list[Count], Field(min_length=1)]  # a number for each stage
STEM = 4  # pixels of a token of a ResNet's first stage


class SwinSizes(TypedDict):
    """Settings of `SwinConfig`, for fresh weights; `image_size` is that of the pictures it is made for."""

    __pydantic_config__ = STRICT
    image_size: Count
    patch_size: Count
    embed_dim: Count
    depths: Stages
    num_heads: Stages
    window_size: Count
    mlp_ratio: Positive
    drop_path_rate: Share
    initializer_range: Positive


class CnnSizes(TypedDict):
    """Of a ResNet, for fresh weights: channels of the stem and of each stage, and blocks of each stage."""

    __pydantic_config__ = STRICT
    stem_width: Count
    widths: Stages
    depths: Stages
    block: Literal["basic", "bottleneck"]


class SwinPart(TypedDict):
    """A published Swin (a name of the Hugging Face hub, or a folder in its format), or `sizes` of a fresh one."""

    __pydantic_config__ = STRICT
    hub: str | None
    sizes: SwinSizes | None


class CnnPart(TypedDict):
    """A published ResNet, or `sizes` of a fresh one."""

    __pydantic_config__ = STRICT
    hub: str | None
    sizes: CnnSizes | None


class VisualSettings(TypedDict):
    """Which encoder parses pictures.

    `windows`: `one` if the last stage of Swin has to be one window, so that its attention is between all tokens;
    `several` if windows are put into one map, which is zero between tokens of different windows. `pool`: maximum over
    2 x 2 tokens, for large pictures, as Pixel-BERT and SOHO have it.
    """

    __pydantic_config__ = STRICT
    kind: Literal["swin", "cnn"]
    windows: Literal["one", "several"]
    pool: bool
    swin: SwinPart
    cnn: CnnPart


class Parsed(NamedTuple):
    """Tokens of pictures.

    Attributes:
        features: row by row of their grid.
        weights: visual weights, how tokens attend to one another.
        grid: rows and columns.
        stride: pixels from one token to the next.
    """

    features: Float[Tensor, "batch tokens channels"]
    weights: Float[Tensor, "batch tokens tokens"] | None
    grid: Grid
    stride: int


TINY = {"image_size": 224, "patch_size": 4, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24],
        "window_size": 7, "mlp_ratio": 4.0, "drop_path_rate": 0.1, "initializer_range": 0.02}  # fmt: skip
SMALL = TINY | {"depths": [2, 2, 18, 2]}
BASE = SMALL | {"embed_dim": 128, "num_heads": [4, 8, 16, 32]}
LARGE_WINDOW = BASE | {"image_size": 384, "window_size": 12}
PUBLISHED_SWIN = {
    "microsoft/swin-tiny-patch4-window7-224": TINY,
    "microsoft/swin-small-patch4-window7-224": SMALL,
    "microsoft/swin-base-patch4-window7-224": BASE,
    "microsoft/swin-base-patch4-window12-384-in22k": LARGE_WINDOW,
}
RESNET_50 = {"stem_width": 64, "widths": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "block": "bottleneck"}
PUBLISHED_CNN = {"microsoft/resnet-50": RESNET_50, "microsoft/resnet-101": RESNET_50 | {"depths": [3, 4, 23, 3]}}


def make_parser(visual: VisualSettings) -> "Swin | Cnn":
    """The encoder that settings name."""
    return Swin(visual) if visual["kind"] == "swin" else Cnn(visual)


class Swin(nn.Module):
    """A Swin Transformer with the attention of its last block as visual weights.

    Attention is computed eagerly, because fused kernels give no weights.

    Raises:
        ValueError: neither or both of a published network and sizes are named, or sizes do not fit one another.
    """

    def __init__(self, visual: VisualSettings):
        super().__init__()
        part = visual["swin"]
        _check_part("swin", part)
        self.model = (
            SwinModel(swin_config(part["sizes"]), add_pooling_layer=False)
            if part["hub"] is None
            else from_pretrained(SwinModel, part["hub"], lambda: _drawn_swin(part["hub"]), unused=["classifier.*"])
        ).train()
        self.model.pooler = None
        self.model.set_attn_implementation("eager")
        self.windows, self.pool, self.dim = visual["windows"], visual["pool"], self.model.num_features
        self.stride = self.model.config.patch_size * 2 ** (len(self.model.config.depths) - 1)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Parsed:
        """Tokens and their weights.

        Raises:
            ValueError: the last stage has several windows where one was asked for.
        """
        states, grid = self.model.embeddings(images)
        for stage in self.model.encoder.layers:
            before, (states, _, attention) = grid, stage(states, grid)
            grid = before if stage.downsample is None else tuple((side + 1) // 2 for side in before)
        weights = self._weights(attention, grid)
        return _pooled(Parsed(self.model.layernorm(states), weights, grid, self.stride), self.pool)

    def _weights(self, attention: Tensor | None, grid: Grid) -> Float[Tensor, "batch tokens tokens"]:
        block = self.model.encoder.layers[-1].blocks[-1]
        if attention is None:
            raise ValueError(
                f"Swin gives no attention: its attn_implementation is {self.model.config._attn_implementation!r}, "
                "expected eager."
            )
        window, shift = int(block.window_size), int(block.shift_size)
        if self.windows == "one" and max(grid) > window:
            raise ValueError(
                f"model.visual.windows is one, but the last stage has {grid[0]} x {grid[1]} tokens and windows of "
                f"{window} x {window}: choose pictures of another size, or `several`."
            )
        return whole_map(attention, grid, window, shift)


def whole_map(
    attention: Float[Tensor, "windows heads inside inside"], grid: Grid, window: int, shift: int
) -> Float[Tensor, "batch tokens tokens"]:
    """Attention within (shifted) windows as one map between all tokens, the mean over heads, zero between windows.

    Tokens are put back to where they were before the map was padded to whole windows and shifted by Swin's cyclic
    shift. What is padding is left out, and each row sums to 1.

    Args:
        attention: of all windows of the first picture, then of the second, and so on.
        grid: rows and columns of the map of tokens, without padding.
        window: side of a window in tokens.
        shift: by which rows and columns were rolled up and left.
    """
    places = window_places(grid, window, shift).to(attention.device)
    count, tokens = len(places), grid[0] * grid[1]
    heads = attention.mean(1)
    batch = len(heads) // count
    inside = heads.view(batch, count, *heads.shape[1:])
    kept = places >= 0
    found = inside.new_zeros(batch, tokens + 1, tokens + 1)  # the last place takes what is padding
    rows = torch.where(kept, places, tokens)
    found[:, rows[:, :, None], rows[:, None, :]] = inside
    found = found[:, :tokens, :tokens]
    return found / found.sum(-1, keepdim=True).clamp_min(1e-12)


def window_places(grid: Grid, window: int, shift: int) -> Int[Tensor, "windows inside"]:
    """Which token each place of each window holds; -1 for padding."""
    rows, columns = (-(-side // window) * window for side in grid)
    numbers = torch.full((rows, columns), -1)
    numbers[: grid[0], : grid[1]] = torch.arange(grid[0] * grid[1]).view(grid)
    numbers = torch.roll(numbers, (-shift, -shift), (0, 1))
    cut = numbers.view(rows // window, window, columns // window, window).transpose(1, 2)
    return cut.reshape(-1, window * window)


class Cnn(nn.Module):
    """A ResNet with as many tokens; nothing in it says which of them belong together.

    Raises:
        ValueError: neither or both of a published network and sizes are named, or sizes do not fit one another.
    """

    def __init__(self, visual: VisualSettings):
        super().__init__()
        part = visual["cnn"]
        _check_part("cnn", part)
        self.model = (
            ResNetModel(cnn_config(part["sizes"]))
            if part["hub"] is None
            else from_pretrained(ResNetModel, part["hub"], lambda: _drawn_cnn(part["hub"]), unused=["classifier.*"])
        ).train()
        self.pool, self.dim = visual["pool"], self.model.config.hidden_sizes[-1]
        self.stride = STEM * 2 ** (len(self.model.config.depths) - 1)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Parsed:
        """Tokens, without weights."""
        features = self.model.encoder(self.model.embedder(images)).last_hidden_state
        tokens, grid = features.flatten(2).transpose(1, 2), tuple(features.shape[2:])
        return _pooled(Parsed(tokens, None, grid, self.stride), self.pool)


def _pooled(parsed: Parsed, pool: bool) -> Parsed:
    """The maximum over 2 x 2 tokens; a pooled token attends as its tokens do on average, to all of another's."""
    if not pool:
        return parsed
    rows, columns = parsed.grid
    maps = parsed.features.transpose(1, 2).unflatten(2, parsed.grid)
    features = F.max_pool2d(maps, 2, ceil_mode=True)
    grid = tuple(features.shape[2:])
    weights = None
    if parsed.weights is not None:
        row, column = torch.arange(rows) // 2, torch.arange(columns) // 2
        of = (row[:, None] * grid[1] + column).flatten().to(parsed.weights.device)
        belongs = F.one_hot(of, grid[0] * grid[1]).to(parsed.weights)
        weights = (belongs / belongs.sum(0)).T @ parsed.weights @ belongs
    return Parsed(features.flatten(2).transpose(1, 2), weights, grid, 2 * parsed.stride)


def seen(
    sizes: Int[Tensor, "batch 2"] | None, images: Shaped[Tensor, "batch 3 height width"], grid: Grid, stride: int
) -> Bool[Tensor, "batch tokens"]:
    """Which tokens show a part of the picture, and not only what fills it up to the size of the batch.

    Args:
        sizes: height and width in pixels that each picture really has; null where all fill their frames.
        images: of the batch.
        grid: of the tokens.
        stride: pixels from one token to the next; the last one may reach beyond the frame.
    """
    if sizes is None:
        return torch.ones(len(images), grid[0] * grid[1], dtype=torch.bool, device=images.device)
    rows, columns = (
        torch.arange(tokens, device=images.device) * stride < sizes[:, axis, None] for axis, tokens in enumerate(grid)
    )
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def swin_config(sizes: SwinSizes) -> SwinConfig:
    """The settings in the form of `transformers`."""
    return SwinConfig(**sizes)


def cnn_config(sizes: CnnSizes) -> ResNetConfig:
    """The settings in the form of `transformers`."""
    return ResNetConfig(
        embedding_size=sizes["stem_width"], hidden_sizes=sizes["widths"], depths=sizes["depths"],
        layer_type=sizes["block"],
    )  # fmt: skip


def _drawn_swin(hub: str) -> SwinModel:
    sizes = _written_out(hub, PUBLISHED_SWIN)
    return SwinModel(swin_config(sizes | {"embed_dim": width(sizes["embed_dim"])}), add_pooling_layer=False)


def _drawn_cnn(hub: str) -> ResNetModel:
    sizes = _written_out(hub, PUBLISHED_CNN)
    narrow = {"stem_width": width(sizes["stem_width"]), "widths": [width(wide) for wide in sizes["widths"]]}
    return ResNetModel(cnn_config(sizes | narrow))


def _written_out(hub: str, known: Mapping[str, dict]) -> dict:
    if hub not in known:
        raise ValueError(f"the sizes of {hub!r} are not written out; known without its files: {', '.join(known)}.")
    return known[hub]


def _check_part(kind: str, part: SwinPart | CnnPart) -> None:
    if (part["hub"] is None) == (part["sizes"] is None):
        raise ValueError(
            f"model.visual.{kind}: hub ({part['hub']!r}) or sizes ({part['sizes']}) must be given, and the other one "
            "must be null."
        )
    if part["sizes"] is not None:
        _check_sizes(f"model.visual.{kind}.sizes", part["sizes"])


def _check_sizes(name: str, sizes: SwinSizes | CnnSizes) -> None:
    """Refuse lists of other lengths, and heads that do not divide the channels of their stage."""
    other = "num_heads" if "num_heads" in sizes else "widths"
    if len(sizes["depths"]) != len(sizes[other]):
        raise ValueError(
            f"{name}: depths {list(sizes['depths'])} and {other} {list(sizes[other])} must have a number for each "
            "stage: make them equally long."
        )
    for stage, heads in enumerate(sizes.get("num_heads", ())):
        if (channels := sizes["embed_dim"] * 2**stage) % heads:
            raise ValueError(
                f"{name}.num_heads has {heads} for stage {stage + 1} of {channels} channels: choose a divisor."
            )
