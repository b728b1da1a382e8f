"""Which of our patches the running vLLM has: asked of its files, by the manifest's probes."""

from __future__ import annotations

from functools import cache

from vllm.logger import init_logger

from vllm_amdopt.patching.installation import applied_numbers, find_installation
from vllm_amdopt.patching.manifest import PatchError, load_manifest

logger = init_logger("vllm.amdopt")


@cache
def applied_patches() -> frozenset[str]:
    """The numbers of the patches; none, and one warning, where that cannot be told."""
    try:
        return applied_numbers(load_manifest(), find_installation())
    except PatchError as error:
        logger.warning("vllm-amdopt: no patch is taken as applied: %s", error)
        return frozenset()
