"""How MLA decode is launched: rows, tiles, parts and grids, planned on the host; no kernel in here.

Standard library only. A sequence has heads times new tokens rows, all over the same latents.
"""

from __future__ import annotations

from dataclasses import dataclass

XCDS = 8
"""Workgroups go round these dies of an MI300X or MI355X in turn, each with an L2 of its own."""
_MIN_TOKENS_PER_PART = 64
"""A part's result is 2 KiB a row: with fewer tokens it is more than half of what they are."""
MOST_PARTS = 256
"""About a part for each compute unit, for a single sequence."""


@dataclass(frozen=True)
class LaunchConfig:
    """One program attends with `rows` rows (padded) to `tile` tokens at a time.

    workgroups_per_compute_unit: how many are resident, by registers and LDS on gfx942.
    """

    rows: int
    tile: int
    num_warps: int
    num_stages: int
    workgroups_per_compute_unit: int
    why: str


@dataclass(frozen=True)
class ReduceConfig:
    """One program merges `columns` of one row, `chunk` parts at a time."""

    chunk: int
    columns: int
    num_warps: int
    why: str


_NARROW = LaunchConfig(
    rows=16,
    tile=16,
    num_warps=4,
    num_stages=1,
    workgroups_per_compute_unit=3,
    why=(
        "16 rows are the smallest matrix tile and a rank of eight's share of DeepSeek's 128 heads; "
        "with 16 latents under way and 16 in LDS, three workgroups fit a compute unit of gfx942 "
        "and hide each other's barriers"
    ),
)
_WIDE = LaunchConfig(
    rows=32,
    tile=32,
    num_warps=4,
    num_stages=1,
    workgroups_per_compute_unit=2,
    why=(
        "32 rows halve what is read again for further heads; a program of 64 has one wave a SIMD "
        "and is predicted to take longer than two of 32, the second of which finds the latents in "
        "L2; 32 latents at a time halve the barriers, and two workgroups still fit"
    ),
)
_WIDE_FLOAT32 = LaunchConfig(
    rows=32,
    tile=16,
    num_warps=4,
    num_stages=1,
    workgroups_per_compute_unit=1,
    why="16 latents of 512 floats are 32 KiB, of which the LDS of gfx942 holds one",
)


def choose_config(rows: int, element_bytes: int) -> LaunchConfig:
    """The launch for `rows` rows a sequence: heads times new tokens."""
    if rows <= _NARROW.rows:
        return _NARROW
    return _WIDE if element_bytes <= 2 else _WIDE_FLOAT32


def plan(
    workgroups_per_split: int, max_seq_len: int, compute_units: int, config: LaunchConfig
) -> int:
    """Number of parts to cut each sequence into, at least 1.

    As many as are resident at once: one workgroup too many would cost a whole further round.
    workgroups_per_split is sequences times row tiles; 1 means that nothing is merged.
    """
    if workgroups_per_split <= 0 or max_seq_len <= 0:
        return 1
    fitting = compute_units * min(2, config.workgroups_per_compute_unit) // workgroups_per_split
    useful = max_seq_len // _MIN_TOKENS_PER_PART
    return max(1, min(fitting, useful, MOST_PARTS))


def programs(sequences: int, row_tiles: int, splits: int) -> int:
    """The split kernel's grid: with several row tiles, whole rounds over the XCDs."""
    items = sequences * splits
    if row_tiles == 1:
        return items
    return -(-items // XCDS) * XCDS * row_tiles


def choose_reduce_config(splits: int, latent_size: int) -> ReduceConfig:
    """The launch that merges `splits` parts."""
    chunk = max(2, min(64, _next_power_of_2(splits)))
    return ReduceConfig(
        chunk=chunk,
        columns=min(latent_size, 2048 // chunk),
        num_warps=1,
        why=(
            "2048 floats are 32 registers of one wave, so that all of its loads are under way "
            "together; columns are cut so that a single sequence fills compute units too"
        ),
    )


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
