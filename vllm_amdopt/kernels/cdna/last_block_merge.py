"""The last workgroup to finish merges what all left, for CDNA (Gluon). No kernel of its own.

The idea and the counters are those of the portable module of the same name. Here every wave counts
itself in, and all partial results of a merge are under way together.
"""

from __future__ import annotations

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from vllm_amdopt.kernels.cdna.tiles import (
    axis_index,
    parts_layout,
    token_and_head,
    waves_layout,
    weights_layout,
)


@gluon.jit
def is_last_to_arrive(counter_ptr, parts, W: gl.constexpr):
    """Whether this workgroup is the last of `parts` that come here; it then sees what all stored.

    Each of the W waves releases its own stores and adds 1, so that none has to wait for the others
    before. The wave that finds all others counted has acquired what they released, and the
    exchange with the rest of its workgroup comes after that.
    """
    layout: gl.constexpr = waves_layout(W)
    wave = gl.arange(0, W, layout=layout)
    before = gl.atomic_add(counter_ptr + wave * 0, 1, sem="acq_rel", scope="gpu")
    last = gl.max(before, 0) == parts * W - 1
    if last:
        gl.store(counter_ptr, 0)
    return last


@gluon.jit
def merge_parts(
    partial_ptr,
    lse_ptr,
    first,
    parts,
    FAN: gl.constexpr,
    ROWS: gl.constexpr,
    HEAD_SIZE: gl.constexpr,
    W: gl.constexpr,
):
    """(result [ROWS, HEAD_SIZE], base-2 log-sum-exp [ROWS]), both padded, fp32.

    Of the normalised results in the slots first .. first + parts - 1, at most FAN; partial
    [slot, ROWS, HEAD_SIZE] and lse [slot, ROWS]. Absent ones are not asked for: a buffer load
    past the end is 0 without a branch.
    """
    ROWS_PAD: gl.constexpr = triton.next_power_of_2(ROWS)
    HEAD_PAD: gl.constexpr = triton.next_power_of_2(HEAD_SIZE)
    flat: gl.constexpr = weights_layout(W, FAN, ROWS_PAD)
    whole: gl.constexpr = parts_layout(W, FAN, ROWS_PAD, HEAD_PAD)
    part = axis_index(FAN, 0, 2, flat)
    row = axis_index(ROWS_PAD, 1, 2, flat)
    lse = gl.amd.cdna3.buffer_load(
        lse_ptr, (first + part) * ROWS + row, mask=(part < parts) & (row < ROWS)
    )
    present = part < parts
    # The weights are worked out while the rest is under way.
    gl.amd.hint.sched_barrier()
    part = axis_index(FAN, 0, 3, whole)
    row = axis_index(ROWS_PAD, 1, 3, whole)
    element = axis_index(HEAD_PAD, 2, 3, whole)
    partial = gl.amd.cdna3.buffer_load(
        partial_ptr,
        ((first + part) * ROWS + row) * HEAD_SIZE + element,
        mask=(part < parts) & (row < ROWS) & (element < HEAD_SIZE),
    )
    # All loads are asked for before any is waited for.
    gl.amd.hint.sched_barrier()
    lse = gl.where(present, lse, float("-inf"))
    highest = gl.maximum(gl.max(lse, 0), -1.0e30)
    weights = gl.exp2(lse - gl.expand_dims(highest, 0))
    total = gl.sum(weights, 0)
    weights = weights / gl.expand_dims(gl.where(total > 0.0, total, 1.0), 0)
    weights = gl.convert_layout(weights, gl.SliceLayout(2, whole))
    return gl.sum(partial * gl.expand_dims(weights, 2), 0), highest + gl.log2(total)


@gluon.jit
def store_rows(
    seq_ptr, stride_token, stride_head, result, GROUP: gl.constexpr, QUERY_LEN: gl.constexpr,
    HEAD_SIZE: gl.constexpr,
):  # fmt: skip
    """Write result [GROUP * QUERY_LEN, HEAD_SIZE], padded, to its tokens and heads."""
    row = axis_index(result.shape[0], 0, 2, result.type.layout)
    element = axis_index(result.shape[1], 1, 2, result.type.layout)
    token, head = token_and_head(row, GROUP, QUERY_LEN)
    gl.store(
        seq_ptr + token * stride_token + head * stride_head + element,
        result.to(seq_ptr.dtype.element_ty),
        mask=(row < GROUP * QUERY_LEN) & (element < HEAD_SIZE),
    )


@gluon.jit
def leave_part(
    partial_ptr, lse_ptr, slot, result, lse, ROWS: gl.constexpr, HEAD_SIZE: gl.constexpr
):
    """Leave a part's result, or what those of a group came to, in a slot of its own."""
    slot_ptr = partial_ptr + slot * ROWS * HEAD_SIZE
    store_rows(slot_ptr, 0, HEAD_SIZE, result, ROWS, 1, HEAD_SIZE)
    row = gl.arange(0, lse.shape[0], layout=lse.type.layout)
    gl.store(lse_ptr + slot * ROWS + row, lse, mask=row < ROWS)
