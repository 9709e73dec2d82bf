"""CamViG (Marmon et al., 2405.13195): a picture becomes a clip, seen by a camera that goes along a given path.

A language model of video tokens gets one more kind of tokens: those of the camera's path, which take the place that
audio has in such a model. The prefix is the first frame's tokens and the path's, the output is the clip. The model is
trained as one of images to videos without paths first (`camvig_base`, `paths: false`), and then with clips of which a
share has paths; all others keep it from forgetting that things move. Read `CamViG.training_step` first, then `paths.py`
and `clips.py`.

No code is published. How paths become tokens is our own design, see `paths.py`. A path that is left out leaves its
places behind, with padding in them, so that all sequences have one length.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import PaperModule, decay_groups
from lightning_modules.camvig.measured import measured
from lightning_modules.camvig.missing import filled
from lightning_modules.camvig.paths import DIM, Bins, Encoding, Residual, scaled
from lightning_modules.layers.published import load_strictly
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.video import psnr
from lightning_modules.sequences.layout import Batch, arrange
from lightning_modules.sequences.prefix_lm import PrefixLM
from lightning_modules.sequences.vocabulary import Vocabulary
from lightning_modules.settings import STRICT, Count, Natural, NonNegative, Positive, Share
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.kept import Kept
from lightning_modules.video_tokens.training import SHOWN, TokensRecipe, check_clips, stored

PROMPT = "image_to_video"


class PathTokens(TypedDict):
    """How paths become tokens: bins of each number or vectors of levels, how many, and what they reach to.

    `unit` is the length that translations are measured in; null for the longest distance of each path.
    """

    __pydantic_config__ = STRICT
    encoding: Literal["bins", "residual"]
    codes: Count
    translation: Positive
    rotation: Positive
    unit: Positive | None


class Decoding(TypedDict):
    """What is drawn from the language model, see `PrefixLM.generate`."""

    __pydantic_config__ = STRICT
    temperature: NonNegative
    top_k: Natural
    guidance: NonNegative


class CamViG(PaperModule):
    """A frozen tokenizer, and the language model of its tokens and of camera paths.

    Args:
        tokenizer: arguments of `CausalTokenizer`, as in the arm that the first training starts from.
        network: arguments of `PrefixLM`, but for `vocabulary` and `places`.
        path_tokens: see `PathTokens`.
        paths: whether paths are ever shown; if not, all clips are without.
        path_drop: share of the clips with paths that are shown without in training, for guidance.
        first_frame_again: whether the first frame's tokens are written once more, before those of the others.
        decoding: see `Decoding`; guidance moves away from what would follow without the path.
        judged_rows: clips that are generated, of the first of the split.
        keep_tokens: whether the tokens of a row are computed once and kept.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: the settings of path tokens do not fit.
    """

    recipe_form = TokensRecipe
    predictor = "lightning_modules.camvig.predictor.Animator"

    def __init__(
        self,
        *,
        tokenizer: dict,
        network: dict,
        path_tokens: PathTokens,
        paths: bool = True,
        path_drop: Share = 0.1,
        first_frame_again: bool = False,
        decoding: Decoding,
        judged_rows: Count,
        keep_tokens: bool = False,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__()
        self.tokenizer = build(CausalTokenizer, tokenizer, "model.tokenizer").requires_grad_(False)
        time, height, width = self.tokenizer.grid
        self.tokens, self.first = time * height * width, height * width
        self.later = self.tokenizer.frames - 1
        self.path_encoding: Encoding = make_encoding(path_tokens, self.tokenizer.frames)
        levels = self.path_encoding.levels
        self.vocabulary = Vocabulary(self.tokenizer.vocabulary, levels, self.path_encoding.codes, prompts=(PROMPT,))
        self.start = 0 if first_frame_again else self.first
        self.layout = arrange(
            self.vocabulary, prompt=PROMPT, visual_places=self.tokens, visual=self.first, audio=levels * self.later,
            video=self.tokens - self.start, video_start=self.start,
        )  # fmt: skip
        places = self.tokens + levels * self.later
        self.network = build(PrefixLM, network, "model.network", vocabulary=len(self.vocabulary), places=places)
        self.path_tokens, self.paths, self.path_drop, self.decoding = path_tokens, paths, path_drop, decoding
        self.judged_rows, self.pixel_scale = judged_rows, pixel_scale
        self.kept = Kept(self.tokens) if keep_tokens else None

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse clips that the tokenizer was not built for, or without paths.

        Raises:
            ValueError: see above.
        """
        if not hasattr(data, "share"):
            raise ValueError(
                f"data are {type(data).__name__}, whose clips have no paths: take camvig.clips.CameraClips or "
                "camvig.videos.PosedVideos."
            )
        check_clips(data, self.tokenizer, None)

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the tokenizer of a trained arm, and its language model if it has one.

        Raises:
            ValueError: a part is of another architecture.
        """
        for name, part in (("tokenizer", self.tokenizer), ("network", self.network)):
            own = {k.removeprefix(f"{name}."): x for k, x in weights.items() if k.startswith(f"{name}.")}
            if own or name == "tokenizer":
                load_strictly(part, own, f"the {name} of the arm in `from`")

    def train(self, mode: bool = True) -> "CamViG":
        """The tokenizer is never trained."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Cross-entropy of the clip's tokens, given those of the first frame and of the path where there is one."""
        loss = self.network.loss(self.sequences(batch))
        self.log_terms({"pretrain/loss": loss})
        return loss

    def sequences(self, batch: dict[str, Tensor]) -> Batch:
        """The sequences of clips; in training some paths are left out."""
        shown = batch["posed"]
        if self.training and self.path_drop:
            shown = shown & (torch.rand(shown.shape, device=shown.device) >= self.path_drop)
        clip = self.vocabulary.visual_ids(self.tokens_of(batch))
        given = self.given(clip[:, : self.first], self.path_ids(batch["path"], shown))
        return self.layout.batch({**given, "video": clip[:, self.start :]})

    @torch.no_grad()
    def tokens_of(self, batch: dict[str, Tensor]) -> Int[Tensor, "batch tokens"]:
        """Tokens of clips: time, height, width."""
        rows = batch.get("rows")
        if self.kept is None or rows is None or not self.training:
            return self.encoded(self.read(batch["video"]))
        return self.kept.once("clip", rows, lambda: self.encoded(self.read(batch["video"])))

    def read(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames h w"]:
        """Stored pixels as pixels from 0 to 1."""
        return video / self.pixel_scale

    def encoded(self, video: Float[Tensor, "batch 3 frames h w"]) -> Int[Tensor, "batch tokens"]:
        """Tokens in one row."""
        return self.tokenizer.encode(video).flatten(1)

    def path_ids(
        self, path: Float[Tensor, "batch later 6"], shown: Bool[Tensor, " batch"]
    ) -> Int[Tensor, "batch path_tokens"]:
        """The ids of paths; padding for those that are not to be shown."""
        numbers = scaled(path.detach().cpu().numpy().astype(np.float64), self.path_tokens["unit"])
        codes = torch.from_numpy(self.path_encoding.encode(numbers)).to(path.device)
        ids = self.vocabulary.audio_ids(codes)
        return ids.where((shown & self.paths)[:, None], self.vocabulary.special("pad"))

    def given(self, first: Int[Tensor, "batch _"], path: Int[Tensor, "batch _"]) -> dict[str, Int[Tensor, "batch _"]]:
        """The parts of a prefix by their names."""
        return {"visual": first, "audio": path}

    @torch.no_grad()
    def generate(
        self,
        pictures: Float[Tensor, "batch 3 h w"],
        path: Float[Tensor, "batch later 6"],
        shown: Bool[Tensor, " batch"],
        *,
        seed: int = 0,
    ) -> Float[Tensor, "batch 3 frames h w"]:
        """Clips that begin with pictures.

        Args:
            pictures: pixels from 0 to 1.
            path: of the camera.
            shown: whether the network may see it.
            seed: of what is drawn.

        Raises:
            ValueError: pictures or paths have other shapes, or a number of a path is not finite.
        """
        rows, size = len(pictures), self.tokenizer.size
        given = {"pictures": (pictures, (rows, 3, size, size)), "path": (path, (rows, self.later, DIM)),
                 "shown": (shown, (rows,))}  # fmt: skip
        for name, (x, expected) in given.items():
            if tuple(x.shape) != expected:
                raise ValueError(f"{name} are {tuple(x.shape)}, expected {expected}.")
        if not path.isfinite().all():
            raise ValueError("a number of the path is not finite: give where the camera is and how it is turned.")
        tokens = self.tokenizer.encode(pictures[:, :, None]).flatten(1)
        first = self.vocabulary.visual_ids(tokens)
        given = self.layout.batch(self.given(first, self.path_ids(path, shown)), whole=False)
        without = self.layout.batch(self.given(first, self.path_ids(path, torch.zeros_like(shown))), whole=False)
        ids = self.network.generate(
            given, self.layout.slots, self.layout.places, without=without if self.decoding["guidance"] else None,
            generator=torch.Generator(pictures.device).manual_seed(seed), **self.decoding,
        )  # fmt: skip
        written = self.vocabulary.visual_tokens(self.layout.written(ids)["video"])
        clip = torch.cat([tokens[:, : self.start], written], 1)
        return self.tokenizer.decode(clip.view(-1, *self.tokenizer.grid)).clamp(0, 1)

    def surprise(self, batch: dict[str, Tensor]) -> Float[Tensor, " batch"]:
        """Nats of each token that is to be written, specials left out: the mean over a clip."""
        told = torch.tensor([bool(kind) for kind in self.layout.content], device=self.device)
        return self.network.surprise(self.sequences(batch))[:, told].mean(1)

    def validate(self, data: LightningDataModule, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss."""
        return mean_over(batches, lambda batch: {"loss": self.network.loss(self.sequences(batch))})

    @torch.no_grad()
    def forward(self, video: Shaped[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch 3 frames h w"]:
        """Stored clips as they go on from their first frame, without a path."""
        nowhere = torch.zeros(len(video), self.later, DIM, device=video.device)
        shown = torch.zeros(len(video), dtype=torch.bool, device=video.device)
        return self.generate(self.read(video)[:, :, 0], nowhere, shown)

    @torch.no_grad()
    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """What is measured in generated clips, in real ones, and in these as they come back from their tokens.

        See `measured.measured` and `missing.filled`: arrays under `made/`, `real/` and `again/`, and what was asked for
        under `asked/`.
        Of all clips `labels`, `posed`, `psnr`, and `nll`, nats of each token of the true clip, given its first frame
        and its path where it has one; of the first with a path `shown/...`, uint8.
        """
        self.to(device).eval()
        parts, left = defaultdict(list), self.judged_rows
        for split in judged(data.rows):
            for batch in data.evaluation_batches(split):
                batch = {name: x[:left] if x.ndim else x for name, x in batch.items()}
                left -= len(batch["video"])
                if len(batch["video"]):
                    self._judge(parts, data, {name: x.to(device) for name, x in batch.items()}, left)
        return {name: torch.cat(part).cpu() for name, part in parts.items()}

    def _judge(self, parts: dict[str, list], data: LightningDataModule, batch: dict[str, Tensor], seed: int) -> None:
        video, posed = self.read(batch["video"]), batch["posed"]
        clips = {
            "made": self.generate(video[:, :, 0], batch["path"], posed, seed=seed),
            "real": video,
            "again": self.tokenizer.decode(self.tokenizer.encode(video)).clamp(0, 1),
        }
        pixels = {name: stored(clip).cpu().numpy() for name, clip in clips.items()}
        for name, values in filled(measured(pixels, batch, data)).items():
            parts[name].append(torch.from_numpy(values))
        parts["psnr"].append(psnr(clips["made"], video))
        parts["nll"].append(self.surprise(batch))
        parts["labels"].append(batch["labels"])
        parts["posed"].append(posed)
        if sum(map(len, parts["shown/made"])) < SHOWN:
            for name, clip in pixels.items():
                parts[f"shown/{name}"].append(torch.from_numpy(clip[posed.cpu().numpy()][:SHOWN]))

    def facts(self) -> dict:
        """Sizes, and the numbers of tokens."""
        return {
            "parameters": count_parameters(self.network),
            "tokenizer_parameters": count_parameters(self.tokenizer),
            "path_tokens": self.path_encoding.levels * self.later,
            "given_tokens": self.first,
            "written_tokens": self.tokens - self.start,
        }

    def parameter_groups(self) -> list[dict]:
        """Matrices are decayed, factors of norms are not."""
        return decay_groups(self.network.named_parameters())

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The blocks."""
        return self.network.layers

    def export(self) -> dict[str, Tensor]:
        """Tokenizer and language model."""
        return self.state_dict()


def make_encoding(settings: PathTokens, frames: int) -> Encoding:
    """What turns paths into tokens.

    Raises:
        ValueError: see `Bins`.
    """
    reach = {"translation": settings["translation"], "rotation": settings["rotation"]}
    if settings["encoding"] == "bins":
        return Bins(settings["codes"], **reach)
    return Residual(settings["codes"], **reach, frames=frames)
