"""Tokens for understanding (section 4.4), as the input of a classifier of actions, and as what it predicts beforehand.

The paper gives the tokens of a clip to a ViViT as its input, in place of pixels. Here all ways share one transformer
(`ClipReader`); they differ in how a place of the grid becomes a vector: `tokens`, the sum of the vectors of a token's
sub-tokens, or `pixels`, a linear layer of all pixels that the token stands for. Or it reads pixels, and learns first to
predict the tokens of places that are hidden (`TargetPredictor`).

With `reverse` an action is what a clip shows and whether it runs forward or backward, so that neither a single frame
nor its colours tell it: half of the clips are reversed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn

from lightning_modules.base import PaperModule
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.transformer import Block
from lightning_modules.magvit2.tokenizer import CausalTokenizer
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import Count, Positive, Share
from lightning_modules.validation import judged, mean_over
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


class ClipReader(PaperModule):
    """The transformer that reads clips, its head, and the frozen tokenizer that gives it their tokens.

    Args:
        tokenizer: arguments of `CausalTokenizer`, as in the arm named by `from`; of pixels, for its grid alone.
        source: what the transformer is shown, `tokens` or `pixels`.
        bits: of a token's sub-tokens, in all the logarithm of the vocabulary.
        num_classes: of the labels.
        reverse: whether half of the clips are reversed, which makes twice as many actions; not the paper's.
        layers: of the transformer.
        hidden_size: of the transformer.
        heads: of the transformer.
        keep_tokens: whether the tokens of a row are computed once and kept.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: the bits are not those of a token.
    """

    recipe_form = TokensRecipe

    def __init__(
        self,
        *,
        tokenizer: dict,
        source: Source = "tokens",
        bits: Annotated[list[Count], Field(min_length=1)],
        num_classes: Count,
        reverse: bool = False,
        layers: Count = 12,
        hidden_size: Count = 768,
        heads: Count = 12,
        keep_tokens: bool = False,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__()
        self.tokenizer = CausalTokenizer(**tokenizer).requires_grad_(False)
        if 2 ** sum(bits) != self.tokenizer.vocabulary:
            raise ValueError(
                f"bits ({bits}) make {2 ** sum(bits)} tokens, but the tokenizer has {self.tokenizer.vocabulary}."
            )
        time, height, width = self.tokenizer.grid
        self.tokens = time * height * width
        self.source, self.classes, self.reverse, self.pixel_scale = source, num_classes, reverse, pixel_scale
        if source == "tokens":
            self.embed = SubTokens(bits, hidden_size)
        else:
            self.embed = Tubelets(self.tokenizer.time, self.tokenizer.space, hidden_size)
        self.positions = nn.Parameter(torch.empty(self.tokens, hidden_size).normal_(std=DEVIATION))
        self.layers = nn.ModuleList(Block(hidden_size, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(hidden_size), nn.Linear(hidden_size, (1 + reverse) * num_classes)
        self.kept = Kept(self.tokens) if keep_tokens else None

    def check_data(self, data: ClipData) -> None:
        """Refuse clips that the tokenizer was not built for, or unknown classes.

        Raises:
            ValueError: see above.
        """
        check_clips(data, self.tokenizer, self.classes)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the tokenizer of a trained arm; of one that predicted tokens or pixels, the transformer, too.

        Raises:
            ValueError: the tokenizer or the transformer is of another architecture.
        """
        if "hidden" in weights:
            own = {name: x for name, x in weights.items() if not name.startswith("head.")}
            load_strictly(self, own, "the transformer of the arm in `from`", unused=["hidden"], new=["head.*"])
            return
        own = {name.removeprefix("tokenizer."): x for name, x in weights.items() if name.startswith("tokenizer.")}
        load_strictly(self.tokenizer, own, "the tokenizer of the arm in `from`", unused=FOLLOWED)

    def train(self, mode: bool = True) -> "ClipReader":
        """The tokenizer is never trained."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def directions(self, labels: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Which clips are reversed, by chance."""
        back = torch.zeros_like(labels)
        return (torch.rand(back.shape, device=back.device) < 0.5).to(back) if self.reverse else back

    def shown(
        self, video: Shaped[Tensor, "batch 3 frames h w"], back: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch 3 frames h w"]:
        """Stored clips as pixels from 0 to 1, some of them reversed."""
        return torch.where(back.view(-1, 1, 1, 1, 1) > 0, video.flip(2), video) / self.pixel_scale

    def read(self, vectors: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """What the transformer makes of the vectors of all places."""
        x = vectors + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    @torch.no_grad()
    def tokens_of(
        self,
        video: Float[Tensor, "batch 3 frames h w"],
        rows: Int[Tensor, " batch"] | None,
        back: Int[Tensor, " batch"],
    ) -> Int[Tensor, "batch tokens"]:
        """The tokens of clips, kept while training.

        Args:
            video: pixels from 0 to 1.
            rows: the clips' numbers, where they are kept.
            back: which of them are reversed.
        """

        def compute() -> Tensor:
            return self.tokenizer.encode(video).flatten(1)

        if self.kept is None or rows is None or not self.training:
            return compute()
        return self.kept.once("clips", 2 * rows + back, compute)

    def facts(self) -> dict:
        """Sizes."""
        trained = count_parameters(self) - count_parameters(self.tokenizer)
        return {"parameters": trained, "tokens": self.tokens, "source": self.source, "classes": self.classes}

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
        return self.layers


class ActionClassifier(ClipReader):
    """A classifier of actions; see `ClipReader` for its arguments."""

    predictor = "lightning_modules.magvit2.predictor.Recogniser"

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Cross-entropy of the actions."""
        back = self.directions(batch["labels"])
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
        shown = self.shown(video, back)
        if self.source == "tokens":
            shown = self.tokens_of(shown, rows, back)
        return self.head(self.read(self.embed(shown)).mean(1))

    def validate(self, data: ClipData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Loss and accuracy; of clips that are reversed, every second one."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            back = every_second(batch["labels"]) * self.reverse
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
                for back in (torch.zeros_like(labels), torch.ones_like(labels))[: 1 + self.reverse]:
                    logits.append(self.logits(video, back).cpu())
                    actions.append(self.actions(labels, back).cpu())
        return {"logits": torch.cat(logits), "actions": torch.cat(actions)}


class TargetPredictor(ClipReader):
    """Places of a clip are hidden, and predicted from the pixels of the others: what a classifier can begin with.

    Args:
        tokenizer: see `ClipReader` for this and the others.
        targets: what is predicted of a hidden place, its token or its pixels.
        hidden_share: of the places; the paper's is not known.
    """

    def __init__(
        self,
        *,
        tokenizer: dict,
        targets: Source = "tokens",
        hidden_share: Share = 0.75,
        bits: Annotated[list[Count], Field(min_length=1)],
        num_classes: Count,
        reverse: bool = False,
        layers: Count = 12,
        hidden_size: Count = 768,
        heads: Count = 12,
        keep_tokens: bool = False,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__(
            tokenizer=tokenizer, source="pixels", bits=bits, num_classes=num_classes, reverse=reverse, layers=layers,
            hidden_size=hidden_size, heads=heads, keep_tokens=keep_tokens, pixel_scale=pixel_scale,
        )  # fmt: skip
        self.targets, self.factors = targets, [2**n for n in bits]
        self.head = nn.Linear(hidden_size, sum(self.factors) if targets == "tokens" else self.embed.linear.in_features)
        self.hidden = nn.Parameter(torch.empty(hidden_size).normal_(std=DEVIATION))
        self.count = max(1, round(hidden_share * self.tokens))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The loss at hidden places."""
        back = self.directions(batch["labels"])
        order = torch.rand(len(back), self.tokens, device=back.device).argsort(1)
        loss = self.loss(batch["video"], back, order < self.count, batch.get("rows"))
        self.log_terms({"pretrain/loss": loss})
        return loss

    def loss(
        self,
        video: Shaped[Tensor, "batch 3 frames h w"],
        back: Int[Tensor, " batch"],
        hidden: Bool[Tensor, "batch tokens"],
        rows: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Of hidden places, the cross-entropy of their tokens in nats, or the squared error of their pixels."""
        shown = self.shown(video, back)
        vectors = torch.where(hidden[..., None], self.hidden, self.embed(shown))
        answers = self.head(self.read(vectors)[hidden])
        if self.targets == "pixels":
            return F.mse_loss(answers, self.embed.pixels(shown)[hidden])
        tokens, loss = self.tokens_of(shown, rows, back)[hidden], 0
        for part in answers.split(self.factors, 1):
            loss, tokens = loss + F.cross_entropy(part, tokens % part.shape[1]), tokens // part.shape[1]
        return loss

    def validate(self, data: ClipData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss where every place but each fourth is hidden; of clips that are reversed, every second one."""
        return mean_over(batches, lambda batch: {"loss": self.judged_loss(batch["video"], batch["labels"])})

    def judged_loss(
        self, video: Shaped[Tensor, "batch 3 frames h w"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Without chance, see `validate`."""
        hidden = (torch.arange(self.tokens, device=video.device) % 4 > 0).expand(len(labels), -1)
        return self.loss(video, every_second(labels) * self.reverse, hidden)

    @torch.no_grad()
    def forward(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch dim"]:
        """The features of stored clips, the mean over places."""
        back = torch.zeros(len(video), dtype=torch.long, device=video.device)
        return self.read(self.embed(self.shown(video, back))).mean(1)

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """The `losses` of the batches that are judged, hidden as in `validate`."""
        self.to(device).eval()
        losses = []
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                losses.append(self.judged_loss(batch["video"].to(device), batch["labels"].to(device)).cpu())
        return {"losses": torch.stack(losses)}


def every_second(labels: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """1 for every second clip."""
    return torch.arange(len(labels), device=labels.device) % 2
