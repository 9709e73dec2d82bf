"""How to split one training budget: one big member, or many small ones? Members are trained inside the trial.

A trial is (width, copies) with copies * training MACs of the width within the budget, and its value is the validation
accuracy of the members' averaged logits. After each epoch that accuracy is reported, and a trial that lags behind the
others at the same epoch is pruned: all trials have the same schedule, so equal epochs can be compared.
Read `TrainingSearch.evaluate` first.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.base import learning_rate_schedule
from lightning_modules.datamodules.labelled import LabelledImages
from lightning_modules.datasets import storage
from lightning_modules.ensembling.members import Members, build_network
from lightning_modules.metrics.compute import count_macs
from lightning_modules.runs import Evaluation, Figure, Series
from lightning_modules.settings import bind
from lightning_modules.sweeps.search import TRAINING_FACTOR, Configuration, Finished, Outcome, as_json, training_images

if TYPE_CHECKING:
    from optuna.trial import Trial


class TrainingSearch:
    """The search over widths and numbers of members under one budget of training MACs.

    Args:
        system: resolved blocks `model`, `data` and `pretrain` of an arm of trained members.
        dataset: folder of its prepared data set.
        budget: training MACs of all members together; null for those of one member of the dearest width.
        largest: most members.
        epochs: null for those of the arm's recipe.
        data_seed: decides the rows of the splits.

    Raises:
        ValueError: members that are not trained, or a budget under the cheapest of them.
    """

    directions = ("maximize",)
    metric_names = ("validation_top1_percent",)

    def __init__(
        self,
        system: dict,
        dataset: Path,
        *,
        budget: int | float | None,
        largest: int,
        epochs: int | None,
        data_seed: int,
    ) -> None:
        self.model, self.data, self.recipe = system["model"], system["data"], dict(system["pretrain"])
        if self.model["family"] == "hub":
            raise ValueError("members of family 'hub' are not trained here; expected an arm that trains its members.")
        self.recipe["epochs"] = epochs or self.recipe["epochs"]
        storage.card(dataset)  # missing data is said before there are workers
        self.dataset, self.largest, self.data_seed = dataset, largest, data_seed
        self.macs = {width: self._training_macs(width) for width in self.model["widths"]}
        cheapest = min(self.macs, key=self.macs.get)
        self.budget = max(self.macs.values()) if budget is None else budget
        if self.budget < self.macs[cheapest]:
            raise ValueError(
                f"budget ({self.budget}) is under the cheapest member, width {cheapest} with {self.macs[cheapest]} "
                "training MACs; expected at least that. Raise `budget`, or train fewer epochs."
            )

    @property
    def space(self) -> dict:
        """What the trials of a study share; a study with another space is another study."""
        return {
            "training_macs": {str(width): macs for width, macs in self.macs.items()},
            "budget": self.budget,
            "largest": self.largest,
            "recipe": self.recipe,
            "data_seed": self.data_seed,
        }

    def start(self, slot: int) -> dict[str, int]:
        """Nothing is given: there is one kind of trial."""
        return {}

    def most(self, width: int) -> int:
        """Members of a width that the budget pays for."""
        return min(self.largest, int(self.budget // self.macs[width]))

    def suggest(self, trial: "Trial") -> Configuration:
        """Ask Optuna for a configuration, always within the budget."""
        affordable = [width for width in self.macs if self.most(width)]
        width = trial.suggest_categorical("width", affordable)
        return {"width": width, "copies": trial.suggest_int(f"copies_{width}", 1, self.most(width))}

    def evaluate(self, config: Configuration, report: Callable[[float, int], None] | None = None) -> Outcome:
        """Train the members and give the validation accuracy of their average, in percent."""
        torch.set_num_threads(1)
        torch.manual_seed(self.data_seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = {**self.model, "widths": [config["width"]], "copies": config["copies"]}
        members: Members = bind(model, "the arm's model")().to(device)
        data = {**self.data, "copies": config["copies"]}
        images: LabelledImages = bind(data, "the arm's data", folder=self.dataset, seed=self.data_seed)()
        accuracy = self._train(members, images, device, report)
        spent = config["copies"] * self.macs[config["width"]]
        facts = {"config": config, "training_macs": spent, "training_share": round(spent / self.budget, 6)}
        return Outcome((accuracy,), {"budget": float(spent - self.budget)}, facts)

    def report(self, trials: Sequence[Finished], dataset: str, settings: Mapping[str, Any]) -> Evaluation:
        """The best big member, the best group of members, and what was tried.

        Args:
            trials: the complete trials of the study; pruned ones lagged behind them.
            dataset: first part of every metric's name.
            settings: what the study was asked for, kept with the results.
        """
        best = {
            kind: min((t for t in trials if (t.config["copies"] > 1) == several), key=_preference, default=None)
            for kind, several in (("single", False), ("ensemble", True))
        }
        fronts = {kind: [_row(trial)] if trial else [] for kind, trial in best.items()}
        study = {
            "settings": dict(settings),
            "space": self.space,
            "statement": self._state(best, dataset),
            "trials": [_row(trial) for trial in trials],
        }
        metrics = {
            f"{dataset}/split_{kind}/validation_top1_percent": trial.outcome.values[0]
            for kind, trial in best.items()
            if trial
        }
        return Evaluation(
            metrics={self.data_seed: metrics},
            figures=[_figure(trials, dataset)] if trials else [],
            files={"study.json": as_json(study), "pareto.json": as_json(fronts)},
        )

    def _state(self, best: Mapping[str, Finished | None], dataset: str) -> str:
        told = [
            f"{trial.config['copies']} of width {trial.config['width']}: {trial.outcome.values[0]:.2f} % validation "
            f"accuracy for {trial.outcome.facts['training_share']:.0%} of the budget"
            for trial in best.values()
            if trial
        ]
        if not told:
            return f"On {dataset}, no trial with {self.budget:,} training MACs is complete."
        return f"On {dataset}, {self.budget:,} training MACs were spent best on {'; on '.join(told)} (one seed)."

    def _train(
        self, members: Members, data: LabelledImages, device: torch.device, report: Callable[[float, int], None] | None
    ) -> float:
        loader = data.train_dataloader()
        members.recipe = self.recipe
        optimizer = members._optimizer()
        steps = self.recipe["epochs"] * len(loader)
        schedule = LambdaLR(optimizer, learning_rate_schedule(self.recipe, steps))
        accuracy = 0.0
        for epoch in range(self.recipe["epochs"]):
            loader.sampler.set_epoch(epoch)
            members.train()
            for batch in loader:
                optimizer.zero_grad()
                members.training_step({name: x.to(device) for name, x in batch.items()}).backward()
                optimizer.step()
                schedule.step()
            accuracy = averaged_accuracy(members, data, device)
            if report:
                report(accuracy, epoch)
        return accuracy

    def _training_macs(self, width: int) -> int:
        """What one member of a width costs to train: three forward passes for every image it sees."""
        shape = tuple(self.model["image_shape"])
        network = build_network(self.model["family"], width, self.model.get("depth"), shape, self.model["num_classes"])
        return (
            TRAINING_FACTOR * training_images({"data": self.data, "pretrain": self.recipe}) * count_macs(network, shape)
        )


@torch.inference_mode()
def averaged_accuracy(members: Members, data: LabelledImages, device: torch.device) -> float:
    """Validation accuracy of the members' mean logits, in percent."""
    predictions = members.predictions(data, device)
    logits = [x for key, x in predictions.items() if key.startswith("logits/") and key.endswith("/val")]
    right: Tensor = torch.stack(logits).mean(dim=0).argmax(dim=-1) == predictions["labels/val"]
    return round(100 * float(right.float().mean()), 6)


def _preference(trial: Finished) -> tuple[float, int, int]:
    """The most accurate first; among equals the cheaper, then the earlier."""
    return -trial.outcome.values[0], trial.outcome.facts["training_macs"], trial.number


def _row(trial: Finished) -> dict:
    return {
        "trial": trial.number,
        "configuration": trial.config,
        "validation_top1_percent": trial.outcome.values[0],
        "training_macs": trial.outcome.facts["training_macs"],
    }


def _figure(trials: Sequence[Finished], dataset: str) -> Figure:
    series = []
    for width in sorted({trial.config["width"] for trial in trials}):
        mine = {t.config["copies"]: t.outcome.values[0] for t in trials if t.config["width"] == width}
        copies = sorted(mine)
        series.append(Series(f"width {width}", "points", [float(k) for k in copies], [mine[k] for k in copies]))
    return Figure(
        id=f"{dataset}-split",
        title=f"One training budget on {dataset}: one big member or many small ones",
        caption="Validation accuracy of the averaged members of the trials that were not pruned; one seed.",
        x_label="members",
        y_label="top-1 accuracy (%)",
        x_scale="log",
        series=series,
    )
