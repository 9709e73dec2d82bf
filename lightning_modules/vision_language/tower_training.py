"""A small CLIP on pictures whose words a published one does not know; its vision tower is the eye of a language model.

Read `CaptionTower.training_step` first. Captions are matched with whole pictures, as CLIP does. Contrast of captions
alone need not put what a part of a picture shows into the patches there, which 400 million pictures do in CLIP; so
phrases are matched with the patches of their regions as well (our choice, `regions`).
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.base import decay_groups
from lightning_modules.datamodules.illustrated import IllustratedTexts
from lightning_modules.layers.exported import Exported
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.teacher import Frozen
from lightning_modules.losses.contrastive import info_nce
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.probing import ridge_probe
from lightning_modules.settings import STRICT, Count, NonNegative, Positive
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.training import TokensRecipe
from lightning_modules.vision_language.carrier import Carrier
from lightning_modules.vision_language.causal import LanguageSettings, make_causal
from lightning_modules.vision_language.evaluation import ATTRIBUTES
from lightning_modules.vision_language.towers import TowerSettings, make_tower

MAX_SCALE, FIRST_SCALE = 100.0, 14.3  # CLIP's


class TextSizes(TypedDict):
    """Settings of `CLIPTextConfig` that the text tower is given."""

    __pydantic_config__ = STRICT
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    max_position_embeddings: Count


class Reader(nn.Module):
    """A causal text tower of CLIP that reads ids of a language model, out at their last token.

    Args:
        tokens: number of ids.
        sizes: of `CLIPTextConfig`, without the vocabulary.

    Raises:
        ValueError: the heads do not divide the hidden size.
    """

    def __init__(self, tokens: int, sizes: TextSizes):
        super().__init__()
        if sizes["hidden_size"] % sizes["num_attention_heads"]:
            raise ValueError(
                f"text.hidden_size ({sizes['hidden_size']}) must be a multiple of text.num_attention_heads "
                f"({sizes['num_attention_heads']})."
            )
        from transformers import CLIPTextConfig, CLIPTextModel

        no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        self.model = CLIPTextModel(CLIPTextConfig(**no_ids, **sizes, vocab_size=tokens))
        self.positions, self.dim = self.model.config.max_position_embeddings, self.model.config.hidden_size

    def forward(
        self, token_ids: Int[Tensor, "texts length"], attention_mask: Shaped[Tensor, "texts length"]
    ) -> Float[Tensor, "texts dim"]:
        """What is known after the last token of each text, padded on the right."""
        text = getattr(self.model, "text_model", self.model)
        states = text.encoder(inputs_embeds=text.embeddings(input_ids=token_ids), is_causal=True).last_hidden_state
        states = text.final_layer_norm(states)
        return states[torch.arange(len(states), device=states.device), attention_mask.sum(1).long() - 1]


class CaptionTower(Carrier):
    """A vision tower that learns captions and phrases of regions, handed on with a frozen language model.

    A published tower is kept as it is (`epochs: 0`).

    Args:
        language: arguments of `causal.make_causal`.
        tower: arguments of `towers.make_tower`.
        text: settings of `CLIPTextConfig` for the text tower, without the vocabulary; null with a published tower.
        projection_dim: size of the features that are compared.
        regions: weight of the loss of phrases.
        probe_rows: pictures of the split train that the linear probe of an evaluation learns from.
        probe_strength: see `metrics.probing.ridge_probe`.
    """

    recipe_form = TokensRecipe

    def __init__(
        self,
        *,
        language: LanguageSettings,
        tower: TowerSettings,
        text: TextSizes | None,
        projection_dim: Count,
        regions: NonNegative,
        probe_rows: Count = 2048,
        probe_strength: Positive = 0.01,
    ):
        super().__init__()
        self.language = Frozen(make_causal(**language))
        self.published_language = language.get("hub") is not None
        self.published = tower.get("hub") is not None
        if (text is None) != self.published:
            raise ValueError(f"tower.hub is {tower.get('hub')!r}: text must be null with a published tower alone.")
        self.tower = make_tower(**tower)
        self.weight, self.probe_rows, self.probe_strength = regions, probe_rows, probe_strength
        if text is not None:
            self.reader = Reader(len(self.language.network.tokenizer), text)
            self.of_pictures = nn.Linear(self.tower.dim, projection_dim, bias=False)
            self.of_patches = nn.Sequential(nn.LayerNorm(self.tower.dim), nn.Linear(self.tower.dim, projection_dim))
            self.of_texts = nn.Linear(self.reader.dim, projection_dim, bias=False)
            self.log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())

    def carried(self) -> dict[str, nn.Module]:
        """The language model, unless it is loaded by its name."""
        return {} if self.published_language else {"language": self.language.network}

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the language model.

        Raises:
            ValueError: there is none, or it is of another architecture.
        """
        self.take(weights)

    def export(self) -> dict[str, Tensor]:
        """`tower.*` and `language.*` of networks of our own; a mark where both are published."""
        found = {} if self.published else {f"tower.{name}": x for name, x in self.tower.state_dict().items()}
        for name, network in self.carried().items():
            found |= {f"{name}.{key}": x for key, x in network.state_dict().items()}
        return found or {"published": torch.ones(1)}

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `export` gave."""
        rest = self.take(weights)
        if not self.published:
            own = {name.removeprefix("tower."): x for name, x in rest.items()}
            load_strictly(self.tower, own, "exported weights")

    def check_data(self, data: LightningDataModule) -> None:
        """Tell the texts whose ids they consist of.

        Raises:
            ValueError: the data are no such texts, are padded on the left, or longer than the text tower reads.
        """
        if not isinstance(data, IllustratedTexts) or data.padding != "right":
            raise ValueError("data must be datamodules.illustrated.IllustratedTexts with padding: right.")
        if not self.published and data.length > self.reader.positions:
            raise ValueError(
                f"data.length is {data.length}, more than text.max_position_embeddings ({self.reader.positions})."
            )
        data.for_models(self.language.network, self.tower.fit)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """Captions against those of other pictures, and regions against the phrases of others."""
        terms = self.terms(batch)
        self.log_terms({f"train/{name}": term for name, term in terms.items()})
        return sum(terms.values())

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """The loss of captions, CLIP's mean of both directions, and that of phrases."""
        states = self.tower.model(pixel_values=self.tower.pixels(batch["images"]), output_hidden_states=True)
        scale = self.log_scale.exp().clamp_max(MAX_SCALE)
        texts = F.normalize(self.of_texts(self.reader(batch["token_ids"], batch["attention_mask"])), dim=-1)
        whole = (batch["box"] == batch["box"].new_tensor([0, 0, 1, 1])).all(1)
        pictures = F.normalize(self.of_pictures(states.pooler_output[whole]), dim=-1)
        patches = states.hidden_states[self.tower.layer][~whole, 1:]
        parts = pooled(self.of_patches(patches), batch["box"][~whole], self.tower.grid)
        zero = texts.sum() * 0  # where a batch has no text of a kind
        captions = info_nce(pictures, texts[whole], scale) / 2 if whole.any() else zero
        phrases = zero
        if self.weight and not whole.all():
            phrases = phrase_loss(F.normalize(parts, dim=-1), texts[~whole], batch["token_ids"][~whole], scale)
        return {"captions": captions, "regions": self.weight * phrases}

    def parameter_groups(self) -> list[dict]:
        """Matrices are decayed; factors of norms and the scale are not."""
        return decay_groups(self.named_parameters(), undecayed=("log_scale",))

    @torch.no_grad()
    def forward(self, images: Shaped[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch patches dim"]:
        """Features of the patches of stored pictures."""
        return self.tower.features(images)

    def validate(self, data: IllustratedTexts, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The loss of captions."""
        needed = ("token_ids", "attention_mask", "images", "box")
        whole = ({name: batch[name] for name in needed} for batch in batches)
        return mean_over(whole, lambda batch: {"captions": self.terms(batch)["captions"]})

    @torch.no_grad()
    def predictions(self, data: IllustratedTexts, device: torch.device) -> dict[str, Tensor]:
        """Whether a linear probe tells each attribute of each thing from the patches of its box, bool (things,).

        It learns from pictures of the split train. Data without labels give nothing but a mark.
        """
        self.to(device).eval()
        if "boxes" not in data.columns["train"] or "color" not in data.columns["train"]:
            return {"unlabelled": torch.ones(1)}
        learnt = self._things(data, "train", self.probe_rows, device)
        asked = [self._things(data, split, None, device) for split in judged(data.columns)]
        found = {}
        for name in ATTRIBUTES:
            features = torch.cat([each["features"] for each in asked])
            said = ridge_probe(learnt["features"], learnt[name], features, strength=self.probe_strength)
            found[name] = said == torch.cat([each[name] for each in asked])
        return found

    def _things(
        self, data: IllustratedTexts, split: str, rows: int | None, device: torch.device
    ) -> dict[str, Shaped[Tensor, "things ..."]]:
        """Features and labels of the things of some pictures, the first rows."""
        parts: dict[str, list[Tensor]] = {}
        for batch in data.evaluation_batches(split):
            features = self.tower.features(batch["images"].to(device)).cpu()
            row, slot = torch.nonzero(batch["scene/cell"] >= 0, as_tuple=True)
            boxes = batch["scene/boxes"][row, slot]
            parts.setdefault("features", []).append(pooled(features[row], boxes, self.tower.grid))
            for name in ATTRIBUTES:
                parts.setdefault(name, []).append(batch[f"scene/{name}"][row, slot])
            if rows is not None and int(batch["rows"][-1]) + 1 >= rows:
                break
        return {name: torch.cat(part) for name, part in parts.items()}

    def to_transformers(self) -> Exported:
        """The vision tower.

        Raises:
            ValueError: it is a published one, which was not trained here.
        """
        if self.published:
            raise ValueError("its tower is a published one, as it is: load it by the name in tower.hub")
        usage = (
            f"features = model(pixel_values=pixels, output_hidden_states=True).hidden_states[{self.tower.layer}][:, 1:]"
        )
        return Exported(self.tower.model, self.tower.statistics, usage)

    def facts(self) -> dict:
        """Sizes."""
        return {"parameters": count_parameters(self.tower), "patches": self.tower.grid**2}


def pooled(
    patches: Float[Tensor, "texts patches dim"], boxes: Float[Tensor, "texts 4"], grid: int
) -> Float[Tensor, "texts dim"]:
    """The mean of patches, each as much as its box covers of it."""
    edges = torch.arange(grid, device=boxes.device, dtype=boxes.dtype) / grid
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    across = (torch.minimum(right, edges + 1 / grid) - torch.maximum(left, edges)).clamp_min(0)
    down = (torch.minimum(bottom, edges + 1 / grid) - torch.maximum(top, edges)).clamp_min(0)
    shares = (down[:, :, None] * across[:, None, :]).flatten(1)
    shares = shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
    return (shares[:, None].to(patches.dtype) @ patches)[:, 0]


def phrase_loss(
    parts: Float[Tensor, "texts dim"],
    phrases: Float[Tensor, "texts dim"],
    token_ids: Int[Tensor, "texts length"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Cross-entropy of each region's phrase among all phrases of the batch, of which equal ones count once."""
    distinct, which = token_ids.unique(dim=0, return_inverse=True)
    first = torch.full((len(distinct),), len(which), device=which.device)
    first = first.scatter_reduce(0, which, torch.arange(len(which), device=which.device), "amin")
    return F.cross_entropy(scale * parts @ phrases[first].T, which)
