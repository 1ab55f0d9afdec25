// @ts-check
// The lens: what every layer would predict at every token; all tokens as colour, and a stretch of them as words.
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
    { said, chance } = data.arrays,
    { layers } = data;
  const ranks = said.shape[2],
    at = (l, i, k = 0) => (l * n + i) * ranks + k,
    shown = (text) => (text.trim() ? text : text.replaceAll(" ", "␣"));
  const word = (l, i, k) => shown(tokens.words[said[at(l, i, k)]].replaceAll("\n", "↵") || "∅");
  const looks = data.looks; // [name, unit, low, high, ramp]
  let look = 0;
  const value = (l, i) =>
    look ? data.arrays[looks[look].name][l * n + i] : chance[at(l, i)] / 65535;
  const settles = (i) => {
    let l = layers - 1;
    while (l > 0 && said[at(l - 1, i)] === said[at(layers - 1, i)]) l--;
    return l;
  };
  const read = (i) => {
    const l = state.row >= 0 ? state.row : state.layer,
      { entropy, kl } = data.arrays;
    const settled =
      `in the end “${word(layers - 1, i)}”, from layer ${settles(i)} on` +
      (i + 1 < n ? `; next is “${tokens.word(i + 1)}”` : "");
    if (l < 0) return [settled];
    const top = Array.from(
      { length: ranks },
      (_, k) => `“${word(l, i, k)}” ${number(+(chance[at(l, i, k)] / 65535).toPrecision(3))}`,
    ).join(", ");
    return [
      `layer ${l} predicts ${top}`,
      `entropy ${number(entropy[l * n + i])} nats · KL(final || layer) ${number(kl[l * n + i])} nats · ${settled}`,
    ];
  };
  const view = frame(ctx, { label: "lens", read });
  const choice = menu(
    view,
    "colour",
    looks.map(({ label }, k) => [k, `colour: ${label}`]),
    (v) => {
      look = +v;
      view.figures.forEach((f) => f.paint?.());
    },
  );
  choice.value = String(look);
  const level = (v) => ((v - looks[look].low) / (looks[look].high - looks[look].low || 1)) * 255;
  const colours = () => ramp(theme.of.low, theme.of[looks[look].ramp]);

  // The stretch that is shown as words: it moves when the pinned token or the window leaves it.
  let first = data.window
    ? data.window[0]
    : Math.max(0, Math.min(state.lock, n) >= 0 ? state.lock - 4 : tokens.promptLength - 2);
  const stretch = (width) => {
    const fit = Math.max(1, Math.min(n, Math.floor((width - gutter(width) - 8) / WIDE_CELL)));
    if (state.lock >= 0 && (state.lock < first || state.lock >= first + fit))
      first = state.lock - (fit >> 1);
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
    title: () => `${looks[look].label} by layer (0 below) and token`,
    size: () => layers * each,
    row: (y) => Math.max(0, Math.min(layers - 1, layers - 1 - Math.floor(y / each))),
    draw(pen, a, y) {
      const c = theme.of,
        { stop } = stretch(large?.box.clientWidth ?? a.x0 + a.width + 8),
        some = Math.ceil(11 / each);
      pen.image(
        a.x0,
        y,
        a.width,
        layers * each,
        raster(a.columns, layers, colours(), (r, column) => {
          let most = NaN;
          for (let [i, b] = a.column(column); i < b; i++)
            if (!(value(layers - 1 - r, i) <= most)) most = value(layers - 1 - r, i);
          return Number.isNaN(most) ? -1 : Math.max(0, level(most));
        }),
      );
      for (let l = 0; l < layers; l += some)
        pen.text(a.x0 - 6, y + (layers - 0.5 - l) * each + 4, `layer ${l}`, {
          fill: c.soft,
          size: 10,
          align: "end",
        });
      const x1 = Math.max(a.x0, a.x(first)),
        x2 = Math.min(a.x0 + a.width, a.x(stop));
      if (x2 > x1) pen.rect(x1, y + layers * each - 2, x2 - x1, 2, c.mark); // the stretch below
    },
  });
  large = view.plot({
    label: "predictions as words",
    on: ["lock", "from", "to", "only", "layer"],
    size: () => HEADER + layers * TALL_CELL + 22,
    draw(pen, width, y0) {
      const c = theme.of,
        { x0, stop } = stretch(width),
        all = theme.of[looks[look].ramp],
        { label, unit, low, high } = looks[look],
        mask = tokens.mask(state.only, state.lock),
        y = y0 + HEADER;
      pen.text(0, y0 + 13, "what each layer predicts next; bold: what the last one says", {
        fill: c.ink,
        bold: true,
        size: 12,
        width: width < 700 ? width : width - 250,
      });
      if (width >= 700)
        scale(
          pen,
          c,
          width - 240,
          y0 + 4,
          ramp(c.low, mix(c.low, all, 0.45)),
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
        pen.text(x + 3, y0 + 38, shown(tokens.word(i)), {
          fill: off ? c.soft : c.ink,
          bold: true,
          size: 11.5,
          width: wide,
        });
        if (i + 1 < n)
          pen.text(x + 3, y0 + 55, shown(tokens.word(i + 1)), {
            fill: c.soft,
            size: 11.5,
            width: wide,
          });
        for (let l = 0; l < layers; l++) {
          const top = y + (layers - 1 - l) * TALL_CELL,
            v = value(l, i),
            same = said[at(l, i)] === said[at(layers - 1, i)];
          pen.rect(
            x,
            top,
            WIDE_CELL - 1,
            TALL_CELL - 1,
            !Number.isNaN(v) && !off
              ? mix(c.low, all, 0.45 * Math.max(0, Math.min(1, level(v) / 255)))
              : c.faint,
          );
          pen.text(x + 3, top + 14, word(l, i, 0), {
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
      const { x0, fit } = stretch(large.box.clientWidth),
        k = Math.floor((x - x0) / WIDE_CELL),
        r = layers - 1 - Math.floor((y - HEADER) / TALL_CELL);
      return k < 0 || k >= fit ? null : { hover: first + k, row: r < layers && r >= 0 ? r : -1 };
    },
    mark(_, width) {
      const { x0, stop } = stretch(width),
        marks = [];
      for (const { position: i, lock } of pointed(state))
        if (i >= first && i < stop)
          marks.push({
            x: x0 + (i - first) * WIDE_CELL,
            y: 26,
            w: WIDE_CELL - 1,
            h: HEADER - 26 + layers * TALL_CELL,
            lock,
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
