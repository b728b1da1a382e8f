"""Kernel for x [M, K] @ weight [N, K]^T with few rows M: reading the weight is the whole cost.

Accumulates in fp32 in a fixed order, so equal inputs give equal bits. No split of K yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from vllm_amdopt.kernels.variants import Budget, CodegenVariant


@dataclass(frozen=True)
class LaunchConfig:
    """One program computes `rows` x `columns` of the output, `depth` of K at a time."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    why: str


_FEW_ROWS = LaunchConfig(
    rows=16,
    columns=64,
    depth=128,
    num_warps=4,
    num_stages=1,
    why="decode: one matrix tile of rows; each wave owns 16 columns and streams 256 bytes of each",
)
_SOME_ROWS = LaunchConfig(
    rows=32,
    columns=64,
    depth=64,
    num_warps=4,
    num_stages=1,
    why="two matrix tiles of rows per column tile: the weight is still read once",
)
_MANY_ROWS = LaunchConfig(
    rows=64,
    columns=64,
    depth=64,
    num_warps=4,
    num_stages=1,
    why="larger batches and prefill: a square tile reads x and the weight equally often",
)
# Float32 rows are twice as wide; half the depth keeps two operand tiles within 32 KiB of LDS.
_FLOAT32_DEPTH = 32


def choose_config(m: int, n: int, k: int, element_bytes: int) -> LaunchConfig:
    """The launch for M rows; N and K are taken for later, finer choices."""
    del n, k
    config = _FEW_ROWS if m <= 16 else _SOME_ROWS if m <= 32 else _MANY_ROWS
    if element_bytes == 4:
        return LaunchConfig(
            config.rows,
            config.columns,
            _FLOAT32_DEPTH,
            config.num_warps,
            config.num_stages,
            config.why,
        )
    return config


@triton.jit(do_not_specialize=["m"])
def gemm_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    m,
    n,
    k,
    x_stride_row,
    weight_stride_row,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WHOLE_DEPTH: tl.constexpr,
):
    """Grid (tiles of columns, tiles of rows). `out` is dense; WHOLE_DEPTH says DEPTH divides k."""
    first_column = tl.program_id(0) * COLUMNS
    first_row = tl.program_id(1) * ROWS
    column = tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    in_columns = column < n - first_column
    in_rows = row < m - first_row
    # 64-bit scalar bases and 32-bit offsets within a tile: a weight may exceed 2^31 elements.
    x_tile_ptr = x_ptr + first_row.to(tl.int64) * x_stride_row
    weight_tile_ptr = weight_ptr + first_column.to(tl.int64) * weight_stride_row
    x_offsets = row[:, None] * x_stride_row + depth[None, :]
    weight_offsets = column[:, None] * weight_stride_row + depth[None, :]

    accumulator = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, k, DEPTH):
        x_mask = in_rows[:, None]
        weight_mask = in_columns[:, None]
        if not WHOLE_DEPTH:
            x_mask = x_mask & (depth < k - start)[None, :]
            weight_mask = weight_mask & (depth < k - start)[None, :]
        x = tl.load(x_tile_ptr + start + x_offsets, mask=x_mask, other=0.0)
        weight = tl.load(weight_tile_ptr + start + weight_offsets, mask=weight_mask, other=0.0)
        accumulator = tl.dot(x, tl.trans(weight), accumulator, input_precision="ieee")

    if HAS_BIAS:
        bias = tl.load(bias_ptr + first_column + column, mask=in_columns, other=0.0)
        accumulator += bias.to(tl.float32)[None, :]
    out_tile_ptr = out_ptr + first_row.to(tl.int64) * n + first_column
    tl.store(
        out_tile_ptr + row[:, None] * n + column[None, :],
        accumulator.to(out_ptr.dtype.element_ty),
        mask=in_rows[:, None] & in_columns[None, :],
    )


_BUDGETS: dict[str, dict[str, Budget]] = {
    "gemm/bf16/m16": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", full_waits=1),
        "gfx950": Budget(8, "f32_16x16x32_bf16", full_waits=1),
    },
    "gemm/bf16/m16/bias": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", full_waits=1),
        "gfx950": Budget(8, "f32_16x16x32_bf16", full_waits=1),
    },
    "gemm/bf16/m16/odd_k": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", full_waits=1),
        "gfx950": Budget(8, "f32_16x16x32_bf16", full_waits=1),
    },
    "gemm/bf16/m16/over_2_gib": {
        "gfx942": Budget(4, "f32_16x16x16_bf16", full_waits=1),
        "gfx950": Budget(8, "f32_16x16x32_bf16", full_waits=1),
    },
    "gemm/bf16/m32": {
        "gfx942": Budget(4, "f32_32x32x8_bf16", full_waits=1),
        "gfx950": Budget(5, "f32_32x32x16_bf16", full_waits=1),
    },
    "gemm/bf16/m64": {
        "gfx942": Budget(7, "f32_32x32x8_bf16", full_waits=1),
        "gfx950": Budget(8, "f32_32x32x16_bf16", full_waits=1),
    },
    "gemm/fp16/m16": {
        "gfx942": Budget(4, "f32_16x16x16_f16", full_waits=1),
        "gfx950": Budget(8, "f32_16x16x32_f16", full_waits=1),
    },
    "gemm/fp32/m16": {
        "gfx942": Budget(8, "f32_16x16x4_f32", {64: 1}, 1),
        "gfx950": Budget(8, "f32_16x16x4_f32", {64: 1}, 1),
    },
}


def _variant(
    m: int, dtype: str = "bf16", has_bias: bool = False, odd_k: bool = False, large: bool = False
) -> CodegenVariant:
    config = choose_config(m, 4096, 4096, 4 if dtype == "fp32" else 2)
    name = f"gemm/{dtype}/m{m}"
    name += "/bias" * has_bias + "/odd_k" * odd_k + "/over_2_gib" * large
    return CodegenVariant(
        name=name,
        kernel=gemm_kernel,
        signature={
            "x_ptr": f"*{dtype}",
            "weight_ptr": f"*{dtype}",
            "bias_ptr": f"*{dtype}",
            "out_ptr": f"*{dtype}",
            "m": "i32",
            "n": "i32",
            "k": "i32",
            "x_stride_row": "i32",
            "weight_stride_row": "i32",
        },
        constexprs={
            "ROWS": config.rows,
            "COLUMNS": config.columns,
            "DEPTH": config.depth,
            "HAS_BIAS": has_bias,
            "WHOLE_DEPTH": not odd_k,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        divisible_by_16=("n", "k", "x_stride_row", "weight_stride_row"),
        over_2_gib=("weight_ptr",) if large else (),
        budgets=_BUDGETS.get(name, {}),
    )


CODEGEN_VARIANTS = (
    _variant(16),
    _variant(16, has_bias=True),
    _variant(16, odd_k=True),
    _variant(16, large=True),
    _variant(32),
    _variant(64),
    _variant(16, dtype="fp16"),
    _variant(16, dtype="fp32"),
)
