"""Start-up by stages: arithmetic on spans and lines, the receiver, and whole runs on a mock."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.bench.mock_startup import export, field, span, varint
from vllm_amdopt import cli
from vllm_amdopt.bench.otlp import Span, SpanReceiver, TraceFormatError, parse_spans
from vllm_amdopt.bench.page_cache import evict, resident_share, weight_files
from vllm_amdopt.bench.startup_stages import LogLine, Moments, stages
from vllm_amdopt.run_record import load

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "models" / "checkpoints" / "llama-gqa"
MOCK = f"{sys.executable} -m tests.bench.mock_startup"
MOMENTS = Moments(spawned=1000.0, healthy=1100.0)
LINES = [
    LogLine(1009.0, "(APIServer pid=1) INFO [api_utils.py:286] non-default args: {'model': 'x'}"),
    LogLine(1015.0, "(EngineCore pid=2) INFO Initializing a V1 LLM engine (v0.32.0) with config"),
    LogLine(1020.0, "INFO Starting to load model x..."),
]
SPANS = [
    Span("EngineCoreProc init", 1014.5, 1098.0, "engine"),
    Span("Loading (GPU)", 1020.0, 1050.0, "worker 0"),
    Span("Loading (GPU)", 1021.0, 1052.0, "worker 1"),
    Span("Load weights", 1025.0, 1045.0, "worker 0"),
    Span("Prepare model", 1052.0, 1097.0, "engine"),
    Span("Compile graph", 1055.0, 1063.0, "worker 0"),
    Span("Inductor compilation", 1056.0, 1062.0, "worker 0"),
    Span("Warmup (GPU)", 1080.0, 1096.0, "worker 0"),
    Span("Capture model", 1085.0, 1091.0, "worker 0"),
]


# --- stages -------------------------------------------------------------------------------------


def test_stages_from_spans_add_up() -> None:
    found = stages(SPANS, LINES, MOMENTS)
    assert found.seconds == pytest.approx(
        {
            "total_s": 100.0,
            "imports_s": 9.0,
            "configuration_s": 5.5,
            "device_s": 5.5,
            "weight_load_s": 32.0,  # from the first worker's start to the last one's end
            "compile_s": 8.0,
            "graph_capture_s": 6.0,
            "warmup_s": 10.0,  # without the capture inside of it
            "memory_profiling_s": 45.0 - 8 - 6 - 10,
            "other_s": 3.0,
        }
    )
    parts = sum(value for name, value in found.seconds.items() if name != "total_s")
    assert parts == pytest.approx(100.0)
    assert found.sources["weight_load_s"] == "spans" and found.sources["imports_s"] == "log"


def test_a_line_that_arrives_after_its_span_has_begun_leaves_the_sum_right() -> None:
    late = [LogLine(1014.6, line.text) if line is LINES[0] else line for line in LINES]
    found = stages(SPANS, late, MOMENTS)
    assert found.seconds["imports_s"] == pytest.approx(14.6)
    assert found.seconds["configuration_s"] == 0.0
    parts = sum(value for name, value in found.seconds.items() if name != "total_s")
    assert parts == pytest.approx(100.0)


def test_the_runner_without_spans_for_capture_is_read_from_its_log() -> None:
    lines = [
        *LINES,
        LogLine(1090.0, "INFO Encoder graph capturing finished in 99 secs, took 0.10 GiB"),
        LogLine(1091.0, "INFO Graph capturing finished in 6 secs, took 0.50 GiB"),
    ]
    spans = [one for one in SPANS if one.name != "Capture model"]
    found = stages(spans, lines, MOMENTS)
    assert found.seconds["graph_capture_s"] == 6.0 and found.sources["graph_capture_s"] == "log"
    assert found.seconds["warmup_s"] == pytest.approx(10.0)


def test_compilation_inside_the_warm_up_is_taken_out_of_it() -> None:
    moved = [
        Span(one.name, 1081.0, 1084.0) if one.name == "Compile graph" else one
        for one in SPANS
        if one.name != "Inductor compilation"
    ]
    found = stages(moved, LINES, MOMENTS)
    assert found.seconds["compile_s"] == pytest.approx(3.0)
    assert found.seconds["warmup_s"] == pytest.approx(16 - 6 - 3)
    assert found.seconds["memory_profiling_s"] == pytest.approx(45 - 16)


def test_dynamo_has_no_span_and_is_in_the_log() -> None:
    found = stages(SPANS, [*LINES, LogLine(1070, "torch.compile took 14.50 s in total")], MOMENTS)
    assert found.seconds["compile_s"] == 14.5 and found.sources["compile_s"] == "log"


def test_the_log_alone_is_enough_for_most_of_it() -> None:
    lines = [
        *LINES,
        LogLine(1050.0, "INFO Loading weights took 20.00 seconds"),
        LogLine(1052.0, "INFO Model loading took 12.3 GiB memory and 31.500000 seconds"),
        LogLine(1060.0, "INFO torch.compile took 8.00 s in total"),
        LogLine(1061.0, "INFO Initial profiling/warmup run took 4.00 s"),
        LogLine(1091.0, "INFO Graph capturing finished in 6 secs, took 0.50 GiB"),
        LogLine(
            1097.0,
            "init engine (profile, create kv cache, warmup model) took 45.00 s "
            "(compilation: 8.00 s)",
        ),
    ]
    found = stages([], lines, MOMENTS)
    assert found.seconds == pytest.approx(
        {
            "total_s": 100.0,
            "imports_s": 9.0,
            "configuration_s": 6.0,
            "device_s": 5.0,
            "weight_load_s": 31.5,
            "compile_s": 8.0,
            "graph_capture_s": 6.0,
            "warmup_s": 4.0,
            "memory_profiling_s": 27.0,
            "other_s": 3.5,
        }
    )
    assert set(found.sources.values()) == {"log"}


def test_what_nobody_tells_is_left_out_not_zero() -> None:
    found = stages([], [], MOMENTS)
    assert found.seconds == {"total_s": 100.0, "other_s": 100.0}


@pytest.mark.parametrize(
    ("moments", "problem"),
    [
        (Moments(1000.0, 999.0), "the clock of this machine was set back"),
        (Moments(1000.0, 1060.0), "the stages do not fit into the total"),
    ],
)
def test_a_clock_that_jumps_gives_no_numbers(moments: Moments, problem: str) -> None:
    found = stages(SPANS, LINES, moments)
    assert found.seconds == {} and problem in found.problem


def test_spans_of_another_time_are_not_of_this_start() -> None:
    old = [Span(one.name, one.start - 500, one.end - 500, one.process) for one in SPANS]
    assert stages([*old, *SPANS], LINES, MOMENTS) == stages(SPANS, LINES, MOMENTS)


# --- the receiver -------------------------------------------------------------------------------


def test_spans_are_read_from_the_wire() -> None:
    body = export([span("Load model", 1.5, 2.25), span("Prepare model", 3, 4)], "Worker_TP0")
    assert list(parse_spans(body)) == [
        Span("Load model", 1.5, 2.25, "Worker_TP0"),
        Span("Prepare model", 3.0, 4.0, "Worker_TP0"),
    ]
    # Fields of a later version, of every wire type, are passed over.
    later = varint(99 << 3) + varint(300) + varint(98 << 3 | 5) + b"1234" + field(97, "x")
    assert list(parse_spans(later + body)) == list(parse_spans(body))
    assert list(parse_spans(b"")) == []


def test_every_cut_is_refused_or_shorter() -> None:
    body = export([span("Load model", 1.5, 2.25)])
    for length in range(1, len(body)):
        with pytest.raises(TraceFormatError):
            list(parse_spans(body[:length]))


@pytest.mark.parametrize("body", [b"\xff" * 20, b"\x0b", b"\x07", varint(1 << 3 | 2) + b"\x7f"])
def test_what_is_no_trace_is_refused(body: bytes) -> None:
    with pytest.raises(TraceFormatError):
        list(parse_spans(body))


def test_receiver_takes_traces_and_refuses_the_rest() -> None:
    def post(url: str, body: bytes, **headers: str) -> int:
        request = urllib.request.Request(url, body, headers, method="POST")
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)

    with SpanReceiver() as receiver:
        body = export([span("B", 2, 3)])
        assert post(receiver.endpoint, body) == 200
        packed = gzip.compress(export([span("A", 1, 2)]))
        assert post(receiver.endpoint, packed, **{"Content-Encoding": "gzip"}) == 200
        for bad, headers in ((b"{}", {}), (b"no gzip", {"Content-Encoding": "gzip"})):
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(receiver.endpoint, bad, **headers)
            caught.value.close()
        assert [one.name for one in receiver.take()] == ["A", "B"]
        assert receiver.take() == [] and receiver.refused == 2


# --- the page cache -----------------------------------------------------------------------------


def test_pages_are_counted_and_let_go(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "a.safetensors").write_bytes(b"x" * (1 << 20))
    (model / "empty.safetensors").write_bytes(b"")
    (model / "config.json").write_text("{}")
    files = weight_files(model)
    assert [path.name for path in files] == ["a.safetensors", "empty.safetensors"]
    (model / "a.safetensors").read_bytes()
    assert resident_share(files) == 1.0
    evict(files)
    kind = subprocess.run(["stat", "-f", "-c", "%T", model], capture_output=True, text=True).stdout
    # A file system in memory has nowhere to put them, which is what the count is for.
    assert resident_share(files) == (1.0 if kind.strip() in ("tmpfs", "ramfs") else 0.0)
    (model / "a.safetensors").read_bytes()
    assert resident_share(files) == 1.0
    assert resident_share([]) == 0.0


# --- whole runs ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLM_AMDOPT_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def command(out: Path, *more: str) -> list[str]:
    return [
        *("bench", "startup", "--model", str(MODEL), "--serve-program", MOCK, "--gpus", "none"),
        *("--a", "slow", "--a-serve-args", "--mock-load-seconds 0.6"),
        *("--b", "fast", "--b-serve-args", "--mock-load-seconds 0.1"),
        *("--progress", "none", "--out", str(out), *more),
    ]


def test_a_whole_run_finds_the_slow_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert cli.main(command(out, "--blocks", "2", "--modes", "cold,warm")) == 0
    said = capsys.readouterr().out
    assert "Model weight load" in said and "Total start-up" in said
    record = load(out / "record.json")
    assert [(row.block, row.level["mode"], row.arm, row.order, row.position) for row in record.rows
            ] == [
        (0, "cold", "slow", "AB", 0), (0, "cold", "fast", "AB", 1),
        (0, "warm", "slow", "AB", 0), (0, "warm", "fast", "AB", 1),
        (1, "cold", "fast", "BA", 0), (1, "cold", "slow", "BA", 1),
        (1, "warm", "fast", "BA", 0), (1, "warm", "slow", "BA", 1),
    ]  # fmt: skip
    for row in record.rows:
        assert row.status == "ok", row.reason
        assert row.metrics["weight_load_s"] > 0.55 or row.arm == "fast"
        assert row.metrics["first_token_s"] > 0.0 and row.metrics["steady_token_s"] > 0.0
        assert row.metrics["weights_gib"] == 1.25 and row.metrics["kv_cache_tokens"] == 1234
        # A cold start compiles, a warm one finds what the first one left.
        assert (row.metrics["compile_s"] > 0.2) is (row.level["mode"] == "cold")
        assert row.details["sources"]["weight_load_s"] == "spans"
        assert sum(
            value
            for name, value in row.metrics.items()
            if name.endswith("_s") and name not in ("total_s", "first_token_s", "steady_token_s")
        ) == pytest.approx(row.metrics["total_s"])
    assert not list(out.glob("block-*/cold-*/caches"))
    # Again in the same directory: refused, or gone on with, where one row is missing.
    assert cli.main(command(out, "--blocks", "2")) == 2
    assert "holds a run already" in capsys.readouterr().err
    content = json.loads((out / "record.json").read_text())
    gone = content["rows"].pop(3)
    (out / "record.json").write_text(json.dumps(content))
    assert cli.main(command(out, "--blocks", "2", "--resume")) == 0
    again = load(out / "record.json").rows
    assert len(again) == 8 and again[:7] == tuple(
        row for row in record.rows if row.block or (row.level["mode"], row.arm) != ("warm", "fast")
    )
    assert (again[7].arm, again[7].level) == (gone["arm"], gone["level"])
    capsys.readouterr()
    assert cli.main(command(out, "--blocks", "3", "--resume")) == 2
    assert "had another workload" in capsys.readouterr().err


def test_without_spans_or_opentelemetry_the_log_has_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    arguments = command(tmp_path / "run", "--blocks", "1", "--modes", "disk-cold")
    arguments[arguments.index(str(MODEL))] = str(tmp_path / "model")
    arguments += ["--serve-args", "--mock-no-otel"]
    code = cli.main(arguments)
    record = load(tmp_path / "run" / "record.json")
    assert any("no OpenTelemetry" in note for note in record.notes)
    for row in record.rows:
        if row.status == "unsupported":  # this file system keeps everything in memory
            assert "stayed in memory" in row.reason and code == 4
            continue
        assert row.status == "ok" and code == 0
        assert row.details["sources"]["weight_load_s"] == "log"
        assert row.metrics["weight_load_s"] >= 0.09


def test_a_server_that_does_not_start_is_a_row_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(tmp_path / "run", "--blocks", "1", "--modes", "warm")
    arguments[arguments.index("--b-serve-args") + 1] = "--mock-exit 3"
    assert cli.main(arguments) == 4
    rows = {row.arm: row for row in load(tmp_path / "run" / "record.json").rows}
    assert rows["slow"].status == "ok"
    assert rows["fast"].status == "error" and rows["fast"].metrics == {}
    assert "fill its caches failed: the server ended with exit code 3" in rows["fast"].reason
    assert "exit code 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--modes", "lukewarm"], "'lukewarm' is none of cold, warm, disk-cold"),
        (["--blocks", "0"], "--blocks counts from 1"),
        (["--b", "slow"], "both arms are called slow"),
        (["--b", "fast:TRITON_CACHE_DIR=/x"], "fast sets TRITON_CACHE_DIR"),
        (["--serve-args", "--otlp-traces-endpoint=x"], "is used to see the stages"),
        (["--margin", "lots"], "--margin"),
        (["--serve-program", "/nowhere/vllm"], "there is no program /nowhere/vllm"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    code = cli.main([*command(tmp_path / "run", "--blocks", "1", "--modes", "cold"), *more])
    streams = capsys.readouterr()
    assert code in (2, 4)
    assert said in streams.err + streams.out and "Traceback" not in streams.err


def test_dry_run_says_what_would_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(tmp_path / "run", "--blocks", "3", "--modes", "cold,disk-cold", "--dry-run")
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "12 starts: 3 blocks in the order AB BA AB, each in the modes cold, disk-cold" in said
    assert "one start each of slow and fast fills the caches" in said
    assert "--mock-load-seconds 0.6 --otlp-traces-endpoint URL" in said
    assert not (tmp_path / "run").exists()
