"""LXMERT (Tan and Bansal, 1908.07490) with heads for words and for image codes, from the layers of transformers.

Text and image each have a stream of their own, then cross layers in which one attention module, shared by both
directions, looks from each stream into the other. Names of parameters are those of the official checkpoints.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import LxmertConfig
from transformers.models.lxmert.modeling_lxmert import (
    LxmertEmbeddings,
    LxmertEncoder,
    LxmertPredictionHeadTransform,
)

HIDDEN_KEY = -1e4  # added to the scores of keys that must not be seen, as in BERT
LANES = 8  # softmax over a number of keys that is no multiple of it is ten times slower on a CPU; the rest is hidden
BOX = 4  # left, top, right, bottom


class WordHead(nn.Module):
    """Logits over words: a transform, then the word embedding itself as the last matrix, and a bias."""

    def __init__(self, config: LxmertConfig):
        super().__init__()
        self.transform = LxmertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, hidden: Float[Tensor, "... dim"], embedding: Float[Tensor, "words dim"]
    ) -> Float[Tensor, "... words"]:
        """`embedding`: of the words, which is no parameter of this module."""
        return F.linear(self.transform(hidden), embedding, self.bias)


class CodeHead(nn.Module):
    """Logits over image codes: a transform, a predicted feature, and its product with a learned vector per code."""

    def __init__(self, config: LxmertConfig, codebook_size: int):
        super().__init__()
        self.transform = LxmertPredictionHeadTransform(config)
        self.linear_feat = nn.Linear(config.hidden_size, config.visual_feat_dim)
        self.out_cluster = nn.Linear(config.visual_feat_dim, codebook_size)

    def forward(self, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... codes"]:
        """Of all codes."""
        return self.out_cluster(self.linear_feat(self.transform(hidden)))


class Lxmert(nn.Module):
    """Words and grid features in, logits over words and over image codes out.

    Args:
        vocabulary: number of words.
        feature_dim: channels of a grid feature, and of a codebook entry.
        codebook_size: number of image codes.
        grid: places along a side of the image.
        language_layers: of the text alone; `visual_layers` of the image alone; `cross_layers` of both.
        max_positions: longest text.
        dropout: after attention, projections and embeddings.

    Raises:
        ValueError: `dim` is no multiple of `num_heads`.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        feature_dim: int,
        codebook_size: int,
        grid: int,
        dim: int = 768,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        language_layers: int = 9,
        visual_layers: int = 5,
        cross_layers: int = 5,
        max_positions: int = 512,
        dropout: float = 0.1,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim ({dim}) must be a multiple of num_heads ({num_heads}).")
        config = LxmertConfig(
            vocab_size=vocabulary,
            hidden_size=dim,
            num_attention_heads=num_heads,
            intermediate_size=mlp_dim,
            l_layers=language_layers,
            r_layers=visual_layers,
            x_layers=cross_layers,
            visual_feat_dim=feature_dim,
            visual_pos_dim=BOX,
            max_position_embeddings=max_positions,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.vocabulary, self.codebook_size, self.feature_dim, self.grid = vocabulary, codebook_size, feature_dim, grid
        self.max_positions = max_positions
        self.embedding_layer = LxmertEmbeddings(config)
        self.encoder = LxmertEncoder(config)
        self.classifier = nn.ModuleDict({"predictions": WordHead(config)})
        self.img_classifier = CodeHead(config, codebook_size)
        self.mask_feat = nn.Parameter(torch.zeros(feature_dim))
        self.cluster_codebook = nn.Embedding(codebook_size, feature_dim)
        self.apply(partial(initialise, std=0.02 * math.sqrt(768 / dim)))
        initialise(self.img_classifier.linear_feat, std=0.02)  # its output is multiplied with whole features
        self.cluster_codebook.requires_grad_(False)
        self.register_buffer("boxes", grid_boxes(grid), persistent=False)
        self._centre_places()

    @property
    def num_tokens(self) -> int:
        """Image tokens."""
        return self.grid**2

    @torch.no_grad()
    def _centre_places(self) -> None:
        """Begin with the places about their centre.

        Their boxes are all positive, so that with a bias of 0 most places point the same way after the norm behind.
        """
        places = self.encoder.visn_fc.box_fc
        places.bias.copy_(-places.weight @ self.boxes.mean(0))

    def set_codebook(self, codebook: Float[Tensor, "codes features"]) -> None:
        """Take over a codebook, also as the start of the head's vectors, which X-LXMERT ties to it.

        Raises:
            ValueError: it is of another size than the head.
        """
        expected = (self.codebook_size, self.feature_dim)
        if tuple(codebook.shape) != expected:
            raise ValueError(
                f"the codebook has shape {tuple(codebook.shape)}, but the head predicts codes of shape {expected}: set "
                "codebook_size and feature_dim to those of the codebook."
            )
        with torch.no_grad():
            self.cluster_codebook.weight.copy_(codebook)
            self.img_classifier.out_cluster.weight.copy_(codebook)

    def mask_features(
        self, features: Float[Tensor, "batch tokens features"], masked: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens features"]:
        """The learned mask token at masked places, and the features elsewhere."""
        return torch.where(masked[..., None], self.mask_feat, features)

    def see(self, features: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch tokens dim"]:
        """The image's own stream: it does not depend on the text, so one pass serves all words of a caption."""
        hidden = self.encoder.visn_fc(features, self.boxes.to(features.dtype))
        for layer in self.encoder.r_layers:
            hidden = layer(hidden)[0]
        return hidden

    def join(
        self,
        seen: Float[Tensor, "batch tokens dim"],
        token_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch tokens dim"]]:
        """Text and image after the cross layers.

        Args:
            seen: what `see` gave.
            token_ids: of the text.
            attention_mask: words that may be looked at, by words and by image alike; image places always may be.
        """
        keys = rearrange((~attention_mask).to(seen.dtype) * HIDDEN_KEY, "b n -> b 1 1 n")
        text = self.embedding_layer(token_ids, torch.zeros_like(token_ids))
        for layer in self.encoder.layer:
            text = layer(text, keys)[0]
        for layer in self.encoder.x_layers:
            text, seen = layer(text, keys, seen, None)
        return text, seen

    def word_logits(
        self, hidden: Float[Tensor, "batch dim"] | Float[Tensor, "batch length dim"]
    ) -> Float[Tensor, "... words"]:
        """Logits over words from the text's stream."""
        return self.classifier["predictions"](hidden, self.embedding_layer.word_embeddings.weight)

    def code_logits(
        self,
        features: Float[Tensor, "batch tokens features"],
        token_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
    ) -> Float[Tensor, "batch tokens codes"]:
        """Logits over image codes at every place."""
        return self.img_classifier(self.join(self.see(features), token_ids, attention_mask)[1])

    def next_word(
        self, seen: Float[Tensor, "batch tokens dim"], prefix: Int[Tensor, "batch length"], mask_id: int
    ) -> Float[Tensor, "batch words"]:
        """Logits of the word after `prefix`: a [MASK] is put there, and nothing behind it is seen."""
        ids = torch.cat([prefix, prefix.new_full((len(prefix), 1), mask_id)], dim=1)
        length = ids.shape[1]
        ids = F.pad(ids, (0, min(-length % LANES, self.max_positions - length)))
        there = torch.arange(ids.shape[1], device=ids.device) < length
        hidden = self.join(seen, ids, there.expand_as(ids))[0]
        return self.word_logits(hidden[:, length - 1])


def initialise(module: nn.Module, std: float) -> None:
    """BERT's initialisation, normal with biases zero; its 0.02 is for 768 channels, and fewer need more to begin."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def grid_boxes(grid: int) -> Float[Tensor, "tokens 4"]:
    """The box (left, top, right, bottom) of each place of a grid, row by row, in shares of the image."""
    edges = torch.arange(grid) / grid
    left, top = repeat(edges, "c -> (r c)", r=grid), repeat(edges, "r -> (r c)", c=grid)
    return torch.stack([left, top, left + 1 / grid, top + 1 / grid], dim=1)
