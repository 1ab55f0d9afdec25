// @ts-check
// The values under the pointer, beside it: the readout below a tall view may be out of sight.

const TIP_GAP = 14; // pixels between the pointer and the tooltip
const TIP_EDGE = 4; // pixels between the tooltip and the edge of the window

/**
 * Where a tooltip of a size goes: below and to the right of a rectangle, or on its other side where the window ends.
 *
 * @param {Pick<DOMRect, "left" | "right" | "top" | "bottom">} target
 * @param {[number, number]} size
 * @param {[number, number]} space
 * @returns {[number, number]}
 */
export function tooltipPlace(target, [w, h], [width, height]) {
  const x =
      target.right + TIP_GAP + w + TIP_EDGE <= width
        ? target.right + TIP_GAP
        : target.left - TIP_GAP - w,
    y =
      target.bottom + TIP_GAP + h + TIP_EDGE <= height
        ? target.bottom + TIP_GAP
        : target.top - TIP_GAP - h;
  return [
    Math.max(TIP_EDGE, Math.min(x, width - w - TIP_EDGE)),
    Math.max(TIP_EDGE, Math.min(y, height - h - TIP_EDGE)),
  ];
}

/**
 * The tooltip of a view. It is at the pointer, or at the mark that the keys move, and shows the text that was set
 * last; nothing if that is empty or neither is in the view.
 *
 * @param {HTMLElement} el
 * @param {HTMLElement} body the part of the view in which the pointer has a tooltip
 * @param {AbortSignal} signal
 */
export function tooltip(el, body, signal) {
  // A popover is drawn above everything, not clipped by the notebook, and also in full screen.
  const tip = Object.assign(document.createElement("div"), { className: "wb-tip" });
  tip.popover = "manual";
  tip.setAttribute("aria-hidden", "true"); // the announcement is for screen readers
  el.append(tip);
  /** @type {(() => Pick<DOMRect, "left" | "right" | "top" | "bottom"> | undefined) | null} */
  let target = null;
  let text = "",
    keys = false,
    waiting = false;
  /** @type {[number, number]} */
  let size = [0, 0];
  const place = () => {
    waiting = false;
    const at = text && tip.isConnected ? target?.() : null,
      open = tip.matches(":popover-open");
    if (!at) {
      if (open) tip.hidePopover();
      return;
    }
    if (!open) tip.showPopover();
    if (!open || tip.textContent !== text) {
      tip.textContent = text;
      size = [tip.offsetWidth, tip.offsetHeight];
    }
    const [x, y] = tooltipPlace(at, size, [innerWidth, innerHeight]);
    tip.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
  };
  const schedule = () => {
    if (!waiting) queueMicrotask(place); // after all plots have moved their marks
    waiting = true;
  };
  const hide = () => {
    target = null;
    keys = false;
    schedule();
  };
  body.addEventListener(
    "pointermove",
    ({ clientX: x, clientY: y }) => {
      keys = false;
      target = () => ({ left: x, right: x, top: y, bottom: y });
      if (tip.matches(":popover-open")) schedule();
    },
    { signal },
  );
  body.addEventListener("pointerleave", hide, { signal });
  el.addEventListener("blur", () => keys && hide(), { signal });
  addEventListener("scroll", () => target && hide(), { signal, capture: true, passive: true });
  return {
    /** @param {string} shown */
    set(shown) {
      text = shown;
      schedule();
    },
    /** From now on the tooltip is at the pinned mark, until the pointer moves. */
    followKeys() {
      keys = true;
      target = () =>
        [...el.querySelectorAll(".wb-pinned, .wb-pin")]
          .map((mark) => mark.getBoundingClientRect())
          .find((r) => r.width && r.bottom > 0 && r.top < innerHeight);
      schedule();
    },
    get byKeys() {
      return keys;
    },
    get inside() {
      return target !== null;
    },
  };
}
