"""vLLM attention backend AMDOPT_ATTN: MHA, GQA and MQA on our paged-attention operations.

The batch arrives with its decode tokens first. They go to the split-KV decode operation, the rest
(whole prompts and chunks of prompts) to the prefill operation; both read the paged cache that
`do_kv_cache_update` has written before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionLayer,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
)

from vllm_amdopt.integration.cpu_engine import (
    chosen,
    fp8_dtype,
    implementation,
    kernel_device,
)
from vllm_amdopt.integration.faults import attempt, disabled, distortion
from vllm_amdopt.ops import (
    kv_cache_write,
    paged_attention_decode,
    paged_attention_prefill,
    rope_and_cache_write,
)
from vllm_amdopt.ops.operation import REFERENCE

NAME = "AMDOPT_ATTN"
KERNEL_BLOCK_SIZES = (128, 64, 32, 16, 8, 4, 2, 1)
FP8_CACHES = ("fp8", "fp8_e4m3")
"""What --kv-cache-dtype calls the platform's own e4m3."""


class AmdOptAttentionBackend(AttentionBackend):
    """What the backend takes; vLLM asks `validate_configuration` before it chooses it."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = [
        *("auto", "bfloat16", "float16", "float32"),
        *FP8_CACHES,
    ]

    @staticmethod
    def get_name() -> str:
        return NAME

    @staticmethod
    def get_impl_cls() -> type[AmdOptAttentionImpl]:
        return AmdOptAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[AmdOptAttentionMetadataBuilder]:
        return AmdOptAttentionMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        return list(KERNEL_BLOCK_SIZES)

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        return default_block_size

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        return list(paged_attention_prefill.HEAD_SIZES)

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supported_kv_cache_layouts(cls) -> Any:
        # The kernels read through strides, so any layout does. LBHNC comes first because the
        # offloading connector accepts no other.
        from vllm.v1.kv_cache_interface import KVCacheLayout

        names = ("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")
        return tuple(getattr(KVCacheLayout, name) for name in names if hasattr(KVCacheLayout, name))


@dataclass
class AmdOptAttentionMetadata:
    """One batch: `num_decodes` requests with equally many query tokens each, then the others.

    More than one where a draft is verified. Requests that only pad a captured batch have none and
    count for nothing.

    query_start_loc: int32 [requests + 1]; seq_lens: int32 [requests]; block_table: int32
    [requests, blocks]; slot_mapping: int64 [tokens]. max_seq_len is an upper bound.
    """

    num_actual_tokens: int
    num_decodes: int
    num_decode_tokens: int
    first_prefill: int
    num_prefills: int
    max_query_len: int
    max_seq_len: int
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    slot_mapping: torch.Tensor


class AmdOptAttentionMetadataBuilder(AttentionMetadataBuilder[AmdOptAttentionMetadata]):
    """Splits the batch without reading device memory, so that it suits asynchronous scheduling."""

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH
    reorder_batch_threshold: int = 1

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._init_reorder_batch_threshold(1, supports_spec_as_decode=True)
        self.reorder_batch_threshold = min(
            self.reorder_batch_threshold, paged_attention_decode.MOST_QUERY_TOKENS
        )
        if implementation() == "triton":
            # Now, because a capture must not: the launches' partial results and counters.
            model = vllm_config.model_config
            paged_attention_decode.reserve(
                device,
                model.get_num_attention_heads(vllm_config.parallel_config),
                kv_cache_spec.num_kv_heads,
                kv_cache_spec.head_size,
                self.reorder_batch_threshold,
            )

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> AmdOptAttentionMetadata:
        common = common_attn_metadata
        first_prefill, num_decodes, num_decode_tokens = self._decodes(common)
        num_prefills = common.num_reqs - first_prefill
        query_start_loc = common.query_start_loc
        if num_prefills and first_prefill:
            query_start_loc = query_start_loc[first_prefill:] - num_decode_tokens
        return AmdOptAttentionMetadata(
            num_actual_tokens=common.num_actual_tokens,
            num_decodes=num_decodes,
            num_decode_tokens=num_decode_tokens,
            first_prefill=first_prefill,
            num_prefills=num_prefills,
            max_query_len=common.max_query_len,
            max_seq_len=common.max_seq_len,
            query_start_loc=query_start_loc,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
        )

    def _decodes(self, common: CommonAttentionMetadata) -> tuple[int, int, int]:
        """The first request to prefill, the requests to decode before it, and their tokens.

        As vLLM's `split_decodes_and_prefills` with `require_uniform`, but in NumPy: the dozen
        tensor operations there take longer than all else here. Requests without tokens, which pad
        a captured batch, stand before the first prefill and are none to decode.
        """
        if common.max_query_len <= self.reorder_batch_threshold == 1:
            return common.num_reqs, common.num_reqs, common.num_actual_tokens
        starts = common.query_start_loc_cpu.numpy()
        each = int(starts[1] - starts[0])
        if each > self.reorder_batch_threshold:
            return 0, 0, 0
        lens = starts[1:] - starts[:-1]
        others = (lens != each) & (lens != 0)
        first = int(others.argmax())
        if not others[first]:
            first, tokens = common.num_reqs, common.num_actual_tokens
        else:
            tokens = int(starts[first])
        return first, tokens // max(1, each), tokens


class AmdOptAttentionImpl(AttentionImpl[AmdOptAttentionMetadata]):
    """One attention layer."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
        **unknown: Any,
    ) -> None:
        refused = {
            f"attention type {attn_type}": attn_type != AttentionType.DECODER,
            f"the arguments {sorted(unknown)}": any(v is not None for v in unknown.values()),
        }
        for what, present in refused.items():
            if present:
                raise NotImplementedError(
                    f"{NAME} does not do {what}; set VLLM_AMDOPT_ATTENTION=off for this model"
                )
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.sliding_window = sliding_window or 0
        self.kv_cache_dtype = kv_cache_dtype
        self.logits_soft_cap = float(logits_soft_cap or 0.0)
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.sinks = sinks
        self.alibi_slopes: torch.Tensor | None = None
        if alibi_slopes is not None:
            self.alibi_slopes = torch.tensor(alibi_slopes, dtype=torch.float32)

    def do_kv_cache_update(
        self,
        layer: AttentionLayer,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Write new keys and values, [tokens, kv_heads, head_size], to their slots (-1: none).

        An fp8 cache gets them divided by the layer's scales.
        """
        if self.kv_sharing_target_layer_name is not None or kv_cache.numel() == 0:
            return
        k_cache, v_cache = self._split(kv_cache)

        def write(how: str) -> None:
            kv_cache_write.kv_cache_write(
                key,
                value,
                k_cache,
                v_cache,
                slot_mapping,
                **self._scales(layer),
                implementation=how,
            )

        self._run(write)

    def fused_rope_kvcache_supported(self) -> bool:
        """Whether vLLM's compiler may put `do_rope_and_kv_cache_update` into the graph."""
        return disabled("attention") is None

    def fused_qk_norm_rope_kvcache_supported(self) -> bool:
        """The same for `do_qk_norm_rope_kvcache_update`; vLLM looks for these head sizes only."""
        return self.fused_rope_kvcache_supported() and self.head_size in (64, 128, 256)

    def do_rope_and_kv_cache_update(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        cos_sin_cache: torch.Tensor,
        is_neox: bool,
        kv_cache: torch.Tensor,
        layer_slot_mapping: torch.Tensor,
        **options: Any,
    ) -> None:
        """Rotate query [tokens, heads, D] and key [tokens, kv_heads, D] in place, write the cache.

        positions: int64 [tokens]; cos_sin_cache: [positions, rotated elements], cosines first;
        options: further ones of the operation `rope_and_cache_write`.
        """
        k_cache, v_cache = self._split(kv_cache)
        if self.kv_sharing_target_layer_name is not None:
            # vLLM's pattern is the same for all layers; here only the heads are rotated.
            layer_slot_mapping = layer_slot_mapping[:0]
        options.update(self._scales(layer))

        def write(how: str) -> None:
            rope_and_cache_write.rope_and_cache_write(
                query,
                key,
                value,
                positions,
                cos_sin_cache,
                k_cache,
                v_cache,
                layer_slot_mapping,
                is_neox=is_neox,
                **options,
                implementation=how,
            )

        self._run(write)

    def do_qk_norm_rope_kvcache_update(
        self,
        layer: AttentionLayer,
        qkv: torch.Tensor,
        q_out: torch.Tensor,
        k_out: torch.Tensor,
        positions: torch.Tensor,
        q_weight: torch.Tensor,
        k_weight: torch.Tensor,
        rms_norm_eps: float,
        cos_sin_cache: torch.Tensor,
        is_neox: bool,
        kv_cache: torch.Tensor,
        layer_slot_mapping: torch.Tensor,
    ) -> None:
        """The same after a norm of every head, to q_out and k_out; qkv [tokens, all] stays."""
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        query, key, value = (
            part.unflatten(-1, (-1, self.head_size))
            for part in qkv.split([count * self.head_size for count in heads], dim=-1)
        )
        self.do_rope_and_kv_cache_update(
            layer, query, key, value, positions, cos_sin_cache, is_neox, kv_cache,
            layer_slot_mapping,
            query_weight=q_weight.view(-1),
            key_weight=k_weight.view(-1),
            epsilon=rms_norm_eps,
            query_out=q_out.view(query.shape),
            key_out=k_out.view(key.shape),
        )  # fmt: skip

    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: AmdOptAttentionMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of query [tokens, heads, head_size] over the cache, written to `output`.

        kv_cache: [blocks, kv_heads, block_size, 2 * head_size], keys first. Without metadata vLLM
        only measures memory, and there is nothing to attend to.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError(f"{NAME} does not quantize its output")
        if attn_metadata is None or kv_cache.numel() == 0:
            return output.fill_(0)
        meta = attn_metadata
        k_cache, v_cache = self._split(kv_cache)
        if self.alibi_slopes is not None and self.alibi_slopes.device != query.device:
            self.alibi_slopes = self.alibi_slopes.to(query.device)
        shape = (-1, self.num_heads, self.head_size)
        queries = query.view(shape)
        outputs = output.view(shape)
        options: dict[str, Any] = {
            "sliding_window": self.sliding_window,
            "logits_soft_cap": self.logits_soft_cap,
            "sinks": self.sinks,
            "alibi_slopes": self.alibi_slopes,
            "max_seq_len": meta.max_seq_len,
            **self._scales(layer),
        }
        decodes, first = meta.num_decodes, meta.num_decode_tokens

        def attend(how: str) -> None:
            if decodes:
                paged_attention_decode.paged_attention_decode(
                    queries[:first],
                    k_cache,
                    v_cache,
                    meta.block_table[:decodes],
                    meta.seq_lens[:decodes],
                    self.scale,
                    outputs[:first],
                    implementation=how
                    if how == REFERENCE
                    else self._decode_by(query.dtype, k_cache, first // decodes, options),
                    **options,
                )
            if meta.num_prefills:
                paged_attention_prefill.paged_attention_prefill(
                    queries[first : meta.num_actual_tokens],
                    k_cache,
                    v_cache,
                    meta.block_table[meta.first_prefill :],
                    meta.seq_lens[meta.first_prefill :],
                    meta.query_start_loc,
                    self.scale,
                    outputs[first : meta.num_actual_tokens],
                    max_query_len=meta.max_query_len,
                    implementation=how,
                    **options,
                )

        self._run(attend)
        if (distort := distortion("attention_forward")) is not None:
            distort(outputs[: meta.num_actual_tokens])
        return output

    def _decode_by(
        self, dtype: torch.dtype, k_cache: torch.Tensor, query_len: int, options: dict[str, Any]
    ) -> str:
        """The decode kernel for this layer; only the cache knows the size of its blocks.

        options: the keywords of the call.
        """
        return chosen(
            paged_attention_decode.OPERATION,
            head_size=self.head_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            block_size=k_cache.shape[2],
            dtype=dtype,
            cache_dtype=k_cache.dtype,
            query_len=query_len,
            has_sinks=options.get("sinks") is not None,
            has_alibi=options.get("alibi_slopes") is not None,
            has_scales=any(options.get(name, 1.0) != 1.0 for name in ("k_scale", "v_scale")),
        )

    def _split(self, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.kv_cache_dtype in FP8_CACHES:
            kv_cache = kv_cache.view(fp8_dtype())  # vLLM has it as bytes
        return kv_cache[..., : self.head_size], kv_cache[..., self.head_size :]

    def _scales(self, layer: Any) -> dict[str, float]:
        """What a stored key and value are multiplied with, as the checkpoint or vLLM says."""
        if self.kv_cache_dtype not in FP8_CACHES:
            return {}
        return {"k_scale": float(layer._k_scale_float), "v_scale": float(layer._v_scale_float)}

    @staticmethod
    def _run(work: Any) -> None:
        """Run with the kernels of this process; where they fail, with the plain PyTorch reference.

        The cache already holds this backend's data, so stock attention cannot take over here.
        """

        def kernels() -> None:
            with kernel_device():
                work(implementation())

        attempt("attention_forward", kernels, lambda: work("reference"))
