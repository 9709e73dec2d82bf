"""The codebook of a data module that shows several clips of each video."""

import torch
from pytorch_lightning import LightningDataModule

from lightning_modules.fgla.module import looks
from tests.fgla.test_module import batch, make


class Clips(LightningDataModule):
    """Ten clips, in batches of three that cut across videos."""

    def __init__(self, clips):
        super().__init__()
        self.clips, self.all = clips, batch(10)

    def evaluation_batches(self, split):
        for at in range(0, 10, 3):
            yield {name: x[at : at + 3] for name, x in self.all.items()}


def test_one_clip_of_each_video_is_remembered():
    for clips, expected in ((1, range(6)), (2, range(0, 10, 2)), (4, range(0, 10, 4)), (5, (0, 5))):
        module, data = make().eval(), Clips(clips)
        module.fill(data)
        rows = torch.tensor(list(expected))
        assert module.known.tolist() == [True] * len(rows) + [False] * (6 - len(rows))
        torch.testing.assert_close(module.known_looks[: len(rows)], looks(data.all["video"][rows, :, 0] / 255))
