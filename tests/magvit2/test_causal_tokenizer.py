"""The causal tokenizer: independence of later frames, clips in parts, images, inflation, wrong sizes."""

import pytest
import torch

from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.discriminator import Discriminator, blurred

SMALL = {"size": 16, "width": 4, "multipliers": (1, 2, 2), "blocks": 1, "codebook_size": 64, "norm_groups": 2}


def tokenizer(**options) -> CausalTokenizer:
    torch.manual_seed(0)
    return CausalTokenizer(**{**SMALL, "frames": 9, "halve_time": (True, True), **options}).eval()


CLIP = torch.rand(2, 3, 9, 16, 16, generator=torch.Generator().manual_seed(1))


def test_clips_become_tokens_and_clips_again():
    built = tokenizer()
    tokens = built.encode(CLIP)
    assert tokens.shape == (2, *built.grid) == (2, 3, 4, 4) and built.vocabulary == 64
    assert built.decode(tokens).shape == CLIP.shape
    assert torch.allclose(built.decode(tokens), built(CLIP)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "height", "width", "count"), [(17, 128, 128, 1280), (17, 128, 224, 2240), (41, 128, 128, 2816)]
)
def test_the_number_of_tokens_is_the_papers(frames, height, width, count):
    with torch.device("meta"):
        built = CausalTokenizer(frames=17, size=128, width=32, blocks=1)
        latents = built.latents(torch.empty(1, 3, frames, 128, width))
    assert latents[0, 0].numel() == count


def test_no_latent_and_no_frame_depends_on_a_later_one():
    built, other = tokenizer(), CLIP.clone()
    other[:, :, 5:] = 0
    change = (built.latents(CLIP) - built.latents(other)).abs().amax((0, 1, 3, 4))
    assert change[:2].tolist() == [0, 0] and change[2] > 0
    tokens = built.encode(CLIP)
    changed = tokens.clone()
    changed[:, 2] = 63 - changed[:, 2]
    change = (built.decode(tokens) - built.decode(changed)).abs().amax((0, 1, 3, 4))
    assert change[:5].tolist() == [0] * 5 and (change[5:] > 0).all()


def test_a_first_frame_has_the_tokens_of_the_image():
    built = tokenizer()
    assert torch.equal(built.latents(CLIP)[:, :, :1], built.latents(CLIP[:, :, :1]))
    tokens = built.encode(CLIP)
    assert torch.equal(built.decode(tokens)[:, :, :1], built.decode(tokens[:, :1]))


def test_pooled_norms_leak():
    """What SEED-Voken's do, and why they are not the default."""
    built, other = tokenizer(pooled_norm=True), CLIP.clone()
    other[:, :, 5:] = 0
    assert (built.latents(CLIP) - built.latents(other))[:, :, 0].abs().max() > 1e-4
    with pytest.raises(ValueError, match="pooled_norm is true"):
        list(built.encode_parts([CLIP]))


@pytest.mark.parametrize("cuts", [(1, 4, 4), (5, 4), (1, 8), (9,)])
@pytest.mark.parametrize("options", [{}, {"halve_time": (False, True)}, {"drop_second": True}])
def test_a_clip_in_parts_gives_what_the_whole_gives(cuts, options):
    built = tokenizer(**options)
    tokens = built.encode(CLIP)
    assert torch.equal(torch.cat(list(built.encode_parts(CLIP.split(cuts, 2))), 1), tokens)
    parts = tokens.split([1 + (cuts[0] - 1) // built.time, *(c // built.time for c in cuts[1:])], 1)
    assert torch.allclose(torch.cat(list(built.decode_parts(parts)), 2), built.decode(tokens), atol=1e-6)


@pytest.mark.parametrize("drop_second", [False, True])
def test_the_frames_that_are_dropped_after_the_first_are_those_of_paper_and_re_implementation(drop_second):
    """Both make 1 + 2 (t - 1) of t frames; which of the first two is kept differs."""
    grow = tokenizer(drop_second=drop_second).decoder.grow[0]
    x = torch.rand(1, 8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    later = grow(x, first=False)
    kept = [0, 2, 3] if drop_second else [1, 2, 3]
    assert torch.equal(grow(x), later[:, :, kept]) and later.shape == (1, 8, 4, 8, 8)


def test_an_image_tokenizer_reads_each_frame_alone_and_is_inflated_into_the_last_frame():
    flat = tokenizer(dims=2)
    assert flat.grid == (9, 4, 4)
    assert torch.equal(flat.encode(CLIP)[:, 3:4], flat.encode(CLIP[:, :, 3:4]))
    deep = tokenizer()
    deep.start_from(flat.state_dict())
    image = CLIP[:, :, :1]
    assert torch.allclose(deep.latents(image), flat.latents(image), atol=1e-6)
    assert torch.allclose(deep.decode(flat.encode(image)), flat.decode(flat.encode(image)), atol=1e-5)
    still = image.expand(-1, -1, 9, -1, -1)
    assert torch.allclose(deep.latents(still), flat.latents(image).expand(-1, -1, 3, -1, -1), atol=1e-5)
    with pytest.raises(ValueError, match=r"do not fit, first encoder\.stem\.weight"):
        tokenizer(width=8).start_from(flat.state_dict())


def test_late_and_early_downsampling_have_equally_many_parameters_and_tokens():
    late, early = tokenizer(halve_time=(False, True)), tokenizer(halve_time=(True, False))
    assert late.grid == early.grid == (5, 4, 4)
    assert sum(p.numel() for p in late.parameters()) == sum(p.numel() for p in early.parameters())


def test_a_codebook_can_take_the_place_of_signs():
    built = tokenizer(quantisation="vector", codebook_size=60, embedding_dim=8)
    assert built.vocabulary == 60 and built.decode(built.encode(CLIP)).shape == CLIP.shape


def test_the_blurred_discriminator_halves_as_the_kernel_says():
    line = torch.tensor([0.0, 0, 8, 0, 0, 0]).view(1, 1, 1, 1, 6)
    assert blurred(line, 3).flatten().tolist() == [1, 3, 0]  # (1, 3, 3, 1) at places 0-3, 1-4 and so on, by two
    built = Discriminator(depth=3, width=4, multipliers=(2, 2), frames=5, size=16, blur=True)
    assert built(CLIP[:, :, :5]).shape == (2,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokenizer(frames=8), r"clips of shape \(1, 3, 8, 16, 16\) cannot become tokens"),
        (lambda: tokenizer(size=18), r"multiples of 4 pixels"),
        (lambda: tokenizer(halve_time=(True,)), "halve_time has 1 entries, expected 2"),
        (lambda: tokenizer(norm_groups=3), "4 channels cannot be divided into 3 groups"),
        (lambda: tokenizer(codebook_size=60), "codebook_size is 60 and embedding_dim 6"),
        (lambda: tokenizer().encode(CLIP[:, :, :8]), r"expected \(batch, 3, frames, height, width\) with 1"),
        (lambda: list(tokenizer().encode_parts([CLIP[:, :, :5], CLIP[:, :, 5:8]])), "1 \\+ a multiple of 4 frames"),
        (lambda: tokenizer().decode(torch.full((1, 1, 4, 4), 64)), "tokens from 64 to 64, expected 0 to 63"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
