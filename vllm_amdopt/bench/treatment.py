"""Whether an arm's server did what the arm is for, by what its log says; it asks no server.

Without this check an A/B run in which the plugin stepped aside compares stock with stock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_amdopt.bench.plan import Arm
from vllm_amdopt.policy.plan_record import SUMMARY_PREFIX

_ACTIVE = re.compile(r"vllm-amdopt \S+ active on ")
_SUMMARY = re.compile(re.escape(SUMMARY_PREFIX) + r"(\{.*\})")
_FAULT = re.compile(r"vllm-amdopt: (\w+) is switched off and vLLM goes on without it: (.*)")


@dataclass(frozen=True)
class Treatment:
    """What the plugin said in one server's log.

    `features` and `rules` are on by its plan; `off` has the reason for each feature that is not;
    `faults` those that failed afterwards and were switched off.
    """

    active: bool = False
    plan: str | None = None
    features: frozenset[str] = frozenset()
    rules: frozenset[str] = frozenset()
    off: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)

    @property
    def working(self) -> frozenset[str]:
        """Features that are on and did not fail."""
        return frozenset() if "plugin" in self.faults else self.features - set(self.faults)

    def record(self) -> dict[str, Any] | None:
        """As it stands in a run record as the arm's `plan`; None where the plugin is not there."""
        if not self.active:
            return None
        return {
            "digest": self.plan,
            "features": sorted(self.working),
            "rules": sorted(self.rules),
            "faults": dict(self.faults),
        }


def read_treatment(log: str) -> Treatment:
    """From a server's log; a log without a word of the plugin means that it was not there."""
    faults = {name: reason.strip() for name, reason in _FAULT.findall(log)}
    found = _SUMMARY.search(log)
    active = bool(_ACTIVE.search(log)) or found is not None
    if found is None:
        return Treatment(active=active, faults=faults)
    try:
        facts = json.loads(found.group(1))
        return Treatment(
            active=True,
            plan=str(facts["plan"]),
            features=frozenset(map(str, facts["features"])),
            rules=frozenset(map(str, facts["rules"])),
            off={str(name): str(reason) for name, reason in facts["off"].items()},
            faults=faults,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Treatment(active=active, faults=faults)


@dataclass(frozen=True)
class Problem:
    """Why the rows of a launch do not count: `unsupported` where this model or machine has no
    such treatment, `tainted` where it should have been there and was not."""

    status: str
    sentence: str


def treatment_problem(arm: Arm, treatment: Treatment) -> Problem | None:
    """What is wrong with the treatment of this launch, or None."""
    wanted = arm.plugin_wanted
    if wanted is False:
        if treatment.active:
            return Problem(
                "tainted", f"the plugin is active in {arm.name}, whose VLLM_AMDOPT=0 forbids it"
            )
        return None
    if treatment.faults:
        failed, why = next(iter(treatment.faults.items()))
        return Problem("tainted", f"{failed} failed in {arm.name} and was switched off: {why}")
    for name in arm.expected_features:
        if name not in treatment.working:
            reason = treatment.off.get(name)
            if reason is not None:
                return Problem("unsupported", f"{name} is not on in {arm.name}: {reason}")
            return Problem("tainted", f"the log of {arm.name} does not show that {name} is on")
    for name in arm.unwanted_features:
        if name in treatment.working:
            return Problem("tainted", f"{name} is on in {arm.name}, which is to be without it")
    if wanted and not treatment.active:
        return Problem(
            "tainted",
            f"the plugin is not active in {arm.name}: its log has no `{SUMMARY_PREFIX.strip()}` "
            "(VLLM_LOGGING_LEVEL above INFO hides it)",
        )
    if wanted and not arm.unwanted_features and not (treatment.features or treatment.rules):
        return Problem(
            "tainted",
            f"the plugin is active in {arm.name} but has nothing on, so this compares stock with "
            "stock; `vllm-amdopt explain` says why each feature is off",
        )
    return None


def pattern_problem(pattern: str, arms: Mapping[str, str]) -> Problem | None:
    """`--expect-log`: must match in the last arm's log and in no other. `arms`: name -> log."""
    *others, treated = arms
    if not re.search(pattern, arms[treated]):
        return Problem("tainted", f"nothing in the log of {treated} matches {pattern!r}")
    for name in others:
        if re.search(pattern, arms[name]):
            return Problem("tainted", f"the log of {name} matches {pattern!r} too")
    return None
