"""Every table and figure: the rows are those that the papers print, and every link leads to a counterpart."""

import functools
import re

import nbformat
import pytest

from ltnotes.catalogue import appendices
from ltnotes.papers import folder

# Counted from the captions of the papers; those of the thesis by its lists of tables and figures, too.
PRINTED = {
    ("BLT", "table"): 2,
    ("BLT", "figure"): 5,
    ("BLT-S", "table"): 6,
    ("BLT-S", "figure"): 3,  # 1, 3 and 4: no caption and no sentence has a Fig. 2
    ("FSA", "table"): 4,
    ("FSA", "figure"): 12,  # 10 to 12 are behind the references
    ("thesis 1", "table"): 1,
    ("thesis 1", "figure"): 2,
    ("thesis 2", "table"): 1,
    ("thesis 2", "figure"): 2,
    ("thesis 3", "table"): 6,
    ("thesis 3", "figure"): 8,
    ("thesis 4", "table"): 7,
    ("thesis 4", "figure"): 3,
    ("thesis 5", "table"): 7,
    ("thesis 5", "figure"): 4,
}
ROWS = appendices.read("tables-and-figures")
MADE = ROWS[ROWS["chapter"] != ""]


def printed_numbers(source, kind):
    if (source, kind) == ("BLT-S", "figure"):
        return ["1", "3", "4"]
    before = source.removeprefix("thesis ") + "." if source.startswith("thesis") else ""
    return [f"{before}{i + 1}" for i in range(PRINTED[source, kind])]


@functools.cache
def notebook(chapter):
    return nbformat.read(folder().parent / f"{chapter}.ipynb", as_version=4)


def test_papers_have_34_tables_and_39_figures():
    totals = {kind: sum(n for (_, of), n in PRINTED.items() if of == kind) for kind in ("table", "figure")}
    assert totals == {"table": 34, "figure": 39}
    assert ROWS["kind"].value_counts().to_dict() == totals


def test_rows_of_a_source_are_its_numbers_in_order():
    found = {key: rows["number"].tolist() for key, rows in ROWS.groupby(["source", "kind"], sort=False)}
    assert found == {key: printed_numbers(*key) for key in PRINTED}
    assert list(found) == list(PRINTED)  # sources in the order of the page, tables before figures


def test_no_table_or_figure_comes_twice():
    assert not ROWS.duplicated(["source", "kind", "number"]).any()
    assert not ROWS.duplicated(["source", "kind", "shows"]).any()


def test_a_source_is_one_that_the_page_names():
    assert set(ROWS["source"]) <= set(appendices.SOURCES)


def test_fields_fit_into_a_table_of_the_page():
    assert list(ROWS.columns) == ["source", "kind", "number", "shows", "chapter", "cell", "note"]
    for column in ROWS:
        assert not ROWS[column].str.contains(r"[|\n]|^\s|\s$").any(), column
    assert ROWS["shows"].str.split().str.len().between(1, 12).all()


def test_every_row_has_a_cell_or_says_why_not():
    assert ((ROWS["chapter"] == "") == (ROWS["cell"] == "")).all()
    assert (ROWS["note"] != "").all()  # beside a cell it says what differs
    assert (MADE["note"].str.split().str.len() <= 20).all()


@pytest.mark.parametrize("row", [row for _, row in MADE.iterrows()], ids="{0[source]} {0[kind]} {0[number]}".format)
def test_a_link_leads_to_a_cell_with_an_output(row):
    cells = {cell.id: cell for cell in notebook(row["chapter"]).cells}
    cell = cells[row["cell"]]
    assert cell.cell_type == "code"
    kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
    assert kinds & ({"image/png"} if row["kind"] == "figure" else {"text/html", "image/png"})


@pytest.mark.parametrize("chapter", sorted(set(MADE["chapter"])))
def test_an_anchor_is_one_heading_of_the_chapter(chapter):
    text = "\n".join(cell.source for cell in notebook(chapter).cells if cell.cell_type == "markdown")
    headings = [heading for _, heading in re.findall(r"^(#{1,3}) (.+)$", text, flags=re.M)]  # deeper ones get no anchor
    anchors = [appendices.Place(chapter, "", heading).anchor for heading in headings]
    for cell in MADE.loc[MADE["chapter"] == chapter, "cell"]:
        place = appendices.place(chapter, cell)
        assert place.heading in headings
        assert anchors.count(place.anchor) == 1  # a second one would be called anchor-1
        assert f"({chapter}.ipynb#{place.anchor})" in place.link


def test_the_page_is_what_its_rows_give():
    assert (folder().parent / "tables-and-figures.md").read_text(encoding="utf-8") == appendices.tables_and_figures()
