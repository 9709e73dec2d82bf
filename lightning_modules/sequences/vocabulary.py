"""One vocabulary for the tokens of several modalities: specials, then visual codes, then audio codes, then words.

The first 256 ids are specials and prompts, as in VideoPoet (section 3.1). The codes of a residual quantiser have ids of
their own at each level, so that an id says which level it belongs to.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_modules.settings import meant

SPECIALS = 256  # ids of specials and prompts, used or not
NAMES = (
    "pad", "text", "bos", "eos",
    "bot_i", "eot_i", "bov_i", "eov_i", "boa_i", "eoa_i",
    "bov_o", "eov_o", "boa_o", "eoa_o",
)  # fmt: skip  # `text` stands where features of a text encoder take the place of an embedding
VISUAL, AUDIO, WORD = "visual", "audio", "word"


class Vocabulary:
    """Which ids stand for what.

    Args:
        visual: codes of the visual tokenizer.
        audio_levels: levels of the audio tokens, 0 where there is no audio.
        audio_codes: codes of one level.
        words: of a text vocabulary of our own; 0 where text comes as features.
        prompts: names of further specials: prompts of tasks, data sources, resolutions.

    Raises:
        ValueError: there is no visual code, levels are given without codes, a prompt is named twice, or there are more
            specials than ids for them.
    """

    def __init__(
        self, visual: int, audio_levels: int = 0, audio_codes: int = 0, words: int = 0, prompts: Sequence[str] = ()
    ):
        names = [*NAMES, *prompts]
        if visual < 1 or min(audio_levels, audio_codes, words) < 0 or bool(audio_levels) != bool(audio_codes):
            raise ValueError(
                f"{visual} visual codes, {audio_levels} levels of {audio_codes} audio codes and {words} words: "
                "expected at least one visual code, and both levels and codes of audio or neither."
            )
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the special {twice!r} is named twice: give each prompt a name of its own.")
        if len(names) > SPECIALS:
            raise ValueError(f"{len(names)} specials and prompts, expected at most {SPECIALS}: name fewer prompts.")
        self.visual, self.audio_levels, self.audio_codes, self.words = visual, audio_levels, audio_codes, words
        self.specials = {name: number for number, name in enumerate(names)}
        self.first_audio = SPECIALS + visual
        self.first_word = self.first_audio + audio_levels * audio_codes

    def __len__(self) -> int:
        return self.first_word + self.words

    def special(self, name: str) -> int:
        """The id of a special.

        Raises:
            ValueError: there is none of this name.
        """
        if name not in self.specials:
            raise ValueError(f"there is no special {name!r}{meant(name, self.specials)}")
        return self.specials[name]

    def allowed(self, slot: str) -> slice:
        """The ids that a place may take.

        Args:
            slot: `visual`, `audio/<level>` with levels from 0, `word`, or the name of a special.

        Raises:
            ValueError: there is no such slot.
        """
        kind, _, level = slot.partition("/")
        if slot == VISUAL:
            return slice(SPECIALS, self.first_audio)
        if kind == AUDIO and level.isdigit() and int(level) < self.audio_levels:
            start = self.first_audio + int(level) * self.audio_codes
            return slice(start, start + self.audio_codes)
        if slot == WORD and self.words:
            return slice(self.first_word, len(self))
        special = self.special(slot)
        return slice(special, special + 1)

    def visual_ids(self, tokens: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The ids of visual tokens.

        Raises:
            ValueError: a token is none of the tokenizer's.
        """
        return SPECIALS + _checked(tokens, self.visual, "visual tokens")

    def visual_tokens(self, ids: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The visual tokens of ids.

        Raises:
            ValueError: an id stands for something else.
        """
        return _checked(ids - SPECIALS, self.visual, "visual ids, counted from the first,")

    def audio_ids(self, codes: Int[Tensor, "batch frames levels"]) -> Int[Tensor, "batch tokens"]:
        """The ids of audio codes, all frames of the first level, then all of the second, and so on.

        Raises:
            ValueError: a code is none of a level's, or there are other levels.
        """
        if codes.shape[-1] != self.audio_levels:
            raise ValueError(f"codes have {codes.shape[-1]} levels, expected {self.audio_levels}, as the vocabulary.")
        _checked(codes, self.audio_codes, "audio codes")
        return (codes + self._starts(codes)).transpose(1, 2).flatten(1)

    def audio_tokens(self, ids: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch frames levels"]:
        """The audio codes of ids in the order of `audio_ids`.

        Raises:
            ValueError: an id is not one of the level that its place is for, or the levels are not equally long.
        """
        if not self.audio_levels or ids.shape[1] % self.audio_levels:
            raise ValueError(
                f"{ids.shape[1]} audio tokens cannot be cut into {self.audio_levels} levels of equal length."
            )
        codes = ids.unflatten(1, (self.audio_levels, -1)).transpose(1, 2)
        return _checked(codes - self._starts(codes), self.audio_codes, "audio ids, counted from the first of a level,")

    def word_ids(self, words: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The ids of words, numbered from 0; a negative number stands for none, which is `pad`.

        Raises:
            ValueError: a word is none of the vocabulary.
        """
        _checked(words.clamp_min(0), max(self.words, 1), "words")
        return torch.where(words < 0, self.special("pad"), self.first_word + words)

    def _starts(self, codes: Tensor) -> Int[Tensor, " levels"]:
        return self.first_audio + self.audio_codes * torch.arange(self.audio_levels, device=codes.device)


def _checked(tokens: Tensor, count: int, what: str) -> Tensor:
    if tokens.numel() and not (0 <= int(tokens.min()) and int(tokens.max()) < count):
        raise ValueError(f"{what} from {int(tokens.min())} to {int(tokens.max())}, expected 0 to {count - 1}.")
    return tokens
