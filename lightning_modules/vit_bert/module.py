"""ViT-BERT: Towards a Unified Foundation Model, trained on unpaired images and text (Li et al., 2021, 2112.07074).

A ViT and a BERT whose layers are the same weights. Two losses that are simply added make both modalities worse than
networks of their own; two remedies are given: a ViT and a BERT that were trained apart teach it, and a mask gives the
gradient of each shared weight to one modality.

Read `VitBert.training_step` first, then `masking.py` and `network.py`. No official code is published; what is our
choice says `facts.yaml`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import AnyRecipe, Momentum, PaperModule, decay_groups
from lightning_modules.layers.exported import Exported
from lightning_modules.layers.forms import PixelSettings
from lightning_modules.layers.published import load_strictly
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import STRICT, NonNegative, Positive, Share
from lightning_modules.tasks.augmentation import Preprocess
from lightning_modules.validation import judged
from lightning_modules.vit_bert.exporting import exported
from lightning_modules.vit_bert.masking import Combination, Masking, SharedGradients
from lightning_modules.vit_bert.network import EncoderSizes, ImageSizes, Modality, Network, TextSizes
from lightning_modules.vit_bert.objectives import cross_entropy, distillation, mixed
from lightning_modules.vit_bert.teachers import ImageTeacher, OwnTeacher, Teachers, TextTeacher

SHOWN = 8  # rows for the page
CORNER = 64  # weights a side of a mask that is shown
TASKS = {"images": "image", "texts": "text"}  # names of tasks, and their modalities
Batch = Mapping[str, Tensor]


class Weights(TypedDict):
    """Of the losses: labels of pictures, masked words, and whether one sentence follows the other."""

    __pydantic_config__ = STRICT
    images: NonNegative
    words: NonNegative
    pairs: NonNegative


class Distillation(TypedDict):
    """Share of a teacher's answers in the losses of pictures and of words; their temperature; and who teaches."""

    __pydantic_config__ = STRICT
    image: Share
    text: Share
    temperature: Positive
    teachers: Teachers


class Recipe(AnyRecipe):
    """AdamW with a warm-up and half a cosine; `clip` is the largest norm of the whole gradient, null for any."""

    optimizer: str
    betas: list[Momentum]
    schedule: str
    clip: Positive | None


class VitBert(PaperModule):
    """See the head of this file.

    Args:
        encoder: sizes, see `Encoder`.
        images: see `ImageSizes`.
        texts: see `TextSizes`.
        preprocess: see `PixelSettings`, of pictures.
        modality_embedding: see `Network`, also for `deviation`.
        shared: with false, each modality has an encoder of its own: a ViT and a BERT in one arm, who can be teachers.
        losses: see `Weights`.
        gradients: how those of the two modalities become one, see `SharedGradients`.
        masking: see `Masking`.
        distillation: see `Distillation`.

    Raises:
        ValueError: gradients of encoders that are not shared are to be masked or projected; nothing is learnt; or see
            `Network`.
    """

    recipe_form = Recipe
    predictor = "lightning_modules.vit_bert.predictor.Answers"

    def __init__(
        self,
        *,
        encoder: EncoderSizes,
        images: ImageSizes,
        texts: TextSizes,
        preprocess: PixelSettings,
        modality_embedding: bool,
        deviation: Positive | None,
        shared: bool,
        losses: Weights,
        gradients: Combination,
        masking: Masking,
        distillation: Distillation,
    ):
        super().__init__()
        if not shared and gradients != "sum":
            raise ValueError(f"model.gradients is {gradients!r}, but nothing is shared: set it to sum.")
        if not any(losses.values()):
            raise ValueError(f"model.losses ({dict(losses)}) are all zero, expected one above 0.")
        sizes = {"encoder": encoder, "images": images, "texts": texts, "modality_embedding": modality_embedding}
        self.network = Network(**sizes, shared=shared, deviation=deviation)
        self.preprocess = Preprocess(**preprocess)
        self.masks = SharedGradients(self.network.encoders["shared"], gradients, masking) if shared else None
        self.losses, self.distilled = losses, distillation
        self.teachers = nn.ModuleDict(self._teachers(sizes, distillation))

    def _teachers(self, sizes: dict[str, Any], distillation: Distillation) -> dict[str, nn.Module]:
        named = {task: distillation["teachers"][modality] for task, modality in TASKS.items() if distillation[modality]}
        found: dict[str, nn.Module] = {}
        if named.get("images"):
            found["images"] = ImageTeacher(named["images"], self.preprocess.statistics)
        if named.get("texts"):
            found["texts"] = TextTeacher(named["texts"])
        if None in named.values():
            found["own"] = OwnTeacher(Network(**sizes, shared=False))
        return found

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the teachers that an arm with `shared: false` has trained.

        Raises:
            ValueError: no own teacher is wanted, or the arm is another one.
        """
        if "own" not in self.teachers:
            raise ValueError(
                "the plan names an arm with `from`, but model.distillation has no teacher of our own: remove `from`, "
                "or give distillation.image or .text a share and set its teacher to null."
            )
        self.teachers["own"].load(network_weights(weights))

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse data that the network cannot read, and teachers without weights.

        Raises:
            ValueError: see above; both values are told.
        """
        check_tasks(data, self.network)
        if "own" in self.teachers and not self.teachers["own"].loaded:
            raise ValueError(
                "model.distillation wants teachers of our own, but the plan names no arm that has trained them: add "
                "`from`, an arm with model.shared: false, or name published ones."
            )

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The losses of both modalities; what their gradients do to shared weights is decided in `masking.py`."""
        both = len(batch) == len(TASKS)
        if both and self.masks is not None:
            self.masks.begin(self.network.encoders["shared"], watched=self._watched())
        terms = {name: term for rows in batch.values() for name, term in self.terms(rows, split=both).items()}
        self.log_terms({f"pretrain/{name}": term for name, term in terms.items()})
        total = sum(self.losses[name] * term for name, term in terms.items())
        return total + self._touched() if self._many() else total

    def terms(self, batch: Batch, *, split: bool = False) -> dict[str, Float[Tensor, ""]]:
        """The losses of a batch of one modality.

        Args:
            batch: `images` with `labels`; or `token_ids`, `attention_mask`, `targets`, and `segments` and `labels` of
                pairs.
            split: whether gradients of shared weights are kept apart.
        """
        return self._image_terms(batch, split) if "images" in batch else self._text_terms(batch, split)

    def _image_terms(self, batch: Batch, split: bool) -> dict[str, Float[Tensor, ""]]:
        images, share = self.preprocess(batch["images"]), self.distilled["image"]
        logits = self.network.heads["images"](self._encode("image", self.network.embed_images(images), None, split))
        loss, soft = cross_entropy(logits, batch["labels"]), None
        if share:
            told = self.teachers["images"](images) if "images" in self.teachers else self.teachers["own"].images(images)
            soft = distillation(logits, told, self.distilled["temperature"])
        return {"images": mixed(loss, soft, share)}

    def _text_terms(self, batch: Batch, split: bool) -> dict[str, Float[Tensor, ""]]:
        token_ids, there, segments = batch["token_ids"], batch["attention_mask"], batch.get("segments")
        asked, share = batch["targets"] >= 0, self.distilled["text"]
        features = self._encode("text", self.network.embed_texts(token_ids, segments), there, split)
        said = {"words": self.network.word_logits(features, asked)}
        labels = {"words": batch["targets"][asked]}
        if self._has_pairs(batch):
            said["pairs"], labels["pairs"] = self.network.heads["pairs"](features), batch["labels"]
        told: dict[str, Tensor] = {}
        if share:
            teach = self.teachers["texts"] if "texts" in self.teachers else self.teachers["own"].texts
            told = dict(zip(("words", "pairs"), teach(token_ids, there, segments, asked), strict=True))
        found = {}
        for name, logits in said.items():
            soft = distillation(logits, told[name], self.distilled["temperature"]) if share else None
            found[name] = mixed(cross_entropy(logits, labels[name]), soft, share)
        return found

    def _has_pairs(self, batch: Batch) -> bool:
        return "pairs" in self.network.heads and "segments" in batch

    def _encode(self, modality: Modality, tokens: Tensor, there: Tensor | None, split: bool) -> Tensor:
        encoder = self.network.encoder(modality)
        views = self.masks.views(encoder, modality) if split and self.masks is not None else {}
        return functional_call(encoder, views, (tokens, there)) if views else encoder(tokens, there)

    def _watched(self) -> bool:
        """Whether this step is logged, so that gradients of both modalities are worth being compared."""
        if self._trainer is None or not self.trainer.training:
            return False
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0

    def _many(self) -> bool:
        """Whether several processes train together, each of which has to give every parameter a gradient."""
        return self._trainer is not None and self.trainer.world_size > 1

    def _touched(self) -> Float[Tensor, ""]:
        """Zero, with a gradient of zero for every parameter."""
        return 0.0 * sum(parameter.flatten()[0] for parameter in self.parameters() if parameter.requires_grad)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Mask or project what is shared; what a step has not touched rests, as in a single process."""
        if (self.masks is not None and self.masks.gathered) or self._masks():
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            found = self.masks.before_step(
                self.network.encoders["shared"], self.trainer.global_step + 1,
                int(self.trainer.estimated_stepping_batches), 1.0 if scaler is None else scaler.get_scale(),
            )  # fmt: skip
            if self._watched():
                self.log_terms({**found, **dict(self.masks.density_by_block())})
        for parameter in self.parameters() if self._many() else ():
            if parameter.grad is not None and not parameter.grad.any():
                parameter.grad = None

    def _masks(self) -> bool:
        return self.masks is not None and self.masks.combination == "mask"

    def parameter_groups(self) -> list[dict]:
        """Matrices and embeddings are decayed; norms, biases, positions and class token are not."""
        undecayed = [name for name, _ in self.named_parameters() if name.endswith((".cls", ".positions"))]
        return decay_groups(self.named_parameters(), undecayed=undecayed)

    def configure_gradient_clipping(self, optimizer: Optimizer, **_: object) -> None:
        """Keep the norm of the whole gradient within `clip`, where there is one."""
        if self.recipe["clip"] is not None:
            super().configure_gradient_clipping(optimizer)

    def validate(self, data: LightningDataModule, batches: Iterable[dict[str, Any]]) -> dict[str, Tensor]:
        """Losses, and shares of right classes (`image_accuracy`), masked words and pairs."""
        sums, counts = defaultdict(float), defaultdict(int)
        for batch in batches:
            if batch["task"] not in data.trained:
                continue
            for name, term in self.terms(batch).items():
                rows = int((batch["targets"] >= 0).sum()) if name == "words" else len(batch["labels"])
                sums[f"{name}_loss"] += rows * term.double()
                counts[f"{name}_loss"] += rows
            for name, right in self.right(batch).items():
                sums[f"{name}_accuracy"] += right.double().sum()
                counts[f"{name}_accuracy"] += len(right)
        return {name: value / max(1, counts[name]) for name, value in sums.items()}

    def right(self, batch: Batch) -> dict[str, Bool[Tensor, " judged"]]:
        """Which answers are right: of `image`, or of `masked_word` and `pair`."""
        if "images" in batch:
            return {"image": self(batch["images"]).argmax(1) == batch["labels"]}
        features = self.network.text_features(batch["token_ids"], batch["attention_mask"], batch.get("segments"))
        asked = batch["targets"] >= 0
        found = {"masked_word": self.network.word_logits(features, asked).argmax(1) == batch["targets"][asked]}
        if self._has_pairs(batch):
            found["pair"] = self.network.heads["pairs"](features).argmax(1) == batch["labels"]
        return found

    def forward(self, images: Shaped[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of stored pixels."""
        return self.network.heads["images"](self.network.image_features(self.preprocess(images)))

    @torch.no_grad()
    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """What is judged, of the tasks that were learnt: `right/<image, masked_word, pair>` (bool).

        For the page `shown/<images, labels, told>` and `shown/<token_ids, targets, words>`, the first rows; and of a
        mask `densities` (prunings + 1, matrices), with their names in `facts`, and `corner/<matrix>`, a part of it.
        """
        self.to(device).eval()
        right, found = defaultdict(list), {}
        (split,) = judged(data.splits)
        for task in data.trained:
            for number, batch in enumerate(data.evaluation_batches(split, task)):
                rows = {name: x.to(device) for name, x in batch.items() if isinstance(x, Tensor)}
                for name, values in self.right(rows).items():
                    right[f"right/{name}"].append(values.cpu())
                if not number:
                    found |= self._shown({name: x[:SHOWN] for name, x in rows.items()})
        found |= {name: torch.cat(parts) for name, parts in right.items()}
        if self._masks():
            found["densities"] = self.masks.densities.cpu().clone()
            for name in self.masks.masked:
                corner = self.masks.part(self.masks.mask, name)
                if corner.ndim == 2:
                    found[f"corner/{name}"] = corner[:CORNER, :CORNER].cpu().contiguous()
        return found

    def _shown(self, batch: Batch) -> dict[str, Tensor]:
        if "images" in batch:
            shown = {"images": batch["images"], "labels": batch["labels"], "told": self(batch["images"]).argmax(1)}
        else:
            features = self.network.text_features(batch["token_ids"], batch["attention_mask"], batch.get("segments"))
            words = self.network.word_logits(features, torch.ones_like(batch["attention_mask"])).argmax(1)
            shown = {
                "token_ids": batch["token_ids"],
                "targets": batch["targets"],
                "words": words.view_as(batch["targets"]),
            }
        return {f"shown/{name}": x.cpu().contiguous() for name, x in shown.items()}

    def export(self) -> dict[str, Tensor]:
        """The network, and the mask of each shared weight (`grad_mask.<weight>`, true where `masking.first` has it)."""
        found = {f"network.{name}": x for name, x in self.network.state_dict().items()}
        if self._masks():
            found |= {f"grad_mask.{name}": self.masks.part(self.masks.mask, name).clone() for name in self.masks.masked}
        return found

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `export` gave.

        Raises:
            ValueError: it is of another architecture, or has no mask of its weights.
        """
        load_strictly(self.network, network_weights(weights), "exported weights")
        masks = {name.removeprefix("grad_mask."): x for name, x in weights.items() if name.startswith("grad_mask.")}
        wanted = self.masks.masked if self._masks() else []
        if set(masks) != set(wanted):
            raise ValueError(
                f"exported weights have masks of {len(masks)} weights, expected {len(wanted)}: build the model with "
                "the settings `gradients` and `masking` of their arm."
            )
        for name in wanted:
            self.masks.part(self.masks.mask, name).copy_(masks[name])

    def to_transformers(self) -> Exported:
        """The side of pictures as a ViT, see `exporting`."""
        return exported(self.network, self.preprocess.statistics)

    def facts(self) -> dict:
        """Sizes of the network and of one that shares nothing, and the names of masked weights."""
        shared = sum(count_parameters(part) for part in self.network.encoders.values())
        own = 2 * shared if self.network.shared else shared
        found = {
            "parameters": count_parameters(self.network),
            "parameters_of_two_models": count_parameters(self.network) - shared + own,
            "encoder_parameters": shared,
        }
        return found | (
            {"masked": list(self.masks.masked), "first": self.masks.settings["first"]} if self._masks() else {}
        )


def network_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the network in what `VitBert.export` gave."""
    return {name.removeprefix("network."): x for name, x in weights.items() if name.startswith("network.")}


def check_tasks(data: LightningDataModule, network: Network) -> None:
    """Refuse data that a network cannot read.

    Raises:
        ValueError: tasks have other names, or pictures, classes, words or lengths do not fit.
    """
    if unknown := sorted(set(data.tasks) - set(TASKS)):
        raise ValueError(f"data.tasks has {unknown[0]!r}, expected {' and '.join(TASKS)}: rename or remove it.")
    pairs = "pairs" in network.heads
    if "images" in data.tasks:
        classes, there = network.heads["images"].classifier.out_features, data.tasks["images"].num_classes
        if there > classes:
            raise ValueError(f"model.images.classes is {classes}, but the pictures have {there} classes: set it so.")
    if "texts" in data.tasks:
        texts, tokens = data.tasks["texts"], network.tokens["text"]
        sizes = {"words": (len(tokens.words.weight), len(texts.tokenizer)),
                 "positions": (len(tokens.positions), texts.text_length)}  # fmt: skip
        for name, (has, needed) in sizes.items():
            if has < needed:
                raise ValueError(f"model.texts.{name} is {has}, but the texts need {needed}: set it to that.")
        if pairs != texts.pairs:
            raise ValueError(
                f"model.texts.pairs is {pairs}, but data.tasks.texts.data.pairs {texts.pairs}: make both equal."
            )
