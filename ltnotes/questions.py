"""Questions for a reader to answer before the result below them: folded text that works without a script.

``book/_static/questions.js`` adds that the result stays hidden until one answer is chosen.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ltnotes.options import require

NUMBER = re.compile(r"[-+−]?[\d,]*\.?\d+")


@dataclass(frozen=True, repr=False)
class Question:
    """What a cell shows, see :func:`ask`.

    Args:
        answers: by what a reader chooses, its comment and the id of the paragraph that explains it.
    """

    text: str
    right: str
    answers: Mapping[str, tuple[str, str]]

    def __repr__(self) -> str:
        return " / ".join([self.text, *sorted(self.answers, key=_place)])

    def _repr_html_(self) -> str:
        """One folded comment for each answer: keyboards and screen readers know it without our help."""
        folded = "".join(self._answer(answer) for answer in sorted(self.answers, key=_place))
        return f'<div class="question"><p><strong>Your prediction?</strong> {html.escape(self.text)}</p>{folded}</div>'

    def _answer(self, answer: str) -> str:
        comment, paragraph = self.answers[answer]
        is_right = answer == self.right
        return (
            f'<details class="answer {"right" if is_right else "wrong"}"><summary>{html.escape(answer)}</summary>'
            f"<p><strong>{'Yes' if is_right else 'No'}.</strong> {html.escape(comment)}"
            f' <a href="#{html.escape(paragraph)}">{"What explains it" if is_right else "What speaks against it"}</a>'
            "</p></details>"
        )


def ask(text: str, right: tuple[str, str, str], *wrong: tuple[str, str, str]) -> Question:
    """A question with one right answer.

    Args:
        text: the question. Plain text, like all that follows.
        right, wrong: what a reader chooses, a comment on it, and the id of the paragraph that explains it. Wrong
            answers that read like another one (on small data two numbers can be the same) are left out.

    Raises:
        ValueError: an id that can't be a link, or an empty text.
    """
    answers: dict[str, tuple[str, str]] = {}
    for answer, comment, paragraph in (right, *wrong):
        require(bool(re.fullmatch(r"[a-z][a-z0-9-]*", paragraph)), "paragraph", paragraph, "an id such as see-01-tail")
        require(bool(answer.strip()), "answer", answer, "some text")
        answers.setdefault(answer, (comment, paragraph))
    require(bool(text.strip()), "question", text, "some text")
    return Question(text, right[0], answers)


def _place(answer: str) -> tuple[float, str]:
    """Numbers by size, words by the alphabet, so that the order tells nothing."""
    number = NUMBER.match(answer)
    return (float(number[0].replace(",", "").replace("−", "-")), "") if number else (0.0, answer)
