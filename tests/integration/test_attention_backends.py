"""Our table of vLLM's attention backends says what vLLM's own selection says, word for word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("gfx", "aiter", "variables"),
    [
        pytest.param("gfx942", "aiter", {"VLLM_ROCM_USE_AITER": "1"}, id="MI300X, AITER on"),
        pytest.param("gfx950", "aiter", {}, id="MI355X, AITER installed"),
        pytest.param("gfx942", "none", {"VLLM_ROCM_USE_AITER": "1"}, id="MI300X, no AITER"),
        pytest.param(
            "gfx942",
            "aiter",
            {
                "VLLM_ROCM_USE_AITER": "1",
                "VLLM_ROCM_USE_AITER_MHA": "0",
                "VLLM_ROCM_USE_AITER_MLA": "0",
            },
            id="MI300X, AITER on without its attention",
        ),
        pytest.param("gfx1201", "aiter", {"VLLM_ROCM_USE_AITER": "1"}, id="RDNA4, AITER on"),
        pytest.param("gfx90a", "aiter", {"VLLM_ROCM_USE_AITER": "1"}, id="MI250X, AITER on"),
    ],
)
def test_table_agrees_with_vllm(gfx: str, aiter: str, variables: dict[str, str]) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    process = subprocess.run(
        [sys.executable, "-m", "tests.integration.simulated_backends", gfx, aiter],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "VLLM_AMDOPT": "0", **variables},
    )
    assert process.returncode == 0, process.stderr[-4000:]
    answer = json.loads(process.stdout.splitlines()[-1])
    assert answer["differences"] == []
    assert answer["compared"] > 1000
