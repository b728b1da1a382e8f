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
        kernels.CODEGEN_VARIANTS,
        kernels.cdna_split_kernel,
        config,
        KV_HEADS=model.kv_heads,
        GROUP=group,
        HEAD_SIZE=model.head_size,
        BLOCK_SIZE=BLOCK_SIZE,
        FAN=parts.fan,
        STEPS=parts.steps,
    )
    cache = 2 * batch * context * model.kv_heads * model.head_size * ELEMENT
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
        "paged_attention_decode.gluon",
        model.name,
        f"batch{batch}/context{context}",
        tuple(launches),
        bytes=cache + tables + 2 * query,
        flops=4 * batch * context * model.query_heads * model.head_size,
    )
