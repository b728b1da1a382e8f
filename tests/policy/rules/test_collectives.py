"""All-reduce: the fused one off where it is wrong, QuickReduce's real gates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.situations import CURRENT_AITER, NVIDIA, facts, instinct, plan, situation
from vllm_amdopt.policy.rules.collectives import (
    QUICK_REDUCE_CODECS,
    QUICK_REDUCE_MINIMUM_MIB,
    quick_reduce_gate,
)

MI300X: dict[str, Any] = {"hardware": instinct("gfx942"), "aiter": CURRENT_AITER}
MI355X: dict[str, Any] = {"hardware": instinct("gfx950"), "aiter": CURRENT_AITER}
EIGHT: dict[str, Any] = {**MI300X, "tensor_parallel_size": 8}
MINIMAX_M3 = replace(
    facts("minimax-m2"), architecture="MiniMaxM3SparseForCausalLM", model_type="minimax_m3_text"
)
QUICK = "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION"
CAST = "VLLM_ROCM_QUICK_REDUCE_CAST_BF16_TO_FP16"
MINIMUM = "VLLM_ROCM_QUICK_REDUCE_MIN_SIZE_BYTES_MB"
MAXIMUM = "VLLM_ROCM_QUICK_REDUCE_MAX_SIZE_BYTES_MB"


# --- all-reduce fused with RMSNorm ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "settings"),
    [
        pytest.param("deepseek-v3", EIGHT, {"fuse_allreduce_rms": False}, id="the pass alone"),
        pytest.param(
            "deepseek-v3",
            {**EIGHT, "environment": {"VLLM_ROCM_USE_AITER": "1"}},
            {"fuse_allreduce_rms": False},
            id="the user's own AITER=1",
        ),
        pytest.param(
            MINIMAX_M3,
            EIGHT,
            {"fuse_allreduce_rms": False, "env.VLLM_ROCM_USE_AITER_CUSTOM_AR": "0"},
            id="a model that calls the kernel itself",
        ),
    ],
)
def test_fused_all_reduce_is_off_on_gfx942(
    model: Any, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    decision = plan(model, **options).decision("fused_all_reduce")
    assert decision.on, decision.reason
    assert dict(decision.settings) == settings


@pytest.mark.parametrize(
    ("options", "origin", "reason"),
    [
        pytest.param(
            {**MI355X, "tensor_parallel_size": 8}, "default", "on gfx942 alone", id="gfx950"
        ),
        pytest.param(MI300X, "default", "tensor parallel size is 1", id="one GPU"),
        pytest.param(
            {"hardware": instinct(), "tensor_parallel_size": 8},
            "default",
            "AITER is off",
            id="no AITER",
        ),
        pytest.param(
            {**EIGHT, "environment": {"VLLM_ROCM_USE_AITER_CUSTOM_AR": "0"}},
            "default",
            "VLLM_ROCM_USE_AITER_CUSTOM_AR=0 already keeps vLLM from fusing",
            id="the user's AITER has no all-reduce",
        ),
        pytest.param(
            {**EIGHT, "disable_custom_all_reduce": True},
            "default",
            "--disable-custom-all-reduce already",
            id="no custom all-reduce",
        ),
        pytest.param(
            {**EIGHT, "fuse_allreduce_rms": True},
            "user",
            "you set pass_config.fuse_allreduce_rms=True, which stays",
            id="the user chose",
        ),
        pytest.param(
            {"hardware": NVIDIA, "tensor_parallel_size": 8}, "default", "AMD GPUs", id="NVIDIA"
        ),
    ],
)
def test_fused_all_reduce_stays(options: dict[str, Any], origin: str, reason: str) -> None:
    decision = plan("deepseek-v3", **options).decision("fused_all_reduce")
    assert not decision.on
    assert decision.origin == origin
    assert reason in decision.reason


# --- QuickReduce ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "choices", "minimum", "casts"),
    [
        pytest.param({QUICK: "INT4"}, {"tensor_parallel_size": 8}, 2, True, id="cast to float16"),
        pytest.param(
            {QUICK: "INT4", CAST: "0"}, {"tensor_parallel_size": 4}, 16, False, id="bfloat16"
        ),
        pytest.param(
            {QUICK: "INT3"}, {"tensor_parallel_size": 2, "dtype": "float16"}, 1, False, id="fp16"
        ),
        pytest.param(
            {QUICK: "INT8", CAST: "0", MINIMUM: "4"},
            {"tensor_parallel_size": 8},
            4,
            False,
            id="the user's size",
        ),
    ],
)
def test_gate_opens_at(
    environment: dict[str, str], choices: dict[str, Any], minimum: int, casts: bool
) -> None:
    asked = situation("deepseek-v3", instinct(), environment=environment, **choices)
    gate = quick_reduce_gate(asked)
    assert (gate.minimum_mib, gate.never, gate.casts) == (minimum, None, casts)


@pytest.mark.parametrize(
    ("environment", "choices", "never"),
    [
        pytest.param(
            {QUICK: "INT4", CAST: "0"},
            {"tensor_parallel_size": 8},
            "waits for messages of 2048 MiB",
            id="quantized bfloat16 on eight ranks",
        ),
        pytest.param({QUICK: "INT3"}, {"tensor_parallel_size": 8}, "use INT4", id="INT3 on eight"),
        pytest.param({QUICK: "FP"}, {"tensor_parallel_size": 6}, "there are 6", id="six ranks"),
        pytest.param({QUICK: "NONE"}, {"tensor_parallel_size": 8}, "leaves it off", id="off"),
        pytest.param(
            {QUICK: "FP"},
            {"tensor_parallel_size": 8, "disable_custom_all_reduce": True},
            "--disable-custom-all-reduce",
            id="no custom all-reduce",
        ),
        pytest.param(
            {QUICK: "FP"},
            {"tensor_parallel_size": 8, "dtype": "float32"},
            "not in float32",
            id="float32",
        ),
    ],
)
def test_gate_never_opens(environment: dict[str, str], choices: dict[str, Any], never: str) -> None:
    asked = situation("deepseek-v3", instinct(), environment=environment, **choices)
    assert never in (quick_reduce_gate(asked).never or "")


def test_gate_table_is_complete() -> None:
    assert len(QUICK_REDUCE_MINIMUM_MIB) == 6
    for sizes in QUICK_REDUCE_MINIMUM_MIB.values():
        assert len(sizes) == len(QUICK_REDUCE_CODECS)


@pytest.mark.parametrize(
    ("environment", "note"),
    [
        pytest.param(
            {QUICK: "INT4", CAST: "0"},
            "QUANTIZATION=INT4 never takes effect: INT4 on 8 ranks in bfloat16",
            id="dead",
        ),
        pytest.param({QUICK: "INT4"}, "can overflow to inf (vllm#55345)", id="overflow"),
        pytest.param({QUICK: "FP", CAST: "0"}, None, id="runs as asked"),
        pytest.param({}, None, id="not asked"),
    ],
)
def test_quick_reduce_is_advised_on(environment: dict[str, str], note: str | None) -> None:
    made = plan("deepseek-v3", **EIGHT, environment=environment)
    assert made.is_on("quick_reduce_check") is (note is not None)
    assert not [text for text in made.notes if "QUICK_REDUCE" in text and note is None]
    assert note is None or [text for text in made.notes if note in text]


@pytest.mark.parametrize(
    ("environment", "refusal"),
    [
        pytest.param({QUICK: "INT5"}, "INT5 is not one of FP, INT8", id="no such codec"),
        pytest.param({QUICK: "FP", MINIMUM: "-1"}, "-1 is negative", id="negative"),
        pytest.param(
            {QUICK: "FP", MINIMUM: "64", MAXIMUM: "32"}, "largest message, 32 MiB", id="crossed"
        ),
        pytest.param({QUICK: "FP", MINIMUM: "16"}, None, id="fits"),
        pytest.param({MINIMUM: "-1"}, None, id="not asked"),
    ],
)
def test_sizes_that_vllm_raises_on(environment: dict[str, str], refusal: str | None) -> None:
    refusals = plan("deepseek-v3", **EIGHT, environment=environment).refusals
    if refusal is None:
        assert not refusals
    else:
        assert len(refusals) == 1
        assert refusal in refusals[0]


ASKED = {"VLLM_AMDOPT_QUICK_REDUCE": "on"}


@pytest.mark.parametrize(
    ("model", "options", "codec"),
    [
        pytest.param("kimi-k2.5", {**EIGHT, "environment": ASKED}, "INT4", id="Kimi-K2.5"),
        pytest.param(
            MINIMAX_M3,
            {**MI355X, "tensor_parallel_size": 8, "environment": ASKED},
            "INT6",
            id="MiniMax-M3",
        ),
        pytest.param("kimi-k2.5", EIGHT, None, id="lossy, so not by default"),
        pytest.param(
            "kimi-k2.5",
            {**MI300X, "tensor_parallel_size": 4, "environment": ASKED},
            None,
            id="four",
        ),
        pytest.param("deepseek-v3", {**EIGHT, "environment": ASKED}, None, id="no recipe"),
        pytest.param(
            "kimi-k2.5", {**EIGHT, "environment": {**ASKED, QUICK: "FP"}}, None, id="the user's"
        ),
    ],
)
def test_quick_reduce_by_recipe(model: Any, options: dict[str, Any], codec: str | None) -> None:
    decision = plan(model, **options).decision("quick_reduce")
    assert dict(decision.settings) == ({} if codec is None else {f"env.{QUICK}": codec})


# --- fused_all_reduce_without_aiter --------------------------------------------------------------

ASKED: dict[str, Any] = {"tensor_parallel_size": 8, "fuse_allreduce_rms": True}


def test_a_fusion_that_does_not_exist_is_left_out() -> None:
    made = plan("llama-3.1-8b", instinct("gfx942"), **ASKED)
    assert made.settings["fuse_allreduce_rms"] is False
    assert [warning for warning in made.warnings if "AllReduceFusionPass" in warning]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"fuse_allreduce_rms": None}, id="not asked for"),
        pytest.param({"enforce_eager": True}, id="nothing is compiled"),
        pytest.param({"patches": ("0004",)}, id="the patch leaves it out"),
        pytest.param({"aiter": CURRENT_AITER}, id="AITER has it"),
    ],
)
def test_a_fusion_is_left_alone(options: dict[str, Any]) -> None:
    made = plan("llama-3.1-8b", instinct("gfx950"), **{**ASKED, **options})
    assert not made.is_on("fused_all_reduce_without_aiter")
    assert "fuse_allreduce_rms" not in made.settings
