"""numba's products equal the reference and are used if there is no library, which the status reports."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.levels import computing_with
from workbench.model.kernels import build, jit, native, reference

pytest.importorskip("numba", reason="numba is not installed, so jit.py is not tested: pip install numba")

TOLERANCE = 4e-7  # of the largest value, for fp32
BF16 = 2**-8  # half a step of bf16, relative
DTYPES = [torch.float32, torch.bfloat16]
ROOT = build.HERE.parents[2]


@pytest.fixture(autouse=True)
def decoding():
    with computing_with("numba"):
        yield
        native._State.broken = ""


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    monkeypatch.delenv(native.VARIABLE, raising=False)
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "none.so")
    native._State.loaded = False
    yield
    monkeypatch.undo()
    native._State.loaded = False
    native.isa()


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(counts, n_out, n_groups, dtype, low=117, high=123):
    """Groups, blocks, scales and bias of experts with `counts` rows; codes and scales start at an odd byte."""
    g = torch.Generator().manual_seed(n_out)
    n = len(counts) * n_out * n_groups
    blocks = torch.randint(0, 256, (16 * n + 1,), generator=g, dtype=torch.uint8)[1:]
    scales = torch.randint(low, high + 1, (n + 1,), generator=g, dtype=torch.uint8)[1:]
    ends = torch.tensor([0, *counts]).cumsum(0).tolist()
    groups = [(e, a, b) for e, (a, b) in enumerate(itertools.pairwise(ends)) if b > a]
    shape = (len(counts), n_out, n_groups)
    return groups, blocks.view(*shape, 16), scales.view(shape), rand(len(counts), n_out, dtype=dtype)


def truth(x, groups, blocks, scales, bias):
    w = reference.dequantize_mxfp4(blocks, scales, dtype=torch.float64)
    return torch.cat([x[a:b].double() @ w[e].T + bias[e].double() for e, a, b in groups])


def close(actual, expected, dtype):
    """True if fp32 is within TOLERANCE of the largest value; bf16 has half a step more."""
    limit = TOLERANCE * expected.abs().max() + (BF16 * expected.abs() if dtype == torch.bfloat16 else 0)
    return bool(((actual.double() - expected).abs() <= limit).all())


SHAPES = [
    (1, 65, [1]),
    (2, 130, [1, 0, 1]),
    (3, 64, [4, 0, 2]),
    (9, 70, [3, 1, 2]),
    (33, 100, [2, 4]),
    (90, 97, [1, 9]),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_groups", "n_out", "counts"), SHAPES)
def test_experts_are_computed_directly_from_mxfp4(n_groups, n_out, counts, dtype):
    matrices = packed(counts, n_out, n_groups, dtype)
    x = rand(sum(counts), 32 * n_groups, dtype=dtype)
    actual = jit.linear_mxfp4(x, *matrices)
    assert actual.dtype == dtype and close(actual, truth(x, *matrices), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_code_with_every_safe_scale_is_exact(dtype):
    """x is the identity matrix, so each output must be exactly one weight."""
    low, high = native.SAFE_SCALES
    codes = torch.arange(16, dtype=torch.uint8)
    blocks = (codes | codes.flip(0) << 4).expand(1, high - low + 1, 1, 16).contiguous()
    scales = torch.arange(low, high + 1, dtype=torch.uint8).view(1, -1, 1)
    actual = jit.linear_mxfp4(
        torch.eye(32, dtype=dtype), [(0, 0, 32)], blocks, scales, torch.zeros(1, high - low + 1, dtype=dtype)
    )
    assert torch.equal(actual, reference.dequantize_mxfp4(blocks[0], scales[0], dtype=dtype).T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_are_accurate_at_both_ends_of_the_safe_scales(dtype):
    for scale, size in itertools.product(native.SAFE_SCALES, (2.0**-30, 2.0**30)):
        groups, blocks, scales, bias = packed([1, 3], 40, 7, dtype, scale, scale)
        x = rand(4, 224, dtype=dtype) * size
        actual = jit.linear_mxfp4(x, groups, blocks, scales, bias.zero_())
        assert close(actual, truth(x, groups, blocks, scales, bias), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_of_a_row_do_not_depend_on_the_other_rows(dtype):
    _, *matrices = packed([1, 1], 77, 11, dtype)
    x = rand(9, 352, dtype=dtype)
    alone = torch.cat([jit.linear_mxfp4(x[i : i + 1], [(1, 0, 1)], *matrices) for i in range(9)])
    for n in range(1, 10):
        assert torch.equal(jit.linear_mxfp4(x[:n], [(1, 0, n)], *matrices), alone[:n])
    assert torch.equal(jit.linear_mxfp4(x, [(0, 0, 2), (1, 2, 9)], *matrices)[2:], alone[2:])


@pytest.mark.parametrize("n", [3, 16, 37, 64, 90, 720])
def test_bf16_products_are_accurate_and_have_the_bits_of_single_rows(n):
    weight, bias = rand(70, n, seed=1, dtype=torch.bfloat16), rand(70, dtype=torch.bfloat16)
    x = rand(4, n, seed=2, dtype=torch.bfloat16)
    alone = torch.cat([jit.linear_bf16(x[i : i + 1], weight, bias) for i in range(4)])
    for m in range(1, 5):
        actual = jit.linear_bf16(x[:m], weight, bias)
        assert actual.dtype == torch.bfloat16 and torch.equal(actual, alone[:m])
        assert close(actual, x[:m].double() @ weight.double().T + bias.double(), torch.bfloat16)
    assert torch.equal(jit.linear_bf16(x, weight), jit.linear_bf16(x, weight, torch.zeros_like(bias)))


def test_views_of_larger_matrices_give_the_same_bits():
    _, blocks, scales, bias = packed([1] * 4, 50, 5, torch.float32)
    views = (blocks[::2, 3:43], scales[::2, 3:43], bias[::2, 3:43])
    x, groups = rand(5, 160), [(1, 0, 3), (0, 3, 5)]
    assert torch.equal(
        jit.linear_mxfp4(x, groups, *views), jit.linear_mxfp4(x, groups, *(t.contiguous() for t in views))
    )
    weight = rand(20, 96, dtype=torch.bfloat16)
    x = rand(2, 96, dtype=torch.bfloat16)
    assert torch.equal(jit.linear_bf16(x, weight[::3]), jit.linear_bf16(x, weight)[:, ::3])


def test_arguments_that_do_not_match_raise():
    groups, blocks, scales, bias = packed([2], 8, 2, torch.float32)
    with pytest.raises(ValueError, match="groups must end at row 3, the last one, got 2"):
        jit.linear_mxfp4(rand(3, 64), groups, blocks, scales, bias)
    with pytest.raises(ValueError, match="blocks must have rows of 96"):
        jit.linear_mxfp4(rand(2, 96), groups, blocks, scales, bias)
    with pytest.raises(ValueError, match=r"x must be bf16 \[1 to 4"):
        jit.linear_bf16(rand(5, 64, dtype=torch.bfloat16), rand(8, 64, dtype=torch.bfloat16))


def test_empty_arguments_give_empty_products():
    _, blocks, scales, bias = packed([1], 8, 2, torch.float32)
    assert jit.linear_mxfp4(rand(0, 64), [], blocks, scales, bias).shape == (0, 8)
    assert torch.equal(jit.linear_mxfp4(rand(1, 0), [(0, 0, 1)], blocks[:, :, :0], scales[:, :, :0], bias), bias)
    bias = bias[0].bfloat16()
    assert torch.equal(jit.linear_bf16(bias[None, :0], bias[:, None][:, :0], bias)[0], bias)


def test_the_bits_do_not_depend_on_instructions_or_threads(monkeypatch):
    """Without the table instruction (ARM, old processors), and with several threads: torch's OpenMP, or Python's."""
    matrices = packed([1, 3], 700, 9, torch.float32)
    x, weight, h = rand(4, 288), rand(700, 100, dtype=torch.bfloat16), rand(3, 100, dtype=torch.bfloat16)
    products = lambda: (jit.linear_mxfp4(x, *matrices), jit.linear_bf16(h, weight))  # noqa: E731
    expected = products()

    def same():
        return all(torch.equal(a, b) for a, b in zip(products(), expected))

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert all(same() for _ in range(20))
        monkeypatch.setattr(jit, "_openmp", lambda: None)
        assert all(same() for _ in range(20))
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(jit, "_has_table", lambda: False)
    assert same()
    code = "".join(f._library.get_llvm_str() for f in jit.compiled().keep)
    assert "llvm.x86" not in code and "x float> @llvm.fma.v8f32" in code


def test_without_a_library_numba_decodes_and_status_says_how_to_get_the_kernels(no_library):
    assert native.isa() is None and native.levels() == [] and native.decode() == "numba"
    status = native.status()
    assert "numba decodes" in status and "torch computes" in status and build.INSTRUCTIONS in status
    assert "\n" not in status
    assert jit.supports_decode(rand(1, 32))
    native.use("torch")
    assert native.decode() is None and not jit.supports_decode(rand(1, 32))


def test_without_numba_torch_computes_and_status_names_both_remedies(no_library, monkeypatch):
    monkeypatch.setattr(native, "_has_numba", lambda: False)
    native._State.loaded = False
    assert native.decode() is None and native.isa() is None and not jit.supports_decode(rand(1, 32))
    status = native.status()
    assert "torch computes" in status and build.INSTRUCTIONS in status and native.INSTALL_NUMBA in status
    assert "\n" not in status
    with pytest.raises(ValueError, match=r"numba kernels do not run here. Choose one of torch"):
        native.use("numba")


def test_a_failing_numba_is_not_used_and_status_reports_it(no_library, monkeypatch):
    def broken():
        raise ImportError("llvmlite of another age\nand more")

    monkeypatch.setattr(jit, "compiled", broken)
    assert not jit.supports_decode(rand(1, 32)) and native.decode() is None
    assert "fails: ImportError: llvmlite of another age" in native.status() and "\n" not in native.status()
    native.use(None)
    assert native.decode() is None


def test_numba_computes_up_to_four_cpu_rows_without_grad():
    x = rand(4, 32)
    assert jit.supports_decode(x) and jit.supports_decode(x.bfloat16()) and native.isa() is None
    assert not jit.supports_decode(rand(5, 32)) and not jit.supports_decode(x.double())
    assert not jit.supports_decode(x[:0])
    assert not jit.supports_decode(x.requires_grad_()) and not jit.supports_decode(x.to("meta"))
    with torch.no_grad():
        assert jit.supports_decode(x)
    native.use("torch")
    assert not jit.supports_decode(x.detach())


def test_safe_scales_need_no_library(no_library):
    low, high = native.SAFE_SCALES
    scales = torch.tensor([[low, high]], dtype=torch.uint8)
    assert native.safe_scales(scales) and native.safe_scales(scales[:0])
    assert not native.safe_scales(scales - 1) and not native.safe_scales(scales + 1)


def test_the_environment_variable_selects_numba_and_importing_does_not_load_it():
    code = (
        "import sys; from workbench.model.kernels import jit, native; "
        "print(native.isa(), native.decode(), 'numba' in sys.modules, native.status())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, native.VARIABLE: "numba"}, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("None numba False no native kernels, numba decodes")


def test_no_second_openmp_is_loaded():
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs Linux")
    code = (
        "import torch; from workbench.model.kernels import jit, native; native.use('numba'); torch.set_num_threads(2); "
        "w = torch.zeros(300, 64).bfloat16(); jit.linear_bf16(w[:1], w); print(open('/proc/self/maps').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert len({line.split()[-1] for line in done.stdout.splitlines() if "libgomp" in line}) <= 1


def test_torch_agrees_to_one_step_of_bf16():
    weight, x = rand(64, 128, dtype=torch.bfloat16), rand(1, 128, seed=1, dtype=torch.bfloat16)
    assert torch.allclose(jit.linear_bf16(x, weight), F.linear(x, weight), rtol=2 * BF16, atol=1e-6)
