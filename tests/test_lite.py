"""Points of earlier chapters: read from the book's table where it has them, trained where it has not."""

import numpy as np
import pytest

from ltnotes import laboratory, lite, papers, plots, recipes, runs


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


# --- single runs ----------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    return runs.run(recipes.get("ce", "digits-lt", 10, "tiny", steps=2), 1, out_dir=tmp_path / "runs")


def test_a_kept_run_is_read_and_not_trained_again(run, table, tmp_path, monkeypatch):
    lite.keep(run)
    lite.keep(run)  # in the place of itself
    monkeypatch.setattr(lite.runs, "run", lambda *_: pytest.fail("trained"))
    (row,) = lite.measured([(run.recipe, 1)]).to_dict("records")
    assert row["balanced_accuracy"] == pytest.approx(run.metrics["balanced_accuracy"], abs=1e-5)
    assert row["smallest"] == pytest.approx(run.metrics["groups"]["smallest"], abs=1e-5)
    assert (row["recipe"], row["subset"], row["seed"], row["precision"]) == ("ce", 0, 1, run.precisions[0])


@pytest.mark.parametrize("change", [{"steps": 3}, {"imbalance": 11}, {"data_seed": 1}])
def test_only_the_very_same_training_is_taken_from_the_table(run, table, monkeypatch, change):
    lite.keep(run)
    asked = []
    monkeypatch.setattr(lite.runs, "run", lambda recipe, seed: asked.append((recipe, seed)) or run)
    other = recipes.get("ce", **{"dataset": "digits-lt", "imbalance": 10, "scale": "tiny", "steps": 2, **change})
    lite.measured([(other, 1), (run.recipe, 2)])
    assert asked == [(other, 1), (run.recipe, 2)]


def test_the_book_holds_all_single_runs_that_its_chapter_shows():
    known = {(row["recipe_hash"], row["seed"]) for row in lite._rows(lite.folder() / lite.RUNS)}
    assert {(recipe.hash, seed) for recipe, seed in lite.study()} <= known


@pytest.mark.parametrize("name", lite.LONG)
def test_long_trainings_are_those_of_full_scale_with_a_small_network(name, monkeypatch):
    full, small = (recipes.get(name, "cifar10-lt", 100, scale) for scale in ("full", "lite"))
    assert lite.long(name).stages == full.stages
    assert lite.long(name).backbone == small.backbone != full.backbone
    monkeypatch.setattr(lite.runs, "run", lambda *_: pytest.fail("trained"))
    scores = lite.long_scores(name)
    assert scores.shape == (10_000, 10) and (scores.max(1) == 0).all()


def test_a_long_training_that_the_book_has_not_is_made(run, table, monkeypatch):
    monkeypatch.setattr(lite.runs, "run", lambda recipe, seed: run)
    scores = lite.long_scores("fbl")
    np.testing.assert_array_equal(scores, run.logits - run.logits.max(1, keepdims=True))


def test_scores_come_from_the_laboratory_where_it_has_just_that_training(monkeypatch):
    monkeypatch.setattr(laboratory.runs, "run", lambda recipe, seed: pytest.fail("trained"))
    scores = laboratory.scores(recipes.get("kps", "cifar10-lt", 100, "lite"), 0)
    assert scores.shape == (10_000, 10) and (scores.max(1) == 0).all()
    with pytest.raises(pytest.fail.Exception, match="trained"):
        laboratory.scores(recipes.get("kps", "cifar10-lt", 100, "lite"), 1)
