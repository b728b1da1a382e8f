"""AITER on or off: where it fires, where it is held back, what it must never start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.situations import CURRENT_AITER, NVIDIA, VIRTUAL, facts, instinct, plan

WITH_AITER = {"aiter": CURRENT_AITER}
ON_MI300X: dict[str, Any] = {"hardware": instinct("gfx942"), **WITH_AITER}
ON_MI355X: dict[str, Any] = {"hardware": instinct("gfx950"), **WITH_AITER}
AITER_ON = {"VLLM_ROCM_USE_AITER": "1"}


@pytest.mark.parametrize(
    ("model", "options", "settings"),
    [
        pytest.param(
            "llama-3.1-8b", ON_MI300X, {"env.VLLM_ROCM_USE_AITER": "1"}, id="gfx942, one GPU"
        ),
        pytest.param(
            "deepseek-v3",
            {**ON_MI300X, "tensor_parallel_size": 8},
            {"env.VLLM_ROCM_USE_AITER": "1", "env.VLLM_ROCM_USE_AITER_CUSTOM_AR": "0"},
            id="gfx942, eight GPUs: without the fused all-reduce that is reported wrong there",
        ),
        pytest.param(
            "deepseek-v3",
            {
                **ON_MI300X,
                "tensor_parallel_size": 8,
                "environment": {"VLLM_ROCM_USE_AITER_CUSTOM_AR": "1"},
            },
            {"env.VLLM_ROCM_USE_AITER": "1"},
            id="gfx942, eight GPUs, the user decided on the all-reduce",
        ),
        pytest.param(
            "deepseek-v3",
            {**ON_MI355X, "tensor_parallel_size": 8},
            {"env.VLLM_ROCM_USE_AITER": "1"},
            id="gfx950, eight GPUs",
        ),
        pytest.param(
            "qwen3-30b-a3b-fp8",
            {**ON_MI355X, "tensor_parallel_size": 2},
            {"env.VLLM_ROCM_USE_AITER": "1"},
            id="block-FP8 experts that divide: 768 on 2",
        ),
        pytest.param(
            "qwen3-30b-a3b-fp8",
            {**ON_MI355X, "tensor_parallel_size": 4, "expert_parallel": True},
            {"env.VLLM_ROCM_USE_AITER": "1"},
            id="block-FP8 experts kept whole",
        ),
        pytest.param(
            "qwen3-30b-a3b-fp8",
            {
                **ON_MI355X,
                "tensor_parallel_size": 4,
                "environment": {"VLLM_ROCM_USE_AITER_MOE": "0"},
            },
            {"env.VLLM_ROCM_USE_AITER": "1"},
            id="block-FP8 experts that the user keeps from AITER",
        ),
        pytest.param(
            "kimi-k2.5", ON_MI300X, {"env.VLLM_ROCM_USE_AITER": "1"}, id="experts in int4"
        ),
    ],
)
def test_aiter_on(model: str, options: dict[str, Any], settings: dict[str, str]) -> None:
    decision = plan(model, **options).decision("aiter")
    assert decision.on, decision.reason
    assert dict(decision.settings) == settings
    held_back = "env.VLLM_ROCM_USE_AITER_CUSTOM_AR" in settings
    assert ("reported wrong on gfx942 (ROCm/aiter#4888)" in decision.reason) is held_back


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
            "gfx90a is not one of gfx942 or gfx950: vLLM uses AITER on CDNA3 and newer only",
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
            "qwen3-30b-a3b-fp8",
            {**ON_MI300X, "tensor_parallel_size": 4},
            "default",
            "block-FP8 experts of width 768 on 4 ranks are not a multiple of 128 each",
            id="block-FP8 experts of 192",
        ),
        pytest.param(
            "minimax-m2",
            {**ON_MI355X, "tensor_parallel_size": 8},
            "default",
            "block-FP8 experts of width 1536 on 8 ranks",
            id="MiniMax-M2 on eight",
        ),
        pytest.param(
            "glm-4.5",
            {**ON_MI300X, "quantization": "fp8"},
            "default",
            "FP8 experts other than block-FP8 are not proved with AITER",
            id="experts quantized online",
        ),
        pytest.param(
            replace(facts("deepseek-v3"), quantization="compressed-tensors"),
            ON_MI300X,
            "default",
            "FP8 experts other than block-FP8 are not proved with AITER",
            id="block-FP8 experts in another format",
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


def test_old_aiter_can_be_forced_but_not_what_fails_at_load() -> None:
    environment = {"VLLM_AMDOPT_AITER": "on"}
    old = plan(hardware=instinct(), aiter="0.1.7", environment=environment)
    assert old.is_on("aiter")
    assert old.decision("aiter").reason.startswith(
        "forced by VLLM_AMDOPT_AITER=on although AITER 0.1.7 is older"
    )
    fails = plan("minimax-m2", **ON_MI300X, tensor_parallel_size=8, environment=environment)
    assert not fails.is_on("aiter")
    assert len(fails.warnings) == 1
