"""Answers questions about vLLM's ROCm platform on a machine without an AMD GPU.

A program for test_rocm_selection.py, not a test: on the simulated machine of tests/fleet vLLM
resolves its ROCm platform and selects attention backends with its own code. The fleet asks the same
for whole models; this asks for single layers. No kernel runs and no device is touched.
"""

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any

from tests.fleet import simulated_machine


def select(**facts: Any) -> str | None:
    """The attention backend's class path that the platform in use selects for a layer."""
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.attention.selector import AttentionSelectorConfig

    known = {
        "head_size": 128,
        "dtype": torch.bfloat16,
        "kv_cache_dtype": "auto",
        "block_size": None,
        "attn_type": "decoder",
        **facts,
    }
    values = {
        name: known.get(name, False)
        for name in AttentionSelectorConfig._fields
        if name in known or name not in AttentionSelectorConfig._field_defaults
    }
    return str(
        current_platform.get_attn_backend_cls(
            None, attn_selector_config=AttentionSelectorConfig(**values), num_heads=16
        )
    )


def fake_config(model: dict[str, Any], **cache: Any) -> Any:
    """As much of a VllmConfig as the plan is made from."""
    ns = types.SimpleNamespace
    return ns(
        additional_config={},
        model_config=ns(
            hf_config=ns(to_dict=lambda: model),
            max_model_len=32768,
            dtype="torch.bfloat16",
            quantization=None,
            use_mla="kv_lora_rank" in model,
        ),
        cache_config=ns(
            **{
                "block_size": 16,
                "user_specified_block_size": False,
                "kv_offloading_size": None,
                "cache_dtype": "auto",
                "enable_prefix_caching": True,
                "gpu_memory_utilization": 0.92,
                **cache,
            }
        ),
        parallel_config=ns(
            disable_custom_all_reduce=False,
            tensor_parallel_size=8,
            pipeline_parallel_size=1,
            data_parallel_size=1,
            enable_expert_parallel=False,
        ),
        attention_config=ns(backend=None),
        kv_transfer_config=None,
        kernel_config=ns(moe_backend="auto"),
        compilation_config=ns(pass_config=ns(fuse_allreduce_rms=None)),
        scheduler_config=ns(max_num_batched_tokens=None, max_num_seqs=None),
        lora_config=None,
        speculative_config=None,
    )


def main() -> None:
    """Read the question (JSON) from the command line, print the answer (JSON) last."""
    question: dict[str, Any] = json.loads(sys.argv[1])
    simulated_machine.pretend_amd_machine(question["gfx"])
    if question["aiter"]:
        simulated_machine.pretend_aiter()
    simulated_machine.without_compiled_kernels()
    simulated_machine.without_cpu_build()
    from vllm.platforms import current_platform

    simulated_machine.pretend_triton()
    answer: dict[str, Any] = {
        "platform": type(current_platform).__name__,
        "enum": current_platform._enum.name,
        "communicator": current_platform.get_device_communicator_cls(),
    }
    if getattr(current_platform, "amdopt", False):
        from vllm_amdopt.integration import active_plan, apply_plan

        simulated_machine.pretend_versions(question["aiter"])
        config = fake_config(question["model"], **question.get("cache", {}))
        apply_plan.prepare(config, "rocm")
        answer["plan"] = config.additional_config[active_plan.CONFIG_KEY]
        answer["kv_offloading_size"] = config.cache_config.kv_offloading_size
        backend = config.attention_config.backend
        answer["attention_backend"] = None if backend is None else backend.name
        active_plan.current = lambda: active_plan.load(config)
    answer["aiter_variable"] = os.environ.get("VLLM_ROCM_USE_AITER")
    answer["selected"] = {name: select(**facts) for name, facts in question["layers"].items()}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
