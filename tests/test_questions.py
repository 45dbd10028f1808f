"""Questions: what a page gets of them, and what is refused."""

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from ltnotes import questions

CHAPTERS = sorted((Path(__file__).parents[1] / "book").glob("[0-9]*.ipynb"))
RIGHT = ("33.8 ± 3.2 %", "It is.", "see-06-five")
WRONG = [("47.3 %", "That is & was <another>.", "see-06-radius"), ("6.6 %", "No.", "see-06-five")]


def answers(page):
    return re.findall(r'<details class="answer (\w+)"><summary>(.*?)</summary>', page)


def test_answers_are_sorted_so_that_their_place_tells_nothing():
    page = questions.ask("How many?", RIGHT, *WRONG)._repr_html_()
    assert answers(page) == [("wrong", "6.6 %"), ("right", "33.8 ± 3.2 %"), ("wrong", "47.3 %")]
    words = questions.ask("Who?", ("b", "", "see-1"), ("c", "", "see-1"), ("a", "", "see-1"))._repr_html_()
    assert answers(words) == [("wrong", "a"), ("right", "b"), ("wrong", "c")]
    assert repr(questions.ask("How many?", RIGHT, *WRONG)) == "How many? / 6.6 % / 33.8 ± 3.2 % / 47.3 %"


def test_each_answer_says_right_or_wrong_and_links_to_a_paragraph():
    page = questions.ask("How many?", RIGHT, *WRONG)._repr_html_()
    assert page.count("<strong>Yes.</strong>") == 1 and page.count("<strong>No.</strong>") == 2
    assert re.findall(r'href="#([^"]+)"', page) == ["see-06-five", "see-06-five", "see-06-radius"]
    assert "That is &amp; was &lt;another&gt;." in page


def test_a_wrong_answer_that_reads_like_the_right_one_is_left_out():
    page = questions.ask("How many?", RIGHT, (RIGHT[0], "no", "see-1"), WRONG[1], WRONG[1])._repr_html_()
    assert answers(page) == [("wrong", "6.6 %"), ("right", "33.8 ± 3.2 %")]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("", RIGHT), "^question: got '', allowed is some text"),
        (("q", ("a", "b", "no id")), "^paragraph: got 'no id', allowed is an id such as see-01-tail"),
        (("q", (" ", "b", "see-1")), "^answer: got ' ', allowed is some text"),
    ],
)
def test_what_is_no_question_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        questions.ask(*arguments)


class Ids(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name == "id"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_asks_and_its_links_lead_to_one_paragraph(path):
    cells = nbformat.read(path, as_version=4).cells
    outputs = [out.get("data", {}) for cell in cells if cell.cell_type == "code" for out in cell.outputs]
    asked = [data["text/html"] for data in outputs if 'class="question"' in data.get("text/html", "")]
    assert asked
    text = [cell.source for cell in cells if cell.cell_type == "markdown"]
    ids = Ids("\n".join([*text, *(data["text/markdown"] for data in outputs if "text/markdown" in data)])).found
    for page in asked:
        assert len(answers(page)) >= 3 and [kind for kind, _ in answers(page)].count("right") == 1
        for target in re.findall(r'href="#([^"]+)"', page):
            assert ids.count(target) == 1, target
