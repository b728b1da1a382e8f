"""What a model takes of a GPU, worked out by hand for a few layouts, and layouts that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.situations import config, facts
from vllm_amdopt.hardware import GIB
from vllm_amdopt.policy.memory import RESERVE_BYTES, MemoryEstimate, estimate, layout_problem
from vllm_amdopt.policy.model_facts import ModelFacts, model_facts

MI300X = 192 * GIB


def said(result: MemoryEstimate, words: str) -> bool:
    return any(words in sentence for sentence in result.assumptions)


# --- weights ------------------------------------------------------------------------------------


def test_bf16_weights_take_two_bytes_each() -> None:
    model = facts("llama-3.1-8b")
    assert estimate(model).weight_bytes == 2 * (model.parameters or 0)


def test_fp8_blocks_hold_one_scale_each() -> None:
    """Everything in the layers but router and norms is FP8; both tables stay in 16 bits."""
    model = facts("qwen3-235b-a22b-fp8")
    parts = model.parameter_parts
    assert parts is not None
    eights = parts.query + parts.key_value + parts.routed_experts
    sixteens = parts.embedding + parts.output_head + parts.router + parts.small
    expected = eights * (1 + 4 / 128**2) + sixteens * 2
    assert estimate(model).weight_bytes == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        pytest.param("gpt-oss-120b", 4.25, id="MXFP4: 32 values and a byte"),
        pytest.param("kimi-k2.5", 4.5, id="INT4: 32 values and two bytes"),
    ],
)
def test_four_bits_for_the_experts_and_sixteen_for_the_rest(name: str, bits: float) -> None:
    model = replace(facts(name), v_head_dim=None)  # without MLA's second copy
    parts = model.parameter_parts
    assert parts is not None
    expected = parts.routed_experts * bits / 8 + (parts.total - parts.routed_experts) * 2
    assert estimate(model).weight_bytes == pytest.approx(expected)


def test_tensor_parallelism_splits_all_but_norms() -> None:
    model = facts("llama-3.1-70b")
    whole, split = estimate(model).weight_bytes, estimate(model, tensor_parallel_size=8)
    assert whole is not None and split.weight_bytes is not None
    assert split.weight_bytes == pytest.approx(whole / 8, rel=1e-3)


def test_experts_are_split_over_tensor_and_data_ranks() -> None:
    """FusedMoEParallelConfig.make: TP 2 with DP 4 are eight ranks for the experts."""
    model = facts("mixtral-8x7b")
    parts = model.parameter_parts
    assert parts is not None
    one = estimate(model, tensor_parallel_size=2).weight_bytes
    four = estimate(model, tensor_parallel_size=2, data_parallel_size=4).weight_bytes
    assert one is not None and four is not None
    assert one - four == pytest.approx(2 * parts.routed_experts * (1 / 2 - 1 / 8), rel=1e-9)


def test_expert_parallelism_moves_whole_experts() -> None:
    """160 experts over 48 ranks: four on the fullest, which is more than a 48th."""
    model = facts("glm-4.5")
    whole = estimate(
        model, tensor_parallel_size=8, data_parallel_size=6, expert_parallel=True
    ).weight_bytes
    split = estimate(model, tensor_parallel_size=8, data_parallel_size=6).weight_bytes
    parts = model.parameter_parts
    assert whole is not None and split is not None and parts is not None
    assert whole - split == pytest.approx(2 * parts.routed_experts * (4 / 160 - 1 / 48), rel=1e-6)


def test_pipeline_holds_one_stage_and_one_table() -> None:
    model = facts("llama-3.1-70b")
    parts = model.parameter_parts
    assert parts is not None
    result = estimate(model, pipeline_parallel_size=4)
    assert result.weight_bytes == pytest.approx(2 * (parts.layers / 4 + parts.output_head))
    assert said(result, "stages are taken as equal")


def test_mla_counts_its_projections_twice() -> None:
    result = estimate(facts("deepseek-v3"), tensor_parallel_size=8)
    assert result.weight_bytes is not None
    # 84.1 GB for an eighth of the FP8 checkpoint; 61 x 512 x 128 x 256 / 8 values once more.
    assert result.weight_bytes / 1e9 == pytest.approx(85.7, rel=0.01)
    assert said(result, "counted twice")


def test_what_is_not_known_is_said() -> None:
    unknown = estimate(replace(facts("llama-3.1-8b"), parameter_parts=None, model_type="new"))
    assert unknown.weight_bytes is None and unknown.fits is None
    assert said(unknown, "no formula for model type new")
    assert said(estimate(facts("llama-3.1-405b-fp8-kv")), "taken as 16 bits")
    assert said(estimate(facts("kimi-k2.5")), "the weights of the vision part are not counted")


# --- the KV cache -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout", "expected"),
    [
        pytest.param("llama-3.1-8b", {}, 32 * 8 * 2 * 128 * 2, id="GQA"),
        pytest.param("llama-3.1-8b", {"kv_cache_dtype": "fp8"}, 32 * 8 * 2 * 128, id="GQA in FP8"),
        pytest.param("llama-3.1-8b", {"tensor_parallel_size": 8}, 32 * 1 * 2 * 128 * 2, id="split"),
        pytest.param(
            "qwen3-235b-a22b",
            {"tensor_parallel_size": 8},
            94 * 1 * 2 * 128 * 2,
            id="four KV heads repeated over eight ranks",
        ),
        pytest.param("deepseek-v3", {}, 61 * 576 * 2, id="MLA"),
        pytest.param(
            "deepseek-v3", {"tensor_parallel_size": 8}, 61 * 576 * 2, id="MLA is not split"
        ),
        pytest.param("deepseek-v3.2", {}, 61 * (576 * 2 + 128 + 4), id="MLA and an indexer"),
        pytest.param(
            "deepseek-v3.2",
            {"kv_cache_dtype": "fp8_ds_mla"},
            61 * (656 + 128 + 4),
            id="DeepSeek's packed rows",
        ),
        pytest.param("qwen3-next-80b-a3b", {}, 12 * 2 * 2 * 256 * 2, id="hybrid: 12 of 48 layers"),
        pytest.param("gpt-oss-20b", {}, 24 * 8 * 2 * 64 * 2, id="windows counted as full"),
        pytest.param(
            "llama-3.1-70b", {"pipeline_parallel_size": 3}, 27 * 8 * 2 * 128 * 2, id="27 of 80"
        ),
    ],
)
def test_kv_bytes_per_token(name: str, layout: dict[str, object], expected: int) -> None:
    assert estimate(facts(name), **layout).kv_bytes_per_token == expected  # type: ignore[arg-type]


def test_kv_assumptions_are_said() -> None:
    assert said(estimate(facts("qwen3-next-80b-a3b")), "of 48 layers, 12 keep a KV cache")
    assert said(estimate(facts("gpt-oss-20b")), "as if they kept every token")
    assert said(estimate(facts("llama-4-scout")), "as if they kept every token")
    assert said(estimate(facts("deepseek-v3"), tensor_parallel_size=2), "latent is whole")
    assert said(
        estimate(facts("qwen3-235b-a22b"), tensor_parallel_size=8),
        "4 KV heads are repeated over 8 tensor-parallel ranks",
    )
    assert said(estimate(facts("llama-3.1-8b"), kv_cache_dtype="new"), "16 bits a value")
    assert estimate(facts("llama-3.1-8b")).assumptions == ()


@pytest.mark.parametrize(
    ("method", "bytes_per_value"),
    [("compressed-tensors", 1), ("modelopt", 1), ("quark", 2)],
)
def test_auto_is_fp8_where_vllm_takes_it_from_the_checkpoint(
    method: str, bytes_per_value: int
) -> None:
    model = replace(facts("llama-3.1-8b"), quantization=method, kv_scales=True)
    assert estimate(model).kv_bytes_per_token == 32 * 8 * 2 * 128 * bytes_per_value


def test_state_space_model_keeps_nothing_for_a_token() -> None:
    mamba = model_facts({"model_type": "mamba2", "num_hidden_layers": 4, "hidden_size": 64})
    result = estimate(mamba, gpu_memory_bytes=MI300X)
    assert result.kv_bytes_per_token == 0
    assert result.kv_capacity_tokens is None


def test_hybrid_that_does_not_say_its_layers_is_unknown() -> None:
    model = replace(facts("qwen3-next-80b-a3b"), attention_layers=None)
    result = estimate(model, gpu_memory_bytes=MI300X)
    assert result.kv_bytes_per_token is None and result.kv_capacity_tokens is None
    assert result.fits is True


# --- what is left -------------------------------------------------------------------------------


def test_room_is_what_the_budget_leaves() -> None:
    result = estimate(facts("llama-3.1-8b"), gpu_memory_bytes=MI300X)
    assert result.budget_bytes == -(-MI300X * 92 // 100)
    assert result.weight_bytes is not None and result.kv_bytes_per_token is not None
    left = result.budget_bytes - result.weight_bytes - RESERVE_BYTES
    assert result.kv_capacity_tokens == left // result.kv_bytes_per_token
    assert result.fits is True and result.short_by_bytes == 0 and result.context_fits is True


def test_what_does_not_fit_is_short_by_so_much() -> None:
    result = estimate(facts("llama-3.1-405b"), tensor_parallel_size=4, gpu_memory_bytes=MI300X)
    assert result.fits is False and result.kv_capacity_tokens == 0
    assert result.weight_bytes is not None and result.budget_bytes is not None
    missing = result.weight_bytes + RESERVE_BYTES - result.budget_bytes
    assert result.short_by_bytes == missing
    assert estimate(facts("llama-3.1-405b"), tensor_parallel_size=8, gpu_memory_bytes=MI300X).fits


def test_context_that_does_not_fit_is_told_apart_from_weights_that_do_not() -> None:
    model = facts("llama-3.1-70b")
    large = estimate(model, gpu_memory_bytes=160 * GIB)
    assert large.fits is True and large.context_fits is False
    small = estimate(model, gpu_memory_bytes=160 * GIB, context=4096)
    assert small.context_fits is True


def test_context_is_not_judged_where_layers_keep_less_than_is_counted() -> None:
    scout = estimate(facts("llama-4-scout"), tensor_parallel_size=8, gpu_memory_bytes=MI300X)
    assert scout.fits is True and scout.context_fits is None, "ten million tokens, most in chunks"


def test_without_a_gpu_only_sizes_are_known() -> None:
    result = estimate(facts("llama-3.1-8b"))
    assert result.budget_bytes is None and result.fits is None and result.context_fits is None


# --- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout", "sentence"),
    [
        pytest.param(
            "llama-4-scout",
            {"tensor_parallel_size": 16},
            "40 attention heads are not divisible by --tensor-parallel-size 16: choose 8",
            id="heads",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"expert_parallel": True},
            "the model has no experts: leave --enable-expert-parallel out",
            id="no experts",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"pipeline_parallel_size": 33},
            "32 layers do not fill --pipeline-parallel-size 33: choose at most 32",
            id="layers",
        ),
        pytest.param(
            "mistral-large-2",
            {"tensor_parallel_size": 3},
            "8 KV heads and --tensor-parallel-size 3 do not divide evenly: choose 2 or 4",
            id="KV heads",
        ),
        pytest.param(
            "qwen3-30b-a3b",
            {"tensor_parallel_size": 4, "data_parallel_size": 128},
            "the experts' width 768 is not divisible by 512 ranks (tensor times data parallel): "
            "use --enable-expert-parallel, or fewer ranks",
            id="experts",
        ),
        pytest.param(
            "llama-3.1-8b",
            {"tensor_parallel_size": 0},
            "the parallel sizes must be at least 1",
            id="zero",
        ),
    ],
)
def test_layout_that_cannot_be(name: str, layout: dict[str, object], sentence: str) -> None:
    assert layout_problem(facts(name), **layout) == sentence  # type: ignore[arg-type]


def fp8_block(width: int) -> ModelFacts:
    return model_facts(
        {
            **config("llama-3.1-8b"),
            "intermediate_size": width,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        }
    )


def test_mlp_must_split_into_whole_blocks() -> None:
    problem = layout_problem(fp8_block(9728), tensor_parallel_size=8)  # 9728 / 8 = 1216 = 9.5 x 128
    assert problem == (
        "with --tensor-parallel-size 8 the MLP's width 9728 splits into parts of 1216, which are "
        "not whole 128x128 blocks of the FP8 scales: choose a smaller tensor-parallel size"
    )
    assert layout_problem(fp8_block(9728), tensor_parallel_size=4) is None
    odd = layout_problem(fp8_block(9730), tensor_parallel_size=8)
    assert odd is not None and odd.startswith("the MLP's width 9730 is not divisible")


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("deepseek-v3", {"tensor_parallel_size": 8}),
        ("deepseek-v3", {"data_parallel_size": 8, "expert_parallel": True}),
        ("qwen3-235b-a22b-fp8", {"tensor_parallel_size": 8}),
        ("qwen3-30b-a3b", {"data_parallel_size": 512, "expert_parallel": True}),
        ("llama-3.1-405b", {"tensor_parallel_size": 16}),
        ("gpt-oss-120b", {"tensor_parallel_size": 8}),
        ("minimax-m2", {"tensor_parallel_size": 4}),
    ],
)
def test_layouts_that_are_in_use_have_no_problem(name: str, layout: dict[str, object]) -> None:
    assert layout_problem(facts(name), **layout) is None  # type: ignore[arg-type]
