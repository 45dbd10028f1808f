"""Several processes train one network: each takes its share of every batch, and they agree on the gradient.

``torchrun`` starts them, with a GPU each (NCCL) or on the CPU (gloo)::

    torchrun --nproc-per-node 4 -m ltnotes run kps --dataset imagenet-lt

All draw the same epochs, so balancers are what they are in one process. They have to share the
folder of runs. One of them writes; a state that is written by any number goes on with any other.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor, distributed, nn

from ltnotes.options import require


def world() -> int:
    """How many processes train together; 1 without torchrun."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


@cache
def begin() -> None:
    """Join the processes that torchrun started with this one, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(distributed.destroy_process_group)


def own_device() -> str | None:
    """The GPU of this process, where several train together on GPUs."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if world() > 1 and torch.cuda.is_available() else None


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        distributed.barrier()


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch ``[B]``; all of it if there is less than one for each."""
    return batch[rank() :: world()] if len(batch) >= world() else batch


def own_luck() -> None:
    """From here on, random numbers of this process are its own, until the generators are seeded again."""
    if rank():
        torch.manual_seed((torch.initial_seed() + rank()) % 2**63)


def average(tensors: Iterable[Tensor], weight: float = 1.0) -> None:
    """Each tensor becomes its mean over the processes, in place; ``weight`` is what this one's counts, of ``world()``.

    As one message: many small ones would wait for each other.
    """
    tensors = list(tensors)
    if world() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().reshape(-1).to(tensors[0].dtype) for tensor in tensors]) * (weight / world())
    distributed.all_reduce(flat)
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter], own: int, whole: int) -> None:
    """The gradient of the whole batch, from those of each process's ``own`` images of its mean loss."""
    counted = own * world() / whole if whole >= world() else 1.0
    average([p.grad for p in parameters if p.grad is not None], counted)


def average_statistics(model: nn.Module) -> None:
    """Normalisation layers have followed each process's own images; afterwards all have the mean of what they saw."""
    average(buffer for buffer in model.buffers() if buffer.is_floating_point())


def with_shared_statistics(model: nn.Module) -> nn.Module:
    """The network with SyncBatchNorm: statistics of the whole batch in every step.

    Raises:
        ValueError: not on a GPU, where PyTorch has none.
    """
    device = next(model.parameters()).device
    require(device.type == "cuda", "sync_batchnorm", f"a network on {device}", "one on a GPU")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
