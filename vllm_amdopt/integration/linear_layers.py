"""Unquantized linear layers on our small-batch GEMM, through vLLM's own dispatch point.

vLLM 0.30-0.33 has no registry for unquantized GEMMs. `compat.unquantized_gemm` puts this module in
at the one place per platform that they all go through; here it is decided, once per layer, whether
our kernel applies, and, per call, by the number of rows, whether it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from vllm_amdopt.integration.cpu_engine import implementation, kernel_device
from vllm_amdopt.integration.faults import attempt, distortion
from vllm_amdopt.ops import gemm_small_batch

MAX_ROWS = 64
"""Above it the GEMM is no longer a walk over the weights, and the stock path takes over."""

Gemm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def layer_refusal(weight: torch.Tensor) -> str | None:
    """Why a layer with this weight, [N, K], stays on the stock path, or None."""
    if weight.dim() != 2:
        return f"the weight has {weight.dim()} dimensions, a linear layer's has 2"
    if weight.stride(1) != 1:
        return "the weight is not contiguous along K"
    return _weight_refusal(weight.shape[0], weight.shape[1], weight.dtype)


@cache
def _weight_refusal(n: int, k: int, dtype: torch.dtype) -> str | None:
    if implementation() == "reference":
        return None
    return gemm_small_batch.refusal(n=n, k=k, dtype=dtype)


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stock: Gemm
) -> torch.Tensor:
    """x [..., K] @ weight [N, K]^T + bias: our kernel for up to MAX_ROWS rows, else `stock`."""
    k = weight.shape[1]
    rows = x.numel() // k if k else 0
    if not 0 < rows <= MAX_ROWS or x.dtype != weight.dtype:
        return stock(x, weight, bias)

    def kernel() -> torch.Tensor:
        flat = x.reshape(rows, k)
        if flat.stride(1) != 1:
            flat = flat.contiguous()
        if bias is not None and bias.dtype != x.dtype:
            return stock(x, weight, bias)
        with kernel_device():
            out = gemm_small_batch.gemm_small_batch(
                flat, weight, bias, implementation=implementation()
            )
        if (distort := distortion("gemm_forward")) is not None:
            distort(out)
        return out.view(*x.shape[:-1], weight.shape[0])

    return attempt("gemm_forward", kernel, lambda: stock(x, weight, bias))
