"""`vllm-amdopt accuracy`: what a command line means, and refusals in a sentence; no arm runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vllm_amdopt.accuracy import logits, tasks
from vllm_amdopt.bench.gpu_lock import WHOLE_MACHINE, Locks, lock_directory
from vllm_amdopt.cli import main
from vllm_amdopt.commands import accuracy

ROW = json.dumps({"prompt": "1 + 1 =", "answer": "2"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The settings with which a check would have begun; nothing begins."""
    found: list[Any] = []

    def stop(settings: Any, _: object) -> None:
        found.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(logits, "compare_arms", stop)
    monkeypatch.setattr(tasks, "compare_arms", stop)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_AMDOPT_LOCK_DIR", str(tmp_path / "locks"))
    return found


def test_logits_has_stock_and_plugin_as_arms(asked: list[Any]) -> None:
    assert main(["accuracy", "logits", "some/model"]) == 130
    (settings,) = asked
    assert [(arm.name, dict(arm.environment)) for arm in settings.arms] == [
        ("stock", {"VLLM_AMDOPT": "0"}),
        ("plugin", {"VLLM_AMDOPT": "1"}),
    ]
    assert ",".join(cell.name for cell in settings.cells) == accuracy.CELLS
    assert settings.folder.parent.name == "runs"
    assert settings.folder.name.startswith("accuracy-logits-model-")
    assert len(settings.prompts) == 160


def test_arms_and_arguments_are_taken_as_given(asked: list[Any], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(f"{ROW}\n{ROW}\n")
    line = [
        "accuracy", "logits", "m", "--cells", "4x8,2x8+1x64", "--tokens", "30",
        "--prompts", str(prompts), "--serve-args", "--dtype float32", "--out", "here",
        "--a", "old:VLLM_AMDOPT=1", "--b", "x:VLLM_AMDOPT=mla,gemm,OTHER=2", "--b", "y:OTHER=3",
        "--b-serve-args", "--enforce-eager",
    ]  # fmt: skip
    assert main(line) == 130
    (settings,) = asked
    assert [arm.name for arm in settings.arms] == ["old", "x", "y"]
    assert settings.arms[1].environment == {"VLLM_AMDOPT": "mla,gemm", "OTHER": "2"}
    assert [arm.serve_arguments for arm in settings.arms] == [(), *[("--enforce-eager",)] * 2]
    assert settings.serve_args == ("--dtype", "float32")
    assert settings.prompts == ("1 + 1 =", "1 + 1 =")
    assert settings.folder == tmp_path / "here"


def test_tasks_are_the_generated_ones_unless_files_are_given(
    asked: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{ROW}\n" * 60)
    assert main(["accuracy", "tasks", "m", "--items", "20"]) == 130
    assert main(["accuracy", "tasks", "m", "--task-file", f"mine={path}"]) == 130
    both = ["--tasks", "copy", "--task-file", f"mine={path}", "--margin", "2%"]
    assert main(["accuracy", "tasks", "m", *both, "--out", "other"]) == 130
    names = [[task.name for task in settings.tasks] for settings in asked]
    assert names == [["recall", "arithmetic", "copy", "needle"], ["mine"], ["copy", "mine"]]
    assert asked[2].margin == 0.02
    assert asked[0].evaluation.concurrency == 16


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(["logits", "m", "--cells", "8"], "'8' is not a cell", id="cell"),
        pytest.param(
            ["logits", "m", "--cells", "1x8", "--tokens", "9"], "9 positions are too few", id="few"
        ),
        pytest.param(["logits", "m", "--top", "0"], "--top counts from 1", id="top"),
        pytest.param(["logits", "m", "--b", "x"], "", id="arm without variables"),
        pytest.param(
            ["logits", "m", "--b", "stock:A=1"], "two arms are called 'stock'", id="names"
        ),
        pytest.param(["logits", "m", "--prompts", "none"], "none cannot be read", id="prompts"),
        pytest.param(["logits", "m", "--arm-timeout", "soon"], "write a time", id="time"),
        pytest.param(["logits", "m", "--out", "full"], "full is not empty", id="folder"),
        pytest.param(["logits"], "MODEL", id="no model"),
        pytest.param([], "CHECK", id="no check"),
        pytest.param(["tasks", "m", "--tasks", "chess"], "'chess': the generated ones", id="task"),
        pytest.param(["tasks", "m", "--items", "0"], "--items counts from 1", id="items"),
        pytest.param(["tasks", "m", "--items", "9"], "36 questions are too few", id="few items"),
        pytest.param(["tasks", "m", "--task-file", "x"], "write NAME=FILE", id="task file"),
        pytest.param(["tasks", "m", "--gsm8k", "none"], "none cannot be read", id="gsm8k"),
        pytest.param(["tasks", "m", "--margin", "much"], "write a share", id="margin"),
    ],
)
def test_refusals_are_one_sentence(
    asked: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: list[str],
    words: str,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "record.json").write_text("")
    code = main(["accuracy", *line])
    said = capsys.readouterr().err
    if not words:
        # An arm without variables is vLLM as it is.
        assert (code, said) == (130, "interrupted; every engine and server is ended\n")
        return
    assert code == 2
    assert words in said and said.count("\n") == 1
    assert not asked


def test_a_missing_lm_eval_is_said(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accuracy, "missing_lm_eval", lambda: "lm-eval is not installed: pip")
    assert main(["accuracy", "tasks", "m"]) == 2
    assert "lm-eval is not installed" in capsys.readouterr().err


def test_two_runs_do_not_share_a_machine(
    asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    locks = Locks(lock_directory(os.environ))
    locks.acquire([WHOLE_MACHINE], purpose="another run")
    try:
        assert main(["accuracy", "logits", "m", "--gpus", "none"]) == 5
    finally:
        locks.release()
    assert "another run" in capsys.readouterr().err
    assert not asked
    assert main(["accuracy", "logits", "m", "--gpus", "none"]) == 130
