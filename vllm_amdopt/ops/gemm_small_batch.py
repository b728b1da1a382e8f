"""x @ weight^T for few rows, the shape of decoding: reference, refusal and launch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vllm_amdopt.ops import refusals
from vllm_amdopt.ops.operation import Implementation, Operation, RefusedError
from vllm_amdopt.ops.paged_cache import wide_dtype


def gemm_small_batch(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, implementation: str = "triton"
) -> Tensor:
    """[M, N] = x [M, K] @ weight [N, K]^T + bias [N], accumulated in float32, in x's dtype.

    Meant for M <= 64 rows; any M is correct. x and weight may be views with innermost stride 1.
    Raises RefusedError where `refusal` refuses.
    """
    result: Tensor = OPERATION.run(implementation)(x, weight, bias)
    return result


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, compute_dtype: torch.dtype | None = None
) -> Tensor:
    """The operation in plain PyTorch, in float32 or in `compute_dtype`, to see what that costs."""
    dtype = compute_dtype or wide_dtype(x.dtype)
    product = x.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        product = product + bias.to(dtype)
    return product.to(x.dtype)


def refusal(
    *,
    n: int,
    k: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None = None,
    gfx: str | None = None,
) -> str | None:
    """Why the Triton kernel does not apply to a layer with weight [n, k], or None."""
    weight_dtype = weight_dtype or dtype
    return refusals.first(
        refusals.no_triton(),
        refusals.architecture(gfx),
        refusals.dtype(dtype, "the input"),
        refusals.dtype(weight_dtype, "the weight"),
        None
        if weight_dtype is dtype
        else f"the weight is {refusals.short(weight_dtype)} and the input "
        f"{refusals.short(dtype)}; cast one to the other first.",
        None
        if n > 0 and k > 0
        else f"a weight of {n} x {k} holds nothing to multiply with; leave this layer to PyTorch.",
    )


@lru_cache(maxsize=256)
def _check(n: int, k: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    sentence = refusal(n=n, k=k, dtype=dtype, weight_dtype=weight_dtype)
    if sentence is not None:
        raise RefusedError(f"gemm_small_batch: {sentence}")


def launch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operation by the Triton kernel."""
    m, k = x.shape
    n = weight.shape[0]
    _check(n, k, x.dtype, weight.dtype)
    refusals.require_dense_rows("gemm_small_batch", x=x, weight=weight)
    if bias is not None:
        refusals.require_dense_rows("gemm_small_batch", bias=bias)
    from vllm_amdopt.kernels import gemm_small_batch as kernels

    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if m == 0:
        return out
    config = kernels.choose_config(m, n, k, x.element_size())
    kernels.gemm_kernel[(-(-n // config.columns), -(-m // config.rows))](
        x,
        weight,
        bias,
        out,
        m,
        n,
        k,
        x.stride(0),
        weight.stride(0),
        ROWS=config.rows,
        COLUMNS=config.columns,
        DEPTH=config.depth,
        HAS_BIAS=bias is not None,
        WHOLE_DEPTH=k % config.depth == 0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


OPERATION = Operation(
    name="gemm_small_batch",
    reference=reference,
    implementations=(Implementation("triton", launch, refusal),),
)
