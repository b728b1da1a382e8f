"""From vLLM's configuration to the facts that the policy decides on. Decides nothing itself."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from vllm_amdopt import hardware
from vllm_amdopt.integration.compat.patches import applied_patches
from vllm_amdopt.integration.compat.seams import missing_seams
from vllm_amdopt.integration.cpu_engine import cpu_engine
from vllm_amdopt.integration.plugin import environment, options_given, users_environment
from vllm_amdopt.policy.model_facts import ModelConfigError, ModelFacts, model_facts
from vllm_amdopt.policy.plan import Situation, Software, UserChoices

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.amdopt")

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def situation(vllm_config: VllmConfig, platform: str) -> Situation:
    """Everything the plan depends on, for `platform` ("cpu", "rocm" or "cuda")."""
    return Situation(
        model=_model(vllm_config),
        hardware=_hardware(),
        choices=user_choices(vllm_config),
        software=Software(
            vllm=vllm_version(),
            triton=_version("triton"),
            aiter=_version("amd-aiter"),
            missing_seams=missing_seams(platform),
            patches=applied_patches(),
        ),
        environment=users_environment(),
    )


def vllm_version() -> str | None:
    """The version of the vLLM that is running."""
    import vllm

    return getattr(vllm, "__version__", None)


def user_choices(vllm_config: VllmConfig) -> UserChoices:
    """What the user asked of vLLM; read before anything of ours changed the configuration."""
    from vllm.platforms import current_platform

    cache, parallel = vllm_config.cache_config, vllm_config.parallel_config
    model: Any = vllm_config.model_config
    backend = vllm_config.attention_config.backend
    given = options_given(sys.argv)
    kernels: Any = getattr(vllm_config, "kernel_config", None)
    passes: Any = vllm_config.compilation_config.pass_config
    multimodal: Any = getattr(model, "multimodal_config", None)
    scheduler: Any = vllm_config.scheduler_config
    allocator = ",".join(environment().get(name, "") for name in ALLOCATOR_VARIABLES)
    return UserChoices(
        block_size=cache.block_size if cache.user_specified_block_size else None,
        attention_backend=None if backend is None else backend.name,
        kv_offload=(
            getattr(cache, "kv_offloading_size", None) is not None
            or vllm_config.kv_transfer_config is not None
        ),
        kv_offloading_gib=getattr(cache, "kv_offloading_size", None),
        # Where the platform has no custom all-reduce, vLLM sets the flag itself.
        disable_custom_all_reduce=(
            parallel.disable_custom_all_reduce and current_platform.use_custom_allreduce()
        ),
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        data_parallel_size=parallel.data_parallel_size,
        max_model_len=None if model is None else model.max_model_len,
        kv_cache_dtype=str(cache.cache_dtype),
        dtype=None if model is None else str(model.dtype).removeprefix("torch."),
        quantization=None if model is None else model.quantization,
        expandable_segments="expandable_segments:true" in allocator.lower(),
        expert_parallel=bool(parallel.enable_expert_parallel),
        prefix_caching=cache.enable_prefix_caching,
        sleep_mode=bool(getattr(model, "enable_sleep_mode", False)),
        moe_backend=_unless_default(kernels, "moe_backend", "auto", "--moe-backend" in given),
        mm_encoder_tp_mode=_unless_default(
            multimodal, "mm_encoder_tp_mode", "weights", "--mm-encoder-tp-mode" in given
        ),
        # None until vLLM's optimization level decides, which comes after this.
        fuse_allreduce_rms=getattr(passes, "fuse_allreduce_rms", None),
        fuse_rope_kvcache=getattr(passes, "fuse_rope_kvcache", None),
        # Without it vLLM has already ended where the format is deprecated.
        allow_deprecated_quantization=True,
        lora=vllm_config.lora_config is not None,
        speculative=vllm_config.speculative_config is not None,
        enforce_eager=bool(getattr(model, "enforce_eager", False)),
        gpu_memory_utilization=cache.gpu_memory_utilization,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_num_seqs=scheduler.max_num_seqs,
    )


def _unless_default(config: Any, name: str, default: str, given: bool) -> str | None:
    """A text setting, or None where it stands at vLLM's default and the user did not say so."""
    value = getattr(config, name, None)
    return None if value is None or (value == default and not given) else str(value)


def _model(vllm_config: VllmConfig) -> ModelFacts | None:
    if vllm_config.model_config is None:
        return None
    try:
        return model_facts(vllm_config.model_config.hf_config.to_dict())
    except ModelConfigError as error:
        logger.warning("vllm-amdopt: nothing is decided from the model: %s", error)
        return None


def _hardware() -> hardware.Hardware:
    engine = cpu_engine()
    return hardware.detect() if engine is None else hardware.virtual(engine)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
