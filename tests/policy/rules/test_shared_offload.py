"""One copy of the latent for all ranks: opt-in, with the patch, for buffers that ROCm registers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policy.situations import CURRENT_AITER, instinct, plan

ON_MI300X: dict[str, Any] = {"hardware": instinct(), "aiter": CURRENT_AITER}
SHARED_ON = {"environment": {"VLLM_AMDOPT_MLA_OFFLOAD_SHARED": "on"}}
OFFLOAD: dict[str, Any] = {"tensor_parallel_size": 8, "kv_offload": True, "kv_offloading_gib": 64.0}


def test_a_shared_buffer_is_opt_in_and_silences_the_word_of_copies() -> None:
    offered = plan("deepseek-v3", **ON_MI300X, **OFFLOAD, patches=("0005",))
    assert (
        "VLLM_AMDOPT_MLA_OFFLOAD_SHARED=on uses it" in offered.decision("mla_offload_shared").reason
    )
    assert offered.is_on("mla_offload_copies")
    made = plan("deepseek-v3", **ON_MI300X, **SHARED_ON, **OFFLOAD, patches=("0005",))
    assert made.settings["share_replicated_region"] is True
    assert not made.is_on("mla_offload_copies")
    assert not made.warnings


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param(
            {"patches": ()}, "needs patch 0005: `vllm-amdopt patches apply 0005`", id="patch"
        ),
        pytest.param(
            {"kv_offloading_gib": 65.0}, "65 GiB would be registered by every rank", id="too large"
        ),
        pytest.param({"kv_offloading_gib": None}, "give it with --kv-offloading-size", id="size"),
        pytest.param({"tensor_parallel_size": 1}, "stores one copy", id="one rank"),
    ],
)
def test_what_keeps_the_buffer_from_being_shared(options: dict[str, Any], reason: str) -> None:
    asked = {**OFFLOAD, "patches": ("0005",), **options}
    made = plan("deepseek-v3", **ON_MI300X, **SHARED_ON, **asked)
    assert reason in made.decision("mla_offload_shared").reason
    assert "share_replicated_region" not in made.settings
    assert [warning for warning in made.warnings if reason in warning], "it was asked for"
