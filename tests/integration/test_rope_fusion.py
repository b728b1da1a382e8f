"""Rotary embedding and cache write as one kernel of ours, put into the graph by vLLM's own pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.integration.offline import GQA, Jobs, questions
from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.integration import attention_backend, faults
from vllm_amdopt.integration.attention_backend import AmdOptAttentionImpl
from vllm_amdopt.ops import rope_and_cache_write

PROMPTS = [item.prompt for item in questions(2)]
FUSED = {
    "enforce_eager": False,
    "compilation_config": {
        "custom_ops": ["all"],
        "inductor_passes": {
            "post_grad_custom_post_pass": "tests.integration.rope_fusion_pass.fuse"
        },
    },
}


def test_a_compiled_model_with_the_fusion_gives_stocks_tokens(jobs: Jobs) -> None:
    ours = jobs.run(
        GQA,
        [PROMPTS],
        environment={"VLLM_AMDOPT": "1", "VLLM_AMDOPT_CPU_ENGINE": "gfx942"},
        arguments=FUSED,
    )
    assert ours.error is None, ours.log
    assert ours.disabled == {}
    assert "fused layers: 2" in ours.log
    assert ours.launches.get("rope_and_cache_write_kernel", 0) > 0, ours.launches
    assert ours.launches["write_heads_kernel"] == 1  # by the self-test: nothing is left for it
    assert ours.tokens() == jobs.stock(GQA, PROMPTS).tokens()


HEADS, KV_HEADS, SIZE, BLOCK, TOKENS = 8, 2, 64, 16, 5
SLOTS = torch.tensor([3, 40, -1, 0, 17])
EPSILON = 1e-5


def random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(torch.bfloat16)


def parts(qkv: torch.Tensor) -> list[torch.Tensor]:
    """Query, key and value of the packed projection, [tokens, heads, SIZE] views."""
    widths = [count * SIZE for count in (HEADS, KV_HEADS, KV_HEADS)]
    return [part.unflatten(1, (-1, SIZE)) for part in qkv.split(widths, dim=1)]


@pytest.mark.parametrize("engine", ["reference", "gfx950"])
@pytest.mark.parametrize("norm", [False, True], ids=["rope", "norm_and_rope"])
@pytest.mark.parametrize("shared", [False, True], ids=["own_cache", "shared_cache"])
def test_a_hook_does_what_vllm_does_in_two_or_three(
    engine: str, norm: bool, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = "reference" if engine == "reference" else "triton"
    monkeypatch.setattr(attention_backend, "implementation", lambda: how)
    monkeypatch.setattr(attention_backend, "kernel_device", lambda: emulate("gfx950"))
    monkeypatch.setattr(faults, "_disabled", {})
    target = "another" if shared else None
    impl = AmdOptAttentionImpl(
        HEADS, SIZE, SIZE**-0.5, KV_HEADS, kv_sharing_target_layer_name=target
    )
    assert impl.fused_rope_kvcache_supported()
    assert impl.fused_qk_norm_rope_kvcache_supported()
    layer: Any = SimpleNamespace(_k_scale_float=1.0, _v_scale_float=1.0)
    qkv = random(TOKENS, (HEADS + 2 * KV_HEADS) * SIZE)
    positions = torch.tensor([7, 0, 33, 2, 11])
    angles = torch.linspace(0.0, 6.0, 40 * SIZE // 2).view(40, -1)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1).to(torch.bfloat16)
    weights = (random(SIZE), random(SIZE + 1)[1:])
    cache, expected_cache = torch.zeros(2, 4, KV_HEADS, BLOCK, 2 * SIZE, dtype=torch.bfloat16)

    query, key, value = (part.double() for part in parts(qkv))
    if norm:
        query, key = (
            torch.nn.functional.rms_norm(heads, (SIZE,), weight.double(), EPSILON)
            for heads, weight in zip((query, key), weights, strict=True)
        )
    turn = cos_sin[positions].double()
    query, key = (rope_and_cache_write.rotate(heads, turn, True) for heads in (query, key))
    if not shared:
        impl.do_kv_cache_update(
            layer, key.to(torch.bfloat16), value.to(torch.bfloat16), expected_cache, SLOTS
        )

    where = (positions, *weights, EPSILON) if norm else (positions,)
    given = qkv.clone()
    q_out, k_out, v_in = parts(given)
    if norm:
        q_out, k_out = torch.empty_like(q_out), torch.empty_like(k_out)
        impl.do_qk_norm_rope_kvcache_update(
            layer, given, q_out, k_out, *where, cos_sin, True, cache, SLOTS
        )
        assert torch.equal(given, qkv)
    else:
        impl.do_rope_and_kv_cache_update(
            layer, q_out, k_out, v_in, *where, cos_sin, True, cache, SLOTS
        )
    assert faults._disabled == {}
    # Each is rounded once to bfloat16, whose step is 2**-8 of the number.
    close = {"rtol": 2**-7, "atol": 2**-8}
    torch.testing.assert_close(q_out.double(), query, **close)
    torch.testing.assert_close(k_out.double(), key, **close)
    torch.testing.assert_close(cache.double(), expected_cache.double(), **close)
    assert bool(cache.any()) is not shared


def test_a_layer_that_failed_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_disabled", {"attention": "it failed"})
    impl = AmdOptAttentionImpl(HEADS, SIZE, SIZE**-0.5, KV_HEADS)
    assert not impl.fused_rope_kvcache_supported()
    assert not impl.fused_qk_norm_rope_kvcache_supported()
