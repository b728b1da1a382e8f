"""Every registered implementation times its hard cases, dtypes and chips, as tests; none in here.

Operations are found in `vllm_amdopt.ops`, so that one without cases is an error. Which dtypes an
implementation takes, it says itself by not refusing them; fp8 is the chip's own flavour.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tests.ops import all_reduce_cases, attention_cases, plain_cases, rope_cases
from vllm_amdopt import ops
from vllm_amdopt.hardware import ARCHITECTURES
from vllm_amdopt.ops.operation import Implementation, Operation

GFX = ("gfx942", "gfx950")
FP8 = {"fnuz": torch.float8_e4m3fnuz, "ocp": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Suite:
    """How the cases of one operation are run, and what its implementations are asked about them.

    check(case, dtype, run, served) returns None or what is wrong. facts(case) are the keywords of
    `Implementation.refusal` but dtype and gfx. All cases run in bfloat16, on caches that lie as in
    serving; those named `also` run in every other dtype, on small caches, which is other code.
    """

    check: Callable[..., str | None]
    cases: tuple[Any, ...]
    facts: Callable[[Any], dict[str, Any]]
    also: tuple[str, ...]


def attention_facts(case: attention_cases.AttentionCase) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "head_size": case.head_size,
        "num_heads": case.heads,
        "num_kv_heads": case.kv_heads,
        "block_size": case.block_size,
    }
    if case.query_lens is None:
        facts |= {
            "query_len": case.query_len,
            "has_sinks": case.sinks,
            "has_alibi": case.alibi,
            "has_scales": case.fp8,
        }
    return facts


SUITES: Mapping[str, Suite] = {
    "paged_attention_decode": Suite(
        attention_cases.check_attention,
        attention_cases.DECODE_CASES,
        attention_facts,
        also=("group_20_token_major", "head_128_group_16_token_major", "fp8"),
    ),
    "paged_attention_prefill": Suite(
        attention_cases.check_attention,
        attention_cases.PREFILL_CASES,
        attention_facts,
        also=("one_short_chunk",),
    ),
    "mla_decode": Suite(
        attention_cases.check_mla,
        attention_cases.MLA_CASES,
        lambda case: {
            "kv_lora_rank": case.latent_size,
            "rope_size": 64,
            "block_size": case.block_size,
            "query_len": case.query_len,
        },
        also=("block_16_20_heads",),
    ),
    "gemm_small_batch": Suite(
        plain_cases.check_gemm,
        plain_cases.GEMM_CASES,
        lambda case: {"n": case.n, "k": case.k},
        also=("17_rows_views",),
    ),
    "kv_cache_write": Suite(
        plain_cases.check_write,
        plain_cases.WRITE_CASES,
        lambda case: {"block_size": case.block_size},
        also=("padding_and_skips",),
    ),
    "rope_and_cache_write": Suite(
        rope_cases.check_rope,
        rope_cases.ROPE_CASES,
        lambda case: {
            "head_size": case.head_size,
            "rotary_size": case.rotary,
            "block_size": case.block_size,
        },
        also=("neox_padding_and_skips",),
    ),
    "latent_cache_write": Suite(
        plain_cases.check_latent,
        plain_cases.LATENT_CASES,
        lambda case: {"block_size": case.block_size},
        also=("block_1_padding_and_skips",),
    ),
    "all_reduce_one_shot": Suite(
        all_reduce_cases.check_all_reduce,
        all_reduce_cases.ALL_REDUCE_CASES,
        lambda case: {
            "shape": (max(case.sizes),),
            "world_size": case.ranks,
            "max_bytes": all_reduce_cases.MAX_BYTES,
        },
        also=("3_ranks_odd_sizes",),
    ),
}


@dataclass(frozen=True)
class KernelTest:
    """One test: one implementation, one case, one dtype, one chip."""

    operation: Operation
    implementation: Implementation
    case: Any
    dtype_name: str
    dtype: torch.dtype
    gfx: str

    @property
    def id(self) -> str:
        names = (self.operation.name, self.implementation.name, self.case.name)
        return "-".join((*names, self.dtype_name, self.gfx))

    def run(self) -> str | None:
        """None, or what is wrong; call it where launches are emulated."""
        suite = SUITES[self.operation.name]
        served = self.dtype is torch.bfloat16
        fp8 = {"fp8": dtypes(self.gfx)["fp8"]} if getattr(self.case, "fp8", False) else {}
        return suite.check(self.case, self.dtype, self.implementation.run, served=served, **fp8)


def operations() -> dict[str, Operation]:
    """Every Operation that a module of vllm_amdopt.ops defines, by name."""
    found = {}
    for module in pkgutil.iter_modules(ops.__path__):
        imported = importlib.import_module(f"{ops.__name__}.{module.name}")
        for value in vars(imported).values():
            if isinstance(value, Operation):
                found[value.name] = value
    return found


def dtypes(gfx: str) -> dict[str, torch.dtype]:
    """Names as in the tests' ids -> dtype; the first is the one that all cases run in."""
    return {
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp32": torch.float32,
        "fp8": FP8[ARCHITECTURES[gfx].fp8_flavour],
    }


def facts_of(test: KernelTest) -> dict[str, Any]:
    """What the implementation is asked about: the cache is fp8 where the case says so."""
    facts = SUITES[test.operation.name].facts(test.case)
    if getattr(test.case, "fp8", False):
        facts["cache_dtype"] = dtypes(test.gfx)["fp8"]
    elif test.operation.name.endswith("cache_write"):
        facts["cache_dtype"] = test.dtype
    return facts | {"dtype": test.dtype, "gfx": test.gfx}


def kernel_tests() -> Iterator[KernelTest]:
    """All of them, in the order of the operations' names."""
    for name, operation in sorted(operations().items()):
        suite = SUITES[name]
        for implementation in operation.implementations:
            for case in suite.cases:
                for gfx in GFX:
                    for dtype_name, dtype in dtypes(gfx).items():
                        if dtype is not torch.bfloat16 and case.name not in suite.also:
                            continue
                        test = KernelTest(operation, implementation, case, dtype_name, dtype, gfx)
                        if implementation.refusal(**facts_of(test)) is None:
                            yield test
