"""Choosing an implementation: the first that applies, every refusal, and names in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_amdopt.ops.operation import Implementation, Operation

ROOT = Path(__file__).resolve().parents[2]


def never(**facts: object) -> str | None:
    return f"no {sorted(facts)}."


def always(**facts: object) -> str | None:
    return None


OPERATION = Operation(
    name="double",
    reference=lambda x: x + x,
    implementations=(
        Implementation("first", lambda x: 3 * x, never),
        Implementation("second", lambda x: 2 * x, always),
        Implementation("third", lambda x: 2 * x, always),
    ),
)


def test_the_first_without_a_refusal_is_chosen() -> None:
    choice = OPERATION.choose(rows=3)
    assert choice.implementation is OPERATION.implementations[1]
    assert choice.refusals == {"first": "no ['rows']."}


def test_nothing_applies() -> None:
    choice = Operation("double", OPERATION.reference, OPERATION.implementations[:1]).choose()
    assert choice.implementation is None
    assert list(choice.refusals) == ["first"]


def test_run_by_name() -> None:
    assert OPERATION.run("reference")(4) == 8
    assert OPERATION.run("first")(4) == 12


def test_an_unknown_name_is_answered_with_the_names() -> None:
    with pytest.raises(ValueError, match="choose one of: reference, first, second, third"):
        OPERATION.run("fourth")


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from vllm_amdopt.ops import (gemm_small_batch, kv_cache_write, mla_decode,
    paged_attention_decode, paged_attention_prefill)
print(gemm_small_batch.gemm_small_batch(torch.ones(1, 3), torch.ones(2, 3),
    implementation="reference").tolist())
try:
    gemm_small_batch.gemm_small_batch(torch.ones(1, 3), torch.ones(2, 3))
except ValueError as error:
    print(error)
"""


def test_without_triton_the_reference_works_and_the_kernel_says_why_not() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    answer, refusal = run.stdout.splitlines()
    assert answer == "[[3.0, 3.0]]"
    assert "Triton" in refusal and "missing" in refusal
