"""Models of torchvision with random weights: converted, they train as with torch.nn's norms, in both memory formats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TestBackend
from torch import Tensor, nn

import torchfastnorm

STEPS = 10
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# How they are built: without randomness in forward, and so that training does not amplify every rounding from step to
# step, as that of a ResNet does whose blocks are not the identity at first. And how many norms of torch.nn's own
# classes they have; torchvision's LayerNorm2d, a subclass, is left alone.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "resnet50": ({"zero_init_residual": True}, 53),
    "convnext_tiny": ({"stochastic_depth_prob": 0.0}, 18),
}


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
    """Ten steps in fp32."""
    torch.manual_seed(0)
    options, norms = MODELS[name]
    model = getattr(models, name)(num_classes=10, **options).to(backend.device, memory_format=FORMATS[memory_format])
    inputs = torch.randn(16, 3, 32, 32).to(backend.device, memory_format=FORMATS[memory_format])
    labels = torch.arange(16, device=backend.device) % 10
    replaced: list[Any] = []
    ours = torchfastnorm.convert(model, report=replaced)
    assert len(replaced) == norms
    theirs, found = losses_of(model, inputs, labels), losses_of(ours, inputs, labels)
    assert theirs[-1] < theirs[0] / 2, "it does not learn"
    # torch.nn's own losses differ from those in fp64 by 1e-7 of the first one, and by up to 6e-6 from where a rounding
    # turned a ReLU or a pooling the other way (four seeds, ResNet-50).
    torch.testing.assert_close(found, theirs, rtol=0, atol=3e-5)
