// @ts-check
// What the views of layers, heads and steps share: choices in the bar, cached queries, squares, scales, bars.
import { raster } from "./drawing.js";
import { axisOf, pointed, ticks, veil } from "./token_axis.js";
import { number } from "./token_index.js";
import { make } from "./view_frame.js";

/**
 * A menu in the bar of a view: [value, text] pairs; `f` hears of a choice.
 *
 * @param {View} view
 * @param {string} label
 * @param {[number | string, string][]} pairs
 * @param {(value: string) => void} f
 */
export function menu(view, label, pairs, f) {
  const options = pairs.map(([value, text]) => make("option", { value, textContent: text })),
    made = make("select", { label, title: label }, ...options);
  view.on(made, "change", () => f(made.value));
  view.bar.insertBefore(made, view.bar.querySelector(".wb-gap"));
  return made;
}

/**
 * Results of queries to Python: `get(kind, request)` asks once and gives null until the result is there.
 *
 * @param {Ask} ask
 * @param {(kind: string, request: Record<string, any>) => void} arrived
 */
export function queryCache(ask, arrived, limit = 64) {
  const results = new Map(),
    name = (kind, request) => kind + JSON.stringify(request);
  const store = (key, result) => {
    if (results.size >= limit) results.delete(results.keys().next().value);
    results.set(key, result);
  };
  return {
    put: (kind, request, result) => store(name(kind, request), result),
    get(kind, request) {
      const key = name(kind, request),
        done = (result) => {
          store(key, result);
          arrived(kind, request);
        };
      if (!results.has(key)) {
        store(key, null);
        ask(kind, request).then(done, (error) => done({ error: error.message }));
      }
      return results.get(key);
    },
  };
}

/**
 * Levels of a square of cells, `factor` tokens each from token `start` on, as the largest in each cell of the axis.
 *
 * @param {Axis} axis
 * @param {Numbers} cells
 * @param {number} start
 * @param {number} factor
 */
export function squares(axis, cells, start, factor) {
  const [side] = cells.shape,
    m = axis.columns,
    place = (p) => Math.max(0, Math.min(side - 1, Math.floor((p - start) / factor)));
  const ends = Int32Array.from({ length: 2 * m }, (_, i) =>
    place(axis.column(i >> 1)[i & 1] - (i & 1)),
  ); // first and last cell of each
  const rows = new Uint8Array(m * side),
    found = new Uint8Array(m * m); // first over queries, then over keys
  for (let r = 0; r < m; r++)
    for (let i = ends[2 * r]; i <= ends[2 * r + 1]; i++)
      for (let j = 0, at = r * side, from = i * side; j < side; j++, at++, from++)
        if (cells[from] > rows[at]) rows[at] = cells[from];
  for (let r = 0; r < m; r++)
    for (let c = 0; c <= r; c++) {
      let best = 0;
      for (let j = r * side + ends[2 * c], last = r * side + ends[2 * c + 1]; j <= last; j++)
        if (rows[j] > best) best = rows[j];
      found[r * m + c] = best;
    }
  return found;
}

/**
 * What the colours mean: a strip with its two ends.
 *
 * @param {Pen} pen
 * @param {Colours} c
 * @param {number} x
 * @param {number} y
 * @param {Uint32Array} colours
 * @param {string} low
 * @param {string} high
 * @param {string} label
 */
export function scale(pen, c, x, y, colours, low, high, label) {
  pen.image(
    x,
    y,
    60,
    7,
    raster(60, 1, colours, (_, k) => (k / 59) * 255),
  );
  pen.text(x, y + 19, low, { fill: c.soft, size: 10 });
  pen.text(x + 60, y + 19, high, { fill: c.soft, size: 10, align: "end" });
  pen.text(x + 70, y + 8, label, { fill: c.soft, size: 10.5 });
}

/**
 * Rows of [text, share of the width, number]: a bar behind each text.
 *
 * @param {Pen} pen
 * @param {Colours} c
 * @param {number} x
 * @param {number} y
 * @param {number} width
 * @param {[string, number, number][]} rows
 */
export function list(pen, c, x, y, width, rows) {
  rows.forEach(([text, share, value], k) => {
    pen.rect(x, y + k * 18, Math.max(0, share) * width, 15, c.bar, 0.3);
    pen.text(x + 4, y + k * 18 + 12, text, { fill: c.ink, size: 11, width: width - 56 });
    pen.text(x + width, y + k * 18 + 12, number(value), { fill: c.soft, size: 11, align: "end" });
  });
}

/**
 * How far from the left the token axis begins: names of rows stand there.
 *
 * @param {number} width
 */
export const gutter = (width) => (width < 560 ? 64 : 150);

/**
 * A plot over the token axis, with its title, marks and positions. `draw(pen, axis, y, height)`; `row(y)` gives the layer.
 *
 * @param {View} view
 * @param {ViewContext} ctx
 * @param {StripOptions} options
 */
export function strip(
  view,
  ctx,
  { label, title, size, draw, row = () => -1, on = [], pooled = true },
) {
  const { tokens, bus, theme } = ctx,
    { state } = bus,
    top = 20;
  const axis = (width) =>
    axisOf(state, tokens.n, gutter(width), Math.max(40, width - gutter(width) - 8));
  const plot = view.plot({
    label,
    axis,
    on: ["from", "to", "only", "lock", ...on],
    size: (width) => top + size(width) + 22,
    draw(pen, width, y0) {
      const a = axis(width),
        h = size(width),
        c = theme.of;
      pen.text(0, y0 + 13, title(a) + (pooled && a.shared ? " · downsampled (max)" : ""), {
        fill: c.ink,
        bold: true,
        size: 12,
        width,
      });
      draw(pen, a, y0 + top, h);
      veil(pen, a, tokens.mask(state.only, state.lock), y0 + top, h, c);
      ticks(pen, a, y0 + top + h + 1, c);
    },
    hit(x, y) {
      const hover = axis(plot.box.clientWidth).at(x);
      return hover < 0 ? null : { hover, row: row(y - top, plot.box.clientWidth) };
    },
    mark(_, width) {
      const a = axis(width),
        h = size(width);
      return pointed(state)
        .filter(({ position: p }) => p >= a.from && p < a.to)
        .map(({ position: p, lock }) => ({ x: a.x(p), y: top, w: Math.max(1, a.cell), h, lock }));
    },
  });
  return plot;
}

/**
 * A plot of named cells. `cells(width)` gives {title, rows, columns, at(r, c), low, high, colours, unit, note, height, widest}, with `side` for square
 * cells that together are no taller; `describe(r, c)` is said of a cell, `link(r, c)` what the bus hears while the mouse is on it, `pick(r, c)` what a click does, `pinned()` gives [row, column] or -1s.
 *
 * @param {View} view
 * @param {ViewContext} ctx
 * @param {MatrixOptions} options
 */
export function matrix(
  view,
  ctx,
  {
    label,
    cells,
    describe,
    link = () => ({ hover: -1 }),
    pick = () => {},
    pinned = () => [-1, -1],
    on = [],
  },
) {
  const { bus, theme, el } = ctx,
    top = 42;
  /** @type {[number, number] | null} */
  let over = null;
  const place = (width) => {
    const m = cells(width),
      x0 = gutter(width) + (m.wide ?? 0),
      w = Math.max(
        1,
        Math.min(
          m.widest ?? 34,
          (width - x0 - 8) / m.columns.length,
          (m.side ?? Infinity) / m.rows.length,
        ),
      );
    return {
      m,
      x0,
      w,
      h: m.side ? w : (m.height ?? Math.max(4, Math.min(16, 420 / m.rows.length))),
    };
  };
  /**
   * @param {number} x
   * @param {number} y
   * @returns {[number, number] | null}
   */
  const spot = (x, y) => {
    const { m, x0, w, h } = place(plot.box.clientWidth),
      [r, k] = [Math.floor((y - top) / h), Math.floor((x - x0) / w)];
    return r >= 0 && k >= 0 && r < m.rows.length && k < m.columns.length ? [r, k] : null;
  };
  const plot = view.plot({
    label,
    on: ["layer", ...on],
    size(width) {
      const { m, h } = place(width);
      return top + m.rows.length * h + 8;
    },
    draw(pen, width, y0) {
      const { m, x0, w, h } = place(width),
        c = theme.of,
        y = y0 + top,
        [rows, columns] = [m.rows.length, m.columns.length],
        span = m.high - m.low || 1;
      pen.text(0, y0 + 13, m.title, {
        fill: c.ink,
        bold: true,
        size: 12,
        width: width < 700 ? width : width - 250,
      });
      if (width >= 700)
        scale(pen, c, width - 240, y0 + 4, m.colours, number(m.low), number(m.high), m.unit);
      if (m.note)
        pen.text(0, y0 + 27, m.note, {
          fill: c.soft,
          size: 11,
          width: width < 700 ? width : width - 250,
        });
      if (!rows || !columns) return;
      pen.image(
        x0,
        y,
        w * columns,
        h * rows,
        raster(columns, rows, m.colours, (r, k) => {
          const v = m.at(r, k);
          return Number.isNaN(v) ? -1 : Math.max(0, Math.min(255, ((v - m.low) / span) * 255));
        }),
      );
      const each = Math.ceil(11 / h),
        some = Math.ceil((8 + 6.5 * Math.max(...m.columns.map((t) => String(t).length))) / w);
      m.rows.forEach(
        (text, r) =>
          r % each ||
          pen.text(x0 - 6, y + (r + 0.5) * h + 4, text, {
            fill: m.mine === r ? c.mark : c.ink,
            size: Math.min(11, Math.max(9, h)),
            align: "end",
            bold: m.mine === r,
            width: x0 - 8,
          }),
      );
      m.columns.forEach(
        (text, k) =>
          k % some ||
          pen.text(x0 + (k + 0.5) * w, y - 4, text, { fill: c.soft, size: 10, align: "center" }),
      );
    },
    hit(x, y) {
      over = spot(x, y);
      return over && { ...link(...over), cell: label + over };
    },
    mark(_, width) {
      const { m, x0, w, h } = place(width),
        marks = [],
        [row, column] = pinned();
      if (row >= 0 && row < m.rows.length)
        marks.push({ x: x0, y: top + row * h, w: w * m.columns.length, h, lock: true });
      if (column >= 0 && column < m.columns.length)
        marks.push({ x: x0 + column * w, y: top, w, h: h * m.rows.length, lock: true });
      if (over && over[0] < m.rows.length && over[1] < m.columns.length)
        marks.push({ x: x0 + over[1] * w, y: top + over[0] * h, w, h });
      return marks;
    },
  });
  view.on(plot.box, "pointerleave", () => {
    over = null;
    bus.set({ cell: "" });
  });
  view.on(plot.box, "click", (event) => {
    const r = plot.box.getBoundingClientRect(),
      found = spot(event.clientX - r.left, event.clientY - r.top);
    if (found) pick(...found);
  });
  bus.on(() => {
    if (over) el.querySelector(".wb-said").textContent = describe(...over);
  }, ctx.signal);
  return plot;
}
