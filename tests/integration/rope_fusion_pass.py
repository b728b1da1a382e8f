"""vLLM's own pass that fuses rotary embedding with the cache write, where vLLM leaves it out.

vLLM has it on ROCm only. On a CPU a job names `fuse` under `inductor_passes`, vLLM's setting for
passes of a user's own, and the graph of the whole model goes through it.
"""

from __future__ import annotations

import sys

import torch
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.forward_context import get_forward_context

import tests
from tests.fleet import simulated_machine


def fuse(graph: torch.fx.Graph) -> None:
    """Rewrite the graph of a compiled model in place and print how many layers were fused."""
    # A CPU build lacks some of the operations that vLLM's fusions look up when they are imported.
    simulated_machine.pretend_compiled_ops()
    from vllm.compilation.passes.fusion import rope_kvcache_fusion
    from vllm.compilation.passes.utility.noop_elimination import NoOpEliminationPass
    from vllm.compilation.passes.utility.post_cleanup import PostCleanupPass
    from vllm.compilation.passes.utility.scatter_split_replace import ScatterSplitReplacementPass
    from vllm.compilation.passes.utility.split_coalescing import SplitCoalescingPass

    rope_kvcache_fusion.STATIC_FP8_QUANT_OP = None  # a stand-in; no query is quantized here
    config = VllmConfig(compilation_config=CompilationConfig(custom_ops=["+rotary_embedding"]))
    config.compilation_config.pass_config.fuse_rope_kvcache = True
    layers = get_forward_context().no_compile_layers
    config.compilation_config.static_forward_context.update(layers)
    with set_current_vllm_config(config):
        fusion = rope_kvcache_fusion.RopeKVCacheFusionPass(config)
        for rewrite in (
            NoOpEliminationPass(config),
            SplitCoalescingPass(config),
            ScatterSplitReplacementPass(config),
            fusion,
            PostCleanupPass(config),
        ):
            rewrite(graph)
    print(f"fused layers: {fusion.matched_count}", file=sys.stderr, flush=True)


tests.fuse = fuse  # type: ignore[attr-defined]  # vLLM looks it up in the topmost package
