"""Trains VideoPoet's super-resolution on the tokens of clips and of the same clips at half the height and width.

Read `Upscaler.loss` first. The objective is MAGVIT's masked modelling of the large clip's tokens. The small clip is the
true one, made smaller; what a language model writes has mistakes, so a random part of its tokens are replaced by random
ones (`noise`). Text and small clip are left out now and then, each by itself, so that each can guide the decoding.

The paper's noise is not known; here each clip has a share of its own, uniform up to `noise`. Guidance is read as that
of two conditions one after the other (InstructPix2Pix), which the paper is recalled to cite:
l = l(none) + low (l(small) - l(none)) + text (l(small, text) - l(small)).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import PaperModule
from lightning_modules.datasets.video.files import evenly, read_frames
from lightning_modules.layers.published import load_strictly
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.video import masked_mse, psnr, ssim
from lightning_modules.predictors import Predictor
from lightning_modules.settings import STRICT, Count, NonNegative, Positive, Share
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.clips import ClipData
from lightning_modules.video_tokens.kept import Kept
from lightning_modules.video_tokens.masking import Part, Schedule, decode, draw_codes, mask_ratio, mask_tokens
from lightning_modules.video_tokens.side_by_side import shown
from lightning_modules.video_tokens.training import SHOWN, TokensRecipe, stored
from lightning_modules.videopoet.super_resolution import SuperResolution, halved, scores
from lightning_modules.videopoet.text import make_text

HIDDEN = (1.0, 0.5)  # shares of the tokens that are hidden where it is measured how well they are predicted
MEASURED = 0  # seed of what is drawn for it


class Decoding(TypedDict):
    """How large clips are drawn; all but the last three are those of `masking.decode`."""

    __pydantic_config__ = STRICT
    steps: Count
    schedule: Schedule
    temperature: NonNegative
    sampling_temperature: NonNegative  # that logits are divided by before a token is drawn; 0 for the most probable one
    text: NonNegative  # scale of the guidance by text, 1 for none
    low: NonNegative  # that by the small clip


class Told(dict[str, Tensor]):
    """What is known of clips: `low`, tokens of the small clip, `text`, features of words, and which are `seen`."""

    def without(self, *, hidden: int | None = None) -> "Told":
        """The same without the text, and with the number `hidden` in place of each token of the small clip."""
        low = self["low"] if hidden is None else torch.full_like(self["low"], hidden)
        return Told(low=low, text=self["text"], seen=torch.zeros_like(self["seen"]))


class Upscaler(PaperModule):
    """A frozen tokenizer, and the transformer that fills in the tokens of large clips.

    Args:
        tokenizer: arguments of `CausalTokenizer`, as in the arm named by `from`; it reads clips of any size.
        size: height and width of a large clip; larger clips are cut around their centre.
        text: arguments of `text.make_text`.
        network: arguments of `SuperResolution`, but for `grid` and `text_dim`.
        noise: largest share of the small clip's tokens that are replaced in training.
        low_drop: share of the clips whose small clip is left out in training.
        text_drop: share of the clips whose text is left out in training.
        parts: of the loss, see `masking.mask_tokens`.
        schedule: of the mask ratio in training.
        label_smoothing: share of the target that is spread over all codes.
        decoding: see `Decoding`.
        corrupted: share of the small clip's tokens that are replaced where mistakes are judged.
        judged_rows: clips that are enlarged and compared.
        keep_tokens: whether the tokens of a row are computed once and kept.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: the size is no multiple of that of two tokens, or the sub-tokens do not make up a token.
    """

    recipe_form = TokensRecipe
    predictor = "lightning_modules.videopoet.upscaling.Enlarger"

    def __init__(
        self,
        *,
        tokenizer: dict,
        size: Annotated[list[Count], Field(min_length=2, max_length=2)],
        text: dict,
        network: dict,
        decoding: Decoding,
        noise: Share = 0.1,
        low_drop: Share = 0.1,
        text_drop: Share = 0.1,
        parts: Annotated[list[Part], Field(min_length=1)] = ("mask", "refine", "recons"),
        schedule: Schedule = "cosine",
        label_smoothing: Share = 1e-4,
        corrupted: Share = 0.1,
        judged_rows: Count = 256,
        keep_tokens: bool = False,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__()
        self.tokenizer = build(CausalTokenizer, tokenizer, "model.tokenizer").requires_grad_(False)
        self.size = tuple(size)
        self.grid = grid_of(self.tokenizer, self.size)
        self.text = build(make_text, text, "model.text")
        self.network = build(SuperResolution, network, "model.network", grid=self.grid, text_dim=self.text.dim)
        check_codes(self.network, self.tokenizer)
        self.codes, self.tokens = self.network.codes, self.grid[0] * self.grid[1] * self.grid[2]
        self.low_tokens = self.tokens // 4
        self.noise, self.low_drop, self.text_drop = noise, low_drop, text_drop
        self.parts, self.schedule, self.label_smoothing = list(parts), schedule, label_smoothing
        self.decoding = decoding
        self.corrupted, self.judged_rows, self.pixel_scale = corrupted, judged_rows, pixel_scale
        self.kept = (Kept(self.tokens), Kept(self.low_tokens)) if keep_tokens else None

    def check_data(self, data: ClipData) -> None:
        """Refuse clips of another length, or smaller than a large clip.

        Raises:
            ValueError: see above.
        """
        _, frames, height, width = data.video_shape
        if frames != self.tokenizer.frames or height < self.size[0] or width < self.size[1]:
            raise ValueError(
                f"the clips have {frames} frames of {height} x {width} pixels, expected {self.tokenizer.frames} "
                f"(tokenizer.frames) of at least {self.size[0]} x {self.size[1]} (size)."
            )

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the tokenizer of a trained arm.

        Raises:
            ValueError: the tokenizer is of another architecture.
        """
        own = {name.removeprefix("tokenizer."): x for name, x in weights.items() if name.startswith("tokenizer.")}
        load_strictly(self.tokenizer, own, "the tokenizer of the arm in `from`")

    def train(self, mode: bool = True) -> "Upscaler":
        """The tokenizer is never trained."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The loss of a batch."""
        loss = self.loss(batch)
        self.log_terms({"pretrain/loss": loss})
        return loss

    def loss(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Cross-entropy of the large clips' hidden tokens, the sum over sub-tokens, given damaged conditions."""
        high, told = self.tokens_of(batch)
        told["low"] = self.noised(told["low"])
        kept = torch.rand(2, len(high), 1, device=high.device)
        told["low"] = told["low"].where(kept[0] >= self.low_drop, self.codes)
        told["seen"] = told["seen"] & (kept[1] >= self.text_drop)
        ratio = mask_ratio(torch.rand(len(high), device=high.device), self.tokens, self.schedule)
        masked = mask_tokens(
            high, None, ratio, torch.rand(high.shape, device=high.device),
            mask=self.codes, conditioning="none", parts=self.parts,
        )  # fmt: skip
        each = self.surprise(self.network(masked.shown, **told), high, self.label_smoothing)
        return ((each * masked.asked).sum(1) / masked.asked.sum(1).clamp_min(1e-8)).mean()

    def surprise(
        self,
        logits: Iterable[Float[Tensor, "batch tokens _"]],
        tokens: Int[Tensor, "batch tokens"],
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, "batch tokens"]:
        """Cross-entropy of each token in nats, the sum over its sub-tokens."""
        return sum(
            F.cross_entropy(part.transpose(1, 2), truth, reduction="none", label_smoothing=label_smoothing)
            for part, truth in zip(logits, self.network.split(tokens), strict=True)
        )

    def noised(self, low: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
        """Tokens of small clips, of each a share up to `noise` replaced by random ones."""
        share = self.noise * torch.rand(len(low), 1, device=low.device)
        return replaced(low, share, self.codes, None)

    def tokens_of(self, batch: dict[str, Tensor]) -> tuple[Int[Tensor, "batch tokens"], Told]:
        """The tokens of large clips, and what is told of them."""
        with torch.no_grad():
            high, low = (
                self._kept_tokens(batch["video"], batch["rows"]) if self._keeps(batch) else self._pair(batch["video"])
            )
        return high, self.told(low, batch)

    def _keeps(self, batch: dict[str, Tensor]) -> bool:
        return self.kept is not None and self.training and "rows" in batch

    def _pair(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        video = self.read(stored)
        return self.encoded(video), self.encoded(smaller(video))

    def _kept_tokens(self, stored: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        of_high, of_low = self.kept
        high = of_high.once("high", rows, lambda: self.encoded(self.read(stored)))
        return high, of_low.once("low", rows, lambda: self.encoded(smaller(self.read(stored))))

    def told(self, low: Int[Tensor, "batch tokens"], batch: Mapping[str, Tensor]) -> Told:
        """Tokens of small clips with the texts of a batch; without any where it has none."""
        if "caption" not in batch:
            seen = torch.zeros(len(low), 1, dtype=torch.bool, device=low.device)
            return Told(low=low, text=torch.zeros(len(low), 1, self.text.dim, device=low.device), seen=seen)
        return Told(low=low, text=self.text(batch["caption"], batch["caption_mask"]), seen=batch["caption_mask"])

    def read(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        """Stored pixels as pixels from 0 to 1, cut around the centre to the size of a large clip."""
        return centre(video, self.size) / self.pixel_scale

    def encoded(self, video: Float[Tensor, "batch 3 frames h w"]) -> Int[Tensor, "batch tokens"]:
        """Tokens in one row: time, height, width."""
        return self.tokenizer.encode(video).flatten(1)

    def drawn(self, tokens: Int[Tensor, "batch tokens"], low: bool = False) -> Float[Tensor, "batch 3 frames h w"]:
        """The clips of tokens, within 0 and 1; of small ones if they are `low`."""
        return self.tokenizer.decode(tokens.view(-1, *(halved(self.grid) if low else self.grid))).clamp(0, 1)

    @torch.no_grad()
    def generate(self, told: Told, seed: int = 0, **decoding) -> Int[Tensor, "batch tokens"]:
        """The tokens of large clips.

        Args:
            told: small clips and texts.
            seed: of what is drawn.
            decoding: what differs from the module's own `decoding`.
        """
        options = self.decoding | decoding
        temperature, guidance = options.pop("sampling_temperature"), (options.pop("text"), options.pop("low"))
        generator = torch.Generator(told["low"].device).manual_seed(seed)

        def draw(shown: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.guided(shown, told, *guidance)
            parts, sure = zip(*(draw_codes(part, temperature, generator) for part in logits), strict=True)
            return self.network.joined(parts), sum(sure)

        return decode(
            draw, None, batch=len(told["low"]), tokens=self.tokens, mask=self.codes, conditioning="none",
            generator=generator, device=told["low"].device, **options,
        )  # fmt: skip

    def guided(
        self, shown: Int[Tensor, "batch tokens"], told: Told, text: float, low: float
    ) -> list[Float[Tensor, "batch tokens _"]]:
        """Logits that both conditions have moved, see above; a pass for each part that has a weight."""
        passes = [
            (text, told), (low - text, told.without()), (1 - low, told.without(hidden=self.codes)),
        ]  # fmt: skip
        weighted = [(weight, self.network(shown, **known)) for weight, known in passes if weight]
        return [sum(weight * logits[part] for weight, logits in weighted) for part in range(len(self.network.factors))]

    def validate(self, data: ClipData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """How well hidden tokens are predicted, and the share that is right."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            nll, right = self.predicted(*self.tokens_of(batch))
            return {"nll": nll.mean(), "right": right.mean()}

        return mean_over(batches, measure)

    def predicted(
        self, high: Int[Tensor, "batch tokens"], told: Told
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Of the tokens that are hidden, the surprise in nats and the share that is right; the mean over `HIDDEN`."""
        generator = torch.Generator(high.device).manual_seed(MEASURED)
        found = []
        for share in HIDDEN:
            scores = torch.rand(high.shape, generator=generator, device=high.device)
            hidden = scores.argsort(1).argsort(1) < round(share * self.tokens)
            logits = self.network(high.masked_fill(hidden, self.codes), **told)
            right = self.network.joined([part.argmax(-1) for part in logits]) == high
            each = torch.stack([self.surprise(logits, high), right.float()])
            found.append((each * hidden).sum(-1) / hidden.sum(-1))
        nll, right = torch.stack(found).mean(0)
        return nll, right

    @torch.no_grad()
    def forward(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        """Stored small clips, twice as high and wide; large ones are made small first. The text is unknown."""
        small = tuple(side // 2 for side in self.size)
        given = video / self.pixel_scale if tuple(video.shape[-2:]) == small else smaller(self.read(video))
        return self.drawn(self.generate(self.told(self.encoded(given), {}), sampling_temperature=0.0))

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """How well the judged clips are predicted and drawn from small clips, under `<way>/...`.

        Ways: `true`, the small clips' own tokens; `corrupted`, a share of them replaced by random ones; `redrawn`, the
        tokens of what is drawn of the corrupted ones, whose mistakes hang together. For all clips `nll` and `right`
        (`predicted`); for the first `judged_rows`, drawn in `decoding.steps`, `mse`, `psnr` and `ssim`. `ceiling/...`
        is the large clip through the tokenizer, `stretched/...` the small one through it, enlarged. Of the first clips
        `shown/...`.
        """
        self.to(device).eval()
        parts, done = defaultdict(list), 0
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                batch = {name: x.to(device) for name, x in batch.items() if isinstance(x, Tensor)}
                high, told = self.tokens_of(batch)
                ways = self.ways(told, seed=done)
                for way, known in ways.items():
                    nll, right = self.predicted(high, known)
                    parts[f"{way}/nll"].append(nll)
                    parts[f"{way}/right"].append(right)
                if (left := self.judged_rows - done) > 0:
                    self._compare(parts, self.read(batch["video"])[:left], ways, seed=done)
                done += len(high)
        return {name: torch.cat(part).cpu() for name, part in parts.items()}

    def ways(self, told: Told, seed: int) -> dict[str, Told]:
        """The same clips with the small clip's true tokens, corrupted ones, and those of what these draw."""
        generator = torch.Generator(told["low"].device).manual_seed(seed)
        corrupted = replaced(told["low"], self.corrupted, self.codes, generator)
        redrawn = self.encoded(self.drawn(corrupted, low=True))
        return {"true": told, "corrupted": Told(told | {"low": corrupted}), "redrawn": Told(told | {"low": redrawn})}

    def _compare(
        self, parts: dict, video: Float[Tensor, "batch 3 frames h w"], ways: dict[str, Told], seed: int
    ) -> None:
        """Append what is known of enlarged clips."""
        told = {way: Told({name: x[: len(video)] for name, x in known.items()}) for way, known in ways.items()}
        small = self.drawn(told["true"]["low"], low=True)
        made = {way: self.drawn(self.generate(known, seed)) for way, known in told.items()}
        made |= {"ceiling": self.drawn(self.encoded(video)), "stretched": larger(small)}
        for way, clips in made.items():
            for name, measure in (("mse", masked_mse), ("psnr", psnr), ("ssim", ssim)):
                parts[f"{way}/{name}"].append(measure(clips, video))
        if "shown/real" not in parts:
            for name, clips in ({"real": video, "small": small} | made).items():
                parts[f"shown/{name}"].append(stored(clips[:SHOWN]))

    def facts(self) -> dict:
        """Sizes, and the products of queries and keys in the self-attentions of a block."""
        return {
            "parameters": count_parameters(self.network),
            "tokens": self.tokens,
            "low_tokens": self.low_tokens,
            "scores": self.network.scores(),
            "full_scores": scores(self.grid, [self.grid] * len(self.network.windows)),
            "head_parameters": sum(head.weight.numel() for head in self.network.heads),
        }

    def parameter_groups(self) -> list[dict]:
        """Kernels of linear layers are decayed; embeddings, biases and norms are not."""
        decayed = {id(layer.weight) for layer in self.network.modules() if isinstance(layer, nn.Linear)}
        groups: dict[bool, list] = {True: [], False: []}
        for parameter in self.parameters():
            if parameter.requires_grad:
                groups[id(parameter) in decayed].append(parameter)
        return [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The layers."""
        return self.network.layers


class Enlarger(Predictor):
    """Draws a user's videos at twice the height and width.

    Args:
        module: a trained super-resolution.
        record: not needed.
    """

    def __init__(self, module: Upscaler, record: dict | None = None):
        self.module = module.eval()

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """A video, made small and drawn large again: `video` and its `frames` side by side, `small` frames beside them.

        Raises:
            ValueError: the file cannot be read.
        """
        module = self.module
        small = tuple(side // 2 for side in module.size)
        frames = read_frames(Path(path), partial(evenly, shown=module.tokenizer.frames), max(small), antialias=True)
        video = centre(torch.from_numpy(frames).permute(3, 0, 1, 2)[None], small)
        yield {"row": "small", **shown(video / 255)}
        with torch.inference_mode():
            yield {"row": "large", **shown(module(video / 255 * module.pixel_scale))}


def smaller(video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames half_h half_w"]:
    """Clips of half the height and width, bicubic."""
    return _scaled(video, 0.5)


def larger(video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames twice_h twice_w"]:
    """Clips of twice the height and width, bicubic."""
    return _scaled(video, 2.0)


def _scaled(video: Tensor, factor: float) -> Tensor:
    frames = video.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, scale_factor=factor, mode="bicubic", antialias=factor < 1, align_corners=False)
    return frames.clamp(0, 1).unflatten(0, (len(video), -1)).transpose(1, 2)


def centre(
    video: Shaped[Tensor, "batch 3 frames h w"], size: tuple[int, int]
) -> Shaped[Tensor, "batch 3 frames height width"]:
    """The middle of clips."""
    top, left = ((whole - part) // 2 for whole, part in zip(video.shape[-2:], size, strict=True))
    return video[..., top : top + size[0], left : left + size[1]]


def replaced(
    tokens: Int[Tensor, "batch tokens"],
    share: float | Float[Tensor, "batch 1"],
    codes: int,
    generator: torch.Generator | None,
) -> Int[Tensor, "batch tokens"]:
    """Tokens, a share of them replaced by random ones; each is drawn for itself."""
    options = {"generator": generator, "device": tokens.device}
    where = torch.rand(tokens.shape, **options) < share
    return torch.where(where, torch.randint(codes, tokens.shape, **options), tokens)


def grid_of(tokenizer: CausalTokenizer, size: tuple[int, int]) -> tuple[int, int, int]:
    """Tokens of a large clip along time, height and width.

    Raises:
        ValueError: the small clip cannot be divided into tokens.
    """
    if any(side % (2 * tokenizer.space) for side in size):
        raise ValueError(
            f"size is {list(size)}, expected multiples of {2 * tokenizer.space} pixels, so that the clip of half the "
            "size can become tokens."
        )
    return tokenizer.grid[0], size[0] // tokenizer.space, size[1] // tokenizer.space


def check_codes(network: SuperResolution, tokenizer: CausalTokenizer) -> None:
    """Refuse sub-tokens that do not make up a token.

    Raises:
        ValueError: see above.
    """
    if network.codes != tokenizer.vocabulary:
        raise ValueError(
            f"network.bits make {network.codes} tokens, but the tokenizer has {tokenizer.vocabulary}: their sum must "
            "be the logarithm of its vocabulary."
        )
