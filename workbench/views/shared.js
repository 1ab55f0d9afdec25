// What every view shares: payloads, the bus that links the views of a trace, colours, pens, the token axis, the frame.
// Text of a model comes from Python, already made visible by workbench.text, and enters the page as textContent only.

import { PdfPen } from "./pdf.js";

// A module is evaluated once a view in Jupyter, so what views share lives on globalThis.
const BUSES = (globalThis[Symbol.for("workbench.views.1")] ??= new Map());
const DRAW = {};

/** Names the function that draws a view: `draw(ctx)`, with ctx = { el, data, tokens, bus, signal, theme, ask }. */
export const register = (name, draw) => (DRAW[name] = draw);

// Payloads: a header and arrays in one buffer, as workbench.views.payload packs them.

const KINDS_OF = {
  f4: Float32Array,
  f8: Float64Array,
  i4: Int32Array,
  u1: Uint8Array,
  u2: Uint16Array,
  u4: Uint32Array,
};

export function unpack(bytes) {
  if (bytes.byteOffset % 8) bytes = bytes.slice();
  const { buffer, byteOffset } = bytes;
  const size = new Uint32Array(buffer, byteOffset, 1)[0];
  const data = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + size)));
  const begin = byteOffset + 8 + size + (-size & 7);
  for (const [name, [kind, shape, start]] of Object.entries(data.arrays)) {
    const array = new KINDS_OF[kind](
      buffer,
      begin + start,
      shape.reduce((a, b) => a * b, 1),
    );
    data.arrays[name] = Object.assign(array, { shape });
  }
  return data;
}

// The bus of a trace: what all of its views in the page share. Changes of one frame reach every view once, together.

const OWN = { layer: -1, head: -1, from: 0, to: -1, only: "" }; // what each view has for itself
const START = { hover: -1, row: -1, key: -1, cell: "", lock: -1, query: "", ...OWN };

function busWith(state) {
  const subscribers = new Set();
  let changed = new Set();
  const tell = () => {
    const keys = changed;
    changed = new Set();
    if (keys.size) for (const f of [...subscribers]) f(state, keys);
  };
  return {
    state,
    set(patch) {
      const before = changed.size;
      for (const key in patch)
        if (state[key] !== patch[key]) (state[key] = patch[key]), changed.add(key);
      if (changed.size && !before) requestAnimationFrame(tell);
    },
    tell: (keys) => (keys.forEach((key) => changed.add(key)), tell()),
    on(f, signal) {
      subscribers.add(f);
      signal.addEventListener("abort", () => subscribers.delete(f));
    },
    size: () => subscribers.size,
  };
}

export function busOf(id) {
  if (!BUSES.has(id)) BUSES.set(id, Object.assign(busWith({ ...START }), { linked: 0 }));
  return BUSES.get(id);
}

/** The bus as one view has it. Hover, kept token and search are those of all views of the trace; layer, head, stretch
 *  and filter are its own, until `link(true)` shares them with the other linked views: the first brings its own. */
export function viewOf(shared, own, signal) {
  const state = Object.setPrototypeOf({ ...OWN, ...own }, shared.state),
    bus = busWith(state),
    { set } = bus;
  let linked = false;
  const mine = (key) => !linked && key in OWN;
  bus.set = (patch) => {
    const [theirs, rest] = [{}, {}];
    for (const key in patch) (mine(key) ? rest : theirs)[key] = patch[key];
    shared.set(theirs); // first: what changes with it reaches the view in the same frame
    set(rest);
  };
  bus.link = (on) => {
    if (on === linked) return;
    linked = on;
    if (on && !shared.linked) shared.set({ ...state });
    shared.linked += on ? 1 : -1;
    for (const key in OWN) on ? delete state[key] : (state[key] = state[key]); // what it does not have is the shared one
    if (on) bus.tell(Object.keys(OWN));
  };
  shared.on((_, keys) => bus.tell([...keys].filter((key) => !mine(key))), signal);
  signal.addEventListener("abort", () => bus.link(false));
  return bus;
}

// The tokens of a trace: texts, messages, steps, search, filters.

export class Tokens {
  constructor({ words, messages, steps, given, arrays }) {
    Object.assign(this, {
      words,
      messages,
      steps,
      given,
      piece: arrays.piece,
      n: arrays.piece.length,
    });
    this.owner = new Int32Array(this.n).fill(-1);
    this.step = new Int32Array(this.n).fill(-1);
    messages.forEach((m, i) => this.owner.fill(i, m.start, m.stop));
    steps.forEach((s, i) => this.step.fill(i, s.start, s.stop));
  }
  text = (i) => this.words[this.piece[i]];
  word = (i) => this.text(i).replaceAll("\n", "↵") || "∅";
  /** Stretches [start, stop) of tokens whose joined text holds the query, whatever its case. */
  find(query) {
    if (!query) return [];
    this.lower ??= this.words.map((w) => w.toLowerCase());
    if (!this.joined) {
      this.ends = new Uint32Array(this.n);
      let all = "";
      for (let i = 0; i < this.n; i++) this.ends[i] = (all += this.lower[this.piece[i]]).length;
      this.joined = all;
    }
    const wanted = query.toLowerCase(),
      found = [];
    for (
      let at = this.joined.indexOf(wanted), i = 0;
      at >= 0;
      at = this.joined.indexOf(wanted, at + wanted.length)
    ) {
      while (this.ends[i] <= at) i++;
      let stop = i;
      while (this.ends[stop] < at + wanted.length) stop++;
      found.push([i, stop + 1]);
    }
    return found;
  }
  /** 1 for the tokens that a filter keeps: "channel:…", "kind:…", "step", "same", "given", "written"; null keeps all. */
  mask(only, lock) {
    const [what, name] = only.split(/:(.*)/s),
      { owner, step, piece } = this;
    const keep = {
      channel: (i) => this.messages[owner[i]]?.name === name,
      kind: (i) => this.steps[step[i]]?.kind === name,
      step: (i) => lock >= 0 && step[lock] >= 0 && step[i] === step[lock],
      same: (i) => lock >= 0 && piece[i] === piece[lock],
      given: (i) => i < this.given,
      written: (i) => i >= this.given,
    }[what];
    return keep ? Uint8Array.from({ length: this.n }, (_, i) => keep(i)) : null;
  }
  place(i) {
    const m = this.messages[this.owner[i]],
      s = this.steps[this.step[i]];
    return (m ? m.name : "") + (s ? `, step ${this.step[i]} (${plain(s.kind)})` : "");
  }
}

export const plain = (kind) => kind.replaceAll("_", " ");

/** As workbench shows numbers: three digits, a real minus, a dash for what is no number. */
export function number(x) {
  if (x == null || !Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  const text =
    size && (size < 1e-3 || size >= 1e5) ? x.toExponential(1) : String(+x.toPrecision(3));
  return text.replace("-", "−");
}

// Themes and colours. Every colour is a CSS variable of views.css; the palettes are safe for the colour-blind.

export function isDark() {
  const { jpThemeLight } = document.body.dataset,
    { classList } = document.body;
  if (jpThemeLight !== undefined) return jpThemeLight === "false";
  if (/vscode-/.test(classList)) return !classList.contains("vscode-light");
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function themed(el, signal) {
  const theme = { of: {}, changed: new Set() };
  const read = () => {
    el.dataset.theme = isDark() ? "dark" : "light";
    const style = getComputedStyle(el);
    for (const name of COLOURS) theme.of[name] = style.getPropertyValue(`--${name}`).trim();
    for (const f of theme.changed) f();
  };
  const watch = new MutationObserver(read),
    media = matchMedia("(prefers-color-scheme: dark)");
  watch.observe(document.body, {
    attributes: true,
    attributeFilter: ["data-jp-theme-light", "class"],
  });
  media.addEventListener("change", read, { signal });
  signal.addEventListener("abort", () => watch.disconnect());
  read();
  return theme;
}
const COLOURS =
  "paper ink soft line faint bar mark low blue brown green purple plus minus k0 k1 k2 k3 k4 k5 k6 k7 k8".split(
    " ",
  );

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
/** The colour a share of the way from one to the other, all as "#rrggbb". */
export const mix = (a, b, share) => {
  const [p, q] = [rgb(a), rgb(b)];
  return (
    "#" +
    p
      .map((x, i) =>
        Math.round(x + (q[i] - x) * share)
          .toString(16)
          .padStart(2, "0"),
      )
      .join("")
  );
};
/** 256 colours, as pixels, through two or more stops: from theme.low to a dark one, or minus, low, plus. */
export function ramp(...stops) {
  const colours = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    const x = (i / 255) * (stops.length - 1),
      k = Math.min(stops.length - 2, Math.floor(x));
    const [r, g, b] = rgb(mix(stops[k], stops[k + 1], x - k));
    colours[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return colours;
}

// Pens: one drawing, on a canvas or as SVG.

export class CanvasPen {
  constructor(context) {
    this.c = context;
    context.imageSmoothingEnabled = false;
  }
  rect(x, y, w, h, fill, alpha = 1) {
    Object.assign(this.c, { fillStyle: fill, globalAlpha: alpha });
    this.c.fillRect(x, y, w, h);
    this.c.globalAlpha = 1;
  }
  text(
    x,
    y,
    text,
    { fill, size = 12, align = "start", bold = false, mono = false, width = Infinity },
  ) {
    Object.assign(this.c, { fillStyle: fill, font: font(size, bold, mono), textAlign: align });
    const wide = (kept) => this.c.measureText(kept).width;
    if (wide(text) > width) {
      let kept = text.slice(0, (text.length * width) / wide(text));
      while (kept && wide(`${kept}…`) > width) kept = kept.slice(0, -1);
      text = kept && `${kept}…`;
    }
    this.c.fillText(text, x, y);
  }
  /** Half an ellipse over x1 and x2, `h` high, upwards from y. */
  arc(x1, x2, y, h, stroke, width, alpha) {
    Object.assign(this.c, { strokeStyle: stroke, lineWidth: width, globalAlpha: alpha });
    this.c.beginPath();
    this.c.ellipse((x1 + x2) / 2, y, Math.abs(x2 - x1) / 2, h, 0, Math.PI, 0);
    this.c.stroke();
    this.c.globalAlpha = 1;
  }
  image(x, y, w, h, picture) {
    this.c.drawImage(picture, x, y, w, h);
  }
}

export class SvgPen {
  parts = [];
  #e(name, attributes, text) {
    const inside = Object.entries(attributes).map(
      ([k, v]) => ` ${k}="${typeof v === "number" ? +v.toFixed(2) : xml(v)}"`,
    );
    this.parts.push(
      `<${name}${inside.join("")}${text === undefined ? "/>" : `>${xml(text)}</${name}>`}`,
    );
  }
  rect(x, y, width, height, fill, alpha = 1) {
    this.#e("rect", { x, y, width, height, fill, ...(alpha < 1 && { "fill-opacity": alpha }) });
  }
  text(
    x,
    y,
    text,
    { fill, size = 12, align = "start", bold = false, mono = false, width = Infinity },
  ) {
    const most = Math.floor(width / (size * 0.56));
    if (text.length > most) text = most > 1 ? `${text.slice(0, most - 1)}…` : "";
    const anchor = { start: "start", center: "middle", end: "end" }[align];
    this.#e(
      "text",
      {
        x,
        y,
        fill,
        "font-size": size,
        "text-anchor": anchor,
        "font-weight": bold ? "600" : "400",
        ...(mono && { "font-family": MONO }),
      },
      text,
    );
  }
  arc(x1, x2, y, h, stroke, width, alpha) {
    const d = `M${x1.toFixed(1)} ${y}A${(Math.abs(x2 - x1) / 2).toFixed(1)} ${h.toFixed(1)} 0 0 ${x1 < x2 ? 1 : 0} ${x2.toFixed(1)} ${y}`;
    this.#e("path", { d, fill: "none", stroke, "stroke-width": width, "stroke-opacity": alpha });
  }
  image(x, y, width, height, picture) {
    const look = { preserveAspectRatio: "none", "image-rendering": "pixelated" };
    this.#e("image", { x, y, width, height, href: picture.toDataURL(), ...look });
  }
  done(w, h) {
    const open = `<svg xmlns="http://www.w3.org/2000/svg" width="${w}" height="${h}" viewBox="0 0 ${w} ${h}"`;
    return `${open} font-family="${SANS.replaceAll('"', "'")}" xml:space="preserve">${this.parts.join("")}</svg>`;
  }
}
const xml = (text) =>
  String(text).replace(
    /[&<>"]/g,
    (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c],
  );
const SANS = 'Inter, system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
const MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, monospace";
const font = (size, bold, mono) => `${bold ? "600 " : ""}${size}px ${mono ? MONO : SANS}`;

/** Cells (row column) as a picture to be stretched: `at(row, column)` gives a place in the ramp, or -1 for none. */
export function raster(columns, rows, colours, at) {
  const canvas = Object.assign(document.createElement("canvas"), {
    width: columns || 1,
    height: rows || 1,
  });
  const image = new ImageData(canvas.width, canvas.height),
    pixels = new Uint32Array(image.data.buffer);
  for (let r = 0, i = 0; r < rows; r++)
    for (let c = 0; c < columns; c++, i++) {
      const level = at(r, c);
      if (level >= 0) pixels[i] = colours[level > 255 ? 255 : level | 0];
    }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// The token axis: the stretch from:to of the bus, laid out between x0 and x0 + width.

export function axisOf(state, n, x0, width) {
  const from = Math.max(0, Math.min(state.from, n - 1)),
    to = state.to < 0 ? n : Math.min(n, Math.max(state.to, from + 1));
  const size = Math.max(to - from, 1),
    columns = Math.min(size, Math.max(1, Math.floor(width)));
  return {
    from,
    to,
    x0,
    width,
    columns,
    cell: width / size,
    shared: columns < size,
    x: (position) => x0 + ((position - from) / size) * width,
    at: (x) =>
      x < x0 || x >= x0 + width
        ? -1
        : Math.min(to - 1, from + Math.floor(((x - x0) / width) * size)),
    column: (c) => [
      from + Math.floor((c * size) / columns),
      from + Math.floor(((c + 1) * size) / columns),
    ],
  };
}

/** One number a column of the axis, of values[start + position]: its "max" or "min"; NaN only where all are. */
export function columns(axis, values, keep, start = 0) {
  const found = new Float32Array(axis.columns),
    less = keep === "min";
  for (let c = 0; c < axis.columns; c++) {
    const [a, b] = axis.column(c);
    let best = NaN;
    for (let i = a; i < b; i++) {
      const v = values[start + i];
      if (best !== best || (less ? v < best : v > best)) best = v;
    }
    found[c] = best;
  }
  return found;
}

export const spread = (values) => {
  let low = Infinity,
    high = -Infinity;
  values.forEach((v) => {
    if (v < low && v > -Infinity) low = v;
    if (v > high && v < Infinity) high = v;
  });
  return low <= high ? [low, high] : [0, 0];
};

/** Positions at round numbers, under whatever the axis belongs to. */
export function ticks(pen, axis, y, theme) {
  const span = axis.to - axis.from,
    most = Math.max(1, axis.width / 70);
  let step = 1;
  for (let k = 1; span / step > most; k++) step = [1, 2, 5][k % 3] * 10 ** Math.floor(k / 3);
  for (let p = Math.ceil(axis.from / step) * step; p < axis.to; p += step) {
    const x = axis.x(p) + axis.cell / 2,
      right = axis.x0 + axis.width;
    pen.rect(x - 0.5, y, 1, 3, theme.soft);
    pen.text(Math.min(x, right - 4), y + 14, p.toLocaleString("en"), {
      fill: theme.soft,
      size: 11,
      align: x > right - 22 ? "end" : "center",
    });
  }
}

/** Greyed out: the columns of which the filter keeps no token. */
export function veil(pen, axis, mask, y, h, theme) {
  if (!mask) return;
  for (let c = 0, begin = -1; c <= axis.columns; c++) {
    let kept = c === axis.columns;
    for (let [i, b] = kept ? [0, 0] : axis.column(c); i < b && !kept; i++) kept = !!mask[i];
    const x = axis.x0 + (c / axis.columns) * axis.width;
    if (!kept && begin < 0) begin = x;
    if (kept && begin >= 0) pen.rect(begin, y, x - begin, h, theme.paper, 0.78), (begin = -1);
  }
}

// Elements.

export function make(name, properties = {}, ...children) {
  const { role, label, ...rest } = properties,
    element = Object.assign(document.createElement(name), rest);
  if (role) element.setAttribute("role", role);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children);
  return element;
}

function save(name, type, content) {
  const url = URL.createObjectURL(
    content instanceof Blob ? content : new Blob([content], { type }),
  );
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1e4);
}

// The frame of a view: search, filter, zoom and export above; plots; what is under the mouse below; keys.

/** options: label; args(state) -> Python arguments; read(position, state) -> lines; keys(event) -> true if it was one. */
export function frame(ctx, { label, args = () => "", read = () => [], keys = () => false }) {
  const { el, data, tokens, bus, signal, theme, alone } = ctx,
    { state } = bus,
    figures = [];
  const on = (target, type, f) => target.addEventListener(type, f, { signal });
  const button = (text, title, f) => {
    const made = make("button", { type: "button", textContent: text, title, label: title });
    on(made, "click", f);
    return made;
  };
  const link = button(
    "link",
    "share layer, head, zoom and filter with the other linked views of this trace",
    () => bus.link((link.ariaPressed = link.ariaPressed !== "true")),
  );
  link.ariaPressed = false;
  const search = make("input", {
    type: "search",
    placeholder: "search  /",
    label: "search tokens",
  });
  const count = make("span", { className: "wb-count", role: "status" });
  const only = make("select", { label: "show only", title: "what is not chosen is greyed out" });
  const body = make("div", { className: "wb-body" }),
    said = make("div", { className: "wb-said" });
  const told = make("div", { className: "wb-told", role: "status" }),
    code = make("input", { className: "wb-code", readOnly: true, hidden: true, label: "Python" });
  const option = (value, text, parent = only) =>
    parent.append(make("option", { value, textContent: text }));
  const group = (name, pairs) => {
    const inside = make("optgroup", { label: name });
    inside.setAttribute("label", name);
    for (const [value, text] of pairs) option(value, text, inside);
    if (pairs.length) only.append(inside);
  };
  option("", "all tokens");
  group("token", [
    ["same", "same text as the kept one"],
    ["step", "step of the kept one"],
    ["given", "given"],
    ["written", "written"],
  ]);
  group(
    "channel",
    [...new Set(tokens.messages.map((m) => m.name))].map((c) => [`channel:${c}`, c]),
  );
  group(
    "step",
    [...new Set(tokens.steps.map((s) => s.kind))].map((k) => [`kind:${k}`, plain(k)]),
  );

  let hits = [],
    hit = -1;
  const lock = (position) => bus.set({ lock: position });
  const zoom = (factor) => {
    const { from, to } = axisOf(state, tokens.n, 0, 1),
      middle = state.lock >= from && state.lock < to ? state.lock : (from + to) / 2;
    const size = Math.max(8, Math.min(tokens.n, (to - from) * factor)),
      begin = Math.round(Math.max(0, Math.min(tokens.n - size, middle - size / 2)));
    bus.set(size >= tokens.n ? { from: 0, to: -1 } : { from: begin, to: Math.round(begin + size) });
  };
  const go = (by) => {
    if (!hits.length) return;
    hit = (hit + by + hits.length) % hits.length;
    lock(hits[hit][0]);
    tally();
  };
  const tally = () =>
    (count.textContent = state.query
      ? hits.length
        ? `${hit + 1} of ${hits.length.toLocaleString("en")}`
        : "nothing"
      : "");
  const move = (by) => {
    const at = state.lock >= 0 ? state.lock : state.hover;
    lock(Math.max(0, Math.min(tokens.n - 1, at < 0 ? 0 : at + by)));
  };
  const paper = () => {
    const width = Math.max(640, Math.round(body.clientWidth)),
      heights = figures.map((f) => Math.ceil(f.size(width)));
    return {
      width,
      height: heights.reduce((a, b) => a + b + 8, 30),
      draw(pen) {
        const { of } = theme;
        pen.rect(0, 0, this.width, this.height, of.paper);
        let y = 0;
        figures.forEach((f, i) => (f.draw(pen, width, y), (y += heights[i] + 8)));
        pen.text(8, this.height - 9, data.foot, { fill: of.soft, size: 10 });
      },
    };
  };
  const name = `${data.view}-${data.trace.slice(0, 12)}`;
  const svg = () => {
    const sheet = paper(),
      pen = new SvgPen();
    sheet.draw(pen);
    save(`${name}.svg`, "image/svg+xml", pen.done(sheet.width, sheet.height));
  };
  const pdf = async () => {
    const sheet = paper(),
      pen = new PdfPen(sheet.width, sheet.height, (context) => new CanvasPen(context));
    sheet.draw(pen);
    save(`${name}.pdf`, "application/pdf", await pen.done());
  };
  const png = () => {
    const sheet = paper(),
      canvas = make("canvas", { width: sheet.width * 2, height: sheet.height * 2 }),
      context = canvas.getContext("2d");
    context.scale(2, 2);
    sheet.draw(new CanvasPen(context));
    canvas.toBlob((blob) => save(`${name}.png`, "image/png", blob));
  };
  const python = () => {
    const { from, to } = axisOf(state, tokens.n, 0, 1);
    let text = data.call + args(state);
    if (from > 0 || to < tokens.n) text += `, window=(${from}, ${to})`;
    if (state.lock >= 0) text += `, picked=${state.lock}`;
    code.value = `${text})`;
    code.hidden = !code.hidden;
    if (code.hidden) return;
    code.select();
    navigator.clipboard?.writeText(code.value).catch(() => {});
  };
  const bar = make(
    "div",
    { className: "wb-bar", role: "toolbar", label: `${label}: tools` },
    search,
    button("‹", "previous (Shift+Enter)", () => go(-1)),
    button("›", "next (Enter)", () => go(1)),
    count,
    only,
    ...(alone ? [] : [link]),
    make("span", { className: "wb-gap" }),
    button("−", "zoom out (-)", () => zoom(2)),
    button("+", "zoom in (+)", () => zoom(0.5)),
    button("all", "all tokens (0)", () => bus.set({ from: 0, to: -1 })),
    ...Object.entries({ SVG: svg, PDF: pdf, PNG: png }).map(([kind, f]) =>
      button(kind, `save what is shown as ${kind}`, f),
    ),
    button("Python", "the line that makes this view", python),
  );
  Object.assign(el, { tabIndex: 0 });
  el.setAttribute("role", "group");
  el.setAttribute(
    "aria-label",
    `${label}. Arrow keys move along the tokens and layers, slash searches, plus and minus zoom, Escape lets go.`,
  );
  el.setAttribute("data-lm-suppress-shortcuts", "true"); // or JupyterLab would take the keys for its own
  el.append(bar, code, body, said, told);

  on(search, "input", () => bus.set({ query: search.value }));
  on(only, "change", () => bus.set({ only: only.value }));
  on(el, "keydown", (event) => {
    if (event.target === search) {
      if (event.key === "Enter") go(event.shiftKey ? -1 : 1);
      else if (event.key === "Escape") bus.set({ query: "" }), el.focus();
      event.stopPropagation();
      return;
    }
    const editable =
      ["SELECT", "INPUT"].includes(event.target.tagName) && event.key.startsWith("Arrow");
    if (event.ctrlKey || event.metaKey || event.altKey || editable) return;
    const up = (by) =>
      data.layers &&
      bus.set({
        layer: Math.max(
          0,
          Math.min(
            data.layers - 1,
            state.layer < 0 ? (by > 0 ? 0 : data.layers - 1) : state.layer + by,
          ),
        ),
      });
    const act = {
      ArrowLeft: () => move(-1),
      ArrowRight: () => move(1),
      ArrowUp: () => up(1),
      ArrowDown: () => up(-1),
      Home: () => lock(0),
      End: () => lock(tokens.n - 1),
      Escape: () => bus.set({ lock: -1, hover: -1 }),
      "/": () => search.focus(),
      n: () => go(1),
      N: () => go(-1),
      "+": () => zoom(0.5),
      "-": () => zoom(2),
      0: () => bus.set({ from: 0, to: -1 }),
    }[event.key];
    if (!keys(event) && !act) return;
    if (!event.defaultPrevented) act?.();
    event.preventDefault();
    event.stopPropagation();
  });

  const lines = (i) =>
    i < 0
      ? []
      : [
          `“${tokens.word(i)}”  position ${i.toLocaleString("en")} · ${i < tokens.given ? "given" : "written"} · ${tokens.place(i)}`,
          ...read(i, state),
        ];
  const show = () =>
    (said.textContent = lines(state.hover >= 0 ? state.hover : state.lock).join("\n") || data.hint);
  bus.on((_, keys) => {
    if (keys.has("query")) {
      if (search.value !== state.query) search.value = state.query;
      hits = tokens.find(state.query);
      hit = -1;
      tally();
    }
    if (keys.has("only")) only.value = state.only;
    show();
    if (keys.has("lock")) told.textContent = lines(state.lock).slice(0, 2).join(". "); // said aloud, where hovering is not
  }, signal);
  if (state.query || state.only)
    Object.assign(search, { value: state.query }),
      (only.value = state.only),
      (hits = tokens.find(state.query)),
      tally();
  show();

  /** A canvas that is drawn anew only when its content changes. Hovering moves marks above it and draws nothing.
   *  plot: size(width) -> height; draw(pen, width, y0); hit(x, y) -> { hover: position, row: layer }, or null;
   *  mark(state) -> [{x, y, w, h, lock}]; on: keys of the bus that change the drawing; axis(width) to zoom by dragging. */
  function plot({
    size,
    draw,
    hit: where = () => null,
    mark = () => [],
    on: keys = [],
    axis,
    label: says = label,
    parent = body,
  }) {
    const canvas = make("canvas"),
      box = make("div", { className: "wb-plot", role: "img", label: says }, canvas),
      marks = [];
    const drag = make("div", { className: "wb-drag", hidden: true });
    let width = 0,
      height = 0,
      due = 0,
      begin = null;
    box.append(drag);
    parent.append(box);
    const paint = () => {
      due = 0;
      width = Math.round(box.clientWidth);
      if (!width) return;
      height = Math.ceil(size(width));
      const scale = globalThis.devicePixelRatio || 1,
        context = canvas.getContext("2d");
      Object.assign(canvas, {
        width: Math.round(width * scale),
        height: Math.round(height * scale),
      });
      Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
      context.scale(scale, scale);
      draw(new CanvasPen(context), width, 0);
      point();
    };
    const later = () => (due ||= requestAnimationFrame(paint));
    const point = () => {
      const wanted = width ? mark(state, width) : [];
      wanted.forEach((m, i) => {
        if (!marks[i]) box.append((marks[i] = make("div")));
        marks[i].className = m.lock ? "wb-mark wb-lock" : "wb-mark";
        Object.assign(marks[i].style, {
          transform: `translate(${m.x}px, ${m.y}px)`,
          width: `${m.w}px`,
          height: `${m.h}px`,
        });
      });
      marks.splice(wanted.length).forEach((m) => m.remove());
    };
    const spot = (event) => {
      const r = box.getBoundingClientRect();
      return [event.clientX - r.left, event.clientY - r.top];
    };
    on(box, "pointermove", (event) => {
      const [x, y] = spot(event);
      if (begin !== null && Math.abs(x - begin) > 4) {
        drag.hidden = false;
        Object.assign(drag.style, {
          left: `${Math.min(x, begin)}px`,
          width: `${Math.abs(x - begin)}px`,
        });
      }
      bus.set({ row: -1, key: -1, ...(where(x, y) ?? { hover: -1 }) });
    });
    on(
      box,
      "pointerleave",
      () => ((begin = null), (drag.hidden = true), bus.set({ hover: -1, row: -1, key: -1 })),
    );
    on(box, "pointerdown", (event) => (begin = axis ? spot(event)[0] : null));
    on(box, "click", (event) => {
      const [x, y] = spot(event),
        wide = !drag.hidden;
      drag.hidden = true;
      el.focus({ preventScroll: true });
      if (wide && begin !== null) {
        const a = axis(width),
          inside = (v) => Math.max(a.x0, Math.min(a.x0 + a.width - 1, v));
        const [from, to] = [a.at(inside(Math.min(x, begin))), a.at(inside(Math.max(x, begin))) + 1];
        bus.set({ from, to: Math.max(to, Math.min(from + 8, tokens.n)) });
      } else {
        const { hover, row = -1, key, ...rest } = where(x, y) ?? {},
          again = state.lock === hover && (row < 0 || row === state.layer);
        if (hover >= 0)
          bus.set(again ? { lock: -1 } : { lock: hover, ...(row >= 0 && { layer: row }), ...rest });
      }
      begin = null;
    });
    const watch = new ResizeObserver(() => Math.round(box.clientWidth) !== width && later());
    watch.observe(box);
    theme.changed.add(later);
    signal.addEventListener("abort", () => (watch.disconnect(), theme.changed.delete(later)));
    bus.on((_, changed) => (keys.some((k) => changed.has(k)) ? paint() : point()), signal);
    const figure = { size, draw, paint: later, box };
    figures.push(figure);
    paint();
    return figure;
  }
  return { bar, body, plot, figures, on, button, show, search: () => hits };
}

// Mounting: in Jupyter by a model, in a page by the block of data in it.

async function mount(el, bytes, { signal, ask, model }) {
  const data = unpack(bytes),
    tokens = new Tokens(data),
    [from, to] = data.window ?? [0, -1],
    { layer = -1, head = -1 } = { ...data, ...data.picked };
  const bus = viewOf(busOf(data.trace), { from, to, layer, head }, signal),
    { state } = bus; // as the code says
  el.replaceChildren();
  el.classList.add("wb");
  const theme = themed(el, signal),
    kept = model?.get("picked") ?? data.picked;
  if (kept) bus.set({ lock: kept.pos });
  model?.on("change:picked", () => {
    const { pos = -1, layer = state.layer, head = state.head } = model.get("picked") ?? {};
    bus.set({ lock: pos, layer, head });
  });
  bus.on((_, keys) => {
    if (!model || !["lock", "layer", "head"].some((key) => keys.has(key))) return;
    const named = Object.entries({ pos: state.lock, layer: state.layer, head: state.head }).filter(
      ([, v]) => v >= 0,
    );
    const picked = state.lock < 0 ? null : Object.fromEntries(named);
    if (JSON.stringify(picked) === JSON.stringify(model.get("picked"))) return;
    model.set("picked", picked);
    model.save_changes();
  }, signal);
  DRAW[data.view]({ el, data, tokens, bus, signal, theme, ask, alone: !model });
  performance.mark("workbench:drawn");
}

/** anywidget's render: the payload, and whatever a view asks for later, come as answers with one binary buffer. */
export async function renderLive({ model, el, signal = new AbortController().signal }) {
  const waiting = new Map();
  const heard = (message, buffers) => {
    const [done, failed] = waiting.get(message.id) ?? [];
    waiting.delete(message.id);
    if (message.error) failed?.(new Error(message.error));
    else done?.(new Uint8Array(buffers[0].buffer, buffers[0].byteOffset, buffers[0].byteLength));
  };
  model.on("msg:custom", heard);
  signal.addEventListener("abort", () => model.off("msg:custom", heard));
  let sent = 0;
  const request = (kind, wanted = {}) =>
    new Promise((done, failed) => {
      const id = `${performance.now()}-${sent++}`;
      waiting.set(id, [done, failed]);
      model.send({ id, kind, wanted });
    });
  const bytes = await request("open");
  await alive(el, signal);
  await mount(el, bytes, {
    signal,
    model,
    ask: async (kind, wanted) => unpack(await request(kind, wanted)),
  });
}

/** Marks the output that holds a live view, by which the style beside the snapshot chooses (workbench/views/notebook.py). */
async function alive(el, signal) {
  const output = () => el.closest(".jp-OutputArea-child");
  while (!output() && !el.isConnected && !signal.aborted) await new Promise(requestAnimationFrame);
  const { classList } = output() ?? el;
  classList.add("wb-alive");
  signal.addEventListener("abort", () => classList.remove("wb-alive"));
}

/** A page that nothing answers: the block of data is all there is. */
export async function renderFrozen() {
  const text = atob(document.getElementById("data").textContent),
    packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const whole = await new Response(
    new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate")),
  ).arrayBuffer();
  const ask = async (kind) => {
    throw new Error(`${kind} needs Python: this page holds what was drawn when it was written`);
  };
  await mount(document.getElementById("view"), new Uint8Array(whole), {
    signal: new AbortController().signal,
    ask,
  });
  document.documentElement.classList.add("drawn");
}
