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


def apply_held_back(machine: Any, count: int) -> None:
    """s_waitcnt vmcnt(count) of the running waves: writes older than the `count` newest vector
    memory operations land."""
    remaining = []
    running = machine.running[:, 0]
    for held in machine.held_back:
        due = (running & (machine.vector_memory_issued - held.sequence >= count))[held.waves]
        if not due.any():
            remaining.append(held)
            continue
        if machine.races is not None:
            places, waves = held.places[due], held.waves[due]
            note_race(machine, places, held.step, waves, True, "direct-to-LDS load")
        lds_store(machine, held.places[due], held.step, held.data[due])
        if not due.all():
            rest = ~due
            remaining.append(
                HeldBack(
                    held.sequence,
                    held.waves[rest],
                    held.places[rest],
                    held.step,
                    held.data[rest],
                )
            )
    machine.held_back[:] = remaining
