// The logit laboratory's figures: SVG as text, drawn anew at each change. Marks carry their number in data-value.

(() => {
  "use strict";
  const lab = (window.ltnotesLaboratory ??= {});

  const WIDTH = 360; // of every figure, in its own units; on a phone that is about one unit for a pixel
  const INK = "#333333";
  const SHAPES = ["circle", "square", "diamond", "up", "down", "plus", "star", "cross", "left", "right", "pentagon"];
  const KIND_STYLES = {
    marginal: { color: "#333333", shape: "circle" },
    "class-wise": { color: "#009E73", shape: "square" },
    "prevalence-adjusted": { color: "#CC79A7", shape: "diamond" },
  };

  const escape = (text) =>
    String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
  const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}\u00a0%`;

  function tag(name, attributes, content = "") {
    const written = Object.entries(attributes).map(([key, value]) => ` ${key}="${escape(value)}"`);
    return `<${name}${written.join("")}>${content}</${name}>`;
  }

  const text = (x, y, said, more = {}) => tag("text", { x: x.toFixed(1), y: y.toFixed(1), ...more }, escape(said));
  const line = (x1, y1, x2, y2, more = {}) =>
    tag("line", {
      x1: x1.toFixed(1),
      y1: y1.toFixed(1),
      x2: x2.toFixed(1),
      y2: y2.toFixed(1),
      stroke: "#dddddd",
      ...more,
    });
  const path = (points, more) =>
    tag("path", {
      d: "M" + points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join("L"),
      fill: "none",
      ...more,
    });

  // Corners of the markers, around 0 and of about radius 1: x y x y ...
  const CORNERS = {
    square: "-.9 -.9 .9 -.9 .9 .9 -.9 .9",
    diamond: "0 -1.25 1.25 0 0 1.25 -1.25 0",
    up: "0 -1.2 1.15 .9 -1.15 .9",
    down: "0 1.2 1.15 -.9 -1.15 -.9",
    left: "-1.2 0 .9 -1.15 .9 1.15",
    right: "1.2 0 -.9 -1.15 -.9 1.15",
    pentagon: "0 -1.20 1.14 -.37 .71 .97 -.71 .97 -1.14 -.37",
    plus: "-.4 -1.2 .4 -1.2 .4 -.4 1.2 -.4 1.2 .4 .4 .4 .4 1.2 -.4 1.2 -.4 .4 -1.2 .4 -1.2 -.4 -.4 -.4",
    cross: "0 -.6 .6 -1.2 1.2 -.6 .6 0 1.2 .6 .6 1.2 0 .6 -.6 1.2 -1.2 .6 -.6 0 -1.2 -.6 -.6 -1.2",
    star: "0 -1.45 .35 -.48 1.38 -.45 .57 .19 .85 1.17 0 .6 -.85 1.17 -.57 .19 -1.38 -.45 -.35 -.48",
  };

  /** A marker around (x, y) of about radius r: methods differ without colour as well. */
  function mark(shape, x, y, r, more, title = "") {
    const inside = title && tag("title", {}, escape(title));
    if (shape === "circle") return tag("circle", { cx: x.toFixed(2), cy: y.toFixed(2), r, ...more }, inside);
    const points = CORNERS[shape].split(" ").map((at, i) => ((i % 2 ? y : x) + r * at).toFixed(2));
    return tag("polygon", { points: points.join(" "), ...more }, inside);
  }

  /** Put a drawing into its svg element, with its main numbers as its name. */
  function show(svg, height, parts, label) {
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", label);
    svg.innerHTML = parts.join("");
  }

  // --- axes ------------------------------------------------------------------

  /** A frame with places x and y in it, from 0 to the two largest values. */
  function frame(height, { bottom, left = 42, top = 10, right = 16, xMost = 1, yMost = 1 }) {
    const [width, tall] = [WIDTH - left - right, height - top - bottom];
    const end = { left, right: WIDTH - right, top, bottom: height - bottom };
    return { ...end, x: (v) => left + (width * v) / xMost, y: (v) => top + tall * (1 - v / yMost) };
  }

  function yAxis(f, ticks, title, say) {
    const parts = ticks.map(
      (v) => line(f.left, f.y(v), f.right, f.y(v)) + text(f.left - 5, f.y(v) + 4, say(v), { "text-anchor": "end" }),
    );
    const middle = (f.top + f.bottom) / 2;
    return [...parts, text(11, middle, title, { "text-anchor": "middle", transform: `rotate(-90 11 ${middle})` })];
  }

  function xAxis(f, ticks, title, say) {
    const below = (v) =>
      line(f.x(v), f.top, f.x(v), f.bottom) + text(f.x(v), f.bottom + 14, say(v), { "text-anchor": "middle" });
    return [...ticks.map(below), text((f.left + f.right) / 2, f.bottom + 30, title, { "text-anchor": "middle" })];
  }

  /** Class names in the order of training frequency, with their training images. */
  function classAxis(model, f) {
    const step = (f.right - f.left) / model.order.length;
    const center = (rank) => f.left + step * (rank + 0.5);
    const parts = model.order.map((c, rank) => {
      const [x, y] = [center(rank), f.bottom + 26];
      return (
        text(x, f.bottom + 13, model.counts[c], { "text-anchor": "middle" }) +
        text(x + 4, y, model.classes[c], { "text-anchor": "end", transform: `rotate(-42 ${x + 4} ${y})` })
      );
    });
    return { parts: [...parts, line(f.left, f.bottom, f.right, f.bottom, { stroke: INK })], center, step };
  }

  const CLASS_BOTTOM = 70; // room for the names
  const LEAST = 0.001; // share of the test set from which a bin of confidence is drawn
  const FIFTHS = [0, 0.2, 0.4, 0.6, 0.8, 1];
  const whole = (v) => `${Math.round(100 * v)}`;

  // --- the five figures --------------------------------------------------------

  function recalls(svg, model, chosen, second) {
    const height = 270;
    const f = frame(height, { bottom: CLASS_BOTTOM });
    const axis = classAxis(model, f);
    const bars = model.order.map((c, rank) => {
      const value = chosen.found.recalls[c];
      const more = { class: "lab-bar", "data-class": model.classes[c], "data-value": value };
      const box = {
        x: axis.center(rank) - axis.step * 0.38,
        width: axis.step * 0.76,
        y: f.y(value),
        height: f.bottom - f.y(value),
      };
      const title = tag("title", {}, escape(`${model.classes[c]}: ${percent(value)}`));
      return tag("rect", { ...box, ...more, fill: model.groupColors[model.groupOf[c]] }, title);
    });
    const dots = second
      ? model.order.map((c, rank) => {
          const style = { fill: "#ffffff", stroke: second.method.color, "stroke-width": 2.5 };
          return mark("circle", axis.center(rank), f.y(second.found.recalls[c]), 4.5, style);
        })
      : [];
    const said = model.order.map((c) => `${model.classes[c]} ${percent(chosen.found.recalls[c], 0)}`).join(", ");
    const parts = [...yAxis(f, FIFTHS, "recall, %", whole), ...bars, ...axis.parts, ...dots];
    show(svg, height, parts, `Recall of each class with ${chosen.method.name}, from the largest class: ${said}.`);
  }

  /** Lines on which the mean of both axes is the same. */
  function equalMeans(f) {
    return [0.2, 0.4, 0.6, 0.8].flatMap((mean) => {
      const ends = [Math.max(0, 2 * mean - 1), Math.min(1, 2 * mean)];
      const dashed = { stroke: "#bbbbbb", "stroke-dasharray": "4 3" };
      const label = text(f.x(ends[0]) + 4, f.y(2 * mean - ends[0]) + 12, `mean ${whole(mean)} %`, {
        class: "lab-faint",
      });
      return [line(f.x(ends[0]), f.y(2 * mean - ends[0]), f.x(ends[1]), f.y(2 * mean - ends[1]), dashed), label];
    });
  }

  function plane(svg, model, points, chosen, second) {
    const height = 352;
    const f = frame(height, { bottom: 38 });
    const place = (at) => [f.x(at.x), f.y(at.y)];
    const small = points.map(({ method, x, y }, i) =>
      mark(
        SHAPES[i % SHAPES.length],
        f.x(x),
        f.y(y),
        4,
        { fill: method.color, stroke: "#ffffff", "stroke-width": 0.7 },
        method.name,
      ),
    );
    const moved = [second, chosen].filter(Boolean).flatMap(({ method, found, curve }) => {
      const last = place(curve[curve.length - 1]);
      const shape = SHAPES[model.methods.indexOf(method) % SHAPES.length];
      const style = { fill: method.color, stroke: "#000000", "stroke-width": 1.5, class: "lab-point" };
      const { largest, smallest } = found.groups;
      return [
        path(curve.map(place), { stroke: method.color, "stroke-width": 1.8 }),
        ...(found === chosen.found ? [text(last[0], last[1] - 7, "τ = 2", { "text-anchor": "middle" })] : []),
        mark(shape, f.x(largest), f.y(smallest), 7, { ...style, "data-value": `${largest} ${smallest}` }, method.name),
      ];
    });
    const axes = [
      ...yAxis(f, FIFTHS, "accuracy on the smallest classes, %", whole),
      ...xAxis(f, FIFTHS, "accuracy on the largest classes, %", whole),
    ];
    const { largest, smallest } = chosen.found.groups;
    const said = `${chosen.method.name}, ${percent(largest)} on the largest, ${percent(smallest)} on the smallest.`;
    show(svg, height, [...axes, ...equalMeans(f), ...small, ...moved], `Largest against smallest classes: ${said}`);
  }

  function reliability(svg, chosen, second) {
    const height = 352;
    const f = frame(height, { bottom: 38 });
    const drawn = [second, chosen].filter(Boolean).flatMap(({ method, found }) => {
      const used = found.bins.filter((bin) => bin.weight > LEAST);
      const at = used.map((bin) => [f.x(bin.confidence / bin.weight), f.y(bin.accuracy / bin.weight)]);
      const [fill, stroke] = found === chosen.found ? [method.color, "#ffffff"] : ["#ffffff", method.color];
      return [
        path(at, { stroke: method.color, "stroke-width": 1.2 }),
        ...at.map(([x, y], i) => {
          const radius = (3 + 12 * Math.sqrt(used[i].weight)).toFixed(2); // a bin's area grows with its images
          return mark(
            "circle",
            x,
            y,
            radius,
            { fill, stroke, "fill-opacity": 0.85, "stroke-width": 1.2 },
            `${percent(used[i].weight)} of the images`,
          );
        }),
      ];
    });
    const parts = [
      ...yAxis(f, FIFTHS, "accuracy, %", whole),
      ...xAxis(f, FIFTHS, "confidence, %", whole),
      line(f.x(0), f.y(0), f.x(1), f.y(1), { stroke: "#888888", "stroke-dasharray": "4 3" }),
      ...drawn,
    ];
    show(svg, height, parts, `Reliability diagram of ${chosen.method.name}: ECE ${percent(chosen.found.ece)}.`);
  }

  /** One line for each kind of prediction set over the classes. */
  function kindLines(model, f, axis, found, key) {
    return Object.entries(KIND_STYLES).flatMap(([kind, { color, shape }]) => {
      const values = model.order.map((c) => found.sets[kind][key][c]);
      const at = values.map((value, rank) => [axis.center(rank), f.y(value)]);
      const dots = at.map(([x, y], rank) =>
        mark(shape, x, y, 3.5, {
          fill: color,
          "data-kind": kind,
          "data-class": model.classes[model.order[rank]],
          "data-value": values[rank],
        }),
      );
      return [path(at, { stroke: color, "stroke-width": 1.4 }), ...dots];
    });
  }

  function sizes(svg, model, chosen) {
    const { sets } = chosen.found;
    const height = 270;
    const largest = Math.max(...Object.values(sets).flatMap((found) => found.sizes));
    const top = Math.min(model.classes.length, Math.max(2, Math.ceil(largest + 0.05)));
    const f = frame(height, { bottom: CLASS_BOTTOM, yMost: top });
    const every = top > 5 ? 2 : 1;
    const ticks = [...Array(top + 1).keys()].filter((v) => v % every === 0);
    const axis = classAxis(model, f);
    const said = Object.entries(sets)
      .map(([kind, { size }]) => `${kind} ${size.toFixed(2)}`)
      .join(", ");
    const parts = [
      ...yAxis(f, ticks, "classes in the set", String),
      ...axis.parts,
      ...kindLines(model, f, axis, chosen.found, "sizes"),
    ];
    show(svg, height, parts, `Mean size of the prediction sets by class; expected over the test set: ${said} classes.`);
  }

  function coverages(svg, model, chosen, alpha) {
    const height = 270;
    const f = frame(height, { bottom: CLASS_BOTTOM });
    const axis = classAxis(model, f);
    const lowest = Object.entries(chosen.found.sets).map(
      ([kind, found]) => `${kind} ${percent(Math.min(...found.coverages), 0)}`,
    );
    const aim = line(f.left, f.y(1 - alpha), f.right, f.y(1 - alpha), { stroke: INK, "stroke-dasharray": "4 3" });
    const parts = [
      ...yAxis(f, FIFTHS, "coverage, %", whole),
      aim,
      ...axis.parts,
      ...kindLines(model, f, axis, chosen.found, "coverages"),
    ];
    const wanted = percent(1 - alpha, 0);
    show(
      svg,
      height,
      parts,
      `Coverage by class, ${wanted} wanted; of the class with the lowest: ${lowest.join(", ")}.`,
    );
  }

  /** A small picture of a marker, for legends. */
  function sample(shape, color, hollow = false) {
    const style = hollow ? { fill: "#ffffff", stroke: color, "stroke-width": 2 } : { fill: color };
    return `<svg class="lab-sample" viewBox="0 0 14 14" aria-hidden="true">${mark(shape, 7, 7, 4.5, style)}</svg>`;
  }

  const shapeOf = (model, method) => SHAPES[model.methods.indexOf(method) % SHAPES.length];
  Object.assign(lab, {
    draw: { recalls, plane, reliability, sizes, coverages },
    sample,
    shapeOf,
    KIND_STYLES,
    escape,
    percent,
  });
})();
