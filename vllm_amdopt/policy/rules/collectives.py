"""All-reduce: AITER's fused one, and QuickReduce, the quantized one."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy.conditions import aiter_in_force
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.situation import SettingValue, Situation, is_true

_CUSTOM_AR = "VLLM_ROCM_USE_AITER_CUSTOM_AR"
_QUICK = "VLLM_ROCM_QUICK_REDUCE_QUANTIZATION"
_CAST = "VLLM_ROCM_QUICK_REDUCE_CAST_BF16_TO_FP16"
_MINIMUM = "VLLM_ROCM_QUICK_REDUCE_MIN_SIZE_BYTES_MB"
_MAXIMUM = "VLLM_ROCM_QUICK_REDUCE_MAX_SIZE_BYTES_MB"

# --- all-reduce fused with RMSNorm --------------------------------------------------------------

_FUSES_WITHOUT_THE_PASS = "MiniMaxM3Sparse"
"""Architectures that begin so call the fused kernel themselves, whatever the configuration says
(models/minimax_m3/amd/model.py, fused_allreduce_gemma_rms_norm)."""


@dataclass(frozen=True)
class FusionOff:
    """The compiler pass that fuses all-reduce with RMSNorm off; AITER's plain all-reduce stays.

    Narrower than VLLM_ROCM_USE_AITER_CUSTOM_AR=0, which loses AITER's all-reduce altogether
    (reported to cost about 3 %: ROCm/aiter#4855). Models that call the fused kernel themselves
    need that nonetheless.
    """

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        values: dict[str, SettingValue] = {"fuse_allreduce_rms": False}
        model = situation.model
        if model is not None and model.architecture.startswith(_FUSES_WITHOUT_THE_PASS):
            values[f"env.{_CUSTOM_AR}"] = "0"
        return values

    def remark(self, situation: Situation) -> str | None:
        if f"env.{_CUSTOM_AR}" not in self.settings(situation):
            return None
        return "this model calls the fused kernel itself, so AITER's all-reduce is off as well"

    def describe(self) -> str:
        return (
            "pass_config.fuse_allreduce_rms=False (for MiniMax-M3 also "
            "VLLM_ROCM_USE_AITER_CUSTOM_AR=0)"
        )


@dataclass(frozen=True)
class AiterInForce:
    """vLLM runs with AITER on."""

    def refusal(self, situation: Situation) -> str | None:
        return None if aiter_in_force(situation) else "AITER is off, and with it this path"

    def describe(self) -> str:
        return "AITER on"


@dataclass(frozen=True)
class AiterAllReduceUsed:
    """AITER's all-reduce is not switched off: without it nothing is fused."""

    def refusal(self, situation: Situation) -> str | None:
        value = situation.environment.get(_CUSTOM_AR)
        if value is not None and not is_true(value):
            return f"{_CUSTOM_AR}={value} already keeps vLLM from fusing"
        if situation.choices.disable_custom_all_reduce:
            return "--disable-custom-all-reduce already keeps vLLM from fusing"
        return None

    def describe(self) -> str:
        return "AITER's all-reduce not switched off"


@dataclass(frozen=True)
class FusionNotChosen:
    """The user left pass_config.fuse_allreduce_rms alone."""

    def refusal(self, situation: Situation) -> str | None:
        chosen = situation.choices.fuse_allreduce_rms
        if chosen is None:
            return None
        return f"you set pass_config.fuse_allreduce_rms={chosen}, which stays"

    def describe(self) -> str:
        return "no pass_config.fuse_allreduce_rms given"


FUSED_ALL_REDUCE = Rule(
    name="fused_all_reduce",
    sets=FusionOff(),
    seam="fuse_allreduce_rms",
    level="guard",
    reason=(
        "AITER's one-stage all-reduce with RMSNorm is reported to be wrong on gfx942 on the first "
        "graph replay after an idle time"
    ),
    requires=(
        when.AmdGpu(),
        when.GfxIn(("gfx942",), "the report is on gfx942 alone"),
        when.TensorParallelAtLeast(2),
        AiterInForce(),
        AiterAllReduceUsed(),
    ),
    default_when=(),
    yields_to=(FusionNotChosen(),),
    evidence=Evidence("reported", "in ROCm/aiter#4888 and vllm#52150 (MI300X, MI325X, TP8)"),
    source=(
        "ROCm/aiter#4888, vllm#52150 (both open); vLLM 0.30 to 0.32 config/vllm.py "
        "enable_allreduce_rms_fusion, allreduce_rms_fusion.py, fused_allreduce_gemma_rms_norm.py"
    ),
    remove_when="ROCm/aiter#4888 is closed and the AITER minimum contains the fix",
)


@dataclass(frozen=True)
class FusionAsked:
    """The user asked for the fusion, and the model is compiled, which is when vLLM makes it."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.choices.fuse_allreduce_rms is not True:
            return "you did not set pass_config.fuse_allreduce_rms=True"
        if situation.choices.enforce_eager:
            return "with --enforce-eager nothing is compiled, so nothing is fused"
        return None

    def describe(self) -> str:
        return "pass_config.fuse_allreduce_rms=True given, and no --enforce-eager"


@dataclass(frozen=True)
class AiterNotInForce:
    """vLLM runs with AITER off."""

    def refusal(self, situation: Situation) -> str | None:
        return "AITER is on, and fuses them" if aiter_in_force(situation) else None

    def describe(self) -> str:
        return "AITER off"


@dataclass(frozen=True)
class FusionLeftOut:
    """The fusion that does not exist is not asked for."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {"fuse_allreduce_rms": False}

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return "pass_config.fuse_allreduce_rms=False"


FUSION_WITHOUT_AITER = Rule(
    name="fused_all_reduce_without_aiter",
    sets=FusionLeftOut(),
    seam="fuse_allreduce_rms",
    level="guard",
    action="repair",
    reason=(
        "without AITER vLLM has no such fusion on ROCm, and asking for it ends every worker in "
        "\"name 'AllReduceFusionPass' is not defined\""
    ),
    requires=(
        when.AmdGpu(),
        FusionAsked(),
        AiterNotInForce(),
        when.PatchAbsent("0004", "vLLM leaves the fusion out by itself"),
    ),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's source, and its pass manager run on a CPU"),
    source="vLLM 0.30 to 0.33 compilation/passes/pass_manager.py configure; patch 0004",
    remove_when="vLLM leaves out the fusion that it has not imported",
)

# --- QuickReduce --------------------------------------------------------------------------------

QUICK_REDUCE_CODECS = ("FP", "INT8", "INT6", "INT4", "INT3")
QUICK_REDUCE_RANKS = (2, 4, 8)
QUICK_REDUCE_MINIMUM_MIB: Mapping[tuple[str, int], tuple[int, ...]] = {
    ("float16", 2): (1, 2, 2, 1, 1),
    ("float16", 4): (1, 16, 4, 2, 2),
    ("float16", 8): (16, 4, 4, 2, 2),
    ("bfloat16", 2): (2, 8, 8, 8, 8),
    ("bfloat16", 4): (8, 64, 64, 16, 16),
    ("bfloat16", 8): (16, 2048, 2048, 2048, 2048),
}
"""Smallest message in MiB by (dtype, ranks), one entry a codec: `_QR_MIN_SIZE` in
quick_all_reduce.py, the same in vLLM 0.30, 0.31 and 0.32."""
_LARGEST_MIB = 2048  # qr_max_size of csrc/rocm/quickreduce


@dataclass(frozen=True)
class QuickReduceGate:
    """From which message size QuickReduce runs, or why it never does."""

    minimum_mib: int | None = None
    never: str | None = None
    casts: bool = False
    """bfloat16 is converted to float16."""


def quick_reduce_gate(situation: Situation) -> QuickReduceGate:
    """What vLLM's QuickAllReduce makes of the variables in force."""
    codec = situation.variable(_QUICK) or "NONE"
    ranks = situation.choices.tensor_parallel_size
    dtype = situation.dtype
    if codec not in QUICK_REDUCE_CODECS:
        return QuickReduceGate(never=f"{_QUICK}={codec} leaves it off")
    if situation.choices.disable_custom_all_reduce:
        return QuickReduceGate(never="--disable-custom-all-reduce switches it off too")
    if ranks not in QUICK_REDUCE_RANKS:
        return QuickReduceGate(never=f"it runs on 2, 4 or 8 ranks, and there are {ranks}")
    if codec == "INT3" and ranks != 2:
        return QuickReduceGate(never=f"INT3 runs on 2 ranks only, and there are {ranks}: use INT4")
    if dtype not in ("float16", "bfloat16"):
        return QuickReduceGate(never=f"it runs in float16 and bfloat16, not in {dtype}")
    cast = situation.variable(_CAST)
    casts = dtype == "bfloat16" and (cast is None or is_true(cast))
    table = QUICK_REDUCE_MINIMUM_MIB["float16" if casts else dtype, ranks]
    asked = _whole(situation.variable(_MINIMUM))
    largest = _whole(situation.variable(_MAXIMUM))
    minimum = table[QUICK_REDUCE_CODECS.index(codec)] if asked is None else asked
    if minimum >= (_LARGEST_MIB if largest is None else largest):
        return QuickReduceGate(
            never=(
                f"{codec} on {ranks} ranks in {dtype} waits for messages of {minimum} MiB: set "
                f"{_MINIMUM}, or {_CAST}=1 if float16 is wide enough for the model"
            )
        )
    return QuickReduceGate(minimum_mib=minimum, casts=casts)


def _whole(value: str | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


@dataclass(frozen=True)
class QuickReduceAsked:
    """The user asked for QuickReduce."""

    def refusal(self, situation: Situation) -> str | None:
        value = situation.environment.get(_QUICK)
        if value is None or value == "NONE":
            return f"{_QUICK} is not set"
        return None

    def describe(self) -> str:
        return f"{_QUICK} set by you"


@dataclass(frozen=True)
class QuickReduceWorthANote:
    """QuickReduce never runs as asked, or narrows bfloat16 to float16."""

    def refusal(self, situation: Situation) -> str | None:
        gate = quick_reduce_gate(situation)
        if gate.never is not None or gate.casts:
            return None
        return f"it runs for messages of {gate.minimum_mib} MiB and more"

    def describe(self) -> str:
        return "QuickReduce that never runs, or that converts bfloat16 to float16"


@dataclass(frozen=True)
class QuickReduceNote:
    """What becomes of the QuickReduce that was asked for."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        gate = quick_reduce_gate(situation)
        asked = f"{_QUICK}={situation.variable(_QUICK)}"
        if gate.never is not None:
            return f"{asked} never takes effect: {gate.never}"
        return (
            f"{asked} takes messages of {gate.minimum_mib} MiB and more{_tokens(situation, gate)} "
            f"and converts bfloat16 to float16, which can overflow to inf (vllm#55345): "
            f"{_CAST}=0 keeps bfloat16"
        )

    def describe(self) -> str:
        return "a note on the message size from which QuickReduce runs, and on float16's range"


def _tokens(situation: Situation, gate: QuickReduceGate) -> str:
    """ " (146 tokens)" where the model's width is known."""
    hidden = situation.model.hidden_size if situation.model else None
    if hidden is None or gate.minimum_mib is None:
        return ""
    return f" ({-(-gate.minimum_mib * 2**20 // (2 * hidden))} tokens)"


QUICK_REDUCE_CHECK = Rule(
    name="quick_reduce_check",
    sets=QuickReduceNote(),
    seam="plan",
    level="safe",
    reason="QuickReduce's gates are not visible in vLLM's log",
    requires=(when.AmdGpu(), QuickReduceAsked(), QuickReduceWorthANote()),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's source; overflow reported in vllm#55345"),
    source="vLLM 0.30 to 0.32 quick_all_reduce.py; vllm#55345",
    remove_when="vLLM logs the gate and guards float16's range",
    action="advise",
)


@dataclass(frozen=True)
class QuickReduceSizesBroken:
    """The sizes that the user gave end the server with a ValueError."""

    def refusal(self, situation: Situation) -> str | None:
        return None if broken_sizes(situation) else "the sizes fit"

    def describe(self) -> str:
        return "QuickReduce sizes that vLLM raises on"


def broken_sizes(situation: Situation) -> str | None:
    """What is wrong with the user's QuickReduce sizes; None where nothing is."""
    gate = situation.environment.get(_QUICK)
    if gate is not None and gate not in (*QUICK_REDUCE_CODECS, "NONE"):
        return f"{_QUICK}={gate} is not one of {', '.join(QUICK_REDUCE_CODECS)} or NONE"
    if gate in (None, "NONE") or situation.choices.tensor_parallel_size not in QUICK_REDUCE_RANKS:
        return None
    minimum = _whole(situation.environment.get(_MINIMUM))
    largest = _whole(situation.environment.get(_MAXIMUM))
    largest = _LARGEST_MIB if largest is None else largest
    if minimum is not None and minimum < 0:
        return f"{_MINIMUM}={minimum} is negative"
    if minimum is not None and minimum > largest:
        return f"{_MINIMUM}={minimum} is more than QuickReduce's largest message, {largest} MiB"
    return None


@dataclass(frozen=True)
class QuickReduceRefusal:
    """The sentence with which the server ends."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        return f"{broken_sizes(situation)}: correct or unset it"

    def describe(self) -> str:
        return "no start with QuickReduce variables that vLLM raises on"


QUICK_REDUCE_SIZES = Rule(
    name="quick_reduce_sizes",
    sets=QuickReduceRefusal(),
    seam="plan",
    level="guard",
    reason="vLLM raises a ValueError on them, in a worker",
    requires=(when.AmdGpu(), QuickReduceSizesBroken()),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's source"),
    source="vLLM 0.30 to 0.32 quick_all_reduce.py _get_qr_min_size, envs.py env_with_choices",
    remove_when="vLLM checks the variables before it starts workers",
    action="refuse",
)

QUICK_REDUCE_RECIPES: tuple[tuple[str, tuple[str, ...], int, str, str], ...] = (
    ("KimiK25For", ("gfx942", "gfx950"), 8, "INT4", "vllm-project/recipes Kimi-K2.5"),
    ("GptOssFor", ("gfx942", "gfx950"), 8, "INT4", "vllm-project/recipes gpt-oss"),
    ("DeepseekV4For", ("gfx950",), 8, "INT4", "InferenceX #2333"),
    ("MiniMaxM3Sparse", ("gfx950",), 8, "INT6", "vllm-project/recipes#581"),
)
"""(architecture begins with, gfx, ranks, codec, source): codecs published for a deployment."""


def quick_reduce_codec(situation: Situation) -> str | None:
    """The codec that a recipe names for this model, GPU and number of ranks, or None."""
    model = situation.model
    if model is None:
        return None
    for family, gfx, ranks, codec, _ in QUICK_REDUCE_RECIPES:
        if (
            model.architecture.startswith(family)
            and situation.hardware.gfx in gfx
            and situation.choices.tensor_parallel_size == ranks
        ):
            return codec
    return None


@dataclass(frozen=True)
class QuickReduceRecipe:
    """A recipe names a codec here."""

    def refusal(self, situation: Situation) -> str | None:
        if quick_reduce_codec(situation) is not None:
            return None
        return "no published recipe uses QuickReduce for this model, GPU and number of ranks"

    def describe(self) -> str:
        return "; ".join(
            f"{family}... on {when.either(gfx)} with {ranks} ranks ({source})"
            for family, gfx, ranks, _, source in QUICK_REDUCE_RECIPES
        )


@dataclass(frozen=True)
class QuickReduceOn:
    """The codec that the recipe names."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {f"env.{_QUICK}": quick_reduce_codec(situation) or "NONE"}

    def remark(self, situation: Situation) -> str | None:
        return "bfloat16 is converted to float16, which can overflow (vllm#55345)"

    def describe(self) -> str:
        return f"{_QUICK}=INT4 or INT6: lossy"


QUICK_REDUCE = Rule(
    name="quick_reduce",
    sets=QuickReduceOn(),
    seam="environment",
    level="opt-in",
    reason="large all-reduces send a third to a half of the bytes, at some accuracy",
    requires=(when.AmdGpu(), QuickReduceRecipe()),
    default_when=(),
    yields_to=(when.VariableNotSet(_QUICK), when.CustomAllReduceNotDisabled()),
    evidence=Evidence("reported", "in InferenceX #2333 (+3.7 to 5 %) and recipes#581 (+6 to 14 %)"),
    source="vllm-project/recipes, InferenceX #2333; vLLM 0.30 to 0.32 quick_all_reduce.py",
    remove_when="its accuracy and its gain are measured on the user's own model",
)

RULES: tuple[Rule, ...] = (
    FUSED_ALL_REDUCE,
    FUSION_WITHOUT_AITER,
    QUICK_REDUCE_CHECK,
    QUICK_REDUCE_SIZES,
    QUICK_REDUCE,
)
