"""What all papers' LightningModules share: the optimiser and its schedule, read from the recipe."""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, TypedDict

import torch
from pydantic import Field
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.settings import Natural, NonNegative, Share

Schedule = Callable[[int], float]


class Recipe(TypedDict):
    """The training block of a config; a paper that reads further keys extends it."""

    epochs: Natural
    optimizer: Literal["adamw", "sgd"]
    lr: NonNegative
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegative
    schedule: Literal["cosine", "one_cycle", "steps"]
    warmup: Share  # of all steps
    milestones: list[Share]  # of all steps, for the schedule `steps`
    decay: Share  # factor at each milestone


class PaperModule(LightningModule):
    """Base of every system. `recipe` is the training block of its config, of the form `Recipe`, set before `fit`.

    Weight decay is on every parameter, norms and biases included.
    """

    recipe_form: type = Recipe
    recipe: dict

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse data that the network cannot be trained on; called once, before anything is computed.

        Raises:
            ValueError: what does not fit, with both values.
        """

    def answers(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """Arrays on the evaluation splits that the evaluation stage reads."""
        raise NotImplementedError(f"{type(self).__name__} gives no answers: write the method, see tasks/members.py.")

    def export(self) -> dict[str, Tensor]:
        """The weights to be kept."""
        return self.state_dict()

    def facts(self) -> dict:
        """What the evaluation has to know about the network: a pure function of the configuration."""
        return {}

    def machine_facts(self, data: LightningDataModule) -> dict[str, float]:
        """What this machine measured; tracked, never part of an output."""
        return {}

    def configure_optimizers(self) -> dict:
        """AdamW or SGD over all parameters that learn, and the schedule over the steps of the whole training."""
        optimizer = self._optimizer()
        schedule = learning_rate_schedule(self.recipe, int(self.trainer.estimated_stepping_batches))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, schedule), "interval": "step"},
        }

    def _optimizer(self) -> Optimizer:
        name, lr, decay = (self.recipe[key] for key in ("optimizer", "lr", "weight_decay"))
        parameters = [p for p in self.parameters() if p.requires_grad]
        if name == "adamw":
            return AdamW(parameters, lr=lr, weight_decay=decay, fused=True)
        if name == "sgd":
            momentum = self.recipe["momentum"]
            return SGD(parameters, lr=lr, weight_decay=decay, momentum=momentum, nesterov=momentum > 0, fused=True)
        raise ValueError(f"optimizer ({name!r}) must be adamw or sgd.")


def learning_rate_schedule(recipe: dict, total_steps: int) -> Schedule:
    """The factor on `lr` at each step: warm-up, then the named schedule.

    Raises:
        ValueError: the schedule's name is unknown.
    """
    warmup_steps = round(recipe["warmup"] * total_steps)
    if recipe["schedule"] == "cosine":
        return partial(cosine, warmup_steps=warmup_steps, total_steps=total_steps)
    if recipe["schedule"] == "one_cycle":
        return partial(one_cycle, warmup_steps=warmup_steps, total_steps=total_steps)
    if recipe["schedule"] == "steps":
        milestones = [round(share * total_steps) for share in recipe["milestones"]]
        return partial(steps, milestones=milestones, decay=recipe["decay"])
    raise ValueError(f"schedule ({recipe['schedule']!r}) must be cosine, one_cycle or steps.")


def cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up from 0 to 1, then half a cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return _half_cosine((step - warmup_steps) / max(1, total_steps - warmup_steps))


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
