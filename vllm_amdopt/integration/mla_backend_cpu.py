"""AMDOPT_MLA on CPU platforms: vLLM's CPU reference MLA with our decode and our cache write."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend, CPUMLAImpl

from vllm_amdopt.integration.mla_backend import (
    KERNEL_BLOCK_SIZES,
    NAME,
    AmdOptMLABackend,
    DecodeOnOurOperation,
    preferred_block_size,
)


class AmdOptCpuMLABackend(CPUMLABackend):
    """As CPU_MLA, at any block size and for more latent sizes."""

    supported_kv_cache_dtypes = AmdOptMLABackend.supported_kv_cache_dtypes

    @staticmethod
    def get_name() -> str:
        return NAME

    @staticmethod
    def get_impl_cls() -> type[AmdOptCpuMLAImpl]:
        return AmdOptCpuMLAImpl

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return list(KERNEL_BLOCK_SIZES)

    @classmethod
    def supports_block_size(cls, block_size: int | None) -> bool:
        return block_size is None or block_size > 0

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        return preferred_block_size(default_block_size)

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return AmdOptMLABackend.get_supported_head_sizes()


class AmdOptCpuMLAImpl(DecodeOnOurOperation, CPUMLAImpl):
    """One MLA layer on a CPU."""

    can_return_lse_for_decode = True
