"""Rotary embedding with the cache write: the reference against complex numbers, and refusals."""

from __future__ import annotations

import pytest
import torch

from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.kernels import availability
from vllm_amdopt.ops import rope_and_cache_write
from vllm_amdopt.ops.operation import RefusedError

TOKENS, HEADS, KV_HEADS, SIZE, BLOCK = 5, 4, 2, 16, 4


def inputs(rotary: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    angles = torch.rand(50, rotary // 2, generator=generator, dtype=torch.float64) * 6.0
    return {
        "query": random(TOKENS, HEADS, SIZE),
        "key": random(TOKENS, KV_HEADS, SIZE),
        "value": random(TOKENS, KV_HEADS, SIZE),
        "positions": torch.tensor([3, 49, 0, 7, 7]),
        "cos_sin_cache": torch.cat([angles.cos(), angles.sin()], dim=1),
        "k_cache": torch.zeros(3, KV_HEADS, BLOCK, SIZE, dtype=torch.float64),
        "v_cache": torch.zeros(3, KV_HEADS, BLOCK, SIZE, dtype=torch.float64),
        "slot_mapping": torch.tensor([11, -1, 4, 0]),
    }


def by_complex_numbers(x: torch.Tensor, angles: torch.Tensor, is_neox: bool) -> torch.Tensor:
    """Each pair as one complex number times e^(i angle)."""
    rotary = angles.shape[-1]
    turn = torch.complex(angles[..., : rotary // 2], angles[..., rotary // 2 :])[:, None]
    part = x[..., :rotary].reshape(*x.shape[:-1], *((2, -1) if is_neox else (-1, 2)))
    pairs = part.movedim(-2, -1) if is_neox else part
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    turned = turned.movedim(-1, -2) if is_neox else turned
    return torch.cat([turned.flatten(-2), x[..., rotary:]], dim=-1)


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "gptj"])
@pytest.mark.parametrize("rotary", [SIZE, 6])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_the_reference_is_a_rotation_of_complex_numbers(is_neox, rotary, norm) -> None:
    given = inputs(rotary)
    before = {name: tensor.clone() for name, tensor in given.items()}
    weights = (torch.linspace(0.5, 2.0, SIZE, dtype=torch.float64),) * 2 if norm else (None, None)
    rope_and_cache_write.reference(
        **given, is_neox=is_neox, query_weight=weights[0], key_weight=weights[1], epsilon=1e-3,
        k_scale=0.5, v_scale=4.0,
    )  # fmt: skip
    angles = before["cos_sin_cache"][before["positions"]]
    for name in ("query", "key"):
        x = before[name]
        if norm:
            x = torch.nn.functional.rms_norm(x, (SIZE,), weights[0], 1e-3)
        torch.testing.assert_close(given[name], by_complex_numbers(x, angles, is_neox))
    for token, slot in enumerate(before["slot_mapping"].tolist()):
        if slot >= 0:
            place = (slot // BLOCK, slice(None), slot % BLOCK)
            torch.testing.assert_close(given["k_cache"][place], given["key"][token] / 0.5)
            torch.testing.assert_close(given["v_cache"][place], before["value"][token] / 4.0)
    assert int((given["v_cache"] != 0).any(-1).sum()) == 3 * KV_HEADS


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
@pytest.mark.parametrize("how", ["reference", "triton"])
def test_what_an_fp8_cache_cannot_hold_is_clamped(dtype, how) -> None:
    given = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in inputs(SIZE).items()
    }
    given["value"] = given["value"] * 1e6
    given["k_cache"], given["v_cache"] = (given[n].to(dtype) for n in ("k_cache", "v_cache"))
    gfx = "gfx942" if dtype is torch.float8_e4m3fnuz else "gfx950"
    with emulate(gfx):
        rope_and_cache_write.rope_and_cache_write(**given, is_neox=True, implementation=how)
    written = given["v_cache"][2, :, 3].float()
    assert bool((written.abs() == torch.finfo(dtype).max).all())
    assert torch.equal(written.sign(), given["value"][0].float().sign())


SUPPORTED = {"head_size": 128, "rotary_size": 64, "block_size": 16, "dtype": torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"rotary_size": 63}, "63 of 128 elements", id="odd"),
        pytest.param({"rotary_size": 256}, "256 of 128 elements", id="too_many"),
        pytest.param({"block_size": 24}, "power of two", id="block"),
        pytest.param({"cache_dtype": torch.float16}, "KV cache is float16", id="mixed"),
        pytest.param(
            {"cache_dtype": torch.float8_e4m3fn, "gfx": "gfx942"}, "float8_e4m3fnuz", id="flavour"
        ),
    ],
)
def test_refusals_are_sentences(change: dict[str, object], expected: str) -> None:
    choice = rope_and_cache_write.OPERATION.choose(**(SUPPORTED | change))
    assert choice.implementation is None
    assert expected in choice.refusals["triton"]
    assert choice.refusals["triton"].endswith(".")


def test_fp8_is_refused_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "interpreted", lambda: True)
    facts = SUPPORTED | {"dtype": torch.float16}
    choice = rope_and_cache_write.OPERATION.choose(**facts, cache_dtype=torch.float8_e4m3fn)
    assert "interpreter rounds wrongly" in choice.refusals["triton"]
    assert rope_and_cache_write.OPERATION.choose(**facts).implementation is not None


def test_one_weight_alone_is_refused() -> None:
    given = inputs(SIZE)
    given = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in given.items()
    }
    with pytest.raises(RefusedError, match="both or neither"):
        rope_and_cache_write.rope_and_cache_write(
            **given, is_neox=True, query_weight=torch.ones(SIZE)
        )
