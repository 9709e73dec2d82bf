"""Trains a small language model on text alone, and shows on texts whether it learns in context.

Read `SpaeLanguage.training_step` first, then `text_tasks`: before the model is asked about pictures, it has to tell two
classes of texts apart whose words and labels never stood together in training, and whose labels were no labels there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import PaperModule, decay_groups
from lightning_modules.layers.exported import Exported
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import STRICT, Count, NonNegative
from lightning_modules.spae.documents import IGNORED, Texts, Writer, held_out_episodes
from lightning_modules.spae.language import make_language
from lightning_modules.spae.prompts import Prompts, StyleName, continued, masked
from lightning_modules.validation import mean_over
from lightning_modules.video_tokens.training import TokensRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASKS_SEED = 0  # the tasks are the same for every seed of a training


class TextTasks(TypedDict):
    """The tasks on texts: so many episodes of each number of ways, shots and words that are kept of `input_words`."""

    __pydantic_config__ = STRICT
    episodes: Count
    ways: Annotated[list[Count], Field(min_length=1)]
    shots: Annotated[list[Count], Field(min_length=1)]
    input_words: Count
    kept: Annotated[list[Count], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class ExportedLanguage(Exported):
    """A language model of `transformers`, with its tokenizer; it reads no pictures.

    Attributes:
        tokenizer: of `transformers`.
    """

    statistics: tuple[tuple, tuple] = ((), ())
    tokenizer: "PreTrainedTokenizerBase"


class SpaeLanguage(PaperModule):
    """A language model that is trained on texts; a published one is kept as it is (`epochs: 0`) and exports nothing.

    Args:
        language: arguments of `make_language`.
        style: of prompts, a key of `prompts.STYLES`.
        answer_weight: of a word that follows from what stands before (a label, a copy), in the loss; any other has 1.
        tasks: see `TextTasks`.
    """

    recipe_form = TokensRecipe

    def __init__(self, *, language: dict, style: StyleName, answer_weight: NonNegative, tasks: TextTasks):
        super().__init__()
        self.language = make_language(**language)
        self.published = language.get("hub") is not None
        self.prompts = Prompts(self.language, style)
        self.answer_weight, self.tasks = answer_weight, tasks

    def forward(self, token_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocabulary"]:
        """Logits of the token after each."""
        return self.language(token_ids)

    def check_data(self, data: LightningDataModule) -> None:
        """Tell the texts whose ids they consist of.

        Raises:
            ValueError: the data are no texts, or a text is longer than the model's positions.
        """
        if not isinstance(data, Texts):
            raise ValueError(
                f"data are {type(data).__name__}, expected spae.documents.Texts: the model learns from text."
            )
        self.language.check_length(
            data.length, f"data.length is {data.length}, set it to {self.language.positions} at most"
        )
        data.for_language(self.language)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Cross-entropy of each token after those before it."""
        found = self.surprise(batch)
        self.log_terms({f"train/{name}": value for name, value in found.items()})
        return found["loss"]

    def surprise(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """The loss, and the mean cross-entropy of what can be known."""
        token_ids, answers = batch["token_ids"], batch["answers"][:, 1:].float()
        logits = self(token_ids)[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), token_ids[:, 1:], reduction="none")
        weights = (1 + (self.answer_weight - 1) * answers) * (token_ids[:, 1:] != IGNORED)
        answered = (losses * answers).sum() / answers.sum().clamp_min(1)
        return {"loss": (losses * weights).sum() / weights.sum(), "answers": answered}

    def parameter_groups(self) -> list[dict]:
        """Matrices are decayed, factors of norms are not."""
        return decay_groups(self.language.named_parameters())

    def validate(self, data: Texts, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss on texts with captions of the split val, and the share of right labels in tasks on texts."""
        found = mean_over(batches, self.surprise)
        right = text_tasks(self.prompts, data.writers["val"], self.tasks, seed=TASKS_SEED + 1)
        return found | {
            name.removesuffix("/masked"): x.double().mean() for name, x in right.items() if "masked" in name
        }

    @torch.no_grad()
    def predictions(self, data: Texts, device: torch.device) -> dict[str, Tensor]:
        """What it answers in tasks on texts, see `text_tasks`."""
        if self.published:
            return {"published": torch.ones(1)}
        few_shot = data.few_shot
        return text_tasks(self.prompts, Writer(self.prompts, few_shot), self.tasks, seed=TASKS_SEED)

    def export(self) -> dict[str, Tensor]:
        """The weights of a model of our own, `language.*`; of a published one a mark, for it is loaded by its name."""
        if self.published:
            return {"published": torch.ones(1)}
        return {f"language.{name}": x for name, x in self.language.state_dict().items()}

    def load_export(self, weights: dict[str, Tensor]) -> None:
        """Take over what `export` gave."""
        if not self.published:
            super().load_export(weights)

    def to_transformers(self) -> ExportedLanguage:
        """The language model and its tokenizer.

        Raises:
            ValueError: it is a published one, which was not trained here.
        """
        if self.published:
            raise ValueError("its language model is a published one, as it is: load it by the name in language.hub")
        return ExportedLanguage(
            model=self.language.whole, usage="logits = model(token_ids).logits", tokenizer=self.language.tokenizer
        )

    def facts(self) -> dict:
        """Size and vocabulary."""
        return {"parameters": count_parameters(self.language), "words": len(self.language.whole_words()[1])}

    def compiled_parts(self) -> Iterable[torch.nn.Module]:
        """The layers."""
        return self.language.layers


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
