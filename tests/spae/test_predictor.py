"""Words of a user's pictures, pictures of words, and names from examples: by command and in Python."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from lightning_modules.datasets.video.drawn import encode
from lightning_modules.spae.predictor import Namer, Speller
from stages.composing import compose


def network(system, **overrides):
    torch.manual_seed(0)
    block = compose("tiny", system=system, overrides=overrides)["system"]["model"]
    return instantiate(block, _convert_="all").eval()


@pytest.fixture(scope="module")
def module():
    return network("spae", **{"model.tokenizer.table.source": "random"})


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    return tmp_path / "mine.png", torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]


def drawn(module, words, upto):
    return (module.picture_of(words, upto)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def test_a_picture_becomes_words_and_each_prefix_a_picture(module, picture):
    path, pixels = picture
    *layers, last = Speller(module).answer(path)
    words = module.words_of(pixels)
    assert [answer["words"].split() for answer in layers] == [module.table.spelled(own) for own in words]
    assert [answer["tokens"] for answer in layers] == module.tokenizer.pyramid.cumulative()
    for upto, answer in enumerate(layers, start=1):
        np.testing.assert_array_equal(np.asarray(answer["picture"]), drawn(module, words, upto))
    error = (module.picture_of(words)[0] - pixels[0] / 255).square().mean()
    assert layers[-1]["psnr"] == pytest.approx(-10 * np.log10(error.item()), abs=0.01)
    np.testing.assert_array_equal(last["numbers"], torch.cat(words, dim=1)[0].numpy())


def test_words_become_a_picture(module, picture, tmp_path):
    """A line for each of the first layers, in any case; or the numbers that were answered."""
    words = module.words_of(picture[1])
    lines = [" ".join(module.table.spelled(own)) for own in words[:2]]
    (tmp_path / "words.txt").write_text("\ufeff" + lines[0].upper() + "\n\n" + lines[1] + "\n", encoding="utf-8")
    answers = list(Speller(module).answer(tmp_path / "words.txt"))
    assert [answer["words"] for answer in answers] == lines and "psnr" not in answers[0]
    for upto, answer in enumerate(answers, start=1):
        np.testing.assert_array_equal(np.asarray(answer["picture"]), drawn(module, words, upto))
    np.save(tmp_path / "numbers.npy", torch.cat(words, dim=1)[0].numpy())
    *_, whole = Speller(module).answer(tmp_path / "numbers.npy")
    np.testing.assert_array_equal(np.asarray(whole["picture"]), drawn(module, words, len(words)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("words.txt", "redd", r"words\.txt has 'redd', expected words of the table, such as 'red'"),
        ("words.txt", "red red", r"has lines of \[2\] words, expected a line for each of the first layers: \[1, 4, "),
        ("words.txt", "\n", r"has lines of \[\] words"),
        ("words.txt", b"\xff\xfe\x00\xd8", "cannot be read as text"),
        ("WORDS.TXT", "redd", r"WORDS\.TXT has 'redd', expected words of the table"),
        ("words.txt", None, r"words\.txt cannot be read: No such file or directory\.$"),
        ("numbers.npy", np.zeros(7, np.int64), r"int64 of shape \(7,\), expected a row of whole numbers"),
        ("numbers.npy", np.zeros(5), r"float64 of shape \(5,\)"),
        ("numbers.npy", np.full(1, 100_000), "words numbered from 100000 to 100000, expected 0 to"),
        ("mine.png", b"no picture", r"mine\.png cannot be read as a picture"),
    ],
)
def test_what_cannot_be_read_says_why(module, tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        list(Speller(module).answer(path))
    assert "\n" not in str(caught.value)


def test_a_video_becomes_words_and_clips(tmp_path):
    module = network("spae_video", **{"model.tokenizer.table.source": "random"})
    encode(tmp_path / "mine.mp4", 8)
    *layers, last = Speller(module).answer(tmp_path / "mine.mp4")
    frames, size = module.tokenizer.frames, module.tokenizer.size
    assert {answer["video"].shape for answer in layers} == {(frames, size, size, 3)}
    assert layers[0]["frames"].size == (frames * size, size) and len(last["numbers"]) == layers[-1]["tokens"]


@pytest.fixture
def examples(tmp_path):
    """Two names with two and three pictures, and what is no example."""
    rng, folder = np.random.default_rng(0), tmp_path / "examples"
    for name, count in (("circle", 3), ("square", 2)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    (folder / "square/cut.png").write_bytes((folder / "square/1.png").read_bytes()[:99])
    (folder / "notes.txt").write_text("no example")
    return folder


def test_pictures_are_named_after_examples(examples, picture):
    module = network("spae_in_context")
    module.tokenizer.table.fill(module.language.embeddings)
    namer = Namer(module)
    assert namer.begin([picture[0]], examples) == [picture[0]]
    assert len(namer.refused) == 1 and "cut.png cannot be read" in namer.refused[0]
    assert namer.names == ["circle", "square"] * 2 and len(namer.context) == 4
    answers = list(namer.answer(picture[0]))
    assert [answer["rank"] for answer in answers] == [1, 2]
    assert {answer["name"] for answer in answers} == {"circle", "square"}
    chances = [answer["probability"] for answer in answers]
    assert chances[0] >= chances[1] and sum(chances) == pytest.approx(1, abs=1e-5)


def test_a_namer_needs_examples_of_two_names(examples, picture, tmp_path):
    namer = Namer(network("spae_in_context"))
    with pytest.raises(ValueError, match="cannot be named without examples"):
        next(namer.answer(picture[0]))
    for among in (None, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"--among is .*, expected a folder of examples"):
            namer.begin([picture[0]], among)
    for path in sorted((examples / "square").iterdir()):
        path.unlink()
    with pytest.raises(ValueError, match="has pictures of 1 names, expected two at least"):
        namer.begin([picture[0]], examples)


@pytest.fixture(scope="module")
def naming():
    return network("spae_in_context")


def copied(examples, name, count):
    """Further examples in a folder, which may be new."""
    (examples / name).mkdir(exist_ok=True)
    for number in range(count):
        (examples / name / f"more-{number}.png").write_bytes((examples / "circle/0.png").read_bytes())


def test_hidden_files_are_no_examples(examples, picture, naming):
    (examples / "circle/.DS_Store").write_bytes(b"no picture")
    namer = Namer(naming)
    namer.begin([picture[0]], examples)
    assert [reason.split()[0].rpartition("/")[2] for reason in namer.refused] == ["cut.png"]


@pytest.mark.parametrize("name", ["Circle", "CIRCLE"])
def test_names_that_differ_in_capitals_alone_are_refused(examples, picture, naming, name):
    copied(examples, name, 1)
    with pytest.raises(ValueError, match=f"{name} and circle are one name to the language model"):
        Namer(naming).begin([picture[0]], examples)


def test_a_name_that_the_language_model_does_not_know_is_refused(examples, picture, naming):
    copied(examples, "trianglee", 1)
    with pytest.raises(ValueError, match=r"the label 'trianglee' .*, such as triangle"):
        Namer(naming).begin([picture[0]], examples)


def test_more_examples_than_positions_are_refused(examples, picture, naming):
    for name in ("circle", "square"):
        copied(examples, name, 60)
    with pytest.raises(ValueError, match="512 positions of the language model: give fewer than 62 examples of each"):
        Namer(naming).begin([picture[0]], examples)


def test_an_array_of_two_pictures_is_no_picture(examples, picture, naming, tmp_path):
    np.save(tmp_path / "two.npy", np.zeros((2, 32, 32, 3), np.uint8))
    np.save(examples / "circle/two.npy", np.zeros((2, 32, 32, 3), np.uint8))
    namer = Namer(naming)
    namer.begin([picture[0]], examples)
    assert "two.npy holds 2 pictures, expected one" in namer.refused[0]
    with pytest.raises(ValueError, match=r"two\.npy holds 2 pictures, expected one"):
        next(namer.answer(tmp_path / "two.npy"))
