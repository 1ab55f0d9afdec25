// @ts-check
// Measures of the weights beside those of the run: learned sinks of the heads, top tokens of the router rows,
// tokens that the
// neurons of an expert raise and lower.
import { ramp } from "./drawing.js";
import { register } from "./mount.js";
import { gutter, matrix, menu } from "./plots.js";
import { number } from "./token_index.js";
import { frame } from "./view_frame.js";

const ROW_TALL = 18,
  BAR_WIDE = 96;

register("weights", (ctx) => {
  const { data, bus, theme, tokens } = ctx,
    { state } = bus,
    { arrays, layers, routers, experts } = data,
    { n } = tokens;
  let expertIndex = 0; // of `experts`
  const layer = () => (state.layer >= 0 ? state.layer : (routers[0]?.layer ?? 0)),
    router = () => routers.find((r) => r.layer === layer());
  const chosen = (i) =>
    arrays.chosen && i >= 0
      ? [
          ...arrays.chosen.subarray(
            (layer() * n + i) * data.active,
            (layer() * n + i + 1) * data.active,
          ),
        ]
      : [];
  const readout = (i) => {
    const shown = router();
    return chosen(i).map(
      (e) =>
        `expert ${e} of layer ${layer()}${
          shown
            ? `: ${shown.texts[e]
                .slice(0, 6)
                .map((text) => `“${text}”`)
                .join(" ")}`
            : ""
        }`,
    );
  };
  const view = frame(ctx, { label: "weights", readout, args: () => data.args });
  const layerMenu = menu(
    view,
    "layer (↑ ↓)",
    Array.from({ length: layers }, (_, l) => [l, `layer ${l}`]),
    (v) => bus.set({ layer: +v }),
  );
  const follow = () => {
    layerMenu.value = layer();
  };
  bus.on(follow, ctx.signal);
  follow();

  const heads = Array.from({ length: data.heads }, (_, h) => h),
    named = Array.from(
      { length: layers },
      (_, r) => `layer ${layers - 1 - r}${data.sliding[layers - 1 - r] ? " (sliding)" : ""}`,
    );
  const place = (r, h) => (layers - 1 - r) * data.heads + h;
  const describe = (r, h) => {
    const { logit, share, mass } = arrays,
      i = place(r, h);
    return [
      `${named[r]}, head ${h}`,
      logit &&
        `sink logit ${number(logit[i])}: ${number(share[i])} of the attention if ${data.keys} keys all score 0`,
      mass && `attention to the sink in this run: ${number(mass[i])}, mean over queries`,
    ]
      .filter(Boolean)
      .join("\n");
  };
  const heat = (title, values, unit, color) =>
    matrix(view, ctx, {
      label: title,
      describe,
      pinned: () => [state.layer >= 0 ? layers - 1 - state.layer : -1, state.head],
      cells: () => ({
        title,
        rows: named,
        columns: heads,
        at: (r, h) => values[place(r, h)],
        low: 0,
        high: 1,
        colors: ramp(theme.of.low, theme.of[color]),
        unit,
      }),
      pick: (r, h) => bus.set({ layer: layers - 1 - r, head: h }),
    });
  if (arrays.share)
    heat(
      `learned sinks: attention to the sink if ${data.keys} keys all score 0 · row: layer, column: head`,
      arrays.share,
      "share",
      "brown",
    );
  if (arrays.share && arrays.mass)
    heat(
      "attention to the sink in this run, mean over queries",
      arrays.mass,
      "probability",
      "brown",
    );

  /**
   * A table whose rows have a name, bars and texts. `content()` gives { title, headings, rows: [{ name, bars:
   * [[share, text]], texts: [text] }], marked }.
   */
  const table = (label, content, on, pick = (_row) => {}) => {
    const top = 40;
    let hovered = -1;
    const plot = view.plot({
      label,
      on: ["layer", ...on],
      size: () => top + content().rows.length * ROW_TALL + 6,
      draw(pen, width, y0) {
        const c = theme.of,
          { title, headings, rows } = content(),
          x0 = Math.max(76, gutter(width) - 40),
          bars = width < 700 ? 0 : (rows[0]?.bars.length ?? 0),
          x1 = x0 + bars * BAR_WIDE,
          parts = rows[0]?.texts.length ?? 1,
          wide = (width - x1) / parts;
        pen.text(0, y0 + 13, title, { fill: c.ink, bold: true, size: 12, width });
        headings.slice(0, bars).forEach((text, k) =>
          pen.text(x0 + k * BAR_WIDE, y0 + 33, text, {
            fill: c.soft,
            size: 10.5,
            width: BAR_WIDE - 6,
          }),
        );
        headings.slice(-parts).forEach(
          (text, k) =>
            rows.length &&
            pen.text(x1 + k * wide, y0 + 33, text, {
              fill: c.soft,
              size: 10.5,
              width: wide - 6,
            }),
        );
        rows.forEach(({ name, bars: values, texts }, r) => {
          const y = y0 + top + r * ROW_TALL;
          if (r % 2) pen.rect(0, y, width, ROW_TALL, c.faint, 0.7);
          pen.text(x0 - 8, y + 13, name, { fill: c.ink, size: 11, align: "end", width: x0 - 10 });
          values.slice(0, bars).forEach(([share, text], k) => {
            pen.rect(
              x0 + k * BAR_WIDE,
              y + 3,
              Math.max(0, Math.min(1, share)) * (BAR_WIDE - 44),
              ROW_TALL - 6,
              k ? c.k1 : c.k0,
              0.6,
            );
            pen.text(x0 + (k + 1) * BAR_WIDE - 8, y + 13, text, {
              fill: c.soft,
              size: 10.5,
              align: "end",
            });
          });
          texts.forEach((text, k) =>
            pen.text(x1 + k * wide, y + 13, text, { fill: c.ink, size: 11.5, width: wide - 8 }),
          );
        });
      },
      hit(_x, y) {
        hovered = Math.floor((y - top) / ROW_TALL);
        return { hover: -1, cell: label + hovered };
      },
      mark(_, width) {
        const row = (r, pin) => ({ x: 0, y: top + r * ROW_TALL, w: width, h: ROW_TALL, pin }),
          count = content().rows.length,
          marked = content().marked ?? ((_) => []);
        return [
          ...marked(state.pin).map((r) => row(r, true)),
          ...marked(state.hover).map((r) => row(r, false)),
        ].filter(({ y }) => y < top + count * ROW_TALL);
      },
    });
    view.on(plot.box, "click", (event) => {
      const r = Math.floor((event.clientY - plot.box.getBoundingClientRect().top - top) / ROW_TALL);
      if (r >= 0 && r < content().rows.length) pick(r);
    });
    view.on(plot.box, "pointerleave", () => {
      hovered = -1;
      bus.set({ cell: "" });
    });
    bus.on(() => {
      const { headings, rows } = content(),
        row = rows[hovered];
      if (!row) return;
      const values = [...row.bars.map(([, text]) => text), ...row.texts],
        said = headings.map((heading, k) => values[k] && `${heading}: ${values[k]}`);
      view.describe([row.name, ...said.filter(Boolean)].join("\n")); // more texts than fit into the row
    }, ctx.signal);
  };
  const quoted = (texts) => texts.map((text) => `“${text}”`).join("  ");
  if (routers.length)
    table(
      "router",
      () => {
        const shown = router(),
          loads = arrays.load,
          load = (e) => loads[layer() * data.n_experts + e];
        if (!shown)
          return {
            title: `router of layer ${layer()} was not passed to this view; it has layers ${routers.map((r) => r.layer).join(", ")}`,
            headings: [],
            rows: [],
          };
        const largest = Math.max(
          1e-9,
          ...shown.share,
          ...(loads ? shown.share.map((_, e) => load(e)) : []),
        );
        return {
          title: `router of layer ${layer()}: the tokens for which each expert is preferred, from the embeddings alone`,
          headings: ["of all tokens", ...(loads ? ["in this run"] : []), "top tokens"],
          rows: shown.texts.map((texts, e) => ({
            name: `expert ${e}`,
            bars: [
              [shown.share[e] / largest, number(+shown.share[e].toPrecision(3))],
              ...(loads ? [[load(e) / largest, number(+load(e).toPrecision(3))]] : []),
            ],
            texts: [quoted(texts)],
          })),
          marked: chosen, // the experts chosen at the hovered and the pinned token
        };
      },
      [],
      (e) => {
        const at = experts.findIndex((x) => x.layer === layer() && x.expert === e);
        if (at >= 0) {
          expertIndex = at;
          redraw();
        }
      },
    );
  const redraw = () => {
    if (expertMenu) expertMenu.value = String(expertIndex);
    view.figures.forEach((f) => f.paint?.());
  };
  const expertMenu =
    experts.length > 1 &&
    menu(
      view,
      "expert",
      experts.map((x, k) => [k, `layer ${x.layer}, expert ${x.expert}`]),
      (v) => {
        expertIndex = +v;
        redraw();
      },
    );
  if (experts.length)
    table("expert", () => {
      const {
          layer: l,
          expert,
          neurons,
          norm,
          raised,
          lowered,
          bias,
          total,
        } = experts[expertIndex],
        largest = Math.max(1e-9, ...norm);
      return {
        title: `expert ${expert} of layer ${l}: the tokens that each neuron raises and lowers${neurons.length < total ? `; the ${neurons.length} neurons with the largest output norm, of ${total.toLocaleString("en")}` : ""}`,
        headings: ["output norm", "raised", "lowered, at an activation of 1"],
        rows: [
          { name: "bias", bars: [[0, ""]], texts: [quoted(bias), ""] },
          ...neurons.map((k, r) => ({
            name: `neuron ${k}`,
            bars: [[norm[r] / largest, number(+norm[r].toPrecision(3))]],
            texts: [quoted(raised[r]), quoted(lowered[r])],
          })),
        ],
      };
    }, []);
});
