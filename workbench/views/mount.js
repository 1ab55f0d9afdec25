// @ts-check
// Mounting: in Jupyter by a model, in a page by the block of data in it.
import { themed } from "./drawing.js";
import { Tokens } from "./token_index.js";
import { busOf, viewOf } from "./trace_bus.js";

const DRAW = {};

/**
 * Names the function that draws a view: `draw(ctx)`, with ctx = { el, data, tokens, bus, signal, theme, ask }.
 *
 * @param {string} name
 * @param {(ctx: ViewContext) => void} draw
 */
export const register = (name, draw) => {
  DRAW[name] = draw;
};

// Payloads: a header and arrays in one buffer, as workbench.views.payload packs them.

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
 * @param {HTMLElement} el
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {{ signal: AbortSignal, ask: Ask, model?: WidgetModel }} how
 */
async function mount(el, bytes, { signal, ask, model }) {
  const data = unpack(bytes),
    tokens = new Tokens(data),
    [from, to] = data.window ?? [0, -1],
    { layer = -1, head = -1 } = { ...data, ...data.selected };
  const bus = viewOf(busOf(data.trace), { from, to, layer, head }, signal),
    { state } = bus; // as the code says
  el.replaceChildren();
  el.classList.add("wb");
  const theme = themed(el, signal),
    selected = model?.get("selected") ?? data.selected;
  if (selected) bus.set({ lock: selected.pos });
  model?.on("change:selected", () => {
    const { pos = -1, layer = state.layer, head = state.head } = model.get("selected") ?? {};
    bus.set({ lock: pos, layer, head });
  });
  bus.on((_, keys) => {
    if (!model || !["lock", "layer", "head"].some((key) => keys.has(key))) return;
    const named = Object.entries({ pos: state.lock, layer: state.layer, head: state.head }).filter(
      ([, v]) => v >= 0,
    );
    const selected = /** @type {Payload["selected"]} */ (
      state.lock < 0 ? null : Object.fromEntries(named)
    );
    if (JSON.stringify(selected) === JSON.stringify(model.get("selected"))) return;
    model.set("selected", selected);
    model.save_changes();
  }, signal);
  DRAW[data.view]({ el, data, tokens, bus, signal, theme, ask, alone: !model });
  performance.mark("workbench:drawn");
}

/**
 * anywidget's render: the payload, and whatever a view asks for later, come as replies with one binary buffer.
 *
 * @param {{ model: WidgetModel, el: HTMLElement, signal?: AbortSignal }} widget
 */
export async function renderLive({ model, el, signal = new AbortController().signal }) {
  const waiting = new Map();
  const heard = (message, buffers) => {
    const [done, failed] = waiting.get(message.id) ?? [];
    waiting.delete(message.id);
    if (message.error) failed?.(new Error(message.error));
    else done?.(new Uint8Array(buffers[0].buffer, buffers[0].byteOffset, buffers[0].byteLength));
  };
  model.on("msg:custom", heard);
  signal.addEventListener("abort", () => model.off("msg:custom", heard));
  let sent = 0;
  const send = (kind, request = {}) =>
    new Promise((done, failed) => {
      const id = `${performance.now()}-${sent++}`;
      waiting.set(id, [done, failed]);
      model.send({ id, kind, request });
    });
  const bytes = await send("open");
  await alive(el, signal);
  await mount(el, bytes, {
    signal,
    model,
    ask: async (kind, request) => unpack(await send(kind, request)),
  });
}

/**
 * Marks the output that holds a live view, by which the style beside the snapshot chooses (workbench/views/notebook.py).
 *
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
async function alive(el, signal) {
  const output = () => el.closest(".jp-OutputArea-child");
  while (!output() && !el.isConnected && !signal.aborted) await new Promise(requestAnimationFrame);
  const { classList } = output() ?? el;
  classList.add("wb-alive");
  signal.addEventListener("abort", () => classList.remove("wb-alive"));
}

/** A page without Python: the block of data is all there is. */
export async function renderFrozen() {
  const text = atob(document.getElementById("data").textContent),
    packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const whole = await new Response(
    new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate")),
  ).arrayBuffer();
  const ask = async (kind) => {
    throw new Error(`${kind} needs Python: this page holds what was drawn when it was saved`);
  };
  await mount(document.getElementById("view"), new Uint8Array(whole), {
    signal: new AbortController().signal,
    ask,
  });
  document.documentElement.classList.add("drawn");
}
