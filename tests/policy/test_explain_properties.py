"""`explain` ends in an answer or in one sentence, whatever the config and the command line are.

Found examples come again on every run (`derandomize`), so that a failure is nobody's bad luck.
"""

from __future__ import annotations

import argparse
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from tests.policy.situations import CURRENT_AITER, config
from vllm_amdopt import cli
from vllm_amdopt.commands import explain
from vllm_amdopt.hardware import GIB, PRODUCTS, simulated
from vllm_amdopt.policy.command_line import CommandLineError, read_serve_arguments
from vllm_amdopt.policy.explanation_text import as_markdown, as_text, difference
from vllm_amdopt.policy.model_facts import model_facts
from vllm_amdopt.policy.model_fixtures import fixture_names
from vllm_amdopt.policy.plan import Plan, Situation, Software, make_plan
from vllm_amdopt.policy.rule import chosen_by_user
from vllm_amdopt.policy.serving_rules import RULES
from vllm_amdopt.policy.switches import SWITCHES

FEW = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

NUMBERS = some.one_of(
    some.sampled_from([0, 1, -1, 2, 7, 64, 2**31, 10**30]),
    some.floats(),  # also nan and infinities, which json reads
)
SCALARS = some.one_of(some.none(), some.booleans(), NUMBERS, some.text(max_size=8))
VALUES = some.recursive(
    SCALARS,
    lambda inner: some.one_of(
        some.lists(inner, max_size=3), some.dictionaries(some.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted({key for name in ("deepseek-v3.2", "qwen3-next-80b-a3b") for key in config(name)})
ODD = some.dictionaries(
    some.sampled_from(
        (
            *FIELDS,
            *("text_config", "vision_config", "layer_types", "sliding_window"),
            *("num_local_experts", "attention_chunk_size", "attn_logit_softcapping"),
        )
    ),
    VALUES,
    max_size=5,
)
OPTIONS = some.sampled_from(
    [
        "--block-size",
        "--attention-backend",
        "--kv-cache-dtype",
        "--dtype",
        "--moe-backend",
        "--quantization",
        "--max-model-len",
        "--gpu-memory-utilization",
        "--kv-offloading-size",
        "--kv-transfer-config",
        "--compilation-config",
        "--compilation-config.pass_config.fuse_allreduce_rms",
        "--attention-config.backend",
        "--mm-encoder-tp-mode",
        "--data-parallel-size",
        "-tp",
        "-ep",
        "--enable-lora",
        "--no-such-option",
        "-",
        "--",
        "=",
    ]
)
WORDS = some.one_of(
    OPTIONS,
    some.sampled_from(
        (
            *("1", "16", "0", "32K", "1.5", "nan", "fp8", "auto", "TRITON_ATTN", "aiter", "{}"),
            *("{'pass_config': {'fuse_allreduce_rms': 3}}", "[1]", "null", "vllm", "serve"),
            *('\'{"pass_config": {"fuse_allreduce_rms": 3}}\'', "'{\"backend\": [1]}'"),
            *("export", "A=1", "VLLM_ROCM_USE_AITER=1", "VLLM_ROCM_USE_AITER=perhaps"),
            *("VLLM_AMDOPT=perhaps", "\\\n"),
        )
    ),
    some.text(max_size=6),
)
COMMAND_LINES = some.one_of(some.lists(WORDS, max_size=7).map(" ".join), some.text(max_size=40))


def parsed(model: object, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    explain.add_explain_arguments(parser)
    return parser.parse_args([str(model), *arguments])


def check(options: argparse.Namespace) -> None:
    """An explanation in every form, or a sentence."""
    try:
        found = explain.explanation(options, {})
    except ValueError as error:
        assert str(error).strip()
        return
    for every in (False, True):
        assert as_text(found, every=every)
        assert as_markdown(found, every=every)
    assert difference(found, found, ("one", "other")) == []
    record = json.loads(json.dumps(found.to_dict()))
    assert Plan.from_dict(record) == found.plan


def answer(*arguments: str) -> None:
    """The command itself: an answer, or one line on stderr and nothing else."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main(("explain", *arguments))
    assert code in (0, 1, 2)
    assert bool(out.getvalue()) == (code != 2)
    assert len(err.getvalue().splitlines()) == (code == 2)
    assert "unexpected" not in err.getvalue()


@FEW
@given(some.one_of(VALUES, ODD), some.sampled_from(["MI300X", "MI355X", "gfx1100"]))
def test_any_config(tmp_path_factory: pytest.TempPathFactory, odd: Any, gpu: str) -> None:
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(odd))
    check(parsed(path, "--gpu", gpu, "--vllm", "0.32.0", "--host-memory", "2048"))


@FEW
@given(some.sampled_from(fixture_names()), ODD, some.sampled_from([1, 3, 8, 64]), some.booleans())
def test_a_published_config_with_odd_fields(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    odd: dict[str, Any],
    ranks: int,
    expert_parallel: bool,
) -> None:
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps({**config(name), **odd}))
    more = ["--ep"] if expert_parallel else []
    check(parsed(path, "--gpu", "MI300X", "--vllm", "0.32.0", "--tp", str(ranks), *more))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"NaN", b'{"a": 1e999}'])
def test_a_file_that_is_no_config(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    check(parsed(path, "--gpu", "MI300X"))


@pytest.mark.parametrize("text", ["\ud800", "Llama\x1b[31m", "two\nlines"])
def test_a_name_that_no_terminal_should_get(tmp_path: Path, text: str) -> None:
    named = {**config("qwen3-30b-a3b-fp8"), "architectures": [text], "model_type": text}
    (tmp_path / "config.json").write_text(json.dumps(named))
    answer(str(tmp_path), "--gpu", "MI300X", "--vllm", "0.32.0")
    found = explain.explanation(parsed(tmp_path, "--gpu", "MI300X"), {})
    assert text not in as_text(found)


@FEW
@given(COMMAND_LINES, some.sampled_from(["deepseek-v3", "gpt-oss-120b", "qwen3-vl-235b-a22b"]))
def test_any_command_line(text: str, model: str) -> None:
    check(parsed(model, "--gpu", "MI325X", "--vllm", "0.32.0", f"--serve-args={text}"))
    answer(model, "--gpu", "MI325X", "--vllm", "0.32.0", "--serve-args", text)


@settings(FEW, max_examples=30)
@given(some.text(max_size=12))
@example("\n")
@example("\0")
@example("0.32.0")
@example("\u0661.\u0662")
def test_any_name(name: str) -> None:
    answer(f"./{name}", "--gpu=MI300X")
    answer(f"deepseek-v3{name}", "--gpu=MI300X")
    answer("deepseek-v3", f"--gpu={name}")
    answer("deepseek-v3", "--gpu=MI300X", f"--vllm={name}")
    answer("deepseek-v3", "--gpu=MI300X", f"--aiter={name}")
    answer("deepseek-v3", "--gpu=MI300X", f"--tp={name}")


# --- the plan ------------------------------------------------------------------------------------

_SWITCHES = [switch.name for switch in SWITCHES if switch.values == ("auto", "on", "off")]
ENVIRONMENTS = some.dictionaries(
    some.sampled_from(
        (
            *("VLLM_ROCM_USE_AITER", "VLLM_ROCM_USE_AITER_MOE", "VLLM_ROCM_USE_AITER_MHA"),
            *("VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT", "NCCL_MIN_NCHANNELS", "GPU_MAX_HW_QUEUES"),
        )
    ),
    some.sampled_from(["0", "1", "2", "yes"]),
    max_size=3,
)
CHOSEN = some.lists(
    some.sampled_from(
        (
            *("--block-size 1", "--block-size 64", "--attention-backend TRITON_ATTN"),
            *("--enable-lora", "--moe-backend triton", "--moe-backend aiter", "-tp 8", "-ep"),
            *("--kv-offloading-size 8", "--mm-encoder-tp-mode weights", "--kv-cache-dtype fp8"),
            *("--compilation-config.pass_config.fuse_allreduce_rms true", "--dtype float16"),
            "--max-model-len 4096",
        )
    ),
    unique_by=lambda option: option.partition(" ")[0],
    max_size=4,
)
SITUATIONS = some.builds(
    lambda name, gpu, aiter, options, environment, switches: Situation(
        model=model_facts(config(name)),
        hardware=simulated(gpu, 8, host_memory_bytes=2048 * GIB),
        choices=read_serve_arguments(" ".join(options)).choices,
        software=Software(vllm="0.32.0", triton="3.9.0", aiter=aiter),
        environment={**environment, **switches},
    ),
    some.sampled_from(fixture_names()),
    some.sampled_from([product.name for product in PRODUCTS]),
    some.sampled_from([None, CURRENT_AITER]),
    CHOSEN,
    ENVIRONMENTS,
    some.dictionaries(some.sampled_from(_SWITCHES), some.sampled_from(["on", "off"]), max_size=4),
)
MAY_OVERRIDE = {rule.name for rule in RULES if rule.action == "repair"}


@FEW
@given(SITUATIONS)
def test_a_plan_is_always_the_same_and_survives_its_record(situation: Situation) -> None:
    made = make_plan(situation)
    assert make_plan(situation) == made
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@FEW
@given(SITUATIONS)
def test_only_a_repair_overrides_what_the_user_gave(situation: Situation) -> None:
    made = make_plan(situation)
    for decision in made.decisions:
        if decision.name in MAY_OVERRIDE:
            continue
        for key in decision.settings:
            assert chosen_by_user(situation, key) is None, (decision.name, key)
    overridden = [
        decision.name
        for decision in made.decisions
        if any(chosen_by_user(situation, key) is not None for key in decision.settings)
    ]
    assert all(any(name in warning for warning in made.warnings) for name in overridden)


@FEW
@given(SITUATIONS)
def test_a_setting_has_one_owner(situation: Situation) -> None:
    owned = [key for decision in make_plan(situation).decisions for key in decision.settings]
    assert len(owned) == len(set(owned))


def test_an_option_that_cannot_be_read_is_named() -> None:
    with pytest.raises(CommandLineError, match="--block-size zero: expected a positive whole"):
        read_serve_arguments("--block-size zero")
