"""Plans, features and rules as text: the start-up table, `explain`, and the generated pages.

Only formatting; every word comes from the records and the plan.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from vllm_amdopt.policy.features import FEATURES, VLLM_RANGE, Feature
from vllm_amdopt.policy.plan import Decision, Plan
from vllm_amdopt.policy.rule import Rule
from vllm_amdopt.policy.serving_rules import RULES
from vllm_amdopt.policy.switches import GENERAL_SWITCHES

WIDTH = 120
"""Columns that every rendered table fits into."""


def render_plan_table(plan: Plan, width: int = WIDTH, *, warnings: bool = True) -> str:
    """The plan as plain text: a head, one row a decision, and unless told not to the warnings.

    No line is longer than `width` columns.
    """
    where = plan.hardware_description or plan.hardware
    head = [
        f"vllm-amdopt {plan.plugin_version}: plan {plan.digest} for {where}, "
        f"vLLM {plan.vllm or 'of unknown version'}",
        f"model {plan.model}",
    ]
    lines = [line for text in head for line in _wrapped(text, width, "  ")]
    rows = [
        (
            decision.name,
            "on" if decision.on else "off",
            decision.origin,
            _what_and_why(decision),
        )
        for decision in plan.decisions
    ]
    lines += _table(("name", "state", "by", "what is set, and why"), rows, width)
    for warning in plan.warnings if warnings else ():
        lines += _wrapped(f"warning: {warning}", width, "         ")
    return "\n".join(lines)


def render_features(width: int = WIDTH) -> str:
    """All features and defaults with their switches, as plain text for the command line."""
    lines = ["Features (own code in vLLM's place):", ""]
    for feature in FEATURES:
        lines += _entry(feature, feature.swaps, width)
    lines += ["Serving defaults (settings, only where you set nothing):", ""]
    for rule in RULES:
        lines += _entry(rule, rule.sets.describe(), width)
    lines += ["Variables:", ""]
    lines += _table(
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
        _markdown_table(("variable", "values", "default", "meaning"), rows),
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


PAGES = {"docs/switches.md": switches_page, "docs/rules.md": rules_page}
"""The generated pages, by their path in the repository."""

_GENERATED = (
    "<!-- Generated by `vllm-amdopt docs --write` from vllm_amdopt/policy; do not edit. -->"
)


def _what_and_why(decision: Decision) -> str:
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
    return f"### {entry.name}\n\n{_markdown_table(('', ''), rows)}"


def _entry(entry: Feature | Rule, what: str, width: int) -> list[str]:
    kind = f"numerics {entry.numerics}" if isinstance(entry, Feature) else f"level {entry.level}"
    lines = [f"  {entry.name}  [{entry.switch}=auto|on|off, {kind}]"]
    for label, text in (("what", what), ("why", entry.reason), ("evidence", str(entry.evidence))):
        lines += _wrapped(f"    {label + ':':<10}{text}", width, " " * 14)
    return [*lines, ""]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """Rows as columns two spaces apart; the last column wraps into what is left of `width`."""
    cells = [tuple(row) for row in rows]
    widths = [
        max(len(row[column]) for row in (tuple(head), *cells)) for column in range(len(head) - 1)
    ]
    # Columns of a few words may wrap too, so that the last one keeps at least 40 columns.
    while sum(widths) + 2 * len(widths) > max(width - 40, 20):
        widest = widths.index(max(widths))
        widths[widest] -= 1
    widths.append(width - sum(widths) - 2 * len(widths))
    lines = _row(head, widths)
    lines.append("  ".join("-" * min(size, 60) for size in widths))
    for row in cells:
        lines += _row(row, widths)
    return lines


def _row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    columns = [
        textwrap.wrap(cell, size, break_on_hyphens=False) or [""]
        for cell, size in zip(cells, widths, strict=True)
    ]
    height = max(len(column) for column in columns)
    return [
        "  ".join(
            (column[line] if line < len(column) else "").ljust(size)
            for column, size in zip(columns, widths, strict=True)
        ).rstrip()
        for line in range(height)
    ]


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _code(values: Sequence[str]) -> str:
    plain = ("unset", "comma list of features and defaults", "name of a hook")
    return ", ".join(value if value in plain else f"`{value}`" for value in values)
