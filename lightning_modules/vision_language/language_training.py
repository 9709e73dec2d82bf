"""Trains a small language model on texts about pictures that it never sees.

Read `CaptionLanguage.surprise` first; `LanguageTraining` is what it has in common with other trainings on texts. What
is seen later is to be told in sentences that the model knows already, as a published one would. A published model is
kept as it is (`epochs: 0`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn

from lightning_modules.base import PaperModule, decay_groups
from lightning_modules.datamodules.illustrated import IGNORED, IllustratedTexts
from lightning_modules.layers.exported import Exported
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.training import TokensRecipe
from lightning_modules.vision_language.causal import Language, LanguageSettings, make_causal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class ExportedLanguage(Exported):
    """A language model of `transformers`, with its tokenizer; it reads no pictures.

    Attributes:
        tokenizer: of `transformers`.
    """

    statistics: tuple[tuple, tuple] = ((), ())
    tokenizer: "PreTrainedTokenizerBase"


class LanguageTraining(PaperModule):
    """A language model that is trained on texts; a published one is kept as it is (`epochs: 0`) and exports nothing.

    Args:
        language: the model.
        published: whether it is a published one.
    """

    recipe_form = TokensRecipe

    def __init__(self, language: Language, *, published: bool):
        super().__init__()
        self.language, self.published = language, published

    def forward(self, token_ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocabulary"]:
        """Logits of the token after each."""
        return self.language(token_ids)

    def check_length(self, length: int) -> None:
        """Refuse texts (`data.length`) that are longer than the model's positions.

        Raises:
            ValueError: see above.
        """
        self.language.check_length(length, f"data.length is {length}, set it to {self.language.positions} at most")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Cross-entropy of each token after those before it."""
        found = self.surprise(batch)
        self.log_terms({f"train/{name}": value for name, value in found.items()})
        return found["loss"]

    def surprise(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """The `loss`, and what else is to be watched."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict]:
        """Matrices are decayed, factors of norms are not."""
        return decay_groups(self.language.named_parameters())

    @torch.no_grad()
    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """What `told` gives; of a published model a mark alone."""
        if self.published:
            return {"published": torch.ones(1)}
        self.to(device).eval()
        return self.told(data)

    def told(self, data: LightningDataModule) -> dict[str, Tensor]:
        """Arrays on the evaluation splits."""
        raise NotImplementedError

    def export(self) -> dict[str, Tensor]:
        """The weights of a model of our own, `language.*`; of a published one a mark, for it is loaded by its name."""
        if self.published:
            return {"published": torch.ones(1)}
        return {f"language.{name}": x for name, x in self.language.state_dict().items()}

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
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

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The layers."""
        return self.language.layers


class CaptionLanguage(LanguageTraining):
    """A causal language model that is trained on captions and on questions with answers, without pictures.

    Args:
        language: arguments of `causal.make_causal`.
    """

    def __init__(self, *, language: LanguageSettings):
        super().__init__(make_causal(**language), published=language.get("hub") is not None)

    def check_data(self, data: LightningDataModule) -> None:
        """Tell the texts whose ids they consist of.

        Raises:
            ValueError: the data are no such texts, or padded on the left, or longer than the model's positions.
        """
        if not isinstance(data, IllustratedTexts) or data.padding != "right":
            raise ValueError("data must be datamodules.illustrated.IllustratedTexts with padding: right.")
        self.check_length(data.length)
        data.for_models(self.language)

    def surprise(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """The mean cross-entropy of all tokens, and of those of answers alone."""
        token_ids, there = batch["token_ids"], batch["attention_mask"][:, 1:]
        logits = self(token_ids)[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), token_ids[:, 1:], reduction="none")
        answers = batch["labels"][:, 1:] != IGNORED
        return {
            "loss": (losses * there).sum() / there.sum().clamp_min(1),
            "answers": (losses * answers).sum() / answers.sum().clamp_min(1),
        }

    def validate(self, data: IllustratedTexts, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The mean cross-entropy of captions."""
        return mean_over(_texts_first(batches), self.surprise)

    def told(self, data: IllustratedTexts) -> dict[str, Tensor]:
        """The mean cross-entropy of each caption (`caption`), and of each picture's first answer (`question`)."""
        kinds = ("caption", "question") if data.questions else ("caption",)
        return {
            kind: torch.cat([self._each(batch) for split in judged(data.columns)
                             for batch in data.evaluation_batches(split, kind)])
            for kind in kinds
        }  # fmt: skip

    def _each(self, batch: dict[str, Tensor]) -> Float[Tensor, " batch"]:
        token_ids, labels = batch["token_ids"].to(self.device), batch["labels"][:, 1:].to(self.device)
        losses = F.cross_entropy(
            self(token_ids)[:, :-1].transpose(1, 2), labels, reduction="none", ignore_index=IGNORED
        )
        return (losses.sum(1) / (labels != IGNORED).sum(1).clamp_min(1)).cpu()

    def facts(self) -> dict:
        """Size and vocabulary."""
        return {"parameters": count_parameters(self.language), "tokens": len(self.language.tokenizer)}


def _texts_first(batches: Iterable[dict[str, Tensor]]) -> Iterable[dict[str, Tensor]]:
    """Batches without their pictures."""
    for batch in batches:
        yield {name: batch[name] for name in ("token_ids", "attention_mask", "labels")}
