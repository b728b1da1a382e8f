"""The cost model from a kernel's name to the printed line: compiled, predicted, labelled."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.amd_model import mca, report, serving, serving_cdna
from benchmarks.amd_model.__main__ import main
from benchmarks.amd_model.assembly import parse
from benchmarks.amd_model.assumptions import machine
from benchmarks.amd_model.predict import Kernel, compiled, kernel_of, predict, predict_launch
from benchmarks.amd_model.sensitivity import REPRESENTATIVES, sweep
from vllm_amdopt.emulator.launch import Device
from vllm_amdopt.ops.gemm_small_batch import gemm_small_batch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "amd_model.md"
LLAMA = serving.MODELS[0]
GEMM = ("o", 4096, 4096)

STREAM = """
k:
  s_nop 0
loop:
  global_load_dwordx4 v[4:7], v[0:1], off
  global_load_dwordx4 v[8:11], v[0:1], off
  s_waitcnt vmcnt(0)
  v_add_f32 v12, v4, v8
  s_cbranch_scc1 loop
  s_endpgm
  .vgpr_count: 16
"""


def stream(lds_bytes: int = 0) -> Kernel:
    return kernel_of(parse(STREAM), waves=4, lds_bytes=lds_bytes)


def launch_of(workgroups: int, trips: int) -> serving.Launch:
    variant = serving.gemm(LLAMA, *GEMM, 1).launches[0].variant
    return serving.Launch(variant, workgroups, trips, workgroups * trips * 4 * 2048)


@pytest.mark.parametrize("gfx", ["gfx942", "gfx950"])
@pytest.mark.parametrize("batch", [1, 128])
def test_a_prediction_is_never_below_its_floor(gfx: str, batch: int) -> None:
    found = predict(serving.gemm(LLAMA, *GEMM, batch), machine(gfx))
    assert found.seconds >= found.floor_seconds > 0
    assert found.share_of_floor <= 1
    assert found.floor_by == "HBM"
    # 4096 x 4096 bf16 numbers, once
    assert found.case.bytes >= 2 * 4096 * 4096


@pytest.mark.parametrize(
    ("less", "more"),
    [((304, 20), (304, 40)), ((304, 20), (912, 20)), ((1, 8), (2, 8)), ((912, 20), (913, 20))],
)
def test_more_bytes_are_not_faster(less: tuple[int, int], more: tuple[int, int]) -> None:
    chip = machine("gfx942")
    times = [predict_launch(launch_of(*size), stream(), chip).seconds for size in (less, more)]
    assert times[0] <= times[1]


def test_a_long_stream_over_all_compute_units_reaches_the_reachable_bandwidth() -> None:
    chip = machine("gfx942")
    launch = launch_of(304 * 8, 400)
    seconds = predict_launch(launch, stream(), chip).seconds
    reachable = launch.needed_bytes / (chip.hbm_bandwidth * chip.hbm_reachable)
    assert 1 <= seconds / reachable < 1.05


def test_what_does_not_fit_in_lds_is_never_done() -> None:
    found = predict_launch(launch_of(1, 1), stream(lds_bytes=65537), machine("gfx942"))
    assert found.seconds == math.inf
    assert predict_launch(launch_of(1, 1), stream(65537), machine("gfx950")).seconds < math.inf


@pytest.mark.parametrize(
    ("registers", "lds_bytes", "expected"),
    [(64, 0, 8), (65, 0, 7), (512, 0, 1), (128, 0, 4), (64, 20000, 3)],
)
def test_workgroups_on_a_compute_unit(registers: int, lds_bytes: int, expected: int) -> None:
    kernel = Kernel(stream().trace, {"vgpr_count": registers}, waves=4, lds_bytes=lds_bytes)
    assert kernel.residents(machine("gfx942")) == expected


def test_the_trace_is_what_the_emulator_executes() -> None:
    """Each wave of a whole-tile GEMM takes the main path, so what it runs can be counted."""
    rows, columns, depth = 16, 128, 1024
    device = Device("gfx942")
    with device:
        gemm_small_batch(
            torch.zeros(rows, depth, dtype=torch.bfloat16),
            torch.zeros(columns, depth, dtype=torch.bfloat16),
        )
    counts = device.report()[0]
    launch = serving.gemm(LLAMA, "", columns, depth, rows).launches[0]
    kernel = compiled(launch.variant, "gfx942")
    assert counts["workgroups"] == launch.workgroups
    code = kernel.trace.whole(launch.trips)
    kinds = Counter(one.kind for one in code)
    waves = launch.workgroups * kernel.waves
    assert counts["instructions"]["mfma"] == waves * kinds["matrix"]
    assert counts["instructions"]["vmem_load"] == waves * kinds["load"]
    assert counts["instructions"]["lds"] == waves * kinds["lds"]
    # The launch leaves the absent bias out of its arguments, which moves a scalar instruction.
    assert counts["wave_instructions"] == pytest.approx(waves * len(code), abs=2 * waves)
    loads = sum(one.bytes for one in code if one.kind == "load")
    assert counts["bytes"]["global_load"] == waves * loads


def test_every_case_is_built_from_the_kernels_as_they_are() -> None:
    found = list(serving.cases("gfx942"))
    assert {case.kernel for case in found} == {
        "paged_attention_decode",
        "paged_attention_decode.gluon",
        "paged_attention_decode.gluon.fp8_cache",
        "paged_attention_prefill",
        "mla_decode",
        "mla_decode.gluon",
        "mla_decode.gluon.fp8_cache",
        "gemm_small_batch",
        "kv_cache_write",
        "all_reduce_one_shot",
    }
    assert {case.model for case in found} == {model.name for model in serving.MODELS}
    assert len({case.label for case in found}) == len(found)
    assert set(REPRESENTATIVES) <= {case.label for case in found}
    for case in found:
        assert case.bytes > 0
        assert all(one.workgroups > 0 and one.trips >= 0 for one in case.launches)
        # A launch that writes the result itself moves what the operation must, no less.
        assert sum(one.needed_bytes for one in case.launches) >= case.bytes


def test_decode_cuts_short_batches_into_parts_and_long_ones_not() -> None:
    few, many = (serving.decode(LLAMA, batch, 8192, 304) for batch in (1, 128))
    # 8 KV heads on 304 compute units, two workgroups each: 76 parts, of which 32 are of use
    assert [one.workgroups for one in few.launches] == [8 * 32]
    assert few.launches[0].trips == 8192 // 32 // 32
    # of 32 parts, eight at a time, the main path has the first eight
    assert few.launches[0].merged_bytes == (32 - 8) * 4 * 129 * 4
    assert [one.workgroups for one in many.launches] == [128 * 8]
    assert many.launches[0].merged_bytes == 0
    assert few.bytes == pytest.approx(8192 * 8 * 128 * 2 * 2, rel=0.01)
    assert few.flops == 4 * 8192 * 32 * 128


def test_the_gluon_kernels_parts_make_one_trip_fewer_than_they_have_tiles() -> None:
    few, many = (serving_cdna.decode(LLAMA, batch, 8192, 304) for batch in (1, 128))
    # 32 parts of two tiles of 128 tokens each; the last tile is attended to behind the loop
    assert [(one.workgroups, one.trips) for one in few.launches] == [(8 * 32, 1)]
    assert [(one.workgroups, one.trips) for one in many.launches] == [(128 * 8, 8192 // 128 - 1)]
    # each part's 4 heads of 128 and their log-sum-exps are written and read
    extra = few.launches[0].needed_bytes - few.bytes
    assert extra == 2 * 32 * 8 * 4 * 129 * 4


def test_what_the_last_workgroup_does_alone_is_behind_the_count() -> None:
    """Merging is charged once, at the end, and its loads are not shared among all workgroups."""
    few, many = (
        compiled(serving_cdna.decode(LLAMA, batch, 8192, 304).launches[0].variant, "gfx942")
        for batch in (1, 128)
    )
    assert few.alone[0].kind == "atomic"
    assert not any(one.kind == "atomic" for one in few.trace.whole(1))
    # 32 parts of 4 heads of 128 numbers of 4 bytes, by 4 waves
    assert sum(one.bytes for one in few.alone if one.name == "buffer_load_dwordx4") * 4 == (
        32 * 4 * 128 * 4
    )
    assert many.alone == ()


def test_a_part_of_the_gluon_kernel_reads_what_the_portable_one_reads() -> None:
    few = serving_cdna.decode(LLAMA, 1, 8192, 304)
    assert few.bytes == serving.decode(LLAMA, 1, 8192, 304).bytes
    narrow = serving_cdna.decode(LLAMA, 1, 8192, 304, fp8=True)
    assert few.bytes - narrow.bytes == 8192 * 8 * 2 * 128
    assert narrow.launches[0].variant.signature["v_cache_ptr"] == "*fp8"


def test_the_gluon_kernel_takes_one_workgroup_a_compute_unit_for_latents() -> None:
    model = serving.MODELS[3]
    one, sixteen, many = (
        serving_cdna.latent_decode(model, batch, 8192, 304) for batch in (1, 16, 512)
    )
    # tiles of 64 tokens: 128 parts of one; 304 // 16 = 19 parts of 7 would move more than 16 of 8
    assert [(part.workgroups, part.trips) for part in one.launches] == [(128, 1), (256, 2)]
    assert (sixteen.launches[0].workgroups, sixteen.launches[0].trips) == (16 * 16, 8)
    assert [(part.workgroups, part.trips) for part in many.launches] == [(512, 128)]
    assert one.bytes == serving.latent_decode(model, 1, 8192, 304).bytes


def test_sweep_puts_the_latency_of_a_lonely_stream_first() -> None:
    swings = sweep(serving.gemm(LLAMA, *GEMM, 1), machine("gfx942"))
    assert swings[0].assumption in ("hbm_latency", "clock")
    latency = next(swing for swing in swings if swing.assumption == "hbm_latency")
    assert latency.at_low < 1 < latency.at_high


def test_every_printed_line_says_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--gfx", "gfx942", "--kernel", "gemm", "--shape", "o", "--shape", "batch1"]
    assert main([*asked, "--shape", "llama-8b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("predicted  ") for line in lines)
    assert re.search(r"MI300X +gemm_small_batch +llama-8b +o/4096x4096/batch1 .*HBM", lines[1])


def test_json_says_predicted_and_holds_floor_time_and_share(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["--kernel", "gemm", "--shape", "o", "--shape", "batch1", "--shape", "llama-8b"]
    assert main([*asked, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["gfx"] for record in records] == ["gfx942", "gfx950"]
    for record in records:
        assert record["evidence"] == "predicted"
        assert record["share_of_floor"] == record["floor_seconds"] / record["seconds"]
        assert record["launches"][0]["trips"] == 32


def test_nothing_that_fits_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kernel", "no_such_kernel"]) == 1
    assert "no kernel and shape fit" in capsys.readouterr().err


def test_the_page_holds_the_tables_as_they_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert report.assumptions_page() in text, "put the output of --assumptions into the page"


def test_the_page_holds_the_predictions() -> None:
    """To half a per cent: a compiled kernel differs a little from one process to another."""
    fresh = _predicted_times(report.predictions_page())
    page = _predicted_times(PAGE.read_text(encoding="utf-8"))
    assert len(fresh) == 2 * len(report.PAGE_CASES)
    assert page == pytest.approx(fresh, rel=0.005), "put the output of --page into the page"


def _predicted_times(text: str) -> dict[str, float]:
    """Row of the table of predictions -> microseconds."""
    rows = re.findall(r"^[|] (.* [|] MI\w+ [|] .*) [|] ([\d.]+) [|] \d+% [|]$", text, re.MULTILINE)
    return {row: float(time) for row, time in rows}


def test_llvm_mca_is_optional_and_its_absence_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tool, sentence = mca.find_tool("gfx942")
    assert tool is None
    assert "llvm-mca is not on PATH" in sentence


def test_comparison_with_llvm_mca(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stand-in that writes llvm-mca's summary: 1000 cycles for ten trips."""
    stand_in = tmp_path / "llvm-mca"
    stand_in.write_text("#!/bin/sh\n/bin/cat > /dev/null; echo 'Total Cycles:      1000'\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    tool, _ = mca.find_tool("gfx942")
    assert tool == str(stand_in)
    checked = mca.cross_check(stream().trace, machine("gfx942"), tool)
    assert isinstance(checked, mca.CrossCheck)
    assert checked.theirs == 400
    # one wave, LLVM's latency: 2 x 16 clocks of addresses, 320 of latency, and what follows
    assert 32 + 320 < checked.ours < 32 + 320 + 60


def test_llvm_mca_gets_what_it_can_read() -> None:
    code = parse(
        """
        k:
          buffer_load_dwordx4 v[4:7], v3, s[0:3], 0 offen
          buffer_store_dword v8, v3, s[0:3], 0 offen
          s_barrier
          v_mov_b32_e32 v0, v4
          s_cbranch_scc1 k
        """
    ).instructions
    assert mca.rewrite(code).splitlines() == [
        "global_load_dwordx4 v[4:7], v[2:3], off",
        "global_store_dword v[2:3], v8, off",
        "v_mov_b32_e32 v0, v4",
    ]
