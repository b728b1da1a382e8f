"""What kind each layer of a model is, counted from its config.json: attention, window, experts.

Counts only; None where the config does not say. Keys and defaults are those that vLLM's model
files and the transformers classes use (named at each).
"""

from collections.abc import Iterator, Mapping

from vllm_amdopt.policy.config_reading import as_whole, lenient_whole, mapping

MOST_LAYERS = 4096
"""A config with more layers is not a model's; its layers are not counted one by one."""
# transformers Qwen3NextConfig: layer_types are made from the interval, 4 unless it is given.
_FULL_ATTENTION_INTERVAL = 4
# transformers Gemma3TextConfig: every sixth layer is global, unless layer_types say otherwise.
_WINDOW_PATTERNS = {"gemma3": 6, "gemma3_text": 6, "gemma2": 2}


def is_hybrid(text: Mapping[str, object]) -> bool:
    """Whether some layers are linear attention, state space or convolution."""
    for kinds in _kind_lists(text):
        if not all(_is_softmax_attention(kind) for kind in kinds):
            return True
    types = text.get("attn_type_list")  # MiniMax: 0 = lightning, 1 = softmax attention
    if isinstance(types, list) and 0 in types:
        return True
    names = ("linear_attn_config", "hybrid_override_pattern", "conv_L_cache", "attn_layer_period")
    prefixes = ("mamba_", "ssm_", "linear_num_", "linear_conv_")
    return any(
        bool(value) and (key in names or str(key).startswith(prefixes))
        for key, value in text.items()
    )


def _kind_lists(text: Mapping[str, object]) -> Iterator[list[str]]:
    for key in ("layer_types", "layers_block_type", "block_types"):
        kinds = text.get(key)
        if isinstance(kinds, list):
            yield [kind if isinstance(kind, str) else "unknown" for kind in kinds]


def _is_softmax_attention(layer_kind: str) -> bool:
    """Whether a layer of this kind attends over a KV cache; an unknown kind counts as not."""
    if layer_kind.startswith(("linear", "lightning")):
        return False
    return layer_kind.endswith("attention") or layer_kind in ("full", "sliding", "dense", "moe")


def attention_layers(text: Mapping[str, object], layers: int, hybrid: bool) -> int | None:
    """The layers that keep keys and values for every token; None where a hybrid does not say."""
    if not hybrid:
        return layers
    for kinds in _kind_lists(text):
        found = sum(_is_softmax_attention(kind) or kind == "hybrid" for kind in kinds)
        return found if len(kinds) == layers else None
    types = text.get("attn_type_list")
    if isinstance(types, list) and len(types) == layers:
        return types.count(1)
    pattern = text.get("hybrid_override_pattern")  # NemotronH: "*" is an attention layer
    if isinstance(pattern, str) and len(pattern) == layers:
        return pattern.count("*")
    full = mapping(text, "linear_attn_config").get("full_attn_layers")  # Kimi-Linear
    if isinstance(full, list) and len(full) <= layers:
        return len(full)
    period = lenient_whole(text, ("attn_layer_period",))  # transformers JambaConfig
    if period is not None:
        offset = as_whole(text.get("attn_layer_offset", 0)) or 0
        return max(0, -(-(layers - offset) // period)) if 0 <= offset < period else None
    interval = lenient_whole(text, ("full_attention_interval",))
    if interval is None and "linear_num_value_heads" in text:
        interval = _FULL_ATTENTION_INTERVAL
    return None if interval is None else layers // interval


def sliding_layers(
    text: Mapping[str, object], model_type: str, layers: int, window: int | None
) -> int | None:
    """The layers whose attention reaches back `window` tokens; None where it is not said."""
    if window is None:
        return 0
    for kinds in _kind_lists(text):
        return sum(kind.startswith("sliding") for kind in kinds)
    pattern = lenient_whole(text, ("sliding_window_pattern",)) or _WINDOW_PATTERNS.get(model_type)
    if pattern is not None:
        return layers - layers // pattern
    if model_type in ("mistral", "mixtral", "phi3", "starcoder2"):
        return layers
    return None


def first_dense_layers(text: Mapping[str, object], layers: int) -> int:
    """How many layers at the start have a dense MLP, in a model with experts."""
    for layer in range(min(layers, MOST_LAYERS)):
        if _has_experts(text, layer):
            return layer
    return layers


def moe_layers(text: Mapping[str, object], layers: int) -> int | None:
    """How many layers have experts, in a model that has some; None above MOST_LAYERS."""
    if layers > MOST_LAYERS:
        return None
    return sum(_has_experts(text, layer) for layer in range(layers))


def _has_experts(text: Mapping[str, object], layer: int) -> bool:
    """vLLM's own tests on a layer, together; a key that a model lacks asks for nothing.

    deepseek_v2.py and glm4_moe.py (first_k_dense_replace, moe_layer_freq), qwen3_moe.py and
    qwen3_next.py (mlp_only_layers, decoder_sparse_step), llama4.py (interleave_moe_layer_step).
    """
    if layer < (lenient_whole(text, ("first_k_dense_replace",)) or 0):
        return False
    frequency = text.get("moe_layer_freq")
    if isinstance(frequency, list):  # MiMo-V2: one flag a layer
        return bool(frequency[layer]) if layer < len(frequency) else True
    if layer % (as_whole(frequency) or 1) != 0:
        return False
    dense = text.get("mlp_only_layers")
    if isinstance(dense, list) and layer in dense:
        return False
    step = lenient_whole(text, ("decoder_sparse_step",)) or 1
    interleaved = lenient_whole(text, ("interleave_moe_layer_step",)) or 1
    return (layer + 1) % step == 0 and (layer + 1) % interleaved == 0
