"""Points of earlier chapters: read from the book's table where it has them, trained where it has not."""

import numpy as np
import pytest

from ltnotes import lite, papers, plots


@pytest.fixture
def table(tmp_path, monkeypatch):
    (tmp_path / "papers").mkdir()
    (tmp_path / "lite").mkdir()
    lines = ["recipe,largest,smallest,seeds", "ce,84.7 ± 0.3,16.6 ± 1.2,3", "kps,79.0,40.0,1"]
    (tmp_path / "lite" / "digits-lt.csv").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(papers, "folder", lambda: tmp_path / "papers")
    trained = []
    monkeypatch.setattr(lite.runs, "over_seeds", lambda recipe, seeds: trained.append(recipe.name) or [])
    return trained


def test_mean_and_deviation_of_the_table_are_what_the_figure_draws(table):
    largest, smallest = lite.points(["ce"], "digits-lt", 100, "lite", [0, 1, 2])["ce"]
    assert [np.mean(largest), plots.spread(largest)] == pytest.approx([0.847, 0.003])
    assert [np.mean(smallest), plots.spread(smallest)] == pytest.approx([0.166, 0.012])
    assert table == []
    plots.head_tail_plane({"ce": (largest, smallest)})


@pytest.mark.parametrize(
    ("names", "dataset", "imbalance", "scale", "seeds"),
    [
        (["gcl"], "digits-lt", 100, "lite", [0, 1, 2]),
        (["kps"], "digits-lt", 100, "lite", [0, 1, 2]),  # one seed in the table, three asked for
        (["ce"], "digits-lt", 100, "tiny", [0]),
        (["ce"], "digits-lt", 50, "lite", [0, 1, 2]),
        (["ce"], "digits-lt", 100, "lite", [1, 2, 3]),
        (["ce"], "cifar100-lt", 100, "lite", [0, 1, 2]),
    ],
)
def test_what_the_table_has_not_is_trained(table, names, dataset, imbalance, scale, seeds):
    assert lite.points(names, dataset, imbalance, scale, seeds) == {names[0]: []}
    assert table == names


def test_the_books_table_has_the_main_recipes():
    found = lite.points(["ce", "logit-adjustment", "crt"], "cifar10-lt", 100, "lite", [0, 1, 2])
    assert all(0 < np.mean(accuracies) < 1 for pair in found.values() for accuracies in pair)
