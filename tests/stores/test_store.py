"""A store adds, finds, loads and scores traces; what is in its folder is what it says."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.stores.runs import chat, partial
from tests.traces import made
from workbench.errors import (
    ArgumentError,
    ArgumentTypeError,
    FileError,
    TraceCorrupt,
    TraceError,
    TraceExists,
    TraceNotFound,
)
from workbench.stores.row import COLUMNS
from workbench.text import visible
from workbench.traces.calls import Call
from workbench.traces.spans import Span


@pytest.fixture
def store(tmp_path: Path) -> wb.Store:
    return wb.Store(tmp_path / "runs")


def test_what_is_added_is_found_and_loaded_bit_for_bit(store: wb.Store):
    trace = made.trace()
    assert store.add(trace) == trace.id and store.add(trace) == trace.id
    assert len(store) == 1 and list(store) == [trace.id] and trace.id in store
    loaded = store[trace.id[:6]]
    assert loaded.id == trace.id
    assert all(made.same(loaded.raw(name), trace.raw(name)) for name in trace.names())
    assert store.path_for(trace.id).is_dir()


def test_a_loaded_trace_is_added_to_another_store(store: wb.Store, tmp_path: Path):
    store.add(chat())
    other = wb.Store(tmp_path / "other")
    assert other.add(store[chat().id]) == chat().id
    assert made.same(other[chat().id].raw("logprob"), chat().raw("logprob"))


def test_ids_are_given_by_their_first_digits(store: wb.Store):
    ids = [store.add(chat(number)) for number in range(40)]
    assert len(set(ids)) == 40 and sorted(store) == sorted(ids)
    for trace_id in ids:
        assert store[trace_id].id == trace_id
        prefix = next(trace_id[:n] for n in range(1, 33) if sum(i.startswith(trace_id[:n]) for i in ids) == 1)
        assert store[prefix].id == trace_id and prefix in store
    shared = next(first for first in "0123456789abcdef" if sum(i.startswith(first) for i in ids) > 1)
    assert shared not in store
    with pytest.raises(ArgumentError, match=r"begins several ids"):
        store[shared]
    with pytest.raises(TraceNotFound, match=r"no trace in .* begins with 'zz'"):
        store["zz"]
    for wrong in ("", 3, None):
        assert wrong not in store
        with pytest.raises(ArgumentError):
            store[wrong]  # type: ignore[index]


def test_find_compares_columns_with_values_lists_ranges_and_patterns(store: wb.Store):
    for number in range(6):
        store.add(chat(number, effort=["low", "high"][number % 2], model=f"model-{number // 3}b"))
    seeds = lambda **where: store.find(**where)["seed"].tolist()  # noqa: E731
    assert sorted(seeds()) == [0, 1, 2, 3, 4, 5]
    assert sorted(seeds(effort="low")) == [0, 2, 4]
    assert sorted(seeds(effort="low", model="model-1b")) == [4]
    assert sorted(seeds(model="*1b")) == [3, 4, 5] and seeds(model="1b") == []
    assert sorted(seeds(seed=[1, 5])) == [1, 5] and seeds(seed=[]) == []
    assert sorted(seeds(seed=(2, 4))) == [2, 3, 4] and sorted(seeds(seed=(4, None))) == [4, 5]
    assert sorted(seeds(seed=np.int64(3))) == [3]
    assert seeds(temperature=None) == [] and len(seeds(temperature=0.5)) == 6
    assert len(seeds(verified=True, edited=False, status="complete", finish="stop")) == 6
    assert seeds(verified=False) == []
    assert len(seeds(n_tokens=7, n_prompt=3, n_generated=4, n_arrays=1, bytes=28)) == 6


def test_the_table_has_every_column_and_says_what_the_manifest_says(store: wb.Store):
    edits = [{"identity": "x", "glob": "blocks.2.attn.hook_z", "function": "ablate(head=3)"}]
    adapter = {"name": "rule", "digest": "d", "scale": 0.5, "base": "b"}
    fails = made.HOLDS | {"status": "fails", "max_error": 1.0}
    plain = chat()
    trace = chat(
        edits=edits, model="m", verification=[made.HOLDS, fails], status="partial", created="2026-02-03T00:00:00+00:00"
    )
    from dataclasses import replace

    manifest = replace(trace.manifest, model=trace.manifest.model | {"adapter": adapter})
    store.add(plain)
    store.add(wb.Trace(manifest, {"logprob": trace.raw("logprob")}))
    table = store.find()
    assert list(table.columns) == list(COLUMNS) and len(table) == 2
    first, second = table.to_dict("records")
    assert first["question"] == "What is 12+30?" and first["answer"] == "It is 42." and first["effort"] == "high"
    assert first["verified"] is True and first["edited"] is False and first["failed"] == ""
    assert second["edits"] == "blocks.2.attn.hook_z ablate(head=3)" and second["edited"] is True
    assert second["verified"] is False and second["failed"] == made.HOLDS["identity"]
    assert (second["adapter"], second["adapter_scale"], second["status"]) == ("rule", 0.5, "partial")
    assert store.find(edit="blocks.2.*ablate")["id"].tolist() == [manifest.id]
    assert store.find(edit="head=[3]").empty and store.find(edit="head=3").shape[0] == 1
    assert store.find(adapter="rule").shape[0] == store.find(adapter="").shape[0] == 1


def test_words_are_found_in_question_answer_and_thought(store: wb.Store):
    store.add(chat(1, question="Is Eve there?", thought="In reverse order.", answer="No \u202eway."))
    store.add(chat(2, thought='He said "carry the one".'))
    seeds = lambda text: store.find(text=text)["seed"].tolist()  # noqa: E731
    assert seeds("eve") == [1] and seeds("reverse order") == [1] and seeds("order reverse") == []
    assert seeds("42") == [2] and seeds("12+30") == [2] and seeds('"carry') == [2] and seeds("* OR eve") == []
    for wrong in ("", "?!", " "):
        with pytest.raises(ArgumentError, match="must contain a word"):
            store.find(text=wrong)


def test_a_prompt_is_a_question_a_trace_or_token_ids(store: wb.Store):
    long = "What is this? " * 40
    for number, question in enumerate(["What is 12+30?", "What is 12+31?", long + "a", long + "b"]):
        store.add(chat(number, question=question))
    assert store.find(prompt="What is 12+30?")["seed"].tolist() == [0]
    assert store.find(prompt=long + "b")["seed"].tolist() == [3]
    assert store.find(prompt=chat(2)).seed.tolist() == [2] and store.find(prompt=[1, 1, 2]).seed.tolist() == [1]
    assert store.find(prompt=np.array([1, 1, 2])).seed.tolist() == [1] and store.find(prompt=[1, 1]).empty
    with pytest.raises(ArgumentTypeError, match="prompt must be"):
        store.find(prompt=3)  # type: ignore[arg-type]


def test_a_wrong_condition_says_what_is_allowed(store: wb.Store):
    with pytest.raises(ArgumentError, match=r"no column 'efort'\. Did you mean 'effort'\? The columns are: id, path"):
        store.find(efort="low")
    wrong: list[dict[str, Any]] = [
        {"seed": "3"},
        {"model": 3},
        {"verified": 1},
        {"temperature": float("nan")},
        {"seed": (1, 2, 3)},
    ]
    for where in wrong:
        with pytest.raises(ArgumentError):
            store.find(**where)
    for score in ("correct", {"correct": "x"}, {3: 1}):
        with pytest.raises(ArgumentError):
            store.find(score=score)  # type: ignore[arg-type]


def test_traces_of_others_are_read_where_they_are(store: wb.Store):
    chat(1).save(store.folder / "first.trace")
    chat(2).save(store.folder / "sweep" / "second.trace")
    chat(3).save(store.folder / "sweep" / "deeper" / "third.trace")
    chat(4).save(store.folder / ".hidden" / "fourth.trace")
    (store.folder / "linked.trace").symlink_to(store.folder / "sweep" / "second.trace")
    assert store.find()["path"].tolist() == ["first.trace", "sweep/second.trace"]
    assert store[chat(2).id].id == chat(2).id
    shutil.rmtree(store.folder / "first.trace")
    assert store.find()["path"].tolist() == ["sweep/second.trace"]
    (store.folder / "sweep").rename(store.folder / "moved")
    assert store.find()["path"].tolist() == ["moved/second.trace"]
    assert store.verify().ok


def test_a_run_writes_straight_into_the_store(store: wb.Store):
    trace = chat()
    trace.save(store.path_for(trace.id))
    assert trace.id in store and store.add(trace) == trace.id and len(store) == 1
    for wrong in ("abc", "X" * 32, "../../etc"):
        with pytest.raises(ArgumentError, match="32 hex digits"):
            store.path_for(wrong)


def test_a_partial_trace_is_replaced_by_the_complete_one(store: wb.Store):
    assert store.add(partial()) == chat().id and store.find()["status"].tolist() == ["partial"]
    assert store.add(chat()) == chat().id and store.find()["status"].tolist() == ["complete"]
    assert made.same(store[chat().id].raw("logprob"), chat().raw("logprob"))
    with pytest.raises(TraceExists, match="The existing one is complete, this one is partial"):
        store.add(partial())


def test_another_content_under_the_same_id_is_refused_or_named(store: wb.Store):
    store.add(chat())
    other = wb.Trace(chat().manifest, {"logprob": chat().raw("logprob") + np.float32(1)})
    with pytest.raises(TraceExists, match=chat().id):
        store.add(other)
    other.save(store.folder / "other.trace")
    assert len(store) == 1 and len(store.find()) == 2
    with pytest.raises(TraceExists, match=rf"2 traces .*objects/.*{chat().id}, other\.trace"):
        store[chat().id]
    [(path, problem)] = store.verify().problems
    assert path.endswith(chat().id) and "other.trace has the same id" in problem
    shutil.rmtree(store.path_for(chat().id))
    with pytest.raises(TraceExists, match=r"already at .*other\.trace, with other content: logprob"):
        store.add(chat())
    assert not store.path_for(chat().id).exists()


def test_a_copy_of_a_trace_is_the_same_trace(store: wb.Store):
    chat().save(store.folder / "copy.trace")
    assert len(store) == 1
    assert store.add(chat()) == chat().id and not store.path_for(chat().id).exists()
    chat().save(store.path_for(chat().id))
    assert len(store) == 1 and len(store.find()) == 2 and store[chat().id].id == chat().id and store.verify().ok


def test_hostile_texts_are_visible_in_every_table(store: wb.Store):
    hostile = "\u202e<img src=x>\x1b[31m\u200b\0"
    edits = [{"identity": "x", "glob": hostile, "function": hostile}]
    store.add(
        chat(question=hostile, thought=hostile, answer=hostile, model=hostile, created=hostile, edits=edits,
             record=[hostile], numerics={"dtype": "float32"})
    )  # fmt: skip
    tables = [store.find(), store.sql("select * from traces"), store.sql("select * from texts")]
    texts = [value for table in tables for row in table.to_dict("records") for value in row.values()]
    texts = [text for text in texts if isinstance(text, str)]
    assert all(line.isprintable() and "\u202e" not in line for text in texts for line in text.split("\n"))
    assert store.find(model=hostile)["model"].tolist() == [visible(hostile)]
    assert len(store.find(prompt=hostile)) == 1 and len(store.find(edit=hostile)) == 1


def test_a_seed_of_64_bits_stays_exact(store: wb.Store):
    store.add(chat(generation=chat().manifest.generation | {"seed": 2**64 - 1}))  # type: ignore[operator]
    store.add(chat(5))
    assert sorted(map(int, store.find()["seed"])) == [5, 2**64 - 1]


def test_a_store_is_pickled_as_its_path(store: wb.Store):
    store.add(chat())
    assert pickle.loads(pickle.dumps(store)).find().equals(store.find())


def test_what_is_no_folder_of_traces_is_refused(tmp_path: Path):
    chat().save(tmp_path / "one.trace")
    with pytest.raises(ArgumentError, match=r"is a single trace.*wb\.load"):
        wb.Store(tmp_path / "one.trace")
    assert sorted(os.listdir(tmp_path / "one.trace")) == ["manifest.json", "part-00000.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be made"):
        wb.Store(tmp_path / "file")
    with pytest.raises(ArgumentTypeError):
        wb.Store(3)  # type: ignore[arg-type]


def test_damaged_traces_are_listed_and_never_in_a_table(store: wb.Store):
    good, bad = store.add(chat(1)), store.add(chat(2))
    manifest = store.path_for(bad) / "manifest.json"
    before = manifest.stat()
    data = manifest.read_bytes()
    manifest.write_bytes(data.replace(b'"seed":2', b'"seed":7'))  # the same size, and the same date
    os.utime(manifest, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.find()["id"].tolist() == [good]
    with pytest.raises(TraceCorrupt, match="does not match its own hash"):
        store[bad]
    report = store.verify()
    assert not report.ok and report.verified == 1 and "does not match its own hash" in str(report)
    assert "1 that cannot be read" in repr(store)
    manifest.write_bytes(data)
    store.refresh()
    assert len(store) == 2 and store.verify().ok


def test_a_trace_in_the_folder_of_another_id_is_a_problem(store: wb.Store):
    first, second = store.add(chat(1)), store.add(chat(2))
    shutil.rmtree(store.path_for(second))
    shutil.copytree(store.path_for(first), store.path_for(second))
    assert store.find()["id"].tolist() == [first]
    assert "moved or forged" in store.verify().problems[0][1]


def test_verify_reads_a_sample_in_full(store: wb.Store):
    ids = [store.add(chat(number)) for number in range(4)]
    part = store.path_for(ids[0]) / "part-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    assert store.verify(sample=0).ok and store.verify(sample=0).verified == 0
    report = store.verify()
    assert report.traces == 4 and report.verified == 3 and report.bytes == 3 * 28
    assert [path for path, _ in report.problems] == [f"objects/{ids[0][:2]}/{ids[0]}"]
    found = [store.verify(sample=2, seed=seed).ok for seed in range(20)]
    assert True in found and False in found


def test_an_identity_that_fails_is_a_problem(store: wb.Store):
    store.add(made.trace())  # of random numbers
    assert any("identity fails: pattern + sink = 1" in problem for _, problem in store.verify().problems)


def test_tables_are_written_as_parquet_with_checksums(store: wb.Store, tmp_path: Path):
    pd = pytest.importorskip("pandas")
    pq = pytest.importorskip("pyarrow.parquet")
    store.add(chat(1))
    store.score(chat(1).id, "correct", True)
    path = store.to_parquet(tmp_path / "traces.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(path), store.find(), check_dtype=False)
    assert pq.read_table(path, page_checksum_verification=True).num_rows == 1
    assert pd.read_parquet(store.to_parquet(path, "scores"))["value"].tolist() == [1.0]
    with pytest.raises(ArgumentError, match="table must be 'traces', 'scores'"):
        store.to_parquet(path, "texts")
    before = path.read_bytes()
    with pytest.raises(FileError):
        store.to_parquet(tmp_path)
    assert path.read_bytes() == before


def test_adding_what_is_no_trace_writes_nothing(store: wb.Store):
    with pytest.raises(ArgumentTypeError, match="needs a Trace"):
        store.add("first.trace")  # type: ignore[arg-type]
    assert not (store.folder / "objects").exists()


def test_a_full_disk_leaves_no_trace_and_no_row(store: wb.Store, monkeypatch: pytest.MonkeyPatch):
    from workbench.traces import writer

    def full(fd, arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_part", full)
    with pytest.raises(TraceError, match="the disk is full"):
        store.add(chat())
    assert len(store) == 0 and store.verify().ok


def test_json_of_a_table_is_plain(store: wb.Store):
    store.add(chat(1))
    [row] = json.loads(str(store.find().to_json(orient="records")))
    assert row["seed"] == 1 and row["verified"] is True and row["adapter_scale"] is None


def test_calls_to_tools_and_what_a_run_took_are_in_the_tables(store: wb.Store):
    pieces = ["Reasoning: high", "<u>", "What is 8*2?", "<call>", '{"x": 1}', "<r>", "16"]
    spans = [Span(0, 1, 0, 1, "system"), Span(1, 3, 2, 3, "user")]
    spans += [Span(3, 5, 4, 5, "assistant", "commentary", recipient="functions.calc")]
    spans += [Span(5, 7, 6, 7, "tool", "commentary", author="functions.calc")]
    call = Call(
        "functions.calc",
        '{"x": 1}',
        slice(3, 5),
        result_positions=slice(5, 7),
        result="16",
        seconds=0.5,
        error="\u202eslow",
    )
    took = {
        "seconds": 3.0,
        "phases": {"decode": 3.0},
        "first_token": 0.25,
        "n_prefilled": 3,
        "n_decoded": 2,
        "peak_memory": None,
        "peak_device_memory": None,
        "bytes_written": 0,
        "energy": None,
    }
    written = [(0, 3, "prompt"), (3, 5, "model"), (5, 7, "functions.calc")]
    trace_id = store.add(
        chat(str_tokens=pieces, spans=spans, written=written, calls=[call], took=took, follows=chat(1).id)
    )
    store.add(chat(2))
    [row] = store.find(n_calls=1, seconds=(2, 4), follows=chat(1).id).to_dict("records")
    assert (row["n_prompt"], row["n_generated"], row["n_put_in"], row["first_token"]) == (3, 2, 2, 0.25)
    assert store.find(seconds=None)["n_put_in"].tolist() == [0]
    assert store.sql("select * from calls").drop(columns="key").values.tolist() == [
        [trace_id, 0, "functions.calc", "⟨U+202E⟩slow", 0.5]
    ]
    shutil.rmtree(store.path_for(trace_id))
    assert len(store) == 1 and store.sql("select * from calls").empty
