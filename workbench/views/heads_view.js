// @ts-check
// Attention heads: all heads of a layer as thumbnails, one head large with its sink and the edge of the sliding
// window, and the
// keys that a token attends to.
import { ramp, raster } from "./drawing.js";
import { register } from "./mount.js";
import { queryCache, list, menu, scale, pooledSquare } from "./plots.js";
import { axisOf, pointed, ticks, veil } from "./token_axis.js";
import { number } from "./token_index.js";
import { frame } from "./view_frame.js";

const LEFT = 104,
  TOP = 54;

register("heads", (ctx) => {
  const { data, tokens, bus, theme } = ctx,
    { state } = bus,
    { n } = tokens,
    { arrays } = data;
  const value = (level) => (level / 255) ** 2; // levels are on a square-root scale (heads_view.py)
  const now = () => ({
    layer: state.layer < 0 ? data.layer : state.layer,
    head: state.head < 0 ? data.head : Math.min(data.heads - 1, state.head),
  });
  let small, large; // the two plots; results of queries may arrive before they exist
  const store = queryCache(ctx.queryPython, (kind, { head = now().head }) => {
    kind === "layer" && small?.paint();
    head === now().head && large?.paint();
    view.updateReadout();
    prefetch();
  });
  store.put(
    "layer",
    { layer: data.layer },
    { arrays: { thumbs: arrays.thumbs, means: arrays.means }, factor: data.small },
  );
  store.put(
    "head",
    { layer: data.layer, head: data.head, from: 0, to: n, ...(data.quick && { quick: 1 }) },
    {
      preview: data.quick,
      arrays: { cells: arrays.cells, sinks: arrays.sinks },
      factor: data.factor,
    },
  );
  const beside = (width) => width >= 760;
  const axis = (width = large?.box.clientWidth ?? 900) =>
    axisOf(
      state,
      n,
      LEFT,
      Math.max(120, Math.min(640, width - LEFT - 20 - (beside(width) ? 260 : 0))),
    );
  const layer = () => store.get("layer", { layer: now().layer });
  /**
   * The cells to draw: exact cells of the window if they have arrived, otherwise those of all tokens, otherwise
   * the thumbnail.
   */
  const cells = (a) => {
    const one = now(),
      all = layer(),
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
    if (!all?.arrays) return null;
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
  const layerText = () => {
    const { layer: l } = now(),
      all = layer();
    return (
      all?.error ??
      (all
        ? `layer ${l}, ${data.window_of[l] ? `sliding, window ${data.window_of[l]}` : "full attention"}`
        : `layer ${l} …`)
    );
  };

  // The keys that a token attends to most: from the exact row if the token is pinned, otherwise from the cells.
  const topKeys = (query, count) => {
    const row = query === state.pin && store.get("row", { ...now(), query });
    const coarse = row?.arrays ? null : cells(axis()),
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
  const readout = (i) => {
    const { layer: l, head } = now(),
      approximate = i === state.pin && store.get("row", { ...now(), query: i })?.arrays ? "" : "≈ ";
    const lines = [
      `layer ${l}, head ${head} attends most to: ${
        topKeys(i, 5)
          .map(([t, v]) => `${t} (${approximate}${number(v)})`)
          .join(", ") || "pin the token to list its keys"
      }`,
    ];
    if (state.key < 0 || i !== state.hover) return lines;
    const shown = cells(axis()),
      side = shown?.cells.shape[0],
      cellOf = (p) => Math.floor((p - shown.start) / shown.factor);
    const level = shown && state.key <= i ? shown.cells[cellOf(i) * side + cellOf(state.key)] : 0;
    return [
      `attention to “${tokens.oneLine(state.key)}” ${state.key}: ${state.key > i ? "masked, a later position" : `≈ ${number(value(level))}${shown?.factor > 1 ? `, the largest of ${shown.factor} × ${shown.factor} tokens` : ""}`}`,
      ...lines,
    ];
  };
  const changeHead = (by) => bus.set({ head: (now().head + by + data.heads) % data.heads });
  const view = frame(ctx, {
    label: "heads",
    readout,
    args: () => `, layer=${now().layer}, head=${now().head}`,
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
  const heads = menu(
    view,
    "head ([ ])",
    Array.from({ length: data.heads }, (_, i) => [i, `head ${i}`]),
    (v) => bus.set({ head: +v }),
  );
  const follow = () => {
    layers.value = now().layer;
    heads.value = now().head;
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
        all = layer();
      pen.text(
        0,
        y0 + 12,
        layerText() +
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
              size: 9.5,
              align: "end",
              width: side - 14,
            },
          );
      });
    },
    mark(_, width) {
      const { side, at } = tile(width),
        [x, y] = at(now().head);
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

  // One head, large.
  const down = (a, p) => TOP + a.x(p) - a.x0;
  large = view.plot({
    label: "one head",
    on: ["layer", "head", "from", "to", "pin", "only"],
    size: (width) => TOP + axis(width).width + 24 + (beside(width) ? 0 : 190),
    draw(pen, width, y0) {
      const c = theme.of,
        a = axis(width),
        shown = cells(a),
        { layer: l, head } = now(),
        side = a.width,
        m = a.columns,
        y = y0 + TOP,
        edge = data.window_of[l];
      const downsampled = shown && (shown.factor > 1 || a.shared);
      pen.text(LEFT, y0 + 22, `head ${head}, ${layerText()}`, {
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
      const [x, top] = beside(width) ? [LEFT + side + 34, y0 + 22] : [LEFT, y + side + 36],
        pinned = state.pin,
        keys = pinned >= 0 ? topKeys(pinned, 7) : [];
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
          store.get("row", { ...now(), query: pinned })?.error
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
  follow();
});

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
