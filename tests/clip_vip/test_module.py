"""Sentences of the paper, the official checkpoint layout, and what a user may get wrong."""

import json
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import nn
from transformers import CLIPConfig, CLIPModel

from lightning_modules import settings
from lightning_modules.clip_vip.module import (
    LOSSES,
    ClipViP,
    VideoClip,
    contrast,
    proxy_guided_attention,
    read_official,
    resize_times,
    run_layers,
)
from lightning_modules.datamodules.video_file_texts import VideoFileTexts
from lightning_modules.datamodules.video_texts import VideoTexts
from lightning_modules.datasets.world import views
from lightning_modules.layers.clip import make_clip
from lightning_modules.losses.contrastive import mil_nce, triplet
from stages.composing import compose
from stages.plan import load_plan
from tests.clip_vip import reference
from tests.processes import weights_after

VISION = dict(hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=8)
TEXT = dict(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=20)
CLIP = dict(
    hub=None,
    vision={**VISION, "patch_size": 4},
    text={**TEXT, "max_position_embeddings": 10, "eos_token_id": 19, "bos_token_id": None},
    projection_dim=12,
)
PIXELS = dict(pixel_scale=255.0, mean=[0.4] * 3, std=[0.3] * 3)
BOTH = {"S": "subtitle", "C": "auxiliary"}
PATCHES = 4
PLAIN = dict(attention="mean", num_proxies=1)


RECIPE = dict(optimizer="adamw_eps_first", lr=1e-3, betas=[0.9, 0.98], eps=1e-6, weight_decay=0.2, logit_scale_rate=1.0)


def build(seed: int = 0, clip: dict | None = None, **options) -> ClipViP:
    """A small one whose new parameters matter, so that a test that they spoil can fail."""
    torch.manual_seed(seed)
    defaults = dict(clip=CLIP | (clip or {}), preprocess=PIXELS, frames=3, sources=BOTH)
    module = ClipViP(**{**defaults, **options}).eval()
    for name, x in module.named_parameters():
        if name.endswith(("temporal_embedding", "position_embedding.weight", "class_embedding")):
            nn.init.normal_(x)
    return module


def videos(batch: int = 4, frames: int = 3, seed: int = 0) -> torch.Tensor:
    words = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, frames, 8, 8), generator=words, dtype=torch.uint8)


def texts(batch: int = 4, length: int = 7, seed: int = 0) -> torch.Tensor:
    """Start, words, end (the highest id) at different places, pads."""
    words = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(4, 19, (batch, length), generator=words)
    token_ids[:, 0] = 1
    for row in range(batch):
        end = 3 + row % (length - 3)
        token_ids[row, end], token_ids[row, end + 1 :] = 19, 0
    return token_ids


def batch_of(rows: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    names = ("subtitle", "auxiliary", "caption")
    ids = {f"{name}_token_ids": texts(rows, seed=10 * seed + i) for i, name in enumerate(names)}
    video = videos(rows, seed=seed)
    return {"video": video, "images": video[:, :, 1], **ids}


def plain_features(clip: CLIPModel, images: torch.Tensor) -> torch.Tensor:
    return F.normalize(clip.get_image_features(images).pooler_output, dim=-1)


# Sentences of the paper


@pytest.mark.parametrize("num_proxies", [1, 4])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_two_fused_parts_are_the_attention_with_the_rule_as_a_mask(num_proxies, frames):
    network = build(num_proxies=num_proxies).network
    video = torch.randn(2, 3, frames, 8, 8)
    mask = reference.allowed(num_proxies, frames, PATCHES)
    torch.testing.assert_close(network.encode_videos(video), reference.dense_features(network, video, mask))
    if frames > 1:
        everything = torch.ones_like(mask)
        joint = build(num_proxies=num_proxies, attention="joint").network
        torch.testing.assert_close(joint.encode_videos(video), reference.dense_features(network, video, everything))
        assert not torch.allclose(joint.encode_videos(video), network.encode_videos(video), atol=1e-3)


def test_with_one_proxy_and_one_frame_it_is_clip():
    module = build(num_proxies=1)
    nn.init.zeros_(module.network.clip.vision_model.embeddings.temporal_embedding)
    images = torch.randn(5, 3, 8, 8)
    ours = module.network.encode_videos(images[:, :, None])
    torch.testing.assert_close(ours, plain_features(module.network.clip, images), atol=2e-6, rtol=1e-5)


def test_mean_pooling_averages_what_clip_says_of_each_frame_and_is_blind_to_their_order():
    network = build(**PLAIN).network
    video = torch.randn(2, 3, 5, 8, 8)
    each = torch.stack([plain_features(network.clip, video[:, :, t]) for t in range(5)]).mean(0)
    torch.testing.assert_close(network.encode_videos(video), F.normalize(each, dim=-1), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(network.encode_videos(video.flip(2)), network.encode_videos(video))


@pytest.mark.parametrize("attention", ["proxy", "joint"])
def test_all_knowledge_of_time_is_in_the_temporal_embedding(attention):
    network, video = build(attention=attention).network, torch.randn(2, 3, 3, 8, 8)
    backwards = video.flip(2)
    assert not torch.allclose(network.encode_videos(video), network.encode_videos(backwards), atol=1e-3)
    nn.init.zeros_(network.clip.vision_model.embeddings.temporal_embedding)
    torch.testing.assert_close(network.encode_videos(video), network.encode_videos(backwards), atol=2e-6, rtol=1e-5)


def test_proxies_see_every_frame_and_a_patch_sees_its_own():
    """With one layer, nothing of the other frames has reached a patch through the proxies."""
    network = build(clip={"vision": {**VISION, "patch_size": 4, "num_hidden_layers": 1}}).network
    vision, video = network.clip.vision_model, torch.randn(1, 3, 3, 8, 8)
    other = video.clone()
    other[:, :, 2] += 1
    attend = partial(proxy_guided_attention, proxies=4, frames=3)
    first, second = (run_layers(vision, vision.pre_layrnorm(network.embed(x)), attend)[0] for x in (video, other))
    same = [torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    assert same == [False] * 4 + [True] * (2 * PATCHES) + [False] * PATCHES


def test_proxies_have_no_time_and_all_have_the_position_of_cls():
    network, video = build().network, torch.randn(1, 3, 3, 8, 8)
    before = network.embed(video)
    embeddings = network.clip.vision_model.embeddings
    cls = embeddings.class_embedding + embeddings.position_embedding.weight[0]
    torch.testing.assert_close(before[0, 0], cls)
    nn.init.ones_(embeddings.temporal_embedding)
    after = network.embed(video)
    assert torch.equal(before[:, :4], after[:, :4]) and not torch.equal(before[:, 4:], after[:, 4:])
    assert before.shape == (1, 4 + 3 * PATCHES, 24)


def test_positions_begin_as_large_as_asked_for_and_weights_that_are_loaded_bring_their_own():
    clip = make_clip(**CLIP)
    own = clip.vision_model.embeddings.position_embedding.weight.detach().clone()
    options = dict(attention="proxy", num_proxies=4, frames=3, temporal_std=1.0)
    positions = VideoClip(clip, **options).clip.vision_model.embeddings.position_embedding.weight
    assert torch.equal(positions, own) and own.std() < 0.03  # CLIP's
    VideoClip(clip, **options, position_std=2.0)
    assert 1.5 < positions.std() < 2.5
    arm = build(position_std=2.0)
    arm.start_from(build(seed=1).export())
    assert torch.equal(
        arm.export()["vision_model.embeddings.position_embedding.weight"],
        build(seed=1).export()["vision_model.embeddings.position_embedding.weight"],
    )


def test_temporal_embeddings_of_other_lengths():
    times = torch.arange(12.0).reshape(1, 12, 1)
    assert resize_times(times, 1).flatten().tolist() == [5.5]
    assert resize_times(times, 2).flatten().tolist() == [2.5, 8.5]
    assert resize_times(times, 6).flatten().tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]
    assert resize_times(times, 32).flatten()[:4].tolist() == [0, 0.0625, 0.4375, 0.8125]
    assert torch.equal(resize_times(times, 12), times)


def test_texts_are_those_of_clip_and_pads_do_not_matter():
    module, token_ids = build(), texts(6)
    theirs = module.network.clip.get_text_features(token_ids, attention_mask=(token_ids > 0).long()).pooler_output
    ours = module.network.encode_texts(token_ids)
    torch.testing.assert_close(ours, F.normalize(theirs, dim=-1), atol=2e-6, rtol=1e-5)
    padded = torch.where(token_ids > 0, token_ids, 7)
    torch.testing.assert_close(module.network.encode_texts(padded), ours)


# Losses

OFFICIAL = {  # values that the official code gives for these features
    "V-S": 41.36947,
    "VF-SC": 59.94581,
    "V-S + F-C": 92.28111,
    "V-S + V-C": 105.17291,
    "V-S + V-C + F-C": 156.08456,
    "V-S,C": 119.28118,
    "V-S,C + F-C": 170.19284,
}


def features(rows: int = 8) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {letter: F.normalize(torch.randn(rows, 32), dim=-1) for letter in "VSCF"}


@pytest.mark.parametrize(("name", "expected"), OFFICIAL.items())
def test_losses_of_the_official_code(name, expected):
    scale = torch.tensor(4.6).exp()
    assert sum(contrast(term, features(), scale) for term in LOSSES[name]).item() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("name", "options", "scale", "expected"), [
    ("info_nce", {}, 20.0, 9.112684),  # NCEContrastiveLoss with temp 0.05
    ("dual_softmax", {}, 4.6, 17.141380),  # NCELearnableTempDSLLoss; its scale is a logarithm
    ("hard_negatives", {"hardest": 1}, 1.0, 1.588532),  # HardNegLoss
    ("hard_negatives", {"hardest": 3}, 1.0, 2.957982),
    ("hard_negatives", {"hardest": 8}, 1.0, 4.182464),  # more than there are
    ("mil_nce", {}, 20.0, 5.687825),  # MILNCEContrastiveLoss with temp 0.05
    ("triplet", {"margin": 0.2}, 1.0, 25.918919),  # TripletContrastiveLoss
    ("triplet", {"margin": 0.2, "hardest_only": True}, 1.0, 6.123923),  # max_violation
    ("triplet", {"margin": 0.2, "order": True}, 1.0, 25.269707),  # measure order
    ("triplet", {"margin": 0.2, "hardest_only": True, "order": True}, 1.0, 6.239199),
])  # fmt: skip
def test_pair_losses_of_the_official_code(name, options, scale, expected):
    """Values that the official `optimization/loss.py` gives for these features; gradients agreed to 1e-6."""
    scale = torch.tensor(scale).exp() if name == "dual_softmax" else torch.tensor(scale)
    module = build(loss="V-S", sources={"S": "subtitle"}, pair_loss=name, pair_options=options)
    assert contrast("V-S", features(), scale, module.pair_loss).item() == pytest.approx(expected, abs=2e-5)


def test_several_texts_of_a_video_share_its_probability():
    given = features()
    both = torch.stack([given["S"], given["C"]], dim=1).flatten(0, 1)
    found = mil_nce(given["V"], both, torch.tensor(20.0)).item()
    assert found == pytest.approx(5.414771, abs=2e-5)  # MILNCEContrastiveLoss with temp 0.05


def test_a_batch_may_have_several_texts_of_a_video():
    module, batch = build(loss="V-S", sources={"S": "subtitle"}, pair_loss="mil_nce", logit_scale=1.0), batch_of()
    batch["subtitle_token_ids"] = torch.stack([batch["subtitle_token_ids"], batch["caption_token_ids"]], dim=1)
    video, text = module(batch["video"]), module.encode_texts(batch["subtitle_token_ids"].flatten(0, 1))
    expected = mil_nce(video, text, torch.tensor(1.0).exp())
    torch.testing.assert_close(module.training_step(batch), expected)
    several = VideoFileTexts.__new__(VideoFileTexts)
    several.__dict__.update(
        frames=3, image_size=8, text_length=7, sentences=2, sources=["subtitle"], tokenizer=range(20)
    )
    module.check_data(several)
    with pytest.raises(ValueError, match=r"data.sentences is 2, which only pair_loss 'mil_nce' takes"):
        build(loss="V-S", sources={"S": "subtitle"}).check_data(several)


def test_a_triplet_of_equal_features_has_a_gradient():
    same = F.normalize(torch.ones(4, 8), dim=-1).requires_grad_()
    triplet(same, same.detach(), torch.tensor(1.0), margin=0.2, order=True).backward()
    assert same.grad.isfinite().all()


def test_the_combined_loss_written_out():
    given, scale = features(5), torch.tensor(7.0)
    expected = reference.joint_loss(given["V"], given["S"], given["C"], scale)
    torch.testing.assert_close(contrast("V-S,C", given, scale), expected)


def test_equal_features_cost_the_logarithm_of_their_number():
    same = {letter: F.normalize(torch.ones(8, 32), dim=-1) for letter in "VSCF"}
    scale = torch.tensor(50.0)
    assert contrast("V-C", same, scale).item() == pytest.approx(2 * torch.tensor(8.0).log().item(), rel=1e-6)
    both = 2 * torch.tensor(15.0).log() + 2 * torch.tensor(8.0).log()  # seven negatives of each kind
    assert contrast("V-S,C", same, scale).item() == pytest.approx(both.item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_every_parameter_gets_a_gradient(name):
    sources = {letter: source for letter, source in BOTH.items() if letter in name}
    module = build(loss=name, sources=sources).train()
    module.training_step(batch_of()).backward()
    missing = {key for key, p in module.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {key for key in missing if not key.endswith("k_proj.bias")}  # softmax forgets a bias of all keys


def test_the_scale_stays_between_1_and_200():
    module = build(logit_scale=9.0)
    module.training_step(batch_of())
    assert module.network.clip.logit_scale.exp().item() == pytest.approx(200)
    nn.init.constant_(module.network.clip.logit_scale, -1)
    module.training_step(batch_of())
    assert module.network.clip.logit_scale.item() == 0
    assert build().network.clip.logit_scale.exp().item() == pytest.approx(99.484, abs=1e-3)


def test_parts_that_are_frozen_stay_and_the_others_learn():
    text = {"text_model": True, "text_projection": True, "visual_projection": False, "logit_scale": False}
    for tower, names in (("frozen", {"text_model"}), ("frozen_with_projection", {"text_model", "text_projection"})):
        module = build(text_tower=tower).train()
        module.training_step(batch_of()).backward()
        module.recipe = RECIPE
        groups = {id(x) for group in module.parameter_groups() for x in group["params"]}
        for name in text:
            part = getattr(module.network.clip, name)
            for x in part.parameters() if isinstance(part, nn.Module) else [part]:
                assert (x.grad is None) == (name in names) == (id(x) not in groups), name


def test_a_scale_that_is_set_after_loading_and_not_learnt():
    first = build(seed=1, logit_scale=1.0)
    kept, other = build(seed=2), build(seed=2, override_scale=2.5, learn_scale=False).train()
    for module in (kept, other):
        module.start_from(first.export())
    assert (kept.network.clip.logit_scale.item(), other.network.clip.logit_scale.item()) == (1.0, 2.5)
    other.load_official(official_state())
    assert other.network.clip.logit_scale.item() == 2.5
    other.training_step(batch_of()).backward()
    other.recipe = RECIPE
    assert other.network.clip.logit_scale.grad is None
    assert [len(group["params"]) > 0 for group in other.parameter_groups()] == [True, True, False]
    other._optimizer().step()
    assert other.network.clip.logit_scale.item() == 2.5


def test_a_frame_is_a_video_of_one_frame():
    module, batch = build(), batch_of()
    found = module.features(batch)
    assert found.keys() == {"V", "F", "S", "C"}
    torch.testing.assert_close(found["F"], module(batch["video"][:, :, 1:2]))
    assert not torch.allclose(found["F"], found["V"], atol=1e-3)


def test_under_autocast_features_and_similarities_are_in_float32():
    module, batch = build(), batch_of()
    exact = module.training_step(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module.training_step(batch)
    assert rounded.dtype == torch.float32 and rounded != exact
    torch.testing.assert_close(rounded, exact, atol=0, rtol=0.05)


# Training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small world: 8 captions, clips of 5 frames of 16 pixels."""
    path = tmp_path_factory.mktemp("world") / "clips"
    options = {"frames": 5, "colors": 2, "shapes": 1, "places": ["night"], "shared_words": 0.0}
    sizes = {"train": 32, "test": 64}
    views.prepare(path, view="video_text", seed=1, sizes=sizes, image_size=16, options=options, workers=1)
    return path


def clips(folder, **changes) -> VideoTexts:
    test = {"test": {"source": "test", "rows": None}}
    values = dict(
        splits={"train": {"source": "train", "rows": None}, **test}, sources=["subtitle", "auxiliary", "caption"],
        tokenizer=None, text_length=10, frames=3, batches="classes", batch_size=8, evaluation_batch_size=8,
    )  # fmt: skip
    return VideoTexts(folder=folder, seed=0, **{**values, **changes})


WORLD = {
    "vision": {**VISION, "image_size": 16, "patch_size": 8},
    "text": {**CLIP["text"], "vocab_size": 133, "eos_token_id": None},
}


def fitted(module, data, **options) -> Trainer:
    module.train().recipe = {**compose("tiny", system="clip_vip")["system"]["pretrain"], "epochs": 2}
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning 2.6 calls what torch 2.13 deprecates
        trainer.fit(module, data)
    return trainer


def test_it_trains_in_a_trainer_with_clipped_gradients_and_predicts(folder):
    module, data = build(clip=WORLD, also_at=[2, 5]), clips(folder)
    module.check_data(data)
    norms, clip = [], module.configure_gradient_clipping

    def clip_and_measure(*given, **options):
        clip(*given, **options)
        norms.append(torch.stack([p.grad.norm() for p in module.parameters()]).norm().item())

    module.configure_gradient_clipping = clip_and_measure
    trainer = fitted(module, data)
    assert len(norms) == 8 and norms == pytest.approx([5.0] * 8, rel=1e-4)  # hundreds before
    terms = {"pretrain/loss", "pretrain/loss V-S,C", "pretrain/loss F-C", "pretrain/scale"}
    assert terms <= trainer.callback_metrics.keys()
    predictions = module.predictions(data, torch.device("cpu"))
    assert {name: tuple(x.shape) for name, x in predictions.items()} == {
        "videos/test": (64, 12), "videos@2/test": (64, 12), "videos@5/test": (64, 12), "texts/test": (8, 12),
        "belongs/test": (64,), "labels/test": (64,),
    }  # fmt: skip
    batch = next(data.evaluation_batches("test"))
    torch.testing.assert_close(predictions["videos/test"][:8], module(batch["video"]))
    own = predictions["texts/test"][predictions["belongs/test"][:8]]
    torch.testing.assert_close(own, module.encode_texts(batch["caption_token_ids"]))
    pairs = {*zip(predictions["belongs/test"].tolist(), predictions["labels/test"].tolist(), strict=True)}
    assert len(pairs) == 8  # a caption is a class


def test_accumulated_batches_are_refused(folder):
    with pytest.raises(ValueError, match="accumulate is 2, but each row's negatives are the whole batch"):
        fitted(build(clip=WORLD), clips(folder), accumulate_grad_batches=2)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"clip": {**WORLD, "text": CLIP["text"]}}, {}, r"the tokenizer has \d+ ids, but model.clip.text knows 20"),
        ({"clip": WORLD}, {"text_length": 11}, r"data.text_length \(11\) is more than the 10 positions"),
        ({}, {}, r"the data has frames of \(3, 16, 16\) .*, but model.clip reads \(3, 8, 8\)"),
        ({"clip": WORLD}, {"sources": ["auxiliary"]}, r"data.sources \(auxiliary\) lacks subtitle"),
        (
            {"clip": WORLD, "loss": "F-C", "sources": {"C": "caption"}},
            {"sources": ["caption"]},
            "lacks auxiliary",  # which brings the middle frames
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(folder, model, data, message):
    with pytest.raises(ValueError, match=message):
        build(**model).check_data(clips(folder, **data))


def test_no_arm_of_the_tiny_preset_trains_on_a_test_row():
    plan = load_plan("tiny")
    parts = []
    for row in [*plan.pretrain.values(), *plan.finetune.values()]:
        if row.system == "clip_vip":
            config = compose("tiny", system="clip_vip", overrides=row.overrides, stage="finetune")["system"]
            blocks = [config] if row.arm in plan.pretrain else config["downstream"].values()
            parts += [part for block in blocks for part in block["data"]["splits"].items()]
    assert {part["source"] for name, part in parts if name == "train"} == {"images", "large", "train"}
    assert {part["source"] for name, part in parts if name == "test"} == {"test"}


def build_training() -> ClipViP:
    return build().train()


def batch_of_eight() -> dict[str, torch.Tensor]:
    return batch_of(8)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    one, two = (weights_after(count, tmp_path, build_training, batch_of_eight, lr=0.01) for count in (1, 2))
    for name, x in one.items():
        torch.testing.assert_close(two[name], x, atol=2e-5, rtol=1e-4, msg=name)
    moved = (one["network.clip.logit_scale"] - 4.6).abs()
    assert moved > 1e-4  # and not because nothing was trained


# Weights


def official_state(dtype=torch.float16) -> dict[str, torch.Tensor]:
    """A state dict with the keys, shapes and precision of the official files, at this file's sizes."""
    torch.manual_seed(1)
    clip = CLIPModel(CLIPConfig(text_config=CLIP["text"], vision_config=CLIP["vision"], projection_dim=12))
    state = {f"clipmodel.{key}": x.to(dtype) for key, x in clip.state_dict().items()}
    vision, text = "clipmodel.vision_model.embeddings.", "clipmodel.text_model.embeddings."
    return state | {
        f"{vision}added_cls": torch.randn(3, 24).to(dtype),
        f"{vision}temporal_embedding": torch.randn(1, 3, 24).to(dtype),
        f"{vision}position_ids": torch.arange(PATCHES + 1)[None],
        f"{text}position_ids": torch.arange(10)[None],
    }


def test_an_official_checkpoint_loads_in_float32_and_comes_back_with_every_key(tmp_path):
    state = official_state()
    torch.save(state, tmp_path / "official.pt")
    module = build()
    module.load_official(read_official(tmp_path / "official.pt"))
    assert {x.dtype for x in module.parameters()} == {torch.float32}
    assert torch.equal(module.network.clip.vision_model.embeddings.added_cls.half(), state[
        "clipmodel.vision_model.embeddings.added_cls"])  # fmt: skip
    back = module.official()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key].to(x.dtype), x) for key, x in state.items())


@pytest.mark.parametrize(("proxies", "temporal"), [(1, True), (4, False), (1, False)])
def test_checkpoints_without_new_tokens_or_times_load_too(proxies, temporal):
    """`add_cls_num: 0` leaves a parameter of no rows in an official file, `if_use_temporal_embed: 0` none."""
    state = official_state(torch.float32)
    name = "clipmodel.vision_model.embeddings."
    state[f"{name}added_cls"] = state[f"{name}added_cls"][: proxies - 1]
    if not temporal:
        del state[f"{name}temporal_embedding"]
    module = build(num_proxies=proxies, temporal=temporal)
    module.load_official(state)
    assert torch.equal(module.network.embed(torch.zeros(1, 3, 3, 8, 8))[0, 1:proxies], (
        state[f"{name}added_cls"] + state[f"{name}position_embedding.weight"][0]))  # fmt: skip
    back = module.official()
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    record = settings.bind(module.facts()["model"], "model")()
    record.start_from(module.export())
    assert torch.equal(record.eval()(videos()), module(videos()))
    with pytest.raises(ValueError, match="of another architecture"):
        build(num_proxies=2).load_official(state)


def test_a_checkpoint_of_another_architecture_is_refused():
    coarse = build(clip={"vision": {**VISION, "patch_size": 8}})
    with pytest.raises(ValueError, match=r"patch_embedding.weight: \(24, 3, 4, 4\), expected \(24, 3, 8, 8\)"):
        coarse.load_official(official_state())
    missing = official_state()
    del missing["clipmodel.text_projection.weight"]
    with pytest.raises(ValueError, match=r"text_projection.weight: absent, expected \(12, 16\)"):
        build().load_official(missing)


class Harmful:
    def __reduce__(self):
        return print, ("this must never run",)


def test_no_code_in_a_file_is_run(tmp_path, capsys):
    torch.save({"clipmodel.logit_scale": Harmful()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad.pt holds more than tensors"):
        read_official(tmp_path / "bad.pt")
    torch.save({"logit_scale": torch.ones(())}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"keys begin with 'clipmodel.'"):
        read_official(tmp_path / "other.pt")
    assert "never" not in capsys.readouterr().out


def test_a_saved_clip_becomes_a_vip_whose_new_parameters_are_initialised(tmp_path):
    """transformers 5 would leave them as uninitialised memory, had they been there while it loads."""
    clip = make_clip(**CLIP)
    clip.save_pretrained(tmp_path)
    hub = dict(hub=str(tmp_path), vision=None, text=None, projection_dim=None)
    torch.manual_seed(0)
    module = ClipViP(clip=hub, preprocess=PIXELS, frames=3, num_proxies=40, sources=BOTH)
    embeddings = module.network.clip.vision_model.embeddings
    assert embeddings.added_cls.std().item() == pytest.approx(1, abs=0.05)
    assert embeddings.added_cls.abs().max() < 6
    assert not embeddings.temporal_embedding.any() and embeddings.temporal_embedding.requires_grad
    assert all(part.training for part in module.modules())
    own = module.export()
    assert all(torch.equal(own[key], x) for key, x in clip.state_dict().items() if key != "logit_scale")
    assert own.keys() - clip.state_dict().keys() == {
        "vision_model.embeddings.added_cls",
        "vision_model.embeddings.temporal_embedding",
    }


def test_it_starts_from_a_clip_and_from_a_vip():
    plain, first, second = build(seed=1, **PLAIN), build(seed=2), build(seed=3)
    proxies = first.export()["vision_model.embeddings.added_cls"].clone()
    first.start_from(plain.export())
    assert torch.equal(first.export()["vision_model.embeddings.added_cls"], proxies)
    assert torch.equal(first.export()["text_projection.weight"], plain.export()["text_projection.weight"])
    second.start_from(first.export())
    assert torch.equal(second(videos()), first(videos()))
    with pytest.raises(ValueError, match=r"added_cls: \(3, 24\), expected \(1, 24\)"):
        build(num_proxies=2).start_from(first.export())


def test_it_is_built_again_from_its_facts():
    module = build(clip={"text": {**CLIP["text"], "eos_token_id": None}})
    record = json.loads(json.dumps(module.facts()["model"]))
    other = settings.bind(record, "model")()
    other.start_from(module.export())
    assert torch.equal(other.eval()(videos()), module(videos()))
    assert torch.equal(other.encode_texts(texts()), module.encode_texts(texts()))


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(loss="V-X"), r"loss \('V-X'\) must be one of: V-S; V-C"),
        (dict(loss="V-S"), "C is in one of them only"),
        (dict(sources={"S": "subtitle"}), "C is in one of them only"),
        (dict(pair_loss="triplet"), r"loss 'V-S,C \+ F-C' has the term V-S,C, which is InfoNCE: .* \('triplet'\)"),
        (dict(loss="V-S + V-C", pair_loss="triplet"), r"pair_options \(none\) do not fit .*required: margin"),
        (
            dict(pair_options={"margin": 0.1}),
            r"pair_options \(margin\) do not fit pair_loss 'info_nce', which takes none",
        ),
        (dict(attention="full"), r"attention \('full'\) must be one of proxy, joint, mean"),
        (dict(attention="mean"), r"num_proxies \(4\) must be 1"),
        (dict(clip=dict(hub="openai/clip-vit-base-patch32")), "has its own sizes; leave out vision, text, proj"),
        (dict(clip=dict(text=None)), "so clip.text must say how large"),
    ],
)
def test_mistakes_name_the_value_and_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_model_whose_files_are_not_there():
    hub = dict(hub="/nowhere/clip", vision=None, text=None, projection_dim=None)
    with pytest.raises(ConnectionError, match=r"the weights of /nowhere/clip could not be fetched .* nor found"):
        make_clip(**hub)
    with torch.device("meta"), pytest.raises(ValueError, match="the sizes of '/nowhere/clip' are not written out"):
        make_clip(**hub)


def test_videos_and_texts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"videos of \(3, 16, 8\) .* do not fit a CLIP for \(3, 8, 8\)"):
        build().network.encode_videos(torch.zeros(1, 3, 3, 16, 8))
    with pytest.raises(ValueError, match="texts of 11 tokens do not fit a CLIP for 10"):
        build().network.encode_texts(texts(2, 11))
