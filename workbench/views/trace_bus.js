// @ts-check
// The bus of a trace: the state that all its views in a page share. Changes within one frame reach every view
// once, together.

// In Jupyter a module is evaluated once per view, so shared state is on globalThis.
const SHARED = Symbol.for("workbench.views.1");
globalThis[SHARED] ??= new Map();
/** @type {Map<string, Bus>} */
const BUSES = globalThis[SHARED];

const OWN = { layer: -1, head: -1, from: 0, to: -1, only: "" }; // each view has its own
const START = {
  hover: -1,
  row: -1,
  key: -1,
  cell: "",
  pin: -1,
  first: -1,
  stop: -1,
  query: "",
  ...OWN,
};

/**
 * @param {State} state
 * @returns {Bus}
 */
function busWith(state) {
  const subscribers = new Set();
  let changed = new Set();
  const notify = () => {
    const keys = changed;
    changed = new Set();
    if (keys.size) for (const f of [...subscribers]) f(state, keys);
  };
  return {
    state,
    set(patch) {
      const before = changed.size;
      for (const key in patch)
        if (state[key] !== patch[key]) {
          state[key] = patch[key];
          changed.add(key);
        }
      if (changed.size && !before) requestAnimationFrame(notify);
    },
    notify: (keys) => {
      keys.forEach((key) => changed.add(key));
      notify();
    },
    on(f, signal) {
      subscribers.add(f);
      signal.addEventListener("abort", () => subscribers.delete(f));
    },
    size: () => subscribers.size,
  };
}

/**
 * @param {string} id
 * @returns {Bus}
 */
export function busOf(id) {
  if (!BUSES.has(id)) BUSES.set(id, Object.assign(busWith({ ...START }), { linked: 0 }));
  return BUSES.get(id);
}

/**
 * The bus of one view. All views of a trace share hover, pinned token and search. Layer, head, zoom and filter
 * belong to
 * the view until `link(true)` shares them with the other linked views; the first linked view sets their values.
 *
 * @param {Bus} shared
 * @param {Partial<State>} own
 * @param {AbortSignal} signal
 * @returns {Bus}
 */
export function viewOf(shared, own, signal) {
  const state = Object.setPrototypeOf({ ...OWN, ...own }, shared.state),
    bus = busWith(state),
    { set } = bus;
  let linked = false;
  const isOwn = (key) => !linked && key in OWN;
  bus.set = (patch) => {
    const [sharedPatch, ownPatch] = [{}, {}];
    for (const key in patch) (isOwn(key) ? ownPatch : sharedPatch)[key] = patch[key];
    shared.set(sharedPatch); // first, so that both reach the view in the same frame
    set(ownPatch);
  };
  bus.link = (on) => {
    if (on === linked) return;
    linked = on;
    if (on && !shared.linked) shared.set({ ...state });
    shared.linked += on ? 1 : -1;
    for (const key in OWN) {
      const value = state[key];
      if (on)
        delete state[key]; // falls back to the shared value, by the prototype
      else state[key] = value;
    }
    if (on) bus.notify(Object.keys(OWN));
  };
  shared.on((_, keys) => bus.notify([...keys].filter((key) => !isOwn(key))), signal);
  signal.addEventListener("abort", () => bus.link(false));
  return bus;
}
