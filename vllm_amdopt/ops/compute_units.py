"""How many workgroups a device runs side by side: the number that split planning aims at."""

from __future__ import annotations

from functools import cache

import torch

# What the CPU engines stand for: an MI300X, 8 XCDs of 38 compute units (AMD's product page).
VIRTUAL_DEVICE = 304


@cache
def compute_units(device: torch.device) -> int:
    """Compute units (AMD) or streaming multiprocessors (NVIDIA), asked once per device."""
    if device.type == "cpu":
        return VIRTUAL_DEVICE
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
