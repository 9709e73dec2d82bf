"""The causal tokenizer of images and videos (MAGVIT-v2, section 3.2), and the image tokenizer that it is inflated from.

1 + s t frames become 1 + t frames of tokens. The first frame is tokenised alone, as an image is. The number of frames
is halved in the deepest levels (late downsampling). A video of any length can be read and drawn in parts, which give
what the whole video gives (`encode_parts`, `decode_parts`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from lightning_modules.layers.published import load_strictly
from lightning_modules.settings import Count
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.causal import AdaptiveNorm, CausalBlock, CausalConv, FrameNorm, Grow, Memory
from lightning_modules.video_tokens.convolution import lecun_normal_
from lightning_modules.video_tokens.lookup_free import LookupFree
from lightning_modules.video_tokens.quantiser import Quantised, VectorQuantiser
from lightning_modules.video_tokens.tokenizer import VideoTokenizer, check_tokens, check_video, inflated

Quantisation = Literal["lookup_free", "vector"]
QUANTISERS: dict[str, type[nn.Module]] = {"lookup_free": LookupFree, "vector": VectorQuantiser}


class Encoder(nn.Module):
    """Pixels to latents, with a strided convolution after each level but the last.

    Args: see `CausalTokenizer`.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        halve_time: Sequence[bool],
        embedding_dim: int,
        groups: int,
        pooled: bool,
    ):
        super().__init__()
        channels = [width * m for m in multipliers]
        norms = {"groups": groups, "pooled": pooled}
        self.stem = CausalConv(3, width, (depth, 3, 3), bias=False)
        self.levels = nn.ModuleList(
            _blocks(depth, before, after, blocks, **norms)
            for before, after in zip([width, *channels[:-1]], channels, strict=True)
        )
        self.shrink = nn.ModuleList(
            CausalConv(c, c, (depth, 3, 3), stride=(1 + half, 2, 2))
            for c, half in zip(channels[:-1], halve_time, strict=True)
        )
        self.tail = _blocks(depth, channels[-1], channels[-1], blocks, **norms)
        self.norm = FrameNorm(groups, channels[-1], pooled=pooled)
        self.head = CausalConv(channels[-1], embedding_dim, (1, 1, 1))

    def forward(
        self, video: Float[Tensor, "batch 3 frames height width"], memory: Memory | None = None
    ) -> Float[Tensor, "batch dim t h w"]:
        """Latents of a clip, or of its next part."""
        x = self.stem(video, memory)
        for level, blocks in enumerate(self.levels):
            for block in blocks:
                x = block(x, memory)
            if level < len(self.shrink):
                x = self.shrink[level](x, memory)
        for block in self.tail:
            x = block(x, memory)
        return self.head(F.silu(self.norm(x)))


class Decoder(nn.Module):
    """Latents to pixels: the encoder in reverse, with an adaptive norm before each level and depth to space after it.

    Args: see `CausalTokenizer`.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        halve_time: Sequence[bool],
        embedding_dim: int,
        groups: int,
        pooled: bool,
        drop_second: bool,
    ):
        super().__init__()
        channels = [width * m for m in multipliers][::-1]
        norms = {"groups": groups, "pooled": pooled}
        self.stem = CausalConv(embedding_dim, channels[0], (depth, 3, 3))
        self.tail = _blocks(depth, channels[0], channels[0], blocks, **norms)
        pairs = list(zip([channels[0], *channels[:-1]], channels, strict=True))
        self.adaptive = nn.ModuleList(AdaptiveNorm(embedding_dim, before, **norms) for before, _ in pairs)
        self.levels = nn.ModuleList(_blocks(depth, before, after, blocks, **norms) for before, after in pairs)
        self.grow = nn.ModuleList(
            Grow(depth, c, (1 + half, 2, 2), drop_second=drop_second)
            for c, half in zip(channels[:-1], list(halve_time)[::-1], strict=True)
        )
        self.norm = FrameNorm(groups, channels[-1], pooled=pooled)
        self.head = CausalConv(channels[-1], 3, (depth, 3, 3))

    def forward(
        self, latents: Float[Tensor, "batch dim t h w"], memory: Memory | None = None
    ) -> Float[Tensor, "batch 3 frames height width"]:
        """A clip, or its next part."""
        first = not memory  # nothing is remembered yet, or nothing is to be
        x = self.stem(latents, memory)
        for block in self.tail:
            x = block(x, memory)
        for level, blocks in enumerate(self.levels):
            x = self.adaptive[level](x, latents, first)
            for block in blocks:
                x = block(x, memory)
            if level < len(self.grow):
                x = self.grow[level](x, memory, first)
        return self.head(F.silu(self.norm(x)), memory)


class CausalTokenizer(VideoTokenizer):
    """Encoder, quantiser and decoder.

    Args:
        frames: of a clip that it is trained on, 1 + a multiple of the time that a token stands for.
        size: height and width of a frame.
        dims: 3 for kernels over space and time, 2 for an image tokenizer, which reads each frame alone.
        width: channels of the first level.
        multipliers: channels of each level in units of `width`.
        blocks: residual blocks of a level.
        halve_time: for each level but the last, whether the number of frames is halved after it: late is `[false, true,
            true]`, early `[true, true, false]`; an image tokenizer never does.
        quantisation: `lookup_free`, or `vector` for a codebook.
        codebook_size: K.
        embedding_dim: of a latent; null for log2 K.
        quantiser: further arguments of `LookupFree` or `VectorQuantiser`.
        norm_groups: of every group norm.
        pooled_norm: whether norms pool over the frames of a clip, as SEED-Voken's do. Then no frame is independent of
            later ones.
        drop_second: which of the frames that `Grow` makes of the first one is kept.
        centred: whether the networks read and draw pixels from -1 to 1; those given and returned are from 0 to 1.

    Raises:
        ValueError: frames or size cannot be halved so often, `halve_time` has another length, or there is no such
            quantisation.
    """

    def __init__(
        self,
        *,
        frames: Count,
        size: Count,
        dims: Literal[2, 3] = 3,
        width: Count = 128,
        multipliers: Annotated[Sequence[Count], Field(min_length=1)] = (1, 2, 2, 4),
        blocks: Count = 4,
        halve_time: Sequence[bool] = (False, True, True),
        quantisation: Quantisation = "lookup_free",
        codebook_size: Count = 2**18,
        embedding_dim: Count | None = None,
        quantiser: Mapping[str, object] | None = None,
        norm_groups: Count = 32,
        pooled_norm: bool = False,
        drop_second: bool = False,
        centred: bool = True,
    ):
        super().__init__()
        if len(halve_time) != len(multipliers) - 1:
            raise ValueError(
                f"halve_time has {len(halve_time)} entries, expected {len(multipliers) - 1}: one for each level of "
                f"multipliers ({list(multipliers)}) but the last."
            )
        if quantisation not in QUANTISERS:
            raise ValueError(f"quantisation ({quantisation!r}) must be one of {', '.join(QUANTISERS)}.")
        halve_time = [half and dims == 3 for half in halve_time]
        self.time, self.space = 2 ** sum(halve_time), 2 ** len(halve_time)
        self.frames, self.size, self.dims, self.centred = frames, size, dims, centred
        self.pooled = pooled_norm and dims == 3
        self.check_shape((1, 3, frames, size, size))
        self.grid = (1 + (frames - 1) // self.time, size // self.space, size // self.space)
        embedding_dim = embedding_dim or (codebook_size - 1).bit_length()
        options = {
            "depth": 1 if dims == 2 else 3, "width": width, "multipliers": multipliers, "blocks": blocks,
            "halve_time": halve_time, "embedding_dim": embedding_dim, "groups": norm_groups, "pooled": self.pooled,
        }  # fmt: skip
        self.encoder, self.decoder = Encoder(**options), Decoder(**options, drop_second=drop_second)
        lecun_normal_(self)
        given = {"codes": codebook_size, "dim": embedding_dim}
        self.quantiser = build(QUANTISERS[quantisation], quantiser or {}, "tokenizer.quantiser", **given)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse clips that are not 1 + a multiple of a token's frames long, or cannot be divided into tokens.

        Raises:
            ValueError: see above.
        """
        if (shape[2] - 1) % self.time or shape[3] % self.space or shape[4] % self.space:
            raise ValueError(
                f"clips of shape {tuple(shape)} cannot become tokens: expected (batch, 3, frames, height, width) with "
                f"1 + a multiple of {self.time} frames, and multiples of {self.space} pixels."
            )

    def quantise(self, video: Float[Tensor, "batch 3 frames height width"], memory: Memory | None = None) -> Quantised:
        """Codes and tokens of clips, or of their next part."""
        return self.quantiser(self.latents(video, memory))

    def latents(
        self, video: Float[Tensor, "batch 3 frames height width"], memory: Memory | None = None
    ) -> Float[Tensor, "batch dim t h w"]:
        """What is quantised of clips, or of their next part."""
        return self.encoder(video * 2 - 1 if self.centred else video, memory)

    def draw(
        self, latents: Float[Tensor, "batch dim t h w"], memory: Memory | None = None
    ) -> Float[Tensor, "batch 3 frames height width"]:
        """Clips of codes, or their next part."""
        video = self.decoder(latents, memory)
        return (video + 1) / 2 if self.centred else video

    def encode_parts(self, parts: Iterable[Tensor]) -> Iterator[Int[Tensor, "batch _ h w"]]:
        """The tokens of a video that comes in parts, of 1 + s a frames first and multiples of s frames later.

        Args:
            parts: each as `encode` takes clips.

        Raises:
            ValueError: a part is no clip or has another length, or norms are pooled.
        """
        self._check_parts()
        memory: Memory = {}
        for number, part in enumerate(parts):
            check_video(part)
            batch, channels, frames, height, width = part.shape
            self.check_shape((batch, channels, frames + (number > 0), height, width))
            yield self.quantise(part, memory).tokens

    def decode_parts(self, parts: Iterable[Tensor]) -> Iterator[Float[Tensor, "batch 3 _ height width"]]:
        """The video of tokens that come in parts.

        Args:
            parts: each as `decode` takes tokens.

        Raises:
            ValueError: a part are no tokens, or norms are pooled.
        """
        self._check_parts()
        memory: Memory = {}
        for part in parts:
            check_tokens(part, self.vocabulary)
            yield self.draw(self.quantiser.embed(part), memory)

    def _check_parts(self) -> None:
        if self.pooled:
            raise ValueError("pooled_norm is true: each frame depends on all frames, so give the clip as a whole.")

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of a tokenizer; those of an image tokenizer are inflated.

        A kernel of an image becomes the last frame of one that is zero before (`last` in `inflated`). Where this
        network doubles the number of frames, both of them begin as the image tokenizer's one.

        Args:
            weights: of a tokenizer of the same width, multipliers and blocks.

        Raises:
            ValueError: the other tokenizer has another architecture.
        """
        own = self.state_dict()
        twice = {
            name: given.repeat(2, *[1] * (given.ndim - 1))
            for name, given in weights.items()
            if ".grow." in name and name in own and len(own[name]) == 2 * len(given)
        }
        found, kept = inflated({**weights, **twice}, own, "last")
        if kept or (unknown := weights.keys() - own.keys()):
            name = (kept or sorted(unknown))[0]
            raise ValueError(
                f"the weights of the tokenizer named by `from` do not fit, first {name}: give both the same width, "
                "multipliers, blocks and quantiser."
            )
        load_strictly(self, found, "the inflated tokenizer")


def _blocks(depth: int, inputs: int, outputs: int, count: int, **norms: int) -> nn.ModuleList:
    return nn.ModuleList(CausalBlock(depth, inputs if n == 0 else outputs, outputs, **norms) for n in range(count))
