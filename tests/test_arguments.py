"""Every public function refuses arguments that make no sense, with a WorkbenchError that says so.

`CALLS` has one valid call of every public function and public method. Each argument of each call is replaced by every
value of `VALUES`. The call must raise a WorkbenchError, unless `VALID` says that the value is allowed for that
argument. Where a number of Python is allowed, the numpy scalar of the same value must give the same result.

A new public function needs an entry in `CALLS`. The usual run takes one in 24 of the values, other ones for each
argument; `pytest -m attack tests/test_arguments.py` one in 3; WORKBENCH_LONG=1 all of them.
"""

import inspect
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

import workbench as wb
from tests.attack.conftest import MIN_CHARACTERS, time_limit
from tests.checkpoints import CONFIG
from tests.model.models import ctrl_c_in_pass
from tests.test_docstrings import PUBLIC
from workbench.errors import WorkbenchError
from workbench.pocket.families import make
from workbench.views.view import View

ADDRESS = re.compile(r"0x[0-9a-f]+")
SECONDS = 20  # the longest time for one call


class Unprintable:
    """An object of no use anywhere, whose repr fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


# What no argument should be, or few. By name, because a failure and `VALID` name them.
VALUES: dict[str, Any] = {
    "None": None,
    "True": True,
    "a text": "no such thing",
    "an empty text": "",
    "a null character": "a\0b",
    "an escape sequence": "\x1b[2J",
    "bytes": b"abc",
    "1.5": 1.5,
    "NaN": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "-1.5": -1.5,
    "1e-310": 1e-310,
    "zero": 0,
    "minus a million": -(10**6),
    "a trillion": 10**12,
    "10**400": 10**400,
    "-10**5000": -(10**5000),
    "complex": 1j,
    "np.nan": np.float64("nan"),
    "np.True_": np.True_,
    "np.str_": np.str_("no such thing"),
    "np.datetime64": np.datetime64("2026-01-01"),
    "an empty list": [],
    "[None]": [None],
    "[[1, 2]]": [[1, 2]],
    "[1.5]": [1.5],
    "[True]": [True],
    "['a']": ["a"],
    "[nan]": [float("nan")],
    "(1, 2, 3)": (1, 2, 3),
    "an empty dict": {},
    "a dict": {"a": 1},
    "a set": {1, 2},
    "an iterator": iter(()),
    "an object": object(),
    "an unprintable object": Unprintable(),
    "a type": int,
    "a function": lambda *_, **__: None,
    "a module": inspect,
    "a slice of texts": slice("a", "b"),
    "a slice of step 0": slice(0, 9, 0),
    "an array of texts": np.array(["a", "b"]),
    "an empty array": np.zeros(0),
    "a 0-d array": np.array(float("nan")),
    "a complex array": np.ones(3, complex),
    "an array of objects": np.array([None, "a"], object),
    "a tensor": torch.full((2, 2), float("nan")),
    "a complex tensor": torch.ones(3, dtype=torch.complex64),
    "a meta tensor": torch.empty(3, device="meta"),
    "a labeled array": xr.DataArray([1.0, 2.0], dims="no_such_axis"),
    "a Dataset": xr.Dataset({"a": ("b", [1.0])}),
}


class World:
    """What the calls need: a model, its traces, and results of one function that others take."""

    def __init__(self, folder):
        self.folder = folder
        self.model = wb.Model("pocket")
        question = wb.chat("What is 12+30?", reasoning="high")
        self.trace = self.model.generate(question, max_tokens=30, record="everything lens steps")
        self.short = self.model.generate(question, max_tokens=30, record="")
        self.other = self.model.generate(
            wb.chat("What is 12+31?", reasoning="high"), max_tokens=30, record="everything lens steps"
        )
        self.clean, self.corrupted = (self.model.to_tokens(f"What is 12+{n}?")[-14:] for n in (36, 35))
        self.metric = wb.patching.logit_diff(self.model, "8", "7")
        self.parts = [slice(20, 26), slice(26, 32), slice(32, 36)]

    @property
    def segments(self) -> list[slice]:
        return list(self.parts)

    def array(self, *sizes: int) -> xr.DataArray:
        dims = ("step", "key_step") if len(sizes) == 2 else ("layer", "head", "step", "key_step")[: len(sizes)]
        return xr.DataArray(np.random.default_rng(0).random(sizes), dims=dims)

    @cached_property
    def basis(self) -> xr.Dataset:
        return wb.residual.resid_basis([self.other], [self.parts], n_components=2)

    @cached_property
    def problem(self):
        return make("dag", Random(0), length=4)

    @cached_property
    def lens(self):
        return wb.lens.train_tuned_lens(self.model, [self.clean], epochs=1)

    @cached_property
    def lens_file(self):
        return self.lens.save(self.folder / "lens.safetensors")

    @cached_property
    def saved(self):
        return self.trace.save(self.folder / "saved.trace")

    @cached_property
    def sae(self) -> wb.sae.SAE:
        return wb.sae.identity("blocks.2.hook_resid_post", 128)

    def vector(self, start: int) -> xr.DataArray:
        pairs = [(self.trace, slice(start, start + 6))], [(self.trace, slice(0, 6))]
        return wb.steering.steering_vector(*pairs, layer=2)

    @cached_property
    def partial(self) -> wb.Trace:
        with pytest.raises(KeyboardInterrupt), ctrl_c_in_pass(4):
            self.model.generate("What is 12+30?", max_tokens=8, record="")
        assert self.model.partial is not None
        return self.model.partial

    @cached_property
    def store(self) -> wb.Store:
        store = wb.Store(self.folder / "store")
        store.add(self.short)
        return store

    @cached_property
    def figure(self):
        return wb.figures.heatmap(self.array(3, 3))

    @cached_property
    def picture(self):
        return wb.figures.save(self.figure, self.folder / "picture.svg")[0]

    @cached_property
    def view(self) -> View:
        return wb.views.tokens(self.trace)


Arguments = dict[str, Any]
CALLS: dict[str, Callable[[World], tuple[Callable, Arguments]]] = {
    # the names for daily use
    "Model": lambda w: (
        wb.Model,
        {"where": "pocket", "dtype": "float32", "device": "cpu", "memory": "auto", "tokenizer": None},
    ),
    "Model.edit": lambda w: (w.model.edit, {"where": "mlp_out", "fn": lambda x: x, "positions": 3}),
    "Model.patch": lambda w: (w.model.patch, {"where": "mlp_out", "source": w.trace, "positions": [1, 2]}),
    "Model.check_prompt": lambda w: (w.model.check_prompt, {"tokens": [1, 2, 3], "max_tokens": 4}),
    "Model.estimate": lambda w: (w.model.estimate, {"prompt": [1, 2, 3], "record": "", "max_tokens": 4}),
    "Model.generate_many": lambda w: (
        w.model.generate_many,
        {
            "prompts": [w.clean, w.clean[:9]],
            "max_tokens": [2, 1],
            "temperature": 1.0,
            "top_p": [0.5, 1.0],
            "seed": [3, 4],
            "record": "lens",
            "stop": [[5], []],
            "reasoning": None,
            "budget": 10**9,
            "max_rows": 2,
            "ordered": True,
        },
    ),
    "Model.generate": lambda w: (
        w.model.generate,
        {
            "prompt": w.clean,
            "max_tokens": 2,
            "temperature": 1.0,
            "top_p": 0.5,
            "seed": 3,
            "record": "lens",
            "stop": [5],
            "budget": 10**9,
            "to": None,
        },
    ),
    "Model.trace": lambda w: (
        w.model.trace,
        {
            "prompt": w.clean,
            "record": "",
            "budget": 10**9,
            "to": None,
            "written": [(0, len(w.clean), "prompt")],
            "calls": [],
            "follows": w.short,
        },
    ),
    "Trace.written_by": lambda w: (w.trace.written_by, {"who": "model"}),
    "Model.resume": lambda w: (w.model.resume, {"partial": w.partial, "to": None}),
    "Model.forward": lambda w: (
        w.model.forward,
        {"tokens": torch.tensor([w.clean]), "tap": None, "cache": None, "logits_at": slice(-1, None)},
    ),
    "Model.forward_from": lambda w: (
        w.model.forward_from,
        {"resid": torch.zeros(1, 4, 128), "layer": 2, "tap": None, "cache": None, "logits_at": slice(-1, None)},
    ),
    "Model.render": lambda w: (w.model.render, {"prompt": "What is 12+30?"}),
    "Model.to_tokens": lambda w: (w.model.to_tokens, {"prompt": [1, 2, 3]}),
    "Model.with_adapter": lambda w: (w.model.with_adapter, {"folder": adapter(w), "scale": 1.0}),
    "Model.active_edits": lambda w: (w.model.active_edits, {}),
    "Model.interruptible": lambda w: (w.model.interruptible, {}),
    "Model.stop": lambda w: (w.model.stop, {}),
    "Trace": lambda w: (
        wb.Trace,
        {"manifest": w.short.manifest, "arrays": {n: w.short.raw(n) for n in w.short.names()}},
    ),
    "Trace.array": lambda w: (w.trace.array, {"name": "resid_post", "layer": 1}),
    "Trace.find": lambda w: (w.trace.find, {"text": "12"}),
    "Trace.layers": lambda w: (w.trace.layers, {"name": "resid_post"}),
    "Trace.names": lambda w: (w.trace.names, {}),
    "Trace.raw": lambda w: (w.trace.raw, {"key": ("resid_post", 1)}),
    "Trace.__getitem__": lambda w: (w.trace.__getitem__, {"key": "logprob"}),
    "Trace.save": lambda w: (w.short.save, {"path": "new.trace", "overwrite": False}),
    "Trace.source": lambda w: (w.trace.source, {"key": "resid_post"}),
    "Trace.summary": lambda w: (w.trace.summary, {}),
    "Trace.text": lambda w: (w.trace.text, {"channel": "analysis", "role": "assistant", "turn": 0}),
    "Store": lambda w: (wb.Store, {"folder": w.folder / "store"}),
    "Store.__getitem__": lambda w: (w.store.__getitem__, {"id": w.short.id}),
    "Store.add": lambda w: (w.store.add, {"trace": w.short}),
    "Store.find": lambda w: (
        w.store.find,
        {"text": "12", "prompt": w.short, "edit": "ablate", "score": {"correct": 1}, "**columns": {"n_tokens": 30}},
    ),
    "Store.path_for": lambda w: (w.store.path_for, {"id": w.short.id}),
    "Store.score": lambda w: (
        w.store.score,
        {
            "id": w.short.id,
            "name": "correct",
            "value": 0.5,
            "task": "sums",
            "sample": "1",
            "effort": "high",
            "repeat": 0,
        },
    ),
    "Store.sql": lambda w: (w.store.sql, {"query": "select ?", "parameters": [1]}),
    "Store.to_parquet": lambda w: (w.store.to_parquet, {"path": "traces.parquet", "table": "traces"}),
    "Store.verify": lambda w: (w.store.verify, {"sample": 1, "seed": 0}),
    "ablate": lambda w: (wb.ablate, {"*unnamed": [], "head": 1}),
    "ban": lambda w: (wb.ban, {"expert": 1}),
    "chat": lambda w: (
        wb.chat,
        {
            "user": "hi",
            "system": "s",
            "developer": "d",
            "tools": ["python"],
            "reasoning": "low",
            "history": [{"role": "user", "content": "a"}],
            "date": "2026-01-01",
            "keep_thoughts": False,
        },
    ),
    "doctor": lambda w: (wb.doctor, {}),
    "verify_model": lambda w: (
        wb.verify_model,
        {"where": "pocket", "parts": ["files"], "restart": False, "on_line": print},
    ),
    "estimate": lambda w: (
        wb.estimate,
        {"prompt": "a", "model": w.model, "record": "", "max_tokens": 3, "reasoning": "low"},
    ),
    "force": lambda w: (wb.force, {"expert": 1, "margin": 0.5}),
    "history": lambda w: (wb.history, {"trace": w.short}),
    "load": lambda w: (wb.load, {"path": w.saved}),
    "patch": lambda w: (wb.patch, {"source": w.short}),
    "resume": lambda w: (wb.resume, {"partial": w.partial, "model": w.model}),
    "steer": lambda w: (wb.steer, {"vector": [1.0, 2.0], "scale": 2.0}),
    "steps": lambda w: (wb.steps, {"trace": w.short, "channel": "analysis", "turn": -1}),
    "synth": lambda w: (wb.synth, {"like": CONFIG, "folder": "new", "layers": 1, "seed": 3, "tokenizer": None}),
    "trace": lambda w: (
        wb.trace,
        {
            "prompt": "a",
            "model": w.model,
            "record": "",
            "max_tokens": 2,
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": 0,
            "reasoning": "low",
            "stop": (),
        },
    ),
    "verify": lambda w: (wb.verify, {"trace": w.short, "findings": None}),
    # attention
    "attention.pattern": lambda w: (
        wb.attention.pattern,
        {"trace": w.trace, "layer": 1, "head": 2, "queries": 9, "keys": slice(0, 9)},
    ),
    "attention.pattern_band": lambda w: (
        wb.attention.pattern_band,
        {"trace": w.trace, "layer": 0, "head": [1, 2], "queries": 9},
    ),
    "attention.pattern_pooled": lambda w: (
        wb.attention.pattern_pooled,
        {"trace": w.trace, "layer": 1, "head": 2, "size": 8, "sampled": True},
    ),
    "attention.breakdown": lambda w: (wb.attention.breakdown, {"trace": w.trace}),
    "attention.rollout": lambda w: (wb.attention.rollout, {"trace": w.trace}),
    "attention.head_scores": lambda w: (wb.attention.head_scores, {"trace": w.trace}),
    "attention.receiver_heads": lambda w: (
        wb.attention.receiver_heads,
        {"attention": w.array(1, 2, 9, 9), "min_distance": 2},
    ),
    "attention.retrieval_scores": lambda w: (
        wb.attention.retrieval_scores,
        {"trace": w.trace, "needle": slice(0, w.trace.prompt_length), "answer": slice(w.trace.prompt_length, None)},
    ),
    "attention.sink_mass": lambda w: (wb.attention.sink_mass, {"trace": w.trace}),
    "attention.step_attention": lambda w: (wb.attention.step_attention, {"trace": w.trace, "segments": w.segments}),
    # routing
    "routing.expert_load": lambda w: (wb.routing.expert_load, {"trace": w.short, "where": [1, 2], "weighted": True}),
    "routing.expert_coactivation": lambda w: (wb.routing.expert_coactivation, {"trace": w.short, "where": slice(0, 9)}),
    "routing.expert_transitions": lambda w: (
        wb.routing.expert_transitions,
        {"trace": w.short, "where": "user", "lift": True},
    ),
    "routing.expert_specialization": lambda w: (
        wb.routing.expert_specialization,
        {"traces": [w.short, w.other], "labels": labels(w), "condition_on_token": False, "n_shuffles": 2, "seed": 3},
    ),
    "routing.fixed_token_routing": lambda w: (
        wb.routing.fixed_token_routing,
        {"trace": w.short, "token": w.short.tokens[0], "layer": 1},
    ),
    "routing.router_entropy": lambda w: (wb.routing.router_entropy, {"trace": w.short, "of": "chosen"}),
    "routing.router_margin": lambda w: (wb.routing.router_margin, {"trace": w.short}),
    "routing.routing_drift": lambda w: (
        wb.routing.routing_drift,
        {"traces": [w.short, w.other], "segments": [w.segments, w.segments], "n_shuffles": 2, "seed": 3},
    ),
    # residual
    "residual.logit_attribution": lambda w: (
        wb.residual.logit_attribution,
        {"model": w.model, "trace": w.short, "token": 22, "other": "8", "pos": -1},
    ),
    "residual.massive_activations": lambda w: (
        wb.residual.massive_activations,
        {"trace": w.trace, "min_value": 2.0, "min_ratio": 3.0},
    ),
    "residual.resid_basis": lambda w: (
        wb.residual.resid_basis,
        {"traces": [w.trace, w.other], "segments": [w.segments, w.segments], "n_components": 2, "site": "resid_mid"},
    ),
    "residual.resid_cosine": lambda w: (wb.residual.resid_cosine, {"trace": w.trace}),
    "residual.resid_trajectory": lambda w: (
        wb.residual.resid_trajectory,
        {"trace": w.trace, "basis": w.basis, "segments": w.segments, "n_shuffles": 3, "seed": 3},
    ),
    "residual.step_cosine": lambda w: (
        wb.residual.step_cosine,
        {"trace": w.trace, "segments": w.segments, "basis": None, "site": "resid_mid"},
    ),
    # lens, probes, steering
    "lens.logit_lens": lambda w: (wb.lens.logit_lens, {"trace": w.trace}),
    "lens.prediction_depth": lambda w: (wb.lens.prediction_depth, {"trace": w.trace, "kl": 0.5}),
    "lens.tuned_lens": lambda w: (wb.lens.tuned_lens, {"model": w.model, "trace": w.trace, "lens": w.lens}),
    "lens.train_tuned_lens": lambda w: (
        wb.lens.train_tuned_lens,
        {"model": w.model, "prompts": [w.clean], "epochs": 1, "lr": 0.01, "seed": 3, "dtype": "float32"},
    ),
    "lens.load_tuned_lens": lambda w: (wb.lens.load_tuned_lens, {"path": w.lens_file, "model": w.model}),
    "lens.lens_kl": lambda w: (wb.lens.lens_kl, {"model": w.model, "lens": w.lens, "prompts": [w.clean]}),
    "probes.linear_probe": lambda w: (
        wb.probes.linear_probe,
        {
            "traces": [w.trace, w.other],
            "labels": labels(w),
            "site": "resid_mid",
            "layers": [1],
            "token_identity": labels(w),
            "l2_penalty": 2.0,
            "n_folds": 2,
            "n_shuffles": 2,
            "seed": 3,
        },
    ),
    "steering.steering_vector": lambda w: (
        wb.steering.steering_vector,
        {"positive": [(w.trace, 5)], "negative": [(w.trace, [6, 7])], "layer": 2, "site": "resid_mid"},
    ),
    "steering.steering_effect": lambda w: (
        wb.steering.steering_effect,
        {
            "model": w.model,
            "prompt": w.clean,
            "vector": w.vector(9),
            "metric": lambda t: float(t["entropy"].mean()),
            "control_vectors": [w.vector(20)],
            "scales": [1.0],
            "max_tokens": 0,
            "positions": 3,
            "n_random_controls": 1,
            "record": "",
            "seed": 3,
            "resume": None,
        },
    ),
    # patching
    "patching.activation_patching": lambda w: (
        wb.patching.activation_patching,
        {
            "model": w.model,
            "clean": w.clean,
            "corrupted": w.corrupted,
            "metric": w.metric,
            "site": "z",
            "positions": [12],
            "by_head": True,
            "resume": None,
        },
    ),
    "patching.attention_knockout": lambda w: (
        wb.patching.attention_knockout,
        {
            "model": w.model,
            "trace": w.short,
            "queries": slice(30, 36),
            "keys": [5, slice(6, 9)],
            "layers": [1],
            "heads": [2],
            "min_distance": 2,
            "mode": "mask",
            "n_controls": 1,
            "seed": 3,
            "resume": None,
        },
    ),
    "patching.attribution_patching": lambda w: (
        wb.patching.attribution_patching,
        {
            "model": w.model,
            "clean": w.clean,
            "corrupted": w.corrupted,
            "metric": w.metric,
            "site": "z",
            "positions": [12],
        },
    ),
    "patching.expert_knockout": lambda w: (
        wb.patching.expert_knockout,
        {"model": w.model, "trace": w.short, "layer": 1, "experts": [2], "mode": "zero"},
    ),
    "patching.head_knockout": lambda w: (
        wb.patching.head_knockout,
        {
            "model": w.model,
            "trace": w.short,
            "answer": slice(30, 32),
            "other": "8",
            "layers": [5],
            "mode": "mean",
            "n_controls": 1,
            "seed": 3,
            "resume": None,
        },
    ),
    "patching.logit_diff": lambda w: (wb.patching.logit_diff, {"model": w.model, "token": "7", "other": 23}),
    "patching.path_patching": lambda w: (
        wb.patching.path_patching,
        {
            "model": w.model,
            "clean": w.clean,
            "corrupted": w.corrupted,
            "metric": w.metric,
            "sender": ("head", 3, 1),
            "receivers": [("mlp", 4), ("logits",)],
            "positions": [12],
            "routing": "frozen",
            "resume": None,
        },
    ),
    # reasoning
    "reasoning.faithfulness": lambda w: (
        wb.reasoning.faithfulness,
        {
            "model": w.model,
            "traces": [w.short],
            "mistake": None,
            "paraphrase": None,
            "filler": " ...",
            "n_samples": 1,
            "temperature": 0.0,
            "parse_answer": None,
            "max_tokens": 2,
            "seed": 3,
        },
    ),
    "reasoning.forced_answer": lambda w: (
        wb.reasoning.forced_answer,
        {"model": w.model, "trace": w.short, "answers": ["42", "43"], "segments": chain(w)},
    ),
    "reasoning.forking_tokens": lambda w: (wb.reasoning.forking_tokens, {"trace": w.short, "top_fraction": 0.5}),
    "reasoning.resampling": lambda w: (
        wb.reasoning.resampling,
        {
            "model": w.model,
            "trace": w.short,
            "correct_answer": "42",
            "n_samples": 1,
            "segments": chain(w),
            "parse_answer": None,
            "temperature": 1.0,
            "max_tokens": 2,
            "seed": 3,
        },
    ),
    "reasoning.score_attribution": lambda w: (
        wb.reasoning.score_attribution,
        {"problem": w.problem, "matrix": np.ones((4, 4)), "same_distance": False},
    ),
    "reasoning.suppression": lambda w: (
        wb.reasoning.suppression,
        {"model": w.model, "trace": w.short, "segments": w.segments, "queries": "all", "split_routing": False},
    ),
    # sae
    "sae.SAE": lambda w: (
        wb.sae.SAE,
        {
            "site": "blocks.2.hook_resid_post",
            "W_enc": torch.ones(4, 6),
            "b_enc": torch.ones(6),
            "W_dec": torch.ones(6, 4),
            "b_dec": torch.ones(4),
            "threshold": 0.5,
            "k": 3,
            "subtracts": True,
            "rescaled": False,
            "norm": "none",
        },
    ),
    "sae.SAE.ablate": lambda w: (w.sae.ablate, {"feature": [1, 2]}),
    "sae.SAE.at": lambda w: (w.sae.at, {"site": "blocks.3.hook_resid_post"}),
    "sae.SAE.decode": lambda w: (w.sae.decode, {"features": torch.ones(3, 256), "x": None}),
    "sae.SAE.decode_linear": lambda w: (w.sae.decode_linear, {"features": torch.ones(3, 256)}),
    "sae.SAE.direction": lambda w: (w.sae.direction, {"feature": 3}),
    "sae.SAE.encode": lambda w: (w.sae.encode, {"x": torch.ones(3, 128)}),
    "sae.SAE.rows": lambda w: (w.sae.rows, {"x": torch.ones(3, 128)}),
    "sae.SAE.scale": lambda w: (w.sae.scale, {"x": torch.ones(3, 128)}),
    "sae.SAE.splice": lambda w: (w.sae.splice, {"error": True}),
    "sae.SAE.steer": lambda w: (w.sae.steer, {"feature": 3, "value": 2.0}),
    "sae.features": lambda w: (wb.sae.features, {"trace": w.trace, "sae": w.sae}),
    "sae.identity": lambda w: (wb.sae.identity, {"site": "blocks.2.hook_resid_post", "d_model": 4}),
    "sae.load_sae": lambda w: (wb.sae.load_sae, {"where": sae_folder(w), "site": None, "device": "cpu"}),
    "sae.reconstruction": lambda w: (wb.sae.reconstruction, {"trace": w.trace, "sae": w.sae}),
    "sae.site_of": lambda w: (wb.sae.site_of, {"name": "blocks.2.hook_resid_post"}),
    "sae.splice_cost": lambda w: (wb.sae.splice_cost, {"model": w.model, "trace": w.short, "sae": w.sae}),
    # circuits
    "circuits.expert_logit_effects": lambda w: (
        wb.circuits.expert_logit_effects,
        {"model": w.model, "layer": 1, "expert": 2, "neurons": [3], "k": 2, "tokens": [1, 2, 3]},
    ),
    "circuits.ov_circuit": lambda w: (
        wb.circuits.ov_circuit,
        {"model": w.model, "layer": 1, "head": 2, "k": 2, "tokens": [1, 2]},
    ),
    "circuits.qk_circuit": lambda w: (
        wb.circuits.qk_circuit,
        {"model": w.model, "layer": 1, "head": 2, "distance": 3, "k": 2, "tokens": [1, 2]},
    ),
    "circuits.qk_distance": lambda w: (
        wb.circuits.qk_distance,
        {"model": w.model, "distances": [1, 2], "tokens": [1, 2]},
    ),
    "circuits.router_tokens": lambda w: (
        wb.circuits.router_tokens,
        {"model": w.model, "layer": 1, "k": 2, "tokens": [1, 2]},
    ),
    "circuits.sink_logits": lambda w: (wb.circuits.sink_logits, {"model": w.model, "keys": 3}),
    # statistics
    "statistics.auroc": lambda w: (wb.statistics.auroc, {"scores": [1.0, 2.0], "truth": [False, True]}),
    "statistics.benjamini_hochberg": lambda w: (wb.statistics.benjamini_hochberg, {"p": [0.1, 0.2]}),
    "statistics.bootstrap_interval": lambda w: (
        wb.statistics.bootstrap_interval,
        {
            "statistic": lambda rows: float(rows.mean()),
            "n": 4,
            "clusters": [1, 1, 2, 3],
            "level": 0.9,
            "seed": 3,
            "resamples": 5,
        },
    ),
    "statistics.entropy": lambda w: (wb.statistics.entropy, {"counts": [[3, 4]], "axis": 1, "correct": False}),
    "statistics.jensen_shannon": lambda w: (wb.statistics.jensen_shannon, {"a": [1, 2], "b": [2, 1], "axis": 0}),
    "statistics.mean_interval": lambda w: (
        wb.statistics.mean_interval,
        {"values": [1.0, 2.0, 3.0], "clusters": ["a", "b", "b"], "level": 0.9, "seed": 3, "resamples": 5},
    ),
    "statistics.minimum_detectable_effect": lambda w: (
        wb.statistics.minimum_detectable_effect,
        {"n": 9, "proportion": 0.3, "power": 0.7, "level": 0.9},
    ),
    "statistics.mutual_information": lambda w: (
        wb.statistics.mutual_information,
        {"x": [1, 2, 1], "y": ["a", "b", "a"], "condition": [1, 1, 2]},
    ),
    "statistics.shuffled_mutual_information": lambda w: (
        wb.statistics.shuffled_mutual_information,
        {
            "x": [1, 2, 1],
            "y": ["a", "b", "a"],
            "condition": [1, 1, 2],
            "clusters": [1, 2, 2],
            "n_shuffles": 2,
            "seed": 3,
        },
    ),
    "statistics.sign_flip_test": lambda w: (
        wb.statistics.sign_flip_test,
        {"differences": [1.0, 2.0], "seed": 3, "resamples": 5},
    ),
    "statistics.westfall_young": lambda w: (
        wb.statistics.westfall_young,
        {"differences": [[1.0], [2.0]], "seed": 3, "resamples": 5},
    ),
    "statistics.wilson_interval": lambda w: (wb.statistics.wilson_interval, {"hits": 2, "n": 4, "level": 0.9}),
    # views
    "views.compare": lambda w: (
        wb.views.compare,
        {
            "trace": w.trace,
            "other": w.short,
            "lanes": ["logprob"],
            "names": ("a", "b"),
            "scale": "shown",
            "window": (0, 9),
            "selected": 3,
        },
    ),
    "views.heads": lambda w: (
        wb.views.heads,
        {"trace": w.trace, "layer": 1, "head": 2, "beside": (0, 1), "window": (0, 9), "selected": 3},
    ),
    "views.lens": lambda w: (wb.views.lens, {"trace": w.trace, "window": (0, 9), "selected": 3}),
    "views.routing": lambda w: (wb.views.routing, {"trace": w.short, "layer": 2, "window": (0, 9), "selected": 3}),
    "views.score_sheet": lambda w: (
        wb.views.score_sheet,
        {
            "trace": w.trace,
            "lanes": ["logprob"],
            "forced_answer": None,
            "drift": None,
            "arcs": None,
            "scale": "shown",
            "window": (0, 9),
            "selected": 3,
        },
    ),
    "views.steps": lambda w: (
        wb.views.steps,
        {"trace": w.trace, "arrays": step_array(w), "layer": 1, "window": (0, 9), "selected": 3},
    ),
    "views.summary": lambda w: (wb.views.summary, {"store": w.store, "frame": w.store.find(), "selected": 0}),
    "views.tokens": lambda w: (
        wb.views.tokens,
        {"trace": w.trace, "values": w.trace["entropy"], "window": (0, 9), "selected": 3},
    ),
    "views.weights": lambda w: (
        wb.views.weights,
        {
            "trace": w.trace,
            "sinks": wb.circuits.sink_logits(w.model),
            "routers": (),
            "experts": (),
            "window": (0, 9),
            "selected": 3,
        },
    ),
    "views.View.to_html": lambda w: (w.view.to_html, {"path": "page.html"}),
    "views.View.selected": lambda w: (lambda value: setattr(w.view, "selected", value), {"value": 3}),
    # figures
    "figures.Arcs": lambda w: (
        wb.figures.Arcs,
        {"source": [1], "target": [2], "weight": [0.5], "name": "a", "color": 1},
    ),
    "figures.Arcs.paths": lambda w: (
        lambda points: list(wb.figures.Arcs(source=[1], target=[2], weight=[0.5]).paths(points)),
        {"points": 3},
    ),
    "figures.Axis": lambda w: (
        wb.figures.Axis,
        {
            "label": "a",
            "low": 0.0,
            "high": 2.0,
            "ticks": [(1.0, "b")],
            "whole": False,
            "flipped": False,
            "hidden": False,
            "small": False,
        },
    ),
    "figures.Bars": lambda w: (
        wb.figures.Bars,
        {"x": [1], "y": [2], "low": [1], "high": [3], "base": [0], "width": 0.5, "name": "a", "color": 1},
    ),
    "figures.Blocks": lambda w: (
        wb.figures.Blocks,
        {"start": [1], "stop": [2], "text": ["a"], "colors": [1], "name": "a"},
    ),
    "figures.Cells": lambda w: (
        wb.figures.Cells,
        {"values": [[1.0]], "low": 0.0, "high": 2.0, "scale": "mass", "label": "a", "written": True, "name": "a"},
    ),
    "figures.Figure": lambda w: (
        wb.figures.Figure,
        {
            "panels": [wb.figures.Panel(marks=[wb.figures.Rule(at=1.0)])],
            "title": "a",
            "note": "b",
            "width": 90.0,
            "height": 60.0,
            "columns": 1,
            "rows": [1.0],
        },
    ),
    "figures.Figure.image": lambda w: (w.figure.image, {"format": "svg"}),
    "figures.Figure.numbers": lambda w: (w.figure.numbers, {}),
    "figures.Figure.plotly": lambda w: (w.figure.plotly, {}),
    "figures.Figure.to_json": lambda w: (w.figure.to_json, {}),
    "figures.Line": lambda w: (
        wb.figures.Line,
        {"x": [1], "y": [2], "low": [1], "high": [3], "name": "a", "color": 1, "dashed": True},
    ),
    "figures.Panel": lambda w: (
        wb.figures.Panel,
        {"marks": [wb.figures.Rule(at=1.0)], "x": wb.figures.Axis(), "y": wb.figures.Axis(), "title": "a"},
    ),
    "figures.Points": lambda w: (
        wb.figures.Points,
        {"x": [1], "y": [2], "low": [1], "high": [3], "name": "a", "color": 1, "shape": "ring", "text": ["b"]},
    ),
    "figures.Rule": lambda w: (wb.figures.Rule, {"at": 1.0, "axis": "x", "text": "a", "name": "b"}),
    "figures.above": lambda w: (
        wb.figures.above,
        {"*figures": [w.figure], "title": "a", "note": "b", "width": 90.0, "height": 60.0},
    ),
    "figures.beside": lambda w: (
        wb.figures.beside,
        {"*figures": [w.figure], "title": "a", "note": "b", "width": 90.0, "height": 60.0},
    ),
    "figures.bars": lambda w: (wb.figures.bars, drawn(w) | {"by": "step", "null": 0.5}),
    "figures.line": lambda w: (wb.figures.line, drawn(w) | {"by": "step", "null": 0.5}),
    "figures.stacked": lambda w: (
        wb.figures.stacked,
        {
            "array": w.array(3, 3),
            "by": "step",
            "xlabel": "x",
            "ylabel": "y",
            "title": "a",
            "note": "b",
            "width": 90.0,
            "height": 60.0,
        },
    ),
    "figures.dose": lambda w: (
        wb.figures.dose,
        {
            "effect": doses(),
            "xlabel": "x",
            "ylabel": "y",
            "title": "a",
            "note": "b",
            "width": 90.0,
            "height": 60.0,
        },
    ),
    "figures.heatmap": lambda w: (
        wb.figures.heatmap,
        {
            "array": w.array(3, 3),
            "marked": np.eye(3),
            "marked_name": "a",
            "written": True,
            "low": 0.0,
            "high": 2.0,
            "xlabel": "x",
            "ylabel": "y",
            "title": "a",
            "note": "b",
            "width": 90.0,
            "height": 60.0,
        },
    ),
    "figures.provenance": lambda w: (wb.figures.provenance, {"path": w.picture}),
    "figures.save": lambda w: (
        wb.figures.save,
        {"figure": w.figure, "path": "new.svg", "source": w.short, "code": __file__, "parquet": False},
    ),
    "figures.scatter": lambda w: (
        wb.figures.scatter,
        {
            "x": w.array(3),
            "y": w.array(3),
            "groups": ["a", "b", "b"],
            "text": ["c", "d", "e"],
            "xlabel": "x",
            "ylabel": "y",
            "title": "a",
            "note": "b",
            "width": 90.0,
            "height": 60.0,
        },
    ),
    "figures.step_matrix": lambda w: (
        wb.figures.step_matrix,
        {
            "effect": w.array(3, 3),
            "texts": ["a", "b", "c"],
            "truth": np.eye(3),
            "strongest": 2,
            "title": "a",
            "note": "b",
            "width": 90.0,
            "height": 60.0,
        },
    ),
    "figures.strip": lambda w: (
        wb.figures.strip,
        {
            "lanes": {"a": xr.DataArray(w.trace["entropy"], dims="pos")},
            "trace": w.trace,
            "where": slice(0, 9),
            "title": "a",
            "note": "b",
            "width": 90.0,
            "height": 60.0,
        },
    ),
    # hooks
    "hooks.all_points": lambda w: (wb.hooks.all_points, {"n_layers": 2}),
    "hooks.at_layer": lambda w: (wb.hooks.at_layer, {"point": "blocks.*.hook_resid_post", "layer": 3}),
    "hooks.axes": lambda w: (wb.hooks.axes, {"name": "blocks.0.attn.hook_pattern"}),
    "hooks.expand": lambda w: (wb.hooks.expand, {"record": "residuals", "n_layers": 2}),
    "hooks.full_name": lambda w: (wb.hooks.full_name, {"name": "pattern", "layer": 3}),
    "hooks.layer_of": lambda w: (wb.hooks.layer_of, {"name": "blocks.12.attn.hook_z"}),
    "hooks.match": lambda w: (wb.hooks.match, {"glob": "blocks.*.hook_attn_out", "n_layers": 2}),
    "hooks.point_of": lambda w: (wb.hooks.point_of, {"name": "blocks.12.attn.hook_z"}),
    "hooks.short_name": lambda w: (wb.hooks.short_name, {"name": "blocks.12.attn.hook_z"}),
    # interop
    "interop.circuit_tracer.read_graph": lambda w: (wb.interop.circuit_tracer.read_graph, {"path": GRAPH}),
    "interop.circuit_tracer.step_edges": lambda w: (
        wb.interop.circuit_tracer.step_edges,
        {"graph": graph(w), "trace": w.short, "segments": w.segments},
    ),
    "interop.inif.to_inif": lambda w: (wb.interop.inif.to_inif, {"traces": [w.short], "summaries": ["logprob"]}),
    "interop.inif.save_inif": lambda w: (
        wb.interop.inif.save_inif,
        {"traces": [w.short], "path": "new.json", "summaries": ["logprob"]},
    ),
    "interop.nnsight.path": lambda w: (wb.interop.nnsight.path, {"name": "blocks.3.hook_mlp_out"}),
    "interop.xarray_tables.to_xarray": lambda w: (
        wb.interop.xarray_tables.to_xarray,
        {"trace": w.short, "names": ["logprob"]},
    ),
    "interop.xarray_tables.from_xarray": lambda w: (
        wb.interop.xarray_tables.from_xarray,
        {"data": wb.interop.xarray_tables.to_xarray(w.short)},
    ),
    "interop.xarray_tables.to_pandas": lambda w: (
        wb.interop.xarray_tables.to_pandas,
        {"trace": w.short, "what": "steps"},
    ),
    "interop.xarray_tables.to_parquet": lambda w: (
        wb.interop.xarray_tables.to_parquet,
        {"trace": w.short, "what": "steps", "path": "new.parquet"},
    ),
}

# Public, and without arguments of ours to check: they need other libraries' models, and their own tests call them.
ELSEWHERE = {
    "Model.keep": "tests/recording/test_interrupts.py",
    "Model.keep_many": "tests/recording/test_many.py",
    "interop.nnsight.record": "tests/interop/test_nnsight.py",
    "interop.nnsight.wrap": "tests/interop/test_nnsight.py",
    "interop.transformer_lens.record": "tests/interop/test_transformer_lens.py",
    "interop.transformer_lens.from_cache": "tests/interop/test_transformer_lens.py",
    "interop.transformer_lens.to_cache": "tests/interop/test_transformer_lens.py",
    "interop.transformers.record": "tests/interop/test_transformers.py",
}
GRAPH = Path(__file__).parent / "interop" / "circuit_graph.json"


def labels(w: World) -> list[list[str]]:
    return [[("a", "b")[i % 2] for i in range(len(trace))] for trace in (w.trace, w.other)]


def chain(w: World) -> list[Any]:
    return wb.steps(w.short)[:1]


def step_array(w: World) -> xr.DataArray:
    n = len(wb.steps(w.trace))
    return xr.DataArray(np.ones((2, n, n)), dims=("layer", "step", "key_step"))


def drawn(w: World) -> Arguments:
    array = w.array(3, 3)
    texts = {"null_name": "a null", "xlabel": "x", "ylabel": "y", "title": "a", "note": "b"}
    return {"array": array, "low": array - 1, "high": array + 1} | texts | {"width": 90.0, "height": 60.0}


def doses() -> xr.Dataset:
    lines = {"random": (("control", "scale"), np.ones((2, 2))), "unrelated": (("contrast", "scale"), np.zeros((1, 2)))}
    return xr.Dataset({"steered": ("scale", [0.1, 0.2])} | lines, {"scale": [0.0, 1.0]})


def graph(w: World) -> xr.Dataset:
    nodes = {"kind": ["token", "token"], "pos": [20, 30]}
    data = {name: ("node", values) for name, values in nodes.items()}
    data |= {name: ("edge", values) for name, values in {"source": [0], "target": [1], "weight": [0.5]}.items()}
    return xr.Dataset(data, {"token": ("pos", np.array(w.short.str_tokens, object))})


def adapter(w: World) -> Path:
    """A LoRA of one matrix, in PEFT's format."""
    folder = w.folder / "adapter"
    if not folder.exists():
        folder.mkdir()
        settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        d_q = w.model.config.n_heads * w.model.config.d_head
        name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        tensors = {name.format(i, "A"): torch.ones(1, w.model.config.d_model) for i in range(w.model.config.n_layers)}
        tensors |= {name.format(i, "B"): torch.ones(d_q, 1) for i in range(w.model.config.n_layers)}
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def sae_folder(w: World) -> Path:
    """An SAE in SAELens's format."""
    folder = w.folder / "sae"
    if not folder.exists():
        folder.mkdir()
        settings = {"architecture": "standard", "metadata": {"hook_name": "blocks.2.hook_resid_post"}}
        (folder / "cfg.json").write_text(json.dumps(settings))
        tensors = {"W_enc": torch.ones(4, 6), "b_enc": torch.ones(6), "W_dec": torch.ones(6, 4), "b_dec": torch.ones(4)}
        save_file(tensors, folder / "sae_weights.safetensors")
    return folder


RECORDS = {"statistics.Interval"}  # results, which only workbench's functions make

# Names in VALUES that belong together.
TEXT = {"a text", "a null character", "an escape sequence", "np.str_"}
ANY_TEXT = {"a text", "an empty text", "a null character", "an escape sequence", "np.str_"}
PATH = {"a text", "an escape sequence", "bytes", "np.str_"}
FLAG = {"True", "np.True_"}
EMPTY = {"an empty list", "an iterator", "an empty array"}
STOP = (
    EMPTY
    | {"a text", "an empty text", "a null character", "an escape sequence", "zero", "['a']", "(1, 2, 3)", "a set"}
    | {"an array of texts", "np.str_"}
)
FINITE = {"1.5", "-1.5", "1e-310", "zero", "minus a million", "a trillion"}
AT_LEAST_0 = {"1.5", "1e-310", "zero", "a trillion"}
ABOVE_0 = {"1.5", "1e-310", "a trillion"}
WHOLE = {"zero", "a trillion"}

# Function and argument (or "*" for every function) -> the names in VALUES that are allowed there.
VALID: dict[str, set[str]] = {
    "*.clusters": {"None"},
    "*.color": {"zero"},
    "*.expert": {"zero"},
    "*.feature": {"zero"},
    "*.head": {"zero"},
    "*.height": {"None"},
    "*.layer": {"zero"},
    "*.level": {"1e-310"},
    "*.note": ANY_TEXT,
    "*.positions": {"None", "(1, 2, 3)"},
    "*.prompt": TEXT,
    "*.reasoning": {"None"},
    "*.record": EMPTY | {"an empty text"},
    "*.resume": PATH | {"None"},
    "*.segments": {"None"},
    "*.selected": {"None", "zero"},
    "*.temperature": AT_LEAST_0,
    "*.title": ANY_TEXT,
    "*.to": PATH | {"None"},
    "*.window": {"None"},
    "Model.dtype": {"None"},
    "Model.device": {"None"},
    "Model.tokenizer": {"None"},
    "Model.edit.fn": {"a function", "a type"},
    "Model.edit.positions": WHOLE | {"a set"},
    "Model.patch.positions": WHOLE | {"a set"},
    "Model.check_prompt.tokens": {"(1, 2, 3)"},
    "Model.check_prompt.max_tokens": {"zero"},
    "Model.estimate.prompt": {"[[1, 2]]", "(1, 2, 3)"},
    "Model.estimate.max_tokens": {"zero"},
    "Model.generate.prompt": {"[[1, 2]]", "(1, 2, 3)"},
    "Model.generate.top_p": {"1e-310"},
    "Model.generate.seed": WHOLE | {"minus a million"},
    "Model.generate.stop": STOP,
    "Model.generate.budget": AT_LEAST_0 | {"None", "inf", "10**400"},
    "Model.generate_many.prompts": {"[[1, 2]]"},
    "Model.generate_many.top_p": {"1e-310"},
    "Model.generate_many.seed": WHOLE | {"minus a million"},
    "Model.generate_many.stop": STOP,
    "Model.generate_many.budget": AT_LEAST_0 | {"None", "inf", "10**400"},
    "Model.generate_many.max_rows": {"a trillion"},
    "Model.generate_many.ordered": FLAG,
    "Model.trace.prompt": {"[[1, 2]]", "(1, 2, 3)"},
    "Model.trace.written": {"None"},
    "Model.trace.calls": {"None", "an empty list"},
    "Model.trace.follows": {"None"},
    "Model.trace.budget": AT_LEAST_0 | {"None", "inf", "10**400"},
    "Model.forward.tap": {"None"},
    "Model.forward.cache": {"None"},
    "Model.forward_from.tap": {"None"},
    "Model.forward_from.cache": {"None"},
    "Model.render.prompt": {"an empty list", "[[1, 2]]", "(1, 2, 3)", "an iterator"},
    "Model.to_tokens.prompt": {"an empty list", "[[1, 2]]", "(1, 2, 3)", "an iterator"},
    "Model.with_adapter.scale": FINITE,
    "Store.folder": PATH,
    "Store.find.text": ANY_TEXT - {"an empty text"} | {"None"},
    "Store.find.prompt": ANY_TEXT | EMPTY - {"an iterator"} | {"None", "(1, 2, 3)"},
    "Store.find.edit": ANY_TEXT - {"an empty text"} | {"None"},
    "Store.find.score": {"None", "an empty dict", "a dict"},
    "Store.find.**columns": FINITE | EMPTY - {"an iterator"} | {"None", "[None]", "[1.5]", "a set"},
    "Store.score.name": ANY_TEXT - {"an empty text"},
    "Store.score.value": FINITE | FLAG,
    "Store.score.task": ANY_TEXT,
    "Store.score.sample": ANY_TEXT,
    "Store.score.effort": ANY_TEXT | {"None"},
    "Store.score.repeat": WHOLE,
    "Store.sql.parameters": {"[None]", "[1.5]", "[True]", "['a']", "[nan]"},
    "Store.to_parquet.path": PATH,
    "Store.verify.sample": WHOLE | {"None"},
    "Store.verify.seed": WHOLE,
    "Trace.array.layer": {"None", "zero"},
    "Trace.find.text": ANY_TEXT - {"an empty text"},
    "Trace.save.path": PATH,
    "Trace.save.overwrite": FLAG,
    "Trace.text.channel": {"None"},
    "Trace.text.role": {"None"},
    "Trace.text.turn": {"None", "zero"},
    "ablate.head": {"a trillion", "(1, 2, 3)", "a set"},
    "ban.expert": {"a trillion", "(1, 2, 3)", "a set"},
    "chat.user": TEXT | {"None"},
    "chat.system": TEXT | {"None"},
    "chat.developer": TEXT | {"None"},
    "chat.tools": EMPTY | {"None"},
    "chat.history": EMPTY | {"None"},
    "chat.date": TEXT | {"None"},
    "chat.keep_thoughts": FLAG,
    "estimate.max_tokens": {"zero"},
    "force.expert": {"a trillion", "(1, 2, 3)", "a set"},
    "force.margin": ABOVE_0,
    "resume.model": {"None"},
    "steer.vector": {"[1.5]", "(1, 2, 3)", "a labeled array"},
    "steer.scale": FINITE,
    "steps.turn": {"zero"},
    "synth.folder": PATH,
    "synth.tokenizer": {"None"},
    "synth.layers": {"None"},
    "synth.seed": WHOLE,
    "trace.top_p": {"1e-310"},
    "trace.seed": WHOLE | {"minus a million"},
    "trace.stop": EMPTY
    | {"a text", "an empty text", "a null character", "an escape sequence", "zero", "['a']", "(1, 2, 3)", "a set"}
    | {"an array of texts", "np.str_"},
    "verify.findings": {"None"},
    "attention.pattern.head": {"None", "(1, 2, 3)"},
    "attention.pattern.queries": {"None", "zero"},
    "attention.pattern.keys": {"None", "zero"},
    "attention.pattern_band.head": {"None", "(1, 2, 3)"},
    "attention.pattern_band.queries": {"None", "zero"},
    "attention.pattern_pooled.head": {"None", "(1, 2, 3)"},
    "attention.pattern_pooled.size": {"a trillion"},
    "attention.pattern_pooled.sampled": FLAG,
    "routing.expert_load.where": {"None", "(1, 2, 3)"},
    "routing.expert_load.weighted": FLAG,
    "routing.expert_coactivation.where": {"None", "(1, 2, 3)"},
    "routing.expert_transitions.where": {"None", "(1, 2, 3)"},
    "routing.expert_transitions.lift": FLAG,
    "routing.expert_specialization.condition_on_token": FLAG,
    "routing.expert_specialization.seed": WHOLE,
    "routing.fixed_token_routing.layer": {"None"},
    "routing.routing_drift.seed": WHOLE,
    "residual.logit_attribution.token": {"zero"},
    "residual.logit_attribution.other": {"None", "zero"},
    "residual.logit_attribution.pos": {"zero"},
    "residual.massive_activations.min_value": AT_LEAST_0,
    "residual.massive_activations.min_ratio": AT_LEAST_0,
    "residual.resid_trajectory.seed": WHOLE,
    "residual.step_cosine.basis": {"None"},
    "lens.prediction_depth.kl": AT_LEAST_0 | {"None"},
    "lens.train_tuned_lens.prompts": {"[[1, 2]]", "['a']", "an array of texts"},
    "lens.train_tuned_lens.lr": ABOVE_0,
    "lens.train_tuned_lens.seed": WHOLE,
    "lens.lens_kl.prompts": {"[[1, 2]]", "['a']", "an array of texts"},
    "probes.linear_probe.layers": {"None", "(1, 2, 3)"},
    "probes.linear_probe.token_identity": {"None"},
    "probes.linear_probe.l2_penalty": AT_LEAST_0,
    "probes.linear_probe.seed": WHOLE,
    "steering.steering_effect.scales": {"[1.5]", "(1, 2, 3)", "a labeled array"},
    "steering.steering_effect.max_tokens": {"zero"},
    "steering.steering_effect.positions": {"zero", "a set"},
    "steering.steering_effect.n_random_controls": {"zero"},
    "steering.steering_effect.seed": WHOLE,
    "patching.activation_patching.by_head": FLAG,
    "patching.attention_knockout.keys": {"zero", "[[1, 2]]", "(1, 2, 3)"},
    "patching.attention_knockout.layers": {"(1, 2, 3)"},
    "patching.attention_knockout.heads": {"None", "(1, 2, 3)"},
    "patching.attention_knockout.min_distance": {"zero"},
    "patching.head_knockout.answer": {"[[1, 2]]", "(1, 2, 3)"},
    "patching.head_knockout.other": {"None", "zero"},
    "patching.head_knockout.layers": {"(1, 2, 3)"},
    "patching.head_knockout.n_controls": {"zero"},
    "patching.head_knockout.seed": WHOLE,
    "attention.retrieval_scores.answer": {"None"},
    "patching.attention_knockout.n_controls": {"zero"},
    "patching.attention_knockout.seed": WHOLE,
    "patching.expert_knockout.experts": {"None", "(1, 2, 3)"},
    "patching.logit_diff.token": {"zero"},
    "patching.logit_diff.other": {"zero"},
    "patching.path_patching.receivers": {"None"},
    "reasoning.faithfulness.mistake": {"None", "a function"},
    "reasoning.faithfulness.paraphrase": {"None", "a function"},
    "reasoning.faithfulness.filler": TEXT,
    "reasoning.faithfulness.parse_answer": {"None", "a function"},
    "reasoning.faithfulness.seed": WHOLE,
    "reasoning.forced_answer.answers": TEXT | {"None", "['a']", "an array of texts"},
    "reasoning.forced_answer.segments": EMPTY,
    "reasoning.forking_tokens.top_fraction": {"1e-310"},
    "reasoning.resampling.correct_answer": ANY_TEXT | {"None"},
    "reasoning.resampling.parse_answer": {"None", "a function"},
    "verify_model.on_line": {"None", "a function"},
    "reasoning.resampling.seed": WHOLE,
    "reasoning.score_attribution.same_distance": FLAG,
    "reasoning.suppression.split_routing": FLAG,
    "sae.SAE.b_enc": {"None"},
    "sae.SAE.b_dec": {"None"},
    "sae.SAE.threshold": FINITE | {"None", "[1.5]"},
    "sae.SAE.k": {"None"},
    "sae.SAE.subtracts": FLAG,
    "sae.SAE.rescaled": FLAG,
    "sae.SAE.ablate.feature": {"(1, 2, 3)"},
    "sae.SAE.decode.x": {"None"},
    "sae.SAE.splice.error": FLAG,
    "sae.SAE.steer.feature": {"(1, 2, 3)"},
    "sae.SAE.steer.value": FINITE,
    "sae.load_sae.site": {"None"},
    "circuits.expert_logit_effects.neurons": {"None", "(1, 2, 3)"},
    "circuits.expert_logit_effects.k": {"a trillion"},
    "circuits.expert_logit_effects.tokens": {"None", "(1, 2, 3)"},
    "circuits.ov_circuit.k": {"a trillion"},
    "circuits.ov_circuit.tokens": {"None", "(1, 2, 3)"},
    "circuits.qk_circuit.distance": {"zero"},
    "circuits.qk_circuit.k": {"a trillion"},
    "circuits.qk_circuit.tokens": {"None", "(1, 2, 3)"},
    "circuits.qk_distance.distances": {"(1, 2, 3)"},
    "circuits.qk_distance.tokens": {"None", "(1, 2, 3)"},
    "circuits.router_tokens.k": {"a trillion"},
    "circuits.router_tokens.tokens": {"None", "(1, 2, 3)"},
    "circuits.sink_logits.keys": {"None", "a trillion"},
    "statistics.auroc.scores": {"[[1, 2]]", "a labeled array"},
    "statistics.benjamini_hochberg.p": {"an empty list", "an empty array"},
    "statistics.bootstrap_interval.seed": WHOLE,
    "statistics.entropy.counts": {"[[1, 2]]"},
    "statistics.entropy.axis": {"zero"},
    "statistics.entropy.correct": FLAG,
    "statistics.jensen_shannon.a": {"a labeled array"},
    "statistics.jensen_shannon.b": {"a labeled array"},
    "statistics.jensen_shannon.axis": {"zero"},
    "statistics.mean_interval.values": {"(1, 2, 3)"},
    "statistics.mean_interval.clusters": {"(1, 2, 3)"},
    "statistics.mean_interval.seed": WHOLE,
    "statistics.minimum_detectable_effect.n": {"a trillion"},
    "statistics.minimum_detectable_effect.proportion": {"1e-310", "zero"},
    "statistics.minimum_detectable_effect.power": {"1e-310"},
    "statistics.mutual_information.x": {"(1, 2, 3)"},
    "statistics.mutual_information.y": {"(1, 2, 3)"},
    "statistics.mutual_information.condition": {"None", "(1, 2, 3)"},
    "statistics.shuffled_mutual_information.x": {"(1, 2, 3)"},
    "statistics.shuffled_mutual_information.y": {"(1, 2, 3)"},
    "statistics.shuffled_mutual_information.condition": {"None", "(1, 2, 3)"},
    "statistics.shuffled_mutual_information.clusters": {"(1, 2, 3)"},
    "statistics.shuffled_mutual_information.seed": WHOLE,
    "statistics.sign_flip_test.differences": {"(1, 2, 3)", "a labeled array"},
    "statistics.sign_flip_test.seed": WHOLE,
    "statistics.westfall_young.differences": {"(1, 2, 3)", "a labeled array"},
    "statistics.westfall_young.seed": WHOLE,
    "statistics.wilson_interval.hits": {"zero"},
    "statistics.wilson_interval.n": {"a trillion"},
    "views.compare.lanes": EMPTY,
    "views.compare.names": {"None", "an array of texts"},
    "views.heads.layer": {"None"},
    "views.routing.layer": {"None"},
    "views.score_sheet.lanes": EMPTY | {"None"},
    "views.score_sheet.forced_answer": {"None"},
    "views.score_sheet.drift": {"None"},
    "views.score_sheet.arcs": {"None"},
    "views.steps.arrays": {"None"},
    "views.steps.layer": {"None"},
    "views.summary.frame": {"None"},
    "views.tokens.values": {"None"},
    "views.weights.routers": EMPTY,
    "views.weights.experts": EMPTY,
    "views.View.to_html.path": PATH,
    "views.View.selected.value": {"None", "zero", "an empty dict", "a dict"},
    "figures.Arcs.source": {"[1.5]"},
    "figures.Arcs.target": {"[1.5]"},
    "figures.Arcs.weight": {"[1.5]"},
    "figures.Arcs.name": ANY_TEXT,
    "figures.Axis.label": ANY_TEXT,
    "figures.Axis.low": {"None", "1.5", "-1.5", "1e-310", "zero", "minus a million"},
    "figures.Axis.high": ABOVE_0 | {"None"},
    "figures.Axis.ticks": EMPTY | {"None"},
    "figures.Axis.whole": FLAG,
    "figures.Axis.flipped": FLAG,
    "figures.Axis.hidden": FLAG,
    "figures.Axis.small": FLAG,
    "figures.Bars.x": {"[1.5]"},
    "figures.Bars.y": {"[1.5]", "[nan]"},
    "figures.Bars.low": {"[1.5]", "[nan]"},
    "figures.Bars.high": {"[1.5]", "[nan]"},
    "figures.Bars.base": {"None", "[1.5]"},
    "figures.Bars.width": ABOVE_0,
    "figures.Bars.name": ANY_TEXT,
    "figures.Blocks.start": {"[1.5]"},
    "figures.Blocks.stop": {"[1.5]"},
    "figures.Blocks.text": EMPTY | {"['a']"},
    "figures.Blocks.colors": EMPTY,
    "figures.Blocks.name": ANY_TEXT,
    "figures.Cells.values": {"[[1, 2]]", "a tensor"},
    "figures.Cells.low": {"None", "1.5", "-1.5", "1e-310", "zero", "minus a million"},
    "figures.Cells.high": AT_LEAST_0 | {"None"},
    "figures.Cells.scale": {"None"},
    "figures.Cells.label": ANY_TEXT,
    "figures.Cells.written": FLAG,
    "figures.Cells.name": ANY_TEXT,
    "figures.Figure.rows": EMPTY | {"[1.5]"},
    "figures.Line.x": {"[1.5]"},
    "figures.Line.y": {"[1.5]", "[nan]"},
    "figures.Line.low": {"[1.5]", "[nan]"},
    "figures.Line.high": {"[1.5]", "[nan]"},
    "figures.Line.name": ANY_TEXT,
    "figures.Line.dashed": FLAG,
    "figures.Points.x": {"[1.5]"},
    "figures.Points.y": {"[1.5]"},
    "figures.Points.low": {"[1.5]", "[nan]"},
    "figures.Points.high": {"[1.5]", "[nan]"},
    "figures.Points.name": ANY_TEXT,
    "figures.Points.text": EMPTY | {"['a']"},
    "figures.Rule.at": FINITE,
    "figures.Rule.text": ANY_TEXT,
    "figures.Rule.name": ANY_TEXT,
    "figures.bars.null_name": ANY_TEXT,
    "figures.bars.xlabel": ANY_TEXT | {"None"},
    "figures.bars.ylabel": ANY_TEXT | {"None"},
    "figures.bars.null": FINITE | {"None", "(1, 2, 3)"},
    "figures.line.null_name": ANY_TEXT,
    "figures.line.xlabel": ANY_TEXT | {"None"},
    "figures.line.ylabel": ANY_TEXT | {"None"},
    "figures.line.null": FINITE | {"None", "(1, 2, 3)"},
    "figures.dose.xlabel": ANY_TEXT,
    "figures.dose.ylabel": ANY_TEXT,
    "figures.stacked.xlabel": ANY_TEXT | {"None"},
    "figures.stacked.ylabel": ANY_TEXT | {"None"},
    "figures.heatmap.xlabel": ANY_TEXT | {"None"},
    "figures.heatmap.ylabel": ANY_TEXT | {"None"},
    "figures.scatter.xlabel": ANY_TEXT | {"None"},
    "figures.scatter.ylabel": ANY_TEXT | {"None"},
    "figures.heatmap.marked": {"None"},
    "figures.heatmap.marked_name": ANY_TEXT,
    "figures.heatmap.written": FLAG,
    "figures.heatmap.low": {"None", "1.5", "-1.5", "1e-310", "zero", "minus a million"},
    "figures.heatmap.high": AT_LEAST_0 | {"None"},
    "figures.save.path": PATH,
    "figures.save.source": EMPTY,
    "figures.save.code": {"None"},
    "figures.save.parquet": FLAG,
    "figures.scatter.groups": {"None"},
    "figures.scatter.text": EMPTY,
    "figures.step_matrix.truth": {"None"},
    "figures.step_matrix.strongest": WHOLE | {"None"},
    "figures.strip.where": {"None"},
    "hooks.at_layer.point": ANY_TEXT,
    "hooks.full_name.layer": {"None"},
    "hooks.layer_of.name": ANY_TEXT,
    "hooks.point_of.name": ANY_TEXT,
    "hooks.short_name.name": ANY_TEXT,
    "interop.circuit_tracer.step_edges.segments": EMPTY,
    "interop.inif.to_inif.summaries": EMPTY,
    "interop.inif.save_inif.path": PATH,
    "interop.inif.save_inif.summaries": EMPTY,
    "interop.xarray_tables.to_xarray.names": EMPTY | {"None"},
    "interop.xarray_tables.to_parquet.path": PATH,
}

# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def called(fn: Callable, arguments: Arguments) -> Any:
    named = {name: value for name, value in arguments.items() if not name.startswith("*")}
    several = [v for name, values in arguments.items() if re.match(r"\*\w", name) for v in values]
    for name, values in arguments.items():
        if name.startswith("**"):
            named |= values
    with time_limit(SECONDS), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return fn(*several, **named)


def allowed(name: str, parameter: str) -> set[str]:
    return VALID.get(f"{name}.{parameter}", set()) | VALID.get(f"*.{parameter}", set())


def outcome(fn: Callable, arguments: Arguments) -> tuple[str, str]:
    """What became of a call: "refused", "accepted" or "untyped", and the message."""
    try:
        value = called(fn, arguments)
    except WorkbenchError as error:
        message = str(error)
        return ("refused" if len(message) >= MIN_CHARACTERS else "untyped"), message
    except BaseException as error:  # TookTooLong too
        return "untyped", f"{type(error).__name__}: {str(error)[:200]}"
    return "accepted", type(value).__name__


def attempts(world: World, name: str, share: int = 1) -> Iterator[tuple[str, str, str, str]]:
    """(argument, name of the value, outcome, message) for wrong values of every argument of a call.

    One in `share` of the values is tried, other ones for each argument.
    """
    folder = Path.cwd()  # the test's own; `in_an_empty_folder` leaves it afterwards
    for argument in CALLS[name](world)[1]:
        for label, value in VALUES.items():
            if crc32(f"{name} {argument} {label}".encode()) % share:
                continue
            os.chdir(mkdtemp(dir=folder))  # some calls write a new file or folder
            fn, arguments = CALLS[name](world)
            if argument.startswith("**"):
                arguments[argument] = dict.fromkeys(arguments[argument], value)
            else:
                arguments[argument] = [value] if argument.startswith("*") else value
            yield argument, label, *outcome(fn, arguments)


COUNTS: Counter[str] = Counter()


def check(world: World, name: str, share: int) -> None:
    problems = []
    called(*CALLS[name](world))
    for argument, label, result, message in attempts(world, name, share):
        COUNTS[result] += 1
        if result == "untyped":
            problems.append(f"{argument}={label}: {message}")
        elif result == "accepted" and label not in allowed(name, argument):
            problems.append(f"{argument}={label} is accepted; if that makes sense, say so in VALID")
        elif result == "refused" and label in VALID.get(f"{name}.{argument}", set()):
            problems.append(f"{argument}={label} is refused although VALID allows it: {message}")
    assert not problems, f"{name}:\n" + "\n".join(problems)


def same(a: Any, b: Any) -> bool:
    """Whether two results are the same, as far as their numbers and texts go."""
    if isinstance(a, wb.Trace):
        return a.id == b.id
    if isinstance(a, xr.DataArray | xr.Dataset):
        return a.identical(b)
    if isinstance(a, wb.sae.SAE):
        return a.digest == b.digest
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    if isinstance(a, Path):
        return a.name == b.name
    if hasattr(a, "bytes"):  # an estimate, which has the free memory too
        return a.bytes == b.bytes
    return type(a) is type(b) and ADDRESS.sub("", repr(a)) == ADDRESS.sub("", repr(b))


def numpy_scalars(value: Any) -> list[Any]:
    """The same number as numpy has it."""
    if isinstance(value, bool):
        return [np.bool_(value)]
    if isinstance(value, int):
        return [np.int64(value), np.array(value)]
    return [np.float64(value), np.array(value)] if isinstance(value, float) else []


def public_names() -> dict[str, Any]:
    """Every public function, and every public method of a public class."""
    found: dict[str, Any] = {}
    for module, name in PUBLIC:
        path = f"{module}.{name}".removeprefix("workbench.")
        value = getattr(import_module(module), name)
        found[path] = value
        if inspect.isclass(value):
            methods = [n for n, m in inspect.getmembers(value, inspect.isfunction) if not n.startswith("_")]
            methods = [n for n in methods if not hasattr(object, n)]  # nnsight gives every object a `save`
            methods = [n for n in methods if len(inspect.signature(getattr(value, n)).parameters) > 1]
            found |= {f"{path}.{method}": value for method in methods}
    return found


def test_every_public_function_has_a_call_here():
    missing = [name for name in public_names() if name not in {*CALLS, *ELSEWHERE, *RECORDS}]
    assert not missing, (
        f"{', '.join(missing)}: add a valid call to CALLS in tests/test_arguments.py (every argument by name), and to "
        f"VALID the values that are allowed; then every argument is tried with every wrong value"
    )


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_of_a_call_is_an_argument_of_the_function(world, name):
    fn, arguments = CALLS[name](world)
    parameters = inspect.signature(fn).parameters.values()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names = {stars.get(p.kind, "") + p.name for p in parameters}
    assert names - {"expert"} == {*arguments} - {"expert"}  # wb.ablate takes head or expert


@pytest.mark.parametrize("name", CALLS)
def test_wrong_values_are_refused(world, name):
    check(world, name, share=24)


@pytest.mark.attack
@pytest.mark.parametrize("name", CALLS)
def test_every_wrong_value_is_refused(world, name, record_property):
    before = Counter(COUNTS)
    check(world, name, share=1 if os.environ.get("WORKBENCH_LONG") else 3)
    for result, outcome in {"refused": "refused", "accepted": "right"}.items():
        record_property("attack", f"arguments\t{outcome}\t{COUNTS[result] - before[result]}")


# A quarter of the functions in the usual run.
SCALAR_CALLS = [name for name in CALLS if os.environ.get("WORKBENCH_LONG") or not crc32(name.encode()) % 4]


@pytest.mark.parametrize("name", SCALAR_CALLS)
def test_numpy_scalars_give_the_results_of_plain_numbers(world, name, tmp_path, monkeypatch):
    fn, plain = CALLS[name](world)
    if not any(map(numpy_scalars, plain.values())):
        return
    expected = called(fn, plain)
    for argument, value in plain.items():
        for scalar in numpy_scalars(value):
            COUNTS["numpy scalars"] += 1
            monkeypatch.chdir(mkdtemp(dir=tmp_path))  # some calls write a new folder
            fn, arguments = CALLS[name](world)
            assert same(called(fn, arguments | {argument: scalar}), expected), f"{argument}={scalar!r}"


def test_what_was_tried(world, measured):
    """Runs last in this file; the numbers are of the tests that ran before it."""
    arguments = sum(len(call(world)[1]) for call in CALLS.values())
    measured(
        f"{len(CALLS)} public functions and methods with {arguments} arguments, {len(VALUES)} wrong values: "
        + ", ".join(f"{count:,} {what}" for what, count in sorted(COUNTS.items()))
    )
    assert not COUNTS["untyped"]
