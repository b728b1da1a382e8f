"""Buffer instructions: memory through a descriptor of four scalar registers.

Source: CDNA4 ISA, chapter "Vector Memory Operations" (buffer addressing, buffer resource) and 12.13
(MUBUF). Words 0 and 1 of the descriptor hold the 48-bit base, word 2 the number of bytes: what lies
beyond reads as 0 and is not written, dword by dword, as hardware does with raw buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .accounting import note_segments
from .assembly import Instruction
from .atomics import global_atomic_type
from .definitions import Unsupported, i64, u32, u64
from .direct_to_lds import compile_direct_to_lds
from .global_memory import compile_atomic, returns_old_value
from .lane_access import (
    LOADS,
    STORES,
    LoadKind,
    StoreKind,
    active_lanes,
    lane_list,
    stored,
    write_loaded,
    write_registers,
)
from .modifiers import BUFFER, refuse_unknown
from .operands import source, value_of
from .registers import sgpr, vgpr_row

Execute = Callable[[], None]
BASE_ADDRESS = u64(0xFFFF_FFFF_FFFF)


class _Buffer:
    """The addressing of one instruction."""

    def __init__(self, machine: Any, vector: str, descriptor: str, scalar: str, offset: int):
        self.machine, self.offset = machine, offset
        first = sgpr(descriptor)
        self.words = machine.sgprs[:, first : first + 4]
        self.low_words = machine.sgprs_u64[:, first // 2 : first // 2 + 1]
        self.lane_offset = None if vector == "off" else source(machine, vector, "u")
        self.scalar_offset = source(machine, scalar, "u")
        self.no_scalar_offset = (
            not callable(self.scalar_offset)
            and np.ndim(self.scalar_offset) == 0
            and self.scalar_offset == 0
        )
        self.zero = np.zeros((machine.waves, 64), u32)
        self.wave_of_lane = np.repeat(np.arange(machine.waves), 64)

    def addresses(self, lanes: Any) -> tuple[Any, Any, Any]:
        """-> (addresses, offsets to check, number of bytes to check them against), by lane

        The scalar offset is part of what is checked: it is taken off the number of bytes.
        """
        machine = self.machine
        swizzled = self.words[:, 1] >> u32(31)
        if swizzled.any() and machine.running[swizzled == 1].any():
            raise Unsupported("swizzled buffer resource")
        base = (self.low_words & BASE_ADDRESS).view(i64)
        limit = self.words[:, 2:3].astype(i64)
        if not self.no_scalar_offset:
            scalar = np.asarray(value_of(self.scalar_offset)).astype(i64)
            base, limit = base + scalar, limit - scalar
        offset = (self.zero if self.lane_offset is None else self.lane_offset).astype(i64)
        if self.offset:
            offset += self.offset
        if lanes is None:
            limits = limit[0] if machine.waves == 1 else np.repeat(limit[:, 0], 64)
            return (base + offset).reshape(-1), offset.reshape(-1), limits
        offset, wave = offset.reshape(-1)[lanes], self.wave_of_lane[lanes]
        return base[wave, 0] + offset, offset, limit[wave, 0]

    def load(self, lanes: Any, size: int) -> Any:
        """What the lanes read, in the shape of Memory.load."""
        machine = self.machine
        at, offset, limit = self.addresses(lanes)
        inside = offset + size <= limit
        count = int(np.count_nonzero(inside))
        if machine.options.get("stats") == "full" and count:
            listed = lane_list(machine, lanes)[inside]
            note_segments(machine, "load", at[inside], size, listed)
        machine.bytes["global_load"] += count * size
        if count == len(at):
            return machine.memory.load(at, size)
        data = np.zeros((len(at), size // 4) if size >= 4 else len(at), u32)
        if count:
            data[inside] = machine.memory.load(at[inside], size)
        for dword, part in self._partly_inside(inside, offset, limit, size):
            data[part, dword] = machine.memory.load(at[part] + 4 * dword, 4)[:, 0]
        return data

    def store(self, lanes: Any, size: int, data: Any) -> None:
        machine = self.machine
        at, offset, limit = self.addresses(lanes)
        inside = offset + size <= limit
        if not inside.all():
            for dword, part in self._partly_inside(inside, offset, limit, size):
                machine.memory.store(at[part] + 4 * dword, 4, data[part, dword : dword + 1])
            if not inside.any():
                return
            at, data = at[inside], data[inside]
        if machine.options.get("stats") == "full":
            note_segments(machine, "store", at, size, lane_list(machine, lanes)[inside])
        machine.bytes["global_store"] += len(at) * size
        machine.memory.store(at, size, data)

    @staticmethod
    def _partly_inside(inside: Any, offset: Any, limit: Any, size: int) -> list[tuple[int, Any]]:
        """(dword, lanes) of accesses that begin inside the buffer and end outside."""
        if size <= 4:
            return []
        partly = ~inside & (offset + 4 <= limit)
        parts = [(dword, partly & (offset + 4 * dword + 4 <= limit)) for dword in range(size // 4)]
        return [(dword, part) for dword, part in parts if part.any()]


def compile_buffer(machine: Any, instruction: Instruction) -> Execute:
    """The function of one buffer_ instruction."""
    if "idxen" in instruction.modifiers:
        raise Unsupported("indexed buffer access")
    refuse_unknown(instruction, BUFFER)
    modifiers, operands = instruction.modifiers, list(instruction.operands)
    access, _, kind = instruction.op.removeprefix("buffer_").partition("_")
    to_lds = bool(modifiers.get("lds")) or kind.startswith("lds_")
    if to_lds and access != "load":
        raise Unsupported(f"modifier lds on {instruction.op}")
    data = None if to_lds else operands.pop(0)
    offset = int(modifiers.get("offset", 0))
    vector = operands[0] if modifiers.get("offen") else "off"
    buffer = _Buffer(machine, vector, operands[1], operands[2], offset)
    if to_lds:
        load = LOADS[kind.removeprefix("lds_")]
        return compile_direct_to_lds(
            machine, lambda lanes: buffer.load(lanes, load.size), load, offset
        )
    assert data is not None
    row = vgpr_row(machine, data)
    if access == "load" and kind in LOADS:
        return _load(machine, buffer, row, LOADS[kind])
    if access == "store" and kind in STORES:
        return _store(machine, buffer, row, STORES[kind])
    if access == "atomic":
        returns = returns_old_value(instruction)
        size = np.dtype(global_atomic_type(kind)[1]).itemsize
        return compile_atomic(
            machine,
            kind,
            lambda lanes: buffer.addresses(lanes)[0],
            row if returns else None,
            row,
            lambda lanes: _lanes_inside(machine, buffer, lanes, size, row if returns else None),
        )
    raise Unsupported(f"instruction {instruction.op}")


def _load(machine: Any, buffer: _Buffer, row: int, kind: LoadKind) -> Execute:
    def load() -> None:
        lanes = active_lanes(machine)
        if lanes is not None and len(lanes) == 0:
            return
        write_loaded(machine, row, kind, buffer.load(lanes, kind.size), lanes)

    return load


def _store(machine: Any, buffer: _Buffer, row: int, kind: StoreKind) -> Execute:
    def store() -> None:
        lanes = active_lanes(machine)
        if lanes is not None and len(lanes) == 0:
            return
        buffer.store(lanes, kind.size, stored(machine, row, kind, lanes))

    return store


def _lanes_inside(machine: Any, buffer: _Buffer, lanes: Any, size: int, result: int | None) -> Any:
    """The lanes whose atomic is in bounds; the others return 0."""
    _, offset, limit = buffer.addresses(lanes)
    inside = offset + size <= limit
    if inside.all():
        return lanes
    listed = lane_list(machine, lanes)
    if result is not None:
        nothing = np.zeros((int((~inside).sum()), size // 4), u32)
        write_registers(machine, result, nothing, listed[~inside])
    return listed[inside]
