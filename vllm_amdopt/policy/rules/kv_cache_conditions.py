"""Conditions of the KV cache rules, and how large an offload buffer may be."""

from dataclasses import dataclass

from vllm_amdopt.hardware import GIB
from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy.model_conditions import AttentionKindIn, ModelKnown
from vllm_amdopt.policy.rules.attention_conditions import ModelTypeStartsWith, offload_backend
from vllm_amdopt.policy.selection import so_far
from vllm_amdopt.policy.situation import Situation

OFFLOAD_BACKENDS = (
    "TRITON_ATTN",
    "ROCM_AITER_FA",
    "ROCM_AITER_UNIFIED_ATTN",
    "AMDOPT_ATTN",
)
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
class KvCacheOnDevice:
    """A real AMD GPU: on a CPU there is nowhere to offload to."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.hardware.kind == "cpu":
            return "the KV cache already lies in host memory"
        return when.AmdGpu().refusal(situation)

    def describe(self) -> str:
        return "an AMD GPU (on a CPU the KV cache already lies in host memory)"


@dataclass(frozen=True)
class OffloadableAttention:
    """Attention whose KV cache is worth a place in host memory: GQA, MQA or MHA."""

    def refusal(self, situation: Situation) -> str | None:
        refusal = AttentionKindIn(("gqa", "mqa", "mha")).refusal(situation)
        model, ranks = situation.model, situation.choices.tensor_parallel_size
        if refusal is None or model is None:
            return refusal
        if model.attention in ("mla", "sparse_mla"):
            if ranks > 1:
                return (
                    f"{refusal}: copies would multiply, because since vLLM 0.31 each of {ranks} "
                    "ranks stores the whole latent on ROCm"
                )
            return f"{refusal}: its cache is small, and nobody reports a gain from offloading it"
        return f"{refusal}: some or all of its layers keep a state instead of KV"

    def describe(self) -> str:
        return (
            "GQA, MQA or MHA attention (with MLA each rank stores the whole latent on ROCm; "
            "hybrid models keep states instead of KV)"
        )


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
        if chosen is None or chosen in OFFLOAD_BACKENDS:
            return None
        return (
            f"--attention-backend {chosen} is not known to work with KV offloading: choose one of "
            f"{', '.join(OFFLOAD_BACKENDS)} to get it"
        )

    def describe(self) -> str:
        return f"no other --attention-backend than {', '.join(OFFLOAD_BACKENDS)}"


@dataclass(frozen=True)
class OffloadKeepsTheBackend:
    """The attention backend takes a KV connector: offloading alone does not change it."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.decided.get("attention") or situation.choices.attention_backend:
            return None
        before, after = so_far(situation).name, offload_backend(situation)
        if before is None or after is None or before == after:
            return None
        return (
            f"{before} takes no KV connector, so offloading would move attention to {after}, and "
            "nobody has measured the two together; VLLM_AMDOPT_KV_OFFLOAD=on does both"
        )

    def describe(self) -> str:
        return "an attention backend that stays the same with a KV connector"


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


@dataclass(frozen=True)
class OffloadChosen:
    """The user configured KV offloading or a KV connector."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.choices.kv_offload:
            return None
        return "you configured no KV offloading and no KV connector"

    def describe(self) -> str:
        return "KV offloading or a KV connector configured by the user"


@dataclass(frozen=True)
class LatentIsReplicated:
    """MLA on several ranks: each of them holds, and offloads, the whole latent."""

    def refusal(self, situation: Situation) -> str | None:
        model = situation.model
        if model is None:
            return ModelKnown().refusal(situation)
        if model.attention not in ("mla", "sparse_mla"):
            return "the model has no MLA, so its ranks hold different KV heads"
        if situation.choices.tensor_parallel_size > 1:
            return None
        return "one tensor-parallel rank stores one copy"

    def describe(self) -> str:
        return "MLA with more than one tensor-parallel rank"


@dataclass(frozen=True)
class RegionCanBeRegistered:
    """The size of the buffer is known and at most OFFLOAD_CAP_GIB.

    Each rank registers all of a shared buffer with its GPU. ROCm refused that for 500 GiB on eight
    MI308X (vllm#57160), for 256 GB on eight MI325X and for 512 GB on eight MI355X (vllm#52656).
    """

    def refusal(self, situation: Situation) -> str | None:
        size = situation.choices.kv_offloading_gib
        if size is None:
            return "the buffer's size is not known: give it with --kv-offloading-size"
        if size <= OFFLOAD_CAP_GIB:
            return None
        return (
            f"{size:g} GiB would be registered by every rank, which ROCm is reported to refuse for "
            f"large buffers: give at most {OFFLOAD_CAP_GIB}, which then hold one copy"
        )

    def describe(self) -> str:
        return f"--kv-offloading-size of at most {OFFLOAD_CAP_GIB} GiB"


@dataclass(frozen=True)
class BufferNotShared:
    """Nothing in this plan lets the ranks share the buffer."""

    def refusal(self, situation: Situation) -> str | None:
        if situation.decided.get("mla_offload_shared"):
            return "mla_offload_shared lets the ranks share one copy"
        return None

    def describe(self) -> str:
        return "no shared buffer (mla_offload_shared)"


@dataclass(frozen=True)
class TailCache:
    """GLM-5.3's indexer keeps a ring of a few tokens beside the cache."""

    def refusal(self, situation: Situation) -> str | None:
        return ModelTypeStartsWith("glm5_next").refusal(situation)

    def describe(self) -> str:
        return "model type glm5_next* (its tail_cache has blocks of a few tokens)"


@dataclass(frozen=True)
class Fp8CacheWithoutScales:
    """An FP8 KV cache asked for, and a checkpoint that is known to hold no scales for it."""

    def refusal(self, situation: Situation) -> str | None:
        dtype = situation.choices.kv_cache_dtype
        if dtype not in ("fp8", "fp8_e4m3"):
            return f"the KV cache is {dtype}, not FP8 (e4m3)"
        model = situation.model
        if model is None:
            return ModelKnown().refusal(situation)
        scales = model.kv_scales
        if scales is False:
            return None
        if scales:
            return "the checkpoint has scales for an FP8 KV cache"
        return "whether the checkpoint has scales for an FP8 KV cache is not known"

    def describe(self) -> str:
        return "--kv-cache-dtype fp8 and a checkpoint without KV scales"
