"""Functions that read something from outside count as new every time, and ordinary ones are recognized again."""

import dataclasses
import functools
import operator
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import workbench as wb
from workbench.edits.fingerprint import fingerprint, identify

mine = types.ModuleType("mine")
mine.SCALE = 2.0  # type: ignore[attr-defined]
NAME = "SCALE"
opened = open
weight = torch.nn.Linear(1, 1)


def written(code: str, **scope) -> types.FunctionType:
    """The function `f` of a program with these globals."""
    names = {"__name__": "program", "torch": torch, "np": np, "F": F, "mine": mine, "NAME": NAME} | scope
    exec(code if code.startswith(("def", "import", "from")) else f"f = lambda x: {code}", names)
    return names["f"]


OUTSIDE = {
    "an argument of the command": "import sys\nf = lambda x: x * float(sys.argv[1])",
    "a table": "import pandas as pd\nf = lambda x: x * pd.read_csv('s.csv').scale[0]",
    "io.open": "import io\nf = lambda x: x * float(io.open('s').read())",
    "a method that opens": "from pathlib import Path\np = Path('s')\nf = lambda x: x * float(p.open().read())",
    "gzip": "import gzip\nf = lambda x: x * float(gzip.open('s').read())",
    "os.read": "import os\nf = lambda x: x * len(os.read(os.open('s', 0), 9))",
    "os.stat": "import os\nf = lambda x: x * os.stat('s').st_size",
    "the time of a file": "import os.path\nf = lambda x: x * os.path.getmtime('s')",
    "linecache": "import linecache\nf = lambda x: x * float(linecache.getline('s', 1))",
    "torch.from_file": "torch.from_file('s', size=3)",
    "the precision of decimal": "import decimal\nf = lambda x: x * decimal.getcontext().prec",
    "np.geterr": "x if np.geterr()['over'] == 'warn' else 0",
    "the default dtype": "x.to(torch.get_default_dtype())",
    "the number of threads": "x * torch.get_num_threads()",
    "an address": "x * (x.data_ptr() % 7)",
    "a module by a name": "x * getattr(mine, NAME)",
    "a module's vars": "x * vars(mine)['SCALE']",
    "a module's dict": "x * mine.__dict__['SCALE']",
    "all of a module": "x * sum(v for k in dir(mine) if isinstance(v := getattr(mine, k), float))",
    "sys.modules": "import sys\nf = lambda x: x * sys.modules['mine'].SCALE",
    "a docstring": "x * len(mine.__doc__ or '')",
    "recursion limit": "import sys\nf = lambda x: x * sys.getrecursionlimit()",
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_what_is_read_from_outside_makes_a_function_new_every_time(attempt, what):
    function = written(OUTSIDE[what])
    attempt.right(lambda: {fingerprint(function) for _ in range(2)}, lambda digests: len(digests) == 2)


def test_an_alias_of_open_and_a_getter_made_outside(attempt):
    for function in (
        written("x * float(rd('s').read())", rd=opened),
        written("x * get(mine)", get=operator.attrgetter(NAME)),
    ):
        attempt.right(lambda function=function: fingerprint(function) != fingerprint(function), lambda new: new)


@pytest.mark.parametrize("value", [functools.partial(F.gelu, approximate="tanh"), torch.nn.GELU(), 2.0, torch.ones(2)])
def test_what_is_put_into_a_library_is_looked_at(attempt, monkeypatch, value):
    function = written("F.gelu(x)")
    before = fingerprint(function)
    monkeypatch.setattr(F, "gelu", value)
    attempt.right(lambda: fingerprint(function), lambda digest: digest != before)


@pytest.mark.parametrize("owner", [torch.Tensor, torch.nn.Linear])
def test_a_number_put_into_a_class_of_torch_is_looked_at(attempt, monkeypatch, owner):
    function = written("x * x.my_scale" if owner is torch.Tensor else "layer.my_scale * x", layer=weight)
    monkeypatch.setattr(owner, "my_scale", 2.0, raising=False)
    before = fingerprint(function)
    monkeypatch.setattr(owner, "my_scale", 3.0)
    attempt.right(lambda: fingerprint(function), lambda digest: digest != before)


@pytest.mark.parametrize(
    "code",
    [
        "torch.nn.Linear(1, 1)(x)",
        "torch.nn.init.orthogonal_(x)",
        "torch.svd_lowrank(x)[0]",
        "F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)",
    ],
)
def test_what_draws_random_numbers_depends_on_the_generator(attempt, code):
    function = written(code)
    torch.manual_seed(0)
    before, again = fingerprint(function), fingerprint(function)
    torch.manual_seed(1)
    attempt.right(lambda: fingerprint(function), lambda digest: before == again != digest)


def test_the_gradient_of_a_tensor_is_looked_at(attempt):
    parameter = torch.nn.Parameter(torch.ones(2))
    function = written("x * p.grad.sum()", p=parameter)
    parameter.grad = torch.ones(2)
    before = fingerprint(function)
    parameter.grad = torch.zeros(2)
    attempt.right(lambda: fingerprint(function), lambda digest: digest != before)


def test_the_kind_of_an_argument_is_looked_at(attempt):
    several, one = (
        written("def f(x, *hook):\n    return x * len(hook)"),
        written("def f(x, hook):\n    return x * len(hook)"),
    )
    attempt.right(lambda: fingerprint(several), lambda digest: digest != fingerprint(one))


@dataclasses.dataclass(frozen=True)
class Scaled:
    factor: float

    def __call__(self, x):
        return x * self.factor


def load(x):
    return x * 2


USUAL = {
    "an attribute with the name of a global": lambda: written("x - x.mean()"),
    "a frozen dataclass": lambda: Scaled(2.0),
    "a function named load": lambda: written("load(x)", load=load),
    "torch's own functions": lambda: written("torch.relu(F.gelu(x)) + np.float32(2)"),
    "a partial": lambda: functools.partial(torch.mul, other=2.0),
}


@pytest.mark.parametrize("what", USUAL)
def test_a_usual_function_is_recognized_again(attempt, what):
    attempt.right(lambda: identify(USUAL[what]()), lambda found: found == identify(USUAL[what]()) and found[1] is None)


def test_a_global_that_the_function_does_not_read_changes_nothing(attempt):
    function = written("x - x.mean()")
    before = fingerprint(function)
    function.__globals__["mean"] = wb
    attempt.right(lambda: fingerprint(function), lambda digest: digest == before)


def test_a_function_that_uses_a_model_is_recognized_until_its_weights_change(attempt):
    model = wb.Model("pocket")
    function = written("x @ model.weights.embed.T", model=model)
    before = attempt.right(lambda: identify(function), lambda found: found == identify(function) and found[1] is None)
    first = model.trace("What is 12+30?", record="")
    model.weights.ln_final.mul_(1.5)
    second = model.trace("What is 12+30?", record="")
    attempt.right(lambda: (first.id != second.id, identify(function) != before), all)
    third = model.trace("What is 12+30?", record="")
    attempt.right(lambda: third.id, lambda trace_id: trace_id == second.id)
