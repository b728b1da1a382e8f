"""Device memory that split kernels share: partial results and counters. Taken once, kept for good.

Launches on one device run one after the other and use the same memory. A captured graph holds the
addresses, so nothing is ever given back: where more is needed, more is taken and the old stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Workspace:
    """floats: anything, fp32. counters: int32, zero before and after each launch."""

    floats: Tensor
    counters: Tensor


_taken: dict[torch.device, list[Workspace]] = {}


def workspace(device: torch.device, floats: int, counters: int) -> Workspace:
    """Memory for at least so many; takes it at the first call, which must not be under capture."""
    kept = _taken.setdefault(device, [])
    if not kept or kept[-1].floats.numel() < floats or kept[-1].counters.numel() < counters:
        if kept:
            floats = max(floats, kept[-1].floats.numel())
            counters = max(counters, kept[-1].counters.numel())
        kept.append(
            Workspace(
                torch.empty(floats, dtype=torch.float32, device=device),
                torch.zeros(counters, dtype=torch.int32, device=device),
            )
        )
    return kept[-1]
