// @ts-check
// Which tokens set the scale of a lane. lane_scale.py does the same for snapshots.
import { spread } from "./token_axis.js";

/** @type {[string, string][]} */
export const SCALES = [
  ["generated", "scale: generated tokens"],
  ["shown", "scale: shown tokens"],
  ["run", "scale: whole run"],
];

/**
 * The positions that set the scale: the generated tokens (all if there are none), the shown ones, or all.
 *
 * @param {string} scale
 * @param {{ n: number, generated: Uint8Array | null }} tokens which of them were generated; null if none
 * @param {{ from: number, to: number }} axis
 * @param {Uint8Array | null} mask
 * @returns {{ from: number, to: number, mask: Uint8Array | null }}
 */
export function scaleRange(scale, { n, generated }, { from, to }, mask) {
  if (scale === "shown") return { from, to, mask };
  return { from: 0, to: n, mask: scale === "generated" ? generated : null };
}

/**
 * The ends of the scale of a lane (row pos): its fixed ends, otherwise the extremes of the finite values in the range.
 *
 * @param {{ values: Float32Array, low: number | null, high: number | null }} lane
 * @param {number} n
 * @param {{ from: number, to: number, mask: Uint8Array | null }} range
 */
export function scaleEnds({ values, low, high }, n, { from, to, mask }) {
  let [smallest, largest] = [Infinity, -Infinity];
  for (let row = 0; row < values.length; row += n)
    for (let i = from; i < to; i++) {
      const v = values[row + i];
      if (mask && !mask[i]) continue;
      if (v < smallest && v > -Infinity) smallest = v;
      if (v > largest && v < Infinity) largest = v;
    }
  if (smallest > largest) [smallest, largest] = spread(values);
  return [low ?? smallest, high ?? largest];
}
