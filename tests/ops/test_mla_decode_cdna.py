"""MLA decode in Gluon: what the cases of tests/kernels do not hold, its plan, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triton import knobs

from tests.ops.attention_cases import MLA_CASES, check_mla
from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.kernels.cdna.mla_decode_plan import choose_config, plan_parts
from vllm_amdopt.ops import mla_decode_cdna as cdna
from vllm_amdopt.ops.operation import RefusedError

BY_NAME = {case.name: case for case in MLA_CASES}

SUPPORTED = {
    "kv_lora_rank": 512,
    "rope_size": 64,
    "block_size": 1,
    "dtype": torch.bfloat16,
    "gfx": "gfx942",
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"gfx": None}, "this is no AMD GPU", id="no_gpu"),
        pytest.param({"gfx": "gfx1100"}, "this is gfx1100", id="rdna"),
        pytest.param({"dtype": torch.float32}, "no form for float32", id="float32"),
        pytest.param({"dtype": torch.float16}, "no form for float16", id="float16"),
        pytest.param({"cache_dtype": torch.float8_e5m2}, "float8_e5m2 and", id="others_fp8"),
        pytest.param({"kv_lora_rank": 384}, "384 + 64", id="latent_size"),
        pytest.param({"rope_size": 32}, "512 + 32", id="rope_size"),
        pytest.param({"block_size": 256}, "not 256", id="large_block"),
        pytest.param({"block_size": 24}, "not 24", id="odd_block"),
    ],
)
def test_refusals_are_sentences(change: dict[str, object], expected: str) -> None:
    assert cdna.refusal(**SUPPORTED) is None
    sentence = cdna.refusal(**(SUPPORTED | change))
    assert sentence is not None
    assert expected in sentence
    assert sentence.endswith("the portable kernel takes it.")


def test_the_interpreter_is_refused() -> None:
    with knobs.runtime.scope():
        knobs.runtime.interpret = True
        assert "interpreter" in (cdna.refusal(**SUPPORTED) or "")


def test_without_an_amd_gpu_a_launch_is_refused() -> None:
    with pytest.raises(RefusedError, match="this is no AMD GPU"):
        check_mla(BY_NAME["single_row_block_128"], torch.bfloat16, cdna.launch)


def test_with_16_heads_the_waves_meet_only_at_the_end() -> None:
    """As many LDS accesses for ten tiles as for one."""
    counts = []
    for length in (40, 640):
        case = replace(BY_NAME["single_row_block_128"], seq_lens=(length,), splits=1)
        with emulate("gfx942") as device:
            assert check_mla(case, torch.bfloat16, cdna.launch) is None
        counts.append(device.launches[-1]["bytes"])
    short, long = counts
    assert long["lds_load"] == short["lds_load"] > 0
    assert long["lds_store"] == short["lds_store"] > 0
    assert long["global_load"] > 3 * short["global_load"]


@pytest.mark.parametrize("heads", [8, 16, 24, 64, 128])
@pytest.mark.parametrize("sequences", [1, 7, 64, 304, 1000])
def test_all_parts_run_side_by_side_and_all_hold_tokens(sequences: int, heads: int) -> None:
    config = choose_config(heads)
    row_tiles = -(-heads // config.rows)
    parts = plan_parts(sequences * row_tiles, 8192, 304, config)
    assert parts == 1 or sequences * row_tiles * parts <= 304
    tiles = -(-8192 // config.tile)
    assert -(-tiles // -(-tiles // parts)) == parts


@pytest.mark.parametrize(
    ("sequences", "heads", "parts"),
    [(16, 16, 16), (32, 16, 8), (32, 32, 8), (38, 16, 8), (32, 64, 9)],
)
def test_equal_parts_move_less_than_one_for_each_compute_unit(
    sequences: int, heads: int, parts: int
) -> None:
    assert plan_parts(sequences, 8192, 304, choose_config(heads)) == parts


def test_heads_up_to_64_take_one_program() -> None:
    assert [choose_config(heads).rows for heads in (1, 16, 17, 32, 40, 64)] == [
        16, 16, 32, 32, 64, 64,
    ]  # fmt: skip
    assert [choose_config(heads).tile for heads in (8, 24, 64)] == [64, 32, 16]
