"""Pictures as clips of one frame: an image tokenizer is trained on them, and a video tokenizer begins with it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer

from lightning_modules.datasets import storage
from lightning_modules.magvit2.pictures import PictureClips, as_clips
from lightning_modules.video_tokens.causal_training import CausalTraining
from lightning_modules.video_tokens.clips import ClipData

TOKENIZER = {"size": 16, "width": 4, "multipliers": (1, 1, 1), "blocks": 1, "codebook_size": 16, "norm_groups": 2}
RECIPE = {"optimizer": "adamw", "lr": 1e-3, "betas": [0.5, 0.99], "weight_decay": 0.0, "schedule": "cosine",
          "warmup": 0.0, "epochs": 1}  # fmt: skip


@pytest.fixture
def data(tmp_path):
    draw, rows = np.random.default_rng(0), []
    for row in range(8):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file, "PNG")
        rows.append((f"{row}.png", file.getvalue(), row % 3))
    splits = {
        name: storage.write_blocks(tmp_path, name, storage.numbered_blocks(rows), "png", None, row_group=4)
        for name in ("train", "val")
    }
    storage.write_card(tmp_path, name="toy", splits=splits, codec="png", shape=None, num_classes=3, source="made up")
    return PictureClips(
        folder=tmp_path, seed=0, batch_size=4, evaluation_batch_size=3, image_size=16, crop_scale=[0.8, 1.0],
        splits={"train": {"source": "train", "rows": None}, "test": {"source": "val", "rows": None}},
    )  # fmt: skip


def test_a_picture_is_a_clip_of_one_frame(data):
    assert isinstance(data, ClipData) and data.video_shape == (3, 1, 16, 16)
    batches = list(data.evaluation_batches("test"))
    assert [len(batch["video"]) for batch in batches] == [3, 3, 2]
    assert batches[0].keys() == {"video", "labels"} and batches[0]["video"].shape == (3, 3, 1, 16, 16)
    images = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert torch.equal(as_clips({"images": images})["video"][:, :, 0], images)


@pytest.mark.filterwarnings("ignore")  # those of Lightning, which `training.fit` leaves out
def test_an_image_tokenizer_is_trained_on_them_and_a_video_tokenizer_begins_with_it(data):
    torch.manual_seed(0)
    options = {"discriminator": {"width": 4, "multipliers": [2], "blur": True}}
    image = {**TOKENIZER, "frames": 1, "dims": 2, "halve_time": (False, False)}
    built = CausalTraining(tokenizer=image, **options)
    built.recipe = RECIPE
    built.check_data(data)
    before = {name: x.clone() for name, x in built.tokenizer.named_parameters()}
    Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, use_distributed_sampler=False,
    ).fit(built, data)  # fmt: skip
    assert any((x != before[name]).any() for name, x in built.tokenizer.named_parameters())
    found = built.predictions(data, torch.device("cpu"))
    assert found["tokens"].shape == (8, 1, 4, 4) and "leak" not in found
    video = CausalTraining(tokenizer={**TOKENIZER, "frames": 5, "halve_time": (False, True)}, **options)
    video.start_from(built.export())
    clip = torch.rand(1, 3, 5, 16, 16)
    first = video.tokenizer.eval().latents(clip)[:, :, 0]
    torch.testing.assert_close(first, built.tokenizer.eval().latents(clip[:, :, :1])[:, :, 0])
