"""The attention backend that is selected, and the block size that it takes."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy import model_conditions as model_is
from vllm_amdopt.policy.conditions import aiter_in_force
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.situation import SettingValue, Situation, is_true


@dataclass(frozen=True)
class BlockSizeOne:
    """One token per KV cache block."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {"block_size": 1}

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return "block size 1"


@dataclass(frozen=True)
class MlaBackendTakesBlockSizeOne:
    """The MLA backend that will be selected takes blocks of one token."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.choices.attention_backend == "ROCM_AITER_MLA":
            return None
        if situation.decided.get("mla", False):
            return None
        chosen = situation.choices.attention_backend
        if chosen is not None:
            return f"--attention-backend {chosen} is not known to take blocks of one token"
        mla_switch = situation.environment.get("VLLM_ROCM_USE_AITER_MLA")
        if aiter_in_force(situation) and (mla_switch is None or is_true(mla_switch)):
            return None
        if situation.hardware.kind == "amd":
            return (
                "without AITER vLLM selects TRITON_MLA, which needs multiples of 16 (block size 1 "
                "is a ValueError in vLLM 0.32)"
            )
        return "vLLM's own MLA backend is selected here, and it keeps its own block size"

    def describe(self) -> str:
        return "the selected MLA backend takes it: AMDOPT_MLA, or ROCM_AITER_MLA with AITER on"


MLA_BLOCK_SIZE = Rule(
    name="mla_block_size",
    sets=BlockSizeOne(),
    seam="block_size",
    level="safe",
    reason=(
        "MLA decode kernels read the cache token by token; vLLM >=0.30's AITER backend "
        "flattens pages itself, so there block size 1 saves the expansion and is not required"
    ),
    requires=(
        model_is.ModelKnown(),
        model_is.AttentionKindIn(("mla",)),
        when.MlaNotDisabled(),
        MlaBackendTakesBlockSizeOne(),
    ),
    default_when=(),
    yields_to=(when.BlockSizeNotChosen(),),
    evidence=Evidence(
        "reported", "in arXiv 2603.10031 (MI325X, vLLM 0.14.1); near-identical speed since"
    ),
    source=(
        "vLLM 0.32 rocm_aiter_mla.py (any size), triton_mla.py (multiples of 16); "
        "vLLM blog 2026-02-27"
    ),
    remove_when="no supported MLA backend gains from it",
)

RULES: tuple[Rule, ...] = (MLA_BLOCK_SIZE,)
