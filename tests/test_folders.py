"""A folder of one's own images: every kind of file, every kind of split, and what is said of it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltnotes import data, folders, recipes, report, runs
from ltnotes.__main__ import main
from ltnotes.diagnose import diagnose, half_width, recommend
from ltnotes.finished import open_run

SIZE = 32


def picture(seed, size=(40, 40)):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)


def fill(folder, counts, first=0):
    """Class folders with this many pictures each."""
    seed = first
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(seed).save(folder / name / f"{i:03d}.png")
            seed += 1
    return folder


@pytest.fixture
def pets(tmp_path):
    return fill(tmp_path / "pets", {"cat": 20, "dog": 8, "eel": 2, "fox": 1})


@pytest.fixture
def load(tmp_path):
    return lambda folder, **options: data.from_folder(folder, SIZE, root=tmp_path / "data", **options)


def test_a_folder_is_a_data_set(pets, load):
    found = load(pets)
    assert (found.name, found.class_names, found.counts) == ("pets", ("cat", "dog", "eel", "fox"), [16, 6, 1, 1])
    assert np.bincount(found.test.labels, minlength=4).tolist() == [4, 2, 1, 0]
    assert found.train.images.shape == (24, SIZE, SIZE, 3) and found.imbalance == 16


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 30])
def test_every_class_of_two_and_more_has_training_and_test_images(tmp_path, load, n):
    found = load(fill(tmp_path / "x", {"a": n, "b": 10}), test_share=0.9)
    assert found.counts[0] >= 1 and (found.test.labels == 0).sum() >= 1


def test_the_seed_decides_the_split_and_the_order_of_files_does_not(pets, load):
    assert load(pets).fingerprint == load(pets).fingerprint
    assert load(pets).fingerprint != load(pets, seed=1).fingerprint


def test_it_is_read_again_only_when_a_file_changed(pets, load, monkeypatch):
    before = load(pets)
    scans = []
    scan = folders.scan
    monkeypatch.setattr(folders, "scan", lambda *arguments: scans.append(1) or scan(*arguments))
    assert load(pets).fingerprint == before.fingerprint and not scans
    picture(99).save(pets / "dog" / "new.png")
    assert sum(load(pets).counts) == sum(before.counts) + 1 and scans


def test_a_folder_that_is_split_stays_so(tmp_path, load):
    fill(tmp_path / "x" / "train", {"a": 5, "b": 3})
    fill(tmp_path / "x" / "Val", {"a": 2, "b": 4}, first=50)
    fill(tmp_path / "x" / "extra", {"a": 2})
    found = load(tmp_path / "x")
    assert found.counts == [5, 3] and np.bincount(found.test.labels).tolist() == [2, 4]
    assert diagnose(tmp_path / "x", SIZE, root=tmp_path / "d").ignored == ("extra/",)


def test_a_test_set_may_have_a_tail_and_lack_a_class(tmp_path, load):
    fill(tmp_path / "x" / "train", {"a": 9, "b": 4, "c": 2})
    fill(tmp_path / "x" / "test", {"a": 6, "b": 1}, first=50)
    run = runs.run(recipes.get("ce", str(prepared(load, tmp_path)), scale="tiny"), out_dir=tmp_path / "runs")
    assert np.isnan(run.per_class_accuracy[2]) and np.isfinite(run.metrics["balanced_accuracy"])


def prepared(load, tmp_path):
    load(tmp_path / "x")
    return tmp_path / "data" / f"x-{SIZE}px-seed0"


@pytest.mark.parametrize("classes", [2, 1000])
def test_two_and_a_thousand_classes(tmp_path, load, classes):
    fill(tmp_path / "x", {f"class {i}": 3 if i % 2 else 2 for i in range(classes)})
    assert load(tmp_path / "x").num_classes == classes
    assert len(list(diagnose(tmp_path / "x", SIZE, root=tmp_path / "d").lines())) < 60


# --- every kind of file ---


def save_16_bits(path):
    Image.fromarray((np.arange(1600, dtype=np.uint16) * 40).reshape(40, 40)).save(path)


FILES = {
    "grey": ("x.png", lambda path: picture(500).convert("L").save(path)),
    "CMYK": ("x.jpg", lambda path: picture(501).convert("CMYK").save(path)),
    "palette": ("x.png", lambda path: picture(502).convert("P").save(path)),
    "16-bit": ("x.png", save_16_bits),
    "animated": ("x.gif", lambda path: picture(503).save(path, save_all=True, append_images=[picture(504)])),
    "misnamed: JPEG in .png": ("x.png", lambda path: picture(505).save(path, format="JPEG")),
    "NOT USED, empty": ("x.png", lambda path: path.touch()),
    "NOT USED, unreadable: cannot identify image file 'cat/x.png'": ("x.png", lambda path: path.write_text("hello")),
    "NOT USED, huge: 13000x13000 pixels": ("x.png", lambda path: Image.new("1", (13_000, 13_000)).save(path)),
}


@pytest.mark.parametrize("note", FILES)
def test_what_is_unusual_is_said_and_what_can_be_read_is_used(pets, tmp_path, note):
    name, write = FILES[note]
    write(pets / "cat" / name)
    found = diagnose(pets, SIZE, root=tmp_path / "d")
    assert found.notes[note] == (f"cat/{name}",)
    used = sum(found.counts) + sum(found.tests)
    assert used == 31 + (not note.startswith("NOT USED"))
    assert any(line.startswith(f"1 x {note}") for line in found.lines())


def test_pixels_are_those_of_the_image_upright_and_on_white(tmp_path):
    red = Image.new("RGBA", (60, 40), (255, 0, 0, 255))
    red.paste((0, 0, 0, 0), (0, 0, 60, 20))  # its upper half is transparent
    fill(tmp_path / "x", {"a": 1, "b": 1})
    red.save(tmp_path / "x" / "a" / "z.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    red.convert("RGB").save(tmp_path / "x" / "b" / "z.jpg", exif=exif, quality=95)
    found = folders.scan(tmp_path / "x", SIZE)
    of = {file.path: pixels for file, pixels in zip(found.usable, found.pixels, strict=True)}
    assert (of["a/z.png"][:12] == 255).all() and (of["a/z.png"][-12:] == [255, 0, 0]).all()
    assert (of["b/z.jpg"][:12, :, 0] > 200).all() and of["b/z.jpg"][-12:].max() < 60


def test_copies_are_found_within_and_between_splits_and_classes(tmp_path):
    folder = tmp_path / "x"
    fill(folder / "train", {"a": 6, "b": 6})
    fill(folder / "test", {"a": 3, "b": 3}, first=50)
    shutil.copy(folder / "train" / "a" / "000.png", folder / "test" / "a" / "copy.png")
    shutil.copy(folder / "train" / "a" / "001.png", folder / "train" / "b" / "copy.png")
    Image.open(folder / "train" / "a" / "002.png").save(folder / "train" / "a" / "nearly.jpg", quality=80)
    found = diagnose(folder, SIZE, root=tmp_path / "d")
    assert [set(group) for group in found.leaks] == [{"train/a/000.png", "test/a/copy.png"}]
    assert [set(group) for group in found.contradictions] == [{"train/a/001.png", "train/b/copy.png"}]
    assert {"train/a/002.png", "train/a/nearly.jpg"} in [set(group) for group in found.copies]
    assert len(found.copies) == 3


def test_no_image_is_drawn_into_test_whose_copy_is_trained_on(tmp_path, load):
    folder = fill(tmp_path / "x", {"a": 10, "b": 10})
    for path in sorted((folder / "a").glob("*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    for seed in range(5):
        assert diagnose(folder, SIZE, seed=seed, root=tmp_path / "d").leaks == ()


def test_an_image_under_two_classes_is_never_tested_on(tmp_path):
    folder = fill(tmp_path / "x", {"a": 6, "b": 6})
    for path in sorted((folder / "a").glob("*.png"))[:4]:
        shutil.copy(path, folder / "b" / f"copy of {path.name}")
    for seed in range(5):
        found = diagnose(folder, SIZE, seed=seed, test_share=0.5, root=tmp_path / "d")
        assert len(found.contradictions) == 4 and found.leaks == ()
        assert found.tests == (2, 5)  # of a, four are of b as well


def test_files_that_are_no_images_are_left_out_and_named(pets, tmp_path):
    (pets / "cat" / "notes.txt").write_text("x")
    (pets / "cat" / ".hidden.png").write_text("x")
    (pets / "cat" / "more").mkdir()
    picture(77).save(pets / "cat" / "more" / "deep.png")
    found = diagnose(pets, SIZE, root=tmp_path / "d")
    assert found.ignored == ("cat/notes.txt",)
    assert found.counts[0] + found.tests[0] == 21


REFUSED = {
    "no folder": (lambda folder: shutil.rmtree(folder), "allowed is a folder of class folders"),
    "no images": (lambda folder: [p.unlink() for p in folder.rglob("*.png")], "whose class folders hold images"),
    "one class": (lambda folder: [shutil.rmtree(folder / n) for n in ("dog", "eel", "fox")], "two class folders"),
    "single images": (
        lambda folder: [p.unlink() for p in folder.rglob("*.png") if p.stem != "000"],
        "none to test with",
    ),
    "a class that is only tested": (
        lambda folder: [shutil.move(folder / n, folder / s / n) for n, s in (("cat", "train"), ("dog", "test"))],
        "has no training image of 'dog'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_used_is_said_in_one_line(pets, tmp_path, capsys, case):
    damage, words = REFUSED[case]
    for split in ("train", "test") if "only tested" in case else ():
        (pets / split).mkdir()
    damage(pets)
    assert main(["diagnose", str(pets), "--size", str(SIZE), "--out", str(tmp_path / "d")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: folder: ") and words in said.err
    assert not (tmp_path / "d").exists() or not list((tmp_path / "d").iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [("--size 3", "size: got 3"), ("--test-share 1", "test_share: got 1.0"), ("--seed -1", "seed: got -1")],
)
def test_options_out_of_range_are_named(pets, tmp_path, capsys, options, words):
    assert main(["diagnose", str(pets), "--out", str(tmp_path / "d"), *options.split()]) == 2
    assert words in capsys.readouterr().err


# --- what is said ---


def test_intervals_are_wilsons():
    assert half_width(100) == pytest.approx(0.096, abs=0.001)  # 40.4 to 59.6 %
    assert half_width(10) > half_width(100) > half_width(1000)


def test_a_balanced_folder_gets_plain_cross_entropy_and_a_long_tail_an_adjustment():
    assert recommend([10, 12, 11], [50] * 3)[0] == "ce"
    name, reason = recommend([500, 50, 5], [50, 50, 3])
    assert name == "logit-adjustment" and "5 images and fewer" in reason and "1 classes have under" in reason


def test_the_line_that_is_recommended_trains_and_its_report_is_written(pets, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LTNOTES_HOME", str(tmp_path))
    assert main(["diagnose", str(pets), "--size", str(SIZE), "--out", str(tmp_path / "d")]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    typed = re.sub(r"--scale frozen --seed 0 1 2", "--scale tiny", line.strip().removeprefix("ltnotes ")).split()
    assert main(typed) == 0
    folder = capsys.readouterr().out.strip().rpartition("; ")[2]
    assert main(["report", folder]) == 0
    page = Path(folder, "report.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == f"{folder}/report.html"
    for words in ("logit-adjustment on pets", "<td>fox</td>", "no test image", "What to try next", "one run"):
        assert words in page
    assert "http" not in page  # it stands alone
    assert open_run(tmp_path / folder).recipe.name == "logit-adjustment"


def test_a_class_name_is_no_markup(tmp_path, load, monkeypatch):
    fill(tmp_path / "x", {"<b>bold</b>": 5, "a & b": 4})
    run = runs.run(recipes.get("ce", str(prepared(load, tmp_path)), scale="tiny"), out_dir=tmp_path / "runs")
    page = report.report(run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;b&gt;bold" in page and "a &amp; b" in page


def test_tau_is_chosen_on_other_images_than_it_is_tested_on():
    labels = np.tile([0, 1], 200)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 2)) + np.eye(2)[labels] * 2 + np.log([1000, 10])
    tau, before, after = report.after_training(logits, labels, [1000, 10])
    assert 0.7 < tau < 1.3 and after > before + 0.1


def test_a_run_of_another_test_set_is_not_reported_on(pets, tmp_path, load):
    load(pets)
    where = tmp_path / "data" / f"pets-{SIZE}px-seed0"
    run = runs.run(recipes.get("ce", str(where), scale="tiny"), out_dir=tmp_path / "runs")
    picture(99).save(pets / "cat" / "new.png")
    for i in range(4):
        picture(100 + i).save(pets / "cat" / f"new{i}.png")
    load(pets)
    with pytest.raises(ValueError, match=r"imbalance: got|run: got 'one that was tested on other images'"):
        report.report(run, tmp_path / "r.html")
