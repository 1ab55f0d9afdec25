// @ts-check
// The tokens as text, colored by channel and step, or by one number per token. Tokens become spans once they scroll
// into view.
import { mix } from "./drawing.js";
import { hasRange, rangeOfText } from "./selected_range.js";
import { plain } from "./token_index.js";
import { make } from "./view_frame.js";

const LETTER_WIDTH = 7.4; // pixels, of a letter in a saved transcript
const PART = 200; // tokens, about, that become spans together when they scroll into view; until then they are one text
const FIRST = 3; // parts whose spans are made at once: those in view at first

const range = (from, to) => Array.from({ length: to - from }, (_, k) => from + k);

/**
 * @param {View} view
 * @param {ViewContext} ctx
 * @param {{ tall: number, tint?: ((i: number, c: Colors) => string | null) | null }} options
 */
export function transcript(view, ctx, { tall, tint = null }) {
  const { tokens, bus, data, theme, signal } = ctx,
    { state } = bus,
    { n } = tokens,
    { logprob } = data.arrays;
  const shown = tokens.texts.map((text) => text.replaceAll("\n", "↵\n") || "∅"),
    text = (i) => shown[tokens.textIds[i]];
  const spans = new Array(n),
    part = new Array(n); // of each token; `spans` is empty where they are not made yet
  const box = make("div", { className: "wb-text", role: "document", label: "transcript" });
  box.style.maxHeight = `${tall}px`;
  let [hover, pin] = [-1, -1],
    mask = null,
    [first, stop] = [-1, -1],
    hits = new Uint8Array(n),
    highlighted = [];

  const zoomed = () => state.from > 0 || (state.to >= 0 && state.to < n);
  const windowShown = () => [state.from, state.to < 0 ? n : state.to];
  const span = (i, message) => {
    const made = make("span", { textContent: text(i) }),
      step = tokens.steps[tokens.step[i]],
      head = i < message.content || i >= message.end;
    const p = logprob && tokens.generated?.[i] && !tint ? Math.exp(logprob[i]) : 1,
      rare = p < 0.1 ? "wb-rarer" : p < 0.5 && "wb-rare";
    const kind = head ? "wb-head" : step && !tint && `wb-kind k${step.color}`,
      off = mask && !mask[i] && "wb-off",
      [from, to] = windowShown();
    made.className = [
      "wb-t",
      kind,
      rare,
      off,
      i === hover && "wb-on",
      i === pin && "wb-pinned",
      hits[i] && "wb-hit",
      i >= first && i < stop && "wb-in",
      (i < from || i >= to) && "wb-out",
    ]
      .filter(Boolean)
      .join(" ");
    if (step?.start === i) made.dataset.step = String(tokens.step[i]);
    if (tint) made.style.background = tint(i, theme.of) ?? "";
    made.place = i;
    spans[i] = made;
    return made;
  };
  const build = (one) => {
    if (spans[one.start]) return;
    one.el.replaceChildren(...range(one.start, one.stop).map((i) => span(i, one.message)));
    observer.unobserve(one.el);
  };
  /** Builds parts that come near the visible part of `root`: the box, or the page if the box shows all. */
  const observerIn = (root) =>
    new IntersectionObserver(
      (entries) =>
        entries.forEach(({ isIntersecting, target }) => isIntersecting && build(target.stretch)),
      { root, rootMargin: "400px 0px" },
    );
  let observer = observerIn(box);
  signal.addEventListener("abort", () => observer.disconnect());
  const parts = [];
  for (const message of tokens.messages) {
    const who = make(
      "div",
      { className: "wb-who" },
      make("b", { textContent: message.channel || message.who }),
      message.channel ? message.who : "",
    );
    const content = make("div"),
      row = make("div", { className: `wb-message k${message.color}` }, who, content);
    if (message.to) who.append(` to ${message.to}`);
    let one = null;
    for (let i = message.start; i < message.stop; i++) {
      const size = one ? i - one.start : 0,
        begins = size && (text(i - 1).endsWith("\n") || tokens.steps[tokens.step[i]]?.start === i);
      if (!one || (size >= PART && begins) || size >= 2 * PART) {
        one = { el: make("div", { className: "wb-part" }), start: i, stop: i, message };
        one.el.stretch = one;
        parts.push(one);
        content.append(one.el);
      }
      one.stop = i + 1;
      part[i] = one;
    }
    if (!message.complete)
      content.append(
        make("div", { className: "wb-part", textContent: "the run ended inside this message" }),
      );
    box.append(row);
  }
  for (const [k, one] of parts.entries()) {
    if (k < FIRST) build(one);
    else {
      one.el.textContent = range(one.start, one.stop).map(text).join("");
      observer.observe(one.el);
    }
  }
  view.body.append(box);
  scrollsAfterClick(view, box, signal);
  expandable(view, box, tall, signal, (expanded) => {
    observer.disconnect();
    observer = observerIn(expanded ? null : box);
    for (const one of parts) if (!spans[one.start]) observer.observe(one.el);
  });

  const at = (event) => event.target.place ?? -1;
  view.on(box, "pointerover", (event) => bus.set({ hover: at(event) }));
  view.on(box, "pointerleave", () => bus.set({ hover: -1 }));
  view.on(box, "click", (event) => {
    ctx.el.focus({ preventScroll: true });
    if (rangeOfText(box, getSelection())) return; // the end of dragging over text
    if (at(event) >= 0) bus.set({ pin: state.pin === at(event) ? -1 : at(event) });
  });
  const reveal = (i) => {
    if (!part[i]) return;
    build(part[i]);
    const token = spans[i].getBoundingClientRect(),
      view = box.getBoundingClientRect();
    if (token.top < view.top || token.bottom > view.bottom)
      box.scrollTop += token.top - view.top - view.height / 3;
  };
  const move = (name, from, to) => {
    spans[from]?.classList.remove(name);
    spans[to]?.classList.add(name);
  };
  const followMarks = () => {
    if (hover !== state.hover) {
      move("wb-on", hover, state.hover);
      hover = state.hover;
    }
    if (pin === state.pin) return;
    move("wb-pinned", pin, state.pin);
    pin = state.pin;
    if (!box.matches(":hover")) reveal(pin);
  };
  const filter = () => {
    mask = tokens.mask(state.only, state.pin);
    spans.forEach((s, i) => s.classList.toggle("wb-off", !!mask && !mask[i]));
  };
  const followRange = () => {
    [first, stop] = hasRange(state) ? [state.first, state.stop] : [-1, -1];
    spans.forEach((s, i) => s.classList.toggle("wb-in", i >= first && i < stop));
  };
  const followWindow = () => {
    const [from, to] = windowShown();
    spans.forEach((s, i) => s.classList.toggle("wb-out", i < from || i >= to));
  };
  let pressed = false;
  view.on(box, "pointerdown", () => {
    pressed = true;
  });
  const select = () => {
    const range = pressed && rangeOfText(box, getSelection());
    pressed = false;
    if (range) bus.set(range);
  };
  addEventListener("pointerup", select, { signal });
  const highlightHits = () => {
    for (const i of highlighted) {
      hits[i] = 0;
      spans[i]?.classList.remove("wb-hit");
    }
    highlighted = tokens.find(state.query).flatMap(([a, b]) => range(a, b));
    for (const i of highlighted) {
      hits[i] = 1;
      spans[i]?.classList.add("wb-hit");
    }
    if (highlighted.length && state.pin < 0) reveal(highlighted[0]);
  };
  if (tint)
    theme.changed.add(() =>
      spans.forEach((s, i) => {
        s.style.background = tint(i, theme.of) ?? "";
      }),
    );
  followMarks();
  if (state.only) filter();
  if (state.query) highlightHits();
  followRange();
  bus.on((_, keys) => {
    followMarks();
    if (keys.has("only") || (state.only && keys.has("pin"))) filter();
    if (keys.has("query")) highlightHits();
    if (keys.has("first") || keys.has("stop")) followRange();
    if (keys.has("from") || keys.has("to")) followWindow();
    if (keys.has("from") && state.to >= 0) reveal(state.from);
  }, signal);

  /** The tokens of the window as lines of fixed-width letters, for SVG and PNG. */
  const lines = (width) => {
    const all = [],
      maxLetters = Math.floor((width - 112) / LETTER_WIDTH),
      stop = state.to < 0 ? n : state.to;
    let line = null;
    const start = (message, first) => {
      line = { message, first, used: 0, parts: [] };
      all.push(line);
    };
    for (let i = state.from; i < stop; i++) {
      const message = tokens.messages[tokens.messageOf[i]];
      if (message.start === i || !line) start(message, true);
      for (const [k, part] of text(i).split("\n").entries()) {
        const size = [...part].reduce((sum, letter) => sum + (letter > "\u1100" ? 2 : 1), 0);
        if (k || (line.used && line.used + size > maxLetters)) start(message, false);
        if (size) {
          line.parts.push([i, line.used, part, size]);
          line.used += size;
        }
      }
    }
    return all;
  };
  view.figures.push({
    size: (width) => lines(width).length * 20 + (zoomed() ? 28 : 8),
    draw(pen, width, y) {
      const c = theme.of;
      if (zoomed()) {
        const [from, to] = windowShown().map((p, k) => (p - k).toLocaleString("en"));
        pen.text(0, y + 13, `positions ${from} to ${to} of ${n.toLocaleString("en")} tokens`, {
          fill: c.soft,
          size: 11,
        });
        y += 20;
      }
      for (const { message, first, parts } of lines(width)) {
        pen.rect(8, y + 2, 3, 18, c[`k${message.color}`]);
        if (first)
          pen.text(15, y + 15, message.name, { fill: c.ink, bold: true, size: 11, width: 84 });
        for (const [i, at, text, size] of parts) {
          const x = 104 + at * LETTER_WIDTH,
            step = tokens.steps[tokens.step[i]],
            pinned = i === state.pin;
          const fill = pinned
            ? c.mark
            : tint
              ? tint(i, c)
              : step && mix(c.paper, c[`k${step.color}`], 0.28);
          if (fill) pen.rect(x, y + 2, size * LETTER_WIDTH, 18, fill);
          pen.text(x, y + 15, text, {
            fill: pinned ? c.paper : c.ink,
            size: LETTER_WIDTH / 0.602,
            mono: true,
          });
        }
        y += 20;
      }
    },
  });
}

/**
 * The wheel scrolls the page until the box was clicked, and again once something else was clicked.
 *
 * @param {View} view
 * @param {HTMLElement} box
 * @param {AbortSignal} signal
 */
function scrollsAfterClick(view, box, signal) {
  const choose = ({ target }) => box.classList.toggle("wb-scrolls", box.contains(target));
  addEventListener("pointerdown", choose, { signal, capture: true });
  view.on(box, "keydown", () => box.classList.add("wb-scrolls"));
}

/**
 * A line below the box that shows its whole text, or again only its beginning; absent where everything fits.
 *
 * @param {View} view
 * @param {HTMLElement} box
 * @param {number} tall
 * @param {AbortSignal} signal
 * @param {(expanded: boolean) => void} changed
 */
function expandable(view, box, tall, signal, changed) {
  let expanded = false;
  const expand = view.button("", "show the whole transcript, or only its beginning", () => {
    expanded = !expanded;
    box.style.maxHeight = expanded ? "none" : `${tall}px`;
    box.style.height = "";
    changed(expanded);
    update();
  });
  expand.className = "wb-expand";
  const update = () => {
    expand.hidden = !expanded && box.scrollHeight <= box.clientHeight + 1;
    expand.textContent = expanded ? "show less" : "show all · click the text to scroll it";
    expand.ariaExpanded = String(expanded);
  };
  const observer = new ResizeObserver(update);
  signal.addEventListener("abort", () => observer.disconnect());
  observer.observe(box);
  if (box.firstElementChild) observer.observe(box.firstElementChild);
  view.body.append(expand);
  update();
}

/**
 * @param {View} view
 * @param {import("./token_index.js").Tokens} tokens
 * @param {Numbers} [logprob]
 */
export function legend(view, tokens, logprob) {
  const kinds = new Map(tokens.steps.map((s) => [s.kind, s.color]));
  if (!kinds.size && !logprob) return;
  const line = make("div", { className: "wb-legend" });
  for (const [kind, color] of kinds)
    line.append(
      make("span", {
        className: `k${color}`,
        textContent: `${plain(kind)} ${tokens.steps.filter((s) => s.kind === kind).length}`,
      }),
    );
  if (logprob && tokens.generated)
    line.append(
      make("i", { className: "wb-rare", textContent: "p under ½" }),
      make("i", { className: "wb-rarer", textContent: "p under ⅒" }),
    );
  view.body.append(line);
}
