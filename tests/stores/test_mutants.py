"""A changed manifest is never listed as another trace: it is refused, or it is what `wb.load` opens."""

import os
import random
from pathlib import Path

import pytest

import workbench as wb
from tests.stores.runs import chat
from tests.traces.mutants import forge, mutate
from workbench.errors import TraceError

LONG = os.environ.get("WORKBENCH_LONG") == "1"
MUTANTS = 2000 if LONG else 60


@pytest.mark.parametrize("kind", ["damaged", "forged"])
def test_a_changed_manifest_is_listed_as_what_it_is_or_not_at_all(tmp_path: Path, kind: str):
    store = wb.Store(tmp_path / "runs")
    trace_id = store.add(chat(1))
    [before] = store.find().to_dict("records")
    manifest = store.path_for(trace_id) / "manifest.json"
    data, times = manifest.read_bytes(), manifest.stat()
    chat(2).save(tmp_path / "other.trace")
    other = (tmp_path / "other.trace" / "manifest.json").read_bytes()
    for seed in range(MUTANTS):
        rng = random.Random(seed)
        manifest.write_bytes((forge if kind == "forged" else mutate)(data, rng, other))
        os.utime(manifest, ns=(times.st_atime_ns, times.st_mtime_ns))
        at_once = store.find().to_dict("records")
        store.refresh()  # without it, a trace that becomes readable again is not noticed
        found = store.find().to_dict("records")
        assert repr(at_once) in ("[]", repr(found)), seed
        try:
            loaded = wb.load(store.path_for(trace_id))
        except TraceError:
            assert found == [], seed
            continue
        if loaded.id != trace_id:
            assert found == [], seed
        elif kind == "damaged":
            assert repr(found) == repr([before]), seed
        else:
            assert [row["verified"] for row in found] == [loaded.verified], seed
            assert [row["n_tokens"] for row in found] == [len(loaded)], seed
    manifest.write_bytes(data)
    assert store.verify().ok
