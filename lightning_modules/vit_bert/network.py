"""ViT-BERT as a network: a tokenizer for each modality, the shared encoder, a head for each task.

Read `Network` first. A sequence is of one modality only, so that no pairs of pictures and texts are needed.
"""

from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.layers.vision import PatchEmbedding
from lightning_modules.settings import STRICT, Count, Positive
from lightning_modules.vit_bert.encoder import Encoder, Order

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
Dropout = Annotated[float, Field(ge=0, lt=1)]


class EncoderSizes(TypedDict):
    """See `Encoder`."""

    __pydantic_config__ = STRICT
    dim: Count
    hidden: Count
    layers: Count
    heads: Count
    norm: Order
    norm_eps: Positive
    dropout: Dropout


class ImageSizes(TypedDict):
    """Pixels a side of a picture and of a patch, and number of classes."""

    __pydantic_config__ = STRICT
    image_size: Count
    patch_size: Count
    classes: Count


class TextSizes(TypedDict):
    """Number of words and of positions; `pairs`: whether sentences come in pairs, which have segments and a head."""

    __pydantic_config__ = STRICT
    words: Count
    positions: Count
    pairs: bool


class ImageTokens(nn.Module):
    """Patches of a picture behind a class token, with learned positions.

    Raises:
        ValueError: the patches do not tile the picture.
    """

    def __init__(self, sizes: ImageSizes, dim: int, *, norm: Order, norm_eps: float, modality: bool):
        super().__init__()
        size, patch = sizes["image_size"], sizes["patch_size"]
        if size % patch:
            raise ValueError(f"image_size ({size}) must be a multiple of patch_size ({patch}).")
        self.image_size = size
        self.patches = PatchEmbedding(patch, 3, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, dim))
        self.modality = nn.Parameter(torch.zeros(dim)) if modality else None
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm == "post" else nn.Identity()

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
        """The class token, then the patches row by row.

        Raises:
            ValueError: the pictures are of another size.
        """
        if images.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"pictures of {images.shape[2]} x {images.shape[3]} pixels do not fit model.images.image_size "
                f"({self.image_size}): resize them, or build the network for their size."
            )
        x = torch.cat([self.cls.expand(len(images), -1, -1), self.patches(images)], dim=1) + self.positions
        return self.norm(x if self.modality is None else x + self.modality)


class TextTokens(nn.Module):
    """Words with learned positions and, in pairs, the sentence that they are of."""

    def __init__(self, sizes: TextSizes, dim: int, *, norm: Order, norm_eps: float, modality: bool):
        super().__init__()
        self.words = nn.Embedding(sizes["words"], dim)
        self.positions = nn.Parameter(torch.zeros(sizes["positions"], dim))
        self.segments = nn.Embedding(2, dim) if sizes["pairs"] else None
        self.modality = nn.Parameter(torch.zeros(dim)) if modality else None
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm == "post" else nn.Identity()

    def forward(
        self, token_ids: Int[Tensor, "batch length"], segments: Int[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Tokens of sentences, which start with the start token; without `segments` all are of the first sentence.

        Raises:
            ValueError: they are longer than positions.
        """
        if token_ids.shape[1] > len(self.positions):
            raise ValueError(
                f"texts of {token_ids.shape[1]} tokens are longer than model.texts.positions ({len(self.positions)}): "
                "cut them (data: text_length), or build the network for their length."
            )
        x = self.words(token_ids) + self.positions[: token_ids.shape[1]]
        if self.segments is not None:
            x = x + self.segments(torch.zeros_like(token_ids) if segments is None else segments)
        return self.norm(x if self.modality is None else x + self.modality)


class ClassHead(nn.Module):
    """Linear, tanh, linear on the first token: ViT's head of pre-training, and BERT's pooler with its classifier."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.pooler, self.classifier = nn.Linear(dim, dim), nn.Linear(dim, classes)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.classifier(self.pooled(tokens))

    def pooled(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """What the classifier reads."""
        return self.pooler(tokens[:, 0]).tanh()


class WordHead(nn.Module):
    """BERT's head of masked words: linear, GELU and norm, then the word embeddings with a bias of each word."""

    def __init__(self, dim: int, words: int, norm_eps: float):
        super().__init__()
        self.dense, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=norm_eps)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(
        self, tokens: Float[Tensor, "places dim"], words: Float[Tensor, "words dim"]
    ) -> Float[Tensor, "places words"]:
        """Logits of all words at the places that are asked for."""
        return F.linear(self.norm(F.gelu(self.dense(tokens))), words, self.bias)


class Network(nn.Module):
    """Both modalities through one encoder, or each through one of its own.

    Args:
        encoder: sizes, see `Encoder`.
        images: see `ImageSizes`.
        texts: see `TextSizes`.
        modality_embedding: a learned vector is added to all tokens of a modality.
        shared: false gives a ViT and a BERT of the same sizes which share nothing.
        deviation: of fresh weights, which is 0.02 in ViT and BERT; null for what suits narrow layers, matrices of
            Xavier, and embeddings and positions of deviation 1 / sqrt(dim).

    Raises:
        ValueError: see `Encoder` and `ImageTokens`.
    """

    def __init__(
        self,
        *,
        encoder: EncoderSizes,
        images: ImageSizes,
        texts: TextSizes,
        modality_embedding: bool = False,
        shared: bool = True,
        deviation: Positive | None = 0.02,
    ):
        super().__init__()
        dim, norm, norm_eps = encoder["dim"], encoder["norm"], encoder["norm_eps"]
        common = {"norm": norm, "norm_eps": norm_eps, "modality": modality_embedding}
        self.tokens = nn.ModuleDict(
            {"image": ImageTokens(images, dim, **common), "text": TextTokens(texts, dim, **common)}
        )
        self.encoders = nn.ModuleDict({name: Encoder(**encoder) for name in (("shared",) if shared else MODALITIES)})
        heads = {"images": ClassHead(dim, images["classes"]), "words": WordHead(dim, texts["words"], norm_eps)}
        self.heads = nn.ModuleDict(heads | ({"pairs": ClassHead(dim, 2)} if texts["pairs"] else {}))
        self.dropout = nn.Dropout(encoder["dropout"])
        self.shared = shared
        self.apply(partial(initialise, deviation=deviation))
        for parameter in (p for part in self.tokens.values() for p in part.parameters(recurse=False)):
            nn.init.trunc_normal_(parameter, std=deviation or dim**-0.5)

    def encoder(self, modality: Modality) -> Encoder:
        """That of a modality."""
        return self.encoders["shared" if self.shared else modality]

    def embed_images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
        """What the encoder reads of normalised pictures."""
        return self.dropout(self.tokens["image"](images))

    def embed_texts(
        self, token_ids: Int[Tensor, "batch length"], segments: Int[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """What the encoder reads of sentences."""
        return self.dropout(self.tokens["text"](token_ids, segments))

    def image_features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Features of the class token and the patches."""
        return self.encoder("image")(self.embed_images(images))

    def text_features(
        self,
        token_ids: Int[Tensor, "batch length"],
        there: Bool[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        """Features of the words; `there` is false for padding."""
        return self.encoder("text")(self.embed_texts(token_ids, segments), there)

    def word_logits(
        self, features: Float[Tensor, "batch length dim"], asked: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "places words"]:
        """Logits of all words, at the asked places only."""
        return self.heads["words"](features[asked], self.tokens["text"].words.weight)


def initialise(module: nn.Module, deviation: float | None) -> None:
    """Fresh weights, see `Network`; biases are zero."""
    if isinstance(module, nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=deviation or module.embedding_dim**-0.5)
    elif isinstance(module, nn.Linear | nn.Conv2d):
        if deviation is None:
            nn.init.xavier_uniform_(module.weight.flatten(1))
        else:
            nn.init.trunc_normal_(module.weight, std=deviation)
        nn.init.zeros_(module.bias)
