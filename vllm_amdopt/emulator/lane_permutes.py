"""Permutations of lanes by the LDS hardware, which touch no LDS: ds_permute, ds_swizzle.

Source: CDNA4 ISA, 12.12, DS_PERMUTE_B32, DS_BPERMUTE_B32, DS_SWIZZLE_B32; the names of swizzles
are LLVM's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .assembly import Instruction
from .definitions import Unsupported, u32
from .modifiers import LDS, refuse_unknown
from .operands import destination, source
from .registers import vgpr_row

LANE = np.arange(64)


def compile_permute(machine: Any, instruction: Instruction) -> Callable[[], None]:
    """ds_bpermute: each lane fetches; ds_permute: each lane sends, the highest sender wins.

    Lane numbers are byte addresses / 4. Disabled lanes give 0 and send nothing.
    """
    refuse_unknown(instruction, LDS)
    offset = u32(int(instruction.modifiers.get("offset", 0)))
    write = destination(machine, instruction.operands[0], "u")
    addresses = source(machine, instruction.operands[1], "u")
    values = machine.vgprs[vgpr_row(machine, instruction.operands[2])]
    wave = np.arange(machine.waves)[:, None]

    def fetch() -> None:
        lanes = ((addresses + offset) >> u32(2)) & u32(63)
        fetched = values[wave, lanes]
        if not machine.all_lanes:
            fetched = np.where(machine.exec_mask[wave, lanes], fetched, u32(0))
        write(fetched)

    def send() -> None:
        lanes = ((addresses + offset) >> u32(2)) & u32(63)
        received = np.zeros((machine.waves, 64), u32)
        if machine.all_lanes:
            received[wave, lanes] = values
        else:
            waves, senders = np.nonzero(machine.exec_mask)
            received[waves, lanes[waves, senders]] = values[waves, senders]
        write(received)

    return fetch if instruction.op == "ds_bpermute_b32" else send


def _bit_mode(pattern: str) -> Any:
    """BITMASK_PERM: per bit of the lane 0, 1, p (preserve) or i (invert)."""
    lanes = LANE & 32
    for bit, rule in zip((16, 8, 4, 2, 1), pattern, strict=True):
        rules: dict[str, Any] = {"0": 0, "1": bit, "p": LANE & bit, "i": (LANE & bit) ^ bit}
        lanes = lanes | rules[rule]
    return lanes


NAMED_SWIZZLES: dict[str, Callable[[list[str]], Any]] = {
    "QUAD_PERM": lambda p: (LANE & ~3) + np.array([int(x) for x in p])[LANE & 3],
    "BROADCAST": lambda p: LANE // int(p[0]) * int(p[0]) + int(p[1]),
    "SWAP": lambda p: LANE ^ int(p[0]),
    "REVERSE": lambda p: LANE ^ (int(p[0]) - 1),
    "BITMASK_PERM": lambda p: _bit_mode(p[0]),
}


def swizzle_sources(offset: int | str) -> Any:
    """The source lane of each lane, for the offset of a ds_swizzle_b32."""
    if isinstance(offset, str):
        match = re.match(r"swizzle\((\w+),(.*)\)", offset.replace(" ", ""))
        if not match or match[1] not in NAMED_SWIZZLES:
            raise Unsupported(offset)
        return NAMED_SWIZZLES[match[1]]([part.strip('"') for part in match[2].split(",")])
    if offset >= 0xC000:
        raise Unsupported(f"swizzle in rotate or FFT mode (offset {offset:#x})")
    if offset & 0x8000:
        return (LANE & ~3) + ((offset >> (2 * (LANE & 3))) & 3)
    within = (((LANE & 31) & (offset & 31)) | (offset >> 5 & 31)) ^ (offset >> 10 & 31)
    return (LANE & 32) | within


def compile_swizzle(machine: Any, instruction: Instruction) -> Callable[[], None]:
    """ds_swizzle_b32: a fixed permutation within groups of 32 or 4 lanes."""
    refuse_unknown(instruction, LDS)
    lanes = swizzle_sources(instruction.modifiers.get("offset", 0))
    write = destination(machine, instruction.operands[0], "u")
    values = machine.vgprs[vgpr_row(machine, instruction.operands[1])]

    def execute() -> None:
        fetched = values[:, lanes]
        if not machine.all_lanes:
            fetched = np.where(machine.exec_mask[:, lanes], fetched, u32(0))
        write(fetched)

    return execute
