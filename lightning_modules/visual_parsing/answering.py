"""Tasks after pre-training: questions (VQA), statements about a picture (SNLI-VE), and about two (NLVR2).

All weights learn; the head reads [CLS]. Of two pictures, each is read with the text, and the head reads both [CLS].
Search among pictures and captions needs no new head: its score is that of image-text matching, see `module.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn

from lightning_modules.layers.forms import BertPart, PixelSettings
from lightning_modules.layers.published import load_strictly
from lightning_modules.settings import Count, Positive
from lightning_modules.validation import judged
from lightning_modules.visual_parsing.module import Batch, Reader
from lightning_modules.visual_parsing.parsing import VisualSettings

PREFIX = "network."
SHOWN = 8  # rows for the page
LABELS = {"entailment": 3, "pair": 2}


class Answering(Reader):
    """A pre-trained network with a new head of two layers.

    Args:
        visual: as in pre-training, like all up to `preprocess`.
        task: `question`, `entailment` or `pair`.
        outputs: answers that can be given: of questions those of the data, three labels, or true and false.

    Raises:
        ValueError: the task has another number of labels.
    """

    def __init__(
        self,
        *,
        visual: VisualSettings,
        bert: BertPart,
        positions: Count | None,
        position_deviation: Positive,
        feature_head: Literal["linear", "mlp"],
        preprocess: PixelSettings,
        task: Literal["question", "entailment", "pair"],
        outputs: Count,
    ):
        super().__init__(visual, bert, positions, position_deviation, feature_head, preprocess)
        if LABELS.get(task, outputs) != outputs:
            raise ValueError(f"model.outputs is {outputs}, but the task {task} has {LABELS[task]} labels.")
        dim = self.network.bert.config.hidden_size
        read = dim * (2 if task == "pair" else 1)
        self.task = task
        self.built = {
            "_target_": f"{type(self).__module__}.{type(self).__name__}", "visual": visual, "bert": bert,
            "positions": positions, "position_deviation": position_deviation, "feature_head": feature_head,
            "preprocess": preprocess, "task": task, "outputs": outputs,
        }  # fmt: skip
        self.learnt: dict[str, Any] = {}
        self.head = nn.Sequential(
            nn.Linear(read, 2 * dim), nn.GELU(), nn.LayerNorm(2 * dim), nn.Linear(2 * dim, outputs)
        )
        for layer in (self.head[0], self.head[3]):
            nn.init.normal_(layer.weight, std=self.network.bert.config.initializer_range)
            nn.init.zeros_(layer.bias)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the pre-trained network.

        Raises:
            ValueError: it is of another architecture.
        """
        found = {name.removeprefix(PREFIX): x for name, x in weights.items() if name.startswith(PREFIX)}
        load_strictly(self.network, found, "the pre-trained network")

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse data of another task, with other words, or with another number of answers.

        Raises:
            ValueError: see above.
        """
        if data.task != self.task:
            raise ValueError(f"data.task is {data.task!r}, but model.task is {self.task!r}: they must be equal.")
        if self.task == "question" and len(data.answers) != self.head[3].out_features:
            raise ValueError(
                f"the data has {len(data.answers)} answers, but model.outputs is {self.head[3].out_features}: they "
                "must be equal."
            )
        self.read_by(data)
        read = {name: getattr(data, name, None) for name in ("text_length", "short", "long")}
        self.learnt = {"data": {"tokenizer": data.tokenizer_name, **read}}
        if self.task == "question":
            self.learnt |= {"kinds": list(data.kinds), "answers": list(data.answers)}

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Float[Tensor, ""]:
        """The loss of the task."""
        loss = self.loss(self.logits(batch), batch)
        self.log_terms({"finetune/loss": loss})
        return loss + self.touched()

    def loss(self, logits: Float[Tensor, "batch outputs"], batch: Batch) -> Float[Tensor, ""]:
        """Of questions binary cross-entropy with soft labels, summed over answers; else cross-entropy of labels."""
        if self.task == "question":
            each = F.binary_cross_entropy_with_logits(logits.float(), batch["targets"].float(), reduction="none")
            return each.sum(1).mean()
        return F.cross_entropy(logits.float(), batch["labels"])

    def logits(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Outputs of a batch; of pairs, pictures are (batch 2 3 height width)."""
        if self.task != "pair":
            return self.head(self._read(batch))
        flat = {name: x.flatten(0, 1) for name, x in batch.items() if name in ("images", "sizes")}
        flat |= {name: batch[name].repeat_interleave(2, 0) for name in ("token_ids", "attention_mask")}
        return self.head(self._read(flat).unflatten(0, (-1, 2)).flatten(1))

    def _read(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        parsed, there = self.parsed(batch)
        return self.network.pooled(self.network.fuse(batch["token_ids"], batch["attention_mask"], parsed, there))

    def validate(self, data: LightningDataModule, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """The loss, and how much of the right answer is said."""
        loss, right, rows = 0.0, 0.0, 0
        for batch in batches:
            logits, count = self.logits(batch), len(batch["token_ids"])
            loss, rows = loss + count * self.loss(logits, batch).double(), rows + count
            right = right + self.credit(logits, batch).double().sum()
        return {"loss": loss / rows, "accuracy": right / rows}

    def credit(self, logits: Float[Tensor, "batch outputs"], batch: Batch) -> Float[Tensor, " batch"]:
        """What each answer counts: of questions its soft label, else 1 if it is right."""
        said = logits.argmax(1)
        if self.task == "question":
            return batch["targets"].gather(1, said[:, None])[:, 0].float()
        return (said == batch["labels"]).float()

    @torch.no_grad()
    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """What is said of each row that is judged.

        `answers`, the output with the highest logit; `credit`; `rows`; `kinds` of questions; `labels`, -1 where no
        right answer can be given; `groups`; the same as `also/<source>/...` of what is judged besides; and for the page
        `shown/<images, token_ids>`.
        """
        self.to(device).eval()
        (split,) = judged(data.splits)
        found = self._judged(data, split, device)
        for source in getattr(data, "also", ()):
            found |= {f"also/{source}/{name}": x for name, x in self._judged(data, source, device).items()}
        batch = next(iter(data.evaluation_batches(split)))
        return found | {f"shown/{name}": batch[name][:SHOWN].cpu() for name in ("images", "token_ids")}

    def _judged(self, data: LightningDataModule, split: str, device: torch.device) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for batch in data.evaluation_batches(split):
            rows = {name: x.to(device) for name, x in batch.items() if isinstance(x, Tensor)}
            logits = self.logits(rows)
            columns = {name: rows[name] for name in ("rows", "kinds", "labels", "groups") if name in rows}
            columns |= {"answers": logits.argmax(1), "credit": self.credit(logits, rows)}
            if "targets" in rows:
                best = rows["targets"].max(1)
                columns["labels"] = best.indices.masked_fill(best.values == 0, -1)
            for name, values in columns.items():
                found.setdefault(name, []).append(values.cpu())
        return {name: torch.cat(values) for name, values in found.items()}

    def facts(self) -> dict:
        """The task, what answers need (see `predictor`), and of questions the names of kinds and answers."""
        return {"task": self.task, "model": self.built, **self.learnt}
