"""Files that are whole or not there at all, whatever happens while they are written, and are doubted when read."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEAL = "seal"
UNREADABLE = (OSError, ValueError, LookupError, EOFError, AttributeError, zipfile.BadZipFile)  # of damaged arrays
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DamagedFileError(RuntimeError):
    """A file is not what this package wrote; the message names it and says what to do."""


class UnsealedError(DamagedFileError):
    """A record without a seal: older code wrote it, or another program."""


def user_path(text: str | Path) -> Path:
    """A path as its user writes it, with ``~`` for the home folder.

    Raises:
        ValueError: the home of a user whom this machine does not know.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"path: got {str(text)!r}, whose home folder is unknown; allowed is any other path") from None


def write_text(text: str, path: Path) -> None:
    """Write a file whole or not at all, see :func:`write_bytes`."""
    write_bytes(text.encode(), path)


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file whole or not at all, with the permissions that the user's other files have.

    Raises:
        OSError: the file can't be written; what was there before is unharmed.
    """
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_error(error, path) from error
        raise


def save_atomically(content: Any, path: Path) -> None:
    """``torch.save`` through a temporary file, so that ``path`` is always whole.

    Raises:
        OSError: the folder can't be written or the disk is full; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError | OSError):  # torch.save reports a full disk as a RuntimeError
            raise disk_error(error, path) from error
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")  # always the same: what a killed process left is written over


def disk_error(error: Exception, path: Path) -> OSError:
    """The error of a failed writing in words that name the file, and call a full disk one."""
    said = OSError(f"can't write {path} ({disk_reason(error, path.parent)}); what was there before is unharmed")
    said.errno = getattr(error, "errno", None)
    return said


def disk_reason(error: Exception, folder: Path) -> str:
    """What kept a file from being written."""
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    # torch has no number for it
    if number in NO_ROOM or (number is None and folder.is_dir() and shutil.disk_usage(folder).free < 1 << 20):
        return f"the disk is full ({reason})"
    return reason


# --- JSON that says itself whether it was changed ------------------------------


def write_json(content: dict[str, Any], path: Path) -> None:
    """A JSON object with a seal, the hash of all the rest, by which :func:`read_json` knows it unchanged."""
    write_text(json.dumps({**content, SEAL: _seal(content)}, indent=1) + "\n", path)


def read_json(path: Path, remedy: str, sealed: bool = True) -> dict[str, Any]:
    """What :func:`write_json` wrote, without its seal.

    Args:
        remedy: what the message tells the user to do.
        sealed: False takes a file without a seal as well, as older code wrote it.

    Raises:
        DamagedFileError: missing, unreadable, no JSON object, or changed since it was written; one
            without a seal is an UnsealedError.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} can't be read ({first_line(error)}); {remedy}") from None
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} can't be read (it holds a {type(content).__name__}); {remedy}")
    seal = content.pop(SEAL, None)
    if seal is None and sealed:
        raise UnsealedError(f"{path} has no seal: other code or another program wrote it; {remedy}")
    if seal is not None and seal != _seal(content):
        raise DamagedFileError(f"{path} was changed after it was written; {remedy}")
    return content


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type, if it says nothing."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """All that an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- tensors and arrays --------------------------------------------------------


def read_tensors(path: Path, remedy: str, device: torch.device | str = "cpu") -> Any:
    """What :func:`save_atomically` wrote.

    Raises:
        DamagedFileError: missing, truncated, altered, or something that is no tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
            if altered := archive.testzip():
                raise DamagedFileError(f"{path} was altered (in {altered}); {remedy}")
        return torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:  # nothing is wrong with the file
        raise
    except (*UNREADABLE, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        # torch's own words on a pickle are a page long
        said = "no file of tensors and numbers" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise DamagedFileError(f"{path} can't be read ({said}); {remedy}") from None


def write_logits(logits: Tensor, path: Path) -> None:
    """Scores ``[N, C]`` as a compressed .npz file, with 16 bits each."""
    largest = torch.finfo(torch.float16).max
    content = io.BytesIO()
    np.savez_compressed(content, logits=logits.clamp(-largest, largest).to("cpu", torch.float16).numpy())
    write_bytes(content.getvalue(), path)


def read_logits(path: Path) -> np.ndarray:
    """What :func:`write_logits` wrote, float32 ``[N, C]``.

    Raises:
        DamagedFileError: missing, truncated or another file.
    """
    try:
        with np.load(path) as kept:
            logits = kept["logits"].astype(np.float32)
        if logits.ndim != 2 or not np.isfinite(logits).all():
            raise ValueError(f"it holds {list(logits.shape)}, not finite scores [N, C]")
        return logits
    except UNREADABLE as error:
        raise DamagedFileError(
            f"{path} can't be read ({first_line(error)}); delete it and train the run anew"
        ) from None
