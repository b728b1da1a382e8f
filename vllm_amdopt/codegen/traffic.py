"""What the kernels move and multiply, counted exactly by running them in the emulator. No times.

Bytes are those that loads ask of the memory behind all caches: a byte that two workgroups read
counts twice. Reading each byte of a stream once is the least that a kernel can do, so a ratio near
1 holds whatever the caches do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_amdopt.codegen.assembly import matrix_flops
from vllm_amdopt.codegen.compilation import variants
from vllm_amdopt.emulator.launch import Device
from vllm_amdopt.ops import (
    gemm_small_batch,
    kv_cache_write,
    mla_decode,
    paged_attention_decode,
    paged_attention_prefill,
)

MOST = 1.05
"""Bytes read per byte needed that a kernel may reach without saying why."""


@dataclass(frozen=True)
class Workload:
    """One call of an operation. `prepare` makes the tensors and returns (call, the stream's tensor).

    needed_bytes: of the stream (keys and values, latents, a weight). needed_flops: of the two
    products, with no padding and nothing masked. `most` and `why`: the ratio of bytes that is
    allowed where it is not MOST.
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
    stream_bytes: int
    loaded_bytes: int
    stored_bytes: int
    lds_bytes: int
    flops: int

    @property
    def bytes_ratio(self) -> float:
        return self.stream_bytes / self.workload.needed_bytes

    @property
    def flops_ratio(self) -> float | None:
        needed = self.workload.needed_flops
        return self.flops / needed if needed else None


def measure(workload: Workload, gfx: str) -> Traffic:
    """Run the workload in the emulator."""
    call, stream = workload.prepare()
    device = Device(gfx, keep_launches=None)
    with device:
        call()
    storage = stream.untyped_storage()
    first, last = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    moved: dict[str, int] = {}
    stream_bytes = flops = 0
    for launch in device.launches:
        for kind, count in launch["bytes"].items():
            moved[kind] = moved.get(kind, 0) + count
        stream_bytes += sum(n for base, n in launch["loaded"].items() if first <= base < last)
        flops += launch["instrs"].get("mfma", 0) * _flops_per_instruction(launch["kernel"], gfx)
    return Traffic(
        workload=workload,
        gfx=gfx,
        stream_bytes=stream_bytes,
        loaded_bytes=moved["global_load"] + moved["global_to_lds"] + moved["smem_load"],
        stored_bytes=moved["global_store"],
        lds_bytes=moved["lds_load"] + moved["lds_store"] + moved["global_to_lds"],
        flops=flops,
    )
