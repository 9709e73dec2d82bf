"""How near the frames of a video are to the truth, as studies of video codecs report it: means over single frames."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from lightning_modules.metrics.video import psnr
from lightning_modules.metrics.video_networks import PublishedNetworks

SCALES = 5  # of MS-SSIM (Wang et al. 2003)
WINDOW = 11  # pixels, at each scale
SMALLEST = WINDOW * 2 ** (SCALES - 1)  # so that the window fits into the last scale
AT_ONCE = 16  # frames


def frame_scores(
    video: Float[Tensor, "frames 3 h w"], truth: Float[Tensor, "frames 3 h w"], networks: PublishedNetworks
) -> dict[str, float]:
    """`psnr` in dB, `ms_ssim` of frames of at least `SMALLEST` pixels a side, and `lpips` where it is installed.

    Args:
        video: pixels from 0 to 1.
        truth: likewise.
        networks: of published measures.
    """
    sums: dict[str, float] = {}
    for parts in zip(video.split(AT_ONCE), truth.split(AT_ONCE), strict=True):
        clips = [part.unsqueeze(2) for part in parts]
        found = {"psnr": psnr(*clips), **networks.compared(*clips)}
        if min(video.shape[2:]) >= SMALLEST:
            found["ms_ssim"] = ms_ssim(*parts)
        for name, values in found.items():
            sums[name] = sums.get(name, 0.0) + values.sum().item()
    return {name: total / len(video) for name, total in sums.items()}


def ms_ssim(video: Float[Tensor, "frames 3 h w"], truth: Float[Tensor, "frames 3 h w"]) -> Float[Tensor, " frames"]:
    """Structural similarity at five scales, of each frame (torchmetrics, window of 11 pixels).

    Raises:
        ValueError: a frame is too small for the last scale.
    """
    if min(video.shape[2:]) < SMALLEST:
        raise ValueError(
            f"frames have {video.shape[3]} x {video.shape[2]} pixels, expected at least {SMALLEST} each way: MS-SSIM "
            f"halves them {SCALES - 1} times. Judge larger frames."
        )
    found = multiscale_structural_similarity_index_measure(
        video, truth, data_range=1.0, kernel_size=WINDOW, reduction="none"
    )
    return torch.as_tensor(found).view(len(video))
