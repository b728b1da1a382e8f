"""Control flow: branches, divergence by EXEC and by wave, barriers, calls, waits, endless loops."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulator.machine_code import Setup, execute, mask_of
from vllm_amdopt.emulator.definitions import EmuError, EndlessLoop, Unsupported

LANES = np.arange(64)


@pytest.mark.parametrize(
    ("branch", "registers", "scc", "taken"),
    [
        ("s_branch", {}, None, [True, True]),
        ("s_cbranch_scc1", {}, [True, False], [True, False]),
        ("s_cbranch_scc0", {}, [True, False], [False, True]),
        ("s_cbranch_vccz", {"vcc": [0, 1]}, None, [True, False]),
        ("s_cbranch_vccnz", {"vcc": [0, 1 << 63]}, None, [False, True]),
        ("s_cbranch_execz", {"exec": [0, 1]}, None, [True, False]),
        ("s_cbranch_execnz", {"exec": [0, 1]}, None, [False, True]),
    ],
)
def test_waves_branch_each_for_itself(branch, registers, scc, taken):
    body = f"s_mov_b32 s2, 1\n{branch} there\ns_mov_b32 s2, 2\nthere:\ns_add_u32 s3, s2, 10"
    scc = None if scc is None else np.array(scc)
    outcome = execute("gfx942", body, registers=registers, scc=scc, waves=2)
    assert outcome.s(3).tolist() == [11 if jumps else 12 for jumps in taken]


def test_lanes_diverge_and_join():
    """if (lane < n) x = 3 lane; else x = -lane; and a loop of lane % 5 rounds"""
    body = """
    v_cmp_gt_u32 vcc, s4, v1
    s_and_saveexec_b64 s[6:7], vcc
    v_mul_lo_u32 v2, v1, 3
    s_xor_b64 exec, exec, s[6:7]
    s_cbranch_execz joined
    v_sub_u32 v2, 0, v1
  joined:
    s_mov_b64 exec, s[6:7]
    v_mov_b32 v4, 0
  loop:
    v_cmp_lt_u32 vcc, v4, v3
    s_and_b64 exec, exec, vcc
    s_cbranch_execz done
    v_add_u32 v4, 1, v4
    s_branch loop
  done:
    s_mov_b64 exec, s[6:7]
    v_add_u32 v5, v4, v2
    """
    registers = {"v1": LANES, "v3": LANES % 5, "s4": [20, 0, 64]}
    outcome = execute("gfx942", body, registers=registers, waves=3)
    for wave, bound in enumerate((20, 0, 64)):
        expected = np.where(bound > LANES, 3 * LANES, -LANES)
        assert outcome.v(2)[wave].astype(np.int32).tolist() == expected.tolist()
        assert outcome.v(4)[wave].tolist() == (LANES % 5).tolist()
    assert outcome.exec_mask.tolist() == [(1 << 64) - 1] * 3


def test_waves_loop_different_numbers_of_times():
    body = """
    s_mov_b32 s2, 0
    v_mov_b32 v2, 0
  loop:
    v_add_u32 v2, s2, v2
    s_add_u32 s2, s2, 1
    s_cmp_lt_u32 s2, s4
    s_cbranch_scc1 loop
    v_mov_b32 v3, v2
    """
    rounds = np.array([1, 7, 3, 100])
    outcome = execute("gfx942", body, registers={"s4": rounds}, waves=4)
    assert outcome.v(3)[:, 0].tolist() == [n * (n - 1) // 2 for n in rounds]
    # counted once per wave and round
    assert outcome.machine.stats()["branch"] == rounds.sum() + 4


def test_calls_return():
    body = """
    s_getpc_b64 s[4:5]
    s_add_u32 s4, s4, twice@rel32@lo+4
    s_addc_u32 s5, s5, twice@rel32@hi+12
    s_mov_b32 s2, 5
    s_swappc_b64 s[30:31], s[4:5]
    s_swappc_b64 s[30:31], s[4:5]
    s_call_b64 s[30:31], twice
    s_branch end
  twice:
    s_lshl_b32 s2, s2, 1
    s_setpc_b64 s[30:31]
  end:
    """
    assert execute("gfx942", body, waves=2).s(2).tolist() == [40, 40]


BARRIER = """
    v_lshlrev_b32 v2, 2, v1
    ds_write_b32 v2, v1
    s_waitcnt lgkmcnt(0)
    {barrier}
    v_xor_b32 v3, 0x100, v2
    ds_read_b32 v4, v3
"""


def test_a_barrier_lets_waves_see_each_other():
    """Wave 0 spends its time in a loop first, so that the other one is at the barrier before."""
    delay = "s_mov_b32 s2, s4\nl:\ns_sub_u32 s2, s2, 1\ns_cmp_lg_u32 s2, 0\ns_cbranch_scc1 l\n"
    registers = {"v1": LANES + 64 * np.arange(2)[:, None], "s4": [30, 1]}
    setup = Setup(registers=registers, waves=2, lds=512, options={"races": True})
    outcome = execute("gfx942", delay + BARRIER.format(barrier="s_barrier"), setup)
    assert outcome.v(4)[0].tolist() == (LANES + 64).tolist()
    assert outcome.v(4)[1].tolist() == LANES.tolist()
    assert outcome.machine.race_log == []
    outcome = execute("gfx942", delay + BARRIER.format(barrier="s_nop 0"), setup)
    assert "races with wave" in outcome.machine.race_log[0]


def test_barriers_count_only_the_waves_that_live():
    body = """
    s_cmp_eq_u32 s4, 1
    s_cbranch_scc1 gone
    s_barrier
    s_mov_b32 s2, 5
    s_barrier
    s_mov_b32 s2, 6
  gone:
    """
    outcome = execute("gfx942", body, registers={"s4": [0, 1, 0], "s2": 0}, waves=3)
    assert outcome.s(2).tolist() == [6, 0, 6]


def test_a_barrier_that_cannot_be_passed_names_it():
    body = """
    s_cmp_eq_u32 s4, 1
    s_cbranch_scc1 forever
    s_barrier
    s_endpgm
  forever:
    s_mov_b32 s2, 0
    s_branch forever
    """
    setup = Setup(registers={"s4": [0, 1]}, waves=2, options={"max_blocks": 300})
    with pytest.raises(EndlessLoop, match="loop at forever, asm lines 10 to 11"):
        execute("gfx942", body, setup)


def test_an_endless_loop_is_named_with_its_rounds():
    body = """
    s_mov_b32 s2, 0
  outer:
    s_mov_b32 s3, 3
  inner:
    s_sub_u32 s3, s3, 1
    s_cmp_lg_u32 s3, 0
    s_cbranch_scc1 inner
    s_add_u32 s2, s2, 1
    s_branch outer
    """
    setup = Setup(waves=2, options={"max_blocks": 1000})
    with pytest.raises(EndlessLoop) as caught:
        execute("gfx942", body, setup)
    message = str(caught.value)
    assert message.startswith("kernel tested does not end: more than 1000 basic blocks executed")
    assert "It is in the loop at outer, asm lines 7 to 13" in message
    assert "2 waves are left" in message
    rounds = int(message.split("have begun the loop ")[1].split()[0])
    assert 2 * 1000 / 5 < rounds < 2 * 6000  # five blocks a round, two waves


def test_the_limit_may_be_lifted():
    body = "s_mov_b32 s2, 500\nloop:\ns_sub_u32 s2, s2, 1\ns_cmp_lg_u32 s2, 0\ns_cbranch_scc1 loop"
    for limit in (0, None, 100000):
        assert execute("gfx942", body, options={"max_blocks": limit}).s(2)[0] == 0
    # a kernel that ends within the watch after the limit has not been endless
    assert execute("gfx942", body, options={"max_blocks": 50}).s(2)[0] == 0


def test_the_end_of_the_code_is_an_error():
    with pytest.raises(EmuError, match="kernel tested: the program counter ran off the code"):
        execute("gfx942", "s_getpc_b64 s[2:3]\ns_add_u32 s2, s2, 0x1000\ns_setpc_b64 s[2:3]")
    with pytest.raises(EmuError, match="s_trap executed"):
        execute("gfx942", "s_trap 2")


def test_waits_and_hints_do_nothing():
    body = (
        "s_waitcnt vmcnt(0) lgkmcnt(0) expcnt(0)\ns_waitcnt 0\ns_nop 3\ns_sleep 1\n"
        "s_setprio 2\nbuffer_inv sc0 sc1\nbuffer_wbl2 sc1\ns_icache_inv\ns_mov_b32 s2, 4"
    )
    assert execute("gfx942", body).s(2)[0] == 4
    for line in ("s_waitcnt vscnt(0)", "s_waitcnt_vscnt null, 0", "s_waitcnt_depctr 0xfffe"):
        with pytest.raises(Unsupported):
            execute("gfx942", line)


def test_partial_waves_begin_with_their_lanes():
    assert mask_of(range(3)) == 7
    outcome = execute("gfx942", "v_mov_b32 v2, 1", registers={"exec": 7, "v2": 0})
    assert outcome.v(2)[0].tolist() == [1] * 3 + [0] * 61
