"""The logit lens: what each layer would predict at each token, as colour for all and as words where one looks."""

import numpy as np

from workbench.text import visible
from workbench.traces import Trace
from workbench.views import snapshot_html
from workbench.views.payload import Payload
from workbench.views.view import View


class Lens(View):
    """What `lens` gives."""

    module = "lens_view"
    call = "wb.views.lens(trace"

    def payload(self) -> Payload:
        trace = self.trace
        header, arrays = self.common()
        different, place = np.unique(np.asarray(trace["lens_ids"]), return_inverse=True)
        first, words = len(header["words"]), trace.vocab_text
        header["words"] += [visible(words[i], "\n") if i in words else f"#{i}" for i in different.tolist()]
        chance = np.exp(np.nan_to_num(np.asarray(trace["lens_logprobs"], np.float64), nan=-np.inf))
        entropy, kl = (np.asarray(trace[f"lens_{name}"], np.float32) for name in ("entropy", "kl"))
        header["looks"] = [
            {"name": "p", "label": "probability", "unit": "", "low": 0, "high": 1, "ramp": "blue"},
            {"name": "entropy", "label": "entropy", "unit": "nats", "low": 0, "high": _most(entropy), "ramp": "green"},
            {
                "name": "kl",
                "label": "KL(final || layer)",
                "unit": "nats",
                "low": 0,
                "high": _most(kl),
                "ramp": "purple",
            },
        ]
        kind = "u2" if len(header["words"]) <= 0xFFFF else "u4"
        arrays |= {
            "said": (first + place.reshape(trace["lens_ids"].shape)).astype(kind),
            "chance": (np.clip(chance, 0, 1) * 65535).round().astype("u2"),
            "entropy": entropy,
            "kl": kl,
        }
        return header, arrays

    def snapshot(self) -> list[snapshot_html.Row]:
        trace, words = self.trace, self.trace.vocab_text
        first = np.asarray(trace["lens_ids"])[..., 0]
        chance = np.exp(np.asarray(trace["lens_logprobs"], np.float64)[..., 0])
        shared = "; downsampled (max)" if len(trace) > snapshot_html.WIDTH else ""
        picture = snapshot_html.heat(chance, "max", 0.0, 1.0, height=96)
        unit = f"row: layer, 0 at the bottom; column: token{shared}"
        rows = [snapshot_html.Row("probability of the first", unit, picture, scale="0 to 1", height=96)]
        selected = (self.selected or {}).get("pos", max(trace.prompt_length - 1, 0))
        if selected < len(trace):
            said = [words.get(i, f"#{i}") for i in first[:, selected].tolist()]
            text = ", ".join(f"{layer} “{visible(word)}”" for layer, word in enumerate(said))
            rows.append(
                snapshot_html.Row(
                    f"at position {selected}", f"“{visible(trace.str_tokens[selected])}”", text=f"layer {text}"
                )
            )
        return rows


def lens(trace: Trace, *, window: tuple[int, int] | None = None, selected: int | None = None) -> Lens:
    """What each layer would predict if the model ended there: layers x tokens, as colour and as words.

    Above, all tokens, coloured by the probability of the layer's first choice, the entropy of its prediction or how far
    that is from the final one. Below, as many tokens as fit, with the word that each layer would say next; it is bold
    where the last layer says the same. The stretch follows the pinned token and the zoom.

    >>> wb.views.lens(wb.trace("What is 12+30?", record="lens"), selected=30)
    <lens of pocket: 51 tokens>

    Raises NotRecorded without record="lens".
    """
    for name in ("lens_ids", "lens_logprobs", "lens_entropy", "lens_kl"):
        trace.raw(name)
    return Lens(trace, window=window, selected=selected)


def _most(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0
