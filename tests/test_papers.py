"""The papers' tables: complete, well-formed, and the cells that were typed again from the papers."""

import re
from decimal import Decimal

import pytest

from ltnotes import papers

# Rows of the table times columns, less the cells that hold a dash.
SIZES = {
    ("BLT", "1"): 11 * 4,
    ("BLT", "2"): 7 * 8,
    ("BLT-S", "1"): 5 * 8,
    ("BLT-S", "2"): 5 * 4,
    ("BLT-S", "3"): 6 * 8,
    ("BLT-S", "4"): 4 * 4,
    ("BLT-S", "5"): 4 * 4,
    ("BLT-S", "6"): 4 * 2,
    ("FSA", "1"): 9 * 10 - 8,  # SLA at 2 of 10 settings
    ("FSA", "2"): 9 * 10 - 8,
    ("FSA", "3"): 8 * 8,
    ("FSA", "4"): 9 * 2,
    ("thesis", "1.1"): 7,
    # CIFAR: classes, then 5 rows at 6 ratios without validation images; the rest without test images of iNaturalist
    ("thesis", "2.1"): 2 + 5 * 6 - 6 + 7 * 3 - 1,
    ("thesis", "3.1"): 8 * 4,
    ("thesis", "3.2"): 12 * 4 - 2 - 2,  # equalised loss, LA
    ("thesis", "3.3"): 12 * 3 - 8,  # focal, LDAM, LA and BBN one each; CB-Focal and meta-learning two
    ("thesis", "3.4"): 3 * 4,
    ("thesis", "3.5"): 2 * 6,
    ("thesis", "3.6"): 2 * 6,
    ("thesis", "4.1"): 8 * 5,  # its column for both CIFARs counts twice
    ("thesis", "4.2"): 5 * 4 - 2,  # LA
    ("thesis", "4.3"): 5 * 3 - 2,  # Places-LT of LDAM and LA
    ("thesis", "4.4"): 5 * 2,
    ("thesis", "4.5"): 4 * 10,
    ("thesis", "4.6"): 4 * 8,
    ("thesis", "4.7"): 2 * 4 + 2 * 3 - 1,  # one cell that our copy of the text lost
    ("thesis", "5.1"): 11 * 5,  # as 4.1
    ("thesis", "5.2"): 9 * 6 - 2 - 2,  # De-confound-TDE and contrastive learning at ratio 200
    ("thesis", "5.3"): 10 * 3 - 1 - 2 - 1,  # LDAM, OLTR, logit adjustment
    ("thesis", "5.4"): 4 * 2,
    ("thesis", "5.5"): 4,
    ("thesis", "5.6"): 4,
    ("thesis", "5.7"): 9 * 4,
    ("BLT", "text of 4.1"): 2,
    ("thesis", "text of 2.2.3"): 1,
    ("thesis", "text of 2.2.4"): 1,
}

DATASETS = {"", "cifar10-lt", "cifar100-lt", "imagenet-lt", "places-lt", "inat2017", "inat2018"}
RESNETS = {f"resnet{depth}" for depth in (10, 18, 32, 34, 50, 101, 152)}
BACKBONES = {"", "resnext50", "densenet121", "efficientnet-b0"} | RESNETS
WORDS = {
    "loss",
    "curriculum",
    "cloud size",
    "backbone",
    "weight decay",
    "learning-rate warm-up",
    "learning-rate schedule",
    "learning-rate decay epochs",
    "total training time",
}

C10, C100 = "cifar10-lt", "cifar100-lt"
CELLS = [  # source, table, method, dataset, imbalance, backbone, metric, what is printed, of an error: what it leaves
    ("BLT", "1", "Plain model", "imagenet-lt", None, "resnet10", "accuracy many", 52.4),
    ("BLT", "1", "OLTR (Repr.)", "imagenet-lt", None, "resnet10", "accuracy medium", 32.5),
    ("BLT", "1", "BLT", "imagenet-lt", None, "resnet10", "accuracy few", 25.5),
    ("BLT", "2", "Plain model + sampling", "places-lt", None, "resnet10", "accuracy overall", 22.4),
    ("BLT", "2", "CB Focal Loss", "inat2018", None, "resnet34", "accuracy many", 14.0),
    ("BLT", "2", "BLT", "inat2018", None, "resnet34", "accuracy few", 49.9),
    ("BLT-S", "1", "BLT, base learning rate, batch size 32", "imagenet-lt", None, "resnet10", "accuracy few", 27.0),
    ("BLT-S", "1", "BLT, smaller learning rate, batch size 16", "imagenet-lt", None, "resnet10", "accuracy many", 44.1),
    (
        *("BLT-S", "2", "BLT, smaller learning rate, p = 0.5, batch size 32", "imagenet-lt", None, "resnet10"),
        *("accuracy medium", 34.7),
    ),
    (
        *("BLT-S", "2", "BLT, smaller learning rate, p = 0.5, batch size 256", "imagenet-lt", None, "resnet10"),
        *("accuracy overall", 28.6),
    ),
    ("BLT-S", "3", "Plain + sampling", "imagenet-lt", None, "resnet152", "accuracy overall", 35.0),
    ("BLT-S", "3", "BLT", "imagenet-lt", None, "efficientnet-b0", "accuracy many", 33.1),
    ("BLT-S", "3", "BLT", "imagenet-lt", None, "densenet121", "accuracy few", 28.9),
    ("BLT-S", "4", "BLT with softmax", "imagenet-lt", None, "resnet10", "accuracy few", 25.9),
    ("BLT-S", "4", "BLT with uniform sampling", "imagenet-lt", None, "resnet10", "accuracy many", 54.6),
    ("BLT-S", "5", "Plain model + sampling", "places-lt", None, "resnet10", "accuracy overall", 19.3),
    ("BLT-S", "5", "Neither", "places-lt", None, "resnet10", "accuracy few", 8.6),
    ("BLT-S", "6", "Plain + sampling", "imagenet-lt", None, "resnet10", "seconds per epoch", 126),
    ("BLT-S", "6", "BLT", "imagenet-lt", None, "resnet10", "seconds per batch", 0.852),
    ("BLT-S", "6", "BLT", "imagenet-lt", None, "resnet10", "total training time", "7h 3min"),
    ("FSA", "1", "CB β=0.9999", C10, 50, "resnet18", "accuracy", 80.4),
    ("FSA", "1", "SLA", C10, 100, "resnet34", "accuracy", 80.24),
    ("FSA", "1", "FSA", C10, 200, "resnet18", "accuracy", 77.06),
    ("FSA", "2", "Baseline", C100, 200, "resnet34", "accuracy", 37.5),
    ("FSA", "2", "FL γ=2.0", C100, 10, "resnet18", "accuracy", 63.37),
    ("FSA", "2", "SLA", C100, 10, "resnet34", "accuracy", 59.89),
    ("FSA", "3", "Plain Model", "places-lt", None, "resnet152", "accuracy few", 0.36),
    ("FSA", "3", "FSA", "imagenet-lt", None, "resnet10", "accuracy many", 47.3),
    ("FSA", "3", "FSA + FL", "places-lt", None, "resnet152", "accuracy overall", 36.0),
    ("FSA", "4", "CB", "inat2017", None, "resnet101", "accuracy", 60.94),
    ("FSA", "4", "FSA", "inat2018", None, "resnet152", "accuracy", 69.08),
    ("thesis", "1.1", "Weighted softmax loss", "", None, "", "loss", r"-\frac{1}{n_y} \log p_y"),
    ("thesis", "1.1", "Effective number", "", None, "", "loss", r"\frac{1 - \gamma_{EN}}{1 + \gamma_{EN}}"),
    ("thesis", "2.1", "", C10, 200, "", "training images", 11203),
    ("thesis", "2.1", "", C100, 200, "", "images of the smallest class", 2),
    ("thesis", "2.1", "", C100, None, "", "classes", 100),
    ("thesis", "2.1", "", "places-lt", None, "", "training images", 62500),
    ("thesis", "2.1", "", "inat2018", None, "", "validation images", 24426),
    ("thesis", "3.1", "KPS", "imagenet-lt", None, "", "backbone", "ResNet-50, ResNeXt-50"),
    ("thesis", "3.1", "KPS", "inat2018", None, "", "learning rate", 0.2),
    ("thesis", "3.2", "CE loss", C10, 100, "resnet32", "accuracy", 100 - 29.64),
    ("thesis", "3.2", "Meta-learning (focal loss)", C100, 50, "resnet32", "accuracy", 100 - 49.92),
    ("thesis", "3.2", "KPS loss", C10, 50, "resnet32", "accuracy", 100 - 15.41),
    ("thesis", "3.3", "CE loss", "imagenet-lt", None, "resnext50", "accuracy", 100 - 53.35),
    ("thesis", "3.3", "Meta-learning (CE loss)", "inat2018", None, "resnet50", "accuracy", 100 - 32.45),
    ("thesis", "3.4", "KPS w/o GA and DRW", C10, 50, "resnet32", "accuracy", 100 - 16.40),
    ("thesis", "3.4", "KPS-DRW", C100, 100, "resnet32", "accuracy", 100 - 58.95),
    ("thesis", "3.5", "KPS with mixup", C10, 100, "resnet32", "accuracy", 100 - 17.84),
    ("thesis", "3.5", "KPS with mixup", "inat2018", None, "resnet50", "accuracy", 100 - 28.12),
    ("thesis", "3.6", "MiSLAS", C100, 100, "resnet32", "accuracy", 100 - 52.62),
    ("thesis", "3.6", "MiSLAS with KPS", "imagenet-lt", None, "resnet50", "accuracy", 100 - 47.74),
    ("thesis", "4.1", "FBL", C100, None, "", "batch size", 128),
    ("thesis", "4.1", "FBL", "places-lt", None, "", "learning-rate decay epochs", "{60,80}"),
    ("thesis", "4.2", "CE loss (baseline)", C100, 50, "resnet32", "accuracy", 44.20),
    ("thesis", "4.2", "FBL", C10, 100, "resnet32", "accuracy", 82.46),
    ("thesis", "4.3", "LA", "imagenet-lt", None, "resnet50", "accuracy", 50.44),
    ("thesis", "4.3", "FBL", "places-lt", None, "resnet152", "accuracy", 38.66),
    ("thesis", "4.4", "Linear decrease", C10, 100, "resnet32", "accuracy", 75.97),
    ("thesis", "4.4", "Parabolic increase", "", None, "", "curriculum", r"(\frac{t}{T})^2"),
    ("thesis", "4.5", "CE loss", C10, 100, "resnet32", "accuracy of class 9", 44.6),
    ("thesis", "4.5", "FBL", C10, 50, "resnet32", "accuracy of class 3", 73.9),
    ("thesis", "4.6", "CE loss", C100, 50, "resnet32", "accuracy of class 79", 10.0),
    ("thesis", "4.6", "FBL", C100, 100, "resnet32", "accuracy of class 69", 60.0),
    ("thesis", "4.7", "Contrastive learning", C10, 50, "resnet32", "accuracy", 85.36),
    ("thesis", "4.7", "FBL", C100, 50, "resnet32", "accuracy", 50.65),
    ("thesis", "4.7", "DisAlign", "inat2018", None, "resnet50", "accuracy", 70.06),
    ("thesis", "5.1", "GCL, representation", "imagenet-lt", None, "", "batch size", 256),
    ("thesis", "5.1", "GCL, classifier", C10, None, "", "learning-rate decay", 0.2),
    ("thesis", "5.2", "GCL", C10, 200, "resnet32", "accuracy", 79.03),
    ("thesis", "5.2", "MisLAS", C100, 50, "resnet32", "accuracy", 52.62),
    ("thesis", "5.3", "OLTR", "places-lt", None, "resnet152", "accuracy", 35.9),
    ("thesis", "5.3", "GCL", "inat2018", None, "resnet50", "accuracy", 72.01),
    ("thesis", "5.4", "Cosine", C10, 100, "resnet32", "accuracy", 79.21),
    ("thesis", "5.4", "Logarithm difference", "", None, "", "cloud size", r"\log n_{max} - \log n_j"),
    ("thesis", "5.5", "Instance balance + cRT", C10, 100, "resnet32", "accuracy", 80.41),
    ("thesis", "5.5", "Effective number + cRT", C10, 100, "resnet32", "accuracy", 82.47),
    ("thesis", "5.6", "w/o RT", C10, 100, "resnet32", "accuracy", 80.52),
    ("thesis", "5.6", "CBEN + LWS", C10, 100, "resnet32", "accuracy", 82.25),
    ("thesis", "5.7", "CE loss (baseline)", "imagenet-lt", None, "resnet50", "accuracy few", 11.28),
    ("thesis", "5.7", "GCL", "imagenet-lt", None, "resnet50", "accuracy medium", 52.62),
]
KEY = ["source", "table", "method", "dataset", "imbalance", "backbone", "metric"]
HEADER = "source,table,method,dataset,imbalance,backbone,metric,value,note"


@pytest.fixture(scope="module")
def cells():
    return papers.load()


def test_every_table_has_every_cell(cells):
    assert cells.groupby(["source", "table"]).size().to_dict() == SIZES


@pytest.mark.parametrize(("source", "table", "method", "dataset", "imbalance", "backbone", "metric", "printed"), CELLS)
def test_cells_typed_again_from_the_papers(source, table, method, dataset, imbalance, backbone, metric, printed):
    found = papers.load(source, table)
    for column, wanted in zip(KEY[2:], (method, dataset, imbalance, backbone, metric), strict=True):
        found = found[found[column].isna() if wanted is None else found[column] == wanted]
    (row,) = found.itertuples()
    if isinstance(printed, str):
        assert printed in row.text
    else:
        assert row.value == pytest.approx(printed, abs=1e-9)


def test_two_cells_of_every_table_were_typed_again():
    typed = [cell[:2] for cell in CELLS]
    assert all(typed.count(name) >= 2 for name in SIZES if not name[1].startswith("text"))


def test_no_cell_is_there_twice(cells):
    assert not cells[cells.duplicated(KEY, keep=False)].to_dict("records")


def test_rows_are_well_formed(cells):
    assert set(cells.dataset) <= DATASETS
    assert set(cells.backbone) == BACKBONES
    assert set(cells.imbalance.dropna()) == {10, 20, 50, 100, 200}
    assert set(cells.dataset[cells.imbalance.notna()]) == {C10, C100}
    assert (cells.metric != "").all() and (cells.text != "").all()
    assert ((cells.method != "") | (cells.metric.isin(cells.metric[cells.table == "2.1"]))).all()
    texts = cells.select_dtypes(exclude="number")
    assert (texts == texts.apply(lambda column: column.str.strip())).all(axis=None)


def test_numbers_are_numbers(cells):
    assert set(cells.metric[cells.value.isna()]) == WORDS
    assert cells.value[cells.metric.isin(WORDS)].isna().all()
    accuracies = cells[cells.metric.str.startswith("accuracy")].value
    assert accuracies.between(0, 100, inclusive="neither").all()


def test_an_accuracy_is_what_the_printed_error_leaves(cells):
    printed = cells.note.str.extract(r"^printed as the error ([\d.]+)(?:;|$)")[0]
    assert set(cells.table[printed.notna()]) == {"3.2", "3.3", "3.4", "3.5", "3.6"}
    assert printed[cells.table.isin(["3.2", "3.3", "3.4", "3.5", "3.6"])].notna().all()
    pairs = zip(cells.text[printed.notna()], printed.dropna(), strict=True)
    assert all(Decimal(text) + Decimal(error) == 100 for text, error in pairs)


def test_notes_quote_other_tables_of_the_thesis_rightly(cells):
    """A note such as "Table 4.2 has 71.07" names a number that stands there."""
    thesis = cells[cells.source == "thesis"]
    quotes = [quote for note in thesis.note for quote in re.findall(r"Table (\d\.\d) has ([\d.]+)", note)]
    assert len(quotes) > 40
    for table, value in quotes:
        assert float(value) in set(thesis.value[thesis.table == table])


@pytest.mark.parametrize("imbalance", [100, 50])
@pytest.mark.parametrize("method", ["CE loss", "FBL"])
def test_the_classes_of_table_4_5_average_to_table_4_2(method, imbalance):
    classes, means = (
        found[found.method.str.startswith(method) & (found.imbalance == imbalance) & (found.dataset == C10)].value
        for found in (papers.load("thesis", "4.5"), papers.load("thesis", "4.2"))
    )
    assert len(classes) == 10
    assert classes.mean() == pytest.approx(means.item(), abs=0.0051)


def test_files_have_one_header_and_no_other_file_lies_beside_them():
    files = sorted(papers.folder().glob("*.csv"))
    assert {path.name for path in files} == set(papers.FILES)
    assert {path.read_text(encoding="utf-8").partition("\n")[0] for path in files} == {HEADER}


def test_a_source_and_a_table_can_be_chosen(cells):
    assert list(cells.source.unique()) == ["BLT", "BLT-S", "FSA", "thesis"]
    assert set(papers.load("FSA").source) == {"FSA"}
    assert set(papers.load(table="4.5").source) == {"thesis"}
    one = papers.load("BLT-S", "6")
    assert list(one.index) == list(range(8))
    assert list(one.columns) == [*KEY, "value", "text", "note"]
    assert one.value.dtype == one.imbalance.dtype == float


def test_unknown_source_and_table_are_named_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"source: got 'OLTR', allowed is BLT, BLT-S, FSA, thesis"):
        papers.load("OLTR")
    with pytest.raises(ValueError, match=r"table: got '3\.2', allowed is 1, 2, 3, 4$"):
        papers.load("FSA", "3.2")
    with pytest.raises(ValueError, match=r"table: got '9\.9', allowed is 1, .*5\.7"):
        papers.load(table="9.9")


def test_the_book_below_home_is_read_first(tmp_path):
    assert papers.folder() != tmp_path / "book" / "papers"  # LTNOTES_HOME, which has no book yet
    own = tmp_path / "book" / "papers"
    own.mkdir(parents=True)
    assert papers.folder() == own


def test_a_missing_book_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(papers, "__file__", str(tmp_path / "site-packages" / "ltnotes" / "papers.py"))
    with pytest.raises(FileNotFoundError, match="LTNOTES_HOME"):
        papers.folder()
