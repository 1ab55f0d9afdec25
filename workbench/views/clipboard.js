// @ts-check
// Copying text, also where the page has no access to the clipboard (a server at http://, not on localhost).

/**
 * Copies a text; true if the browser did.
 *
 * @param {string} text
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const before = /** @type {HTMLElement} */ (document.activeElement),
      field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    before?.focus({ preventScroll: true });
    return copied;
  }
}
