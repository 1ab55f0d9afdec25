// @ts-check
// Routing: the chosen experts by layer and token, the weights of one layer's experts, and loads by layer, channel
// and step.
import { mix, ramp, raster } from "./drawing.js";
import { register } from "./mount.js";
import { gutter, matrix, menu, strip } from "./plots.js";
import { number, plain } from "./token_index.js";
import { frame } from "./view_frame.js";

register("routing", (ctx) => {
  const { data, tokens, bus, theme } = ctx,
    { state } = bus,
    { n } = tokens,
    { chosen, weights } = data.arrays;
  const { experts, routed } = data,
    layers = routed.length,
    active = chosen.shape[2];
  // Rows are the layers that have experts. A linked view may select a layer without experts: then the last such
  // layer before it
  // is shown.
  const place = (number) =>
      Math.max(
        0,
        routed.findLastIndex((l) => l <= number),
      ),
    layer = () => place(state.layer < 0 ? data.layer : state.layer);
  const at = (l, i, k) => (l * n + i) * active + k,
    share = (place) => weights[place] / 65535;
  let expert = -1; // the pinned expert: only the tokens at which it runs are colored
  const chosenText = (l, i) =>
    Array.from(
      { length: active },
      (_, k) => `${chosen[at(l, i, k)]} (${number(share(at(l, i, k)))})`,
    ).join(", ");
  const readout = (i) => {
    const l = state.row >= 0 ? place(state.row) : layer();
    return [`layer ${routed[l]} chose experts ${chosenText(l, i)}`];
  };
  const view = frame(ctx, { label: "routing", readout, args: () => `, layer=${routed[layer()]}` });
  const layerMenu = menu(
    view,
    "layer (↑ ↓)",
    routed.map((l) => [l, `layer ${l}`]),
    (v) => bus.set({ layer: +v }),
  );
  const expertMenu = menu(
    view,
    "expert",
    [
      [-1, "all experts"],
      ...Array.from(
        { length: experts },
        (_, i) => /** @type {[number, string]} */ ([i, `expert ${i}`]),
      ),
    ],
    (v) => pinExpert(+v),
  );
  const pinExpert = (e) => {
    expert = e;
    expertMenu.value = String(e);
    view.figures.forEach((f) => f.paint?.());
  };
  bus.on(() => {
    layerMenu.value = routed[layer()];
  }, ctx.signal);
  layerMenu.value = routed[layer()];

  // An expert's number means nothing outside its layer, although the same number has the same color in every layer.
  let table = new Uint32Array(),
    tablePaper = ""; // the theme that the table is for
  const colors = () => {
    const c = theme.of,
      unpinned = ramp(c.low, c.blue)[0];
    if (tablePaper !== c.paper)
      table = Uint32Array.from(
        { length: experts },
        (_, e) =>
          ramp(
            ...Array(2).fill(
              mix(c.paper, c[`k${e % 8}`], 1 - (0.75 * Math.floor(e / 8)) / Math.ceil(experts / 8)),
            ),
          )[0],
      );
    tablePaper = c.paper;
    return expert < 0 ? table : table.map((color, e) => (e === expert ? color : unpinned));
  };
  const best = (a, column, weight) => {
    let [position, highest] = [-1, 0];
    for (let [i, b] = a.column(column); i < b; i++)
      if (weight(i) > highest) {
        position = i;
        highest = weight(i);
      }
    return position;
  };
  const each = Math.max(2, Math.min(6, Math.round(300 / layers / active)));
  strip(view, ctx, {
    label: "chosen experts by layer and token",
    on: ["layer"],
    title: () =>
      `chosen experts, color: expert${expert < 0 ? "" : ` (only ${expert})`}; ${active} rows per layer, the largest weight on top`,
    size: () => layers * (active * each + 2),
    row: (y) => routed[Math.max(0, layers - 1 - Math.floor(y / (active * each + 2)))],
    draw(pen, a, y) {
      const c = theme.of,
        all = colors(),
        h = active * each,
        labelStep = Math.ceil(11 / (h + 2));
      for (let l = 0; l < layers; l++) {
        const top = y + (layers - 1 - l) * (h + 2),
          selected = l === layer();
        pen.image(
          a.x0,
          top,
          a.width,
          h,
          raster(a.columns, active, all, (k, column) => {
            const i = best(a, column, (p) =>
              expert < 0 || chosen[at(l, p, k)] === expert ? weights[at(l, p, k)] : 1,
            );
            return i < 0 ? -1 : chosen[at(l, i, k)];
          }),
        );
        if (l % labelStep === 0 || selected)
          pen.text(a.x0 - 6, top + h / 2 + 4, `layer ${routed[l]}`, {
            fill: selected ? c.mark : c.ink,
            bold: selected,
            size: 10.5,
            align: "end",
          });
      }
    },
  });
  // The colors of the experts; a click pins one.
  const keySide = (width) => (width - gutter(width) - 8) / experts,
    expertKey = view.plot({
      label: "colors of the experts",
      size: () => 28,
      draw(pen, width, y0) {
        const c = theme.of,
          all = colors(),
          x0 = gutter(width),
          side = keySide(width),
          step = Math.ceil((6 + 6.5 * String(experts - 1).length) / side);
        pen.text(x0 - 6, y0 + 9, "color of expert", { fill: c.soft, size: 10, align: "end" });
        pen.image(
          x0,
          y0,
          side * experts,
          10,
          raster(experts, 1, all, (_, e) => e),
        );
        for (let e = 0; e < experts; e += step)
          pen.text(x0 + (e + 0.5) * side, y0 + 21, e, { fill: c.soft, size: 10, align: "center" });
      },
    });
  view.on(expertKey.box, "click", (event) => {
    const { left, width } = expertKey.box.getBoundingClientRect(),
      e = Math.floor((event.clientX - left - gutter(width)) / keySide(width));
    if (e >= 0 && e < experts) pinExpert(e === expert ? -1 : e);
  });
  const tall = Math.max(3, Math.min(12, Math.round(300 / experts)));
  strip(view, ctx, {
    label: "the layer's experts by token",
    on: ["layer"],
    title: () => `layer ${routed[layer()]}: weight of each expert, from 0 (faint) to 1 (strong)`,
    size: () => experts * tall,
    draw(pen, a, y) {
      const c = theme.of,
        l = layer(),
        levels = new Uint8Array(experts * a.columns),
        labelStep = Math.ceil(11 / tall);
      for (let column = 0; column < a.columns; column++)
        for (let [i, b] = a.column(column); i < b; i++)
          for (let k = 0; k < active; k++) {
            const cell = chosen[at(l, i, k)] * a.columns + column;
            levels[cell] = Math.max(levels[cell], share(at(l, i, k)) * 255);
          }
      pen.image(
        a.x0,
        y,
        a.width,
        experts * tall,
        raster(
          a.columns,
          experts,
          ramp(c.low, c.blue),
          (e, column) => levels[e * a.columns + column],
        ),
      );
      for (let e = 0; e < experts; e++)
        if (e % labelStep === 0 || e === expert)
          pen.text(a.x0 - 6, y + (e + 0.5) * tall + 4, `expert ${e}`, {
            fill: e === expert ? c.mark : c.soft,
            size: 10,
            align: "end",
          });
    },
  });

  // Load: the share of positions at which an expert runs.
  const load = (l, positions) => {
    const count = new Float32Array(experts).fill(positions.length ? 0 : NaN);
    for (const i of positions)
      for (let k = 0; k < active; k++) count[chosen[at(l, i, k)]] += 1 / positions.length;
    return count;
  };
  const filtered = () => {
    const mask = tokens.mask(state.only, state.pin);
    return Array.from({ length: n }, (_, i) => i).filter((i) => !mask || mask[i]);
  };
  const numbers = Array.from({ length: experts }, (_, e) => e);
  const loadCells = (title, rows, names, highlightedRow) => {
    const high = Math.max(1e-9, ...rows.flatMap((row) => [...row].filter((v) => !Number.isNaN(v))));
    return {
      title,
      rows: names,
      columns: numbers,
      at: (r, e) => rows[r][e],
      low: 0,
      high,
      colors: ramp(theme.of.low, theme.of.brown),
      unit: "share of positions",
      highlightedRow,
    };
  };
  const byLayer = () => {
    const positions = filtered(),
      rows = Array.from({ length: layers }, (_, r) => load(layers - 1 - r, positions));
    return loadCells(
      `by layer: load of each expert, ${positions.length.toLocaleString("en")} tokens`,
      rows,
      rows.map((_, r) => `layer ${routed[layers - 1 - r]}`),
      layers - 1 - layer(),
    );
  };
  const groups = () => {
    // at most 100 rows of steps: with more steps, each row is a range of steps
    const mask = tokens.mask(state.only, state.pin),
      names = [...new Set(tokens.messages.map((m) => m.name))],
      perRow = Math.ceil(tokens.steps.length / 100),
      range = (parts) =>
        parts
          .flatMap(({ start, stop }) => Array.from({ length: stop - start }, (_, i) => start + i))
          .filter((i) => !mask || mask[i]);
    return [
      ...names.map((name) => [name, range(tokens.messages.filter((m) => m.name === name))]),
      ...Array.from({ length: Math.ceil(tokens.steps.length / (perRow || 1)) }, (_, g) => {
        const part = tokens.steps.slice(g * perRow, (g + 1) * perRow);
        return [
          perRow > 1
            ? `steps ${g * perRow}–${g * perRow + part.length - 1}`
            : `${g} ${plain(part[0].kind)}`,
          range(part),
        ];
      }),
    ];
  };
  const byGroup = () => {
    const rows = groups();
    return {
      ...loadCells(
        `by channel and step: load of layer ${routed[layer()]}`,
        rows.map(([, positions]) => load(layer(), positions)),
        rows.map(([name]) => name),
        -1,
      ),
      first: rows.map(([, positions]) => positions[0] ?? -1),
    };
  };
  const chart = (label, cells, rest) => {
    let cached = null,
      key = ""; // loads are counted again only if one of these changes
    const now = () => {
      const cacheKey = [layer(), state.only, state.only && state.pin, theme.of.paper].join();
      if (key !== cacheKey) {
        cached = cells();
        key = cacheKey;
      }
      return cached;
    };
    matrix(view, ctx, {
      label,
      cells: now,
      pinned: () => [-1, expert],
      on: ["only", "pin"],
      describe: (r, e) =>
        `${now().rows[r]}, expert ${e}\nruns at ${number(100 * now().at(r, e))} % of the positions`,
      link: (r) => ({ hover: now().first?.[r] ?? -1 }),
      ...rest,
    });
  };
  chart("load by layer", byLayer, {
    pick: (r, e) => {
      bus.set({ layer: routed[layers - 1 - r] });
      pinExpert(expert === e ? -1 : e);
    },
  });
  chart("load by channel and step", byGroup, { pick: (_, e) => pinExpert(expert === e ? -1 : e) });
});
