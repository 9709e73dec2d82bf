"""The two networks that SEED-Voken's tokenizers of clips train against, in their forms, filled by `seed_voken.formula`.

Neither is in the project: the discriminator here is StyleGAN's and perception compares a classifier's logits, as in the
paper. Tests put these in their places, so that a whole training step can be compared.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tests.magvit2.seed_voken import formula

STRIDES = ((2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1))
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Patches(nn.Module):
    """A logit of each patch of a clip; the three convolutions in the middle have batch norms and no biases.

    Args:
        width: of the first convolution; its `disc_ndf`, 64.

    Attributes:
        single: whether each patch has its logit, or each clip the mean of its patches.
    """

    def __init__(self, width: int):
        super().__init__()
        self.single = False
        widths = [3, width, 2 * width, 4 * width, 8 * width, 1]
        for n, stride in enumerate(STRIDES):
            bias = n in (0, len(STRIDES) - 1)
            self.add_module(f"conv{n}", nn.Conv3d(widths[n], widths[n + 1], 3, stride, padding=1, bias=bias))
            if not bias:
                self.add_module(f"norm{n - 1}", nn.BatchNorm3d(widths[n + 1]))
        filled(self, "discriminator")

    def forward(self, video: Tensor) -> Tensor:
        """Logits of clips with pixels from 0 to 1."""
        x = 2 * video - 1
        for n in range(len(STRIDES) - 1):
            x = getattr(self, f"conv{n}")(x)
            x = F.leaky_relu(getattr(self, f"norm{n - 1}")(x) if n else x, 0.2)
        logits = getattr(self, f"conv{len(STRIDES) - 1}")(x)
        return logits.flatten() if self.single else logits.flatten(1).mean(1)


class Lpips(nn.Module):
    """LPIPS with the layers of VGG-16: weighted squared differences of features that have length 1 at each place."""

    def __init__(self):
        super().__init__()
        widths = [3, *(width for stage in STAGES for width in stage)]
        for n, width in enumerate(widths[1:]):
            self.add_module(f"conv{n}", nn.Conv2d(widths[n], width, 3, padding=1))
        for n, stage in enumerate(STAGES):
            self.add_module(f"head{n}", nn.Conv2d(stage[-1], 1, 1, bias=False))
        filled(self, "perception")
        for n in range(len(STAGES)):
            head = getattr(self, f"head{n}").weight
            head.data.abs_()  # no difference counts as less than none
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))
        self.requires_grad_(False)

    def forward(self, video: Tensor, truth: Tensor) -> Tensor:
        """The mean over the frames of clips with pixels from 0 to 1."""
        pairs = zip(self.features(video), self.features(truth), strict=True)
        return sum(
            getattr(self, f"head{n}")((x - y).square()).mean((2, 3)) for n, (x, y) in enumerate(pairs)
        ).mean()  # fmt: skip

    def features(self, video: Tensor) -> list[Tensor]:
        """Those of each stage, of length 1."""
        x = (2 * rearrange(video, "b c t h w -> (b t) c h w") - 1 - self.shift) / self.scale
        found, layer = [], 0
        for number, stage in enumerate(STAGES):
            x = F.max_pool2d(x, 2) if number else x
            for _ in stage:
                x = F.relu(getattr(self, f"conv{layer}")(x))
                layer += 1
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found


def filled(network: nn.Module, prefix: str) -> None:
    """Give all parameters the values of their names."""
    for name, parameter in network.named_parameters():
        parameter.data.copy_(formula(f"{prefix}.{name}", tuple(parameter.shape)))
