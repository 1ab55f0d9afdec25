// @ts-check
// The tokens as text: messages by channel, steps by kind, or the colour of a number a token. A token
// is one span once it comes into sight.
import { mix } from "./drawing.js";
import { plain } from "./token_index.js";
import { make } from "./view_frame.js";

const WIDE = 7.4; // of a letter in a saved transcript
const PART = 200; // tokens, about, that become spans together, when they come into sight; until then they are one text
const FIRST = 3; // parts that are made at once: what is seen first

const range = (from, to) => Array.from({ length: to - from }, (_, k) => from + k);

/**
 * @param {View} view
 * @param {ViewContext} ctx
 * @param {{ tall: number, tint?: ((i: number, c: Colours) => string | null) | null }} options
 */
export function transcript(view, ctx, { tall, tint = null }) {
  const { tokens, bus, data, theme, signal } = ctx,
    { state } = bus,
    { n } = tokens,
    { logprob } = data.arrays;
  const shown = tokens.words.map((word) => word.replaceAll("\n", "↵\n") || "∅"),
    text = (i) => shown[tokens.piece[i]];
  const spans = new Array(n),
    part = new Array(n); // of each token; spans where they are made
  const box = make("div", { className: "wb-text", role: "document", label: "transcript" });
  box.style.maxHeight = `${tall}px`;
  let [hover, lock] = [-1, -1],
    mask = null,
    hits = new Uint8Array(n),
    lit = [];

  const span = (i, message) => {
    const made = make("span", { textContent: text(i) }),
      step = tokens.steps[tokens.step[i]],
      head = i < message.content || i >= message.end;
    const p = logprob && i >= tokens.promptLength && !tint ? Math.exp(logprob[i]) : 1,
      rare = p < 0.1 ? "wb-rarer" : p < 0.5 && "wb-rare";
    const kind = head ? "wb-head" : step && !tint && `wb-kind k${step.colour}`,
      off = mask && !mask[i] && "wb-off";
    made.className = [
      "wb-t",
      kind,
      rare,
      off,
      i === hover && "wb-on",
      i === lock && "wb-pinned",
      hits[i] && "wb-hit",
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
    watch.unobserve(one.el);
  };
  const watch = new IntersectionObserver(
    (seen) => seen.forEach(({ isIntersecting, target }) => isIntersecting && build(target.stretch)),
    { root: box, rootMargin: "400px 0px" },
  );
  signal.addEventListener("abort", () => watch.disconnect());
  const parts = [];
  for (const message of tokens.messages) {
    const who = make(
      "div",
      { className: "wb-who" },
      make("b", { textContent: message.channel || message.who }),
      message.channel ? message.who : "",
    );
    const said = make("div"),
      row = make("div", { className: `wb-message k${message.colour}` }, who, said);
    if (message.to) who.append(` to ${message.to}`);
    let one = null;
    for (let i = message.start; i < message.stop; i++) {
      const size = one ? i - one.start : 0,
        begins = size && (text(i - 1).endsWith("\n") || tokens.steps[tokens.step[i]]?.start === i);
      if (!one || (size >= PART && begins) || size >= 2 * PART) {
        one = { el: make("div", { className: "wb-part" }), start: i, stop: i, message };
        one.el.stretch = one;
        parts.push(one);
        said.append(one.el);
      }
      one.stop = i + 1;
      part[i] = one;
    }
    if (!message.complete)
      said.append(
        make("div", { className: "wb-part", textContent: "the run ended inside this message" }),
      );
    box.append(row);
  }
  for (const [k, one] of parts.entries()) {
    if (k < FIRST) build(one);
    else {
      one.el.textContent = range(one.start, one.stop).map(text).join("");
      watch.observe(one.el);
    }
  }
  view.body.append(box);

  const at = (event) => event.target.place ?? -1;
  view.on(box, "pointerover", (event) => bus.set({ hover: at(event) }));
  view.on(box, "pointerleave", () => bus.set({ hover: -1 }));
  view.on(box, "click", (event) => {
    ctx.el.focus({ preventScroll: true });
    if (at(event) >= 0) bus.set({ lock: state.lock === at(event) ? -1 : at(event) });
  });
  const reveal = (i) => {
    if (!part[i]) return;
    build(part[i]);
    const token = spans[i].getBoundingClientRect(),
      seen = box.getBoundingClientRect();
    if (token.top < seen.top || token.bottom > seen.bottom)
      box.scrollTop += token.top - seen.top - seen.height / 3;
  };
  const move = (name, from, to) => {
    spans[from]?.classList.remove(name);
    spans[to]?.classList.add(name);
  };
  const place = () => {
    if (hover !== state.hover) {
      move("wb-on", hover, state.hover);
      hover = state.hover;
    }
    if (lock === state.lock) return;
    move("wb-pinned", lock, state.lock);
    lock = state.lock;
    if (!box.matches(":hover")) reveal(lock);
  };
  const filter = () => {
    mask = tokens.mask(state.only, state.lock);
    spans.forEach((s, i) => s.classList.toggle("wb-off", !!mask && !mask[i]));
  };
  const find = () => {
    for (const i of lit) {
      hits[i] = 0;
      spans[i]?.classList.remove("wb-hit");
    }
    lit = tokens.find(state.query).flatMap(([a, b]) => range(a, b));
    for (const i of lit) {
      hits[i] = 1;
      spans[i]?.classList.add("wb-hit");
    }
    if (lit.length && state.lock < 0) reveal(lit[0]);
  };
  if (tint)
    theme.changed.add(() =>
      spans.forEach((s, i) => {
        s.style.background = tint(i, theme.of) ?? "";
      }),
    );
  place();
  if (state.only) filter();
  if (state.query) find();
  bus.on((_, keys) => {
    place();
    if (keys.has("only") || (state.only && keys.has("lock"))) filter();
    if (keys.has("query")) find();
    if (keys.has("from") && state.to >= 0) reveal(state.from);
  }, signal);

  /** The same as lines of fixed width, for SVG and PNG: the tokens of the window. */
  const lines = (width) => {
    const found = [],
      most = Math.floor((width - 112) / WIDE),
      stop = state.to < 0 ? n : state.to;
    let line = null;
    const start = (message, first) => {
      line = { message, first, used: 0, words: [] };
      found.push(line);
    };
    for (let i = state.from; i < stop; i++) {
      const message = tokens.messages[tokens.owner[i]];
      if (message.start === i || !line) start(message, true);
      for (const [k, piece] of text(i).split("\n").entries()) {
        const size = [...piece].reduce((sum, letter) => sum + (letter > "\u1100" ? 2 : 1), 0);
        if (k || (line.used && line.used + size > most)) start(message, false);
        if (size) {
          line.words.push([i, line.used, piece, size]);
          line.used += size;
        }
      }
    }
    return found;
  };
  view.figures.push({
    size: (width) => lines(width).length * 20 + 8,
    draw(pen, width, y) {
      const c = theme.of;
      for (const { message, first, words } of lines(width)) {
        pen.rect(8, y + 2, 3, 18, c[`k${message.colour}`]);
        if (first)
          pen.text(15, y + 15, message.name, { fill: c.ink, bold: true, size: 11, width: 84 });
        for (const [i, at, text, size] of words) {
          const x = 104 + at * WIDE,
            step = tokens.steps[tokens.step[i]],
            pinned = i === state.lock;
          const fill = pinned
            ? c.mark
            : tint
              ? tint(i, c)
              : step && mix(c.paper, c[`k${step.colour}`], 0.28);
          if (fill) pen.rect(x, y + 2, size * WIDE, 18, fill);
          pen.text(x, y + 15, text, {
            fill: pinned ? c.paper : c.ink,
            size: WIDE / 0.602,
            mono: true,
          });
        }
        y += 20;
      }
    },
  });
}

/**
 * @param {View} view
 * @param {import("./token_index.js").Tokens} tokens
 * @param {Numbers} [logprob]
 */
export function legend(view, tokens, logprob) {
  const kinds = new Map(tokens.steps.map((s) => [s.kind, s.colour]));
  if (!kinds.size && !logprob) return;
  const line = make("div", { className: "wb-legend" });
  for (const [kind, colour] of kinds)
    line.append(
      make("span", {
        className: `k${colour}`,
        textContent: `${plain(kind)} ${tokens.steps.filter((s) => s.kind === kind).length}`,
      }),
    );
  if (logprob && tokens.promptLength < tokens.n)
    line.append(
      make("i", { className: "wb-rare", textContent: "p under ½" }),
      make("i", { className: "wb-rarer", textContent: "p under ⅒" }),
    );
  view.body.append(line);
}
