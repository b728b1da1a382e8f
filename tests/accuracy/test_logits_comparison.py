"""`accuracy logits` on replays that no engine made: what makes an arm, or a run, invalid."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_amdopt.accuracy import logits
from vllm_amdopt.accuracy.cells import parse_cells
from vllm_amdopt.accuracy.divergence import Position
from vllm_amdopt.accuracy.records import logits_record
from vllm_amdopt.accuracy.replay import Replay, ReplayFailedError, read_replay, wrong_on_purpose
from vllm_amdopt.bench.plan import Arm
from vllm_amdopt.bench.report.build import build, verdict_line
from vllm_amdopt.bench.treatment import Treatment
from vllm_amdopt.run_record import as_json, parse

ENGINE = {
    "runner": "v2",
    "forced_by": "trace replay",
    "dtype": "bfloat16",
    "vocabulary": 2,
    "max_num_batched_tokens": 8192,
}
POSITION = Position(math.log(0.75), {0: math.log(0.75), 1: math.log(0.25)})
PLUGIN = Treatment(active=True, plan="p", features=frozenset({"attention"}))
GOOD = Replay(
    engine=ENGINE,
    cells={"4x8": [[POSITION] * 30] * 4},
    doubled={"4x8": [[POSITION] * 30] * 4},
    reference={"4x8": []},
    unsupported={},
    treatment=Treatment(),
    wrong="",
)
Compare = Callable[..., logits.LogitsResult]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compare:
    """Compares stock with one arm, given what its launches give."""

    def run(
        other: Replay | str, first: Replay | str = GOOD, environment: str = ""
    ) -> logits.LogitsResult:
        asked: list[dict[str, Any]] = []

        def replay(_: object, **how: Any) -> Replay:
            asked.append(how)
            given = other if how["folder"].name == "b" else first
            if isinstance(given, str):
                raise ReplayFailedError(given)
            return given

        monkeypatch.setattr(logits, "replay", replay)
        settings = logits.Settings(
            model="m",
            arms=(
                Arm("a", {"VLLM_AMDOPT": "0"}),
                Arm("b", {"VLLM_AMDOPT": environment} if environment else {}, ("--more",)),
            ),
            cells=parse_cells("4x8"),
            tokens=30,
            top=2,
            prompts=("x",),
            serve_args=("--all",),
            seconds=1.0,
            folder=tmp_path,
            environment={"PATH": "/bin", "VLLM_AMDOPT": "1"},
        )
        result = logits.compare_arms(settings, lambda _: None)
        record = logits_record(result, machine={}, software={}, commands=())
        assert record == parse(as_json(record), "a copy")
        report = build([record])
        assert record.conclusion is not None
        assert record.conclusion.sentence in verdict_line(report)
        assert asked[0]["environment"]["VLLM_AMDOPT"] == "0"
        if len(asked) == 3:
            assert [one["doubled"] for one in asked] == [False, True, False]
            assert [one["reference"] is None for one in asked] == [True, False, False]
            assert asked[2]["serve_args"] == ("--all", "--more")
        return result

    return run


def test_alike_arms_pass(compare: Compare) -> None:
    result = compare(GOOD)
    assert (result.invalid, result.exit_code(True)) == ("", 0)
    assert logits.conclusions(result) == ["b: passed: every cell is within its limits"]


@pytest.mark.parametrize(
    ("changes", "environment", "words"),
    [
        pytest.param(
            {"engine": {**ENGINE, "runner": "v1"}}, "", "its model runner is v1", id="runner"
        ),
        pytest.param(
            {"engine": {**ENGINE, "max_num_batched_tokens": 64}}, "", "a step is 64", id="chunks"
        ),
        pytest.param({"cells": {}}, "", "did not answer the cells 4x8", id="cells"),
        pytest.param({}, "1", "the plugin is not active in b", id="no plugin"),
        pytest.param({"treatment": PLUGIN}, "0", "the plugin is active in b", id="plugin"),
        pytest.param(
            {"treatment": replace(PLUGIN, faults={"attention": "it is slow"})},
            "1",
            "attention failed in b",
            id="fell back",
        ),
    ],
)
def test_what_cannot_be_compared_is_invalid(
    compare: Compare, changes: dict[str, Any], environment: str, words: str
) -> None:
    result = compare(replace(GOOD, **changes), environment=environment)
    assert words in result.others[0].invalid
    assert result.others[0].verdict is None
    assert (result.exit_code(), result.invalid) == (4, "")
    assert logits.table(result)[-1][-1] == "invalid"


def test_an_arm_that_cannot_be_measured_is_a_row(compare: Compare) -> None:
    result = compare("its model does not fit")
    assert result.exit_code() == 4
    assert logits.conclusions(result) == ["b: invalid: its model does not fit"]
    record = logits_record(result, machine={}, software={}, commands=())
    assert [row.reason for row in record.rows if row.arm == "b"] == ["its model does not fit"]


@pytest.mark.parametrize(
    ("first", "words"),
    [
        pytest.param("no such model", "arm a: no such model", id="does not start"),
        pytest.param(
            replace(GOOD, cells={}, unsupported={"4x8": "too long"}),
            "0 positions could be measured and 100 are needed: ask for other --cells, or raise "
            "--tokens from 30 (4x8: too long)",
            id="nothing fits",
        ),
        pytest.param(replace(GOOD, treatment=PLUGIN), "the plugin is active in a", id="plugin"),
    ],
)
def test_a_first_arm_that_cannot_be_measured_makes_the_run_invalid(
    compare: Compare, first: Replay | str, words: str
) -> None:
    result = compare(GOOD, first=first)
    assert words in result.invalid
    assert (result.others, result.exit_code()) == ((), 4)


def test_no_numbers_fail_and_the_record_says_so(compare: Compare) -> None:
    nothing = Position(math.nan, {0: math.nan, 1: math.nan})
    result = compare(replace(GOOD, cells={"4x8": [[nothing] * 30] * 4}))
    assert result.exit_code() == 1
    record = logits_record(result, machine={}, software={}, commands=())
    (row,) = [row for row in record.rows if row.arm == "b" and row.level["cell"] == "4x8"]
    assert (row.status, "no numbers" in row.reason) == ("error", True)


def test_positions_are_counted_before_anything_starts(compare: Compare) -> None:
    good = compare(GOOD).settings
    with pytest.raises(ValueError, match="96 positions are too few to judge by"):
        replace(good, tokens=24)


# --- reading what the program left behind -------------------------------------------------------


def events(tmp_path: Path, *lines: dict[str, Any], cut: bool = False, log: str = "") -> tuple:
    out, said = tmp_path / "measured.jsonl", tmp_path / "engine.log"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    out.write_text(text[:-9] if cut else text)
    said.write_text(log)
    return out, said, {}


STARTED = {"event": "engine", **ENGINE}
MEASURED = {
    "event": "replayed",
    "cell": "1x8",
    "sequences": [{"positions": [{"chosen": -0.5, "top": [[7, -0.5], [2, -1.0]]}]}],
}


def test_measurements_are_read(tmp_path: Path) -> None:
    found = read_replay(*events(tmp_path, STARTED, MEASURED, {"event": "done"}))
    assert found.cells == {"1x8": [[Position(-0.5, {7: -0.5, 2: -1.0})]]}
    assert found.engine == ENGINE
    assert found.treatment == Treatment()


def test_an_error_is_said_in_its_own_words(tmp_path: Path) -> None:
    error = {"event": "error", "sentence": "the prefix cache\ncould not be emptied"}
    with pytest.raises(ReplayFailedError, match="the prefix cache could not be emptied"):
        read_replay(*events(tmp_path, STARTED, error))


def test_a_killed_engine_is_explained_by_its_log(tmp_path: Path) -> None:
    log = "INFO loading\n(EngineCore) torch.OutOfMemoryError: HIP out of memory\nTraceback\n"
    with pytest.raises(ReplayFailedError, match=r"ended early: torch\.OutOfMemoryError: HIP out"):
        read_replay(*events(tmp_path, STARTED, MEASURED, cut=True, log=log))


def test_a_fault_on_purpose_is_found_in_the_log() -> None:
    line = "VLLM_AMDOPT_INJECT_FAULT=a:scale=1.01: the answers of this process are WRONG on purpose"
    assert wrong_on_purpose(f"INFO x\n(pid=3) WARNING 11-26 [faults.py:9] {line}\n") == line
    assert wrong_on_purpose("INFO x\n") == ""
