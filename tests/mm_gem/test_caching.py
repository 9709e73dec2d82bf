import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from lightning_modules.mm_gem.caching import cached
from lightning_modules.mm_gem.objectives import paired_nce


def two_towers() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Sequential(nn.Linear(5, 64), nn.GELU(), nn.Linear(64, 3)) for name in ("v", "t")})


def loss_of(towers: nn.ModuleDict, rows: int | None, pictures: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    def encode(v, t):
        return tuple(nn.functional.normalize(towers[name](x), dim=1) for name, x in (("v", v), ("t", t)))

    return paired_nce(*cached(encode, rows, pictures, texts), torch.tensor(10.0))


def test_gradients_of_micro_batches_are_those_of_the_whole_batch():
    pictures, texts = torch.randn(2, 13, 5, generator=torch.Generator().manual_seed(1))
    found = {}
    for rows in (None, 4, 13):
        towers = two_towers()
        loss = loss_of(towers, rows, pictures, texts)
        loss.backward()
        found[rows] = loss.detach(), [p.grad for p in towers.parameters()]
    for rows in (4, 13):
        torch.testing.assert_close(found[rows], found[None], rtol=1e-5, atol=1e-7)


def test_negatives_within_micro_batches_alone_would_give_another_gradient():
    pictures, texts = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(1))
    gradients = []
    for parts in (1, 3):
        towers = two_towers()
        for v, t in zip(pictures.chunk(parts), texts.chunk(parts), strict=True):
            (loss_of(towers, None, v, t) / parts).backward()
        gradients.append(towers["v"][0].weight.grad)
    assert (gradients[0] - gradients[1]).norm() > 0.1 * gradients[0].norm()


def test_nothing_of_the_hidden_layer_is_kept_for_the_gradient():
    def hidden(rows: int | None) -> int:
        sizes = []
        with saved_tensors_hooks(lambda x: sizes.append(x.shape) or x, lambda x: x):
            loss_of(two_towers(), rows, torch.randn(48, 5), torch.randn(48, 5))
        return sum(shape[-1:] == (64,) for shape in sizes)

    assert hidden(None) >= 4  # two towers: before and after the GELU
    assert hidden(8) == 0


def test_draws_of_the_second_pass_are_those_of_the_first():
    drop, x = nn.Dropout(0.5), torch.ones(6, 4, requires_grad=True)
    (found,) = cached(lambda rows: (drop(rows),), 2, x)
    found.sum().backward()
    torch.testing.assert_close(x.grad, found.detach())
