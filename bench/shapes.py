"""The shapes that are measured, each with the reason it is there.

Rows x columns of what is normalised, or samples x channels x height x width, in both layouts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    sizes: tuple[int, ...]
    reason: str
    # Rows may also be "strided", a third of a fused product, or "unaligned", beginning one element late; feature maps
    # "channels_last".
    layout: str = "contiguous"
    quick: bool = False

    def __str__(self) -> str:
        suffix = "" if self.layout == "contiguous" else f" {self.layout}"
        return "x".join(map(str, self.sizes)) + suffix

    def elements(self) -> int:
        return math.prod(self.sizes)

    @property
    def kind(self) -> str:
        """What bars are set for, and means taken over: "rows", or the layout of feature maps."""
        return "rows" if len(self.sizes) == 2 else self.layout


LAYOUTS = ("contiguous", "channels_last", "strided", "unaligned")


def in_both_layouts(*shapes: Shape) -> tuple[Shape, ...]:
    return tuple(copy for shape in shapes for copy in (shape, replace(shape, layout="channels_last")))


ROWS_CPU = (
    Shape((1, 4096), "one token of a language model"),
    Shape((64, 32768), "long rows, few of them", quick=True),
    Shape((512, 8192), "a short prompt of a wide model"),
    Shape((2048, 4096), "a prompt of a 7-8 B model", quick=True),
    Shape((4096, 1024), "BERT-large", quick=True),
    Shape((8192, 768), "BERT-base, GPT-2, ViT-B", quick=True),
    Shape((6304, 1280), "ViT-H, 32 images of 197 tokens"),
    Shape((65536, 64), "one attention head per row", quick=True),
    Shape((32768, 128), "queries of a fused QKV product", "strided"),
    Shape((100352, 96), "ConvNeXt-T, channels last, 32 images of 56 x 56"),
    Shape((8192, 1000), "columns that are no multiple of a vector"),
    Shape((2048, 4095), "odd columns: every row differs in alignment"),
    Shape((2048, 4096), "no 16-byte alignment anywhere", "unaligned"),
    Shape((8192, 4096), "larger than most last-level caches"),
    Shape((16, 1048576), "a million columns"),
)

ROWS_CUDA = (
    Shape((1, 4096), "one token: launch-bound"),
    Shape((128, 4096), "a decoding batch"),
    Shape((1048576, 64), "one attention head per row"),
    Shape((524288, 128), "one attention head per row", quick=True),
    Shape((524288, 128), "queries of a fused QKV product", "strided"),
    Shape((262144, 256), "one attention head per row"),
    Shape((401408, 96), "ConvNeXt-T, channels last, 128 images of 56 x 56"),
    Shape((131072, 384), "ViT-S, Swin"),
    Shape((131072, 512), "DeepSeek's latent", quick=True),
    Shape((50432, 768), "ViT-B, 256 images of 197 tokens"),
    Shape((65536, 1024), "BERT-large", quick=True),
    Shape((32768, 1280), "ViT-H, GPT-2 large"),
    Shape((32768, 2048), "1-3 B models"),
    Shape((16384, 3072), "Flux, Gemma"),
    Shape((16384, 4096), "7-8 B models", quick=True),
    Shape((8192, 4095), "odd columns: every row differs in alignment"),
    Shape((16384, 4096), "no 16-byte alignment anywhere", "unaligned"),
    Shape((16384, 5120), "13 B models, Qwen"),
    Shape((8192, 7168), "DeepSeek-V3"),
    Shape((8192, 8192), "70 B models", quick=True),
    Shape((4096, 12288), "GPT-3"),
    Shape((4096, 16384), "405 B models"),
    Shape((4096, 32768), "long rows", quick=True),
    Shape((1024, 65536), "long rows"),
    Shape((1024, 131072), "rows of a cluster"),
    Shape((256, 262144), "rows of a large cluster", quick=True),
    Shape((64, 1048576), "rows beyond a cluster"),
)

BATCH_CPU = in_both_layouts(
    Shape((8, 64, 112, 112), "ResNet's stem"),
    Shape((32, 64, 56, 56), "ResNet, first stage", quick=True),
    Shape((32, 256, 14, 14), "ResNet, third stage", quick=True),
    Shape((32, 2048, 7, 7), "ResNet-50, last stage: planes of 49 elements"),
)
GROUP_CPU = in_both_layouts(
    Shape((2, 512, 64, 64), "decoder of an image autoencoder"),
    Shape((8, 256, 32, 32), "small U-Net", quick=True),
    Shape((8, 320, 64, 64), "Stable Diffusion's U-Net", quick=True),
)
INSTANCE_CPU = in_both_layouts(
    Shape((4, 64, 128, 128), "style transfer, after the first halving", quick=True),
    Shape((8, 128, 64, 64), "style transfer, residual blocks", quick=True),
)

BATCH_CUDA = in_both_layouts(
    Shape((64, 64, 112, 112), "ResNet's stem", quick=True),
    Shape((256, 64, 112, 112), "ResNet's stem, a channel of 6 MB in bf16"),
    Shape((64, 256, 56, 56), "ResNet-50, first stage", quick=True),
    Shape((256, 256, 56, 56), "ResNet-50, first stage"),
    Shape((64, 512, 28, 28), "ResNet-50, second stage"),
    Shape((256, 512, 28, 28), "ResNet-50, second stage"),
    Shape((64, 1024, 14, 14), "ResNet-50, third stage", quick=True),
    Shape((256, 1024, 14, 14), "ResNet-50, third stage"),
    Shape((64, 2048, 7, 7), "ResNet-50, last stage: planes of 49 elements", quick=True),
    Shape((256, 2048, 7, 7), "ResNet-50, last stage: planes of 49 elements"),
    Shape((128, 16, 112, 112), "MobileNet: rows of 32 bytes in channels_last bf16"),
    Shape((128, 144, 56, 56), "MobileNet"),
    Shape((2, 256, 200, 304), "detection: few samples, large odd planes"),
    Shape((2, 64, 1024, 1024), "image generation"),
    Shape((2, 32, 64, 64, 64), "3-D U-Net"),
)
GROUP_CUDA = in_both_layouts(
    Shape((8, 320, 64, 64), "Stable Diffusion's U-Net", quick=True),
    Shape((8, 320, 128, 128), "Stable Diffusion XL's U-Net", quick=True),
    Shape((8, 640, 64, 64), "Stable Diffusion XL's U-Net"),
    Shape((16, 1280, 32, 32), "Stable Diffusion XL's U-Net", quick=True),
    Shape((16, 1280, 16, 16), "Stable Diffusion's U-Net"),
    Shape((8, 2560, 16, 16), "skip connections joined"),
    Shape((8, 960, 64, 64), "skip connections joined: 30 channels a group"),
    Shape((1, 128, 512, 512), "image autoencoder: groups of 2 MB in bf16", quick=True),
    Shape((1, 128, 1024, 1024), "image autoencoder: groups of 8 MB in bf16"),
    Shape((1, 512, 256, 256), "image autoencoder"),
    Shape((2, 256, 200, 304), "detection"),
    Shape((1, 128, 16, 128, 128), "video autoencoder"),
)
INSTANCE_CUDA = in_both_layouts(
    Shape((8, 32, 256, 256), "style transfer", quick=True),
    Shape((8, 64, 128, 128), "style transfer, after the first halving"),
    Shape((8, 128, 64, 64), "style transfer, residual blocks", quick=True),
    Shape((16, 256, 64, 64), "CycleGAN", quick=True),
    Shape((1, 32, 1080, 1920), "style transfer of a video frame"),
    Shape((2, 32, 128, 128, 128), "nnU-Net, first stage", quick=True),
    Shape((2, 320, 8, 8, 8), "nnU-Net, last stages"),
)

SUITES = {  # what an op's `shapes` names: those on a CPU, those on a GPU
    "rows": (ROWS_CPU, ROWS_CUDA),
    "batch_norm": (BATCH_CPU, BATCH_CUDA),
    "group_norm": (GROUP_CPU, GROUP_CUDA),
    "instance_norm": (INSTANCE_CPU, INSTANCE_CUDA),
}


def shapes_of(name: str, device_type: str, suite: str) -> list[Shape]:
    return [shape for shape in SUITES[name][device_type == "cuda"] if suite == "full" or shape.quick]


def parse(text: str) -> tuple[int, ...]:
    """4096x1024 or 32x64x56x56; raises ValueError."""
    sizes = tuple(map(int, text.lower().split("x")))
    if not (2 <= len(sizes) <= 5 and min(sizes) > 0):
        raise ValueError(text)
    return sizes


def given(name: str, sizes: list[tuple[int, ...]]) -> list[Shape]:
    """Those of `sizes` that an op with the shapes of this name takes."""
    if name == "rows":
        return [Shape(pair, "given") for pair in sizes if len(pair) == 2]
    return list(in_both_layouts(*(Shape(planes, "given") for planes in sizes if len(planes) > 2)))
