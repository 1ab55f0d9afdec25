// @ts-check
// Joins the transcript and the lanes: the token under the mouse marks its column, the column marks its token.
// A click keeps the mark, arrow keys move it, Escape lets go. Reads `.t` (one a token, in order) and their titles.
"use strict";
{
  const tokens = [...document.querySelectorAll("#transcript .t")];
  const place = new Map(tokens.map((token, position) => [token, position]));
  const transcript = /** @type {HTMLElement} */ (document.getElementById("transcript"));
  const lanes = document.getElementById("lanes");
  const mark = document.getElementById("mark");
  const over = document.querySelector("#lanes .over");
  const readout = /** @type {HTMLElement} */ (document.getElementById("readout"));
  let shown = -1;
  let kept = -1;

  /** @param {number} position */
  function show(position) {
    if (position === shown) return;
    tokens[shown]?.classList.remove("on");
    shown = position;
    const token = tokens[position];
    readout.hidden = !token;
    mark?.classList.toggle("on", !!token);
    if (!token) return;
    token.classList.add("on");
    readout.textContent = token.getAttribute("title");
    const column = mark?.querySelector("rect");
    column?.setAttribute("x", `${(100 * position) / tokens.length}%`);
    column?.setAttribute("width", `${100 / tokens.length}%`);
  }

  /** @param {EventTarget | null} target */
  function tokenAt(target) {
    const token = target instanceof Element ? target.closest(".t") : null;
    return (token && place.get(token)) ?? -1;
  }

  /** @param {MouseEvent} event */
  function columnAt(event) {
    const box = over?.getBoundingClientRect();
    const share = box && box.width ? (event.clientX - box.left) / box.width : -1;
    return share >= 0 && share < 1 ? Math.floor(share * tokens.length) : -1;
  }

  /** @param {number} position */
  function keep(position) {
    kept = position === kept ? -1 : position;
    show(position);
  }

  /** Within the transcript's own box only: the page itself stays where the reader put it. */
  function reveal() {
    const token = tokens[shown]?.getBoundingClientRect();
    const box = transcript.getBoundingClientRect();
    if (token && (token.top < box.top || token.bottom > box.bottom)) {
      transcript.scrollTop += token.top - box.top - box.height / 2;
    }
  }

  transcript.addEventListener("pointerover", (event) => {
    const position = tokenAt(event.target);
    if (kept < 0 && position >= 0) show(position);
  });
  transcript.addEventListener("click", (event) => {
    const position = tokenAt(event.target);
    if (position >= 0) keep(position);
  });
  transcript.addEventListener("pointerleave", () => show(kept));
  lanes?.addEventListener("pointermove", (event) => {
    const position = columnAt(event);
    if (kept < 0 && position >= 0) show(position);
  });
  lanes?.addEventListener("click", (event) => {
    const position = columnAt(event);
    if (position < 0) return;
    keep(position);
    reveal();
  });
  lanes?.addEventListener("pointerleave", () => show(kept));
  document.addEventListener("keydown", (event) => {
    if (kept < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") {
      kept = -1;
      show(-1);
    } else if (by) {
      event.preventDefault();
      kept = Math.min(Math.max(kept + by, 0), tokens.length - 1);
      show(kept);
      reveal();
    }
  });
}
