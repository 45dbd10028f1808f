// Paste your class counts: what they say of a training set, computed in the page; nothing is sent anywhere.
// The recipe of least regret comes from laboratory-data.mjs; without it the rest still works.

(() => {
  "use strict";
  const lab = (window.ltnotesLaboratory ??= {});

  const [MANY, FEW] = [100, 20]; // as ltnotes.counts.shot_groups
  const SHARE = 0.3; // of the classes in the largest and the smallest group, as ltnotes.counts.rank_groups
  const Z = 1.959964; // of a 95 % interval
  const HELD_OUT = 0.1;
  const EXAMPLE = "cat: 1200\ndog: 800\nfox: 90\nlynx: 14";

  class BadInput extends Error {}
  const escape = (text) =>
    String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
  const grouped = (n) => n.toLocaleString("en");

  // --- reading -------------------------------------------------------------------

  /** A count from its text. */
  function count(written, name) {
    const whose = name ? ` for ${name}` : "";
    if (/^[-−]/.test(written)) throw new BadInput(`${written}${whose} is negative. Counts are whole numbers from 1.`);
    if (!/^\d+$/.test(written)) throw new BadInput(`${written}${whose} is not a whole number of images.`);
    if (/^0\d/.test(written))
      throw new BadInput(`${written}${whose} begins with 0. Write large numbers without separators: 5000, not 5,000.`);
    const n = Number(written);
    if (n === 0) throw new BadInput(`A class${whose} has no image: a ratio needs one or more in each. Leave it out.`);
    if (!Number.isSafeInteger(n)) throw new BadInput(`${written}${whose} is too large.`);
    return { name, n };
  }

  const PAIR = /([^:=,;{}]+?)["']?\s*[:=]\s*([-−]?\d[\d.]*)(?![\p{L}\d_])/gu;
  const NUMBER = /(?:^|[^\p{L}\p{N}_.])([-−]?\d+(?:\.\d+)?)/gu;
  const ALMOST = /(?<![\p{L}\p{N}_.])\d[\d.]*[\p{L}_][\p{L}\p{N}_]*/u; // such as 1e3

  /** "name: number" pairs of a line that has any, else its numbers, whatever stands between them. */
  function readLine(line) {
    const merged = line.match(/[:=]\s*(\d{1,3}(,\d{3})+)(?!\d)/);
    if (merged) throw new BadInput(`“${merged[1]}” may be one number or several. Write 5000 rather than 5,000.`);
    const pairs = [...line.matchAll(PAIR)];
    if (pairs.length) return pairs.map(([, name, n]) => count(n, name.trim().replace(/^["']|["']$/g, "")));
    if (/[:=]\s*[^\s[({\d]/.test(line)) throw new BadInput(`There is no count in the line “${line.trim()}”.`);
    const odd = line.match(ALMOST);
    if (odd) throw new BadInput(`“${odd[0]}” is no number. Write counts with digits alone, as 1000.`);
    return [...line.matchAll(NUMBER)].map(([, n]) => count(n, ""));
  }

  /** Class counts from what a reader pasted, each with its name or "". */
  function read(text) {
    const found = text.split(/\r?\n/).flatMap(readLine);
    if (found.length === 0) throw new BadInput("There is no number in it. Paste one count for each class.");
    if (found.length === 1) throw new BadInput("There is one class only. A ratio needs two or more.");
    return found.map(({ name, n }, i) => ({ name: name || `class ${i + 1}`, n }));
  }

  // --- what it says ----------------------------------------------------------------

  /** Half of the Wilson interval of a recall of 0.5 on n test images. */
  const halfWidth = (n) => (Z / (1 + Z ** 2 / n)) * Math.sqrt(0.25 / n + Z ** 2 / (4 * n ** 2));

  /** As Python's round: a half goes to the even number. */
  function round(value) {
    const floor = Math.floor(value);
    return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
  }

  function diagnose(classes) {
    const sorted = classes.map((own, i) => ({ ...own, i })).sort((a, b) => b.n - a.n || a.i - b.i);
    const k = Math.max(1, Math.min(round(SHARE * sorted.length), Math.floor(sorted.length / 2)));
    const shots = { many: [], medium: [], few: [] };
    for (const own of sorted) shots[own.n > MANY ? "many" : own.n <= FEW ? "few" : "medium"].push(own);
    return {
      sorted,
      total: sorted.reduce((sum, { n }) => sum + n, 0),
      ratio: sorted[0].n / sorted[sorted.length - 1].n,
      groups: {
        ...shots,
        largest: sorted.slice(0, k),
        middle: sorted.slice(k, sorted.length - k),
        smallest: sorted.slice(sorted.length - k),
      },
    };
  }

  const TITLES = {
    many: `many (over ${MANY})`,
    medium: `medium (${FEW + 1} to ${MANY})`,
    few: `few (${FEW} and fewer)`,
    largest: "largest three tenths",
    middle: "middle",
    smallest: "smallest three tenths",
  };

  function groupTable({ groups, total }) {
    const lines = Object.entries(groups).map(([key, own]) => {
      const images = own.reduce((sum, { n }) => sum + n, 0);
      const cells = [own.length, grouped(images), `${((100 * images) / total).toFixed(1)}&nbsp;%`];
      return `<tr><th scope="row">${TITLES[key]}</th>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`;
    });
    return `<table><caption>Groups</caption><thead><tr><td></td><th scope="col">classes</th><th scope="col">images</th>
      <th scope="col">share</th></tr></thead><tbody>${lines.join("")}</tbody></table>`;
  }

  function intervalTable({ sorted, groups }) {
    const tests = (n) => Math.round(HELD_OUT * n);
    const known = (n) => (n ? `± ${(100 * halfWidth(n)).toFixed(0)} points` : "cannot be measured");
    const middle = sorted[Math.floor((sorted.length - 1) / 2)];
    const picked = [
      ["largest class", sorted[0]],
      ["median class", middle],
      ["smallest class", sorted[sorted.length - 1]],
    ];
    const lines = picked.map(([title, { name, n }]) => [`${title}, ${name}`, n, tests(n)]);
    const own = groups.smallest;
    const sum = (of) => own.reduce((all, { n }) => all + of(n), 0);
    if (own.length > 1) lines.push([`the ${own.length} smallest together`, sum((n) => n), sum(tests)]);
    const body = lines.map(([title, n, t]) => {
      const cells = [grouped(n), grouped(t), known(t)].map((cell) => `<td>${cell}</td>`);
      return `<tr><th scope="row">${escape(title)}</th>${cells.join("")}</tr>`;
    });
    const heads = ["images", "test images", "95&nbsp;% interval at 50&nbsp;%"].map(
      (said) => `<th scope="col">${said}</th>`,
    );
    return `<table><caption>Recall, if a tenth is held out for testing</caption>
      <thead><tr><td></td>${heads.join("")}</tr></thead><tbody>${body.join("")}</tbody></table>`;
  }

  function advice({ ratio }, data) {
    if (!data) return "";
    const { regret, nearlyBalanced, commands } = data;
    const even = ratio <= nearlyBalanced;
    const lost = Object.entries(regret.losses).map(([dataset, loss]) => {
      const seeds = regret.seeds[dataset];
      const against = loss === 0 ? "it is the best" : `${loss.toFixed(1)} points below ${escape(regret.best[dataset])}`;
      return `<li>${dataset}: ${against} (${seeds} seed${seeds === 1 ? "" : "s"})</li>`;
    });
    const table = `<p>Least regret of ${regret.compared} recipes: <strong>${escape(regret.name)}</strong>
      (<code>${regret.recipe}</code>). Where it loses most balanced accuracy against the best of a table, it loses
      ${regret.largest.toFixed(1)} points:</p><ul>${lost.join("")}</ul>
      <p>Both tables are those of <a href="lite.html">the scale lite</a>: small images at a ratio of 100, networks
      trained from scratch. About your images, your ratio and a pretrained network they know nothing.</p>`;
    const first = `<p>With pretrained features try logit adjustment after training first: it costs nothing, and
      <a href="10-your-own-data.html">chapter 10</a> shows how.</p>`;
    const balanced = "<p>These classes are nearly balanced: there is no tail to correct. Begin with cross-entropy.</p>";
    const word = (one) => `<span>${escape(one)}</span>`; // a line breaks between words alone, and not at a hyphen
    const lines = commands[even ? "ce" : regret.recipe].map((said) => said.split(" ").map(word).join(" ")).join("\n");
    return `${even ? balanced : table + first}<p>For a folder <code>my-images</code> with one folder for each class:</p>
      <div class="lab-command"><pre>${lines}</pre><button type="button">Copy</button></div>`;
  }

  function report(found, data) {
    const { sorted, total, ratio } = found;
    const said = `${sorted.length} classes, ${grouped(total)} images, imbalance ratio ${Number(ratio.toPrecision(3))}.`;
    return {
      said,
      rest: `<div class="lab-tables">${groupTable(found)}${intervalTable(found)}</div>${advice(found, data)}`,
    };
  }

  // --- the page ----------------------------------------------------------------------

  function copy(button, words) {
    const lines = button.parentElement.querySelector("pre").textContent;
    const done = () => (words.textContent = "The commands are copied.");
    const failed = () => getSelection().selectAllChildren(button.parentElement.querySelector("pre"));
    navigator.clipboard ? navigator.clipboard.writeText(lines).then(done, failed) : failed();
  }

  function start() {
    const root = document.getElementById("laboratory-counts");
    if (!root) return;
    root.innerHTML = `<label for="lab-counts">Training images of each class: numbers, or lines of name: number</label>
      <textarea id="lab-counts" rows="6" spellcheck="false" placeholder="${EXAMPLE}"></textarea>
      <p><button type="button" id="lab-example">Take an example</button></p>
      <p class="lab-said" role="status" aria-live="polite"></p><div class="lab-report"></div>`;
    const [field, words, rest] = ["#lab-counts", ".lab-said", ".lab-report"].map((what) => root.querySelector(what));
    let timer = 0;
    const update = () => {
      words.classList.remove("lab-bad");
      [words.textContent, rest.innerHTML] = ["", ""];
      if (!field.value.trim()) return;
      try {
        const { said, rest: more } = report(diagnose(read(field.value)), window.ltnotesLaboratoryData);
        [words.textContent, rest.innerHTML] = [said, more];
      } catch (error) {
        if (!(error instanceof BadInput)) throw error;
        words.textContent = error.message;
        words.classList.add("lab-bad");
      }
    };
    field.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(update, 300); // no message while a number is half typed
    });
    root.querySelector("#lab-example").addEventListener("click", () => {
      field.value = EXAMPLE;
      update();
    });
    rest.addEventListener("click", (event) => event.target.matches("button") && copy(event.target, words));
    root.hidden = false;
  }

  Object.assign(lab, { readCounts: read, diagnoseCounts: diagnose, halfWidth });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
