"""Models of torchvision with random weights: converted, they train as with torch.nn's norms, in both memory formats."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import TestBackend
from torch import Tensor, nn

import torchfastnorm

STEPS = 10
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Norms that torchvision builds of torch.nn's own classes; its LayerNorm2d, a subclass, is left alone.
MODELS = {"resnet50": 53, "convnext_tiny": 18}


@pytest.fixture(scope="module")
def models() -> Any:
    try:
        import torchvision
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:
        # Its compiled operators, which these models do not need, were built for another torch; it expects them by name.
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision.models


def losses_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().double().cpu())
    return torch.stack(losses)


@pytest.mark.backends("cpu", "cuda")  # sim would take hours
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_trains_as_with_torch(backend: TestBackend, models: Any, name: str, memory_format: str) -> None:
    """Ten steps. Rounding is amplified from step to step, by how much tells torch.nn itself: its losses in fp32 beside
    those in fp64."""
    torch.manual_seed(0)
    options = {"stochastic_depth_prob": 0.0} if name.startswith("convnext") else {}
    model = getattr(models, name)(num_classes=10, **options).to(backend.device, memory_format=FORMATS[memory_format])
    inputs = torch.randn(8, 3, 32, 32).to(backend.device, memory_format=FORMATS[memory_format])
    labels = torch.arange(8, device=backend.device)
    replaced: list[Any] = []
    ours = torchfastnorm.convert(model, report=replaced)
    assert len(replaced) == MODELS[name]
    exact = losses_of(copy.deepcopy(model).double(), inputs.double(), labels)
    theirs = losses_of(model, inputs, labels)
    found = losses_of(ours, inputs, labels)
    print(name, memory_format, exact.tolist(), (theirs - exact).abs().tolist(), (found - exact).abs().tolist())
    assert exact[-1] < 0.9 * exact[0], "it does not learn"
    spread = (theirs - exact).abs().cummax(0).values
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=float(3 * spread[-1]))
