// @ts-check
// Arrays (step key_step) as a matrix and as arcs over the tokens. Steps are numbered from 0.
import { ramp } from "./drawing.js";
import { register } from "./mount.js";
import { queryCache, gutter, matrix, menu, strip } from "./plots.js";
import { MAX_ARCS, arcs, linksOf } from "./step_arcs.js";
import { axisOf } from "./token_axis.js";
import { number, plain } from "./token_index.js";
import { frame } from "./view_frame.js";

const ARCS_HEIGHT = 116,
  MAX_SIDE = 360;

/**
 * Rows and columns from:to of a square matrix, pooled: each cell of `by` x `by` values keeps the one of largest
 * magnitude.
 *
 * @param {ArrayLike<number>} values
 * @param {number} side
 * @param {number} from
 * @param {number} to
 * @param {number} by
 */
export function pooled(values, side, from, to, by) {
  const size = Math.ceil((to - from) / by),
    cells = new Float32Array(size * size).fill(NaN);
  for (let r = from; r < to; r++)
    for (let c = from; c < to; c++) {
      const v = values[r * side + c],
        at = Math.floor((r - from) / by) * size + Math.floor((c - from) / by);
      if (!(Math.abs(v) <= Math.abs(cells[at])) && !Number.isNaN(v)) cells[at] = v;
    }
  return cells;
}

register("steps", (ctx) => {
  const { data, tokens, bus, theme } = ctx,
    { state } = bus,
    { steps } = tokens,
    { edges } = data,
    count = steps.length;
  let arrayIndex = 0,
    cached = /** @type {any} */ ({}),
    key = "";
  const redraw = () => view.figures.forEach((f) => f.paint?.());
  const store = queryCache(ctx.queryPython, redraw, 24);
  data.matrices.forEach(({ array, layer, ...rest }, k) => {
    const arrays = Object.fromEntries(
      ["cells", "ends", "strength"].map((name) => [name, data.arrays[`${k}:${name}`]]),
    );
    store.put("cells", { array, layer, from: 0, to: count }, { ...rest, arrays });
  });
  const layer = () => (edges[arrayIndex].layers.length ? state.layer : -1);
  const allSteps = () =>
    store.get("cells", { array: arrayIndex, layer: layer(), from: 0, to: count });
  /** The steps that overlap the zoomed range of tokens: [first, stop]. */
  const range = () => {
    const { from, to } = axisOf(state, tokens.n, 0, 1),
      first = steps.findIndex((s) => s.stop > from),
      stop = steps.findLastIndex((s) => s.start < to) + 1;
    return first < 0 || stop <= first ? [0, 0] : [first, stop];
  };
  /**
   * The cells to draw (`reply`): those of the zoomed range once they have arrived from Python, until then those of all
   * steps.
   */
  const currentCells = () => {
    const [first, stop] = range(),
      all = allSteps();
    const zoomed =
      all?.arrays &&
      stop &&
      stop - first < count &&
      store.get("cells", { array: arrayIndex, layer: layer(), from: first, to: stop });
    return { first, stop, all, reply: zoomed?.arrays ? zoomed : all };
  };
  const stepsText = (s, stop = s + 1) =>
    stop > s + 1 ? `steps ${s}–${stop - 1}` : `step ${s} (${plain(steps[s].kind)})`;
  /** What the matrix draws at this width: its cells, and the group of steps in each row and column. */
  const content = (width) => {
    const { first, stop, reply } = currentCells(),
      { label, unit, over, layers } = edges[arrayIndex],
      side = Math.min(MAX_SIDE, Math.max(40, width - gutter(width) - 8));
    const where = layers.length
        ? layer() < 0
          ? `, mean over ${layers.length} layers`
          : `, layer ${layer()}`
        : "",
      cacheKey = [arrayIndex, layer(), first, stop, side, theme.of.paper].join();
    if (key === cacheKey && cached.reply === reply) return cached;
    key = cacheKey;
    const { of: c } = theme,
      empty = {
        reply,
        rows: [],
        columns: [],
        at: () => NaN,
        low: 0,
        high: 1,
        colors: ramp(c.low, c.blue),
        unit,
        side: MAX_SIDE,
        title: `${label}${where} · ${reply?.error ?? (reply ? "no step in this range" : "…")}`,
      };
    if (!reply?.arrays || !stop) {
      cached = empty;
      return cached;
    }
    const { start, factor, high, signed } = reply,
      [from, to] = [Math.floor((first - start) / factor), Math.ceil((stop - start) / factor)];
    const by = Math.ceil((to - from) / side),
      cells = pooled(reply.arrays.cells, reply.arrays.cells.shape[0], from, to, by),
      size = Math.ceil((to - from) / by),
      each = by * factor,
      begin = start + from * factor;
    const groups = Array.from({ length: size }, (_, g) => [
      begin + g * each,
      Math.min(count, begin + (g + 1) * each),
    ]);
    const columns = groups.map(([s]) => s),
      rows = groups.map(([s]) => (each > 1 ? s : `${s} ${plain(steps[s].kind)}`));
    const downsampled = each > 1 ? ` · downsampled: the largest of ${each} × ${each} steps` : "";
    cached = {
      reply,
      groups,
      each,
      begin,
      rows,
      columns,
      side,
      at: (r, k) => cells[r * size + k],
      low: signed ? -high : 0,
      high,
      colors: signed ? ramp(c.minus, c.low, c.plus) : empty.colors,
      unit,
      title: label + where + over,
      note: `row: step, column: key_step${downsampled}`,
    };
    return cached;
  };
  const snippet = (s) => {
    let text = "";
    for (let i = steps[s].start; i < steps[s].stop && text.length < 70; i++)
      text += tokens.oneLine(i);
    return text.length > 70 ? `${text.slice(0, 70)}…` : text;
  };
  const readout = (i) => {
    const s = tokens.step[i],
      links = allSteps()?.arrays;
    return s < 0
      ? ["not part of a step"]
      : [
          `“${snippet(s)}”`,
          ...(links
            ? [`from steps ${linksOf(links, s, 0)} · to steps ${linksOf(links, s, 1)}`]
            : []),
        ];
  };
  const view = frame(ctx, {
    label: "steps",
    readout,
    args: () => data.args + (data.numbers.includes(state.layer) ? `, layer=${state.layer}` : ""),
  });
  if (edges.length > 1)
    menu(
      view,
      "array",
      edges.map(({ label }, k) => [k, label]),
      (v) => {
        arrayIndex = +v;
        follow();
        redraw();
      },
    );
  const layers = menu(
    view,
    "layer (↑ ↓)",
    [[-1, "mean over layers"], ...data.numbers.map((l) => [l, `layer ${l}`])],
    (v) => bus.set({ layer: +v }),
  );
  const follow = () => {
    layers.value = String(state.layer);
    layers.hidden = !edges[arrayIndex].layers.length;
  };
  bus.on(follow, ctx.signal);
  follow();
  const group = (p) => {
    const { groups, begin, each } = cached,
      s = p >= 0 ? tokens.step[p] : -1;
    return groups && s >= begin ? Math.floor((s - begin) / each) : -1;
  };
  matrix(view, ctx, {
    label: "step by step",
    cells: content,
    on: ["from", "to"],
    describe(r, k) {
      const { groups, at, each } = cached,
        [row, column] = [groups?.[r], groups?.[k]];
      if (!row || !column) return "";
      const texts =
        each > 1 ? "" : `\n${row[0]}: “${snippet(row[0])}”\n${column[0]}: “${snippet(column[0])}”`;
      return `${stepsText(...row)} from ${stepsText(...column)}: ${number(at(r, k))} ${edges[arrayIndex].unit}${each > 1 ? `, the largest of ${each} × ${each} steps` : ""}${texts}`;
    },
    link: (r, k) => ({
      hover: steps[cached.groups[r][0]].start,
      key: steps[cached.groups[k][0]].start,
    }),
    pinned: () => [group(state.pin), -1],
  });
  const links = () => {
    const { first, stop, all, reply } = currentCells();
    return {
      ends: [],
      strength: [],
      ...reply?.arrays,
      high: reply?.high,
      signed: reply?.signed,
      part: reply === all && stop - first < count,
    };
  };
  strip(view, ctx, {
    label: "arcs over the tokens",
    on: ["layer"],
    pooled: false,
    size: () => ARCS_HEIGHT,
    title() {
      const { strength, signed, part } = links();
      return `the same values as arcs over the tokens${strength.length > MAX_ARCS ? `, the strongest ${MAX_ARCS}${part ? " of all steps" : ""}` : ""}${signed ? "; orange: positive, blue: negative" : ""}`;
    },
    draw(pen, a, y) {
      const c = theme.of,
        drawn = links(),
        pinned = state.pin >= 0 ? tokens.step[state.pin] : -1,
        bottom = y + ARCS_HEIGHT - 18;
      arcs(pen, a, c, steps, drawn, drawn.high, bottom - 2, ARCS_HEIGHT - 24, pinned);
      steps.forEach((s, i) => {
        const x1 = Math.max(a.x0, a.x(s.start)),
          x2 = Math.min(a.x0 + a.width, a.x(s.stop));
        if (x2 <= x1) return;
        pen.rect(
          x1,
          bottom,
          Math.max(0.5, x2 - x1 - 1),
          16,
          c[`k${s.color}`],
          i === pinned ? 0.9 : 0.45,
        );
        if (x2 - x1 > 14)
          pen.text(x1 + 3, bottom + 12, x2 - x1 > 90 ? `${i} ${plain(s.kind)}` : String(i), {
            fill: c.ink,
            size: 10.5,
            width: x2 - x1 - 4,
          });
      });
      pen.text(a.x0 - 6, bottom + 12, "steps", { fill: c.soft, size: 11, align: "end" });
    },
  });
});
