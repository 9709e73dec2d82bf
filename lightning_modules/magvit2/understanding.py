"""Tokens for understanding (section 4.4), as the input of a classifier of actions, and as what it predicts beforehand.

The paper gives the tokens of a clip to a ViViT as its input, in place of pixels. Here all ways share one transformer
(`ClipReader`); they differ in how a place of the grid becomes a vector: `tokens`, the sum of the vectors of a token's
sub-tokens, or `pixels`, a linear layer of all pixels that the token stands for. Or it reads pixels, and learns first to
predict the tokens of places that are hidden (`TargetPredictor`).

With `reverse` an action is what a clip shows and whether it runs forward or backward, so that neither a single frame
nor its colours tell it: half of the clips are reversed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from lightning_modules.base import PaperModule
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.transformer import Block
from lightning_modules.magvit2.transformer import Bits
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import Count, Positive, Share
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.clips import ClipData
from lightning_modules.video_tokens.generator import FOLLOWED
from lightning_modules.video_tokens.kept import Kept
from lightning_modules.video_tokens.training import TokensRecipe, check_clips

DEVIATION = 0.02

Source = Literal["tokens", "pixels"]


class SubTokens(nn.Module):
    """The sum of the vectors of a token's sub-tokens.

    Args:
        bits: of each sub-token, the least significant first.
        dim: of a vector.
    """

    def __init__(self, bits: Sequence[int], dim: int):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(2**n, dim) for n in bits)
        for table in self.tables:
            nn.init.normal_(table.weight, std=DEVIATION)

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """The vectors."""
        found = 0
        for table in self.tables:
            found, tokens = found + table(tokens % len(table.weight)), tokens // len(table.weight)
        return found


class Tubelets(nn.Module):
    """The pixels that each token stands for, through a linear layer; those of the first frame are repeated.

    Args:
        frames: that a token stands for.
        size: its height and width.
        dim: of a vector.
    """

    def __init__(self, frames: int, size: int, dim: int):
        super().__init__()
        self.frames, self.size = frames, size
        self.linear = nn.Linear(3 * frames * size**2, dim)

    def forward(self, video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch tokens dim"]:
        """The vectors."""
        return self.linear(self.pixels(video))

    def pixels(self, video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch tokens pixels"]:
        """All pixels of each place."""
        video = torch.cat([video[:, :, :1].expand(-1, -1, self.frames - 1, -1, -1), video], 2)
        axes = {"n": self.frames, "r": self.size, "c": self.size}
        return rearrange(video, "b x (t n) (h r) (w c) -> b (t h w) (x n r c)", **axes)


class ClipReader(nn.Module):
    """The transformer that reads clips, and the frozen tokenizer that gives it their tokens.

    Args:
        tokenizer: arguments of `CausalTokenizer`, as in the arm named by `from`; of pixels, for its grid alone.
        source: what the transformer is shown, `tokens` or `pixels`.
        bits: of a token's sub-tokens, in all the logarithm of the vocabulary.
        reverse: whether half of the clips are reversed, which makes twice as many actions; not the paper's.
        layers: of the transformer.
        hidden_size: of the transformer.
        heads: of the transformer.
        keep_tokens: whether the tokens of a row are computed once and kept.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: the bits are not those of a token.
    """

    def __init__(
        self,
        *,
        tokenizer: dict,
        source: Source,
        bits: Bits,
        reverse: bool = False,
        layers: Count = 12,
        hidden_size: Count = 768,
        heads: Count = 12,
        keep_tokens: bool = False,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__()
        self.tokenizer = build(CausalTokenizer, tokenizer, "model.reader.tokenizer").requires_grad_(False)
        if 2 ** sum(bits) != self.tokenizer.vocabulary:
            raise ValueError(
                f"bits ({bits}) make {2 ** sum(bits)} tokens, but the tokenizer has {self.tokenizer.vocabulary}."
            )
        time, height, width = self.tokenizer.grid
        self.tokens, self.dim, self.factors = time * height * width, hidden_size, [2**n for n in bits]
        self.source, self.reverse, self.pixel_scale = source, reverse, pixel_scale
        if source == "tokens":
            self.embed = SubTokens(bits, hidden_size)
        else:
            self.embed = Tubelets(self.tokenizer.time, self.tokenizer.space, hidden_size)
        self.positions = nn.Parameter(torch.empty(self.tokens, hidden_size).normal_(std=DEVIATION))
        self.layers = nn.ModuleList(Block(hidden_size, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.kept = Kept(self.tokens) if keep_tokens else None

    def train(self, mode: bool = True) -> "ClipReader":
        """The tokenizer is never trained."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def forward(self, vectors: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """What the transformer makes of the vectors of all places."""
        x = vectors + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def directions(self, labels: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Which clips are reversed, by chance."""
        back = torch.zeros_like(labels)
        return (torch.rand(back.shape, device=back.device) < 0.5).to(back) if self.reverse else back

    def every_second(self, labels: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Which clips are reversed where nothing is drawn: every second one."""
        return torch.arange(len(labels), device=labels.device) % 2 * self.reverse

    def shown(
        self, video: Shaped[Tensor, "batch 3 frames h w"], back: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch 3 frames h w"]:
        """Stored clips as pixels from 0 to 1, some of them reversed."""
        return torch.where(back.view(-1, 1, 1, 1, 1) > 0, video.flip(2), video) / self.pixel_scale

    @torch.no_grad()
    def tokens_of(
        self,
        video: Float[Tensor, "batch 3 frames h w"],
        rows: Int[Tensor, " batch"] | None,
        back: Int[Tensor, " batch"],
    ) -> Int[Tensor, "batch tokens"]:
        """The tokens of clips; while training those of both directions are kept from the first time on.

        Args:
            video: pixels from 0 to 1.
            rows: the clips' numbers, where they are kept.
            back: which of them are reversed.
        """
        if self.kept is None or rows is None or not self.training:
            return self.encoded(video)
        reversed_ = back.view(-1, 1) > 0
        forward = torch.where(reversed_.view(-1, 1, 1, 1, 1), video.flip(2), video)
        kept = self.kept.once("forward", rows, lambda: self.encoded(forward))
        if not self.reverse:
            return kept
        return torch.where(reversed_, self.kept.once("backward", rows, lambda: self.encoded(forward.flip(2))), kept)

    def encoded(self, video: Float[Tensor, "batch 3 frames h w"]) -> Int[Tensor, "batch tokens"]:
        """Tokens in one row: time, height, width."""
        return self.tokenizer.encode(video).flatten(1)


class Reading(PaperModule):
    """A `ClipReader`; a class adds a head to it.

    Args:
        reader: arguments of `ClipReader`, but for `source`.
        source: what the transformer is shown.
    """

    recipe_form = TokensRecipe
    classes: int | None = None

    def __init__(self, reader: dict, source: Source):
        super().__init__()
        self.reader = build(ClipReader, reader, "model.reader", source=source)

    def check_data(self, data: ClipData) -> None:
        """Refuse clips that the tokenizer was not built for, or unknown classes.

        Raises:
            ValueError: see above.
        """
        check_clips(data, self.reader.tokenizer, self.classes)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the tokenizer of a trained arm; of one that predicted tokens or pixels, the transformer, too.

        Raises:
            ValueError: the tokenizer or the transformer is of another architecture.
        """
        before = "reader." if any(name.startswith("reader.") for name in weights) else "tokenizer."
        own = {name.removeprefix(before): x for name, x in weights.items() if name.startswith(before)}
        if before == "reader.":
            load_strictly(self.reader, own, "the transformer of the arm in `from`")
        else:
            load_strictly(self.reader.tokenizer, own, "the tokenizer of the arm in `from`", unused=FOLLOWED)

    def facts(self) -> dict:
        """Sizes."""
        trained = count_parameters(self) - count_parameters(self.reader.tokenizer)
        found = {"parameters": trained, "tokens": self.reader.tokens, "source": self.reader.source}
        return found | ({} if self.classes is None else {"classes": self.classes})

    def parameter_groups(self) -> list[dict]:
        """Kernels of linear layers are decayed."""
        decayed = {id(layer.weight) for layer in self.modules() if isinstance(layer, nn.Linear)}
        groups: dict[bool, list] = {True: [], False: []}
        for parameter in self.parameters():
            if parameter.requires_grad:
                groups[id(parameter) in decayed].append(parameter)
        return [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The layers."""
        return self.reader.layers


class ActionClassifier(Reading):
    """A classifier of actions.

    Args:
        reader: arguments of `ClipReader`, but for `source`.
        source: what it reads.
        num_classes: of the labels.
    """

    predictor = "lightning_modules.magvit2.predictor.Recogniser"

    def __init__(self, *, reader: dict, source: Source = "tokens", num_classes: Count):
        super().__init__(reader, source)
        self.classes = num_classes
        self.head = nn.Linear(self.reader.dim, (1 + self.reader.reverse) * num_classes)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Cross-entropy of the actions."""
        back = self.reader.directions(batch["labels"])
        logits = self.logits(batch["video"], back, batch.get("rows"))
        loss = F.cross_entropy(logits, self.actions(batch["labels"], back))
        self.log_terms({"pretrain/loss": loss})
        return loss

    def actions(self, labels: Int[Tensor, " batch"], back: Shaped[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """The numbers of actions: those of reversed clips come after the others."""
        return labels + self.classes * back

    def logits(
        self, video: Shaped[Tensor, "batch 3 frames h w"], back: Int[Tensor, " batch"], rows: Tensor | None = None
    ) -> Float[Tensor, "batch actions"]:
        """What the transformer makes of stored clips, some of which are reversed before.

        Args:
            video: stored pixels.
            back: which of them are reversed.
            rows: their numbers, where tokens may be kept.
        """
        shown = self.reader.shown(video, back)
        if self.reader.source == "tokens":
            shown = self.reader.tokens_of(shown, rows, back)
        return self.head(self.reader(self.reader.embed(shown)).mean(1))

    def validate(self, data: ClipData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Loss and accuracy; of clips that are reversed, every second one."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            back = self.reader.every_second(batch["labels"])
            logits, actions = self.logits(batch["video"], back), self.actions(batch["labels"], back)
            return {"loss": F.cross_entropy(logits, actions), "accuracy": (logits.argmax(1) == actions).float().mean()}

        return mean_over(batches, measure)

    @torch.no_grad()
    def forward(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch actions"]:
        """Logits of stored clips as they are."""
        return self.logits(video, torch.zeros(len(video), dtype=torch.long, device=video.device))

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """Logits and actions of the split that is judged; where clips are reversed, each once so and once so."""
        self.to(device).eval()
        logits, actions = [], []
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                video, labels = batch["video"].to(device), batch["labels"].to(device)
                for back in (torch.zeros_like(labels), torch.ones_like(labels))[: 1 + self.reader.reverse]:
                    logits.append(self.logits(video, back).cpu())
                    actions.append(self.actions(labels, back).cpu())
        return {"logits": torch.cat(logits), "actions": torch.cat(actions)}


class TargetPredictor(Reading):
    """Places of a clip are hidden, and predicted from the pixels of the others: what a classifier can begin with.

    Args:
        reader: arguments of `ClipReader`, but for `source`.
        targets: what is predicted of a hidden place, its token or its pixels.
        hidden_share: of the places; the paper's is not known.
    """

    def __init__(self, *, reader: dict, targets: Source = "tokens", hidden_share: Share = 0.75):
        super().__init__(reader, "pixels")
        self.targets, self.count = targets, max(1, round(hidden_share * self.reader.tokens))
        answers = sum(self.reader.factors) if targets == "tokens" else self.reader.embed.linear.in_features
        self.head = nn.Linear(self.reader.dim, answers)
        self.hidden = nn.Parameter(torch.empty(self.reader.dim).normal_(std=DEVIATION))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The loss at hidden places."""
        back = self.reader.directions(batch["labels"])
        order = torch.rand(len(back), self.reader.tokens, device=back.device).argsort(1)
        loss = self.losses(batch["video"], back, order < self.count, batch.get("rows")).mean()
        self.log_terms({"pretrain/loss": loss})
        return loss

    def losses(
        self,
        video: Shaped[Tensor, "batch 3 frames h w"],
        back: Int[Tensor, " batch"],
        hidden: Bool[Tensor, "batch tokens"],
        rows: Tensor | None = None,
    ) -> Float[Tensor, " batch"]:
        """Of the hidden places of each clip, their tokens' cross-entropy in nats, or their pixels' squared error.

        Args:
            video: stored pixels.
            back: which clips are reversed.
            hidden: which places are, equally many of each clip.
            rows: the clips' numbers, where tokens may be kept.
        """
        shown = self.reader.shown(video, back)
        vectors = torch.where(hidden[..., None], self.hidden, self.reader.embed(shown))
        answers = self.head(self.reader(vectors)[hidden])
        if self.targets == "pixels":
            each = (answers - self.reader.embed.pixels(shown)[hidden]).square().mean(1)
        else:
            each = surprise(answers, self.reader.tokens_of(shown, rows, back)[hidden], self.reader.factors)
        return each.view(len(video), -1).mean(1)

    def validate(self, data: ClipData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss where every place but each fourth is hidden; of clips that are reversed, every second one."""
        return mean_over(batches, lambda batch: {"loss": self.judged_losses(batch["video"], batch["labels"]).mean()})

    def judged_losses(
        self, video: Shaped[Tensor, "batch 3 frames h w"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Those of clips without chance, see `validate`."""
        hidden = (torch.arange(self.reader.tokens, device=video.device) % 4 > 0).expand(len(labels), -1)
        return self.losses(video, self.reader.every_second(labels), hidden)

    @torch.no_grad()
    def forward(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch dim"]:
        """The features of stored clips, the mean over places."""
        back = torch.zeros(len(video), dtype=torch.long, device=video.device)
        return self.reader(self.reader.embed(self.reader.shown(video, back))).mean(1)

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """The `losses` of the clips that are judged, hidden as in `validate`."""
        self.to(device).eval()
        losses = []
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                losses.append(self.judged_losses(batch["video"].to(device), batch["labels"].to(device)).cpu())
        return {"losses": torch.cat(losses)}


def surprise(
    answers: Float[Tensor, "places _"], tokens: Int[Tensor, " places"], factors: Sequence[int]
) -> Float[Tensor, " places"]:
    """Cross-entropy of tokens in nats, the sum over their sub-tokens.

    Args:
        answers: logits of all sub-tokens, side by side.
        tokens: the truth.
        factors: how many values each sub-token has, the least significant first.
    """
    found = 0
    for part in answers.split(list(factors), 1):
        found = found + F.cross_entropy(part, tokens % part.shape[1], reduction="none")
        tokens = tokens // part.shape[1]
    return found
