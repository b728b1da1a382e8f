"""MLA decode: the kernels as emulated machine code against the reference, and what is refused."""

from __future__ import annotations

import pytest
import torch

from tests.ops.attention_cases import MLA_CASES, MlaCase, check_mla
from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.ops import mla_decode

BY_NAME = {case.name: case for case in MLA_CASES}
SUPPORTED = {"kv_lora_rank": 512, "rope_size": 64, "block_size": 1, "dtype": torch.bfloat16}


@pytest.mark.parametrize("case", MLA_CASES, ids=[case.name for case in MLA_CASES])
def test_bfloat16_on_gfx942(case: MlaCase) -> None:
    with emulate("gfx942"):
        assert check_mla(case, torch.bfloat16) is None


def test_bfloat16_on_gfx950() -> None:
    with emulate("gfx950"):
        assert check_mla(BY_NAME["block_1_split_borders"], torch.bfloat16) is None


def test_float32_on_gfx942() -> None:
    with emulate("gfx942"):
        assert check_mla(BY_NAME["block_1_split_borders"], torch.float32) is None


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
