"""One vocabulary for several modalities: ranges, slots, the order of audio tokens, wrong values."""

import pytest
import torch

from lightning_modules.sequences.vocabulary import SPECIALS, Vocabulary


def test_the_papers_vocabulary_has_its_size_and_ranges():
    """Kondratyuk et al., section 3.1: specials to 255, visual codes to 262,399, then four levels of 1,024 codes."""
    words = Vocabulary(2**18, 4, 1024)
    assert len(words) == 266_496
    assert words.allowed("visual") == slice(256, 262_400)
    assert words.allowed("audio/0").start == 262_400 and words.allowed("audio/3").stop == 266_496


def test_no_id_belongs_to_two_slots():
    words = Vocabulary(8, 2, 4, 5, prompts=("task/video",))
    slots = ["visual", "audio/0", "audio/1", "word", *words.specials]
    ids = [number for slot in slots for number in range(len(words))[words.allowed(slot)]]
    assert len(ids) == len(set(ids)) == 8 + 2 * 4 + 5 + len(words.specials)
    assert max(ids) == len(words) - 1 and words.special("task/video") < SPECIALS


def test_audio_goes_level_by_level_and_comes_back():
    words = Vocabulary(8, 2, 4)
    codes = torch.tensor([[[0, 3], [1, 2], [2, 1]]])
    ids = words.audio_ids(codes)
    assert (ids - 264).tolist() == [[0, 1, 2, 4 + 3, 4 + 2, 4 + 1]]
    assert torch.equal(words.audio_tokens(ids), codes)
    tokens = torch.tensor([[0, 7]])
    assert torch.equal(words.visual_tokens(words.visual_ids(tokens)), tokens)


def test_a_word_that_is_none_is_padding():
    words = Vocabulary(8, words=3)
    assert words.word_ids(torch.tensor([0, 2, -1])).tolist() == [264, 266, words.special("pad")]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Vocabulary(0), "0 visual codes"),
        (lambda: Vocabulary(8, 2), "2 levels of 0 audio codes"),
        (lambda: Vocabulary(8, prompts=("a", "a")), "the special 'a' is named twice"),
        (lambda: Vocabulary(8, prompts=[str(n) for n in range(300)]), "314 specials and prompts, expected at most 256"),
        (lambda: Vocabulary(8).allowed("audio/0"), "there is no special 'audio/0'"),
        (lambda: Vocabulary(8).special("eos_"), "did you mean 'eos'"),
        (lambda: Vocabulary(8).visual_ids(torch.tensor([8])), "visual tokens from 8 to 8, expected 0 to 7"),
        (lambda: Vocabulary(8, 2, 4).audio_ids(torch.zeros(1, 3, 1).long()), "codes have 1 levels, expected 2"),
        (lambda: Vocabulary(8, 2, 4).audio_tokens(torch.full((1, 2), 264)), "audio ids, counted from the first"),
        (lambda: Vocabulary(8, 2, 4).audio_tokens(torch.full((1, 3), 264)), "3 audio tokens cannot be cut into 2"),
    ],
)
def test_wrong_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
