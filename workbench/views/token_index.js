// @ts-check
// The tokens of a trace: texts, messages, steps, search, filters. Text of a model comes from Python, already made
// visible by workbench.text, and enters the page as textContent only.

export class Tokens {
  /** @param {Payload} payload */
  constructor({ words, messages, steps, prompt_length, arrays }) {
    this.words = words;
    this.messages = messages;
    this.steps = steps;
    this.promptLength = prompt_length;
    this.piece = arrays.piece;
    this.n = this.piece.length;
    /** @type {string[] | null} */
    this.lower = null;
    this.joined = "";
    this.owner = new Int32Array(this.n).fill(-1);
    this.step = new Int32Array(this.n).fill(-1);
    messages.forEach((m, i) => this.owner.fill(i, m.start, m.stop));
    steps.forEach((s, i) => this.step.fill(i, s.start, s.stop));
  }
  /** @param {number} i */
  text = (i) => this.words[this.piece[i]];
  /** @param {number} i */
  word = (i) => this.text(i).replaceAll("\n", "↵") || "∅";
  /**
   * Stretches [start, stop) of tokens whose joined text holds the query, whatever its case.
   *
   * @param {string} query
   * @returns {[number, number][]}
   */
  find(query) {
    if (!query) return [];
    this.lower ??= this.words.map((w) => w.toLowerCase());
    if (!this.joined) {
      this.ends = new Uint32Array(this.n);
      let all = "";
      for (let i = 0; i < this.n; i++) {
        all += this.lower[this.piece[i]];
        this.ends[i] = all.length;
      }
      this.joined = all;
    }
    const text = query.toLowerCase(),
      found = [];
    for (
      let at = this.joined.indexOf(text), i = 0;
      at >= 0;
      at = this.joined.indexOf(text, at + text.length)
    ) {
      while (this.ends[i] <= at) i++;
      let stop = i;
      while (this.ends[stop] < at + text.length) stop++;
      found.push([i, stop + 1]);
    }
    return found;
  }
  /**
   * 1 for the tokens that a filter keeps: "channel:…", "kind:…", "step", "same", "prompt", "generated"; null keeps all.
   *
   * @param {string} only
   * @param {number} lock
   */
  mask(only, lock) {
    const [what, name] = only.split(/:(.*)/s),
      { owner, step, piece } = this;
    const keep = {
      channel: (i) => this.messages[owner[i]]?.name === name,
      kind: (i) => this.steps[step[i]]?.kind === name,
      step: (i) => lock >= 0 && step[lock] >= 0 && step[i] === step[lock],
      same: (i) => lock >= 0 && piece[i] === piece[lock],
      prompt: (i) => i < this.promptLength,
      generated: (i) => i >= this.promptLength,
    }[what];
    return keep ? Uint8Array.from({ length: this.n }, (_, i) => keep(i)) : null;
  }
  /** @param {number} i */
  place(i) {
    const m = this.messages[this.owner[i]],
      s = this.steps[this.step[i]];
    return (m ? m.name : "") + (s ? `, step ${this.step[i]} (${plain(s.kind)})` : "");
  }
}

/** @param {string} kind */
export const plain = (kind) => kind.replaceAll("_", " ");

/**
 * As workbench shows numbers: three digits, a real minus, a dash for what is no number.
 *
 * @param {number | null} x
 */
export function number(x) {
  if (x == null || !Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  const text =
    size && (size < 1e-3 || size >= 1e5) ? x.toExponential(1) : String(+x.toPrecision(3));
  return text.replace("-", "−");
}
