"""How many parameters a model has, in total and for one token, from its config.json by formula.

Not a count of a checkpoint's tensors: one formula for the transformer with gated MLPs that vLLM's
llama.py, qwen3_moe.py, deepseek_v2.py, gpt_oss.py and their kin share, and None for a model type
that is not on the list. Left out: vision towers and projectors, the layers for multi-token
prediction (vLLM does not load them unless asked to), buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_amdopt.policy.config_reading import lenient_whole
from vllm_amdopt.policy.layer_kinds import MOST_LAYERS

if TYPE_CHECKING:
    from vllm_amdopt.policy.model_facts import ModelFacts

# Model types whose layers are the ones counted below; each was compared with a published size
# (tests/policy/test_parameters.py) or has the same model file in vLLM as one that was.
COUNTED_TYPES = (
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "gemma3_text",
    "glm4_moe",
    "glm_moe_dsa",
    "gpt_oss",
    "kimi_k2",
    "llama",
    "llama4_text",
    "minimax_m2",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl_moe_text",
    "qwen3_vl_text",
)


@dataclass(frozen=True)
class ParameterParts:
    """Numbers of parameters of the whole model, by what tensor parallelism does with them.

    `query`, `linear_attention`, `dense_mlp`, `shared_experts` and `routed_experts` are split over
    the ranks; `key_value` over at most as many ranks as there are KV heads; `attention_replicated`
    (MLA's projections to the latent, the sparse indexer), `router` and `small` (norms, biases,
    sinks) are on every rank. `output_head` is 0 where it is the embedding table.
    """

    embedding: int
    output_head: int
    query: int
    key_value: int
    attention_replicated: int
    linear_attention: int
    dense_mlp: int
    shared_experts: int
    routed_experts: int
    router: int
    small: int
    experts: int
    experts_per_token: int

    @property
    def layers(self) -> int:
        """Everything but the embedding and the output head."""
        return (
            self.query
            + self.key_value
            + self.attention_replicated
            + self.linear_attention
            + self.dense_mlp
            + self.shared_experts
            + self.routed_experts
            + self.router
            + self.small
        )

    @property
    def total(self) -> int:
        return self.embedding + self.output_head + self.layers

    @property
    def active(self) -> int:
        """What one token is multiplied with: the experts chosen for it, and all but the experts.

        The embedding counts only where it is the output head too: a token looks one row up.
        Publishers differ in this (gpt-oss counts so; Mistral counts the table as well).
        """
        head = self.output_head or self.embedding
        if not self.experts:
            return head + self.layers
        chosen = self.routed_experts * min(self.experts_per_token, self.experts) // self.experts
        return head + self.layers - self.routed_experts + chosen


def count_parameters(
    model: ModelFacts, text: Mapping[str, object], *, moe_layers: int | None, tied: bool
) -> ParameterParts | None:
    """The parts of a model from its facts and its language model's config; None where unknown.

    `moe_layers`: how many layers have experts.
    """
    hidden, vocabulary = model.hidden_size, model.vocab_size
    if (
        model.model_type not in COUNTED_TYPES
        or hidden is None
        or vocabulary is None
        or moe_layers is None
        or model.attention_layers is None
        or not 0 < model.num_layers <= MOST_LAYERS
        or model.attention_layers > model.num_layers
    ):
        return None
    attention = _attention(model, text, hidden)
    linear = 0
    linear_layers = model.num_layers - model.attention_layers
    if linear_layers:
        per_layer = _gated_delta_net(text, hidden)
        if per_layer is None:
            return None
        linear = linear_layers * per_layer
    dense_layers = model.num_layers - moe_layers
    if attention is None or (dense_layers and model.intermediate_size is None):
        return None
    query, key_value, replicated = attention
    width = model.moe_intermediate_size
    if moe_layers and width is None:
        return None
    expert = 3 * hidden * (width or 0)
    if model.model_type == "gpt_oss":  # gpt_oss.py: has_bias=True for the experts
        expert += 2 * (width or 0) + hidden
    shared = _shared_width(model, text)
    return ParameterParts(
        embedding=vocabulary * hidden,
        output_head=0 if tied else vocabulary * hidden,
        query=model.attention_layers * query,
        key_value=model.attention_layers * key_value,
        attention_replicated=model.attention_layers * replicated,
        linear_attention=linear,
        dense_mlp=dense_layers * 3 * hidden * (model.intermediate_size or 0),
        shared_experts=moe_layers * 3 * hidden * shared,
        routed_experts=moe_layers * model.num_experts * expert,
        router=moe_layers * model.num_experts * hidden,
        small=model.num_layers * _small(model, text, hidden) + hidden,
        experts=model.num_experts,
        experts_per_token=model.experts_per_token,
    )


def _attention(
    model: ModelFacts, text: Mapping[str, object], hidden: int
) -> tuple[int, int, int] | None:
    """(split over the ranks, split by KV head, on every rank) of one attention layer."""
    heads = model.num_heads
    if model.attention in ("mla", "sparse_mla"):
        rank, rope, nope = model.kv_lora_rank, model.qk_rope_head_dim, model.qk_nope_head_dim
        value = model.v_head_dim
        if rank is None or rope is None or nope is None or value is None:
            return None
        # deepseek_v2.py, DeepseekV2MLAAttention: q_a and kv_a are replicated.
        split = rank * heads * (nope + value) + heads * value * hidden
        replicated = hidden * (rank + rope)
        if model.q_lora_rank is None:
            split += hidden * heads * (nope + rope)
        else:
            split += model.q_lora_rank * heads * (nope + rope)
            replicated += hidden * model.q_lora_rank
        if model.index_head_dim is not None:  # deepseek_v2.py, Indexer: not split
            index_heads = lenient_whole(text, ("index_n_heads",)) or 0
            replicated += (model.q_lora_rank or hidden) * index_heads * model.index_head_dim
            replicated += hidden * (model.index_head_dim + index_heads)
        return split, 0, replicated
    value = model.v_head_dim or model.head_size
    queries = heads * model.head_size
    if model.model_type == "qwen3_next":  # qwen3_next.py: attn_output_gate, true by default
        queries *= 1 if text.get("attn_output_gate") is False else 2
    split = hidden * queries + heads * value * hidden
    return split, hidden * model.num_kv_heads * (model.head_size + value), 0


def _gated_delta_net(text: Mapping[str, object], hidden: int) -> int | None:
    """One linear attention layer of Qwen3-Next (qwen_gdn_linear_attn.py); None for other kinds."""
    key_heads = lenient_whole(text, ("linear_num_key_heads",))
    key_size = lenient_whole(text, ("linear_key_head_dim",))
    value_heads = lenient_whole(text, ("linear_num_value_heads",))
    value_size = lenient_whole(text, ("linear_value_head_dim",))
    kernel = lenient_whole(text, ("linear_conv_kernel_dim",))
    if not (key_heads and key_size and value_heads and value_size and kernel):
        return None
    keys, values = key_heads * key_size, value_heads * value_size
    projections = hidden * (2 * keys + 2 * values + 2 * value_heads) + values * hidden
    return projections + (2 * keys + values) * kernel + 2 * value_heads + value_size


def _shared_width(model: ModelFacts, text: Mapping[str, object]) -> int:
    """The width of all shared experts of a layer together; they are one MLP in vLLM."""
    given = lenient_whole(text, ("shared_expert_intermediate_size",))
    return given or model.num_shared_experts * (model.moe_intermediate_size or 0)


def _small(model: ModelFacts, text: Mapping[str, object], hidden: int) -> int:
    """Norms, biases and sinks of a layer, roughly: below a thousandth of any model."""
    norms = (4 if model.model_type == "gemma3_text" else 2) * hidden + 2 * model.head_size
    biased = text.get("attention_bias") is True or model.model_type in ("qwen2", "qwen2_moe")
    biases = (model.num_heads + 2 * model.num_kv_heads) * model.head_size if biased else 0
    return norms + biases + (model.num_heads if model.has_sinks else 0)
