"""Recipes for single model families, as far as they are not about attention.

Looked at and found needless in vLLM 0.30 to 0.32: `--quantization deepseek_v4_fp8` for DeepSeek-V4
(its quant_config.py takes the name by itself) and `--moe-backend aiter` for it on gfx950 (with
AITER on the oracle takes AITER_MXFP4_BF16 first).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy import model_conditions as model_is
from vllm_amdopt.policy.conditions import aiter_in_force
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.rules.collectives import AiterAllReduceUsed, AiterInForce, FusionNotChosen
from vllm_amdopt.policy.rules.experts import MoeBackendNotChosen
from vllm_amdopt.policy.situation import SettingValue, Situation, is_true

# --- vision towers ------------------------------------------------------------------------------

ENCODERS_BY_DATA: tuple[str, ...] = (
    "CohereCompassForConditionalGeneration",
    "ColQwen3",
    "ColQwen3_5",
    "Cosmos3EdgeForConditionalGeneration",
    "Cosmos3ForConditionalGeneration",
    "DeepseekV41ForCausalLM",
    "Dots3NoteForCausalLM",
    "DotsOCRForCausalLM",
    "Eagle2_5_VLForConditionalGeneration",
    "Exaone4_5_ForConditionalGeneration",
    "Glm4vForConditionalGeneration",
    "Glm4vMoeForConditionalGeneration",
    "Glm5NextForConditionalGeneration",
    "GlmOcrForConditionalGeneration",
    "H2OVLChatModel",
    "InternS1ProForConditionalGeneration",
    "InternS2MobiusForConditionalGeneration",
    "InternS2PreviewForConditionalGeneration",
    "InternVLChatModel",
    "IsaacForConditionalGeneration",
    "JinaVLForRanking",
    "KimiK25ForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
    "KimiVLForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "MiniCPMO",
    "MiniCPMV",
    "MiniCPMV4_6ForConditionalGeneration",
    "MiniMaxM3SparseForConditionalGeneration",
    "NVLM_D",
    "OpenCUAForConditionalGeneration",
    "OpsColQwen3Model",
    "QianfanOCRForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3VLNemotronEmbedModel",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen4ExpForConditionalGeneration",
    "Step3VLForConditionalGeneration",
    "Step3p7ForConditionalGeneration",
    "StepVLForConditionalGeneration",
)
"""Architectures whose class has `supports_encoder_tp_data`, itself or from a base, in vLLM 0.30,
0.31 and 0.32 alike. With any other vLLM warns and falls back to "weights"."""


@dataclass(frozen=True)
class EncoderTakesData:
    """The model has a vision tower that runs with a copy on every rank."""

    def refusal(self, situation: Situation) -> str | None:
        model = situation.model
        if model is None:
            return model_is.ModelKnown().refusal(situation)
        if model.has_vision and model.architecture in ENCODERS_BY_DATA:
            return None
        return "the model has no vision tower that vLLM runs data-parallel"

    def describe(self) -> str:
        return "a vision tower that vLLM can run data-parallel (supports_encoder_tp_data)"


@dataclass(frozen=True)
class EncoderModeNotChosen:
    """The user gave no --mm-encoder-tp-mode."""

    def refusal(self, situation: Situation) -> str | None:
        chosen = situation.choices.mm_encoder_tp_mode
        return None if chosen is None else f"you gave --mm-encoder-tp-mode {chosen}, which stays"

    def describe(self) -> str:
        return "no --mm-encoder-tp-mode given"


@dataclass(frozen=True)
class EncoderByData:
    """The vision tower whole on every rank, images shared out."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {"mm_encoder_tp_mode": "data"}

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return "--mm-encoder-tp-mode data"


VISION_ENCODER = Rule(
    name="vision_encoder",
    sets=EncoderByData(),
    seam="mm_encoder_tp_mode",
    level="safe",
    reason=(
        "a vision tower is too small to cut: whole on every rank its layers need no all-reduce, "
        "at the price of its weights on every GPU"
    ),
    requires=(when.AmdGpu(), when.TensorParallelAtLeast(2), EncoderTakesData()),
    default_when=(),
    yields_to=(EncoderModeNotChosen(),),
    evidence=Evidence("reported", "in vllm-project/recipes (Qwen3-VL, Kimi-K2.5) and vLLM's docs"),
    source="vllm-project/recipes; vLLM 0.30 to 0.32 config/model.py, supports_encoder_tp_data",
    remove_when="vLLM makes it the default",
)

# --- shared ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArchitectureBegins:
    """The model's architecture begins with this name."""

    name: str

    def refusal(self, situation: Situation) -> str | None:
        model = situation.model
        if model is None:
            return model_is.ModelKnown().refusal(situation)
        if model.architecture.startswith(self.name):
            return None
        return f"this is for {self.name}, the model is a {model.architecture}"

    def describe(self) -> str:
        return f"architecture {self.name}..."


@dataclass(frozen=True)
class Variable:
    """One environment variable."""

    name: str
    value: str

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {f"env.{self.name}": self.value}

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return f"{self.name}={self.value}"


# --- MiniMax-M3 -----------------------------------------------------------------------------------

_FUSE_SHARED = "VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS"

MINIMAX_M3_QUEUES = Rule(
    name="minimax_m3_queues",
    sets=Variable("GPU_MAX_HW_QUEUES", "2"),
    seam="environment",
    level="safe",
    reason="MiniMax-M3 is reported faster on gfx942 with two hardware queues",
    requires=(
        when.AmdGpu(),
        when.GfxIn(("gfx942",), "the measurement is on gfx942"),
        ArchitectureBegins("MiniMaxM3Sparse"),
    ),
    default_when=(),
    yields_to=(when.VariableNotSet("GPU_MAX_HW_QUEUES"),),
    evidence=Evidence("reported", "in InferenceX #1804 and #1808 (MI300X, +5.6 to 10.8 % in all)"),
    source="InferenceX #1804, #1808; HIP reads it when its runtime starts",
    remove_when="a newer ROCm no longer gains from it",
)


@dataclass(frozen=True)
class ExpertsKeptTogether:
    """No expert parallelism: with it MiniMax-M3 does not fold the shared expert in."""

    def refusal(self, situation: Situation) -> str | None:
        if not situation.choices.expert_parallel:
            return None
        return "with --enable-expert-parallel the shared expert is not folded in"

    def describe(self) -> str:
        return "no --enable-expert-parallel"


MINIMAX_M3_SHARED_EXPERT = Rule(
    name="minimax_m3_shared_expert",
    sets=Variable(_FUSE_SHARED, "1"),
    seam="aiter_environment",
    level="safe",
    reason="the shared expert is folded into AITER's grouped experts on gfx950",
    requires=(
        when.AmdGpu(),
        when.GfxIn(("gfx950",), "vLLM folds it in on gfx950 alone"),
        ArchitectureBegins("MiniMaxM3Sparse"),
        AiterInForce(),
        ExpertsKeptTogether(),
    ),
    default_when=(),
    yields_to=(when.VariableNotSet(_FUSE_SHARED),),
    evidence=Evidence("reported", "in vllm-project/recipes MiniMax-M3 (MI355X)"),
    source="vllm-project/recipes MiniMax-M3; vLLM 0.30 to 0.32 models/minimax_m3/amd/model.py",
    remove_when="vLLM makes it the default",
)

# --- Kimi-K2.5 ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlydslTakesExperts:
    """INT4 weights in groups of 32 and no LoRA: what FlyDSL's experts are selected for."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.choices.lora:
            return "FlyDSL's experts do not take LoRA"
        model = situation.model
        if (
            model is not None
            and model.quantization == "compressed-tensors"
            and (model.weight_format, model.weight_group_size) == ("int4", 32)
        ):
            return None
        return "FlyDSL's experts take INT4 in groups of 32 in compressed-tensors format"

    def describe(self) -> str:
        return "a compressed-tensors INT4 checkpoint in groups of 32, no LoRA"


@dataclass(frozen=True)
class FlydslExperts:
    """FlyDSL's kernels for the experts."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {"moe_backend": "flydsl"}

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return "--moe-backend flydsl"


KIMI_K25_EXPERTS = Rule(
    name="kimi_k25_experts",
    sets=FlydslExperts(),
    seam="moe_backend",
    level="opt-in",
    reason="FlyDSL's kernels run Kimi-K2.5's INT4 experts on gfx950 where vLLM would take Triton",
    requires=(
        when.AmdGpu(),
        when.GfxIn(("gfx950",), "vLLM selects FlyDSL's experts on gfx950 alone"),
        ArchitectureBegins("KimiK25For"),
        FlydslTakesExperts(),
    ),
    default_when=(),
    yields_to=(MoeBackendNotChosen(),),
    evidence=Evidence("reported", "in vllm-project/recipes Kimi-K2.5, without a figure of its own"),
    source=(
        "vllm-project/recipes Kimi-K2.5; vLLM 0.30 to 0.32 compressed_tensors_moe.py "
        "(W4A16, groups of 32, gfx950, no LoRA)"
    ),
    remove_when="vLLM selects it by itself",
)

# --- gpt-oss --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FusionOff:
    """The pass that fuses all-reduce with RMSNorm off."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {"fuse_allreduce_rms": False}

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return "pass_config.fuse_allreduce_rms=False"


GPT_OSS_FUSION = Rule(
    name="gpt_oss_fusion",
    sets=FusionOff(),
    seam="fuse_allreduce_rms",
    level="safe",
    reason="fusing all-reduce with RMSNorm costs gpt-oss throughput",
    requires=(
        when.AmdGpu(),
        when.GfxIn(("gfx950",), "the measurement is on gfx950"),
        when.TensorParallelAtLeast(2),
        ArchitectureBegins("GptOssFor"),
        AiterInForce(),
        AiterAllReduceUsed(),
    ),
    default_when=(),
    yields_to=(FusionNotChosen(),),
    evidence=Evidence("reported", "in InferenceX #1527 and #1531 (MI355X, vLLM 0.21): about 4 %"),
    source="InferenceX #1527, #1531; vLLM 0.30 to 0.32 config/vllm.py enable_allreduce_rms_fusion",
    remove_when="a measurement on a vLLM in the range says that it gains",
)


@dataclass(frozen=True)
class AiterRunsExperts:
    """AITER is on, and not switched off for experts."""

    def refusal(self, situation: Situation) -> str | None:
        if not aiter_in_force(situation):
            return "AITER is off"
        value = situation.variable("VLLM_ROCM_USE_AITER_MOE")
        return None if value is None or is_true(value) else "AITER is off for experts"

    def describe(self) -> str:
        return "AITER on for experts"


@dataclass(frozen=True)
class GptOssNote:
    """What was reported, and how to tell."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        return (
            "AITER's experts were reported to garble gpt-oss on gfx950 (amd/skills#72, vLLM 0.23; "
            "mended in part by vllm#44679): read a few answers, and if they are garbled set "
            "VLLM_ROCM_USE_AITER_MOE=0"
        )

    def describe(self) -> str:
        return "a note on reports of garbled answers, and the variable that avoids them"


GPT_OSS_ANSWERS = Rule(
    name="gpt_oss_answers",
    sets=GptOssNote(),
    seam="plan",
    level="safe",
    reason="reports of garbled answers are not known to be mended in full",
    requires=(
        when.AmdGpu(),
        when.GfxIn(("gfx950",), "the reports are on gfx950"),
        ArchitectureBegins("GptOssFor"),
        AiterRunsExperts(),
    ),
    default_when=(),
    yields_to=(),
    evidence=Evidence("reported", "in amd/skills#72 and vllm#44679 (MI355X)"),
    source="amd/skills#72, vllm#44679, vllm#46201 (open)",
    remove_when="vllm#46201 is merged in the oldest supported vLLM",
    action="advise",
)


@dataclass(frozen=True)
class QuantizationDeprecated:
    """vLLM calls the checkpoint's quantization deprecated, and nobody asked for it all the same."""

    methods: tuple[str, ...] = ("fbgemm_fp8", "fp_quant")  # DEPRECATED_QUANTIZATION_METHODS

    def refusal(self, situation: Situation) -> str | None:
        method = situation.quantization
        if method not in self.methods:
            return "vLLM does not call the model's number format deprecated"
        if situation.choices.allow_deprecated_quantization:
            return "you gave --allow-deprecated-quantization"
        return None

    def describe(self) -> str:
        return f"quantization {' or '.join(self.methods)} without --allow-deprecated-quantization"


@dataclass(frozen=True)
class DeprecatedQuantizationRefusal:
    """What vLLM will say, and what to do."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        return (
            f"vLLM ends at start-up, because it calls the quantization {situation.quantization} "
            "deprecated: give --allow-deprecated-quantization, or use another checkpoint"
        )

    def describe(self) -> str:
        return "the refusal that vLLM itself would end with"


DEPRECATED_QUANTIZATION = Rule(
    name="deprecated_quantization",
    sets=DeprecatedQuantizationRefusal(),
    seam="plan",
    level="guard",
    reason="vLLM refuses formats that it calls deprecated unless told not to",
    requires=(model_is.ModelKnown(), QuantizationDeprecated()),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's source; executed on a simulated machine"),
    source=(
        "vLLM 0.30 to 0.32 config/model.py _verify_quantization, "
        "layers/quantization/__init__.py DEPRECATED_QUANTIZATION_METHODS"
    ),
    remove_when="vLLM drops the formats, or the warning",
    action="refuse",
)

RULES: tuple[Rule, ...] = (
    DEPRECATED_QUANTIZATION,
    VISION_ENCODER,
    MINIMAX_M3_QUEUES,
    MINIMAX_M3_SHARED_EXPERT,
    KIMI_K25_EXPERTS,
    GPT_OSS_FUSION,
    GPT_OSS_ANSWERS,
)
