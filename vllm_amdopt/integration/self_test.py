"""Each kernel proves itself against its reference before its first use on this machine.

Runs in the worker, once per feature and model shape, when vLLM chooses a backend or binds the first
layer; a failure switches that one feature off while stock vLLM can still take over.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from vllm_amdopt.integration.cpu_engine import (
    chosen,
    fp8_dtype,
    implementation,
    kernel_device,
)
from vllm_amdopt.ops import (
    gemm_small_batch,
    kv_cache_write,
    mla_decode,
    paged_attention_decode,
    paged_attention_prefill,
)
from vllm_amdopt.ops.tolerance import excess

CONTEXT = 37
"""Keys per sequence: neither a multiple of any tile nor of any page."""


class SelfTestError(RuntimeError):
    """A kernel disagrees with its reference on this machine; the message says by how much."""


@cache
def check_attention(
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    block_size: int,
    dtype: torch.dtype,
    fp8: bool = False,
) -> None:
    """Write, prefill and decode one short sequence, in an fp8 cache if so. Raises SelfTestError."""
    generator = torch.Generator().manual_seed(0)
    blocks = -(-CONTEXT // block_size) + 1
    cache_dtype = fp8_dtype() if fp8 else dtype
    k_cache = torch.zeros(blocks, num_kv_heads, block_size, head_size, dtype=cache_dtype)
    v_cache = torch.zeros_like(k_cache)
    key, value = (
        torch.randn(CONTEXT, num_kv_heads, head_size, generator=generator).to(dtype)
        for _ in range(2)
    )
    query = torch.randn(CONTEXT, num_heads, head_size, generator=generator).to(dtype)
    table = torch.arange(blocks, dtype=torch.int32)[None]
    lengths = torch.tensor([CONTEXT], dtype=torch.int32)
    starts = torch.tensor([0, CONTEXT], dtype=torch.int32)
    slots = torch.arange(CONTEXT, dtype=torch.int64)
    device = _device()
    k_cache, v_cache, key, value, query, table, lengths, starts, slots = (
        tensor.to(device)
        for tensor in (k_cache, v_cache, key, value, query, table, lengths, starts, slots)
    )
    scale = head_size**-0.5
    options: dict[str, Any] = {"max_query_len": CONTEXT, "max_seq_len": CONTEXT}
    scales: dict[str, Any] = {"k_scale": 0.5, "v_scale": 0.75} if fp8 else {}
    decode_by = chosen(
        paged_attention_decode.OPERATION, head_size=head_size, num_heads=num_heads,
        num_kv_heads=num_kv_heads, block_size=block_size, dtype=dtype,
        cache_dtype=cache_dtype, has_scales=fp8,
    )  # fmt: skip
    with kernel_device():
        kv_cache_write.kv_cache_write(
            key, value, k_cache, v_cache, slots, **scales, implementation=implementation()
        )
        prefill = torch.full_like(query, float("nan"))
        paged_attention_prefill.paged_attention_prefill(
            query, k_cache, v_cache, table, lengths, starts, scale, prefill,
            implementation=implementation(), **options, **scales,
        )  # fmt: skip
        decode = torch.full_like(query[-1:], float("nan"))
        paged_attention_decode.paged_attention_decode(
            query[-1:], k_cache, v_cache, table, lengths, scale, decode,
            max_seq_len=CONTEXT, implementation=decode_by, **scales,
        )  # fmt: skip
    reference = paged_attention_prefill.reference
    truth = torch.empty_like(query, dtype=torch.float64)
    reference(
        query.double(), k_cache.double(), v_cache.double(), table, lengths, starts, scale, truth,
        **options, **scales,
    )  # fmt: skip
    same = torch.empty_like(query)
    reference(
        query, k_cache, v_cache, table, lengths, starts, scale, same, compute_dtype=dtype,
        **options, **scales,
    )  # fmt: skip
    _judge("chunked prefill", prefill, truth, same)
    _judge("decode", decode, truth[-1:], same[-1:])


@cache
def check_mla(
    num_heads: int,
    kv_lora_rank: int,
    rope_size: int,
    block_size: int,
    dtype: torch.dtype,
    fp8: bool = False,
) -> None:
    """Write and decode one short sequence of latents, in an fp8 cache if so. Raises SelfTestError.

    What was written is compared byte by byte; what is read is judged on what was written.
    """
    generator = torch.Generator().manual_seed(0)
    width = kv_lora_rank + rope_size
    blocks = -(-CONTEXT // block_size) + 1
    device = _device()
    cache_ = torch.zeros(
        blocks, block_size, width, dtype=fp8_dtype() if fp8 else dtype, device=device
    )
    written = cache_.clone()
    latents = torch.randn(CONTEXT, width, generator=generator).to(dtype).to(device)
    query = torch.randn(1, num_heads, width, generator=generator).to(dtype).to(device)
    table = torch.arange(blocks, dtype=torch.int32, device=device)[None]
    lengths = torch.tensor([CONTEXT], dtype=torch.int32, device=device)
    slots = torch.arange(CONTEXT, dtype=torch.int64, device=device)
    scale = width**-0.5
    out = query.new_full((1, num_heads, kv_lora_rank), float("nan"))
    decode_by = chosen(
        mla_decode.OPERATION, kv_lora_rank=kv_lora_rank, rope_size=rope_size,
        block_size=block_size, dtype=dtype, cache_dtype=cache_.dtype,
    )  # fmt: skip
    with kernel_device():
        kv_cache_write.latent_cache_write(
            latents[:, :kv_lora_rank], latents[:, kv_lora_rank:], cache_, slots,
            implementation=implementation(),
        )  # fmt: skip
        mla_decode.mla_decode(
            query, cache_, table, lengths, scale, out, None,
            kv_lora_rank=kv_lora_rank, max_seq_len=CONTEXT, implementation=decode_by,
        )  # fmt: skip
    kv_cache_write.latent_reference(
        latents[:, :kv_lora_rank], latents[:, kv_lora_rank:], written, slots
    )
    if not torch.equal(cache_.view(torch.uint8), written.view(torch.uint8)):
        raise SelfTestError("the write of latents leaves other bytes than its reference")
    truth = torch.empty_like(out, dtype=torch.float64)
    same = torch.empty_like(out)
    sizes: dict[str, Any] = {"kv_lora_rank": kv_lora_rank, "max_seq_len": CONTEXT}
    mla_decode.reference(
        query.double(), cache_.double(), table, lengths, scale, truth, None, **sizes
    )
    mla_decode.reference(
        query, cache_, table, lengths, scale, same, None, compute_dtype=dtype, **sizes
    )
    _judge("MLA decode", out, truth, same)


@cache
def check_gemm(dtype: torch.dtype) -> None:
    """A product of odd sizes. Raises SelfTestError."""
    generator = torch.Generator().manual_seed(0)
    device = _device()
    x = torch.randn(5, 96, generator=generator).to(dtype).to(device)
    weight = torch.randn(80, 96, generator=generator).to(dtype).to(device)
    with kernel_device():
        out = gemm_small_batch.gemm_small_batch(x, weight, None, implementation=implementation())
    _judge("GEMM", out, x.double() @ weight.double().T, x @ weight.T)


def _device() -> torch.device:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _judge(what: str, out: torch.Tensor, truth: torch.Tensor, same: torch.Tensor) -> None:
    sentence = excess(out, truth, same)
    if sentence is not None:
        raise SelfTestError(f"{what} disagrees with its reference on this machine: {sentence}")
