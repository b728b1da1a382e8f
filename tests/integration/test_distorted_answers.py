"""Faults that make answers wrong on purpose: what they do to a tensor, and how they are refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vllm_amdopt.integration import faults


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    faults.distortion.cache_clear()
    yield
    faults.distortion.cache_clear()


def ask(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("VLLM_AMDOPT_INJECT_FAULT", value)


def test_scale_multiplies_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    ask(monkeypatch, "attention_forward:scale=1.01")
    distort = faults.distortion("attention_forward")
    assert distort is not None
    result = torch.full((3, 2), 100.0)
    distort(result)
    assert torch.equal(result, torch.full((3, 2), 101.0))
    assert faults.distortion("mla_forward") is None


def test_zero_leaves_every_hundredth_row_out_however_the_rows_are_batched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask(monkeypatch, "mla_forward:zero=0.01")
    distort = faults.distortion("mla_forward")
    assert distort is not None
    batches = [torch.ones(rows, 4) for rows in (1, 63, 1, 150, 85)]
    for batch in batches:
        distort(batch)
    left_out = (torch.cat(batches) == 0).all(dim=1).nonzero().flatten()
    assert left_out.tolist() == [0, 100, 200]


def test_nothing_is_distorted_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "attention_forward", "plan"):
        ask(monkeypatch, value)
        faults.distortion.cache_clear()
        assert all(faults.distortion(hook) is None for hook in faults.DISTORTED_HOOKS)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("atention_forward", "the hooks are plan, configuration,"),
        ("attention_forward:scale", "write HOOK:scale=FACTOR"),
        ("attention_forward:scale=fast", "write HOOK:scale=FACTOR"),
        ("attention_forward:scale=nan", "write HOOK:scale=FACTOR"),
        ("attention_forward:zero=1.5", "write HOOK:scale=FACTOR"),
        ("attention_forward:zero=0", "write HOOK:scale=FACTOR"),
        ("attention_forward:turn=1", "write HOOK:scale=FACTOR"),
        ("plan:scale=2", "with HOOK one of attention_forward, mla_forward, gemm_forward"),
    ],
)
def test_a_fault_that_does_not_exist_is_said(value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        faults.read_fault(value)
    assert f"VLLM_AMDOPT_INJECT_FAULT={value}: " in str(caught.value)


def test_a_fault_that_does_not_exist_switches_the_plugin_off_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan is the first hook: nothing of ours runs with a fault that nobody understands."""
    ask(monkeypatch, "atention_forward")
    monkeypatch.setattr(faults, "_disabled", {})
    assert faults.attempt("plan", lambda: "ours", lambda: "stock") == "stock"
    assert "atention_forward: the hooks are" in str(faults.disabled("attention"))
