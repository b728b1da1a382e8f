"""`vllm serve` over HTTP with each feature alone, and with all off: stock's tokens.

A file of its own beside test_serving, so that the two run at the same time.
"""

from __future__ import annotations

import pytest

from tests.integration.offline import GQA, MLA, Jobs
from tests.integration.served import only, serve, states, stock


@pytest.mark.parametrize(
    ("model", "feature", "sign"),
    [
        (GQA, "attention", "Using AMDOPT_ATTN backend"),
        (MLA, "mla", "Using AMDOPT_MLA backend"),
        (GQA, "gemm", None),
    ],
    ids=["attention", "mla", "gemm"],
)
def test_each_feature_alone(jobs: Jobs, model: str, feature: str, sign: str | None) -> None:
    tokens, log = serve(model, environment={"VLLM_AMDOPT": feature})
    assert tokens == stock(jobs, model)
    assert states(log) == only(feature)
    if sign is None:
        assert "AMDOPT_" not in log.replace("VLLM_AMDOPT_", "")
    else:
        assert sign in log
    assert "is switched off" not in log


def test_all_off_is_stock_without_a_word(jobs: Jobs) -> None:
    tokens, log = serve(GQA, plugin="off")
    assert tokens == stock(jobs, GQA)
    assert "vllm-amdopt" not in log
    assert "Unknown vLLM environment variable" not in log
    assert "Using AMDOPT" not in log
