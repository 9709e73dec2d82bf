"""CLIP-ViP: adapting an image-text model to videos (Xue et al., ICLR 2023, arXiv 2209.06430).

CLIP becomes a video model with next to no new weights: a few proxy tokens see everything, the patches of a frame see
their frame and the proxies. So each frame is still read as CLIP reads an image, and the proxies carry what passes
between frames. It is trained further on videos with their subtitles, whose language is far from that of captions; so
the middle frame of each video gets a caption by an image captioner, and videos, frames and both texts learn together.

Read `ClipViP.training_step` first, then `VideoClip` and `proxy_guided_attention`.

Where paper and official code differ, the code's way is taken, since its weights and figures come from it:
- the paper's M proxies are CLIP's own CLS and M - 1 new tokens, and only CLS is read out: so here;
- post-pretraining of 1 epoch (ablations) or 3 (the final model) in the paper, 5 in the released configuration: the
  paper's 3 stand in paper.yaml, 5 in a comment;
- 5 epochs of MSR-VTT in the paper, 100 in the code, which draws one of 20 captions for each video and epoch: the same
  number of pairs, the code's form is kept;
- batches of 1024 on 32 GPUs, which the released B/16 configuration, 16 a GPU, would reach on 64 only: 1024 stands in
  paper.yaml;
- gains of LayerNorms are decayed, because the code's list of exceptions misses their names: kept, it made the weights;
- the code keeps the epoch that does best on the TEST videos, after dual softmax: not kept, the last epoch is taken;
- dual softmax is over all texts for video-to-text too, where it is no dual softmax: see `metrics/retrieval.py`;
- a missing auxiliary caption is the text "None" in the code: here clips without one are left out;
- a rate ten times higher for the logit scale and 70 text tokens for B/16 on DiDeMo: an override, as in the code.
Where we differ from the code: proxy attention is two fused kernels and no mask; a text is read without a padding mask,
because pads stand behind the token that is read out and the text tower is causal; ViP is built around a loaded CLIP,
because `from_pretrained` of transformers 5 leaves parameters that it does not know as uninitialised memory; frames are
resized as there, but stored in 8 bits, which moves a normalised pixel by 0.003 on average; with a `sample_rate`, frames
are drawn for training only.

An official checkpoint on files of your own, for `clip_vip.retriever`:

    clip = {"hub": "openai/clip-vit-base-patch32", "vision": None, "text": None, "projection_dim": None}
    pixels = {"pixel_scale": 255.0, "mean": CLIP_STATISTICS[0], "std": CLIP_STATISTICS[1]}
    model = ClipViP(clip=clip, preprocess=pixels, loss="V-C", sources={"C": "caption"})
    model.load_official(read_official(Path("pretrain_clipvip_base_32.pt")))
    retriever = Retriever(model, published_tokenizer(clip["hub"]), frames=12, image_size=224, text_length=70)
"""

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from transformers import CLIPModel

from lightning_modules.base import AnyRecipe, Momentum, PaperModule
from lightning_modules.datamodules.video_file_texts import VideoFileTexts
from lightning_modules.datamodules.video_texts import VideoTexts
from lightning_modules.layers.clip import make_clip, sizes_of
from lightning_modules.layers.exported import Exported
from lightning_modules.layers.published import load_strictly, read_checkpoint
from lightning_modules.losses.contrastive import (
    dual_softmax_nce,
    gather,
    hard_negative_nce,
    info_nce,
    joint_info_nce,
    mil_nce,
    triplet,
)
from lightning_modules.metrics.compute import count_macs, count_parameters
from lightning_modules.metrics.retrieval import ranks
from lightning_modules.settings import Count, NonNegative, Positive
from lightning_modules.tasks.augmentation import Preprocess
from lightning_modules.validation import judged

ATTENTIONS = ("proxy", "joint", "mean")
# V video, F its middle frame, S subtitle, C caption. Between them `-` means both directions of InfoNCE.
LOSSES = {
    "V-S": ("V-S",),
    "V-C": ("V-C",),
    "F-C": ("F-C",),
    "V-S + V-C": ("V-S", "V-C"),
    "V-S + F-C": ("V-S", "F-C"),
    "V-S + V-C + F-C": ("V-S", "V-C", "F-C"),
    "VF-SC": ("VF-SC",),  # one batch of videos and frames
    "V-S,C": ("V-S,C",),  # see `joint_info_nce`
    "V-S,C + F-C": ("V-S,C", "F-C"),  # the paper's own
}
PAIR_LOSSES = {  # what `-` stands for
    "info_nce": info_nce,
    "dual_softmax": dual_softmax_nce,
    "hard_negatives": hard_negative_nce,
    "mil_nce": mil_nce,
    "triplet": triplet,
}
TEXT_TOWER = {  # parts that are not trained
    "trained": (),
    "frozen": ("text_model",),
    "frozen_with_projection": ("text_model", "text_projection"),
}
OFFICIAL_PREFIX = "clipmodel."


class ClipViPRecipe(AnyRecipe):
    """The form of the official code: AdamW, gradients clipped, warm-up and cosine with a guard."""

    optimizer: Literal["adamw", "adamw_eps_first"]
    betas: Annotated[list[Momentum], Field(min_length=2, max_length=2)]
    eps: Positive
    schedule: Literal["cosine_guarded"]
    guard_lr: NonNegative  # the rate where the cosine has come down to 0
    clip: Positive  # largest norm of the gradient
    logit_scale_rate: Positive  # rate of the logit scale, in units of `lr`


PairLoss = Callable[..., Tensor]  # first and second (rows dim), scale
Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # queries, keys, values (batch heads tokens d), dropout


def attend_to_all(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Every token sees every token."""
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


def attend_to_earlier(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """A token sees itself and those before it."""
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


def proxy_guided_attention(
    q: Float[Tensor, "batch heads tokens d"],
    k: Float[Tensor, "batch heads tokens d"],
    v: Float[Tensor, "batch heads tokens d"],
    dropout: float = 0.0,
    *,
    proxies: int,
    frames: int,
) -> Float[Tensor, "batch heads tokens d"]:
    """Proxies, which come first, see all tokens; a patch sees the proxies and the patches of its own frame.

    Two fused kernels; one with a mask would compute all pairs of tokens, of which 12 frames of ViT-B/32 need a tenth.
    """
    seen_by_all = F.scaled_dot_product_attention(q[:, :, :proxies], k, v, dropout_p=dropout)

    def by_frame(x: Tensor) -> Tensor:
        return rearrange(x[:, :, proxies:], "b h (t n) d -> (b t) h n d", t=frames)

    def with_proxies(x: Tensor) -> Tensor:
        return torch.cat([repeat(x[:, :, :proxies], "b h m d -> (b t) h m d", t=frames), by_frame(x)], dim=2)

    patches = F.scaled_dot_product_attention(by_frame(q), with_proxies(k), with_proxies(v), dropout_p=dropout)
    return torch.cat([seen_by_all, rearrange(patches, "(b t) h n d -> b h (t n) d", t=frames)], dim=2)


def run_layers(
    tower: nn.Module, x: Float[Tensor, "batch tokens dim"], attend: Attend
) -> Float[Tensor, "batch tokens dim"]:
    """The layers of a CLIP tower under another rule of who sees whom; norms, projections and MLPs are CLIP's."""
    for layer in tower.encoder.layers:
        attention, normed = layer.self_attn, layer.layer_norm1(x)
        q, k, v = (
            rearrange(project(normed), "b n (h d) -> b h n d", h=attention.num_heads)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = attend(q, k, v, attention.dropout if tower.training else 0.0)
        x = x + attention.out_proj(rearrange(mixed, "b h n d -> b n (h d)"))
        x = x + layer.mlp(layer.layer_norm2(x))
    return x


class VideoClip(nn.Module):
    """A CLIP that reads videos; an image is a video of one frame.

    Its new parameters are registered where the official code has them, so that the names in the state dict agree.

    Args:
        clip: an image-text model, whose weights are taken over.
        attention: `proxy`: see `proxy_guided_attention`; `joint`: every token sees every token; `mean`: CLIP on each
            frame, and the mean of their features, which cannot tell the order of frames.
        num_proxies: CLIP's CLS and the new tokens (the paper's M).
        frames: frames of a video, so the number of temporal embeddings, which other lengths get interpolated; `mean`
            has none.
        temporal_std: deviation of the temporal embeddings at the start; the official code begins with zeros, which
            take many steps to leave.
        temporal: whether there are temporal embeddings (official code: if_use_temporal_embed).
        position_std: deviation that the positions of patches begin with again, beside which times can be told; null
            leaves what the image-text model has.

    Raises:
        ValueError: an attention is unknown, or has no use for more proxies.
    """

    def __init__(
        self,
        clip: CLIPModel,
        *,
        attention: str,
        num_proxies: int,
        frames: int,
        temporal_std: float,
        temporal: bool = True,
        position_std: float | None = None,
    ):
        super().__init__()
        if attention not in ATTENTIONS:
            raise ValueError(f"attention ({attention!r}) must be one of {', '.join(ATTENTIONS)}.")
        if attention == "mean" and num_proxies != 1:
            raise ValueError(f"attention 'mean' reads each frame as CLIP does: num_proxies ({num_proxies}) must be 1.")
        self.clip, self.attention, self.num_proxies = clip, attention, num_proxies
        embeddings = clip.vision_model.embeddings
        if num_proxies > 1:
            embeddings.added_cls = nn.Parameter(torch.randn(num_proxies - 1, embeddings.embed_dim))
        if attention != "mean" and temporal:
            embeddings.temporal_embedding = nn.Parameter(temporal_std * torch.randn(1, frames, embeddings.embed_dim))
        if position_std is not None:
            nn.init.normal_(embeddings.position_embedding.weight, std=position_std)

    def encode_videos(self, video: Float[Tensor, "batch channels frames height width"]) -> Float[Tensor, "batch dim"]:
        """Unit features of normalised videos.

        Raises:
            ValueError: they are of another size than CLIP was built for.
        """
        if self.attention != "mean":
            return self._project(self._read_out(video))
        each = self._project(self._read_out(rearrange(video, "b c t h w -> (b t) c 1 h w")))
        return F.normalize(rearrange(each, "(b t) d -> b t d", b=len(video)).mean(1), dim=-1)

    def _read_out(self, video: Float[Tensor, "batch channels frames height width"]) -> Float[Tensor, "batch dim"]:
        """The first proxy after the last layer."""
        vision, frames = self.clip.vision_model, video.shape[2]
        attend = attend_to_all
        if self.attention == "proxy" and frames > 1:
            attend = partial(proxy_guided_attention, proxies=self.num_proxies, frames=frames)
        x = run_layers(vision, vision.pre_layrnorm(self.embed(video)), attend)
        return vision.post_layernorm(x[:, 0])

    def _project(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch projected"]:
        return F.normalize(self.clip.visual_projection(x).float(), dim=-1)

    def embed(self, video: Float[Tensor, "batch channels frames height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Proxies, then the patches of each frame, with their positions; time is told to patches only."""
        embeddings = self.clip.vision_model.embeddings
        size = embeddings.image_size
        expected = (embeddings.patch_embedding.in_channels, size, size)
        found = (video.shape[1], *video.shape[3:])
        if found != expected:
            raise ValueError(f"videos of {found} (channels, height, width) do not fit a CLIP for {expected}.")
        position = embeddings.position_embedding.weight
        patches = embeddings.patch_embedding(rearrange(video, "b c t h w -> (b t) c h w"))
        patches = rearrange(patches, "(b t) d h w -> b t (h w) d", b=len(video)) + position[1:]
        if hasattr(embeddings, "temporal_embedding"):
            times = resize_times(embeddings.temporal_embedding, video.shape[2])
            patches = patches + rearrange(times, "1 t d -> 1 t 1 d")
        proxies = embeddings.class_embedding[None]
        if self.num_proxies > 1:
            proxies = torch.cat([proxies, embeddings.added_cls])
        proxies = repeat(proxies + position[0], "m d -> b m d", b=len(video))
        return torch.cat([proxies, rearrange(patches, "b t n d -> b (t n) d")], dim=1)

    def encode_texts(self, token_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Unit features of texts, read out at the highest token id, which ends the text; pads follow it.

        Raises:
            ValueError: they are longer than the text tower has positions.
        """
        text = self.clip.text_model
        positions = text.embeddings.position_embedding.num_embeddings
        if token_ids.shape[1] > positions:
            raise ValueError(
                f"texts of {token_ids.shape[1]} tokens do not fit a CLIP for {positions}: let the tokenizer cut them."
            )
        x = text.final_layer_norm(run_layers(text, text.embeddings(token_ids), attend_to_earlier))
        ends = x[torch.arange(len(x), device=x.device), token_ids.argmax(dim=1)]
        return F.normalize(self.clip.text_projection(ends).float(), dim=-1)


def resize_times(times: Float[Tensor, "1 positions dim"], frames: int) -> Float[Tensor, "1 frames dim"]:
    """Temporal embeddings for another number of frames, linear between the centres of equal parts; one: the middle."""
    if times.shape[1] == frames:
        return times
    return F.interpolate(times.mT, size=frames, mode="linear", align_corners=False).mT


def read_official(path: Path) -> dict[str, Tensor]:
    """The state dict in an official checkpoint file, read without running any code of it.

    Raises:
        ValueError: the file holds more than tensors, or is no checkpoint of the official code.
    """
    state = read_checkpoint(path)
    if not isinstance(state, Mapping) or not any(str(key).startswith(OFFICIAL_PREFIX) for key in state):
        raise ValueError(f"{path} is no checkpoint of the official code, whose keys begin with {OFFICIAL_PREFIX!r}.")
    return dict(state)


class ClipViP(PaperModule):
    """A CLIP that is trained on videos and texts, before (`pretrain`) or on (`finetune`) the data it is judged on.

    Args:
        clip: arguments of `make_clip`.
        attention: see `VideoClip`, also for `num_proxies`, `frames`, `temporal_std`, `temporal` and `position_std`.
        preprocess: `pixel_scale`, `mean` and `std` of `Preprocess`; the official code augments nothing.
        loss: a name in `LOSSES`: which of video V, its middle frame F, subtitle S and caption C are to agree.
        sources: the kind of text in a batch that S and C of the loss stand for, such as `{S: subtitle, C: auxiliary}`;
            null for one that the loss does not speak of.
        pair_loss: what pairs are to minimise, a function in `losses.contrastive`: `info_nce`, `dual_softmax`,
            `hard_negatives`, `mil_nce` or `triplet`.
        pair_options: its further arguments, such as `{hardest: 10}`.
        logit_scale: logarithm of the inverse temperature at the start; weights that are loaded bring their own.
        override_scale: one that is set after weights have been loaded; null to keep theirs.
        learn_scale: whether it is trained. The official losses of a fixed temperature: `override_scale` 2.9957 for one
            of 0.05, or 0.
        max_scale: the largest inverse temperature.
        text_tower: `trained`, `frozen`, or `frozen_with_projection`.
        also_at: further numbers of frames at which the predictions read the videos.
        stage: first part of the name that the loss is logged under.

    Raises:
        ValueError: an option is unknown or contradicts another.
    """

    recipe_form = ClipViPRecipe

    def __init__(
        self,
        *,
        clip: dict,
        preprocess: dict,
        attention: str = "proxy",
        num_proxies: Count = 4,
        frames: Count = 12,
        temporal_std: NonNegative = 0.0,
        temporal: bool = True,
        position_std: Positive | None = None,
        loss: str = "V-S,C + F-C",
        sources: dict[str, str | None],
        pair_loss: Literal["info_nce", "dual_softmax", "hard_negatives", "mil_nce", "triplet"] = "info_nce",
        pair_options: Mapping[str, bool | int | float] = MappingProxyType({}),
        logit_scale: NonNegative = 4.6,
        override_scale: NonNegative | None = None,
        learn_scale: bool = True,
        max_scale: Positive = 200.0,
        text_tower: Literal["trained", "frozen", "frozen_with_projection"] = "trained",
        also_at: Sequence[Count] = (),
        stage: Literal["pretrain", "finetune", "zero_shot"] = "pretrain",
    ):
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss ({loss!r}) must be one of: {'; '.join(LOSSES)}.")
        sources = {letter: source for letter, source in sources.items() if source is not None}
        if needed := {letter for letter in loss if letter in "SC"} ^ set(sources):
            raise ValueError(
                f"loss {loss!r} and sources {sources} do not fit: {', '.join(sorted(needed))} is in one of them only."
            )
        if pair_loss != "info_nce" and "V-S,C" in LOSSES[loss]:
            raise ValueError(
                f"loss {loss!r} has the term V-S,C, which is InfoNCE: pair_loss ({pair_loss!r}) must be so."
            )
        self.preprocess = Preprocess(**preprocess)
        self.network = VideoClip(
            make_clip(**clip),
            attention=attention,
            num_proxies=num_proxies,
            frames=frames,
            temporal_std=temporal_std,
            temporal=temporal,
            position_std=position_std,
        )
        self.override_scale, self.pair_loss = override_scale, _with_options(pair_loss, pair_options)
        self._set_scale(logit_scale)
        self.network.clip.logit_scale.requires_grad_(learn_scale)
        for part in TEXT_TOWER[text_tower]:
            getattr(self.network.clip, part).requires_grad_(False)
        self.terms, self.sources, self.max_scale = LOSSES[loss], sources, max_scale
        self.frames, self.also_at, self.stage = frames, also_at, stage
        self.record = {
            "_target_": "lightning_modules.clip_vip.module.ClipViP",
            "clip": sizes_of(self.network.clip),
            "preprocess": preprocess,
            "attention": attention,
            "num_proxies": num_proxies,
            "frames": frames,
            "temporal": temporal,
            "loss": loss,
            "sources": sources,
        }

    def check_data(self, data: VideoTexts | VideoFileTexts) -> None:
        """Refuse videos and texts that the towers cannot read, and sources that the batches do not have.

        Raises:
            ValueError: what does not fit, with both values.
        """
        config = self.network.clip.config
        vision, text = config.vision_config, config.text_config
        channels, _, *size = data.video_shape
        if (channels, *size) != (vision.num_channels, vision.image_size, vision.image_size):
            raise ValueError(
                f"the data has frames of {channels, *size} (channels, height, width), but model.clip reads "
                f"{vision.num_channels, vision.image_size, vision.image_size}."
            )
        if data.text_length > text.max_position_embeddings:
            raise ValueError(
                f"data.text_length ({data.text_length}) is more than the {text.max_position_embeddings} positions of "
                "model.clip."
            )
        if len(data.tokenizer) > text.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(data.tokenizer)} ids, but model.clip.text knows {text.vocab_size}: set its "
                "vocab_size."
            )
        several = isinstance(data, VideoFileTexts) and data.sentences > 1
        if several and self.pair_loss.func is not mil_nce:
            raise ValueError(f"data.sentences is {data.sentences}, which only pair_loss 'mil_nce' takes: set it to 1.")
        frames_too = {"auxiliary"} if any("F" in term for term in self.terms) else set()  # batches with middle frames
        if missing := sorted({*self.sources.values(), *frames_too} - {*data.sources}):
            raise ValueError(
                f"data.sources ({', '.join(data.sources)}) lacks {', '.join(missing)}, which the loss needs."
            )

    def on_fit_start(self) -> None:
        """Refuse batches in parts: a loss over pairs of a whole batch is no mean of those of its parts.

        Raises:
            ValueError: gradients are accumulated.
        """
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"conf/trainer: accumulate is {self.trainer.accumulate_grad_batches}, but each row's negatives are the "
                "whole batch: set it to 1, and take more devices instead."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Encode what the loss speaks of, gather it over all processes, let the pairs agree."""
        with torch.no_grad():
            self.network.clip.logit_scale.clamp_(0, math.log(self.max_scale))
        features = {name: gather(x) for name, x in self.features(batch).items()}
        scale = self.network.clip.logit_scale.float().exp()
        losses = self.contrasts(features, scale)
        loss = sum(losses.values())
        named = {f"{self.stage}/loss {term}": x for term, x in losses.items()} if len(losses) > 1 else {}
        self.log_terms({f"{self.stage}/loss": loss, f"{self.stage}/scale": scale, **named})
        return loss

    def contrasts(
        self, features: Mapping[str, Float[Tensor, "rows dim"]], scale: Float[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        """Each term of the loss."""
        with torch.autocast(self.device.type, enabled=False):  # similarities in float32
            return {term: contrast(term, features, scale, self.pair_loss) for term in self.terms}

    def validate(
        self, data: VideoTexts | VideoFileTexts, batches: Iterable[dict[str, Tensor]]
    ) -> dict[str, Float[Tensor, ""]]:
        """The loss in batches of the training's size, and how well a text finds its video among all.

        `reciprocal_rank` is the mean of 1 / rank for each kind of text, among the videos or, where the loss has none,
        among the middle frames. A text that several of them have is one query.
        """
        parts, texts = defaultdict(list), defaultdict(list)
        for batch in batches:
            for letter, x in self.features(batch).items():
                parts[letter].append(x)
            for letter, source in self.sources.items():
                texts[letter].append(batch[f"{source}_token_ids"])
        features = {letter: torch.cat(part) for letter, part in parts.items()}
        seen = features["V" if "V" in features else "F"]
        scale = self.network.clip.logit_scale.float().clamp(0, math.log(self.max_scale)).exp()
        size = min(data.batch_size, len(seen))
        losses = [
            sum(self.contrasts({letter: x[start : start + size] for letter, x in features.items()}, scale).values())
            for start in range(0, len(seen) - size + 1, size)
        ]
        found = {"loss": torch.stack(losses).mean()}
        for letter in self.sources:
            _, belongs = torch.cat(texts[letter]).unique(dim=0, return_inverse=True)
            first = torch.stack([(belongs == k).nonzero()[0, 0] for k in range(int(belongs.max()) + 1)])
            similarity = features[letter][first].float() @ seen.float().T
            places = ranks(similarity.cpu().numpy(), np.arange(len(first)), belongs.cpu().numpy())
            found[f"reciprocal_rank {letter}"] = torch.tensor(1 / places).mean()
        return found

    def features(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, "batch dim"]]:
        """Unit features of all that the loss speaks of, by letter."""
        letters = {letter for term in self.terms for letter in term if letter.isalpha()}
        ids = {letter: batch[f"{source}_token_ids"] for letter, source in self.sources.items()}
        found = {letter: self.encode_texts(x.flatten(0, -2)) for letter, x in ids.items()}  # a video may have several
        if "V" in letters:
            found["V"] = self(batch["video"])
        if "F" in letters:
            found["F"] = self(rearrange(batch["images"], "b c h w -> b c 1 h w"))
        return found

    def forward(self, video: Shaped[Tensor, "batch channels frames height width"]) -> Float[Tensor, "batch dim"]:
        """Unit features of videos as stored pixels."""
        frames = self.preprocess(rearrange(video, "b c t h w -> (b t) c h w"))
        return self.network.encode_videos(rearrange(frames, "(b t) c h w -> b c t h w", b=len(video)))

    @torch.no_grad()
    def predictions(self, data: VideoTexts | VideoFileTexts, device: torch.device) -> dict[str, Tensor]:
        """Features of `videos`, also `videos@<frames>`, and of the different captions, `texts`, of the split to judge.

        `belongs` says which text is a video's own; `labels` are the data's, where it has any.
        """
        self.to(device).eval()
        found = {}
        for split in judged(data.rows) if "caption" in data.sources else ():
            columns = self._read(data, split, device)
            texts, columns["belongs"] = columns.pop("token_ids").unique(dim=0, return_inverse=True)
            columns["texts"] = torch.cat([self.encode_texts(x.to(device)).cpu() for x in texts.split(256)])
            for count in self.also_at:
                other = copy.copy(data)
                other.frames = count
                columns[f"videos@{count}"] = self._read(other, split, device)["videos"]
            found |= {f"{name}/{split}": x for name, x in columns.items()}
        return found

    def _read(self, data: VideoTexts | VideoFileTexts, split: str, device: torch.device) -> dict[str, Tensor]:
        parts = defaultdict(list)
        for batch in data.evaluation_batches(split):
            parts["videos"].append(self(batch["video"].to(device)).cpu())
            parts["token_ids"].append(batch["caption_token_ids"])
            if "labels" in batch:
                parts["labels"].append(batch["labels"])
        return {name: torch.cat(part) for name, part in parts.items()}

    def facts(self) -> dict:
        """What it costs to read a video, how large the network is, and all that is needed to build it again."""
        vision = self.network.clip.config.vision_config
        shape = (vision.num_channels, self.frames, vision.image_size, vision.image_size)
        return {"parameters": count_parameters(self), "macs_per_video": count_macs(self, shape), "model": self.record}

    def encode_texts(self, token_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Unit features of texts, see `VideoClip.encode_texts`."""
        return self.network.encode_texts(token_ids)

    def parameter_groups(self) -> list[dict]:
        """Biases and the logit scale are not decayed; gains of norms are, as in the official code."""
        scale = self.network.clip.logit_scale
        trained = [(name, x) for name, x in self.named_parameters() if x.requires_grad and x is not scale]
        rate = self.recipe["lr"] * self.recipe["logit_scale_rate"]
        return [
            {"params": [x for name, x in trained if not name.endswith("bias")]},
            {"params": [x for name, x in trained if name.endswith("bias")], "weight_decay": 0.0},
            {"params": [scale] * scale.requires_grad, "weight_decay": 0.0, "lr": rate},
        ]

    def export(self) -> dict[str, Tensor]:
        """The model under the names of `transformers`, with the new parameters where they have a use."""
        return self.network.clip.state_dict()

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a model as `export` gives it."""
        load_strictly(self.network.clip, weights, "exported weights")

    def to_transformers(self) -> Exported:
        """A CLIP that reads one frame as this model does: the temporal embedding becomes part of the positions.

        Raises:
            ValueError: there are further proxies, for which `CLIPModel` has no place.
        """
        clip, vip = copy.deepcopy(self.network.clip), self.network
        if vip.num_proxies > 1:
            raise ValueError(f"CLIPModel has no place for the {vip.num_proxies - 1} proxies beside CLS")
        embeddings = clip.vision_model.embeddings
        if hasattr(embeddings, "temporal_embedding"):
            with torch.no_grad():
                embeddings.position_embedding.weight[1:] += resize_times(embeddings.temporal_embedding, 1)[0]
            del embeddings.temporal_embedding
        clip.config.text_config.eos_token_id = 2  # `transformers` then reads a text out at its highest id, as we do
        clip.text_model.eos_token_id = 2
        usage = "found = model(pixel_values=pixels, input_ids=token_ids)  # found.image_embeds, found.text_embeds"
        return Exported(clip.eval(), self.preprocess.statistics, usage)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a CLIP, or a ViP; parameters that a CLIP does not have stay as they are.

        Raises:
            ValueError: it is of another architecture.
        """
        load_strictly(self.network.clip, weights, "the pre-trained CLIP", new=("*.added_cls", "*.temporal_embedding"))
        self._set_scale(self.override_scale)

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load an official checkpoint (see `read_official`), in whatever precision it is.

        Raises:
            ValueError: it is of another architecture, such as another size of patches.
        """
        ours = {
            key.removeprefix(OFFICIAL_PREFIX): x.float() for key, x in state.items() if x.numel()
        }  # or no new tokens
        load_strictly(self.network.clip, ours, "the official checkpoint", unused=("*.embeddings.position_ids",))
        self._set_scale(self.override_scale)

    def official(self) -> dict[str, Tensor]:
        """The state dict in the official layout, which also numbers the positions, and has new tokens even if none."""
        clip = self.network.clip
        embeddings = clip.vision_model.embeddings
        if self.network.attention == "mean":
            new = {}
        else:
            new = {"vision_model.embeddings.added_cls": embeddings.class_embedding.new_zeros(0, embeddings.embed_dim)}
        numbers = {
            f"{tower}.embeddings.position_ids": getattr(clip, tower).embeddings.position_ids
            for tower in ("text_model", "vision_model")
        }
        return {f"{OFFICIAL_PREFIX}{key}": x for key, x in {**new, **clip.state_dict(), **numbers}.items()}

    @torch.no_grad()
    def _set_scale(self, value: float | None) -> None:
        if value is not None:
            self.network.clip.logit_scale.fill_(value)

    def max_steps(self, data: LightningDataModule) -> int:
        """That of the data, which may keep smaller last batches."""
        return data.max_steps(self.recipe["epochs"]) if isinstance(data, VideoFileTexts) else -1


def _with_options(pair_loss: str, options: Mapping[str, object]) -> PairLoss:
    """The function with its further arguments.

    Raises:
        ValueError: one is unknown or missing.
    """
    function = PAIR_LOSSES[pair_loss]
    known = {name: x for name, x in inspect.signature(function).parameters.items() if x.kind is x.KEYWORD_ONLY}
    required = {name for name, x in known.items() if x.default is x.empty}
    if not required <= options.keys() <= known.keys():
        raise ValueError(
            f"pair_options ({', '.join(options) or 'none'}) do not fit pair_loss {pair_loss!r}, which takes "
            f"{', '.join(known) or 'none'}; required: {', '.join(sorted(required)) or 'none'}."
        )
    return partial(function, **options)


def contrast(
    term: str,
    features: Mapping[str, Float[Tensor, "rows dim"]],
    scale: Float[Tensor, ""],
    pair_loss: PairLoss = info_nce,
) -> Float[Tensor, ""]:
    """One term of a loss, see `LOSSES`."""
    if term == "V-S,C":
        return joint_info_nce(features["V"], features["S"], features["C"], scale)
    first, second = (torch.cat([features[letter] for letter in side]) for side in term.split("-"))
    return pair_loss(first, second, scale)
