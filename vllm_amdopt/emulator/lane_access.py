"""Between registers and memory: active lanes, blocks of registers, loads narrower than a register.

Where lanes are listed (`lanes`), they are flat indices wave * 64 + lane; None means all of them,
which is the usual case and needs no indexing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .definitions import u32
from .operands import sign_extended


class LoadKind(NamedTuple):
    """size in bytes; signed; half: None for the whole register, else the half that is written."""

    size: int
    signed: bool = False
    half: int | None = None


class StoreKind(NamedTuple):
    """size in bytes; shift: first bit of the register that is stored."""

    size: int
    shift: int = 0


# By the suffix of global_load_, flat_load_, buffer_load_, scratch_load_. Source: CDNA4 ISA, 12.13
# (MUBUF) and 12.15 (FLAT).
LOADS = {
    "dword": LoadKind(4),
    "dwordx2": LoadKind(8),
    "dwordx3": LoadKind(12),
    "dwordx4": LoadKind(16),
    "ubyte": LoadKind(1),
    "sbyte": LoadKind(1, signed=True),
    "ushort": LoadKind(2),
    "sshort": LoadKind(2, signed=True),
    "short_d16": LoadKind(2, half=0),
    "short_d16_hi": LoadKind(2, half=1),
    "ubyte_d16": LoadKind(1, half=0),
    "ubyte_d16_hi": LoadKind(1, half=1),
    "sbyte_d16": LoadKind(1, signed=True, half=0),
    "sbyte_d16_hi": LoadKind(1, signed=True, half=1),
}
STORES = {
    "dword": StoreKind(4),
    "dwordx2": StoreKind(8),
    "dwordx3": StoreKind(12),
    "dwordx4": StoreKind(16),
    "byte": StoreKind(1),
    "short": StoreKind(2),
    "byte_d16_hi": StoreKind(1, 16),
    "short_d16_hi": StoreKind(2, 16),
}


def active_lanes(machine: Any) -> Any:
    """Flat indices of the active lanes, or None when all are."""
    return None if machine.all_lanes else np.flatnonzero(machine.exec_mask)


def lane_list(machine: Any, lanes: Any) -> Any:
    """The lanes as an array in any case."""
    return np.arange(machine.waves * 64) if lanes is None else lanes


def waves_of(machine: Any, lanes: Any) -> Any:
    """The wave of each lane."""
    return lane_list(machine, lanes) // 64


def select_lanes(values: Any, lanes: Any) -> Any:
    """(waves, 64) -> one value per lane listed"""
    values = values.reshape(-1)
    return values if lanes is None else values[lanes]


def spread_lanes(machine: Any, values: Any, lanes: Any) -> Any:
    """One value per lane listed -> (waves, 64), 0 elsewhere"""
    if lanes is None:
        return values.reshape(machine.waves, 64)
    result = np.zeros(machine.waves * 64, values.dtype)
    result[lanes] = values
    return result.reshape(machine.waves, 64)


def read_registers(machine: Any, row: int, count: int, lanes: Any) -> Any:
    """`count` consecutive vector registers -> u32 (lanes, count)"""
    block = machine.vgprs[row : row + count].reshape(count, -1)
    return block.T if lanes is None else block[:, lanes].T


def write_registers(machine: Any, row: int, data: Any, lanes: Any) -> None:
    """u32 (lanes, count) -> `count` consecutive vector registers"""
    block = machine.vgprs[row : row + data.shape[1]].reshape(data.shape[1], -1)
    if lanes is None:
        block[...] = data.T
    else:
        block[:, lanes] = data.T


def extended(values: Any, kind: LoadKind) -> Any:
    """Loaded bytes or words (u32) as the register, or half of it, shall hold them."""
    if kind.signed:
        values = sign_extended(values, 8 * kind.size)
    return values if kind.half is None else values & u32(0xFFFF)


def write_loaded(machine: Any, row: int, kind: LoadKind, data: Any, lanes: Any) -> None:
    """What was loaded, u32 (lanes,) below 4 bytes and (lanes, dwords) above, to registers."""
    if kind.size >= 4:
        write_registers(machine, row, data, lanes)
        return
    data = extended(data, kind)
    if kind.half is None:
        write_registers(machine, row, data[:, None], lanes)
        return
    half = machine.vgprs_u16[row, :, :, kind.half]
    if lanes is None:
        half[...] = data.reshape(machine.waves, 64)
    else:
        half[lanes // 64, lanes % 64] = data


def stored(machine: Any, row: int, kind: StoreKind, lanes: Any) -> Any:
    """What a store takes from registers, in the shapes of `write_loaded`."""
    if kind.size >= 4:
        return read_registers(machine, row, kind.size // 4, lanes)
    return select_lanes(machine.vgprs[row], lanes) >> u32(kind.shift)


def as_dwords(values: Any) -> Any:
    """One value of 4 or 8 bytes per lane -> u32 (lanes, dwords)"""
    return np.ascontiguousarray(values).view(u32).reshape(len(values), -1)
