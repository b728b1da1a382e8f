"""`vllm-amdopt doctor`: what is wrong on this machine, and how to mend it.

Exit code 0: nothing has to be mended; 1: something has. Starts no GPU, imports neither torch nor
vLLM; what cannot be judged here is left out and named.
"""

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from vllm_amdopt.commands import machine_checks, software_checks, variable_checks
from vllm_amdopt.commands.facts import Facts, gather
from vllm_amdopt.commands.findings import Check, Finding

CHECKS: tuple[Check, ...] = (
    *machine_checks.CHECKS,
    *software_checks.CHECKS,
    *variable_checks.CHECKS,
)

_ORDER = ("wrong", "advice", "fine")
_WIDTH = 100


@dataclass(frozen=True)
class Diagnosis:
    """The finding of each check by its name, worst first, and the checks that found no facts."""

    findings: Mapping[str, Finding]
    not_judged: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        return 1 if any(one.severity == "wrong" for one in self.findings.values()) else 0


def diagnose(facts: Facts, checks: Sequence[Check] = CHECKS) -> Diagnosis:
    """Judge `facts`; pure."""
    found: dict[str, Finding] = {}
    not_judged = []
    for check in checks:
        skipped = check.needs_amd and not facts.expects_amd
        finding = None if skipped else check.judge(facts)
        if finding is None:
            not_judged.append(check.name)
        else:
            found[check.name] = finding
    ranked = sorted(found, key=lambda name: _ORDER.index(found[name].severity))
    return Diagnosis({name: found[name] for name in ranked}, tuple(not_judged))


def render(facts: Facts, diagnosis: Diagnosis) -> str:
    """For people: one line for each finding, the remedy below it."""
    column = max(len(name) for name in diagnosis.findings) + 2
    lines = []
    for name, finding in diagnosis.findings.items():
        lines += _paragraph(f"{finding.severity:<8}{name:<{column}}", finding.sentence)
        if finding.remedy:
            lines += _paragraph(" " * (8 + column) + "→ ", finding.remedy)
    if diagnosis.not_judged:
        why = "" if facts.expects_amd else " without an AMD GPU"
        lines += _paragraph(f"not judged{why}: ", ", ".join(diagnosis.not_judged))
    counts = [
        f"{sum(one.severity == severity for one in diagnosis.findings.values())} {words}"
        for severity, words in (("wrong", "to mend"), ("advice", "advised"), ("fine", "fine"))
    ]
    return "\n".join([*lines, ", ".join(counts)])


def _paragraph(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--json", action="store_true", help="the findings as JSON")


def run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Print the diagnosis of this machine; 1 if something has to be mended."""
    facts = gather(environment)
    diagnosis = diagnose(facts)
    if options.json:
        document = {
            "machine": facts.hardware.description,
            "findings": [
                {"name": name, **asdict(finding)} for name, finding in diagnosis.findings.items()
            ],
            "not_judged": list(diagnosis.not_judged),
            "exit_code": diagnosis.exit_code,
        }
        print(json.dumps(document, indent=2))
    else:
        print(render(facts, diagnosis))
    return diagnosis.exit_code
