"""All-reduce (sum) of small tensors over memory that all ranks of one machine share.

The regions may be peer-mapped GPU memory or, with the CPU engines, `SharedRegions`. Nothing here
knows torch.distributed: who needs to tell the other ranks something passes an `exchange` function.
"""

from __future__ import annotations

import math
import mmap
import os
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vllm_amdopt.kernels import availability
from vllm_amdopt.ops import refusals
from vllm_amdopt.ops.operation import REFERENCE, Implementation, Operation, RefusedError

MAX_RANKS = 8
ALIGNMENT = 16  # bytes; the kernel moves that much per lane
STATE_WORDS, GENERATION, TIMED_OUT = 4, 0, 2  # as in kernels/all_reduce_one_shot.py
# Polls in one launch before it returns to Python, which sleeps until the peers have come and then
# launches again: on a CPU the ranks share the cores, and a poll takes some 0.2 ms from a slow rank.
# On a GPU the kernel itself waits.
CPU_SPIN_LIMIT = 8
GPU_SPIN_LIMIT = 2**31 - 1


class PeerTimeoutError(RuntimeError):
    """Another rank did not take part in an all-reduce within the time allowed."""


def reference(inputs: Sequence[Tensor]) -> Tensor:
    """The sum of all ranks' inputs in rank order: added in float32, rounded once to their dtype."""
    total = torch.zeros_like(inputs[0], dtype=torch.float32)
    for x in inputs:
        total += x.to(torch.float32)
    return total.to(inputs[0].dtype)


def refusal(
    *,
    shape: Sequence[int],
    dtype: torch.dtype,
    world_size: int,
    max_bytes: int,
    gfx: str | None = None,
    implementation: str = "triton",
) -> str | None:
    """Why the kernel does not apply, or None. Depends on nothing that differs between the ranks."""
    size = math.prod(shape) * dtype.itemsize
    return refusals.first(
        None
        if implementation != REFERENCE
        else "the reference engine has no all-reduce over shared memory; vLLM's own is used.",
        refusals.no_triton(),
        refusals.architecture(gfx),
        None
        if 2 <= world_size <= MAX_RANKS
        else f"the one-shot all-reduce works for 2 to {MAX_RANKS} ranks on one machine, not for "
        f"{world_size}; leave it to vLLM's own.",
        refusals.dtype(dtype, "the tensor to reduce"),
        None
        if size <= max_bytes
        else f"{size} bytes are more than the {max_bytes} that the one-shot all-reduce has room "
        "for; vLLM's own is used.",
    )


class OneShotAllReduce:
    """Sums tensors over the ranks of one machine, which all make the same calls in the same order.

    buffers: one region per rank, in rank order, each a uint8 tensor of `region_bytes(max_bytes)`
    bytes, zero at first, 16-byte aligned, and the same memory for all ranks. On a GPU calls go to
    the current stream, must stay on one stream, and can be captured in a graph: the number of the
    call is kept in device memory. timeout_seconds: how long a CPU engine waits for the other ranks
    before PeerTimeoutError; a GPU waits for ever, as vLLM's own kernels do.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        buffers: Sequence[Tensor],
        max_bytes: int,
        *,
        gfx: str | None = None,
        implementation: str = "triton",
        timeout_seconds: float = 300.0,
    ) -> None:
        self.rank, self.world_size, self.max_bytes = rank, world_size, max_bytes
        self.gfx, self.implementation, self.timeout_seconds = gfx, implementation, timeout_seconds
        self._buffers = tuple(buffers)
        if len(self._buffers) != world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"rank {rank} of {world_size} was given {len(self._buffers)} regions; "
                "pass one region per rank, in rank order."
            )
        needed = region_bytes(max_bytes)
        for i, region in enumerate(self._buffers):
            if region.dtype != torch.uint8 or region.numel() < needed:
                raise ValueError(
                    f"the region of rank {i} holds {region.numel()} x "
                    f"{refusals.short(region.dtype)}; pass uint8 tensors of {needed} bytes."
                )
            if region.data_ptr() % ALIGNMENT:
                raise ValueError(f"the region of rank {i} is not {ALIGNMENT}-byte aligned.")
        self.device = self._buffers[rank].device
        self._on_cpu = self.device.type == "cpu"
        self._state = torch.zeros(STATE_WORDS, dtype=torch.int32, device=self.device)
        self._address = self._buffers[rank].data_ptr()

    def refusal(self, shape: Sequence[int], dtype: torch.dtype) -> str | None:
        """Why a tensor like that is not for us, or None; the same answer on every rank."""
        return refusal(
            shape=shape,
            dtype=dtype,
            world_size=self.world_size,
            max_bytes=self.max_bytes,
            gfx=self.gfx,
            implementation=self.implementation,
        )

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks, a new tensor with the same bits on every rank; x is left alone.

        x: contiguous, 16-byte aligned, one shape and dtype on all ranks. Raises RefusedError where
        `refusal` refuses or x is not like that, PeerTimeoutError where a rank stays away.
        """
        sentence = self.refusal(x.shape, x.dtype)
        if sentence is None and not x.is_contiguous():
            sentence = "the tensor to reduce is not contiguous; call .contiguous() first."
        if sentence is None and x.data_ptr() % ALIGNMENT:
            sentence = f"the tensor to reduce is not {ALIGNMENT}-byte aligned; clone it first."
        if sentence is not None:
            raise RefusedError(f"all_reduce_one_shot: {sentence}")
        out = torch.empty_like(x)
        if x.numel() == 0:
            return out
        self._launch(x, out, CPU_SPIN_LIMIT if self._on_cpu else GPU_SPIN_LIMIT)
        if self._on_cpu:
            self._wait_for_peers(x, out)
        return out

    def _launch(self, x: Tensor, out: Tensor, spin_limit: int) -> None:
        from vllm_amdopt.kernels import all_reduce_one_shot as kernels

        config = kernels.choose_config(x.numel(), x.element_size())
        own: Tensor | int = self._buffers[self.rank]
        regions: tuple[Tensor | int, ...] = self._buffers
        if availability.interpreted():
            # The interpreter copies every tensor it is given onto itself when the kernel is over,
            # which would undo what peers have written meanwhile. Addresses it takes as they are.
            own, regions = self._address, tuple(b.data_ptr() for b in self._buffers)
        kernels.all_reduce_one_shot_kernel[(config.blocks,)](
            x,
            out,
            own,
            self._address,
            regions,
            self._state,
            self.rank,
            x.numel(),
            kernels.RegionLayout(self.max_bytes).half_bytes,
            spin_limit,
            WORLD=self.world_size,
            RANK_SLOTS=kernels.MAX_RANKS,
            FLAG_AREA=kernels.FLAG_BYTES,
            BLOCK=config.elements_per_block,
            WAVES_TIMES_64=64 * config.num_warps,
            num_warps=config.num_warps,
        )

    def _wait_for_peers(self, x: Tensor, out: Tensor) -> None:
        """Where a launch gave up: sleep until every peer has come, then launch the same call again.

        That is harmless: a launch that gave up leaves the generation as it is, and the next one
        writes the same bytes and the same flags again.
        """
        if not int(self._state[TIMED_OUT]):
            return
        from vllm_amdopt.kernels import all_reduce_one_shot as kernels

        blocks = kernels.choose_config(x.numel(), x.element_size()).blocks
        area = self._buffers[self.rank][: kernels.FLAG_BYTES].view(torch.int32)
        flags = area.view(kernels.MAX_BLOCKS, kernels.MAX_RANKS)[:blocks, : self.world_size]
        deadline = time.monotonic() + self.timeout_seconds
        pause = 0.0002
        while int(self._state[TIMED_OUT]):
            while bool((flags - self._state[GENERATION] <= 0).any()):  # wraps as the kernel does
                if time.monotonic() > deadline:
                    raise PeerTimeoutError(
                        f"rank {self.rank} of {self.world_size} has waited "
                        f"{self.timeout_seconds:g} s for the other ranks in an all-reduce; see "
                        "whether one of them has stopped, and restart all of them."
                    )
                time.sleep(pause)
                pause = min(pause * 1.5, 0.005)
            self._state[TIMED_OUT] = 0
            self._launch(x, out, CPU_SPIN_LIMIT)


def region_bytes(max_bytes: int) -> int:
    """Size of the region each rank has to provide for tensors of up to `max_bytes` bytes."""
    from vllm_amdopt.kernels import all_reduce_one_shot as kernels

    return kernels.RegionLayout(max_bytes).region_bytes


class SharedRegions:
    """CPU memory, one region per rank, shared between the processes of the ranks.

    exchange: gives every rank the list of what all ranks passed, in rank order, and returns only
    when all have called it (torch.distributed.all_gather_object, a pipe, ...). It is called twice.
    The names in `directory` are gone when the constructor returns, so a crash leaves nothing there.
    """

    EXCHANGES = 2
    """How often the constructor calls `exchange`: what a rank that fails owes its peers."""

    def __init__(
        self,
        rank: int,
        size: int,
        exchange: Callable[[Any], list[Any]],
        directory: str = "/dev/shm",
    ) -> None:
        path = os.path.join(directory, f"vllm_amdopt-{os.getpid()}-{secrets.token_hex(8)}")
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            try:
                os.posix_fallocate(descriptor, 0, size)  # no room shows here, not as SIGBUS later
            finally:
                os.close(descriptor)
            paths = exchange(path)
            self._maps = [self._map(p, size) for p in paths]
            exchange(None)  # nobody may unlink before everybody has attached
        finally:
            os.unlink(path)
        self.rank = rank
        self.buffers: list[Tensor] = [torch.frombuffer(m, dtype=torch.uint8) for m in self._maps]

    @staticmethod
    def _map(path: str, size: int) -> mmap.mmap:
        descriptor = os.open(path, os.O_RDWR)
        try:
            return mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)


OPERATION = Operation(
    name="all_reduce_one_shot",
    reference=reference,
    implementations=(Implementation("triton", OneShotAllReduce.all_reduce, refusal),),
)
