"""Attention of a sequence's last tokens over a paged cache, for CDNA's matrix cores (Gluon).

The algorithm of the portable kernel of the same name. What differs: each wave attends to 32 tokens
of its own, loaded straight into the operands of the matrix instructions while the tile before is
attended to; the main loop has neither LDS traffic nor a barrier. A sequence is cut into parts,
one to a workgroup, and the last workgroup to finish merges them.
"""

from __future__ import annotations

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from vllm_amdopt.kernels import soft_cap
from vllm_amdopt.kernels.cdna.attention_steps import (
    add_values,
    keys_times_query,
    load_query,
    softmax_step,
    visible_scores,
)
from vllm_amdopt.kernels.cdna.last_block_merge import (
    is_last_to_arrive,
    leave_part,
    merge_parts,
    store_rows,
)
from vllm_amdopt.kernels.cdna.paged_attention_decode_plan import choose_config, plan_merge
from vllm_amdopt.kernels.cdna.tiles import (
    axis_index,
    first_visible,
    group_pages,
    key_layout,
    key_rows,
    load_words,
    output_layout,
    statistics_layout,
    token_and_head,
    value_layout,
    value_rows,
    visible_start,
)
from vllm_amdopt.kernels.soft_cap import base2_scores
from vllm_amdopt.kernels.variants import Budget, CodegenVariant

GENERATION = {"gfx942": 3, "gfx950": 4}
"""gfx -> generation of CDNA, which names the matrix instructions."""

LOG2_E = gl.constexpr(soft_cap.LOG2_E)


@gluon.jit(do_not_specialize=["window", "splits", "reciprocal", "groups", "table_stride"])
def cdna_split_kernel(
    query_ptr,
    k_cache_ptr,
    v_cache_ptr,
    zeros_ptr,
    block_table_ptr,
    seq_lens_ptr,
    sinks_ptr,
    alibi_slopes_ptr,
    out_ptr,
    partial_ptr,
    partial_lse_ptr,
    counters_ptr,
    score_scale,
    cap_log2,
    v_scale,
    window,
    splits,
    reciprocal,
    groups,
    table_stride,
    query_stride_token,
    query_stride_head,
    k_stride_block,
    k_stride_head,
    k_stride_row,
    v_stride_block,
    v_stride_head,
    v_stride_row,
    out_stride_token,
    out_stride_head,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    QUERY_LEN: gl.constexpr,
    HEAD_SIZE: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    W: gl.constexpr,
    CDNA: gl.constexpr,
    FAN: gl.constexpr,
    STEPS: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_SOFT_CAP: gl.constexpr,
):
    """Grid (seqs, KV_HEADS, splits); arguments and results as in the portable kernel, and
    zeros: a row of them, of the padded head size, in the cache's dtype; W: waves. A row is one of
    the GROUP query heads of one of the sequence's QUERY_LEN last tokens; there are 16 at most.

    STEPS of merging: 0 where there is one part; otherwise a sequence takes as many parts as its
    tiles divide into, at most `splits`, and the other workgroups do nothing. A part leaves its
    normalised result and its base-2 log-sum-exp in fp32, in its own of the `splits + groups` slots
    of the sequence and KV head: partial [slot, rows, HEAD_SIZE], partial_lse [slot, rows].
    FAN parts at most are merged at a time.
    counters: 1 + groups for each sequence and KV head, zero before and after. reciprocal:
    2**31 // splits + 1, to divide by `splits` with.
    """
    HEAD_PAD: gl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    CACHE: gl.constexpr = k_cache_ptr.dtype.element_ty
    BITS: gl.constexpr = CACHE.primitive_bitwidth
    WORDS: gl.constexpr = HEAD_SIZE * BITS // 32
    WORDS_PAD: gl.constexpr = HEAD_PAD * BITS // 32
    TILE: gl.constexpr = 32 * W
    ROWS: gl.constexpr = GROUP * QUERY_LEN
    mma: gl.constexpr = gl.amd.AMDMFMALayout(
        version=CDNA,
        instr_shape=[16, 16, 16 if CDNA == 3 else 32],
        transposed=False,
        warps_per_cta=[W, 1, 1],
    )
    sequence = gl.program_id(0).to(gl.int64)
    kv_head = gl.program_id(1)
    split = gl.program_id(2)
    seq_len = gl.load(seq_lens_ptr + sequence)
    low = first_visible(seq_len - (QUERY_LEN - 1), window, HAS_WINDOW)
    start = visible_start(low, TILE)
    end = seq_len
    tiles = gl.maximum(gl.cdiv(seq_len - start, TILE), 1)
    each = tiles
    if STEPS > 0:
        each = ((tiles + splits - 1).to(gl.int64) * reciprocal >> 31).to(gl.int32)
        if split * each >= tiles:
            return
        start = start + split * each * TILE
        end = gl.minimum(start + each * TILE, seq_len)

    table_row_ptr = block_table_ptr + sequence * table_stride
    k_head_ptr = k_cache_ptr + kv_head.to(gl.int64) * k_stride_head
    v_head_ptr = v_cache_ptr + kv_head.to(gl.int64) * v_stride_head
    by_row: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(3, key_layout(W, WORDS_PAD)))
    k_group = start + axis_index(W, 0, 2, by_row) * 32 + axis_index(16, 1, 2, by_row) // 4 * 8
    by_group: gl.constexpr = gl.SliceLayout(2, gl.SliceLayout(3, value_layout(W, WORDS_PAD)))
    v_group = start + axis_index(W, 0, 2, by_group) * 32 + axis_index(4, 1, 2, by_group) * 8
    row = axis_index(32, 1, 3, mma)
    position = start + axis_index(W, 0, 3, mma) * 32
    position += row // 4 % 4 * 8 + row // 16 * 4 + row % 4

    # All block numbers first, and in front of the loop as within it: memory answers in order, and
    # whoever moves one that was asked for behind data waits for the data.
    k_pages = group_pages(table_row_ptr, k_group, low, end, BLOCK_SIZE)
    v_pages = group_pages(table_row_ptr, v_group, low, end, BLOCK_SIZE)
    gl.amd.hint.sched_barrier()
    query = load_query(
        query_ptr + sequence * QUERY_LEN * query_stride_token + kv_head * GROUP * query_stride_head,
        query_stride_token, query_stride_head, W, GROUP, QUERY_LEN, HEAD_SIZE, BITS, mma,
    )  # fmt: skip
    # Where the statistics of the waves are merged, which is where a sink comes in.
    whole: gl.constexpr = output_layout(W, HEAD_PAD)
    of_rows: gl.constexpr = gl.SliceLayout(2, whole)
    if sinks_ptr is not None:
        row = gl.minimum(gl.arange(0, 16, layout=gl.SliceLayout(0, of_rows)), ROWS - 1)
        token, head = token_and_head(row, GROUP, QUERY_LEN)
        sink = gl.load(sinks_ptr + kv_head * GROUP + head).to(gl.float32) * LOG2_E
        # A score like any other, whose value is 0; the first part has it.
        sink = gl.where(row * 0 + split == 0, sink, float("-inf"))
    row = gl.minimum(axis_index(16, 2, 3, mma), ROWS - 1)
    token, head = token_and_head(row, GROUP, QUERY_LEN)
    limit = token + (seq_len - QUERY_LEN)  # a row's own position, the last that it sees
    if alibi_slopes_ptr is not None:
        slope = gl.load(alibi_slopes_ptr + kv_head * GROUP + head).to(gl.float32) * LOG2_E
    next_k_pages = group_pages(table_row_ptr, k_group + TILE, low, end, BLOCK_SIZE)
    next_v_pages = group_pages(table_row_ptr, v_group + TILE, low, end, BLOCK_SIZE)
    rows = key_rows(
        k_head_ptr, zeros_ptr, k_pages, k_group, low, end, k_stride_block, k_stride_row,
        BLOCK_SIZE, W, WORDS_PAD,
    )  # fmt: skip
    key = load_words(rows, zeros_ptr, key_layout(W, WORDS_PAD), WORDS, WORDS_PAD)
    gl.amd.hint.sched_barrier()
    rows = value_rows(
        v_head_ptr, zeros_ptr, v_pages, v_group, low, end, v_stride_block, v_stride_row,
        BLOCK_SIZE, W, WORDS_PAD,
    )  # fmt: skip
    value = load_words(rows, zeros_ptr, value_layout(W, WORDS_PAD), WORDS, WORDS_PAD)
    k_group += TILE
    v_group += TILE
    k_pages = next_k_pages
    v_pages = next_v_pages
    # Here, where there is time for a division.
    parts = gl.cdiv(tiles, each) if STEPS > 0 else 1
    gl.amd.hint.sched_barrier()

    # A finite floor instead of -inf: exp2(-inf - floor) is 0, exp2(-inf - -inf) would be NaN.
    maximum = gl.full([W, 16], -1.0e30, gl.float32, gl.SliceLayout(1, mma))
    denominator = gl.full([W, 16, 16], 0.0, gl.float32, mma)
    accumulator = gl.full([W, HEAD_PAD, 16], 0.0, gl.float32, mma)
    # Keys and values of the next tile are asked for as soon as those of this one are used up, so
    # that they take the same registers; all but the last tile are whole.
    for _ in range(gl.cdiv(end - start, TILE) - 1):
        products = keys_times_query(key, query, CACHE, mma)
        rows = key_rows(
            k_head_ptr, zeros_ptr, k_pages, k_group, low, end, k_stride_block, k_stride_row,
            BLOCK_SIZE, W, WORDS_PAD,
        )  # fmt: skip
        k_group += TILE
        k_pages = group_pages(table_row_ptr, k_group, low, end, BLOCK_SIZE)
        key = load_words(rows, zeros_ptr, key_layout(W, WORDS_PAD), WORDS, WORDS_PAD)
        gl.amd.hint.sched_barrier()
        scores = base2_scores(products, score_scale, cap_log2, HAS_SOFT_CAP)
        if alibi_slopes_ptr is not None:
            scores += slope * (position - limit).to(gl.float32)
        scores = visible_scores(
            scores, position, limit, low, end, window, HAS_WINDOW, QUERY_LEN, False
        )
        weights, correction, maximum, denominator = softmax_step(
            scores, maximum, denominator, query.dtype, mma
        )
        accumulator = add_values(accumulator, value, weights, correction, CACHE, mma)
        rows = value_rows(
            v_head_ptr, zeros_ptr, v_pages, v_group, low, end, v_stride_block, v_stride_row,
            BLOCK_SIZE, W, WORDS_PAD,
        )  # fmt: skip
        v_group += TILE
        v_pages = group_pages(table_row_ptr, v_group, low, end, BLOCK_SIZE)
        value = load_words(rows, zeros_ptr, value_layout(W, WORDS_PAD), WORDS, WORDS_PAD)
        position += TILE
        gl.amd.hint.sched_barrier()
    products = keys_times_query(key, query, CACHE, mma)
    scores = base2_scores(products, score_scale, cap_log2, HAS_SOFT_CAP)
    if alibi_slopes_ptr is not None:
        scores += slope * (position - limit).to(gl.float32)
    scores = visible_scores(scores, position, limit, low, end, window, HAS_WINDOW, QUERY_LEN, True)
    weights, correction, maximum, denominator = softmax_step(
        scores, maximum, denominator, query.dtype, mma
    )
    # Or LLVM converts the values among the keys, and so waits for both before it uses either.
    gl.amd.hint.sched_barrier()
    accumulator = add_values(accumulator, value, weights, correction, CACHE, mma)

    # The waves' parts become one: [W, heads, elements] with all waves in each lane.
    # Together, because each exchange between waves is two barriers.
    both = gl.join(maximum, gl.sum(denominator, 1))
    maximum, denominator = gl.split(gl.convert_layout(both, statistics_layout(W, HEAD_PAD)))
    maximum = gl.convert_layout(maximum, of_rows, assert_trivial=True)
    denominator = gl.convert_layout(denominator, of_rows, assert_trivial=True)
    accumulator = gl.permute(gl.reshape(accumulator, [W, HEAD_PAD // 16, 16, 16]), [0, 3, 2, 1])
    accumulator = gl.convert_layout(gl.reshape(accumulator, [W, 16, HEAD_PAD]), whole)
    highest = gl.max(maximum, 0)
    if sinks_ptr is not None:
        highest = gl.maximum(highest, sink)
    share = gl.exp2(maximum - gl.expand_dims(highest, 0))
    total = gl.sum(denominator * share, 0)
    if sinks_ptr is not None:
        total += gl.exp2(sink - highest)
    share = share * gl.expand_dims(v_scale / gl.where(total > 0.0, total, 1.0), 0)
    result = gl.sum(accumulator * gl.expand_dims(share, 2), 0)

    out_seq_ptr = out_ptr + sequence * QUERY_LEN * out_stride_token
    out_seq_ptr += kv_head * GROUP * out_stride_head
    if parts == 1:
        store_rows(
            out_seq_ptr, out_stride_token, out_stride_head, result, GROUP, QUERY_LEN, HEAD_SIZE
        )
    elif STEPS > 0:
        program = gl.program_id(0) * KV_HEADS + kv_head
        part_ptr = partial_ptr + program * (splits + groups) * (ROWS * HEAD_SIZE)
        lse_ptr = partial_lse_ptr + program * (splits + groups) * ROWS
        counter_ptr = counters_ptr + program * (1 + groups)
        part_lse = highest + gl.log2(total)
        leave_part(part_ptr, lse_ptr, split, result, part_lse, ROWS, HEAD_SIZE)
        if STEPS == 1:
            if is_last_to_arrive(counter_ptr, parts, W):
                merged, lse = merge_parts(part_ptr, lse_ptr, 0, parts, FAN, ROWS, HEAD_SIZE, W)
                store_rows(
                    out_seq_ptr,
                    out_stride_token,
                    out_stride_head,
                    merged,
                    GROUP,
                    QUERY_LEN,
                    HEAD_SIZE,
                )
        else:
            own = split // FAN
            first = own * FAN
            if is_last_to_arrive(counter_ptr + 1 + own, gl.minimum(parts - first, FAN), W):
                merged, lse = merge_parts(
                    part_ptr, lse_ptr, first, parts - first, FAN, ROWS, HEAD_SIZE, W
                )
                whole_row = parts <= FAN
                if parts > FAN:
                    leave_part(part_ptr, lse_ptr, splits + own, merged, lse, ROWS, HEAD_SIZE)
                    used = gl.cdiv(parts, FAN)
                    whole_row = is_last_to_arrive(counter_ptr, used, W)
                    if whole_row:
                        merged, lse = merge_parts(
                            part_ptr, lse_ptr, splits, used, FAN, ROWS, HEAD_SIZE, W
                        )
                if whole_row:
                    store_rows(
                        out_seq_ptr,
                        out_stride_token,
                        out_stride_head,
                        merged,
                        GROUP,
                        QUERY_LEN,
                        HEAD_SIZE,
                    )


_STRIDES = (
    "query_stride_token",
    "query_stride_head",
    "k_stride_block",
    "k_stride_head",
    "k_stride_row",
    "v_stride_block",
    "v_stride_head",
    "v_stride_row",
    "out_stride_token",
    "out_stride_head",
)


MATRIX = {"bf16": "bf16", "fp16": "f16"}


def _budgets(waves: int, dtype: str, head_size: int, cache: str) -> dict[str, Budget]:
    """Both chips' budgets: block numbers are 32 bits, and a lane's share of a row of values fewer
    than 128 where the row is shorter than 256 bytes: a sixteenth.
    """
    share = head_size * (8 if cache == "fp8" else 16) // 16
    narrow = {32: 2}
    if share < 128:
        narrow[share] = narrow.get(share, 0) + 8
    return {
        gfx: Budget(waves, f"f32_16x16x{depth}_{MATRIX[dtype]}", narrow, wave_private=True)
        for gfx, depth in (("gfx942", 16), ("gfx950", 32))
    }


def _split_variant(
    name: str,
    kv_heads: int,
    group: int,
    head_size: int,
    block_size: int,
    dtype: str = "bf16",
    parts: int = 1,
    cache: str = "",
    window: bool = False,
    soft_cap: bool = False,
    sinks: bool = False,
    alibi: bool = False,
    query_len: int = 1,
) -> CodegenVariant:
    config, merge = choose_config(head_size), plan_merge(parts, group * query_len)
    name = f"cdna_split/{dtype}/{name}"
    there = {
        "partial_ptr": parts > 1,
        "partial_lse_ptr": parts > 1,
        "counters_ptr": parts > 1,
        "sinks_ptr": sinks,
        "alibi_slopes_ptr": alibi,
    }
    return CodegenVariant(
        name=name,
        kernel=cdna_split_kernel,
        signature={
            "query_ptr": f"*{dtype}",
            "k_cache_ptr": f"*{cache or dtype}",
            "v_cache_ptr": f"*{cache or dtype}",
            "zeros_ptr": f"*{cache or dtype}",
            "block_table_ptr": "*i32",
            "seq_lens_ptr": "*i32",
            "sinks_ptr": "*fp32",
            "alibi_slopes_ptr": "*fp32",
            "out_ptr": f"*{dtype}",
            "partial_ptr": "*fp32",
            "partial_lse_ptr": "*fp32",
            "counters_ptr": "*i32",
            "score_scale": "fp32",
            "cap_log2": "fp32",
            "v_scale": "fp32",
            "window": "i32",
            "splits": "i32",
            "reciprocal": "i32",
            "groups": "i32",
            "table_stride": "i32",
            **dict.fromkeys(_STRIDES, "i32"),
        },
        constexprs={
            **{pointer: None for pointer, given in there.items() if not given},
            "KV_HEADS": kv_heads,
            "GROUP": group,
            "QUERY_LEN": query_len,
            "HEAD_SIZE": head_size,
            "BLOCK_SIZE": block_size,
            "W": config.num_warps,
            "FAN": merge.fan,
            "STEPS": merge.steps,
            "HAS_WINDOW": window,
            "HAS_SOFT_CAP": soft_cap,
        },
        num_warps=config.num_warps,
        waves_per_eu=config.waves_per_eu,
        divisible_by_16=_STRIDES,
        over_2_gib=("k_cache_ptr", "v_cache_ptr"),
        by_gfx={gfx: {"CDNA": generation} for gfx, generation in GENERATION.items()},
        budgets=_budgets(config.waves_per_eu, dtype, head_size, cache),
    )


CODEGEN_VARIANTS = (
    _split_variant("kv8/group4/head128/block16/parts64", 8, 4, 128, 16, parts=64),
    _split_variant("kv8/group4/head128/block16", 8, 4, 128, 16),
    _split_variant("kv1/group16/head128/block16/parts16", 1, 16, 128, 16, parts=16),
    _split_variant("kv1/group16/head128/block16/parts256", 1, 16, 128, 16, parts=256),
    _split_variant("kv32/group1/head80/block16/parts16", 32, 1, 80, 16, parts=16),
    _split_variant(
        "kv8/group8/head64/block16/parts8/window/sinks",
        8, 8, 64, 16, parts=8, window=True, sinks=True,
    ),
    _split_variant("kv8/group8/head64/block16/sinks", 8, 8, 64, 16, sinks=True),
    _split_variant(
        "kv8/group4/head128/block16/parts16/query4", 8, 4, 128, 16, parts=16, query_len=4
    ),
    _split_variant(
        "kv32/group1/head128/block16/parts16/alibi", 32, 1, 128, 16, parts=16, alibi=True
    ),
    _split_variant(
        "kv4/group2/head256/block16/parts64/window/cap",
        4, 2, 256, 16, parts=64, window=True, soft_cap=True,
    ),
    _split_variant("kv8/group4/head128/block16/parts16", 8, 4, 128, 16, dtype="fp16", parts=16),
    _split_variant("kv8/group4/head128/block16/fp8_cache", 8, 4, 128, 16, cache="fp8"),
    _split_variant(
        "kv1/group16/head128/block16/fp8_cache/parts16", 1, 16, 128, 16, cache="fp8", parts=16
    ),
    _split_variant(
        "kv1/group16/head128/block16/fp8_cache/parts64", 1, 16, 128, 16, cache="fp8", parts=64
    ),
    _split_variant("kv8/group8/head64/block16/fp8_cache", 8, 8, 64, 16, cache="fp8"),
    _split_variant(
        "kv4/group2/head256/block16/fp8_cache/window/cap",
        4, 2, 256, 16, cache="fp8", window=True, soft_cap=True,
    ),
)  # fmt: skip
