"""The identity of functions: it covers all they depend on, or is new every time."""

import functools
import subprocess
import sys
import threading
import types

import numpy as np
import torch

import workbench as wb
from workbench.edits.fingerprint import fingerprint, identify


class Scale:
    by = 2.0

    def __call__(self, x):
        return x * self.by


class Child(Scale):
    pass


def held(value):
    return lambda x: (x, value)


def test_a_builtin_is_identified_with_the_object_that_it_is_bound_to():
    one, same, zero = (fingerprint(torch.tensor([by]).mul) for by in (1.0, 1.0, 0.0))
    assert one == same != zero


def test_a_class_attribute_is_part_of_an_objects_identity(monkeypatch):
    before = fingerprint(Child()), fingerprint(held(Child))
    assert before == (fingerprint(Child()), fingerprint(held(Child)))
    monkeypatch.setattr(Scale, "by", 3.0)
    assert not {fingerprint(Child()), fingerprint(held(Child))} & {*before}


def test_a_buffer_that_is_not_persistent_is_part_of_a_modules_identity():
    def layer(by):
        module = torch.nn.Identity()
        module.register_buffer("by", torch.tensor(by), persistent=False)
        return module

    assert fingerprint(layer(1.0)) == fingerprint(layer(1.0)) != fingerprint(layer(2.0))


def test_an_attribute_that_the_code_names_is_part_of_a_modules_identity():
    module = types.ModuleType("settings")
    code = "def edit(x): return x * settings.by"
    scope = {"settings": module}
    exec(code, scope)
    digests = []
    for by in (1.0, 1.0, 2.0):
        module.by = by  # pyright: ignore[reportAttributeAccessIssue]
        digests.append(fingerprint(scope["edit"]))
    assert digests[0] == digests[1] != digests[2]


def test_functions_of_a_library_are_identified_by_name_and_what_they_enclose():
    def quiet(by):
        return torch.no_grad()(lambda x: x * by)

    assert identify(torch.nn.functional.relu)[1] is None
    assert fingerprint(quiet(1.0)) == fingerprint(quiet(1.0)) != fingerprint(quiet(2.0))


def test_a_random_generator_is_identified_by_its_state():
    first, second = np.random.default_rng(0), np.random.default_rng(0)
    assert fingerprint(held(first)) == fingerprint(held(second))
    second.normal()
    assert fingerprint(held(first)) != fingerprint(held(second))


def test_what_cannot_be_looked_into_is_new_every_time_and_named():
    for value, reason in ((threading.Lock(), "lock"), ((i for i in ()), "generator")):
        (first, why), (second, _) = identify(held(value)), identify(held(value))
        assert first != second and why and reason in why


def test_shared_and_cyclic_values_are_looked_into_once():
    values: list = [1.0]
    for _ in range(60):
        values = [values, values]
    values.append(values)
    assert fingerprint(held(values)) == fingerprint(held(values))


def test_identities_do_not_depend_on_the_process():
    code = "from tests.edits.test_fingerprint import *; print(*identities())"
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert outputs == {" ".join(identities()) + "\n"}


def identities():
    functions = [Scale(), Child, held({"a", "b", "c"}), lambda x: x in {"a", "b", "c"}, functools.partial(torch.mul, 2)]
    return [fingerprint(fn) for fn in [*functions, wb.ban(3), wb.steer(np.ones(3)), torch.Tensor.relu]]
