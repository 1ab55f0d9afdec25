// @ts-check
// Two runs side by side: values over the tokens of the first run, and the aligned texts token by token.
import { mix } from "./drawing.js";
import { SCALES, scaleEnds, scaleRange } from "./lane_scale.js";
import { register } from "./mount.js";
import { gutter, menu, strip } from "./plots.js";
import { columns, pointed } from "./token_axis.js";
import { generatedOf, number, oneLineOf } from "./token_index.js";
import { busOf } from "./trace_bus.js";
import { frame } from "./view_frame.js";

const PAIR_WIDE = 66,
  PAIR_TALL = 42,
  LINES = 8,
  BARS = 34;

register("compare", (ctx) => {
  const { data, tokens, bus, theme } = ctx,
    { state } = bus,
    { n } = tokens,
    {
      first_positions: positions1,
      second_positions: positions2,
      other_token_text_ids: textIds2,
    } = data.arrays,
    [first, second] = data.names;
  let scale = data.scale; // which tokens set the scales of the lanes
  const size = positions1.length,
    partner = new Int32Array(n).fill(-1),
    column = new Int32Array(n),
    back = new Int32Array(textIds2.length).fill(-1);
  const otherGenerated = generatedOf(data.other_written, textIds2.length);
  const oneLine2 = (j) => oneLineOf(tokens.texts[textIds2[j]]),
    same = (c) =>
      positions1[c] >= 0 &&
      positions2[c] >= 0 &&
      tokens.text(positions1[c]) === tokens.texts[textIds2[positions2[c]]];
  for (let c = 0; c < size; c++) {
    if (positions1[c] >= 0) column[positions1[c]] = c;
    if (same(c)) {
      partner[positions1[c]] = positions2[c];
      back[positions2[c]] = positions1[c];
    }
  }
  const lanes = data.lanes.map((lane) => {
    const [a, b] = ["a:", "b:"].map((side) => data.arrays[side + lane.name]),
      aligned = Float32Array.from(a, (_, i) => (partner[i] < 0 ? NaN : b[partner[i]]));
    return { ...lane, a, b: aligned, whole: b, gap: aligned.map((v, i) => v - a[i]) };
  });
  const readout = (i) => {
    const c = column[i],
      j = positions2[c],
      other =
        j < 0
          ? `not in ${second}`
          : same(c)
            ? `position ${j} in ${second}`
            : `“${oneLine2(j)}”, position ${j}, in ${second}`;
    return [
      other,
      ...(partner[i] < 0
        ? []
        : lanes.map(
            ({ label, unit, a, b, gap }) =>
              `${label}: ${number(a[i])} and ${number(b[i])}, ${second} − ${first} ${number(gap[i])} ${unit}`,
          )),
    ];
  };
  const view = frame(ctx, {
    label: "compare",
    readout,
    args: () => data.args + (scale === "generated" ? "" : `, scale="${scale}"`),
    keys: ({ key }) =>
      ({ d: () => jump(1), D: () => jump(-1), PageUp: () => page(-1), PageDown: () => page(1) })[
        key
      ]?.() ?? false,
  });
  // The first column of each range in which the texts differ.
  const differences = Array.from({ length: size }, (_, c) => c).filter(
    (c) => !same(c) && (c === 0 || same(c - 1)),
  );
  const before = (c) => {
    while (c > 0 && positions1[c] < 0) c--;
    return Math.max(0, positions1[c]);
  };
  const jump = (by) => {
    const here = state.pin < 0 ? -1 : column[state.pin],
      next =
        by > 0
          ? differences.find((c) => before(c) > (state.pin < 0 ? -1 : state.pin))
          : differences.findLast((c) => c < here && before(c) < state.pin);
    if (next !== undefined) bus.set({ pin: before(next) });
    return true;
  };
  view.bar.insertBefore(
    view.button("next difference", "next difference between the texts (d)", () => jump(1)),
    view.bar.querySelector(".wb-gap"),
  );

  // Hover and pin in one run mark the aligned token in all views of the other run.
  if (data.other !== data.trace) {
    const other = busOf(data.other);
    let hoverFromOther = false;
    // What this view sent comes back a frame later, when the reader may have pinned another token: not to be applied.
    const sent = { hover: -1, pin: -1 };
    bus.on((_, keys) => {
      for (const k of ["hover", "pin"])
        if (keys.has(k)) {
          sent[k] = state[k] < 0 ? -1 : partner[state[k]];
          other.set({ [k]: sent[k] });
        }
    }, ctx.signal);
    other.on((state2, keys) => {
      for (const k of ["hover", "pin"])
        if (keys.has(k) && state2[k] !== sent[k] && state2[k] >= 0 && back[state2[k]] >= 0) {
          hoverFromOther ||= k === "hover";
          bus.set({ [k]: back[state2[k]] });
        }
      if (keys.has("hover") && state2.hover < 0 && hoverFromOther) {
        hoverFromOther = false;
        bus.set({ hover: -1 });
      }
    }, ctx.signal);
  }

  const extremes = (axis, lane) => {
    const [low, high] = [columns(axis, lane.gap, "min"), columns(axis, lane.gap, "max")];
    return high.map((v, i) => (-low[i] > v ? low[i] : v));
  };
  // The scale of both runs (low, high), and of their difference (-largest, largest), which is at least a hundredth as wide:
  // rounding must not look like a difference. `clipped`: values are beyond it.
  const endsOf = (lane, a) => {
    const shown = { from: a.from, to: a.to, mask: null },
      range = scaleRange(scale, tokens, a, tokens.mask(state.only, state.pin)),
      m = lane.whole.length,
      range2 = scaleRange(scale, { n: m, generated: otherGenerated }, shown, null),
      of = (values, over) =>
        scaleEnds({ values, low: null, high: null }, values.length, over ?? range);
    const ends = [of(lane.a), scale === "shown" ? of(lane.b) : of(lane.whole, range2)].flat(),
      [low, high] = [Math.min(0, ...ends), Math.max(0, ...ends)],
      largest = Math.max((high - low) / 100, ...of(lane.gap).map(Math.abs)) || 1,
      beyond = (values, least, most) => of(values, shown).some((v) => v < least || v > most),
      clipped =
        beyond(lane.a, low, high) ||
        beyond(lane.b, low, high) ||
        beyond(lane.gap, -largest, largest);
    return { low, high, largest, clipped };
  };
  const plots = lanes.map((lane) =>
    strip(view, ctx, {
      label: lane.label,
      title: (a) =>
        `${lane.label}${lane.unit ? `, ${lane.unit}` : ""}${a.shared ? ` · downsampled (${lane.keep}; the larger difference)` : ""}${endsOf(lane, a).clipped ? " · clipped bars have marked ends" : ""}`,
      pooled: false,
      size: () => 3 * (BARS + 6),
      draw(pen, a, y) {
        const c = theme.of,
          wide = a.width / a.columns,
          gap = wide > 4 ? 1 : 0,
          { low, high, largest } = endsOf(lane, a);
        const row = (k, name, cells, bottom, top, color) => {
          const base = y + k * (BARS + 6),
            at = (v) =>
              base + BARS - Math.max(0, Math.min(1, (v - bottom) / (top - bottom || 1))) * BARS,
            zero = at(0);
          pen.text(a.x0 - 6, base + 12, name, {
            fill: c.ink,
            size: 11,
            align: "end",
            width: a.x0 - 8,
          });
          const ends = bottom === -top ? `±${number(top)}` : `${number(bottom)} to ${number(top)}`;
          pen.text(a.x0 - 6, base + 25, ends, {
            fill: c.soft,
            size: 10,
            align: "end",
            width: a.x0 - 8,
          });
          pen.rect(a.x0, zero - 0.25, a.width, 0.5, c.soft, 0.6);
          cells.forEach((v, i) => {
            if (Number.isNaN(v) || !v) return;
            const [x, tip] = [a.x0 + i * wide, Math.min(zero, at(v))];
            pen.rect(x, tip, wide - gap, Math.max(0.75, Math.abs(at(v) - zero)), color(v));
            if (v < bottom || v > top)
              pen.rect(x, v > top ? base : base + BARS - 3, wide - gap, 3, c.ink);
          });
        };
        row(0, first, columns(a, lane.a, lane.keep), low, high, () => c.k0);
        row(1, second, columns(a, lane.b, lane.keep), low, high, () => c.k1);
        row(2, "difference", extremes(a, lane), -largest, largest, (v) =>
          v < 0 ? c.minus : c.plus,
        );
      },
    }),
  );
  menu(
    view,
    "which tokens set the scales of the lanes; values beyond are clipped",
    SCALES,
    (value) => {
      scale = value;
      for (const plot of plots) plot.paint();
    },
  ).value = scale;

  // The texts: as many rows of aligned pairs as fit, and the number of rows above and below. They follow the
  // pinned token and the zoom.
  let begin = state.from > 0 ? column[state.from] : Math.max(0, (differences[0] ?? 0) - 8),
    followed = -1;
  const grid = (width) => {
    const per = Math.max(1, Math.floor((width - gutter(width) - 8) / PAIR_WIDE)),
      fit = per * LINES,
      at = state.pin >= 0 ? column[state.pin] : -1;
    if (state.pin !== followed && at >= 0 && (at < begin || at >= begin + fit))
      begin = at - (fit >> 1);
    followed = state.pin;
    begin = Math.max(0, Math.min(begin, size - fit));
    return {
      per,
      fit,
      x0: gutter(width),
      lines: Math.min(LINES, Math.ceil(size / per)),
      above: Math.ceil(begin / per),
      below: Math.ceil(Math.max(0, size - begin - fit) / per),
    };
  };
  const page = (by) => {
    begin += by * grid(texts.box.clientWidth).fit;
    texts.paint();
    return true;
  };
  bus.on((_, keys) => {
    if (keys.has("from") && state.to >= 0 && state.pin < 0) begin = column[state.from];
  }, ctx.signal); // subscribed before the plot, so that it runs before the plot paints
  const spot = (c, { per, x0 }) => [
    x0 + ((c - begin) % per) * PAIR_WIDE,
    26 + Math.floor((c - begin) / per) * PAIR_TALL,
  ];
  const texts = view.plot({
    label: "aligned texts",
    on: ["pin", "only", "from"],
    size: (width) => 46 + grid(width).lines * PAIR_TALL,
    draw(pen, width, y0) {
      const c = theme.of,
        g = grid(width),
        mask = tokens.mask(state.only, state.pin),
        [blue, amber] = [mix(c.paper, c.k0, 0.3), mix(c.paper, c.k1, 0.4)];
      pen.text(0, y0 + 13, data.summary, { fill: c.ink, bold: true, size: 12, width });
      for (let k = begin; k < Math.min(size, begin + g.fit); k++) {
        const [x, y] = spot(k, g),
          alike = same(k),
          off = mask && positions1[k] >= 0 && !mask[positions1[k]],
          ink = off ? c.soft : c.ink;
        if (x === g.x0) {
          pen.text(x - 6, y0 + y + 13, positions1[k] >= 0 ? `${first}  ${positions1[k]}` : first, {
            fill: c.ink,
            size: 10.5,
            align: "end",
            width: x - 8,
          });
          pen.text(
            x - 6,
            y0 + y + 30,
            positions2[k] >= 0 ? `${second}  ${positions2[k]}` : second,
            {
              fill: c.ink,
              size: 10.5,
              align: "end",
              width: x - 8,
            },
          );
        }
        const pair = [
          {
            i: positions1[k],
            text: positions1[k] < 0 ? "" : tokens.oneLine(positions1[k]),
            dy: 0,
            tint: blue,
          },
          {
            i: positions2[k],
            text: positions2[k] < 0 ? "" : oneLine2(positions2[k]),
            dy: 17,
            tint: amber,
          },
        ];
        for (const { i, text, dy, tint } of pair) {
          pen.rect(x, y0 + y + dy, PAIR_WIDE - 2, 16, i < 0 ? c.faint : alike ? c.paper : tint);
          if (i >= 0)
            pen.text(x + 3, y0 + y + dy + 12, text, {
              fill: alike && dy ? c.soft : ink,
              bold: !alike,
              size: 11.5,
              width: PAIR_WIDE - 6,
            });
        }
      }
      const { above, below } = g,
        more = (n, where) => `${n.toLocaleString("en")} more row${n === 1 ? "" : "s"} ${where}`;
      if (above || below)
        pen.text(
          g.x0,
          y0 + 38 + g.lines * PAIR_TALL,
          "… " +
            [above && more(above, "above"), below && more(below, "below")]
              .filter(Boolean)
              .join(", "),
          { fill: c.ink, size: 12, width: width - g.x0 },
        );
    },
    hit(x, y) {
      const g = grid(texts.box.clientWidth),
        k = Math.floor((x - g.x0) / PAIR_WIDE),
        c = begin + Math.floor((y - 26) / PAIR_TALL) * g.per + k;
      return k < 0 || k >= g.per || y < 26 || c >= Math.min(size, begin + g.fit)
        ? null
        : { hover: before(c) };
    },
    mark(_, width) {
      const g = grid(width);
      return pointed(state)
        .filter(({ position: i }) => i >= 0 && column[i] >= begin && column[i] < begin + g.fit)
        .map(({ position: i, pin }) => {
          const [x, y] = spot(column[i], g);
          return { x, y, w: PAIR_WIDE - 2, h: 33, pin };
        });
    },
  });
  if (size > grid(texts.box.clientWidth).fit)
    view.body.append(
      view.button("↑ rows", "earlier rows of the texts (Page ↑)", () => page(-1)),
      " ",
      view.button("↓ rows", "later rows of the texts (Page ↓)", () => page(1)),
    );
});
