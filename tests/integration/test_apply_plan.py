"""A plan's settings, written into a configuration: each in its place, and none twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from tests.policy.situations import CURRENT_AITER, instinct, situation
from vllm_amdopt.integration import active_plan, apply_plan, attention_order, faults, plugin
from vllm_amdopt.policy.model_fixtures import fixture_names
from vllm_amdopt.policy.plan import Decision, Plan, make_plan
from vllm_amdopt.policy.situation import SettingValue


class Cache:
    """As much of vLLM's CacheConfig as is written to."""

    DEFAULT_BLOCK_SIZE = 16

    def __init__(self, block_size: int = 16, *, given: bool = False) -> None:
        self.block_size = block_size
        self.user_specified_block_size = given
        self.kv_offloading_size: float | None = None


def configuration(cache: Cache | None = None) -> Any:
    ns = SimpleNamespace
    return ns(
        additional_config={},
        model_config=ns(multimodal_config=ns(mm_encoder_tp_mode="weights")),
        cache_config=cache or Cache(),
        kernel_config=ns(moe_backend="auto"),
        compilation_config=ns(pass_config=ns(fuse_allreduce_rms=None)),
    )


def plan(settings: Mapping[str, SettingValue], *refusals: str) -> Plan:
    decision = Decision("aiter", "default", True, settings, "default", "why", "evidence", None)
    return Plan((decision,), "gfx942", "amd", None, "a model", "0.32.0", refusals=refusals)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    values: dict[str, str] = {"KEPT": "1"}
    monkeypatch.setattr(plugin.os, "environ", values)
    monkeypatch.setattr(plugin, "_ours", {})
    monkeypatch.setattr(active_plan, "_plan", None)
    yield values


def kept_and_vllms(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what pytest sets, and what vLLM itself sets for AITER when its switches change."""
    return {
        name: value for name, value in environment.items() if name.startswith(("KEPT", "VLLM_"))
    }


def prepared(made: Plan, config: Any = None) -> Any:
    config = config or configuration()
    active_plan.store(config, made)
    apply_plan.prepare(config, "rocm")
    apply_plan.prepare(config, "rocm")
    return config


def test_every_setting_reaches_its_place(own_environment: dict[str, str]) -> None:
    config = prepared(
        plan(
            {
                "kv_offloading_size": 32.0,
                "moe_backend": "aiter",
                "fuse_allreduce_rms": False,
                "mm_encoder_tp_mode": "data",
                "env.VLLM_ROCM_USE_AITER": "1",
                "env.HIP_FORCE_DEV_KERNARG": "1",
            }
        )
    )
    assert config.cache_config.kv_offloading_size == 32.0
    assert config.kernel_config.moe_backend == "aiter"
    assert config.compilation_config.pass_config.fuse_allreduce_rms is False
    assert config.model_config.multimodal_config.mm_encoder_tp_mode == "data"
    assert own_environment["VLLM_ROCM_USE_AITER"] == "1"
    assert own_environment["HIP_FORCE_DEV_KERNARG"] == "1"


def test_a_variable_of_vllms_that_it_does_not_know_is_not_set(
    own_environment: dict[str, str],
) -> None:
    prepared(plan({"env.VLLM_ROCM_NO_SUCH_VARIABLE": "1"}))
    assert kept_and_vllms(own_environment) == {"KEPT": "1"}


def test_what_a_plan_set_is_not_taken_for_the_users_by_the_next(
    own_environment: dict[str, str],
) -> None:
    prepared(plan({"env.VLLM_ROCM_USE_AITER": "1"}))
    assert kept_and_vllms(plugin.users_environment()) == {"KEPT": "1"}
    own_environment["VLLM_ROCM_USE_AITER"] = "0"
    assert kept_and_vllms(plugin.users_environment()) == {
        "KEPT": "1",
        "VLLM_ROCM_USE_AITER": "0",
    }


def test_a_key_for_the_offload_connector_stands_beside_what_vllm_adds_later() -> None:
    """Before vLLM makes a connector of --kv-offloading-size there may be none; theirs is kept."""
    made = plan({"share_replicated_region": True})
    config = configuration()
    config.kv_transfer_config = None
    transfer = prepared(made, config).kv_transfer_config
    assert transfer.kv_connector_extra_config == {"share_replicated_region": True}
    assert transfer.kv_connector is None and not transfer.is_kv_transfer_instance
    theirs = {"share_replicated_region": False, "cpu_bytes_to_use": 1}
    config.kv_transfer_config = SimpleNamespace(kv_connector_extra_config=dict(theirs))
    assert prepared(made, config).kv_transfer_config.kv_connector_extra_config == theirs


@pytest.mark.parametrize(("given", "size"), [(True, 16), (False, 1)])
def test_only_a_users_block_size_is_taken_back(given: bool, size: int) -> None:
    config = prepared(plan({"block_size": "default"}), configuration(Cache(1, given=given)))
    assert config.cache_config.block_size == size
    assert config.cache_config.user_specified_block_size is False


def test_a_setting_without_a_place_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = configuration()
    del config.kernel_config
    prepared(plan({"moe_backend": "aiter", "fuse_allreduce_rms": False}), config)
    assert "moe_backend=aiter is not applied" in caplog.text
    assert config.compilation_config.pass_config.fuse_allreduce_rms is False


def test_a_refusal_is_an_error_in_words() -> None:
    with pytest.raises(faults.PlanRefusedError, match="vllm-amdopt: no: use more GPUs"):
        prepared(plan({}, "no: use more GPUs"))


def test_a_refusal_ends_the_command_with_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_plan.sys, "argv", ["/usr/bin/vllm", "serve", "model"])
    with pytest.raises(SystemExit, match=r"^vllm-amdopt: no: use more GPUs$"):
        prepared(plan({}, "no: use more GPUs"))


def test_order_of_the_plan_comes_first_and_drops_nobody() -> None:
    valid = [(SimpleNamespace(name=name), 5 * rank) for rank, name in enumerate("ABCD")]

    def ordered() -> list[tuple[str, int]]:
        return [(entry.name, rank) for entry, rank in attention_order.in_plan_order(valid)]

    prepared(plan({"attention_order": "C,X,B"}))
    assert ordered() == [("C", 0), ("B", 1), ("A", 2), ("D", 3)]
    prepared(plan({}))
    assert ordered() == [("A", 0), ("B", 5), ("C", 10), ("D", 15)]


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (
            ["vllm", "serve", "m", "--moe_backend", "auto", "--a=1"],
            {"--moe-backend", "--a"},
        ),
        (["/opt/program", "--moe-backend", "auto"], set()),
        ([], set()),
    ],
)
def test_options_given(arguments: list[str], given: set[str]) -> None:
    assert plugin.options_given(arguments) == given


@pytest.mark.parametrize("name", fixture_names())
def test_every_setting_of_a_plan_has_its_place(name: str) -> None:
    for gfx in ("gfx942", "gfx950"):
        for ranks in (1, 8):
            for aiter in (None, CURRENT_AITER):
                asked = situation(name, instinct(gfx), aiter=aiter, tensor_parallel_size=ranks)
                named = {key for key in make_plan(asked).settings if not key.startswith("env.")}
                assert named <= apply_plan.SETTINGS
