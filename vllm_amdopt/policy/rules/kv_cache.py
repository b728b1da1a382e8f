"""The KV cache: offloading it to host memory, its layout, and its number format."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy import model_conditions as model_is
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.rules import kv_cache_conditions as cache
from vllm_amdopt.policy.rules.attention import SHUFFLE_KV_LAYOUT
from vllm_amdopt.policy.rules.attention_conditions import offload_backend
from vllm_amdopt.policy.selection import so_far
from vllm_amdopt.policy.situation import SettingValue, Situation


@dataclass(frozen=True)
class OffloadSettings:
    """The buffer's size, and the attention order that says which backend follows.

    A KV connector drops ROCM_ATTN from vLLM's candidates, so offloading would otherwise switch to
    another backend without a word. The order is set and no backend is forced, because a forced one
    raises for every layer that it cannot serve. An order or a backend chosen before stays.
    """

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        values: dict[str, SettingValue] = {}
        gib = cache.offload_gib(situation)
        if gib is not None:
            values["kv_offloading_size"] = float(gib)
        backend = offload_backend(situation)
        named = situation.choices.attention_backend or "attention_order" in situation.values
        if backend is not None and not named:
            values["attention_order"] = backend
        return values

    def remark(self, situation: Situation) -> str | None:
        if situation.decided.get("attention") or situation.choices.attention_backend:
            return None
        before, after = so_far(situation).name, offload_backend(situation)
        if after is None:
            return None
        if before == after:
            return f"attention stays with {after}, which takes a KV connector"
        return (
            f"{before} takes no KV connector, so {after} follows and is put first in the order of "
            "attention backends"
        )

    def describe(self) -> str:
        return (
            f"KV offload buffer of 32 GiB up to 32K tokens of context, {cache.OFFLOAD_CAP_GIB} GiB "
            "above (at most a quarter of host memory over all data-parallel engines); the "
            "attention backend that vLLM then selects, put first in the order"
        )


@dataclass(frozen=True)
class LatentCopiesAdvice:
    """How many copies of the latent an offload buffer holds on ROCm."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        ranks = situation.choices.tensor_parallel_size
        return (
            f"KV offloading stores {ranks} copies of the MLA latent on ROCm, one a rank, so the "
            f"buffer holds 1/{ranks} of what its size suggests: use fewer tensor-parallel and "
            "more data-parallel ranks, OffloadingConnector with spec_name=TieringOffloadingSpec, "
            "which stores one copy, or patch 0005 with VLLM_AMDOPT_MLA_OFFLOAD_SHARED=on"
        )

    def describe(self) -> str:
        return "a note on the copies"


@dataclass(frozen=True)
class SharedOffload:
    """The key that patch 0005 adds to the connector's configuration."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {"share_replicated_region": True}

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return "share_replicated_region=True in kv_connector_extra_config"


@dataclass(frozen=True)
class TailCacheRefusal:
    """Why GLM-5.3 cannot be offloaded with vLLM 0.30."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        return (
            "vLLM 0.30 cannot offload this model's KV cache: its tail_cache has blocks of a few "
            "tokens, which ends in an AssertionError (vllm#54831); leave KV offloading off, or use "
            "vLLM 0.31 or newer, which leaves the tail_cache out"
        )

    def describe(self) -> str:
        return "the server is not started; the sentence says what to do"


@dataclass(frozen=True)
class MissingScalesAdvice:
    """What an FP8 KV cache without scales means on this GPU."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        return (
            "the checkpoint has no scales for an FP8 KV cache, so vLLM takes 1.0 and computes none "
            "(--calculate-kv-scales is gone); gfx942's FP8 ends at 240: check the accuracy, or "
            "leave --kv-cache-dtype away"
        )

    def describe(self) -> str:
        return "a note on the scales"


KV_OFFLOAD = Rule(
    name="kv_offload",
    sets=OffloadSettings(),
    seam="kv_offload",
    level="safe",
    reason="evicted KV blocks are fetched from host memory instead of being computed again",
    requires=(
        cache.KvCacheOnDevice(),
        when.Instinct(),
        model_is.ModelKnown(),
        cache.OffloadableAttention(),
        model_is.ContextKnown(),
        cache.HostMemoryForOffload(),
        cache.NoExpandableSegments(),
        cache.BackendTakesOffload(),
        cache.NoSleepMode(),
    ),
    default_when=(
        model_is.AttentionKindIn(("gqa", "mqa"), "offloading is only reported to gain for GQA"),
        model_is.KvCopiesAtMost(2),
        when.PipelineParallelAtMost(1),
        cache.PrefixCachingNotDisabled(),
        cache.OffloadKeepsTheBackend(),
    ),
    yields_to=(when.OffloadNotChosen(),),
    evidence=Evidence("reported", "in arXiv 2603.10031 (MI325X, vLLM 0.14.1)"),
    source="Vultr Inference Cookbook 2026-03 (sizes); vllm#52656 (cap); vLLM 0.32 rocm.py",
    remove_when="vLLM sizes and enables offloading by itself",
)

MLA_OFFLOAD_SHARED = Rule(
    name="mla_offload_shared",
    sets=SharedOffload(),
    seam="kv_offload",
    level="opt-in",
    reason="the ranks share one copy of the MLA latent in host memory instead of one each",
    requires=(
        when.AmdGpu(),
        model_is.ModelKnown(),
        when.MlaNotDisabled(),
        cache.OffloadChosen(),
        cache.LatentIsReplicated(),
        cache.RegionCanBeRegistered(),
        when.PatchApplied("0005"),
    ),
    default_when=(),
    yields_to=(),
    evidence=Evidence(
        "reported", "in vllm#52656 (a shared buffer of 128 GB on eight MI325X and MI355X)"
    ),
    source="vllm#48906, #50301, #57160; vLLM 0.31 to 0.33 v1/kv_offload/cpu/spec.py; patch 0005",
    remove_when="vLLM shares the offload buffer between ranks on ROCm",
    vllm=">=0.31,<0.34",
)

MLA_OFFLOAD_COPIES = Rule(
    name="mla_offload_copies",
    sets=LatentCopiesAdvice(),
    seam="kv_offload",
    level="guard",
    action="advise",
    reason="on ROCm vLLM does not share the offload buffer between ranks",
    requires=(
        when.AmdGpu(),
        model_is.ModelKnown(),
        when.MlaNotDisabled(),
        cache.OffloadChosen(),
        cache.LatentIsReplicated(),
        cache.BufferNotShared(),
    ),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's source: _uses_shared_region is false on ROCm"),
    source="vLLM 0.31, 0.32 v1/kv_offload/cpu/spec.py (0.30 shared the buffer on ROCm too)",
    remove_when="vLLM shares the offload buffer between ranks on ROCm",
    vllm=">=0.31,<0.34",
)

TAIL_CACHE_OFFLOAD = Rule(
    name="tail_cache_offload",
    sets=TailCacheRefusal(),
    seam="kv_offload",
    level="guard",
    action="refuse",
    reason="vLLM 0.30 offloads GLM-5.3's tail_cache with the rest and fails on its block size",
    requires=(
        when.AmdGpu(),
        model_is.ModelKnown(),
        cache.TailCache(),
        cache.OffloadChosen(),
    ),
    default_when=(),
    yields_to=(),
    evidence=Evidence("reported", "in vllm#54831 (MI350X)"),
    source=(
        "vllm#54831; vLLM kv_connector/v1/offloading/config.py get_offloading_group_ids, 0.30 "
        "against 0.31"
    ),
    remove_when="vLLM below 0.31 is not supported",
    vllm=">=0.30,<0.31",
)

FP8_KV_CACHE = Rule(
    name="fp8_kv_cache",
    sets=MissingScalesAdvice(),
    seam="attention_backend",
    level="guard",
    action="advise",
    reason="without scales the cache is quantized with 1.0, and gfx942 has the smaller FP8 range",
    requires=(
        when.GfxIn(("gfx942",), "only its FP8 (e4m3fnuz) has the smaller range"),
        model_is.ModelKnown(),
        cache.Fp8CacheWithoutScales(),
    ),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's source; no wrong answers are reported for it"),
    source="vLLM 0.30 to 0.32 layers/quantization/kv_cache.py",
    remove_when="vLLM computes scales itself where the checkpoint has none",
)

RULES: tuple[Rule, ...] = (
    KV_OFFLOAD,
    SHUFFLE_KV_LAYOUT,
    MLA_OFFLOAD_SHARED,
    MLA_OFFLOAD_COPIES,
    TAIL_CACHE_OFFLOAD,
    FP8_KV_CACHE,
)
