"""MM-GEM: Multi-Modal Generative Embedding Model (Ma, Xue et al., 2024, 2405.19333).

One causal language model embeds texts, at a token [EMB] behind them, and writes captions, behind a few visual tokens.
PoolAggregator pools these tokens, and the vector of a picture or a region, from the same feature map.

Read `MmGem.training_step` first, then `network.py` and `pool.py`. No official code is published; what is our choice
says `facts.yaml`.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pytorch_lightning import LightningDataModule
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import PaperModule, decay_groups
from lightning_modules.datamodules.illustrated import IGNORED, Columns, IllustratedTexts
from lightning_modules.datasets.squares import Fit
from lightning_modules.layers.published import load_strictly
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.mm_gem.caching import cached
from lightning_modules.mm_gem.classes import class_vectors, prompts_about
from lightning_modules.mm_gem.exporting import READS, with_token
from lightning_modules.mm_gem.network import Generative, Projection
from lightning_modules.mm_gem.objectives import paired_nce, text_keys
from lightning_modules.mm_gem.pool import PoolSettings
from lightning_modules.mm_gem.writing import write
from lightning_modules.settings import STRICT, Count, NonNegative, Positive
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.training import SHOWN, TokensRecipe
from lightning_modules.vision_language.causal import LanguageSettings, make_causal
from lightning_modules.vision_language.language_training import ExportedLanguage
from lightning_modules.vision_language.told import encoded
from lightning_modules.vision_language.towers import TowerSettings, make_tower

WORLD = ("color", "shape", "size", "cell")  # what labels the things of a picture
CLASSES = ("color", "shape")  # of a thing that are told from texts alone
AT_ONCE = 256  # texts that are read together
ROWS = ("language.model.model.embed_tokens.weight", "language.model.lm_head.weight")  # of our own language model


class Weights(TypedDict):
    """Of the two objectives; one that is 0 is not computed."""

    __pydantic_config__ = STRICT
    embedding: NonNegative
    generation: NonNegative


class Parts(TypedDict):
    """Rows of a micro-batch of each objective; null for the whole batch at once."""

    __pydantic_config__ = STRICT
    embedding: Count | None
    generation: Count | None


class Recipe(TokensRecipe):
    """Rates of what was trained before, in units of `lr`, which is that of the new layers."""

    language_rate: Positive
    tower_rate: Positive


class MmGem(PaperModule):
    """A language model and a vision tower, joined.

    Args:
        language: arguments of `make_causal`, as in the arm named by `from`.
        tower: arguments of `make_tower`, likewise.
        pool: see `Generative`, as `embedding_dim`, `projection`, `text_limit`, `temperature` and `max_scale`.
        train_tower: whether the vision tower learns; the paper's second stage is ours with false.
        losses: see `Weights`.
        parts: see `Parts`.
        most: tokens of a caption.
        beams: texts that are followed in writing.

    Raises:
        ValueError: both objectives have weight 0.
    """

    recipe_form = Recipe
    predictor = "lightning_modules.mm_gem.predictor.Describer"

    def __init__(
        self,
        *,
        language: LanguageSettings,
        tower: TowerSettings,
        pool: PoolSettings,
        embedding_dim: Count,
        projection: Projection = "mlp",
        text_limit: Count | None = None,
        temperature: Positive = 0.07,
        max_scale: Positive = 100.0,
        train_tower: bool,
        losses: Weights,
        parts: Parts,
        most: Count = 24,
        beams: Count = 1,
    ):
        super().__init__()
        if not any(losses.values()):
            raise ValueError("model.losses are 0 both, so that nothing would be learnt: give one a weight.")
        self.network = Generative(
            make_causal(**language), make_tower(**tower), pool=pool, embedding_dim=embedding_dim,
            projection=projection, text_limit=text_limit, temperature=temperature, max_scale=max_scale,
        )  # fmt: skip
        self.own = {"language": not language.get("hub"), "tower": not tower.get("hub")}
        self.given = not any(self.own.values())
        self.network.tower.requires_grad_(False)
        if train_tower:
            self.network.tower.unfreeze()
        self.network.learn(embedding=bool(losses["embedding"]), generation=bool(losses["generation"]))
        self.losses, self.parts, self.most, self.beams = losses, parts, most, beams

    @property
    def fit(self) -> Fit:
        """How the tower makes a picture square."""
        return self.network.tower.fit

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the language model and the tower that are not of the hub; of another MM-GEM all that it learned.

        Raises:
            ValueError: one is missing, or of another architecture.
        """
        if any(name.startswith("network.") for name in weights):
            self.load_export(weights)
            return
        for name in (name for name, ours in self.own.items() if ours):
            own = {key: x for key, x in weights.items() if key.startswith(f"{name}.")}
            own |= {key: torch.cat([own[key], own[key].mean(0, keepdim=True)]) for key in ROWS if key in own}
            own = {key.removeprefix(f"{name}."): x for key, x in own.items()}
            load_strictly(getattr(self.network, name), own, f"the {name} of the arm in `from`")
        self.given = True

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `export` gave."""
        super().load_export(weights)
        self.given = True

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse networks that no arm has given, questions, and texts that the language model has no place for.

        Tells the texts whose ids they consist of.

        Raises:
            ValueError: see above.
        """
        if not isinstance(data, IllustratedTexts):
            raise ValueError(f"data are {type(data).__name__}, expected datamodules.illustrated.IllustratedTexts.")
        if not self.given:
            raise ValueError(
                "the language model or the tower has no weights: name the arm that has them with `from` in the plan, "
                "or published models with language.hub and tower.hub."
            )
        if data.padding != "right" or data.questions or data.text_only or data.form["caption"]:
            raise ValueError(
                f"data.padding is {data.padding!r}, questions {data.questions}, text_only {data.text_only} and "
                f"form.caption {data.form['caption']!r}: captions are learnt here: set right, 0, 0 and ''."
            )
        language, tokens = self.network.language, self.network.pool.tokens
        most = language.positions - tokens
        language.check_length(
            tokens + data.length,
            f"data.length is {data.length} behind {tokens} visual tokens, set it to {most} at most",
        )
        tokens += len(language.start)
        if self.losses["generation"]:
            language.check_length(
                tokens + self.most,
                f"model.most is {self.most} behind {tokens} tokens of a picture and the start, set it to "
                f"{max(0, language.positions - tokens)} at most",
            )
        data.for_models(self.network.language, self.fit)
        if self.losses["embedding"] and self.network.text_limit is None and data.told:
            self._check_texts(data)

    def _check_texts(self, data: IllustratedTexts) -> None:
        """Refuse captions of the split that is judged that are longer than what is read: before, not after training.

        Raises:
            ValueError: see above.
        """
        (split,) = judged(data.columns)
        language, about = self.network.language, len(self.network.language.start) + 1  # and [EMB]
        longest = max(len(language.encode(text)) for each in told(data.columns[split]) for text in each)
        if about + longest > language.positions:
            raise ValueError(
                f"a caption of data.splits.{split} has {longest} tokens, but the language model has positions for "
                f"{language.positions - about}: set model.text_limit to that at most, so that longer ones are cut."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """L = L_Emb + L_Gen, each with its weight, of pictures and of regions alike."""
        terms = self.terms(batch)
        self.log_terms({f"pretrain/{name}": term for name, term in terms.items()})
        return sum(self.losses[name] * term for name, term in terms.items())

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Hold the temperature within its bound, as CLIP's is held: the parameter itself, so that it can come back."""
        self.network.hold_scale()

    def terms(self, batch: Mapping[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """The losses that have a weight. Without micro-batches, the tower looks once for both."""
        shown = batch["images"], batch["box"]
        if all(self.losses.values()) and not any(self.parts.values()):
            shown = (self.network.tokens(*shown),)
        objectives = {"embedding": self.embedding_loss, "generation": self.generation_loss}
        return {name: objective(shown, batch) for name, objective in objectives.items() if self.losses[name]}

    def embedding_loss(self, shown: tuple[Tensor, ...], batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Pictures against texts, which are embedded without their pictures; the batch's are all negatives.

        Args:
            shown: pictures and boxes, or the tokens that were pooled from them.
            batch: see `IllustratedTexts`.
        """
        text = batch["token_ids"], batch["attention_mask"]
        vectors = cached(self._vectors, self.parts["embedding"], *text, *shown)
        ids, there, _ = self.network.ended(*text)
        return paired_nce(*vectors, self.network.scale, text_keys(ids, there))

    def _vectors(self, token_ids: Tensor, there: Tensor, *shown: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.picture_vectors(self._pooled(*shown)), self.network.text_vectors(token_ids, there)

    def generation_loss(self, shown: tuple[Tensor, ...], batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Cross-entropy of the words of captions, the mean of all.

        Args:
            shown: pictures and boxes, or the tokens that were pooled from them.
            batch: see `IllustratedTexts`.
        """
        text = (batch[name] for name in ("token_ids", "attention_mask", "labels"))
        (losses,) = cached(self._surprise, self.parts["generation"], *text, *shown)
        return losses.sum() / (batch["labels"] != IGNORED).sum()

    def _surprise(self, token_ids: Tensor, there: Tensor, labels: Tensor, *shown: Tensor) -> tuple[Tensor]:
        return (self.network.caption_loss(self._pooled(*shown), token_ids, there, labels),)

    def _pooled(self, shown: Tensor, boxes: Tensor | None = None) -> Tensor:
        return shown if boxes is None else self.network.tokens(shown, boxes)

    def parameter_groups(self) -> list[dict]:
        """Matrices are decayed; vectors and the temperature are not. What was trained before has rates of its own."""
        parts = {"network.language.": self.recipe["language_rate"], "network.tower.": self.recipe["tower_rate"]}
        own = [(name, p) for name, p in self.named_parameters() if not name.startswith(tuple(parts))]
        groups = decay_groups(own, undecayed=["network.log_scale"])
        for start, rate in parts.items():
            part = [(name, p) for name, p in self.named_parameters() if name.startswith(start)]
            groups += decay_groups(part, lr=rate * self.recipe["lr"])
        return groups

    def validate(self, data: IllustratedTexts, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses that have a weight."""
        return mean_over(batches, self.terms)

    @torch.no_grad()
    def embed_pictures(
        self, images: Shaped[Tensor, "batch 3 h w"], boxes: Float[Tensor, "batch 4"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Vectors of length 1 of stored pictures, or of a box of each, in shares of the square."""
        return self.network.picture_vectors(self.network.tokens(images.to(self.device), boxes))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Vectors of length 1 of texts.

        Raises:
            ValueError: a text is longer than the language model reads.
        """
        language = self.network.language
        rows = [[*language.start, *language.encode(text)] for text in texts]
        width = max(map(len, rows))
        if self.network.text_limit is None:
            language.check_length(width + 1, "shorten the text")
        token_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.device)
        there = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows], device=self.device)
        return self.network.text_vectors(token_ids, there)

    @torch.no_grad()
    def caption(
        self, images: Shaped[Tensor, "batch 3 h w"], boxes: Float[Tensor, "batch 4"] | None = None
    ) -> list[str]:
        """What is written about stored pictures, or about a box of each.

        Raises:
            ValueError: the language model has no place for it.
        """
        return self._texts(self.network.tokens(images.to(self.device), boxes))

    def _texts(self, tokens: Float[Tensor, "batch tokens dim"]) -> list[str]:
        prefix = self.network.to_language(tokens)
        return write(self.network.language, prefix, length=self.most, beams=self.beams, never=[self.network.embed_id])

    def forward(self, images: Shaped[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
        """Vectors of stored pictures."""
        return self.embed_pictures(images)

    @torch.no_grad()
    def predictions(self, data: IllustratedTexts, device: torch.device) -> dict[str, Tensor]:
        """Vectors and captions of the split that is judged; texts are UTF-8 with zeros behind.

        Of whole pictures, where the data set tells them, `picture_features`, `text_features` of all captions with
        `text_rows`, `written`, `captions` (rows captions bytes); of the regions `region_features`, `region_written`,
        `region_captions`, `region_rows`, `region_boxes` (shares of the squares), `region_cells`; labels of the world,
        and `class_features/<attribute>`, vectors of its values by several prompts; `shown/images`, the first pictures,
        uint8 (n h w 3). What an arm has no objective for is left out.
        """
        self.to(device).eval()
        (split,) = judged(data.columns)
        columns = data.columns[split]
        found = self._pictures(data, split) if data.told else {}
        found["shown/images"] = (
            data.images(split, torch.arange(min(SHOWN, len(columns["images"])))).permute(0, 2, 3, 1).contiguous()
        )
        if "regions" in columns:
            found |= self._regions(data, split)
        return found | {name: columns[name] for name in WORLD if name in columns}

    def _pictures(self, data: IllustratedTexts, split: str) -> dict[str, Tensor]:
        columns = data.columns[split]
        rows = torch.arange(len(columns["images"]))
        captions = told(columns)
        texts = [(row, text) for row, each in enumerate(captions) for text in each]
        found = self._looked_at(data, split, rows, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(rows), 4))
        found["captions"] = padded([as_bytes(each) for each in captions])
        if self.losses["embedding"]:
            parts = [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]
            found["text_features"] = torch.cat([self.embed_texts([text for _, text in part]).cpu() for part in parts])
            found["text_rows"] = torch.tensor([row for row, _ in texts])
        return found

    def _regions(self, data: IllustratedTexts, split: str) -> dict[str, Tensor]:
        columns = data.columns[split]
        numbers = [(row, n) for row, each in enumerate(columns["regions"]) for n in range(len(each))]
        boxes = torch.tensor([data.on_square(split, row, columns["boxes"][row][n]) for row, n in numbers])
        places, within = torch.tensor(numbers).T.contiguous()
        names = {"picture_features": "region_features", "written": "region_written"}
        found = {names[name]: x for name, x in self._looked_at(data, split, places, boxes).items()}
        found["region_captions"] = as_bytes([columns["regions"][row][n] for row, n in numbers])
        found["region_rows"], found["region_boxes"] = places, boxes
        if "cell" in columns:
            found["region_cells"] = columns["cell"][places, within]
            if self.losses["embedding"]:
                found |= {f"class_features/{name}": self._classes(name) for name in CLASSES}
        return found

    def _classes(self, name: str) -> Float[Tensor, "classes dim"]:
        return class_vectors(self.embed_texts, prompts_about(name)).cpu()

    def _looked_at(
        self, data: IllustratedTexts, split: str, rows: Int[Tensor, " rows"], boxes: Float[Tensor, "rows 4"]
    ) -> dict[str, Tensor]:
        vectors, texts = [], []
        for start in range(0, len(rows), data.evaluation_batch_size):
            part = slice(start, start + data.evaluation_batch_size)
            pictures, own = rows[part].unique(return_inverse=True)  # a picture is looked at once for all its regions
            features = self.network.tower.features(data.images(split, pictures).to(self.device))
            tokens = self.network.pool(features[own.to(self.device)], boxes[part].to(self.device))
            vectors += [self.network.picture_vectors(tokens).cpu()] if self.losses["embedding"] else []
            texts += self._texts(tokens) if self.losses["generation"] else []
        found = {"picture_features": torch.cat(vectors)} if vectors else {}
        return found | ({"written": as_bytes(texts)} if texts else {})

    def to_transformers(self) -> ExportedLanguage:
        """The language model, with [EMB] as a token of its tokenizer.

        The tower, PoolAggregator and the projections have no place there: the last hidden state at [EMB] is what
        `network.text_to_vector` makes a vector of.
        """
        model, tokenizer = with_token(self.network.language, self.network.embed_id)
        usage = READS if self.losses["embedding"] else "logits = model(token_ids).logits"
        return ExportedLanguage(model=model, tokenizer=tokenizer, usage=usage)

    def facts(self) -> dict:
        """Sizes, and what two language models, one for each objective, would take."""
        language, parameters = count_parameters(self.network.language), count_parameters(self.network)
        return {
            "parameters": parameters,
            "parameters_of_two_models": parameters + language,
            "visual_tokens": self.network.pool.tokens,
        }


def told(columns: Columns) -> list[Sequence[str]]:
    """The captions of each picture."""
    return list(columns["captions"]) if "captions" in columns else [[text] for text in columns["caption"]]


def as_bytes(texts: Sequence[str]) -> Shaped[Tensor, "texts bytes"]:
    """Texts as UTF-8 with zeros behind."""
    return torch.from_numpy(encoded(texts))


def padded(rows: Sequence[Shaped[Tensor, "_ _"]]) -> Shaped[Tensor, "rows texts bytes"]:
    """Texts of several rows as one array, with zeros behind and for texts that a row does not have."""
    count, longest = (max(x.shape[axis] for x in rows) for axis in (0, 1))
    return torch.stack([F.pad(x, (0, longest - x.shape[1], 0, count - len(x))) for x in rows])
