"""The installed vLLM has every seam, and one that lacks something is told what."""

from __future__ import annotations

import pytest

from vllm_amdopt.integration.compat import seams
from vllm_amdopt.policy.features import FEATURES
from vllm_amdopt.policy.serving_rules import RULES


@pytest.mark.parametrize("platform", seams.PLATFORMS)
def test_installed_vllm_has_all_seams(platform: str) -> None:
    assert seams.missing_seams(platform) == {}


def test_every_feature_and_default_has_a_seam_that_is_checked() -> None:
    assert {entry.seam for entry in (*FEATURES, *RULES)} == {seam.key for seam in seams.SEAMS}


def test_missing_text_and_missing_module_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"vllm.envs": "", "vllm.config.cache": "kv_offloading_size user_specified_block_size"}
    monkeypatch.setattr(seams, "_source", lambda module: source.get(module))
    missing = seams.missing_seams("cpu")
    assert missing["aiter_environment"] == "this vLLM has no 'VLLM_ROCM_USE_AITER' in vllm.envs"
    assert missing["unquantized_gemm"] == (
        "this vLLM has no module vllm.model_executor.layers.utils"
    )
    assert "kv_offload" not in missing


def test_a_seam_is_read_not_imported() -> None:
    """The text is read from the file; a module that cannot be imported is found as well."""
    assert seams._source("vllm.platforms.rocm") is not None
    assert seams._source("vllm.no_such_module") is None
    assert seams._source("no_such_package.module") is None
