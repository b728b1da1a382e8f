"""The launches of the Gluon kernels for CDNA on the shapes of `serving`. Predicts nothing."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.amd_model.serving import (
    BLOCK_SIZE,
    ELEMENT,
    LATENT_BLOCK_SIZE,
    Case,
    Launch,
    Model,
    _like,
    _split,
    _up,
)


def decode(
    model: Model, batch: int, context: int, compute_units: int, *, fp8: bool = False
) -> Case:
    """paged_attention_decode by Gluon: one new token for each of `batch` sequences of `context`.

    fp8: the cache is, the query is not.

    The last tile is attended to behind the main loop, which makes one trip fewer than there are.
    All partial results that a workgroup merges are read in the code that the main path passes.
    """
    from vllm_amdopt.kernels.cdna import paged_attention_decode as kernels
    from vllm_amdopt.kernels.cdna import paged_attention_decode_plan as plans

    group = model.query_heads // model.kv_heads
    config = plans.choose_config(model.head_size)
    programs = batch * model.kv_heads
    parts = plans.plan_parts(programs, context, compute_units, config, group)
    used, tiles = _split(context, config.tile, parts.splits)
    variant = _like(
        tuple(
            variant
            for variant in kernels.CODEGEN_VARIANTS
            if (variant.signature["k_cache_ptr"] == "*fp8") == fp8
        ),
        kernels.cdna_split_kernel,
        config,
        KV_HEADS=model.kv_heads,
        GROUP=group,
        HEAD_SIZE=model.head_size,
        BLOCK_SIZE=BLOCK_SIZE,
        FAN=parts.fan,
        STEPS=parts.steps,
    )
    if fp8:
        variant = replace(variant, name=f"{variant.name}/fp8_cache")
    cache = 2 * batch * context * model.kv_heads * model.head_size * (1 if fp8 else ELEMENT)
    tables = batch * -(-context // BLOCK_SIZE) * 4
    query = batch * model.query_heads * model.head_size * ELEMENT
    # Written and read once; what groups leave is read as well.
    slots = used + parts.groups if used > 1 else 0
    partial = 2 * batch * model.query_heads * slots * (model.head_size + 1) * 4
    launches = [
        Launch(
            variant,
            programs * used,
            tiles - 1,
            cache + tables + 2 * query + partial,
            merges=used > 1,
        )
    ]
    return Case(
        "paged_attention_decode.gluon" + (".fp8_cache" if fp8 else ""),
        model.name,
        f"batch{batch}/context{context}",
        tuple(launches),
        bytes=cache + tables + 2 * query,
        flops=4 * batch * context * model.query_heads * model.head_size,
    )


def latent_decode(
    model: Model, batch: int, context: int, compute_units: int, *, fp8: bool = False
) -> Case:
    """mla_decode by Gluon, whose parts the portable reduce kernel merges; fp8: the cache is."""
    from vllm_amdopt.kernels import mla_decode as portable
    from vllm_amdopt.kernels import mla_decode_plan as plans
    from vllm_amdopt.kernels.cdna import mla_decode as kernels
    from vllm_amdopt.kernels.cdna.mla_decode_plan import choose_config, plan_parts

    config = choose_config(model.query_heads)
    programs = batch * _up(model.query_heads, config.rows)
    splits = plan_parts(programs, context, compute_units, config)
    used, tiles = _split(context, config.tile, splits)
    variant = _like(
        tuple(
            variant
            for variant in kernels.CODEGEN_VARIANTS
            if (variant.signature["latent_cache_ptr"] == "*fp8") == fp8
        ),
        kernels.cdna_latent_split_kernel,
        config,
        LATENT_SIZE=model.latent,
        ROPE_SIZE=model.rope,
        BLOCK_SIZE=LATENT_BLOCK_SIZE,
        T=config.num_warps // config.head_waves,
        H=config.head_waves,
        SEVERAL_ROW_TILES=model.query_heads > config.rows,
        DIRECT=splits == 1,
    )
    if fp8:
        variant = replace(variant, name=f"{variant.name}/fp8_cache")
    width = model.latent + model.rope
    cache = batch * context * width * (1 if fp8 else ELEMENT)
    tables = batch * _up(context, LATENT_BLOCK_SIZE) * 4
    query = batch * model.query_heads * width * ELEMENT
    out = batch * model.query_heads * (model.latent * ELEMENT + 4)
    partial = batch * model.query_heads * used * (model.latent + 1) * 4 if splits > 1 else 0
    needed = cache + tables + query + (partial or out)
    launches = [Launch(variant, programs * used, tiles, needed)]
    if splits > 1:
        merge = plans.choose_reduce_config(splits, model.latent)
        reduce_variant = _like(
            portable.CODEGEN_VARIANTS,
            portable.reduce_kernel,
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
        "mla_decode.gluon" + ".fp8_cache" * fp8,
        model.name,
        f"batch{batch}/context{context}",
        tuple(launches),
        bytes=cache + tables + query + out,
        flops=2 * batch * context * model.query_heads * (width + model.latent),
    )
