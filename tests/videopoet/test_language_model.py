"""VideoPoet's language model: tasks as data, what a task looks at, the schedule, padding, chaining, evaluation."""

import json

import pytest
import torch
from safetensors.torch import save

from lightning_modules.files import sha256
from lightning_modules.runs import Run
from lightning_modules.videopoet.evaluation import evaluate
from lightning_modules.videopoet.measuring import Measured, jumps
from lightning_modules.videopoet.module import VideoPoet
from lightning_modules.videopoet.motion import background, centres, direction, velocity
from lightning_modules.videopoet.tasks import PROMPTS
from lightning_modules.videopoet.tasks import TASKS as ALL

TOKENIZER = {"frames": 9, "size": 8, "width": 4, "multipliers": (1, 1, 1), "blocks": 1, "halve_time": (True, True),
             "codebook_size": 16, "norm_groups": 2}  # fmt: skip
CODEC = {"samples": 4608, "rate": 4096, "levels": 2, "codes": 4, "strides": [4, 4, 4, 4], "width": 4, "dim": 8,
         "quantiser": {"restart": 0.0}}  # fmt: skip
NETWORK = {"hidden_size": 16, "layers": 1, "heads": 2, "mlp_dim": 16}
TASKS = {name: task for name, task in ALL.items() if not task.guided}  # of `stylise` see test_guides
TOLD = {"text": ("caption", "caption_mask"), "audio": ("audio",), "visual": ("video",)}


def module(**options):
    torch.manual_seed(0)
    given = {"tokenizer": TOKENIZER, "codec": CODEC, "text": {"words": 9, "dim": 6}, "text_length": 3,
             "network": NETWORK, "tasks": list(TASKS), "judged_tasks": ["t2v", "fp", "inpaint"]}  # fmt: skip
    built = VideoPoet(**{**given, **options})
    with torch.no_grad():
        for parameter in built.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built


def batch(rows=4, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return {
        "video": torch.randint(0, 256, (rows, 3, 9, 8, 8), generator=draw).to(torch.uint8),
        "audio": torch.randint(-9999, 9999, (rows, 4608), generator=draw).to(torch.int16),
        "caption": torch.randint(0, 9, (rows, 3), generator=draw),
        "caption_mask": torch.tensor([[True, True, False]]).expand(rows, -1),
        "labels": torch.arange(rows) % 4,
        "height": torch.rand(rows, 9, generator=draw),
        "rows": torch.arange(rows),
    }


class Data:
    rows, num_classes, video_shape = {"test": None}, 4, (3, 9, 8, 8)
    samples, sample_rate, words, text_length = 4608, 4096, 9, 3

    def evaluation_batches(self, split):
        return iter([batch() | {"broken": torch.tensor(0)}, batch(2, seed=2)])  # as of a user's files


def test_a_prompt_says_what_is_written_and_not_what_is_given():
    """Section 3.3: text to video, image to video and generation from nothing share one."""
    assert {TASKS[name].prompt for name in ("t2v", "i2v", "unc", "fp", "a2v", "inpaint")} == {"task/video"}
    assert [TASKS[name].prompt for name in ("t2i", "v2a", "avcont")] == ["task/image", "task/sound", "task/both"]
    assert {task.prompt for task in TASKS.values()} == set(PROMPTS)


def test_an_image_is_the_first_part_of_a_video_and_left_open():
    built = module()
    image, video = built.layouts["t2i"], built.layouts["t2v"]
    assert image.parts[-1].name == "video" and video.parts[-1].name == "eos"
    assert torch.equal(image.places[image.span("video")], video.places[video.span("video")][:4])
    given = batch()
    ids = [built.tokens_of(TASKS[name], given)["video"] for name in ("t2i", "t2v")]
    assert torch.equal(ids[0], ids[1][:, :4])


@pytest.mark.parametrize("name", TASKS)
def test_what_is_written_depends_on_what_the_task_gives_alone(name):
    built, task = module().eval(), TASKS[name]
    given, other = batch(), batch(seed=7)
    looked = {key for kind, keys in TOLD.items() if getattr(task, kind) or (kind == "visual" and task.condition)
              for key in keys}  # fmt: skip
    same = built.generate(name, {key: given[key] if key in looked else x for key, x in other.items()}, seed=3)
    found = built.generate(name, given, seed=3)
    assert found.keys() == {key for key, kind in (("video", task.video), ("wave", task.sound)) if kind}
    if task.visual == "start":  # the frames after those that are given are not looked at either
        given["video"][:, :, 5:] = 0
        same = built.generate(name, given, seed=3)
    assert all(torch.equal(found[key], same[key]) for key in found)
    if "video" in found:
        assert found["video"].shape == (4, 3, 1 if name == "t2i" else 9, 8, 8)
    if "wave" in found:
        assert found["wave"].shape == (4, 4608)


def test_frames_that_are_given_stand_before_those_that_are_written():
    built, given = module().eval(), batch()
    again = built.drawn(built.encoded(built.read(given["video"])))
    assert torch.allclose(built.generate("fp", given)["video"][:, :, :5], again[:, :, :5], atol=1e-6)
    assert torch.allclose(built.generate("i2v", given)["video"][:, :, :1], again[:, :, :1], atol=1e-6)


def test_captions_are_left_out_now_and_then_and_guidance_is_for_texts_alone():
    built, given = module(text_drop=0.5), batch(64)
    text = built.words.special("text")
    span = built.layouts["t2v"].span("text")
    torch.manual_seed(0)
    told = (built.sequences("t2v", given).ids[:, span] == text).sum(1)
    assert set(told.tolist()) == {0, 2} and 10 < (told == 0).sum() < 54
    built.eval()
    assert (built.sequences("t2v", given).ids[:, span] == text).sum() == 128
    few = batch()
    with torch.no_grad():
        built.network.head.weight.mul_(20)
    plain, guided = (
        {name: built.generate(name, few, temperature=0.0, guidance=g)["video"] for name in ("t2v", "a2v")}
        for g in (0.0, 20.0)
    )
    assert torch.equal(plain["a2v"], guided["a2v"]) and not torch.equal(plain["t2v"], guided["t2v"])


def test_every_step_has_one_task_and_the_control_pads():
    grouped, mixed = module(), module(batches="padded", mixed=4)
    for built in (grouped, mixed):
        built.training_step(batch(8) | {"broken": torch.tensor(0)}).backward()  # as of a user's files
        assert not [name for name, p in built.named_parameters() if p.requires_grad and p.grad is None]
    computed, useful = grouped.positions.tolist()
    assert computed == useful == 8 * grouped.layouts[grouped.alternation.task(0, 1_000_000)].length
    names = [mixed.alternation.task(number, 4_000_000) for number in range(4)]
    lengths = [mixed.layouts[name].length for name in names]
    assert mixed.positions.tolist() == [8 * max(lengths), 2 * sum(lengths)]
    with pytest.raises(ValueError, match=r"a batch of 6 rows cannot be cut into mixed \(4\) equal parts"):
        mixed.training_step(batch(6))


def test_tokens_that_are_kept_change_no_loss():
    losses = []
    for keep in (False, True):
        built = module(keep_tokens=keep, text_drop=0.0)
        for name in TASKS:
            first, second = (built.network.loss(built.sequences(name, batch())) for _ in range(2))
            assert first.item() == second.item()
            losses.append(first.item())
    assert losses[: len(TASKS)] == losses[len(TASKS) :]


def test_a_clip_goes_on_from_its_own_last_frames():
    built = module().eval()
    video = built.read(batch()["video"])
    longer = built.extended(video, 2, seed=3)
    assert longer.shape == (4, 3, 9 + 2 * 4, 8, 8) and torch.equal(longer[:, :, :9], video)
    changed = video.clone()
    changed[:, :, :4] = 0
    assert torch.equal(built.extended(changed, 2, seed=3)[:, :, 9:], longer[:, :, 9:])


def test_an_arm_starts_from_tokenizers_or_from_a_whole_model():
    built, other = module(), module()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.positions += 5
    parts = {name: x for name, x in other.export().items() if name.startswith(("tokenizer.", "codec."))}
    built.start_from(parts | {"discriminator.x": torch.zeros(1)})
    assert torch.equal(built.codec.encoder[0].weight, other.codec.encoder[0].weight)
    assert not torch.equal(built.network.head.weight, other.network.head.weight)
    built.start_from(other.export())
    assert torch.equal(built.network.head.weight, other.network.head.weight) and not built.positions.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["t2w"]}, "the task 't2w' is unknown; did you mean 't2"),
        ({"tasks": ["t2v"], "weights": {"fp": 2.0}}, "weights has 'fp', which is not among the tasks"),
        ({"given": 3}, r"given is 3, expected less than the latent frames of a clip \(3\)"),
        ({"decoding": {"temprature": 1.0}}, "decoding: unknown key 'temprature'; did you mean 'temperature'"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("samples", 4000, "the data has 4000 samples"),
        ("text_length", 4, "model.text_length is 3, but data.text_length is 4"),
        ("words", 10, "model.text.words is 9, but captions of the data have 10 words"),
        ("video_shape", (3, 5, 8, 8), r"the data has clips of shape \(3, 5, 8, 8\)"),
    ],
)
def test_wrong_data_is_named(attribute, value, message):
    data = Data()
    setattr(data, attribute, value)
    with pytest.raises(ValueError, match=message):
        module().check_data(data)


def moving(way):
    """A white square of 2 x 2 pixels on black that goes right, left, down or up, half a pixel a frame."""
    video = torch.zeros(1, 3, 9, 16, 16)
    for frame in range(9):
        x, y = {0: (4 + frame // 2, 7), 1: (10 - frame // 2, 7), 2: (7, 4 + frame // 2), 3: (7, 10 - frame // 2)}[way]
        video[0, :, frame, y : y + 2, x : x + 2] = 1
    return video


def test_directions_and_velocities_are_measured_on_pixels():
    clips = torch.cat([moving(way) for way in range(4)])
    behind = background(clips)
    assert not behind.any()
    centre = centres(clips, behind)
    assert direction(centre).tolist() == [0, 1, 2, 3]
    assert centre[0, 0].tolist() == pytest.approx([5 / 16, 8 / 16])
    speed = velocity(centre)
    assert speed[0].tolist() == pytest.approx([0.5 / 16, 0], abs=3e-3) and speed[3, 1] < 0
    assert centres(torch.zeros(1, 3, 2, 16, 16), behind)[0, 0].tolist() == [0.5, 0.5]  # nothing is seen


def test_a_continued_clip_is_measured_against_the_clip_before():
    clips = torch.cat([moving(way) for way in range(4)])
    on = clips[:, :, -1:].expand(-1, -1, 4, -1, -1)  # it stands still
    found = jumps(torch.cat([clips, on], 2), torch.cat([clips, clips[:, :, :4]], 2), 9)
    assert (found["chaining/step"] == 0).all() and (found["chaining/control/step"] > 0).all()
    measured = Measured(clips).chained(torch.cat([clips, on], 2), torch.cat([clips, clips[:, :, :4]], 2))
    assert (measured["chaining/control/speed"] < measured["chaining/speed"]).all()
    assert measured["chaining/room"].all()


def test_predictions_become_metrics(tmp_path):
    built = module(judged_rows=5, segments=1)
    arrays = built.predictions(Data(), torch.device("cpu"))
    assert len(arrays["t2v/nll"]) == 6 and len(arrays["t2v/right"]) == 5
    assert arrays["shown/longer"].shape == (4, 13, 8, 8, 3) and arrays["shown/sound/v2a"].dtype == torch.int16
    (tmp_path / "predictions.safetensors").write_bytes(save(arrays))
    facts = built.facts() | {"predictions_sha256": sha256(tmp_path / "predictions.safetensors")}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    found = evaluate([Run(tmp_path, 0)], "world", examples=2)
    metrics = found.metrics[0]
    expected = sum(float(arrays[f"{name}/nll"].mean()) for name in ("t2v", "fp", "inpaint")) / 3
    assert metrics["world/mean_nll"] == pytest.approx(expected, rel=1e-5)
    assert metrics["world/t2v/motion_chance_percent"] == 25 and metrics["world/padding_percent"] == 0
    assert {"world/a2v/height_error_percent", "world/v2a/control_height_error_percent", "world/parameters"} <= set(
        metrics
    )
    assert [len(gallery.rows) for gallery in found.galleries] == [2] * len(found.galleries)
