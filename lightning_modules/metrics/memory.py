"""How much memory the tensors of a computation take, counted and not measured, so that it is the same everywhere."""

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes that the tensors made by `function` take at one time; run it on the meta device to count for free.

    Each storage counts from the operation that makes it until nothing refers to it. Tensors that exist before, such as
    weights, do not count, nor does what an operation needs within itself.
    """
    with _Living() as living, torch.no_grad():
        function()
    return living.peak


class _Living(TorchDispatchMode):
    """Follows the storages that operations return."""

    def __init__(self):
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self._count(x.untyped_storage(), before)
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = storage._cdata
        if key in self.known or key in before:
            return
        self.known.add(key)
        self.now += storage.nbytes()
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
