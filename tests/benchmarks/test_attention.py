"""The attention benchmark as far as a CPU goes: gate, turns, record, prediction, refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import attention, attention_arms
from benchmarks.attention_arms import MODELS, OURS, Arm, Cell, Prepared
from vllm_amdopt import run_record
from vllm_amdopt.emulator.launch import emulate

CPU = torch.device("cpu")
SMALL = Cell(replace(MODELS[0], name="small", query_heads=4, kv_heads=2, head_size=64), 3, 40)
SMALL_MLA = Cell(replace(MODELS[3], name="small-mla", query_heads=16), 1, 20)


class CountingClock:
    """Runs each call and says that it took as many seconds as its turn; no time passes."""

    name = "no GPU"
    stand_in = True

    def __init__(self) -> None:
        self.turns: list[Callable[[], object]] = []

    def ready(self, call: Callable[[], object]) -> Callable[[], object]:
        return call

    def seconds(self, call: Callable[[], object]) -> float:
        call()
        self.turns.append(call)
        return float(len(self.turns))


def test_cells_are_gated_timed_in_turns_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a second arm beside ours: the reference, which is right."""
    made: list[Prepared] = []
    prepare = attention_arms.prepare

    def with_reference(cell: Cell, device: torch.device, dtype: torch.dtype) -> Prepared:
        prepared = prepare(cell, device, dtype)
        out = torch.empty_like(prepared.arms[0].out)
        rows = prepared.truth.shape[0]
        copy = Arm("vllm-triton", lambda: out[:rows].copy_(prepared.truth.view_as(out[:rows])), out)
        made.append(replace(prepared, arms=(*prepared.arms, copy)))
        return made[-1]

    monkeypatch.setattr(attention_arms, "prepare", with_reference)
    clock = CountingClock()
    with emulate("gfx942") as device:
        record = attention.run([SMALL, SMALL_MLA], clock, CPU, rounds=2, copied=1 << 10)
        kernels = {launch["kernel"] for launch in device.launches}
    assert len(kernels) >= 2
    assert "vllm-triton" in made[0].absent and "flash-attention" in made[0].absent
    first = [row for row in record.rows if row.level["cell"] == SMALL.name]
    # ten copies came before; in the second round the other arm begins
    assert {(row.arm, row.block): row.metrics["seconds"] for row in first} == {
        (OURS, 0): 11.0,
        ("vllm-triton", 0): 12.0,
        ("vllm-triton", 1): 13.0,
        (OURS, 1): 14.0,
    }
    assert "stand-in" in record.title
    path = tmp_path / f"attention{run_record.SUFFIX}"
    run_record.save(record, path)
    assert run_record.load(path) == record
    assert "stand-in, not AMD hardware  small/batch3/context40" in capsys.readouterr().out


def test_a_wrong_kernel_of_ours_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*arguments: object, **options: object) -> None:
        out = arguments[6]
        assert isinstance(out, torch.Tensor)
        out.zero_()

    monkeypatch.setattr(attention_arms, "ours", lambda operation, **facts: zeros)
    clock = CountingClock()
    with pytest.raises(SystemExit, match=r"small/batch3/context40: our kernel fails its gate"):
        attention.measure(SMALL, clock, CPU, torch.bfloat16, 2)
    assert not clock.turns


def test_a_slower_cell_fails_the_run() -> None:
    cells = {"a": {"times": {OURS: [1.0], "vllm-triton": [4.0]}}}
    assert attention.summary(cells)[0] == "passed"
    cells["b"] = {"times": {OURS: [2.0], "vllm-triton": [1.0]}}
    outcome, sentence = attention.summary(cells)
    assert outcome == "failed"
    assert "2 cells: 1.41 times as fast" in sentence and "worst cell, b" in sentence
    assert attention.summary({})[0] == "inconclusive"


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert not torch.cuda.is_available()
    assert attention.main([]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "--predict gfx942" in captured.err
    assert attention.main(["--rounds", "0"]) == 2


@pytest.mark.parametrize("model", ["qwen3-235b-tp8", "kimi-k2.5-tp8"])
def test_predictions_need_no_gpu(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--predict", "gfx942", "--model", model, "--batch", "8", "--context", "1024"]
    assert attention.main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("predicted") for line in lines)
    assert f"{model}" in lines[1] and "batch8/context1024" in lines[1]
    assert "decode.gluon " in lines[1], "what the registry tries first on that chip"


def test_the_grid_is_the_one_that_is_asked_for() -> None:
    found = list(attention_arms.cells())
    assert len(found) == 6 * 5 * 3
    assert len({cell.name for cell in found}) == len(found)
