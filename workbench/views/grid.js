// What the views of layers, heads and steps share: choices in the bar, answers that are kept, squares, scales, bars.
import { make, number, raster } from "./shared.js";

/** A menu in the bar of a view: [value, text] pairs; `f` hears of a choice. */
export function menu(view, label, pairs, f) {
  const options = pairs.map(([value, text]) => make("option", { value, textContent: text })), made = make("select", { label, title: label }, ...options);
  view.on(made, "change", () => f(made.value));
  view.bar.insertBefore(made, view.bar.querySelector(".wb-gap"));
  return made;
}

/** Answers of Python, asked once and kept: `get(kind, wanted)` gives the answer, null while it is on its way. */
export function answers(ask, arrived, most = 64) {
  const kept = new Map(), name = (kind, wanted) => kind + JSON.stringify(wanted);
  const keep = (key, answer) => {
    if (kept.size >= most) kept.delete(kept.keys().next().value);
    kept.set(key, answer);
  };
  return {
    put: (kind, wanted, answer) => keep(name(kind, wanted), answer),
    get(kind, wanted) {
      const key = name(kind, wanted), done = (answer) => (keep(key, answer), arrived());
      if (!kept.has(key)) keep(key, null), ask(kind, wanted).then(done, (error) => done({ error: error.message }));
      return kept.get(key);
    },
  };
}

/** Levels of a square of cells, `factor` tokens each from token `start` on, as the largest in each cell of the axis. */
export function squares(axis, cells, start, factor) {
  const [side] = cells.shape, m = axis.columns, last = side - 1, found = new Uint8Array(m * m);
  const ends = Array.from({ length: m }, (_, c) => axis.column(c).map((p, i) => Math.max(0, Math.min(last, Math.floor((p - i - start) / factor)))));
  for (let r = 0; r < m; r++) for (let c = 0; c <= r; c++) {
    let best = 0;
    for (let i = ends[r][0]; i <= ends[r][1]; i++) for (let j = ends[c][0]; j <= ends[c][1]; j++) best = Math.max(best, cells[i * side + j]);
    found[r * m + c] = best;
  }
  return found;
}

/** What the colours mean: a strip with its two ends. */
export function scale(pen, c, x, y, colours, low, high, label) {
  pen.image(x, y, 60, 7, raster(60, 1, colours, (_, k) => (k / 59) * 255));
  pen.text(x, y + 19, low, { fill: c.soft, size: 10 });
  pen.text(x + 60, y + 19, high, { fill: c.soft, size: 10, align: "end" });
  pen.text(x + 70, y + 8, label, { fill: c.soft, size: 10.5 });
}

/** Rows of [text, share of the width, number]: a bar behind each text. */
export function list(pen, c, x, y, width, rows) {
  rows.forEach(([text, share, value], k) => {
    pen.rect(x, y + k * 18, Math.max(0, share) * width, 15, c.bar, 0.3);
    pen.text(x + 4, y + k * 18 + 12, text, { fill: c.ink, size: 11, width: width - 56 });
    pen.text(x + width, y + k * 18 + 12, number(value), { fill: c.soft, size: 11, align: "end" });
  });
}
