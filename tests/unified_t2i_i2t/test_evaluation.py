"""Captioned data, the evaluation of both directions, and the image side, on a small world."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save

from lightning_modules.datamodules import captioned
from lightning_modules.datamodules.captioned import CaptionedImages, squashed, take
from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.datasets.tokenizers import world_tokenizer
from lightning_modules.datasets.world import views
from lightning_modules.files import sha256, write_json
from lightning_modules.runs import Run
from lightning_modules.unified_t2i_i2t import evaluation as bidirectional
from lightning_modules.unified_t2i_i2t.image_side import ImageSide, fit_codebook

ATTRIBUTES = {"color": 6, "shape": 4, "size": 2}
OPTIONS = dict(objects=[1, 2], colors=6, shapes=4, places=2, captions=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "world_plain"
    views.prepare(
        folder, view="plain", seed=0, sizes={"train": 40, "test": 24}, image_size=16, options=OPTIONS, workers=1
    )
    return folder


def data(folder, **options) -> CaptionedImages:
    defaults = dict(
        splits={"train": {"source": "train", "rows": None}, "test": {"source": "test", "rows": None}},
        tokenizer="world",
        text_length=32,
        batch_size=8,
        evaluation_batch_size=16,
        scenes={"cells": [3, 5], "attributes": ATTRIBUTES},
    )
    return CaptionedImages(folder=folder, seed=0, **{**defaults, **options})


def test_plain_scenes_hold_what_their_captions_say_and_two_captions_leave_places_open(folder):
    stored = storage.read(folder, "train")
    for row, captions in enumerate(stored["captions"]):
        assert len(captions) == 5
        cells = stored["cell"][row][stored["cell"][row] >= 0]
        assert set(cells) <= {3, 5} and len(set(cells)) == len(cells)
        for cell, side in ((3, "middle left"), (5, "middle right")):
            assert all((side in caption) == (cell in cells) for caption in captions[:3])
        assert not any("middle" in caption for caption in captions[3:])
    same = [row for row in range(40) if stored["cell"][row].max() == 3 and stored["place"][row] == 0]
    right = stored["image"][same][:, :, 8:]
    assert (right == right[0]).all()  # nothing but the thing differs


def test_the_plain_world_refuses_what_it_cannot_draw():
    for wrong, message in (
        ({"objects": [1, 3]}, "range within 1 to 2"),
        ({"captions": 2}, "captions .2. must be more than 2"),
        ({"colors": 9}, "colors .9."),
        ({"places": 0}, "places .0."),
        ({"colors": 3, "shapes": 1}, "times shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            views.PlainImages(image_size=16, **{**OPTIONS, **wrong})


def test_batches_have_captions_and_labels_of_their_images(folder):
    module = data(folder)
    batch = next(iter(module.train_dataloader()))
    assert batch["images"].shape == (8, 3, 16, 16) and batch["images"].dtype == torch.uint8
    assert batch["references"].shape == (8, 5, 32) and (batch["num_references"] == 5).all()
    stored = storage.read(folder, "train")
    for row, number in enumerate(batch["ids"].tolist()):
        assert module.tokenizer.decode(batch["references"][row].numpy()) == list(stored["captions"][number])
        for place, cell in enumerate((3, 5)):
            slots = np.flatnonzero(stored["cell"][number] == cell)
            expected = [stored[name][number][slots[0]] if len(slots) else n for name, n in ATTRIBUTES.items()]
            assert batch["scene"][row, place].tolist() == expected
    again = next(iter(data(folder).train_dataloader()))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert set(module.references("train")) == set(range(40))


def test_captions_that_are_missing_are_named(folder, tmp_path):
    module = data(folder)
    columns = {"id": np.arange(2), "captions": np.array([["a red circle"], []], dtype=object)}
    with pytest.raises(ValueError, match=r"1 images have no caption \(ids \[1\]\)"):
        module._captions(columns)
    with pytest.raises(ValueError, match="expected `captions`"):
        module._captions({"id": np.arange(2)})
    with pytest.raises(ValueError, match=r"image_size is 16, but the images .* are raw"):
        _ = data(folder, image_size=16).columns
    with pytest.raises(ValueError, match="must be between 1 and the number of rows"):
        data(folder, batch_size=41).train_dataloader()


def test_encoded_images_are_decoded_where_they_are_asked_for(folder):
    encoded = np.empty(3, dtype=object)
    for row in range(3):
        file = io.BytesIO()
        Image.fromarray(np.full((20, 30, 3), 40 * row, np.uint8)).save(file, "PNG")
        encoded[row] = file.getvalue()
    features = np.ones((3, 16, 5), np.float32)
    captions = np.array([["a ring"], ["a bar"], ["a star", "a cross"]], dtype=object)
    columns = {"id": np.arange(3), "image": encoded, "captions": captions, "features": features}
    scaled = data(folder, image_size=8, scenes=None)._tensors(columns)
    batch = take(scaled, np.array([2, 0]), 8)
    assert batch["images"].shape == (2, 3, 8, 8) and batch["images"][:, 0, 0, 0].tolist() == [80, 0]
    assert batch["num_references"].tolist() == [2, 1] and batch["features"].shape == (2, 16, 5)
    assert "images" not in take(data(folder, scenes=None)._tensors(columns), np.array([1]), None)
    del columns["features"]
    with pytest.raises(ValueError, match=r"image_size is None, but the images .* are encoded"):
        data(folder, scenes=None)._tensors(columns)


def test_the_whole_picture_is_squashed_as_the_grid_features_describe_all_of_it():
    picture = np.zeros((480, 640, 3), np.uint8)
    picture[:, :80], picture[:, -80:] = (255, 0, 0), (0, 0, 255)
    square = squashed(picture, 256).astype(int)
    assert square.shape == (256, 256, 3)
    coloured = (square[..., 0] > 127) | (square[..., 2] > 127)
    assert coloured.mean() == 0.25  # X-LXMERT's target; 0 where the centre square is cut out
    assert (square[:, :28] == (255, 0, 0)).all() and (square[:, -28:] == (0, 0, 255)).all()


def test_captions_that_are_cut_have_no_end_in_training_and_are_whole_in_scores(folder):
    stored = storage.read(folder, "train")["captions"]
    module, whole = data(folder, text_length=6, reference_length=4), data(folder)
    pad, end = module.tokenizer.pad_id, module.tokenizer.end_id
    ids = {row: [whole.tokenizer.backend.encode(text).ids for text in texts] for row, texts in enumerate(stored)}
    batch = next(iter(module.train_dataloader()))
    longest = 0
    for row, number in enumerate(batch["ids"].tolist()):
        for place, known in enumerate(ids[number]):
            kept = known[:5]  # the last place is padding, whether the caption was cut or not
            assert batch["references"][row, place].tolist() == kept + [pad] * (6 - len(kept))
            assert module.references("train")[number][place] == known[:4]
            longest = max(longest, len(known))
    assert longest > 6
    assert [texts[0][-1] for texts in whole.references("train").values()] == [end] * 40
    for rows, texts in zip(module.texts("train").numpy(), stored, strict=True):
        assert [bytes(row).rstrip(b"\0").decode() for row in rows] == list(texts)
    drawn = next(data(folder, text_length=6, drawing={"sources": ["train"], "images": 8}).drawing_batches())
    for number, row in enumerate(drawn["references"][:, 0].tolist()):
        known = ids[number][0]
        assert row == ([*known[:5], end] if len(known) > 6 else known + [pad] * (6 - len(known)))


def test_pictures_are_drawn_for_the_first_captions_of_the_sources_in_their_order(folder, tmp_path):
    module = data(folder, drawing={"sources": ["test", "train"], "images": 30})
    batches = list(module.drawing_batches())
    assert [len(batch["ids"]) for batch in batches] == [16, 8, 6]
    stored = {split: storage.read(folder, split) for split in ("test", "train")}
    ids = torch.cat([batch["ids"] for batch in batches]).tolist()
    assert ids == [*stored["test"]["id"], *stored["train"]["id"][:6]]
    first = [captions[0] for captions in [*stored["test"]["captions"], *stored["train"]["captions"][:6]]]
    assert [text for batch in batches for text in module.tokenizer.decode(batch["references"][:, 0].numpy())] == first
    assert all((batch["num_references"] == 1).all() for batch in batches)
    assert np.array_equal(batches[2]["stored"][0], stored["train"]["image"][0])
    assert not list(data(folder).drawing_batches())
    with pytest.raises(ValueError, match=r"drawing asks for 65 images, but test, train of .* have 64"):
        next(data(folder, drawing={"sources": ["test", "train"], "images": 65}).drawing_batches())


def test_false_captions_are_read_from_the_official_files_and_nothing_in_them_runs(folder, tmp_path, monkeypatch):
    captions = {"img3": [{"caption": "a red ring."}, {"caption": "a blue ring."}], "img1": [{"caption": "a bar."}]}
    for kind in ("verb", "color", "noun", "number"):
        (tmp_path / f"{kind}.pkl").write_bytes(pickle.dumps(captions))
    monkeypatch.setattr(captioned, "published_tokenizer", lambda name: world_tokenizer())
    drawing = {"sources": ["test"], "images": 3, "hard": str(tmp_path)}
    found = data(folder, drawing=drawing, scorer_tokenizer="clip").hard_captions()
    assert list(found) == ["verb", "color", "noun", "number"]
    assert [(number, len(ids)) for number, ids in found["verb"]] == [(2, 2), (0, 1)]
    told = world_tokenizer().decode(found["verb"][0][1].numpy())
    assert [text.split()[-2:] for text in told] == [["red", "ring"], ["blue", "ring"]]
    with pytest.raises(ValueError, match=r"verb.pkl has 'img3', but 2 pictures are drawn"):
        data(folder, drawing=drawing | {"images": 2}, scorer_tokenizer="clip").hard_captions()
    (tmp_path / "color.pkl").write_bytes(pickle.dumps({"img1": [Path("x")]}))
    with pytest.raises(ValueError, match=r"an object of pathlib.*, expected dictionaries"):
        data(folder, drawing=drawing, scorer_tokenizer="clip").hard_captions()
    assert (
        data(folder, drawing={"sources": ["test"], "images": 3}).hard_captions() == {} == data(folder).hard_captions()
    )


def test_pictures_are_compared_with_stored_ones_of_any_size(tmp_path):
    files = []
    for row in range(2):
        file = io.BytesIO()
        Image.fromarray(np.full((20, 30 + row, 3), 40 * row, np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    columns = {
        "id": np.arange(2),
        "image": np.array(files, dtype=object),
        "captions": np.array([["a ring", "a bar"], ["a star", "a cross"]], dtype=object),
    }
    schema = infer_schema(columns)
    split = storage.write_blocks(tmp_path, "test", [columns], "png", schema=schema)
    storage.write_card(
        tmp_path,
        name="few",
        splits={"test": split},
        codec="png",
        shape=None,
        num_classes=None,
        source="",
        schema=schema,
    )
    (batch,) = data(tmp_path, scenes=None, drawing={"sources": ["test"], "images": 2}).drawing_batches()
    assert [image.shape for image in batch["stored"]] == [(20, 30, 3), (20, 31, 3)]
    assert batch["stored"][1][0, 0, 0] == 40


def test_a_codebook_has_the_features_that_there_are():
    centres = torch.randn(5, 3) * 10
    features = centres[torch.arange(400) % 5].view(4, 100, 3)
    found = fit_codebook(
        iter(features[:, None].flatten(1, 2)[:, None].flatten(1, 2).split(1)), total=400, size=5, seed=0
    )
    assert torch.cdist(centres, found).min(1).values.max() < 1e-4
    with pytest.raises(ValueError, match=r"codebook_size \(9\) is more than the 4"):
        fit_codebook([features[:1, :4]], total=4, size=9, seed=0)


def test_an_image_side_needs_something_to_see_with():
    plain = dict(image_size=16, grid=4, feature_dim=8, codebook_size=10, decoder=dict(dim=4, bottleneck=8, hidden=4))
    with pytest.raises(ValueError, match="go together"):
        ImageSide(**plain, looks={"places": 2, "values": [7, 5, 3]}, backbone=None, scorer=None)
    side = ImageSide(**plain, looks=None, backbone=None, scorer=None)
    with pytest.raises(ValueError, match="no backbone"):
        side.features({"images": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="needs a text-image scorer"):
        side.score(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, dtype=torch.int64))


def test_a_picture_is_consistent_if_each_named_thing_is_there_once():
    red, blue, nothing = [0, 0, 1], [2, 1, 0], [6, 4, 2]
    seen = np.array([[red, blue], [red, red], [nothing, red], [blue, nothing], [red, blue]])
    named = {  # a red circle of any size, in the last row also a blue square; in the fourth nothing
        "color": np.array([[0, -1], [0, -1], [0, -1], [-1, -1], [0, 2]]),
        "shape": np.array([[0, -1], [0, -1], [0, -1], [-1, -1], [0, 1]]),
        "size": np.array([[-1, -1], [-1, -1], [1, -1], [-1, -1], [-1, -1]]),
    }
    assert bidirectional.consistent(seen, named, ATTRIBUTES).tolist() == [True, False, True, False, True]


def predictions_of(folder, right: bool) -> dict[str, np.ndarray]:
    """Those of a perfect generator, or of one that says and draws what belongs to another scene."""
    batches = list(data(folder).evaluation_batches("test"))
    columns = {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}
    images = columns.pop("images")
    labels = columns.pop("scene")
    other = slice(None) if right else np.roll(np.arange(len(labels)), 1)
    rng = np.random.default_rng(0)
    pictures = np.ascontiguousarray(images[:8].transpose(0, 2, 3, 1))
    told = columns["references"][:, 0]
    return {
        **columns,
        "labels": labels,
        "references": data(folder).texts("test").numpy(),
        "told": told,
        "loose": columns["references"][:, -1],
        "captions": told[other],
        **{f"seen/{name}": labels[other] for name in ("told", "loose-1", "loose-4")},
        **{f"seen/{name}": labels for name in ("real", "decoded")},
        **{f"odds/{name}": odds(labels[other] if name == "told" else labels) for name in ("real", "told")},
        **{f"features/{name}": rng.normal(size=(len(labels), 4)) for name in ("real", "told")},
        **{f"pictures/{name}": pictures for name in ("real", "decoded", "told")},
    }


def odds(labels: np.ndarray) -> np.ndarray:
    """Of a judge that is sure."""
    return np.concatenate([np.eye(n + 1)[labels[..., i]] for i, n in enumerate(ATTRIBUTES.values())], axis=-1)


def finished(folder: Path, seed: int, predictions: dict[str, np.ndarray]) -> Run:
    """A run with these predictions, as the training stage leaves it."""
    folder.mkdir()
    (folder / "predictions.safetensors").write_bytes(
        save({name: np.ascontiguousarray(x) for name, x in predictions.items()})
    )
    write_json(
        folder / "facts.json", {"parameters": 7, "predictions_sha256": sha256(folder / "predictions.safetensors")}
    )
    return Run(folder, seed)


def test_both_directions_are_scored_and_shown(folder, tmp_path):
    options = dict(tokenizer="world", attributes=ATTRIBUTES, examples=3, tasks=["i2t", "t2i"])
    runs = [
        finished(tmp_path / str(seed), seed, predictions_of(folder, right)) for seed, right in enumerate((True, False))
    ]
    evaluation = bidirectional.evaluate(runs, "world_plain", **options)
    perfect, wrong = (evaluation.metrics[seed] for seed in (0, 1))
    assert perfect["world_plain/scene_exact_percent"] == 100 > wrong["world_plain/scene_exact_percent"]
    assert perfect["world_plain/cider_d"] > wrong["world_plain/cider_d"]
    assert perfect["world_plain/told_right_percent"] == 100 > wrong["world_plain/told_right_percent"]
    assert perfect["world_plain/consistent_4_steps_percent"] > wrong["world_plain/consistent_4_steps_percent"]
    assert perfect["world_plain/parameters"] == 7
    different = len({row.tobytes() for row in predictions_of(folder, True)["labels"]})
    assert perfect["world_plain/is_world"] == perfect["world_plain/is_world_real"] <= different
    assert perfect["world_plain/is_world"] > 0.8 * different  # some pictures are there twice
    assert [gallery.id for gallery in evaluation.galleries] == ["drawn", "described"]
    assert all(len(gallery.rows) == 3 for gallery in evaluation.galleries)
    assert not any(right is False for row in evaluation.galleries[1].rows for piece, right in row[1].text)
    only_captions = bidirectional.evaluate(runs, "coco", **{**options, "attributes": {}})
    assert set(only_captions.metrics[0]) == {"coco/cider_d", "coco/bleu_4", "coco/rouge_l", "coco/parameters"}
    drawn = {"fid", "inception_score", "clip_score", "r_precision_percent", "r_precision_hard_percent"}
    assert set(only_captions.not_computed) == {"meteor", "spice"} | drawn
    assert set(evaluation.not_computed) == {"meteor", "spice"}
    drawn = bidirectional.evaluate(runs, "world_plain", **{**options, "tasks": ["t2i"]})
    assert set(drawn.metrics[0]) < set(perfect) and "world_plain/cider_d" not in drawn.metrics[0]
    assert [gallery.id for gallery in drawn.galleries] == ["drawn"]
    described = bidirectional.evaluate(runs, "world_plain", **{**options, "tasks": ["i2t"]})
    assert set(described.metrics[0]) | set(drawn.metrics[0]) == set(perfect) and not described.figures
    given = predictions_of(folder, right=True)
    said = given["captions"].copy()
    said[:, 2:] = said[:, 1:-1]  # the first word twice
    options |= {"tasks": ["i2t"], "attributes": {}}
    twice = [finished(tmp_path / "twice", 0, {**given, "captions": said})]
    assert bidirectional.evaluate(twice, "coco", **options).metrics[0]["coco/cider_d"] < 9
    cleaned = bidirectional.evaluate(twice, "coco", **options, remove_repeated_words=True).metrics[0]
    assert cleaned["coco/cider_d"] == perfect["world_plain/cider_d"]
    with pytest.raises(ValueError, match="no trained generator"):
        bidirectional.evaluate([], "world_plain", **options)


def test_published_scores_are_reported_where_they_were_computed(folder, tmp_path):
    predictions = predictions_of(folder, right=True)
    given = {name: predictions[name] for name in ("told", "pictures/told", "pictures/real")}
    given |= {"fid": np.array([31.5], np.float32), "clip_logits": np.array([30, -4], np.float32)}
    given |= {"inception_score": np.array([17.5], np.float32), "clip_others": np.array([[3, 2], [2, 3]], np.float32)}
    given |= {"clip_hard/verb": np.array([[3.0, 2.0, 1.0]]), "clip_hard/noun": np.array([[2.0, 3.0], [3.0, 2.0]])}
    options = dict(tokenizer="world", attributes={}, examples=2, tasks=["t2i"], java=True)
    evaluation = bidirectional.evaluate([finished(tmp_path / "0", 0, given)], "coco", **options)
    assert evaluation.metrics[0] == {
        "coco/parameters": 7, "coco/fid": 31.5, "coco/inception_score": 17.5, "coco/clip_score": 2.5 * 30 / 2,
        "coco/r_precision_percent": 50, "coco/r_precision_hard_percent": 75,
    }  # fmt: skip
    assert not evaluation.not_computed and not evaluation.figures
    (gallery,) = evaluation.galleries
    assert [exhibit.label for exhibit in gallery.rows[1]] == ["caption", "drawn", "real"]
    del given["fid"], given["clip_others"]
    evaluation = bidirectional.evaluate([finished(tmp_path / "1", 1, given)], "coco", **options)
    assert (
        list(evaluation.not_computed) == ["fid", "r_precision_percent"]
        and "torch-fidelity" in evaluation.not_computed["fid"]
    )
