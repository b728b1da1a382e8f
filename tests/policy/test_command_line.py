"""A user's `vllm serve` command: what is read of it, and what is written."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_amdopt.policy.command_line import (
    CommandLineError,
    ServeArguments,
    command_by_hand,
    command_with_plugin,
    read_serve_arguments,
)
from vllm_amdopt.policy.situation import UserChoices


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("", UserChoices()),
        ("-tp 8 --block-size 1", UserChoices(tensor_parallel_size=8, block_size=1)),
        ("--tensor_parallel_size=4", UserChoices(tensor_parallel_size=4)),
        ("--max-model-len 32k", UserChoices(max_model_len=32000)),
        ("--max-model-len 32K", UserChoices(max_model_len=32768)),
        ("--max-model-len auto", UserChoices()),
        ("-ep -dp 2", UserChoices(expert_parallel=True, data_parallel_size=2)),
        ("--no-enable-prefix-caching", UserChoices(prefix_caching=False)),
        ("--attention-backend rocm_attn", UserChoices(attention_backend="ROCM_ATTN")),
        ("--attention-config.backend TRITON_MLA", UserChoices(attention_backend="TRITON_MLA")),
        ('-ac \'{"backend": "TRITON_MLA"}\'', UserChoices(attention_backend="TRITON_MLA")),
        (
            '--compilation-config \'{"pass_config": {"fuse_allreduce_rms": false}}\'',
            UserChoices(fuse_allreduce_rms=False),
        ),
        ("-cc.pass_config.fuse_allreduce_rms=true", UserChoices(fuse_allreduce_rms=True)),
        ("-cc.pass_config.fuse_rope_kvcache=false", UserChoices(fuse_rope_kvcache=False)),
        ("--compilation-config 3", UserChoices()),
        ("--kv-offloading-size 64", UserChoices(kv_offload=True, kv_offloading_gib=64.0)),
        ('--speculative-config \'{"model": "x"}\'', UserChoices(speculative=True)),
        ("--gpu-memory-utilization 0.8", UserChoices(gpu_memory_utilization=0.8)),
        ("--trust-remote-code --enforce-eager", UserChoices(enforce_eager=True)),
        (
            "--kv-cache-dtype fp8 --moe-backend aiter",
            UserChoices(kv_cache_dtype="fp8", moe_backend="aiter"),
        ),
    ],
)
def test_choices(text: str, choices: UserChoices) -> None:
    assert read_serve_arguments(text).choices == choices


def test_a_whole_command_as_pasted() -> None:
    found = read_serve_arguments(
        "export VLLM_ROCM_USE_AITER=1 AITER_ENABLE_VSKIP=0 vllm serve org/model \\\n"
        "  --tensor-parallel-size 8 --served-model-name 'a b' --block-size 1"
    )
    assert found.environment == {"VLLM_ROCM_USE_AITER": "1", "AITER_ENABLE_VSKIP": "0"}
    assert found.model == "org/model"
    assert found.choices == UserChoices(tensor_parallel_size=8, block_size=1)
    assert found.options == (
        ("--tensor-parallel-size", "8"),
        ("--served-model-name", "a b"),
        ("--block-size", "1"),
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("--block-size", "--block-size needs a value"),
        ("--block-size one", "--block-size one: expected a positive whole number"),
        ("--block-size 0", "--block-size 0: expected a positive whole number"),
        ("-tp 8 -tp 4", "--tensor-parallel-size is given twice: 8 and 4"),
        ("--gpu-memory-utilization 1.5", "expected a number above 0 and at most 1"),
        ("--kv-offloading-size much", "--kv-offloading-size much: expected a number of GiB"),
        ("--kv-offloading-size 0", "--kv-offloading-size 0: expected a number of GiB above 0"),
        ("--dtype 'half", "cannot be read: No closing quotation"),
        ("model another", "'another' is neither an option nor the value of one"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, sentence: str) -> None:
    with pytest.raises(CommandLineError, match=sentence):
        read_serve_arguments(text)


def test_command_with_the_plugin_keeps_everything() -> None:
    arguments = read_serve_arguments("A=1 -tp 8 --served-model-name 'a b' --enable-lora")
    assert command_with_plugin("org/model", arguments) == (
        "A=1 \\\n  vllm serve org/model \\\n  --tensor-parallel-size 8 \\\n"
        "  --served-model-name 'a b' \\\n  --enable-lora \\\n  --plugin amdopt"
    )


def test_command_by_hand_has_the_plans_settings() -> None:
    arguments = read_serve_arguments("--block-size 1 --kv-cache-dtype fp8")
    command = command_by_hand(
        "m",
        arguments,
        {
            "env.VLLM_ROCM_USE_AITER": "1",
            "block_size": "default",
            "attention_order": "ROCM_AITER_FA,TRITON_ATTN",
            "kv_offloading_size": 64.0,
            "fuse_allreduce_rms": False,
            "fuse_rope_kvcache": True,
            "fuse_qk_norm_rope_kvcache": True,
            "use_inductor_graph_partition": True,
        },
        "ROCM_AITER_FA",
    )
    assert shlex.split(command.replace("\\\n", " ")) == [
        "VLLM_ROCM_USE_AITER=1",
        "vllm",
        "serve",
        "m",
        "--kv-cache-dtype",
        "fp8",
        "--attention-backend",
        "ROCM_AITER_FA",
        "--kv-offloading-size",
        "64",
        "--compilation-config.pass_config.fuse_allreduce_rms",
        "false",
        "--compilation-config.pass_config.fuse_rope_kvcache",
        "true",
        "--compilation-config.pass_config.fuse_qk_norm_rope_kvcache",
        "true",
        "--compilation-config.use_inductor_graph_partition",
        "true",
    ]


def test_a_key_of_the_connector_is_written_as_its_configuration() -> None:
    arguments = read_serve_arguments("--kv-offloading-size 64")
    command = command_by_hand("m", arguments, {"share_replicated_region": True}, None)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[-2] == "--kv-transfer-config"
    assert json.loads(words[-1]) == {"kv_connector_extra_config": {"share_replicated_region": True}}


def test_a_backend_of_the_users_stays_in_the_command_by_hand() -> None:
    arguments = read_serve_arguments("--attention-backend TRITON_ATTN")
    command = command_by_hand("m", arguments, {"attention_order": "X"}, "X")
    assert "TRITON_ATTN" in command
    assert "X" not in command


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="-=abtpdc 018.'\"{}\\\n_,:", max_size=60))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    try:
        assert isinstance(read_serve_arguments(text), ServeArguments)
    except CommandLineError as error:
        assert str(error)
