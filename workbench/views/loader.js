// @ts-check
// The first script of a live view. It gets the script of its kind of view from Python, once for all views of a page:
// a widget whose own script is large may not start in the two seconds that anywidget gives it. SCRIPT is the name of that
// script with its digest; notebook.py writes it before this module.

const MODULES_KEY = Symbol.for("workbench.views.scripts.1");
const PATIENCE = 8000; // milliseconds until a view no longer waits for the script that another view requested
globalThis[MODULES_KEY] ??= new Map();
/** @type {Map<string, Promise<any>>} */
const MODULES = globalThis[MODULES_KEY];

/**
 * @param {WidgetModel} model
 * @returns {Promise<BlobPart>}
 */
const requested = (model) =>
  new Promise((done, failed) => {
    const id = `script-${performance.now()}`;
    const onReply = (message, buffers) => {
      if (message.id !== id) return;
      model.off("msg:custom", onReply);
      if (message.error) failed(new Error(message.error));
      else done(buffers[0]);
    };
    model.on("msg:custom", onReply);
    model.send({ id, kind: "script", request: {} });
  });

/** @param {WidgetModel} model */
async function imported(model) {
  const url = URL.createObjectURL(new Blob([await requested(model)], { type: "text/javascript" }));
  try {
    return await import(url);
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** @param {WidgetModel} model */
async function loaded(model) {
  const load = () => {
    const module = imported(model);
    MODULES.set(SCRIPT, module);
    module.catch(() => MODULES.get(SCRIPT) === module && MODULES.delete(SCRIPT));
    return module;
  };
  const waiting = MODULES.get(SCRIPT);
  if (!waiting) return load();
  let timer = 0;
  const late = new Promise((_, failed) => {
    timer = setTimeout(failed, PATIENCE);
  });
  return Promise.race([waiting, late])
    .catch(load)
    .finally(() => clearTimeout(timer));
}

/** @param {{ model: WidgetModel, el: HTMLElement, signal?: AbortSignal }} widget */
export const render = async (widget) => (await loaded(widget.model)).renderLive(widget);
