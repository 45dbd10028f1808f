"""The logit laboratory in a browser: it shows what Python computes from the same data, by keyboard, on a phone, shared
by its address, and without JavaScript."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from test_html import FIND_OVERFLOW, watch

from ltnotes import laboratory
from ltnotes.cli import parse
from ltnotes.counts import imbalance_ratio, rank_groups, shot_groups
from ltnotes.diagnose import half_width
from ltnotes.laboratory_figures import KINDS, STATIC, Results, Setting, measure

PAUSE = 3_000  # milliseconds in which words and address have followed
SETTINGS = {
    "method=ce": ("ce", Setting()),
    "method=gcl&tau=1&prior=-1": ("gcl", Setting(tau=1, prior=-1)),
    "method=kps&tau=0.35&prior=0.4&T=2&alpha=0.03&few=1": (
        "kps",
        Setting(tau=0.35, prior=0.4, temperature=2, alpha=0.03, few=True),
    ),
    "method=blt&tau=2&prior=-0.75&T=0.25&alpha=0.3": ("blt", Setting(tau=2, prior=-0.75, temperature=0.25, alpha=0.3)),
}


@pytest.fixture(scope="module")
def made(html: Path) -> dict:
    return laboratory.read(html / "_static" / laboratory.DATA_FILE)


@pytest.fixture
def page(browser):
    page = browser.new_context().new_page()
    page.set_default_timeout(20_000)
    yield page
    page.context.close()


def opened(page, html: Path, state: str = ""):
    """The laboratory from the disk, as a reader without a server has it."""
    page.goto((html / "laboratory.html").as_uri() + (f"#{state}" if state else ""), wait_until="load")
    page.wait_for_selector("#laboratory .lab-bar")
    return page


def values(page, selector: str) -> list[float]:
    return page.eval_on_selector_all(selector, "marks => marks.map(mark => parseFloat(mark.dataset.value))")


def cell(page, key: str) -> float:
    return values(page, f'#laboratory td[data-key="{key}"]')[0]


def expected(made: dict, method: str, setting: Setting) -> Results:
    return measure(laboratory.logits_of(made, method), laboratory.labels_of(made), made["counts"], setting)


def check(page, made: dict, found: Results) -> None:
    """The page shows these numbers. A threshold may fall between equal scores, which costs one image of a class."""
    order = sorted(range(len(made["counts"])), key=lambda c: -made["counts"][c])
    assert values(page, ".lab-bar") == pytest.approx(found.recalls[order], abs=1e-9)
    numbers = {"accuracy": found.accuracy, "balanced": found.balanced, "ece": found.ece, **found.groups}
    assert {key: cell(page, key) for key in numbers} == pytest.approx(numbers, abs=1e-6)
    for kind in KINDS:
        sets = found.sets[kind]
        assert values(page, f'#lab-figure-sizes [data-kind="{kind}"]') == pytest.approx(sets.sizes[order], abs=0.02)
        shown = values(page, f'#lab-figure-coverages [data-kind="{kind}"]')
        assert shown == pytest.approx(sets.coverages[order], abs=0.005)
        assert cell(page, f"size {kind}") == pytest.approx(sets.size, abs=0.01)
        assert cell(page, f"coverage {kind}") == pytest.approx(sets.coverage, abs=0.003)


@pytest.mark.parametrize("state", SETTINGS)
def test_the_page_shows_what_python_computes(html: Path, page, made: dict, state: str) -> None:
    method, setting = SETTINGS[state]
    found = expected(made, method, setting)
    check(opened(page, html, state), made, found)
    words = page.locator("#laboratory [role=status]").inner_text()
    assert said(words, "balanced accuracy") == pytest.approx(
        100 * found.balanced, abs=0.0501
    )  # rounded, ties either way
    assert said(words, "ECE") == pytest.approx(100 * found.ece, abs=0.0501)
    infinite = found.sets["class-wise"].infinite
    assert (f"{infinite} class" in words and "infinite" in words) == (infinite > 0)
    label = page.locator("#lab-figure-plane svg[role=img]").get_attribute("aria-label")
    (largest,) = re.findall(r"([\d.]+)\u00a0% on the largest", label)
    assert float(largest) == pytest.approx(100 * found.groups["largest"], abs=0.0501)
    assert page.locator("#laboratory svg[role=img][aria-label]").count() == 5


def said(words: str, what: str) -> float:
    """The percentage that follows a name."""
    (number,) = re.findall(rf"{what} ([\d.]+)\u00a0%", words)
    return float(number)


def test_small_markers_are_the_methods_as_trained_and_the_line_is_tau(html: Path, page, made: dict) -> None:
    opened(page, html, "method=ce&tau=0.6")
    figure = page.locator("#lab-figure-plane svg[role=img]")
    assert figure.locator("title").count() == len(made["methods"]) + 1

    def place(x: str, y: str) -> list[float]:
        """Accuracies at a point of the frame, which is 302 wide and 304 high, from (42, 314) upwards."""
        return [(float(x) - 42) / 302, (314 - float(y)) / 304]

    def at(tau: float) -> list[float]:
        groups = expected(made, "ce", Setting(tau=tau)).groups
        return pytest.approx([groups["largest"], groups["smallest"]], abs=0.001)

    small, moved = figure.locator("circle").first, figure.locator("circle.lab-point")
    for circle, tau in ((small, 0.0), (moved, 0.6)):
        assert place(circle.get_attribute("cx"), circle.get_attribute("cy")) == at(tau)
    ends = re.findall(r"([\d.]+),([\d.]+)", figure.locator("path").first.get_attribute("d"))
    assert len(ends) == 16
    for end, tau in ((ends[0], -1.0), (ends[5], 0.0), (ends[10], 1.0), (ends[-1], 2.0)):
        assert place(*end) == at(tau)


def test_keys_move_a_slider_and_figures_words_and_address_follow(html: Path, page, made: dict) -> None:
    opened(page, html)
    before = page.inner_html("#lab-figure-recalls svg")
    words = page.locator("#laboratory [role=status]")
    said = words.inner_text()
    page.get_by_label("Adjustment τ").focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('#lab-tau-value').textContent === '1.00'")
    assert page.inner_html("#lab-figure-recalls svg") != before
    check(page, made, expected(made, "ce", Setting(tau=1)))
    page.wait_for_function("said => document.querySelector('.lab-words').textContent !== said", arg=said, timeout=PAUSE)
    page.wait_for_url(re.compile(r"#method=ce&tau=1$"), timeout=PAUSE)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "lab-prior"
    page.keyboard.press("Home")
    page.wait_for_function("() => document.querySelector('#lab-prior-value').textContent.startsWith('backward')")
    assert page.get_attribute("#lab-prior", "aria-valuetext") == "backward, ratio 100"
    check(page, made, expected(made, "ce", Setting(tau=1, prior=-1)))


def test_a_second_method_is_shown_beside_the_first_and_reset_takes_all_back(html: Path, page, made: dict) -> None:
    opened(page, html)
    page.get_by_label("Compared with").select_option("gcl")
    page.wait_for_selector('#lab-accuracies th:text-is("GCL")')
    second = expected(made, "gcl", Setting())
    assert values(page, '#lab-accuracies td[data-key="ece"]')[1] == pytest.approx(second.ece, abs=1e-6)
    assert page.locator("#lab-figure-recalls svg[role=img] circle").count() == len(made["counts"])
    page.get_by_label("Calibration images").select_option(index=1)
    page.get_by_label("Error rate α").fill("0.05")
    page.get_by_label("Temperature T").fill("1")
    page.wait_for_function("() => document.querySelector('#lab-temperature-value').textContent === '2.00'")
    page.wait_for_url(re.compile("#method=ce&with=gcl&T=2&alpha=0.05&few=1$"), timeout=PAUSE)
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("() => !location.hash", timeout=PAUSE)
    check(page, made, expected(made, "ce", Setting()))
    assert page.locator("#lab-figure-recalls svg[role=img] circle").count() == 0


def test_an_address_restores_a_state_and_nonsense_in_it_is_ignored(html: Path, page, made: dict) -> None:
    opened(page, html, "method=kps&with=ce&tau=1.5&T=0.5&few=1")
    at = {name: page.input_value(f"#lab-{name}") for name in ("method", "with", "tau", "temperature", "few", "prior")}
    assert at == {"method": "kps", "with": "ce", "tau": "1.5", "temperature": "-1", "few": "1", "prior": "0"}
    page.evaluate("location.hash = 'method=gcl&tau=0.5'")
    page.wait_for_function("() => document.querySelector('#lab-method').value === 'gcl'")
    check(page, made, expected(made, "gcl", Setting(tau=0.5)))
    page.goto("about:blank")
    opened(page, html, "method=none&with=<b>&tau=99&prior=x&T=0&alpha=-1&few=7")
    check(page, made, expected(made, "ce", Setting()))
    page.evaluate("location.hash = 'try'")  # a link within the page
    page.wait_for_timeout(200)
    check(page, made, expected(made, "ce", Setting()))


def test_a_phone_has_no_sideways_scroll(html: Path, browser) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = opened(context.new_page(), html, "method=class-balanced-sampling&with=logit-adjustment&few=1&alpha=0.01")
    page.fill("#lab-counts", "a rather long name of a class of things: 5000\nanother: 20\nthird: 5")
    page.wait_for_selector(".lab-report table")
    faults = page.evaluate(FIND_OVERFLOW)
    narrow = page.evaluate(
        "() => [...document.querySelectorAll('#laboratory input, #laboratory select')].map(e => e.offsetWidth)"
    )
    sizes = page.evaluate(  # of the figures' text on the screen
        """() => [...document.querySelectorAll('#laboratory .lab-figure > svg')].map(svg =>
        parseFloat(getComputedStyle(svg).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)"""
    )
    context.close()
    assert not faults, "\n".join(faults)
    assert min(narrow) > 200
    assert len(sizes) == 5 and min(sizes) > 10


def test_without_javascript_three_figures_are_there(html: Path, browser, made: dict) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((html / "laboratory.html").as_uri(), wait_until="load")
    figures = page.locator(".lab-static figure img")
    assert figures.count() == len(STATIC)
    for i, setting in enumerate(STATIC.values()):
        picture = figures.nth(i)
        assert picture.is_visible() and picture.bounding_box()["height"] > 500
        assert len(picture.get_attribute("alt")) > 100
        balanced = expected(made, "ce", setting).balanced
        assert (
            f"balanced accuracy {100 * balanced:.1f}\u00a0%"
            in page.locator(".lab-static figcaption").nth(i).inner_text()
        )
    assert not page.locator("#laboratory").is_visible() and not page.locator("#laboratory-counts").is_visible()
    page.context.close()


def test_the_script_hides_the_static_figures_and_no_request_leaves_the_book(html: Path, site: str, page) -> None:
    noted = watch(page, site)
    page.goto(f"{site}/laboratory.html#method=gcl&tau=1", wait_until="networkidle")
    page.wait_for_selector("#laboratory .lab-bar")
    assert page.locator(".lab-static").count() == 1 and not page.locator(".lab-static").is_visible()
    page.get_by_label("Method").select_option("ce")
    page.fill("#lab-counts", "10 20 30")
    page.wait_for_selector(".lab-report table")
    page.get_by_role("button", name="Copy").click()
    page.wait_for_timeout(500)
    assert not noted, "\n".join(noted)


def test_no_other_page_loads_the_data(html: Path) -> None:
    found = [path.name for path in html.glob("*.html") if f'src="_static/{laboratory.DATA_FILE}' in path.read_text()]
    assert found == ["laboratory.html"]


# --- class counts ----------------------------------------------------------------


def told(page, text: str) -> str:
    """What the page says of pasted counts."""
    page.evaluate("() => document.querySelector('.lab-said').textContent = ''")
    page.fill("#lab-counts", text)
    page.wait_for_function("() => document.querySelector('.lab-said').textContent !== ''")
    return page.locator(".lab-said").inner_text()


def group_sizes(page) -> list[int]:
    rows = page.locator(".lab-report table").first.locator("tbody tr")
    return [int(rows.nth(i).locator("td").first.inner_text()) for i in range(rows.count())]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("1200 800 90 14", [1200, 800, 90, 14]),
        ("cat: 1200\ndog: 800\nfox2: 90\nlynx: 14\n", [1200, 800, 90, 14]),
        ("{'a': 101, \"b\": 100, 'c': 21, 'd': 20, 'e': 1}", [101, 100, 21, 20, 1]),
        ("[20, 100, 21,\n5000;7|7-7/7]", [20, 100, 21, 5000, 7, 7, 7, 7]),
        (
            " ".join(str(int(5000 * 0.01 ** (j / 14))) for j in range(15)),
            [int(5000 * 0.01 ** (j / 14)) for j in range(15)],
        ),
    ],
)
def test_class_counts_give_ratio_groups_and_intervals(html: Path, page, text: str, counts: list[int]) -> None:
    opened(page, html)
    said = told(page, text)
    ratio = float(f"{imbalance_ratio(counts):.3g}")
    assert said == f"{len(counts)} classes, {sum(counts):,} images, imbalance ratio {ratio:g}."
    groups = {**shot_groups(counts), **rank_groups(counts)}
    assert group_sizes(page) == [len(groups[name]) for name in (*shot_groups(counts), *rank_groups(counts))]
    rows = page.locator(".lab-report table").nth(1).locator("tbody tr")
    tests = np.floor(0.1 * max(counts) + 0.5)
    assert f"± {100 * half_width(tests):.0f} points" in rows.nth(0).inner_text()
    if min(counts) < 5:
        assert "cannot be measured" in rows.nth(2).inner_text()


def test_the_recipe_of_least_regret_comes_with_commands_that_parse(html: Path, page, made: dict) -> None:
    opened(page, html)
    told(page, "500 50 5")
    report = page.locator(".lab-report").inner_text()
    regret = made["regret"]
    assert f"Least regret of {regret['compared']} recipes: {regret['name']} ({regret['recipe']})" in report
    for title, loss in regret["losses"].items():
        assert title in report and (loss == 0 or f"{loss:.1f} points" in report)
    lines = page.locator(".lab-report pre").inner_text().splitlines()
    assert [parse(line.split()[1:]).command for line in lines] == ["diagnose", "run"]
    assert parse(lines[1].split()[1:]).recipe == regret["recipe"]
    assert "10-your-own-data.html" in page.locator(".lab-report").inner_html()
    told(page, "100 99 98")
    assert "nearly balanced" in page.locator(".lab-report").inner_text()
    assert parse(page.locator(".lab-report pre").inner_text().splitlines()[1].split()[1:]).recipe == "ce"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no numbers here", "There is no number in it"),
        ("100, -5, 20", "-5 is negative"),
        ("cat: 10\ndog: -3", "-3 for dog is negative"),
        ("500", "There is one class only"),
        ("10 0 5", "has no image"),
        ("10 2.5", "2.5 is not a whole number"),
        ("5,000 300", "5000, not 5,000"),
        ("a: 1,200\nb: 30", "5000 rather than 5,000"),
        ("1e3 20", "“1e3” is no number"),
        ("cat: many\ndog: 3\nfox: 4", "There is no count in the line “cat: many”"),
    ],
)
def test_bad_counts_get_a_clear_message(html: Path, page, text: str, message: str) -> None:
    opened(page, html)
    told(page, "30 20 10")
    said = told(page, text)
    assert message in said
    assert "lab-bad" in page.locator(".lab-said").get_attribute("class")
    assert page.locator(".lab-report").inner_text() == ""


def test_what_is_pasted_is_text_and_no_markup(html: Path, page) -> None:
    opened(page, html)
    told(page, "<img src=x onerror=document.title='run'>: 50\n<b>bold</b>: 4")
    assert page.locator(".lab-report img, .lab-report td b, .lab-report th b").count() == 0
    assert page.title() != "run"
