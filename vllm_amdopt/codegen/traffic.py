"""What the kernels move and multiply, counted exactly by running them in the emulator. No times.

Two counts of the bytes of a stream. *Asked for*: by all lanes of all loads, each byte as often as
it is asked for. *Fetched*: the 64-byte segments that the workgroups of each XCD ask for, once for
each XCD; that is what comes from memory as long as the L2 of an XCD keeps what it holds, and what
the aim is for. A segment that workgroups on two XCDs ask for counts twice, so a wrong order of
workgroups is seen; that real ones drift apart in time, or together exceed 4 MiB, is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from triton import knobs

from vllm_amdopt.codegen.assembly import matrix_flops
from vllm_amdopt.emulator.accounting import XCDS
from vllm_amdopt.emulator.launch import Device
from vllm_amdopt.ops import (
    gemm_small_batch,
    kv_cache_write,
    mla_decode,
    paged_attention_decode,
    paged_attention_prefill,
)

MOST = 1.05
"""Bytes fetched per byte needed that a kernel may reach without saying why."""


@dataclass(frozen=True)
class Workload:
    """One call of an operation. `prepare` makes the tensors: (call, the tensor of the stream).

    needed_bytes: of the stream (keys and values, latents, a weight). needed_flops: of the two
    products, with no padding and nothing masked. `most` and `why`: the ratio of fetched bytes that
    is allowed where it is not MOST.
    """

    name: str
    stream: str
    prepare: Callable[[], tuple[Callable[[], object], Tensor]]
    needed_bytes: int
    needed_flops: int = 0
    most: float = MOST
    why: str = ""


@dataclass(frozen=True)
class Traffic:
    """The counts of one workload on one chip, over all its launches."""

    workload: Workload
    gfx: str
    asked_bytes: int
    fetched_bytes: int
    loaded_bytes: int
    stored_bytes: int
    lds_bytes: int
    flops: int

    @property
    def asked_ratio(self) -> float:
        return self.asked_bytes / self.workload.needed_bytes

    @property
    def fetched_ratio(self) -> float:
        return self.fetched_bytes / self.workload.needed_bytes

    @property
    def flops_ratio(self) -> float | None:
        needed = self.workload.needed_flops
        return self.flops / needed if needed else None


def measure(workload: Workload, gfx: str) -> Traffic:
    """Run the workload in the emulator."""
    call, stream = workload.prepare()
    device = Device(gfx, keep_launches=None, stats="full")
    with device, knobs.language.scope():
        knobs.language.default_fp_fusion = True  # as compilation.py has it
        call()
    storage = stream.untyped_storage()
    first, last = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    moved: dict[str, int] = {}
    asked = fetched = flops = 0
    for launch in device.launches:
        for kind, count in launch["bytes"].items():
            moved[kind] = moved.get(kind, 0) + count
        asked += sum(n for base, n in launch["loaded"].items() if first <= base < last)
        fetched += sum(n for base, n in launch["fetched64B"].items() if first <= base < last)
        flops += sum(matrix_flops(name) * n for name, n in launch["matrix"].items())
    return Traffic(
        workload=workload,
        gfx=gfx,
        asked_bytes=asked,
        fetched_bytes=64 * fetched,
        loaded_bytes=moved["global_load"] + moved["global_to_lds"] + moved["smem_load"],
        stored_bytes=moved["global_store"],
        lds_bytes=moved["lds_load"] + moved["lds_store"] + moved["global_to_lds"],
        flops=flops,
    )


def _table(lengths: tuple[int, ...], block_size: int) -> tuple[Tensor, Tensor, int]:
    """(block table, lengths, number of blocks): blocks in a mixed order."""
    needed = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(1))
    table = torch.zeros(len(lengths), max(needed), dtype=torch.int32)
    for sequence, blocks in enumerate(order.split(needed)):
        table[sequence, : len(blocks)] = blocks.to(torch.int32)
    return table, torch.tensor(lengths, dtype=torch.int32), sum(needed)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)


def decode(
    lengths: tuple[int, ...],
    kv_heads: int,
    group: int,
    size: int,
    block_size: int,
    splits: int = 1,
    by: str = "triton",
) -> Workload:
    """One new token per sequence, by the implementation of that name."""

    def prepare() -> tuple[Callable[[], object], Tensor]:
        table, seq_lens, blocks = _table(lengths, block_size)
        cache = _random(blocks, kv_heads, block_size, 2 * size)
        query = _random(len(lengths), kv_heads * group, size)

        def call() -> None:
            paged_attention_decode.OPERATION.run(by)(
                query,
                cache[..., :size],
                cache[..., size:],
                table,
                seq_lens,
                size**-0.5,
                torch.empty_like(query),
                max_seq_len=max(lengths),
                splits=splits,
            )

        return call, cache

    heads = kv_heads * group
    parts = f", {splits} parts" if splits > 1 else ""
    name = "decode" if by == "triton" else f"decode ({by})"
    return Workload(
        f"{name}, {heads}/{kv_heads} heads of {size}, block {block_size}{parts}",
        "keys and values",
        prepare,
        needed_bytes=sum(lengths) * kv_heads * 2 * size * 2,
        needed_flops=sum(lengths) * heads * size * 4,
    )


def mla(
    lengths: tuple[int, ...], heads: int, block_size: int, splits: int = 1, by: str = "triton"
) -> Workload:
    """One new token per sequence, latents of 512 + 64, by the implementation of that name."""
    width, latent = 576, 512

    def prepare() -> tuple[Callable[[], object], Tensor]:
        table, seq_lens, blocks = _table(lengths, block_size)
        cache, query = _random(blocks, block_size, width), _random(len(lengths), heads, width)

        def call() -> None:
            mla_decode.OPERATION.run(by)(
                query,
                cache,
                table,
                seq_lens,
                192**-0.5,
                torch.empty(len(lengths), heads, latent, dtype=query.dtype),
                None,
                kv_lora_rank=latent,
                max_seq_len=max(lengths),
                splits=splits,
            )

        return call, cache

    parts = f", {splits} parts" if splits > 1 else ""
    name = "MLA decode" if by == "triton" else f"MLA decode ({by})"
    return Workload(
        f"{name}, {heads} heads, block {block_size}{parts}",
        "latents",
        prepare,
        needed_bytes=sum(lengths) * width * 2,
        needed_flops=sum(lengths) * heads * 2 * (width + latent),
    )


def prefill(tokens: int, context: int, kv_heads: int, group: int, size: int) -> Workload:
    """The last `tokens` of one sequence of `context` tokens, blocks of 16."""
    from vllm_amdopt.kernels.paged_attention_prefill import choose_config

    config = choose_config(tokens * group, size, 2)
    rows, tile = config.rows, config.tile

    def prepare() -> tuple[Callable[[], object], Tensor]:
        table, seq_lens, blocks = _table((context,), 16)
        cache = _random(blocks, kv_heads, 16, 2 * size)
        query = _random(tokens, kv_heads * group, size)

        def call() -> None:
            paged_attention_prefill.launch(
                query,
                cache[..., :size],
                cache[..., size:],
                table,
                seq_lens,
                torch.tensor([0, tokens], dtype=torch.int32),
                size**-0.5,
                torch.empty_like(query),
                max_query_len=tokens,
                max_seq_len=context,
            )

        return call, cache

    programs = -(-tokens * group // rows)
    apart = kv_heads % XCDS != 0
    seen = [
        -(-min(context, context - tokens + (program + 1) * rows // group) // tile) * tile
        for program in range(programs)
    ]
    pairs = sum(context - tokens + token + 1 for token in range(tokens))
    heads = kv_heads * group
    return Workload(
        f"prefill, {tokens} of {context} tokens, {heads}/{kv_heads} heads of {size}",
        "keys and values",
        prepare,
        needed_bytes=context * kv_heads * 2 * size * 2,
        needed_flops=pairs * heads * size * 4,
        most=sum(seen) / context if apart else MOST,
        why=f"every {rows} rows read all the keys that they see, and with {kv_heads} KV heads and "
        f"one sequence the rows of a head are on several of the {XCDS} XCDs, to keep all of them "
        "busy; what is read again is bounded by the arithmetic, not by memory"
        if apart
        else "",
    )


def gemm(m: int, n: int, k: int) -> Workload:
    """x [m, k] times weight [n, k] transposed."""

    def prepare() -> tuple[Callable[[], object], Tensor]:
        x, weight = _random(m, k), _random(n, k)
        return (lambda: gemm_small_batch.launch(x, weight, None)), weight

    return Workload(
        f"GEMM {m} x {n} x {k}",
        "weight",
        prepare,
        needed_bytes=n * k * 2,
        needed_flops=2 * m * n * k,
    )


def write(tokens: int, heads: int, size: int) -> Workload:
    """New keys and values into blocks of 16."""

    def prepare() -> tuple[Callable[[], object], Tensor]:
        packed = _random(tokens, 2, heads, size)
        cache = torch.empty(tokens, heads, 16, 2 * size, dtype=torch.bfloat16)
        slots = torch.arange(tokens) * 17 % (16 * tokens)
        k_cache, v_cache = cache[..., :size], cache[..., size:]
        return (
            lambda: kv_cache_write.launch(packed[:, 0], packed[:, 1], k_cache, v_cache, slots)
        ), packed

    return Workload(
        f"cache write, {tokens} tokens, {heads} heads of {size}",
        "new keys and values",
        prepare,
        needed_bytes=tokens * heads * 2 * size * 2,
    )


def workloads() -> Iterator[Workload]:
    """Small, with lengths that no tile divides."""
    yield decode((203, 77), 2, 4, 128, 16)
    yield decode((203, 77), 2, 4, 128, 16, splits=2)
    yield decode((130,), 1, 16, 128, 64)
    yield decode((75,), 1, 1, 128, 16)
    yield decode((203, 77), 2, 4, 128, 16, by="gluon")
    yield decode((203, 300), 2, 4, 128, 64, splits=2, by="gluon")
    yield decode((75,), 1, 16, 64, 16, by="gluon")
    yield mla((70, 33), 16, 1)
    yield mla((220,), 16, 64, splits=2)
    yield mla((190,), 32, 1)
    yield mla((64,), 64, 1)
    yield mla((70, 33), 16, 1, by="gluon")
    yield mla((220,), 16, 64, splits=2, by="gluon")
    yield mla((75,), 32, 1, by="gluon")
    yield mla((40,), 64, 16, by="gluon")
    yield prefill(40, 96, 2, 4, 128)
    yield prefill(34, 64, 8, 4, 64)
    yield gemm(1, 128, 512)
    yield gemm(16, 128, 512)
    yield gemm(32, 128, 512)
    yield gemm(64, 128, 512)
    yield write(5, 8, 128)
