"""`vllm-amdopt compare OLD NEW`: what changed between two sessions, if that can be said."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from vllm_amdopt.bench.compare import compare, lost
from vllm_amdopt.run_record import RecordError, RunRecord, find_records, load, write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("old", metavar="OLD", type=Path, help="a run record, or its directory")
    parser.add_argument("new", metavar="NEW", type=Path, help="a later one of the same kind")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with all metrics")


def run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Print the comparison; 1 if the candidate lost more than the margin since then, else 0."""
    from vllm_amdopt.bench.report.markdown import render_markdown
    from vllm_amdopt.bench.report.page import render_html

    old, new = _only(options.old), _only(options.new)
    report = compare(old, new)
    print(render_markdown(report, folded=False), end="")
    if options.html is not None:
        write_atomically(options.html, render_html(report).encode("utf-8", "replace"))
        print(f"\nwritten: {options.html}")
    return 1 if lost(old, new) else 0


def _only(path: Path) -> RunRecord:
    paths = find_records(path)
    if len(paths) > 1:
        raise RecordError(
            f"{path} holds {len(paths)} run records: name one of them, for instance {paths[0]}"
        )
    return load(paths[0])
