"""How a pre-trained vision encoder is judged: fine-tuning, a linear probe, nearest neighbours. The same for all papers.

Read `FineTune.training_step` and `LinearProbe.training_step`; images come as stored pixels, `Preprocess` does the rest.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from lightning_modules.base import PaperModule, ProbeRecipe, TransformerRecipe, decay_groups
from lightning_modules.datamodules.labelled import ImageData, check_images
from lightning_modules.layers.exported import Exported
from lightning_modules.layers.hub_vit import exported_classifier
from lightning_modules.layers.position import sincos_2d
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.teacher import Frozen
from lightning_modules.layers.vision import VisionTransformer, encoder_weights
from lightning_modules.tasks.augmentation import Mix, Preprocess
from lightning_modules.validation import judged, mean_over

POOLS = ("mean", "cls")


class FineTune(PaperModule):
    """The whole encoder trained on labels, deeper layers at a higher rate (MAE's protocol; BEiT's layer decay).

    With `layer_decay` 1 and a fresh encoder it is ordinary supervised training: how the small teachers are made, and
    with no step at all the baseline from scratch.

    Args:
        encoder: arguments of its `VisionTransformer`; its positions start as sines and cosines, and are trained here.
        pool: `mean`: the average of the patch tokens, normalised; `cls`: the normalised CLS token.
        mixup: see `Mix`, also for `cutmix` and `label_smoothing`.
        layer_decay: the rate of block i of L is `layer_decay` ** (L - i) times that of the head, of the embedding
            `layer_decay` ** (L + 1) times.

    Raises:
        ValueError: `pool` is unknown.
    """

    recipe_form = TransformerRecipe

    def __init__(
        self,
        *,
        encoder: dict,
        num_classes: int,
        preprocess: dict,
        pool: str = "mean",
        layer_decay: float = 1.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        _check_pool(pool)
        self.preprocess = Preprocess(**preprocess)
        self.mix = Mix(num_classes=num_classes, mixup=mixup, cutmix=cutmix, smoothing=label_smoothing)
        self.encoder = VisionTransformer(**{**encoder, "position": "learned"}, affine_norm=False)
        self.encoder.pos_embed.data.copy_(sincos_2d(self.encoder.dim, self.encoder.grid))
        self.norm = nn.LayerNorm(self.encoder.dim, eps=1e-6)
        self.head = nn.Linear(self.encoder.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)
        self.pool, self.layer_decay = pool, layer_decay

    def compiled_parts(self) -> list[nn.Module]:
        """The blocks of the encoder."""
        return list(self.encoder.blocks)

    def check_data(self, data: ImageData) -> None:
        """See `check_labelled`."""
        check_labelled(data, self.encoder, self.head)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Cross-entropy with mixed, smoothed labels."""
        images, targets = self.mix(self.preprocess(batch["images"]), batch["labels"])
        loss = F.cross_entropy(self.classify(images).float(), targets)
        self.log_terms({"finetune/loss": loss})
        return loss

    def validate(self, data: ImageData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """See `loss_and_accuracy`."""
        return loss_and_accuracy(self, batches)

    def forward(self, images: Shaped[Tensor, "batch c height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of stored pixels."""
        return self.classify(self.preprocess(images))

    def to_transformers(self) -> Exported:
        """Encoder, norm and head."""
        return exported_classifier(self.encoder, self.norm, self.head, self.pool, self.preprocess.statistics)

    def classify(self, images: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of normalised images."""
        return self.head(self.norm(pooled(self.encoder.layers(images)[-1], self.pool)))

    def parameter_groups(self) -> list[dict]:
        """Two groups (decayed or not) for each of: embedding, every block, and norm with head."""
        depth = len(self.encoder.blocks)
        places = defaultdict(list)
        for name, parameter in self.named_parameters():
            places[place_of(name, depth)].append((name, parameter))
        return [
            group
            for place in sorted(places)
            for group in decay_groups(
                places[place],
                undecayed=["encoder.cls_token", "encoder.pos_embed"],
                lr=self.recipe["lr"] * self.layer_decay ** (depth + 1 - place),
            )
        ]

    def predictions(self, data: ImageData, device: torch.device) -> dict[str, Tensor]:
        """See `logits_and_labels`."""
        return logits_and_labels(self, data, device)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Start from a pre-trained encoder; its last norm is left out, ours comes after the pooling and is new.

        Raises:
            ValueError: it is of another architecture.
        """
        unused = ("norm.weight", "norm.bias")
        load_strictly(self.encoder, encoder_weights(weights), "the pre-trained encoder", unused=unused)


class LinearProbe(PaperModule):
    """A linear classifier on a frozen encoder (MAE, appendix A.1): BatchNorm without parameters, then the head.

    Args:
        encoder: arguments of its `VisionTransformer`.
        affine_norm: whether the encoder's last norm was trained; one that was not acts without parameters.
        pool: `cls` or `mean`, of the normalised tokens.
    """

    recipe_form = ProbeRecipe

    def __init__(
        self,
        *,
        encoder: dict,
        num_classes: int,
        preprocess: dict,
        pool: str = "cls",
        affine_norm: bool = False,
    ):
        super().__init__()
        _check_pool(pool)
        self.preprocess = Preprocess(**preprocess)
        self.encoder = Frozen(VisionTransformer(**encoder, affine_norm=affine_norm))
        dim = self.encoder.network.dim
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.pool = pool

    def check_data(self, data: ImageData) -> None:
        """See `check_labelled`."""
        check_labelled(data, self.encoder.network, self.head)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Cross-entropy of the head alone."""
        loss = F.cross_entropy(self(batch["images"]).float(), batch["labels"])
        self.log_terms({"probe/loss": loss})
        return loss

    def validate(self, data: ImageData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """See `loss_and_accuracy`."""
        return loss_and_accuracy(self, batches)

    def forward(self, images: Shaped[Tensor, "batch c height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of stored pixels."""
        return self.classify(self.preprocess(images))

    def classify(self, images: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of normalised images."""
        return self.head(self.norm(self.features(images)))

    @torch.no_grad()
    def features(self, images: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch dim"]:
        """What the frozen encoder says about normalised images."""
        return pooled(self.encoder.network(images), self.pool)

    def predictions(self, data: ImageData, device: torch.device) -> dict[str, Tensor]:
        """See `logits_and_labels`."""
        return logits_and_labels(self, data, device)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """The pre-trained encoder.

        Raises:
            ValueError: it is of another architecture.
        """
        load_strictly(self.encoder.network, encoder_weights(weights), "the pre-trained encoder")

    def to_transformers(self) -> Exported:
        """Frozen encoder and head, with the BatchNorm between them as part of the head.

        Raises:
            ValueError: the head reads the mean of normalised patches, which no class of `transformers` does.
        """
        if self.pool != "cls":
            raise ValueError("its head reads the mean of normalised patches; BEiT's normalises the mean")
        scale = (self.norm.running_var + self.norm.eps).rsqrt()
        weight = self.head.weight * scale
        head = nn.Linear(*self.head.weight.shape[::-1])
        folded = {"weight": weight, "bias": self.head.bias - weight @ self.norm.running_mean}
        load_strictly(head, folded, "the head with its norm")
        vit = self.encoder.network
        return exported_classifier(vit, vit.norm, head, self.pool, self.preprocess.statistics)


def check_labelled(data: ImageData, encoder: VisionTransformer, head: nn.Linear) -> None:
    """Refuse data that an encoder or a head cannot read.

    Raises:
        ValueError: images of another shape, or more classes than there are logits.
    """
    check_images(data, encoder)
    if data.num_classes > head.out_features:
        raise ValueError(f"model.num_classes is {head.out_features}, but the data has {data.num_classes} classes.")


@torch.no_grad()
def logits_and_labels(module: PaperModule, data: ImageData, device: torch.device) -> dict[str, Tensor]:
    """Float32 `logits/<split>` and int64 `labels/<split>` of what it is judged on, in the order of its rows."""
    module.to(device).eval()
    parts = defaultdict(list)
    for split in judged(data.rows):
        for batch in data.evaluation_batches(split):
            parts[f"logits/{split}"].append(module(batch["images"].to(device)).float().cpu())
            parts[f"labels/{split}"].append(batch["labels"])
    return {key: torch.cat(part) for key, part in parts.items()}


def loss_and_accuracy(module: PaperModule, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Cross-entropy with the labels as they are, in nats, and the share of images that are classified rightly."""

    def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, labels = module(batch["images"]).float(), batch["labels"]
        right = (logits.argmax(-1) == labels).float()
        return {"loss": F.cross_entropy(logits, labels), "accuracy": right.mean()}

    return mean_over(batches, measure)


def pooled(tokens: Float[Tensor, "batch tokens dim"], pool: str) -> Float[Tensor, "batch dim"]:
    """One vector for each image: the CLS token, or the mean of the patch tokens."""
    return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1)


def place_of(name: str, depth: int) -> int:
    """Where a parameter stands for layer decay: 0 the embedding, i + 1 block i, `depth` + 1 norm and head."""
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return 0 if name.startswith("encoder.") else depth + 1


def _check_pool(pool: str) -> None:
    if pool not in POOLS:
        raise ValueError(f"pool ({pool!r}) must be one of {', '.join(POOLS)}.")
