"""A decoder-only language model that reads its prefix in both directions and writes what follows token by token.

The body is the Llama of `transformers`. VideoPoet's paper says "prefix LM" and no more of its layers; a learned vector
for each place of a clip and of a sound, added to what comes in, is our addition, as are rotary positions.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel

from lightning_modules.sequences.layout import TEXT_AT, Batch
from lightning_modules.sequences.vocabulary import NAMES
from lightning_modules.settings import Count, Natural, NonNegative, Share

SPREAD = 0.64  # deviation of fresh weights times the root of the width: 0.02 at a width of 1,024
TEXT = NAMES.index("text")


class PrefixLM(nn.Module):
    """Ids, and features of texts, to logits of the next id.

    Args:
        vocabulary: number of ids.
        places: of clips and sounds together.
        hidden_size: width.
        layers: number of blocks.
        heads: of attention.
        mlp_dim: inner width of a block's gated MLP.
        text_dim: width of the features of a text encoder; 0 where text comes as ids.
        bidirectional: whether the prefix is read in both directions; otherwise all is causal.
        chunk: places whose logits are computed at a time for the loss. Only one chunk's logits are held in memory.
        dropout: of attention.

    Raises:
        ValueError: `hidden_size` is no even multiple of `heads`.
    """

    def __init__(
        self,
        *,
        vocabulary: Count,
        places: Count,
        hidden_size: Count,
        layers: Count,
        heads: Count,
        mlp_dim: Count,
        text_dim: Natural = 0,
        bidirectional: bool = True,
        chunk: Count = 8192,
        dropout: Share = 0.0,
    ):
        super().__init__()
        if hidden_size % (2 * heads):
            raise ValueError(f"hidden_size ({hidden_size}) must be a multiple of 2 x heads ({heads}).")
        self.bidirectional, self.chunk, spread = bidirectional, chunk, SPREAD / hidden_size**0.5
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden_size, intermediate_size=mlp_dim, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=2**17,
            attention_dropout=dropout, initializer_range=spread, bos_token_id=None, eos_token_id=None,
            pad_token_id=None, tie_word_embeddings=False, attn_implementation="sdpa",
        )  # fmt: skip
        self.body = LlamaModel(config)
        self.head = nn.Linear(hidden_size, vocabulary, bias=False)
        self.places = nn.Embedding(places + 1, hidden_size, padding_idx=0)
        self.project = nn.Linear(text_dim, hidden_size) if text_dim else None
        nn.init.normal_(self.head.weight, std=spread)
        nn.init.normal_(self.places.weight[1:], std=spread)

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks."""
        return self.body.layers

    def embed(self, batch: Batch) -> Float[Tensor, "batch length dim"]:
        """What the first block reads.

        Raises:
            ValueError: features are given to a model without `text_dim`.
        """
        x = self.body.embed_tokens(batch.ids) + self.places(batch.places)
        if batch.features is None:
            return x
        if self.project is None:
            raise ValueError("features of texts are given, but text_dim is 0: set it to their width.")
        span = slice(TEXT_AT, TEXT_AT + batch.features.shape[1])
        told = (batch.ids[:, span] == TEXT)[..., None]
        return torch.cat(
            [x[:, :TEXT_AT], torch.where(told, self.project(batch.features), x[:, span]), x[:, span.stop :]], 1
        )

    def mask(self, batch: Batch) -> Bool[Tensor, "#batch 1 length length"]:
        """Which places (last axis) each place attends to: the prefix, if that is read both ways, and all before.

        What a padded sequence is filled up with comes last, so that no token attends to it.
        """
        return prefix_mask(batch.prefix if self.bidirectional else 0, batch.ids.shape[1], batch.ids.device)

    def read(self, batch: Batch, cache: DynamicCache | None = None) -> Float[Tensor, "batch length dim"]:
        """What the last block says at each place. With a cache, the keys and values of all places are put into it."""
        return self.body(
            inputs_embeds=self.embed(batch),
            attention_mask=self.mask(batch),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def logits(self, batch: Batch) -> Float[Tensor, "batch length vocabulary"]:
        """Logits of the id after each place."""
        return self.head(self.read(batch))

    def surprise(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Cross-entropy in nats of each id after the prefix; of padded sequences 0 where there is none."""
        hidden = self.read(batch)
        if isinstance(batch.prefix, int):
            said, truth = hidden[:, batch.prefix - 1 : -1], batch.ids[:, batch.prefix :]
            return self._surprise(said.flatten(0, 1), truth.flatten()).view(truth.shape)
        at = torch.arange(batch.ids.shape[1] - 1, device=hidden.device)
        asked = (at >= batch.prefix[:, None] - 1) & (at < batch.lengths[:, None] - 1)
        found = hidden.new_zeros(asked.shape)
        return found.masked_scatter(asked, self._surprise(hidden[:, :-1][asked], batch.ids[:, 1:][asked]))

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The mean of `surprise` over all ids after the prefixes."""
        found = self.surprise(batch)
        if isinstance(batch.prefix, int):
            return found.mean()
        return found.sum() / (batch.lengths - batch.prefix).sum()

    def _surprise(self, hidden: Float[Tensor, "tokens dim"], truth: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """Chunk by chunk; the backward pass computes the logits of a chunk again."""
        if len(truth) <= self.chunk:
            return self._part(hidden, truth)
        parts = zip(hidden.split(self.chunk), truth.split(self.chunk), strict=True)
        again = partial(checkpoint, self._part, use_reentrant=False)
        return torch.cat([again(*part) for part in parts])

    def _part(self, hidden: Float[Tensor, "tokens dim"], truth: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        return F.cross_entropy(self.head(hidden).float(), truth, reduction="none")

    @torch.no_grad()
    def generate(
        self,
        given: Batch,
        slots: Sequence[slice],
        places: Int[Tensor, " length"],
        *,
        generator: torch.Generator,
        temperature: NonNegative = 1.0,
        top_k: Natural = 0,
        guidance: NonNegative = 0.0,
        without: Batch | None = None,
    ) -> Int[Tensor, "batch outputs"]:
        """The ids after a prefix, one after another; keys and values of all before are kept.

        Args:
            given: the prefixes, see `Layout.batch` with `whole=False`.
            slots: the ids that each place may take, `Layout.slots`; no other is considered.
            places: of the whole sequence, `Layout.places`.
            generator: of what is drawn.
            temperature: that logits are divided by; 0 for the most probable id.
            top_k: only so many of the most probable ids are drawn from; 0 for all.
            guidance: g moves logits away from those of `without`: l + g (l - l without).
            without: the same prefixes without what is to be followed more closely; needed where `guidance` is not 0.

        Raises:
            ValueError: guidance without `without`, or a number below 0.
        """
        for name, value in (("temperature", temperature), ("top_k", top_k), ("guidance", guidance)):
            if value < 0:
                raise ValueError(f"{name} is {value}, expected a number from 0 on.")
        if guidance and without is None:
            raise ValueError(f"guidance is {guidance}, but nothing is left out: give `without`, or set it to 0.")
        rows, batch = len(given.ids), _stacked(given, without) if guidance else given
        cache = DynamicCache(config=self.body.config)
        hidden, found = self.read(batch, cache)[:, -1], []
        for number, slot in enumerate(slots):
            if slot.stop - slot.start == 1:
                token = torch.full((rows,), slot.start, device=hidden.device)
            else:
                logits = hidden @ self.head.weight[slot].T
                if guidance:
                    logits = logits[:rows] + guidance * (logits[:rows] - logits[rows:])
                token = slot.start + drawn(logits, temperature, top_k, generator)
            found.append(token)
            if number + 1 < len(slots):
                place = places[given.ids.shape[1] + number].to(hidden.device)
                hidden = self._step(token if not guidance else token.repeat(2), place, cache)
        return torch.stack(found, 1)

    def _step(self, token: Int[Tensor, " batch"], place: Int[Tensor, ""], cache: DynamicCache) -> Tensor:
        """What the last block says after one more id."""
        x = (self.body.embed_tokens(token) + self.places(place))[:, None]
        seen = x.new_ones(1, 1, 1, cache.get_seq_length() + 1, dtype=torch.bool)
        out = self.body(inputs_embeds=x, attention_mask=seen, past_key_values=cache, use_cache=True)
        return out.last_hidden_state[:, 0]

    def to_transformers(self) -> LlamaForCausalLM:
        """A LlamaForCausalLM with these weights.

        It computes the same from `inputs_embeds`, which are to be what `embed` gives, and a mask as `mask`.
        """
        model = LlamaForCausalLM(self.body.config)
        with torch.no_grad():
            for own, other in ((self.body, model.model), (self.head, model.lm_head)):
                for source, target in zip(own.parameters(), other.parameters(), strict=True):
                    target.copy_(source)
        return model.eval()


def prefix_mask(
    prefix: int | Int[Tensor, " batch"], length: int, device: torch.device | str = "cpu"
) -> Bool[Tensor, "#batch 1 length length"]:
    """Which places (last axis) each place attends to: those of the prefix, and those up to its own."""
    at = torch.arange(length, device=device)
    causal = at[None, :] <= at[:, None]
    given = at < (prefix if isinstance(prefix, int) else prefix[:, None, None, None])
    return causal[None, None] | given


def drawn(
    logits: Float[Tensor, "batch ids"], temperature: float, top_k: int, generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """One id for each row, by its probability."""
    if temperature == 0:
        return logits.argmax(-1)
    if 0 < top_k < logits.shape[1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator)[:, 0]


def _stacked(first: Batch, second: Batch) -> Batch:
    """Two batches of one layout as one."""
    features = None if first.features is None else torch.cat([first.features, second.features])
    return first._replace(ids=torch.cat([first.ids, second.ids]), features=features)
