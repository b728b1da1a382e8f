"""What each of vLLM's attention backends on ROCm takes, as a table; read from vLLM 0.30 to 0.32.

Mirrors `AttentionBackend.validate_configuration` (v1/attention/backend.py) and what the backends
override of it. The sentences are vLLM's own, so that the two can be compared word for word. Whether
a backend is also fast or right for a layer is not said here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_amdopt.policy.versions import contains

AttentionType = Literal["decoder", "encoder_only", "encoder_decoder"]

_DECODER: tuple[AttentionType, ...] = ("decoder",)
_ALL_TYPES: tuple[AttentionType, ...] = ("decoder", "encoder_only", "encoder_decoder")
_NATIVE = ("auto", "float16", "bfloat16")
_FP8 = ("fp8", "fp8_e4m3", "fp8_e5m2")
_HALF = ("float16", "bfloat16")
_FLOAT = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Layer:
    """One kind of attention layer, with the fields of vLLM's AttentionSelectorConfig.

    `block_size` is in tokens, and None where the user gave none; `dtype` is None where it is not
    known, which no backend refuses.
    """

    head_size: int
    dtype: str | None = "bfloat16"
    kv_cache_dtype: str = "auto"
    block_size: int | None = None
    use_mla: bool = False
    has_sink: bool = False
    use_sparse: bool = False
    use_mm_prefix: bool = False
    attn_type: AttentionType = "decoder"
    has_sliding_window: bool = False
    use_batch_invariant: bool = False
    use_kv_connector: bool = False


@dataclass(frozen=True)
class Backend:
    """What one backend takes. `source` is the file in vLLM that it was read from.

    `head_sizes` empty: any of at least `smallest_head`. `block_multiple`: block sizes are multiples
    of it, in tokens. `mm_prefix`: the vLLM versions that claim image tokens which attend in both
    directions, as a range; None for no version. `cdna3`: refused on older GPUs.
    `imports_aiter`: the versions whose module cannot be imported without AITER.
    """

    name: str
    source: str
    kv_cache_dtypes: tuple[str, ...]
    dtypes: tuple[str, ...] = _HALF
    head_sizes: tuple[int, ...] = ()
    smallest_head: int = 1
    block_multiple: int = 16
    preferred_block_size: int = 16
    mla: bool = False
    sparse: bool = False
    sinks: bool = False
    mm_prefix: str | None = None
    sliding_window: bool = False
    attn_types: tuple[AttentionType, ...] = _DECODER
    kv_connector: bool = True
    batch_invariant: bool = False
    cdna3: bool = False
    imports_aiter: str | None = None

    def refusals(self, layer: Layer, *, gfx: str | None, aiter: bool, vllm: str) -> tuple[str, ...]:
        """Why the backend does not take the layer, in vLLM's words and order; empty if it does.

        `aiter`: the library is installed. `vllm`: the version of vLLM that is asked.
        """
        if self.imports_aiter is not None and not aiter and contains(self.imports_aiter, vllm):
            return ("ImportError",)
        said: list[tuple[bool, str]] = [
            (not self._takes_head(layer.head_size), "head_size not supported"),
            (layer.dtype not in (None, *self.dtypes), "dtype not supported"),
            (layer.kv_cache_dtype not in self.kv_cache_dtypes, "kv_cache_dtype not supported"),
            (not self._takes_block(layer.block_size), "block_size not supported"),
            (
                layer.use_mm_prefix and not self.takes_mm_prefix(vllm),
                "partial multimodal token full attention not supported",
            ),
            (layer.use_mla and not self.mla, "MLA not supported"),
            (self.mla and not layer.use_mla, "non-MLA not supported"),
            (layer.has_sink and not self._takes_sinks(gfx), "attention sinks not supported"),
            (layer.use_sparse and not self.sparse, "sparse not supported"),
            (self.sparse and not layer.use_sparse, "non-sparse not supported"),
            (self.cdna3 and gfx not in CDNA3_OR_NEWER, "compute capability not supported"),
            (
                layer.attn_type not in self.attn_types,
                f"attention type {layer.attn_type} not supported",
            ),
            (
                layer.has_sliding_window and not self.sliding_window,
                "sliding window not supported",
            ),
            (
                layer.use_batch_invariant and not self.batch_invariant,
                "batch invariance not supported",
            ),
            (layer.use_kv_connector and not self.kv_connector, "KV connector not supported"),
        ]
        return tuple(sentence for holds, sentence in said if holds)

    def takes_mm_prefix(self, vllm: str) -> bool:
        """Whether it claims image tokens that attend in both directions, in this vLLM."""
        return self.mm_prefix is not None and contains(self.mm_prefix, vllm) is True

    def _takes_head(self, size: int) -> bool:
        return size in self.head_sizes if self.head_sizes else size >= self.smallest_head

    def _takes_block(self, size: int | None) -> bool:
        return size is None or size % self.block_multiple == 0

    def _takes_sinks(self, gfx: str | None) -> bool:
        return self.sinks and not (self.sparse and gfx not in CDNA3_OR_NEWER)


NEWEST_READ = "0.32.0"
"""The newest vLLM that this table was read from; also what an unknown version is taken for."""

CDNA3_OR_NEWER = ("gfx942", "gfx950")

_BACKENDS = "v1/attention/backends"

ROCM_ATTN = Backend(
    name="ROCM_ATTN",
    source=f"{_BACKENDS}/rocm_attn.py",
    kv_cache_dtypes=(*_NATIVE, *_FP8),
    dtypes=_FLOAT,
    head_sizes=(32, 64, 80, 96, 128, 160, 192, 224, 256),
    mm_prefix=">=0.30,<0.32",  # claimed, and not implemented: 0.32 takes the claim back
    sliding_window=True,
    attn_types=("decoder", "encoder_only"),
    kv_connector=False,
)
ROCM_AITER_FA = Backend(
    name="ROCM_AITER_FA",
    source=f"{_BACKENDS}/rocm_aiter_fa.py",
    kv_cache_dtypes=(*_NATIVE, *_FP8),
    head_sizes=(64, 128, 256),
    sinks=True,
    sliding_window=True,
    cdna3=True,
    imports_aiter=">=0.30,<0.32",
)
ROCM_AITER_UNIFIED_ATTN = Backend(
    name="ROCM_AITER_UNIFIED_ATTN",
    source=f"{_BACKENDS}/rocm_aiter_unified_attn.py",
    kv_cache_dtypes=(*_NATIVE, *_FP8),
    smallest_head=32,
    preferred_block_size=64,
    sinks=True,
    mm_prefix=">=0.30,<0.32",
    sliding_window=True,
    attn_types=_ALL_TYPES,
)
TRITON_ATTN = Backend(
    name="TRITON_ATTN",
    source=f"{_BACKENDS}/triton_attn.py",
    kv_cache_dtypes=(
        *_NATIVE,
        *_FP8,
        "int4_per_token_head",
        "int8_per_token_head",
        "fp8_per_token_head",
    ),
    dtypes=_FLOAT,
    smallest_head=32,
    sinks=True,
    mm_prefix=">=0.30",
    sliding_window=True,
    attn_types=_ALL_TYPES,
    batch_invariant=True,
)
ROCM_AITER_MLA = Backend(
    name="ROCM_AITER_MLA",
    source=f"{_BACKENDS}/mla/rocm_aiter_mla.py",
    kv_cache_dtypes=(*_NATIVE, *_FP8),
    block_multiple=1,
    mla=True,
)
ROCM_AITER_TRITON_MLA = Backend(
    name="ROCM_AITER_TRITON_MLA",
    source=f"{_BACKENDS}/mla/aiter_triton_mla.py",
    kv_cache_dtypes=(*_NATIVE, *_FP8),
    block_multiple=1,
    mla=True,
)
TRITON_MLA = Backend(
    name="TRITON_MLA",
    source=f"{_BACKENDS}/mla/triton_mla.py",
    kv_cache_dtypes=(*_NATIVE, "fp8", "fp8_e4m3"),
    mla=True,
    batch_invariant=True,
)
ROCM_AITER_MLA_SPARSE = Backend(
    name="ROCM_AITER_MLA_SPARSE",
    source=f"{_BACKENDS}/mla/rocm_aiter_mla_sparse.py",
    kv_cache_dtypes=(*_NATIVE, "fp8", "fp8_e4m3"),
    block_multiple=1,  # [1, MultipleOf(16)]: every size is a multiple of the first
    mla=True,
    sparse=True,
    sinks=True,
)

BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        ROCM_ATTN,
        ROCM_AITER_FA,
        ROCM_AITER_UNIFIED_ATTN,
        TRITON_ATTN,
        ROCM_AITER_MLA,
        ROCM_AITER_TRITON_MLA,
        TRITON_MLA,
        ROCM_AITER_MLA_SPARSE,
    )
}
"""By the name that --attention-backend takes. The packed caches' backends (TURBOQUANT, ULTRAQUANT)
and those that have to be asked for (ROCM_SEGMENTED_ATTN) are not here."""


def candidates(
    layer: Layer,
    *,
    gfx: str | None,
    aiter: bool,
    aiter_on: bool,
    mha_on: bool = True,
    mla_on: bool = True,
    encoder_decoder: bool = False,
) -> tuple[Backend, ...]:
    """vLLM's candidates for the layer, in its order (platforms/rocm.py _get_backend_priorities).

    `aiter`: the library is installed. `aiter_on`, `mha_on`, `mla_on`: VLLM_ROCM_USE_AITER and its
    sub-switches _MHA and _MLA. The same in 0.30, 0.31 and 0.32.
    """
    supported = aiter and gfx in CDNA3_OR_NEWER
    if layer.use_sparse:
        return (ROCM_AITER_MLA_SPARSE,)
    if layer.use_mla:
        if supported and aiter_on and mla_on:
            return (ROCM_AITER_MLA, TRITON_MLA, ROCM_AITER_TRITON_MLA)
        return (TRITON_MLA,)
    found: list[Backend] = []
    # A KV connector, and a cross-attending decoder beside an encoder, rule out its cache layout.
    if not layer.use_kv_connector and not encoder_decoder:
        found.append(ROCM_ATTN)
    if supported and aiter_on and mha_on:
        found.append(ROCM_AITER_FA)
    if supported:
        found.append(ROCM_AITER_UNIFIED_ATTN)
    elif aiter and aiter_on and gfx in ("gfx1200", "gfx1201"):
        found.insert(0, ROCM_AITER_UNIFIED_ATTN)
    found.append(TRITON_ATTN)
    return tuple(found)
