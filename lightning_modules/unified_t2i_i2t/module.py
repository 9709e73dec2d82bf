"""Unifying Multimodal Transformer for Bi-directional Image and Text Generation (Huang et al., ACM MM 2021, 2110.09753).

One LXMERT both captions images and draws them from captions; either task is filling masked places. An image has two
granularities: dense grid features go in where it is described, and discrete ids (its features' nearest centroids) come
out, and go in, where it is drawn, so that an image can be spelled in four parallel steps. Training on tokens takes the
tasks in turns. A second stage trains on what the network itself generates: captions by self-critical CIDEr-D, images
by the score that a frozen text-image scorer gives to the picture, through Gumbel-softmax, codebook and image decoder.

Read `UnifiedGenerator.training_step` first, then the method of each task.

Where we differ from the official code (`compat` brings the first four back):
- the word after the last one is no target: there, the slot behind [SEP], whose target is [PAD], is drawn too;
- CIDEr-D sees words only: there, also the marker [CLS] and the closing full stop;
- its document frequencies come from the training captions: there, from the references of the minibatch;
- the policy gradient is averaged over a caption's words: there, also over the slot of the marker [CLS], and over the
  slot behind the end, into which another word is drawn.
Captions are sampled without keeping a graph; each word's pass is done again when its gradient is due. The gradient is
the same as with the graph of all passes. Dropout is off meanwhile (there, on for the sample). The image's own layers
run once for all words of a caption. Layers that no loss reaches (pooler, relationship head) do not exist; vectors are
not decayed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_modules.base import PaperModule, TransformerRecipe, decay_groups
from lightning_modules.datamodules.captioned import CaptionedImages, squashed
from lightning_modules.layers.exported import Exported
from lightning_modules.layers.published import load_strictly, read_checkpoint
from lightning_modules.metrics.cider import CaptionReward
from lightning_modules.metrics.generation import (
    OTHER_CAPTIONS,
    has_fid,
    make_fid,
    make_inception_score,
    other_captions,
)
from lightning_modules.metrics.modality_flow import PAIRS, side_by_side
from lightning_modules.settings import Count, Natural, Positive, Share
from lightning_modules.unified_t2i_i2t.cross_flow import watching_crossed
from lightning_modules.unified_t2i_i2t.image_side import Clip, ImageSide, pixels
from lightning_modules.unified_t2i_i2t.lxmert import LANES, Lxmert
from lightning_modules.unified_t2i_i2t.mask_predict import mask_counts, mask_predict
from lightning_modules.validation import mean_over

WORDS = ("pad", "start", "mask", "end")
HABITS = ("predict_padding", "markers_in_reward", "batch_frequencies", "outer_slots")
TASKS = ("xe_i2t", "xe_t2i", "rl_i2t", "rl_t2i")
SHOWN = 8  # test pictures kept for galleries
CLIP_SCORE_SCALE = 2.5  # of CLIPScore (Hessel et al., 2104.08718)
# Parameters of official checkpoints that no loss reaches; they have no place in our module.
UNTRAINED = ("pooler.dense.*", "classifier.seq_relationship.*", "answer_head.*")
XLXMERT_NAMES = {
    "bert.encoder.": "encoder.",
    "bert.embeddings.": "embedding_layer.",
    "bert.pooler.": "pooler.",
    "cls.": "classifier.",
    "obj_predict_head.": "img_classifier.",
    "vis_emb.": "cluster_codebook.",
}


class UnifiedRecipe(TransformerRecipe):
    """With the numerical floor of Adam and the largest norm of a gradient."""

    eps: Positive
    clip: Positive


def smoothed_cross_entropy(
    logits: Float[Tensor, "... classes"], targets: Int[Tensor, "..."], smoothing: float
) -> Float[Tensor, "..."]:
    """Cross-entropy against 1 - s for the target and s / (K - 1) for each other class (official loss.py).

    torch's `label_smoothing` gives every class s / K, the target included. Logits all alike cost ln K.
    """
    log_p = logits.float().log_softmax(-1)
    wanted = log_p.gather(-1, targets[..., None])[..., 0]
    others = (log_p.sum(-1) - wanted) / (logits.shape[-1] - 1)
    return -(1 - smoothing) * wanted - smoothing * others


class UnifiedGenerator(PaperModule):
    """The unified generator with its frozen image side.

    Args:
        network: arguments of `Lxmert`.
        images: arguments of `ImageSide`: what makes features and ids of images, and pictures of features.
        tasks: of the successive steps, over and over: xe_i2t | xe_t2i | rl_i2t | rl_t2i.
        caption_input: `dense` features, or `discrete`: those of the nearest centroids.
        drawing_input: what drawing learns from beside the caption: `discrete`, the centroids of the places that are not
            masked, or `dense`, their features (the ablation). A picture that is drawn has centroids only.
        image_reward: of rl_t2i: `scorer`, or `mse` between the mixed centroids and the right ones (the ablation).
        words: ids of special words: pad, start, mask, and `end`, which closes a caption (officially the full stop).
        caption_length: most words of a generated caption, marker at the start not counted.
        smoothing: of both cross-entropies.
        least_masked: smallest share of the image's places to be masked.
        masked_words: words of a caption that a step learns from, each in a copy of its own (the paper: 1).
        sampling_steps: of mask-predict.
        temperature: of the Gumbel-softmax.
        official_weights: file of X-LXMERT's or of the official code, which training on a trained image side starts
            from; null for drawn weights. The image side must have its centroids, see `ImageSideTraining`.
        compat: which of the official code's habits to keep, see the head of this file.

    Raises:
        ValueError: a task is unknown or there is none, or grid, features or codebook of the two sides differ.
    """

    recipe_form = UnifiedRecipe
    predictor = "lightning_modules.unified_t2i_i2t.generator.Generator"

    def __init__(
        self,
        *,
        network: dict,
        images: dict,
        words: dict[str, Natural],
        compat: dict[str, bool],
        tasks: Annotated[list[str], Field(min_length=1)],
        caption_input: Literal["dense", "discrete"] = "dense",
        drawing_input: Literal["dense", "discrete"] = "discrete",
        image_reward: Literal["scorer", "mse"] = "scorer",
        caption_length: Count = 16,
        smoothing: Share = 0.2,
        least_masked: Share = 0.1,
        masked_words: Count = 1,
        sampling_steps: Count = 4,
        temperature: Positive = 1.0,
        official_weights: str | None = None,
    ):
        super().__init__()
        if not tasks or set(tasks) - set(TASKS):
            raise ValueError(f"tasks ({tasks}) must be some of {', '.join(TASKS)}.")
        for name, given, known in (("words", words, WORDS), ("compat", compat, HABITS)):
            if set(given) != set(known):
                raise ValueError(f"{name} has {', '.join(given)}, expected {', '.join(known)}.")
        self.network = Lxmert(**network)
        self.images = ImageSide(**images).requires_grad_(False)
        own, other = (
            (self.network.grid, self.network.feature_dim, self.network.codebook_size),
            (self.images.grid, self.images.feature_dim, self.images.codebook_size),
        )
        if own != other:
            raise ValueError(
                f"the network was built for grid, feature_dim and codebook_size {own}, the image side for {other}: "
                "give both the same."
            )
        self.tasks, self.image_reward = list(tasks), image_reward
        self.caption_input, self.drawing_input, self.official_weights = caption_input, drawing_input, official_weights
        self.words, self.compat = words, compat
        self.caption_length, self.smoothing, self.least_masked = caption_length, smoothing, least_masked
        self.masked_words, self.temperature = masked_words, temperature
        self.counts = mask_counts(self.network.num_tokens, sampling_steps)
        self.reward: CaptionReward | None = None  # else of the captions at hand

    def check_data(self, data: CaptionedImages) -> None:
        """Refuse captions that the network cannot read.

        Raises:
            ValueError: vocabulary, special words or length are others.
        """
        if len(data.tokenizer) != self.network.vocabulary:
            raise ValueError(
                f"the tokenizer {data.tokenizer_name!r} has {len(data.tokenizer)} words, but network.vocabulary is "
                f"{self.network.vocabulary}: make them the same."
            )
        found = {name: getattr(data.tokenizer, f"{name}_id") for name in ("pad", "start", "mask")}
        if different := {name: found[name] for name in found if found[name] != self.words[name]}:
            raise ValueError(f"words has {self.words}, but the tokenizer {data.tokenizer_name!r} has {different}.")
        positions = self.network.embedding_layer.position_embeddings.num_embeddings
        if max(data.text_length, self.caption_length + 1) > positions:
            raise ValueError(
                f"texts have up to {data.text_length} tokens and captions up to 1 + {self.caption_length}, but "
                f"network.max_positions is {positions}."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """One task, by the number of the step from 1; parameters that it does not use get a gradient of zero."""
        step = batch_idx if self._trainer is None else self.trainer.global_step
        task = self.tasks[(step + 1) % len(self.tasks)]
        loss = getattr(self, task)(batch)
        self.log_terms({f"pretrain/{task}": loss})
        return loss + sum(parameter.sum() * 0 for parameter in self.idle(task))

    def idle(self, task: str) -> Iterator[nn.Parameter]:
        """Parameters that a task cannot reach: the other head, and the other stream's end of the last cross layer."""
        last = f"encoder.x_layers.{len(self.network.encoder.x_layers) - 1}."
        to_text = ("img_classifier.", "mask_feat", f"{last}visn_")
        to_image = ("classifier.", f"{last}lang_")
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad and name.startswith(to_text if task.endswith("i2t") else to_image):
                yield parameter

    # Token level

    def xe_i2t(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """One word of a caption from the image and the words before it, for `masked_words` words of each caption."""
        return smoothed_cross_entropy(*self.words_told(batch), self.smoothing).mean()

    def words_told(self, batch: dict[str, Tensor]) -> tuple[Float[Tensor, "rows words"], Int[Tensor, " rows"]]:
        """Logits of the masked words, and the words, for the copies of each caption."""
        token_ids = self.draw_caption(batch)
        seen = self.network.see(self.caption_features(batch))
        copies = self.masked_words
        token_ids = repeat(token_ids, "b n -> (b k) n", k=copies)
        place = self.draw_word(token_ids)
        inputs = token_ids.scatter(1, place[:, None], self.words["mask"])
        length = min(-(-int(place.max() + 1) // LANES) * LANES, token_ids.shape[1])
        prefix = torch.arange(length, device=place.device) <= place[:, None]
        text, _ = self.network.join(repeat(seen, "b n d -> (b k) n d", k=copies), inputs[:, :length], prefix)
        logits = self.network.word_logits(text[torch.arange(len(place), device=place.device), place])
        return logits, token_ids.gather(1, place[:, None])[:, 0]

    def draw_number(self, batch: dict[str, Tensor]) -> Int[Tensor, " batch"]:
        """The number of one caption of each image, at random."""
        count = batch["num_references"]
        return (torch.rand(len(count), device=count.device) * count).long()

    def draw_caption(self, batch: dict[str, Tensor]) -> Int[Tensor, "batch length"]:
        """One caption of each image, at random."""
        return pick(batch["references"], self.draw_number(batch))

    def draw_word(self, token_ids: Int[Tensor, "batch length"]) -> Int[Tensor, " batch"]:
        """The place of a word to be predicted: any but the first, also the end; as a habit of old, one slot more."""
        words = (token_ids != self.words["pad"]).sum(1)
        last = (words if self.compat["predict_padding"] else words - 1).clamp_max(token_ids.shape[1] - 1)
        return 1 + (torch.rand(len(last), device=last.device) * last).long()

    def caption_features(self, batch: dict[str, Tensor]) -> Float[Tensor, "batch tokens features"]:
        """What a caption is written from."""
        features = self.images.features(batch)
        return features if self.caption_input == "dense" else self.network.cluster_codebook(self.images.codes(features))

    def xe_t2i(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Codes at masked places, the same random ones for the whole batch, from the caption and what is elsewhere."""
        return smoothed_cross_entropy(*self.codes_drawn(batch), self.smoothing).mean()

    def codes_drawn(
        self, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch masked codes"], Int[Tensor, "batch masked"]]:
        """Logits of the codes at masked places, and the codes."""
        features = self.images.features(batch)
        codes = self.images.codes(features)
        token_ids = self.draw_caption(batch)
        total = self.network.num_tokens
        least = max(1, int(self.least_masked * total))
        count = int(torch.randint(least, total + 1, ()))
        places = torch.randperm(total, device=codes.device)[:count]
        masked = torch.zeros_like(codes, dtype=torch.bool)
        masked[:, places] = True
        seen = features if self.drawing_input == "dense" else self.network.cluster_codebook(codes)
        seen = self.network.mask_features(seen, masked)
        logits = self.network.code_logits(seen, token_ids, token_ids != self.words["pad"])
        return logits[:, places], codes[:, places]

    def validate(self, data: CaptionedImages, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Loss and accuracy of masked words, where tasks write captions, and of masked codes, where they draw."""
        told, drawn = (any(task.endswith(end) for task in self.tasks) for end in ("i2t", "t2i"))

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            found = {}
            if told:
                found["xe_i2t"], found["word_accuracy"] = self.loss_and_accuracy(*self.words_told(batch))
            if drawn:
                found["xe_t2i"], found["code_accuracy"] = self.loss_and_accuracy(*self.codes_drawn(batch))
            return found

        return mean_over(batches, measure)

    def loss_and_accuracy(
        self, logits: Float[Tensor, "*rows classes"], targets: Int[Tensor, "*rows"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The loss as in training, and the share of targets that are the most probable ones."""
        loss = smoothed_cross_entropy(logits, targets, self.smoothing).mean()
        return loss, (logits.argmax(-1) == targets).float().mean()

    # Sequence level

    def rl_i2t(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """REINFORCE with the greedy caption's reward as baseline: self-critical (Rennie et al., 1612.00563)."""
        with evaluating(self.network):
            seen = self.network.see(self.caption_features(batch))
            with torch.no_grad():
                greedy, _ = self.write(seen, self.caption_length - 1)
            sampled, log_p = self.write(seen, self.caption_length - 1, sample=True)
            reward, baseline = self.caption_rewards([sampled, greedy], batch)
        self.log_terms({"pretrain/reward": reward.mean(), "pretrain/greedy_reward": baseline.mean()})
        return self.policy_loss(sampled, log_p, reward - baseline)

    def policy_loss(
        self,
        token_ids: Int[Tensor, "batch words"],
        log_p: Float[Tensor, "batch words"],
        advantage: Float[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """Minus the advantage times the log-probability of each word, its end included, averaged over all words.

        Args:
            token_ids: of sampled captions, padding behind their ends.
            log_p: of what was drawn at each place; also behind the end, which counts for `compat.outer_slots` only.
            advantage: of each caption.
        """
        pad, end, outer = self.words["pad"], self.words["end"], self.compat["outer_slots"]
        previous = F.pad(token_ids[:, :-1], (1, 0), value=self.words["start"])
        counted = ((previous != pad) & (outer | (previous != end))).float()
        slots = counted.sum()
        if outer:  # the marker's, and the one behind the last word if that word is not padding
            slots = slots + len(token_ids) + (token_ids[:, -1] != pad).sum()
        return -(advantage[:, None] * log_p * counted).sum() / slots

    def write(
        self, seen: Float[Tensor, "batch tokens dim"], words: int, *, sample: bool = False
    ) -> tuple[Int[Tensor, "batch words"], Float[Tensor, "batch words"]]:
        """Captions word by word, without the marker at the start, and the log-probability of what was chosen each time.

        With gradients on, nothing of a word's pass is kept but its result: the pass is done again when its gradient is
        due, so that the memory is that of one pass and not of all.

        Args:
            seen: of the images, see `Lxmert.see`.
            words: most of them, the end included; a caption may be cut. After the end comes padding. No more are chosen
                once all captions choose the end at the same place; log-probabilities behind it are 0.
            sample: draw each word, instead of taking the most probable.
        """
        ids, log_ps = torch.full((len(seen), 1), self.words["start"], device=seen.device), []
        for _ in range(words):
            log_p = checkpoint(self.next_word, seen, ids, use_reentrant=False)
            chosen = log_p.detach()
            word = torch.multinomial(chosen.exp(), 1) if sample else chosen.argmax(-1, keepdim=True)
            log_ps.append(log_p.gather(1, word)[:, 0])
            ended = (ids == self.words["end"]).any(1, keepdim=True)
            ids = torch.cat([ids, torch.where(ended, self.words["pad"], word)], dim=1)
            if (word == self.words["end"]).all():
                break
        left = words - len(log_ps)
        return F.pad(ids[:, 1:], (0, left), value=self.words["pad"]), F.pad(torch.stack(log_ps, dim=1), (0, left))

    def next_word(
        self, seen: Float[Tensor, "batch tokens dim"], prefix: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch words"]:
        """Log-probabilities of the word after `prefix`; no dropout, also when this is done again for the gradient."""
        with evaluating(self.network):
            return self.network.next_word(seen, prefix, self.words["mask"]).float().log_softmax(-1)

    def caption_rewards(
        self, captions: Sequence[Int[Tensor, "batch words"]], batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, " batch"], ...]:
        """CIDEr-D (0 to 10) of several captions of each image, on ids instead of words."""
        images = batch["ids"].tolist()
        known = zip(images, batch["references"].tolist(), batch["num_references"].tolist(), strict=True)
        reward = self.reward or self.make_reward({image: rows[:count] for image, rows, count in known})
        started = F.pad(torch.cat(list(captions)), (1, 0), value=self.words["start"])
        scores = torch.from_numpy(reward(images * len(captions), started.cpu().numpy()))
        return scores.to(self.device, torch.float32).chunk(len(captions))

    def make_reward(self, references: Mapping[int, Sequence[Sequence[int]]]) -> CaptionReward:
        """The reward whose document frequencies come from these captions, rows of ids for each image."""
        return CaptionReward(
            references,
            end=self.words["end"],
            markers=[self.words[name] for name in ("pad", "start", "mask")],
            batch_frequencies=self.compat["batch_frequencies"],
            markers_inside=self.compat["markers_in_reward"],
        )

    def on_fit_start(self) -> None:
        """Count the n-grams of all training captions, where captions are rewarded."""
        if "rl_i2t" in self.tasks:
            self.reward = self.make_reward(self.trainer.datamodule.references("train"))

    def rl_t2i(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Lower where the drawn picture fits its caption better; the gradient goes through the logits of all steps."""
        which = self.draw_number(batch)
        token_ids = pick(batch["references"], which)
        _, logits = self.draw(token_ids)
        mixed = F.gumbel_softmax(logits.float(), tau=self.temperature) @ self.network.cluster_codebook.weight
        if self.image_reward == "mse":
            right = self.network.cluster_codebook(self.images.codes(self.images.features(batch)))
            return F.mse_loss(mixed, right)
        texts = pick(batch["scorer_ids"], which) if "scorer_ids" in batch else token_ids
        score = self.images.score(self.images.decode(mixed), texts)
        self.log_terms({"pretrain/score": score.mean()})
        return -(CLIP_SCORE_SCALE * score.clamp_min(0)).mean()

    def draw(
        self, token_ids: Int[Tensor, "batch length"], counts: list[int] | None = None
    ) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens codes"]]:
        """Codes of images for captions by mask-predict, and the logits that filled each place."""
        attention_mask = token_ids != self.words["pad"]

        def predict(codes: Tensor, masked: Bool[Tensor, "batch tokens"]) -> Tensor:
            features = self.network.mask_features(self.network.cluster_codebook(codes), masked)
            return self.network.code_logits(features, token_ids, attention_mask)

        return mask_predict(predict, batch=len(token_ids), counts=counts or self.counts, device=token_ids.device)

    # What surrounds training

    @torch.no_grad()
    def predictions(self, data: CaptionedImages, device: torch.device) -> dict[str, Tensor]:
        """Captions of the test images, and what the judge sees in pictures drawn for test captions, as `tasks` have it.

        `told` captions say where things are, `loose` ones do not; these are drawn in 1 to all steps. Where data have
        no judge but `drawing`, pictures are measured as published, see `published_scores`. `references` are the whole
        captions of the test images, see `CaptionedImages.texts`. For `flow/...` see `flows`.
        """
        self.to(device).eval()
        found: dict[str, list[Tensor]] = {}
        for batch in data.evaluation_batches("test"):
            moved = {name: x.to(device) for name, x in batch.items()}
            flows = {} if found else self.flows(moved)
            for name, x in {**self.judged(moved, full=not found), **flows}.items():
                found.setdefault(name, []).append(x.cpu())
        found["references"] = [data.texts("test")]
        if self.draws:
            for name, x in self.published_scores(data).items():
                found[name] = [x.cpu()]
        return {name: torch.cat(parts).contiguous() for name, parts in found.items()}

    @torch.no_grad()
    def forward(self, images: Shaped[Tensor, "batch c height width"]) -> Int[Tensor, "batch words"]:
        """Token ids of the most probable captions of stored pixels."""
        return self.write(self.network.see(self.caption_features({"images": images})), self.caption_length)[0]

    @property
    def draws(self) -> bool:
        """Whether drawing is among the tasks."""
        return any(task.endswith("t2i") for task in self.tasks)

    @torch.no_grad()
    def published_scores(self, data: CaptionedImages) -> dict[str, Tensor]:
        """What FID and its like are made of, for pictures of the captions that `data.drawing` names; else nothing.

        Returns:
            Where published CLIP is the scorer, as in the official code, 100 times cosines: `clip_logits` (pictures,);
            `clip_others` (pictures, 100), with the own caption first and those of 99 other pictures, where there are so
            many; and `clip_hard/<kind>` (pictures, captions) for `data.hard_captions`. Where torch-fidelity is
            installed, `fid` (1,) of drawn pictures in 8 bits against stored ones in their own sizes, and
            `inception_score` (1,). The first pictures, to be shown, with their captions.
        """
        found: dict[str, list[Tensor]] = {}
        measured = has_fid() and data.drawing is not None
        fid, score = (make().to(self.device) if measured else None for make in (make_fid, make_inception_score))
        clip = self.images.scorer if isinstance(self.images.scorer, Clip) else None
        looks, texts = [], []
        for batch in data.drawing_batches():
            token_ids = batch["references"][:, 0].to(self.device)
            pictures = self.paint(self.draw(token_ids)[0])
            drawn = (255 * pictures).to(torch.uint8)  # cut off, not rounded, where the official code saves a picture
            if clip is not None:
                looks.append(clip.look(drawn))
                texts.append(clip.read(batch["scorer_ids"][:, 0].to(self.device)))
            if fid is not None:
                score.update(drawn)
                fid.update(drawn, real=False)
                for image in batch["stored"]:
                    fid.update(torch.from_numpy(image).permute(2, 0, 1)[None].to(self.device), real=True)
            if "told" not in found:
                real = [torch.from_numpy(squashed(x, self.images.image_size)) for x in batch["stored"][:SHOWN]]
                found["told"] = [token_ids[:SHOWN]]
                found["pictures/told"] = [rearrange(drawn[:SHOWN], "b c h w -> b h w c")]
                found["pictures/real"] = [torch.stack(real)]
        if fid is not None:
            found["fid"], found["inception_score"] = [fid.compute()[None]], [score.compute()[0][None]]
        if looks:
            found |= self.clip_scores(clip, torch.cat(looks).float(), torch.cat(texts).float(), data)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def clip_scores(
        self,
        clip: Clip,
        looks: Float[Tensor, "pictures dim"],
        texts: Float[Tensor, "pictures dim"],
        data: CaptionedImages,
    ) -> dict[str, list[Tensor]]:
        """How similar pictures are to their captions and to others, see `published_scores`."""
        found = {"clip_logits": [clip.similarity(looks, texts)]}
        if len(looks) > OTHER_CAPTIONS:
            rows = np.concatenate([np.arange(len(looks))[:, None], other_captions(len(looks))], axis=1)
            found["clip_others"] = [
                clip.similarity(look[None], texts[torch.from_numpy(row).to(texts.device)])[None]
                for look, row in zip(looks, rows, strict=True)
            ]
        for kind, pictures in data.hard_captions().items():
            most = max(len(ids) for _, ids in pictures)
            found[f"clip_hard/{kind}"] = []
            for number, ids in pictures:
                similar = clip.similarity(looks[number][None], clip.read(ids.to(looks.device)).float())
                found[f"clip_hard/{kind}"].append(F.pad(similar, (0, most - len(ids)), value=-torch.inf)[None])
        return found

    def judged(self, batch: dict[str, Tensor], full: bool) -> dict[str, Tensor]:
        """The predictions for a batch, with its first pictures if they are to be shown (`full`)."""
        found = {"ids": batch["ids"]}
        if any(task.endswith("i2t") for task in self.tasks):
            found["captions"], _ = self.write(self.network.see(self.caption_features(batch)), self.caption_length)
        if self.images.judge is None:
            return found
        told, loose = batch["references"][:, 0], pick(batch["references"], batch["num_references"] - 1)
        found |= {name: x for name, x in batch.items() if name.startswith("scene/")}
        found |= {"told": told, "loose": loose, "labels": batch["scene"]}
        pictures = {"real": pixels(batch["images"])}
        if self.draws:
            pictures |= self.drawn(batch, told, loose)
        for name, images in pictures.items():
            judged = self.images.judge(images)
            found[f"seen/{name}"] = torch.stack([logits.argmax(-1) for logits in judged], dim=-1)
            if name in ("real", "told"):
                found[f"odds/{name}"] = torch.cat([logits.softmax(-1) for logits in judged], dim=-1)
                found[f"features/{name}"] = self.images.judge.backbone(images).mean(1)
            if full and not name.startswith("loose"):
                shown = (255 * images[:SHOWN]).round().to(torch.uint8)
                found[f"pictures/{name}"] = rearrange(shown, "b c h w -> b h w c").contiguous()
        return found

    def flows(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, "pairs ..."]]:
        """Inter-modality flow of the first images of a batch with their first captions, nothing masked.

        Not of the paper: see `cross_flow`, and `metrics/modality_flow.py`. Images go in as they do for captions, or for
        drawing where no captions are written; images whose caption has no word are left out.

        Returns:
            `flow/<pairs>/<name>`, see `FlowMeter.columns`: `own` captions, those of the image before (`other`), and own
            ones without the words that begin and end each caption (`content`).
        """
        captions = batch["references"][:, 0]
        outer = torch.tensor([self.words[name] for name in ("pad", "start", "end")], device=captions.device)
        rows = (~torch.isin(captions, outer)).any(1).nonzero()[:PAIRS, 0]
        if not len(rows):
            return {}
        captions = captions[rows]
        seen = self.network.see(self.read({name: x[rows] for name, x in batch.items()}))
        places = torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device)
        found = {}
        for name, ids, left_out in (("own", captions, outer[:1]), ("other", captions.roll(1, 0), outer[:1]),
                                    ("content", captions, outer)):  # fmt: skip
            attended = ids != self.words["pad"]
            meter = side_by_side(~torch.isin(ids, left_out), places, attended)
            with watching_crossed(self.network.encoder.x_layers, meter):
                self.network.join(seen, ids, attended)
            found |= {f"flow/{name}/{part}": x for part, x in meter.columns().items()}
        return found

    def read(self, batch: dict[str, Tensor]) -> Float[Tensor, "batch tokens features"]:
        """Images as they go in for captions, or for drawing where no captions are written; no place is masked."""
        if any(task.endswith("i2t") for task in self.tasks):
            return self.caption_features(batch)
        features = self.images.features(batch)
        dense = self.drawing_input == "dense"
        return features if dense else self.network.cluster_codebook(self.images.codes(features))

    def drawn(
        self, batch: dict[str, Tensor], told: Int[Tensor, "batch length"], loose: Int[Tensor, "batch length"]
    ) -> dict[str, Float[Tensor, "batch 3 height width"]]:
        """Pictures of the right codes, of captions that say where things are, and of those that do not."""
        pictures = {
            "decoded": self.paint(self.images.codes(self.images.features(batch))),
            "told": self.paint(self.draw(told)[0]),
        }
        for steps in sorted({1, len(self.counts), self.network.num_tokens}):
            codes, _ = self.draw(loose, mask_counts(self.network.num_tokens, steps))
            pictures[f"loose-{steps}"] = self.paint(codes)
        return pictures

    def paint(self, codes: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch 3 height width"]:
        """Pictures of codes."""
        return self.images.decode(self.network.cluster_codebook(codes))

    def to_transformers(self) -> Exported:
        """Not possible.

        Raises:
            ValueError: always, with the reason.
        """
        raise ValueError("transformers has LXMERT, but without its heads for image codes, codebook and image decoder")

    def facts(self) -> dict:
        """Size of the network, its frozen codebook not counted."""
        return {"parameters": sum(p.numel() for p in self.network.parameters() if p.requires_grad)}

    def parameter_groups(self) -> list[dict]:
        """Vectors are not decayed."""
        return decay_groups(self.named_parameters())

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a trained image side, or all of a generator that was trained before.

        Raises:
            ValueError: it is of another architecture.
        """
        if any(key.startswith("network.") for key in weights):
            load_strictly(self, weights, "the generator's state dict")
            return
        load_strictly(self.images, weights, "the image side's state dict")
        self.network.set_codebook(self.images.codebook)
        if self.official_weights is not None:
            codebook = self.images.codebook.clone()
            content = read_checkpoint(Path(self.official_weights))
            self.load_official(content.get("model", content))
            if not torch.allclose(codebook, self.images.codebook):
                raise ValueError(
                    f"the centroids of {self.official_weights} are not those of the image side: train that with "
                    "`centroids`, the file of X-LXMERT's, or leave out official_weights."
                )

    def load_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Load a generator of the official code, or X-LXMERT's as its own code saves it, with its codebook.

        Args:
            state: the content of the file, below `model` where there is such a key.

        Returns:
            What has no place here: the pooler, and heads that no loss reaches.

        Raises:
            ValueError: the checkpoint is of another architecture, or its word matrix is not tied.
        """
        ours = {official_name(key): x for key, x in state.items()}
        tied = ours.pop("classifier.predictions.decoder.weight", None)
        words = ours.get("embedding_layer.word_embeddings.weight")
        if tied is not None and words is not None and not torch.equal(tied, words):
            raise ValueError(
                "classifier.predictions.decoder.weight differs from embedding_layer.word_embeddings.weight, but they "
                "are one matrix here: this is no checkpoint of the official code."
            )
        if (
            "cluster_codebook.weight" not in ours
        ):  # X-LXMERT's may have it only as the head's matrix, which is tied to it
            ours["cluster_codebook.weight"] = ours.get("img_classifier.out_cluster.weight", torch.empty(0))
        rest = load_strictly(self.network, ours, "the official checkpoint", unused=UNTRAINED)
        self.images.set_codebook(self.network.cluster_codebook.weight)
        return rest

    def official(self, rest: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict in the official layout, the reverse of `load_official`; `rest` is what that gave back."""
        state = self.network.state_dict()
        tied = {"classifier.predictions.decoder.weight": state["embedding_layer.word_embeddings.weight"]}
        return {**state, **tied, **rest}


def pick(rows: Int[Tensor, "batch captions length"], which: Int[Tensor, " batch"]) -> Int[Tensor, "batch length"]:
    """The caption numbered `which` of each image."""
    return rows[torch.arange(len(rows), device=rows.device), which]


def official_name(key: str) -> str:
    """Our name of a parameter of the official code or of X-LXMERT's, with or without the prefix of DDP."""
    key = key.removeprefix("module.")
    for old, new in XLXMERT_NAMES.items():
        if key.startswith(old):
            key = new + key.removeprefix(old)
    head, _, leaf = key.rpartition(".")
    leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)
    return f"{head}.{leaf}" if head else leaf


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout off for a while."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)
