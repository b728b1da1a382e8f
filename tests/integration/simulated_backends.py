"""Asks vLLM's ROCm platform about a grid of attention layers, and our table about the same.

A program for test_attention_backends.py, not a test; the machine is that of tests/fleet.
Prints as JSON how many layers were compared, and the first few on which the two differ.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from tests.fleet import simulated_machine
from vllm_amdopt.policy.attention_backends import BACKENDS, Layer, candidates


def layers() -> Iterator[Layer]:
    """Layers that differ in everything that a backend may refuse."""
    plain = itertools.product(
        (16, 64, 80, 128, 256, 576),
        ("bfloat16", "float32"),
        ("auto", "fp8", "fp8_e5m2", "int8_per_token_head"),
        (None, 1, 16, 40),
        ((False, False), (True, False), (True, True)),
        (False, True),
    )
    for head, dtype, cache, block, (mla, sparse), connector in plain:
        yield Layer(
            head_size=head,
            dtype=dtype,
            kv_cache_dtype=cache,
            block_size=block,
            use_mla=mla,
            use_sparse=sparse,
            use_kv_connector=connector,
        )
    odd = itertools.product(
        ((False, False), (True, False), (True, True)),
        *((False, True),) * 4,
        ("decoder", "encoder_only", "encoder_decoder"),
    )
    for (mla, sparse), sink, prefix, window, invariant, kind in odd:
        yield Layer(
            head_size=128,
            use_mla=mla,
            use_sparse=sparse,
            has_sink=sink,
            use_mm_prefix=prefix,
            has_sliding_window=window,
            use_batch_invariant=invariant,
            attn_type=kind,
        )


def main() -> None:
    gfx, has_aiter = sys.argv[1], sys.argv[2] == "aiter"
    simulated_machine.pretend_amd_machine(gfx)
    if has_aiter:
        simulated_machine.pretend_aiter()
    simulated_machine.without_compiled_kernels()
    simulated_machine.without_cpu_build()
    from vllm.platforms import current_platform

    simulated_machine.pretend_triton()
    logging.disable(logging.CRITICAL)
    import torch
    import vllm
    from vllm.v1.attention.selector import AttentionSelectorConfig

    version = vllm.__version__.partition("+")[0]
    capability = current_platform.get_device_capability()
    compared, differences = 0, []
    for layer in layers():
        facts: dict[str, Any] = {**asdict(layer), "dtype": getattr(torch, str(layer.dtype))}
        valid, invalid = current_platform.get_valid_backends(
            capability, AttentionSelectorConfig(**facts)
        )
        theirs = {backend.name: [] for backend, _ in valid} | {
            backend.name: sorted(reasons) for backend, reasons in invalid.items()
        }
        asked = candidates(
            layer,
            gfx=gfx,
            aiter=has_aiter,
            aiter_on=os.environ.get("VLLM_ROCM_USE_AITER") == "1",
            mha_on=os.environ.get("VLLM_ROCM_USE_AITER_MHA", "1") == "1",
            mla_on=os.environ.get("VLLM_ROCM_USE_AITER_MLA", "1") == "1",
        )
        ours = {
            backend.name: sorted(backend.refusals(layer, gfx=gfx, aiter=has_aiter, vllm=version))
            for backend in asked
        }
        compared += 1
        known = {name: reasons for name, reasons in theirs.items() if name in BACKENDS}
        order = [backend.name for backend, _ in valid]
        if known != ours or order != [name for name, reasons in ours.items() if not reasons]:
            differences.append({"layer": asdict(layer), "vllm": theirs, "ours": ours})
    print(json.dumps({"compared": compared, "differences": differences[:5]}))


if __name__ == "__main__":
    main()
