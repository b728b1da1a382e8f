"""Which implementation of an operation a layer is bound to, by engine and by the layer's facts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vllm_amdopt.integration import cpu_engine
from vllm_amdopt.ops import paged_attention_decode

LAYER: dict[str, Any] = {
    "head_size": 128,
    "num_heads": 32,
    "num_kv_heads": 8,
    "block_size": 16,
    "dtype": torch.bfloat16,
    "cache_dtype": torch.bfloat16,
    "query_len": 1,
}


@pytest.mark.parametrize(
    ("engine", "more", "expected"),
    [
        pytest.param("gfx942", {}, "gluon", id="gfx942"),
        pytest.param("gfx950", {}, "gluon", id="gfx950"),
        pytest.param("gfx942", {"block_size": 1}, "triton", id="block_1"),
        pytest.param("gfx942", {"has_sinks": True}, "gluon", id="sinks"),
        pytest.param("gfx942", {"query_len": 2}, "gluon", id="draft"),
        pytest.param("gfx942", {"query_len": 5}, "triton", id="many_drafts"),
        pytest.param("interpreter", {"dtype": torch.float16}, "triton", id="interpreter"),
        pytest.param("reference", {}, "reference", id="reference"),
        pytest.param("gfx942", {"head_size": 100}, "triton", id="all_refuse"),
    ],
)
def test_the_first_that_does_not_refuse_is_chosen(engine, more, expected, monkeypatch) -> None:
    cached = (cpu_engine.gfx, cpu_engine.implementation, cpu_engine.chosen)
    monkeypatch.setattr(cpu_engine, "cpu_engine", lambda: engine)
    for function in cached:
        function.cache_clear()
    try:
        chosen = cpu_engine.chosen(paged_attention_decode.OPERATION, **(LAYER | more))
    finally:
        for function in cached:
            function.cache_clear()
    assert chosen == expected
