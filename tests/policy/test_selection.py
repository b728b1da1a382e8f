"""The predicted attention backend: stock, and under our plan; compared with vLLM in integration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.situations import (
    CURRENT_AITER,
    NVIDIA,
    VIRTUAL,
    facts,
    instinct,
    situation,
)
from vllm_amdopt.policy.attention_backends import BACKENDS, ROCM_AITER_FA, Layer
from vllm_amdopt.policy.plan import make_plan
from vllm_amdopt.policy.selection import (
    decoder_layer,
    in_order,
    planned,
    predict_attention,
    stock,
)

LLAMA = facts("llama-3.1-8b")
ON_MI300X: dict[str, Any] = {"hardware": instinct(), "aiter": CURRENT_AITER}
AITER_ON = {"environment": {"VLLM_ROCM_USE_AITER": "1"}}


@pytest.mark.parametrize(
    ("model", "options", "name", "block_size"),
    [
        pytest.param("llama-3.1-8b", {}, "ROCM_ATTN", 16, id="GQA"),
        pytest.param("llama-3.1-8b", AITER_ON, "ROCM_ATTN", 16, id="GQA, AITER on"),
        pytest.param(
            "llama-3.1-8b", {"kv_offload": True}, "ROCM_AITER_UNIFIED_ATTN", 64, id="GQA, connector"
        ),
        pytest.param(
            "llama-3.1-8b",
            {"kv_offload": True, **AITER_ON},
            "ROCM_AITER_FA",
            16,
            id="GQA, connector, AITER on",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"kv_offload": True, "aiter": None},
            "TRITON_ATTN",
            16,
            id="GQA, connector, no AITER",
        ),
        pytest.param("gpt-oss-20b", {}, "ROCM_AITER_UNIFIED_ATTN", 64, id="sinks"),
        pytest.param("gpt-oss-20b", AITER_ON, "ROCM_AITER_FA", 16, id="sinks, AITER on"),
        pytest.param("gemma-3-27b", {}, "TRITON_ATTN", 16, id="two-way images"),
        pytest.param(
            "gemma-3-27b", {"vllm": "0.31.0"}, "ROCM_ATTN", 16, id="two-way images, ignored by 0.31"
        ),
        pytest.param("deepseek-v3", {}, "TRITON_MLA", 16, id="MLA"),
        pytest.param("deepseek-v3", AITER_ON, "ROCM_AITER_MLA", 16, id="MLA, AITER on"),
        pytest.param(
            "deepseek-v3", {**AITER_ON, "block_size": 1}, "ROCM_AITER_MLA", 1, id="MLA, block 1"
        ),
        pytest.param("deepseek-v3.2", {}, "ROCM_AITER_MLA_SPARSE", None, id="sparse MLA"),
        pytest.param("qwen3-next-80b-a3b", {}, "ROCM_ATTN", None, id="hybrid"),
        pytest.param(replace(LLAMA, encoder_only=True), AITER_ON, "ROCM_ATTN", 16, id="encoder"),
        pytest.param(
            replace(LLAMA, encoder_decoder=True), {}, "ROCM_AITER_UNIFIED_ATTN", 64, id="two parts"
        ),
        pytest.param(
            "llama-3.1-8b",
            {"environment": {"VLLM_BATCH_INVARIANT": "1"}},
            "TRITON_ATTN",
            16,
            id="batch invariance",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct("gfx1201"), **AITER_ON},
            "ROCM_AITER_UNIFIED_ATTN",
            64,
            id="RDNA4, AITER on",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct("gfx1100"), **AITER_ON},
            "ROCM_ATTN",
            16,
            id="RDNA3",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"attention_backend": "TRITON_ATTN", "block_size": 32},
            "TRITON_ATTN",
            32,
            id="the user's backend and block size",
        ),
    ],
)
def test_stock(model: Any, options: dict[str, Any], name: str, block_size: int | None) -> None:
    found = stock(situation(model, **{**ON_MI300X, **options}))
    assert (found.name, found.block_size) == (name, block_size)
    assert found.valid[0] == name
    assert not found.raises


@pytest.mark.parametrize(
    ("model", "options", "refusals"),
    [
        pytest.param(
            "llama-3.1-8b",
            {"block_size": 1, "aiter": None},
            {
                "ROCM_ATTN": ("block_size not supported",),
                "TRITON_ATTN": ("block_size not supported",),
            },
            id="block size 1",
        ),
        pytest.param(
            "deepseek-v3",
            {"block_size": 1},
            {"TRITON_MLA": ("block_size not supported",)},
            id="MLA, block size 1",
        ),
        pytest.param(
            "deepseek-v3",
            {"kv_cache_dtype": "fp8_e5m2"},
            {"TRITON_MLA": ("kv_cache_dtype not supported",)},
            id="MLA, e5m2",
        ),
        pytest.param(
            "gpt-oss-20b",
            {"attention_backend": "ROCM_ATTN"},
            {"ROCM_ATTN": ("attention sinks not supported",)},
            id="a chosen backend that cannot",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"attention_backend": "ROCM_AITER_FA", "aiter": None, "vllm": "0.31.0"},
            {"ROCM_AITER_FA": ("ImportError",)},
            id="a module that imports AITER",
        ),
    ],
)
def test_stock_that_raises(
    model: Any, options: dict[str, Any], refusals: dict[str, tuple[str, ...]]
) -> None:
    found = stock(situation(model, **{**ON_MI300X, **options}))
    assert found.raises
    assert found.name is None
    assert dict(found.refusals) == refusals


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [
        pytest.param("llama-3.1-8b", {"hardware": NVIDIA}, "not vLLM's ROCm platform", id="NVIDIA"),
        pytest.param(None, {}, "the model's attention layers are not known", id="no model"),
        pytest.param(
            "deepseek-v3",
            {"environment": {"VLLM_MLA_DISABLE": "1"}},
            "the model's attention layers are not known",
            id="MLA disabled",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"kv_cache_dtype": "turboquant_4bit_nc"},
            "has backends of its own",
            id="packed cache",
        ),
        pytest.param(
            "llama-3.1-8b", {"attention_backend": "FLEX_ATTENTION"}, "not one of vLLM's", id="other"
        ),
    ],
)
def test_nothing_is_predicted(model: Any, options: dict[str, Any], why: str) -> None:
    found = stock(situation(model, **{**ON_MI300X, **options}))
    assert found.name is None
    assert not found.raises
    assert why in str(found.why)


@pytest.mark.parametrize(
    ("model", "options", "name", "block_size"),
    [
        pytest.param("llama-3.1-8b", ON_MI300X, "ROCM_AITER_FA", 16, id="GQA"),
        pytest.param("deepseek-v3", ON_MI300X, "ROCM_AITER_MLA", 1, id="MLA, our block size"),
        pytest.param(
            "deepseek-v3", {"hardware": instinct()}, "TRITON_MLA", 16, id="MLA without AITER"
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "block_size": 1},
            "ROCM_AITER_FA",
            16,
            id="a block size that was dropped",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "attention_backend": "ROCM_ATTN"},
            "ROCM_ATTN",
            16,
            id="the user's backend",
        ),
        pytest.param("llama-3.1-8b", {"hardware": VIRTUAL}, "AMDOPT_ATTN", 16, id="ours"),
        pytest.param("deepseek-v3", {"hardware": VIRTUAL}, "AMDOPT_MLA", 1, id="our MLA"),
    ],
)
def test_planned(model: str, options: dict[str, Any], name: str, block_size: int) -> None:
    asked = situation(model, **options)
    found = planned(asked, make_plan(asked))
    assert (found.name, found.block_size) == (name, block_size)


def test_order_moves_valid_candidates_only() -> None:
    assert in_order(("A", "B", "C"), ("C", "X", "A")) == ("C", "A", "B")
    assert in_order(("A", "B"), ()) == ("A", "B")
    found = predict_attention(
        situation("llama-3.1-8b", **ON_MI300X),
        aiter_on=True,
        attention_order=("TRITON_MLA", "ROCM_AITER_UNIFIED_ATTN"),
    )
    assert found.valid == (
        "ROCM_AITER_UNIFIED_ATTN",
        "ROCM_ATTN",
        "ROCM_AITER_FA",
        "TRITON_ATTN",
    )


def test_layer_of_a_model() -> None:
    assert decoder_layer(situation("gpt-oss-20b", dtype="bfloat16")) == Layer(
        head_size=64, has_sink=True, has_sliding_window=True
    )
    assert decoder_layer(situation("deepseek-v3.2")) == Layer(
        head_size=576, use_mla=True, use_sparse=True
    )
    assert decoder_layer(situation(replace(LLAMA, attention="none"))) is None
    deepseek_v4 = replace(facts("deepseek-v3.2"), kv_lora_rank=None)
    assert decoder_layer(situation(deepseek_v4)) is None, "it does not ask the selector"


def test_refusals_are_said_in_vllms_words_and_all_at_once() -> None:
    layer = Layer(head_size=80, dtype="float32", block_size=40, attn_type="encoder_only")
    assert ROCM_AITER_FA.refusals(layer, gfx="gfx90a", aiter=True, vllm="0.32.0") == (
        "head_size not supported",
        "dtype not supported",
        "block_size not supported",
        "compute capability not supported",
        "attention type encoder_only not supported",
    )


def test_every_backend_names_its_source() -> None:
    for name, backend in BACKENDS.items():
        assert backend.name == name
        assert backend.source.startswith("v1/attention/backends/")
