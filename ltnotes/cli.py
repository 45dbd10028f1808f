"""The command line: ``ltnotes chapters``, ``run``, ``recipes`` and the others that ``ltnotes --help`` lists."""

from __future__ import annotations

import argparse
import ast
import sys
from typing import Any

from ltnotes import data, recipes
from ltnotes.catalogue import CHAPTERS
from ltnotes.files import one_line, user_path
from ltnotes.models import FROZEN
from ltnotes.protocols import PROTOCOLS
from ltnotes.stages import Recipe, Stage


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ltnotes", description="The Long-Tail Notes from the command line.")
    commands = parser.add_subparsers(dest="command", required=True)

    chapters = commands.add_parser("chapters", help="execute chapters of the book with parameters of your own")
    chapters.add_argument("names", nargs="*", metavar="CHAPTER", help="such as 01-long-tail (default: all)")
    for name in ("dataset", "imbalance", "scale", "seed"):
        chapters.add_argument(f"--{name}", nargs="+", help="one value, or several for one copy each")
    chapters.add_argument(
        "-p", action="append", nargs=2, default=[], dest="more", metavar=("NAME", "VALUE"), help="any other parameter"
    )
    chapters.add_argument("--out", type=user_path, help="folder of the outputs (default: build/chapters)")
    chapters.add_argument("--prepare-only", action="store_true", help="write parametrised copies and run nothing")
    chapters.add_argument("--force", action="store_true", help="run finished chapters again")
    chapters.add_argument("--in-place", action="store_true", help="refresh the book's own copies")

    run = commands.add_parser("run", help="train one recipe, or read it from the cache")
    run.add_argument("recipe", help="see 'ltnotes recipes'")
    add_setting(run, scale="lite")
    run.add_argument("--seed", type=int, nargs="+", default=[0])
    add_hardware(run)
    run.add_argument("--together", type=int, help="seeds trained side by side (default: 4 on a GPU, 1 on a CPU)")
    run.add_argument("--out", default="runs", help="the cache (default: %(default)s)")

    listing = commands.add_parser("recipes", help="list the recipes, or show what some of them train")
    listing.add_argument("names", nargs="*", metavar="RECIPE", help="show these in full (default: list all)")
    add_setting(listing, scale="full")

    diagnosis = commands.add_parser("diagnose", help="say what a folder of your own images holds, and prepare it")
    diagnosis.add_argument("folder", type=user_path, help="class folders, or train/ and test/ with class folders")
    diagnosis.add_argument("--size", type=int, default=128, help="pixels that images are brought to (default: 128)")
    diagnosis.add_argument("--test-share", type=float, default=0.2, help="of each class, if unsplit (default: 0.2)")
    diagnosis.add_argument("--seed", type=int, default=0, help="of the draw of test images (default: 0)")
    diagnosis.add_argument("--out", type=user_path, help="where prepared sets go (default: LTNOTES_DATA, or ./data)")

    reporting = commands.add_parser("report", help="write one HTML page on a finished run")
    reporting.add_argument("run", type=user_path, metavar="RUN", help="its folder, which 'ltnotes run' names")
    reporting.add_argument("--out", type=user_path, help="the page (default: report.html in that folder)")

    add_grid(commands.add_parser("grid", help="rerun recipes or chapters with every combination of some values"))
    add_course(commands.add_parser("course", help="assignments from the chapters' exercises, graded by nbgrader"))

    commands.add_parser("doctor", help="say what this machine lacks, and how to get it")

    ledger = commands.add_parser("ledger", help="train the full-scale runs that the book quotes, most worth first")
    ledger.add_argument("--status", action="store_true", help="say what is done, running and to do, and train nothing")
    ledger.add_argument("--only", nargs="+", default=[], metavar="RECIPE", help="these alone (default: the whole plan)")
    ledger.add_argument("--seed", type=int, nargs="+", default=[], help="these alone")
    ledger.add_argument("--dataset", nargs="+", default=[], help="these alone")
    ledger.add_argument("--out", type=user_path, help="the ledger's folder (default: book/results)")
    add_hardware(ledger)

    options = parser.parse_args(arguments)
    if options.command == "chapters" and options.in_place and options.out:
        parser.error("--out: has no effect with --in-place, which writes to the book")
    if options.command == "chapters" and options.prepare_only and options.force:
        parser.error("--force: has no effect with --prepare-only, which runs nothing")
    if options.command == "recipes" and not options.names:
        for name in (*SETTING, "set"):
            if getattr(options, name) != listing.get_default(name):
                parser.error(f"--{name}: has no effect without a RECIPE to show")
    return options


def add_grid(grid: argparse.ArgumentParser) -> None:
    grid.add_argument("names", nargs="*", metavar="NAME", help="recipes, chapters with --chapters, or one YAML file")
    grid.add_argument("--chapters", action="store_true", help="the names are chapters")
    grid.add_argument("-p", action="append", default=[], dest="values", metavar="NAME=VALUE,VALUE", help="a parameter")
    grid.add_argument("--out", type=user_path, help="folder of the results (default: build/grid)")
    grid.add_argument("--ray", metavar="ADDRESS", help="run on this Ray cluster, such as auto or 10.0.0.1:6379")
    grid.add_argument("--jobs", type=int, help="reruns at a time (default: one for each core, or for each GPU)")


def add_course(course: argparse.ArgumentParser) -> None:
    steps = course.add_subparsers(dest="step", required=True)
    make = steps.add_parser("make", help="write the assignments of all chapters, as students get them")
    make.add_argument("folder", type=user_path, help="where they go")
    make.add_argument("--solutions", action="store_true", help="with solutions, marks and hidden checks")
    init = steps.add_parser("init", help="make a course for nbgrader")
    init.add_argument("folder", type=user_path, help="a new folder")
    for name, what in (
        ("release", "write what students get"),
        ("grade", "grade what they handed in"),
        ("feedback", "write a page for each student"),
    ):
        step = steps.add_parser(name, help=f"{what} of an assignment")
        step.add_argument("folder", type=user_path, help="the course")
        step.add_argument("assignment", help="such as 01-long-tail-lab")
    grades = steps.add_parser("grades", help="write grades.csv")
    grades.add_argument("folder", type=user_path, help="the course")
    grades.set_defaults(assignment=None)


SETTING = ("dataset", "imbalance", "scale", "protocol")


def add_setting(command: argparse.ArgumentParser, scale: str) -> None:
    """The options that choose a recipe's data and size."""
    command.add_argument("--dataset", default="cifar10-lt")
    own = "largest over smallest class (default: 100, or the folder's own)"
    command.add_argument("--imbalance", type=float, help=own)
    command.add_argument("--scale", default=scale, help=f"{', '.join(recipes.SCALING)} (default: %(default)s)")
    command.add_argument("--protocol", help=f"whose training: {', '.join(PROTOCOLS)} (default: the method's paper's)")
    command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="such as epochs=30")


def add_hardware(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    command.add_argument("--precision", help="float32 or bfloat16 (default: what the hardware multiplies)")


def chosen_recipe(name: str, options: argparse.Namespace) -> Recipe:
    changes = dict(read_change(text) for text in options.set)
    if len(changes) < len(options.set):
        raise ValueError(f"--set: got {' '.join(options.set)}, allowed is each field once")
    for field in changes:
        if field in ("name", "stages"):
            raise ValueError(f"--set: got {field!r}, which a recipe's name decides, allowed are its other fields")
        if field in SETTING:
            raise ValueError(f"--set: got {field!r}, allowed is --{field} {changes[field]}")
    return recipes.get(name, options.dataset, options.imbalance, options.scale, options.protocol, **changes)


def run_chapters(options: argparse.Namespace) -> None:
    from ltnotes import reruns  # papermill comes with the [book] extra only

    grid: dict[str, list[Any]] = {
        name: values for name in ("dataset", "imbalance", "scale", "seed") if (values := getattr(options, name))
    }
    for name, value in options.more:
        if name in grid:
            raise ValueError(f"{name}: given more than once, by -p {name} {value} as well")
        grid[name] = [value]
    if options.in_place and grid:
        raise ValueError(f"{next(iter(grid))}: --in-place keeps the chapters' own parameters; edit the chapter instead")
    out = reruns.book_folder() if options.in_place else options.out or data.home() / "build" / "chapters"
    jobs = reruns.plan(options.names, grid, out)
    reruns.execute(jobs, prepare_only=options.prepare_only, force=options.force)


def run_recipe(options: argparse.Namespace) -> None:
    from ltnotes import distributed, runs

    recipe = chosen_recipe(options.recipe, options)
    chosen = {name: getattr(options, name) for name in ("device", "precision", "together")}
    for run in runs.as_finished(recipe, options.seed, options.out, **chosen):
        if not distributed.is_main():
            continue
        groups = ", ".join(f"{name} {value:.1%}" for name, value in run.metrics["groups"].items() if value is not None)
        print(f"{recipe.name}, seed {run.seed}: balanced accuracy {run.metrics['balanced_accuracy']:.2%} ({groups})")
        made_on = run.record["environment"]
        where = f"on {made_on['device']}, in {made_on['precision']}"
        print(f"  trained in {run.seconds:.0f} s {where}; {run.checkpoint.parent}")


def run_diagnosis(options: argparse.Namespace) -> None:
    from ltnotes.diagnose import diagnose

    for line in diagnose(options.folder, options.size, options.test_share, options.seed, options.out).lines():
        print(line)


def run_grid(options: argparse.Namespace) -> int:
    from ltnotes import grid

    kind, names, values = "chapter" if options.chapters else "recipe", options.names, {}
    if len(names) == 1 and names[0].endswith((".yaml", ".yml")):
        kind, names, values = grid.read_file(user_path(names[0]))
    for text in options.values:
        name, several = grid.read_values(text)
        if name in values:
            raise ValueError(f"{name}: given more than once, by -p {text} as well")
        values[name] = several
    reruns = grid.plan(kind, names, values)
    folder = options.out or data.home() / "build" / "grid"
    if options.ray:
        if options.jobs is not None:
            raise ValueError(
                f"--jobs: got {options.jobs}, which has no effect with --ray; a cluster knows its own room"
            )
        from ltnotes import grid_ray

        failed = grid_ray.execute(reruns, folder, options.ray)
    else:
        failed = grid.execute(reruns, folder, grid.slots(options.jobs))
    from ltnotes import grid_summary  # Matplotlib and seaborn, once all else is done

    for path in grid_summary.write(reruns, folder):
        print(path)
    if failed:
        print(f"{len(failed)} of {len(reruns)} failed; what they said is in {folder / 'reruns'}", file=sys.stderr)
    return 1 if failed else 0


def run_report(options: argparse.Namespace) -> None:
    from ltnotes.finished import open_run
    from ltnotes.report import report

    print(report(open_run(options.run), options.out or options.run / "report.html"))


def run_course(options: argparse.Namespace) -> None:
    from ltnotes import assignments, course  # nbformat comes with the [book] extra only

    if options.step == "make":
        for path in assignments.make(options.folder, released=not options.solutions):
            print(path)
    elif options.step == "init":
        print(course.init(options.folder) / "README.md")
    else:
        course.step(options.step, options.folder, options.assignment)


def run_doctor(options: argparse.Namespace) -> None:
    from ltnotes.doctor import findings

    for finding in findings():
        print(finding)


def run_ledger(options: argparse.Namespace, arguments: list[str]) -> int:
    from ltnotes import devices, ledger, ledger_work

    device = devices.choose_device(options.device)
    precision = devices.choose_precision(options.precision, device)
    entries = ledger.plan(options.only, options.seed, options.dataset, gpu=device.type == "cuda")
    folder = (options.out or ledger.results_folder()).resolve()
    if options.status:
        print("\n".join(ledger_work.status(entries, folder, device, precision)))
        return 0
    return ledger_work.work_from_a_copy(entries, folder, options.device, options.precision, arguments)


def read_change(text: str) -> tuple[str, Any]:
    """``epochs=30`` as a name and a Python literal; what is no literal stays a string."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"--set: got {text!r}, allowed is FIELD=VALUE, such as epochs=30")
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # what literal_eval raises for what is no literal
        return name, value
    return name, tuple(read) if isinstance(read, list) else read


def list_recipes() -> None:
    width = max(map(len, recipes.names()))
    for chapter, (protocol, rows) in CHAPTERS.items():
        print(f"\n{chapter} (protocol {protocol})")
        for name in rows:
            print(f"  {name:<{width}}  {recipes.describe(name)}")


def show_recipe(recipe: Recipe) -> None:
    """Print everything that a recipe trains."""
    print(f"\n{recipe.name}: {recipes.describe(recipe.name)}")
    start = "with the weights of ImageNet" if recipe.pretrained else "from random weights"
    width = f", a layer of {recipe.projection} before the head" if recipe.projection else ""
    shift = "" if recipe.pad is None else f"; shifted by up to {recipe.pad} pixels"
    shift += "; without mirror images" if recipe.flip is False else ""
    print(f"  {recipe.dataset} 1:{recipe.imbalance:g}; {recipe.validation} images of each class held out{shift}")
    if recipe.backbone.startswith(FROZEN):
        print(f"  features of {recipe.backbone.removeprefix(FROZEN)}, trained on ImageNet and frozen; {recipe.head}")
    else:
        print(f"  {recipe.backbone} {start}{width}; {recipe.head}")
    for number, stage in enumerate(recipe.stages, start=1):
        print(f"  stage {number}: {length(stage)}")
        lines = {"head": stage.head}
        if stage.steps != 0:
            rest = f"momentum {stage.momentum:g}, weight decay {stage.weight_decay:g}, keeps the {stage.keep} epoch"
            lines |= {"loss": stage.loss, "balancer": stage.balancer, "transform": stage.transform}
            lines |= {"rate": rate(stage), "SGD": rest}
        for title, text in lines.items():
            if text:
                print(f"    {title:<9} {text}")


def length(stage: Stage) -> str:
    if stage.steps == 0:
        return "trains nothing"
    amount = f"{stage.steps} steps" if stage.epochs is None else f"{stage.epochs:.3g} epochs"
    what = {"all": "everything", "head": "the head", "rest": "what follows the transform"}[stage.trains]
    return f"trains {what} for {amount} in batches of {stage.batch_size}"


def rate(stage: Stage) -> str:
    """The learning rate and how it changes, in the unit of the stage's length."""
    total, unit = (stage.epochs, "epoch") if stage.steps is None else (stage.steps, "step")
    text = f"{stage.learning_rate:g}"
    if stage.head_learning_rate is not None:
        text += f", of the head {stage.head_learning_rate:g}"
    if stage.warmup:
        text += f", rising until {unit} {stage.warmup * total:.3g}"
    if stage.schedule == "cosine":
        return f"{text}, falling to {stage.final_rate:g} of it along a cosine"
    if not stage.milestones:
        return f"{text}, constant"
    return f"{text}, x {stage.decay:g} at {unit} {', '.join(f'{m * total:.3g}' for m in stage.milestones)}"


DO = {
    "chapters": run_chapters,
    "run": run_recipe,
    "diagnose": run_diagnosis,
    "report": run_report,
    "course": run_course,
    "doctor": run_doctor,
}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.command == "ledger":
            return run_ledger(options, sys.argv[1:] if arguments is None else arguments)
        if options.command == "grid":
            return run_grid(options)
        if options.command in DO:
            DO[options.command](options)
        elif options.names:
            for recipe in [chosen_recipe(name, options) for name in options.names]:  # all of them before the first
                show_recipe(recipe)
        else:
            list_recipes()
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"error: {one_line(error)}; 'pip install ltnotes[book]' installs what chapters need", file=sys.stderr)
        return 2
    return 0
