"""What a model is, read from its Hugging Face config.json: dictionary in, frozen record out.

Not a validator of models: it reads what decisions need and says in words what it cannot read.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vllm_amdopt.policy.config_reading import (
    ModelConfigError,
    json_word,
    lenient_whole,
    mapping,
    number,
    optional_whole,
    required_whole,
    string,
)
from vllm_amdopt.policy.layer_kinds import (
    attention_layers,
    first_dense_layers,
    is_hybrid,
    moe_layers,
    sliding_layers,
)
from vllm_amdopt.policy.parameters import ParameterParts, count_parameters
from vllm_amdopt.policy.quantization_facts import read_quantization

__all__ = ["ATTENTION_WORDS", "ModelConfigError", "ModelFacts", "model_facts", "read_config"]

AttentionKind = Literal["mha", "gqa", "mqa", "mla", "sparse_mla", "hybrid", "none"]


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
    hidden_size: int | None = None
    intermediate_size: int | None = None
    """Width of the dense MLP."""
    vocab_size: int | None = None
    v_head_dim: int | None = None
    """Where values have another width than keys; for MLA, the width before the latent."""
    q_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    index_head_dim: int | None = None
    """Width of the sparse MLA indexer's key, of which one is cached a token and layer."""
    num_shared_experts: int = 0
    first_dense_layers: int = 0
    """Layers at the start with a dense MLP, in a model with experts."""
    has_vision: bool = False
    kv_scales: bool | None = None
    """The checkpoint has FP8 scales for the KV cache; None where config.json cannot say."""
    weight_format: str = "unknown"
    """One of quantization_facts.WEIGHT_FORMATS, that of most of the quantized weights."""
    weight_group_size: int | None = None
    """Values that share one scale, where the format leaves it open (INT4)."""
    unquantized_parts: tuple[str, ...] = ()
    """Of quantization_facts.PARTS, those that a quantized checkpoint leaves in 16 bits."""
    attention_layers: int | None = None
    """Layers that keep keys and values for every token; None where a hybrid does not say."""
    sliding_layers: int | None = None
    """Of those, the layers that reach back `sliding_window` tokens; None where it is not said."""
    parameters: int | None = None
    active_parameters: int | None = None
    """Parameters that one token uses: see parameters.ParameterParts.active."""
    parameter_parts: ParameterParts | None = None

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
# Read images though an abridged config.json may lack their vision_config.
_VISION_TYPES = ("llama4", "gemma3", "kimi_k25", "qwen3_vl", "qwen3_vl_moe", "mllama")
# transformers Gemma3TextConfig's default; Google's config.json leaves the field out.
_CLASS_VOCABULARIES = {"gemma3_text": 262208}
_ENCODERS = re.compile(r"(Bert|Roberta|Electra|MPNet|GteModel|GteNewModel|CLIPModel|SiglipModel)")


def read_config(directory: Path | str) -> dict[str, object]:
    """The config.json in `directory`, or that file, as it stands; ModelConfigError in words."""
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
            f"{path} holds a JSON {json_word(config)}, expected an object with the model's fields"
        )
    return config


def model_facts(config: Mapping[str, object]) -> ModelFacts:
    """Facts of a model from its config.json, nested (`text_config`) or flat.

    Raises ModelConfigError where a field that everything rests on is missing or impossible.
    """
    if not isinstance(config, Mapping):
        raise ModelConfigError(
            f"the model configuration is a JSON {json_word(config)}, expected an object"
        )
    text = _text_config(config)
    model_type = string(text, "model_type") or string(config, "model_type") or "unknown"
    outer_type = string(config, "model_type") or model_type
    architecture = _architecture(config) or _architecture(text) or "unknown architecture"
    # HF nests MPT's and DBRX's attention fields one level deeper.
    attention_config = mapping(text, "attn_config")

    if model_type in _STATE_SPACE_ONLY or model_type.startswith("rwkv"):
        return ModelFacts(
            architecture=architecture,
            model_type=model_type,
            attention="none",
            num_layers=required_whole(text, _LAYERS, what="number of layers"),
            num_heads=0,
            num_kv_heads=0,
            head_size=0,
            dtype=_dtype(config, text),
            hidden_size=lenient_whole(text, _WIDTH),
            vocab_size=_vocab_size(config, text, model_type),
            attention_layers=0,
            sliding_layers=0,
        )

    num_heads = required_whole(text, _HEADS, what="number of attention heads")
    num_layers = required_whole(text, _LAYERS, what="number of layers")
    kv_lora_rank = optional_whole(text, ("kv_lora_rank",))
    rope_head_dim = optional_whole(text, ("qk_rope_head_dim",))
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

    experts = (
        optional_whole(text, _EXPERTS) or optional_whole(mapping(text, "ffn_config"), _EXPERTS) or 0
    )
    moe_size = (
        optional_whole(text, ("moe_intermediate_size", "intermediate_size")) if experts else None
    )
    dtype = _dtype(config, text)
    quantization = read_quantization(config, text, dtype, num_layers)
    bidirectional = text.get("use_bidirectional_attention") is True
    sliding_window = _sliding_window(text)
    facts = ModelFacts(
        architecture=architecture,
        model_type=model_type,
        attention=attention,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        kv_lora_rank=kv_lora_rank,
        qk_rope_head_dim=rope_head_dim,
        sliding_window=sliding_window,
        logits_soft_cap=number(text, "attn_logit_softcapping"),
        has_sinks=_has_sinks(text, model_type),
        has_alibi=_has_alibi(text, attention_config, model_type),
        num_experts=experts,
        experts_per_token=(optional_whole(text, _TOP_K) or 0) if experts else 0,
        moe_intermediate_size=moe_size,
        quantization=quantization.method,
        dtype=dtype,
        max_context=optional_whole(text, _CONTEXT) or optional_whole(config, _CONTEXT),
        encoder_only=bool(_ENCODERS.search(architecture))
        or bidirectional
        or text.get("is_causal") is False,
        encoder_decoder=config.get("is_encoder_decoder") is True,
        bidirectional_images=config.get("is_mm_prefix_lm") is True
        or outer_type in _BIDIRECTIONAL_IMAGES,
        attention_chunk_size=optional_whole(text, ("attention_chunk_size",)),
        fp8_weights=quantization.fp8_weights,
        weight_block_size=quantization.block_size,
        hidden_size=lenient_whole(text, _WIDTH),
        intermediate_size=_dense_width(text, model_type),
        vocab_size=_vocab_size(config, text, model_type),
        v_head_dim=lenient_whole(text, ("v_head_dim",)),
        q_lora_rank=lenient_whole(text, ("q_lora_rank",)),
        qk_nope_head_dim=lenient_whole(text, ("qk_nope_head_dim",)),
        index_head_dim=lenient_whole(text, ("index_head_dim",)),
        num_shared_experts=_shared_experts(text, model_type) if experts else 0,
        first_dense_layers=first_dense_layers(text, num_layers) if experts else 0,
        has_vision=_has_vision(config, outer_type),
        kv_scales=quantization.kv_scales,
        weight_format=quantization.weight_format,
        weight_group_size=quantization.group_size,
        unquantized_parts=quantization.unquantized_parts,
        attention_layers=attention_layers(text, num_layers, attention == "hybrid"),
        sliding_layers=sliding_layers(text, model_type, num_layers, sliding_window),
    )
    parts = count_parameters(
        facts,
        text,
        moe_layers=moe_layers(text, num_layers) if experts else 0,
        tied=_is_tied(config, text, model_type),
    )
    if parts is None:
        return facts
    return replace(
        facts, parameters=parts.total, active_parameters=parts.active, parameter_parts=parts
    )


def _text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The language model's part of a config: itself, or what a multimodal config nests."""
    for _ in range(3):  # Qwen-Omni nests twice: thinker_config, then text_config
        if any(config.get(key) is not None for key in _HEADS):
            return config
        nested = [mapping(config, key) for key in _TEXT_KEYS if isinstance(config.get(key), dict)]
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
    if is_hybrid(text):
        return "hybrid"
    latent = kv_lora_rank is not None and model_type not in _LATENT_RUN_AS_MHA
    if text.get("compress_ratios") or (latent and optional_whole(text, ("index_topk",))):
        return "sparse_mla"
    if latent:
        return "mla"
    if num_kv_heads == num_heads:
        return "mha"
    return "mqa" if num_kv_heads == 1 else "gqa"


def _kv_heads(
    text: Mapping[str, object], attention_config: Mapping[str, object], num_heads: int
) -> int:
    found = optional_whole(text, _KV_HEADS) or optional_whole(attention_config, _KV_HEADS)
    # Falcon-7B and GPT-BigCode say it with a flag; Falcon-40B's layout counts its KV heads.
    if text.get("multi_query") is True and text.get("new_decoder_architecture") is not True:
        return 1
    if text.get("multi_query_attention") is True:  # ChatGLM
        return optional_whole(text, ("multi_query_group_num",)) or found or num_heads
    return found or num_heads


def _head_size(text: Mapping[str, object], num_heads: int) -> int:
    found = optional_whole(text, ("head_dim", "kv_channels", "attention_head_dim"))
    if found:
        return found
    nope = optional_whole(text, ("qk_nope_head_dim",))
    rope = optional_whole(text, ("qk_rope_head_dim",))
    if nope and rope:
        return nope + rope
    width = required_whole(text, _WIDTH, what="hidden size")
    if width < num_heads:
        raise ModelConfigError(f"hidden size {width} is smaller than {num_heads} attention heads")
    return width // num_heads


def _sliding_window(text: Mapping[str, object]) -> int | None:
    if text.get("use_sliding_window") is False:  # Qwen2 and Qwen3 keep a size that is not in use
        return None
    return optional_whole(text, ("sliding_window", "sliding_window_size"))


def _has_sinks(text: Mapping[str, object], model_type: str) -> bool:
    return model_type.startswith("gpt_oss") or any(
        bool(value)
        for key, value in text.items()
        if isinstance(key, str) and ("attention_sink" in key or "sink_bias" in key)
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
        or (model_type == "baichuan" and optional_whole(text, _WIDTH) != 4096)
    )


def _dense_width(text: Mapping[str, object], model_type: str) -> int | None:
    """llama4.py: `intermediate_size` is the experts' width, `intermediate_size_mlp` the dense."""
    if model_type.startswith("llama4"):
        return lenient_whole(text, ("intermediate_size_mlp", "intermediate_size"))
    return lenient_whole(text, ("intermediate_size", "ffn_hidden_size", "n_inner"))


def _shared_experts(text: Mapping[str, object], model_type: str) -> int:
    if model_type.startswith("llama4"):  # Llama4MoE.n_shared_experts; no field says so
        return 1
    counted = lenient_whole(text, ("n_shared_experts", "num_shared_experts"))
    width = lenient_whole(text, ("shared_expert_intermediate_size", "shared_intermediate_size"))
    return counted or (1 if width else 0)


def _vocab_size(
    config: Mapping[str, object], text: Mapping[str, object], model_type: str
) -> int | None:
    found = lenient_whole(text, ("vocab_size",)) or lenient_whole(config, ("vocab_size",))
    return found or _CLASS_VOCABULARIES.get(model_type)


def _is_tied(config: Mapping[str, object], text: Mapping[str, object], model_type: str) -> bool:
    """Whether the output head is the embedding table.

    Where the outer and the inner config disagree, the inner one holds a class default: vLLM
    unties by the checkpoint (config/model.py, maybe_untie_word_embeddings, 0.32).
    """
    given = [holder.get("tie_word_embeddings") for holder in (text, config)]
    known = [value for value in given if isinstance(value, bool)]
    if known:
        return all(known)
    return model_type.startswith("gemma")  # transformers GemmaConfig and its successors: true


def _has_vision(config: Mapping[str, object], outer_type: str) -> bool:
    keys = ("vision_config", "vision_tower", "visual", "mm_vision_tower", "vision_model")
    return outer_type in _VISION_TYPES or any(bool(config.get(key)) for key in keys)


def _dtype(config: Mapping[str, object], text: Mapping[str, object]) -> str | None:
    for holder in (text, config):
        for key in ("torch_dtype", "dtype"):
            value = string(holder, key)
            if value:
                return value.removeprefix("torch.")
    return None


def _architecture(config: Mapping[str, object]) -> str | None:
    names = config.get("architectures")
    return string({"name": names[0]}, "name") if isinstance(names, list) and names else None
