"""Published tokenizers are measured as SEED-Voken gives them; pictures have an FID where it can be computed."""

import numpy as np
import pytest
import torch

from lightning_modules import rehearsal
from lightning_modules.magvit2 import picture_evaluation, pictures
from lightning_modules.magvit2.pictures import PictureGenerator, PictureTraining
from lightning_modules.magvit2.released import ReleasedPictures, ReleasedTokenizer
from lightning_modules.runs import Evaluation, Run
from tests.magvit2.seed_voken import wave, weights

SIZES = {"width": 32, "multipliers": (1, 2, 2), "blocks": 1}
VIDEO = {"frames": 5, "size": 16, "codebook_size": 2**10, "halve_time": (False, True), "pooled_norm": True,
         "drop_second": True, **SIZES}  # fmt: skip
PICTURE = {"frames": 1, "size": 16, "dims": 2, "codebook_size": 2**10, "halve_time": (False, False), **SIZES}


def checkpoint(folder, *, video):
    """A file as Lightning writes it."""
    state = weights(video=video, bits=10, **SIZES)
    averages = {f"model_ema.{name.replace('.', '')}": x for name, x in state.items()}
    torch.save({"state_dict": state | averages, "epoch": 1}, path := folder / "a.ckpt")
    return str(path)


class Batches:
    """Two batches of clips with pixels from 0 to 255."""

    num_classes = 3

    def __init__(self, frames):
        self.rows = {"test": ("test", np.arange(5))}
        self.video_shape = (3, frames, 16, 16)
        self.video = ((wave(5, 3, frames, 16, 16) + 1) * 127.5).to(torch.uint8)

    def evaluation_batches(self, split):
        """Three clips, then two."""
        labels = torch.arange(5) % 3
        for part in (slice(0, 3), slice(3, 5)):
            yield {"video": self.video[part], "labels": labels[part]}


@pytest.fixture
def looked(monkeypatch):
    """What is shown to a stand-in of the Inception network."""
    seen = []

    class Looked:
        def __init__(self, device):
            assert device == torch.device("cpu")

        def update(self, made, real):
            seen.append((made, real))

        def compute(self):
            return {"fid": torch.tensor([1.5]), "inception_score": torch.tensor([2.5])}

    monkeypatch.setattr(pictures, "has_fid", lambda: True)
    monkeypatch.setattr(pictures, "Inception", Looked)
    return seen


def test_a_published_video_tokenizer_is_measured_with_its_averages(tmp_path):
    built = ReleasedTokenizer(tokenizer=VIDEO, checkpoint=checkpoint(tmp_path, video=True))
    data = Batches(5)
    found = built.predictions(data, torch.device("cpu"))
    tokens = built.tokenizer.encode(data.video / 255)
    assert torch.equal(found["tokens"], tokens) and found["psnr"].shape == (5,) and (found["leak"] > 0).all()
    assert built.facts()["parameters"] == sum(x.numel() for x in built.parameters())
    other = ReleasedTokenizer(tokenizer=VIDEO, checkpoint=str(tmp_path / "a.ckpt"), averages=False)
    other.load_export(built.export())
    assert torch.equal(other(data.video), tokens)


def test_published_pictures_have_an_fid_of_what_comes_back(tmp_path, looked):
    built, data = ReleasedPictures(tokenizer=PICTURE, checkpoint=checkpoint(tmp_path, video=False)), Batches(1)
    found = built.predictions(data, torch.device("cpu"))
    assert found["fid"].tolist() == [1.5] and found["inception_score"].tolist() == [2.5] and "leak" not in found
    made, real = (torch.cat(each) for each in zip(*looked, strict=True))
    assert torch.equal(real, data.video / 255)
    torch.testing.assert_close(made, built.tokenizer.decode(found["tokens"]))


def test_pictures_in_training_have_none_where_it_is_not_installed(monkeypatch):
    built = PictureTraining(tokenizer=PICTURE, discriminator={"width": 4, "multipliers": [2], "blur": True})
    monkeypatch.setattr(pictures, "has_fid", lambda: False)
    assert not {"fid", "inception_score"} & built.predictions(Batches(1), torch.device("cpu")).keys()


def test_drawn_pictures_are_compared_with_those_that_lend_their_classes(looked):
    network = {"bits": [5, 5], "layers": 1, "hidden_size": 8, "mlp_dim": 8, "heads": 2}
    built = PictureGenerator(
        tokenizer=PICTURE, network=network, num_classes=3, tasks=["cg"], judged_tasks=["cg"], judged_rows=4,
        decoding={"steps": 2},
    )  # fmt: skip
    data = Batches(1)
    found = built.predictions(data, torch.device("cpu"))
    assert found["fid"].tolist() == [1.5] and found["cg/right"].shape == (4, 16)
    made, real = (torch.cat(each) for each in zip(*looked, strict=True))
    assert torch.equal(real, data.video[:4] / 255) and made.shape == real.shape
    with pytest.raises(ValueError, match="fp"):
        PictureGenerator(tokenizer=PICTURE, network=network, num_classes=3, tasks=["fp"], judged_tasks=["fp"])


def test_the_inception_network_sees_bytes(monkeypatch):
    calls = []

    class Measure:
        def to(self, device):
            return self

        def update(self, images, **kind):
            assert images.dtype == torch.uint8 and images.shape == (2, 3, 4, 4)
            calls.append((images.amax().item(), kind))

        def compute(self):
            return torch.tensor(7.0)

    monkeypatch.setattr(pictures, "make_fid", Measure)
    monkeypatch.setattr(pictures, "make_inception_score", lambda: Measure())
    inception = pictures.Inception(torch.device("cpu"))
    inception.update(torch.full((2, 3, 1, 4, 4), 1.2), torch.full((2, 3, 1, 4, 4), 0.5))
    assert calls == [(128, {"real": True}), (255, {"real": False}), (255, {})]
    assert inception.fid.compute() == 7


def test_the_evaluation_says_why_there_is_no_fid():
    class Stored(Run):
        def __init__(self, seed, arrays):
            self.__dict__.update(seed=seed, arrays=arrays)

        def predictions(self):
            return self.arrays

    scores = {"fid": np.array([3.0]), "inception_score": np.array([9.0])}
    base = Evaluation(metrics={0: {"toy/psnr": 1.0}, 1: {}}, not_computed={"fid": "a", "fvd": "b", "lpips": "c"})
    found = picture_evaluation.scored(base, [Stored(0, scores), Stored(1, scores)], "toy")
    assert found.metrics[0] == {"toy/psnr": 1.0, "toy/fid": 3.0, "toy/inception_score": 9.0}
    assert found.not_computed == {"lpips": "c"}
    found = picture_evaluation.scored(base, [Stored(0, scores), Stored(1, {})], "toy")
    assert found.not_computed.keys() == {"lpips", "fid", "inception_score"} and "torch-fidelity" in str(found)


def test_a_rehearsal_draws_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "current", now := rehearsal.Rehearsal(rows=2))
    ReleasedTokenizer(tokenizer=VIDEO, checkpoint=str(tmp_path / "none.ckpt"))
    assert now.replaced == {str(tmp_path / "none.ckpt")}


def test_wrong_settings_are_named(tmp_path):
    with torch.device("meta"):  # how large it is can be asked without the file
        ReleasedTokenizer(tokenizer=VIDEO, checkpoint=str(tmp_path / "none.ckpt"))
    with pytest.raises(ValueError, match=r"none\.ckpt does not exist: download it, or correct its path in conf/"):
        ReleasedTokenizer(tokenizer=VIDEO, checkpoint=str(tmp_path / "none.ckpt"))
    with pytest.raises(ValueError, match=r"SEED-Voken is of another architecture: .* keys differ"):
        ReleasedTokenizer(tokenizer=VIDEO, checkpoint=checkpoint(tmp_path, video=False))
    with pytest.raises(
        ValueError, match=r"pretrain\.epochs is 3, expected 0: the weights are published ones\. To train"
    ):
        ReleasedTokenizer.check_recipe({"epochs": 3}, "pretrain")
    assert ReleasedTokenizer.check_recipe({"epochs": 0}, "pretrain") == {"epochs": 0}
    with pytest.raises(ValueError, match=r"model\.tokenizer: unknown key 'widths'"):
        ReleasedTokenizer(tokenizer={**VIDEO, "widths": 3}, checkpoint=str(tmp_path / "a.ckpt"))
    with pytest.raises(ValueError, match=r"model\.tokenizer\.blocks is 0, expected"):
        ReleasedTokenizer(tokenizer={**VIDEO, "blocks": 0}, checkpoint=str(tmp_path / "a.ckpt"))
