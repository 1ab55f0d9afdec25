// @ts-check
// Links between steps, chosen by workbench.views.step_links: ends (link 2: step, key_step), strength (link), the
// strongest last.
import { number } from "./token_index.js";

export const MAX_ARCS = 200;

/**
 * The strongest links of a step as text; the step is their row (side 0) or their column (side 1).
 *
 * @param {Links} links
 * @param {number} s
 * @param {0 | 1} side
 */
export function linksOf({ ends, strength }, s, side) {
  const texts = [];
  for (let i = strength.length - 1; i >= 0 && texts.length < 4; i--)
    if (ends[2 * i + side] === s) texts.push(`${ends[2 * i + 1 - side]} (${number(strength[i])})`);
  return texts.join(", ") || "none";
}

/**
 * The strongest links as arcs over the token axis, with their ends at y and height at most `tall`. The links of step
 * `pinned` are highlighted; -1 highlights none.
 *
 * @param {Pen} pen
 * @param {Axis} axis
 * @param {Colors} c
 * @param {Step[]} steps
 * @param {Links} links
 * @param {number} high
 * @param {number} y
 * @param {number} tall
 * @param {number} pinned
 */
export function arcs(pen, axis, c, steps, { ends, strength }, high, y, tall, pinned) {
  const middle = (s) => axis.x((steps[s].start + steps[s].stop) / 2),
    inside = (x) => x >= axis.x0 && x <= axis.x0 + axis.width;
  const wide = Math.max(
    1,
    Math.min(axis.width, axis.x(steps.at(-1).stop) - axis.x(steps[0].start)),
  );
  for (let i = Math.max(0, strength.length - MAX_ARCS); i < strength.length; i++) {
    const v = strength[i],
      [s, k] = [ends[2 * i], ends[2 * i + 1]],
      [x1, x2] = [middle(k), middle(s)],
      share = Math.min(1, Math.abs(v) / high),
      other = pinned >= 0 && s !== pinned && k !== pinned;
    if (share > 0.02 && inside(x1) && inside(x2))
      pen.arc(
        Math.min(x1, x2),
        Math.max(x1, x2),
        y,
        tall * Math.sqrt(Math.abs(x2 - x1) / wide),
        v < 0 ? c.minus : c.plus,
        0.6 + 3 * share,
        (other ? 0.12 : 1) * (0.2 + 0.75 * share),
      );
  }
}
