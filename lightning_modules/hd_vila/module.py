"""HD-VILA: high-resolution video and language (Xue et al., CVPR 2022, arXiv 2111.10337).

Of a clip one frame is read at high resolution, for what things are, and its neighbours at a quarter of the sides, for
how they move. The two meet as maps of one grid: a transformer with divided attention over time and space reads the
sequence, and what it makes of the middle frame is joined with the sharp map. In stage one clips and sentences are to
agree as features (contrast); stage two freezes that, and the upper half of BERT reads sentences together with clips to
find masked words.

Read `HdVila.training_step` first, then `HdVila.maps` and `network.HdVilaNetwork.encode_clips`.

Where paper and official code differ, the code's way is taken:
- the released loader of pretraining gives neighbours at full size, which the model refuses (an `if` for an `elif`):
  here they have a quarter of the sides, as in the paper;
- the configurations say 10 epochs; the authors trained stage one for 6 at low and 1 at high resolution, and stage two
  for 3 (issue 3 of microsoft/XPretrain): 7 and 3 epochs stand in paper.yaml, all at high resolution;
- for MSR-VTT, its questions and TGIF the middle frame is a small one, enlarged (`middles: upsampled`): kept;
- the rate of dropout in the configurations (0.3 for MSRVTT-QA) is read by nothing: the 0.1 of BERT counts;
- after the last milestone the rate falls by the square of the factor: kept, no published recipe gets there;
- gains of the norms of TimeSformer are decayed, embeddings are not: kept.
Where we differ from the code: padding is not seen at all, where the code lowers it by 10,000; with low resolution alone
the middle frame is there, too, made smaller by the mean over 4 x 4 pixels; parameters that nothing reads are not built.
At tiny size all neighbours are such means, and the clips of a video follow one another.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.base import AnyRecipe, Momentum, PaperModule
from lightning_modules.datamodules.video_texts import VideoTexts
from lightning_modules.datasets.tokenizers import TextTokenizer, tokenizer_called
from lightning_modules.datasets.video.annotation_files import OUTSIDE
from lightning_modules.hd_vila.hybrid_clips import HybridClips
from lightning_modules.hd_vila.network import SMALLER, HdVilaNetwork, ResNetSettings, TimeSformerSettings
from lightning_modules.hd_vila.weights import load_hub_resnet, read_official, take_over
from lightning_modules.layers.bert import NO_LABEL, make_bert, mask_words, masked_word_loss
from lightning_modules.layers.forms import BertPart, Pixels
from lightning_modules.layers.published import load_strictly
from lightning_modules.losses.contrastive import gather, info_nce
from lightning_modules.metrics.compute import count_macs, count_parameters
from lightning_modules.metrics.modality_flow import PAIRS
from lightning_modules.settings import Count, NonNegative, Positive, Share
from lightning_modules.tasks.augmentation import Preprocess
from lightning_modules.validation import judged, mean_over

Batch = Mapping[str, Tensor]
Clips = tuple[Float[Tensor, "videos clips 3 height width"], Float[Tensor, "videos clips others 3 low_height low_width"]]
READ = {  # tasks of prepared data that each task of the network reads
    "contrast": ("captions", "sentences", "options"),
    "words": ("captions", "sentences"),
    "answers": ("answers",),
    "choice": ("options",),
}
SHOWN = 6  # videos that are kept with the predictions, to be looked at
UNDECAYED = ("bias", "LayerNorm.weight", "embed")  # parts of official names; gains of other norms are decayed
MILESTONE_FACTOR = 0.5


class HdVilaRecipe(AnyRecipe):
    """The form of the official code: AdamW in three groups, gradients clipped, warm-up, then a line or steps."""

    optimizer: Literal["adamw", "adamw_eps_first"]
    betas: Annotated[list[Momentum], Field(min_length=2, max_length=2)]
    eps: Positive
    schedule: Literal["linear", "milestones"]
    milestones: list[Count]  # epochs after which the rate is halved; without effect on `linear`
    guard_lr: NonNegative  # the rate where the line has come down to 0
    clip: Positive  # largest norm of the gradient
    cnn_weight_decay: NonNegative  # of both ResNets and the projections after them
    align_rate: Positive  # rate of TimeSformer, in units of `lr`
    align_weight_decay: NonNegative


class HdVila(PaperModule):
    """The hybrid encoder with BERT, trained for one task.

    Args:
        bert: arguments of `make_bert`.
        resnet: see `network.ResNetSettings`.
        timesformer: settings of `network.TimeSformer`.
        preprocess: see `layers.forms.Pixels`.
        streams: see `HdVilaNetwork`, also for `pool` and `num_answers`.
        task: `contrast` (stage one, retrieval), `words` (stage two: all but what it adds is frozen), `answers` to open
            questions, or `choice` among candidates; the last two read `labels` of the batch.
        size: height and width of a middle frame.
        clips: of a video in training; `HybridClips` may show more of them in evaluation.
        frames: of a clip; where `timesformer.frames` is another number, its times are interpolated.
        source: the kind of text that is read of batches of `VideoTexts`.
        temperature: of the contrast.
        loss_weight: of the sum over both directions; 0.5 for their mean.
        mask_share: of the words that are masked.
        tokenizer: that of the texts, which says what can be masked; null for the captioned world's words.
        official: a checkpoint of the official code to begin with; null for none.
        stage: first part of the name that the loss is logged under.

    Raises:
        ValueError: an option is unknown, or a checkpoint does not fit.
    """

    recipe_form = HdVilaRecipe
    predictor = "lightning_modules.hd_vila.ranker.Ranker"

    def __init__(
        self,
        *,
        bert: BertPart,
        resnet: ResNetSettings,
        timesformer: TimeSformerSettings,
        preprocess: Pixels,
        streams: Literal["hybrid", "high", "low"] = "hybrid",
        task: Literal["contrast", "words", "answers", "choice"] = "contrast",
        pool: Literal["lse", "mean", "max"] = "lse",
        num_answers: Count = 1,
        size: Annotated[Sequence[Count], Field(min_length=2, max_length=2)],
        clips: Count = 1,
        frames: Count = 7,
        source: str = "caption",
        temperature: Positive = 0.05,
        loss_weight: Positive = 0.5,
        mask_share: Share = 0.15,
        tokenizer: str | None = None,
        official: str | None = None,
        stage: Literal["pretrain", "finetune"] = "pretrain",
    ):
        super().__init__()
        hub = resnet.get("hub")
        self.preprocess = Preprocess(**preprocess)
        self.network = HdVilaNetwork(
            make_bert(**bert),
            resnet={name: value for name, value in resnet.items() if name != "hub"},
            timesformer=timesformer,
            streams=streams,
            task=task,
            pool=pool,
            num_answers=num_answers,
        )
        for name in ("cnn", "cnn_low") if hub is not None else ():
            if hasattr(self.network, name):
                load_hub_resnet(getattr(self.network, name), hub)
        if official is not None:
            take_over(self.network, read_official(Path(official)), official)
        self.task, self.size, self.clips, self.frames = task, tuple(size), clips, frames
        self.num_answers, self.source, self.stage = num_answers, source, stage
        self.temperature, self.loss_weight, self.mask_share = temperature, loss_weight, mask_share
        self.tokenizer_name = tokenizer
        if task == "words":
            for part in self._frozen():
                part.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        """What stage one has trained."""
        network, text = self.network, self.network.transformer
        text_only = [text.bert.embeddings, *text.bert.encoder.layer[: network.half], text.bert.pooler1]
        seeing = [part for name, part in network.named_children() if name != "transformer"]
        return [*seeing, *text_only, text.t_proj, text.v_proj]

    def train(self, mode: bool = True) -> "HdVila":
        """In stage two, what is frozen stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.task == "words":
            for part in self._frozen():
                part.eval()
        return self

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """That of the texts, for the masking."""
        return tokenizer_called(self.tokenizer_name)

    def check_data(self, data: VideoTexts | HybridClips) -> None:
        """Refuse videos and texts that the network cannot read.

        Raises:
            ValueError: what does not fit, with both values.
        """
        if isinstance(data, HybridClips):
            self._check_clips(data)
        else:
            self._check_videos(data)
        embeddings = self.network.transformer.bert.embeddings
        words, positions = embeddings.word_embeddings.num_embeddings, embeddings.position_embeddings.num_embeddings
        if data.text_length > positions:
            raise ValueError(f"data.text_length ({data.text_length}) is more than the {positions} positions of BERT.")
        if len(data.tokenizer) > words:
            raise ValueError(f"the tokenizer has {len(data.tokenizer)} ids, but BERT knows {words}: set vocab_size.")

    def _check_videos(self, data: VideoTexts) -> None:
        _, frames, *size = data.video_shape
        if tuple(size) != self.size:
            raise ValueError(
                f"the data has frames of {tuple(size)} (height, width), but model.size says {self.size}: give both one."
            )
        if frames != self.clips * self.frames:
            raise ValueError(
                f"the data shows {frames} frames of a video, expected {self.clips * self.frames}: model.clips "
                f"({self.clips}) times model.frames ({self.frames})."
            )
        if self.source not in data.sources:
            raise ValueError(f"data.sources ({', '.join(data.sources)}) lacks model.source ({self.source!r}).")

    def _check_clips(self, data: HybridClips) -> None:
        both = {
            "size": (data.middle_shape[1:], self.size),
            "clips": (data.clips, self.clips),
            "frames": (data.frames, self.frames),
        }
        for name, (shown, expected) in both.items():
            if shown != expected:
                raise ValueError(f"data.{name} is {shown}, but model.{name} is {expected}: expected the same.")
        if data.sentences is not None:
            raise ValueError(f"data.sentences is {data.sentences}, but the network reads one text: set it to null.")
        if data.task not in READ[self.task]:
            raise ValueError(
                f"the data has {data.task}, but model.task is {self.task!r}, expected {' or '.join(READ[self.task])}."
            )
        if data.tokenizer is None:
            raise ValueError("data.tokenizer is null, but every task reads texts: name it, and data.text_length.")
        if self.task == "answers" and data.num_classes > self.num_answers:
            raise ValueError(
                f"the data has {data.num_classes} answers, but model.num_answers is {self.num_answers}: raise it."
            )

    def on_fit_start(self) -> None:
        """Refuse batches in parts for the contrast: a loss over pairs of a batch is no mean of those of its parts.

        Raises:
            ValueError: gradients are accumulated.
        """
        if self.task == "contrast" and self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"conf/trainer: accumulate is {self.trainer.accumulate_grad_batches}, but each row's negatives are the "
                "whole batch: set it to 1, and take more devices instead."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Maps of the clips and states of the text; then what the task makes of them."""
        loss = self.loss(batch)
        self.log_terms({f"{self.stage}/loss": loss})
        return loss

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """The loss of the task."""
        clips, (token_ids, mask) = self.clips_of(batch), self.texts_of(batch)
        if self.task == "contrast":
            text, video = (gather(x) for x in (self.encode_texts(token_ids, mask), self.encode(*clips)))
            with torch.autocast(self.device.type, enabled=False):  # similarities in float32
                return self.loss_weight * info_nce(text.float(), video.float(), torch.tensor(1 / self.temperature))
        if self.task == "words":
            read, labels = mask_words(
                token_ids,
                special=self._special,
                mask_id=self.tokenizer.mask_id,
                vocabulary=len(self.tokenizer),
                share=self.mask_share,
            )
            pooled, rows = self.read_together(clips, read, mask), labels != NO_LABEL
            return masked_word_loss(self.network.word_logits(pooled[rows]), labels[rows])
        return F.cross_entropy(self.answer_logits(clips, token_ids, mask), batch["labels"], ignore_index=OUTSIDE)

    @property
    def _special(self) -> list[int]:
        return special_ids(self.tokenizer)

    def clips_of(self, batch: Batch) -> Clips:
        """Middle frames and neighbours of a batch, normalised: those of `HybridClips`, or cut from a `video`."""
        if "middle" in batch:
            return self._normalised(batch["middle"]), self._normalised(batch["neighbours"])
        return self.cut(batch["video"])

    def texts_of(
        self, batch: Batch
    ) -> tuple[Int[Tensor, "videos *options length"], Bool[Tensor, "videos *options length"]]:
        """Ids and mask of the texts of a batch; `VideoTexts` names them by their source."""
        source = "" if "token_ids" in batch else f"{self.source}_"
        return batch[f"{source}token_ids"], batch[f"{source}attention_mask"]

    def cut(self, video: Shaped[Tensor, "videos 3 frames height width"]) -> Clips:
        """A video in one size as clips, one after another, whose neighbours are the means over 4 x 4 pixels."""
        frames = rearrange(self._normalised(video.transpose(1, 2)), "b (k t) c h w -> b k t c h w", k=self.clips)
        middle = frames.shape[2] // 2
        others = torch.cat([frames[:, :, :middle], frames[:, :, middle + 1 :]], 2)
        return frames[:, :, middle], _smaller(others)

    def _normalised(self, frames: Shaped[Tensor, "*frames 3 height width"]) -> Float[Tensor, "*frames 3 height width"]:
        return self.preprocess(frames.flatten(0, -4)).reshape(frames.shape)

    def encode_texts(self, token_ids: Int[Tensor, "texts length"], mask: Tensor) -> Float[Tensor, "texts dim"]:
        """Unit features of texts."""
        return self.network.text_features(self.network.read_texts(token_ids, mask), mask)

    def forward(self, video: Shaped[Tensor, "videos 3 frames height width"]) -> Float[Tensor, "videos dim"]:
        """Unit features of videos as stored pixels in one size; see `cut`."""
        return self.encode(*self.cut(video))

    def encode(
        self,
        middle: Float[Tensor, "videos clips 3 height width"],
        neighbours: Float[Tensor, "videos clips others 3 low_height low_width"],
    ) -> Float[Tensor, "videos dim"]:
        """Unit features of videos."""
        return self.network.video_features(self.maps(middle, neighbours))

    def maps(
        self,
        middle: Float[Tensor, "videos clips 3 height width"],
        neighbours: Float[Tensor, "videos clips others 3 low_height low_width"],
    ) -> Float[Tensor, "videos clips dim grid_height grid_width"]:
        """The map of each clip, from the streams that the network has."""
        streams, before = self.network.streams, (neighbours.shape[2] + 1) // 2
        if streams == "low":
            parts = neighbours[:, :, :before], _smaller(middle)[:, :, None], neighbours[:, :, before:]
            neighbours = torch.cat(parts, 2)
        high = None if streams == "low" else middle.flatten(0, 1)
        low = None if streams == "high" else neighbours.flatten(0, 1)
        return self.network.encode_clips(high, low).unflatten(0, middle.shape[:2])

    def read_together(
        self, clips: Clips, token_ids: Int[Tensor, "videos length"], mask: Tensor
    ) -> Float[Tensor, "videos length dim"]:
        """States of texts that were read with their videos, pooled over clips. Stage one gets no gradient."""
        with torch.no_grad():
            maps, states = self.maps(*clips), self.network.read_texts(token_ids, mask)
        return self.network.over_clips(self.network.fuse(states, mask, maps))

    def answer_logits(self, clips: Clips, token_ids: Tensor, mask: Tensor) -> Float[Tensor, "videos answers"]:
        """Logits of the answers to one text for each video, or of several candidates for it.

        Args:
            clips: see `clips_of`.
            token_ids: (videos length), or of candidates (videos candidates length); likewise `mask`.
            mask: True for tokens that are seen.
        """
        maps, candidates = self.maps(*clips), 1
        if self.task == "choice":
            candidates = token_ids.shape[1]
            maps, token_ids, mask = maps.repeat_interleave(candidates, 0), token_ids.flatten(0, 1), mask.flatten(0, 1)
        states = self.network.read_texts(token_ids, mask)
        logits = self.network.answer_logits(self.network.fuse(states, mask, maps))
        return logits if self.task == "answers" else rearrange(logits, "(b n) 1 -> b n", n=candidates)

    def validate(
        self, data: VideoTexts | HybridClips, batches: Iterable[dict[str, Tensor]]
    ) -> dict[str, Float[Tensor, ""]]:
        """The loss, and of features how many videos have their own text first among those of the batch."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            found = {"loss": self.loss(batch)}
            if self.task == "contrast":
                token_ids, own = self.texts_of(batch)[0].unique(dim=0, return_inverse=True)
                text = self.encode_texts(token_ids, token_ids != data.tokenizer.pad_id)
                found["own_text_first"] = (
                    ((self.encode(*self.clips_of(batch)) @ text.T).argmax(1) == own).float().mean()
                )
            return found

        return mean_over(batches, measure)

    @torch.no_grad()
    def predictions(self, data: VideoTexts | HybridClips, device: torch.device) -> dict[str, Tensor]:
        """What the evaluation reads, by split.

        Contrast: features of `videos` and of the different `texts`; `belongs` says which text is a video's own, and
        `labels` are the data's, where it has any. Words: `words`, the ids of the texts, and `found` and `found_apart`,
        the ids that are most likely at each place if it alone is masked, given the own video and given another one;
        -1 at places that cannot be masked. Answers: those given, as `answers`. Choice: `scores` of the candidates; of
        features, those of the candidates as `options` (videos options dim). All of these with `labels`. Where texts are
        read together with clips also `flow/...`, see `flows`. Of videos in one size also the first, as `shown` (see
        there), and of features the ids of the texts, `sentences`.
        """
        self.to(device).eval()
        found = {}
        for split in judged(data.rows):
            read = {"contrast": self._judge_features, "words": self._judge_words}.get(self.task, self._judge_answers)
            parts, flows = [], {}
            for batch in data.evaluation_batches(split):
                if "video" in batch and not parts:
                    found[f"shown/{split}"] = self.shown(batch["video"][:SHOWN])
                batch = {name: x.to(device) for name, x in batch.items() if isinstance(x, Tensor)}
                if self.task != "contrast" and not parts:
                    flows = {name: x.cpu() for name, x in self.flows(batch, data.tokenizer).items()}
                parts.append(read(batch))
            columns = {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]} | flows
            if "token_ids" in columns:
                token_ids, columns["belongs"] = columns.pop("token_ids").unique(dim=0, return_inverse=True)
                mask = token_ids != data.tokenizer.pad_id
                if f"shown/{split}" in found:
                    columns["sentences"] = token_ids
                columns["texts"] = torch.cat(
                    [
                        self.encode_texts(x.to(device), m.to(device)).cpu()
                        for x, m in zip(token_ids.split(256), mask.split(256), strict=True)
                    ]
                )
            found |= {f"{name}/{split}": x for name, x in columns.items()}
        return found

    def shown(
        self, video: UInt8[Tensor, "videos 3 frames height width"]
    ) -> UInt8[Tensor, "videos seen height width 3"]:
        """Stored videos in one size as they are read: middle frames sharp, the others as means over 4 x 4 pixels."""
        frames = video.transpose(1, 2)
        seen = _smaller(frames.float()).repeat_interleave(SMALLER, -1).repeat_interleave(SMALLER, -2)
        seen, middles = seen.round().to(torch.uint8), slice(self.frames // 2, None, self.frames)
        if self.network.streams != "low":
            seen[:, middles] = frames[:, middles]
        seen = seen[:, middles] if self.network.streams == "high" else seen
        return seen.permute(0, 1, 3, 4, 2).contiguous()

    def _judge_features(self, batch: Batch) -> dict[str, Tensor]:
        token_ids, mask = self.texts_of(batch)
        found = {"videos": self.encode(*self.clips_of(batch))}
        if token_ids.ndim == 3:
            options = self.encode_texts(token_ids.flatten(0, 1), mask.flatten(0, 1))
            found["options"] = options.unflatten(0, token_ids.shape[:2])
        else:
            found["token_ids"] = token_ids
        return found | ({"labels": batch["labels"]} if "labels" in batch else {})

    def _judge_words(self, batch: Batch) -> dict[str, Tensor]:
        token_ids, mask = self.texts_of(batch)
        network, maps = self.network, self.maps(*self.clips_of(batch))
        ordinary = ~torch.isin(token_ids, torch.tensor(self._special, device=token_ids.device))
        found = {"words": token_ids.masked_fill(~ordinary, -1)}
        for name, seen in (("found", maps), ("found_apart", maps.roll(1, 0))):
            guesses = []
            for place in range(token_ids.shape[1]):
                hidden = token_ids.clone()
                hidden[:, place] = self.tokenizer.mask_id
                pooled = network.over_clips(network.fuse(network.read_texts(hidden, mask), mask, seen))
                guesses.append(network.word_logits(pooled[:, place]).argmax(1))
            found[name] = torch.stack(guesses, 1).masked_fill(~ordinary, -1)
        return found

    def _judge_answers(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.answer_logits(self.clips_of(batch), *self.texts_of(batch))
        found = {"answers": logits.argmax(1)} if self.task == "answers" else {"scores": logits}
        return {**found, "labels": batch["labels"]}

    def flows(self, batch: Batch, tokenizer: TextTokenizer) -> dict[str, Float[Tensor, "pairs ..."]]:
        """Inter-modality flow of the first texts of a batch, nothing masked, none without words.

        Not of the paper: `metrics/modality_flow.py` says what it is. Of candidates the right one is read.

        Returns:
            `flow/<pairs>/<name>`, see `HdVilaNetwork.flow`: with `own` videos, those of the row before (`other`), and
            own ones with ordinary words alone as language (`content`).
        """
        token_ids, mask = self.texts_of(batch)
        if token_ids.ndim == 3:
            right = torch.arange(len(token_ids), device=token_ids.device), batch["labels"]
            token_ids, mask = token_ids[right], mask[right]
        ordinary = mask & ~torch.isin(token_ids, torch.tensor(special_ids(tokenizer), device=token_ids.device))
        rows = ordinary.any(1).nonzero()[:PAIRS, 0]
        if not len(rows):
            return {}
        token_ids, mask, ordinary = token_ids[rows], mask[rows], ordinary[rows]
        maps = self.maps(*(x[rows] for x in self.clips_of(batch)))
        states = self.network.read_texts(token_ids, mask)
        found = {}
        for name, seen, counted in (("own", maps, None), ("other", maps.roll(1, 0), None), ("content", maps, ordinary)):
            flow = self.network.flow(states, mask, seen, counted)
            found |= {f"flow/{name}/{part}": x for part, x in flow.items()}
        return found

    def facts(self) -> dict:
        """How large the network is, and multiply-adds: of a video of `clips`, and of the ResNets for one clip.

        `cnn_macs` are those of the hybrid, `cnn_macs_all_high` those of the high stream if it read every frame.
        """
        found = {"parameters": count_parameters(self)}
        if self.task in ("contrast", "words"):
            found["macs_per_video"] = count_macs(self, (3, self.clips * self.frames, *self.size))
        if self.network.streams == "hybrid":
            one = count_macs(self.network.cnn, (3, *self.size))
            low = count_macs(self.network.cnn_low, (3, *(side // SMALLER for side in self.size)))
            found |= {"cnn_macs": one + (self.frames - 1) * low, "cnn_macs_all_high": self.frames * one}
        return found

    def parameter_groups(self) -> list[dict]:
        """BERT, both ResNets with the projections, and TimeSformer, each with and without decay, by official names."""
        recipe, groups = self.recipe, []
        options = {
            "transformer": {},
            "timesformer": {"lr": recipe["lr"] * recipe["align_rate"], "weight_decay": recipe["align_weight_decay"]},
            "cnn": {"weight_decay": recipe["cnn_weight_decay"]},
        }
        named = [(name, x) for name, x in self.network.named_parameters() if x.requires_grad]
        for prefix, option in options.items():
            own = [(name, x) for name, x in named if _group(name) == prefix]
            decayed, undecayed = [], []
            for name, x in own:
                (undecayed if any(part in name for part in UNDECAYED) else decayed).append(x)
            groups += [{"params": decayed, **option}, {"params": undecayed, **option, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> dict:
        """AdamW over `parameter_groups`, with the official schedules."""
        optimizer, recipe = self._optimizer(), self.recipe
        schedule = partial(
            learning_rate,
            name=recipe["schedule"],
            total=int(self.trainer.estimated_stepping_batches),
            epochs=recipe["epochs"],
            warmup=recipe["warmup"],
            milestones=recipe["milestones"],
            guard=recipe["guard_lr"] / recipe["lr"],
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, schedule), "interval": "step"},
        }

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what another arm has exported; see `weights.take_over`."""
        take_over(self.network, weights, "weights of the arm that this one starts from")

    def export(self) -> dict[str, Tensor]:
        """The network under the official names; each tensor lies by itself, also the one that has two of them."""
        state, twice = self.network.state_dict(), "transformer.cls.predictions.bias"
        return state | ({twice: state[twice].clone()} if twice in state else {})

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a network as `export` gives it."""
        load_strictly(self.network, weights, "exported weights")

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The layers of BERT and the blocks of TimeSformer."""
        network = self.network
        return [
            *network.transformer.bert.encoder.layer,
            *(() if network.streams == "high" else network.timesformer.blocks),
        ]


def _smaller(frames: Float[Tensor, "*frames 3 height width"]) -> Float[Tensor, "*frames 3 low_height low_width"]:
    """The means over 4 x 4 pixels."""
    means = F.avg_pool2d(frames.flatten(0, -4), SMALLER)
    return means.reshape(*frames.shape[:-2], *means.shape[-2:])


def special_ids(tokenizer: TextTokenizer) -> list[int]:
    """Ids that are no ordinary words."""
    known = (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.unknown_id, tokenizer.mask_id)
    return [number for number in known if number is not None]


def _group(name: str) -> str:
    first = name.partition(".")[0]
    return first if first in ("transformer", "timesformer") else "cnn"


def learning_rate(
    step: int, *, name: str, total: int, epochs: int, warmup: float, milestones: Sequence[int], guard: float
) -> float:
    """The factor on the rate, as in the official code (optimization/sched.py), whose steps count from 1.

    Args:
        step: steps done.
        name: `linear`: from the warm-up's end down to 0; `milestones`: halved after each, and once more after the last.
        total: steps of the training.
        epochs: of the training.
        warmup: share of the steps, rounded down to a whole one.
        milestones: in epochs.
        guard: the factor in place of 0.
    """
    number, warm = step + 1, int(warmup * total)
    if number < warm:
        return number / warm
    if name == "linear":
        return max(0.0, (total - number) / max(1, total - warm)) or guard
    epoch = int(number * epochs / total) if number > warm else 0
    passed = sum(epoch >= milestone for milestone in milestones)
    return MILESTONE_FACTOR ** (passed + (passed == len(milestones) > 0))
