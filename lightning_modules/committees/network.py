"""A chosen cascade as one runnable module.

It lives beside the layers, and not beside the search that chooses it, so that an evaluation never loads torch.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load
from torch import Tensor, nn

from lightning_modules.datasets.pictures import stored
from lightning_modules.layers.published import load_strictly
from lightning_modules.predictors import Predictor
from lightning_modules.tracking.model import channels_first

CONFIDENCES = ("max_probability", "logit_gap", "probability_gap", "negative_entropy")


class CommitteeOutput(NamedTuple):
    """Answer per row, the stage it came from (from 0), and the MACs spent on it."""

    probabilities: Float[Tensor, "batch classes"]
    exit_stage: Int[Tensor, " batch"]
    macs: Int[Tensor, " batch"]


class Committee(nn.Module):
    """Models run in order on the rows that are still unsure; their running average answers (section 3).

    The first model sees the whole batch. A row leaves at stage k iff the confidence of the average of models 1..k is at
    least `thresholds[k]`; the others are gathered into a smaller batch for model k + 1, and nothing runs once no row
    is left. Averages and confidences are float64, as in the search that chose the thresholds, so both send every row
    the same way. A network used at two resolutions is passed twice, each time behind its own resizing module.

    Args:
        members: networks that map a batch to logits, in order.
        macs: cost of one row in each member.
        thresholds: one per member but the last; -inf lets all leave, +inf none.
        confidence: see `lightning_modules.ensembling.cascades.confidence`.
        average: `logits` (geometric mean) or `probabilities` (arithmetic mean).
        output: `running`, `last` or `weighted`, the latter with `weights`, one per member.
        temperatures: divide each member's logits first; 1.0 unless told.
        weights: share of each member in the running average.

    Raises:
        ValueError: numbers of members, MACs, thresholds, temperatures or weights that do not fit, or unknown names.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        *,
        macs: Sequence[int],
        thresholds: Sequence[float],
        confidence: str = "max_probability",
        average: str = "logits",
        output: str = "running",
        temperatures: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        count = len(members)
        if count < 1 or len(macs) != count or len(thresholds) != count - 1:
            raise ValueError(
                f"{count} members, {len(macs)} MACs and {len(thresholds)} thresholds do not fit: each member has its "
                "MACs, and each but the last its threshold."
            )
        for name, values in (("temperatures", temperatures), ("weights", weights)):
            if values is not None and len(values) != count:
                raise ValueError(f"{name} has {len(values)} entries for {count} members.")
        if confidence not in CONFIDENCES:
            raise ValueError(f"confidence ({confidence!r}) must be one of {CONFIDENCES}.")
        if average not in ("logits", "probabilities"):
            raise ValueError(f"average ({average!r}) must be 'logits' or 'probabilities'.")
        if output not in ("running", "last", "weighted"):
            raise ValueError(f"output ({output!r}) must be 'running', 'last' or 'weighted'.")
        if (weights is not None) != (output == "weighted"):
            raise ValueError(f"weights go with output 'weighted' and with no other (output is {output!r}).")
        self.members = nn.ModuleList(members)
        self.macs, self.thresholds = tuple(macs), tuple(thresholds)
        self.confidence, self.average, self.output = confidence, average, output
        self.temperatures = tuple(temperatures or [1.0] * count)
        self.weights = None if weights is None else tuple(weights)

    def forward(self, inputs: Float[Tensor, "batch ..."]) -> CommitteeOutput:
        """Answer every row with as few members as its confidence allows."""
        batch = len(inputs)
        rows = torch.arange(batch, device=inputs.device)
        exit_stage = torch.zeros(batch, dtype=torch.int64, device=inputs.device)
        macs = torch.zeros(batch, dtype=torch.int64, device=inputs.device)
        total: Tensor | None = None
        predictions: Tensor | None = None
        for stage, member in enumerate(self.members):
            terms = self._terms(member(inputs[rows]).double() / self.temperatures[stage], stage)
            total = terms if total is None or self.output == "last" else total + terms
            scores = self._scores(total, stage)
            probabilities = scores.softmax(dim=-1)
            if predictions is None:  # the first member sees every row
                predictions = probabilities.clone()
            predictions[rows], exit_stage[rows] = probabilities, stage
            macs[rows] += self.macs[stage]
            if stage == len(self.members) - 1:
                break
            unsure = confidence(scores, self.confidence) < self.thresholds[stage]
            rows, total = rows[unsure], total[unsure]
            if len(rows) == 0:
                break
        return CommitteeOutput(predictions, exit_stage, macs)

    def _terms(self, logits: Float[Tensor, "rows classes"], stage: int) -> Float[Tensor, "rows classes"]:
        terms = logits if self.average == "logits" else logits.log_softmax(dim=-1).exp()
        return terms if self.weights is None else self.weights[stage] * terms

    def _scores(self, total: Float[Tensor, "rows classes"], stage: int) -> Float[Tensor, "rows classes"]:
        if self.weights is not None:
            mean = total / sum(self.weights[: stage + 1])
        else:
            mean = total / (1.0 if self.output == "last" else stage + 1.0)
        return mean if self.average == "logits" else mean.clamp_min(1e-300).log()

    @classmethod
    def load(cls, folder: Path, members: Sequence[nn.Module]) -> "Committee":
        """A committee from the files of `ensembling.committee_files`, into members freshly built in their order.

        Raises:
            ValueError: the weights are not the ones the record speaks of, or do not fit the members.
        """
        record = json.loads((folder / "committee.json").read_text())
        weights = (folder / "committee.safetensors").read_bytes()
        found = hashlib.sha256(weights).hexdigest()
        if found != record["weights_sha256"]:
            raise ValueError(
                f"{folder / 'committee.safetensors'} has sha256 {found}, but committee.json expects "
                f"{record['weights_sha256']}: the two files come from different committees."
            )
        committee = cls(
            members,
            macs=record["member_macs"],
            thresholds=[float(t) for t in record["thresholds"]],
            confidence=record["confidence"],
            average=record["average"],
            output=record["output"],
            temperatures=record["temperatures"],
            weights=record["weights"],
        )
        load_strictly(committee, load(weights), f"the committee in {folder}")
        return committee.eval()


class CommitteePredictor(Predictor):
    """A committee in its two files, as `predictors.load` and `mlflow.pyfunc.load_model` give it.

    Args:
        folder: with `committee.json` and `committee.safetensors`.
    """

    def __init__(self, folder: Path):
        from lightning_modules.ensembling.members import rebuild

        self.record = json.loads((folder / "committee.json").read_text())
        self.committee = Committee.load(folder, rebuild(self.record))

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """For each picture of a file: its class, the member that answered, and the cost in MACs.

        Raises:
            ValueError: see `pictures.stored`.
        """
        shape, scale = self.record["images"]["shape"], self.record["images"]["scale"]
        with torch.inference_mode():
            found = self.committee(torch.from_numpy(stored(Path(path), tuple(shape), scale)))
        for row, (shares, stage, macs) in enumerate(zip(*(x.tolist() for x in found), strict=True)):
            best = int(np.argmax(shares))
            name = self.record["members"][stage]["name"]
            line = {"row": row, "class": best, "probability": round(shares[best], 6)}
            yield line | {"answered_by": name, "members_asked": stage + 1, "macs": macs}

    def predict(self, model_input: np.ndarray, params: dict | None = None) -> np.ndarray:
        """Class probabilities (rows, classes) of stored pixels (rows, height, width, channels)."""
        with torch.inference_mode():
            return self.committee(channels_first(model_input).float()).probabilities.numpy()


def confidence(scores: Float[Tensor, "rows classes"], kind: str) -> Float[Tensor, " rows"]:
    """The torch twin of `lightning_modules.ensembling.cascades.confidence`, in the same units; expects float64."""
    top = scores.argmax(dim=-1, keepdim=True)
    shifted = scores - scores.gather(-1, top)
    others = shifted.exp().scatter(-1, top, 0.0)
    mass = others.sum(dim=-1)
    if kind == "max_probability":
        return -mass / (1.0 + mass)
    if kind == "probability_gap":
        return -(mass + others.amax(dim=-1)) / (1.0 + mass)
    if kind == "negative_entropy":
        return (others * shifted).sum(dim=-1) / (1.0 + mass) - mass.log1p()
    return -shifted.scatter(-1, top, -torch.inf).amax(dim=-1)
