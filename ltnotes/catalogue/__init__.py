"""Every training of the papers by name: which parts, on which protocol, chapter by chapter.

A row is a name, a line on what it trains, and a function from a
:class:`~ltnotes.catalogue.builders.Setting` to the fields of the recipe. Names that end
in ``as-released`` train what the authors' code does where it departs from the paper: each
known difference alone, and all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass

from ltnotes.catalogue.baselines import BALANCERS, BASELINES, HEADS
from ltnotes.catalogue.builders import Build, Row
from ltnotes.catalogue.methods import BLT, FBL, FUSION, GCL, KPS

CHAPTERS: dict[str, tuple[str, dict[str, Row]]] = {
    "Baselines": ("gcl", BASELINES),
    "Chapter 2, balancers": ("gcl", BALANCERS),
    "Chapter 3, squashing cosine": ("gcl", HEADS),
    "Chapter 4, BLT": ("blt", BLT),
    "Chapter 5, feature fusion": ("fsa", FUSION),
    "Chapter 6, KPS": ("kps", KPS),
    "Chapter 7, FBL": ("fbl", FBL),
    "Chapter 8, GCL": ("gcl", GCL),
}


@dataclass(frozen=True)
class Entry:
    """A named training: a line on it, whose training it follows, and how it is built."""

    summary: str
    protocol: str
    build: Build


RECIPES = {
    name: Entry(summary, protocol, build)
    for protocol, rows in CHAPTERS.values()
    for name, (summary, build) in rows.items()
}
