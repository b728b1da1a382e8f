"""KV offload: its size, the attention that follows, what holds it back; layout and FP8 cache."""

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
    plan,
    situation,
)
from vllm_amdopt.policy.plan import make_plan
from vllm_amdopt.policy.selection import planned

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


AFTER_ROCM_ATTN = "ROCM_ATTN takes no KV connector, so {} follows and is put first"


@pytest.mark.parametrize(
    ("model", "options", "backend", "remark"),
    [
        pytest.param(
            "llama-3.1-8b",
            ON_MI300X,
            "ROCM_AITER_FA",
            "attention stays with ROCM_AITER_FA",
            id="AITER, head 128",
        ),
        pytest.param(
            replace(facts("llama-3.1-8b"), head_size=96),
            ON_MI300X,
            "ROCM_AITER_UNIFIED_ATTN",
            "attention stays with ROCM_AITER_UNIFIED_ATTN",
            id="head 96",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct()},
            "TRITON_ATTN",
            AFTER_ROCM_ATTN.format("TRITON_ATTN"),
            id="no AITER",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"hardware": instinct("gfx90a"), **WITH_AITER},
            "TRITON_ATTN",
            AFTER_ROCM_ATTN.format("TRITON_ATTN"),
            id="MI250X",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "environment": AITER_ON},
            "ROCM_AITER_FA",
            "attention stays with ROCM_AITER_FA",
            id="AITER by the user's variable",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "environment": {"VLLM_ROCM_USE_AITER": "0"}},
            "ROCM_AITER_UNIFIED_ATTN",
            AFTER_ROCM_ATTN.format("ROCM_AITER_UNIFIED_ATTN"),
            id="AITER off by the user's variable, but installed",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "environment": {"VLLM_ROCM_USE_AITER_MHA": "0"}},
            "ROCM_AITER_UNIFIED_ATTN",
            "attention stays with ROCM_AITER_UNIFIED_ATTN",
            id="AITER's attention off by the user's variable",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "dtype": "float32"},
            "TRITON_ATTN",
            AFTER_ROCM_ATTN.format("TRITON_ATTN"),
            id="float32",
        ),
        pytest.param(
            "gemma-3-27b",
            {**ON_MI300X, "max_model_len": 32768},
            "TRITON_ATTN",
            "attention stays with TRITON_ATTN",
            id="two-way image tokens",
        ),
        pytest.param(
            "gpt-oss-20b",
            ON_MI300X,
            "ROCM_AITER_UNIFIED_ATTN",
            "attention stays with ROCM_AITER_UNIFIED_ATTN",
            id="sinks",
        ),
        pytest.param(
            "llama-3.1-8b",
            {**ON_MI300X, "environment": {"VLLM_AMDOPT_ATTENTION": "on"}},
            "AMDOPT_ATTN",
            "",
            id="our attention on",
        ),
    ],
)
def test_offload_says_which_attention_follows(
    model: Any, options: dict[str, Any], backend: str, remark: str
) -> None:
    environment = {**options.get("environment", {}), "VLLM_AMDOPT_KV_OFFLOAD": "on"}
    asked = situation(model, **{**options, "environment": environment})
    made = make_plan(asked)
    decision = made.decision("kv_offload")
    assert decision.on, decision.reason
    assert "attention_backend" not in made.settings
    assert planned(asked, made).name == backend
    assert remark in decision.reason


def test_offload_puts_the_backend_first_that_vllm_would_select_in_silence() -> None:
    made = plan(hardware=instinct(), environment={"VLLM_AMDOPT_KV_OFFLOAD": "on"})
    assert made.settings["attention_order"] == "TRITON_ATTN"
    assert made.decision("kv_offload").settings == {
        "kv_offloading_size": 64.0,
        "attention_order": "TRITON_ATTN",
    }


def test_offload_leaves_the_order_of_an_earlier_rule_alone() -> None:
    made = plan(**ON_MI300X)
    assert made.settings["attention_order"] == "ROCM_AITER_FA,ROCM_AITER_UNIFIED_ATTN"
    assert made.decision("kv_offload").settings == {"kv_offloading_size": 64.0}


def test_offload_leaves_the_users_backend_alone() -> None:
    made = plan(**ON_MI300X, attention_backend="ROCM_AITER_UNIFIED_ATTN")
    assert dict(made.decision("kv_offload").settings) == {"kv_offloading_size": 64.0}
    assert "attention_order" not in made.settings


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
            {"tensor_parallel_size": 8},
            "default",
            "the model has MLA, not GQA, MQA or MHA: copies would multiply",
            id="MLA",
        ),
        pytest.param(
            "deepseek-v2-lite", {}, "default", "its cache is small, and nobody", id="MLA, one rank"
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
            "llama-3.1-8b", {}, "default", "ROCM_ATTN takes no KV connector", id="no AITER"
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
            "gemma-3-27b",
            {"vllm": "0.34.0", "max_model_len": 32768},
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
    model = replace(facts("llama-3.1-8b"), num_kv_heads=4)
    made = plan(model, **ON_MI300X, tensor_parallel_size=8)
    assert made.is_on("kv_offload")


def test_offload_can_be_forced_for_mha() -> None:
    model = replace(facts("llama-3.1-8b"), attention="mha", num_kv_heads=32)
    decision = plan(model, instinct(), environment={"VLLM_AMDOPT_KV_OFFLOAD": "on"}).decision(
        "kv_offload"
    )
    assert decision.on
    assert decision.settings["kv_offloading_size"] == 64.0


# --- shuffle_kv_layout ---------------------------------------------------------------------------

SHUFFLE = {"VLLM_AMDOPT_SHUFFLE_KV_LAYOUT": "on"}
NO_OFFLOAD = {**SHUFFLE, "VLLM_AMDOPT_KV_OFFLOAD": "off"}
LAYOUT = {"env.VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT": "1"}


def test_shuffled_layout_waits_to_be_asked() -> None:
    environment = {"VLLM_AMDOPT_KV_OFFLOAD": "off"}
    decision = plan(**ON_MI300X, environment=environment).decision("shuffle_kv_layout")
    assert not decision.on
    assert decision.reason.startswith("opt-in: VLLM_AMDOPT_SHUFFLE_KV_LAYOUT=on uses it; AITER")


@pytest.mark.parametrize("block_size", [None, 16])
def test_shuffled_layout_on_request(block_size: int | None) -> None:
    made = plan(**ON_MI300X, environment=NO_OFFLOAD, block_size=block_size)
    assert made.decision("shuffle_kv_layout").settings == LAYOUT


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        pytest.param("qwen3-next-80b-a3b", {}, "the model has hybrid attention", id="hybrid"),
        pytest.param("gpt-oss-20b", {}, "attention sinks end in an assertion", id="sinks"),
        pytest.param("deepseek-v3", {}, "the model has MLA", id="MLA"),
        pytest.param(
            replace(facts("llama-3.1-8b"), sliding_window=4096),
            {},
            "sliding windows end in an assertion",
            id="sliding window",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"speculative": True},
            "speculative decoding ends in an assertion",
            id="speculative decoding",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"environment": SHUFFLE},
            "a KV connector stores blocks in another layout",
            id="offload by our rule",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"kv_offload": True},
            "a KV connector stores blocks in another layout",
            id="offload by the user",
        ),
        pytest.param(
            "llama-3.1-8b", {"kv_cache_dtype": "fp8"}, "an FP8 KV cache takes", id="FP8 KV cache"
        ),
        pytest.param(
            "llama-3.1-8b", {"block_size": 64}, "tuned for 16 only", id="another block size"
        ),
        pytest.param(
            "llama-3.1-8b",
            {"environment": {**NO_OFFLOAD, "VLLM_ROCM_USE_AITER_MHA": "0"}},
            "ROCM_AITER_UNIFIED_ATTN is selected, and only ROCM_AITER_FA reads it",
            id="another backend",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"environment": {**NO_OFFLOAD, "VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT": "0"}},
            "you set VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT=0, which stays",
            id="the user's variable",
        ),
    ],
)
def test_shuffled_layout_where_it_cannot_be(
    model: Any, options: dict[str, Any], reason: str
) -> None:
    made = plan(model, **{**ON_MI300X, "environment": NO_OFFLOAD, **options})
    decision = made.decision("shuffle_kv_layout")
    assert not decision.on
    assert reason in decision.reason
    assert not LAYOUT.keys() & made.settings.keys()


# --- mla_offload_copies, tail_cache_offload ------------------------------------------------------

GLM_5_3 = replace(facts("deepseek-v3.2"), model_type="glm5_next_text")


def test_copies_of_the_latent_are_counted() -> None:
    made = plan("deepseek-v3", **ON_MI300X, tensor_parallel_size=8, kv_offload=True)
    assert [note for note in made.notes if "8 copies of the MLA latent on ROCm" in note]
    assert not made.refusals


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("deepseek-v3", {"kv_offload": True}, id="one rank"),
        pytest.param("deepseek-v3", {"tensor_parallel_size": 8}, id="no offloading"),
        pytest.param("llama-3.1-8b", {"kv_offload": True, "tensor_parallel_size": 8}, id="GQA"),
        pytest.param(
            "deepseek-v3",
            {"kv_offload": True, "tensor_parallel_size": 8, "vllm": "0.30.0"},
            id="vLLM 0.30 shares the buffer on ROCm too",
        ),
    ],
)
def test_no_word_of_copies(model: str, options: dict[str, Any]) -> None:
    assert not plan(model, **ON_MI300X, **options).is_on("mla_offload_copies")


def test_tail_cache_cannot_be_offloaded_with_vllm_0_30() -> None:
    made = plan(GLM_5_3, **ON_MI300X, kv_offload=True, vllm="0.30.0")
    assert made.refusals == (made.decision("tail_cache_offload").reason,)
    assert "leave KV offloading off, or use vLLM 0.31 or newer" in made.refusals[0]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param(GLM_5_3, {"kv_offload": True, "vllm": "0.31.0"}, id="vLLM 0.31"),
        pytest.param(GLM_5_3, {"vllm": "0.30.0"}, id="no offloading"),
        pytest.param(
            "deepseek-v3.2", {"kv_offload": True, "vllm": "0.30.0"}, id="another sparse MLA"
        ),
    ],
)
def test_tail_cache_is_no_matter(model: Any, options: dict[str, Any]) -> None:
    assert not plan(model, **{**ON_MI300X, **options}).refusals


# --- fp8_kv_cache --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp8", "fp8_e4m3"])
def test_fp8_cache_without_scales_is_said_and_stays(dtype: str) -> None:
    model = replace(facts("llama-3.1-8b"), kv_scales=False)
    made = plan(model, **ON_MI300X, kv_cache_dtype=dtype)
    assert [note for note in made.notes if "no scales for an FP8 KV cache" in note]
    assert "kv_cache_dtype" not in made.settings


@pytest.mark.parametrize(
    ("scales", "options", "reason"),
    [
        (True, {}, "the checkpoint has scales"),
        (None, {}, "is not known"),
        (False, {"hardware": instinct("gfx950")}, "only its FP8 (e4m3fnuz) has the smaller range"),
        (False, {"kv_cache_dtype": "auto"}, "the KV cache is auto, not FP8"),
    ],
)
def test_fp8_cache_without_a_word(
    scales: bool | None, options: dict[str, Any], reason: str
) -> None:
    model = replace(facts("llama-3.1-8b"), kv_scales=scales)
    decision = plan(model, **{**ON_MI300X, "kv_cache_dtype": "fp8", **options}).decision(
        "fp8_kv_cache"
    )
    assert not decision.on
    assert reason in decision.reason
