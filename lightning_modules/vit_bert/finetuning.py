"""Fine-tuning of one modality: its tokenizer, the encoder and the first half of its head, with a new classifier.

All weights learn. Read `FineTune.training_step` first.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn

from lightning_modules.base import PaperModule, decay_groups
from lightning_modules.datasets.glue import Task
from lightning_modules.layers.forms import PixelSettings
from lightning_modules.layers.published import load_strictly
from lightning_modules.settings import Count, Positive
from lightning_modules.tasks.augmentation import Preprocess
from lightning_modules.validation import judged
from lightning_modules.vit_bert.encoder import Encoder
from lightning_modules.vit_bert.module import Recipe, network_weights
from lightning_modules.vit_bert.network import (
    ClassHead,
    EncoderSizes,
    ImageSizes,
    ImageTokens,
    Modality,
    TextSizes,
    TextTokens,
    initialise,
)

NEW = ("head.classifier.*",)
Batch = Mapping[str, Tensor]


class FineTune(PaperModule):
    """What both modalities have in common; `tokens`, `logits` and `loss` are those of one.

    Args:
        modality: of the tokens.
        head: whose pre-trained first half is taken over, `images` or `pairs`.
        tokens: as in pre-training.
        encoder: see `Encoder`.
        outputs: classes, or 1 for scores.
        deviation: see `Network`.
    """

    recipe_form = Recipe

    def __init__(
        self, modality: Modality, head: str, tokens: nn.Module, encoder: EncoderSizes, outputs: int,
        deviation: float | None,
    ):  # fmt: skip
        super().__init__()
        self.modality, self.from_head = modality, head
        self.tokens, self.encoder = tokens, Encoder(**encoder)
        self.head, self.dropout = ClassHead(encoder["dim"], outputs), nn.Dropout(encoder["dropout"])
        for part in (self.tokens, self.encoder, self.head):
            part.apply(lambda module: initialise(module, deviation))

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what the arm named by `from` has learnt of this modality; the classifier is new.

        Raises:
            ValueError: it is of another architecture.
        """
        network = network_weights(weights)
        shared = any(name.startswith("encoders.shared.") for name in network)
        places = {
            f"tokens.{self.modality}.": "tokens.",
            f"encoders.{'shared' if shared else self.modality}.": "encoder.",
            f"heads.{self.from_head}.pooler.": "head.pooler.",
        }
        found = {ours + name.removeprefix(start): x for start, ours in places.items() for name, x in network.items()
                 if name.startswith(start)}  # fmt: skip
        load_strictly(self, found, "the pre-trained network", new=NEW)

    def training_step(self, batch: Mapping[str, Tensor | Batch], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The loss of the new head."""
        loss = self.loss(rows_of(batch))
        self.log_terms({"finetune/loss": loss})
        return loss

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Cross-entropy of classes; squared error of scores."""
        said = self.logits(batch).float()
        if said.shape[1] == 1:
            return F.mse_loss(said[:, 0], batch["labels"].float())
        return F.cross_entropy(said, batch["labels"])

    def logits(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Outputs of a batch."""
        raise NotImplementedError

    def validate(self, data: LightningDataModule, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss and, of classes, how often the right one is said."""
        loss, right, rows = 0.0, 0.0, 0
        for batch in batches:
            said, count = self.logits(batch).float(), len(batch["labels"])
            loss, rows = loss + count * self.loss(batch).double(), rows + count
            right = right + (said.argmax(1) == batch["labels"]).double().sum()
        found = {"loss": loss / rows, "accuracy": right / rows}
        return found if self.head.classifier.out_features > 1 else {"loss": found["loss"]}

    @torch.no_grad()
    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """`logits` and `labels` of the split that is judged, in the order of its rows."""
        self.to(device).eval()
        said, labels = [], []
        for batch in data.evaluation_batches(judged(data.splits)[0]):
            rows = {name: x.to(device) for name, x in batch.items() if isinstance(x, Tensor)}
            said.append(self.logits(rows).float().cpu())
            labels.append(batch["labels"])
        return {"logits": torch.cat(said), "labels": torch.cat(labels)}

    def parameter_groups(self) -> list[dict]:
        """Matrices and embeddings are decayed; norms, biases, positions and class token are not."""
        return decay_groups(self.named_parameters(), undecayed=["tokens.cls", "tokens.positions"])

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, **_: object) -> None:
        """Keep the norm of the whole gradient within `clip`, where there is one."""
        if self.recipe["clip"] is not None:
            super().configure_gradient_clipping(optimizer)


class FineTuneImages(FineTune):
    """On classes of pictures.

    Args:
        encoder: as in pre-training, see `Encoder`.
        images: sizes of pictures as in pre-training, with the number of the new classes.
        preprocess: see `PixelSettings`.
        modality_embedding: as in pre-training.
        deviation: of the new head, see `Network`.
    """

    def __init__(
        self,
        *,
        encoder: EncoderSizes,
        images: ImageSizes,
        preprocess: PixelSettings,
        modality_embedding: bool,
        deviation: Positive | None,
    ):
        common = {"norm": encoder["norm"], "norm_eps": encoder["norm_eps"], "modality": modality_embedding}
        tokens = ImageTokens(images, encoder["dim"], **common)
        super().__init__("image", "images", tokens, encoder, images["classes"], deviation)
        self.preprocess = Preprocess(**preprocess)

    def logits(self, batch: Batch) -> Float[Tensor, "batch classes"]:
        """Those of stored pixels."""
        return self(batch["images"])

    def forward(self, images: Shaped[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of stored pixels."""
        return self.head(self.encoder(self.dropout(self.tokens(self.preprocess(images)))))


class FineTuneTexts(FineTune):
    """On sentences or pairs of them: tasks of GLUE, or of the captioned world.

    Args:
        encoder: as in pre-training, see `Encoder`.
        texts: as in pre-training.
        modality_embedding: as in pre-training.
        outputs: classes, or 1 for scores (STS-B).
        task: of GLUE, which says how it is judged; null for accuracy.
        deviation: of the new head, see `Network`.

    Raises:
        ValueError: STS-B has not one output, or another task has.
    """

    def __init__(
        self,
        *,
        encoder: EncoderSizes,
        texts: TextSizes,
        modality_embedding: bool,
        outputs: Count,
        task: Task | None,
        deviation: Positive | None,
    ):
        if (outputs == 1) != (task == "stsb"):
            raise ValueError(
                f"model.outputs is {outputs} for the task {task}: it is 1 for stsb alone, whose labels are scores."
            )
        common = {"norm": encoder["norm"], "norm_eps": encoder["norm_eps"], "modality": modality_embedding}
        tokens = TextTokens(texts, encoder["dim"], **common)
        super().__init__("text", "pairs", tokens, encoder, outputs, deviation)
        self.task = task

    def logits(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Those of sentences."""
        return self(batch["token_ids"], batch["attention_mask"], batch.get("segments"))

    def forward(
        self,
        token_ids: Int[Tensor, "batch length"],
        there: Shaped[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch outputs"]:
        """Logits, or scores; `there` is false for padding."""
        return self.head(self.encoder(self.dropout(self.tokens(token_ids, segments)), there))

    def facts(self) -> dict:
        """The task, which says how it is judged."""
        return {"task": self.task}


def rows_of(batch: Mapping[str, Tensor | Batch]) -> Batch:
    """A batch of one task, also where the data module names the task."""
    (*_, last) = batch.values()
    return last if isinstance(last, Mapping) else batch
