"""The tokens of a run as text, colored by channel and step, or by one number per token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.checks import check_outcomes, check_type
from workbench.errors import ArgumentError
from workbench.text import range_text, visible
from workbench.traces import Trace
from workbench.views import snapshot_html
from workbench.views.outline import message_ribbon, message_texts
from workbench.views.payload import Payload
from workbench.views.view import View


class Tokens(View):
    """The view that `tokens` makes."""

    module = "tokens_view"
    call = "wb.views.tokens(trace"

    def __init__(self, trace: Trace, values: np.ndarray | None, label: str, unit: str, args: str, **place: Any):
        super().__init__(trace, **place)
        self.values, self.label, self.unit, self.args = values, label, unit, args

    def payload(self) -> Payload:
        header, arrays = self.common()
        header |= {"tall": 360}
        if self.values is not None:
            finite = self.values[np.isfinite(self.values)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
            header |= {"args": self.args, "scale": {"label": self.label, "unit": self.unit, "low": low, "high": high}}
            arrays |= {"values": self.values}
        return header, arrays

    def snapshot(self) -> list[snapshot_html.Row]:
        rows = [message_ribbon(self.trace), *message_texts(self.trace, 1500)]
        if self.values is None:
            return rows
        finite = self.values[np.isfinite(self.values)]
        low, high = min(0.0, float(finite.min(initial=0.0))), float(finite.max(initial=0.0))
        downsampled = "; downsampled (max)" if len(self.values) > snapshot_html.WIDTH else ""
        picture = snapshot_html.bars(self.values, "max", low, high)
        values = snapshot_html.Row(self.label, self.unit + downsampled, picture, scale=range_text(low, high), height=32)
        return [*rows, values]


def tokens(
    trace: Trace,
    values: str | xr.DataArray | Sequence[float] | np.ndarray | None = None,
    *,
    window: Sequence[int] | None = None,
    selected: int | None = None,
) -> Tokens:
    """A view of the text of a run, token by token, colored by step and channel, or by `values`.

    Control, bidi and zero-width characters are made visible. Generated tokens are underlined if their probability was
    below ½ (dotted) or ⅒ (solid).

    Args:
        trace: the run.
        values: a recorded name over (pos), such as "entropy", or one number per token of your own; a DataArray may have
            `long_name` and `units`. If the values have both signs, white is 0.
        window: the positions (first, stop) shown first.
        selected: the pinned position.

    Raises:
        ArgumentError: `values` is not one number per token.
        NotRecorded, HookNameError: the trace has no array of that name.

    >>> wb.views.tokens(trace, "entropy")
    <tokens of pocket: 64 tokens>
    """
    check_type("views.tokens", trace, Trace)
    label, unit, array, args = "value", "", None, ", values"
    if isinstance(values, str):
        args = f", {visible(repr(values))}"
        values = trace.array(values)
    if values is not None:
        attrs = values.attrs if isinstance(values, xr.DataArray) else {}
        label, unit = visible(str(attrs.get("long_name", "value"))), visible(str(attrs.get("units", "")))
        array = check_outcomes("values", values).astype("f4")
        if array.shape != (len(trace),):
            raise ArgumentError(
                f"values must be one number for each of the {len(trace)} tokens, got shape {array.shape}; select one "
                "layer or head, or take a mean, as in trace.array('margin').min('layer')."
            )
    return Tokens(trace, array, label, unit, args, window=window, selected=selected)
