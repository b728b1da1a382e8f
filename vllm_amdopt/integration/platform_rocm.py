"""Our subclass of vLLM's ROCm platform. Importable only where vLLM's own is: on an AMD machine."""

from __future__ import annotations

from typing import Any

from vllm.platforms.rocm import RocmPlatform

from vllm_amdopt.integration import faults
from vllm_amdopt.integration.attention_order import in_plan_order
from vllm_amdopt.integration.platform import AmdOptPlatform


class AmdOptRocmPlatform(AmdOptPlatform, RocmPlatform):
    """vLLM's ROCm platform with our hooks."""

    platform_name = "rocm"

    @classmethod
    def get_valid_backends(
        cls, device_capability: Any, attn_selector_config: Any, num_heads: int | None = None
    ) -> tuple[list[tuple[Any, int]], dict[Any, list[str]]]:
        """vLLM's own valid candidates for a layer, in the plan's order.

        Re-ordered, never forced: a layer that the first one cannot serve (an encoder's, one with
        another head size) still gets one that can.
        """
        valid, invalid = super().get_valid_backends(
            device_capability, attn_selector_config, num_heads
        )
        ordered = faults.attempt("attention_order", lambda: in_plan_order(valid), lambda: valid)
        return ordered, invalid
