"""A trained VLoRA is asked the questions of a benchmark: nothing is trained, and answers are scored (`benchmarks`)."""

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from lightning_modules.datamodules.illustrated import IllustratedTexts
from lightning_modules.datasets import storage
from lightning_modules.validation import judged
from lightning_modules.vision_language.told import encoded
from lightning_modules.vlora.module import VLoRA


class Answering(VLoRA):
    """A VLoRA that answers the questions of a table; its arguments are those of the arm in `from`."""

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse data that are no questions of a benchmark, and what a VLoRA refuses.

        Raises:
            ValueError: see above.
        """
        of_texts = isinstance(data, IllustratedTexts)
        if of_texts and "table" not in (there := storage.card(data.folder)["columns"]):
            raise ValueError(
                f"{data.folder} has the columns {', '.join(there)}, expected a table of a benchmark: prepare it with "
                "datasets.question_tables."
            )
        super().check_data(data)

    @torch.no_grad()
    def predictions(self, data: IllustratedTexts, device: torch.device) -> dict[str, Tensor]:
        """`answer/written` and `answer/table`, a row of the benchmark in JSON; UTF-8 with zeros behind."""
        self.to(device).eval()
        (split,) = judged(data.columns)
        rows = data.columns[split]
        prompts = [self.prompt(question) for (question,) in rows["questions"]]
        written = self._written(data, split, torch.arange(len(prompts)), prompts)
        return {
            "answer/written": torch.from_numpy(encoded(written)),
            "answer/table": torch.from_numpy(encoded(rows["table"])),
        }
