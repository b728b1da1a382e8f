"""Facts of a machine with nothing to mend, and its relatives with one thing changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm_amdopt.commands.doctor import diagnose
from vllm_amdopt.commands.facts import Facts
from vllm_amdopt.commands.findings import Severity
from vllm_amdopt.commands.installation import CacheDirectory, Installation, TorchBuild
from vllm_amdopt.detection import Gpu
from vllm_amdopt.hardware import GIB, Hardware

INSTALLED = Installation(
    packages={
        "vllm": "0.32.0+rocm722",
        "amd-aiter": "0.1.21.post2",
        "triton": "3.6.0",
        "amdsmi": "26.2.0",
    },
    plugins={"vllm.platform_plugins": ("amdopt",), "vllm.general_plugins": ("amdopt",)},
    torch=TorchBuild("2.10.0+rocm7.2", hip="7.2.26015"),
    aiter_is_from_amd=True,
    vllm_variables=frozenset({"VLLM_ROCM_USE_AITER", "VLLM_PLUGINS", "VLLM_CACHE_ROOT"}),
    compiled=True,
)

GOOD = Facts(
    hardware=Hardware("amd", "gfx942", 8, 192 * GIB, 2048 * GIB, product="MI300X", partition="SPX"),
    gpus=(Gpu("gfx942", 192 * GIB, "MI300X", "SPX", "NPS1", "0000:05:00.0", 177),) * 8,
    on_bus=("MI300X",) * 8,
    rocm="7.2.2",
    python=(3, 12),
    installation=INSTALLED,
    devices={"/dev/kfd": "open", "/dev/dri": "open"},
    numa_balancing=False,
    shared_memory_bytes=64 * GIB,
    caches=(CacheDirectory("VLLM_CACHE_ROOT", "/cache/vllm", True, 100 * GIB),),
)
"""A machine with nothing to mend."""

NO_GPU = replace(
    GOOD,
    hardware=Hardware("cpu", host_memory_bytes=16 * GIB),
    gpus=(),
    on_bus=(),
    devices={"/dev/kfd": "absent", "/dev/dri": "absent"},
    shared_memory_bytes=2 * GIB,
    installation=replace(
        INSTALLED, packages={"vllm": "0.32.0+cpu", "triton": "3.9.0"}, torch=TorchBuild("2.13+cpu")
    ),
)


def installed(*, without: str = "", **changes: Any) -> Installation:
    packages = {**INSTALLED.packages, **changes.pop("packages", {})}
    packages.pop(without, None)
    return replace(INSTALLED, packages=packages, **changes)


def environment(**variables: str) -> Facts:
    return replace(GOOD, environment=variables)


def with_firmware(version: int, **variables: str) -> Facts:
    gpus = tuple(replace(gpu, mec_firmware=version) for gpu in GOOD.gpus)
    return replace(GOOD, gpus=gpus, environment=variables)


def assert_finding(facts: Facts, check: str, severity: Severity, words: str) -> None:
    """One check finds `severity` and says `words`; what is not fine has a remedy."""
    diagnosis = diagnose(facts)
    finding = diagnosis.findings[check]
    assert (finding.severity, words in finding.sentence) == (severity, True), finding
    assert bool(finding.remedy) == (severity != "fine")
    wrong = any(one.severity == "wrong" for one in diagnosis.findings.values())
    assert diagnosis.exit_code == int(wrong)
