"""Edits that share memory or an identity, and arrays of a trace that are changed by accident."""

import asyncio
import collections
import contextlib
import contextvars
import copy
import dataclasses
import enum
import functools
import gc
import io
import itertools
import operator
import pickle
import random
import re
import sys
import threading
import types
import warnings
import weakref

import numpy as np
import pytest
import torch

import workbench as wb
from tests.model.models import some_tokens, tiny
from workbench.edits.fingerprint import fingerprint, identify
from workbench.traces import patterns

TOKENS = some_tokens(12)
POINT = "blocks.1.hook_mlp_out"
EVERYWHERE = "blocks.*.hook_mlp_out"


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def clean(model):
    return model.trace(TOKENS, record="residuals")


def edited(model, fn, where=POINT, record="residuals", **settings):
    with model.edit(where, fn, **settings):
        return model.trace(TOKENS, record=record)


def recorded(trace) -> dict[str, np.ndarray]:
    return {name: np.array(trace.raw(name)) for name in trace.names()}


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[n], right[n], equal_nan=True) for n in left)


# -- finding 2: what an edit returns shares no memory with what is recorded --------------------------------------------


def plus(x, hook):
    return x + float(hook.layer + 1)


def sharing():
    """Functions that compute `plus` and write into their tensors again."""
    memory: dict[str, torch.Tensor] = {}

    def buffer(x):
        return memory.setdefault("buffer", torch.empty_like(x))

    def out(x, hook):
        return torch.add(x, float(hook.layer + 1), out=buffer(x))

    def view_of_a_larger_one(x, hook):
        whole = memory.setdefault("larger", torch.empty(2 * x.numel()))
        return torch.add(x, float(hook.layer + 1), out=whole[: x.numel()].view_as(x))

    def transposed(x, hook):
        whole = memory.setdefault("transposed", torch.empty_like(x.transpose(1, 2).contiguous()))
        whole.copy_((x + float(hook.layer + 1)).transpose(1, 2))
        return whole.transpose(1, 2)

    def from_numpy(x, hook):
        values = memory.setdefault("array", np.empty(x.shape, np.float32))  # pyright: ignore
        values[...] = (x + float(hook.layer + 1)).numpy()  # pyright: ignore
        return torch.from_numpy(values)

    def its_argument(x, hook):
        if "given" in memory:
            memory["given"].zero_()
        memory["given"] = x.add_(float(hook.layer + 1))
        return x

    def data_of_its_argument(x, hook):
        result = x + float(hook.layer + 1)
        if "data" in memory:
            memory["data"].fill_(7)
        memory["data"] = result.data
        return result

    def parameter(x, hook):
        kept = memory.setdefault("parameter", torch.nn.Parameter(torch.empty_like(x), requires_grad=False))
        return torch.add(x, float(hook.layer + 1), out=kept)

    def dlpack(x, hook):
        values = memory.setdefault("dlpack", np.empty(x.shape, np.float32))  # pyright: ignore
        values[...] = (x + float(hook.layer + 1)).numpy()  # pyright: ignore
        return torch.from_dlpack(values)

    return [
        out, view_of_a_larger_one, transposed, from_numpy, its_argument, data_of_its_argument, parameter, dlpack
    ]  # fmt: skip


@pytest.mark.parametrize("fn", sharing(), ids=lambda fn: fn.__name__)
def test_a_result_that_is_written_again_is_recorded_as_it_was(attempt, model, fn):
    expected = recorded(edited(model, plus, EVERYWHERE))
    attempt.right(lambda: recorded(edited(model, fn, EVERYWHERE)), lambda got: same(got, expected))


@pytest.mark.parametrize("positions", [None, 3, [1, 5]], ids=["all", "one", "two"])
def test_a_result_that_is_zeroed_after_the_run_stays_recorded(attempt, model, positions):
    kept = []

    def keeps(x, hook):
        kept.extend([x, y := x + 1.0])
        return y

    trace = edited(model, keeps, positions=positions)
    before = recorded(trace)
    for tensor in kept:
        tensor.zero_()
    attempt.right(lambda: recorded(trace), lambda got: same(got, before))


def test_an_unchanged_result_that_is_zeroed_afterwards_stays_recorded(attempt, model, clean):
    kept = []

    def keeps(x):
        kept.append(x)
        return x

    trace = edited(model, keeps, EVERYWHERE)
    for tensor in kept:
        tensor.zero_()
    attempt.right(lambda: recorded(trace), lambda got: same(got, recorded(clean)))


def test_two_edits_that_share_one_buffer(attempt, model):
    buffer = torch.empty(1, len(TOKENS), model.config.d_model)

    def shared(x):
        return torch.mul(x, 2.0, out=buffer)

    def run(fn):
        with model.edit("blocks.0.hook_mlp_out", fn), model.edit("blocks.0.hook_mlp_out", fn):
            return recorded(model.trace(TOKENS, record="residuals"))

    expected = run(lambda x: x * 2.0)
    attempt.right(lambda: run(shared), lambda got: same(got, expected))


class Wrapped(torch.Tensor):
    pass


UNUSABLE = {
    "complex": lambda x: x + 1j,
    "bool": lambda x: x > 0,
    "sparse": lambda x: x.to_sparse(),
    "compressed rows": lambda x: x[0].to_sparse_csr(),
    "compressed rows of the same shape": lambda x: x.to_sparse_csr(),
    "meta": lambda x: x.to("meta"),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "subclass": lambda x: x.as_subclass(Wrapped),
    "an expanded complex number": lambda x: torch.zeros(1, dtype=torch.complex64).expand(x.shape),
    "a numpy array": lambda x: x.numpy(),
    "a list": lambda x: x.tolist(),
    "another shape": lambda x: x[:, :1],
    "no tensor": lambda x: None,
    "NaN": lambda x: x * torch.nan,
}


@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.filterwarnings("ignore")
def test_a_result_that_is_no_plain_tensor_is_refused(attempt, model, kind):
    attempt.refused(lambda: edited(model, UNUSABLE[kind]), POINT)


@pytest.mark.parametrize(
    "fn",
    [lambda x: x + 0.5, lambda x: x > 2, lambda x: x * 0, lambda x: x - 10, lambda x: x.float()],
    ids=["fractions", "a mask", "one expert twice", "negative", "floats"],
)
def test_expert_indices_must_stay_expert_indices(attempt, model, fn):
    attempt.refused(lambda: edited(model, fn, "blocks.1.mlp.hook_expert_indices", record=""))


@pytest.mark.parametrize(
    ("fn", "equal"),
    [
        (lambda x: x.double() + 1, lambda x: x + 1),
        (lambda x: (x + 1).expand(1, *x.shape[1:]), lambda x: x + 1),
        (lambda x: x.new_ones(1).expand(x.shape), torch.ones_like),
        (lambda x: torch.nn.Parameter(x + 1), lambda x: x + 1),
        (lambda x: x.sign().int(), lambda x: x.sign()),
        (lambda x: torch.view_as_complex(torch.stack([x, x + 1], -1)).conj().imag.neg(), lambda x: x + 1),
    ],
    ids=["double", "expanded", "one element", "parameter", "integers", "lazily negated"],
)
def test_a_result_of_another_layout_is_the_same_edit(attempt, model, fn, equal):
    expected = recorded(edited(model, equal))
    attempt.right(lambda: recorded(edited(model, fn)), lambda got: same(got, expected))


# -- finding 3: two functions that compute different things never have one identity ------------------------------------


class Scale:
    by = 2.0

    def __call__(self, x):
        return x * self.by

    def mul(self, x):
        return x * self.by

    @classmethod
    def of_class(cls, x):
        return x * cls.by

    @staticmethod
    def static(x):
        return x * Scale.by

    @property
    def doubled(self):
        return type(self).by * 2


class Child(Scale):
    pass


class Slots:
    __slots__ = ("by",)

    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by


class Secretive(float):
    def __repr__(self):
        return "a number"


class WithAttributes(list):
    by = 1.0


class Buffered(torch.nn.Module):
    def __init__(self, by, persistent=True, attribute=1.0):
        super().__init__()
        self.register_buffer("by", torch.tensor(float(by)), persistent=persistent)
        self.attribute = attribute

    def forward(self, x):
        return x * self.by * self.attribute


class Fixed(enum.Enum):
    ONE = 1.0
    TWO = 2.0


@dataclasses.dataclass
class Data:
    by: float
    more: list = dataclasses.field(default_factory=list)

    def __call__(self, x):
        return x * self.by


@dataclasses.dataclass(slots=True)
class SlottedData:
    by: float

    def __call__(self, x):
        return x * self.by


settings = types.ModuleType("attack_settings")
settings.by = 1.0  # pyright: ignore
sys.modules["attack_settings"] = settings
Point = collections.namedtuple("Point", "x y")
context = contextvars.ContextVar("attack context", default=1.0)
scalar = 1.0
numbers = [1.0]


def reads_scalar(x):
    return x * scalar


def reads_numbers(x):
    return x * numbers[0]


def reads_module(x):
    return x * settings.by  # pyright: ignore


def reads_class(x):
    return x * Scale.by


def reads_context(x):
    return x * context.get()


def imports_module(x):
    from attack_settings import by  # pyright: ignore

    return x * by


def by_name_as_text(x):
    return x * getattr(settings, "by")  # noqa: B009


def with_default(x, values=[1.0]):  # noqa: B006
    return x * values[0]


def set_to(owner, name, value, fn):
    """The fingerprint of `fn()` while an attribute has a value."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        return fingerprint(fn())
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def varied(owner, name, fn):
    return lambda: [set_to(owner, name, value, fn) for value in (2.0, 3.0)]


def each(make, *values):
    return lambda: [fingerprint(make(value)) for value in (values or (2.0, 3.0))]


def closure(value):
    return lambda x: (x, value)


def on_the_fly(by):
    return type("Made", (), {"by": by, "__call__": lambda self, x: x * self.by})()


def with_base(by):
    return type("Derived", (type("Base", (), {"by": by}),), {"__call__": lambda self, x: x * self.by})()


def with_metaclass(by):
    meta = type("Meta", (type,), {"by": property(lambda cls: by)})
    return meta("OfMeta", (), {"__call__": lambda self, x: x * type(self).by})()


def compiled(source):
    scope: dict = {}
    exec(source, scope)
    return scope["edit"]


def object_array(value):
    array = np.empty(2, object)
    array[:] = [value, "x"]
    return array


def with_state(make, advance):
    first, second = make(), make()
    advance(second)
    return [fingerprint(closure(first)), fingerprint(closure(second))]


def seeded(seed):
    torch.manual_seed(seed)
    return fingerprint(lambda x: x + torch.randn_like(x))


def numpys_seed(seed):
    np.random.seed(seed)  # noqa: NPY002
    return fingerprint(lambda x: x + np.random.normal())  # noqa: NPY002


def cached(by):
    @functools.cache
    def factor():
        return by

    return lambda x: x * factor()


def mutated_function(by):
    def edit(x):
        return x * edit.by  # pyright: ignore

    edit.by = by  # pyright: ignore
    return edit


def partial_method(by):
    class Holder:
        def scaled(self, x, by):
            return x * by

        __call__ = functools.partialmethod(scaled, by=by)

    return Holder()


def cached_property(by):
    class Holder:
        @functools.cached_property
        def by(self):
            return by

        def __call__(self, x):
            return x * self.by

    return Holder()


def descriptor(by):
    class By:
        def __get__(self, instance, owner):
            return by

    class Holder:
        value = By()

        def __call__(self, x):
            return x * self.value

    return Holder()


def hooked(by):
    layer = torch.nn.Identity()
    layer.register_forward_hook(lambda module, given, result: result * by)
    return layer


def wrapped_as_torch(by):
    @functools.wraps(torch.nn.functional.relu)  # takes over the name and the module of a library's function
    def edit(x):
        return x * by

    return edit


def in_no_grad(by):
    return torch.no_grad()(lambda x: x * by)


def cyclic(by):
    values: list = [by]
    values.append(values)
    return closure(values)


def _default(value):
    with_default.__defaults__[0][0] = value  # pyright: ignore
    return fingerprint(with_default)


def _partial_with(by):
    fn = functools.partial(torch.relu)
    fn.by = by  # pyright: ignore
    return fingerprint(fn)


def _in_context(by):
    context.set(by)
    return fingerprint(reads_context)


DIFFERENT = {
    "a builtin bound to a tensor": each(lambda by: torch.tensor([by]).mul),
    "a builtin bound to a list": each(lambda by: [by].__getitem__),
    "a builtin bound to a dict": each(lambda by: {0: by}.get),
    "a method wrapper of a float": each(lambda by: by.__mul__),
    "a class attribute": varied(Scale, "by", lambda: reads_class),
    "a class attribute, read by an instance": varied(Scale, "by", Scale),
    "a class attribute of a base": varied(Scale, "by", Child),
    "a class method": varied(Scale, "by", lambda: Scale.of_class),
    "a static method that names its class": varied(Scale, "by", lambda: Scale.static),
    "a class as the function": varied(Scale, "by", lambda: Scale),
    "a bound method": varied(Scale, "by", lambda: Scale().mul),
    "a bound method of an element of a list": varied(Scale, "by", lambda: [Scale(), Child()][1].mul),
    "an instance in a list": varied(Scale, "by", lambda: closure([Scale()])),
    "a property that reads its class": varied(Scale, "by", lambda: closure(Scale())),
    "a method that was replaced": lambda: [
        set_to(Scale, "mul", fn, Scale) for fn in (lambda self, x: x, lambda self, x: -x)
    ],
    "a class made on the fly": each(on_the_fly),
    "a base made on the fly": each(with_base),
    "a metaclass": each(with_metaclass),
    "slots": each(Slots),
    "a dataclass": each(Data),
    "a dataclass with slots": each(SlottedData),
    "a dataclass's list": each(lambda by: Data(1.0, [by])),
    "a number that hides in its repr": each(lambda by: closure(Secretive(by))),
    "a list with attributes": lambda: [
        set_to(WithAttributes, "by", by, lambda: closure(WithAttributes([1]))) for by in (2.0, 3.0)
    ],
    "members of an enum": each(closure, Fixed.ONE, Fixed.TWO),
    "a module's attribute": varied(settings, "by", lambda: reads_module),
    "a module's attribute, imported inside": varied(settings, "by", lambda: imports_module),
    "a module's attribute, by getattr": varied(settings, "by", lambda: by_name_as_text),
    "an attribute put into torch": varied(torch, "attack_factor", lambda: lambda x: x * torch.attack_factor),  # pyright: ignore
    "a method put into Tensor": lambda: [
        set_to(torch.Tensor, "attack_method", fn, lambda: lambda x: x.attack_method())
        for fn in (lambda x: x + 1, lambda x: x + 2)
    ],
    "a function of torch that was replaced": lambda: [
        set_to(torch, "relu", fn, lambda: lambda x: torch.relu(x)) for fn in (lambda x: x + 1, lambda x: x + 2)
    ],
    "a global": varied(sys.modules[__name__], "scalar", lambda: reads_scalar),
    "an element of a global": varied(sys.modules[__name__], "numbers", lambda: reads_numbers),
    "an attribute of the function": each(mutated_function),
    "a default that was changed": each(_default),
    "a context variable": lambda: [
        contextvars.copy_context().run(_in_context, by) for by in (2.0, 3.0)
    ],
    "a buffer": each(Buffered),
    "a buffer that is not persistent": each(lambda by: Buffered(by, False)),
    "a plain attribute of a module": each(lambda by: Buffered(1, True, by)),
    "a forward hook": each(hooked),
    "a module's training": each(lambda on: torch.nn.Dropout().train(on), True, False),
    "a dropout's probability": each(torch.nn.Dropout, 0.1, 0.2),
    "a buffer of a child": each(lambda by: torch.nn.Sequential(Buffered(by, False))),
    "an object array": each(lambda by: closure(object_array(by))),
    "an object array of tensors": each(lambda by: closure(object_array(torch.tensor(by)))),
    "a structured array": each(lambda by: closure(np.array([(1, by)], "i4,f4"))),
    "a masked array": each(lambda on: closure(np.ma.masked_array([1.0, 2.0], [on, False])), True, False),
    "an array of times": each(lambda unit: closure(np.array([5], f"datetime64[{unit}]")), "s", "D"),
    "texts of numpy": each(lambda text: closure(np.array([text])), "ab", "ac"),
    "a sparse tensor": each(lambda by: closure(torch.tensor([0.0, by]).to_sparse())),
    "a conjugated tensor": lambda: [
        fingerprint(closure(x)) for x in (torch.tensor([1 + 2j]), torch.tensor([1 + 2j]).conj())
    ],
    "a slice of tensors": each(lambda by: closure(slice(torch.tensor([1.00001 * by, 1.0]), None)), 1.0, 1.000001),
    "negative zero": each(closure, 0.0, -0.0),
    "one and True": each(closure, 1, True),
    "a tuple and a list": each(closure, (1, 2), [1, 2]),
    "numbers of 6,000 digits": each(closure, 10**6000, 10**6000 + 1),
    "lone surrogates": each(closure, "\ud800", "\ud801"),
    "the order of a dict": each(closure, {1: 1, 2: 2}, {2: 2, 1: 1}),
    "keys of a default dict": each(lambda by: closure(collections.defaultdict(lambda: by))),
    "a deque": each(lambda by: closure(collections.deque([by]))),
    "a counter": each(lambda by: closure(collections.Counter(a=int(by)))),
    "a named tuple": each(lambda by: closure(Point(1, by))),
    "a namespace": each(lambda by: closure(types.SimpleNamespace(by=by))),
    "a read-only mapping": each(lambda by: closure(types.MappingProxyType({"by": by}))),
    "bytes that can change": each(lambda by: closure(bytearray([int(by)]))),
    "a pattern": each(lambda flag: closure(re.compile("a", flag)), 0, re.IGNORECASE),
    "an item getter": each(operator.itemgetter, 0, 1),
    "a method caller": each(operator.methodcaller, "relu", "sigmoid"),
    "an attribute getter": each(operator.attrgetter, "T", "mT"),
    "a file in memory": lambda: with_state(lambda: io.BytesIO(b"abc"), lambda f: f.read(1)),
    "an iterator of a list": lambda: with_state(lambda: iter([1, 2]), next),
    "a generator of numpy": lambda: with_state(lambda: np.random.default_rng(0), lambda g: g.normal()),
    "a generator of Python": lambda: with_state(lambda: random.Random(0), lambda g: g.random()),
    "a generator of torch": lambda: with_state(torch.Generator, lambda g: torch.rand(1, generator=g)),
    "a generator of numpy's seed": lambda: with_state(
        lambda: np.random.RandomState(0), lambda g: g.normal()
    ),
    "torch's seed": lambda: [seeded(0), seeded(1)],
    "numpy's seed": lambda: [numpys_seed(0), numpys_seed(1)],
    "dropout at another seed": lambda: [
        (torch.manual_seed(seed), fingerprint(torch.nn.Dropout()))[1] for seed in (0, 1)
    ],
    "a cached function": each(cached),
    "a cache with other results": lambda: with_state(lambda: functools.cache(lambda n: scalar), lambda f: f(1)),
    "a partial method": each(partial_method),
    "a cached property": each(cached_property),
    "a descriptor": each(descriptor),
    "a partial": each(lambda by: functools.partial(torch.mul, other=by)),
    "a partial with attributes": lambda: [_partial_with(2.0), _partial_with(3.0)],
    "another library's name": each(wrapped_as_torch),
    "a function in no_grad": each(in_no_grad),
    "a function of numpy.vectorize": each(lambda by: np.vectorize(lambda x: x * by)),
    "a ufunc made of a function": each(lambda by: np.frompyfunc(lambda x: x * by, 1, 1)),
    "a reduction": each(lambda by: functools.partial(functools.reduce, lambda a, b: a * by)),
    "a cyclic list": each(cyclic),
    "what except covers": each(
        compiled,
        "def edit(x):\n try:\n  a = x.foo\n  b = x.bar\n except AttributeError:\n  b = 1\n return b",
        "def edit(x):\n a = x.foo\n try:\n  b = x.bar\n except AttributeError:\n  b = 1\n return b",
    ),
    "a global used by a helper": each(
        compiled,
        "S = 1\ndef h(x): return x * S\ndef edit(x): return h(x)",
        "S = 2\ndef h(x): return x * S\ndef edit(x): return h(x)"
    ),
    "a weak reference": each(lambda member: closure(weakref.ref(member)), Fixed.ONE, Fixed.TWO),
    "a memoryview": lambda: [fingerprint(closure(memoryview(bytes([n])))) for n in (1, 2)],
}  # fmt: skip


@pytest.mark.parametrize("kind", DIFFERENT)
@pytest.mark.filterwarnings("ignore")
def test_different_functions_have_different_identities(attempt, kind):
    attempt.right(DIFFERENT[kind], lambda pair: pair[0] != pair[1])


def deep(n=5000):
    values: list = []
    for _ in range(n):
        values = [values]
    return values


def chained(n=5000):
    node = None
    for _ in range(n):
        node = types.SimpleNamespace(next=node)
    return node


def doubled(n=60):
    values: list = [1.0]
    for _ in range(n):
        values = [values, values]
    return values


def ordinals(n=25):
    values: list[frozenset] = []
    for _ in range(n):
        values.append(frozenset(values))
    return values[-1]


class RaisesDict:
    @property
    def __dict__(self):  # pyright: ignore
        raise ValueError("no")


class RaisesEverywhere:
    def __getattr__(self, name):
        raise ZeroDivisionError(name)

    def __eq__(self, other):
        raise ZeroDivisionError

    def __hash__(self):
        raise ZeroDivisionError

    def __len__(self):
        raise ZeroDivisionError

    def __iter__(self):
        raise ZeroDivisionError

    def __repr__(self):
        raise ZeroDivisionError

    def __reduce_ex__(self, protocol):
        raise ZeroDivisionError

    def __bool__(self):
        raise ZeroDivisionError


class RaisesGetattribute:
    def __getattribute__(self, name):
        raise ZeroDivisionError(name)


class LiesAboutItsClass:
    @property
    def __class__(self):  # pyright: ignore
        return torch.Tensor


class RaisesOnClass:
    @property
    def __class__(self):  # pyright: ignore
        raise ZeroDivisionError


class RaisingMeta(type):
    def __getattribute__(cls, name):
        raise ZeroDivisionError(name)


def with_empty_cell():
    def edit(x):
        try:
            return x * value
        except NameError:
            return x

    value = 1
    del value
    return edit


def cyclic_set():
    node = Scale()
    vars(node)["all"] = frozenset([node])
    return vars(node)["all"]


AWKWARD = {
    "nested 5,000 deep": deep,
    "a chain of 5,000 objects": chained,
    "a list of lists, 2**60 when unfolded": doubled,
    "a dict that holds itself": lambda: (d := {}, d.update(d=d))[0],
    "an object that holds itself": lambda: (s := types.SimpleNamespace(), setattr(s, "s", s))[0],
    "a set that holds itself": cyclic_set,
    "sets of sets, 2**25 when unfolded": ordinals,
    "a raising __dict__": RaisesDict,
    "raising special methods": RaisesEverywhere,
    "a raising __getattribute__": RaisesGetattribute,
    "an object that claims to be a tensor": LiesAboutItsClass,
    "a raising __class__": RaisesOnClass,
    "a raising metaclass": lambda: RaisingMeta("Class", (), {}),
    "an instance with a raising metaclass": lambda: type.__call__(RaisingMeta("Class", (), {})),
    "a generator": lambda: (i for i in range(3)),
    "an iterator that counts": itertools.count,
    "a lock": threading.Lock,
    "a thread's own values": threading.local,
    "an open file": lambda: sys.__stdout__,
    "a frame": sys._getframe,
    "all modules": lambda: sys.modules,
    "globals of this file": globals,
    "a coroutine function": lambda: asyncio.sleep,
    "an event loop's task class": lambda: asyncio.Task,
    "a mock": lambda: __import__("unittest.mock").mock.MagicMock(),
    "a model": lambda: tiny(),
    "an edit": lambda: tiny().edit(POINT, plus).tap,
    "a million numbers": lambda: [float(n) for n in range(1_000_000)],
}


@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.filterwarnings("ignore")
def test_a_function_that_holds_something_awkward_still_runs(attempt, model, clean, kind):
    held = AWKWARD[kind]()

    def edit(x, kept=held):
        return x + 0.0

    attempt.right(lambda: recorded(edited(model, edit)), lambda got: same(got, recorded(clean)), seconds=30)


@pytest.mark.parametrize("awkward", [RaisesEverywhere, RaisesDict], ids=lambda cls: cls.__name__)
def test_a_function_object_that_is_awkward_itself_still_runs(attempt, model, clean, awkward):
    fn = type("Awkward", (awkward,), {"__call__": lambda self, x: x + 0.0})()
    attempt.right(lambda: recorded(edited(model, fn)), lambda got: same(got, recorded(clean)))


def test_an_empty_cell_counts_as_new(attempt, model):
    fn = with_empty_cell()
    attempt.right(lambda: [edited(model, fn, record="").id for _ in range(2)], lambda ids: ids[0] != ids[1])


UNKNOWN = {
    "the clock": "import time\ndef edit(x): return x * time.time()",
    "the clock, imported inside": "def edit(x):\n import time\n return x * time.time()",
    "the clock, as a function": "from time import time\ndef edit(x): return x * time()",
    "the date": "import datetime\ndef edit(x): return x * datetime.datetime.now().day",
    "a file": "def edit(x): return x * float(open('/proc/uptime').read().split()[0])",
    "a file, by its path": "import pathlib\ndef edit(x): return x * len(pathlib.Path('a').read_text())",
    "a file of numpy": "import numpy as np\ndef edit(x): return x * np.load('a.npy')",
    "the environment": "import os\ndef edit(x): return x * float(os.environ['A'])",
    "code in a text": "def edit(x): return eval('x * S')",
    "a global by its name": "def edit(x): return x * globals()['S']",
    "a module that is not loaded": "def edit(x):\n import no_such_module\n return x",
    "an address": "def edit(x): return x * (id(x) % 7)",
    "new random numbers": "import numpy as np\ndef edit(x): return x * np.random.default_rng().normal()",
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_code_that_reads_what_a_digest_cannot_know_counts_as_new(attempt, kind):
    fn = compiled(UNKNOWN[kind])
    attempt.right(lambda: (identify(fn), identify(fn)), lambda pair: pair[0][0] != pair[1][0] and pair[0][1])


def test_identities_are_the_same_in_another_process(attempt):
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "import tests.attack.test_edits as t\n"
        "print(*[t.fingerprint(make()) for make in t.STABLE])"
    )
    digests = {attempt.script(code, env=None).stdout for _ in range(2)}
    assert len(digests) == 1 and len(digests.pop().split()) == len(STABLE)
    attempt.judged("right")


STABLE = [
    Scale, lambda: Scale, lambda: Scale().mul, lambda: Scale.of_class, lambda: Data(2.0), lambda: SlottedData(2.0),
    lambda: Slots(2.0), lambda: closure({"a", "b", "c", "d"}), lambda: closure(Fixed.ONE), lambda: Buffered(2.0),
    lambda: reads_module, lambda: imports_module, lambda: reads_class, lambda: (lambda x: x in {"a", "b", "c"}),
    lambda: torch.relu, lambda: torch.Tensor.relu, lambda: torch.tensor([2.0]).mul, lambda: torch.nn.functional.relu,
    lambda: in_no_grad(2.0), lambda: cached(2.0), lambda: partial_method(2.0), lambda: wrapped_as_torch(2.0),
    lambda: functools.partial(torch.mul, other=2.0), lambda: np.vectorize(plus),
    lambda: closure(np.random.default_rng(0)),
    lambda: closure(re.compile("a")), lambda: closure(collections.deque([1])), lambda: cyclic(2.0), lambda: wb.ban(3),
    lambda: wb.steer(np.ones(4)), lambda: torch.nn.Linear(2, 2).requires_grad_(False).apply(_ones),
]  # fmt: skip


def _ones(layer):
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.ones_(layer.bias)


@pytest.mark.parametrize("at_start", [(True, False)], ids=["on or off"])
def test_state_that_the_run_itself_changes_is_part_of_the_id(attempt, model, at_start):
    class Once:
        def __init__(self, on):
            self.on = on

        def __call__(self, x):
            result = x * 2 if self.on else x + 0
            self.on = False
            return result

    attempt.right(
        lambda: [edited(model, Once(on), EVERYWHERE).id for on in at_start], lambda ids: len(set(ids)) == len(ids)
    )


def test_a_bound_builtin_has_its_own_trace_id(attempt, model):
    attempt.right(
        lambda: [edited(model, torch.tensor([by]).mul, record="").id for by in (1.0, 0.0, 1.0)],
        lambda ids: ids[0] == ids[2] != ids[1],
    )


def sweep(model, metric, path):
    other = list(TOKENS)
    other[5] += 1
    return wb.patching.activation_patching(model, TOKENS, other, metric, resume=path)


def test_a_sweep_with_another_class_attribute_is_not_continued(attempt, model, tmp_path):
    class Answer:
        token = 5

    def metric(logits):
        return logits[..., Answer.token]

    sweep(model, metric, tmp_path / "cells.json")
    attempt.right(lambda: sweep(model, metric, tmp_path / "cells.json").shape[0], lambda n: n == model.config.n_layers)
    Answer.token = 9
    attempt.refused(lambda: sweep(model, metric, tmp_path / "cells.json"), "metric")


def test_a_sweep_with_a_metric_that_cannot_be_identified_says_so(attempt, model, tmp_path):
    tokens = iter(range(100))
    drawn = (next(tokens) for _ in itertools.repeat(0))

    def metric(logits):
        return logits[..., next(drawn) % 9]

    sweep(model, metric, tmp_path / "cells.json")
    attempt.refused(lambda: sweep(model, metric, tmp_path / "cells.json"), "counts as new every time")


def test_a_sweep_under_another_edit_is_not_continued(attempt, model, tmp_path):
    def metric(logits):
        return logits[..., 3]

    for by in (1.0, 0.5):
        with model.edit(POINT, torch.tensor([by]).mul):
            if by == 1.0:
                sweep(model, metric, tmp_path / "cells.json")
            else:
                attempt.refused(lambda: sweep(model, metric, tmp_path / "cells.json"), "edits")
                model.trace(TOKENS, record="")  # an edit that never fires is an error


# -- finding 14: edits stay in their context --------------------------------------------------------------------------


def test_to_thread_inside_an_edit_is_edited(attempt, model):
    async def main():
        with model.edit(POINT, lambda x: x * 0):
            return await asyncio.to_thread(model.trace, TOKENS, record="residuals")

    expected = recorded(edited(model, lambda x: x * 0))
    attempt.right(lambda: asyncio.run(main()), lambda trace: trace.edits and same(recorded(trace), expected))


def test_a_task_that_waits_inside_an_edit_leaves_other_tasks_unedited(attempt, model, clean):
    async def waits(entered, done):
        with model.edit(POINT, lambda x: x * 0):
            entered.set()
            await done.wait()
            return model.trace(TOKENS, record="residuals")

    async def main():
        entered, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(waits(entered, done))
        await entered.wait()
        free = model.trace(TOKENS, record="residuals")
        done.set()
        return free, await task

    attempt.right(
        lambda: asyncio.run(main()),
        lambda pair: same(recorded(pair[0]), recorded(clean)) and not pair[0].edits and len(pair[1].edits) == 1,
    )


def test_a_run_beside_a_suspended_generator_is_unedited(attempt, model, clean):
    def steps():
        with model.edit(POINT, lambda x: x * 0):
            yield model.trace(TOKENS, record="")
            yield model.trace(TOKENS, record="")

    suspended = steps()
    first = next(suspended)
    attempt.right(
        lambda: model.trace(TOKENS, record="residuals"), lambda t: same(recorded(t), recorded(clean)) and not t.edits
    )
    assert first.edits and next(suspended).edits
    suspended.close()


def test_a_generator_that_is_dropped_leaves_no_edit(attempt, model, clean):
    def steps():
        with model.edit(POINT, lambda x: x * 0):
            yield model.trace(TOKENS, record="")

    next(steps())
    gc.collect()
    attempt.right(lambda: model.trace(TOKENS, record="residuals"), lambda t: same(recorded(t), recorded(clean)))


def test_an_edit_of_a_thread_that_ended_does_not_apply_to_later_threads(attempt, model):
    entered, edits = [], []

    def enters():
        entered.append(model.edit(POINT, lambda x: x * 0))
        entered[0].__enter__()

    def runs():
        edits.append(model.trace(TOKENS, record="").edits)

    for target in (enters, runs, runs, runs):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    attempt.right(lambda: edits, lambda found: found == [[], [], []])


def test_an_edit_in_an_exit_stack_of_a_generator_ends_with_it(attempt, model, clean):
    def steps():
        with contextlib.ExitStack() as stack:
            stack.enter_context(model.edit(POINT, lambda x: x * 0))
            yield model.trace(TOKENS, record="")

    assert all(trace.edits for trace in steps())
    attempt.right(lambda: model.trace(TOKENS, record="residuals"), lambda t: same(recorded(t), recorded(clean)))


# -- finding 16: nothing done to an array reaches the trace -----------------------------------------------------------


def quietly(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


def set_writable(array):
    array.flags.writeable = True
    array[...] = 7


def through_the_base(array):
    while array is not None:
        if isinstance(array, np.ndarray) and array.flags.writeable:
            array.reshape(-1).view(np.uint8)[...] = 7
        array = getattr(array, "base", None) if isinstance(array, np.ndarray) else getattr(array, "obj", None)


def through_a_view(array):
    view = np.lib.stride_tricks.as_strided(array, writeable=True)
    view[...] = 7


def through_the_pointer(array):
    import ctypes

    ctypes.memset(array.ctypes.data, 7, array.nbytes)


def through_frombuffer(array):
    view = np.frombuffer(array, np.uint8)
    view.flags.writeable = True
    view[...] = 7


def through_a_memoryview(array):
    memoryview(array).cast("B")[0:8] = b"7" * 8


def through_torchs_frombuffer(array):
    torch.frombuffer(array, dtype=torch.uint8).fill_(7)


def through_the_interface(array):
    class Claims:
        __array_interface__ = array.__array_interface__ | {"data": (array.__array_interface__["data"][0], False)}
        keeps = array

    np.asarray(Claims())[...] = 7


CHANGES = {
    "torch.from_numpy": lambda a: torch.from_numpy(a).fill_(7),
    "torch.as_tensor": lambda a: torch.as_tensor(a).fill_(7),
    "DLPack to torch": lambda a: torch.from_dlpack(a).fill_(7),
    "DLPack to numpy": lambda a: np.from_dlpack(a).fill(7),
    "the writeable flag": set_writable,
    "setflags": lambda a: (a.setflags(write=True), a.fill(7)),
    "the base": through_the_base,
    "a view by strides": through_a_view,
    "the pointer": through_the_pointer,
    "numpy.frombuffer": through_frombuffer,
    "a memoryview": through_a_memoryview,
    "torch.frombuffer": through_torchs_frombuffer,
    "__array_interface__": through_the_interface,
    "out=": lambda a: np.multiply(a, 2, out=a),
    "copyto": lambda a: np.copyto(a, 7),
    "put": lambda a: np.put(a, [0], 7),
    "sort in place": lambda a: a.sort(),
    "+=": lambda a: operator.iadd(a, 1),
    "a reshaped view": lambda a: torch.from_numpy(a.reshape(-1)).fill_(7),
    "a transposed view": lambda a: torch.from_numpy(a.T).fill_(7),
    "byteswap in place": lambda a: a.byteswap(inplace=True),
}


@pytest.fixture(scope="module")
def traces(model, tmp_path_factory):
    """One run in memory, on disk, unpickled and copied."""
    fresh = model.trace(TOKENS, record="everything lens")
    loaded = wb.load(fresh.save(tmp_path_factory.mktemp("traces") / "a.trace"))
    return {
        "fresh": fresh,
        "loaded": loaded,
        "unpickled": pickle.loads(pickle.dumps(fresh)),
        "copied": copy.deepcopy(loaded),
    }


ARRAYS = ("resid_post", ("resid_post", 1), ("resid_pre", 1), "logprob", ("pattern", 0), "lens_kl", "expert_indices")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("source", ["fresh", "loaded"])
def test_nothing_done_to_an_array_reaches_the_trace(attempt, traces, source, change):
    trace = traces[source]
    before = recorded(trace)
    for array in (array for key in ARRAYS for array in (trace[key], trace.raw(key))):
        with contextlib.suppress(ValueError, TypeError, BufferError, RuntimeError):
            quietly(CHANGES[change], array)
    attempt.right(lambda: recorded(trace), lambda after: same(after, before))


@pytest.mark.parametrize("source", ["unpickled", "copied"])
def test_nothing_done_to_an_array_of_a_copy_reaches_it(attempt, traces, source):
    trace = traces[source]
    before = recorded(trace)
    for change in CHANGES.values():
        for array in (array for key in ARRAYS for array in (trace[key], trace.raw(key))):
            with contextlib.suppress(ValueError, TypeError, BufferError, RuntimeError):
                quietly(change, array)
    attempt.right(lambda: recorded(trace), lambda after: same(after, before))


@pytest.mark.parametrize("source", ["fresh", "loaded"])
@pytest.mark.parametrize("change", ["torch.from_numpy", "the base", "the pointer"])
def test_nothing_done_to_the_result_of_an_analysis_reaches_the_trace(attempt, traces, source, change):
    trace = traces[source]
    before = recorded(trace)
    for _ in range(2):  # the second time, what the first has left in a cache
        for array in (
            wb.lens.logit_lens(trace)["kl"].values,
            wb.routing.router_margin(trace).values,
            wb.attention.pattern(trace, layer=0).values,
            wb.attention.sink_mass(trace).values,
            patterns.rows(trace, 0, slice(None))[0],
            patterns.rows(trace, 0, slice(None))[1],
            patterns.view(trace, 0).cells,
        ):
            with contextlib.suppress(ValueError, TypeError, BufferError, RuntimeError):
                quietly(CHANGES[change], array)
    attempt.right(lambda: recorded(trace), lambda after: same(after, before))
    assert np.allclose(patterns.rows(trace, 0, slice(None))[0], trace["pattern", 0])


def test_two_names_that_share_memory_are_handed_out_apart(attempt, traces):
    trace = traces["fresh"]
    arrays = [trace.raw(name) for name in trace.names()]
    attempt.right(
        lambda: [(i, j) for j in range(len(arrays)) for i in range(j) if np.shares_memory(arrays[i], arrays[j])],
        lambda pairs: not pairs,
    )


@pytest.mark.parametrize(
    "change", ["torch.from_numpy", "the writeable flag", "the base", "the pointer", "torch.frombuffer"]
)
def test_nothing_done_to_a_large_array_reaches_the_trace(attempt, clean, change, monkeypatch):
    monkeypatch.setattr("workbench.traces.private_copies.MAPPED_BYTES", 1 << 10)
    n_tokens, d_model = len(clean), clean.config["d_model"]
    n = n_tokens * d_model
    manifest = dataclasses.replace(clean.manifest, tensors={})
    trace = wb.Trace(manifest, {"hook_embed": np.arange(n, dtype=np.float32).reshape(n_tokens, d_model)})
    for _ in range(3):
        with contextlib.suppress(ValueError, TypeError, BufferError, RuntimeError):
            quietly(CHANGES[change], trace.raw("hook_embed"))
    attempt.right(
        lambda: np.array_equal(trace["hook_embed"].ravel(), np.arange(n, dtype=np.float32)), lambda equal: equal
    )


def test_the_lists_of_a_trace_can_be_changed_without_changing_it(attempt, model, clean):
    trace = edited(model, plus)
    before = trace.manifest.content()
    trace.config["layer_types"].clear()
    trace.config["n_layers"] = 0
    trace.edits[0]["points"].clear()
    trace.verification[0]["status"] = "fails"
    trace.tokens.clear()
    trace.str_tokens.clear()
    trace.vocab_text.clear()
    attempt.right(lambda: trace.manifest.content(), lambda after: after == before and trace.verified)


@pytest.mark.parametrize("n", [10_000, 1_000_000])
def test_a_very_long_name_of_a_hook_point_is_refused_at_once(attempt, clean, n):
    attempt.refused(lambda: clean["a" * n], "no hook point matches", seconds=1)


def test_more_positions_than_any_text_has_are_refused_at_once(attempt, model):
    attempt.refused(lambda: model.edit("resid_post", plus, positions=range(10**12)), "positions", seconds=1)


def test_a_nested_tensor_is_refused(attempt, model):
    def nested(x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls them a prototype
            return torch.nested.nested_tensor([x[0]])

    attempt.refused(lambda: edited(model, nested), "a nested tensor")
