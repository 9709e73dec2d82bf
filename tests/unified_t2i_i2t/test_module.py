"""Sentences of the paper, the official code's layout and habits, and what a user may get wrong."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from transformers import CLIPConfig, CLIPModel, LxmertConfig, LxmertForPreTraining, LxmertModel

from lightning_modules import settings
from lightning_modules.datamodules.captioned import CaptionedImages
from lightning_modules.metrics.generation import frechet_distance, is_world
from lightning_modules.unified_t2i_i2t import module as unified_t2i_i2t
from lightning_modules.unified_t2i_i2t.image_side import Clip
from lightning_modules.unified_t2i_i2t.lxmert import Lxmert
from lightning_modules.unified_t2i_i2t.mask_predict import mask_counts, mask_predict, one_by_one
from lightning_modules.unified_t2i_i2t.module import UnifiedGenerator, evaluating, official_name, smoothed_cross_entropy
from lightning_modules.unified_t2i_i2t.spade import SpadeDiscriminator, SpadeGenerator

NETWORK = dict(
    vocabulary=30, feature_dim=12, codebook_size=20, grid=4, dim=24, num_heads=4, mlp_dim=48,
    language_layers=2, visual_layers=1, cross_layers=2, max_positions=16,
)  # fmt: skip
IMAGES = dict(
    image_size=8, grid=4, feature_dim=12, codebook_size=20, decoder=dict(dim=4, bottleneck=8, hidden=8),
    looks=None, backbone=None, scorer=dict(width=8, dim=8, vocabulary=30, length=12),
)  # fmt: skip
WORDS = dict(pad=0, start=1, mask=2, end=29)
COMPAT = dict(predict_padding=False, markers_in_reward=False, batch_frequencies=False, outer_slots=False)
TASKS = ["xe_i2t", "xe_t2i"]
HARD = torch.tensor([[1, 5, 6, 19], [1, 7, 6, 19], [1, 5, 8, 19]])  # the right caption and two false ones


def build(seed: int = 0, **options) -> UnifiedGenerator:
    torch.manual_seed(seed)
    defaults = dict(words=WORDS, compat=COMPAT, tasks=TASKS, caption_length=8, masked_words=1)
    module = UnifiedGenerator(**{"network": NETWORK, "images": IMAGES, **defaults, **options})
    nn.init.normal_(module.network.classifier["predictions"].bias)  # captions that differ
    return module


def batch(size: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    references = torch.randint(3, 29, (size, 3, 9), generator=generator)
    references[..., 0], references[..., 6], references[..., 7:] = 1, 29, 0
    features = torch.randn(size, 16, 12, generator=generator)
    counts = torch.full((size,), 3)
    return {"ids": torch.arange(size), "features": features, "references": references, "num_references": counts}


class Captions(CaptionedImages):
    """Captions to draw in two batches, with stored pictures that are larger than the drawn ones."""

    def __init__(self):
        self.drawing = {"sources": ["test"], "images": 12}

    def drawing_batches(self):
        for seed in (0, 1):
            ids, generator = batch(seed=seed)["references"][:, :1], torch.Generator().manual_seed(seed)
            stored = [torch.randint(0, 256, (10, 12, 3), generator=generator).byte().numpy() for _ in range(6)]
            yield {"references": ids, "scorer_ids": ids.clamp_max(19), "stored": stored}

    def hard_captions(self):
        return {"verb": [(7, HARD), (2, HARD[:2])]}


class Means(nn.Module):
    """A network whose features are the means of each colour."""

    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().mean((2, 3))


# Sentences of the paper


def test_one_network_serves_both_directions():
    """No parameter but those of the two heads, and of the stream that is not read at the end, belongs to one task."""
    used = {}
    for task in TASKS:
        module = build(tasks=[task])
        getattr(module, task)(batch()).backward()
        used[task] = {name for name, p in module.network.named_parameters() if p.grad is not None}
        idle = {id(p) for p in module.idle(task)}
        assert used[task] == {
            name for name, p in module.network.named_parameters() if p.requires_grad and id(p) not in idle
        }
    shared = used["xe_i2t"] & used["xe_t2i"]
    alone = {name for names in used.values() for name in names - shared}
    assert all(
        name.startswith(("classifier.", "img_classifier.", "mask_feat", "encoder.x_layers.1.")) for name in alone
    )


def test_captions_are_written_from_dense_features_images_from_discrete_ones():
    module = build(tasks=["xe_i2t"]).eval()
    module.network.set_codebook(module.images.codebook)
    given = batch()
    near = {**given, "features": module.images.codebook[module.images.codes(given["features"])]}
    prefix = given["references"][:, 0, :3]
    words = [module.network.next_word(module.network.see(module.caption_features(b)), prefix, 2) for b in (given, near)]
    assert not torch.allclose(*words)
    torch.manual_seed(1)
    first = module.xe_t2i(given)
    torch.manual_seed(1)
    assert module.xe_t2i(near) == first
    dense = build(tasks=["xe_i2t"], drawing_input="dense").eval()  # the ablation: centroids are targets only
    dense.network.set_codebook(dense.images.codebook)
    found = []
    for known in (given, near):
        torch.manual_seed(1)
        found.append(dense.xe_t2i(known))
    assert found[0] != found[1] == first
    discrete = build(tasks=["xe_i2t"], caption_input="discrete").eval()
    torch.testing.assert_close(*[discrete.caption_features(b) for b in (given, near)])


def test_a_word_sees_the_words_before_it_and_none_behind():
    module = build().eval()
    given = batch(2)
    seen = module.network.see(given["features"])
    ids = given["references"][:, 0].clone()
    place, prefix = 3, torch.arange(9) <= 3
    ids[:, place] = WORDS["mask"]
    logits = []
    for behind in (ids[:, 4:], torch.full_like(ids[:, 4:], 7)):
        text, _ = module.network.join(seen, torch.cat([ids[:, :4], behind], 1), prefix.expand(2, -1))
        logits.append(module.network.word_logits(text[:, place]))
    assert torch.equal(*logits)
    # hidden keys and words that are not there at all are the same
    torch.testing.assert_close(module.network.next_word(seen, ids[:, :place], WORDS["mask"]), logits[0])
    other = ids.clone()
    other[:, 2] = 5
    changed = module.network.next_word(seen, other[:, :place], WORDS["mask"])
    assert not torch.allclose(changed, logits[0])


def test_four_steps_draw_64_48_32_16_places_instead_of_64_passes():
    assert mask_counts(64, 4) == [64, 48, 32, 16]
    assert sum(1 for _ in mask_counts(64, 4)) * 16 == 64
    calls = []

    def predict(codes, masked):
        calls.append(masked.sum(1).tolist())
        return F.one_hot((torch.arange(64) % 5).expand(len(codes), -1), 5).float() * 3

    codes, logits = mask_predict(predict, batch=2, counts=mask_counts(64, 4))
    assert calls == [[64] * 2, [48] * 2, [32] * 2, [16] * 2]
    assert torch.equal(codes, (torch.arange(64) % 5).expand(2, -1))
    assert torch.equal(logits.argmax(-1), codes)
    calls.clear()
    assert torch.equal(one_by_one(predict, batch=2, tokens=64), codes)
    assert len(calls) == 64


def test_other_schedules_mask_fewer_places_in_each_step_too():
    counts = mask_counts(256, 8, "cosine")
    assert counts[0] == 256 and counts == sorted(counts, reverse=True)
    assert counts[4] == int(256 * math.cos(math.pi / 4))  # half of the steps leave most places to the later ones
    assert mask_counts(16, 16) == list(range(16, 0, -1))
    with pytest.raises(ValueError, match=r"schedule .'square'. must be one of linear, cosine"):
        mask_counts(16, 4, "square")


def test_places_that_stay_keep_their_code_and_the_logits_that_chose_it():
    tables = [torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    masks, steps = [], iter(tables)

    def predict(codes, masked):
        masks.append(masked)
        return next(steps)

    codes, logits = mask_predict(predict, batch=3, counts=mask_counts(6, 3))
    expected_codes, expected = tables[0].argmax(-1), tables[0]
    for table, masked in zip(tables[1:], masks[1:], strict=True):
        expected_codes = torch.where(masked, table.argmax(-1), expected_codes)
        expected = torch.where(masked[..., None], table, expected)
    assert torch.equal(codes, expected_codes) and torch.equal(logits, expected)
    # the least certain of the last prediction are masked, also where nothing was masked before
    certainty = tables[1].softmax(-1).amax(-1)
    assert torch.equal(masks[2], certainty <= certainty.sort(1).values[:, 1:2])


def test_sequence_training_raises_the_chance_of_captions_that_beat_the_greedy_one():
    """The gradient is that of REINFORCE with its graph kept, as the official code computes it."""
    module = build(tasks=["rl_i2t"]).eval()
    given = batch()
    torch.manual_seed(3)
    module.rl_i2t(given).backward()
    found = {name: p.grad.clone() for name, p in module.network.named_parameters() if p.grad is not None}
    module.zero_grad()

    torch.manual_seed(3)
    seen = module.network.see(given["features"])
    ids, log_ps = torch.ones(6, 1, dtype=torch.int64), []
    for _ in range(7):
        log_p = module.network.next_word(seen, ids, WORDS["mask"]).log_softmax(-1)
        word = torch.multinomial(log_p.exp(), 1)
        word = torch.where((ids == 29).any(1, keepdim=True), 0, word)
        log_ps.append(log_p.gather(1, word)[:, 0])
        ids = torch.cat([ids, word], 1)
    with torch.no_grad():
        greedy, _ = module.write(seen, 7)
    reward, baseline = module.caption_rewards([ids[:, 1:], greedy], given)
    assert (reward != baseline).any()
    written = torch.stack([~(ids[:, : i + 1] == 29).any(1) & (ids[:, i] != 0) for i in range(7)], 1).float()
    loss = -((reward - baseline)[:, None] * torch.stack(log_ps, 1) * written).sum() / written.sum()
    loss.backward()
    for name, p in module.network.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, atol=1e-6, rtol=1e-4)


def test_the_image_reward_reaches_the_network_through_frozen_codebook_decoder_and_scorer():
    module = build(tasks=["rl_t2i"])
    module.rl_t2i(batch()).backward()
    assert all(p.grad is None for p in module.images.parameters())
    assert module.network.img_classifier.out_cluster.weight.grad.abs().sum() > 0
    assert module.network.mask_feat.grad.abs().sum() > 0
    ablation = build(tasks=["rl_t2i"], image_reward="mse", images={**IMAGES, "scorer": None})
    ablation.rl_t2i(batch()).backward()
    assert ablation.network.img_classifier.out_cluster.weight.grad.abs().sum() > 0


def test_tasks_take_turns_and_leave_a_zero_gradient_where_they_do_not_reach():
    module = build()
    for step, task in ((0, "xe_t2i"), (1, "xe_i2t"), (2, "xe_t2i")):
        module.zero_grad()
        torch.manual_seed(5)
        loss = module.training_step(batch(), step)
        loss.backward()
        torch.manual_seed(5)
        assert loss == getattr(module, task)(batch())
        assert all(p.grad is not None for p in module.network.parameters() if p.requires_grad)
        assert all((p.grad == 0).all() for p in module.idle(task))


# Against transformers and the official layout


def published() -> tuple[LxmertConfig, LxmertModel]:
    config = LxmertConfig(
        vocab_size=30, hidden_size=24, num_attention_heads=4, intermediate_size=48, l_layers=2, r_layers=1, x_layers=2,
        visual_feat_dim=12, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(2)
    return config, LxmertForPreTraining(config).eval()


def official_state(module: UnifiedGenerator) -> dict[str, torch.Tensor]:
    """What the official code would save: our values, and modules that no loss reaches."""
    dim, words = 24, module.network.embedding_layer.word_embeddings.weight
    extra = {
        "pooler.dense.weight": torch.randn(dim, dim),
        "pooler.dense.bias": torch.randn(dim),
        "classifier.seq_relationship.weight": torch.randn(2, dim),
        "classifier.seq_relationship.bias": torch.randn(2),
        "classifier.predictions.decoder.weight": words.detach().clone(),
    }
    return {**{key: x.clone() for key, x in module.network.state_dict().items()}, **extra}


def test_streams_and_word_head_are_those_of_transformers():
    _, theirs = published()
    ours = Lxmert(**NETWORK).eval()
    state = {official_name(k.replace("lxmert.", "bert.", 1)): x for k, x in theirs.state_dict().items()}
    own = {key: state.get(key, x) for key, x in ours.state_dict().items()}
    assert sum(key in state for key in own) > 90
    ours.load_state_dict(own)
    features, ids = torch.randn(3, 16, 12), torch.randint(3, 30, (3, 7))
    keep = torch.arange(7) < torch.tensor([[7], [4], [2]])
    given = dict(
        input_ids=ids, visual_feats=features, visual_pos=ours.boxes.expand(3, -1, -1), attention_mask=keep.float(),
        token_type_ids=torch.zeros_like(ids),
    )  # fmt: skip
    expected, hidden = theirs(**given), theirs.lxmert(**given)
    text, image = ours.join(ours.see(features), ids, keep)
    torch.testing.assert_close(text, hidden.language_output, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(image, hidden.vision_output, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.word_logits(text), expected.prediction_logits, atol=1e-5, rtol=1e-4)


def test_an_official_checkpoint_goes_in_and_comes_out_whole():
    source, module = build(seed=1), build(seed=2)
    state = official_state(source)
    rest = module.load_official({f"module.{key}": x for key, x in state.items()})
    assert set(rest) == {key for key in state if key.startswith(("pooler.", "classifier.seq_relationship."))}
    again = module.official(rest)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_xlxmert_names_are_translated():
    for theirs, ours in {
        "module.bert.encoder.r_layers.0.output.LayerNorm.gamma": "encoder.r_layers.0.output.LayerNorm.weight",
        "bert.embeddings.LayerNorm.beta": "embedding_layer.LayerNorm.bias",
        "module.cls.predictions.bias": "classifier.predictions.bias",
        "module.obj_predict_head.out_cluster.weight": "img_classifier.out_cluster.weight",
        "module.mask_feat": "mask_feat",
        "bert.pooler.dense.bias": "pooler.dense.bias",
    }.items():  # fmt: skip
        assert official_name(theirs) == ours


def xlxmert_state(source: UnifiedGenerator) -> dict[str, torch.Tensor]:
    """What X-LXMERT's own code saves: clusters that the head shares, and a head of answers."""
    back = {"encoder.": "bert.encoder.", "embedding_layer.": "bert.embeddings.", "classifier.": "cls.",
            "img_classifier.": "obj_predict_head.", "pooler.": "bert.pooler.",
            "cluster_codebook.": "vis_emb."}  # fmt: skip
    source.network.set_codebook(source.images.codebook)
    state = {"module.answer_head.logit_fc.0.weight": torch.randn(48, 24)}
    for key, x in official_state(source).items():
        old = next((prefix for prefix in back if key.startswith(prefix)), None)
        state["module." + (back[old] + key.removeprefix(old) if old else key)] = x
    return state


def test_a_checkpoint_of_xlxmert_brings_its_clusters():
    module, source = build(seed=4), build(seed=3)
    state = xlxmert_state(source)
    rest = module.load_official(state)
    assert "answer_head.logit_fc.0.weight" in rest and not any(key.startswith("vis_emb") for key in rest)
    for name, x in source.network.state_dict().items():
        assert torch.equal(module.network.state_dict()[name], x), name
    features = batch()["features"]
    assert torch.equal(module.images.codes(features), source.images.codes(features))
    del state["module.vis_emb.weight"]  # the head has them too
    again = build(seed=4)
    again.load_official(state)
    assert torch.equal(again.images.codebook, source.images.codebook)


def test_training_starts_from_xlxmert_if_the_image_side_has_its_centroids(tmp_path):
    source, other = build(seed=3), build(seed=5)
    torch.save(xlxmert_state(source), tmp_path / "Epoch20_LXRT.pth")
    module = build(seed=4, official_weights=str(tmp_path / "Epoch20_LXRT.pth"))
    module.start_from(source.images.state_dict())
    for name, x in source.network.state_dict().items():
        assert torch.equal(module.network.state_dict()[name], x), name
    with pytest.raises(ValueError, match=r"centroids of .*Epoch20_LXRT.pth are not those of the image side"):
        build(official_weights=str(tmp_path / "Epoch20_LXRT.pth")).start_from(other.images.state_dict())
    plain = build(seed=4)
    plain.start_from(other.images.state_dict())
    assert torch.equal(plain.network.cluster_codebook.weight, other.images.codebook)


def test_an_image_side_of_official_files_needs_no_training(tmp_path):
    from lightning_modules.unified_t2i_i2t.image_side_training import ImageSideTraining

    options = dict(images={**IMAGES, "scorer": None}, discriminator_dim=8, reading_epochs=0)
    centroids, source = np.random.RandomState(0).randn(20, 12).astype(np.float32), build(seed=1).images.decoder
    np.save(tmp_path / "centroids.npy", centroids)
    torch.save({f"module.{key}": x for key, x in source.state_dict().items()}, tmp_path / "G_60.pth")
    files = dict(centroids=str(tmp_path / "centroids.npy"), decoder_weights=str(tmp_path / "G_60.pth"))
    module = ImageSideTraining(**options, **files)
    module.on_train_epoch_start()  # no k-means, for which there are no data here
    exported = module.export()
    assert np.array_equal(exported["codebook"].numpy(), centroids)
    assert all(torch.equal(exported[f"decoder.{key}"], x) for key, x in source.state_dict().items())
    np.save(tmp_path / "centroids.npy", centroids[:, :5])
    with pytest.raises(ValueError, match=r"shape \(20, 5\), expected \(20, 12\)"):
        ImageSideTraining(**options, **files)
    looks = {"looks": {"places": 2, "values": [3]}, "backbone": {"width": 8}, "scorer": None}
    with pytest.raises(ValueError, match="a backbone learns its own"):
        ImageSideTraining(images={**IMAGES, **looks}, discriminator_dim=8, reading_epochs=1, **files)


def test_checkpoints_of_another_architecture_are_refused_by_name():
    state = official_state(build())
    with pytest.raises(ValueError, match=r"another architecture.*codebook"):
        build(network={**NETWORK, "codebook_size": 21}, images={**IMAGES, "codebook_size": 21}).load_official(state)
    state["classifier.predictions.decoder.weight"] += 1
    with pytest.raises(ValueError, match="one matrix here"):
        build().load_official(state)


def test_the_image_decoder_has_the_names_of_the_published_one():
    decoder = SpadeGenerator(feature_dim=12, grid=4, image_size=16, dim=8, bottleneck=16)
    names = set(decoder.state_dict())
    convolution = {f"learned_init_conv.0.{leaf}" for leaf in ("weight_orig", "weight_u", "weight_v", "bias")}
    block = {"cbn1.shared.0.weight", "cbn2.gamma.bias", "cbn1.beta.weight", "conv1.weight_orig", "conv2.weight_u",
             "noise1.weight", "noise2.weight", "res_branch.1.weight_v"}  # fmt: skip
    assert convolution | {"bottleneck_emb.0.weight", "style_init_conv.0.bias", "to_RGB_blocks.1.conv.bias"} <= names
    assert {f"resblocks.1.{name}" for name in block} <= names
    assert {name.split(".")[0] for name in names} == {
        "bottleneck_emb", "learned_init_conv", "style_init_conv", "resblocks", "to_RGB_blocks",
    }  # fmt: skip
    assert decoder(torch.randn(2, 12, 4, 4)).shape == (2, 3, 16, 16)


def test_the_published_image_decoder_loads_strictly():
    source, module = build(seed=1).images, build(seed=2).images
    state = {f"module.{key}": x for key, x in source.decoder.state_dict().items()}
    module.load_official_decoder(state)
    features = torch.randn(1, 16, 12)
    torch.testing.assert_close(module.decode(features), source.decode(features))
    del state["module.resblocks.0.conv1.weight_u"]
    with pytest.raises(ValueError, match=r"resblocks.0.conv1.weight_u: absent"):
        module.load_official_decoder(state)


def test_players_of_the_second_phase_take_no_step_in_the_first():
    """Steps without a gradient would count for Adam's averages, and the first real one be twenty times as long."""
    from lightning_modules.unified_t2i_i2t.image_side_training import ImageSideTraining

    looks = {"looks": {"places": 2, "values": [3]}, "backbone": {"width": 8}, "scorer": None}
    module = ImageSideTraining(images={**IMAGES, **looks}, discriminator_dim=8, reading_epochs=1)
    optimizer = torch.optim.AdamW(module.parameters())
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    module.training_step({**batch(), "images": images, "scene": torch.ones(6, 2, 1, dtype=torch.int64)}).backward()
    assert all(p.grad is not None for p in module.players()), "which DDP asks for"
    module.on_before_optimizer_step(optimizer)
    optimizer.step()
    assert not set(optimizer.state) & set(module.players())
    assert set(optimizer.state) == {p for reader in module.readers() for p in reader.parameters()}


def test_gan_players_do_not_reach_into_each_other():
    from lightning_modules.unified_t2i_i2t.image_side_training import ImageSideTraining

    torch.manual_seed(0)
    module = ImageSideTraining(images={**IMAGES, "scorer": None}, discriminator_dim=8, reading_epochs=0)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    given = {**batch(2), "images": images}
    module.drawing(given).backward()
    both = {name: p.grad.clone() for name, p in module.discriminator.named_parameters()}
    assert all(p.grad.abs().sum() > 0 for name, p in module.images.decoder.named_parameters() if "noise" not in name)
    module.zero_grad()
    copied = ImageSideTraining(images={**IMAGES, "scorer": None}, discriminator_dim=8, reading_epochs=0)
    copied.load_state_dict(module.state_dict())
    real = 2 * images.float() / 255 - 1
    codes = module.images.codes(given["features"]).view(2, 4, 4)
    drawn = module.images.decoder(module.images.codebook[codes].permute(0, 3, 1, 2), noise=False)
    copied.discriminator_loss(drawn.detach(), real, codes).backward()
    for name, p in copied.discriminator.named_parameters():  # spectral norms have moved a little
        if p.grad.norm() > 1e-4:
            assert F.cosine_similarity(p.grad.flatten(), both[name].flatten(), dim=0) > 0.9, name


def test_the_discriminator_names_codes_by_the_frozen_codebook_that_the_generator_draws_from():
    discriminator, codebook = (
        SpadeDiscriminator(grid=4, image_size=8, dim=8, feature_dim=12, codebook_size=20),
        torch.randn(20, 12),
    )
    images = torch.randn(2, 3, 8, 8)
    _, logits, maps = discriminator(images, codebook)
    emb = discriminator.emb_proj(maps[-1].relu())
    torch.testing.assert_close(logits, torch.einsum("bdhw,kd->bkhw", emb, codebook))
    shapes = {tuple(p.shape) for p in discriminator.parameters()}
    assert (20,) in shapes and not any(20 in shape for shape in shapes if len(shape) > 1)  # only the bias is its own


# Habits of the official code


def test_padding_is_a_target_only_on_request():
    ids = torch.tensor([[1, 5, 29, 0, 0]]).expand(4000, -1)
    for padding, places in ((False, {1, 2}), (True, {1, 2, 3})):
        module = build(compat={**COMPAT, "predict_padding": padding})
        torch.manual_seed(0)
        found, counts = module.draw_word(ids).unique(return_counts=True)
        assert set(found.tolist()) == places
        assert (counts / 4000 - 1 / len(places)).abs().max() < 0.03
    full = torch.tensor([[1, 5, 6, 29]])
    assert build(compat={**COMPAT, "predict_padding": True}).draw_word(full.expand(99, -1)).max() == 3


def test_markers_and_frequencies_of_the_reward_are_switches():
    given = batch()
    captions = torch.cat([given["references"][:, 0, 1:4], given["references"][:, 1, 3:]], 1)
    scores = {}
    for name in (None, "markers_in_reward", "batch_frequencies"):
        module = build(compat={**COMPAT, **({name: True} if name else {})})
        more = {100 + i: [[1, *captions[0, :3].tolist(), 29]] for i in range(50)}
        known = {i: rows for i, rows in enumerate(given["references"].tolist())}
        if name != "batch_frequencies":
            module.reward = module.make_reward({**known, **more})
        scores[name], _ = module.caption_rewards([captions, captions], given)
    assert (scores[None] > 0).all()
    assert not torch.allclose(scores[None], scores["markers_in_reward"])
    assert not torch.allclose(scores[None], scores["batch_frequencies"])


def some_captions(rng: np.random.RandomState, rows: int, length: int, cut: tuple[int, ...]) -> np.ndarray:
    """Rows of start, words, end and padding; those that are `cut` have neither end nor padding."""
    ids = rng.randint(3, 9, (rows, length))
    ids[:, 0] = WORDS["start"]
    for row, end in enumerate(rng.randint(3, length, rows)):
        if row not in cut:
            ids[row, end], ids[row, end + 1 :] = WORDS["end"], WORDS["pad"]
    return ids


def test_with_all_habits_the_policy_loss_is_that_of_the_official_code():
    """Facts: `get_self_critical_reward` and `RewardCriterion` of the official loss.py, run on these very ids.

    There, the drawn captions have a last slot, into which the end is written, and those slots count: 42 here.
    """
    rng = np.random.RandomState(0)
    sampled, greedy = (torch.from_numpy(some_captions(rng, 6, 8, (0, 3))[:, 1:]) for _ in range(2))
    references = torch.from_numpy(np.stack([some_captions(rng, 5, 9, (4,)) for _ in range(6)]))
    log_p = torch.from_numpy(-rng.randint(1, 50, (6, 7)) / 10)
    given = {"ids": torch.arange(6), "references": references, "num_references": torch.full((6,), 5)}
    module = build(compat=dict.fromkeys(COMPAT, True))
    reward, baseline = module.caption_rewards([sampled, greedy], given)
    official = [-0.00154890, 1.95322393, -0.49846857, -1.16162564, 0.01122499, 1.71582333]
    torch.testing.assert_close(reward - baseline, torch.tensor(official), atol=1e-6, rtol=1e-6)
    assert module.policy_loss(sampled, log_p, reward - baseline) == pytest.approx(0.3601766527, rel=1e-6)
    module.compat["outer_slots"] = False
    ends = torch.where((sampled == 29).any(1), (sampled == 29).int().argmax(1) + 1, 7)
    words = (torch.arange(7) < ends[:, None]).double()
    expected = -((reward - baseline)[:, None] * log_p * words).sum() / words.sum()
    assert module.policy_loss(sampled, log_p, reward - baseline) == pytest.approx(expected.item(), rel=1e-6)


def test_no_more_words_are_chosen_once_all_captions_end_together():
    module = build().eval()
    nn.init.constant_(module.network.classifier["predictions"].bias, -50)
    with torch.no_grad():
        module.network.classifier["predictions"].bias[29] = 50
    ids, log_p = module.write(module.network.see(batch(2)["features"]), 7, sample=True)
    assert ids.tolist() == [[29, 0, 0, 0, 0, 0, 0]] * 2
    assert log_p.shape == (2, 7) and (log_p[:, 1:] == 0).all()


def test_one_image_alone_is_warned_of_as_its_reward_is_always_zero():
    module, given = build(compat={**COMPAT, "batch_frequencies": True}), batch(1)
    captions = given["references"][:, 0, 1:]
    with pytest.warns(UserWarning, match="single image"):
        (reward,) = module.caption_rewards([captions], given)
    assert reward.item() == 0


def small_clip(monkeypatch) -> None:
    """In place of the published one."""
    torch.manual_seed(0)
    tower = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(
        text_config=tower | dict(vocab_size=20, bos_token_id=18, eos_token_id=19),
        vision_config=tower | dict(patch_size=32),
        projection_dim=4,
    )
    monkeypatch.setattr("lightning_modules.layers.clip.make_clip", lambda **_: CLIPModel(config))


def test_clip_sees_pictures_without_aliases_in_an_evaluation_and_tensors_with_them_as_a_reward(monkeypatch):
    small_clip(monkeypatch)
    clip = Clip()
    monkeypatch.setattr(clip, "_see", lambda images: seen.append(images) or torch.ones(len(images), 4))
    seen, lines = [], torch.zeros(1, 3, 448, 448, dtype=torch.uint8)
    lines[..., ::4] = 252
    clip.look(lines)
    clip(lines / 255, torch.ones(1, 3, dtype=torch.int64))
    evaluated, rewarded = (images[0, 0, 100, 100:108] for images in seen)
    assert (evaluated.max() - evaluated.min()) < 0.6 * (rewarded.max() - rewarded.min())
    assert evaluated.mean() == pytest.approx(63 / 255, abs=1 / 255)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save all extracted features")
@pytest.mark.filterwarnings("ignore:std")  # of one part
def test_drawn_pictures_get_the_published_scores(monkeypatch):
    small_clip(monkeypatch)
    monkeypatch.setattr(unified_t2i_i2t, "has_fid", lambda: True)
    monkeypatch.setattr(unified_t2i_i2t, "make_fid", lambda: FrechetInceptionDistance(Means()))
    monkeypatch.setattr(unified_t2i_i2t, "make_inception_score", lambda: InceptionScore(Means(), splits=1))
    monkeypatch.setattr(unified_t2i_i2t, "OTHER_CAPTIONS", 2)
    monkeypatch.setattr(unified_t2i_i2t, "other_captions", lambda rows: (np.arange(rows)[:, None] + [1, 5]) % rows)
    module = build(images={**IMAGES, "scorer": {"hub": True}}).eval()
    found = module.published_scores(Captions())
    batches = list(Captions().drawing_batches())
    pictures = [(255 * module.paint(module.draw(each["references"][:, 0])[0])).byte() for each in batches]
    logits = []
    for drawn, each in zip(pictures, batches, strict=True):  # resized with antialias, as the official code's PIL does
        resized = [Image.fromarray(x.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for x in drawn]
        clip, images = module.images.scorer, torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
        given = dict(pixel_values=(images / 255 - clip.mean) / clip.std, input_ids=each["scorer_ids"][:, 0])
        logits.append(clip.network(**given).logits_per_image.diagonal())
    torch.testing.assert_close(found["clip_logits"], torch.cat(logits))
    clip, ids = module.images.scorer, torch.cat([each["scorer_ids"][:, 0] for each in batches])
    all_pairs = clip.network.logit_scale.exp() * clip.look(torch.cat(pictures)) @ clip.read(ids).T
    rows = torch.arange(12)[:, None]
    torch.testing.assert_close(found["clip_others"], all_pairs[rows, (rows + torch.tensor([0, 1, 5])) % 12])
    hard = clip.network.logit_scale.exp() * clip.look(torch.cat(pictures)[[7, 2]]) @ clip.read(HARD).T
    torch.testing.assert_close(found["clip_hard/verb"][0], hard[0])
    torch.testing.assert_close(found["clip_hard/verb"][1], torch.cat([hard[1, :2], torch.tensor([-torch.inf])]))
    ours = torch.cat(pictures).double().mean((2, 3)).numpy()
    odds = torch.from_numpy(ours).softmax(1).numpy()
    assert float(found["inception_score"][0]) == pytest.approx(is_world([odds]), rel=1e-4)
    theirs = np.stack([image.mean((0, 1)) for each in batches for image in each["stored"]])
    assert float(found["fid"][0]) == pytest.approx(frechet_distance(ours, theirs), rel=1e-3)
    assert found["pictures/told"].shape == found["pictures/real"].shape == (6, 8, 8, 3)
    assert torch.equal(found["told"], batches[0]["references"][:, 0])
    monkeypatch.setattr(unified_t2i_i2t, "has_fid", lambda: False)
    assert set(build().published_scores(Captions())) == {"told", "pictures/told", "pictures/real"}


# What a user may get wrong


def test_a_codebook_of_another_size_than_the_head_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 12, 20\), the image side for \(4, 12, 21\)"):
        build(images={**IMAGES, "codebook_size": 21})
    with pytest.raises(ValueError, match=r"shape \(21, 12\).*\(20, 12\)"):
        build().network.set_codebook(torch.zeros(21, 12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["xe_i2i"]}, "xe_i2i"),
        ({"tasks": []}, "must be some of"),
        ({"words": {"pad": 0}}, "words has pad, expected pad, start"),
        ({"compat": {**COMPAT, "pads": True}}, "compat has .*pads"),
        ({"sampling_steps": 17}, "steps .17. must be between 1 and the number of tokens .16."),
        ({"network": {**NETWORK, "num_heads": 5}}, "multiple of num_heads"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_features_of_another_shape_and_captions_of_no_image_are_refused():
    given = batch()
    with pytest.raises(ValueError, match=r"shape \(16, 5\), expected \(16, 12\)"):
        build().xe_i2t({**given, "features": given["features"][..., :5]})
    with pytest.raises(ValueError, match="no references"):
        build().make_reward({})
    module = build()
    module.reward = module.make_reward({7: [[1, 3, 4, 29]], 8: [[1, 5, 29]]})
    with pytest.raises(ValueError, match="no references"):
        module.caption_rewards([given["references"][:, 0, 1:]], given)


def test_captions_that_the_network_cannot_read_are_refused(tmp_path):
    split = {"train": {"source": "train", "rows": None}}
    given = dict(folder=tmp_path, seed=0, splits=split, tokenizer="world", batch_size=2, evaluation_batch_size=2)
    data = CaptionedImages(text_length=16, **given)
    vocabulary = len(data.tokenizer)
    network = {**NETWORK, "vocabulary": vocabulary}
    words = {**WORDS, "end": vocabulary - 1}
    build(network=network, words=words).check_data(data)
    for module, text_length, message in (
        (build(), 16, "network.vocabulary is 30"),
        (build(network=network, words={**words, "mask": 3}), 16, r"words has .* has \{'mask': 2\}"),
        (build(network=network, words=words), 17, "max_positions is 16"),
        (build(network=network, words=words, caption_length=16), 16, "max_positions is 16"),
    ):
        with pytest.raises(ValueError, match=message):
            module.check_data(CaptionedImages(text_length=text_length, **given))


def test_dropout_comes_back_after_sampling():
    module = build(tasks=["rl_i2t"]).train()
    module.training_step(batch())
    assert module.network.training
    with pytest.raises(RuntimeError), evaluating(module.network):
        raise RuntimeError
    assert module.network.training


def test_uniform_logits_cost_the_logarithm_of_their_number_whatever_the_smoothing():
    for smoothing in (0.0, 0.2):
        for classes, expected in ((10_000, 9.2103), (30_522, 10.3262)):
            loss = smoothed_cross_entropy(torch.zeros(2, classes), torch.tensor([0, 5]), smoothing)
            assert loss == pytest.approx(expected, abs=5e-5)
    logits, target = torch.randn(3, 7), torch.tensor([1, 2, 6])
    torch.testing.assert_close(
        smoothed_cross_entropy(logits, target, 0.0), F.cross_entropy(logits, target, reduction="none")
    )
    # torch spreads its smoothing over all classes, the target included
    torch.testing.assert_close(
        smoothed_cross_entropy(logits, target, 0.2 * 6 / 7),
        F.cross_entropy(logits, target, reduction="none", label_smoothing=0.2),
    )


def test_settings_are_checked_against_the_signature():
    with pytest.raises(ValueError, match="caption_input"):
        settings.bind(
            {"_target_": "lightning_modules.unified_t2i_i2t.module.UnifiedGenerator", "network": NETWORK,
             "images": IMAGES, "words": WORDS, "compat": COMPAT, "tasks": TASKS, "caption_input": "sparse"}, "x"
        )  # fmt: skip
