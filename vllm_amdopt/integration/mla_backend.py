"""vLLM attention backend AMDOPT_MLA: absorbed MLA decode on our operation, prefill by vLLM.

Everything but the decode of latents and the cache write is vLLM's own MLA code: on GPUs that of
`MLACommonImpl`, on CPUs that of the CPU reference backend (module `mla_backend_cpu`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.model_executor.layers.attention.mla_attention import (
    MLACommonBackend,
    MLACommonImpl,
    MLACommonMetadata,
    MLACommonMetadataBuilder,
)
from vllm.v1.attention.backend import AttentionCGSupport

from vllm_amdopt.integration import active_plan
from vllm_amdopt.integration.cpu_engine import implementation, kernel_device
from vllm_amdopt.integration.faults import attempt, distortion
from vllm_amdopt.ops import kv_cache_write, mla_decode

NAME = "AMDOPT_MLA"
KERNEL_BLOCK_SIZES = (128, 64, 32, 16, 8, 4, 2, 1)


def preferred_block_size(default_block_size: int) -> int:
    """Block size 1 where the plan has the rule on, vLLM's default otherwise."""
    return 1 if active_plan.is_on("mla_block_size") else default_block_size


class DecodeOnOurOperation:
    """The two methods that differ from vLLM's MLA implementations; mixed in before them."""

    scale: float
    kv_lora_rank: int

    def forward_mqa(
        self,
        q: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: MLACommonMetadata,
        layer: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Decode: q [requests, heads, L + R] over the cache [blocks, block_size, L + R].

        Returns [requests, heads, L] and the log-sum-exp (natural, float32 [requests, heads]).
        """
        decode = attn_metadata.decode
        assert decode is not None
        query = torch.cat(q, dim=-1) if isinstance(q, tuple) else q
        requests, heads, _ = query.shape
        out = query.new_empty(requests, heads, self.kv_lora_rank)
        lse = torch.empty(requests, heads, dtype=torch.float32, device=query.device)
        block_table = decode.block_table.to(torch.int32)
        seq_lens = decode.seq_lens.to(torch.int32)

        def attend(how: str) -> None:
            mla_decode.mla_decode(
                query,
                kv_c_and_k_pe_cache,
                block_table,
                seq_lens,
                self.scale,
                out,
                lse,
                kv_lora_rank=self.kv_lora_rank,
                max_seq_len=attn_metadata.max_seq_len,
                implementation=how,
            )

        _run(attend)
        if (distort := distortion("mla_forward")) is not None:
            distort(out)
        return out, lse

    def do_kv_cache_update(
        self,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        *further: Any,
        **named: Any,
    ) -> None:
        """Write latents to their slots. vLLM 0.33 passes one argument more than 0.32, hence
        `further`: cache dtype, scale, skip flag, none of which an unquantized cache needs."""
        if kv_cache.numel() == 0:
            return
        rope = k_pe.squeeze(1)
        slots = slot_mapping.flatten()

        def write(how: str) -> None:
            kv_cache_write.latent_cache_write(
                kv_c_normed, rope, kv_cache, slots, implementation=how
            )

        _run(write)


def _run(work: Any) -> None:
    def kernels() -> None:
        with kernel_device():
            work(implementation())

    attempt("mla_forward", kernels, lambda: work("reference"))


class AmdOptMLAMetadataBuilder(MLACommonMetadataBuilder[MLACommonMetadata]):
    """vLLM's, with the statement that decode batches may be captured into a graph."""

    _cudagraph_support: ClassVar[AttentionCGSupport] = (
        AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    )


class AmdOptMLABackend(MLACommonBackend):
    """What the backend takes; vLLM asks `validate_configuration` before it chooses it."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto", "bfloat16", "float16", "float32"]

    @staticmethod
    def get_name() -> str:
        return NAME

    @staticmethod
    def get_impl_cls() -> type[AmdOptMLAImpl]:
        return AmdOptMLAImpl

    @staticmethod
    def get_builder_cls() -> type[AmdOptMLAMetadataBuilder]:
        return AmdOptMLAMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return list(KERNEL_BLOCK_SIZES)

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        return preferred_block_size(default_block_size)

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return sorted(
            rank + rope for rank in mla_decode.KV_LORA_RANKS for rope in mla_decode.ROPE_SIZES
        )


class AmdOptMLAImpl(DecodeOnOurOperation, MLACommonImpl[MLACommonMetadata]):
    """One MLA layer on a GPU."""

    can_return_lse_for_decode: bool = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # vLLM would quantize queries for an fp8 cache; the backend refuses such caches.
        self.supports_quant_query_input = False
