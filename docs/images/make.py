"""Makes the picture of the README and those of the gallery, in Chromium: `python docs/images/make.py`.

Look at each before it is kept.
"""

from pictures import chromium, draw

import workbench as wb

ASK = "Mod 10: a=3, b=a+4, c=b+2, d=c+b, e=d+a. Find e."


def main() -> None:
    model = wb.Model("pocket")
    trace = model.generate(wb.chat(ASK, reasoning="high"), record="attention lens residuals")
    forced, arcs = wb.reasoning.forced_answer(model, trace), wb.reasoning.suppression(model, trace)["effect"]
    digit = next(i for i in reversed(range(len(trace))) if trace.str_tokens[i].isdigit() and i < trace.spans[-1].start)
    drift = wb.routing.routing_drift(trace)
    sheet = wb.views.score_sheet(trace, forced_answer=forced, arcs=arcs, drift=drift, selected=digit)
    last = wb.steps(trace)[-1]
    gallery = {
        "view_lens.png": wb.views.lens(trace, window=(last.start, len(trace)), selected=digit),
        "view_routing.png": wb.views.routing(trace, layer=3, selected=digit),
        "view_steps.png": wb.views.steps(trace, {"suppression": arcs}),
        "view_tokens.png": wb.views.tokens(trace, "entropy"),
    }
    with chromium() as browser:
        draw(sheet, browser, "score_sheet.png", 1180)
        for name, view in gallery.items():
            draw(view, browser, name)


if __name__ == "__main__":
    main()
