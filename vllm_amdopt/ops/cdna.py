"""What the operations with a Gluon kernel for CDNA have in common: refusals, the chip, zeros."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vllm_amdopt.kernels import availability
from vllm_amdopt.ops import refusals


def unless(condition: bool, sentence: str) -> str | None:
    """None where the condition holds, otherwise the sentence, and that there is another kernel."""
    return None if condition else f"{sentence}; the portable kernel takes it."


def no_gluon(gfx: str | None) -> str | None:
    """Why no Gluon kernel runs on this GPU with this Triton, or None."""
    return refusals.first(
        refusals.no_triton(),
        unless(
            gfx in refusals.COMPILED_FOR,
            f"the Gluon kernel is for {' and '.join(refusals.COMPILED_FOR)}, and this is "
            f"{gfx or 'no AMD GPU'}",
        ),
        unless(not availability.interpreted(), "Triton's interpreter does not know Gluon"),
        unless(
            availability.gluon_for_cdna(),
            "this Triton has no Gluon with CDNA's matrix instructions; install a newer one, or",
        ),
    )


def block_size(size: int, smallest: int) -> str | None:
    """Why blocks of so many tokens are not taken, or None."""
    return unless(
        smallest <= size <= refusals.MAX_BLOCK_SIZE and size & (size - 1) == 0,
        f"the Gluon kernel takes blocks of {smallest} to {refusals.MAX_BLOCK_SIZE} tokens, a power "
        f"of two, not {size}",
    )


def current_gfx(device: torch.device) -> str | None:
    """The GPU that a launch on `device` runs on; an emulated one may change between launches."""
    return availability.current_gfx() if device.type == "cpu" else _gfx(device)


@lru_cache(maxsize=16)
def _gfx(device: torch.device) -> str | None:
    return availability.current_gfx()


@lru_cache(maxsize=16)
def zeros(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a kernel reads in place of rows that hold no token."""
    return torch.zeros(elements, dtype=dtype, device=device)
