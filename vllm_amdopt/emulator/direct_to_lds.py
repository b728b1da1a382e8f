"""Loads from memory straight into LDS, which land as late as s_waitcnt permits.

The LDS write is held back until an `s_waitcnt vmcnt` forces it, so that a missing wait shows as
wrong data (option lazy_dma=False: written at once). Source: CDNA4 ISA, "Memory Buffer Load to LDS".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .accounting import note_race
from .definitions import M0, MemFault, i64
from .lane_access import LoadKind, active_lanes, extended, select_lanes, waves_of
from .local_memory import lds_store

M0_MASK = {"gfx942": 0xFFFF, "gfx950": 0x3FFFF}  # bits of M0 that address LDS


class HeldBack(NamedTuple):
    """An LDS write that has not landed yet."""

    sequence: Any  # per wave: number of the vector memory operation, the first is 1
    waves: Any  # per lane
    places: Any  # per lane, in the LDS of all groups
    step: int  # bytes per lane
    data: Any


def compile_direct_to_lds(
    machine: Any, fetch: Callable[[Any], Any], kind: LoadKind, offset: int
) -> Callable[[], None]:
    """The LDS address is M0 + offset + lane * max(size, 4); `fetch` loads for the lanes given."""
    m0 = machine.sgprs[:, M0 : M0 + 1]
    mask, step = M0_MASK[machine.arch], max(kind.size, 4)

    def execute() -> None:
        lanes = active_lanes(machine)
        if lanes is not None and len(lanes) == 0:
            return
        data = fetch(lanes)
        machine.bytes["global_to_lds"] += len(data) * kind.size
        if kind.size < 4:
            data = extended(data, kind)[:, None]
        local = select_lanes((m0.astype(i64) & mask) + (offset + machine.lane * step), lanes)
        if int(local.max()) + step > machine.lds_size:
            raise MemFault(
                f"direct-to-LDS write at offset {int(local.max())} "
                f"beyond the {machine.lds_size} bytes allocated"
            )
        base = machine.lds_lane_base if lanes is None else machine.lds_lane_base[lanes]
        places = local + base
        if machine.options.get("lazy_dma", True):
            sequence = machine.vector_memory_issued.copy() + 1
            machine.held_back.append(
                HeldBack(sequence, waves_of(machine, lanes), places, step, data)
            )
        else:
            lds_store(machine, places, step, data)

    return execute


def _part(held: HeldBack, lanes: Any) -> HeldBack:
    """Some of the lanes of a write."""
    return held._replace(waves=held.waves[lanes], places=held.places[lanes], data=held.data[lanes])


def apply_held_back(machine: Any, count: int) -> None:
    """s_waitcnt vmcnt(count) of the running waves: writes older than the `count` newest vector
    memory operations land."""
    remaining = []
    running = machine.running[:, 0]
    for held in machine.held_back:
        due = (running & (machine.vector_memory_issued - held.sequence >= count))[held.waves]
        if due.all():
            landing = held
        elif due.any():
            landing, rest = _part(held, due), _part(held, ~due)
            remaining.append(rest)
        else:
            remaining.append(held)
            continue
        if machine.races is not None:
            where = "direct-to-LDS load"
            note_race(machine, landing.places, held.step, landing.waves, True, where)
        lds_store(machine, landing.places, held.step, landing.data)
    machine.held_back[:] = remaining
