"""Runs every case in Triton's interpreter; prints {"operation/dtype/case": null or what is wrong}.

A program of its own, started with TRITON_INTERPRET=1 by `test_interpreter.py`: Triton decides
between interpreting and compiling when a kernel is decorated, so one process cannot do both.
"""

from __future__ import annotations

import json

import torch

from tests.ops import attention_cases, plain_cases, rope_cases

CHECKS = {
    "kv_cache_write": (
        plain_cases.check_write,
        tuple(case for case in plain_cases.WRITE_CASES if not case.fp8),
    ),
    "rope_and_cache_write": (
        rope_cases.check_rope,
        # Writing fp8 is refused there: test_rope_and_cache_write.py.
        tuple(case for case in rope_cases.ROPE_CASES if not case.fp8),
    ),
    "latent_cache_write": (
        plain_cases.check_latent,
        tuple(case for case in plain_cases.LATENT_CASES if not case.fp8),
    ),
    "gemm_small_batch": (plain_cases.check_gemm, plain_cases.GEMM_CASES),
    "paged_attention_decode": (attention_cases.check_attention, attention_cases.DECODE_CASES),
    "paged_attention_prefill": (attention_cases.check_attention, attention_cases.PREFILL_CASES),
    "mla_decode": (attention_cases.check_mla, attention_cases.MLA_CASES),
}
DTYPES = ("float32", "float16")


def run_all() -> dict[str, str | None]:
    """Every case in every dtype; an exception counts as what is wrong."""
    results: dict[str, str | None] = {}
    for operation, (check, cases) in CHECKS.items():
        for case in cases:
            for dtype in DTYPES:
                try:
                    wrong = check(case, getattr(torch, dtype))
                except Exception as error:
                    wrong = f"{type(error).__name__}: {error}"
                results[f"{operation}/{dtype}/{case.name}"] = wrong
    return results


if __name__ == "__main__":
    print(json.dumps(run_all()))
