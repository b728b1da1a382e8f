"""The load generator's driver: result files that lie, processes that fail, and the real thing."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.rig import MOCK, MODEL, ROOT
from vllm_amdopt.bench import load
from vllm_amdopt.bench.client_ceiling import ceiling_near, load_ceilings
from vllm_amdopt.bench.load import (
    LoadClient,
    LoadError,
    RunTimeoutError,
    bench_arguments,
    read_result,
    share_of_core,
)
from vllm_amdopt.bench.plan import Level
from vllm_amdopt.bench.server import ArmServer, ServerSettings
from vllm_amdopt.cli import main
from vllm_amdopt.commands import bench_client

GOOD: dict[str, Any] = {
    "completed": 4,
    "failed": 0,
    "duration": 2.0,
    "total_output_tokens": 16,
    "output_throughput": 8.0,
    "max_concurrent_requests": 32,
    "request_rate": "inf",
    "label": None,
    "generated_texts": ["a", "b"],
    "ttfts": [0.1],
}


def test_result_is_read_without_what_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(GOOD))
    result = read_result(path, 4)
    assert result.metrics == {
        "completed": 4.0,
        "failed": 0.0,
        "duration": 2.0,
        "total_output_tokens": 16.0,
        "output_throughput": 8.0,
    }
    kept = json.loads(path.read_text())
    assert "generated_texts" not in kept and kept["ttfts"] == [0.1]
    assert kept["generated_texts_sha256"] == result.text_digest != ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param({**GOOD, "total_output_tokens": 0}, "no time or no tokens", id="no-tokens"),
        pytest.param({**GOOD, "duration": 0}, "no time or no tokens", id="no-time"),
        pytest.param({**GOOD, "output_throughput": float("nan")}, "= nan", id="nan"),
        pytest.param([], "not a JSON object", id="list"),
    ],
)
def test_result_that_does_not_count(tmp_path: Path, content: Any, sentence: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LoadError, match=sentence):
        read_result(path, 4)


def test_failed_requests_leave_counts_and_rates_but_no_latency(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    some = {**GOOD, "completed": 3, "failed": 1, "errors": ["", "Traceback\nOSError: gone"]}
    path.write_text(json.dumps({**some, "mean_ttft_ms": 5.0}))
    result = read_result(path, 4)
    assert result.failure == "1 of 4 requests failed; the first said: OSError: gone"
    assert result.metrics["failed"] == 1 and result.metrics["output_throughput"] == 8.0
    assert "mean_ttft_ms" not in result.metrics
    # What `vllm bench serve` writes when no server is there, ending with exit code 0.
    none = {**GOOD, "completed": 0, "failed": 4, "output_throughput": 0.0, "mean_ttft_ms": 0.0}
    path.write_text(json.dumps(none))
    result = read_result(path, 4)
    assert result.failure == "4 of 4 requests failed"
    assert result.metrics == {"completed": 0.0, "failed": 4.0}


def test_result_that_is_not_there_or_half(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="left no result"):
        read_result(tmp_path / "none.json", 4)
    path = tmp_path / "half.json"
    path.write_text(json.dumps(GOOD)[:20])
    with pytest.raises(LoadError, match="cannot be read"):
        read_result(path, 4)


def test_share_of_a_core_is_that_of_the_measured_time() -> None:
    # Ten seconds of start-up at full speed, then two at a quarter.
    samples = [(float(second), float(second)) for second in range(11)]
    samples += [(11.0, 10.25), (12.0, 10.5)]
    assert share_of_core(samples, 2.0) == pytest.approx(0.25)
    assert share_of_core(samples[:1], 2.0) is None
    assert share_of_core(samples, 0.1) is None


# --- the process protocol, with programs that do as they are told ---------------------------------

PROGRAM = """
import json, os, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    words = request["arguments"]
    child = os.fork()
    if child == 0:
        BODY
        os._exit(0)
    print(json.dumps({"process": child}), flush=True)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
"""
WRITE = (
    "open(os.path.join(words[words.index('--result-dir') + 1], "
    f"words[words.index('--result-filename') + 1]), 'w').write({json.dumps(GOOD)!r})"
)


def client(tmp_path: Path, body: str) -> LoadClient:
    program = PROGRAM.replace("BODY", body)
    return LoadClient({}, tmp_path / "client.log", (sys.executable, "-c", program))


def go(drive: LoadClient, tmp_path: Path, seconds: float = 60.0) -> load.LoadResult:
    return drive(["--num-prompts", "4"], tmp_path / "out" / "r.json", seconds, lambda: None)


def test_client_runs_again_and_again_in_one_process(tmp_path: Path) -> None:
    drive = client(tmp_path, WRITE)
    try:
        assert go(drive, tmp_path).metrics["output_throughput"] == 8.0
        first = drive._process
        go(drive, tmp_path)
        assert drive._process is first
    finally:
        drive.close()


def test_run_that_fails_says_why(tmp_path: Path) -> None:
    drive = client(
        tmp_path, "open(request['log'], 'w').write('x\\nValueError: no\\n'); os._exit(3)"
    )
    try:
        with pytest.raises(LoadError, match="ended with code 3: ValueError: no"):
            go(drive, tmp_path)
    finally:
        drive.close()


def test_run_that_hangs_is_ended_and_the_next_one_works(tmp_path: Path) -> None:
    mark = tmp_path / "second"
    body = f"time.sleep(0 if os.path.exists({str(mark)!r}) else 600); {WRITE}"
    drive = client(tmp_path, body)
    try:
        with pytest.raises(RunTimeoutError, match="--run-timeout"):
            go(drive, tmp_path, seconds=0.5)
        mark.touch()
        assert go(drive, tmp_path).metrics["completed"] == 4
    finally:
        drive.close()


def test_check_ends_a_run(tmp_path: Path) -> None:
    drive = client(tmp_path, "time.sleep(600)")

    def check() -> None:
        raise LoadError("the server died")

    try:
        drive._started(lambda: None)
        with pytest.raises(LoadError, match="the server died"):
            drive(["--num-prompts", "4"], tmp_path / "r.json", 60.0, check)
    finally:
        drive.close()


def test_client_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = (sys.executable, "-c", "raise ImportError('no vllm here')")
    drive = LoadClient({}, tmp_path / "client.log", command)
    with pytest.raises(LoadError, match="the load generator ended: ImportError: no vllm here"):
        go(drive, tmp_path)
    monkeypatch.setattr(load, "START_SECONDS", 0.1)
    drive = LoadClient({}, tmp_path / "x.log", (sys.executable, "-c", "import time; time.sleep(9)"))
    with pytest.raises(LoadError, match="did not start within 0 s"):
        go(drive, tmp_path)


# --- `vllm bench serve` itself --------------------------------------------------------------------

Serve = Callable[..., ArmServer]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadClient]:
    """One process with vLLM imported, for all real runs of this file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    drive = LoadClient(environment, tmp_path_factory.mktemp("client") / "client.log")
    yield drive
    drive.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    servers: list[ArmServer] = []

    def start(*arguments: str) -> ArmServer:
        settings = ServerSettings({**os.environ, "PYTHONPATH": str(ROOT)}, MOCK)
        server = ArmServer(settings, MODEL, "mock", tmp_path / str(len(servers)), arguments)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def run(real: LoadClient, server: ArmServer, level: Level, path: Path) -> load.LoadResult:
    arguments = bench_arguments(
        level,
        base_url=server.base_url,
        served_name=server.served_name,
        tokenizer=MODEL,
        prompts=level.prompts,
        seed=3,
    )
    return real(arguments, path, 300.0, lambda: None)


LEVEL = Level("random", 16, 8, concurrency=2, prompts=8, range_ratio=0.2)


def test_real_load_is_measured(real: LoadClient, serve: Serve, tmp_path: Path) -> None:
    server = serve("--mock-decode-seconds", "0.01", "--mock-prefill-seconds", "0.03")
    metrics = run(real, server, LEVEL, tmp_path / "r.json").metrics
    assert metrics["completed"] == 8
    # What the server does is the least that can be measured of it: answers have 6 to 10 tokens.
    further_tokens = metrics["total_output_tokens"] / 8 - 1
    assert metrics["mean_ttft_ms"] >= 29.9
    assert metrics["mean_e2el_ms"] >= 29.9 + 10 * further_tokens
    for name in ("request_throughput", "output_throughput", "total_token_throughput"):
        assert metrics[name] > 0
    for latency in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "p50", "p90", "p99"):
            assert f"{statistic}_{latency}_ms" in metrics
    rate = Level("random", 16, 8, request_rate=50.0, prompts=8)
    assert run(real, server, rate, tmp_path / "rate.json").metrics["completed"] == 8


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(("--mock-fail-every", "4"), id="http-error"),
        pytest.param(("--mock-disconnect-every", "4"), id="disconnect"),
        pytest.param(("--mock-die-after", "6"), id="dies"),
    ],
)
def test_real_load_with_failed_requests_is_no_measurement(
    real: LoadClient, serve: Serve, tmp_path: Path, fault: tuple[str, ...]
) -> None:
    result = run(real, serve(*fault), LEVEL, tmp_path / "r.json")
    assert re.match(r"[2-8] of 8 requests failed", result.failure or "")
    assert "mean_ttft_ms" not in result.metrics


def test_clients_own_ceiling_is_measured_and_kept(
    real: LoadClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Shared:
        """The process that is there already; the command may not end it."""

        def __init__(self, environment: object, log: Path) -> None:
            pass

        def __call__(self, *arguments: Any) -> load.LoadResult:
            return real(*arguments)

        def close(self) -> None:
            pass

    monkeypatch.setattr(bench_client, "LoadClient", Shared)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = ["bench", "calibrate-client", MODEL, "--concurrency", "4", "--output-len", "16"]
    assert main(words) == 0
    path = tmp_path / "vllm-amdopt" / "client_ceiling.json"
    assert str(path) in (said := capsys.readouterr().out) and "output tok/s" in said
    (ceiling,) = load_ceilings(path, platform.node())
    assert ceiling.output_tokens_per_second > 0 and ceiling.concurrency == 4
    assert load_ceilings(path, "elsewhere") == []
    assert ceiling_near([ceiling], 64) == ceiling and ceiling_near([], 1) is None
    path.write_text("{")
    assert load_ceilings(path, platform.node()) == []
