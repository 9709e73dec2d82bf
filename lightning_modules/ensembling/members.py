"""A pool of independently trained classifiers: the members that ensembles and cascades are made of.

One module is the pool of one seed: `copies` members of each width, each with its own initialisation and its own data
order, trained together because small networks leave a machine idle. Nothing is shared between them but the step.

Read `Members.training_step` first, then `Members.predictions`, which is all that an evaluation needs.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from torch import Tensor, nn

from lightning_modules import pretrained
from lightning_modules.base import PaperModule
from lightning_modules.datamodules.labelled import LabelledImages
from lightning_modules.layers.convolution import SmallConvNet, WideResNet
from lightning_modules.layers.exported import Exported
from lightning_modules.layers.mlp import MLP
from lightning_modules.layers.stack import Stack
from lightning_modules.metrics.compute import count_macs, count_parameters, latency
from lightning_modules.settings import Count, Positive
from lightning_modules.validation import mean_over

TRAINED = ("mlp", "convnet", "wide_resnet")
LATENCY_BATCHES = (1, 64)
Size = Annotated[int, Field(ge=1, le=16_384)]  # of a layer or an image: what a mistyped zero makes of it still fits


class Normalise(nn.Module):
    """Stored pixels to zero mean and unit variance: `(pixels / scale - mean) / std`, channel by channel."""

    def __init__(self, scale: int, mean: list[float], std: list[float]):
        super().__init__()
        self.register_buffer("mean", scale * torch.tensor(mean)[:, None, None])
        self.register_buffer("std", scale * torch.tensor(std)[:, None, None])

    def forward(self, images: Shaped[Tensor, "*batch c height width"]) -> Float[Tensor, "*batch c height width"]:
        """Normalised images, of any stored type."""
        return (images - self.mean) / self.std


class Member(nn.Module):
    """One member on its own: from stored pixels to logits, by way of its resolution."""

    def __init__(self, normalise: Normalise, network: nn.Module, resolution: int):
        super().__init__()
        self.normalise = normalise
        self.network = network
        self.resolution = resolution

    def forward(self, images: Shaped[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits for stored pixels."""
        return self.network(resize(self.normalise(images), self.resolution))


class Members(PaperModule):
    """The pool of all members of one seed.

    Args:
        family: mlp | convnet | wide_resnet (trained here) or hub (official weights).
        widths: hidden width, first channels or widen factor of each architecture; empty for hub.
        depth: hidden layers of an mlp, layers of a wide_resnet; null for convnet and hub, which have their own.
        copies: members of each width, K.
        names: hub names, such as `google/efficientnet-b0`; empty otherwise.
        image_shape: (channels, height, width) of the stored images.
        resolutions: heights at which members answer, the native one first; for hub one such list per name.
        pixel_scale: largest stored value; `pixel_mean` and `pixel_std` are per channel, in units of it.
        how: how the copies of one width are computed together, see `Stack`.

    Raises:
        ValueError: an argument contradicts the family or the images.
    """

    predictor = "lightning_modules.ensembling.classifier.Classifier"

    def __init__(
        self,
        *,
        family: str,
        widths: Sequence[Size] = (),
        depth: Annotated[int, Field(ge=1, le=1000)] | None = None,
        copies: Annotated[int, Field(ge=1, le=1000)],
        names: Sequence[str] = (),
        image_shape: Annotated[list[Size], Field(min_length=3, max_length=3)],
        num_classes: Annotated[int, Field(ge=2, le=1_000_000)],
        resolutions: list[Size] | list[list[Size]],
        pixel_scale: Count,
        pixel_mean: list[float],
        pixel_std: list[Positive],
        how: str = "auto",
    ):
        super().__init__()
        _check(family, widths, depth, copies, names, resolutions)
        _check_images(family, image_shape, resolutions, pixel_mean, pixel_std)
        self.family, self.depth, self.copies = family, depth, copies
        self.image_shape, self.num_classes = tuple(image_shape), num_classes
        self.pixel_scale = pixel_scale
        self.normalise = Normalise(pixel_scale, pixel_mean, pixel_std)
        if family == "hub":
            labels = [pretrained.short_name(name) for name in names]
            self.widths = dict.fromkeys(labels)
            self.resolutions = dict(zip(labels, resolutions, strict=True))
            networks = {label: [pretrained.load(name)] for label, name in zip(labels, names, strict=True)}
        else:
            self.widths = {architecture_name(family, width, depth): width for width in widths}
            self.resolutions = dict.fromkeys(self.widths, resolutions)
            networks = {name: self._build(width) for name, width in self.widths.items()}
        self.stacks = nn.ModuleDict({name: Stack(members, how) for name, members in networks.items()})

    def _build(self, width: int) -> list[nn.Module]:
        shape = self.image_shape, self.num_classes
        return [build_network(self.family, width, self.depth, *shape) for _ in range(self.copies)]

    def check_data(self, data: LabelledImages) -> None:
        """Refuse images of another shape, more classes than logits, copies without an order, and splits left out."""
        if not {"val", "test"} <= set(data.splits):
            raise ValueError(f"data.splits has {list(data.splits)}, expected val, test and, to train, train.")
        channels, height, width = self.image_shape
        if data.image_shape != (height, width, channels):
            height, width, channels = data.image_shape
            raise ValueError(f"model.image_shape is {self.image_shape}, but the data has {channels, height, width}.")
        if data.num_classes > self.num_classes:
            raise ValueError(f"model.num_classes is {self.num_classes}, but the data has {data.num_classes} classes.")
        if data.copies != self.copies:
            raise ValueError(f"model.copies is {self.copies}, but data.copies is {data.copies}: they must be equal.")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Sum over the members of their mean cross-entropy, so that each gradient is that of the member alone."""
        images = self.normalise(batch["images"])
        losses = {name: cross_entropy(stack(images), batch["labels"]) for name, stack in self.stacks.items()}
        self.log_losses(losses)
        return self.copies * torch.stack(list(losses.values())).sum()

    def validate(self, data: LabelledImages, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Mean loss of each width, and the accuracy of each member, at its native resolution."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            images, labels, found = self.normalise(batch["images"]), batch["labels"], {}
            for name, stack in self.stacks.items():
                logits = stack(images.expand(stack.size, *images.shape)).float()
                found[f"{name}/loss"] = cross_entropy(logits, labels.expand(stack.size, -1))
                for k, own in enumerate(logits):
                    found[f"{name}#{k}/accuracy"] = (own.argmax(-1) == labels).float().mean()
            return found

        return mean_over(batches, measure)

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        """The mean loss of each width, at the trainer's logging steps only: a log costs as much as a small network."""
        if self._trainer is not None and (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log_dict({f"pretrain/{name}/loss": loss.detach() for name, loss in losses.items()})

    @torch.inference_mode()
    def predictions(self, data: LabelledImages, device: torch.device) -> dict[str, Tensor]:
        """Float32 logits `logits/<member>/<split>[@resolution]`, int64 `labels/<split>`; splits are val and test."""
        self.to(device).eval()
        parts = defaultdict(list)
        for split in ("val", "test"):
            for batch in data.evaluation_batches(split):
                parts[f"labels/{split}"].append(batch["labels"])
                images = self.normalise(batch["images"].to(device))
                for member, suffix, logits in self._predict(images):
                    parts[f"logits/{member}/{split}{suffix}"].append(logits.float().cpu())
        return {key: torch.cat(part) for key, part in parts.items()}

    def _predict(self, images: Float[Tensor, "batch c height width"]) -> Iterator[tuple[str, str, Tensor]]:
        for name, stack in self.stacks.items():
            native = self.resolutions[name][0]
            for resolution in self.resolutions[name]:
                resized = resize(images, resolution)
                logits = stack(resized.expand(stack.size, *resized.shape))
                suffix = "" if resolution == native else f"@{resolution}"
                for k, own in enumerate(logits):
                    yield f"{name}#{k}", suffix, own

    def forward(self, images: Shaped[Tensor, "batch c height width"]) -> Float[Tensor, "batch classes"]:
        """Probabilities of the ensemble of all members, for stored pixels: the mean over members."""
        members = self.member_modules().values()
        return torch.stack([member(images).softmax(-1) for member in members]).mean(0)

    def to_transformers(self) -> Exported:
        """Not possible.

        Raises:
            ValueError: always, with the reason.
        """
        if self.family == "hub":
            raise ValueError(f"its members are models of transformers already: {', '.join(self.widths)}")
        raise ValueError(f"transformers has no class for a pool of small networks of the family {self.family}")

    def member_modules(self) -> dict[str, nn.Module]:
        """Every member as an ordinary module from stored pixels to logits, by name (`convnet-w16#1`)."""
        return {
            f"{name}#{k}": Member(self.normalise, network, self.resolutions[name][0])
            for name, stack in self.stacks.items()
            for k, network in enumerate(stack.unstack())
        }

    def export(self) -> dict[str, Tensor]:
        """The weights of all members, keys `members.<name>.<parameter>`; independent of `how` they were computed."""
        return {
            f"members.{name}.{key}": x.contiguous().clone()
            for name, member in self.member_modules().items()
            for key, x in member.state_dict().items()
        }

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights that `export` gave.

        Raises:
            KeyError: a member's weights are missing.
        """
        for part in ("mean", "std"):  # every member has the same
            getattr(self.normalise, part).copy_(
                next(x for key, x in weights.items() if key.endswith(f"normalise.{part}"))
            )
        for name, stack in self.stacks.items():
            keys = stack.unstack()[0].state_dict().keys()
            stack.load([{key: weights[f"members.{name}#{k}.network.{key}"] for key in keys} for k in range(stack.size)])

    def facts(self) -> dict:
        """Names, sizes and costs (MACs per image, by resolution) of the members."""
        members = []
        for name, stack in self.stacks.items():
            network = stack.unstack()[0]
            cost = {"params": count_parameters(network), "macs": self._macs(name, network)}
            shape = {"family": self.family, "width": self.widths[name], "depth": self.depth}
            native = str(self.resolutions[name][0])
            members += [
                {"name": f"{name}#{k}", **shape, "copy": k, **cost, "native": native} for k in range(stack.size)
            ]
        images = {"shape": list(self.image_shape), "scale": self.pixel_scale}
        return {"num_classes": self.num_classes, "images": images, "members": members}

    def machine_facts(self, data: LabelledImages) -> dict[str, float]:
        """Milliseconds per image of each architecture on this machine, alone and in batches of 64."""
        facts = {}
        for name, stack in self.stacks.items():
            image = torch.zeros(self.image_shape[0], *[self.resolutions[name][0]] * 2, device=self.device)
            for size, seconds in latency(stack.unstack()[0], image, LATENCY_BATCHES).items():
                facts[f"{name}/milliseconds_per_image@batch_{size}"] = 1000 * seconds / size
        return facts

    def _macs(self, name: str, network: nn.Module) -> dict[str, int]:
        channels = self.image_shape[0]
        return {str(size): count_macs(network, (channels, size, size)) for size in self.resolutions[name]}


def rebuild(record: dict) -> list[Member]:
    """The members that a `committee.json` lists, in its order, ready to take the weights beside it."""
    shape, scale = tuple(record["images"]["shape"]), record["images"]["scale"]
    anything = [0.0] * shape[0], [1.0] * shape[0]  # the weights bring the real mean and deviation
    members = []
    for facts in record["members"]:
        if facts["family"] == "hub":
            network = pretrained.build(facts["architecture"])
        else:
            network = build_network(facts["family"], facts["width"], facts["depth"], shape, record["num_classes"])
        members.append(Member(Normalise(scale, *anything), network, int(facts["resolution"])))
    return members


def architecture_name(family: str, width: int, depth: int | None) -> str:
    """The name that members of one width share: `mlp-h16`, `convnet-w16`, `wrn-16-4`."""
    if family == "wide_resnet":
        return f"wrn-{depth}-{width}"
    return f"mlp-h{width}" if family == "mlp" else f"convnet-w{width}"


def build_network(
    family: str, width: int, depth: int | None, image_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    """A freshly initialised network of one of the trained families."""
    channels, height, image_width = image_shape
    if family == "mlp":
        return MLP(channels * height * image_width, width, depth, num_classes)
    if family == "convnet":
        return SmallConvNet(channels, width, num_classes)
    return WideResNet(depth, width, num_classes)


def cross_entropy(logits: Float[Tensor, "member batch c"], labels: Int[Tensor, "member batch"]) -> Float[Tensor, ""]:
    """Mean over members and images."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def resize(images: Float[Tensor, "batch c height width"], resolution: int) -> Float[Tensor, "batch c new new"]:
    """Square images of another size, bilinear with antialiasing; unchanged where the size is right already."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    return F.interpolate(images, size=(resolution, resolution), mode="bilinear", antialias=True)


def _check(
    family: str, widths: Sequence[int], depth: int | None, copies: int, names: Sequence[str], resolutions: list
) -> None:
    if family not in (*TRAINED, "hub"):
        raise ValueError(f"family ({family!r}) must be one of {', '.join(TRAINED)}, hub.")
    if family == "hub":
        if widths or depth is not None or copies != 1:
            raise ValueError(f"hub members have no widths ({widths}), no depth ({depth}) and one copy ({copies}).")
        if not names or len(set(names)) < len(names) or len(names) != len(resolutions):
            raise ValueError(f"names ({names}) must differ and have one list of resolutions each ({resolutions}).")
        if not all(isinstance(own, list) and own for own in resolutions):
            raise ValueError(f"resolutions ({resolutions}) of hub members must be one list for each name.")
        return
    if names:
        raise ValueError(f"names ({names}) are for family 'hub' only; members of {family!r} are given by widths.")
    if not widths or len(set(widths)) < len(widths):
        raise ValueError(f"widths ({widths}) must be at least one, and each once: `copies` makes more of a width.")
    if (depth is None) != (family == "convnet"):
        raise ValueError(f"depth ({depth}) must be null for a convnet, and a number of layers for {TRAINED[::2]}.")
    if family == "mlp" and len(resolutions) > 1:
        raise ValueError(f"an mlp answers at one resolution only; got {resolutions}.")


def _check_images(family: str, image_shape: list[int], resolutions: list, mean: list[float], std: list[float]) -> None:
    channels, height, width = image_shape
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"pixel_mean ({mean}) and pixel_std ({std}) need one number for each channel of {image_shape}."
        )
    if height != width:
        raise ValueError(f"image_shape ({image_shape}) must be square: members answer at square resolutions.")
    if family == "wide_resnet" and channels != 3:
        raise ValueError(f"image_shape ({image_shape}) must have 3 channels for a wide_resnet.")
    if family == "hub":
        return
    if not resolutions or resolutions[0] != height:
        native = resolutions[0] if resolutions else None
        raise ValueError(f"the native resolution ({native}) must be the height of the images {image_shape}.")
    if len(set(map(str, resolutions))) < len(resolutions):
        raise ValueError(f"resolutions ({resolutions}) must be listed once each.")
