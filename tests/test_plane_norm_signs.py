"""The signs that a ReLU's backward reads in place of the residual: csrc/interface/plane_signs.h."""

from __future__ import annotations

import math

import pytest
import torch
from cases import dtype_id
from checks import assert_same_results
from conftest import TestBackend
from plane_cases import BATCH_NORM, FIRST, LAYOUTS, PLANE_OPS, PlaneCase, PlaneOp, evaluate, make_plane_case
from plane_checks import check, layout_of
from torch import Tensor

from torchfastnorm.ops._plane_norm import Sets

SETS = {op.name: number.value for op, number in zip(PLANE_OPS, Sets, strict=True)}
SIGNED = ("relu", "leaky_relu")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Runs of a few elements, of a byte and a vector more or less than whole, of several pieces.
SHAPES = ((2, 3, 3), (3, 33, 7, 7), (2, 5, 16, 16), (1, 64, 5, 13), (2, 3, 130, 130), (5, 67), (2, 600, 3))

all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)
both_activations = pytest.mark.parametrize("activation", SIGNED)


def forward_op(case: PlaneCase) -> tuple[Tensor, ...]:
    tensors = (case.weight, case.bias, case.residual, case.mask)
    numbers = (SETS[case.op.name], case.groups, case.batch_statistics, 0.1, case.eps, case.activation)
    rest = ("none", [0.0] * 6, None, None, True)
    statistics = (None, None) if case.batch_statistics else (case.running_mean, case.running_var)
    return torch.ops.torchfastnorm.plane_norm_forward(case.x, *statistics, None, *tensors, *numbers, *rest)


def unpacked(signs: Tensor, like: Tensor) -> Tensor:
    """One bit after the other, by the text of the interface: bool of like's shape."""
    samples, channels, spatial = like.shape[0], like.shape[1], math.prod(like.shape[2:])
    planes = layout_of(like) == FIRST and spatial > 1
    runs, elements = (samples * channels, spatial) if planes else (samples * spatial, channels)
    of_byte = 16 // like.element_size()
    run = math.ceil(elements / of_byte)
    assert signs.numel() == runs * run + 3
    bits = torch.empty(runs, elements, dtype=torch.bool)
    for i in range(elements):
        bits[:, i] = signs[: runs * run].view(runs, run)[:, i // of_byte] >> (i % of_byte) & 1
    if planes:
        return bits.view(like.shape)
    return bits.view(samples, spatial, channels).transpose(1, 2).reshape(like.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@both_activations
@both_layouts
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits(backend: TestBackend, shape: tuple[int, ...], layout: str, activation: str, dtype: torch.dtype) -> None:
    """The documented bytes, from the kernels' own result: y > 0 exactly where the argument is."""
    case = make_plane_case(BATCH_NORM, shape, dtype, layout=layout, residual=True, activation=activation)
    y, _, _, signs = forward_op(case)
    positive = unpacked(signs, case.x)
    assert torch.equal(positive, y > 0)
    assert positive.any() and not positive.all()


@all_ops
@both_activations
@both_layouts
@pytest.mark.parametrize("statistics", ("batch", "running"))
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 12, 7, 7), torch.float32),
        ((2, 36, 9, 5), torch.bfloat16),
        ((4, 12, 1, 1), torch.float32),
        ((1, 6, 130, 70), torch.float64),
    ],
)
def test_gradients(
    backend: TestBackend, op: PlaneOp, shape: tuple[int, ...], dtype: torch.dtype, statistics: str, layout: str,
    activation: str,
) -> None:  # fmt: skip
    if statistics == "running" and op is not BATCH_NORM:
        pytest.skip("evaluates as BatchNorm, or not at all")
    if op.name == "instance_norm" and math.prod(shape[2:]) == 1:
        pytest.skip("a plane of one element")
    groups = 6 if op.name == "group_norm" else 1
    case = make_plane_case(op, shape, dtype, layout=layout, residual=True, activation=activation, groups=groups,
                           batch_statistics=statistics == "batch")  # fmt: skip
    check(case)


@all_ops
def test_kept_where_they_are_of_use(backend: TestBackend, op: PlaneOp) -> None:
    case = make_plane_case(op, (2, 6, 4, 4), torch.float32, residual=True, activation="relu")
    assert forward_op(case)[3] is not None
    for changes in ({"activation": "silu"}, {"activation": "none"}, {"residual": None}):
        assert forward_op(case.replace(**changes))[3] is None
    point = make_plane_case(op, (4, 6, 1, 1), torch.float32, residual=True, activation="relu")
    if op.name != "instance_norm":
        assert (forward_op(point)[3] is not None) == (op is BATCH_NORM)


def test_nan_is_not_positive(backend: TestBackend) -> None:
    """As torch's ReLU: a NaN passes on, and no gradient comes back through it."""
    case = make_plane_case(BATCH_NORM, (2, 8, 5, 5), torch.float32, residual=True, activation="relu")
    case.residual[1, 3, 2, 4] = math.nan
    residual = case.residual.requires_grad_()
    y = case.op.function(*case.arguments[0], **case.arguments[1])
    grad = torch.autograd.grad(y.sum(), residual)[0]
    assert torch.isnan(y[1, 3, 2, 4]) and grad[1, 3, 2, 4] == 0
    assert torch.isfinite(grad).all()


@both_activations
@both_layouts
def test_double_backward(backend: TestBackend, layout: str, activation: str) -> None:
    """Derivatives of the gradients, whose formula unpacks the bits, against the reference's."""
    case = make_plane_case(BATCH_NORM, (3, 9, 5, 7), torch.float64, layout=layout, residual=True, activation=activation)

    def second(function, x, residual, weight):
        leaves = [t.detach().requires_grad_() for t in (x, residual, weight)]
        keywords = {"residual": leaves[1], "activation": activation}
        y = function(leaves[0], None, None, leaves[2], case.bias, True, 0.1, case.eps, **keywords)
        first = torch.autograd.grad(y, leaves, case.grad_y, create_graph=True)
        # Nothing depends on the residual twice.
        return [*first, *torch.autograd.grad(sum((g * g).sum() for g in first), leaves, materialize_grads=True)]

    ours = second(case.op.function, case.x, case.residual, case.weight)
    theirs = second(case.op.reference, case.x, case.residual, case.weight)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_same_gradients_with_the_residual(backend: TestBackend) -> None:
    """The inner op takes either; the bits say what the residual says."""
    case = make_plane_case(BATCH_NORM, (3, 16, 6, 6), torch.float32, residual=True, activation="relu")
    _, mean, rstd, signs = forward_op(case)
    rest = (SETS["batch_norm"], 1, True, case.eps, "relu", "none", None, None, torch.float32, [True] * 4 + [False] * 2)
    tensors = (case.grad_y, case.x, mean, rstd, case.weight, case.bias)
    backward = torch.ops.torchfastnorm.plane_norm_backward
    by_signs = backward(*tensors, None, None, signs, *rest)
    by_residual = backward(*tensors, case.residual, None, None, *rest)
    for name, a, b in zip(("x", "residual", "weight", "bias"), by_signs, by_residual, strict=False):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("change", (lambda s: s[:-1], lambda s: s.float(), lambda s: s.repeat(2)[::2]))
def test_other_signs_are_refused(change) -> None:
    case = make_plane_case(BATCH_NORM, (3, 16, 6, 6), torch.float32, residual=True, activation="relu")
    _, mean, rstd, signs = forward_op(case)
    rest = (SETS["batch_norm"], 1, True, case.eps, "relu", "none", None, None, torch.float32, [True] * 4 + [False] * 2)
    with pytest.raises(RuntimeError, match="signs must be what plane_norm_forward returned"):
        tensors = (case.grad_y, case.x, mean, rstd, case.weight, case.bias, None, None)
        torch.ops.torchfastnorm.plane_norm_backward(*tensors, change(signs), *rest)


def test_deterministic(backend: TestBackend) -> None:
    case = make_plane_case(BATCH_NORM, (3, 33, 7, 7), torch.bfloat16, residual=True, activation="relu")
    assert_same_results(evaluate(case), evaluate(case))
