"""The logit lens: the prediction of each layer at each token, as color for all tokens and as text for some."""

import numpy as np

from workbench.checks import check_type
from workbench.text import visible
from workbench.traces import Trace
from workbench.views import snapshot_html
from workbench.views.outline import layer_axis, position_axis
from workbench.views.payload import Payload
from workbench.views.snapshot_svg import HEIGHT, MAX_CELLS, Scale, heat_map
from workbench.views.view import View


class Lens(View):
    """The view that `lens` makes."""

    module = "lens_view"
    call = "wb.views.lens(trace"

    def payload(self) -> Payload:
        trace = self.trace
        header, arrays = self.common()
        token_ids, place = np.unique(np.asarray(trace["lens_ids"]), return_inverse=True)
        first, vocab_text = len(header["token_texts"]), trace.vocab_text
        header["token_texts"] += [
            visible(vocab_text[i], "\n") if i in vocab_text else f"#{i}" for i in token_ids.tolist()
        ]
        probability = np.exp(np.nan_to_num(np.asarray(trace["lens_logprobs"], np.float64), nan=-np.inf))
        entropy, kl = (np.asarray(trace[f"lens_{name}"], np.float32) for name in ("entropy", "kl"))
        header["metrics"] = [
            {"name": "p", "label": "probability", "unit": "", "low": 0, "high": 1, "ramp": "blue"},
            {
                "name": "entropy",
                "label": "entropy",
                "unit": "nats",
                "low": 0,
                "high": _largest(entropy),
                "ramp": "green",
            },
            {
                "name": "kl",
                "label": "KL(final || layer)",
                "unit": "nats",
                "low": 0,
                "high": _largest(kl),
                "ramp": "purple",
            },
        ]
        kind = "u2" if len(header["token_texts"]) <= 0xFFFF else "u4"
        arrays |= {
            "prediction_text_ids": (first + place.reshape(trace["lens_ids"].shape)).astype(kind),
            "probability": (np.clip(probability, 0, 1) * 65535).round().astype("u2"),
            "entropy": entropy,
            "kl": kl,
        }
        return header, arrays

    def snapshot(self) -> list[snapshot_html.Row]:
        trace, vocab_text = self.trace, self.trace.vocab_text
        first = np.asarray(trace["lens_ids"])[..., 0]
        probability = np.exp(np.asarray(trace["lens_logprobs"], np.float64)[..., 0])
        downsampled = "; downsampled (max)" if len(trace) > MAX_CELLS else ""
        layers = layer_axis(range(len(probability))[::-1])
        picture = heat_map(
            probability[::-1], layers, position_axis(trace), Scale(0, 1, "blue", "probability"), height=HEIGHT
        )
        unit = f"row: layer, 0 at the bottom; column: token{downsampled}"
        rows = [snapshot_html.Row("probability of the top prediction", unit, drawing=picture)]
        selected = (self.selected or {}).get("pos", max(trace.prompt_length - 1, 0))
        if selected < len(trace):
            predictions = [vocab_text.get(i, f"#{i}") for i in first[:, selected].tolist()]
            text = ", ".join(f"{layer} “{visible(prediction)}”" for layer, prediction in enumerate(predictions))
            rows.append(
                snapshot_html.Row(
                    f"at position {selected}", f"“{visible(trace.str_tokens[selected])}”", text=f"layer {text}"
                )
            )
        return rows


def lens(trace: Trace, *, window: tuple[int, int] | None = None, selected: int | None = None) -> Lens:
    """A view of the logit lens (layer pos): the prediction that each layer would make if the model ended there.

    The upper plot shows all tokens, colored by the probability of the layer's top prediction, the entropy of its
    distribution, or its KL divergence from the final one. The lower plot shows the predicted text for as many tokens as
    fit; it is bold where the last layer predicts the same. The lower plot follows the pinned token and the zoom.
    `window` is the range of positions shown first, `selected` the pinned position.

    >>> wb.views.lens(wb.trace("What is 12+30?", record="lens"), selected=30)
    <lens of pocket: 51 tokens>

    Raises NotRecorded if the trace was recorded without record="lens".
    """
    check_type("views.lens", trace, Trace)
    for name in ("lens_ids", "lens_logprobs", "lens_entropy", "lens_kl"):
        trace.raw(name)
    return Lens(trace, window=window, selected=selected)


def _largest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0
