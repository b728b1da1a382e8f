"""The prediction of vLLM's expert selection, against what its own oracles answered.

The expected answers were taken from vLLM 0.30.0, 0.31.0 and 0.32.0, run on a simulated machine:
its oracles answered 8850 questions (formats, widths, ranks, backends, GPUs, AITER variables) as the
prediction does, where it predicts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.situations import CURRENT_AITER, facts, instinct, situation
from vllm_amdopt.policy.moe_selection import (
    ExpertSelection,
    experts_of,
    predict_experts,
    predict_now,
)

MINIMAX = facts("minimax-m2")  # native block-FP8, 1536 wide
PLAIN = facts("glm-4.5")
OTHER_FORMAT = replace(MINIMAX, quantization="compressed-tensors")
GPT_OSS = facts("gpt-oss-20b")
STOCK = {"aiter": False, "aiter_moe": True, "aiter_explicit": False, "moe_backend": None}
AITER = {"aiter": True, "aiter_moe": True, "aiter_explicit": True, "moe_backend": None}
WITHOUT_EXPERTS = {**AITER, "aiter_moe": False}
BY_NAME = {**AITER, "moe_backend": "aiter"}
EIGHT = {"tensor_parallel_size": 8}
EIGHT_APART = {**EIGHT, "expert_parallel": True}


def ask(
    model: Any, arm: dict[str, Any], version: str = "0.32.0", gfx: str = "gfx942", **choices: Any
) -> ExpertSelection:
    asked = situation(model, instinct(gfx), aiter=CURRENT_AITER, vllm=version, **choices)
    return predict_experts(asked, **arm, version=version)


@pytest.mark.parametrize(
    ("model", "arm", "version", "choices", "backend"),
    [
        pytest.param(MINIMAX, STOCK, "0.32.0", EIGHT, "TRITON", id="refined, stock"),
        pytest.param(MINIMAX, AITER, "0.32.0", EIGHT_APART, "AITER", id="whole, AITER"),
        pytest.param(MINIMAX, WITHOUT_EXPERTS, "0.30.0", EIGHT, "TRITON", id="AITER_MOE=0"),
        pytest.param(MINIMAX, BY_NAME, "0.31.0", EIGHT, "AITER", id="padded since 0.31"),
        pytest.param(MINIMAX, BY_NAME, "0.32.0", EIGHT, "AITER", id="padded"),
        pytest.param(PLAIN, STOCK, "0.30.0", EIGHT, "TRITON", id="unquantized, stock"),
        pytest.param(PLAIN, AITER, "0.30.0", EIGHT, "AITER", id="unquantized, AITER"),
        pytest.param(
            PLAIN, AITER, "0.32.0", {**EIGHT, "lora": True}, "TRITON", id="unquantized, LoRA"
        ),
        pytest.param(GPT_OSS, STOCK, "0.32.0", EIGHT, "TRITON", id="mxfp4, stock"),
        pytest.param(
            GPT_OSS, AITER, "0.32.0", EIGHT, "AITER_TRITON_MXFP4_BF16", id="mxfp4, gfx942"
        ),
        pytest.param(GPT_OSS, AITER, "0.32.0", EIGHT_APART, "TRITON", id="mxfp4, experts apart"),
        pytest.param(
            GPT_OSS,
            AITER,
            "0.30.0",
            EIGHT_APART,
            "AITER_TRITON_MXFP4_BF16",
            id="mxfp4, experts apart, before 0.31",
        ),
        pytest.param("llama-3.1-8b", AITER, "0.32.0", EIGHT, None, id="dense"),
        pytest.param("kimi-k2.5", AITER, "0.32.0", EIGHT, None, id="int4: not retold"),
    ],
)
def test_backend(
    model: Any, arm: dict[str, Any], version: str, choices: dict[str, Any], backend: str | None
) -> None:
    assert ask(model, arm, version, **choices) == ExpertSelection(backend)


def test_backend_of_mxfp4_on_gfx950() -> None:
    assert ask(GPT_OSS, AITER, gfx="gfx950", **EIGHT).backend == "AITER_MXFP4_BF16"
    without = ask(GPT_OSS, WITHOUT_EXPERTS, gfx="gfx950", **EIGHT)
    assert without.backend == "AITER_TRITON_MXFP4_BF16"


@pytest.mark.parametrize(
    ("model", "arm", "version", "choices", "sentence"),
    [
        pytest.param(MINIMAX, AITER, "0.32.0", EIGHT, "backend AITER does not", id="AITER=1"),
        pytest.param(MINIMAX, BY_NAME, "0.30.0", EIGHT, "backend AITER does not", id="0.30"),
        pytest.param(
            MINIMAX,
            BY_NAME,
            "0.32.0",
            {**EIGHT, "lora": True},
            "requires 128-aligned global expert dimensions, pure TP, and no LoRA",
            id="padding with LoRA",
        ),
        pytest.param(
            OTHER_FORMAT, STOCK, "0.32.0", EIGHT, "192 is not divisible", id="another format"
        ),
        pytest.param(
            OTHER_FORMAT,
            WITHOUT_EXPERTS,
            "0.32.0",
            EIGHT,
            "192 is not divisible",
            id="AITER_MOE=0 does not help another format",
        ),
        pytest.param(
            MINIMAX,
            {**STOCK, "moe_backend": "aiter"},
            "0.32.0",
            EIGHT,
            "AITER MoE is not enabled",
            id="by name without AITER",
        ),
        pytest.param(
            MINIMAX,
            {**STOCK, "moe_backend": "marlin"},
            "0.32.0",
            {},
            "MARLIN does not support",
            id="a backend for NVIDIA",
        ),
        pytest.param(
            "kimi-k2.5",
            BY_NAME,
            "0.32.0",
            EIGHT,
            "not supported for WNA16 MoE",
            id="int4 by name",
        ),
        pytest.param(PLAIN, STOCK, "0.32.0", {"tensor_parallel_size": 7}, "by 7 ranks", id="seven"),
    ],
)
def test_sentence(
    model: Any, arm: dict[str, Any], version: str, choices: dict[str, Any], sentence: str
) -> None:
    selection = ask(model, arm, version, **choices)
    assert selection.backend is None
    assert sentence in (selection.raises or "")


@pytest.mark.parametrize(
    ("version", "backend", "raises"),
    [
        pytest.param("0.30.0", None, "Unquantized MoE backend ROCm AITER", id="0.30 ends"),
        pytest.param("0.31.0", "TRITON", "", id="0.31 falls back"),
    ],
)
def test_unquantized_without_the_library(version: str, backend: str | None, raises: str) -> None:
    asked = situation(PLAIN, instinct(), vllm=version, **EIGHT)
    selection = predict_experts(asked, **AITER, version=version)
    assert selection.backend == backend
    assert raises in (selection.raises or "")


def test_experts_as_a_rank_holds_them() -> None:
    both = experts_of(situation(MINIMAX, data_parallel_size=2, tensor_parallel_size=4))
    assert both is not None
    assert (both.width, both.ranks, both.padded) == (192, 8, 256)
    apart = experts_of(situation(MINIMAX, **EIGHT_APART))
    assert apart is not None
    assert (apart.width, apart.ranks, apart.expert_parallel) == (1536, 1, True)
    assert experts_of(situation("llama-3.1-8b")) is None
    assert experts_of(situation(None)) is None


def test_prediction_sees_what_the_plan_has_set() -> None:
    asked = situation(MINIMAX, instinct(), aiter=CURRENT_AITER, **EIGHT)
    assert predict_now(asked).backend == "TRITON"
    switched = replace(asked, values={"env.VLLM_ROCM_USE_AITER": "1"})
    assert predict_now(switched).raises
    padded = replace(switched, values={**switched.values, "moe_backend": "aiter"})
    assert predict_now(padded).backend == "AITER"
    assert predict_now(switched, aiter_moe=False).backend == "TRITON"
