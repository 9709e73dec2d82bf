"""Pictures as clips of one frame: what an image tokenizer learns from, and a video tokenizer then begins with.

Tokenizers and generators of pictures are those of clips (`causal_training.py`, `module.py`); what is new here is that
FID and the Inception Score are measured where torch-fidelity is installed (CONTRIBUTING.md, Dependencies).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_modules.datamodules.streamed import StreamedImages
from lightning_modules.magvit2.module import Magvit2
from lightning_modules.metrics.generation import has_fid, make_fid, make_inception_score
from lightning_modules.validation import judged
from lightning_modules.video_tokens.causal_training import CausalTraining
from lightning_modules.video_tokens.clips import ClipData
from lightning_modules.video_tokens.training import TokenizerTraining

Pictures = Float[Tensor, "batch 3 1 h w"]


class PictureClips(StreamedImages):
    """`StreamedImages` whose batches are those of `video_tokens.clips.ClipData`, each clip one picture."""

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a clip."""
        height, width, channels = self.image_shape
        return channels, 1, height, width

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Training batches as clips (Lightning calls it)."""
        return as_clips(batch)

    def evaluation_batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """One pass over a split in the order of its rows."""
        return map(as_clips, super().evaluation_batches(split))


def as_clips(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """`images` (batch channels height width) as `video`, with one frame."""
    rest = {name: x for name, x in batch.items() if name != "images"}
    return rest | {"video": batch["images"].unsqueeze(2)}


class Inception:
    """FID of pictures against real ones, and their Inception Score.

    Args:
        device: where the networks run.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
    """

    def __init__(self, device: torch.device):
        self.fid, self.score = make_fid().to(device), make_inception_score().to(device)

    def update(self, made: Pictures, real: Pictures) -> None:
        """Look at pictures, pixels from 0 to 1, and at the real ones."""
        made, real = ((x[:, :, 0].clamp(0, 1) * 255).round().to(torch.uint8) for x in (made, real))
        self.fid.update(real, real=True)
        self.fid.update(made, real=False)
        self.score.update(made)

    def compute(self) -> dict[str, Float[Tensor, "1"]]:
        """`fid` and `inception_score`."""
        return {"fid": self.fid.compute().cpu()[None], "inception_score": self.score.compute()[0].cpu()[None]}


@torch.no_grad()
def reconstruction_scores(
    module: TokenizerTraining, data: ClipData, tokens: Int[Tensor, "pictures 1 h w"]
) -> dict[str, Float[Tensor, "1"]]:
    """`fid` and `inception_score` of what comes back from tokens; nothing where torch-fidelity is not installed.

    Args:
        module: whose tokenizer draws.
        data: the pictures.
        tokens: of the pictures of the splits that are judged, in their order.
    """
    if not has_fid():
        return {}
    inception = Inception(module.device)
    for split in judged(data.rows):
        for batch in data.evaluation_batches(split):
            now, tokens = tokens.tensor_split([len(batch["video"])])
            drawn = module.tokenizer.decode(now.to(module.device))
            inception.update(drawn, module.read(batch["video"].to(module.device)))
    return inception.compute()


class PictureTraining(CausalTraining):
    """An image tokenizer in training."""

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """As `CausalTraining`, and where torch-fidelity is installed `fid` and `inception_score` (1,)."""
        found = super().predictions(data, device)
        return found | reconstruction_scores(self, data, found["tokens"])


class PictureGenerator(Magvit2):
    """The paper's generator on pictures: a class is told, and a picture drawn."""

    possible_tasks = ("cg", "unc")
    inception: Inception | None = None

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """As `Magvit2`, and where torch-fidelity is installed `fid` and `inception_score` (1,) of the first task.

        The pictures that are judged lend their classes, and are the real ones that FID compares with.
        """
        self.inception = Inception(device) if has_fid() else None
        found = super().predictions(data, device)
        return found | (self.inception.compute() if self.inception else {})

    def _compare(self, parts, name, task, video, truth, again, tokens, made) -> None:
        super()._compare(parts, name, task, video, truth, again, tokens, made)
        if self.inception and name == self.judged_tasks[0]:
            self.inception.update(made, video)
