"""The shapes of the model that vLLM is building, for the self-tests of its attention kernels."""

from __future__ import annotations

from typing import Any

from vllm_amdopt.integration import self_test


def self_test_attention(selector_config: Any, num_heads: int | None) -> None:
    """Run the self-test for the layer that vLLM is choosing a backend for.

    Only where a model is being built in an initialised worker; the main process, which may ask for
    the backend as well, must not touch a device. Raises SelfTestError.
    """
    from vllm.config import get_current_vllm_config_or_none
    from vllm.distributed.parallel_state import model_parallel_is_initialized

    vllm_config = get_current_vllm_config_or_none()
    if vllm_config is None or not model_parallel_is_initialized():
        return
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    heads = num_heads or model.get_num_attention_heads(parallel)
    block_size = selector_config.block_size or vllm_config.cache_config.block_size or 16
    if selector_config.use_mla:
        text: Any = model.hf_text_config
        self_test.check_mla(
            heads,
            text.kv_lora_rank,
            text.qk_rope_head_dim,
            block_size,
            selector_config.dtype,
            fp8=str(selector_config.kv_cache_dtype).startswith("fp8"),
        )
    else:
        self_test.check_attention(
            heads,
            model.get_num_kv_heads(parallel),
            selector_config.head_size,
            block_size,
            selector_config.dtype,
            fp8=str(selector_config.kv_cache_dtype).startswith("fp8"),
        )
