"""The serving defaults: vLLM settings and environment variables that fit a model on a machine.

Same shape as a feature, but a rule sets a value where the user set none; it swaps no code. The
order of RULES is the order in which they are decided: a later rule sees the earlier decisions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from vllm_amdopt.hardware import GIB
from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy import model_conditions as model_is
from vllm_amdopt.policy.conditions import AITER_GFX, aiter_in_force
from vllm_amdopt.policy.features import FEATURES, VLLM_RANGE, Evidence, Feature
from vllm_amdopt.policy.situation import Situation, is_true

SettingValue = str | int | float


class Settings(Protocol):
    """What a rule sets, computed from the situation."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        """Setting -> value; `env.NAME` is an environment variable."""

    def remark(self, situation: Situation) -> str | None:
        """What else has to be said about these values, as a phrase; None if nothing."""

    def describe(self) -> str:
        """What is set, as a phrase."""


@dataclass(frozen=True)
class Rule:
    """One default. Fields as in Feature; `level` says how far it may go.

    `safe`: applied wherever the user set nothing; `opt-in`: only when switched on;
    `guard`: keeps a combination that would crash from starting.
    """

    name: str
    sets: Settings
    seam: str
    level: Literal["safe", "opt-in", "guard"]
    reason: str
    requires: tuple[when.Condition, ...]
    default_when: tuple[when.Condition, ...]
    yields_to: tuple[when.Condition, ...]
    evidence: Evidence
    source: str
    remove_when: str
    vllm: str = VLLM_RANGE

    @property
    def switch(self) -> str:
        """The environment variable that switches it."""
        return f"VLLM_AMDOPT_{self.name.upper()}"


# --- aiter ---------------------------------------------------------------------------------------

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


# --- mla_block_size ------------------------------------------------------------------------------


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


# --- kv_offload ----------------------------------------------------------------------------------

_OFFLOAD_BACKENDS = (
    "TRITON_ATTN",
    "ROCM_AITER_FA",
    "ROCM_AITER_UNIFIED_ATTN",
    "AMDOPT_ATTN",
)
_AITER_FA_HEADS = (64, 128, 256)  # rocm_aiter_fa.py get_supported_head_sizes, vLLM 0.32
_AITER_FA_DTYPES = ("bfloat16", "float16")
_HOST_SHARE = 4  # at most a quarter of the host's memory

OFFLOAD_GIB: tuple[tuple[int, int], ...] = ((32 * 1024, 32),)
OFFLOAD_CAP_GIB = 64
"""Buffer by context: up to 32K tokens 32 GiB, above that 64 GiB. The Vultr cookbook says 32-64,
64-96 and 96-128 GiB for 32K, 64K and 128K; larger pools are capped because crashes above 64 GB
are reported (vllm#52656) and not understood."""


def offload_gib(situation: Situation) -> int | None:
    """GiB of one engine's offload buffer, or None where no size fits.

    The size is the sum over an engine's tensor-parallel ranks (vLLM's --kv-offloading-size); each
    data-parallel engine has its own. All together take at most a quarter of the host's memory.
    """
    context, host = situation.context, situation.hardware.host_memory_bytes
    if context is None or host is None:
        return None
    wanted = next((gib for limit, gib in OFFLOAD_GIB if context <= limit), OFFLOAD_CAP_GIB)
    sizes = sorted({wanted, *(gib for _, gib in OFFLOAD_GIB if gib < wanted)}, reverse=True)
    engines = max(situation.choices.data_parallel_size, 1)
    return next((gib for gib in sizes if gib * GIB * engines * _HOST_SHARE <= host), None)


@dataclass(frozen=True)
class OffloadSettings:
    """The buffer's size, and the attention backend named, so that it does not change in silence.

    A KV connector drops ROCM_ATTN from vLLM's candidates, so offloading would otherwise switch to
    another backend without a word. A backend that the user chose stays.
    """

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        values: dict[str, SettingValue] = {}
        gib = offload_gib(situation)
        if gib is not None:
            values["kv_offloading_size"] = float(gib)
        if situation.choices.attention_backend is None:
            values["attention_backend"] = self.attention_backend(situation)
        return values

    def remark(self, situation: Situation) -> str | None:
        return None

    def attention_backend(self, situation: Situation) -> str:
        """The backend to name: ours where it is on, AITER's where it can run, else Triton's."""
        if situation.decided.get("attention", False):
            return "AMDOPT_ATTN"
        model = situation.model
        mha_switch = situation.environment.get("VLLM_ROCM_USE_AITER_MHA")
        if (
            model is not None
            and aiter_in_force(situation)
            and (mha_switch is None or is_true(mha_switch))
            and model.head_size in _AITER_FA_HEADS
            and situation.dtype in _AITER_FA_DTYPES
            and not model.bidirectional_images
            and not model.has_alibi
            and not model.has_sinks
        ):
            return "ROCM_AITER_FA"
        return "TRITON_ATTN"

    def describe(self) -> str:
        return (
            f"KV offload buffer of 32 GiB up to 32K tokens of context, {OFFLOAD_CAP_GIB} GiB above "
            "(at most a quarter of host memory over all data-parallel engines); attention backend "
            "named: AMDOPT_ATTN, ROCM_AITER_FA or TRITON_ATTN"
        )


@dataclass(frozen=True)
class KvCacheOnDevice:
    """A real AMD GPU: on a CPU there is nowhere to offload to."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.hardware.kind == "cpu":
            return "the KV cache already lies in host memory"
        return when.AmdGpu().refusal(situation)

    def describe(self) -> str:
        return "an AMD GPU (on a CPU the KV cache already lies in host memory)"


@dataclass(frozen=True)
class HostMemoryForOffload:
    """The host's memory is known and a quarter of it holds the smallest buffer."""

    def refusal(self, situation: Situation) -> str | None:
        host = situation.hardware.host_memory_bytes
        if host is None:
            return "the host's memory is not known: set --kv-offloading-size to use offloading"
        if situation.context is None or offload_gib(situation) is not None:
            return None
        engines = max(situation.choices.data_parallel_size, 1)
        smallest = min(gib for _, gib in OFFLOAD_GIB) * engines
        shared = f" ({engines} data-parallel engines)" if engines > 1 else ""
        return (
            f"{smallest} GiB{shared} would be more than a quarter of the host's "
            f"{host // GIB} GiB of memory"
        )

    def describe(self) -> str:
        return "host memory known, and at least four times the buffer"


@dataclass(frozen=True)
class NoExpandableSegments:
    """PyTorch's expandable segments are off: vLLM refuses them together with a KV connector."""

    def refusal(self, situation: Situation) -> str | None:
        sentence = (
            "expandable_segments is on, which vLLM refuses together with a KV connector: "
            "unset it to use offloading"
        )
        if situation.choices.expandable_segments:
            return sentence
        for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
            value = situation.environment.get(name, "").replace(" ", "").lower()
            if "expandable_segments:true" in value:
                return f"{name}: {sentence}"
        return None

    def describe(self) -> str:
        return "no expandable_segments:True in PYTORCH_CUDA_ALLOC_CONF or PYTORCH_HIP_ALLOC_CONF"


@dataclass(frozen=True)
class BackendTakesOffload:
    """The attention backend that the user chose, if any, works with a KV connector."""

    def refusal(self, situation: Situation) -> str | None:
        chosen = situation.choices.attention_backend
        if chosen is None or chosen in _OFFLOAD_BACKENDS:
            return None
        return (
            f"--attention-backend {chosen} is not known to work with KV offloading: choose one of "
            f"{', '.join(_OFFLOAD_BACKENDS)} to get it"
        )

    def describe(self) -> str:
        return f"no other --attention-backend than {', '.join(_OFFLOAD_BACKENDS)}"


@dataclass(frozen=True)
class PrefixCachingNotDisabled:
    """Prefix caching is not switched off: without it nothing offloaded is ever found again."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.choices.prefix_caching is not False:
            return None
        return "you switched prefix caching off, and without it nothing offloaded is found again"

    def describe(self) -> str:
        return "prefix caching not switched off"


@dataclass(frozen=True)
class NoSleepMode:
    """Sleep mode is off: vLLM 0.33 refuses it with connectors that cannot sleep."""

    def refusal(self, situation: Situation) -> str | None:
        if not situation.choices.sleep_mode:
            return None
        return "you gave --enable-sleep-mode, which vLLM 0.33 refuses with this KV connector"

    def describe(self) -> str:
        return "no --enable-sleep-mode"


# --- the table -----------------------------------------------------------------------------------

RULES: tuple[Rule, ...] = (
    Rule(
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
    ),
    Rule(
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
    ),
    Rule(
        name="kv_offload",
        sets=OffloadSettings(),
        seam="kv_offload",
        level="safe",
        reason=(
            "evicted KV blocks are fetched from host memory instead of being computed again; the "
            "attention backend is named because a KV connector would change it in silence"
        ),
        requires=(
            KvCacheOnDevice(),
            when.Instinct(),
            model_is.ModelKnown(),
            model_is.AttentionKindIn(
                ("gqa", "mqa", "mha"),
                "copies would multiply by the tensor-parallel size, or some layers keep no KV",
            ),
            model_is.ContextKnown(),
            HostMemoryForOffload(),
            NoExpandableSegments(),
            BackendTakesOffload(),
            NoSleepMode(),
        ),
        default_when=(
            model_is.AttentionKindIn(("gqa", "mqa"), "offloading is only reported to gain for GQA"),
            model_is.KvCopiesAtMost(2),
            when.PipelineParallelAtMost(1),
            PrefixCachingNotDisabled(),
        ),
        yields_to=(when.OffloadNotChosen(),),
        evidence=Evidence("reported", "in arXiv 2603.10031 (MI325X, vLLM 0.14.1)"),
        source="Vultr Inference Cookbook 2026-03 (sizes); vllm#52656 (cap); vLLM 0.32 rocm.py",
        remove_when="vLLM sizes and enables offloading by itself",
    ),
)

ENTRIES: tuple[Feature | Rule, ...] = (*FEATURES, *RULES)
"""Everything that a plan decides, in the order in which it is decided."""
