// A pen that writes one page of PDF: what is drawn as lines and letters stays so; letters that the fonts of every reader
// lack are pictures of what the screen shows, so that no token is altered or lost.

const FONTS = ["Helvetica", "Helvetica-Bold", "Courier", "Courier-Bold"];
// Widths of Helvetica's characters 32 to 126, in thousandths of the size, from Adobe's metrics; all others are taken as 556.
const WIDTHS = "278 278 355 556 556 889 667 191 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556 556 556 556 278 278 584 584 584 556 1015 667 667 722 722 667 611 778 722 278 500 667 556 833 722 778 667 778 722 667 611 722 667 944 667 667 611 278 278 278 469 556 333 556 556 500 556 556 278 556 556 222 222 500 222 833 556 556 556 556 333 500 278 556 500 722 500 500 500 334 260 334 584".split(" ").map(Number);
const LATIN = { "…": 0x85, "‘": 0x91, "’": 0x92, "“": 0x93, "”": 0x94, "•": 0x95, "–": 0x96, "—": 0x97, "‹": 0x8b, "›": 0x9b }; // of WinAnsi, beside Latin-1
const FINE = 4; // pixels of a picture of letters for one of the screen
const hex = (x) => x.toString(16).padStart(2, "0");
const short = (x) => String(+x.toFixed(2));

export class PdfPen {
  lines = [];
  pictures = [];
  alphas = new Map();
  words = new Map();
  constructor(width, height, pen) {
    Object.assign(this, { width, height, pen });
  }
  #alpha(alpha) {
    if (alpha >= 1) return "";
    if (!this.alphas.has(alpha)) this.alphas.set(alpha, this.alphas.size);
    return `/A${this.alphas.get(alpha)} gs `;
  }
  #colour = (fill) => [1, 3, 5].map((i) => short(parseInt(fill.slice(i, i + 2), 16) / 255)).join(" ");
  #put(line) {
    this.lines.push(`q ${line} Q`);
  }
  rect(x, y, w, h, fill, alpha = 1) {
    this.#put(`${this.#alpha(alpha)}${this.#colour(fill)} rg ${[x, this.height - y - h, w, h].map(short).join(" ")} re f`);
  }
  text(x, y, text, { fill, size = 12, align = "start", bold = false, mono = false, width = Infinity }) {
    text = String(text);
    const codes = (t) => [...t].map((c) => LATIN[c] ?? (/[ -~\u00a1-\u00ff]/.test(c) ? c.charCodeAt(0) : -1));
    const wide = (t) => (codes(t).reduce((sum, c) => sum + (mono ? 600 : (WIDTHS[c - 32] ?? 556)), 0) * size) / 1000;
    if (wide(text) > width) {
      while (text && wide(text + "…") > width) text = [...text].slice(0, -1).join("");
      text &&= text + "…";
    }
    const found = codes(text);
    if (found.includes(-1)) return this.#word(x, y, text, { fill, size, align, bold, mono });
    const at = x - { start: 0, center: 0.5, end: 1 }[align] * wide(text);
    this.#put(`BT /F${2 * mono + bold} ${short(size)} Tf ${this.#colour(fill)} rg ${short(at)} ${short(this.height - y)} Td <${found.map(hex).join("")}> Tj ET`);
  }
  #word(x, y, text, look) {
    const key = JSON.stringify([text, look.fill, look.size, look.bold, look.mono]);
    if (!this.words.has(key)) {
      const canvas = document.createElement("canvas"), context = canvas.getContext("2d"), w = Math.ceil(look.size * ([...text].length + 1) * 1.2), h = Math.ceil(look.size * 1.6);
      Object.assign(canvas, { width: w * FINE, height: h * FINE });
      context.scale(FINE, FINE);
      this.pen(context).text(0, look.size * 1.2, text, { ...look, align: "start" });
      this.words.set(key, { w, h, number: this.pictures.push(canvas) - 1, wide: context.measureText(text).width });
    }
    const { w, h, number, wide } = this.words.get(key);
    this.#show(x - { start: 0, center: 0.5, end: 1 }[look.align] * wide, y - look.size * 1.2, w, h, number);
  }
  arc(x1, x2, y, h, stroke, width, alpha) {
    const [a, b] = [Math.min(x1, x2), Math.max(x1, x2)], k = 0.5523, r = (b - a) / 2, m = (a + b) / 2, base = this.height - y, top = base + h;
    const curve = [[a, base + k * h, m - k * r, top, m, top], [m + k * r, top, b, base + k * h, b, base]].map((c) => c.map(short).join(" ") + " c");
    this.#put(`${this.#alpha(alpha)}${this.#colour(stroke)} RG ${short(width)} w ${short(a)} ${short(base)} m ${curve.join(" ")} S`);
  }
  image(x, y, w, h, picture) {
    this.#show(x, y, w, h, this.pictures.push(picture) - 1);
  }
  #show(x, y, w, h, number) {
    this.#put(`${short(w)} 0 0 ${short(h)} ${short(x)} ${short(this.height - y - h)} cm /I${number} Do`);
  }
  /** The file, with nothing in it that changes from one time to the next. */
  async done() {
    const bytes = (text) => new TextEncoder().encode(text), objects = [];
    const stream = async (told, content) => {
      const packed = await new Response(new Blob([content]).stream().pipeThrough(new CompressionStream("deflate"))).blob();
      return objects.push(new Blob([`<< ${told} /Filter /FlateDecode /Length ${packed.size} >>\nstream\n`, packed, "\nendstream"])); // its number
    };
    const plain = (text) => objects.push(new Blob([text]));
    const names = [];
    for (const [i, picture] of this.pictures.entries()) {
      const { width, height } = picture, { data } = picture.getContext("2d").getImageData(0, 0, width, height), seen = new Uint8Array(width * height), inks = new Uint8Array(3 * seen.length);
      for (let k = 0; k < seen.length; k++) (seen[k] = data[4 * k + 3]), inks.set(data.subarray(4 * k, 4 * k + 3), 3 * k);
      const told = `/Type /XObject /Subtype /Image /Width ${width} /Height ${height} /BitsPerComponent 8`;
      const mask = await stream(`${told} /ColorSpace /DeviceGray`, seen);
      names.push(`/I${i} ${await stream(`${told} /ColorSpace /DeviceRGB /SMask ${mask} 0 R`, inks)} 0 R`);
    }
    const fonts = FONTS.map((font, i) => `/F${i} ${plain(`<< /Type /Font /Subtype /Type1 /BaseFont /${font} /Encoding /WinAnsiEncoding >>`)} 0 R`);
    const alphas = [...this.alphas].map(([alpha, i]) => `/A${i} << /ca ${short(alpha)} /CA ${short(alpha)} >>`);
    const content = await stream("", bytes(`0.75 0 0 0.75 0 0 cm\n${this.lines.join("\n")}`)); // a pixel is 3/4 of a point
    const [page, pages] = [objects.length + 1, objects.length + 2];
    plain(`<< /Type /Page /Parent ${pages} 0 R /MediaBox [0 0 ${short(0.75 * this.width)} ${short(0.75 * this.height)}] /Contents ${content} 0 R /Resources << /Font << ${fonts.join(" ")} >> /ExtGState << ${alphas.join(" ")} >> /XObject << ${names.join(" ")} >> >> >>`);
    plain(`<< /Type /Pages /Kids [${page} 0 R] /Count 1 >>`);
    const root = plain(`<< /Type /Catalog /Pages ${pages} 0 R >>`), parts = ["%PDF-1.4\n"], starts = [];
    let size = parts[0].length;
    for (const [i, object] of objects.entries()) {
      starts.push(String(size).padStart(10, "0") + " 00000 n \n");
      const whole = new Blob([`${i + 1} 0 obj\n`, object, "\nendobj\n"]);
      parts.push(whole);
      size += whole.size;
    }
    const count = objects.length + 1;
    return new Blob([...parts, `xref\n0 ${count}\n0000000000 65535 f \n${starts.join("")}trailer\n<< /Size ${count} /Root ${root} 0 R >>\nstartxref\n${size}\n%%EOF\n`], { type: "application/pdf" });
  }
}
