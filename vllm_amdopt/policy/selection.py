"""Which attention backend vLLM selects on ROCm for a model's decoder layers: predicted, not asked.

`stock` says it for vLLM alone, `planned` under a plan of ours, `so_far` while a plan is being made.
The prediction mirrors vLLM's own selection (platforms/rocm.py get_attn_backend_cls, 0.30 to 0.32)
and is compared with it, executed on a simulated machine, in the tests. It selects nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vllm_amdopt.policy.attention_backends import (
    BACKENDS,
    NEWEST_READ,
    AttentionType,
    Backend,
    Layer,
    candidates,
)
from vllm_amdopt.policy.situation import SettingValue, Situation, is_true

if TYPE_CHECKING:
    from vllm_amdopt.policy.plan_record import Plan

_PACKED_CACHES = ("turboquant", "ultraquant", "nvfp4", "fp8_ds_mla", "nvfp4_ds_mla", "fp8_inc")
_LATENT = ("mla", "sparse_mla")


@dataclass(frozen=True)
class Selection:
    """What is selected for one kind of layer.

    `name` is None where vLLM raises ValueError, or, with no `refusals` either, where nothing is
    predicted (`why` says which). `refusals`: candidate -> why not, in vLLM's words. `valid`: the
    candidates that take the layer, in the order in which they are asked. `block_size`: tokens per
    KV cache block, where it follows from the backend alone.
    """

    name: str | None
    refusals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    valid: tuple[str, ...] = ()
    block_size: int | None = None
    why: str | None = None

    @property
    def raises(self) -> bool:
        """Whether vLLM ends with "No valid attention backend" or refuses the chosen one."""
        return self.name is None and bool(self.refusals)


def decoder_layer(situation: Situation) -> Layer | None:
    """The model's main decoder layers, as vLLM's selector sees them; None if there are none known.

    Of models that mix full and sliding-window layers either kind leads to the same backend.
    """
    model = situation.model
    if model is None or model.attention == "none" or model.head_size <= 0:
        return None
    mla = model.attention in _LATENT or (
        model.attention == "hybrid" and model.kv_lora_rank is not None
    )
    if mla and situation.environment.get("VLLM_MLA_DISABLE", "0").strip() not in ("", "0"):
        return None
    if model.attention == "sparse_mla" and model.kv_lora_rank is None:
        return None  # DeepSeek-V4 brings its own backends (models/deepseek_v4)
    kind: AttentionType = "encoder_only" if model.encoder_only else "decoder"
    return Layer(
        head_size=model.head_size,
        dtype=situation.dtype,
        kv_cache_dtype=situation.choices.kv_cache_dtype,
        use_mla=mla,
        use_sparse=model.attention == "sparse_mla",
        # An MLA layer passes none of these on (layers/attention/mla_attention.py).
        has_sink=model.has_sinks and not mla,
        use_mm_prefix=model.bidirectional_images and not mla,
        has_sliding_window=model.sliding_window is not None and not mla,
        attn_type="decoder" if mla else kind,
        use_batch_invariant=situation.variable("VLLM_BATCH_INVARIANT") not in (None, "", "0"),
    )


def predict_attention(
    situation: Situation,
    *,
    aiter_on: bool,
    attention_order: Sequence[str] = (),
    block_size: int | None = None,
    attention_backend: str | None = None,
    kv_connector: bool = False,
    kv_cache_dtype: str = "auto",
    version: str | None = None,
) -> Selection:
    """The backend that vLLM selects for the model's main decoder layers on this machine.

    `aiter_on`: VLLM_ROCM_USE_AITER as vLLM will see it. `attention_order`: candidates named here
    come first, in this order; the rest keep theirs. `block_size`: what the user gave, in tokens.
    `version`: vLLM's, by default the situation's.
    """
    layer = decoder_layer(situation)
    if situation.hardware.kind != "amd":
        return Selection(None, why="this is not vLLM's ROCm platform")
    if layer is None:
        return Selection(None, why="the model's attention layers are not known")
    if kv_cache_dtype.startswith(_PACKED_CACHES):
        return Selection(None, why=f"--kv-cache-dtype {kv_cache_dtype} has backends of its own")
    layer = replace(
        layer,
        block_size=block_size,
        kv_cache_dtype=kv_cache_dtype,
        use_kv_connector=kv_connector,
    )
    aiter = situation.software.aiter is not None
    vllm = version or situation.software.vllm or NEWEST_READ
    gfx = situation.hardware.gfx
    if attention_backend is not None:
        if attention_backend not in BACKENDS:
            return Selection(None, why=f"{attention_backend} is not one of vLLM's for ROCm")
        asked: tuple[Backend, ...] = (BACKENDS[attention_backend],)
    else:
        asked = candidates(
            layer,
            gfx=gfx,
            aiter=aiter,
            aiter_on=aiter_on,
            mha_on=_on_unless_said(situation, "VLLM_ROCM_USE_AITER_MHA"),
            mla_on=_on_unless_said(situation, "VLLM_ROCM_USE_AITER_MLA"),
            encoder_decoder=situation.model is not None and situation.model.encoder_decoder,
        )
    said = {b.name: b.refusals(layer, gfx=gfx, aiter=aiter, vllm=vllm) for b in asked}
    valid = in_order([name for name, refusals in said.items() if not refusals], attention_order)
    refusals = {name: reasons for name, reasons in said.items() if reasons}
    if not valid:
        return Selection(None, refusals)
    return Selection(
        valid[0],
        refusals,
        valid,
        block_size=_block_size(situation, layer, valid[0]),
    )


def in_order(names: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    """`names` with those that `order` lists first, in its order; the rest keep theirs."""
    first = [name for name in order if name in names]
    return (*first, *(name for name in names if name not in first))


def stock(situation: Situation) -> Selection:
    """What vLLM alone selects, with what the user gave it."""
    return _predict(situation, {}, situation.choices.block_size)


def so_far(situation: Situation) -> Selection:
    """What vLLM selects with what this plan has decided up to here, our own backends apart."""
    return _predict(situation, situation.values, situation.choices.block_size)


def planned(situation: Situation, plan: Plan) -> Selection:
    """What vLLM selects under a plan of ours; our own backend where the plan has it on."""
    layer = decoder_layer(situation)
    ours = None if layer is None else ("mla" if layer.use_mla else "attention")
    size = plan.settings.get("block_size", situation.choices.block_size)
    if ours is not None and plan.is_on(ours):
        name = "AMDOPT_MLA" if ours == "mla" else "AMDOPT_ATTN"
        tokens = size if isinstance(size, int) else 16
        return Selection(name, {}, (name,), tokens, f"the feature {ours} is on")
    found = _predict(situation, plan.settings, situation.choices.block_size)
    if found.block_size is None or not isinstance(size, int):
        return found
    return replace(found, block_size=size)


def _predict(
    situation: Situation, values: Mapping[str, SettingValue], block_size: int | None
) -> Selection:
    """The prediction with these values of a plan on top of what the user gave."""
    choices = situation.choices
    seen = replace(situation, values=dict(values))
    backend = _backend(choices.attention_backend, values)
    # A block size of ours is settled after the backends are known, so only a repair counts here.
    if values.get("block_size") == "default":
        block_size = None
    kv_cache_dtype = str(values.get("kv_cache_dtype", choices.kv_cache_dtype))
    return predict_attention(
        seen,
        aiter_on=is_true(seen.variable("VLLM_ROCM_USE_AITER")),
        attention_order=tuple(filter(None, str(values.get("attention_order", "")).split(","))),
        block_size=block_size,
        attention_backend=backend,
        kv_connector=choices.kv_offload or "kv_offloading_size" in values,
        kv_cache_dtype="auto" if kv_cache_dtype == "default" else kv_cache_dtype,
    )


def _backend(chosen: str | None, values: Mapping[str, SettingValue]) -> str | None:
    """The one backend that is asked for, if any; ours, when it is not on, gives way to vLLM's."""
    value = values.get("attention_backend", chosen)
    if value is None or value == "default" or str(value).startswith("AMDOPT_"):
        return None
    return str(value)


def _on_unless_said(situation: Situation, variable: str) -> bool:
    value = situation.variable(variable)
    return value is None or is_true(value)


def _block_size(situation: Situation, layer: Layer, name: str) -> int | None:
    """Tokens per block: the user's, else what the one backend prefers."""
    model = situation.model
    if model is None or model.attention in ("hybrid", "sparse_mla"):
        return None  # aligned with other layers' pages, or shared with an indexer
    if layer.block_size is not None:
        return layer.block_size
    return BACKENDS[name].preferred_block_size
