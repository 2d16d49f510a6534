"""The norms of named networks, in the sizes that they have there: the suite `models`.

Batches are those of a small training job on a GPU, and of one that a CPU gets through in seconds.
"""

from __future__ import annotations

from .shapes import Shape, in_both_layouts


def resnet50(images: int) -> tuple[Shape, ...]:
    return in_both_layouts(
        Shape((images, 64, 112, 112), "ResNet-50: stem, the largest map of the network"),
        Shape((images, 64, 56, 56), "ResNet-50: stage 1, inside the bottlenecks"),
        Shape((images, 256, 56, 56), "ResNet-50: stage 1, where the shortcut is added; most bytes of all stages"),
        Shape((images, 128, 28, 28), "ResNet-50: stage 2, inside the bottlenecks"),
        Shape((images, 512, 28, 28), "ResNet-50: stage 2, where the shortcut is added"),
        Shape((images, 256, 14, 14), "ResNet-50: stage 3, inside the bottlenecks; most norms of all stages"),
        Shape((images, 1024, 14, 14), "ResNet-50: stage 3, where the shortcut is added"),
        Shape((images, 512, 7, 7), "ResNet-50: stage 4, inside the bottlenecks: planes of 49 elements"),
        Shape((images, 2048, 7, 7), "ResNet-50: stage 4, where the shortcut is added"),
    )


def convnext_tiny(images: int) -> tuple[Shape, ...]:
    return (
        Shape((images * 56 * 56, 96), "ConvNeXt-T: stage 1, a row for each pixel, 192 bytes in bf16"),
        Shape((images * 28 * 28, 192), "ConvNeXt-T: stage 2"),
        Shape((images * 14 * 14, 384), "ConvNeXt-T: stage 3, nine blocks of eighteen"),
        Shape((images * 7 * 7, 768), "ConvNeXt-T: stage 4"),
    )


def vit(images: int) -> tuple[Shape, ...]:
    return (
        Shape((images * 197, 384), "ViT-S/16: before attention and MLP, 196 patches and a class token"),
        Shape((images * 197, 768), "ViT-B/16: before attention and MLP"),
    )


def llama(tokens: int) -> tuple[Shape, ...]:
    return (Shape((tokens, 4096), "Llama 7-8B: before attention and MLP, a row for each token"),)


def stable_diffusion(images: int) -> tuple[Shape, ...]:
    return in_both_layouts(
        Shape((images, 320, 64, 64), "Stable Diffusion's U-Net: level 1, 10 channels a group"),
        Shape((images, 640, 32, 32), "Stable Diffusion's U-Net: level 2"),
        Shape((images, 1280, 16, 16), "Stable Diffusion's U-Net: level 3"),
        Shape((images, 1280, 8, 8), "Stable Diffusion's U-Net: the middle, 64 elements a plane"),
        Shape((images, 2560, 16, 16), "Stable Diffusion's U-Net: level 3 on the way up, with its skip connection"),
        Shape((images, 1920, 32, 32), "Stable Diffusion's U-Net: level 2 on the way up"),
        Shape((images, 960, 64, 64), "Stable Diffusion's U-Net: level 1 on the way up, 30 channels a group"),
    )


def nn_unet(samples: int, edge: int) -> tuple[Shape, ...]:
    return in_both_layouts(
        Shape((samples, 32, edge, edge, edge), "nnU-Net: full resolution, most of its bytes"),
        Shape((samples, 64, edge // 2, edge // 2, edge // 2), "nnU-Net: after the first halving"),
        Shape((samples, 128, edge // 4, edge // 4, edge // 4), "nnU-Net: after the second"),
        Shape((samples, 256, edge // 8, edge // 8, edge // 8), "nnU-Net: after the third"),
        Shape((samples, 320, edge // 16, edge // 16, edge // 16), "nnU-Net: its deepest levels keep 320 channels"),
    )


def of(op: str, shapes: str, device_type: str) -> tuple[Shape, ...]:
    """For an op, and the name of its shapes in shapes.SUITES."""
    gpu = device_type == "cuda"
    if shapes == "batch_norm":
        return resnet50(64 if gpu else 4)
    if shapes == "group_norm":
        return stable_diffusion(8 if gpu else 1)
    if shapes == "instance_norm":
        return nn_unet(2, 128 if gpu else 64)
    if "rms_norm" in op:
        return llama(8192 if gpu else 512)
    return (*convnext_tiny(64 if gpu else 8), *vit(64 if gpu else 8))
