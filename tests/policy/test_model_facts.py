"""Facts from published configurations, and sentences for broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.policy.situations import config, facts
from vllm_amdopt.policy.model_facts import (
    ModelConfigError,
    ModelFacts,
    model_facts,
    read_config,
)

# Read off the published files by eye: attention, heads, KV heads, head size, experts, top-k, expert
# width, quantization, dtype, context.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "llama-3.1-8b": ("gqa", 32, 8, 128, 0, 0, None, None, "bfloat16", 131072),
    "deepseek-v3": ("mla", 128, 1, 576, 256, 8, 2048, "fp8", "bfloat16", 163840),
    "deepseek-v3.2": ("sparse_mla", 128, 1, 576, 256, 8, 2048, "fp8", "bfloat16", 163840),
    "kimi-k2.5": ("mla", 64, 1, 576, 384, 8, 2048, "compressed-tensors", "bfloat16", 262144),
    "qwen3-30b-a3b-fp8": ("gqa", 32, 4, 128, 128, 8, 768, "fp8", "bfloat16", 40960),
    "qwen3-next-80b-a3b": ("hybrid", 16, 2, 256, 512, 10, 512, None, "bfloat16", 262144),
    "gemma-3-27b": ("gqa", 32, 16, 128, 0, 0, None, None, "bfloat16", None),
    "gpt-oss-20b": ("gqa", 64, 8, 64, 32, 4, 2880, "mxfp4", None, 131072),
    "glm-4.5": ("gqa", 96, 8, 128, 160, 8, 1536, None, "bfloat16", 131072),
    "minimax-m2": ("gqa", 48, 8, 128, 256, 8, 1536, "fp8", None, 196608),
    "llama-4-scout": ("gqa", 40, 8, 128, 16, 1, 8192, None, "bfloat16", 10485760),
}


def shape(model: ModelFacts) -> tuple[Any, ...]:
    return (
        model.attention,
        model.num_heads,
        model.num_kv_heads,
        model.head_size,
        model.num_experts,
        model.experts_per_token,
        model.moe_intermediate_size,
        model.quantization,
        model.dtype,
        model.max_context,
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_model(name: str) -> None:
    assert shape(facts(name)) == PUBLISHED[name]


def test_what_sets_single_models_apart() -> None:
    assert facts("deepseek-v3").kv_lora_rank == 512
    assert facts("deepseek-v3").qk_rope_head_dim == 64
    assert facts("deepseek-v3").weight_block_size == (128, 128)
    assert facts("deepseek-v3").fp8_weights
    assert not facts("kimi-k2.5").fp8_weights, "its experts are int4"
    assert facts("gpt-oss-20b").has_sinks
    assert facts("gpt-oss-20b").sliding_window == 128
    assert facts("gemma-3-27b").sliding_window == 1024
    assert facts("gemma-3-27b").bidirectional_images
    assert facts("gemma-3-27b").architecture == "Gemma3ForConditionalGeneration"
    assert facts("llama-4-scout").attention_chunk_size == 8192
    assert facts("kimi-k2.5").model_type == "kimi_k2", "of the language model, not of the wrapper"
    plain = [name for name in PUBLISHED if name not in ("gpt-oss-20b",)]
    assert not [name for name in plain if facts(name).has_sinks]
    assert not [name for name in PUBLISHED if facts(name).has_alibi]
    assert not [name for name in PUBLISHED if facts(name).encoder_only]


def small(**fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "architectures": ["SomeForCausalLM"],
        "model_type": "some",
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
    }
    return {**base, **fields}


@pytest.mark.parametrize(
    ("fields", "attention", "kv_heads", "head_size"),
    [
        pytest.param({}, "mha", 8, 64, id="no KV heads given: as many as heads"),
        pytest.param({"num_key_value_heads": 8}, "mha", 8, 64, id="as many KV heads"),
        pytest.param({"num_key_value_heads": 2}, "gqa", 2, 64, id="fewer KV heads"),
        pytest.param({"num_key_value_heads": 1}, "mqa", 1, 64, id="one KV head"),
        pytest.param({"multi_query": True}, "mqa", 1, 64, id="Falcon-7B's flag"),
        pytest.param(
            {"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 2},
            "gqa",
            2,
            64,
            id="Falcon-40B's KV heads",
        ),
        pytest.param(
            {"multi_query_attention": True, "multi_query_group_num": 2},
            "gqa",
            2,
            64,
            id="ChatGLM's groups",
        ),
        pytest.param({"attn_config": {"kv_n_heads": 4}}, "gqa", 4, 64, id="DBRX nests KV heads"),
        pytest.param({"head_dim": 128}, "mha", 8, 128, id="head size of its own"),
        pytest.param({"head_dim": None}, "mha", 8, 64, id="head size null"),
        pytest.param({"num_key_value_heads": [2, 4]}, "gqa", 4, 64, id="KV heads by layer"),
        pytest.param(
            {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_key_value_heads": 8},
            "mla",
            1,
            576,
            id="MLA",
        ),
        pytest.param({"kv_lora_rank": None, "qk_rope_head_dim": 0}, "mha", 8, 64, id="MLA unused"),
        pytest.param(
            {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_topk": 2048},
            "sparse_mla",
            1,
            576,
            id="MLA with an indexer",
        ),
        pytest.param(
            {
                "model_type": "minicpm3",
                "kv_lora_rank": 256,
                "qk_nope_head_dim": 64,
                "qk_rope_head_dim": 32,
            },
            "mha",
            8,
            96,
            id="a latent that vLLM runs as MHA",
        ),
        pytest.param({"attn_type_list": [1, 1]}, "mha", 8, 64, id="MiniMax-M2: softmax only"),
        pytest.param({"attn_type_list": [0, 1]}, "hybrid", 8, 64, id="MiniMax-01: lightning"),
        pytest.param(
            {"layer_types": ["sliding_attention", "full_attention"]},
            "mha",
            8,
            64,
            id="sliding and full layers",
        ),
        pytest.param(
            {"layer_types": ["linear_attention", "full_attention"]},
            "hybrid",
            8,
            64,
            id="linear layers",
        ),
        pytest.param({"layer_types": ["conv", "full_attention"]}, "hybrid", 8, 64, id="LFM2"),
        pytest.param({"mamba_d_state": 16}, "hybrid", 8, 64, id="Jamba and its kin"),
        pytest.param({"linear_attn_config": {"a": 1}}, "hybrid", 8, 64, id="Kimi-Linear"),
    ],
)
def test_attention_kind(
    fields: dict[str, Any], attention: str, kv_heads: int, head_size: int
) -> None:
    model = model_facts(small(**fields))
    assert (model.attention, model.num_kv_heads, model.head_size) == (
        attention,
        kv_heads,
        head_size,
    )


def test_state_space_model_has_no_attention() -> None:
    model = model_facts({"model_type": "mamba2", "num_hidden_layers": 4, "hidden_size": 64})
    assert (model.attention, model.num_heads) == ("none", 0)


@pytest.mark.parametrize(
    ("fields", "fact"),
    [
        pytest.param({"model_type": "bloom"}, "has_alibi", id="BLOOM"),
        pytest.param({"alibi": True}, "has_alibi", id="Falcon-RW"),
        pytest.param({"attn_config": {"alibi": True}}, "has_alibi", id="MPT"),
        pytest.param({"position_embedding_type": "alibi"}, "has_alibi", id="Jais"),
        pytest.param({"model_type": "baichuan", "hidden_size": 5120}, "has_alibi", id="Baichuan"),
        pytest.param({"add_swa_attention_sink_bias": True}, "has_sinks", id="MiMo-V2"),
        pytest.param({"architectures": ["BertModel"]}, "encoder_only", id="BERT"),
        pytest.param({"use_bidirectional_attention": True}, "encoder_only", id="EmbeddingGemma"),
        pytest.param({"is_encoder_decoder": True}, "encoder_decoder", id="Whisper"),
        pytest.param({"is_mm_prefix_lm": True}, "bidirectional_images", id="declared prefix LM"),
    ],
)
def test_variations_are_seen(fields: dict[str, Any], fact: str) -> None:
    assert getattr(model_facts(small(**fields)), fact)
    assert not getattr(model_facts(small()), fact)


def test_unused_sliding_window_is_none() -> None:
    assert model_facts(small(sliding_window=4096, use_sliding_window=False)).sliding_window is None
    assert model_facts(small(sliding_window=4096)).sliding_window == 4096


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        pytest.param({}, (None, False, None), id="empty"),
        pytest.param(None, (None, False, None), id="null"),
        pytest.param({"quant_method": "GPTQ", "bits": 4}, ("gptq", False, None), id="GPTQ"),
        pytest.param({"quant_method": "fp8"}, ("fp8", True, None), id="per tensor"),
        pytest.param(
            {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}},
            ("quark", True, None),
            id="Quark FP8",
        ),
        pytest.param(
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"type": "float", "num_bits": 8, "block_structure": [128, 128]}
                    }
                },
            },
            ("compressed-tensors", True, (128, 128)),
            id="compressed-tensors block FP8",
        ),
        pytest.param({"bits": 4}, ("unknown", False, None), id="no method named"),
    ],
)
def test_quantization(quantization: Any, expected: tuple[Any, ...]) -> None:
    model = model_facts(small(quantization_config=quantization))
    assert (model.quantization, model.fp8_weights, model.weight_block_size) == expected


def test_nested_twice() -> None:
    inner = small(num_key_value_heads=2)
    model = model_facts({"model_type": "omni", "thinker_config": {"text_config": inner}})
    assert (model.attention, model.architecture) == ("gqa", "SomeForCausalLM")


def test_summaries_say_what_matters() -> None:
    assert facts("llama-3.1-8b").summary == (
        "LlamaForCausalLM: GQA, 32 heads / 8 KV heads x 128, 32 layers, bfloat16"
    )
    assert facts("deepseek-v3").summary == (
        "DeepseekV3ForCausalLM: MLA, 128 heads, latent 512+64, 61 layers, 256 experts, "
        "8 per token, fp8"
    )


# --- broken ones --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        pytest.param(
            {"num_attention_heads": 0},
            "num_attention_heads is 0, expected a positive whole number",
            id="no heads",
        ),
        pytest.param(
            {"num_attention_heads": "eight"},
            "num_attention_heads is 'eight', expected a positive whole number",
            id="heads in words",
        ),
        pytest.param(
            {"num_attention_heads": True},
            "num_attention_heads is True, expected a positive whole number",
            id="heads true",
        ),
        pytest.param(
            {"num_hidden_layers": -1},
            "num_hidden_layers is -1, expected a positive whole number",
            id="negative layers",
        ),
        pytest.param(
            {"num_hidden_layers": 1.5},
            "num_hidden_layers is 1.5, expected a positive whole number",
            id="half a layer",
        ),
        pytest.param(
            {"num_key_value_heads": 3},
            "8 attention heads are not divisible by 3 KV heads",
            id="KV heads that do not divide",
        ),
        pytest.param(
            {"hidden_size": 4}, "hidden size 4 is smaller than 8 attention heads", id="too narrow"
        ),
        pytest.param(
            {"max_position_embeddings": {}},
            "max_position_embeddings is {}, expected a whole number",
            id="context an object",
        ),
        pytest.param(
            {"kv_lora_rank": 512},
            "kv_lora_rank is given without qk_rope_head_dim",
            id="half an MLA",
        ),
    ],
)
def test_impossible_field(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        model_facts(small(**fields))
    assert str(caught.value) == sentence


def test_missing_field_names_what_is_missing() -> None:
    with pytest.raises(ModelConfigError, match="number of attention heads is not given"):
        model_facts({"model_type": "some", "num_hidden_layers": 2})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("{", "is not valid JSON", id="cut off"),
        pytest.param("", "is not valid JSON", id="empty"),
        pytest.param("[]", "holds a JSON list, expected an object", id="a list"),
        pytest.param("null", "holds a JSON null, expected an object", id="null"),
        pytest.param("3", "holds a JSON number, expected an object", id="a number"),
        pytest.param("[" * 100_000, "is not valid JSON", id="nested without end"),
    ],
)
def test_broken_file(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelConfigError) as caught:
        read_config(tmp_path)
    assert sentence in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelConfigError, match="not a text file in UTF-8"):
        read_config(tmp_path)


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=r"has no config\.json: give the directory"):
        read_config(tmp_path)


def test_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match="does not exist: give a model directory"):
        read_config(tmp_path / "nowhere")


def test_impossible_path() -> None:
    with pytest.raises(ModelConfigError):
        read_config(Path("a\0b"))


def test_directory_or_file_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config("glm-4.5")), encoding="utf-8")
    assert read_config(tmp_path) == read_config(path) == config("glm-4.5")


ODD_VALUES: tuple[Any, ...] = (
    None,
    "",
    "x",
    -1,
    0,
    1,
    2.5,
    10**40,
    True,
    [],
    [None],
    [[1]],
    {},
    {"a": []},
)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3", "gemma-3-27b", "kimi-k2.5"])
def test_no_odd_value_ends_in_anything_but_a_sentence(name: str) -> None:
    """Every field of a real config, in turn, with every odd value (and the field left out)."""
    published = config(name)
    read = refused = 0

    def attempt(changed: dict[str, Any]) -> None:
        nonlocal read, refused
        try:
            assert model_facts(changed).summary
            read += 1
        except ModelConfigError as error:
            assert str(error)
            refused += 1

    nested = published.get("text_config", published)
    for key in nested:
        for value in ODD_VALUES:
            changed = {**nested, key: value}
            attempt({**published, "text_config": changed} if nested is not published else changed)
        attempt({other: value for other, value in nested.items() if other != key})
    for value in ODD_VALUES:
        attempt({**published, "text_config": value, "quantization_config": value})
    assert read > 50
    assert refused > 10
