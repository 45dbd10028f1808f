"""What made a result: the code, the machine, the versions."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from ltnotes.methods.common import Part
from ltnotes.stages import Recipe

COMMIT = "LTNOTES_COMMIT"  # tells a copy of the code what it is a copy of
FAST = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # instructions that decide how fast a network trains


def environment(device: torch.device, precision: str) -> dict[str, str]:
    """What a result depends on besides recipe, data, seed and code."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} threads of {processor()}"
    return {
        "device": name,
        "precision": precision,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }


@functools.cache
def processor() -> str:
    """The processor's name, with those of :data:`FAST` that it has."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    found = [flag for flag in FAST if flag in fields.get("flags", "").split()]
    return fields.get("model name", platform.machine()) + (f" ({', '.join(found)})" if found else "")


@functools.cache
def commit() -> str:
    """The commit of this package, with a word if it was changed since; "unknown" outside a repository."""
    return os.environ.get(COMMIT) or commit_of(Path(__file__).parent)


def commit_of(package: Path) -> str:
    """As :func:`commit`, of a folder."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=True).stdout

    try:
        changed = " with changes" if git("status", "--porcelain", ".").strip() else ""
        return git("rev-parse", "HEAD").strip() + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def code_hash(recipe: Recipe) -> str:
    """Hash of the statements that a recipe's training can run through: the training loop, the recipe's
    method parts, and all of this package that they import. Comments and docstrings don't count."""
    parts = list(_parts(recipe))
    waiting = {"ltnotes.training", *(part.resolve().__module__ for part in parts)}
    modules: set[str] = set()
    while waiting:
        module = waiting.pop()
        modules.add(module)
        waiting |= set(_source(module)[1]) - modules
    sources = [_source(module)[0] for module in sorted(modules)]
    # A part that is defined in a notebook has no file; its own source stands for it.
    sources += [inspect.getsource(target) for part in parts if _file(target := part.resolve()) is None]
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:8]


def _parts(value: Any) -> Iterator[Part]:
    """Every method part that a recipe names, also those within another part's options."""
    if isinstance(value, Part):
        yield value
        value = value.options
    elif is_dataclass(value):
        value = tuple(vars(value).values())
    if isinstance(value, tuple):
        for inner in value:
            yield from _parts(inner)


def _file(target: Any) -> str | None:
    return getattr(sys.modules[target.__module__], "__file__", None)


@functools.cache
def _source(module: str) -> tuple[str, tuple[str, ...]]:
    """A module's statements without docstrings, and the modules of this package that it imports."""
    path = getattr(importlib.import_module(module), "__file__", None)
    if path is None:
        return module, ()
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    imported = set()
    # Imports within functions are left out: whether they are loaded depends on what else a process does.
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ltnotes"):
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & sys.modules.keys()
            imported -= {"ltnotes"}  # a new version number changes no training
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [statement for statement in node.body if not _is_text(statement)] or [ast.Pass()]
    return ast.unparse(tree), tuple(sorted(imported))


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring, of a function, a class, a module or a constant."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False
