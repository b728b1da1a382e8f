"""The plan: which features and rules are on for a situation, and why.

`make_plan` is a pure function. It applies nothing: the integration reads the plan and acts.

Precedence, for each feature and rule, first match decides:

1. the switch says `off` (or VLLM_AMDOPT=0, or a list without it, which guards survive): off;
2. the user made that choice themselves (a flag or variable of vLLM's): off, their choice stays,
   and it is the reason if the entry could have been on without it;
3. a hard condition (`requires`, the vLLM seam) fails: off, and a warning if it was asked for;
4. the switch says `on`, or the user named our attention backend: on;
5. a soft condition (`default_when`; for rules also the vLLM range) fails: off;
6. on.

Features are decided first, in the order of FEATURES, then rules in the order of RULES. What is
decided is visible to the conditions of what follows (`Situation.decided`, `Situation.values`).
Among rules the first to set a value owns it; only a guard that repairs may change it afterwards, or
change a value of the user's, and then the plan warns.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vllm_amdopt import __version__
from vllm_amdopt.policy.conditions import Condition, SeamPresent, VllmIn
from vllm_amdopt.policy.features import VLLM_RANGE, Feature
from vllm_amdopt.policy.plan_record import Decision, Plan, PlanError
from vllm_amdopt.policy.rule import Rule, chosen_by_user
from vllm_amdopt.policy.serving_rules import ENTRIES
from vllm_amdopt.policy.situation import SettingValue, Situation, Software, UserChoices
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


@dataclass
class _Draft:
    """What has been decided so far."""

    decided: dict[str, bool] = field(default_factory=dict)
    values: dict[str, SettingValue] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, entry: Feature | Rule, decision: Decision, situation: Situation) -> None:
        """Take a decision in: its values as far as nobody owns them, its sentences."""
        if isinstance(entry, Rule) and decision.on:
            decision = self._settle(entry, decision, situation)
        self.decided[entry.name] = decision.on
        self.decisions.append(decision)

    def _settle(self, rule: Rule, decision: Decision, situation: Situation) -> Decision:
        settings = dict(decision.settings)
        if rule.action == "refuse":
            self.refusals.append(decision.reason)
        elif rule.action == "advise":
            self.notes.append(decision.reason)
        elif rule.action == "set":
            settings = {
                key: value
                for key, value in settings.items()
                if key not in self.values and chosen_by_user(situation, key) is None
            }
        else:
            self._take_over(rule, settings)
            theirs = [key for key in settings if chosen_by_user(situation, key) is not None]
            if theirs:
                self.warnings.append(
                    f"{rule.name}: {decision.reason}; {rule.switch}=off keeps your choice"
                )
        self.values.update(settings)
        return replace(decision, settings=settings)

    def _take_over(self, rule: Rule, settings: Mapping[str, SettingValue]) -> None:
        """Take the keys of a repair away from the earlier decisions that set them otherwise."""
        for position, earlier in enumerate(self.decisions):
            lost = [key for key in earlier.settings if key in settings]
            if not lost:
                continue
            kept = {key: value for key, value in earlier.settings.items() if key not in lost}
            self.decisions[position] = replace(earlier, settings=kept)


def make_plan(situation: Situation) -> Plan:
    """Decide every feature and rule for `situation`. Pure; SwitchError on a bad switch."""
    activation = read_switches(situation.environment)
    draft = _Draft()
    version = situation.software.vllm
    if VllmIn(VLLM_RANGE).refusal(situation) is not None:
        draft.warnings.append(
            f"vLLM {version} is outside the range {VLLM_RANGE} that vllm-amdopt {__version__} is "
            "written for: what it lacks a seam for is off, the defaults are off, the rest is "
            "untested; install a vLLM in that range or a newer vllm-amdopt"
        )
    for entry in ENTRIES:
        seen = replace(situation, decided=dict(draft.decided), values=dict(draft.values))
        decision, warning = _decide(entry, seen, activation)
        draft.add(entry, decision, seen)
        if warning is not None:
            draft.warnings.append(warning)
    hardware = situation.hardware
    return Plan(
        decisions=tuple(draft.decisions),
        gfx=hardware.gfx,
        hardware=hardware.kind,
        engine=hardware.engine,
        model=situation.model.summary if situation.model else "unknown model",
        vllm=version,
        warnings=tuple(draft.warnings),
        refusals=tuple(draft.refusals),
        notes=tuple(draft.notes),
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

    hard = (SeamPresent(entry.seam), *entry.requires)
    chosen = _first_refusal(entry.yields_to, situation)
    if chosen is not None and _first_refusal(hard, _without_choices(situation)) is None:
        return _off(entry, "user", chosen), _not_honoured(entry, asked_by, chosen)

    # What the user chose is no reason where the entry is for another model or machine anyway.
    refusal = _first_refusal(hard, situation if chosen is None else _without_choices(situation))
    if refusal is not None:
        origin: Literal["default", "switch"] = "switch" if asked_by else "default"
        return _off(entry, origin, refusal), _not_honoured(entry, asked_by, refusal)

    soft = (*entry.default_when, *((VllmIn(entry.vllm),) if isinstance(entry, Rule) else ()))
    refusal = _first_refusal(soft, situation)
    if asked_by:
        reason = f"switched on by {asked_by}"
        if refusal is not None:
            # "no measurement yet; ...=on uses it" would advise what is already done.
            reason = f"forced by {asked_by} although {refusal.split(';')[0]}"
        return _on(entry, situation, "switch" if mode == "on" else "user", reason), None
    if isinstance(entry, Rule) and entry.level == "opt-in":
        reason = f"opt-in: {entry.switch}=on uses it; {entry.reason}"
        return _off(entry, "default", reason), None
    if refusal is not None:
        return _off(entry, "default", refusal), None
    return _on(entry, situation, "default", entry.reason), None


def _first_refusal(conditions: Iterable[Condition], situation: Situation) -> str | None:
    for condition in conditions:
        refusal = condition.refusal(situation)
        if refusal is not None:
            return refusal
    return None


def _without_choices(situation: Situation) -> Situation:
    """The situation as it were had the user left to vLLM all that a rule may yield to."""
    choices = replace(
        situation.choices,
        block_size=None,
        attention_backend=None,
        kv_offload=False,
        disable_custom_all_reduce=False,
        moe_backend=None,
        mm_encoder_tp_mode=None,
        fuse_allreduce_rms=None,
        fuse_rope_kvcache=None,
    )
    return replace(situation, choices=choices, environment={})


def _not_honoured(entry: Feature | Rule, asked_by: str, refusal: str) -> str | None:
    """The warning that a wish was not granted; a guard without its problem needs none."""
    if not asked_by or (isinstance(entry, Rule) and entry.level == "guard"):
        return None
    return f"{asked_by} cannot be honoured, {entry.name} is off: {refusal}"


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
        if remark and entry.action in ("refuse", "advise"):
            reason = remark  # the whole sentence: it holds the reason
        elif remark:
            reason = f"{reason}; {remark}"
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
    kind: Literal["feature", "default", "guard"] = "feature"
    if isinstance(entry, Rule):
        kind = "guard" if entry.level == "guard" else "default"
    return Decision(
        name=entry.name,
        kind=kind,
        on=on,
        settings=settings,
        origin=origin,
        reason=reason,
        evidence=str(entry.evidence),
        numerics=entry.numerics if isinstance(entry, Feature) else None,
    )
