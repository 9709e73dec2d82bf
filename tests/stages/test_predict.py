"""The exported committee on files: what it reads, what it refuses, and that it answers as the module does."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.committees.network import Committee, Predictor
from lightning_modules.ensembling.members import Member, Normalise, build_network, rebuild
from stages import predict

SHAPE = (1, 8, 8)


@pytest.fixture
def committee(tmp_path):
    """Two small MLPs with made weights, exported as the evaluation does."""
    torch.manual_seed(0)
    networks = [build_network("mlp", width, 2, SHAPE, 10) for width in (8, 16)]
    members = [Member(Normalise(16, [0.3], [0.4]), network, 8) for network in networks]
    record = {
        "num_classes": 10,
        "images": {"shape": list(SHAPE), "scale": 16},
        "members": [
            {"name": f"mlp-h{width}#0", "family": "mlp", "width": width, "depth": 2, "resolution": "8"}
            for width in (8, 16)
        ],
    }
    made = Committee(members, macs=[10, 30], thresholds=[-0.8]).eval()
    made.save(tmp_path, record)
    return tmp_path, made


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    predict.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_answers_are_those_of_the_module_with_member_and_cost(committee, monkeypatch, capsys):
    folder, made = committee
    images = np.random.default_rng(0).integers(0, 17, (40, 8, 8)).astype(np.uint8)
    np.save(folder / "rows.npy", images)
    lines = run(monkeypatch, capsys, folder, folder / "rows.npy", "--json")
    with torch.inference_mode():
        expected = made(torch.from_numpy(images[:, None].astype(np.float32)))
    assert [line["class"] for line in lines] == expected.probabilities.argmax(1).tolist()
    assert [line["members_asked"] - 1 for line in lines] == expected.exit_stage.tolist()
    assert {line["answered_by"] for line in lines} == {"mlp-h8#0", "mlp-h16#0"}
    assert {line["macs"] for line in lines} == {10, 40}


def test_an_image_file_is_brought_to_the_committees_size_and_scale(tmp_path):
    Image.new("RGB", (50, 30), (255, 255, 255)).save(tmp_path / "white.png")
    images = predict.read_images(tmp_path / "white.png", SHAPE, 16)
    assert images.shape == (1, *SHAPE)
    assert np.allclose(images, 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 9, 9)), r"shape \(2, 9, 9, 1\); the committee expects \(rows, 8, 8, 1\)"),
        (np.zeros(3), r"shape \(3,\); the committee expects"),
    ],
)
def test_an_array_of_another_shape_is_refused(tmp_path, content, message):
    np.save(tmp_path / "x.npy", content)
    with pytest.raises(ValueError, match=message):
        predict.read_images(tmp_path / "x.npy", SHAPE, 16)


def test_other_files_and_folders_are_refused(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(ValueError, match="neither an image"):
        predict.read_images(tmp_path / "x.png", SHAPE, 16)
    monkeypatch.setattr(sys, "argv", ["predict", str(tmp_path), "x.png"])
    with pytest.raises(ValueError, match=r"holds no committee\.json"):
        predict.main()


def test_the_model_in_mlflow_answers_as_the_module(committee):
    folder, made = committee
    images = np.random.default_rng(1).integers(0, 17, (5, 8, 8, 1)).astype(np.uint8)
    with torch.inference_mode():
        expected = made(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))).probabilities
    np.testing.assert_array_equal(Predictor(folder).predict(images), expected.numpy())


def test_the_members_are_rebuilt_as_listed(committee):
    folder, _ = committee
    members = rebuild(json.loads((folder / "committee.json").read_text()))
    assert [member.network.layers[0].out_features for member in members] == [8, 16]
