"""What stands here as expected is what Stanford's PTBTokenizer 3.4.1 gave for these sentences."""

import importlib.util
import json
import shutil
import subprocess

import pytest

from lightning_modules.metrics.ptb_tokenizer import tokenize


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man riding a wave on top of a surfboard.", "a man riding a wave on top of a surfboard"),
        ("Gonna say he can't, won't; cannot: it's o'clock.", "gon na say he ca n't wo n't can not it 's o'clock"),
        ("A man's (tall) hat & a $5.00 bill [x] {y}",
         "a man 's -lrb- tall -rrb- hat & a $ 5.00 bill -lsb- x -rsb- -lcb- y -rcb-"),
        ('He said "hello there" to \'em.', "he said hello there to 'em"),
        ("3,000 people at 10:30 a.m. on Jan. 5th", "3,000 people at 10:30 a.m. on jan. 5th"),
        ("a t-shirt -- red - and white... ok!?", "a t-shirt red and white ok !?"),
        ("Mr. and Mrs. Smith vs. U.S.A.", "mr. and mrs. smith vs. u.s.a."),
        ("the dogs' toys and James's", "the dogs toys and james 's"),
        ("50% off / half and/or full #1 @home", "50 % off / half and/or full # 1 @home"),
        ("I'm you're they've we'd she'll LET'S", "i 'm you 're they 've we 'd she 'll let 's"),
        ("it’s “quoted” ‘single’ — dash – en … dots", "it 's quoted single dash en dots"),
        ("'90s, 'tis 5' 6\" tall", "'90s 't is 5 6 tall"),
        ("café naïve Zürich 東京", "café naïve zürich 東京"),
        ("two words_with_underscore *star* <tag> =", "two words_with_underscore * star * <tag> ="),
        ("", ""),
    ],
)  # fmt: skip
def test_as_the_java_program(caption, words):
    assert tokenize(caption) == words.split()


def test_against_the_java_program_on_human_captions(mirror, tmp_path):
    if shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None:
        pytest.skip("java or the package pycocoevalcap is not there")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = json.loads((mirror / "cider-abstract48s/abstract48S.json").read_text())
    captions = [" ".join(row["caption"].split()) for row in rows]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    command = ["java", "-cp", "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines"]
    folder = importlib.util.find_spec("pycocoevalcap.tokenizer").submodule_search_locations[0]
    said = subprocess.run(
        [*command, "-lowerCase", str(tmp_path / "captions.txt")], cwd=folder, capture_output=True, text=True, check=True
    )
    dropped = PTBTokenizer.tokenize.__globals__["PUNCTUATIONS"]
    theirs = [[word for word in line.split() if word not in dropped] for line in said.stdout.splitlines()]
    assert len(theirs) == len(captions) == 24000
    assert [tokenize(caption) for caption in captions] == theirs
