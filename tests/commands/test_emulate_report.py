"""`emulate-report`: a tiny emulated run is recorded, and the report has its exact counts."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.emulator import kernels
from vllm_amdopt.commands import emulate_report
from vllm_amdopt.emulator.recording import RecordingDevice
from vllm_amdopt.emulator.report import (
    KernelRecord,
    ProcessRecord,
    RecordError,
    find,
    hottest_lines,
    merge,
    read,
    record_path,
    write,
)
from vllm_amdopt.integration import cpu_engine

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = 256
VARIABLE = emulate_report.VARIABLE


def add_vectors(device: RecordingDevice, times: int = 1) -> None:
    """Two workgroups of one wave; each lane reads two floats twice and writes two."""
    x, y, out = torch.ones(NUMBERS), torch.ones(NUMBERS), torch.zeros(NUMBERS)
    with device:
        for _ in range(times):
            kernels.vector_add[(2,)](x, y, out, NUMBERS, BLOCK=128, num_warps=1)
    assert out.eq(2).all()


def report(*arguments: str, environment: Mapping[str, str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    emulate_report.add_arguments(parser)
    return emulate_report.run(parser.parse_args(arguments), environment or {})


def reported(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert report("--json", *arguments) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def line_of(text: str) -> str:
    source = Path(kernels.__file__).read_text(encoding="utf-8").splitlines()
    return f"kernels.py:{next(i for i, line in enumerate(source, 1) if text in line)}"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    device = RecordingDevice("gfx942", target=str(tmp_path))
    add_vectors(device, times=3)
    device.write()
    return tmp_path


def test_counts_of_a_tiny_run_are_exact(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = reported(capsys, str(recorded))
    (process,) = content["processes"]
    assert (process["pid"], process["gfx"]) == (os.getpid(), "gfx942")
    (kernel,) = content["kernels"]
    assert kernel["kernel"] == "vector_add"
    assert kernel["source"] == line_of("def vector_add")
    assert (kernel["launches"], kernel["workgroups"]) == (3, 6)
    # two vectors read and one written by each launch, float32
    assert kernel["hbm_bytes_read"] - kernel["bytes"].get("smem_load", 0) == 3 * 2 * NUMBERS * 4
    assert kernel["hbm_bytes_written"] == 3 * NUMBERS * 4
    assert (kernel["lds_bytes_read"], kernel["lds_bytes_written"]) == (0, 0)
    # 128 numbers are two a lane: one load of 8 bytes for each vector, per wave
    assert kernel["instructions"]["vmem_load"] == 6 * 2
    assert kernel["instructions"]["vmem_store"] == 6
    assert kernel["wave_instructions"] == sum(kernel["instructions"].values())
    assert content["wave_instructions_by_class"] == dict(
        sorted(kernel["instructions"].items(), key=lambda item: -item[1])
    )


def test_the_lines_add_up_to_the_wave_instructions(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = reported(capsys, str(recorded), "--lines", "1000")
    counted = sum(line["wave_instructions"] for line in content["hottest_lines"])
    assert counted == content["kernels"][0]["wave_instructions"]
    assert line_of("tl.store(c + o, tl.load(a") in [one["line"] for one in content["hottest_lines"]]


def test_the_table_can_be_read(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(str(recorded), "--lines", "2") == 0
    text = capsys.readouterr().out
    assert text.startswith("emulated gfx942: 1 process, 3 launches, ")
    assert "vector_add (kernels.py:" in text
    assert "6.0 KiB" in text  # 3 launches x 2 vectors x 256 numbers x 4 bytes
    lines = text.splitlines()
    assert len(lines) - lines.index("hottest source lines") == 1 + 1 + 2


def test_without_line_information_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = KernelRecord("bare", launches=1, wave_instructions=7, lines={"": 7})
    write(ProcessRecord(1, "gfx950", 0.0, "x", [kernel]), record_path(str(tmp_path), 1, 0.0))
    assert report(str(tmp_path)) == 0
    assert "compiled without line information" in capsys.readouterr().out


def test_processes_are_added_up_and_namesakes_kept_apart(tmp_path: Path) -> None:
    for pid, source in ((1, "a.py:1"), (2, "a.py:1"), (3, "b.py:9")):
        kernel = KernelRecord(
            "reduce_kernel", source, 2, 4, 10, 0.5, {"valu": 10}, {"global_load": 64}, {source: 10}
        )
        write(
            ProcessRecord(pid, "gfx942", 1.0, "worker", [kernel]),
            record_path(str(tmp_path), pid, 1.0),
        )
    merged = merge(read(path) for path in find(str(tmp_path)))
    assert [(k.source, k.launches, k.read_bytes) for k in merged] == [
        ("a.py:1", 4, 128),
        ("b.py:9", 2, 64),
    ]
    assert hottest_lines(merged)[0] == ("a.py:1", "reduce_kernel", 20)


def test_a_json_file_name_gets_each_processs_number(tmp_path: Path) -> None:
    target = str(tmp_path / "run.json")
    paths = [record_path(target, pid, 1.0) for pid in (7, 8)]
    for path in paths:
        write(ProcessRecord(7, "gfx942", 1.0, "x"), path)
    assert paths[0].name == "run.7-3e8.json"
    assert find(target) == paths
    assert find(str(tmp_path / "other.json")) == []


def test_a_program_that_ends_leaves_its_record(tmp_path: Path) -> None:
    program = (
        "from tests.commands.test_emulate_report import add_vectors, RecordingDevice\n"
        "import sys; add_vectors(RecordingDevice('gfx950', target=sys.argv[1]))\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "new")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
    )
    (path,) = find(str(tmp_path / "new"))
    (kernel,) = read(path).kernels
    assert (read(path).gfx, kernel.launches) == ("gfx950", 1)


def test_a_killed_process_has_written_what_went_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_amdopt.emulator.recording.WRITE_EVERY", 0.01)
    add_vectors(RecordingDevice("gfx942", target=str(tmp_path)))
    # Nobody calls write(): the record is written beside the run.
    deadline = time.monotonic() + 30
    while not find(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [read(path).kernels[0].launches for path in find(str(tmp_path))] == [1]


def test_a_forked_process_records_its_own_launches_only(tmp_path: Path) -> None:
    device = RecordingDevice("gfx942", target=str(tmp_path))
    add_vectors(device)
    child = multiprocessing.get_context("fork").Process(target=add_vectors, args=(device, 2))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    device.write()
    by_process = {read(path).pid: read(path).kernels[0].launches for path in find(str(tmp_path))}
    assert by_process == {os.getpid(): 1, child.pid: 2}


def test_a_directory_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    device = RecordingDevice("gfx942", target=str(tmp_path / "file" / "below"))
    add_vectors(device)
    device.write()
    device.write()
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1


@pytest.mark.parametrize("target", ["", "records"])
def test_the_engine_records_only_when_asked(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {VARIABLE: str(tmp_path / target)} if target else {}
    monkeypatch.setattr(cpu_engine, "cpu_engine", lambda: "gfx942")
    monkeypatch.setattr(cpu_engine, "environment", lambda: environment)
    device = cpu_engine._device.__wrapped__()
    assert isinstance(device, RecordingDevice) is bool(target)
    assert isinstance(device, contextlib.AbstractContextManager)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"set {VARIABLE}=DIRECTORY"):
        report()
    with pytest.raises(ValueError, match="holds no record"):
        report(environment={VARIABLE: str(tmp_path)})
    with pytest.raises(ValueError, match="does not exist"):
        report(str(tmp_path / "nowhere"))
    stray = tmp_path / "emulation.1-0.json"
    stray.write_text('{"format": "something else"}')
    with pytest.raises(RecordError, match=r"emulation\.1-0\.json is not a record"):
        report(str(tmp_path))
    stray.write_text("{")
    with pytest.raises(RecordError, match="cannot be read"):
        report(str(tmp_path))
