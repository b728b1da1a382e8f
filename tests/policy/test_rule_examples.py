"""Every feature and rule has fired once and stayed off once, and says all that a rule has to."""

from __future__ import annotations

import pytest

from tests.policy.rule_examples import EXAMPLES
from vllm_amdopt.policy.features import Feature
from vllm_amdopt.policy.plan import make_plan
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.serving_rules import ENTRIES
from vllm_amdopt.policy.versions import contains

NAMES = [entry.name for entry in ENTRIES]
FIRST_VLLM = "0.30.0"


def test_every_entry_has_a_pair_of_examples_in_the_order_of_the_plan() -> None:
    assert sorted(EXAMPLES) == sorted(NAMES)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_fires(name: str) -> None:
    example = EXAMPLES[name].on
    decision = make_plan(example.situation).decision(name)
    assert decision.on, decision.reason
    assert example.phrase in decision.reason


@pytest.mark.parametrize("name", NAMES)
def test_a_condition_keeps_it_off(name: str) -> None:
    example = EXAMPLES[name].off
    decision = make_plan(example.situation).decision(name)
    assert not decision.on
    assert example.phrase in decision.reason
    assert "switched off" not in decision.reason
    assert not decision.reason.startswith("opt-in:")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_nothing_is_left_unsaid(entry: Feature | Rule) -> None:
    said = [entry.reason, entry.evidence.source, entry.remove_when, entry.vllm, entry.seam]
    if isinstance(entry, Rule):
        said += [entry.source, entry.sets.describe()]
    else:
        said.append(entry.swaps)
    for text in said:
        assert text.strip() == text != ""
    assert contains(entry.vllm, FIRST_VLLM) is not None, "a readable range"
    assert not entry.reason.endswith("."), "plans put sentences together"
    for condition in (*entry.requires, *entry.default_when, *entry.yields_to):
        assert condition.describe()


@pytest.mark.parametrize("name", NAMES)
def test_only_what_fires_sets_something(name: str) -> None:
    pair = EXAMPLES[name]
    rule = next(entry for entry in ENTRIES if entry.name == name)
    fired = make_plan(pair.on.situation).decision(name)
    sets_values = isinstance(rule, Rule) and rule.action in ("set", "repair")
    assert bool(fired.settings) == sets_values
    assert not make_plan(pair.off.situation).decision(name).settings
