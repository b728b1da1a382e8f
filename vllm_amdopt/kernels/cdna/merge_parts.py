"""Merging the parts that a sequence's keys were cut into, for CDNA (Gluon).

All partial results of a head are under way together; nothing is attended to here.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from vllm_amdopt.kernels.cdna.tiles import (
    first_visible,
    lane_layout,
    parts_layout,
    visible_start,
)
from vllm_amdopt.kernels.variants import Budget, CodegenVariant


@dataclass(frozen=True)
class MergeConfig:
    """How the merging of parts is launched: one workgroup per sequence and head."""

    num_warps: int
    waves_per_eu: int
    why: str


def choose_config(splits: int) -> MergeConfig:
    """The launch that merges so many parts."""
    return MergeConfig(
        num_warps=4 if splits > 16 else 1,
        waves_per_eu=4,
        why=(
            "one wave holds up to 16 parts of a head, more are shared out; 64 registers a lane "
            "hold all of them, which a higher occupancy would not leave: loads would take turns"
        ),
    )


def padded_splits(splits: int) -> int:
    """The reduce kernel's number of parts: the next power of two, at least 2."""
    return max(2, triton.next_power_of_2(splits))


@gluon.jit(do_not_specialize=["window", "splits"])
def cdna_merge_kernel(
    partial_ptr,
    partial_lse_ptr,
    seq_lens_ptr,
    out_ptr,
    window,
    splits,
    out_stride_seq,
    out_stride_head,
    QUERY_HEADS: gl.constexpr,
    HEAD_SIZE: gl.constexpr,
    SPLITS: gl.constexpr,
    TILE: gl.constexpr,
    W: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
):
    """Grid (seqs, heads); each of W waves merges a share of the head.

    SPLITS: `splits` padded to a power of two. partial and partial_lse as `cdna_split_kernel` leaves
    them; TILE is its tile.

    Parts that hold no tokens were not written: the last one that does is read in their place, with
    weight 0, so that all loads are under way together.
    """
    HEAD_PAD: gl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    layout: gl.constexpr = parts_layout(W, SPLITS, HEAD_PAD)
    by_part: gl.constexpr = gl.SliceLayout(1, layout)
    by_element: gl.constexpr = gl.SliceLayout(0, layout)
    sequence = gl.program_id(0).to(gl.int64)
    head = gl.program_id(1)
    seq_len = gl.load(seq_lens_ptr + sequence)
    start = visible_start(first_visible(seq_len, window, HAS_WINDOW), TILE)
    tiles = gl.cdiv(seq_len - start, TILE)
    used = gl.cdiv(tiles, gl.maximum(gl.cdiv(tiles, splits), 1))
    first = (sequence * QUERY_HEADS + head) * splits
    split = gl.arange(0, SPLITS, layout=by_part)
    part = first + gl.minimum(split, gl.maximum(used - 1, 0))
    element = gl.minimum(gl.arange(0, HEAD_PAD, layout=by_element), HEAD_SIZE - 1)
    partial = gl.load(
        partial_ptr + gl.expand_dims(part * HEAD_SIZE, 1) + gl.expand_dims(element, 0)
    )
    split = gl.arange(0, SPLITS, layout=lane_layout(W, SPLITS))
    lse = gl.load(partial_lse_ptr + first + gl.minimum(split, gl.maximum(used - 1, 0)))
    # All loads are asked for before any is waited for.
    gl.amd.hint.sched_barrier()
    lse = gl.where(split < used, lse, float("-inf"))
    weights = gl.exp2(lse - gl.maximum(gl.max(lse, 0), -1.0e30))
    weights = gl.convert_layout(weights / gl.sum(weights, 0), by_part)
    result = gl.sum(partial * gl.expand_dims(weights, 1), 0)
    # An empty sequence has no part at all.
    result = gl.where(used > 0, result, 0.0)
    element = gl.arange(0, HEAD_PAD, layout=by_element)
    out_ptrs = out_ptr + sequence * out_stride_seq + head * out_stride_head + element
    gl.store(out_ptrs, result.to(out_ptr.dtype.element_ty), mask=element < HEAD_SIZE)


_BUDGETS: dict[str, dict[str, Budget]] = {
    "cdna_merge/bf16/heads32/head128/splits16": {
        "gfx942": Budget(4, narrow_loads={32: 1}),
        "gfx950": Budget(4, narrow_loads={32: 1}),
    },
    "cdna_merge/bf16/heads8/head256/splits64": {
        "gfx942": Budget(4, narrow_loads={32: 1}),
        "gfx950": Budget(4, narrow_loads={32: 1}),
    },
}


def _variant(heads: int, head_size: int, splits: int) -> CodegenVariant:
    config = choose_config(splits)
    name = f"cdna_merge/bf16/heads{heads}/head{head_size}/splits{splits}"
    return CodegenVariant(
        name=name,
        kernel=cdna_merge_kernel,
        signature={
            "partial_ptr": "*fp32",
            "partial_lse_ptr": "*fp32",
            "seq_lens_ptr": "*i32",
            "out_ptr": "*bf16",
            "window": "i32",
            "splits": "i32",
            "out_stride_seq": "i32",
            "out_stride_head": "i32",
        },
        constexprs={
            "QUERY_HEADS": heads,
            "HEAD_SIZE": head_size,
            "SPLITS": splits,
            "TILE": 128,
            "W": config.num_warps,
            "HAS_WINDOW": False,
        },
        num_warps=config.num_warps,
        waves_per_eu=config.waves_per_eu,
        divisible_by_16=("out_stride_seq", "out_stride_head"),
        budgets=_BUDGETS.get(name, {}),
    )


CODEGEN_VARIANTS = (
    _variant(32, 128, 16),
    _variant(8, 256, 64),
)
