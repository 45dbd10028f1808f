"""The command line: ``python -m data_prep cifar10 --imbalance 100``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep import prepare as writer
from data_prep.lists import SETS, prepare_listed
from data_prep.sources import Pool, PrepareError, read_class_folders, read_torchvision_cifar
from ltnotes.data import DEFAULT_IMBALANCE, data_root
from ltnotes.files import one_line, user_path
from ltnotes.options import number

CLASSES = {"cifar10": 10, "cifar100": 100}
STATISTICS = {"cifar10": writer.CIFAR10_STATISTICS, "cifar100": writer.CIFAR100_STATISTICS}
CIFAR_SIZE = 32


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Prepare long-tailed data sets: CIFAR as memory-mappable arrays, large sets as lists of files"
        " that were checked; each with a manifest. Running it twice changes nothing. digits-lt needs no preparation.",
    )
    parser.add_argument("dataset", choices=[*sorted(CLASSES), *SETS])
    parser.add_argument("--lists", type=user_path, help="of a large set: the folder with its official lists")
    parser.add_argument("--images", type=user_path, help="of a large set: the folder in which the lists' paths begin")
    parser.add_argument(
        "--imbalance",
        type=float,
        nargs="+",
        default=[],
        metavar="RHO",
        help=f"largest class over smallest class; several make several sets (default: {DEFAULT_IMBALANCE})",
    )
    parser.add_argument("--source", type=user_path, help="a folder or zip of class folders, instead of a download")
    parser.add_argument("--out", type=user_path, help="where prepared sets go (default: LTNOTES_DATA, or ./data)")
    parser.add_argument("--seed", type=int, default=0, help="which images are drawn (default: %(default)s)")
    parser.add_argument(
        "--validation",
        type=int,
        default=0,
        metavar="K",
        help="hold out K training images per class (default: none)",
    )
    options = parser.parse_args(arguments)
    large = options.dataset in SETS
    for name in ("imbalance", "source", "validation") if large else ("lists", "images"):
        if getattr(options, name):
            parser.error(f"--{name}: has no effect on {options.dataset}")
    for name in ("lists", "images") if large else ():
        if not getattr(options, name):
            parser.error(f"--{name}: {options.dataset} needs it; see --help")
    options.imbalance = options.imbalance or [float(DEFAULT_IMBALANCE)]
    if options.seed < 0:
        parser.error(f"--seed: got {options.seed}, allowed are 0 and above")
    if options.validation < 0:
        parser.error(f"--validation: got {options.validation}, allowed are 0 and above")
    return options


def read_pool(options: argparse.Namespace, root: Path) -> Pool:
    classes = CLASSES[options.dataset]
    if options.source is None:
        return read_torchvision_cifar(classes, root / "downloads")
    return read_class_folders(options.source, classes, CIFAR_SIZE)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        root = options.out or data_root()
        if options.dataset in SETS:
            folder, written, notes = prepare_listed(options.dataset, options.lists, options.images, root, options.seed)
            print("\n".join([*notes, f"{'prepared' if written else 'already prepared'}: {folder}"]))
            return 0
        for imbalance in options.imbalance:
            number("imbalance", imbalance, least=1)
        pool = read_pool(options, root)
        for imbalance in options.imbalance:
            request = writer.Request(
                name=f"{options.dataset}-lt",
                imbalance=imbalance,
                seed=options.seed,
                validation=options.validation,
                statistics=STATISTICS[options.dataset],
            )
            folder, written = writer.prepare(pool, request, root)
            print(f"{'prepared' if written else 'already prepared'}: {folder}")
    except (PrepareError, ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0
