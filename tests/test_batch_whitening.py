"""Whitening: values, gradients and running statistics against the formula in fp64; layouts; that it whitens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DTYPES, dtype_id
from checks import assert_bitwise
from conftest import TestBackend
from plane_cases import FIRST, LAST, in_layout
from tolerances import WHITENING
from torch import Tensor
from whitening_cases import (
    LEAVES,
    METHODS,
    RUNNING,
    Arguments,
    all_layouts,
    all_methods,
    assert_right,
    batch_matrix,
    both_modes,
    columns_of,
    covariance_of,
    error_of,
    make,
    results_of,
)

from torchfastnorm import batch_whitening, reference

# Width of a group: shapes. Widths below, at and above those of tiles and vectors, one group and several; planes of one
# element, of 7 x 7 and larger, vectors, sequences, volumes; one sample and many.
SHAPES = (
    (1, (9, 5, 7, 7)),
    (1, (12, 1)),
    (3, (40, 3)),
    (3, (1, 6, 19, 23)),
    (3, (6, 12, 7, 7)),
    (8, (64, 16, 1, 1)),
    (8, (1, 8, 50)),
    (8, (6, 24, 5, 4, 3)),
    (16, (5, 16, 7, 7)),
    (16, (2, 32, 23, 27)),
    (17, (130, 17)),
    (17, (7, 51, 7, 7)),
    (33, (4, 33, 7, 7)),
    (64, (2, 128, 7, 7)),
    (130, (2, 130, 9, 10)),
)
all_shapes = pytest.mark.parametrize("width, shape", SHAPES, ids=str)
OTHER = {torch.bfloat16: torch.float32, torch.float32: torch.bfloat16, torch.float64: torch.float32}


def fitting(backend: TestBackend, shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Fewer samples, then fewer rows, until x is small enough for the backend; always more positions than channels."""
    shape = tuple(shape)
    while torch.Size(shape).numel() > backend.limit:
        at = 0 if shape[0] > 2 else 2
        smaller = (*shape[:at], (shape[at] + 1) // 2, *shape[at + 1 :])
        if torch.Size(smaller).numel() // shape[1] <= width or smaller == shape:
            break
        shape = smaller
    return shape


def methods_of(backend: TestBackend, width: int, dtype: torch.dtype) -> tuple[str, ...]:
    """All in fp64, one otherwise and where the passes over x are slow: these do not know the method."""
    return METHODS if dtype == torch.float64 and backend.name != "sim" else (METHODS[width % 4],)


@all_layouts
@all_shapes
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=dtype_id)
def test_training(backend: TestBackend, layout: str, width: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Results, gradients and running statistics of every shape."""
    for method in methods_of(backend, width, dtype):
        arguments = make(fitting(backend, shape, width), width, dtype, backend, layout)
        assert_right(arguments, training=True, num_channels=width, method=method, momentum=0.3)


@all_layouts
@all_shapes
def test_evaluation(backend: TestBackend, layout: str, width: int, shape: tuple[int, ...]) -> None:
    """The running mean and matrix, whatever the matrix is, for the batch's; they stay as they are."""
    for dtype in (torch.float64, torch.float32) if width < 64 else (torch.float32,):
        arguments = make(fitting(backend, shape, width), width, dtype, backend, layout)
        results = assert_right(arguments, num_channels=width)
        for name in RUNNING:
            assert_bitwise(name, results[name], arguments[name])


@all_layouts
@all_methods
@both_modes
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_dtypes(backend: TestBackend, layout: str, method: str, training: bool, dtype: torch.dtype) -> None:
    for width, shape in ((8, (4, 16, 7, 7)), (16, (9, 16, 5))):
        arguments = make(shape, width, dtype, backend, layout)
        results = assert_right(arguments, training=training, num_channels=width, method=method)
        for name in ("y", "grad_input"):
            assert results[name].stride() == arguments["input"].stride(), name


@pytest.mark.parametrize("dtype", OTHER, ids=dtype_id)
@both_modes
def test_mixed_dtypes(backend: TestBackend, dtype: torch.dtype, training: bool) -> None:
    """Parameters and running statistics each have a dtype of their own, and so have their gradients."""
    worst = max((dtype, OTHER[dtype]), key=lambda t: torch.finfo(t).eps)
    for names in (("weight", "bias"), ("weight",), RUNNING, ("running_wm",)):
        arguments = make((4, 6, 5, 7), 3, dtype, backend, other=dict.fromkeys(names, OTHER[dtype]))
        assert_right(arguments, WHITENING[worst].error, training=training, num_channels=3)


@both_modes
def test_without_parameters(backend: TestBackend, training: bool) -> None:
    """No weight, no bias, in training no running statistics; num_channels: one group."""
    arguments = make((4, 6, 5, 7), 6, torch.float64, backend)
    for gone in (("weight",), ("bias",), ("weight", "bias"), RUNNING, (*RUNNING, "weight", "bias")):
        if training or "running_mean" not in gone:
            assert_right({name: t for name, t in arguments.items() if name not in gone}, training=training)


@pytest.mark.parametrize("options", ({"iterations": 0}, {"iterations": 1}, {"iterations": 2}, {"iterations": 9}))
def test_iterations(backend: TestBackend, options: Arguments) -> None:
    arguments = make((4, 6, 5, 7), 3, torch.float64, backend)
    assert_right(arguments, training=True, num_channels=3, method="iternorm", **options)


@all_methods
def test_eps(backend: TestBackend, method: str) -> None:
    arguments = make((4, 6, 5, 7), 3, torch.float64, backend)
    for eps in (1e-8, 0.5):
        assert_right(arguments, training=True, num_channels=3, method=method, eps=eps)


@all_methods
@pytest.mark.parametrize("momentum", (0.0, 0.25, 1.0))
def test_running_statistics(backend: TestBackend, method: str, momentum: float) -> None:
    """(1 - momentum) * old + momentum * new, in their own dtype, and three times over."""
    for dtype, own in ((torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        arguments = make((4, 6, 5, 7), 3, dtype, backend, other=dict.fromkeys(RUNNING, own))
        options = {"training": True, "num_channels": 3, "method": method, "momentum": momentum}
        expected = {name: arguments[name].cpu().double() for name in RUNNING}
        for seed in range(3):
            arguments["input"] = make((4, 6, 5, 7), 3, dtype, backend, seed=seed)["input"]
            x = arguments["input"].cpu().double()
            reference.batch_whitening(x, **expected, **options)
            batch_whitening(**arguments, **options)
        for name in RUNNING:
            assert arguments[name].dtype == own
            # bf16 rounds the new value, both products and the sum, three times
            tolerance = 8 * torch.finfo(own).eps if own == torch.bfloat16 else WHITENING[own].error
            assert error_of(arguments[name], expected[name]) <= tolerance, name
            if momentum == 0:
                assert_bitwise(name, arguments[name], make((4, 6, 5, 7), 3, dtype, backend)[name].to(own))


@all_layouts
@pytest.mark.parametrize("shape", ((0, 6), (0, 6, 5, 7), (3, 6, 0, 7), (2, 6, 0)))
def test_an_empty_batch(backend: TestBackend, layout: str, shape: tuple[int, ...]) -> None:
    """Nothing is learnt of it; its gradients are zeros."""
    own = make((2, 6, 2), 3, torch.float32, backend, other={"weight": torch.float64})
    own["input"] = in_layout(torch.empty(shape, device=backend.device), layout)
    for training in (True, False):
        for method in METHODS:
            results = results_of(batch_whitening, own, training=training, num_channels=3, method=method)
            assert results["y"].shape == results["grad_input"].shape == shape
            assert (results["grad_weight"].dtype, results["grad_bias"].dtype) == (torch.float64, torch.float32)
            assert not results["grad_weight"].any() and not results["grad_bias"].any()
            for name in RUNNING:
                assert_bitwise(name, results[name], own[name])


@pytest.mark.parametrize("method", ("zca", "pca", "cholesky"))
def test_whitens(backend: TestBackend, method: str) -> None:
    """The covariance of the result is I: to 1e-8 in fp64, where eps is small; to what eps does in fp32."""
    for width, shape in ((3, (4, 6, 5, 7)), (17, (5, 34, 7, 7))):
        for dtype, eps, tolerance in ((torch.float64, 1e-10, 1e-8), (torch.float32, 1e-5, 1e-4)):
            x = make(shape, width, dtype, backend)["input"]
            y = batch_whitening(x, training=True, num_channels=width, method=method, eps=eps).double()
            assert columns_of(y, width).mean(-1).abs().max() < tolerance
            error = covariance_of(y, width) - torch.eye(width, dtype=y.dtype, device=y.device)
            assert error.abs().max() < tolerance, f"{error.abs().max():.1e}"


def test_matrices(backend: TestBackend) -> None:
    """What each method promises of W, in fp64."""
    x = make((5, 34, 7, 7), 17, torch.float64, backend)["input"]
    zca, pca, cholesky = (batch_matrix(x, 17, method=m, eps=1e-10) for m in ("zca", "pca", "cholesky"))
    close = {"rtol": 0, "atol": 1e-8}
    assert not torch.equal(zca, pca) and not torch.equal(zca, cholesky)
    torch.testing.assert_close(zca, zca.mT, **close)
    torch.testing.assert_close(zca @ zca @ covariance_of(x, 17), torch.eye(17).to(x).expand(2, 17, 17), **close)
    assert (torch.linalg.eigvalsh(zca) > 0).all()
    assert not cholesky.triu(1).any() and (cholesky.diagonal(dim1=-2, dim2=-1) > 0).all()
    # pca: before it is scaled, the data have descending variances and no covariances.
    scale = pca.norm(dim=-1, keepdim=True)
    turned = (pca / scale) @ covariance_of(x, 17) @ (pca / scale).mT
    variances = turned.diagonal(dim1=-2, dim2=-1)
    assert (variances.diff(dim=-1) < 0).all()
    torch.testing.assert_close(turned, torch.diag_embed(variances), **close)
    assert (pca.gather(-1, pca.abs().argmax(-1, keepdim=True)) > 0).all()


def test_newton_nears_zca(backend: TestBackend) -> None:
    """With every step, and it stays there: as it is defined, the iteration turns to NaN after some twenty steps."""
    x = make((5, 16, 7, 7), 8, torch.float64, backend)["input"]
    zca = batch_matrix(x, 8)
    errors = [error_of(batch_matrix(x, 8, method="iternorm", iterations=t), zca) for t in (1, 3, 5, 7, 9, 16)]
    assert errors == sorted(errors, reverse=True) and errors[2] > 1e-3 and errors[-1] < 1e-10, errors
    for dtype in (torch.float64, torch.float32):
        tolerance = WHITENING[dtype].error
        arguments = {name: make((5, 16, 7, 7), 8, dtype, backend)[name] for name in LEAVES}
        options = {"training": True, "num_channels": 8}
        expected = results_of(batch_whitening, arguments, **options)
        results = results_of(batch_whitening, arguments, method="iternorm", iterations=40, **options)
        assert all(error_of(results[name], expected[name]) < tolerance for name in results)


def embed(values: Tensor, size: tuple[int, ...], view: Any) -> Tensor:
    """`values` seen through `view` of a larger buffer, whose other elements are NaN: reading one shows."""
    window = view(values.new_full(size, torch.nan))
    return window.copy_(values)


STRIDED: dict[str, tuple[tuple[int, ...], Any, str]] = {  # of (3, 6, 5, 4): the buffer, the view, the result's layout
    "some channels": ((3, 9, 5, 4), lambda t: t[:, 2:8], FIRST),
    "a crop": ((3, 6, 8, 7), lambda t: t[:, :, 2:7, 1:5], FIRST),
    "transposed image": ((3, 6, 4, 5), lambda t: t.transpose(2, 3), FIRST),
    "a crop of channels last": ((3, 8, 7, 6), lambda t: t.movedim(-1, 1)[:, :, 2:7, 1:5], LAST),
    "unaligned": ((361,), lambda t: t[1:].view(3, 6, 5, 4), FIRST),
    "unaligned, channels last": ((363,), lambda t: t[3:].view(3, 5, 4, 6).movedim(-1, 1), LAST),
}


@pytest.mark.parametrize("name", STRIDED)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=dtype_id)
def test_strided_equals_contiguous(backend: TestBackend, name: str, dtype: torch.dtype) -> None:
    """Input and incoming gradient, together and one by one: the same bits, laid out as torch suggests."""
    size, view, layout = STRIDED[name]
    options = {"training": True, "num_channels": 3}
    plain = make((3, 6, 5, 4), 3, dtype, backend, layout)
    grad_y = in_layout(make((3, 6, 5, 4), 3, dtype, backend, seed=5)["input"], layout)
    expected = assert_right(plain, grad_y=grad_y.cpu(), **options) if backend.device.type == "cpu" else None
    expected = expected or results_of(batch_whitening, plain, grad_y, **options)
    strided = plain | {"input": embed(plain["input"], size, view)}
    strided_grad = embed(grad_y, size, view)
    for arguments, grad in ((strided, strided_grad), (strided, grad_y), (plain, strided_grad)):
        results = results_of(batch_whitening, arguments, grad, **options)
        for result in expected:
            assert_bitwise(result, results[result], expected[result])
        for result in ("y", "grad_input"):
            assert results[result].stride() == plain["input"].stride(), result


@all_layouts
def test_layout_of_the_gradient(backend: TestBackend, layout: str) -> None:
    """channels_last in, channels_last out, 2d and 3d; the incoming gradient may have the other layout or stride 0."""
    other = LAST if layout == FIRST else FIRST
    for shape in ((2, 6, 3, 5), (2, 6, 3, 5, 2)):
        arguments = make(shape, 3, torch.float32, backend, layout)
        memory_format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        grad_y = torch.randn(shape, device=backend.device)
        one = torch.full((), 0.5, device=backend.device).expand(shape)
        for grad, same in ((in_layout(grad_y, layout), in_layout(grad_y, other)), (one, in_layout(one, layout))):
            first, second = (
                results_of(batch_whitening, arguments, g, training=True, num_channels=3) for g in (grad, same)
            )
            for name in first:
                assert_bitwise(name, first[name], second[name])
            for name in ("y", "grad_input"):
                assert first[name].is_contiguous(memory_format=memory_format) == (layout == LAST), name
                assert first[name].is_contiguous() == (layout == FIRST), name


@all_layouts
def test_inputs_are_left_alone(backend: TestBackend, layout: str) -> None:
    arguments = make((3, 6, 5, 7), 3, torch.float32, backend, layout)
    before = {name: t.clone() for name, t in arguments.items()}
    results = results_of(batch_whitening, arguments, training=True, num_channels=3)
    for name in LEAVES:
        assert_bitwise(name, arguments[name], before[name])
    places = [t.untyped_storage().data_ptr() for t in (*results.values(), *arguments.values())]
    assert len(set(places)) == len(places)
