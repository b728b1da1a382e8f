"""Findings about the machine: devices, partitions, kernel settings, memory, caches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.commands.situations import (
    GOOD,
    NO_GPU,
    assert_finding,
    with_firmware,
)
from vllm_amdopt.commands.facts import Facts
from vllm_amdopt.commands.findings import Severity
from vllm_amdopt.commands.installation import CacheDirectory
from vllm_amdopt.detection import Gpu
from vllm_amdopt.hardware import GIB, Hardware


@pytest.mark.parametrize(
    ("facts", "check", "severity", "words"),
    [
        pytest.param(
            replace(NO_GPU, on_bus=("MI300X", "MI300X")),
            "gpu",
            "wrong",
            "2 × MI300X on the PCI bus, but the driver shows no GPU",
            id="no driver",
        ),
        pytest.param(
            replace(GOOD, gpus=(*GOOD.gpus, Gpu("gfx1100"))),
            "gpu",
            "advice",
            "8 × MI300X, 1 × gfx1100",
            id="mixed",
        ),
        pytest.param(
            replace(GOOD, hardware=Hardware("amd", "gfx906"), gpus=(Gpu("gfx906"),)),
            "gpu",
            "wrong",
            "know nothing about this GPU",
            id="unknown gfx",
        ),
        pytest.param(
            replace(NO_GPU, hardware=Hardware("nvidia", device_count=1)),
            "gpu",
            "fine",
            "an NVIDIA GPU, no AMD GPU",
            id="nvidia",
        ),
        pytest.param(
            replace(
                NO_GPU,
                hardware=Hardware("nvidia", device_count=1),
                on_bus=("Radeon RX 7900 XTX",),
            ),
            "gpu",
            "fine",
            "an NVIDIA GPU, no AMD GPU",
            id="nvidia beside a Radeon",
        ),
        pytest.param(
            replace(GOOD, caches=(CacheDirectory("HF_HOME", "/shared", False, 100 * GIB),)),
            "caches",
            "fine",
            "caches are writable",
            id="weights shared read-only",
        ),
        pytest.param(
            replace(GOOD, devices={"/dev/kfd": "open", "/dev/dri": "denied"}),
            "device files",
            "wrong",
            "/dev/dri may not be read",
            id="render group",
        ),
        pytest.param(
            replace(GOOD, devices={"/dev/kfd": "absent", "/dev/dri": "open"}),
            "device files",
            "wrong",
            "/dev/kfd is missing",
            id="no kfd",
        ),
        pytest.param(
            replace(GOOD, hardware=replace(GOOD.hardware, partition="CPX")),
            "partition",
            "advice",
            "the GPUs are in CPX mode",
            id="cpx",
        ),
        pytest.param(
            replace(GOOD, numa_balancing=True),
            "numa balancing",
            "advice",
            "NUMA nodes",
            id="numa",
        ),
        pytest.param(
            replace(GOOD, shared_memory_bytes=64 * 2**20),
            "shared memory",
            "wrong",
            "/dev/shm holds 0.1 GiB",
            id="docker's shm",
        ),
        pytest.param(
            replace(GOOD, shared_memory_bytes=2 * GIB),
            "shared memory",
            "advice",
            "/dev/shm holds 2.0 GiB",
            id="smallish shm",
        ),
        pytest.param(
            replace(GOOD, locked_memory_bytes=64 * 1024),
            "locked memory",
            "advice",
            "lock 64 KiB",
            id="memlock",
        ),
        pytest.param(
            with_firmware(138), "scratch reclaim", "wrong", "(MEC) 138 is older", id="old firmware"
        ),
        pytest.param(
            with_firmware(138, HSA_NO_SCRATCH_RECLAIM="1"),
            "scratch reclaim",
            "fine",
            "HSA_NO_SCRATCH_RECLAIM=1",
            id="old firmware, variable set",
        ),
        pytest.param(
            replace(GOOD, gpu_processes=(7, 8, 9, 10, 11, 12)),
            "in use",
            "advice",
            "(7, 8, 9, 10, 11, ...)",
            id="in use",
        ),
        pytest.param(
            replace(GOOD, hardware=replace(GOOD.hardware, host_memory_bytes=64 * GIB)),
            "host memory",
            "advice",
            "64 GiB of host memory for GPUs of 192 GiB",
            id="little host memory",
        ),
        pytest.param(
            replace(GOOD, caches=(CacheDirectory("TRITON_CACHE_DIR", "/ro", False, 1),)),
            "caches",
            "wrong",
            "/ro cannot be written",
            id="read-only cache",
        ),
        pytest.param(
            replace(GOOD, caches=(CacheDirectory("HF_HOME", "/small", True, GIB),)),
            "caches",
            "advice",
            "1.0 GiB are free under /small",
            id="full disk",
        ),
    ],
)
def test_finding(facts: Facts, check: str, severity: Severity, words: str) -> None:
    assert_finding(facts, check, severity, words)
