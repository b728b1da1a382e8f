"""The refusals that several operations share, each one sentence that says what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_amdopt.hardware import ARCHITECTURES
from vllm_amdopt.kernels import availability
from vllm_amdopt.ops.operation import RefusedError

COMPILED_FOR = ("gfx942", "gfx950")
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FP8_DTYPES = (torch.float8_e4m3fnuz, torch.float8_e4m3fn)
MAX_BLOCK_SIZE = 128


def no_triton() -> str | None:
    if availability.triton_installed():
        return None
    return "Triton, which the kernels are written in, is missing; install the one PyTorch names."


def architecture(gfx: str | None) -> str | None:
    """`gfx` None means that no AMD GPU is involved (CPU engine, NVIDIA)."""
    if gfx is None or gfx in COMPILED_FOR:
        return None
    return (
        f"the kernels are tested for {' and '.join(COMPILED_FOR)}, not for {gfx}; "
        "leave the feature off on this GPU."
    )


def dtype(value: torch.dtype, what: str) -> str | None:
    if value not in KERNEL_DTYPES:
        return (
            f"{what} has dtype {short(value)}, and the kernels have no such form yet; "
            "use bfloat16, float16 or float32."
        )
    if value is torch.bfloat16 and availability.interpreted():
        return (
            f"{what} has dtype bfloat16, which Triton's interpreter gets wrong; use float32 or "
            "float16, or a machine-code engine."
        )
    return None


def cache_dtype(value: torch.dtype, model: torch.dtype, gfx: str | None = None) -> str | None:
    """For a kernel that takes caches of the model's dtype or of the chip's own fp8 (e4m3).

    `gfx` None: no AMD GPU is involved, or which one it is, is not known here.
    """
    if value is model:
        return dtype(value, "the KV cache")
    if value not in FP8_DTYPES:
        return (
            f"the KV cache is {short(value)} and the model {short(model)}; use "
            "--kv-cache-dtype auto."
        )
    if gfx is not None and value is not fp8_of(gfx):
        return (
            f"the KV cache is {short(value)}, and {gfx} computes with {short(fp8_of(gfx))}; use "
            "--kv-cache-dtype fp8, which takes the chip's own."
        )
    return None


def written_fp8(value: torch.dtype) -> str | None:
    """Reading fp8 is exact anywhere; the interpreter of Triton 3.9 makes -1.0 of -1.94 in e4m3."""
    if value in FP8_DTYPES and availability.interpreted():
        return (
            f"the KV cache is {short(value)}, which Triton's interpreter rounds wrongly; use "
            "--kv-cache-dtype auto, or a machine-code engine."
        )
    return None


def fp8_of(gfx: str) -> torch.dtype:
    """The e4m3 that the chip converts in hardware."""
    return FP8_DTYPES[0] if ARCHITECTURES[gfx].fp8_flavour == "fnuz" else FP8_DTYPES[1]


def head_size(value: int, sizes: tuple[int, ...]) -> str | None:
    if value in sizes:
        return None
    return (
        f"head size {value} is not among the tested ones ({', '.join(map(str, sizes))}); "
        "use another attention backend."
    )


def head_ratio(heads: int, kv_heads: int) -> str | None:
    if kv_heads > 0 and heads % kv_heads == 0:
        return None
    return (
        f"{heads} query heads do not divide evenly among {kv_heads} KV heads; use a "
        "tensor-parallel size that divides both."
    )


def block_size(value: int) -> str | None:
    if 1 <= value <= MAX_BLOCK_SIZE and value & (value - 1) == 0:
        return None
    return (
        f"a KV cache block of {value} tokens is not supported; use --block-size 1 or a power of "
        f"two up to {MAX_BLOCK_SIZE}."
    )


def require_dense_rows(operation: str, **tensors: Tensor) -> None:
    """Raise RefusedError where a last dimension is strided: the kernels would misread it."""
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise RefusedError(
                f"{operation}: {name} is not contiguous in its last dimension; "
                "call .contiguous() first."
            )


def require_equal_query_len(operation: str, tokens: int, sequences: int) -> int:
    """How many query tokens each sequence has; RefusedError where not all have equally many."""
    query_len, left_over = divmod(tokens, sequences) if sequences else (1, tokens)
    if left_over:
        raise RefusedError(
            f"{operation}: {tokens} query tokens are not equally many for each of {sequences} "
            "sequences; pad the shorter ones."
        )
    return query_len


def short(value: torch.dtype) -> str:
    """A dtype as users write it: `bfloat16`, not `torch.bfloat16`."""
    return str(value).removeprefix("torch.")


def first(*refusals: str | None) -> str | None:
    """The first sentence that is not None."""
    return next((refusal for refusal in refusals if refusal is not None), None)
