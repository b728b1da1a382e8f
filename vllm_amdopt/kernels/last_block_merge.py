"""The last workgroup to finish merges what all left: device functions, no kernel of its own.

A split sequence then needs no second launch. Workgroups count themselves in with an atomic counter
that the last one sets back to zero, so the counters are cleared once, when they are allocated, and
a captured graph may be replayed. Launches that may run at the same time need counters of their own.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_last_to_arrive(counter_ptr, parts):
    """Whether this workgroup is the last of `parts` that come here; it then sees what all stored.

    The workgroups may run on different XCDs, whose caches know nothing of each other: hence
    acquire and release at gpu scope.
    """
    # On AMD a barrier waits for nothing in memory, and the release below only for the stores of the
    # one wave that makes it. A volatile load makes every wave wait for its own stores first.
    tl.load(counter_ptr, volatile=True)
    tl.debug_barrier()
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == parts - 1
    if last:
        tl.store(counter_ptr, 0)
    tl.debug_barrier()
    return last


@triton.jit
def merge_parts(
    partial_ptrs,
    lse_ptrs,
    parts,
    partial_step,
    lse_step,
    element_mask,
    row_mask,
    CHUNK: tl.constexpr,
):
    """(result, base-2 log-sum-exp) of `parts` normalised partial results and theirs, in fp32.

    partial_ptrs [rows, width] and lse_ptrs [rows] point at the first part, the steps lead from one
    to the next. CHUNK parts are loaded at once; rows that the masks leave out are 0.
    """
    ROWS: tl.constexpr = partial_ptrs.shape[0]
    maximum = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, partial_ptrs.shape[1]], tl.float32)
    for first in range(0, parts, CHUNK):
        part = first + tl.arange(0, CHUNK)
        used = part < parts
        lse = tl.load(
            lse_ptrs[None, :] + (part * lse_step)[:, None],
            mask=row_mask[None, :] & used[:, None],
            other=float("-inf"),
        )
        partial = tl.load(
            partial_ptrs[None, :, :] + (part * partial_step)[:, None, None],
            mask=element_mask[None, :, :] & used[:, None, None],
            other=0.0,
        )
        new_maximum = tl.maximum(maximum, tl.max(lse, 0))
        correction = tl.exp2(maximum - new_maximum)
        weight = tl.exp2(lse - new_maximum[None, :])
        total = total * correction + tl.sum(weight, 0)
        result = result * correction[:, None] + tl.sum(partial * weight[:, :, None], 0)
        maximum = new_maximum
    return result / tl.where(total > 0.0, total, 1.0)[:, None], maximum + tl.log2(total)
