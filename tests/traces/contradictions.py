"""Traces whose bytes match their hashes, but whose parts contradict each other, made by mutation of a good one.

Every field of the manifest and every known array is changed in many ways; `consume` runs all that reads a trace.
`python -m tests.traces.contradictions` tries all of them and prints a JSON object of outcomes, and the unexpected ones.
"""

import copy
import io
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import workbench as wb
from workbench import cli, hooks
from workbench.errors import WorkbenchError
from workbench.interop.inif import to_inif
from workbench.interop.xarray_tables import TABLES, from_xarray, to_pandas, to_xarray
from workbench.traces import Trace
from workbench.traces.format import dtype_code, encode_header, raw
from workbench.traces.reader import encode_fields
from workbench.views.notebook import snapshot

Fields = dict[str, Any]
Arrays = dict[str, np.ndarray]
SECONDS = 20  # no consumer of a small trace takes so long


class Base:
    """A good trace on disk with one array a part, so that a mutant is made of links and what was changed."""

    def __init__(self, trace: Trace, folder: Path):
        self.folder, self.fields = folder, trace.manifest.to_json()
        self.arrays: Arrays = {name: trace.raw(name) for name in trace.names()}
        folder.mkdir(parents=True)
        for number, (name, array) in enumerate(self.arrays.items()):
            entry = self.fields["tensors"][name]
            entry["chunks"] = [[_part(number), list(array.shape), _write(folder / _part(number), name, array)]]
        (folder / "manifest.json").write_bytes(encode_fields(self.fields))

    def with_fields(self, change: Callable[[Fields], object], folder: Path) -> Path:
        """The trace with other fields in its manifest."""
        fields = copy.deepcopy(self.fields)
        change(fields)
        return self._written(fields, folder)

    def with_array(self, name: str, array: np.ndarray, folder: Path, axes: list[str] | None = None) -> Path:
        """The trace with another array; the manifest tells its new dtype and shape."""
        fields = copy.deepcopy(self.fields)
        part = _part(len(self.arrays))
        folder.mkdir(parents=True)
        entry = fields["tensors"][name]
        digest = _write(folder / part, name, array)
        entry |= {"dtype": dtype_code(array.dtype), "shape": list(array.shape)}
        entry["chunks"] = [[part, list(array.shape), digest]]
        if axes:
            entry["axes"] = axes
        return self._written(fields, folder)

    def renamed(self, name: str, to: str, folder: Path) -> Path:
        """The trace with one array under another name."""
        fields = copy.deepcopy(self.fields)
        entry = fields["tensors"].pop(name)
        folder.mkdir(parents=True)
        _write(folder / _part(len(self.arrays)), to, self.arrays[name])
        entry["chunks"][0][0] = _part(len(self.arrays))
        fields["tensors"][to] = entry
        return self._written(fields, folder)

    def _written(self, fields: Fields, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = fields["tensors"] if isinstance(fields.get("tensors"), dict) else {}
        for entry in tensors.values():
            for file, *_ in entry["chunks"] if isinstance(entry, dict) else ():
                if not (folder / file).exists():
                    os.link(self.folder / file, folder / file)
        (folder / "manifest.json").write_bytes(encode_fields(fields))
        return folder


def _part(number: int) -> str:
    return f"part-{number:05d}.safetensors"


def _write(path: Path, name: str, array: np.ndarray) -> str:
    header = encode_header({name: (dtype_code(array.dtype), array.shape)})
    path.write_bytes(header + bytes(raw(array)))
    return sha256(raw(array)).hexdigest()


# The mutations of an array: name -> function of the array, which may raise ValueError where it does not apply.


def _filled(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def fill(a: np.ndarray) -> np.ndarray:
        if not a.size or (a.dtype.kind in "iu" and not np.isfinite(value)):
            raise ValueError
        b = a.copy()
        b.reshape(-1)[b.size // 2] = value
        return b

    return fill


def _all(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def fill(a: np.ndarray) -> np.ndarray:
        if a.dtype.kind in "iu" and not np.isfinite(value):
            raise ValueError
        return np.full_like(a, value)

    return fill


def _transposed(a: np.ndarray) -> np.ndarray:
    if a.ndim < 2 or a.shape[0] == a.shape[1]:
        raise ValueError
    return np.ascontiguousarray(np.moveaxis(a, 0, 1))


ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "shorter": lambda a: a[:-1].copy(),
    "shorter at the end": lambda a: a[..., :-1].copy(),
    "longer": lambda a: np.concatenate([a, a[:1]]),
    "longer at the end": lambda a: np.concatenate([a, a[..., :1]], -1),
    "one": lambda a: a[:1].copy(),
    "empty": lambda a: a[:0].copy(),
    "empty at the end": lambda a: a[..., :0].copy(),
    "transposed": _transposed,
    "of integers": lambda a: np.zeros(a.shape, "i4") if a.dtype.kind not in "iu" else a.astype("i1"),
    "of floats": lambda a: a.astype("f4") if a.dtype.kind in "iu" else a.astype("f8"),
    "of half floats": lambda a: np.asarray(a, "f4").astype("f2"),
    "of Booleans": lambda a: np.zeros(a.shape, bool),
    "of bytes": lambda a: np.zeros(a.shape, "u1"),
    "of 8-bit floats": lambda a: np.zeros(a.shape, ml_dtypes.float8_e4m3fn),
    "of 64-bit integers": lambda a: np.full(a.shape, 2**62, "i8"),
    "zero": _all(0),
    "negative": _all(-1),
    "huge": _all(2**31 - 1),
    "all NaN": _all(np.nan),
    "all infinite": _all(np.inf),
    "one negative": _filled(-5),
    "one huge": _filled(2**31 - 1),
    "one NaN": _filled(np.nan),
    "one infinite": _filled(np.inf),
    "one -infinite": _filled(-np.inf),
}


def array_mutants(base: Base, seen: set[str] | None = None) -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """(label, function that writes the trace) for one layer of each array and each mutation."""
    points: set[str] = set() if seen is None else seen
    for name, array in base.arrays.items():
        if (point := hooks.point_of(name)) in points:
            continue
        points.add(point)
        for label, change in ARRAYS.items():
            try:
                mutant = change(array)
            except ValueError:
                continue
            yield f"{name} {label}", lambda folder, n=name, m=mutant: base.with_array(n, m, folder)
        axes = list(base.fields["tensors"][name]["axes"])
        if len(axes) > 1:
            axes[0], axes[1] = axes[1], axes[0]
            yield (
                f"{name} with swapped axes",
                lambda folder, n=name, a=axes: base.with_array(n, base.arrays[n], folder, a),
            )
        if "." in name:
            number = str(hooks.layer_of(name))
            for other in ("99", "00" + number):
                to = name.replace(f".{number}.", f".{other}.", 1)
                yield f"{name} as {to}", lambda folder, n=name, t=to: base.renamed(n, t, folder)


# The mutations of a manifest.

_JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    10**9,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "7",
    [],
    [1],
    {},
    {"a": 1},
]


def _set(*path: Any, value: Any) -> Callable[[Fields], object]:
    def change(fields: Fields) -> None:
        target: Any = fields
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


def _nest(depth: int) -> Any:
    nest: Any = 1
    for _ in range(depth):
        nest = [nest]
    return nest


def field_mutants(base: Base) -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """(label, function that writes the trace) for each field of the manifest and each value that could hurt."""

    def of(label: str, change: Callable[[Fields], object]) -> tuple[str, Callable[[Path], Path]]:
        return label, lambda folder: base.with_fields(change, folder)

    fields = base.fields
    paths: list[tuple[Any, ...]] = [(key,) for key in fields if key != "schema"]
    paths += [("model", key) for key in fields["model"]]
    paths += [("model", "config", key) for key in fields["model"]["config"]]
    paths += [("model", "config", key) for key in ("sinks", "router", "shared_experts", "architecture", "window")]
    paths += [("generation", key) for key in fields["generation"] or ()]
    paths += [("numerics", key) for key in fields["numerics"]]
    paths += [("verification", 0, key) for key in fields["verification"][0]]
    paths += [("spans", 1, key) for key in fields["spans"][1]]
    paths += [("edits", 0, key) for key in fields["edits"][0]] if fields["edits"] else []
    paths += [("written", 0), ("written", 0, 1), ("written", 1, 0), ("written", 1, 2)]
    paths += [("tokens", 3), ("str_tokens", 3), ("replayed_routing",), ("replayed_routing", "different")]
    for path in dict.fromkeys(paths):
        for value in _JUNK:
            try:
                _set(*path, value=value)(copy.deepcopy(fields))
            except (TypeError, IndexError):
                continue
            yield of(f"{'.'.join(map(str, path))} is {value!r}", _set(*path, value=value))
    for key in fields["model"]["config"]:
        yield of(f"the config lacks {key}", lambda f, k=key: f["model"]["config"].pop(k))
    for edits in (
        [{"identity": "x", "points": "blocks.0.attn.hook_pattern"}],
        [{"identity": "x", "points": [3]}],
        [{"identity": "x", "points": ["blocks.99.attn.hook_pattern", "", "x.y"]}],
        [{"identity": "x", "n_calls": -3, "squared_norms": [1]}],
        [{"identity": "x", "relative_change": -1.0}],
        [{"identity": "x"}] * 1000,
    ):
        yield of(f"edits are {str(edits)[:60]}", _set("edits", value=edits))
    yield of("numerics nested 33 deep", _set("numerics", "x", value=_nest(33)))
    yield of("numerics nested 420 deep", _set("numerics", "x", value=_nest(420)))
    yield of("a config nested 60 deep", _set("model", "config", "x", value=_nest(60)))
    yield of("the first message twice", lambda f: f["spans"].insert(0, f["spans"][0]))
    yield of("messages in reverse", lambda f: f["spans"].reverse())
    yield of("no messages", lambda f: f["spans"].clear())
    yield of("100,000 messages", lambda f: f["spans"].extend([f["spans"][-1]] * 100_000))
    yield of("100,000 empty messages", lambda f: f["spans"].extend([_at(f["spans"][-1], 0)] * 100_000))
    yield of("a message of the whole text", lambda f: f["spans"].append(f["spans"][0] | {"stop": len(f["tokens"])}))
    yield of("one token more", lambda f: (f["tokens"].append(1), f["str_tokens"].append("x")))
    yield of("one token less", lambda f: (f["tokens"].pop(), f["str_tokens"].pop()))
    yield of("one text less", lambda f: f["str_tokens"].pop())
    yield of("no tokens", lambda f: (f["tokens"].clear(), f["str_tokens"].clear(), f["spans"].clear()))
    yield of("texts are empty", lambda f: f.update(str_tokens=[""] * len(f["tokens"])))
    yield of("texts are NUL", lambda f: f.update(str_tokens=["\0"] * len(f["tokens"])))
    yield of("texts are half surrogates", lambda f: f.update(str_tokens=["\ud800"] * len(f["tokens"])))
    yield of("texts are =", lambda f: f.update(str_tokens=["=" * 400] * len(f["tokens"])))
    yield of("every layer is sliding", lambda f: f["model"]["config"].update(layer_types=["sliding_attention"] * 6))
    yield of("every layer is linear", lambda f: f["model"]["config"].update(layer_types=["linear_attention"] * 6))
    yield of("no claims", lambda f: f["verification"].clear())
    yield of("all claims fail", lambda f: [line.update(status="fails") for line in f["verification"]])
    yield of("no arrays", lambda f: f["tensors"].clear())
    yield of("of another architecture", lambda f: f["model"]["config"].update(architecture="Other"))
    yield of("without sinks", lambda f: f["model"]["config"].update(architecture="Other", sinks=False))
    yield of("a partial trace", _set("status", value="partial"))
    for name in ("top_logprobs", "top_ids", "sinks", "logprob", "lens_ids", "lens_logprobs", "lens_kl", "margin"):
        yield of(f"without {name}", lambda f, n=name: f["tensors"].pop(n, None))


def _at(span: Fields, place: int) -> Fields:
    return span | dict.fromkeys(("start", "stop", "content_start", "content_stop"), place)


# All that reads a trace.


def consumers() -> dict[str, Callable[[Trace], object]]:
    """Every analysis, view, page and table, by name."""
    a, r, v = wb.attention, wb.routing, wb.views
    table: dict[str, Callable[[Trace], object]] = {
        "verify": wb.verify,
        "repr": repr,
        "summary": lambda t: t.summary(),
        "text": lambda t: (t.text(), t.text(channel="final"), t.text(role="user"), t.vocab_text, t.str_tokens),
        "steps": lambda t: wb.steps(t),
        "all arrays": lambda t: [t[name] for name in t.names()],
        "stacked": lambda t: [t[name] for name in dict.fromkeys(map(hooks.short_name, t.names()))],
        "pattern": lambda t: a.pattern(t, 0),
        "pattern of the last": lambda t: a.pattern(t, t.config["n_layers"] - 1, 0, queries=-1),
        "band": lambda t: a.pattern_band(t, 0),
        "pooled": lambda t: a.pattern_pooled(t, 1, size=16),
        "sink_mass": a.sink_mass,
        "breakdown": a.breakdown,
        "head_scores": a.head_scores,
        "rollout": a.rollout,
        "receiver_heads": lambda t: a.receiver_heads(a.step_attention(t), min_distance=1),
        "retrieval": lambda t: a.retrieval_scores(t, slice(3, 9)),
        "step_attention": a.step_attention,
        "expert_load": r.expert_load,
        "coactivation": r.expert_coactivation,
        "specialization": lambda t: r.expert_specialization(t, [x.isdigit() for x in t.str_tokens], n_shuffles=3),
        "transitions": r.expert_transitions,
        "fixed_token": lambda t: r.fixed_token_routing(t, t.str_tokens[0] if len(t) else "x"),
        "entropy": r.router_entropy,
        "margin": r.router_margin,
        "drift": lambda t: r.routing_drift(t, [slice(0, 12), slice(12, 24)], n_shuffles=3),
        "massive": wb.residual.massive_activations,
        "cosine": lambda t: wb.residual.resid_cosine(t),
        "basis": lambda t: wb.residual.resid_basis([t]),
        "step_cosine": lambda t: wb.residual.step_cosine(t),
        "lens": wb.lens.logit_lens,
        "depth": wb.lens.prediction_depth,
        "forking": wb.reasoning.forking_tokens,
        "xarray": lambda t: from_xarray(to_xarray(t)),
        "inif": lambda t: json.dumps(to_inif(t)),
    }
    table |= {f"table {what}": lambda t, w=what: to_pandas(t, w) for what in TABLES}
    for name in ("score_sheet", "heads", "routing", "lens", "steps", "tokens", "sinks", "routers"):
        if view := getattr(v, name, None):
            table[f"view {name}"] = lambda t, f=view: _shown(f(t))
    return table


def _shown(view: Any) -> object:
    view.reply("open", {})
    return snapshot(view), view.page() if hasattr(view, "page") else None


def page(trace: Trace, folder: Path) -> object:
    """The page of the score sheet, as `workbench show` writes it."""
    return wb.views.score_sheet(trace).to_html(folder / "page.html")


def consume(path: Path, only: Callable[[str], bool] = lambda _: True) -> dict[str, str]:
    """Loads and reads the trace with everything; for each consumer "right" or "refused", or what went wrong."""
    outcomes: dict[str, str] = {}

    def attempt(name: str, call: Callable[[], object]) -> object:
        start = time.monotonic()
        try:
            value = call()
            outcomes[name] = "right"
        except WorkbenchError as error:
            value, outcomes[name] = None, "refused" if len(str(error)) >= 15 else f"says too little: {error}"
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = next(
                (
                    f"{f.filename}:{f.lineno}"
                    for f in reversed(traceback.extract_tb(error.__traceback__))
                    if "workbench" in f.filename
                ),
                f"{frame.filename}:{frame.lineno}",
            )
            value, outcomes[name] = None, f"{type(error).__name__}: {str(error)[:100]} at {place}"
        if (took := time.monotonic() - start) > SECONDS:
            outcomes[name] = f"took {took:.0f} s"
        return value

    trace = attempt("load", lambda: wb.load(path))
    if trace is None:
        return outcomes
    assert isinstance(trace, Trace)
    code: list[int] = []
    with redirect_stdout(io.StringIO()):
        attempt("workbench verify", lambda: code.append(cli.main(["verify", str(path)])))
    if code and code[0] not in (0, 1, 3):
        outcomes["workbench verify"] = f"exit code {code[0]}"
    elif code and code[0]:
        outcomes["workbench verify"] = "refused"
    for name, call in consumers().items():
        if only(name):
            attempt(name, lambda c=call: c(trace))
    if only("page"):
        attempt("page", lambda: page(trace, path))
    return outcomes


def good(folder: Path) -> Base:
    """A generated run of the pocket model, with everything recorded."""
    return Base(wb.Model("pocket").generate("What is 12+30?", max_tokens=40, record="everything lens steps"), folder)


def main(which: str = "") -> None:
    """Tries every mutant, or those whose label contains `which`."""
    counts, odd = Counter(), []
    with tempfile.TemporaryDirectory() as temporary:
        base = good(Path(temporary) / "base")
        odd += [f"the good one: {k}: {v}" for k, v in consume(base.folder).items() if v != "right"]
        for number, (label, write) in enumerate([*array_mutants(base), *field_mutants(base)]):
            if which not in label:
                continue
            path = write(Path(temporary) / f"{number}")
            outcomes = consume(path)
            known = {"right", "refused"}
            counts["mutants"] += 1
            counts["refused at load"] += outcomes["load"] == "refused"
            counts["refused by verify"] += outcomes.get("workbench verify") == "refused"
            for name, outcome in outcomes.items():
                if outcome not in known:
                    odd.append(f"{label}: {name}: {outcome}")
                    sys.stderr.write(odd[-1] + "\n")
            counts["anything else"] += any(outcome not in known for outcome in outcomes.values())
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    sys.stdout.write(json.dumps({**counts, "odd": odd}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
