"""vLLM attention backend AMDOPT_MLA: absorbed MLA decode on our operation, prefill by vLLM.

Everything but the decode of latents and the cache write is vLLM's own MLA code: on GPUs that of
`MLACommonImpl`, on CPUs that of the CPU reference backend (module `mla_backend_cpu`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from vllm.model_executor.layers.attention.mla_attention import (
    MLACommonBackend,
    MLACommonImpl,
    MLACommonMetadata,
    MLACommonMetadataBuilder,
    QueryLenSupport,
)
from vllm.v1.attention.backend import AttentionCGSupport

from vllm_amdopt.integration import active_plan
from vllm_amdopt.integration.cpu_engine import (
    chosen,
    fp8_dtype,
    implementation,
    kernel_device,
)
from vllm_amdopt.integration.faults import attempt, distortion
from vllm_amdopt.ops import kv_cache_write, mla_decode

NAME = "AMDOPT_MLA"
KERNEL_BLOCK_SIZES = (128, 64, 32, 16, 8, 4, 2, 1)
FP8 = ("fp8", "fp8_e4m3")
"""--kv-cache-dtype for e4m3 with one scale; vLLM hands such a cache over as bytes."""


def preferred_block_size(default_block_size: int) -> int:
    """Block size 1 where the plan has the rule on, vLLM's default otherwise."""
    return 1 if active_plan.is_on("mla_block_size") else default_block_size


class DecodeOnOurOperation:
    """The two methods that differ from vLLM's MLA implementations; mixed in before them."""

    scale: float
    kv_lora_rank: int
    kv_cache_dtype: str

    def forward_mqa(
        self,
        q: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: MLACommonMetadata,
        layer: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Decode: q [tokens, heads, L + R] over the cache [blocks, block_size, L + R].

        Each request has equally many tokens: one, or more where a draft is verified. Returns
        [tokens, heads, L] and the log-sum-exp (natural, float32 [tokens, heads]).
        """
        decode = attn_metadata.decode
        assert decode is not None
        query = torch.cat(q, dim=-1) if isinstance(q, tuple) else q
        tokens, heads, _ = query.shape
        out = query.new_empty(tokens, heads, self.kv_lora_rank)
        lse = torch.empty(tokens, heads, dtype=torch.float32, device=query.device)
        block_table = decode.block_table.to(torch.int32)
        seq_lens = decode.seq_lens.to(torch.int32)
        cache, scale = kv_c_and_k_pe_cache, 1.0
        if self.kv_cache_dtype in FP8:
            # The scale as vLLM keeps it on the host: reading the device's would stall the stream.
            cache, scale = cache.view(fp8_dtype()), layer._k_scale_float

        def attend(how: str) -> None:
            mla_decode.mla_decode(
                query,
                cache,
                block_table,
                seq_lens,
                self.scale,
                out,
                lse,
                kv_lora_rank=self.kv_lora_rank,
                latent_scale=scale,
                max_seq_len=attn_metadata.max_seq_len,
                implementation=how,
            )

        # One kernel for this layer, the first that does not refuse it.
        _run(
            attend,
            lambda: chosen(
                mla_decode.OPERATION,
                kv_lora_rank=self.kv_lora_rank,
                rope_size=query.shape[-1] - self.kv_lora_rank,
                block_size=cache.shape[1],
                dtype=query.dtype,
                cache_dtype=cache.dtype,
                query_len=tokens // max(1, block_table.shape[0]),
            ),
        )
        if (distort := distortion("mla_forward")) is not None:
            distort(out)
        return out, lse

    def do_kv_cache_update(
        self,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache_dtype: str,
        k_scale: torch.Tensor | None,
        *further: Any,
        **named: Any,
    ) -> None:
        """Write latents to their slots. vLLM 0.33 passes one argument more than 0.32, hence
        `further`: a flag to skip the scale, which only other formats of the cache have."""
        if kv_cache.numel() == 0:
            return
        rope = k_pe.squeeze(1)
        slots = slot_mapping.flatten()
        quantized = kv_cache_dtype in FP8
        cache = kv_cache.view(fp8_dtype()) if quantized else kv_cache

        def write(how: str) -> None:
            kv_cache_write.latent_cache_write(
                kv_c_normed,
                rope,
                cache,
                slots,
                latent_scale=k_scale if quantized else None,
                implementation=how,
            )

        _run(write, implementation)


def _run(work: Callable[[str], None], by: Callable[[], str]) -> None:
    """Do `work` by the implementation that `by` names, or by the reference where that fails."""

    def kernels() -> None:
        with kernel_device():
            work(by())

    attempt("mla_forward", kernels, lambda: work("reference"))


class AmdOptMLAMetadataBuilder(MLACommonMetadataBuilder[MLACommonMetadata]):
    """vLLM's, with the statements that decode batches may be captured into a graph, and that each
    request may bring several tokens, as a draft of speculative decoding does."""

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH
    query_len_support: ClassVar[QueryLenSupport] = QueryLenSupport.UNIFORM


class AmdOptMLABackend(MLACommonBackend):
    """What the backend takes; vLLM asks `validate_configuration` before it chooses it."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = [
        "auto",
        "bfloat16",
        "float16",
        "float32",
        *FP8,
    ]

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
        # vLLM would quantize queries for an fp8 cache; ours stay as they are.
        self.supports_quant_query_input = False
