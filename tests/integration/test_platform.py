"""Hooks of the platform class that need no server to be seen."""

from __future__ import annotations

import pytest

from vllm_amdopt.integration import active_plan, faults
from vllm_amdopt.integration.platform_cpu import AmdOptCpuPlatform

OURS = "vllm_amdopt.integration.tensor_parallel.AmdOptCpuCommunicator"
STOCK = "vllm.distributed.device_communicators.cpu_communicator.CpuCommunicator"


@pytest.fixture(autouse=True)
def all_reduce_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_disabled", {})
    monkeypatch.setattr(
        active_plan,
        "is_on",
        lambda feature: feature == "all_reduce" and faults.disabled(feature) is None,
    )


def test_the_communicator_is_ours_where_the_plan_has_it_on() -> None:
    assert AmdOptCpuPlatform.get_device_communicator_cls() == OURS


def test_a_communicator_that_cannot_be_imported_is_stock(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VLLM_AMDOPT_INJECT_FAULT", "communicator_class")
    assert AmdOptCpuPlatform.get_device_communicator_cls() == STOCK
    assert "all_reduce is switched off" in caplog.text
    assert AmdOptCpuPlatform.get_device_communicator_cls() == STOCK
    assert len(caplog.records) == 1


def test_strict_makes_it_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_AMDOPT_INJECT_FAULT", "communicator_class")
    monkeypatch.setenv("VLLM_AMDOPT_STRICT", "1")
    with pytest.raises(faults.FeatureError, match="all_reduce: communicator_class failed"):
        AmdOptCpuPlatform.get_device_communicator_cls()
