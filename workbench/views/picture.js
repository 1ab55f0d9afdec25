// @ts-check
// A view as a picture, SVG or PNG: what is shown, with the marks of its pinned rows and columns.
import { CanvasPen, SvgPen } from "./drawing.js";

const PICTURE_MARGIN = 12; // pixels on the left and on the right
const PICTURE_GAP = 8; // pixels below each plot

/**
 * @param {string} name
 * @param {BlobPart} content
 * @param {string} type
 */
function save(name, content, type) {
  const url = URL.createObjectURL(
    content instanceof Blob ? content : new Blob([content], { type }),
  );
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1e4);
}

/**
 * The functions that save a view as SVG and as PNG.
 *
 * @param {ViewContext} ctx
 * @param {Figure[]} figures
 * @param {HTMLElement} body
 */
export function pictureSavers({ data, theme, bus: { state } }, figures, body) {
  const name = `${data.view}-${data.trace.slice(0, 12)}`;
  const sheet = () => {
    const width = Math.max(640, Math.round(body.clientWidth)),
      heights = figures.map((f) => Math.ceil(f.size(width))),
      height = heights.reduce((a, b) => a + b + PICTURE_GAP, 30);
    /** @param {Pen} pen */
    const draw = (pen) => {
      const { of } = theme;
      pen.rect(-PICTURE_MARGIN, 0, width + 2 * PICTURE_MARGIN, height, of.paper);
      let y = 0;
      figures.forEach((f, i) => {
        f.draw(pen, width, y);
        for (const mark of f.mark?.(state, width) ?? []) if (mark.pin) outline(pen, mark, y, of);
        y += heights[i] + PICTURE_GAP;
      });
      pen.text(0, height - 9, data.foot, { fill: of.soft, size: 10 });
    };
    return { width: width + 2 * PICTURE_MARGIN, height, draw };
  };
  return {
    SVG() {
      const { width, height, draw } = sheet(),
        pen = new SvgPen();
      draw(pen);
      save(`${name}.svg`, pen.done(width, height, PICTURE_MARGIN), "image/svg+xml");
    },
    PNG() {
      const { width, height, draw } = sheet(),
        canvas = Object.assign(document.createElement("canvas"), {
          width: width * 2,
          height: height * 2,
        }),
        context = canvas.getContext("2d");
      context.scale(2, 2);
      context.translate(PICTURE_MARGIN, 0);
      draw(new CanvasPen(context));
      canvas.toBlob((blob) => save(`${name}.png`, blob, "image/png"));
    },
  };
}

/**
 * A mark as it is laid over a plot: a veil of the color of pins, with an edge.
 *
 * @param {Pen} pen
 * @param {Mark} mark
 * @param {number} y0
 * @param {Colors} of
 */
function outline(pen, { x, y, w, h }, y0, of) {
  const top = y0 + y;
  pen.rect(x, top, w, h, of.mark, 0.22);
  pen.rect(x - 1, top - 1, w + 2, 1, of.mark);
  pen.rect(x - 1, top + h, w + 2, 1, of.mark);
  pen.rect(x - 1, top, 1, h, of.mark);
  pen.rect(x + w, top, 1, h, of.mark);
}
