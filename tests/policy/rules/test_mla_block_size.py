"""Block size 1 for MLA: only where the backend that will be selected takes it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policy.situations import CURRENT_AITER, VIRTUAL, instinct, plan

WITH_AITER = {"aiter": CURRENT_AITER}
ON_MI300X: dict[str, Any] = {"hardware": instinct("gfx942"), **WITH_AITER}
AITER_ON = {"VLLM_ROCM_USE_AITER": "1"}


@pytest.mark.parametrize(
    ("options", "on", "reason"),
    [
        pytest.param({"hardware": VIRTUAL}, True, "", id="our MLA on a virtual device"),
        pytest.param({**ON_MI300X, "tensor_parallel_size": 8}, True, "", id="AITER by default"),
        pytest.param(
            {**ON_MI300X, "environment": AITER_ON}, True, "", id="AITER by the user's variable"
        ),
        pytest.param(
            {**ON_MI300X, "attention_backend": "ROCM_AITER_MLA"}, True, "", id="AITER's by name"
        ),
        pytest.param(
            {"hardware": instinct(), "environment": {"VLLM_AMDOPT_MLA": "on"}},
            True,
            "",
            id="our MLA switched on",
        ),
        pytest.param(
            {"hardware": instinct()},
            False,
            "without AITER vLLM selects TRITON_MLA, which needs multiples of 16 (block size 1 is "
            "a ValueError in vLLM 0.30 to 0.32)",
            id="no AITER",
        ),
        pytest.param(
            {**ON_MI300X, "environment": {"VLLM_ROCM_USE_AITER": "0"}},
            False,
            "without AITER vLLM selects TRITON_MLA",
            id="AITER off by the user's variable",
        ),
        pytest.param(
            {**ON_MI300X, "environment": {"VLLM_ROCM_USE_AITER_MLA": "0"}},
            False,
            "without AITER vLLM selects TRITON_MLA",
            id="AITER's MLA off by the user's variable",
        ),
        pytest.param(
            {"hardware": instinct(), "environment": AITER_ON},
            False,
            "without AITER vLLM selects TRITON_MLA",
            id="AITER on but not installed",
        ),
        pytest.param(
            {"hardware": instinct("gfx90a"), **WITH_AITER, "environment": AITER_ON},
            False,
            "without AITER vLLM selects TRITON_MLA",
            id="AITER on where vLLM does not use it",
        ),
        pytest.param(
            {**ON_MI300X, "attention_backend": "TRITON_MLA"},
            False,
            "--attention-backend TRITON_MLA is not known to take blocks of one token",
            id="another backend by name",
        ),
        pytest.param(
            {"hardware": VIRTUAL, "environment": {"VLLM_AMDOPT_MLA": "off"}},
            False,
            "vLLM's own MLA backend is selected here",
            id="stock on a CPU",
        ),
        pytest.param(
            {"hardware": VIRTUAL, "block_size": 64},
            False,
            "you gave --block-size 64",
            id="the user's size",
        ),
    ],
)
def test_mla_block_size(options: dict[str, Any], on: bool, reason: str) -> None:
    decision = plan("deepseek-v3", **options).decision("mla_block_size")
    assert decision.on is on
    assert dict(decision.settings) == ({"block_size": 1} if on else {})
    assert reason in decision.reason


@pytest.mark.parametrize("model", ["llama-3.1-8b", "deepseek-v3.2", "qwen3-next-80b-a3b"])
def test_block_size_is_left_alone_without_dense_mla(model: str) -> None:
    assert not plan(model, **ON_MI300X).is_on("mla_block_size")


def test_block_size_reason_says_where_it_is_not_required() -> None:
    reason = plan("deepseek-v3", **ON_MI300X).decision("mla_block_size").reason
    assert "since vLLM 0.30 the AITER backend takes any size" in reason
    assert "not required" in reason
