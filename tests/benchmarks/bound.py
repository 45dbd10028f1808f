"""How fast a step could be: the arithmetic that it does, and the bytes that it moves, at the machine's speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.steps import Steps, eager
from tests.benchmarks.table import Row

GATHERING = ("index_select", "index", "take", "gather")  # read of their source what they write


class CountBytes(TorchDispatchMode):
    """Adds up what operations move if each reads its inputs and writes its results once."""

    total = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if not function.is_view:
            gathering = function.overloadpacket.__name__ in GATHERING
            read = (result, *arguments[1:]) if gathering else arguments
            tensors = [leaf for leaf in tree_leaves((read, options, result)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def bound(group: str, steps: Steps, seconds: Callable[[Callable[[], object]], float]) -> Iterator[Row]:
    """What arithmetic and memory allow, beside what a step takes.

    Args:
        steps: of the training.
        seconds: how long a call of a function takes.
    """
    device, precision = steps.job.device, steps.job.precision
    with eager():
        steps()
        with FlopCounterMode(display=False) as flops:
            steps()
        with CountBytes() as moved:
            steps()
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.rand(side, side, device=device, dtype=getattr(torch, precision))
    per_second = 2 * side**3 / seconds(lambda: matrix @ matrix)
    block = torch.rand(side * side, device=device)
    copied = 2 * 4 * block.numel() / seconds(block.clone)
    taken = seconds(steps)
    arithmetic, memory = flops.get_total_flops() / per_second, moved.total / copied
    yield Row(group, "arithmetic of a step, GFLOP", flops.get_total_flops() / 1e9)
    yield Row(group, f"a matrix product in {precision}, GFLOP/s", per_second / 1e9)
    yield Row(group, "so the arithmetic takes at least, milliseconds", 1e3 * arithmetic)
    yield Row(group, "read and written by the operations of a step, GB", moved.total / 1e9)
    yield Row(group, "copying memory, GB/s read and written", copied / 1e9)
    yield Row(group, "so moving it takes, outside of caches, milliseconds", 1e3 * memory)
    yield Row(group, "a step takes, milliseconds", 1e3 * taken)
    yield Row(group, "share of the arithmetic bound", arithmetic / taken)
    yield Row(group, "share of the bandwidth bound", memory / taken)
    yield Row(group, "share of both, one after the other", (arithmetic + memory) / taken)
