"""Every case in Triton's interpreter, in float32 and float16, as the CPU engine of that name runs.

The cases run in one process of their own (`interpreter_run.py`); each is a test here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ops import interpreter_run
from vllm_amdopt.kernels import availability
from vllm_amdopt.ops import refusals

ROOT = Path(__file__).resolve().parents[2]
CASES = [
    f"{operation}/{dtype}/{case.name}"
    for operation, (_, cases) in interpreter_run.CHECKS.items()
    for case in cases
    for dtype in interpreter_run.DTYPES
]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    """What `interpreter_run` found, by case."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.ops.interpreter_run"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    results: dict[str, str | None] = json.loads(run.stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize("case", CASES)
def test_keeps_the_error_budget(case: str, interpreted: dict[str, str | None]) -> None:
    assert interpreted[case] is None


def test_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "interpreted", lambda: True)
    sentence = refusals.dtype(torch.bfloat16, "the model")
    assert sentence is not None
    assert "interpreter" in sentence
    assert refusals.dtype(torch.float16, "the model") is None


def test_writing_fp8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter rounds it wrongly, so `interpreter_run` leaves those cases out."""
    assert refusals.written_fp8(torch.float8_e4m3fn) is None
    monkeypatch.setattr(availability, "interpreted", lambda: True)
    sentence = refusals.written_fp8(torch.float8_e4m3fn)
    assert sentence is not None
    assert "rounds wrongly; use --kv-cache-dtype auto" in sentence
    assert refusals.written_fp8(torch.float16) is None
