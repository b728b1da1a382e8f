"""Hard small cases of the one-shot all-reduce with all ranks in one process; no tests here.

The ranks take turns. Each launches its call, and all but the last give up because a peer has not
come yet; then each launches the same call again and finds everybody there, as the CPU engines do.
Memory lies as with real peers, but nothing happens at the same time: what needs that is in
`test_all_reduce_one_shot.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vllm_amdopt.ops.all_reduce_one_shot import (
    TIMED_OUT,
    OneShotAllReduce,
    reference,
    region_bytes,
)

MAX_BYTES = 1 << 15
SPIN_LIMIT = 2


@dataclass(frozen=True)
class AllReduceCase:
    """Calls with `sizes` elements, one after the other, by `ranks` ranks."""

    name: str
    ranks: int
    sizes: tuple[int, ...]


# A workgroup takes 2048 elements of two bytes or 1024 of four.
ALL_REDUCE_CASES = (
    AllReduceCase("2_ranks_growing_and_shrinking", 2, (16, 2056, 8)),
    AllReduceCase("8_ranks", 8, (1032, 8)),
    AllReduceCase("3_ranks_odd_sizes", 3, (1, 1025)),
)


def check_all_reduce(
    case: AllReduceCase,
    dtype: torch.dtype,
    run: Callable[..., Any] | None = None,
    served: bool = False,
) -> str | None:
    """None where every rank has the exact sum in every call and its input is as it was.

    Small integers, whose sums every dtype holds exactly, added in every order.
    """
    del run, served
    regions = [torch.zeros(region_bytes(MAX_BYTES), dtype=torch.uint8) for _ in range(case.ranks)]
    ranks = [OneShotAllReduce(r, case.ranks, regions, MAX_BYTES) for r in range(case.ranks)]
    generator = torch.Generator().manual_seed(7)
    for call, size in enumerate(case.sizes):
        inputs = [torch.randint(-8, 9, (size,), generator=generator).to(dtype) for _ in ranks]
        given = [x.clone() for x in inputs]
        outputs = [torch.full_like(x, float("nan")) for x in inputs]
        for rank, x, out in zip(ranks, given, outputs, strict=True):
            rank._launch(x, out, SPIN_LIMIT)
        for rank, x, out in zip(ranks, given, outputs, strict=True):
            if rank._state[TIMED_OUT]:
                rank._state[TIMED_OUT] = 0
                rank._launch(x, out, SPIN_LIMIT)
        truth = reference(inputs)
        for number, (rank, x, out) in enumerate(zip(ranks, given, outputs, strict=True)):
            where = f"rank {number} in call {call} of {size} elements"
            if rank._state[TIMED_OUT]:
                return f"{where} has not seen its peers."
            if not torch.equal(out, truth):
                return f"{where} has a wrong sum."
            if not torch.equal(x, inputs[number]):
                return f"{where} has its input overwritten."
    return None
