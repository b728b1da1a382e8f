"""What runs a model's experts on ROCm, or with which sentence vLLM ends: its oracles, retold.

Read from vLLM 0.30 to 0.32: model_executor/layers/fused_moe/oracle/{fp8,unquantized,mxfp4}.py,
the experts' own `is_supported_config` (experts/{rocm_aiter_moe,triton_moe,
aiter_mxfp4_w4a16_moe}.py) and the checks of the FP8 methods (quantization/fp8.py,
compressed_tensors_moe_w8a8_fp8.py, quark_moe.py). Takes no decision; the rules do.
"""

import math
from dataclasses import dataclass

from vllm_amdopt.policy.conditions import AITER_GFX
from vllm_amdopt.policy.situation import Situation, is_true
from vllm_amdopt.policy.versions import contains

PADS_FP8_SHARDS = ">=0.31"
"""`--moe-backend aiter` pads a block-FP8 shard to whole blocks (vllm#55867)."""
FALLS_BACK_FROM_AITER = ">=0.31"
"""Unquantized experts that AITER refuses go to Triton instead of ending the server."""
PADS_PLAIN_SHARDS = ">=0.32"
"""Unquantized experts are padded to the tile width of AITER's kernels."""
AITER_SPARES_EXPERT_PARALLEL = ">=0.31"
"""AITER's MXFP4 experts refuse every expert parallelism, not only that over data parallel."""

_REFINED_AT_LEAST = 32  # refine_fp8_moe_block_shape: a smaller common block is not used
_FP8_BACKENDS = (
    "triton",
    "deep_gemm",
    "cutlass",
    "flashinfer_trtllm",
    "flashinfer_cutlass",
    "marlin",
    "humming",
    "aiter",
    "hpc",
)
_PLAIN_BACKENDS = ("triton", "batched_triton", "flashinfer_trtllm", "flashinfer_cutlass", "aiter")
_INT_BACKENDS = ("triton", "marlin", "humming", "flashinfer_trtllm", "emulation", "rdna3")


@dataclass(frozen=True)
class ExpertSelection:
    """`backend` is the name in vLLM's enumeration, `raises` the sentence that ends the server.

    Both are None where there are no experts, or where their format is not retold here.
    """

    backend: str | None = None
    raises: str | None = None


@dataclass(frozen=True)
class Experts:
    """A model's experts as one rank holds them. `width` is the intermediate size of a shard."""

    kind: str
    """"plain", "fp8_block", "fp8", "mxfp4", "int4" or "other"."""
    width: int
    ranks: int
    expert_parallel: bool
    native: bool
    """The checkpoint is of vLLM's own `fp8` method, the only one that refines and pads."""
    online: bool
    """Quantized while loading: there are no scales in the checkpoint that would have to fit."""
    block: tuple[int, int] | None = None
    indivisible: bool = False

    @property
    def padded(self) -> int:
        """The width that `--moe-backend aiter` allocates for a block-FP8 shard."""
        step = self.block[0] if self.block else 1
        return -(-self.width // step) * step


def experts_of(situation: Situation) -> Experts | None:
    """The experts of the model, or None where there are none or their width is not known."""
    model, choices = situation.model, situation.choices
    if model is None or not model.num_experts or not model.moe_intermediate_size:
        return None
    # FusedMoEParallelConfig.make: without expert parallelism, experts are cut over the
    # data-parallel ranks as well.
    world = max(choices.tensor_parallel_size, 1) * max(choices.data_parallel_size, 1)
    parallel = choices.expert_parallel and world > 1
    ranks = 1 if parallel else world
    size = model.moe_intermediate_size
    kind, block = _kind(situation)
    return Experts(
        kind=kind,
        width=size // ranks,
        ranks=ranks,
        expert_parallel=parallel,
        native=model.quantization == "fp8",
        online=model.quantization is None,
        block=block,
        indivisible=size % ranks != 0,
    )


def predict_experts(
    situation: Situation,
    *,
    aiter: bool,
    aiter_moe: bool,
    aiter_explicit: bool,
    moe_backend: str | None,
    version: str | None,
) -> ExpertSelection:
    """What vLLM `version` selects for the experts of the situation's model on its GPU.

    `aiter` and `aiter_moe` are VLLM_ROCM_USE_AITER and VLLM_ROCM_USE_AITER_MOE as vLLM reads
    them, `aiter_explicit` whether either is set at all, `moe_backend` is --moe-backend. Gated
    activations and the package triton_kernels are taken for granted. A version that is not known
    counts as the newest.
    """
    experts = experts_of(situation)
    if experts is None:
        return ExpertSelection()
    if experts.indivisible:
        return ExpertSelection(
            raises=f"the experts' width {_size(situation)} does not divide by {experts.ranks} ranks"
        )
    asked = None if moe_backend in (None, "auto") else moe_backend
    oracle = _Oracle(situation, experts, aiter, aiter_moe, aiter_explicit, asked, version)
    return oracle.select()


def predict_now(
    situation: Situation, *, aiter_moe: bool | None = None, moe_backend: str | None = None
) -> ExpertSelection:
    """The prediction for what the user and this plan have set so far; arguments replace a part."""
    master = situation.variable("VLLM_ROCM_USE_AITER")
    experts_switch = situation.variable("VLLM_ROCM_USE_AITER_MOE")
    planned = situation.choices.moe_backend or situation.values.get("moe_backend")
    return predict_experts(
        situation,
        aiter=is_true(master),
        aiter_moe=(is_true(experts_switch) or experts_switch is None)
        if aiter_moe is None
        else aiter_moe,
        aiter_explicit=master is not None or experts_switch is not None or aiter_moe is not None,
        moe_backend=moe_backend or (None if planned is None else str(planned)),
        version=situation.software.vllm,
    )


def within(version_range: str, version: str | None) -> bool:
    """Whether `version` lies in the range; one that is not known or readable does."""
    return version is None or contains(version_range, version) is not False


@dataclass(frozen=True)
class _Oracle:
    """One question to vLLM's oracles."""

    situation: Situation
    experts: Experts
    aiter: bool
    aiter_moe: bool
    explicit: bool
    asked: str | None
    version: str | None

    def select(self) -> ExpertSelection:
        kind = self.experts.kind
        if kind == "plain":
            return self._plain()
        if kind in ("fp8", "fp8_block"):
            return self._fp8()
        if kind == "mxfp4":
            return self._mxfp4()
        if kind == "int4" and self.asked not in (None, *_INT_BACKENDS, "flydsl"):
            return _raises(
                f"moe_backend='{self.asked}' is not supported for WNA16 MoE. "
                f"Expected one of {list(_INT_BACKENDS)}."
            )
        return ExpertSelection()

    # --- what AITER's experts answer ---

    def _aiter_enabled(self) -> bool:
        """`rocm_aiter_ops.is_fused_moe_enabled`."""
        return self._aiter_loaded() and self.aiter_moe

    def _aiter_loaded(self) -> bool:
        """`rocm_aiter_ops.is_enabled`."""
        return (
            self.aiter
            and self.situation.software.aiter is not None
            and self.situation.hardware.gfx in AITER_GFX
        )

    def _on_rdna4(self) -> bool:
        """`rocm_aiter_ops.is_rdna_aiter_enabled`."""
        gfx = self.situation.hardware.gfx or ""
        return self.aiter and self.situation.software.aiter is not None and gfx.startswith("gfx120")

    def _aiter_refusal(self, block: tuple[int, int] | None) -> str | None:
        """`AiterExperts.is_supported_config`: why not; None where it takes them."""
        if not self._aiter_enabled():
            return "kernel does not support current device (AITER MoE is not enabled)"
        if self.experts.kind == "fp8_block" and block != (128, 128):
            return f"kernel does not support quantization in blocks of {block}"
        if self._batch_invariant():
            return "kernel does not support batch invariance"
        if self.situation.choices.lora:
            return "kernel does not support LoRA"
        return None

    def _batch_invariant(self) -> bool:
        return is_true(self.situation.variable("VLLM_BATCH_INVARIANT"))

    def _triton_refusal(self) -> str | None:
        """`TritonExperts.is_supported_config`, as far as a configuration tells."""
        model, gfx = self.situation.model, self.situation.hardware.gfx or ""
        # RocmPlatform.supports_fp8
        if self.experts.kind != "plain" and not gfx.startswith(("gfx9", "gfx120", "gfx125")):
            return "kernel does not support FP8 on this GPU"
        if model is not None and -(-model.num_experts // 32) * 32 >= 1024:
            return "kernel's moe_align_block_size requires fewer than 1024 padded experts"
        return None

    # --- unquantized ---

    def _plain(self) -> ExpertSelection:
        if self.situation.choices.lora:
            return ExpertSelection("TRITON")
        if self.asked not in (None, "humming"):
            return self._plain_by_name(self.asked or "")
        if self._forced():
            refusal = self._aiter_refusal(None)
            if refusal is None:
                return ExpertSelection("AITER")
            if not within(FALLS_BACK_FROM_AITER, self.version):
                return _unsupported("Unquantized", "ROCm AITER", refusal)
        refusal = self._triton_refusal()
        return ExpertSelection("TRITON") if refusal is None else _none("Unquantized")

    def _plain_by_name(self, name: str) -> ExpertSelection:
        if name not in _PLAIN_BACKENDS:
            return _raises(
                f"moe_backend='{name}' is not supported for unquantized MoE. "
                f"Expected one of {list(_PLAIN_BACKENDS)}."
            )
        if name == "aiter":
            refusal = self._aiter_refusal(None)
            return (
                ExpertSelection("AITER")
                if refusal is None
                else _unsupported("Unquantized", "ROCm AITER", refusal)
            )
        if name in ("triton", "batched_triton"):
            refusal = self._triton_refusal()
            return (
                ExpertSelection(name.upper())
                if refusal is None
                else _unsupported("Unquantized", name.upper(), refusal)
            )
        return _unsupported("Unquantized", name, "kernel does not support current device")

    # --- FP8 ---

    def _fp8(self) -> ExpertSelection:
        if self.asked is not None and self.asked not in _FP8_BACKENDS:
            return _raises(
                f"moe_backend='{self.asked}' is not supported for FP8 MoE. "
                f"Expected one of {list(_FP8_BACKENDS)}."
            )
        try:
            block = self._fp8_block()
        except ValueError as error:
            return _raises(str(error))
        chosen = self._fp8_kernel(block)
        return self._fits(block) if chosen.raises is None and self._checked() else chosen

    def _checked(self) -> bool:
        """Whether `create_weights` ends here: blocks that do not fit, neither refined nor padded.

        It asks after the oracle, whatever kernel that chose.
        """
        experts = self.experts
        if experts.block is None or experts.online or experts.width % experts.block[0] == 0:
            return False
        return self._fp8_block() == experts.block and not self._pads()

    def _fits(self, block: tuple[int, int] | None) -> ExpertSelection:
        return _raises(
            f"The output_size of gate's and up's weight = {self.experts.width} is not divisible "
            f"by weight quantization block_n = {block[0] if block else 0}."
        )

    def _forced(self) -> bool:
        """An AITER variable is set and says yes: then only AITER is asked."""
        return self.explicit and self.aiter and self.aiter_moe and not self._on_rdna4()

    def _fp8_kernel(self, block: tuple[int, int] | None) -> ExpertSelection:
        if self.asked is None:
            if self._forced():
                refusal = self._aiter_refusal(block)
                return (
                    ExpertSelection("AITER")
                    if refusal is None
                    else _unsupported("FP8", "AITER", refusal)
                )
            refusal = self._triton_refusal()
            return ExpertSelection("TRITON") if refusal is None else _none("FP8")
        if self.asked == "aiter":
            refusal = self._aiter_refusal(block)
        elif self.asked == "triton":
            refusal = self._triton_refusal()
        else:
            refusal = "kernel does not support current device"
        if refusal is None:
            return ExpertSelection(self.asked.upper())
        return _unsupported("FP8", self.asked.upper(), refusal)

    def _fp8_block(self) -> tuple[int, int] | None:
        """The block that the kernels are asked for: the checkpoint's, or a refined one.

        `resolve_fp8_moe_weight_block_shape`, and before it `refine_fp8_moe_block_shape` alone.
        ValueError where vLLM raises one.
        """
        block = self.experts.block
        if block is None or not self.experts.native:
            return block
        refined = self._refined(block)
        if self.asked is None or not within(PADS_FP8_SHARDS, self.version):
            return refined or block
        # Only Triton's kernels take a refined block.
        if refined is not None and self.asked == "triton":
            return refined
        return block if self._pads() else refined or block

    def _refined(self, block: tuple[int, int]) -> tuple[int, int] | None:
        width, hidden = self.experts.width, _hidden_size(self.situation)
        if width % block[0] == 0 and (self.experts.ranks == 1 or width % block[1] == 0):
            return None
        common = math.gcd(block[0], block[1], width, *(() if hidden is None else (hidden,)))
        return None if common < _REFINED_AT_LEAST else (common, common)

    def _pads(self) -> bool:
        """`pad_tp_shard_to_weight_blocks`; ValueError where it refuses."""
        experts, block = self.experts, self.experts.block
        if (
            block is None
            or not experts.native
            or self.asked is None
            or not within(PADS_FP8_SHARDS, self.version)
            or block[0] != block[1]
            or experts.ranks == 1
            or experts.width % block[0] == 0
            or (self.asked == "triton" and self._refined(block) is not None)
        ):
            return False
        hidden = _hidden_size(self.situation)
        if (
            _size(self.situation) % block[0]
            or (hidden is not None and hidden % block[0])
            or experts.expert_parallel
            or self.situation.choices.lora
        ):
            raise ValueError(
                f"Block-aligned FP8 TP sharding requires {block[0]}-aligned global expert "
                "dimensions, pure TP, and no LoRA or expert bias."
            )
        return True

    # --- MXFP4 (gpt-oss) ---

    def _mxfp4(self) -> ExpertSelection:
        if self.situation.choices.lora or self.asked not in (None, "aiter", "triton"):
            return ExpertSelection()
        if self.asked == "triton":
            return ExpertSelection("TRITON")
        if self._aiter_enabled() and self.situation.hardware.gfx == "gfx950":
            return ExpertSelection("AITER_MXFP4_BF16")
        if self._aiter_loaded() and not self._monolithic_refuses():
            return ExpertSelection("AITER_TRITON_MXFP4_BF16")
        if self.asked == "aiter":
            return _unsupported(
                "Mxfp4", "AITER_TRITON_MXFP4_BF16", "kernel does not support this configuration"
            )
        return ExpertSelection("TRITON")

    def _monolithic_refuses(self) -> bool:
        """`AiterW4A16ExpertsMonolithic._supports_parallel_config` says no."""
        shared = self.situation.choices.data_parallel_size > 1
        every = within(AITER_SPARES_EXPERT_PARALLEL, self.version)
        return shared or (self.experts.expert_parallel and every)


def _kind(situation: Situation) -> tuple[str, tuple[int, int] | None]:
    """The kind of the experts' weights, and the block of their scales."""
    model = situation.model
    method = situation.quantization
    if model is None:
        return "other", None
    if method is None or "routed_experts" in model.unquantized_parts:
        return "plain", None
    if model.model_type.startswith("deepseek_v4"):
        return "other", None  # its routed experts are MXFP4 with an oracle of their own
    if model.quantization is None:  # quantized while loading
        if method == "fp8_per_block":
            return "fp8_block", (128, 128)
        return ("fp8", None) if method.startswith("fp8") else ("other", None)
    if model.fp8_weights:
        block = model.weight_block_size
        return ("fp8_block", block) if block else ("fp8", None)
    # vLLM has a method of its own for gpt-oss from 0.31, and calls it gpt_oss_mxfp4.
    if method in ("mxfp4", "gpt_oss_mxfp4") and model.model_type == "gpt_oss":
        return "mxfp4", None
    return ("int4", None) if model.weight_format == "int4" else ("other", None)


def _size(situation: Situation) -> int:
    model = situation.model
    return (model.moe_intermediate_size or 0) if model else 0


def _hidden_size(situation: Situation) -> int | None:
    return situation.model.hidden_size if situation.model else None


def _raises(sentence: str) -> ExpertSelection:
    return ExpertSelection(raises=sentence)


def _unsupported(kind: str, backend: str, reason: str) -> ExpertSelection:
    return _raises(
        f"{kind} MoE backend {backend} does not support the deployment configuration since "
        f"{reason}."
    )


def _none(kind: str) -> ExpertSelection:
    return _raises(f"No {kind} MoE backend supports the deployment configuration.")
