"""Weight formats, KV scales and what stays in 16 bits, as each method writes them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policy.situations import facts
from vllm_amdopt.policy.model_facts import ModelFacts, model_facts
from vllm_amdopt.policy.quantization_facts import WEIGHT_FORMATS


def quantized(quantization: Any, **fields: Any) -> ModelFacts:
    return model_facts(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 512,
            "num_attention_heads": 8,
            "num_hidden_layers": 4,
            "torch_dtype": "bfloat16",
            "quantization_config": quantization,
            **fields,
        }
    )


def compressed(weights: dict[str, Any], **fields: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, **fields}


def quark(weight: Any, **fields: Any) -> dict[str, Any]:
    return {
        "quant_method": "quark",
        "global_quant_config": {"weight": weight},
        "export": {"kv_cache_group": [], "pack_method": "reorder"},
        **fields,
    }


FP8_FLOAT = {"num_bits": 8, "type": "float"}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        pytest.param(None, "bf16", id="none"),
        pytest.param({"quant_method": "fp8"}, "fp8_tensor", id="fp8"),
        pytest.param(
            {"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", id="fp8-block"
        ),
        pytest.param({"quant_method": "fbgemm_fp8"}, "fp8_token", id="fbgemm"),
        pytest.param({"quant_method": "mxfp4"}, "mxfp4", id="gpt-oss"),
        pytest.param({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", id="awq"),
        pytest.param({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8", id="gptq-8"),
        pytest.param({"quant_method": "gptq", "bits": 3}, "unknown", id="gptq-3"),
        pytest.param(compressed({**FP8_FLOAT, "strategy": "tensor"}), "fp8_tensor", id="ct-tensor"),
        pytest.param(compressed({**FP8_FLOAT, "strategy": "channel"}), "fp8_token", id="ct-token"),
        pytest.param(
            compressed({**FP8_FLOAT, "strategy": "block", "block_structure": [128, 128]}),
            "fp8_block",
            id="ct-block",
        ),
        pytest.param(
            compressed({**FP8_FLOAT, "strategy": "group", "group_size": 32}), "mxfp8", id="ct-mxfp8"
        ),
        pytest.param(
            compressed({"num_bits": 4, "type": "int", "group_size": 32}), "int4", id="ct-w4a16"
        ),
        pytest.param(compressed({"num_bits": 8, "type": "int"}), "int8", id="ct-int8"),
        pytest.param(
            compressed({"num_bits": 4, "type": "float", "group_size": 16}), "nvfp4", id="ct-nvfp4"
        ),
        pytest.param(
            compressed({"num_bits": 4, "type": "float", "group_size": 32}), "mxfp4", id="ct-mxfp4"
        ),
        pytest.param({"quant_method": "compressed_tensors"}, "unknown", id="ct-without-groups"),
        pytest.param(
            quark({"dtype": "fp8_e4m3", "qscheme": "per_tensor"}), "fp8_tensor", id="quark-tensor"
        ),
        pytest.param(
            quark({"dtype": "fp8_e4m3", "qscheme": "per_channel"}), "fp8_token", id="quark-token"
        ),
        pytest.param(
            quark({"dtype": "fp8_e4m3", "qscheme": "per_block", "block_size": [128, 128]}),
            "fp8_block",
            id="quark-block",
        ),
        pytest.param(
            quark({"dtype": "fp4", "qscheme": "per_group", "group_size": 32}),
            "mxfp4",
            id="quark-mxfp4",
        ),
        pytest.param(quark({"dtype": "fp6_e3m2"}), "mxfp6", id="quark-mxfp6"),
        pytest.param(quark({"dtype": "uint4", "group_size": 128}), "int4", id="quark-int4"),
        pytest.param(quark([{"dtype": "fp8_e4m3"}, {"dtype": "int4"}]), "int4", id="quark-w4a8"),
        pytest.param(
            quark([{"dtype": "fp4", "group_size": 16}, {"dtype": "fp8_e4m3"}]),
            "nvfp4",
            id="quark-nvfp4",
        ),
        pytest.param(
            quark(None, layer_quant_config={"*experts*": {"weight": {"dtype": "fp4"}}}),
            "mxfp4",
            id="quark-by-layer",
        ),
        pytest.param(
            {"quant_method": "modelopt", "quant_algo": "fp8_pb_wo"}, "fp8_block", id="modelopt"
        ),
        pytest.param(
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}},
            "nvfp4",
            id="modelopt-nested",
        ),
        pytest.param({"quant_method": "bitsandbytes", "load_in_4bit": True}, "unknown", id="other"),
    ],
)
def test_weight_format(quantization: Any, expected: str) -> None:
    model = quantized(quantization)
    assert model.weight_format == expected
    assert expected in WEIGHT_FORMATS
    assert model.fp8_weights is expected.startswith("fp8")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "fp32"), (None, "unknown")],
)
def test_unquantized_weights_have_the_format_of_their_dtype(
    dtype: str | None, expected: str
) -> None:
    assert quantized(None, torch_dtype=dtype).weight_format == expected


KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
KV_LAYERS = {
    "*k_proj": {"output_tensors": {"dtype": "fp8_e4m3"}},
    "*v_proj": {"output_tensors": {"dtype": "fp8_e4m3"}},
}
KV_GROUP = {"kv_cache_group": ["*k_proj", "*v_proj"]}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        pytest.param(None, False, id="unquantized: vLLM loads none"),
        pytest.param({"quant_method": "fp8"}, None, id="fp8: only the files know"),
        pytest.param({"quant_method": "mxfp4"}, False, id="mxfp4: vLLM loads none"),
        pytest.param({"quant_method": "awq", "bits": 4}, False, id="awq: vLLM loads none"),
        pytest.param(compressed(FP8_FLOAT, kv_cache_scheme=KV), True, id="compressed-tensors"),
        pytest.param(compressed(FP8_FLOAT, kv_cache_scheme=None), False, id="null scheme"),
        pytest.param(compressed(FP8_FLOAT), False, id="no scheme"),
        pytest.param(
            compressed(FP8_FLOAT, kv_cache_scheme={**KV, "type": "int"}), False, id="integers"
        ),
        pytest.param(quark({"dtype": "fp8_e4m3"}), False, id="Quark, empty group"),
        pytest.param(
            quark({"dtype": "fp8_e4m3"}, export=KV_GROUP, layer_quant_config=KV_LAYERS),
            True,
            id="Quark, group and layers",
        ),
        pytest.param(
            quark({"dtype": "fp8_e4m3"}, export=KV_GROUP), None, id="Quark, group without layers"
        ),
        pytest.param(
            {"quant_method": "quark", "kv_cache_quant_config": {"*k_proj": {}}},
            True,
            id="Quark, newer key",
        ),
        pytest.param({"quant_method": "quark"}, None, id="Quark, no export"),
        pytest.param(
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": KV},
            True,
            id="ModelOpt, scheme",
        ),
        pytest.param(
            {
                "producer": {"name": "modelopt"},
                "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
            },
            True,
            id="ModelOpt, algorithm",
        ),
        pytest.param({"quant_method": "modelopt", "quant_algo": "FP8"}, False, id="ModelOpt, none"),
        pytest.param({"quant_method": "surprise"}, None, id="unknown method"),
    ],
)
def test_kv_scales(quantization: Any, expected: bool | None) -> None:
    assert quantized(quantization).kv_scales is expected


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        pytest.param("re:.*self_attn.*", ("attention",), id="expression"),
        pytest.param("model.layers.*.self_attn", ("attention",), id="glob of a parent"),
        pytest.param("self_attn", ("attention",), id="part of the path"),
        pytest.param("model.layers.2.self_attn.o_proj", ("attention",), id="the middle layer"),
        pytest.param("model.layers.0.self_attn.o_proj", (), id="the first layer only"),
        pytest.param("lm_head", (), id="not in a layer"),
        pytest.param("gate", (), id="the router, not gate_proj"),
        pytest.param("re:(", (), id="a broken expression"),
        pytest.param("", (), id="empty"),
    ],
)
def test_parts_left_in_16_bits(entry: str, parts: tuple[str, ...]) -> None:
    config = {"quant_method": "fp8", "modules_to_not_convert": [entry]}
    assert quantized(config).unquantized_parts == parts


def test_published_models_leave_what_their_lists_say() -> None:
    assert facts("kimi-k2.5").unquantized_parts == ("attention", "dense_mlp", "shared_experts")
    assert "routed_experts" not in facts("gpt-oss-120b").unquantized_parts
    assert facts("qwen3-235b-a22b-fp8").unquantized_parts == ()
