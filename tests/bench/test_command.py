"""`vllm-amdopt bench ab`, `aa`, `ablate`: from the options to the exit code, on mock servers."""

from __future__ import annotations

import errno
import json
import os
import platform
import shlex
import sys
from pathlib import Path

import pytest

from tests.bench.rig import IN_USE, MODEL, ROOT
from tests.bench.small_load import SmallLoad
from vllm_amdopt.bench.client_ceiling import Ceiling, save_ceilings
from vllm_amdopt.bench.gpu_lock import WHOLE_MACHINE, Locks
from vllm_amdopt.bench.journal import NAME as JOURNAL
from vllm_amdopt.bench.journal import Journal
from vllm_amdopt.cli import main
from vllm_amdopt.commands import bench_serving
from vllm_amdopt.run_record import load

MOCK = f"{sys.executable} -m vllm_amdopt.bench.mock_server"
SLOW = "--mock-decode-seconds 0.06"
FAST = "--mock-decode-seconds 0.02"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, a place for locks, and the small load in place of vLLM's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("VLLM_AMDOPT_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(bench_serving, "LoadClient", NoClient)
    return tmp_path


class NoClient(SmallLoad):
    """Takes what the real client takes."""

    def __init__(self, environment: object, log: Path) -> None:
        super().__init__()

    def close(self) -> None:
        pass


def bench(command: str, *more: str, out: Path) -> int:
    words = shlex.split(command)
    return main(
        [
            *("bench", words[0]),
            *("--model", MODEL, "--workload", "random:8/4", "--concurrency", "2"),
            *("--prompts", "4", "--warmup-per-conc", "1", "--no-pre-block", "--retries", "0"),
            *("--serve-program", MOCK, "--gpus", "none", "--progress", "plain", "--min-free-disk"),
            *("0", "--margin", "50%", "--out", str(out)),
            *words[1:],
            *more,
        ]
    )


BOTH_STOCK = "--a stock:VLLM_AMDOPT=0 --b other:VLLM_AMDOPT=0"


def test_slow_arm_is_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    code = bench(
        f"ab {BOTH_STOCK} --blocks 3 --a-serve-args {shlex.quote(FAST)} "
        f"--b-serve-args {shlex.quote(SLOW)} --primary output_throughput@2 --margin 1%",
        out=out,
    )
    said = capsys.readouterr()
    assert code == 1, said
    assert "regression" in said.out and str(out / "record.json") in said.out
    assert "block 2/3 (BA) done" in said.err
    assert said.err.count("so far, not to be acted on: other -") == 2
    record = load(out / "record.json")
    assert record.kind == "serving_ab" and len(record.rows) == 6
    assert {row.status for row in record.rows} == {"ok"}
    assert record.environment_difference["(serve arguments)"]["other"] == SLOW
    assert record.commands[0].startswith("vllm-amdopt bench ab ")
    assert BOTH_STOCK in record.commands[0]
    assert record.workload["blocks_done"] == 3
    (launches,) = record.tables
    assert [row[:2] for row in launches.rows][:3] == [
        ("1", "stock"),
        ("1", "other"),
        ("2", "other"),
    ]
    assert {row[-1] for row in launches.rows} == {"measured"}
    assert record.machine["cores"] >= 1 and record.software["vllm-amdopt"]


def test_plugin_arm_is_checked_and_equal_arms_are_no_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say = shlex.quote(f"--mock-say {shlex.quote(IN_USE)} {FAST}")
    command = f"ab --blocks 2 --a-serve-args {shlex.quote(FAST)} --b-serve-args {say}"
    assert bench(command, out=tmp_path / "run") == 0
    record = load(tmp_path / "run" / "record.json")
    assert record.arms[0].plan is None and record.arms[1].plan is not None
    assert record.arms[1].plan["features"] == ["attention"]
    assert "attention on" in record.arms[1].evidence[0]
    assert record.environment_difference["VLLM_AMDOPT"] == {"stock": "0", "plugin": "1"}


def test_clients_ceiling_stands_beside_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "home" / ".cache" / "vllm-amdopt" / "client_ceiling.json"
    save_ceilings([Ceiling(platform.node(), 4, 1e9, 1e9, 0.1, 0.1, 0.5)], place)
    assert bench("aa --blocks 1", out=tmp_path / "far") == 0
    assert "the load generator alone reaches 1000000000 output tok/s" in capsys.readouterr().out
    save_ceilings([Ceiling(platform.node(), 4, 1.0, 1.0, 0.1, 0.1, 0.5)], place)
    assert bench("aa --blocks 1", out=tmp_path / "near") == 0
    assert "part of each latency is its own" in capsys.readouterr().out


def test_one_block_is_no_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("aa --blocks 1 --require-conclusive", out=tmp_path / "run") == 3
    assert "in one block, which has no interval" in capsys.readouterr().out


def test_treatment_that_is_missing_is_no_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("ab --blocks 2", out=tmp_path / "run") == 4
    assert "the plugin is not active in plugin" in capsys.readouterr().out
    assert load(tmp_path / "run" / "record.json").rows[1].status == "tainted"


SWITCHED = """
import json, os, sys
from vllm_amdopt.bench.mock_server import main
on = [n for n in ("attention", "gemm") if os.environ.get(f"VLLM_AMDOPT_{n.upper()}") == "on"]
facts = {"plan": "p", "features": on, "rules": [], "off": {"mla": "the model has GQA, not MLA"}}
sys.exit(main([*sys.argv[1:], "--mock-say", f"vllm-amdopt in use: {json.dumps(facts)}"]))
"""
"""A server that obeys the switches of two features and has no use for a third."""


def test_ablation_leaves_out_what_this_model_has_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "switched.py"
    script.write_text(SWITCHED)
    code = bench(
        "ablate --factors attention,mla --blocks 2 "
        f"--serve-program {shlex.quote(f'{sys.executable} {script}')} "
        f"--serve-args {shlex.quote(FAST)}",
        out=tmp_path / "run",
    )
    said = capsys.readouterr()
    assert code == 0, said
    record = load(tmp_path / "run" / "record.json")
    assert record.kind == "serving_ablation"
    assert [arm.name for arm in record.arms] == ["none", "only-attention", "only-mla"]
    assert record.arms[1].plan is not None and record.arms[1].plan["features"] == ["attention"]
    assert {row.status for row in record.rows if row.arm != "only-mla"} == {"ok"}
    (left_out,) = (row for row in record.rows if row.arm == "only-mla")
    assert left_out.status == "unsupported"
    assert "only-mla is left out: mla is not on in only-mla: the model has GQA" in said.out
    assert main(["report", str(tmp_path / "run"), "--format", "md"]) == 0
    page = (tmp_path / "run" / "report.md").read_text()
    assert "only-mla was left out" in page


def test_arm_that_has_what_it_should_be_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = shlex.quote(f"--mock-say {shlex.quote(IN_USE)}")
    code = bench(f"ablate --factors attention --serve-args {serve}", out=tmp_path / "run")
    assert code == 4 and "attention is on in none" in capsys.readouterr().out


def test_busy_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "locks").mkdir()
    somebody = Locks(tmp_path / "locks")
    somebody.acquire([WHOLE_MACHINE], purpose="the other run")
    assert bench("aa", out=tmp_path / "run") == 5
    said = capsys.readouterr().err
    assert "this machine is in use by" in said and "the other run" in said
    somebody.release()


def test_interrupt_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(NoClient):
        def __call__(self, *arguments: object) -> object:
            if len(self.runs) == 5:
                raise KeyboardInterrupt
            return super().__call__(*arguments)  # type: ignore[arg-type]

    out = tmp_path / "run"
    command = f"ab {BOTH_STOCK} --blocks 2"
    with monkeypatch.context() as patch:
        patch.setattr(bench_serving, "LoadClient", Interrupted)
        assert bench(command, out=out) == 130
    said = capsys.readouterr().err
    assert "all servers are ended" in said and "--resume" in said
    assert not (out / "record.json").exists()

    assert bench(command, out=out) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert bench(command, "--seed", "9", "--resume", out=out) == 2
    assert "was of another plan" in capsys.readouterr().err
    events = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()]
    events[0]["fingerprint"]["machine"]["kernel"] = "5.0"
    (out / JOURNAL).write_text("".join(json.dumps(event) + "\n" for event in events))
    assert bench(command, "--resume", out=out) == 2
    assert "the machine changed since the run began (machine.kernel: " in capsys.readouterr().err
    assert bench(command, "--resume", "--allow-drift", out=out) == 0
    record = load(out / "record.json")
    assert len(record.rows) == 4
    assert any("the machine had changed" in note for note in record.notes)
    assert "--resume" not in record.commands[0]


def test_broken_journal_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / JOURNAL).write_text("[]\n")
    assert bench("aa", "--resume", out=out) == 2
    assert "line 1 of" in capsys.readouterr().err


def test_directory_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert bench("aa", out=tmp_path / "file" / "run") == 2
    assert "cannot be written or read" in capsys.readouterr().err


def test_disk_that_fills_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    append = Journal.append

    def full(self: Journal, event: str, **fields: object) -> None:
        if event == "block":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, event, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        assert bench("aa --blocks 2", out=out) == 2
    assert "No space left on device" in (said := capsys.readouterr().err) and "--resume" in said
    assert bench("aa --blocks 2", "--resume", out=out) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        pytest.param("ab", "--model is missing", id="model"),
        pytest.param("ab --model m", "--workload is missing", id="workload"),
        pytest.param("ab --model m --workload random:1/1", "--concurrency or --req", id="load"),
        pytest.param("ab --preset x", "--preset 'x' is not known", id="preset"),
        pytest.param("ab --preset quick --model m --a x:1", "is not VARIABLE=VALUE", id="arm"),
        pytest.param("ab --preset quick --model m --wait-gpus x", "write a time", id="time"),
        pytest.param("ablate --preset quick --model m --factors x", "no feature 'x'", id="factor"),
        pytest.param(
            "ab --model m --workload random:1/1 --concurrency 0", "whole numbers", id="zero"
        ),
        pytest.param("ab --preset quick --model m --retries -1", "counts from 0", id="retries"),
        pytest.param("", "required: COMMAND", id="nothing"),
        pytest.param("calibrate-client m --output-len 1", "counts from 2", id="output-len"),
    ],
)
def test_mistake_is_one_sentence(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *shlex.split(words)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_publishing_needs_the_clients_ceiling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "ab", "--preset", "publish", "--model", MODEL, "--gpus", "none"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert "vllm-amdopt bench calibrate-client" in capsys.readouterr().err


def test_dry_run_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "ab", "--preset", "dstack-405b", "--dry-run", "--budget", "4h"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "AB BA AB BA AB BA" in said and "source: dstack" in said
    assert "arm plugin: VLLM_AMDOPT=1" in said and "--tensor-parallel-size 8" in said
    assert "14 launches" in said and "--request-rate 5" in said and "4:00:00" in said
    assert not (tmp_path / "run").exists()
