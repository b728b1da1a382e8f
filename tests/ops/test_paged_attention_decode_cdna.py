"""Decode attention in Gluon: what the cases of tests/kernels do not hold, and refusals."""

from __future__ import annotations

import pytest
import torch
from triton import knobs

from tests.ops.attention_cases import DECODE_CASES, AttentionCase, check_attention
from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.kernels import availability
from vllm_amdopt.ops import paged_attention_decode
from vllm_amdopt.ops import paged_attention_decode_cdna as cdna
from vllm_amdopt.ops.operation import RefusedError

BY_NAME = {case.name: case for case in DECODE_CASES}

SUPPORTED = {
    "head_size": 128,
    "num_heads": 32,
    "num_kv_heads": 8,
    "block_size": 16,
    "dtype": torch.bfloat16,
    "gfx": "gfx942",
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"gfx": None}, "this is no AMD GPU", id="no_gpu"),
        pytest.param({"gfx": "gfx1100"}, "this is gfx1100", id="rdna"),
        pytest.param({"dtype": torch.float32}, "no form for float32", id="dtype"),
        pytest.param({"cache_dtype": torch.float8_e4m3fn}, "float8_e4m3fn and", id="others_fp8"),
        pytest.param({"cache_dtype": torch.float16}, "float16 and queries of", id="mixed"),
        pytest.param({"head_size": 32}, "head size 32", id="head_size"),
        pytest.param({"num_heads": 136}, "not 136 for 8", id="group_17"),
        pytest.param({"num_heads": 12}, "not 12 for 8", id="uneven"),
        pytest.param({"block_size": 4}, "not 4", id="small_block"),
        pytest.param({"block_size": 24}, "not 24", id="odd_block"),
        pytest.param({"query_len": 5}, "4 query heads per KV head, times 5", id="many_tokens"),
    ],
)
def test_refusals_are_sentences(change: dict[str, object], expected: str) -> None:
    assert cdna.refusal(**SUPPORTED) is None
    sentence = cdna.refusal(**(SUPPORTED | change))
    assert sentence is not None
    assert expected in sentence
    assert sentence.endswith("the portable kernel takes it.")


@pytest.mark.parametrize("more", [{"has_sinks": True}, {"has_alibi": True}, {"query_len": 4}])
def test_sinks_alibi_and_drafts_are_taken(more: dict[str, object]) -> None:
    assert cdna.refusal(**(SUPPORTED | more)) is None


def test_the_chips_own_fp8_is_taken_with_scales() -> None:
    for gfx, fp8 in (("gfx942", torch.float8_e4m3fnuz), ("gfx950", torch.float8_e4m3fn)):
        facts = SUPPORTED | {"gfx": gfx, "cache_dtype": fp8, "has_scales": True}
        assert cdna.refusal(**facts) is None


# Each width has another order of the query's elements, and other loads of values.
FP8_CASES = (
    AttentionCase("head_64_parts", (130, 5, 0), 8, 1, 64, 16, splits=2, fp8=True),
    AttentionCase(
        "head_80_window_cap_token_major", (70, 600), 2, 2, 80, 64, None, 300, 20.0, 2,
        token_major=True, fp8=True,
    ),
    AttentionCase("head_192", (70, 3), 6, 3, 192, 8, fp8=True),
    AttentionCase("head_256_group_16_parts", (260,), 16, 1, 256, 128, splits=3, fp8=True),
)  # fmt: skip


@pytest.mark.parametrize("gfx", ["gfx942", "gfx950"])
@pytest.mark.parametrize("case", FP8_CASES, ids=lambda case: case.name)
def test_an_fp8_cache_of_every_width(case: AttentionCase, gfx: str) -> None:
    fp8 = torch.float8_e4m3fnuz if gfx == "gfx942" else torch.float8_e4m3fn
    with emulate(gfx, races=True) as device:
        assert check_attention(case, torch.bfloat16, cdna.launch, served=True, fp8=fp8) is None
    assert [launch["lds_races"] for launch in device.launches] == [[]]


def test_the_interpreter_is_refused() -> None:
    with knobs.runtime.scope():
        knobs.runtime.interpret = True
        assert "interpreter" in (cdna.refusal(**SUPPORTED) or "")


def test_a_triton_without_what_the_kernels_use_is_refused(monkeypatch) -> None:
    from triton.experimental.gluon import language

    monkeypatch.delattr(language.amd, "hint")
    availability.gluon_for_cdna.cache_clear()
    try:
        assert "this Triton has no Gluon" in (cdna.refusal(**SUPPORTED) or "")
    finally:
        availability.gluon_for_cdna.cache_clear()


def test_without_an_amd_gpu_a_launch_is_refused() -> None:
    with pytest.raises(RefusedError, match="this is no AMD GPU"):
        check_attention(BY_NAME["single_row"], torch.bfloat16, cdna.launch)


@pytest.mark.parametrize("launch", [cdna.launch, paged_attention_decode.launch])
def test_tokens_that_are_not_equally_many_are_refused(launch) -> None:
    query, cache = torch.zeros(3, 4, 64), torch.zeros(2, 2, 16, 64)
    table, lengths = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    with pytest.raises(RefusedError, match="3 query tokens are not equally many for each of 2"):
        launch(query, cache, cache, table, lengths, 1.0, query, max_seq_len=1)


def test_the_waves_of_a_workgroup_meet_only_to_merge() -> None:
    """As many barriers and LDS accesses for ten tiles as for one."""
    counts = []
    for length in (100, 1280):
        case = BY_NAME["single_row"].__class__("one", (length,), 8, 2, 64, 16, splits=1)
        with emulate("gfx942") as device:
            assert check_attention(case, torch.bfloat16, cdna.launch) is None
        counts.append(device.launches[-1])
    short, long = (launch["bytes"] for launch in counts)
    assert long["lds_load"] == short["lds_load"] > 0
    assert long["lds_store"] == short["lds_store"] > 0
    assert long["global_load"] > 5 * short["global_load"]
