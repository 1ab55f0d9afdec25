// @ts-check
// The token axis: the positions from:to of the bus, laid out between x0 and x0 + width.

/**
 * @param {Pick<State, "from" | "to">} state
 * @param {number} n
 * @param {number} x0
 * @param {number} width
 * @returns {Axis}
 */
export function axisOf(state, n, x0, width) {
  const from = Math.max(0, Math.min(state.from, n - 1)),
    to = state.to < 0 ? n : Math.min(n, Math.max(state.to, from + 1));
  const size = Math.max(to - from, 1),
    columns = Math.min(size, Math.max(1, Math.floor(width)));
  return {
    from,
    to,
    x0,
    width,
    columns,
    cell: width / size,
    shared: columns < size,
    x: (position) => x0 + ((position - from) / size) * width,
    at: (x) =>
      x < x0 || x >= x0 + width
        ? -1
        : Math.min(to - 1, from + Math.floor(((x - x0) / width) * size)),
    column: (c) => [
      from + Math.floor((c * size) / columns),
      from + Math.floor(((c + 1) * size) / columns),
    ],
  };
}

/**
 * One number per column of the axis: the "max" or "min" (`keep`) of values[start + position] over its positions, NaN
 * only where all of them are NaN.
 *
 * @param {Axis} axis
 * @param {ArrayLike<number>} values
 * @param {string} keep
 * @param {number} start
 */
export function columns(axis, values, keep, start = 0) {
  const extremes = new Float32Array(axis.columns),
    less = keep === "min";
  for (let c = 0; c < axis.columns; c++) {
    const [a, b] = axis.column(c);
    let best = NaN;
    for (let i = a; i < b; i++) {
      const v = values[start + i];
      if (Number.isNaN(best) || (less ? v < best : v > best)) best = v;
    }
    extremes[c] = best;
  }
  return extremes;
}

/**
 * Smallest and largest finite value; [0, 0] without one.
 *
 * @param {Float32Array} values
 */
export const spread = (values) => {
  let low = Infinity,
    high = -Infinity;
  values.forEach((v) => {
    if (v < low && v > -Infinity) low = v;
    if (v > high && v < Infinity) high = v;
  });
  return low <= high ? [low, high] : [0, 0];
};

/**
 * Tick labels at round positions, below a plot.
 *
 * @param {Pen} pen
 * @param {Axis} axis
 * @param {number} y
 * @param {Colors} theme
 */
export function ticks(pen, axis, y, theme) {
  const span = axis.to - axis.from,
    maxTicks = Math.max(1, axis.width / 70);
  let step = 1;
  for (let k = 1; span / step > maxTicks; k++) step = [1, 2, 5][k % 3] * 10 ** Math.floor(k / 3);
  for (let p = Math.ceil(axis.from / step) * step; p < axis.to; p += step) {
    const x = axis.x(p) + axis.cell / 2,
      right = axis.x0 + axis.width;
    pen.rect(x - 0.5, y, 1, 3, theme.soft);
    pen.text(Math.min(x, right - 4), y + 14, p.toLocaleString("en"), {
      fill: theme.soft,
      size: 11,
      align: x > right - 22 ? "end" : "center",
    });
  }
}

/**
 * Grays out the columns in which no token passes the filter.
 *
 * @param {Pen} pen
 * @param {Axis} axis
 * @param {Uint8Array | null} mask
 * @param {number} y
 * @param {number} h
 * @param {Colors} theme
 */
export function veil(pen, axis, mask, y, h, theme) {
  if (!mask) return;
  for (let c = 0, begin = -1; c <= axis.columns; c++) {
    let passes = c === axis.columns;
    for (let [i, b] = passes ? [0, 0] : axis.column(c); i < b && !passes; i++) passes = !!mask[i];
    const x = axis.x0 + (c / axis.columns) * axis.width;
    if (!passes && begin < 0) begin = x;
    if (passes && begin >= 0) {
      pen.rect(begin, y, x - begin, h, theme.paper, 0.78);
      begin = -1;
    }
  }
}

/**
 * The pinned position and the position under the mouse; -1 for none.
 *
 * @param {State} state
 */
export const pointed = (state) => [
  { position: state.pin, pin: true },
  { position: state.hover, pin: false },
];
