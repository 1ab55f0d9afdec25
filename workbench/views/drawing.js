// @ts-check
// Themes, colors and pens. Every color is a CSS variable of views.css; the palettes are safe for color-blind readers.

export function isDark() {
  const { jpThemeLight } = document.body.dataset,
    { classList } = document.body;
  if (jpThemeLight !== undefined) return jpThemeLight === "false";
  if (/vscode-/.test(classList.value)) return !classList.contains("vscode-light");
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/**
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 * @returns {Theme}
 */
export function themed(el, signal) {
  const theme = { of: {}, changed: new Set() };
  const readColors = () => {
    el.dataset.theme = isDark() ? "dark" : "light";
    const style = getComputedStyle(el);
    for (const name of COLORS) theme.of[name] = style.getPropertyValue(`--${name}`).trim();
    for (const f of theme.changed) f();
  };
  const observer = new MutationObserver(readColors),
    media = matchMedia("(prefers-color-scheme: dark)");
  observer.observe(document.body, {
    attributes: true,
    attributeFilter: ["data-jp-theme-light", "class"],
  });
  media.addEventListener("change", readColors, { signal });
  signal.addEventListener("abort", () => observer.disconnect());
  readColors();
  return theme;
}
const COLORS =
  "paper ink soft line faint bar mark low blue brown green purple plus minus k0 k1 k2 k3 k4 k5 k6 k7 k8".split(
    " ",
  );

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
/**
 * A color between two others, `share` of the way from a to b; all as "#rrggbb".
 *
 * @param {string} a
 * @param {string} b
 * @param {number} share
 */
export const mix = (a, b, share) => {
  const [p, q] = [rgb(a), rgb(b)];
  return (
    "#" +
    p
      .map((x, i) =>
        Math.round(x + (q[i] - x) * share)
          .toString(16)
          .padStart(2, "0"),
      )
      .join("")
  );
};
/**
 * 256 colors, as pixels, through two or more stops: for example from theme.low to theme.blue, or minus, low, plus.
 *
 * @param {...string} stops
 */
export function ramp(...stops) {
  const colors = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    const x = (i / 255) * (stops.length - 1),
      k = Math.min(stops.length - 2, Math.floor(x));
    const [r, g, b] = rgb(mix(stops[k], stops[k + 1], x - k));
    colors[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return colors;
}

// Pens: the same drawing code draws on a canvas or writes SVG.

export class CanvasPen {
  constructor(context) {
    this.c = context;
    context.imageSmoothingEnabled = false;
  }
  rect(x, y, w, h, fill, alpha = 1) {
    Object.assign(this.c, { fillStyle: fill, globalAlpha: alpha });
    this.c.fillRect(x, y, w, h);
    this.c.globalAlpha = 1;
  }
  text(
    x,
    y,
    text,
    { fill, size = 12, align = "start", bold = false, mono = false, width = Infinity },
  ) {
    Object.assign(this.c, { fillStyle: fill, font: font(size, bold, mono), textAlign: align });
    const wide = (string) => this.c.measureText(string).width;
    if (wide(text) > width) {
      let start = text.slice(0, (text.length * width) / wide(text));
      while (start && wide(`${start}…`) > width) start = start.slice(0, -1);
      text = start && `${start}…`;
    }
    this.c.fillText(text, x, y);
  }
  /** The upper half of an ellipse from x1 to x2, with its base at y and height `h`. */
  arc(x1, x2, y, h, stroke, width, alpha) {
    Object.assign(this.c, { strokeStyle: stroke, lineWidth: width, globalAlpha: alpha });
    this.c.beginPath();
    this.c.ellipse((x1 + x2) / 2, y, Math.abs(x2 - x1) / 2, h, 0, Math.PI, 0);
    this.c.stroke();
    this.c.globalAlpha = 1;
  }
  image(x, y, w, h, picture) {
    this.c.drawImage(picture, x, y, w, h);
  }
}

export class SvgPen {
  parts = [];
  #e(name, attributes, text) {
    const written = Object.entries(attributes).map(
      ([k, v]) => ` ${k}="${typeof v === "number" ? +v.toFixed(2) : xml(v)}"`,
    );
    this.parts.push(
      `<${name}${written.join("")}${text === undefined ? "/>" : `>${xml(text)}</${name}>`}`,
    );
  }
  rect(x, y, width, height, fill, alpha = 1) {
    this.#e("rect", { x, y, width, height, fill, ...(alpha < 1 && { "fill-opacity": alpha }) });
  }
  text(
    x,
    y,
    text,
    { fill, size = 12, align = "start", bold = false, mono = false, width = Infinity },
  ) {
    const maxLength = Math.floor(width / (size * 0.56));
    if (text.length > maxLength) text = maxLength > 1 ? `${text.slice(0, maxLength - 1)}…` : "";
    const anchor = { start: "start", center: "middle", end: "end" }[align];
    this.#e(
      "text",
      {
        x,
        y,
        fill,
        "font-size": size,
        "text-anchor": anchor,
        "font-weight": bold ? "600" : "400",
        ...(mono && { "font-family": MONO }),
      },
      text,
    );
  }
  arc(x1, x2, y, h, stroke, width, alpha) {
    const d = `M${x1.toFixed(1)} ${y}A${(Math.abs(x2 - x1) / 2).toFixed(1)} ${h.toFixed(1)} 0 0 ${x1 < x2 ? 1 : 0} ${x2.toFixed(1)} ${y}`;
    this.#e("path", { d, fill: "none", stroke, "stroke-width": width, "stroke-opacity": alpha });
  }
  image(x, y, width, height, picture) {
    const look = { preserveAspectRatio: "none", "image-rendering": "pixelated" };
    this.#e("image", { x, y, width, height, href: picture.toDataURL(), ...look });
  }
  done(w, h, margin = 0) {
    const open = `<svg xmlns="http://www.w3.org/2000/svg" width="${w}" height="${h}" viewBox="${-margin} 0 ${w} ${h}"`;
    return `${open} font-family="${SANS.replaceAll('"', "'")}" xml:space="preserve">${this.parts.join("")}</svg>`;
  }
}
const xml = (text) =>
  String(text).replace(
    /[&<>"]/g,
    (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c],
  );
const SANS = 'Inter, system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
const MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, monospace";
const font = (size, bold, mono) => `${bold ? "600 " : ""}${size}px ${mono ? MONO : SANS}`;

/**
 * Cells (row column) as a small picture that the pen stretches. `at(row, column)` is an index into `colors`, or -1
 * for a
 * transparent cell.
 *
 * @param {number} columns
 * @param {number} rows
 * @param {Uint32Array} colors
 * @param {(row: number, column: number) => number} at
 */
export function raster(columns, rows, colors, at) {
  const canvas = Object.assign(document.createElement("canvas"), {
    width: columns || 1,
    height: rows || 1,
  });
  const image = new ImageData(canvas.width, canvas.height),
    pixels = new Uint32Array(image.data.buffer);
  for (let r = 0, i = 0; r < rows; r++)
    for (let c = 0; c < columns; c++, i++) {
      const level = at(r, c);
      if (level >= 0) pixels[i] = colors[level > 255 ? 255 : level | 0];
    }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
