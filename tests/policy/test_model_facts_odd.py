"""No dictionary, however odd, ends in anything but facts or one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.policy.situations import config
from vllm_amdopt.policy.memory import estimate, layout_problem
from vllm_amdopt.policy.model_facts import ModelConfigError, model_facts
from vllm_amdopt.policy.model_fixtures import fixture_names
from vllm_amdopt.policy.parameters import COUNTED_TYPES

KEYS = (
    *("model_type", "architectures", "text_config", "vision_config", "quantization_config"),
    *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "head_dim"),
    *("hidden_size", "intermediate_size", "vocab_size", "torch_dtype", "tie_word_embeddings"),
    *("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"),
    *("index_topk", "index_head_dim", "index_n_heads", "sliding_window", "layer_types"),
    *("num_experts", "num_experts_per_tok", "moe_intermediate_size", "moe_layer_freq"),
    *("first_k_dense_replace", "mlp_only_layers", "decoder_sparse_step", "n_shared_experts"),
    *("interleave_moe_layer_step", "attn_type_list", "hybrid_override_pattern"),
    *("linear_attn_config", "attn_layer_period", "attn_layer_offset", "full_attention_interval"),
    *("linear_num_key_heads", "linear_key_head_dim", "linear_num_value_heads"),
    *("linear_value_head_dim", "linear_conv_kernel_dim", "max_position_embeddings"),
    *("quant_method", "weight_block_size", "config_groups", "weights", "num_bits", "type"),
    *("kv_cache_scheme", "export", "kv_cache_group", "layer_quant_config", "output_tensors"),
    *("global_quant_config", "weight", "dtype", "qscheme", "group_size", "ignore", "exclude"),
    *("quantization", "producer", "quant_algo", "modules_to_not_convert", "bits"),
)
TEXTS = (
    *COUNTED_TYPES,
    *("mamba2", "minicpm3", "full_attention", "linear_attention", "bfloat16", "fp8", "quark"),
    *("compressed-tensors", "mxfp4", "modelopt", "awq", "float", "int", "fp8_e4m3", "re:(", "*"),
)
SCALARS = (
    some.none()
    | some.booleans()
    | some.integers()
    | some.integers(min_value=0, max_value=64)
    | some.floats()
    | some.sampled_from(TEXTS)
    | some.text(max_size=5)
    | some.just(10**400)
)
VALUES = some.recursive(
    SCALARS,
    lambda inner: (
        some.lists(inner, max_size=4)
        | some.dictionaries(some.sampled_from(KEYS) | some.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=12,
)
CONFIGS: some.SearchStrategy[dict[Any, Any]] = some.dictionaries(
    some.sampled_from(KEYS) | some.integers() | some.none(), VALUES, max_size=20
)
LAYOUTS = some.fixed_dictionaries(
    {
        "tensor_parallel_size": some.integers(-1, 64),
        "data_parallel_size": some.integers(-1, 64),
        "pipeline_parallel_size": some.integers(-1, 64),
        "expert_parallel": some.booleans(),
    }
)
# Found examples come again on every run (`derandomize`), so that a failure is nobody's bad luck.
ODD = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def check(odd: dict[Any, Any], layout: dict[str, Any]) -> None:
    try:
        model = model_facts(odd)
    except ModelConfigError as error:
        assert str(error)
        return
    assert model.summary
    for memory in (None, 0, 10**12):
        result = estimate(model, gpu_memory_bytes=memory, **layout)
        assert all(result.assumptions)
        assert result.weight_bytes is None or result.weight_bytes >= 0
        assert result.kv_capacity_tokens is None or result.kv_capacity_tokens >= 0
    assert layout_problem(model, **layout) != ""


@ODD
@given(CONFIGS, LAYOUTS)
def test_odd_dictionary(odd: dict[Any, Any], layout: dict[str, Any]) -> None:
    check(odd, layout)


@ODD
@given(some.sampled_from(fixture_names()), CONFIGS, LAYOUTS)
def test_published_config_with_odd_fields(
    name: str, odd: dict[Any, Any], layout: dict[str, Any]
) -> None:
    published = config(name)
    check({**published, **odd}, layout)
    for key in ("text_config", "quantization_config"):
        if isinstance(published.get(key), dict):
            check({**published, key: {**published[key], **odd}}, layout)


@pytest.mark.parametrize("key", ["num_attention_heads", "vocab_size", "attn_logit_softcapping"])
def test_number_too_long_to_write(key: str) -> None:
    check({**config("llama-3.1-8b"), key: 10**5000}, {})


@ODD
@given(VALUES)
def test_what_is_not_a_dictionary_is_a_sentence(value: Any) -> None:
    if not isinstance(value, dict):
        try:
            model_facts(value)
        except ModelConfigError as error:
            assert "expected an object" in str(error)
        else:
            raise AssertionError("read as a model")
