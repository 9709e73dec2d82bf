"""Lookup-free quantisation: signs, bits, entropies in closed form, and what wrong settings say."""

import math

import pytest
import torch

from lightning_modules.video_tokens.lookup_free import LookupFree, entropy, group_sizes, mean_chances, sample_entropy
from lightning_modules.video_tokens.training import annealed


def by_softmax(z: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Both entropies from the softmax over all codes, one column for each, in float64."""
    dim = z.shape[1]
    codes = ((torch.arange(2**dim).unsqueeze(1) >> torch.arange(dim)) & 1).double() * 2 - 1
    chances = (-torch.cdist(z.double(), codes).square() / temperature).softmax(1)
    mean = chances.mean(0)
    return -torch.special.xlogy(chances, chances).sum(1).mean(), -torch.special.xlogy(mean, mean).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_entropies_in_closed_form_are_those_of_the_softmax_over_all_codes(temperature):
    z = torch.randn(64, 7, generator=torch.Generator().manual_seed(0)) * 0.3
    logits = 4 / temperature * z
    sample, mean = by_softmax(z, temperature)
    assert sample_entropy(logits).item() == pytest.approx(sample.item(), rel=1e-5)
    assert entropy(mean_chances(logits.sigmoid())).item() == pytest.approx(mean.item(), rel=1e-5)


def test_groups_bound_the_entropy_from_above_and_one_group_is_exact():
    z = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    z[:, 4:] = z[:, :4]  # channels that know of each other
    exact, halves, single = (
        LookupFree(256, 8, temperature=1.0, group_bits=bits).entropy_term(z).item() for bits in (8, 4, 1)
    )
    assert single <= halves < exact - 0.1  # the term has minus the entropy
    assert group_sizes(18, 9) == [9, 9] and group_sizes(10, 4) == [4, 3, 3] and group_sizes(18, 18) == [18]


def test_all_codes_used_equally_and_surely_give_the_least_entropy_term():
    """-w d log 2 (the card's oracle: -1.2477 for 2^18 codes and w = 0.1)."""
    bits = ((torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1).float() * 2 - 1
    quantiser = LookupFree(256, 8, entropy=0.1)
    latents = bits.T.reshape(1, 8, 1, 16, 16)
    assert quantiser(latents).terms["entropy"].item() == pytest.approx(-0.1 * 8 * math.log(2), rel=1e-5)
    assert -0.1 * 18 * math.log(2) == pytest.approx(-1.2477, abs=1e-4)


def test_no_tensor_has_a_row_for_each_latent_and_a_column_for_each_code():
    """Of 2^18 codes, with 1,280 latents: the largest tensor is that of the mean chances, or of half of the bits."""
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            for x in found if isinstance(found, tuple | list) else [found]:
                largest = max(largest, x.numel() if isinstance(x, torch.Tensor) else 0)
            return found

    z = torch.randn(1, 18, 5, 16, 16, requires_grad=True)
    with Sizes():
        LookupFree(2**18, 18)(z).terms["entropy"].backward()
    assert largest <= max(2**18, 1280 * 2 * 512)
    assert z.grad.isfinite().all()


def test_zero_is_minus_one_the_gradient_passes_and_tokens_come_back():
    quantiser = LookupFree(16, 4)
    z = torch.tensor([0.0, -0.1, 0.1, 2.0]).view(1, 4, 1, 1, 1).requires_grad_()
    found = quantiser(z)
    assert found.latents.flatten().tolist() == [-1, -1, 1, 1] and found.tokens.item() == 12
    found.latents.sum().backward()
    assert z.grad.flatten().tolist() == [1, 1, 1, 1]
    assert found.terms["commitment"].item() == pytest.approx(0.25 * (1 + 0.81 + 0.81 + 1) / 4)
    tokens = torch.arange(16).view(1, 1, 4, 4)
    for order in ("little", "big"):
        other = LookupFree(16, 4, order=order).eval()
        assert torch.equal(other(other.embed(tokens)).tokens, tokens) and other(other.embed(tokens)).terms == {}


def test_half_precision_latents_are_quantised_in_float32():
    quantiser, z = LookupFree(16, 4), torch.randn(1, 4, 1, 2, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantiser(z)
    assert found.latents.dtype == torch.bfloat16 and found.terms["entropy"].dtype == torch.float32


def test_the_entropy_term_falls_from_three_times_its_weight_within_two_thousand_steps():
    assert [annealed(step, 3.0, 2000) for step in (0, 1000, 2000, 9000)] == [3.0, 2.0, 1.0, 1.0]


def _averaged(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    z = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))[rank].requires_grad_()
    loss = LookupFree(16, 4, temperature=1.0).entropy_term(z)
    loss.backward()
    torch.save((loss.item(), z.grad), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_mean_of_chances_is_that_of_all_processes_and_so_are_its_gradients(tmp_path):
    torch.multiprocessing.spawn(_averaged, (str(tmp_path),), nprocs=2)
    found, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    z = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    quantiser = LookupFree(16, 4, temperature=1.0)
    quantiser.entropy_term(z.flatten(0, 1)).backward()
    # each process has the mean entropy of its own latents, and both the entropy of the common mean
    losses = [quantiser.entropy_term(x).item() for x in z.detach()]
    assert sum(found) / 2 == pytest.approx(quantiser.entropy_term(z.detach().flatten(0, 1)).item(), rel=1e-5)
    assert found[0] != pytest.approx(losses[0], rel=1e-3)
    assert torch.allclose(torch.stack(gradients) / 2, z.grad, atol=1e-6)  # DDP averages over processes


@pytest.mark.parametrize(("codes", "dim"), [(1000, 10), (1024, 9)])
def test_a_vocabulary_that_is_no_power_of_two_is_refused(codes, dim):
    with pytest.raises(ValueError, match=f"codebook_size is {codes} and embedding_dim {dim}"):
        LookupFree(codes, dim)
