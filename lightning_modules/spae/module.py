"""SPAE: pictures as a pyramid of words that a frozen language model reads and writes (Yu et al., 2306.17842).

An autoencoder whose codebook is the frozen table of a language model's word embeddings. Few words at the top say what a
picture shows, many at the bottom how it looks. Two losses make it so: the appearance loss of a VQGAN, on a number of
layers that is drawn anew for each picture, so that any first layers can be decoded; and the semantic loss, which draws
what the upper layers ask for to the words that CLIP finds in the picture.

Read `Spae.training_step` and `Spae.terms` first, then `pyramid.Pyramid.quantise` and `semantic.guidance`.

No code is published, and the paper's text was not at hand: formulas follow notes on its section 3. What these do not
say is our choice: places that no layer has reached are decoded as their nearest neighbour; similarities are put on a
scale from 0 to 1 for each picture before thresholds; the dynamic weight is the ratio of appearance to semantic loss,
without gradient; the commitment of a prefix is a mean over the places that it has reached; each picture of a batch has
a number of layers of its own, and half of them have all.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal, NoReturn, NotRequired

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.datamodules.captioned import CaptionedImages
from lightning_modules.datasets.tokenizers import published_tokenizer
from lightning_modules.layers.clip import make_clip
from lightning_modules.layers.published import load_strictly
from lightning_modules.layers.teacher import Frozen
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.metrics.generation import has_fid, make_fid, make_inception_score
from lightning_modules.metrics.video import psnr, ssim
from lightning_modules.metrics.video_networks import PublishedNetworks
from lightning_modules.settings import STRICT, Count, NonNegative, Positive, Share
from lightning_modules.spae.clip import check_places, clip_tokenizer, said
from lightning_modules.spae.language import LanguageSettings, make_language
from lightning_modules.spae.pyramid import Spelt
from lightning_modules.spae.semantic import ClipSettings, Fitting, Preprocess, check_clip, dynamic, guidance, relative
from lightning_modules.spae.templates import TEMPLATES, Templates
from lightning_modules.spae.tokenizer import SpaeTokenizer, TokenizerSettings, from_language
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.adversarial import Game
from lightning_modules.video_tokens.clips import ClipData
from lightning_modules.video_tokens.tokenizer import Inflation, inflated
from lightning_modules.video_tokens.training import SHOWN, Pixels, TokenizerTraining, check_clips, stored
from lightning_modules.vision_language.carrier import Carrier
from lightning_modules.vision_language.told import encoded

NO_CLASS = "transformers has no class for an autoencoder whose codebook is a pyramid of words"


class DiscriminatorSettings(TypedDict):
    """Arguments of `video_tokens.discriminator.Discriminator` that `conf/` gives."""

    __pydantic_config__ = STRICT
    width: Count
    multipliers: Annotated[list[Count], Field(min_length=1)]
    blur: NotRequired[bool]


class Guidance(TypedDict):
    """The semantic loss: its weight, whether that is dynamic, how many layers have it, where candidates begin."""

    __pydantic_config__ = STRICT
    weight: NonNegative
    dynamic: bool
    layers: Count
    thresholds: list[Share]
    templates: Templates


class Spae(Carrier, TokenizerTraining):
    """The tokenizer, its discriminator, and the frozen networks that it was given.

    Args:
        language: arguments of `language.make_language`: a model of the hub, of which only the table is kept, or the
            sizes of the one that the arm in `from` has.
        tokenizer: arguments of `SpaeTokenizer` but for `words`, `ids` and `word_dim`, which the language model decides.
        clip: arguments of `layers.clip.make_clip`.
        preprocess: `mean` and `std` of CLIP's pixels from 0 to 1, per channel.
        semantic: `weight`; `dynamic`, whether the weight is in units of the appearance loss; `layers`, how many have
            the loss; `thresholds` of each of them; `templates` that words are put into.
        discriminator: `width`, `multipliers` and `blur` of `Discriminator`.
        prefixes: `random` draws each clip from a random number of first layers, `all` from all of them.
        whole: share of clips that are drawn from all layers even so.
        commitment: weight of the latents' distance to their words, beta.
        codebook: weight of the words' distance to their latents, for a learned table alone.
        reconstruction: see `TokenizerTraining`; likewise `pixels`, `adversarial`, `perceptual`, `perception`, `r1`,
            `lecam`, `lecam_decay`, `game`, `inflation`, `published` and `pixel_scale`.

    Raises:
        ValueError: there are more semantic layers than layers, another number of thresholds, or a CLIP of fresh weights
            has no place for each word, or sizes that do not fit each other.
    """

    predictor = "lightning_modules.spae.predictor.Speller"
    tokenizer_class = SpaeTokenizer

    def __init__(
        self,
        *,
        language: LanguageSettings,
        tokenizer: TokenizerSettings,
        clip: ClipSettings,
        preprocess: Preprocess,
        semantic: Guidance,
        discriminator: DiscriminatorSettings,
        prefixes: Literal["random", "all"] = "random",
        whole: Share = 0.5,
        commitment: NonNegative = 0.25,
        codebook: NonNegative = 1.0,
        reconstruction: NonNegative = 1.0,
        pixels: Pixels = "squared",
        adversarial: NonNegative = 0.1,
        perceptual: NonNegative = 0.1,
        perception: str | None = None,
        r1: NonNegative = 10.0,
        lecam: NonNegative = 0.0,
        lecam_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999,
        game: Game = "softplus",
        inflation: Inflation = "central",
        published: dict | None = None,
        pixel_scale: Positive = 255.0,
    ):
        model = make_language(**language)
        super().__init__(
            tokenizer={**tokenizer, **from_language(model)},
            discriminator=discriminator,
            reconstruction=reconstruction,
            pixels=pixels,
            adversarial=adversarial,
            perceptual=perceptual,
            perception=perception,
            r1=r1,
            lecam=lecam,
            lecam_decay=lecam_decay,
            game=game,
            inflation=inflation,
            published=published,
            pixel_scale=pixel_scale,
        )
        self.tokenizer: SpaeTokenizer
        check_guidance(semantic, len(self.tokenizer.pyramid.tokens))
        self.semantic, self.prefixes, self.whole = semantic, prefixes, whole
        self.commitment, self.codebook = commitment, codebook
        self.language = None if language.get("hub") else Frozen(model)
        if self.language is None:
            self.table.fill(model.embeddings)
        check_clip(clip)
        network, hub = make_clip(**clip), clip.get("hub")
        self.own_clip, self.given = not hub, False
        if self.own_clip:
            check_places(network, clip_tokenizer())
        self.fitting = Fitting(
            network,
            partial(published_tokenizer, hub) if hub else clip_tokenizer,
            templates=TEMPLATES[semantic["templates"]],
            **preprocess,
        )

    @property
    def table(self) -> nn.Module:
        """The words."""
        return self.tokenizer.table

    def carried(self) -> dict[str, nn.Module]:
        """The networks that are of an arm's, and not of the hub."""
        found = {"clip": self.fitting.network} if self.own_clip else {}
        return found if self.language is None else {**found, "language": self.language.network}

    def take(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take over the carried networks' weights, and give back the others; words are read anew."""
        rest = super().take(weights)
        self.fitting.forget()
        self.given = True
        return rest

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the frozen networks, and so the table; of another SPAE its tokenizer too, inflated if flat.

        Raises:
            ValueError: a network is missing, or has another architecture.
        """
        rest = self.take(weights)
        if self.language is not None:
            self.table.fill(self.language.network.embeddings)
        if not any(name.startswith("tokenizer.") for name in rest):
            return
        found, kept = inflated(rest, self.state_dict(), self.inflation)
        if wrong := [name for name in kept if name.startswith("tokenizer.")]:
            raise ValueError(
                f"{len(wrong)} weights of the tokenizer cannot be taken over from the arm named by `from`, first "
                f"{wrong[0]}: give both the same width, multipliers, blocks and words."
            )
        load_strictly(self, found, "the tokenizer of `from`")

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse what is no pictures or clips, or of another shape, and networks that are not there.

        Raises:
            ValueError: see above; no arm has given its networks, or a published measure has no file.
            ModuleNotFoundError: LPIPS is asked for and not installed.
        """
        if (missing := list(self.carried())) and not self.given:
            raise ValueError(
                f"{' and '.join(missing)} have no weights: name the arm that has them with `from` in the plan, or "
                f"published models with {' and '.join(f'{name}.hub' for name in missing)}."
            )
        if any(self.published.values()):
            PublishedNetworks(**self.published)  # they measure after the training
        if isinstance(data, ClipData):
            check_clips(data, self.tokenizer, None)
            return
        if not isinstance(data, CaptionedImages) and not hasattr(data, "image_shape"):
            raise ValueError(f"data are {type(data).__name__}, expected pictures or clips, such as StreamedImages.")
        shape = (
            tuple(data.columns["train"]["images"].shape[1:]) if isinstance(data, CaptionedImages) else data.image_shape
        )
        side = self.tokenizer.size
        if self.tokenizer.frames != 1 or side not in shape or sorted(shape) != sorted((3, side, side)):
            raise ValueError(
                f"the data has pictures of shape {shape}, but tokenizer.frames and tokenizer.size are for "
                f"{self.tokenizer.frames} frames of {side} x {side} pixels."
            )

    def clips(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "batch 3 frames h w"]:
        """The clips of a batch, or its pictures as clips of one frame, with pixels from 0 to 1."""
        return self.read(batch["video"] if "video" in batch else batch["images"].unsqueeze(2))

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """All losses, each with its weight: of appearance, of meaning, and of the discriminator."""
        video = self.clips(batch)
        drawn, found = self.tokenizer(video, self.drawn_layers(len(video)))
        terms = self.generator_terms(video, drawn, self.quantising(found))
        if self.semantic["weight"]:
            meaning = guidance(found.asked, self.table, self.fits(video), self.semantic["thresholds"])
            scale = dynamic(sum(terms.values()), meaning) if self.semantic["dynamic"] else 1.0
            terms["semantic"] = self.semantic["weight"] * scale * meaning
        return terms | self.discriminator_terms(video, drawn.detach())

    def drawn_layers(self, clips: int) -> Int[Tensor, " clips"]:
        """From how many layers each clip of a batch is drawn."""
        layers = torch.full((clips,), len(self.tokenizer.pyramid.tokens))
        if self.training and self.prefixes == "random":
            some = torch.randint(1, len(self.tokenizer.pyramid.tokens) + 1, (clips,))
            layers = torch.where(torch.rand(clips) < self.whole, layers, some)
        return layers.to(self.device)

    def quantising(self, found: Spelt) -> dict[str, Float[Tensor, ""]]:
        """The commitment, and of a learned table its own term."""
        terms = {"commitment": self.commitment * self.tokenizer.pyramid.commitment(found)}
        if self.table.source == "learned":
            terms["codebook"] = self.codebook * self.tokenizer.pyramid.codebook_loss(found)
        return terms

    def fits(self, video: Float[Tensor, "batch 3 frames h w"]) -> Float[Tensor, "batch words"]:
        """How well each word fits each clip, on a scale of the clip's own from 0 to 1."""
        return relative(self.fitting.similarity(video, self.table.words))

    def validate(self, data: LightningDataModule, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """How well clips are drawn from all layers, and how well the top layer's words fit them."""

        def measure(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            video = self.clips(batch)
            drawn, found = self.tokenizer(video)
            return {
                "mse": F.mse_loss(drawn, video),
                "psnr": psnr(drawn.clamp(0, 1), video).mean(),
                "top_fit": percentiles(self.fits(video), found.words[0]).mean(),
            }

        return mean_over(batches, measure)

    @torch.no_grad()
    def forward(self, pictures: Shaped[Tensor, "batch 3 *frames h w"]) -> Int[Tensor, "batch tokens"]:
        """The words of all layers of stored pictures or clips, behind one another."""
        return torch.cat(self.words_of(pictures), dim=1)

    @torch.no_grad()
    def words_of(self, pictures: Shaped[Tensor, "batch 3 *frames h w"]) -> list[Int[Tensor, "batch _"]]:
        """The words of each layer of stored pictures or clips, as indices of the table.

        Raises:
            ValueError: they are of another size.
        """
        return self.tokenizer.words_of(pictures / self.pixel_scale)

    @torch.no_grad()
    def picture_of(
        self, words: list[Int[Tensor, "batch _"]], upto: int | None = None
    ) -> Float[Tensor, "batch 3 *frames h w"]:
        """The pictures (or clips) of the first `upto` layers of words, within 0 and 1.

        Raises:
            ValueError: see `Pyramid.latents`.
        """
        video = self.tokenizer.picture_of(words, upto).clamp(0, 1)
        return video[:, :, 0] if self.tokenizer.dims == 2 else video

    @torch.no_grad()
    def predictions(self, data: LightningDataModule, device: torch.device) -> dict[str, Tensor]:
        """What pictures become, row by row of the split that is judged.

        `words/<layer>` (from 1, rows x tokens); `mse`, `psnr`, `ssim`, and `lpips` where it is asked for, of each
        prefix (rows x layers); `similarity`, the cosine of CLIP with the layer's words, and `fit`, the share of the
        table that fits less (rows x layers); of captioned pictures `said`, which words stand in the captions (rows x
        words); what labels them (`label/<name>`); `spelled`, the table's words as UTF-8 with zeros behind; of the first
        pictures `shown/real` (n frames h w 3) and `shown/drawn` (n layers frames h w 3), uint8. Of pictures, where
        networks of published measures may be used (`published`) and torch-fidelity is installed, `fid` and
        `inception_score` (1 x layers).
        """
        self.to(device).eval()
        networks = PublishedNetworks(**self.published, device=device)
        inception = None
        if self.published and self.tokenizer.dims == 2 and has_fid():
            inception = Inception(len(self.tokenizer.pyramid.tokens), device)
        parts = defaultdict(list)
        for split in judged(data.columns if isinstance(data, CaptionedImages) else data.rows):
            for batch in data.evaluation_batches(split):
                batch = {name: x.to(device) for name, x in batch.items() if isinstance(x, Tensor)}
                for name, x in self._judged(batch, networks, inception, shown="shown/real" not in parts).items():
                    parts[name].append(x)
                if isinstance(data, CaptionedImages):
                    parts["said"].append(self.said(data, batch["references"]))
        found = {name: torch.cat(part).cpu().contiguous() for name, part in parts.items()}
        found |= inception.compute() if inception else {}
        return {**found, "spelled": torch.from_numpy(encoded(self.table.words))}

    def _judged(
        self, batch: dict[str, Tensor], networks: PublishedNetworks, inception: "Inception | None", *, shown: bool
    ) -> dict[str, Tensor]:
        video = self.clips(batch)
        words = self.tokenizer.words_of(video)
        similarity = self.fitting.similarity(video, self.table.words)
        drawn = [self.tokenizer.picture_of(words, layer + 1).clamp(0, 1) for layer in range(len(words))]
        if inception:
            inception.update(drawn, video)
        found = {f"words/{layer + 1}": own for layer, own in enumerate(words)}
        measures = {
            "mse": [(each - video).square().flatten(1).mean(1) for each in drawn],
            "psnr": [psnr(each, video) for each in drawn],
            "ssim": [ssim(each, video) for each in drawn],
            "lpips": [own for each in drawn for own in networks.compared(each, video).values()],
            "similarity": [similarity.gather(1, own).mean(1) for own in words],
            "fit": [percentiles(similarity, own).mean(1) for own in words],
        }
        found |= {name: torch.stack(each, dim=1) for name, each in measures.items() if each}
        for name, values in labels(batch).items():
            found[f"label/{name}"] = values
        if shown:
            found["shown/real"] = stored(video[:SHOWN])
            found["shown/drawn"] = torch.stack([stored(each[:SHOWN]) for each in drawn], dim=1)
        return found

    def said(
        self, data: CaptionedImages, references: Int[Tensor, "batch captions length"]
    ) -> Bool[Tensor, "batch words"]:
        """Which words of the table stand in the captions; never those that the captions' tokenizer does not know."""
        unknown = len(data.tokenizer)
        ids = [data.tokenizer.backend.token_to_id(word) for word in self.table.words]
        numbers = torch.tensor([unknown if number is None else number for number in ids], device=references.device)
        return said(references, numbers, unknown + 1)

    def to_transformers(self) -> NoReturn:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_CLASS)

    def facts(self) -> dict:
        """Sizes of the tokenizer."""
        pyramid = self.tokenizer.pyramid
        return {
            "parameters": count_parameters(self.tokenizer),
            "discriminator_parameters": count_parameters(self.discriminator),
            "vocabulary": pyramid.vocabulary,
            "tokens": pyramid.tokens,
            "grid": list(pyramid.grid),
            "pixels": self.tokenizer.frames * self.tokenizer.size**2,
        }


class Inception:
    """FID and the Inception Score of what each prefix draws.

    Args:
        prefixes: how many there are.
        device: where the networks run.
    """

    def __init__(self, prefixes: int, device: torch.device):
        self.fid = [make_fid().to(device) for _ in range(prefixes)]
        self.score = [make_inception_score().to(device) for _ in range(prefixes)]

    def update(self, drawn: Sequence[Float[Tensor, "batch 3 1 h w"]], truth: Float[Tensor, "batch 3 1 h w"]) -> None:
        """Look at pictures as each prefix draws them, and as they are."""
        real = (truth[:, :, 0] * 255).round().to(torch.uint8)
        for fid, score, each in zip(self.fid, self.score, drawn, strict=True):
            made = (each[:, :, 0] * 255).round().to(torch.uint8)
            fid.update(real, real=True)
            fid.update(made, real=False)
            score.update(made)

    def compute(self) -> dict[str, Float[Tensor, "1 prefixes"]]:
        """Both, for each prefix."""
        found = {"fid": [each.compute() for each in self.fid], "inception_score": [x.compute()[0] for x in self.score]}
        return {name: torch.stack(values).cpu()[None] for name, values in found.items()}


def check_guidance(semantic: Guidance, layers: int) -> None:
    """Refuse a semantic loss for layers that there are not.

    Raises:
        ValueError: see `Spae`.
    """
    if semantic["layers"] > layers:
        raise ValueError(
            f"semantic.layers is {semantic['layers']}, but tokenizer.layers has {layers}: the loss is for the first "
            "ones."
        )
    if len(semantic["thresholds"]) != semantic["layers"]:
        raise ValueError(
            f"semantic.thresholds has {len(semantic['thresholds'])} values, expected {semantic['layers']}: one for "
            "each of semantic.layers."
        )


def percentiles(
    similarity: Float[Tensor, "batch words"], words: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """The share of all other words that are less similar; half of those that are as similar. By chance 0.5."""
    own, ranked = similarity.gather(1, words), similarity.sort(dim=1).values
    less = torch.searchsorted(ranked, own)
    alike = torch.searchsorted(ranked, own, right=True) - less - 1
    return (less + alike / 2) / max(1, similarity.shape[1] - 1)


def labels(batch: Mapping[str, Tensor]) -> dict[str, Int[Tensor, " batch"]]:
    """What labels the pictures of a batch: `class`, or of scenes the columns of their first object."""
    found = {"class": batch["labels"]} if "labels" in batch else {}
    for name, values in batch.items():
        if name.startswith("scene/"):
            found[name.removeprefix("scene/")] = values if values.ndim == 1 else values[:, 0]
    return found
