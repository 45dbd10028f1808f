// The logit laboratory: its controls, what they say in words, and the address that holds their state.
// Numbers come from laboratory-numbers.js, figures from laboratory-figures.js, data from laboratory-data.mjs.
// Where the data or this script is missing, the page keeps its three static figures.

(() => {
  "use strict";
  const lab = (window.ltnotesLaboratory ??= {});

  const TAUS = [...Array(16).keys()].map((i) => (i - 5) / 5); // of the curve in the head-tail plane
  const PAUSE = 400; // milliseconds without a change before the words and the address follow
  const FIGURES = {
    recalls: "Recall of each class",
    plane: "Largest against smallest classes",
    reliability: "Confidence against accuracy",
    sizes: "Prediction sets: mean size",
    coverages: "Prediction sets: coverage",
  };

  const ratioOf = ({ counts }, exponent) => (Math.max(...counts) / Math.min(...counts)) ** Math.abs(exponent);

  function sayPrior(model, exponent) {
    if (exponent === 0) return "uniform";
    return `${exponent > 0 ? "forward" : "backward"}, ratio ${Number(ratioOf(model, exponent).toPrecision(3))}`;
  }

  /** The sliders. The temperature's moves in powers of two. */
  const SLIDERS = {
    tau: { label: "Adjustment τ", short: "tau", min: -1, max: 2, step: 0.05, say: (v) => v.toFixed(2) },
    prior: { label: "Test set", short: "prior", min: -1, max: 1, step: 0.05, say: (v, model) => sayPrior(model, v) },
    temperature: {
      label: "Temperature T",
      short: "T",
      min: -2,
      max: 2,
      step: 0.05,
      say: (v) => v.toFixed(2),
      value: (at) => 2 ** at,
      place: Math.log2,
    },
    alpha: {
      label: "Error rate α",
      short: "alpha",
      min: 0.01,
      max: 0.3,
      step: 0.01,
      say: (v) => `${v.toFixed(2)} (${lab.percent(1 - v, 0)} coverage)`,
    },
  };

  // --- the page's elements -----------------------------------------------------

  function slider(name) {
    const { label, min, max, step } = SLIDERS[name];
    return `<div class="lab-control"><label for="lab-${name}">${label}</label>
      <output id="lab-${name}-value" for="lab-${name}"></output>
      <input type="range" id="lab-${name}" min="${min}" max="${max}" step="${step}"></div>`;
  }

  function choice(name, label, options) {
    const written = options.map(([value, title]) => `<option value="${value}">${lab.escape(title)}</option>`);
    return `<div class="lab-control"><label for="lab-${name}">${label}</label>
      <select id="lab-${name}">${written.join("")}</select></div>`;
  }

  function layOut(root, model) {
    const methods = model.methods.map(({ id, name }) => [id, name]);
    const sizes = lab.calibrationSizes(model, true);
    const half = lab.calibrationSizes(model, false);
    const parts = [
      [0, `${Math.max(...half)} of each class`],
      [1, `as the training set: ${Math.max(...sizes)} down to ${Math.min(...sizes)}`],
    ];
    const figure = (
      name,
    ) => `<figure class="lab-figure" id="lab-figure-${name}"><figcaption>${FIGURES[name]}</figcaption>
      <svg></svg><p class="lab-legend"></p></figure>`;
    root.innerHTML = `<form class="lab-controls" aria-label="Settings of the laboratory">
      ${choice("method", "Method", methods)}${choice("with", "Compared with", [["", "nothing"], ...methods])}
      ${Object.keys(SLIDERS).map(slider).join("")}${choice("few", "Calibration images", parts)}
      <div class="lab-control"><button type="reset">Reset</button></div></form>
      <p class="lab-words" role="status" aria-live="polite"></p>
      <div class="lab-figures">${figure("recalls")}<div class="lab-table"><table id="lab-accuracies"></table></div>
      ${Object.keys(FIGURES).slice(1).map(figure).join("")}</div>
      <div class="lab-table"><table id="lab-sets"></table></div>`;
  }

  // --- the state -----------------------------------------------------------------

  const initial = (model) => ({ ...lab.DEFAULT, method: model.methods[0].id, with: "" });

  /** The state that an address describes; what it leaves out or gets wrong is as at first. */
  function fromHash(model, hash) {
    const given = new URLSearchParams(hash.replace(/^#/, ""));
    const state = initial(model);
    const known = (id) => model.methods.some((method) => method.id === id);
    for (const name of ["method", "with"]) if (known(given.get(name))) state[name] = given.get(name);
    for (const [name, { short, min, max, value = (at) => at }] of Object.entries(SLIDERS)) {
      const number = parseFloat(given.get(short));
      if (number >= value(min) && number <= value(max)) state[name] = number;
    }
    return { ...state, few: given.get("few") === "1" };
  }

  function toHash(model, state) {
    const said = new URLSearchParams({ method: state.method });
    const first = initial(model);
    if (state.with) said.set("with", state.with);
    for (const [name, { short }] of Object.entries(SLIDERS))
      if (state[name] !== first[name]) said.set(short, Number(state[name].toFixed(4)));
    if (state.few) said.set("few", 1);
    return `#${said}`;
  }

  function toControls(root, state) {
    for (const name of ["method", "with"]) root.querySelector(`#lab-${name}`).value = state[name];
    root.querySelector("#lab-few").value = state.few ? "1" : "0";
    for (const [name, { place = (v) => v }] of Object.entries(SLIDERS))
      root.querySelector(`#lab-${name}`).value = place(state[name]);
  }

  function fromControls(root) {
    const value = (name) => root.querySelector(`#lab-${name}`).value;
    const state = { method: value("method"), with: value("with"), few: value("few") === "1" };
    if (state.with === state.method) state.with = root.querySelector("#lab-with").value = "";
    for (const [name, slider] of Object.entries(SLIDERS))
      state[name] = (slider.value ?? ((at) => at))(parseFloat(value(name)));
    return state;
  }

  // --- what is shown ---------------------------------------------------------------

  /** Numbers and curve of a method. The curve costs several passes and depends on T alone, so it is kept. */
  function examine(model, state, id, kept) {
    const method = model.methods.find((one) => one.id === id);
    const key = `${id} ${state.temperature}`;
    kept.curves[key] ??= lab.sweep(model, method, state.temperature, TAUS);
    return { method, found: lab.measure(model, method, state), curve: kept.curves[key] };
  }

  const cell = (key, value, said) => `<td data-key="${key}" data-value="${value}">${said}</td>`;
  const percentCell = (key, value) => cell(key, value, lab.percent(value));
  const row = (title, cells) => `<tr><th scope="row">${title}</th>${cells.join("")}</tr>`;
  const headsOf = (columns, span) =>
    columns.map(({ method }) => `<th scope="col" colspan="${span}">${lab.escape(method.name)}</th>`).join("");

  function accuracies(element, columns) {
    const cells = (key, from) => columns.map(({ found }) => percentCell(key, from(found)));
    const group = (name) => row(`${name} classes`, cells(name, (found) => found.groups[name]));
    const rows = [
      row("accuracy", cells("accuracy", (found) => found.accuracy)),
      row("balanced accuracy", cells("balanced", (found) => found.balanced)),
      ...Object.keys(columns[0].found.groups).map(group),
      row("ECE", cells("ece", (found) => found.ece)),
    ];
    element.innerHTML = `<caption>Under the chosen test set</caption>
      <thead><tr><td></td>${headsOf(columns, 1)}</tr></thead><tbody>${rows.join("")}</tbody>`;
  }

  const setCells = (kind, { size, coverage }) => [
    cell(`size ${kind}`, size, size.toFixed(2)),
    percentCell(`coverage ${kind}`, coverage),
  ];

  function setTable(element, columns) {
    const lines = lab.KINDS.map((kind) =>
      row(kind, columns.flatMap(({ found }) => setCells(kind, found.sets[kind])))
    );
    const under = columns.map(() => '<th scope="col">mean size</th><th scope="col">coverage</th>').join("");
    element.innerHTML = `<caption>Prediction sets under the chosen test set</caption>
      <thead><tr><td></td>${headsOf(columns, 2)}</tr><tr><td></td>${under}</tr></thead>
      <tbody>${lines.join("")}</tbody>`;
  }

  function infinite({ found }) {
    const n = found.sets["class-wise"].infinite;
    if (n === 0) return "";
    const whose = n === 1 ? "1 class has" : `${n} classes have`;
    return (
      ` ${whose} too few calibration images for this α: the class-wise threshold is infinite, and` +
      ` every class-wise set has ${n === 1 ? "this class" : "these classes"}.`
    );
  }

  function inWords(model, state, chosen, second) {
    const one = ({ method, found }) => {
      const { largest, middle, smallest } = found.groups;
      const sizes = Object.entries(found.sets).map(([kind, { size }]) => `${kind} ${size.toFixed(2)}`);
      const p = lab.percent;
      const name = method.name[0].toUpperCase() + method.name.slice(1);
      return (
        `${name}: accuracy ${p(found.accuracy)}, balanced accuracy ${p(found.balanced)}; largest classes` +
        ` ${p(largest)}, middle ${p(middle)}, smallest ${p(smallest)}; ECE ${p(found.ece)}; mean set size` +
        ` ${sizes.join(", ")}.${infinite({ found })}`
      );
    };
    const numbers = `τ ${state.tau.toFixed(2)}, T ${state.temperature.toFixed(2)}, α ${state.alpha.toFixed(2)}`;
    const where = `Test set ${sayPrior(model, state.prior)}, ${numbers}.`;
    return [where, one(chosen), second && one(second)].filter(Boolean).join(" ");
  }

  function legends(root, model, chosen, second) {
    const put = (name, said) => (root.querySelector(`#lab-figure-${name} .lab-legend`).innerHTML = said.join(" "));
    const entry = (picture, said) => `<span>${picture} ${lab.escape(said)}</span>`;
    const groups = Object.entries(model.groupColors).map(([name, color]) => entry(lab.sample("square", color), name));
    const also = second ? [entry(lab.sample("circle", second.method.color, true), second.method.name)] : [];
    const kinds = Object.entries(lab.KIND_STYLES).map(([kind, { color, shape }]) =>
      entry(lab.sample(shape, color), kind),
    );
    put("recalls", [...groups, ...also, "<span>numbers: training images</span>"]);
    put(
      "plane",
      model.methods.map((m) => entry(lab.sample(lab.shapeOf(model, m), m.color), m.name)),
    );
    put("reliability", [entry(lab.sample("circle", chosen.method.color), chosen.method.name), ...also]);
    put("sizes", kinds);
    put("coverages", [...kinds, entry('<span class="lab-dash">- -</span>', "wanted")]);
  }

  function draw(root, model, state, kept) {
    for (const [name, { say }] of Object.entries(SLIDERS)) {
      const said = say(state[name], model);
      root.querySelector(`#lab-${name}-value`).textContent = said;
      root.querySelector(`#lab-${name}`).setAttribute("aria-valuetext", said);
    }
    const chosen = examine(model, state, state.method, kept);
    const second = state.with ? examine(model, state, state.with, kept) : null;
    const svg = (name) => root.querySelector(`#lab-figure-${name} svg`);
    lab.draw.recalls(svg("recalls"), model, chosen, second);
    lab.draw.plane(svg("plane"), model, kept.points, chosen, second);
    lab.draw.reliability(svg("reliability"), chosen, second);
    lab.draw.sizes(svg("sizes"), model, chosen);
    lab.draw.coverages(svg("coverages"), model, chosen, state.alpha);
    legends(root, model, chosen, second);
    const columns = [chosen, second].filter(Boolean);
    accuracies(root.querySelector("#lab-accuracies"), columns);
    setTable(root.querySelector("#lab-sets"), columns);
    return inWords(model, state, chosen, second);
  }

  /** Wire the controls: figures follow at once, the words and the address once the reader pauses. */
  function run(root, model) {
    const points = model.methods.map((method) => ({ method, ...lab.sweep(model, method, 1, [0])[0] }));
    const kept = { points, curves: {} };
    const form = root.querySelector("form");
    const words = root.querySelector(".lab-words");
    let [frame, timer] = [0, 0];

    const redraw = () => {
      frame = 0;
      const state = fromControls(root);
      const said = draw(root, model, state, kept);
      clearTimeout(timer);
      timer = setTimeout(() => {
        words.textContent = said;
        const plain = location.pathname + location.search;
        const address = toHash(model, state);
        history.replaceState(null, "", address === toHash(model, initial(model)) ? plain : address);
      }, PAUSE);
    };
    const restore = () => {
      const state = fromHash(model, location.hash);
      toControls(root, state);
      words.textContent = draw(root, model, fromControls(root), kept);
    };

    form.addEventListener("input", () => (frame ||= requestAnimationFrame(redraw)));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => {
      event.preventDefault(); // where the browser would put the sliders is not where they begin
      toControls(root, initial(model));
      redraw();
    });
    addEventListener("hashchange", () => location.hash.includes("method=") && restore());
    restore();
  }

  function start() {
    const root = document.getElementById("laboratory");
    if (!root || !window.ltnotesLaboratoryData) return;
    const model = lab.open(window.ltnotesLaboratoryData);
    layOut(root, model);
    run(root, model);
    root.hidden = false;
    document.querySelectorAll(".lab-static").forEach((element) => (element.hidden = true));
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
