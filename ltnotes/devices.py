"""The device of a training: which one, in which precision, and its random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; without a wish a GPU if there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: got {device!r}, allowed are 'cpu', 'cuda' and 'cuda:N'") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {str(device)!r}, but torch sees no CUDA device here; allowed is 'cpu'")
    if chosen.type not in ("cpu", "cuda") or (chosen.index or 0) >= max(1, torch.cuda.device_count()):
        raise ValueError(f"device: got {str(device)!r}, allowed are 'cpu' and {torch.cuda.device_count()} CUDA devices")
    return chosen


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware multiplies it natively, else None: emulated, it is two to three times slower."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else None


def precision(device: torch.device, dtype: torch.dtype | None) -> Any:
    """Autocast to ``dtype``, or nothing."""
    # Without the cache, a forward pass without gradients leaves no detached copies of the weights behind.
    return torch.autocast(device.type, dtype, cache_enabled=False) if dtype else nullcontext()


@contextmanager
def seeded(position: list[int], device: torch.device) -> Iterator[None]:
    """Torch's default generators, seeded by a list of ints inside and put back as they were afterwards."""
    seed = int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> 1)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
