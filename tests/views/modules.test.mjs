// The ES modules without a browser. Run by test_modules.py, or with `node --test`.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { SvgPen, mix, ramp } from "../../workbench/views/drawing.js";
import { unpack } from "../../workbench/views/mount.js";
import { scaleWidth } from "../../workbench/views/plots.js";
import { arcs, linksOf } from "../../workbench/views/step_arcs.js";
import { pooled } from "../../workbench/views/steps_view.js";
import { axisOf, columns, spread } from "../../workbench/views/token_axis.js";
import { Tokens, number, oneLineOf } from "../../workbench/views/token_index.js";
import { tooltipPlace } from "../../workbench/views/tooltip.js";
import { busOf, viewOf } from "../../workbench/views/trace_bus.js";

const data = unpack(new Uint8Array(readFileSync(process.env.PAYLOAD)));
const { arrays } = data;
const state = { from: 0, to: -1 };

test("a payload from Python is unpacked exactly, at any byte offset", () => {
  assert.deepEqual(arrays.numbers.shape, [2, 3]);
  assert.deepEqual([...arrays.numbers], [0, 1, 2, 3, 4, 5]);
  assert.ok(Number.isNaN(arrays.values[3]));
  const bytes = readFileSync(process.env.PAYLOAD),
    moved = new Uint8Array(bytes.length + 3);
  moved.set(bytes, 3);
  assert.deepEqual([...unpack(moved.subarray(3)).arrays.numbers], [0, 1, 2, 3, 4, 5]);
});

test("columns shared by several tokens have the same extremes as in Python", () => {
  const axis = axisOf(state, arrays.values.length, 0, arrays.maxima.length);
  assert.ok(axis.shared);
  assert.deepEqual([...columns(axis, arrays.values, "max")], [...arrays.maxima]);
  assert.deepEqual([...columns(axis, arrays.values, "min")], [...arrays.minima]);
});

test("axis.at is the inverse of axis.x for every position", () => {
  for (const [from, to] of [
    [0, -1],
    [17, 80],
    [99, 100],
  ]) {
    const axis = axisOf({ from, to }, 100, 12.5, 640);
    for (let p = axis.from; p < axis.to; p++) assert.equal(axis.at(axis.x(p) + axis.cell / 2), p);
    assert.equal(axis.at(12), -1);
    assert.equal(axis.at(652.5), -1);
  }
});

test("a search finds all matches across tokens, case-insensitive", () => {
  const tokens = new Tokens(data);
  const joined = [...Array(tokens.n).keys()].map(tokens.text).join("");
  for (const query of ["a+4", "CHECK", ". ", "=9.", "nowhere"]) {
    const ranges = tokens.find(query);
    assert.equal(ranges.length, joined.toLowerCase().split(query.toLowerCase()).length - 1, query);
    for (const [a, b] of ranges) {
      const text = [...Array(b - a).keys()]
        .map((k) => tokens.text(a + k))
        .join("")
        .toLowerCase();
      assert.ok(text.includes(query.toLowerCase()));
    }
  }
  assert.deepEqual(tokens.find(""), []);
});

test("filters select the tokens that they name", () => {
  const tokens = new Tokens(data),
    count = (only, pin = -1) => tokens.mask(only, pin).reduce((a, b) => a + b, 0);
  assert.equal(tokens.mask("", -1), null);
  assert.equal(count("prompt") + count("generated"), tokens.n);
  const names = [...new Set(tokens.messages.map((m) => m.name))];
  assert.equal(
    names.reduce((sum, name) => sum + count(`channel:${name}`), 0),
    tokens.n,
  );
  const step = tokens.steps[1];
  assert.equal(count("step", step.start), step.stop - step.start);
  assert.equal(count("same", 0), [...tokens.textIds].filter((p) => p === tokens.textIds[0]).length);
});

test("the views of a trace share one state and are notified once per frame", () => {
  const waiting = [];
  globalThis.requestAnimationFrame = (f) => waiting.push(f);
  const [bus, ended] = [busOf("made"), new AbortController()],
    notifications = [];
  assert.equal(busOf("made"), bus);
  bus.on((s, keys) => notifications.push([s.hover, [...keys]]), ended.signal);
  bus.set({ hover: 3 });
  bus.set({ hover: 4, pin: 1 });
  bus.set({ pin: 1 });
  assert.equal(waiting.length, 1);
  waiting.shift()();
  assert.deepEqual(notifications, [[4, ["hover", "pin"]]]);
  bus.set({ hover: 4 });
  assert.equal(waiting.length, 0);
  ended.abort();
  assert.equal(bus.size(), 0);
});

/** Two views of a trace, the notifications of each, and `frame()`, which runs one animation frame. */
function two(id) {
  const waiting = [],
    ended = new AbortController();
  globalThis.requestAnimationFrame = (f) => waiting.push(f);
  const views = [0, 5].map((layer) => viewOf(busOf(id), { layer, head: layer }, ended.signal)),
    notifications = [[], []];
  views.forEach((view, k) =>
    view.on((_, keys) => notifications[k].push([...keys].sort().join()), ended.signal),
  );
  return { views, notifications, ended, frame: () => waiting.splice(0).forEach((f) => f()) };
}

test("layer, head, zoom and filter belong to a view; hover, pinned token and search to all views of the trace", () => {
  const {
    views: [a, b],
    notifications,
    ended,
    frame,
  } = two("own");
  a.set({ layer: 3, from: 10, to: 20, only: "prompt", hover: 7, query: "x" });
  frame();
  assert.deepEqual(
    [a, b].map(({ state: s }) => [s.layer, s.head, s.from, s.to, s.only, s.hover, s.query]),
    [
      [3, 0, 10, 20, "prompt", 7, "x"],
      [5, 5, 0, -1, "", 7, "x"],
    ],
  );
  assert.deepEqual(notifications, [["from,hover,layer,only,query,to"], ["hover,query"]]); // each notified once, in the same frame
  b.set({ head: 2 });
  frame();
  assert.deepEqual([notifications[0].length, notifications[1].at(-1)], [1, "head"]);
  const later = viewOf(busOf("own"), {}, ended.signal); // a view that opens later starts with its own values
  assert.deepEqual([later.state.layer, later.state.from, later.state.hover], [-1, 0, 7]);
  ended.abort();
  assert.equal(busOf("own").size(), 0);
});

test("linked views share layer, head, zoom and filter until they are unlinked", () => {
  const {
    views: [a, b],
    notifications,
    ended,
    frame,
  } = two("linked");
  a.link(true);
  assert.equal(b.state.layer, 5);
  b.link(true); // the second view takes the values of the first
  assert.deepEqual([b.state.layer, b.state.head], [0, 0]);
  assert.ok(notifications[1].at(-1).includes("layer"));
  frame();
  b.set({ layer: 4 });
  frame();
  assert.deepEqual([a.state.layer, notifications[0].at(-1)], [4, "layer"]);
  b.link(false);
  b.set({ layer: 1 });
  a.set({ layer: 2 });
  frame();
  assert.deepEqual([a.state.layer, b.state.layer, busOf("linked").linked], [2, 1, 1]);
  ended.abort();
  assert.equal(busOf("linked").linked, 0);
});

test("a cell shared by several steps has their value of largest magnitude", () => {
  const values = Float32Array.of(1, -2, NaN, 3, 4, -5, NaN, NaN, NaN);
  assert.deepEqual([...pooled(values, 3, 0, 3, 1)], [...values]);
  assert.deepEqual([...pooled(values, 3, 0, 3, 2)], [4, -5, NaN, NaN]);
  assert.deepEqual([...pooled(values, 3, 1, 3, 1)], [4, -5, NaN, NaN]);
});

test("arcs are the strongest 200 links, and a step lists its strongest 4", () => {
  const size = 300,
    ends = Int32Array.from({ length: 2 * size }, (_, i) => (i % 2 ? 0 : 1 + ((i >> 1) % 6))),
    strength = Float32Array.from({ length: size }, (_, i) => (i + 1) * (i % 2 ? 1 : -1));
  const links = { ends, strength },
    drawn = [],
    steps = Array.from({ length: 7 }, (_, s) => ({ start: s, stop: s + 1 }));
  arcs(
    { arc: (...all) => drawn.push(all) },
    axisOf(state, 7, 0, 700),
    { plus: "p", minus: "m" },
    steps,
    links,
    300,
    100,
    80,
    -1,
  );
  assert.equal(drawn.length, 200);
  assert.equal(drawn.filter(([, , , , color]) => color === "m").length, 100);
  assert.equal(linksOf(links, 1, 0), "0 (−295), 0 (−289), 0 (−283), 0 (−277)");
  assert.equal(linksOf(links, 0, 0), "none");
  assert.ok(linksOf(links, 0, 1).startsWith("6 (300), 5 (−299)"));
});

test("text in an SVG is escaped", () => {
  const pen = new SvgPen();
  pen.text(0, 0, `</text><script>alert(1)</script> & "quoted"`, { fill: `"><img src=x>` });
  const svg = pen.done(10, 10);
  assert.ok(!/<script|<img/.test(svg));
  assert.ok(svg.includes("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quoted&quot;"));
});

test("lightness decreases along every color ramp", () => {
  const light = (c) => 0.2126 * (c & 255) + 0.7152 * ((c >> 8) & 255) + 0.0722 * ((c >> 16) & 255);
  for (const high of ["#0b4a86", "#8a3c00", "#06553f", "#4c2a85"]) {
    const colors = [...ramp("#eef1f4", high)].map(light);
    assert.ok(
      colors.every((c, i) => !i || c <= colors[i - 1] + 0.8),
      high,
    );
  }
  assert.equal(mix("#000000", "#ffffff", 0.5), "#808080");
});

test("numbers have three digits, and NaN and null are a dash", () => {
  assert.deepEqual([0, 1, -1.5, 0.12345, 1234567, 1e-5, NaN, null].map(number), [
    "0",
    "1",
    "−1.5",
    "0.123",
    "1.2e+6",
    "1.0e−5",
    "–",
    "–",
  ]);
  assert.deepEqual(spread(new Float32Array([NaN, 2, -1, Infinity])), [-1, 2]);
});

test("every minus sign of a number is a true one", () => {
  assert.deepEqual([-5.2e-6, 9.3e-6, -0.5, -2e7].map(number), [
    "−5.2e−6",
    "9.3e−6",
    "−0.5",
    "−2.0e+7",
  ]);
});

test("a token of spaces alone is visible on one line", () => {
  assert.deepEqual([" ", "  ", " 34", "\n", " \n", ""].map(oneLineOf), [
    "␣",
    "␣␣",
    " 34",
    "↵",
    " ↵",
    "∅",
  ]);
});

test("the values at the ends of a color scale are apart", () => {
  assert.equal(scaleWidth("0", "1"), 60);
  assert.ok(scaleWidth("−0.216", "0.216") > 6 * 11);
});

test("a tooltip is beside its target and inside the window", () => {
  const at = (x, y) =>
    tooltipPlace({ left: x, right: x, top: y, bottom: y }, [200, 60], [900, 700]);
  assert.deepEqual(at(100, 100), [114, 114]);
  assert.deepEqual(at(890, 690), [676, 616]);
  for (const x of [0, 300, 700, 899])
    for (const y of [0, 350, 699]) {
      const [left, top] = at(x, y);
      assert.ok(left >= 4 && left + 200 <= 896 && top >= 4 && top + 60 <= 696);
      assert.ok(left > x || left + 200 < x || top > y || top + 60 < y);
    }
  assert.deepEqual(
    tooltipPlace({ left: 5, right: 5, top: 5, bottom: 5 }, [950, 60], [900, 700]),
    [4, 19],
  );
});
