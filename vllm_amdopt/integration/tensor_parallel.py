"""Small tensor-parallel all-reduces by our one-shot kernel; everything else by vLLM's communicator.

First version: between CPU processes, over shared memory. The kernel is the one that will run over
peer-mapped GPU memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.logger import init_logger

from vllm_amdopt.integration import active_plan, faults
from vllm_amdopt.integration.cpu_engine import implementation, kernel_device
from vllm_amdopt.ops.all_reduce_one_shot import (
    ALIGNMENT,
    OneShotAllReduce,
    SharedRegions,
    region_bytes,
)

logger = init_logger("vllm.amdopt")

QUALNAME = f"{__name__}.AmdOptCpuCommunicator"
MAX_BYTES = 256 * 1024
"""Largest message, in bytes. One-shot reads every peer's whole message, so it is for small ones;
a decode batch of 16 rows of an 8192-wide bf16 model is this size."""


class PeerFailedError(RuntimeError):
    """Another rank failed while all ranks were setting up together."""


class AmdOptCpuCommunicator(CpuCommunicator):
    """vLLM's CPU communicator, with our all-reduce in front for the tensor-parallel group.

    All ranks take the same branch: whether it exists is agreed by all, and whether a message
    qualifies depends on its shape and dtype alone.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._one_shot: OneShotAllReduce | None = None
        if self.unique_name.split(":")[0] == "tp" and active_plan.is_on("all_reduce"):
            self._one_shot = self._build()

    def _build(self) -> OneShotAllReduce | None:
        """Set up on all ranks or none. Every rank takes part in every exchange, failed or not."""
        exchanged = 0

        def exchange(item: Any) -> list[Any]:
            nonlocal exchanged
            exchanged += 1
            pairs = self._exchange((True, item))
            if not all(well for well, _ in pairs):
                raise PeerFailedError("another rank could not set it up")
            return [item for _, item in pairs]

        def build() -> OneShotAllReduce:
            regions = SharedRegions(self.rank_in_group, region_bytes(MAX_BYTES), exchange)
            return OneShotAllReduce(
                self.rank_in_group,
                self.world_size,
                regions.buffers,
                MAX_BYTES,
                implementation=implementation(),
            )

        built = faults.attempt("communicator", build, lambda: None)
        while exchanged < SharedRegions.EXCHANGES:
            exchanged += 1
            self._exchange((False, None))
        if not all(self._exchange(built is not None)):
            if built is not None:
                faults.disable("all_reduce", "another rank could not set it up")
            return None
        if self.rank_in_group == 0:
            logger.info("vllm-amdopt all_reduce: one-shot over %d ranks", self.world_size)
        return built

    def _exchange(self, item: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, item, group=self.cpu_group)
        return gathered

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        """Sum `input_` over the ranks: ours up to MAX_BYTES, vLLM's for whatever it refuses."""
        one_shot = self._one_shot
        if one_shot is None or one_shot.refusal(tuple(input_.shape), input_.dtype) is not None:
            return super().all_reduce(input_)

        def ours() -> torch.Tensor:
            message = input_.contiguous()
            if message.data_ptr() % ALIGNMENT:
                message = message.clone()
            with kernel_device():
                return one_shot.all_reduce(message)

        def stock() -> torch.Tensor:
            return super(AmdOptCpuCommunicator, self).all_reduce(input_)

        return faults.attempt("all_reduce", ours, stock)
