"""AITER, AMD's kernel library: on or off by architecture, and its sub-switches pinned."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy import model_conditions as model_is
from vllm_amdopt.policy.conditions import AITER_GFX
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.moe_selection import within
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.situation import SettingValue, Situation, is_true

AITER_MINIMUM = (0, 1, 20)
"""vLLM 0.30 to 0.32 call mla_decode_fwd(causal=...), which AITER has since 0.1.20, and name
0.1.21.post2 as their pin (v1/attention/backends/mla/rocm_aiter_mla.py)."""

RDNA4_GFX = ("gfx1200", "gfx1201")

_MASTER = "VLLM_ROCM_USE_AITER"


@dataclass(frozen=True)
class AiterOn:
    """AITER's master switch."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {f"env.{_MASTER}": "1"}

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return "VLLM_ROCM_USE_AITER=1"


@dataclass(frozen=True)
class SubSwitch:
    """One variable below the master switch, as vLLM's envs.py declares it.

    `default` is the text that gives the value vLLM uses where it is not set; `vllm` the versions
    that have it.
    """

    name: str
    default: str
    vllm: str | None = None


SUB_SWITCHES: tuple[SubSwitch, ...] = (
    SubSwitch("VLLM_ROCM_USE_AITER_CUSTOM_AR", "1"),
    SubSwitch("VLLM_ROCM_USE_AITER_LINEAR", "1"),
    SubSwitch("VLLM_ROCM_USE_AITER_LINEAR_HIPBMM", "0"),
    SubSwitch("VLLM_ROCM_USE_AITER_MOE", "1"),
    SubSwitch("VLLM_ROCM_USE_AITER_MOE_SITUV2_A8W4", "0", ">=0.30,<0.31"),
    SubSwitch("VLLM_ROCM_USE_AITER_MOE_SITUV2", "auto", ">=0.31"),
    SubSwitch("VLLM_ROCM_USE_AITER_RMSNORM", "1"),
    SubSwitch("VLLM_ROCM_USE_AITER_MLA", "1"),
    SubSwitch("VLLM_ROCM_USE_AITER_MHA", "1"),
    SubSwitch("VLLM_ROCM_USE_AITER_FP4_ASM_GEMM", "0", ">=0.31"),
    SubSwitch("VLLM_ROCM_USE_AITER_TRITON_SPARSE_MLA", "0", ">=0.32"),
    SubSwitch("VLLM_ROCM_USE_AITER_TRITON_ROPE", "0"),
    SubSwitch("VLLM_ROCM_USE_AITER_FP8BMM", "1"),
    SubSwitch("VLLM_ROCM_USE_AITER_FP4BMM", "1"),
    SubSwitch("VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION", "0"),
    SubSwitch("VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS", "0"),
    SubSwitch("VLLM_ROCM_USE_AITER_TRITON_GEMM", "1"),
)
"""VLLM_ROCM_USE_AITER_MOE_A4W4_DSV4 (since 0.32) is left out: its default is "not set"."""


def sub_switches(version: str | None) -> Mapping[str, str]:
    """Variable -> default in vLLM `version`; only what every version has where it is not known."""
    return {
        switch.name: switch.default
        for switch in SUB_SWITCHES
        if switch.vllm is None or (version is not None and within(switch.vllm, version))
    }


@dataclass(frozen=True)
class SubSwitchesPinned:
    """Every sub-switch at vLLM's default that neither the user nor an earlier rule has set."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {
            f"env.{name}": value
            for name, value in sub_switches(situation.software.vllm).items()
            if situation.variable(name) is None
        }

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return (
            "every VLLM_ROCM_USE_AITER_* variable of this vLLM that you and the other rules left "
            "unset, at the value that vLLM would use"
        )


@dataclass(frozen=True)
class AiterSetHere:
    """This plan has switched AITER on."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.decided.get("aiter") or situation.decided.get("aiter_rdna4"):
            return None
        return "this plan does not switch AITER on, so its sub-switches are left as they are"

    def describe(self) -> str:
        return "VLLM_ROCM_USE_AITER=1 set by this plan"


@dataclass(frozen=True)
class AiterAskedWithoutEffect:
    """The user's VLLM_ROCM_USE_AITER=1 does nothing on this machine."""

    def refusal(self, situation: Situation) -> str | None:
        if not is_true(situation.environment.get(_MASTER)):
            return "VLLM_ROCM_USE_AITER=1 is not set by you"
        return None if _no_effect(situation) else "VLLM_ROCM_USE_AITER=1 takes effect here"

    def describe(self) -> str:
        return "VLLM_ROCM_USE_AITER=1 set by you where vLLM ignores it"


def _no_effect(situation: Situation) -> str | None:
    """Why VLLM_ROCM_USE_AITER=1 does nothing here; None where it does something."""
    gfx = situation.hardware.gfx
    if situation.software.aiter is None:
        return when.AiterPresent().refusal(situation)
    if gfx in AITER_GFX or gfx in RDNA4_GFX:
        return None
    return f"vLLM uses AITER on CDNA3 and newer and on RDNA4 only, and this is {gfx}"


@dataclass(frozen=True)
class AiterIgnored:
    """Says that the variable does nothing."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        return f"you set VLLM_ROCM_USE_AITER=1, which has no effect: {_no_effect(situation)}"

    def describe(self) -> str:
        return "a note that VLLM_ROCM_USE_AITER=1 has no effect here"


AITER = Rule(
    name="aiter",
    sets=AiterOn(),
    seam="aiter_environment",
    level="safe",
    reason=(
        "AITER's kernels (RMSNorm, MoE, MLA, FP8 linear layers) are off by default in vLLM "
        "0.30 to 0.33, also in the official image"
    ),
    requires=(
        when.AmdGpu("AITER only runs on AMD GPUs"),
        when.GfxIn(AITER_GFX, "AITER in full needs CDNA3 or newer"),
        when.AiterPresent(),
        # The experts' format decides whether AITER=1 ends the server (rules/experts.py).
        model_is.ModelKnown(),
    ),
    default_when=(when.AiterAtLeast(AITER_MINIMUM),),
    yields_to=(when.VariableNotSet(_MASTER),),
    evidence=Evidence("reported", "in vllm#56945 (Qwen3.5-122B-FP8, MI325X): 1.7 to 3.7 times"),
    source=(
        "vllm#56945, vllm#48890, AMD's vLLM guide; vLLM 0.30 to 0.32 envs.py, _aiter_ops.py "
        "is_aiter_found_and_supported"
    ),
    remove_when="vLLM switches AITER on by itself (vllm#48890) or drops the variable",
)

AITER_RDNA4 = Rule(
    name="aiter_rdna4",
    sets=AiterOn(),
    seam="aiter_environment",
    level="opt-in",
    reason=(
        "on RDNA4 AITER has Triton kernels only: unified attention comes first, norm and FP8 "
        "quantization are fused; experts stay with Triton"
    ),
    requires=(
        when.AmdGpu("AITER only runs on AMD GPUs"),
        when.GfxIn(RDNA4_GFX, "this is for RDNA4"),
        when.AiterPresent(),
    ),
    default_when=(),
    yields_to=(when.VariableNotSet(_MASTER),),
    evidence=Evidence("predicted", "from vLLM's source; vllm#51136 and vllm#56021 report failures"),
    source=(
        "vLLM 0.30 to 0.32 platforms/rocm.py _get_backend_priorities, _aiter_ops.py "
        "is_rdna_aiter_enabled; vllm#51136, vllm#56021"
    ),
    remove_when="a measurement on RDNA4 says where it gains",
)

AITER_WITHOUT_EFFECT = Rule(
    name="aiter_without_effect",
    sets=AiterIgnored(),
    seam="plan",
    level="safe",
    reason="VLLM_ROCM_USE_AITER=1 does nothing without the library or on other architectures",
    requires=(when.AmdGpu("AITER only runs on AMD GPUs"), AiterAskedWithoutEffect()),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's source"),
    source="vLLM 0.30 to 0.32 _aiter_ops.py if_aiter_supported, is_rdna_aiter_enabled",
    remove_when="vLLM says so itself",
    action="advise",
)

AITER_SWITCHES = Rule(
    name="aiter_switches",
    sets=SubSwitchesPinned(),
    seam="aiter_environment",
    level="safe",
    reason=(
        "with every sub-switch written down, two runs differ in what is named and in nothing "
        "else, also where a newer vLLM changes a default"
    ),
    requires=(AiterSetHere(),),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's envs.py: the values are its defaults"),
    source="vLLM 0.30, 0.31 and 0.32 envs.py",
    remove_when="vLLM drops the variables (vllm#39357)",
)

RULES: tuple[Rule, ...] = (AITER, AITER_RDNA4, AITER_WITHOUT_EFFECT)
LAST: tuple[Rule, ...] = (AITER_SWITCHES,)
"""To be decided after all other rules: it takes what they left."""
