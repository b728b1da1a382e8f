"""Local data share (LDS): reads, writes, transposing reads and atomics.

Source: CDNA4 ISA, chapter on data share operations and 12.12 (LDS instructions). An access beyond
the workgroup's allocation is a fault here; hardware drops the write and reads 0. The layout of the
transposing reads is not in the document: it is Triton's (docs/emulator.md, limits).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .accounting import note_banks, note_race
from .assembly import Instruction
from .atomics import ATOMICS, COMPARE_AND_SWAP, LDS_ATOMICS, do_atomic
from .definitions import MemFault, Unsupported, i64, u8, u16, u32
from .lane_access import (
    LoadKind,
    StoreKind,
    active_lanes,
    as_dwords,
    read_registers,
    stored,
    waves_of,
    write_loaded,
    write_registers,
)
from .lane_permutes import compile_permute, compile_swizzle
from .modifiers import LDS, LDS_PAIR, refuse_unknown
from .operands import source
from .registers import vgpr_row

Execute = Callable[[], None]

LOG2 = {4: 2, 8: 3, 16: 4}
SIZES = {
    "b8": 1,
    "u8": 1,
    "i8": 1,
    "b16": 2,
    "u16": 2,
    "i16": 2,
    "b32": 4,
    "b64": 8,
    "b96": 12,
    "b128": 16,
}


def lds_index(machine: Any, addresses: Any, offset: int, size: int, lanes: Any) -> tuple[Any, Any]:
    """-> (offsets in the workgroup's LDS without `offset`, indices into the LDS of all groups)"""
    base, local = machine.lds_lane_base, addresses.reshape(-1)
    if lanes is not None:
        local, base = local[lanes], base[lanes]
    if len(local) and int(local.max()) + offset + size > machine.lds_size:
        raise MemFault(
            f"LDS access of {size} bytes at offset {int(local.max()) + offset} "
            f"beyond the {machine.lds_size} bytes allocated"
        )
    places = local + base  # unsigned 32 bits + signed 64 bits
    if offset:
        places += offset
    return local, places


def lds_load(machine: Any, places: Any, size: int) -> Any:
    """-> u32 (lanes,) below 4 bytes, (lanes, dwords) above; any alignment"""
    if size == 1:
        return machine.lds[places].astype(u32)
    low_bits = int(np.bitwise_or.reduce(places)) if len(places) else 0
    if size == 2:
        if low_bits & 1:
            high = machine.lds[places + 1].astype(u16) << u16(8)
            return (machine.lds[places] | high).astype(u32)
        return machine.lds_u16[places >> 1].astype(u32)
    if low_bits & 3:
        return machine.lds[places[:, None] + np.arange(size)].view(u32)
    if size in LOG2 and low_bits & (size - 1) == 0:
        wide = machine.lds_wide[size].take(places >> LOG2[size])
        return wide.view(u32).reshape(-1, size // 4)
    return machine.lds_u32[(places >> 2)[:, None] + np.arange(size // 4)]


def lds_store(machine: Any, places: Any, size: int, data: Any) -> None:
    """The opposite of lds_load."""
    if size == 1:
        machine.lds[places] = data.reshape(-1).astype(u8)
        return
    low_bits = int(np.bitwise_or.reduce(places)) if len(places) else 0
    if size == 2:
        data = data.reshape(-1)
        if low_bits & 1:
            machine.lds[places] = data.astype(u8)
            machine.lds[places + 1] = (data >> u32(8)).astype(u8)
        else:
            machine.lds_u16[places >> 1] = data.astype(u16)
    elif low_bits & 3:
        machine.lds[places[:, None] + np.arange(size)] = np.ascontiguousarray(data).view(u8)
    elif size in LOG2 and low_bits & (size - 1) == 0:
        wide = machine.lds_wide[size]
        wide[places >> LOG2[size]] = np.ascontiguousarray(data).view(wide.dtype).reshape(-1)
    else:
        machine.lds_u32[(places >> 2)[:, None] + np.arange(size // 4)] = data


_READ_WRITE = re.compile(r"ds_(read|write)(2?)(st64)?_([bui]\d+)(?:_(d16|d16_hi))?$")
_TRANSPOSING = re.compile(r"ds_read_b(64|96)_tr_b(4|6|8|16)$")
_ATOMIC = re.compile(r"ds_(?:(pk_add)|(\w+?))(_rtn)?_(bf16|[ubif]\d+)$")


def compile_local(machine: Any, instruction: Instruction) -> Execute:
    """The function of one ds_ instruction."""
    op = instruction.op
    if op in ("ds_bpermute_b32", "ds_permute_b32"):
        return compile_permute(machine, instruction)
    if op == "ds_swizzle_b32":
        return compile_swizzle(machine, instruction)
    match = _READ_WRITE.match(op)
    if match and match[4] in SIZES:
        return _read_or_write(machine, instruction, match)
    match = _TRANSPOSING.match(op)
    if match and machine.arch == "gfx950":
        return _transposing_read(machine, instruction, int(match[1]), int(match[2]))
    match = _ATOMIC.match(op)
    if match:
        name = f"{match[1] or match[2]}_{match[4]}"
        if name in LDS_ATOMICS:
            wide = match[4].endswith("64")
            return _atomic(machine, instruction, LDS_ATOMICS[name], wide, bool(match[3]))
    raise Unsupported(f"instruction {op}")


def _notes(machine: Any, instruction: Instruction, reads: bool) -> Callable[..., None]:
    """Function that does the accounting of one access."""
    counter = "lds_load" if reads else "lds_store"
    banks = machine.options.get("stats") == "full"
    where = f"{instruction.text} [{instruction.location}]"

    def note(local: Any, places: Any, offset: int, size: int, lanes: Any) -> None:
        machine.bytes[counter] += len(places) * size
        if machine.races is not None:
            note_race(machine, places, size, waves_of(machine, lanes), not reads, where)
        if banks:
            note_banks(machine, local.astype(i64) + offset, size, lanes)

    return note


def _read_or_write(machine: Any, instruction: Instruction, match: re.Match[str]) -> Execute:
    """DS_READ, DS_WRITE and their forms with two addresses."""
    reads, pair, by_64, width, half = match[1] == "read", match[2], match[3], match[4], match[5]
    modifiers, operands = instruction.modifiers, instruction.operands
    refuse_unknown(instruction, LDS_PAIR if pair else LDS)
    size = SIZES[width]
    load = LoadKind(size, width[0] == "i", {"d16": 0, "d16_hi": 1}.get(half))
    store = StoreKind(size, 16 if half == "d16_hi" else 0)
    addresses = source(machine, operands[1 if reads else 0], "u")
    if pair:
        unit = size * (64 if by_64 else 1)
        offsets = [int(modifiers.get(name, 0)) * unit for name in ("offset0", "offset1")]
        first = vgpr_row(machine, operands[0])
        rows = (
            [first, first + size // 4] if reads else [vgpr_row(machine, x) for x in operands[1:3]]
        )
    else:
        offsets = [int(modifiers.get("offset", 0))]
        rows = [vgpr_row(machine, operands[0 if reads else 1])]
    accesses = list(zip(offsets, rows, strict=True))
    note = _notes(machine, instruction, reads)

    def execute() -> None:
        lanes = active_lanes(machine)
        if lanes is not None and len(lanes) == 0:
            return
        # a read of two may overwrite its own address register
        at = np.array(addresses) if reads and pair else addresses
        for offset, row in accesses:
            local, places = lds_index(machine, at, offset, size, lanes)
            note(local, places, offset, size, lanes)
            if reads:
                write_loaded(machine, row, load, lds_load(machine, places, size), lanes)
            else:
                lds_store(machine, places, size, stored(machine, row, store, lanes))

    return execute


def _unpacked(raw: Any, bits: int) -> Any:
    """Bytes (groups, 16 lanes, size) -> elements of `bits` bits (groups, 16, count)"""
    if bits == 16:
        return raw.view(u16)
    if bits == 8:
        return raw
    if bits == 4:
        return np.stack([raw & 15, raw >> 4], -1).reshape(len(raw), 16, -1)
    single = np.unpackbits(raw, axis=-1, bitorder="little").reshape(len(raw), 16, -1, bits)
    return (single.astype(i64) << np.arange(bits)).sum(-1).astype(u8)


def _packed(elements: Any, bits: int) -> Any:
    """The opposite of _unpacked, as flat u32."""
    if bits == 4:
        elements = (elements[..., 0::2] | (elements[..., 1::2] << u8(4))).astype(u8)
    elif bits == 6:
        single = (elements[..., None] >> np.arange(6, dtype=u8)) & u8(1)
        elements = np.packbits(single.reshape(len(elements), 16, -1), axis=-1, bitorder="little")
    return np.ascontiguousarray(elements).reshape(-1).view(u32)


def _transposing_read(machine: Any, instruction: Instruction, width: int, bits: int) -> Execute:
    """DS_READ_B64_TR_B16 and the like: what the 16 lanes of a row read is a matrix of 16 columns
    and one row per element of a lane; lane c receives column c."""
    refuse_unknown(instruction, LDS)
    size, count, offset = width // 8, width // bits, int(instruction.modifiers.get("offset", 0))
    addresses = source(machine, instruction.operands[1], "u")
    row = vgpr_row(machine, instruction.operands[0])
    note = _notes(machine, instruction, reads=True)

    def execute() -> None:
        lanes = active_lanes(machine)
        if lanes is not None:
            rows = machine.exec_mask.reshape(-1, 16)
            if (rows.any(1) != rows.all(1)).any():
                raise Unsupported("partially masked transposing LDS read")
            if len(lanes) == 0:
                return
        local, places = lds_index(machine, addresses, offset, size, lanes)
        note(local, places, offset, size, lanes)
        raw = np.ascontiguousarray(lds_load(machine, places, size)).view(u8).reshape(-1, 16, size)
        matrix = _unpacked(raw, bits).reshape(len(raw), count, 16)
        columns = np.ascontiguousarray(matrix.transpose(0, 2, 1))
        write_registers(machine, row, _packed(columns, bits).reshape(-1, width // 32), lanes)

    return execute


def _atomic(
    machine: Any, instruction: Instruction, kind: str, wide: bool, returns: bool
) -> Execute:
    refuse_unknown(instruction, LDS)
    atomic, offset = ATOMICS[kind], int(instruction.modifiers.get("offset", 0))
    numpy_type = atomic.wide if wide else atomic.narrow
    size = 8 if wide else 4
    operands = list(instruction.operands)
    result = vgpr_row(machine, operands.pop(0)) if returns else None
    addresses = source(machine, operands[0], "u")
    rows = [vgpr_row(machine, name) for name in operands[1:]]
    if len(rows) != (2 if kind == COMPARE_AND_SWAP else 1):
        raise Unsupported(f"{len(rows)} data operands")
    memory, shift = machine.lds.view(numpy_type), LOG2[size]

    def values(row: int, lanes: Any) -> Any:
        data = read_registers(machine, row, size // 4, lanes)
        return np.ascontiguousarray(data).view(numpy_type).reshape(-1)

    def execute() -> None:
        lanes = active_lanes(machine)
        if lanes is not None and len(lanes) == 0:
            return
        local, places = lds_index(machine, addresses, offset, size, lanes)
        if int(np.bitwise_or.reduce(places)) & (size - 1):
            raise MemFault(f"misaligned LDS atomic of {size} bytes at offset {int(local[0])}")
        machine.bytes["lds_store"] += len(places) * size
        places = places >> shift
        if kind == COMPARE_AND_SWAP:  # ds_cmpst: comparand first
            compare, data = values(rows[0], lanes), values(rows[1], lanes)
            old = do_atomic(memory, places, None, None, data, True, compare)
        else:
            data = values(rows[0], lanes)
            old = do_atomic(memory, places, atomic.function, atomic.ufunc, data, returns)
        if result is not None:
            write_registers(machine, result, as_dwords(old), lanes)

    return execute
