"""The same grid past one machine: on a Ray cluster (the extra ``cluster``), with a GPU for each rerun if it has any.

Nodes need this package and the prepared data, and no common file system: results come back
through Ray. Ray does a task again whose worker or node died.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltnotes.files import DamagedFileError, read_json, write_json, write_text
from ltnotes.grid import TRIES, Display, Rerun, failure_of, from_text, is_done, result_of

RETRIES = 100  # of a task whose node died
KEPT_LINES = 1000  # of a log


def execute(reruns: Sequence[Rerun], folder: Path, address: str) -> list[Rerun]:
    """As :func:`ltnotes.grid.execute`, on the cluster at this address ("auto", "127.0.0.1:6379", "ray://...").

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: there is no cluster.
    """
    import ray

    (folder / "reruns").mkdir(parents=True, exist_ok=True)
    ray.init(address=address, log_to_driver=False)
    try:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        do = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False)(_do)
        missing = [rerun for rerun in reruns if not is_done(rerun, folder)]
        of_task = {do.remote(rerun.text): rerun for rerun in missing}
        display, failed = Display(len(reruns), len(reruns) - len(missing)), []
        waiting = list(of_task)
        while waiting:
            (ready,), waiting = ray.wait(waiting, num_returns=1)
            rerun = of_task[ready]
            try:
                said, log = ray.get(ready)
            except ray.exceptions.RayError as error:
                said, log = {"rerun": rerun.text, "error": f"{type(error).__name__}: {error}"}, ""
            write_text(log, folder / "reruns" / f"{rerun.key}.log")
            if "result" in said:
                write_json(said, result_of(rerun, folder))
                failure_of(rerun, folder).unlink(missing_ok=True)
                display.done(rerun)
            else:
                write_json(said, failure_of(rerun, folder))
                failed.append(rerun)
                display.failed(rerun, folder)
        return failed
    finally:
        ray.shutdown()


def _do(text: str) -> tuple[dict[str, Any], str]:
    """On a node: the rerun in a process of its own, what it said and its log.

    A process that is killed leaves neither result nor failure, and is started again.
    """
    rerun = from_text(text)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "reruns").mkdir()
        for _ in range(TRIES):
            command = [sys.executable, "-m", "ltnotes.grid", text, str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            for path in (result_of(rerun, folder), failure_of(rerun, folder)):
                try:
                    return read_json(path, ""), "".join(done.stdout.splitlines(keepends=True)[-KEPT_LINES:])
                except DamagedFileError:
                    continue
        return {"rerun": text, "error": f"its process was killed {TRIES} times"}, done.stdout
