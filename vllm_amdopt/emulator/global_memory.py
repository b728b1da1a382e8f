"""Global, flat and scratch memory instructions.

Source: CDNA4 ISA, chapter "Flat Memory Instructions" and 12.15 (FLAT, Scratch, Global). Scope and
cache policy (sc0, sc1, nt) have no effect on one interleaving without caches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .accounting import note_segments
from .assembly import Instruction
from .atomics import ATOMICS, COMPARE_AND_SWAP, do_atomic, global_atomic_type
from .definitions import MemFault, Unsupported, i64, u8, u16, u32
from .direct_to_lds import compile_direct_to_lds
from .lane_access import (
    LOADS,
    STORES,
    LoadKind,
    StoreKind,
    active_lanes,
    as_dwords,
    read_registers,
    select_lanes,
    spread_lanes,
    stored,
    write_loaded,
    write_registers,
)
from .local_memory import lds_index, lds_load, lds_store
from .modifiers import GLOBAL, refuse_unknown
from .operands import source, value_of
from .registers import vgpr_row

Execute = Callable[[], None]
Addresses = Callable[[Any], Any]  # (lanes) -> int64 addresses

LDS_APERTURE, SCRATCH_APERTURE = 1, 2  # bits 63:48 of an address


def returns_old_value(instruction: Instruction) -> bool:
    """Whether an atomic returns the value before: sc0."""
    return bool(instruction.modifiers.get("sc0"))


def global_addresses(machine: Any, vector: str, scalar: str, offset: int) -> Addresses:
    """64-bit vector address, or a scalar base and a 32-bit vector offset, and the constant."""
    if scalar == "off":
        address = source(machine, vector, "I")
    else:
        base = source(machine, scalar, "I")
        lane_offset = None if vector == "off" else source(machine, vector, "u")

        def address() -> Any:
            return value_of(base) if lane_offset is None else value_of(base) + lane_offset

    shape = (machine.waves, 64)

    def addresses(lanes: Any) -> Any:
        at = select_lanes(np.broadcast_to(address(), shape), lanes)
        return at + offset if offset else at

    return addresses


def compile_load(machine: Any, addresses: Addresses, row: int, kind: LoadKind) -> Execute:
    full_stats, size = machine.options.get("stats") == "full", kind.size

    def load() -> None:
        lanes = active_lanes(machine)
        if lanes is not None and len(lanes) == 0:
            return
        at = addresses(lanes)
        machine.bytes["global_load"] += len(at) * size
        if full_stats:
            note_segments(machine, "load", at, size, lanes)
        write_loaded(machine, row, kind, machine.memory.load(at, size), lanes)

    return load


def compile_store(machine: Any, addresses: Addresses, row: int, kind: StoreKind) -> Execute:
    full_stats, size = machine.options.get("stats") == "full", kind.size

    def store() -> None:
        lanes = active_lanes(machine)
        if lanes is not None and len(lanes) == 0:
            return
        at = addresses(lanes)
        machine.bytes["global_store"] += len(at) * size
        if full_stats:
            note_segments(machine, "store", at, size, lanes)
        machine.memory.store(at, size, stored(machine, row, kind, lanes))

    return store


def compile_atomic(
    machine: Any,
    name: str,
    addresses: Addresses,
    result: int | None,
    operand: int,
    in_bounds: Callable[[Any], Any] | None = None,
) -> Execute:
    """An atomic in global memory: `operand` the row of the data (for compare-and-swap the new
    value, the comparand behind it), `result` that of the old values."""
    kind, numpy_type = global_atomic_type(name)
    atomic, size = ATOMICS[kind], np.dtype(numpy_type).itemsize
    dwords = size // 4

    def values(row: int, lanes: Any) -> Any:
        data = read_registers(machine, row, dwords, lanes)
        return np.ascontiguousarray(data).view(numpy_type).reshape(-1)

    def execute() -> None:
        lanes = active_lanes(machine)
        if in_bounds is not None:
            lanes = in_bounds(lanes)
        if lanes is not None and len(lanes) == 0:
            return
        at = addresses(lanes)
        machine.bytes["global_atomic"] += len(at) * size
        data = values(operand, lanes)
        compare = values(operand + dwords, lanes) if kind == COMPARE_AND_SWAP else None
        before = None if result is None else np.empty(len(at), numpy_type)
        for memory, places, part in machine.memory.views(at, size, numpy_type):
            old = do_atomic(
                memory,
                places,
                atomic.function,
                atomic.ufunc,
                data[part],
                result is not None or compare is not None,
                None if compare is None else compare[part],
            )
            if before is not None:
                before[part] = old
        if result is not None:
            write_registers(machine, result, as_dwords(before), lanes)

    return execute


def compile_global(machine: Any, instruction: Instruction) -> Execute:
    """The function of one global_, flat_ or scratch_ instruction."""
    refuse_unknown(instruction, GLOBAL)
    space, _, operation = instruction.op.partition("_")
    offset = int(instruction.modifiers.get("offset", 0))
    if space == "scratch":
        return _scratch(machine, instruction, operation, offset)
    operands = [*instruction.operands, *(["off"] if space == "flat" else [])]
    access, _, kind = operation.partition("_")
    if access == "load" and kind.startswith("lds_"):
        load = LOADS[kind.removeprefix("lds_")]
        addresses = global_addresses(machine, operands[0], operands[1], offset)
        memory = machine  # its memory changes from launch to launch
        return compile_direct_to_lds(
            machine, lambda lanes: memory.memory.load(addresses(lanes), load.size), load, offset
        )
    if access == "load" and kind in LOADS:
        addresses = global_addresses(machine, operands[1], operands[2], offset)
        row = vgpr_row(machine, operands[0])
        execute = compile_load(machine, addresses, row, LOADS[kind])
        if space == "flat":
            return _flat_load(machine, addresses, row, LOADS[kind], execute)
        return execute
    if access == "store" and kind in STORES:
        addresses = global_addresses(machine, operands[0], operands[2], offset)
        row = vgpr_row(machine, operands[1])
        execute = compile_store(machine, addresses, row, STORES[kind])
        if space == "flat":
            return _flat_store(machine, addresses, row, STORES[kind], execute)
        return execute
    if access == "atomic":
        result = vgpr_row(machine, operands.pop(0)) if returns_old_value(instruction) else None
        addresses = global_addresses(machine, operands[0], operands[2], offset)
        return compile_atomic(machine, kind, addresses, result, vgpr_row(machine, operands[1]))
    raise Unsupported(f"instruction {instruction.op}")


def _address_space(addresses: Any) -> int:
    """0 for global memory, else the aperture that all addresses point into."""
    spaces = addresses >> 48
    in_aperture = (spaces == LDS_APERTURE) | (spaces == SCRATCH_APERTURE)
    if not in_aperture.any():
        return 0
    if (spaces == LDS_APERTURE).all():
        return LDS_APERTURE
    raise Unsupported("flat access to scratch, or mixing address spaces")


def _lds_places(machine: Any, at: Any, size: int, lanes: Any) -> Any:
    offsets = (spread_lanes(machine, at, lanes) & 0xFFFFFFFF).astype(u32)
    return lds_index(machine, offsets, 0, size, lanes)[1]


def _flat_load(
    machine: Any, addresses: Addresses, row: int, kind: LoadKind, from_global: Execute
) -> Execute:
    def load() -> None:
        lanes = active_lanes(machine)
        at = addresses(lanes)
        if len(at) == 0:
            return
        if _address_space(at) == 0:
            from_global()
            return
        places = _lds_places(machine, at, kind.size, lanes)
        machine.bytes["lds_load"] += len(places) * kind.size
        write_loaded(machine, row, kind, lds_load(machine, places, kind.size), lanes)

    return load


def _flat_store(
    machine: Any, addresses: Addresses, row: int, kind: StoreKind, to_global: Execute
) -> Execute:
    def store() -> None:
        lanes = active_lanes(machine)
        at = addresses(lanes)
        if len(at) == 0:
            return
        if _address_space(at) == 0:
            to_global()
            return
        places = _lds_places(machine, at, kind.size, lanes)
        machine.bytes["lds_store"] += len(places) * kind.size
        lds_store(machine, places, kind.size, stored(machine, row, kind, lanes))

    return store


def _scratch(machine: Any, instruction: Instruction, operation: str, offset: int) -> Execute:
    """Scratch memory: every lane has its own, addressed from 0."""
    operands = instruction.operands
    access, _, kind = operation.partition("_")
    if access not in ("load", "store") or kind not in (LOADS if access == "load" else STORES):
        raise Unsupported(f"instruction {instruction.op}")
    loads = access == "load"
    load, store = LOADS.get(kind, LoadKind(0)), STORES.get(kind, StoreKind(0))
    size = load.size if loads else store.size
    vector, data = (operands[1], operands[0]) if loads else (operands[0], operands[1])
    lane_offset = None if vector == "off" else source(machine, vector, "u")
    base = None if operands[2] == "off" else source(machine, operands[2], "u")
    row = vgpr_row(machine, data)
    memory, dwords = machine.scratch, machine.scratch.view(u32)

    def places_of(lanes: Any) -> Any:
        at = np.zeros((machine.waves, 64), i64) + offset
        for part in (lane_offset, base):
            if part is not None:
                at = at + part
        at = select_lanes(at, lanes)
        if int(at.max()) + size > machine.scratch_size or int(at.min()) < 0:
            wrong = int(at.max()) if int(at.min()) >= 0 else int(at.min())
            raise MemFault(
                f"scratch access of {size} bytes at offset {wrong} beyond the "
                f"{machine.scratch_size} bytes of a lane"
            )
        machine.bytes["scratch"] += len(at) * size
        return at + select_lanes(machine.scratch_base, lanes)

    def execute() -> None:
        lanes = active_lanes(machine)
        if lanes is not None and len(lanes) == 0:
            return
        places = places_of(lanes)
        if size >= 4 and int(np.bitwise_or.reduce(places)) & 3 == 0:
            index = (places >> 2)[:, None] + np.arange(size // 4)
            if loads:
                write_registers(machine, row, dwords[index], lanes)
            else:
                dwords[index] = read_registers(machine, row, size // 4, lanes)
            return
        index = places[:, None] + np.arange(size)
        if loads:
            raw = memory[index]
            wide = raw.view(u32) if size >= 4 else raw.view(f"u{size}").astype(u32)[:, 0]
            write_loaded(machine, row, load, wide, lanes)
        else:
            values = np.ascontiguousarray(stored(machine, row, store, lanes))
            narrow = values if size >= 4 else values.astype(u8 if size == 1 else u16)
            memory[index] = narrow.view(u8).reshape(len(places), size)

    return execute
