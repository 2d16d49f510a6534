"""Peers that have LayerNorm or RMSNorm over rows, and how each is called. peer() leaves out what is not installed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .baselines import peer
from .cells import Candidate


def _module_as_function(module_type: type[torch.nn.Module], eps: float) -> Callable[..., Any]:
    """A module that owns its parameters, called with those given."""

    @functools.lru_cache(maxsize=4)
    def module(cols: int, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        return module_type(cols, eps=eps, params_dtype=dtype, device=device)

    def call(x: Tensor, *parameters: Tensor) -> Any:
        owner = module(x.shape[-1], x.dtype, x.device)
        values = dict(zip(("weight", "bias"), parameters, strict=False))
        return torch.func.functional_call(owner, values, (x,))

    return call


def layer_norm(eps: float) -> list[Candidate]:
    return [
        *peer("liger", "liger-kernel", "liger_kernel.ops.layer_norm:LigerLayerNormFunction",
              lambda f: lambda x, w, b: f.apply(x, w, b, eps)),
        *peer("quack", "quack-kernels", "quack.rmsnorm:layernorm_fwd",
              lambda f: lambda x, w, b: f(x, w.float(), b.float(), eps), has_backward=False),
        *peer("apex", "apex", "apex.normalization.fused_layer_norm:fused_layer_norm_affine",
              lambda f: lambda x, w, b: f(x, w, b, (x.shape[-1],), eps)),
        *peer("transformer_engine", "transformer-engine", "transformer_engine.pytorch:LayerNorm",
              lambda t: _module_as_function(t, eps)),
        *peer("flash_attn", "flash-attn", "flash_attn.ops.triton.layer_norm:layer_norm_fn",
              lambda f: lambda x, w, b: f(x, w, b, eps=eps)),
        *peer("flashinfer", "flashinfer-python", "flashinfer.norm:layernorm",
              lambda f: lambda x, w, b: f(x, w.float(), b.float(), eps), has_backward=False),
    ]  # fmt: skip


def rms_norm(eps: float) -> list[Candidate]:
    return [
        *peer("liger", "liger-kernel", "liger_kernel.ops.rms_norm:LigerRMSNormFunction",
              lambda f: lambda x, w: f.apply(x, w, eps, 0.0, "llama", False)),
        *peer("quack", "quack-kernels", "quack.rmsnorm:rmsnorm", lambda f: lambda x, w: f(x, w, eps=eps)),
        *peer("apex", "apex", "apex.normalization.fused_layer_norm:fused_rms_norm_affine",
              lambda f: lambda x, w: f(x, w, (x.shape[-1],), eps)),
        *peer("transformer_engine", "transformer-engine", "transformer_engine.pytorch:RMSNorm",
              lambda t: _module_as_function(t, eps)),
        *peer("flash_attn", "flash-attn", "flash_attn.ops.triton.layer_norm:rms_norm_fn",
              lambda f: lambda x, w: f(x, w, None, eps=eps)),
        *peer("flashinfer", "flashinfer-python", "flashinfer.norm:rmsnorm",
              lambda f: lambda x, w: f(x, w, eps), has_backward=False),
    ]  # fmt: skip


def add_layer_norm(eps: float) -> list[Candidate]:
    return peer("flash_attn", "flash-attn", "flash_attn.ops.triton.layer_norm:layer_norm_fn",
                lambda f: lambda x, r, w, b: f(x, w, b, residual=r, eps=eps, prenorm=True))  # fmt: skip


def add_rms_norm(eps: float) -> list[Candidate]:
    """Without flashinfer's, which writes into its inputs and has no backward."""
    return [
        *peer("liger", "liger-kernel", "liger_kernel.ops.fused_add_rms_norm:LigerFusedAddRMSNormFunction",
              lambda f: lambda x, r, w: f.apply(x, r, w, eps, 0.0, "llama", False)),
        *peer("quack", "quack-kernels", "quack.rmsnorm:rmsnorm",
              lambda f: lambda x, r, w: f(x, w, residual=r, eps=eps, prenorm=True)),
        *peer("flash_attn", "flash-attn", "flash_attn.ops.triton.layer_norm:rms_norm_fn",
              lambda f: lambda x, r, w: f(x, w, None, residual=r, eps=eps, prenorm=True)),
    ]  # fmt: skip
