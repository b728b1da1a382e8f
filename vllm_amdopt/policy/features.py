"""The features: what the plugin can put in vLLM's place, each declared once.

Switches, documents, `explain`, the start-up table and vLLM's compile-cache key are rendered from
these records. Serving defaults (settings, not code) are in `serving_rules`.
"""

from dataclasses import dataclass
from typing import Literal

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy import model_conditions as model_is

VLLM_RANGE = ">=0.30,<0.34"
"""The vLLM versions that this plugin is written for."""


@dataclass(frozen=True)
class Evidence:
    """What a claim rests on.

    `kind`: `measured` (a run record), `reported` (somebody else's measurement), `compiled`
    (machine code inspected, and executed by an emulator), `predicted` (a model or the source).
    """

    kind: Literal["measured", "reported", "compiled", "predicted"]
    source: str

    def __str__(self) -> str:
        return f"{self.kind} {self.source}"


@dataclass(frozen=True)
class Feature:
    """One thing that can be swapped.

    `requires`: hard conditions, it cannot run otherwise. `yields_to`: the user's own choices that
    win over it. `default_when`: soft conditions, on by default where they hold. `backend`: the
    --attention-backend name that asks for it outright. `seam`: key of the place in vLLM.
    """

    name: str
    swaps: str
    seam: str
    reason: str
    requires: tuple[when.Condition, ...]
    default_when: tuple[when.Condition, ...]
    yields_to: tuple[when.Condition, ...]
    numerics: Literal["identical", "reassociated", "lossy"]
    evidence: Evidence
    remove_when: str
    vllm: str = VLLM_RANGE
    backend: str | None = None

    @property
    def switch(self) -> str:
        """The environment variable that switches it."""
        return f"VLLM_AMDOPT_{self.name.upper()}"


_KERNEL_DTYPES = ("bfloat16", "float16", "float32")
_CACHE_DTYPES = ("auto", "bfloat16", "float16", "float32")
_QUANTIZED_TOO = (*_CACHE_DTYPES, "fp8", "fp8_e4m3")
# What the kernels are tested for: HEAD_SIZES, KV_LORA_RANKS and ROPE_SIZES of the operations.
_HEAD_SIZES = (32, 64, 80, 96, 128, 192, 256)
_KV_LORA_RANKS = (256, 512)
_ROPE_SIZES = (64,)
_KERNELS_RUN = (
    when.KernelTarget(("gfx942", "gfx950")),
    when.TritonPresent(),
    when.EngineDtype(),
    model_is.DtypeIn(_KERNEL_DTYPES),
)
_COMPILED = Evidence("compiled", "for gfx942 and gfx950; run as emulated machine code")


def _default_when(name: str) -> tuple[when.Condition, ...]:
    return (when.AnyOf((when.VirtualDevice(), when.CalibratedWin(name))),)


FEATURES: tuple[Feature, ...] = (
    Feature(
        name="attention",
        swaps=(
            "attention over the paged KV cache (MHA, GQA, MQA): split-KV decode and chunked "
            "prefill on own Triton kernels, as backend AMDOPT_ATTN"
        ),
        seam="attention_backend",
        reason="own kernels keep all compute units busy at small batches and long contexts",
        requires=(
            model_is.ModelKnown(),
            model_is.AttentionKindIn(("mha", "gqa", "mqa")),
            model_is.PlainCausalAttention(),
            model_is.HeadSizeIn(_HEAD_SIZES),
            model_is.CacheDtypeIn(_QUANTIZED_TOO),
            *_KERNELS_RUN,
        ),
        default_when=_default_when("attention"),
        yields_to=(when.BackendNotChosen("AMDOPT_ATTN"),),
        numerics="reassociated",
        evidence=_COMPILED,
        remove_when="vLLM's default on ROCm is measured as fast on gfx942 and gfx950",
        backend="AMDOPT_ATTN",
    ),
    Feature(
        name="mla",
        swaps=(
            "multi-head latent attention: absorbed decode on an own Triton kernel, as backend "
            "AMDOPT_MLA; prefill stays vLLM's"
        ),
        seam="mla_backend",
        reason="own kernel reads each latent row once for all heads, at any block size",
        requires=(
            model_is.ModelKnown(),
            model_is.AttentionKindIn(("mla",)),
            when.MlaNotDisabled(),
            model_is.LatentIn(_KV_LORA_RANKS, _ROPE_SIZES),
            model_is.CacheDtypeIn(_QUANTIZED_TOO),
            *_KERNELS_RUN,
        ),
        default_when=_default_when("mla"),
        yields_to=(when.BackendNotChosen("AMDOPT_MLA"),),
        numerics="reassociated",
        evidence=_COMPILED,
        remove_when="vLLM's MLA decode without AITER is measured as fast on gfx942 and gfx950",
        backend="AMDOPT_MLA",
    ),
    Feature(
        name="gemm",
        swaps="unquantized linear layers at small batches, on an own Triton GEMM",
        seam="unquantized_gemm",
        reason="at decode a linear layer is a walk over its weights, which split K spreads out",
        requires=(model_is.ModelKnown(), model_is.Unquantized(), *_KERNELS_RUN),
        default_when=_default_when("gemm"),
        yields_to=(),
        numerics="reassociated",
        evidence=_COMPILED,
        remove_when="vLLM dispatches small-batch linear layers to a kernel measured as fast",
    ),
    Feature(
        name="all_reduce",
        swaps="tensor-parallel all-reduce of small messages, by an own one-shot Triton kernel",
        seam="device_communicator",
        reason="small messages cost latency, and one kernel with one hand-shake has the least",
        requires=(
            when.TensorParallelAtLeast(2),
            when.TensorParallelAtMost(8),
            when.RanksShareCpuMemory(),
            *_KERNELS_RUN,
        ),
        default_when=_default_when("all_reduce"),
        yields_to=(when.CustomAllReduceNotDisabled(),),
        numerics="reassociated",
        evidence=_COMPILED,
        remove_when="vLLM's or AITER's custom all-reduce is measured as fast at these sizes",
    ),
)
