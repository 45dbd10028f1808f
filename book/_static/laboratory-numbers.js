// The logit laboratory's numbers: unpacks the stored logits and measures a method at the reader's setting.
// ltnotes/laboratory_figures.py computes the same in Python, and the tests compare both.
// No page loads these files in a known order, so each adds its functions to one shared object.

(() => {
  "use strict";
  const lab = (window.ltnotesLaboratory ??= {});

  const BINS = 15;
  const SLACK = 1e-9; // of sums and products that would be whole without rounding
  const DEFAULT = { tau: 0, prior: 0, temperature: 1, alpha: 0.1, few: false };
  const KINDS = ["marginal", "class-wise", "prevalence-adjusted"];

  function bytesOf(text) {
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
    return bytes;
  }

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  /** Steps below the largest logit of each image, from two 12-bit numbers in three bytes. */
  function unpack(text, length) {
    const bytes = bytesOf(text);
    const steps = new Uint16Array(length + (length % 2));
    for (let from = 0, to = 0; to < steps.length; from += 3, to += 2) {
      steps[to] = (bytes[from] << 4) | (bytes[from + 1] >> 4);
      steps[to + 1] = ((bytes[from + 1] & 15) << 8) | bytes[from + 2];
    }
    return steps;
  }

  /** The data file, ready to be measured. */
  function open(data) {
    const { counts, classes } = data;
    const labels = bytesOf(data.labels);
    const total = counts.reduce((sum, n) => sum + n, 0);
    const order = counts.map((_, c) => c).sort((a, b) => counts[b] - counts[a] || a - b);
    const groupOf = counts.map((_, c) => Object.keys(data.groups).find((name) => data.groups[name].includes(c)));
    const images = classes.map(() => []); // of each class, in the order of the test set
    labels.forEach((label, i) => images[label].push(i));
    return {
      ...data,
      labels,
      order,
      groupOf,
      logPi: counts.map((n) => Math.log(n / total)),
      tested: images.map((own) => own.length),
      // a fixed split that keeps the classes' shares: every other image of each class
      calibrating: images.map((own) => own.filter((_, at) => at % 2 === 0)),
      shown: images.map((own) => own.filter((_, at) => at % 2 === 1)),
      methods: data.methods.map((method) => ({
        ...method,
        steps: unpack(method.logits, labels.length * classes.length),
      })),
      scratch: new Float64Array(labels.length * classes.length),
    };
  }

  /** Class frequencies of the test set: those of training to a power, or those of the class of opposite rank. */
  function classShares({ counts, order }, exponent) {
    const n = counts.slice();
    if (exponent < 0) order.forEach((c, rank) => (n[c] = counts[order[order.length - 1 - rank]]));
    const shares = n.map((value) => value ** Math.abs(exponent));
    const total = shares.reduce((sum, share) => sum + share, 0);
    return shares.map((share) => share / total);
  }

  /** One pass over the images: log probabilities into model.scratch, recalls and bins of confidence. */
  function classify(model, method, { tau, temperature }, weights) {
    const C = model.classes.length;
    const { labels, scratch } = model;
    const shift = model.logPi.map((value) => tau * value);
    const hits = new Float64Array(C);
    const bins = Array.from({ length: BINS }, () => ({ weight: 0, confidence: 0, accuracy: 0 }));
    for (let i = 0, at = 0; i < labels.length; i++, at += C) {
      let best = 0;
      for (let c = 0; c < C; c++) {
        scratch[at + c] = (-model.step * method.steps[at + c]) / temperature - shift[c];
        if (scratch[at + c] > scratch[at + best]) best = c;
      }
      const top = scratch[at + best];
      let sum = 0;
      for (let c = 0; c < C; c++) sum += Math.exp(scratch[at + c] - top);
      const log = Math.log(sum);
      for (let c = 0; c < C; c++) scratch[at + c] = scratch[at + c] - top - log;
      const hit = best === labels[i] ? 1 : 0;
      hits[labels[i]] += hit;
      const confidence = Math.exp(-log);
      const bin = bins[Math.min(BINS, Math.max(1, Math.ceil(confidence * BINS))) - 1];
      bin.weight += weights[labels[i]];
      bin.confidence += weights[labels[i]] * confidence;
      bin.accuracy += weights[labels[i]] * hit;
    }
    return { recalls: model.tested.map((n, c) => hits[c] / n), bins };
  }

  /** All that the page shows of one method at one setting; shares are from 0 to 1. */
  function measure(model, method, setting) {
    const q = classShares(model, setting.prior);
    const { recalls, bins } = classify(
      model,
      method,
      setting,
      q.map((share, c) => share / model.tested[c]),
    );
    return {
      recalls,
      bins,
      accuracy: recalls.reduce((sum, recall, c) => sum + q[c] * recall, 0),
      balanced: mean(recalls),
      groups: groupMeans(model, recalls),
      ece: bins.reduce((sum, bin) => sum + Math.abs(bin.accuracy - bin.confidence), 0),
      sets: Object.fromEntries(KINDS.map((kind) => [kind, predictionSets(model, kind, setting, q)])),
    };
  }

  function groupMeans(model, recalls) {
    const entries = Object.entries(model.groups);
    return Object.fromEntries(entries.map(([name, members]) => [name, mean(members.map((c) => recalls[c]))]));
  }

  /** Images of each class that calibrate: all of its half, or as few in the tail as training images are. */
  function calibrationSizes(model, few) {
    const largest = Math.max(...model.counts);
    const kept = (half, c) => (few ? Math.max(1, Math.floor((half * model.counts[c]) / largest + 0.5)) : half);
    return model.calibrating.map((own, c) => kept(own.length, c));
  }

  /** Sets of one kind from the log probabilities in model.scratch. */
  function predictionSets(model, kind, { alpha, few }, q) {
    const C = model.classes.length;
    const minus = kind === "prevalence-adjusted" ? model.logPi : model.logPi.map(() => 0);
    const strange = (i, c) => -(model.scratch[i * C + c] - minus[c]);
    const sizes = calibrationSizes(model, few);
    const scores = sizes.map((size, c) =>
      Float64Array.from(model.calibrating[c].slice(0, size), (i) => strange(i, c)).sort(),
    );
    const limits =
      kind === "class-wise"
        ? scores.map((own) => threshold([own], [1], alpha))
        : new Array(C).fill(threshold(scores, q, alpha));
    const found = { sizes: [], coverages: [], infinite: limits.filter((limit) => limit === Infinity).length };
    model.shown.forEach((own, label) => {
      let members = 0;
      let covered = 0;
      for (const i of own) {
        for (let c = 0; c < C; c++) if (strange(i, c) <= limits[c]) members++;
        if (strange(i, label) <= limits[label]) covered++;
      }
      found.sizes.push(members / own.length);
      found.coverages.push(covered / own.length);
    });
    const expected = (values) => values.reduce((sum, value, c) => sum + q[c] * value, 0);
    return { ...found, size: expected(found.sizes), coverage: expected(found.coverages) };
  }

  /**
   * The quantile at ceil((n + 1)(1 - alpha)) / n of n calibration scores, infinite where that is over 1.
   * The scores come sorted for each class; a class weighs its share of the test set, so this merges the lists.
   */
  function threshold(lists, shares, alpha) {
    const n = lists.reduce((sum, own) => sum + own.length, 0);
    const k = Math.ceil((n + 1) * (1 - alpha) - SLACK);
    if (k > n) return Infinity;
    const next = lists.map(() => 0);
    let reached = 0;
    for (;;) {
      let from = -1;
      lists.forEach((own, c) => {
        if (next[c] < own.length && (from < 0 || own[next[c]] < lists[from][next[from]])) from = c;
      });
      const score = lists[from][next[from]++];
      reached += shares[from] / lists[from].length;
      if (reached >= k / n - SLACK) return score;
    }
  }

  /** Accuracy on the largest and on the smallest classes for each tau: the curve of the head-tail plane. */
  function sweep(model, method, temperature, taus) {
    const found = Object.fromEntries(["largest", "smallest"].map((name) => [name, taus.map(() => 0)]));
    for (const [name, hits] of Object.entries(found)) {
      for (const label of model.groups[name]) {
        const worth = 1 / model.tested[label] / model.groups[name].length;
        for (const half of [model.calibrating[label], model.shown[label]])
          for (const i of half) addHits(hits, worth, i, label, { model, method, temperature, taus });
      }
    }
    return taus.map((tau, t) => ({ tau, x: found.largest[t], y: found.smallest[t] }));
  }

  const row = new Float64Array(256); // scores of one image, here once for all

  function addHits(hits, worth, i, label, { model, method, temperature, taus }) {
    const { logPi, step } = model;
    const C = logPi.length;
    for (let c = 0; c < C; c++) row[c] = (-step * method.steps[i * C + c]) / temperature;
    for (let t = 0; t < taus.length; t++) {
      const tau = taus[t];
      const own = row[label] - tau * logPi[label];
      let won = true; // a draw goes to the class with the smaller id, as in classify
      for (let c = 0; won && c < C; c++) {
        const score = row[c] - tau * logPi[c];
        won = c < label ? score < own : score <= own;
      }
      if (won) hits[t] += worth;
    }
  }

  Object.assign(lab, { DEFAULT, KINDS, open, classShares, measure, calibrationSizes, sweep });
})();
