"""The vision transformer that all papers share, and what masking does to its patches."""

from collections.abc import Mapping

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.layers.position import sincos_2d
from lightning_modules.layers.transformer import Block


class PatchEmbedding(nn.Module):
    """Each patch of pixels as one token, row by row."""

    def __init__(self, patch_size: int, channels: int, dim: int, bias: bool = True):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches dim"]:
        """Tokens without position."""
        return rearrange(self.proj(images), "b d h w -> b (h w) d")


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al., 2010.11929) with a CLS token, which may be shown some of the patches only.

    Args:
        position: `sincos` (fixed, a buffer) or `learned`.
        drop_path: probability of dropping a residual branch of the last block; it grows linearly from 0 in the first.
        embedding_norm: a LayerNorm follows the embedding and the patch projection has no bias, as in CLIP.
        affine_norm: whether the last LayerNorm has parameters; without, it is right for an encoder whose training does
            not pass through it, and leaves DDP no parameter without a gradient.

    Raises:
        ValueError: the patches do not tile the image, or `position` is unknown.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        channels: int = 3,
        mlp_ratio: float = 4.0,
        position: str = "sincos",
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        activation: str = "gelu",
        embedding_norm: bool = False,
        affine_norm: bool = True,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size ({image_size}) must be a multiple of patch_size ({patch_size}).")
        if position not in ("sincos", "learned"):
            raise ValueError(f"position ({position!r}) must be sincos or learned.")
        self.image_size, self.patch_size, self.channels, self.dim = image_size, patch_size, channels, dim
        self.grid = image_size // patch_size
        self.num_patches = self.grid**2
        self.patch_embed = PatchEmbedding(patch_size, channels, dim, bias=not embedding_norm)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        if position == "sincos":
            self.register_buffer("pos_embed", sincos_2d(dim, self.grid))
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, self.num_patches + 1, dim))
        self.embedding_norm = nn.LayerNorm(dim, eps=norm_eps) if embedding_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path * i / max(1, depth - 1),
                norm_eps=norm_eps,
                activation=activation,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps, elementwise_affine=affine_norm)
        self.apply(initialise)
        nn.init.normal_(self.cls_token, std=0.02)
        if position == "learned":
            nn.init.normal_(self.pos_embed, std=0.02)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], keep: Int[Tensor, "batch kept"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Normalised tokens of the last block, CLS first."""
        return self.norm(self.layers(images, keep)[-1])

    def layers(
        self, images: Float[Tensor, "batch channels height width"], keep: Int[Tensor, "batch kept"] | None = None
    ) -> list[Float[Tensor, "batch tokens dim"]]:
        """The tokens after each block (before the last norm), CLS first, then the patches `keep` in that order."""
        x = self.embed(images, keep)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def embed(
        self, images: Float[Tensor, "batch channels height width"], keep: Int[Tensor, "batch kept"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """CLS and patches with their positions: what the first block sees.

        Raises:
            ValueError: the images are of another size than the network was built for.
        """
        expected = (self.channels, self.image_size, self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(
                f"images of shape {tuple(images.shape[1:])} do not fit a ViT built for {expected}: resize them, or "
                "build it with their image_size."
            )
        patches = self.patch_embed(images) + self.pos_embed[:, 1:]
        if keep is not None:
            patches = take(patches, keep)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        return self.embedding_norm(torch.cat([cls, patches], dim=1))


def initialise(module: nn.Module) -> None:
    """MAE's initialisation: Xavier-uniform matrices, the patch projection seen as one; biases zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1) if module.weight.ndim > 2 else module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def take(
    tokens: Float[Tensor, "batch patches dim"], keep: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch kept dim"]:
    """The patch tokens numbered `keep`, in that order."""
    return tokens.gather(1, keep[:, :, None].expand(-1, -1, tokens.shape[2]))


def take_with_cls(
    tokens: Float[Tensor, "batch tokens dim"], keep: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch 1+kept dim"]:
    """CLS and the patches numbered `keep`."""
    return torch.cat([tokens[:, :1], take(tokens[:, 1:], keep)], dim=1)


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """How many patches a student sees: the floor of `num_patches (1 - mask_ratio)`, as MAE rounds (196 at 0.7: 58).

    Raises:
        ValueError: the ratio is outside [0, 1) or hides every patch.
    """
    kept = int(num_patches * (1 - mask_ratio))
    if not 0 <= mask_ratio < 1 or kept < 1:
        raise ValueError(
            f"mask_ratio ({mask_ratio}) of {num_patches} patches keeps {kept}: it must be in [0, 1) and at most "
            f"{1 - 1 / num_patches:.4g} here, so that one patch is left."
        )
    return kept


def random_keep(batch: int, num_patches: int, kept: int, device: torch.device) -> Int[Tensor, "batch kept"]:
    """Patches to keep, each set of `kept` equally likely (MAE's shuffle)."""
    return torch.rand(batch, num_patches, device=device).argsort(dim=1)[:, :kept]


def patchify(images: Float[Tensor, "batch c height width"], patch_size: int) -> Float[Tensor, "batch patches pixels"]:
    """The pixels of each patch, channels last (MAE's target)."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def encoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an encoder, also from that of a classifier which holds it as `encoder`.

    The classifier's own norm and head are left out; other names stay, so that strict loading reports them.
    """
    if not any(key.startswith("encoder.") for key in state):
        return dict(state)
    own = ("norm.weight", "norm.bias", "head.weight", "head.bias")
    return {key.removeprefix("encoder."): x for key, x in state.items() if key not in own}
