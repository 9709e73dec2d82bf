"""Gradient masking: each shared weight learns from one modality, found by pruning on the size of gradients.

With losses of pictures and of texts, and a binary mask M of the shape of the shared weights, the gradient is
`M * g_text + (1 - M) * g_image`. M is 1 everywhere at first; every so many steps the weights whose gradients of the
text loss have been the smallest lose their 1, until the wanted share is left. With `first: image` the modalities change
places: then pictures begin with all weights.

Both losses are summed and go backward once: they read the shared weights through `Route`, whose backward pass masks.
So accumulated batches, scaled losses, clipping and DDP need no code here; only what is ranked is averaged over
processes. Read `SharedGradients.views` and `SharedGradients.before_step`.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import Function
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.settings import STRICT, Count

Combination = Literal["sum", "mask", "pcgrad"]
Score = Literal["magnitude", "sensitivity", "random"]


class Masking(TypedDict):
    """How the mask is found; the defaults of the files are our choice, as the paper's values are not known.

    `score`: what weights are ranked by, the running mean of |g| (`magnitude`) or of |g * weight| (`sensitivity`), or
    nothing (`random`: a mask that is drawn). `first`: the modality that begins with all weights, whose gradients are
    ranked. `kept`: share of the weights that it keeps. `prunings`: how many times
    some are taken away, evenly over the share `until` of the steps. `momentum`: of the running mean. `ranking`: over
    all layers (`global`) or within each matrix (`layer`). `vectors`: mask biases and norms too; otherwise their
    gradients are summed.
    """

    __pydantic_config__ = STRICT
    score: Score
    first: Literal["image", "text"]
    kept: Annotated[float, Field(gt=0, lt=1)]
    prunings: Count
    until: Annotated[float, Field(gt=0, le=1)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    ranking: Literal["global", "layer"]
    vectors: bool


def density(pruned: int, settings: Masking) -> float:
    """Share of the weights that the first modality has after so many prunings: 1 - (1 - kept) k / K."""
    return 1 - (1 - settings["kept"]) * pruned / settings["prunings"]


def due(steps: int, total: int, settings: Masking) -> int:
    """How many prunings there have been after so many of all steps."""
    return min(settings["prunings"], int(steps * settings["prunings"] / (settings["until"] * total) + 1e-9))


class Route(Function):
    """A weight as it is; of its gradient only what `mask` keeps goes back, and all of it is added to `gathered`."""

    @staticmethod
    def forward(ctx, weight: Tensor, mask: Tensor | None, gathered: Tensor | None) -> Tensor:
        """The weight; autograd's `Function` gives these signatures."""
        ctx.mask, ctx.gathered = mask, gathered
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The masked gradient."""
        if ctx.gathered is not None:
            ctx.gathered.add_(gradient)
        return (gradient if ctx.mask is None else gradient * ctx.mask), None, None


class SharedGradients(nn.Module):
    """What becomes of two gradients of the same weights: their sum, masked parts of them, or projections.

    Buffers `mask` and `running` (weights), flat in the order of `names`, matrices first, `densities` (prunings + 1
    matrices) and `pruned`. They are in checkpoints, so that a training goes on as if it had not been stopped, and
    equal in all processes: what is ranked is averaged over them.

    Args:
        encoder: whose weights are shared.
        combination: `sum`, `mask`, or `pcgrad` (Yu et al., 2001.06782): gradients that point against each other lose
            the part along the other one.
        settings: of the mask.
    """

    def __init__(self, encoder: nn.Module, combination: Combination, settings: Masking):
        super().__init__()
        self.combination, self.settings = combination, settings
        named = sorted(encoder.named_parameters(), key=lambda pair: pair[1].ndim < 2)  # a stable sort
        self.names = [name for name, _ in named]
        self.shapes = {name: x.shape for name, x in named}
        sizes = torch.tensor([x.numel() for _, x in named], device="cpu")
        self.ends = sizes.cumsum(0).tolist()
        self.spans = {name: slice(end - x.numel(), end) for end, (name, x) in zip(self.ends, named, strict=True)}
        self.masked = [name for name, x in named if settings["vectors"] or x.ndim > 1] if combination == "mask" else []
        count = self.spans[self.masked[-1]].stop if self.masked else 0
        self.register_buffer("mask", torch.ones(count, dtype=torch.bool))
        self.register_buffer("running", torch.zeros(count))
        self.register_buffer("densities", torch.ones(settings["prunings"] + 1 if self.masked else 0, len(self.masked)))
        self.register_buffer("pruned", torch.zeros((), dtype=torch.long))
        self.gathered: dict[str, Tensor] = {}

    def part(self, flat: Tensor, name: str) -> Tensor:
        """The values of one weight in a flat vector, in its shape."""
        return flat[self.spans[name]].view(self.shapes[name])

    def begin(self, encoder: nn.Module, *, watched: bool) -> None:
        """Say before the batches of a step whether its gradients will be looked at, so that they are kept apart."""
        ranked = self.combination == "mask" and int(self.pruned) < self.settings["prunings"]
        wanted = {"image", "text"} if watched else set()
        if self.combination == "pcgrad" or (ranked and self.settings["score"] != "random"):
            wanted.add(self.settings["first"])
        like = next(encoder.parameters())
        for modality in wanted - set(self.gathered):
            self.gathered[modality] = torch.zeros(self.ends[-1], device=like.device, dtype=like.dtype)

    def views(self, encoder: nn.Module, modality: str) -> dict[str, Tensor]:
        """The weights as one modality reads them, for `torch.func.functional_call`; empty where nothing is done."""
        gathered = self.gathered.get(modality)
        if gathered is None and not self.masked:
            return {}
        masked = set(self.masked)
        found = {}
        for name, weight in encoder.named_parameters():
            mask = self.part(self.mask, name) if name in masked else None
            mask = ~mask if mask is not None and modality != self.settings["first"] else mask
            found[name] = Route.apply(weight, mask, None if gathered is None else self.part(gathered, name))
        return found

    @torch.no_grad()
    def before_step(self, encoder: nn.Module, steps: int, total: int, scale: float = 1.0) -> dict[str, Tensor]:
        """Once a step's gradients are complete: project them, or rank them and prune. Gives what is to be logged.

        Args:
            encoder: with its gradients, averaged over processes.
            steps: done with this one.
            total: of the training.
            scale: by which the losses were multiplied.
        """
        gathered = {name: averaged(x) / scale for name, x in sorted(self.gathered.items())}
        self.gathered = {}
        watched = comparison(gathered["image"], gathered["text"]) if len(gathered) == 2 else {}
        if self.combination == "pcgrad":
            self._project(encoder, gathered[self.settings["first"]])
        if self.combination == "mask":
            if self.settings["first"] in gathered:
                self._remember(encoder, gathered[self.settings["first"]])
            self._prune(due(steps, total, self.settings))
        return watched

    def _project(self, encoder: nn.Module, one: Float[Tensor, " weights"]) -> None:
        weights = dict(encoder.named_parameters())
        whole = torch.cat([weights[name].grad.flatten() for name in self.names])
        found = pcgrad(whole - one, one)
        for name in self.names:
            weights[name].grad.copy_(self.part(found, name))

    def _remember(self, encoder: nn.Module, gradient: Float[Tensor, " weights"]) -> None:
        score = gradient[: len(self.running)].abs()
        if self.settings["score"] == "sensitivity":
            weights = dict(encoder.named_parameters())
            score = score * torch.cat([weights[name].flatten() for name in self.masked]).abs()
        self.running.lerp_(score, 1 - self.settings["momentum"])

    def _prune(self, wanted: int) -> None:
        if wanted <= int(self.pruned):
            return
        score = self.running
        if self.settings["score"] == "random":
            drawing = torch.Generator().manual_seed(torch.initial_seed() % 2**32)
            score = torch.rand(len(self.mask), generator=drawing).to(self.mask.device)
        share = density(wanted, self.settings)
        spans = [slice(None)] if self.settings["ranking"] == "global" else [self.spans[name] for name in self.masked]
        for span in spans:
            self.mask[span] = keep_largest(self.mask[span], score[span], share)
        for number in range(int(self.pruned) + 1, wanted + 1):
            self.densities[number] = torch.stack([self.mask[self.spans[name]].float().mean() for name in self.masked])
        self.pruned.fill_(wanted)
        check_equal(self.mask)

    def density_by_block(self) -> Iterator[tuple[str, Tensor]]:
        """The share that the first modality has of all masked weights, and of those of each layer."""
        if not self.masked:
            return
        yield "density", self.mask.float().mean()
        layers: dict[str, list[Tensor]] = {}
        for name in self.masked:
            layers.setdefault(layer_of(name), []).append(self.mask[self.spans[name]])
        for layer, parts in layers.items():
            yield f"density/{layer}", torch.cat(parts).float().mean()


def layer_of(name: str) -> str:
    """The layer that a weight of the encoder belongs to: `layer-1`, ..., or `norm`."""
    parts = name.split(".")
    return f"layer-{int(parts[1]) + 1}" if parts[0] == "blocks" else parts[0]


def keep_largest(
    mask: Bool[Tensor, " weights"], score: Float[Tensor, " weights"], share: float
) -> Bool[Tensor, " weights"]:
    """The mask with the smallest scores taken out, until a share of all weights is left; of equal ones the last."""
    kept = round(share * len(mask))
    order = torch.where(mask, score, -torch.inf).argsort(descending=True, stable=True)
    found = torch.zeros_like(mask)
    found[order[:kept]] = True
    return found & mask


def pcgrad(image: Float[Tensor, " weights"], text: Float[Tensor, " weights"]) -> Float[Tensor, " weights"]:
    """The sum of both gradients; where they point against each other, each without its part along the other."""
    product = image @ text
    if product >= 0:
        return image + text
    return image - product / text.square().sum() * text + text - product / image.square().sum() * image


def comparison(image: Float[Tensor, " weights"], text: Float[Tensor, " weights"]) -> dict[str, Tensor]:
    """Cosine of the two gradients of the shared weights, and the norm of that of texts in units of the other."""
    norms = image.norm(), text.norm()
    tiny = torch.finfo(image.dtype).tiny
    return {
        "gradients/cosine": image @ text / (norms[0] * norms[1]).clamp(min=tiny),
        "gradients/ratio": norms[1] / norms[0].clamp(min=tiny),
    }


def averaged(values: Float[Tensor, " weights"]) -> Float[Tensor, " weights"]:
    """The mean over all processes."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def check_equal(mask: Bool[Tensor, " weights"]) -> None:
    """Make sure that all processes have found the same mask.

    Raises:
        ValueError: they have not: the processes do not train the same network any more.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    found = digest(mask)
    both = torch.stack([found, -found])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    if int(both[0]) != -int(both[1]):
        raise ValueError("processes have found different masks: their gradients were not averaged. Train with ddp.")


def digest(mask: Bool[Tensor, " weights"]) -> Tensor:
    """A number that tells masks apart: the sum of the squared places."""
    places = torch.arange(1, len(mask) + 1, device=mask.device)[mask]
    return (places * places % (2**31 - 1)).sum()
