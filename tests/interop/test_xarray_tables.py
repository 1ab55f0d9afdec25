"""A trace is exported as one Dataset and as tables and restored bit for bit, hostile texts included."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from tests.traces.made import arrays, manifest, same
from workbench.errors import HookNameError, NotRecorded, TraceCorrupt
from workbench.interop.xarray_tables import TABLES, from_xarray, to_pandas, to_parquet, to_xarray
from workbench.traces import Trace

HOSTILE = [
    "\x00",
    "\u202eevil\u202c",
    "<img src=x onerror=alert(1)>",
    "\ufeff",
    "\r\n",
    "𝕊\u0301",
    "",
    "\ud7ff\U0010ffff",
    "nan",
]


def made(**changes) -> Trace:
    return Trace(manifest(9, **{"str_tokens": HOSTILE, "prompt_length": 5, **changes}), arrays(9))


@pytest.fixture(scope="module")
def trace() -> Trace:
    return wb.trace(wb.chat("What is 247+138?", reasoning="high"), record="residuals lens steps attention")


def test_every_array_has_the_named_axes_and_its_numbers():
    trace = made()
    data = to_xarray(trace)
    assert data["resid_post"].dims == ("layer", "pos", "d_model") and data["pattern"].dims == (
        "layer",
        "head",
        "query",
        "key",
    )
    assert data["margin"].dims == ("layer", "pos") and data["hook_logits"].dims == ("pos", "d_vocab")
    for name in trace.names():
        layer, short = wb.hooks.layer_of(name), wb.hooks.short_name(name)
        array = data[name] if layer is None else data[short].sel(layer=layer)
        assert np.array_equal(array, trace[name], equal_nan=True)
    label = {"long_name": "residual stream after the layer", "units": "activation"}
    attrs = {"hook_point": "blocks.*.hook_resid_post", "source": "forward", "dtype": "BF16"} | label
    assert data["resid_post"].attrs == attrs


def test_coordinates_hold_token_text_and_channel_of_each_position(trace):
    data = to_xarray(trace, "logprob")
    assert data["text"].values.tolist() == trace.str_tokens and data["token"].values.tolist() == trace.tokens
    final = data["text"].values[data["channel"].values == "final"]
    assert trace.text(channel="final") in "".join(final)
    assert set(data.data_vars) == {"logprob", "manifest"} and data.attrs["trace"] == trace.id


def test_an_axis_of_another_length_is_named_with_its_length(trace):
    data = to_xarray(trace)
    assert data["top_ids"].dims == ("pos", "rank") and data["lens_ids"].dims == ("layer", "pos", "rank_5")
    assert data["step_attention"].dims == ("layer", "head", "step", "key_step")


def test_a_hook_point_recorded_in_some_layers_is_never_padded(trace):
    names = [name for name in trace.names() if name != "blocks.1.hook_resid_post"]
    data = to_xarray(trace, names)
    assert "resid_post" not in data and "blocks.0.hook_resid_post" in data and "blocks.1.hook_resid_post" not in data
    restored = from_xarray(data)
    assert sorted(restored.names()) == sorted(names) and (restored["resid_post", 2] == trace["resid_post", 2]).all()


def equal(a: Trace, b: Trace) -> bool:
    manifests = [replace(t.manifest, tensors={}) for t in (a, b)]
    arrays_same = all(same(a.raw(n), b.raw(n)) and a.source(n) == b.source(n) for n in b.names())
    return manifests[0] == manifests[1] and a.names() == b.names() and arrays_same


def test_a_dataset_restores_the_trace_it_was_made_from(trace):
    for one in (made(), trace):
        assert equal(from_xarray(to_xarray(one)), one)


def test_zarr_restores_the_trace_and_every_text(tmp_path):
    one = made()
    to_xarray(one).to_zarr(tmp_path / "a.zarr", consolidated=False)
    data = xr.open_zarr(tmp_path / "a.zarr", consolidated=False, chunks=None)
    assert data["text"].values.tolist() == ["␀", *HOSTILE[1:]] and equal(from_xarray(data), one)


def test_netcdf_restores_the_trace_and_texts_with_nul_from_the_manifest(tmp_path):
    one = made()
    to_xarray(one).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as read:
        assert equal(from_xarray(read), one) and from_xarray(read).str_tokens == HOSTILE
        assert read["text"].values.tolist() == ["␀", *HOSTILE[1:]]
    plain = made(str_tokens=[p or "x" for p in (piece.replace("\x00", "") for piece in HOSTILE)])
    to_xarray(plain).to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "b.nc", engine="h5netcdf") as read:
        assert read["text"].values.tolist() == plain.str_tokens


def test_a_loaded_trace_is_exported_like_one_in_memory(tmp_path):
    one = made()
    loaded = wb.load(one.save(tmp_path / "t"))
    xr.testing.assert_identical(to_xarray(loaded), to_xarray(one))


def test_changed_numbers_and_cut_arrays_are_refused():
    data = to_xarray(made())
    changed = data.copy(deep=True)
    changed["margin"][1, 2] += 1e-6
    with pytest.raises(TraceCorrupt, match="margin is not what was recorded"):
        from_xarray(changed)
    with pytest.raises(TraceCorrupt, match="it was cut"):
        from_xarray(data.isel(pos=slice(0, 4)))
    damaged = data.copy(deep=True)
    damaged["manifest"][40] += 1
    with pytest.raises(TraceCorrupt):
        from_xarray(damaged)
    with pytest.raises(ValueError, match="the variable `manifest`, which to_xarray writes, is missing"):
        from_xarray(data.drop_vars("manifest"))
    partial = from_xarray(data.isel(layer=[0, 2]).drop_vars("margin"))
    assert "resid_post" not in partial and same(partial.raw(("resid_post", 2)), made().raw(("resid_post", 2)))


def test_a_name_that_the_trace_lacks_is_refused_with_the_way_to_record_it():
    with pytest.raises(NotRecorded, match="record="):
        to_xarray(made(), ["lens_ids"])
    with pytest.raises(HookNameError, match="resid_post"):
        to_xarray(made(), "resid_pots")


@given(texts=st.lists(st.text(max_size=6), min_size=9, max_size=9))
@settings(max_examples=30, deadline=None)
def test_any_text_survives_in_tables_and_parquet(texts, tmp_path_factory):
    one = made(str_tokens=texts)
    table = to_pandas(one)
    assert table["text"].tolist() == one.str_tokens
    path = to_parquet(one, "tokens", tmp_path_factory.mktemp("p") / "tokens.parquet")
    read = pd.read_parquet(path)
    pd.testing.assert_frame_equal(read, table)
    assert read["text"].tolist() == one.str_tokens and read.attrs["trace"] == one.id


# Tables, compared with the arrays that they are made from.


def test_the_token_table_has_channel_and_step_of_each_token(trace):
    table = to_pandas(trace)
    assert table["generated"].sum() == len(trace) - trace.prompt_length
    for number, step in enumerate(wb.steps(trace)):
        rows = table[table["step"] == number]
        assert rows["pos"].tolist() == list(range(step.start, step.stop)) and "".join(rows["text"]) == step.text
        assert set(rows["channel"]) == {"analysis"}
    assert sum(table["step"].isna()) == len(trace) - sum(map(len, wb.steps(trace)))
    assert np.array_equal(table["logprob"], trace["logprob"], equal_nan=True)


def test_steps_and_messages_are_those_of_the_trace(trace):
    steps = to_pandas(trace, "steps")
    assert steps["text"].tolist() == [step.text for step in wb.steps(trace)] and all(steps["kind"].notna())
    messages = to_pandas(trace, "messages")
    assert messages["text"].tolist() == ["".join(trace.str_tokens[span.content]) for span in trace.spans]
    assert messages["complete"].tolist() == [span.complete for span in trace.spans]


def test_the_routing_table_sums_to_the_routers_weights(trace):
    table = to_pandas(trace, "routing")
    weights = table.groupby(["layer", "pos"])["weight"].sum()
    assert isinstance(weights, pd.Series)
    assert len(weights) == trace.config["n_layers"] * len(trace) and np.allclose(weights, 1, atol=1e-5)
    row = table[(table["layer"] == 3) & (table["pos"] == 20)]
    assert row["expert"].tolist() == trace["expert_indices", 3][20].tolist()
    assert row["logit"].tolist() == trace["router_logits", 3][20][row["expert"]].tolist()


def test_the_prediction_and_layer_tables_hold_the_summaries(trace):
    table = to_pandas(trace, "predictions").set_index(["pos", "rank"])
    assert (
        table.loc[(30, 2), "token"] == trace["top_ids"][30, 2]
        and table.loc[(30, 2), "logprob"] == trace["top_logprobs"][30, 2]
    )
    assert table.loc[(30, 0), "text"] == trace.vocab_text[int(trace["top_ids"][30, 0])]
    layers = to_pandas(trace, "layers").set_index(["layer", "pos"])
    assert (
        layers.loc[(2, 7), "lens_kl"] == trace["lens_kl"][2, 7]
        and layers.loc[(4, 9), "margin"] == trace["margin"][4, 9]
    )


def test_a_table_that_the_trace_cannot_fill_is_refused():
    bare = Trace(manifest(9), {"logprob": arrays(9)["logprob"]})
    for what in ("routing", "predictions", "layers"):
        with pytest.raises(NotRecorded):
            to_pandas(bare, what)
    assert len(to_pandas(bare, "tokens")) == 9 and to_pandas(bare, "steps").empty
    with pytest.raises(ValueError, match="'tokens', 'steps', 'messages'"):
        to_pandas(bare, "experts")


@pytest.mark.parametrize("what", list(TABLES))
def test_every_table_survives_parquet(what, trace, tmp_path):
    path = to_parquet(trace, what, tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(path), to_pandas(trace, what))


def test_a_failed_parquet_write_leaves_the_existing_file_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    path.write_text("mine")

    def full(self, where, **_):
        where.write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="full"):
        to_parquet(made(), "tokens", path)
    assert path.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["a.parquet"]
