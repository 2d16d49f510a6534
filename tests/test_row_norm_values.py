"""Values and gradients of the row norms against fp64: every regime of the kernels, every combination of dtypes."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import ADD_LAYER_NORM, DTYPES, LAYER_NORM, OPS, Op, accumulator, dtype_id, evaluate, make_case
from checks import assert_close, assert_not_worse, check, check_not_worse, oracle
from conftest import TestBackend

# Both sides of every power of two at which a kernel may change: vectors, sub-warps, warps, registers, shared memory,
# clusters, two passes. 16385 and beyond are odd on purpose: heads and tails of vectors at every size.
COLS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513)
COLS += (768, 1000, 1023, 1024, 1025, 2048, 4095, 4096, 4097, 8191, 8192, 8193, 16385)
LONG_COLS = (32768, 65537, 131073, 262144, 1048576)
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 129, 513, 1000)

all_ops = pytest.mark.parametrize("op", OPS, ids=str)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


@all_ops
@all_dtypes
@pytest.mark.parametrize("cols", COLS)
def test_cols(backend: TestBackend, op: Op, dtype: torch.dtype, cols: int) -> None:
    check(make_case(op, backend.rows(cols, 5), cols, dtype, device=backend.device))


@all_ops
@all_dtypes
@pytest.mark.parametrize("cols", LONG_COLS)
def test_long_rows(backend: TestBackend, op: Op, dtype: torch.dtype, cols: int) -> None:
    if backend.name == "sim" and cols > 200_000 and (op.has_residual or dtype in (torch.float16, torch.float64)):
        pytest.skip("so many columns in the simulated machine: bf16 and fp32 without residual are enough")
    check(make_case(op, 2, cols, dtype, device=backend.device))


@all_ops
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=dtype_id)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("cols", (5, 64, 200, 1000))
def test_rows(backend: TestBackend, op: Op, dtype: torch.dtype, rows: int, cols: int) -> None:
    if rows * cols > 4 * backend.limit:
        pytest.skip(f"{rows} x {cols} is too much for {backend.name}")
    check(make_case(op, rows, cols, dtype, device=backend.device))


@all_ops
def test_many_rows(backend: TestBackend, op: Op) -> None:
    """More rows than any grid has blocks: the loop over rows of the persistent kernels."""
    rows = 70_001 if backend.name != "sim" else 3001
    check(make_case(op, rows, 24, torch.bfloat16, param_dtype=torch.float32, device=backend.device))


@all_ops
@all_dtypes
@pytest.mark.parametrize(
    "lead, shape", (((0,), (64,)), ((3,), (0,)), ((0,), (0,)), ((2, 0, 3), (4, 5)), ((2,), (3, 0)))
)
def test_empty(backend: TestBackend, op: Op, dtype: torch.dtype, lead: tuple[int, ...], shape: tuple[int, ...]) -> None:
    case = make_case(op, lead, shape, dtype, device=backend.device)
    results = evaluate(case)
    theirs = evaluate(case, op.torch)
    for name, tensor in results.items():
        assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape
        torch.testing.assert_close(tensor, theirs[name], msg=name)


@all_ops
@pytest.mark.parametrize(
    "lead, shape", (((), (6,)), ((), (3, 4)), ((2, 3), (4,)), ((2,), (3, 4, 5)), ((1, 1, 5), (1,)))
)
def test_dimensions(backend: TestBackend, op: Op, lead: tuple[int, ...], shape: tuple[int, ...]) -> None:
    results = check(make_case(op, lead, shape, device=backend.device))
    for name in ("y", "grad_x"):
        assert results[name].shape == lead + shape and results[name].is_contiguous()
    assert results["grad_weight"].shape == shape


@pytest.mark.tsan
@all_ops
@pytest.mark.parametrize("dtype, residual_dtype", list(itertools.product(DTYPES, DTYPES)), ids=dtype_id)
def test_dtypes(backend: TestBackend, op: Op, dtype: torch.dtype, residual_dtype: torch.dtype) -> None:
    """Every dtype of input with every dtype of residual, parameters and output: one kernel each."""
    if not op.has_residual and residual_dtype != dtype:
        pytest.skip("no residual")
    if op.has_residual and (dtype == torch.float64) != (residual_dtype == torch.float64):
        pytest.skip("fp64 beside another dtype has its own test")
    for param_dtype, out_dtype in itertools.product(DTYPES, (None, *DTYPES)):
        dtypes = {"param_dtype": param_dtype, "residual_dtype": residual_dtype, "out_dtype": out_dtype}
        check(make_case(op, 3, 65, dtype, **dtypes, device=backend.device))


@pytest.mark.parametrize("op", [op for op in OPS if op.has_residual], ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=dtype_id)
@pytest.mark.parametrize("wide", ("x", "residual"))
def test_fp64_beside_another_dtype(backend: TestBackend, op: Op, dtype: torch.dtype, wide: str) -> None:
    x, residual = (torch.float64, dtype) if wide == "x" else (dtype, torch.float64)
    check(make_case(op, 3, 65, x, residual_dtype=residual, eps=1e-5, device=backend.device))


@pytest.mark.parametrize("op", [op for op in OPS if op.has_bias], ids=str)
@pytest.mark.parametrize("weight_dtype, bias_dtype", list(itertools.permutations(DTYPES, 2)), ids=dtype_id)
def test_weight_and_bias_differ(
    backend: TestBackend, op: Op, weight_dtype: torch.dtype, bias_dtype: torch.dtype
) -> None:
    case = make_case(op, 5, 65, torch.bfloat16, device=backend.device)
    check(case.replace(weight=case.weight.to(weight_dtype), bias=case.bias.to(bias_dtype)))


@all_ops
@pytest.mark.parametrize("cols", (1, 65, 300, 5000))
def test_without_parameters(backend: TestBackend, op: Op, cols: int) -> None:
    case = make_case(op, 3, cols, torch.bfloat16, device=backend.device)
    check(case.replace(weight=None, bias=None))
    if op.has_bias:
        check(case.replace(weight=None))
        check(case.replace(bias=None))


@all_ops
@pytest.mark.parametrize("eps", (0.0, 1e-12, 1e-3, 1.0, 100.0))
def test_eps(backend: TestBackend, op: Op, eps: float) -> None:
    check(make_case(op, 3, 65, eps=eps, device=backend.device))


@all_ops
@all_dtypes
def test_default_eps(backend: TestBackend, op: Op, dtype: torch.dtype) -> None:
    """Rows near zero, where eps decides the result: 1e-5, and for RMSNorm the machine epsilon of fp32 or fp64."""
    scale = 2.0**-20 if op.core == "rms_norm" and dtype == torch.float64 else 2.0**-9
    case = make_case(op, 3, 64, dtype, device=backend.device)
    case = (
        case.replace(x=case.x * scale)
        if case.residual is None
        else case.replace(x=case.x * scale, residual=case.residual * scale)
    )
    ours = check(case)
    eps = (
        1e-5 if op.core == "layer_norm" else torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    )
    explicit = evaluate(case.replace(eps=eps))
    theirs = evaluate(case, op.torch)
    for name in ours:
        assert torch.equal(ours[name], explicit[name])
    if dtype != torch.float64:  # the oracle itself is fp64
        assert_not_worse("y", ours["y"], theirs["y"], oracle(case)["y"])


@all_ops
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=dtype_id)  # the oracle is fp64
@pytest.mark.parametrize("cols", (8, 65, 768, 1000, 4096))
def test_not_worse_than_torch(backend: TestBackend, op: Op, dtype: torch.dtype, cols: int) -> None:
    check_not_worse(make_case(op, backend.rows(cols, 256), cols, dtype, device=backend.device))


@all_ops
@pytest.mark.parametrize("cols", (1, 65, 1024, 9000))
def test_weight_zero(backend: TestBackend, op: Op, cols: int) -> None:
    """grad_weight must not be recovered from y: it is right where the weight is zero."""
    case = make_case(op, 4, cols, device=backend.device)
    results = check(case.replace(weight=torch.zeros_like(case.weight)))
    if cols > 1:
        assert results["grad_weight"].abs().sum() > 0


@all_ops
@all_dtypes
def test_saved_statistics(backend: TestBackend, op: Op, dtype: torch.dtype) -> None:
    """The inner op returns mean and rstd in fp32 (fp64 for fp64), one per row."""
    case = make_case(op, (2, 3), 65, dtype, device=backend.device, eps=1e-5)
    forward = getattr(torch.ops.torchfastnorm, f"{op.core}_forward")
    y, total, mean, rstd = forward(case.x, case.residual, case.normalized_shape, case.weight, case.bias, 1e-5, None)
    assert_close("y", y, oracle(case)["y"])
    assert (total is not None) == op.has_residual and (mean is not None) == op.has_bias
    h = (total if op.has_residual else case.x).double().cpu()
    exact_mean = h.mean(-1)
    exact_rstd = ((h - (exact_mean[..., None] if op.has_bias else 0)).square().mean(-1) + 1e-5).rsqrt()
    work = accumulator(dtype)
    for name, statistic, exact in (("mean", mean, exact_mean), ("rstd", rstd, exact_rstd)):
        if statistic is not None:
            assert statistic.dtype == work and statistic.shape == (2, 3), name
            torch.testing.assert_close(statistic.cpu().double(), exact, rtol=0, atol=8 * torch.finfo(work).eps)


def test_the_sum_is_rounded_before_it_is_normalised(backend: TestBackend) -> None:
    """A residual in bf16 swallows an input below its resolution: y must be that of the residual alone."""
    case = make_case(ADD_LAYER_NORM, 3, 64, torch.bfloat16, device=backend.device)
    tiny = case.replace(x=case.residual * 2**-10, grad_sum=torch.zeros_like(case.grad_sum))
    ours = evaluate(tiny)
    assert torch.equal(ours["sum"], case.residual)
    alone = evaluate(
        make_case(LAYER_NORM, 3, 64, torch.bfloat16).replace(
            x=case.residual, weight=case.weight, bias=case.bias, grad_y=case.grad_y
        )
    )
    assert torch.equal(ours["y"], alone["y"]) and torch.equal(ours["grad_residual"], alone["grad_x"])
