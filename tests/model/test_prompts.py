"""Accepted prompts, stops and devices; anything else raises a WorkbenchError."""

import itertools
from collections import UserDict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.errors import CheckpointError, HookNameError, PromptError
from workbench.model.prompts import parse

ASK = "What is 1+1?"


@pytest.fixture(scope="module")
def model():
    return wb.Model("pocket")


IDS = [1, 2, 3]
CONTAINERS = {
    "list": IDS,
    "tuple": tuple(IDS),
    "range": range(1, 4),
    "generator": lambda: (i for i in IDS),
    "array": np.array(IDS),
    "small array": np.array(IDS, np.uint16),
    "tensor": torch.tensor(IDS),
    "row of a list": [IDS],
    "row of an array": np.array([IDS]),
    "row of a tensor": torch.tensor([IDS], dtype=torch.int32),
    "list of a tensor": [torch.tensor(IDS)],
    "scalars": [np.int64(1), torch.tensor(2), 3],
    "batch encoding": UserDict(input_ids=[IDS], attention_mask=[[1, 1, 1]]),
    "tensors of a batch encoding": {
        "input_ids": torch.tensor([IDS]),
        "attention_mask": torch.ones(1, 3, dtype=torch.int64),
    },
    "one encoding": {"input_ids": IDS},
    "tokenizers": SimpleNamespace(ids=IDS),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_token_ids_are_accepted_in_every_usual_container(model, container):
    ids = CONTAINERS[container]
    assert model.to_tokens(ids() if callable(ids) else ids) == IDS


def test_the_output_of_a_tokenizer_is_a_prompt(model):
    from transformers import BatchEncoding

    batch = BatchEncoding({"input_ids": [IDS]}, tensor_type="pt")
    assert model.trace(batch, record="").tokens == IDS
    assert model.to_tokens(model.tokenizer._rust.encode("What")) == model.tokenizer.encode("What")


def test_messages_are_a_chat(model):
    question = {"role": "user", "content": ASK}
    reply = {"role": "assistant", "content": "It is 2."}
    for prompt, chat in (
        ([question], wb.chat(ASK)),
        (question, wb.chat(ASK)),
        ({"messages": [question]}, wb.chat(ASK)),
        ([question, reply, question], wb.chat(ASK, history=[question, reply])),
    ):
        assert model.to_tokens(prompt) == model.to_tokens(chat)
    first = [{"role": "system", "content": "Reply."}, {"role": "developer", "content": "Be brief."}]
    assert parse([*first, question]) == wb.chat(ASK, system="Reply.", developer="Be brief.")
    trace = model.trace([question], record="")
    assert trace.tokens == model.to_tokens(ASK) and trace.manifest.notes == model.trace(ASK, record="").manifest.notes


NOT_PROMPTS = {
    "None": (None, "None"),
    "bytes": (b"What", "decode"),
    "bytearray": (bytearray(b"What"), "decode"),
    "memoryview": (memoryview(b"What"), "decode"),
    "floats": ([1.9, 2.2], "entry 0 is 1.9"),
    "a whole float": ([1, 2.0], "entry 1 is 2.0"),
    "digit strings": (["1", "2"], "entry 0 is '1'"),
    "a list of a question": ([ASK], r"entry 0.*for several prompts, run each"),
    "truth values": ([True, False], "entry 0 is True"),
    "ids and None": ([1, None], "entry 1 is None"),
    "array of floats": (np.array([1.0, 2.0]), "float64"),
    "tensor of floats": (torch.tensor([1.0]), "float32"),
    "mask": (torch.tensor([True, False]), "bool"),
    "array of text": (np.array(["1", "2"]), "whole numbers"),
    "array of objects": (np.array([1, None]), "whole numbers"),
    "two rows": (torch.tensor([[1, 2], [3, 4]]), r"shape \(2, 2\)"),
    "two rows of a list": ([[1, 2], [3, 4]], "2 rows"),
    "a scalar": (torch.tensor(5), r"shape \(\)"),
    "three axes": (np.ones((1, 1, 3), int), r"shape \(1, 1, 3\)"),
    "a set": ({1, 2}, "a set"),
    "a number": (7, "a int"),
    "an object": (object(), "a object"),
    "a dict of something": ({"ids": IDS}, "a dict with 'ids'"),
    "an empty dict": ({}, "nothing in it"),
    "padding": ({"input_ids": [[0, 1, 2]], "attention_mask": [[0, 1, 1]]}, "padding"),
    "text as ids": ({"input_ids": ASK}, "not token ids"),
    "a message without content": ([{"role": "user"}], "content"),
    "a message of nobody": ([{"content": ASK}], "role"),
    "two system messages": ([{"role": "system", "content": "a"}] * 2, "system"),
    "a table": (pd.DataFrame([IDS]), "columns"),
    "masked entries": (np.ma.array(IDS, mask=[False, False, True]), "masked"),
    "more than any id": (np.array([2**63], np.uint64), "9223372036854775808"),
    "a sparse tensor": (torch.tensor([IDS]).to_sparse(), "sparse"),
    "a tensor without values": (torch.ones(3, dtype=torch.int64, device="meta"), "meta"),
    "a mask of text": ({"input_ids": IDS, "attention_mask": "111"}, "attention_mask"),
    "a ragged mask": ({"input_ids": IDS, "attention_mask": [[1], [1, 1]]}, "attention_mask"),
    "nothing": ([], "empty"),
    "an empty row": (torch.zeros(1, 0, dtype=torch.int64), "empty"),
    "an empty question": ("", "empty"),
    "a number of 5,000 digits": ([10**5000], "more than 30 digits"),
    "lists in each other": ([[[[[[1]]]]]], "lists or dicts in each other"),
    "no end": (itertools.count(), "entries"),
}


@pytest.mark.parametrize("kind", NOT_PROMPTS)
def test_anything_else_is_a_prompt_error_with_the_reason(model, kind):
    value, reason = NOT_PROMPTS[kind]
    for ask in (model.to_tokens, model.trace, model.generate, model.estimate, lambda p: wb.trace(p, model)):
        with pytest.raises(PromptError, match=reason):
            model.check_prompt(ask(value)) if ask == model.to_tokens else ask(value)


def test_stop_is_one_id_or_several(model):
    first = model.generate(ASK, max_tokens=1, record="").tokens[-1]
    for stop in (first, [first], (first,), {first}, np.array([first]), torch.tensor([first]), np.int64(first)):
        trace = model.generate(ASK, max_tokens=3, record="", stop=stop)
        assert trace.manifest.generation["finish_reason"] == "stop" and len(trace) == trace.prompt_length + 1


@pytest.mark.parametrize(
    "settings",
    [
        {"stop": None},
        {"stop": 1.5},
        {"stop": [None]},
        {"stop": [1.5]},
        {"stop": [True]},
        {"stop": [10**6]},
        {"stop": [-1]},
        {"stop": b"x"},
        {"stop": {"x": 1}},
        {"stop": [b"x"]},
        {"temperature": None},
        {"temperature": "1"},
        {"temperature": [1.0]},
        {"temperature": 1j},
        {"temperature": float("nan")},
        {"temperature": -1},
        {"top_p": None},
        {"top_p": "0.9"},
        {"top_p": float("nan")},
        {"max_tokens": None},
        {"max_tokens": 1.5},
        {"seed": "0"},
    ],
    ids=str,
)
def test_settings_with_invalid_values_are_prompt_errors(model, settings):
    with pytest.raises(PromptError, match=next(iter(settings))):
        model.generate(ASK, **{"max_tokens": 1, "record": "", **settings})


def test_settings_can_be_numbers_of_numpy_and_torch(model):
    trace = model.generate(ASK, max_tokens=np.int64(1), record="", temperature=torch.tensor(0.5), top_p=np.float32(0.5))
    assert {k: trace.manifest.generation[k] for k in ("temperature", "top_p")} == {"temperature": 0.5, "top_p": 0.5}


@pytest.mark.parametrize("device", ["cuda:7", "automatic", "gpu", "", "mps", "mps:0", "meta", "xla", 7, 1.5, ["cpu"]])
def test_an_unavailable_device_is_a_checkpoint_error(device):
    with pytest.raises(CheckpointError, match="device must be 'cpu'"):
        wb.Model("pocket", device=device)


@pytest.mark.parametrize("device", [None, "cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu_is_always_available(device):
    assert wb.Model("pocket", device=device).device == "cpu"


@pytest.mark.parametrize("record", [None, 5, ["residuals", 5], [None], {"residuals": 1}.values()])
def test_record_must_be_names(model, record):
    for ask in (model.trace, model.generate, model.estimate):
        with pytest.raises(HookNameError, match="must be names of"):
            ask(ASK, record=record)
