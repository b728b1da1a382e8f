"""Small tensor-parallel all-reduces by our one-shot kernel; everything else by vLLM's communicator.

First version: between CPU processes, over shared memory. The kernel is the one that will run over
peer-mapped GPU memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from vllm.config import get_current_vllm_config
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.logger import init_logger

from vllm_amdopt.integration import active_plan, faults
from vllm_amdopt.integration.cpu_engine import implementation, kernel_device
from vllm_amdopt.integration.self_test import SelfTestError
from vllm_amdopt.ops.all_reduce_one_shot import (
    ALIGNMENT,
    OneShotAllReduce,
    SharedRegions,
    region_bytes,
)

logger = init_logger("vllm.amdopt")

PEER_SECONDS = 300.0
"""How long a rank waits for the others before it gives up: a first call may compile its kernel."""

MAX_BYTES = 256 * 1024
"""Largest message, in bytes. One-shot reads every peer's whole message, so it is for small ones;
a decode batch of 16 rows of an 8192-wide bf16 model is this size."""


class PeerFailedError(RuntimeError):
    """Another rank failed while all ranks were setting up together."""


class AmdOptCpuCommunicator(CpuCommunicator):
    """vLLM's CPU communicator, with our all-reduce in front for the tensor-parallel group.

    All ranks take the same branch: whether it exists is agreed by all after a common self-test,
    and whether a message qualifies depends on its shape and dtype alone.
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
            one_shot = OneShotAllReduce(
                self.rank_in_group,
                self.world_size,
                regions.buffers,
                MAX_BYTES,
                implementation=implementation(),
                timeout_seconds=PEER_SECONDS,
            )
            with kernel_device():
                check_all_reduce(one_shot, get_current_vllm_config().model_config.dtype)
            return one_shot

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

        def prepare() -> torch.Tensor | None:
            message = input_.contiguous()
            return message.clone() if message.data_ptr() % ALIGNMENT else message

        message = faults.attempt("all_reduce", prepare, lambda: None)
        if message is None:
            return super().all_reduce(input_)
        try:
            with kernel_device():
                return one_shot.all_reduce(message)
        except Exception as error:
            # From here on the peers may have our data, and go on without meeting us again. Falling
            # back on one rank alone could sum different messages: rather an error than wrong text.
            raise faults.FeatureError(
                f"vllm-amdopt: all_reduce: rank {self.rank_in_group} failed with "
                f"{type(error).__name__}: {error} Set VLLM_AMDOPT_ALL_REDUCE=off to serve without."
            ) from error


def check_all_reduce(one_shot: OneShotAllReduce, dtype: torch.dtype) -> None:
    """Sum small integers over the ranks, which is exact in any dtype. Raises SelfTestError."""
    ranks = one_shot.world_size
    values = torch.arange(96, device=one_shot.device).remainder(7).to(dtype)
    refusal = one_shot.refusal(tuple(values.shape), dtype)
    if refusal is not None:
        raise SelfTestError(refusal)
    total = one_shot.all_reduce(values + one_shot.rank)
    if not torch.equal(total, values * ranks + ranks * (ranks - 1) // 2):
        raise SelfTestError("the all-reduce of small integers is not exact on this machine")
