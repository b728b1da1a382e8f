"""How many parts to cut each sequence's keys into, planned on the host; no kernel in here.

Standard library only. Sequence lengths live on the device and reading them would stall the
stream and break graph capture, so the plan uses the upper bound the scheduler knows; each
sequence then divides its own length evenly by the planned number inside the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SplitPolicy:
    """When cutting the keys pays. Units: tokens and workgroups."""

    min_tokens_per_split: int
    workgroups_per_compute_unit: int
    max_splits: int
    why: str


# Arithmetic, not measured: all that is known from peers is that a grid smaller than the GPU loses.
SPLIT_POLICY = SplitPolicy(
    min_tokens_per_split=256,
    workgroups_per_compute_unit=2,
    max_splits=64,
    why=(
        "a reduce launch costs about as much as reading a few hundred tokens of one head, so "
        "shorter parts do not pay; two workgroups per compute unit hide each other's loads; "
        "64 partial results are what the reduce kernel holds in registers at head size 256"
    ),
)


def plan_splits(
    workgroups_per_split: int,
    max_seq_len: int,
    compute_units: int,
    policy: SplitPolicy = SPLIT_POLICY,
) -> int:
    """Number of parts, at least 1. `workgroups_per_split` is sequences times tiles of heads.

    1 means that the attention kernel writes the result itself and nothing is reduced.
    """
    if workgroups_per_split <= 0 or max_seq_len <= 0:
        return 1
    wanted = -(-compute_units * policy.workgroups_per_compute_unit // workgroups_per_split)
    useful = max_seq_len // policy.min_tokens_per_split
    return max(1, min(wanted, useful, policy.max_splits))


@dataclass(frozen=True)
class FusedSplitPolicy:
    """The same where the attention kernel merges the parts itself. Units: tokens and workgroups.

    fan_in: parts that one workgroup merges; more are merged in two steps, and have to be longer.
    """

    least_tokens: int
    least_tokens_in_two_steps: int
    fan_in: int
    workgroups_per_compute_unit: int
    why: str


# Arithmetic, not measured.
FUSED_SPLIT_POLICY = FusedSplitPolicy(
    least_tokens=64,
    least_tokens_in_two_steps=256,
    fan_in=32,
    workgroups_per_compute_unit=2,
    why=(
        "merging a part of 16 heads of 128 reads 8 KiB through one compute unit, about a tenth of "
        "the time that 32 tokens take, so parts of 64 tokens pay while one step merges them; the "
        "second step costs another round trip or two, hence fewer and longer parts there; two "
        "workgroups per compute unit hide each other's loads"
    ),
)


def most_workgroups(compute_units: int, policy: FusedSplitPolicy = FUSED_SPLIT_POLICY) -> int:
    """The bound on workgroups of a launch with more than one part, whatever the batch."""
    return 2 * compute_units * policy.workgroups_per_compute_unit


def plan_fused_splits(
    workgroups_per_split: int,
    max_seq_len: int,
    compute_units: int,
    policy: FusedSplitPolicy = FUSED_SPLIT_POLICY,
) -> int:
    """Number of parts, at least 1, as `plan_splits`; `kernels.decode_kernel` plans within it.

    Workgroups times parts stay under `most_workgroups` where there is more than one part.
    """
    if workgroups_per_split <= 0 or max_seq_len <= 0:
        return 1
    wanted = -(-compute_units * policy.workgroups_per_compute_unit // workgroups_per_split)
    each = min(-(-max_seq_len // policy.fan_in), policy.least_tokens_in_two_steps)
    useful = max_seq_len // max(policy.least_tokens, each)
    return max(1, min(wanted, useful, policy.fan_in**2))
