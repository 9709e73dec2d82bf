"""IMP: Alternating Gradient Descent and Mixture-of-Experts for Integrated Multimodal Perception (2305.06324).

One encoder reads pictures, clips, sounds and texts. A step learns one objective on one data set, in one shape, so that
nothing is padded to a common form and no losses are added up; the last layers have experts.

Read `Imp.training_step` first, then `network.py`, `experts.py` and `routing.py`. Differences from the official code are
in `facts.yaml`, with their reasons.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import combinations, permutations
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import AnyRecipe, Momentum, PaperModule
from lightning_modules.datasets.sentence_pieces import SentencePieces, caption_tokenizer
from lightning_modules.datasets.storage import card
from lightning_modules.datasets.tokenizers import TextTokenizer
from lightning_modules.imp.experts import Mixture
from lightning_modules.imp.network import EncoderSizes, Modalities, Network, Spectrogram, Tasks, Text
from lightning_modules.imp.objectives import IGNORED, classification, cross_modal_nce, masked_words
from lightning_modules.imp.schedules import pre_warmup_cosine
from lightning_modules.imp.tokens import (
    LOUDEST,
    Dropping,
    Tokens,
    drop_tokens,
    log_mel,
    spectrogram_patches,
    still,
    text_tokens,
    tubelets,
    waveform_patches,
)
from lightning_modules.imp.weights import load_official, read_arrays
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import STRICT, Count, NonNegative, Positive, Share
from lightning_modules.validation import judged

PROBED = 1024  # rows that a linear probe learns from
SHOWN = 8  # rows for the page
SHARED = "shared"  # the name of the one network of all tasks
CONTENT = {  # columns of a batch that a modality is read from, the first that is there; and axes without instances
    "vision": (("video", 5), ("images", 4)),
    "waveform": (("audio", 2),),
    "spectrogram": (("audio", 2),),
    "text": (("token_ids", 2),),
}
HEARD = ("rate", "frame", "step", "bands", "lowest", "highest")  # settings of `log_mel`
Batch = Mapping[str, Tensor]


class Shown(TypedDict):
    """Of a user's files: side of pictures and clips, frames of clips, samples of sounds."""

    __pydantic_config__ = STRICT
    side: Count
    frames: Count
    samples: Count


class Prompts(TypedDict):
    """Texts about the classes of a task: every template with the name of the class in place of `{}`.

    `classes`: null for the names that the data set has.
    """

    __pydantic_config__ = STRICT
    classes: Annotated[list[str], Field(min_length=2)] | None
    templates: Annotated[list[str], Field(min_length=1)]


class Recipe(AnyRecipe):
    """AdamW with the official schedule; shares are of all steps."""

    optimizer: Literal["adamw"]
    betas: Annotated[list[Momentum], Field(min_length=2, max_length=2)]
    eps: Positive
    clip: Positive
    schedule: Literal["pre_warmup_cosine"]
    start_lr: NonNegative  # at the beginning of the warm-up
    end_lr: NonNegative
    pre_warmup: Share
    pre_warmup_lr: NonNegative  # at the first step


class Imp(PaperModule):
    """See the head of this file.

    Args:
        encoder: sizes, see `Encoder`.
        mixture: of its layers with experts, see `Mixture`; null for none.
        modalities: how each becomes tokens.
        tasks: what is learnt from each data set; the names are those of the data module.
        common_dim: of the spaces in which modalities are compared.
        temperature: at the start.
        dropping: see `drop_tokens`.
        shared: one network for all tasks, or with false one for each, as if each were trained alone.
        zero_gradients: what a step does not touch has a gradient of zero, as in JAX: its moments decay, and what is
            left of them still moves it. With false it has none, as in torch, and rests.
        prompts: of the tasks whose classes are found by texts, too; `shared` networks alone can.
        tokenizer: of texts, `world` or that of a published model.
        published: path of an official checkpoint to begin with, see `weights`; null for none.
        shown: how a user's files are shown to it, see `Shown`.

    Raises:
        ValueError: see `Network`; or there are prompts that fit no task, bands that no sound has, or the checkpoint
            does not fit.
    """

    recipe_form = Recipe
    predictor = "lightning_modules.imp.predictor.Nearest"

    def __init__(
        self,
        *,
        encoder: EncoderSizes,
        mixture: Mixture | None,
        modalities: Modalities,
        tasks: Tasks,
        common_dim: Count,
        temperature: Positive,
        dropping: Dropping = "sample",
        shared: bool = True,
        zero_gradients: bool = True,
        prompts: dict[str, Prompts] | None = None,
        tokenizer: str = "world",
        published: str | None = None,
        shown: Shown,
    ):
        super().__init__()
        self.tasks, self.modalities, self.dropping = tasks, modalities, dropping
        self.shared, self.zero_gradients = shared, zero_gradients
        self.shown, self.tokenizer_name, self.prompts = shown, tokenizer, (prompts or {}) if shared else {}
        parts = {SHARED: tasks} if shared else {name: {name: task} for name, task in tasks.items()}
        self.networks = nn.ModuleDict(
            {
                name: Network(
                    sizes=encoder, mixture=mixture, modalities=modalities, tasks=part, common_dim=common_dim,
                    temperature=temperature,
                )
                for name, part in parts.items()
            }
        )  # fmt: skip
        check_prompts(self.prompts, tasks)
        if "spectrogram" in modalities:
            _check_bands(modalities["spectrogram"])
        if published is not None:
            self.load_published(published)

    @cached_property
    def tokenizer(self) -> TextTokenizer | SentencePieces:
        """What cuts texts."""
        return caption_tokenizer(self.tokenizer_name)

    def network(self, task: str) -> Network:
        """That of a task."""
        return self.networks[SHARED if self.shared else task]

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The losses of the tasks in the batch: one task in alternating steps, all of them where losses are summed."""
        terms = self.terms(batch)
        self.log_terms({f"pretrain/{name}": term for name, term in terms.items()})
        total = sum(self.tasks[name.split("/")[0]]["weight"] * term for name, term in terms.items())
        if not self.zero_gradients and not self._many():
            return total
        return _Touched.apply(total, *(parameter for parameter in self.parameters() if parameter.requires_grad))

    def terms(self, batch: Mapping[str, Batch]) -> dict[str, Float[Tensor, ""]]:
        """The loss of each task, and that of its experts (`<task>/experts`)."""
        found = {}
        for name, rows in batch.items():
            found[name], experts = self.loss(name, rows)
            if experts is not None:
                found[f"{name}/experts"] = experts
        return found

    def loss(self, name: str, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | None]:
        """The loss of a task, and the sum of those of the layers with experts over all passes; null without any."""
        task, network = self.tasks[name], self.network(name)
        experts = network.encoder.experts()
        losses = []
        if task["objective"] == "masked_words":
            tokens, _ = self.tokens("text", batch)
            logits = network.word_classifier(network.features("text", tokens))
            losses += [layer.loss for layer in experts]
            return masked_words(logits, batch["targets"]), sum(losses) if experts else None
        pooled = {}
        for modality in task["modalities"]:
            pooled[modality] = self.pooled(name, modality, batch)
            losses += [layer.loss for layer in experts]
        return self.objective(name, pooled, batch), sum(losses) if experts else None

    def objective(
        self, name: str, pooled: Mapping[str, Float[Tensor, "rows instances dim"]], batch: Batch
    ) -> Float[Tensor, ""]:
        """Contrast of all pairs of modalities, their mean, or classification of the only one."""
        task, network = self.tasks[name], self.network(name)
        if task["objective"] == "classification":
            logits = network.classifiers[name](pooled[task["modalities"][0]]).mean(1)
            return classification(logits, batch["labels"])
        pairs = list(combinations(task["modalities"], 2))
        return sum(
            cross_modal_nce(
                network.common_vectors(a, b, pooled[a]),
                network.common_vectors(b, a, pooled[b]),
                network.temperature(a, b),
            )
            for a, b in pairs
        ) / len(pairs)

    def pooled(self, name: str, modality: str, batch: Batch) -> Float[Tensor, "rows instances dim"]:
        """Features of each instance of each row; training drops tokens."""
        tokens, instances = self.tokens(modality, batch)
        rate = float(batch["drop_rate"]) if "drop_rate" in batch else self.tasks[name]["drop"]
        if self.training and modality != "text" and rate:
            tokens = drop_tokens(tokens, rate, self.dropping)
        return self.network(name).pooled(modality, tokens).unflatten(0, (-1, instances))

    def tokens(self, modality: str, batch: Batch) -> tuple[Tokens, int]:
        """Tokens of one modality of a batch, and how many instances a row has: captions of a clip, or clips of a video.

        Raises:
            ValueError: the batch has nothing of this modality.
        """
        found = next(((name, axes) for name, axes in CONTENT[modality] if name in batch), None)
        if found is None:
            wanted = " or ".join(name for name, _ in CONTENT[modality])
            raise ValueError(f"a batch with {', '.join(batch)} has no {wanted}, of which {modality} is read.")
        name, axes = found
        content = batch[name]
        instances = content.shape[1] if content.ndim > axes else 1
        flat = content.flatten(0, 1) if content.ndim > axes else content
        return self._cut(modality, name, flat, batch), instances

    def _cut(self, modality: str, name: str, content: Tensor, batch: Batch) -> Tokens:
        settings = self.modalities[modality]
        if modality == "text":
            return text_tokens(content, batch["attention_mask"].reshape(content.shape))
        if modality == "vision":
            clip = content if name == "video" else still(content, settings["patch"][0])
            return tubelets(clip, tuple(settings["patch"]))
        if modality == "waveform":
            return waveform_patches(_wave(content), settings["patch"])
        bands = log_mel(_wave(content), **{key: settings[key] for key in HEARD})
        return spectrogram_patches((bands - settings["mean"]) / settings["deviation"], tuple(settings["patch"]))

    def _many(self) -> bool:
        """Whether several processes train together, each of which has to give every parameter a gradient."""
        return self._trainer is not None and self.trainer.world_size > 1

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Take the gradients of zero away, where they are there for other processes alone; see `zero_gradients`."""
        if not self.zero_gradients and self._many():
            for parameter in self.parameters():
                if parameter.grad is not None and not parameter.grad.any():
                    parameter.grad = None

    def parameter_groups(self) -> list[dict]:
        """Matrices of linear maps are decayed; norms, biases, tables, temperatures and soft routers are not."""
        decayed = {f"networks.{name}.{kernel}" for name, part in self.networks.items() for kernel in part.kernels()}
        groups = [
            {"params": [p for name, p in self.named_parameters() if name in decayed]},
            {"params": [p for name, p in self.named_parameters() if name not in decayed], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> dict:
        """AdamW and the official schedule over all steps of the training."""
        optimizer, recipe = self._optimizer(), self.recipe
        total = int(self.trainer.estimated_stepping_batches)
        schedule = pre_warmup_cosine(
            peak=recipe["lr"], start=recipe["start_lr"], end=recipe["end_lr"],
            warmup_steps=round(recipe["warmup"] * total), decay_steps=total,
            pre_warmup_steps=round(recipe["pre_warmup"] * total), pre_warmup_start=recipe["pre_warmup_lr"],
        )  # fmt: skip
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, schedule), "interval": "step"},
        }

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The layers of the encoders."""
        return [layer for network in self.networks.values() for layer in network.encoder.layers]

    def load_published(self, path: str) -> None:
        """Take over an official checkpoint, see `weights`.

        Raises:
            ValueError: there is one network for each task, or the file is of another architecture.
        """
        if not self.shared:
            raise ValueError("model.published is one network, but model.shared is false: set it to true.")
        load_official(self.networks[SHARED], read_arrays(Path(path)), path)

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse tasks of other names than those of the data, and data that the network cannot read.

        Raises:
            ValueError: the names differ, rows have no classes or more than the classifier, or texts more words or a
                greater length than the network.
        """
        if set(data.tasks) != set(self.tasks):
            raise ValueError(
                f"model.tasks has {', '.join(self.tasks)}, but data.tasks {', '.join(data.tasks)}: name the same ones."
            )
        for name in data.trained:
            task = self.tasks[name]
            if task["classes"] is not None:
                _check_classes(name, task["classes"], getattr(data.tasks[name], "num_classes", task["classes"]))
            if "text" in task["modalities"]:
                _check_words(name, self.modalities["text"], data.tasks[name])

    def validate(self, data: LightningDataModule, batches: Iterable[dict[str, Tensor | str]]) -> dict[str, Tensor]:
        """The loss of each task, and how often its best answer is right."""
        sums, rows = defaultdict(float), defaultdict(int)
        for name, batch in map(parted, batches):
            if name not in data.trained:
                continue
            count = len(next(iter(batch.values())))
            rows[name] += count
            sums[f"{name}/loss"] += count * self.loss(name, batch)[0].double()
            sums[f"{name}/accuracy"] += count * self.right(name, batch).double()
        return {key: value / rows[key.split("/")[0]] for key, value in sums.items()}

    def right(self, name: str, batch: Batch) -> Float[Tensor, ""]:
        """Share of right answers: the class, the masked word, or the own row among all rows of the batch."""
        task = self.tasks[name]
        if task["objective"] == "masked_words":
            right, asked = self.words(name, batch).unbind(1)
            return right.sum() / asked.sum().clamp_min(1)
        if task["objective"] == "classification":
            return (self.class_logits(name, batch)[0].argmax(1) == numbers(batch["labels"])).float().mean()
        vectors = self.vectors(name, batch)
        pairs = [vectors[f"{a}_to_{b}"] @ vectors[f"{b}_to_{a}"].T for a, b in combinations(task["modalities"], 2)]
        own = torch.arange(len(pairs[0]), device=self.device)
        return torch.stack([(x.argmax(1) == own).float().mean() for pair in pairs for x in (pair, pair.T)]).mean()

    def class_logits(self, name: str, batch: Batch) -> tuple[Float[Tensor, "rows classes"], Float[Tensor, "rows dim"]]:
        """Logits of a classification, and the features that they are read from, both the mean of all instances."""
        pooled = self.pooled(name, self.tasks[name]["modalities"][0], batch)
        return self.network(name).classifiers[name](pooled).mean(1), pooled.mean(1)

    def words(self, name: str, batch: Batch) -> Float[Tensor, "rows 2"]:
        """How many masked words of each row are right, and how many there are."""
        network, (tokens, _) = self.network(name), self.tokens("text", batch)
        found = network.word_classifier(network.features("text", tokens)).argmax(2)
        asked = batch["targets"] != IGNORED
        return torch.stack([((found == batch["targets"]) & asked).sum(1), asked.sum(1)], dim=1).float()

    def vectors(self, name: str, batch: Batch) -> dict[str, Float[Tensor, "rows common"]]:
        """Vectors of length 1 for each ordered pair of modalities of a contrast, `vision_to_text` and so on."""
        task, network = self.tasks[name], self.network(name)
        pooled = {modality: self.pooled(name, modality, batch) for modality in task["modalities"]}
        return {
            f"{a}_to_{b}": F.normalize(network.common_vectors(a, b, pooled[a]).mean(1), dim=-1)
            for a, b in permutations(task["modalities"], 2)
        }

    @torch.no_grad()
    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """What the evaluation reads, of the rows that are judged.

        Of a classification `<task>/logits`, `<task>/labels` and `<task>/features`, and `<task>/probe_features` and
        `<task>/probe_labels` of rows to learn a probe from; of a contrast `<task>/<modality>_to_<modality>`; of masked
        words `<task>/words`. `<task>/prompts` are vectors of the classes, of texts, and `<task>/prompted` those of the
        rows that they are compared with. `experts/<modality>/probability` and `experts/<modality>/first`, (layers
        experts), are the router's mean probability and how often an expert is its first choice. `shown/...`: some rows.
        """
        self.to(device).eval()
        found: dict[str, list[Tensor]] = defaultdict(list)
        load: dict[str, list[Tensor]] = defaultdict(list)
        (split,) = judged(data.splits)
        learnt = [batch for task in data.trained for batch in data.evaluation_batches(split, task)]
        for name, batch in map(parted, learnt):
            rows = {key: x.to(device) for key, x in batch.items()}
            for key, x in self.answers(name, rows).items():
                found[f"{name}/{key}"].append(x.cpu())
            for modality in self.tasks[name]["modalities"]:
                load[modality] += self.routed(name, modality, rows)
        answers = {key: torch.cat(parts) for key, parts in found.items()}
        return answers | self.probes(data, device) | self.prompted(data) | _loads(load) | self.examples(data, split)

    def answers(self, name: str, batch: Batch) -> dict[str, Tensor]:
        """What one task says about some rows."""
        objective = self.tasks[name]["objective"]
        if objective == "masked_words":
            return {"words": self.words(name, batch)}
        if objective == "contrast":
            return self.vectors(name, batch)
        logits, features = self.class_logits(name, batch)
        found = {"logits": logits, "features": features, "labels": numbers(batch["labels"])}
        if name in self.prompts:
            modality, network = self.tasks[name]["modalities"][0], self.network(name)
            found["prompted"] = F.normalize(network.common_vectors(modality, "text", features), dim=-1)
        return found

    def probes(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """Features and labels of rows that were trained on, for linear probes."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        for task in (name for name in data.trained if self.tasks[name]["objective"] == "classification"):
            left = PROBED if "train" in data.splits else 0
            batches = data.evaluation_batches("train", task) if left else iter(())
            while left > 0 and (batch := next(batches, None)) is not None:
                rows = {key: x.to(device) for key, x in parted(batch)[1].items()}
                found[f"{task}/probe_features"].append(self.class_logits(task, rows)[1][:left].cpu())
                found[f"{task}/probe_labels"].append(numbers(rows["labels"])[:left].cpu())
                left -= len(rows["labels"])
        return {key: torch.cat(parts) for key, parts in found.items()}

    @torch.no_grad()
    def prompted(self, data: LightningDataModule) -> dict[str, Tensor]:
        """Vectors of the classes of the tasks that have prompts, of those that were trained."""
        return {
            f"{name}/prompts": self.class_vectors(
                [[template.format(each) for template in told["templates"]] for each in self.class_names(name, data)],
                self.tasks[name]["modalities"][0],
            ).cpu()
            for name, told in self.prompts.items()
            if name in data.trained
        }

    def class_names(self, name: str, data: LightningDataModule) -> list[str]:
        """Those of a task that has prompts; a copy of a data set may lack some of the last ones.

        Raises:
            ValueError: neither settings nor data set have them.
        """
        if (told := self.prompts[name]["classes"]) is not None:
            return told
        known = card(data.tasks[name].folder).get("classes")
        found = next(iter(known.values())) if isinstance(known, dict) else known
        if not found or len(found) > self.tasks[name]["classes"]:
            raise ValueError(
                f"model.prompts.{name}.classes is null, but the data set has {len(found or [])} names of classes, not "
                f"{self.tasks[name]['classes']}: list them."
            )
        return [each.replace("_", " ") for each in found]

    @torch.no_grad()
    def class_vectors(self, texts: Sequence[Sequence[str]], target: str) -> Float[Tensor, "classes common"]:
        """For each class the direction of the mean of the vectors of its texts.

        Args:
            texts: of each class.
            target: the modality that they are compared with.
        """
        return torch.stack([F.normalize(self.embed_texts(each, target).mean(0), dim=-1) for each in texts])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], target: str) -> Float[Tensor, "texts common"]:
        """Vectors of length 1 of texts.

        Args:
            texts: what is compared.
            target: the modality that they are compared with.

        Raises:
            ValueError: the network was not trained to compare texts with this modality.
        """
        network = self.compares("text", target)
        token_ids, there = self.tokenizer(list(texts), self.modalities["text"]["buckets"])
        longest = int(there.sum(1).max())
        batch = {
            "token_ids": torch.from_numpy(token_ids[:, :longest]).to(self.device),
            "attention_mask": torch.from_numpy(there[:, :longest]).to(self.device),
        }
        return F.normalize(
            network.common_vectors("text", target, network.pooled("text", self.tokens("text", batch)[0])), dim=-1
        )

    @torch.no_grad()
    def embed(self, modality: str, batch: Batch, target: str = "text") -> Float[Tensor, "rows common"]:
        """Vectors of length 1 of pictures, clips or sounds, the mean over the instances of a row.

        Args:
            modality: vision, spectrogram or waveform.
            batch: `images`, `video` or `audio`.
            target: the modality that they are compared with.

        Raises:
            ValueError: the network was not trained to compare these modalities.
        """
        network = self.compares(modality, target)
        tokens, instances = self.tokens(modality, {key: x.to(self.device) for key, x in batch.items()})
        pooled = network.pooled(modality, tokens).unflatten(0, (-1, instances)).mean(1)
        return F.normalize(network.common_vectors(modality, target, pooled), dim=-1)

    def compares(self, source: str, target: str) -> Network:
        """The network that compares two modalities.

        Raises:
            ValueError: there is none.
        """
        for network in self.networks.values():
            if f"{source}_to_{target}" in network.common:
                return network
        known = sorted({pair for network in self.networks.values() for pair in network.common})
        raise ValueError(
            f"the model was not trained to compare {source} with {target}: it knows "
            f"{', '.join(pair.replace('_to_', ' with ') for pair in known) or 'no pairs'}."
        )

    def forward(self, images: Shaped[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Features of stored pictures, before any head."""
        network = next(net for net in self.networks.values() if "vision" in net.embed)
        return network.pooled("vision", self.tokens("vision", {"images": images.to(self.device)})[0])

    def routed(self, name: str, modality: str, batch: Batch) -> list[Float[Tensor, "layers tokens experts"]]:
        """The router's probabilities for every token of one modality; nothing without experts."""
        network = self.network(name)
        experts = network.encoder.experts()
        if not experts:
            return []
        tokens, _ = self.tokens(modality, batch)
        network.features(modality, tokens)
        there = torch.ones(tokens.content.shape[:2], dtype=torch.bool) if tokens.there is None else tokens.there.cpu()
        return [torch.stack([layer.probability.cpu()[there] for layer in experts])]

    def examples(self, data: LightningDataModule, split: str) -> dict[str, Tensor]:
        """Pixels and texts of the first rows, of each task that contrasts."""
        found = {}
        for task in (name for name in data.trained if self.tasks[name]["objective"] == "contrast"):
            _, rows = parted(next(data.evaluation_batches(split, task)))
            for key in ("images", "video"):
                if key in rows:
                    found[f"shown/{task}/{key}"] = rows[key][:SHOWN].cpu().contiguous()
            if "token_ids" in rows and hasattr(self.tokenizer, "decode"):
                said = self.tokenizer.decode(rows["token_ids"][:SHOWN].cpu().numpy())
                found[f"shown/{task}/texts"] = utf8(said)
        return found

    def facts(self) -> dict:
        """Sizes: all parameters, and those that one token meets in the encoder."""
        network = next(iter(self.networks.values()))
        sparse = network.encoder.experts()
        idle = sum(part.numel() - part.numel() // len(part) for layer in sparse for part in (layer.wi, layer.wo))
        whole = count_parameters(network.encoder)
        return {
            "parameters": count_parameters(self),
            "encoder_parameters": whole,
            "active_parameters": whole - idle,
            "modalities": {name: task["modalities"] for name, task in self.tasks.items()},
        }


def utf8(texts: Sequence[str]) -> Shaped[Tensor, "texts bytes"]:
    """Texts as bytes with zeros behind."""
    encoded = [text.encode() for text in texts]
    longest = max([1, *map(len, encoded)])
    return torch.tensor([list(each.ljust(longest, b"\0")) for each in encoded], dtype=torch.uint8)


class _Touched(torch.autograd.Function):
    """A loss as it is, with a gradient of zero in addition for every parameter."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.parameters)


def check_prompts(prompts: Mapping[str, Prompts], tasks: Tasks) -> None:
    """Refuse prompts that cannot be.

    Raises:
        ValueError: they are of no task, of another number of classes, or of what no task compares with texts.
    """
    compared = {each for task in tasks.values() if task["objective"] == "contrast" and "text" in task["modalities"]
                for each in task["modalities"]}  # fmt: skip
    for name, told in prompts.items():
        classes = tasks[name]["classes"] if name in tasks else None
        given = classes if told["classes"] is None else len(told["classes"])
        if classes is None or given != classes or tasks[name]["modalities"][0] not in compared:
            raise ValueError(
                f"model.prompts.{name} has {given} classes, but there is no task of that name with as many whose "
                "modality another task contrasts with texts: correct them, or leave the prompts out."
            )


def _check_bands(heard: Spectrogram) -> None:
    lowest, highest, most = heard["lowest"], heard["highest"], heard["rate"] / 2
    if not lowest < highest <= most:
        raise ValueError(
            f"model.modalities.spectrogram has bands from {lowest} to {highest} Hz at a rate of {heard['rate']}, "
            f"expected lowest < highest <= {most}, half the rate: correct them."
        )


def _check_classes(name: str, classes: int, there: int | None) -> None:
    if there is None:
        raise ValueError(
            f"model.tasks.{name} is a classification, but its rows have no labels: name the column of their classes "
            f"(data.tasks.{name}.data.label)."
        )
    if there > classes:
        raise ValueError(f"model.tasks.{name}.classes is {classes}, but its rows have {there} classes: set it so.")


def _check_words(name: str, text: Text, data: LightningDataModule) -> None:
    words, length = len(data.tokenizer), data.text_length
    for key, has, needed in (("words", text["words"], words), ("buckets", text["buckets"], length)):
        if has < needed:
            raise ValueError(
                f"model.modalities.text.{key} is {has}, but the texts of data.tasks.{name} need {needed}: set it to "
                "that, or give it other texts."
            )


def parted(batch: Mapping[str, Tensor | str]) -> tuple[str, dict[str, Tensor]]:
    """The task of a batch of the evaluation, and the rest of it."""
    return batch["task"], {key: x for key, x in batch.items() if key != "task"}


def numbers(labels: Shaped[Tensor, " rows *classes"]) -> Int[Tensor, " rows"]:
    """Labels as numbers; of rows with several classes the first one."""
    return labels if labels.ndim == 1 else labels.int().argmax(1)


def _wave(sound: Shaped[Tensor, "rows samples"]) -> Float[Tensor, "rows samples"]:
    return sound if sound.is_floating_point() else sound.float() / LOUDEST


def _loads(parts: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    """Mean probability and share of first choices of each expert, of each modality."""
    found = {}
    for modality, each in parts.items():
        if each:
            probability = torch.cat(each, dim=1)
            first = F.one_hot(probability.argmax(2), probability.shape[2]).double().mean(1)
            found[f"experts/{modality}/probability"] = probability.double().mean(1)
            found[f"experts/{modality}/first"] = first
    return found
