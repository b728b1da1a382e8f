"""The plan: which features and defaults are on for a situation, and why.

`make_plan` is a pure function. It applies nothing: the integration reads the plan and acts.

Precedence, for each feature and rule, first match decides:

1. the switch says `off` (or VLLM_AMDOPT=0, or a list without it): off;
2. the user made that choice themselves (a flag or variable of vLLM's): off, their choice stays;
3. a hard condition (`requires`, the vLLM seam) fails: off, and a warning if it was asked for;
4. the switch says `on`, or the user named our attention backend: on;
5. a soft condition (`default_when`; for rules also the vLLM range) fails: off;
6. on.

Features are decided first, in the order of FEATURES, then rules in the order of RULES. What is
decided is visible to the conditions of what follows (`Situation.decided`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from vllm_amdopt import __version__
from vllm_amdopt.policy.conditions import SeamPresent, VllmIn
from vllm_amdopt.policy.features import VLLM_RANGE, Feature
from vllm_amdopt.policy.serving_rules import ENTRIES, Rule, SettingValue
from vllm_amdopt.policy.situation import Situation, Software, UserChoices
from vllm_amdopt.policy.switches import Activation, read_switches

__all__ = [
    "Decision",
    "Plan",
    "PlanError",
    "Situation",
    "Software",
    "UserChoices",
    "make_plan",
]

_FORMAT = 1
_Kind = TypeVar("_Kind")


class PlanError(ValueError):
    """A plan record that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True)
class Decision:
    """One feature or default, decided.

    `settings`: what a rule sets (`env.NAME` is an environment variable); empty for features and
    for what is off. `origin`: who decided: the defaults, a switch of ours, or the user's own
    flags. `numerics` is None for rules.
    """

    name: str
    kind: Literal["feature", "default"]
    on: bool
    settings: Mapping[str, SettingValue]
    origin: Literal["default", "switch", "user"]
    reason: str
    evidence: str
    numerics: str | None


@dataclass(frozen=True)
class Plan:
    """All decisions for one model on one machine, with what they were made for."""

    decisions: tuple[Decision, ...]
    gfx: str | None
    hardware: str
    engine: str | None
    model: str
    vllm: str | None
    plugin_version: str = __version__
    warnings: tuple[str, ...] = ()
    hardware_description: str = field(default="")

    def decision(self, name: str) -> Decision:
        """The decision on `name`. KeyError if the plan has none."""
        for decision in self.decisions:
            if decision.name == name:
                return decision
        raise KeyError(f"the plan has no decision on {name!r}")

    def is_on(self, name: str) -> bool:
        """Whether `name` is on."""
        return self.decision(name).on

    @property
    def digest(self) -> str:
        """12 hex characters that change when the plan does something else, not with its wording."""
        acts = {
            "decisions": [[d.name, d.on, dict(sorted(d.settings.items()))] for d in self.decisions],
            "engine": self.engine,
            "gfx": self.gfx,
            "hardware": self.hardware,
            "plugin": self.plugin_version,
            "vllm": self.vllm,
        }
        text = json.dumps(acts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, object]:
        """The plan as JSON-able values; `from_dict` gives an equal plan back."""
        return {
            "format": _FORMAT,
            "digest": self.digest,
            "plugin_version": self.plugin_version,
            "hardware": self.hardware,
            "hardware_description": self.hardware_description,
            "gfx": self.gfx,
            "engine": self.engine,
            "model": self.model,
            "vllm": self.vllm,
            "warnings": list(self.warnings),
            "decisions": [
                {
                    "name": decision.name,
                    "kind": decision.kind,
                    "on": decision.on,
                    "settings": dict(decision.settings),
                    "origin": decision.origin,
                    "reason": decision.reason,
                    "evidence": decision.evidence,
                    "numerics": decision.numerics,
                }
                for decision in self.decisions
            ],
        }

    @staticmethod
    def from_dict(record: Mapping[str, object]) -> "Plan":
        """The plan of a record made by `to_dict`. PlanError in words on anything else."""
        if not isinstance(record, Mapping):
            raise PlanError(f"a plan record is a mapping, not a {type(record).__name__}")
        if record.get("format") != _FORMAT:
            raise PlanError(
                f"the plan record has format {record.get('format')!r}, this version reads {_FORMAT}"
            )
        decisions = _field(record, "decisions", list)
        warnings = _field(record, "warnings", list)
        if not all(isinstance(warning, str) for warning in warnings):
            raise PlanError("the plan record's 'warnings' are not all strings")
        plan = Plan(
            decisions=tuple(_decision_from(entry) for entry in decisions),
            gfx=_optional_text(record, "gfx"),
            hardware=_field(record, "hardware", str),
            engine=_optional_text(record, "engine"),
            model=_field(record, "model", str),
            vllm=_optional_text(record, "vllm"),
            plugin_version=_field(record, "plugin_version", str),
            warnings=tuple(warnings),
            hardware_description=_field(record, "hardware_description", str),
        )
        if record.get("digest") != plan.digest:
            raise PlanError(
                f"the plan record's digest {record.get('digest')!r} does not fit its contents "
                f"({plan.digest}): it was changed after it was made"
            )
        return plan


def make_plan(situation: Situation) -> Plan:
    """Decide every feature and rule for `situation`. Pure; SwitchError on a bad switch."""
    activation = read_switches(situation.environment)
    decided: dict[str, bool] = {}
    decisions: list[Decision] = []
    warnings: list[str] = []
    version = situation.software.vllm
    out_of_range = VllmIn(VLLM_RANGE).refusal(situation)
    if out_of_range is not None:
        warnings.append(
            f"vLLM {version} is outside the range {VLLM_RANGE} that vllm-amdopt {__version__} is "
            "written for: what it lacks a seam for is off, the defaults are off, the rest is "
            "untested; install a vLLM in that range or a newer vllm-amdopt"
        )
    for entry in ENTRIES:
        seen = replace(situation, decided=dict(decided))
        decision, warning = _decide(entry, seen, activation)
        decided[entry.name] = decision.on
        decisions.append(decision)
        if warning is not None:
            warnings.append(warning)
    hardware = situation.hardware
    return Plan(
        decisions=tuple(decisions),
        gfx=hardware.gfx,
        hardware=hardware.kind,
        engine=hardware.engine,
        model=situation.model.summary if situation.model else "unknown model",
        vllm=version,
        warnings=tuple(warnings),
        hardware_description=hardware.description,
    )


def _decide(
    entry: Feature | Rule, situation: Situation, activation: Activation
) -> tuple[Decision, str | None]:
    """The decision on one feature or rule and the warning that it deserves, if any."""
    mode, source = activation.modes[entry.name], activation.sources[entry.name]
    named_backend = (
        isinstance(entry, Feature)
        and entry.backend is not None
        and (situation.choices.attention_backend == entry.backend)
    )
    asked_by = source if mode == "on" else ""
    if named_backend and not asked_by:
        asked_by = f"--attention-backend {situation.choices.attention_backend}"

    if mode == "off":
        listed = (
            " (a list without it)"
            if activation.listed and "=" in source and (source.startswith("VLLM_AMDOPT="))
            else ""
        )
        warning = None
        if named_backend:
            warning = f"{asked_by} asks for {entry.name}, which {source} switches off"
        return _off(entry, "switch", f"switched off by {source}{listed}"), warning

    for condition in entry.yields_to:
        refusal = condition.refusal(situation)
        if refusal is not None:
            return _off(entry, "user", refusal), _not_honoured(entry, asked_by, refusal)

    for condition in (SeamPresent(entry.seam), *entry.requires):
        refusal = condition.refusal(situation)
        if refusal is not None:
            origin: Literal["default", "switch"] = "switch" if asked_by else "default"
            return _off(entry, origin, refusal), _not_honoured(entry, asked_by, refusal)

    soft = (*entry.default_when, *((VllmIn(entry.vllm),) if isinstance(entry, Rule) else ()))
    refusals = [condition.refusal(situation) for condition in soft]
    refusal = next((sentence for sentence in refusals if sentence is not None), None)
    if asked_by:
        reason = f"switched on by {asked_by}"
        if refusal is not None:
            # "no measurement yet; ...=on uses it" would advise what is already done.
            reason = f"forced by {asked_by} although {refusal.split(';')[0]}"
        return _on(entry, situation, "switch" if mode == "on" else "user", reason), None
    if isinstance(entry, Rule) and entry.level != "safe":
        return _off(entry, "default", f"opt-in: {entry.switch}=on uses it"), None
    if refusal is not None:
        return _off(entry, "default", refusal), None
    return _on(entry, situation, "default", entry.reason), None


def _not_honoured(entry: Feature | Rule, asked_by: str, refusal: str) -> str | None:
    return f"{asked_by} cannot be honoured, {entry.name} is off: {refusal}" if asked_by else None


def _on(
    entry: Feature | Rule,
    situation: Situation,
    origin: Literal["default", "switch", "user"],
    reason: str,
) -> Decision:
    settings: Mapping[str, SettingValue] = {}
    if isinstance(entry, Rule):
        settings = dict(entry.sets.settings(situation))
        remark = entry.sets.remark(situation)
        reason = f"{reason}; {remark}" if remark else reason
    return _decision(entry, True, settings, origin, reason)


def _off(
    entry: Feature | Rule, origin: Literal["default", "switch", "user"], reason: str
) -> Decision:
    return _decision(entry, False, {}, origin, reason)


def _decision(
    entry: Feature | Rule,
    on: bool,
    settings: Mapping[str, SettingValue],
    origin: Literal["default", "switch", "user"],
    reason: str,
) -> Decision:
    feature = isinstance(entry, Feature)
    return Decision(
        name=entry.name,
        kind="feature" if feature else "default",
        on=on,
        settings=settings,
        origin=origin,
        reason=reason,
        evidence=str(entry.evidence),
        numerics=entry.numerics if isinstance(entry, Feature) else None,
    )


def _decision_from(record: object) -> Decision:
    if not isinstance(record, Mapping):
        raise PlanError(f"a decision record is a mapping, not a {type(record).__name__}")
    kind, origin = _field(record, "kind", str), _field(record, "origin", str)
    if kind not in ("feature", "default"):
        raise PlanError(f"a decision record has kind {kind!r}, expected feature or default")
    if origin not in ("default", "switch", "user"):
        raise PlanError(
            f"a decision record has origin {origin!r}, expected default, switch or user"
        )
    settings = _field(record, "settings", dict)
    for name, value in settings.items():
        if (
            not isinstance(name, str)
            or isinstance(value, bool)
            or (not isinstance(value, (str, int, float)))
        ):
            raise PlanError(f"a decision record sets {name!r} to {value!r}: not text or a number")
    return Decision(
        name=_field(record, "name", str),
        kind="feature" if kind == "feature" else "default",
        on=_field(record, "on", bool),
        settings=dict(settings),
        origin="default" if origin == "default" else "switch" if origin == "switch" else "user",
        reason=_field(record, "reason", str),
        evidence=_field(record, "evidence", str),
        numerics=_optional_text(record, "numerics"),
    )


def _field(record: Mapping[str, object], name: str, kind: type[_Kind]) -> _Kind:
    value = record.get(name)
    if not isinstance(value, kind):
        raise PlanError(f"the plan record's {name!r} is {value!r}, expected a {kind.__name__}")
    return value


def _optional_text(record: Mapping[str, object], name: str) -> str | None:
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise PlanError(f"the plan record's {name!r} is {value!r}, expected a string or null")
    return value
