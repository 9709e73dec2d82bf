"""LF-VILA: long-form video-language pre-training (Sun et al., NeurIPS 2022, arXiv 2210.06031).

A video of several clips and a paragraph with a sentence for each are encoded apart (stage one). Whole videos and whole
paragraphs are to agree, and so are clips and sentences that are near each other in time (`losses.temporal_contrast`).
The video encoder is a Swin transformer whose windows over time grow with depth, so that early layers are cheap and the
last ones see the whole video. In stage two a transformer over words and video is trained on top of the frozen encoders.

Read `LFVILA.training_step` first, then `model.LongVideoText` and `network.VideoSwin`.

The official code is microsoft/XPretrain, folder LF-VILA. Where it has a defect, this is what we do instead:
- it computes the local branch and then forgets it (its loop resets the local features at each later layer), so that its
  clips have the features of the last level, and the branch is never trained: `local: last` in paper.yaml, since the
  published figures and weights come from that; `branch` is the branch;
- the first of the "others" in the loss over time is from the same video, and in a quarter of the cases the positive
  itself (`roll_from: 0`): ours are from other videos (1);
- its stage two cannot be built (it freezes the sentence embedding before it has made it): ours can;
- it leaves out of the optimiser all that is called "pooler", which feeds every head of stage two: ours is trained;
- it puts frozen layers of BERT into evaluation mode once, and the next `train()` undoes it: ours stay there;
- it takes a mean over no key where all keys are ties, which is NaN: ours is 0;
- a batch of two or three has a "mismatched" video that is its own: ours is refused.
Kept as it is, because weights come from it: gains of the norms of Swin and of the paragraph are decayed, as its list of
exceptions knows BERT's names only; a missing sentence counts in the mean of sentences, as what BERT makes of padding.
Where we differ without effect on results: attention in fused kernels; masked words alone go through their head.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped
from pydantic import Field
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.base import AnyRecipe, Decay, Momentum, PaperModule
from lightning_modules.datamodules.annotated_videos import LongVideos
from lightning_modules.datasets.tokenizers import TextTokenizer
from lightning_modules.datasets.video.annotation_files import OUTSIDE
from lightning_modules.layers.bert import NO_LABEL, mask_words, masked_word_loss
from lightning_modules.layers.forms import Pixels
from lightning_modules.layers.published import load_strictly
from lightning_modules.lf_vila.clips import EventClips
from lightning_modules.lf_vila.losses import draw_times, mismatched, perfect_loss, span_loss, temporal_contrast
from lightning_modules.lf_vila.model import LongVideoText, NetworkSettings, VideoClassifier
from lightning_modules.lf_vila.network import attention_elements
from lightning_modules.lf_vila.weights import ours, read_official
from lightning_modules.losses.contrastive import gather, info_nce
from lightning_modules.metrics.compute import count_macs, count_parameters
from lightning_modules.metrics.modality_flow import PAIRS
from lightning_modules.settings import Count, Natural, NonNegative, Positive, Share
from lightning_modules.tasks.augmentation import Preprocess
from lightning_modules.validation import judged, mean_over

TASKS = {  # head of the network
    "align": "none",
    "fuse": "words_and_match",
    "answer": "answers",
    "choose": "choices",
    "classify": None,  # no text: `VideoClassifier`
}
ASKED = {  # tasks of prepared data that each task of the network reads
    "align": ("captions", "sentences"),
    "fuse": ("captions", "sentences"),
    "answer": ("answers", "classes"),
    "choose": ("options",),
    "classify": ("classes",),
}
TOGETHER = ("fuse", "answer", "choose")  # tasks that read paragraphs and videos in one transformer
Task = Literal["align", "fuse", "answer", "choose", "classify"]
Batch = dict[str, Tensor]
VIDEO_ONLY = ("video", "frames", "size", "pool")  # arguments of `VideoClassifier`
UNDECAYED = ("bias", "LayerNorm.weight", "pos_embed", "relative_position_bias_table")  # official code: optimizer.py
LAST_SHARE = 0.01  # of the rate, at the end of the linear schedule (official code: lr_scheduler.py)
LENGTHS = (8, 16, 32, 64)  # frames at which attention is counted
SHOWN = 3  # videos that are kept with the predictions, to be looked at


class LFVILARecipe(AnyRecipe):
    """The form of the official code: AdamW; a warm-up from 0, then a line, steps or a cosine."""

    optimizer: Literal["adamw"]
    betas: Annotated[list[Momentum], Field(min_length=2, max_length=2)]
    schedule: Literal["linear", "steps", "cosine"]
    milestones: list[Share]  # of all steps, for the schedule `steps`
    decay: Decay  # factor at each
    min_lr: NonNegative  # at the end of the schedule `cosine`


class LFVILA(PaperModule):
    """LF-VILA in one of its trainings.

    Args:
        task: `align`: stage one, also retrieval; `fuse`: stage two; `answer`, `choose`, `classify`: the heads for open
            questions, for multiple choice, and for videos without language, trained as a whole.
        answers: number of them, for `answer` and `classify`; null for other tasks.
        network: arguments of `LongVideoText`, of which `classify` reads those of the video; the head is the task's.
        preprocess: see `layers.forms.Pixels`.
        temperature: of both contrasts.
        time_weight: of the loss over time; 0 for none, as for retrieval.
        keys: see `losses.temporal_contrast`, also for `values`, `others` and `roll_from`.
        masked: share of the words that stage two masks.
        match_weight: of the loss of mismatched videos in stage two, where that of masked words counts 1.
        frozen: whether stage two leaves what stage one has trained as it is, as in the paper.
        span_weight: of the loss of frames that matter, for `choose`; 0 where spans are not known.
        label_smoothing: of `answer`.
        official: a checkpoint of the official code to begin with, of stage one or of a later one; heads, and in stage
            two the third part of BERT, may be missing. Null for none.
        stage: first part of the name that the loss is logged under.

    Raises:
        ValueError: an option does not fit the task, or a checkpoint the network.
    """

    recipe_form = LFVILARecipe
    predictor = "lightning_modules.lf_vila.finder.Finder"

    def __init__(
        self,
        *,
        task: Task = "align",
        answers: Count | None = None,
        network: NetworkSettings,
        preprocess: Pixels,
        temperature: Positive = 0.05,
        time_weight: NonNegative = 0.25,
        keys: Count = 2,
        values: Annotated[Count, Field(ge=2)] = 2,
        others: Natural = 3,
        roll_from: Literal[0, 1] = 1,
        masked: Share = 0.15,
        match_weight: NonNegative = 10.0,
        frozen: bool = True,
        span_weight: NonNegative = 1.0,
        label_smoothing: Share = 0.0,
        official: str | None = None,
        stage: Literal["pretrain", "finetune"] = "pretrain",
    ):
        super().__init__()
        if (answers is not None) != (task in ("answer", "classify")):
            raise ValueError(
                f"model.answers is {answers}, but task {task!r} needs {'a number' if answers is None else 'null'}."
            )
        if task == "align" and time_weight and max(keys, values) > network["clips"]:
            raise ValueError(
                f"model.keys ({keys}) and model.values ({values}) are drawn from model.network.clips "
                f"({network['clips']}): expected at most as many, or time_weight 0."
            )
        self.task, self.scale = task, 1 / temperature
        self.time_weight, self.keys, self.values = time_weight, keys, values
        self.others, self.roll_from = others, roll_from
        self.masked, self.match_weight, self.span_weight = masked, match_weight, span_weight
        self.frozen = frozen and task == "fuse"
        self.label_smoothing, self.stage, self.num_answers = label_smoothing, stage, answers
        self.preprocess = Preprocess(**preprocess)
        if task == "classify":
            self.network = VideoClassifier(**{name: network[name] for name in VIDEO_ONLY}, answers=answers)
            self._begin(official)
            return
        aligned = task in ("align", "fuse")
        self.network = LongVideoText(**network, head=TASKS[task], aligned=aligned, answers=answers)
        if task == "align" and not time_weight:
            for part in (self.network.video_local_proj, self.network.text_local_proj):
                part.requires_grad_(False)
        if task == "fuse":
            for part in self.network.frozen_parts() if frozen else self.network.unread_parts():
                part.requires_grad_(False)
        self._begin(official)
        self.train()

    def _begin(self, official: str | None) -> None:
        if official is not None:
            self._take_over(ours(read_official(Path(official)), self.network), official)

    def train(self, mode: bool = True) -> "LFVILA":
        """Training or evaluation mode; what stage two leaves as it is stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            for part in self.network.frozen_parts():
                part.eval()
        return self

    def check_data(self, data: EventClips | LongVideos) -> None:
        """Refuse videos and paragraphs that the network cannot read.

        Raises:
            ValueError: what does not fit, with both values.
        """
        network = self.network
        expected = (3, network.frames, *network.size)
        if data.video_shape != expected:
            raise ValueError(
                f"the data has videos of {data.video_shape} (channels, frames, height, width), but model.network has "
                f"frames and size for {expected}."
            )
        if isinstance(data, LongVideos):
            self._check_asked(data)
        self._check_batches(data)
        if self.task == "classify":
            return
        if self.task == "align" and self.time_weight and data.sentences != network.clips:
            raise ValueError(
                f"the data has {data.sentences} sentences of each video, but model.network.clips is {network.clips}: "
                "set them alike for the loss over time, or time_weight to 0."
            )
        embeddings = network.text_encoder.bert.embeddings.word_embeddings
        if len(data.tokenizer) > embeddings.num_embeddings:
            raise ValueError(
                f"the tokenizer has {len(data.tokenizer)} ids, but BERT knows {embeddings.num_embeddings}: set "
                "model.network.bert.sizes.vocab_size."
            )
        self.tokenizer = data.tokenizer  # whose mask and special tokens stage two needs

    def _check_asked(self, data: LongVideos) -> None:
        """Refuse another task, more answers, or no texts."""
        if data.task not in ASKED[self.task]:
            raise ValueError(
                f"the data has {data.task}, but model.task is {self.task!r}, expected {' or '.join(ASKED[self.task])}."
            )
        if self.num_answers is not None and data.num_classes > self.num_answers:
            raise ValueError(
                f"the data has {data.num_classes} answers or classes, but model.answers is {self.num_answers}: raise "
                "it."
            )
        if self.task != "classify" and (data.tokenizer is None or data.sentences is None):
            raise ValueError(
                f"data.tokenizer is {data.tokenizer_name!r} and data.sentences is {data.sentences}, but task "
                f"{self.task!r} reads paragraphs: name a tokenizer, and how many sentences a row has."
            )

    def _check_batches(self, data: EventClips | LongVideos) -> None:
        """Refuse batches, also of the validation, in which a video has too few others."""
        sizes = {"batch_size": data.batch_size}
        if getattr(self, "recipe", {}).get("validate_every") and "val" in data.splits:
            sizes |= {
                "evaluation_batch_size": data.evaluation_batch_size,
                "splits.val.rows": len(data.rows["val"][1]),
            }
        for name, size in sizes.items():
            if size is not None and size < self._least_rows:
                raise ValueError(
                    f"data.{name} is {size}, but the losses of task {self.task!r} compare {self._least_rows} videos: "
                    "raise it."
                )

    @property
    def _least_rows(self) -> int:
        """Videos of a batch that the losses need, see `losses.temporal_contrast` and `losses.mismatched`."""
        if self.task == "align" and self.time_weight:
            return self.others + self.roll_from
        return 4 if self.task == "fuse" else 1

    def on_fit_start(self) -> None:
        """Refuse contrasts of batches in parts: a loss over pairs of a whole batch is no mean of those of its parts.

        Raises:
            ValueError: gradients are accumulated.
        """
        if self.task in ("align", "fuse") and self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"conf/trainer: accumulate is {self.trainer.accumulate_grad_batches}, but each row's negatives are the "
                "whole batch: set it to 1, and take more devices instead."
            )

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Float[Tensor, ""]:
        """The sum of the losses of the task."""
        losses = getattr(self, f"_{self.task}")(batch)
        loss = sum(losses.values())
        terms = {f"{self.stage}/loss {name}": x for name, x in losses.items()} if len(losses) > 1 else {}
        self.log_terms({f"{self.stage}/loss": loss, **terms})
        return loss

    def _align(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Stage one: whole videos with whole paragraphs, and clips with sentences."""
        names = ("video", "text", "clips", "sentences")
        features = dict(zip(names, self.features(batch), strict=True))
        for name, x in features.items():
            features[name] = gather(x.flatten(0, -2)).view(-1, *x.shape[1:])
        with torch.autocast(self.device.type, enabled=False):  # similarities in float32
            scale = features["video"].new_tensor(self.scale)
            losses = {"whole": info_nce(features["video"], features["text"], scale)}
            if self.time_weight:
                clips, sentences = features["clips"], features["sentences"]
                draw = draw_times(*clips.shape[:2], keys=self.keys, values=self.values, device=self.device)
                over_time = temporal_contrast(
                    clips, sentences, self.scale, draw, others=self.others, roll_from=self.roll_from
                )
                losses["over time"] = self.time_weight * over_time
        return losses

    def features(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Unit features of whole videos and paragraphs (batch dim), and of clips and sentences (batch times dim)."""
        video, clips = self.network.video_features(self.read(batch["video"]))
        text, sentences = self.network.text_features(batch["token_ids"], batch["attention_mask"])
        return video, text, clips, sentences

    def _fuse(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Stage two: masked words of the matched half, and which half is matched."""
        tokenizer, ids = self.tokenizer, batch["token_ids"]
        special = [tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.mask_id]
        read, labels = mask_words(
            ids.flatten(1), special=special, mask_id=tokenizer.mask_id, vocabulary=len(tokenizer), share=self.masked
        )
        with torch.no_grad() if self.frozen else nullcontext():
            texts = self.network.read_texts(read.view_as(ids), batch["attention_mask"])
            tokens, _ = self.network.read_video(self.read(batch["video"]))
        tokens, own = mismatched(tokens.flatten(1, 2))
        states = self.network.fuse(texts, tokens.unflatten(1, (self.network.frames, -1)))
        labels = labels.masked_fill(own[:, None] == 0, NO_LABEL)
        words, match = self.network.words_and_match(states, labels != NO_LABEL)
        return {
            "words": masked_word_loss(words.float(), labels[labels != NO_LABEL]),
            "match": self.match_weight * F.cross_entropy(match.float(), own),
        }

    def _answer(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        logits = self.answers(batch)
        smoothing = self.label_smoothing
        return {"answer": F.cross_entropy(logits, batch["labels"], label_smoothing=smoothing, ignore_index=OUTSIDE)}

    def _choose(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        scores, frames = self.choices(batch)
        losses = {"choice": F.cross_entropy(scores, batch["labels"])}
        if self.span_weight:
            if "frame_labels" not in batch:
                raise ValueError(
                    f"model.span_weight is {self.span_weight}, but the data knows no spans of answers: set it to 0."
                )
            losses["span"] = self.span_weight * span_loss(frames, batch["frame_labels"])
        return losses

    def _classify(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return {"class": F.cross_entropy(self.answers(batch), batch["labels"])}

    def answers(self, batch: Batch) -> Float[Tensor, "batch answers"]:
        """Logits of answers or classes."""
        video = self.read(batch["video"])
        if self.task == "classify":
            return self.network(video).float()
        texts = self.network.read_texts(batch["token_ids"], batch["attention_mask"])
        return self.network.answer(self.network.fuse(texts, self.network.read_video(video)[0])).float()

    def choices(self, batch: Batch) -> tuple[Float[Tensor, "batch choices"], Float[Tensor, "batch frames 2"]]:
        """Scores of the choices, whose ids are (batch choices sentences length), and logits of the frames' spans."""
        count = batch["token_ids"].shape[1]
        texts = self.network.read_texts(batch["token_ids"].flatten(0, 1), batch["attention_mask"].flatten(0, 1))
        tokens, _ = self.network.read_video(self.read(batch["video"]))
        states = self.network.fuse(texts, tokens.repeat_interleave(count, dim=0))
        scores, frames = self.network.choose(states, count)
        return scores.float(), frames.float()

    def matches(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Of stage two: how much more likely each paragraph belongs to its video than not, in nats."""
        texts = self.network.read_texts(batch["token_ids"], batch["attention_mask"])
        states = self.network.fuse(texts, self.network.read_video(self.read(batch["video"]))[0])
        no_words = states.new_zeros(len(states), 0, dtype=torch.bool)
        _, match = self.network.words_and_match(states, no_words)
        return (match[:, 1] - match[:, 0]).float()

    def read(self, video: Shaped[Tensor, "batch channels frames height width"]) -> Tensor:
        """Normalised pixels of stored ones."""
        frames = self.preprocess(rearrange(video, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=len(video))

    def forward(self, video: Shaped[Tensor, "batch channels frames height width"]) -> Tensor:
        """Of stored videos: unit features (batch dim) after stage one, logits where there is no language.

        Raises:
            ValueError: the task needs texts, too.
        """
        if self.task == "classify":
            return self.answers({"video": video})
        if not hasattr(self.network, "video_global_proj"):
            raise ValueError(f"task {self.task!r} answers about videos and texts: call `answers` or `choices` instead.")
        return self.network.video_features(self.read(video))[0]

    def validate(self, data: EventClips | LongVideos, batches: Iterable[Batch]) -> dict[str, Float[Tensor, ""]]:
        """The loss, and the share of clips that are nearest to their own sentence in their paragraph (task `align`).

        A last batch, or one with many broken videos, in which a video has too few others is left out.
        """

        def measure(batch: Batch) -> dict[str, Float[Tensor, ""]]:
            found = {"loss": sum(getattr(self, f"_{self.task}")(batch).values())}
            if self.task == "align":
                *_, clips, sentences = self.features(batch)
                if clips.shape[1] == sentences.shape[1]:
                    own = torch.arange(clips.shape[1], device=clips.device)
                    found["alignment"] = ((clips @ sentences.mT).argmax(2) == own).float().mean()
            return found

        return mean_over((batch for batch in batches if len(batch["video"]) >= self._least_rows), measure)

    @torch.no_grad()
    def predictions(self, data: EventClips | LongVideos, device: torch.device) -> dict[str, Tensor]:
        """What `evaluation.evaluate` reads of the split to judge, by task.

        `align`: unit features `video` and `text` (rows dim), `clips` and `sentences` (rows times dim), and `permuted`,
        those of the same sentences in another order, where the data has them. `fuse`: see `matches`: `own`, `other`
        (videos of another half of the batch) and `permuted`. `answer`, `classify`: `logits`. `choose`: `logits`, and
        `frames`, logits of the second class for each frame. Where paragraphs and videos are read together also
        `flow/...`, see `flows`. Also `labels`, `frame_labels` and `group` of the data; of drawn videos, which have
        groups, the pixels of the first as `shown` (videos frames height width 3), with the `said` ids of their
        paragraphs.
        """
        self.to(device).eval()
        found = defaultdict(list)
        for split in judged(data.rows):
            for number, batch in enumerate(data.evaluation_batches(split)):
                batch = {name: x.to(device) for name, x in batch.items() if isinstance(x, Tensor)}
                if self.task in TOGETHER and number == 0:
                    for name, x in self.flows(batch, data.tokenizer).items():
                        found[f"{name}/{split}"].append(x.cpu())
                kept = {name: batch[name] for name in ("labels", "frame_labels", "group") if name in batch}
                if self.task == "align" and "group" in batch and f"shown/{split}" not in found:
                    shown = rearrange(batch["video"][:SHOWN], "b c t h w -> b t h w c").contiguous()
                    found[f"shown/{split}"], found[f"said/{split}"] = [shown.cpu()], [batch["token_ids"][:SHOWN].cpu()]
                for name, x in {**getattr(self, f"_predict_{self.task}")(batch), **kept}.items():
                    found[f"{name}/{split}"].append(x.cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _predict_align(self, batch: Batch) -> dict[str, Tensor]:
        found = dict(zip(("video", "text", "clips", "sentences"), self.features(batch), strict=True))
        if "permuted_token_ids" in batch:
            other = batch["permuted_token_ids"], batch["permuted_attention_mask"]
            found["permuted"] = self.network.text_features(*other)[0]
        return found

    def _predict_fuse(self, batch: Batch) -> dict[str, Tensor]:
        elsewhere = batch["video"].roll(max(1, len(batch["video"]) // 2), 0)
        found = {"own": self.matches(batch), "other": self.matches({**batch, "video": elsewhere})}
        if "permuted_token_ids" in batch:
            other = {name: batch[f"permuted_{name}"] for name in ("token_ids", "attention_mask")}
            found["permuted"] = self.matches({**batch, **other})
        return found

    def flows(self, batch: Batch, tokenizer: TextTokenizer) -> dict[str, Float[Tensor, "pairs ..."]]:
        """Inter-modality flow of the first paragraphs of a batch, nothing masked, none without words.

        Not of the paper: `metrics/modality_flow.py` says what it is. Of choices the right one is read.

        Returns:
            `flow/<pairs>/<name>`, see `LongVideoText.flow`: `own` videos, those of another half of the rows (`other`),
            and own ones with ordinary words alone as language (`content`), without the token of the paragraph.
        """
        token_ids, attention_mask = batch["token_ids"], batch["attention_mask"]
        if self.task == "choose":
            right = torch.arange(len(token_ids), device=token_ids.device), batch["labels"]
            token_ids, attention_mask = token_ids[right], attention_mask[right]
        special = torch.tensor([tokenizer.start_id, tokenizer.end_id], device=token_ids.device)
        ordinary = attention_mask & ~torch.isin(token_ids, special)
        rows = ordinary.any(2).any(1).nonzero()[:PAIRS, 0]
        if not len(rows):
            return {}
        texts = self.network.read_texts(token_ids[rows], attention_mask[rows])
        own, _ = self.network.read_video(self.read(batch["video"][rows]))
        other = own.roll(max(1, len(rows) // 2), 0)
        content = F.pad(ordinary[rows].flatten(1), [1, 0])
        found = {}
        for name, tokens, counted in (("own", own, None), ("other", other, None), ("content", own, content)):
            flow = self.network.flow(texts, tokens, counted)
            found |= {f"flow/{name}/{part}": x for part, x in flow.items()}
        return found

    def _predict_answer(self, batch: Batch) -> dict[str, Tensor]:
        return {"logits": self.answers(batch)}

    def _predict_classify(self, batch: Batch) -> dict[str, Tensor]:
        return {"logits": self.answers(batch)}

    def _predict_choose(self, batch: Batch) -> dict[str, Tensor]:
        scores, frames = self.choices(batch)
        return {"logits": scores, "frames": frames[..., 1] - frames[..., 0]}

    def facts(self) -> dict:
        """What it costs to read a video, also of other lengths, and the least that the loss over time can become."""
        network, found = self.network, {"task": self.task, "parameters": count_parameters(self)}
        found["macs_per_video"] = count_macs(network.video_encoder, (3, network.frames, *network.size))
        elements = {frames: attention_elements(network.video_encoder, frames, *network.size) for frames in LENGTHS}
        found["attention_elements"] = {str(frames): max(each) for frames, each in elements.items()}
        if self.task == "align" and self.time_weight:
            least = partial(perfect_loss, network.clips, self.scale, values=self.values, others=self.others)
            found["perfect_loss"], found["released_perfect_loss"] = least(roll_from=self.roll_from), least(roll_from=0)
        return found

    def parameter_groups(self) -> list[dict]:
        """All that is trained; what the official code does not decay is told by names, see `UNDECAYED`."""
        trained = [(name, x) for name, x in self.named_parameters() if x.requires_grad]
        free = {name for name, _ in trained if any(part in name for part in UNDECAYED)}
        return [
            {"params": [x for name, x in trained if name not in free]},
            {"params": [x for name, x in trained if name in free], "weight_decay": 0.0},
        ]

    def configure_optimizers(self) -> dict:
        """AdamW and the schedule."""
        optimizer = self._optimizer()
        schedule = learning_rate(self.recipe, int(self.trainer.estimated_stepping_batches))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, schedule), "interval": "step"},
        }

    def export(self) -> dict[str, Tensor]:
        """The weights under the official names."""
        return self.network.state_dict()

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights as `export` gives them."""
        load_strictly(self.network, weights, "exported weights")

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what another training has of this network; heads, and the third part of BERT, may be new.

        Raises:
            ValueError: it is of another architecture.
        """
        self._take_over(weights, "the pre-trained network")

    def _take_over(self, weights: Mapping[str, Tensor], what: str) -> None:
        new = ("video_token_pos.*", "classifier.*", "text_encoder.classifier.*", "text_encoder.span_classifier.*")
        if self.task != "classify" and not any(name.startswith("video_token_pos.") for name in weights):
            layers = range(self.network.together, self.network.text_encoder.config.num_hidden_layers)
            third = [f"text_encoder.bert.encoder.layer.{number}.*" for number in layers]
            new += (*third, "text_encoder.bert.pooler.*", "text_encoder.cls.*")
        unused = ("text_encoder.*", "*_proj.*", "sent_embedding.*", "video_token_pos.*")
        load_strictly(self.network, weights, what, unused=unused, new=new)


def learning_rate(recipe: Mapping[str, object], total: int) -> Callable[[int], float]:
    """The factor on `lr` at each step: a warm-up from 0, then the named schedule, as in the official code and timm.

    `linear` goes down to `LAST_SHARE` after the warm-up; `steps` and `cosine` count from the first step.
    """
    warmup = int(recipe["warmup"] * total)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if recipe["schedule"] == "linear":
            return 1 - (1 - LAST_SHARE) * (step - warmup) / max(1, total - warmup)
        if recipe["schedule"] == "steps":
            return recipe["decay"] ** sum(step >= int(share * total) for share in recipe["milestones"])
        floor = recipe["min_lr"] / recipe["lr"]
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

    return factor
