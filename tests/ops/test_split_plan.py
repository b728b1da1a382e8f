"""Planning splits: never more than useful, enough to fill the GPU, one for short contexts."""

from __future__ import annotations

import pytest

from vllm_amdopt.kernels.split_plan import (
    FUSED_SPLIT_POLICY,
    SPLIT_POLICY,
    most_workgroups,
    plan_fused_splits,
    plan_splits,
)


@pytest.mark.parametrize(
    ("workgroups", "max_seq_len", "expected"),
    [
        pytest.param(8, 200, 1, id="short_context_is_not_split"),
        pytest.param(8, 511, 1, id="two_short_parts_do_not_pay"),
        pytest.param(8, 512, 2, id="two_parts"),
        pytest.param(8, 8192, 32, id="limited_by_length"),
        pytest.param(8, 131072, 64, id="limited_by_the_reduce_kernel"),
        pytest.param(64, 131072, 10, id="enough_to_fill_the_gpu"),
        pytest.param(608, 131072, 1, id="the_batch_fills_the_gpu"),
        pytest.param(0, 100, 1, id="nothing_to_do"),
    ],
)
def test_plan_for_304_compute_units(workgroups: int, max_seq_len: int, expected: int) -> None:
    assert plan_splits(workgroups, max_seq_len, 304) == expected


def test_every_part_is_worth_a_reduce() -> None:
    for length in range(1, 3000, 37):
        splits = plan_splits(1, length, 304)
        assert splits == 1 or length / splits >= SPLIT_POLICY.min_tokens_per_split


@pytest.mark.parametrize(
    ("workgroups", "max_seq_len", "expected"),
    [
        pytest.param(1, 131072, 512, id="one_kv_head_at_128k_fills_the_gpu"),
        pytest.param(8, 131072, 76, id="eight_kv_heads_at_128k_fill_it_twice"),
        pytest.param(256 * 8, 1024, 1, id="batch_256_at_1k_is_direct"),
        pytest.param(1, 8192, 32, id="one_merge_while_parts_are_short"),
        pytest.param(1, 127, 1, id="two_short_parts_do_not_pay"),
        pytest.param(1, 128, 2, id="two_parts"),
        pytest.param(0, 128, 1, id="nothing_to_do"),
    ],
)
def test_fused_plan_for_304_compute_units(workgroups: int, max_seq_len: int, expected: int) -> None:
    assert plan_fused_splits(workgroups, max_seq_len, 304) == expected


def test_a_fused_plan_stays_within_the_workspace_and_the_two_merges() -> None:
    for workgroups in range(1, 700, 13):
        for length in (1, 64, 1000, 8192, 10**6):
            splits = plan_fused_splits(workgroups, length, 304)
            assert splits == 1 or workgroups * splits <= most_workgroups(304)
            assert splits <= FUSED_SPLIT_POLICY.fan_in**2
