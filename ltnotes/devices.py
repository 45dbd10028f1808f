"""The device of a training: which one, in which precision, its random numbers, and its steps as CUDA graphs."""

from __future__ import annotations

import gc
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

VARIABLE = "LTNOTES_PRECISION"
PRECISIONS = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}
LACKS_MEMORY = re.compile("allocat|storage size|out of memory", re.IGNORECASE)
EAGER_CALLS = 3  # of each kind of input before it is captured: libraries initialise themselves on the way


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


def choose_precision(asked: str | None, device: torch.device) -> str:
    """The precision that networks train in: "float32" or "bfloat16".

    The one asked for; without a wish that of the environment variable ``LTNOTES_PRECISION``;
    without one, bfloat16 where the hardware multiplies it. Emulated, it is two to three times
    slower than float32. Only training follows it: evaluation is always in float32. On a GPU,
    convolutions that train in float32 may use TF32, as is PyTorch's default.

    Raises:
        ValueError: a name that is not in ``PRECISIONS``.
    """
    source, name = ("precision", asked) if asked is not None else (VARIABLE, os.environ.get(VARIABLE) or None)
    if name is None:
        return "bfloat16" if multiplies_bfloat16(device) else "float32"
    if name not in PRECISIONS:
        raise ValueError(f"{source}: got {name!r}, allowed are {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


@contextmanager
def naming_memory(**fields: Any) -> Iterator[None]:
    """Inside, a lack of memory is said together with the fields of the recipe that ask for it.

    Raises:
        RuntimeError: in the place of what the allocator said.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = (str(error) or "out of memory").splitlines()[0]
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not LACKS_MEMORY.search(said):
            raise
        asked = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        raise RuntimeError(f"{asked}: not enough memory ({said})") from None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def autocast(device: torch.device, precision: str) -> Any:
    """Inside, a network computes in this precision, as :func:`choose_precision` names it."""
    # Without the cache, a forward pass without gradients leaves no detached copies of the weights behind.
    half = precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Inside, float32 is float32: no autocast, and no TF32, which convolutions on a GPU use unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def seeded(position: list[int], device: torch.device) -> Iterator[None]:
    """Torch's default generators, seeded by a list of ints inside and put back as they were afterwards."""
    seed = int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> 1)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class Lane:
    """What a training has for itself while several take turns on a device: random numbers and, on a GPU, a stream.

    Work of different streams can run at the same time. A CUDA graph reads its random
    numbers from the generator's state that it was captured under, so each lane swaps in
    a state of its own instead of overwriting a shared one.
    """

    def __init__(self, device: torch.device):
        self.random = torch.get_rng_state()
        self.stream = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            self.generator = torch.cuda.default_generators[self.stream.device.index]
            self.cuda_random = self.generator.clone_state()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, torch's default generators and the current stream are this lane's."""
        outside = torch.get_rng_state()
        torch.set_rng_state(self.random)
        try:
            with nullcontext() if self.stream is None else self._cuda_turn():
                yield
        finally:
            self.random = torch.get_rng_state()
            torch.set_rng_state(outside)

    @contextmanager
    def _cuda_turn(self) -> Iterator[None]:
        outside = self.generator.graphsafe_get_state()
        self.generator.graphsafe_set_state(self.cuda_random)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            self.cuda_random = self.generator.graphsafe_get_state()
            self.generator.graphsafe_set_state(outside)


class Captured:
    """A function on a GPU that is recorded as a CUDA graph, and replayed instead of called.

    A network of small layers keeps the host busier with starting kernels than the GPU with
    running them. A replay starts all of them at once. It repeats what the device did, with
    new inputs and fresh random numbers, and nothing that Python did: the function may not
    wait for the device, and what changes between calls has to be in tensors that stay
    where they are. There is one graph for each combination of shapes, dtypes and numbers.
    They share their memory, as one runs after the other and keeps nothing for the next.
    Where recording fails, a warning says so, and the function is called as before.

    Args:
        function: of tensors and numbers; returns a tuple of tensors.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]):
        self.function = function
        self.failed: torch.cuda.CUDAGraph | None = None
        self.pool: Any = None
        self.calls: Counter[tuple] = Counter()
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Any], tuple[Tensor, ...]]] = {}

    def __call__(self, *inputs: Tensor | float) -> tuple[Tensor, ...]:
        key = tuple((x.shape, x.dtype, x.stride()) if isinstance(x, Tensor) else x for x in inputs)
        self.calls[key] += 1
        if key not in self.graphs and self.calls[key] > EAGER_CALLS and self.failed is None:
            self._capture(key, inputs)
        if key not in self.graphs or self.failed is not None:
            return self.function(*inputs)
        graph, own, outputs = self.graphs[key]
        for mine, given in zip(own, inputs, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(given)
        graph.replay()
        return tuple(output.clone() for output in outputs)  # the next replay overwrites them

    def _capture(self, key: tuple, inputs: tuple[Tensor | float, ...]) -> None:
        graph, own = torch.cuda.CUDAGraph(), [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        try:
            with _no_garbage_collection(), torch.cuda.graph(graph, self.pool, torch.cuda.current_stream()):
                outputs = self.function(*own)
        except RuntimeError as error:
            self.failed = graph  # kept, since its end would free what others use
            warnings.warn(f"training without CUDA graphs, which is slower: recording one failed: {error}", stacklevel=2)
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())  # the old state may take itself for one that records
        else:
            self.graphs[key] = graph, own, outputs


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """An older graph that is collected while another is recorded would spoil it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
