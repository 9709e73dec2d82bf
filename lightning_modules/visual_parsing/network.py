"""Words and visual tokens in one Transformer: `[CLS] words [SEP] visual tokens`, and the heads of pre-training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import BertForPreTraining

from lightning_modules.layers.bert import make_bert
from lightning_modules.layers.forms import BertPart
from lightning_modules.settings import Count, Positive
from lightning_modules.visual_parsing.parsing import Parsed, VisualSettings, make_parser, seen

VISION = 1  # type of visual tokens; words have type 0
Batch = dict[str, Tensor]


class Fused(NamedTuple):
    """What the multimodal Transformer gives, and what it was given.

    Attributes:
        text: states of [CLS], words and [SEP].
        vision: states of visual tokens.
        tokens: visual tokens after projection, before masking.
    """

    text: Float[Tensor, "batch length dim"]
    vision: Float[Tensor, "batch tokens dim"]
    tokens: Float[Tensor, "batch tokens dim"]


class Network(nn.Module):
    """A visual encoder, the projection of its tokens, and BERT over both, with heads for three tasks.

    Args:
        visual: see `VisualSettings`.
        bert: arguments of `layers.bert.make_bert`, see `BertPart`.
        positions: rows and columns of visual tokens that have an embedding each; null for none, since Swin has only
            relative positions.
        position_deviation: of these embeddings at the start. Beside normalised tokens, BERT's 0.02 is hardly seen.
        feature_head: that of masked features: one layer, or two with a GELU.

    Raises:
        ValueError: neither or both of a published BERT and sizes are named.
    """

    def __init__(
        self,
        *,
        visual: VisualSettings,
        bert: BertPart,
        positions: Count | None,
        position_deviation: Positive,
        feature_head: Literal["linear", "mlp"],
    ):
        super().__init__()
        self.visual = make_parser(visual)
        whole = make_bert(**bert, tied=True)
        self.bert, self.mlm_head, self.itm_head = whole.bert, WordHead(whole), whole.cls.seq_relationship
        dim = self.bert.config.hidden_size
        self.visual_proj = nn.Sequential(nn.Linear(self.visual.dim, dim), nn.LayerNorm(dim))
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.positions = None if positions is None else nn.ParameterDict(
            {way: nn.Parameter(torch.empty(positions, dim)) for way in ("rows", "columns")}
        )  # fmt: skip
        self.mfr_head = nn.Linear(dim, dim) if feature_head == "linear" else nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )  # fmt: skip
        self._initialise(position_deviation)

    def _initialise(self, position_deviation: float) -> None:
        """As BERT, normal with its deviation and biases zero; positions with their own."""
        deviation = self.bert.config.initializer_range
        for layer in (*self.visual_proj.modules(), *self.mfr_head.modules()):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=deviation)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.mask_token, std=deviation)
        for vectors in () if self.positions is None else self.positions.values():
            nn.init.normal_(vectors, std=position_deviation)

    def parse(self, images: Float[Tensor, "batch 3 height width"]) -> Parsed:
        """Visual tokens of pictures, and their weights."""
        return self.visual(images)

    def fuse(
        self,
        token_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        parsed: Parsed,
        there: Bool[Tensor, "batch tokens"],
        hidden: Bool[Tensor, "batch tokens"] | None = None,
        tokens: Float[Tensor, "batch tokens dim"] | None = None,
    ) -> Fused:
        """Run the multimodal Transformer.

        Args:
            token_ids: [CLS], words, [SEP] and padding.
            attention_mask: false for padding.
            parsed: of the pictures.
            there: visual tokens that show a part of the picture.
            hidden: visual tokens in whose place stands the mask token; null for none.
            tokens: visual tokens after projection, where they are known.
        """
        tokens = self.visual_proj(parsed.features) if tokens is None else tokens
        text, vision = self.bert.embeddings(token_ids), self._placed(tokens, parsed.grid, hidden)
        states, mask = torch.cat([text, vision], dim=1), _additive(attention_mask, there, text.dtype)
        for layer in self.bert.encoder.layer:
            states = layer(states, mask)
        length = token_ids.shape[1]
        return Fused(states[:, :length], states[:, length:], tokens)

    def _placed(
        self, tokens: Tensor, grid: tuple[int, int], hidden: Tensor | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Visual tokens with type and place. Where one is hidden, its place is still known."""
        if hidden is not None:
            tokens = torch.where(hidden[:, :, None], self.mask_token.to(tokens.dtype), tokens)
        embeddings = self.bert.embeddings
        tokens = tokens + embeddings.token_type_embeddings.weight[VISION]
        if self.positions is not None:
            rows, columns = self.positions["rows"], self.positions["columns"]
            if max(grid) > len(rows):
                raise ValueError(
                    f"pictures have {grid[0]} x {grid[1]} visual tokens, but model.positions is {len(rows)}: raise it."
                )
            tokens = tokens + (rows[: grid[0], None] + columns[None, : grid[1]]).flatten(0, 1)
        return embeddings.dropout(tokens)

    def pooled(self, fused: Fused) -> Float[Tensor, "batch dim"]:
        """BERT's pooler of the state of [CLS]: what picture and text are together."""
        return self.bert.pooler(fused.text)

    def word_logits(self, fused: Fused, asked: Bool[Tensor, "batch length"]) -> Float[Tensor, "asked words"]:
        """What word is at the places that are asked for; the matrix is that of the word embeddings."""
        return self.mlm_head(fused.text[asked], self.bert.embeddings.word_embeddings.weight)

    def matching(self, fused: Fused) -> Float[Tensor, "batch 2"]:
        """Logits of: picture and text belong together (0), or not (1), the order of BERT's next sentences."""
        return self.itm_head(self.pooled(fused))

    def features(self, fused: Fused) -> Float[Tensor, "batch tokens dim"]:
        """What is said of the features of each visual token."""
        return self.mfr_head(fused.vision)

    @contextmanager
    def attending(self) -> Iterator[list[nn.Module]]:
        """While it lasts, each layer's self-attention, which is given, returns `(output, attention)`: it is eager."""
        before = self.bert.config._attn_implementation
        self.bert.set_attn_implementation("eager")
        try:
            yield [layer.attention.self for layer in self.bert.encoder.layer]
        finally:
            self.bert.set_attn_implementation(before)


class WordHead(nn.Module):
    """BERT's head of masked words; its matrix is that of the word embeddings, which are given."""

    def __init__(self, bert: BertForPreTraining):
        super().__init__()
        self.transform = bert.cls.predictions.transform
        self.bias = nn.Parameter(bert.cls.predictions.bias.detach().clone())

    def forward(
        self, states: Float[Tensor, "asked dim"], words: Float[Tensor, "words dim"]
    ) -> Float[Tensor, "asked words"]:
        """Logits of all words."""
        return F.linear(self.transform(states), words, self.bias)


def _additive(
    text: Bool[Tensor, "batch length"], vision: Bool[Tensor, "batch tokens"], kind: torch.dtype
) -> Float[Tensor, "batch 1 1 length_and_tokens"]:
    """What is added to the scores of attention: fused and eager attention both read this form."""
    there = torch.cat([text, vision], dim=1)
    mask = torch.zeros(there.shape, dtype=kind, device=there.device)
    return mask.masked_fill(~there, torch.finfo(kind).min)[:, None, None]


def targets(tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
    """What masked features are to be: the tokens themselves, normalised, without a gradient.

    Both are our safeguards: an encoder that learns could otherwise make all features the same constant.
    """
    return F.layer_norm(tokens.detach().float(), tokens.shape[-1:])


def visible(batch: Batch, parsed: Parsed) -> Bool[Tensor, "batch tokens"]:
    """Visual tokens of a batch that show a part of its pictures; see `parsing.seen`."""
    return seen(batch.get("sizes"), batch["images"], parsed.grid, parsed.stride)
