"""Two sessions: what can be compared, what cannot and why, and what a loss is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.synthetic_record import serving, startup
from vllm_amdopt import cli
from vllm_amdopt.bench.analysis import analyse
from vllm_amdopt.bench.compare import changes, compare, lost, refusals, warnings
from vllm_amdopt.bench.report.markdown import render_markdown
from vllm_amdopt.run_record import Arm, RecordError, RunRecord, save

OLD = serving(seed=1, faster=0.05, noise=0.004, failing=False)


def changed(**changes: Any) -> RunRecord:
    return replace(OLD, **changes)


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (startup(), "one is of serving_ab, the other of startup"),
        (changed(synthetic=False), "one is synthetic, the other was measured"),
        (changed(workload={"model": "/m/other"}), "different models (Llama-3.1-8B and other)"),
        (changed(machine={"gpus": [{"product": "MI300X"}]}), "different GPUs"),
        (changed(machine={}), "different GPUs (a GPU that is not there and none)"),
        (changed(arms=(OLD.arms[0], Arm("patched"))), "their arms differ"),
        (
            changed(arms=(OLD.arms[0], replace(OLD.arms[1], serve_arguments=("--fast",)))),
            "the arm plugin was served with other arguments",
        ),
        (
            changed(arms=(OLD.arms[0], replace(OLD.arms[1], environment={"A": "1"}))),
            "the arm plugin had another environment",
        ),
        (serving(loads=(8,)), "they have no level in common"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(new: RunRecord, why: str) -> None:
    with pytest.raises(RecordError, match="cannot be compared") as caught:
        compare(OLD, new)
    assert why in str(caught.value) and "vllm-amdopt report" in str(caught.value)


def test_the_same_conditions_can_be_compared() -> None:
    moved = replace(OLD, workload={**OLD.workload, "model": "/elsewhere/Llama-3.1-8B/"})
    assert refusals(OLD, moved) == []


@pytest.mark.parametrize(
    ("faster", "is_lost", "headline"),
    [
        (0.0, True, "plugin lost against stock since the earlier session"),
        (0.05, False, "No proven loss of plugin against stock"),
        (0.10, False, "No proven loss of plugin against stock"),
    ],
)
def test_a_loss_is_found(faster: float, is_lost: bool, headline: str) -> None:
    new = serving(seed=2, faster=faster, noise=0.004, failing=False)
    assert lost(OLD, new) is is_lost
    assert headline in render_markdown(compare(OLD, new))


def test_quiet_sessions_are_equivalent() -> None:
    old, new = (serving(seed=seed, noise=0.0005, failing=False) for seed in (1, 2))
    assert "plugin against stock is as it was" in render_markdown(compare(old, new))


def test_a_lower_latency_is_a_gain() -> None:
    new = serving(seed=2, faster=0.20, noise=0.004, failing=False)
    found = changes(analyse(OLD).comparisons[0], analyse(new).comparisons[0])
    (change,) = [
        one
        for one in found
        if one.metric.name == "mean_e2el_ms" and one.level and one.level.load == 16
    ]
    assert change.ratio == pytest.approx(1.05 / 1.20, abs=0.02)
    assert change.low is not None and change.high is not None
    assert change.low < change.ratio < change.high < 1


def test_one_block_has_no_interval_and_no_verdict() -> None:
    one = serving(blocks=1, failing=False)
    assert lost(one, one) is False
    assert "measure two blocks or more" in render_markdown(compare(one, one))


def test_what_changed_besides_is_told() -> None:
    new = replace(
        serving(loads=(16, 32)), software={**OLD.software, "torch": "2.14.0"}, synthetic=True
    )
    said = "\n".join(warnings(OLD, new))
    assert 'software, torch: "2.13.0" before, "2.14.0" now' in said
    assert "only in the earlier record: random 1024/128, concurrency 64" in said
    assert "not paired" in said


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(OLD, tmp_path / "old" / "record.json")
    save(serving(seed=2, faster=0.0, noise=0.004), tmp_path / "new" / "record.json")
    page = tmp_path / "page.html"
    arguments = ["compare", str(tmp_path / "old"), str(tmp_path / "new"), "--html", str(page)]
    assert cli.main(arguments) == 1
    assert "REGRESSION: plugin lost" in capsys.readouterr().out
    assert "Other metrics, exploratory" in page.read_text()
    assert cli.main(["compare", str(tmp_path / "old"), str(tmp_path / "old")]) == 0
    capsys.readouterr()
    assert cli.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "holds 2 run records: name one of them" in capsys.readouterr().err
