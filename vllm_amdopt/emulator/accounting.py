"""What is noted about memory instructions beside their effect: segments, LDS banks, LDS races."""

from __future__ import annotations

from typing import Any

import numpy as np

from .definitions import i64
from .lane_access import lane_list, waves_of

SEVERAL = -2  # readers of a byte
MAX_RACES = 100  # reports
XCDS = 8
"""Dies with an L2 of their own, of MI300X, MI325X and MI355X; workgroup i of a grid goes to die
i mod 8 (AMD, "MI300X workload optimization": workgroups are dispatched round-robin to XCDs)."""
SEGMENT_BITS = 42  # of an address of 48 bits
LDS_BANKS = {"gfx942": 32, "gfx950": 64}  # of 4 bytes


def note_segments(machine: Any, what: str, addresses: Any, size: int, lanes: Any) -> None:
    """Count the distinct 64-byte segments per wave of one vector memory instruction."""
    waves = waves_of(machine, lanes)
    ends = [end >> 6 & ((1 << SEGMENT_BITS) - 1) for end in (addresses, addresses + size - 1)]
    of_wave = waves << SEGMENT_BITS
    machine.sectors[what] += len(np.unique(np.concatenate([of_wave | end for end in ends])))
    if what == "load":
        of_xcd = machine.group_number[waves] % XCDS << SEGMENT_BITS
        machine.fetched.append(np.unique(np.concatenate([of_xcd | end for end in ends])))


def fetched_segments(machine: Any) -> dict[int, int]:
    """Buffer's address -> 64-byte segments of it that loads touched, once for each XCD.

    What memory has to deliver if nothing that an XCD's L2 holds is driven out during the launch;
    without any cache it would have to deliver every byte that the loads ask for.
    """
    if not machine.fetched:
        return {}
    segments = np.unique(np.concatenate(machine.fetched)) & ((1 << SEGMENT_BITS) - 1)
    return {
        region.base: int(
            np.count_nonzero((segments >= region.base >> 6) & (segments <= region.end - 1 >> 6))
        )
        for region in machine.memory.regions
    }


def note_banks(machine: Any, offsets: Any, size: int, lanes: Any) -> None:
    """Estimate the LDS cycles of one instruction.

    A model, not a measurement: lanes are served in groups that could fill all banks once, and in
    each group the bank with the most different dwords decides.
    """
    banks = LDS_BANKS[machine.arch]
    dwords = max(1, size // 4)
    lane = lane_list(machine, lanes)
    group = (lane // 64) * 64 + (lane % 64) // max(1, banks // dwords)
    dword = ((offsets >> 2)[:, None] + np.arange(dwords)).reshape(-1)
    distinct = np.unique((np.repeat(group, dwords).astype(i64) << 32) | dword)
    group_and_bank = (distinct >> 32) * banks + (distinct & 0xFFFFFFFF) % banks
    bank, count = np.unique(group_and_bank, return_counts=True)
    worst = np.zeros(int(group.max()) + 1, i64)
    np.maximum.at(worst, bank // banks, count)
    machine.lds_cycles[0] += int(worst.sum())
    machine.lds_cycles[1] += len(np.unique(group))


def note_race(machine: Any, places: Any, size: int, waves: Any, write: bool, where: str) -> None:
    """Report LDS bytes that two waves of a workgroup touch between the same two barriers, one of
    them writing. Two writes are not reported: Triton stores replicated values.

    places: indices into the LDS of all workgroups, one per lane; waves: the lanes' waves.
    """
    last_writer, write_epoch, last_reader, read_epoch = machine.races
    byte = (places[:, None] + np.arange(size)).reshape(-1)
    wave = np.repeat(waves, size)
    epoch = machine.epoch[machine.group_of_wave[wave]]
    if write:
        racing = (read_epoch[byte] == epoch) & (last_reader[byte] != wave)
        last_writer[byte], write_epoch[byte] = wave, epoch
    else:
        racing = (write_epoch[byte] == epoch) & (last_writer[byte] != wave)
        another = (read_epoch[byte] == epoch) & (last_reader[byte] != wave)
        last_reader[byte], read_epoch[byte] = np.where(another, SEVERAL, wave), epoch
    if not racing.any() or len(machine.race_log) >= MAX_RACES:
        return
    first = int(np.argmax(racing))
    offset = int(byte[first] - machine.lds_base[wave[first], 0])
    other = int((last_reader if write else last_writer)[byte[first]])
    per_group = machine.waves_per_group
    machine.race_log.append(
        f"{'write' if write else 'read'} of LDS offset {offset} by wave "
        f"{int(wave[first]) % per_group} races with wave "
        f"{other % per_group if other >= 0 else 'several'}: {where}"
    )
