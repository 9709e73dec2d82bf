"""MoViNets as networks: base, causal and streaming (Kondratyuk et al., CVPR 2021, arXiv 2103.11511).

A causal network sees no later frame, so it can read a video in pieces of any length. What it has to remember is the
last frames of each convolution in time (the stream buffers), the sums of its pools, and how many frames it has read:
`stream` takes this state and returns the next one. The answers are those of the whole clip, and the memory does not
grow with its length.

Read `MoViNet.stream` first, then `Bottleneck` and `Unit`.
"""

from collections.abc import Callable, Mapping
from typing import get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.movinet.architecture import (
    STEM_KERNEL,
    Architecture,
    Form,
    Kernel,
    Layer,
    Squeeze,
    squeezed_width,
)

State = dict[str, Tensor]
"""What a stream remembers, by name: a dictionary that can be saved as it is."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": F.silu,
    "hard_swish": F.hardswish,
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    # Keras's: what the released streams were trained with
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    # that of tensorflow/models since 2021, factor and all
    "hard_sigmoid_sixth": lambda x: F.relu6(x + 3) * 0.16667,
}


def pad_as_tensorflow(x: Tensor, kernel: Kernel, stride: int) -> tuple[Tensor, tuple[int, int]]:
    """TensorFlow's padding `same` for the last two axes: an odd pixel of it goes behind.

    Returns:
        The frames, padded if the two sides differ, and the padding (height, width) that is left to the convolution.
    """
    sides = []
    for size, width in zip(x.shape[-2:], kernel[1:], strict=True):
        total = max(width - (size % stride or stride), 0)
        sides.append((total // 2, total - total // 2))
    if all(before == after for before, after in sides):
        return x, (sides[0][0], sides[1][0])
    return F.pad(x, (*sides[1], *sides[0])), (0, 0)


class Convolution(nn.Module):
    """A convolution of frames with padding `same` in space.

    Within single pixels it is a matrix product, within single frames one over images. Over time it is one over volumes
    or, if `flat`, over time with all pixels as columns, with the same weights. For frames in channels-last order these
    views are free, and on a CPU they are faster than convolutions over volumes, most of all in the backward pass.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, groups: int = 1, flat: bool = False):
        super().__init__()
        self.stride, self.groups, self.flat = stride, groups, flat
        self.weight = nn.Parameter(he_normal(torch.empty(outputs, inputs // groups, *kernel)))

    def forward(self, x: Float[Tensor, "b i t h w"], pad_time: int = 0) -> Float[Tensor, "b o t2 h2 w2"]:
        """With `pad_time` frames of zeros at either end."""
        kernel = tuple(self.weight.shape[2:])
        if kernel == (1, 1, 1) and self.stride == self.groups == 1:
            return F.linear(x.permute(0, 2, 3, 4, 1), self.weight.flatten(1)).permute(0, 4, 1, 2, 3)
        x, (up, left) = pad_as_tensorflow(x, kernel, self.stride)
        if kernel[0] == 1:
            images = rearrange(x, "b c t h w -> (b t) c h w")
            images = F.conv2d(images, self.weight[:, :, 0], None, self.stride, (up, left), groups=self.groups)
            return rearrange(images, "(b t) c h w -> b c t h w", b=len(x))
        if not self.flat:
            return F.conv3d(
                x, self.weight, None, (1, self.stride, self.stride), (pad_time, up, left), groups=self.groups
            )
        columns = rearrange(x, "b c t h w -> b c t (h w)")
        columns = F.conv2d(columns, self.weight[..., 0], None, 1, (pad_time, 0), groups=self.groups)
        return rearrange(columns, "b c t (h w) -> b c t h w", h=x.shape[3])


@torch.no_grad()
def he_normal(weight: Tensor) -> Tensor:
    """Keras's HeNormal: a normal distribution cut at two deviations, of variance 2 / inputs after the cut."""
    deviation = (2 / weight[0].numel()) ** 0.5 / 0.87962566103423978
    return nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


class Norm(nn.SyncBatchNorm):
    """Batch normalisation with the constants of the released networks.

    A batch is that of all GPUs, so a recipe means the same on one as on sixteen; in tensorflow/models this holds for
    all but the norms of shortcuts, which are built with a default. torch has it for GPUs alone: on CPUs each process
    normalises its own part.
    """

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Features of the same shape."""
        return super().forward(x) if x.is_cuda else super(nn.SyncBatchNorm, self).forward(x)


class Unit(nn.Module):
    """Convolution, normalisation, activation; where `form` splits space from time, once for each.

    A causal convolution over k frames sees the k - 1 frames before: those of the state, or zeros.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Kernel = (1, 1, 1),
        stride: int = 1,
        *,
        activation: Callable[[Tensor], Tensor] | None,
        form: Form,
        causal: bool = False,
        depthwise: bool = False,
    ):
        super().__init__()
        self.activation, self.causal, self.reach = activation, causal, kernel[0] - 1
        split, flat, groups = form != "3d" and self.reach > 0, form == "2plus1d", inputs if depthwise else 1
        first = (1, *kernel[1:]) if split else kernel
        self.conv = Convolution(inputs, outputs, first, stride, groups, flat)
        self.norm = Norm(outputs)
        self.conv_temporal = Convolution(outputs, outputs, (kernel[0], 1, 1), 1, outputs, flat) if split else None
        self.norm_temporal = Norm(outputs) if split else None

    def forward(self, x: Tensor, buffer: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features (batch channels frames height width), and the buffer for the frames that follow.

        Args:
            x: the frames.
            buffer: the last frames before them, as the convolution over time reads them; zeros if None.
        """
        if self.conv_temporal is None:
            x, buffer = self._remember(x, buffer)
            return self._finish(self.conv(x, self._padding), self.norm), buffer
        x, buffer = self._remember(self._finish(self.conv(x), self.norm), buffer)
        return self._finish(self.conv_temporal(x, self._padding), self.norm_temporal), buffer

    @property
    def _padding(self) -> int:
        return 0 if self.causal else self.reach // 2

    def _finish(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x) if self.activation is None else self.activation(norm(x))

    def _remember(self, x: Tensor, buffer: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not self.causal or not self.reach:
            return x, None
        x = F.pad(x, (0, 0, 0, 0, self.reach, 0)) if buffer is None else torch.cat([buffer, x], dim=2)
        return x, x[:, :, -self.reach :].detach().clone()  # a view would keep all frames alive


class SqueezeExcite(nn.Module):
    """Channels weighted by what their means say: over space and time (`3d`), over space (`2d`), or both (`2plus3d`).

    In a causal network the mean over time is that of the frames so far, one for each frame. With `positions`, a learned
    multiple of a sinusoidal encoding of the frame's number is added to the means.
    """

    def __init__(
        self,
        layer: Layer,
        kind: Squeeze,
        *,
        causal: bool,
        positions: bool,
        activation: Callable[[Tensor], Tensor],
        gate: Callable[[Tensor], Tensor],
    ):
        super().__init__()
        self.kind, self.causal, self.activation, self.gate = kind, causal, activation, gate
        read, hidden = layer.expand * (2 if kind == "2plus3d" else 1), squeezed_width(layer, kind)
        if positions and read % 2:
            raise ValueError(f"a layer ({layer}) needs an even number of channels for positions: sines and cosines.")
        self.reduce, self.expand = nn.Linear(read, hidden), nn.Linear(hidden, layer.expand)
        for linear in (self.reduce, self.expand):
            he_normal(linear.weight)
            nn.init.zeros_(linear.bias)
        self.position_scale = nn.Parameter(torch.zeros(())) if positions else None

    def forward(
        self, x: Tensor, numbers: Int[Tensor, " frames"], total: Float[Tensor, "batch channels"] | None
    ) -> tuple[Tensor, Float[Tensor, "batch channels"] | None]:
        """Weighted features, and the sum of the frames' means for the frames that follow.

        Args:
            x: features (batch channels frames height width).
            numbers: of the frames, from 1.
            total: the sum of the means of the frames before; zero if None.
        """
        means = x.mean((3, 4)).transpose(1, 2)
        if self.kind == "2d":
            squeezed = means
        else:
            overall, total = running_mean(means, numbers, total) if self.causal else (means.mean(1, True), None)
            squeezed = overall if self.kind == "3d" else torch.cat([overall.expand_as(means), means], dim=2)
        if self.position_scale is not None:
            squeezed = squeezed + self.position_scale * sinusoids(numbers - 1, squeezed.shape[2]).to(squeezed.dtype)
        weights = self.gate(self.expand(self.activation(self.reduce(squeezed))))
        return x * rearrange(weights, "b t c -> b c t 1 1"), total


def running_mean(
    values: Float[Tensor, "batch frames channels"],
    numbers: Int[Tensor, " frames"],
    total: Float[Tensor, "batch channels"] | None = None,
) -> tuple[Float[Tensor, "batch frames channels"], Float[Tensor, "batch channels"]]:
    """The mean of all frames up to each one, and their sum for the frames that follow (equation of CGAP, section 3.2).

    Args:
        values: of the frames.
        numbers: of the frames, from 1.
        total: sum of the values of earlier frames.
    """
    sums = values.cumsum(1)
    if total is not None:
        sums = sums + total[:, None]
    return sums / numbers[:, None], sums[:, -1].detach().clone()


def sinusoids(positions: Int[Tensor, " frames"], channels: int) -> Float[Tensor, "frames channels"]:
    """Sines, then cosines, of base 10000 (`PositionalEncoding` of tensorflow/models)."""
    frequencies = 10000.0 ** (-torch.arange(0, channels, 2, device=positions.device) / channels)
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Skip(nn.Module):
    """The shortcut where a layer changes the shape: mean of 3 x 3 pixels if it is strided, then a projection.

    Padding is TensorFlow's, and not part of a mean.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, form: Form):
        super().__init__()
        self.stride = stride
        self.conv, self.norm = Convolution(inputs, outputs, (1, 1, 1), flat=form == "2plus1d"), Norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Features (batch channels frames height width)."""
        if self.stride == 2:
            images = rearrange(x, "b c t h w -> (b t) c h w")
            padding = [size % 2 for size in x.shape[3:]]
            images = F.avg_pool2d(images, 3, 2, padding, ceil_mode=True, count_include_pad=False)
            x = rearrange(images, "(b t) c h w -> b c t h w", b=len(x))
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """One layer: expand, convolve each channel, weigh channels, project; a learned multiple is added to the shortcut.

    The multiple begins at zero (ReZero), so every layer begins as its shortcut. `drop_path` is the probability that a
    clip skips the layer in training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        layer: Layer,
        *,
        form: Form,
        causal: bool,
        squeeze: Squeeze,
        positions: bool,
        activation: Callable[[Tensor], Tensor],
        gate: Callable[[Tensor], Tensor],
        drop_path: float,
    ):
        super().__init__()
        self.layer, self.stride, self.form, self.drop_path = layer, stride, form, drop_path
        self.expand = Unit(inputs, layer.expand, activation=activation, form=form)
        self.feature = Unit(
            layer.expand, layer.expand, layer.kernel, stride,
            activation=activation, form=form, causal=causal, depthwise=True,
        )  # fmt: skip
        self.squeeze = None
        if layer.squeeze and squeeze != "none":
            self.squeeze = SqueezeExcite(
                layer, squeeze, causal=causal, positions=positions, activation=activation, gate=gate
            )
        self.project = Unit(layer.expand, outputs, activation=None, form=form)
        self.scale = nn.Parameter(torch.zeros(()))
        self.skip = Skip(inputs, outputs, stride, form) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor, numbers: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Features (batch channels frames height width), and what this layer remembers of them.

        Args:
            x: the frames.
            numbers: theirs, from 1.
            state: what the layer remembers of earlier frames; empty at the start.
        """
        kept: State = {}
        y, _ = self.expand(x)
        y, buffer = self.feature(y, state.get("stream_buffer"))
        if buffer is not None:
            kept["stream_buffer"] = buffer
        if self.squeeze is not None:
            y, total = self.squeeze(y, numbers, state.get("pool_buffer"))
            if total is not None:
                kept["pool_buffer"] = total
        y = self._drop(self.scale * self.project(y)[0])
        return y + (x if self.skip is None else self.skip(x)), kept

    def _drop(self, y: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return y
        keep = 1 - self.drop_path
        return y * (torch.rand(len(y), 1, 1, 1, 1, device=y.device) < keep).to(y.dtype) / keep


class MoViNet(nn.Module):
    """A network that classifies clips; if it is causal, frame by frame.

    Args:
        architecture: a published name (`a0` to `a5`, `t0`) or one written out, see `Architecture.parse`.
        num_classes: of the classifier.
        form: of the convolutions: `3d`; `2plus1d`, in space and then in time, each with its own norm and activation,
            run over images and columns; `3d_2plus1d`, the same (with the same weights) over time run over volumes.
        causal: whether no frame sees a later one. Only then can the network `stream`.
        squeeze: what squeeze-and-excitation reads: `3d`, `2d`, `2plus3d` or `none`.
        positions: whether it also reads the time (the released A3 to A5 streams); for causal networks.
        activation: `swish`, or `hard_swish` (the released streams). The classifier always has `swish`.
        gate: `sigmoid`; `hard_sigmoid`, that of the released streams; or `hard_sigmoid_sixth`.
        dropout: before the last layer.
        drop_path: probability that a clip skips the last layer; it grows from the first one in equal steps.
        channels: of a frame.

    Raises:
        ValueError: an unknown name, an architecture that makes no network, or settings that exclude each other.
    """

    def __init__(
        self,
        architecture: str | Mapping | Architecture,
        num_classes: int,
        *,
        form: str = "3d",
        causal: bool = False,
        squeeze: str = "3d",
        positions: bool = False,
        activation: str = "swish",
        gate: str = "sigmoid",
        dropout: float = 0.2,
        drop_path: float = 0.2,
        channels: int = 3,
    ):
        super().__init__()
        for name, given, known in (
            ("form", form, get_args(Form)),
            ("squeeze", squeeze, get_args(Squeeze)),
            ("activation", activation, ACTIVATIONS),
            ("gate", gate, GATES),
        ):
            if given not in known:
                raise ValueError(f"{name} ({given!r}) must be one of {', '.join(known)}.")
        if positions and not causal:
            raise ValueError("positions need a causal network: set causal to true, or positions to false.")
        if positions and squeeze == "none":
            raise ValueError("positions are read by squeeze-and-excitation: set squeeze, or positions to false.")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path ({drop_path}) must be from 0 to below 1: at 1, no clip has the last layer.")
        self.architecture, self.causal, self.form = Architecture.parse(architecture), causal, form
        self.squeeze, self.channels = squeeze, channels
        act, rows = ACTIVATIONS[activation], self.architecture.named_layers()
        self.stem = Unit(channels, self.architecture.stem, STEM_KERNEL, 2, activation=act, form=form)
        self.layers = nn.ModuleDict()
        for number, (name, inputs, outputs, stride, layer) in enumerate(rows, start=1):
            self.layers[name] = Bottleneck(
                inputs, outputs, stride, layer, form=form, causal=causal, squeeze=squeeze, positions=positions,
                activation=act, gate=GATES[gate], drop_path=drop_path * number / len(rows),
            )  # fmt: skip
        project, dense = self.architecture.project, self.architecture.dense
        self.head = Unit(rows[-1][2], project, activation=act, form=form)
        self.dense, self.dropout = nn.Linear(project, dense), nn.Dropout(dropout)
        self.classifier = nn.Linear(dense, num_classes)
        he_normal(self.dense.weight)
        nn.init.normal_(self.classifier.weight, std=0.01)
        for linear in (self.dense, self.classifier):
            nn.init.zeros_(linear.bias)

    def forward(self, video: Float[Tensor, "batch channels frames height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of whole clips, with pixels from 0 to 1.

        Raises:
            ValueError: the video has another shape, no frame, or pixels that are no fractions.
        """
        return self._run(video, {})[0][:, -1]

    def each_frame(
        self, video: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch frames classes"]:
        """Logits after each frame of whole clips, from that frame and those before: what `stream` says as it goes.

        Raises:
            ValueError: the network is not causal.
        """
        self._check_causal()
        return self._run(video, {}, each=True)[0]

    def stream(
        self, video: Float[Tensor, "batch channels frames height width"], state: Mapping[str, Tensor] | None = None
    ) -> tuple[Float[Tensor, "batch frames classes"], State]:
        """Logits after each of the next frames of a video, and the state to pass in with those that follow.

        No gradient flows into the state, so a long video can be trained on in pieces.

        Args:
            video: the next frames, one or more.
            state: of the frames before; None at the start of a video.

        Raises:
            ValueError: the network is not causal, the video is none, or the state is of other videos.
        """
        self._check_causal()
        if state is not None:
            self._check_state(video, state)
        return self._run(video, state or {}, each=True)

    def state_shapes(self, batch: int, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the state of a stream, by name.

        Args:
            batch: videos side by side.
            height: of their frames.
            width: of their frames.
        """
        found: dict[str, tuple[int, ...]] = {"frames": ()}
        sizes = [-(-height // 2), -(-width // 2)]
        for name, layer in self.layers.items():
            before, sizes = sizes, [-(-size // layer.stride) for size in sizes]
            expand, reach = layer.layer.expand, layer.feature.reach
            if reach:
                found[f"{name}.stream_buffer"] = (batch, expand, reach, *(before if self.form == "3d" else sizes))
            if layer.squeeze is not None and layer.squeeze.kind != "2d":
                found[f"{name}.pool_buffer"] = (batch, expand)
        return found | {"head.pool_buffer": (batch, self.architecture.project)}

    def _run(self, video: Tensor, state: Mapping[str, Tensor], each: bool = False) -> tuple[Tensor, State]:
        if video.ndim != 5 or video.shape[1] != self.channels or not video.shape[2]:
            raise ValueError(
                f"the video has shape {tuple(video.shape)}; expected (batch, {self.channels}, frames, height, width) "
                "with at least one frame."
            )
        if not video.is_floating_point():
            raise ValueError(f"the video has pixels of {video.dtype}, expected numbers from 0 to 1: divide by 255.")
        seen = state.get("frames", torch.zeros((), dtype=torch.int64, device=video.device))
        numbers = seen + torch.arange(1, video.shape[2] + 1, device=video.device)
        following: State = {"frames": numbers[-1].clone()}
        x, _ = self.stem(video.contiguous(memory_format=torch.channels_last_3d))
        for name, layer in self.layers.items():
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            x, kept = layer(x, numbers, own)
            following |= {f"{name}.{key}": value for key, value in kept.items()}
        means = self.head(x)[0].mean((3, 4)).transpose(1, 2)
        if self.causal:
            pooled, following["head.pool_buffer"] = running_mean(means, numbers, state.get("head.pool_buffer"))
            pooled = pooled if each else pooled[:, -1:]
        else:
            pooled = means.mean(1, keepdim=True)
        return self.classifier(self.dropout(F.silu(self.dense(pooled)))), following

    def _check_causal(self) -> None:
        if not self.causal:
            raise ValueError("this network sees later frames, so it has no answer before the last one: set causal.")

    def _check_state(self, video: Tensor, state: Mapping[str, Tensor]) -> None:
        expected = self.state_shapes(len(video), *video.shape[3:])
        found = {name: tuple(value.shape) for name, value in state.items()}
        if away := sorted({str(value.device) for value in state.values()} - {str(video.device)}):
            raise ValueError(f"the state lies on {away[0]} and the video on {video.device}: bring it there.")
        if different := sorted(
            name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
        ):
            name = different[0]
            raise ValueError(
                f"the state does not fit these frames: {name} is {found.get(name, 'absent')}, expected "
                f"{expected.get(name, 'absent')}. Start a new video with state None."
            )
