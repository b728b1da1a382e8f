"""Building attention metadata: right for every case, and no more work for more requests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from benchmarks import metadata
from benchmarks.metadata import CASES, Case


def instructions(call: Callable[[], object]) -> int:
    """How many instructions of Python `call` executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_a_loop_is_seen() -> None:
    few, many = (instructions(lambda n=n: [i + 1 for i in range(n)]) for n in (8, 256))
    assert many > few > 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_more_requests_take_no_more_python(case: Case) -> None:
    counts = {}
    for requests in (8, 256):
        common, ours = metadata.batch(case, requests), metadata.builder(case)
        metadata.check(case, ours.build(0, common), common)
        counts[requests] = instructions(lambda ours=ours, common=common: ours.build(0, common))
    assert counts[8] == counts[256] > 0


def test_the_gate_refuses_metadata_of_another_batch() -> None:
    case = CASES[0]
    common = metadata.batch(case, 8)
    built = metadata.builder(case).build(0, common)
    built.seq_lens = torch.full_like(common.seq_lens, 3)
    with pytest.raises(AssertionError):
        metadata.check(case, built, common)


def test_every_case_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "timings.json"
    assert metadata.main(["--requests", "8", "--rounds", "20", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    timings = json.loads(file.read_text())
    assert [timing["case"] for timing in timings] == [case.name for case in CASES]
    for timing in timings:
        assert timing["case"] in shown
        assert 0 < timing["low"] <= timing["median"] <= timing["high"]
