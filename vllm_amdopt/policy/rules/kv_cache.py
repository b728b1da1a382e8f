"""The KV cache: offloading it to host memory, and its number format."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_amdopt.hardware import GIB
from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy import model_conditions as model_is
from vllm_amdopt.policy.conditions import aiter_in_force
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.situation import SettingValue, Situation, is_true

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


KV_OFFLOAD = Rule(
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
)

RULES: tuple[Rule, ...] = (KV_OFFLOAD,)
