"""Each file imports only from floors below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ltnotes"
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
GROUND_FLOOR = ("options", "counts", "folding")  # each stands on those before it
METHODS = [module for module in MODULES if module.startswith("methods/")]


def imported(module):
    """The modules of this package that a file imports, anywhere in it, relative to the package."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, line {node.lineno}"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("ltnotes.") for name in names if name.startswith("ltnotes.")}


def test_the_parser_sees_imports():
    assert {"models", "batches", "live_stage"} <= imported("training")


@pytest.mark.parametrize("module", METHODS)
def test_methods_import_only_each_other_and_the_ground_floor(module):
    found = imported(module)
    assert all(name.split(".")[0] in (*GROUND_FLOOR, "methods") for name in found), found


@pytest.mark.parametrize("module", ["counts", "data", "batches", "metrics", "models", "live_stage", "training"])
def test_what_training_stands_on_knows_no_recipe_and_no_run(module):
    assert not {"recipes", "runs", "reruns"} & imported(module)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_plots_but_what_draws(module):
    draws = ("plots", "report", "grid_summary")
    assert module in draws or not any(name.split(".")[0] == "plots" for name in imported(module))


@pytest.mark.parametrize("module", GROUND_FLOOR)
def test_the_ground_floor_imports_nothing_from_above(module):
    below = GROUND_FLOOR[: GROUND_FLOOR.index(module)]
    assert {name.split(".")[0] for name in imported(module)} <= set(below)
