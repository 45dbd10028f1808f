"""Killed before a file operation and started again, everything ends as if nothing had happened, and nothing is left.

Every few operations here; ``make kills`` tries all of them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
EVERY = {"run": 7, "prepare": 1, "prepare-again": 1, "chapter": 4}


@pytest.mark.parametrize("what", EVERY)
def test_kills_are_survived(what, tmp_path):
    command = [sys.executable, "-m", "tests.kills", what, str(EVERY[what])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    tried = int(result.stdout.split()[3])
    assert tried >= 4 and f"{tried} of {tried} kills survived" in result.stdout
