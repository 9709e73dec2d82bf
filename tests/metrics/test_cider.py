import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.metrics.cider import CaptionReward, CiderD, DocumentFrequencies
from lightning_modules.metrics.ptb_tokenizer import tokenize
from tests.reference import cider as plain

REFERENCES = {
    1: ["a red square on the left", "there is a red square at left"],
    2: ["a blue circle on the right", "one blue circle at right"],
    3: ["a green triangle in the middle", "the green triangle is centred"],
}
WORDS = {image: [sentence.split() for sentence in sentences] for image, sentences in REFERENCES.items()}
FIRST = [sentences[0] for sentences in WORDS.values()]


def test_values_of_the_official_scorer():
    """Computed with `Cider` of pycocoevalcap 1.2."""
    score = CiderD(WORDS)
    np.testing.assert_allclose(score([1, 2, 3], FIRST), [6.78088978, 6.3298947, 5.97175927], atol=5e-9)
    assert score([1, 2, 3], FIRST).mean() == pytest.approx(6.360847918242482, abs=1e-12)
    assert score([1, 2, 3], FIRST[1:] + FIRST[:1]).mean() == pytest.approx(0.03181835, abs=5e-9)
    long = [*FIRST[0], *"and a lot of other words here too".split()]
    np.testing.assert_allclose(score([1, 1], [["red"] * 5, long]), [0.25363418, 1.66950264], atol=5e-9)


def test_published_value(nlg_eval):
    """As nlg-eval prints it."""
    said, known = nlg_eval
    score = CiderD({number: [text.split() for text in texts] for number, texts in known.items()})
    assert f"{score(list(said), [text.split() for text in said.values()]).mean():.6f}" == "1.242192"


def test_human_captions_with_48_references(mirror):
    """The first caption of each of the 200 images, against pycocoevalcap 1.2 on the same words."""
    known, said = {}, {}
    for row in json.loads((mirror / "cider-abstract48s/abstract_candsB.json").read_text()):
        said.setdefault(row["image_id"], tokenize(row["caption"]))
    for row in json.loads((mirror / "cider-abstract48s/abstract48S.json").read_text()):
        if row["image_id"] in said:
            known.setdefault(row["image_id"], []).append(tokenize(row["caption"]))
    assert len(said) == 200 and {len(each) for each in known.values()} == {48}
    assert CiderD(known)(list(said), list(said.values())).mean() == pytest.approx(0.7092218749381566, abs=1e-12)


sentences = st.lists(st.sampled_from("a b c d".split()), max_size=7)
corpora = st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=3)), min_size=2, max_size=4)


@settings(max_examples=60, deadline=None)
@given(corpora)
def test_equals_the_formula_term_by_term(corpus):
    documents = [references for _, references in corpus]
    found = CiderD(dict(enumerate(documents)))(range(len(corpus)), [caption for caption, _ in corpus])
    expected = [plain.cider_d(caption, references, documents) for caption, references in corpus]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert ((found >= 0) & (found <= 10 + 1e-9)).all()


def test_the_only_reference_itself_scores_10():
    score = CiderD({image: sentences[:1] for image, sentences in WORDS.items()})
    np.testing.assert_allclose(score([1, 2, 3], FIRST), 10)


def test_a_table_counted_elsewhere():
    elsewhere = DocumentFrequencies.of(WORDS.values())
    part = {image: WORDS[image] for image in (2, 3)}
    np.testing.assert_array_equal(CiderD(part, elsewhere)([2, 3], FIRST[1:]), CiderD(WORDS)([2, 3], FIRST[1:]))
    assert elsewhere.counts["a",] == 3 and elsewhere.counts["red", "square"] == 1 and elsewhere.documents == 3
    assert CiderD({1: WORDS[1]}, elsewhere)([1], FIRST[:1]) > 6


def test_one_image_scores_nothing_and_says_so():
    with pytest.warns(UserWarning, match="a single image is 0 whatever its captions"):
        score = CiderD({1: WORDS[1]})
    assert score([1], FIRST[:1]).tolist() == [0.0]


def test_an_empty_caption_scores_nothing():
    assert CiderD(WORDS)([1], [[]]).tolist() == [0.0]


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="there are no references"):
        CiderD({})
    with pytest.raises(ValueError, match=r"1 \(7\) of 2 images have no references"):
        CiderD({1: WORDS[1], 7: []})
    score = CiderD(WORDS)
    with pytest.raises(ValueError, match=r"no references for 2 \('1', '9'\) of the captioned images.*3 \(1, 2, 3\)"):
        score(["1", 2, "9"], FIRST)
    with pytest.raises(ValueError, match="3 captions of 2 images"):
        score([1, 2], FIRST)


def test_the_same_bits_in_every_process():
    """Words have another hash in each process: no sum may run in the order of a set."""
    code = (
        "from lightning_modules.metrics.cider import CiderD\n"
        "words = [f'w{number * number % 37}' for number in range(40)]\n"
        "known = {k: [words[k : k + 20], words[k + 3 : k + 17]] for k in range(6)}\n"
        "print([value.hex() for value in CiderD(known)(range(6), [words[k + 2 : k + 19] for k in range(6)]).tolist()])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, cwd=Path(__file__).parents[2],
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }  # fmt: skip
    assert len(said) == 1


CLS, SEP, DOT, PAD = 101, 102, 1012, 0
IDS = {
    image: [[CLS, *(3000 + sum(map(ord, word)) for word in words), DOT, SEP] for words in sentences]
    for image, sentences in WORDS.items()
}


def sampled(*captions):
    return np.array([[*ids, *[PAD] * (16 - len(ids))] for ids in captions])


def test_a_reward_is_the_score_of_the_words():
    reward = CaptionReward(IDS, end=DOT, markers=[CLS, SEP, PAD])
    captions = sampled(IDS[1][0], IDS[2][0], IDS[3][0], IDS[2][0][:-1])
    np.testing.assert_allclose(reward([1, 2, 3, 1], captions)[:3], CiderD(WORDS)([1, 2, 3], FIRST))
    assert reward([1, 2, 3, 1], captions)[3] < 0.2
    after_the_end = captions.copy()
    after_the_end[:, 9:] = 3333
    np.testing.assert_array_equal(reward([1, 2, 3, 1], after_the_end), reward([1, 2, 3, 1], captions))


def test_the_official_reward_counts_documents_in_rows_and_markers_as_words():
    """`Cider` of pycocoevalcap on the strings "101 ... 1012", with the sampled rows first and the greedy ones below."""
    official = CaptionReward(IDS, end=DOT, markers=[CLS, SEP, PAD], batch_frequencies=True, markers_inside=True)
    images, captions = [1, 2, 1, 2], sampled(IDS[1][1], [CLS, 5000, DOT], IDS[1][0], IDS[2][0])
    strings = {image: [[*ids[: ids.index(DOT)], DOT] for ids in known] for image, known in IDS.items()}
    rows = [strings[image] for image in images]
    said = [[token for token in row if token != PAD] for row in captions.tolist()]
    said = [row[: row.index(DOT) + 1] for row in said]
    expected = [plain.cider_d(words, references, rows) for words, references in zip(said, rows, strict=True)]
    np.testing.assert_allclose(official(images, captions), expected, atol=1e-12)
    words = CaptionReward(IDS, end=DOT, markers=[CLS, SEP, PAD], batch_frequencies=True)
    assert official(images, captions)[0] != pytest.approx(words(images, captions)[0], abs=1e-3)


def test_batch_frequencies_of_one_image_are_no_reward():
    reward = CaptionReward(IDS, end=DOT, markers=[CLS, SEP, PAD], batch_frequencies=True)
    with pytest.warns(UserWarning, match="single image"):
        assert reward([1, 1], sampled(IDS[1][0], IDS[1][1])).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match=r"no references for 1 \(8\)"):
        reward([1, 8], sampled(IDS[1][0], IDS[1][1]))
