"""The appendix *Paper against code*: complete rows, effects that the chapters' outputs hold, recipes that exist."""

import ast
import functools
import inspect
import json
import re
from pathlib import Path

import pytest

from ltnotes import recipes, stages
from ltnotes.catalogue import appendices
from ltnotes.data import LARGE
from ltnotes.data import NAMES as SMALL
from ltnotes.methods.common import part

BOOK = Path(__file__).parents[1] / "book"
ROWS = appendices.read("paper-against-code").to_dict("records")
MEASURED = [row for row in ROWS if row["chapter"]]
MOST_WORDS = {"what": 8, "paper": 45, "code": 45, "here": 30, "effect": 50}
# In backticks, and neither a recipe nor an option.
PRINTED = "PrintedSign OneDraw TurningArcFace SmoothingOverAll UnscaledStart UndividedClouds"
PLAIN = {"lite", "data.load"} | {f"differences.{name}" for name in PRINTED.split()}
NUMERAL = r"\d+(?:,\d{3})*(?:\.\d+)?"
# What names a setting: of the data, the stage of a training, a place in a paper. Its numbers need not be printed.
SETTING = r"`[^`]*`|CIFAR-\d+-LT|ratio \d+|stage \d|(?:Table|Eq\.) \d(?:\.\d+)?"


def called(row):
    return row["what"]


def in_backticks(text):
    return re.findall(r"`([^`]+)`", text)


@functools.cache
def printed_numbers(chapter):
    """By cell, the numerals of its outputs."""
    found = {}
    for cell in json.loads((BOOK / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]:
        texts = []
        for output in cell.get("outputs", []):
            texts.append("".join(output.get("text", "")))
            for kind, content in output.get("data", {}).items():
                if kind.startswith("text/"):
                    texts.append(re.sub(r"<style.*?</style>|<[^>]+>", " ", "".join(content), flags=re.S))
        found[cell["id"]] = set(re.findall(NUMERAL, "\n".join(texts)))
    return found


def check_option(text):
    """Raise if ``module.part(option=value)``, or a field of Stage or Recipe given so, does not exist."""
    call = ast.parse(text, mode="eval").body
    name, options = ast.unparse(call.func), {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    if name == "Stage":
        stages.Stage(epochs=1, **options)
    elif name == "Recipe":
        stages.Recipe("any", "cifar10-lt", (stages.Stage(epochs=1),), **options)
    else:
        made = part(name, **options)
        if "model" not in inspect.signature(made.resolve()).parameters:  # else only a training can build it
            made.build(class_counts=[50, 20, 5], counts=[50, 20, 5], loss=part("baselines.CrossEntropy"))


def test_rows_are_complete_and_in_the_order_of_the_papers():
    order = list(appendices.SOURCES)
    assert [order.index(row["source"]) for row in ROWS] == sorted(order.index(row["source"]) for row in ROWS)
    for row in ROWS:
        assert all(row[key] for key in ("what", "paper", "code", "here", "effect")), row
        assert bool(row["chapter"]) == bool(row["cell"])


def test_no_two_differences_have_one_heading():
    headings = [row["what"].lower() for row in ROWS]
    assert len(set(headings)) == len(headings)


@pytest.mark.parametrize("row", ROWS, ids=called)
def test_fields_are_short(row):
    for key, most in MOST_WORDS.items():
        assert len(row[key].split()) <= most, key


@pytest.mark.parametrize("row", ROWS, ids=called)
def test_what_has_no_cell_says_why(row):
    assert row["effect"].startswith("Not measured: ") != bool(row["chapter"])


@pytest.mark.parametrize("row", MEASURED, ids=called)
def test_numbers_are_those_that_the_cell_printed(row):
    assert appendices.place(row["chapter"], row["cell"]).heading
    printed = printed_numbers(row["chapter"])[row["cell"]]
    said = re.findall(NUMERAL, re.sub(SETTING, "", row["effect"]))
    assert said and set(said) <= printed, set(said) - printed


@pytest.mark.parametrize("row", ROWS, ids=called)
def test_recipes_and_options_exist(row):
    known = PLAIN | set(recipes.names()) | set(LARGE) | set(SMALL)
    for text in in_backticks(row["here"]) + in_backticks(row["effect"]):
        if "(" in text:
            check_option(text)
        else:
            assert text in known


def test_every_recipe_named_as_released_is_in_the_appendix():
    mentioned = {name for row in ROWS for name in in_backticks(row["here"])}
    assert {name for name in recipes.names() if name.endswith("as-released")} <= mentioned


def test_the_page_is_what_the_rows_say():
    page = (BOOK / "paper-against-code.md").read_text(encoding="utf-8")
    assert page == appendices.paper_against_code(), "run python -m ltnotes.catalogue.appendices"
