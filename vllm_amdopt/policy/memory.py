"""Whether a model fits on its GPUs, and how many tokens of KV cache are left: an estimate.

Not what vLLM measures: it loads the weights, runs the model once and takes what is left
(v1/worker/gpu_worker.py, determine_available_memory). Everything that is assumed here is a
sentence in the result. Source files are vLLM's; all of it holds for 0.30 to 0.32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_amdopt.hardware import GIB
from vllm_amdopt.policy.model_facts import ModelFacts
from vllm_amdopt.policy.parameters import ParameterParts

RESERVE_BYTES = 4 * GIB
"""Set aside for activations, graphs, RCCL and the runtime: a round guess, not a measurement."""

# Bits of one weight with its share of the scales. FP8 by block: one float32 scale for 128 x 128.
_BITS = {
    "bf16": 16.0,
    "fp16": 16.0,
    "fp32": 16.0,  # config/model.py, _resolve_auto_dtype: runs in 16 bits unless asked otherwise
    "fp8_tensor": 8.0,
    "fp8_token": 8.0,
    "fp8_block": 8.0 + 32 / (128 * 128),
    "mxfp8": 8.25,
    "mxfp6": 6.25,
    "mxfp4": 4.25,
    "nvfp4": 4.5,
    "int8": 8.0,
}
_INT4_GROUP = 32  # where the checkpoint does not say: the smallest in use, so the largest size
_SIXTEEN_BITS = 16.0
# config/cache.py CacheDType; vLLM stores NVFP4 with one FP8 scale for 16 values.
_CACHE_BITS = {"bfloat16": 16.0, "float16": 16.0, "half": 16.0, "nvfp4": 4.5}
# mla_attention.py, get_kv_cache_spec: DeepSeek's packed row of 512 FP8 values, scales, 64 of rope.
_PACKED_ROWS = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
# deepseek_v2.py, Indexer: an FP8 key and one float32 scale for each 128 of its values.
_INDEX_SCALE_BLOCK, _INDEX_SCALE_BYTES = 128, 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the GPU that holds most. None where config.json does not tell enough.

    `fits`: the weights and the reserve leave room for a KV cache. `context_fits`: the room holds
    one request of the whole context, without which vLLM does not start
    (v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory). `kv_capacity_tokens` is
    of one data-parallel rank.
    """

    weight_bytes: int | None
    kv_bytes_per_token: int | None
    reserve_bytes: int
    budget_bytes: int | None
    """GPU memory times gpu_memory_utilization (v1/worker/utils.py, request_memory)."""
    kv_capacity_tokens: int | None
    fits: bool | None
    short_by_bytes: int
    """What is missing for the weights and the reserve; 0 where they fit or nothing is known."""
    context_fits: bool | None
    assumptions: tuple[str, ...]


def estimate(
    model: ModelFacts,
    *,
    tensor_parallel_size: int = 1,
    expert_parallel: bool = False,
    data_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    kv_cache_dtype: str = "auto",
    gpu_memory_bytes: int | None = None,
    gpu_memory_utilization: float = 0.92,
    context: int | None = None,
    reserve_bytes: int = RESERVE_BYTES,
) -> MemoryEstimate:
    """What the model takes of each GPU in this layout; never raises.

    `context` is --max-model-len in tokens, the model's own where None. The default utilization is
    vLLM's (config/cache.py).
    """
    ranks = max(1, tensor_parallel_size)
    copies, stages = max(1, data_parallel_size), max(1, pipeline_parallel_size)
    remarks: list[str] = []
    weights = _weight_bytes(model, ranks, copies, stages, expert_parallel, remarks)
    per_token = _kv_bytes_per_token(model, ranks, stages, kv_cache_dtype, remarks)
    budget = None
    if gpu_memory_bytes is not None and math.isfinite(gpu_memory_utilization):
        budget = math.ceil(gpu_memory_bytes * gpu_memory_utilization)
        remarks.append(
            f"{reserve_bytes / GIB:.0f} GiB a GPU are set aside for activations, graphs and "
            "libraries; vLLM measures this when it starts"
        )
    if weights is None or budget is None:
        return MemoryEstimate(
            weights, per_token, reserve_bytes, budget, None, None, 0, None, tuple(remarks)
        )
    left = budget - weights - reserve_bytes
    capacity = None if per_token is None else max(0, left) // per_token if per_token else None
    wanted = context if context is not None else model.max_context
    return MemoryEstimate(
        weight_bytes=weights,
        kv_bytes_per_token=per_token,
        reserve_bytes=reserve_bytes,
        budget_bytes=budget,
        kv_capacity_tokens=capacity,
        fits=left > 0,
        short_by_bytes=max(0, -left),
        context_fits=_context_fits(model, capacity, wanted),
        assumptions=tuple(remarks),
    )


def _context_fits(model: ModelFacts, capacity: int | None, wanted: int | None) -> bool | None:
    """Whether one request of the whole context fits; None where only too much was counted."""
    if capacity is None or wanted is None:
        return None
    if capacity >= wanted:
        return True
    return None if _keeps_less(model) else False


def _keeps_less(model: ModelFacts) -> bool:
    """Whether some layers drop tokens that are out of their window or chunk."""
    return bool(model.sliding_layers or model.sliding_window or model.attention_chunk_size)


def _weight_bytes(
    model: ModelFacts,
    ranks: int,
    copies: int,
    stages: int,
    expert_parallel: bool,
    remarks: list[str],
) -> int | None:
    """Bytes of the weights on the GPU that holds most."""
    parts = model.parameter_parts
    if parts is None:
        remarks.append(
            f"the size of the weights is not estimated: no formula for model type "
            f"{model.model_type} with these fields"
        )
        return None
    if model.has_vision:
        remarks.append("the weights of the vision part are not counted: they come on top")
    bits = _weight_bits(model, remarks)
    # Each part: what it takes of one rank, and whether the checkpoint's format holds for it.
    # linear.py: QKVParallelLinear keeps at least one KV head a rank.
    kv_share = max(1, model.num_kv_heads // ranks) / max(1, model.num_kv_heads)
    layers = (
        (parts.query / ranks, "attention"),
        (parts.key_value * kv_share, "attention"),
        (parts.attention_replicated, "attention"),
        (parts.linear_attention / ranks, "linear_attention"),
        (parts.dense_mlp / ranks, "dense_mlp"),
        (parts.shared_experts / ranks, "shared_experts"),
        (_routed_share(parts, ranks, copies, expert_parallel), "routed_experts"),
    )
    plain = _SIXTEEN_BITS
    in_layers = (parts.router + parts.small) * plain + sum(
        count * (plain if part in model.unquantized_parts else bits) for count, part in layers
    )
    in_layers += _absorbed_bits(model, ranks, remarks)
    # distributed/utils.py, get_pp_indices: as evenly as the layers go.
    stage = -(-model.num_layers // stages) / max(1, model.num_layers)
    # vocab_parallel_embedding.py: both tables are split; with a pipeline they are on its two ends.
    ends = (parts.embedding, parts.output_head or (parts.embedding if stages > 1 else 0))
    tables = (max(ends) if stages > 1 else sum(ends)) / ranks * plain
    if stages > 1:
        remarks.append("the pipeline's stages are taken as equal, with the larger table on one")
    if copies > 1 and not parts.experts:
        remarks.append("each data-parallel rank holds the whole model")
    return math.ceil((in_layers * stage + tables) / 8)


def _absorbed_bits(model: ModelFacts, ranks: int, remarks: list[str]) -> float:
    """MLA keeps kv_b_proj once more for decode, as W_UK and W_UV: in 16 bits, with AITER's in 8.

    mla_attention.py, process_weights_after_loading.
    """
    rank, key, value = model.kv_lora_rank, model.qk_nope_head_dim, model.v_head_dim
    if model.attention not in ("mla", "sparse_mla") or not (rank and key and value):
        return 0.0
    remarks.append("MLA's projections from the latent are counted twice: decode keeps its own copy")
    return model.num_layers * rank * model.num_heads * (key + value) / ranks * _SIXTEEN_BITS


def _routed_share(parts: ParameterParts, ranks: int, copies: int, expert_parallel: bool) -> float:
    """fused_moe/config.py, FusedMoEParallelConfig.make: experts are split over TP and DP ranks.

    With expert parallelism by whole experts, without it within each expert.
    """
    groups = ranks * copies
    if not parts.experts:
        return 0.0
    if expert_parallel and groups > 1:
        return parts.routed_experts * (-(-parts.experts // groups) / parts.experts)
    return parts.routed_experts / groups


def _weight_bits(model: ModelFacts, remarks: list[str]) -> float:
    if model.weight_format == "int4":
        group = model.weight_group_size
        if group is None:
            group = _INT4_GROUP
            remarks.append(f"INT4 weights are taken to share a scale by {group}")
        return 4 + 16 / max(1, group)
    bits = _BITS.get(model.weight_format)
    if bits is None:
        remarks.append("config.json does not say how the weights are stored: taken as 16 bits")
        return _SIXTEEN_BITS
    return bits


def _kv_bytes_per_token(
    model: ModelFacts, ranks: int, stages: int, kv_cache_dtype: str, remarks: list[str]
) -> int | None:
    """Bytes of KV cache a token on one GPU; None where the layers that keep one are not known.

    v1/kv_cache_interface.py, AttentionSpec: (head_size + head_size_v) a KV head, MLA one vector.
    """
    if model.attention == "none":
        remarks.append("the model keeps a state for each sequence, and nothing for each token")
        return 0
    layers = model.attention_layers
    if layers is None:
        remarks.append("config.json does not say which layers keep a KV cache")
        return None
    if model.attention == "hybrid":
        remarks.append(
            f"of {model.num_layers} layers, {layers} keep a KV cache; the states of the others, "
            "which take blocks for each sequence, are not counted"
        )
    if _keeps_less(model):
        remarks.append(
            "layers with a window or chunks are counted as if they kept every token; vLLM's hybrid "
            "KV cache manager keeps less for them"
        )
    bits = _cache_bits(model, kv_cache_dtype, remarks)
    if model.kv_lora_rank is not None and model.attention in ("mla", "sparse_mla"):
        # config/model.py, get_num_kv_heads: one head with MLA, whole on every rank.
        packed = _PACKED_ROWS.get(kv_cache_dtype)
        values = float(model.head_size) if packed is None else packed * 8 / bits
        if ranks > 1:
            remarks.append("MLA's latent is whole on every tensor-parallel rank")
    else:
        # config/model.py, get_num_kv_heads: at least one KV head a rank.
        heads = max(1, model.num_kv_heads // ranks)
        if ranks > model.num_kv_heads:
            remarks.append(
                f"{model.num_kv_heads} KV heads are repeated over {ranks} tensor-parallel ranks"
            )
        values = float(heads * (model.head_size + (model.v_head_dim or model.head_size)))
    per_layer = values * bits / 8
    if model.attention == "sparse_mla" and model.index_head_dim:
        blocks = model.index_head_dim // _INDEX_SCALE_BLOCK
        per_layer += model.index_head_dim + blocks * _INDEX_SCALE_BYTES
    return math.ceil(-(-layers // stages) * per_layer)


def _cache_bits(model: ModelFacts, kv_cache_dtype: str, remarks: list[str]) -> float:
    if kv_cache_dtype == "auto":
        # layers/attention/attention.py and torch_utils.resolve_kv_cache_dtype_string: "auto" is
        # FP8 where compressed-tensors or ModelOpt declare it; Quark's scales alone do not do it.
        method = model.quantization or ""
        if model.kv_scales and (method == "compressed-tensors" or method.startswith("modelopt")):
            remarks.append("the checkpoint declares an FP8 KV cache, which vLLM takes for auto")
            return 8.0
        return _SIXTEEN_BITS
    if kv_cache_dtype.startswith(("fp8", "int8")):
        return 8.0
    if kv_cache_dtype in _CACHE_BITS:
        return _CACHE_BITS[kv_cache_dtype]
    remarks.append(f"a KV cache of {kv_cache_dtype} is counted with 16 bits a value")
    return _SIXTEEN_BITS


def layout_problem(
    model: ModelFacts,
    tensor_parallel_size: int = 1,
    expert_parallel: bool = False,
    data_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
) -> str | None:
    """Why vLLM would not start with this layout, in one sentence with what to do; None if it would.

    The cases: config/model.py, verify_with_parallel_config and _verify_with_expert_parallelism;
    layers/linear.py (QKVParallelLinear and its kin divide evenly); fused_moe/config.py;
    quantization/utils/fp8_utils.py, validate_fp8_block_shape.
    """
    sizes = (tensor_parallel_size, data_parallel_size, pipeline_parallel_size)
    if min(sizes) < 1:
        return "the parallel sizes must be at least 1"
    ranks = tensor_parallel_size
    if ranks > 1 and model.num_heads % ranks:
        return (
            f"{model.num_heads} attention heads are not divisible by --tensor-parallel-size "
            f"{ranks}: choose {_divisors(model.num_heads, ranks)}"
        )
    if expert_parallel and not model.num_experts:
        return "the model has no experts: leave --enable-expert-parallel out"
    if pipeline_parallel_size > model.num_layers:
        return (
            f"{model.num_layers} layers do not fill --pipeline-parallel-size "
            f"{pipeline_parallel_size}: choose at most {model.num_layers}"
        )
    return (
        _kv_head_problem(model, ranks)
        or _width_problem(model, ranks, data_parallel_size, expert_parallel)
        or _block_problem(model, ranks)
    )


def _kv_head_problem(model: ModelFacts, ranks: int) -> str | None:
    heads = model.num_kv_heads
    if ranks == 1 or heads < 1 or model.attention in ("mla", "sparse_mla", "none"):
        return None
    if (ranks % heads if ranks >= heads else heads % ranks) == 0:
        return None
    return (
        f"{heads} KV heads and --tensor-parallel-size {ranks} do not divide evenly: choose "
        f"{_divisors(heads, ranks)}"
    )


def _width_problem(model: ModelFacts, ranks: int, copies: int, experts_whole: bool) -> str | None:
    dense = model.intermediate_size
    has_dense = not model.num_experts or model.first_dense_layers > 0
    if has_dense and dense is not None and dense % ranks:
        return (
            f"the MLP's width {dense} is not divisible by --tensor-parallel-size {ranks}: choose "
            f"{_divisors(dense, ranks)}"
        )
    width = model.moe_intermediate_size
    if not model.num_experts or width is None or (experts_whole and ranks * copies > 1):
        return None
    if width % (ranks * copies):
        return (
            f"the experts' width {width} is not divisible by {ranks * copies} ranks (tensor times "
            "data parallel): use --enable-expert-parallel, or fewer ranks"
        )
    return None


def _block_problem(model: ModelFacts, ranks: int) -> str | None:
    """Block-scaled dense MLPs must split into whole blocks.

    Experts need not: their scales are refined (fused_moe/oracle/fp8.py,
    refine_fp8_moe_block_shape), down to parts of 32.
    """
    size, dense = model.weight_block_size, model.intermediate_size
    if ranks == 1 or size is None or dense is None or model.weight_format != "fp8_block":
        return None
    if (model.num_experts and not model.first_dense_layers) or "dense_mlp" in (
        model.unquantized_parts
    ):
        return None
    local = dense // ranks
    if any(edge > 0 and local % edge for edge in size):
        return (
            f"with --tensor-parallel-size {ranks} the MLP's width {dense} splits into parts of "
            f"{local}, which are not whole {size[0]}x{size[1]} blocks of the FP8 scales: choose a "
            "smaller tensor-parallel size"
        )
    return None


def _divisors(number: int, wanted: int) -> str:
    """The sizes near the one that was asked for, of those that divide: "4 or 8"."""
    fitting = [size for size in (1, 2, 4, 8, 16, 32, 64) if number % size == 0]
    lower = [size for size in fitting if size < wanted][-1:]
    higher = [size for size in fitting if size > wanted][:1]
    return " or ".join(str(size) for size in (*lower, *higher)) or "another size"
