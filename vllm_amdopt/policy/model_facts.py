"""What a model is, read from its Hugging Face config.json: dictionary in, frozen record out.

Not a validator of models: it reads what decisions need and says in words what it cannot read.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

AttentionKind = Literal["mha", "gqa", "mqa", "mla", "sparse_mla", "hybrid", "none"]


class ModelConfigError(ValueError):
    """A model configuration that cannot be read; the message is one sentence for the user."""


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that decisions rest on.

    For MLA, `head_size` is the width of one cached row (kv_lora_rank + qk_rope_head_dim) and
    `num_kv_heads` is 1, as vLLM counts them. Sizes are of the whole model, not of one rank.
    `dtype` is the one config.json names; `max_context` is in tokens.
    """

    architecture: str
    model_type: str
    attention: AttentionKind
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    sliding_window: int | None = None
    logits_soft_cap: float | None = None
    has_sinks: bool = False
    has_alibi: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    moe_intermediate_size: int | None = None
    quantization: str | None = None
    dtype: str | None = None
    max_context: int | None = None
    encoder_only: bool = False
    encoder_decoder: bool = False
    bidirectional_images: bool = False
    """Image tokens attend in both directions (Gemma-3, PaliGemma): not plain causal attention."""
    attention_chunk_size: int | None = None
    """Chunked local attention (Llama-4), in tokens."""
    fp8_weights: bool = False
    weight_block_size: tuple[int, int] | None = None

    @property
    def summary(self) -> str:
        """One line for tables: "LlamaForCausalLM: GQA, 32 heads / 8 KV heads x 128, 32 layers"."""
        kind = ATTENTION_WORDS[self.attention]
        if self.attention in ("mla", "sparse_mla"):
            shape = f"{self.num_heads} heads, latent {self.kv_lora_rank}+{self.qk_rope_head_dim}"
        elif self.attention == "none":
            shape = "no attention heads"
        else:
            shape = f"{self.num_heads} heads / {self.num_kv_heads} KV heads x {self.head_size}"
        parts = [f"{self.architecture}: {kind}", shape, f"{self.num_layers} layers"]
        if self.num_experts:
            parts.append(f"{self.num_experts} experts, {self.experts_per_token} per token")
        parts.append(self.quantization or self.dtype or "dtype not given")
        return ", ".join(parts)


ATTENTION_WORDS: Mapping[str, str] = {
    "mha": "MHA",
    "gqa": "GQA",
    "mqa": "MQA",
    "mla": "MLA",
    "sparse_mla": "sparse MLA",
    "hybrid": "hybrid attention (with linear, state-space or convolution layers)",
    "none": "no attention",
}

_TEXT_KEYS = ("text_config", "llm_config", "language_config", "thinker_config", "llm")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads")
_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")

_STATE_SPACE_ONLY = ("mamba", "mamba2", "falcon_mamba")
# vLLM runs these as plain multi-head attention although their configs hold a latent rank
# (ModelArchConfigConvertor.is_deepseek_mla names the model types that it runs as MLA).
_LATENT_RUN_AS_MHA = ("minicpm3", "plm")
# ModelArchConfigConvertor.is_mm_prefix_lm, vLLM 0.32.
_BIDIRECTIONAL_IMAGES = ("bagel", "gemma3", "molmo2", "moondream3", "paligemma")
_ENCODERS = re.compile(r"(Bert|Roberta|Electra|MPNet|GteModel|GteNewModel|CLIPModel|SiglipModel)")


def read_model_facts(directory: Path | str) -> ModelFacts:
    """Facts of the model in `directory`, or of that config.json; ModelConfigError in words."""
    path = Path(directory)
    try:
        if path.is_dir():
            path = path / "config.json"
        elif not path.exists():
            raise ModelConfigError(
                f"{path} does not exist: give a model directory that holds a config.json"
            )
        if not path.exists():
            raise ModelConfigError(
                f"{path.parent} has no config.json: give the directory of a Hugging Face model"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ModelConfigError(f"{path} is not a text file in UTF-8") from error
    except ValueError as error:
        if isinstance(error, ModelConfigError):
            raise
        raise ModelConfigError(f"{str(path)!r} is not a usable path: {error}") from error
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelConfigError(
            f"{path} holds a JSON {_json_word(config)}, expected an object with the model's fields"
        )
    try:
        return model_facts(config)
    except ModelConfigError as error:
        raise ModelConfigError(f"{path}: {error}") from error


def model_facts(config: Mapping[str, object]) -> ModelFacts:
    """Facts of a model from its config.json, nested (`text_config`) or flat.

    Raises ModelConfigError where a field that everything rests on is missing or impossible.
    """
    if not isinstance(config, Mapping):
        raise ModelConfigError(
            f"the model configuration is a JSON {_json_word(config)}, expected an object"
        )
    text = _text_config(config)
    model_type = _string(text, "model_type") or _string(config, "model_type") or "unknown"
    outer_type = _string(config, "model_type") or model_type
    architecture = _architecture(config) or _architecture(text) or "unknown architecture"
    # HF nests MPT's and DBRX's attention fields one level deeper.
    attention_config = _mapping(text, "attn_config")

    if model_type in _STATE_SPACE_ONLY or model_type.startswith("rwkv"):
        return ModelFacts(
            architecture=architecture,
            model_type=model_type,
            attention="none",
            num_layers=_whole(text, _LAYERS, required="number of layers"),
            num_heads=0,
            num_kv_heads=0,
            head_size=0,
            dtype=_dtype(config, text),
        )

    num_heads = _whole(text, _HEADS, required="number of attention heads")
    num_layers = _whole(text, _LAYERS, required="number of layers")
    kv_lora_rank = _optional(text, ("kv_lora_rank",))
    rope_head_dim = _optional(text, ("qk_rope_head_dim",))
    num_kv_heads = _kv_heads(text, attention_config, num_heads)
    attention = _attention_kind(text, model_type, num_heads, num_kv_heads, kv_lora_rank)
    if attention == "mla" and rope_head_dim is None:
        raise ModelConfigError("kv_lora_rank is given without qk_rope_head_dim")
    if attention in ("mla", "sparse_mla"):
        num_kv_heads = 1
        rank_and_rope = (kv_lora_rank or 0) + (rope_head_dim or 0)
        head_size = rank_and_rope or _head_size(text, num_heads)
    else:
        head_size = _head_size(text, num_heads)
    if attention in ("mha", "gqa", "mqa") and num_heads % num_kv_heads:
        raise ModelConfigError(
            f"{num_heads} attention heads are not divisible by {num_kv_heads} KV heads"
        )

    experts = _optional(text, _EXPERTS) or _optional(_mapping(text, "ffn_config"), _EXPERTS) or 0
    moe_size = _optional(text, ("moe_intermediate_size", "intermediate_size")) if experts else None
    quantization, fp8_weights, weight_block_size = _quantization(config, text)
    bidirectional = text.get("use_bidirectional_attention") is True
    return ModelFacts(
        architecture=architecture,
        model_type=model_type,
        attention=attention,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        kv_lora_rank=kv_lora_rank,
        qk_rope_head_dim=rope_head_dim,
        sliding_window=_sliding_window(text),
        logits_soft_cap=_number(text, "attn_logit_softcapping"),
        has_sinks=_has_sinks(text, model_type),
        has_alibi=_has_alibi(text, attention_config, model_type),
        num_experts=experts,
        experts_per_token=(_optional(text, _TOP_K) or 0) if experts else 0,
        moe_intermediate_size=moe_size,
        quantization=quantization,
        dtype=_dtype(config, text),
        max_context=_optional(text, _CONTEXT) or _optional(config, _CONTEXT),
        encoder_only=bool(_ENCODERS.search(architecture))
        or bidirectional
        or text.get("is_causal") is False,
        encoder_decoder=config.get("is_encoder_decoder") is True,
        bidirectional_images=config.get("is_mm_prefix_lm") is True
        or outer_type in _BIDIRECTIONAL_IMAGES,
        attention_chunk_size=_optional(text, ("attention_chunk_size",)),
        fp8_weights=fp8_weights,
        weight_block_size=weight_block_size,
    )


def _text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The language model's part of a config: itself, or what a multimodal config nests."""
    for _ in range(3):  # Qwen-Omni nests twice: thinker_config, then text_config
        if any(config.get(key) is not None for key in _HEADS):
            return config
        nested = [_mapping(config, key) for key in _TEXT_KEYS if isinstance(config.get(key), dict)]
        if not nested:
            return config
        config = nested[0]
    return config


def _attention_kind(
    text: Mapping[str, object],
    model_type: str,
    num_heads: int,
    num_kv_heads: int,
    kv_lora_rank: int | None,
) -> AttentionKind:
    if _is_hybrid(text):
        return "hybrid"
    latent = kv_lora_rank is not None and model_type not in _LATENT_RUN_AS_MHA
    if text.get("compress_ratios") or (latent and _optional(text, ("index_topk",))):
        return "sparse_mla"
    if latent:
        return "mla"
    if num_kv_heads == num_heads:
        return "mha"
    return "mqa" if num_kv_heads == 1 else "gqa"


def _is_hybrid(text: Mapping[str, object]) -> bool:
    """Whether some layers are linear attention, state space or convolution."""
    for key in ("layer_types", "layers_block_type", "block_types"):
        kinds = text.get(key)
        if isinstance(kinds, list) and not all(_is_softmax_attention(str(kind)) for kind in kinds):
            return True
    kinds = text.get("attn_type_list")  # MiniMax: 0 = lightning, 1 = softmax attention
    if isinstance(kinds, list) and any(kind == 0 for kind in kinds):
        return True
    names = ("linear_attn_config", "hybrid_override_pattern", "conv_L_cache", "attn_layer_period")
    prefixes = ("mamba_", "ssm_", "linear_num_", "linear_conv_")
    return any(
        bool(value) and (key in names or key.startswith(prefixes)) for key, value in text.items()
    )


def _is_softmax_attention(layer_kind: str) -> bool:
    """Whether a layer of this kind attends over a KV cache; an unknown kind counts as not."""
    if layer_kind.startswith(("linear", "lightning")):
        return False
    return layer_kind.endswith("attention") or layer_kind in ("full", "sliding", "dense", "moe")


def _kv_heads(
    text: Mapping[str, object], attention_config: Mapping[str, object], num_heads: int
) -> int:
    found = _optional(text, _KV_HEADS) or _optional(attention_config, _KV_HEADS)
    # Falcon-7B and GPT-BigCode say it with a flag; Falcon-40B's layout counts its KV heads.
    if text.get("multi_query") is True and text.get("new_decoder_architecture") is not True:
        return 1
    if text.get("multi_query_attention") is True:  # ChatGLM
        return _optional(text, ("multi_query_group_num",)) or found or num_heads
    return found or num_heads


def _head_size(text: Mapping[str, object], num_heads: int) -> int:
    found = _optional(text, ("head_dim", "kv_channels", "attention_head_dim"))
    if found:
        return found
    nope = _optional(text, ("qk_nope_head_dim",))
    rope = _optional(text, ("qk_rope_head_dim",))
    if nope and rope:
        return nope + rope
    width = _whole(text, _WIDTH, required="hidden size")
    if width < num_heads:
        raise ModelConfigError(f"hidden size {width} is smaller than {num_heads} attention heads")
    return width // num_heads


def _sliding_window(text: Mapping[str, object]) -> int | None:
    if text.get("use_sliding_window") is False:  # Qwen2 and Qwen3 keep a size that is not in use
        return None
    return _optional(text, ("sliding_window", "sliding_window_size"))


def _has_sinks(text: Mapping[str, object], model_type: str) -> bool:
    return model_type.startswith("gpt_oss") or any(
        bool(value) for key, value in text.items() if "attention_sink" in key or "sink_bias" in key
    )


def _has_alibi(
    text: Mapping[str, object], attention_config: Mapping[str, object], model_type: str
) -> bool:
    position = str(text.get("position_embedding_type") or text.get("position_embedding") or "")
    return (
        model_type == "bloom"
        or text.get("alibi") is True
        or text.get("use_alibi") is True
        or attention_config.get("alibi") is True
        or position.lower() == "alibi"
        # Baichuan-13B has ALiBi and no field that says so; Baichuan-7B (4096 wide) has rope.
        or (model_type == "baichuan" and _optional(text, _WIDTH) != 4096)
    )


def _quantization(
    config: Mapping[str, object], text: Mapping[str, object]
) -> tuple[str | None, bool, tuple[int, int] | None]:
    """(method, FP8 weights?, weight block) from `quantization_config`, wherever it is nested."""
    found: Mapping[str, object] = {}
    for holder in (config, text):
        for key in ("quantization_config", "compression_config"):
            found = found or _mapping(holder, key)
    if not found:
        return None, False, None
    method = (_string(found, "quant_method") or _string(found, "quant_algo") or "unknown").lower()
    block = _block(found.get("weight_block_size"))
    fp8 = method in ("fp8", "fbgemm_fp8") or str(found.get("quant_algo")).upper() == "FP8"
    for group in _mapping(found, "config_groups").values():  # compressed-tensors
        weights = _mapping(group, "weights") if isinstance(group, Mapping) else {}
        if weights.get("type") == "float" and weights.get("num_bits") == 8:
            fp8 = True
            block = block or _block(weights.get("block_structure"))
    weights = _mapping(_mapping(found, "global_quant_config"), "weight")  # Quark
    if str(weights.get("dtype")).startswith("fp8"):
        fp8 = True
    return method, fp8, block


def _block(value: object) -> tuple[int, int] | None:
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    ):
        return (value[0], value[1])
    return None


def _dtype(config: Mapping[str, object], text: Mapping[str, object]) -> str | None:
    for holder in (text, config):
        for key in ("torch_dtype", "dtype"):
            value = _string(holder, key)
            if value:
                return value.removeprefix("torch.")
    return None


def _architecture(config: Mapping[str, object]) -> str | None:
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    return None


def _mapping(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def _string(config: Mapping[str, object], key: str) -> str | None:
    value = config.get(key)
    return value if isinstance(value, str) and value else None


def _number(config: Mapping[str, object], key: str) -> float | None:
    value = config.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return float(value)
    return None


def _whole(config: Mapping[str, object], keys: Iterable[str], *, required: str) -> int:
    """The first of `keys` that is given, as a positive whole number; an error if none is."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        number = _as_whole(value)
        if number is None or number <= 0:
            raise ModelConfigError(f"{key} is {_shown(value)}, expected a positive whole number")
        return number
    raise ModelConfigError(f"the {required} is not given ({' or '.join(keys)} is missing)")


def _optional(config: Mapping[str, object], keys: Iterable[str]) -> int | None:
    """The first of `keys` that is given; None if none is, or where 0 or null mean "not used"."""
    for key in keys:
        value = config.get(key)
        if value is None or value is False:
            continue
        number = _as_whole(value)
        if number is None or number < 0:
            raise ModelConfigError(f"{key} is {_shown(value)}, expected a whole number")
        return number or None
    return None


def _as_whole(value: object) -> int | None:
    """An int, an integral float, or the largest of a list of them (one entry a layer)."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list) and value:
        numbers = [_as_whole(item) for item in value if not isinstance(item, list)]
        known = [number for number in numbers if number is not None]
        return max(known) if len(known) == len(value) else None
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _json_word(value: object) -> str:
    words = {list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else words.get(type(value), type(value).__name__)
