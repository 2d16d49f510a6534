"""PyTorch's own test samples for the seven modules and three functions of the plane family: forward, backward, buffers,
errors, memory formats. How many there are is PyTorch's affair."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from cases import DTYPES, dtype_id
from conftest import TestBackend
from plane_cases import LAST, LAYOUTS, PLANE_OPS, PlaneOp, in_layout
from torch import Tensor, nn

import torchfastnorm

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
from test_torch_samples import TOLERANCE, compare, leaves
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

NAMES = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")
all_ops = pytest.mark.parametrize("op", PLANE_OPS, ids=str)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
INFOS = [info for info in module_db if info.module_cls in [getattr(nn, name) for name in NAMES]]
all_modules = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
both_modes = pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))


def op_infos(op: PlaneOp) -> list[Any]:
    return [info for info in op_db if info.name == f"nn.functional.{op.name}"]


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A leaf of its own for every tensor, in that dtype where it is floating, nothing else changed."""
    if not isinstance(value, Tensor):
        return value
    floating = value.is_floating_point()
    return value.detach().clone().to(dtype if floating else value.dtype).requires_grad_(value.requires_grad)


def close(name: str, ours: Tensor, exact: Tensor) -> None:
    tolerance = TOLERANCE.get(ours.dtype, 0)
    torch.testing.assert_close(
        ours.double(), exact.double(), rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{name}: {m}"
    )


def test_all_seven_modules_have_samples() -> None:
    assert {info.module_cls.__name__ for info in INFOS} == set(NAMES)


@all_ops
@all_dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_op_samples(backend: TestBackend, op: PlaneOp, dtype: torch.dtype, layout: str) -> None:
    count = 0
    for info in op_infos(op):
        for sample in info.sample_inputs(backend.device, dtype, requires_grad=True):
            sides = []
            for function, precision in ((op.function, dtype), (op.torch, torch.float64)):
                x = cast(in_layout(sample.input, layout) if layout == LAST else sample.input, precision)
                args = [cast(v, precision) for v in sample.args]
                kwargs = {k: cast(v, precision) for k, v in sample.kwargs.items()}
                tensors = leaves(x, args, list(kwargs.values()))
                wanted = [t for t in tensors if t.requires_grad]
                sides.append((function(x, *args, **kwargs), wanted, [t for t in tensors if not t.requires_grad]))
            (ours, our_leaves, our_rest), (exact, exact_leaves, exact_rest) = sides
            compare(ours, exact, our_leaves, exact_leaves)
            for a, b in zip(our_rest, exact_rest, strict=True):
                close("running statistics", a, b)
            count += 1
    assert count


@all_ops
def test_op_reference_samples(backend: TestBackend, op: PlaneOp) -> None:
    """The larger samples that PyTorch compares with its Python references; without gradient."""
    count = 0
    for info in op_infos(op):
        for sample in info.reference_inputs(backend.device, torch.float32, requires_grad=False):
            results = []
            for function in (op.function, op.torch):
                args = [cast(v, torch.float32) for v in (sample.input, *sample.args)]
                results.append(function(*args, **{k: cast(v, torch.float32) for k, v in sample.kwargs.items()}))
            torch.testing.assert_close(*results, equal_nan=True, rtol=1e-5, atol=1e-5)
            count += 1
    assert count


@all_ops
def test_op_error_samples(backend: TestBackend, op: PlaneOp) -> None:
    names = (f"nn.functional.{op.name}", f"native_{op.name}")
    infos = [info for info in op_db if info.name in names and info.error_inputs_func is not None]
    for error in (error for info in infos for error in info.error_inputs(backend.device)):
        sample = error.sample_input
        if sample.input.numel() == 0:
            continue  # torch 2.14 rejects no channels and no positions; ours returns them as older ones do
        raised = []
        for function in (op.torch, op.function):
            with pytest.raises(Exception) as caught:
                function(sample.input, *sample.args, **sample.kwargs)
            raised.append(type(caught.value))
        assert raised[0] is raised[1]


def module_pair(info: Any, sample: Any, dtype: torch.dtype, training: bool, backend: TestBackend) -> list[nn.Module]:
    """(ours, torch's in fp64), with the same parameters and buffers, none of them trivial."""
    constructor = sample.constructor_input
    theirs = info.module_cls(*constructor.args, **constructor.kwargs, device=backend.device, dtype=dtype)
    ours_class = getattr(torchfastnorm, info.module_cls.__name__)
    ours = ours_class(*constructor.args, **constructor.kwargs, device=backend.device, dtype=dtype)
    torch.manual_seed(1)
    for tensor in (*theirs.parameters(), *theirs.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return [ours.train(training), theirs.double().train(training)]


@all_modules
@all_dtypes
@both_modes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_module_samples(backend: TestBackend, info: Any, dtype: torch.dtype, training: bool, layout: str) -> None:
    """Two calls: values, gradients, and the buffers afterwards."""
    count = 0
    for sample in info.module_inputs_func(info, backend.device, dtype, True, training):
        ours, theirs = module_pair(info, sample, dtype, training, backend)
        for _ in range(2):
            sides = []
            for module, precision in ((ours, dtype), (theirs, torch.float64)):
                args = [cast(in_layout(v, layout), precision) for v in sample.forward_input.args]
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # "num_features is not used"
                    sides.append((module(*args), [*args, *module.parameters()]))
            (y, our_leaves), (exact, exact_leaves) = sides
            compare(y, exact, our_leaves, exact_leaves)
        for (name, a), (other, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            assert name == other and a.dtype == (dtype if a.is_floating_point() else b.dtype)
            close(name, a, b)
        count += 1
    assert count


@all_modules
@both_modes
def test_module_error_samples(backend: TestBackend, info: Any, training: bool) -> None:
    if info.module_error_inputs_func is None:
        pytest.skip("PyTorch has no error samples for it")
    for error in info.module_error_inputs_func(info, backend.device, torch.float32, False, training):
        sample, outcomes = error.module_error_input, []
        for module_class in (info.module_cls, getattr(torchfastnorm, info.module_cls.__name__)):
            try:
                module = module_class(*sample.constructor_input.args, **sample.constructor_input.kwargs)
                module.to(backend.device).train(training)(*sample.forward_input.args, **sample.forward_input.kwargs)
                outcomes.append(None)  # some are errors in training alone
            except Exception as caught:
                outcomes.append(type(caught))
        if not training and sample.constructor_input.kwargs.get("eps") == 0:
            outcomes[0] = None  # torch 2.11 rejects it in evaluation as in training, newer ones and ours do not
        assert outcomes[0] is outcomes[1] and (outcomes[0] is not None or not training)


@all_modules
@both_modes
def test_module_samples_copy_and_keep_their_state(backend: TestBackend, info: Any, training: bool) -> None:
    """repr, state_dict keys, and the result of a deep copy, for every construction that PyTorch tests."""
    for sample in info.module_inputs_func(info, backend.device, torch.float32, False, training):
        ours, theirs = module_pair(info, sample, torch.float32, training, backend)
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        other = copy.deepcopy(ours)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            results = [module(*sample.forward_input.args) for module in (ours, other)]
        torch.testing.assert_close(*results, rtol=0, atol=0)
