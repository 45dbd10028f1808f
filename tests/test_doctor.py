"""The doctor names what is missing and how to get it, and changes nothing."""

import importlib.util
import sys

import pytest

from ltnotes import doctor
from ltnotes.__main__ import main


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LTNOTES_HOME", str(tmp_path))
    monkeypatch.delenv("LTNOTES_DATA", raising=False)
    return tmp_path


def found(what):
    (finding,) = [finding for finding in doctor.findings() if finding.what == what]
    return finding


def test_every_line_is_ok_or_has_a_remedy(home, capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if line.startswith(("ok", "missing"))]) == len(list(doctor.findings()))
    assert all(finding.ok or finding.remedy for finding in doctor.findings())
    assert list(home.iterdir()) == []


def test_data_that_is_not_prepared_is_named_with_the_command_that_does_it(home):
    assert not found("cifar10-lt").ok and found("cifar10-lt").remedy == "python -m data_prep cifar10 --imbalance 100"
    (home / "data" / "cifar10-lt-imbalance50-seed0").mkdir(parents=True)
    assert found("cifar10-lt").ok and "imbalance50" in found("cifar10-lt").says


def test_an_extra_that_is_not_installed_is_named_with_what_it_lacks(home, monkeypatch):
    spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nbgrader" else spec(name))
    finding = found("extra [course]")
    assert (finding.ok, finding.says, finding.remedy) == (False, "without nbgrader", "pip install -e '.[course]'")


def test_a_home_that_can_not_be_written_and_an_old_python_are_said(home, monkeypatch):
    def refuse(dir):
        raise PermissionError("Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert not found("home").ok and "LTNOTES_HOME" in found("home").remedy
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert not found("Python").ok and found("Python").says == "3.9.1"


def test_little_room_is_said(home, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_FREE", 1 << 62)
    assert not found("home").ok and "GB free" in found("home").says
