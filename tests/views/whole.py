"""A synthetic run with all arrays that the views of layers, heads, experts and steps need; its sizes are all different.

Also a live view without Jupyter: Python answers the queries of the browser, through the same messages.
"""

from base64 import b64encode
from dataclasses import fields
from pathlib import Path

import numpy as np

from tests.views import made
from tests.views.browser import Tab, with_shift_flag
from workbench.traces import Manifest, Trace
from workbench.traces.steps import steps
from workbench.views.script import script, style

LAYERS, HEADS, KV, D_HEAD, WINDOW, EXPERTS, ACTIVE = 4, 6, 2, 5, 9, 11, 3


def whole(talk: list[made.Message] = made.TALK, *, heads: int = HEADS, seed: int = 0) -> Trace:
    """A run with queries, keys and sink logits, routing, a lens, and attention between steps.

    It has no attention to the sinks; `made.run` has.
    """
    base = made.run(talk, layers=LAYERS, seed=seed)
    rng, n = np.random.default_rng(seed + 1), len(base)
    sizes = {"n_heads": heads, "n_kv_heads": KV, "d_head": D_HEAD, "window": WINDOW}
    sizes |= {"n_experts": EXPERTS, "n_active": ACTIVE}
    model = base.manifest.model | {"config": base.config | sizes}
    arrays = {name: base.raw(name) for name in base.names() if not name.startswith("blocks")}
    arrays["sinks"] = rng.normal(size=(LAYERS, heads)).astype("f4")
    for layer in range(LAYERS):
        at = f"blocks.{layer}."
        arrays[at + "attn.hook_rot_q"] = rng.normal(size=(n, heads, D_HEAD)).astype("f4") * 2
        arrays[at + "attn.hook_rot_k"] = rng.normal(size=(n, KV, D_HEAD)).astype("f4")
        chosen = np.argsort(-rng.gumbel(size=(n, EXPERTS)) - np.arange(EXPERTS) * 0.3, axis=1)[:, :ACTIVE]
        shares = np.sort(rng.dirichlet(np.ones(ACTIVE), n))[:, ::-1]
        weights = np.zeros((n, EXPERTS), "f4")
        np.put_along_axis(weights, chosen, shares.astype("f4"), 1)
        arrays[at + "mlp.hook_expert_indices"] = chosen.astype("i4")
        arrays[at + "mlp.hook_expert_weights"] = weights
    ids = sorted(set(base.tokens))
    arrays["lens_ids"] = rng.choice(ids, (LAYERS, n, 5)).astype("i4")
    p = np.sort(rng.dirichlet(np.full(6, 0.5), (LAYERS, n)))[..., :0:-1]
    arrays["lens_logprobs"] = np.log(p + 1e-9).astype("f4")
    arrays["lens_entropy"] = rng.gamma(1, 1, (LAYERS, n)).astype("f4")
    arrays["lens_kl"] = rng.gamma(1, 1, (LAYERS, n)).astype("f4")
    if count := len(steps(base)):
        arrays["step_attention"] = np.tril(rng.beta(1, 9, (LAYERS, heads, count, count))).astype("f4")
    manifest = {f.name: getattr(base.manifest, f.name) for f in fields(Manifest) if f.init}
    return Trace(Manifest(**manifest | {"model": model, "tensors": {}}), arrays)


HOSTILE = [("user", None, made.HOSTILE), ("assistant", "analysis", made.HOSTILE)]

_LIVE = """
const state = { selected: null };
let onMessage;
const model = {
  get: (key) => state[key],
  set: (key, value) => { state[key] = value; },
  save_changes: () => {
    if (!NUMBER) Object.assign(window, { selected: state.selected, selectedRange: state.selected_range });
  },
  on: (name, f) => { if (name === "msg:custom") onMessage = f; },
  off: () => {},
  async send({ id, kind, request }) {
    const [error, text] = await window.reply(NUMBER, kind, request);
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    onMessage({ id, ...(error && { error }) }, [new DataView(bytes.buffer)]);
  },
};
await renderLive({ model, el: document.querySelectorAll(".view")[NUMBER] });
if (document.querySelectorAll(".wb").length === VIEWS) document.documentElement.classList.add("drawn");
"""


class LiveTab(Tab):
    """One or several live views whose queries Python answers, each with its own script, as in Jupyter."""

    def __init__(self, browser, view, folder: Path, *others, **options):
        self.queries: list[str] = []
        self.views = [view, *others]
        page = with_shift_flag(browser.new_page(viewport={"width": 1280, "height": 900}, **options))
        self.page, self.console, self.requests = page, [], []
        page.on("console", lambda message: self.console.append(message.text))
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.expose_function("reply", self._reply)
        path = folder / "live.html"
        live = _LIVE.replace("VIEWS", str(len(self.views)))
        places = '<div id="view" class="view"></div>' + '<div class="view"></div>' * len(others)
        scripts = "".join(
            f'<script type="module">{script(each.module)}{live.replace("NUMBER", str(number))}</script>'
            for number, each in enumerate(self.views)
        )
        path.write_text(
            f'<!doctype html><meta charset="utf-8"><style>{style()}</style><body>{places}{scripts}', "utf-8"
        )
        page.goto(path.as_uri())
        page.wait_for_selector("html.drawn", state="attached")

    def _reply(self, number: int, kind: str, request: dict) -> list[str]:
        self.queries.append(kind)
        try:
            return ["", b64encode(self.views[number].reply(kind, request)).decode()]
        except Exception as error:
            return [f"{type(error).__name__}: {error}", ""]

    def selected(self):
        self.settled()
        return self.page.evaluate("window.selected")


def check_inert(tab: Tab, browser, tmp_path: Path) -> str:
    """Hover and save the drawing: check that no script runs and no text becomes markup. Returns the drawing's texts."""
    box = tab.page.locator(".wb-plot >> nth=-1").bounding_box()
    for x in np.linspace(box["x"] + 2, box["x"] + box["width"] - 2, 24):
        tab.page.mouse.move(x, box["y"] + box["height"] / 2)
    tab.page.mouse.click(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    drawing, alarms = browser.new_page(), []
    drawing.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    drawing.goto((tmp_path / "saved.svg").as_uri())
    assert drawing.locator("script, img, [onmouseover], [onerror]").count() == 0
    texts = " ".join(drawing.locator("text").all_text_contents())
    assert alarms == []
    drawing.close()
    assert tab.page.locator("script").count() == 2
    assert tab.page.locator("#view img, #view script").count() == 0
    assert not set(texts) & set("\u202e\u2066\u200b\x00\ud800")
    tab.requests[:] = [url for url in tab.requests if not url.startswith("blob:")]
    return texts
