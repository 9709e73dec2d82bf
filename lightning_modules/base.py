"""What all papers' LightningModules share: the optimiser and its schedule, read from the recipe."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, NotRequired, TypedDict

import torch
from pydantic import Field
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.layers.lars import LARS
from lightning_modules.layers.published import load_strictly
from lightning_modules.settings import Count, Natural, NonNegative, Share, check

if TYPE_CHECKING:
    from lightning_modules.layers.exported import Exported

Schedule = Callable[[int], float]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(gt=0, lt=1)]
# Every N epochs or steps: {"epochs": N} or {"steps": N}.
Every = Annotated[dict[Literal["epochs", "steps"], Count], Field(min_length=1, max_length=1)]


class AnyRecipe(TypedDict):
    """What the training block of every config says; each form below adds what its optimiser and schedule read."""

    epochs: Natural
    lr: NonNegative
    weight_decay: NonNegative
    warmup: Share  # of all steps
    validate_every: NotRequired[Every | None]  # see `PaperModule.validate`
    validate_rows: NotRequired[Count | None]  # the first of the split val; null for all
    keep_every: NotRequired[Every | None]  # weights to be kept for later evaluation, see `milestones`
    ema: NotRequired[Decay | None]  # of the average of weights, see `averaging`


class Recipe(AnyRecipe):
    """The form for small networks trained on labels; a paper that reads further keys extends it."""

    optimizer: Literal["adamw", "sgd"]
    momentum: NotRequired[Momentum]  # of sgd; 0 without it
    schedule: Literal["cosine", "one_cycle", "steps"]
    milestones: NotRequired[list[Share]]  # of all steps, for the schedule `steps`
    decay: NotRequired[Share]  # factor at each milestone


class TransformerRecipe(AnyRecipe):
    """The form for vision transformers, as MAE trains them."""

    optimizer: Literal["adamw", "adamw_eps_first"]
    betas: Annotated[list[Momentum], Field(min_length=2, max_length=2)]
    schedule: Literal["cosine_to_min"]
    min_lr: NonNegative


class ProbeRecipe(AnyRecipe):
    """The form for a linear probe, as MAE trains it."""

    optimizer: Literal["lars"]
    momentum: Momentum
    schedule: Literal["cosine_to_min"]
    min_lr: NonNegative


class PaperModule(LightningModule):
    """Base of every system. `recipe` is the training block of its config, of the form `recipe_form`, set before `fit`.

    Weight decay is on every parameter, norms and biases included, unless `parameter_groups` says otherwise.
    """

    recipe_form: type = Recipe
    recipe: dict
    predictor: str = ""  # dotted name of what answers about a user's files with it, see `predictors`

    @classmethod
    def check_recipe(cls, recipe: Mapping[str, object], where: str) -> dict:
        """The training block, held against `recipe_form`. Where nothing is trained, it need only say `epochs: 0`.

        Raises:
            ValueError: a key is unknown or missing, or a value is not of its kind.
        """
        return check(recipe, cls.recipe_form, where, required=("epochs",) if recipe.get("epochs") == 0 else None)

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse data that the network cannot be trained on; called once, before anything is computed.

        Raises:
            ValueError: what does not fit, with both values.
        """

    def max_steps(self, data: LightningDataModule) -> int:
        """Steps after which the training ends, within an epoch if need be; -1 where `epochs` alone decides."""
        return -1

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights that the arm named by `from` in the plan has exported."""
        raise NotImplementedError(
            f"{type(self).__name__} starts from no other arm: remove `from`, or write the method."
        )

    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """Arrays on the evaluation splits that the evaluation stage reads."""
        raise NotImplementedError(f"{type(self).__name__} gives no predictions; see ensembling/members.py.")

    def validate(self, data: LightningDataModule, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """What is watched while it trains, as scalars: the loss, and the metric of the stage.

        Called in evaluation mode, without gradients, and with random states that are put back (`validation.untouched`).
        It must change no weight and no buffer.

        Args:
            data: what it is trained on.
            batches: `data.evaluation_batches("val")`, on the module's device.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `validate`: set validate_every to null.")

    def export(self) -> dict[str, Tensor]:
        """The weights to be kept."""
        return self.state_dict()

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `export` gave. `forward` then says what the trained network makes of stored pixels."""
        load_strictly(self, weights, "exported weights")

    def to_transformers(self) -> "Exported":
        """The trained network as a model of `transformers` that computes the same to 1e-5, see `stages.export`.

        Raises:
            ValueError: no class of `transformers` computes the same; the message says what is missing there.
        """
        raise ValueError("no class of transformers is written down for it; see `PaperModule.to_transformers`")

    def facts(self) -> dict:
        """What the evaluation has to know about the network: a pure function of the configuration."""
        return {}

    def compiled_parts(self) -> Iterable[nn.Module]:
        """What `compile: true` of conf/trainer compiles: equal parts, such as blocks, share one compilation."""
        return ()

    def machine_facts(self, data: LightningDataModule) -> dict[str, float]:
        """What this machine measured; tracked, never part of an output."""
        return {}

    def log_terms(self, terms: dict[str, Tensor]) -> None:
        """Log the terms of the loss, while a trainer is fitting; a plain loop has nowhere to log to.

        What is computed in evaluation mode, as in `validate`, is no loss of a step.
        """
        if self._trainer is not None and self.trainer.training and self.training:
            self.log_dict({name: term.detach() for name, term in terms.items()})

    def configure_optimizers(self) -> dict:
        """The recipe's optimiser over all parameters that learn, and its schedule over all steps of the training."""
        optimizer = self._optimizer()
        schedule = learning_rate_schedule(self.recipe, int(self.trainer.estimated_stepping_batches))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, schedule), "interval": "step"},
        }

    def parameter_groups(self) -> list[nn.Parameter] | list[dict]:
        """What is trained, as one group or with rates and decays of its own for each group."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_gradient_clipping(self, optimizer: Optimizer, **_: object) -> None:
        """Keep the norm of the whole gradient within the recipe's `clip`, where there is one."""
        if "clip" in self.recipe:
            self.clip_gradients(optimizer, gradient_clip_val=self.recipe["clip"], gradient_clip_algorithm="norm")

    def _optimizer(self) -> Optimizer:
        name, lr, decay = (self.recipe[key] for key in ("optimizer", "lr", "weight_decay"))
        parameters = self.parameter_groups()
        if name in ("adamw", "adamw_eps_first"):
            betas, eps = tuple(self.recipe.get("betas", (0.9, 0.999))), self.recipe.get("eps", 1e-8)
            form = AdamW if name == "adamw" else EpsFirstAdamW
            return form(parameters, lr=lr, betas=betas, eps=eps, weight_decay=decay, fused=True)
        if name == "lars":
            return LARS(parameters, lr=lr, weight_decay=decay, momentum=self.recipe["momentum"])
        if name == "sgd":
            momentum = self.recipe.get("momentum", 0.0)
            return SGD(parameters, lr=lr, weight_decay=decay, momentum=momentum, nesterov=momentum > 0, fused=True)
        raise ValueError(f"optimizer ({name!r}) must be adamw, adamw_eps_first, sgd or lars.")


class EpsFirstAdamW(AdamW):
    """AdamW as it was in BERT's and the earlier `transformers`, and still is in the official code of CLIP-ViP.

    It adds eps to the root of the second moment before that is freed of its bias, torch afterwards: the same as an eps
    that is divided by the root of 1 - beta2^step, seven times as large at the first step with beta2 = 0.98. Small
    gradients then move less while the rate warms up. (That code also decays the weights after the update, not before,
    which differs by a term of order lr^2.)
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update; the closure, where there is one, computes the loss and the gradients."""
        state = next(iter(self.state.values()), None)
        steps = 1 if state is None else int(state["step"]) + 1
        for group in self.param_groups:
            group["eps"] = self.defaults["eps"] / math.sqrt(1 - group["betas"][1] ** steps)
        return super().step(closure)


def learning_rate_schedule(recipe: dict, total_steps: int) -> Schedule:
    """The factor on `lr` at each step: warm-up, then the named schedule.

    Raises:
        ValueError: the schedule's name is unknown, or a key that it needs is missing.
    """
    warmup_steps = round(recipe["warmup"] * total_steps)
    if recipe["schedule"] == "cosine":
        return partial(cosine, warmup_steps=warmup_steps, total_steps=total_steps)
    if recipe["schedule"] == "cosine_guarded":
        guard = recipe["guard_lr"] / recipe["lr"]
        warmup_steps = int(recipe["warmup"] * total_steps)
        return partial(cosine_guarded, warmup_steps=warmup_steps, total_steps=total_steps, guard=guard)
    if recipe["schedule"] == "cosine_to_min":
        floor = recipe["min_lr"] / recipe["lr"]
        return partial(cosine_to_min, warmup_steps=warmup_steps, total_steps=total_steps, floor=floor)
    if recipe["schedule"] == "one_cycle":
        return partial(one_cycle, warmup_steps=warmup_steps, total_steps=total_steps)
    if recipe["schedule"] == "steps":
        if missing := [key for key in ("milestones", "decay") if key not in recipe]:
            raise ValueError(f"the schedule steps needs milestones and decay, but {' and '.join(missing)} is missing.")
        milestones = [round(share * total_steps) for share in recipe["milestones"]]
        return partial(steps, milestones=milestones, decay=recipe["decay"])
    raise ValueError(
        f"schedule ({recipe['schedule']!r}) must be cosine, cosine_guarded, cosine_to_min, one_cycle or steps."
    )


def cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up from 0 to 1, then half a cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return _half_cosine((step - warmup_steps) / max(1, total_steps - warmup_steps))


def cosine_guarded(step: int, *, warmup_steps: int, total_steps: int, guard: float) -> float:
    """Schedule of ClipBERT and XPretrain: steps from 1, `guard` where the cosine is down to 0."""
    if step + 1 < warmup_steps:
        return (step + 1) / warmup_steps
    return _half_cosine((step + 1 - warmup_steps) / max(1, total_steps - warmup_steps)) or guard


def cosine_to_min(step: int, *, warmup_steps: int, total_steps: int, floor: float) -> float:
    """MAE's schedule: linear from 0 (a first step of rate 0) to 1, then half a cosine to `floor`."""
    if step < warmup_steps:
        return step / warmup_steps
    return floor + (1 - floor) * _half_cosine((step - warmup_steps) / max(1, total_steps - warmup_steps))


def one_cycle(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Half a cosine from 1/25 up to 1, then one down to 0 (Smith and Topin, 1708.07120, with a fixed momentum)."""
    if step < warmup_steps:
        return 1 - (1 - 1 / 25) * _half_cosine(step / warmup_steps)
    return _half_cosine((step - warmup_steps) / max(1, total_steps - warmup_steps))


def steps(step: int, *, milestones: list[int], decay: float) -> float:
    """Times `decay` at each milestone that has been passed."""
    return decay ** sum(step >= milestone for milestone in milestones)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def decay_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], *, undecayed: Iterable[str] = (), **options: float
) -> list[dict]:
    """Two groups: matrices, decayed as the recipe says; vectors and the names `undecayed`, which never are."""
    undecayed = set(undecayed)
    matrices, others = [], []
    for name, parameter in parameters:
        if parameter.requires_grad:
            (others if parameter.ndim == 1 or name in undecayed else matrices).append(parameter)
    groups = [{"params": matrices, **options}, {"params": others, **options, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
