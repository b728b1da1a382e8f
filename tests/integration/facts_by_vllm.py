"""What vLLM itself reads from the shipped configs: run as a program, prints one JSON object.

For each name: vLLM's numbers, and our facts from the file and from the config object that vLLM
made of it (which our plugin sees inside a server).
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from vllm_amdopt.policy.model_facts import ModelFacts, model_facts
from vllm_amdopt.policy.model_fixtures import fixture, fixture_names


def ours(model: ModelFacts) -> dict[str, Any]:
    return {
        "heads": model.num_heads,
        "layers": model.num_layers,
        "head_size": model.head_size,
        "kv_heads": model.num_kv_heads,
        "experts": model.num_experts,
        "experts_per_token": model.experts_per_token,
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "mla": model.attention in ("mla", "sparse_mla"),
        "quantization": model.quantization,
        "bidirectional_images": model.bidirectional_images,
        "attention_layers": model.attention_layers,
        "sliding_layers": model.sliding_layers,
        "context": model.max_context,
    }


def theirs(config: Any, text: Any, numbers: Any) -> dict[str, Any]:
    """vLLM's numbers under our names; the layers counted from the types that transformers made."""
    kinds = (
        getattr(text, "layer_types", None) or ["full_attention"] * numbers.total_num_hidden_layers
    )
    return {
        "heads": numbers.total_num_attention_heads,
        "layers": numbers.total_num_hidden_layers,
        "head_size": numbers.head_size,
        # ModelConfig.get_num_kv_heads: one with MLA, whatever the config says.
        "kv_heads": 1 if numbers.is_deepseek_mla else numbers.total_num_kv_heads,
        "experts": numbers.num_experts,
        "experts_per_token": numbers.num_experts_per_token,
        "hidden_size": numbers.hidden_size,
        "vocab_size": numbers.vocab_size,
        "mla": numbers.is_deepseek_mla,
        "quantization": (numbers.quantization_config or {}).get("quant_method"),
        "bidirectional_images": numbers.is_mm_prefix_lm,
        "attention_layers": sum(kind != "linear_attention" for kind in kinds),
        "sliding_layers": sum(kind == "sliding_attention" for kind in kinds),
        "context": int(numbers.derived_max_model_len_and_key[0]),
    }


def without_code(config: dict[str, Any]) -> dict[str, Any]:
    """The config without the reference to modelling code, which is not shipped."""
    kept = {key: value for key, value in config.items() if key != "auto_map"}
    if isinstance(kept.get("text_config"), dict):
        kept["text_config"] = without_code(kept["text_config"])
    return kept


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    importlib.import_module("vllm.config")  # first, or the next import is circular
    from vllm.transformers_utils import model_arch_config_convertor as convertors
    from vllm.transformers_utils.config import get_config, get_hf_text_config

    answer = {}
    for name in fixture_names():
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "config.json")
            path.write_text(json.dumps(without_code(fixture(name))), encoding="utf-8")
            config = get_config(directory, trust_remote_code=False)
            text = get_hf_text_config(config)
            convertor = convertors.MODEL_ARCH_CONFIG_CONVERTORS.get(
                config.model_type, convertors.ModelArchConfigConvertorBase
            )
            answer[name] = {
                "vllm": theirs(config, text, convertor(config, text).convert()),
                "file": ours(model_facts(fixture(name))),
                "server": ours(model_facts(config.to_dict())),
            }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
