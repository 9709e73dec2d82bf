"""What answers with the networks in the results of an arm, by command and in Python."""

import json
import sys

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from safetensors.torch import save_file

from lightning_modules import predictors
from lightning_modules.datasets import storage
from lightning_modules.files import write_json
from lightning_modules.maskalign import neighbours
from lightning_modules.runs import Evaluation
from stages import predict
from stages.composing import BUILT, how_built
from stages.evaluate import evaluated, predictor_of
from stages.plan import load_plan

PLAN = load_plan("tiny")


@pytest.fixture
def results(tmp_path, monkeypatch, prepared):
    """`results(arm)` lays down the results of an arm and a seed with drawn weights: the folder, and the network."""
    for module in (predictors, neighbours):
        monkeypatch.setattr(module, "ROOT", tmp_path)

    def lay(arm, **overrides):
        record = how_built(PLAN, evaluated(PLAN, PLAN.row("evaluate", arm)))
        record["model"] |= overrides
        torch.manual_seed(0)
        module = instantiate(record["model"], _convert_="all").eval()
        seed = tmp_path / record["runs"] / "seed-3"
        seed.mkdir(parents=True)
        save_file({name: x.contiguous() for name, x in module.export().items()}, seed / "weights.safetensors")
        folder = tmp_path / "data/results" / arm
        folder.mkdir(parents=True)
        write_json(folder / "predictor.json", record)
        data = tmp_path / record["dataset"]
        data.parent.mkdir(parents=True)
        data.symlink_to(prepared(data.parent.name))
        return folder, module

    return lay


def run(monkeypatch, capsys, *arguments):
    """What the command prints, and whether it failed."""
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments), "--json"])
    failed = ""
    try:
        predict.main()
    except ValueError as error:
        failed = str(error)
    out, errors = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], errors.splitlines(), failed


def picture(path, seed, side=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]


def test_an_encoder_gives_features_and_the_nearest_pictures(results, tmp_path, monkeypatch, capsys):
    folder, module = results("maskalign-world_graded")
    pixels = picture(tmp_path / "mine.png", 0)
    with torch.inference_mode():
        expected = module(pixels)
        test = storage.read(tmp_path / "data/datasets/world_graded/tiny", "test")["image"]
        others = module(torch.from_numpy(test.transpose(0, 3, 1, 2).copy()))
    similarity = torch.nn.functional.cosine_similarity(expected, others)
    lines, errors, failed = run(
        monkeypatch, capsys, folder, tmp_path / "mine.png", "--top", 2, "--out", tmp_path / "out"
    )
    assert (errors, failed) == ([], "")
    torch.testing.assert_close(torch.from_numpy(np.load(lines[0]["features"])), expected)
    assert [line["rank"] for line in lines[1:]] == [1, 2]
    best = similarity.topk(2)
    assert [line["similarity"] for line in lines[1:]] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert lines[1]["neighbour"] == f"data/datasets/world_graded/tiny: test {best.indices[0]}"

    encoder = predictors.load(folder)
    torch.testing.assert_close(torch.from_numpy(encoder.features(str(tmp_path / "mine.png"))), expected)
    assert next(encoder.answer(tmp_path / "mine.png"))["features"].shape == expected.shape


def test_of_a_folder_to_compare_with_the_good_files_are_used_and_the_others_named(
    results, tmp_path, monkeypatch, capsys
):
    folder, _ = results("maskalign-world_graded")
    for name, seed in (("mine.png", 0), ("others/same.png", 0), ("others/b.png", 1)):
        picture(tmp_path / name, seed)
    (tmp_path / "others/cut.png").write_bytes((tmp_path / "mine.png").read_bytes()[:99])
    picture(tmp_path / "others/nested/c.png", 2)
    lines, errors, failed = run(monkeypatch, capsys, folder, tmp_path / "mine.png", "--among", tmp_path / "others")
    assert [line["neighbour"] for line in lines[1:]] == [str(tmp_path / f"others/{name}.png") for name in ("same", "b")]
    assert lines[1]["similarity"] == pytest.approx(1, abs=1e-5) and lines[0]["features"].endswith("see --out")
    assert len(errors) == 2 and "cut.png cannot be read as a picture" in errors[0]
    assert errors[1].startswith(f"left out: {tmp_path}/others/nested lies in a folder and is one itself")
    assert failed == "2 files could not be compared with, see above"
    picture(tmp_path / "outer/inner/c.png", 2)
    (tmp_path / "none").mkdir()
    for among, *messages in (
        ("none", "holds no picture"),
        ("outer", "holds no picture", "inner lies in a folder"),
        ("mine.png", "expected a folder of pictures"),
    ):
        _, errors, failed = run(monkeypatch, capsys, folder, tmp_path / "mine.png", "--among", tmp_path / among)
        assert all(message in " ".join([*errors, failed]) for message in messages)


def test_the_generator_describes_pictures_and_draws_captions(results, tmp_path, monkeypatch, capsys):
    folder, module = results("unified_t2i_i2t")
    pixels = picture(tmp_path / "mine.png", 0)
    (tmp_path / "captions.txt").write_text("\ufeffa large red circle\n\na small blue square\n", encoding="utf-8")
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe\x00\xd8")
    (tmp_path / "empty.txt").write_text("\n")
    inputs = [tmp_path / name for name in ("mine.png", "captions.txt", "broken.txt", "empty.txt", "no.png")]
    lines, errors, failed = run(monkeypatch, capsys, folder, *inputs, "--out", tmp_path / "out")
    assert failed == "3 of 5 files could not be answered, see above"
    assert ["broken.txt" in errors[0], "has no caption" in errors[1], "no.png" in errors[2]] == [True] * 3
    generator = predictors.load(folder)
    with torch.inference_mode():
        (caption,) = generator.tokenizer.decode(module(pixels).numpy())
        token_ids, _ = generator.tokenizer(["a large red circle", "a small blue square"], 16)
        drawn = (255 * module.paint(module.draw(torch.from_numpy(token_ids))[0])).round().to(torch.uint8)
    assert lines[0]["caption"] == caption
    assert [line["caption"] for line in lines[1:]] == ["a large red circle", "a small blue square"]
    for line, expected in zip(lines[1:], drawn, strict=True):
        assert line["picture"].endswith(".png")
        np.testing.assert_array_equal(np.asarray(Image.open(line["picture"])), expected.permute(1, 2, 0).numpy())
    assert next(generator.answer(tmp_path / "captions.txt"))["picture"].size == (32, 32)


def test_a_generator_of_one_task_refuses_the_other(results, tmp_path, monkeypatch, capsys):
    folder, _ = results("unified-drawing")
    picture(tmp_path / "mine.png", 0)
    _, errors, failed = run(monkeypatch, capsys, folder, tmp_path / "mine.png")
    assert "trained for xe_t2i, not to give captions for pictures" in errors[0] and failed


def test_a_pool_classifies_with_all_its_members(results, tmp_path, monkeypatch, capsys):
    folder, module = results("small_ensembles-deep_digits")
    images = np.random.default_rng(0).integers(0, 17, (5, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "rows.npy", images)
    lines, _, _ = run(monkeypatch, capsys, folder, tmp_path / "rows.npy")
    with torch.inference_mode():
        expected = module(torch.from_numpy(images[:, None].astype(np.float32)))
    assert [line["class"] for line in lines] == expected.argmax(1).tolist()
    assert [line["probability"] for line in lines] == pytest.approx(expected.amax(1).tolist(), abs=1e-6)
    assert next(iter(predictors.load(folder).answer(tmp_path / "rows.npy")))["class"] == lines[0]["class"]


@pytest.mark.parametrize(("arm", "inner"), [("small_ensembles-digits", "."), ("maskalign-world_graded", "maskalign")])
def test_how_a_model_is_built_is_what_its_training_wrote(tmp_path, arm, inner):
    """Not what `conf/` says now: the evaluation would have to name the files of another paper's arms."""
    row = PLAN.row("evaluate", arm)
    (tmp_path / inner).mkdir(exist_ok=True)
    write_json(tmp_path / inner / BUILT, {"model": "as it was"})
    assert predictor_of(PLAN, row, Evaluation({}), tmp_path) == {"model": "as it was"}
    assert predictor_of(PLAN, row, Evaluation({}, predictor="some.Class"), tmp_path) == {"loader": "some.Class"}


def test_what_cannot_answer_says_why(results, tmp_path):
    folder, _ = results("maskalign-world_graded")
    record = json.loads((folder / "predictor.json").read_text())
    write_json(tmp_path / "a/predictor.json", record | {"runs": "data/runs/tiny/none/pretrain"})
    with pytest.raises(ValueError, match="data/runs/tiny/none/pretrain has no trained weights"):
        predictors.load(tmp_path / "a")
    with pytest.raises(ValueError, match=r"holds no predictor\.json; expected the results of an arm"):
        predictors.load(tmp_path)


@pytest.mark.parametrize("arm", PLAN.evaluate)
def test_every_arm_of_the_plan_names_what_answers(arm):
    """By its model's class, or because its evaluation writes files; some have no answer to give."""
    record = how_built(PLAN, evaluated(PLAN, PLAN.row("evaluate", arm)))
    name = predictors.located(record["model"]["_target_"]).predictor
    if not name:
        # the first exports a retriever
        silent = ("clip_vip", "magvit2_vocabulary", "magvit2_targets", "spae_clip", "spae_language", "videopoet_audio",
                  "caption_language", "caption_tower")  # fmt: skip
        assert PLAN.evaluate[arm].system in silent
    else:
        assert issubclass(predictors.located(name), predictors.Predictor)
