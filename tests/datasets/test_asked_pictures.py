"""VQA 2.0, SNLI-VE, NLVR2 and captions, on small files in the official forms, and on real lists."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lightning_modules.datasets import captioned_pictures, nlvr2, snli_ve, storage, vqa2
from lightning_modules.datasets.download import DataUnavailable

REAL = Path(__file__).parents[2].parent / "shared/realdata"


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (200, 0, 9)).save(path, "JPEG")


def lines(path: Path, *entries: dict) -> None:
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


# VQA 2.0

FILES = {"questions": "questions.json", "annotations": "annotations.json", "images": "train2014", "rows": 3}


@pytest.fixture
def vqa(tmp_path):
    folder = tmp_path / "vqa2"
    for image in (9, 25):
        picture(folder / f"train2014/COCO_train2014_{image:012d}.jpg")
    asked = [(9, "Is it red? ", 9000), (25, "How many?", 25000), (9, "What is it?", 9001)]
    questions = [{"image_id": image, "question": text, "question_id": number} for image, text, number in asked]
    said = {
        9000: ("yes/no", ["yes"] * 10),
        25000: ("number", ["2"] * 6 + ["two"] * 4),
        9001: ("other", ["a cat"] * 9 + ["dog"]),
    }
    annotations = [
        {"question_id": number, "image_id": 9, "question_type": "what", "answer_type": kind,
         "multiple_choice_answer": answers[0],
         "answers": [{"answer": answer, "answer_id": i} for i, answer in enumerate(answers)]}
        for number, (kind, answers) in said.items()
    ]  # fmt: skip
    (folder / "questions.json").write_text(json.dumps({"info": {}, "questions": questions}))
    (folder / "annotations.json").write_text(json.dumps({"info": {}, "annotations": annotations}))
    return folder


def prepare_vqa(folder, copy, **changes):
    config = {
        "splits": {"train": FILES}, "vocabulary": {"splits": ["train"], "occurrences": 1, "count": 3}, "limit": None,
        "mirror": str(copy), "cache": "none",
    }  # fmt: skip
    vqa2.prepare(folder, **config | changes)


def test_a_picture_has_all_its_questions_with_what_people_answered(vqa, tmp_path):
    prepare_vqa(tmp_path / "new", vqa)
    rows = storage.read(tmp_path / "new", "train")
    assert rows["id"].tolist() == [9, 25]
    assert list(rows["questions"]) == [["Is it red?", "What is it?"], ["How many?"]]
    assert list(rows["question_ids"]) == [["9000", "9001"], ["25000"]]
    assert list(rows["kinds"]) == [["yes/no", "other"], ["number"]]
    assert json.loads(rows["answers"][1][0]) == {"2": 6, "two": 4}
    assert vqa2.read_answers(tmp_path / "new") == ["2", "cat", "yes"]


def test_a_test_set_has_no_answers(vqa, tmp_path):
    splits = {"train": FILES, "test": FILES | {"annotations": None}}
    prepare_vqa(tmp_path / "new", vqa, splits=splits)
    assert list(storage.read(tmp_path / "new", "test")["answers"]) == [["{}", "{}"], ["{}"]]


def test_answers_are_kept_if_they_are_frequent(vqa):
    questions = {"train": vqa2.read_questions(vqa / "questions.json", vqa / "annotations.json") * 9}
    assert vqa2.choose_answers(questions, {"splits": ["train"], "occurrences": 9, "count": None}) == ["2", "cat", "yes"]
    with pytest.raises(ValueError, match="0 answers are given 10 times or more in train, expected 3129"):
        vqa2.choose_answers(questions, {"splits": ["train"], "occurrences": 10, "count": 3129})
    with pytest.raises(ValueError, match=r"vocabulary\.splits has val, expected some of train"):
        vqa2.choose_answers(questions, {"splits": ["val"], "occurrences": 9, "count": None})


def test_results_have_the_form_of_the_server():
    assert json.loads(vqa2.results([(9000, "yes"), (25000, "2")])) == [
        {"question_id": 9000, "answer": "yes"},
        {"question_id": 25000, "answer": "2"},
    ]


def test_files_of_vqa_that_do_not_hold_are_refused(vqa, tmp_path):
    with pytest.raises(ValueError, match="has 3 questions, expected 443757"):
        prepare_vqa(tmp_path / "new", vqa, splits={"train": FILES | {"rows": 443757}})
    with pytest.raises(DataUnavailable, match=r"missing\.json could not be had"):
        prepare_vqa(tmp_path / "new", vqa, splits={"train": FILES | {"questions": "missing.json"}})
    told = json.loads((vqa / "annotations.json").read_text())
    (vqa / "annotations.json").write_text(json.dumps({"annotations": told["annotations"][:2]}))
    with pytest.raises(ValueError, match=r"has no answers to 1 questions of .*, 9001 first"):
        prepare_vqa(tmp_path / "new", vqa)
    asked = json.loads((vqa / "questions.json").read_text())
    (vqa / "questions.json").write_text(json.dumps({"questions": [asked["questions"][0] | {"image_id": "9"}]}))
    with pytest.raises(ValueError, match=r"questions\.json has the question_id 9000 with the image_id '9', not two"):
        prepare_vqa(tmp_path / "new", vqa)
    (vqa / "annotations.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        prepare_vqa(tmp_path / "new", vqa)
    (vqa / "annotations.json").write_text(json.dumps({"annotations": [{"question_id": 9000}]}))
    with pytest.raises(ValueError, match="does not have the official form"):
        prepare_vqa(tmp_path / "new", vqa)
    with pytest.raises(ValueError, match=r"has no answers\.json"):
        vqa2.read_answers(tmp_path)


def test_missing_pictures_are_counted(vqa, tmp_path):
    (vqa / "train2014/COCO_train2014_000000000025.jpg").unlink()
    with pytest.raises(ValueError, match="1 of 2 picture files are broken, more than max_broken"):
        prepare_vqa(tmp_path / "new", vqa)
    prepare_vqa(tmp_path / "new", vqa, max_broken=0.1)
    assert storage.card(tmp_path / "new")["splits"] == {"train": 1}


# SNLI-VE


def told(picture: str, sentence: str, label: str) -> dict:
    return {"pairID": f"{picture}.jpg#0r1e", "gold_label": label, "sentence1": "A dog.", "sentence2": sentence}


@pytest.fixture
def snli(tmp_path, monkeypatch):
    monkeypatch.setattr(snli_ve, "HELD", 1)
    folder = tmp_path / "snli_ve"
    for name in ("11", "12", "13"):
        picture(folder / snli_ve.FOLDER / f"{name}.jpg")
    lines(folder / "snli_1.0_train.jsonl", told("12", "It sleeps.", "neutral"), told("11", "It runs.", "entailment"),
          told("11", "It is a cat.", "contradiction"), told("11", "It may be.", "-"))  # fmt: skip
    lines(folder / "snli_1.0_dev.jsonl", told("13", "It barks.", "neutral"))
    lines(folder / "snli_1.0_test.jsonl", {**told("7", "A man.", "neutral"), "pairID": "vg_7.jpg#0"},
          told("11", "There is an animal.", "entailment"))  # fmt: skip
    (folder / "flickr30k_train_val.lst").write_text("11\n12\n")
    (folder / "flickr30k_test.lst").write_text("13")
    return folder


def prepare_snli(folder, copy, **changes):
    splits = {"train": 3, "dev": 1, "test": 1}
    config = {"form": "snli", "splits": splits, "limit": None, "mirror": str(copy), "cache": "none"}
    snli_ve.prepare(folder, **config | changes)


def test_snli_becomes_snli_ve_by_its_pictures(snli, tmp_path):
    prepare_snli(tmp_path / "new", snli)
    train, dev, test = (storage.read(tmp_path / "new", split) for split in ("train", "dev", "test"))
    assert train["id"].tolist() == [11]
    assert list(train["statements"][0]) == ["It runs.", "It is a cat.", "There is an animal."]
    assert list(train["labels"][0]) == ["entailment", "contradiction", "entailment"]
    assert (dev["id"].tolist(), test["id"].tolist()) == ([12], [13])


@pytest.mark.parametrize("name", ["Flickr30K_ID", "Flikr30kID"])
def test_the_files_of_the_authors_are_read(snli, tmp_path, name):
    lines(snli / "snli_ve_dev.jsonl", {**told("12", "It sleeps.", "neutral"), name: "12"})
    prepare_snli(tmp_path / "new", snli, form="snli_ve", splits={"dev": None})
    assert list(storage.read(tmp_path / "new", "dev")["statements"][0]) == ["It sleeps."]


def test_files_of_snli_ve_that_do_not_hold_are_refused(snli, tmp_path):
    with pytest.raises(ValueError, match="the split train of SNLI-VE has 3 sentences, expected 529527"):
        prepare_snli(tmp_path / "new", snli, splits={"train": 529527})
    with pytest.raises(ValueError, match="splits has val, expected some of train, dev, test"):
        prepare_snli(tmp_path / "new", snli, splits={"val": None})
    lines(snli / "snli_1.0_dev.jsonl", told("13", "It barks.", "maybe"))
    with pytest.raises(ValueError, match=r"line 1 of .* has the label 'maybe'"):
        prepare_snli(tmp_path / "new", snli)
    lines(snli / "snli_1.0_dev.jsonl", {"gold_label": "neutral"})
    with pytest.raises(ValueError, match=r"line 1 of .* has no pairID, sentence2"):
        prepare_snli(tmp_path / "new", snli)
    (snli / "flickr30k_test.lst").write_text("a picture")
    lines(snli / "snli_1.0_dev.jsonl", told("13", "It barks.", "neutral"))
    with pytest.raises(ValueError, match="has 'a', expected the number of a picture"):
        prepare_snli(tmp_path / "new", snli)


def test_wrong_names_of_pictures_and_other_encodings_are_refused_with_file_and_line(snli, tmp_path):
    place = snli / "snli_1.0_dev.jsonl"
    lines(place, told("13", "It barks.", "neutral"), told("x7", "It barks.", "neutral"))
    with pytest.raises(ValueError, match=r"line 2 of .*dev\.jsonl has the picture 'x7', expected a number"):
        prepare_snli(tmp_path / "new", snli)
    lines(place, told("13", "It barks.", "neutral") | {"pairID": 13})
    prepare_snli(tmp_path / "new", snli)
    place.write_bytes(json.dumps(told("13", "Ein H\u00fcgel.", "neutral"), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match=r"dev\.jsonl is not UTF-8 .*: save it so"):
        prepare_snli(tmp_path / "new", snli)
    (snli / "flickr30k_test.lst").write_bytes("13 \u00fc".encode("latin-1"))
    with pytest.raises(ValueError, match=r"flickr30k_test\.lst is not UTF-8"):
        snli_ve.read_list(snli / "flickr30k_test.lst")
    lines(place, {"Flickr30K_ID": "x7", "gold_label": "neutral", "sentence2": "It barks."})
    with pytest.raises(ValueError, match=r"line 1 of .*dev\.jsonl has the picture 'x7', expected a number"):
        snli_ve.read_snli_ve(place)


def test_a_sentence_may_have_a_line_separator_in_it(snli):
    said = {"Flickr30K_ID": "13", "gold_label": "neutral", "sentence2": "It barks.\u2028Or not."}
    (snli / "one.jsonl").write_text(json.dumps(said, ensure_ascii=False) + "\r\n")
    assert snli_ve.read_snli_ve(snli / "one.jsonl") == {"13": [("It barks.\u2028Or not.", "neutral")]}


@pytest.mark.skipif(not (REAL / "snli-ve-vqa-lists").is_dir(), reason="the real lists are not there")
def test_the_real_lists_have_the_pictures_of_flickr30k():
    first, test = (snli_ve.read_list(REAL / "snli-ve-vqa-lists" / file) for file in snli_ve.LISTS.values())
    assert (len(first) - snli_ve.HELD, len(test)) == (29_783, 1_000)
    assert not set(first) & set(test)


# NLVR2


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "nlvr2"
    for name in ("3/train-1-0", "3/train-1-1", "4/train-2-0"):
        for side in nlvr2.SIDES:
            picture(folder / f"images/train/{name}-{side}.png")
    said = [
        ("train-1-0-0", "True", 3),
        ("train-1-1-0", "False", 3),
        ("train-1-0-1", "false", 3),
        ("train-2-0-0", "True", 4),
    ]
    lines(folder / "train.json", *({"sentence": f"Said {name}.", "identifier": name, "label": label, "directory": place}
                                   for name, label, place in said))  # fmt: skip
    return folder


def prepare_pairs(folder, copy, **changes):
    splits = {"train": {"file": "train.json", "images": "images/train", "rows": 4}}
    nlvr2.prepare(folder, **{"splits": splits, "limit": None, "mirror": str(copy), "cache": "none"} | changes)


def test_a_pair_is_two_rows_with_its_sentences_in_the_first(pairs, tmp_path):
    prepare_pairs(tmp_path / "new", pairs)
    rows = storage.read(tmp_path / "new", "train")
    assert rows["id"].tolist() == [0, 0, 1, 1, 2, 2]
    assert list(rows["statements"]) == [["Said train-1-0-0.", "Said train-1-0-1."], [], ["Said train-1-1-0."], [],
                                        ["Said train-2-0-0."], []]  # fmt: skip
    assert list(rows["labels"])[::2] == [["true", "false"], ["false"], ["true"]]
    assert list(rows["groups"])[::2] == [["0", "1"], ["0"], ["2"]]


def test_a_pair_with_a_broken_picture_is_left_out_whole(pairs, tmp_path):
    (pairs / "images/train/3/train-1-1-img1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="1 of 2 pairs of pictures are broken, more than max_broken"):
        prepare_pairs(tmp_path / "new", pairs)
    prepare_pairs(tmp_path / "new", pairs, max_broken=0.06)
    assert storage.read(tmp_path / "new", "train")["id"].tolist() == [0, 0, 2, 2]


def test_files_of_nlvr2_that_do_not_hold_are_refused(pairs, tmp_path):
    splits = {"train": {"file": "train.json", "images": "images/train", "rows": 86373}}
    with pytest.raises(ValueError, match="has 4 sentences, expected 86373"):
        prepare_pairs(tmp_path / "new", pairs, splits=splits)
    lines(pairs / "train.json", {"sentence": "It is.", "identifier": "train", "label": "True"})
    with pytest.raises(ValueError, match=r"line 1 of .* has the identifier 'train' and the label 'True', expected"):
        prepare_pairs(tmp_path / "new", pairs)
    (pairs / "train.json").write_text("")
    with pytest.raises(ValueError, match="has no lines"):
        prepare_pairs(tmp_path / "new", pairs)


@pytest.mark.skipif(not (REAL / "nlvr2").is_dir(), reason="the real files are not there")
def test_the_real_sentences_are_read():
    found = nlvr2.read_pairs(REAL / "nlvr2/nlvr2_data_dev.json")
    assert sum(len(pair.said) for pair in found) == 6982
    assert found[0].left == "dev-850-0-img0.png"
    groups = {group for pair in found for *_, group in pair.said}
    assert len(groups) == 2018  # unique sentences, each judged of up to four pairs
    assert len(nlvr2.read_pairs(REAL / "nlvr2/nlvr2_data_balanced_balanced_dev.json")) == 1150


# COCO and Visual Genome


@pytest.fixture
def captions(tmp_path):
    folder = tmp_path / "coco_and_visual_genome"
    entries = []
    for number, (split, half) in enumerate(
        [("train", "train2014"), ("restval", "val2014"), ("val", "val2014"), ("test", "val2014")]
    ):
        name = f"COCO_{half}_{number:012d}.jpg"
        picture(folder / half / name)
        said = [{"raw": f"Dog {number}, view {view}.", "tokens": ["dog"]} for view in range(5)]
        entries.append({"cocoid": number, "split": split, "filepath": half, "filename": name, "sentences": said})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    for number in (1, 2, 3):
        picture(folder / "VG_100K" / f"{number}.jpg")
    told = [{"id": number, "regions": [{"phrase": " a tail "}, {"phrase": "an ear"}]} for number in (1, 2, 3)]
    (folder / "region_descriptions.json").write_text(json.dumps(told))
    coco = {1: None, 2: 0, 3: 3}  # the last one is judged on
    known = [{"image_id": number, "coco_id": of} for number, of in coco.items()]
    (folder / "image_data.json").write_text(json.dumps(known))
    return folder


def prepare_captions(folder, copy, **changes):
    config = {
        "splits": {"train": 2, "val": 1, "test": 1}, "restval": True, "visual_genome": ["VG_100K"], "limit": None,
        "mirror": str(copy), "cache": "none",
    }  # fmt: skip
    captioned_pictures.prepare(folder, **config | changes)


def test_regions_join_captions_but_for_pictures_that_are_judged_on(captions, tmp_path):
    prepare_captions(tmp_path / "new", captions)
    train = storage.read(tmp_path / "new", "train")
    assert train["id"].tolist() == [0, 1, 1_000_000_001, 1_000_000_002]
    assert list(train["captions"][0]) == [f"Dog 0, view {view}." for view in range(5)]
    assert list(train["captions"][2]) == ["a tail", "an ear"]
    assert storage.card(tmp_path / "new")["splits"] == {"train": 4, "val": 1, "test": 1}


def test_nothing_of_val2014_is_learnt_from_where_its_questions_are_judged(captions, tmp_path):
    known = [{"image_id": number, "coco_id": of} for number, of in {1: None, 2: 1, 3: 3}.items()]
    (captions / "image_data.json").write_text(json.dumps(known))
    prepare_captions(tmp_path / "new", captions, restval=False, splits={"train": 1, "val": 1, "test": 1})
    assert storage.read(tmp_path / "new", "train")["id"].tolist() == [0, 1_000_000_001]
    prepare_captions(tmp_path / "more", captions)
    assert storage.read(tmp_path / "more", "train")["id"].tolist() == [0, 1, 1_000_000_001, 1_000_000_002]


def test_captions_alone_need_no_file_of_visual_genome(captions, tmp_path):
    (captions / "region_descriptions.json").unlink()
    prepare_captions(tmp_path / "new", captions, visual_genome=None)
    assert storage.card(tmp_path / "new")["splits"]["train"] == 2


def test_files_of_captions_that_do_not_hold_are_refused(captions, tmp_path):
    with pytest.raises(ValueError, match="has 2 pictures of train, expected 113287"):
        prepare_captions(tmp_path / "new", captions, splits={"train": 113287})
    with pytest.raises(ValueError, match="splits has restval, expected some of train, val, test"):
        prepare_captions(tmp_path / "new", captions, splits={"restval": 1})
    (captions / "image_data.json").write_text(json.dumps([{"image_id": 1, "coco_id": None}]))
    with pytest.raises(ValueError, match=r"does not have 2 pictures of .*, 2 first"):
        prepare_captions(tmp_path / "new", captions)
    (captions / "image_data.json").write_text(json.dumps([{"image_id": 1}]))
    with pytest.raises(ValueError, match="does not have the official form"):
        prepare_captions(tmp_path / "new", captions)
