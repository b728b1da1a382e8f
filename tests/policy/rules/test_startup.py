"""The start-up plan: only with the patch that completes its key; without it, a warning."""

from __future__ import annotations

from typing import Any

from tests.policy.situations import NOTHING, instinct, plan

ASKED = {"environment": {"VLLM_ENABLE_STARTUP_PLAN": "1"}}
SWITCHED = {"environment": {"VLLM_AMDOPT_STARTUP_PLAN": "on"}}


def planned(hardware: Any = None, **options: Any) -> Any:
    return plan("llama-3.1-8b", hardware or instinct(), **options)


def test_the_plan_is_opt_in_and_needs_the_patch() -> None:
    assert "needs patch 0006" in planned().decision("startup_plan").reason
    refused = planned(**SWITCHED)
    assert [warning for warning in refused.warnings if "needs patch 0006" in warning]
    offered = planned(patches=("0006",)).decision("startup_plan")
    assert not offered.on and "VLLM_AMDOPT_STARTUP_PLAN=on uses it" in offered.reason
    assert planned(**SWITCHED, patches=("0006",)).settings["env.VLLM_ENABLE_STARTUP_PLAN"] == "1"


def test_who_uses_the_plan_without_the_patch_is_told_what_it_does_not_notice() -> None:
    (note,) = [note for note in planned(**ASKED).notes if "STARTUP_PLAN" in note]
    assert "--gpu-memory-utilization" in note and "patches apply 0006" in note


def test_no_word_with_the_patch_or_without_a_gpu_or_where_it_is_off() -> None:
    assert not planned(**ASKED, patches=("0006",)).is_on("startup_plan_key")
    assert not planned(NOTHING, **ASKED).is_on("startup_plan_key")
    off = planned(environment={"VLLM_ENABLE_STARTUP_PLAN": "0"})
    assert not off.is_on("startup_plan_key")
