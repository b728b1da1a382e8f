"""Decode attention: what the cases of tests/kernels do not hold, and refusals."""

from __future__ import annotations

import mmap

import pytest
import torch
from torch import Tensor

from tests.ops.attention_cases import DECODE_CASES, check_attention
from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.ops import kv_cache_write, paged_attention_decode
from vllm_amdopt.ops.operation import RefusedError
from vllm_amdopt.ops.tolerance import excess

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


def test_one_split_needs_one_launch_and_several_need_two() -> None:
    case = BY_NAME["split_borders"]
    with emulate("gfx942") as device:
        check_attention(case, torch.bfloat16)
        kernels = [launch["kernel"] for launch in device.launches]
    assert kernels == ["split_kernel", "reduce_kernel"]
    with emulate("gfx942") as device:
        check_attention(BY_NAME["page_and_tile_borders"], torch.bfloat16)
        kernels = [launch["kernel"] for launch in device.launches]
    assert kernels == ["split_kernel"]


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
        pytest.param({"cache_dtype": torch.float8_e4m3fn}, "float8_e4m3fn", id="fp8_cache"),
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
def test_supported_is_chosen(gfx: str | None) -> None:
    choice = paged_attention_decode.OPERATION.choose(**SUPPORTED, gfx=gfx)
    assert choice.implementation is paged_attention_decode.OPERATION.implementations[0]
    assert choice.refusals == {}


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
