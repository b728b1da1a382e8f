"""How decode attention on CDNA is cut into parts, launched and merged; no kernel in here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import triton

WAVE_TOKENS = 32
"""Tokens that a wave attends to at a time."""


@dataclass(frozen=True)
class LaunchConfig:
    """`num_warps` waves attend to `tile` tokens at a time, with 16 query heads (padded)."""

    num_warps: int
    waves_per_eu: int
    why: str

    @property
    def tile(self) -> int:
        return self.num_warps * WAVE_TOKENS


def choose_config(head_size: int) -> LaunchConfig:
    """The launch for a head size; neither the batch nor the number of heads changes it."""
    padded = triton.next_power_of_2(head_size)
    return LaunchConfig(
        num_warps=4,
        waves_per_eu={64: 4, 128: 2, 256: 1}[padded],
        why=(
            "one wave per SIMD, so that workgroups of one tile still use the whole compute unit; "
            "a wave's 32 keys and values, the ones in use and the ones under way, take a quarter, "
            "half or all of the registers"
        ),
    )


MERGED_AT_ONCE = 256
"""Partial results of heads that a workgroup merges at once: parts times heads, padded.

Half of the registers that `choose_config` leaves a lane then hold them, whatever the head size.
"""

FAN_IN = 32
"""Parts that are merged at once at most; where there are more, by groups, then those together."""

LONG_PART = 16
"""Tiles of a part beside which a second step of merging does not count."""


@dataclass(frozen=True)
class Parts:
    """A sequence's keys as `splits` parts, merged by `fan` at a time; `groups` 0: in one step.

    slots: partial results of a KV head that there is room for, those of groups behind the parts'.
    counters: of a sequence and KV head; the first counts the groups, or the parts if there is none.
    """

    splits: int
    fan: int
    groups: int

    @property
    def steps(self) -> int:
        """Of merging: 0, 1 or 2."""
        return 0 if self.splits == 1 else 2 if self.groups else 1

    @property
    def slots(self) -> int:
        return self.splits + self.groups

    @property
    def counters(self) -> int:
        return 1 + self.groups


def most_merged_at_once(group: int) -> int:
    """Parts of `group` query heads that one step merges."""
    return min(FAN_IN, MERGED_AT_ONCE // triton.next_power_of_2(group))


def plan_merge(splits: int, group: int) -> Parts:
    """How so many parts of `group` query heads are merged. ValueError where they are too many.

    The fan-in is a power of two, and in two steps near the square root, which leaves the least to
    read one after the other.
    """
    most = most_merged_at_once(group)
    if splits <= most:
        return Parts(splits, max(2, triton.next_power_of_2(splits)), 0)
    if splits > most * most:
        raise ValueError(f"{splits} parts of {group} heads are more than {most * most}.")
    fan = triton.next_power_of_2(math.isqrt(splits - 1) + 1)
    return Parts(splits, fan, -(-splits // fan))


def plan_parts(
    workgroups: int, tokens: int, compute_units: int, config: LaunchConfig, group: int
) -> Parts:
    """One workgroup for each compute unit, none without tokens at full length.

    workgroups: sequences times KV heads. One workgroup has 64 KiB under way at head size 128, so
    that a second on the same compute unit would only make more to merge. Merging in two steps costs
    about as much as four tiles: it is for where one step would leave three quarters of the GPU
    idle, or half of it and parts are long. Predicted, not measured.
    """
    once = most_merged_at_once(group)
    tiles = max(1, -(-tokens // config.tile))
    planned = max(1, min(compute_units // max(1, workgroups), tiles, once * once))
    if planned > once:
        busy = workgroups * once / compute_units
        if busy >= (0.5 if tiles >= LONG_PART * once else 0.25):
            planned = once
    return plan_merge(-(-tiles // -(-tiles // planned)), group)
