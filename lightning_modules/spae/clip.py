"""A CLIP of our own, for data whose words a published one does not know: pictures, captions and single words.

Read `SpaeClip.training_step` first. A published CLIP has met every word of a language model by itself and beside
others. Ours meets each word of the table in the templates that it is asked with later: a picture is to be nearer to the
words of its captions than to all others, and a word nearer to the pictures that it is said of.
"""

import copy
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from pytorch_lightning import LightningDataModule
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPModel

from lightning_modules.datamodules.captioned import CaptionedImages
from lightning_modules.datasets.tokenizers import END, PAD, START, UNKNOWN, TextTokenizer, world_tokenizer
from lightning_modules.layers.clip import make_clip
from lightning_modules.layers.exported import Exported
from lightning_modules.layers.teacher import Frozen
from lightning_modules.losses.contrastive import info_nce
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import NonNegative, Positive
from lightning_modules.spae import lexicon
from lightning_modules.spae.language import LanguageSettings, make_language
from lightning_modules.spae.semantic import (
    ClipSettings,
    Preprocess,
    check_clip,
    picture_features,
    template_ids,
    text_features,
    word_features,
)
from lightning_modules.spae.templates import TEMPLATES, Templates
from lightning_modules.spae.words import chosen_words
from lightning_modules.validation import judged, mean_over
from lightning_modules.video_tokens.training import TokensRecipe
from lightning_modules.vision_language.carrier import Carrier

MAX_SCALE = 100.0  # CLIP's


class SpaeClip(Carrier):
    """A CLIP, and the frozen language model whose words it learns.

    Args:
        language: arguments of `language.make_language`.
        clip: arguments of `make_clip`, of fresh weights.
        preprocess: `mean` and `std` of pixels from 0 to 1, per channel.
        leave_out: words that are not asked for by themselves, see `words.chosen_words`.
        templates: sentences that words are put into, see `templates`.
        words: weight of the loss of single words.
        pixel_scale: the stored value of white.

    Raises:
        ValueError: the CLIP is a published one, the text tower has no place for each id of the words, a word is
            unknown, or sizes do not fit each other.
    """

    recipe_form = TokensRecipe

    def __init__(
        self,
        *,
        language: LanguageSettings,
        clip: ClipSettings,
        preprocess: Preprocess,
        leave_out: list[str],
        templates: Templates = "world",
        words: NonNegative = 1.0,
        pixel_scale: Positive = 255.0,
    ):
        super().__init__()
        self.language = Frozen(make_language(**language))
        self.tokenizer = clip_tokenizer()
        if clip.get("hub") is not None:
            raise ValueError(f"clip.hub is {clip['hub']!r}, which reads other ids: set it to null, and give sizes.")
        check_clip(clip)
        self.clip = make_clip(**clip)
        check_places(self.clip, self.tokenizer)
        ids, spelt = self.language.network.whole_words()
        _, self.words = chosen_words(ids.tolist(), spelt, count=None, leave_out=leave_out)
        self.weight, self.pixel_scale, self.templates = words, pixel_scale, TEMPLATES[templates]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(preprocess[name])[:, None, None], persistent=False)
        length = self.clip.config.text_config.max_position_embeddings
        self.register_buffer("own_ids", translation(world_tokenizer(), self.tokenizer), persistent=False)
        places = [template_ids(self.tokenizer, self.words, text, length) for text in self.templates]
        for number, token_ids in enumerate(places):
            self.register_buffer(f"asked_{number}", token_ids, persistent=False)
        numbers = [self.tokenizer.backend.token_to_id(word) for word in self.words]
        self.register_buffer("numbers", torch.tensor(numbers), persistent=False)

    def carried(self) -> dict[str, nn.Module]:
        """The language model."""
        return {"language": self.language.network}

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the language model.

        Raises:
            ValueError: there is none, or it is of another architecture.
        """
        self.take(weights)

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse data without captions in the words of the captioned world, or pictures of another size.

        Raises:
            ValueError: see above.
        """
        if not isinstance(data, CaptionedImages) or data.tokenizer_name != "world":
            raise ValueError(
                "the data are no pictures with captions of the captioned world: data.tokenizer must be world."
            )
        side = self.clip.config.vision_config.image_size
        if (found := tuple(data.columns["train"]["images"].shape[-2:])) != (side, side):
            raise ValueError(f"pictures of {found[0]} x {found[1]} pixels, but clip.vision.image_size is {side}.")
        if self.clip.config.text_config.max_position_embeddings < data.text_length:
            raise ValueError(
                f"data.text_length is {data.text_length}, more than clip.text.max_position_embeddings "
                f"({self.clip.config.text_config.max_position_embeddings})."
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Float[Tensor, ""]:
        """One caption of each picture against those of the others, and all words in one template."""
        references, counts = batch["references"], batch["num_references"]
        drawn = (torch.rand(len(counts), device=counts.device) * counts).long()
        template = int(torch.randint(len(self.templates), ()))
        pictures = self.see(batch["images"])
        scale = self.clip.logit_scale.exp().clamp_max(MAX_SCALE)
        captions = text_features(self.clip, self.own_ids[references[torch.arange(len(drawn)), drawn]])
        words = text_features(self.clip, getattr(self, f"asked_{template}"))
        terms = {
            "captions": info_nce(pictures, captions, scale) / 2,
            "words": self.weight * words_nce(scale * pictures @ words.T, self.said(references)),
        }
        self.log_terms({f"pretrain/{name}": term for name, term in terms.items()})
        return sum(terms.values())

    def see(self, images: Shaped[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
        """Features of length 1 of stored pictures."""
        return picture_features(self.clip, (images / self.pixel_scale - self.mean) / self.std)

    def said(self, references: Int[Tensor, "batch captions length"]) -> Bool[Tensor, "batch words"]:
        """Which words stand in a caption of each picture."""
        return said(self.own_ids[references], self.numbers, len(self.tokenizer))

    @torch.no_grad()
    def similarity(self, images: Shaped[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch words"]:
        """Cosine of stored pictures with all words, each in all templates."""
        return self.see(images) @ word_features(self.clip, self.tokenizer, self.words, self.templates).T

    @torch.no_grad()
    def forward(self, images: Shaped[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch dim"]:
        """Features of length 1 of stored pictures."""
        return self.see(images)

    def validate(self, data: CaptionedImages, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """How often the word that fits best, and the first ones, are said of a picture, see `first_words`."""
        return mean_over(batches, lambda batch: {name: x.mean() for name, x in self._judged(batch).items()})

    @torch.no_grad()
    def predictions(self, data: CaptionedImages, device: torch.device) -> dict[str, Tensor]:
        """For each judged picture, what `first_words` gives."""
        self.to(device).eval()
        parts: dict[str, list[Tensor]] = {}
        for split in judged(data.columns):
            for batch in data.evaluation_batches(split):
                for name, x in self._judged({key: x.to(device) for key, x in batch.items()}).items():
                    parts.setdefault(name, []).append(x)
        return {name: torch.cat(part).cpu() for name, part in parts.items()}

    def _judged(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, " batch"]]:
        return first_words(self.similarity(batch["images"]), self.said(batch["references"]))

    def to_transformers(self) -> Exported:
        """A CLIP with the same weights; its sentences are those of `clip_tokenizer`."""
        clip = copy.deepcopy(self.clip)
        clip.config.text_config.eos_token_id = 2  # `transformers` then reads a text out at its highest id, as we do
        clip.text_model.eos_token_id = 2
        usage = "found = model(pixel_values=pixels, input_ids=token_ids)  # found.image_embeds, found.text_embeds"
        return Exported(clip.eval(), (self.mean.flatten().tolist(), self.std.flatten().tolist()), usage)

    def facts(self) -> dict:
        """Sizes, and the number of words."""
        return {"parameters": count_parameters(self.clip), "words": len(self.words)}


def check_places(clip: CLIPModel, tokenizer: TextTokenizer) -> None:
    """Refuse a text tower that has no place for each id of the words.

    Raises:
        ValueError: see above.
    """
    if (there := clip.config.text_config.vocab_size) < len(tokenizer):
        raise ValueError(
            f"clip.text.vocab_size is {there}, but the words of the language model have {len(tokenizer)} ids: set it "
            "to that."
        )


def clip_tokenizer() -> TextTokenizer:
    """The language model's words with an id each, as our CLIP reads them: its end token has the highest id of all."""
    tokens = [PAD, START, UNKNOWN, *lexicon.WORDS, END]
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=UNKNOWN))
    backend.add_special_tokens([PAD, START, UNKNOWN, END])
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing((END, len(tokens) - 1), (START, 1))
    backend.decoder = decoders.WordPiece(cleanup=True)  # no space before a comma
    return TextTokenizer(backend, pad=PAD, start=START, end=END, unknown=UNKNOWN, mask=None)


def translation(given: TextTokenizer, own: TextTokenizer) -> Int[Tensor, " ids"]:
    """For each id of one tokenizer of whole words that of the same word in another.

    Raises:
        ValueError: a word has no id there.
    """
    special = {
        given.pad_id: own.pad_id, given.start_id: own.start_id, given.end_id: own.end_id,
        given.unknown_id: own.unknown_id, given.mask_id: own.unknown_id,
    }  # fmt: skip
    found = []
    for number in range(len(given)):
        word = given.backend.id_to_token(number)
        found.append(special[number] if number in special else own.backend.token_to_id(word))
        if found[-1] is None:
            raise ValueError(
                f"{word!r} is said of pictures, but is not among the {len(own)} words of CLIP's tokenizer."
            )
    return torch.tensor(found)


def said(
    references: Int[Tensor, "batch captions length"], numbers: Int[Tensor, " words"], vocabulary: int
) -> Bool[Tensor, "batch words"]:
    """Which words stand in the captions of each picture, by their ids."""
    there = torch.zeros(len(references), vocabulary, dtype=torch.bool, device=references.device)
    return there.scatter_(1, references.flatten(1), True)[:, numbers]


def words_nce(logits: Float[Tensor, "batch words"], fits: Bool[Tensor, "batch words"]) -> Float[Tensor, ""]:
    """Cross-entropy with equal shares of all that fit: of words for each picture, and of pictures for each word."""
    losses = []
    for given, right in ((logits, fits), (logits.T, fits.T)):
        some = right.any(1)
        shares = right[some] / right[some].sum(1, keepdim=True)
        losses.append(F.cross_entropy(given[some], shares) - entropy(shares))
    return sum(losses) / 2


def entropy(shares: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
    """The least that a cross-entropy with these shares can be."""
    return -torch.xlogy(shares, shares).sum(1).mean()


def first_words(
    similarity: Float[Tensor, "batch words"], fits: Bool[Tensor, "batch words"]
) -> dict[str, Float[Tensor, " batch"]]:
    """Whether the most similar word fits (`best`), and the share that fits of as many first words as fit (`first`)."""
    right = fits.gather(1, similarity.argsort(dim=1, descending=True, stable=True)).float()
    count = fits.sum(1, keepdim=True)
    place = torch.arange(fits.shape[1], device=fits.device)
    return {"best": right[:, 0], "first": (right * (place < count)).sum(1) / count.clamp_min(1)[:, 0]}
