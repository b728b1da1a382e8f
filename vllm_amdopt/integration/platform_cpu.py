"""Our subclass of the CPU platform that vLLM would have chosen: a virtual MI300X, for proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.platforms import builtin_platform_plugins
from vllm.utils.import_utils import resolve_obj_by_qualname

from vllm_amdopt.integration import active_plan, faults
from vllm_amdopt.integration.platform import AmdOptPlatform

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.platforms.cpu import CpuPlatform as _BuiltinPlatform
else:
    # Not always CpuPlatform: vLLM has a subclass of it for AMD Zen processors.
    _BuiltinPlatform = resolve_obj_by_qualname(builtin_platform_plugins["cpu"]())


class AmdOptCpuPlatform(AmdOptPlatform, _BuiltinPlatform):
    """vLLM's CPU platform with our hooks."""

    platform_name = "cpu"
    mla_class = "vllm_amdopt.integration.mla_backend_cpu.AmdOptCpuMLABackend"

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        wanted = _MlaLimits.read(vllm_config)
        super().check_and_update_config(vllm_config)

        def lift() -> None:
            if wanted is not None:
                wanted.restore(vllm_config)

        faults.attempt("configuration", lift, lambda: None)

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        if not active_plan.is_on("all_reduce"):
            return super().get_device_communicator_cls()

        def ours() -> str:
            # Imported here, where a failure is a fallback still; vLLM resolves the name unguarded.
            from vllm_amdopt.integration.tensor_parallel import AmdOptCpuCommunicator

            return f"{AmdOptCpuCommunicator.__module__}.{AmdOptCpuCommunicator.__qualname__}"

        return faults.attempt("communicator_class", ours, super().get_device_communicator_cls)


class _MlaLimits:
    """What vLLM's CPU platform takes away from every MLA model, for the sake of its own kernel.

    CPU_MLA decodes at block size 16 only, so the platform forces that, and chunked prefill and
    prefix caching off. Our backend has none of these limits, so what was asked for is put back. One
    stays: vLLM's prefill on CPUs cannot read a context from an fp8 cache, so with one a prompt
    has to be computed whole.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        cache, scheduler = vllm_config.cache_config, vllm_config.scheduler_config
        self.user_block_size = cache.block_size if cache.user_specified_block_size else None
        self.fp8 = cache.cache_dtype.startswith("fp8")
        self.prefix_caching = cache.enable_prefix_caching
        self.chunked_prefill = scheduler.enable_chunked_prefill
        self.max_num_batched_tokens = scheduler.max_num_batched_tokens

    @classmethod
    def read(cls, vllm_config: VllmConfig) -> _MlaLimits | None:
        """The settings before vLLM's platform changes them; None where no plan has MLA on."""
        model: Any = vllm_config.model_config
        plan = active_plan.plan_of(vllm_config)
        if model is None or not model.use_mla or plan is None or not plan.is_on("mla"):
            return None
        return cls(vllm_config)

    def restore(self, vllm_config: VllmConfig) -> None:
        """Put the settings back, and the block size that the plan or the user wants."""
        cache, scheduler = vllm_config.cache_config, vllm_config.scheduler_config
        plan = active_plan.plan_of(vllm_config)
        if self.user_block_size is not None:
            cache.block_size = self.user_block_size
        elif plan is not None and plan.is_on("mla_block_size"):
            cache.block_size = 1
        if self.fp8:
            # Also where vLLM's own platform leaves them on, for a backend that uses AMX.
            cache.enable_prefix_caching = False
            scheduler.enable_chunked_prefill = False
            scheduler.max_num_batched_tokens = max(
                self.max_num_batched_tokens, vllm_config.model_config.max_model_len
            )
            return
        cache.enable_prefix_caching = self.prefix_caching
        scheduler.enable_chunked_prefill = self.chunked_prefill
        scheduler.max_num_batched_tokens = self.max_num_batched_tokens
