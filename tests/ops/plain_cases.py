"""Hard small cases of the cache writes and the small GEMM, and how one is run; no tests here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.ops.attention_cases import empty_cache
from vllm_amdopt.ops import gemm_small_batch, kv_cache_write
from vllm_amdopt.ops.tolerance import excess


@dataclass(frozen=True)
class WriteCase:
    """`slots` may be fewer than `tokens`: the rows behind are padding. -1 skips a token.

    `fp8`: the cache holds the chip's own e4m3, with scales.
    """

    name: str
    tokens: int
    slots: tuple[int, ...]
    heads: int
    head_size: int
    block_size: int
    cast_to: torch.dtype | None = None
    """The cache's dtype where it is not that of the new keys."""
    fp8: bool = False


@dataclass(frozen=True)
class LatentCase:
    """`slots` as in `WriteCase`. `fp8`: the cache holds the chip's own e4m3, with a scale."""

    name: str
    tokens: int
    slots: tuple[int, ...]
    latent_size: int
    block_size: int
    fp8: bool = False


@dataclass(frozen=True)
class GemmCase:
    """`views`: x and weight are the left columns of wider matrices that go on with NaN."""

    name: str
    m: int
    n: int
    k: int
    bias: bool = False
    views: bool = False


BLOCKS = 5

WRITE_CASES = (
    WriteCase("padding_and_skips", 6, (17, -1, 0, 79, 32), 2, 64, 16),
    WriteCase("single_token", 1, (31,), 2, 64, 16),
    WriteCase("no_token", 3, (), 2, 64, 16),
    WriteCase("block_1_5_heads_of_80", 3, (4, -1, 2), 5, 80, 1),
    WriteCase("40_heads_of_128_take_tiles", 2, (3, 639), 40, 128, 128),
    WriteCase("cast_to_float16", 3, (9, 1, 0), 3, 96, 2, torch.float16),
    WriteCase("block_16_fp8", 4, (16, -1, 79, 3), 3, 80, 16, fp8=True),
)
LATENT_CASES = (
    LatentCase("block_1_padding_and_skips", 5, (4, -1, 0, 2), 512, 1),
    LatentCase("block_64", 2, (64, 319), 256, 64),
    LatentCase("no_token", 2, (), 256, 64),
    LatentCase("block_16_fp8", 4, (16, -1, 79, 3), 256, 16, fp8=True),
)
GEMM_CASES = (
    GemmCase("one_row", 1, 128, 256),
    GemmCase("one_row_bias_odd_sizes", 1, 65, 131, bias=True),
    GemmCase("5_rows_k_under_tile", 5, 64, 24),
    GemmCase("16_rows", 16, 192, 384),
    GemmCase("17_rows_views", 17, 48, 100, bias=True, views=True),
    GemmCase("33_rows", 33, 100, 192),
    GemmCase("64_rows", 64, 64, 128),
    GemmCase("150_rows_odd_sizes", 150, 70, 90, bias=True),
)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bitwise equality, so that NaN equals NaN."""
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def wider_by(columns: int, matrix: torch.Tensor) -> torch.Tensor:
    """The same matrix as a view into one with further columns, all NaN."""
    rows, width = matrix.shape
    wide = torch.full((rows, width + columns), float("nan"), dtype=matrix.dtype)
    wide[:, :width] = matrix
    return wide[:, :width]


def check_write(
    case: WriteCase,
    dtype: torch.dtype,
    launch: Callable[..., None] | None = None,
    served: bool = False,
    fp8: torch.dtype = torch.float8_e4m3fn,
) -> str | None:
    """None where every byte of the cache is what the reference leaves, otherwise what is wrong.

    An fp8 cache is given too large numbers, and a NaN.
    """
    generator = torch.Generator().manual_seed(3)
    cache_dtype = fp8 if case.fp8 else case.cast_to or dtype
    width = case.heads * case.head_size
    packed = torch.randn(case.tokens, 2 * width + 16, generator=generator).to(dtype)
    scales = {}
    if case.fp8:
        scales = {"k_scale": 0.3, "v_scale": 1.5}
        packed[:, ::7] *= 500.0
        packed[:, width - 1] = float("nan")
    shape = (case.tokens, case.heads, case.head_size)
    key, value = packed[:, :width].view(shape), packed[:, width : 2 * width].view(shape)
    slots = torch.tensor(case.slots, dtype=torch.int64)
    size = case.head_size
    shape = (BLOCKS, case.heads, case.block_size, 2 * size)
    caches = [empty_cache(shape, cache_dtype, large) for large in (False, served)]
    kv_cache_write.reference(
        key, value, caches[0][..., :size], caches[0][..., size:], slots, **scales
    )
    launch = launch or kv_cache_write.launch
    launch(key, value, caches[1][..., :size], caches[1][..., size:], slots, **scales)
    return None if same_bits(*caches) else "the caches differ."


def check_latent(
    case: LatentCase,
    dtype: torch.dtype,
    launch: Callable[..., None] | None = None,
    served: bool = False,
    fp8: torch.dtype = torch.float8_e4m3fn,
) -> str | None:
    """As `check_write`, for the latent cache. An fp8 one is given too large numbers, and a NaN."""
    generator = torch.Generator().manual_seed(4)
    kv_c = torch.randn(case.tokens, case.latent_size + 8, generator=generator).to(dtype)
    kv_c = kv_c[:, : case.latent_size]
    k_pe = torch.randn(case.tokens, 64, generator=generator).to(dtype)
    slots = torch.tensor(case.slots, dtype=torch.int64)
    scale = {}
    if case.fp8:
        scale["latent_scale"] = torch.tensor(0.3)
        kv_c[:, :4] *= 500.0
        k_pe[:, -1] = float("nan")
    shape = (BLOCKS, case.block_size, case.latent_size + 64)
    caches = [empty_cache(shape, fp8 if case.fp8 else dtype, large) for large in (False, served)]
    kv_cache_write.latent_reference(kv_c, k_pe, caches[0], slots, **scale)
    (launch or kv_cache_write.launch_latent)(kv_c, k_pe, caches[1], slots, **scale)
    return None if same_bits(*caches) else "the caches differ."


def check_gemm(
    case: GemmCase,
    dtype: torch.dtype,
    launch: Callable[..., torch.Tensor] | None = None,
    served: bool = False,
) -> str | None:
    """None where `launch` (the Triton kernel) keeps the error budget, otherwise what is wrong.

    `served` makes no difference: a weight is rarely over 2 GiB.
    """
    del served
    generator = torch.Generator().manual_seed(5)
    x, weight = (
        wider_by(24 if case.views else 0, torch.randn(rows, case.k, generator=generator).to(dtype))
        for rows in (case.m, case.n)
    )
    bias = torch.randn(case.n, generator=generator).to(dtype) if case.bias else None
    wide_bias = None if bias is None else bias.double()
    truth = gemm_small_batch.reference(x.double(), weight.double(), wide_bias)
    # From copies: on CPUs with AMX oneDNN's bfloat16 product reads past a view's last column, and
    # what lies there is NaN.
    torch_result = gemm_small_batch.reference(
        x.contiguous(), weight.contiguous(), bias, compute_dtype=dtype
    )
    return excess((launch or gemm_small_batch.launch)(x, weight, bias), truth, torch_result)
