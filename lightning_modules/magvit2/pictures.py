"""Pictures as clips of one frame: what an image tokenizer learns from, and a video tokenizer then begins with."""

from collections.abc import Iterator

from torch import Tensor

from lightning_modules.datamodules.streamed import StreamedImages


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
