"""MaskAlign: masked image modelling without reconstruction (Xue et al., CVPR 2023, arXiv 2211.08887).

A frozen teacher sees the whole image; a student ViT sees some three patches in ten. At those patches, and nowhere else,
the student has to give the features that the teacher gives: to do so it must infer the context that only the teacher
saw. No mask token, no decoder, nothing reconstructed. A student that knows less cannot follow its teacher layer by
layer, so a small module learns which mixture of student layers should match each of the teacher's last layers.

Read `MaskAlign.training_step` first, then `DynamicAlignment`.

Where paper and official code differ, the code's way is the default, since its weights and figures come from it:
- adapters after the mixture, one per target (`mix_then_adapt`); the paper's figure has one per student layer, before;
- twice the smooth L1 of the paper's formula; CLS is aligned along with the visible patches.
Where we differ from the code: only parameters that get a gradient exist (K adapters, K rows of the mixing matrix, no
last norm), so DDP need not search for unused ones; the patches kept are drawn directly, not as the head of a full
shuffle (same distribution); the teacher keeps fused attention, as only one row of its last block's is needed; a teacher
of another depth than the student's is refused for `linear` fusion, where the code crashes: use `sum`.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn

from lightning_modules.base import PaperModule, TransformerRecipe, decay_groups
from lightning_modules.datamodules.labelled import ImageData, check_images
from lightning_modules.layers import hub_vit
from lightning_modules.layers.exported import Exported
from lightning_modules.layers.published import load_strictly, read_checkpoint
from lightning_modules.layers.teacher import Lesson
from lightning_modules.layers.vision import (
    VisionTransformer,
    encoder_weights,
    initialise,
    num_kept,
    random_keep,
    take_with_cls,
)
from lightning_modules.maskalign import encoders
from lightning_modules.metrics.compute import count_training_macs
from lightning_modules.tasks.augmentation import Preprocess
from lightning_modules.validation import mean_over

MASKINGS = ("attentive", "random", "none")
FUSIONS = ("linear", "sum", "simple")
FORMS = ("mix_then_adapt", "adapt_then_mix")
ADAPTERS = ("linear", "norm_linear", "mlp", "mlp2")
UNTRAINED = ("norm.weight", "norm.bias")  # of official checkpoints: the student's last norm
TARGET_NORMS = ("whiten", "l2", "bn", "none")
LOSSES = ("smooth_l1", "l2", "l1")


class DynamicAlignment(nn.Module):
    """Predicts each target from a learned mixture of all student layers (W and A in the figure of the framework).

    Our `weights` (K S) is the part of the alignment matrix W whose rows are targets: a plain linear map, with neither
    softmax nor sign constraint.

    Args:
        depth: number of student layers, the paper's S.
        targets: the matched teacher layers, from 0; their number is the paper's K.
        teacher_depth: number of teacher layers, T.
        fusion: `linear`: W starts near the identity (needs S = T); `sum`: at the mean of all layers; `simple`: no
            mixture, layer i matches layer i.
        adapter: linear | norm_linear | mlp | mlp2, the map A from student to teacher channels.
        form: `mix_then_adapt`: A_j(sum_i W_ji s_i) for target j; `adapt_then_mix`: sum_i W_ji A_i(s_i).

    Raises:
        ValueError: an option is unknown, has no effect, or leaves parameters without a gradient.
    """

    def __init__(
        self,
        *,
        student_dim: int,
        teacher_dim: int,
        depth: int,
        teacher_depth: int,
        targets: Sequence[int],
        fusion: str,
        adapter: str,
        form: str,
    ):
        super().__init__()
        one_of("fusion", fusion, FUSIONS)
        one_of("form", form, FORMS)
        if fusion != "sum" and depth != teacher_depth:
            raise ValueError(
                f"fusion {fusion!r} needs a student as deep as its teacher; got {depth} and {teacher_depth} layers. "
                "Use fusion 'sum'."
            )
        if fusion == "simple" and form == "adapt_then_mix":
            raise ValueError("form 'adapt_then_mix' has no effect with fusion 'simple', which mixes nothing.")
        if fusion == "simple" and targets[-1] != depth - 1:
            raise ValueError(
                f"fusion 'simple' without the last layer (targets {list(targets)} of {depth}) would leave the later "
                "student blocks without a gradient: match the last layer too, or use fusion 'linear'."
            )
        self.targets, self.fusion, self.form = list(targets), fusion, form
        count = len(self.targets) if form == "mix_then_adapt" else depth
        self.adapters = nn.ModuleList(make_adapter(adapter, student_dim, teacher_dim) for _ in range(count))
        self.adapters.apply(initialise)
        if fusion != "simple":
            self.weights = nn.Parameter(initial_weights(fusion, depth, teacher_depth)[self.targets])

    def forward(
        self, layers: list[Float[Tensor, "batch tokens student"]]
    ) -> Float[Tensor, "targets batch tokens teacher"]:
        """A prediction of each target from all student layers, given in their order."""
        if self.form == "adapt_then_mix":
            return self._mix([adapt(x) for adapt, x in zip(self.adapters, layers, strict=True)])
        return torch.stack([adapt(x) for adapt, x in zip(self.adapters, self._mix(layers), strict=True)])

    def _mix(self, layers: list[Float[Tensor, "batch tokens d"]]) -> Float[Tensor, "targets batch tokens d"]:
        if self.fusion == "simple":
            return torch.stack([layers[index] for index in self.targets])
        return torch.einsum("ks, sbnd -> kbnd", self.weights, torch.stack(layers))


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse an option that does not exist.

    Raises:
        ValueError: `value` is not in `known`.
    """
    if value not in known:
        raise ValueError(f"{name} ({value!r}) must be one of {', '.join(known)}.")


def make_adapter(kind: str, student_dim: int, teacher_dim: int) -> nn.Module:
    """The map A from student to teacher channels."""
    one_of("adapter", kind, ADAPTERS)
    last = nn.Linear(student_dim, teacher_dim)
    if kind == "linear":
        return last
    if kind == "norm_linear":
        return nn.Sequential(nn.LayerNorm(student_dim, eps=1e-6), last)
    middle = nn.GELU() if kind == "mlp" else nn.LayerNorm(student_dim, eps=1e-6)
    return nn.Sequential(nn.Linear(student_dim, student_dim), middle, last)


def initial_weights(fusion: str, depth: int, teacher_depth: int) -> Float[Tensor, "teacher_depth depth"]:
    """The whole matrix W at the start: 0.01 everywhere and 1 more on the diagonal, or the mean of all layers."""
    if fusion == "linear":
        return torch.eye(depth) + 0.01
    return torch.full((teacher_depth, depth), 1 / depth)


def weigh_layers(name: str, depth: int) -> dict[int, float]:
    """The matched teacher layers (from 0) and the weight of each in the loss; the weights add up to 1.

    `top<K>`: the last K alike; `mid<J>`: layer J alone; `out`: the last alone; `mean`: all alike; `linear_decay`: in
    proportion to the number of the layer, so that layer 0 is no target.

    Raises:
        ValueError: the name is unknown, or names a layer that the teacher does not have.
    """
    number = int(name[3:]) if name[:3] in ("top", "mid") and name[3:].isdigit() else None
    if number is not None and name.startswith("top") and 1 <= number <= depth:
        return {layer: 1 / number for layer in range(depth - number, depth)}
    if number is not None and name.startswith("mid") and number < depth:
        return {number: 1.0}
    if name == "out":
        return {depth - 1: 1.0}
    if name == "mean":
        return {layer: 1 / depth for layer in range(depth)}
    if name == "linear_decay":
        return {layer: layer / (depth * (depth - 1) / 2) for layer in range(1, depth)}
    raise ValueError(
        f"layer_weights ({name!r}) must be top<K> with K from 1 to {depth}, mid<J> with J from 0 to {depth - 1}, "
        "out, mean or linear_decay."
    )


def normalise_targets(
    layers: Float[Tensor, "targets batch tokens dim"], how: str
) -> Float[Tensor, "targets batch tokens dim"]:
    """The teacher's layers in float32, made comparable.

    `whiten`: each token to mean 0 and variance 1 over its channels; `l2`: each token to length 1; `bn`: each layer to
    mean 0 and variance 1 over all its values in the batch of this process, which is not a BatchNorm; `none`.
    """
    layers = layers.float()
    if how == "whiten":
        return F.layer_norm(layers, layers.shape[-1:])
    if how == "l2":
        return F.normalize(layers, dim=-1)
    if how == "bn":
        variance, mean = torch.var_mean(layers, dim=(1, 2, 3), keepdim=True)
        return (layers - mean) / (variance + 1e-6).sqrt()
    return layers


def from_official_name(key: str, targets: Sequence[int]) -> str:
    """Our name of a parameter of the official code; one that has no place here keeps its name."""
    part, _, rest = key.partition(".")
    if part in ("clip_model", "dino_model"):
        return f"teacher.{rest.removeprefix('vision_model.')}"  # a level that transformers 5 no longer has
    if part == "distill_heads":
        number, _, leaf = rest.partition(".")
        return f"alignment.adapters.{targets.index(int(number))}.{leaf}" if int(number) in targets else key
    if key in UNTRAINED:
        return key
    return "alignment.weights" if key == "distill_weights" else f"student.{key}"


def to_official_name(key: str, targets: Sequence[int]) -> str:
    """The reverse of `from_official_name`, for student and alignment."""
    if key.startswith("alignment.adapters."):
        number, _, leaf = key.removeprefix("alignment.adapters.").partition(".")
        return f"distill_heads.{targets[int(number)]}.{leaf}"
    return "distill_weights" if key == "alignment.weights" else key.removeprefix("student.")


def read_official(path: Path) -> dict[str, Tensor]:
    """The weights in an official checkpoint file, read without running any code of it.

    The file also holds optimiser, epoch, scaler and an `argparse.Namespace`, a plain record: no other class is let in.

    Raises:
        ValueError: the file holds objects of other classes, or no `model`.
    """
    content = read_checkpoint(path, [argparse.Namespace])
    if not isinstance(content, Mapping) or "model" not in content:
        raise ValueError(f"{path} is no checkpoint of the official code, which has the key 'model'.")
    return dict(content["model"])


class MaskAlign(PaperModule):
    """Student, frozen teacher and dynamic alignment.

    Args:
        student: arguments of the student's `VisionTransformer`.
        teacher: `hub`, a name in `maskalign.encoders.ENCODERS`, and `image_size`; or `hub: null` and the arguments of a
            `VisionTransformer`, whose weights come from `start_from`.
        preprocess: arguments of `Preprocess`, for the student; the teacher sees the same augmented images.
        masking: `attentive` draws the visible patches in proportion to the attention of the teacher's CLS; `random`; or
            `none`, which is feature distillation.
        mask_ratio: share of the patches that the student does not see, the paper's r.
        target_norm: whiten | l2 | bn | none, see `normalise_targets`.
        layer_weights: top<K> | mid<J> | out | mean | linear_decay, see `weigh_layers`.
        fusion: see `DynamicAlignment`, also for `adapter` and `form`.
        loss: smooth_l1 (twice, with beta 1) | l2 | l1.

    Raises:
        ValueError: an option is unknown or contradicts another; the grids of patches of student and teacher differ.
    """

    recipe_form = TransformerRecipe
    predictor = "lightning_modules.maskalign.neighbours.Neighbours"

    def __init__(
        self,
        *,
        student: dict,
        teacher: dict,
        preprocess: dict,
        masking: str = "attentive",
        mask_ratio: float = 0.7,
        target_norm: str = "whiten",
        layer_weights: str = "top5",
        fusion: str = "linear",
        adapter: str = "linear",
        form: str = "mix_then_adapt",
        loss: str = "smooth_l1",
    ):
        super().__init__()
        for name, value, known in (
            ("masking", masking, MASKINGS),
            ("target_norm", target_norm, TARGET_NORMS),
            ("loss", loss, LOSSES),
        ):
            one_of(name, value, known)
        if (masking == "none") != (mask_ratio == 0):
            raise ValueError(
                f"masking {masking!r} contradicts mask_ratio ({mask_ratio}): 'none' is for 0, and only it."
            )
        self.preprocess = Preprocess(**preprocess)
        self.student = VisionTransformer(**student, affine_norm=False)
        self.teacher = encoders.make_teacher(**teacher, normalised=self.preprocess.statistics)
        vit: VisionTransformer = self.teacher.network
        if vit.grid != self.student.grid:
            raise ValueError(
                f"student and teacher must cut an image into the same patches; got grids of {self.student.grid} and "
                f"{vit.grid}. Choose the teacher's image_size as its patch_size ({vit.patch_size}) times the student's "
                f"grid: {vit.patch_size * self.student.grid}."
            )
        weights = weigh_layers(layer_weights, len(vit.blocks))
        self.alignment = DynamicAlignment(
            student_dim=self.student.dim,
            teacher_dim=vit.dim,
            depth=len(self.student.blocks),
            teacher_depth=len(vit.blocks),
            targets=list(weights),
            fusion=fusion,
            adapter=adapter,
            form=form,
        )
        self.register_buffer("layer_weights", torch.tensor(list(weights.values())), persistent=False)
        self.masking, self.target_norm, self.loss = masking, target_norm, loss
        self.num_kept = num_kept(self.student.num_patches, mask_ratio)

    def compiled_parts(self) -> list[nn.Module]:
        """The blocks of student and teacher."""
        return [*self.student.blocks, *self.teacher.network.blocks]

    def check_data(self, data: ImageData) -> None:
        """See `check_images`."""
        check_images(data, self.student)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """One step: the teacher looks at all, the student at the visible patches, and there they have to agree."""
        loss = self.alignment_loss(*self.aligned(batch))
        self.log_terms({"pretrain/loss": loss})
        return loss

    def aligned(
        self, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "targets batch tokens dim"], Float[Tensor, "targets batch tokens dim"]]:
        """Predictions of the student, and the targets of the teacher, at CLS and the visible patches."""
        images = self.preprocess(batch["images"])
        lesson = self.lesson(images)
        keep = self.visible_patches(lesson.importance, len(images))
        targets = [take_with_cls(layer, keep) for layer in normalise_targets(lesson.layers, self.target_norm)]
        return self.alignment(self.student.layers(images, keep)), torch.stack(targets)

    def validate(self, data: LightningDataModule, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss, and the mean cosine between predictions and targets."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            predictions, targets = self.aligned(batch)
            cosine = F.cosine_similarity(predictions.float(), targets, dim=-1)
            return {"loss": self.alignment_loss(predictions, targets), "cosine": cosine.mean()}

        return mean_over(batches, measure)

    def lesson(self, images: Float[Tensor, "batch channels height width"]) -> Lesson:
        """For normalised images: the teacher's layers to match and, for attentive masking, what it attends to."""
        return self.teacher(images, self.alignment.targets, attention=self.masking == "attentive")

    def visible_patches(
        self, importance: Float[Tensor, "batch patches"] | None, batch_size: int
    ) -> Int[Tensor, "batch kept"]:
        """The patches that the student sees; attentive masking draws without replacement, it does not take the top."""
        if self.masking == "attentive":
            floor = torch.finfo(torch.float32).tiny  # multinomial refuses to draw what has no chance at all
            return torch.multinomial(importance.float().clamp_min(floor), self.num_kept)
        if self.masking == "random":
            return random_keep(batch_size, self.student.num_patches, self.num_kept, self.device)
        return torch.arange(self.num_kept, device=self.device).expand(batch_size, -1)

    def alignment_loss(
        self,
        predictions: Float[Tensor, "targets batch tokens dim"],
        targets: Float[Tensor, "targets batch tokens dim"],
    ) -> Float[Tensor, ""]:
        """Weighted sum over the targets of the mean difference over images, tokens and channels."""
        predictions = predictions.float()
        if self.loss == "smooth_l1":
            differences = 2 * F.smooth_l1_loss(predictions, targets, reduction="none")
        else:
            function = F.mse_loss if self.loss == "l2" else F.l1_loss
            differences = function(predictions, targets, reduction="none")
        return (differences.mean((1, 2, 3)) * self.layer_weights).sum()  # a product `@` would be rounded under autocast

    def parameter_groups(self) -> list[dict]:
        """Vectors and the mixing matrix are not decayed (official code, main_pretrain.py); CLS is, as there."""
        return decay_groups(self.named_parameters(), undecayed=["alignment.weights"])

    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """None: the student is judged by the stages that fine-tune and probe it."""
        return {}

    def facts(self) -> dict:
        """What a step costs, teacher included, forward and backward."""
        image = torch.empty(1, self.student.channels, self.student.image_size, self.student.image_size)
        return {"pretrain_macs_per_image": count_training_macs(self, {"images": image})}

    def export(self) -> dict[str, Tensor]:
        """The student: all that is used afterwards."""
        return self.student.state_dict()

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the student."""
        load_strictly(self.student, weights, "exported weights")

    def to_transformers(self) -> Exported:
        """The student."""
        return hub_vit.exported_features(self.student, self.preprocess.statistics)

    def forward(self, images: Shaped[Tensor, "batch c height width"]) -> Float[Tensor, "batch dim"]:
        """Features of stored pixels: the mean of the student's patch tokens."""
        return self.student(self.preprocess(images))[:, 1:].mean(1)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of a teacher that was trained here: a ViT, or what holds one as `encoder`.

        Raises:
            ValueError: it is of another architecture.
        """
        load_strictly(self.teacher.network, encoder_weights(weights), "the teacher's state dict")

    def load_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Load an official checkpoint (see `read_official`), with the teacher if it holds one.

        Returns:
            What has no place here because the official recipe never trains it: the last norm, adapters and rows of the
            mixing matrix of layers that are no target, and numbers of positions.

        Raises:
            ValueError: the checkpoint is of another architecture, or this module has the paper's form of alignment.
        """
        if self.alignment.form != "mix_then_adapt":
            raise ValueError("official checkpoints have one adapter per target: build with form 'mix_then_adapt'.")
        targets, depth = self.alignment.targets, len(self.teacher.network.blocks)
        theirs = {from_official_name(key, targets): key for key in state}
        ours = {name: state[key] for name, key in theirs.items()}
        teacher = {name.removeprefix("teacher."): ours.pop(name) for name in theirs if name.startswith("teacher.")}
        rest = {}
        if "alignment.weights" in ours:
            rest["distill_weights"] = ours["alignment.weights"]
            ours["alignment.weights"] = ours["alignment.weights"][targets]
        heads = [f"distill_heads.{i}.{leaf}" for i in range(depth) if i not in targets for leaf in ("weight", "bias")]
        rest |= load_strictly(self, ours, "the official checkpoint", unused=(*UNTRAINED, *heads))
        if teacher:
            teacher = hub_vit.from_hub(teacher, hub_vit.family_of(self.teacher.network))
            left = load_strictly(self.teacher.network, teacher, "the official teacher", unused=encoders.UNUSED)
            rest |= {theirs[f"teacher.{key}"]: x for key, x in left.items()}
        return rest

    def official(self, rest: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict in the official layout, the reverse of `load_official`; `rest` is what that gave back."""
        targets, family = self.alignment.targets, hub_vit.family_of(self.teacher.network)
        state = {to_official_name(key, targets): x for key, x in self.state_dict().items()}
        if "distill_weights" in state:
            state["distill_weights"] = rest["distill_weights"].index_copy(
                0, torch.tensor(targets), state["distill_weights"]
            )
        teacher = hub_vit.to_hub(self.teacher.network.state_dict(), family)
        prefix = {"clip": "clip_model.vision_model.", "vit": "dino_model."}[family]
        return {
            **rest,
            **state,
            **{f"{prefix}{hub_vit.former_name(key, family)}": x for key, x in teacher.items()},
        }
