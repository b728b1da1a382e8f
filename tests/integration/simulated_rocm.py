"""Answers questions about vLLM's ROCm platform on a machine without an AMD GPU.

A program for test_rocm_selection.py, not a test: `amdsmi` and, on demand, AITER are stand-ins that
say what the real ones say about a machine with eight GPUs, so vLLM resolves its ROCm platform and
selects attention backends with its own code. No kernel runs and no device is touched, so what it
shows is selection and configuration, nothing more.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import json
import os
import sys
import types
from typing import Any

GPUS = 8
MEMORY_BYTES = 192 << 30


def stand_in(name: str, **attributes: Any) -> types.ModuleType:
    """A module in `sys.modules` with these attributes."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(attributes)
    sys.modules[name] = module
    return module


def pretend_amd_machine(gfx: str) -> None:
    """What vLLM asks amdsmi for, answered as on a machine with MI300X-class GPUs."""
    exception = type("AmdSmiException", (Exception,), {})
    stand_in(
        "amdsmi",
        AmdSmiException=exception,
        AmdSmiMemoryType=types.SimpleNamespace(VRAM=0),
        amdsmi_init=lambda *a: None,
        amdsmi_shut_down=lambda: None,
        amdsmi_get_processor_handles=lambda: list(range(GPUS)),
        amdsmi_get_gpu_asic_info=lambda handle: {
            "target_graphics_version": gfx,
            "device_id": "0x74a1",
            "market_name": "AMD Instinct (simulated)",
        },
        amdsmi_get_gpu_device_uuid=lambda handle: f"uuid-{handle}",
        amdsmi_get_gpu_memory_total=lambda handle, kind: MEMORY_BYTES,
        amdsmi_topo_get_link_type=lambda a, b: {"hops": 1, "type": 2},
        amdsmi_topo_get_numa_node_number=lambda handle: 0,
    )


def without_compiled_kernels() -> None:
    """The CPU wheel's compiled modules may not run on this CPU, and none of them is called."""
    for name in ("_C", "_C_stable_libtorch", "_rocm_C", "_moe_C", "_moe_C_stable_libtorch"):
        stand_in(f"vllm.{name}")


def without_cpu_build() -> None:
    """vLLM takes "cpu" in its version for its CPU platform, which would then be active as well."""
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: version(name).partition("+")[0]


def pretend_aiter() -> None:
    """The names of AITER that vLLM looks at before it selects one of its backends."""
    aiter = stand_in("aiter", flash_attn_varlen_func=lambda *a, **k: None, __path__=[])

    def mla_decode_fwd(q: object, causal: bool = True) -> None:
        raise NotImplementedError("a stand-in has no kernels")

    aiter.mla = stand_in("aiter.mla", mla_decode_fwd=mla_decode_fwd)  # type: ignore[attr-defined]


def pretend_triton() -> None:
    """vLLM finds no driver and puts a placeholder for Triton; let its modules import anyway."""
    from vllm.triton_utils import importing

    def anything(*arguments: Any, **named: Any) -> Any:
        return arguments[0] if arguments and callable(arguments[0]) else (lambda function: function)

    importing.TritonLanguagePlaceholder.__getattr__ = lambda self, name: lambda *a, **k: None
    importing.TritonPlaceholder.__getattr__ = lambda self, name: anything


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
    pretend_amd_machine(question["gfx"])
    if question["aiter"]:
        pretend_aiter()
    without_compiled_kernels()
    without_cpu_build()
    from vllm.platforms import current_platform

    pretend_triton()
    answer: dict[str, Any] = {
        "platform": type(current_platform).__name__,
        "enum": current_platform._enum.name,
        "communicator": current_platform.get_device_communicator_cls(),
    }
    if getattr(current_platform, "amdopt", False):
        from vllm_amdopt.integration import active_plan, apply_plan, facts_from_vllm

        facts_from_vllm._version = lambda name: {
            "triton": "3.6.0",
            "amd-aiter": "0.1.21.post2" if question["aiter"] else None,
        }[name]
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
