"""The networks of HD-VILA: a hybrid encoder of clips, and BERT in two halves. Parameters carry the official names.

Read `HdVilaNetwork.encode_clips` first, then `HdVilaNetwork.fuse`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal, NotRequired

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from transformers import BertForPreTraining
from transformers.models.bert.modeling_bert import BertPooler
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.hd_vila.hybrid import SMALLER
from lightning_modules.layers.bert import masked_mean, run_layers
from lightning_modules.layers.transformer import Attention, DropPath, Mlp
from lightning_modules.metrics.modality_flow import projected, side_by_side, watching
from lightning_modules.settings import STRICT, Count, NonNegative, Positive, Share

STREAMS = ("hybrid", "high", "low")
TASKS = ("contrast", "words", "answers", "choice")
POOLS = ("lse", "mean", "max")
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": nn.BatchNorm2d,  # always in evaluation mode, for published weights
    "group": partial(nn.GroupNorm, 1),  # over all channels of an image, for fresh weights
}
Norm = Literal["frozen", "group"]
Stages = Annotated[list[Count], Field(min_length=4, max_length=4)]


class ResNetSettings(TypedDict):
    """Settings of `ResNet`, and `hub`: a published one that both streams begin with, or null."""

    __pydantic_config__ = STRICT
    hub: NotRequired[str | None]
    width: NotRequired[Count]
    layers: NotRequired[Stages]
    strides: NotRequired[Stages]
    stem_kernel: NotRequired[Count]
    stem_pool: NotRequired[bool]
    norm: NotRequired[Norm]


class TimeSformerSettings(TypedDict):
    """Settings of `TimeSformer`."""

    __pydantic_config__ = STRICT
    depth: NotRequired[Count]
    heads: NotRequired[Count]
    grid: NotRequired[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    frames: NotRequired[Count]
    drop_path: NotRequired[Share]
    position_std: NotRequired[NonNegative]
    time_std: NotRequired[NonNegative]
    init_std: NotRequired[Positive]


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides) and 1x1 convolution with a shortcut; names as in torchvision."""

    def __init__(self, in_channels: int, width: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        out_channels = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(in_channels, width, 1, bias=False), norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False), norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out_channels, 1, bias=False), norm(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels)
            )

    def forward(self, x: Float[Tensor, "batch i height width"]) -> Float[Tensor, "batch o h w"]:
        """The activated sum of both ways."""
        y = F.relu(convolved(x, self.conv1, self.bn1))
        y = F.relu(convolved(y, self.conv2, self.bn2))
        shortcut = x if self.downsample is None else convolved(x, *self.downsample)
        return F.relu(convolved(y, self.conv3, self.bn3) + shortcut)


def convolved(
    x: Float[Tensor, "batch i height width"], conv: nn.Conv2d, norm: nn.Module
) -> Float[Tensor, "batch o h w"]:
    """A map after a convolution and its norm; one with fixed statistics scales the weights and needs no map itself."""
    if not isinstance(norm, nn.BatchNorm2d):
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight, bias = conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
    return F.conv2d(x, weight, bias, conv.stride, conv.padding)


class ResNet(nn.Module):
    """ResNet of bottlenecks (He et al., 1512.03385), ResNet-50 by default, that gives the map of every stage.

    Args:
        width: channels of the stem; stage i gives 4 x 2^i times as many, counted from 0.
        layers: blocks of each stage; a stage that is left out has no parameters.
        strides: of each stage.
        stem_kernel: of the first convolution, of stride 2.
        stem_pool: whether a maximum over 3 x 3, of stride 2, follows it.
        norm: `frozen`: batch norms with the statistics that were loaded, as HD-VILA trains; `group`: over each image,
            for fresh weights, whose maps would vanish or grow under fixed statistics.

    Raises:
        ValueError: the first convolution has no middle, or a stage has no stride.
    """

    def __init__(
        self,
        *,
        width: Count = 64,
        layers: Sequence[Count] = (3, 4, 6, 3),
        strides: Sequence[Count] = (1, 2, 2, 2),
        stem_kernel: Count = 7,
        stem_pool: bool = True,
        norm: Norm = "frozen",
    ):
        super().__init__()
        if stem_kernel % 2 == 0:
            raise ValueError(f"resnet.stem_kernel ({stem_kernel}) must be odd: maps would else not be half as large.")
        if len(strides) < len(layers):
            raise ValueError(f"resnet.strides ({list(strides)}) must have one for each of the {len(layers)} layers.")
        self.conv1 = nn.Conv2d(3, width, stem_kernel, 2, padding=stem_kernel // 2, bias=False)
        self.bn1 = NORMS[norm](width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem_pool else nn.Identity()
        self.depth, self.channels, self.reduction = len(layers), [], [4 if stem_pool else 2]
        channels = width
        for stage, (blocks, stride) in enumerate(zip(layers, strides, strict=False)):
            parts = []
            for block in range(blocks):
                parts.append(Bottleneck(channels, width << stage, 1 if block else stride, NORMS[norm]))
                channels = 4 * width << stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*parts))
            self.channels.append(channels)
            self.reduction.append(self.reduction[-1] * stride)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def train(self, mode: bool = True) -> "ResNet":
        """Batch norms stay in evaluation mode, as in the official code (`norm_eval`)."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """The map of each stage, (batch channels h w), each smaller by `reduction[stage + 1]`."""
        x, maps = self.maxpool(F.relu(convolved(images, self.conv1, self.bn1))), []
        for stage in range(self.depth):
            x = getattr(self, f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


class DividedBlock(nn.Module):
    """Attention over the frames at one place, then over the places of one frame, then an MLP (2102.05095).

    `temporal_fc` begins with zeros, so that at first each frame is read by itself.
    """

    def __init__(self, dim: int, heads: int, drop_path: float):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.temporal_norm1, self.temporal_attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.temporal_fc = nn.Linear(dim, dim)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "batch frames places dim"]) -> Float[Tensor, "batch frames places dim"]:
        """The stream after the three parts."""
        batch, frames = x.shape[:2]
        by_place = rearrange(x, "b t n d -> (b n) t d")
        mixed = self.temporal_fc(self.drop_path(self.temporal_attn(self.temporal_norm1(by_place))))
        x = x + rearrange(mixed, "(b n) t d -> b t n d", b=batch)
        by_frame = rearrange(x, "b t n d -> (b t) n d")
        mixed = self.drop_path(self.attn(self.norm1(by_frame)))
        x = x + rearrange(mixed, "(b t) n d -> b t n d", t=frames)
        x = rearrange(x, "b t n d -> b (t n) d")
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return rearrange(x, "b (t n) d -> b t n d", t=frames)


class TimeSformer(nn.Module):
    """Blocks of divided attention over the maps of a clip, with positions in space and time.

    It has neither patch embedding nor class token. The official one also has a norm that it never applies.

    Args:
        dim: channels of the maps.
        depth: blocks.
        heads: of each attention.
        grid: height and width of the maps; other maps get interpolated positions.
        frames: of a clip, likewise.
        drop_path: of the last block; it grows from 0.
        position_std: deviation of the positions at the start.
        time_std: that of the times; the official zeros take many steps to leave.
        init_std: that of the linear layers.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: Count = 4,
        heads: Count = 16,
        grid: Sequence[Count] = (10, 16),
        frames: Count = 7,
        drop_path: float = 0.1,
        position_std: float = 0.02,
        time_std: float = 0.0,
        init_std: float = 0.02,
    ):
        super().__init__()
        self.grid = tuple(grid)
        self.pos_embed = nn.Parameter(position_std * torch.randn(1, grid[0] * grid[1], dim))
        self.time_embed = nn.Parameter(time_std * torch.randn(1, frames, dim))
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(DividedBlock(dim, heads, rate) for rate in rates)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=init_std)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            nn.init.zeros_(block.temporal_fc.weight)

    def forward(
        self, maps: Float[Tensor, "batch frames dim height width"]
    ) -> Float[Tensor, "batch frames dim height width"]:
        """Maps in which each place has seen the others of its frame and the same place of the other frames."""
        frames, (height, width) = maps.shape[1], maps.shape[3:]
        positions, times = self.pos_embed, self.time_embed
        if (height, width) != self.grid:
            positions = rearrange(positions, "1 (h w) d -> 1 d h w", h=self.grid[0])
            positions = F.interpolate(positions, size=(height, width), mode="bilinear", align_corners=False)
            positions = rearrange(positions, "1 d h w -> 1 (h w) d")
        if frames != times.shape[1]:
            times = F.interpolate(times.mT, size=frames, mode="linear", align_corners=False).mT
        x = rearrange(maps, "b t d h w -> b t (h w) d") + positions[:, None] + times[:, :, None]
        for block in self.blocks:
            x = block(x)
        return rearrange(x, "b t (h w) d -> b t d h w", h=height)


class VisualEmbeddings(nn.Module):
    """A map as tokens for the upper half of BERT: its values, their row, their column, and that they are seen."""

    def __init__(self, dim: int, *, rows: int = 100, columns: int = 100, eps: float, dropout: float):
        super().__init__()
        self.row_position_embeddings = nn.Embedding(rows, dim)
        self.col_position_embeddings = nn.Embedding(columns, dim)
        self.token_type_embeddings = nn.Embedding(1, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch tokens dim"]:
        """One token for each place, row by row."""
        rows = self.row_position_embeddings.weight[: maps.shape[2], None]
        columns = self.col_position_embeddings.weight[None, : maps.shape[3]]
        x = rearrange(maps, "b d h w -> b h w d") + rows + columns + self.token_type_embeddings.weight
        return self.dropout(self.LayerNorm(rearrange(x, "b h w d -> b (h w) d")))


class HdVilaNetwork(nn.Module):
    """Clips and texts as features (`contrast`), or read together (`words`, `answers`, `choice`).

    Only what the streams and the task need is built, so every parameter gets a gradient. The official modules have
    more: layer 4 of `cnn_low`, norms, poolers and positions that nothing reads.

    Args:
        bert: from `make_bert`; its lower half reads texts, its upper half texts with videos.
        resnet: settings of `ResNet`, the same for both streams, whose weights differ.
        timesformer: settings of `TimeSformer`.
        streams: `hybrid`: the middle frame at high resolution, its neighbours at low resolution; `high`: the middle
            frame alone; `low`: all frames at low resolution.
        task: what is learned from a text and its clips: `contrast` of features; masked `words`; `answers` to open
            questions; `choice` among candidates.
        pool: over the clips of a video, on the hidden states (words) or the logits: `lse` (log-sum-exp), `mean`, `max`.
        num_answers: for `answers`.

    Raises:
        ValueError: an option is unknown, BERT cannot be cut into halves, or the streams have maps of different sizes.
    """

    def __init__(
        self,
        bert: BertForPreTraining,
        *,
        resnet: Mapping[str, object],
        timesformer: Mapping[str, object],
        streams: str = "hybrid",
        task: str = "contrast",
        pool: str = "lse",
        num_answers: int = 1,
    ):
        super().__init__()
        for name, value, known in (("streams", streams, STREAMS), ("task", task, TASKS), ("pool", pool, POOLS)):
            if value not in known:
                raise ValueError(f"{name} ({value!r}) must be one of {', '.join(known)}.")
        config, layers = bert.config, bert.bert.encoder.layer
        if len(layers) % 2:
            raise ValueError(f"bert has {len(layers)} layers, which are no two halves: take an even number.")
        self.streams, self.task, self.pool, dim = streams, task, pool, config.hidden_size
        low = {**resnet, "layers": tuple(resnet.get("layers", (3, 4, 6, 3)))[:3]}
        if streams != "low":
            self.cnn = ResNet(**resnet)
            self.grid_encoder = nn.Sequential(_project(self.cnn.channels[3], dim), nn.MaxPool2d(2), nn.GELU())
        if streams != "high":
            self.cnn_low = ResNet(**low)
            self.grid_encoder_low = nn.Sequential(_project(self.cnn_low.channels[2], dim), nn.GELU())
            self.timesformer = TimeSformer(dim, **timesformer)
        if streams == "hybrid":
            sharp, small = 2 * self.cnn.reduction[4], SMALLER * self.cnn_low.reduction[3]
            if sharp != small:
                raise ValueError(
                    f"resnet.strides ({list(resnet.get('strides', (1, 2, 2, 2)))}) give the streams maps of different "
                    f"sizes, 1/{sharp} and 1/{small} of the sharp frame's sides: let the last be {SMALLER // 2}."
                )
            self.grid_encoder_combine = nn.Sequential(_project(2 * dim, dim), nn.GELU())
        self.multiple = SMALLER * (self.cnn if streams == "high" else self.cnn_low).reduction[3]

        self.transformer = nn.Module()
        self.transformer.bert = nn.Module()
        parts, self.half = self.transformer.bert, len(layers) // 2
        parts.embeddings, parts.encoder = bert.bert.embeddings, nn.Module()
        parts.encoder.layer = layers[: self.half] if task == "contrast" else layers
        if task in ("contrast", "words"):
            parts.pooler1 = BertPooler(config)
            self.transformer.t_proj, self.transformer.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        if task != "contrast":
            dropout = config.hidden_dropout_prob
            parts.visual_embeddings = VisualEmbeddings(dim, eps=config.layer_norm_eps, dropout=dropout)
        if task == "words":
            self.transformer.cls = nn.Module()
            self.transformer.cls.predictions = bert.cls.predictions
        if task in ("answers", "choice"):
            parts.pooler2 = BertPooler(config)
            self.transformer.dropout = nn.Dropout(dropout)
            outputs = num_answers if task == "answers" else 1
            self.transformer.classifier = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, outputs))
        for name, module in self.transformer.named_modules():
            if name.startswith(("bert.pooler", "bert.visual", "t_proj", "v_proj", "classifier")):
                _draw(module, config.initializer_range)

    def encode_clips(
        self,
        middle: Float[Tensor, "clips 3 height width"] | None,
        others: Float[Tensor, "clips frames 3 low_height low_width"] | None,
    ) -> Float[Tensor, "clips dim h w"]:
        """The map of each clip, read out at its middle frame.

        Args:
            middle: normalised pixels at high resolution; not read where `streams` is `low`.
            others: the frames before and after it in order, at a quarter of its height and width; where `streams` is
                `low`, all frames of the clip. Not read where it is `high`.

        Raises:
            ValueError: their sizes are no multiples of what the streams reduce to one place of the map.
        """
        size, least = (
            (middle.shape[2:], self.multiple) if others is None else (others.shape[3:], self.multiple // SMALLER)
        )
        if any(side % least for side in size):
            raise ValueError(f"frames of {tuple(size)} (height, width) do not fit: multiples of {least} do.")
        if self.streams != "low":
            *_, third, fourth = self.cnn(middle)
            high = self.grid_encoder(fourth)
        if self.streams == "high":
            return high
        frames = others.shape[1]
        low = self.grid_encoder_low(self.cnn_low(rearrange(others, "b t c h w -> (b t) c h w"))[2])
        low = rearrange(low, "(b t) d h w -> b t d h w", t=frames)
        if self.streams == "low":
            return self.timesformer(low)[:, frames // 2]
        before = (frames + 1) // 2
        shrunk = self.grid_encoder_low(third[:, :, ::SMALLER, ::SMALLER])  # nearest, as in the official code
        sequence = torch.cat([low[:, :before], shrunk[:, None], low[:, before:]], dim=1)
        return self.grid_encoder_combine(torch.cat([high, self.timesformer(sequence)[:, before]], dim=1))

    def read_texts(
        self, token_ids: Int[Tensor, "texts length"], attention_mask: Bool[Tensor, "texts length"]
    ) -> Float[Tensor, "texts length dim"]:
        """The states of texts after the lower half of BERT."""
        bert = self.transformer.bert
        return run_layers(bert.encoder.layer[: self.half], bert.embeddings(token_ids), attention_mask)

    def text_features(
        self, states: Float[Tensor, "texts length dim"], attention_mask: Bool[Tensor, "texts length"]
    ) -> Float[Tensor, "texts dim"]:
        """Unit features of texts, from the mean of their states."""
        pooler = self.transformer.bert.pooler1
        pooled = pooler.activation(pooler.dense(masked_mean(states, attention_mask)))
        return F.normalize(self.transformer.t_proj(pooled), dim=-1)

    def video_features(self, maps: Float[Tensor, "videos clips dim h w"]) -> Float[Tensor, "videos dim"]:
        """Unit features of videos, from the mean of the maps of their clips."""
        return F.normalize(self.transformer.v_proj(maps.mean((1, 3, 4))), dim=-1)

    def fuse(
        self,
        states: Float[Tensor, "texts length dim"],
        attention_mask: Bool[Tensor, "texts length"],
        maps: Float[Tensor, "texts clips dim h w"],
    ) -> Float[Tensor, "texts clips length dim"]:
        """The states of each text with each clip of its video, after the upper half of BERT."""
        bert, clips, length = self.transformer.bert, maps.shape[1], states.shape[1]
        seen = bert.visual_embeddings(rearrange(maps, "b k d h w -> (b k) d h w"))
        states = repeat(states, "b n d -> (b k) n d", k=clips)
        mask = repeat(attention_mask, "b n -> (b k) n", k=clips)
        mask = torch.cat([mask, mask.new_ones(seen.shape[:2])], dim=1)
        read = run_layers(bert.encoder.layer[self.half :], torch.cat([states, seen], dim=1), mask)
        return rearrange(read[:, :length], "(b k) n d -> b k n d", k=clips)

    def flow(
        self,
        states: Float[Tensor, "texts length dim"],
        attention_mask: Bool[Tensor, "texts length"],
        maps: Float[Tensor, "texts clips dim h w"],
        counted: Bool[Tensor, "texts length"] | None = None,
    ) -> dict[str, Float[Tensor, "texts ..."]]:
        """Inter-modality flow of what `fuse` reads, mean over clips, see `modality_flow.FlowMeter.columns`.

        Args:
            states: see `fuse`.
            attention_mask: likewise.
            maps: likewise.
            counted: which places of the texts count as language; null for all but padding.
        """
        clips, places = maps.shape[1], maps.shape[3] * maps.shape[4]
        attended = attention_mask.repeat_interleave(clips, 0)
        language = attended if counted is None else counted.repeat_interleave(clips, 0)
        meter = side_by_side(language, attended.new_ones(len(attended), places), attended)
        layers = self.transformer.bert.encoder.layer[self.half :]
        with watching((layer.attention.self for layer in layers), meter, projected):
            self.fuse(states, attention_mask, maps)
        return {name: x.unflatten(0, (-1, clips)).mean(1) for name, x in meter.columns().items()}

    def over_clips(self, x: Float[Tensor, "videos clips ..."]) -> Float[Tensor, "videos ..."]:
        """What each clip of a video gave, pooled; `lse` grows with the number of clips, by its logarithm at most."""
        if self.pool == "lse":
            return x.logsumexp(1)
        return x.mean(1) if self.pool == "mean" else x.amax(1)

    def word_logits(self, states: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows words"]:
        """What masked words were, from their pooled states."""
        return self.transformer.cls.predictions(states)

    def answer_logits(self, states: Float[Tensor, "texts clips length dim"]) -> Float[Tensor, "texts outputs"]:
        """Of an open question, one for each answer; of a candidate, one that tells how well it fits."""
        pooled = self.transformer.bert.pooler2(rearrange(states, "b k n d -> (b k) n d"))
        logits = self.transformer.classifier(self.transformer.dropout(pooled))
        return self.over_clips(rearrange(logits, "(b k) a -> b k a", b=len(states)))


def _project(in_channels: int, dim: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, dim, 1, bias=False)


def _draw(module: nn.Module, std: float) -> None:
    """BERT's initial values."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
