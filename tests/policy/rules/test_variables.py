"""Environment variables: those that bare metal lacks, and those that do nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.policy.situations import NVIDIA, VIRTUAL, instinct, plan
from vllm_amdopt.policy.rules.variables import DEAD_VARIABLES


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        pytest.param({}, {"env.HIP_FORCE_DEV_KERNARG": "1"}, id="one GPU"),
        pytest.param(
            {"tensor_parallel_size": 8},
            {"env.HIP_FORCE_DEV_KERNARG": "1", "env.NCCL_MIN_NCHANNELS": "112"},
            id="eight GPUs",
        ),
        pytest.param(
            {"tensor_parallel_size": 8, "environment": {"NCCL_MIN_NCHANNELS": "32"}},
            {"env.HIP_FORCE_DEV_KERNARG": "1"},
            id="the user's channels stay",
        ),
        pytest.param(
            {"tensor_parallel_size": 8, "environment": {"VLLM_BATCH_INVARIANT": "1"}},
            {"env.HIP_FORCE_DEV_KERNARG": "1"},
            id="batch invariance sets its own",
        ),
    ],
)
def test_bare_metal_defaults(options: dict[str, Any], settings: dict[str, str]) -> None:
    decision = plan("llama-3.1-8b", hardware=instinct(), **options).decision("environment")
    assert decision.on, decision.reason
    assert dict(decision.settings) == settings


@pytest.mark.parametrize(
    ("options", "origin"),
    [
        pytest.param({"hardware": NVIDIA}, "default", id="NVIDIA"),
        pytest.param({"hardware": VIRTUAL}, "default", id="virtual"),
        pytest.param({"hardware": instinct("gfx1201")}, "default", id="RDNA"),
        pytest.param(
            {"hardware": instinct(), "environment": {"HIP_FORCE_DEV_KERNARG": "0"}},
            "user",
            id="the user set it",
        ),
    ],
)
def test_no_bare_metal_defaults(options: dict[str, Any], origin: str) -> None:
    decision = plan("llama-3.1-8b", **options).decision("environment")
    assert not decision.on
    assert decision.origin == origin


@pytest.mark.parametrize(
    ("environment", "version", "note"),
    [
        pytest.param(
            {"VLLM_USE_TRITON_FLASH_ATTN": "0"}, "0.32.0", "--attention-backend", id="attention"
        ),
        pytest.param(
            {"VLLM_ROCM_USE_AITER_MOE_SITUV2_A8W4": "1"},
            "0.31.0",
            "VLLM_ROCM_USE_AITER_MOE_SITUV2=a8w4",
            id="renamed",
        ),
        pytest.param(
            {"VLLM_ROCM_USE_AITER_MOE_SITUV2_A8W4": "1"}, "0.30.0", None, id="not yet renamed"
        ),
        pytest.param({"VLLM_ROCM_USE_AITER": "1"}, "0.32.0", None, id="alive"),
    ],
)
def test_dead_variables(environment: dict[str, str], version: str, note: str | None) -> None:
    made = plan("llama-3.1-8b", hardware=instinct(), environment=environment, vllm=version)
    assert made.is_on("dead_variables") is (note is not None)
    if note is not None:
        (text,) = [text for text in made.notes if text.startswith("without effect in this vLLM")]
        assert next(iter(environment)) in text
        assert note in text


def test_dead_variables_are_dead() -> None:
    """None of them is declared by the installed vLLM, but for the one that is read in vain."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).with_name("envs.py").read_text(encoding="utf-8")
    declared = {
        dead.name
        for dead in DEAD_VARIABLES
        if f'"{dead.name}"' in source and dead.dead_in == ">=0.30"
    }
    assert declared == {"VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION"}


def test_each_is_named_once() -> None:
    names = [dead.name for dead in DEAD_VARIABLES]
    assert len(set(names)) == len(names)
