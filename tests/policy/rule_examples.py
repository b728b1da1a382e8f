"""For each feature and rule a situation in which it is on, and one in which a condition keeps it
off.

An entry of the registry without an example here fails a test: nothing is added that nobody has seen
fire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.policy.situations import CURRENT_AITER, NOTHING, VIRTUAL, facts, instinct, situation
from vllm_amdopt.policy.model_facts import ModelFacts
from vllm_amdopt.policy.plan import Situation


@dataclass(frozen=True)
class Example:
    """A situation, and the key phrase of the reason that the plan gives in it."""

    model: str | ModelFacts
    machine: Mapping[str, Any]
    phrase: str
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def situation(self) -> Situation:
        """The situation to plan for."""
        environment = dict(self.environment)
        return situation(self.model, environment=environment, **self.machine, **self.options)


@dataclass(frozen=True)
class Pair:
    """Where an entry is on and where it is off."""

    on: Example
    off: Example


MI300X: Mapping[str, Any] = {"hardware": instinct("gfx942"), "aiter": CURRENT_AITER}
MI355X: Mapping[str, Any] = {"hardware": instinct("gfx950"), "aiter": CURRENT_AITER}
MI250X: Mapping[str, Any] = {"hardware": instinct("gfx90a"), "aiter": CURRENT_AITER}
RDNA4: Mapping[str, Any] = {"hardware": instinct("gfx1201"), "aiter": CURRENT_AITER}
NO_AITER: Mapping[str, Any] = {"hardware": instinct("gfx942")}
EMULATED: Mapping[str, Any] = {"hardware": VIRTUAL}
NO_GPU: Mapping[str, Any] = {"hardware": NOTHING}

TP2 = {"tensor_parallel_size": 2}
TP4 = {"tensor_parallel_size": 4}
TP8 = {"tensor_parallel_size": 8}
OFFLOAD_64 = {"kv_offload": True, "kv_offloading_gib": 64.0}
MINIMAX_M3 = replace(
    facts("minimax-m2"), architecture="MiniMaxM3SparseForCausalLM", model_type="minimax_m3_text"
)
SOFT_CAP = replace(facts("llama-3.1-8b"), logits_soft_cap=50.0)
TAIL_CACHE = replace(facts("glm-4.5"), model_type="glm5_next")
WITHOUT_SCALES = replace(facts("llama-3.1-8b"), kv_scales=False)
COMPRESSED = replace(facts("qwen3-30b-a3b-fp8"), quantization="compressed-tensors")
_CODEC = "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION"
_SMALLEST = "VLLM_ROCM_QUICK_REDUCE_MIN_SIZE_BYTES_MB"


def switched_on(name: str) -> dict[str, str]:
    """For what is opt-in."""
    return {f"VLLM_AMDOPT_{name.upper()}": "on"}


EXAMPLES: Mapping[str, Pair] = {
    "attention": Pair(
        Example("llama-3.1-8b", EMULATED, "keep all compute units busy"),
        Example("deepseek-v3", EMULATED, "the model has MLA, not MHA, GQA or MQA"),
    ),
    "mla": Pair(
        Example("deepseek-v2-lite", EMULATED, "reads each latent row once"),
        Example("llama-3.1-8b", EMULATED, "the model has GQA, not MLA"),
    ),
    "gemm": Pair(
        Example("llama-3.1-8b", EMULATED, "a walk over its weights"),
        Example("deepseek-v3", EMULATED, "the weights are quantized (fp8)"),
    ),
    "all_reduce": Pair(
        Example("llama-3.1-8b", EMULATED, "small messages cost latency", TP2),
        Example("llama-3.1-8b", MI300X, "cannot map the memory of peer GPUs", TP2),
    ),
    "aiter": Pair(
        Example("llama-3.1-8b", MI300X, "are off by default in vLLM"),
        Example("llama-3.1-8b", MI250X, "gfx90a is not one of gfx942 or gfx950"),
    ),
    "aiter_rdna4": Pair(
        Example(
            "llama-3.1-8b",
            RDNA4,
            "VLLM_AMDOPT_AITER_RDNA4=on",
            environment=switched_on("aiter_rdna4"),
        ),
        Example(
            "llama-3.1-8b", MI300X, "this is for RDNA4", environment=switched_on("aiter_rdna4")
        ),
    ),
    "aiter_without_effect": Pair(
        Example(
            "llama-3.1-8b",
            MI250X,
            "has no effect: vLLM uses AITER on CDNA3",
            environment={"VLLM_ROCM_USE_AITER": "1"},
        ),
        Example(
            "llama-3.1-8b",
            MI300X,
            "VLLM_ROCM_USE_AITER=1 takes effect here",
            environment={"VLLM_ROCM_USE_AITER": "1"},
        ),
    ),
    "padded_experts": Pair(
        Example(
            "minimax-m2",
            MI300X,
            "shards of 192 are padded to 256",
            TP8,
            switched_on("padded_experts"),
        ),
        Example(
            "minimax-m2",
            MI300X,
            "vLLM finds a kernel for these experts",
            TP4,
            switched_on("padded_experts"),
        ),
    ),
    "aiter_experts_off": Pair(
        Example("qwen3-235b-a22b-fp8", MI300X, "Triton runs the experts", TP8),
        Example("qwen3-235b-a22b-fp8", MI300X, "nothing is known against AITER", TP4),
    ),
    "experts_refused": Pair(
        Example(COMPRESSED, MI300X, "use --enable-expert-parallel", TP8),
        Example("qwen3-30b-a3b-fp8", MI300X, "vLLM finds a kernel for these experts", TP8),
    ),
    "fused_all_reduce": Pair(
        Example("llama-3.1-70b", MI300X, "on the first graph replay", TP8),
        Example("llama-3.1-70b", MI355X, "the report is on gfx942 alone", TP8),
    ),
    "fused_all_reduce_without_aiter": Pair(
        Example(
            "llama-3.1-405b",
            NO_AITER,
            "'AllReduceFusionPass' is not defined",
            {**TP8, "fuse_allreduce_rms": True},
        ),
        Example(
            "llama-3.1-405b",
            NO_AITER,
            "patch 0004 is applied: vLLM leaves the fusion out by itself",
            {**TP8, "fuse_allreduce_rms": True, "patches": ("0004",)},
        ),
    ),
    "quick_reduce_check": Pair(
        Example(
            "llama-3.1-70b",
            MI300X,
            "INT3 runs on 2 ranks only",
            TP8,
            {_CODEC: "INT3"},
        ),
        Example(
            "llama-3.1-70b",
            MI300X,
            "it runs for messages of",
            {**TP8, "dtype": "float16"},
            {_CODEC: "INT4"},
        ),
    ),
    "quick_reduce_sizes": Pair(
        Example(
            "llama-3.1-70b",
            MI300X,
            "correct or unset it",
            TP8,
            {_CODEC: "INT4", _SMALLEST: "4096"},
        ),
        Example("llama-3.1-70b", MI300X, "the sizes fit", TP8, {_CODEC: "INT4", _SMALLEST: "16"}),
    ),
    "quick_reduce": Pair(
        Example(
            "gpt-oss-120b",
            MI300X,
            "bfloat16 is converted to float16",
            TP8,
            switched_on("quick_reduce"),
        ),
        Example(
            "gpt-oss-120b",
            MI300X,
            "no published recipe uses QuickReduce",
            TP4,
            switched_on("quick_reduce"),
        ),
    ),
    "vision_encoder": Pair(
        Example("qwen3-vl-235b-a22b", MI300X, "too small to cut", TP8),
        Example("gemma-3-27b", MI300X, "no vision tower that vLLM runs data-parallel", TP8),
    ),
    "minimax_m3_queues": Pair(
        Example(MINIMAX_M3, MI300X, "two hardware queues"),
        Example(MINIMAX_M3, MI355X, "the measurement is on gfx942"),
    ),
    "minimax_m3_shared_expert": Pair(
        Example(MINIMAX_M3, MI355X, "folded into AITER's grouped experts"),
        Example(MINIMAX_M3, MI300X, "vLLM folds it in on gfx950 alone"),
    ),
    "kimi_k25_experts": Pair(
        Example(
            "kimi-k2.5",
            MI355X,
            "VLLM_AMDOPT_KIMI_K25_EXPERTS=on",
            environment=switched_on("kimi_k25_experts"),
        ),
        Example(
            "kimi-k2.5",
            MI355X,
            "FlyDSL's experts do not take LoRA",
            {"lora": True},
            switched_on("kimi_k25_experts"),
        ),
    ),
    "gpt_oss_fusion": Pair(
        Example("gpt-oss-120b", MI355X, "costs gpt-oss throughput", TP8),
        Example("gpt-oss-120b", MI300X, "the measurement is on gfx950", TP8),
    ),
    "deprecated_quantization": Pair(
        Example("llama-3.1-405b-fp8-meta", MI300X, "give --allow-deprecated-quantization", TP8),
        Example("llama-3.1-405b", MI300X, "does not call the model's number format", TP8),
    ),
    "gpt_oss_answers": Pair(
        Example("gpt-oss-120b", MI355X, "read a few answers"),
        Example(
            "gpt-oss-120b",
            MI355X,
            "AITER is off for experts",
            environment={"VLLM_ROCM_USE_AITER_MOE": "0"},
        ),
    ),
    "sparse_mla_needs_aiter": Pair(
        Example("deepseek-v3.2", NO_AITER, "calls AITER, which is not installed", TP8),
        Example("deepseek-v3.2", MI300X, "AITER is installed, which sparse MLA needs", TP8),
    ),
    "exact_attention": Pair(
        Example(SOFT_CAP, MI300X, "a soft cap on its attention logits"),
        Example("llama-3.1-8b", MI300X, "computes this model's attention"),
    ),
    "attention_order": Pair(
        Example("llama-3.1-8b", MI300X, "takes ROCM_AITER_FA in this order"),
        Example("llama-3.1-8b", NO_AITER, "AITER is not in force"),
    ),
    "block_size": Pair(
        Example("llama-3.1-8b", MI300X, "--block-size 1 is dropped", {"block_size": 1}),
        Example("deepseek-v3", MI300X, "is taken by ROCM_AITER_MLA", {"block_size": 1}),
    ),
    "mla_block_size": Pair(
        Example("deepseek-v3", MI300X, "is not required"),
        Example("deepseek-v3", NO_AITER, "TRITON_MLA, which needs multiples of 16"),
    ),
    "minimax_block_size": Pair(
        Example(MINIMAX_M3, MI300X, "pages of 128 tokens only", {"vllm": "0.30.0"}),
        Example(MINIMAX_M3, MI300X, "checked for vLLM >=0.30,<0.31, this is 0.32.0"),
    ),
    "mla_head_padding": Pair(
        Example(
            "kimi-k2.5", MI300X, "--tensor-parallel-size 4 --data-parallel-size 2 has full", TP8
        ),
        Example("kimi-k2.5", MI300X, "16 heads a rank are not fewer than 16", TP4),
    ),
    "kv_offload": Pair(
        Example("llama-3.1-8b", MI300X, "instead of being computed again"),
        Example("deepseek-v3", MI300X, "copies would multiply", TP8),
    ),
    "shuffle_kv_layout": Pair(
        Example(
            "llama-3.1-8b",
            {"hardware": instinct("gfx942", host_gib=None), "aiter": CURRENT_AITER},
            "VLLM_AMDOPT_SHUFFLE_KV_LAYOUT=on",
            environment=switched_on("shuffle_kv_layout"),
        ),
        Example(
            "gpt-oss-120b",
            MI300X,
            "attention sinks end in an assertion",
            environment=switched_on("shuffle_kv_layout"),
        ),
    ),
    "mla_offload_shared": Pair(
        Example(
            "deepseek-v3",
            MI300X,
            "VLLM_AMDOPT_MLA_OFFLOAD_SHARED=on",
            {**TP8, **OFFLOAD_64, "patches": ("0005",)},
            switched_on("mla_offload_shared"),
        ),
        Example("deepseek-v3", MI300X, "needs patch 0005", {**TP8, **OFFLOAD_64}),
    ),
    "mla_offload_copies": Pair(
        Example("deepseek-v3", MI300X, "stores 8 copies", {**TP8, "kv_offload": True}),
        Example("deepseek-v3", MI300X, "stores one copy", {"kv_offload": True}),
    ),
    "tail_cache_offload": Pair(
        Example(TAIL_CACHE, MI300X, "tail_cache", {"kv_offload": True, "vllm": "0.30.0"}),
        Example(
            TAIL_CACHE,
            MI300X,
            "checked for vLLM >=0.30,<0.31, this is 0.32.0",
            {"kv_offload": True},
        ),
    ),
    "fused_rope": Pair(
        Example(
            "qwen3-32b",
            MI300X,
            "VLLM_AMDOPT_FUSED_ROPE=on",
            environment={**switched_on("attention"), **switched_on("fused_rope")},
        ),
        Example(
            "qwen3-32b", MI300X, "belongs to AMDOPT_ATTN", environment=switched_on("fused_rope")
        ),
    ),
    "startup_plan": Pair(
        Example(
            "llama-3.1-8b",
            MI300X,
            "VLLM_AMDOPT_STARTUP_PLAN=on",
            {"patches": ("0006",)},
            switched_on("startup_plan"),
        ),
        Example("llama-3.1-8b", MI300X, "needs patch 0006"),
    ),
    "startup_plan_key": Pair(
        Example(
            "llama-3.1-8b",
            MI300X,
            "keeps the KV cache size of an earlier start",
            environment={"VLLM_ENABLE_STARTUP_PLAN": "1"},
        ),
        Example(
            "llama-3.1-8b",
            MI300X,
            "patch 0006 is applied: the fingerprint is complete",
            {"patches": ("0006",)},
            {"VLLM_ENABLE_STARTUP_PLAN": "1"},
        ),
    ),
    "fp8_kv_cache": Pair(
        Example(WITHOUT_SCALES, MI300X, "has no scales", {"kv_cache_dtype": "fp8"}),
        Example(WITHOUT_SCALES, MI355X, "has the smaller range", {"kv_cache_dtype": "fp8"}),
    ),
    "environment": Pair(
        Example("llama-3.1-8b", MI300X, "AMD recommends this"),
        Example("llama-3.1-8b", NO_GPU, "this only concerns AMD GPUs"),
    ),
    "dead_variables": Pair(
        Example(
            "llama-3.1-8b",
            MI300X,
            "VLLM_USE_TRITON_FLASH_ATTN",
            environment={"VLLM_USE_TRITON_FLASH_ATTN": "0"},
        ),
        Example("llama-3.1-8b", MI300X, "no variable is set that does nothing"),
    ),
    "aiter_switches": Pair(
        Example("llama-3.1-8b", MI300X, "every sub-switch written down"),
        Example("llama-3.1-8b", NO_AITER, "this plan does not switch AITER on"),
    ),
}
