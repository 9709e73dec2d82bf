"""The words that a small language model of our own knows: one token each, so that words are never cut into pieces.

What the captions of the captioned world say, ordinary words that fit no picture of it (distractors), and the words of
prompts. `HELD_OUT` are distractors that are no label in any text the model is trained on.
"""

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from lightning_modules.datasets.world import text

if TYPE_CHECKING:  # takes seconds, and who calls has it
    from transformers import PreTrainedTokenizerFast

PAD, START, UNKNOWN, END = "[PAD]", "[START]", "[UNK]", "[END]"
PROMPT_WORDS = ("input:", "output:", "output", "one", "or", ".")
DISTRACTORS = tuple(
    """
    apple arrow autumn bakery balloon barn basket beard bell bench berry blanket boat bone book bottle bread breeze
    brick bridge brush bucket butter button cabin camel candle carpet carrot castle chair cheese cherry chimney clock
    cloud coat coffee coin comb copper cotton cradle cricket crown cup curtain dance dinner doctor dog donkey door dove
    dream drum eagle earth engine fabric farmer feather fence fiddle finger fire flute fog forest fork fox garden garlic
    ghost giant ginger glove goat grape guitar hammer harbor hat hawk hill honey horse hotel island ivory jacket jar
    jewel kettle king kitchen kite ladder lamp leaf lemon letter lion market mirror monkey moon mouse music napkin
    needle nest nurse oven owl paper parrot pearl pencil pepper piano pillow pocket potato pump queen rabbit river robe
    rope saddle sailor salt sand scarf school
    shadow sheep shirt shoe silk silver smoke snake soap song spider spoon stone stove sugar table tailor teapot tent
    thread tiger tower train violin wagon walnut window
    """.split()
)
HELD_OUT = DISTRACTORS[-32:]
WORDS = tuple(dict.fromkeys((*text.vocabulary(), *DISTRACTORS)))  # in this order, without the words of prompts
TOKENS = (
    PAD,
    START,
    UNKNOWN,
    *PROMPT_WORDS,
    *WORDS,
    END,
)  # their place is their id


def language_tokenizer() -> "PreTrainedTokenizerFast":
    """The words as a tokenizer of `transformers`, which adds no token."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(), pad_token=PAD, bos_token=START, unk_token=UNKNOWN, eos_token=END
    )


def _backend() -> Tokenizer:
    """Words stand between spaces, a comma is a word, case does not count."""
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(TOKENS)}, unk_token=UNKNOWN))
    backend.add_special_tokens([PAD, START, UNKNOWN, END])
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(",", "isolated")]
    )
    return backend
