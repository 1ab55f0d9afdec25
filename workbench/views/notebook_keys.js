// @ts-check
// Keys of a view inside a notebook: its own keys stay in the view, the notebook's shortcuts reach the notebook.

/**
 * Whether a key is for the notebook or the browser: Ctrl+S, Cmd+Z, Shift+Enter, and Tab, which leaves the view. In the
 * search field Shift+Enter is the field's own.
 *
 * @param {KeyboardEvent} event
 * @param {HTMLElement} search
 */
export const isForNotebook = ({ key, ctrlKey, metaKey, altKey, shiftKey, target }, search) =>
  ctrlKey ||
  metaKey ||
  altKey ||
  key === "Tab" ||
  (key === "Enter" && shiftKey && target !== search);

/**
 * JupyterLab ignores the keys of elements with an attribute. It stands for a view's own keys only, and is set before
 * JupyterLab sees the key.
 *
 * @param {HTMLElement} el
 * @param {HTMLElement} search
 * @param {AbortSignal} signal
 */
export function letShortcutsThrough(el, search, signal) {
  const choose = (event) => {
    if (!el.contains(event.target)) return;
    if (isForNotebook(event, search)) el.removeAttribute("data-lm-suppress-shortcuts");
    else el.setAttribute("data-lm-suppress-shortcuts", "true");
  };
  addEventListener("keydown", choose, { signal, capture: true });
}

/**
 * Gives the focus back to the notebook, in command mode; outside a notebook to the page.
 *
 * @param {HTMLElement} el
 */
export function leaveView(el) {
  const cell = /** @type {HTMLElement | null} */ (el.closest(".jp-Cell"));
  if (cell) cell.focus({ preventScroll: true });
  if (document.activeElement !== cell) el.blur();
}
