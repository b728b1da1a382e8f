"""Rotary embedding fused with the cache write: opt-in, with our attention, where vLLM compiles."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policy.situations import NOTHING, instinct, plan

ASKED = {"VLLM_AMDOPT_ATTENTION": "on", "VLLM_AMDOPT_FUSED_ROPE": "on"}
SETTINGS = {
    "fuse_rope_kvcache": True,
    "fuse_qk_norm_rope_kvcache": True,
    "use_inductor_graph_partition": True,
}


def planned(environment: dict[str, str], hardware: Any = None, **options: Any) -> Any:
    return plan("qwen3-8b", hardware or instinct(), environment=environment, **options)


def test_it_is_opt_in() -> None:
    attention = {"VLLM_AMDOPT_ATTENTION": "on"}
    offered = planned(attention).decision("fused_rope")
    assert not offered.on and "VLLM_AMDOPT_FUSED_ROPE=on uses it" in offered.reason
    asked = planned(ASKED)
    assert asked.is_on("fused_rope")
    assert {key: asked.settings[key] for key in SETTINGS} == SETTINGS


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param({"environment": {"VLLM_AMDOPT_FUSED_ROPE": "on"}}, "AMDOPT_ATTN", id="stock"),
        pytest.param({"enforce_eager": True}, "with --enforce-eager nothing", id="eager"),
        pytest.param({"hardware": NOTHING}, "only concerns AMD GPUs", id="no_gpu"),
    ],
)
def test_who_asks_in_vain_is_told_why(change: dict[str, Any], sentence: str) -> None:
    result = planned(**({"environment": ASKED} | change))
    assert not result.is_on("fused_rope")
    assert not set(SETTINGS) & set(result.settings)
    (warning,) = [text for text in result.warnings if "fused_rope is off" in text]
    assert sentence in warning


def test_the_users_own_setting_stays() -> None:
    result = planned(ASKED, fuse_rope_kvcache=False)
    assert not set(SETTINGS) & set(result.settings)
    assert "you set pass_config.fuse_rope_kvcache=False" in result.decision("fused_rope").reason
