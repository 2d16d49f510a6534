"""RMSNorm by hand: numbers that can be checked on paper, and the surface of torch.nn.RMSNorm."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from cases import dtype_id
from conftest import TestBackend
from torch import nn

from torchfastnorm import AddRMSNorm, RMSNorm, add_rms_norm, rms_norm

CONSTRUCTIONS = (
    ((16,), {}),
    (([3, 4],), {}),
    ((torch.Size([3, 4]), 1e-3), {}),
    ((16, None, False), {}),
    ((16,), {"dtype": torch.float64, "device": "cpu"}),
    ((16,), {"device": "meta"}),
)


def test_on_paper(backend: TestBackend) -> None:
    """Mean square (1 + 4 + 9 + 16) / 4 = 7.5; eps is chosen so that rstd is exactly 1/4."""
    x = torch.tensor([[1.0, -2.0, 3.0, -4.0]], device=backend.device, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0], device=backend.device, requires_grad=True)
    y = rms_norm(x, (4,), weight, eps=8.5)
    assert y.tolist() == [[0.25, -1.0, 3.0, -8.0]]
    y.backward(torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=backend.device))
    # g = (1, 0, 0, 0), x_hat = x / 4, mean(g x_hat) = 1/16
    assert weight.grad.tolist() == [0.25, 0.0, 0.0, 0.0]
    assert x.grad.tolist() == [
        [0.25 * (g - h / 16) for g, h in zip((1, 0, 0, 0), (0.25, -0.5, 0.75, -1.0), strict=True)]
    ]


def test_add_on_paper(backend: TestBackend) -> None:
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0]], device=backend.device)
    residual = torch.tensor([[0.0, -3.0, 2.0, -5.0]], device=backend.device)
    y, total = add_rms_norm(x, residual, (4,), eps=8.5)
    assert total.tolist() == [[1.0, -2.0, 3.0, -4.0]]
    assert y.tolist() == [[0.25, -0.5, 0.75, -1.0]]


@pytest.mark.parametrize("module_class", (RMSNorm, AddRMSNorm))
@pytest.mark.parametrize("args, kwargs", CONSTRUCTIONS)
def test_construction_is_that_of_torch(module_class: type[nn.Module], args: tuple, kwargs: dict) -> None:
    ours, theirs = module_class(*args, **kwargs), nn.RMSNorm(*args, **kwargs)
    assert isinstance(ours, nn.RMSNorm)
    assert repr(ours) == repr(theirs).replace("RMSNorm(", f"{module_class.__name__}(")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, parameter in theirs.named_parameters():
        mine = ours.get_parameter(name)
        assert (mine.shape, mine.dtype, mine.device) == (parameter.shape, parameter.dtype, parameter.device)
        assert mine.is_meta or torch.equal(mine, parameter)
    for attribute in ("normalized_shape", "eps", "elementwise_affine"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)


def test_signatures_are_those_of_torch() -> None:
    parameters = list(inspect.signature(rms_norm).parameters.values())
    theirs = list(inspect.signature(F.rms_norm).parameters.values())
    assert [(p.name, p.default) for p in parameters[:-1]] == [(p.name, p.default) for p in theirs]
    assert parameters[-1].name == "out_dtype" and parameters[-1].kind is inspect.Parameter.KEYWORD_ONLY
    assert list(inspect.signature(add_rms_norm).parameters)[:2] == ["input", "residual"]
    assert inspect.signature(RMSNorm) == inspect.signature(nn.RMSNorm)


def test_state_dict_goes_both_ways(backend: TestBackend) -> None:
    theirs, ours = nn.RMSNorm(16), RMSNorm(16)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 16, device=backend.device)
    torch.testing.assert_close(ours.to(backend.device)(x), theirs.to(backend.device)(x))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=dtype_id)
def test_eps_none(backend: TestBackend, dtype: torch.dtype) -> None:
    """The machine epsilon of float32, of float64 for float64: rows near zero tell which one it was."""
    module = RMSNorm(4).to(backend.device, dtype)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    x = torch.full((1, 4), eps**0.5, dtype=dtype, device=backend.device)
    expected = x.double() * (x.double().square().mean() + eps).rsqrt()
    torch.testing.assert_close(module(x).double(), expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("size", (15, 17))
def test_module_error_is_that_of_torch(backend: TestBackend, size: int) -> None:
    x = torch.randn(4, size, device=backend.device)
    errors = []
    for module in (RMSNorm(16).to(backend.device), nn.RMSNorm(16).to(backend.device)):
        with pytest.raises(RuntimeError, match="normalized_shape") as error:
            module(x)
        errors.append(error.value)
    assert type(errors[0]) is type(errors[1])


def test_add_module(backend: TestBackend) -> None:
    module = AddRMSNorm((4, 5), eps=1e-3).to(backend.device)
    nn.init.normal_(module.weight)
    x, residual = torch.randn(2, 3, 4, 5, device=backend.device), torch.randn(2, 3, 4, 5, device=backend.device)
    y, total = module(x, residual)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(y, F.rms_norm(total, (4, 5), module.weight, 1e-3))


def test_a_residual_stream_in_single_precision(backend: TestBackend) -> None:
    """A stack of blocks with bf16 activations and an fp32 residual: the stream keeps what bf16 would lose."""
    module = AddRMSNorm(64, dtype=torch.float32).to(backend.device)
    stream = torch.randn(8, 64).to(backend.device)
    exact = stream.double()
    for _ in range(50):
        update = (torch.randn(8, 64) * 1e-3).to(backend.device, torch.bfloat16)
        y, stream = module(update, stream)
        exact = exact + update.double()
    assert stream.dtype == torch.float32 and y.dtype == torch.bfloat16
    assert (stream.double() - exact).abs().max() < 1e-5
