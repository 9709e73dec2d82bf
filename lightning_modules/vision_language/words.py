"""The words that a small language model of our own reads and writes about pictures: one token each, never cut.

What the captioned world says, and the words of questions and of chats about it.
"""

from typing import TYPE_CHECKING

from lightning_modules.datasets.world import text

if TYPE_CHECKING:  # takes seconds, and who calls has it
    from transformers import PreTrainedTokenizerFast

PAD, START, END, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
PROMPT_WORDS = ("user", "assistant", ":", "?", ".", ";")
QUESTION_WORDS = tuple(
    "what which color shape size where how many things are yes no zero one two three four describe picture "
    "left right top bottom".split()
)
WORDS = tuple(dict.fromkeys((*QUESTION_WORDS, *text.vocabulary())))
TOKENS = (PAD, START, END, UNKNOWN, IMAGE, *PROMPT_WORDS, *WORDS)  # their place is their id
SIGNS = ",:?.;"  # words, also where no space stands before them


def language_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer of `transformers`: words stand between spaces, signs are words, case does not count.

    As a Llama's, it puts the start token before a text unless told otherwise, and no end token behind it.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [PAD, START, END, UNKNOWN, IMAGE]
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(TOKENS)}, unk_token=UNKNOWN))
    backend.add_special_tokens(special)
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(f"[{SIGNS}]"), "isolated")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, TOKENS.index(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=START, eos_token=END, unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE], clean_up_tokenization_spaces=False,
    )  # fmt: skip
