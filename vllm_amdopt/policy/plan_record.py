"""The plan as a record: decisions with their reasons, as JSON-able values and back.

Made by `plan.make_plan`; carried to all of vLLM's processes inside its configuration.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from vllm_amdopt import __version__
from vllm_amdopt.policy.situation import SettingValue

SUMMARY_PREFIX = "vllm-amdopt in use: "
"""What `Plan.summary` begins with; a JSON object follows on the same line."""

_FORMAT = 2
_Kind = TypeVar("_Kind")


class PlanError(ValueError):
    """A plan record that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True)
class Decision:
    """One feature, default or guard, decided; a guard is on where it found what it guards against.

    `settings`: what a rule sets (`env.NAME` is an environment variable); empty for features and
    for what is off. `origin`: who decided: the defaults, a switch of ours, or the user's own
    flags. `numerics` is None for rules.
    """

    name: str
    kind: Literal["feature", "default", "guard"]
    on: bool
    settings: Mapping[str, SettingValue]
    origin: Literal["default", "switch", "user"]
    reason: str
    evidence: str
    numerics: str | None


@dataclass(frozen=True)
class Plan:
    """All decisions for one model on one machine, with what they were made for.

    `warnings`: what the user asked for and does not get. `refusals`: why this server cannot run,
    and what to do. `notes`: advice.
    """

    decisions: tuple[Decision, ...]
    gfx: str | None
    hardware: str
    engine: str | None
    model: str
    vllm: str | None
    plugin_version: str = __version__
    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
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
    def settings(self) -> Mapping[str, SettingValue]:
        """All that the plan sets, by setting; each has one owner among the decisions."""
        return {key: value for d in self.decisions for key, value in d.settings.items()}

    @property
    def digest(self) -> str:
        """12 hex characters that change when the plan does something else, not with its wording."""
        acts = {
            "decisions": [[d.name, d.on, dict(sorted(d.settings.items()))] for d in self.decisions],
            "engine": self.engine,
            "gfx": self.gfx,
            "hardware": self.hardware,
            "plugin": self.plugin_version,
            "refused": bool(self.refusals),
            "vllm": self.vllm,
        }
        text = json.dumps(acts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def summary(self) -> str:
        """One line of the start-up log, for programs too: what is on, and why not the rest."""
        features = [d for d in self.decisions if d.kind == "feature"]
        facts = {
            "plan": self.digest,
            "features": [d.name for d in features if d.on],
            "rules": [d.name for d in self.decisions if d.kind != "feature" and d.on],
            "off": {d.name: d.reason for d in features if not d.on},
        }
        return SUMMARY_PREFIX + json.dumps(facts)

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
            "refusals": list(self.refusals),
            "notes": list(self.notes),
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
        plan = Plan(
            decisions=tuple(_decision_from(entry) for entry in decisions),
            gfx=_optional_text(record, "gfx"),
            hardware=_field(record, "hardware", str),
            engine=_optional_text(record, "engine"),
            model=_field(record, "model", str),
            vllm=_optional_text(record, "vllm"),
            plugin_version=_field(record, "plugin_version", str),
            warnings=_sentences(record, "warnings"),
            refusals=_sentences(record, "refusals"),
            notes=_sentences(record, "notes"),
            hardware_description=_field(record, "hardware_description", str),
        )
        if record.get("digest") != plan.digest:
            raise PlanError(
                f"the plan record's digest {record.get('digest')!r} does not fit its contents "
                f"({plan.digest}): it was changed after it was made"
            )
        return plan


def _decision_from(record: object) -> Decision:
    if not isinstance(record, Mapping):
        raise PlanError(f"a decision record is a mapping, not a {type(record).__name__}")
    kind, origin = _field(record, "kind", str), _field(record, "origin", str)
    if kind not in ("feature", "default", "guard"):
        raise PlanError(f"a decision record has kind {kind!r}, expected feature, default or guard")
    if origin not in ("default", "switch", "user"):
        raise PlanError(
            f"a decision record has origin {origin!r}, expected default, switch or user"
        )
    settings = _field(record, "settings", dict)
    for name, value in settings.items():
        if not isinstance(name, str) or not isinstance(value, (str, int, float)):
            raise PlanError(f"a decision record sets {name!r} to {value!r}: not text or a number")
    return Decision(
        name=_field(record, "name", str),
        kind="feature" if kind == "feature" else "guard" if kind == "guard" else "default",
        on=_field(record, "on", bool),
        settings=dict(settings),
        origin="default" if origin == "default" else "switch" if origin == "switch" else "user",
        reason=_field(record, "reason", str),
        evidence=_field(record, "evidence", str),
        numerics=_optional_text(record, "numerics"),
    )


def _sentences(record: Mapping[str, object], name: str) -> tuple[str, ...]:
    sentences = _field(record, name, list)
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise PlanError(f"the plan record's {name!r} are not all strings")
    return tuple(sentences)


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
