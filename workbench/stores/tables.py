"""Rows of the index as tables of pandas. Texts of a trace were made visible when they were indexed."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_DTYPES = {str: "object", int: "Int64", float: "float64", bool: "boolean"}


def data_frame(columns: Mapping[str, type | None], rows: Sequence[tuple[Any, ...]]) -> "pd.DataFrame":
    """A table of rows; the type of a column is given, or None for that of its values.

    >>> data_frame({"id": str, "seed": int, "verified": bool}, [("9c41", 3, 1), ("7a2b", None, 0)])
         id  seed  verified
    0  9c41     3      True
    1  7a2b  <NA>     False
    """
    import pandas as pd

    by_column = list(zip(*rows)) if rows else [()] * len(columns)
    table = {}
    for place, (kind, values) in enumerate(zip(columns.values(), by_column)):
        series = pd.Series(list(values), dtype=None if kind is None and values else "object")
        if kind is not None and not (kind is int and str in map(type, values)):  # a seed of more than 63 bits is text
            with suppress(TypeError, ValueError, OverflowError):
                series = series.astype("Int64").astype("boolean") if kind is bool else series.astype(_DTYPES[kind])
        table[place] = series
    frame = pd.DataFrame(table)
    frame.columns = list(columns)
    return frame
