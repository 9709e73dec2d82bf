"""LF-VILA's network: Video-Swin, a BERT in three parts, and what joins them. Parameters carry the official names."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.layers.bert import make_bert, run_layers
from lightning_modules.layers.forms import BertPart
from lightning_modules.lf_vila.network import VideoSettings, VideoSwin
from lightning_modules.lf_vila.weights import make_video_swin
from lightning_modules.metrics.modality_flow import projected, side_by_side, watching
from lightning_modules.settings import STRICT, Count

Pair = Annotated[list[Count], Field(min_length=2, max_length=2)]  # rows, columns
Parts = Annotated[list[Count], Field(min_length=3, max_length=3)]
Head = Literal["none", "words_and_match", "answers", "choices"]
Local = Literal["branch", "last"]


class NetworkSettings(TypedDict):
    """Settings of `LongVideoText`; `VideoClassifier` reads those of the video."""

    __pydantic_config__ = STRICT
    video: VideoSettings
    bert: BertPart
    layers: Parts
    sentences: Count
    clips: Count
    frames: Count
    size: Pair
    pool: Pair
    local: Local


class Texts(NamedTuple):
    """What the text encoder says of paragraphs.

    `sentences`: the [CLS] of each sentence, read alone. `states`: a token for the whole paragraph, then the words of
    all sentences; `mask` is True where there is a token.
    """

    sentences: Float[Tensor, "batch sentences dim"]
    states: Float[Tensor, "batch tokens dim"]
    mask: Bool[Tensor, "batch tokens"]


class SentenceEmbedding(nn.Module):
    """Tells the words of a paragraph their place in it, and the number of their sentence."""

    def __init__(self, dim: int, *, positions: int, sentences: int, eps: float, dropout: float):
        super().__init__()
        self.position_embeddings = nn.Embedding(positions, dim)
        self.segment_embeddings = nn.Embedding(sentences, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, words: Float[Tensor, "batch sentences length dim"]
    ) -> Float[Tensor, "batch sentences length dim"]:
        """The words with both.

        Raises:
            ValueError: there are more sentences, or more words, than it has embeddings for.
        """
        _, sentences, length, _ = words.shape
        found, known = (
            (sentences, sentences * length),
            (
                self.segment_embeddings.num_embeddings,
                self.position_embeddings.num_embeddings,
            ),
        )
        if found[0] > known[0] or found[1] > known[1]:
            raise ValueError(
                f"paragraphs of {sentences} sentences of {length} tokens do not fit the {known[0]} sentences and "
                f"{known[1]} tokens that the model knows: shorten data.text_length or data.sentences."
            )
        places = self.position_embeddings.weight[: sentences * length].unflatten(0, (sentences, length))
        return self.dropout(self.norm(words + places + self.segment_embeddings.weight[:sentences, None]))


class VideoTokens(nn.Module):
    """Tells the tokens of a video their place within the frame and their frame, before they join the words."""

    def __init__(self, dim: int, *, frames: int, patches: int):
        super().__init__()
        self.s_pos_embed = nn.Parameter(0.02 * torch.randn(1, 1, patches, dim))
        self.t_pos_embed = nn.Parameter(0.02 * torch.randn(1, frames, 1, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Float[Tensor, "batch frames patches dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The tokens in a row, frame by frame."""
        return self.norm(tokens + self.s_pos_embed + self.t_pos_embed).flatten(1, 2)


class LongVideoText(nn.Module):
    """Videos and paragraphs: encoded apart, and with a head also together.

    Args:
        video: arguments of `make_video_swin`.
        bert: arguments of `make_bert`.
        layers: of the BERT that read each sentence alone, the whole paragraph, and paragraph and video together.
        sentences: most of a paragraph.
        clips: equal parts of a video, as many as a paragraph has sentences in the loss over time.
        frames: that are read of a video.
        size: height and width of a frame.
        pool: rows and columns of the last map over which a maximum is taken, at each of its places.
        local: where the features of clips come from, see `VideoSwin`: `branch`, which leaves before windows exceed a
            clip, or `last`, the last level.
        aligned: whether it has the four projections of stage one.
        head: `none` where paragraph and video are never read together, so that the BERT ends with its second part;
            `words_and_match`: masked words, and whether video and paragraph belong together; `answers`: a class for
            each answer; `choices`: a score for each paragraph of a video, and for each frame whether it matters.
        answers: number of classes of `answers`.

    Raises:
        ValueError: frames are not as many in each clip, `pool` is larger than the last map, widths differ, or BERT has
            another number of layers.
    """

    def __init__(
        self,
        *,
        video: Mapping[str, object],
        bert: Mapping[str, object],
        layers: Parts,
        sentences: Count,
        clips: Count,
        frames: Count,
        size: Pair,
        pool: Pair,
        local: Local = "branch",
        aligned: bool = True,
        head: Head = "none",
        answers: Count | None = None,
    ):
        super().__init__()
        if frames % clips:
            raise ValueError(f"frames ({frames}) must be a multiple of clips ({clips}): as many of each clip.")
        self.video_encoder = make_video_swin(**video)
        patches = patches_of(self.video_encoder, frames, size, pool)
        self.text_encoder = text = make_bert(**bert)
        config = text.config
        if self.video_encoder.dim != config.hidden_size:
            raise ValueError(
                f"the last width of the video encoder is {self.video_encoder.dim}, but BERT's is {config.hidden_size}: "
                "make them equal."
            )
        if sum(layers) != config.num_hidden_layers:
            raise ValueError(f"layers ({layers}) must add up to the {config.num_hidden_layers} layers of BERT.")
        dim = config.hidden_size
        self.clips, self.frames, self.size, self.pool, self.local = clips, frames, tuple(size), tuple(pool), local
        self.alone, self.together = layers[0], layers[0] + layers[1]
        self.sent_embedding = SentenceEmbedding(
            dim,
            positions=config.max_position_embeddings,
            sentences=sentences,
            eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
        )
        self.sent_embedding.position_embeddings.weight = nn.Parameter(
            text.bert.embeddings.position_embeddings.weight.detach().clone()
        )
        if local == "last" or self.video_encoder.leaves is None:
            for part in (self.video_encoder.local_feat_proj, self.video_encoder.norm_local):
                part.requires_grad_(False)
        if aligned:
            for name in ("video_local_proj", "text_local_proj", "video_global_proj", "text_global_proj"):
                setattr(self, name, nn.Linear(dim, dim))
        if head == "none":
            text.bert.encoder.layer = text.bert.encoder.layer[: self.together]
            text.bert.pooler = None
        else:
            self.video_token_pos = VideoTokens(dim, frames=frames, patches=patches)
        if head == "words_and_match":
            del text.cls.predictions.bias  # the same tensor as that of its decoder
        else:
            del text.cls
        if head in ("answers", "choices"):
            text.dropout = nn.Dropout(config.hidden_dropout_prob)
            text.classifier = _normal(nn.Linear(dim, answers or 1), config.initializer_range)
        if head == "choices":
            text.span_classifier = _normal(nn.Linear(dim, 2), config.initializer_range)

    def read_video(
        self, video: Float[Tensor, "batch 3 frames height width"]
    ) -> tuple[Float[Tensor, "batch frames patches dim"], Float[Tensor, "batch frames patches dim"]]:
        """Tokens of normalised videos, and those from which the features of clips come.

        Raises:
            ValueError: the frames are of another size than the network was built for, or not as many in each clip.
        """
        frames, *size = video.shape[2:]
        if tuple(size) != self.size or frames % self.clips:
            raise ValueError(
                f"videos of {frames} frames of {tuple(size)} do not fit a network for frames of {self.size}, as many "
                f"in each of {self.clips} clips."
            )
        whole, local = self.video_encoder(video)
        tokens = self._pooled(whole)
        return tokens, self._pooled(local) if self.local == "branch" else tokens

    def _pooled(self, x: Float[Tensor, "batch t h w dim"]) -> Float[Tensor, "batch t patches dim"]:
        pooled = F.max_pool2d(rearrange(x, "b t h w d -> (b t) d h w"), self.pool, stride=1)
        return rearrange(pooled, "(b t) d h w -> b t (h w) d", b=len(x))

    def of_clips(self, tokens: Float[Tensor, "batch frames patches dim"]) -> Float[Tensor, "batch clips dim"]:
        """Mean over the tokens of each clip."""
        return rearrange(tokens, "b (c t) p d -> b c (t p) d", c=self.clips).mean(2)

    def read_texts(
        self, token_ids: Int[Tensor, "batch sentences length"], attention_mask: Bool[Tensor, "batch sentences length"]
    ) -> Texts:
        """Sentences alone, then the paragraph. A sentence that is missing is all padding, which it then reads."""
        bert, (count, sentences, _) = self.text_encoder.bert, token_ids.shape
        seen = attention_mask | ~attention_mask.any(2, keepdim=True)
        words = bert.embeddings(token_ids.flatten(0, 1))
        words = run_layers(bert.encoder.layer[: self.alone], words, seen.flatten(0, 1))
        words = words.unflatten(0, (count, sentences))
        placed = self.sent_embedding(words)
        states = torch.cat([placed[:, :, 0].mean(1, keepdim=True), placed.flatten(1, 2)], dim=1)
        mask = F.pad(attention_mask.flatten(1), [1, 0], value=True)
        states = run_layers(bert.encoder.layer[self.alone : self.together], states, mask)
        return Texts(words[:, :, 0], states, mask)

    def video_features(
        self, video: Float[Tensor, "batch 3 frames height width"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch clips dim"]]:
        """Unit features of whole videos and of their clips."""
        tokens, local = self.read_video(video)
        whole = self.video_global_proj(self.of_clips(tokens).mean(1))
        return _unit(whole), _unit(self.video_local_proj(self.of_clips(local)))

    def text_features(
        self, token_ids: Int[Tensor, "batch sentences length"], attention_mask: Bool[Tensor, "batch sentences length"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch sentences dim"]]:
        """Unit features of paragraphs and of their sentences."""
        texts = self.read_texts(token_ids, attention_mask)
        return _unit(self.text_global_proj(texts.states[:, 0])), _unit(self.text_local_proj(texts.sentences))

    def fuse(
        self, texts: Texts, tokens: Float[Tensor, "batch frames patches dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Paragraphs and videos read together: the token of the paragraph, its words, then the video."""
        seen = self.video_token_pos(tokens)
        mask = F.pad(texts.mask, [0, seen.shape[1]], value=True)
        layers = self.text_encoder.bert.encoder.layer[self.together :]
        return run_layers(layers, torch.cat([texts.states, seen], dim=1), mask)

    def flow(
        self,
        texts: Texts,
        tokens: Float[Tensor, "batch frames patches dim"],
        counted: Bool[Tensor, "batch tokens"] | None = None,
    ) -> dict[str, Float[Tensor, "batch ..."]]:
        """Inter-modality flow of what `fuse` reads, see `modality_flow.FlowMeter.columns`.

        Args:
            texts: see `fuse`.
            tokens: likewise.
            counted: which of `texts.states` count as language; null for all but padding.
        """
        vision = texts.mask.new_ones(len(tokens), tokens.shape[1] * tokens.shape[2])
        meter = side_by_side(texts.mask if counted is None else counted, vision, texts.mask)
        layers = self.text_encoder.bert.encoder.layer[self.together :]
        with watching((layer.attention.self for layer in layers), meter, projected):
            self.fuse(texts, tokens)
        return meter.columns()

    def words_and_match(
        self, states: Float[Tensor, "batch tokens dim"], drawn: Bool[Tensor, "batch words"]
    ) -> tuple[Float[Tensor, "drawn vocabulary"], Float[Tensor, "batch 2"]]:
        """Logits of the words that are drawn, and whether the two belong together (1) or not (0)."""
        head, words = self.text_encoder.cls, states[:, 1 : 1 + drawn.shape[1]]
        return head.predictions(words[drawn]), head.seq_relationship(self.text_encoder.bert.pooler(states))

    def answer(self, states: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch answers"]:
        """Logits of the answers."""
        text = self.text_encoder
        return text.classifier(text.dropout(text.bert.pooler(states)))

    def choose(
        self, states: Float[Tensor, "pairs tokens dim"], choices: int
    ) -> tuple[Float[Tensor, "batch choices"], Float[Tensor, "batch frames 2"]]:
        """Scores of the choices; and for each frame whether it matters (1), by the choice that says so most."""
        scores = rearrange(self.answer(states), "(b c) 1 -> b c", c=choices)
        patches = self.video_token_pos.s_pos_embed.shape[2]
        frames = rearrange(states[:, -self.frames * patches :], "n (t p) d -> n t p d", p=patches).mean(2)
        spans = rearrange(self.text_encoder.span_classifier(frames), "(b c) t k -> b c t k", c=choices)
        return scores, spans.amax(1)

    def frozen_parts(self) -> list[nn.Module]:
        """What stage two leaves as it is: all but the third part of BERT, the heads, and `video_token_pos`."""
        bert = self.text_encoder.bert
        encoders = [self.video_encoder, self.sent_embedding, bert.embeddings, *bert.encoder.layer[: self.together]]
        return [*self.unread_parts(), *encoders]

    def unread_parts(self) -> list[nn.Module]:
        """What nothing reads where paragraphs and videos are read together: the projections, and the local branch."""
        names = ("video_local_proj", "text_local_proj", "video_global_proj", "text_global_proj")
        own = [getattr(self, name) for name in names if hasattr(self, name)]
        return [*own, self.video_encoder.local_feat_proj, self.video_encoder.norm_local]


class VideoClassifier(nn.Module):
    """Classes of whole videos without language: Video-Swin, a projection of length 1, and a linear layer.

    The official network also projects single frames (`video_frame_proj`), of which no loss and no answer makes use.

    Args: see `LongVideoText`.
    """

    def __init__(self, *, video: Mapping[str, object], frames: Count, size: Pair, pool: Pair, answers: Count):
        super().__init__()
        self.video_encoder = make_video_swin(**video)
        patches_of(self.video_encoder, frames, size, pool)
        dim = self.video_encoder.dim
        self.frames, self.size, self.pool = frames, tuple(size), tuple(pool)
        self.video_global_proj = nn.Linear(dim, dim)
        self.classifier = nn.Linear(dim, answers)
        for part in (self.video_encoder.local_feat_proj, self.video_encoder.norm_local):
            part.requires_grad_(False)

    def forward(self, video: Float[Tensor, "batch 3 frames height width"]) -> Float[Tensor, "batch answers"]:
        """Logits."""
        x = rearrange(self.video_encoder(video)[0], "b t h w d -> (b t) d h w")
        pooled = F.max_pool2d(x, self.pool, stride=1)
        features = rearrange(pooled, "(b t) d h w -> b (t h w) d", b=len(video)).mean(1)
        return self.classifier(_unit(self.video_global_proj(features)))


def patches_of(encoder: VideoSwin, frames: int, size: Sequence[int], pool: Sequence[int]) -> int:
    """Tokens of each frame, after a maximum over `pool` at each place of the last map.

    Raises:
        ValueError: the last map is smaller, or a token is more than one frame.
    """
    if encoder.patch[0] != 1:
        raise ValueError(
            f"video.patch begins with {encoder.patch[0]} frames, expected 1: tokens belong to one frame each."
        )
    *_, (_, height, width) = encoder.maps(frames, *size)
    if pool[0] > height or pool[1] > width:
        raise ValueError(
            f"pool ({list(pool)}) is larger than the last map, {height} x {width} for frames of {list(size)}: lower it "
            "or enlarge size."
        )
    return (height - pool[0] + 1) * (width - pool[1] + 1)


def _unit(x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    return F.normalize(x.float(), dim=-1)


def _normal(linear: nn.Linear, std: float) -> nn.Linear:
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    return linear
