"""What vLLM does in the places that the patches change; prints one JSON object.

A program for test_patches.py, not a test: it runs once with the installed vLLM and once with a
patched overlay of it. vLLM's own code runs, on its CPU platform. Where ROCm matters (the offload
buffer) a stand-in answers for the platform; no kernel runs and no device is touched.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import types
import uuid
from typing import Any


def outcome(question: Any) -> Any:
    """What a question answers, or the error that it ends in, in words."""
    try:
        return question()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def linear_kernels() -> Any:
    """Where a plugin's kernels land in the lists that vLLM goes through."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    class First:
        pass

    class Last:
        pass

    linear.register_linear_kernel(Last, PlatformEnum.ROCM, "fp8")
    last = linear._POSSIBLE_FP8_KERNELS[PlatformEnum.ROCM].index(Last)
    linear.register_linear_kernel(First, PlatformEnum.ROCM, "fp8", priority=0)
    linear.register_linear_kernel(First, PlatformEnum.ROCM, "fp8_block", priority=1)
    fp8 = linear._POSSIBLE_FP8_KERNELS[PlatformEnum.ROCM]
    return {
        "last was last": last == len(fp8) - 2 and fp8[-1] is Last,
        "first": fp8.index(First),
        "second of fp8_block": linear._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.ROCM].index(First),
        "unknown type": outcome(
            lambda: linear.register_linear_kernel(First, PlatformEnum.ROCM, "fp9")
        ),
    }


def rocm_module() -> Any:
    """vLLM's ROCm platform, imported on a machine without an AMD GPU.

    It imports the kernels as `vllm._C`. Here that is one of three builds for CPUs, and where the
    platform has loaded another one already, PyTorch ends the process.
    """
    sys.modules.setdefault("vllm._C", types.ModuleType("vllm._C"))
    from vllm.platforms import rocm

    return {
        "arch": rocm._GCN_ARCH,
        "gfx942": rocm.on_gfx942(),
        "capability": outcome(lambda: rocm.RocmPlatform.get_device_capability(0)),
    }


def all_reduce_fusion() -> Any:
    """The passes of a compiled model with fuse_allreduce_rms where neither CUDA nor AITER is."""
    from vllm.compilation.passes import pass_manager
    from vllm.config import VllmConfig

    config = VllmConfig()
    config.compilation_config.pass_config.fuse_allreduce_rms = True
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    pass_manager.logger.addHandler(handler)
    passes = pass_manager.PostGradPassManager()
    passes.configure(config)
    return {
        "fusions": [type(p).__name__ for p in passes.passes if "AllReduce" in type(p).__name__],
        "said": [text for text in said if "fuse_allreduce_rms" in text],
    }


PAGE = 4096
RANKS = 4
POOL = 64 * PAGE * RANKS


def offload_buffer(share: bool, replicated: bool = True) -> Any:
    """Blocks that a buffer holds on ROCm, and whether two ranks see the same bytes."""
    from vllm.v1.kv_offload.cpu import shared_offload_region, spec

    spec.current_platform = types.SimpleNamespace(
        is_rocm=lambda: True,
        is_cuda_alike=lambda: True,
        is_xpu=lambda: False,
    )
    regions: list[Any] = []

    def worker(mmap_region: Any = None, **rest: Any) -> Any:
        regions.append(mmap_region)
        return types.SimpleNamespace()

    spec.CPUOffloadingWorker = worker
    # Two ranks in one process: none waits for the other.
    spec._all_workers_barrier = lambda: None
    shared_offload_region.check_shm_free_space = lambda *a, **k: None
    ns = types.SimpleNamespace
    extra: dict[str, Any] = {"cpu_bytes_to_use": POOL}
    if share:
        extra["share_replicated_region"] = True
    engine = f"patches-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def of_rank(rank: int) -> Any:
        config = ns(
            extra_config=extra,
            enable_kv_cache_events=False,
            groups=(),
            cache=ns(tokens_per_hash=16, blocks_per_chunk=1),
            parallel=ns(rank=rank, world_size=RANKS),
            worker_kv_bytes_per_block=PAGE,
            replicated_layout=replicated,
            engine_id=engine,
            canonical_layout=False,
        )
        info = getattr(spec, "CPUOffloadingInfo", None)
        if info is not None:  # newer vLLM describes the configuration for its metrics
            spec.CPUOffloadingInfo = ns(from_config=lambda *a: None)
        return spec.CPUOffloadingSpec(config)

    specs = [of_rank(0), of_rank(1)]
    # The first to map the region removes its name once all have it; here the second comes later.
    unlink, os.unlink = os.unlink, lambda path: None
    try:
        for one in specs:
            one.create_worker(None)
    finally:
        os.unlink = unlink
    same = None
    if all(region is not None for region in regions):
        views = [region.create_next_worker_view(PAGE) for region in regions]
        views[0][3] = 7
        same = bool((views[1][3] == 7).all())
        for region in regions:
            region.cleanup()
    path = f"/dev/shm/vllm_offload_{engine}.mmap"
    if os.path.exists(path):
        os.unlink(path)
    return {"chunks": specs[0].num_chunks, "one copy": same}


def startup_plan() -> Any:
    """Fingerprints of the start-up plan: of two servers each that differ in one thing."""
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.worker import startup_plan

    def fingerprint(utilization: float = 0.9, **variables: str) -> str:
        config = VllmConfig()
        config.cache_config.gpu_memory_utilization = utilization
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            return startup_plan.compute_plan_fingerprint(config, 0, 1)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    base = fingerprint()
    answer = {
        "again": fingerprint() == base,
        "memory": fingerprint(0.5) == base,
        "variable": fingerprint(VLLM_ROCM_USE_AITER="1") == base,
        "without effect": fingerprint(VLLM_LOGGING_LEVEL="DEBUG") == base,
    }
    hip, torch.version.hip = torch.version.hip, "7.2.3"
    answer["hip"] = fingerprint() == base
    torch.version.hip = hip
    metadata = startup_plan.__dict__.get("importlib")
    if metadata is not None:
        version = metadata.metadata.version
        metadata.metadata.version = lambda name: "0.1.21" if name == "amd-aiter" else version(name)
        answer["aiter"] = fingerprint() == base
        metadata.metadata.version = version
    return answer


def main() -> None:
    """Ask everything, of the vLLM in the folder named on the command line if there is one; print
    the answers last."""
    sys.path[:0] = sys.argv[1:]
    import vllm

    answer = {
        "vllm": vllm.__file__,
        "linear_kernels": outcome(linear_kernels),
        "all_reduce_fusion": outcome(all_reduce_fusion),
        "startup_plan": outcome(startup_plan),
        "offload": {
            "asked for": outcome(lambda: offload_buffer(True)),
            "not asked for": outcome(lambda: offload_buffer(False)),
            "not replicated": outcome(lambda: offload_buffer(True, replicated=False)),
        },
        "rocm_module": outcome(rocm_module),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
