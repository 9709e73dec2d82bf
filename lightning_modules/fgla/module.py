"""FGLA (Xue et al., ACM Multimedia 2021, 2109.02216): a picture of a landscape becomes a clip in which it moves.

A motion encoder embeds what moves between frames of a real time lapse, place by place; a motion generator makes flows
of a picture and such an embedding; the picture follows the flows. Read `Fgla.training_step` first, then `network.py`
and `warping.py`.

Only the paper's abstract could be read, and no code is published: that motion is embedded in a fine-grained way and
that a generator makes motion of it is the paper's. Grid, layers, losses and what an embedding is taken from at test
time are ours, after what is public of Animating Landscape (AL; Endo et al. 2019). Three sources of embeddings are told
apart:

- `reconstruction`: from the clip itself, an upper bound.
- `retrieval`: from the training clip whose first frame looks most alike (`recall`); they are kept with the weights.
- `prior`: drawn from N(0, 1), where the encoder is variational.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import PaperModule
from lightning_modules.fgla.clips import TimelapseClips
from lightning_modules.fgla.measuring import Measured
from lightning_modules.fgla.network import (
    Appearance,
    Code,
    Injection,
    MotionEncoder,
    MotionGenerator,
    PatchDiscriminator,
    Pooling,
    Refinement,
    Seen,
    doubled,
)
from lightning_modules.fgla.raft import FlowSettings, FlowTeacher
from lightning_modules.fgla.warping import accumulate, animated, further, warp
from lightning_modules.layers.published import load_strictly
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.motion import absolute_error, end_point_error
from lightning_modules.settings import STRICT, Count, Natural, NonNegative, Positive, Share
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.adversarial import discriminator_loss, generator_loss
from lightning_modules.video_tokens.perception import Perception
from lightning_modules.video_tokens.training import TokensRecipe, frozen

EDGE = 0.1  # differences of colours beyond which flows may differ freely (AL's)
LOOKS = 4  # places along each axis whose mean colours say how a picture looks, for `recall`
ROUNDS = 2  # of an encoder that sees its generator's own flow, where none is remembered
Video = Float[Tensor, "batch 3 frames h w"]
Widths = Annotated[list[Count], Field(min_length=1)]
Flows = Float[Tensor, "batch steps 2 h w"]
HalfFlows = Float[Tensor, "batch steps 2 h2 w2"]


class EncoderSettings(TypedDict):
    """See `MotionEncoder`; `span` says whether each pair of frames has an embedding of its own, or a clip one."""

    __pydantic_config__ = STRICT
    widths: Widths
    sees: Annotated[list[Seen], Field(min_length=1)]
    grid: Count
    code_dim: Count
    variational: bool
    pooling: Pooling
    span: Literal["pair", "clip"]


class GeneratorSettings(TypedDict):
    """See `MotionGenerator`."""

    __pydantic_config__ = STRICT
    widths: Widths
    blocks: Count
    injection: Injection
    reach: Annotated[Share, Field(gt=0)]
    mask: bool


class Weights(TypedDict):
    """Of the terms of the loss, see `Fgla.terms`."""

    __pydantic_config__ = STRICT
    photometric: NonNegative
    flow: NonNegative
    smooth: NonNegative
    kl: NonNegative
    perceptual: NonNegative
    finished: NonNegative
    adversarial: NonNegative


class Finishing(TypedDict):
    """See `Refinement`."""

    __pydantic_config__ = STRICT
    width: Count


class Lighting(TypedDict):
    """See `Appearance`; a `code_dim` of 0 is for light that stays as it is."""

    __pydantic_config__ = STRICT
    width: Count
    code_dim: Natural


class Patches(TypedDict):
    """See `PatchDiscriminator`."""

    __pydantic_config__ = STRICT
    widths: Widths


class Published(TypedDict):
    """Files of weights of I3D and C3D, and whether LPIPS is computed, see `video_networks.PublishedNetworks`."""

    __pydantic_config__ = STRICT
    i3d: str | None
    c3d: str | None
    c3d_mean: str | None
    lpips: bool


class Codes(NamedTuple):
    """What is known of clips: the motion between each two frames, and the light of each later one."""

    motion: Float[Tensor, "batch steps c g g"]
    light: Float[Tensor, "batch steps k"] | None


class Fgla(PaperModule):
    """Encoder and generator of motion, and what finishes frames.

    Args:
        size: height and width of frames.
        frames: of the clips that are judged and remembered.
        encoder: see `EncoderSettings`.
        generator: see `GeneratorSettings`.
        supervised: whether the generator is told the flow; if not, it learns from the warped frames alone, as AL does.
        flow_teacher: the network that says the flow of clips that come without, see `raft.FlowTeacher`.
        weights: of the terms of the loss.
        refinement: of warped frames; null for none.
        appearance: of the light.
        discriminator: that refined frames are held against; null for none.
        perception: whose answers the perceptual loss compares, see `Perception`; null for no such loss.
        codebook: training clips whose codes are remembered for `recall`.
        judged_rows: clips that are judged, the first of the split; null for all.
        remembered: training clips of which the generator's last flow is kept, for an encoder that sees it.
        published: files of the networks of published measures, see `metrics.video_networks.PublishedNetworks`.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: settings contradict each other.
    """

    recipe_form = TokensRecipe
    predictor = "lightning_modules.fgla.predictor.Landscapes"

    def __init__(
        self,
        *,
        size: Count,
        frames: Count,
        encoder: EncoderSettings,
        generator: GeneratorSettings,
        supervised: bool = True,
        flow_teacher: FlowSettings | None = None,
        weights: Weights,
        refinement: Finishing | None = None,
        appearance: Lighting,
        discriminator: Patches | None = None,
        perception: str | None = None,
        codebook: Count,
        judged_rows: Count | None = None,
        remembered: Natural = 0,
        published: Published | None = None,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__()
        _check(size, frames, encoder, refinement, discriminator, remembered)
        _check_weights(weights, perception, discriminator)
        own = {name: value for name, value in encoder.items() if name != "span"}
        self.encoder = MotionEncoder(size=size, **own)
        self.generator = MotionGenerator(size=size, code_dim=encoder["code_dim"], **generator)
        self.refinement = Refinement(**refinement) if refinement else None
        self.appearance = Appearance(**appearance) if appearance["code_dim"] else None
        self.discriminator = PatchDiscriminator(**discriminator) if discriminator else None
        self.perception = Perception(perception) if perception else None
        self.flow_teacher = FlowTeacher(**flow_teacher) if flow_teacher else None
        self.size, self.frames, self.span, self.supervised = size, frames, encoder["span"], supervised
        self.weights, self.published, self.pixel_scale = weights, published or {}, pixel_scale
        self.judged_rows = judged_rows
        shape = (codebook, frames - 1)
        self.register_buffer("known", torch.zeros(codebook, dtype=torch.bool))
        self.register_buffer("known_looks", torch.zeros(codebook, 3 * LOOKS**2))
        self.register_buffer("known_motion", torch.zeros(*shape, encoder["code_dim"], *2 * [encoder["grid"]]))
        self.register_buffer("known_light", torch.zeros(*shape, appearance["code_dim"]))
        self.register_buffer("own_flow", torch.zeros(remembered, frames - 1, 2, size // 2, size // 2))
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers(recurse=False)]  # see `fill`

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse clips of another size, without a flow that is needed, or whose own flow cannot be remembered.

        Networks of published measures are looked for, too: they are needed when all is trained.

        Raises:
            ValueError: see above.
        """
        _check_published(self.published)
        channels, frames, height, width = data.video_shape
        if (channels, height, width) != (3, self.size, self.size) or frames < self.frames:
            raise ValueError(
                f"the data has clips of shape {data.video_shape} (channels, frames, height, width), but model.size is "
                f"{self.size} and model.frames {self.frames}."
            )
        if self.needs_flow and self.flow_teacher is None and not hasattr(data, "daylight"):
            raise ValueError(
                f"clips of {type(data).__name__} come without their flow, and model.flow_teacher is null: give a "
                "network for it, or set model.supervised to false and take flow from model.encoder.sees."
            )
        if "own" in self.encoder.sees:
            self._check_remembered(data, frames)

    def _check_remembered(self, data: LightningDataModule, frames: int) -> None:
        clips = len(data.rows["train"][1]) if "train" in data.rows else 0
        if clips > len(self.own_flow) or frames != self.frames:
            raise ValueError(
                f"model.remembered is {len(self.own_flow)} and model.frames {self.frames}, but there are {clips} clips "
                f"of {frames} frames to train on: an encoder that sees its own flow remembers it for each pair of them."
            )
        if not isinstance(data, TimelapseClips):
            raise ValueError(
                f"{type(data).__name__} does not say which frames of which clip a batch has, so that no flow can be "
                "remembered for them: take `own` out of model.encoder.sees, or use TimelapseClips."
            )

    def on_fit_start(self) -> None:
        """Refuse several processes where flows are remembered: each would remember those of its own batches only.

        Raises:
            ValueError: see above.
        """
        if "own" in self.encoder.sees and self.trainer.world_size > 1:
            raise ValueError(
                f"model.encoder.sees is {list(self.encoder.sees)} and {self.trainer.world_size} processes train: each "
                "would remember the flows of its own batches only. Train in one process."
            )

    @property
    def needs_flow(self) -> bool:
        """Whether a training cannot do without the flow."""
        return self.supervised or "flow" in self.encoder.sees

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """The sum of the terms; generator and discriminator have the gradient of their own part alone."""
        terms = self.terms(batch)
        self.log_terms({f"pretrain/{name}": term for name, term in terms.items()})
        return sum(terms.values())

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """All terms of the loss, each with its weight.

        Each frame is warped to the next (`photometric`, L1, and `perceptual`) by a flow that is near the true one
        (`flow`, L1 in units of the reach) and smooth but at edges (`smooth`); `kl` keeps a variational embedding near
        N(0, 1). The first frame of a window, warped to the last one, is `finished`, and looks real (`adversarial`).
        """
        video = self.read(batch["video"])
        flow = self.flow(batch, video) if self.needs_flow else None
        code, motion = self.embed(video, flow, self.recollected(batch))
        before, after = neighbours(video)
        made = self.generator(before, motion.flatten(0, 1))
        self.remember(batch, made)
        shown, weights = self.lighted(warp(before, made), self.light(before, after)), self.weights
        terms = {
            "photometric": weights["photometric"] * (shown - after).abs().mean(),
            "smooth": weights["smooth"] * edge_aware(made / self.generator.reach, after),
        }
        if self.supervised:
            terms["flow"] = weights["flow"] * (made - flow.flatten(0, 1)).abs().mean() / self.generator.reach
        if code.logvar is not None:
            terms["kl"] = weights["kl"] * kl_divergence(code)
        if self.perception is not None:
            terms["perceptual"] = weights["perceptual"] * self.perception(shown[:, :, None], after[:, :, None])
        if self.refinement is not None:
            terms |= self.finished_terms(video, made.detach().unflatten(0, motion.shape[:2]))
        return terms

    def finished_terms(self, video: Video, flows: Flows) -> dict[str, Float[Tensor, ""]]:
        """The first frame, warped to the last one of a window and finished, against that; flows learn nothing here."""
        first, last, total = video[:, :, 0], video[:, :, -1], accumulate(flows)[:, -1]
        frame = self.finish(warp(first, total), total, self.light(first, last))
        terms = {"finished": self.weights["finished"] * (frame - last).abs().mean()}
        if self.discriminator is not None:
            with frozen(self.discriminator):
                terms["adversarial"] = self.weights["adversarial"] * generator_loss(self.discriminator(frame), "hinge")
            real, fake = self.discriminator(last), self.discriminator(frame.detach())
            terms["discriminator"] = discriminator_loss(real, fake, "hinge")
        return terms

    def read(self, video: Shaped[Tensor, "batch 3 *frames h w"]) -> Float[Tensor, "batch 3 *frames h w"]:
        """Stored pixels as pixels from 0 to 1."""
        return video / self.pixel_scale

    def flow(self, batch: Mapping[str, Tensor], video: Video) -> Flows:
        """The backward flow between neighbours in pixels: what the batch has, or what the teacher says.

        Raises:
            ValueError: there is neither.
        """
        if "flow" in batch:
            return batch["flow"]
        if self.flow_teacher is None:
            raise ValueError(
                "the clips come without their flow, and model.flow_teacher is null: give a network that says it."
            )
        return self.flow_teacher(video)

    def embed(self, video: Video, flow: Flows | None, own: HalfFlows | None = None) -> tuple[Code, Tensor]:
        """Codes of all pairs of neighbours, and what the generator gets: (batch steps c g g).

        In training a variational code is drawn. With the span `clip` all pairs of a clip get the mean of their codes.

        Args:
            video: frames.
            flow: between them, if the encoder sees it.
            own: the generator's last prediction at half the size, if the encoder sees it; nothing moves by default.
        """
        before, after = neighbours(video)
        steps, reach = video.shape[2] - 1, self.generator.reach
        shown = []
        for name in self.encoder.sees:
            if name == "frames":
                shown += [before, after]
            elif name == "flow":
                shown.append(flow.flatten(0, 1) / reach)
            else:
                shown.append(torch.zeros_like(before[:, :2]) if own is None else doubled(own.flatten(0, 1)) / reach)
        code = self.encoder(torch.cat(shown, 1))
        motion = code.mean
        if code.logvar is not None and self.training:
            motion = motion + torch.randn_like(motion) * (0.5 * code.logvar).exp()
        motion = motion.unflatten(0, (-1, steps))
        if self.span == "clip":
            motion = motion.mean(1, keepdim=True).expand_as(motion)
        return code, motion

    def encode(self, video: Video, flow: Flows | None = None, own: HalfFlows | None = None) -> Codes:
        """The codes of clips: of the motion between neighbours, and of the light of each frame after the first.

        Raises:
            ValueError: the encoder sees flows, but none is given and there is no network for them.
        """
        if flow is None and "flow" in self.encoder.sees:
            flow = self.flow({}, video)
        _, motion = self.embed(video, flow, own)
        if "own" in self.encoder.sees and own is None:
            for _ in range(ROUNDS - 1):
                made = self.generator(neighbours(video)[0], motion.flatten(0, 1))
                _, motion = self.embed(video, flow, halved(made).unflatten(0, motion.shape[:2]))
        if self.appearance is None:
            return Codes(motion, None)
        first = video[:, :, :1].expand_as(video[:, :, 1:])
        light = self.appearance.encode(*(x.transpose(1, 2).flatten(0, 1) for x in (first, video[:, :, 1:])))
        return Codes(motion, light.unflatten(0, motion.shape[:2]))

    def recollected(self, batch: Mapping[str, Tensor]) -> HalfFlows | None:
        """The generator's last flow for these windows, at half their size, if the encoder sees it."""
        if "own" not in self.encoder.sees:
            return None
        return self.own_flow[self._places(batch)]

    def remember(self, batch: Mapping[str, Tensor], made: Float[Tensor, "pairs 2 h w"]) -> None:
        """Keep the generator's flow for the next time."""
        if "own" in self.encoder.sees and self.training:
            places = self._places(batch)
            self.own_flow[places] = halved(made.detach()).unflatten(0, places[1].shape)

    def _places(self, batch: Mapping[str, Tensor]) -> tuple[Int[Tensor, "batch 1"], Int[Tensor, "batch steps"]]:
        steps = torch.arange(batch["video"].shape[2] - 1, device=batch["rows"].device)
        return batch["rows"][:, None], batch["starts"][:, None] + steps

    def light(self, first: Float[Tensor, "n 3 h w"], later: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"] | None:
        """The code of later frames' light, where it is modelled."""
        return None if self.appearance is None else self.appearance.encode(first, later)

    def lighted(self, frame: Float[Tensor, "n 3 h w"], light: Float[Tensor, "n k"] | None) -> Float[Tensor, "n 3 h w"]:
        """Frames in that light."""
        return frame if light is None else self.appearance(frame, light)

    def finish(
        self, frame: Float[Tensor, "n 3 h w"], total: Float[Tensor, "n 2 h w"], light: Float[Tensor, "n k"] | None
    ) -> Float[Tensor, "n 3 h w"]:
        """Warped frames, repaired and in their light.

        Args:
            frame: a first frame, warped.
            total: how far.
            light: the code of the light.
        """
        if self.refinement is not None:
            frame = self.refinement(frame, total / self.generator.reach)
        return self.lighted(frame, light)

    def moved(self, pictures: Float[Tensor, "batch 3 h w"], codes: Codes) -> Flows:
        """The flows of a clip that begins with a picture, step by step: each from the frame that the last ones gave."""
        flows, frame, total = [], pictures, None
        for motion in codes.motion.unbind(1):
            flows.append(self.generator(frame, motion))
            total = flows[-1] if total is None else further(flows[-1], total)
            frame = warp(pictures, total)
        return torch.stack(flows, 1)

    @torch.no_grad()
    def animate(
        self, pictures: Float[Tensor, "batch 3 h w"], codes: Codes, *, by_frame: bool = False
    ) -> Float[Tensor, "batch 3 later h w"]:
        """Clips that begin with pictures and move as codes say.

        Args:
            pictures: pixels from 0 to 1.
            codes: of as many clips.
            by_frame: whether each frame is warped from the one before and not from the picture.
        """
        return self.rendered(pictures, self.moved(pictures, codes), codes, by_frame=by_frame)

    def rendered(
        self, pictures: Float[Tensor, "batch 3 h w"], flows: Flows, codes: Codes, *, by_frame: bool = False
    ) -> Float[Tensor, "batch 3 later h w"]:
        """Clips that begin with pictures and follow flows, in the light that codes say; see `animate`."""
        frames, totals = animated(pictures, flows, by_frame=by_frame), accumulate(flows)
        finished = [pictures]
        for step in range(flows.shape[1]):
            light = None if codes.light is None else codes.light[:, step]
            finished.append(self.finish(frames[:, :, step], totals[:, step], light))
        return torch.stack(finished, 2).clamp(0, 1)

    @torch.no_grad()
    def recall(self, pictures: Float[Tensor, "batch 3 h w"]) -> Codes:
        """The codes of the training clips whose first frames look most alike; before a training all are 0."""
        apart = torch.cdist(looks(pictures), self.known_looks, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = apart.masked_fill(~self.known, torch.inf).argmin(1)
        return Codes(self.known_motion[nearest], None if self.appearance is None else self.known_light[nearest])

    @torch.no_grad()
    def prior(self, rows: int, generator: torch.Generator) -> Codes:
        """Codes that are drawn: each clip keeps its motion. The light has no prior, and is left alone.

        Args:
            rows: clips.
            generator: of random numbers, on the CPU.

        Raises:
            ValueError: the encoder is not variational.
        """
        if not self.encoder.variational:
            raise ValueError("codes can be drawn only of a variational encoder: set model.encoder.variational to true.")
        code, grid, device = self.encoder.code_dim, self.encoder.grid, self.known_motion.device
        drawn = torch.randn(rows, 1, code, grid, grid, generator=generator).to(device)
        return Codes(drawn.expand(-1, self.frames - 1, -1, -1, -1), None)

    @torch.no_grad()
    def fill(self, data: LightningDataModule) -> None:
        """Remember the codes of the first training clips, as many as `codebook`; of several of a video, one.

        This is done after the training, with the weights that are exported, in the process that exports them.
        """
        done, seen, each = 0, 0, getattr(data, "clips", 1)
        for batch in data.evaluation_batches("train"):
            first, seen, left = -seen % each, seen + len(batch["video"]), len(self.known) - done
            if not left:
                break
            batch = {name: x[first::each][:left].to(self.device) for name, x in batch.items() if is_rows(x)}
            video = self.read(batch["video"])[:, :, : self.frames]
            if not len(video):
                continue
            own = self.own_flow[batch["rows"]] if "own" in self.encoder.sees else None
            flow = self.flow(batch, video)[:, : self.frames - 1] if "flow" in self.encoder.sees else None
            codes, to = self.encode(video, flow, own), slice(done, done + len(video))
            self.known[to], self.known_looks[to], self.known_motion[to] = True, looks(video[:, :, 0]), codes.motion
            if codes.light is not None:
                self.known_light[to] = codes.light
            done += len(video)

    def validate(self, data: LightningDataModule, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """How near each frame, warped, is to the next, and its flow to the true one."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            video = self.read(batch["video"])
            flow = self.flow(batch, video) if self.needs_flow or "flow" in batch else None
            codes, (before, after) = self.encode(video, flow), neighbours(video)
            made = self.generator(before, codes.motion.flatten(0, 1))
            shown = self.lighted(warp(before, made), self.light(before, after))
            found = {"l1": absolute_error(shown[:, :, None], after[:, :, None]).mean()}
            if flow is not None:
                found["epe"] = end_point_error(made.unflatten(0, flow.shape[:2]), flow).mean()
            return found

        return mean_over(batches, measure)

    @torch.no_grad()
    def forward(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 later h w"]:
        """Clips that begin as stored ones do, moved as the training clips are that look most alike."""
        pictures = self.read(video)[:, :, 0]
        return self.animate(pictures, self.recall(pictures))

    @torch.no_grad()
    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """What is measured of the clips of the split that is judged, see `measuring.Measured`; fills `recall` first."""
        self.to(device).eval()
        self.fill(data)
        measured, parts, left = Measured(self, device), defaultdict(list), self.judged_rows
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                batch = {name: x[:left].to(device) for name, x in batch.items() if is_rows(x)}
                for name, values in measured.batch(batch).items():
                    parts[name].append(values.cpu())
                left = None if left is None else left - len(batch["video"])
                if left == 0:
                    break
        return {name: torch.cat(part) for name, part in parts.items()}

    def facts(self) -> dict:
        """Sizes."""
        return {
            "parameters": sum(count_parameters(part) for part in (self.encoder, self.generator)),
            "code_numbers": self.encoder.code_dim * self.encoder.grid**2,
            "reach": self.generator.reach,
        }

    def compiled_parts(self) -> Iterable[nn.Module]:
        """Encoder and generator."""
        return self.encoder, self.generator

    def export(self) -> dict[str, Tensor]:
        """All but the flows that are remembered for the training."""
        return {name: x for name, x in self.state_dict().items() if name != "own_flow"}

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `export` gave."""
        load_strictly(self, {**weights, "own_flow": self.own_flow}, "exported weights")


def _check(
    size: int, frames: int, encoder: EncoderSettings, refinement: object, discriminator: Patches | None, remembered: int
) -> None:
    if size % LOOKS:
        raise ValueError(f"size is {size}, expected a multiple of {LOOKS}: pictures are compared by {LOOKS}^2 places.")
    if discriminator and size < 1 << len(discriminator["widths"]):
        raise ValueError(
            f"discriminator.widths has {len(discriminator['widths'])} stages, each of which halves {size} pixels: take "
            "fewer."
        )
    if frames < 2:
        raise ValueError(f"frames is {frames}, expected at least 2: motion is what lies between two of them.")
    if discriminator and not refinement:
        raise ValueError("model.discriminator judges refined frames, but model.refinement is null: set both, or none.")
    if ("own" in encoder["sees"]) != (remembered > 0):
        raise ValueError(
            f"model.encoder.sees is {encoder['sees']} and model.remembered is {remembered}: an encoder that sees its "
            "own flow needs a place for that of each training clip, and no other does."
        )


def _check_published(published: Published | dict) -> None:
    files = {name: published.get(name) for name in ("i3d", "c3d", "c3d_mean")}
    for name, file in files.items():
        if file is not None and not Path(file).is_file():
            raise ValueError(
                f"model.published.{name} is {file}, which is no file: correct it, or set it to null to leave its "
                "measures out."
            )
    if (files["c3d"] is None) != (files["c3d_mean"] is None):
        raise ValueError(
            f"model.published.c3d is {files['c3d']} and c3d_mean is {files['c3d_mean']}: C3D needs both files."
        )


def _check_weights(weights: Weights, perception: str | None, discriminator: object) -> None:
    for term, name, network in (
        ("perceptual", "perception", perception),
        ("adversarial", "discriminator", discriminator),
    ):
        if weights[term] and not network:
            raise ValueError(
                f"weights.{term} is {weights[term]}, but {name} is null, so that there is no such loss: set the weight "
                f"to 0, or give a {name}."
            )


def is_rows(value: object) -> bool:
    """Whether a part of a batch has a value for each row."""
    return isinstance(value, Tensor) and value.ndim > 0


def neighbours(video: Video) -> tuple[Float[Tensor, "pairs 3 h w"], Float[Tensor, "pairs 3 h w"]]:
    """Each frame but the last, and the one after it; clip by clip."""
    frames = video.transpose(1, 2)
    return frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)


def halved(flow: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "n 2 h2 w2"]:
    """A flow at half the size, its vectors as long as before."""
    return F.avg_pool2d(flow, 2)


def looks(pictures: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch features"]:
    """Mean colours of 4 x 4 places."""
    return F.avg_pool2d(pictures, pictures.shape[-1] // LOOKS).flatten(1)


def edge_aware(flow: Float[Tensor, "n 2 h w"], image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, ""]:
    """Total variation of a flow, weighted by exp(-sum |dI| / 0.1): it may jump where colours do (AL)."""
    return sum(
        (flow.diff(dim=axis).abs() * (-image.diff(dim=axis).abs().sum(1, keepdim=True) / EDGE).exp()).mean()
        for axis in (-1, -2)
    )


def kl_divergence(code: Code) -> Float[Tensor, ""]:
    """Of the embedding from N(0, 1): summed over its numbers, the mean over pairs of frames."""
    terms = code.mean.square() + code.logvar.exp() - 1 - code.logvar
    return 0.5 * terms.flatten(1).sum(1).mean()
