"""The shapes that are measured, each with the reason it is there. Rows x columns of what is normalised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    rows: int
    cols: int
    reason: str
    layout: str = "contiguous"  # or "strided": a third of a fused product; "unaligned": begins one element late
    quick: bool = False

    def __str__(self) -> str:
        suffix = "" if self.layout == "contiguous" else f" {self.layout}"
        return f"{self.rows}x{self.cols}{suffix}"

    def elements(self) -> int:
        return self.rows * self.cols


CPU = (
    Shape(1, 4096, "one token of a language model"),
    Shape(64, 32768, "long rows, few of them", quick=True),
    Shape(512, 8192, "a short prompt of a wide model"),
    Shape(2048, 4096, "a prompt of a 7-8 B model", quick=True),
    Shape(4096, 1024, "BERT-large", quick=True),
    Shape(8192, 768, "BERT-base, GPT-2, ViT-B", quick=True),
    Shape(6304, 1280, "ViT-H, 32 images of 197 tokens"),
    Shape(65536, 64, "one attention head per row", quick=True),
    Shape(32768, 128, "queries of a fused QKV product", "strided"),
    Shape(100352, 96, "ConvNeXt-T, channels last, 32 images of 56 x 56"),
    Shape(8192, 1000, "columns that are no multiple of a vector"),
    Shape(2048, 4095, "odd columns: every row differs in alignment"),
    Shape(2048, 4096, "no 16-byte alignment anywhere", "unaligned"),
    Shape(8192, 4096, "larger than most last-level caches"),
    Shape(16, 1048576, "a million columns"),
)

CUDA = (
    Shape(1, 4096, "one token: launch-bound"),
    Shape(128, 4096, "a decoding batch"),
    Shape(1048576, 64, "one attention head per row"),
    Shape(524288, 128, "one attention head per row", quick=True),
    Shape(524288, 128, "queries of a fused QKV product", "strided"),
    Shape(262144, 256, "one attention head per row"),
    Shape(401408, 96, "ConvNeXt-T, channels last, 128 images of 56 x 56"),
    Shape(131072, 384, "ViT-S, Swin"),
    Shape(131072, 512, "DeepSeek's latent", quick=True),
    Shape(50432, 768, "ViT-B, 256 images of 197 tokens"),
    Shape(65536, 1024, "BERT-large", quick=True),
    Shape(32768, 1280, "ViT-H, GPT-2 large"),
    Shape(32768, 2048, "1-3 B models"),
    Shape(16384, 3072, "Flux, Gemma"),
    Shape(16384, 4096, "7-8 B models", quick=True),
    Shape(8192, 4095, "odd columns: every row differs in alignment"),
    Shape(16384, 4096, "no 16-byte alignment anywhere", "unaligned"),
    Shape(16384, 5120, "13 B models, Qwen"),
    Shape(8192, 7168, "DeepSeek-V3"),
    Shape(8192, 8192, "70 B models", quick=True),
    Shape(4096, 12288, "GPT-3"),
    Shape(4096, 16384, "405 B models"),
    Shape(4096, 32768, "long rows", quick=True),
    Shape(1024, 65536, "long rows"),
    Shape(1024, 131072, "rows of a cluster"),
    Shape(256, 262144, "rows of a large cluster", quick=True),
    Shape(64, 1048576, "rows beyond a cluster"),
)


def shapes_of(device_type: str, suite: str) -> list[Shape]:
    return [shape for shape in (CUDA if device_type == "cuda" else CPU) if suite == "full" or shape.quick]
