"""AITER, AMD's kernel library, on or off by architecture, and what of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy import model_conditions as model_is
from vllm_amdopt.policy.conditions import AITER_GFX
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.situation import SettingValue, Situation, is_true

AITER_MINIMUM = (0, 1, 20)
"""vLLM 0.32 calls mla_decode_fwd(causal=...), which AITER has since 0.1.20, and names
0.1.21.post2 as its pin (v1/attention/backends/mla/rocm_aiter_mla.py)."""

_FP8_MOE_GROUP = 128  # AITER's block-FP8 MoE takes shards of a multiple of the scale block


@dataclass(frozen=True)
class AiterSettings:
    """AITER on; on gfx942 with tensor parallelism without its custom all-reduce.

    With it, vLLM fuses all-reduce and RMSNorm through AITER's one-stage kernel, which is reported
    to give wrong results on gfx942 after idle times (ROCm/aiter#4888, vllm#52150, both open).
    Without it the fusion pass switches itself off (compilation/passes/fusion/
    allreduce_rms_fusion.py) and vLLM's own all-reduce runs; that is reported to cost about 3 %
    (ROCm/aiter#4855).
    """

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        values: dict[str, SettingValue] = {"env.VLLM_ROCM_USE_AITER": "1"}
        if (
            situation.hardware.gfx == "gfx942"
            and situation.choices.tensor_parallel_size > 1
            and "VLLM_ROCM_USE_AITER_CUSTOM_AR" not in situation.environment
        ):
            values["env.VLLM_ROCM_USE_AITER_CUSTOM_AR"] = "0"
        return values

    def remark(self, situation: Situation) -> str | None:
        if "env.VLLM_ROCM_USE_AITER_CUSTOM_AR" not in self.settings(situation):
            return None
        return "its all-reduce fused with RMSNorm is reported wrong on gfx942 (ROCm/aiter#4888)"

    def describe(self) -> str:
        return (
            "VLLM_ROCM_USE_AITER=1; on gfx942 with tensor parallelism also "
            "VLLM_ROCM_USE_AITER_CUSTOM_AR=0 (wrong results reported: ROCm/aiter#4888)"
        )


@dataclass(frozen=True)
class AiterTakesFp8Experts:
    """No FP8 experts whose shard AITER refuses: an explicit AITER=1 then fails at load.

    vLLM's oracle (fused_moe/oracle/fp8.py, 0.30 to 0.33) makes AITER mandatory for FP8 experts
    once the variable is set, instead of falling back to Triton.
    """

    def refusal(self, situation: Situation) -> str | None:
        model, choices = situation.model, situation.choices
        if model is None:
            return model_is.ModelKnown().refusal(situation)
        moe_switch = situation.environment.get("VLLM_ROCM_USE_AITER_MOE")
        fp8 = model.fp8_weights or (choices.quantization or "").startswith("fp8")
        if not (model.num_experts and fp8) or (moe_switch is not None and not is_true(moe_switch)):
            return None
        if model.weight_block_size is None or model.quantization != "fp8":
            return (
                "FP8 experts other than block-FP8 are not proved with AITER, and with AITER on "
                "vLLM fails at load instead of falling back"
            )
        if choices.expert_parallel or model.moe_intermediate_size is None:
            ranks = 1
        else:
            # vLLM shards experts over all data-parallel ranks too only with expert parallelism.
            ranks = choices.tensor_parallel_size
        if model.moe_intermediate_size and model.moe_intermediate_size % (ranks * _FP8_MOE_GROUP):
            return (
                f"block-FP8 experts of width {model.moe_intermediate_size} on {ranks} ranks are "
                f"not a multiple of {_FP8_MOE_GROUP} each, and with AITER on vLLM fails at load "
                "instead of falling back: use --enable-expert-parallel or a smaller "
                "--tensor-parallel-size to get AITER"
            )
        return None

    def describe(self) -> str:
        return (
            "no FP8 experts that AITER refuses (block-FP8 shards must be multiples of "
            f"{_FP8_MOE_GROUP})"
        )


AITER = Rule(
    name="aiter",
    sets=AiterSettings(),
    seam="aiter_environment",
    level="safe",
    reason=(
        "AITER's kernels (RMSNorm, MoE, MLA, FP8 linear layers) are off by default in vLLM "
        "0.30 to 0.33, also in the official image"
    ),
    requires=(
        when.AmdGpu("AITER only runs on AMD GPUs"),
        when.GfxIn(AITER_GFX, "vLLM uses AITER on CDNA3 and newer only"),
        when.AiterPresent(),
        AiterTakesFp8Experts(),
    ),
    default_when=(when.AiterAtLeast(AITER_MINIMUM),),
    yields_to=(when.VariableNotSet("VLLM_ROCM_USE_AITER"),),
    evidence=Evidence("reported", "in vllm#56945 (Qwen3.5-122B-FP8, MI325X): 1.7 to 3.7 times"),
    source=(
        "vllm#56945, vllm#48890, AMD's vLLM guide; ROCm/aiter#4888, vllm#52150; vLLM 0.32 "
        "envs.py, oracle/fp8.py, allreduce_rms_fusion.py"
    ),
    remove_when="vLLM switches AITER on by itself (vllm#48890) or drops the variable",
)

RULES: tuple[Rule, ...] = (AITER,)
