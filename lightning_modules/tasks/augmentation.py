"""From stored pixels to normalised batches, augmented while training: plain tensor code, which needs no torchvision."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn


class Preprocess(nn.Module):
    """Stored pixels to normalised images; in training mode they are augmented on the way, each image by itself.

    Order: crop, flip, shift, RandAugment, normalisation, erasing.

    Args:
        pixel_scale: largest stored value; `mean` and `std` are per channel, in units of it.
        crop_scale: smallest and largest share of the area that a random crop takes before it is resized to the whole
            (aspect 3/4 to 4/3, bicubic); null for no crop.
        flip: mirror every second image.
        shift: largest shift in pixels, zeros come in.
        rand_augment: magnitude of RandAugment in timm's form, 1 to 10, see `rand_augment`; 0 for none.
        erase: probability of erasing a rectangle with noise (Zhong et al., 1708.04896).

    Raises:
        ValueError: the magnitude is out of range, or the images have no three colours for it.
    """

    def __init__(
        self,
        *,
        pixel_scale: float,
        mean: Sequence[float],
        std: Sequence[float],
        crop_scale: Sequence[float] | None = None,
        flip: bool = False,
        shift: int = 0,
        rand_augment: int = 0,
        erase: float = 0.0,
    ):
        super().__init__()
        if rand_augment and not (0 < rand_augment <= 10 and len(mean) == 3):
            raise ValueError(
                f"rand_augment ({rand_augment}) must be between 1 and 10, for images of 3 colours (here {len(mean)}); "
                "0 turns it off."
            )
        self.statistics = tuple(mean), tuple(std)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.pixel_scale, self.crop_scale, self.flip = pixel_scale, crop_scale, flip
        self.shift, self.rand_augment, self.erase = shift, rand_augment, erase

    def forward(self, images: Shaped[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height width"]:
        """Normalised images, augmented in training mode."""
        images = images / self.pixel_scale
        if not self.training:
            return self._normalise(images)
        if self.crop_scale is not None:
            images = random_resized_crop(images, self.crop_scale)
        if self.flip:
            mirrored = torch.rand(len(images), device=images.device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if self.shift:
            images = random_shift(images, self.shift)
        if self.rand_augment:
            images = rand_augment(images, self.rand_augment, self.mean)
        return random_erase(self._normalise(images), self.erase)

    @property
    def augments(self) -> bool:
        """Whether an image changes while training."""
        return bool(self.crop_scale or self.flip or self.shift or self.rand_augment or self.erase)

    def _normalise(self, images: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height width"]:
        return (images - self.mean) / self.std


def random_resized_crop(
    images: Float[Tensor, "batch c height width"], scale: Sequence[float]
) -> Float[Tensor, "batch c height width"]:
    """A random box of each image, resized to the whole; boxes that would leave the image are clipped to it.

    Bicubic like torchvision's, without the smoothing of boxes that shrink: images keep their size, so none does.
    """
    batch, device = len(images), images.device
    area = torch.empty(batch, device=device).uniform_(*scale)
    aspect = torch.empty(batch, device=device).uniform_(-1, 1).mul_(math.log(4 / 3)).exp_()
    width, height = (area * aspect).sqrt_().clamp_(max=1), (area / aspect).sqrt_().clamp_(max=1)
    across, down = torch.rand(2, batch, device=device) * 2 - 1
    zero = torch.zeros_like(area)
    boxes = torch.stack([width, zero, across * (1 - width), zero, height, down * (1 - height)], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(boxes, list(images.shape), align_corners=False)
    cropped = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return cropped.clamp_(0, 1)  # bicubic weights overshoot


def random_shift(images: Float[Tensor, "batch c height width"], most: int) -> Float[Tensor, "batch c height width"]:
    """Each image moved by up to `most` pixels in both directions; zeros come in."""
    batch, _, height, width = images.shape
    top, left = torch.randint(0, 2 * most + 1, (2, batch, 1), device=images.device)
    padded = rearrange(F.pad(images, [most] * 4), "b c h w -> b h w c")
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    number = torch.arange(batch, device=images.device)[:, None, None]
    return rearrange(padded[number, rows[:, :, None], columns[:, None]], "b h w c -> b c h w")


def rand_augment(
    images: Float[Tensor, "batch 3 height width"], magnitude: int, fill: Float[Tensor, "3 1 1"]
) -> Float[Tensor, "batch 3 height width"]:
    """Two operations on each image, each drawn by itself: timm's `rand-m<magnitude>-mstd0.5-inc1`.

    Args:
        images: colours from 0 to 1.
        magnitude: see `draw_operations`.
        fill: what comes in from outside, where an operation moves the image.
    """
    for _ in range(2):
        operation, level, sign = draw_operations(len(images), magnitude, images.device)
        images = images.clone()
        for number, name in enumerate(OPERATIONS):
            rows = (operation == number).nonzero()[:, 0]
            if len(rows):
                images[rows] = operate(name, images[rows], level[rows], sign[rows], fill)
    return images


def draw_operations(
    batch: int, magnitude: int, device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """For each image the number of an operation, or -1 for none in half the cases; a level from 0 to 1; a sign.

    The level is `magnitude` of 10 with normal noise of deviation 0.5, cut off at both ends.
    """
    operation = torch.randint(len(OPERATIONS), (batch,), device=device)
    operation[torch.rand(batch, device=device) < 0.5] = -1
    level = magnitude + 0.5 * torch.randn(batch, device=device)
    sign = torch.where(torch.rand(batch, device=device) < 0.5, 1.0, -1.0)
    return operation, level.clamp_(0, 10) / 10, sign


OPERATIONS = (
    *("auto_contrast", "equalize", "invert", "posterize", "solarize", "solarize_add"),
    *("colour", "contrast", "brightness", "sharpness"),
    *("rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
)


def operate(
    name: str,
    images: Float[Tensor, "batch 3 height width"],
    level: Float[Tensor, " batch"],
    sign: Float[Tensor, " batch"],
    fill: Float[Tensor, "3 1 1"],
) -> Float[Tensor, "batch 3 height width"]:
    """One of `OPERATIONS`: the larger the level, the more it changes, down to one bit and up to 30 degrees.

    timm's `auto_augment.py` works on the 256 values of stored pictures; here thresholds lie halfway between two.

    Raises:
        ValueError: the operation is unknown.
    """
    from kornia import enhance  # takes a second, and few recipes use it

    factor = (1 + 0.9 * sign * level).clamp(min=0.1)
    sheared, moved = 0.3 * sign * level, 0.9 * sign * level  # the image is two units wide and high
    match name:
        case "auto_contrast":
            low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
            return torch.where(high > low, (images - low) / (high - low), images)
        case "equalize":
            return enhance.equalize(images)
        case "invert":
            return 1 - images
        case "posterize":
            return enhance.posterize(images + 0.5 / 255, 4 - (4 * level).floor().int())
        case "solarize":
            return enhance.solarize(images, (255.5 - (256 * level).floor()) / 255)
        case "solarize_add":
            added = (110 * level).floor()[:, None, None, None] / 255
            return torch.where(images < 127.5 / 255, images + added, images)
        case "colour":
            return enhance.adjust_saturation_with_gray_subtraction(images, factor)
        case "contrast":
            return enhance.adjust_contrast_with_mean_subtraction(images, factor)
        case "brightness":
            return enhance.adjust_brightness_accumulative(images, factor)
        case "sharpness":
            return enhance.sharpness(images, factor)
        case "rotate":
            cosine, sine = (math.pi / 6 * level).cos(), (math.pi / 6 * sign * level).sin()
            return _warp(images, fill, across=(cosine, -sine, 0), down=(sine, cosine, 0))
        case "shear_x":
            return _warp(images, fill, across=(1, sheared, sheared))  # about the upper left corner
        case "shear_y":
            return _warp(images, fill, down=(sheared, 1, sheared))
        case "translate_x":
            return _warp(images, fill, across=(1, 0, moved))
        case "translate_y":
            return _warp(images, fill, down=(0, 1, moved))
    raise ValueError(f"operation ({name!r}) must be one of {', '.join(OPERATIONS)}.")


def _warp(
    images: Float[Tensor, "batch c height width"],
    fill: Float[Tensor, "c 1 1"],
    *,
    across: tuple[int | Tensor, ...] = (1, 0, 0),
    down: tuple[int | Tensor, ...] = (0, 1, 0),
) -> Float[Tensor, "batch c height width"]:
    """Square images, each pixel taken from where an affine map of the square [-1, 1] sends it (bicubic)."""
    one = images.new_ones(len(images))
    maps = torch.stack([number * one for number in (*across, *down)], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp_(0, 1)
    return torch.where((grid.abs() <= 1).all(3)[:, None], moved, fill)


def random_erase(
    images: Float[Tensor, "batch c height width"], probability: float
) -> Float[Tensor, "batch c height width"]:
    """With `probability`, a rectangle of 2 to 33 % of the image becomes normal noise (the pixel mode of timm)."""
    if probability == 0:
        return images
    batch, _, height, width = images.shape
    device = images.device
    area = torch.empty(batch, device=device).uniform_(0.02, 1 / 3) * (torch.rand(batch, device=device) < probability)
    aspect = torch.empty(batch, device=device).uniform_(-1, 1).mul_(math.log(10 / 3)).exp_()
    inside = random_boxes((area * aspect).sqrt_(), (area / aspect).sqrt_(), height, width)
    return torch.where(inside[:, None], torch.randn_like(images), images)


def random_boxes(
    down: Float[Tensor, " batch"], across: Float[Tensor, " batch"], height: int, width: int
) -> Bool[Tensor, "batch height width"]:
    """The pixels of one box for each image, `down` and `across` as shares of its sides, placed inside at random."""

    def span(share: Float[Tensor, " batch"], size: int) -> Bool[Tensor, "batch size"]:
        length = (share * size).round().clamp(max=size)
        start = (torch.rand_like(share) * (size - length + 1)).floor()[:, None]
        pixel = torch.arange(size, device=share.device)
        return (pixel >= start) & (pixel < start + length[:, None])

    return span(down, height)[:, :, None] & span(across, width)[:, None]


def cutmix_box(share: float, height: int, width: int) -> Bool[Tensor, "height width"]:
    """The pixels of a box of `share` of each side, around any pixel, without what lies outside (timm's `rand_bbox`)."""

    def span(size: int) -> Bool[Tensor, " size"]:
        half, centre = int(share * size) // 2, torch.randint(size, ()).item()
        pixel = torch.arange(size)
        return (pixel >= centre - half) & (pixel < centre + half)

    return span(height)[:, None] & span(width)


class Mix(nn.Module):
    """Mixup (1710.09412) or CutMix (1905.04899), one of the two for each batch, and label smoothing.

    An image is mixed with its counterpart in the reversed batch. Without either, labels are only smoothed.

    Args:
        mixup: parameter of the Beta distribution of mixup's weights; 0 for no mixup. `cutmix` likewise.
        smoothing: share of the label that is spread evenly over all classes.
    """

    def __init__(self, *, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0, smoothing: float = 0.0):
        super().__init__()
        self.num_classes, self.mixup, self.cutmix, self.smoothing = num_classes, mixup, cutmix, smoothing

    def forward(
        self, images: Float[Tensor, "batch c height width"], labels: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch c height width"], Float[Tensor, "batch classes"]]:
        """Mixed images and their soft labels."""
        off = self.smoothing / self.num_classes
        targets = F.one_hot(labels, self.num_classes).to(images.dtype) * (1 - self.smoothing) + off
        cut = self.cutmix > 0 and (self.mixup == 0 or torch.rand(()).item() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        if alpha == 0:
            return images, targets
        share = torch.distributions.Beta(alpha, alpha).sample().to(images)
        if cut:
            box = cutmix_box((1 - share).sqrt().item(), *images.shape[2:]).to(images.device)
            images = torch.where(box, images.flip(0), images)
            share = 1 - box.float().mean()  # what lies outside is not mixed
        else:
            images = share * images + (1 - share) * images.flip(0)
        return images, share * targets + (1 - share) * targets.flip(0)
