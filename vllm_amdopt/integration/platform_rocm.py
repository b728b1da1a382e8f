"""Our subclass of vLLM's ROCm platform. Importable only where vLLM's own is: on an AMD machine."""

from __future__ import annotations

from vllm.platforms.rocm import RocmPlatform

from vllm_amdopt.integration.platform import AmdOptPlatform


class AmdOptRocmPlatform(AmdOptPlatform, RocmPlatform):
    """vLLM's ROCm platform with our hooks."""

    platform_name = "rocm"
