"""The tokenizer and its training: pictures as words and back, random prefixes, what is frozen, and what is refused."""

import pytest
import torch
from hydra.utils import instantiate
from pytorch_lightning import LightningDataModule
from safetensors.torch import save_file

from lightning_modules import settings
from lightning_modules.spae import module as module_file
from lightning_modules.spae.module import labels, percentiles
from stages.composing import compose

PICTURES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)


def composed(system="spae", **overrides):
    return compose("tiny", system=system, overrides={f"model.{key}": value for key, value in overrides.items()})[
        "system"
    ]


def module(system="spae", **overrides):
    torch.manual_seed(0)
    config = composed(system, **overrides)
    built = settings.bind(config["model"], "model")()
    built.recipe = config["pretrain"]
    return built


def upstream():
    torch.manual_seed(1)
    return settings.bind(composed("spae_clip")["model"], "model")().export()


def started(system="spae", **overrides):
    built = module(system, **overrides)
    built.start_from(upstream())
    return built


@pytest.fixture
def data(prepared):
    return instantiate(composed()["data"], folder=prepared("world_plain"), seed=0, _convert_="all")


def test_pictures_become_layers_of_words_and_any_first_layers_a_picture():
    built = started().eval()
    words = built.words_of(PICTURES)
    assert [tuple(layer.shape) for layer in words] == [(2, 1), (2, 4), (2, 16), (2, 64), (2, 64)]
    for upto in (1, 3, None):
        drawn = built.picture_of(words, upto)
        assert drawn.shape == (2, 3, 32, 32) and 0 <= drawn.min() <= drawn.max() <= 1
    assert torch.equal(built(PICTURES), torch.cat(words, dim=1))


def test_the_words_of_all_layers_behind_one_another_are_drawn_as_the_layers_are():
    tokenizer = started().eval().tokenizer
    tokens = tokenizer.encode(PICTURES[:, :, None] / 255)
    layers = tokenizer.words_of(PICTURES / 255)
    assert torch.equal(tokenizer.decode(tokens), tokenizer.picture_of(layers))
    assert torch.equal(tokenizer.decode(tokens[:, :21]), tokenizer.picture_of(layers, 3))
    with pytest.raises(ValueError, match=r"22 words for a picture, expected one of \[1, 5, 21, 85, 149\]"):
        tokenizer.decode(tokens[:, :22])


def test_the_table_is_that_of_the_language_model_and_none_of_it_is_trained():
    built = started()
    embeddings = built.language.network.embeddings[built.table.ids]
    centred = embeddings - embeddings.mean(0)
    assert torch.allclose(built.table.embeddings, centred / centred.square().mean().sqrt(), atol=1e-5)
    trained = {name.split(".")[0] for name, _ in built.named_parameters()}
    assert trained == {"tokenizer", "discriminator"}
    assert not any("table" in name for name, _ in built.named_parameters())
    assert any("table" in name for name, _ in module(**{"tokenizer.table.source": "learned"}).named_parameters())


def test_a_word_without_meaning_is_left_out_of_the_table():
    assert "meadow" not in module().table.words and "red" in module().table.words


def test_each_picture_is_drawn_from_a_random_number_of_first_layers():
    built = module().train()
    torch.manual_seed(0)
    drawn = built.drawn_layers(1000)
    assert set(drawn.tolist()) == {1, 2, 3, 4, 5} and 0.55 < (drawn == 5).float().mean() < 0.65
    assert set(module(whole=0.0).train().drawn_layers(1000).bincount()[1:].div(100).round().tolist()) == {2}
    assert set(module(prefixes="all").train().drawn_layers(20).tolist()) == {5}
    assert set(built.eval().drawn_layers(20).tolist()) == {5}


def test_the_semantic_term_is_as_large_as_the_others_where_its_weight_is_dynamic():
    batch = {"images": PICTURES}
    terms = started(perception="random").terms(batch)
    others = [terms[name] for name in ("reconstruction", "commitment", "adversarial", "perceptual")]
    assert terms["semantic"].item() == pytest.approx(sum(others).item(), rel=1e-4)
    half = started(perception="random", **{"semantic.weight": 0.5}).terms(batch)
    others = [half[name] for name in ("reconstruction", "commitment", "adversarial", "perceptual")]
    assert half["semantic"].item() == pytest.approx(sum(others).item() / 2, rel=1e-4)
    assert "semantic" not in started(**{"semantic.weight": 0.0}).terms(batch)
    assert started(**{"semantic.dynamic": False}).terms(batch)["semantic"] > terms["semantic"]


def test_only_a_learned_table_has_a_term_of_its_own():
    batch = {"images": PICTURES}
    assert "codebook" not in started().terms(batch)
    assert "codebook" in started(**{"tokenizer.table.source": "learned"}).terms(batch)


def test_latents_have_length_one_where_words_have():
    built = started(**{"tokenizer.table.scaling": "unit"}).tokenizer
    z = built.latents(PICTURES[:, :, None] / 255)
    assert torch.allclose(z.norm(dim=1), torch.ones(2, 1, 8, 8), atol=1e-5)
    assert torch.allclose(built.table.embeddings.norm(dim=1), torch.ones(len(built.table)), atol=1e-5)


def test_without_a_projection_latents_are_the_encoders_output():
    built = module(**{"tokenizer.projection": False, "tokenizer.embedding_dim": 64}).tokenizer
    assert not list(built.to_words.parameters()) and not list(built.from_words.parameters())
    with pytest.raises(ValueError, match="embedding_dim is 32 and the words' vectors have length 64"):
        module(**{"tokenizer.projection": False})


def test_clips_become_words_over_time_and_come_back():
    built = started("spae_video").eval()
    words = built.words_of(torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8))
    assert [layer.shape[1] for layer in words] == [1, 4, 32, 32]
    assert built.picture_of(words).shape == (2, 3, 4, 16, 16)


def test_a_trained_arm_hands_on_its_tokenizer_and_the_networks_that_it_carries():
    first, second = started(), module()
    second.start_from(first.export())
    assert all(torch.equal(x, second.export()[name]) for name, x in first.export().items())
    assert {name.split(".")[0] for name in first.export()} >= {"tokenizer", "discriminator", "clip", "language"}


def test_each_weight_is_exported_once(tmp_path):
    for built in (started(), started(**{"tokenizer.table.source": "learned"})):
        save_file(built.export(), tmp_path / "weights.safetensors")  # refuses tensors that share memory


def test_a_tokenizer_of_clips_begins_with_one_of_pictures():
    same = {"tokenizer.layers": [[1, 1, 1], [1, 2, 2], [2, 4, 4]]}
    flat, deep = started(), module("spae_video", **same)
    before = deep.tokenizer.encoder.stem.weight.clone()
    deep.start_from(flat.export())
    middle = deep.tokenizer.encoder.stem.weight[:, :, 1]
    assert torch.equal(middle, flat.tokenizer.encoder.stem.weight[:, :, 0]) and not torch.equal(middle, before[:, :, 1])


def test_a_tokenizer_of_another_width_is_refused():
    with pytest.raises(ValueError, match="weights of the tokenizer cannot be taken over"):
        module(**{"tokenizer.width": 16}).start_from(started().export())


def test_an_arm_that_was_given_no_networks_is_refused(data):
    with pytest.raises(ValueError, match="clip and language have no weights"):
        module().check_data(data)
    started().check_data(data)


def test_a_measure_without_its_file_is_refused_before_the_training(data):
    built = started()
    built.published = {"i3d": "nowhere.pt", "lpips": False}
    with pytest.raises(ValueError, match=r"nowhere\.pt"):
        built.check_data(data)


def test_an_upstream_arm_without_a_clip_is_refused():
    weights = {name: x for name, x in upstream().items() if not name.startswith("clip.")}
    with pytest.raises(ValueError, match=r"has no weights under clip\.\*"):
        module().start_from(weights)


def test_pictures_of_another_size_are_refused(data, prepared):
    with pytest.raises(
        ValueError, match=r"shape \(3, 32, 32\), but tokenizer.frames and tokenizer.size are for 1 frames"
    ):
        started(**{"tokenizer.size": 64}).check_data(data)
    with pytest.raises(ValueError, match=r"clips of shape \(3, 1, 16, 16\)"):
        started().words_of(PICTURES[:, :, :16, :16])
    clips = instantiate(composed("spae_video")["data"], folder=prepared("world_drifting"), seed=0, _convert_="all")
    with pytest.raises(ValueError, match=r"clips of shape \(3, 4, 16, 16\)"):
        started().check_data(clips)
    started("spae_video").check_data(clips)
    with pytest.raises(ValueError, match="data are LightningDataModule, expected pictures or clips"):
        started().check_data(LightningDataModule())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tokenizer.layers": [1, 2, 16]}, "a layer of 16 rows does not fit a grid of 8"),
        ({"semantic.thresholds": [0.9]}, "thresholds has 1 values, expected 3"),
        ({"semantic.layers": 6}, "semantic.layers is 6, but tokenizer.layers has 5"),
        ({"semantic.thresholds": [0.9, 0.8, 1.5]}, "less than or equal to 1"),
        ({"tokenizer.layers": []}, "at least 1 item"),
        ({"tokenizer.layers": [[1, 2]]}, "layers"),
        ({"tokenizer.quantisation": "sqa"}, "expected 'saq', 'rq' or 'flat'"),
        ({"tokenizer.table.source": "words"}, "expected 'language', 'random' or 'learned'"),
        ({"preprocess.mean": [0.5]}, "at least 3 items"),
        ({"tokenizer.table.words": 5000}, "table.words is 5000, but the language model has"),
        ({"tokenizer.table.leave_out": ["zebra"]}, "leave_out has 'zebra'"),
        ({"tokenizer.frames": 2}, "dims is 2 for 2 frames"),
        ({"tokenizer.size": 30}, "expected multiples of 1 frames and 4 pixels"),
        ({"tokenizer.halve_time": [False]}, "halve_time has 1 entries, expected 2"),
        ({"language.layers": ["conv"]}, "language: layers.0 is 'conv', expected 'convolution' or 'attention'"),
        ({"language.layers": []}, "at least 1 item"),
        ({"language.heads": 0}, "language: heads is 0, expected greater than or equal to 1"),
        ({"language.kernel": 0}, "language: kernel is 0, expected greater than or equal to 1"),
        ({"discriminator.width": 0}, "discriminator: width is 0, expected greater than or equal to 1"),
        ({"discriminator.multipliers": []}, "at least 1 item"),
        ({"preprocess.std": [0.3, 0.0, 0.3]}, "preprocess: std.1 is 0.0, expected greater than 0"),
        ({"clip.vision.patch_size": 0}, "clip: vision.patch_size is 0, expected greater than or equal to 1"),
        ({"clip.vision.patch_size": 5}, r"clip.vision.image_size \(32\) must be a multiple of .*patch_size \(5"),
        ({"clip.text.num_attention_heads": 5}, r"clip.text.hidden_size \(48\) must be a multiple"),
        ({"clip.projection_dim": "48"}, "clip: projection_dim is '48', expected a valid integer"),
        ({"clip.text.vocab_size": 10}, "vocab_size is 10, but the words of the language model have"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        module(**overrides)


def test_a_share_counts_the_words_that_fit_less():
    similarity = torch.tensor([[0.1, 0.5, 0.9, 0.5]])
    found = percentiles(similarity, torch.tensor([[2, 0, 1]]))
    assert torch.allclose(found, torch.tensor([[1.0, 0.0, 0.5]]))


def test_labels_are_those_of_the_first_object_or_the_class():
    batch = {"scene/color": torch.tensor([[3, -1], [4, 2]]), "scene/place": torch.tensor([0, 1]), "ids": torch.zeros(2)}
    assert {name: x.tolist() for name, x in labels(batch).items()} == {"color": [3, 4], "place": [0, 1]}
    assert labels({"labels": torch.tensor([5])})["class"].tolist() == [5]


def test_predictions_say_what_each_layer_is_worth(prepared):
    config, rows = composed()["data"], 32
    config["splits"]["test"]["rows"] = rows
    data = instantiate(config, folder=prepared("world_plain"), seed=0, _convert_="all")
    built = started()
    found = built.predictions(data, torch.device("cpu"))
    assert found["words/1"].shape == (rows, 1) and found["words/5"].shape == (rows, 64)
    assert {name: tuple(found[name].shape) for name in ("mse", "psnr", "ssim", "similarity", "fit")} == dict.fromkeys(
        ("mse", "psnr", "ssim", "similarity", "fit"), (rows, 5)
    )
    assert found["said"].shape == (rows, len(built.table)) and 1 <= found["said"].sum(1).min()
    assert found["label/color"].shape == (rows,) and found["shown/drawn"].shape == (8, 5, 1, 32, 32, 3)


class Shown:
    """In the place of FID and of the Inception Score: the mean of the pictures that were made."""

    def __init__(self, wrap):
        self.wrap, self.made = wrap, []

    def to(self, device):
        return self

    def update(self, pictures, *, real=False):
        assert pictures.dtype == torch.uint8 and pictures.shape[1:] == (3, 32, 32)
        self.made += [] if real else [pictures]

    def compute(self):
        return self.wrap(torch.cat(self.made).double().mean())


def test_pictures_of_each_prefix_are_seen_by_published_networks_where_they_may_be_used(prepared, monkeypatch):
    splits = {"train": {"source": "train", "rows": 16}, "test": {"source": "test", "rows": 16}}
    block = composed()["data"] | {"splits": splits}
    data = instantiate(block, folder=prepared("world_plain"), seed=0, _convert_="all")
    built = started()
    monkeypatch.setattr(module_file, "has_fid", lambda: True)
    monkeypatch.setattr(module_file, "make_fid", lambda: Shown(lambda mean: mean))
    monkeypatch.setattr(module_file, "make_inception_score", lambda: Shown(lambda mean: (2 * mean, None)))
    assert "fid" not in built.predictions(data, torch.device("cpu"))
    built.published = {"lpips": False}
    found = built.predictions(data, torch.device("cpu"))
    assert found["fid"].shape == (1, 5) and found["fid"].unique().numel() == 5
    torch.testing.assert_close(found["inception_score"], 2 * found["fid"])
