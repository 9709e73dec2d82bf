"""Teachers: a ViT and a BERT that were trained apart, published ones or own ones; they say logits and never learn."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.layers.bert import make_bert
from lightning_modules.layers.published import from_pretrained, load_strictly
from lightning_modules.layers.teacher import Frozen
from lightning_modules.rehearsal import width
from lightning_modules.settings import STRICT
from lightning_modules.vit_bert.network import Network

HALF = (0.5, 0.5, 0.5)  # mean and deviation of the pictures of published ViTs
BASE = {"hidden_size": 768, "intermediate_size": 3072}
PUBLISHED = {"google/vit-base-patch16-224": {"num_labels": 1000, "image_size": 224, "patch_size": 16}}
UNUSED = ("vit.pooler.*",)  # a classifier reads the class token itself


class Teachers(TypedDict):
    """Names of the hub or folders in its format: `image` a ViT with a classifier, `text` a BERT with its heads.

    Null for what the arm in `from` has learnt with `shared: false`.
    """

    __pydantic_config__ = STRICT
    image: str | None
    text: str | None


class ImageTeacher(Frozen):
    """A published ViT; it sees the student's pictures, normalised as it expects.

    Args:
        hub: name or folder.
        statistics: mean and deviation with which the student's pictures were normalised.

    Raises:
        ValueError: its sizes are not known without its files, or the weights are not complete.
        ConnectionError: the hub cannot be reached.
    """

    def __init__(self, hub: str, statistics: tuple[Sequence[float], Sequence[float]]):
        network = from_pretrained(ViTForImageClassification, hub, partial(_architecture, hub), unused=UNUSED)
        super().__init__(network)
        (mean, std), half = (
            (torch.tensor(x)[:, None, None] for x in pair(statistics)),
            torch.tensor(HALF)[:, None, None],
        )
        self.register_buffer("scale", std / half, persistent=False)
        self.register_buffer("shift", (mean - half) / half, persistent=False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.network(images * self.scale + self.shift).logits


class TextTeacher(Frozen):
    """A published BERT.

    Args:
        hub: name or folder.

    Raises: see `ImageTeacher`.
    """

    def __init__(self, hub: str):
        super().__init__(make_bert(hub=hub))

    @torch.no_grad()
    def forward(
        self,
        token_ids: Int[Tensor, "batch length"],
        there: Bool[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None,
        asked: Bool[Tensor, "batch length"],
    ) -> tuple[Float[Tensor, "places words"], Float[Tensor, "batch 2"]]:
        """Logits of words at the asked places, and of whether the second sentence follows (the class 1)."""
        features = self.network.bert(token_ids, attention_mask=there.long(), token_type_ids=segments)
        words = self.network.cls.predictions(features.last_hidden_state[asked])
        return words, self.network.cls.seq_relationship(features.pooler_output).flip(1)  # BERT's class 0 is "follows"


class OwnTeacher(Frozen):
    """A ViT and a BERT of our own, which share nothing.

    Args:
        network: built as the student, with `shared: false`; its weights come with `load`.
    """

    def __init__(self, network: Network):
        super().__init__(network)
        self.loaded = False

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what the arm in `from` has learnt.

        Raises:
            ValueError: it is of another architecture, or its encoder is shared.
        """
        load_strictly(self.network, weights, "the teachers of the arm in `from` (one with model.shared: false)")
        self.loaded = True

    @torch.no_grad()
    def images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of normalised pictures."""
        return self.network.heads["images"](self.network.image_features(images))

    @torch.no_grad()
    def texts(
        self,
        token_ids: Int[Tensor, "batch length"],
        there: Bool[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None,
        asked: Bool[Tensor, "batch length"],
    ) -> tuple[Float[Tensor, "places words"], Float[Tensor, "batch 2"] | None]:
        """See `TextTeacher.forward`."""
        features = self.network.text_features(token_ids, there, segments)
        pairs = self.network.heads["pairs"](features) if "pairs" in self.network.heads else None
        return self.network.word_logits(features, asked), pairs


def pair(statistics: tuple[Sequence[float], Sequence[float]]) -> tuple[list[float], list[float]]:
    """Mean and deviation as lists."""
    return tuple(list(map(float, each)) for each in statistics)


def _architecture(hub: str) -> nn.Module:
    if hub not in PUBLISHED:
        raise ValueError(f"the sizes of {hub!r} are not written out; known without its files: {', '.join(PUBLISHED)}.")
    sizes = {name: width(size) for name, size in BASE.items()}
    return ViTForImageClassification(ViTConfig(**sizes, **PUBLISHED[hub]))
