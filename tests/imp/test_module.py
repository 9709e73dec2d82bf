"""Training on one task at a time, on all at once, and what stays of a step for what it does not touch."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule

from lightning_modules.imp.module import Imp, Recipe
from lightning_modules.imp.objectives import classification, cross_modal_nce, masked_words
from lightning_modules.imp.schedules import pre_warmup_cosine
from lightning_modules.settings import check

MIXTURE = {
    "experts": 4, "layers": 0, "place": "last", "routing": "expert_choice", "largest_group": 64, "capacity": 1.0,
    "least_capacity": 0, "selected": 1, "prioritised": False, "slots": 2, "evaluation_groups": "sample", "z_loss": 0.1,
    "balance": 0.1,
}  # fmt: skip
MODALITIES = {
    "vision": {"patch": [2, 4, 4], "buckets": [2, 2, 2]},
    "spectrogram": {"patch": [4, 4], "buckets": [2, 2], "rate": 1024, "frame": 64, "step": 64, "bands": 8,
                    "lowest": 20.0, "highest": 500.0, "mean": -5.0, "deviation": 5.0},
    "waveform": {"patch": 128, "buckets": 4},
    "text": {"words": 133, "buckets": 8},
}  # fmt: skip


def task(objective, modalities, classes=None, **changes):
    return {"objective": objective, "modalities": modalities, "classes": classes, "drop": 0.0, "weight": 1.0} | changes


TASKS = {
    "pairs": task("contrast", ["vision", "text"]),
    "clips": task("classification", ["vision"], 3, drop=0.5),
    "sounding": task("contrast", ["vision", "spectrogram", "text"], drop=0.5),
    "sounds": task("classification", ["waveform"], 2),
    "texts": task("masked_words", ["text"]),
}
PROMPTS = {"clips": {"classes": ["moving left", "moving right", "moving up"], "templates": ["a red circle {}"]}}


def module(**changes):
    torch.manual_seed(0)
    options = {
        "encoder": {"dim": 8, "hidden": 16, "layers": 2, "heads": 2, "norm_qk": False}, "mixture": MIXTURE,
        "modalities": MODALITIES, "tasks": TASKS, "common_dim": 8, "temperature": 0.2, "prompts": PROMPTS,
        "shown": {"side": 8, "frames": 4, "samples": 512},
    }  # fmt: skip
    return Imp(**options | changes)


def batches(rows=4):
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(256, (rows, 3, 8, 8), generator=draw).to(torch.uint8)
    video = torch.randint(256, (rows, 3, 4, 8, 8), generator=draw).to(torch.uint8)
    audio = torch.randint(-9999, 9999, (rows, 512), generator=draw).to(torch.int16)
    text = {"token_ids": torch.randint(133, (rows, 6), generator=draw),
            "attention_mask": torch.arange(6) < torch.randint(2, 7, (rows, 1), generator=draw)}  # fmt: skip
    targets = torch.where(torch.arange(6) == 1, text["token_ids"], -100)
    return {
        "pairs": {"images": images, **text},
        "clips": {"video": video, "labels": torch.arange(rows) % 3},
        "sounding": {"video": video, "audio": audio, **text},
        "sounds": {"audio": audio, "labels": torch.arange(rows) % 2},
        "texts": {**text, "targets": targets},
    }


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("layers", [0, 1])
def test_a_step_learns_one_task_alone(name, layers):
    imp = module(mixture=MIXTURE | {"layers": layers}, zero_gradients=False)
    loss = imp.training_step({name: batches(8)[name]})
    loss.backward()
    touched = {key.split(".")[2] + "." + key.split(".")[3] for key, p in imp.named_parameters() if p.grad is not None}
    assert not {f"classifiers.{other}" for other in ("clips", "sounds") if other != name} & touched
    assert math.isfinite(loss.item())


def test_summed_losses_are_those_of_the_single_steps():
    imp = module(tasks={name: each | {"drop": 0.0} for name, each in TASKS.items()})
    parts = batches()
    single = sum(imp.training_step({name: part}).item() for name, part in parts.items())
    assert imp.training_step(parts).item() == pytest.approx(single, rel=1e-5)


def test_losses_of_experts_are_added_with_their_weight():
    imp = module(mixture=MIXTURE | {"layers": 1})
    terms = imp.terms({"texts": batches(8)["texts"]})
    assert set(terms) == {"texts", "texts/experts"}
    network = imp.network("texts")
    (experts,) = network.encoder.experts()
    logits = experts.loss / MIXTURE["z_loss"]
    assert terms["texts/experts"].item() == pytest.approx(0.1 * logits.item())


def test_a_weight_of_a_task_scales_its_loss():
    half = TASKS | {"texts": TASKS["texts"] | {"weight": 0.5}}
    batch = {"texts": batches()["texts"]}
    assert module(tasks=half).training_step(batch).item() == pytest.approx(0.5 * module().training_step(batch).item())


def step(imp, name, optimizer):
    imp.training_step({name: batches()[name]}).backward()
    imp.on_before_optimizer_step(optimizer)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("zero", [True, False])
def test_what_a_step_does_not_touch_moves_on_or_rests(zero):
    imp = module(zero_gradients=zero)
    imp.recipe = {"optimizer": "adamw", "lr": 0.1, "weight_decay": 0.1}
    optimizer = imp._optimizer()
    step(imp, "sounds", optimizer)
    before = imp.networks["shared"].classifiers["sounds"].weight.detach().clone()
    step(imp, "texts", optimizer)
    after = imp.networks["shared"].classifiers["sounds"].weight.detach()
    assert torch.equal(before, after) != zero


def test_zero_gradients_give_the_moments_of_adam_as_in_jax():
    imp = module()
    imp.recipe = {"optimizer": "adamw", "lr": 0.1, "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-7}
    optimizer = imp._optimizer()
    weight = imp.networks["shared"].classifiers["sounds"].weight
    step(imp, "sounds", optimizer)
    moments = {key: optimizer.state[weight][key].clone() for key in ("exp_avg", "exp_avg_sq")}
    before = weight.detach().clone()
    step(imp, "texts", optimizer)
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], 0.9 * moments["exp_avg"])
    first, second = 0.9 * moments["exp_avg"] / (1 - 0.9**2), 0.999 * moments["exp_avg_sq"] / (1 - 0.999**2)
    torch.testing.assert_close(weight.detach(), before - 0.1 * first / (second.sqrt() + 1e-7))


def test_only_matrices_are_decayed():
    imp = module(mixture=MIXTURE | {"layers": 1})
    names = {id(p): name for name, p in imp.named_parameters()}
    imp.recipe = {"optimizer": "adamw", "lr": 0.1, "weight_decay": 0.1}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in imp.parameter_groups())
    assert {"networks.shared.encoder.layers.1.feed_forward.wi", "networks.shared.encoder.layers.1.feed_forward.router",
            "networks.shared.embed.vision.to_embedding.weight"} <= decayed  # fmt: skip
    assert {"networks.shared.embed.text.to_embedding.weight", "networks.shared.temperatures.text_vision",
            "networks.shared.encoder.final_layer_norm.weight"} <= others  # fmt: skip
    assert len(decayed) + len(others) == len(names)


def test_separate_networks_share_nothing():
    imp = module(shared=False, zero_gradients=False)
    imp.training_step({"clips": batches()["clips"]}).backward()
    assert {name.split(".")[1] for name, p in imp.named_parameters() if p.grad is not None} == {"clips"}


def test_a_drop_rate_of_the_batch_comes_before_that_of_the_task(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "lightning_modules.imp.module.drop_tokens", lambda tokens, rate, way: seen.append(rate) or tokens
    )
    imp = module().train()
    imp.training_step({"clips": batches()["clips"] | {"drop_rate": torch.tensor(0.25)}})
    imp.training_step({"clips": batches()["clips"]})
    imp.eval()
    imp.loss("clips", batches()["clips"])
    assert seen == [0.25, 0.5]


def test_several_captions_of_a_row_are_all_right():
    imp, batch = module(), batches()["pairs"]
    twice = batch | {key: torch.stack([batch[key]] * 2, 1) for key in ("token_ids", "attention_mask")}
    once = imp.loss("pairs", batch)[0].item()
    assert imp.loss("pairs", twice)[0].item() == pytest.approx(once, rel=1e-5)  # equal captions change no probability


def test_clips_of_a_video_give_one_class():
    imp, batch = module().eval(), batches()["clips"]
    twice = batch | {"video": torch.stack([batch["video"]] * 2, 1)}
    torch.testing.assert_close(imp.class_logits("clips", twice)[0], imp.class_logits("clips", batch)[0])


def test_contrast_at_random_is_the_logarithm_of_the_rows():
    torch.manual_seed(0)
    first, second = (torch.randn(64, 1, 2048) for _ in range(2))
    assert cross_modal_nce(first, second, torch.tensor(1.0)).item() == pytest.approx(math.log(64), rel=1e-3)


def test_classes_are_numbers_or_equal_shares():
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    several = torch.tensor([[1, 0, 0], [0, 1, 1]])
    shares = -(logits.log_softmax(1) * torch.tensor([[1, 0, 0], [0, 0.5, 0.5]])).sum(1).mean()
    torch.testing.assert_close(classification(logits, several), shares)
    numbers = torch.tensor([0, 2])
    torch.testing.assert_close(classification(logits, numbers), F.cross_entropy(logits, numbers))


def test_a_text_without_a_question_costs_nothing():
    assert masked_words(torch.randn(1, 2, 4), torch.full((1, 2), -100)).item() == 0


@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        ({"peak": 1e-3, "start": 5e-6, "end": 1e-6, "warmup_steps": 25_000, "decay_steps": 500_000,
          "pre_warmup_steps": 2_000, "pre_warmup_start": 2e-5},
         {0: 2e-5, 2_000: 5e-6, 14_500: 5.025e-4, 27_000: 1e-3, 264_500: 5.005e-4, 502_000: 1e-6}),
        ({"peak": 5e-4, "start": 1e-6, "end": 1e-6, "warmup_steps": 50_000, "decay_steps": 500_000,
          "pre_warmup_steps": 5_000, "pre_warmup_start": 1e-5},
         {0: 1e-5, 5_000: 1e-6, 55_000: 5e-4, 505_000: 1e-6}),
        ({"peak": 8e-4, "start": 1e-6, "end": 0.0, "warmup_steps": 10_000, "decay_steps": 200_000},
         {0: 1e-6, 10_000: 8e-4, 200_000: 0.0}),
    ],
)  # fmt: skip
def test_rates_are_those_of_the_official_schedule(recipe, values):
    factor = pre_warmup_cosine(**recipe)
    for at, rate in values.items():
        assert recipe["peak"] * factor(at) == pytest.approx(rate, rel=1e-6, abs=1e-12)


def test_a_warm_up_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="a warm-up of 20 steps does not fit into 10"):
        pre_warmup_cosine(peak=1.0, start=0.0, end=0.0, warmup_steps=20, decay_steps=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {}}, "model.tasks is empty"),
        ({"tasks": {"x": task("contrast", ["vision"])}}, "contrast takes two modalities or more"),
        ({"tasks": {"x": task("contrast", ["vision", "vision"])}}, "name each modality once"),
        ({"tasks": {"x": task("classification", ["vision"])}}, "classification takes one modality, and classes"),
        ({"tasks": {"x": task("masked_words", ["vision"])}}, "masked_words takes text alone"),
        ({"modalities": {"text": MODALITIES["text"]}}, "has 'vision', but model.modalities has text"),
        ({"prompts": {"clips": {"classes": ["a", "b"], "templates": ["{}"]}}}, "model.prompts.clips has 2 classes"),
        ({"prompts": {"others": {"classes": ["a", "b"], "templates": ["{}"]}}}, "there is no task of that name"),
        ({"shared": False, "published": "none.npz"}, "model.shared is false: set it to true"),
    ],
)
def test_a_wrong_model_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        module(**changes)


def test_a_batch_without_the_modality_is_refused():
    with pytest.raises(ValueError, match="a batch with labels has no video or images, of which vision is read"):
        module().training_step({"clips": {"labels": torch.zeros(2, dtype=torch.long)}})


def test_tasks_of_other_names_than_the_data_are_refused():
    data = LightningDataModule()
    data.tasks = {"pairs": None}
    with pytest.raises(ValueError, match=r"data\.tasks pairs: name the same ones"):
        module().check_data(data)


@pytest.mark.parametrize(("lowest", "highest"), [(500.0, 20.0), (20.0, 20.0), (20.0, 513.0)])
def test_bands_that_no_sound_has_are_refused(lowest, highest):
    heard = MODALITIES["spectrogram"] | {"lowest": lowest, "highest": highest}
    with pytest.raises(ValueError, match=f"bands from {lowest} to {highest} Hz at a rate of 1024, expected lowest < h"):
        module(modalities=MODALITIES | {"spectrogram": heard})


class Rows(LightningDataModule):
    """Rows of a task, as far as the network asks about them."""

    def __init__(self, num_classes=None, words=133, text_length=8):
        super().__init__()
        self.num_classes, self.tokenizer, self.text_length = num_classes, range(words), text_length


def rows(trained=None, **changed):
    data = LightningDataModule()
    fitting = {"pairs": Rows(), "clips": Rows(3), "sounding": Rows(), "sounds": Rows(2), "texts": Rows(2)}
    data.tasks = fitting | changed
    data.trained = trained or list(data.tasks)
    return data


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clips": Rows(4)}, r"model\.tasks\.clips\.classes is 3, but its rows have 4 classes"),
        ({"sounds": Rows()}, r"model\.tasks\.sounds is a classification, but its rows have no labels"),
        ({"pairs": Rows(words=134)}, r"text\.words is 133, but the texts of data\.tasks\.pairs need 134"),
        ({"texts": Rows(text_length=9)}, r"text\.buckets is 8, but the texts of data\.tasks\.texts need 9"),
    ],
)
def test_data_that_the_network_cannot_read_are_refused_before_training(changed, message):
    module().check_data(rows())
    with pytest.raises(ValueError, match=message):
        module().check_data(rows(**changed))
    (name,) = changed
    module().check_data(rows([each for each in TASKS if each != name], **changed))  # what is not trained is not read


def test_pairs_that_were_not_trained_are_refused():
    with pytest.raises(ValueError, match="not trained to compare waveform with text: it knows"):
        module().embed("waveform", {"audio": batches()["sounds"]["audio"]})


def test_an_export_is_taken_over():
    imp, other = module(), module()
    with torch.no_grad():
        for parameter in imp.parameters():
            parameter.add_(1.0)
    other.load_export(deepcopy(imp.export()))
    images = batches()["pairs"]["images"]
    torch.testing.assert_close(imp.eval()(images), other.eval()(images))


def test_the_recipe_names_the_official_schedule():
    recipe = {
        "epochs": 1, "lr": 1e-3, "weight_decay": 1e-4, "warmup": 0.1, "optimizer": "adamw", "betas": [0.9, 0.999],
        "eps": 1e-7, "clip": 1.0, "schedule": "pre_warmup_cosine", "start_lr": 0.0, "end_lr": 0.0, "pre_warmup": 0.0,
        "pre_warmup_lr": 0.0,
    }  # fmt: skip
    assert check(recipe, Recipe, "here") == recipe
    with pytest.raises(ValueError, match=r"here\.schedule"):
        check(recipe | {"schedule": "cosine"}, Recipe, "here")
