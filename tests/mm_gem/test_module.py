"""Training on pictures and regions, both objectives and each alone."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule

from lightning_modules.datamodules.illustrated import IGNORED, IllustratedTexts
from lightning_modules.datasets import storage
from lightning_modules.datasets.columns import infer_schema
from lightning_modules.mm_gem.module import MmGem
from lightning_modules.mm_gem.objectives import others_alike, paired_nce, text_keys
from lightning_modules.mm_gem.predictor import Describer, EmbedsAndWrites
from lightning_modules.vision_language.causal import make_causal
from lightning_modules.vision_language.towers import make_tower

LANGUAGE = {"hub": None, "hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 1, "mlp_dim": 16, "positions": 40}
TOWER = {
    "hub": None,
    "sizes": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 4},
}  # fmt: skip
WORDS = ["large red circle", "small blue star", "small green square", "large blue star"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    said = [[WORDS[(row + n) % 4] for n in range(2)] for row in range(8)]
    columns = {
        "id": np.arange(8),
        "image": draw.integers(0, 256, (8, 16, 16, 3), np.uint8),
        "captions": np.fromiter([[" , ".join(each), each[0]] for each in said], object, 8),
        "regions": np.fromiter(said, object, 8),
        "boxes": np.tile(np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], np.float32), (8, 1, 1)),
    }
    schema = infer_schema(columns)
    splits = {
        split: storage.write_blocks(folder, split, iter([columns]), "raw", (16, 16, 3), schema=schema)
        for split in ("train", "test")
    }
    storage.write_card(folder, name="mine", splits=splits, codec="raw", shape=(16, 16, 3), num_classes=None,
                       source="drawn", schema=schema)  # fmt: skip
    return folder


def texts(folder, **changes):
    options = {
        "folder": folder, "seed": 0, "batch_size": 4, "evaluation_batch_size": 4, "length": 16, "questions": 0.0,
        "regions": 0.5, "text_only": 0.0, "padding": "right", "image_size": None,
        "splits": {split: {"source": split, "rows": None} for split in ("train", "test")},
        "form": {"caption": "", "question": "{}", "sampled": True},
    }  # fmt: skip
    return IllustratedTexts(**options | changes)


def module(embedding=1.0, generation=1.0, given=True, **changes):
    torch.manual_seed(0)
    options = {
        "language": LANGUAGE, "tower": TOWER, "pool": {"grid": 2}, "embedding_dim": 8, "train_tower": True, "most": 3,
        "losses": {"embedding": embedding, "generation": generation}, "parts": {"embedding": None, "generation": None},
    }  # fmt: skip
    made = MmGem(**options | changes)
    made.given = given
    return made


def batch(made, folder):
    data = texts(folder)
    made.check_data(data)
    return data.batch("train", range(4), ["caption", "region", "region", "caption"], [0, 0, 1, 1], [True] * 4)


def test_the_loss_is_the_sum_of_both_and_every_weight_learns(folder):
    made = module()
    given = batch(made, folder)
    terms = made.terms(given)
    loss = made.training_step(given)
    torch.testing.assert_close(loss, terms["embedding"] + terms["generation"])
    loss.backward()
    still = {name for name, x in made.named_parameters() if x.grad is None}
    assert all("layers.1" in name or "post_layernorm" in name for name in still), still  # behind the layer that is read


def test_losses_in_parts_are_those_of_the_whole_batch(folder):
    def gradients(rows):
        made = module(parts={"embedding": rows, "generation": rows})
        loss = made.training_step(batch(made, folder))
        loss.backward()
        return loss.detach(), {name: x.grad for name, x in made.named_parameters() if x.grad is not None}

    (whole, expected), (parts, found) = gradients(None), gradients(3)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_an_objective_without_weight_is_not_computed(folder):
    given = batch(module(), folder)
    assert module(generation=0.0).terms(given).keys() == {"embedding"}
    assert module(embedding=0.0).terms(given).keys() == {"generation"}
    with pytest.raises(ValueError, match=r"model\.losses are 0 both"):
        module(0.0, 0.0)


@pytest.mark.parametrize("losses", [(1.0, 0.0), (0.0, 1.0)])
def test_what_an_objective_alone_needs_is_trained_and_nothing_else(folder, losses):
    """Otherwise processes that share the work (DDP) stop, as they wait for gradients of the rest."""
    made = module(*losses)
    made.training_step(batch(made, folder)).backward()
    assert not [name for name, x in made.named_parameters() if x.requires_grad != (x.grad is not None)]


def test_the_temperature_is_held_within_its_bound_and_can_come_back(folder):
    made = module(max_scale=20.0, temperature=0.01)
    made.on_train_batch_end(None, None, 0)
    assert made.network.scale.item() == pytest.approx(20)
    made.embedding_loss((made.network.tokens(*(batch(made, folder)[name] for name in ("images", "box"))),),
                        batch(made, folder)).backward()  # fmt: skip
    assert made.network.log_scale.grad


def test_texts_that_are_read_alike_are_no_negatives_of_each_other(folder):
    """The texts of one batch, cut to one word: what differs behind it is not read."""
    made = module(text_limit=1)
    given = batch(made, folder)
    text = given["token_ids"], given["attention_mask"]
    vectors = made.network.text_vectors(*text)
    alike = (vectors @ vectors.T > 1 - 1e-6).fill_diagonal_(False)
    ids, there, _ = made.network.ended(*text)
    assert alike.any() and torch.equal(others_alike(text_keys(ids, there)), alike)
    tokens = made.network.tokens(given["images"], given["box"])
    pictures = made.network.picture_vectors(tokens)
    expected = paired_nce(pictures, vectors, made.network.scale, text_keys(ids, there))
    torch.testing.assert_close(made.embedding_loss((tokens,), given), expected)


def test_a_picture_is_looked_at_once_for_all_its_regions(folder, monkeypatch):
    made, seen = module(), []
    data = texts(folder)
    made.check_data(data)
    features = made.network.tower.features
    monkeypatch.setattr(made.network.tower, "features", lambda images: (seen.append(len(images)), features(images))[1])
    found = made.predictions(data, torch.device("cpu"))
    assert sum(seen) == 16 and len(found["region_features"]) == 16
    rows, boxes = found["region_rows"], found["region_boxes"]
    alone = made.embed_pictures(data.images("test", rows), boxes)
    torch.testing.assert_close(found["region_features"], alone)


def test_the_second_stage_starts_from_the_first_and_leaves_the_tower_as_it_is(folder):
    first, second = module(), module(given=False, train_tower=False)
    torch.nn.init.constant_(first.network.to_vector.weight, 0.5)
    second.start_from(first.export())
    assert second.given and torch.equal(second.network.to_vector.weight, first.network.to_vector.weight)
    second.training_step(batch(second, folder)).backward()
    assert all(x.grad is None for x in second.network.tower.parameters())


def test_a_language_model_of_ours_gets_its_row_when_its_weights_come():
    torch.manual_seed(1)
    language, tower, made = make_causal(**LANGUAGE), make_tower(**TOWER), module(given=False)
    weights = {f"language.{name}": x for name, x in language.state_dict().items()}
    made.start_from(weights | {f"tower.{name}": x for name, x in tower.state_dict().items()})
    rows = made.network.language.embeddings
    assert torch.equal(rows[:-1], language.embeddings)
    torch.testing.assert_close(rows[-1], language.embeddings.mean(0))
    with pytest.raises(ValueError, match="the tower of the arm in `from`"):
        made.start_from(weights)


def test_data_that_do_not_fit_are_refused(folder):
    with pytest.raises(ValueError, match="has no weights: name the arm"):
        module(given=False).check_data(texts(folder))
    with pytest.raises(ValueError, match=r"data\.padding is 'left'"):
        module().check_data(texts(folder, padding="left"))
    with pytest.raises(ValueError, match=r"data are LightningDataModule, expected datamodules\.illustrated"):
        module().check_data(LightningDataModule())


def test_texts_that_the_language_model_has_no_place_for_are_refused_before_the_training(folder):
    """Positions are 40; a picture and the start token take 5, the longest caption has 7 tokens."""
    module(most=35).check_data(texts(folder))
    with pytest.raises(ValueError, match=r"model\.most is 36 behind 5 tokens .* set it to 35 at most"):
        module(most=36).check_data(texts(folder))
    module(generation=0.0, most=36).check_data(texts(folder))  # writes nothing
    short = {"language": LANGUAGE | {"positions": 8}, "generation": 0.0}
    with pytest.raises(ValueError, match=r"a caption of data\.splits\.test has 7 tokens, .* 6: set model\.text_limit"):
        module(**short).check_data(texts(folder, length=4))
    cut = module(**short, text_limit=6)
    cut.check_data(texts(folder, length=4))
    assert "text_features" in cut.predictions(texts(folder, length=4), torch.device("cpu"))


@pytest.mark.parametrize("losses", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_predictions_have_what_an_arm_learns(folder, losses):
    made = module(*losses)
    data = texts(folder)
    made.check_data(data)
    found = made.predictions(data, torch.device("cpu"))
    assert (
        ("text_features" in found) == ("picture_features" in found) == ("region_features" in found) == bool(losses[0])
    )
    assert ("written" in found) == ("region_written" in found) == bool(losses[1])
    assert all(x.is_contiguous() for x in found.values()), "or they cannot be stored"
    assert torch.equal(found["shown/images"].permute(0, 3, 1, 2), data.columns["test"]["images"])
    assert found["captions"].shape[:2] == (8, 2) and found["region_rows"].tolist() == sorted([*range(8)] * 2)
    if losses[0]:
        assert found["text_rows"].tolist() == found["region_rows"].tolist()
        torch.testing.assert_close(found["text_features"].norm(dim=1), torch.ones(16))
        assert not torch.allclose(found["region_features"][0], found["region_features"][1], atol=1e-4)


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    """Encoded pictures of which the left half is red, and no caption of a whole one."""
    folder, pixels = tmp_path_factory.mktemp("regions"), np.zeros((10, 20, 3), np.uint8)
    pixels[:, :10, 0] = 200
    opened = io.BytesIO()
    Image.fromarray(pixels).save(opened, "PNG")
    columns = {
        "id": np.arange(4),
        "image": np.fromiter([opened.getvalue()] * 4, object, 4),
        "regions": np.fromiter([["red half", "dark half"]] * 4, object, 4),
        "boxes": np.tile(np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]], np.float32), (4, 1, 1)),
    }
    schema = infer_schema(columns)
    splits = {
        split: storage.write_blocks(folder, split, iter([columns]), "png", schema=schema) for split in ("train", "test")
    }
    storage.write_card(folder, name="regions", splits=splits, codec="png", shape=None, num_classes=None, source="drawn",
                       schema=schema)  # fmt: skip
    return folder


@pytest.mark.parametrize(("fit", "left"), [("squash", [0, 0, 0.5, 1]), ("pad", [0, 0.25, 0.5, 0.75])])
def test_described_regions_need_no_caption_of_the_whole_picture(regions, fit, left):
    made = module(tower=TOWER | {"fit": fit})
    data = texts(regions, regions=1.0, image_size=16)
    made.check_data(data)
    assert not data.told
    given = next(data.evaluation_batches("test"))
    assert given["box"].tolist() == [left] * 4 and given["images"].shape == (4, 3, 16, 16)
    top, bottom = round(16 * left[1]) + 2, round(16 * left[3]) - 2
    assert given["images"][0, 0, top:bottom, :6].min() > 150 > 50 > given["images"][0, 0, top:bottom, 10:].max()
    made.training_step(next(iter(data.train_dataloader()))).backward()
    found = made.predictions(data, torch.device("cpu"))
    assert "captions" not in found and len(found["region_features"]) == len(found["region_written"]) == 8
    with pytest.raises(ValueError, match="the tower's fit is crop"):
        module(tower=TOWER | {"fit": "crop"}).check_data(data)


def test_it_answers_about_pictures(tmp_path):
    made = module().eval()
    assert isinstance(made, EmbedsAndWrites)
    Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / "mine.png")
    describer = Describer(made)
    ranked = describer.rank(tmp_path / "mine.png", WORDS, (0, 0, 10, 10))
    assert {text for text, _ in ranked} == set(WORDS)
    assert isinstance(describer.caption(tmp_path / "mine.png"), str)


def test_labels_leave_out_what_is_not_written(folder):
    given = batch(module(), folder)
    assert ((given["labels"] != IGNORED).sum(1) < given["attention_mask"].sum(1)).all()  # the start token
