"""Merging in the last workgroup, in Gluon: two steps, counters, and the order in machine code."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch

from tests.ops.attention_cases import AttentionCase, check_attention
from vllm_amdopt.codegen import compile_variant
from vllm_amdopt.emulator.launch import emulate
from vllm_amdopt.kernels.cdna import paged_attention_decode as kernels
from vllm_amdopt.kernels.cdna import paged_attention_decode_plan as plans
from vllm_amdopt.ops import paged_attention_decode_cdna as cdna
from vllm_amdopt.ops.workspace import workspace

# Tiles of 128 tokens, 8 parts to a group: 20 parts, two groups of 8 and 1, one whole group, one
# part, none.
TWO_STEPS = AttentionCase("two_steps", (2500, 1030, 1000, 100, 0), 16, 1, 64, 64, splits=20)


@pytest.mark.parametrize("gfx", ["gfx942", "gfx950"])
def test_many_parts_are_merged_in_two_steps_launch_after_launch(gfx: str) -> None:
    with emulate(gfx, races=True) as device:
        for _ in range(2):
            assert check_attention(TWO_STEPS, torch.bfloat16, cdna.launch) is None
            counters = workspace(torch.device("cpu"), 1, 1).counters
            assert not bool(counters.any())
    assert len(device.launches) == 2
    assert all(launch["lds_races"] == [] for launch in device.launches)


@pytest.mark.parametrize(
    ("splits", "group", "expected"),
    [
        pytest.param(1, 4, (0, 1, 1), id="one_part"),
        pytest.param(16, 16, (1, 16, 1), id="one_step"),
        pytest.param(17, 16, (2, 17 + 3, 1 + 3), id="two_steps"),
        pytest.param(256, 16, (2, 256 + 16, 1 + 16), id="the_most"),
        pytest.param(33, 1, (2, 33 + 5, 1 + 5), id="more_than_a_wave_has_lanes_for"),
    ],
)
def test_room_for_each_part_and_group(
    splits: int, group: int, expected: tuple[int, int, int]
) -> None:
    parts = plans.plan_merge(splits, group)
    assert (parts.steps, parts.slots, parts.counters) == expected
    assert parts.fan * max(1, parts.groups) >= splits
    assert parts.groups <= parts.fan


def test_more_parts_than_two_steps_merge_are_refused() -> None:
    with pytest.raises(ValueError, match="257 parts of 16 heads are more than 256"):
        plans.plan_merge(257, 16)


@pytest.mark.parametrize(
    ("sequences_and_heads", "tokens", "group", "splits", "steps"),
    [
        pytest.param(1, 8192, 16, 64, 2, id="one_step_would_leave_the_gpu_idle"),
        pytest.param(8, 8192, 16, 16, 1, id="half_busy_is_enough_for_short_parts"),
        pytest.param(8, 131072, 16, 38, 2, id="and_not_for_long_ones"),
        pytest.param(32, 8192, 16, 8, 1, id="one_workgroup_each"),
        pytest.param(305, 8192, 4, 1, 0, id="more_than_compute_units"),
        pytest.param(0, 0, 4, 1, 0, id="nothing"),
    ],
)
def test_plan(sequences_and_heads: int, tokens: int, group: int, splits: int, steps: int) -> None:
    config = plans.choose_config(128)
    parts = plans.plan_parts(sequences_and_heads, tokens, 304, config, group)
    assert (parts.splits, parts.steps) == (splits, steps)
    assert parts.splits * sequences_and_heads <= max(304, sequences_and_heads)


def violations(text: str) -> list[str]:
    """What is missing around the atomics of the kernel, one sentence each.

    The emulator runs waves in step and knows no caches, so it cannot show what happens without.
    """
    lines = [line.partition(";")[0].strip() for line in text.splitlines()]
    code = [line for line in lines if re.match(r"(s|v|ds|global|buffer|flat)_\w+", line)]
    atomics = [i for i, line in enumerate(code) if line.startswith("global_atomic_add")]
    found = []
    for atomic in atomics:
        stores = [i for i in range(atomic) if re.match(r"(buffer|global)_store", code[i])]
        between = code[stores[-1] : atomic] if stores else []
        release = [i for i, line in enumerate(between) if line.startswith("buffer_wbl2 sc1")]
        if not stores:
            found.append("no part is stored before the atomic.")
        elif not release:
            found.append("what was stored is not released to the device.")
        elif not any("vmcnt(0)" in line for line in between[release[-1] :]):
            found.append("a wave does not wait for its own stores.")
        behind = code[atomic:]
        merging = next(i for i, line in enumerate(behind) if line.startswith("buffer_load_dword"))
        inv = [i for i, line in enumerate(behind[:merging]) if line.startswith("buffer_inv sc1")]
        if not inv:
            found.append("others' parts may come from a stale cache.")
        elif "s_barrier" not in behind[inv[-1] : merging]:
            found.append("waves may read others' parts before the one that looked has.")
    return found


@cache
def text_of(steps: int, gfx: str) -> str:
    variant = next(
        variant
        for variant in kernels.CODEGEN_VARIANTS
        if (variant.constexprs["STEPS"], variant.constexprs["GROUP"]) == (steps, 16)
    )
    text: str = compile_variant(variant, gfx).asm["amdgcn"]
    return text


@pytest.mark.parametrize("gfx", ["gfx942", "gfx950"])
@pytest.mark.parametrize("steps", [1, 2])
def test_each_wave_releases_its_part_and_acquires_the_others(steps: int, gfx: str) -> None:
    assert text_of(steps, gfx).count("global_atomic_add") == steps
    assert violations(text_of(steps, gfx)) == []


@pytest.mark.parametrize("line", ["buffer_wbl2", "buffer_inv", "s_barrier"])
def test_each_step_is_missed_when_it_is_gone(line: str) -> None:
    lines = text_of(2, "gfx942").splitlines()
    assert violations("\n".join(one for one in lines if line not in one))
