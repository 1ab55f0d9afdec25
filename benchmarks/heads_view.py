"""The cost of the heads view: thumbnails of a layer, switching between heads, one head of a long run.

    python -m benchmarks.heads_view                # 1,024 tokens with 64 heads; 16,384 tokens with 8
    python -m benchmarks.heads_view --rounds 9

Queries and keys are synthetic, in gpt-oss's shape (d_head 64, 8 kv heads, windows of 128), fp32. "python" is the time
of Python's answer alone, packed: the cost of the patterns. "switch" is measured in a real JupyterLab on the loopback,
in Chromium without a GPU, from the key press until the requested head is on the screen, the kernel's answer included.
"cached" is switching back to a head that was shown before. Medians and p95 in ms.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from playwright.sync_api import sync_playwright

import workbench as wb
from tests.views import whole
from tests.views.browser import CHROMIUM, FLAGS
from tests.views.lab import lab

WATCH = """() => {
  const { scale } = CanvasRenderingContext2D.prototype;  // called once in each drawing
  window.painted = 0;
  CanvasRenderingContext2D.prototype.scale = function (...a) {
    const after = new MessageChannel();
    after.port1.onmessage = () => { window.painted = performance.now(); };
    after.port2.postMessage(0);  // arrives after the frame that this drawing is part of
    return scale.apply(this, a);
  };
}"""
SWITCH = """async ([key, wait]) => {
  const begin = performance.now();
  document.querySelector(".wb").dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  await new Promise((done) => setTimeout(done, wait));
  return window.painted - begin;
}"""


def trace_of(n: int, heads: int) -> wb.Trace:
    """A run of about n tokens whose layers are one sliding and one full."""
    talk = [("user", None, ["Go."]), ("assistant", "analysis", ["a"] * (n - 11))]
    sizes = {"LAYERS": 2, "KV": 8, "D_HEAD": 64, "WINDOW": 128}
    before = {name: getattr(whole, name) for name in sizes}
    try:
        for name, size in sizes.items():
            setattr(whole, name, size)
        trace = whole.whole(talk, heads=heads)
    finally:
        for name, size in before.items():
            setattr(whole, name, size)
    # every recording holds the mass on the sinks; any numbers will do here
    arrays = {name: trace.raw(name) for name in trace.names()}
    rng = np.random.default_rng(0)
    arrays |= {f"blocks.{layer}.attn.hook_sink": rng.random((heads, len(trace)), "f4") for layer in range(2)}
    return wb.Trace(replace(trace.manifest, tensors={}), arrays)


def timed(rounds: int, action: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - start))
    return times


def line(label: str, times: list[float], extra: str = "") -> None:
    p95 = float(np.percentile(times, 95))
    print(f"  {label:<52}{statistics.median(times):>9.0f}{p95:>9.0f}   {extra}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"load {os.getloadavg()[0]:.1f}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads")
    print(f"  {'ms':<52}{'median':>9}{'p95':>9}")
    short, long = trace_of(1024, 64), trace_of(16_384, 8)
    for layer, kind in enumerate(("sliding", "full")):
        view = wb.views.heads(short, layer)
        size = view.query("layer", {"layer": layer})[1]["thumbs"].nbytes
        times = timed(rounds, lambda view=view, layer=layer: view.reply("layer", {"layer": layer}))
        line(f"64 thumbnails, {len(short):,} tokens, {kind}: python", times, f"{size / 1000:.0f} kB")
    request = {"layer": 1, "head": 3, "from": 0, "to": len(short)}
    line(
        f"one head, {len(short):,}², full: python", timed(rounds, lambda: wb.views.heads(short).reply("head", request))
    )
    with lab() as server, sync_playwright() as p:
        short.save(server.root / "made.trace")
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        server.write("heads.ipynb", ["import workbench as wb\nwb.views.heads(wb.load('made.trace'), layer=1)"])
        server.open(page, "heads.ipynb")
        server.run_all(page)
        page.wait_for_selector(".wb canvas", timeout=60_000)
        page.wait_for_timeout(1500)
        page.evaluate(WATCH)
        uncached = [page.evaluate(SWITCH, ["]", 1500]) for _ in range(rounds)]
        cached = [page.evaluate(SWITCH, ["[", 500]) for _ in range(rounds)]
        line(f"switch to a head, {len(short):,}²", uncached)
        line(f"switch to a head, {len(short):,}², cached", cached)
    for layer, kind in enumerate(("sliding", "full")):
        request = {"layer": layer, "head": 3, "from": 0, "to": len(long)}
        view = wb.views.heads(long, layer)
        quick = request | {"quick": 1}
        times = timed(rounds, lambda view=view, request=quick: view.reply("head", request))
        line(f"one head, {len(long):,} tokens, preview, {kind}: python", times)
        times = timed(rounds, lambda view=view, request=request: view.reply("head", request))
        line(f"one head, {len(long):,} tokens, downsampled, {kind}: python", times)


if __name__ == "__main__":
    main()
