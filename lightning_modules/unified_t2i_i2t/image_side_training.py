"""Trains what makes grid features, ids and pixels of images (see `image_side`), before a generator uses it.

First the backbone learns to name what is where, as a detector's does; beside it learn the text-image scorer and the
judge, each on its own. Then the codebook is fitted to the backbone's features and all that is frozen. The image decoder
learns against a discriminator to draw an image from the centroids of its features (X-LXMERT, 2009.11278): hinge loss,
features of discriminator and backbone matched, codes recognised by an auxiliary classifier. Pixels have weight 0.

Read `ImageSideTraining.training_step` first.

X-LXMERT compares features of an ImageNet ResNet-50; here those of the backbone. It steps generator and discriminator in
turns, on the images that the generator drew before its step: with both gradients taken before either step, as here, the
steps are the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.base import Momentum, PaperModule, TransformerRecipe
from lightning_modules.files import read_array
from lightning_modules.layers.published import load_strictly, read_checkpoint
from lightning_modules.settings import Count, Natural, NonNegative, Positive
from lightning_modules.unified_t2i_i2t.image_side import ImageSide, fit_codebook, pixels
from lightning_modules.unified_t2i_i2t.spade import SpadeDiscriminator
from lightning_modules.validation import mean_over


class ImageSideRecipe(TransformerRecipe):
    """`lr` and `betas` are those of backbone, scorer and judge; weights of the two players are not decayed."""

    eps: Positive  # of Adam, for all
    generator_lr: NonNegative
    generator_betas: Annotated[list[Momentum], Field(min_length=2, max_length=2)]
    discriminator_lr: NonNegative


class ImageSideTraining(PaperModule):
    """Two phases of one training.

    Args:
        images: arguments of `ImageSide`.
        discriminator_dim: channels of the discriminator.
        reading_epochs: of the first phase; 0 where the data have features of their own.
        centroids: file of X-LXMERT's centroids (.npy), to be used in place of k-means; null for none.
        decoder_weights: file of X-LXMERT's image decoder (`G_60.pth`), to start from; null for drawn weights. With both
            files, no epoch of training is needed.
        gan: weight of the adversarial loss; `matching` of the discriminator's features, `perception` of the backbone's,
            `recognition` of the codes, `reconstruction` of the pixels.

    Raises:
        ValueError: there is a backbone and no epoch for it to learn, or the reverse, or centroids for it; or a file is
            of other sizes.
    """

    recipe_form = ImageSideRecipe

    def __init__(
        self,
        *,
        images: dict,
        discriminator_dim: Count,
        reading_epochs: Natural,
        centroids: str | None = None,
        decoder_weights: str | None = None,
        gan: NonNegative = 1.0,
        matching: NonNegative = 10.0,
        perception: NonNegative = 10.0,
        recognition: NonNegative = 1.0,
        reconstruction: NonNegative = 0.0,
    ):
        super().__init__()
        self.images = ImageSide(**images)
        if (self.images.reader is None) != (reading_epochs == 0):
            raise ValueError(
                f"reading_epochs ({reading_epochs}) must be 0 without a backbone of our own, and more with one."
            )
        self.discriminator = SpadeDiscriminator(
            grid=self.images.grid,
            image_size=self.images.image_size,
            dim=discriminator_dim,
            feature_dim=self.images.feature_dim,
            codebook_size=self.images.codebook_size,
        )
        if centroids is not None and self.images.reader is not None:
            raise ValueError(
                f"centroids ({centroids}) are those of given features, but a backbone learns its own here."
            )
        self.given_centroids = centroids is not None
        if centroids is not None:
            self.images.set_codebook(torch.from_numpy(read_array(Path(centroids))))
        if decoder_weights is not None:
            self.images.load_official_decoder(read_checkpoint(Path(decoder_weights)))
        self.reading_epochs = reading_epochs
        self.weights = {
            "gan": gan,
            "matching": matching,
            "perception": perception,
            "recognition": recognition,
            "reconstruction": reconstruction,
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Learn to see, or learn to draw."""
        if self.draws:
            return self.drawing(batch)
        return self.reading(batch) + sum(parameter.sum() * 0 for parameter in self.players())

    @property
    def draws(self) -> bool:
        """Whether the second phase has begun."""
        return self.current_epoch >= self.reading_epochs

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave out the parts that train later: Adam would count these steps and make their first one too long."""
        if self.current_epoch < self.reading_epochs:
            for parameter in self.players():
                parameter.grad = None

    def on_train_start(self) -> None:
        """Freeze what is frozen, where the training goes on within an epoch."""
        self.freeze_readers()

    def freeze_readers(self) -> None:
        """In the second phase, freeze what the codebook rests on."""
        for part in self.readers() if self.current_epoch >= self.reading_epochs else ():
            part.requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        """Between the phases: fit the codebook, if none is given, and freeze what it rests on."""
        self.freeze_readers()
        if self.current_epoch == self.reading_epochs and not self.given_centroids:
            data = self.trainer.datamodule
            batches = (
                self.images.features({name: x.to(self.device) for name, x in batch.items()})
                for batch in data.evaluation_batches("train")
            )
            total = len(data.columns["train"]["ids"]) * self.images.grid**2
            self.images.set_codebook(fit_codebook(batches, total=total, size=self.images.codebook_size, seed=data.seed))

    def readers(self) -> list[nn.Module]:
        """What is trained in the first phase."""
        return [part for part in (self.images.reader, self.images.judge, self.images.scorer) if part is not None]

    def players(self) -> Iterator[nn.Parameter]:
        """What is trained in the second phase."""
        yield from self.images.decoder.parameters()
        yield from self.discriminator.parameters()

    def reading(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Attributes at each place, by the backbone's reader and by the judge; captions told apart by the scorer."""
        terms = self.reading_terms(batch)
        self.log_terms({f"pretrain/{name}": term for name, term in terms.items()})
        return sum(terms.values())

    def reading_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of reader, judge and scorer."""
        images, texts = pixels(batch["images"]), batch["references"]
        which = torch.randint(texts.shape[1], (len(texts),), device=texts.device) % batch["num_references"]
        texts = texts[torch.arange(len(texts), device=texts.device), which]
        terms = {
            "read": attributes_loss(self.images.reader(images), batch["scene"]),
            "judge": attributes_loss(self.images.judge(images), batch["scene"]),
        }
        if self.images.scorer is not None:
            logits = self.images.scorer.logits(images, texts)
            own = torch.arange(len(logits), device=logits.device)
            terms["scorer"] = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        return terms

    def drawing(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """The sum of both players' losses; neither's gradient reaches the other."""
        terms = self.drawing_terms(batch)
        self.log_terms({f"pretrain/{name}": term for name, term in terms.items()})
        return sum(self.weights.get(name, 1.0) * term for name, term in terms.items())

    def drawing_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of the generator, see `generator_terms`, and that of the discriminator."""
        codes = self.images.codes(self.images.features(batch))
        real = 2 * pixels(batch["images"]) - 1
        centroids = rearrange(self.images.codebook[codes], "b (h w) d -> b d h w", h=self.images.grid)
        codes = rearrange(codes, "b (h w) -> b h w", h=self.images.grid)
        drawn = self.images.decoder(centroids)
        with frozen(self.discriminator):
            terms = self.generator_terms(drawn, real, codes)
        return {**terms, "discriminator": self.discriminator_loss(drawn.detach(), real, codes)}

    def validate(self, data: LightningDataModule, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses of the phase that is being trained."""
        return mean_over(batches, self.drawing_terms if self.draws else self.reading_terms)

    def generator_terms(
        self, drawn: Float[Tensor, "b 3 h w"], real: Float[Tensor, "b 3 h w"], codes: Int[Tensor, "b grid grid"]
    ) -> dict[str, Tensor]:
        """Look real, with the right codes, and like the real image to discriminator and backbone."""
        score, recognised, maps = self.discriminator(drawn, self.images.codebook)
        with torch.no_grad():
            _, _, right = self.discriminator(real, self.images.codebook)
        terms = {
            "gan": -score.mean(),
            "matching": matched(maps, right),
            "recognition": F.cross_entropy(recognised, codes),
            "reconstruction": F.smooth_l1_loss(drawn, real),
        }
        if self.images.reader is not None:
            see = self.images.reader.backbone.maps
            with torch.no_grad():
                seen = see((real + 1) / 2)
            terms["perception"] = matched(see((drawn + 1) / 2), seen)
        return terms

    def discriminator_loss(
        self, drawn: Float[Tensor, "b 3 h w"], real: Float[Tensor, "b 3 h w"], codes: Int[Tensor, "b grid grid"]
    ) -> Float[Tensor, ""]:
        """Hinge loss, and the codes of both images."""
        losses = []
        for images, sign in ((drawn, 1), (real, -1)):
            score, recognised, _ = self.discriminator(images, self.images.codebook)
            losses.append(F.relu(1 + sign * score).mean())
            losses.append(self.weights["recognition"] * F.cross_entropy(recognised, codes))
        return sum(losses)

    def parameter_groups(self) -> list[dict]:
        """The two players have rates of their own; the discriminator has no momentum (beta 1 = 0)."""
        readers = [p for part in self.readers() for p in part.parameters() if p.requires_grad]
        both = (
            (self.images.decoder, self.recipe["generator_lr"], self.recipe["generator_betas"]),
            (self.discriminator, self.recipe["discriminator_lr"], (0.0, 0.999)),
        )
        groups = [{"params": readers}] + [
            {"params": list(player.parameters()), "lr": lr, "betas": tuple(betas), "weight_decay": 0.0}
            for player, lr, betas in both
        ]
        return [group for group in groups if group["params"]]

    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """None: what it makes is judged with the generator that uses it."""
        return {}

    def export(self) -> dict[str, Tensor]:
        """All but the discriminator, and published weights, which need not be stored again."""
        return self.images.state_dict()

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the image side."""
        load_strictly(self.images, weights, "exported weights")

    @torch.no_grad()
    def forward(self, images: Shaped[Tensor, "batch c height width"]) -> Int[Tensor, "batch tokens"]:
        """Codes of stored pixels."""
        return self.images.codes(self.images.features({"images": images}))


def attributes_loss(
    logits: list[Float[Tensor, "batch places _"]], scene: Int[Tensor, "batch places attributes"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of all attributes at all places."""
    losses = [F.cross_entropy(each.flatten(0, 1), scene[..., i].flatten()) for i, each in enumerate(logits)]
    return torch.stack(losses).mean()


def matched(maps: list[Tensor], targets: list[Tensor]) -> Float[Tensor, ""]:
    """Smooth L1 between the maps of two images, summed over layers."""
    return sum(F.smooth_l1_loss(ours, theirs) for ours, theirs in zip(maps, targets, strict=True))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradient for a module's parameters, while there is one through it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
