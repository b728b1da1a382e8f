"""`vllm-amdopt patches list|check|apply|reverse`: the diffs for an installed vLLM, by hand.

What is said to the user is here; what is done is in `vllm_amdopt.patching`.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_amdopt.patching.installation import Finding, Installation
    from vllm_amdopt.patching.manifest import Manifest


class UsageError(ValueError):
    """What the user asked for cannot be done; the message is one sentence for them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `patches`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("list", "what there is, and what the installed vLLM has"),
        ("check", "whether patches can be applied; exit code 1 where one cannot"),
        ("apply", "apply patches, all or none"),
        ("reverse", "take patches back, all or none"),
    ):
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        action.add_argument(
            "--root", metavar="DIR", type=Path, help="the folder that holds the package vllm"
        )
        if name == "list":
            action.add_argument("--json", action="store_true", help="as JSON")
            continue
        action.add_argument("patches", metavar="PATCH", nargs="*", help="a number, as 0005")
        if name != "check":
            action.add_argument("--all", action="store_true", help="all that can be")
            action.add_argument("--dry-run", action="store_true", help="only say what would be")
        if name == "apply":
            action.add_argument(
                "--overlay",
                metavar="DIR",
                type=Path,
                help="leave the installation alone: make DIR, links and the patched files, for "
                "PYTHONPATH",
            )


def run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run one action; the exit code."""
    from vllm_amdopt.patching.changes import interrupted
    from vllm_amdopt.patching.installation import find_installation
    from vllm_amdopt.patching.manifest import load_manifest

    manifest = load_manifest()
    installation = find_installation(options.root)
    if options.action in ("list", "check") and interrupted(installation):
        raise UsageError(
            f"an earlier run was interrupted while it changed {installation.package}: "
            "`vllm-amdopt patches reverse --all` puts everything back first"
        )
    if options.action == "list":
        return _list(manifest, installation, as_json=options.json)
    if options.action == "check":
        return _check(manifest, installation, options.patches)
    return _change(manifest, installation, options)


def _findings(
    manifest: "Manifest", installation: "Installation", wanted: list[str]
) -> "list[Finding]":
    """Of the patches named, or of all."""
    from vllm_amdopt.patching.installation import examine

    patches = manifest.select(wanted) if wanted else manifest.patches
    return [examine(patch, installation) for patch in patches]


def _list(manifest: "Manifest", installation: "Installation", *, as_json: bool) -> int:
    findings = _findings(manifest, installation, [])
    if as_json:
        import json

        record = {
            "root": str(installation.root),
            "vllm": installation.version,
            "patches": [
                {
                    "name": finding.patch.name,
                    "title": finding.patch.title,
                    "state": finding.state,
                    "reason": finding.sentence,
                    "adds": finding.patch.adds,
                    "used_by": finding.patch.used_by,
                }
                for finding in findings
            ],
        }
        print(json.dumps(record, indent=2))
        return 0
    print(_heading(installation))
    for finding in findings:
        print(f"{finding.patch.number}  {finding.patch.title}")
        print(f"      {_state(finding)}")
        print(f"      used by: {finding.patch.used_by}")
    return 0


def _check(manifest: "Manifest", installation: "Installation", wanted: list[str]) -> int:
    print(_heading(installation))
    bad = False
    for finding in _findings(manifest, installation, wanted):
        print(f"{finding.patch.number}  {_state(finding)}")
        bad = bad or finding.state == "refused"
    return int(bad)


def _change(manifest: "Manifest", installation: "Installation", options: argparse.Namespace) -> int:
    from vllm_amdopt.patching.changes import changes_of, interrupted, make_changes, recover

    reverse = options.action == "reverse"
    if options.all == bool(options.patches):
        raise UsageError(f"name the patches to {options.action}, or give --all, not both")
    overlay = None if reverse else options.overlay
    if interrupted(installation):
        if options.dry_run:
            print(f"would first put back what an interrupted run left in {installation.package}")
            return 0
        recover(installation)
        print(f"put back what an interrupted run left in {installation.package}")
    findings = _findings(manifest, installation, options.patches)
    ready, done = ("applied", "fits") if reverse else ("fits", "applied")
    if not options.all:
        _refuse(findings, (ready, done, *(("not needed", "not for it") if reverse else ())))
    chosen = [finding for finding in findings if finding.state == ready]
    for finding in findings:
        if finding.state != ready:
            print(f"{finding.patch.number}  left alone: {_state(finding)}")
    changes = changes_of(manifest, chosen, installation, reverse=reverse)
    verb = "reversed" if reverse else "applied"
    if options.dry_run:
        for finding in chosen:
            files = ", ".join(finding.patch.targets)
            print(f"{finding.patch.number}  would be {verb}: {files} in {installation.root}")
        return 0
    if overlay is not None:
        return _overlay(installation, overlay, chosen, changes)
    if changes:
        make_changes(installation, changes)
    for finding in chosen:
        print(f"{finding.patch.number}  {verb}: {', '.join(finding.patch.targets)}")
    if chosen:
        print(f"in {installation.root}; running servers are not affected until they are restarted")
    return 0


def _refuse(findings: "Sequence[Finding]", accepted: tuple[str, ...]) -> None:
    """Nothing is changed where one of the patches that were named cannot be."""
    for finding in findings:
        if finding.state not in accepted:
            raise UsageError(
                f"patch {finding.patch.number}, {finding.state}: {finding.sentence}; nothing was "
                "changed"
            )


def _overlay(installation: "Installation", folder: Path, chosen: list, changes: list) -> int:  # type: ignore[type-arg]
    from vllm_amdopt.patching.overlay import make_overlay

    if not changes:
        raise UsageError("there is nothing to apply, so no overlay is made")
    make_overlay(installation, changes, folder, [finding.patch.name for finding in chosen])
    numbers = ", ".join(finding.patch.number for finding in chosen)
    where = shlex.quote(str(folder.absolute()))
    print(f"made {where} with {numbers}; {installation.root} is as it was. To use it:")
    print(f"  PYTHONPATH={where}${{PYTHONPATH:+:$PYTHONPATH}} vllm serve ...")
    print("It links to the installed vLLM: make it anew when that changes.")
    return 0


def _heading(installation: "Installation") -> str:
    kind = "overlay of vLLM" if installation.overlay else "vLLM"
    return f"{kind} {installation.version or 'of unknown version'} in {installation.root}"


def _state(finding: "Finding") -> str:
    if finding.state in ("applied", "fits"):
        return finding.sentence
    return f"{finding.state}: {finding.sentence}"
