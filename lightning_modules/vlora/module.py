"""VLoRA: Visual Perception by Large Language Model's Weights (Ma, Xue, Zhou et al., NeurIPS 2024, 2405.20339).

A picture is turned into low-rank additions to the weights of a language model, so that its input holds text alone and a
picture costs nothing in the layers that are long. First the generator of these additions learns, then the language
model with it; the vision tower never does.

Read `VLoRA.training_step` first, then `generator.py`, `injection.py` and `seeing.py`. Differences from the official
code (FeipengMa6/VLoRA): no masked placeholder stands in the text; keys and values of grouped heads may be narrower than
queries; the two phases are parts of one training.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal, NoReturn

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import PaperModule, decay_groups
from lightning_modules.datamodules.illustrated import IllustratedTexts
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.teacher import Frozen
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import STRICT, Count, Share
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.training import SHOWN, TokensRecipe
from lightning_modules.vision_language.causal import LanguageSettings, make_causal
from lightning_modules.vision_language.told import encoded
from lightning_modules.vision_language.towers import TowerSettings, make_tower
from lightning_modules.vlora.baselines import Projector, ProjectorSettings, Queries, QueriesSettings
from lightning_modules.vlora.generator import GeneratorSettings, PerceptualWeights
from lightning_modules.vlora.injection import blocks_of, sizes_of
from lightning_modules.vlora.seeing import IGNORED, Seeing

WORLD = ("color", "shape", "size", "cell")  # what labels the things of a picture
Way = Literal["weights", "projector", "queries", "blind"]
TEXT = ("token_ids", "attention_mask", "labels")


class Prompts(TypedDict):
    """What stands before a caption, and before the answer to a question `{}`: `data.form` says the same."""

    __pydantic_config__ = STRICT
    caption: str
    question: str


class VLoRA(PaperModule):
    """A language model, a frozen vision tower, and what brings features of the one into the other.

    Args:
        language: arguments of `make_causal`, as in the arm named by `from`.
        tower: arguments of `make_tower`, likewise.
        way: `weights`, the paper's; `projector` or `queries`, tokens in the input (`baselines`); `blind`, no picture.
        generator: arguments of `PerceptualWeights` but for sizes, layers, visual_dim and patches.
        projector: arguments of `Projector` but for visual_dim and hidden_size.
        queries: arguments of `Queries` but for visual_dim, patches and hidden_size.
        generator_share: of the steps in which the language model does not learn yet; 1 for never.
        prompts: see `Prompts`.
        checkpointing: whether blocks are computed again in the backward pass, to save memory.
        most: tokens of an answer.
        merged: whether answers are written picture by picture, with its additions merged into the weights of q, k, v
            and o. It says the same up to rounding (way `weights` alone).

    Raises:
        ValueError: the language model is not of the Llama type, or sizes do not fit each other.
    """

    recipe_form = TokensRecipe
    predictor = "lightning_modules.vlora.predictor.Teller"

    def __init__(
        self,
        *,
        language: LanguageSettings,
        tower: TowerSettings,
        way: Way = "weights",
        generator: GeneratorSettings,
        projector: ProjectorSettings,
        queries: QueriesSettings,
        prompts: Prompts,
        generator_share: Share = 0.5,
        checkpointing: bool = False,
        most: Count = 24,
        merged: bool = False,
    ):
        super().__init__()
        self.language = make_causal(**language)
        blocks = blocks_of(self.language.whole)  # in every way, so that all can be compared, and their costs counted
        self.tower = Frozen(make_tower(**tower))
        self.own_tower, self.own_language = not tower.get("hub"), not language.get("hub")
        self.given = not (self.own_tower or self.own_language)
        own = self.tower.network
        sides = {"visual_dim": own.dim, "patches": own.grid**2}
        if way == "weights":
            bridge = PerceptualWeights(sizes=sizes_of(blocks[0]), layers=len(blocks), **sides, **generator)
        elif way == "projector":
            bridge = Projector(visual_dim=own.dim, hidden_size=self.language.dim, **projector)
        else:
            bridge = Queries(hidden_size=self.language.dim, **sides, **queries) if way == "queries" else None
        self.seeing = Seeing(self.language.whole, bridge)
        self.way, self.generator_share, self.most, self.prompts = way, generator_share, most, prompts
        self.merged = merged
        self.language.requires_grad_(bridge is None or generator_share < 1)  # before processes (DDP) share the module
        if checkpointing:
            self.language.whole.activation_checkpointing_enable({"use_reentrant": False})

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the language model and the tower; of another VLoRA all that it learned.

        Those of the hub are taken over too where the arm has weights of them, as a blind VLoRA has.

        Raises:
            ValueError: one that is not of the hub is missing, or one is of another architecture.
        """
        if any(name.startswith("seeing.") for name in weights):
            self.load_export(weights)
            return
        networks = {"tower": (self.tower.network, self.own_tower), "language": (self.language, self.own_language)}
        for name, (network, needed) in networks.items():
            own = {key.removeprefix(f"{name}."): x for key, x in weights.items() if key.startswith(f"{name}.")}
            if own or needed:
                load_strictly(network, own, f"the {name} of the arm in `from`")
        self.given = True

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse networks that no arm has given, other prompts, and answers without a place or a beginning.

        Tells the texts whose ids they consist of.

        Raises:
            ValueError: see above.
        """
        if not isinstance(data, IllustratedTexts):
            raise ValueError(f"data are {type(data).__name__}, expected datamodules.illustrated.IllustratedTexts.")
        for name, prompt in self.prompts.items():
            if data.form[name] != prompt:
                raise ValueError(
                    f"model.prompts.{name} is {prompt!r}, but data.form.{name} is {data.form[name]!r}: set both alike."
                )
        tokens, most = self.visual_tokens, self.language.positions - self.visual_tokens
        self.language.check_length(
            tokens + data.length,
            f"data.length is {data.length} behind {tokens} visual tokens, set it to {most} at most",
        )
        if not self.prompt():
            raise ValueError(
                "model.prompts.caption is empty, and the language model has no start token, so that no caption can "
                "begin: set it and data.form.caption to a text, such as 'A picture of'."
            )
        if not self.given:
            raise ValueError(
                "the language model or the tower has no weights: name the arm that has them with `from` in the plan, "
                "or published models with language.hub and tower.hub."
            )
        data.for_models(self.language, self.tower.network.fit)
        self._check_answers(data)

    def _check_answers(self, data: IllustratedTexts) -> None:
        """Refuse prompts of the split that is judged that leave no place for `most` tokens: before, not after training.

        Raises:
            ValueError: see above.
        """
        (split,) = judged(data.columns)
        questions = [text for each in data.columns[split].get("questions", ()) for text in each]
        longest = max([len(self.prompt()), *(len(self.prompt(text)) for text in questions)])
        tokens = self.visual_tokens + longest
        self.language.check_length(
            tokens + self.most,
            f"model.most is {self.most} behind {tokens} tokens of a picture and the longest prompt of data.splits."
            f"{split}, set it to {max(0, self.language.positions - tokens)} at most",
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Cross-entropy of captions and answers; at first of what the bridge alone can change."""
        self.language.requires_grad_(self.bridge is None or self.global_step >= self.generator_share * self.steps)
        loss = self.surprise(batch)
        self.log_terms({"pretrain/loss": loss})
        return loss

    @property
    def bridge(self) -> nn.Module | None:
        """What learns from the first step on."""
        return self.seeing.bridge

    @cached_property
    def steps(self) -> int:
        """Of the whole training; a plain loop, which has no trainer, is at its beginning."""
        return int(self.trainer.estimated_stepping_batches) if self._trainer is not None else 1_000_000

    def surprise(self, batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The loss of a batch."""
        return self.seeing.loss(*(batch[name] for name in TEXT), self.features(batch), batch["has_image"])

    @torch.no_grad()
    def features(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "batch patches dim"]:
        """What the tower says about the pictures."""
        return self.tower.network.features(batch["images"])

    def parameter_groups(self) -> list[dict]:
        """Matrices are decayed; a language model that is to learn is among them, and begins when its time comes.

        Several processes (DDP) train one phase at a time: `generator_share` 1, then an arm from it with 0. Between them
        `ddp_find_unused_parameters_true` is needed.
        """
        return decay_groups(self.named_parameters())

    def validate(self, data: IllustratedTexts, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss, and how many labelled tokens are the likeliest."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            logits = self.seeing(batch["token_ids"], batch["attention_mask"], self.features(batch), batch["has_image"])
            right = logits[:, :-1].argmax(2) == batch["labels"][:, 1:]
            asked = batch["labels"][:, 1:] != IGNORED
            return {"loss": self.surprise(batch), "tokens_right": right[asked].double().mean()}

        return mean_over(batches, measure)

    @torch.no_grad()
    def answers(self, images: Shaped[Tensor, "batch 3 h w"], prompts: Sequence[Sequence[int]]) -> list[str]:
        """The likeliest text after each prompt, of a picture each.

        Args:
            images: stored pictures.
            prompts: their ids, see `prompt`.

        Raises:
            ValueError: there are more or fewer prompts than pictures, one has no token, or the language model has no
                place for an answer.
        """
        if len(prompts) != len(images):
            raise ValueError(f"there are {len(prompts)} prompts for {len(images)} pictures: give one for each.")
        if not all(prompts):
            raise ValueError("a prompt has no token, so that no answer can begin: ask something.")
        if self.merged and self.way == "weights" and len(images) > 1:
            each = zip(images.split(1), prompts, strict=True)
            return [text for image, prompt in each for text in self.answers(image, [prompt])]
        tokenizer, longest = self.language.tokenizer, max(map(len, prompts))
        self.language.check_length(self.visual_tokens + longest + self.most, "shorten the question")
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        padded = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in prompts], device=images.device)
        there = torch.tensor([[False] * (longest - len(ids)) + [True] * len(ids) for ids in prompts])
        written = self.seeing.write(
            padded, there.to(images.device), self.tower.network.features(images),
            torch.ones(len(images), dtype=torch.bool, device=images.device),
            most=self.most, end=tokenizer.eos_token_id, pad=pad, merge=self.merged,
        )  # fmt: skip
        return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written.tolist()]

    @torch.no_grad()
    def predictions(self, data: IllustratedTexts, device: torch.device) -> dict[str, Tensor]:
        """What it writes about the pictures of the split that is judged; texts are UTF-8 with zeros behind.

        `caption/written`, `caption/true`, and `caption/shuffled`, which is written for the picture of another row;
        `answer/written`, `answer/true`, `answer/question`, and `answer/row`, the picture of each question;
        `label/<name>` of the world; `shown/images`, the first pictures, uint8 (n h w 3); `caption/tokens`, the length
        of each caption.
        """
        self.to(device).eval()
        (split,) = judged(data.columns)
        rows = data.columns[split]
        said = [data.text(split, row, "caption", 0).answer for row in range(len(rows["images"]))]
        to_tell, own = [self.prompt()] * len(said), torch.arange(len(said))
        asked = [(row, n) for row, each in enumerate(rows.get("questions", ())) for n in range(len(each))]
        places = torch.tensor([row for row, _ in asked], dtype=torch.long)
        questions = [rows["questions"][row][n] for row, n in asked]
        prompts = [self.prompt(question) for question in questions]
        texts = {
            "caption/true": said,
            "caption/written": self._written(data, split, own, to_tell),
            "caption/shuffled": self._written(data, split, own.roll(1), to_tell),
            "answer/question": questions,
            "answer/true": [rows["answers"][row][n] for row, n in asked],
            "answer/written": self._written(data, split, places, prompts),
        }
        found = {name: torch.from_numpy(encoded(each)) for name, each in texts.items()}
        found |= {f"label/{name}": rows[name] for name in WORLD if name in rows}
        found["answer/row"] = places
        found["caption/tokens"] = torch.tensor([len(self.language.encode(text)) for text in said])
        found["shown/images"] = data.images(split, own[:SHOWN]).permute(0, 2, 3, 1).contiguous()
        return found

    def _written(
        self, data: IllustratedTexts, split: str, rows: Int[Tensor, " rows"], prompts: Sequence[Sequence[int]]
    ) -> list[str]:
        found = []
        for start in range(0, len(rows), data.evaluation_batch_size):
            part = slice(start, start + data.evaluation_batch_size)
            found += self.answers(data.images(split, rows[part]).to(self.device), prompts[part])
        return found

    def prompt(self, question: str | None = None) -> list[int]:
        """Ids of what stands before the answer to a question, or before a caption."""
        text = self.prompts["caption"] if question is None else self.prompts["question"].format(question)
        return [*self.language.start, *self.language.encode(text)]

    def forward(self, images: Shaped[Tensor, "batch 3 h w"]) -> UInt8[Tensor, "batch bytes"]:
        """Captions of stored pictures, UTF-8 with zeros behind."""
        return torch.from_numpy(encoded(self.answers(images, [self.prompt()] * len(images))))

    def export(self) -> dict[str, Tensor]:
        """The weights of the arm, and those of a tower of our own."""
        own = {f"tower.{name}": x for name, x in self.tower.network.state_dict().items()} if self.own_tower else {}
        return super().export() | own

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `export` gave."""
        own = {name.removeprefix("tower."): x for name, x in weights.items() if name.startswith("tower.")}
        if self.own_tower:
            load_strictly(self.tower.network, own, "the exported tower")
        super().load_export({name: x for name, x in weights.items() if not name.startswith("tower.")})
        self.given = True

    def to_transformers(self) -> NoReturn:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError("no class of transformers adds weights that are generated for each picture")

    def facts(self) -> dict:
        """Sizes, and how many tokens a picture is in the input."""
        own, config = self.bridge, self.language.whole.config
        keys = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return {
            "parameters": count_parameters(self.language),
            "bridge_parameters": 0 if own is None else count_parameters(own),
            "visual_tokens": self.visual_tokens,
            "addition_macs": own.macs if self.way == "weights" else 0,
            "hidden_size": config.hidden_size,
            "mlp_dim": config.intermediate_size,
            "layers": config.num_hidden_layers,
            "kv_dim": config.num_key_value_heads * keys,
        }

    @property
    def visual_tokens(self) -> int:
        """Places that a picture takes in the language model's input."""
        if self.way == "queries":
            return self.bridge.decoder.queries.shape[1]
        return self.tower.network.grid**2 if self.way == "projector" else 0
