"""Files that are whole or not there at all, whatever happens while they are written."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def write_text(text: str, path: Path) -> None:
    """Write a file whole or not at all, see :func:`write_bytes`."""
    write_bytes(text.encode(), path)


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file whole or not at all, with the permissions that the user's other files have.

    Raises:
        OSError: the file can't be written; what was there before is unharmed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_atomically(content: Any, path: Path) -> None:
    """``torch.save`` through a temporary file, so that ``path`` is always whole.

    Raises:
        OSError: the folder can't be written or the disk is full; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # always the same, so that a killed process leaves one at most
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError | OSError):  # torch.save reports a full disk as a RuntimeError
            raise OSError(f"can't write {path} ({error}); what was there before is unharmed") from error
        raise


def write_logits(logits: Tensor, path: Path) -> None:
    """Scores ``[N, C]`` as a compressed .npz file, with 16 bits each."""
    largest = torch.finfo(torch.float16).max
    content = io.BytesIO()
    np.savez_compressed(content, logits=logits.clamp(-largest, largest).to("cpu", torch.float16).numpy())
    write_bytes(content.getvalue(), path)


def read_logits(path: Path) -> np.ndarray:
    """What :func:`write_logits` wrote, float32 ``[N, C]``."""
    with np.load(path) as kept:
        return kept["logits"].astype(np.float32)
