"""Findings about what is installed: Python, vLLM, plugins, torch, Triton, AITER, amdsmi."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.commands.situations import (
    GOOD,
    INSTALLED,
    assert_finding,
    environment,
    installed,
)
from vllm_amdopt.commands.facts import Facts
from vllm_amdopt.commands.findings import Severity
from vllm_amdopt.commands.installation import TorchBuild
from vllm_amdopt.detection import Gpu
from vllm_amdopt.hardware import Hardware


@pytest.mark.parametrize(
    ("facts", "check", "severity", "words"),
    [
        pytest.param(replace(GOOD, python=(3, 10)), "python", "wrong", "too old", id="python 3.10"),
        pytest.param(
            replace(
                GOOD, python=(3, 11), installation=installed(torch=TorchBuild("2.10", cuda="12.9"))
            ),
            "python",
            "advice",
            "vllm#44660",
            id="python without rocm wheels",
        ),
        pytest.param(
            replace(GOOD, installation=installed(without="vllm")),
            "vllm",
            "wrong",
            "not installed next to",
            id="no vllm",
        ),
        pytest.param(
            replace(GOOD, installation=installed(packages={"vllm": "0.19.1"})),
            "vllm",
            "wrong",
            "outside the range >=0.30,<0.34",
            id="old vllm",
        ),
        pytest.param(
            replace(GOOD, installation=installed(packages={"vllm": "main"})),
            "vllm",
            "advice",
            "cannot be told",
            id="unreadable vllm version",
        ),
        pytest.param(
            replace(GOOD, installation=installed(packages={"vllm": "0.32.0+cpu"})),
            "vllm",
            "wrong",
            "is the CPU build",
            id="vllm for the cpu",
        ),
        pytest.param(
            replace(
                GOOD,
                installation=installed(compiled=False),
                environment={"PYTHONDONTWRITEBYTECODE": "1"},
            ),
            "compiled modules",
            "advice",
            "compiles some 6000 files at every start",
            id="modules compiled at every start",
        ),
        pytest.param(
            replace(GOOD, installation=installed(compiled=False)),
            "compiled modules",
            "fine",
            "keeps its compiled modules",
            id="modules to be compiled once",
        ),
        pytest.param(
            replace(GOOD, installation=installed(plugins={})),
            "plugin",
            "wrong",
            "not registered in vllm.platform_plugins and vllm.general_plugins",
            id="no entry points",
        ),
        pytest.param(
            environment(VLLM_PLUGINS="lora, amdopt"),
            "plugin",
            "wrong",
            "without spaces",
            id="VLLM_PLUGINS with a space",
        ),
        pytest.param(environment(VLLM_PLUGINS=""), "plugin", "wrong", "keeps", id="VLLM_PLUGINS="),
        pytest.param(environment(VLLM_AMDOPT="0"), "plugin", "advice", "off", id="switched off"),
        pytest.param(
            replace(
                GOOD,
                installation=installed(
                    plugins={**INSTALLED.plugins, "vllm.platform_plugins": ("atom", "amdopt")}
                ),
            ),
            "other platform plugin",
            "wrong",
            "ATOM",
            id="atom",
        ),
        pytest.param(
            replace(
                GOOD,
                installation=installed(
                    plugins={**INSTALLED.plugins, "vllm.platform_plugins": ("metal", "amdopt")}
                ),
            ),
            "other platform plugin",
            "advice",
            "(metal)",
            id="another plugin",
        ),
        pytest.param(
            replace(GOOD, installation=installed(torch=None)), "torch", "wrong", "not installed"
        ),
        pytest.param(
            replace(GOOD, installation=installed(torch=TorchBuild("2.10.0+cu129", cuda="12.9"))),
            "torch",
            "wrong",
            "is a CUDA build, and an AMD GPU is here",
            id="torch for cuda",
        ),
        pytest.param(
            replace(GOOD, installation=installed(torch=TorchBuild("2.10.0+cpu"))),
            "torch",
            "wrong",
            "is a CPU build",
            id="torch for the cpu",
        ),
        pytest.param(
            replace(GOOD, rocm="6.4.2-120"), "torch", "advice", "ROCm 6.4.2-120", id="rocm differs"
        ),
        pytest.param(
            replace(GOOD, installation=installed(without="triton")),
            "triton",
            "wrong",
            "Triton is not installed",
            id="no triton",
        ),
        pytest.param(
            replace(GOOD, installation=installed(without="amd-aiter", aiter_is_from_amd=False)),
            "aiter",
            "wrong",
            "nothing to do with AMD",
            id="the other aiter",
        ),
        pytest.param(
            replace(GOOD, installation=installed(without="amd-aiter", aiter_is_from_amd=None)),
            "aiter",
            "advice",
            "AITER is not installed",
            id="no aiter",
        ),
        pytest.param(
            replace(GOOD, installation=installed(packages={"amd-aiter": "0.1.7.post2"})),
            "aiter",
            "wrong",
            "AITER 0.1.7.post2 is older than 0.1.20",
            id="old aiter",
        ),
        pytest.param(
            replace(GOOD, installation=installed(without="amd-aiter")),
            "aiter",
            "advice",
            "its version is not known",
            id="aiter from a checkout",
        ),
        pytest.param(
            replace(GOOD, hardware=Hardware("amd", "gfx1100", 1), gpus=(Gpu("gfx1100"),)),
            "aiter",
            "fine",
            "not used by vLLM on gfx1100",
            id="aiter on a Radeon",
        ),
        pytest.param(
            replace(GOOD, installation=installed(without="amdsmi")),
            "amdsmi",
            "wrong",
            "does not see the GPU",
            id="no amdsmi",
        ),
    ],
)
def test_finding(facts: Facts, check: str, severity: Severity, words: str) -> None:
    assert_finding(facts, check, severity, words)
