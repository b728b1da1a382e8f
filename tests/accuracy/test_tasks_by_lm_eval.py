"""`accuracy tasks` as a whole: real lm-eval, and a server that knows the answers, or not all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from vllm_amdopt.accuracy import tasks
from vllm_amdopt.accuracy.records import tasks_record
from vllm_amdopt.accuracy.task_folder import Sample
from vllm_amdopt.accuracy.task_items import generate
from vllm_amdopt.accuracy.task_run import Evaluation, TaskRunError, missing_lm_eval, wait_for
from vllm_amdopt.bench.plan import Arm
from vllm_amdopt.bench.processes import prepare_child, session_members
from vllm_amdopt.bench.report.build import build, verdict_line
from vllm_amdopt.bench.server import ServerSettings
from vllm_amdopt.run_record import as_json, parse

SERVER = Path(__file__).with_name("answering_server.py")
ARITHMETIC = generate("arithmetic", 30)
NEEDLE = generate("needle", 30, characters=200)


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """The "model" of the server: all answers."""
    path = tmp_path / "answers.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": item.prompt, "answer": item.answer}) + "\n"
            for item in (*ARITHMETIC.items, *NEEDLE.items)
        )
    )
    return path


def settings(answers: Path, **arms: Mapping[str, str]) -> tasks.Settings:
    return tasks.Settings(
        model=str(answers),
        arms=tuple(Arm(name, environment) for name, environment in arms.items()),
        tasks=(ARITHMETIC, NEEDLE),
        serve_args=(),
        evaluation=Evaluation(concurrency=4, request_seconds=20, seconds=300.0),
        margin=0.01,
        folder=answers.parent / "run",
        server=ServerSettings(
            base_environment={**os.environ, "http_proxy": "http://127.0.0.1:9"},
            program=(sys.executable, str(SERVER)),
            ready_seconds=120.0,
        ),
    )


def test_a_loss_is_found_item_by_item_and_what_cannot_be_asked_is_a_row(answers: Path) -> None:
    """The first arm, itself again, one that loses every sixth item, one that dies, and one that
    does not come up."""
    said: list[str] = []
    arms = {
        "good": {},
        "lossy": {"MOCK_WRONG": "6"},
        "dying": {"MOCK_DIE": "9"},
        "small": {"MOCK_REFUSE": "1"},
    }
    result = tasks.compare_arms(settings(answers, **arms), said.append)
    assert result.invalid == ""
    assert result.floor["all"].flips.only_first == result.floor["all"].flips.only_second == 0
    assert result.floor["all"].flips.first_share == 1.0
    others = {one.arm.name: one for one in result.others}
    lossy = others["lossy"]
    assert lossy.verdict is not None and lossy.verdict.outcome == "failed"
    assert {task: one.flips.only_first for task, one in lossy.compared.items()} == {
        "arithmetic": 5,
        "needle": 5,
        "all": 10,
    }
    for arm, words in (
        ("dying", "the server died (exit code 3): RuntimeError: the GPU went away"),
        ("small", "exit code 1 at its start: ValueError: this model does not fit the memory"),
    ):
        assert others[arm].verdict is None
        assert words in others[arm].invalid
    assert result.exit_code() == 1

    record = tasks_record(result, machine={}, software={}, commands=("again",))
    assert record == parse(as_json(record), "a copy")
    assert [arm.name for arm in record.arms] == ["good", "good again", *list(arms)[1:]]
    rows = {(row.arm, row.level["task"]): row for row in record.rows}
    assert rows["lossy", "all"].metrics["lost"] == 10
    assert rows["dying", "all"].status == "error"
    assert "the GPU went away" in rows["dying", "all"].reason
    assert record.conclusion is not None and record.conclusion.outcome == "failed"
    assert len(record.tables[0].rows) == 3 + 3 + 2
    assert "10 of 60 items were lost" in verdict_line(build([record]))
    assert any(line.startswith("arm lossy: 50 of 60 right") for line in said)


def test_a_first_arm_that_does_not_come_up_makes_the_run_invalid(answers: Path) -> None:
    result = tasks.compare_arms(settings(answers, good={"MOCK_REFUSE": "1"}, b={}), lambda _: None)
    assert "ValueError: this model does not fit the memory" in result.invalid
    assert result.exit_code() == 4
    record = tasks_record(result, machine={}, software={}, commands=())
    assert [(row.arm, row.status) for row in record.rows] == [("good", "error")]
    assert record.conclusion is not None and record.conclusion.outcome == "inconclusive"


def test_an_arm_that_should_have_the_plugin_and_has_not_is_invalid(
    answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval is replaced here: the check comes after it."""
    right = {
        task.name: {
            number: Sample(True, ("d", "p", "t"), item.answer)
            for number, item in enumerate(task.items)
        }
        for task in (ARITHMETIC, NEEDLE)
    }
    monkeypatch.setattr(tasks, "run_tasks", lambda *_, **__: right)
    asked = settings(answers, good={}, plugin={"VLLM_AMDOPT": "1"})
    result = tasks.compare_arms(asked, lambda _: None)
    assert "the plugin is not active in plugin" in result.others[0].invalid
    assert result.exit_code() == 4


def test_an_interruption_ends_the_server(answers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaders: list[int] = []

    def interrupt(*_: object, died: object, **__: object) -> None:
        server = died.__self__  # type: ignore[attr-defined]
        leaders.extend(server.processes())
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "run_tasks", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tasks.compare_arms(settings(answers, good={}, b={}), lambda _: None)
    assert leaders and not [one for leader in leaders for one in session_members(leader)]


def test_what_never_ends_is_ended() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        with pytest.raises(TaskRunError, match="not done within 0 s: ask for fewer items"):
            wait_for(process, 0.01, lambda: None)
        process.kill()


def test_too_few_items_and_equal_names_are_refused(answers: Path) -> None:
    good = settings(answers, good={}, b={})
    few = generate("copy", 49)
    with pytest.raises(ValueError, match="49 questions are too few"):
        tasks.Settings(**{**vars(good), "tasks": (few,)})
    with pytest.raises(ValueError, match="two tasks are called needle"):
        tasks.Settings(**{**vars(good), "tasks": (NEEDLE, NEEDLE)})


def test_lm_eval_is_part_of_the_environment() -> None:
    assert missing_lm_eval() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_from_outside_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The whole command with an engine whose program sleeps instead of importing vLLM."""
    program = tmp_path / "vllm_amdopt_shadow" / "sitecustomize.py"
    program.parent.mkdir()
    program.write_text(
        "import os, sys, time\n"
        "if 'vllm_amdopt.accuracy.replay_program' in sys.orig_argv:\n"
        f"    open({str(tmp_path / 'started')!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    paths = os.pathsep.join([str(program.parent), str(Path(__file__).parents[2])])
    run = subprocess.Popen(
        [sys.executable, "-m", "vllm_amdopt.cli", "accuracy", "logits", "m", "--out", "here"],
        env={
            **os.environ,
            "PYTHONPATH": paths,
            "VLLM_AMDOPT_LOCK_DIR": str(tmp_path / "locks"),
        },
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare_child,
    )
    try:
        deadline = time.monotonic() + 120.0
        while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        leader = int((tmp_path / "started").read_text())
        run.send_signal(number)
        _, said = run.communicate(timeout=120.0)
    finally:
        run.kill()
    assert (run.returncode, said) == (130, "interrupted; every engine and server is ended\n")
    assert not session_members(leader)
