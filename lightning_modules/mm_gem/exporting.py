"""The language model for `transformers`: its tokenizer knows [EMB], whose id is that of its row.

A published model may have more rows than its tokenizer has ids. [EMB] is the last row here, but the next id there, so
that both rows change places. No text has the other one, and probabilities are the same.
"""

from copy import deepcopy
from typing import TYPE_CHECKING

import torch

from lightning_modules.vision_language.causal import Language

if TYPE_CHECKING:  # takes seconds, and who calls has it
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMB = "[EMB]"
READS = f"""token_ids = tokenizer("a red circle{EMB}", return_tensors="pt")["input_ids"]
state = model(token_ids, output_hidden_states=True).hidden_states[-1][:, -1]  # at {EMB}; what a vector is made of"""


def with_token(language: Language, embed_id: int) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Copies of the model, which does not write [EMB], and of the tokenizer, which reads it.

    Args:
        language: with a row for [EMB].
        embed_id: which one.

    Raises:
        ValueError: the tokenizer has a token of this name already.
    """
    if EMB in language.tokenizer.get_vocab():
        raise ValueError(f"its tokenizer has a token {EMB} already, which is another one: name another language model")
    model, tokenizer = deepcopy(language.whole), deepcopy(language.tokenizer)
    tokenizer.add_tokens([EMB], special_tokens=True)
    own = tokenizer.convert_tokens_to_ids(EMB)
    order = torch.arange(len(language.embeddings), device=language.embeddings.device)
    order[[own, embed_id]] = order[[embed_id, own]]
    with torch.no_grad():
        for rows in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:  # one if they are tied
            rows.copy_(rows[order])
    model.generation_config.suppress_tokens = [own]
    return model, tokenizer
