"""What every figure shares: colors that the color-blind can distinguish, type sizes, and round numbers on axes.

Both backends take their colors from here, so a figure looks the same on paper and on the screen.
"""

from math import ceil, floor, isfinite, log10

import numpy as np

# Okabe and Ito (2008) without its yellow, which is too light for lines on white.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
INK, FAINT, NOTHING = "#1a1a1a", "#8c8c8c", "#e9e9e9"  # text, rules, cells without a number
# SERIES behind text, and an olive for the analysis channel
TINTS = ("#d6e6f2", "#fbe3d3", "#d5ede4", "#f4e3ec", "#fbeed2", "#e2f2fb", "#e6e6e6", "#f1eecb")

# Lightness falls from one end to the other, or from the middle to both ends, so the scales survive gray printing.
SCALES = {
    "mass": ((255, 255, 255), (199, 220, 239), (115, 170, 214), (35, 110, 178), (8, 48, 107)),
    "signed": ((8, 64, 129), (92, 150, 200), (247, 247, 247), (224, 146, 74), (140, 60, 4)),
}

TITLE, LABEL, TICK, SMALL = 8.0, 7.0, 6.0, 5.0  # points


def shades(scale: str, n: int = 256) -> np.ndarray:
    """The colors of a scale from low to high (n, 3), 0 to 255.

    >>> shades("mass")[[0, -1]].tolist()
    [[255, 255, 255], [8, 48, 107]]
    """
    stops = np.array(SCALES[scale], float)
    at = np.linspace(0, len(stops) - 1, n)
    return np.rint([np.interp(at, range(len(stops)), stops[:, c]) for c in range(3)]).astype(int).T


def luminance(rgb: np.ndarray) -> np.ndarray:
    """The relative luminance of colors (0 to 255) as the eye sees it, 0 to 1 (WCAG 2)."""
    linear = (np.asarray(rgb, float) / 255) ** 2.2
    return linear @ (0.2126, 0.7152, 0.0722)


def round_ticks(low: float, high: float, max_ticks: int = 6, *, whole: bool = False) -> list[float]:
    """Round numbers between two bounds, at most `max_ticks`; with `whole`, no fractions.

    >>> round_ticks(0, 1), round_ticks(0.0, 23, whole=True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 5.0, 10.0, 15.0, 20.0])
    """
    if not (isfinite(low) and isfinite(high)) or high <= low:
        return [low]
    exponent = floor(log10((high - low) / max_ticks))
    steps = [m * 10.0**e for e in range(exponent, exponent + 3) for m in (1, 2, 5)]
    for step in steps:
        first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
        if last - first < max_ticks and (step >= 1 or not whole):
            return [round(n * step, 12) + 0.0 for n in range(first, last + 1)] or [low]
    return [low]
