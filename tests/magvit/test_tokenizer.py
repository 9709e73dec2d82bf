"""The tokenizer's interface, its quantiser, inflation, discriminator and losses."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.magvit.tokenizer import Tokenizer
from lightning_modules.video_tokens.adversarial import discriminator_loss, generator_loss, lecam, r1_penalty
from lightning_modules.video_tokens.discriminator import Discriminator
from lightning_modules.video_tokens.perception import Judge
from lightning_modules.video_tokens.quantiser import VectorQuantiser
from lightning_modules.video_tokens.tokenizer import inflated

SMALL = {"frames": 4, "size": 16, "width": 4, "multipliers": (1, 2), "blocks": 1, "embedding_dim": 8,
         "codebook_size": 12, "norm_groups": 2}  # fmt: skip


def tokenizer(**options):
    torch.manual_seed(0)
    return Tokenizer(**{**SMALL, "halve_time": (True,), **options})


def test_clips_become_tokens_and_clips_again():
    built = tokenizer().eval()
    video = torch.rand(2, 3, 4, 16, 16)
    tokens = built.encode(video)
    assert tokens.shape == (2, *built.grid) == (2, 2, 8, 8)
    assert tokens.dtype == torch.long and tokens.max() < built.vocabulary == 12
    assert torch.allclose(built.decode(tokens), built(video)[0], atol=1e-5)
    assert built.encode(torch.rand(1, 3, 8, 32, 16)).shape == (1, 4, 16, 8)  # any size that can be divided


def test_a_2d_tokenizer_reads_each_frame_alone():
    built = tokenizer(dims=2).eval()
    video = torch.rand(1, 3, 4, 16, 16)
    assert built.grid == (4, 8, 8)
    assert torch.equal(built.encode(video)[:, 1:2], built.encode(video[:, :, 1:2]))


def test_each_token_of_a_3d_tokenizer_sees_the_whole_clip():
    """So the tokens of what is given know of what is not: the reason for COMMIT (section 3.2)."""
    built = tokenizer().eval()
    video = torch.rand(1, 3, 4, 16, 16)
    other = video.clone()
    other[:, :, -1] = 0
    difference = (built.encoder(video) - built.encoder(other)).abs().amax((1, 3, 4))[0]
    assert (difference > 1e-4).all()


@pytest.mark.parametrize("how", ["central", "average"])
def test_an_inflated_network_draws_still_clips_as_the_2d_one_draws_a_frame(how):
    """With time kept and padded by its end frames, both inflations agree with the 2D network on a still clip."""
    flat, deep = tokenizer(dims=2, halve_time=(False,)), tokenizer(halve_time=(False,), padding="replicate")
    found, kept = inflated(flat.state_dict(), deep.state_dict(), how)
    assert not kept
    deep.load_state_dict(found)
    still = torch.rand(1, 3, 1, 16, 16).expand(1, 3, 4, 16, 16)
    spatial = tokenizer(dims=2, halve_time=(False,), padding="replicate")
    spatial.load_state_dict(flat.state_dict())
    assert torch.allclose(deep.eval()(still)[0], spatial.eval()(still)[0], atol=1e-5)


def test_a_centrally_inflated_convolution_is_the_2d_one_frame_by_frame():
    flat, deep = tokenizer(dims=2, halve_time=(False,)), tokenizer(halve_time=(False,))
    found, _ = inflated(flat.state_dict(), deep.state_dict(), "central")
    deep.load_state_dict(found)
    video = torch.rand(1, 3, 4, 16, 16)
    assert torch.allclose(deep.encoder.stem(video), flat.encoder.stem(video), atol=1e-6)
    assert (found["encoder.stem.weight"][:, :, [0, 2]] == 0).all()


def test_weights_that_cannot_be_inflated_are_named():
    wide = tokenizer(width=8)
    _, kept = inflated(tokenizer(dims=2).state_dict(), wide.state_dict(), "central")
    assert "encoder.stem.weight" in kept and "quantiser.codebook" not in kept


def test_the_quantisers_loss_is_that_of_its_three_terms():
    torch.manual_seed(1)
    quantiser = VectorQuantiser(5, 3)
    latents = torch.randn(2, 3, 1, 2, 2, requires_grad=True)
    found = quantiser(latents)
    flat = latents.permute(0, 2, 3, 4, 1).reshape(-1, 3)
    distances = torch.cdist(flat, quantiser.codebook).square()
    assert torch.equal(found.tokens.flatten(), distances.argmin(1))
    nearest = distances.min(1).values.mean() / 3
    assert found.terms["commitment"].item() == pytest.approx(0.25 * nearest.item(), rel=1e-4)
    assert found.terms["codebook"].item() == pytest.approx(nearest.item(), rel=1e-4)
    shares = (-distances / 0.01).softmax(1)
    each = torch.special.entr(shares).sum(1).mean()
    together = -(shares.mean(0) * (shares.mean(0) + 1e-5).log()).sum()
    assert found.terms["entropy"].item() == pytest.approx(0.1 * (each - together).item(), rel=1e-4)
    found.latents.sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))  # straight through


def test_averaged_codes_follow_their_latents_and_unused_ones_are_put_at_latents():
    torch.manual_seed(0)
    quantiser = VectorQuantiser(6, 2, decay=0.5, restart=0.5, entropy=0.0)
    centres = torch.tensor([[4.0, 4.0], [-4.0, 4.0], [4.0, -4.0]])
    for _ in range(30):
        latents = centres[torch.arange(60) % 3] + 0.01 * torch.randn(60, 2)
        found = quantiser(latents.T.reshape(1, 2, 1, 1, 60))
    assert found.terms.keys() == {"commitment"} and not quantiser.codebook.requires_grad
    assert torch.cdist(centres, quantiser.codebook).min(1).values.max() < 0.05
    assert torch.cdist(quantiser.codebook, centres).min(1).values.max() < 0.05  # none was left behind


def test_restart_does_not_disturb_the_gradient_of_the_same_step():
    quantiser = VectorQuantiser(50, 2, restart=0.9)
    for _ in range(3):
        found = quantiser(torch.randn(1, 2, 1, 2, 2, requires_grad=True))
        sum(found.terms.values()).backward()
    assert torch.isfinite(quantiser.codebook.grad).all()


def test_unit_codes_have_length_one():
    quantiser = VectorQuantiser(5, 3, unit=True).eval()
    assert torch.allclose(quantiser.embed(torch.arange(5).view(1, 1, 1, 5)).norm(dim=1), torch.ones(1, 1, 1, 5))


def test_losses_of_the_game():
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    softplus = torch.nn.functional.softplus
    assert generator_loss(fake) == softplus(-fake).mean() and generator_loss(fake, "hinge") == -fake.mean()
    assert discriminator_loss(real, fake) == softplus(-real).mean() + softplus(fake).mean()
    assert discriminator_loss(real, fake, "hinge") == (0 + 3) / 2 + (1.5 + 4) / 2
    means = [torch.tensor(value) for value in (1.0, -1.0, 0.5, 0.25)]
    assert lecam(*means).item() == pytest.approx(0.75**2 + 1.5**2)


def test_r1_is_the_squared_length_of_the_gradient_of_each_clip():
    video = torch.randn(3, 3, 2, 2, 2, requires_grad=True)
    weights = torch.randn(24)
    logits = (video.flatten(1).square() * weights).sum(1)
    expected = (2 * video.flatten(1) * weights).square().sum(1).mean()
    assert r1_penalty(logits, video).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_discriminator_of_frames_gives_a_logit_for_each_frame():
    options = {"width": 4, "multipliers": (2, 2), "frames": 4, "size": 16}
    video = torch.rand(2, 3, 4, 16, 16)
    flat = Discriminator(depth=1, **options)
    assert flat(video).shape == (8,) and Discriminator(depth=3, **options)(video).shape == (2,)
    assert torch.allclose(flat(video)[:4], flat(video[:1]), atol=1e-6)
    assert all(layer.kernel_size[0] == 1 for layer in flat.modules() if isinstance(layer, nn.Conv3d))


def test_a_single_frame_that_is_left_is_halved_in_space_alone():
    """At 128 pixels there are five blocks, and 16 frames are one after four of them."""
    built = Discriminator(depth=3, width=4, multipliers=(1, 1, 1), frames=3, size=16)
    assert built(torch.rand(2, 3, 3, 16, 16)).shape == (2,)
    assert built.hidden.in_features == 4 * 2 * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokenizer(frames=5), r"clips of 5 frames of 16 pixels cannot become tokens: expected multiples of 2"),
        (lambda: tokenizer(halve_time=(True, True)), r"halve_time has 2 entries, expected 1"),
        (lambda: tokenizer(norm_groups=3), r"4 channels cannot be divided into 3 groups"),
        (lambda: tokenizer().encode(torch.rand(1, 3, 3, 16, 16)), r"clips of shape \(1, 3, 3, 16, 16\) cannot become"),
        (lambda: tokenizer().decode(torch.full((1, 2, 8, 8), 12)), r"tokens from 12 to 12, expected 0 to 11"),
        (lambda: VectorQuantiser(4, 2, unit=True, decay=0.9), r"unit is true and decay is 0.9"),
    ],
)
def test_wrong_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_files_of_the_official_code_are_read_or_refused(tmp_path):
    from lightning_modules.magvit.weights import load_flax, read_flax
    from tests.magvit.reference import checkpoint

    built = tokenizer()
    given = checkpoint(built)
    np.savez(tmp_path / "params.npz", **given)
    load_flax(built, read_flax(tmp_path / "params.npz"))
    assert np.array_equal(built.quantiser.codebook.detach().numpy(), given["quantizer/codebook"])
    with pytest.raises(ValueError, match=r"1 keys differ. First: encoder.stem.weight: absent"):
        load_flax(built, {name: x for name, x in given.items() if name != "encoder/Conv_0/kernel"})
    with pytest.raises(ValueError, match=r"encoder/ResBlock_9/Conv_0/kernel: \(1,\), expected absent"):
        load_flax(built, given | {"encoder/ResBlock_9/Conv_0/kernel": np.zeros(1, np.float32)})
    (tmp_path / "no.npz").write_text("no")
    for name in ("no.npz", "absent.npz"):
        with pytest.raises(ValueError, match=r"cannot be read as an .npz file of Flax parameters"):
            read_flax(tmp_path / name)


def test_an_array_in_place_of_parameters_is_refused(tmp_path):
    from lightning_modules.magvit.weights import read_flax

    np.save(tmp_path / "array.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"array.npy cannot be read as an .npz file of Flax parameters"):
        read_flax(tmp_path / "array.npy")


@pytest.mark.parametrize("shape", [(4,), (3, 3, 3), (3, 4), (2, 3, 3, 3, 4), (3, 3, 3, 4, 3)])
def test_kernels_of_other_shapes_are_named(shape):
    from lightning_modules.magvit.weights import load_flax
    from tests.magvit.reference import checkpoint

    built = tokenizer()
    given = checkpoint(built) | {"encoder/Conv_0/kernel": np.zeros(shape, np.float32)}
    with pytest.raises(ValueError, match=r"encoder/Conv_0/kernel has shape .*, expected \(3, 3, 3, 3, \d+\)"):
        load_flax(built, given)


def test_parameters_that_are_no_numbers_are_named():
    from lightning_modules.magvit.weights import load_flax
    from tests.magvit.reference import checkpoint

    built = tokenizer()
    with pytest.raises(ValueError, match=r"holds <U4 at encoder/Conv_0/kernel, expected floating-point numbers"):
        load_flax(built, checkpoint(built) | {"encoder/Conv_0/kernel": np.array(["text"])})


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("query/kernel", (16, 2, 8), r"\(16, 4, 4\)"),
        ("query/kernel", (16, 16), r"\(16, 4, 4\)"),
        ("key/kernel", (16,), r"\(16, 4, 4\)"),
        ("value/bias", (2, 8), r"\(4, 4\)"),
        ("out/kernel", (2, 8, 16), r"\(4, 4, 16\)"),
        ("out/bias", (4, 4), r"\(16,\)"),
    ],
)
def test_attention_of_other_heads_is_refused(path, shape, expected):
    """Two heads of 8 make as large a matrix as four of 4, and other attention."""
    from lightning_modules.magvit.weights import flax_names, flax_shape, load_flax
    from lightning_modules.video_tokens.transformer import Bert

    built = Bert(vocabulary=9, length=5, layers=1, hidden_size=16, mlp_dim=8, heads=4)
    given = {theirs: np.zeros(flax_shape(built, ours), np.float32) for ours, theirs in flax_names(built).items()}
    load_flax(built, given)
    path = f"BertLayer_0/BertAttention_0/self_attention/{path}"
    with pytest.raises(ValueError, match=rf"{path} has shape .*, expected {expected}. Build .* heads and sizes"):
        load_flax(built, given | {path: np.zeros(shape, np.float32)})


def test_no_unit_of_the_judge_dies():
    judge = Judge(4)
    with torch.no_grad():
        for layer in judge.layers:
            if isinstance(layer, torch.nn.Conv3d):
                layer.bias.fill_(-100.0)
        features = judge(torch.rand(3, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert (features[0] != features[1]).any() and (features[1] != features[2]).any()
