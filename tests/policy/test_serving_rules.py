"""The table of serving defaults: its order, and that no record is half-filled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.situations import CURRENT_AITER, instinct, plan
from vllm_amdopt.policy.serving_rules import ENTRIES, RULES, Rule


def test_order_is_that_of_the_dependencies() -> None:
    names = [rule.name for rule in RULES]
    assert names.index("aiter") < names.index("mla_block_size")
    assert names.index("aiter") < names.index("kv_offload")


def test_every_record_is_complete() -> None:
    for rule in RULES:
        texts = (rule.reason, rule.source, rule.remove_when, rule.sets.describe(), rule.vllm)
        for text in (*texts, str(rule.evidence)):
            assert text
            assert not text.endswith(".")
        for condition in (*rule.requires, *rule.default_when, *rule.yields_to):
            assert condition.describe()


def test_rules_off_say_so_whatever_the_machine() -> None:
    environment = {rule.switch: "off" for rule in RULES}
    made = plan(hardware=instinct(), aiter=CURRENT_AITER, environment=environment)
    for rule in RULES:
        decision = made.decision(rule.name)
        assert not decision.on
        assert decision.reason == f"switched off by {rule.switch}=off"


@pytest.mark.parametrize(
    ("environment", "on", "reason"),
    [
        pytest.param({}, False, "opt-in: VLLM_AMDOPT_KV_OFFLOAD=on uses it", id="auto"),
        pytest.param(
            {"VLLM_AMDOPT_KV_OFFLOAD": "on"},
            True,
            "forced by VLLM_AMDOPT_KV_OFFLOAD=on although ROCM_ATTN takes no KV connector",
            id="switched on",
        ),
    ],
)
def test_opt_in_rule_waits_to_be_asked(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], on: bool, reason: str
) -> None:
    entries = [
        replace(entry, level="opt-in") if isinstance(entry, Rule) else entry for entry in ENTRIES
    ]
    monkeypatch.setattr("vllm_amdopt.policy.plan.ENTRIES", tuple(entries))
    made = plan(hardware=instinct(), aiter=CURRENT_AITER, environment=environment)
    decision = made.decision("kv_offload")
    assert decision.on is on
    assert decision.reason.startswith(reason)
