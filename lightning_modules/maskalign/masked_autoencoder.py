"""The masked-reconstruction baseline: MAE (He et al., 2111.06377), and its like with a teacher's features as target.

An encoder sees the visible patches; a small decoder sees its output, and a mask token at each hidden place, and
predicts there the pixels, or the features of a frozen teacher. The loss is over hidden patches only.

Read `MaskedAutoencoder.training_step` first.
"""

from collections.abc import Iterable, Mapping

import torch
from einops import repeat
from jaxtyping import Float, Int, Shaped
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn

from lightning_modules.base import PaperModule, TransformerRecipe, decay_groups
from lightning_modules.datamodules.labelled import ImageData, check_images
from lightning_modules.layers.exported import Exported
from lightning_modules.layers.hub_vit import exported_features
from lightning_modules.layers.position import sincos_2d
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.transformer import Block
from lightning_modules.layers.vision import (
    VisionTransformer,
    encoder_weights,
    initialise,
    num_kept,
    patchify,
    random_keep,
    take,
)
from lightning_modules.maskalign.encoders import make_teacher
from lightning_modules.metrics.compute import count_training_macs
from lightning_modules.tasks.augmentation import Preprocess
from lightning_modules.validation import mean_over


class Decoder(nn.Module):
    """Blocks over all places, mask tokens where a patch is hidden (MAE, section 3)."""

    def __init__(self, *, grid: int, encoder_dim: int, dim: int, depth: int, num_heads: int, out_dim: int):
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.register_buffer("pos_embed", sincos_2d(dim, grid))
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, out_dim)
        self.apply(initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, visible: Float[Tensor, "batch seen encoder"], order: Int[Tensor, "batch patches"]
    ) -> Float[Tensor, "batch patches out"]:
        """Predictions for all patches; `order` lists the visible patches first, as they come in `visible`."""
        x = self.embed(visible)
        hidden = order.shape[1] + 1 - x.shape[1]
        masks = repeat(self.mask_token, "1 1 d -> b n d", b=len(x), n=hidden).to(x.dtype)
        patches = take(torch.cat([x[:, 1:], masks], dim=1), order.argsort(dim=1))
        x = torch.cat([x[:, :1], patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x))[:, 1:]


class MaskedAutoencoder(PaperModule):
    """Encoder, decoder, and the target at hidden patches.

    Args:
        encoder: arguments of its `VisionTransformer`.
        target: `pixels`; or `features`: the teacher's last layer, whitened for each token, which makes this the
            reconstruction that MaskAlign wants to do without.
        teacher: for target `features`, see `maskalign.encoders.make_teacher`; not built otherwise.
        preprocess: arguments of `Preprocess`.
        mask_ratio: share of the patches that are hidden, drawn at random.
        norm_pixels: whether each patch's pixels are brought to mean 0 and variance 1 (MAE's better target).

    Raises:
        ValueError: no patch is hidden, so that there is nothing to predict; or the teacher's grid is another.
    """

    recipe_form = TransformerRecipe
    predictor = "lightning_modules.maskalign.neighbours.Neighbours"

    def __init__(
        self,
        *,
        encoder: dict,
        preprocess: dict,
        decoder_dim: int,
        decoder_depth: int,
        decoder_heads: int,
        mask_ratio: float = 0.75,
        norm_pixels: bool = False,
        target: str = "pixels",
        teacher: dict | None = None,
    ):
        super().__init__()
        self.preprocess = Preprocess(**preprocess)
        self.encoder = VisionTransformer(**encoder)
        if target not in ("pixels", "features"):
            raise ValueError(f"target ({target!r}) must be pixels or features.")
        features = target == "features"
        self.teacher = make_teacher(**teacher, normalised=self.preprocess.statistics) if features else None
        if features and self.teacher.network.grid != self.encoder.grid:
            raise ValueError(
                f"encoder and teacher must cut an image into the same patches; got grids of {self.encoder.grid} and "
                f"{self.teacher.network.grid}. Choose the teacher's image_size accordingly."
            )
        self.num_kept = num_kept(self.encoder.num_patches, mask_ratio)
        if self.num_kept == self.encoder.num_patches:
            raise ValueError(f"mask_ratio ({mask_ratio}) hides no patch: there would be nothing to predict.")
        pixels = self.encoder.channels * self.encoder.patch_size**2
        self.decoder = Decoder(
            grid=self.encoder.grid,
            encoder_dim=self.encoder.dim,
            dim=decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_heads,
            out_dim=self.teacher.network.dim if features else pixels,
        )
        self.norm_pixels = norm_pixels

    def compiled_parts(self) -> list[nn.Module]:
        """The blocks of encoder, decoder and teacher."""
        teacher = [] if self.teacher is None else self.teacher.network.blocks
        return [*self.encoder.blocks, *self.decoder.blocks, *teacher]

    def check_data(self, data: ImageData) -> None:
        """See `check_images`."""
        check_images(data, self.encoder)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Hide patches, encode the rest, predict what is hidden."""
        loss = self.error(batch)
        self.log_terms({"pretrain/loss": loss})
        return loss

    def error(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Mean squared difference at the hidden patches."""
        images = self.preprocess(batch["images"])
        order = random_keep(len(images), self.encoder.num_patches, self.encoder.num_patches, images.device)
        predictions = self.decoder(self.encoder(images, order[:, : self.num_kept]), order)
        hidden = order[:, self.num_kept :]
        errors = (take(predictions, hidden).float() - take(self.targets(images), hidden)) ** 2
        return errors.mean()

    def validate(self, data: LightningDataModule, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss."""
        return mean_over(batches, lambda batch: {"loss": self.error(batch)})

    @torch.no_grad()
    def targets(self, images: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch patches out"]:
        """What each patch should be predicted as."""
        if self.teacher is not None:
            last = len(self.teacher.network.blocks) - 1
            features = self.teacher(images, [last], attention=False).layers[0, :, 1:].float()
            return nn.functional.layer_norm(features, features.shape[-1:])
        pixels = patchify(images, self.encoder.patch_size)
        if not self.norm_pixels:
            return pixels
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        return (pixels - mean) / (variance + 1e-6).sqrt()

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of a teacher that was trained here: a ViT, or what holds one as `encoder`.

        Raises:
            ValueError: it is of another architecture.
        """
        load_strictly(self.teacher.network, encoder_weights(weights), "the teacher's state dict")

    def parameter_groups(self) -> list[dict]:
        """Vectors are not decayed."""
        return decay_groups(self.named_parameters())

    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """None: the encoder is judged by the stages that fine-tune and probe it."""
        return {}

    def facts(self) -> dict:
        """What a step costs, teacher included, forward and backward."""
        image = torch.empty(1, self.encoder.channels, self.encoder.image_size, self.encoder.image_size)
        return {"pretrain_macs_per_image": count_training_macs(self, {"images": image})}

    def export(self) -> dict[str, Tensor]:
        """The encoder: all that is used afterwards."""
        return self.encoder.state_dict()

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the encoder."""
        load_strictly(self.encoder, weights, "exported weights")

    def to_transformers(self) -> Exported:
        """The encoder; `ViTMAEModel` would shuffle its patches."""
        return exported_features(self.encoder, self.preprocess.statistics)

    def forward(self, images: Shaped[Tensor, "batch c height width"]) -> Float[Tensor, "batch dim"]:
        """Features of stored pixels: the mean of the encoder's patch tokens."""
        return self.encoder(self.preprocess(images))[:, 1:].mean(1)
