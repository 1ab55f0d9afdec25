"""Matrices between steps (step key_step), made small enough to send: pooled cells and the strongest links."""

import numpy as np

MAX_LINKS = 200  # strongest links of the whole matrix, which are drawn as arcs
LINKS_PER_STEP = 4  # strongest links to each step and from each step, which are listed as text


def pooled(matrix: np.ndarray, factor: int) -> np.ndarray:
    """The matrix in cells of `factor` x `factor`, each with its value of largest magnitude; NaN only if all are NaN.

    >>> pooled(np.array([[1.0, -3.0], [2.0, np.nan]]), 2)
    array([[-3.]])
    """
    for _ in range(2 if factor > 1 else 0):
        edges = np.arange(0, len(matrix), factor)
        high, low = np.fmax.reduceat(matrix, edges), np.fmin.reduceat(matrix, edges)
        matrix = np.where(-low > high, low, high).T
    return matrix


def strongest(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The strongest links, as pairs (step, key_step) and their values, sorted by magnitude, the largest last.

    They are the `MAX_LINKS` of largest magnitude and the `LINKS_PER_STEP` of every row and column. The diagonal, zeros
    and NaN do not count as links.

    >>> strongest(np.array([[0.0, 0.0], [-2.0, 5.0]]))
    (array([[1, 0]], dtype=int32), array([-2.], dtype=float32))
    """
    count = len(matrix)
    size = np.abs(np.nan_to_num(matrix))
    np.fill_diagonal(size, 0)
    selected = np.zeros(size.shape, bool)
    for axis in (0, 1):
        rest = size.copy()
        for _ in range(min(LINKS_PER_STEP, count)):
            at = rest.argmax(axis, keepdims=True)
            np.put_along_axis(selected, at, True, axis)
            np.put_along_axis(rest, at, -1, axis)
    rows = np.sort(size.max(1, initial=0))
    # At least MAX_LINKS cells reach this threshold, so the largest MAX_LINKS are among those that reach it.
    threshold = rows[-MAX_LINKS] if count >= MAX_LINKS else 0.0
    large = np.flatnonzero(size >= max(threshold, np.finfo("f4").tiny))
    selected.ravel()[large[np.argsort(-size.ravel()[large], kind="stable")[:MAX_LINKS]]] = True
    places = np.argwhere(selected & (size > 0))
    order = np.argsort(size[tuple(places.T)], kind="stable")
    places = places[order].astype("i4")
    return places, matrix[tuple(places.T)].astype("f4")
