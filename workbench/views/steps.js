// From step to step: any arrays (step key_step) as a matrix and as arcs over the tokens.
import { frame, number, plain, ramp, register } from "./shared.js";
import { matrix, menu, strip } from "./grid.js";

const MOST_ARCS = 200, ARCS_TALL = 170;

register("steps", (ctx) => {
  const { data, tokens, bus, theme } = ctx, { state } = bus, { steps } = tokens, size = steps.length, { edges } = data;
  let which = 0, kept = null, key = "";
  /** The array that is shown, of the layer or as the mean over layers: { of(step, key_step), ... }. */
  const now = () => {
    const { layers } = edges[which], values = data.arrays["edges:" + which], l = layers > 1 ? state.layer : 0, wanted = [which, l, theme.of.paper].join();
    if (key === wanted) return kept;
    key = wanted;
    const found = new Float32Array(size * size), { of: c } = theme;
    for (let i = 0; i < found.length; i++) {
      let [sum, many] = [0, 0];
      for (let k = 0; k < layers; k++) if (l < 0 || k === l) { const v = values[k * size * size + i]; if (v === v) (sum += v), many++; }
      found[i] = many ? sum / many : NaN;
    }
    let most = 0, least = 0;
    for (let i = 0; i < found.length; i++) if (i % (size + 1) && found[i] === found[i]) (most = Math.max(most, found[i])), (least = Math.min(least, found[i])); // the diagonal sets no scale
    const high = Math.max(most, -least) || 1, sided = least < 0, at = (r, k) => found[r * size + k];
    const where = layers > 1 ? (l < 0 ? `, mean over ${layers} layers` : `, layer ${l}`) : "";
    return (kept = { at, low: sided ? -high : 0, high, sided, colours: sided ? ramp(c.minus, c.low, c.plus) : ramp(c.low, c.blue), title: `${edges[which].label}${where}${edges[which].over} · row: step, column: key_step`, unit: edges[which].unit });
  };
  const named = (s) => `step ${s + 1} (${plain(steps[s].kind)})`;
  const snippet = (s) => {
    let text = "";
    for (let i = steps[s].start; i < steps[s].stop && text.length < 70; i++) text += tokens.word(i);
    return text.length > 70 ? text.slice(0, 70) + "…" : text;
  };
  const strongest = (at, s) => {
    const found = steps.map((_, k) => [k, at(k)]).filter(([k, v]) => k !== s && v).sort((p, q) => Math.abs(q[1]) - Math.abs(p[1])).slice(0, 4);
    return found.map(([k, v]) => `${k + 1} (${number(v)})`).join(", ") || "none";
  };
  const read = (i) => {
    const s = tokens.step[i], { at } = now();
    return s < 0 ? ["in no step"] : [`“${snippet(s)}”`, `from steps ${strongest((k) => at(s, k), s)} · to steps ${strongest((k) => at(k, s), s)}`];
  };
  const view = frame(ctx, { label: "steps", read, args: () => data.args });
  const redraw = () => view.figures.forEach((f) => f.paint());
  if (edges.length > 1) menu(view, "array", edges.map(({ label }, k) => [k, label]), (v) => ((which = +v), redraw()));
  if (edges.some(({ layers }) => layers > 1)) {
    const layers = menu(view, "layer (↑ ↓)", [[-1, "mean over layers"], ...Array.from({ length: data.layers }, (_, l) => [l, `layer ${l}`])], (v) => bus.set({ layer: +v }));
    const follow = () => (layers.value = state.layer);
    bus.on(follow, ctx.signal);
    follow();
  }
  const names = steps.map((s, i) => `${i + 1} ${plain(s.kind)}`), numbers = steps.map((_, i) => i + 1);
  matrix(view, ctx, {
    label: "step by step", cells: () => ({ ...now(), rows: names, columns: numbers }),
    told: (r, k) => `${named(r)} from ${named(k)}: ${number(now().at(r, k))} ${edges[which].unit}\n${r + 1}: “${snippet(r)}”\n${k + 1}: “${snippet(k)}”`,
    link: (r, k) => ({ hover: steps[r].start, key: steps[k].start }),
    kept: () => [state.lock >= 0 ? tokens.step[state.lock] : -1, -1],
  });
  strip(view, ctx, {
    label: "arcs over the tokens", on: ["layer"], pooled: false, size: () => ARCS_TALL,
    title: () => `the same as arcs over the tokens${size * size > MOST_ARCS ? `, the strongest ${MOST_ARCS}` : ""}${now().sided ? "; orange: positive, blue: negative" : ""}`,
    draw(pen, a, y) {
      const c = theme.of, { at, high } = now(), mine = state.lock >= 0 ? tokens.step[state.lock] : -1, found = [], bottom = y + ARCS_TALL - 18;
      const middle = (s) => a.x((steps[s].start + steps[s].stop) / 2), wide = Math.max(1, a.x(steps.at(-1).stop) - a.x(steps[0].start)), inside = (x) => x >= a.x0 && x <= a.x0 + a.width;
      for (let s = 0; s < size; s++) for (let k = 0; k < size; k++) if (s !== k && Math.abs(at(s, k)) > high / 50) found.push([s, k, at(s, k)]);
      found.sort((p, q) => Math.abs(p[2]) - Math.abs(q[2]));
      for (const [s, k, v] of found.slice(-MOST_ARCS)) {
        const share = Math.min(1, Math.abs(v) / high), [x1, x2] = [middle(k), middle(s)], other = mine >= 0 && s !== mine && k !== mine;
        if (inside(x1) && inside(x2)) pen.arc(Math.min(x1, x2), Math.max(x1, x2), bottom - 2, (ARCS_TALL - 24) * Math.sqrt(Math.abs(x2 - x1) / wide), v < 0 ? c.minus : c.plus, 0.6 + 3 * share, (other ? 0.12 : 1) * (0.2 + 0.75 * share));
      }
      steps.forEach((s, i) => {
        const x1 = Math.max(a.x0, a.x(s.start)), x2 = Math.min(a.x0 + a.width, a.x(s.stop));
        if (x2 <= x1) return;
        pen.rect(x1, bottom, Math.max(0.5, x2 - x1 - 1), 16, c["k" + s.colour], i === mine ? 0.9 : 0.45);
        if (x2 - x1 > 14) pen.text(x1 + 3, bottom + 12, x2 - x1 > 90 ? names[i] : String(i + 1), { fill: c.ink, size: 10.5, width: x2 - x1 - 4 });
      });
      pen.text(a.x0 - 6, bottom + 12, "steps", { fill: c.soft, size: 11, align: "end" });
    },
  });
});
