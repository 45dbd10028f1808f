"""The process that a rerun has to itself, forked from one that has PyTorch imported already.

PyTorch takes seconds to import, which is more than a small rerun takes. The server that is forked
has run nothing, so no thread and no GPU's context is lost in the fork.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["ltnotes.grid", "ltnotes.runs"])


def start(do: Callable[[], bool], log: Path, environment: Mapping[str, str]) -> BaseProcess:
    """Call ``do`` in a process of its own; its exit code is 0 if that returns True.

    Args:
        do: what can be pickled.
        log: where the process writes what it says.
        environment: all of its variables.
    """
    process = _SERVER.Process(target=_call, args=(do, log, dict(environment)))
    process.start()
    return process


def _call(do: Callable[[], bool], log: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if threads := environment.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(int(threads))  # the variable was read at the import, in the server
    sys.exit(0 if do() else 1)
