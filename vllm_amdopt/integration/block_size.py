"""Settle the KV cache block size in the worker, after the model's attention backends are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from vllm_amdopt.integration import active_plan

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.amdopt")


def settle_block_size(vllm_config: VllmConfig) -> None:
    """The plan's block size (1 for MLA) where it has one and every backend takes it.

    Where a backend of ours had to give way to stock, the size that was chosen for ours may not suit
    the stock backend: then take what that one prefers. A size that the user gave is left alone.
    """
    cache = vllm_config.cache_config
    if vllm_config.model_config is None or cache.user_specified_block_size:
        return
    backends = _attention_backends(vllm_config)
    plan = active_plan.plan_of(vllm_config)
    planned = None if plan is None else plan.settings.get("block_size")
    if isinstance(planned, int):
        refusing = [b.get_name() for b in backends if not b.supports_block_size(planned)]
        if not refusing:
            if cache.block_size != planned:
                logger.info("vllm-amdopt: KV cache block size %d", planned)
            cache.block_size = planned
            return
        logger.warning(
            "vllm-amdopt: block size %d is not taken by %s, so vLLM's own choice stands",
            planned,
            ", ".join(refusing),
        )
    if any(not backend.supports_block_size(cache.block_size) for backend in backends):
        cache.block_size = max(
            backend.get_preferred_block_size(type(cache).DEFAULT_BLOCK_SIZE) for backend in backends
        )


def _attention_backends(vllm_config: VllmConfig) -> list[Any]:
    from vllm.config.vllm import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    layers = get_layers_from_vllm_config(vllm_config, AttentionLayerBase)
    backends = {layer.get_attn_backend() for layer in layers.values()}
    return [backend for backend in backends if not getattr(backend, "is_ssm", lambda: False)()]
