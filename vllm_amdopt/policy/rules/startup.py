"""Starting faster: vLLM's start-up plan, which keeps what memory profiling found."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.situation import SettingValue, Situation

_PLAN = "VLLM_ENABLE_STARTUP_PLAN"


@dataclass(frozen=True)
class PlanOn:
    """vLLM's own start-up plan on."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {f"env.{_PLAN}": "1"}

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return f"{_PLAN}=1"


@dataclass(frozen=True)
class PlanAsked:
    """The user switched the plan on."""

    def refusal(self, situation: Situation) -> str | None:
        value = situation.environment.get(_PLAN, "").strip()
        return f"{_PLAN} is not set" if value in ("", "0") else None

    def describe(self) -> str:
        return f"{_PLAN} set by you"


@dataclass(frozen=True)
class StalePlanAdvice:
    """What the plan does not notice, and what to do."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        return (
            f"{_PLAN}=1 keeps the KV cache size of an earlier start although "
            "--gpu-memory-utilization, variables of AITER's or AITER itself changed since: "
            "`vllm-amdopt patches apply 0006`, or delete startup_plan in VLLM_CACHE_ROOT after "
            "each such change"
        )

    def describe(self) -> str:
        return "a note on what the plan does not notice"


STARTUP_PLAN = Rule(
    name="startup_plan",
    sets=PlanOn(),
    seam="startup_plan",
    level="opt-in",
    reason="a restart with the same settings skips memory profiling",
    requires=(when.AmdGpu(), when.PatchApplied("0006")),
    default_when=(),
    yields_to=(when.VariableNotSet(_PLAN),),
    evidence=Evidence("reported", "in vllm#47388, on NVIDIA GPUs"),
    source="vllm#47388; vLLM 0.30 to 0.33 v1/worker/startup_plan.py; patch 0006",
    remove_when="vLLM switches its start-up plan on by itself",
)

STARTUP_PLAN_KEY = Rule(
    name="startup_plan_key",
    sets=StalePlanAdvice(),
    seam="startup_plan",
    level="guard",
    action="advise",
    reason="the start-up plan's fingerprint leaves out gpu_memory_utilization",
    requires=(
        when.AmdGpu(),
        PlanAsked(),
        when.PatchAbsent("0006", "the fingerprint is complete"),
    ),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's source, and its fingerprint computed on a CPU"),
    source="vLLM 0.30 to 0.33 v1/worker/startup_plan.py, config/cache.py compute_hash",
    remove_when="the fingerprint holds gpu_memory_utilization",
)

RULES: tuple[Rule, ...] = (STARTUP_PLAN, STARTUP_PLAN_KEY)
