"""The error budget: an output may be at most twice as wrong as PyTorch computing in the same dtype.

`max|out - truth| <= 2 * max|torch in the same dtype - truth| + tiny`, with truth computed in
float32 or float64. `tiny` is half a unit in the last place of the largest true value: what rounding
an exact result to the output's dtype costs, so that a lucky PyTorch result cannot make an exactly
computed one fail.
"""

from __future__ import annotations

from torch import Tensor, finfo

FACTOR = 2.0


def largest_error(values: Tensor, truth: Tensor) -> float:
    """max|values - truth|; infinite where values holds a NaN or an infinity that truth does not."""
    if values.shape != truth.shape:
        raise ValueError(f"shapes differ: {tuple(values.shape)} against {tuple(truth.shape)}.")
    if values.numel() == 0:
        return 0.0
    difference = (values.double() - truth.double()).abs()
    difference = difference.masked_fill(values.double() == truth.double(), 0.0)
    return float(difference.nan_to_num(nan=float("inf"), posinf=float("inf")).max())


def budget(out: Tensor, truth: Tensor, same_dtype_torch: Tensor) -> float:
    """The largest error `out` may have. ValueError where PyTorch's own result gives no measure."""
    if out.numel() == 0:
        return 0.0
    tiny = 0.5 * finfo(out.dtype).eps * float(truth.double().abs().max())
    torch_error = largest_error(same_dtype_torch, truth)
    if torch_error == float("inf"):
        # Anything would keep twice that. Seen with oneDNN's bfloat16 products on AMX.
        raise ValueError(
            "PyTorch's own result is not finite where the true one is, so that it gives no error "
            "budget: compute it from contiguous copies of the inputs."
        )
    return FACTOR * torch_error + tiny


def within_budget(out: Tensor, truth: Tensor, same_dtype_torch: Tensor) -> bool:
    """True where `out` keeps the budget. Shapes must be equal; anything not finite breaks it."""
    return excess(out, truth, same_dtype_torch) is None


def excess(out: Tensor, truth: Tensor, same_dtype_torch: Tensor) -> str | None:
    """None within the budget, otherwise one sentence with both numbers."""
    error, allowed = largest_error(out, truth), budget(out, truth, same_dtype_torch)
    if error <= allowed:
        return None
    return f"the largest error is {error:.3e}, the budget is {allowed:.3e} ({out.dtype})."
