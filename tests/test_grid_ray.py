"""The same grid on a real Ray cluster of this machine, one of whose nodes dies in the middle."""

import threading
import time

import pytest

from ltnotes import grid
from ltnotes.__main__ import main

ray = pytest.importorskip("ray", reason="the extra [cluster] is not installed")
from ray.cluster_utils import Cluster  # noqa: E402

from ltnotes import grid_ray  # noqa: E402

TINY = {"dataset": ["digits-lt"], "scale": ["tiny"], "steps": [2], "imbalance": [10]}


@pytest.fixture
def cluster(monkeypatch):
    """A head without room, and two nodes of one core each."""
    monkeypatch.setenv("RAY_DISABLE_DOCKER_CPU_WARNING", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield started
    finally:
        started.shutdown()


def test_every_result_is_there_once_though_a_node_dies(cluster, tmp_path, capsys):
    cluster.add_node(num_cpus=1)
    doomed = cluster.add_node(num_cpus=1)
    reruns = grid.plan("recipe", ["ce"], {**TINY, "seed": list(range(5)), "learning_rate": [0.1]})
    (diverges,) = grid.plan("recipe", ["ce"], {**TINY, "steps": [40], "learning_rate": [1e12]})
    folder, killed = tmp_path / "out", []

    def kill():
        while not list(folder.glob("reruns/*.json")):  # both nodes are at work
            time.sleep(0.1)
        cluster.remove_node(doomed, allow_graceful=False)
        killed.append(len(list(folder.glob("reruns/*.json"))))

    killer = threading.Thread(target=kill)
    killer.start()
    failed = grid_ray.execute([*reruns, diverges], folder, cluster.address)
    killer.join()
    assert killed[0] < len(reruns)
    assert failed == [diverges]
    rows = list(grid.results([*reruns, diverges], folder))
    assert sorted(row["seed"] for row in rows) == list(range(5))
    assert "NonFiniteLossError" in (folder / "reruns" / f"{diverges.key}.log").read_text()
    assert "FAILED, recipe 'ce', seed 0:" in capsys.readouterr().err


def test_what_has_no_effect_or_is_not_there_is_said(tmp_path, capsys):
    command = ["grid", "ce", "-p", "dataset=digits-lt", "-p", "scale=tiny", "--out", str(tmp_path)]
    assert main([*command, "--ray", "auto", "--jobs", "2"]) == 2
    assert "--jobs: got 2, which has no effect with --ray" in capsys.readouterr().err
    assert main([*command, "--ray", "auto"]) == 2
    assert "error: " in capsys.readouterr().err
