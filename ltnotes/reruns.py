"""Execute chapters with parameters of your own, through papermill.

papermill only warns of an unknown parameter and runs the defaults; here every name and
value is checked before the first cell of the first chapter runs. An output appears
under its name only when it is whole, and is not made twice.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from filelock import FileLock
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.engines import NBClientEngine, papermill_engines

from ltnotes import data
from ltnotes.counts import check_counts
from ltnotes.files import DamagedFileError, first_line, write_text
from ltnotes.options import choice, whole
from ltnotes.progress import PROGRESS_FILE, ChapterProgress, duration
from ltnotes.recipes import SCALES


@dataclass(frozen=True)
class Job:
    """One chapter with one set of parameters: only those that differ from the chapter's own."""

    source: Path
    output: Path
    changed: dict[str, Any]


def book_folder() -> Path:
    """``book`` below :func:`ltnotes.data.home`.

    Raises:
        FileNotFoundError: there is none; the package was installed without the book.
    """
    folder = data.home() / "book"
    if not (folder / "_toc.yml").is_file():
        raise FileNotFoundError(f"no book in {folder.parent}; run inside a checkout of it, or set LTNOTES_HOME to one")
    return folder


def chapters() -> list[str]:
    """Names of all chapters, in order."""
    return sorted(path.stem for path in book_folder().glob("*.ipynb"))


def plan(names: Sequence[str], grid: Mapping[str, Sequence[Any]], out_dir: Path) -> list[Job]:
    """The jobs for chapters and a grid of parameter values, every one checked.

    Args:
        names: chapters; all if empty.
        grid: values to run with, by parameter; several values make several copies, each
            in a folder of its own below ``out_dir``. Strings are read as the chapter's
            type for that parameter.

    Raises:
        ValueError: an unknown chapter or parameter, or a value that is not allowed.
        FileNotFoundError: data that is not prepared.
    """
    known = chapters()
    for name in names:
        if name not in known:
            raise ValueError(f"chapter: got {name!r}, allowed are {', '.join(known)}")
    several = [parameter for parameter, values in grid.items() if len(values) > 1]
    jobs = []
    for values in itertools.product(*grid.values()):
        wanted = dict(zip(grid, values, strict=True))
        subfolder = ",".join(f"{p}={str(wanted[p]).replace('/', '_')}" for p in several)
        for name in names or known:
            source = book_folder() / f"{name}.ipynb"
            jobs.append(Job(source, out_dir / subfolder / source.name, check_parameters(source, wanted)))
    return jobs


def check_parameters(source: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from a chapter's own, in the chapter's types.

    Raises:
        ValueError: an unknown parameter or a value that is not allowed; the message lists what is.
        FileNotFoundError: data that is not prepared.
    """
    own = chapter_parameters(source)
    values = dict(own)
    for name, value in wanted.items():
        if name not in own:
            listed = ", ".join(f"{key}: {type(default).__name__} = {default!r}" for key, default in own.items())
            raise ValueError(f"{source.stem}: got unknown parameter {name!r}, allowed are {listed}")
        values[name] = _as_kind_of(own[name], value, name)
    choice("scale", values.get("scale", SCALES[0]), SCALES)
    whole("seed", values.get("seed", 0))
    if "dataset" in values:
        check_counts(data.load(values["dataset"], values.get("imbalance")).counts)
    return {name: value for name, value in values.items() if value != own[name]}


def _as_kind_of(example: Any, value: Any, name: str) -> Any:
    """The value in the type of the chapter's own one; strings, as a command line has them, are read as that type."""
    kind, read = type(example), value
    if isinstance(value, str) and kind is not str:
        with contextlib.suppress(ValueError, SyntaxError):
            read = ast.literal_eval(value)
    if kind is float and type(read) is int:
        read = float(read)
    if type(read) is not kind or (kind is float and not math.isfinite(read)):
        raise ValueError(f"{name}: got {value!r}, allowed is {kind.__name__}, such as {example!r}")
    return read


def chapter_parameters(source: Path) -> dict[str, Any]:
    """A chapter's parameters and their own values, from its tagged cell."""
    read_notebook(source)
    return {name: ast.literal_eval(entry["default"]) for name, entry in papermill.inspect_notebook(str(source)).items()}


def read_notebook(path: Path) -> NotebookNode:
    """A notebook from its file.

    Raises:
        DamagedFileError: missing, or no notebook.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        return notebook
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is no notebook ({first_line(error)}); restore it, or move it away") from None
    except nbformat.ValidationError as error:
        raise DamagedFileError(f"{path} is no notebook ({error.message}); restore it, or move it away") from None


# --- executing ---------------------------------------------------------------


def execute(jobs: Sequence[Job], prepare_only: bool = False, force: bool = False) -> list[Path]:
    """Run the jobs that are not finished, one after the other; the outputs' paths.

    Args:
        prepare_only: write the chapters with their parameters and run nothing.
        force: run finished ones again.

    Raises:
        RuntimeError: a cell failed; the message names it, and the notebook up to there
            is kept beside the output as ``<chapter>.failed.ipynb``.
        OSError: an output folder that can't be written.
    """
    for folder in {job.output.parent for job in jobs}:
        _check_writable(folder)
    for job in jobs:
        _check_is_ours(job)
    waiting = [job for job in jobs if force or prepare_only or not _is_finished(job)]
    for job in jobs:
        if job not in waiting:
            print(f"{job.source.stem}: finished already, {job.output}")
    display = ChapterProgress([prepare(job) for job in waiting])
    for job in jobs:
        with _turn(job):
            if prepare_only:
                _write(prepare(job), job.output)
            elif force or not _is_finished(job):  # by another process, while this one waited
                _execute_one(job, prepare(job), display)
            else:
                for leftover in _scratch(job):  # of a process that was killed as it finished
                    leftover.unlink(missing_ok=True)
    return [job.output for job in jobs]


def _scratch(job: Job) -> tuple[Path, Path]:
    """Where a chapter is executed, and where its trainings say how far they are."""
    partial, progress = (f".{job.output.stem}.{ending}" for ending in ("partial.ipynb", "progress.json"))
    return job.output.with_name(partial), job.output.with_name(progress)


def _turn(job: Job) -> FileLock:
    """Two processes that make the same output take turns."""
    folder = data.home() / "runs" / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(str(job.output.resolve()).encode()).hexdigest()[:12]
    return FileLock(folder / f"chapter-{key}.lock")


def prepare(job: Job) -> NotebookNode:
    """A chapter ready to run: outputs cleared, parameters injected, and a banner where the text may not fit them."""
    notebook = read_notebook(job.source)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("papermill", None)
    notebook.metadata["ltnotes"] = {**notebook.metadata.get("ltnotes", {}), "made_from": _made_from(job)}
    if not job.changed:
        return notebook
    own = chapter_parameters(job.source)
    here, text = (
        ", ".join(f"`{name} = {values[name]!r}`" for name in job.changed) for values in ({**own, **job.changed}, own)
    )
    banner = nbformat.v4.new_markdown_cell(
        f"```{{warning}}\nThis copy ran with {here}. The text was written for {text}: where it speaks of what"
        " the figures show, the figures here can differ.\n```",
        metadata={"tags": ["banner"]},
    )
    notebook.cells.insert(1, banner)
    position = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    injected = nbformat.v4.new_code_cell(
        "# Parameters of this copy\n" + "\n".join(f"{name} = {value!r}" for name, value in job.changed.items()),
        metadata={"tags": ["injected-parameters"]},
    )
    notebook.cells.insert(position + 1, injected)
    return notebook


def _execute_one(job: Job, notebook: NotebookNode, display: ChapterProgress) -> None:
    began = time.monotonic()
    partial, progress = _scratch(job)
    before = os.environ.get(PROGRESS_FILE)
    failed = job.output.with_name(f"{job.output.stem}.failed.ipynb")
    os.environ[PROGRESS_FILE] = str(progress.resolve())
    try:
        _write(notebook, partial)
        with display.chapter(job.source.stem, progress):
            papermill.execute_notebook(
                str(partial),
                str(partial),
                engine_name=ReportingEngine.name,
                display=display,
                kernel_name="python3",
                cwd=str(book_folder()),
                extra_arguments=["--log-level=CRITICAL"],  # of the kernel itself, which an interruption makes talkative
                progress_bar=False,
            )
        done = nbformat.read(partial, as_version=4)
        for key in ("input_path", "output_path"):  # paths of this machine, which no reader needs
            done.metadata.papermill.pop(key, None)
        done.metadata.ltnotes["seconds"] = display.seconds
        _write(done, job.output)
        failed.unlink(missing_ok=True)
    except papermill.PapermillExecutionError as error:
        os.replace(partial, failed)
        raise RuntimeError(
            f"{job.source.stem}: cell {error.cell_index + 1} failed with {error.ename}: {error.evalue}; see {failed}"
        ) from None
    except DeadKernelError:
        os.replace(partial, failed)
        raise RuntimeError(
            f"{job.source.stem}: its kernel died in {display.where}, as it does when memory runs out; see {failed}"
        ) from None
    finally:
        for leftover in (partial, progress):
            leftover.unlink(missing_ok=True)
        if before is None:
            del os.environ[PROGRESS_FILE]
        else:
            os.environ[PROGRESS_FILE] = before
    print(f"{job.source.stem}: done in {duration(time.monotonic() - began)}, {job.output}")


class ReportingEngine(NBClientEngine):
    """papermill's own engine, which also tells a :class:`ChapterProgress` when a cell starts."""

    name = "ltnotes"

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, display: ChapterProgress, **options: Any) -> None:
        cell_start = nb_man.cell_start

        def report_and_start(cell: NotebookNode, cell_index: int | None = None, **more: Any) -> None:
            display.start_cell(cell.get("id"), f"cell {(cell_index or 0) + 1} of {len(nb_man.nb.cells)}")
            cell_start(cell, cell_index, **more)

        nb_man.cell_start = report_and_start
        super().execute_managed_notebook(nb_man, kernel_name, **options)
        display.start_cell(None, "done")


papermill_engines.register(ReportingEngine.name, ReportingEngine)


def _is_finished(job: Job) -> bool:
    """Whether the output is whole, ran without an exception, and was made from this source by this code."""
    try:
        metadata = read_notebook(job.output).metadata
        ran, made_from = metadata.get("papermill", {}), metadata.get("ltnotes", {}).get("made_from")
    except (DamagedFileError, AttributeError):
        return False
    return bool(ran.get("end_time")) and not ran.get("exception") and made_from == _made_from(job)


def _made_from(job: Job) -> str:
    """Hash of all that an output depends on: the chapter's cells, the changed parameters, this package."""
    notebook = read_notebook(job.source)
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.rglob("*.py"))]
    return hashlib.sha256(json.dumps([cells, job.changed, code], sort_keys=True).encode()).hexdigest()[:16]


def _write(notebook: NotebookNode, path: Path) -> None:
    write_text(nbformat.writes(notebook) + "\n", path)


def _check_is_ours(job: Job) -> None:
    """An output may replace an earlier output, and nothing else."""
    if job.output.resolve() == job.source.resolve():
        if job.changed:
            raise ValueError(f"out: got the book's own folder {job.output.parent}, allowed is any other")
    elif job.output.exists() and "made_from" not in read_notebook(job.output).metadata.get("ltnotes", {}):
        raise ValueError(f"out: {job.output} is there and no chapter's output; move it away, or choose another folder")


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".ltnotes-writable"  # always the same: the next visit removes what a kill left
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"can't write to {folder}: {error.strerror}; allowed is a folder that can be written") from None
