"""MLA decode: what is refused. The kernels run in tests/kernels."""

from __future__ import annotations

import pytest
import torch

from vllm_amdopt.ops import mla_decode

SUPPORTED = {"kv_lora_rank": 512, "rope_size": 64, "block_size": 1, "dtype": torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"kv_lora_rank": 384}, "384 + 64", id="latent_size"),
        pytest.param({"rope_size": 32}, "512 + 32", id="rope_size"),
        pytest.param({"block_size": 3}, "--block-size 1", id="odd_block"),
        pytest.param({"cache_dtype": torch.uint8}, "uint8", id="fp8_cache_as_bytes"),
    ],
)
def test_refusals_are_sentences(change: dict[str, object], expected: str) -> None:
    choice = mla_decode.OPERATION.choose(**(SUPPORTED | change))
    assert choice.implementation is None
    assert expected in choice.refusals["triton"]


def test_supported_is_chosen() -> None:
    assert mla_decode.OPERATION.choose(**SUPPORTED).refusals == {}
