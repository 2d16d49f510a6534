"""Values and gradients of the plane family against fp64: dtypes, layouts, shapes, activations, parameters.

Dtypes, layouts and activations are combined with the shapes pairwise: each pair of choices occurs, not every product.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cases import DTYPES, dtype_id
from checks import assert_bitwise
from conftest import TestBackend
from plane_cases import (
    BATCH_NORM,
    GROUP_NORM,
    INSTANCE_NORM,
    LAST,
    LAYOUTS,
    PER_SAMPLE,
    PLANE_OPS,
    PlaneOp,
    cut,
    evaluate,
    make_plane_case,
)
from plane_checks import check, check_layout, check_not_worse

from torchfastnorm.reference._plane_norm import ACTIVATIONS

all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS)

# One position, few channels, odd planes, primes, one sample, sizes around vectors and tiles, 2-D to 5-D, long planes.
SHAPES = (
    (2, 3, 1, 1), (5, 16, 1, 1), (64, 17), (4, 1), (3, 5, 2), (2, 3, 224, 3), (1, 3, 5, 5), (1, 64, 7, 7),
    (9, 31, 7, 7), (2, 13, 11, 17), (3, 7, 13), (2, 64, 56), (4, 32, 8, 8), (2, 24, 15, 17), (3, 12, 2, 3, 5),
    (2, 33, 3, 3, 3), (1, 1, 1, 2), (1, 1, 37, 41), (130, 2, 3, 3), (2, 130, 2, 2), (2, 8, 40, 40), (1, 2, 1031),
    (2, 4, 4099), (33, 65, 3), (4, 128, 14, 14), (2, 256, 9, 9), (1, 2049, 3), (1, 512, 4, 4), (150, 4, 4),
    (2, 6, 1, 300), (2, 6, 300, 1),
)  # fmt: skip
# A few that no cache or on-chip memory holds: statistics are merged from blocks of a set.
LARGE = (
    (3, 5, 251, 257),
    (16, 64, 28, 28),
    (1, 4, 100_003),
    (2, 2, 400, 401),
    (70_001, 3),
    (5003, 6, 3),
    (2, 1000, 7, 9),
)


def usable(op: PlaneOp, shape: tuple[int, ...]) -> bool:
    """torch rejects a single value in a set, and so do we."""
    samples, positions = shape[0], torch.Size(shape[2:]).numel()
    if op is INSTANCE_NORM:
        return len(shape) > 2 and positions > 1
    return samples * positions > 1


CASES = [(op, shape) for op in PLANE_OPS for shape in SHAPES if usable(op, shape)]
LARGE_CASES = [(op, shape) for op in PLANE_OPS for shape in LARGE if usable(op, shape)]


def ids(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("op, shape", CASES, ids=ids)
@both_layouts
def test_shapes(backend: TestBackend, op: PlaneOp, shape: tuple[int, ...], layout: str) -> None:
    """Every shape in both layouts, and in every dtype: the layouts share them out, and the activations."""
    index = SHAPES.index(shape) + (layout == LAST)
    for turn, dtype in enumerate((DTYPES[index % 4], DTYPES[(index + 2) % 4])):
        activation = list(ACTIVATIONS)[(index + 3 * turn) % len(ACTIVATIONS)]
        small = cut(shape, backend.limit)
        case = make_plane_case(op, small, dtype, layout=layout, activation=activation, device=backend.device)
        check_layout(case, check(case))


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("op", PER_SAMPLE, ids=str)
@all_dtypes
@pytest.mark.parametrize("activation", ("relu", "gelu"))
def test_planes_around_2048_bytes(backend: TestBackend, op: PlaneOp, dtype: torch.dtype, activation: str) -> None:
    """The longest that are summed four at a time (csrc/cpu/row_short.h), three and a rest of them, and longer ones."""
    most = 2048 // dtype.itemsize
    for count in (most - 1, most, most + 1):
        check(make_plane_case(op, (3, 5, count), dtype, activation=activation, device=backend.device))


@pytest.mark.parametrize("op, shape", LARGE_CASES, ids=ids)
@both_layouts
def test_large_shapes(backend: TestBackend, op: PlaneOp, shape: tuple[int, ...], layout: str) -> None:
    dtype = (torch.float32, torch.bfloat16)[(LARGE.index(shape) + (layout == LAST)) % 2]
    shape = cut(shape, 4 * backend.limit)
    if backend.name == "sim" and op is not BATCH_NORM:  # sets by the thousand take minutes there
        shape = (min(shape[0], 100), *shape[1:])
    case = make_plane_case(op, shape, dtype, layout=layout, device=backend.device)
    if case.x.numel() > 8 * backend.limit:
        pytest.skip(f"{shape} is too much for {backend.name}")
    check_layout(case, check(case))


@all_ops
@both_layouts
@all_dtypes
def test_dtypes(backend: TestBackend, op: PlaneOp, layout: str, dtype: torch.dtype) -> None:
    """Every dtype of input with every dtype of parameters and of running statistics."""
    for turn, (param_dtype, running_dtype) in enumerate(itertools.product(DTYPES, (None, *DTYPES))):
        if op is GROUP_NORM and running_dtype is not None:
            continue
        dtypes = {"param_dtype": param_dtype, "running_dtype": running_dtype}
        activation = "none" if turn % 2 else "silu"
        check(
            make_plane_case(op, (3, 6, 5), dtype, layout=layout, **dtypes, activation=activation, device=backend.device)
        )


@all_ops
@pytest.mark.parametrize("weight_dtype, bias_dtype", list(itertools.permutations(DTYPES, 2)), ids=dtype_id)
def test_weight_and_bias_differ(
    backend: TestBackend, op: PlaneOp, weight_dtype: torch.dtype, bias_dtype: torch.dtype
) -> None:
    case = make_plane_case(op, (3, 6, 5, 3), torch.bfloat16, device=backend.device)
    results = check(case.replace(weight=case.weight.to(weight_dtype), bias=case.bias.to(bias_dtype)))
    assert results["grad_weight"].dtype == weight_dtype and results["grad_bias"].dtype == bias_dtype


@all_ops
@both_layouts
@pytest.mark.parametrize("absent", (("weight",), ("bias",), ("weight", "bias")), ids="-".join)
def test_without_parameters(backend: TestBackend, op: PlaneOp, layout: str, absent: tuple[str, ...]) -> None:
    for activation in ("none", "relu"):
        case = make_plane_case(op, (3, 6, 5, 3), layout=layout, activation=activation, device=backend.device)
        check(case.replace(**dict.fromkeys(absent)))


@all_ops
@both_layouts
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=dtype_id)
def test_activations(backend: TestBackend, op: PlaneOp, layout: str, activation: str, dtype: torch.dtype) -> None:
    """With a weight that reaches the tails: values from -20 to 20."""
    case = make_plane_case(op, (3, 8, 9, 7), dtype, layout=layout, activation=activation, device=backend.device)
    check(case)
    check(case.replace(weight=6 * case.weight))


@pytest.mark.parametrize("op", (BATCH_NORM, GROUP_NORM), ids=str)
@both_layouts
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch_statistics", (True, False), ids=("training", "eval"))
@pytest.mark.parametrize(
    "dtype, residual_dtype",
    ((torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, torch.float32), (torch.float32, torch.float16)),
    ids=("float32", "bfloat16", "bfloat16 and float32", "float32 and float16"),
)
def test_residual(
    backend: TestBackend,
    op: PlaneOp,
    layout: str,
    activation: str,
    batch_statistics: bool,
    dtype: torch.dtype,
    residual_dtype: torch.dtype | bool,
) -> None:
    """Norm + add + activation, the residual's gradient in its own dtype."""
    if op is GROUP_NORM and not batch_statistics:
        pytest.skip("GroupNorm has no evaluation")
    options = {"residual": residual_dtype, "activation": activation, "batch_statistics": batch_statistics}
    case = make_plane_case(
        op, (3, 10, 7, 5), dtype, layout=layout, param_dtype=torch.float32, **options, device=backend.device
    )
    check_layout(case, check(case))


@all_ops
@pytest.mark.parametrize("shape", ((4, 6, 2), (2, 3, 1, 2), (3, 5, 2), (2, 3, 4, 5, 2), (2, 64, 17, 3), (1, 3, 40, 40)))
@both_layouts
def test_residual_shapes(backend: TestBackend, op: PlaneOp, shape: tuple[int, ...], layout: str) -> None:
    case = make_plane_case(op, shape, layout=layout, residual=True, activation="relu", device=backend.device)
    check_layout(case, check(case))
    low = make_plane_case(op, shape, torch.bfloat16, layout=layout, residual=True, device=backend.device)
    results = check(low)
    assert_bitwise("grad_residual", results["grad_residual"], low.grad_y)


@both_layouts
@pytest.mark.parametrize("groups", (1, 2, 3, 4, 6, 12))
@pytest.mark.parametrize("shape", ((3, 12), (3, 12, 1, 1), (2, 12, 7, 7), (1, 12, 65), (2, 24, 3, 5)), ids=ids)
def test_groups(backend: TestBackend, layout: str, groups: int, shape: tuple[int, ...]) -> None:
    """From one group to a group for each channel."""
    dtype = DTYPES[(groups + len(shape)) % 4]
    check(make_plane_case(GROUP_NORM, shape, dtype, layout=layout, groups=groups, device=backend.device))


@both_layouts
@pytest.mark.parametrize("groups, channels", ((32, 64), (32, 320), (1, 257), (7, 77), (64, 64), (2, 514)))
def test_more_channels_in_groups(backend: TestBackend, layout: str, groups: int, channels: int) -> None:
    """Groups that begin off every vector and tile boundary in channels_last."""
    for dtype in (torch.float32, torch.bfloat16):
        check(
            make_plane_case(GROUP_NORM, (2, channels, 5, 3), dtype, layout=layout, groups=groups, device=backend.device)
        )


@both_layouts
def test_groups_of_all_channels_are_instance_norm(backend: TestBackend, layout: str) -> None:
    case = make_plane_case(GROUP_NORM, (3, 6, 5, 7), layout=layout, groups=6, device=backend.device)
    instance = evaluate(case.replace(op=INSTANCE_NORM))
    for name, result in evaluate(case).items():
        torch.testing.assert_close(result, instance[name], rtol=1e-5, atol=1e-5)


@all_ops
@pytest.mark.parametrize("eps", (1e-12, 1e-3, 1.0, 100.0))
def test_eps(backend: TestBackend, op: PlaneOp, eps: float) -> None:
    check(make_plane_case(op, (3, 6, 5), eps=eps, device=backend.device))


@all_ops
@both_layouts
@pytest.mark.parametrize("shape", ((0, 6, 4, 5), (3, 6, 0, 5), (3, 0, 4, 5), (0, 6), (0, 0, 3)), ids=ids)
@pytest.mark.parametrize("batch_statistics", (True, False), ids=("training", "eval"))
def test_empty(backend: TestBackend, op: PlaneOp, layout: str, shape: tuple[int, ...], batch_statistics: bool) -> None:
    """As torch: an empty output, zero gradients of the parameters, running statistics as they were."""
    if op is INSTANCE_NORM and len(shape) == 2:
        pytest.skip("a plane of one element")
    if op is GROUP_NORM and (not batch_statistics or shape[1] == 0):
        pytest.skip("GroupNorm has no running statistics; without channels it needs a number of groups of its own")
    options = {"residual": True, "activation": "relu", "batch_statistics": batch_statistics}
    case = make_plane_case(op, shape, layout=layout, **options, device=backend.device)
    results = evaluate(case)
    for name, like in (("y", "x"), ("grad_x", "x"), ("grad_weight", "weight"), ("grad_bias", "bias")):
        assert results[name].shape == getattr(case, like).shape and results[name].dtype == case.x.dtype
        assert not results[name].any()
    for name in ("running_mean", "running_var"):
        if name in results:
            assert_bitwise(name, results[name], getattr(case, name))


@all_ops
@both_layouts
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=dtype_id)  # the oracle is fp64
@pytest.mark.parametrize("shape", ((8, 32, 14, 14), (4, 6, 33), (2, 16, 40, 40)), ids=ids)
def test_not_worse_than_torch(
    backend: TestBackend, op: PlaneOp, layout: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    case = make_plane_case(op, cut(shape, backend.limit), dtype, layout=layout, device=backend.device)
    check_not_worse(case, sim=backend.name == "sim")


@all_ops
@both_layouts
def test_weight_zero(backend: TestBackend, op: PlaneOp, layout: str) -> None:
    """grad_weight must not be recovered from y: it is right where the weight is zero."""
    case = make_plane_case(op, (3, 6, 5, 7), layout=layout, device=backend.device)
    results = check(case.replace(weight=case.weight * torch.tensor([0, 1, 0, 1, 0, 1], device=backend.device)))
    assert (results["grad_weight"] != 0).all()
    assert op is GROUP_NORM or not results["grad_x"][:, 0].any()
