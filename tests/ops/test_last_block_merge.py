"""The order in which a workgroup leaves its part and takes the others': read from machine code.

The emulator runs waves in step and knows no caches, so it cannot show what happens without.
"""

from __future__ import annotations

import re

import pytest

from vllm_amdopt.codegen import compile_variant
from vllm_amdopt.kernels import paged_attention_decode

PARTS = next(
    variant
    for variant in paged_attention_decode.CODEGEN_VARIANTS
    if variant.name == "decode/bf16/group4/head128/block16"
)


def violations(text: str) -> list[str]:
    """What is missing around the first atomic of the kernel, one sentence each."""
    lines = [line.partition(";")[0].strip() for line in text.splitlines()]
    code = [line for line in lines if re.match(r"(s|v|ds|global|buffer|flat)_\w+", line)]
    atomic = next(i for i, line in enumerate(code) if line.startswith("global_atomic_add"))
    stores = [i for i in range(atomic) if re.match(r"(buffer|global)_store", code[i])]
    found = []
    if not stores:
        return ["no part is stored before the atomic."]
    between = code[stores[-1] : atomic]
    looks = [i for i, line in enumerate(between) if re.match(r"global_load_dword .* sc0 sc1", line)]
    if not looks or "vmcnt(0)" not in between[looks[-1] + 1]:
        found.append("waves do not wait for their own stores.")
    else:
        if any("saveexec" in line for line in between[: looks[-1]]):
            found.append("only some waves wait for their own stores.")
        if "s_barrier" not in between[looks[-1] :]:
            found.append("no barrier follows that wait.")
    if not any(line.startswith("buffer_wbl2 sc1") for line in between):
        found.append("what was stored is not released to the device.")
    behind = code[atomic:]
    merging = next(i for i, line in enumerate(behind) if re.match(r"buffer_load_dwordx4", line))
    inv = [i for i, line in enumerate(behind[:merging]) if line.startswith("buffer_inv sc1")]
    if not inv:
        found.append("others' parts may come from a stale cache.")
    elif "s_barrier" not in behind[inv[-1] : merging]:
        found.append("waves may read others' parts before the one that looked has.")
    return found


@pytest.fixture(scope="module", params=["gfx942", "gfx950"])
def text(request: pytest.FixtureRequest) -> str:
    assembly: str = compile_variant(PARTS, request.param).asm["amdgcn"]
    return assembly


def test_parts_are_released_before_and_acquired_after_the_count(text: str) -> None:
    assert violations(text) == []


@pytest.mark.parametrize("line", ["sc0 sc1", "buffer_wbl2", "buffer_inv"])
def test_each_step_is_missed_when_it_is_gone(text: str, line: str) -> None:
    assert violations("\n".join(one for one in text.splitlines() if line not in one))
