import json

import numpy as np
import pytest
from transformers import BertTokenizerFast, CLIPTokenizerFast

from lightning_modules.datasets.tokenizers import TextTokenizer, published_tokenizer, world_tokenizer
from lightning_modules.datasets.world import text
from lightning_modules.datasets.world.scenes import Stream, sample_scenes

SENTENCES = ["a red circle moving left in the meadow", "picture of crimson disc, little azure wedge by the water", ""]


@pytest.fixture(scope="module")
def world() -> TextTokenizer:
    return world_tokenizer()


def world_sentences():
    """All languages of two chunks of scenes."""
    for chunk in range(2):
        stream = Stream(3, "clips/train", chunk)
        scenes = sample_scenes(stream, (1, 4))
        for language in (text.dense_captions, text.motion_captions, text.partial_captions,
                         text.subtitles):  # fmt: skip
            yield from language(scenes, stream)
        for share in (0.0, 0.5, 1.0):
            yield from text.auxiliary_captions(scenes, stream, share)
        yield from (phrase for phrases in text.region_phrases(scenes) for phrase in phrases)


def test_special_tokens_have_their_places(world):
    assert (world.pad_id, world.start_id, world.mask_id, world.unknown_id) == (0, 1, 2, 3)
    assert world.end_id == len(world) - 1 == len(text.vocabulary()) + 4


def test_rows_are_start_words_end_padding(world):
    token_ids, attention_mask = world(SENTENCES, 12)
    assert token_ids.dtype == np.int64 and attention_mask.dtype == bool
    assert token_ids.shape == attention_mask.shape == (3, 12)
    assert (token_ids[:, 0] == world.start_id).all()
    assert attention_mask.sum(1).tolist() == [10, 12, 2]
    assert (token_ids[~attention_mask] == world.pad_id).all()
    assert token_ids[2, :2].tolist() == [world.start_id, world.end_id]


def test_the_largest_id_is_the_end_of_a_sentence_also_when_it_is_cut(world):
    token_ids, attention_mask = world(SENTENCES, 6)
    ends = token_ids.argmax(-1)
    assert ends.tolist() == [5, 5, 1] == (attention_mask.sum(1) - 1).tolist()
    assert (token_ids[np.arange(3), ends] == world.end_id).all()
    assert world.decode(token_ids) == ["a red circle moving", "picture of crimson disc", ""]


def test_every_sentence_of_the_world_comes_back_word_for_word(world):
    sentences = list(world_sentences())
    token_ids, attention_mask = world(sentences, 64)
    assert not (token_ids == world.unknown_id).any()
    assert attention_mask.sum(1).max() < 64
    assert world.decode(token_ids) == sentences


def test_the_vocabulary_has_no_word_that_is_never_said():
    said = {word for sentence in world_sentences() for word in sentence.replace(",", " , ").split()}
    assert set(text.vocabulary()) - said == {"solid"}  # the texture without a word of its own in captions


def test_unknown_words_and_special_tokens_in_a_sentence_are_no_words(world):
    token_ids, _ = world(["a Red zeppelin", "[SEP] red"], 8)
    known, _ = world(["a red"], 8)
    assert token_ids[0, :3].tolist() == known[0, :3].tolist()
    assert token_ids[0, 3] == world.unknown_id
    assert token_ids[1].argmax() == 5 and (token_ids[1] == world.end_id).sum() == 1
    assert world.decode(token_ids)[0] == "a red"


def test_a_length_without_room_for_a_word_is_refused(world):
    with pytest.raises(ValueError, match=r"length \(2\) must be at least 3"):
        world(["red"], 2)


def bert_folder(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "mov", "##ing", "left", ","]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return BertTokenizerFast.from_pretrained(folder)


def clip_folder(folder):
    letters = [letter for base in "abcdefghijklmnopqrstuvwxyz" for letter in (base, f"{base}</w>")]
    tokens = [*letters, ",</w>", "red</w>", "re", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return CLIPTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("make", [bert_folder, clip_folder])
def test_published_tokenizers_give_the_ids_of_transformers(tmp_path, make):
    official, ours = make(tmp_path), published_tokenizer(str(tmp_path))
    sentences = ["a red circle, moving left", "a", ""]
    for length in (5, 40):
        expected = official(sentences, padding="max_length", truncation=True, max_length=length, return_tensors="np")
        token_ids, attention_mask = ours(sentences, length)
        np.testing.assert_array_equal(token_ids, expected["input_ids"])
        np.testing.assert_array_equal(attention_mask, expected["attention_mask"].astype(bool))
    assert [text.replace(" ,", ",") for text in ours.decode(token_ids)] == sentences


def test_the_mask_token_is_there_where_the_vocabulary_has_one(tmp_path):
    for make in (bert_folder, clip_folder):
        (tmp_path / make.__name__).mkdir()
        make(tmp_path / make.__name__)
    assert published_tokenizer(str(tmp_path / "bert_folder")).mask_id == 4
    clip = published_tokenizer(str(tmp_path / "clip_folder"))
    assert clip.mask_id is None
    assert clip.pad_id == clip.end_id == len(clip) - 1  # so the largest id is the first end token


def test_a_tokenizer_that_marks_no_end_is_refused(world):
    bare = type(world.backend).from_str(world.backend.to_str())
    bare.post_processor = None
    with pytest.raises(ValueError, match=r"makes \[\] of an empty sentence, expected \[CLS\] and \[SEP\]"):
        TextTokenizer(bare, pad="[PAD]", start="[CLS]", end="[SEP]", unknown="[UNK]", mask=None)
    with pytest.raises(ValueError, match=r"special token '<s>' is not among the \d+ tokens"):
        TextTokenizer(world.backend, pad="[PAD]", start="<s>", end="[SEP]", unknown="[UNK]", mask=None)
