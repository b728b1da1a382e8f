"""Whole Triton kernels, compiled for gfx942 and gfx950 and run in the emulator, against PyTorch."""

import pytest
import torch
import triton

from tests.emulator import kernels
from vllm_amdopt.emulator.launch import launch

ARCHITECTURES = ["gfx942", "gfx950"]
pytestmark = pytest.mark.parametrize("arch", ARCHITECTURES)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def check(out: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """max |out - expected| within tolerance * (1 + max |expected|), and everything finite"""
    out, expected = out.double(), expected.double()
    assert torch.isfinite(out).all()
    assert (out - expected).abs().max() <= tolerance * (1 + expected.abs().max())


def nan_like(x: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, float("nan"))


def test_vector_add_is_exact(arch):
    a, b = torch.randn(5000), torch.randn(5000)
    c = nan_like(a)
    counts = launch(kernels.vector_add, (5,), a, b, c, 5000, BLOCK=1024, arch=arch)
    assert torch.equal(c, a + b)
    assert counts["bytes"]["global_load"] == 2 * 4 * 5000
    assert counts["bytes"]["global_store"] == 4 * 5000


@pytest.mark.parametrize(
    ("dtype", "n", "tolerance"),
    [(torch.float32, 781, 1e-6), (torch.bfloat16, 1000, 4e-3), (torch.float16, 2048, 4e-3)],
    ids=["float32-781", "bfloat16-1000", "float16-2048"],
)
def test_softmax(arch, dtype, n, tolerance):
    x = torch.randn(7, 2048).to(dtype) * 4
    y = nan_like(x)
    block = triton.next_power_of_2(n)
    launch(kernels.softmax, (7,), x, y, n, 2048, BLOCK=block, arch=arch)
    check(y[:, :n], torch.softmax(x[:, :n].float(), -1), tolerance)
    assert y[:, n:].isnan().all()


def test_rms_norm(arch):
    x, w = torch.randn(5, 896).bfloat16(), torch.randn(896).bfloat16()
    y = nan_like(x)
    launch(kernels.rms_norm, (5,), x, w, y, 896, 1e-5, BLOCK=1024, arch=arch)
    v = x.float()
    check(y, v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-5) * w.float(), 8e-3)


@pytest.mark.parametrize(
    ("dtype", "shape", "blocks", "num_warps"),
    [
        (torch.bfloat16, (100, 72, 136), (64, 64, 64), 4),
        (torch.float16, (64, 128, 128), (64, 128, 32), 4),
        (torch.bfloat16, (16, 64, 256), (16, 64, 64), 2),
        (torch.float32, (64, 64, 64), (32, 32, 32), 4),
    ],
    ids=["bfloat16-ragged", "float16", "bfloat16-16-rows", "float32"],
)
def test_matmul(arch, dtype, shape, blocks, num_warps):
    m, n, k = shape
    bm, bn, bk = blocks
    a, b = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    c = nan_like(torch.empty(m, n, dtype=dtype))
    grid = (triton.cdiv(m, bm), triton.cdiv(n, bn))
    counts = launch(
        kernels.matmul,
        grid,
        *(a, b, c, m, n, k, k, 1, k, n),
        BM=bm,
        BN=bn,
        BK=bk,
        arch=arch,
        num_warps=num_warps,
        num_stages=2,
    )
    # gfx942 multiplies float32 with the xf32 (tf32) matrix instruction by default
    tolerance = {torch.float32: 1e-3 if arch == "gfx942" else 1e-6}.get(dtype, 4e-3)
    check(c, a.float() @ b.float().T, tolerance)
    assert counts["instrs"]["mfma"] > 0


@pytest.mark.parametrize(
    ("shape", "blocks", "num_warps"),
    [((64, 64, 256), (64, 64, 128), 4), ((16, 64, 128), (16, 64, 64), 2)],
    ids=["64-rows", "16-rows"],
)
def test_fp8_matmul_in_the_flavour_of_the_chip(arch, shape, blocks, num_warps):
    dtype = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn
    m, n, k = shape
    bm, bn, bk = blocks
    a, b = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    scale_a, scale_b = torch.rand(m) + 0.5, torch.rand(n) + 0.5
    c = nan_like(torch.empty(m, n, dtype=torch.bfloat16))
    launch(
        kernels.matmul_scaled,
        (m // bm, n // bn),
        *(a, b, c, scale_a, scale_b, n, k),
        BM=bm,
        BN=bn,
        BK=bk,
        arch=arch,
        num_warps=num_warps,
        num_stages=2,
    )
    check(c, (a.float() @ b.float().T) * scale_a[:, None] * scale_b[None], 4e-3)


def test_paged_decode(arch):
    seqs, kv_heads, group, d, block, blocks = 3, 2, 6, 64, 16, 40
    q = torch.randn(seqs, kv_heads * group, d).bfloat16()
    k_cache = torch.randn(blocks, block, kv_heads, d).bfloat16()
    v_cache = torch.randn(blocks, block, kv_heads, d).bfloat16()
    lengths = torch.tensor([33, 100, 7], dtype=torch.int32)
    table = torch.randperm(blocks)[: seqs * 10].reshape(seqs, 10).int().contiguous()
    out = nan_like(q)
    launch(
        kernels.paged_decode,
        (seqs, kv_heads),
        *(q, k_cache, v_cache, table, lengths, out, d**-0.5),
        *(kv_heads * group * d, block * kv_heads * d, 10),
        KV_HEADS=kv_heads,
        GROUP=group,
        PADDED_GROUP=16,
        D=d,
        BLOCK=block,
        arch=arch,
        num_stages=2,
    )
    for i, n in enumerate(lengths.tolist()):
        k, v = (
            c[table[i].long()].reshape(-1, kv_heads, d)[:n].float().repeat_interleave(group, 1)
            for c in (k_cache, v_cache)
        )
        weights = torch.softmax(torch.einsum("hd,nhd->hn", q[i].float(), k) * d**-0.5, -1)
        check(out[i], torch.einsum("hn,nhd->hd", weights, v), 8e-3)


def test_atomics(arch):
    x = torch.rand(1900)
    histogram, sums = torch.zeros(8, dtype=torch.int32), torch.zeros(8)
    counters = torch.zeros(4, dtype=torch.int32)
    launch(kernels.atomics, (4,), x, histogram, sums, counters, 1900, BLOCK=512, arch=arch)
    bins = (x * 8).int().long()
    assert torch.equal(histogram.long(), torch.bincount(bins, minlength=8))
    check(sums, torch.zeros(8).index_add_(0, bins, x), 1e-5)
    assert counters[0] == 1900
    assert counters[1] == int((x * 1000).int().max())
    assert 1 <= counters[2] <= 4


def test_scan_sort_and_transpose_cross_lanes_and_waves(arch):
    x = torch.randn(8, 128)
    scanned, ordered, transposed = nan_like(x), nan_like(x), nan_like(x.T.contiguous())
    launch(
        kernels.scan_sort_transpose, (1,), x, scanned, ordered, transposed, M=8, N=128, arch=arch
    )
    check(scanned, x.cumsum(1), 1e-5)
    assert torch.equal(ordered, x.sort(1)[0])
    assert torch.equal(transposed, x.T)


def test_pointer_table(arch):
    rows = [torch.randn(64) for _ in range(3)]
    table = torch.tensor([r.data_ptr() for r in rows])
    out = torch.zeros(3, 64)
    launch(kernels.through_pointer_table, (3,), table, out, 50, BLOCK=64, arch=arch, mem=rows)
    assert torch.equal(out[:, :50], torch.stack(rows)[:, :50])
    assert (out[:, 50:] == -1).all()
