"""On vLLM's own ROCm platform, with stand-ins for the GPU: which platform, plan and backend result.

What these tests cannot show is any kernel on an AMD GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.forked_programs import ForkedPrograms

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "vllm_amdopt" / "policy" / "model_configs"
GQA_LAYER: dict[str, Any] = {"head_size": 128}
MLA_LAYER: dict[str, Any] = {"head_size": 576, "use_mla": True}
LAYERS = {"gqa": GQA_LAYER, "mla": MLA_LAYER}


Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(forked_programs: ForkedPrograms) -> Ask:
    """The answer of simulated_rocm.py for one machine, model and environment; asked once each."""
    answers: dict[str, Any] = {}

    def answer(gfx: str, aiter: bool, model: str, **variables: str) -> Any:
        config = json.loads((CONFIGS / f"{model}.json").read_text())
        facts = config.get("config", config)
        question = json.dumps({"gfx": gfx, "aiter": aiter, "model": facts, "layers": LAYERS})
        key = json.dumps([question, variables])
        if key not in answers:
            output = forked_programs.run("tests.integration.simulated_rocm", question, **variables)
            answers[key] = json.loads(output.splitlines()[-1])
        return answers[key]

    return answer


def decision(answer: Any, name: str) -> Any:
    return next(d for d in answer["plan"]["decisions"] if d["name"] == name)


@pytest.mark.parametrize(("gfx", "model"), [("gfx942", "llama-3.1-8b"), ("gfx950", "deepseek-v3")])
def test_an_amd_machine_gets_our_platform_without_being_asked(
    ask: Ask, gfx: str, model: str
) -> None:
    answer = ask(gfx, True, model)
    assert answer["platform"] == "AmdOptRocmPlatform"
    assert answer["enum"] == "ROCM"
    assert answer["plan"]["gfx"] == gfx


def test_off_leaves_vllms_own_platform(ask: Ask) -> None:
    answer = ask("gfx942", True, "llama-3.1-8b", VLLM_AMDOPT="0")
    assert answer["platform"] == "RocmPlatform"
    assert answer["aiter_variable"] is None


def test_kernels_without_a_measurement_stay_off_and_say_so(ask: Ask) -> None:
    answer = ask("gfx942", True, "llama-3.1-8b")
    for feature in ("attention", "gemm"):
        entry = decision(answer, feature)
        assert not entry["on"]
        assert "measure" in entry["reason"], entry["reason"]
    assert "amdopt" not in answer["selected"]["gqa"].lower()


def test_a_forced_kernel_is_selected_by_vllms_rocm_platform(ask: Ask) -> None:
    answer = ask("gfx942", False, "llama-3.1-8b", VLLM_AMDOPT_ATTENTION="on")
    assert answer["selected"]["gqa"].endswith("AmdOptAttentionBackend")


def test_forced_mla_brings_block_size_1_without_aiter(ask: Ask) -> None:
    answer = ask("gfx942", False, "deepseek-v3", VLLM_AMDOPT_MLA="on")
    assert answer["selected"]["mla"].endswith("mla_backend.AmdOptMLABackend")
    assert decision(answer, "mla_block_size")["settings"] == {"block_size": 1}


def test_mla_without_aiter_and_without_ours_keeps_triton_mlas_block_size(ask: Ask) -> None:
    answer = ask("gfx942", False, "deepseek-v3")
    assert answer["selected"]["mla"].endswith("TritonMLABackend")
    assert not decision(answer, "mla_block_size")["on"]


def test_aiter_is_switched_on_where_it_is_installed_and_reaches_vllms_selection(ask: Ask) -> None:
    answer = ask("gfx950", True, "deepseek-v3")
    assert answer["aiter_variable"] == "1"
    assert answer["selected"]["mla"].endswith("AiterMLABackend")
    assert decision(answer, "mla_block_size")["on"]


def test_aiter_is_left_alone_where_the_user_decided(ask: Ask) -> None:
    answer = ask("gfx942", True, "deepseek-v3", VLLM_ROCM_USE_AITER="0")
    assert answer["aiter_variable"] == "0"
    assert answer["selected"]["mla"].endswith("TritonMLABackend")


def test_aiter_stays_off_where_it_is_not_installed(ask: Ask) -> None:
    answer = ask("gfx942", False, "deepseek-v3")
    assert answer["aiter_variable"] is None
    assert "AITER is not installed" in decision(answer, "aiter")["reason"]


def test_order_of_attention_backends_reaches_vllms_selection(ask: Ask) -> None:
    answer = ask("gfx942", True, "llama-3.1-8b")
    assert decision(answer, "attention_order")["on"]
    assert answer["selected"]["gqa"].endswith("AiterFlashAttentionBackend")
    assert answer["attention_backend"] is None
    stock = ask("gfx942", True, "llama-3.1-8b", VLLM_AMDOPT="0")
    assert stock["selected"]["gqa"].endswith("RocmAttentionBackend")


def test_a_fault_in_the_order_of_attention_backends_leaves_vllms_own(ask: Ask) -> None:
    answer = ask("gfx942", True, "llama-3.1-8b", VLLM_AMDOPT_INJECT_FAULT="attention_order")
    assert decision(answer, "attention_order")["on"]
    assert answer["selected"]["gqa"].endswith("RocmAttentionBackend")


def test_kv_offload_for_gqa_orders_and_forces_no_attention_backend(ask: Ask) -> None:
    """Whether it is on depends on this machine's memory; then size and order come together."""
    answer = ask("gfx942", False, "llama-3.1-8b", VLLM_AMDOPT_KV_OFFLOAD="on")
    assert answer["attention_backend"] is None
    offload = decision(answer, "kv_offload")
    if offload["on"]:
        assert answer["kv_offloading_size"] > 0
        assert offload["settings"]["attention_order"] == "TRITON_ATTN"
    else:
        assert answer["kv_offloading_size"] is None


def test_kv_offload_is_never_on_for_mla(ask: Ask) -> None:
    answer = ask("gfx950", True, "deepseek-v3")
    assert not decision(answer, "kv_offload")["on"]
    assert answer["kv_offloading_size"] is None
