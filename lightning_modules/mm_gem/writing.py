"""Captions behind visual tokens: the likeliest token again and again, or a beam of several texts at once.

Keys and values of what was read are kept (`generate` of `transformers`).
"""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_modules.settings import Count
from lightning_modules.vision_language.causal import Language


@torch.no_grad()
def write(
    language: Language,
    prefix: Float[Tensor, "batch tokens hidden"],
    *,
    length: Count,
    beams: Count = 1,
    never: Collection[int] = (),
) -> list[str]:
    """A text behind each prefix and the start token, if the tokenizer has one.

    Args:
        language: what writes.
        prefix: in the space of its input embeddings.
        length: tokens that are written at most.
        beams: texts that are followed at once; 1 for greedy writing.
        never: ids that are not written, such as that of [EMB].

    Raises:
        ValueError: prefix and text are longer than the model's positions.
    """
    from transformers import GenerationConfig

    tokenizer, model = language.tokenizer, language.whole
    given = prefix
    if language.start:
        start = torch.tensor([language.start], device=prefix.device).expand(len(prefix), -1)
        given = torch.cat([prefix, model.get_input_embeddings()(start).to(prefix.dtype)], 1)
    language.check_length(given.shape[1] + length)
    end = tokenizer.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=length,
        num_beams=beams,
        do_sample=False,
        suppress_tokens=sorted(never) or None,
        eos_token_id=end,
        pad_token_id=end,
    )
    there = torch.ones(given.shape[:2], dtype=torch.long, device=prefix.device)
    ids = model.generate(inputs_embeds=given, attention_mask=there, generation_config=settings)
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
