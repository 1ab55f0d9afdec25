// @ts-check
// The frame of a view: search, filter, zoom and export above, the plots, the readout below, and keyboard shortcuts.
import { copyText } from "./clipboard.js";
import { CanvasPen } from "./drawing.js";
import { isForNotebook, leaveView, letShortcutsThrough } from "./notebook_keys.js";
import { pictureSavers } from "./picture.js";
import { hasRange, rangeOnAxis, rangeText } from "./selected_range.js";
import { axisOf } from "./token_axis.js";
import { plain, writerText } from "./token_index.js";
import { tooltip } from "./tooltip.js";

/**
 * @template {keyof HTMLElementTagNameMap} Name
 * @param {Name} name
 * @param {Record<string, any>} properties
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Name]}
 */
export function make(name, properties = {}, ...children) {
  const { role, label, ...rest } = properties,
    element = Object.assign(document.createElement(name), rest);
  if (role) element.setAttribute("role", role);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children);
  return element;
}

/**
 * options: label; args(state), the Python arguments of the view as text; readout(position, state), its lines;
 * keys(event), true if the view handled the key.
 *
 * @param {ViewContext} ctx
 * @param {FrameOptions} options
 * @returns {View}
 */
export function frame(ctx, { label, args = () => "", readout = () => [], keys = () => false }) {
  const { el, data, tokens, bus, signal, theme, standalone } = ctx,
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
    () => {
      const on = link.ariaPressed !== "true";
      link.ariaPressed = String(on);
      bus.link(on);
    },
  );
  link.ariaPressed = "false";
  const search = make("input", {
    type: "search",
    placeholder: "search  /",
    label: "search tokens",
  });
  const count = make("span", { className: "wb-count", role: "status" });
  const only = make("select", { label: "show only", title: "gray out all other tokens" });
  const body = make("div", { className: "wb-body" }),
    readoutElement = make("div", { className: "wb-readout" });
  const announcement = make("div", { className: "wb-announcement", role: "status" }),
    code = make("input", { className: "wb-code", readOnly: true, hidden: true, label: "Python" });
  const option = (value, text, parent = /** @type {Element} */ (only)) =>
    parent.append(make("option", { value, textContent: text }));
  const group = (name, pairs) => {
    const choices = make("optgroup", { label: name });
    choices.setAttribute("label", name);
    for (const [value, text] of pairs) option(value, text, choices);
    if (pairs.length) only.append(choices);
  };
  option("", "all tokens");
  group("token", [
    ["same", "same text as the pinned token"],
    ["step", "step of the pinned token"],
    ["prompt", "prompt"],
    ["generated", "generated"],
    ...[...new Set(tokens.written.map(([, , who]) => who))]
      .filter((who) => who !== "prompt" && who !== "model")
      .map((who) => [`writer:${who}`, writerText(who)]),
  ]);
  group(
    "channel",
    [...new Set(tokens.messages.map((m) => m.name))].map((c) => [`channel:${c}`, c]),
  );
  group(
    "step",
    [...new Set(tokens.steps.map((s) => s.kind))].map((k) => [`kind:${k}`, plain(k)]),
  );

  let described = "", // the text of what is under the pointer, or pinned
    hits = [],
    hit = -1;
  const pin = (position) => bus.set({ pin: position });
  const zoom = (factor) => {
    const { from, to } = axisOf(state, tokens.n, 0, 1),
      middle = state.pin >= from && state.pin < to ? state.pin : (from + to) / 2;
    const size = Math.max(8, Math.min(tokens.n, (to - from) * factor)),
      begin = Math.round(Math.max(0, Math.min(tokens.n - size, middle - size / 2)));
    bus.set(size >= tokens.n ? { from: 0, to: -1 } : { from: begin, to: Math.round(begin + size) });
  };
  const goToHit = (by) => {
    if (!hits.length) return;
    hit = (hit + by + hits.length) % hits.length;
    pin(hits[hit][0]);
    updateCount();
  };
  const updateCount = () => {
    count.textContent = state.query
      ? hits.length
        ? `${hit + 1} of ${hits.length.toLocaleString("en")}`
        : "no match"
      : "";
  };
  const fullScreen = () =>
    document.fullscreenElement ? document.exitFullscreen() : el.requestFullscreen?.();
  const copyValue = async () => {
    const text = described;
    if (text) announcement.textContent = (await copyText(text)) ? `copied: ${text}` : "not copied";
  };
  const unpin = () => {
    if (state.pin < 0 && !hasRange(state)) leaveView(el);
    else bus.set({ pin: -1, hover: -1, first: -1, stop: -1 });
  };
  const move = (by) => {
    const at = state.pin >= 0 ? state.pin : state.hover;
    pin(Math.max(0, Math.min(tokens.n - 1, at < 0 ? 0 : at + by)));
  };
  const python = () => {
    const { from, to } = axisOf(state, tokens.n, 0, 1);
    let text = data.call + args(state);
    if (from > 0 || to < tokens.n) text += `, window=(${from}, ${to})`;
    if (state.pin >= 0) text += `, selected=${state.pin}`;
    code.value = `${text})`;
    code.hidden = !code.hidden;
    if (code.hidden) return;
    code.select();
    copyText(code.value).finally(() => code.select());
  };
  const bar = make(
    "div",
    { className: "wb-bar", role: "toolbar", label: `${label}: tools` },
    search,
    button("‹", "previous (Shift+Enter)", () => goToHit(-1)),
    button("›", "next (Enter)", () => goToHit(1)),
    count,
    only,
    ...(standalone ? [] : [link]),
    make("span", { className: "wb-gap" }),
    make(
      "span", // together on one line
      { className: "wb-tools" },
      button("−", "zoom out (-)", () => zoom(2)),
      button("+", "zoom in (+)", () => zoom(0.5)),
      button("all", "all tokens (0)", () => bus.set({ from: 0, to: -1 })),
      ...Object.entries(pictureSavers(ctx, figures, body)).map(([kind, f]) =>
        button(kind, `save this view as ${kind}`, f),
      ),
      button("Python", "Python code of this view", python),
      button("full", "full screen (f)", () => fullScreen()),
    ),
  );
  Object.assign(el, { tabIndex: 0 });
  el.setAttribute("role", "group");
  el.setAttribute(
    "aria-label",
    `${label}. Arrow keys move along the tokens and layers, slash searches, plus and minus zoom, Escape unpins, a second Escape leaves.`,
  );
  letShortcutsThrough(el, search, signal);
  el.append(bar, code, body, readoutElement, announcement);
  const tip = tooltip(el, body, signal);

  on(search, "input", () => bus.set({ query: search.value }));
  on(only, "change", () => bus.set({ only: only.value }));
  on(el, "keydown", (event) => {
    if (isForNotebook(event, search)) return;
    event.stopPropagation(); // a letter that is no key of a view must not delete cells of the notebook
    if (event.target === search) {
      if (event.key === "Enter") goToHit(event.shiftKey ? -1 : 1);
      else if (event.key === "Escape") {
        bus.set({ query: "" });
        el.focus();
      }
      return;
    }
    const editable =
      ["SELECT", "INPUT"].includes(event.target.tagName) && event.key.startsWith("Arrow");
    if (editable) return;
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
    const action = {
      ArrowLeft: () => move(-1),
      ArrowRight: () => move(1),
      ArrowUp: () => up(1),
      ArrowDown: () => up(-1),
      Home: () => pin(0),
      End: () => pin(tokens.n - 1),
      Escape: unpin,
      c: copyValue,
      f: fullScreen,
      "/": () => search.focus(),
      n: () => goToHit(1),
      N: () => goToHit(-1),
      "+": () => zoom(0.5),
      "-": () => zoom(2),
      0: () => bus.set({ from: 0, to: -1 }),
    }[event.key];
    if (!keys(event) && !action) return;
    tip.followKeys();
    if (!event.defaultPrevented) action?.();
    event.preventDefault();
  });

  const lines = (i) =>
    i < 0
      ? []
      : [
          `“${tokens.oneLine(i)}”  position ${i.toLocaleString("en")} · ${writerText(tokens.writer(i))} · ${tokens.place(i)}`,
          ...readout(i, state),
        ];
  /** Shows a text below the plots and, while pointer or keys are in the view, in the tooltip. */
  const describe = (text, atPointer = true) => {
    described = text;
    readoutElement.textContent = [text, rangeText(state)].filter(Boolean).join("\n") || data.hint;
    tip.set(atPointer && tip.inside ? text : "");
  };
  const updateReadout = () =>
    describe(
      lines(state.hover >= 0 ? state.hover : state.pin).join("\n"),
      state.hover >= 0 || tip.byKeys,
    );
  bus.on((_, keys) => {
    if (keys.has("query")) {
      if (search.value !== state.query) search.value = state.query;
      hits = tokens.find(state.query);
      hit = -1;
      updateCount();
    }
    if (keys.has("only")) only.value = state.only;
    updateReadout();
    // For screen readers: the pinned token is announced, hovering is not.
    if (keys.has("pin")) announcement.textContent = lines(state.pin).slice(0, 2).join(". ");
  }, signal);
  if (state.query || state.only) {
    Object.assign(search, { value: state.query });
    only.value = state.only;
    hits = tokens.find(state.query);
    updateCount();
  }
  updateReadout();

  /**
   * A canvas that is redrawn only when its content changes. Hovering moves marks above the canvas and redraws nothing.
   * size(width) is the height; draw(pen, width, y0); hit(x, y) gives { hover: position, row: layer }, or null;
   * mark(state) gives [{x, y, w, h, pin}]; on: keys of the bus that change the drawing; axis(width) allows zooming by
   * dragging.
   *
   * @param {PlotOptions} options
   */
  function plot({
    size,
    draw,
    hit: where = () => null,
    mark = () => [],
    on: keys = [],
    axis,
    label: plotLabel = label,
    parent = body,
  }) {
    const canvas = make("canvas"),
      box = make("div", { className: "wb-plot", role: "img", label: plotLabel }, canvas),
      marks = [];
    const drag = make("div", { className: "wb-drag", hidden: true });
    let width = 0,
      height = 0,
      frameRequest = 0,
      begin = null;
    const range = make("div", { className: "wb-range", hidden: true });
    box.append(range, drag);
    parent.append(box);
    const paint = () => {
      frameRequest = 0;
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
      placeMarks();
    };
    const schedulePaint = () => {
      if (!frameRequest) frameRequest = requestAnimationFrame(paint);
    };
    const placeMarks = () => {
      const rectangles = width ? mark(state, width) : [];
      rectangles.forEach((m, i) => {
        if (!marks[i]) {
          marks[i] = make("div");
          box.append(marks[i]);
        }
        marks[i].className = m.pin ? "wb-mark wb-pin" : "wb-mark";
        Object.assign(marks[i].style, {
          transform: `translate(${m.x}px, ${m.y}px)`,
          width: `${m.w}px`,
          height: `${m.h}px`,
        });
      });
      marks.splice(rectangles.length).forEach((m) => m.remove());
      const ends = width && axis ? rangeOnAxis(state, axis(width)) : null;
      range.hidden = !ends;
      if (ends)
        Object.assign(range.style, { left: `${ends[0]}px`, width: `${ends[1] - ends[0]}px` });
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
    on(box, "pointerleave", () => {
      begin = null;
      drag.hidden = true;
      bus.set({ hover: -1, row: -1, key: -1 });
    });
    on(box, "pointerdown", (event) => {
      begin = axis ? spot(event)[0] : null;
    });
    on(box, "click", (event) => {
      const [x, y] = spot(event),
        wide = !drag.hidden;
      drag.hidden = true;
      el.focus({ preventScroll: true });
      if (wide && begin !== null) {
        const a = axis(width),
          clamp = (v) => Math.max(a.x0, Math.min(a.x0 + a.width - 1, v));
        const [first, stop] = [
          a.at(clamp(Math.min(x, begin))),
          a.at(clamp(Math.max(x, begin))) + 1,
        ];
        const zoomed = { from: first, to: Math.max(stop, Math.min(first + 8, tokens.n)) };
        bus.set({ first, stop, ...(!event.shiftKey && zoomed) });
      } else {
        const { hover, row = -1, key, ...rest } = where(x, y) ?? {},
          isPinned = state.pin === hover && (row < 0 || row === state.layer);
        if (hover >= 0)
          bus.set(
            isPinned ? { pin: -1 } : { pin: hover, ...(row >= 0 && { layer: row }), ...rest },
          );
      }
      begin = null;
    });
    const observer = new ResizeObserver(
      () => Math.round(box.clientWidth) !== width && schedulePaint(),
    );
    observer.observe(box);
    theme.changed.add(schedulePaint);
    signal.addEventListener("abort", () => {
      observer.disconnect();
      theme.changed.delete(schedulePaint);
    });
    bus.on((_, changed) => (keys.some((k) => changed.has(k)) ? paint() : placeMarks()), signal);
    const figure = { size, draw, mark, paint: schedulePaint, box };
    figures.push(figure);
    paint();
    return figure;
  }
  return { bar, body, plot, figures, on, button, describe, updateReadout, search: () => hits };
}
