"""Mixture-of-experts layers: AITER where it takes them, Triton where it does not, no crash."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy import model_conditions as model_is
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.moe_selection import (
    PADS_PLAIN_SHARDS,
    Experts,
    experts_of,
    predict_now,
    within,
)
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.situation import SettingValue, Situation, is_true

_EXPERTS = "VLLM_ROCM_USE_AITER_MOE"
_MASTER = "VLLM_ROCM_USE_AITER"
_LARGEST_PADDING = 4 / 3
"""Of a shard, padded against its own width: above that, Triton's exact shard is preferred."""


# --- shapes that AITER's kernels are known to fail on --------------------------------------------


@dataclass(frozen=True)
class BadShape:
    """A shape that AITER takes and then fails on; `None` fields match anything."""

    what: str
    source: str
    kind: str
    gfx: tuple[str, ...] = ("gfx942", "gfx950")
    widths: tuple[int, ...] | None = None
    num_experts: int | None = None
    model_types: tuple[str, ...] | None = None

    def matches(self, situation: Situation, experts: Experts) -> bool:
        model = situation.model
        return (
            model is not None
            and situation.hardware.gfx in self.gfx
            and experts.kind == self.kind
            and (self.widths is None or experts.width in self.widths)
            and (self.num_experts is None or model.num_experts == self.num_experts)
            and (self.model_types is None or model.model_type in self.model_types)
        )


BAD_SHAPES: tuple[BadShape, ...] = (
    BadShape(
        what="FP8 experts with one scale a tensor and shards of 192 or 384 have no kernel",
        source="ROCm/aiter#3202 (Hy3 with 4 and 8 ranks), vllm-project/recipes#620",
        kind="fp8",
        widths=(192, 384),
    ),
    BadShape(
        what="block-FP8 with 288 experts faults on gfx950",
        source="ROCm/aiter#5049 (GLM-5.3-Flash)",
        kind="fp8_block",
        gfx=("gfx950",),
        num_experts=288,
    ),
    BadShape(
        what="GLM-5's block-FP8 experts fault or hang on gfx942",
        source="ROCm/aiter#4783, vllm#57429 (GLM-5.2 and GLM-5.3 on MI325X)",
        kind="fp8_block",
        gfx=("gfx942",),
        model_types=("glm_moe_dsa",),
    ),
)


def bad_shape(situation: Situation) -> str | None:
    """Why AITER must not run these experts, with its source; None where nothing is known."""
    experts = experts_of(situation)
    if experts is None:
        return None
    for shape in BAD_SHAPES:
        if shape.matches(situation, experts):
            return f"{shape.what} ({shape.source})"
    # aiter_moe_intermediate_alignment, vLLM 0.32, which pads; the kernels reject the rest.
    tile = 64 if experts.width <= 192 else 128
    if (
        experts.kind == "plain"
        and experts.width % tile
        and not within(PADS_PLAIN_SHARDS, situation.software.vllm)
    ):
        return (
            f"unquantized shards of {experts.width} are not a multiple of AITER's tile of {tile}, "
            "and this vLLM does not pad them (vllm#55368)"
        )
    return None


# --- conditions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class HasExperts:
    """The model has experts whose width is known."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.model is None:
            return model_is.ModelKnown().refusal(situation)
        if not situation.model.num_experts:
            return "the model has no experts"
        if experts_of(situation) is None:
            return "the width of the model's experts is not known"
        return None

    def describe(self) -> str:
        return "a model with experts"


@dataclass(frozen=True)
class AiterExpertsAsked:
    """AITER is on for experts: by the user's variables, or by this plan."""

    def refusal(self, situation: Situation) -> str | None:
        if not is_true(situation.variable(_MASTER)):
            return "AITER is off"
        experts_switch = situation.variable(_EXPERTS)
        if experts_switch is None or is_true(experts_switch):
            return None
        return f"{_EXPERTS}={experts_switch} keeps AITER from the experts"

    def describe(self) -> str:
        return "AITER on, for experts too"


@dataclass(frozen=True)
class AiterEndsTheServer:
    """vLLM would end at load because AITER does not take the experts."""

    def refusal(self, situation: Situation) -> str | None:
        return None if predict_now(situation).raises else "vLLM finds a kernel for these experts"

    def describe(self) -> str:
        return "experts that vLLM's selection ends the server for"


@dataclass(frozen=True)
class PaddingGivesAiter:
    """`--moe-backend aiter` pads these experts to whole blocks, by a third at most."""

    def refusal(self, situation: Situation) -> str | None:
        selection = predict_now(situation, moe_backend="aiter")
        if selection.backend != "AITER":
            return f"padding does not help: {(selection.raises or 'not selected').rstrip('.')}"
        known = bad_shape(situation)
        if known is not None:
            return known
        experts = experts_of(situation)
        if experts is not None and experts.padded > _LARGEST_PADDING * experts.width:
            return (
                f"shards of {experts.width} would be padded to {experts.padded}, more than by a "
                "third: Triton runs them as they are"
            )
        return None

    def describe(self) -> str:
        return (
            "block-FP8 shards that --moe-backend aiter pads by at most a third (no expert "
            "parallelism, no LoRA, vLLM's own fp8 format)"
        )


@dataclass(frozen=True)
class TritonIsSafer:
    """AITER fails on these experts, at load or later, and without it vLLM finds a kernel."""

    def refusal(self, situation: Situation) -> str | None:
        now = predict_now(situation)
        without = predict_now(situation, aiter_moe=False)
        if without.raises is not None:
            return f"without AITER vLLM ends as well: {without.raises.rstrip('.')}"
        if now.raises is not None:
            return None
        if now.backend != "AITER" or bad_shape(situation) is None:
            return "nothing is known against AITER for these experts"
        return None

    def describe(self) -> str:
        return "experts that AITER refuses or is known to fail on, and Triton takes"


@dataclass(frozen=True)
class AiterBackendNotNamed:
    """The user did not ask for --moe-backend aiter by name."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.choices.moe_backend != "aiter":
            return None
        return "you gave --moe-backend aiter, which stays"

    def describe(self) -> str:
        return "no --moe-backend aiter given"


@dataclass(frozen=True)
class MoeBackendNotChosen:
    """The user gave no --moe-backend."""

    def refusal(self, situation: Situation) -> str | None:
        chosen = situation.choices.moe_backend
        if chosen is None or chosen == "auto":
            return None
        return f"you gave --moe-backend {chosen}, which stays"

    def describe(self) -> str:
        return "no --moe-backend given"


# --- settings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaddedAiterExperts:
    """AITER's experts by name, which makes vLLM pad their shards."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {"moe_backend": "aiter"}

    def remark(self, situation: Situation) -> str | None:
        experts = experts_of(situation)
        if experts is None:
            return None
        return f"shards of {experts.width} are padded to {experts.padded}"

    def describe(self) -> str:
        return "--moe-backend aiter"


@dataclass(frozen=True)
class TritonExperts:
    """AITER off for experts alone."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {f"env.{_EXPERTS}": "0"}

    def remark(self, situation: Situation) -> str | None:
        now = predict_now(situation)
        if now.raises is not None:
            return f"vLLM would end with: {now.raises.rstrip('.')}"
        return bad_shape(situation)

    def describe(self) -> str:
        return f"{_EXPERTS}=0: Triton runs the experts, AITER the rest"


@dataclass(frozen=True)
class NoKernelForExperts:
    """The sentence with which the server ends."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        raises = (predict_now(situation).raises or "").rstrip(".")
        return f"vLLM cannot load this model's experts so: {raises}; {_way_out(situation)}"

    def describe(self) -> str:
        return "no start, with the sentence that says which layout has a kernel"


def _way_out(situation: Situation) -> str:
    experts, choices, model = experts_of(situation), situation.choices, situation.model
    if choices.moe_backend not in (None, "auto"):
        return f"leave out --moe-backend {choices.moe_backend}"
    if experts is None or model is None or not model.moe_intermediate_size:
        return "use another quantization of the model"
    step = experts.block[0] if experts.block else 1
    size = model.moe_intermediate_size
    fitting = [
        ranks for ranks in (8, 4, 2, 1) if ranks < experts.ranks and size % (ranks * step) == 0
    ]
    if not fitting:
        return "use another quantization of the model"
    smaller = f" or --tensor-parallel-size {fitting[0]}" if choices.data_parallel_size <= 1 else ""
    return f"use --enable-expert-parallel{smaller}"


# --- the rules -----------------------------------------------------------------------------------

PADDED_EXPERTS = Rule(
    name="padded_experts",
    sets=PaddedAiterExperts(),
    seam="moe_backend",
    level="opt-in",
    reason=(
        "with AITER on vLLM refuses block-FP8 shards that are not a multiple of 128 instead of "
        "falling back, but pads them where the backend is named"
    ),
    requires=(
        when.AmdGpu(),
        HasExperts(),
        AiterExpertsAsked(),
        AiterEndsTheServer(),
        PaddingGivesAiter(),
    ),
    default_when=(),
    yields_to=(MoeBackendNotChosen(),),
    evidence=Evidence(
        "reported",
        "for AITER's block-FP8 experts against Triton's in vllm#56945 (MI325X); with padding "
        "nobody has published a measurement",
    ),
    source=(
        "vLLM 0.31 and 0.32 oracle/fp8.py resolve_fp8_moe_weight_block_shape, "
        "pad_tp_shard_to_weight_blocks; vllm#55867, ROCm/ATOM#1944"
    ),
    remove_when="vLLM pads without being asked, or falls back to Triton",
    vllm=">=0.31,<0.34",
)

AITER_EXPERTS_OFF = Rule(
    name="aiter_experts_off",
    sets=TritonExperts(),
    seam="aiter_environment",
    level="guard",
    reason=(
        "AITER's experts fail on this shape, so Triton runs the experts and AITER stays on for the "
        "rest of the model"
    ),
    requires=(when.AmdGpu(), HasExperts(), AiterExpertsAsked(), TritonIsSafer()),
    default_when=(),
    yields_to=(AiterBackendNotNamed(),),
    evidence=Evidence("reported", "in ROCm/aiter#3202, #5049, #4783; executed: vLLM's own oracle"),
    source=(
        "vLLM 0.30 to 0.32 oracle/fp8.py select_fp8_moe_backend (an AITER variable that is set is "
        "binding), 0.30 oracle/unquantized.py; ROCm/aiter#3202, #5049, #4783, vllm#57429, "
        "vllm#55368"
    ),
    remove_when="vLLM falls back to Triton by itself and the AITER issues are closed",
    action="repair",
)

EXPERTS_REFUSED = Rule(
    name="experts_refused",
    sets=NoKernelForExperts(),
    seam="plan",
    level="guard",
    reason="no kernel takes these experts, with AITER or without",
    requires=(when.Instinct(), HasExperts(), AiterEndsTheServer()),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's oracles; vllm#48173 reports it"),
    source=(
        "vLLM 0.30 to 0.32 validate_fp8_block_shape_moe in the fp8, compressed-tensors and Quark "
        "methods; vllm#48173"
    ),
    remove_when="every format is refined or padded as the fp8 method does",
    action="refuse",
)

RULES: tuple[Rule, ...] = (PADDED_EXPERTS, AITER_EXPERTS_OFF, EXPERTS_REFUSED)
