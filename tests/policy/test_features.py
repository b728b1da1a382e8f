"""The four features: where each can run, and what is said where it cannot."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.policy.situations import (
    INTERPRETER,
    NOTHING,
    NVIDIA,
    REFERENCE,
    VIRTUAL,
    instinct,
    plan,
)
from vllm_amdopt.hardware import virtual
from vllm_amdopt.policy import features
from vllm_amdopt.policy.features import FEATURES

FORCE = {"VLLM_AMDOPT_ATTENTION": "on", "VLLM_AMDOPT_MLA": "on", "VLLM_AMDOPT_GEMM": "on"} | {
    "VLLM_AMDOPT_ALL_REDUCE": "on"
}


@pytest.mark.parametrize(
    ("model", "choices", "on"),
    [
        pytest.param("llama-3.1-8b", {}, {"attention", "gemm"}, id="GQA"),
        pytest.param("glm-4.5", {}, {"attention", "gemm"}, id="GQA with experts"),
        pytest.param("deepseek-v3", {}, {"mla"}, id="MLA in FP8"),
        pytest.param("kimi-k2.5", {}, {"mla"}, id="MLA in int4"),
        pytest.param("qwen3-30b-a3b-fp8", {}, {"attention"}, id="GQA in FP8"),
        pytest.param("qwen3-next-80b-a3b", {}, {"gemm"}, id="hybrid"),
        pytest.param("deepseek-v3.2", {}, set(), id="sparse MLA in FP8"),
        pytest.param("gpt-oss-20b", {}, {"attention"}, id="sinks in mxfp4"),
        pytest.param("gemma-3-27b", {}, {"gemm"}, id="bidirectional images"),
        pytest.param("llama-4-scout", {}, {"gemm"}, id="chunked attention"),
        pytest.param(
            "llama-3.1-8b",
            {"tensor_parallel_size": 2},
            {"attention", "gemm", "all_reduce"},
            id="tensor parallel",
        ),
    ],
)
def test_on_a_virtual_device(model: str, choices: dict[str, Any], on: set[str]) -> None:
    made = plan(model, VIRTUAL, **choices)
    assert {feature.name for feature in FEATURES if made.is_on(feature.name)} == on


@pytest.mark.parametrize(
    "hardware",
    [instinct("gfx942"), instinct("gfx950"), NVIDIA],
    ids=["gfx942", "gfx950", "NVIDIA stand-in"],
)
def test_on_a_real_gpu_only_when_switched_on(hardware: Any) -> None:
    made = plan(hardware=hardware, tensor_parallel_size=8)
    assert not [feature.name for feature in FEATURES if made.is_on(feature.name)]
    for name in ("attention", "gemm"):
        assert made.decision(name).reason == (
            f"no measurement on this GPU yet; VLLM_AMDOPT_{name.upper()}=on uses it"
        )
    forced = plan(hardware=hardware, tensor_parallel_size=8, environment=FORCE)
    on = {feature.name for feature in FEATURES if forced.is_on(feature.name)}
    assert on == {"attention", "gemm"}
    assert "cannot map the memory of peer GPUs" in forced.decision("all_reduce").reason


@pytest.mark.parametrize(
    ("name", "model", "hardware", "options", "reason"),
    [
        pytest.param(
            "attention",
            "llama-3.1-8b",
            instinct("gfx1100"),
            {},
            "gfx1100 is RDNA: the kernels are refused there until somebody tunes them",
            id="RDNA",
        ),
        pytest.param(
            "attention",
            "llama-3.1-8b",
            instinct("gfx90a"),
            {},
            "gfx90a is not one of gfx942 or gfx950, which the kernels are written for",
            id="older Instinct",
        ),
        pytest.param(
            "attention",
            "llama-3.1-8b",
            NOTHING,
            {},
            "there is no GPU here and no CPU engine (VLLM_AMDOPT_CPU_ENGINE) to stand in",
            id="nothing to run on",
        ),
        pytest.param(
            "attention",
            "llama-3.1-8b",
            VIRTUAL,
            {"triton": None},
            "Triton is not installed: pip install 'vllm-amdopt[cpu]', or install triton",
            id="no Triton on a CPU",
        ),
        pytest.param(
            "attention",
            "llama-3.1-8b",
            instinct(),
            {"triton": None},
            "Triton is not installed: install the triton package that belongs to your torch",
            id="no Triton on a GPU",
        ),
        pytest.param(
            "attention",
            "llama-3.1-8b",
            VIRTUAL,
            {"kv_cache_dtype": "fp8_e5m2"},
            "the KV cache is fp8_e5m2; the kernels read auto, bfloat16, float16, float32, fp8 or "
            "fp8_e4m3 so far",
            id="E5M2 KV cache",
        ),
        pytest.param(
            "attention",
            "llama-3.1-8b",
            INTERPRETER,
            {},
            "Triton's interpreter cannot compute in bfloat16: set --dtype float32",
            id="interpreter in bfloat16",
        ),
        pytest.param(
            "attention",
            "minimax-m2",
            INTERPRETER,
            {},
            "Triton's interpreter cannot compute in an unknown dtype: set --dtype float32",
            id="interpreter in whatever comes",
        ),
        pytest.param(
            "attention",
            "llama-3.1-8b",
            VIRTUAL,
            {"dtype": "float64"},
            "the model runs in float64, the kernels in bfloat16, float16 or float32",
            id="dtype without a kernel",
        ),
        pytest.param(
            "attention",
            "qwen3-next-80b-a3b",
            VIRTUAL,
            {},
            "the model has hybrid attention, not MHA, GQA or MQA",
            id="hybrid",
        ),
        pytest.param(
            "mla",
            "deepseek-v3.2",
            VIRTUAL,
            {},
            "the model has sparse MLA, not MLA",
            id="sparse MLA",
        ),
        pytest.param(
            "mla",
            "deepseek-v3",
            VIRTUAL,
            {"environment": {"VLLM_MLA_DISABLE": "1"}},
            "VLLM_MLA_DISABLE makes vLLM run this model as multi-head attention",
            id="MLA disabled",
        ),
        pytest.param(
            "mla",
            "deepseek-v3",
            VIRTUAL,
            {"attention_backend": "TRITON_MLA"},
            "you chose --attention-backend TRITON_MLA, which stays",
            id="another MLA backend",
        ),
        pytest.param(
            "gemm",
            "llama-3.1-8b",
            VIRTUAL,
            {"quantization": "fp8"},
            "the weights are quantized (fp8); the kernel is for unquantized linear layers",
            id="quantized on request",
        ),
        pytest.param(
            "all_reduce",
            "llama-3.1-8b",
            VIRTUAL,
            {},
            "tensor parallel size is 1: there is nothing to reduce below 2",
            id="one rank",
        ),
        pytest.param(
            "all_reduce",
            "llama-3.1-8b",
            VIRTUAL,
            {"tensor_parallel_size": 16},
            "tensor parallel size 16 is more than the 8 GPUs of one node",
            id="sixteen ranks",
        ),
        pytest.param(
            "all_reduce",
            "llama-3.1-8b",
            VIRTUAL,
            {"tensor_parallel_size": 2, "disable_custom_all_reduce": True},
            "you gave --disable-custom-all-reduce, which stays",
            id="custom all-reduce disabled",
        ),
        pytest.param(
            "all_reduce",
            "llama-3.1-8b",
            virtual("reference"),
            {"tensor_parallel_size": 2},
            "the reference engine runs no kernels, and between processes there is no other",
            id="reference engine",
        ),
    ],
)
def test_refusal(
    name: str, model: str, hardware: Any, options: dict[str, Any], reason: str
) -> None:
    decision = plan(model, hardware, **options).decision(name)
    assert not decision.on
    assert decision.reason == reason


@pytest.mark.parametrize(
    ("hardware", "options"),
    [
        pytest.param(INTERPRETER, {"dtype": "float32"}, id="interpreter in float32"),
        pytest.param(INTERPRETER, {"dtype": "half"}, id="interpreter in half"),
        pytest.param(REFERENCE, {"triton": None}, id="references without Triton"),
        pytest.param(virtual("gfx950"), {}, id="virtual gfx950"),
        pytest.param(VIRTUAL, {"dtype": "auto"}, id="dtype auto"),
    ],
)
def test_engines(hardware: Any, options: dict[str, Any]) -> None:
    assert plan(hardware=hardware, **options).is_on("attention")


def test_float32_checkpoint_is_cast_down_by_vllm() -> None:
    from dataclasses import replace

    from tests.policy.situations import facts

    model = replace(facts("llama-3.1-8b"), dtype="float32")
    assert not plan(model, INTERPRETER).is_on("attention")
    assert plan(model, INTERPRETER, dtype="float32").is_on("attention")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"encoder_only": True}, "the model is an encoder;", id="encoder"),
        pytest.param({"encoder_decoder": True}, "encoder-decoder", id="encoder-decoder"),
        pytest.param({"attention_chunk_size": 8192}, "chunked local", id="chunked"),
        pytest.param({"bidirectional_images": True}, "in both directions", id="images"),
        pytest.param({"head_size": 72}, "heads of size 72 are not tested", id="head size"),
    ],
)
def test_attention_variations(change: dict[str, Any], reason: str) -> None:
    from dataclasses import replace

    from tests.policy.situations import facts

    decision = plan(replace(facts("llama-3.1-8b"), **change)).decision("attention")
    assert not decision.on
    assert reason in decision.reason


@pytest.mark.parametrize("change", [{"has_alibi": True}, {"has_sinks": True}])
def test_attention_takes_sinks_alibi_and_an_fp8_cache(change: dict[str, Any]) -> None:
    from dataclasses import replace

    from tests.policy.situations import facts

    model = replace(facts("llama-3.1-8b"), **change)
    assert plan(model, VIRTUAL, kv_cache_dtype="fp8").is_on("attention")


def test_latent_of_another_size() -> None:
    from dataclasses import replace

    from tests.policy.situations import facts

    model = replace(facts("deepseek-v3"), kv_lora_rank=384)
    reason = plan(model).decision("mla").reason
    assert reason == "a latent of 384+64 is not tested: 256 or 512 + 64 is"


def test_sizes_are_those_of_the_operations() -> None:
    """The policy may not import the operations (they import torch), so their text is read."""
    operations = Path(features.__file__).parents[1] / "ops"

    def constant(module: str, name: str) -> object:
        tree = ast.parse((operations / f"{module}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return ast.literal_eval(node.value)
        raise AssertionError(f"ops/{module}.py has no {name}")

    assert constant("paged_attention_prefill", "HEAD_SIZES") == features._HEAD_SIZES
    assert constant("mla_decode", "KV_LORA_RANKS") == features._KV_LORA_RANKS
    assert constant("mla_decode", "ROPE_SIZES") == features._ROPE_SIZES


def test_lossy_is_never_on_by_default() -> None:
    assert {feature.numerics for feature in FEATURES} == {"reassociated"}


def test_every_record_is_complete() -> None:
    for feature in FEATURES:
        for text in (feature.swaps, feature.reason, feature.remove_when, str(feature.evidence)):
            assert text
            assert not text.endswith(".")
        for condition in (*feature.requires, *feature.default_when, *feature.yields_to):
            assert condition.describe()
    assert len({feature.seam for feature in FEATURES}) == len(FEATURES)
