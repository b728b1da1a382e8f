"""Fusions that vLLM's compiler makes of a model's graph, onto our kernels."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.situation import SettingValue, Situation


@dataclass(frozen=True)
class FusedRope:
    """Both fusions, and the partition of the graph without which vLLM leaves them out."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {
            "fuse_rope_kvcache": True,
            "fuse_qk_norm_rope_kvcache": True,
            "use_inductor_graph_partition": True,
        }

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return (
            "pass_config.fuse_rope_kvcache=True, pass_config.fuse_qk_norm_rope_kvcache=True and "
            "use_inductor_graph_partition=True in the compilation configuration"
        )


@dataclass(frozen=True)
class OwnAttention:
    """AMDOPT_ATTN does the attention: the hooks are its own."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.decided.get("attention"):
            return None
        return "the fused kernel belongs to AMDOPT_ATTN, which is off (VLLM_AMDOPT_ATTENTION=on)"

    def describe(self) -> str:
        return "the feature `attention` on"


@dataclass(frozen=True)
class Compiled:
    """The model is compiled, which is when vLLM fuses."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.choices.enforce_eager:
            return "with --enforce-eager nothing is compiled, so nothing is fused"
        return None

    def describe(self) -> str:
        return "no --enforce-eager"


@dataclass(frozen=True)
class RopeFusionNotChosen:
    """The user left pass_config.fuse_rope_kvcache alone."""

    def refusal(self, situation: Situation) -> str | None:
        chosen = situation.choices.fuse_rope_kvcache
        if chosen is None:
            return None
        return f"you set pass_config.fuse_rope_kvcache={chosen}, which stays"

    def describe(self) -> str:
        return "no pass_config.fuse_rope_kvcache given"


FUSED_ROPE = Rule(
    name="fused_rope",
    sets=FusedRope(),
    seam="rope_fusion",
    level="opt-in",
    reason=(
        "one launch normalises (Qwen3), rotates and writes keys and values to the cache, in place "
        "of two or three"
    ),
    requires=(when.AmdGpu(), OwnAttention(), Compiled()),
    default_when=(),
    yields_to=(RopeFusionNotChosen(),),
    evidence=Evidence("compiled", "for gfx942 and gfx950; run as emulated machine code"),
    source=(
        "vLLM 0.32 config/compilation.py, compilation/passes/fusion/rope_kvcache_fusion.py and "
        "qk_norm_rope_kvcache_fusion.py; docs/kernels/rope_and_cache_write.md"
    ),
    remove_when="measured as a default, or as slower, on gfx942 and gfx950",
)

RULES: tuple[Rule, ...] = (FUSED_ROPE,)
