"""Fine-tuning, linear probe, neighbours, and the augmentation that they share."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import nn

from lightning_modules.base import learning_rate_schedule
from lightning_modules.datamodules.labelled import LabelledImages
from lightning_modules.datasets.digits import prepare
from lightning_modules.layers.lars import LARS
from lightning_modules.layers.vision import VisionTransformer
from lightning_modules.tasks import augmentation
from lightning_modules.tasks.augmentation import Mix, Preprocess
from lightning_modules.tasks.classification import FineTune, LinearProbe

VIT = dict(image_size=8, patch_size=2, dim=24, depth=2, num_heads=2, channels=1)
PIXELS = dict(pixel_scale=16.0, mean=[0.3], std=[0.4])
ADAMW = dict(optimizer="adamw", lr=3e-3, weight_decay=0.05, schedule="cosine", warmup=0.0)


def digits(rows: int = 64) -> dict[str, torch.Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return {
        "images": torch.from_numpy(images[:rows].reshape(-1, 1, 8, 8).astype(np.uint8)),
        "labels": torch.from_numpy(labels[:rows].astype(np.int64)),
    }


def train(module, recipe, steps: int, batch) -> list[float]:
    module.recipe = recipe
    module.train()
    optimizer, losses = module._optimizer(), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module.training_step(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_fine_tuning_learns_and_every_parameter_takes_part(pool):
    torch.manual_seed(0)
    module = FineTune(encoder=VIT, num_classes=10, preprocess=PIXELS, pool=pool, layer_decay=0.75, label_smoothing=0.1)
    losses = train(module, ADAMW, 30, digits())
    assert losses[-1] < 0.75 * losses[0]
    missing = [name for name, p in module.named_parameters() if p.grad is None]
    assert missing == []
    assert (module(digits()["images"]).argmax(1) == digits()["labels"]).float().mean() > 0.5


def test_a_pretrained_encoder_is_taken_over_but_for_its_last_norm():
    encoder = VisionTransformer(**VIT)
    module = FineTune(encoder=VIT, num_classes=10, preprocess=PIXELS)
    assert torch.equal(module.encoder.pos_embed, encoder.pos_embed)  # fixed before, trained from there
    module.start_from(encoder.state_dict())
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(module.encoder.layers(images)[-1], encoder.layers(images)[-1])
    with pytest.raises(ValueError, match="the pre-trained encoder is of another architecture"):
        module.start_from(VisionTransformer(**{**VIT, "depth": 3}).state_dict())


def test_a_head_as_small_as_the_official_one_starts_at_the_logarithm_of_the_classes():
    module = FineTune(encoder=VIT, num_classes=10, preprocess=PIXELS)
    assert module.training_step(digits()).item() == pytest.approx(np.log(10), abs=1e-3)


def test_the_probe_trains_its_head_alone_and_leaves_the_encoder():
    torch.manual_seed(0)
    module = LinearProbe(encoder=VIT, num_classes=10, preprocess=PIXELS, pool="mean")
    encoder = {key: x.clone() for key, x in module.encoder.network.state_dict().items()}
    recipe = dict(optimizer="lars", lr=30.0, momentum=0.9, weight_decay=0.0)
    losses = train(module, recipe, 40, digits())
    assert losses[-1] < 0.8 * losses[0]
    assert [name for name, _ in module.named_parameters()] == ["head.weight", "head.bias"]
    assert all(torch.equal(x, encoder[key]) for key, x in module.encoder.network.state_dict().items())
    features = module.norm(module.features(module.preprocess(digits()["images"])))
    assert features.mean(0).abs().max() < 1e-4 and (features.var(0, unbiased=False) - 1).abs().max() < 1e-2


def test_predictions_are_the_logits_of_every_split_but_train(tmp_path):
    prepare(tmp_path / "digits")
    data = LabelledImages(
        folder=tmp_path / "digits",
        seed=0,
        splits={name: {"source": "all", "rows": rows} for name, rows in {"train": 20, "test": 15}.items()},
        copies=1,
        batch_size=10,
        evaluation_batch_size=4,
        augmentation="none",
        centre_crop=None,
    )
    module = FineTune(encoder=VIT, num_classes=10, preprocess={**PIXELS, "shift": 1})
    predictions = module.predictions(data, torch.device("cpu"))
    assert {key: tuple(x.shape) for key, x in predictions.items()} == {"logits/test": (15, 10), "labels/test": (15,)}
    rows = data.rows["test"][1]
    batch = digits(1797)
    assert torch.equal(predictions["labels/test"], batch["labels"][rows])
    torch.testing.assert_close(
        predictions["logits/test"], module(batch["images"][rows]).detach()
    )  # nothing is augmented


def test_lars_scales_the_step_of_a_matrix_by_its_size_and_leaves_vectors_alone():
    matrix, vector = nn.Parameter(torch.full((2, 2), 3.0)), nn.Parameter(torch.ones(2))
    optimizer = LARS([matrix, vector], lr=2.0, momentum=0.5, weight_decay=0.0, trust_coefficient=0.1)
    for _ in range(2):
        matrix.grad, vector.grad = torch.full((2, 2), 0.5), torch.full((2,), 0.25)
        before = matrix.detach().clone()
        optimizer.step()
    first = 3 - 2 * 0.1 * (6 / 1) * 0.5  # trust x |w| / |g| x g
    assert before.flatten().tolist() == pytest.approx([first] * 4)
    second = first - 2 * (0.5 * 0.3 + 0.1 * (2 * first / 1) * 0.5)
    assert matrix.detach().flatten().tolist() == pytest.approx([second] * 4)
    assert vector.tolist() == pytest.approx([1 - 2 * 0.25 - 2 * (0.5 * 0.25 + 0.25)] * 2)


def test_cosine_to_min_starts_at_zero_and_ends_at_the_minimum():
    recipe = dict(schedule="cosine_to_min", lr=0.1, min_lr=0.01, warmup=0.2)
    factor = learning_rate_schedule(recipe, 100)
    assert [factor(step) for step in (0, 10, 20, 100)] == pytest.approx([0, 0.5, 1, 0.1])
    assert factor(60) == pytest.approx(0.55)


# Augmentation


def test_evaluation_only_normalises():
    images = digits(4)["images"]
    options = dict(crop_scale=[0.2, 1.0], flip=True, shift=2, erase=1.0)
    preprocess = Preprocess(**PIXELS, **options)
    assert preprocess.augments and not Preprocess(**PIXELS).augments
    torch.testing.assert_close(preprocess.eval()(images), (images / 16 - 0.3) / 0.4)


def test_every_augmentation_changes_each_image_by_itself_and_follows_the_seed():
    images = digits(1)["images"].expand(64, -1, -1, -1)
    for options in (dict(crop_scale=[0.2, 0.5]), dict(flip=True), dict(shift=2), dict(erase=1.0)):
        preprocess = Preprocess(**PIXELS, **options)
        results = []
        for _ in range(2):
            torch.manual_seed(0)
            results.append(preprocess(images))
        assert torch.equal(*results), options
        assert len(results[0].flatten(1).unique(dim=0)) > 1, options
        assert results[0].shape == images.shape


def test_a_crop_stays_inside_and_keeps_the_position_of_what_it_shows():
    ramp = torch.linspace(0.1, 0.9, 32).expand(200, 1, 32, 32)
    cropped = augmentation.random_resized_crop(ramp, [0.2, 0.6])
    assert cropped.min() >= 0.09 and cropped.max() <= 0.91
    span = (cropped[:, 0, :, -1] - cropped[:, 0, :, 0]).mean(1) / 0.8  # how much of the ramp a crop shows
    assert 0.3 < span.min() and span.max() < 0.95
    assert (cropped.diff(dim=3) > 0).all()


def test_a_shift_moves_pixels_and_lets_zeros_in():
    images = torch.ones(500, 1, 6, 6)
    shifted = augmentation.random_shift(images, 2)
    zero_rows = (shifted[:, 0].sum(2) == 0).sum(1)
    assert sorted(zero_rows.unique().tolist()) == [0, 1, 2]
    assert set(shifted.unique().tolist()) == {0.0, 1.0}


def test_erasing_replaces_one_rectangle_of_the_stated_area():
    torch.manual_seed(0)
    images = torch.zeros(300, 2, 32, 32)
    erased = augmentation.random_erase(images, 0.25) != 0
    assert torch.equal(erased[:, 0], erased[:, 1])
    hit = erased[:, 0].flatten(1).any(1)
    assert 0.17 < hit.float().mean() < 0.33
    for mask in erased[hit, 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()  # a rectangle
        assert 0.01 < mask.float().mean() < 0.36


FILL = torch.tensor([0.485, 0.456, 0.406])[:, None, None]


def test_rand_augment_draws_operations_for_each_image():
    """timm leaves 28.3 % of 20,000 pictures that use the whole range unchanged: a half twice, or auto_contrast."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 8, 8)
    image[0, :, 0, 0], image[0, :, 0, 1] = 0, 1
    results = augmentation.rand_augment(image.expand(2000, -1, -1, -1), 9, FILL)
    assert results.shape == (2000, 3, 8, 8) and results.min() >= 0 and results.max() <= 1
    assert (results == image).flatten(1).all(1).float().mean().item() == pytest.approx(0.283, abs=0.03)
    for mistake, channels in ((11, 3), (9, 1)):
        with pytest.raises(ValueError, match=rf"rand_augment \({mistake}\) must be between 1 and 10, .*{channels}"):
            Preprocess(pixel_scale=255.0, mean=[0.5] * channels, std=[0.5] * channels, rand_augment=mistake)


def test_rand_augment_draws_levels_as_timm_does():
    """Figures of 100,000 pictures under timm's rand-m9-mstd0.5-inc1 (1.0.31, as of 0.3.2)."""
    torch.manual_seed(0)
    operation, level, sign = augmentation.draw_operations(200_000, 9)
    shares = torch.bincount(operation + 1) / len(operation)
    assert shares[0].item() == pytest.approx(0.5, abs=0.005)  # not applied
    assert shares[1:].tolist() == pytest.approx([1 / 30] * 15, abs=0.002)
    assert (sign.mean().abs() < 0.01) and set(sign.tolist()) == {-1.0, 1.0}
    degrees = 30 * level
    assert (degrees.mean().item(), degrees.std().item()) == pytest.approx((26.96, 1.47), abs=0.06)  # of 6,732 rotations
    assert degrees.max() == 30 and 19 < degrees.min() < 23
    threshold, added = 256 - (256 * level).floor(), (110 * level).floor()
    assert (threshold.mean().item(), threshold.std().item()) == pytest.approx((26.3, 12.6), abs=0.3)
    assert (added.mean().item(), added.std().item()) == pytest.approx((98.4, 5.4), abs=0.2)
    no_bit = (level == 1).float().mean().item()
    assert no_bit == pytest.approx(0.0235, abs=0.003)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("level", [0.3, 0.9])
def test_operations_are_those_of_pillow_that_timm_calls(level, sign):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(30, 220, (16, 16, 3), dtype=np.uint8)).resize(
        (64, 64), Image.Resampling.BICUBIC
    )
    factor, sheared, moved = 1 + 0.9 * sign * level, 0.3 * sign * level, 64 * 0.45 * sign * level
    bicubic = dict(resample=Image.Resampling.BICUBIC, fillcolor=(124, 116, 104))

    def affine(*numbers):
        return picture.transform(picture.size, Image.Transform.AFFINE, numbers, **bicubic)

    expected = {
        "auto_contrast": ImageOps.autocontrast(picture),
        "equalize": ImageOps.equalize(picture),
        "invert": ImageOps.invert(picture),
        "posterize": ImageOps.posterize(picture, 4 - int(4 * level)),
        "solarize": ImageOps.solarize(picture, 256 - int(256 * level)),
        "solarize_add": picture.point([min(255, i + int(110 * level)) if i < 128 else i for i in range(256)] * 3),
        "colour": ImageEnhance.Color(picture).enhance(factor),
        "contrast": ImageEnhance.Contrast(picture).enhance(factor),
        "brightness": ImageEnhance.Brightness(picture).enhance(factor),
        "sharpness": ImageEnhance.Sharpness(picture).enhance(factor),
        "rotate": picture.rotate(30 * sign * level, **bicubic),
        "shear_x": affine(1, sheared, 0, 0, 1, 0),
        "shear_y": affine(1, 0, 0, sheared, 1, 0),
        "translate_x": affine(1, 0, moved, 0, 1, 0),
        "translate_y": affine(1, 0, 0, 0, 1, moved),
    }
    assert tuple(expected) == augmentation.OPERATIONS
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    for name, target in expected.items():
        found = augmentation.operate(name, image, torch.tensor([level]), torch.tensor([sign]), FILL)
        error = np.abs(255 * found[0].permute(1, 2, 0).numpy() - np.array(target)).mean()
        assert error < (1.5 if name in {"rotate"} or name[:5] in {"shear", "trans"} else 0.7), (name, error)
    with pytest.raises(ValueError, match=r"operation \('blur'\)"):
        augmentation.operate("blur", image, torch.tensor([level]), torch.tensor([sign]), FILL)


@pytest.mark.parametrize(("side", "mean", "large", "small"), [(32, 0.299, 0.012, 0.422), (224, 0.318, 0.018, 0.395)])
def test_the_box_of_cutmix_is_cut_off_at_the_border_as_by_timm(side, mean, large, small):
    """Area replaced, and how often it is above three quarters and below one: 100,000 draws of timm's `rand_bbox`."""
    torch.manual_seed(0)
    shares = ((torch.arange(500) + 0.5) / 500).sqrt().tolist()  # as of uniform draws, evenly
    areas = torch.tensor([augmentation.cutmix_box(share, side, side).float().mean() for share in shares])
    found = areas.mean().item(), (areas > 0.75).float().mean().item(), (areas < 0.25).float().mean().item()
    assert found == pytest.approx((mean, large, small), abs=0.025)


def test_mixup_and_cutmix_mix_labels_by_the_share_of_pixels():
    torch.manual_seed(0)
    images = torch.stack([torch.zeros(1, 16, 16), torch.ones(1, 16, 16)])
    labels = torch.tensor([0, 1])
    for options in (dict(mixup=0.8), dict(cutmix=1.0), dict(mixup=0.8, cutmix=1.0)):
        mix = Mix(num_classes=3, **options)
        for _ in range(10):
            mixed, targets = mix(images, labels)
            torch.testing.assert_close(mixed[0].mean(), targets[0, 1])  # the share of the image of ones
            torch.testing.assert_close(targets.sum(1), torch.ones(2))
            assert (options.keys() == {"cutmix"}) <= (set(mixed.unique().tolist()) <= {0.0, 1.0})


def test_label_smoothing_is_that_of_torch():
    logits, labels = torch.randn(5, 7), torch.randint(0, 7, (5,))
    _, targets = Mix(num_classes=7, smoothing=0.1)(torch.zeros(5, 1, 2, 2), labels)
    torch.testing.assert_close(F.cross_entropy(logits, targets), F.cross_entropy(logits, labels, label_smoothing=0.1))
