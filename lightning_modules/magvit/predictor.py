"""Answers about a user's videos: how a generator goes on from a part of one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lightning_modules.magvit.module import Magvit
from lightning_modules.predictors import Predictor
from lightning_modules.video_tokens.predictor import clip_of, shown
from lightning_modules.video_tokens.tasks import TASKS


class Continuer(Predictor):
    """What a generator makes of the part of a video that each task gives: it continues, fills in, or draws around.

    Args:
        module: a trained generator.
        record: not needed.
    """

    def __init__(self, module: Magvit, record: dict | None = None):
        self.module = module.eval()

    def answer(self, path: str | Path, top: int = 3) -> Iterator[dict[str, Any]]:
        """What the generator makes of what each of its tasks gives; of tasks that tell the class, for each class.

        An answer has `task`, `tokens` (t, h, w), `video` and its `frames` side by side.

        Raises:
            ValueError: the file cannot be read.
        """
        module, truth = self.module, clip_of(Path(path), self.module.tokenizer)
        for name in module.tasks:
            task = TASKS[name]
            for label in range(module.classes if task.with_class else 1):
                with torch.inference_mode():
                    tokens = module.generate(truth, torch.tensor([label]), name)
                    drawn = shown(module.drawn(tokens))
                row = f"{name}-{label}" if task.with_class else name
                yield {"row": row, "task": task.title, "tokens": tokens.view(module.tokenizer.grid).numpy(), **drawn}
