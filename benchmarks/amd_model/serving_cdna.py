"""The launches of the Gluon kernels for CDNA on the shapes of `serving`. Predicts nothing."""

from __future__ import annotations

from benchmarks.amd_model.serving import (
    BLOCK_SIZE,
    ELEMENT,
    Case,
    Launch,
    Model,
    _like,
    _split,
)


def decode(model: Model, batch: int, context: int, compute_units: int) -> Case:
    """paged_attention_decode by Gluon: one new token for each of `batch` sequences of `context`.

    The last tile is attended to behind the main loop, which makes one trip fewer than there are.
    """
    from vllm_amdopt.kernels.cdna import merge_parts
    from vllm_amdopt.kernels.cdna import paged_attention_decode as kernels

    config = kernels.choose_config(model.head_size)
    programs = batch * model.kv_heads
    splits = kernels.plan_parts(programs, context, compute_units, config)
    used, tiles = _split(context, config.tile, splits)
    variant = _like(
        kernels.CODEGEN_VARIANTS,
        kernels.cdna_split_kernel,
        config,
        KV_HEADS=model.kv_heads,
        GROUP=model.query_heads // model.kv_heads,
        HEAD_SIZE=model.head_size,
        BLOCK_SIZE=BLOCK_SIZE,
        DIRECT=splits == 1,
    )
    cache = 2 * batch * context * model.kv_heads * model.head_size * ELEMENT
    tables = batch * -(-context // BLOCK_SIZE) * 4
    query = batch * model.query_heads * model.head_size * ELEMENT
    partial = batch * model.query_heads * used * (model.head_size + 1) * 4 if splits > 1 else 0
    launches = [
        Launch(variant, programs * used, tiles - 1, cache + tables + query + (partial or query))
    ]
    if splits > 1:
        merging = merge_parts.choose_config(splits)
        reduce_variant = _like(
            merge_parts.CODEGEN_VARIANTS,
            merge_parts.cdna_merge_kernel,
            merging,
            QUERY_HEADS=model.query_heads,
            HEAD_SIZE=model.head_size,
            SPLITS=merge_parts.padded_splits(splits),
            TILE=config.tile,
            W=merging.num_warps,
        )
        launches.append(Launch(reduce_variant, batch * model.query_heads, 1, partial + query))
    return Case(
        "paged_attention_decode.gluon",
        model.name,
        f"batch{batch}/context{context}",
        tuple(launches),
        bytes=cache + tables + 2 * query,
        flops=4 * batch * context * model.query_heads * model.head_size,
    )
