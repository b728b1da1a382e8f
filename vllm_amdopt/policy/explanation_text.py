"""An explanation as text for a terminal or as markdown, and the difference between two.

Only formatting; every word comes from the explanation.
"""

from collections.abc import Iterable, Mapping, Sequence

from vllm_amdopt.hardware import GIB
from vllm_amdopt.policy.explanation import Explanation
from vllm_amdopt.policy.plan import Decision
from vllm_amdopt.policy.render import concerns_the_user, settings_text
from vllm_amdopt.policy.text_tables import WIDTH, columns, markdown_table, wrapped

Rows = Sequence[Sequence[str]]


def as_text(explanation: Explanation, width: int = WIDTH, *, every: bool = False) -> str:
    """For a terminal. `every` gives the rules that do not apply a row each, with the reason."""
    plan = explanation.plan
    lines = wrapped(
        f"vllm-amdopt {plan.plugin_version}: plan {plan.digest} for "
        f"{plan.hardware_description or plan.hardware}, {_software(explanation)}",
        width,
        "  ",
    )
    lines += wrapped(f"model {explanation.model}: {plan.model}", width, "  ")
    for label, sentence in _sentences(explanation):
        lines += wrapped(f"{label}: {sentence}", width, " " * (len(label) + 2))
    lines += _what_is_set(explanation, width)
    for title, head, rows in _tables(explanation, every):
        if rows:
            lines += ["", f"{title}:", *columns(head, rows, width)]
    named = [d.name for d in plan.decisions if not concerns_the_user(d)]
    if named and not every:
        text = f"not for this model and machine: {', '.join(named)} (--all says why)"
        lines += ["", *wrapped(text, width, "  ")]
    for title, command in _commands(explanation):
        lines += ["", f"{title}:", *(f"  {line}" for line in command.splitlines())]
    return "\n".join(lines)


def as_markdown(explanation: Explanation, *, every: bool = False) -> str:
    """For a document or an issue."""
    plan = explanation.plan
    parts = [
        f"# {explanation.model} on {plan.hardware_description or plan.hardware}",
        f"{plan.model}. {_software(explanation)}, vllm-amdopt {plan.plugin_version}, plan "
        f"`{plan.digest}`.",
    ]
    parts += [f"- **{label}**: {sentence}" for label, sentence in _sentences(explanation)]
    setting = [
        (settings_text(decision.settings), decision.name, decision.reason, grounds)
        for decision, grounds in _setting(explanation)
    ]
    if setting:
        head = ("what", "by rule", "why", "evidence and source")
        parts += ["## What is set", markdown_table(head, setting)]
    for title, columns_head, rows in _tables(explanation, every):
        if rows:
            parts += [f"## {title.capitalize()}", markdown_table(columns_head, rows)]
    for title, command in _commands(explanation):
        parts += [f"## {title.capitalize()}", f"```\n{command}\n```"]
    return "\n\n".join(parts)


def difference(one: Explanation, other: Explanation, names: tuple[str, str]) -> list[str]:
    """What differs between two explanations, as lines; empty where nothing does.

    Compared is what the plans do and what it leads to, not the wording of reasons.
    """
    rows: list[tuple[str, str, str]] = []
    decisions = [{d.name: d for d in e.plan.decisions} for e in (one, other)]
    for name in _either(*decisions):
        left, right = (
            _deed(found.get(name), missing_from)
            for found, missing_from in zip(decisions, reversed(decisions), strict=True)
        )
        rows.append((name, left, right))
    left_facts, right_facts = _facts(one), _facts(other)
    for name in _either(left_facts, right_facts):
        rows.append((name, left_facts.get(name, "–"), right_facts.get(name, "–")))
    rows = [row for row in rows if row[1] != row[2]]
    return columns(("what", *names), rows, WIDTH) if rows else []


def _software(explanation: Explanation) -> str:
    """ "vLLM 0.32.0, AITER 0.1.21"."""
    aiter = explanation.situation.software.aiter
    vllm = f"vLLM {explanation.plan.vllm or 'of unknown version'}"
    if explanation.plan.hardware != "amd":
        return vllm
    return f"{vllm}, {'no AITER' if aiter is None else f'AITER {aiter}'}"


def _deed(decision: Decision | None, others: Mapping[str, Decision]) -> str:
    """What a decision does that the other plan's of that name does not do as well."""
    if decision is None:
        return "–"
    if decision.kind == "feature":
        return "on" if decision.on else "off"
    other = others.get(decision.name)
    theirs = {} if other is None else other.settings
    own = {key: value for key, value in decision.settings.items() if theirs.get(key) != value}
    return settings_text(own) or "–"


def _facts(explanation: Explanation) -> dict[str, str]:
    facts = {name: outcome.planned for name, outcome in explanation.outcomes.items()}
    facts |= dict(_memory_rows(explanation))
    facts |= {f"problem {n}": text for n, text in enumerate(explanation.problems, start=1)}
    facts |= {f"note {n}": text for n, text in enumerate(explanation.plan.notes, start=1)}
    return facts


def _either(one: Mapping[str, object], other: Mapping[str, object]) -> Iterable[str]:
    return dict.fromkeys((*one, *other))


def _sentences(explanation: Explanation) -> list[tuple[str, str]]:
    plan = explanation.plan
    return [
        *(("problem", sentence) for sentence in explanation.problems),
        *(("warning", sentence) for sentence in plan.warnings),
        *(("advice", sentence) for sentence in plan.notes),
        *(("note", sentence) for sentence in explanation.notes),
    ]


def _tables(explanation: Explanation, every: bool) -> Iterable[tuple[str, Sequence[str], Rows]]:
    said = (*explanation.plan.notes, *explanation.plan.refusals)
    yield (
        "what vLLM selects",
        ("what", "vLLM alone", "with this plan"),
        [
            (name, outcome.stock, outcome.planned if outcome.changed else "the same")
            for name, outcome in explanation.outcomes.items()
        ],
    )
    yield ("memory on each GPU (estimated)", ("what", "how much"), _memory_rows(explanation))
    yield (
        "what is not set, or is own code",
        ("name", "state", "why"),
        [
            (decision.name, "on" if decision.on else "off", decision.reason)
            for decision in explanation.plan.decisions
            if not decision.settings
            and decision.reason not in said
            and (every or concerns_the_user(decision))
        ],
    )


def _setting(explanation: Explanation) -> list[tuple[Decision, str]]:
    """The decisions that set something, each with its evidence and source."""
    found = []
    for decision in explanation.plan.decisions:
        source = explanation.sources.get(decision.name)
        grounds = f"{decision.evidence} [{source}]" if source else decision.evidence
        if decision.settings:
            found.append((decision, grounds))
    return found


def _what_is_set(explanation: Explanation, width: int) -> list[str]:
    lines: list[str] = []
    for decision, grounds in _setting(explanation):
        by = "" if decision.origin == "default" else f" (by the {decision.origin})"
        lines += wrapped(
            f"  {decision.name}{by}: {settings_text(decision.settings)}", width, "    "
        )
        lines += wrapped(f"    why: {decision.reason}", width, "         ")
        lines += wrapped(f"    evidence: {grounds}", width, "              ")
    return ["", "what is set:", *lines] if lines else []


def _memory_rows(explanation: Explanation) -> list[tuple[str, str]]:
    memory = explanation.memory
    if memory is None or memory.weight_bytes is None:
        return []
    rows = [("weights", _gib(memory.weight_bytes))]
    if memory.budget_bytes is not None:
        rows.insert(0, ("vLLM may use", _gib(memory.budget_bytes)))
    if memory.kv_bytes_per_token is not None:
        rows.append(("KV cache per token", f"{memory.kv_bytes_per_token / 1024:.1f} KiB"))
    if memory.kv_capacity_tokens is not None:
        rows.append(("KV cache holds", f"{memory.kv_capacity_tokens:,} tokens"))
    rows += [("assumed", sentence) for sentence in memory.assumptions]
    return rows


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _commands(explanation: Explanation) -> list[tuple[str, str]]:
    if explanation.problems:
        return [("what you asked for, which cannot run so (see above)", explanation.with_plugin)]
    commands = [("with the plugin", explanation.with_plugin)]
    if explanation.plan.settings:
        commands.append(("the same settings by hand, for vLLM alone", explanation.by_hand))
    return commands
