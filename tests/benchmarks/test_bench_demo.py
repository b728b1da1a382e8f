"""The bench demo's steps are commands that exist, and one that ends otherwise is said; no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bench_demo
from benchmarks.bench_demo import FLOOR, SLOWED, VARIABLE, Step, steps
from tests.serving import CACHES
from vllm_amdopt.cli import _joined, _parser
from vllm_amdopt.commands.bench_options import plan_of

OUT = CACHES / "not-run"
ALL = {step.name: step for step in steps(OUT, 4)}


@pytest.mark.parametrize("name", list(ALL))
def test_step_is_a_command_that_exists(name: str) -> None:
    words = list(ALL[name].command)
    options = _parser(words[:1]).parse_args(_joined(words))
    assert options.command == words[0]


def test_arms_differ_by_a_tenth_and_by_nothing() -> None:
    assert pytest.approx(1.1 * FLOOR) == SLOWED

    def plan(name: str) -> object:
        words = list(ALL[name].command)
        return plan_of(_parser(words[:1]).parse_args(_joined(words)))

    slowed, same = plan("ab"), plan("aa")
    floors = [arm.environment[VARIABLE] for arm in slowed.arms]  # type: ignore[attr-defined]
    assert list(map(float, floors)) == pytest.approx([FLOOR, SLOWED])
    assert len({tuple(arm.environment.items()) for arm in same.arms}) == 1  # type: ignore[attr-defined]
    assert VARIABLE in (Path(__file__).parents[1] / "step_floor.py").read_text()


def test_demo_ends_with_0_only_if_every_step_ends_as_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {step.name: step.expected for step in ALL.values()}
    codes = dict(good)

    def run(step: Step) -> tuple[int, float]:
        return codes[step.name], 1.0

    monkeypatch.setattr(bench_demo, "run", run)
    assert bench_demo.main(["--out", str(tmp_path / "demo")]) == 0
    assert "WRONG" not in capsys.readouterr().out
    codes["ab"] = 0
    assert bench_demo.main(["--out", str(tmp_path / "demo")]) == 1
    assert "exit code 0: WRONG, expected 1" in capsys.readouterr().out
    assert bench_demo.main(["--out", str(tmp_path / "demo"), "--only", "aa"]) == 0
