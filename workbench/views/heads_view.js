// @ts-check
// Attention heads: all heads of a layer as thumbnails, one head large with its sink and the edge of the sliding
// window, and the
// keys that a token attends to.
import { ramp, raster } from "./drawing.js";
import { register } from "./mount.js";
import { queryCache, list, menu, scale, pooledSquare } from "./plots.js";
import { axisOf, pointed, ticks, veil } from "./token_axis.js";
import { number } from "./token_index.js";
import { frame, make } from "./view_frame.js";

const LEFT = 104,
  TOP = 54;
const OVER_HEADS = { [-2]: "mean", [-3]: "max" };

register("heads", (ctx) => {
  const { data, tokens, bus, theme } = ctx,
    { state } = bus,
    { n } = tokens,
    { arrays } = data;
  const value = (level) => (level / 255) ** 2; // levels are on a square-root scale (heads_view.py)
  // A head is a number, or a name in OVER_HEADS; in the state it is a number.
  const named = (head) => OVER_HEADS[head] ?? Math.min(data.heads - 1, head),
    now = () => ({
      layer: state.layer < 0 ? data.layer : state.layer,
      head: named(state.head === -1 ? data.head : state.head),
    });
  let second = data.beside && { layer: data.beside[0], head: named(data.beside[1]) }; // the head beside the first
  const current = () => (second ? [now(), second] : [now()]);
  let small; // the plot of all heads
  /** @type {Plot[]} */
  const large = []; // the plots of one head; results of queries may arrive before they exist
  const store = queryCache(ctx.queryPython, (kind) => {
    if (kind === "layer") small?.paint();
    for (const plot of large) plot.paint();
    view.updateReadout();
    prefetch();
  });
  store.put(
    "layer",
    { layer: data.layer },
    { arrays: { thumbs: arrays.thumbs, means: arrays.means }, factor: data.small },
  );
  const putHead = (layer, head, cells, sinks, factor) =>
    store.put(
      "head",
      { layer, head: named(head), from: 0, to: n, ...(data.quick && { quick: 1 }) },
      { preview: data.quick, arrays: { cells, sinks }, factor },
    );
  putHead(data.layer, data.head, arrays.cells, arrays.sinks, data.factor);
  if (second) putHead(...data.beside, arrays.beside_cells, arrays.beside_sinks, data.beside_factor);
  const roomy = (width) => width >= 760; // for the list of keys beside the head
  const sideOf = (width) =>
    Math.max(
      120,
      Math.min(
        Math.max(640, Math.min(800, width / 2)),
        width - LEFT - 20 - (roomy(width) ? 260 : 0),
      ),
    );
  const axis = (width = large[0]?.box.clientWidth ?? 900) => axisOf(state, n, LEFT, sideOf(width));
  const thumbnails = () => store.get("layer", { layer: now().layer });
  /**
   * The cells to draw: exact cells of the window if they have arrived, otherwise those of all tokens, otherwise
   * the thumbnail.
   */
  const cells = (a, one) => {
    const all = one.layer === now().layer ? thumbnails() : null,
      coarse = data.factor > 1 && a.to - a.from < n;
    const close = coarse && store.get("head", { ...one, from: a.from, to: a.to });
    if (close?.arrays)
      return {
        cells: close.arrays.cells,
        sinks: close.arrays.sinks,
        start: a.from,
        factor: close.factor,
      };
    // The preview first, then the exact cells.
    const quick = data.quick && store.get("head", { ...one, from: 0, to: n, quick: 1 });
    const exact = (!data.quick || quick) && store.get("head", { ...one, from: 0, to: n }),
      best = exact?.arrays ? exact : quick;
    if (best?.arrays)
      return {
        cells: best.arrays.cells,
        sinks: best.arrays.sinks,
        start: 0,
        factor: best.factor,
        preview: best.preview,
      };
    if (!all?.arrays || typeof one.head === "string") return null;
    const { thumbs } = all.arrays,
      side = thumbs.shape[1];
    return {
      cells: Object.assign(thumbs.subarray(one.head * side * side, (one.head + 1) * side * side), {
        shape: [side, side],
      }),
      start: 0,
      factor: all.factor,
    };
  };
  /** Queries the previous and the next head as soon as the current head has arrived. */
  const prefetch = () => {
    const { layer: l, head } = now(),
      query = (h) =>
        store.get("head", { layer: l, head: (h + data.heads) % data.heads, from: 0, to: n });
    if (typeof head === "string") return;
    if (!data.quick && query(head)?.arrays) {
      query(head + 1);
      query(head - 1);
    }
  };
  const drawn = new WeakMap(); // cells -> picture: returning to a head does not compute it again
  const picture = (a, { cells: of, start, factor }) => {
    const key = [a.from, a.to, a.columns, theme.of.paper, start].join(),
      cached = drawn.get(of),
      m = a.columns;
    if (cached?.key === key) return cached.image;
    const levels = pooledSquare(a, of, start, factor),
      image = raster(m, m, ramp(theme.of.low, theme.of.blue), (r, k) =>
        k > r ? -1 : levels[r * m + k],
      );
    drawn.set(of, { key, image });
    return image;
  };
  const layerText = (l) =>
    `layer ${l}, ${data.window_of[l] ? `sliding, window ${data.window_of[l]}` : "full attention"}`;
  const headText = (head) =>
    typeof head === "string" ? `${head} over ${data.heads} heads` : `head ${head}`;

  // The keys that a token attends to most: from the exact row if the token is pinned, otherwise from the cells.
  const topKeys = (one, query, count) => {
    const row = query === state.pin && store.get("row", { ...one, query });
    const coarse = row?.arrays ? null : cells(axis(), one),
      side = coarse?.cells.shape[0];
    if (!row?.arrays && coarse?.factor !== 1) return [];
    const at = row?.arrays
      ? (k) => row.arrays.row[k]
      : (k) => value(coarse.cells[(query - coarse.start) * side + k - coarse.start]);
    const first = coarse?.start ?? 0,
      keys = Array.from({ length: Math.max(0, query + 1 - first) }, (_, k) => k + first);
    const best = keys
      .map((k) => [`${tokens.oneLine(k)}  ${k}`, at(k)])
      .filter(([, v]) => v > 0)
      .sort((p, q) => q[1] - p[1])
      .slice(0, count);
    const sink = row?.arrays ? row.sink : coarse.sinks?.[query - coarse.start];
    return [...best, ...(data.has_sinks && sink >= 0 ? [["sink", sink]] : [])];
  };
  const readout = (i) =>
    current().flatMap((one) => {
      const exact = i === state.pin && store.get("row", { ...one, query: i })?.arrays,
        approximate = exact ? "" : "≈ ",
        where = `layer ${one.layer}, ${headText(one.head)}`;
      const lines = [
        `${where} attends most to: ${
          topKeys(one, i, 5)
            .map(([t, v]) => `${t} (${approximate}${number(v)})`)
            .join(", ") || "pin the token to list its keys"
        }`,
      ];
      if (state.key < 0 || i !== state.hover) return lines;
      const shown = cells(axis(), one),
        side = shown?.cells.shape[0],
        cellOf = (p) => Math.floor((p - shown.start) / shown.factor);
      const level = shown && state.key <= i ? shown.cells[cellOf(i) * side + cellOf(state.key)] : 0;
      return [
        `${second ? `${where}: ` : ""}attention to “${tokens.oneLine(state.key)}” ${state.key}: ${state.key > i ? "masked, a later position" : `≈ ${number(value(level))}${shown?.factor > 1 ? `, the largest of ${shown.factor} × ${shown.factor} tokens` : ""}`}`,
        ...lines,
      ];
    });
  const changeHead = (by) => {
    const { head } = now(),
      from = typeof head === "string" ? (by > 0 ? -1 : 0) : head;
    bus.set({ head: (from + by + data.heads) % data.heads });
  };
  const python = (head) => (typeof head === "string" ? `"${head}"` : head);
  const view = frame(ctx, {
    label: "heads",
    readout,
    args: () =>
      `, layer=${now().layer}, head=${python(now().head)}` +
      (second ? `, beside=(${second.layer}, ${python(second.head)})` : ""),
    keys: ({ key }) => {
      if (key !== "[" && key !== "]") return false;
      changeHead(key === "[" ? -1 : 1);
      return true;
    },
  });
  const layers = menu(
    view,
    "layer (↑ ↓)",
    data.window_of.map((w, i) => [i, `layer ${i}${w ? ` · ${w}` : ""}`]),
    (v) => bus.set({ layer: +v }),
  );
  const headPairs = Array.from(
    { length: data.heads },
    (_, i) => /** @type {[number | string, string]} */ ([i, `head ${i}`]),
  );
  for (const [i, name] of Object.entries(OVER_HEADS)) headPairs.push([i, `${name} over heads`]);
  const heads = menu(view, "head ([ ])", headPairs, (v) => bus.set({ head: +v }));
  const follow = () => {
    const { layer, head } = now();
    layers.value = layer;
    heads.value = numberOf(head);
    prefetch();
  };
  bus.on(follow, ctx.signal);

  // Thumbnails.
  const tile = (width) => {
    const side = data.thumb,
      per = Math.max(1, Math.min(data.heads, Math.floor((width + 6) / (side + 6))));
    return {
      side,
      per,
      at: (h) => [(h % per) * (side + 6), 22 + Math.floor(h / per) * (side + 20)],
    };
  };
  const pictures = (all) => {
    const { thumbs } = all.arrays,
      side = thumbs.shape[1],
      colors = ramp(theme.of.low, theme.of.blue);
    if (all.paper !== theme.of.paper) all.pictures = null;
    all.paper = theme.of.paper;
    all.pictures ??= Array.from({ length: data.heads }, (_, h) =>
      raster(side, side, colors, (r, c) => (c > r ? -1 : thumbs[(h * side + r) * side + c])),
    );
    return all.pictures;
  };
  small = view.plot({
    label: "all heads of the layer",
    on: ["layer"],
    size: (width) => tile(width).at(data.heads - 1)[1] + data.thumb + 16,
    draw(pen, width, y0) {
      const c = theme.of,
        { side, at } = tile(width),
        all = thumbnails();
      pen.text(
        0,
        y0 + 12,
        (all?.error ?? `${layerText(now().layer)}${all ? "" : " …"}`) +
          (all?.factor > 1
            ? ` · downsampled (max): ${all.factor} × ${all.factor} tokens a cell`
            : ""),
        { fill: all?.error ? c.plus : c.soft, size: 11, width },
      );
      if (!all?.arrays) return;
      pictures(all).forEach((picture, h) => {
        const [x, y] = at(h);
        pen.rect(x - 1, y0 + y - 1, side + 2, side + 2, c.line);
        pen.rect(x, y0 + y, side, side, c.paper);
        pen.image(x, y0 + y, side, side, picture);
        pen.text(x, y0 + y + side + 11, `${h}`, { fill: c.ink, size: 10 });
        if (data.has_sinks)
          pen.text(
            x + side,
            y0 + y + side + 11,
            `sink ${number(+all.arrays.means[h].toFixed(2))}`,
            {
              fill: c.soft,
              size: 9,
              align: "end",
              width: side - 6 * String(h).length - 2,
            },
          );
      });
    },
    mark(_, width) {
      const { side, at } = tile(width),
        { head } = now();
      if (typeof head === "string") return [];
      const [x, y] = at(head);
      return [
        { x, y: y + side, w: side, h: 14, pin: true },
        { x, y: y - 3, w: side, h: 2, pin: true },
      ];
    },
  });
  view.on(small.box, "click", (event) => {
    const r = small.box.getBoundingClientRect(),
      { side, at } = tile(r.width),
      [x, y] = [event.clientX - r.left, event.clientY - r.top];
    for (let h = 0; h < data.heads; h++)
      if (x >= at(h)[0] && x < at(h)[0] + side && y >= at(h)[1] && y < at(h)[1] + side)
        bus.set({ head: h });
  });

  // One head, large, or two.
  const down = (a, p) => TOP + a.x(p) - a.x0;
  // Rows of texts of the keys: in two or three rows, each text has the space of two or three cells.
  const textRows = (a) => (a.cell < 11 ? 0 : a.cell < 16 ? 3 : a.cell < 32 ? 2 : 1);
  const below = (a) => 24 + 14 * textRows(a);
  /** @param {() => { layer: number, head: number | string } | null} shownHead */
  const headPlot = (shownHead) => ({
    label: "one head",
    parent: pair,
    on: ["layer", "head", "from", "to", "pin", "only"],
    size: (width) =>
      shownHead() ? TOP + axis(width).width + below(axis(width)) + (roomy(width) ? 0 : 190) : 0,
    draw(pen, width, y0) {
      const one = shownHead();
      if (!one) return;
      const c = theme.of,
        a = axis(width),
        shown = cells(a, one),
        { layer: l, head } = one,
        side = a.width,
        m = a.columns,
        y = y0 + TOP,
        edge = data.window_of[l];
      const downsampled = shown && (shown.factor > 1 || a.shared);
      pen.text(LEFT, y0 + 22, `${headText(head)}, ${layerText(l)}`, {
        fill: c.ink,
        bold: true,
        size: 12,
        width: width - LEFT,
      });
      pen.text(
        LEFT,
        y0 + 38,
        "rows: queries, from the top; columns: keys" +
          (shown?.preview
            ? ` · preview: every ${shown.factor}th query, largest of ${shown.factor} keys`
            : downsampled
              ? ` · downsampled (max): ${Math.max(shown.factor, Math.ceil((a.to - a.from) / m))} tokens a cell`
              : ""),
        { fill: c.soft, size: 11, width: width - LEFT },
      );
      pen.rect(LEFT - 1, y - 1, side + 2, side + 2, c.line);
      pen.rect(LEFT, y, side, side, c.paper);
      if (shown) {
        pen.image(LEFT, y, side, side, picture(a, shown));
        if (shown.sinks && data.has_sinks)
          pen.image(
            LEFT + side + 5,
            y,
            10,
            side,
            raster(
              1,
              m,
              ramp(c.low, c.brown),
              (r) => 255 * Math.max(...span(a, r, shown).map((i) => shown.sinks[i])),
            ),
          );
        if (data.has_sinks)
          pen.text(LEFT + side + 10, y - 4, "sink", { fill: c.soft, size: 10, align: "center" });
      }
      if (edge)
        for (let d = 0; d < side; d += Math.max(2, a.cell)) {
          const x = a.x(a.from) + d - edge * a.cell; // the last key outside the window of this query
          if (x + a.cell > LEFT && x >= LEFT - a.cell)
            pen.rect(
              Math.max(LEFT, x + a.cell - 1),
              y + d,
              1,
              Math.min(Math.max(2, a.cell), side - d),
              c.k5,
            );
        }
      if (edge)
        pen.text(LEFT + side - 4, y + 14, `orange: edge of the ${edge}-token window`, {
          fill: c.k5,
          size: 10.5,
          align: "end",
        });
      scale(
        pen,
        c,
        LEFT + side - 190,
        y + (edge ? 24 : 8),
        ramp(c.low, c.blue),
        "0",
        "1",
        "attention, √ scale",
      );
      const mask = tokens.mask(state.only, state.pin);
      veil(pen, a, mask, y, side, c);
      ticks(pen, a, y + side + 1, c);
      const rows = textRows(a);
      for (let p = a.from; rows && p < a.to; p++)
        pen.text(
          a.x(p) + a.cell / 2,
          y + side + 28 + 14 * ((p - a.from) % rows),
          tokens.oneLine(p),
          { fill: c.ink, size: 10.5, align: "center", width: rows * a.cell - 4 },
        );
      const step = Math.max(1, Math.ceil(13 / a.cell));
      for (let p = a.from; p < a.to; p += step)
        pen.text(
          LEFT - 6,
          y0 + down(a, p) + (step > 1 ? 9 : a.cell / 2 + 4),
          step > 1 ? `${tokens.oneLine(p)}  ${p}` : tokens.oneLine(p),
          {
            fill: step > 1 ? c.soft : c.ink,
            size: Math.min(11, 10 + a.cell / 26),
            align: "end",
            width: LEFT - 8,
          },
        );
      const [x, top] = roomy(width)
          ? [LEFT + side + 34, y0 + 22]
          : [LEFT, y + side + below(a) + 12],
        pinned = state.pin,
        keys = pinned >= 0 ? topKeys(one, pinned, 7) : [];
      pen.text(
        x,
        top,
        pinned >= 0
          ? `“${tokens.oneLine(pinned)}” ${pinned} attends to`
          : "click to pin a query and list its top keys",
        { fill: pinned >= 0 ? c.ink : c.soft, bold: pinned >= 0, size: 12, width: width - x },
      );
      if (pinned >= 0 && !keys.length)
        pen.text(
          x,
          top + 20,
          store.get("row", { ...one, query: pinned })?.error
            ? "listing its keys needs Python: run the cell"
            : "…",
          { fill: c.soft, size: 11, width: width - x },
        );
      list(
        pen,
        c,
        x,
        top + 12,
        Math.min(226, width - x),
        keys.map(([text, v]) => [text, v, v]),
      );
    },
    axis,
    hit(x, y) {
      const a = axis(),
        key = a.at(x),
        hover = a.at(a.x0 + y - TOP);
      return hover < 0 || key < 0 ? null : { hover, key };
    },
    mark(_, width) {
      const a = axis(width),
        marks = [],
        size = Math.max(1, a.cell),
        inside = (p) => p >= a.from && p < a.to;
      for (const { position: p, pin } of pointed(state))
        if (inside(p)) marks.push({ x: LEFT, y: down(a, p), w: a.width + 16, h: size, pin });
      const key = state.key >= 0 ? state.key : state.hover;
      if (inside(key)) marks.push({ x: a.x(key), y: TOP, w: size, h: a.width });
      return marks;
    },
  });
  const pair = make("div", { className: "wb-row" });
  view.body.append(pair);
  large.push(view.plot(headPlot(now)));
  const addSecond = () => large.push(view.plot(headPlot(() => second)));
  if (second) addSecond();
  const besideMenu = menu(
    view,
    "a second head beside the first",
    [
      ["", "beside: none"],
      ...headPairs.map(
        ([i, text]) => /** @type {[number | string, string]} */ ([i, `beside: ${text}`]),
      ),
    ],
    (v) => {
      second = v === "" ? null : { layer: now().layer, head: named(+v) };
      if (second && !large[1]) addSecond();
      if (large[1]) large[1].box.hidden = !second;
      for (const plot of large) plot.paint();
    },
  );
  besideMenu.value = second ? numberOf(second.head) : "";
  follow();
});

/**
 * The number that stands for a head in the state of a view; heads_view.py has the same numbers.
 *
 * @param {number | string} head
 */
const numberOf = (head) =>
  String(Object.keys(OVER_HEADS).find((k) => OVER_HEADS[k] === head) ?? head);

/**
 * The rows of `cells` that row `r` of the axis covers.
 *
 * @param {Axis} a
 * @param {number} r
 * @param {{ start: number, factor: number, sinks?: Numbers }} cells
 */
function span(a, r, { start, factor, sinks }) {
  const [from, to] = a
    .column(r)
    .map((p, i) => Math.max(0, Math.min(sinks.length - 1, Math.floor((p - i - start) / factor))));
  return Array.from({ length: to - from + 1 }, (_, i) => from + i);
}
