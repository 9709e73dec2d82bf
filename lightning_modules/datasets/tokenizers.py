"""Text to ids and back: the captioned world's words, or a published tokenizer, in one call form.

Read `TextTokenizer.__call__` first. A row is start, words, end, padding. Where the end token has the highest id of all
(`world_tokenizer`, and CLIP's, whose padding is its end token), `token_ids.argmax(-1)` is the place of the first end
token, from which CLIP reads a sentence.
"""

import string
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lightning_modules import rehearsal
from lightning_modules.datasets.world import text

PAD, START, MASK, UNKNOWN, END = "[PAD]", "[CLS]", "[MASK]", "[UNK]", "[SEP]"


class TextTokenizer:
    """A tokenizer with a start and an end token.

    A word that it does not know becomes `unknown_id`, or what the published tokenizer makes of it; an empty sentence is
    a start and an end token. Special tokens are never read from a sentence: "[SEP]" there is three ordinary pieces.

    Args:
        backend: what cuts sentences, adds start and end, and decodes.
        pad: token of the padding; may be the end token. `start`, `end`, `unknown` and `mask` likewise; null for a
            vocabulary without mask token, such as CLIP's.

    Raises:
        ValueError: a special token is not in the vocabulary, or the backend adds no start and end token.
    """

    def __init__(self, backend: Tokenizer, *, pad: str, start: str, end: str, unknown: str, mask: str | None):
        self.backend = Tokenizer.from_str(backend.to_str())  # the settings below are this object's own
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        self.pad_id, self.start_id, self.end_id, self.unknown_id = map(self._id, (pad, start, end, unknown))
        self.mask_id = None if mask is None else self._id(mask)
        if (empty := self.backend.encode("").ids) != [self.start_id, self.end_id]:
            raise ValueError(f"the tokenizer makes {empty} of an empty sentence, expected {start} and {end} only.")

    def __call__(
        self, sentences: Sequence[str], length: int
    ) -> tuple[Int[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"]]:
        """Ids, int64, and attention mask (True = keep) of sentences, cut or padded to `length` tokens.

        Start and end tokens count, and a sentence that is cut keeps its end token.

        Raises:
            ValueError: there is no room for a word.
        """
        if length < 3:
            raise ValueError(f"length ({length}) must be at least 3: a start token, a word and an end token.")
        token_ids = np.full((len(sentences), length), self.pad_id, np.int64)
        attention_mask = np.zeros((len(sentences), length), bool)
        for row, sentence in enumerate(sentences):  # not `encode_batch`: its threads do not outlive a fork
            ids = self.backend.encode(sentence).ids
            ids = ids if len(ids) <= length else [*ids[: length - 1], self.end_id]
            token_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = True
        return token_ids, attention_mask

    def __len__(self) -> int:
        """Number of ids, special tokens included."""
        return self.backend.get_vocab_size()

    def decode(self, token_ids: Int[np.ndarray, "rows length"]) -> list[str]:
        """The sentences, without special tokens; what a published tokenizer normalises (case, spaces) stays so."""
        sentences = [self.backend.decode(row) for row in token_ids.tolist()]
        suffix = getattr(self.backend.model, "end_of_word_suffix", None)  # of CLIP, which its decoder leaves there
        return [sentence.replace(suffix, " ").strip() for sentence in sentences] if suffix else sentences

    def _id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise ValueError(f"the special token {token!r} is not among the {len(self)} tokens of the vocabulary.")
        return found


def world_tokenizer() -> TextTokenizer:
    """All words that the languages of the captioned world can say, one id each.

    [PAD] is 0, [CLS] 1, [MASK] 2, [UNK] 3, then the words in alphabetical order, and [SEP] last. Case does not count;
    a comma is a word.
    """
    tokens = [PAD, START, MASK, UNKNOWN, *text.vocabulary(), END]
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=UNKNOWN))
    backend.add_special_tokens([PAD, START, MASK, UNKNOWN, END])
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing((END, len(tokens) - 1), (START, 1))
    backend.decoder = decoders.WordPiece(cleanup=True)  # no space before a comma
    return TextTokenizer(backend, pad=PAD, start=START, end=END, unknown=UNKNOWN, mask=MASK)


def tokenizer_called(name: str | None) -> TextTokenizer:
    """`world_tokenizer` for null or `world`, otherwise `published_tokenizer`."""
    return world_tokenizer() if name in (None, "world") else published_tokenizer(name)


def published_tokenizer(name: str) -> TextTokenizer:
    """The tokenizer of CLIP (`openai/clip-vit-base-patch32`), BERT (`bert-base-uncased`) or their like.

    Args:
        name: of a Hugging Face repository, or of a folder with its files.

    Raises:
        ConnectionError: the hub cannot be reached and the files are not in its cache.
        ValueError: it has no start, end or padding token.
    """
    from transformers import AutoTokenizer

    try:
        published = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        if name in SPELLED and rehearsal.replaces(f"tokenizer {name}", missing=True):
            return SPELLED[name]()
        raise ConnectionError(
            f"the tokenizer {name} could not be fetched from huggingface.co, nor found in its cache. Connect this "
            f"machine, or run `hf download {name}` on one that is connected and copy its cache (HF_HOME) here."
        ) from error
    special = {
        "pad": published.pad_token,
        "start": published.bos_token or published.cls_token,
        "end": published.eos_token or published.sep_token,
        "unknown": published.unk_token,
    }
    if missing := [part for part, token in special.items() if token is None]:
        raise ValueError(
            f"tokenizer {name!r} has no token for {', '.join(missing)}; expected one like CLIP's or BERT's."
        )
    return TextTokenizer(published.backend_tokenizer, **special, mask=published.mask_token)


def spelling_bert() -> TextTokenizer:
    """A tokenizer with the size and the special words of BERT-base-uncased that spells all words, for rehearsals.

    Special words, punctuation, digits and letters have BERT's ids; what continues a word has not.
    """
    tokens = [f"[unused{number}]" for number in range(30_522)]
    tokens[0], tokens[100:104] = PAD, [UNKNOWN, START, END, MASK]
    signs = [chr(code) for code in range(ord("!"), 127) if chr(code) not in string.ascii_uppercase]
    tokens[999 : 999 + len(signs)] = signs
    tokens[1999 : 1999 + len(signs)] = [f"##{sign}" for sign in signs]
    backend = Tokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token=UNKNOWN))
    backend.add_special_tokens([PAD, START, MASK, UNKNOWN, END])
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing((END, 102), (START, 101))
    backend.decoder = decoders.WordPiece()
    return TextTokenizer(backend, pad=PAD, start=START, end=END, unknown=UNKNOWN, mask=MASK)


def spelling_clip() -> TextTokenizer:
    """A tokenizer with the size and the special words of CLIP's that spells all words, for rehearsals.

    It is byte pair encoding without a pair; only the special words have CLIP's ids.
    """
    signs, suffix, start, end = sorted(pre_tokenizers.ByteLevel.alphabet()), "</w>", "<|startoftext|>", "<|endoftext|>"
    tokens = [*signs, *(f"{sign}{suffix}" for sign in signs)]
    tokens += [f"<|unused{number}|>" for number in range(49_406 - len(tokens))] + [start, end]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token=end, end_of_word_suffix=suffix))
    backend.add_special_tokens([start, end])
    backend.normalizer = normalizers.Lowercase()
    whole_words = [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(whole_words)
    backend.post_processor = processors.BertProcessing((end, 49_407), (start, 49_406))
    backend.decoder = decoders.ByteLevel()
    return TextTokenizer(backend, pad=end, start=start, end=end, unknown=end, mask=None)


SPELLED: dict[str, Callable[[], TextTokenizer]] = {  # what a rehearsal takes where the published one cannot be had
    "google-bert/bert-base-uncased": spelling_bert,
    "openai/clip-vit-base-patch16": spelling_clip,
    "openai/clip-vit-base-patch32": spelling_clip,
    "openai/clip-vit-large-patch14": spelling_clip,
}
