"""The cost of views in a real JupyterLab: painting, hovering, reloading, and the bytes that they send and save.

    python -m benchmarks.views                       # 4,096 and 16,384 tokens, 24 layers; 3 rounds
    python -m benchmarks.views --tokens 1024 --rounds 5 --json out.json

A synthetic trace with every summary, in Chromium without a GPU, on the loopback. "paint" is from running a cell until
its content is on the screen, the kernel's work included. "hover" is from a mouse move until the next picture, with four
linked views of the trace in four cells. Other tools draw the same numbers in the same notebook, in turn, if they are
installed: plotly's FigureWidget the router margin (layer pos), circuitsvis the tokens. Times are medians, hover has p95
too; a ratio is the median over the rounds of the peer's time / workbench's. "python CPU" is the kernel's time for a
view, its snapshot included, and "sent" the bytes that the view gets. On a machine with other work, read the CPU times,
and the floor (one line of HTML, painted in turn) beside the others.
"""

import argparse
import importlib.util
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

import workbench as wb
from tests.views import made
from tests.views.browser import CHROMIUM, FLAGS
from tests.views.lab import Lab, lab
from workbench.views.notebook import snapshot
from workbench.views.script import HERE, script, style

# view -> (the cell that shows it, a selector of its content once it is drawn)
VIEWS = {
    "tokens": ("wb.views.tokens(trace)", ".wb .wb-t"),
    "tokens by entropy": ("wb.views.tokens(trace, trace['entropy'])", ".wb .wb-t"),
    "score sheet, all lanes": ("wb.views.score_sheet(trace)", ".wb canvas"),
    "score sheet, 4 lanes": ("wb.views.score_sheet(trace, ['entropy', 'sink', 'margin', 'norm'])", ".wb canvas"),
    "a trace itself": ("trace", ".wb canvas"),
    "one line of HTML, the floor": ("from IPython.display import HTML\nHTML('<p id=floor>floor</p>')", "#floor"),
}
LINKED = ("tokens", "tokens by entropy", "score sheet, all lanes", "score sheet, 4 lanes")
# peer -> (the view it is compared with, its package, its cell, a selector of its content once it is drawn)
PEERS = {
    "plotly FigureWidget, one lane": (
        "score sheet, 4 lanes",
        "plotly",
        "import plotly.graph_objects as go\ngo.FigureWidget(go.Heatmap(z=trace['margin']))",
        ".js-plotly-plot .hm image, .js-plotly-plot image",
    ),
    "circuitsvis colored_tokens": (
        "tokens",
        "circuitsvis",
        "import circuitsvis as cv\ncv.tokens.colored_tokens(trace.str_tokens, trace['entropy'].tolist())",
        ".jp-OutputArea-output span",
    ),
}
PAINTED = """async ([index, selector]) => {
  const book = window.jupyterapp.shell.currentWidget.content, node = book.widgets[index].node;
  book.activeCellIndex = index;
  for (const old of node.querySelectorAll(selector)) old.remove();
  const begin = performance.now();
  const painted = new Promise(done => {
    const look = () => {
      const drawn = [...node.querySelectorAll(selector)].some(e => e.getClientRects().length);
      if (!drawn) return requestAnimationFrame(look);
      const after = new MessageChannel();
      after.port1.onmessage = () => done(performance.now() - begin);
      requestAnimationFrame(() => after.port2.postMessage(0));
    };
    requestAnimationFrame(look);
  });
  window.jupyterapp.commands.execute("notebook:run-cell");
  return Promise.race([painted, new Promise((_, late) => setTimeout(() => late("not painted in 2 minutes"), 120000))]);
}"""
HOVER = """() => {
  window.hovered = [];
  addEventListener("pointermove", event => requestAnimationFrame(() => {
    const after = new MessageChannel();
    after.port1.onmessage = () => window.hovered.push(performance.now() - event.timeStamp);
    after.port2.postMessage(0);
  }), {capture: true});
}"""


DRAWN = "performance.getEntriesByName('workbench:drawn').length"
CONNECTED = """() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.connectionStatus
  === "connected" && !!document.querySelector(".jp-Notebook .jp-Cell")"""


def trace_of(n: int, layers: int) -> wb.Trace:
    thought = made.words("So we add 12 and 34, which gives 46. Wait, check that again.\n") * (n // 16 + 1)
    head = [("system", None, made.words("Reasoning: high")), ("user", None, made.words("Add."))]
    overhead = len(made.run([*head, ("assistant", "analysis", [])], lanes=False))
    return made.run([*head, ("assistant", "analysis", thought[: n - overhead])], layers=layers)


def kernel(trace: wb.Trace) -> dict[str, tuple[int, float]]:
    """For each view, the bytes that it sends first and Python's CPU time for it and its snapshot in ms."""
    names, costs = {"wb": wb, "trace": trace}, {}
    for name, (cell, _) in VIEWS.items():
        if cell.startswith("wb."):
            start = time.process_time()
            view = eval(cell, names)
            snapshot(view)
            size = len(view.reply("open", {}))
            costs[name] = size, 1000 * (time.process_time() - start)
    return costs


def open_notebook(page: Page, server: Lab, name: str, cells: list[str]) -> None:
    server.write(name, ["import workbench as wb\ntrace = wb.load('made.trace')", *cells])
    server.open(page, name)
    server.execute(page, "import workbench as wb; trace = wb.load('made.trace'); wb.views")


def painting(page: Page, server: Lab, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each view and each installed peer, round by round."""
    peers = {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(peer[1])}
    cells = [cell for cell, _ in VIEWS.values()] + [cell for _, _, cell, _ in peers.values()]
    selectors = [drawn for _, drawn in VIEWS.values()] + [drawn for *_, drawn in peers.values()]
    open_notebook(page, server, "paint.ipynb", cells)
    durations: dict[str, list[float]] = {name: [] for name in [*VIEWS, *peers]}
    for round_ in range(rounds + 1):  # the first round imports and does not count
        for index, name in enumerate(durations):
            if round_ > 1 and len(durations[name]) < round_ - 1:
                continue  # it failed in an earlier round
            try:
                duration = page.evaluate(PAINTED, [index + 1, selectors[index]])
            except Exception as error:  # a peer may be unable to draw so much
                print(f"  {name}: {str(error)[:100]}")
                continue
            page.wait_for_timeout(200)
            if round_:
                durations[name].append(duration)
    return {name: times for name, times in durations.items() if times}


def hovering(page: Page, server: Lab) -> tuple[list[float], float, int]:
    """Milliseconds of each move with four linked views, and of the page's own thread; bytes of the saved notebook."""
    open_notebook(page, server, "linked.ipynb", [VIEWS[name][0] for name in LINKED])
    server.run_all(page)
    page.wait_for_function(f"document.querySelectorAll('.wb').length == {len(LINKED)}", timeout=120_000)
    page.wait_for_timeout(1500)
    page.evaluate(HOVER)
    metrics = page.context.new_cdp_session(page)
    metrics.send("Performance.enable", {"timeDomain": "threadTicks"})

    def page_cpu_ms() -> float:
        values = metrics.send("Performance.getMetrics")["metrics"]
        return 1000 * next(metric["value"] for metric in values if metric["name"] == "TaskDuration")

    before = page_cpu_ms()
    for view_index in (0, 2):
        selector = ".wb-text" if view_index == 0 else ".wb-plot"
        box = page.locator(".wb").nth(view_index).locator(selector).first
        box.scroll_into_view_if_needed()
        box_area = box.bounding_box()
        assert box_area is not None
        for i in range(100):
            x = box_area["x"] + 120 + (box_area["width"] - 220) * ((i * 17) % 100) / 100
            page.mouse.move(x, box_area["y"] + 15 + (min(box_area["height"], 300) - 30) * ((i * 7) % 100) / 100)
            page.wait_for_timeout(20)
    times, cpu_ms = page.evaluate("window.hovered"), page_cpu_ms() - before
    server.save(page)
    return times, cpu_ms / len(times), (server.root / "linked.ipynb").stat().st_size


def reloading(page: Page, server: Lab) -> float:
    """Milliseconds from the reconnection of the kernel until ten views are live, while scrolling through them."""
    open_notebook(page, server, "ten.ipynb", [VIEWS[LINKED[i % 2]][0] for i in range(10)])
    server.run_all(page)
    page.wait_for_function(f"{DRAWN} >= 10", timeout=120_000)
    server.save(page)
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function(CONNECTED, timeout=60_000, polling=10)
    return page.evaluate(
        f"""async () => {{
          const begin = performance.now(), box = document.querySelector(".jp-WindowedPanel-outer");
          while ({DRAWN} < 10 && performance.now() - begin < 120000) {{
            box.scrollTop += 300;  // cells that are out of sight are not drawn until they are scrolled to
            await new Promise(requestAnimationFrame);
          }}
          return {DRAWN} < 10 ? NaN : performance.now() - begin;
        }}"""
    )


def measure(n: int, layers: int, rounds: int) -> dict[str, Any]:
    trace = trace_of(n, layers)
    with lab() as server, sync_playwright() as p:
        trace.save(server.root / "made.trace")
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        requests: list[str] = []
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        page.on("request", lambda request: requests.append(request.url))
        moves, cpu_ms, size = hovering(page, server)
        own_requests = len(requests)
        reload = reloading(page, server)
        paint = painting(page, server, rounds)
        browser.close()
    outside = [url for url in requests[:own_requests] if not url.startswith((server.url, "data:", "blob:"))]
    return {
        "tokens": len(trace),
        "hover": moves,
        "hover_cpu": cpu_ms,
        "paint": paint,
        "kernel": kernel(trace),
        "notebook": size,
        "reload": reload,
        "outside": len(outside),
    }


def report(result: dict[str, Any]) -> None:
    moves = sorted(result["hover"])
    median, p95 = statistics.median(moves), float(np.percentile(moves, 95))
    print(f"\n{result['tokens']:,} tokens (load {os.getloadavg()[0]:.1f})")
    print(f"  hover, {len(LINKED)} linked views, {len(moves)} moves   median {median:.0f} ms   p95 {p95:.0f} ms")
    print(f"  CPU time of the page's thread              {result['hover_cpu']:.1f} ms a move")
    print(f"  reload, kernel alive, 10 views             {result['reload']:.0f} ms")
    saved = result["notebook"] / 1000 / len(LINKED)
    print(f"  saved notebook, {len(LINKED)} views                  {saved:.1f} kB a view")
    print(f"  requests to other hosts than the server    {result['outside']}")
    print(f"  {'paint':<36}{'median ms':>10}{'python CPU':>12}{'sent kB':>10}")
    for name, times in result["paint"].items():
        size, cpu_ms = result["kernel"].get(name, (None, None))
        line = f"  {name:<36}{statistics.median(times):>10.0f}"
        line += "" if size is None else f"{cpu_ms:>12.0f}{size / 1000:>10.1f}"
        if name in PEERS:
            view = PEERS[name][0]
            ratios = [peer_time / view_time for peer_time, view_time in zip(times, result["paint"][view], strict=False)]
            line += f"   {statistics.median(ratios):.1f} x {view}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    args = parser.parse_args()
    modules = sorted(path.stem for path in HERE.glob("*.js"))
    print(
        f"script: {len(script(*modules)) / 1000:.1f} kB of {len(modules)} modules, style {len(style()) / 1000:.1f} kB"
    )
    results = []
    for n in args.tokens:
        results.append(measure(n, args.layers, args.rounds))
        report(results[-1])
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
