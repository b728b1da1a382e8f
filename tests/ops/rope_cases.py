"""Hard small cases of rotary embedding with the cache write, and how one is run; no tests here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.ops.attention_cases import empty_cache
from vllm_amdopt.ops import rope_and_cache_write
from vllm_amdopt.ops.tolerance import excess

BLOCKS, POSITIONS = 5, 600


@dataclass(frozen=True)
class RopeCase:
    """`slots` may be fewer than `tokens`: the rows behind are padding. -1 skips a token.

    `fp8`: the cache holds the chip's own e4m3, with scales that are not 1. Without `in_place` the
    results go to tensors of their own, and the packed projection stays as it was.
    """

    name: str
    tokens: int
    slots: tuple[int, ...]
    heads: int
    kv_heads: int
    head_size: int
    rotary: int
    block_size: int
    is_neox: bool = True
    norm: bool = False
    fp8: bool = False
    in_place: bool = True


ROPE_CASES = (
    RopeCase("neox_padding_and_skips", 6, (17, -1, 0, 79, 32), 4, 2, 64, 64, 16),
    RopeCase("gptj_3_heads", 3, (9, 1, -1), 3, 1, 64, 64, 2, is_neox=False),
    RopeCase("norm_40_heads_take_tiles", 2, (3, 639), 40, 9, 128, 128, 128, norm=True),
    RopeCase("partly_rotated_norm_head_80", 3, (4, -1, 2), 5, 5, 80, 24, 1, norm=True),
    RopeCase("gptj_partly_rotated", 2, (7, 8), 2, 2, 96, 40, 4, is_neox=False),
    RopeCase("fp8", 4, (31, 0, 5, -1), 4, 2, 64, 64, 16, fp8=True),
    RopeCase("fp8_gptj_norm_partly_rotated", 2, (3, 9), 2, 2, 96, 64, 8, False, True, True),
    RopeCase("norm_not_in_place", 3, (4, -1, 2), 8, 2, 64, 64, 16, norm=True, in_place=False),
    RopeCase("partly_rotated_not_in_place", 2, (4, 2), 5, 5, 80, 24, 1, False, in_place=False),
    RopeCase("no_token", 0, (), 4, 2, 64, 64, 16),
)


def check_rope(
    case: RopeCase,
    dtype: torch.dtype,
    launch: Callable[..., None] | None = None,
    served: bool = False,
    fp8: torch.dtype = torch.float8_e4m3fn,
) -> str | None:
    """None where query, key and cache keep the error budget and nothing else was written."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    size = case.head_size
    widths = [case.heads * size, case.kv_heads * size, case.kv_heads * size, 16]
    packed = random(case.tokens, sum(widths))
    positions = torch.randint(0, POSITIONS, (case.tokens,), generator=generator)
    angles = torch.rand(POSITIONS, case.rotary // 2, generator=generator) * 6.3
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)
    slots = torch.tensor(case.slots, dtype=torch.int64)
    weights = (random(size), random(size)) if case.norm else (None, None)
    scales = {"k_scale": 0.5, "v_scale": 1.75} if case.fp8 else {}
    shape = (BLOCKS, case.kv_heads, case.block_size, 2 * size)

    def run(function: Callable[..., None], cache: Tensor, wide: bool = False, **more: Any) -> Any:
        def given(tensor: Tensor | None) -> Tensor | None:
            return tensor.double() if wide and tensor is not None else tensor

        row = packed.double() if wide else packed.clone()
        query, key, value, _ = (part.unflatten(1, (-1, size)) if part.shape[1] % size == 0 else part
                                for part in row.split(widths, dim=1))  # fmt: skip
        outputs = {}
        if not case.in_place:
            result = row.clone()
            outputs = dict(zip(("query_out", "key_out"), (
                part.unflatten(1, (-1, size)) for part in result.split(widths, dim=1)[:2]
            ), strict=True))  # fmt: skip
        function(
            query, key, value, positions, given(cos_sin), cache[..., :size], cache[..., size:],
            slots, is_neox=case.is_neox, query_weight=given(weights[0]),
            key_weight=given(weights[1]), **scales, **outputs, **more,
        )  # fmt: skip
        if not case.in_place:
            assert torch.equal(row, packed.to(row.dtype)), "the projection was changed."
            row = result
        return row, cache

    cache_dtype = fp8 if case.fp8 else dtype
    reference = rope_and_cache_write.reference
    truth = run(reference, empty_cache(shape, torch.float64, False), wide=True)
    torch_result = run(reference, empty_cache(shape, cache_dtype, False), compute_dtype=dtype)
    out = run(launch or rope_and_cache_write.launch, empty_cache(shape, cache_dtype, served))
    ends = (0, widths[0], widths[0] + widths[1], sum(widths))
    for what, first, last in zip(("query", "key", "the rest"), ends, ends[1:], strict=False):
        rows = [result[0][:, first:last] for result in (out, truth, torch_result)]
        wrong = excess(*rows) if what != "the rest" else None
        if what == "the rest" and not torch.equal(rows[0], packed[:, first:last]):
            wrong = "the value was changed."
        if wrong:
            return f"{what}: {wrong}"
    written = torch.zeros(BLOCKS, case.block_size, dtype=torch.bool)
    for slot in case.slots:
        if slot >= 0:
            written[slot // case.block_size, slot % case.block_size] = True
    tokens_first = [result[1].transpose(1, 2) for result in (out, truth, torch_result)]
    if not bool(tokens_first[0][~written].float().isnan().all()):
        return "a slot that is not in the mapping was written."
    for what, part in (("keys", slice(0, size)), ("values", slice(size, None))):
        wrong = excess(*(cache[written][..., part] for cache in tokens_first))
        if wrong:
            return f"cached {what}: {wrong}"
    return None
