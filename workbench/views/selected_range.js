// @ts-check
// The selected range of tokens, first:stop of the bus: dragged over lanes or as text, shown in every view of the trace.

/** @param {Pick<State, "first" | "stop">} state */
export const hasRange = ({ first, stop }) => first >= 0 && stop > first;

/**
 * The range as a line of text; "" without one.
 *
 * @param {Pick<State, "first" | "stop">} state
 */
export function rangeText(state) {
  if (!hasRange(state)) return "";
  const { first, stop } = state,
    count = stop - first,
    number = (n) => n.toLocaleString("en");
  return `selected: positions ${number(first)} to ${number(stop - 1)}, ${number(count)} token${count > 1 ? "s" : ""} · view.selected_range in Python · Esc clears`;
}

/**
 * Left and right end of the range on an axis, in pixels; null where nothing of it is shown.
 *
 * @param {Pick<State, "first" | "stop">} state
 * @param {Axis} axis
 * @returns {[number, number] | null}
 */
export function rangeOnAxis(state, axis) {
  const first = Math.max(state.first, axis.from),
    stop = Math.min(state.stop, axis.to);
  return hasRange(state) && stop > first ? [axis.x(first), axis.x(stop)] : null;
}

/**
 * The tokens of a text selection inside an element, as a change of the bus; null if it covers fewer than two tokens.
 *
 * @param {HTMLElement} box
 * @param {Selection | null} selection
 * @returns {{ first: number, stop: number } | null}
 */
export function rangeOfText(box, selection) {
  if (!selection || selection.isCollapsed || !box.contains(selection.anchorNode)) return null;
  const range = selection.getRangeAt(0),
    /** @type {number[]} */
    places = [];
  for (const token of /** @type {NodeListOf<HTMLElement>} */ (box.querySelectorAll(".wb-t")))
    if (range.intersectsNode(token) && overlaps(range, token)) places.push(token.place);
  return places.length > 1 ? { first: places[0], stop: places[places.length - 1] + 1 } : null;
}

/**
 * Whether a range contains at least one letter of an element, and does not only touch its edge.
 *
 * @param {Range} range
 * @param {HTMLElement} element
 */
function overlaps(range, element) {
  const whole = document.createRange();
  whole.selectNodeContents(element);
  return (
    range.compareBoundaryPoints(Range.START_TO_END, whole) > 0 &&
    range.compareBoundaryPoints(Range.END_TO_START, whole) < 0 &&
    (element !== range.startContainer.parentElement ||
      range.startOffset < (range.startContainer.textContent?.length ?? 0)) &&
    (element !== range.endContainer.parentElement || range.endOffset > 0)
  );
}
