"""The blinded study: its page knows nothing of where clips come from, and what people said is counted."""

import json
import re

import pytest

from lightning_modules.fgla import study


@pytest.fixture
def films(tmp_path):
    """Four films of each of two ways."""
    for way in ("ours", "theirs"):
        (tmp_path / way).mkdir()
        for name in "abcd":
            (tmp_path / way / f"{name}.mp4").write_bytes(f"film {name} of {way} </script>".encode())
    return tmp_path


@pytest.fixture
def made(films, capsys):
    study.main([str(films / "ours"), str(films / "theirs"), "--out", str(films / "study")])
    assert "study.html has 4 pairs" in capsys.readouterr().out
    return films / "study"


def vote(folder, subject, chosen, **changes):
    """A file of votes: `chosen` says of each pair whether the first folder's film was chosen."""
    key = json.loads((folder / "key.json").read_text())
    other = {"left": "right", "right": "left"}
    votes = [{"pair": number, "chosen": pair["first"] if first else other[pair["first"]]}
             for number, (pair, first) in enumerate(zip(key["pairs"], chosen, strict=True))]  # fmt: skip
    ballot = {"study": key["study"], "subject": subject, "votes": votes[::-1]} | changes
    (folder / f"votes-{subject}.json").write_text(json.dumps(ballot))


def test_the_page_shows_each_pair_and_not_where_it_comes_from(made, films):
    page = (made / "study.html").read_text()
    [told] = re.findall(r'<script type="application/json" id="study">(.*?)</script>', page, re.DOTALL)
    told = json.loads(told)
    assert set(told) == {"study", "question", "pairs"} and len(told["pairs"]) == 4
    assert all(set(pair) == {"left", "right"} for pair in told["pairs"])
    assert not re.search(r"https?://|ours|theirs", page)
    key = json.loads((made / "key.json").read_text())
    assert [pair["first"] for pair in key["pairs"]].count("left") == 2
    assert key["study"] == told["study"]


def test_films_are_on_the_side_that_the_key_says(films):
    key, shown = study.pairs_of(films / "ours", films / "theirs", 3)
    for pair, sides in zip(key["pairs"], shown, strict=True):
        assert b"of ours" in sides[pair["first"]] and pair["name"][0].encode() in sides["left"]
    assert study.pairs_of(films / "ours", films / "theirs", 3)[0] == key


def test_votes_are_counted_whichever_side_they_were_on(made):
    vote(made, "x", [True, True, True, False])
    vote(made, "y", [True, False, True, False])
    found = study.judged(str(made), "ours")
    assert found["votes/percent"] == pytest.approx(62.5)
    assert (found["votes/subjects"], found["votes/subjects_percent"]) == (2.0, 75.0)
    assert found["votes/low_percent"] < 62.5 < found["votes/high_percent"]


def test_an_arm_that_was_not_the_first_has_no_votes(made):
    vote(made, "x", [True] * 4)
    assert study.judged(str(made), "theirs") == {}
    assert "is of 'ours' and 'theirs', not of 'fgla'" in study.not_of(str(made), "fgla")


def test_no_side_is_preferred_where_the_number_of_films_is_odd(films):
    for name in "bcd":
        for way in ("ours", "theirs"):
            (films / way / f"{name}.mp4").unlink()
    keys = [study.pairs_of(films / "ours", films / "theirs", seed)[0] for seed in range(20)]
    assert {pair["first"] for key in keys for pair in key["pairs"]} == {"left", "right"}


def test_a_new_pair_takes_no_vote_at_once(made):
    assert "if (performance.now() - shown < PAUSE) return;" in (made / "study.html").read_text()


def test_wilsons_interval():
    assert study.wilson(50.0, 100) == pytest.approx((0.403832, 0.596168), abs=1e-6)
    assert study.wilson(0.0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert study.wilson(10.0, 10)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"study": "another"}, r"votes-x.json is of the study 'another', but key.json beside it is of"),
    ({"votes": []}, r"has votes for the pairs \[\]... \(0\), expected one for each of the 4 pairs"),
    ({"votes": [{"pair": 0, "chosen": "left"}] * 4}, r"pairs \[0, 0, 0, 0\]... \(4\), expected one for each"),
    ({"votes": [{"pair": 0, "chosen": "both"}]}, r"votes-x.json: ballot.votes.0.chosen is 'both', expected"),
    ({"age": 3}, r"votes-x.json: ballot: unknown key 'age'"),
])  # fmt: skip
def test_votes_that_cannot_be_counted_are_refused(made, changes, message):
    vote(made, "x", [True] * 4, **changes)
    with pytest.raises(ValueError, match=message):
        study.judged(str(made), "ours")


def test_what_is_missing_or_there_twice_is_named(made):
    with pytest.raises(ValueError, match=r"holds no votes-\*.json: put the files that the page of the study saved"):
        study.judged(str(made), "ours")
    vote(made, "x", [True] * 4)
    (made / "votes-copy.json").write_bytes((made / "votes-x.json").read_bytes())
    with pytest.raises(ValueError, match="has the votes of 'x' for the second time: keep one file of each"):
        study.judged(str(made), "ours")
    (made / "votes-copy.json").write_text('{"study": ')
    with pytest.raises(ValueError, match=r"votes-copy.json cannot be read"):
        study.judged(str(made), "ours")
    with pytest.raises(ValueError, match=r"elsewhere/key.json cannot be read"):
        study.judged(str(made / "elsewhere"), "ours")


def test_folders_must_have_the_same_films(films, capsys):
    (films / "theirs/d.mp4").unlink()
    with pytest.raises(SystemExit, match=r"ours has 4 films \(.mp4\) and .*theirs has 3, such as d.mp4 in one alone"):
        study.main([str(films / "ours"), str(films / "theirs"), "--out", str(films / "study")])
    with pytest.raises(SystemExit, match=r"nowhere has 0 films"):
        study.main([str(films / "nowhere"), str(films / "theirs"), "--out", str(films / "study")])


def test_a_key_is_not_replaced_by_that_of_other_films(made, films):
    (films / "ours/a.mp4").write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"key.json is of another study: give a folder of its own with --out"):
        study.main([str(films / "ours"), str(films / "theirs"), "--out", str(made)])
