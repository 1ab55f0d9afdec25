"""Analysis beside answer: as it is, word by word, renamed, without a header, and two yardsticks."""

from functools import cache
from itertools import combinations

import numpy as np
import xarray as xr
from _matched import drift, jackknife, loads
from _runs import CHAINS, Read, pocket, read

N, LENGTH, SEED = 10, 4, "stops thinking"


def passages(one: Read) -> dict[str, np.ndarray]:
    """Loads of an analysis beside its answer: as it is, in the name of the analysis, and as a sentence within it."""
    trace, ids = one.trace, list(one.trace.tokens)
    thought, answer = (s.content for s in trace.spans if s.channel in ("analysis", "final"))
    named = pocket().trace([*ids[: answer.start - 2], ids[thought.start - 2], *ids[answer.start - 1 :]], record="")
    within = pocket().trace(ids[: thought.stop] + ids[answer], record="")
    return {
        "answer": loads(trace, thought, trace, answer, by_word=False),
        "… by word": loads(trace, thought, trace, answer),
        "… renamed": loads(named, thought, named, answer),
        "… within": loads(within, thought, within, slice(thought.stop, None)),
        "last step": loads(trace, slice(thought.start, one.parts[-1].start), trace, one.parts[-1]),
    }


@cache
def measure(seed: str = SEED, n: int = N) -> xr.Dataset:
    """Drift in bits (compared problem layer): its mean over problems is the estimate; `null`, what chance reaches."""
    rows: list[dict[str, list[np.ndarray]]] = []
    for ones in zip(*(read(family, n, LENGTH, "", seed=seed) for family in CHAINS)):
        each = [passages(one) for one in ones]
        found = {name: [parts[name] for parts in each] for name in each[0]}
        thoughts = [(one.trace, s.content) for one in ones for s in one.trace.spans if s.channel == "analysis"]
        found["other problems"] = [loads(*a, *b) for a, b in combinations(thoughts, 2)]
        rows.append(found)
    every = {name: np.array([found[name] for found in rows]) for name in rows[0]}
    parts = {name: jackknife(lambda some: drift(some)[0], loads) for name, loads in every.items()}
    null = {name: drift(loads)[1] for name, loads in every.items()}
    dims = ("compared", "problem", "layer")
    data = {"drift": (dims, np.array([*parts.values()])), "null": (dims[::2], np.array([*null.values()]))}
    return xr.Dataset(data, {"compared": list(parts)}, {"units": "bits", "families": len(CHAINS), "n": n})
