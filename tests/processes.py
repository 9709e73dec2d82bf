"""A few steps of training in several processes on this machine, as DDP does them."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 3
Batch = dict[str, Tensor]


class TrainingStep(nn.Module):
    """The loss of a module as its `forward`, which is what DDP wraps."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        return self.module.training_step(batch)


def weights_after(
    processes: int, folder: Path, build: Callable[[], nn.Module], batch: Callable[[], Batch], lr: float
) -> dict[str, Tensor]:
    """The state dict after `STEPS` steps of plain SGD on one batch, of which each process has its part.

    `build` and `batch` are functions of a module, which the processes import.
    """
    (folder / "rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(_train, (processes, str(folder), build, batch, lr), nprocs=processes, daemon=True)
    return torch.load(folder / f"{processes}.pt", weights_only=True)


def _train(rank: int, world: int, folder: str, build: Callable, batch: Callable, lr: float) -> None:
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    module = build()
    wrapped = DistributedDataParallel(TrainingStep(module))  # without find_unused_parameters
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    own = {name: x.chunk(world)[rank] for name, x in batch().items()}
    for _ in range(STEPS):
        optimizer.zero_grad()
        wrapped(own).backward()
        optimizer.step()
    if rank == 0:
        torch.save(module.state_dict(), f"{folder}/{world}.pt")
    # DDP goes first: if its reducer holds the group last, it joins gloo's threads under the GIL that these wait for
    del wrapped
    torch.distributed.destroy_process_group()
