import pytest
import torch
from transformers import AutoModelForImageClassification, ResNetConfig

from lightning_modules import pretrained, rehearsal
from lightning_modules.layers.clip import make_clip
from lightning_modules.maskalign.encoders import published_encoder


def tiny_resnet():
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=5)
    return AutoModelForImageClassification.from_config(config)


def test_load_gives_the_saved_network_from_safetensors(tmp_path):
    source = tiny_resnet().eval()
    source.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    images = torch.randn(2, 3, 32, 32)
    assert pretrained.load(str(tmp_path)).eval()(images).equal(source(pixel_values=images).logits)


def test_pickled_weights_are_refused(tmp_path):
    source = tiny_resnet()
    source.config.save_pretrained(tmp_path)
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConnectionError, match="could not be fetched"):
        pretrained.load(str(tmp_path))


def test_an_unreachable_hub_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"google/efficientnet-b0 could not .*hf download google/efficientnet-b0"):
        pretrained.load("google/efficientnet-b0")


def test_architecture_without_network_answers_with_logits():
    assert pretrained.build("google/mobilenet_v2_1.0_224").eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1001)


@pytest.mark.parametrize(("name", "size"), [("google/efficientnet-b0", 224), ("google/efficientnet-b2", 260)])
def test_padding_at_the_native_resolution_is_that_of_transformers(name, size):
    torch.manual_seed(0)
    plain = AutoModelForImageClassification.from_config(pretrained.configuration(name)).eval()
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = plain(pixel_values=images).logits
        assert pretrained.HubClassifier(plain).eval()(images).equal(expected)
    assert any(isinstance(module, pretrained.SamePad) for module in plain.modules())


def test_unknown_architectures_are_refused():
    with pytest.raises(ValueError, match="'google/vit-huge'; known without network: google/efficientnet-b0"):
        pretrained.build("google/vit-huge")


def test_short_names_have_no_dots():
    assert pretrained.short_name("google/mobilenet_v2_1.0_224") == "mobilenet_v2_1_0_224"


def test_published_weights_are_replaced_in_a_rehearsal_and_made_narrow_only_where_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=1))
    names = ["google/mobilenet_v2_1.0_224", "openai/clip-vit-base-patch32", "facebook/dino-vitb16"]
    assert pretrained.load(names[0]).model.config.depth_multiplier == 1.0
    assert make_clip(hub=names[1]).vision_model.config.hidden_size == 768
    assert published_encoder(names[2], 224).dim == 768
    assert rehearsal.current.replaced == set(names)
    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=1, narrow=16))
    assert make_clip(hub=names[1]).projection_dim == 32
    vit = published_encoder(names[2], 224)
    assert vit(torch.zeros(1, 3, 224, 224)).shape[-1] == 48 and len(vit.blocks) == 12
