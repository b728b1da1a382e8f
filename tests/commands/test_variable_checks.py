"""Findings about the environment: switches, unknown, dead and contradictory variables."""

from __future__ import annotations

import pytest

from tests.commands.situations import (
    assert_finding,
    environment,
)
from vllm_amdopt.commands import variable_checks
from vllm_amdopt.commands.facts import Facts
from vllm_amdopt.commands.findings import Severity


@pytest.mark.parametrize(
    ("facts", "check", "severity", "words"),
    [
        pytest.param(
            environment(VLLM_AMDOPT_MLE="on"), "switches", "wrong", "VLLM_AMDOPT_MLE", id="misspelt"
        ),
        pytest.param(
            environment(VLLM_ROCM_USE_AITR="1"),
            "vllm variables",
            "advice",
            "did you mean VLLM_ROCM_USE_AITER?",
            id="misspelt variable of vllm",
        ),
        pytest.param(
            environment(HIP_VISIBLE_DEVICES="0", CUDA_VISIBLE_DEVICES="1"),
            "contradictions",
            "wrong",
            "differ: vLLM does not start",
            id="two lists of devices",
        ),
        pytest.param(
            environment(HSA_OVERRIDE_GFX_VERSION="11.0.0"),
            "contradictions",
            "wrong",
            "pass for another one",
            id="override",
        ),
        pytest.param(
            environment(TRITON_INTERPRET="1"),
            "contradictions",
            "wrong",
            "in Python",
            id="interpret",
        ),
        pytest.param(
            environment(VLLM_TARGET_DEVICE="cpu"), "contradictions", "wrong", "keeps", id="target"
        ),
        pytest.param(
            environment(VLLM_ROCM_QUICK_REDUCE_QUANTIZATION="INT5"),
            "contradictions",
            "wrong",
            "INT5 is not one of",
            id="quick reduce",
        ),
        pytest.param(
            environment(VLLM_ROCM_USE_AITER="0", VLLM_ROCM_USE_AITER_MLA="1"),
            "contradictions",
            "advice",
            "so VLLM_ROCM_USE_AITER_MLA has no effect",
            id="aiter without its master",
        ),
        pytest.param(
            environment(ROCR_VISIBLE_DEVICES="0", HIP_VISIBLE_DEVICES="0"),
            "contradictions",
            "advice",
            "renumbers",
            id="rocr and hip",
        ),
        pytest.param(
            environment(VLLM_AMDOPT_INJECT_FAULT="attention_forward:scale=1.01"),
            "injected fault",
            "wrong",
            "answers are wrong on purpose",
            id="answers made wrong",
        ),
        pytest.param(
            environment(VLLM_AMDOPT_INJECT_FAULT="gemm_bind"),
            "injected fault",
            "wrong",
            "a part of the plugin fails",
            id="failing hook",
        ),
    ],
)
def test_finding(facts: Facts, check: str, severity: Severity, words: str) -> None:
    assert_finding(facts, check, severity, words)


def test_dead_variables_are_said_with_their_replacement() -> None:
    finding = variable_checks.vllm_variables(
        environment(VLLM_USE_TRITON_FLASH_ATTN="0"),
        dead=lambda: {"VLLM_USE_TRITON_FLASH_ATTN": "choose with --attention-backend"},
    )
    assert finding is not None and finding.severity == "advice"
    assert finding.sentence == (
        "VLLM_USE_TRITON_FLASH_ATTN has no effect any more: choose with --attention-backend"
    )
