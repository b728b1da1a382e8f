"""A run that is ended from outside, as a real process: none of its servers outlives it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.rig import MODEL, ROOT
from vllm_amdopt.bench.processes import prepare_child, session_members

WAIT_SECONDS = 120.0


def servers(model: str) -> list[int]:
    """Sessions of mock servers that were started with this model's name."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"vllm_amdopt.bench.mock_server" in words and model.encode() in words:
            found.append(int(entry.name))
    return found


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="ctrl-c"),
        pytest.param(signal.SIGTERM, 130, id="terminated"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="killed"),
    ],
)
def test_no_server_outlives_its_run(tmp_path: Path, number: signal.Signals, code: int) -> None:
    model = tmp_path / "model"
    model.symlink_to(MODEL)
    program = f"{sys.executable} -m vllm_amdopt.bench.mock_server"
    command = [sys.executable, "-m", "vllm_amdopt.cli", "bench", "aa", "--model", str(model)]
    command += ["--workload", "random:8/4", "--concurrency", "1", "--serve-program", program]
    command += ["--serve-args", "--mock-ready-seconds 600", "--out", str(tmp_path / "run")]
    command += ["--gpus", "none", "--min-free-disk", "0"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "VLLM_AMDOPT_LOCK_DIR": str(tmp_path / "locks"),
    }
    run = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=prepare_child
    )
    try:
        wait_for(lambda: servers(str(model)))
        (server,) = servers(str(model))
        run.send_signal(number)
        _, said = run.communicate(timeout=WAIT_SECONDS)
    finally:
        run.kill()
    assert run.returncode == code
    wait_for(lambda: not session_members(server))
    if code == 130:
        assert re.search(r"interrupted; all servers are ended.*--resume", said)
