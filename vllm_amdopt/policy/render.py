"""Plans, features and rules as text: the start-up table, `explain`, and the generated pages.

Only formatting; every word comes from the records and the plan.
"""

from collections.abc import Mapping, Sequence

from vllm_amdopt.policy.compatibility import compatibility_page
from vllm_amdopt.policy.conditions import NEEDS_PATCH
from vllm_amdopt.policy.features import FEATURES, VLLM_RANGE, Feature
from vllm_amdopt.policy.plan import Decision, Plan
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.serving_rules import ENTRIES, RULES
from vllm_amdopt.policy.switches import GENERAL_SWITCHES
from vllm_amdopt.policy.text_tables import WIDTH, columns, markdown_table, wrapped


def render_plan_table(plan: Plan, width: int = WIDTH, *, warnings: bool = True) -> str:
    """The plan as plain text: a head, what it does, and unless told not to the warnings.

    One row for each feature, and for each rule that sets or says something or that the user has to
    do with; the other rules are only named. No line is longer than `width` columns.
    """
    where = plan.hardware_description or plan.hardware
    head = [
        f"vllm-amdopt {plan.plugin_version}: plan {plan.digest} for {where}, "
        f"vLLM {plan.vllm or 'of unknown version'}",
        f"model {plan.model}",
    ]
    lines = [line for text in head for line in wrapped(text, width, "  ")]
    shown = [decision for decision in plan.decisions if concerns_the_user(decision)]
    lines += decision_rows(shown, width)
    others = [decision.name for decision in plan.decisions if decision not in shown]
    if others:
        lines += wrapped(f"not for this model and machine: {', '.join(others)}", width, "  ")
    for label, sentences in (
        ("refused", plan.refusals),
        ("warning", plan.warnings if warnings else ()),
        ("note", plan.notes),
    ):
        for sentence in sentences:
            lines += wrapped(f"{label}: {sentence}", width, " " * (len(label) + 2))
    return "\n".join(lines)


_EXPECTED = ("aiter", "attention_order", "mla_block_size", "kv_offload")
"""What people look for in a plan, so that it says why where one of them is off."""


def concerns_the_user(decision: Decision) -> bool:
    """Whether a row on it tells more than that a rule is for other models or machines."""
    return (
        decision.kind == "feature"
        or decision.on
        or decision.origin == "user"
        or f"VLLM_AMDOPT_{decision.name.upper()}=" in decision.reason
        or decision.reason.startswith(NEEDS_PATCH)
        or decision.name in _EXPECTED
    )


def decision_rows(decisions: Sequence[Decision], width: int) -> list[str]:
    """Decisions as a table of plain text."""
    return columns(
        ("name", "state", "by", "what is set, and why"),
        [(d.name, "on" if d.on else "off", d.origin, what_and_why(d)) for d in decisions],
        width,
    )


def render_features(width: int = WIDTH) -> str:
    """All features and defaults with their switches, as plain text for the command line."""
    lines = ["Features (own code in vLLM's place):", ""]
    for feature in FEATURES:
        lines += _entry(feature, feature.swaps, width)
    lines += ["Serving defaults (settings, only where you set nothing):", ""]
    for rule in RULES:
        lines += _entry(rule, rule.sets.describe(), width)
    lines += ["Variables:", ""]
    lines += columns(
        ("variable", "values", "default", "meaning"),
        [
            *(
                (switch.name, " ".join(switch.values), switch.default, switch.summary)
                for switch in GENERAL_SWITCHES
            ),
            ("VLLM_AMDOPT_<NAME>", "auto on off", "auto", "one feature or default of the above"),
        ],
        width,
    )
    return "\n".join(lines)


def features_record() -> list[dict[str, str]]:
    """All features and rules as JSON-able records."""
    return [
        {
            "name": entry.name,
            "kind": "feature" if isinstance(entry, Feature) else entry.level,
            "switch": entry.switch,
            "what": entry.swaps if isinstance(entry, Feature) else entry.sets.describe(),
            "reason": entry.reason,
            "evidence": str(entry.evidence),
            "source": "" if isinstance(entry, Feature) else entry.source,
            "vllm": entry.vllm,
            "seam": entry.seam,
            "remove_when": entry.remove_when,
        }
        for entry in ENTRIES
    ]


def settings_text(settings: Mapping[str, str | int | float]) -> str:
    """{"block_size": 1, "env.A": "1"} as "block_size=1, A=1"."""
    return ", ".join(
        f"{name.removeprefix('env.')}={value:g}"
        if isinstance(value, float)
        else (f"{name.removeprefix('env.')}={value}")
        for name, value in settings.items()
    )


def switches_page() -> str:
    """docs/switches.md."""
    rows = [
        (f"`{switch.name}`", _code(switch.values), f"`{switch.default}`", switch.summary)
        for switch in GENERAL_SWITCHES
    ]
    rows += [
        (f"`{feature.switch}`", _code(("auto", "on", "off")), "`auto`", feature.swaps)
        for feature in FEATURES
    ]
    rows += [
        (f"`{rule.switch}`", _code(("auto", "on", "off")), "`auto`", rule.sets.describe())
        for rule in RULES
    ]
    parts = [
        "# Switches",
        _GENERATED,
        "Every environment variable of the plugin. `on` and `off` may also be written `1`, `true`, "
        "`yes` and `0`, `false`, `no`; case does not matter; an empty value counts as unset; "
        "anything else is an error. A switch of its own overrides what `VLLM_AMDOPT` says for that "
        "name. `vllm serve MODEL --plugin amdopt` is `VLLM_AMDOPT=1`, `--plugin off` is "
        "`VLLM_AMDOPT=0`, `--plugin attention,mla` is `VLLM_AMDOPT=attention,mla`.",
        markdown_table(("variable", "values", "default", "meaning"), rows),
        "`auto` means: on where the conditions of `rules.md` hold. Your own vLLM flags and "
        "variables always win over a default.",
    ]
    return "\n\n".join(parts) + "\n"


def rules_page() -> str:
    """docs/rules.md."""
    parts = [
        "# Features and serving defaults",
        _GENERATED,
        "For each, the first that matches decides: its switch says off; you set the thing "
        "yourself in vLLM (your choice stays); it cannot run (`needs`); its switch says on; it is "
        f"not on by default here (`on by default`); on. Written for vLLM `{VLLM_RANGE}`.",
        "`vllm-amdopt explain MODEL_DIR` prints what comes of this for a model and a machine.",
        "## Features",
        *(_section(feature, feature.swaps) for feature in FEATURES),
        "## Serving defaults",
        "Decided in this order, after the features; a later one sees the earlier decisions.",
        *(_section(rule, rule.sets.describe()) for rule in RULES),
    ]
    return "\n\n".join(parts) + "\n"


PAGES = {
    "docs/switches.md": switches_page,
    "docs/rules.md": rules_page,
    "docs/compatibility.md": compatibility_page,
}
"""The generated pages, by their path in the repository."""

_GENERATED = (
    "<!-- Generated by `vllm-amdopt docs --write` from vllm_amdopt/policy; do not edit. -->"
)


def what_and_why(decision: Decision) -> str:
    parts = [settings_text(decision.settings)] if decision.settings else []
    parts.append(decision.reason)
    if decision.on:
        parts.append(f"({decision.evidence})")
    return "; ".join(parts[:-1]) + f" {parts[-1]}" if decision.on else "; ".join(parts)


def _section(entry: Feature | Rule, what: str) -> str:
    requires = [
        *(condition.describe() for condition in entry.requires),
        f"vLLM's seam `{entry.seam}`",
    ]
    defaults = [condition.describe() for condition in entry.default_when]
    if isinstance(entry, Rule):
        defaults.append(f"vLLM {entry.vllm}")
    yields = [condition.describe() for condition in entry.yields_to]
    rows = [
        ("switch", f"`{entry.switch}` = `auto` (default), `on`, `off`"),
        ("what", what),
        ("why", entry.reason),
        ("needs", "; ".join(requires)),
        ("on by default", "; ".join(defaults)),
        ("yields to you", "; ".join(yields) or "nothing to yield to: vLLM has no flag for it"),
        ("evidence", str(entry.evidence)),
        ("vLLM", f"`{entry.vllm}`"),
        ("removed when", entry.remove_when),
    ]
    if isinstance(entry, Rule):
        rows[-2:-2] = [("level", entry.level), ("source", entry.source)]
    else:
        rows[-2:-2] = [("numerics", entry.numerics)]
    return f"### {entry.name}\n\n{markdown_table(('', ''), rows)}"


def _entry(entry: Feature | Rule, what: str, width: int) -> list[str]:
    kind = f"numerics {entry.numerics}" if isinstance(entry, Feature) else f"level {entry.level}"
    lines = [f"  {entry.name}  [{entry.switch}=auto|on|off, {kind}]"]
    for label, text in (("what", what), ("why", entry.reason), ("evidence", str(entry.evidence))):
        lines += wrapped(f"    {label + ':':<10}{text}", width, " " * 14)
    return [*lines, ""]


def _code(values: Sequence[str]) -> str:
    plain = ("unset", "comma list of features and defaults", "name of a hook")
    return ", ".join(value if value in plain else f"`{value}`" for value in values)
