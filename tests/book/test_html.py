"""The built book in a browser: it draws everything, and asks for nothing outside itself."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("*.ipynb"))
SCREENSHOTS = ROOT / "build" / "screenshots"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
REPO = os.environ.get("REPO", "https://github.com/long-tail-notes/ltnotes")
HUB = os.environ.get("HUB", "http://localhost:8000")

# what a page would load by itself; links that a reader follows may lead outside
LOADED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "input": ("src",),
}
LOADING_RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "dns-prefetch", "preconnect"}
CSS_ADDRESS = re.compile(r"""(?:url\(\s*|@import\s+)['"]?((?:https?:)?//[^'")\s]+)""")

# what no page should show: TeX or MyST that stayed as it was written, errors of MathJax, formulas that are cut off,
# images without a picture
FIND_FAULTS = r"""() => {
  const faults = [];
  const note = (fault, text) => faults.push(fault + ': ' + (text ?? '').trim().slice(0, 100));
  document.querySelectorAll('mjx-merror, [data-mjx-error]').forEach(e => note('formula error', e.textContent));
  document.querySelectorAll('.math').forEach(e => {
    if (!e.querySelector('mjx-container')) note('formula not drawn', e.textContent);
  });
  document.querySelectorAll('mjx-container').forEach(e => {
    if (!e.querySelector('mjx-math')?.children.length) note('formula drawn empty', e.parentElement.outerHTML);
  });
  if (innerWidth > 1000) document.querySelectorAll('mjx-container[display="true"]').forEach(e => {
    if (e.scrollWidth > e.clientWidth + 1) note('formula wider than the page', e.textContent);
  });
  document.querySelectorAll('img').forEach(e => {
    const name = e.getAttribute('src'), shown = e.closest('article') !== null;
    if (!e.complete || e.naturalWidth === 0) note('broken image', name);
    if (!e.hasAttribute('alt') || (shown && !e.alt.trim())) note('image without alt text', name);
    if (shown && /^_images\//.test(e.alt)) note('a path as alt text', name);
  });
  const raw = /\$[^$\n]*\$|\\\(|\\\[|\\begin\{|\{(numref|eq|cite|ref|doc|term)(:\w+)?\}`/;
  const walker = document.createTreeWalker(document.querySelector('article') ?? document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent;
    if (walker.currentNode.parentElement.closest('pre, code, script, style, mjx-container')) continue;
    if (raw.test(text)) note('raw markup', text);
  }
  return faults;
}"""

# elements that stick out of the screen and that no scrolling parent holds
FIND_OVERFLOW = r"""() => {
  const width = window.innerWidth, wide = document.documentElement.scrollWidth;
  const held = e => {
    for (let p = e.parentElement; p && !p.matches('article'); p = p.parentElement)
      if (['auto', 'scroll'].includes(getComputedStyle(p).overflowX)) return true;
    return false;
  };
  const sticksOut = e => {
    const box = e.getBoundingClientRect();
    return box.width > 1 && box.height > 1 && box.right > width + 1 && !e.closest('mjx-assistive-mml') && !held(e);
  };
  const found = [...document.querySelectorAll('article *')].filter(sticksOut).slice(0, 3);
  const faults = found.map(e => `wider than the screen: <${e.tagName.toLowerCase()} class="${e.className}">`);
  if (wide > width) faults.push(`the page is ${wide} px wide on a screen of ${width}`);
  return faults;
}"""


class Loads(HTMLParser):
    """Addresses that a page loads, and the text of its styles."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        for name in LOADED.get(tag, ()):
            self.addresses += [part.split()[0] for part in values.get(name, "").split(",") if part.strip()]
        if tag == "link" and LOADING_RELATIONS & set(values.get("rel", "").split()):
            self.addresses.append(values.get("href", ""))
        self.addresses += CSS_ADDRESS.findall(values.get("style", ""))
        if tag == "a":
            self.links.append(values.get("href", ""))


def parse(page: Path) -> Loads:
    found = Loads()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def is_outside(address: str) -> bool:
    return bool(urlsplit(address).netloc)


def pages(html: Path) -> list[str]:
    """All pages; what lies in ``_static`` are templates that the theme left there."""
    found = (path.relative_to(html).as_posix() for path in html.rglob("*.html"))
    return sorted(name for name in found if not name.startswith("_static/"))


# --- without a browser -------------------------------------------------------


def test_first_page_and_every_chapter_are_built(html: Path) -> None:
    for name in ("index", "notation", "search", *CHAPTERS):
        assert (html / f"{name}.html").is_file(), f"{name}.html was not built"


def test_pages_load_nothing_from_outside(html: Path) -> None:
    outside = [
        f"{page}: {address}" for page in pages(html) for address in parse(html / page).addresses if is_outside(address)
    ]
    assert not outside, "\n".join(outside)


def test_styles_load_nothing_from_outside(html: Path) -> None:
    found = [
        f"{path.relative_to(html)}: {address}"
        for path in html.rglob("*.css")
        for address in CSS_ADDRESS.findall(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_what_pages_load_and_link_to_exists(html: Path) -> None:
    missing = []
    for page in pages(html):
        found = parse(html / page)
        for address in found.addresses + found.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            if not (html / page).parent.joinpath(parts.path).exists():
                missing.append(f"{page}: {address}")
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_offers_download_and_launch(html: Path, chapter: str) -> None:
    links = parse(html / f"{chapter}.html").links
    assert f"_sources/{chapter}.ipynb" in links, "no download as .ipynb"
    colab = f"https://colab.research.google.com/github/{REPO.split('github.com/')[-1]}/blob/main/book/{chapter}.ipynb"
    assert colab in links, f"no launch on Colab: {colab}"
    assert any(link.startswith("https://mybinder.org/v2/gh/") and chapter in link for link in links), (
        "no launch on Binder"
    )
    assert any(link.startswith(f"{HUB}/hub/user-redirect/git-pull?") and chapter in link for link in links), (
        "no launch on JupyterHub"
    )


# --- in a browser ------------------------------------------------------------


@pytest.mark.parametrize("screen", WIDTHS)
def test_every_page_draws_whole_and_asks_nothing_outside(html: Path, site: str, browser, screen: str) -> None:
    width, height = WIDTHS[screen]
    context = browser.new_context(viewport={"width": width, "height": height})
    faults: list[str] = []
    formulas = 0
    for name in pages(html):
        page = context.new_page()
        noted = watch(page, site)
        page.goto(f"{site}/{name}", wait_until="networkidle")
        formulas += wait_for_formulas(page)
        noted += page.evaluate(FIND_FAULTS)
        if screen == "phone":
            noted += page.evaluate(FIND_OVERFLOW)
        shot = SCREENSHOTS / screen / f"{name.removesuffix('.html')}.png"
        shot.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(shot), full_page=True)
        page.close()
        faults += [f"{name}: {fault}" for fault in noted]
    context.close()
    assert not faults, "\n".join(dict.fromkeys(faults))
    assert formulas, "not one formula was drawn in the whole book"


def watch(page, site: str) -> list[str]:
    """A list that fills with what goes wrong while the page loads."""
    noted: list[str] = []

    def on_request(request) -> None:
        if not request.url.startswith((site, "data:", "blob:")):
            noted.append(f"request outside the book: {request.url[:120]}")

    page.on("request", on_request)
    page.on("requestfailed", lambda request: noted.append(f"failed request: {request.url[:120]}"))
    page.on("response", lambda r: noted.append(f"{r.status}: {r.url[:120]}") if r.status >= 400 else None)
    page.on("pageerror", lambda error: noted.append(f"script error: {error}"))
    page.on("console", lambda m: noted.append(f"console: {m.text}") if m.type == "error" else None)
    return noted


def wait_for_formulas(page) -> int:
    """Wait until MathJax is done, where the page has it; the number of formulas drawn."""
    if page.query_selector("script[src*='mathjax']") is None:
        return 0
    page.wait_for_function("() => window.MathJax?.startup?.promise", timeout=30_000)
    page.evaluate("() => MathJax.startup.promise")
    return page.locator("mjx-container").count()


@pytest.mark.parametrize("screen", WIDTHS)
def test_search_finds_a_word_of_the_book(html: Path, site: str, browser, screen: str) -> None:
    width, height = WIDTHS[screen]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    noted = watch(page, site)
    page.goto(f"{site}/search.html", wait_until="networkidle")
    field = page.locator("main input[type=search]:visible, main input[name=q]:visible").first
    field.fill("imbalance")
    field.press("Enter")
    page.wait_for_selector("#search-results li a", timeout=15_000)
    targets = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.getAttribute('href'))")
    context.close()
    assert any(name in target for target in targets for name in (*CHAPTERS, "notation", "index")), targets
    assert not noted, "\n".join(noted)


def test_keyboard_search_opens_from_a_chapter(html: Path, site: str, browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{site}/index.html", wait_until="networkidle")
    page.keyboard.press("Control+k")
    page.wait_for_selector(".search-button__search-container input:focus", timeout=5_000)
    page.keyboard.type("imbalance")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a", timeout=15_000)
    context.close()


# --- questions before their results --------------------------------------------


def first_question(page, html: Path):
    """The first question of chapter 2 from the disk, as a reader without a server has it."""
    page.goto((html / "02-balancers.html").as_uri(), wait_until="load")
    return page.locator("div.question").first


def result_of(page):
    return page.locator("div.cell:has(div.question) table.dataframe").first


def test_a_result_is_hidden_until_a_key_chooses_an_answer(html: Path, browser) -> None:
    page = browser.new_context().new_page()
    question = first_question(page, html)
    assert question.locator("details[open]").count() == 0
    assert not result_of(page).is_visible()
    assert not page.locator("#see-02-five").locator("xpath=..").is_visible()
    wrong = question.locator("details.wrong").first
    wrong.locator("summary").focus()
    page.keyboard.press("Enter")
    assert wrong.get_by_text("No.").is_visible()
    question.get_by_role("status").get_by_text("Not this one").wait_for()  # said once the browser has told the script
    assert result_of(page).is_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the link of the comment
    page.wait_for_url(re.compile("#see-02-"))
    question.locator("details.right summary").press(" ")
    question.get_by_role("status").get_by_text("Right.").wait_for()
    page.context.close()


def test_a_result_is_shown_without_an_answer_and_on_paper(html: Path, browser) -> None:
    for reveal in (lambda page: page.get_by_role("button", name="Show the result").first.press("Enter"), print_it):
        page = browser.new_context().new_page()
        first_question(page, html)
        assert not result_of(page).is_visible()
        reveal(page)
        assert result_of(page).is_visible()
        page.context.close()


def print_it(page) -> None:
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")


def test_without_a_script_the_result_is_there_and_comments_are_folded(html: Path, browser) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    question = first_question(page, html)
    assert result_of(page).is_visible()
    comment = question.locator("details.right p")
    assert not comment.is_visible()
    question.locator("details.right summary").click()
    assert comment.is_visible()
    assert page.get_by_role("button", name="Show the result").count() == 0
    page.context.close()


def test_the_script_of_the_questions_is_short() -> None:
    assert len((ROOT / "book" / "_static" / "questions.js").read_text().splitlines()) <= 150


# --- solutions -----------------------------------------------------------------------


def secrets(chapter: str) -> tuple[list[str], list[str]]:
    """Words that begin a solution, and lines of code in one, as a page shows them."""
    cells = nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    words = re.findall(r":::\{admonition\} Solution\n:class: dropdown\n\n([^$`{*\n'\"]{20,})", prose)
    code = [cell.source for cell in cells if "hide-cell" in cell.metadata.get("tags", [])]
    shown = {line.strip() for cell in cells if cell.source not in code for line in cell.source.splitlines()}
    lines = {line.strip() for source in code for line in source.splitlines()}
    return words, [line for line in lines - shown if len(line) > 30]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_solution_lies_open_and_no_hidden_check_is_there(html: Path, browser, chapter: str) -> None:
    page = browser.new_context().new_page()
    page.goto((html / f"{chapter}.html").as_uri(), wait_until="load")
    page.wait_for_timeout(500)
    whole, seen = page.locator("article").text_content(), page.locator("article").inner_text()
    words, lines = secrets(chapter)
    assert len(lines) > 10
    for secret in (*words, *lines, "### BEGIN SOLUTION"):
        assert " ".join(secret.split()) in " ".join(whole.split()), f"not in the page at all: {secret}"
        assert " ".join(secret.split()) not in " ".join(seen.split()), f"open to see: {secret}"
    assert "HIDDEN TESTS" not in whole
    page.context.close()


def test_the_published_assignments_are_students_copies(html: Path) -> None:
    """What a reader can fetch of them beside the chapters."""
    published = sorted((html / "_downloads").rglob("*.ipynb"))
    assert len(published) == 2 * len(CHAPTERS)
    for path in published:
        assert not re.search(r"### (BEGIN|END) |\*\*Marks\*\*", path.read_text(encoding="utf-8")), path
