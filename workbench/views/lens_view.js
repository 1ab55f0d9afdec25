// @ts-check
// The logit lens: the prediction of every layer at every token, as color for all tokens and as text for a range of
// them.
import { mix, ramp, raster } from "./drawing.js";
import { register } from "./mount.js";
import { gutter, menu, scale, strip } from "./plots.js";
import { pointed } from "./token_axis.js";
import { number } from "./token_index.js";
import { frame } from "./view_frame.js";

const WIDE_CELL = 62,
  TALL_CELL = 19,
  HEADER = 62;

register("lens", (ctx) => {
  const { data, tokens, bus, theme } = ctx,
    { state } = bus,
    { n } = tokens,
    { prediction_text_ids: textIds, probability } = data.arrays,
    { layers } = data;
  const ranks = textIds.shape[2],
    at = (l, i, k = 0) => (l * n + i) * ranks + k,
    shown = (text) => (text.trim() ? text : text.replaceAll(" ", "␣"));
  const prediction = (l, i, k) =>
    shown(tokens.texts[textIds[at(l, i, k)]].replaceAll("\n", "↵") || "∅");
  const { metrics } = data; // [{ name, label, unit, low, high, ramp }]
  let metric = 0; // the one that the color shows
  const value = (l, i) =>
    metric ? data.arrays[metrics[metric].name][l * n + i] : probability[at(l, i)] / 65535;
  /** The layer from which on the prediction is that of the last layer. */
  const predictionDepth = (i) => {
    let l = layers - 1;
    while (l > 0 && textIds[at(l - 1, i)] === textIds[at(layers - 1, i)]) l--;
    return l;
  };
  const readout = (i) => {
    const l = state.row >= 0 ? state.row : state.layer,
      { entropy, kl } = data.arrays;
    const final =
      `final prediction “${prediction(layers - 1, i)}”, from layer ${predictionDepth(i)} on` +
      (i + 1 < n ? `; next token “${tokens.oneLine(i + 1)}”` : "");
    if (l < 0) return [final];
    const top = Array.from(
      { length: ranks },
      (_, k) =>
        `“${prediction(l, i, k)}” ${number(+(probability[at(l, i, k)] / 65535).toPrecision(3))}`,
    ).join(", ");
    return [
      `layer ${l} predicts ${top}`,
      `entropy ${number(entropy[l * n + i])} nats · KL(final || layer) ${number(kl[l * n + i])} nats · ${final}`,
    ];
  };
  const view = frame(ctx, { label: "lens", readout });
  const choice = menu(
    view,
    "color",
    metrics.map(({ label }, k) => [k, `color: ${label}`]),
    (v) => {
      metric = +v;
      view.figures.forEach((f) => f.paint?.());
    },
  );
  choice.value = String(metric);
  const level = (v) =>
    ((v - metrics[metric].low) / (metrics[metric].high - metrics[metric].low || 1)) * 255;
  const colors = () => ramp(theme.of.low, theme.of[metrics[metric].ramp]);

  // The range that is shown as text. It moves when the pinned token or the window leaves it.
  let first = data.window
    ? data.window[0]
    : Math.max(0, Math.min(state.pin, n) >= 0 ? state.pin - 4 : tokens.promptLength - 2);
  const range = (width) => {
    const fit = Math.max(1, Math.min(n, Math.floor((width - gutter(width) - 8) / WIDE_CELL)));
    if (state.pin >= 0 && (state.pin < first || state.pin >= first + fit))
      first = state.pin - (fit >> 1);
    first = Math.max(0, Math.min(first, n - fit));
    return { fit, x0: gutter(width), stop: first + fit };
  };
  bus.on((_, keys) => {
    if (keys.has("from") && state.to >= 0) first = state.from;
  }, ctx.signal);

  let large = null;
  const each = Math.max(4, Math.min(16, Math.round(200 / layers)));
  strip(view, ctx, {
    label: "all layers and tokens",
    title: () => `${metrics[metric].label} by layer (0 below) and token`,
    size: () => layers * each,
    row: (y) => Math.max(0, Math.min(layers - 1, layers - 1 - Math.floor(y / each))),
    draw(pen, a, y) {
      const c = theme.of,
        { stop } = range(large?.box.clientWidth ?? a.x0 + a.width + 8),
        labelStep = Math.ceil(11 / each);
      pen.image(
        a.x0,
        y,
        a.width,
        layers * each,
        raster(a.columns, layers, colors(), (r, column) => {
          let highest = NaN;
          for (let [i, b] = a.column(column); i < b; i++)
            if (!(value(layers - 1 - r, i) <= highest)) highest = value(layers - 1 - r, i);
          return Number.isNaN(highest) ? -1 : Math.max(0, level(highest));
        }),
      );
      for (let l = 0; l < layers; l += labelStep)
        pen.text(a.x0 - 6, y + (layers - 0.5 - l) * each + 4, `layer ${l}`, {
          fill: c.soft,
          size: 10,
          align: "end",
        });
      const x1 = Math.max(a.x0, a.x(first)),
        x2 = Math.min(a.x0 + a.width, a.x(stop));
      if (x2 > x1) pen.rect(x1, y + layers * each - 2, x2 - x1, 2, c.mark); // the range of the plot below
    },
  });
  large = view.plot({
    label: "predictions as text",
    on: ["pin", "from", "to", "only", "layer"],
    size: () => HEADER + layers * TALL_CELL + 22,
    draw(pen, width, y0) {
      const c = theme.of,
        { x0, stop } = range(width),
        full = theme.of[metrics[metric].ramp],
        { label, unit, low, high } = metrics[metric],
        mask = tokens.mask(state.only, state.pin),
        y = y0 + HEADER;
      pen.text(
        0,
        y0 + 13,
        "prediction of each layer for the next token; bold: same as the last layer",
        {
          fill: c.ink,
          bold: true,
          size: 12,
          width: width < 700 ? width : width - 250,
        },
      );
      if (width >= 700)
        scale(
          pen,
          c,
          width - 240,
          y0 + 4,
          ramp(c.low, mix(c.low, full, 0.45)),
          number(low),
          number(high),
          [label, unit].filter(Boolean).join(", "),
        );
      pen.text(x0 - 6, y0 + 38, "token", { fill: c.soft, size: 11, align: "end" });
      pen.text(x0 - 6, y0 + 55, "next", { fill: c.soft, size: 11, align: "end" });
      for (let l = 0; l < layers; l++)
        pen.text(x0 - 6, y + (layers - 1 - l) * TALL_CELL + 14, `layer ${l}`, {
          fill: l === state.layer ? c.mark : c.ink,
          bold: l === state.layer,
          size: 11,
          align: "end",
        });
      for (let i = first; i < stop; i++) {
        const x = x0 + (i - first) * WIDE_CELL,
          wide = WIDE_CELL - 6,
          off = mask && !mask[i];
        pen.text(x + 3, y0 + 38, shown(tokens.oneLine(i)), {
          fill: off ? c.soft : c.ink,
          bold: true,
          size: 11.5,
          width: wide,
        });
        if (i + 1 < n)
          pen.text(x + 3, y0 + 55, shown(tokens.oneLine(i + 1)), {
            fill: c.soft,
            size: 11.5,
            width: wide,
          });
        for (let l = 0; l < layers; l++) {
          const top = y + (layers - 1 - l) * TALL_CELL,
            v = value(l, i),
            same = textIds[at(l, i)] === textIds[at(layers - 1, i)];
          pen.rect(
            x,
            top,
            WIDE_CELL - 1,
            TALL_CELL - 1,
            !Number.isNaN(v) && !off
              ? mix(c.low, full, 0.45 * Math.max(0, Math.min(1, level(v) / 255)))
              : c.faint,
          );
          pen.text(x + 3, top + 14, prediction(l, i, 0), {
            fill: off ? c.soft : c.ink,
            bold: same,
            size: 11.5,
            width: wide,
          });
        }
        pen.text(x + 3, y + layers * TALL_CELL + 13, i.toLocaleString("en"), {
          fill: c.soft,
          size: 10.5,
        });
      }
    },
    hit(x, y) {
      const { x0, fit } = range(large.box.clientWidth),
        k = Math.floor((x - x0) / WIDE_CELL),
        r = layers - 1 - Math.floor((y - HEADER) / TALL_CELL);
      return k < 0 || k >= fit ? null : { hover: first + k, row: r < layers && r >= 0 ? r : -1 };
    },
    mark(_, width) {
      const { x0, stop } = range(width),
        marks = [];
      for (const { position: i, pin } of pointed(state))
        if (i >= first && i < stop)
          marks.push({
            x: x0 + (i - first) * WIDE_CELL,
            y: 26,
            w: WIDE_CELL - 1,
            h: HEADER - 26 + layers * TALL_CELL,
            pin,
          });
      if (marks.length && state.row >= 0 && state.hover >= first)
        marks.push({
          x: x0 + (state.hover - first) * WIDE_CELL,
          y: HEADER + (layers - 1 - state.row) * TALL_CELL,
          w: WIDE_CELL - 1,
          h: TALL_CELL - 1,
        });
      return marks;
    },
  });
});
