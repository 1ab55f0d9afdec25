"""A matrix from step to step, made small enough to send: cells that steps share, and the strongest links."""

import numpy as np

MOST = 200  # links of all steps that are drawn
EACH = 4  # links that are named, to a step and from it


def pooled(matrix: np.ndarray, factor: int) -> np.ndarray:
    """Cells of `factor` x `factor`, each with its value of the largest size; NaN only where all are.

    >>> pooled(np.array([[1.0, -3.0], [2.0, np.nan]]), 2)
    array([[-3.]])
    """
    for _ in range(2 if factor > 1 else 0):
        edges = np.arange(0, len(matrix), factor)
        high, low = np.fmax.reduceat(matrix, edges), np.fmin.reduceat(matrix, edges)
        matrix = np.where(-low > high, low, high).T
    return matrix


def strongest(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(step, key_step) of each link and its value: the `MOST` largest in size, and `EACH` of every row and column.

    The diagonal, zeros and NaN are no links. They come in order of size, the largest last.

    >>> strongest(np.array([[0.0, 0.0], [-2.0, 5.0]]))
    (array([[1, 0]], dtype=int32), array([-2.], dtype=float32))
    """
    count = len(matrix)
    size = np.abs(np.nan_to_num(matrix))
    np.fill_diagonal(size, 0)
    picked = np.zeros(size.shape, bool)
    for axis in (0, 1):
        rest = size.copy()
        for _ in range(min(EACH, count)):
            at = rest.argmax(axis, keepdims=True)
            np.put_along_axis(picked, at, True, axis)
            np.put_along_axis(rest, at, -1, axis)
    rows = np.sort(size.max(1, initial=0))
    least = rows[-MOST] if count >= MOST else 0.0  # at least `MOST` cells are as large: only they can be among them
    large = np.flatnonzero(size >= max(least, np.finfo("f4").tiny))
    picked.ravel()[large[np.argsort(-size.ravel()[large], kind="stable")[:MOST]]] = True
    places = np.argwhere(picked & (size > 0))
    order = np.argsort(size[tuple(places.T)], kind="stable")
    places = places[order].astype("i4")
    return places, matrix[tuple(places.T)].astype("f4")
