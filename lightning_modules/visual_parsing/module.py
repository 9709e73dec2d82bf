"""Probing Inter-modality: Visual Parsing with Self-Attention for Vision-Language Pre-training (2106.13488).

A vision Transformer parses a picture: each of its tokens is a mixture of related ones, and its attention says which.
These visual weights choose what is masked: a token, and those that it attends to most, so that their features have to
be predicted from the words. How much words and picture then attend to each other is the paper's second subject, inter-
modality flow (`metrics/modality_flow.py`).

Read `VisualParsing.training_step` first, then `masking.py`, `parsing.py` and `network.py`. No code is published;
`facts.yaml` says which choices are ours.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import AnyRecipe, Momentum, PaperModule, decay_groups
from lightning_modules.layers.bert import NO_LABEL, mask_words, masked_word_loss
from lightning_modules.layers.exported import Exported
from lightning_modules.layers.forms import BertPart, PixelSettings
from lightning_modules.layers.published import load_strictly
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.modality_flow import side_by_side, watching
from lightning_modules.settings import STRICT, Count, Natural, NonNegative, Positive, Share
from lightning_modules.tasks.augmentation import Preprocess
from lightning_modules.validation import judged, untouched
from lightning_modules.visual_parsing.exporting import exported
from lightning_modules.visual_parsing.masking import How, VisualMasking, choose, neighbours
from lightning_modules.visual_parsing.network import Fused, Network, targets, visible
from lightning_modules.visual_parsing.parsing import Parsed, VisualSettings

SHOWN = 8  # pictures for the page
UNMATCHED = 1  # label of a text that belongs to another picture; 0 for one of its own
Batch = Mapping[str, Tensor]
Text = Literal["own", "other", "hidden"]  # that of the picture, that of another one, and one whose words are all masked
TEXTS: tuple[Text, ...] = ("own", "other", "hidden")


class Weights(TypedDict):
    """Of the losses: masked words, whether text and picture belong together, and masked features."""

    __pydantic_config__ = STRICT
    words: NonNegative
    matching: NonNegative
    features: NonNegative


class Recipe(AnyRecipe):
    """AdamW; `visual_lr` is what the rate is multiplied by for the visual encoder; `clip` the largest norm or null."""

    optimizer: Literal["adamw"]
    betas: Annotated[list[Momentum], Field(min_length=2, max_length=2)]
    schedule: str
    milestones: NotRequired[list[Share]]
    decay: NotRequired[Share]
    visual_lr: NonNegative
    clip: Positive | None


class Shown(NamedTuple):
    """What the multimodal Transformer is shown of a batch, and what it is asked.

    Attributes:
        token_ids: with mask tokens.
        whole: without.
        attention_mask: false for padding.
        labels: the word at each place that is asked for, `NO_LABEL` elsewhere.
        matched: whether the text is that of the picture.
        parsed: visual tokens and weights.
        there: visual tokens that show a part of the picture.
        hidden: visual tokens that are masked.
    """

    token_ids: Int[Tensor, "batch length"]
    whole: Int[Tensor, "batch length"]
    attention_mask: Bool[Tensor, "batch length"]
    labels: Int[Tensor, "batch length"]
    matched: Bool[Tensor, " batch"]
    parsed: Parsed
    there: Bool[Tensor, "batch tokens"]
    hidden: Bool[Tensor, "batch tokens"]


class Reader(PaperModule):
    """A network that reads pictures with texts: what pre-training and the tasks after it have in common.

    Args: see `VisualParsing`.
    """

    recipe_form = Recipe

    def __init__(
        self,
        visual: VisualSettings,
        bert: BertPart,
        positions: int | None,
        position_deviation: float,
        feature_head: Literal["linear", "mlp"],
        preprocess: PixelSettings,
    ):
        super().__init__()
        parts = {"positions": positions, "position_deviation": position_deviation, "feature_head": feature_head}
        self.network = Network(visual=visual, bert=bert, **parts)
        self.preprocess = Preprocess(**preprocess)

    def read_by(self, data: LightningDataModule) -> None:
        """Refuse a tokenizer with other words than the network, and texts longer than its positions.

        Raises:
            ValueError: see above; both values are told.
        """
        config = self.network.bert.config
        if len(data.tokenizer) != config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(data.tokenizer)} ids, but the network {config.vocab_size} "
                "(model.bert.sizes.vocab_size): they must be equal."
            )
        if data.text_length > config.max_position_embeddings:
            raise ValueError(
                f"data.text_length is {data.text_length}, but the network has {config.max_position_embeddings} "
                "positions: make texts shorter."
            )

    def parameter_groups(self) -> list[dict]:
        """Matrices and embeddings are decayed; the visual encoder has a rate of its own."""
        rate = {"lr": self.recipe["lr"] * self.recipe["visual_lr"]}
        visual = [(name, x) for name, x in self.named_parameters() if name.startswith("network.visual.")]
        others = [(name, x) for name, x in self.named_parameters() if not name.startswith("network.visual.")]
        return decay_groups(visual, **rate) + decay_groups(others)

    def configure_gradient_clipping(self, optimizer: Optimizer, **_: object) -> None:
        """Keep the norm of the whole gradient within `clip`, where there is one."""
        if self.recipe["clip"] is not None:
            super().configure_gradient_clipping(optimizer)

    def touched(self) -> Float[Tensor, ""] | float:
        """Zero, where several processes train with a gradient of zero for every parameter, which each has to give."""
        if self._trainer is None or self.trainer.world_size == 1:
            return 0.0
        return 0.0 * sum(parameter.flatten()[0] for parameter in self.parameters() if parameter.requires_grad)

    def compiled_parts(self) -> Iterable[torch.nn.Module]:
        """The layers of the multimodal Transformer."""
        return self.network.bert.encoder.layer

    def to_transformers(self) -> Exported:
        """The visual parser as a Swin Transformer, see `exporting`."""
        return exported(self.network.visual, self.preprocess.statistics)

    def forward(self, images: Shaped[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Visual tokens of stored pixels, as words meet them: after the projection, row by row of their grid."""
        return self.network.visual_proj(self.network.parse(self.preprocess(images)).features)

    def parsed(self, batch: Batch) -> tuple[Parsed, Bool[Tensor, "batch tokens"]]:
        """Visual tokens of a batch of pictures, and which of them show a part of their picture."""
        parsed = self.network.parse(self.preprocess(batch["images"]))
        return parsed, visible(batch, parsed)


class VisualParsing(Reader):
    """See the head of this file.

    Args:
        visual: see `VisualSettings`.
        bert: see `BertPart`.
        positions: see `Network`, also for `position_deviation` and `feature_head`.
        preprocess: see `PixelSettings`.
        visual_masking: see `VisualMasking`.
        regression: `joint` masks words and features in one pass; `apart` masks features in a pass of their own, with
            whole texts, of which nothing reaches the visual encoder. A small encoder that learns from the regression
            soon writes all of a picture into every token, and then nothing has to be predicted from the words.
        word_masking: share of the words that are asked for.
        unmatched: probability that a picture gets the text of another one.
        pairs: `shuffled` gives every picture another's text before anything else: a control, from which nothing that
            joins both can be learnt.
        losses: see `Weights`.
        ranked: pictures that are searched by their captions in the evaluation, of the first ones; 0 for none.
        parts: most runs of so many pictures that are searched, one after the other; numbers are means over them.
        together: search all pictures of all parts at once, too.

    Raises:
        ValueError: masking is guided, but a CNN says nothing about which tokens belong together; or nothing is learnt.
    """

    predictor = "lightning_modules.visual_parsing.predictor.Captions"

    def __init__(
        self,
        *,
        visual: VisualSettings,
        bert: BertPart,
        positions: Count | None,
        position_deviation: Positive,
        feature_head: Literal["linear", "mlp"],
        preprocess: PixelSettings,
        visual_masking: VisualMasking,
        regression: Literal["joint", "apart"],
        word_masking: Share,
        unmatched: Share,
        pairs: Literal["matched", "shuffled"],
        losses: Weights,
        ranked: Natural,
        parts: Count,
        together: bool,
    ):
        super().__init__(visual, bert, positions, position_deviation, feature_head, preprocess)
        if visual["kind"] == "cnn" and visual_masking["how"] == "guided":
            raise ValueError(
                "model.visual_masking.how is guided, but model.visual.kind is cnn, which has no attention: set how to "
                "random or none."
            )
        if not any(losses.values()):
            raise ValueError(f"model.losses ({dict(losses)}) are all zero, expected one above 0.")
        self.visual_masking, self.word_masking, self.unmatched = visual_masking, word_masking, unmatched
        self.apart = regression == "apart"
        self.shuffled, self.losses = pairs == "shuffled", losses
        self.ranked, self.parts, self.together = ranked, parts, together
        self.words: dict[str, Any] = {}

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over all weights of another arm."""
        load_strictly(self, weights, "the pre-trained network")

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse data without captions, or with other words than the network.

        Raises:
            ValueError: see above.
        """
        if data.task != "caption":
            raise ValueError(f"data.task is {data.task!r}, but pre-training reads captions: set it to caption.")
        self.read_by(data)
        self._know(data)

    def _know(self, data: LightningDataModule) -> None:
        """Which words are never masked, and what stands for those that are."""
        tokenizer = data.tokenizer
        if tokenizer.mask_id is None:
            raise ValueError(f"the tokenizer {data.tokenizer_name} has no mask token: take one like BERT's.")
        special = (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id)
        self.words = {"special": special, "mask_id": tokenizer.mask_id, "vocabulary": len(tokenizer)}

    @property
    def regresses(self) -> bool:
        """Whether features are masked, and predicted."""
        return self.losses["features"] > 0 and self.visual_masking["how"] != "none"

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Float[Tensor, ""]:
        """Masked words, whether text and picture belong together, and masked features; see `regression` above."""
        shown = self.shown(batch)
        fused = self._fuse(shown)
        terms = self.terms(shown, fused)
        variance = fused.tokens.detach().float().var((0, 1)).mean()
        watched = {"feature_log_variance": variance.log(), "hidden_share": shown.hidden.float().mean()}
        self.log_terms({f"pretrain/{name}": value for name, value in (terms | watched).items()})
        return sum(self.losses[name] * term for name, term in terms.items()) + self.touched()

    def shown(self, batch: Batch) -> Shown:
        """Draw which texts are exchanged, which words and which visual tokens are masked.

        Raises:
            ValueError: a batch to learn from has too few rows for texts to be exchanged.
        """
        own, other = self._moves(len(batch["token_ids"]))
        asked = self.unmatched if self.losses["matching"] and other is not None else 0.0
        matched = torch.rand(len(batch["token_ids"]), device=batch["token_ids"].device) >= asked
        token_ids, attention_mask = (
            x.roll(own, 0) if matched.all() else torch.where(matched[:, None], x.roll(own, 0), x.roll(other, 0))
            for x in (batch["token_ids"], batch["attention_mask"])
        )
        whole, labels = token_ids, torch.full_like(token_ids, NO_LABEL)
        if self.losses["words"]:
            token_ids, labels = mask_words(token_ids, share=self.word_masking, **self.words)
            labels = labels.masked_fill(~matched[:, None], NO_LABEL)
        parsed, there = self.parsed(batch)
        hidden = self._hidden(parsed, there, self.visual_masking["how"] if self.regresses else "none")
        return Shown(token_ids, whole, attention_mask, labels, matched, parsed, there, hidden)

    def _moves(self, rows: int) -> tuple[int, int | None]:
        """By how many rows texts move to the pictures that they match, and to those that they do not.

        Neither move undoes the other: what does not match is never a picture's own text, nor that of its shuffled pair.
        The second is null where too few rows are judged.
        """
        needed = 1 + self.shuffled + bool(self.losses["matching"] and self.unmatched)
        if self.training and rows < needed:
            raise ValueError(
                f"a batch of one process has {rows} rows, but exchanging texts needs {needed}: raise data.batch_size, "
                "or lower devices or accumulate."
            )
        moves = (1 + torch.randperm(max(0, rows - 1))).tolist()
        own = moves.pop() if self.shuffled and moves else 0
        return own, moves.pop() if moves else None

    def _hidden(self, parsed: Parsed, there: Tensor, how: How) -> Bool[Tensor, "batch tokens"]:
        weights = None if parsed.weights is None else parsed.weights.detach()
        return choose({**self.visual_masking, "how": how}, weights, there)

    def _fuse(self, shown: Shown) -> Fused:
        hidden = None if self.apart else shown.hidden
        return self.network.fuse(shown.token_ids, shown.attention_mask, shown.parsed, shown.there, hidden)

    def terms(self, shown: Shown, fused: Fused) -> dict[str, Float[Tensor, ""]]:
        """The losses that have a weight. Words and features are asked for only where text and picture match."""
        found = {}
        if self.losses["words"]:
            asked = shown.labels != NO_LABEL
            found["words"] = masked_word_loss(self.network.word_logits(fused, asked).float(), shown.labels[asked])
        if self.losses["matching"]:
            found["matching"] = F.cross_entropy(self.network.matching(fused).float(), (~shown.matched).long())
        if self.regresses:
            said, truth = self._features(shown, fused)
            found["features"] = (said.float() - truth).square().mean(1).sum() / max(1, len(truth))
        return found

    def _features(self, shown: Shown, fused: Fused) -> tuple[Float[Tensor, "asked dim"], Float[Tensor, "asked dim"]]:
        """What is said of the masked features of matched pairs, and what they are."""
        rows = shown.matched.nonzero()[:, 0]
        hidden, tokens = shown.hidden[rows], fused.tokens[rows]
        if not self.apart or not len(rows):
            return self.network.features(fused)[rows][hidden], targets(tokens)[hidden]
        again = self.network.fuse(
            shown.whole[rows], shown.attention_mask[rows], shown.parsed, shown.there[rows], hidden, tokens.detach()
        )
        return self.network.features(again)[hidden], targets(tokens)[hidden]

    def validate(self, data: LightningDataModule, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Losses, shares of right masked words and of right matches, and how much attention flows (first batch)."""
        self._know(data)
        sums, counts = defaultdict(float), defaultdict(int)

        def add(name: str, values: Tensor, rows: int) -> None:
            sums[name], counts[name] = sums[name] + values.double().sum(), counts[name] + rows

        flow = {}
        for batch in batches:
            shown = self.shown(batch)
            fused = self._fuse(shown)
            for name, term in self.terms(shown, fused).items():
                add(f"{name}_loss", len(shown.matched) * term, len(shown.matched))
            for name, right in self._right(shown, fused).items():
                add(f"{name}_accuracy", right, len(right))
            flow = flow or {"flow": self.flow(batch)["relative"].double().mean()}
        return {name: value / max(1, counts[name]) for name, value in sums.items()} | flow

    def _right(self, shown: Shown, fused: Fused) -> dict[str, Bool[Tensor, " judged"]]:
        """Which of the masked words, and of the matches, are right; of what is learnt."""
        found = {}
        if self.losses["words"]:
            asked = shown.labels != NO_LABEL
            found["word"] = self.network.word_logits(fused, asked).argmax(-1) == shown.labels[asked]
        if self.losses["matching"]:
            found["matching"] = self.network.matching(fused).argmax(1) == (~shown.matched).long()
        return found

    def flow(self, batch: Batch, *, special: bool = True) -> dict[str, Float[Tensor, "..."]]:
        """Inter-modality flow of pictures with their texts, nothing masked; see `metrics/modality_flow.py`.

        Args:
            batch: of pictures and texts.
            special: count [CLS] and [SEP] as language; otherwise they belong to neither.

        Returns:
            `symmetric`, `relative` (over the baseline), `to_language` and `to_vision` of each layer, and `rolled_out`,
            relative too, of all of them.
        """
        parsed, there = self.parsed(batch)
        attended = batch["attention_mask"]
        language = attended if special else attended & ~_ends(attended)
        meter = side_by_side(language, there, attended)
        with self.network.attending() as layers, watching(layers, meter):
            self.network.fuse(batch["token_ids"], attended, parsed, there)
        return meter.columns()

    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """What is judged. Each arm has the same draws, whatever it has learnt.

        `right/<word, matching>` (bool); `regression/<masking>/<text>` (rows, 2), the squared error of masked features
        of each picture and their squared distance from the mean; `flow/<own, other, content>/<name>` (rows, layers),
        see `flow`; `retrieval/<part>/scores` (captions, pictures) and `retrieval/<part>/picture_of` of each part or, if
        they are searched together, of `all`, with `retrieval/ranked`, the pictures of a part; and for the page
        `shown/<images, token_ids, weights, attention>`.
        """
        self.to(device).eval()
        self._know(data)
        (split,) = judged(data.splits)
        found = defaultdict(list)
        with untouched(self):
            for number, batch in enumerate(self._batches(data, split, device)):
                torch.manual_seed(number)
                for name, values in self._judged(batch).items():
                    found[name].append(values.cpu())
            columns = {name: torch.cat(values) for name, values in found.items()}
            columns |= self._regressions(data, split, device)
            first = next(self._batches(data, split, device))
            return columns | self._searched(data, split, device) | self._for_the_page(first)

    @staticmethod
    def _batches(data: LightningDataModule, split: str, device: torch.device) -> Iterator[dict[str, Tensor]]:
        """Batches of a split, with the texts of the rows before: `other/<token_ids, attention_mask>`.

        Raises:
            ValueError: the first batch has one row.
        """
        last: dict[str, Tensor] = {}
        for batch in data.evaluation_batches(split):
            rows = {name: x.to(device) for name, x in batch.items() if isinstance(x, Tensor)}
            texts = {name: rows[name] for name in ("token_ids", "attention_mask")}
            if not last and len(batch["token_ids"]) < 2:
                raise ValueError(
                    f"the first batch of the split {split} has one row, so that no other text can be shown with it: "
                    "raise data.evaluation_batch_size or its rows."
                )
            before = last or {name: x[-1:] for name, x in texts.items()}
            others = {f"other/{name}": torch.cat([before[name], x[:-1]]) for name, x in texts.items()}
            last = {name: x[-1:] for name, x in texts.items()}
            yield rows | others

    def _judged(self, batch: Batch) -> dict[str, Tensor]:
        found = {}
        if self.losses["words"]:
            found["right/word"] = self._read_words(batch)
        if self.losses["matching"]:  # each picture with its own text, and with another one: chance is one half
            found["right/matching"] = torch.cat([self._matched(batch), ~self._matched(_with_other(batch))])
        for name, changed, special in (("own", batch, True), ("other", _with_other(batch), True),
                                       ("content", batch, False)):  # fmt: skip
            found |= {f"flow/{name}/{part}": x for part, x in self.flow(changed, special=special).items()}
        return found

    def _read_words(self, batch: Batch) -> Bool[Tensor, " asked"]:
        """Which masked words are right, with their own pictures and no visual token masked."""
        token_ids, labels = mask_words(batch["token_ids"], share=self.word_masking, **self.words)
        asked = labels != NO_LABEL
        fused = self.network.fuse(token_ids, batch["attention_mask"], *self.parsed(batch))
        return self.network.word_logits(fused, asked).argmax(-1) == labels[asked]

    def _matched(self, batch: Batch) -> Bool[Tensor, " batch"]:
        """Whether picture and text are said to belong together."""
        parsed, there = self.parsed(batch)
        fused = self.network.fuse(batch["token_ids"], batch["attention_mask"], parsed, there)
        return self.network.matching(fused).argmax(1) != UNMATCHED

    def _regressions(self, data: LightningDataModule, split: str, device: torch.device) -> dict[str, Tensor]:
        """How well masked features are predicted with each text, for each way of masking that the encoder allows."""
        if not self.regresses:
            return {}
        guided = self.network.parse(self._first_pixels(data, split, device)).weights is not None
        found = {}
        for how in ("guided", "random") if guided else ("random",):
            said, truths, rows = {text: [] for text in TEXTS}, [], []
            for number, batch in enumerate(self._batches(data, split, device)):
                torch.manual_seed(number)
                parsed, there = self.parsed(batch)
                hidden = self._hidden(parsed, there, how)
                for text in TEXTS:
                    fused = self.network.fuse(*self._texts(batch, text), parsed, there, hidden)
                    said[text].append(self.network.features(fused)[hidden].float())
                truths.append(targets(fused.tokens)[hidden])
                rows.append(hidden.sum(1))
            truth, counts = torch.cat(truths), torch.cat(rows)
            spread = (truth - truth.mean(0)).square().sum(1)
            for text, parts in said.items():
                error = (torch.cat(parts) - truth).square().sum(1)
                both = [torch.stack([x.sum() for x in values.split(counts.tolist())]) for values in (error, spread)]
                found[f"regression/{how}/{text}"] = torch.stack(both, 1).cpu()
        return found

    def _first_pixels(self, data: LightningDataModule, split: str, device: torch.device) -> Tensor:
        return self.preprocess(next(self._batches(data, split, device))["images"][:1])

    def _texts(self, batch: Batch, text: Text) -> tuple[Tensor, Tensor]:
        """Ids and attention mask of a text for a batch of pictures; see `Text`."""
        changed = _with_other(batch) if text == "other" else batch
        token_ids, attention_mask = changed["token_ids"], changed["attention_mask"]
        if text == "hidden":
            token_ids = token_ids.masked_fill(attention_mask & ~_ends(attention_mask), self.words["mask_id"])
        return token_ids, attention_mask

    def _searched(self, data: LightningDataModule, split: str, device: torch.device) -> dict[str, Tensor]:
        """How well captions are said to match pictures, see `predictions`."""
        if not self.ranked or not self.losses["matching"]:
            return {}
        known = data.retrieval(split)
        pictures = int(known["picture_of"].max()) + 1
        size = min(self.ranked, pictures)
        parts = torch.arange(size * min(self.parts, pictures // size)).split(size)
        pools = {"all": torch.cat(parts)} if self.together else {str(number): part for number, part in enumerate(parts)}
        found = {"retrieval/ranked": torch.tensor(size)}
        for name, pool in pools.items():
            captions = torch.isin(known["picture_of"], pool).nonzero()[:, 0]
            found[f"retrieval/{name}/picture_of"] = known["picture_of"][captions] - pool[0]
            found[f"retrieval/{name}/scores"] = self._scores(known, captions, pool, data.evaluation_batch_size, device)
        return found

    def _scores(
        self, known: Mapping[str, Any], captions: Tensor, pool: Tensor, size: int, device: torch.device
    ) -> Float[Tensor, "captions pictures"]:
        """Log odds that each caption belongs to each picture."""
        parts = [
            self.parsed({name: known[name](rows.numpy()).to(device) for name in ("images", "sizes") if name in known})
            for rows in pool.split(size)
        ]
        parsed = parts[0][0]._replace(features=torch.cat([part.features for part, _ in parts]), weights=None)
        there = torch.cat([shown for _, shown in parts])
        scores = []
        for caption in captions.tolist():
            text = [known[name][caption].to(device) for name in ("token_ids", "attention_mask")]
            each = [self._scored(text, parsed, there, at) for at in torch.arange(len(pool)).split(size)]
            scores.append(torch.cat(each).cpu())
        return torch.stack(scores)

    def _scored(self, text: list[Tensor], parsed: Parsed, there: Tensor, at: Tensor) -> Float[Tensor, " pictures"]:
        """Log odds that a text belongs to some pictures."""
        some = parsed._replace(features=parsed.features[at])
        fused = self.network.fuse(*(x.expand(len(at), -1) for x in text), some, there[at])
        logits = self.network.matching(fused).float()
        return logits[:, 1 - UNMATCHED] - logits[:, UNMATCHED]

    def _for_the_page(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures, and what a visual token and each word attend to in them (last layer, mean over heads)."""
        rows = {name: x[:SHOWN] for name, x in batch.items()}
        parsed, there = self.parsed(rows)
        kept: list[Tensor] = []
        with self.network.attending() as layers:
            handle = layers[-1].register_forward_hook(lambda module, given, output: kept.append(output[1]))
            self.network.fuse(rows["token_ids"], rows["attention_mask"], parsed, there)
            handle.remove()
        length = rows["token_ids"].shape[1]
        found = {
            "shown/images": rows["images"], "shown/token_ids": rows["token_ids"],
            "shown/attention": kept[0].mean(1)[:, :length, length:], "shown/grid": torch.tensor(parsed.grid),
        }  # fmt: skip
        if parsed.weights is not None:
            at = torch.arange(len(there), device=there.device)
            seen_first = there.int().argsort(dim=1, descending=True, stable=True)
            pivot = seen_first[at, at * 5 % there.sum(1)]
            hidden = neighbours(parsed.weights, pivot, there, self.visual_masking["neighbours"])
            weights = parsed.weights[at, pivot]
            found |= {"shown/weights": weights, "shown/pivot": pivot, "shown/hidden": hidden}
        return {name: x.cpu().contiguous() for name, x in found.items()}

    def facts(self) -> dict:
        """Sizes."""
        return {
            "parameters": count_parameters(self.network),
            "visual_parameters": count_parameters(self.network.visual),
            "layers": self.network.bert.config.num_hidden_layers,
            "masking": self.visual_masking["how"] if self.regresses else "none",
        }


def _with_other(batch: Batch) -> dict[str, Tensor]:
    """A batch whose pictures have the text of the row before, see `VisualParsing._batches`."""
    return {**batch, **{name: batch[f"other/{name}"] for name in ("token_ids", "attention_mask")}}


def _ends(attention_mask: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length"]:
    """Where [CLS] and [SEP] are: the first and the last place that is no padding."""
    last = attention_mask.long().sum(1, keepdim=True) - 1
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (places == 0) | (places == last)
