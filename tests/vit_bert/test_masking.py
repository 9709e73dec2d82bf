"""Each shared weight learns from one modality; one backward pass gives what two passes and a mask would give."""

import pytest
import torch

from lightning_modules.vit_bert.masking import comparison, density, digest, due, keep_largest, layer_of, pcgrad
from tests.vit_bert.small import MASKING, batch, module


def encoder_of(network):
    return network.network.encoders["shared"]


def apart(network, rows):
    """The gradients of both losses on the shared weights, by a backward pass for each."""
    found = []
    for part in rows.values():
        network.zero_grad()
        sum(network.terms(part).values()).backward()
        found.append({name: x.grad.clone() for name, x in encoder_of(network).named_parameters()})
    network.zero_grad()
    return found


def together(network, rows, watched=False, steps=1, total=100):
    """What a training step does to the gradients, and what is logged."""
    network.masks.begin(encoder_of(network), watched=watched)
    network.training_step(rows).backward()
    return network.masks.before_step(encoder_of(network), steps, total)


def gradients(network):
    return {name: x.grad for name, x in encoder_of(network).named_parameters()}


def test_one_backward_pass_gives_the_masked_gradients_of_two():
    network, rows = module(gradients="mask"), batch()
    network.masks.mask.copy_(torch.rand(len(network.masks.mask), generator=torch.Generator().manual_seed(1)) < 0.5)
    image, text = apart(network, rows)
    together(network, rows)
    for name, found in gradients(network).items():
        mask = network.masks.part(network.masks.mask, name) if name in network.masks.masked else None
        expected = image[name] + text[name] if mask is None else torch.where(mask, text[name], image[name])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("everything", "modality"), [(True, 1), (False, 0)])
def test_a_full_mask_is_of_texts_and_an_empty_one_of_pictures_and_all_heads_learn(everything, modality):
    network, rows = module(gradients="mask", masking={**MASKING, "vectors": True}), batch()
    network.masks.mask.fill_(everything)
    expected = apart(network, rows)[modality]
    together(network, rows)
    for name, found in gradients(network).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-6)
    for part in (*network.network.heads.values(), *network.network.tokens.values()):
        assert all(x.grad.any() for x in part.parameters())


def test_sum_leaves_gradients_as_they_are_and_tells_how_they_compare():
    network, rows = module(), batch()
    image, text = apart(network, rows)
    logged = together(network, rows, watched=True)
    whole = [torch.cat([each[name].flatten() for name in network.masks.names]) for each in (image, text)]
    for name, found in gradients(network).items():
        torch.testing.assert_close(found, image[name] + text[name], rtol=1e-5, atol=1e-6)
    expected = comparison(*whole)
    assert logged["gradients/cosine"] == pytest.approx(expected["gradients/cosine"].item(), rel=1e-4, abs=1e-6)
    assert logged["gradients/ratio"] == pytest.approx((whole[1].norm() / whole[0].norm()).item(), rel=1e-4)


def test_projections_are_those_of_both_whole_gradients():
    network, rows = module(gradients="pcgrad"), batch()
    image, text = (torch.cat([each[name].flatten() for name in network.masks.names]) for each in apart(network, rows))
    together(network, rows)
    found = torch.cat([gradients(network)[name].flatten() for name in network.masks.names])
    torch.testing.assert_close(found, pcgrad(image, text), rtol=1e-4, atol=1e-6)


def test_gradients_that_oppose_each_other_lose_the_part_along_the_other():
    image, text = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(pcgrad(image, text), torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(pcgrad(image, -text), image - text)


def test_density_falls_evenly_over_the_first_half():
    settings = {**MASKING, "prunings": 10}
    assert [round(density(k, settings), 12) for k in range(1, 11)] == [
        0.95,
        0.9,
        0.85,
        0.8,
        0.75,
        0.7,
        0.65,
        0.6,
        0.55,
        0.5,
    ]
    assert [due(step, 100, settings) for step in (4, 5, 9, 10, 49, 50, 100)] == [0, 1, 1, 2, 9, 10, 10]


def test_pruning_takes_the_smallest_scores_that_are_left_and_counts_exactly():
    mask = torch.tensor([True, True, False, True, True, True])
    kept = keep_largest(mask, torch.tensor([0.1, 0.5, 9.0, 0.2, 0.2, 0.3]), 0.5)
    assert kept.tolist() == [False, True, False, True, False, True]


@pytest.mark.parametrize("score", ["magnitude", "sensitivity", "random"])
@pytest.mark.parametrize("ranking", ["global", "layer"])
def test_every_mask_ends_with_the_share_that_texts_keep(score, ranking):
    network = module(gradients="mask", masking={**MASKING, "score": score, "ranking": ranking})
    masks = network.masks
    for step in range(1, 11):
        together(network, batch(step), steps=step, total=20)
    assert masks.mask.sum() == round(0.5 * len(masks.mask))
    assert masks.pruned == 5
    torch.testing.assert_close(dict(masks.density_by_block())["density"], torch.tensor(0.5))
    spread = masks.densities[-1].max() - masks.densities[-1].min()
    assert (spread < 1e-6) == (ranking == "layer")
    assert masks.densities[0].eq(1).all()


def test_weights_with_the_largest_text_gradients_stay_with_texts():
    network, rows = module(gradients="mask", masking={**MASKING, "prunings": 1, "momentum": 0.0}), batch()
    text = apart(network, rows)[1]
    together(network, rows, steps=1, total=2)
    masks = network.masks
    score = torch.cat([text[name].abs().flatten() for name in masks.masked])
    assert score[masks.mask].min() >= score[~masks.mask].max() - 1e-7


def test_the_score_is_a_running_mean():
    network = module(gradients="mask")
    expected = 0.0
    for step in (1, 2):
        text = apart(network, batch(step))[1]
        expected = 0.9 * expected + 0.1 * torch.cat([text[name].abs().flatten() for name in network.masks.masked])
        together(network, batch(step), steps=step)
    torch.testing.assert_close(network.masks.running, expected, rtol=1e-4, atol=1e-8)


def test_two_batches_of_a_step_are_ranked_as_one():
    network, other, rows = module(gradients="mask"), module(gradients="mask"), batch()
    network.masks.begin(encoder_of(network), watched=False)
    for half in (slice(0, 3), slice(3, 6)):
        part = {task: {name: x[half] for name, x in each.items()} for task, each in rows.items()}
        (network.training_step(part) / 2).backward()
        network.masks.begin(encoder_of(network), watched=False)
    network.masks.before_step(encoder_of(network), 1, 100)
    together(other, rows)
    torch.testing.assert_close(network.masks.running, other.masks.running, rtol=1e-4, atol=1e-8)


def test_losses_that_were_scaled_are_ranked_as_if_they_were_not():
    network, other, rows = module(gradients="mask"), module(gradients="mask"), batch()
    network.masks.begin(encoder_of(network), watched=False)
    (1024 * network.training_step(rows)).backward()
    network.masks.before_step(encoder_of(network), 1, 100, scale=1024.0)
    together(other, rows)
    torch.testing.assert_close(network.masks.running, other.masks.running, rtol=1e-4, atol=1e-8)


def test_the_mask_is_in_the_checkpoint_and_in_the_exported_weights():
    network, other = module(gradients="mask"), module(seed=1, gradients="mask")
    together(network, batch(), steps=30)
    assert {"masks.mask", "masks.running", "masks.pruned", "masks.densities"} <= set(network.state_dict())
    other.load_export(network.export())
    assert torch.equal(network.masks.mask, other.masks.mask)
    assert not network.masks.mask.all()
    mask = network.export()["grad_mask.blocks.0.attn.qkv.weight"]
    assert mask.dtype == torch.bool
    assert mask.shape == (24, 8)
    with pytest.raises(ValueError, match="have masks of 0 weights, expected 8"):
        other.load_export(module().export())


def test_masks_that_differ_have_different_digests():
    mask = torch.tensor([True, False, True, False])
    assert digest(mask) != digest(~mask)
    assert digest(mask) == digest(mask.clone())


def test_layers_have_names():
    assert [layer_of(name) for name in ("blocks.1.mlp.fc1.weight", "norm.weight")] == ["layer-2", "norm"]
