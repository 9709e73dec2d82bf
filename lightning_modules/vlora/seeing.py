"""A language model that sees: by additions to its weights, by tokens in its input, or not at all.

Read `Seeing.forward` first. Without a picture's tokens, the text alone is in the input. The official code keeps a
masked placeholder there, which takes up a position; here the text begins at position 0 in training and writing alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_modules.settings import Count
from lightning_modules.vlora.generator import PerceptualWeights
from lightning_modules.vlora.injection import Injection, blocks_of, merged

if TYPE_CHECKING:  # takes seconds, and who calls has it
    from transformers import PreTrainedModel

IGNORED = -100  # label of what is given: a prompt, padding


class Seeing(nn.Module):
    """A language model of the Llama type and what brings features of pictures into it.

    Args:
        language: of `transformers`, with a head.
        bridge: `PerceptualWeights`, a module that turns features into tokens of the input (`baselines`), or null for
            a model that is blind.
    """

    def __init__(self, language: "PreTrainedModel", bridge: nn.Module | None):
        super().__init__()
        self.bridge, self._language = bridge, (language,)  # not a submodule: whoever owns it trains and keeps it
        self.adapts = isinstance(bridge, PerceptualWeights)
        self.injection = Injection(blocks_of(language)) if self.adapts else None

    @property
    def language(self) -> "PreTrainedModel":
        """The language model."""
        return self._language[0]

    def forward(
        self,
        token_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        features: Float[Tensor, "batch patches dim"],
        has_image: Bool[Tensor, " batch"],
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Logits of the token after each of the text.

        Args:
            token_ids: of texts, padded on either side.
            attention_mask: false where padded.
            features: of pictures.
            has_image: false where a row has no picture, whatever its features.
        """
        return self._read(token_ids, attention_mask, self.see(features, has_image), has_image)[0]

    def loss(
        self,
        token_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        labels: Int[Tensor, "batch length"],
        features: Float[Tensor, "batch patches dim"],
        has_image: Bool[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """Cross-entropy of each labelled token after those before it.

        Raises:
            ValueError: no token is labelled.
        """
        if not (labels[:, 1:] != IGNORED).any():
            raise ValueError("no token of the batch has a label: give texts with something to be written.")
        logits = self(token_ids, attention_mask, features, has_image)[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED)

    def see(
        self, features: Float[Tensor, "batch patches dim"], has_image: Bool[Tensor, " batch"]
    ) -> Float[Tensor, "batch tokens hidden"] | None:
        """Set the additions of a batch; gives the tokens that stand before its texts, if there are any."""
        if self.adapts:
            self.injection.use(self.bridge(features, has_image))
        return None if self.adapts or self.bridge is None else self.bridge(features)

    @torch.no_grad()
    def write(
        self,
        token_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        features: Float[Tensor, "batch patches dim"],
        has_image: Bool[Tensor, " batch"],
        *,
        most: Count,
        end: int,
        pad: int,
        merge: bool = False,
    ) -> Int[Tensor, "batch written"]:
        """The likeliest token again and again, with keys and values kept; `pad` after a row's end token.

        Args:
            token_ids: prompts, padded on the left.
            attention_mask: false where padded.
            features: of pictures.
            has_image: false where a row has no picture.
            most: tokens that are written.
            end: id of the end token, which is written too.
            pad: id of padding.
            merge: whether additions are merged into the weights meanwhile, where they can be (`injection.merged`).

        Raises:
            ValueError: prompts are not padded on the left, or several pictures are to be merged.
        """
        if not attention_mask[:, -1].all():
            raise ValueError("a prompt ends with padding: pad prompts on the left to write after them.")
        with self._seen(features, has_image, merge) as tokens:
            return self._written(token_ids, attention_mask, tokens, has_image, most=most, end=end, pad=pad)

    @contextmanager
    def _seen(
        self, features: Float[Tensor, "batch patches dim"], has_image: Bool[Tensor, " batch"], merge: bool
    ) -> Iterator[Float[Tensor, "batch tokens hidden"] | None]:
        """Additions while it lasts, merged if asked for; gives the tokens that stand before texts, if there are any."""
        if not self.adapts:
            yield self.see(features, has_image)
            return
        deltas = self.bridge(features, has_image)
        with merged(blocks_of(self.language), deltas) if merge else nullcontext(deltas) as added:
            self.injection.use(added)
            try:
                yield None
            finally:
                self.injection.use(None)

    def _written(
        self,
        token_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        tokens: Float[Tensor, "batch tokens hidden"] | None,
        has_image: Bool[Tensor, " batch"],
        *,
        most: int,
        end: int,
        pad: int,
    ) -> Int[Tensor, "batch written"]:
        """What `write` gives, of what is seen already."""
        logits, cache, seen = self._read(token_ids, attention_mask, tokens, has_image, keep=True)
        done, written = torch.zeros_like(has_image), []
        for number in range(most):
            chosen = logits[:, -1].argmax(1).masked_fill(done, pad)
            written.append(chosen)
            done = done | (chosen == end)
            if done.all() or number + 1 == most:
                break
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
            found = self.language(
                input_ids=chosen[:, None],
                attention_mask=seen.long(),
                position_ids=seen.long().sum(1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
            logits, cache = found.logits, found.past_key_values
        return torch.stack(written, 1)

    def _read(
        self,
        token_ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        tokens: Float[Tensor, "batch tokens hidden"] | None,
        has_image: Bool[Tensor, " batch"],
        keep: bool = False,
    ) -> tuple[Tensor, object, Bool[Tensor, "batch places"]]:
        """Logits of the texts' places, the cache, and which places are seen."""
        mask, given = mask.bool(), self.language.get_input_embeddings()(token_ids)
        if tokens is not None:
            given = torch.cat([tokens.to(given.dtype), given], 1)
            mask = torch.cat([has_image[:, None].expand(-1, tokens.shape[1]), mask], 1)
        found = self.language(
            inputs_embeds=given,
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(1) - 1).clamp_min(0),
            use_cache=keep,
        )
        return found.logits[:, -token_ids.shape[1] :], found.past_key_values, mask
