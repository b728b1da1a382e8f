"""The error budget: twice PyTorch's error and half a last place, and nothing that is not finite."""

from __future__ import annotations

import pytest
import torch

from vllm_amdopt.ops.tolerance import budget, excess, largest_error, within_budget

TRUTH = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
TORCH = torch.tensor([1.0, -2.125, 0.5])


def test_the_budget_is_twice_torch_and_half_a_last_place() -> None:
    assert budget(TORCH, TRUTH, TORCH) == pytest.approx(2 * 0.125 + 2 * 2.0**-24, rel=1e-12)


def test_an_error_at_the_budget_passes_and_one_above_fails() -> None:
    assert within_budget(torch.tensor([1.25, -2.0, 0.5]), TRUTH, TORCH)
    assert not within_budget(torch.tensor([1.2501, -2.0, 0.5]), TRUTH, TORCH)


def test_an_exactly_rounded_result_passes_when_torch_is_lucky() -> None:
    third = torch.tensor([1 / 3], dtype=torch.float64)
    rounded = third.to(torch.bfloat16)
    assert within_budget(rounded, third, third.clone())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_fails(value: float) -> None:
    sentence = excess(torch.tensor([1.0, value, 0.5]), TRUTH, TORCH)
    assert sentence is not None
    assert "inf" in sentence


def test_a_result_of_pytorch_that_is_not_finite_gives_no_budget() -> None:
    """Twice an infinite error would let every output pass."""
    with pytest.raises(ValueError, match="gives no error budget"):
        excess(torch.zeros(3), TRUTH, torch.tensor([1.0, float("nan"), 0.5]))


def test_infinities_in_the_truth_must_be_met() -> None:
    truth = torch.tensor([float("-inf"), 1.0])
    assert largest_error(truth.clone(), truth) == 0.0
    assert largest_error(torch.tensor([0.0, 1.0]), truth) == float("inf")


def test_empty_is_within_and_other_shapes_are_an_error() -> None:
    assert within_budget(torch.empty(0, 3), torch.empty(0, 3), torch.empty(0, 3))
    with pytest.raises(ValueError, match="shapes differ"):
        largest_error(torch.empty(2), torch.empty(3))
