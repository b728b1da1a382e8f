"""Small Triton kernels that the emulator tests run."""

import triton
import triton.language as tl


@triton.jit
def vector_add(a, b, c, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < n
    tl.store(c + o, tl.load(a + o, mask=m) + tl.load(b + o, mask=m), mask=m)


@triton.jit
def softmax(x, y, n, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    o = tl.arange(0, BLOCK)
    m = o < n
    v = tl.load(x + row * stride + o, mask=m, other=float("-inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + row * stride + o, (e / tl.sum(e, 0)).to(y.dtype.element_ty), mask=m)


@triton.jit
def rms_norm(x, w, y, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    o = tl.arange(0, BLOCK)
    m = o < n
    v = tl.load(x + row * n + o, mask=m, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(v * v, 0) / n + eps)
    g = tl.load(w + o, mask=m, other=0.0).to(tl.float32)
    tl.store(y + row * n + o, (v * scale * g).to(y.dtype.element_ty), mask=m)


@triton.jit
def matmul(
    a,
    b,
    c,
    M,
    N,
    K,
    stride_a,
    stride_bk,
    stride_bn,
    stride_c,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        in_k = (k + rk) < K
        x = tl.load(
            a + rm[:, None] * stride_a + (k + rk)[None, :],
            mask=(rm[:, None] < M) & in_k[None, :],
            other=0.0,
        )
        y = tl.load(
            b + rn[None, :] * stride_bn + (k + rk)[:, None] * stride_bk,
            mask=(rn[None, :] < N) & in_k[:, None],
            other=0.0,
        )
        acc += tl.dot(x, y)
    tl.store(
        c + rm[:, None] * stride_c + rn[None, :],
        acc.to(c.dtype.element_ty),
        mask=(rm[:, None] < M) & (rn[None, :] < N),
    )


@triton.jit
def matmul_scaled(
    a, b, c, scale_a, scale_b, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        x = tl.load(a + rm[:, None] * K + (k + rk)[None, :])
        y = tl.load(b + rn[None, :] * K + (k + rk)[:, None])
        acc = tl.dot(x, y, acc)
    acc = acc * tl.load(scale_a + rm)[:, None] * tl.load(scale_b + rn)[None, :]
    tl.store(c + rm[:, None] * N + rn[None, :], acc.to(c.dtype.element_ty))


@triton.jit
def paged_decode(
    q,
    k_cache,
    v_cache,
    block_table,
    lengths,
    out,
    scale,
    stride_q,
    stride_block,
    stride_table,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # one program is one (sequence, kv head); cache [block][BLOCK][KV_HEADS][D]
    s = tl.program_id(0)
    h = tl.program_id(1)
    g = tl.arange(0, PADDED_GROUP)
    d = tl.arange(0, D)
    t = tl.arange(0, BLOCK)
    heads = (h * GROUP + g)[:, None] * D + d[None, :]
    query = tl.load(q + s * stride_q + heads, mask=(g < GROUP)[:, None], other=0.0)
    n = tl.load(lengths + s)
    m_i = tl.full((PADDED_GROUP,), float("-inf"), tl.float32)
    l_i = tl.zeros((PADDED_GROUP,), tl.float32)
    acc = tl.zeros((PADDED_GROUP, D), tl.float32)
    for b in range(0, tl.cdiv(n, BLOCK)):
        block = tl.load(block_table + s * stride_table + b).to(tl.int64) * stride_block
        ok = b * BLOCK + t < n
        at = (t * KV_HEADS + h) * D
        key = tl.load(k_cache + block + at[None, :] + d[:, None], mask=ok[None, :], other=0.0)
        value = tl.load(v_cache + block + at[:, None] + d[None, :], mask=ok[:, None], other=0.0)
        score = tl.where(ok[None, :], tl.dot(query, key) * scale, float("-inf"))
        m_n = tl.maximum(m_i, tl.max(score, 1))
        p = tl.exp2((score - m_n[:, None]) * 1.4426950408889634)
        alpha = tl.exp2((m_i - m_n) * 1.4426950408889634)
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None] + tl.dot(p.to(value.dtype), value)
        m_i = m_n
    acc = acc / l_i[:, None]
    tl.store(out + s * stride_q + heads, acc.to(out.dtype.element_ty), mask=(g < GROUP)[:, None])


@triton.jit
def atomics(x, histogram, sums, counters, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < n
    v = tl.load(x + o, mask=m, other=0.0)
    b = (v * 8).to(tl.int32)
    tl.atomic_add(histogram + b, 1, mask=m)
    tl.atomic_add(sums + b, v, mask=m)
    tl.atomic_add(counters, tl.sum(tl.where(m, 1, 0), 0))
    tl.atomic_max(counters + 1, tl.max((v * 1000).to(tl.int32), 0))
    tl.atomic_cas(counters + 2, 0, tl.program_id(0) + 1)


@triton.jit
def divide_root_fma_f32(x, y, quotient, root, fused, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < n
    a = tl.load(x + o, mask=m)
    b = tl.load(y + o, mask=m)
    tl.store(quotient + o, tl.div_rn(a, b), mask=m)
    tl.store(root + o, tl.sqrt_rn(a), mask=m)
    tl.store(fused + o, tl.fma(a, b, a), mask=m)


@triton.jit
def divide_root_f64(x, y, quotient, root, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < n
    a = tl.load(x + o, mask=m)
    b = tl.load(y + o, mask=m)
    tl.store(quotient + o, a / b, mask=m)
    tl.store(root + o, tl.sqrt(a), mask=m)


@triton.jit
def cast(x, y, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < n
    tl.store(y + o, tl.load(x + o, mask=m).to(y.dtype.element_ty), mask=m)


@triton.jit
def scan_sort_transpose(x, scanned, sorted_, transposed, M: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, M)
    j = tl.arange(0, N)
    o = i[:, None] * N + j[None, :]
    v = tl.load(x + o)
    tl.store(scanned + o, tl.cumsum(v, 1))
    tl.store(sorted_ + o, tl.sort(v))
    tl.store(transposed + j[:, None] * M + i[None, :], tl.trans(v))


@triton.jit
def through_pointer_table(table, out, n, BLOCK: tl.constexpr):
    source = tl.load(table + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    o = tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0) * BLOCK + o, tl.load(source + o, mask=o < n, other=-1.0))


@triton.jit
def wait_for(flag, data, out):
    while tl.atomic_add(flag, 0, sem="acquire", scope="sys") != 7:
        pass
    tl.store(out, tl.load(data))


@triton.jit
def through_a_stray_offset(x, out, stray, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(out + o, tl.load(x + stray.to(tl.int64) * 1024 + o))


@triton.jit
def pass_on(flags, out):
    """the last workgroup begins; each other one waits for the next one's flag"""
    me = tl.program_id(0)
    last = tl.num_programs(0) - 1
    value = 1
    if me < last:
        value = tl.atomic_add(flags + me + 1, 0, sem="acquire", scope="sys")
        while value == 0:
            value = tl.atomic_add(flags + me + 1, 0, sem="acquire", scope="sys")
        value += 1
    tl.store(out + me, value)
    tl.atomic_xchg(flags + me, value, sem="release", scope="sys")


@triton.jit
def copy_shared_row(source, out, DIVISOR: tl.constexpr, ROWS: tl.constexpr):
    """Program i copies row i // DIVISOR % ROWS, of 64 values."""
    program = tl.program_id(0)
    column = tl.arange(0, 64)
    row = program // DIVISOR % ROWS
    tl.store(out + program * 64 + column, tl.load(source + row * 64 + column))
