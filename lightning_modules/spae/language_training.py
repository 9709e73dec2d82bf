"""Trains a small language model on text alone, and shows on texts whether it learns in context.

Read `SpaeLanguage.training_step` first, then `text_tasks`: before the model is asked about pictures, it has to tell two
classes of texts apart whose words and labels never stood together in training, and whose labels were no labels there.
"""

from collections.abc import Iterable
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import STRICT, Count, NonNegative
from lightning_modules.spae.documents import IGNORED, Texts, Writer, check_drawn, held_out_episodes
from lightning_modules.spae.language import LanguageSettings, make_language
from lightning_modules.spae.prompts import Prompts, StyleName, continued, masked
from lightning_modules.validation import mean_over
from lightning_modules.vision_language.language_training import LanguageTraining

TASKS_SEED = 0  # the tasks are the same for every seed of a training


class TextTasks(TypedDict):
    """The tasks on texts: so many episodes of each number of ways, shots and words that are kept of `input_words`."""

    __pydantic_config__ = STRICT
    episodes: Count
    ways: Annotated[list[Count], Field(min_length=1)]
    shots: Annotated[list[Count], Field(min_length=1)]
    input_words: Count
    kept: Annotated[list[Count], Field(min_length=1)]


class SpaeLanguage(LanguageTraining):
    """A language model that is trained on texts, and asked in tasks on texts.

    Args:
        language: arguments of `make_language`.
        style: of prompts, a key of `prompts.STYLES`.
        answer_weight: of a word that follows from what stands before (a label, a copy), in the loss; any other has 1.
        tasks: see `TextTasks`.

    Raises:
        ValueError: see `check_tasks`.
    """

    def __init__(self, *, language: LanguageSettings, style: StyleName, answer_weight: NonNegative, tasks: TextTasks):
        super().__init__(make_language(**language), published=language.get("hub") is not None)
        self.prompts = Prompts(self.language, style)
        self.answer_weight, self.tasks = answer_weight, tasks
        check_tasks(tasks, self.prompts, "tasks")

    def check_data(self, data: LightningDataModule) -> None:
        """Tell the texts whose ids they consist of.

        Raises:
            ValueError: the data are no texts, or a text is longer than the model's positions.
        """
        if not isinstance(data, Texts):
            raise ValueError(
                f"data are {type(data).__name__}, expected spae.documents.Texts: the model learns from text."
            )
        self.check_length(data.length)
        data.for_language(self.language)

    def surprise(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """The loss, and the mean cross-entropy of what can be known."""
        token_ids, answers = batch["token_ids"], batch["answers"][:, 1:].float()
        logits = self(token_ids)[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), token_ids[:, 1:], reduction="none")
        weights = (1 + (self.answer_weight - 1) * answers) * (token_ids[:, 1:] != IGNORED)
        answered = (losses * answers).sum() / answers.sum().clamp_min(1)
        return {"loss": (losses * weights).sum() / weights.sum(), "answers": answered}

    def validate(self, data: Texts, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss on texts with captions of the split val, and the share of right labels in tasks on texts."""
        found = mean_over(batches, self.surprise)
        right = text_tasks(self.prompts, data.writers["val"], self.tasks, seed=TASKS_SEED + 1)
        return found | {
            name.removesuffix("/masked"): x.double().mean() for name, x in right.items() if "masked" in name
        }

    def told(self, data: Texts) -> dict[str, Tensor]:
        """What it answers in tasks on texts, see `text_tasks`."""
        return text_tasks(self.prompts, Writer(self.prompts, data.few_shot), self.tasks, seed=TASKS_SEED)

    def facts(self) -> dict:
        """Size and vocabulary."""
        return {"parameters": count_parameters(self.language), "words": len(self.language.whole_words()[1])}


def check_tasks(tasks: TextTasks, prompts: Prompts, where: str) -> None:
    """Refuse tasks on texts that a language model has too few words for, or too few positions.

    Args:
        tasks: see `TextTasks`.
        prompts: of the model.
        where: the name of these settings.

    Raises:
        ValueError: more words are kept than an input has, or there are too few words, or labels kept out of training,
            or a task is longer than the model's positions.
    """
    if (kept := max(tasks["kept"])) > tasks["input_words"]:
        raise ValueError(
            f"{where}.kept has {kept}, but {where}.input_words is {tasks['input_words']}: keep that many at most."
        )
    ways, words = max(tasks["ways"]), [0] * tasks["input_words"]
    check_drawn(prompts.language, ways=ways, input_words=len(words), where=where)
    labels = [[0]] * ways
    longest = prompts.few_shot([(words, label) for label in labels] * max(tasks["shots"]), words, labels)
    prompts.language.check_length(len(longest) + 1, f"set {where}.ways, shots or input_words to less")


@torch.no_grad()
def text_tasks(prompts: Prompts, writer: Writer, tasks: TextTasks, *, seed: int) -> dict[str, Tensor]:
    """Which tasks on texts are answered rightly.

    Args:
        prompts: of the model.
        writer: of the tasks.
        tasks: see `TextTasks`.
        seed: of the tasks.

    Returns:
        For each number of ways, shots and kept words, `text/<ways>_way_<shots>_shot_<kept>_kept/masked`, bool
        (episodes,): whether the right label is the likeliest of all labels of the task; `.../exact`, whether it is that
        of the whole vocabulary.
    """
    found = {}
    for ways in tasks["ways"]:
        for shots in tasks["shots"]:
            for kept in tasks["kept"]:
                episodes = held_out_episodes(
                    writer, tasks["episodes"], seed=seed, ways=ways, shots=shots, size=tasks["input_words"], kept=kept,
                    induced=True,
                )  # fmt: skip
                asked, labels, answers = zip(*episodes, strict=True)
                names = [[[label] for label in each] for each in labels]
                answers = torch.tensor(answers)
                right = torch.tensor(labels).gather(1, answers[:, None])
                name = f"text/{ways}_way_{shots}_shot_{kept}_kept"
                found[f"{name}/masked"] = masked(prompts.language, asked, names) == answers
                found[f"{name}/exact"] = (continued(prompts.language, asked, 1) == right)[:, 0]
    return found
