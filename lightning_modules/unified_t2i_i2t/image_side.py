"""What an image is to a network that reads and writes grid features: features, ids of centroids, and pixels again.

Read `ImageSide`. It is trained by `image_side_training`, and frozen afterwards.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn

from lightning_modules.layers.published import CLIP_STATISTICS, load_strictly
from lightning_modules.layers.teacher import Frozen
from lightning_modules.layers.transformer import Block
from lightning_modules.settings import STRICT, Count
from lightning_modules.unified_t2i_i2t.spade import SpadeGenerator

POINTS_PER_CENTROID, ROUNDS = 256, 20  # the first is the default of faiss, the second is X-LXMERT's
CLIP, CLIP_SIZE = "openai/clip-vit-base-patch32", 224


class Looks(TypedDict):
    """Kinds of things at each place of a labelled scene: for each attribute, how many values."""

    __pydantic_config__ = STRICT
    places: Count
    values: Annotated[list[Count], Field(min_length=1)]


class GridBackbone(nn.Module):
    """Pixels to grid features: convolutions that halve the picture, until the grid is reached.

    Each place sees its own patch alone, so that a code is a piece of a picture and does not spell its neighbours too.
    """

    def __init__(self, *, image_size: int, grid: int, width: int, feature_dim: int):
        super().__init__()
        layers, dim, size = [], 3, image_size
        while size > grid:
            layers += [nn.Conv2d(dim, width, 2, stride=2), nn.GELU()]
            dim, size = width, size // 2
        if size != grid or not layers:
            raise ValueError(f"image_size ({image_size}) must be the grid ({grid}) doubled once or more.")
        self.layers = nn.Sequential(*layers, nn.Conv2d(dim, feature_dim, 1))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens features"]:
        """Features of all places, row by row, each of mean 0 and variance 1: distances then compare directions."""
        features = rearrange(self.layers(images), "b d h w -> b (h w) d")
        return F.layer_norm(features, features.shape[-1:])

    def maps(self, images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """The map after each halving: what pictures are compared by."""
        maps = []
        for layer in self.layers:
            images = layer(images)
            if isinstance(layer, nn.GELU):
                maps.append(images)
        return maps


class SceneReader(nn.Module):
    """Names the attributes of what is at each place of a scene, from the grid features of a backbone of its own."""

    def __init__(self, *, image_size: int, grid: int, width: int, feature_dim: int, looks: Looks):
        super().__init__()
        self.backbone = GridBackbone(image_size=image_size, grid=grid, width=width, feature_dim=feature_dim)
        self.places, self.values = looks["places"], looks["values"]
        self.head = nn.Linear(feature_dim * grid**2, self.places * sum(self.values))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch places _"]]:
        """Logits of each attribute at each place; the last value of each means that nothing is there."""
        features = rearrange(self.backbone(images), "b n d -> b (n d)")
        return list(rearrange(self.head(features), "b (p v) -> b p v", p=self.places).split(self.values, dim=-1))


class TwoTowers(nn.Module):
    """A small text-image scorer in the manner of CLIP: cosine of two towers' outputs, times a learned scale."""

    def __init__(self, *, image_size: int, grid: int, width: int, vocabulary: int, dim: int, length: int):
        super().__init__()
        self.image = GridBackbone(image_size=image_size, grid=grid, width=width, feature_dim=dim)
        self.from_image = nn.Linear(dim * grid**2, dim)
        self.words = nn.Embedding(vocabulary, dim, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(length, dim) * 0.02)
        self.text = Block(dim, num_heads=4)
        self.from_text = nn.Linear(dim, dim)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))  # ln (1 / 0.07), CLIP

    def towers(
        self, images: Float[Tensor, "batch 3 height width"], token_ids: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
        """Both as vectors of length 1; padding is no part of a text's mean."""
        image = self.from_image(rearrange(self.image(images), "b n d -> b (n d)"))
        words = self.text(self.words(token_ids) + self.positions[: token_ids.shape[1]])
        there = (token_ids != 0)[..., None]
        text = self.from_text((words * there).sum(1) / there.sum(1))
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1)

    def logits(self, images: Tensor, token_ids: Tensor) -> Float[Tensor, "images texts"]:
        """Of each image with each text."""
        image, text = self.towers(images, token_ids)
        return self.logit_scale.exp() * image @ text.T

    def forward(self, images: Tensor, token_ids: Tensor) -> Float[Tensor, " batch"]:
        """Of each image with its own text."""
        image, text = self.towers(images, token_ids)
        return self.logit_scale.exp() * (image * text).sum(-1)


class Clip(Frozen):
    """Published CLIP as scorer, ViT-B/32: images are scaled to 224 pixels, texts are ids of CLIP's own tokenizer.

    As a reward it sees tensors, resized without antialias; in an evaluation (`look`) it sees 8-bit pictures, resized by
    PIL with antialias. So does the official code.
    """

    def __init__(self):
        from lightning_modules.layers.clip import make_clip  # transformers take seconds

        super().__init__(make_clip(hub=CLIP, vision=None, text=None, projection_dim=None))
        self.register_buffer("mean", torch.tensor(CLIP_STATISTICS[0])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STATISTICS[1])[:, None, None], persistent=False)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], token_ids: Int[Tensor, "batch length"]
    ) -> Float[Tensor, " batch"]:
        """Some 100 times the cosine; `images` within 0 and 1."""
        images = F.interpolate(images, size=(CLIP_SIZE, CLIP_SIZE), mode="bicubic", align_corners=False)
        return self.similarity(self._see(images), self.read(token_ids))

    def similarity(self, images: Float[Tensor, "*#n dim"], texts: Float[Tensor, "*#n dim"]) -> Float[Tensor, "..."]:
        """Some 100 times the cosine of features of length 1."""
        return self.network.logit_scale.exp() * (images * texts).sum(-1)

    def look(self, pictures: UInt8[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch dim"]:
        """Features of pictures, of length 1."""
        from PIL import Image

        resized = [
            np.array(Image.fromarray(picture).resize((CLIP_SIZE, CLIP_SIZE), Image.Resampling.BICUBIC))
            for picture in rearrange(pictures, "b c h w -> b h w c").cpu().numpy()
        ]
        images = torch.from_numpy(np.stack(resized)).to(self.mean.device)
        return self._see(pixels(rearrange(images, "b h w c -> b c h w")))

    def read(self, token_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Features of texts, of length 1."""
        pooled = self.network.text_model(input_ids=token_ids).pooler_output
        return F.normalize(self.network.text_projection(pooled), dim=-1)

    def _see(self, images: Float[Tensor, "batch 3 224 224"]) -> Float[Tensor, "batch dim"]:
        pooled = self.network.vision_model(pixel_values=(images - self.mean) / self.std).pooler_output
        return F.normalize(self.network.visual_projection(pooled), dim=-1)


class ImageSide(nn.Module):
    """Backbone, codebook, image decoder, scorer, and a judge of what can be seen.

    Args:
        image_size: side of the images in pixels.
        grid: places along a side.
        feature_dim: channels of a grid feature.
        codebook_size: number of centroids.
        decoder: arguments `dim`, `bottleneck` and `hidden` of `SpadeGenerator`.
        looks: attributes of labelled scenes, which teach the backbone to see and the judge to judge; null where the
            data come with features of their own. Then there is no judge.
        backbone: `width` of the backbone, and of the judge's own.
        scorer: `dim`, `width`, `vocabulary` and `length` of the text-image scorer, which is trained on the same scenes;
            `hub: true` for published CLIP; null for none.
    """

    def __init__(
        self,
        *,
        image_size: int,
        grid: int,
        feature_dim: int,
        codebook_size: int,
        decoder: dict,
        looks: Looks | None = None,
        backbone: dict | None = None,
        scorer: dict | None = None,
    ):
        super().__init__()
        if (looks is None) != (backbone is None):
            raise ValueError(
                f"looks ({looks}) and backbone ({backbone}) go together: a backbone learns from labelled scenes, and "
                "data that come with features need none."
            )
        self.image_size, self.grid, self.feature_dim, self.codebook_size = image_size, grid, feature_dim, codebook_size
        shape = {"image_size": image_size, "grid": grid}
        self.register_buffer("codebook", torch.randn(codebook_size, feature_dim))
        self.decoder = SpadeGenerator(feature_dim=feature_dim, **shape, **decoder)
        self.reader = self.judge = self.scorer = None
        if looks is not None:
            self.reader, self.judge = (
                SceneReader(**shape, **backbone, feature_dim=feature_dim, looks=looks) for _ in range(2)
            )
        if scorer is not None:
            hub = scorer.get("hub", False)
            self.scorer = Clip() if hub else TwoTowers(**shape, **{k: v for k, v in scorer.items() if k != "hub"})

    def features(self, batch: dict[str, Tensor]) -> Float[Tensor, "batch tokens features"]:
        """Grid features of a batch: its own `features`, or what the backbone sees in its `images` (uint8).

        Raises:
            ValueError: the features are of another shape than this was built for, or there is nothing to see.
        """
        if "features" in batch:
            expected = (self.grid**2, self.feature_dim)
            if tuple(batch["features"].shape[1:]) != expected:
                raise ValueError(
                    f"grid features have shape {tuple(batch['features'].shape[1:])}, expected {expected}: set grid and "
                    "feature_dim to those of the data."
                )
            return batch["features"].to(self.codebook.dtype)
        if self.reader is None:
            raise ValueError("the batch has no `features`, and there is no backbone: give one, or other data.")
        with torch.no_grad():
            return self.reader.backbone(pixels(batch["images"]))

    def codes(self, features: Float[Tensor, "batch tokens features"]) -> Int[Tensor, "batch tokens"]:
        """The nearest centroid of each feature."""
        return torch.cdist(features, self.codebook[None].expand(len(features), -1, -1)).argmin(-1)

    def decode(self, features: Float[Tensor, "batch tokens features"]) -> Float[Tensor, "batch 3 height width"]:
        """Images within 0 and 1."""
        maps = rearrange(features, "b (h w) d -> b d h w", h=self.grid)
        return ((self.decoder(maps) + 1) / 2).clamp(0, 1)

    def score(
        self, images: Float[Tensor, "batch 3 height width"], token_ids: Int[Tensor, "batch length"]
    ) -> Float[Tensor, " batch"]:
        """How well images within 0 and 1 fit their texts.

        Raises:
            ValueError: there is no scorer.
        """
        if self.scorer is None:
            raise ValueError("image_reward 'scorer' needs a text-image scorer: give `scorer`, or use 'mse'.")
        return self.scorer(images, token_ids)

    def set_codebook(self, codebook: Float[Tensor, "codes features"]) -> None:
        """Take over centroids.

        Raises:
            ValueError: there are more or fewer, or they are of other features.
        """
        if codebook.shape != self.codebook.shape:
            raise ValueError(
                f"the centroids have shape {tuple(codebook.shape)}, expected {tuple(self.codebook.shape)}: set "
                "codebook_size and feature_dim to theirs."
            )
        with torch.no_grad():
            self.codebook.copy_(codebook)

    def load_official_decoder(self, state: Mapping[str, Tensor]) -> None:
        """Take over X-LXMERT's image decoder (`G_60.pth`), whose names have the prefix of DDP.

        Raises:
            ValueError: it is of another architecture.
        """
        ours = {key.removeprefix("module."): x for key, x in state.items()}
        load_strictly(self.decoder, ours, "the official image decoder")

    def train(self, mode: bool = True) -> "ImageSide":
        """Power iteration of the decoder's spectral norms stops where nothing is trained."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))


def pixels(images: Tensor) -> Float[Tensor, "batch 3 height width"]:
    """uint8 images within 0 and 1."""
    return images.float() / 255


def fit_codebook(
    batches: Iterable[Float[Tensor, "batch tokens features"]], *, total: int, size: int, seed: int
) -> Float[Tensor, "codes features"]:
    """Centroids of grid features by k-means, on a random share of them: at most 256 for each centroid, as faiss takes.

    Args:
        batches: all features, which may be more than fit into memory.
        total: number of features.
        size: number of centroids.
        seed: of the share and of the first centroids.

    Raises:
        ValueError: there are fewer features than centroids.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if total < size:
        raise ValueError(f"codebook_size ({size}) is more than the {total} grid features that there are.")
    generator, share = torch.Generator().manual_seed(seed), min(1.0, POINTS_PER_CENTROID * size / total)
    kept = []
    for batch in batches:
        features = rearrange(batch, "b n d -> (b n) d").cpu()
        kept.append(features[torch.rand(len(features), generator=generator) < share])
    with threadpool_limits(1):  # a forked process must not start OpenMP's threads
        found = KMeans(size, n_init=1, max_iter=ROUNDS, random_state=seed).fit(torch.cat(kept).numpy())
    return torch.from_numpy(found.cluster_centers_).float()
