"""Instructions that move values between lanes: DPP, swizzles, permutes, row swaps, readlane."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulator.machine_code import execute, mask_of
from vllm_amdopt.emulator.definitions import Unsupported

LANES = np.arange(64)
VALUES = (1000 + LANES).tolist()
OLD = 7


def row(lane: int) -> int:
    return lane // 16 * 16


# control -> source lane of a lane, None where it lies out of bounds
DPP = {
    "quad_perm:[3,1,0,2]": lambda i: i // 4 * 4 + [3, 1, 0, 2][i % 4],
    "row_shl:3": lambda i: i + 3 if i % 16 + 3 < 16 else None,
    "row_shr:5": lambda i: i - 5 if i % 16 >= 5 else None,
    "row_ror:7": lambda i: row(i) + (i % 16 - 7) % 16,
    "wave_shl:1": lambda i: i + 1 if i < 63 else None,
    "wave_shr:1": lambda i: i - 1 if i else None,
    "wave_rol:1": lambda i: (i + 1) % 64,
    "wave_ror:1": lambda i: (i - 1) % 64,
    "row_mirror": lambda i: row(i) + 15 - i % 16,
    "row_half_mirror": lambda i: i // 8 * 8 + 7 - i % 8,
    "row_bcast:15": lambda i: row(i) - 1 if i >= 16 else None,
    "row_bcast:31": lambda i: 31 if i >= 32 else None,
    "row_newbcast:5": lambda i: row(i) + 5,
}


@pytest.mark.parametrize("bound", ["", " bound_ctrl:1", " bound_ctrl:0"])
@pytest.mark.parametrize("masks", ["row_mask:0xf bank_mask:0xf", "row_mask:0xa bank_mask:0x7"])
@pytest.mark.parametrize("control", DPP)
def test_dpp_fetches_from_another_lane(control, masks, bound):
    """Masked-off rows and banks keep the old value; so does a lane without a source, which reads
    0 under bound_ctrl."""
    line = f"v_mov_b32_dpp v0, v1 {control} {masks}{bound}"
    outcome = execute("gfx942", line, registers={"v0": OLD, "v1": VALUES})
    rows, banks = (0xF, 0xF) if "0xf" in masks else (0xA, 0x7)
    for lane in range(64):
        source = DPP[control](lane)
        expected = OLD if source is None else VALUES[source]
        if source is None and bound:
            expected = 0
        if not (rows >> lane // 16 & 1 and banks >> lane // 4 % 4 & 1):
            expected = OLD
        assert outcome.v(0)[0, lane] == expected, lane


def test_dpp_is_a_source_of_any_operation():
    line = "v_add_u32_dpp v0, v1, v2 row_shr:1 row_mask:0xf bank_mask:0xf"
    outcome = execute("gfx942", line, registers={"v0": OLD, "v1": VALUES, "v2": LANES * 10000})
    expected = [OLD if i % 16 == 0 else VALUES[i - 1] + 10000 * i for i in range(64)]
    assert outcome.v(0)[0].tolist() == expected
    line = "v_max_f32_dpp v0, -v1, |v2| quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf"
    values = (LANES - 30.0).astype(np.float32)
    outcome = execute("gfx942", line, registers={"v1": values, "v2": values})
    expected = np.maximum(-values[LANES ^ 1], np.abs(values))
    assert outcome.v(0)[0].view(np.float32).tolist() == expected.tolist()


def test_dpp_does_not_read_disabled_lanes():
    enabled = mask_of(LANES[LANES % 2 == 0])
    line = "v_mov_b32_dpp v0, v1 row_shl:1 row_mask:0xf bank_mask:0xf"
    registers = {"v0": OLD, "v1": VALUES, "exec": enabled}
    assert (execute("gfx942", line, registers=registers).v(0) == OLD).all()
    outcome = execute("gfx942", line + " bound_ctrl:1", registers=registers)
    assert outcome.v(0)[0].tolist() == [0 if i % 2 == 0 else OLD for i in range(64)]


@pytest.mark.parametrize(
    "line",
    [
        "v_mov_b32_dpp v0, v1 row_mask:0xf bank_mask:0xf",
        "v_mov_b32_dpp v0, v1 row_share:3",
        "v_mov_b32_dpp v0, v1 row_bcast:7",
        "v_mov_b32_dpp v0, v1 row_shl:1 row_shr:1",
        "v_mov_b32_dpp v0, v1 row_shl:1 fi:1",
        "v_mov_b32_e32 v0, v1 row_shl:1",
        "v_add_f32_dpp v0, v1, v2 row_shl:1 clamp",
        "ds_swizzle_b32 v0, v1 offset:0xe000",
        "ds_swizzle_b32 v0, v1 offset:swizzle(FFT,3)",
        "ds_swizzle_b32 v0, v1 offset:0x8000 gds",
        "ds_bpermute_b32 v0, v1, v2 gds",
        "v_permlane32_swap_b32 v0, v1 clamp",
        "v_readlane_b32 s0, v1, 3 clamp",
    ],
)
def test_what_is_not_honoured_is_refused(line):
    with pytest.raises(Unsupported):
        execute("gfx950", line)


SWIZZLES = {
    "swizzle(QUAD_PERM,3,0,2,1)": lambda i: i // 4 * 4 + [3, 0, 2, 1][i % 4],
    "0x8063": lambda i: i // 4 * 4 + (0x63 >> 2 * (i % 4) & 3),
    "swizzle(SWAP,8)": lambda i: i ^ 8,
    "swizzle(REVERSE,16)": lambda i: i // 16 * 16 + 15 - i % 16,
    "swizzle(BROADCAST,8,3)": lambda i: i // 8 * 8 + 3,
    'swizzle(BITMASK_PERM,"01pip")': lambda i: i & 32 | 8 | i & 4 | (i & 2 ^ 2) | i & 1,
    "0x041f": lambda i: i ^ 1,  # and 0x1f, or 0, xor 1
    "0x7c1e": lambda i: i & 32 | (i & 0x1E) ^ 0x1F,
}


@pytest.mark.parametrize("offset", SWIZZLES)
def test_swizzle(offset):
    line = f"ds_swizzle_b32 v0, v1 offset:{offset}"
    outcome = execute("gfx942", line, registers={"v1": VALUES})
    assert outcome.v(0)[0].tolist() == [VALUES[SWIZZLES[offset](i)] for i in range(64)]


def test_backward_and_forward_permute():
    order = np.random.default_rng(0).permutation(64)
    repeated = np.minimum(order, 40)
    body = (
        "ds_bpermute_b32 v0, v1, v2\nds_permute_b32 v3, v1, v2\n"
        "ds_bpermute_b32 v4, v1, v2 offset:8\nds_permute_b32 v5, v6, v2"
    )
    registers = {"v1": order * 4 + 256, "v2": VALUES, "v6": repeated * 4}
    outcome = execute("gfx942", body, registers=registers)
    assert outcome.v(0)[0].tolist() == [VALUES[order[i]] for i in range(64)]
    assert [int(outcome.v(3)[0, order[i]]) for i in range(64)] == VALUES
    assert outcome.v(4)[0].tolist() == [VALUES[(order[i] + 2) % 64] for i in range(64)]
    last = [0] * 64  # the highest sender wins
    for i in range(64):
        last[repeated[i]] = VALUES[i]
    assert outcome.v(5)[0].tolist() == last


def test_permutes_ignore_disabled_lanes():
    enabled = LANES[LANES % 3 == 0]
    body = (
        "ds_bpermute_b32 v0, v1, v2\nds_permute_b32 v3, v1, v2\n"
        "ds_swizzle_b32 v4, v2 offset:swizzle(SWAP,1)"
    )
    source = (LANES + 1) % 64
    registers = {"v1": source * 4, "v2": VALUES, "exec": mask_of(enabled)}
    registers |= {f"v{n}": OLD for n in (0, 3, 4)}
    outcome = execute("gfx942", body, registers=registers)
    on = LANES % 3 == 0
    for lane in range(64):
        fetched = VALUES[source[lane]] if on[source[lane]] else 0
        sent = VALUES[(lane - 1) % 64] if on[(lane - 1) % 64] else 0
        swapped = VALUES[lane ^ 1] if on[lane ^ 1] else 0
        got = [int(outcome.v(n)[0, lane]) for n in (0, 3, 4)]
        assert got == ([fetched, sent, swapped] if on[lane] else [OLD] * 3)


def test_rows_are_swapped_between_registers():
    other = (2000 + LANES).tolist()
    for name, first, second in (
        ("v_permlane32_swap_b32", lambda i: i >= 32, 32),
        ("v_permlane16_swap_b32", lambda i: i // 16 % 2 == 1, 16),
    ):
        outcome = execute("gfx950", f"{name}_e32 v0, v1", registers={"v0": VALUES, "v1": other})
        assert outcome.v(0)[0].tolist() == [
            other[i - second] if first(i) else VALUES[i] for i in range(64)
        ]
        assert outcome.v(1)[0].tolist() == [
            other[i] if first(i) else VALUES[i + second] for i in range(64)
        ]
    outcome = execute("gfx950", "v_swap_b32 v0, v1", registers={"v0": VALUES, "v1": other})
    assert outcome.v(0)[0].tolist() == other
    assert outcome.v(1)[0].tolist() == VALUES


def test_single_lanes_and_scalar_registers():
    body = (
        "v_readlane_b32 s0, v1, 17\nv_readlane_b32 s1, v1, s4\nv_readfirstlane_b32 s2, v1\n"
        "v_writelane_b32 v2, s5, 3\nv_writelane_b32 v2, 9, s4"
    )
    registers = {"v1": VALUES, "v2": OLD, "s4": 64 + 20, "s5": 123}
    enabled = registers | {"exec": mask_of([9, 30])}
    for setup, first in ((registers, 0), (enabled, 9), (registers | {"exec": 0}, 0)):
        outcome = execute("gfx942", body, registers=setup)
        got = [int(outcome.s(n)[0]) for n in range(3)]
        assert got == [VALUES[17], VALUES[20], VALUES[first]]
        written = [OLD] * 64
        written[3], written[20] = 123, 9  # EXEC does not matter
        assert outcome.v(2)[0].tolist() == written
