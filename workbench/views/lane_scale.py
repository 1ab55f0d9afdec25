"""Which tokens set the scale of a lane. `lane_scale.js` does the same for the live view."""

import numpy as np

from workbench.traces import Trace

SCALES = ("generated", "shown", "run")


def scale_range(scale: str, trace: Trace, window: tuple[int, int] | None) -> slice | np.ndarray:
    """The positions that set a scale: the generated tokens (all if there are none), those of `window`, or all.

    >>> np.array_equal(scale_range("generated", trace, (0, 20)), trace.written_by("model"))
    True
    >>> scale_range("shown", trace, (0, 20))
    slice(0, 20, None)
    """
    if scale == "generated" and len(generated := trace.written_by("model")):
        return generated
    return slice(*window) if scale == "shown" and window else slice(0, len(trace))


def scale_ends(
    values: np.ndarray, low: float | None, high: float | None, over: slice | np.ndarray
) -> tuple[float, float]:
    """The ends of the scale of a lane (… pos): its fixed ends, otherwise the extremes of the finite values at `over`.

    >>> scale_ends(np.array([-26.0, -1.0, -0.5]), None, 0.0, slice(1, 3))
    (-1.0, 0.0)
    """
    finite = values[..., over][np.isfinite(values[..., over])]
    if not finite.size:
        finite = values[np.isfinite(values)]
    smallest, largest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return (smallest if low is None else low), (largest if high is None else high)
