// @ts-check
// What the weights say, beside what this run did: sinks of the heads, tokens of the router's rows, words of the experts.
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
  let which = 0;
  const layer = () => (state.layer >= 0 ? state.layer : (routers[0]?.layer ?? 0)),
    router = () => routers.find((r) => r.layer === layer());
  const ran = (i) =>
    arrays.chosen && i >= 0
      ? [
          ...arrays.chosen.subarray(
            (layer() * n + i) * data.active,
            (layer() * n + i + 1) * data.active,
          ),
        ]
      : [];
  const read = (i) => {
    const known = router();
    return ran(i).map(
      (e) =>
        `expert ${e} of layer ${layer()}${
          known
            ? `: ${known.words[e]
                .slice(0, 6)
                .map((w) => `“${w}”`)
                .join(" ")}`
            : ""
        }`,
    );
  };
  const view = frame(ctx, { label: "weights", read, args: () => data.args });
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
      mass && `in this run it gave ${number(mass[i])} to its sink, as a mean over queries`,
    ]
      .filter(Boolean)
      .join("\n");
  };
  const heat = (title, values, unit, colour) =>
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
        colours: ramp(theme.of.low, theme.of[colour]),
        unit,
      }),
      pick: (r, h) => bus.set({ layer: layers - 1 - r, head: h }),
    });
  if (arrays.share)
    heat(
      `learned sinks: what they take of ${data.keys} keys that score 0 · row: layer, column: head`,
      arrays.share,
      "share",
      "brown",
    );
  if (arrays.share && arrays.mass)
    heat("sinks in this run: mean over queries", arrays.mass, "probability", "brown");

  /** Rows with a name, bars and words. `content()` gives { title, heads, rows: [{ name, bars: [[share, text]], words: [text] }], marked }. */
  const table = (label, content, on, pick = (_row) => {}) => {
    const top = 40,
      plot = view.plot({
        label,
        on: ["layer", ...on],
        size: () => top + content().rows.length * ROW_TALL + 6,
        draw(pen, width, y0) {
          const c = theme.of,
            { title, heads: above, rows } = content(),
            x0 = Math.max(76, gutter(width) - 40),
            bars = width < 700 ? 0 : (rows[0]?.bars.length ?? 0),
            x1 = x0 + bars * BAR_WIDE,
            parts = rows[0]?.words.length ?? 1,
            wide = (width - x1) / parts;
          pen.text(0, y0 + 13, title, { fill: c.ink, bold: true, size: 12, width });
          above.slice(0, bars).forEach((text, k) =>
            pen.text(x0 + k * BAR_WIDE, y0 + 33, text, {
              fill: c.soft,
              size: 10.5,
              width: BAR_WIDE - 6,
            }),
          );
          above.slice(-parts).forEach(
            (text, k) =>
              rows.length &&
              pen.text(x1 + k * wide, y0 + 33, text, {
                fill: c.soft,
                size: 10.5,
                width: wide - 6,
              }),
          );
          rows.forEach(({ name, bars: values, words }, r) => {
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
            words.forEach((text, k) =>
              pen.text(x1 + k * wide, y + 13, text, { fill: c.ink, size: 11.5, width: wide - 8 }),
            );
          });
        },
        mark(_, width) {
          const row = (r, lock) => ({ x: 0, y: top + r * ROW_TALL, w: width, h: ROW_TALL, lock }),
            count = content().rows.length,
            marked = content().marked ?? ((_) => []);
          return [
            ...marked(state.lock).map((r) => row(r, true)),
            ...marked(state.hover).map((r) => row(r, false)),
          ].filter(({ y }) => y < top + count * ROW_TALL);
        },
      });
    view.on(plot.box, "click", (event) => {
      const r = Math.floor((event.clientY - plot.box.getBoundingClientRect().top - top) / ROW_TALL);
      if (r >= 0 && r < content().rows.length) pick(r);
    });
  };
  const quoted = (words) => words.map((w) => `“${w}”`).join("  ");
  if (routers.length)
    table(
      "router",
      () => {
        const known = router(),
          loads = arrays.load,
          own = (e) => loads[layer() * data.n_experts + e];
        if (!known)
          return {
            title: `router of layer ${layer()}: not given; there are the layers ${routers.map((r) => r.layer).join(", ")}`,
            heads: [],
            rows: [],
          };
        const most = Math.max(
          1e-9,
          ...known.share,
          ...(loads ? known.share.map((_, e) => own(e)) : []),
        );
        return {
          title: `router of layer ${layer()}: for which tokens each expert is preferred, by embeddings alone`,
          heads: ["of all tokens", ...(loads ? ["in this run"] : []), "most preferred for"],
          rows: known.words.map((words, e) => ({
            name: `expert ${e}`,
            bars: [
              [known.share[e] / most, number(+known.share[e].toPrecision(3))],
              ...(loads ? [[own(e) / most, number(+own(e).toPrecision(3))]] : []),
            ],
            words: [quoted(words)],
          })),
          marked: ran, // the experts that ran at a token that is pointed at anywhere
        };
      },
      [],
      (e) => {
        const at = experts.findIndex((x) => x.layer === layer() && x.expert === e);
        if (at >= 0) {
          which = at;
          redraw();
        }
      },
    );
  const redraw = () => {
    if (expertMenu) expertMenu.value = String(which);
    view.figures.forEach((f) => f.paint?.());
  };
  const expertMenu =
    experts.length > 1 &&
    menu(
      view,
      "expert",
      experts.map((x, k) => [k, `layer ${x.layer}, expert ${x.expert}`]),
      (v) => {
        which = +v;
        redraw();
      },
    );
  if (experts.length)
    table("expert", () => {
      const { layer: l, expert, neurons, norm, raised, lowered, bias, total } = experts[which],
        most = Math.max(1e-9, ...norm);
      return {
        title: `expert ${expert} of layer ${l}: which tokens it makes likelier${neurons.length < total ? `; the ${neurons.length} neurons that write most, of ${total.toLocaleString("en")}` : ""}`,
        heads: ["length written", "raised", "lowered, at an activation of 1"],
        rows: [
          { name: "bias", bars: [[0, ""]], words: [quoted(bias), ""] },
          ...neurons.map((k, r) => ({
            name: `neuron ${k}`,
            bars: [[norm[r] / most, number(+norm[r].toPrecision(3))]],
            words: [quoted(raised[r]), quoted(lowered[r])],
          })),
        ],
      };
    }, []);
});
