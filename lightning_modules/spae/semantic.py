"""What words fit a picture, as CLIP sees it, and the loss that draws the upper layers to them (section 3.4).

Read `Fitting.similarity` and `semantic_loss` first.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, NotRequired

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import CLIPModel
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datasets.tokenizers import TextTokenizer
from lightning_modules.layers.teacher import Frozen
from lightning_modules.settings import STRICT, Count, Positive
from lightning_modules.spae.words import WordTable
from lightning_modules.vision_language.towers import VisionSizes, check_sizes

TEXTS = 1024  # read at a time
LOGITS = 1 << 27  # of places and words, held at a time: half a gigabyte in float32
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]


class ClipText(TypedDict):
    """Settings of `CLIPTextConfig` that a fresh CLIP is given."""

    __pydantic_config__ = STRICT
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    vocab_size: Count
    max_position_embeddings: Count


class ClipSettings(TypedDict):
    """Arguments of `layers.clip.make_clip`, which says what they are."""

    __pydantic_config__ = STRICT
    hub: NotRequired[str | None]
    vision: NotRequired[VisionSizes | None]
    text: NotRequired[ClipText | None]
    projection_dim: NotRequired[Count | None]


class Preprocess(TypedDict):
    """Of CLIP's pixels from 0 to 1, per channel."""

    __pydantic_config__ = STRICT
    mean: Channels
    std: Annotated[list[Positive], Field(min_length=3, max_length=3)]


def check_clip(clip: ClipSettings) -> None:
    """Refuse sizes that no CLIP can be built of; a published one has none.

    Raises:
        ValueError: a size is no multiple of one that divides it.
    """
    if vision := clip.get("vision"):
        check_sizes(vision, "clip.vision")
    if (text := clip.get("text")) and text["hidden_size"] % text["num_attention_heads"]:
        raise ValueError(
            f"clip.text.hidden_size ({text['hidden_size']}) must be a multiple of clip.text.num_attention_heads "
            f"({text['num_attention_heads']})."
        )


class Fitting(Frozen):
    """A frozen CLIP that says how well words fit pictures.

    Args:
        clip: the network.
        tokenizer: gives what makes ids of sentences for this network; called when words are read for the first time.
        templates: sentences with a place for a word.
        mean: of the pixels that CLIP was trained on, per channel, from 0 to 1.
        std: likewise.
    """

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: Callable[[], TextTokenizer],
        *,
        templates: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__(clip)
        self.tokenizer, self.templates = tokenizer, templates
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.known: tuple[list[str], Tensor] | None = None  # words and their features, read once

    @torch.no_grad()
    def words(self, words: list[str]) -> Float[Tensor, "words dim"]:
        """Features of words, of length 1: the mean over all templates of features of length 1."""
        if self.known is None or self.known[0] != words or self.known[1].device != self.mean.device:
            self.known = list(words), word_features(self.network, self.tokenizer(), words, self.templates)
        return self.known[1]

    @torch.no_grad()
    def similarity(self, video: Float[Tensor, "batch 3 frames h w"], words: list[str]) -> Float[Tensor, "batch words"]:
        """Cosine of each picture with each word; of a clip the mean over its frames."""
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        seen = picture_features(self.network, (frames - self.mean) / self.std)
        return rearrange(seen @ self.words(words).T, "(b t) k -> b t k", b=len(video)).mean(1)

    def forget(self) -> None:
        """Read words anew: the network has other weights now."""
        self.known = None


def picture_features(clip: CLIPModel, pictures: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
    """Features of length 1 of normalised pictures, which are scaled to the side that CLIP reads (bicubic)."""
    side = clip.config.vision_config.image_size
    if tuple(pictures.shape[-2:]) != (side, side):
        pictures = F.interpolate(pictures, size=(side, side), mode="bicubic", align_corners=False)
    return F.normalize(clip.visual_projection(clip.vision_model(pixel_values=pictures).pooler_output), dim=-1)


def text_features(clip: CLIPModel, token_ids: Int[Tensor, "texts length"]) -> Float[Tensor, "texts dim"]:
    """Features of length 1 of texts, read at their end token, which has the highest id of all."""
    text = clip.text_model
    states = text.encoder(inputs_embeds=text.embeddings(input_ids=token_ids), is_causal=True).last_hidden_state
    states = text.final_layer_norm(states)
    ends = states[torch.arange(len(states), device=states.device), token_ids.argmax(1)]
    return F.normalize(clip.text_projection(ends), dim=-1)


def word_features(
    clip: CLIPModel, tokenizer: TextTokenizer, words: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "words dim"]:
    """Features of words, see `Fitting.words`.

    Raises:
        ValueError: the tokenizer does not know a word.
    """
    device, length = clip.logit_scale.device, clip.config.text_config.max_position_embeddings
    total = torch.zeros(len(words), clip.config.projection_dim, device=device)
    for template in templates:
        ids = template_ids(tokenizer, words, template, length).to(device)
        total += torch.cat([text_features(clip, part) for part in ids.split(TEXTS)])
    return F.normalize(total, dim=-1)


def template_ids(
    tokenizer: TextTokenizer, words: Sequence[str], template: str, length: int
) -> Int[Tensor, "words length"]:
    """Token ids of a template with each word in it, no longer than the longest of them.

    Raises:
        ValueError: the tokenizer does not know a word.
    """
    ids, there = tokenizer([template.format(word) for word in words], length)
    unknown = (ids == tokenizer.unknown_id).any(1) if tokenizer.unknown_id not in _ends(tokenizer) else None
    if unknown is not None and unknown.any():
        raise ValueError(
            f"CLIP's tokenizer does not know {words[int(unknown.argmax())]!r} in {template!r}: take the words and "
            "templates of its vocabulary."
        )
    return torch.from_numpy(ids[:, : there.sum(1).max()])


def _ends(tokenizer: TextTokenizer) -> tuple[int, int]:
    return tokenizer.end_id, tokenizer.pad_id


def relative(similarity: Float[Tensor, "batch words"]) -> Float[Tensor, "batch words"]:
    """Similarities on a scale of each picture: 0 for the word that fits it least, 1 for the one that fits it best."""
    least, most = similarity.aminmax(dim=1, keepdim=True)
    return (similarity - least) / (most - least).clamp_min(torch.finfo(similarity.dtype).eps)


def semantic_loss(
    asked: Float[Tensor, "batch tokens dim"], table: WordTable, candidates: Bool[Tensor, "batch words"]
) -> Float[Tensor, ""]:
    """Cross-entropy between a softmax of minus squared distances to all words, and equal shares of the candidates.

    The gradient is that of the latents alone; each picture has a candidate, since its best word is one. Of so many
    pictures are distances held at a time that they are `LOGITS` at most, or of one; they are computed again in the
    backward pass, unless they are held all at once.
    """
    words = table.embeddings.detach()
    squares = words.square().sum(1)
    shares = candidates / candidates.sum(1, keepdim=True)
    right = 2 * (asked * (shares @ words)[:, None]).sum(-1) - (shares @ squares)[:, None]
    parts = asked.split(max(1, LOGITS // (asked.shape[1] * len(words))))
    if len(parts) == 1:
        return (_normaliser(asked, words, squares) - right).mean()
    again = partial(checkpoint, _normaliser, use_reentrant=False, preserve_rng_state=False)
    return (torch.cat([again(part, words, squares) for part in parts]) - right).mean()


def _normaliser(
    asked: Float[Tensor, "batch tokens dim"], words: Float[Tensor, "words dim"], squares: Float[Tensor, " words"]
) -> Float[Tensor, "batch tokens"]:
    logits = 2 * asked @ words.T - squares  # the latent's own square is the same for all words
    return logits.logsumexp(-1)


def guidance(
    asked: Sequence[Float[Tensor, "batch _ dim"]],
    table: WordTable,
    fitting: Float[Tensor, "batch words"],
    thresholds: Sequence[float],
) -> Float[Tensor, ""]:
    """The sum of `semantic_loss` over the first layers, one for each threshold.

    Args:
        asked: what each layer asks for, see `pyramid.Spelt`.
        table: the words.
        fitting: `relative` similarities.
        thresholds: from which a word is a candidate, for each of these layers.
    """
    return sum(
        semantic_loss(latents, table, fitting >= threshold)
        for latents, threshold in zip(asked, thresholds, strict=False)
    )


def dynamic(appearance: Float[Tensor, ""], semantic: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The weight that makes the semantic term as large as the others, without gradient."""
    return (appearance / semantic.clamp_min(torch.finfo(semantic.dtype).eps)).detach()
