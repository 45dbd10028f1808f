// Predict, then see: the result below a question stays hidden until one of its answers is opened.
// The answers are <details> elements, so all of it can be read and operated without this script.

(() => {
  "use strict";

  /** What would tell the answer: the rest of the question's cell, and what follows up to a paragraph that it links to. */
  function resultsOf(question) {
    const after = (element) => {
      const found = [];
      for (let next = element?.nextElementSibling; next; next = next.nextElementSibling) found.push(next);
      return found;
    };
    const targets = [...question.querySelectorAll("a[href^='#']")].map((a) => document.querySelector(a.hash));
    const following = after(question.closest(".cell"));
    const explains = (element) => targets.some((target) => target && element.contains(target));
    const last = following.findLastIndex(explains);
    return [...after(question.closest(".output") ?? question.parentElement), ...following.slice(0, last + 1)];
  }

  function prepare(question) {
    const answers = [...question.querySelectorAll("details.answer")];
    const results = resultsOf(question);

    const status = document.createElement("p");
    status.setAttribute("role", "status"); // read out when it changes
    const show = document.createElement("button");
    show.type = "button";
    show.className = "show-result";
    show.textContent = "Show the result without an answer";

    const reveal = () => {
      results.forEach((result) => result.removeAttribute("hidden"));
      show.remove();
    };

    if (results.length) {
      // where browsers know "until-found", a search in the page still finds what is hidden, and shows it
      results.forEach((result) => result.setAttribute("hidden", "until-found"));
      results.forEach((result) => result.addEventListener("beforematch", reveal));
      window.addEventListener("beforeprint", reveal);
      question.append(show);
      show.addEventListener("click", () => {
        reveal();
        status.textContent = "The result is shown below.";
      });
    }
    question.append(status);

    answers.forEach((answer) =>
      answer.addEventListener("toggle", () => {
        if (!answer.open) return;
        answer.classList.add("chosen");
        const right = answer.classList.contains("right");
        const rest = results.length ? " The result is shown below." : "";
        status.textContent = (right ? "Right." : "Not this one: its comment says why.") + rest;
        reveal();
      })
    );
  }

  const start = () => document.querySelectorAll("div.question").forEach(prepare);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
