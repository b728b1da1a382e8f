"""The places in vLLM that features hang on, and whether the installed vLLM has them.

A seam is looked for in the text of vLLM's modules: nothing is imported for it, so it costs
milliseconds and works for modules that cannot be imported on this machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PLATFORMS = ("cpu", "rocm", "cuda")


@dataclass(frozen=True)
class Seam:
    """One place: `texts` must occur in the source of `module`. `platforms` need it."""

    key: str
    module: str
    texts: tuple[str, ...]
    platforms: tuple[str, ...] = PLATFORMS


SEAMS: tuple[Seam, ...] = (
    Seam(
        "attention_backend",
        "vllm.v1.attention.backends.registry",
        ("class AttentionBackendEnum", "def register_backend("),
    ),
    Seam(
        "attention_backend",
        "vllm.platforms.interface",
        ("def get_attn_backend_cls(", "attn_selector_config"),
    ),
    Seam(
        "mla_backend",
        "vllm.model_executor.layers.attention.mla_attention",
        ("class MLACommonImpl", "def forward_mqa("),
    ),
    Seam(
        "mla_backend",
        "vllm.v1.attention.backends.mla.cpu_mla",
        ("class CPUMLAImpl", "def do_kv_cache_update("),
        ("cpu",),
    ),
    Seam(
        "unquantized_gemm",
        "vllm.model_executor.layers.utils",
        ("def dispatch_cpu_unquantized_gemm(",),
        ("cpu",),
    ),
    Seam(
        "unquantized_gemm",
        "vllm.model_executor.layers.utils",
        ("def rocm_unquantized_gemm_impl(", 'op_name="rocm_unquantized_gemm"'),
        ("rocm",),
    ),
    Seam(
        "unquantized_gemm",
        "vllm.model_executor.layers.utils",
        ("def default_unquantized_gemm(", "def dispatch_unquantized_gemm("),
        ("cuda",),
    ),
    Seam(
        "device_communicator",
        "vllm.distributed.device_communicators.cpu_communicator",
        ("class CpuCommunicator", "def all_reduce("),
        ("cpu",),
    ),
    Seam("device_communicator", "vllm.platforms.interface", ("def get_device_communicator_cls(",)),
    Seam("block_size", "vllm.config.cache", ("user_specified_block_size",)),
    Seam("block_size", "vllm.platforms.interface", ("def update_block_size_for_backend(",)),
    Seam("kv_offload", "vllm.config.cache", ("kv_offloading_size",)),
    Seam("aiter_environment", "vllm.envs", ("VLLM_ROCM_USE_AITER",)),
    Seam("attention_order", "vllm.platforms.rocm", ("def get_valid_backends(",), ("rocm",)),
    Seam("moe_backend", "vllm.config.kernel", ("moe_backend",)),
    Seam("fuse_allreduce_rms", "vllm.config.compilation", ("fuse_allreduce_rms",)),
    Seam(
        "rope_fusion",
        "vllm.config.compilation",
        ("fuse_rope_kvcache", "fuse_qk_norm_rope_kvcache", "use_inductor_graph_partition"),
    ),
    Seam(
        "rope_fusion",
        "vllm.v1.attention.backend",
        ("def do_rope_and_kv_cache_update(", "def do_qk_norm_rope_kvcache_update("),
    ),
    Seam(
        "startup_plan",
        "vllm.v1.worker.startup_plan",
        ("def compute_plan_fingerprint(", "VLLM_ENABLE_STARTUP_PLAN"),
    ),
    Seam("mm_encoder_tp_mode", "vllm.config.multimodal", ("mm_encoder_tp_mode",)),
    Seam("plan", "vllm.config.vllm", ("apply_config_platform_defaults(",)),
    Seam("environment", "vllm.envs", ("environment_variables",)),
)
"""Checked one by one; a key is missing when any of its lines for the platform is."""


@cache
def _source(module: str) -> str | None:
    # Not importlib.util.find_spec on the module itself: that imports its parent packages.
    package, *rest = module.split(".")
    specification = importlib.util.find_spec(package)
    if specification is None or specification.origin is None:
        return None
    file = Path(specification.origin).parent.joinpath(*rest)
    for candidate in (file.with_suffix(".py"), file / "__init__.py"):
        try:
            return candidate.read_text(encoding="utf-8")
        except OSError:
            continue
    return None


def missing_seams(platform: str) -> Mapping[str, str]:
    """The seams that the installed vLLM lacks on `platform` ("cpu", "rocm", "cuda"), and why."""
    missing: dict[str, str] = {}
    for seam in SEAMS:
        if platform not in seam.platforms or seam.key in missing:
            continue
        source = _source(seam.module)
        if source is None:
            missing[seam.key] = f"this vLLM has no module {seam.module}"
            continue
        for text in seam.texts:
            if text not in source:
                missing[seam.key] = f"this vLLM has no {text.strip()!r} in {seam.module}"
                break
    return missing
