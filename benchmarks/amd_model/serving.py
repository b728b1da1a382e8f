"""What serving asks of our kernels: models, shapes, and the launches that the ops layer would make.

The launch arithmetic (grid, splits, tiles) is that of vllm_amdopt/ops and is taken from the
kernels' own `choose_config` and `plan_splits`. Sizes are those of one rank; everything is bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vllm_amdopt.hardware import ARCHITECTURES
from vllm_amdopt.kernels.variants import CodegenVariant

BATCHES = (1, 8, 32, 128)
CONTEXTS = (1024, 8192, 32768)
CHUNK = 2048
"""New tokens of a prefill, all of one sequence; the context includes them."""
ELEMENT = 2
"""Bytes of a bf16 number."""
BLOCK_SIZE = 16
LATENT_BLOCK_SIZE = 1


@dataclass(frozen=True)
class Model:
    """One rank's share of a model. `layers`: the linear layers as (name, N, K); no MoE experts."""

    name: str
    ranks: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_size: int
    layers: tuple[tuple[str, int, int], ...]
    latent: int = 0
    rope: int = 0


MODELS: tuple[Model, ...] = (
    Model(
        "llama-8b",
        1,
        4096,
        32,
        8,
        128,
        (
            ("qkv", 6144, 4096),
            ("o", 4096, 4096),
            ("gate_up", 28672, 4096),
            ("down", 4096, 14336),
        ),
    ),
    Model(
        "llama-405b-tp8",
        8,
        16384,
        16,
        1,
        128,
        (
            ("qkv", 2304, 16384),
            ("o", 16384, 2048),
            ("gate_up", 13312, 16384),
            ("down", 16384, 6656),
        ),
    ),
    # 4 KV heads on 8 ranks: each rank keeps one
    Model(
        "qwen3-235b-tp8",
        8,
        4096,
        8,
        1,
        128,
        (("qkv", 1280, 4096), ("o", 4096, 1024)),
    ),
    Model(
        "deepseek-v3-tp8",
        8,
        7168,
        16,
        0,
        0,
        (
            ("q_a_kv_a", 2112, 7168),
            ("q_b", 3072, 1536),
            ("o", 7168, 2048),
            ("dense_gate_up", 4608, 7168),
            ("dense_down", 7168, 2304),
        ),
        latent=512,
        rope=64,
    ),
)


@dataclass(frozen=True)
class Launch:
    """One kernel launch. `trips`: of the main loop, in the mean over the workgroups that work.

    needed_bytes: what the launch must read and write at least once, its partial results included.
    merges: whether its last workgroups merge what the others left, if its code has that.
    merged_bytes: partial results that single workgroups read one after the other at the end, beyond
    the one round of that loop which the main path passes.
    """

    variant: CodegenVariant
    workgroups: int
    trips: int
    needed_bytes: float
    merged_bytes: float = 0.0
    merges: bool = True


@dataclass(frozen=True)
class Case:
    """A kernel on a shape: its launches, and what the operation needs however it is done.

    bytes: every input and output once. link_bytes: over the busiest link to another GPU.
    """

    kernel: str
    model: str
    shape: str
    launches: tuple[Launch, ...]
    bytes: float
    flops: float
    link_bytes: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.kernel} {self.model} {self.shape}"


def _like(variants: tuple[CodegenVariant, ...], kernel: Any, config: Any, **constants: Any) -> Any:
    """A variant of `kernel` with these constants, made from a declared one of the same form.

    DIRECT, or STEPS, decides about pointers that are absent: the declared variant must have the
    same.
    """
    decisive = {key: constants[key] for key in ("DIRECT", "STEPS") if key in constants}
    for base in variants:
        if base.kernel is kernel and decisive.items() <= base.constexprs.items():
            unknown = sorted(set(constants) - set(base.constexprs))
            if unknown:
                raise ValueError(
                    f"{base.name} has no constant {', '.join(unknown)}; "
                    "benchmarks/amd_model/serving.py is behind the kernels."
                )
            name = base.name.split("/")[0]
            text = "/".join(f"{key.lower()}={value}" for key, value in constants.items())
            return replace(
                base,
                name=f"{name}/{text}",
                constexprs={**base.constexprs, **constants},
                num_warps=getattr(config, "num_warps", base.num_warps),
                num_stages=getattr(config, "num_stages", base.num_stages),
                waves_per_eu=getattr(config, "waves_per_eu", base.waves_per_eu),
            )
    raise ValueError(f"no CODEGEN_VARIANTS entry is a variant of {kernel.__name__} as asked for.")


def _up(value: int, step: int) -> int:
    return -(-value // step)


def _split(context: int, tile: int, wanted: int) -> tuple[int, int]:
    """(parts that hold tokens, tiles of each) where `wanted` parts were planned."""
    tiles = _up(context, tile)
    each = _up(tiles, wanted)
    return _up(tiles, each), each


def fused_parts(context: int, tile: int, splits: int) -> tuple[int, int]:
    """(parts, tiles of each) of a sequence, as `kernels.decode_kernel` cuts it."""
    from vllm_amdopt.kernels.split_plan import FUSED_SPLIT_POLICY

    policy, tiles = FUSED_SPLIT_POLICY, _up(context, tile)
    many = policy.least_tokens_in_two_steps // tile
    each = max(policy.least_tokens // tile, min(_up(tiles, policy.fan_in), many))
    each = max(each, _up(tiles, splits))
    return _up(tiles, each), each


def merged_alone(parts: int, fan_in: int, chunk: int, part_bytes: int) -> int:
    """Bytes of partial results that the last workgroups read beyond the first `chunk` parts."""
    if parts <= 1:
        return 0
    steps = [min(parts, fan_in)] + ([_up(parts, fan_in)] if parts > fan_in else [])
    return part_bytes * max(0, sum(_up(step, chunk) * chunk for step in steps) - chunk)


def decode(
    model: Model, batch: int, context: int, compute_units: int, block_size: int = BLOCK_SIZE
) -> Case:
    """paged_attention_decode: one new token for each of `batch` sequences of `context` tokens."""
    from vllm_amdopt.kernels import paged_attention_decode as kernels
    from vllm_amdopt.kernels.split_plan import FUSED_SPLIT_POLICY, plan_fused_splits

    group = model.query_heads // model.kv_heads
    config = kernels.choose_config(group, model.head_size)
    programs = batch * model.kv_heads * _up(group, config.rows)
    splits = plan_fused_splits(programs, context, compute_units)
    parts, trips = fused_parts(context, config.tile, splits)
    if splits == 1:
        parts, trips = 1, _up(context, config.tile)
    variant = _like(
        kernels.CODEGEN_VARIANTS,
        kernels.decode_kernel,
        config,
        GROUP=group,
        HEAD_SIZE=model.head_size,
        BLOCK_SIZE=block_size,
        K_STRIDE_ROW=2 * model.head_size,
        V_STRIDE_ROW=2 * model.head_size,
        ROWS=config.rows,
        TILE=config.tile,
        MERGE_CHUNK=config.merge_chunk,
        DIRECT=splits == 1,
    )
    cache = 2 * batch * context * model.kv_heads * model.head_size * ELEMENT
    tables = batch * _up(context, block_size) * 4
    query = batch * model.query_heads * model.head_size * ELEMENT
    part_bytes = min(group, config.rows) * (model.head_size + 1) * 4
    partial = 2 * programs * parts * part_bytes if parts > 1 else 0
    merged = merged_alone(parts, FUSED_SPLIT_POLICY.fan_in, config.merge_chunk, part_bytes)
    return Case(
        "paged_attention_decode",
        model.name,
        f"batch{batch}/context{context}",
        (
            Launch(
                variant,
                programs * parts,
                trips,
                cache + tables + 2 * query + partial,
                merged,
                merges=parts > 1,
            ),
        ),
        bytes=cache + tables + 2 * query,
        flops=4 * batch * context * model.query_heads * model.head_size,
    )


def latent_decode(model: Model, batch: int, context: int, compute_units: int) -> Case:
    """mla_decode: the same over the latent cache."""
    from vllm_amdopt.kernels import mla_decode as kernels
    from vllm_amdopt.kernels import mla_decode_plan as plans

    config = plans.choose_config(model.query_heads, ELEMENT)
    programs = batch * _up(model.query_heads, config.rows)
    splits = plans.plan(programs, context, compute_units, config)
    used, trips = _split(context, config.tile, splits)
    variant = _like(
        kernels.CODEGEN_VARIANTS,
        kernels.split_kernel,
        config,
        LATENT_SIZE=model.latent,
        ROPE_SIZE=model.rope,
        BLOCK_SIZE=LATENT_BLOCK_SIZE,
        QUERY_LEN=1,
        ROWS=config.rows,
        TILE=config.tile,
        DIRECT=splits == 1,
    )
    width = model.latent + model.rope
    cache = batch * context * width * ELEMENT
    tables = batch * _up(context, LATENT_BLOCK_SIZE) * 4
    query = batch * model.query_heads * width * ELEMENT
    out = batch * model.query_heads * (model.latent * ELEMENT + 4)
    partial = batch * model.query_heads * used * (model.latent + 1) * 4 if splits > 1 else 0
    launches = [Launch(variant, programs * used, trips, cache + tables + query + (partial or out))]
    if splits > 1:
        merge = plans.choose_reduce_config(splits, model.latent)
        reduce_variant = _like(
            kernels.CODEGEN_VARIANTS,
            kernels.reduce_kernel,
            merge,
            LATENT_SIZE=model.latent,
            QUERY_LEN=1,
            CHUNK=merge.chunk,
            COLUMNS=merge.columns,
            TILE=config.tile,
        )
        pieces = batch * model.query_heads * (model.latent // merge.columns)
        launches.append(Launch(reduce_variant, pieces, _up(used, merge.chunk), partial + out))
    return Case(
        "mla_decode",
        model.name,
        f"batch{batch}/context{context}",
        tuple(launches),
        bytes=cache + tables + query + out,
        flops=2 * batch * context * model.query_heads * (width + model.latent),
    )


def prefill(model: Model, context: int) -> Case:
    """paged_attention_prefill: the last CHUNK tokens of one sequence of `context`, causal."""
    from vllm_amdopt.kernels import paged_attention_prefill as kernels

    tokens = min(CHUNK, context)
    group = model.query_heads // model.kv_heads
    config = kernels.choose_config(tokens * group, model.head_size, ELEMENT)
    variant = _like(
        kernels.CODEGEN_VARIANTS,
        kernels.prefill_kernel,
        config,
        KV_HEADS=model.kv_heads,
        GROUP=group,
        HEAD_SIZE=model.head_size,
        BLOCK_SIZE=BLOCK_SIZE,
        ROWS=config.rows,
        TILE=config.tile,
    )
    row_tiles = _up(tokens * group, config.rows)
    lasts = [min((i + 1) * config.rows - 1, tokens * group - 1) // group for i in range(row_tiles)]
    trips = sum(_up(context - tokens + last + 1, config.tile) for last in lasts)
    cache = 2 * context * model.kv_heads * model.head_size * ELEMENT
    query = tokens * model.query_heads * model.head_size * ELEMENT
    pairs = tokens * (context - tokens) + tokens * (tokens + 1) // 2
    return Case(
        "paged_attention_prefill",
        model.name,
        f"tokens{tokens}/context{context}",
        (
            Launch(
                variant,
                row_tiles * model.kv_heads,
                round(trips / row_tiles),
                cache + 2 * query,
            ),
        ),
        bytes=cache + 2 * query,
        flops=4 * pairs * model.query_heads * model.head_size,
    )


def gemm(model: Model, layer: str, n: int, k: int, batch: int) -> Case:
    """gemm_small_batch: one linear layer for `batch` rows."""
    from vllm_amdopt.kernels import gemm_small_batch as kernels

    config = kernels.choose_config(batch, n, k, ELEMENT)
    variant = _like(
        kernels.CODEGEN_VARIANTS,
        kernels.gemm_kernel,
        config,
        ROWS=config.rows,
        COLUMNS=config.columns,
        DEPTH=config.depth,
        HAS_BIAS=False,
        WHOLE_DEPTH=k % config.depth == 0,
    )
    needed = ELEMENT * (n * k + batch * (n + k))
    return Case(
        "gemm_small_batch",
        model.name,
        f"{layer}/{n}x{k}/batch{batch}",
        (
            Launch(
                variant,
                _up(n, config.columns) * _up(batch, config.rows),
                _up(k, config.depth),
                needed,
            ),
        ),
        bytes=needed,
        flops=2 * batch * n * k,
    )


def cache_write(model: Model, batch: int) -> Case:
    """kv_cache_write: the new keys and values, or latents, of `batch` tokens."""
    from vllm_amdopt.kernels import kv_cache_write as kernels

    if model.latent:
        variant = _like(
            kernels.CODEGEN_VARIANTS,
            kernels.write_latent_kernel,
            kernels.CONFIG,
            LATENT_SIZE=model.latent,
            ROPE_SIZE=model.rope,
            BLOCK_SIZE=LATENT_BLOCK_SIZE,
        )
        programs, row = batch, (model.latent + model.rope) * ELEMENT
    else:
        heads = kernels.heads_per_program(model.kv_heads, model.head_size)
        variant = _like(
            kernels.CODEGEN_VARIANTS,
            kernels.write_heads_kernel,
            kernels.CONFIG,
            HEAD_SIZE=model.head_size,
            HEAD_TILE=heads,
            BLOCK_SIZE=BLOCK_SIZE,
        )
        programs = batch * _up(model.kv_heads, heads)
        row = 2 * model.kv_heads * model.head_size * ELEMENT
    needed = batch * (2 * row + 8)
    return Case(
        "kv_cache_write",
        model.name,
        f"batch{batch}",
        (Launch(variant, programs, 1, needed),),
        bytes=needed,
        flops=0,
    )


def all_reduce(model: Model, batch: int) -> Case:
    """all_reduce_one_shot: the hidden states of `batch` tokens over all ranks."""
    from vllm_amdopt.kernels import all_reduce_one_shot as kernels

    elements = batch * model.hidden
    config = kernels.choose_config(elements, ELEMENT)
    variant = _like(
        tuple(
            variant
            for variant in kernels.CODEGEN_VARIANTS
            if variant.signature["x_ptr"] == "*bf16" and variant.constexprs["WORLD"] == model.ranks
        ),
        kernels.all_reduce_one_shot_kernel,
        config,
        WORLD=model.ranks,
    )
    size = elements * ELEMENT
    return Case(
        "all_reduce_one_shot",
        model.name,
        f"batch{batch}",
        (
            Launch(
                variant,
                config.blocks,
                _up(elements, config.blocks * config.elements_per_block),
                (3 + model.ranks) * size,
            ),
        ),
        bytes=2 * size,
        flops=0,
        link_bytes=size,
    )


def cases(gfx: str) -> Iterator[Case]:
    """Every kernel on every model and shape that it is for."""
    from benchmarks.amd_model import serving_cdna

    units = ARCHITECTURES[gfx].compute_units
    assert units is not None
    for model in MODELS:
        for batch in BATCHES:
            for context in CONTEXTS:
                make = latent_decode if model.latent else decode
                yield make(model, batch, context, units)
                make = serving_cdna.latent_decode if model.latent else serving_cdna.decode
                yield make(model, batch, context, units)
                yield make(model, batch, context, units, fp8=True)
        if not model.latent:
            for context in CONTEXTS:
                yield prefill(model, context)
        for layer, n, k in model.layers:
            for batch in BATCHES:
                yield gemm(model, layer, n, k, batch)
        for batch in BATCHES:
            yield cache_write(model, batch)
        if model.ranks > 1:
            for batch in BATCHES:
                yield all_reduce(model, batch)
