// @ts-check
// Parts that several views share: menus in the bar, cached queries, strips, matrices, color scales, bars.
import { raster } from "./drawing.js";
import { axisOf, pointed, ticks, veil } from "./token_axis.js";
import { number } from "./token_index.js";
import { make } from "./view_frame.js";

/**
 * A menu in the bar of a view, from pairs [value, text]; `f(value)` is called when the reader chooses.
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
 * Results of queries to Python. `get(kind, request)` sends each query once and is null until its result has arrived.
 *
 * @param {QueryPython} queryPython
 * @param {(kind: string, request: Record<string, any>) => void} arrived
 */
export function queryCache(queryPython, arrived, limit = 64) {
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
        queryPython(kind, request).then(done, (error) => done({ error: error.message }));
      }
      return results.get(key);
    },
  };
}

/**
 * A causal square (query key) over the columns of the axis, each cell the largest level of its tokens. A cell of
 * `cells`
 * covers `factor` x `factor` tokens, from token `start` on.
 *
 * @param {Axis} axis
 * @param {Numbers} cells
 * @param {number} start
 * @param {number} factor
 */
export function pooledSquare(axis, cells, start, factor) {
  const [side] = cells.shape,
    m = axis.columns,
    place = (p) => Math.max(0, Math.min(side - 1, Math.floor((p - start) / factor)));
  const ends = Int32Array.from({ length: 2 * m }, (_, i) =>
    place(axis.column(i >> 1)[i & 1] - (i & 1)),
  ); // first and last cell of each column
  const rows = new Uint8Array(m * side),
    square = new Uint8Array(m * m); // the maximum over queries first, then over keys
  for (let r = 0; r < m; r++)
    for (let i = ends[2 * r]; i <= ends[2 * r + 1]; i++)
      for (let j = 0, at = r * side, from = i * side; j < side; j++, at++, from++)
        if (cells[from] > rows[at]) rows[at] = cells[from];
  for (let r = 0; r < m; r++)
    for (let c = 0; c <= r; c++) {
      let best = 0;
      for (let j = r * side + ends[2 * c], last = r * side + ends[2 * c + 1]; j <= last; j++)
        if (rows[j] > best) best = rows[j];
      square[r * m + c] = best;
    }
  return square;
}

/**
 * The width of a color scale, so that the values at its ends are apart.
 *
 * @param {string} low
 * @param {string} high
 */
export const scaleWidth = (low, high) => Math.max(60, 6.2 * (low.length + high.length) + 8);

/**
 * A color scale: a strip with the values at its two ends.
 *
 * @param {Pen} pen
 * @param {Colors} c
 * @param {number} x
 * @param {number} y
 * @param {Uint32Array} colors
 * @param {string} low
 * @param {string} high
 * @param {string} label
 */
export function scale(pen, c, x, y, colors, low, high, label) {
  const w = scaleWidth(low, high);
  pen.image(
    x,
    y,
    w,
    7,
    raster(60, 1, colors, (_, k) => (k / 59) * 255),
  );
  pen.text(x, y + 19, low, { fill: c.soft, size: 10 });
  pen.text(x + w, y + 19, high, { fill: c.soft, size: 10, align: "end" });
  pen.text(x + w + 10, y + 8, label, { fill: c.soft, size: 10.5 });
}

/**
 * Rows of [text, share of the width, number]: a bar behind each text.
 *
 * @param {Pen} pen
 * @param {Colors} c
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
 * Pixels between the left edge and the token axis: the place for row names.
 *
 * @param {number} width
 */
export const gutter = (width) => (width < 560 ? 64 : 150);

/**
 * A plot over the token axis, with title, marks and positions. `draw(pen, axis, y, height)` draws it; `row(y)` is
 * the layer
 * at a height, or -1.
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
    on: ["from", "to", "only", "pin", ...on],
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
      veil(pen, a, tokens.mask(state.only, state.pin), y0 + top, h, c);
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
        .map(({ position: p, pin }) => ({ x: a.x(p), y: top, w: Math.max(1, a.cell), h, pin }));
    },
  });
  return plot;
}

/**
 * A plot of named cells. `cells(width)` gives {title, rows, columns, at(r, c), low, high, colors, unit, note, height,
 * widest}; with `side` the cells are square and together at most that high. `describe(r, c)` is the text of a cell,
 * `link(r, c)` the change of the bus while the mouse is on it, `pick(r, c)` is called by a click, and `pinned()` gives
 * [row, column], -1 for none.
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
  const { bus, theme } = ctx,
    top = 42;
  /** @type {[number, number] | null} */
  let hovered = null;
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
        scale(pen, c, width - 240, y0 + 4, m.colors, number(m.low), number(m.high), m.unit);
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
        raster(columns, rows, m.colors, (r, k) => {
          const v = m.at(r, k);
          return Number.isNaN(v) ? -1 : Math.max(0, Math.min(255, ((v - m.low) / span) * 255));
        }),
      );
      const rowStep = Math.ceil(11 / h), // so that the names do not overlap
        columnStep = Math.ceil((8 + 6.5 * Math.max(...m.columns.map((t) => String(t).length))) / w);
      m.rows.forEach(
        (text, r) =>
          r % rowStep ||
          pen.text(x0 - 6, y + (r + 0.5) * h + 4, text, {
            fill: m.highlightedRow === r ? c.mark : c.ink,
            size: Math.min(11, Math.max(9, h)),
            align: "end",
            bold: m.highlightedRow === r,
            width: x0 - 8,
          }),
      );
      m.columns.forEach(
        (text, k) =>
          k % columnStep ||
          pen.text(x0 + (k + 0.5) * w, y - 4, text, { fill: c.soft, size: 10, align: "center" }),
      );
    },
    hit(x, y) {
      hovered = spot(x, y);
      return hovered && { ...link(...hovered), cell: label + hovered };
    },
    mark(_, width) {
      const { m, x0, w, h } = place(width),
        marks = [],
        [row, column] = pinned();
      if (row >= 0 && row < m.rows.length)
        marks.push({ x: x0, y: top + row * h, w: w * m.columns.length, h, pin: true });
      if (column >= 0 && column < m.columns.length)
        marks.push({ x: x0 + column * w, y: top, w, h: h * m.rows.length, pin: true });
      if (hovered && hovered[0] < m.rows.length && hovered[1] < m.columns.length)
        marks.push({ x: x0 + hovered[1] * w, y: top + hovered[0] * h, w, h });
      return marks;
    },
  });
  view.on(plot.box, "pointerleave", () => {
    hovered = null;
    bus.set({ cell: "" });
  });
  view.on(plot.box, "click", (event) => {
    const r = plot.box.getBoundingClientRect(),
      cell = spot(event.clientX - r.left, event.clientY - r.top);
    if (cell) pick(...cell);
  });
  bus.on(() => {
    if (hovered) view.describe(describe(...hovered));
  }, ctx.signal);
  return plot;
}
