"""`vllm-amdopt explain` and `diff`: what a person reads, and what a script gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.policy.situations import config
from vllm_amdopt import cli, hardware
from vllm_amdopt.hardware import Hardware, virtual
from vllm_amdopt.policy.model_fixtures import fixture_names
from vllm_amdopt.policy.plan import Plan

MI300X = ("--gpu", "MI300X", "--vllm", "0.32.0")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config("llama-3.1-8b")))
    return directory


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers on a developer's GPU machine: there, too, no GPU is found."""
    monkeypatch.setattr(
        hardware,
        "detect",
        lambda engine=None: Hardware("cpu") if engine is None else virtual(engine),
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, " ".join(captured.out.split()), captured.err


def record(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    cli.main(("explain", *arguments, "--json"))
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_without_a_gpu(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    code, out, err = run(capsys, "explain", str(model), "--vllm", "0.32.0")
    assert (code, err) == (0, "")
    assert "there is no GPU here: this is the plan for the CPU engine gfx942" in out
    assert "virtual gfx942" in out
    assert "mla off the model has GQA, not MLA" in out


def test_it_says_that_the_plugin_is_not_active_by_itself(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "only acts if asked to" in run(capsys, "explain", str(model))[1]
    monkeypatch.setenv("VLLM_AMDOPT", "1")
    assert "only acts if asked to" not in run(capsys, "explain", str(model))[1]


def test_a_file_or_its_directory(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    whole = record(capsys, str(model))
    assert record(capsys, str(model / "config.json"))["decisions"] == whole["decisions"]


@pytest.mark.parametrize(
    ("name", "hf_model"),
    [
        ("deepseek-v3", "deepseek-ai/DeepSeek-V3"),
        ("DeepSeek-V3", "deepseek-ai/DeepSeek-V3"),
        ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3"),
        ("qwen3-vl-235b", "Qwen/Qwen3-VL-235B-A22B-Instruct"),
        ("llama-3.1-405b-fp8", "meta-llama/Llama-3.1-405B-Instruct-FP8"),
    ],
)
def test_a_shipped_config_by_name(
    capsys: pytest.CaptureFixture[str], name: str, hf_model: str
) -> None:
    code, out, _ = run(capsys, "explain", name, *MI300X, "--tp", "8")
    assert code == ("fp8" in name), "vLLM calls fbgemm_fp8 deprecated"
    assert f"note: config of {hf_model}, from" in out


def test_a_partial_config_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "; partial: " in run(capsys, "explain", "minimax-m2", *MI300X, "--tp", "4")[1]


def test_another_machine(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    code, out, _ = run(
        capsys, "explain", str(model), "--gpu", "mi355x", "--vllm", "0.31.0",
        "--host-memory", "1024", "--aiter", "0.1.21",
    )  # fmt: skip
    assert code == 0
    assert "AMD Instinct MI355X (gfx950), vLLM 0.31.0" in out
    assert "aiter: VLLM_ROCM_USE_AITER=1" in out
    assert "kv_offload: kv_offloading_size=64" in out
    assert "attention ROCM_ATTN, block 16 ROCM_AITER_FA, block 16" in out
    assert "evidence: reported in vllm#56945" in out
    assert "KV cache holds" in out
    assert "vllm serve" in out


def test_it_says_what_it_assumes(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    _, out, _ = run(capsys, "explain", str(model), *MI300X)
    assert "note: the host's memory is not known: --host-memory GIB says it" in out
    assert "is taken as installed: --aiter none takes it as not" in out


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ((), "aiter", "VLLM_ROCM_USE_AITER=1"),
        (("--aiter", "none"), "aiter", "AITER is not installed"),
        (("--aiter", "0.1.5"), "aiter", "AITER 0.1.5 is older than"),
        (("-tp", "4"), "all_reduce", "cannot map the memory of peer GPUs"),
        (("--tensor-parallel-size", "16"), "all_reduce", "more than the 8 GPUs"),
        (("--host-memory", "100"), "kv_offload", "a quarter of the host's 100 GiB"),
        (
            ("--host-memory", "2000", "--serve-args", "--max-model-len 4K"),
            "kv_offload",
            "offloading_size=32.0",
        ),
        (("--host-memory", "512", "--tp", "8", "--dp", "8"), "kv_offload", "data-parallel engines"),
        (("--serve-args", "--kv-cache-dtype fp8_e5m2"), "attention", "the KV cache is fp8_e5m2"),
        (("--serve-args", "--attention-backend TRITON_ATTN"), "attention", "you chose --attention"),
        (("--serve-args", "--dtype float64"), "gemm", "the model runs in float64"),
        (("--serve-args", "VLLM_ROCM_USE_AITER=0 vllm serve x"), "aiter", "you set VLLM_ROCM_USE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_reach_the_plan(
    capsys: pytest.CaptureFixture[str],
    model: Path,
    options: tuple[str, ...],
    name: str,
    reason: str,
) -> None:
    decision = Plan.from_dict(record(capsys, str(model), *MI300X, *options)).decision(name)
    settings = ", ".join(f"{k.removeprefix('env.')}={v}" for k, v in decision.settings.items())
    assert reason in f"{settings}; {decision.reason}"


def test_expert_parallelism_reaches_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    narrow = record(capsys, "minimax-m2", *MI300X, "--tp", "8")
    whole = record(capsys, "minimax-m2", *MI300X, "--tp", "8", "--ep")
    assert Plan.from_dict(narrow).is_on("aiter_experts_off"), "the shards are too narrow"
    assert not Plan.from_dict(whole).is_on("aiter_experts_off")


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("qwen3-32b", ("--tp", "3"), "64 attention heads are not divisible"),
        (
            "llama-3.1-405b",
            ("--tp", "1"),
            "the GPU is short of 583.3 GiB; --tensor-parallel-size 8 is estimated to fit",
        ),
        (
            "llama-3.1-8b",
            ("--gpu", "gfx1201"),
            "--tensor-parallel-size 4 is estimated to fit, or 2 with --max-model-len 53100 or less",
        ),
        ("deepseek-v3.2", ("--tp", "8", "--aiter", "none"), "AITER"),
    ],
)
def test_what_cannot_run_is_a_problem_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], name: str, options: tuple[str, ...], problem: str
) -> None:
    code, out, _ = run(capsys, "explain", name, *MI300X, *options)
    assert code == 1
    assert "problem: " in out
    assert problem in out
    assert "what you asked for, which cannot run so (see above): vllm serve" in out
    assert "for vLLM alone:" not in out


def test_an_unknown_model_gets_the_rules_that_need_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Unheard"], "layers": 3}')
    code, out, _ = run(capsys, "explain", str(tmp_path), *MI300X, "--tp", "2")
    assert code == 0
    assert "nothing is known about the model: the number of attention heads is not given" in out
    assert "environment: HIP_FORCE_DEV_KERNARG=1" in out


def test_a_guard_repairs_what_the_user_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "explain", "kimi-k2.5", *MI300X, "--tp", "8", "--serve-args",
        "VLLM_ROCM_USE_AITER=0 VLLM_USE_TRITON_FLASH_ATTN=0 vllm serve x --block-size 1",
    )  # fmt: skip
    assert code == 0
    assert "warning: block_size:" in out
    assert "--block-size 1 is dropped" in out
    assert "VLLM_USE_TRITON_FLASH_ATTN" in out
    by_hand = out.partition("for vLLM alone:")[2]
    assert "VLLM_ROCM_USE_AITER=0" in by_hand
    assert "--block-size" not in by_hand


@pytest.mark.parametrize(
    ("name", "options", "served"),
    [
        ("gemma-3-27b", (), "google/gemma-3-27b-it"),
        ("kimi-k2.5", ("--serve-args", "vllm serve x"), "x"),
    ],
)
def test_the_command_serves_what_can_be_served(
    capsys: pytest.CaptureFixture[str], name: str, options: tuple[str, ...], served: str
) -> None:
    commands = record(capsys, name, *MI300X, "--tp", "8", *options)["commands"]
    assert f"vllm serve {served} " in commands["with_plugin"]
    assert f"vllm serve {served} " in commands["by_hand"]


def test_a_gfx_name_says_what_it_is_taken_for(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "explain", "llama-3.1-8b", "--gpu", "gfx1201", "--tp", "4")
    assert "gfx1201 may be one of several GPUs and is taken as one with 16 GiB" in out


def test_json_is_a_plan_and_more(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    found = record(capsys, str(model), *MI300X)
    assert Plan.from_dict(found).gfx == "gfx942"
    assert found["memory"]["fits"] is True
    assert found["outcomes"]["attention"]["planned"].startswith("ROCM_AITER_FA")
    assert found["commands"]["with_plugin"].endswith("--plugin amdopt")


def test_markdown(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    cli.main(("explain", str(model), *MI300X, "--markdown"))
    out = capsys.readouterr().out
    assert out.startswith(f"# {model} on AMD Instinct MI300X (gfx942)\n")
    assert "\n## What is set\n\n| what | by rule | why | evidence and source |\n" in out
    assert out.count("```") == 4


def test_all_gives_each_rule_its_reason(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert "--all says why" in run(capsys, "explain", str(model), *MI300X)[1]
    every = run(capsys, "explain", str(model), *MI300X, "--all")[1]
    assert "--all says why" not in every
    for decision in record(capsys, str(model), *MI300X)["decisions"]:
        assert f" {decision['name']}" in every


def test_it_reads_the_switches(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_AMDOPT_CPU_ENGINE", "reference")
    monkeypatch.setenv("VLLM_AMDOPT_GEMM", "off")
    plan = Plan.from_dict(record(capsys, str(model)))
    assert plan.is_on("attention")
    assert plan.decision("gemm").origin == "switch"


@pytest.mark.parametrize("name", fixture_names())
def test_every_shipped_config_can_be_explained(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for gpu in ("MI300X", "MI355X"):
        code, out, err = run(capsys, "explain", name, "--gpu", gpu, "--tp", "8", "--all")
        assert code in (0, 1)
        assert err == ""
        assert "not predicted" not in out.partition("experts")[0], "attention is always predicted"


def test_what_needs_a_patch_says_so_until_it_is_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_AMDOPT_STARTUP_PLAN", "on")
    command = ("explain", "llama-3.1-8b", "--gpu", "MI300X", "--patches")
    _, out, _ = run(capsys, *command, "none")
    assert "needs patch 0006: `vllm-amdopt patches apply 0006`" in out
    _, out, _ = run(capsys, *command, "6")
    assert "startup_plan (by the switch): VLLM_ENABLE_STARTUP_PLAN=1" in out
    code, _, err = run(capsys, *command, "77")
    assert code == 2 and "there is no patch '77'" in err


@pytest.mark.parametrize(
    ("against", "rows"),
    [
        ("gpu=MI355X", ["fused_all_reduce fuse_allreduce_rms=False –", "KV cache holds"]),
        ("stock", ["aiter VLLM_ROCM_USE_AITER=1 –", "attention ROCM_AITER_MLA, block 1 TRITON_ML"]),
        ("aiter=none", ["attention ROCM_AITER_MLA, block 1 TRITON_MLA"]),
        ("tp=4", ["weights"]),
        ("patches=0005,6", []),
        ("model=deepseek-r1", []),
    ],
)
def test_diff(capsys: pytest.CaptureFixture[str], against: str, rows: list[str]) -> None:
    command = ("diff", "deepseek-v3", *MI300X, "--tp", "8", "--against", against)
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, "")
    for row in rows:
        assert row in out
    same = against in ("model=deepseek-r1", "patches=0005,6")  # what needs them is opt-in
    assert ("no difference in what is set, selected or refused" in out) is same


def test_diff_of_several_things_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("diff", "llama-3.1-70b", *MI300X, "--against", "tp=8", "--against", "gpu=MI355X")
    _, out, _ = run(capsys, *command)
    assert "what this plan tp=8 gpu=MI355X" in out
