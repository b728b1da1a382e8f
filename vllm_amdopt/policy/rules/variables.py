"""Environment variables outside AITER: what bare metal lacks, and what no longer does anything."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.moe_selection import within
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.situation import SettingValue, Situation, is_true


@dataclass(frozen=True)
class BareMetalDefaults:
    """What the vLLM image sets and a plain installation does not.

    HIP reads HIP_FORCE_DEV_KERNARG when its runtime starts, RCCL reads NCCL_MIN_NCHANNELS when a
    communicator is made: both after the plugin has run, in the engine's process and the workers.
    Two of AMD's list are left out: TORCH_BLAS_PREFER_HIPBLASLT, because PyTorch prefers hipBLASLt
    on Instinct by itself and reads the variable when torch is imported, before us; and
    SAFETENSORS_FAST_GPU, which neither safetensors nor vLLM reads any more.
    """

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        values: dict[str, SettingValue] = {"env.HIP_FORCE_DEV_KERNARG": "1"}
        ranks = situation.choices.tensor_parallel_size
        # Batch invariance sets one channel itself (determinism/batch_invariant.py).
        if ranks > 1 and not is_true(situation.environment.get("VLLM_BATCH_INVARIANT")):
            values["env.NCCL_MIN_NCHANNELS"] = "112"
        return {
            name: value
            for name, value in values.items()
            if name.removeprefix("env.") not in situation.environment
        }

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return "HIP_FORCE_DEV_KERNARG=1; with tensor parallelism also NCCL_MIN_NCHANNELS=112"


@dataclass(frozen=True)
class SomethingLeftToSet:
    """The user has not set all of them already."""

    def refusal(self, situation: Situation) -> str | None:
        if BareMetalDefaults().settings(situation):
            return None
        return "you set these variables yourself, and they stay"

    def describe(self) -> str:
        return "not all of these variables set"


ENVIRONMENT = Rule(
    name="environment",
    sets=BareMetalDefaults(),
    seam="environment",
    level="safe",
    reason=(
        "AMD recommends this for vLLM on Instinct, and vLLM itself does not set it (its ROCm image "
        "has HIP_FORCE_DEV_KERNARG alone)"
    ),
    requires=(when.AmdGpu(), when.Instinct()),
    default_when=(),
    yields_to=(SomethingLeftToSet(),),
    evidence=Evidence("reported", "in AMD's vLLM V1 performance guide (2 to 3 us a launch)"),
    source="AMD, vLLM V1 performance optimization; no use in vLLM 0.30 to 0.32 outside tests",
    remove_when="ROCm makes them its defaults",
)

# --- variables that do nothing -------------------------------------------------------------------


@dataclass(frozen=True)
class DeadVariable:
    """A variable that a vLLM no longer reads; `instead` ends the sentence about it."""

    name: str
    instead: str
    dead_in: str = ">=0.30"


_ATTENTION = "--attention-backend chooses the attention"

DEAD_VARIABLES: tuple[DeadVariable, ...] = (
    DeadVariable("VLLM_ATTENTION_BACKEND", "use --attention-backend"),
    DeadVariable("VLLM_USE_TRITON_FLASH_ATTN", f"{_ATTENTION}, also for prefill"),
    DeadVariable("VLLM_V1_USE_PREFILL_DECODE_ATTENTION", "--attention-backend ROCM_ATTN is it"),
    DeadVariable(
        "VLLM_ROCM_CUSTOM_PAGED_ATTN", "ROCM_ATTN decides by shape; --attention-backend avoids it"
    ),
    DeadVariable("VLLM_USE_ROCM_CUSTOM_PAGED_ATTN", _ATTENTION),
    DeadVariable("VLLM_USE_ROCM_FP8_FLASH_ATTN", "use --kv-cache-dtype fp8"),
    DeadVariable("VLLM_ROCM_USE_AITER_PAGED_ATTN", "--attention-backend ROCM_AITER_FA is it"),
    DeadVariable(
        "VLLM_USE_AITER_UNIFIED_ATTENTION", "use --attention-backend ROCM_AITER_UNIFIED_ATTN"
    ),
    DeadVariable(
        "VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION",
        "it is read, but no selection asks for it: use --attention-backend ROCM_AITER_UNIFIED_ATTN",
    ),
    DeadVariable("VLLM_ROCM_USE_AITER_FUSED_MOE_A16W4", "VLLM_ROCM_USE_AITER_MOE covers it"),
    DeadVariable("VLLM_ROCM_USE_AITER_2STAGE_MOE", "VLLM_ROCM_USE_AITER_MOE covers it"),
    DeadVariable("VLLM_ROCM_USE_AITER_ASMMOE", "VLLM_ROCM_USE_AITER_MOE covers it"),
    DeadVariable("VLLM_ROCM_USE_AITER_FP8_BLOCK_SCALED_MOE", "VLLM_ROCM_USE_AITER_MOE covers it"),
    DeadVariable("VLLM_ROCM_USE_AITER_BLOCK_GEMM", "VLLM_ROCM_USE_AITER_LINEAR covers it"),
    DeadVariable("VLLM_ROCM_USE_AITER_TOPK_SAMPLER", "nothing replaces it"),
    DeadVariable("VLLM_USE_AITER", "use VLLM_ROCM_USE_AITER"),
    DeadVariable(
        "VLLM_ROCM_USE_AITER_MOE_SITUV2_A8W4",
        "use VLLM_ROCM_USE_AITER_MOE_SITUV2=a8w4",
        ">=0.31",
    ),
    DeadVariable("VLLM_USE_ROCM_SKINNY_GEMM", "use VLLM_ROCM_USE_SKINNY_GEMM"),
    DeadVariable("VLLM_FP8_PADDING", "use VLLM_ROCM_FP8_PADDING"),
    DeadVariable("VLLM_MOE_PADDING", "use VLLM_ROCM_MOE_PADDING"),
    DeadVariable("VLLM_SCHED_PREFILL_KVC_FREEPCT", "nothing replaces it"),
    DeadVariable("VLLM_USE_V1", "vLLM has no other engine"),
    DeadVariable("VLLM_FLASH_ATTN_VERSION", "use --attention-config"),
    DeadVariable("VLLM_ALL2ALL_BACKEND", "use --all2all-backend"),
    DeadVariable("VLLM_TORCH_PROFILER_DIR", "use --profiler-config"),
    DeadVariable("SAFETENSORS_FAST_GPU", "safetensors does not read it any more"),
)
"""Searched for in every Python file of vLLM 0.30, 0.31 and 0.32."""


def dead_variables(situation: Situation) -> tuple[DeadVariable, ...]:
    """Those that are set and that the installed vLLM does not act on."""
    return tuple(
        dead
        for dead in DEAD_VARIABLES
        if dead.name in situation.environment and within(dead.dead_in, situation.software.vllm)
    )


@dataclass(frozen=True)
class DeadVariablesSet:
    """At least one of them is set."""

    def refusal(self, situation: Situation) -> str | None:
        return None if dead_variables(situation) else "no variable is set that does nothing"

    def describe(self) -> str:
        return "a variable set that this vLLM does not act on"


@dataclass(frozen=True)
class DeadVariablesNamed:
    """Each with what replaces it."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        found = dead_variables(situation)
        return "without effect in this vLLM: " + "; ".join(
            f"{dead.name} ({dead.instead})" for dead in found
        )

    def describe(self) -> str:
        return "a note that names the variables without effect and what replaces them"


DEAD = Rule(
    name="dead_variables",
    sets=DeadVariablesNamed(),
    seam="plan",
    level="safe",
    reason="guides and papers still name variables that vLLM dropped without an error",
    requires=(DeadVariablesSet(),),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's source"),
    source="vLLM 0.30, 0.31 and 0.32 envs.py and a search of all their files",
    remove_when="vLLM names the replacement itself",
    action="advise",
)

RULES: tuple[Rule, ...] = (ENVIRONMENT, DEAD)
