"""Networks that only look: what clips look like to a classifier, for a loss and for a distance.

The official perceptual loss compares the logits that an ImageNet ResNet-50 gives to each frame; its weights are the
user's, by a name of the hub. At tiny size a small network of drawn weights takes its place, `RandomFeatures`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.layers.teacher import Frozen
from lightning_modules.pretrained import load

IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224  # of the frames that a published network is shown
RANDOM = "random"


class RandomFeatures(nn.Module):
    """Two convolutions of drawn weights that are never trained: edges and colours, pooled to 4 x 4 places.

    Not the paper's perceptual loss, and no classifier: it says where frames differ at a coarser scale than pixels.
    """

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2), nn.LeakyReLU(0.2), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, frames: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """The features of frames with pixels from 0 to 1."""
        return F.adaptive_avg_pool2d(self.layers(frames), 4).flatten(1)


class PublishedLogits(nn.Module):
    """The logits of an image classifier of the hub, such as `microsoft/resnet-50`.

    Args:
        name: of the hub.
    """

    def __init__(self, name: str):
        super().__init__()
        self.classifier = load(name)
        for key, values in zip(("mean", "std"), IMAGENET_STATISTICS, strict=True):
            self.register_buffer(key, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, frames: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """The logits of frames with pixels from 0 to 1, scaled to 224 pixels (bilinear) and normalised."""
        frames = F.interpolate(frames, size=(SIDE, SIDE), mode="bilinear")
        return self.classifier((frames - self.mean) / self.std)


class Perception(Frozen):
    """The perceptual loss: mean squared difference of what a frozen network says of the frames of two clips.

    Args:
        name: `random` for `RandomFeatures`, or a classifier of the hub.
    """

    def __init__(self, name: str):
        super().__init__(RandomFeatures() if name == RANDOM else PublishedLogits(name))

    def forward(
        self, video: Float[Tensor, "batch 3 frames h w"], truth: Float[Tensor, "batch 3 frames h w"]
    ) -> Float[Tensor, ""]:
        """The difference, with the gradient of `video` alone."""
        seen = self.network(rearrange(video, "b c t h w -> (b t) c h w"))
        with torch.no_grad():
            real = self.network(rearrange(truth, "b c t h w -> (b t) c h w"))
        return F.mse_loss(seen, real)


class Judge(nn.Module):
    """A small classifier of clips, whose features `fvd_world` compares; it has no part in any other training.

    It is shown clips as they are and in reverse, and names the class and which of the two it is: so its features tell
    how things move, and not only how they look. No unit can die: constant features would judge nothing.

    Args:
        classes: of the labels.
        width: channels of the first layer.
        features: that distances are computed of.
    """

    def __init__(self, classes: int, *, width: int = 16, features: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(3, width, (3, 4, 4), stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv3d(width, 2 * width, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool3d((1, 2, 2)), nn.Flatten(), nn.Linear(8 * width, features),
        )  # fmt: skip
        self.head = nn.Linear(features, 2 * classes)
        self.classes = classes

    def forward(self, video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch features"]:
        """The features of clips with pixels from 0 to 1."""
        return self.layers(video)

    def loss(self, video: Float[Tensor, "batch 3 frames h w"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """Cross-entropy of the class and of the direction of time, every second clip being shown in reverse."""
        back = torch.arange(len(video), device=video.device) % 2
        shown = torch.where(back.view(-1, 1, 1, 1, 1) == 1, video.flip(2), video)
        return F.cross_entropy(self.head(F.leaky_relu(self(shown), 0.2)), labels + self.classes * back)
