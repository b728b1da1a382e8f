"""The cost model's compute unit: hand-written code whose time can be worked out on paper."""

from __future__ import annotations

import pytest

from benchmarks.amd_model.assembly import Trace, parse
from benchmarks.amd_model.assumptions import ASSUMPTIONS, GFX, Machine, machine
from benchmarks.amd_model.compute_unit import run, run_trace
from benchmarks.amd_model.costs import matrix_flops, matrix_passes

CHIP = machine("gfx942")
HBM = int(CHIP.hbm_latency)
LDS = int(CHIP.lds_latency)


def clocks(
    text: str, *, waves: int = 1, workgroups: int = 1, rate: float = 64, chip: Machine = CHIP
) -> float:
    """The time of a piece of code in which every line is one instruction."""
    code = parse(text).instructions
    return run(code, chip, waves=waves, workgroups=workgroups, bytes_per_clock=rate).clocks


LOAD = "global_load_dwordx4 v[4:7], v[0:1], off\n"
MATRIX = "v_mfma_f32_16x16x16_bf16 a[0:3], v[4:5], v[6:7], a[0:3]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("v_add_f32 v0, v1, v2\n" * 5, 5 * 4, id="vector"),
        pytest.param("s_nop 3\nv_add_f32 v0, v1, v2\n", 4 * 4 + 4, id="nop"),
        # 16 clocks in the pipe; the next instruction finds it free after them
        pytest.param("v_exp_f32 v0, v1\nv_add_f32 v2, v3, v3\n", 16 + 4, id="transcendental"),
        # two accumulations into the same registers follow each other pass on pass
        pytest.param(MATRIX * 3, 2 * 16 + 4, id="accumulate"),
        # another reader waits for three passes more
        pytest.param(MATRIX + "v_add_f32 v0, a0, v1\n", 4 * (4 + 3) + 4, id="matrix-result"),
        # 1024 bytes at 64 a clock, then the latency; the wait itself is one issue
        pytest.param(LOAD + "s_waitcnt vmcnt(0)\n", 16 + HBM + 4, id="load"),
        # the second load's bytes queue behind the first's
        pytest.param(LOAD * 2 + "s_waitcnt vmcnt(0)\n", 32 + HBM + 4, id="two-loads"),
        pytest.param(LOAD * 2 + "s_waitcnt vmcnt(1)\n", 16 + HBM + 4, id="one-of-two-loads"),
        pytest.param("ds_read_b128 v[0:3], v4\ns_waitcnt lgkmcnt(0)\n", 8 + LDS + 4, id="lds"),
        pytest.param("ds_write_b32 v4, v0\ns_waitcnt lgkmcnt(0)\n", 4 + LDS + 4, id="lds-write"),
    ],
)
def test_known_answers_of_one_wave(text: str, expected: float) -> None:
    assert clocks(text) == expected


def test_waves_of_different_simds_run_side_by_side_and_of_one_simd_in_turn() -> None:
    work = "v_add_f32 v0, v1, v2\n" * 10
    assert clocks(work, waves=4) == 40
    assert clocks(work, waves=8) == 80


def test_the_memory_path_is_shared_by_the_four_simds() -> None:
    # four waves x 1024 bytes at 64 bytes a clock
    assert clocks(LOAD + "s_waitcnt vmcnt(0)\n", waves=4) == 64 + HBM + 4


def test_less_bandwidth_stretches_a_stream() -> None:
    # the first kilobyte comes after the latency, each further one 1024 / 8 clocks later
    stream = LOAD * 4 + "s_waitcnt vmcnt(0)\n"
    assert clocks(stream, rate=8) == 16 + HBM + 3 * 128 + 4


def test_a_barrier_lets_all_go_when_the_last_arrives() -> None:
    # both waves sit on different SIMDs and arrive together
    text = "v_add_f32 v0, v1, v2\ns_barrier\nv_add_f32 v0, v1, v2\n"
    assert clocks(text, waves=2) == 4 + CHIP.barrier + 4


def test_a_second_workgroup_starts_one_dispatch_later() -> None:
    text = "v_add_f32 v0, v1, v2\n"
    assert clocks(text, workgroups=2) == CHIP.dispatch_interval + 4


def test_extrapolation_agrees_with_the_whole_run() -> None:
    body = parse(LOAD + "s_waitcnt vmcnt(0)\n" + MATRIX).instructions
    trace = Trace((), body, ())
    direct = run(trace.whole(40), CHIP, waves=4, workgroups=2, bytes_per_clock=16).clocks
    quick = run_trace(trace, 40, CHIP, waves=4, workgroups=2, bytes_per_clock=16).clocks
    assert quick == pytest.approx(direct, rel=0.01)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"text": LOAD * 3}, id="more-bytes"),
        pytest.param({"rate": 4}, id="less-bandwidth"),
        pytest.param({"workgroups": 3}, id="more-workgroups"),
        pytest.param({"chip": CHIP.with_factor("hbm_latency", 2)}, id="more-latency"),
    ],
)
def test_more_work_or_a_slower_chip_is_not_faster(change: dict[str, object]) -> None:
    arguments: dict[str, object] = {"text": LOAD * 2, "waves": 4, "rate": 32}
    end = "s_waitcnt vmcnt(0)\n" + MATRIX
    before = clocks(**{**arguments, "text": f"{arguments['text']}{end}"})  # type: ignore[arg-type]
    after = {**arguments, **change}
    assert clocks(**{**after, "text": f"{after['text']}{end}"}) > before  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gfx", "name"),
    [
        ("gfx942", "v_mfma_f32_16x16x16_bf16"),
        ("gfx942", "v_mfma_f32_32x32x8_bf16"),
        ("gfx950", "v_mfma_f32_16x16x32_bf16"),
        ("gfx950", "v_mfma_f32_32x32x16_bf16"),
    ],
)
def test_passes_give_the_data_sheets_peak(gfx: str, name: str) -> None:
    chip = machine(gfx)
    per_clock = matrix_flops(name) / (4 * matrix_passes(name))
    peak = per_clock * 4 * chip.compute_units * chip.clock
    assert peak == pytest.approx(chip.matrix_rate, rel=0.001)


def test_every_assumption_has_both_chips_a_source_and_a_range_around_one() -> None:
    for row in ASSUMPTIONS:
        assert set(row.values) == set(GFX), row.name
        assert row.source, row.name
        assert row.low <= 1 <= row.high, row.name
    assert len({row.name for row in ASSUMPTIONS}) == len(ASSUMPTIONS)


def test_an_unknown_chip_and_an_unknown_instruction_are_said() -> None:
    with pytest.raises(ValueError, match="gfx90a is not modelled"):
        machine("gfx90a")
    with pytest.raises(ValueError, match="matrix instruction"):
        parse("v_mfma_f32_128x128x4_bf16 a[0:3], v[4:5], v[6:7], a[0:3]")
