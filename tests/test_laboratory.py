"""The logit laboratory's data: packing, the recipe of least regret, and numbers that agree with the book's metrics."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from ltnotes import laboratory, metrics, recipes
from ltnotes.cli import parse
from ltnotes.laboratory_figures import KINDS, STATIC, Setting, class_shares, halves, measure, threshold

BOOK = Path(__file__).parents[1] / "book"
COUNTS = [40, 10, 20]  # class ids are no ranks
PAGE = 'before\n<div class="lab-static">\nold\n</div>\nafter\n'


@pytest.fixture
def scores():
    """Scores of 24 images of each class, in mixed order, and their classes."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], 24))
    return rng.normal(0, 2, (72, 3)) + 2 * np.eye(3)[labels], labels


@dataclass
class MadeUpRun:
    """As much of a finished run as the laboratory reads."""

    logits: np.ndarray
    per_class_accuracy: list
    counts: list
    seed: int = 0
    precisions: tuple = ("float32",)

    def __post_init__(self):
        self.recipe = SimpleNamespace(dataset="cifar10-lt", imbalance=4.0, validation=0)
        self.record = {"recipe_hash": "r", "code": "c", "data": {"class_names": ["a", "b", "c"]}}


def run_of(logits, labels, counts=COUNTS):
    hit = logits.argmax(1) == labels
    return MadeUpRun(logits, [hit[labels == c].mean() for c in range(3)], list(counts))


def table(**balanced):
    rows = {name: {"balanced accuracy": value, "seeds": 3} for name, value in balanced.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


REGRET = laboratory.least_regret({"A": table(ce="50.0 ± 0.1")})


# --- packing -------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2), (3, 3), (50, 10), (7, 9)])
def test_packing_is_exact_to_half_a_step(shape):
    logits = np.random.default_rng(1).normal(0, 4, shape)
    found = laboratory.unpack(laboratory.pack(logits), shape[1])[: shape[0]]
    assert np.abs(found - (logits - logits.max(1, keepdims=True))).max() <= 0.005 + 1e-9
    assert (found.max(1) == 0).all()


def test_every_step_comes_back_and_more_is_cut():
    distances = np.arange(4096) * 0.01
    logits = np.stack([np.zeros(4096), -distances], 1)
    assert np.allclose(laboratory.unpack(laboratory.pack(logits), 2)[:, 1], -distances, atol=1e-9)
    far = np.array([[100.0, 59.04, -1e6]])
    assert laboratory.unpack(laboratory.pack(far), 3).tolist()[0] == pytest.approx([0, -40.95, -40.95])
    assert laboratory.cut(far) == pytest.approx(2 / 3)
    assert laboratory.cut(np.array([[0, -40.95]])) == 0


def test_ten_thousand_images_are_two_hundred_kilobytes():
    assert len(laboratory.pack(np.zeros((10_000, 10)))) == 200_000


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 3)), np.array([[0.0, np.nan]]), np.array([[0.0, np.inf]])])
def test_what_is_no_score_is_not_packed(bad):
    with pytest.raises(ValueError, match=r"^logits: got"):
        laboratory.pack(bad)


# --- the data file ---------------------------------------------------------------


def test_the_data_file_says_what_it_holds_and_reads_back(scores, tmp_path):
    logits, labels = scores
    made = laboratory.contents({"ce": run_of(logits, labels), "gcl": run_of(-logits, labels)}, labels, REGRET)
    laboratory.write(made, tmp_path)
    found = laboratory.read(tmp_path / laboratory.DATA_FILE)
    assert found == json.loads(json.dumps(made))
    assert [entry["id"] for entry in found["methods"]] == ["ce", "gcl"]
    first = {key: value for key, value in found["methods"][0].items() if key not in ("logits", "color")}
    assert first == {
        **{"id": "ce", "name": "cross-entropy", "seed": 0, "recipe": "r", "code": "c", "precision": "float32"},
        **{"cut": 0.0, "changed": 0.0},
    }
    assert found["classes"] == ["a", "b", "c"] and found["counts"] == COUNTS and found["scale"] == "lite"
    assert found["groups"] == {"largest": [0], "middle": [2], "smallest": [1]}
    assert (laboratory.labels_of(found) == labels).all()
    assert np.allclose(laboratory.logits_of(found, "gcl"), -logits + logits.min(1, keepdims=True), atol=0.00501)


def test_the_data_file_is_loaded_where_a_page_asks_and_nowhere_else():
    """Jupyter Book puts every .js of _static into every page, and this file is megabytes."""
    assert not laboratory.DATA_FILE.endswith(".js")
    assert f'<script defer src="_static/{laboratory.DATA_FILE}"></script>' in (BOOK / "laboratory.md").read_text()


def test_labels_of_another_test_set_and_runs_of_other_counts_are_refused(scores):
    logits, labels = scores
    run = run_of(logits, labels)
    with pytest.raises(ValueError, match="the test set that ce was evaluated on"):
        laboratory.contents({"ce": run}, np.roll(labels, 1), REGRET)
    with pytest.raises(ValueError, match="labels: got"):
        laboratory.contents({"ce": run}, labels[:-1], REGRET)
    with pytest.raises(ValueError, match="counts of gcl"):
        laboratory.contents({"ce": run, "gcl": run_of(logits, labels, [9, 9, 9])}, labels, REGRET)
    with pytest.raises(ValueError, match=r"^found: got"):
        laboratory.contents({}, labels, REGRET)


# --- least regret ------------------------------------------------------------------


def test_least_regret_is_the_smallest_largest_loss():
    first = table(ce="40.0 ± 0.1", safe="58.0 ± 9.9", bold="60.0", only_here="61.0")
    second = table(ce="25.0", safe="26.0", bold="22.5", other="27.5")
    found = laboratory.least_regret({"A": first, "B": second})  # ce loses 21, safe 3, bold 5
    assert found["recipe"] == found["name"] == "safe"
    assert found["largest"] == 3.0 and found["losses"] == {"A": 3.0, "B": 1.5}
    assert found["best"] == {"A": "only_here", "B": "other"}
    assert found["compared"] == 3 and found["seeds"] == {"A": 3, "B": 3}


def test_of_equal_largest_losses_the_smaller_mean_counts():
    first, second = table(a="50.0", b="50.0", c="52.0"), table(a="30.0", b="31.0", c="10.0")
    assert laboratory.least_regret({"A": first, "B": second})["recipe"] == "b"
    with pytest.raises(ValueError, match=r"^tables: got"):
        laboratory.least_regret({"A": table(a="1"), "B": table(b="1")})


def test_the_books_tables_have_a_recipe_of_least_regret_with_commands_that_parse():
    tables = {
        name: pd.read_csv(BOOK / "lite" / f"{name}.csv", index_col="recipe") for name in ("cifar10-lt", "cifar100-lt")
    }
    found = laboratory.least_regret(tables)
    first = {name: own["balanced accuracy"].astype(str).str.split().str[0] for name, own in tables.items()}
    balanced = pd.DataFrame(first).astype(float)
    losses = (balanced.max() - balanced).max(axis=1)  # NaN where a table has no such recipe
    both = losses[balanced.notna().all(axis=1)]
    assert found["recipe"] == both.idxmin() and found["largest"] == pytest.approx(both.min())
    diagnose, run = laboratory.commands(found["recipe"])
    assert parse(diagnose.split()[1:]).folder == Path("my-images")
    options = parse(run.split()[1:])
    assert options.recipe == found["recipe"] and options.seed == [0, 1, 2]
    recipes.get(options.recipe, "cifar10-lt", 100, options.scale)


def test_what_frozen_features_cannot_train_is_trained_from_scratch():
    assert "--scale lite" in laboratory.commands("blt")[1]
    assert "--scale frozen" in laboratory.commands("ce")[1]


# --- numbers -----------------------------------------------------------------------


def test_at_a_uniform_test_set_the_numbers_are_those_of_the_metrics(scores):
    logits, labels = scores
    found, expected = measure(logits, labels, COUNTS), metrics.summarize(softmax(logits, 1), labels, COUNTS)
    assert found.recalls.tolist() == pytest.approx(expected["per_class_accuracy"])
    assert found.balanced == pytest.approx(expected["balanced_accuracy"])
    assert found.accuracy == pytest.approx(expected["accuracy"])
    assert found.ece == pytest.approx(expected["ece"])
    assert found.groups == pytest.approx({name: expected["groups"][name] for name in found.groups})


def test_tau_and_temperature_change_the_scores(scores):
    logits, labels = scores
    pi = np.array(COUNTS) / sum(COUNTS)
    found = measure(logits, labels, COUNTS, Setting(tau=0.7, temperature=1.6))
    expected = metrics.summarize(softmax(logits / 1.6 - 0.7 * np.log(pi), 1), labels, COUNTS)
    assert found.ece == pytest.approx(expected["ece"])
    assert found.recalls.tolist() == pytest.approx(expected["per_class_accuracy"])


def test_a_prior_weighs_as_repeated_images_do(scores):
    logits, labels = scores
    for exponent, times in ((1, [4, 1, 2]), (-1, [1, 4, 2])):
        repeated = np.repeat(np.arange(len(labels)), np.array(times)[labels])
        expected = metrics.summarize(softmax(logits[repeated], 1), labels[repeated], COUNTS)
        found = measure(logits, labels, COUNTS, Setting(prior=exponent))
        assert found.accuracy == pytest.approx(expected["accuracy"])
        assert found.ece == pytest.approx(expected["ece"])
        assert found.balanced == pytest.approx(expected["balanced_accuracy"])


def test_class_shares_run_from_reversed_to_those_of_training():
    assert class_shares(COUNTS, 1).tolist() == pytest.approx([4 / 7, 1 / 7, 2 / 7])
    assert class_shares(COUNTS, 0).tolist() == pytest.approx([1 / 3] * 3)
    assert class_shares(COUNTS, -1).tolist() == pytest.approx([1 / 7, 4 / 7, 2 / 7])
    half = class_shares(COUNTS, 0.5)
    assert half[0] / half[1] == pytest.approx(2)


def test_halves_are_apart_and_have_every_class_alike(scores):
    labels = scores[1]
    calibrating, shown = halves(labels, COUNTS, few=False)
    assert sorted([*calibrating, *shown]) == list(range(72))
    assert np.bincount(labels[calibrating]).tolist() == np.bincount(labels[shown]).tolist() == [12, 12, 12]
    assert calibrating[0] == np.flatnonzero(labels == 0)[0] and shown[0] == np.flatnonzero(labels == 0)[1]
    few, again = halves(labels, COUNTS, few=True)
    assert np.bincount(labels[few]).tolist() == [12, 3, 6] and (again == shown).all()
    assert set(few) <= set(calibrating)


@pytest.mark.parametrize(
    ("n", "alpha", "rank"), [(9, 0.1, 9), (8, 0.1, None), (99, 0.01, 99), (20, 0.3, 15), (1, 0.5, 1)]
)
def test_the_threshold_is_the_score_of_a_rank(n, alpha, rank):
    values = np.random.default_rng(n).permutation(n).astype(float)
    found = threshold(values, np.ones(n), alpha)
    assert found == (
        math.inf if rank is None else rank - 1
    )  # ceil((n + 1)(1 - alpha))-th smallest, and infinite beyond n


def test_a_weighted_threshold_is_that_of_repeated_scores():
    values, times = np.array([3.0, 1.0, 2.0, 4.0]), np.array([1, 3, 2, 4])
    # k / n is 4 / 4 at alpha = 0.1 with an infinite level, 3 / 4 at 0.4, 2 / 4 at 0.6
    assert threshold(values, times, 0.1) == math.inf
    assert threshold(values, times, 0.4) == np.sort(np.repeat(values, times))[math.ceil(0.75 * 10) - 1]
    assert threshold(values, times, 0.6) == np.sort(np.repeat(values, times))[math.ceil(0.5 * 10) - 1]


@pytest.mark.parametrize(
    "setting", [Setting(), Setting(tau=1, alpha=0.2), Setting(alpha=0.2, few=True), Setting(alpha=0.05)]
)
def test_prediction_sets_are_those_of_plain_loops(scores, setting):
    logits, labels = scores
    pi = np.array(COUNTS) / sum(COUNTS)
    p = softmax(logits - setting.tau * np.log(pi), 1)
    calibrating, shown = halves(labels, COUNTS, setting.few)
    found = measure(logits, labels, COUNTS, setting).sets
    for kind in KINDS:
        strange = -p / pi if kind == "prevalence-adjusted" else 1 - p
        if setting.few and kind != "class-wise":
            continue  # weighted; the next test has it
        sizes, covered = {c: [] for c in range(3)}, {c: [] for c in range(3)}
        for i in shown:
            inside = []
            for y in range(3):
                own = [j for j in calibrating if kind != "class-wise" or labels[j] == y]
                known = sorted(strange[j, labels[j]] for j in own)
                k = math.ceil((len(own) + 1) * (1 - setting.alpha) - 1e-9)
                if k > len(own) or strange[i, y] <= known[k - 1] + 1e-12:
                    inside.append(y)
            sizes[labels[i]].append(len(inside))
            covered[labels[i]].append(labels[i] in inside)
        assert found[kind].sizes.tolist() == pytest.approx([np.mean(sizes[c]) for c in range(3)])
        assert found[kind].coverages.tolist() == pytest.approx([np.mean(covered[c]) for c in range(3)])
        assert found[kind].size == pytest.approx(np.mean([np.mean(sizes[c]) for c in range(3)]))


def test_a_class_with_too_few_calibration_images_is_in_every_set(scores):
    logits, labels = scores
    few = measure(logits, labels, COUNTS, Setting(alpha=0.2, few=True)).sets  # class 1 has 3 images and needs 4
    assert [few[kind].infinite for kind in KINDS] == [0, 1, 0]
    assert few["class-wise"].coverages[1] == 1 and (few["class-wise"].sizes >= 1).all()
    none = measure(logits, labels, COUNTS, Setting(alpha=0.01)).sets  # 36 images, and 99 are needed
    assert all(none[kind].infinite == 3 and none[kind].size == 3 and none[kind].coverage == 1 for kind in KINDS)


def test_calibration_images_weigh_as_test_images_do(scores):
    """Marginal sets keep their promise under the test set's own frequencies."""
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], 4000)
    logits = rng.normal(0, 1.5, (12_000, 3)) + 2 * np.eye(3)[labels] + np.log(COUNTS)
    for prior in (-1, 0, 1):
        found = measure(logits, labels, COUNTS, Setting(prior=prior)).sets
        assert found["marginal"].coverage == pytest.approx(0.9, abs=0.02)
        assert found["prevalence-adjusted"].coverage == pytest.approx(0.9, abs=0.02)
        assert found["class-wise"].coverages.tolist() == pytest.approx([0.9] * 3, abs=0.025)


def test_a_class_with_one_test_image_is_refused():
    with pytest.raises(ValueError, match=r"^labels: got"):
        measure(np.zeros((5, 3)), np.array([0, 0, 1, 1, 2]), COUNTS)


# --- the page ----------------------------------------------------------------------


def test_a_book_gets_data_figures_and_their_words(scores, tmp_path):
    logits, labels = scores
    made = laboratory.contents({"ce": run_of(logits, labels), "gcl": run_of(logits, labels)}, labels, REGRET)
    kept = []
    for _ in range(2):
        (tmp_path / "laboratory.md").write_text(PAGE, encoding="utf-8")
        laboratory.publish(made, tmp_path)
        kept.append({path.name: path.read_bytes() for path in tmp_path.rglob("*.*")})
    assert kept[0] == kept[1]  # the same data make the same files
    assert {f"{name}.svg" for name in STATIC} | {laboratory.DATA_FILE, "laboratory.md"} == set(kept[0])
    page = kept[0]["laboratory.md"].decode()
    assert page.startswith("before\n<div") and page.endswith("</div>\nafter\n") and "old" not in page
    assert page.count("<img ") == 3 and page.count('alt="Five charts.') == 3
    balanced = measure(laboratory.logits_of(made, "ce"), labels, COUNTS).balanced
    assert f"balanced accuracy {100 * balanced:.1f}\u00a0%" in page
    with pytest.raises(ValueError, match=r"^page: got"):
        laboratory.fill("no figures", "block")


def test_the_books_own_page_says_what_its_data_say():
    made = laboratory.read(BOOK / "_static" / laboratory.DATA_FILE)
    page = (BOOK / "laboratory.md").read_text(encoding="utf-8")
    assert laboratory.fill(page, laboratory.static_block(made)) == page, "run python -m ltnotes.laboratory"
    assert [entry["id"] for entry in made["methods"]] == list(laboratory.METHODS)
    assert all(entry["changed"] < 0.005 and entry["cut"] < 0.05 for entry in made["methods"])
    assert len(laboratory.labels_of(made)) == 10_000
    assert (BOOK / "_static" / laboratory.DATA_FILE).stat().st_size < 3_000_000
    assert sum((BOOK / "_static" / "laboratory" / f"{name}.svg").stat().st_size for name in STATIC) < 600_000


def test_the_scripts_of_the_laboratory_are_short():
    scripts = sorted((BOOK / "_static").glob("laboratory*.js"))
    assert len(scripts) == 4
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 350 for path in scripts)
