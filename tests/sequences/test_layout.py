"""Layouts: the order of a sequence, what each place may take, images that are left open, wrong parts."""

import pytest
import torch

from lightning_modules.sequences.layout import Layout, Part, arrange
from lightning_modules.sequences.vocabulary import Vocabulary

WORDS = Vocabulary(8, 2, 4, 5, prompts=("task/video", "task/image", "source"))
BOTH = {
    "prompt": "task/video", "visual_places": 6, "text": 2, "visual": 2, "audio": 4, "marks": ("source",), "video": 6,
    "sound": 4,
}  # fmt: skip


def names(layout):
    return [part.name for part in layout.parts]


def test_parts_stand_in_the_papers_order():
    assert names(arrange(WORDS, **BOTH)) == [
        "bos", "task/video", "bot_i", "text", "eot_i", "bov_i", "visual", "eov_i", "boa_i", "audio", "eoa_i", "source",
        "bov_o", "video", "eov_o", "boa_o", "sound", "eoa_o", "eos",
    ]  # fmt: skip


def test_what_is_absent_goes_with_its_delimiters_and_an_image_is_left_open():
    image = arrange(WORDS, prompt="task/image", visual_places=6, text=2, video=2, ends=False)
    assert names(image) == ["bos", "task/image", "bot_i", "text", "eot_i", "bov_o", "video"]
    assert image.prefix == 6 and image.length == 9
    assert image.content == ("", "video", "video")


@pytest.mark.parametrize(
    ("video", "sound", "length"), [(1280, 0, 1280 + 3), (2240, 0, 2240 + 3), (0, 424, 424 + 3), (256, 0, 256 + 3)]
)
def test_the_papers_lengths(video, sound, length):
    """17 frames of 128 x 128 and of 128 x 224, 2.125 s of sound, an image; with delimiters and the end."""
    layout = arrange(
        Vocabulary(2**18, 4, 1024, prompts=("task",)), prompt="task", visual_places=2240, video=video, sound=sound
    )
    assert layout.length - layout.prefix == length == len(layout.slots)


def test_each_written_place_may_take_the_ids_of_its_slot_alone():
    layout = arrange(WORDS, **BOTH)
    slots = layout.slots
    assert [slot.stop - slot.start for slot in slots] == [1, *[8] * 6, 1, 1, *[4] * 4, 1, 1]
    assert slots[9] == slots[10] == WORDS.allowed("audio/0") and slots[11] == slots[12] == WORDS.allowed("audio/1")


def test_a_token_has_the_same_place_wherever_it_stands():
    rest = arrange(
        WORDS, prompt="task/video", visual_places=6, visual=2, audio=2, video=4, video_start=2, sound=6, sound_start=1,
        audio_frames=4,
    )  # fmt: skip
    assert rest.places[rest.span("visual")].tolist() == [1, 2]
    assert rest.places[rest.span("video")].tolist() == [3, 4, 5, 6]
    assert rest.places[rest.span("audio")].tolist() == [7, 11]  # the first frame at both levels
    assert rest.places[rest.span("sound")].tolist() == [8, 9, 10, 12, 13, 14]
    whole = arrange(WORDS, prompt="task/video", visual_places=6, sound=8)
    assert whole.places[whole.span("sound")].tolist() == list(range(7, 15))


def test_sequences_hold_what_they_are_given_and_give_back_what_is_written():
    layout = arrange(WORDS, **BOTH)
    tokens = {
        "text": WORDS.word_ids(torch.tensor([[1, -1]])),
        "visual": WORDS.visual_ids(torch.tensor([[3, 4]])),
        "audio": WORDS.audio_ids(torch.tensor([[[0, 1], [2, 3]]])),
        "video": WORDS.visual_ids(torch.arange(6)[None]),
        "sound": WORDS.audio_ids(torch.tensor([[[3, 2], [1, 0]]])),
    }
    batch, given = layout.batch(tokens), layout.batch(tokens, whole=False)
    assert batch.ids.shape == (1, layout.length) and torch.equal(batch.ids[:, : layout.prefix], given.ids)
    written = layout.written(batch.ids[:, layout.prefix :])
    assert written.keys() == {"video", "sound"}
    assert all(torch.equal(written[name], tokens[name]) for name in written)
    assert batch.ids[0, -1] == WORDS.special("eos") and batch.ids[0, 4] == WORDS.special("pad")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arrange(WORDS, prompt="task", visual_places=6, video=6), "there is no special 'task'"),
        (lambda: arrange(WORDS, prompt="task/video", visual_places=5, video=6), "ends with visual token 6"),
        (
            lambda: arrange(WORDS, prompt="task/video", visual_places=6, sound=3),
            "3 tokens, which 2 levels cannot share",
        ),
        (lambda: Layout(WORDS, [Part("special", "bos")], 6), "has to give something first"),
        (
            lambda: Layout(WORDS, [Part("text", "text", 2), Part("visual", "video", 2, output=True)], 6),
            "text begins at place 0, expected 3",
        ),
        (
            lambda: Layout(WORDS, [Part("special", "bos"), *[Part("visual", "video", 2, output=True)] * 2], 6),
            "give each a name of its own",
        ),
        (
            lambda: arrange(WORDS, **BOTH).batch({"video": torch.zeros(1, 6).long()}),
            r"the tokens 'text' of a layout are absent, expected \(batch, 2\)",
        ),
    ],
)
def test_wrong_parts_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
