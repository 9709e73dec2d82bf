import pytest
import torch

from lightning_modules.mm_gem.writing import write
from lightning_modules.vision_language.causal import make_causal


@pytest.fixture(scope="module")
def language():
    torch.manual_seed(0)
    found = make_causal(hidden_size=16, layers=2, heads=2, kv_heads=1, mlp_dim=32, positions=24).eval()
    torch.nn.init.normal_(found.whole.get_output_embeddings().weight)  # so that texts differ
    return found


def prefixes(language) -> torch.Tensor:
    return torch.randn(3, 4, language.dim, generator=torch.Generator().manual_seed(1))


def reread(language, prefix: torch.Tensor, length: int, never: set[int] = frozenset()) -> list[int]:
    """The likeliest tokens, each after reading everything again."""
    ids = list(language.start)
    for _ in range(length):
        given = torch.cat([prefix[None], language.embeddings[ids][None]], 1)
        logits = language.whole(inputs_embeds=given, use_cache=False).logits[0, -1]
        logits[list(never)] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == language.tokenizer.eos_token_id:
            break
    return ids[len(language.start) :]


@torch.no_grad()
def test_greedy_texts_are_those_of_reading_everything_again(language):
    prefix = prefixes(language)
    expected = [language.tokenizer.decode(reread(language, row, 6), skip_special_tokens=True) for row in prefix]
    assert write(language, prefix, length=6) == [text.strip() for text in expected]
    assert len(set(expected)) > 1


@torch.no_grad()
def test_what_may_never_be_written_is_not(language):
    prefix = prefixes(language)
    first = {reread(language, row, 1)[0] for row in prefix}
    expected = [language.tokenizer.decode(reread(language, row, 5, first), skip_special_tokens=True) for row in prefix]
    assert write(language, prefix, length=5, never=first) == [text.strip() for text in expected]


@torch.no_grad()
def test_a_beam_finds_a_text_at_least_as_likely_and_alone_it_is_the_greedy_one(language):
    prefix = prefixes(language)

    def likelihood(row: torch.Tensor, text: str) -> float:
        ids = language.encode(text)
        given = torch.cat([row[None], language.embeddings[[*language.start, *ids]][None]], 1)
        logits = language.whole(inputs_embeds=given).logits[0, len(row) + len(language.start) - 1 : -1]
        return logits.log_softmax(-1)[range(len(ids)), ids].sum().item()

    special = set(language.tokenizer.all_special_ids)
    greedy, beam = (write(language, prefix, length=2, beams=beams, never=special) for beams in (1, 64))
    for row, one, other in zip(prefix, greedy, beam, strict=True):
        assert likelihood(row, other) >= likelihood(row, one) - 1e-5


def test_a_text_longer_than_the_positions_is_refused(language):
    with pytest.raises(ValueError, match="positions"):
        write(language, prefixes(language), length=24)
