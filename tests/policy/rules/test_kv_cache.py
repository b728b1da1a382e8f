"""KV offload for GQA: its size, the backend it names, and all that holds it back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.policy.situations import CURRENT_AITER, NVIDIA, VIRTUAL, facts, instinct, plan

WITH_AITER = {"aiter": CURRENT_AITER}
ON_MI300X: dict[str, Any] = {"hardware": instinct("gfx942"), **WITH_AITER}
AITER_ON = {"VLLM_ROCM_USE_AITER": "1"}


@pytest.mark.parametrize(
    ("options", "gib"),
    [
        pytest.param({"max_model_len": 8192}, 32, id="8K"),
        pytest.param({"max_model_len": 32768}, 32, id="32K"),
        pytest.param({"max_model_len": 32769}, 64, id="just above 32K"),
        pytest.param({"max_model_len": 65536}, 64, id="64K"),
        pytest.param({}, 64, id="128K, the model's own: capped"),
        pytest.param({"hardware": instinct(host_gib=256)}, 64, id="a quarter is just enough"),
        pytest.param({"hardware": instinct(host_gib=255)}, 32, id="a quarter is not enough for 64"),
        pytest.param({"hardware": instinct(host_gib=128)}, 32, id="just enough for 32"),
        pytest.param({"data_parallel_size": 8}, 64, id="eight engines in 2 TiB: 512 GiB"),
        pytest.param(
            {"data_parallel_size": 8, "hardware": instinct(host_gib=1024)},
            32,
            id="eight engines in 1 TiB",
        ),
        pytest.param({"tensor_parallel_size": 8}, 64, id="eight ranks share one buffer"),
    ],
)
def test_offload_size(options: dict[str, Any], gib: int) -> None:
    decision = plan("llama-3.1-8b", **{**ON_MI300X, **options}).decision("kv_offload")
    assert decision.on, decision.reason
    assert decision.settings["kv_offloading_size"] == float(gib)


@pytest.mark.parametrize(
    ("model", "options", "backend"),
    [
        pytest.param("llama-3.1-8b", ON_MI300X, "ROCM_AITER_FA", id="AITER, head 128"),
        pytest.param(
            replace(facts("llama-3.1-8b"), head_size=96), ON_MI300X, "TRITON_ATTN", id="head 96"
        ),
        pytest.param("llama-3.1-8b", {"hardware": instinct()}, "TRITON_ATTN", id="no AITER"),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct("gfx90a"), **WITH_AITER},
            "TRITON_ATTN",
            id="MI250X",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "environment": AITER_ON},
            "ROCM_AITER_FA",
            id="AITER by the user's variable",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "environment": {"VLLM_ROCM_USE_AITER": "0"}},
            "TRITON_ATTN",
            id="AITER off by the user's variable",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "environment": {"VLLM_ROCM_USE_AITER_MHA": "0"}},
            "TRITON_ATTN",
            id="AITER's attention off by the user's variable",
        ),
        pytest.param(
            "llama-3.1-8b", {**ON_MI300X, "dtype": "float32"}, "TRITON_ATTN", id="float32"
        ),
        pytest.param(
            "gemma-3-27b",
            {**ON_MI300X, "max_model_len": 32768},
            "TRITON_ATTN",
            id="bidirectional images",
        ),
        pytest.param("gpt-oss-20b", ON_MI300X, "TRITON_ATTN", id="sinks"),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "environment": {"VLLM_AMDOPT_ATTENTION": "on"}},
            "AMDOPT_ATTN",
            id="our attention on",
        ),
        pytest.param(
            "minimax-m2",
            {**ON_MI300X, "tensor_parallel_size": 8},
            "TRITON_ATTN",
            id="AITER off for the experts' sake",
        ),
    ],
)
def test_offload_names_the_backend(model: Any, options: dict[str, Any], backend: str) -> None:
    decision = plan(model, **options).decision("kv_offload")
    assert decision.on, decision.reason
    assert decision.settings["attention_backend"] == backend


def test_offload_leaves_the_users_backend_alone() -> None:
    made = plan(**ON_MI300X, attention_backend="ROCM_AITER_UNIFIED_ATTN").decision("kv_offload")
    assert dict(made.settings) == {"kv_offloading_size": 64.0}


@pytest.mark.parametrize(
    ("model", "options", "origin", "reason"),
    [
        pytest.param(
            "llama-3.1-8b",
            {"hardware": VIRTUAL},
            "default",
            "the KV cache already lies in host memory",
            id="virtual device",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": NVIDIA},
            "default",
            "this only concerns AMD GPUs",
            id="NVIDIA",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct("gfx1201")},
            "default",
            "gfx1201 is not an AMD Instinct GPU",
            id="RDNA4",
        ),
        pytest.param(
            "deepseek-v3",
            {},
            "default",
            "the model has MLA, not GQA, MQA or MHA: copies would multiply",
            id="MLA",
        ),
        pytest.param("qwen3-next-80b-a3b", {}, "default", "the model has hybrid", id="hybrid"),
        pytest.param(
            "gemma-3-27b",
            {},
            "default",
            "the context length is not known, so no size can be chosen: set --max-model-len",
            id="context unknown",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct(host_gib=None)},
            "default",
            "the host's memory is not known: set --kv-offloading-size to use offloading",
            id="host memory unknown",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct(host_gib=127)},
            "default",
            "32 GiB would be more than a quarter of the host's 127 GiB of memory",
            id="small host",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct(host_gib=512), "data_parallel_size": 8},
            "default",
            "256 GiB (8 data-parallel engines) would be more than a quarter of the host's 512 GiB",
            id="many engines",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"kv_offload": True},
            "user",
            "you configured KV offloading or a KV connector yourself, which stays",
            id="the user's own",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"expandable_segments": True},
            "default",
            "expandable_segments is on, which vLLM refuses together with a KV connector",
            id="expandable segments",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"environment": {"PYTORCH_HIP_ALLOC_CONF": "a:1, expandable_segments : True"}},
            "default",
            "PYTORCH_HIP_ALLOC_CONF: expandable_segments is on",
            id="expandable segments in HIP's variable",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"attention_backend": "ROCM_ATTN"},
            "default",
            "--attention-backend ROCM_ATTN is not known to work with KV offloading",
            id="a backend that cannot",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"sleep_mode": True},
            "default",
            "you gave --enable-sleep-mode",
            id="sleep mode",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"prefix_caching": False},
            "default",
            "you switched prefix caching off",
            id="no prefix caching",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"pipeline_parallel_size": 2},
            "default",
            "pipeline parallel size is 2",
            id="pipeline stages",
        ),
        pytest.param(
            replace(facts("llama-3.1-8b"), attention="mqa", num_kv_heads=1),
            {"tensor_parallel_size": 8},
            "default",
            "8 tensor-parallel ranks share 1 KV heads, so each would be offloaded 8 times",
            id="one KV head on eight ranks",
        ),
        pytest.param(
            replace(facts("llama-3.1-8b"), attention="mha", num_kv_heads=32),
            {},
            "default",
            "the model has MHA, not GQA or MQA: offloading is only reported to gain for GQA",
            id="MHA",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"vllm": "0.34.0"},
            "default",
            "checked for vLLM >=0.30,<0.34, this is 0.34.0",
            id="vLLM to come",
        ),
    ],
)
def test_offload_off(model: Any, options: dict[str, Any], origin: str, reason: str) -> None:
    decision = plan(model, **{"hardware": instinct(), **options}).decision("kv_offload")
    assert not decision.on
    assert decision.origin == origin
    assert reason in decision.reason


def test_two_copies_of_a_kv_head_are_borne() -> None:
    """Four KV heads on eight ranks: the layout of the published gain (Qwen3-VL-235B at TP 8)."""
    made = plan(replace(facts("llama-3.1-8b"), num_kv_heads=4), instinct(), tensor_parallel_size=8)
    assert made.is_on("kv_offload")


def test_offload_can_be_forced_for_mha() -> None:
    model = replace(facts("llama-3.1-8b"), attention="mha", num_kv_heads=32)
    decision = plan(model, instinct(), environment={"VLLM_AMDOPT_KV_OFFLOAD": "on"}).decision(
        "kv_offload"
    )
    assert decision.on
    assert decision.settings["kv_offloading_size"] == 64.0
