"""MoViNets as data: the published networks, the space that they were searched in, and what any such network costs.

An architecture is a stem, five blocks of layers and a head. Nothing in time is strided, so the cost of a network grows
in proportion to the number of frames. `cost` is a closed form that agrees to the unit with what is counted on a built
network, so a search can refuse a network before it is built. Imports no torch.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Annotated, Literal, NamedTuple, TypedDict

from pydantic import Field

from lightning_modules.settings import Count, Positive, check

Kernel = tuple[int, int, int]
Form = Literal["3d", "2plus1d", "3d_2plus1d"]
Squeeze = Literal["3d", "2d", "2plus3d", "none"]
Stride = Literal[1, 2]
Several = Field(min_length=1)

STEM_KERNEL: Kernel = (1, 3, 3)
NOTATION = re.compile(r"(\d+)@(\d+)x(\d+)x(\d+)(-)?")


def rounded(value: float) -> int:
    """The nearest multiple of 8, half up, at least 8: widths of the search space."""
    return max(8, int(value + 4) // 8 * 8)


@cache
def make_divisible(value: float) -> int:
    """`rounded`, but never below 90 % of the value: hidden channels of squeeze-and-excitation."""
    return rounded(value) + 8 * (rounded(value) < 0.9 * value)


@dataclass(frozen=True)
class Layer:
    """An inverted bottleneck: `expand` channels, the kernel (frames, height, width) of its depthwise convolution.

    Written `80@3x3x3`, and `80@3x3x3-` without squeeze-and-excitation.
    """

    expand: int
    kernel: Kernel
    squeeze: bool = True

    @classmethod
    def parse(cls, text: str) -> "Layer":
        """A layer from its notation.

        Raises:
            ValueError: the text is not of this form, or a side of the kernel is even.
        """
        if not (match := NOTATION.fullmatch(text)):
            raise ValueError(f"a layer ({text!r}) is written channels@frames x height x width, such as 80@3x3x3.")
        expand, *kernel = (int(number) for number in match.groups()[:4])
        if not expand or any(side % 2 == 0 for side in kernel):
            raise ValueError(f"a layer ({text!r}) needs channels and a kernel with odd sides, such as 80@3x3x3.")
        return cls(expand, tuple(kernel), squeeze=match[5] is None)

    def __str__(self) -> str:
        return f"{self.expand}@{'x'.join(map(str, self.kernel))}{'' if self.squeeze else '-'}"


class WrittenBlock(TypedDict):
    """A block as `conf/` has it; see `Layer` for the notation of its layers."""

    width: Count
    stride: Stride
    layers: Annotated[list[str], Several]


class WrittenOut(TypedDict):
    """An architecture as `conf/` has it."""

    stem: Count
    blocks: Annotated[list[dict], Several]  # each a `WrittenBlock`
    project: Count
    dense: Count


@dataclass(frozen=True)
class Block:
    """Layers of one width; the first has the stride."""

    width: int
    stride: int
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Architecture:
    """Channels of the stem, the blocks, and channels of the two layers of the head."""

    stem: int
    blocks: tuple[Block, ...]
    project: int
    dense: int

    @classmethod
    def parse(cls, given: "str | Mapping | Architecture") -> "Architecture":
        """A published architecture by its name, or one that is written out, as `conf/` does.

        Args:
            given: a name such as `a0`, or what `WrittenOut` has.

        Raises:
            ValueError: the name is unknown, a key is unknown or missing, or a value makes no network.
        """
        if isinstance(given, Architecture):
            return given
        if isinstance(given, str):
            if given not in PUBLISHED:
                raise ValueError(f"architecture ({given!r}) must be one of {', '.join(PUBLISHED)}, or written out.")
            return PUBLISHED[given]
        found = check(given, WrittenOut, "architecture")
        blocks = []
        for number, block in enumerate(found["blocks"]):
            block = check(block, WrittenBlock, f"architecture.blocks.{number}")
            blocks.append(Block(block["width"], block["stride"], tuple(map(Layer.parse, block["layers"]))))
        return cls(found["stem"], tuple(blocks), found["project"], found["dense"])

    def written_out(self) -> dict:
        """The mapping that `parse` takes, as `conf/` has it."""
        blocks = [
            {"width": block.width, "stride": block.stride, "layers": [str(layer) for layer in block.layers]}
            for block in self.blocks
        ]
        return {"stem": self.stem, "blocks": blocks, "project": self.project, "dense": self.dense}

    def named_layers(self) -> list[tuple[str, int, int, int, Layer]]:
        """(name, channels in, channels out, stride, layer) of every layer, in order."""
        rows, channels = [], self.stem
        for i, block in enumerate(self.blocks):
            for j, layer in enumerate(block.layers):
                rows.append((f"block{i}_layer{j}", channels, block.width, block.stride if j == 0 else 1, layer))
                channels = block.width
        return rows


class Cost(NamedTuple):
    """What a network costs for one clip.

    Attributes:
        parameters: learned values.
        macs: multiply-accumulates of the whole clip.
        buffers: values in the temporal buffers of a stream, for any length of the clip.
        peak: most values that the input, the expanded and the convolved features of one layer hold, per frame.
    """

    parameters: int
    macs: int
    buffers: int
    peak: int


def squeezed_width(layer: Layer, squeeze: Squeeze) -> int:
    """Hidden channels of squeeze-and-excitation: a quarter of what it reads."""
    return make_divisible(0.25 * layer.expand * (2 if squeeze == "2plus3d" else 1))


def cost(
    architecture: Architecture,
    *,
    frames: int,
    size: int,
    num_classes: int = 600,
    form: Form = "3d",
    causal: bool = False,
    squeeze: Squeeze = "3d",
    positions: bool = False,
    channels: int = 3,
) -> Cost:
    """The exact cost of a network (`network.MoViNet`) for one clip of square frames; takes microseconds.

    Args:
        architecture: the network.
        frames: length of the clip.
        size: height and width of a frame, in pixels.
        num_classes: of the classifier.
        form: of the convolutions.
        causal: whether no frame sees a later one.
        squeeze: what squeeze-and-excitation reads.
        positions: whether it also reads the time.
        channels: of a frame.
    """
    split, doubled, each_frame = form != "3d", squeeze == "2plus3d", causal or squeeze != "3d"
    size = -(-size // 2)
    stem, outside = architecture.stem, size * size
    volume = STEM_KERNEL[1] * STEM_KERNEL[2] * channels * stem
    parameters, per_frame, once, buffers, peak, c = volume + 2 * stem, outside * volume, 0, 0, 0, stem
    for block in architecture.blocks:
        width, stride = block.width, block.stride
        for layer in block.layers:
            e, (kt, kh, kw), inside = layer.expand, layer.kernel, outside
            if stride != 1:
                size = -(-size // stride)
                outside = size * size
            taps, norms = kt * kh * kw, 4
            if split and kt > 1:
                taps, norms = kh * kw + kt, 6
            parameters += e * (c + taps + norms + width) + 2 * width + 1
            convolved, entered = outside * e, inside * (c + e)
            per_frame += inside * c * e + convolved * (taps + width)
            if c != width or stride != 1:
                parameters += (c + 2) * width
                per_frame += outside * c * width
            if layer.squeeze and squeeze != "none":
                read = 2 * e if doubled else e
                hidden = make_divisible(0.25 * read)
                products = hidden * (read + e)
                parameters += products + hidden + e + (positions and causal)
                if each_frame:
                    per_frame += products
                else:
                    once += products
            if causal:
                buffers += (kt - 1) * (convolved if split else inside * e)
            if entered + convolved > peak:
                peak = entered + convolved
            c, stride = width, 1
    project, dense = architecture.project, architecture.dense
    parameters += c * project + 2 * project + project * dense + dense + dense * num_classes + num_classes
    per_frame += outside * c * project
    once += project * dense + dense * num_classes
    return Cost(parameters, frames * per_frame + once, buffers, peak)


def _block(width: int, layers: str, stride: int = 2) -> Block:
    """Layers in short: `80:33*3` is three layers of 80 channels with a kernel of 3 frames and 3 x 3 pixels."""
    found: list[Layer] = []
    for expand, frames, side, times in re.findall(r"(\d+):(\d)(\d)(?:\*(\d+))?", layers):
        found += [Layer(int(expand), (int(frames), int(side), int(side)))] * int(times or 1)
    return Block(width, stride, tuple(found))


# The released networks (BLOCK_SPECS of official/projects/movinet/modeling/movinet.py in tensorflow/models).
PUBLISHED = {
    "a0": Architecture(
        8,
        (
            _block(8, "24:15"),
            _block(32, "80:33*3"),
            _block(56, "184:53 112:33 184:33"),
            _block(56, "184:53 184:33*3", stride=1),
            _block(104, "384:53 280:15*2 344:15"),
        ),
        480,
        2048,
    ),
    "a1": Architecture(
        16,
        (
            _block(16, "40:15 40:33"),
            _block(40, "96:33 120:33 96:33*2"),
            _block(64, "216:53 128:33 216:33 168:33 216:33"),
            _block(64, "216:53 216:33*2 128:33 128:15 216:33", stride=1),
            _block(136, "456:53 360:15*3 456:15 456:33 544:13"),
        ),
        600,
        2048,
    ),
    "a2": Architecture(
        16,
        (
            _block(16, "40:15 40:33 64:33"),
            _block(40, "96:33 120:33 96:33*2 120:33"),
            _block(72, "240:53 160:33 240:33 192:33 240:33"),
            _block(72, "240:53 240:33*3 144:15 240:33", stride=1),
            _block(144, "480:53 384:15*2 480:15*2 480:33 576:13"),
        ),
        640,
        2048,
    ),
    "a3": Architecture(
        16,
        (
            _block(16, "40:15 40:33 64:33 40:33"),
            _block(48, "112:33 144:33 112:33 112:15 144:33*2"),
            _block(80, "240:53 152:33 240:33 192:33 240:33"),
            _block(88, "264:53 264:33*3 160:15 264:33*3", stride=1),
            _block(168, "560:53 448:15*2 560:15*2 560:33 448:15*2 560:33 672:13"),
        ),
        744,
        2048,
    ),
    "a4": Architecture(
        24,
        (
            _block(24, "64:15 64:33 96:33 64:33 96:33 64:33"),
            _block(56, "168:33*2 136:33*2 168:33*3 136:15 136:33"),
            _block(96, "320:53 160:33 320:33 192:33 320:33 160:33 320:33 256:33 320:33"),
            _block(96, "320:53 320:33*3 192:15 320:33*2 192:33 320:33*2", stride=1),
            _block(192, "640:53 512:15*2 640:15*2 640:33 512:15*2 640:15 768:15 640:15 640:33 768:33"),
        ),
        856,
        2048,
    ),
    "a5": Architecture(
        24,
        (
            _block(24, "64:15*2 96:33 64:33 96:33 64:33"),
            _block(64, "192:53 152:33*3 192:33*3 152:33*2 192:33*2"),
            _block(112, "376:53 224:33 376:33*2 296:33 376:33 224:33 376:33*2 296:33 376:33*3"),
            _block(120, "376:53 376:33*3 224:15 376:33*2 224:33 376:33*3", stride=1),
            _block(
                224,
                "744:53 744:33 600:15*2 744:15*2 744:33 896:15 600:15*2 896:15 744:15 744:33 896:15 600:15*2 744:15 "
                "744:33",
            ),
        ),
        992,
        2048,
    ),
    "t0": Architecture(
        8,
        (
            _block(8, "16:15"),
            _block(32, "72:33 72:15"),
            _block(56, "112:53 112:15 112:33"),
            _block(56, "184:53 184:15 184:33*2", stride=1),
            _block(104, "344:53 344:15*2 344:33"),
        ),
        240,
        1024,
    ),
}

Choice = int | float | str | bool


class WrittenSpace(TypedDict, total=False):
    """A space as `conf/` has it; frames and their size are those of an arm."""

    stem: Count
    widths: Annotated[list[Count], Several]
    strides: Annotated[list[Stride], Several]
    project: Count
    dense: Count
    most_layers: Count
    multipliers: Annotated[list[Positive], Several]
    expansions: Annotated[list[Positive], Several]
    kernels: Annotated[list[str], Several]
    squeeze: Annotated[list[bool], Several]


@dataclass(frozen=True)
class Space:
    """The networks that the search chooses from (section 3.1 and Table 1; the defaults are those of A2).

    Each width is a base width times a multiplier, rounded to a multiple of 8. The channels of a layer are a multiple of
    the base width of its block, before that multiplier. A block has its stride in its first layer.
    """

    frames: int = 50
    size: int = 224
    stem: int = 16
    widths: tuple[int, ...] = (24, 48, 96, 96, 192)
    strides: tuple[int, ...] = (2, 2, 2, 1, 2)
    project: int = 512
    dense: int = 2048
    most_layers: int = 10
    multipliers: tuple[float, ...] = (0.75, 1.0, 1.25)
    expansions: tuple[float, ...] = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    kernels: tuple[str, ...] = ("1x3x3", "1x5x5", "1x7x7", "5x1x1", "7x1x1", "3x3x3", "5x3x3")
    squeeze: tuple[bool, ...] = field(default=(True, False))

    @classmethod
    def parse(cls, given: Mapping) -> "Space":
        """A space as `conf/` has it (`WrittenSpace`); what it does not say is as in the paper.

        Raises:
            ValueError: a key is unknown, a value or a kernel is none, or widths and strides do not fit.
        """
        found = check(given, WrittenSpace, "space")
        space = cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})
        for kernel in space.kernels:
            Layer.parse(f"8@{kernel}-")  # whether a layer squeezes is another decision
        if len(space.widths) != len(space.strides):
            raise ValueError(f"a space needs a stride for each width, got {space.widths} and {space.strides}.")
        return space

    def decisions(self) -> dict[str, tuple[Choice, ...]]:
        """Every decision with its choices, as `decide` may ask for them."""
        found: dict[str, tuple[Choice, ...]] = {"stem": self.multipliers, "project": self.multipliers}
        for i in range(len(self.widths)):
            found |= {f"block{i}/width": self.multipliers, f"block{i}/layers": tuple(range(1, self.most_layers + 1))}
            for j in range(self.most_layers):
                layer = f"block{i}/layer{j}"
                found |= {f"{layer}/kernel": self.kernels, f"{layer}/expansion": self.expansions}
                found |= {f"{layer}/squeeze": self.squeeze}
        return found

    def decide(self, choose: Callable[[str, tuple[Choice, ...]], Choice]) -> dict[str, Choice]:
        """One choice for each decision that a network has.

        Those without effect are not asked for and get their first choice: the only one, or multipliers that all give
        the same width.

        Args:
            choose: takes the name of a decision and its choices, and gives one of them.
        """
        chosen: dict[str, Choice] = {}

        def decide(name: str, choices: tuple[Choice, ...], base: int = 0) -> None:
            values = {rounded(base * factor) for factor in choices} if base else set(choices)
            chosen[name] = choose(name, choices) if len(values) > 1 else choices[0]

        decide("stem", self.multipliers, self.stem)
        decide("project", self.multipliers, self.project)
        for i, base in enumerate(self.widths):
            decide(f"block{i}/width", self.multipliers, base)
            decide(f"block{i}/layers", tuple(range(1, self.most_layers + 1)))
            for j in range(chosen[f"block{i}/layers"]):
                decide(f"block{i}/layer{j}/kernel", self.kernels)
                decide(f"block{i}/layer{j}/expansion", self.expansions, base)
                decide(f"block{i}/layer{j}/squeeze", self.squeeze)
        return chosen

    def draw(self, random: Random) -> dict[str, Choice]:
        """One choice for each decision, all equally probable."""
        return self.decide(lambda _, choices: random.choice(choices))

    def build(self, chosen: Mapping[str, Choice]) -> Architecture:
        """The network of these choices, as `decide` gives them."""
        blocks = []
        for i, (base, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            layers = tuple(self._layer(chosen, f"block{i}/layer{j}", base) for j in range(chosen[f"block{i}/layers"]))
            blocks.append(Block(rounded(base * chosen[f"block{i}/width"]), stride, layers))
        stem, project = (rounded(base * chosen[n]) for n, base in (("stem", self.stem), ("project", self.project)))
        return Architecture(stem, tuple(blocks), project, self.dense)

    def _layer(self, chosen: Mapping[str, Choice], name: str, base: int) -> Layer:
        kernel = tuple(int(side) for side in chosen[f"{name}/kernel"].split("x"))
        return Layer(rounded(base * chosen[f"{name}/expansion"]), kernel, chosen[f"{name}/squeeze"])
