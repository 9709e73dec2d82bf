"""MM-GEM's network: one causal language model that embeds texts and writes captions, and a vision tower.

Read `Generative.text_vectors` and `Generative.caption_loss` first. A text is embedded without the picture: [BOS] text
[EMB]; it is written behind the picture's tokens: tokens [BOS] text [EOS].
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from lightning_modules.datamodules.illustrated import IGNORED
from lightning_modules.mm_gem.pool import PoolAggregator, PoolSettings
from lightning_modules.settings import Count, Positive
from lightning_modules.vision_language.causal import Language
from lightning_modules.vision_language.towers import VisionTower

Projection = Literal["linear", "mlp"]


class Generative(nn.Module):
    """Joins a language model and a vision tower by PoolAggregator and three projections.

    Args:
        language: which gets a row for [EMB], the mean of all others, at the end of its vocabulary.
        tower: gives the features of patches.
        pool: see `PoolSettings`.
        embedding_dim: of the vectors of pictures and texts.
        projection: into the language model's input: one matrix, or two with a GELU.
        text_limit: tokens of a text that are embedded; null for as many as there are.
        temperature: by which similarities are divided at first.
        max_scale: largest inverse temperature.
    """

    def __init__(
        self,
        language: Language,
        tower: VisionTower,
        *,
        pool: PoolSettings,
        embedding_dim: Count,
        projection: Projection = "mlp",
        text_limit: Count | None = None,
        temperature: Positive = 0.07,
        max_scale: Positive = 100.0,
    ):
        super().__init__()
        self.language, self.tower = language, tower
        self.embed_id, self.text_limit, self.max_scale = len(language.embeddings), text_limit, max_scale
        add_row(language)
        self.pool = PoolAggregator(tower.dim, **pool)
        self.to_vector = nn.Linear(tower.dim, embedding_dim, bias=False)
        self.to_language = bridge(tower.dim, language.dim, projection)
        self.text_to_vector = nn.Linear(language.dim, embedding_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The inverse temperature."""
        return self.log_scale.exp()

    @torch.no_grad()
    def hold_scale(self) -> None:
        """Take the inverse temperature back to `max_scale` where a step has passed it."""
        self.log_scale.clamp_(max=math.log(self.max_scale))

    def learn(self, *, embedding: bool, generation: bool) -> None:
        """Leave out of the training what belongs to an objective that is not computed."""
        of_embedding = [self.to_vector.weight, self.text_to_vector.weight, self.log_scale]
        head = [] if self.language.tied else [self.language.whole.get_output_embeddings().weight]
        for learnt, parameters in ((embedding, of_embedding), (generation, [*self.to_language.parameters(), *head])):
            if not learnt:
                for parameter in parameters:
                    parameter.requires_grad_(False)

    def tokens(
        self, images: Shaped[Tensor, "batch 3 h w"], boxes: Float[Tensor, "batch 4"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Pooled features of pictures, or of a box of each."""
        return self.pool(self.tower.features(images), boxes)

    def picture_vectors(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch embedding"]:
        """Vectors of length 1 of what was pooled."""
        return F.normalize(self.to_vector(tokens.mean(1)), dim=-1)

    def text_vectors(
        self, token_ids: Int[Tensor, "batch length"], attention_mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch embedding"]:
        """Vectors of length 1 of texts: the last hidden state at [EMB], which stands at the end of each.

        An end token is left out.

        Args:
            token_ids: padded on either side.
            attention_mask: false where padded.
        """
        ids, mask, places = self.ended(token_ids, attention_mask.bool())
        found = self.language.whole.base_model(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions_of(mask), use_cache=False
        )
        states = found.last_hidden_state[torch.arange(len(ids), device=ids.device), places]
        return F.normalize(self.text_to_vector(states), dim=-1)

    def ended(
        self, token_ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> tuple[Int[Tensor, "batch longer"], Bool[Tensor, "batch longer"], Int[Tensor, " batch"]]:
        """Texts with [EMB] at their ends, cut before to `text_limit`, and where [EMB] is."""
        mask = mask & (token_ids != self.language.tokenizer.eos_token_id)
        if self.text_limit is not None:
            start = len(self.language.start)
            mask = mask & (mask.long().cumsum(1) <= self.text_limit + start)
        numbers = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        places = (mask * numbers).amax(1)
        ids, mask = F.pad(token_ids, (0, 1)), F.pad(mask, (0, 1))
        ids = ids.scatter(1, places[:, None], self.embed_id)
        return ids, mask.scatter(1, places[:, None], True), places

    def caption_loss(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        token_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        labels: Int[Tensor, "batch length"],
    ) -> Float[Tensor, " batch"]:
        """Of each text the summed cross-entropy of its labelled tokens, behind the tokens of its picture."""
        given = self.language.whole.get_input_embeddings()(token_ids)
        prefix = self.to_language(tokens).to(given.dtype)
        mask = F.pad(attention_mask.bool(), (prefix.shape[1], 0), value=True)
        found = self.language.whole(
            inputs_embeds=torch.cat([prefix, given], 1),
            attention_mask=mask.long(),
            position_ids=positions_of(mask),
            use_cache=False,
        )
        logits = found.logits[:, prefix.shape[1] - 1 : -1]  # the last visual token predicts the first of the text
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return losses.sum(1)


def add_row(language: Language) -> None:
    """Give the vocabulary one more token, whose rows are the mean of all others."""
    whole = language.whole
    whole.resize_token_embeddings(len(language.embeddings) + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in {whole.get_input_embeddings(), whole.get_output_embeddings()}:
            layer.weight[-1] = layer.weight[:-1].mean(0)


def bridge(visual_dim: int, dim: int, projection: Projection) -> nn.Module:
    """From the tower's features to the language model's input."""
    if projection == "linear":
        return nn.Linear(visual_dim, dim)
    return nn.Sequential(nn.Linear(visual_dim, dim), nn.GELU(), nn.Linear(dim, dim))


def positions_of(mask: Bool[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """Positions that count what is not padding."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)
