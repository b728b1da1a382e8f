"""Conditions of the attention rules: what the model's layers are, what the backends take."""

from dataclasses import dataclass

from vllm_amdopt.policy.attention_backends import CDNA3_OR_NEWER, NEWEST_READ
from vllm_amdopt.policy.conditions import aiter_in_force, either
from vllm_amdopt.policy.model_conditions import ModelKnown
from vllm_amdopt.policy.selection import predict_attention, so_far
from vllm_amdopt.policy.situation import Situation, is_true
from vllm_amdopt.policy.versions import contains

UNDERSTATED_IMAGES = ">=0.30,<0.32"
"""The vLLM versions whose ROCM_ATTN and ROCM_AITER_UNIFIED_ATTN claim to let image tokens attend in
both directions and do not (rocm_attn.py supports_mm_prefix: 0.32 says "Not implemented")."""

_MLA_HEADS = 16
_LARGEST_MEASURED_GROUP = 16


@dataclass(frozen=True)
class AiterInForce:
    """AITER is installed and on, by the user or by this plan."""

    def refusal(self, situation: Situation) -> str | None:
        if aiter_in_force(situation):
            return None
        return "AITER is not in force, so vLLM's own order of attention backends stands"

    def describe(self) -> str:
        return "AITER installed and on"


@dataclass(frozen=True)
class BackendsKnowTheMask:
    """Every candidate computes this model's attention: no soft cap, no two-way image tokens."""

    def refusal(self, situation: Situation) -> str | None:
        mask = ignored_by_rocm_attn(situation)
        return None if mask is None else f"the model has {mask}, so exact_attention orders for it"

    def describe(self) -> str:
        return "no soft cap and no two-way image tokens (see exact_attention)"


@dataclass(frozen=True)
class CandidatesIgnoreTheMask:
    """vLLM's first candidates would compute this model's attention without part of its mask."""

    def refusal(self, situation: Situation) -> str | None:
        if ignored_by_rocm_attn(situation) is not None:
            return None
        return "every attention backend that vLLM may select computes this model's attention"

    def describe(self) -> str:
        return (
            "a soft cap on attention logits; or image tokens that attend in both directions with "
            f"vLLM {UNDERSTATED_IMAGES}"
        )


def ignored_by_rocm_attn(situation: Situation) -> str | None:
    """What of the model's attention ROCM_ATTN leaves out in silence, as a phrase; None if nothing.

    ROCM_ATTN never passes the soft cap to its kernels (rocm_attn.py, ops/
    chunked_prefill_paged_decode.py), ROCM_AITER_FA not at prefill (_aiter_ops.py
    flash_attn_varlen_func has no such argument).
    """
    model = situation.model
    if model is None:
        return None
    vllm = situation.software.vllm or NEWEST_READ
    if model.bidirectional_images and contains(UNDERSTATED_IMAGES, vllm):
        return "image tokens that attend in both directions"
    if model.logits_soft_cap is not None:
        return "a soft cap on its attention logits"
    return None


@dataclass(frozen=True)
class OrderIsProved:
    """Causal decoder layers of a kind for which the other backends are reported or checked."""

    def refusal(self, situation: Situation) -> str | None:
        model = situation.model
        if model is None:
            return ModelKnown().refusal(situation)
        if model.encoder_only or model.encoder_decoder:
            return "nothing is reported for encoders with another order of attention backends"
        if model.has_alibi:
            return "nothing is reported for ALiBi with another order of attention backends"
        if model.attention_chunk_size:
            return (
                "nothing is reported for chunked local attention with another order of attention "
                "backends"
            )
        if model.bidirectional_images:
            return "only TRITON_ATTN takes image tokens that attend in both directions"
        return None

    def describe(self) -> str:
        return "a causal decoder without ALiBi, chunked attention or two-way image tokens"


@dataclass(frozen=True)
class OrderChangesSomething:
    """AITER's attention is among the candidates of this model."""

    def refusal(self, situation: Situation) -> str | None:
        found = so_far(situation)
        if any(name.startswith("ROCM_AITER") for name in found.valid):
            return None
        return found.why or "vLLM has no AITER backend that takes these attention layers"

    def describe(self) -> str:
        return "one of AITER's attention backends takes the layers"


def wide_groups(situation: Situation) -> bool:
    """More query heads to a KV head than ROCM_AITER_FA is reported with (Qwen3-235B: 16)."""
    model = situation.model
    if model is None or model.num_kv_heads <= 0:
        return False
    return model.num_heads > _LARGEST_MEASURED_GROUP * model.num_kv_heads


@dataclass(frozen=True)
class ModelTypeStartsWith:
    """The model is of this family, by its `model_type`."""

    prefix: str

    def refusal(self, situation: Situation) -> str | None:
        model = situation.model
        if model is None:
            return ModelKnown().refusal(situation)
        if model.model_type.startswith(self.prefix):
            return None
        return f"the model is {model.model_type}, not {self.prefix}"

    def describe(self) -> str:
        return f"model type {self.prefix}*"


@dataclass(frozen=True)
class ShuffledLayoutServes:
    """ROCM_AITER_FA is selected, and no layer needs a path that the shuffled layout lacks.

    The asserts of rocm_aiter_fa.py forward() (0.30 to 0.32), and the layouts that its kernel reads.
    """

    def refusal(self, situation: Situation) -> str | None:
        model, choices = situation.model, situation.choices
        if model is None:
            return ModelKnown().refusal(situation)
        if model.attention == "hybrid":
            return "hybrid models answer wrongly with the shuffled layout (vllm#39192)"
        if model.has_sinks:
            return "attention sinks end in an assertion with the shuffled layout"
        if model.sliding_window is not None:
            return "sliding windows end in an assertion with the shuffled layout"
        if choices.speculative:
            return "speculative decoding ends in an assertion with the shuffled layout"
        if choices.kv_offload or "kv_offloading_size" in situation.values:
            return "a KV connector stores blocks in another layout than the shuffled one"
        if choices.kv_cache_dtype.startswith("fp8"):
            return "an FP8 KV cache takes other scales with the shuffled layout: not proved"
        if choices.block_size not in (None, 16):
            return f"--block-size {choices.block_size}: the shuffled layout is tuned for 16 only"
        found = so_far(situation)
        if found.name != "ROCM_AITER_FA":
            return f"{found.name or 'no backend'} is selected, and only ROCM_AITER_FA reads it"
        return None

    def describe(self) -> str:
        return (
            "ROCM_AITER_FA selected; no sliding window, sinks, hybrid layers, speculative "
            "decoding, KV connector or FP8 KV cache; block size 16"
        )


@dataclass(frozen=True)
class BlockSizeRaises:
    """The user's --block-size alone leaves vLLM without an attention backend."""

    def refusal(self, situation: Situation) -> str | None:
        size = situation.choices.block_size
        if size is None:
            return "you gave no --block-size"
        if situation.decided.get("attention") or situation.decided.get("mla"):
            return "our own attention backend takes blocks of any size"
        found = so_far(situation)
        if not found.raises:
            return f"--block-size {size} is taken by {found.name or 'the backend in use'}"
        if not all("block_size not supported" in reasons for reasons in found.refusals.values()):
            return "the block size is not what keeps vLLM from selecting an attention backend"
        return None

    def describe(self) -> str:
        return "a --block-size that no candidate takes (most take multiples of 16 only)"


@dataclass(frozen=True)
class SparseMlaWithoutAiter:
    """Sparse MLA, which has one backend on ROCm, without the AITER that it calls."""

    def refusal(self, situation: Situation) -> str | None:
        model = situation.model
        if model is None:
            return ModelKnown().refusal(situation)
        if model.attention != "sparse_mla" or model.kv_lora_rank is None:
            return "the model has no sparse MLA of the DeepSeek-V3.2 kind"
        if situation.software.aiter is not None and situation.hardware.gfx in CDNA3_OR_NEWER:
            return "AITER is installed, which sparse MLA needs"
        return None

    def describe(self) -> str:
        return f"sparse MLA, and AITER not installed or the GPU none of {either(CDNA3_OR_NEWER)}"


@dataclass(frozen=True)
class MlaHeadsArePadded:
    """AITER's MLA decode pads the heads of each rank to 16."""

    def refusal(self, situation: Situation) -> str | None:
        heads = mla_heads_per_rank(situation)
        if heads is None:
            return "the model has no MLA"
        if heads >= _MLA_HEADS:
            return f"{heads} heads a rank are not fewer than {_MLA_HEADS}"
        name = so_far(situation).name
        if name != "ROCM_AITER_MLA":
            return f"{name or 'no backend'} is selected, which does not pad heads"
        if (
            situation.hardware.gfx == "gfx950"
            and not situation.choices.kv_cache_dtype.startswith("fp8")
            and _MLA_HEADS % heads == 0
            and (situation.variable("VLLM_ROCM_AITER_MLA_ASM_PADDING") or "auto").lower() != "asm"
        ):
            return f"AITER has a kernel for {heads} heads on gfx950 (up to 2 GiB of KV a layer)"
        return None

    def describe(self) -> str:
        return f"ROCM_AITER_MLA with fewer than {_MLA_HEADS} heads a rank, padded to {_MLA_HEADS}"


def mla_heads_per_rank(situation: Situation) -> int | None:
    """Query heads of one tensor-parallel rank, for models with dense MLA."""
    model = situation.model
    if model is None or model.attention != "mla":
        return None
    return max(model.num_heads // max(situation.choices.tensor_parallel_size, 1), 1)


def wider_layout(situation: Situation) -> tuple[int, int] | None:
    """(tensor, data parallel size) on as many GPUs with at least 16 MLA heads a rank, if any."""
    model, ranks = situation.model, situation.choices.tensor_parallel_size
    if model is None:
        return None
    for size in range(ranks - 1, 0, -1):
        fits = ranks % size == 0 and model.num_heads % (size * _MLA_HEADS) == 0
        if fits:
            return size, ranks // size * max(situation.choices.data_parallel_size, 1)
    return None


def offload_backend(situation: Situation) -> str | None:
    """The backend that vLLM selects for the model once a KV connector is in use."""
    found = predict_attention(
        situation,
        aiter_on=is_true(situation.variable("VLLM_ROCM_USE_AITER")),
        attention_order=tuple(
            filter(None, str(situation.values.get("attention_order", "")).split(","))
        ),
        kv_connector=True,
        kv_cache_dtype=situation.choices.kv_cache_dtype,
    )
    return found.name
