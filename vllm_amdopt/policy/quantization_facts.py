"""How a checkpoint's weights are stored, read from its quantization config; not what runs them.

Read where vLLM reads it (0.30 to 0.32: `_normalize_quantization_config` in
transformers_utils/model_arch_config_convertor.py, then each method's `from_config` in
model_executor/layers/quantization/).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vllm_amdopt.policy.config_reading import block, lenient_whole, mapping, string, strings

WEIGHT_FORMATS: Mapping[str, str] = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp8_tensor": "FP8, one scale a tensor",
    "fp8_token": "FP8, one scale an output channel, activations scaled by token",
    "fp8_block": "FP8, one scale a block",
    "mxfp8": "MXFP8, one scale for 32 values",
    "mxfp6": "MXFP6, one scale for 32 values",
    "mxfp4": "MXFP4, one scale for 32 values",
    "nvfp4": "NVFP4, one scale for 16 values",
    "int8": "INT8",
    "int4": "INT4",
    "unknown": "not known from config.json",
}
_FORMAT_OF_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32"}
# modelopt.py LINEAR_ALGOS, vLLM 0.32.
_FORMAT_OF_MODELOPT = {
    "FP8": "fp8_tensor",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8_token",
    "FP8_PB_WO": "fp8_block",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "MXFP8": "mxfp8",
}
# These load no KV scales: their `get_quant_method` returns nothing for an Attention layer.
_NO_KV_SCALES = ("mxfp4", "gpt_oss_mxfp4", "fbgemm_fp8", "gptq", "awq", "auto_gptq", "auto_awq")

PARTS = ("attention", "linear_attention", "dense_mlp", "shared_experts", "routed_experts")
"""The parts of a model that a checkpoint quantizes or leaves alone as a whole."""
_PREFIXES = ("model.layers", "language_model.model.layers", "model.language_model.layers")


@dataclass(frozen=True)
class Quantization:
    """`weight_format` is one of WEIGHT_FORMATS, that of most of the quantized weights.

    `kv_scales`: the checkpoint has FP8 scales for the KV cache; None where config.json cannot
    say (an FP8 checkpoint may hold `k_proj.output_scale` tensors that only its files name).
    """

    method: str | None = None
    weight_format: str = "unknown"
    fp8_weights: bool = False
    block_size: tuple[int, int] | None = None
    group_size: int | None = None
    """Values that share one scale, where the format leaves it open (INT4)."""
    kv_scales: bool | None = None
    unquantized_parts: tuple[str, ...] = ()
    """Of PARTS, those that stay in 16 bits."""


def read_quantization(
    config: Mapping[str, object], text: Mapping[str, object], dtype: str | None, layers: int
) -> Quantization:
    """From the outer config first, then from the language model's, as vLLM does."""
    found: Mapping[str, object] = {}
    for holder in (config, text):
        for key in ("quantization_config", "compression_config"):
            found = found or mapping(holder, key)
    if not found:
        # Without a method vLLM attaches none to Attention, so no scale is loaded. Without a dtype
        # it reads the safetensors files' own (get_torch_dtype), which may be anything.
        weight_format = _FORMAT_OF_DTYPE.get(dtype or "", "unknown")
        kv_scales = None if weight_format == "unknown" else False
        return Quantization(weight_format=weight_format, kv_scales=kv_scales)
    method = _method(found)
    formats = _formats(found, method)
    weight_format, _, group_size = formats[0]
    ignored = _ignored(found)
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        # Mxfp4Config.get_quant_method: linear layers stay unquantized, whatever the list says.
        unquantized = tuple(part for part in PARTS if part != "routed_experts")
    else:
        unquantized = tuple(part for part in PARTS if _is_ignored(part, ignored, layers))
    return Quantization(
        method=method,
        weight_format=weight_format,
        fp8_weights=any(name.startswith("fp8") for name, _, _ in formats),
        block_size=next((size for _, size, _ in formats if size is not None), None),
        group_size=group_size,
        kv_scales=_kv_scales(found, method),
        unquantized_parts=unquantized,
    )


_Format = tuple[str, tuple[int, int] | None, int | None]


def _method(found: Mapping[str, object]) -> str:
    """The method under vLLM's name; ModelOpt's files name a producer or an algorithm instead."""
    inner = mapping(found, "quantization")
    if mapping(found, "producer").get("name") == "modelopt" or "modelopt_quant_config" in inner:
        algorithm = (string(inner, "quant_algo") or "").upper()
        return "modelopt_fp4" if algorithm == "NVFP4" else "modelopt"
    method = string(found, "quant_method") or string(found, "quant_algo") or "unknown"
    return method.lower().replace("compressed_tensors", "compressed-tensors")


def _formats(found: Mapping[str, object], method: str) -> tuple[_Format, ...]:
    """The formats of the weights, that of most of them first; never empty."""
    size = block(found.get("weight_block_size"))
    group = lenient_whole(found, ("group_size", "q_group_size"))
    if method == "fp8":
        return (("fp8_block" if size else "fp8_tensor", size, None),)
    if method == "fbgemm_fp8":  # FBGEMMFp8Config: kFp8StaticTokenSym
        return (("fp8_token", size, None),)
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        return (("mxfp4", size, None),)
    if method in ("awq", "gptq", "auto_awq", "auto_gptq"):
        bits = lenient_whole(found, ("bits", "w_bit"))
        return (({4: "int4", 8: "int8"}.get(bits or 4, "unknown"), size, group),)
    if method == "compressed-tensors":
        groups = mapping(found, "config_groups").values()
        read = [_compressed_format(item) for item in groups if isinstance(item, Mapping)]
        return tuple(read) or (("unknown", size, None),)
    if method == "quark":
        return (_quark_format(found),)
    algorithm = string(mapping(found, "quantization"), "quant_algo") or string(found, "quant_algo")
    if algorithm is not None:
        name = _FORMAT_OF_MODELOPT.get(algorithm.upper(), "unknown")
        block_of_format = size or ((128, 128) if name == "fp8_block" else None)
        return ((name, block_of_format, None),)
    return (("unknown", size, None),)


def _compressed_format(group: Mapping[str, object]) -> _Format:
    """compressed_tensors.py's schemes: bits and type of the weights, and what shares a scale."""
    weights = mapping(group, "weights")
    bits, kind = weights.get("num_bits"), weights.get("type")
    strategy = weights.get("strategy")
    size, values = block(weights.get("block_structure")), lenient_whole(weights, ("group_size",))
    if kind == "float" and bits == 8:
        if size is not None or strategy == "block":
            return "fp8_block", size, None
        if strategy == "group" and values == 32:
            return "mxfp8", None, None
        return ("fp8_token" if strategy == "channel" else "fp8_tensor"), None, None
    if kind == "float" and bits == 4:
        return ("mxfp4" if values == 32 else "nvfp4"), None, None
    if kind == "int" and bits in (4, 8):
        return ("int4" if bits == 4 else "int8"), None, values
    return "unknown", size, None


def _quark_format(found: Mapping[str, object]) -> _Format:
    """quark.py's `_is_fp8_w8a8` and its neighbours; where nothing is global, the first layer's."""
    holders = [mapping(found, "global_quant_config")]
    layers = mapping(found, "layer_quant_config").values()
    holders += [item for item in layers if isinstance(item, Mapping)]
    for holder in holders:
        weight = holder.get("weight")
        entries = weight if isinstance(weight, list) else [weight]
        read = [_quark_entry(item) for item in entries if isinstance(item, Mapping)]
        if len(read) == 2:  # two steps: FP8 then INT4 (_is_fp8_w4a8), FP4 then FP8 (_is_nvfp4)
            names = {name for name, _, _ in read}
            return ("int4" if "int4" in names else "nvfp4"), None, None
        if read:
            return read[0]
    return "unknown", None, None


def _quark_entry(weight: Mapping[str, object]) -> _Format:
    dtype, scheme = str(weight.get("dtype")), weight.get("qscheme")
    values, size = lenient_whole(weight, ("group_size",)), block(weight.get("block_size"))
    if dtype.startswith("fp8"):
        if scheme == "per_group" and values == 32:
            return "mxfp8", None, None
        if scheme == "per_block":
            return "fp8_block", size, None
        return ("fp8_token" if scheme == "per_channel" else "fp8_tensor"), None, None
    if dtype == "fp4":
        return ("nvfp4" if values == 16 else "mxfp4"), None, None
    if dtype.startswith("fp6"):
        return "mxfp6", None, None
    if dtype in ("int4", "uint4"):
        return "int4", None, values
    return ("int8" if dtype == "int8" else "unknown"), None, None


def _kv_scales(found: Mapping[str, object], method: str) -> bool | None:
    scheme = found.get("kv_cache_scheme")
    if method == "compressed-tensors":
        # CompressedTensorsKVCacheMethod.validate_kv_cache_scheme: 8-bit floats only.
        return _is_static_fp8(scheme)
    if method.startswith("modelopt"):
        # torch_utils.get_kv_cache_quant_algo_string, vLLM 0.32.
        inner = mapping(found, "quantization")
        algorithm = inner.get("kv_cache_quant_algo") or found.get("kv_cache_quant_algo")
        inner_scheme = inner.get("kv_cache_scheme") or scheme
        return _is_static_fp8(inner_scheme) or str(algorithm).upper() == "FP8"
    if method == "quark":
        return _quark_kv_scales(found)
    return False if method in _NO_KV_SCALES else None


def _is_static_fp8(scheme: object) -> bool:
    return (
        isinstance(scheme, Mapping)
        and scheme.get("type") == "float"
        and scheme.get("num_bits") == 8
        and scheme.get("dynamic") is not True
    )


def _quark_kv_scales(found: Mapping[str, object]) -> bool | None:
    """QuarkConfig.from_config: `export.kv_cache_group` names layers whose outputs are quantized."""
    export = found.get("export")
    if not isinstance(export, Mapping) or not isinstance(export.get("kv_cache_group"), list):
        # Not a layout that vLLM reads; Quark's own newer key says that there are some.
        return True if mapping(found, "kv_cache_quant_config") else None
    names = strings(export, "kv_cache_group")
    if not names:
        return False
    for layer, holder in mapping(found, "layer_quant_config").items():
        if any(fnmatchcase(str(layer), name) or layer == name for name in names) and isinstance(
            holder, Mapping
        ):
            return str(mapping(holder, "output_tensors").get("dtype")).startswith("fp8")
    return None


def _ignored(found: Mapping[str, object]) -> tuple[str, ...]:
    """The modules left in 16 bits, under the names that the methods use for the list."""
    keys = ("ignore", "exclude", "modules_to_not_convert", "ignored_layers", "exclude_modules")
    inner = mapping(found, "quantization")
    return tuple(name for key in keys for name in (*strings(found, key), *strings(inner, key)))


def _is_ignored(part: str, ignored: tuple[str, ...], layers: int) -> bool:
    """Whether a module that stands for the part is on the list: the one of the middle layer.

    Checkpoints often leave the first and last layers alone, which is not the part as a whole.
    """
    middle = layers // 2
    suffixes = {
        "attention": (f"{middle}.self_attn.o_proj",),
        "linear_attention": (f"{middle}.linear_attn.out_proj",),
        "dense_mlp": (f"{middle}.mlp.down_proj",),
        "shared_experts": (
            f"{middle}.mlp.shared_experts.down_proj",
            f"{middle}.mlp.shared_expert.down_proj",
        ),
        "routed_experts": (
            f"{middle}.mlp.experts.0.down_proj",
            f"{middle}.block_sparse_moe.experts.0.w2",
        ),
    }
    names = [f"{prefix}.{suffix}" for prefix in _PREFIXES for suffix in suffixes[part]]
    paths = {path for name in names for path in _paths(name)}
    # Lists of hundreds of single modules are usual; only the few patterns are matched by name.
    return any(
        any(_matches(entry, name) for name in names)
        if entry.startswith("re:") or "*" in entry
        else entry in paths
        for entry in ignored
    )


def _paths(module: str) -> set[str]:
    """Every run of whole names in a module's path: "a.b" gives "a", "b" and "a.b"."""
    names = module.split(".")
    ends = range(1, len(names) + 1)
    return {".".join(names[start:end]) for end in ends for start in range(end)}


def _matches(pattern: str, module: str) -> bool:
    """Whether a pattern of the list ("re:..." or a glob) names the module or one above it."""
    if not pattern.startswith("re:"):
        return fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")
    try:
        return re.match(pattern[3:], module) is not None
    except (re.error, RecursionError, OverflowError):
        return False
