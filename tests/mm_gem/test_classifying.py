"""Classes are told by what is said about their names, of pictures that nobody was trained on."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule

from lightning_modules import rehearsal, settings
from lightning_modules.datasets import storage
from lightning_modules.mm_gem.classifying import Classifying
from lightning_modules.mm_gem.classifying_evaluation import evaluate
from lightning_modules.mm_gem.naming import read_names
from lightning_modules.runs import Run
from stages.composing import compose

NAMES = ["red circle", "blue star", "green square"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, rows = tmp_path_factory.mktemp("named"), []
    for row in range(9):
        file = io.BytesIO()
        Image.new("RGB", (40, 30 + row), (20 * row, 0, 0)).save(file, "PNG")
        rows.append((f"{row}.png", file.getvalue(), row % 3))
    splits = {"val": storage.write_blocks(path, "val", storage.numbered_blocks(rows), "png", None)}
    storage.write_card(path, name="toy", splits=splits, codec="png", shape=None, num_classes=3, source="made up")
    (path / "names.txt").write_text("\n".join(NAMES))
    return path


def built(folder, model=None, **changes):
    torch.manual_seed(0)
    overrides = {"data.names": str(folder / "names.txt")} | changes
    config = compose("tiny", system="mm_gem_classes", overrides=overrides)["system"]
    made = settings.bind(config["model"], "model")()
    made.given = True
    return made, settings.bind(config["data"], "data", folder=folder, seed=0)()


def test_the_class_of_the_most_similar_texts_is_the_answer(folder, monkeypatch):
    """Vectors are made up: those of texts are of their names, those of pictures of their labels."""
    made, data = built(folder, **{"data.prompts": ["a {}", "the {} here"]})
    made.check_data(data)
    assert data.texts()[1] == ["a blue star", "the blue star here"]
    number = lambda text: next(place for place, name in enumerate(NAMES) if name in text)  # noqa: E731
    monkeypatch.setattr(made, "embed_texts", lambda texts: torch.eye(3)[[number(text) for text in texts]])
    monkeypatch.setattr(made, "embed_pictures", lambda images: torch.eye(3)[torch.arange(len(images)) % 3])
    found = made.predictions(data, torch.device("cpu"))
    assert found["labels"].tolist() == [*range(3)] * 3
    assert evaluate([finished(found)], "toy").metrics[3] == {"toy/top1_percent": 100, "toy/classes": 3}
    found["similarities"] = found["similarities"].roll(1, 1)
    assert evaluate([finished(found)], "toy").metrics[3]["toy/top1_percent"] == 0


def finished(found):
    class Finished(Run):
        def predictions(self):
            return {name: x.numpy() for name, x in found.items()}

    return Finished(Path(), 3)


def test_similarities_are_those_of_the_model(folder):
    made, data = built(folder)
    found = made.predictions(data, torch.device("cpu"))["similarities"]
    assert found.shape == (9, 3) and found.abs().max() <= 1 + 1e-5
    images = next(data.evaluation_batches("test"))["images"]
    torch.testing.assert_close(found, made.embed_pictures(images) @ made.embed_texts(NAMES).T, rtol=1e-4, atol=1e-5)


def test_it_starts_from_the_arm_that_learnt(folder):
    made, _ = built(folder)
    torch.nn.init.constant_(made.network.to_vector.weight, 0.5)
    other, _ = built(folder)
    other.start_from(made.export())
    assert isinstance(other, Classifying) and torch.equal(other.network.to_vector.weight, made.network.to_vector.weight)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n", "has 2 names, but the data set has 3 classes"),
        ("n00000002 a\nn00000001 b\nn00000003 c\n", "ids that are not in ascending order"),
        ("n00000001 a\nn00000001 b\nn00000003 c\n", "ids that are not in ascending order"),
    ],
)
def test_names_of_other_classes_are_refused(tmp_path, text, message):
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_names(path, 3)
    with pytest.raises(ValueError, match="cannot be read as text"):
        read_names(tmp_path / "none.txt", 3)


def test_names_of_imagenet_are_the_first_of_their_synonyms(tmp_path):
    path = tmp_path / "LOC_synset_mapping.txt"
    path.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n")
    assert read_names(path, 2) == ["tench", "goldfish"]
    path.write_text("salt, pepper\nhat\n")
    assert read_names(path, 2) == ["salt, pepper", "hat"]


def test_a_rehearsal_needs_no_names(folder, tmp_path, monkeypatch):
    _, data = built(folder)
    data.names = tmp_path / "none.txt"
    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=4))
    assert len(data.texts()) == 3 and rehearsal.current.replaced == {"names of classes"}


def test_what_cannot_classify_is_refused(folder):
    with pytest.raises(ValueError, match="data.prompts has 'a photo', expected texts with one {}".replace(".", r"\.")):
        built(folder, **{"data.prompts": ["a photo"]})
    made, data = built(folder, **{"model.losses.embedding": 0.0})
    with pytest.raises(ValueError, match=r"model\.losses\.embedding is 0"):
        made.check_data(data)
    made, data = built(folder)
    made.given = False
    with pytest.raises(ValueError, match="has no weights"):
        made.check_data(data)
    with pytest.raises(ValueError, match="classes need names"):
        made.check_data(LightningDataModule())
    with pytest.raises(ValueError, match="there is no run"):
        evaluate([], "toy")
    assert np.array_equal(data.rows["test"][1], np.arange(9))
