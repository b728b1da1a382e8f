"""Decode attention: what the cases of tests/kernels do not hold, and refusals."""

from __future__ import annotations

import mmap
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.ops.attention_cases import DECODE_CASES, AttentionCase, check_attention
from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.kernels import split_plan
from vllm_amdopt.ops import kv_cache_write, paged_attention_decode
from vllm_amdopt.ops.operation import RefusedError
from vllm_amdopt.ops.tolerance import excess
from vllm_amdopt.ops.workspace import workspace

BY_NAME = {case.name: case for case in DECODE_CASES}


def test_no_sequence_launches_nothing() -> None:
    empty = torch.empty(0, 4, 64, dtype=torch.bfloat16)
    cache = torch.empty(1, 2, 16, 64, dtype=torch.bfloat16)
    table, lengths = torch.empty(0, 4, dtype=torch.int32), torch.empty(0, dtype=torch.int32)
    with emulate("gfx942") as device:
        paged_attention_decode.paged_attention_decode(
            empty, cache, cache, table, lengths, 1.0, empty, max_seq_len=16
        )
    assert not device.launches


@pytest.mark.parametrize("gfx", ["gfx942", "gfx950"])
def test_one_launch_merges_and_leaves_the_counters_at_zero(gfx: str) -> None:
    with emulate(gfx) as device:
        for name in ("split_borders", "page_and_tile_borders", "split_borders"):
            assert check_attention(BY_NAME[name], torch.bfloat16) is None
        kernels = [launch["kernel"] for launch in device.launches]
    assert kernels == ["decode_kernel"] * 3
    memory = workspace(torch.device("cpu"), 1, 1)
    assert not memory.counters.any()


@pytest.mark.parametrize("gfx", ["gfx942", "gfx950"])
def test_many_parts_are_merged_in_two_steps(gfx: str, monkeypatch) -> None:
    """What 32 parts of 256 tokens would do, with 2 parts of 64."""
    policy = replace(split_plan.FUSED_SPLIT_POLICY, fan_in=2, least_tokens_in_two_steps=64)
    monkeypatch.setattr(split_plan, "FUSED_SPLIT_POLICY", policy)
    case = AttentionCase("two_steps", (1, 130, 200, 330, 0), 4, 2, 80, 16, splits=6, sinks=True)
    with emulate(gfx):
        assert check_attention(case, torch.bfloat16) is None
    assert not workspace(torch.device("cpu"), 1, 1).counters.any()


def test_pages_that_the_window_has_left_are_not_read() -> None:
    """vLLM frees them: another sequence may have written there since, and their entries may go."""
    generator = torch.Generator().manual_seed(3)
    length, window, size, rows = 150, 40, 64, 16
    cache = torch.randn(12, 1, rows, 2 * size, generator=generator).to(torch.bfloat16)
    query = torch.randn(1, 4, size, generator=generator).to(torch.bfloat16)
    table = torch.randperm(12, generator=generator)[None, :10].to(torch.int32)
    arguments = (torch.tensor([length], dtype=torch.int32), size**-0.5)
    options = {"max_seq_len": length, "sliding_window": window}
    truth, same = torch.empty(1, 4, size, dtype=torch.float64), torch.empty_like(query)
    for into, more in ((truth, {}), (same, {"compute_dtype": torch.bfloat16})):
        wide = torch.float64 if into is truth else torch.bfloat16
        q, k, v = (t.to(wide) for t in (query, cache[..., :size], cache[..., size:]))
        paged_attention_decode.reference(q, k, v, table, *arguments, into, **options, **more)
    freed = (length - window) // rows
    cache[table[0, :freed].long()] = float("nan")
    table[0, :freed] = 2**31 - 1
    out = torch.full_like(query, float("nan"))
    with emulate("gfx942"):
        paged_attention_decode.launch(
            query, cache[..., :size], cache[..., size:], table, *arguments, out, **options
        )
    assert excess(out, truth, same) is None


def sparse_cache(blocks: int, rows: int, width: int) -> Tensor:
    """[blocks, 1, rows, width] bfloat16 zeros that take memory only where they are touched."""
    elements = blocks * rows * width
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, 2 * elements, flags=flags)
    return torch.frombuffer(memory, dtype=torch.bfloat16).view(blocks, 1, rows, width)


def test_offsets_past_2_to_the_31() -> None:
    size, rows = 64, 16
    last = 2**31 // (rows * 2 * size) + 5
    cache = sparse_cache(last + 1, rows, 2 * size)
    assert last * cache.stride(0) > 2**31
    k_cache, v_cache = cache[..., :size], cache[..., size:]
    generator = torch.Generator().manual_seed(6)
    key, value = torch.randn(2, 20, 1, size, generator=generator).to(torch.bfloat16)
    table = torch.tensor([[last, 1]], dtype=torch.int32)
    slots = table[0, torch.arange(20) // rows].long() * rows + torch.arange(20) % rows
    query = torch.randn(1, 2, size, generator=generator).to(torch.bfloat16)
    out = torch.full_like(query, float("nan"))
    arguments = (table, torch.tensor([20], dtype=torch.int32), size**-0.5)
    with emulate("gfx942"):
        kv_cache_write.launch(key, value, k_cache, v_cache, slots)
        paged_attention_decode.launch(query, k_cache, v_cache, *arguments, out, max_seq_len=20)
    assert torch.equal(k_cache[last, 0], key[:rows, 0])
    assert torch.equal(v_cache[1, 0, : 20 - rows], value[rows:, 0])

    # The same twenty tokens in a small cache are the truth.
    small = torch.zeros(2, 1, rows, 2 * size, dtype=torch.bfloat16)
    small[0], small[1] = cache[last], cache[1]
    near = torch.tensor([[0, 1]], dtype=torch.int32)
    truth, same = torch.empty(1, 2, size, dtype=torch.float64), torch.empty_like(query)
    k_small, v_small = small[..., :size], small[..., size:]
    paged_attention_decode.reference(
        query.double(),
        k_small.double(),
        v_small.double(),
        near,
        *arguments[1:],
        truth,
        max_seq_len=20,
    )
    paged_attention_decode.reference(
        query,
        k_small,
        v_small,
        near,
        *arguments[1:],
        same,
        max_seq_len=20,
        compute_dtype=query.dtype,
    )
    assert excess(out, truth, same) is None


SUPPORTED = {
    "head_size": 128,
    "num_heads": 32,
    "num_kv_heads": 8,
    "block_size": 16,
    "dtype": torch.bfloat16,
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"head_size": 100}, "head size 100", id="head_size"),
        pytest.param({"num_heads": 30}, "divide evenly", id="head_ratio"),
        pytest.param({"block_size": 24}, "power of two", id="odd_block"),
        pytest.param({"block_size": 256}, "power of two up to 128", id="large_block"),
        pytest.param({"dtype": torch.float64}, "float64", id="float64"),
        pytest.param({"cache_dtype": torch.float8_e5m2}, "float8_e5m2", id="e5m2_cache"),
        pytest.param(
            {"cache_dtype": torch.float8_e4m3fn, "gfx": "gfx942"}, "fnuz; use", id="foreign_fp8"
        ),
        pytest.param({"query_len": 17}, "17; use the prefill operation", id="many_tokens"),
        pytest.param({"cache_dtype": torch.float16}, "--kv-cache-dtype auto", id="mixed"),
        pytest.param({"gfx": "gfx1100"}, "not for gfx1100", id="rdna"),
    ],
)
def test_refusals_are_sentences(change: dict[str, object], expected: str) -> None:
    choice = paged_attention_decode.OPERATION.choose(**(SUPPORTED | change))
    assert choice.implementation is None
    assert expected in choice.refusals["triton"]
    assert choice.refusals["triton"].endswith(".")


@pytest.mark.parametrize("gfx", [None, "gfx942", "gfx950"])
@pytest.mark.parametrize("more", [{}, {"has_sinks": True, "has_alibi": True, "query_len": 8}])
def test_supported_is_chosen(gfx: str | None, more: dict[str, object]) -> None:
    choice = paged_attention_decode.OPERATION.choose(**SUPPORTED, gfx=gfx, **more)
    assert choice.implementation is not None
    gluon = gfx is not None and not more
    assert choice.implementation.name == ("gluon" if gluon else "triton")
    assert set(choice.refusals) == (set() if gluon else {"gluon"})


def test_calling_what_is_refused_raises_the_sentence() -> None:
    query = torch.empty(1, 2, 100)
    cache = torch.empty(1, 1, 16, 100)
    table, lengths = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with pytest.raises(RefusedError, match="head size 100"):
        paged_attention_decode.paged_attention_decode(
            query, cache, cache, table, lengths, 1.0, query, max_seq_len=1
        )


def test_a_strided_last_dimension_is_refused() -> None:
    query = torch.empty(1, 2, 64)
    cache = torch.empty(1, 1, 64, 16).transpose(2, 3)
    table, lengths = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with pytest.raises(RefusedError, match="k_cache is not contiguous in its last dimension"):
        paged_attention_decode.paged_attention_decode(
            query, cache, cache, table, lengths, 1.0, query, max_seq_len=1
        )
