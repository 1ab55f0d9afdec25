// @ts-check
// Mounting a view: in Jupyter from a widget model, in a saved page from its block of data.
import { themed } from "./drawing.js";
import { hasRange } from "./selected_range.js";
import { Tokens } from "./token_index.js";
import { busOf, viewOf } from "./trace_bus.js";

const DRAW = {};

/**
 * Registers the function that draws a view: `draw(ctx)`, with ctx = { el, data, tokens, bus, signal, theme,
 * queryPython }
 * (ViewContext in tests/js/views.d.ts).
 *
 * @param {string} name
 * @param {(ctx: ViewContext) => void} draw
 */
export const register = (name, draw) => {
  DRAW[name] = draw;
};

// Payloads: a header and arrays in one buffer, packed by workbench.views.payload.

const KINDS_OF = {
  f4: Float32Array,
  f8: Float64Array,
  i4: Int32Array,
  u1: Uint8Array,
  u2: Uint16Array,
  u4: Uint32Array,
};

/**
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @returns {Payload}
 */
export function unpack(bytes) {
  if (bytes.byteOffset % 8) bytes = bytes.slice();
  const { buffer, byteOffset } = bytes;
  const size = new Uint32Array(buffer, byteOffset, 1)[0];
  const data = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + size)));
  const begin = byteOffset + 8 + size + (-size & 7);
  for (const [name, [kind, shape, start]] of Object.entries(data.arrays)) {
    const array = new KINDS_OF[kind](
      buffer,
      begin + start,
      shape.reduce((a, b) => a * b, 1),
    );
    data.arrays[name] = Object.assign(array, { shape });
  }
  return data;
}

/**
 * Draws the view that a payload describes. A view may contain another one, which has no model then.
 *
 * @param {HTMLElement} el
 * @param {Payload} data
 * @param {{ signal: AbortSignal, queryPython: QueryPython, model?: WidgetModel }} options
 */
export function mount(el, data, { signal, queryPython, model }) {
  const tokens = new Tokens(data),
    [from, to] = data.window ?? [0, -1],
    { layer = -1, head = -1 } = { ...data, ...data.selected };
  const bus = viewOf(busOf(data.trace), { from, to, layer, head }, signal),
    { state } = bus; // a view starts with the window, layer and head of its Python call
  el.replaceChildren();
  el.classList.add("wb");
  const theme = themed(el, signal),
    selected = model?.get("selected") ?? data.selected,
    range = model?.get("selected_range") ?? data.selected_range;
  if (selected) bus.set({ pin: selected.pos });
  if (range) bus.set({ first: range[0], stop: range[1] });
  model?.on("change:selected", () => {
    const { pos = -1, layer = state.layer, head = state.head } = model.get("selected") ?? {};
    bus.set({ pin: pos, layer, head });
  });
  model?.on("change:selected_range", () => {
    const [first, stop] = model.get("selected_range") ?? [-1, -1];
    bus.set({ first, stop });
  });
  const tell = (name, value) => {
    if (JSON.stringify(value) === JSON.stringify(model.get(name) ?? null)) return;
    try {
      model.set(name, value);
      model.save_changes();
    } catch {
      lost(el);
    }
  };
  bus.on((_, keys) => {
    if (!model) return;
    if (keys.has("first") || keys.has("stop"))
      tell("selected_range", hasRange(state) ? [state.first, state.stop] : null);
    if (!["pin", "layer", "head"].some((key) => keys.has(key))) return;
    const named = Object.entries({ pos: state.pin, layer: state.layer, head: state.head }).filter(
      ([, v]) => v >= 0,
    );
    tell("selected", state.pin < 0 ? null : Object.fromEntries(named));
  }, signal);
  DRAW[data.view]({ el, data, tokens, bus, signal, theme, queryPython, standalone: !model });
  performance.mark("workbench:drawn");
}

/**
 * The kernel is gone: views.css says so in the bar, since what is drawn stays usable.
 *
 * @param {HTMLElement} el
 */
const lost = (el) => el.classList.add("wb-lost");

/**
 * anywidget's `render`. The payload and the results of later queries are replies with one binary buffer each.
 *
 * @param {{ model: WidgetModel, el: HTMLElement, signal?: AbortSignal }} widget
 */
export async function renderLive({ model, el, signal = new AbortController().signal }) {
  const waiting = new Map();
  const onReply = (message, buffers) => {
    const [done, failed] = waiting.get(message.id) ?? [];
    waiting.delete(message.id);
    if (message.error) failed?.(new Error(message.error));
    else done?.(new Uint8Array(buffers[0].buffer, buffers[0].byteOffset, buffers[0].byteLength));
  };
  model.on("msg:custom", onReply);
  signal.addEventListener("abort", () => model.off("msg:custom", onReply));
  let sent = 0;
  const send = (kind, request = {}) =>
    new Promise((done, failed) => {
      const id = `${performance.now()}-${sent++}`;
      waiting.set(id, [done, failed]);
      try {
        model.send({ id, kind, request });
      } catch {
        lost(el);
        failed(new Error("no kernel: run the cell again"));
      }
    });
  const bytes = await send("open");
  await markLive(el, signal);
  mount(el, unpack(bytes), {
    signal,
    model,
    queryPython: async (kind, request) => unpack(await send(kind, request)),
  });
}

/**
 * Marks the output that contains a live view. The style beside the snapshot depends on it
 * (workbench/views/notebook.py).
 *
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
async function markLive(el, signal) {
  const output = () => el.closest(".jp-OutputArea-child");
  while (!output() && !el.isConnected && !signal.aborted) await new Promise(requestAnimationFrame);
  const { classList } = output() ?? el;
  classList.add("wb-alive");
  signal.addEventListener("abort", () => classList.remove("wb-alive"));
}

/** Mounts the view of a saved page, which has no Python: its data is the block in the page. */
export async function renderFrozen() {
  const text = atob(document.getElementById("data").textContent),
    packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const bytes = await new Response(
    new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate")),
  ).arrayBuffer();
  const queryPython = async (kind) => {
    throw new Error(
      `${kind} needs Python: a saved page contains only what it showed when it was saved`,
    );
  };
  mount(document.getElementById("view"), unpack(new Uint8Array(bytes)), {
    signal: new AbortController().signal,
    queryPython,
  });
  document.documentElement.classList.add("drawn");
}
