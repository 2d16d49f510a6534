"""Real architectures from the parts of torch.nn, with random weights, in sizes that can be set.

Layer for layer as published: ResNet-50 (He 2015), ConvNeXt-T (Liu 2022), ViT-S/16 (Dosovitskiy 2020; Touvron 2020),
Llama (Touvron 2023), and the convolutional U-Net of diffusion models (Ho 2020) without its attention. `width` and
`depth` scale them. No operation works in place, so that gradients can be timed at every norm.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.first = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        middle = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.second = nn.Sequential(middle, nn.BatchNorm2d(width), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.third(self.second(self.first(x))) + self.shortcut(x))


def resnet50(classes: int = 1000, width: int = 64, depth: int = 0) -> nn.Module:
    """`depth` blocks at most in a stage; 0: the 3, 4, 6, 3 of ResNet-50."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(min(blocks, depth or blocks)):
            layers.append(Bottleneck(channels, width << stage, 2 if block == 0 and stage > 0 else 1))
            channels = 4 * (width << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a feature map: a row for each pixel, free of copies in channels_last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.scale = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.mlp(rows)).permute(0, 3, 1, 2)


def convnext_t(classes: int = 1000, width: int = 96, depth: int = 0) -> nn.Module:
    """`depth` blocks at most in a stage; 0: the 3, 3, 9, 3 of ConvNeXt-T."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 4), ChannelNorm(width)]
    for stage, blocks in enumerate((3, 3, 9, 3)):
        channels = width << stage
        if stage:
            layers += [ChannelNorm(channels // 2), nn.Conv2d(channels // 2, channels, 2, 2)]
        layers += [ConvNeXtBlock(channels) for _ in range(min(blocks, depth or blocks))]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8 * width, eps=1e-6), nn.Linear(8 * width, classes)]
    return nn.Sequential(*layers, *head)


class Attention(nn.Module):
    """Of all positions, or causal with rotary positions as in Llama."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width, not causal), nn.Linear(width, width, not causal)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.causal:
            q, k = rotate(q), rotate(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


def rotate(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * frequencies
    a, b = x[..., :half], x[..., half:]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool, norm: Callable[[], nn.Module], mlp: nn.Module) -> None:
        super().__init__()
        self.first, self.attention = norm(), Attention(width, heads, causal)
        self.second, self.mlp = norm(), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class ViT(nn.Module):
    def __init__(self, classes: int, width: int, depth: int, image: int) -> None:
        super().__init__()
        patch = max(1, min(16, image // 4))
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(self._block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    @staticmethod
    def _block(width: int) -> nn.Module:
        mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        return TransformerBlock(width, max(1, width // 64), False, lambda: nn.LayerNorm(width, eps=1e-6), mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_s(classes: int = 1000, width: int = 384, depth: int = 12, image: int = 224) -> nn.Module:
    return ViT(classes, width, depth, image)


class GatedMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = (8 * width // 3 + 63) // 64 * 64
        self.gate, self.up = nn.Linear(width, hidden, False), nn.Linear(width, hidden, False)
        self.down = nn.Linear(hidden, width, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def llama(vocabulary: int = 32000, width: int = 4096, depth: int = 32) -> nn.Module:
    def block() -> nn.Module:
        return TransformerBlock(width, max(1, width // 128), True, lambda: nn.RMSNorm(width, eps=1e-5), GatedMlp(width))

    blocks = [block() for _ in range(depth)]
    head = [nn.RMSNorm(width, eps=1e-5), nn.Linear(width, vocabulary, False)]
    return nn.Sequential(nn.Embedding(vocabulary, width), *blocks, *head)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice: of the U-Nets of diffusion models."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, 1, 1))
        self.second = nn.Sequential(nn.GroupNorm(groups, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, 1, 1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.shortcut(x)


class UNet(nn.Module):
    def __init__(self, width: int, depth: int, factors: tuple[int, ...] = (1, 2, 4, 4)) -> None:
        super().__init__()
        groups = min(32, width)
        sizes = [width * factor for factor in factors]
        self.enter, channels = nn.Conv2d(3, width, 3, 1, 1), width
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for size in sizes:
            blocks = [ResidualBlock(channels if i == 0 else size, size, groups) for i in range(depth)]
            self.down.append(nn.Sequential(*blocks))
            channels = size
        self.middle = ResidualBlock(channels, channels, groups)
        for size in reversed(sizes):
            blocks = [ResidualBlock(channels + size if i == 0 else size, size, groups) for i in range(depth)]
            self.up.append(nn.Sequential(*blocks))
            channels = size
        self.leave = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, 3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, kept = self.enter(x), []
        for index, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if index else x)
            kept.append(x)
        x = self.middle(x)
        for index, level in enumerate(self.up):
            x = level(torch.cat((F.interpolate(x, scale_factor=2.0) if index else x, kept.pop()), 1))
        return self.leave(x)


def unet(width: int = 320, depth: int = 2) -> nn.Module:
    return UNet(width, depth)
