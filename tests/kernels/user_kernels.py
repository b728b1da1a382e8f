"""Kernels as a user would write them, in Triton and in Gluon's dialect for CDNA; no tests here."""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@triton.jit
def vector_add(x, y, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    total = tl.load(x + offsets, mask=mask) + tl.load(y + offsets, mask=mask)
    tl.store(out + offsets, total, mask=mask)


@gluon.jit
def matrix_tile(a, b, out, VERSION: gl.constexpr, K: gl.constexpr):
    """out [16, 16] fp32 = a [16, K] @ b [K, 16]: one wave, one matrix instruction, buffer loads."""
    layout: gl.constexpr = gl.amd.AMDMFMALayout(
        version=VERSION, instr_shape=[16, 16, K], transposed=False, warps_per_cta=[1, 1]
    )
    left: gl.constexpr = gl.DotOperandLayout(0, layout, K // 4)
    right: gl.constexpr = gl.DotOperandLayout(1, layout, K // 4)
    row = gl.arange(0, 16, layout=gl.SliceLayout(1, left))
    depth = gl.arange(0, K, layout=gl.SliceLayout(0, left))
    x = gl.amd.cdna3.buffer_load(a, gl.expand_dims(row * K, 1) + gl.expand_dims(depth, 0))
    depth = gl.arange(0, K, layout=gl.SliceLayout(1, right))
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, right))
    y = gl.amd.cdna3.buffer_load(b, gl.expand_dims(depth * 16, 1) + gl.expand_dims(column, 0))
    total = gl.amd.cdna3.mfma(x, y, gl.full([16, 16], 0.0, gl.float32, layout))
    row = gl.arange(0, 16, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, layout))
    gl.store(out + gl.expand_dims(row * 16, 1) + gl.expand_dims(column, 0), total)
