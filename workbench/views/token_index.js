// @ts-check
// The tokens of a trace: texts, messages, steps, search, filters. In Python, workbench.text has made invisible characters
// of the model's text visible. The text enters the page as textContent only.

export class Tokens {
  /** @param {Payload} payload */
  constructor({ token_texts, messages, steps, written, arrays }) {
    this.texts = token_texts; // each distinct text once; textIds has the index of each token's text
    this.messages = messages;
    this.steps = steps;
    this.written = written;
    this.promptLength = written[0]?.[2] === "prompt" ? written[0][1] : 0;
    this.textIds = arrays.token_text_ids;
    this.n = this.textIds.length;
    this.generated = generatedOf(written, this.n);
    /** @type {string[] | null} */
    this.lowercase = null;
    this.joined = "";
    this.messageOf = new Int32Array(this.n).fill(-1);
    this.step = new Int32Array(this.n).fill(-1);
    messages.forEach((m, i) => this.messageOf.fill(i, m.start, m.stop));
    steps.forEach((s, i) => this.step.fill(i, s.start, s.stop));
  }
  /** @param {number} i */
  text = (i) => this.texts[this.textIds[i]];
  /**
   * The text of a token on one line: line feeds as ↵, spaces alone as ␣, no text as ∅.
   *
   * @param {number} i
   */
  oneLine = (i) => oneLineOf(this.text(i));
  /**
   * Ranges [start, stop) of tokens whose joined text contains the query, case-insensitive.
   *
   * @param {string} query
   * @returns {[number, number][]}
   */
  find(query) {
    if (!query) return [];
    this.lowercase ??= this.texts.map((text) => text.toLowerCase());
    if (!this.joined) {
      this.ends = new Uint32Array(this.n);
      let all = "";
      for (let i = 0; i < this.n; i++) {
        all += this.lowercase[this.textIds[i]];
        this.ends[i] = all.length;
      }
      this.joined = all;
    }
    const text = query.toLowerCase(),
      ranges = [];
    for (
      let at = this.joined.indexOf(text), i = 0;
      at >= 0;
      at = this.joined.indexOf(text, at + text.length)
    ) {
      while (this.ends[i] <= at) i++;
      let stop = i;
      while (this.ends[stop] < at + text.length) stop++;
      ranges.push([i, stop + 1]);
    }
    return ranges;
  }
  /**
   * Which tokens pass a filter (1 or 0 for each): "channel:…", "kind:…", "step", "same", "prompt", "generated",
   * "writer:…" (a tool).
   * Returns null without a filter.
   *
   * @param {string} only
   * @param {number} pin
   */
  mask(only, pin) {
    const [filter, name] = only.split(/:(.*)/s),
      { messageOf, step, textIds } = this;
    const passes = {
      channel: (i) => this.messages[messageOf[i]]?.name === name,
      kind: (i) => this.steps[step[i]]?.kind === name,
      step: (i) => pin >= 0 && step[pin] >= 0 && step[i] === step[pin],
      same: (i) => pin >= 0 && textIds[i] === textIds[pin],
      prompt: (i) => this.writer(i) === "prompt",
      generated: (i) => this.writer(i) === "model",
      writer: (i) => this.writer(i) === name,
    }[filter];
    return passes ? Uint8Array.from({ length: this.n }, (_, i) => passes(i)) : null;
  }
  /**
   * Who wrote a token: "prompt", "model" or the name of a tool.
   *
   * @param {number} i
   */
  writer(i) {
    let [low, high] = [0, this.written.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.written[middle][0] <= i) low = middle;
      else high = middle - 1;
    }
    return this.written[low]?.[2] ?? "";
  }
  /**
   * Message and step of a token, as text.
   *
   * @param {number} i
   */
  place(i) {
    const m = this.messages[this.messageOf[i]],
      s = this.steps[this.step[i]];
    return (m ? m.name : "") + (s ? `, step ${this.step[i]} (${plain(s.kind)})` : "");
  }
}

/**
 * Which tokens the model generated (1 or 0 for each); null if none.
 *
 * @param {[number, number, string][]} written
 * @param {number} n
 */
export function generatedOf(written, n) {
  const generated = new Uint8Array(n);
  for (const [start, stop, who] of written) if (who === "model") generated.fill(1, start, stop);
  return generated.includes(1) ? generated : null;
}

/**
 * The writer of tokens as a reader sees it.
 *
 * @param {string} who
 */
export const writerText = (who) =>
  who === "model" ? "generated" : who === "prompt" ? who : `by ${who}`;

/** @param {string} text */
export const oneLineOf = (text) =>
  (text.trim() || text.includes("\n") ? text.replaceAll("\n", "↵") : text.replaceAll(" ", "␣")) ||
  "∅";

/**
 * The kind of a step as a reader sees it.
 *
 * @param {string} kind
 */
export const plain = (kind) => kind.replaceAll("_", " ");

/**
 * A number as text: three digits, a true minus sign, a dash for NaN, infinity and null.
 *
 * @param {number | null} x
 */
export function number(x) {
  if (x == null || !Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  const text =
    size && (size < 1e-3 || size >= 1e5) ? x.toExponential(1) : String(+x.toPrecision(3));
  return text.replaceAll("-", "−");
}
