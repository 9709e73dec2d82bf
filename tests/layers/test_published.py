"""Files of weights as they arrive after a download that went wrong: each is named, with the way out."""

import pickle

import pytest
import torch
from transformers import ViTConfig, ViTModel

from lightning_modules.layers.published import from_pretrained, read_checkpoint


def saved(folder, **options) -> bytes:
    torch.save({"weight": torch.arange(5000.0)}, folder / "sound.pt", **options)
    assert torch.equal(read_checkpoint(folder / "sound.pt")["weight"], torch.arange(5000.0))
    return (folder / "sound.pt").read_bytes()


@pytest.mark.parametrize(
    "content, told",
    [
        (b"<!DOCTYPE html><html>404</html>", "is no file that torch has saved: it begins with b'<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS"),
        (b"", "is no file that torch has saved: it begins with b''"),
        (pickle.dumps(print, protocol=2), "holds more than tensors and plain values"),
    ],
    ids=["html", "lfs", "empty", "code"],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, told):
    path = tmp_path / "official.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("share", [0.002, 0.3, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_checkpoint_that_is_cut_off_is_named(tmp_path, zipped, share):
    content = saved(tmp_path, _use_new_zipfile_serialization=zipped)
    path = tmp_path / "official.pth"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"official.pth \(\d+ bytes\) is cut off or damaged: fetch it again"):
        read_checkpoint(path)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.pth does not exist: download it"):
        read_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_weights_of_the_hub_that_are_cut_off_are_named(tmp_path, share):
    sizes = dict(hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=4)
    ViTModel(ViTConfig(**sizes, patch_size=2)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"are cut off or damaged .*fetch them again"):
        from_pretrained(ViTModel, str(tmp_path), lambda: None)
