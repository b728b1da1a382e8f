"""How MLA decode on CDNA is cut into parts and launched; no kernel in here."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_amdopt.kernels.mla_decode_plan import MOST_PARTS


@dataclass(frozen=True)
class LaunchConfig:
    """A program attends with `rows` rows (padded) to `tile` tokens at a time.

    head_waves: waves that share the rows; the other factor of num_warps shares the tokens.
    """

    head_waves: int
    num_warps: int
    waves_per_eu: int
    why: str

    @property
    def rows(self) -> int:
        return 16 * self.head_waves

    @property
    def tile(self) -> int:
        return 16 * (self.num_warps // self.head_waves)

    @property
    def result_tiles(self) -> float:
        """What a part's results move, two times 512 floats a row, in tiles of 512 + 64 numbers."""
        return 2 * self.rows * 512 * 4 / (self.tile * (512 + 64) * 2)


MOST_ROWS = 64
"""Of one program; its four waves, each with all registers of a SIMD, hold 64 x 512 sums."""


def choose_config(rows: int) -> LaunchConfig:
    """The launch for so many rows: heads times new tokens. More than 64 take several programs."""
    padded = min(MOST_ROWS, max(16, 1 << (rows - 1).bit_length()))
    return LaunchConfig(
        head_waves=padded // 16,
        num_warps=4,
        waves_per_eu=1,
        why=(
            "16 heads x 512 sums, the queries, the latents in use and those under way take most "
            "of a SIMD's registers, so that one wave has it to itself; 16 tokens a wave are 72 KiB "
            "under way in a compute unit, ten times what latency and bandwidth ask for"
        ),
    )


def plan_parts(workgroups: int, tokens: int, compute_units: int, config: LaunchConfig) -> int:
    """Number of parts: about as many as the GPU runs side by side, none without tokens.

    Every part's results are written and read again, and the longest parts decide. Up to 32 heads
    leave a compute unit idle half of the time, so that it has time for a seventh more: of the
    numbers that ask no more of it, the one that moves least. Predicted, not measured.
    """
    room = compute_units // max(1, workgroups)
    tiles = max(1, -(-tokens // config.tile))
    most = max(1, min(room, tiles, MOST_PARTS))
    longest = -(-tiles // most)
    if config.head_waves <= 2:
        longest += longest // 7
    fewest = -(-tiles // longest)

    def moved(parts: int) -> float:
        return parts * (-(-tiles // parts) + config.result_tiles)

    planned = min(range(min(fewest, most), most + 1), key=moved)
    return -(-tiles // -(-tiles // planned))
