"""What the engine does with a rule that repairs, refuses or advises, and who owns a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.policy.situations import instinct, plan
from vllm_amdopt.policy.features import Evidence
from vllm_amdopt.policy.plan import Plan
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.serving_rules import ENTRIES
from vllm_amdopt.policy.situation import SettingValue, Situation


@dataclass(frozen=True)
class Fixed:
    """Settings and a remark that do not depend on the situation."""

    values: Mapping[str, SettingValue] = field(default_factory=dict)
    sentence: str | None = None

    def settings(self, situation: Situation) -> Mapping[str, SettingValue]:
        return self.values

    def remark(self, situation: Situation) -> str | None:
        return self.sentence

    def describe(self) -> str:
        return "test"


def rule(name: str, sets: Fixed, **facts: Any) -> Rule:
    return Rule(
        **{
            "name": name,
            "sets": sets,
            "seam": "none",
            "level": "safe",
            "reason": f"because of {name}",
            "requires": (),
            "default_when": (),
            "yields_to": (),
            "evidence": Evidence("predicted", "by a test"),
            "source": "test",
            "remove_when": "never",
            **facts,
        }
    )


DEFAULT = rule("kv_offload", Fixed({"moe_backend": "triton", "kv_offloading_size": 8.0}))


def planned(monkeypatch: pytest.MonkeyPatch, *rules: Rule, **options: Any) -> Plan:
    """A plan of these rules alone, which stand in for the real ones of the same names."""
    monkeypatch.setattr("vllm_amdopt.policy.plan.ENTRIES", rules)
    return plan(hardware=instinct(), **options)


def test_names_of_stand_ins_are_real() -> None:
    assert {"aiter", "kv_offload", "mla_block_size"} <= {entry.name for entry in ENTRIES}


def test_first_default_owns_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    later = rule("aiter", Fixed({"moe_backend": "aiter", "env.A": "1"}))
    made = planned(monkeypatch, DEFAULT, later)
    assert made.settings == {"moe_backend": "triton", "kv_offloading_size": 8.0, "env.A": "1"}
    assert made.decision("aiter").settings == {"env.A": "1"}


def test_default_leaves_a_value_of_the_users_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(monkeypatch, DEFAULT, moe_backend="aiter")
    assert made.settings == {"kv_offloading_size": 8.0}


def test_repair_takes_a_value_over_from_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = rule("aiter", Fixed({"moe_backend": "aiter"}), level="guard", action="repair")
    made = planned(monkeypatch, DEFAULT, guard)
    assert made.settings == {"kv_offloading_size": 8.0, "moe_backend": "aiter"}
    assert made.decision("kv_offload").settings == {"kv_offloading_size": 8.0}
    assert made.decision("aiter").kind == "guard"
    assert made.warnings == ()


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({"block_size": "default"}, {"block_size": 1}),
        ({"env.VLLM_ROCM_X": "0"}, {"environment": {"VLLM_ROCM_X": "1"}}),
        ({"fuse_allreduce_rms": False}, {"fuse_allreduce_rms": True}),
    ],
)
def test_repair_of_a_users_value_warns(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, SettingValue], options: dict[str, Any]
) -> None:
    guard = rule("aiter", Fixed(values, "it would crash"), level="guard", action="repair")
    made = planned(monkeypatch, guard, **options)
    assert made.settings == values
    assert made.warnings == (
        "aiter: because of aiter; it would crash; VLLM_AMDOPT_AITER=off keeps your choice",
    )


def test_refusal_and_advice_are_said_and_set_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = rule("aiter", Fixed({}, "no: use another"), level="guard", action="refuse")
    advice = rule("kv_offload", Fixed({}, "consider less"), action="advise")
    made = planned(monkeypatch, refusal, advice)
    assert (made.refusals, made.notes, made.warnings) == (
        ("no: use another",),
        ("consider less",),
        (),
    )
    assert made.settings == {}
    assert Plan.from_dict(made.to_dict()) == made
    assert made.digest != planned(monkeypatch, advice).digest


def test_a_list_of_features_keeps_the_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    guards = ("mla_block_size",)
    monkeypatch.setattr("vllm_amdopt.policy.switches._GUARDS", guards)
    guard = rule("mla_block_size", Fixed({"block_size": 64}), level="guard", action="repair")
    listed = {"VLLM_AMDOPT": "aiter"}
    made = planned(monkeypatch, DEFAULT, guard, environment=listed)
    assert made.settings == {"block_size": 64}
    switched_off = {**listed, "VLLM_AMDOPT_MLA_BLOCK_SIZE": "off"}
    assert planned(monkeypatch, DEFAULT, guard, environment=switched_off).settings == {}
    assert planned(monkeypatch, DEFAULT, guard, environment={"VLLM_AMDOPT": "0"}).settings == {}
