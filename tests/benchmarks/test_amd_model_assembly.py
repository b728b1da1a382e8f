"""The cost model's reader of assembly: registers, loops, the main path, loads for addresses."""

from __future__ import annotations

import pytest

from benchmarks.amd_model.assembly import (
    Program,
    blocks_of,
    bytes_in_flight,
    loops_of,
    parse,
    trace_of,
)

STREAM = """
kernel:
	s_load_dwordx2 s[0:1], s[4:5], 0x0
	s_waitcnt lgkmcnt(0)
	s_cmp_lt_i32 s2, 1
	s_cbranch_scc1 .LBB0_3
.LBB0_1:                                ; the loop
	global_load_dwordx4 v[4:7], v[0:1], off
	s_waitcnt vmcnt(0)
	v_mfma_f32_16x16x16_bf16 a[0:3], v[4:5], v[6:7], a[0:3]
	s_add_i32 s2, s2, -1
	s_cmp_lg_u32 s2, 0
	s_cbranch_scc1 .LBB0_1
; %bb.2:
	global_store_dword v[0:1], v8, off
.LBB0_3:
	s_endpgm
	.vgpr_count:     40
	.group_segment_fixed_size: 1024
"""


def named(program: Program, name: str) -> list[int]:
    return [i for i, one in enumerate(program.instructions) if one.name == name]


def test_instructions_know_their_registers_bytes_and_waits() -> None:
    code = parse(STREAM).instructions
    load, wait, matrix = code[4:7]
    assert (load.kind, load.bytes, load.writes) == ("load", 1024, ("v4", "v5", "v6", "v7"))
    assert load.reads == ("v0", "v1")
    assert (wait.outstanding_memory, wait.outstanding_lds) == (0, None)
    assert matrix.passes == 4
    assert matrix.writes == ("a0", "a1", "a2", "a3")
    assert set(matrix.reads) == {"v4", "v5", "v6", "v7", "a0", "a1", "a2", "a3"}
    store = next(one for one in code if one.kind == "store")
    assert (store.bytes, store.writes, store.reads) == (256, (), ("v0", "v1", "v8"))


def test_the_compilers_counts_are_read() -> None:
    assert parse(STREAM).counts == {"vgpr_count": 40, "group_segment_fixed_size": 1024}


def test_main_path_is_before_loop_after() -> None:
    program = parse(STREAM)
    trace = trace_of(program)
    assert trace.before[-1].name == "s_cbranch_scc1"
    assert trace.body[0].name == "global_load_dwordx4"
    assert len(trace.body) == 6
    assert [one.name for one in trace.after] == ["global_store_dword", "s_endpgm"]
    assert len(trace.whole(3)) == 4 + 3 * 6 + 2


def test_an_inner_loop_lies_deeper_than_the_loop_around_it() -> None:
    program = parse(
        """
        k:
          s_mov_b32 s0, 0
        outer:
          v_mov_b32_e32 v0, 0
        inner:
          v_add_f32_e32 v0, v0, v1
          s_cbranch_scc1 inner
          s_cbranch_scc0 outer
          s_endpgm
        """
    )
    loops = loops_of(blocks_of(program))
    assert [loop.depth for loop in loops] == [1, 2]
    assert loops[1].members < loops[0].members


def test_a_load_that_an_address_needs_is_told_from_a_load_of_data() -> None:
    trace = trace_of(
        parse(
            """
            k:
              global_load_dword v2, v[0:1], off
              s_waitcnt vmcnt(0)
              v_lshlrev_b32_e32 v3, 4, v2
              buffer_load_dwordx4 v[4:7], v3, s[0:3], 0 offen
              s_waitcnt vmcnt(0)
              global_store_dwordx4 v[8:9], v[4:7], off
              s_endpgm
            """
        )
    )
    assert [one.for_address for one in trace.before if one.kind == "load"] == [True, False]


def test_a_table_entry_loaded_one_trip_ahead_is_found() -> None:
    trace = trace_of(
        parse(
            """
            k:
              s_nop 0
            loop:
              buffer_load_dwordx4 v[4:7], v3, s[0:3], 0 offen
              global_load_dword v2, v[0:1], off
              s_waitcnt vmcnt(0)
              v_lshlrev_b32_e32 v3, 4, v2
              s_cbranch_scc1 loop
              s_endpgm
            """
        )
    )
    marked = {one.name: one.for_address for one in trace.body if one.kind == "load"}
    assert marked == {"buffer_load_dwordx4": False, "global_load_dword": True}


@pytest.mark.parametrize(("wait", "expected"), [("0", 1024), ("1", 2048)])
def test_bytes_in_flight_follow_from_the_wait(wait: str, expected: int) -> None:
    text = f"""
    k:
      s_nop 0
    loop:
      global_load_dwordx4 v[4:7], v[0:1], off
      s_waitcnt vmcnt({wait})
      s_cbranch_scc1 loop
      s_endpgm
    """
    assert bytes_in_flight(trace_of(parse(text))) == expected


def test_the_prologue_for_older_hardware_is_passed_over() -> None:
    text = """
    k:
      s_load_dwordx2 s[2:3], s[0:1], 0x0
      s_branch start
    start:
      v_mov_b32_e32 v0, 0
      s_endpgm
      .amdhsa_user_sgpr_kernarg_preload_length 4
    """
    assert [one.name for one in trace_of(parse(text)).before] == ["v_mov_b32", "s_endpgm"]


def test_a_load_straight_to_lds_writes_no_register() -> None:
    (load, _) = parse("k:\n buffer_load_dwordx4 v1, s[0:3], 0 offen lds\n s_endpgm").instructions
    assert (load.writes, load.bytes) == ((), 1024)
    assert "v1" in load.reads
