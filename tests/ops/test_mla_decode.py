"""MLA decode: what is refused, and how it is launched. The kernels run in tests/kernels."""

from __future__ import annotations

import pytest
import torch

from vllm_amdopt.kernels.mla_decode_plan import choose_config, plan, programs
from vllm_amdopt.ops import mla_decode
from vllm_amdopt.ops.operation import RefusedError

SUPPORTED = {"kv_lora_rank": 512, "rope_size": 64, "block_size": 1, "dtype": torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"kv_lora_rank": 384}, "384 + 64", id="latent_size"),
        pytest.param({"rope_size": 32}, "512 + 32", id="rope_size"),
        pytest.param({"block_size": 3}, "--block-size 1", id="odd_block"),
        pytest.param({"cache_dtype": torch.uint8}, "uint8", id="fp8_cache_as_bytes"),
        pytest.param(
            {"cache_dtype": torch.float8_e4m3fn, "gfx": "gfx942"},
            "gfx942 computes with float8_e4m3fnuz",
            id="fp8_of_another_chip",
        ),
        pytest.param({"cache_dtype": torch.float16}, "--kv-cache-dtype auto", id="other_dtype"),
        pytest.param({"query_len": 17}, "fewer speculative tokens", id="long_draft"),
    ],
)
def test_refusals_are_sentences(change: dict[str, object], expected: str) -> None:
    choice = mla_decode.OPERATION.choose(**(SUPPORTED | change))
    assert choice.implementation is None
    assert expected in choice.refusals["triton"]


def test_supported_is_chosen() -> None:
    """The Gluon kernel on the chips that it is for, the portable one anywhere."""
    for gfx in ("gfx942", "gfx950"):
        choice = mla_decode.OPERATION.choose(**SUPPORTED, gfx=gfx)
        assert choice.implementation is mla_decode.OPERATION.implementations[0]
        assert choice.refusals == {}
    choice = mla_decode.OPERATION.choose(**SUPPORTED)
    assert choice.implementation is mla_decode.OPERATION.implementations[1]
    assert set(choice.refusals) == {"gluon"}


def test_fp8_of_the_chip_is_chosen() -> None:
    for gfx, dtype in (("gfx942", torch.float8_e4m3fnuz), ("gfx950", torch.float8_e4m3fn)):
        assert mla_decode.refusal(**SUPPORTED, cache_dtype=dtype, gfx=gfx) is None


def test_tokens_that_are_not_equally_many_are_refused() -> None:
    query = torch.zeros(3, 2, 576)
    with pytest.raises(RefusedError, match="3 query tokens are not equally many for each of 2"):
        mla_decode.mla_decode(
            query,
            torch.zeros(1, 1, 576),
            torch.zeros(2, 1, dtype=torch.int32),
            torch.ones(2, dtype=torch.int32),
            1.0,
            query[..., :512],
            None,
            kv_lora_rank=512,
            max_seq_len=1,
        )


@pytest.mark.parametrize("sequences", [1, 7, 64, 152, 153, 1000])
@pytest.mark.parametrize("heads", [8, 16, 24, 128])
def test_all_parts_are_resident_at_once(sequences: int, heads: int) -> None:
    """Where sequences are cut at all: one workgroup too many would cost a whole further round."""
    config = choose_config(heads, 2)
    tiles = -(-heads // config.rows)
    parts = plan(sequences * tiles, 32768, 304, config)
    assert parts == 1 or sequences * tiles * parts <= 304 * config.workgroups_per_compute_unit
    assert parts > 1 or sequences * tiles * 2 > 304 * 2


def test_short_sequences_are_not_cut() -> None:
    assert plan(1, 127, 304, choose_config(16, 2)) == 1
    assert plan(1, 128, 304, choose_config(16, 2)) == 2
    assert plan(0, 0, 304, choose_config(16, 2)) == 1


@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("items", [1, 8, 13])
def test_the_row_tiles_of_the_same_tokens_follow_each_other_on_one_die(
    items: int, tiles: int
) -> None:
    """The kernel's arithmetic on the grid's numbers: every pair once, its tiles 8 apart."""
    places: dict[tuple[int, int], int] = {}
    for program in range(programs(items, tiles, 1)):
        turn = program // 8
        item = turn // tiles * 8 + program % 8
        if item < items:
            places[item, turn % tiles] = program
    assert len(places) == items * tiles
    for (item, tile), program in places.items():
        assert program == places[item, 0] + 8 * tile
