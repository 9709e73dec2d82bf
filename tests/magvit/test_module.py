"""The generator: what comes before the tokens, which parts are trained, what it takes over, and what is measured."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.datasets.video.drawn import encode
from lightning_modules.datasets.video.files import opened
from lightning_modules.magvit.module import Magvit
from lightning_modules.magvit.tokenizer_training import MagvitTokenizer
from lightning_modules.metrics.video import fvd_world, masked_mse, psnr, ssim
from lightning_modules.metrics.video_networks import PublishedNetworks
from lightning_modules.runs import Run
from lightning_modules.video_tokens import evaluation, generator, predictor
from lightning_modules.video_tokens import training as tokens_training
from lightning_modules.video_tokens.clips import Clips
from lightning_modules.video_tokens.evaluation import evaluate
from lightning_modules.video_tokens.generator import task_order
from lightning_modules.video_tokens.predictor import Compressor, Continuer
from lightning_modules.video_tokens.tasks import TASKS
from lightning_modules.video_tokens.training import stored

TOKENIZER = {"frames": 4, "size": 16, "width": 4, "multipliers": (1, 1, 1), "blocks": 1, "halve_time": (True, False),
             "embedding_dim": 4, "codebook_size": 12, "norm_groups": 2}  # fmt: skip
NETWORK = {"layers": 1, "hidden_size": 16, "mlp_dim": 16, "heads": 2, "dropout": 0.0, "attention_dropout": 0.0}


def module(**options) -> Magvit:
    torch.manual_seed(0)
    options = {"num_classes": 3, "tasks": ["fp", "ipc"], "judged_tasks": ["fp"], "multi_task": True, **options}
    return Magvit(**{"tokenizer": TOKENIZER, "network": NETWORK, **options})


def training(**options) -> MagvitTokenizer:
    torch.manual_seed(0)
    return MagvitTokenizer(
        tokenizer={**TOKENIZER, **options.pop("tokenizer", {})}, discriminator={"width": 4, "multipliers": (1, 1)},
        num_classes=3, perception="random", **options,
    )  # fmt: skip


def batch(rows=4) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (rows, 3, 4, 16, 16), generator=draw).to(torch.uint8)
    return {"video": video, "labels": torch.arange(rows) % 3, "rows": torch.arange(rows)}


class FakeRun(Run):
    """A run whose files are given."""

    facts = None

    def __init__(self, facts: dict, arrays: dict[str, np.ndarray]):
        object.__setattr__(self, "seed", 0)
        object.__setattr__(self, "facts", facts)
        object.__setattr__(self, "arrays", arrays)

    def predictions(self) -> dict[str, np.ndarray]:
        return self.arrays


class Data(Clips):
    """Clips that are given, without files."""

    video_shape, num_classes, rows = (3, 4, 16, 16), 3, {"test": None}

    def __init__(self, *batches: dict[str, torch.Tensor]):
        self.batches = batches

    def evaluation_batches(self, split):
        yield from self.batches


def test_a_sequence_begins_with_its_task_and_its_class():
    """Codes are 0 to 11, classes 12 to 14, no class 15, special tokens the last of 32 (maskgvt_train_lib.py)."""
    built, labels = module(), torch.tensor([0, 2])
    assert built.before(TASKS["fp"], labels, None).tolist() == [[28, 15]] * 2
    assert built.before(TASKS["cfp"], labels, None).tolist() == [[28, 12], [28, 14]]
    assert built.before(TASKS["ipc"], labels, None).tolist() == [[26, 15]] * 2  # announced as outpainting
    assert module(inpainting_token=True).before(TASKS["ipc"], labels, None).tolist() == [[25, 15]] * 2
    assert module(multi_task=False).before(TASKS["fp"], labels, None).tolist() == [[15]] * 2
    prefixed = module(conditioning="prefix", tasks=["fp"])
    given = prefixed.given(torch.rand(2, 3, 4, 16, 16), TASKS["fp"])
    before = prefixed.before(TASKS["fp"], labels, given)
    assert before.shape == (2, 2 + 16 + 1) and (before[:, -1] == 30).all()
    assert torch.equal(before[:, 2:-1], given.tokens[:, :16])


def test_only_the_transformer_is_trained_and_tokens_are_kept_once():
    built = module(keep_tokens=True).train()
    first = built.training_step(batch())
    first.backward()
    assert not any(p.requires_grad for p in built.tokenizer.parameters())
    assert not built.tokenizer.training and built.network.training
    computed, encoded = [], built.encoded
    built.encoded = lambda video: computed.append(len(video)) or encoded(video)
    built.training_step(batch())
    assert len(computed) == len(built.kept) - 2  # of a second task the condition alone, else nothing
    fresh = module().train()
    tokens, given = fresh.tokens_of(batch(), "fp")
    again = module(keep_tokens=True).train()
    for _ in range(2):
        kept, kept_given = again.tokens_of(batch(), "fp")
        assert torch.equal(kept, tokens) and torch.equal(kept_given.tokens, given.tokens)


def test_the_loss_is_a_mean_over_what_is_asked_of_each_clip():
    built = module(label_smoothing=0.0, tasks=["unc"], parts=["mask"]).train()
    torch.manual_seed(5)
    found = built.loss(batch(), "unc").item()
    tokens, _ = built.tokens_of(batch(), "unc")
    torch.manual_seed(5)
    ratio = torch.cos(torch.pi / 2 * torch.rand(1))
    scores = torch.rand(tokens.shape)
    count = int(built.tokens * ratio)
    hidden = scores <= scores.sort(1).values[:, count - 1 : count]
    shown = torch.cat([built.before(TASKS["unc"], batch()["labels"], None), tokens.masked_fill(hidden, 31)], 1)
    chances = built.network(shown)[:, 2:, :12].log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    expected = torch.stack([-row[where].mean() for row, where in zip(chances, hidden, strict=True)]).mean()
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_one_token_after_another_agrees_with_the_whole_sequence():
    """Keys and values that are kept give what a pass over the whole sequence gives."""
    built = module(conditioning="autoregressive", tasks=["fp"]).eval()
    video, labels = torch.rand(2, 3, 4, 16, 16), torch.tensor([0, 1])
    tokens = built.generate(video, labels, "fp", sampling_temperature=0.0)
    before = built.before(TASKS["fp"], labels, built.given(video, TASKS["fp"]))
    start = torch.full_like(before[:, :1], built.special(-1))
    logits = built.network(torch.cat([start, before, tokens], 1)[:, :-1])[:, -built.tokens :, : built.codes]
    assert torch.equal(logits.argmax(-1), tokens)


def test_what_is_not_given_is_not_looked_at():
    built, video = module().eval(), torch.rand(2, 3, 4, 16, 16)
    other = video.clone()
    other[:, :, 1:] = 0.5
    labels = torch.zeros(2, dtype=torch.long)
    assert torch.equal(built.generate(video, labels, "fp", 3), built.generate(other, labels, "fp", 3))


def test_a_generator_takes_over_the_tokenizer_and_the_judge_of_its_arm():
    upstream, built = training(), module(judge=True)
    with torch.no_grad():
        for parameter in upstream.parameters():
            parameter.add_(0.1)
    built.start_from(upstream.export())
    assert torch.equal(built.tokenizer.quantiser.codebook, upstream.tokenizer.quantiser.codebook)
    assert torch.equal(built.judge.head.weight, upstream.judge.head.weight)
    with pytest.raises(ValueError, match="is of another architecture"):
        built.start_from(training(tokenizer={"width": 8}).export())


def test_a_generator_that_starts_from_another_has_its_transformer_and_may_decode_otherwise():
    torch.manual_seed(1)
    upstream, built = module(), module(decoding={"schedule": "exp"})
    upstream.network.bias.data.normal_()
    built.start_from(upstream.export())
    assert torch.equal(built.network.bias, upstream.network.bias) and built.decoding["schedule"] == "exp"
    with pytest.raises(ValueError, match="the network of the arm in `from` is of another architecture"):
        module(network={**NETWORK, "mlp_dim": 32}).start_from(upstream.export())


def test_each_clip_is_drawn_as_often_as_is_said_and_the_first_time_as_if_once():
    once, twice = (module(draws=n).predictions(Data(batch()), torch.device("cpu")) for n in (1, 2))
    assert len(once["fp/psnr"]) == 4 and len(twice["fp/psnr"]) == len(twice["fp/right"]) == 8
    assert torch.equal(twice["fp/right"][:4], once["fp/right"])
    assert not torch.equal(twice["fp/right"][4:], once["fp/right"])
    assert len(twice["shown/real"]) == 4


def test_a_3d_tokenizer_takes_over_a_2d_one_and_its_judge():
    flat, deep = training(tokenizer={"dims": 2}), training()
    deep.start_from(flat.export())
    kernel = deep.tokenizer.encoder.stem.weight
    assert torch.equal(kernel[:, :, 1], flat.tokenizer.encoder.stem.weight[:, :, 0]) and not kernel[:, :, 0].any()
    assert torch.equal(deep.discriminator.stem.weight[:, :, 1], flat.discriminator.stem.weight[:, :, 0])
    with pytest.raises(ValueError, match=r"cannot be taken over from the one named by `from`, first tokenizer.encoder"):
        training(tokenizer={"width": 8}).start_from(flat.export())


def test_neither_player_gets_the_others_gradient():
    built = training()
    terms = built.train().terms(batch())
    generator = [p for n, p in built.named_parameters() if n.startswith("tokenizer")]
    mine = ("reconstruction", "commitment", "codebook", "entropy", "adversarial", "perceptual")
    sum(terms[name] for name in mine).backward(retain_graph=True)
    assert all(p.grad is None for p in built.discriminator.parameters())
    before = [p.grad.clone() for p in generator]
    (terms["discriminator"] + terms["r1"] + terms["judge"]).backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, generator, strict=True))
    assert all(p.grad is not None for p in built.discriminator.parameters())


def test_lecam_compares_with_averages_of_earlier_steps():
    built = training(lecam=1.0, lecam_decay=0.5).train()
    assert built.terms(batch())["lecam"].item() >= 0
    assert built.mean_real != 0 and built.mean_fake != 0
    averages = built.mean_real.item()
    built.eval().terms(batch())
    assert built.mean_real.item() == averages


def test_tasks_come_as_often_as_their_weights_say():
    order = task_order([1.0, 2.0, 0.5])
    assert order.bincount().tolist() == [200, 400, 100]
    assert torch.equal(order, task_order([1.0, 2.0, 0.5]))
    assert task_order([3.0, 3.0]).bincount().tolist() == [300, 300]


def test_metrics_of_videos():
    video, truth = torch.rand(2, 3, 4, 16, 16), torch.rand(2, 3, 4, 16, 16)
    where = torch.zeros(1, 1, 4, 1, 1, dtype=torch.bool)
    where[:, :, 1:] = True
    expected = (video - truth)[:, :, 1:].square().flatten(1).mean(1)
    assert torch.allclose(masked_mse(video, truth, where), expected)
    assert torch.allclose(psnr(video, truth, where), -10 * expected.log10())
    assert psnr(video, video).tolist() == [100, 100] and torch.allclose(ssim(video, video), torch.ones(2))
    with pytest.raises(ValueError, match="there is a clip in which no pixel counts"):
        masked_mse(video, truth, ~where & where)
    features = np.random.default_rng(0).normal(size=(400, 4))
    found = fvd_world(features[:200] + 3, features)
    assert found["fvd_world"] > 30 > 1 > found["fvd_world_real"]


def test_the_evaluation_says_how_near_each_task_is_to_the_truth():
    built = module(judged_tasks=["fp", "cg"], judged_rows=6).eval()
    arrays = built.predictions(Data(batch(), batch()), torch.device("cpu"))
    arrays = {name: x.numpy() for name, x in arrays.items()}
    assert arrays["fp/psnr"].shape == (6,) and arrays["fp/right"].shape == (6, 32)
    found = evaluate([FakeRun(built.facts(), arrays)], "here")
    metrics = found.metrics[0]
    assert metrics["here/passes"] == 12 and metrics["here/fp/psnr"] == pytest.approx(arrays["fp/psnr"].mean())
    assert metrics["here/mean_mse"] == pytest.approx((metrics["here/fp/mse"] + metrics["here/cg/mse"]) / 2)
    assert "here/cg/differ_percent" not in metrics and {g.id for g in found.galleries} == {"task-fp", "task-cg"}
    with pytest.raises(ValueError, match="there is no trained arm"):
        evaluate([], "here")


def test_the_fvd_of_all_tasks_is_there_if_each_of_them_has_one(monkeypatch):
    scores = {
        task: {"mse": 0.1, "psnr": 10.0, "ceiling_psnr": 20.0, "fvd": fvd} for task, fvd in (("fp", 30.0), ("cg", 50.0))
    }
    monkeypatch.setattr(evaluation, "_scores", lambda arrays, task: scores[task])
    right = np.ones((2, 3), bool)
    run = FakeRun({"passes": 12, "parameters": 3}, {"fp/right": right, "cg/right": right, "shown/real": np.empty(0)})
    found = evaluate([run], "here")
    assert found.metrics[0]["here/mean_fvd"] == 40 and "fvd" not in found.not_computed
    del scores["cg"]["fvd"]
    assert "here/mean_fvd" not in evaluate([run], "here").metrics[0]


def test_files_become_tokens_and_videos_again(tmp_path):
    encode(tmp_path / "clip.mp4", 8)
    compressor = Compressor(training())
    (answer,) = compressor.answer(tmp_path / "clip.mp4")
    assert answer["tokens"].shape == (4, 8, 12) and answer["film"].size == (8, 32, 48) and answer["film"].rate == 10
    assert answer["bits_per_pixel"] == pytest.approx(4 * 8 * 12 * np.log2(12) / (8 * 32 * 48), abs=1e-6)
    np.save(tmp_path / "tokens.npy", answer["tokens"])
    (again,) = compressor.answer(tmp_path / "tokens.npy")
    assert np.array_equal(again["film"].frames, answer["film"].frames)
    answers = list(Continuer(module(tasks=["fp", "ipc", "cfp"])).answer(tmp_path / "clip.mp4"))
    assert [found["row"] for found in answers] == ["fp", "ipc", "cfp-0", "cfp-1", "cfp-2"]
    assert answers[1]["read"] == "frames 0, 2, 4, 7 of 0 to 7, squeezed to 16 x 16"
    np.save(tmp_path / "wrong.npy", np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match=r"wrong.npy holds float64 of shape \(2, 4, 4\), expected whole numbers"):
        next(compressor.answer(tmp_path / "wrong.npy"))
    with pytest.raises(ValueError, match="absent"):
        next(compressor.answer(tmp_path / "absent.mp4"))


def test_every_frame_of_a_video_is_read_and_comes_back(tmp_path):
    """Also where neither frames nor sides can be divided: 7 frames of 46 x 30, tokens of 2 frames of 4 x 4."""
    encode(tmp_path / "clip.avi", 7, codec="ffv1", size=(46, 30))
    for dims, tokens in ((3, (4, 8, 12)), (2, (7, 8, 12))):
        built = training(tokenizer={"dims": dims})
        (answer,) = Compressor(built).answer(tmp_path / "clip.avi")
        assert answer["read"] == "all 7 frames of 46 x 30"
        assert answer["tokens"].shape == tokens and answer["film"].size == (7, 30, 46)
        assert answer["bits_per_pixel"] == pytest.approx(np.prod(tokens) * np.log2(12) / (7 * 46 * 30), abs=1e-6)
        with opened(tmp_path / "clip.avi") as container:
            truth = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        video = torch.from_numpy(np.pad(truth, ((0, 1), (0, 2), (0, 2), (0, 0)), "edge")).permute(3, 0, 1, 2)[None]
        with torch.no_grad():
            parts = [built.tokenizer.decode(built.tokenizer.encode(part / 255)) for part in video.split(4, 2)]
        expected = torch.cat(parts, 2)[:, :, :7, :30, :46].clamp(0, 1)
        assert np.abs(stored(expected)[0].numpy().astype(int) - answer["film"].frames).max() <= 1
        psnr = -10 * np.log10(((expected[0].permute(1, 2, 3, 0).numpy() - truth / 255) ** 2).mean())
        assert answer["psnr"] == pytest.approx(psnr, abs=0.01)


def test_a_video_that_does_not_fit_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    encode(tmp_path / "clip.mp4", 8)
    monkeypatch.setattr(predictor, "MOST", 7 * 48 * 32 * 3)
    with pytest.raises(ValueError, match=r"clip.mp4 has more frames of 48 x 32 pixels than fit into .* GiB: cut the"):
        next(Compressor(training()).answer(tmp_path / "clip.mp4"))


def test_a_picture_becomes_tokens_where_frames_are_read_alone(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (18, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    with pytest.raises(ValueError, match=r"picture.png is a picture, but this tokenizer reads 2 frames at a time"):
        next(Compressor(training()).answer(tmp_path / "picture.png"))
    compressor = Compressor(training(tokenizer={"dims": 2}))
    (answer,) = compressor.answer(tmp_path / "picture.png")
    assert answer["tokens"].shape == (1, 5, 8) and answer["picture"].size == (30, 18)
    np.save(tmp_path / "tokens.npy", answer["tokens"])
    (again,) = compressor.answer(tmp_path / "tokens.npy")
    assert np.array_equal(np.asarray(again["picture"])[:18, :30], np.asarray(answer["picture"]))


def test_frame_prediction_goes_on_after_the_end_of_a_file(tmp_path):
    """Frames of the file before its last one change nothing; others would, since the last one is the condition."""
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    for name, clip in (("whole", frames), ("end", frames[5:]), ("other", frames[:8])):
        write(tmp_path / f"{name}.avi", clip)
    built = module(tasks=["fp", "ipc"])
    seen = []
    built.generate = lambda video, labels, name: seen.append((name, video)) or built.encoded(video)
    answers = {name: list(Continuer(built).answer(tmp_path / f"{name}.avi")) for name in ("whole", "end", "other")}
    assert answers["whole"][0]["read"] == "frames 8 of 0 to 8, squeezed to 16 x 16"
    fp = [video for name, video in seen if name == "fp"]
    assert torch.equal(fp[0], fp[1]) and not torch.equal(fp[0], fp[2])
    assert torch.equal(
        fp[0], torch.from_numpy(frames[8]).permute(2, 0, 1)[None, :, None].expand(-1, -1, 4, -1, -1) / 255
    )
    ipc = [video for name, video in seen if name == "ipc"]
    assert not torch.equal(ipc[0], ipc[1])  # of the whole file


def test_frame_prediction_is_given_as_many_last_frames_as_it_has_learnt(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    write(tmp_path / "clip.avi", frames)
    write(tmp_path / "short.avi", frames[:1])
    built = module(tasks=["fp"], given_frames=3)
    truth, read = predictor.last_clip(tmp_path / "clip.avi", built.tokenizer, 3)
    assert read.startswith("frames 6, 7, 8 of 0 to 8")
    assert np.array_equal((truth * 255).round().byte()[0].permute(1, 2, 3, 0).numpy(), frames[[6, 7, 8, 8]])
    assert predictor.last_clip(tmp_path / "short.avi", built.tokenizer, 3)[1].startswith("frames 0, 0, 0 of 0 to 0")


def write(path, frames):
    """Frames as a file from which they come back exactly."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((0, 4, 4), np.int64), r"holds int64 of shape \(0, 4, 4\), expected whole numbers"),
        (np.full((2, 4, 4), -1), r"wrong.npy holds tokens from -1 to -1, expected 0 to 11: take the tokenizer"),
        (np.full((2, 4, 4), 12), r"wrong.npy holds tokens from 12 to 12, expected 0 to 11"),
        (np.full((2, 4, 4), 2**64 - 3, np.uint64), r"from 18446744073709551613 to 18446744073709551613, expected"),
    ],
)
def test_arrays_that_are_no_tokens_are_named(content, message, tmp_path):
    np.save(tmp_path / "wrong.npy", content)
    for answerer in (Compressor(training()), Continuer(module())):
        with pytest.raises(ValueError, match=message):
            next(answerer.answer(tmp_path / "wrong.npy"))


def test_a_generator_draws_tokens_as_their_tokenizer_does(tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(32).reshape(2, 4, 4) % 12)
    built = module().eval()
    (answer,) = Continuer(built).answer(tmp_path / "tokens.npy")
    expected = built.drawn(torch.arange(32)[None] % 12)
    assert np.array_equal(answer["film"].frames, stored(expected)[0].numpy())


def test_a_text_is_refused_with_what_is_expected(tmp_path):
    (tmp_path / "notes.mp4").write_text("no video\n" * 50)
    for answerer in (Compressor(training()), Continuer(module())):
        with pytest.raises(ValueError, match=r"notes.mp4 is no video that can be decoded: expected a video, such as"):
            next(answerer.answer(tmp_path / "notes.mp4"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["walk"]}, r"task \('walk'\) must be one of fp, fi, opc"),
        ({"tasks": ["cg"], "num_classes": 0}, r"the task cg tells the class of a clip, but num_classes is 0"),
        ({"conditioning": "prefix"}, r"conditioning is prefix, which knows frame prediction and generation alone"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_clips_of_another_shape_and_unknown_classes_are_refused():
    data = Data()
    data.video_shape = (3, 8, 16, 16)
    with pytest.raises(ValueError, match=r"clips of shape \(3, 8, 16, 16\)"):
        module().check_data(data)
    data.video_shape, data.num_classes = (3, 4, 16, 16), 5
    for built in (module(), training()):
        with pytest.raises(ValueError, match=r"model\.num_classes is 3, but the data has 5 classes"):
            built.check_data(data)


class Eyes(PublishedNetworks):
    """Networks that see the mean of each channel, and how far clips are apart."""

    def __init__(self, *, i3d=None, device="cpu"):
        self.asked = i3d

    def seen(self, video):
        return {"i3d": video.mean((2, 3, 4))} if self.asked else {}

    def compared(self, video, truth):
        return {"lpips": (video - truth).abs().mean((1, 2, 3, 4))} if self.asked else {}


def test_published_networks_see_real_and_made_clips(monkeypatch):
    monkeypatch.setattr(generator, "PublishedNetworks", Eyes)
    monkeypatch.setattr(tokens_training, "PublishedNetworks", Eyes)
    made = module(published={"i3d": "weights"}).predictions(Data(batch(8)), torch.device("cpu"))
    assert made["i3d/real"].shape == made["fp/i3d"].shape == (8, 3) and made["fp/lpips"].shape == (8,)
    again = training(published={"i3d": "weights"}).predictions(Data(batch(8)), torch.device("cpu"))
    assert torch.allclose(again["i3d/real"], batch(8)["video"].float().mean((2, 3, 4)) / 255)
    assert again["i3d/drawn"].shape == (8, 3) and again["lpips"].shape == (8,)
    assert not {"i3d/real", "lpips"} & training().predictions(Data(batch(8)), torch.device("cpu")).keys()
