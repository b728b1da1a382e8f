"""Our table of vLLM's attention backends says what vLLM's own selection says, word for word."""

from __future__ import annotations

import json

import pytest

from tests.integration.forked_programs import ForkedPrograms


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
def test_table_agrees_with_vllm(
    forked_programs: ForkedPrograms, gfx: str, aiter: str, variables: dict[str, str]
) -> None:
    variables = {"VLLM_AMDOPT": "0", **variables}
    output = forked_programs.run("tests.integration.simulated_backends", gfx, aiter, **variables)
    answer = json.loads(output.splitlines()[-1])
    assert answer["differences"] == []
    assert answer["compared"] > 1000
