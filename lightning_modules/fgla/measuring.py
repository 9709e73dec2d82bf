"""What is measured of clips with a trained FGLA, for `evaluation.py`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_modules.datasets.world.timelapse import PARTS
from lightning_modules.fgla.warping import animated, warp
from lightning_modules.metrics.motion import DrawnFeatures, absolute_error, end_point_error, sharpness
from lightning_modules.metrics.video import ssim
from lightning_modules.metrics.video_networks import PublishedNetworks
from lightning_modules.video_tokens.training import stored

if TYPE_CHECKING:
    from lightning_modules.fgla.module import Codes, Fgla

SHOWN = 8  # clips that are kept for the page
SURE = 1e-3  # how little of a pixel may be new
Arrays = dict[str, Tensor]


class Measured:
    """Measures batches of clips, one after another.

    Each name is of arrays with a row for each clip:

    - `epe` (clips steps): of the flow between neighbours, codes from the clip itself; `copy/epe` if nothing moved,
      `mean/epe` of the mean of the true flow, one vector for the whole frame; `part_epe` (clips parts). Only where the
      flow is known or a teacher says it.
    - `step/l1`, `step/copy_l1`, `step/mean_l1`: each frame warped to the next, over visible pixels.
    - Of clips that go on from their first frame, for each source of codes (`reconstruction`, `retrieval`, `prior`):
      `<source>/l1` (clips steps), `<source>/ssim`, `<source>/features`, and those of published networks.
    - `accumulated/l1`, `by_frame/l1`, `accumulated/sharp`, `by_frame/sharp`: the same flows, warped at once or frame by
      frame, and not finished; `.../true_l1` likewise with the true flow. `copy/l1`, `mean/l1` of baselines. Where it
      is known, over pixels that show what the first frame showed.
    - `transfer/epe`: another clip's first frame of the same layout, moved by this clip's codes; against this flow.
    - `shown/...`: of the first clips.

    Args:
        module: the trained network.
        device: where it runs.
    """

    def __init__(self, module: "Fgla", device: torch.device):
        self.module, self.left = module, SHOWN
        self.networks = PublishedNetworks(**module.published, device=device)
        self.features = DrawnFeatures().to(device)
        self.drawing = torch.Generator().manual_seed(0)  # of codes: other ones for each batch

    def batch(self, batch: Mapping[str, Tensor]) -> Arrays:
        """All that is measured of some clips."""
        module, steps = self.module, self.module.frames - 1
        video = module.read(batch["video"])[:, :, : steps + 1]
        known = "flow" in batch or module.flow_teacher is not None
        flow = module.flow(batch, video)[:, :steps] if known else None
        codes = module.encode(video, flow)
        flows = module.moved(video[:, :, 0], codes)
        found = self.neighbouring(batch, video, flow, codes)
        found |= self.multi_step(video, flow, flows, still_seen(batch["visible"], flow) if "visible" in batch else None)
        clips = {"reconstruction": module.rendered(video[:, :, 0], flows, codes)}
        clips["retrieval"] = module.animate(video[:, :, 0], module.recall(video[:, :, 0]))
        if module.encoder.variational:
            clips["prior"] = module.animate(video[:, :, 0], module.prior(len(video), self.drawing))
        for name, clip in clips.items():
            found |= {f"{name}/{kind}": values for kind, values in self.clip(clip, video).items()}
        found |= {f"{kind}/real": x for kind, x in self.seen(video).items()}
        if "other" in batch and flow is not None:
            moved = module.moved(module.read(batch["other"]), codes)
            found["transfer/epe"] = end_point_error(moved, flow).mean((-2, -1))
        return found | self.shown(video, flow, flows, clips)

    def neighbouring(self, batch: Mapping[str, Tensor], video: Tensor, flow: Tensor | None, codes: "Codes") -> Arrays:
        """From each frame to the next."""
        module, steps = self.module, video.shape[2] - 1
        before, after = (x.transpose(1, 2).flatten(0, 1) for x in (video[:, :, :-1], video[:, :, 1:]))
        light = module.light(before, after)
        where = batch["visible"][:, :steps] if "visible" in batch else None

        def l1(moved: Tensor) -> Tensor:
            frames = module.lighted(warp(before, moved.flatten(0, 1)), light).unflatten(0, (-1, steps))
            return absolute_error(frames.transpose(1, 2), video[:, :, 1:], where)

        made = module.generator(before, codes.motion.flatten(0, 1)).unflatten(0, (-1, steps))
        found = {"step/l1": l1(made), "step/copy_l1": l1(torch.zeros_like(made))}
        if flow is None:
            return found
        errors, mean = end_point_error(made, flow), flow.mean((-2, -1), keepdim=True).expand_as(flow)
        found |= {
            "epe": errors.mean((-2, -1)),
            "copy/epe": end_point_error(torch.zeros_like(flow), flow).mean((-2, -1)),
            "mean/epe": end_point_error(mean, flow).mean((-2, -1)),
            "step/mean_l1": l1(mean),
        }
        if "parts" in batch:
            own = torch.stack([batch["parts"] == part for part in range(len(PARTS))], 1)[:, :, None]
            found["part_epe"] = (errors[:, None] * own).sum((2, 3, 4)) / (steps * own.sum((2, 3, 4))).clamp_min(1)
        return found

    def multi_step(self, video: Tensor, flow: Tensor | None, flows: Tensor, where: Tensor | None) -> Arrays:
        """From the first frame on, by the true flow and by those of the generator, at once or frame by frame."""
        first, later, found = video[:, :, 0], video[:, :, 1:], {}
        for name, by_frame in (("accumulated", False), ("by_frame", True)):
            frames = animated(first, flows, by_frame=by_frame)
            found[f"{name}/l1"] = absolute_error(frames, later, where)
            found[f"{name}/sharp"] = sharpness(frames) / sharpness(later).clamp_min(1e-6)
            if flow is not None:
                found[f"{name}/true_l1"] = absolute_error(animated(first, flow, by_frame=by_frame), later, where)
        found["copy/l1"] = absolute_error(first[:, :, None].expand_as(later), later, where)
        if flow is not None:
            mean = flow.mean((-2, -1), keepdim=True).expand_as(flow)
            found["mean/l1"] = absolute_error(animated(first, mean), later, where)
        return found

    def clip(self, made: Tensor, real: Tensor) -> Arrays:
        """A finished clip against the real one."""
        found = {"l1": absolute_error(made[:, :, 1:], real[:, :, 1:]), "ssim": ssim(made[:, :, 1:], real[:, :, 1:])}
        return found | self.seen(made) | self.networks.compared(made[:, :, 1:], real[:, :, 1:])

    def seen(self, video: Tensor) -> Arrays:
        """What networks see in clips."""
        return {"features": self.features(video)} | self.networks.seen(video)

    def shown(self, video: Tensor, flow: Tensor | None, flows: Tensor, clips: Mapping[str, Tensor]) -> Arrays:
        """The first clips with what was made of them, and flows from the first frame on."""
        many, self.left = min(self.left, len(video)), max(self.left - len(video), 0)
        if not many:
            return {}
        found = {f"shown/{name}": stored(clip[:many]) for name, clip in clips.items()}
        found["shown/real"] = stored(video[:many])
        found["shown/flow"] = flows[:many]
        if flow is not None:
            found["shown/true_flow"] = flow[:many]
        return found


def still_seen(
    visible: Bool[Tensor, "batch steps h w"], flow: Float[Tensor, "batch steps 2 h w"]
) -> Bool[Tensor, "batch steps h w"]:
    """Which pixels of each later frame show what the first one showed.

    Args:
        visible: pixels that show what the frame before did.
        flow: true, between neighbours.
    """
    seen = [visible[:, 0]]
    for step in range(1, visible.shape[1]):
        before = warp(seen[-1][:, None].to(flow), flow[:, step])[:, 0]
        seen.append(visible[:, step] & (before > 1 - SURE))
    return torch.stack(seen, 1)
