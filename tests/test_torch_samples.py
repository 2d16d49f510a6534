"""PyTorch's own test samples for these ops and modules, as its test suite generates them; how many is its affair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import LAYER_NORM, RMS_NORM, Op, accumulator, dtype_id
from conftest import TestBackend
from torch import Tensor

import torchfastnorm

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 2e-3}
both_ops = pytest.mark.parametrize("op", (LAYER_NORM, RMS_NORM), ids=str)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def op_info(op: Op) -> Any:
    return next(info for info in op_db if info.name == f"nn.functional.{op.name}")


def module_infos() -> list[Any]:
    return [info for info in module_db if info.module_cls in (torch.nn.LayerNorm, torch.nn.RMSNorm)]


def leaves(*values: Any) -> list[Tensor]:
    found = [v for v in values if isinstance(v, Tensor)]
    return found + [v for value in values if isinstance(value, (list, tuple)) for v in leaves(*value)]


def compare(ours: Tensor, exact: Tensor, our_leaves: list[Tensor], exact_leaves: list[Tensor]) -> None:
    """The values of torch's function in fp64, and the gradients of one function of them. (torch's own low-precision
    gradients are no measure: summed in the low dtype, they are off by more than a tenth at a few hundred rows.)"""
    tolerance = TOLERANCE[ours.dtype]
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert ours.requires_grad == exact.requires_grad
    if not ours.requires_grad:
        return
    flowing = torch.linspace(-1, 1, ours.numel(), device=ours.device).view(ours.shape).to(ours.dtype)
    our_grads = torch.autograd.grad(ours, our_leaves, flowing)
    exact_grads = torch.autograd.grad(exact, exact_leaves, flowing.double())
    for a, b, leaf in zip(our_grads, exact_grads, our_leaves, strict=True):
        assert a.dtype == leaf.dtype
        scale = max(1.0, b.abs().nan_to_num().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=4 * scale * tolerance, equal_nan=True)


@both_ops
@all_dtypes
def test_op_samples(backend: TestBackend, op: Op, dtype: torch.dtype) -> None:
    count = 0
    for sample in op_info(op).sample_inputs(backend.device, dtype, requires_grad=True):
        sides = []
        for function, precision in ((op.function, dtype), (op.torch, torch.float64)):
            x, *args = [
                v.detach().to(precision).requires_grad_() if isinstance(v, Tensor) else v
                for v in (sample.input, *sample.args)
            ]
            keywords = dict(sample.kwargs)
            if op is RMS_NORM:
                keywords.setdefault("eps", torch.finfo(accumulator(dtype)).eps)
            sides.append((function(x, *args, **keywords), leaves(x, args)))
        (ours, our_leaves), (exact, exact_leaves) = sides
        compare(ours, exact, our_leaves, exact_leaves)
        count += 1
    assert count


@both_ops
def test_op_reference_samples(backend: TestBackend, op: Op) -> None:
    """The larger samples that PyTorch compares with its Python references; without gradient."""
    count = 0
    for sample in op_info(op).reference_inputs(backend.device, torch.float32, requires_grad=False):
        ours = op.function(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(ours, op.torch(sample.input, *sample.args, **sample.kwargs), equal_nan=True)
        count += 1
    assert count


def error_samples(op: Op, device: torch.device) -> Iterator[Any]:
    for info in op_db:
        if info.name in (f"nn.functional.{op.name}", f"native_{op.name}") and info.error_inputs_func is not None:
            yield from info.error_inputs(device)


@both_ops
def test_op_error_samples(backend: TestBackend, op: Op) -> None:
    count = 0
    for error in error_samples(op, backend.device):
        sample = error.sample_input
        with pytest.raises(Exception) as theirs:
            op.torch(sample.input, *sample.args, **sample.kwargs)
        with pytest.raises(Exception) as ours:
            op.function(sample.input, *sample.args, **sample.kwargs)
        assert type(ours.value) is type(theirs.value), f"{ours.value!r}, torch: {theirs.value!r}"
        count += 1
    assert count


@pytest.mark.parametrize("info", module_infos(), ids=lambda info: info.name)
@all_dtypes
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_module_samples(backend: TestBackend, info: Any, dtype: torch.dtype, training: bool) -> None:
    count = 0
    our_class = getattr(torchfastnorm, info.module_cls.__name__)
    for sample in info.module_inputs_func(info, backend.device, dtype, True, training):
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        sides = []
        for module_class, precision in ((our_class, dtype), (info.module_cls, torch.float64)):
            torch.manual_seed(1)
            module = module_class(*args, **kwargs, device=backend.device, dtype=dtype).train(training)
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter)
            module.to(precision)
            x = sample.forward_input.args[0].detach().to(precision).requires_grad_()
            sides.append((module(x), [x, *module.parameters()]))
        (ours, our_leaves), (exact, exact_leaves) = sides
        compare(ours, exact, our_leaves, exact_leaves)
        count += 1
    assert count
