"""The attention backend that is selected, and the block size that it takes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vllm_amdopt.policy import conditions as when
from vllm_amdopt.policy import model_conditions as model_is
from vllm_amdopt.policy.conditions import AITER_GFX, aiter_in_force
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.rule import DEFAULT, Rule
from vllm_amdopt.policy.rules import attention_conditions as layers
from vllm_amdopt.policy.selection import Selection, so_far
from vllm_amdopt.policy.situation import SettingValue, Situation, is_true

_SOFTMAX = ("mha", "gqa", "mqa", "hybrid")


@dataclass(frozen=True)
class ExactBackendsFirst:
    """The backends that compute the whole of the model's mask, before those that leave it out."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        model = situation.model
        if model is not None and model.bidirectional_images:
            return {"attention_order": "TRITON_ATTN"}
        return {"attention_order": "ROCM_AITER_UNIFIED_ATTN,TRITON_ATTN"}

    def remark(self, situation: Situation) -> str | None:
        return f"the model has {layers.ignored_by_rocm_attn(situation)}"

    def describe(self) -> str:
        return (
            "attention order ROCM_AITER_UNIFIED_ATTN, TRITON_ATTN for a soft cap; TRITON_ATTN for "
            "two-way image tokens"
        )


@dataclass(frozen=True)
class AttentionOrder:
    """Which of vLLM's candidates come first, by what was measured for such layers."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {"attention_order": ",".join(self.order(situation))}

    def order(self, situation: Situation) -> tuple[str, ...]:
        """The names that come first; what is not named keeps vLLM's order behind them."""
        model = situation.model
        if model is None:
            return ()
        if model.model_type.startswith("minimax_m3"):
            return ("TRITON_ATTN",)  # InferenceX#1804, #1808 (MI300X)
        if model.has_sinks or model.attention == "hybrid" or layers.wide_groups(situation):
            # gpt-oss: vLLM's recipe; hybrid: vllm#56945; more than 16 query heads to a KV head:
            # nobody reports ROCM_AITER_FA with them, and UNIFIED is within 5 % of it.
            return ("ROCM_AITER_UNIFIED_ATTN", "ROCM_AITER_FA")
        return ("ROCM_AITER_FA", "ROCM_AITER_UNIFIED_ATTN")

    def remark(self, situation: Situation) -> str | None:
        before = so_far(situation).name
        after = self._selected(situation).name
        if before == after:
            return f"vLLM takes {after} for this model in its own order as well"
        return f"with AITER on vLLM would take {before} by itself, and takes {after} in this order"

    def _selected(self, situation: Situation) -> Selection:
        values = {**self.settings(situation), **situation.values}
        return so_far(replace(situation, values=values))

    def describe(self) -> str:
        return (
            "attention order ROCM_AITER_FA, ROCM_AITER_UNIFIED_ATTN; the other way round for "
            "sinks, hybrid models and more than 16 query heads to a KV head; TRITON_ATTN for "
            "MiniMax-M3"
        )


@dataclass(frozen=True)
class ShuffledLayout:
    """The KV cache in the layout of AITER's assembly paged attention."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {"env.VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT": "1"}

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return "VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT=1"


@dataclass(frozen=True)
class BlockSizeDropped:
    """vLLM's own choice of block size instead of the user's."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {"block_size": DEFAULT}

    def remark(self, situation: Situation) -> str | None:
        refused = ", ".join(so_far(situation).refusals)
        remedy = "give a multiple of 16, or none"
        if _aiter_would_take_it(situation):
            remedy += ", or leave AITER to this plan: ROCM_AITER_MLA takes any size"
        return (
            f"--block-size {situation.choices.block_size} is dropped, because {refused} would "
            f"refuse it: {remedy}"
        )

    def describe(self) -> str:
        return "the user's --block-size is dropped"


def _aiter_would_take_it(situation: Situation) -> bool:
    """Whether it is only the user's variables that keep vLLM from AITER's MLA backend."""
    switches = {"env.VLLM_ROCM_USE_AITER": "1", "env.VLLM_ROCM_USE_AITER_MLA": "1"}
    values = {**situation.values, **switches}
    return so_far(replace(situation, values=values)).name == "ROCM_AITER_MLA"


@dataclass(frozen=True)
class BlockSize:
    """A fixed number of tokens per KV cache block."""

    tokens: int

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {"block_size": self.tokens}

    def remark(self, situation: Situation) -> str | None:
        return None

    def describe(self) -> str:
        return f"block size {self.tokens}"


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
                "is a ValueError in vLLM 0.30 to 0.32)"
            )
        return "vLLM's own MLA backend is selected here, and it keeps its own block size"

    def describe(self) -> str:
        return "the selected MLA backend takes it: AMDOPT_MLA, or ROCM_AITER_MLA with AITER on"


@dataclass(frozen=True)
class HeadPaddingAdvice:
    """How much attention is computed for nothing, and the layout that avoids it."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        heads = layers.mla_heads_per_rank(situation) or 1
        layout = layers.wider_layout(situation)
        advice = (
            f"; --tensor-parallel-size {layout[0]} --data-parallel-size {layout[1]} has full ones, "
            "where the weights fit"
            if layout is not None
            else ""
        )
        return (
            f"each rank has {heads} of the model's MLA heads, which AITER's decode pads to 16 "
            f"({16 / heads:.3g} times the attention work){advice}"
        )

    def describe(self) -> str:
        return "a note on the padding, and the tensor and data parallel sizes without it"


@dataclass(frozen=True)
class SparseMlaRefusal:
    """What is missing for sparse MLA, and where it is to be had."""

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return {}

    def remark(self, situation: Situation) -> str | None:
        gfx = situation.hardware.gfx
        if gfx not in AITER_GFX:
            return (
                "the model has sparse MLA, whose only attention backend on ROCm, "
                "ROCM_AITER_MLA_SPARSE, calls AITER, and AITER needs CDNA3 or newer, not "
                f"{gfx or 'this GPU'}: serve it on MI300X, MI325X, MI350X or MI355X"
            )
        return (
            "the model has sparse MLA, whose only attention backend on ROCm, "
            "ROCM_AITER_MLA_SPARSE, calls AITER, which is not installed: use a ROCm vLLM image, or "
            "build the version that your vLLM names from https://github.com/ROCm/aiter"
        )

    def describe(self) -> str:
        return "the server is not started; the sentence says what is missing"


EXACT_ATTENTION = Rule(
    name="exact_attention",
    sets=ExactBackendsFirst(),
    seam="attention_order",
    level="guard",
    reason=(
        "vLLM would select a backend that leaves a part of this model's attention out in silence"
    ),
    requires=(
        when.AmdGpu(),
        model_is.ModelKnown(),
        model_is.AttentionKindIn(_SOFTMAX),
        layers.CandidatesIgnoreTheMask(),
    ),
    default_when=(),
    yields_to=(when.BackendNotChosen(None),),
    evidence=Evidence("predicted", "from vLLM's source: the kernels get neither argument"),
    source=(
        "vLLM 0.30 to 0.32 rocm_attn.py forward, ops/chunked_prefill_paged_decode.py (no soft "
        "cap), _aiter_ops.py flash_attn_varlen_func (none at prefill); vLLM 0.30, 0.31 "
        "rocm_attn.py, rocm_aiter_unified_attn.py supports_mm_prefix, taken back in 0.32"
    ),
    remove_when="ROCM_ATTN refuses layers with a soft cap, and vLLM below 0.32 is not supported",
)

ATTENTION_ORDER = Rule(
    name="attention_order",
    sets=AttentionOrder(),
    seam="attention_order",
    level="safe",
    reason=(
        "the backend that is reported fastest for such layers comes first; only the order of "
        "vLLM's candidates changes, so layers that it refuses fall to the next one"
    ),
    requires=(
        when.AmdGpu(),
        when.GfxIn(AITER_GFX, "elsewhere vLLM's own order stands"),
        model_is.ModelKnown(),
        model_is.AttentionKindIn(_SOFTMAX, "for it vLLM's own order stands"),
        layers.AiterInForce(),
        layers.BackendsKnowTheMask(),
        layers.OrderChangesSomething(),
    ),
    default_when=(layers.OrderIsProved(),),
    yields_to=(when.BackendNotChosen(None),),
    evidence=Evidence(
        "reported",
        "in vLLM's blog of 2026-02-27 (Qwen3-235B-FP8, MI300X to MI355X: 2.6 to 4.4 times "
        "ROCM_ATTN) and vllm#46596",
    ),
    source=(
        "vllm#46596, vllm#46597, vllm#58146; vllm#56945 (hybrid: ROCM_AITER_UNIFIED_ATTN); vLLM's "
        "recipe for gpt-oss; InferenceX#1804, #1808 (MiniMax-M3); vLLM 0.30 to 0.32 "
        "platforms/rocm.py _get_backend_priorities"
    ),
    remove_when="vLLM prefers ROCM_AITER_FA by itself (vllm#58146)",
)

SHUFFLE_KV_LAYOUT = Rule(
    name="shuffle_kv_layout",
    sets=ShuffledLayout(),
    seam="aiter_environment",
    level="opt-in",
    reason="AITER's assembly paged attention reads this layout, and nothing else does",
    requires=(
        when.AmdGpu(),
        when.GfxIn(AITER_GFX, "AITER's attention needs CDNA3 or newer"),
        model_is.ModelKnown(),
        model_is.AttentionKindIn(("mha", "gqa", "mqa"), "the layout is for plain attention"),
        layers.ShuffledLayoutServes(),
    ),
    default_when=(),
    yields_to=(when.VariableNotSet("VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT"),),
    evidence=Evidence("reported", "in vLLM's blog of 2026-02-27: 15 to 20 % at decode"),
    source=(
        "vLLM's blog of 2026-02-27; vllm-project/recipes#481; vllm#39192 (hybrid models); vLLM "
        "0.30 to 0.32 rocm_aiter_fa.py forward"
    ),
    remove_when="vLLM chooses the layout by itself",
)

BLOCK_SIZE = Rule(
    name="block_size",
    sets=BlockSizeDropped(),
    seam="block_size",
    level="guard",
    action="repair",
    reason=(
        "no attention backend that vLLM may select here takes this block size, which ends in a "
        "ValueError at start-up"
    ),
    requires=(when.AmdGpu(), model_is.ModelKnown(), layers.BlockSizeRaises()),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "by vLLM's own selection, executed on a simulated machine"),
    source=(
        "vLLM 0.30 to 0.32 supports_block_size of rocm_attn.py, rocm_aiter_fa.py, "
        "rocm_aiter_unified_attn.py, triton_attn.py, triton_mla.py: multiples of 16"
    ),
    remove_when="vLLM itself falls back to a size that its backends take",
)

MLA_BLOCK_SIZE = Rule(
    name="mla_block_size",
    sets=BlockSize(1),
    seam="block_size",
    level="safe",
    reason=(
        "MLA decode kernels read the cache token by token; since vLLM 0.30 the AITER backend takes "
        "any size and expands the page table itself, so there block size 1 saves that step and is "
        "not required"
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

MINIMAX_BLOCK_SIZE = Rule(
    name="minimax_block_size",
    sets=BlockSize(128),
    seam="block_size",
    level="guard",
    reason=(
        "MiniMax-M3's sparse layers read pages of 128 tokens only, and vLLM 0.30 takes the "
        "block size from the first layer alone; 0.31 and newer find 128 themselves"
    ),
    requires=(
        when.AmdGpu(),
        model_is.ModelKnown(),
        layers.ModelTypeStartsWith("minimax_m3"),
    ),
    default_when=(),
    yields_to=(when.BlockSizeNotChosen(),),
    evidence=Evidence("predicted", "from vLLM's source; InferenceX and vLLM's recipe give 128"),
    source=(
        "vLLM models/minimax_m3/common/sparse_attention.py get_supported_kernel_block_sizes; "
        "platforms/interface.py update_block_size_for_backend, 0.30 against 0.31"
    ),
    remove_when="vLLM below 0.31 is not supported",
    vllm=">=0.30,<0.31",
)

MLA_HEAD_PADDING = Rule(
    name="mla_head_padding",
    sets=HeadPaddingAdvice(),
    seam="attention_backend",
    level="safe",
    action="advise",
    reason="AITER's MLA decode computes 16 heads a rank, however few there are",
    requires=(
        when.AmdGpu(),
        model_is.ModelKnown(),
        when.MlaNotDisabled(),
        layers.MlaHeadsArePadded(),
    ),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's source; padding since vllm#35850"),
    source="vLLM 0.30 to 0.32 rocm_aiter_mla.py AiterMLAHelper; vllm#35850, vllm#35641",
    remove_when="AITER decodes fewer than 16 MLA heads without padding on gfx942",
)

SPARSE_MLA_NEEDS_AITER = Rule(
    name="sparse_mla_needs_aiter",
    sets=SparseMlaRefusal(),
    seam="attention_backend",
    level="guard",
    action="refuse",
    reason="vLLM selects ROCM_AITER_MLA_SPARSE without AITER and fails after loading the weights",
    requires=(
        when.AmdGpu(),
        model_is.ModelKnown(),
        when.MlaNotDisabled(),
        layers.SparseMlaWithoutAiter(),
    ),
    default_when=(),
    yields_to=(),
    evidence=Evidence("predicted", "from vLLM's source: the metadata builder imports aiter"),
    source=(
        "vLLM 0.30 to 0.32 platforms/rocm.py _get_backend_priorities, rocm_aiter_mla_sparse.py"
    ),
    remove_when="vLLM refuses this itself at start-up, or has another sparse MLA backend on ROCm",
)

RULES: tuple[Rule, ...] = (
    SPARSE_MLA_NEEDS_AITER,
    EXACT_ATTENTION,
    BLOCK_SIZE,  # before the order: with the user's size no backend may be left to order
    ATTENTION_ORDER,
    MLA_BLOCK_SIZE,
    MINIMAX_BLOCK_SIZE,
    MLA_HEAD_PADDING,
)
"""`shuffle_kv_layout` is not among them: it has to see whether the KV cache is offloaded, so
`kv_cache` lists it behind `kv_offload`."""
