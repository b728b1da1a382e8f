"""Hard small cases of attention over a paged cache, how one is run and judged; no tests here.

A case runs wherever the caller made Triton run: the emulator (`test_*.py`) or, in a process of
its own, the interpreter (`interpreter_run.py`). The cache is NaN wherever no token lies and the
output is NaN before each run, so reading or leaving a wrong place shows. A cache that lies `served`
stands at the end of more than 2 GiB, as a real one does, because Triton makes other code for it.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_amdopt.ops import mla_decode, paged_attention_decode, paged_attention_prefill
from vllm_amdopt.ops.tolerance import excess

NAN = float("nan")


@dataclass(frozen=True)
class AttentionCase:
    """One batch. `query_lens` None is decode; `splits` None leaves the number to the plan.

    `fp8`: the cache holds the chip's own e4m3, with scales that are not 1. `sinks`, `alibi`: each
    head has a sink of its own, a slope of its own.
    """

    name: str
    seq_lens: tuple[int, ...]
    heads: int
    kv_heads: int
    head_size: int
    block_size: int
    query_lens: tuple[int, ...] | None = None
    window: int = 0
    soft_cap: float = 0.0
    splits: int | None = None
    token_major: bool = False
    """The cache lies tokens first, then heads, as in another of vLLM's physical layouts."""
    fp8: bool = False
    sinks: bool = False
    alibi: bool = False
    query_len: int = 1
    """Query tokens of each sequence in decode."""


@dataclass(frozen=True)
class MlaCase:
    """One batch of absorbed MLA decode; R is 64. `fp8`, `query_len` as in `AttentionCase`."""

    name: str
    seq_lens: tuple[int, ...]
    heads: int
    latent_size: int
    block_size: int
    splits: int | None = None
    with_lse: bool = True
    fp8: bool = False
    query_len: int = 1


# The tile is 32 tokens: lengths stand around 16 (page), 32 (tile) and parts of tiles, two at least.
DECODE_CASES = (
    AttentionCase("page_and_tile_borders", (1, 15, 16, 17, 31, 32, 33, 65), 8, 2, 64, 16),
    AttentionCase("split_borders", (0, 1, 64, 65, 128, 129, 192, 193, 200), 8, 2, 64, 16, splits=3),
    AttentionCase("single_row", (77,), 8, 2, 64, 16),
    AttentionCase("more_splits_than_tiles", (1, 130), 8, 2, 64, 16, splits=17),
    AttentionCase(
        "block_1_window_cap", (0, 7, 20, 21, 90, 150), 3, 3, 80, 1, None, 20, 30.0, splits=2
    ),
    AttentionCase("group_7_block_128", (127, 128, 129), 14, 2, 128, 128),
    AttentionCase("group_20_token_major", (33, 5), 20, 1, 96, 32, token_major=True),
    AttentionCase("group_70_takes_two_tiles", (40, 9), 70, 1, 32, 8),
    AttentionCase("head_192_window_in_page", (70, 3), 6, 3, 192, 64, None, 9),
    AttentionCase(
        "head_128_group_16_token_major",
        (1, 128, 129, 260),
        16,
        1,
        128,
        32,
        splits=2,
        token_major=True,
    ),
    AttentionCase("head_80_window_cap", (70, 600), 2, 2, 80, 64, None, 300, 20.0, splits=2),
    AttentionCase("head_256_cap", (70, 31), 2, 2, 256, 4, None, 0, 5.0),
    AttentionCase("fp8", (33, 64, 70, 5), 8, 2, 128, 16, splits=2, fp8=True),
    AttentionCase(
        "fp8_block_1_window_sinks", (0, 40, 18), 5, 1, 80, 1, window=17, fp8=True, sinks=True
    ),
    AttentionCase("sinks_in_parts", (0, 1, 65, 130), 8, 1, 64, 32, splits=3, sinks=True),
    AttentionCase("alibi_cap_in_parts", (3, 64, 130), 4, 4, 64, 16, None, 0, 9.0, 2, alibi=True),
    AttentionCase(
        "4_tokens_around_borders", (0, 4, 31, 32, 33, 34, 35, 66, 131), 4, 2, 64, 16, splits=2,
        query_len=4,
    ),
    AttentionCase(
        "3_tokens_window_everything", (3, 40, 101), 14, 2, 128, 64, None, 34, 20.0, 2, fp8=True,
        sinks=True, alibi=True, query_len=3,
    ),
    AttentionCase(
        "2_tokens_everything_in_parts", (0, 2, 40, 129, 300), 14, 2, 128, 16, None, 100, 20.0, 3,
        fp8=True, sinks=True, alibi=True, query_len=2,
    ),
    AttentionCase("8_tokens_take_two_tiles", (70, 9), 20, 2, 64, 1, query_len=8),
)  # fmt: skip

PREFILL_CASES = (
    AttentionCase("whole_prompts", (1, 16, 17, 65), 8, 2, 64, 16, (1, 16, 17, 65)),
    AttentionCase("chunks_and_decodes", (80, 64, 33, 20), 8, 2, 64, 16, (15, 64, 1, 0)),
    AttentionCase("one_short_chunk", (19,), 8, 2, 64, 16, (3,)),
    AttentionCase("group_3_block_1_window_cap", (90, 20), 6, 2, 80, 1, (50, 20), 20, 30.0),
    AttentionCase(
        "group_7_block_128_token_major", (130, 5), 7, 1, 128, 128, (20, 5), token_major=True
    ),
    AttentionCase("head_32_block_2", (9, 40), 2, 2, 32, 2, (9, 11)),
    AttentionCase("head_192_window_in_page", (70, 3), 3, 3, 192, 64, (30, 3), 9),
    AttentionCase("head_256", (33,), 4, 2, 256, 32, (33,)),
    AttentionCase("many_tiles_seen_whole", (300,), 4, 1, 128, 16, (5,)),
    AttentionCase(
        "sinks_and_a_window_over_tiles", (200, 33), 8, 2, 64, 16, (30, 33), 100, sinks=True
    ),
    AttentionCase("alibi_group_3_block_8", (90, 7), 6, 2, 64, 8, (20, 7), alibi=True),
    AttentionCase("fp8", (150, 40), 8, 2, 64, 16, (20, 40), fp8=True),
    AttentionCase(
        "fp8_head_80_window_cap_sinks_alibi",
        (130,),
        4,
        2,
        80,
        32,
        (40,),
        70,
        20.0,
        fp8=True,
        sinks=True,
        alibi=True,
    ),
)

# The tile is 16 latents for up to 16 rows, which are heads times query tokens, and 32 for more.
MLA_CASES = (
    MlaCase("block_1_tile_borders", (0, 1, 15, 16, 17, 50), 16, 512, 1),
    MlaCase("block_1_split_borders", (1, 16, 17, 32, 33, 70), 16, 512, 1, splits=3),
    MlaCase("block_16_20_heads", (16, 17, 50), 20, 256, 16, splits=2),
    MlaCase("block_64_3_heads_without_lse", (63, 64, 65), 3, 256, 64, with_lse=False),
    MlaCase("single_row_block_128", (40,), 16, 512, 128),
    MlaCase("70_heads_take_three_tiles", (0, 33, 20), 70, 256, 8),
    MlaCase("block_1_fp8", (0, 17, 40), 12, 512, 1, splits=2, fp8=True),
    MlaCase("block_16_24_heads_fp8", (33, 9), 24, 256, 16, fp8=True),
    MlaCase("40_heads_fp8_in_parts", (0, 15, 70), 40, 512, 1, splits=3, fp8=True),
    MlaCase("3_tokens_each", (0, 3, 18, 34), 5, 256, 1, splits=2, query_len=3),
    MlaCase("2_tokens_of_12_heads_fp8", (1, 33, 40), 12, 256, 64, fp8=True, query_len=2),
)


@dataclass(frozen=True)
class PagedCache:
    """K and V as vLLM hands them over: halves of one tensor [blocks, kv_heads, block_size, 2 D]."""

    k: Tensor
    v: Tensor
    block_table: Tensor
    seq_lens: Tensor


def block_table_for(
    seq_lens: tuple[int, ...], block_size: int, generator: torch.Generator
) -> tuple[Tensor, int]:
    """(shuffled int32 table wider than needed, number of blocks); unused entries point nowhere."""
    needed = [-(-length // block_size) for length in seq_lens]
    total = sum(needed) + 3
    blocks = iter(torch.randperm(total, generator=generator).tolist())
    table = torch.full((len(seq_lens), max(needed, default=0) + 2), 2**31 - 1, dtype=torch.int32)
    for sequence, count in enumerate(needed):
        for column in range(count):
            table[sequence, column] = next(blocks)
    return table, total


def fill_cache(cache: Tensor, table: Tensor, seq_lens: tuple[int, ...], values: Tensor) -> None:
    """Write values [all tokens, heads, width] to cache [blocks, heads, block_size, width]."""
    block_size = cache.shape[2]
    row = 0
    for sequence, length in enumerate(seq_lens):
        position = torch.arange(length)
        blocks = table[sequence, position // block_size].long()
        cache[blocks, :, position % block_size] = values[row : row + length]
        row += length


def empty_cache(shape: tuple[int, ...], dtype: torch.dtype, served: bool) -> Tensor:
    """NaN, dense. `served`: the last part of 2 GiB more, with NaN before it and nothing behind it.

    Memory is taken only where it is touched.
    """
    if not served:
        return torch.full(shape, NAN, dtype=dtype)
    elements = math.prod(shape)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, 2**31 + elements * dtype.itemsize, flags=flags)
    flat = torch.frombuffer(memory, dtype=dtype)
    flat[-2 * elements :] = NAN
    return flat[-elements:].view(shape)


def paged_cache(
    case: AttentionCase, dtype: torch.dtype, generator: torch.Generator, served: bool = False
) -> PagedCache:
    table, total = block_table_for(case.seq_lens, case.block_size, generator)
    shape = (total, case.kv_heads, case.block_size, 2 * case.head_size)
    if case.token_major:
        blocks, heads, rows, width = shape
        cache = empty_cache((blocks, rows, heads, width), dtype, served).transpose(1, 2)
    else:
        cache = empty_cache(shape, dtype, served)
    values = torch.randn(sum(case.seq_lens), case.kv_heads, 2 * case.head_size, generator=generator)
    fill_cache(cache, table, case.seq_lens, values.to(dtype))
    lengths = torch.tensor(case.seq_lens, dtype=torch.int32)
    return PagedCache(cache[..., : case.head_size], cache[..., case.head_size :], table, lengths)


def packed_query(
    tokens: int, heads: int, width: int, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """A view into a wider row, as the query part of a fused QKV projection is."""
    packed = torch.randn(tokens, heads * width + 48, generator=generator).to(dtype)
    return packed[:, : heads * width].view(tokens, heads, width)


def strided_output(tokens: int, heads: int, width: int, dtype: torch.dtype) -> Tensor:
    """NaN, and a view whose heads are further apart than their width."""
    return torch.full((tokens, heads, width + 16), NAN, dtype=dtype)[..., :width]


def extras(case: AttentionCase) -> dict[str, Any]:
    """The keywords that give a case its scales, sinks and slopes; those at their default, not."""
    found: dict[str, Any] = {}
    if case.fp8:
        found |= {"k_scale": 0.5, "v_scale": 1.75}
    if case.sinks:
        found["sinks"] = torch.linspace(-2.0, 3.0, case.heads)
    if case.alibi:
        found["alibi_slopes"] = 2.0 ** -torch.linspace(1.0, 8.0, case.heads)
    return found


def check_attention(
    case: AttentionCase,
    dtype: torch.dtype,
    launch: Callable[..., None] | None = None,
    served: bool = False,
    fp8: torch.dtype = torch.float8_e4m3fn,
) -> str | None:
    """None where `launch` (the Triton kernel) keeps the error budget, otherwise what is wrong.

    `fp8`: which one a cache of a case with `fp8` holds.
    """
    generator = torch.Generator().manual_seed(1)
    cache = paged_cache(case, fp8 if case.fp8 else dtype, generator, served)
    decode = case.query_lens is None
    query_lens = case.query_lens or (case.query_len,) * len(case.seq_lens)
    tokens = sum(query_lens)
    query = packed_query(tokens, case.heads, case.head_size, dtype, generator)
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
    options: dict[str, Any] = {
        "max_seq_len": max(case.seq_lens),
        "sliding_window": case.window,
        "logits_soft_cap": case.soft_cap,
        **extras(case),
    }
    scale = case.head_size**-0.5

    def run(function: Callable[..., None], wide: bool, out: Tensor, **more: Any) -> Tensor:
        widen = torch.Tensor.double if wide else torch.Tensor.clone
        q, k, v = (query, cache.k, cache.v) if not wide else map(widen, (query, cache.k, cache.v))
        lengths = (cache.seq_lens,) if decode else (cache.seq_lens, starts)
        function(q, k, v, cache.block_table, *lengths, scale, out, **options, **more)
        return out

    module = paged_attention_decode if decode else paged_attention_prefill
    if not decode:
        options["max_query_len"] = max(query_lens)
    shape = (tokens, case.heads, case.head_size)
    truth = run(module.reference, True, torch.empty(shape, dtype=torch.float64))
    torch_result = run(
        module.reference, False, torch.empty(shape, dtype=dtype), compute_dtype=dtype
    )
    splits = {} if case.splits is None else {"splits": case.splits}
    out = run(launch or module.launch, False, strided_output(*shape, dtype), **splits)
    return excess(out, truth, torch_result)


def check_mla(
    case: MlaCase,
    dtype: torch.dtype,
    launch: Callable[..., None] | None = None,
    served: bool = False,
    fp8: torch.dtype = torch.float8_e4m3fn,
) -> str | None:
    """As `check_attention`, for the latent cache; the log-sum-exp is judged too."""
    generator = torch.Generator().manual_seed(2)
    width = case.latent_size + 64
    sequences = len(case.seq_lens)
    table, total = block_table_for(case.seq_lens, case.block_size, generator)
    cache_dtype = fp8 if case.fp8 else dtype
    cache = empty_cache((total, 1, case.block_size, width), cache_dtype, served)
    values = torch.randn(sum(case.seq_lens), 1, width, generator=generator).to(cache_dtype)
    fill_cache(cache, table, case.seq_lens, values)
    latent = cache.squeeze(1)
    query = packed_query(sequences * case.query_len, case.heads, width, dtype, generator)
    seq_lens = torch.tensor(case.seq_lens, dtype=torch.int32)
    shape = (sequences * case.query_len, case.heads, case.latent_size)
    options: dict[str, Any] = {
        "kv_lora_rank": case.latent_size,
        "max_seq_len": max(case.seq_lens),
        **({"latent_scale": 1.75} if case.fp8 else {}),
    }
    arguments = (table, seq_lens, 192**-0.5)

    truth, true_lse = torch.empty(shape, dtype=torch.float64), torch.empty(shape[:2]).double()
    mla_decode.reference(query.double(), latent.double(), *arguments, truth, true_lse, **options)
    torch_result, torch_lse = torch.empty(shape, dtype=dtype), torch.empty(shape[:2])
    mla_decode.reference(
        query, latent, *arguments, torch_result, torch_lse, compute_dtype=dtype, **options
    )
    out = strided_output(*shape, dtype)
    lse = torch.full(shape[:2], NAN) if case.with_lse else None
    splits = {} if case.splits is None else {"splits": case.splits}
    launch = launch or mla_decode.launch
    launch(query, latent, *arguments, out, lse, **splits, **options)
    wrong = excess(out, truth, torch_result)
    if wrong is None and lse is not None:
        # Where a query token sees nothing, PyTorch's truth is -inf as well.
        empty = true_lse == float("-inf")
        if not bool((lse[empty] == float("-inf")).all()):
            return "the log-sum-exp of a token that sees nothing is not -inf."
        wrong = excess(lse[~empty], true_lse[~empty], torch_lse[~empty])
        wrong = wrong and f"log-sum-exp: {wrong}"
    return wrong
