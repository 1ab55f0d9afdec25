// @ts-check
// The score sheet: the transcript, and below it the lanes that the reader chooses, over one token axis.
import { ramp, raster } from "./drawing.js";
import { SCALES, scaleEnds, scaleRange } from "./lane_scale.js";
import { register } from "./mount.js";
import { arcs, linksOf } from "./step_arcs.js";
import { axisOf, columns, pointed, ticks, veil } from "./token_axis.js";
import { number, plain } from "./token_index.js";
import { legend, transcript } from "./transcript.js";
import { frame, make } from "./view_frame.js";

const MAX_ROWS = 128, // of a heat map
  GAP = 9,
  SCALE = 76;

register("score_sheet", (ctx) => {
  const { data, tokens, bus, theme } = ctx,
    { state } = bus,
    { n } = tokens,
    { arrays } = data;
  const lanes = new Map(
    data.lanes.map((lane) => [
      lane.name,
      {
        ...lane,
        values: arrays[`lane:${lane.name}`],
        strength: arrays[`lane:${lane.name}`],
        ends: arrays[`ends:${lane.name}`],
      },
    ]),
  );
  let shown = data.shown.filter((name) => lanes.has(name)),
    scale = data.scale; // which tokens set the scales of the lanes
  const endsOf = (lane, a) =>
    scaleEnds(lane, n, scaleRange(scale, tokens, a, tokens.mask(state.only, state.pin)));
  const stepOf = (i) => tokens.step[i];

  // The readout of a token.
  const heatText = (lane, i) => {
    const { values, rows, label, keep } = lane,
      row = state.row >= 0 ? state.row : state.layer;
    if (row >= 0 && row < rows && !lane.names)
      return `${label} ${number(values[row * n + i])} in layer ${row}`;
    let best = 0;
    for (let r = 1; r < rows; r++) {
      const [v, b] = [values[r * n + i], values[best * n + i]];
      if (Number.isNaN(b) || (keep === "min" ? v < b : v > b)) best = r;
    }
    return `${label} ${number(values[best * n + i])} (${keep}, ${lane.names ? lane.names[best] : `layer ${best}`})`;
  };
  const linksText = (lane, i) => {
    const s = stepOf(i);
    return s < 0
      ? ""
      : `${lane.label}: from steps ${linksOf(lane, s, 0)}; to steps ${linksOf(lane, s, 1)}`;
  };
  const readout = (i) => {
    const texts = shown
      .map((name) => lanes.get(name))
      .filter((lane) => lane.values)
      .map((lane) =>
        lane.kind === "heat"
          ? heatText(lane, i)
          : lane.kind === "arcs"
            ? linksText(lane, i)
            : `${lane.label} ${number(lane.values[i])}`,
      );
    const { top_text_ids: top, top_probability: probability } = arrays,
      likely = (at, from) =>
        [0, 1, 2]
          .slice(from)
          .filter((k) => probability[at * 3 + k] > 0)
          .map(
            (k) =>
              `“${tokens.texts[top[at * 3 + k]].replaceAll("\n", "↵")}” ${number(probability[at * 3 + k])}`,
          )
          .join(", ");
    const lines = [texts.filter(Boolean).join(" · ")];
    if (top && i < top.shape[0])
      lines.push(
        `predicted here: ${i && i <= top.shape[0] ? likely(i - 1, 0) : "–"}   predicted next: ${likely(i, 0)}`,
      );
    return lines;
  };
  const view = frame(ctx, {
    label: "score sheet",
    readout,
    args: () =>
      data.args +
      `, lanes=(${shown.map((name) => `"${name}"`).join(", ")}${shown.length === 1 ? "," : ""})` +
      (scale === "generated" ? "" : `, scale="${scale}"`),
  });

  // Layout: lanes from the top, each with its own height.
  const gutter = (width) => (width < 560 ? 0 : 168);
  const axis = (width) =>
    axisOf(state, n, gutter(width), Math.max(40, width - gutter(width) - SCALE));
  const visible = () =>
    shown.filter((name) => name !== "transcript").map((name) => lanes.get(name));
  const tall = (lane, width) =>
    (gutter(width) ? 0 : 16) +
    (!lane.values
      ? 18
      : lane.kind === "arcs"
        ? 84
        : lane.kind === "bars"
          ? 44
          : lane.names
            ? Math.max(54, 15 * lane.rows)
            : lane.rows <= 8
              ? 60
              : lane.rows <= 40
                ? 100
                : 144);
  const layout = (width) => {
    let y = 44; // below the two ribbons
    const placed = visible().map((lane) => {
      const h = tall(lane, width),
        here = { lane, y: y + (gutter(width) ? 0 : 16), h: h - (gutter(width) ? 0 : 16), top: y };
      y += h + GAP;
      return here;
    });
    return { placed, end: y };
  };
  const hasTexts = (a) => a.cell >= 24; // a column is wide enough for the text of its token
  const size = (width) => layout(width).end + 20 + (hasTexts(axis(width)) ? 16 : 0);

  const ribbon = (pen, a, y, parts, label) => {
    const c = theme.of;
    if (a.x0) pen.text(a.x0 - 12, y + 12, label, { fill: c.soft, size: 11, align: "end" });
    for (const part of parts) {
      if (part.stop <= a.from || part.start >= a.to) continue;
      const x1 = Math.max(a.x0, a.x(part.start)),
        x2 = Math.min(a.x0 + a.width, a.x(part.stop));
      pen.rect(x1, y, Math.max(0.5, x2 - x1 - 0.75), 16, c[`k${part.color}`], 0.42);
      const label = part.short && x2 - x1 < 56 ? part.short : part.label;
      if (x2 - x1 > 12)
        pen.text(x1 + 4, y + 12, label, { fill: c.ink, size: 10.5, width: x2 - x1 - 6 });
    }
  };
  const bars = (pen, a, lane, y, h) => {
    const { values, keep, low, high } = lane,
      cells = columns(a, values, keep),
      ends = endsOf(lane, a),
      bottom = low ?? Math.min(0, ends[0]),
      top = high ?? Math.max(0, ends[1]);
    let beyond = NaN; // the value that is farthest outside the scale
    const at = (v) => y + h - Math.max(0, Math.min(1, (v - bottom) / (top - bottom || 1))) * h,
      zero = at(Math.max(bottom, Math.min(0, top)));
    const wide = a.width / a.columns,
      gap = wide > 4 ? Math.min(2, wide * 0.2) : 0;
    pen.rect(a.x0, zero - 0.25, a.width, 0.5, theme.of.soft, 0.6);
    cells.forEach((v, i) => {
      if (Number.isNaN(v)) return;
      const to = at(v),
        tip = Math.min(zero, to);
      pen.rect(
        a.x0 + i * wide + gap / 2,
        tip,
        wide - gap,
        Math.max(0.75, Math.abs(zero - to)),
        v < 0 && top > 0 ? theme.of.minus : theme.of.bar,
      );
      if (v >= bottom && v <= top) return;
      // a clipped bar ends in another color
      pen.rect(a.x0 + i * wide + gap / 2, v > top ? y : y + h - 3, wide - gap, 3, theme.of.k1);
      if (!(Math.abs(v) <= Math.abs(beyond))) beyond = v;
    });
    return { bottom, top, beyond };
  };
  const heatmap = (pen, a, lane, y, h) => {
    const { values, rows, keep } = lane,
      c = theme.of,
      [low, high] = endsOf(lane, a);
    let [below, above] = ["", ""]; // before the ends of the scale if values are outside
    const colors = lane.ramp === "both" ? ramp(c.minus, c.low, c.plus) : ramp(c.low, c[lane.ramp]);
    const cells = Array.from({ length: rows }, (_, r) => columns(a, values, keep, r * n));
    const drawn = Math.min(rows, MAX_ROWS),
      span = high - low || 1;
    const cell = (r, k) => {
      // layer 0 is at the bottom; with more layers than rows, several layers share a row
      let best = NaN;
      for (
        let l = Math.floor(((drawn - 1 - r) * rows) / drawn);
        l < Math.floor(((drawn - r) * rows) / drawn);
        l++
      ) {
        const v = cells[lane.names ? rows - 1 - l : l][k];
        if (Number.isNaN(best) || (keep === "min" ? v < best : v > best)) best = v;
      }
      if (best < low) below = "≤ ";
      if (best > high) above = "≥ ";
      return !Number.isNaN(best) ? Math.max(0, Math.min(255, ((best - low) / span) * 255)) : -1;
    };
    pen.image(a.x0, y, a.width, h, raster(a.columns, drawn, colors, cell));
    const x = a.x0 + a.width + 8,
      key = raster(60, 1, colors, (_, k) => (k / 59) * 255);
    if (lane.names)
      lane.names.forEach((name, r) =>
        pen.text(x, y + (r + 0.5) * (h / rows) + 4, name, {
          fill: c.ink,
          size: 10.5,
          width: SCALE - 10,
        }),
      );
    else {
      pen.text(x, y + 9, `layer ${rows - 1}`, { fill: c.soft, size: 10.5 });
      pen.text(x, y + h - 1, "layer 0", { fill: c.soft, size: 10.5 });
      pen.image(x, y + h / 2 - 9, 60, 6, key);
      const symmetric = low === -high; // one label: two would touch
      if (!symmetric) pen.text(x, y + h / 2 + 8, below + number(low), { fill: c.soft, size: 10 });
      const end = symmetric ? `±${number(high)}` : above + number(high);
      pen.text(x + 60, y + h / 2 + 8, end, { fill: c.soft, size: 10, align: "end" });
    }
  };
  const drawArcs = (pen, a, lane, y, h) => {
    const c = theme.of,
      strongest = Math.abs(lane.strength.at(-1) ?? 0);
    arcs(
      pen,
      a,
      c,
      tokens.steps,
      lane,
      strongest,
      y + h - 6,
      h - 12,
      state.pin >= 0 ? stepOf(state.pin) : -1,
    );
    for (const { start, stop } of tokens.steps) {
      const x = a.x((start + stop) / 2);
      if (x >= a.x0 && x <= a.x0 + a.width) pen.rect(x - 1.5, y + h - 6, 3, 3, c.ink);
    }
    pen.text(a.x0 + a.width + 8, y + 10, number(strongest), { fill: c.soft, size: 10.5 });
    pen.text(a.x0 + a.width + 8, y + 22, "strongest", { fill: c.soft, size: 10 });
  };

  const draw = (pen, width, y0) => {
    const c = theme.of,
      a = axis(width),
      { placed, end } = layout(width),
      bottom = y0 + end;
    ribbon(
      pen,
      a,
      y0 + 2,
      tokens.messages.map((m) => ({ ...m, label: m.name })),
      "messages",
    );
    ribbon(
      pen,
      a,
      y0 + 22,
      tokens.steps.map((s, i) => ({ ...s, short: String(i), label: `${i} ${plain(s.kind)}` })),
      "steps",
    );
    for (const { start } of tokens.steps)
      if (start > a.from && start < a.to && tokens.steps.length < a.width / 6)
        pen.rect(a.x(start) - 0.5, y0 + 40, 1, end - 44, c.line);
    for (const { lane, y, h, top } of placed) {
      const unit = [
        lane.unit,
        lane.values &&
          lane.names &&
          `faint ${number(endsOf(lane, a)[0])}, strong ${number(endsOf(lane, a)[1])}`,
        lane.values && lane.kind !== "arcs" && a.shared && `downsampled (${lane.keep})`,
      ]
        .filter(Boolean)
        .join("; ");
      if (a.x0) {
        pen.text(a.x0 - 12, y0 + y + 12, lane.label, {
          fill: lane.values ? c.ink : c.soft,
          bold: true,
          size: 12,
          align: "end",
          width: a.x0 - 16,
        });
        if (lane.values)
          for (const [k, line] of wrapped(unit).entries())
            pen.text(a.x0 - 12, y0 + y + 25 + 12.5 * k, line, {
              fill: c.soft,
              size: 10.5,
              align: "end",
              width: a.x0 - 14,
            });
      } else
        pen.text(0, y0 + top + 12, `${lane.label}  ${unit}`, { fill: c.soft, size: 11, width });
      if (!lane.values)
        pen.text(a.x0, y0 + y + 12, lane.missing, {
          fill: c.soft,
          size: 11,
          width: a.width + SCALE,
        });
      else if (lane.kind === "heat") heatmap(pen, a, lane, y0 + y, h);
      else if (lane.kind === "arcs") drawArcs(pen, a, lane, y0 + y, h);
      else {
        const { bottom, top, beyond } = bars(pen, a, lane, y0 + y, h),
          x = a.x0 + a.width + 8;
        pen.text(x, y0 + y + 9, number(top), { fill: c.soft, size: 10.5 });
        pen.text(x, y0 + y + h, number(bottom), { fill: c.soft, size: 10.5 });
        if (!Number.isNaN(beyond)) {
          const text = `to ${number(beyond)}`;
          pen.text(x, y0 + y + h / 2 + 5, text, { fill: c.k1, size: 10, width: SCALE - 8 });
        }
      }
    }
    veil(pen, a, tokens.mask(state.only, state.pin), y0 + 40, end - 44, c);
    for (const [from, to] of view.search())
      if (to > a.from && from < a.to)
        pen.rect(
          a.x(Math.max(from, a.from)),
          bottom - 6,
          Math.max(2, a.x(Math.min(to, a.to)) - a.x(Math.max(from, a.from))),
          4,
          c.k5,
        );
    if (a.x0)
      pen.text(a.x0 - 12, bottom + 12, "position", { fill: c.soft, size: 11, align: "end" });
    ticks(pen, a, bottom, c);
    if (hasTexts(a))
      for (let i = a.from; i < a.to; i++)
        pen.text(a.x(i) + a.cell / 2, bottom + 30, tokens.oneLine(i), {
          fill: c.ink,
          size: 11,
          align: "center",
          width: a.cell - 3,
        });
  };
  const hit = (x, y) => {
    const width = stage.box.clientWidth,
      hover = axis(width).at(x);
    if (hover < 0) return null;
    const on = layout(width).placed.find(
      (p) => y >= p.y && y < p.y + p.h && p.lane.kind === "heat" && p.lane.values && !p.lane.names,
    );
    return {
      hover,
      row: on
        ? Math.min(on.lane.rows - 1, Math.floor(((on.y + on.h - y) / on.h) * on.lane.rows))
        : -1,
    };
  };
  const mark = (_, width) => {
    const a = axis(width),
      marks = [],
      h = layout(width).end - 4;
    for (const { position: i, pin } of pointed(state))
      if (i >= a.from && i < a.to) marks.push({ x: a.x(i), y: 0, w: Math.max(1, a.cell), h, pin });
    return marks;
  };

  const title = "which tokens set the scales of the lanes; values beyond are clipped",
    options = SCALES.map(([value, textContent]) => make("option", { value, textContent })),
    scaleMenu = make("select", { label: title, title }, ...options);
  scaleMenu.value = scale;
  view.on(scaleMenu, "change", () => {
    scale = scaleMenu.value;
    stage.paint();
  });
  view.bar.insertBefore(scaleMenu, view.bar.querySelector(".wb-gap"));
  const choices = make("div", { className: "wb-menu", role: "group", label: "lanes" });
  const list = () => {
    text.hidden = !shown.includes("transcript");
    choices.replaceChildren();
    for (const name of [...shown, ...[...lanes.keys()].filter((k) => !shown.includes(k))]) {
      const box = make("input", { type: "checkbox", checked: shown.includes(name) });
      view.on(box, "change", () =>
        change(box.checked ? [...shown, name] : shown.filter((k) => k !== name)),
      );
      const shift = (by) => {
        const at = shown.indexOf(name),
          next = [...shown];
        if (at < 0 || at + by < 0 || at + by >= shown.length) return;
        [next[at], next[at + by]] = [next[at + by], next[at]];
        change(next);
      };
      choices.append(
        make("label", {}, box, lanes.get(name).label),
        view.button("↑", `${name} up`, () => shift(-1)),
        view.button("↓", `${name} down`, () => shift(1)),
      );
    }
  };
  const change = (next) => {
    shown = next;
    list();
    stage.paint();
  };
  const details = make(
    "details",
    {},
    make("summary", { textContent: "lanes", title: "choose and order the lanes" }),
    choices,
  );
  view.bar.insertBefore(details, view.bar.querySelector(".wb-gap").nextSibling);
  const text = make("div");
  legend({ ...view, body: text }, tokens, arrays.logprob);
  view.body.append(text);
  transcript({ ...view, body: text }, ctx, { tall: data.tall });
  const stage = view.plot({
    size,
    draw,
    hit: (x, y) => hit(x, y),
    mark,
    axis,
    on: ["from", "to", "query", "only", "pin"],
    label: `lanes: ${data.lanes.map((l) => l.label).join(", ")}`,
  });
  list();
});

/** Splits a unit into lines of at most 28 letters. */
const wrapped = (text) => text.match(/\S.{0,27}(?=\s|$)|\S+/g) ?? [""];
