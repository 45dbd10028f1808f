"""Data that several test files share: the embedded digits, and the real CIFAR where it is found.

CIFAR is looked for in the folder that the environment variable ``LTNOTES_CIFAR`` names,
else in ``shared/data`` beside this repository: ``cifar10.zip`` and ``cifar100.zip`` of
class folders.
"""

import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from data_prep.__main__ import main as data_prep
from ltnotes import data, runs
from ltnotes.devices import VARIABLE

CIFAR_FOLDER = Path(os.environ.get("LTNOTES_CIFAR") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small networks gain little from more, and tests run beside each other under xdist."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _hardware_s_precision():
    """The user's wish is none of the tests' business; those that train have a wish of their own."""
    os.environ.pop(VARIABLE, None)


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """No test reads or writes the user's data and runs, nor reports to a chapter that executes."""
    monkeypatch.setenv("LTNOTES_HOME", str(tmp_path))
    monkeypatch.delenv("LTNOTES_DATA", raising=False)
    monkeypatch.delenv("LTNOTES_PROGRESS", raising=False)
    runs._load.cache_clear()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def each_precision(request):
    """What trains, trains in each precision, on any processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, request.param)
        yield request.param


@pytest.fixture(scope="session")
def digits():
    """digits-lt at a ratio of 20: 10 classes of 6 to 124 images."""
    return data.load("digits-lt", imbalance=20)


@pytest.fixture(scope="session")
def cifar10_zip():
    path = CIFAR_FOLDER / "cifar10.zip"
    if not path.is_file():
        pytest.skip(f"no {path}: name the folder that holds cifar10.zip in LTNOTES_CIFAR")
    return path


@pytest.fixture(scope="session")
def cifar_root(cifar10_zip, tmp_path_factory):
    """A data root that holds CIFAR-10-LT with a ratio of 100, prepared once for all workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    root = shared / "cifar-root"
    with FileLock(shared / "cifar-root.lock"):
        if not root.is_dir():
            assert data_prep(["cifar10", "--source", str(cifar10_zip), "--out", str(root)]) == 0
    return root


BAD_INPUT = {
    "on the command line": "test_bad_input.py::test_a_mistake",
    "as an option in the Python API": "test_bad_arguments.py::test_no_option_takes",
}


def pytest_terminal_summary(terminalreporter):
    """How many kinds of bad input were answered with one clear message, out of those that were tried."""
    for where, tests in BAD_INPUT.items():
        found = {
            outcome: sum(tests in report.nodeid for report in terminalreporter.stats.get(outcome, []))
            for outcome in ("passed", "failed")
        }
        if tried := sum(found.values()):
            terminalreporter.write_line(f"bad input {where}: {found['passed']} of {tried} kinds get one clear message")
