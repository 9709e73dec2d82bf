"""MoViNets: mobile video networks for efficient video recognition (Kondratyuk et al., CVPR 2021, arXiv 2103.11511).

A small 3D network, searched under a budget, is made causal: it then reads a video frame by frame, with the answers of
the whole clip and in memory that does not depend on its length. Two such streams at half the frame rate, one frame
apart, cost as much as one, and their averaged logits are better (the temporal ensemble).

Read `MoViNets.training_step` first, then `network.py`; `architecture.py` has the published networks and their costs,
`weights.py` reads the weights of others.

Where paper and official code differ, the code's way is taken, since its weights and figures come from it:
- streams are (2+1)D, with squeeze-and-excitation over `2plus3d` and a position only in A3 to A5; the paper's are causal
  3D with positions: `form: 3d`, `squeeze: 3d`, `positions: true`;
- the gate of the released streams is Keras's hard sigmoid, 0.2 x + 0.5, with which they were trained; the present code
  has relu6(x + 3) * 0.16667: `gate: hard_sigmoid_sixth`;
- RMSProp has its epsilon, 1.0, within the root, and gradients are clipped one tensor at a time, as Keras does both;
- the cosine begins at the first step, warm-up included.
Where we differ from the code: both split forms share their weights, so nothing has to be converted; a stream counts its
frames once, and not in every layer; it answers after every frame of a piece, and not after the last one alone.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NotRequired

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.base import AnyRecipe, Momentum, PaperModule, decay_groups, learning_rate_schedule
from lightning_modules.metrics.compute import count_macs, count_parameters
from lightning_modules.metrics.memory import peak_bytes
from lightning_modules.movinet.architecture import Form, Squeeze
from lightning_modules.movinet.clips import ClipData
from lightning_modules.movinet.network import MoViNet, Norm
from lightning_modules.settings import Count, Positive, Share
from lightning_modules.validation import judged, mean_over

MEMORY_AT = (8, 16, 32, 64)  # lengths of clips whose memory is counted
STREAMED = 64  # clips that are also read frame by frame
SHOWN, SHOWN_FRAMES = 6, 16  # clips of the page, and most frames of each
OF_RMSPROP = ("rho", "momentum", "eps", "clip_each")
Targets = Literal["one", "many"] | list[list]  # of name and number of classes


class MoViNetRecipe(AnyRecipe):
    """The official recipe (`rmsprop`, `cosine_from_start`), or AdamW with one cycle for small networks."""

    optimizer: Literal["rmsprop", "adamw"]
    schedule: Literal["cosine_from_start", "one_cycle"]
    rho: NotRequired[Momentum]  # this and what follows: of rmsprop, which needs them all
    momentum: NotRequired[Momentum]
    eps: NotRequired[Positive]
    clip_each: NotRequired[Positive]  # largest norm of the gradient of one tensor


class MoViNets(PaperModule):
    """One network, or the members of a temporal ensemble, trained independently on labelled clips.

    Args:
        architecture: see `MoViNet`, also for `form`, `causal`, `squeeze`, `positions`, `activation`, `gate`, `dropout`
            and `drop_path`.
        num_classes: of the labels.
        frames: of a clip as it is stored.
        size: height and width of a frame.
        norm_momentum: share of a batch in the running means and variances of the norms; at 0.01 they lag by 100 steps.
        pixel_scale: the stored value of white; networks read pixels from 0 to 1.
        members: networks that are trained, each on its own order of the clips.
        stride: every which frame is read. Training begins at any of the first `stride` frames; member m is judged from
            frame m on, so that two members at stride 2 see different frames, one apart.
        label_smoothing: share of the target that is spread over all classes.
        targets: `one` class of a clip; `many`, any number of them, each learnt with binary cross-entropy; or names and
            numbers of classes, `[[verb, 97], [noun, 300]]`, of which a clip has one each, for which the classes are
            divided in this order.
    """

    recipe_form = MoViNetRecipe
    predictor = "lightning_modules.movinet.watcher.Watcher"

    def __init__(
        self,
        *,
        architecture: str | dict,
        num_classes: Count,
        frames: Count,
        size: Count,
        form: Form = "3d",
        causal: bool = False,
        squeeze: Squeeze = "3d",
        positions: bool = False,
        activation: str = "swish",
        gate: str = "sigmoid",
        dropout: Share = 0.2,
        drop_path: Share = 0.2,
        norm_momentum: Share = 0.01,
        pixel_scale: Positive = 255.0,
        members: Count = 1,
        stride: Count = 1,
        label_smoothing: Share = 0.0,
        targets: Targets = "one",
    ):
        super().__init__()
        if isinstance(targets, list):
            if not all([*map(type, target)] == [str, int] and target[1] > 0 for target in targets):
                raise ValueError(f"targets is {targets}, expected names and numbers, as in [[verb, 97], [noun, 300]].")
            if sum(count for _, count in targets) != num_classes:
                raise ValueError(f"num_classes is {num_classes}, expected the sum of those in targets ({targets}).")
        if stride > frames:
            raise ValueError(f"stride is {stride}, expected at most frames ({frames}): of fewer, nothing may be read.")
        self.networks = nn.ModuleList(
            MoViNet(
                architecture, num_classes, form=form, causal=causal, squeeze=squeeze, positions=positions,
                activation=activation, gate=gate, dropout=dropout, drop_path=drop_path,
            )
            for _ in range(members)
        )  # fmt: skip
        for norm in self.modules():
            if isinstance(norm, Norm):
                norm.momentum = norm_momentum
        self.frames, self.size, self.num_classes = frames, size, num_classes
        self.pixel_scale, self.stride, self.label_smoothing = pixel_scale, stride, label_smoothing
        self.targets = targets

    @classmethod
    def check_recipe(cls, recipe: Mapping[str, object], where: str) -> dict:
        """As of every module; besides, `rmsprop` needs all of its own keys, and `adamw` has none of them.

        Raises:
            ValueError: one is missing, or has no effect.
        """
        checked, name = super().check_recipe(recipe, where), recipe.get("optimizer")
        needed = OF_RMSPROP if name == "rmsprop" else ()
        for key in OF_RMSPROP if checked["epochs"] else ():
            if (key in checked) != (key in needed):
                told = f"the key {key!r} {'is missing' if needed else 'has no effect'}"
                raise ValueError(
                    f"{where}: {told}; {', '.join(OF_RMSPROP)} belong to optimizer rmsprop, which needs all"
                )
        return checked

    def check_data(self, data: ClipData) -> None:
        """Refuse clips of another shape or length, other labels, more classes than logits, other orders than members.

        Raises:
            ValueError: see above.
        """
        expected = (self.networks[0].channels, self.frames, self.size, self.size)
        if data.video_shape != expected:
            raise ValueError(
                f"the data has clips of shape {data.video_shape} (channels, frames, height, width), but model.frames "
                f"and model.size are for {expected}."
            )
        if (trained := getattr(data, "train_frames", self.frames)) < self.stride:
            raise ValueError(
                f"data.train_frames is {trained}, expected at least model.stride ({self.stride}): of fewer, "
                "nothing may be read."
            )
        if not _has(self.targets, found := getattr(data, "targets", "one")):
            raise ValueError(f"model.targets is {self.targets}, but the rows of the data have {found}: set it to that.")
        if data.num_classes > self.num_classes or (self.targets == "many" and data.num_classes != self.num_classes):
            raise ValueError(f"model.num_classes is {self.num_classes}, but the data has {data.num_classes} classes.")
        if (data.copies or 1) != len(self.networks):
            raise ValueError(
                f"model.members is {len(self.networks)}, but data.copies is {data.copies}: set both alike."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Cross-entropy of each network on its own clips, which begin at a random one of the first frames."""
        video, labels = batch["video"], batch["labels"]
        if video.ndim == 5:
            video, labels = video[None], labels[None]
        losses = []
        for network, clips, targets in zip(self.networks, video, labels, strict=True):
            offset = int(torch.randint(self.stride, ())) if self.stride > 1 else 0
            logits = network(self.read(clips, offset)).float()
            losses.append(self.loss(logits, targets, self.label_smoothing))
        self.log_terms({"pretrain/loss": torch.stack(losses).mean()})
        return torch.stack(losses).sum()  # a sum, so that no member's rate depends on the others

    def validate(self, data: ClipData, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Cross-entropy of the averaged logits with the labels as they are, and the share that is right in all.

        Of clips with many labels there is no such share; they are judged by `mean_average_precision` at the end.
        """

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            logits, labels = self(batch["video"]).float(), batch["labels"]
            if self.targets == "many":
                return {"loss": self.loss(logits, labels)}
            right = torch.stack([part.argmax(-1) == each for part, each in self.divided(logits, labels)]).all(0)
            return {"loss": self.loss(logits, labels), "accuracy": right.float().mean()}

        return mean_over(batches, measure)

    def loss(self, logits: Float[Tensor, "batch classes"], labels: Tensor, smoothing: float = 0.0) -> Float[Tensor, ""]:
        """Cross-entropy, summed over what a clip has one class each of; binary, and without smoothing, for `many`.

        tensorflow/models has the same for many labels (official/vision/tasks/video_classification.py).
        """
        if self.targets == "many":
            return F.binary_cross_entropy_with_logits(logits, labels)
        return sum(
            F.cross_entropy(part, each, label_smoothing=smoothing) for part, each in self.divided(logits, labels)
        )

    def divided(self, logits: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Logits and labels of each of the targets."""
        if self.targets == "one":
            return [(logits, labels)]
        parts = logits.split([count for _, count in self.targets], dim=-1)
        return list(zip(parts, labels.unbind(-1), strict=True))

    def forward(self, video: Shaped[Tensor, "batch channels frames height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of stored clips; those of several members are averaged before the softmax (the paper's ensemble)."""
        return self.member_logits(video).mean(0)

    def member_logits(
        self, video: Shaped[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "members batch classes"]:
        """Logits of each network, from its own frames of stored clips."""
        parts = [network(self.read(video, m % self.stride)) for m, network in enumerate(self.networks)]
        return torch.stack(parts)

    def read(self, video: Tensor, offset: int = 0) -> Float[Tensor, "batch channels frames height width"]:
        """Pixels from 0 to 1 of the frames that a network reads, from the frame `offset` on."""
        return video[:, :, offset :: self.stride] / self.pixel_scale

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """Of the split that is judged: `logits` (rows members classes) and `labels`.

        Of a causal network also `each_frame`, the first member's logits after every frame that it reads (rows frames
        classes), and `streamed`, the same of the first rows read frame by frame. Of the first test clips also `shown`,
        uint8 (clips frames height width 3).
        """
        self.to(device).eval()
        parts = defaultdict(list)
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                video = batch["video"].to(device)
                parts[f"logits/{split}"].append(self.member_logits(video).transpose(0, 1).float().cpu())
                parts[f"labels/{split}"].append(batch["labels"])
                if split == "test" and "shown/test" not in parts:
                    parts["shown/test"].append(self._shown(batch["video"][:SHOWN]))
                if self.networks[0].causal:
                    clips = self.read(video, 0)
                    parts[f"each_frame/{split}"].append(self.networks[0].each_frame(clips).float().cpu())
                    if f"streamed/{split}" not in parts:
                        parts[f"streamed/{split}"].append(self._streamed(clips[:STREAMED]).float().cpu())
        return {key: torch.cat(part) for key, part in parts.items()}

    def _shown(self, clips: Tensor) -> UInt8[Tensor, "clips frames height width 3"]:
        few = torch.linspace(0, clips.shape[2] - 1, min(clips.shape[2], SHOWN_FRAMES)).round().long()
        pixels = (255 / self.pixel_scale * clips[:, :, few].cpu()).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 4, 1).contiguous()

    def _streamed(self, clips: Tensor) -> Float[Tensor, "batch frames classes"]:
        state, answers = None, []
        for frame in clips.split(1, dim=2):
            answer, state = self.networks[0].stream(frame, state)
            answers.append(answer)
        return torch.cat(answers, dim=1)

    def facts(self) -> dict:
        """Size and cost of all networks for one clip, and the memory that one needs for clips of several lengths."""
        network = self.eval().networks[0]
        shape = (network.channels, len(range(0, self.frames, self.stride)), self.size, self.size)
        return {
            "parameters": count_parameters(self),
            "macs_per_clip": len(self.networks) * count_macs(network, shape),
            "causal": network.causal,
            "stride": self.stride,
            "peak_bytes": {str(n): peak_bytes(self._reading(n)) for n in MEMORY_AT},
            **({"targets": self.targets} if isinstance(self.targets, list) else {}),
        }

    def _reading(self, frames: int) -> Callable[[], object]:
        """Reading a clip, frame by frame if the network can; not on the meta device, where a frame takes longer."""
        network = self.networks[0]

        def read(frames: int) -> Tensor:
            return torch.zeros(1, network.channels, frames, self.size, self.size, device=self.device)

        def piece_by_piece() -> None:
            state = None
            for _ in range(frames):
                _, state = network.stream(read(1), state)

        return piece_by_piece if network.causal else lambda: network(read(frames))

    def parameter_groups(self) -> list[dict]:
        """Kernels are decayed, but that of the last layer; norms, biases and scalars are not (tensorflow/models)."""
        named = list(self.named_parameters())
        scalars = [name for name, p in named if p.ndim == 0 or name.endswith("classifier.weight")]
        return decay_groups(named, undecayed=scalars)

    def configure_optimizers(self) -> dict:
        """The recipe's optimiser and schedule."""
        optimizer, schedule = self.optimizer_and_schedule(int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_and_schedule(self, steps: int) -> tuple[Optimizer, LambdaLR]:
        """The same for a training of so many steps, with or without a trainer."""
        optimizer = self._optimizer()
        if self.recipe["schedule"] == "cosine_from_start":
            return optimizer, LambdaLR(optimizer, cosine_from_start(round(self.recipe["warmup"] * steps), steps))
        return optimizer, LambdaLR(optimizer, learning_rate_schedule(self.recipe, steps))

    def _optimizer(self) -> Optimizer:
        if self.recipe["optimizer"] != "rmsprop":
            return super()._optimizer()
        names = {"lr": "lr", "weight_decay": "weight_decay", "rho": "rho", "momentum": "momentum", "eps": "eps"}
        options = {ours: self.recipe[key] for ours, key in names.items()}
        return KerasRMSprop(self.parameter_groups(), **options, clip=self.recipe["clip_each"])


def _has(targets: Targets, found: Targets) -> bool:
    """Whether a network has the targets of some data, or more classes of each."""
    if isinstance(targets, str) or isinstance(found, str):
        return targets == found
    names = [name for name, _ in targets] == [name for name, _ in found]
    return names and all(most >= count for (_, most), (_, count) in zip(targets, found, strict=True))


def cosine_from_start(warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """The schedule of tensorflow/models: half a cosine over all steps, reached along a line during warm-up."""

    def factor(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(step, warmup_steps) / max(1, total_steps))))
        return cosine * min(1.0, step / warmup_steps) if warmup_steps else cosine

    return factor


class KerasRMSprop(Optimizer):
    """RMSProp as Keras has it: epsilon within the root, momentum on the scaled gradient.

    Args:
        params: parameters or groups.
        lr: the rate.
        rho: share of the old mean square that is kept at each step.
        momentum: share of the last move that is made again.
        eps: added to the mean square.
        weight_decay: times the parameter is added to its gradient (the derivative of an L2 term in the loss).
        clip: largest norm of the gradient of one tensor, L2 term included.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict],
        *,
        lr: float,
        rho: float,
        momentum: float,
        eps: float,
        weight_decay: float,
        clip: float,
    ):
        options = {"lr": lr, "rho": rho, "momentum": momentum, "eps": eps, "weight_decay": weight_decay, "clip": clip}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update; the closure, where there is one, computes the loss and the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                gradient = parameter.grad + group["weight_decay"] * parameter
                gradient = gradient * (group["clip"] / gradient.norm().clamp(min=group["clip"]))
                state = self.state[parameter]
                if not state:
                    state["square"], state["move"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["square"].lerp_(gradient.square(), 1 - group["rho"])
                scaled = group["lr"] * gradient / (state["square"] + group["eps"]).sqrt()
                state["move"].mul_(group["momentum"]).add_(scaled)
                parameter.sub_(state["move"])
        return loss
