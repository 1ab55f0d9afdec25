// @ts-check
// The bus of a trace: what all of its views in the page share. Changes of one frame reach every view once, together.

// A module is evaluated once a view in Jupyter, so what views share lives on globalThis.
const SHARED = Symbol.for("workbench.views.1");
globalThis[SHARED] ??= new Map();
/** @type {Map<string, Bus>} */
const BUSES = globalThis[SHARED];

const OWN = { layer: -1, head: -1, from: 0, to: -1, only: "" }; // what each view has for itself
const START = { hover: -1, row: -1, key: -1, cell: "", lock: -1, query: "", ...OWN };

/**
 * @param {State} state
 * @returns {Bus}
 */
function busWith(state) {
  const subscribers = new Set();
  let changed = new Set();
  const tell = () => {
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
      if (changed.size && !before) requestAnimationFrame(tell);
    },
    tell: (keys) => {
      keys.forEach((key) => changed.add(key));
      tell();
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
 * The bus as one view has it. Hover, pinned token and search are those of all views of the trace; layer, head, stretch
 * and filter are its own, until `link(true)` shares them with the other linked views: the first brings its own.
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
  const mine = (key) => !linked && key in OWN;
  bus.set = (patch) => {
    const [theirs, rest] = [{}, {}];
    for (const key in patch) (mine(key) ? rest : theirs)[key] = patch[key];
    shared.set(theirs); // first: what changes with it reaches the view in the same frame
    set(rest);
  };
  bus.link = (on) => {
    if (on === linked) return;
    linked = on;
    if (on && !shared.linked) shared.set({ ...state });
    shared.linked += on ? 1 : -1;
    for (const key in OWN) {
      const value = state[key];
      if (on)
        delete state[key]; // what it does not have is the shared one
      else state[key] = value;
    }
    if (on) bus.tell(Object.keys(OWN));
  };
  shared.on((_, keys) => bus.tell([...keys].filter((key) => !mine(key))), signal);
  signal.addEventListener("abort", () => bus.link(false));
  return bus;
}
